"""One case against a hospital's or a pharmacy's product, once: its course, and what everything that can happen means.

Owns: the turning of exceptions into verdicts. Must never: raise for anything that a product, a driver or a case does.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from erxhub.client import ClientFailure
from erxhub.client.environment import Environment
from erxhub.client.sandbox import SandboxClient
from erxhub.conform.checks import CaseEnded, Checks, NeedsReview, Skipped, Unsupported
from erxhub.conform.driving import Driver, DriverFault, OperationUnsupported
from erxhub.conform.model import Text, Verdict
from erxhub.conform.plan import Planned
from erxhub.conform.result import CaseResult, result_of, verdict_of
from erxhub.conform.robots import Robots
from erxhub.conform.runs import Unusable
from erxhub.conform.settings import Settings
from erxhub.conform.steps import Play
from erxhub.conform.sut import Sut
from erxhub.conform.values import UnknownName, plain
from erxhub.conform.world import World
from erxhub.v1 import sandbox_pb2


class Surroundings(Protocol):
    """What a case asks of the worker that runs it."""

    @property
    def driver(self) -> Driver | None:
        """The driver that the case uses; None for an attached product."""

    @property
    def settings(self) -> Settings:
        """Of the run."""

    @property
    def environment(self) -> Environment:
        """Clock and waiting of the harness."""

    @property
    def features(self) -> frozenset[str]:
        """What the product says it has."""

    @property
    def told_clock(self) -> bool:
        """Whether the product goes by the hub's clock."""

    async def settle_driver(self, at_ms: int) -> None:
        """Reads whatever the driver still writes about this case. Raises DriverFault, OperationUnsupported."""

    def folder(self) -> Path:
        """A new folder for the case that begins."""

    def namespace(self) -> str:
        """The name of the case's namespace."""

    async def sut(self, planned: Planned) -> Sut:
        """What is under test, ready for a case. Raises Unusable."""


