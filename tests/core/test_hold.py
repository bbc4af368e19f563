"""List, resolve, download, release, review: who gets a prescription, and who is told what."""

from __future__ import annotations

import pytest

from erxhub.core.model import Accepted, Refused
from erxhub.v1 import common_pb2, dispensing_pb2, registry_pb2, signed_pb2
from tests.core import pharmacy as shops
from tests.core import population as people
from tests.core.pharmacy import HOUR_MS, OTHER_SHOP, SHOP, Visit, at, change_agreement, change_person, staff, visit
from tests.core.population import accepted, refused
from tests.core.test_prescription import AMLODIPINE, DAY_MS, MINUTE_MS, agency, drug

SUSPENDED = registry_pb2.AGREEMENT_STATUS_SUSPENDED
ACTIVE = registry_pb2.AGREEMENT_STATUS_ACTIVE


# ---- list ----


def test_a_list_offers_what_is_in_force_newest_first() -> None:
    first = visit()
    second = visit(first.world, hospital_rx_no="RX2")
    outcome = first.list_rx()
    rows = accepted(outcome).prescriptions
    assert [row.rx_no for row in rows] == [second.rx.rx_no, first.rx.rx_no]
    assert {len(row.authorization_no) for row in rows} == {30}
    assert rows[0].hospital_name
    assert rows[0].line_count == 2
    assert not accepted(outcome).next_page_token
    assert isinstance(outcome, Accepted)
    assert [target.stream_key for target in outcome.targets] == [second.rx.key, first.rx.key]


def test_pages_show_every_prescription_once_and_their_numbers_all_work() -> None:
    first = visit()
    later = [visit(first.world, hospital_rx_no=f"RX{number}").rx.rx_no for number in range(2, 5)]
    reference = first.reference(shops.LIST_TYPE)
    page = accepted(first.list_rx(reference, page_size=3))
    rest = accepted(first.list_rx(reference, page_size=3, page_token=page.next_page_token))
    shown = [*page.prescriptions, *rest.prescriptions]
    assert [row.rx_no for row in shown] == [*later[::-1], first.rx.rx_no]
    assert not rest.next_page_token
    for row in shown:
        accepted(first.download(row.authorization_no))


def test_a_page_token_is_good_for_its_caller_and_person_only() -> None:
    first = visit()
    later = visit(first.world, hospital_rx_no="RX2")
    token = accepted(first.list_rx(page_size=1)).next_page_token
    assert len(bytes.fromhex(token)) == 16
    other = at(first, OTHER_SHOP)
    theirs = accepted(other.list_rx(page_size=1)).next_page_token
    people.activate(first.world, people.STRANGER_NO)
    stranger = first.reference(shops.LIST_TYPE, people.STRANGER_NO)
    # Neither a number that exists nor anybody's else's token opens a page or says that there is something.
    answers = [
        first.list_rx(page_token=theirs),
        first.list_rx(page_token=later.rx.rx_no),
        first.list_rx(page_token=first.rx.rx_no),
        first.list_rx(page_token="1" * 27),
        first.list_rx(page_token="第二页"),
        first.list_rx(stranger, page_token=token),
    ]
    told = [refused(answer, "PAGE_TOKEN_INVALID", "page.page_token") for answer in answers]
    assert all((answer.detail, answer.legal) == ({}, ()) for answer in told)


def test_listing_again_replaces_the_number() -> None:
    v = visit().listed()
    old = v.number
    v.listed()
    refused(v.download(old), "AUTH_REUSED", "authorization_no")
    accepted(v.download())


def test_a_list_needs_the_right_reference_agreement_and_person() -> None:
    v = visit()
    refused(v.list_rx("x" * 64), "VCH_INVALID", "voucher_ref")
    refused(v.list_rx(v.reference(shops.SETTLE_TYPE)), "VCH_WRONG_BUSINESS")
    reference = v.reference(shops.LIST_TYPE)
    refused(at(v, OTHER_SHOP).list_rx(reference), "VCH_INVALID")
    change_agreement(v.world, SHOP, SUSPENDED)
    refused(v.list_rx(reference), "AGR_INACTIVE")
    change_agreement(v.world, SHOP, ACTIVE)
    change_person(v.world, registry_pb2.PERSON_STATUS_PAUSED)
    refused(v.list_rx(reference), "PSN_INACTIVE")


# ---- QR ----


def resolve(v: Visit, value: str) -> Accepted | Refused:
    return v.do("ResolveQr", dispensing_pb2.ResolveQrRequest(rx_qr=value))


