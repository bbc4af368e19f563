"""Every broken hospital and pharmacy is caught by a case that its table names: the tests of the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from erxhub.conform.model import Verdict
from tests.mutants.clients import CLIENTS
from tests.mutants.patching import Mutant
from tests.mutants.score import tell, tried, try_mutants
from tests.mutants.trying import CAUGHT, driver_command, product_verdicts, verdicts_of

LEAST = 20


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    try_mutants(metafunc, CLIENTS)


@pytest.mark.campaign
async def test_a_broken_product_is_caught(mutant: Mutant, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    found = await verdicts_of(mutant, mutant.killed_by, tmp_path)
    tell(request, killed=bool(CAUGHT & set(found.values())))
    assert CAUGHT & set(found.values()), f"{mutant.broken}: survives {found}"
    assert Verdict.ERROR not in found.values(), found


@pytest.mark.parametrize("role", ["hospital", "pharmacy"])
async def test_the_product_that_is_whole_passes_the_same_cases(
    role: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    mutants = [mutant for mutant in tried(pytestconfig, CLIENTS) if mutant.role == role]
    patterns = tuple(sorted({case for mutant in mutants for case in mutant.killed_by}))
    driver = driver_command(f"erxhub.conform.drivers.{role}")
    found = await product_verdicts(role, driver, patterns, tmp_path)
    assert set(found.values()) == {Verdict.PASS}, found


def test_there_are_mutants_of_both_roles() -> None:
    assert len(CLIENTS) >= LEAST
    assert {mutant.role for mutant in CLIENTS.values()} == {"hospital", "pharmacy"}
