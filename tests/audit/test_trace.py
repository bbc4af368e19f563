"""The light, the flows and the entries of sound chains."""

from __future__ import annotations

import pytest

from erxhub.audit.summaries import summary
from erxhub.core import events
from erxhub.v1 import audit_pb2, events_pb2
from tests.audit.story import (
    ADDRESS,
    DAY_MS,
    ENCOUNTER,
    ORDER,
    PERSON_NO,
    RX,
    RX_NO,
    STEP_MS,
    Story,
    voucher,
)
from tests.audit.test_findings import made_up_record

GREEN, OPEN, CLOSED, RED = (
    audit_pb2.LIGHT_GREEN,
    audit_pb2.LIGHT_OPEN,
    audit_pb2.LIGHT_CLOSED,
    audit_pb2.LIGHT_RED,
)


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"delivery": True},
        {"self_paid": True},
        {"internet": True},
        {"internet": True, "delivery": True, "self_paid": True},
    ],
    ids=str,
)
def test_a_whole_chain_is_green_and_verified(told: dict[str, bool]) -> None:
    trace = Story(**told).trace(verify=True)  # type: ignore[arg-type]
    assert (list(trace.gaps), list(trace.findings), trace.light, trace.verified) == ([], [], GREEN, True)
    assert all(flow.agrees for flow in trace.flows)
    assert {entry.stage for entry in trace.entries} == {1, 2, 3, 4}
    assert trace.rx_no == RX_NO


def test_a_person_proven_by_his_card_needs_no_voucher_at_the_visit() -> None:
    def by_card(payload: events_pb2.EncounterRegistered) -> None:
        payload.voucher_key, payload.certificate_type = b"", "02"

    assert Story(changed={"encounter.registered": by_card}).trace(verify=True).light == GREEN


def test_without_verification_nothing_is_called_verified() -> None:
    trace = Story().trace()
    assert (trace.light, trace.verified, list(trace.findings)) == (GREEN, False, [])


@pytest.mark.parametrize(
    "until",
    [
        "prescription.prechecked",
        "prescription.effective",
        "order.created",
        "order.held",
        "review.passed",
        "settlement.quoted",
        "settlement.committed",
        "dispense.outbound",
        "prescription.exhausted",
    ],
)
def test_a_chain_on_its_way_is_open(until: str) -> None:
    trace = Story(until=until).trace(verify=True)
    assert (list(trace.gaps), trace.light, trace.verified) == ([], OPEN, True)


def test_a_withdrawn_prescription_is_closed() -> None:
    story = Story(until="prescription.effective")
    story.then("prescription.undone", events_pb2.PrescriptionUndone(doctor_code="D", reason="错误"))
    assert story.trace(verify=True).light == CLOSED


def test_an_expired_prescription_is_closed_even_before_its_deadline_is_written() -> None:
    story = Story(until="order.held")
    assert story.trace(now_ms=story.ledger.now_ms + 4 * DAY_MS).light == CLOSED


def test_an_order_given_up_and_an_expired_prescription_are_closed() -> None:
    story = Story(until="order.held").then("order.cancelled", events_pb2.OrderCancelled(order_no=ORDER))
    assert story.trace().light == OPEN
    story = Story(until="order.held").then("order.cancelled", events_pb2.OrderCancelled(order_no=ORDER))
    story.then("prescription.expired", events_pb2.PrescriptionExpired())
    assert story.trace(verify=True).light == CLOSED


def test_money_given_back_in_time_leaves_no_gap() -> None:
    story = Story(until="dispense.ready")
    story.give_back()
    story.then("dispense.voided", events_pb2.DispenseVoided(order_no=ORDER))
    story.then("order.released", events_pb2.OrderReleased(order_no=ORDER))
    trace = story.trace(verify=True)
    assert (list(trace.gaps), trace.light, trace.verified) == ([], OPEN, True)
    assert "given back" in trace.flows[1].summary
    story = Story(until="dispense.ready")
    story.give_back()
    story.then("order.released", events_pb2.OrderReleased(order_no=ORDER))
    assert story.trace(now_ms=story.ledger.now_ms + 30 * DAY_MS).light == CLOSED


def test_the_three_flows_are_told_in_figures() -> None:
    information, fund, goods = Story().trace().flows
    assert "4 vouchers verified, 1 diagnoses" in information.summary
    assert fund.summary == "total 151.00 = fund 63.70 + account 50.00 + cash 37.30 yuan"
    assert goods.summary == "prescribed 3, sold 3, handed over 3; 2 lots, 3 trace codes"


def test_entries_come_in_the_order_of_the_log_and_only_those_of_the_chain() -> None:
    story = Story()
    other = events_pb2.AccountDebited(amount_fen=1, settlement_id="OTHER", rx_key=b"o" * 32, rx_version=1)
    story.ledger.add("account", story.ledger.place("account.debited")[0], "account.debited", other, actor="pharmacy/P")
    trace = story.trace(verify=True)
    times = [entry.at_ms for entry in trace.entries]
    assert times == sorted(times)
    assert [entry.type for entry in trace.entries].count("account.debited") == 1
    assert {entry.stream_kind for entry in trace.entries} == {
        "voucher",
        "encounter",
        "prescription",
        "account",
        "trace_code",
    }
    assert trace.light == GREEN


def test_a_voucher_stands_in_the_stage_of_the_step_that_quoted_it() -> None:
    stages = {(entry.stream_key, entry.type): entry.stage for entry in Story().trace().entries}
    expected = {
        "visit": audit_pb2.STAGE_DIAGNOSIS,
        "list": audit_pb2.STAGE_TRANSACTION,
        "pay": audit_pb2.STAGE_TRANSACTION,
        "take": audit_pb2.STAGE_DELIVERY,
    }
    for name, stage in expected.items():
        assert stages[voucher(name), "voucher.verified"] == stage
    assert stages[ENCOUNTER, "diagnosis.recorded"] == audit_pb2.STAGE_DIAGNOSIS
    assert stages[RX, "dispense.handed_over"] == audit_pb2.STAGE_DELIVERY


def test_a_trace_shows_nothing_after_its_position() -> None:
    story = Story()
    ctx = story.context()
    trace = story.trace(store=ctx.store)
    assert trace.as_of_position == len(story.ledger.order)
    assert max(entry.at_ms for entry in trace.entries) < story.ledger.now_ms + STEP_MS


def test_summaries_hold_no_personal_data() -> None:
    text = "\n".join(entry.summary for entry in Story(delivery=True).trace().entries)
    for personal in (PERSON_NO, "示例", ADDRESS, "13800000000", "高血压", "用药合理"):
        assert personal not in text
    assert "out XA01 x 2 (lot L1), XB02 x 1 (lot L2); 3 trace codes" in text


@pytest.mark.parametrize("event", events.EVENT_TYPES, ids=lambda event: event.name)
def test_every_event_has_a_line(event: events.EventType) -> None:
    line = summary(made_up_record(event))
    assert line
    assert "\n" not in line
