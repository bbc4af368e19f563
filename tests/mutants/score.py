"""Which mutants a run tries, and the mark by which the summary counts the killed ones.

Owns: the sample of the check (every fourth; all of them under --campaign). Must never: judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import pytest

from tests.mutants.patching import Mutant

SAMPLE: Final = 4
"""A mutant costs a process or a sandbox, so the check tries every fourth one."""
KILLED: Final = "mutant killed"
"""The user property of a test that tried a mutant: whether a case caught it."""


def tried(config: pytest.Config, table: Mapping[str, Mutant]) -> list[Mutant]:
    """The mutants of this run."""
    every = list(table.values())
    return every if config.getoption("--campaign") else every[SAMPLE // 2 :: SAMPLE]


def try_mutants(metafunc: pytest.Metafunc, table: Mapping[str, Mutant]) -> None:
    """Parametrises a test over the mutants of this run."""
    if "mutant" in metafunc.fixturenames:
        mutants = tried(metafunc.config, table)
        metafunc.parametrize("mutant", mutants, ids=[mutant.name for mutant in mutants])


def tell(request: pytest.FixtureRequest, *, killed: bool) -> None:
    """Tells the summary, wherever the test ran."""
    request.node.user_properties.append((KILLED, killed))