class CaseRun:
    """One case, once."""

    def __init__(self, worker: Surroundings, client: SandboxClient, planned: Planned) -> None:
        self._worker = worker
        self._client = client
        self._planned = planned
        self._checks = Checks()
        self._stage = "before the case"
        self._play: Play | None = None
        self._traffic: list[Any] = []
        self._faults: list[str] = []
        self._stderr_before = 0

    async def go(self) -> CaseResult:
        """The result, whatever happens. Raises Unusable."""
        sut = await self._worker.sut(self._planned)
        driver = self._worker.driver
        kept = driver.stderr.bytes if driver is not None else 0
        verdict, reason = await self._guarded(sut)
        result = result_of(self._planned, verdict, reason)
        if driver is not None:
            if not driver.usable:
                await driver.kill()
            if driver.stderr.bytes > kept and verdict not in (Verdict.PASS, Verdict.UNSUPPORTED):
                result.stderr = driver.stderr.text()
        result.checks, result.notes = self._checks.found, self._checks.notes
        result.to_review = self._checks.to_review
        result.steps = self._play.log if self._play is not None else ()
        result.traffic, result.faults = self._traffic, self._faults
        return result

    async def _guarded(self, sut: Sut) -> tuple[Verdict, Text | None]:
        """Everything that can happen, as a verdict."""
        deadline_ms = self._planned.case.deadline_ms or self._worker.settings.case_ms
        try:
            # An operator takes the time that he takes.
            async with asyncio.timeout(None if self._worker.settings.attached else deadline_ms / 1000):
                await self._course(sut)
        except TimeoutError:
            self._over_time(deadline_ms)
        except DriverFault as fault:
            self._driver_fault(fault)
        except CaseEnded:
            pass
        except UnknownName as unknown:
            self._checks.that(
                False,
                en=f"the answer has what the next step needs: {unknown}",
                zh=f"应答包含下一步所需内容：{unknown}",
                point="sut",
                where=self._where(),
            )
        except OperationUnsupported as unsupported:
            return self._unsupported(unsupported)
        except Unsupported as unsupported:
            return Verdict.UNSUPPORTED, unsupported.text
        except Skipped as skipped:
            return Verdict.SKIP, skipped.text
        except NeedsReview as review:
            self._checks.review(review.text.en, review.text.zh)
        except ClientFailure as failure:
            self._harness_error(f"{self._stage}: {failure}", "CASE_HUB")
        except Unusable:
            raise
        except Exception as error:  # noqa: BLE001 a mistake of the harness in one case must not end the run
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(last.filename).name}:{last.lineno}"
            self._harness_error(f"{self._stage}: {type(error).__name__}: {error} ({place})", "CASE_HARNESS")
        self._take_driver_faults()
        return verdict_of(self._planned, self._checks)

    async def _course(self, sut: Sut) -> None:
        planned, worker = self._planned, self._worker
        script = planned.case.plays[planned.role]
        self._stage = "making the namespace"
        world = await World.create(
            self._client,
            name=worker.namespace(),
            seed=planned.seed,
            start_at_ms=script.given.clock_ms or worker.settings.start_at_ms,
            running=not worker.told_clock,
            suite=planned.suite,
            profile=planned.profile,
            sut_role=planned.role,
            environment=worker.environment,
        )
        robots = Robots(world)
        try:
            self._play = play = Play(script, world, robots, sut, self._checks, worker.environment)
            self._stage = "preparing what is given"
            await play.prepare()
            self._stage = "configuring the product"
            await sut.prepare(world, worker.folder(), plain(script.given.configure))
            await world.begin(script.given.faults, play.names)
            self._stage = "the steps"
            try:
                await play.play()
                await self._worker.settle_driver(world.now_ms)
            finally:
                await self._collect(world)
            self._stage = "the judgement"
            await play.conclude()
            self._check_hub(await world.invariant_findings())
        finally:
            await robots.close()
            await world.delete()

    async def _collect(self, world: World) -> None:
        """Keeps the traffic and the rules for the report, also of a case that broke off."""
        self._traffic = await world.calls()
        self._faults = [
            f"{rule.rule_id} {sandbox_pb2.FaultAction.Name(rule.action).removeprefix('FAULT_ACTION_').lower()}"
            for rule in await world.sandbox.list_faults(namespace=world.name)
        ]

    def _check_hub(self, findings: Sequence[Any]) -> None:
        for finding in findings:
            self._checks.that(
                False,
                en=f"the sandbox's ledger keeps {finding.invariant}: {finding.text_en}",
                zh=f"沙箱账本应满足 {finding.invariant}：{finding.text_zh}",
                point="harness",
                actual=finding.where,
                code="CASE_INVARIANT",
            )

    # ---- what can go wrong ----

    def _where(self) -> str:
        return str(self._play.log[-1]["where"]) if self._play is not None and self._play.log else ""

    def _driver_fault(self, fault: DriverFault) -> None:
        text = fault.text
        self._checks.that(
            False,
            en=text.en,
            zh=text.zh,
            point="driver",
            actual=fault.detail,
            where=self._where(),
            code=fault.code,
        )
        driver = self._worker.driver
        if driver is not None:
            driver.give_up()

    def _take_driver_faults(self) -> None:
        driver = self._worker.driver
        seen: set[str] = set()
        for fault in driver.take_faults() if driver is not None else ():
            # The kinds, not each of a thousand lines.
            if fault.code not in seen:
                seen.add(fault.code)
                self._driver_fault(fault)

    def _over_time(self, deadline_ms: int) -> None:
        self._checks.that(
            False,
            en=f"the case ends within {deadline_ms} ms; it did not in {self._stage}",
            zh=f"用例应在 {deadline_ms} 毫秒内结束",
            point="driver" if self._stage in ("the steps", "configuring the product") else "harness",
            where=self._where(),
            code="CASE_DEADLINE",
        )
        if self._worker.driver is not None:
            self._worker.driver.give_up()

    def _unsupported(self, unsupported: OperationUnsupported) -> tuple[Verdict, Text | None]:
        """An operation that the product has named among its features is no longer unsupported."""
        step = self._play.log[-1] if self._play is not None and self._play.log else {}
        place = str(step.get("where", ""))
        text = Text(f"The product does not have this: {unsupported}", f"产品不支持：{unsupported}")
        if self._play is not None and place:
            number = int(place.removeprefix("steps[").removesuffix("]"))
            operation = self._play.script.steps[number].sut.op
            if operation in self._worker.features:
                self._checks.that(
                    False,
                    en=f"{operation} is among the features that describe names",
                    zh=f"describe 已声明功能 {operation}",
                    point="driver",
                    actual=str(unsupported),
                    where=place,
                    code="DRV_NOT_AS_DESCRIBED",
                )
                return verdict_of(self._planned, self._checks)
        return Verdict.UNSUPPORTED, text

    def _harness_error(self, what: str, code: str) -> None:
        self._checks.that(
            False,
            en=f"the harness could not go on: {what}",
            zh=f"测试程序无法继续：{what}",
            point="harness",
            where=self._where(),
            code=code,
        )
