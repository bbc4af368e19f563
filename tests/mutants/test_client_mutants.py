"""Every broken hospital and pharmacy is caught by a case that its table names: the tests of the tests."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from erxhub.conform.load import load_suite
from erxhub.conform.model import Verdict
from erxhub.conform.runner import run_suite
from erxhub.conform.settings import Settings
from tests.mutants.clients import CLIENTS
from tests.mutants.patching import Mutant
from tests.mutants.score import tell, tried, try_mutants

ROOT = Path(__file__).parents[2]
CAUGHT = frozenset({Verdict.FAIL, Verdict.WARN})
"""WARN is what a provisional case gives for a MUST that does not hold."""
LEAST = 20


async def verdicts(role: str, driver: str, patterns: tuple[str, ...], folder: Path) -> dict[str, Verdict]:
    told = Settings(role=role, folder=folder, driver=driver, patterns=patterns, seed=7, workers=1)
    result = await run_suite(load_suite(), told)
    return {one.key: one.verdict for one in result.results if one.verdict is not Verdict.SKIP}


def _command(module: str, *arguments: str) -> str:
    return shlex.join(["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", module, *arguments])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    try_mutants(metafunc, CLIENTS)


@pytest.mark.campaign
async def test_a_broken_product_is_caught(mutant: Mutant, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    driver = _command("tests.mutants.driver", mutant.name)
    found = await verdicts(mutant.role, driver, mutant.killed_by, tmp_path)
    tell(request, killed=bool(CAUGHT & set(found.values())))
    assert CAUGHT & set(found.values()), f"{mutant.broken}: survives {found}"
    assert Verdict.ERROR not in found.values(), found


@pytest.mark.parametrize("role", ["hospital", "pharmacy"])
async def test_the_product_that_is_whole_passes_the_same_cases(
    role: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    mutants = [mutant for mutant in tried(pytestconfig, CLIENTS) if mutant.role == role]
    patterns = tuple(sorted({case for mutant in mutants for case in mutant.killed_by}))
    found = await verdicts(role, _command(f"erxhub.conform.drivers.{role}"), patterns, tmp_path)
    assert set(found.values()) == {Verdict.PASS}, found


def test_there_are_mutants_of_both_roles() -> None:
    assert len(CLIENTS) >= LEAST
    assert {mutant.role for mutant in CLIENTS.values()} == {"hospital", "pharmacy"}
