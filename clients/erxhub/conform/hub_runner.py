"""Runs the cases of the role hub: robots play everybody else against a hub, our own or somebody's.

Owns: the course of one case in code, and what its exceptions mean. Must never: know how a hub is reached;
the target does.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

from erxhub.client import ClientFailure
from erxhub.client.environment import Environment, SystemEnvironment
from erxhub.conform.checks import CaseEnded, Checks, NeedsReview, Skipped, Unsupported
from erxhub.conform.hub.run import HubRun
from erxhub.conform.hub.target import HubTarget, Unusable
from erxhub.conform.load import Suite
from erxhub.conform.model import SUITES, Text, Verdict
from erxhub.conform.plan import Described, Planned, make_plan
from erxhub.conform.result import CaseResult, RunResult, against_list, result_of, verdict_of
from erxhub.conform.runner import Progress
from erxhub.conform.runs import flaky, problem_results, run_result
from erxhub.conform.settings import Settings

FRAMES_SHOWN: Final = 1


async def run_hub_suite(
    suite: Suite,
    settings: Settings,
    target: AbstractAsyncContextManager[HubTarget],
    *,
    progress: Progress | None = None,
    environment: Environment | None = None,
) -> RunResult:
    """Runs the cases of the role hub, one after the other."""
    environment = environment or SystemEnvironment()
    progress = progress or (lambda result: None)
    began_ms = environment.now_ms()
    results = problem_results(suite, settings)
    described = Described("", "", frozenset(), frozenset())
    unusable: Text | None = None
    try:
        async with target as hub:
            described = _described(hub.describe())
            plan = make_plan(
                suite,
                role="hub",
                profile=settings.profile,
                seed=settings.seed,
                described=described,
                patterns=settings.patterns,
                selection=settings.selection,
            )
            results += [result_of(one.planned, one.verdict, one.why) for one in plan.pruned]
            for planned in plan.to_run:
                result = await _judged(hub, planned, settings, environment)
                results.append(result)
                progress(result)
    except Unusable as error:
        unusable = error.text
    run = run_result(suite, settings, described, results, unusable)
    run.began_at_ms, run.took_ms = began_ms, environment.now_ms() - began_ms
    return run


def _described(said: Mapping[str, Any]) -> Described:
    return Described(
        name=str(said.get("name", "")),
        version=str(said.get("version", "")),
        features=frozenset(said.get("features") or ()),
        suites=frozenset(said.get("suites") or SUITES),
        record=dict(said),
    )


async def _judged(hub: HubTarget, planned: Planned, settings: Settings, environment: Environment) -> CaseResult:
    result = await _case(hub, planned, settings, environment)
    for _ in range(settings.repeat_failed):
        if result.verdict is not Verdict.FAIL:
            break
        if (await _case(hub, planned, settings, environment)).verdict is not Verdict.FAIL:
            flaky(result)
    result.repeat = settings.command(planned.key)
    return against_list(result, settings.known_failing)


async def _case(hub: HubTarget, planned: Planned, settings: Settings, environment: Environment) -> CaseResult:
    checks = Checks()
    runs: list[HubRun] = []
    began_ms = environment.now_ms()
    verdict, reason = await _guarded(hub, planned, settings, checks, runs)
    result = result_of(planned, verdict, reason)
    result.checks, result.notes, result.to_review = checks.found, checks.notes, checks.to_review
    # What was kept when the case ended, however it did.
    result.traffic = [exchange for run in runs for exchange in run.traffic()]
    result.took_ms = environment.now_ms() - began_ms
    return result


async def _guarded(
    hub: HubTarget,
    planned: Planned,
    settings: Settings,
    checks: Checks,
    runs: list[HubRun],
) -> tuple[Verdict, Text | None]:
    function = planned.case.function
    assert function is not None, planned.key
    deadline_ms = planned.case.deadline_ms or settings.case_ms
    try:
        async with asyncio.timeout(deadline_ms / 1000), hub.run(planned, checks) as run:
            runs.append(run)
            await function(run)
    except CaseEnded:
        pass
    except TimeoutError:
        checks.that(
            False,
            en=f"the case ends within {deadline_ms} ms",
            zh=f"用例应在 {deadline_ms} 毫秒内结束",
            code="CASE_DEADLINE",
        )
    except Unsupported as unsupported:
        return Verdict.UNSUPPORTED, unsupported.text
    except Skipped as skipped:
        return Verdict.SKIP, skipped.text
    except NeedsReview as review:
        checks.review(review.text.en, review.text.zh)
    except ClientFailure as failure:
        # A call that the case took for granted: the hub refused it, or did not answer.
        checks.that(
            False,
            en="the hub accepts what the case rests on",
            zh="中心应受理本用例的前置调用",
            actual=f"{failure} ({_place(failure)})",
            code="CASE_CALL",
        )
    except Unusable:
        raise
    except Exception as error:  # noqa: BLE001 a mistake of one case must not end the run
        checks.that(
            False,
            en=f"the harness could not go on: {type(error).__name__}: {error} ({_place(error)})",
            zh=f"测试程序无法继续：{type(error).__name__}",
            point="harness",
            code="CASE_HARNESS",
        )
    return verdict_of(planned, checks)


def _place(error: BaseException) -> str:
    """Where in a case it came up."""
    frames = [one for one in traceback.extract_tb(error.__traceback__) if "hub_cases" in one.filename]
    frames = frames or list(traceback.extract_tb(error.__traceback__))
    return ", ".join(f"{Path(one.filename).name}:{one.lineno}" for one in frames[-FRAMES_SHOWN:])
