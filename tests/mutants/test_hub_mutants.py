"""Every broken hub is caught by a case that its table names."""

from __future__ import annotations

from pathlib import Path

import pytest

from erxhub.conform.model import Verdict
from tests.mutants.hubs import HUBS
from tests.mutants.patching import Mutant
from tests.mutants.score import tell, tried, try_mutants
from tests.mutants.trying import CAUGHT, hub_verdicts, verdicts_of

LEAST = 15


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    try_mutants(metafunc, HUBS)


@pytest.mark.interpreted
@pytest.mark.campaign
async def test_a_broken_hub_is_caught(mutant: Mutant, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    found = await verdicts_of(mutant, mutant.killed_by, tmp_path)
    tell(request, killed=bool(CAUGHT & set(found.values())))
    assert CAUGHT & set(found.values()), f"{mutant.broken}: survives {found}"


async def test_the_hub_that_is_whole_passes_the_same_cases(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    cases = tuple(sorted({case for mutant in tried(pytestconfig, HUBS) for case in mutant.killed_by}))
    found = await hub_verdicts(cases, tmp_path)
    assert set(found.values()) == {Verdict.PASS}, found


def test_there_are_mutants_of_the_hub() -> None:
    assert len(HUBS) >= LEAST
