"""Start, report and sign for a delivery: order of the steps, their times, and the proof at the door."""

from __future__ import annotations

import pytest

from erxhub.core.model import Refused
from erxhub.v1 import common_pb2, dispensing_pb2, registry_pb2
from tests.core import pharmacy as shops
from tests.core import population as people
from tests.core.pharmacy import (
    OTHER_SHOP,
    SHOP,
    change_agreement,
    change_person,
    change_practitioner,
    staff,
    visit,
    wrong_code,
)
from tests.core.population import accepted, refused
from tests.core.test_prescription import AMLODIPINE, IRBESARTAN, MINUTE_MS, drug

ON_THE_WAY = dispensing_pb2.DELIVERY_STEP_ON_THE_WAY
ARRIVE = dispensing_pb2.DELIVERY_STEP_ARRIVE
REFUSE = dispensing_pb2.DELIVERY_STEP_REFUSE
LOSE = dispensing_pb2.DELIVERY_STEP_LOSE
GO_BACK = dispensing_pb2.DELIVERY_STEP_GO_BACK
RECEIVED = dispensing_pb2.DELIVERY_STEP_RECEIVED


# ---- start ----


def test_a_delivery_starts_with_the_assigned_courier() -> None:
    v = visit().dispensed()
    accepted(v.request_delivery())
    before = len(v.world.events)
    reply = accepted(v.start())
    assert v.events_since(before) == ["delivery.assigned", "delivery.picked_up"]
    assert (reply.delivery_no, list(reply.warnings)) == (v.delivery_no, [])
    assert v.order.status == common_pb2.ORDER_STATUS_DELIVERING
    refused(v.start(), "DLV_BACKWARD")


def test_a_delivery_needs_goods_out_and_the_patients_request() -> None:
    v = visit().settled()
    assert refused(v.start(), "DLV_NOT_OUT").detail["missing_step"] == "goods out"
    accepted(v.dispense())
    assert refused(v.start(), "DLV_NOT_OUT").detail["missing_step"] == "request"
    refused(v.update(ON_THE_WAY, delivery_no="1"), "DLV_NOT_OUT")


def test_a_delivery_needs_a_courier_of_the_pharmacy_and_a_possible_time() -> None:
    v = visit().dispensed()
    accepted(v.request_delivery())
    for code in (staff(OTHER_SHOP, "4"), staff(SHOP, "2"), "YS0000"):
        refused(v.start(courier_code=code), "DLV_COURIER", "courier_code")
    refused(v.start(picked_up_at_ms=v.world.now_ms - 1), "DLV_TIME", "picked_up_at_ms")
    refused(v.start(picked_up_at_ms=v.world.now_ms + 1), "DLV_TIME", "picked_up_at_ms")


def test_a_long_or_warm_way_is_a_warning() -> None:
    v = visit(shops.market(drug(AMLODIPINE), drug(IRBESARTAN, cold_chain=True))).dispensed()
    accepted(v.request_delivery())
    warnings = accepted(v.start(distance_m=100_001)).warnings
    assert [(warning.code, warning.line_no) for warning in warnings] == [
        ("DLV_IMPLAUSIBLE", 0),
        ("DLV_IMPLAUSIBLE", 2),
    ]
    assert all(warning.message_en and warning.message_zh for warning in warnings)


# ---- steps ----


def test_the_steps_are_taken_in_their_order() -> None:
    v = visit().started()
    refused(v.update(ARRIVE), "DLV_BACKWARD", "step")
    assert accepted(v.update(ON_THE_WAY)).status == common_pb2.DELIVERY_STATUS_IN_TRANSIT
    assert "arrive" in refused(v.update(ON_THE_WAY), "DLV_BACKWARD").legal
    accepted(v.update(ARRIVE, latitude_e6=30_250_000, longitude_e6=120_170_000))
    assert v.order.delivery.longitude_e6 == 120_170_000


def test_times_never_go_back_nor_into_the_future() -> None:
    v = visit().started()
    v.world.advance(MINUTE_MS)
    accepted(v.update(ON_THE_WAY))
    refused(v.update(ARRIVE, at_ms=v.world.now_ms - 1), "DLV_TIME", "at_ms")
    refused(v.update(ARRIVE, at_ms=v.world.now_ms + 1), "DLV_TIME", "at_ms")


def test_only_the_assigned_courier_reports_his_steps() -> None:
    v = visit().started()
    for code in ("", staff(SHOP, "2")):
        refused(v.update(ON_THE_WAY, courier_code=code), "DLV_COURIER", "courier_code")
    refused(v.update(LOSE, courier_code=staff(OTHER_SHOP, "2")), "DLV_COURIER")
    refused(v.update(ON_THE_WAY, delivery_no="1"), "INPUT_MALFORMED", "delivery_no")
    accepted(v.update(LOSE, courier_code=""))


