"""Judges at two of the three points: the hub's state and ledger, and the wire; what the product says, its step judges.

Owns: what each expectation of docs/harness.md looks at. Must never: change anything, or call as what is under test
while faults are set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from erxhub.client import AuditorClient, HospitalClient, PatientClient
from erxhub.conform.checks import Checks, shown
from erxhub.conform.model import Check, Point, Text
from erxhub.conform.robots import Robots
from erxhub.conform.script import ORDER_FIELDS
from erxhub.conform.values import is_comparison, matches, plain, resolved
from erxhub.conform.vocabulary import method_matches, short_method
from erxhub.conform.world import INSTITUTIONS, World
from erxhub.core.events import BY_NUMBER
from erxhub.harness.v1 import case_pb2
from erxhub.ledger.entry import Header
from erxhub.v1 import audit_pb2, common_pb2, prescribing_pb2, sandbox_pb2

TIMER_GRAIN_MS: Final = 2
"""So much earlier than asked for a real timer may fire."""
OPEN: Final = "OPEN"
"""Stands for the code of a call that has not ended."""


def code_of(exchange: sandbox_pb2.Exchange) -> str:
    """How a call ended: a refusal code, OK, the name of a gRPC status, LOST or OPEN."""
    return exchange.refusal_code or exchange.status or OPEN


_READS: Final = frozenset({"audit.read", "access.budget_exceeded"})
_REFUSALS: Final = frozenset(
    {"command.refused", "voucher.rejected", "prescription.rule_blocked", "trace_code.duplicate_detected"}
)


def is_committed(exchange: sandbox_pb2.Exchange) -> bool:
    """Whether the hub accepted the call, whatever the caller saw: a refusal leaves entries too, one of them says so."""
    left = {entry.type for entry in exchange.entries} - _READS
    return bool(left) and not left & _REFUSALS


@dataclass(slots=True)
class Facts:
    """What the hub says about one prescription."""

    states: Mapping[str, str]
    events: Mapping[str, int]
    refusals: Mapping[str, int]
    light: str = ""
    gaps: Sequence[str] = ()
    verified: bool = False


@dataclass(slots=True)
class Judge:
    """Looks at one namespace. `wait_scale` is real milliseconds for each that the hub asked for."""

    world: World
    robots: Robots
    wait_scale: float = 1.0
    final: bool = False
    """Whether the faults are cleared, so that the issuing hospital's own view may be read."""
    _facts: dict[tuple[str, str], Facts] = field(default_factory=dict)

    async def judge(
        self, expect: case_pb2.Expect, also_ok: Sequence[case_pb2.Expect], names: Mapping[str, Any], where: str
    ) -> list[Check]:
        """The checks of the expectations: those of the first alternative that holds, else of the main one.

        Raises ClientFailure when the hub cannot be asked, UnknownName.
        """
        self._facts.clear()
        calls = await self.world.calls()
        main = await self._checks(expect, calls, names, where)
        if all(check.holds for check in main):
            return main
        for alternative in also_ok:
            found = await self._checks(alternative, calls, names, where)
            if all(check.holds for check in found):
                return found
        return main

    async def _checks(
        self, expect: case_pb2.Expect, calls: Sequence[sandbox_pb2.Exchange], names: Mapping[str, Any], where: str
    ) -> list[Check]:
        checks: list[Check] = []
        for place, hub in enumerate(expect.hub):
            checks += await self._hub(hub, calls, names, f"{where}.hub[{place}]")
        for place, wire in enumerate(expect.wire):
            checks += self._wire(wire, calls, names, f"{where}.wire[{place}]")
        return checks

    # ---- the hub's state and ledger ----

    async def _hub(
        self, expect: case_pb2.HubExpect, calls: Sequence[sandbox_pb2.Exchange], names: Mapping[str, Any], where: str
    ) -> list[Check]:
        if not expect.rx:
            return await self._whole_ledger(expect, calls, where)
        rx_no = str(resolved(expect.rx, names))
        role = self.world.sut_role if self.world.sut_role == "pharmacy" else "pharmacy"
        facts = await self._facts_of(rx_no, INSTITUTIONS[expect.pharmacy or role])
        checks = []
        for name in ("status", "use", *ORDER_FIELDS):
            if expect.HasField(name):
                wanted = plain(getattr(expect, name))
                checks.append(_check("hub", where, f"{rx_no}: {name}", wanted, facts.states[name]))
        if expect.HasField("light"):
            checks.append(_check("hub", where, f"{rx_no}: light", plain(expect.light), facts.light))
        if expect.HasField("gaps"):
            checks.append(_check("hub", where, f"{rx_no}: gaps", sorted(plain(expect.gaps)), sorted(facts.gaps)))
        if expect.verified:
            checks.append(_check("hub", where, f"{rx_no}: verified", True, facts.verified))
        checks += _counted("hub", where, f"{rx_no}: events", expect.events, facts.events)
        checks += _counted("hub", where, f"{rx_no}: refusals", expect.refusals, facts.refusals)
        return checks

    async def _whole_ledger(
        self, expect: case_pb2.HubExpect, calls: Sequence[sandbox_pb2.Exchange], where: str
    ) -> list[Check]:
        events: Counter[str] = Counter()
        if expect.events:
            auditor: AuditorClient = await self.robots.client("auditor")
            async for entry in auditor.stream_entries(after_position=self.world.mark):
                events[BY_NUMBER[Header.decode(entry.header).type].name] += 1
        refused = Counter(call.refusal_code for call in calls if call.refusal_code)
        return [
            *_counted("hub", where, "ledger: events", expect.events, events),
            *_counted("hub", where, "ledger: refusals", expect.refusals, refused),
        ]

    async def _facts_of(self, rx_no: str, pharmacy_code: str) -> Facts:
        if (rx_no, pharmacy_code) not in self._facts:
            traced = await self.robots.trace(rx_no)
            refusals = Counter(access.outcome for access in traced.accesses if access.kind == "refusal")
            self._facts[rx_no, pharmacy_code] = Facts(
                states=await self._states(rx_no, pharmacy_code),
                events=Counter(entry.type for entry in traced.entries),
                refusals=refusals,
                light=audit_pb2.Light.Name(traced.light).removeprefix("LIGHT_"),
                gaps=list(traced.gaps),
                verified=traced.verified and not traced.findings,
            )
        return self._facts[rx_no, pharmacy_code]

    async def _states(self, rx_no: str, pharmacy_code: str) -> dict[str, str]:
        known = self.robots.prescriptions.get(rx_no)
        issuer = known.issued_by if known else "hospital"
        if issuer == self.world.sut_role and not self.final:
            return await self._seen_by_patient(rx_no)
        hospital: HospitalClient = await self.robots.client(issuer)
        got = await hospital.get(rx_no=rx_no)
        orders = [order for order in got.orders if order.pharmacy_code == pharmacy_code]
        order = orders[-1] if orders else prescribing_pb2.OrderSummary()
        return {
            **_statuses(got.statuses),
            "review": _short(common_pb2.ReviewStatus, order.review),
            "order": _short(common_pb2.OrderStatus, order.status),
            "settlement": _short(common_pb2.SettlementStatus, order.settlement),
            "dispense": _short(common_pb2.DispenseStatus, order.dispense),
            "delivery": _short(common_pb2.DeliveryStatus, order.delivery),
        }

    async def _seen_by_patient(self, rx_no: str) -> dict[str, str]:
        """The hospital under test issued it and faults may be set: its own view is not for us to read."""
        patient: PatientClient = await self.robots.client("patient")
        for person_no in dict.fromkeys(self.world.persons.values()):
            page = ""
            while True:
                listed = await patient.list_prescriptions(person_no=person_no, page_token=page)
                for one in listed.prescriptions:
                    if one.rx_no == rx_no:
                        return _statuses(one.statuses)
                page = listed.next_page_token
                if not page:
                    break
        return {"status": "NONE", "use": "NONE"}

    # ---- the wire ----

    def _wire(
        self, expect: case_pb2.WireExpect, calls: Sequence[sandbox_pb2.Exchange], names: Mapping[str, Any], where: str
    ) -> list[Check]:
        actor = self.world.sut_actor if expect.actor in ("", "sut") else expect.actor
        rx_no = str(resolved(expect.rx, names))
        theirs = [call for call in calls if actor in ("any", call.actor) and rx_no in ("", call.rx_no)]
        meant = [call for call in theirs if method_matches(expect.method, call.method)]
        what = f"{expect.method or '*'} by {actor}"
        checks = []
        if expect.HasField("calls"):
            checks.append(_check("wire", where, f"{what}: calls", plain(expect.calls), len(meant)))
        if expect.no_call:
            checks.append(_check("wire", where, f"{what}: calls", 0, len(meant)))
        if expect.HasField("request_ids"):
            ids = len({call.request_id for call in meant if call.request_id})
            checks.append(_check("wire", where, f"{what}: request ids", plain(expect.request_ids), ids))
        checks += _counted("wire", where, f"{what}: codes", expect.codes, Counter(map(code_of, meant)))
        if expect.min_gap_ms:
            checks.append(self._gap(meant, expect.min_gap_ms, what, where))
        if expect.max_per_second:
            checks.append(
                _check("wire", where, f"{what}: calls in a second", f"<={expect.max_per_second}", self._rate(meant))
            )
        if expect.sequence:
            checks.append(_sequence(theirs, expect.sequence, where))
        return checks

    def _gap(self, calls: Sequence[sandbox_pb2.Exchange], least_ms: int, what: str, where: str) -> Check:
        gaps = [(after.arrived_us - before.answered_us) / 1000 + TIMER_GRAIN_MS for before, after in _repeats(calls)]
        least = min(gaps, default=None)
        actual = "no call was repeated" if least is None else f"{round(least / self.wait_scale)} ms"
        text = Text(f"{what}: waits before a repeat", f"{what}：重发前等待")
        holds = least is not None and least / self.wait_scale >= least_ms
        # How long exactly is a timing: it must not make two runs with the same seed differ.
        return Check("wire", holds, text, f">= {least_ms} ms", "" if holds else actual, where)

    def _rate(self, calls: Sequence[sandbox_pb2.Exchange]) -> int:
        """The most calls in any virtual second."""
        second_us = 1_000_000 * self.wait_scale
        arrived = sorted(call.arrived_us for call in calls)
        most = first = 0
        for last, at in enumerate(arrived):
            while at - arrived[first] >= second_us:
                first += 1
            most = max(most, last - first + 1)
        return most


