"""What every test of the simulation needs.

Must never hide what a hub does; its log is not what the checker looks at.
"""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _hubs_are_let_go() -> Iterator[None]:
    """Hubs that are killed on purpose say so in their log, with the traceback: pytest would keep each such record until
    the test ends, and with its frames the whole hub. Ten thousand seeds in one test held two gigabytes.
    """
    hub_log = logging.getLogger("erxhub")
    nowhere = logging.NullHandler()
    hub_log.addHandler(nowhere)
    before, hub_log.propagate = hub_log.propagate, False
    yield
    hub_log.propagate = before
    hub_log.removeHandler(nowhere)
