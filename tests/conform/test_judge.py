"""The judge at the hub and on the wire, against a hub that answers from memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from google.protobuf import json_format

from erxhub.conform.checks import Checks
from erxhub.conform.judge import Judge, code_of, honesty
from erxhub.conform.model import Check
from erxhub.harness.v1 import case_pb2
from erxhub.v1 import sandbox_pb2

SUT = "pharmacy/P33010099101"


def call(number: int, method: str = "DispensingService/Settle", **more: Any) -> sandbox_pb2.Exchange:
    """A call of the product that succeeded, unless told otherwise; a millisecond long, ten apart."""
    entries = more.pop("entries", ())
    at_us = more.pop("at_ms", number * 10) * 1000
    values = {
        "number": number,
        "method": method,
        "actor": SUT,
        "request_id": "request-1",
        "rx_no": "3301",
        "status": "OK",
        "arrived_us": at_us,
        "answered_us": at_us + 1000,
    }
    exchange = sandbox_pb2.Exchange(**(values | more))
    for kind in entries:
        exchange.entries.add(type=kind)
    return exchange


@dataclass
class FakeWorld:
    """What the judge asks of a namespace for the wire."""

    made: list[sandbox_pb2.Exchange] = field(default_factory=list)
    sut_role: str = "pharmacy"
    sut_actor: str = SUT
    mark: int = 0

    async def calls(self) -> list[sandbox_pb2.Exchange]:
        return self.made


async def judged(
    made: list[sandbox_pb2.Exchange],
    expect: Mapping[str, Any],
    *also_ok: Mapping[str, Any],
    wait_scale: float = 1.0,
) -> list[Check]:
    """The checks of expectations about the wire."""
    judge = Judge(FakeWorld(made), None, wait_scale)  # type: ignore[arg-type]
    parsed = [json_format.ParseDict(dict(one), case_pb2.Expect()) for one in (expect, *also_ok)]
    return await judge.judge(parsed[0], parsed[1:], {"rx": "3301"}, "expect")


def holds(checks: list[Check]) -> bool:
    assert checks
    return all(check.holds for check in checks)


REPEATED = [call(1, status="UNAVAILABLE"), call(2, request_id="request-2"), call(3)]


@pytest.mark.parametrize(
    ("wire", "held"),
    [
        ({"method": "Dispensing/Settle", "calls": 3, "request_ids": 2}, True),
        ({"method": "Dispensing/*", "codes": {"OK": 2, "UNAVAILABLE": 1}}, True),
        ({"method": "*", "calls": ">=3", "rx": "$rx"}, True),
        ({"method": "Dispensing/Dispense", "no_call": True}, True),
        ({"actor": "any", "calls": 3}, True),
        ({"actor": "hospital/H1", "no_call": True}, True),
        ({"method": "Dispensing/Settle", "calls": 2}, False),
        ({"method": "Dispensing/Settle", "request_ids": 1}, False),
        ({"method": "Dispensing/Settle", "no_call": True}, False),
        ({"method": "Dispensing/Settle", "codes": {"VCH_EXPIRED": 1}}, False),
        ({"method": "Dispensing/Settle", "min_gap_ms": 17}, True),
        ({"method": "Dispensing/Settle", "min_gap_ms": 25}, False),
        ({"method": "Dispensing/Settle", "max_per_second": 3}, True),
        ({"method": "Dispensing/Settle", "max_per_second": 2}, False),
    ],
)
async def test_what_is_expected_of_calls(wire: Mapping[str, Any], held: bool) -> None:
    assert holds(await judged(REPEATED, {"wire": [wire]})) is held


async def test_a_wait_counts_in_virtual_time() -> None:
    expect = {"wire": [{"method": "*", "min_gap_ms": 2_000}]}
    assert holds(await judged([call(1, at_ms=0), call(2, at_ms=25)], expect, wait_scale=0.01))
    assert not holds(await judged([call(1, at_ms=0), call(2, at_ms=15)], expect, wait_scale=0.01))


async def test_a_wait_before_a_repeat_that_never_came_does_not_hold() -> None:
    assert not holds(await judged([call(1)], {"wire": [{"method": "*", "min_gap_ms": 1}]}))


@pytest.mark.parametrize(
    ("sequence", "held"),
    [(["Dispensing/Settle", "Dispensing/Dispense"], True), (["Dispensing/Dispense", "Voucher/*"], False)],
)
async def test_calls_follow_each_other(sequence: list[str], held: bool) -> None:
    made = [call(1, "Voucher/VerifyVoucher"), call(2), call(3, "Dispensing/HandOver"), call(4, "Dispensing/Dispense")]
    assert holds(await judged(made, {"wire": [{"sequence": sequence}]})) is held


async def test_another_complete_outcome_is_as_right_and_half_of_each_is_not() -> None:
    once, twice = {"method": "*", "calls": 1}, {"method": "*", "calls": 2}
    ids = {"method": "*", "request_ids": 1}
    assert holds(await judged([call(1), call(2)], {"wire": [once]}, {"wire": [twice, ids]}))
    assert not holds(await judged([call(1), call(2)], {"wire": [twice, once]}, {"wire": [once, ids]}))


def test_a_call_is_named_by_its_refusal_then_by_its_status() -> None:
    assert code_of(call(1, status="ABORTED", refusal_code="ORDER_HOLD_LOST")) == "ORDER_HOLD_LOST"
    assert code_of(call(1)) == "OK"
    assert code_of(call(1, status="")) == "OPEN"


COMMITTED_AND_LOST = call(1, status="LOST", entries=["settlement.committed"])
REFUSED_AND_LOST = call(1, status="LOST", entries=["voucher.try_counted", "voucher.rejected"])
READ_AND_LOST = call(1, status="LOST", entries=["audit.read"])
REFUSED = call(1, status="ABORTED", refusal_code="ORDER_HOLD_LOST", entries=["command.refused"])


@pytest.mark.parametrize(
    ("result", "during", "so_far", "honest"),
    [
        ({"outcome": "ok"}, [call(1)], [call(1)], True),
        ({"outcome": "ok"}, [], [], True),
        ({"outcome": "ok"}, [call(1, status="UNAVAILABLE")], [], False),
        ({"outcome": "unknown"}, [COMMITTED_AND_LOST], [COMMITTED_AND_LOST], True),
        ({"outcome": "rejected", "code": "HUB_UNREACHABLE"}, [COMMITTED_AND_LOST], [COMMITTED_AND_LOST], False),
        ({"outcome": "rejected", "by": "product"}, [COMMITTED_AND_LOST], [COMMITTED_AND_LOST], False),
        ({"outcome": "rejected", "by": "product"}, [COMMITTED_AND_LOST], [COMMITTED_AND_LOST, call(2)], True),
        ({"outcome": "rejected", "code": "ORDER_HOLD_LOST"}, [REFUSED], [REFUSED], True),
        ({"outcome": "rejected", "code": "ORDER_HOLD_LOST"}, [REFUSED_AND_LOST, REFUSED], [], True),
        ({"outcome": "rejected", "code": "ORDER_HOLD_LOST"}, [READ_AND_LOST, REFUSED], [], True),
        ({"outcome": "rejected", "code": "VCH_EXPIRED"}, [REFUSED], [REFUSED], False),
        ({"outcome": "rejected"}, [REFUSED], [REFUSED], False),
        ({"outcome": "rejected", "code": "VCH_EXPIRED"}, [], [], False),
        ({"outcome": "rejected", "by": "product", "reason": "bad signature"}, [call(1)], [call(1)], True),
    ],
)
def test_whether_a_claim_is_what_the_wire_shows(
    result: Mapping[str, Any],
    during: list[sandbox_pb2.Exchange],
    so_far: list[sandbox_pb2.Exchange],
    honest: bool,
) -> None:
    checks = Checks()
    honesty("settle", result, during, so_far, checks, "steps[0]")
    assert not checks.failed if honest else checks.failed


def test_what_only_asks_claims_nothing() -> None:
    checks = Checks()
    honesty("pull_events", {"outcome": "rejected"}, [COMMITTED_AND_LOST], [COMMITTED_AND_LOST], checks, "")
    assert not checks.found
