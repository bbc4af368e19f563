"""Every broken hub is caught by a case that its table names."""

from __future__ import annotations

from pathlib import Path

import pytest

from erxhub.conform.hub import target
from erxhub.conform.hub.target import TargetSettings
from erxhub.conform.hub_runner import run_hub_suite
from erxhub.conform.load import load_suite
from erxhub.conform.model import Verdict
from erxhub.conform.settings import Settings
from erxhub.testing import running_sandbox
from tests.mutants.hubs import HUBS
from tests.mutants.patching import Mutant, Patches
from tests.mutants.score import tell, tried, try_mutants

CAUGHT = frozenset({Verdict.FAIL, Verdict.WARN})
"""WARN is what a provisional case gives for a MUST that does not hold."""
LEAST = 15


async def verdicts(patterns: tuple[str, ...], folder: Path, mutant: Mutant | None = None) -> dict[str, Verdict]:
    """Of these cases against our own hub in this process. It starts whole, so that its world is what it should be."""
    patches = Patches()
    async with running_sandbox(home=folder / "home") as sandbox:
        operator = folder / "operator"
        operator.mkdir()
        identity = sandbox.operator
        (operator / "ca.pem").write_bytes(identity.ca_pem)
        (operator / "cert.pem").write_bytes(identity.cert_pem or b"")
        (operator / "key.pem").write_bytes(identity.key_pem or b"")
        try:
            if mutant is not None:
                mutant.apply(patches)
            opened = target.open(
                TargetSettings(
                    address=sandbox.target,
                    sandbox=sandbox.control_target,
                    identity_dir=operator,
                    work=folder / "work",
                    seed=7,
                )
            )
            told = Settings(role="hub", folder=folder, patterns=patterns, seed=7)
            result = await run_hub_suite(load_suite(), told, opened)
        finally:
            patches.undo()
    return {one.key: one.verdict for one in result.results if one.verdict is not Verdict.SKIP}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    try_mutants(metafunc, HUBS)


@pytest.mark.campaign
async def test_a_broken_hub_is_caught(mutant: Mutant, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    found = await verdicts(mutant.killed_by, tmp_path, mutant)
    tell(request, killed=bool(CAUGHT & set(found.values())))
    assert CAUGHT & set(found.values()), f"{mutant.broken}: survives {found}"


async def test_the_hub_that_is_whole_passes_the_same_cases(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    cases = tuple(sorted({case for mutant in tried(pytestconfig, HUBS) for case in mutant.killed_by}))
    found = await verdicts(cases, tmp_path)
    assert set(found.values()) == {Verdict.PASS}, found


def test_there_are_mutants_of_the_hub() -> None:
    assert len(HUBS) >= LEAST
