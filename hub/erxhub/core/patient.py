"""Decisions of a patient, or his delegate, through a channel: choose, cancel, present, ask for delivery.

Owns what the patient starts and withdraws himself. It shows a channel no diagnosis, and it never writes the person's
number into an entry's header: the actor is the channel, the person is the prescription's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from erxhub.core import guards, orders
from erxhub.core.consequences import after_hold_ended, current, end_with_order, revoke_authorizations, statuses
from erxhub.core.hold import QR_LENGTH
from erxhub.core.keys import prescription_key
from erxhub.core.lifecycle import HOLDING, Machine, permits
from erxhub.core.model import Accepted, Command, Draft, Handler, Outcome, Refused
from erxhub.core.orders import PRESCRIPTION, Seen, order_status
from erxhub.policy.codes import has_form
from erxhub.v1 import common_pb2, events_pb2, patient_pb2, registry_pb2, state_pb2

SIGN_CODE_DIGITS: Final = 6

_MODES: Final[Mapping[int, str]] = {
    common_pb2.FULFILMENT_MODE_PICKUP: "PICKUP",
    common_pb2.FULFILMENT_MODE_DELIVERY: "DELIVERY",
}
"""Names of the modes in the packs."""


def _own(tx: Draft, command: Command, pharmacy_code: str = "") -> Seen | Refused:
    """The acting person's prescription. Refusals: VCH_REVOKED, VCH_NO_DELEGATION, RX_UNKNOWN."""
    request: Any = command.request
    tx.want(
        names=[
            *tx.secret_names("person", request.person_no),
            *([("institution", pharmacy_code.encode())] if pharmacy_code else ()),
        ],
        streams=[prescription_key(request.rx_no)],
    )
    acting = guards.acting_person(tx, command, request.person_no, request.delegate_person_no)
    if isinstance(acting, Refused):
        return acting
    is_delegate = bool(acting.delegate_key)
    return orders.seen_by_patient(tx, acting.person_key, request.rx_no, pharmacy_code, is_delegate=is_delegate)


def _may(seen: Seen, machine: Machine, state: str, trigger: str) -> bool:
    return any(permits(machine, state, trigger, role) for role in seen.side)


def mode_allowed(tx: Draft, pharmacy: state_pb2.InstitutionState, mode: int) -> bool:
    """Whether goods may reach patients in this way in the pharmacy's area."""
    return _MODES.get(mode) in tx.rules(pharmacy.area_code).texts("fulfilment_modes")


# ---- choose and cancel ----


def choose_pharmacy(tx: Draft, command: Command) -> Outcome:
    """Choose a pharmacy (P-09): creates an order there. Leaves `order.created` and `order.routed`.

    The same choice again, while its order is open, changes nothing; another mode replaces an order that holds nothing
    yet (`order.cancelled` first).
    Refusals: VCH_REVOKED, VCH_NO_DELEGATION, RX_UNKNOWN, PSN_INACTIVE, INST_CODE, INST_UNKNOWN, AGR_INACTIVE,
    INPUT_MALFORMED (the mode is not allowed there), RX_ALREADY_USED, RX_NOT_EFFECTIVE, ORDER_ALREADY_HELD,
    RECORD_STATE (as many orders of the patient as one prescription bears; any counter stays open to him).
    """
    request: patient_pb2.ChoosePharmacyRequest = command.request
    code = request.pharmacy_code
    seen = _own(tx, command, code)
    if isinstance(seen, Refused):
        return seen
    refused = orders.insured(tx, seen)
    if refused is not None:
        return refused
    if not has_form("pharmacy", code):
        return seen.refuse("INST_CODE", "pharmacy_code")
    pharmacy = guards.institution(tx, code, "pharmacy_code")
    if isinstance(pharmacy, Refused):
        return guards.about(pharmacy, *seen.targets)
    refused = guards.agreement(tx, pharmacy, registry_pb2.AGREEMENT_KIND_BASE)
    if refused is not None:
        return guards.about(refused, *seen.targets)
    if not mode_allowed(tx, pharmacy, request.mode):
        return seen.refuse("INPUT_MALFORMED", "mode")
    refused = orders.fillable(seen)
    if refused is not None:
        return refused
    reply = Accepted(patient_pb2.ChoosePharmacyResponse(), targets=seen.targets)
    holder = next((order for order in seen.rx.orders if order_status(order) in HOLDING), None)
    if holder is not None:
        # The holder's own order stands already; its mode changes only by a request for delivery.
        stands = holder.pharmacy_code == code and holder.mode == request.mode
        return reply if stands else seen.refuse("ORDER_ALREADY_HELD", "pharmacy_code")
    waiting = [order for order in seen.own_orders() if _may(seen, Machine.ORDER, order_status(order), "cancel")]
    if any(order.mode == request.mode for order in waiting):
        return reply
    refused = _too_many(seen, code, tx.rules(pharmacy.area_code).integer("orders_max"))
    if refused is not None:
        return refused
    for order_no in [order.order_no for order in waiting]:
        _cancel_order(tx, seen, order_no, was_held=False)
    created = events_pb2.OrderCreated(
        order_no=orders.new_number(tx, pharmacy.area_code), pharmacy_code=code, mode=request.mode, by_patient=True
    )
    tx.emit(PRESCRIPTION, seen.key, "order.created", created)
    tx.emit(PRESCRIPTION, seen.key, "order.routed", events_pb2.OrderRouted(pharmacy_code=code))
    return reply