def test_a_qr_value_gives_a_token_once_and_the_token_downloads() -> None:
    v = visit()
    value = accepted(v.make_qr()).rx_qr
    assert len(value) == 27
    reply = accepted(resolve(v, value))
    assert len(reply.rx_token) == 64
    assert reply.prescription.rx_no == v.rx.rx_no
    refused(resolve(v, value), "QR_INVALID", "rx_qr")
    accepted(v.download("", reply.rx_token))


@pytest.mark.parametrize("value", ["a" * 26, "a" * 28, "a" * 27])
def test_a_wrong_qr_value_is_refused(value: str) -> None:
    refused(resolve(visit(), value), "QR_INVALID", "rx_qr")


def test_a_qr_value_lives_a_minute() -> None:
    v = visit()
    value = accepted(v.make_qr()).rx_qr
    v.world.advance(MINUTE_MS + 1)
    refused(resolve(v, value), "QR_INVALID")


# ---- download ----


def test_a_download_holds_and_attaches_the_upload() -> None:
    v = visit().listed()
    before = len(v.world.events)
    outcome = v.download()
    reply = accepted(outcome)
    assert isinstance(outcome, Accepted)
    assert outcome.attach_upload == v.rx.key
    assert v.events_since(before) == [
        "order.created",
        "authorization.consumed",
        "order.held",
        "prescription.downloaded",
    ]
    assert reply.hold_until_ms == v.world.now_ms + 2 * HOUR_MS
    assert reply.statuses.use == common_pb2.RX_USE_STATUS_HELD
    assert [(line.line_no, line.quantity) for line in reply.remaining] == [(1, "1"), (2, "1")]
    assert reply.mode == shops.PICKUP
    assert not v.order.by_patient


def test_the_holder_downloads_again_and_the_hold_does_not_move() -> None:
    v = visit().held()
    until = v.order.hold_until_ms
    v.world.advance(MINUTE_MS)
    before = len(v.world.events)
    v.listed()
    assert accepted(v.download()).hold_until_ms == until
    assert v.events_since(before)[-2:] == ["authorization.consumed", "prescription.downloaded"]
    assert len(v.state.orders) == 1


def test_the_holder_downloads_again_while_a_withdrawal_is_requested() -> None:
    v = visit().held()
    refused(v.rx.revoke(), "RX_UNDO_STATE")
    until = v.order.hold_until_ms
    v.world.advance(MINUTE_MS)
    reply = accepted(v.listed().download())
    assert (reply.hold_until_ms, reply.statuses.undo_requested) == (until, True)
    refused(v.quote(), "RX_NOT_EFFECTIVE")


def test_a_download_needs_exactly_one_proof() -> None:
    v = visit()
    refused(v.download(""), "AUTH_REQUIRED")
    refused(
        v.do("DownloadPrescription", dispensing_pb2.DownloadPrescriptionRequest(authorization_no="a", rx_token="b")),
        "INPUT_MALFORMED",
    )


def test_a_number_of_another_pharmacy_unknown_used_or_expired_is_one_answer() -> None:
    v = visit().listed()
    answers = [at(v, OTHER_SHOP).download(v.number), v.download("a" * 30)]
    accepted(v.download())
    answers.append(v.download())
    v.listed()
    v.world.advance(30 * MINUTE_MS + 1)
    answers.append(v.download())
    for answer in answers:
        assert isinstance(answer, Refused)
        assert (answer.code, answer.field, dict(answer.detail), answer.legal) == (
            "AUTH_REUSED",
            "authorization_no",
            {},
            (),
        )


def test_the_second_pharmacy_hears_when_the_hold_ends_and_not_whose_it_is() -> None:
    v = visit().held()
    other = at(v, OTHER_SHOP).listed()
    answer = refused(other.download(), "ORDER_ALREADY_HELD")
    assert answer.detail == {"hold_until_ms": str(v.order.hold_until_ms)}
    assert other.state.authorizations[-1].pharmacy_code == OTHER_SHOP.id
    v.world.advance(2 * HOUR_MS + 1)
    accepted(other.listed().download())


def test_a_download_works_until_the_last_millisecond_of_validity() -> None:
    v = visit()
    until = v.state.content.valid_until_ms
    v.world.now_ms = until - MINUTE_MS
    v.listed()
    v.world.now_ms = until
    assert accepted(v.download()).hold_until_ms == until
    late = visit()
    late.world.now_ms = late.state.content.valid_until_ms - MINUTE_MS
    late.listed()
    late.world.now_ms += MINUTE_MS + 1
    refused(late.download(), "RX_NOT_EFFECTIVE")


