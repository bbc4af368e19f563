"""One story for each gap: the gap it has, and no other than those it cannot have without."""

from __future__ import annotations

from typing import Any

import pytest

from erxhub.audit.gaps import GAPS
from erxhub.core.keys import trace_code_key
from erxhub.v1 import audit_pb2, events_pb2, signed_pb2
from tests.audit.story import (
    CODES,
    DAY_MS,
    DELEGATE,
    DOCTOR,
    ORDER,
    PHARMACY,
    STRANGER,
    Story,
)


def gaps_of(story: Story, **asked: Any) -> set[str]:
    trace = story.trace(**asked)
    assert (trace.light == audit_pb2.LIGHT_RED) == bool(trace.gaps)
    return set(trace.gaps)


def set_fields(**fields: Any) -> Any:
    def change(payload: Any) -> None:
        for name, value in fields.items():
            setattr(payload, name, value)

    return change


def test_the_table_has_every_gap() -> None:
    assert len(GAPS) == 17


# ---- identity ----


@pytest.mark.parametrize("name", ["visit", "pay"])
def test_no_voucher_when_it_was_never_decoded(name: str) -> None:
    assert gaps_of(Story(without=[f"voucher.verified {name}"])) == {"GAP_NO_VOUCHER"}


def test_no_voucher_when_none_was_quoted() -> None:
    story = Story(changed={"settlement.committed": set_fields(voucher_key=b"")})
    assert gaps_of(story) == {"GAP_NO_VOUCHER"}
    story = Story(changed={"encounter.registered": set_fields(voucher_key=b"")})
    assert gaps_of(story) == {"GAP_NO_VOUCHER"}


@pytest.mark.parametrize(
    "change",
    [
        set_fields(institution_code="P33010099102"),
        set_fields(ref_expires_at_ms=1),
    ],
)
def test_no_voucher_when_it_proves_nothing_here(change: Any) -> None:
    assert gaps_of(Story(changed={"voucher.verified pay": change})) == {"GAP_NO_VOUCHER"}


def test_no_voucher_when_its_business_type_is_another() -> None:
    story = Story(changed={"voucher.issued pay": set_fields(business_type="01201")})
    assert gaps_of(story) == {"GAP_NO_VOUCHER"}


def test_an_internet_visit_needs_the_voucher_whatever_the_certificate() -> None:
    change = set_fields(voucher_key=b"", certificate_type="02")
    assert gaps_of(Story(internet=True, changed={"encounter.registered": change})) == {"GAP_NO_VOUCHER"}


def test_another_persons_voucher_is_an_identity_gap() -> None:
    for name in ("visit", "list", "pay", "take"):
        story = Story(changed={f"voucher.issued {name}": set_fields(person_key=STRANGER)})
        assert gaps_of(story) == {"GAP_IDENTITY"}


def test_a_linked_delegate_may_show_the_voucher_and_another_may_not() -> None:
    linked = Story(changed={"voucher.issued take": set_fields(delegate_key=DELEGATE)})
    assert gaps_of(linked, verify=True) == set()
    stranger = Story(changed={"voucher.issued take": set_fields(delegate_key=STRANGER)})
    assert gaps_of(stranger) == {"GAP_IDENTITY"}


def test_another_persons_visit_or_account_is_an_identity_gap() -> None:
    visit = Story(changed={"encounter.registered": set_fields(person_no="PSN0003", person_key=STRANGER)})
    assert gaps_of(visit) == {"GAP_IDENTITY"}
    account = Story(changed={"account.opened": set_fields(person_key=STRANGER)})
    assert gaps_of(account) == {"GAP_IDENTITY"}


# ---- diagnosis and prescription ----


def test_no_encounter() -> None:
    told = ["encounter.registered", "encounter.started", "diagnosis.recorded"]
    assert gaps_of(Story(without=told)) == {"GAP_NO_ENCOUNTER", "GAP_NO_DIAGNOSIS"}


def test_a_cancelled_visit_is_no_encounter() -> None:
    story = Story(until="diagnosis.recorded")
    cancelled = events_pb2.EncounterCancelled()
    key, _ = story.ledger.place("diagnosis.recorded")
    story.ledger.add("encounter", key, "encounter.cancelled", cancelled, actor="hospital/H")
    story._ended, story._until = False, ""
    story._prescription()
    # The precheck rests on the cancellation, which is no diagnosis.
    assert gaps_of(story) == {"GAP_NO_ENCOUNTER", "GAP_CHAIN"}