def _too_many(seen: Seen, pharmacy_code: str, orders_max: int) -> Refused | None:
    """Another order of the patient would be one too many; one that it replaces does not count (see the fold)."""
    made = sum(
        order.by_patient and (order.pharmacy_code != pharmacy_code or order.downloaded_at_ms > 0)
        for order in seen.rx.orders
    )
    if made < orders_max:
        return None
    return seen.refuse("RECORD_STATE", "rx_no", detail={"orders": str(made), "orders_max": str(orders_max)})


def cancel_order(tx: Draft, command: Command) -> Outcome:
    """End an order, or an authorisation before the download, at any time before settlement (取消订单, X-22).

    Leaves `authorization.revoked` for the pharmacy's live authorisations and `order.cancelled`; a requested withdrawal
    takes effect when that ends a hold (`prescription.undone`).
    Refusals: VCH_REVOKED, VCH_NO_DELEGATION, RX_UNKNOWN, RX_ALREADY_USED (settled or handed out there),
    ORDER_HOLD_LOST (nothing to end there).
    """
    request: patient_pb2.CancelOrderRequest = command.request
    seen = _own(tx, command, request.pharmacy_code)
    if isinstance(seen, Refused):
        return seen
    held = seen.held_order()
    if held is not None and not _may(seen, Machine.ORDER, order_status(held), "cancel"):
        return seen.refuse("RX_ALREADY_USED", "rx_no", order=held)
    open_orders = seen.open_orders()
    cancellable = [
        (order.order_no, order_status(order) in HOLDING)
        for order in open_orders
        if _may(seen, Machine.ORDER, order_status(order), "cancel")
    ]
    issued = any(
        authorization.pharmacy_code == request.pharmacy_code and orders.is_issued(authorization)
        for authorization in seen.rx.authorizations
    )
    if not cancellable and not issued:
        if open_orders:
            return seen.refuse("RX_ALREADY_USED", "rx_no", order=open_orders[-1])
        return seen.refuse("ORDER_HOLD_LOST", "pharmacy_code")
    revoke_authorizations(tx, seen.key, "withdrawn by the patient", request.pharmacy_code)
    for order_no, was_held in cancellable:
        _cancel_order(tx, seen, order_no, was_held=was_held)
    reply = patient_pb2.CancelOrderResponse(statuses=statuses(current(tx, seen.key)))
    return Accepted(reply, targets=seen.targets)


def _cancel_order(tx: Draft, seen: Seen, order_no: str, *, was_held: bool) -> None:
    end_with_order(tx, seen.key, order_no, "order cancelled")
    tx.emit(PRESCRIPTION, seen.key, "order.cancelled", events_pb2.OrderCancelled(order_no=order_no))
    if was_held:
        after_hold_ended(tx, seen.key)


# ---- present ----


def make_qr(tx: Draft, command: Command) -> Outcome:
    """Make a prescription QR value: 27 characters, single use, short-lived (X-11). Leaves `authorization.qr_issued`.

    Refusals: VCH_REVOKED, VCH_NO_DELEGATION, RX_UNKNOWN, PSN_INACTIVE, RX_ALREADY_USED, RX_NOT_EFFECTIVE.
    """
    request: patient_pb2.MakeQrRequest = command.request
    seen = _own(tx, command)
    if isinstance(seen, Refused):
        return seen
    refused = orders.insured(tx, seen) or orders.fillable(seen)
    if refused is not None:
        return refused
    value = tx.draw.token(QR_LENGTH)
    # The issuing area's rules: the value is not for any particular pharmacy yet.
    lifetime_ms = tx.rules(request.rx_no[:6]).duration_ms("qr_lifetime")
    issued = events_pb2.QrIssued(
        secret_mac=tx.mac("rx_qr", value), expires_at_ms=tx.now_ms + lifetime_ms, key_version=tx.mac_key_version
    )
    tx.emit(PRESCRIPTION, seen.key, "authorization.qr_issued", issued)
    reply = patient_pb2.MakeQrResponse(rx_qr=value, expires_at_ms=issued.expires_at_ms)
    return Accepted(reply, targets=seen.targets)