def test_a_number_says_that_another_pharmacy_used_the_prescription_up() -> None:
    v = visit()
    other = at(v, OTHER_SHOP).listed()
    v.dispensed()
    refused(other.download(), "RX_ALREADY_USED")


def test_a_frozen_prescription_and_a_requested_withdrawal_stop_a_download() -> None:
    v = visit().held()
    other = at(v, OTHER_SHOP).listed()
    refused(v.rx.revoke(), "RX_UNDO_STATE")
    assert refused(other.download(), "RX_NOT_EFFECTIVE").detail["undo_requested"] == "true"
    w = visit().listed()
    agency(
        w.world,
        "FreezePrescription",
        registry_pb2.FreezePrescriptionRequest(rx_no=w.rx.rx_no, case_no="CASE-1"),
    )
    refused(w.download(), "RX_NOT_EFFECTIVE")


def test_after_two_lapsed_holds_only_the_patients_order_opens() -> None:
    v = visit()
    for _ in range(2):
        v.held()
        v.world.advance(2 * HOUR_MS + 1)
    assert refused(v.listed().download(), "ORDER_STEERING").detail == {"lapsed_holds": "2"}
    accepted(at(v, OTHER_SHOP).held().release())
    accepted(v.choose())
    accepted(v.download())


def test_a_pharmacy_takes_up_twenty_holds_at_the_counter_and_then_needs_the_patients_order() -> None:
    v = visit()
    for _ in range(20):
        accepted(v.held().release())
    assert refused(v.listed().download(), "ORDER_STEERING").detail == {"orders": "20"}
    accepted(at(v, OTHER_SHOP).held().release())
    accepted(v.choose())
    accepted(v.download())


def test_a_dual_channel_drug_needs_the_pharmacys_dual_channel_agreement() -> None:
    world = shops.market()
    world.workspace.catalog["drugs", "2026", AMLODIPINE] = drug(AMLODIPINE, dual_channel=True).SerializeToString()
    # The doctor is on the list; the pharmacy is not yet.
    key = world.find("practitioner", people.DOCTOR_CODE.encode())
    assert key is not None
    world.state("practitioner", key).dual_channel = True
    v = visit(world).listed()
    refused(v.download(), "RX_DUAL_CHANNEL")
    agency(world, "SignAgreement", people.agreement_request(world, SHOP.id, shops.DUAL_CHANNEL))
    accepted(v.download())


def test_a_download_reads_agreement_and_person_again() -> None:
    v = visit().listed()
    change_agreement(v.world, SHOP, SUSPENDED)
    assert refused(v.download(), "AGR_INACTIVE").targets
    change_agreement(v.world, SHOP, ACTIVE)
    change_person(v.world, registry_pb2.PERSON_STATUS_PAUSED)
    refused(v.download(), "PSN_INACTIVE")


# ---- relation ----


def test_an_unrelated_pharmacy_gets_the_same_answer_for_every_number() -> None:
    v = visit().settled()
    other = at(v, OTHER_SHOP)
    for number in (v.rx.rx_no, "3" * 27):
        answer = refused(other.release(number), "RX_UNKNOWN", "rx_no")
        assert (dict(answer.detail), answer.legal) == ({}, ())
    for outcome in (
        other.review(),
        other.quote(),
        other.settle(),
        other.undo(v.settlement_id),
        other.dispense(settlement_id=v.settlement_id),
        other.void(),
        other.hand_over(),
        other.start(),
        other.update(dispensing_pb2.DELIVERY_STEP_ARRIVE, delivery_no="1"),
        other.sign("123456", delivery_no="1"),
    ):
        refused(outcome, "RX_UNKNOWN", "rx_no")


def test_a_former_holder_hears_that_his_hold_is_lost() -> None:
    v = visit().quoted()
    v.world.advance(3 * HOUR_MS)
    for answer in (v.release(), v.review(), v.quote(), v.settle(), v.dispense(), v.hand_over()):
        refused(answer, "ORDER_HOLD_LOST")
    v.world.advance(3 * DAY_MS)
    refused(v.quote(), "RX_NOT_EFFECTIVE")


# ---- release ----


def test_a_release_frees_the_prescription_even_without_agreement() -> None:
    v = visit().quoted()
    change_agreement(v.world, SHOP, SUSPENDED)
    before = len(v.world.events)
    assert accepted(v.release()).statuses.use == common_pb2.RX_USE_STATUS_UNUSED
    assert v.events_since(before) == ["settlement.quote_expired", "order.released"]
    accepted(at(v, OTHER_SHOP).held().release())


