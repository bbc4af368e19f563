"""Choose, cancel, present, ask for delivery: the patient's own steps through his channel."""

from __future__ import annotations

import pytest

from erxhub.core.model import Refused
from erxhub.policy.rules import Rules
from erxhub.v1 import common_pb2, patient_pb2, registry_pb2
from tests.core import pharmacy as shops
from tests.core import population as people
from tests.core.pharmacy import DELIVERY, OTHER_SHOP, PICKUP, SHOP, at, change_agreement, change_person, visit
from tests.core.population import accepted, refused
from tests.core.test_prescription import Rx


def test_choosing_creates_an_order_that_the_download_takes_up() -> None:
    v = visit()
    before = len(v.world.events)
    accepted(v.choose(mode=DELIVERY))
    assert v.events_since(before) == ["order.created", "order.routed"]
    v.held()
    assert len(v.state.orders) == 1
    assert (v.order.by_patient, v.order.mode) == (True, DELIVERY)


def test_the_same_choice_again_changes_nothing_and_another_mode_replaces_it() -> None:
    v = visit()
    accepted(v.choose())
    before = len(v.world.events)
    accepted(v.choose())
    assert v.events_since(before) == []
    accepted(v.choose(mode=DELIVERY))
    assert v.events_since(before) == ["order.cancelled", "order.created", "order.routed"]
    v.held()
    accepted(v.choose(mode=DELIVERY))
    refused(v.choose(), "ORDER_ALREADY_HELD")
    refused(v.choose(OTHER_SHOP), "ORDER_ALREADY_HELD")


@pytest.mark.interpreted
def test_a_way_to_the_patient_that_the_area_does_not_allow_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = Rules.texts

    def pick_up_only(rules: Rules, name: str) -> tuple[str, ...]:
        return ("PICKUP",) if name == "fulfilment_modes" else texts(rules, name)

    monkeypatch.setattr(Rules, "texts", pick_up_only)
    v = visit()
    refused(v.choose(mode=DELIVERY), "INPUT_MALFORMED")
    accepted(v.choose(mode=PICKUP))


def test_toggling_the_mode_does_not_let_the_prescription_grow() -> None:
    v = visit()
    for number in range(40):
        accepted(v.choose(mode=DELIVERY if number % 2 else PICKUP))
    assert len(v.state.orders) == 1
    v.held()
    accepted(v.cancel())
    accepted(v.choose())
    accepted(v.choose(mode=DELIVERY))
    # The order that held stays: its pharmacy may ask what became of it.
    assert [order.downloaded_at_ms > 0 for order in v.state.orders] == [True, False]


def test_a_replaced_order_of_another_pharmacy_stays() -> None:
    v = visit()
    accepted(v.choose())
    accepted(v.cancel())
    accepted(v.choose(OTHER_SHOP))
    assert [order.pharmacy_code for order in v.state.orders] == [SHOP.id, OTHER_SHOP.id]


def test_a_prescription_takes_twenty_orders_of_the_patient() -> None:
    v = visit()
    for _ in range(20):
        accepted(v.choose())
        v.held()
        accepted(v.cancel())
    before = len(v.world.events)
    answer = refused(v.choose(), "RECORD_STATE", "rx_no")
    assert answer.detail == {"orders": "20", "orders_max": "20"}
    assert v.events_since(before) == []
    # He still may go to any counter.
    v.held()


def test_a_choice_names_a_pharmacy_with_an_agreement() -> None:
    v = visit()
    refused(v.choose(people.HOSPITAL), "INST_CODE", "pharmacy_code")
    refused(v.choose(pharmacy_code="P33010000000"), "INST_UNKNOWN", "pharmacy_code")
    change_agreement(v.world, SHOP, registry_pb2.AGREEMENT_STATUS_SUSPENDED)
    refused(v.choose(), "AGR_INACTIVE")


