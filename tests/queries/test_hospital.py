"""What a hospital reads of its own prescriptions, and of others'."""

from __future__ import annotations

from dataclasses import replace

from erxhub.v1 import common_pb2, prescribing_pb2
from tests.core.population import HOSPITAL, OTHER_HOSPITAL, PHARMACY_CODE
from tests.queries.hub import Hub, download, prescription

GET = "PrescribingService/GetPrescription"
LIST = "PrescribingService/ListPrescriptions"
HOUR_MS = 3_600_000


def get(rx_no: str) -> prescribing_pb2.GetPrescriptionRequest:
    return prescribing_pb2.GetPrescriptionRequest(rx_no=rx_no)


def test_a_hospital_sees_its_prescription_with_the_orders(hub: Hub) -> None:
    rx = prescription(hub)
    before = hub.read(HOSPITAL, GET, get(rx.rx_no))
    download(hub, rx.rx_no)
    after = hub.read(HOSPITAL, GET, get(rx.rx_no))
    assert after.prescription == rx.content
    assert [(order.pharmacy_code, order.status) for order in after.orders] == [
        (PHARMACY_CODE, common_pb2.ORDER_STATUS_HELD)
    ]
    assert after.statuses.use == common_pb2.RX_USE_STATUS_HELD
    assert before.etag != after.etag


def test_a_hold_that_is_over_is_not_shown_though_no_entry_says_so_yet(hub: Hub) -> None:
    rx = prescription(hub)
    download(hub, rx.rx_no)
    hub.advance(2 * HOUR_MS + 1)
    reply = hub.read(HOSPITAL, GET, get(rx.rx_no))
    assert reply.statuses.use == common_pb2.RX_USE_STATUS_UNUSED
    assert reply.orders[0].status == common_pb2.ORDER_STATUS_TIMED_OUT


def test_another_hospitals_prescription_is_answered_like_one_that_does_not_exist(hub: Hub) -> None:
    rx = prescription(hub)
    foreign = hub.refused(OTHER_HOSPITAL, GET, get(rx.rx_no))
    absent = hub.refused(OTHER_HOSPITAL, GET, get("9" * 27))
    assert (absent.code, absent.field, absent.targets) == ("RX_UNKNOWN", "rx_no", ())
    assert replace(foreign, targets=()) == absent
    assert [target.stream_key for target in foreign.targets] == [rx.key]


def test_a_hospital_lists_its_own_prescriptions_newest_first(hub: Hub) -> None:
    numbers = [prescription(hub, number).rx_no for number in (1, 2, 3)]
    request = prescribing_pb2.ListPrescriptionsRequest(page=common_pb2.Page(page_size=2))
    first = hub.read(HOSPITAL, LIST, request)
    request.page.page_token = first.next_page_token
    second = hub.read(HOSPITAL, LIST, request)
    shown = [summary.rx_no for summary in (*first.prescriptions, *second.prescriptions)]
    assert shown == numbers[::-1]
    assert second.next_page_token == ""
    assert not hub.read(OTHER_HOSPITAL, LIST, prescribing_pb2.ListPrescriptionsRequest()).prescriptions


def test_a_list_names_each_prescription_that_it_shows_as_accessed(hub: Hub) -> None:
    keys = {prescription(hub, number).key for number in (1, 2)}
    outcome = hub.run(hub.look(HOSPITAL, LIST, prescribing_pb2.ListPrescriptionsRequest()))
    assert {target.stream_key for target in outcome.targets} == keys
    assert all(target.person_key for target in outcome.targets)