# ---- delivery ----


def sign_code_secret(delivery_no: str, sign_code: str) -> str:
    """What the keyed hash of a sign-for code covers: six digits alone would be alike in many deliveries."""
    return f"{delivery_no}/{sign_code}"


def request_delivery(tx: Draft, command: Command) -> Outcome:
    """Ask for delivery; asking again gives a new sign-for code and unlocks (X-23).

    Leaves `delivery.requested`, or `delivery.sign_code_renewed`, which leaves address and phone as they were.
    Refusals: VCH_REVOKED, VCH_NO_DELEGATION, RX_UNKNOWN, INST_UNKNOWN, ORDER_HOLD_LOST (no open order there),
    INPUT_MALFORMED (no delivery in that area), DLV_BACKWARD (signed for, lost or on its way back).
    """
    request: patient_pb2.RequestDeliveryRequest = command.request
    seen = _own(tx, command, request.pharmacy_code)
    if isinstance(seen, Refused):
        return seen
    pharmacy = guards.institution(tx, request.pharmacy_code, "pharmacy_code")
    if isinstance(pharmacy, Refused):
        return guards.about(pharmacy, *seen.targets)
    open_orders = seen.open_orders()
    if not open_orders:
        return seen.refuse("ORDER_HOLD_LOST", "pharmacy_code")
    if not mode_allowed(tx, pharmacy, common_pb2.FULFILMENT_MODE_DELIVERY):
        return seen.refuse("INPUT_MALFORMED", "pharmacy_code", order=open_orders[-1])
    # The newest order first: it is the one that the patient has in mind.
    for order in reversed(open_orders):
        state = orders.delivery_status(order)
        if _may(seen, Machine.DELIVERY, state, "request"):
            return _requested(tx, seen, order, request, orders.new_number(tx, pharmacy.area_code))
        if _may(seen, Machine.DELIVERY, state, "request again"):
            return _renewed(tx, seen, order)
    newest = open_orders[-1]
    detail = {"delivery": orders.delivery_status(newest)}
    return seen.refuse("DLV_BACKWARD", "pharmacy_code", order=newest, detail=detail)


def _requested(
    tx: Draft, seen: Seen, order: state_pb2.Order, request: patient_pb2.RequestDeliveryRequest, delivery_no: str
) -> Accepted:
    code = tx.draw.digits(SIGN_CODE_DIGITS)
    requested = events_pb2.DeliveryRequested(
        order_no=order.order_no,
        delivery_no=delivery_no,
        address=request.address,
        phone=request.phone,
        sign_code_mac=tx.mac("sign_code", sign_code_secret(delivery_no, code)),
        key_version=tx.mac_key_version,
    )
    tx.emit(PRESCRIPTION, seen.key, "delivery.requested", requested)
    return Accepted(patient_pb2.RequestDeliveryResponse(delivery_no=delivery_no, sign_code=code), targets=seen.targets)


def _renewed(tx: Draft, seen: Seen, order: state_pb2.Order) -> Accepted:
    code, delivery_no = tx.draw.digits(SIGN_CODE_DIGITS), order.delivery.delivery_no
    renewed = events_pb2.SignCodeRenewed(
        order_no=order.order_no,
        sign_code_mac=tx.mac("sign_code", sign_code_secret(delivery_no, code)),
        key_version=tx.mac_key_version,
    )
    tx.emit(PRESCRIPTION, seen.key, "delivery.sign_code_renewed", renewed)
    return Accepted(patient_pb2.RequestDeliveryResponse(delivery_no=delivery_no, sign_code=code), targets=seen.targets)


HANDLERS: Final[Mapping[str, Handler]] = {
    "PatientService/ChoosePharmacy": choose_pharmacy,
    "PatientService/CancelOrder": cancel_order,
    "PatientService/MakeQr": make_qr,
    "PatientService/RequestDelivery": request_delivery,
}