def test_a_choice_is_for_a_prescription_in_force_of_an_insured_person() -> None:
    v = visit()
    change_person(v.world, registry_pb2.PERSON_STATUS_PAUSED)
    refused(v.choose(), "PSN_INACTIVE")
    change_person(v.world, registry_pb2.PERSON_STATUS_ACTIVE)
    accepted(v.rx.revoke())
    refused(v.choose(), "RX_NOT_EFFECTIVE")
    refused(v.make_qr(), "RX_NOT_EFFECTIVE")
    used = visit().dispensed()
    refused(used.choose(), "RX_ALREADY_USED")
    refused(used.make_qr(), "RX_ALREADY_USED")


def test_a_prescription_is_shown_to_its_person_on_an_activated_channel_only() -> None:
    v = visit()
    people.activate(v.world, people.STRANGER_NO)
    for answer in (
        v.make_qr(person_no=people.STRANGER_NO),
        v.choose(person_no=people.STRANGER_NO),
        v.cancel(person_no=people.STRANGER_NO),
        v.request_delivery(person_no=people.STRANGER_NO),
        v.make_qr(rx_no="3" * 27),
    ):
        assert isinstance(answer, Refused)
        assert (answer.code, answer.field, dict(answer.detail)) == ("RX_UNKNOWN", "rx_no", {})
    qr = patient_pb2.MakeQrRequest
    refused(v.patient("MakeQr", qr, people.OTHER_CHANNEL), "VCH_REVOKED")
    refused(v.make_qr(delegate_person_no=people.CHILD_NO), "VCH_NO_DELEGATION")


def test_a_prescription_that_is_not_uploaded_yet_is_unknown_to_its_person() -> None:
    world = shops.market()
    v = shops.Visit(world, Rx(world).prechecked())
    refused(v.make_qr(), "RX_UNKNOWN")


# ---- cancel ----


def test_the_patient_ends_a_hold_before_settlement() -> None:
    v = visit().quoted()
    before = len(v.world.events)
    assert accepted(v.cancel()).statuses.use == common_pb2.RX_USE_STATUS_UNUSED
    assert v.events_since(before) == ["settlement.quote_expired", "order.cancelled"]
    accepted(at(v, OTHER_SHOP).held().release())


def test_the_patient_withdraws_an_authorisation_before_the_download() -> None:
    v = visit().listed()
    before = len(v.world.events)
    accepted(v.cancel())
    assert v.events_since(before) == ["authorization.revoked"]
    refused(v.download(), "AUTH_REUSED")
    refused(v.cancel(), "ORDER_HOLD_LOST")


def test_cancelling_lets_a_requested_withdrawal_take_effect() -> None:
    v = visit().held()
    refused(v.rx.revoke(), "RX_UNDO_STATE")
    assert accepted(v.cancel()).statuses.rx == common_pb2.RX_STATUS_UNDONE


def test_a_settled_order_is_not_cancelled() -> None:
    v = visit().settled()
    assert refused(v.cancel(), "RX_ALREADY_USED").detail["order"] == "SETTLED"
    accepted(v.dispense())
    refused(v.cancel(), "RX_ALREADY_USED")


# ---- delivery ----


def test_a_request_shows_six_digits_and_keeps_only_their_hash() -> None:
    v = visit().held()
    reply = accepted(v.request_delivery())
    assert len(reply.sign_code) == 6
    assert v.order.mode == DELIVERY
    payload = v.world.events[-1][2]
    assert reply.sign_code.encode() not in payload.SerializeToString()
    again = accepted(v.request_delivery())
    assert again.delivery_no == reply.delivery_no
    assert v.world.names_of_events()[-1] == "delivery.sign_code_renewed"


def test_delivery_is_for_an_open_order() -> None:
    v = visit()
    refused(v.request_delivery(), "ORDER_HOLD_LOST")
    v.held()
    accepted(v.request_delivery())
    before = len(v.world.events)
    accepted(v.release())
    assert v.events_since(before) == ["delivery.cancelled", "order.released"]
    refused(v.request_delivery(), "ORDER_HOLD_LOST")
    refused(v.request_delivery(pharmacy_code="P33010000000"), "INST_UNKNOWN")
