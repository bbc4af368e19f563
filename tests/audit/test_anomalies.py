"""The daily report: one of each anomaly is planted, and the report names it with its code, place, party and times."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from erxhub.audit import anomalies
from erxhub.audit.anomalies import Kind, Report
from erxhub.core.keys import stream_key, trace_code_key
from erxhub.core.model import Accepted, Refused
from erxhub.high_water import HighWater, KeptEvidence
from erxhub.ledger.entry import EntryKind
from erxhub.ledger.store import StoredEntry
from erxhub.queries.anomalies import report
from erxhub.v1 import audit_pb2, events_pb2
from tests.audit.story import (
    CODES,
    DAY_MS,
    HOSPITAL,
    MINUTE_MS,
    ORDER,
    PHARMACY,
    RX,
    RX_NO,
    START_MS,
    Damaged,
    Ledger,
    Story,
    ask,
    with_payload,
)

DAY = "2026-11-22"
ACTOR = f"pharmacy/{PHARMACY}"
ACCESS = stream_key("access", b"a")


def reported(
    story: Story, *, day: str = DAY, now_ms: int = 0, store: Any = None, evidence: Sequence[KeptEvidence] = ()
) -> audit_pb2.ReportAnomaliesResponse:
    ctx = replace(story.context(store, now_ms), evidence=lambda: evidence)
    outcome = ask(ctx, report, audit_pb2.ReportAnomaliesRequest(day=day, case_reason="daily"))
    assert isinstance(outcome, Accepted), outcome
    assert isinstance(outcome.reply, audit_pb2.ReportAnomaliesResponse)
    return outcome.reply


def lines(reply: audit_pb2.ReportAnomaliesResponse) -> list[tuple[str, str, str, str, int]]:
    return [(each.kind, each.code, each.where, each.who, each.count) for each in reply.anomalies]


def refuse(ledger: Ledger, code: str, method: str = "DispensingService/Settle", key: bytes = ACCESS) -> int:
    """One refused call; when it was recorded."""
    payload = events_pb2.CommandRefused(method=method, code=code, caller_kind="pharmacy")
    ledger.add("access", key, "command.refused", payload, actor=ACTOR, entry_kind=EntryKind.REFUSAL)
    return ledger.now_ms - 1_000


def test_a_day_without_anything_has_no_line() -> None:
    reply = reported(Story())
    assert lines(reply) == []
    assert (reply.day, reply.prescriptions, reply.as_of_position) == (DAY, 1, reply.entries)
    assert (reply.anomalies_left_out, reply.prescriptions_left_out) == (0, 0)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("READ_DENIED", "ACCESS"),
        ("RX_UNKNOWN", "ACCESS"),
        ("ROLE_NOT_ALLOWED", "ATTEMPT"),
        ("INST_IMPERSONATION", "ATTEMPT"),
        ("CERT_REVOKED", "ATTEMPT"),
        ("SIG_INVALID", "ATTEMPT"),
        ("VCH_REPLAYED", "ATTEMPT"),
        ("TRACE_DUPLICATE", "TRACE_CODE"),
        ("DISPENSE_MISMATCH", "QUANTITY"),
        ("SETL_AMOUNT", "MONEY"),
        ("TIME_SKEW", "CLOCK"),
    ],
)
def test_refusals_are_counted_by_code_method_and_caller(code: str, kind: str) -> None:
    story = Story()
    first = refuse(story.ledger, code)
    last = refuse(story.ledger, code)
    refuse(story.ledger, "RX_NOT_EFFECTIVE")  # an everyday "no"
    (line,) = reported(story).anomalies
    assert (line.kind, line.code, line.where, line.who) == (kind, code, "DispensingService/Settle", ACTOR)
    assert (line.count, line.first_at_ms, line.last_at_ms) == (2, first, last)


def test_accesses_above_the_budget_are_told_with_their_number() -> None:
    story = Story()
    over = events_pb2.AccessBudgetExceeded(count=70, from_ms=START_MS, until_ms=START_MS + MINUTE_MS)
    story.ledger.add("access", ACCESS, "access.budget_exceeded", over, actor=ACTOR, entry_kind=EntryKind.ACCESS)
    (line,) = reported(story).anomalies
    assert (line.kind, line.code, line.who, line.count) == ("ACCESS", "ACCESS_BUDGET", ACTOR, 70)
    assert (line.first_at_ms, line.last_at_ms) == (START_MS, START_MS + MINUTE_MS)


# ---- chains ----


def less_sold(payload: events_pb2.DispenseOutbound) -> None:
    payload.lots[0].quantity = "3"


def more_money(payload: events_pb2.SettlementCommitted) -> None:
    payload.claim.amounts.fund_fen += 1


@pytest.mark.parametrize(
    ("story", "expected"),
    [
        (lambda: Story(without=["review.passed"]), {("GAP", "GAP_NO_REVIEW")}),
        (lambda: Story(without=["voucher.verified pay"]), {("GAP", "GAP_NO_VOUCHER")}),
        (
            lambda: Story(changed={"dispense.outbound": less_sold}),
            {("QUANTITY", "GAP_QUANTITY"), ("GAP", "GAP_SIGNATURE")},
        ),
        (
            lambda: Story(changed={"settlement.committed": more_money}),
            {("MONEY", "GAP_MONEY"), ("GAP", "GAP_SIGNATURE")},
        ),
    ],
)
def test_the_gaps_of_a_prescription_are_told_with_its_number(
    story: Callable[[], Story], expected: set[tuple[str, str]]
) -> None:
    told = lines(reported(story()))
    assert {line[:2] for line in told} >= expected
    assert {line[2:] for line in told} == {(RX_NO, PHARMACY, 1)}


def test_a_trace_code_that_was_sold_twice_is_told() -> None:
    story = Story()
    again = events_pb2.TraceCodeSold(drug_code="XA01", pharmacy_code=PHARMACY, rx_key=b"o" * 32, rx_version=1)
    key = trace_code_key(CODES[0])
    story.ledger.add("trace_code", key, "trace_code.sold", again, actor="pharmacy/P33010099102")
    assert ("TRACE_CODE", "GAP_TRACE_CODE", RX_NO, PHARMACY, 1) in lines(reported(story))


def test_a_hold_that_nobody_ended_is_told_once_its_time_is_over() -> None:
    story = Story(until="order.held")
    assert lines(reported(story)) == []
    told = reported(story, now_ms=START_MS + 4 * 3_600_000)
    assert lines(told) == [("OPEN", "HOLD_OPEN", RX_NO, PHARMACY, 1)]
    ended = Story(until="order.held").then("order.expired", events_pb2.OrderExpired(order_no=ORDER))
    assert lines(reported(ended, now_ms=START_MS + 4 * 3_600_000)) == []


def test_a_settlement_without_goods_is_told_once_the_day_is_over() -> None:
    story = Story(until="dispense.ready")
    assert lines(reported(story)) == []
    told = lines(reported(story, now_ms=START_MS + DAY_MS))
    assert ("OPEN", "SETTLEMENT_OPEN", RX_NO, PHARMACY, 1) in told
    whole = Story()
    assert lines(reported(whole, now_ms=START_MS + DAY_MS)) == []


def test_before_any_order_the_hospital_is_the_party() -> None:
    story = Story(until="prescription.uploaded", without=["diagnosis.recorded"])
    told = [line for line in lines(reported(story)) if line[1] == "GAP_NO_DIAGNOSIS"]
    assert told == [("GAP", "GAP_NO_DIAGNOSIS", RX_NO, HOSPITAL, 1)]


def test_of_erased_content_no_gap_is_told() -> None:
    erased = events_pb2.ContentErased(legal_basis="处方管理办法")
    story = Story(without=["review.passed"]).then("content.erased", erased)
    assert lines(reported(story)) == []


# ---- clocks and the ledger ----


def test_a_hub_whose_clock_went_back_is_told() -> None:
    story = Story()
    story.ledger.now_ms -= MINUTE_MS
    refuse(story.ledger, "RX_NOT_EFFECTIVE")
    assert lines(reported(story, now_ms=START_MS + MINUTE_MS)) == [("CLOCK", "HUB_CLOCK", "access", "hub", 1)]


def test_an_altered_entry_is_told_with_stream_and_version() -> None:
    story = Story()
    key, version = story.ledger.place("account.debited")

    def less(payload: events_pb2.AccountDebited) -> None:
        payload.amount_fen -= 1

    store = Damaged(asyncio.run(story.ledger.stored()), {(key, version): with_payload(less)})
    told = reported(story, store=store)
    damage = [line for line in told.anomalies if line.kind == "LEDGER"]
    assert [(line.code, line.where, line.who) for line in damage] == [
        ("COMMITMENT", f"account/{key.hex()} version {version}", ACTOR)
    ]
    assert {("GAP", "GAP_CHAIN"), ("MONEY", "GAP_MONEY")} <= {line[:2] for line in lines(told)}


def test_an_unreadable_entry_is_told_and_ends_nothing() -> None:
    def broken(entry: StoredEntry) -> StoredEntry:
        return replace(entry, header=b"\xff")

    story = Story()
    store = Damaged(asyncio.run(story.ledger.stored()), {story.ledger.place("review.passed"): broken})
    assert "HEADER_MALFORMED" in {line.code for line in reported(story, store=store).anomalies}


def test_the_evidence_of_a_refused_start_is_told_until_it_is_taken_away(tmp_path: Path) -> None:
    water = HighWater(tmp_path / "high-water.json")
    assert water.evidence() == []
    path = water.keep_evidence("evidence-rollback-detected-7", {"code": "ROLLBACK_DETECTED"})
    os.utime(path, (START_MS // 1_000, START_MS // 1_000))
    (tmp_path / "evidence-x.json").write_text("[]")
    told = reported(Story(), evidence=water.evidence())
    assert lines(told) == [
        ("LEDGER", "EVIDENCE", "evidence-x.json", "hub", 1),
        ("LEDGER", "ROLLBACK_DETECTED", "evidence-rollback-detected-7.json", "hub", 1),
    ]
    assert told.anomalies[1].first_at_ms == START_MS


# ---- the day, order and limits ----


def test_only_the_day_that_was_asked_for_is_told() -> None:
    story = Story()
    refuse(story.ledger, "READ_DENIED")
    story.ledger.now_ms = START_MS + DAY_MS
    refuse(story.ledger, "TIME_SKEW")
    assert [line[1] for line in lines(reported(story))] == ["READ_DENIED"]
    next_day = reported(story, day="2026-11-23")
    assert [line[1] for line in lines(next_day)] == ["TIME_SKEW"]
    assert (next_day.entries, next_day.prescriptions) == (1, 0)
    assert reported(story, day="").day == "2026-11-23"
    assert reported(story, day="2026-11-24").entries == 0


def test_a_day_is_found_in_a_long_log() -> None:
    ledger_story = Story(until="prescription.effective")
    ledger = ledger_story.ledger
    for day in range(1, 5):
        ledger.now_ms = START_MS + day * DAY_MS
        for _ in range(600):
            refuse(ledger, "READ_DENIED")
            ledger.now_ms -= 990  # many within a second
    store = asyncio.run(ledger.stored())
    for day in range(1, 5):
        reply = reported(ledger_story, store=store, day=f"2026-11-{22 + day}")
        assert (lines(reply)[0][4], reply.entries) == (600, 600)


def test_the_order_is_the_same_whatever_came_first() -> None:
    codes = ["TIME_SKEW", "READ_DENIED", "ROLE_NOT_ALLOWED", "RX_UNKNOWN", "SETL_AMOUNT"]
    one, other = Story(until="prescription.effective"), Story(until="prescription.effective")
    for code in codes:
        refuse(one.ledger, code)
    for code in reversed(codes):
        refuse(other.ledger, code)
    told = lines(reported(one))
    assert told == lines(reported(other))
    assert [line[0] for line in told] == ["ACCESS", "ACCESS", "ATTEMPT", "MONEY", "CLOCK"]


def test_a_flood_of_one_kind_leaves_room_for_the_others() -> None:
    found = Report(START_MS, START_MS + DAY_MS)
    for number in range(anomalies.KIND_LINES_MAX + 50):
        found.evidence(f"file-{number:04}", "ROLLBACK_DETECTED", START_MS)
    told, left_out = found.lines()
    assert (len(told), left_out) == (anomalies.KIND_LINES_MAX, 50)


def test_a_report_needs_a_reason_and_a_day_that_exists() -> None:
    ctx = Story(until="prescription.effective").context()
    refused = ask(ctx, report, audit_pb2.ReportAnomaliesRequest(day=DAY))
    assert isinstance(refused, Refused)
    assert refused.code == "AUDIT_REASON"
    refused = ask(ctx, report, audit_pb2.ReportAnomaliesRequest(day="2026-02-30", case_reason="daily"))
    assert isinstance(refused, Refused)
    assert (refused.code, refused.field) == ("INPUT_MALFORMED", "day")


def test_the_prescriptions_that_are_named_are_told_as_accesses() -> None:
    ctx = Story(without=["review.passed"]).context()
    outcome = ask(ctx, report, audit_pb2.ReportAnomaliesRequest(day=DAY, case_reason="daily"))
    assert isinstance(outcome, Accepted)
    assert [target.stream_key for target in outcome.targets] == [RX]


def test_every_kind_has_an_anomaly_in_these_tests() -> None:
    source = Path(__file__).read_text()
    assert [kind for kind in Kind if f'"{kind}"' not in source] == []
