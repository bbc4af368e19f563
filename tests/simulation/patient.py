"""What patients do in their channel for a prescription: show, choose, cancel, ask for delivery. Calls, no journeys."""

from __future__ import annotations

from typing import Any

from erxhub.v1 import common_pb2, patient_pb2
from tests.simulation.cast import CHANNELS, Shop
from tests.simulation.desk import Desk, Rx
from tests.simulation.wire import Call


def _patient(desk: Desk, rx: Rx, method: str, kind: Any, **fields: Any) -> Call:
    given = {"person_no": rx.person.number, "delegate_person_no": desk.delegate_of(rx.person), "rx_no": rx.rx_no}
    return desk.call(CHANNELS[0], f"PatientService/{method}", kind(**(given | fields)))


def make_qr(desk: Desk, rx: Rx, **changes: Any) -> Call:
    """A value to show at a counter."""
    return _patient(desk, rx, "MakeQr", patient_pb2.MakeQrRequest, **changes)


def cancel(desk: Desk, rx: Rx, shop: Shop, **changes: Any) -> Call:
    """The patient ends the order."""
    fields = {"pharmacy_code": shop.caller.id} | changes
    return _patient(desk, rx, "CancelOrder", patient_pb2.CancelOrderRequest, **fields)


def request_delivery(desk: Desk, rx: Rx, shop: Shop, **changes: Any) -> Call:
    """The patient wants the goods brought."""
    fields = {"pharmacy_code": shop.caller.id, "address": "示例路1号", "phone": "13800000000"} | changes
    return _patient(desk, rx, "RequestDelivery", patient_pb2.RequestDeliveryRequest, **fields)


def choose(desk: Desk, rx: Rx, shop: Shop, mode: common_pb2.FulfilmentMode.ValueType, **changes: Any) -> Call:
    """The patient makes an order at a pharmacy."""
    fields = {"pharmacy_code": shop.caller.id, "mode": mode} | changes
    return _patient(desk, rx, "ChoosePharmacy", patient_pb2.ChoosePharmacyRequest, **fields)
