"""Runs a plan: each case in a fresh namespace with a deadline of its own, and goes on whatever happens in one.

Owns: sandboxes, drivers and their being started again, and the turning of everything that can happen in a case into a
verdict. Must never: let one case's misfortune reach the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final

from erxhub.client.environment import Environment, SystemEnvironment
from erxhub.client.sandbox import SandboxClient
from erxhub.conform.attach import AttachedSut
from erxhub.conform.case_run import CaseRun
from erxhub.conform.driving import Driver, DriverFault, OperationUnsupported, is_tcp
from erxhub.conform.load import Suite
from erxhub.conform.model import Case, Text, Verdict
from erxhub.conform.plan import Described, Plan, Planned, make_plan
from erxhub.conform.result import (
    CaseResult,
    RunResult,
    against_list,
    result_of,
)
from erxhub.conform.runs import Unusable, flaky, problem_results, run_result
from erxhub.conform.script import operations
from erxhub.conform.settings import Settings
from erxhub.conform.sut import DriverSut, Sut, described_by
from erxhub.testing.sandbox import running_sandbox

STARTS_MAX: Final = 3
"""A driver that cannot be started so often in a row is unusable."""

SandboxOpener = Callable[[], AbstractAsyncContextManager[SandboxClient]]
Progress = Callable[[CaseResult], None]


@asynccontextmanager
async def own_sandbox() -> AsyncIterator[SandboxClient]:
    """A sandbox in this process, on free ports, in memory."""
    async with (
        running_sandbox() as sandbox,
        SandboxClient.connect(sandbox.control_target, sandbox.operator) as client,
    ):
        yield client


async def run_suite(
    suite: Suite,
    settings: Settings,
    *,
    progress: Progress | None = None,
    environment: Environment | None = None,
    sandbox: SandboxOpener = own_sandbox,
) -> RunResult:
    """Runs the cases of a hospital or a pharmacy. Raises nothing that a case, a driver or a product does."""
    environment = environment or SystemEnvironment()
    run = _Run(suite, settings, environment, sandbox, progress or (lambda result: None))
    began_ms = environment.now_ms()
    result = await run.go()
    result.began_at_ms, result.took_ms = began_ms, environment.now_ms() - began_ms
    return result


class _Run:
    def __init__(
        self,
        suite: Suite,
        settings: Settings,
        environment: Environment,
        sandbox: SandboxOpener,
        progress: Progress,
    ) -> None:
        self.suite = suite
        self.settings = settings
        self.environment = environment
        self.sandbox = sandbox
        self.progress = progress
        self.results: dict[int, CaseResult] = {}
        self.unusable: Text | None = None
        self.described = Described("", "", frozenset(), frozenset())

    async def go(self) -> RunResult:
        bad = problem_results(self.suite, self.settings)
        plan = Plan((), ())
        try:
            self.described = await self._describe()
            plan = self._plan()
            await self._work(plan)
        except Unusable as unusable:
            self.unusable = unusable.text
        done = [self.results.get(place) or self._left_out(one) for place, one in enumerate(plan.to_run)]
        pruned = [result_of(one.planned, one.verdict, one.why) for one in plan.pruned]
        return run_result(self.suite, self.settings, self.described, [*done, *pruned, *bad], self.unusable)

    def _left_out(self, planned: Planned) -> CaseResult:
        text = Text("What is under test became unusable before this case.", "被测系统在此用例之前已不可用。")
        return result_of(planned, Verdict.SKIP, text)

    # ---- before the cases ----

    async def _describe(self) -> Described:
        if self.settings.attached:
            features = {name for case in self.suite.cases for name in _needed(case, self.settings.role)}
            return Described("attached product", "", frozenset(features), frozenset(), told_clock=False)
        driver = Driver(self.settings.driver, operation_ms=self.settings.operation_ms)
        try:
            await driver.start()
            return await described_by(driver, self.settings.start_at_ms)
        except (DriverFault, OperationUnsupported) as error:
            await driver.kill()
            raise Unusable(_unusable_text(error, driver.stderr.text())) from None
        finally:
            await driver.shut_down(self.settings.start_at_ms)

    def _plan(self) -> Plan:
        settings = self.settings
        return make_plan(
            self.suite,
            role=settings.role,
            profile=settings.profile,
            seed=settings.seed,
            described=self.described,
            patterns=settings.patterns,
            selection=settings.selection,
        )

    # ---- the cases ----

    async def _work(self, plan: Plan) -> None:
        queue: asyncio.Queue[tuple[int, Planned]] = asyncio.Queue()
        for item in enumerate(plan.to_run):
            queue.put_nowait(item)
        alone = self.settings.attached or is_tcp(self.settings.driver)
        count = 1 if alone else max(1, min(self.settings.workers, len(plan.to_run)))
        workers = [_Worker(self, number) for number in range(count)]
        try:
            async with asyncio.TaskGroup() as group:
                for worker in workers:
                    group.create_task(worker.work(queue))
        except* Unusable as group_error:
            raise group_error.exceptions[0] from None

    def done(self, place: int, result: CaseResult) -> None:
        """Keeps a result, and tells whoever watches."""
        self.results[place] = result
        self.progress(result)


class _Worker:
    """Runs one case after the other, with a sandbox and a driver of its own.

    A sandbox of its own, because some faults cut every connection of one.
    """

    def __init__(self, run: _Run, number: int) -> None:
        self._run = run
        self._settings = run.settings
        self._number = number
        self._environment = run.environment
        self._driver: Driver | None = None
        self._attached: AttachedSut | None = None
        self._cases = 0

    async def work(self, queue: asyncio.Queue[tuple[int, Planned]]) -> None:
        """Until nothing is left. Raises Unusable."""
        if queue.empty():
            return
        async with self._run.sandbox() as client:
            try:
                while not queue.empty():
                    place, planned = queue.get_nowait()
                    self._run.done(place, await self._judged(client, planned))
            finally:
                if self._driver is not None:
                    await self._driver.shut_down(self._settings.start_at_ms)

    async def _judged(self, client: SandboxClient, planned: Planned) -> CaseResult:
        """One case, repeated as the settings say, and held against the known-failing list."""
        result = await self._case(client, planned)
        for _ in range(self._settings.repeat_failed):
            if result.verdict is not Verdict.FAIL:
                break
            again = await self._case(client, planned)
            if again.verdict is not Verdict.FAIL:
                flaky(result)
        result.repeat = self._settings.command(planned.key)
        return against_list(result, self._settings.known_failing)

    async def _case(self, client: SandboxClient, planned: Planned) -> CaseResult:
        began_ms = self._environment.now_ms()
        self._cases += 1
        case = CaseRun(self, client, planned)
        result = await case.go()
        result.took_ms = self._environment.now_ms() - began_ms
        return result

    # ---- what is under test ----

    def folder(self) -> Path:
        """A new folder for the case that begins."""
        return self._settings.folder / f"worker-{self._number}" / f"case-{self._cases:03d}"

    def namespace(self) -> str:
        """The name of the case's namespace; an attached product keeps its own."""
        return "attached" if self._attached is not None else f"w{self._number}-{self._cases}"

    async def sut(self, planned: Planned) -> Sut:
        """What is under test, ready for a case. Raises Unusable."""
        if self._settings.operator is not None:
            if self._attached is None or self._attached.suite != planned.suite:
                self._attached = AttachedSut(self._settings.operator, planned.suite)
            return self._attached
        driver = await self._running_driver()
        return DriverSut(
            driver,
            self._run.described,
            timeout_ms=self._settings.call_timeout_ms,
            wait_scale=self._settings.wait_scale,
            machine_ms=self._environment.now_ms,
        )

    async def _running_driver(self) -> Driver:
        if self._driver is not None and self._driver.usable:
            return self._driver
        if self._driver is not None:
            await self._driver.kill()
        for start in range(1, STARTS_MAX + 1):
            driver = Driver(self._settings.driver, operation_ms=self._settings.operation_ms)
            try:
                await driver.start()
                await described_by(driver, self._settings.start_at_ms)
            except (DriverFault, OperationUnsupported) as error:
                await driver.kill()
                if start == STARTS_MAX:
                    raise Unusable(_unusable_text(error, driver.stderr.text())) from None
            else:
                self._driver = driver
                return driver
        raise AssertionError("unreachable")

    async def settle_driver(self, at_ms: int) -> None:
        """One more operation: all that stands before its answer belongs to the case that ends.

        Raises DriverFault, OperationUnsupported.
        """
        if self._driver is not None and self._driver.usable:
            await self._driver.call("reset", {}, at_ms)

    @property
    def driver(self) -> Driver | None:
        """The driver that the case uses; None for an attached product."""
        return self._driver

    @property
    def settings(self) -> Settings:
        """Of the run."""
        return self._settings

    @property
    def environment(self) -> Environment:
        """Clock and waiting of the harness."""
        return self._environment

    @property
    def told_clock(self) -> bool:
        """Whether the product goes by the hub's clock."""
        return self._run.described.told_clock

    @property
    def features(self) -> frozenset[str]:
        """What the product says it has."""
        return self._run.described.features


def _needed(case: Case, role: str) -> set[str]:
    play = case.plays.get(role)
    return {*case.needs, *(operations(play) if play is not None else ())}


def _unusable_text(error: Exception, stderr: str) -> Text:
    tail = stderr.strip()[-500:]
    said = f"; it wrote: {tail}" if tail else ""
    return Text(f"The driver cannot be used: {error}{said}", f"驱动无法使用：{error}{said}")
