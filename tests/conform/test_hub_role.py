"""The hub role against our own hub as a process of its own: with its sandbox, and through the proxy."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

from erxhub.conform.hub import target
from erxhub.conform.hub.target import TargetSettings
from erxhub.conform.hub_runner import run_hub_suite
from erxhub.conform.load import load_suite
from erxhub.conform.model import Verdict
from erxhub.conform.result import RunResult
from erxhub.conform.settings import Settings


async def run(folder: Path, settings: TargetSettings, *, profile: str = "dev") -> RunResult:
    told = Settings(role="hub", folder=folder, selection="core", profile=profile, seed=7)
    return await run_hub_suite(load_suite(), told, target.open(settings))


def verdicts(result: RunResult) -> dict[str, Verdict]:
    return {one.key: one.verdict for one in result.results if one.verdict is not Verdict.SKIP}


def core_cases() -> set[str]:
    return {case.id for case in load_suite().cases if case.core and "hub" in case.roles}


async def test_every_core_case_passes_against_our_own_hub_with_its_sandbox(tmp_path: Path) -> None:
    found = verdicts(await run(tmp_path, TargetSettings(work=tmp_path / "hub", seed=7)))
    assert set(found.values()) == {Verdict.PASS}, found
    assert {key.partition("@")[0] for key in found} == core_cases()


async def test_a_hub_without_a_sandbox_passes_through_the_fault_proxy(tmp_path: Path) -> None:
    async with AsyncExitStack() as undo:
        # Of this process only the address and a folder of certificates are told.
        facts = await target.start_own_hub(tmp_path / "theirs", undo)
        pki = tmp_path / "theirs" / "home" / "pki"
        settings = TargetSettings(work=tmp_path / "ours", address=facts["target"], identity_dir=pki, seed=7)
        found = verdicts(await run(tmp_path, settings))
    assert {key.partition("@")[0] for key in found} == core_cases()
    told = {key: verdict for key, verdict in found.items() if verdict is not Verdict.PASS}
    assert set(told.values()) <= {Verdict.UNSUPPORTED}, told
    assert len(found) - len(told) >= len(found) * 2 // 3, told
