"""One mutant against cases: a broken product behind a driver of its own, a broken hub in this process.

Owns: how a mutant is run. Must never: say which cases ought to catch it.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Final

from erxhub.conform.hub import target
from erxhub.conform.hub.target import TargetSettings
from erxhub.conform.hub_runner import run_hub_suite
from erxhub.conform.load import load_suite
from erxhub.conform.model import Verdict
from erxhub.conform.runner import run_suite
from erxhub.conform.settings import Settings
from erxhub.testing import running_sandbox
from tests.mutants.patching import Mutant, Patches

ROOT: Final = Path(__file__).parents[2]
CASE_MS: Final = 15_000
"""A mutant may hang where the whole product answers in a second."""
CAUGHT: Final = frozenset({Verdict.FAIL, Verdict.WARN})
"""WARN is what a provisional case gives for a MUST that does not hold."""


def driver_command(module: str, *arguments: str) -> str:
    """The command line of a driver that is a module of ours."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return shlex.join(["env", f"PYTHONPATH={path}", sys.executable, "-m", module, *arguments])


async def product_verdicts(
    role: str, driver: str, patterns: tuple[str, ...], folder: Path, *, selection: str = "all", workers: int = 1
) -> dict[str, Verdict]:
    """Of these cases against the product behind a driver."""
    told = Settings(
        role=role,
        folder=folder,
        driver=driver,
        patterns=patterns,
        seed=7,
        workers=workers,
        selection=selection,
        case_ms=CASE_MS,
    )
    result = await run_suite(load_suite(), told)
    return {one.key: one.verdict for one in result.results if one.verdict is not Verdict.SKIP}


async def hub_verdicts(
    patterns: tuple[str, ...], folder: Path, mutant: Mutant | None = None, *, selection: str = "all"
) -> dict[str, Verdict]:
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
            told = Settings(role="hub", folder=folder, patterns=patterns, seed=7, selection=selection, case_ms=CASE_MS)
            result = await run_hub_suite(load_suite(), told, opened)
        finally:
            patches.undo()
    return {one.key: one.verdict for one in result.results if one.verdict is not Verdict.SKIP}


async def verdicts_of(mutant: Mutant, patterns: tuple[str, ...], folder: Path, **how: str) -> dict[str, Verdict]:
    """Of these cases against a mutant, judged as its table says."""
    if mutant.role == "hub":
        return await hub_verdicts(patterns, folder, mutant, **how)
    driver = driver_command("tests.mutants.driver", mutant.name)
    return await product_verdicts(mutant.role, driver, patterns, folder, **how)


def caught_by(found: dict[str, Verdict]) -> tuple[str, ...]:
    """The ids of the cases that did not pass."""
    return tuple(sorted({key.partition("@")[0] for key, verdict in found.items() if verdict in CAUGHT}))
