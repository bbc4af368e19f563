"""Dispense, void, hand over: what may leave the shelf, refused as a whole or done as a whole."""

from __future__ import annotations

import pytest

from erxhub.core.keys import trace_code_key
from erxhub.v1 import common_pb2, registry_pb2
from tests.core import pharmacy as shops
from tests.core import population as people
from tests.core.pharmacy import OTHER_SHOP, SHOP, at, change_person, staff, trace_code, visit
from tests.core.population import accepted, refused
from tests.core.test_prescription import AMLODIPINE, IRBESARTAN, Rx, agency


def test_goods_go_out_with_their_codes_and_the_prescription_is_used_up() -> None:
    v = visit().settled()
    before = len(v.world.events)
    reply = accepted(v.dispense())
    assert v.events_since(before) == [
        "trace_code.sold",
        "trace_code.sold",
        "dispense.picked",
        "dispense.checked",
        "dispense.outbound",
        "prescription.used",
        "prescription.exhausted",
    ]
    assert (reply.statuses.rx, reply.statuses.use) == (
        common_pb2.RX_STATUS_EXHAUSTED,
        common_pb2.RX_USE_STATUS_USED,
    )
    names = [event for kind, event, _ in v.world.events if kind == "prescription"]
    sold = v.world.events[before][2]
    assert (sold.rx_key, sold.rx_version) == (v.rx.key, names.index("dispense.outbound") + 1)
    assert v.order.dispense.sale_no == reply.sale_no
    refused(v.dispense(), "RX_ALREADY_USED")


def test_part_of_a_prescription_leaves_the_rest_to_another_pharmacy() -> None:
    v = visit()
    v.settled(v.sale())
    assert accepted(v.dispense(v.lot())).statuses.use == common_pb2.RX_USE_STATUS_PARTLY_USED
    other = at(v, OTHER_SHOP).listed()
    reply = accepted(other.download())
    assert [line.quantity for line in reply.remaining] == ["0", "1"]
    accepted(other.review())
    refused(other.quote(other.sale()), "DISPENSE_MISMATCH", "lines[0].quantity")
    accepted(other.quote(other.sale(2, IRBESARTAN)))
    other.settlement_id = accepted(other.settle()).settlement_id
    lot = other.lot(2, IRBESARTAN)
    assert accepted(other.dispense(lot)).statuses.rx == common_pb2.RX_STATUS_EXHAUSTED


def test_a_statement_that_served_an_earlier_order_serves_no_later_one() -> None:
    """A pharmacy's statement names the prescription; of two sales of it each has its own."""
    v = visit()
    v.settled(v.sale())
    accepted(v.dispense(v.lot()))
    used_at_ms = v.world.now_ms
    v.world.advance(1)
    later = v.listed().held()
    accepted(later.review())
    lot = later.lot(2, IRBESARTAN)
    sale = later.sale(2, IRBESARTAN, price="40")
    for call in (
        later.pay_self(sale, total_fen=4_000, signed_at_ms=used_at_ms),
        later.settle(signed_at_ms=used_at_ms),
    ):
        found = refused(call, "RX_TIME", "statement.signed_at_ms")
        assert found.detail["not_before_ms"] == str(later.order.downloaded_at_ms)
    later.settlement_id = accepted(later.pay_self(sale, total_fen=4_000)).settlement_id
    refused(later.dispense(lot, signed_at_ms=used_at_ms), "RX_TIME", "statement.signed_at_ms")
    accepted(later.dispense(lot))
    # The goods of both wait now, and one statement hands over one of them.
    signed_at_ms = later.world.now_ms
    later.world.advance(1)
    accepted(later.hand_over(signed_at_ms=signed_at_ms))
    refused(later.hand_over(signed_at_ms=signed_at_ms), "RX_TIME", "statement.signed_at_ms")
    accepted(later.hand_over())


def test_goods_need_review_settlement_and_its_number() -> None:
    v = visit().held()
    refused(v.dispense(), "REVIEW_REQUIRED")
    accepted(v.review())
    refused(v.dispense(), "SETL_REQUIRED")
    accepted(v.quote())
    refused(v.dispense(), "SETL_REQUIRED")
    accepted(v.settle())
    refused(v.dispense(settlement_id=""), "SETL_REQUIRED", "statement.settlement_id")
    refused(v.dispense(settlement_id="1"), "SETL_REQUIRED", "statement.settlement_id")