def test_a_release_lets_a_requested_withdrawal_take_effect() -> None:
    v = visit().held()
    refused(v.rx.revoke(), "RX_UNDO_STATE")
    assert accepted(v.release()).statuses.rx == common_pb2.RX_STATUS_UNDONE


def test_a_settled_order_is_not_released() -> None:
    answer = refused(visit().settled().release(), "RX_ALREADY_USED")
    assert answer.detail == {"order": "SETTLED"}
    assert "goods out" in answer.legal


# ---- review ----


def test_a_passed_review_is_kept_with_its_statement() -> None:
    v = visit().held()
    reply = accepted(v.review())
    assert reply.review == common_pb2.REVIEW_STATUS_PASSED
    assert v.order.status == common_pb2.ORDER_STATUS_REVIEWED
    assert v.order.reviewer_code == staff(SHOP, "1")


@pytest.mark.parametrize(
    ("decision", "event"),
    [
        (signed_pb2.REVIEW_DECISION_REJECT, "review.rejected"),
        (signed_pb2.REVIEW_DECISION_RETURN_TO_DOCTOR, "review.returned_to_doctor"),
    ],
)
def test_a_review_that_is_not_passed_releases_the_hold(
    decision: signed_pb2.ReviewDecision.ValueType, event: str
) -> None:
    v = visit().held()
    before = len(v.world.events)
    reply = accepted(v.review(decision))
    assert v.events_since(before) == [event, "order.released"]
    assert reply.statuses.use == common_pb2.RX_USE_STATUS_UNUSED
    assert reply.review not in (common_pb2.REVIEW_STATUS_NONE, common_pb2.REVIEW_STATUS_PASSED)
    assert v.order.review_opinion == "用药合理"
    accepted(at(v, OTHER_SHOP).held().release())


def test_a_rejection_lets_a_requested_withdrawal_take_effect() -> None:
    v = visit().held()
    refused(v.rx.revoke(), "RX_UNDO_STATE")
    assert accepted(v.review(signed_pb2.REVIEW_DECISION_REJECT)).statuses.rx == common_pb2.RX_STATUS_UNDONE


def test_a_review_needs_a_pharmacist_of_this_pharmacy() -> None:
    v = visit().held()
    for code in ("YS999999999", staff(OTHER_SHOP, "1"), staff(SHOP, "2")):
        refused(v.review(pharmacist_code=code), "REVIEW_PHARMACIST", "statement.pharmacist_code")
    agency(
        v.world,
        "ChangePractitionerStatus",
        registry_pb2.ChangePractitionerStatusRequest(
            practitioner_code=staff(SHOP, "1"),
            status=registry_pb2.PRACTITIONER_STATUS_SUSPENDED,
            case_no="CASE-1",
        ),
    )
    refused(v.review(), "REVIEW_PHARMACIST")


def test_a_review_is_about_exactly_the_bytes_that_were_signed() -> None:
    v = visit().held()
    refused(v.review(prescription_sha256=bytes(32)), "SIG_INVALID", "statement.prescription_sha256")
    refused(v.review(facts={"invalid": ["statement"]}), "SIG_INVALID")
    refused(v.review(key=people.key_of(staff(OTHER_SHOP, "1"))), "SIG_CERT")
    refused(v.review(pharmacy_code=OTHER_SHOP.id), "INST_IMPERSONATION")
    refused(v.review(pharmacy_code="X1"), "INST_CODE")


def test_a_review_needs_an_opinion_and_a_possible_time() -> None:
    v = visit().held()
    refused(v.review(opinion="  "), "REVIEW_INVALID", "statement.opinion")
    refused(v.review(signed_at_ms=v.world.now_ms - 1), "REVIEW_INVALID", "statement.signed_at_ms")
    refused(v.review(signed_at_ms=v.world.now_ms + 1), "RX_TIME")
    accepted(v.review())
    assert refused(v.review(), "REVIEW_INVALID", "statement.decision").detail["review"] == "PASSED"


# ---- repeats (switched off nationally, so the fills are set by hand) ----


def test_a_further_repeat_waits_for_the_interval_and_is_taken_one_at_a_time() -> None:
    v = visit()
    v.state.fills_allowed = 2
    v.state.content.repeat_interval_days = 1
    v.dispensed()
    assert v.state.use_status == common_pb2.RX_USE_STATUS_PARTLY_USED
    not_before_ms = v.world.now_ms + DAY_MS
    assert refused(v.listed().download(), "RX_REFILL").detail == {"not_before_ms": str(not_before_ms)}
    v.world.advance(DAY_MS)
    reply = accepted(v.listed().download())
    assert [line.quantity for line in reply.remaining] == ["1", "1"]