def _repeats(
    calls: Sequence[sandbox_pb2.Exchange],
) -> Iterator[tuple[sandbox_pb2.Exchange, sandbox_pb2.Exchange]]:
    """Each call that ended, with the next one under the same request id (or, for a read, of the same method)."""
    latest: dict[str, sandbox_pb2.Exchange] = {}
    for call in sorted(calls, key=lambda one: one.arrived_us):
        name = call.request_id or short_method(call.method)
        if name in latest and latest[name].answered_us:
            yield latest[name], call
        latest[name] = call


def _sequence(calls: Sequence[sandbox_pb2.Exchange], methods: Sequence[str], where: str) -> Check:
    made = [short_method(call.method) for call in sorted(calls, key=lambda one: one.arrived_us)]
    rest = iter(made)
    holds = all(any(method_matches(wanted, one) for one in rest) for wanted in methods)
    text = Text("the calls follow each other in this order", "调用按此顺序发生")
    return Check("wire", holds, text, shown(list(methods)), "" if holds else shown(made), where)


def _check(point: Point, where: str, what: str, expected: Any, actual: Any) -> Check:
    holds = matches(actual, expected)
    # How many calls within a bound there were can hang on timing, and must not make two equal runs differ.
    told = "" if holds and point == "wire" and is_comparison(expected) else shown(actual)
    return Check(point, holds, Text(what, what), shown(expected), told, where)