def test_no_diagnosis() -> None:
    assert gaps_of(Story(without=["diagnosis.recorded"])) == {"GAP_NO_DIAGNOSIS", "GAP_CHAIN"}


@pytest.mark.parametrize("event", ["encounter.doctor_attested", "encounter.revisit_proven"])
def test_no_attestation(event: str) -> None:
    assert gaps_of(Story(internet=True, without=[event])) == {"GAP_NO_ATTESTATION"}


def test_no_prescription() -> None:
    assert gaps_of(Story(without=["prescription.effective"])) == {"GAP_NO_PRESCRIPTION"}


def test_no_prescription_once_its_validity_was_over() -> None:
    story = Story(later_ms={"dispense.outbound": 4 * DAY_MS})
    assert "GAP_NO_PRESCRIPTION" in gaps_of(story)


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        ("prescription.frozen", events_pb2.PrescriptionFrozen(case_no="C1")),
        ("prescription.undone", events_pb2.PrescriptionUndone()),
    ],
)
def test_no_prescription_while_it_was_not_in_force(event: str, payload: Any) -> None:
    story = Story(until="review.passed").then(event, payload)
    story._ended, story._until = False, ""
    story._quote_and_settle(0)
    assert gaps_of(story) == {"GAP_NO_PRESCRIPTION"}


def test_no_review() -> None:
    assert gaps_of(Story(without=["review.passed"])) == {"GAP_NO_REVIEW"}


def test_a_review_by_the_prescriber_is_none() -> None:
    assert gaps_of(Story(changed={"review.passed": set_fields(pharmacist_code=DOCTOR)})) == {"GAP_NO_REVIEW"}


def test_a_review_after_the_settlement_is_late() -> None:
    story = Story(without=["review.passed"], until="dispense.ready")
    story._without.clear()
    given = events_pb2.ReviewGiven(order_no=ORDER, pharmacist_code="YS2")
    story.then("review.passed", given)
    assert {"GAP_NO_REVIEW", "GAP_ORDER"} <= gaps_of(story)


# ---- money and goods ----


def test_no_settlement() -> None:
    without = ["settlement.committed", "account.debited"]
    assert gaps_of(Story(without=without)) == {"GAP_NO_SETTLEMENT", "GAP_QUANTITY"}


def test_no_dispense_once_the_time_is_over() -> None:
    story = Story(until="dispense.ready")
    settled_ms = story.ledger.now_ms
    ctx = story.context()
    assert gaps_of(story, store=ctx.store, now_ms=settled_ms + 3 * DAY_MS - 10_000) == set()
    assert gaps_of(story, store=ctx.store, now_ms=settled_ms + 3 * DAY_MS) == {"GAP_NO_DISPENSE"}


def test_no_receipt_once_the_time_is_over() -> None:
    story = Story(until="prescription.exhausted")
    out_ms = story.ledger.now_ms
    ctx = story.context()
    assert gaps_of(story, store=ctx.store, now_ms=out_ms + 7 * DAY_MS - 10_000) == set()
    assert gaps_of(story, store=ctx.store, now_ms=out_ms + 7 * DAY_MS) == {"GAP_NO_RECEIPT"}


def test_goods_that_came_back_are_a_return_to_finish_and_no_missing_receipt() -> None:
    story = Story(delivery=True, until="delivery.arrived")
    for event in ("delivery.refused", "delivery.returning", "delivery.returned"):
        story.then(event, events_pb2.DeliveryMoved(order_no=ORDER, at_ms=story.ledger.now_ms))
    back_ms = story.ledger.now_ms
    ctx = story.context()
    assert gaps_of(story, store=ctx.store) == set()
    assert gaps_of(story, store=ctx.store, now_ms=back_ms + 8 * DAY_MS) == {"GAP_RETURN_OPEN"}


def test_money_given_back_while_the_goods_are_out_is_an_open_return() -> None:
    story = Story()
    story.give_back()
    assert gaps_of(story) == {"GAP_RETURN_OPEN"}