def test_refused_goods_come_back_even_without_agreement() -> None:
    v = visit().arrived()
    change_agreement(v.world, SHOP, registry_pb2.AGREEMENT_STATUS_SUSPENDED)
    accepted(v.update(REFUSE))
    accepted(v.update(GO_BACK))
    refused(v.update(RECEIVED), "DLV_COURIER")
    assert accepted(v.update(RECEIVED, courier_code=staff(SHOP, "2"))).status == common_pb2.DELIVERY_STATUS_RETURNED


def test_what_the_courier_picked_up_arrives_although_person_and_agreement_were_suspended_since() -> None:
    v = visit().started()
    change_agreement(v.world, SHOP, registry_pb2.AGREEMENT_STATUS_SUSPENDED)
    change_person(v.world, registry_pb2.PERSON_STATUS_PAUSED)
    accepted(v.update(ON_THE_WAY))
    accepted(v.update(ARRIVE))
    accepted(v.sign(v.sign_code))


def test_a_delivery_does_not_start_for_a_paused_person() -> None:
    v = visit().dispensed()
    accepted(v.request_delivery())
    change_person(v.world, registry_pb2.PERSON_STATUS_PAUSED)
    refused(v.start(), "PSN_INACTIVE")


def test_a_suspended_courier_reports_nothing() -> None:
    v = visit().started()
    change_practitioner(v.world, staff(SHOP, "4"), registry_pb2.PRACTITIONER_STATUS_SUSPENDED)
    for step in (ON_THE_WAY, LOSE):
        refused(v.update(step), "DLV_COURIER", "courier_code")
    change_practitioner(v.world, staff(SHOP, "4"), registry_pb2.PRACTITIONER_STATUS_ACTIVE)
    accepted(v.update(ON_THE_WAY))


# ---- sign ----


def test_the_right_code_signs_and_completes() -> None:
    v = visit().arrived()
    before = len(v.world.events)
    assert accepted(v.sign(v.sign_code)).status == common_pb2.DELIVERY_STATUS_SIGNED
    assert v.events_since(before) == ["delivery.signed", "order.completed"]
    refused(v.sign(v.sign_code), "DLV_BACKWARD")
    refused(v.request_delivery(), "ORDER_HOLD_LOST")


def test_five_wrong_codes_lock_until_the_patient_takes_a_new_one() -> None:
    v = visit().arrived()
    for tries_left in range(4, -1, -1):
        answer = refused(v.sign(wrong_code(v.sign_code)), "DLV_SIGN_CODE", "sign_code")
        assert answer.keeps_events
        assert answer.detail["tries_left"] == str(tries_left)
    before = len(v.world.events)
    answer = refused(v.sign(v.sign_code), "DLV_SIGN_CODE")
    assert (answer.keeps_events, answer.detail["locked"], v.events_since(before)) == (False, "true", [])
    accepted(v.request_delivery())
    accepted(v.sign(v.sign_code))


def test_a_new_code_ends_the_old_one() -> None:
    v = visit().arrived()
    old = v.sign_code
    accepted(v.request_delivery())
    if old != v.sign_code:
        refused(v.sign(old), "DLV_SIGN_CODE")


def test_a_voucher_signs_where_the_code_is_locked() -> None:
    v = visit().arrived()
    for _ in range(5):
        refused(v.sign(wrong_code(v.sign_code)), "DLV_SIGN_CODE")
    people.activate(v.world, people.STRANGER_NO)
    stranger = v.reference(shops.HAND_OVER_TYPE, people.STRANGER_NO)
    refused(v.sign(reference=stranger), "VCH_SUBJECT_MISMATCH")
    accepted(v.sign(reference=v.reference(shops.HAND_OVER_TYPE)))


def test_a_signature_needs_one_proof_arrived_goods_and_a_possible_time() -> None:
    v = visit().started()
    refused(v.sign(v.sign_code), "DLV_BACKWARD", "statement.delivery_no")
    v.world.advance(MINUTE_MS)
    accepted(v.update(ON_THE_WAY))
    accepted(v.update(ARRIVE))
    refused(v.sign(v.sign_code, signed_at_ms=v.world.now_ms - 1), "DLV_TIME", "statement.signed_at_ms")
    refused(v.sign(v.sign_code, reference="a" * 64), "INPUT_MALFORMED", "voucher_ref")
    before = len(v.world.events)
    answer = v.sign()
    assert isinstance(answer, Refused)
    assert (answer.code, answer.keeps_events, v.events_since(before)) == ("DLV_SIGN_CODE", False, [])
    waiting = visit().settled()
    accepted(waiting.request_delivery())
    refused(waiting.sign(waiting.sign_code), "DLV_NOT_OUT")


@pytest.mark.parametrize("step", [ON_THE_WAY, ARRIVE, REFUSE, LOSE, GO_BACK, RECEIVED])
def test_no_step_comes_before_the_pick_up(step: dispensing_pb2.DeliveryStep.ValueType) -> None:
    v = visit().dispensed()
    accepted(v.request_delivery())
    refused(v.update(step), "DLV_BACKWARD")