def _counted(
    point: Point, where: str, what: str, expected: Mapping[str, Any], actual: Mapping[str, int]
) -> Iterator[Check]:
    for name in sorted(expected):
        yield _check(point, where, f"{what}: {name}", plain(expected[name]), actual.get(name, 0))


def _short(enum: Any, value: int) -> str:
    """The name of a status as cases write it; NONE for none."""
    if not value:
        return "NONE"
    name: str = enum.Name(value)
    prefix = next(iter(enum.keys())).removesuffix("UNSPECIFIED")
    return name.removeprefix(prefix)


def _statuses(statuses: common_pb2.RxStatuses) -> dict[str, str]:
    return {
        "status": _short(common_pb2.RxStatus, statuses.rx),
        "use": _short(common_pb2.RxUseStatus, statuses.use),
        **dict.fromkeys(ORDER_FIELDS, "NONE"),
    }


# ---- whether an answer is honest ----

_NOT_A_CLAIM: Final = frozenset({"resume", "pull_events", "reset", "query"})


def honesty(
    op: str,
    result: Mapping[str, Any],
    during: Sequence[sandbox_pb2.Exchange],
    so_far: Sequence[sandbox_pb2.Exchange],
    checks: Checks,
    where: str,
) -> None:
    """Whether the outcome that a driver claims is what the wire shows; see docs/harness.md.

    Args:
        during: the product's calls during the operation.
        so_far: the product's calls since the steps began.
    """
    outcome = result.get("outcome")
    if op in _NOT_A_CLAIM or outcome == "unknown":
        return
    commands = [call for call in during if call.request_id]
    if outcome == "ok":
        holds = not commands or any(call.status == "OK" for call in commands)
        checks.that(
            holds,
            en=f"{op}: ok needs a call that succeeded",
            zh=f"{op}：声称成功须有成功的调用",
            point="sut",
            actual=[code_of(call) for call in commands],
            where=where,
        )
        return
    unresolved = [call for call in commands if is_committed(call) and not _answered(call, so_far)]
    checks.that(
        not unresolved,
        en=f"{op}: a request that the hub accepted is not claimed as refused, also when its reply was lost",
        zh=f"{op}：中心已受理的请求，即使应答丢失也不得声称失败",
        point="sut",
        actual=[f"{short_method(call.method)} {call.request_id}" for call in unresolved],
        where=where,
    )
    if result.get("by") != "product":
        codes = sorted({call.refusal_code for call in during if call.refusal_code})
        checks.that(
            result.get("code") in codes,
            en=f"{op}: the refusal is one that the hub gave",
            zh=f"{op}：所报拒绝代码须为中心所给",
            point="sut",
            expected=codes,
            actual=result.get("code"),
            where=where,
        )


def _answered(call: sandbox_pb2.Exchange, so_far: Sequence[sandbox_pb2.Exchange]) -> bool:
    """Whether the caller came to see the outcome, in this call or in a repeat."""
    return any(one.request_id == call.request_id and one.status == "OK" for one in so_far)
