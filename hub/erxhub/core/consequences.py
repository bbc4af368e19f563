"""What follows by itself when a thing ends: the HUB rows of the transition tables.

Owns the consequences that several commands and the timers share: what ends with an order, with the force of a
prescription, and with a hold under a requested withdrawal. It never decides whether the first step was allowed, never
refuses, and never emits the event that starts it, except `prescription.undone` after a hold.
"""

from __future__ import annotations

from typing import Final

from erxhub.core import lifecycle
from erxhub.core.fold_order import order_of
from erxhub.core.lifecycle import Machine, Role
from erxhub.core.model import Draft
from erxhub.core.statuses import state_name
from erxhub.v1 import common_pb2, events_pb2, state_pb2

PRESCRIPTION: Final = "prescription"
NO_LONGER_EFFECTIVE: Final = "prescription no longer effective"

UNTOUCHED: Final = frozenset({"UNUSED"})
"""Use states in which nobody holds the prescription and nothing was ever taken: it can be withdrawn as a whole."""


def current(tx: Draft, rx_key: bytes) -> state_pb2.PrescriptionState:
    """The state of a prescription that is known to exist."""
    state = tx.state(rx_key, state_pb2.PrescriptionState)
    assert state is not None, "consequences are asked for existing prescriptions only"
    return state


def statuses(state: state_pb2.PrescriptionState) -> common_pb2.RxStatuses:
    """The statuses side by side, as replies show them."""
    return common_pb2.RxStatuses(rx=state.rx_status, use=state.use_status, undo_requested=state.undo_requested)


def revoke_authorizations(tx: Draft, rx_key: bytes, reason: str = NO_LONGER_EFFECTIVE, pharmacy_code: str = "") -> None:
    """Revoke every ISSUED authorisation of the prescription, or only those of one pharmacy."""
    issued = [
        held.secret_mac
        for held in current(tx, rx_key).authorizations
        if lifecycle.permits(Machine.AUTHORIZATION, state_name(Machine.AUTHORIZATION, held.status), "revoke", Role.HUB)
        and pharmacy_code in ("", held.pharmacy_code)
    ]
    for secret_mac in issued:
        revoked = events_pb2.AuthorizationRevoked(secret_mac=secret_mac, reason=reason)
        tx.emit(PRESCRIPTION, rx_key, "authorization.revoked", revoked)


def end_with_order(tx: Draft, rx_key: bytes, order_no: str, reason: str) -> None:
    """Lapse the open quote of an order and cancel its delivery that nobody picked up.

    For every way in which an order ends before its goods are out; call it before or after the order's own event.
    """
    order = order_of(current(tx, rx_key), order_no)
    if lifecycle.can_happen(
        Machine.SETTLEMENT, state_name(Machine.SETTLEMENT, order.claim.status), "settlement.quote_expired"
    ):
        lapsed = events_pb2.SettlementQuoteExpired(order_no=order_no, quote_id=order.claim.quote_id)
        tx.emit(PRESCRIPTION, rx_key, "settlement.quote_expired", lapsed)
    cancel_delivery(tx, rx_key, order, reason)


def cancel_delivery(tx: Draft, rx_key: bytes, order: state_pb2.Order, reason: str) -> None:
    """Cancel the order's delivery, if one was asked for and nobody picked it up."""
    if lifecycle.permits(Machine.DELIVERY, state_name(Machine.DELIVERY, order.delivery.status), "cancel", Role.HUB):
        cancelled = events_pb2.DeliveryCancelled(order_no=order.order_no, reason=reason)
        tx.emit(PRESCRIPTION, rx_key, "delivery.cancelled", cancelled)


def end_effective(tx: Draft, rx_key: bytes, reason: str = NO_LONGER_EFFECTIVE) -> None:
    """End what hangs on a prescription, right before it stops being in force for good.

    Revokes the ISSUED authorisations and expires every order that is not settled yet, with its open quote and its
    requested delivery. A hold that ends so is not counted against its pharmacy (`hold_lapsed` is false). A settled
    order stays: only undo, reversal or goods out end it. The caller emits the event that ends the prescription.
    """
    revoke_authorizations(tx, rx_key, reason)
    open_orders = [
        order.order_no
        for order in current(tx, rx_key).orders
        if lifecycle.permits(Machine.ORDER, state_name(Machine.ORDER, order.status), "time over", Role.HUB)
    ]
    for order_no in open_orders:
        end_with_order(tx, rx_key, order_no, reason)
        tx.emit(PRESCRIPTION, rx_key, "order.expired", events_pb2.OrderExpired(order_no=order_no, hold_lapsed=False))


def after_hold_ended(tx: Draft, rx_key: bytes) -> None:
    """Let a requested withdrawal take effect, when the hold that stood in its way is over.

    Call it after the event that ended a hold (released, cancelled, expired). Does nothing without a request, or when
    goods of an earlier hold are out. The event carries the doctor and the reason of the request. A frozen prescription
    waits until it is unfrozen.
    """
    state = current(tx, rx_key)
    if not state.undo_requested or state_name(Machine.USE, state.use_status) not in UNTOUCHED:
        return
    if not lifecycle.permits(Machine.RX, state_name(Machine.RX, state.rx_status), "the hold ended", Role.HUB):
        return
    undone = events_pb2.PrescriptionUndone(doctor_code=state.undo_doctor_code, reason=state.undo_reason)
    end_effective(tx, rx_key, "prescription undone")
    tx.emit(PRESCRIPTION, rx_key, "prescription.undone", undone)