def more_sold(payload: Any) -> None:
    """Three packs instead of two, with every sum right."""
    claim = payload.claim
    claim.lines[0].quantity_e4, claim.lines[0].amount_fen, claim.lines[0].in_scope_fen = 30_000, 13_650, 13_650
    claim.amounts.total_fen, claim.amounts.in_scope_fen = 19_650, 13_650
    claim.amounts.person_fen, claim.amounts.cash_fen = 13_280, 8_280


def test_more_sold_than_prescribed_is_a_quantity_gap() -> None:
    changed = {
        "settlement.quoted": more_sold,
        "settlement.committed": more_sold,
        "account.debited": set_fields(in_scope_fen=13_650),
    }
    assert gaps_of(Story(changed=changed)) == {"GAP_QUANTITY"}


def test_more_delivered_than_sold_is_a_quantity_gap() -> None:
    def more_out(payload: events_pb2.DispenseOutbound) -> None:
        payload.lots[1].quantity = "1.5"

    assert gaps_of(Story(changed={"dispense.outbound": more_out})) == {"GAP_QUANTITY"}


def test_another_drug_is_a_quantity_gap() -> None:
    def other_drug(payload: events_pb2.DispenseOutbound) -> None:
        payload.lots[1].drug_code = "XC03"

    assert gaps_of(Story(changed={"dispense.outbound": other_drug})) == {"GAP_QUANTITY"}


@pytest.mark.parametrize(
    "field",
    [field.name for field in signed_pb2.ClaimAmounts.DESCRIPTOR.fields if field.name != "deductible_fen"],
)
def test_an_amount_that_is_off_by_one_fen_is_a_money_gap(field: str) -> None:
    def off_by_one(payload: Any) -> None:
        setattr(payload.claim.amounts, field, getattr(payload.claim.amounts, field) + 1)

    assert gaps_of(Story(changed={"settlement.committed": off_by_one})) == {"GAP_MONEY"}


def test_a_line_that_is_not_price_times_quantity_is_a_money_gap() -> None:
    def dearer(payload: Any) -> None:
        payload.claim.lines[0].price_e6 += 1_000_000

    assert gaps_of(Story(changed={"settlement.quoted": dearer, "settlement.committed": dearer})) == {"GAP_MONEY"}


def test_a_settlement_that_no_quote_stands_behind_is_a_money_gap() -> None:
    def other_quote(payload: Any) -> None:
        payload.claim.quote_id = "QUOTE2"

    assert gaps_of(Story(changed={"settlement.committed": other_quote})) == {"GAP_MONEY"}


@pytest.mark.parametrize("field", ["amount_fen", "in_scope_fen", "fund_fen"])
def test_an_account_that_was_moved_by_another_sum_is_a_money_gap(field: str) -> None:
    story = Story(changed={"account.debited": set_fields(**{field: 1})})
    assert gaps_of(story) == {"GAP_MONEY"}


def test_an_account_that_was_not_moved_or_not_restored_is_a_money_gap() -> None:
    assert gaps_of(Story(without=["account.debited"])) == {"GAP_MONEY"}
    story = Story(until="dispense.ready")
    story.give_back(restore=False)
    assert gaps_of(story) == {"GAP_MONEY"}


def test_a_self_payment_with_fund_money_is_a_money_gap() -> None:
    def with_fund(payload: Any) -> None:
        payload.claim.amounts.fund_fen, payload.claim.amounts.person_fen = 100, 15_000
        payload.claim.amounts.cash_fen = 15_000

    assert gaps_of(Story(self_paid=True, changed={"settlement.self_paid": with_fund})) == {"GAP_MONEY"}


def test_a_pack_without_code_is_a_trace_code_gap_when_the_fund_paid() -> None:
    def without_codes(payload: events_pb2.DispenseOutbound) -> None:
        del payload.lots[1].trace_codes[:]

    changed = {"dispense.outbound": without_codes}
    assert gaps_of(Story(changed=changed)) == {"GAP_TRACE_CODE"}
    assert gaps_of(Story(changed=changed, self_paid=True)) == set()


def test_a_code_that_nobody_sold_is_a_trace_code_gap() -> None:
    assert gaps_of(Story(without=["trace_code.sold"])) == {"GAP_TRACE_CODE"}


def test_a_code_sold_for_another_prescription_is_a_trace_code_gap() -> None:
    story = Story(changed={"trace_code.sold": set_fields(rx_key=b"o" * 32)})
    assert gaps_of(story) == {"GAP_TRACE_CODE"}


