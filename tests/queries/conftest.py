from collections.abc import Iterator

import pytest

from tests.queries.hub import Hub, populated


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = populated()
    yield hub
    hub.close()
