"""The course of the hub role, against a target that answers from memory."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from erxhub.client import CallFailed
from erxhub.conform.checks import Checks, NeedsReview, Skipped, Unsupported
from erxhub.conform.hub.target import Unusable
from erxhub.conform.hub_runner import run_hub_suite
from erxhub.conform.load import load_suite
from erxhub.conform.model import Case, Text, Verdict
from erxhub.conform.plan import Planned
from erxhub.conform.result import Exit, RunResult
from erxhub.conform.settings import Settings
from erxhub.v1 import sandbox_pb2
from tests.conform.ground import REQUIREMENTS, a_case

TEXT = Text("because", "因为")


class FakeRun:
    def __init__(self, checks: Checks) -> None:
        self.checks = checks

    def traffic(self) -> list[sandbox_pb2.Exchange]:
        return [sandbox_pb2.Exchange(number=1)]


class FakeTarget:
    """A hub that is there."""

    def describe(self) -> dict[str, Any]:
        return {"name": "fake hub", "version": "9", "features": ["sandbox"], "suites": ["ES256"]}

    @asynccontextmanager
    async def run(self, planned: Planned, checks: Checks) -> AsyncIterator[FakeRun]:
        yield FakeRun(checks)


@asynccontextmanager
async def there() -> AsyncIterator[Any]:
    yield FakeTarget()


@asynccontextmanager
async def gone() -> AsyncIterator[Any]:
    raise Unusable("no hub answers", "中心无应答")
    yield


async def good(run: FakeRun) -> None:
    """R-1: holds."""
    run.checks.that(True, en="it holds", zh="成立")


async def bad(run: FakeRun) -> None:
    """R-1: does not hold."""
    run.checks.that(False, en="it holds", zh="成立")


async def stopped(run: FakeRun) -> None:
    """R-1: does not hold, and nothing can follow."""
    run.checks.must(False, en="it holds", zh="成立")
    raise AssertionError("not reached")


async def unsupported(run: FakeRun) -> None:
    """R-1: is not there."""
    raise Unsupported(TEXT)


async def skipped(run: FakeRun) -> None:
    """R-1: cannot be run here."""
    raise Skipped(TEXT)


async def to_look_at(run: FakeRun) -> None:
    """R-1: somebody has to look."""
    raise NeedsReview(TEXT)


async def refused(run: FakeRun) -> None:
    """R-1: a call that is taken for granted fails."""
    raise CallFailed("INTERNAL", "INTERNAL", text_en="broken", text_zh="损坏")


async def mistaken(run: FakeRun) -> None:
    """R-1: the case itself is wrong."""
    raise ZeroDivisionError("oops")


async def hub_run(tmp_path: Path, *functions: Callable[[Any], Awaitable[None]], **settings: Any) -> RunResult:
    cases: list[Case] = [
        a_case(id=f"HUB-{number:03d}", roles=("hub",), function=function, plays={})
        for number, function in enumerate(functions, start=1)
    ]
    suite = load_suite([], in_code=cases, requirements=REQUIREMENTS)
    assert not suite.problems
    target = settings.pop("target", there)()
    return await run_hub_suite(suite, Settings(role="hub", folder=tmp_path, **settings), target)


@pytest.mark.parametrize(
    ("function", "verdict"),
    [
        (good, Verdict.PASS),
        (bad, Verdict.FAIL),
        (stopped, Verdict.FAIL),
        (unsupported, Verdict.UNSUPPORTED),
        (skipped, Verdict.SKIP),
        (to_look_at, Verdict.REVIEW),
        (refused, Verdict.FAIL),
        (mistaken, Verdict.ERROR),
    ],
)
async def test_what_a_case_in_code_does_has_a_verdict_and_the_next_one_runs(
    tmp_path: Path, function: Callable[[Any], Awaitable[None]], verdict: Verdict
) -> None:
    run = await hub_run(tmp_path, function, good)
    assert [result.verdict for result in run.results] == [verdict, Verdict.PASS]
    assert run.results[1].traffic
    assert run.under_test["name"] == "fake hub"


async def test_a_mistake_of_a_case_names_its_place(tmp_path: Path) -> None:
    run = await hub_run(tmp_path, mistaken)
    assert "test_hub_runner.py" in run.results[0].checks[0].what.en
    assert run.exit_code() is Exit.HARNESS_ERROR


async def test_a_hub_that_cannot_be_reached_is_unusable(tmp_path: Path) -> None:
    run = await hub_run(tmp_path, good, target=gone)
    assert run.exit_code() is Exit.UNUSABLE
    assert run.unusable is not None
    assert run.unusable.zh == "中心无应答"


async def test_known_failing_and_repeats_are_as_for_products(tmp_path: Path) -> None:
    run = await hub_run(tmp_path, bad, good, known_failing={"HUB-001": "x", "HUB-002": "y"}, repeat_failed=1)
    assert [result.verdict for result in run.results] == [Verdict.XFAIL, Verdict.XPASS]
    assert run.results[0].repeat == "erxhub conform run --role hub --profile dev --seed 0 --run HUB-001"


async def test_a_case_that_fails_once_is_flaky(tmp_path: Path) -> None:
    tries = iter([False, True])

    async def sometimes(run: FakeRun) -> None:
        """R-1: holds the second time."""
        run.checks.that(next(tries), en="it holds", zh="成立")

    run = await hub_run(tmp_path, sometimes, repeat_failed=2)
    assert run.results[0].verdict is Verdict.FLAKY
    assert run.exit_code() is Exit.FAILURES