def test_a_code_sold_twice_is_a_trace_code_gap() -> None:
    story = Story()
    again = events_pb2.TraceCodeSold(drug_code="XA01", rx_key=b"o" * 32)
    story.ledger.add("trace_code", trace_code_key(CODES[0]), "trace_code.sold", again, actor=f"pharmacy/{PHARMACY}")
    assert gaps_of(story) == {"GAP_TRACE_CODE"}


# ---- order ----


@pytest.mark.parametrize("event", ["diagnosis.recorded", "review.passed", "dispense.handed_over", "document", "seal"])
@pytest.mark.parametrize("moved_ms", [-16 * 60_000, 60_000])
def test_a_claimed_time_that_is_too_old_or_in_the_future_is_an_order_gap(event: str, moved_ms: int) -> None:
    def moved(statement: Any) -> None:
        statement.signed_at_ms += moved_ms

    assert gaps_of(Story(statements={event: moved})) == {"GAP_ORDER"}


def test_a_prescription_dated_before_the_visit_is_an_order_gap() -> None:
    def earlier(payload: events_pb2.PrescriptionPrechecked) -> None:
        payload.content.prescribed_at_ms -= DAY_MS

    assert gaps_of(Story(changed={"prescription.prechecked": earlier})) == {"GAP_ORDER"}


def test_delivery_steps_that_go_back_in_time_are_an_order_gap() -> None:
    def earlier(payload: events_pb2.DeliveryMoved) -> None:
        payload.at_ms -= DAY_MS

    assert gaps_of(Story(delivery=True, changed={"delivery.arrived": earlier})) == {"GAP_ORDER"}


def test_a_courier_before_the_goods_are_out_is_an_order_gap() -> None:
    story = Story(until="dispense.ready")
    story.then("delivery.picked_up", events_pb2.DeliveryMoved(order_no=ORDER, at_ms=1))
    assert gaps_of(story) == {"GAP_ORDER"}


def test_a_clock_that_ran_backwards_between_steps_is_an_order_gap() -> None:
    story = Story(later_ms={"review.passed": -DAY_MS})
    assert "GAP_ORDER" in gaps_of(story)


def test_several_gaps_hold_at_once() -> None:
    story = Story(
        without=["review.passed", "trace_code.sold"],
        changed={"voucher.issued pay": set_fields(person_key=STRANGER)},
    )
    assert gaps_of(story) == {"GAP_NO_REVIEW", "GAP_TRACE_CODE", "GAP_IDENTITY"}


def test_a_gap_makes_its_flow_disagree() -> None:
    story = Story(changed={"account.debited": set_fields(amount_fen=1)})
    assert [flow.agrees for flow in story.trace().flows] == [True, False, True]
    story = Story(without=["trace_code.sold"])
    assert [flow.agrees for flow in story.trace().flows] == [True, True, False]
    story = Story(without=["review.passed"])
    assert [flow.agrees for flow in story.trace().flows] == [False, True, True]


@pytest.mark.parametrize(
    ("event", "broken"),
    [
        ("prescription.prechecked", "prescription.prechecked"),
        ("encounter.registered", "encounter.registered"),
        ("dispense.outbound", "dispense.outbound"),
        ("dispense.handed_over", "dispense.handed_over"),
        # The account's entry names its settlement, which does not name it back.
        ("settlement.committed", "account.debited"),
    ],
)
def test_an_entry_that_rests_on_nothing_breaks_the_chain(event: str, broken: str) -> None:
    story = Story(causes={event: []})
    trace = story.trace()
    assert list(trace.gaps) == ["GAP_CHAIN"]
    links = [(finding.stream_key, finding.version) for finding in trace.findings if finding.reason == "LINK"]
    assert story.ledger.place(broken) in links


def test_the_voucher_of_a_step_must_be_its_cause() -> None:
    story = Story(causes={"settlement.quoted": []})
    assert gaps_of(story) == {"GAP_CHAIN"}


def test_a_quantity_that_is_no_number_is_a_quantity_gap() -> None:
    def nonsense(payload: events_pb2.PrescriptionPrechecked) -> None:
        payload.content.lines[0].quantity = "two"

    assert gaps_of(Story(changed={"prescription.prechecked": nonsense})) == {"GAP_QUANTITY"}