def test_goods_go_out_in_time_only() -> None:
    v = visit().settled()
    v.world.now_ms = v.state.content.valid_until_ms + 1
    refused(v.dispense(), "RX_NOT_EFFECTIVE")
    w = visit().settled()
    freeze = registry_pb2.FreezePrescriptionRequest(rx_no=w.rx.rx_no, case_no="CASE-1")
    agency(w.world, "FreezePrescription", freeze)
    refused(w.dispense(), "RX_NOT_EFFECTIVE")


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"reviewer_code": staff(SHOP, "2")}, "REVIEW_PHARMACIST", "statement.reviewer_code"),
        ({"dispenser_code": staff(OTHER_SHOP, "2")}, "DR_NOT_ALLOWED", "statement.dispenser_code"),
        ({"checker_code": staff(SHOP, "4")}, "DR_NOT_ALLOWED", "statement.checker_code"),
        ({"checker_code": staff(SHOP, "2")}, "DISPENSE_DOUBLE_SIGN", "statement.checker_code"),
    ],
)
def test_three_signatures_are_who_they_have_to_be(changes: dict[str, str], code: str, field: str) -> None:
    v = visit().settled()
    refused(v.dispense(**changes), code, field)


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"quantity": "2"}, "DISPENSE_MISMATCH", "statement.lots"),
        ({"quantity": "0"}, "DISPENSE_MISMATCH", "statement.lots[0].quantity"),
        ({"quantity": "00"}, "INPUT_MALFORMED", "statement.lots[0].quantity"),
        ({"line_no": 3}, "DISPENSE_MISMATCH", "statement.lots[0].line_no"),
        ({"drug_code": IRBESARTAN}, "DISPENSE_MISMATCH", "statement.lots[0].drug_code"),
        ({"expires_on": "2026-11-21"}, "BATCH_EXPIRED", "statement.lots[0].expires_on"),
        ({"expires_on": "2027-02-30"}, "INPUT_MALFORMED", "statement.lots[0].expires_on"),
        ({"trace_codes": []}, "TRACE_MISSING", "statement.lots[0].trace_codes"),
        ({"trace_codes": ["9" * 20]}, "TRACE_INVALID", "statement.lots[0].trace_codes[0]"),
        ({"trace_codes": [trace_code(2)]}, "TRACE_INVALID", "statement.lots[1].trace_codes[0]"),
        ({"trace_codes": [trace_code(1), trace_code(3)]}, "TRACE_INVALID", "statement.lots[0].trace_codes"),
        ({"without_code": True}, "TRACE_INVALID", "statement.lots[0].trace_codes"),
    ],
)
def test_a_wrong_lot_refuses_the_whole(changes: dict[str, object], code: str, field: str) -> None:
    v = visit().settled()
    before = len(v.world.events)
    refused(v.dispense(v.lot(**changes), v.lot(2, IRBESARTAN)), code, field)  # type: ignore[arg-type]
    assert v.events_since(before) == []


def test_a_missing_line_refuses_the_whole() -> None:
    v = visit().settled()
    assert refused(v.dispense(v.lot()), "DISPENSE_MISMATCH").detail["line_no"] == "2"


def test_the_last_good_day_of_a_lot_is_good() -> None:
    v = visit().settled()
    accepted(v.dispense(v.lot(expires_on="2026-11-22"), v.lot(2, IRBESARTAN)))


def test_two_lots_of_a_line_and_an_opened_pack_have_one_code_each() -> None:
    line = Rx.line(1, AMLODIPINE)
    line.quantity = "2.5"
    v = visit(lines=[line])
    v.settled(v.sale(quantity="2.5"))
    first = v.lot(quantity="1", lot_no="L1")
    second = v.lot(quantity="1.5", lot_no="L2", split_pack=True, trace_codes=[trace_code(5), trace_code(6)])
    accepted(v.dispense(first, second))


def test_a_sold_code_is_never_sold_again() -> None:
    v = visit().dispensed()
    w = at(visit(v.world, hospital_rx_no="RX2"), OTHER_SHOP).settled()
    answer = refused(w.dispense(), "TRACE_DUPLICATE", "statement.lots[0].trace_codes[0]")
    assert answer.entry == "trace_code.duplicate_detected"
    assert [target.stream_key for target in answer.targets] == [trace_code_key(trace_code(1)), w.rx.key]


def test_stock_without_codes_and_self_payments_need_none() -> None:
    v = visit().settled()
    lots = [v.lot(trace_codes=[], without_code=True), v.lot(2, IRBESARTAN, trace_codes=[], without_code=True)]
    accepted(v.dispense(*lots))
    w = visit().self_paid()
    lots = [w.lot(trace_codes=[]), w.lot(2, IRBESARTAN, trace_codes=[])]
    accepted(w.dispense(*lots, settlement_id=""))


def test_goods_are_not_for_a_person_who_is_no_longer_insured() -> None:
    v = visit().settled()
    change_person(v.world, registry_pb2.PERSON_STATUS_PAUSED)
    refused(v.dispense(), "PSN_INACTIVE")


# ---- void ----


def test_a_void_ends_the_dispensing_and_its_delivery_and_leaves_the_undo() -> None:
    v = visit().settled()
    accepted(v.request_delivery())
    before = len(v.world.events)
    accepted(v.void())
    assert v.events_since(before) == ["delivery.cancelled", "dispense.voided"]
    refused(v.void(), "SETL_REQUIRED")
    refused(v.dispense(), "SETL_REQUIRED")
    accepted(v.undo())


def test_what_is_out_is_not_voided() -> None:
    refused(visit().dispensed().void(), "SETL_NOT_REVERSIBLE")
    refused(visit().quoted().void(), "SETL_REQUIRED")


# ---- hand over ----


def test_a_hand_over_completes_the_order_and_cancels_the_delivery() -> None:
    v = visit().dispensed()
    accepted(v.request_delivery())
    before = len(v.world.events)
    accepted(v.hand_over())
    assert v.events_since(before)[-2:] == ["delivery.cancelled", "dispense.handed_over"]
    assert v.order.status == common_pb2.ORDER_STATUS_COMPLETED
    refused(v.hand_over(), "DLV_BACKWARD")


def test_goods_are_handed_to_their_person_and_only_once_they_are_out() -> None:
    v = visit().settled()
    refused(v.hand_over(), "DLV_NOT_OUT")
    accepted(v.dispense())
    people.activate(v.world, people.STRANGER_NO)
    refused(v.hand_over(v.reference(shops.HAND_OVER_TYPE, people.STRANGER_NO)), "VCH_SUBJECT_MISMATCH")
    refused(v.hand_over(v.reference(shops.SETTLE_TYPE)), "VCH_WRONG_BUSINESS")
    refused(v.hand_over(staff_code=staff(OTHER_SHOP, "2")), "DR_NOT_ALLOWED", "statement.staff_code")
    accepted(v.hand_over(staff_code=""))


def test_goods_with_the_courier_are_not_handed_over() -> None:
    refused(visit().started().hand_over(), "DLV_BACKWARD")
