"""Plays the script of one case in one namespace, step by step.

Owns: what each verb does, and the judgement of what the product says. Must never: weigh a check, or know how a product
is attached.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf import json_format

from erxhub.client import Refusal
from erxhub.client.environment import Environment
from erxhub.conform.checks import CaseEnded, Checks, shown
from erxhub.conform.judge import Judge, honesty
from erxhub.conform.model import Text
from erxhub.conform.robots import Robots
from erxhub.conform.sut import Sut
from erxhub.conform.values import Named, matches, plain, references, resolved
from erxhub.conform.vocabulary import method_matches
from erxhub.conform.world import OUTAGE_RULE, World
from erxhub.harness.v1 import case_pb2

POLL_MS: Final = 10
WAIT_MS: Final = 10_000
QUIET_MS: Final = 200
IDLE_MS_MAX: Final = 10_000


@dataclass(slots=True)
class _Running:
    """An operation in the background."""

    sut: case_pb2.Sut
    where: str
    after: int
    task: asyncio.Task[Any]


@dataclass(slots=True)
class Play:
    """One case under way. `log` tells the report what was done."""

    script: case_pb2.Play
    world: World
    robots: Robots
    sut: Sut
    checks: Checks
    environment: Environment
    judge: Judge = field(init=False)
    names: dict[str, Any] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    _running: dict[str, _Running] = field(default_factory=dict)
    _to_show: dict[str, case_pb2.Voucher] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.judge = Judge(self.world, self.robots, self.sut.wait_scale)
        self.names = self.world.names()

    # ---- the course of a case ----

    async def prepare(self) -> None:
        """Brings about what is given. Raises ClientFailure when a robot cannot."""
        given = self.script.given
        other = "pharmacy_b" if self.world.sut_role == "pharmacy" else "pharmacy"
        issuer = "hospital_b" if self.world.sut_role == "hospital" else "hospital"
        for one in given.prescriptions:
            for number in range(1, max(one.copies, 1) + 1):
                made = await self.robots.do(
                    one.issued_by or issuer,
                    "issue",
                    {
                        "person": one.person or "P01",
                        "lines": one.lines or 2,
                        "valid_days": one.valid_days,
                        "overrides": plain(one.overrides),
                        "price_fen": one.price_fen,
                    },
                )
                await self.robots.prepare(one.state or "effective", made.value, one.by or other)
                self.names[f"{one.name}{number}" if one.copies else one.name] = made
        for voucher in given.vouchers:
            if self.sut.tells or voucher.magic:
                await self._voucher(voucher, "given")
            else:
                # A code lives a minute, and an operator takes his time: the patient shows it when it is asked for.
                self._to_show[voucher.name] = voucher

    async def play(self) -> None:
        """Every step. Raises CaseEnded, DriverFault, OperationUnsupported, ClientFailure, UnknownName."""
        try:
            for place, step in enumerate(self.script.steps):
                self.names["now_ms"] = self.world.now_ms
                await self._step(step, f"steps[{place}]")
        finally:
            for running in self._running.values():
                running.task.cancel()
            await asyncio.gather(*(running.task for running in self._running.values()), return_exceptions=True)

    async def conclude(self) -> None:
        """Judges the end, when the faults are gone."""
        await self.world.clear_faults()
        self.judge.final = True
        self.names["now_ms"] = self.world.now_ms
        found = await self.judge.judge(self.script.expect, list(self.script.also_ok), self.names, "expect")
        for check in found:
            self.checks.add(check)

    # ---- steps ----

    async def _step(self, step: case_pb2.Step, where: str) -> None:
        verb = step.WhichOneof("verb") or ""
        do: Callable[[Any, str], Awaitable[Any]] = getattr(self, f"_{verb}")
        entry = {"where": where, "verb": verb, "did": "", "came": ""}
        self.log.append(entry)
        for name in references(json_format.MessageToDict(step)) if self._to_show else ():
            if name in self._to_show:
                await self._voucher(self._to_show.pop(name), where)
        came = await do(getattr(step, verb), where)
        entry["did"] = _summary(verb, getattr(step, verb))
        entry["came"] = "" if came is None else shown(_told(came))

    async def _sut(self, sut: case_pb2.Sut, where: str) -> Any:
        after = await self._exchanges()
        args = resolved(plain(sut.args), self.names)
        card = Text(sut.card.en, sut.card.zh) if sut.HasField("card") else None
        # A case that asks for more time than the runner gives an operation says so itself.
        operation = self.sut.operate(sut.op, args, self.world.now_ms, deadline_ms=sut.deadline_ms, card=card)
        if sut.background:
            task = asyncio.create_task(operation, name=f"{where} {sut.op}")
            self._running[sut.background] = _Running(sut, where, after, task)
            return None
        return await self._came(sut, await operation, after, sut.expect, sut.save, where)

    async def _join(self, join: case_pb2.Join, where: str) -> Any:
        running = self._running.pop(join.name)
        result = await running.task
        return await self._came(running.sut, result, running.after, join.expect, join.save, where)

    async def _came(
        self, sut: case_pb2.Sut, result: Mapping[str, Any], after: int, expect: Any, save: str, where: str
    ) -> Mapping[str, Any]:
        """Judges what the product said, and keeps it."""
        so_far = [one for one in await self.world.calls() if one.actor == self.world.sut_actor]
        during = [one for one in so_far if one.number > after]
        result = await self.sut.observed(result, during)
        wanted = resolved(plain(expect), self.names)
        if self.sut.tells:
            for name, value in wanted.items():
                self.checks.that(
                    matches(result.get(name), value),
                    en=f"{sut.op}: {name}",
                    zh=f"{sut.op}：{name}",
                    point="sut",
                    expected=value,
                    actual=result.get(name),
                    where=where,
                )
            honesty(sut.op, result, during, so_far, self.checks, where)
        elif wanted:
            self.checks.review(
                f"{where} {sut.op}: the product shows {wanted}", f"{where} {sut.op}：产品应显示 {wanted}"
            )
        if save:
            self.names[save] = dict(result)
        return result

    async def _robot(self, robot: case_pb2.Robot, where: str) -> Any:
        args = resolved(plain(robot.args), self.names)
        code = ""
        given: Any = None
        try:
            given = await self.robots.do(robot.actor, robot.do, args)
        except Refusal as refusal:
            code = refusal.code
        except KeyError as error:
            # What an earlier verb would have left is not there: the product did not get so far.
            code = f"nothing to go on from: {error}"
        holds = self.checks.that(
            code == robot.refused,
            en=f"{robot.actor} {robot.do}",
            zh=f"{robot.actor} {robot.do}",
            expected=robot.refused or "ok",
            actual=code or "ok",
            where=where,
        )
        if not holds and robot.save:
            raise CaseEnded(where)
        if robot.save:
            self.names[robot.save] = given
        return given.value if isinstance(given, Named) else given or code

    async def _voucher(self, voucher: case_pb2.Voucher, where: str) -> str:
        person_no = self.world.person_no(voucher.person)
        business = voucher.business_type or "consult"
        delegate_no = self.world.person_no(voucher.shown_by) if voucher.shown_by else ""
        code = voucher.magic or await self.robots.show_code(person_no, business, delegate_no)
        fields = {"voucher_code": code, "person_no": person_no, "business_type": business}
        self.names[voucher.name] = Named(code, fields)
        return code

    async def _advance(self, advance: case_pb2.Advance, where: str) -> list[str]:
        how: dict[str, Any]
        if advance.WhichOneof("to") == "by_ms":
            how = {"by_ms": advance.by_ms}
        elif advance.next_timer:
            how = {"next_timer": True}
        else:
            how = {"until_ms": int(resolved(advance.until, self.names)) + advance.plus_ms}
        return [fired.event for fired in await self.world.advance(**how)]

    async def _faults(self, faults: case_pb2.Faults, where: str) -> None:
        if faults.clear_all or faults.clear:
            await self.world.clear_faults(() if faults.clear_all else faults.clear)
        if faults.set:
            await self.world.set_faults(faults.set, self.names)

    async def _outage(self, outage: case_pb2.Outage, where: str) -> None:
        if outage.WhichOneof("change") == "begin":
            await self.world.begin_outage()
        else:
            await self.world.clear_faults([OUTAGE_RULE])

    async def _trigger(self, trigger: case_pb2.Trigger, where: str) -> Sequence[str]:
        rx_no = str(resolved(trigger.rx, self.names))
        subject = str(resolved(trigger.id, self.names))
        return await self.world.trigger(trigger.kind, rx_no=rx_no, subject=subject)

    async def _kill(self, empty: case_pb2.Empty, where: str) -> None:
        await self._forget_running()
        await self.sut.kill(self.world.now_ms)

    async def _restart(self, restart: case_pb2.Restart, where: str) -> None:
        await self._forget_running()
        await self.sut.restart(self.world.now_ms, plain(restart.configure))

    async def _forget_running(self) -> None:
        """A process that is ended answers nothing more."""
        for running in self._running.values():
            running.task.cancel()
        await asyncio.gather(*(running.task for running in self._running.values()), return_exceptions=True)
        self._running.clear()

    async def _wait_for(self, wait: case_pb2.WaitFor, where: str) -> int:
        deadline_ms = self.environment.now_ms() + (wait.deadline_ms or WAIT_MS)
        while True:
            made = [
                one
                for one in await self.world.calls()
                if one.actor == self.world.sut_actor
                and method_matches(wait.method, one.method)
                and (one.status or not wait.ended)
            ]
            if len(made) >= wait.calls or self.environment.now_ms() >= deadline_ms:
                break
            await self.environment.sleep_ms(POLL_MS)
        self.checks.must(
            len(made) >= wait.calls,
            en=f"the product calls {wait.method}",
            zh=f"产品调用 {wait.method}",
            point="wire",
            expected=f">={wait.calls}",
            actual=len(made),
            where=where,
        )
        return len(made)

    async def _wait_idle(self, wait: case_pb2.WaitIdle, where: str) -> None:
        quiet_ms = wait.quiet_ms or QUIET_MS
        began_ms = self.environment.now_ms()
        before, since_ms = -1, began_ms
        while (now_ms := self.environment.now_ms()) - began_ms < IDLE_MS_MAX:
            theirs = [one for one in await self.world.calls() if one.actor == self.world.sut_actor]
            # A watch stays open; what counts is that no unary call is under way.
            busy = any(not one.status and "/Watch" not in one.method for one in theirs)
            if busy or len(theirs) != before:
                before, since_ms = len(theirs), now_ms
            elif now_ms - since_ms >= quiet_ms:
                return
            await self.environment.sleep_ms(POLL_MS)
        self.checks.that(
            False,
            en="the product comes to rest",
            zh="产品停止发起调用",
            point="wire",
            actual=f"{before} calls",
            where=where,
        )

    async def _expect(self, expect: case_pb2.Expect, where: str) -> None:
        for check in await self.judge.judge(expect, (), self.names, where):
            self.checks.add(check)

    async def _snapshot(self, snapshot: case_pb2.Snapshot, where: str) -> None:
        if snapshot.WhichOneof("do") == "save":
            await self.world.save(snapshot.save)
        else:
            await self.world.load(snapshot.load)

    async def _note(self, note: case_pb2.Text, where: str) -> None:
        self.checks.note(note.en, note.zh)

    async def _exchanges(self) -> int:
        """The number of the last exchange so far."""
        return (await self.world.sandbox.get_namespace(namespace=self.world.name)).exchanges


_TOLD: Final = ("outcome", "code", "by", "step", "field", "rx_no")
"""Of a product's answer: what is the same in two runs with the same seed. Checks tell the rest where it matters."""


def _told(came: Any) -> Any:
    return {name: came[name] for name in _TOLD if name in came} if isinstance(came, Mapping) else came


def _summary(verb: str, step: Any) -> str:
    """One line of what a step is about."""
    if verb == "sut":
        return f"{step.op} {plain(step.args) or ''}".strip()
    if verb == "robot":
        return f"{step.actor} {step.do} {plain(step.args) or ''}".strip()
    return " ".join(str(step).split())
