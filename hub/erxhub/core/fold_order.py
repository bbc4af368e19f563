"""What events do to the orders of a prescription.

Owns review, settlement, goods and delivery, as the prescription's state keeps them by order. It never decides or
refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from erxhub.core import lifecycle
from erxhub.core.claim_arithmetic import parse_quantity_e4
from erxhub.core.events import At, Folds
from erxhub.core.fold_prescription import move_use
from erxhub.core.lifecycle import Machine
from erxhub.core.statuses import move, state_name
from erxhub.v1 import common_pb2, events_pb2, state_pb2


def order_of(state: state_pb2.PrescriptionState, order_no: str) -> state_pb2.Order:
    """The order of a prescription that is known to have it."""
    for order in state.orders:
        if order.order_no == order_no:
            return order
    raise LookupError(order_no)


def _move_order(order: state_pb2.Order, event: str) -> None:
    order.status = common_pb2.OrderStatus.ValueType(move(Machine.ORDER, order.status, event))


def _move_review(order: state_pb2.Order, event: str) -> None:
    order.review = common_pb2.ReviewStatus.ValueType(move(Machine.REVIEW, order.review, event))


def _order_created(state: state_pb2.PrescriptionState, payload: events_pb2.OrderCreated, at: At) -> None:
    # It replaces what its pharmacy had and never downloaded, so that the state does not grow with every choice.
    kept = [
        order
        for order in state.orders
        if order.pharmacy_code != payload.pharmacy_code
        or order.downloaded_at_ms
        or state_name(Machine.ORDER, order.status) not in lifecycle.ENDED_ORDER
    ]
    del state.orders[:]
    state.orders.extend(kept)
    order = state.orders.add()
    order.order_no = payload.order_no
    order.pharmacy_code = payload.pharmacy_code
    order.mode = payload.mode
    order.by_patient = payload.by_patient
    order.created_at_ms = at.recorded_at_ms
    _move_order(order, "order.created")
    _move_review(order, "order.created")


def _order_held(state: state_pb2.PrescriptionState, payload: events_pb2.OrderHeld, at: At) -> None:
    order = order_of(state, payload.order_no)
    before = state.use_status
    move_use(state, "order.held")
    state.use_before_hold = before
    _move_order(order, "order.held")
    _move_review(order, "order.held")
    order.hold_until_ms = payload.hold_until_ms


def _downloaded(state: state_pb2.PrescriptionState, payload: events_pb2.PrescriptionDownloaded, at: At) -> None:
    order = order_of(state, payload.order_no)
    _move_order(order, "prescription.downloaded")
    if not order.downloaded_at_ms:
        order.downloaded_at_ms = at.recorded_at_ms


def _order_ended(event: str) -> Callable[[Any, Any, At], None]:
    def fold(state: state_pb2.PrescriptionState, payload: Any, at: At) -> None:
        order = order_of(state, payload.order_no)
        held = state_name(Machine.ORDER, order.status) in lifecycle.HOLDING
        _move_order(order, event)
        if held:
            move_use(state, event)
        if lifecycle.can_happen(Machine.REVIEW, state_name(Machine.REVIEW, order.review), event):
            _move_review(order, event)
        if event == "order.expired" and payload.hold_lapsed:
            _count_lapse(state, order.pharmacy_code)

    return fold


def _count_lapse(state: state_pb2.PrescriptionState, pharmacy_code: str) -> None:
    for lapsed in state.lapsed:
        if lapsed.pharmacy_code == pharmacy_code:
            lapsed.count += 1
            return
    state.lapsed.add(pharmacy_code=pharmacy_code, count=1)


def _order_completed(state: state_pb2.PrescriptionState, payload: Any, at: At) -> None:
    _move_order(order_of(state, payload.order_no), "order.completed")


def _review(event: str) -> Callable[[Any, Any, At], None]:
    def fold(state: state_pb2.PrescriptionState, payload: events_pb2.ReviewGiven, at: At) -> None:
        order = order_of(state, payload.order_no)
        _move_review(order, event)
        if lifecycle.can_happen(Machine.ORDER, state_name(Machine.ORDER, order.status), event):
            _move_order(order, event)
        order.reviewer_code = payload.pharmacist_code
        order.review_opinion = payload.opinion
        order.reviewed_at_ms = at.recorded_at_ms

    return fold


# ---- settlement ----


def _move_claim(claim: state_pb2.Claim, event: str) -> None:
    claim.status = common_pb2.SettlementStatus.ValueType(move(Machine.SETTLEMENT, claim.status, event))


def _quoted(state: state_pb2.PrescriptionState, payload: events_pb2.SettlementQuoted, at: At) -> None:
    order = order_of(state, payload.order_no)
    before = order.claim.status
    _move_order(order, "settlement.quoted")
    order.claim.CopyFrom(payload.claim)
    order.claim.status = before
    _move_claim(order.claim, "settlement.quoted")
    order.claim.quoted_at_ms = at.recorded_at_ms
    if payload.hold_until_ms != order.hold_until_ms:
        order.hold_extended = True
        order.hold_until_ms = payload.hold_until_ms


def _quote_expired(state: state_pb2.PrescriptionState, payload: events_pb2.SettlementQuoteExpired, at: At) -> None:
    _move_claim(order_of(state, payload.order_no).claim, "settlement.quote_expired")


def _settled(event: str) -> Callable[[Any, Any, At], None]:
    def fold(state: state_pb2.PrescriptionState, payload: Any, at: At) -> None:
        order = order_of(state, payload.order_no)
        before = order.claim.status
        _move_order(order, event)
        order.claim.CopyFrom(payload.claim)
        order.claim.status = before
        _move_claim(order.claim, event)
        order.claim.settled_at_ms = at.recorded_at_ms
        order.claim.settle_request_id = at.request_id

    return fold


def _settlement_undone(state: state_pb2.PrescriptionState, payload: events_pb2.SettlementUndone, at: At) -> None:
    claim = order_of(state, payload.order_no).claim
    _move_claim(claim, "settlement.undone")
    claim.undo_request_id = payload.undo_request_id
    claim.account_version_after_undo = payload.account_version


def _settlement_reversed(state: state_pb2.PrescriptionState, payload: events_pb2.SettlementReversed, at: At) -> None:
    order = order_of(state, payload.order_no)
    if payload.target != events_pb2.REVERSAL_OF_UNDO:
        _move_claim(order.claim, "settlement.reversed")
        return
    _move_claim(order.claim, "settlement.reversed undo")
    order.claim.undo_request_id = ""
    _move_order(order, "settlement.reversed undo")
    before = state.use_status
    move_use(state, "settlement.reversed undo")
    state.use_before_hold = before


# ---- dispense ----


def _move_dispense(order: state_pb2.Order, event: str) -> None:
    order.dispense.status = common_pb2.DispenseStatus.ValueType(move(Machine.DISPENSE, order.dispense.status, event))


def _dispense_moved(event: str) -> Callable[[Any, Any, At], None]:
    def fold(state: state_pb2.PrescriptionState, payload: Any, at: At) -> None:
        _move_dispense(order_of(state, payload.order_no), event)

    return fold


def _picked(state: state_pb2.PrescriptionState, payload: events_pb2.DispensePicked, at: At) -> None:
    order = order_of(state, payload.order_no)
    _move_dispense(order, "dispense.picked")
    order.dispense.dispenser_code = payload.dispenser_code


def _checked(state: state_pb2.PrescriptionState, payload: events_pb2.DispenseChecked, at: At) -> None:
    order = order_of(state, payload.order_no)
    _move_dispense(order, "dispense.checked")
    order.dispense.checker_code = payload.checker_code


def _outbound(state: state_pb2.PrescriptionState, payload: events_pb2.DispenseOutbound, at: At) -> None:
    order = order_of(state, payload.order_no)
    _move_dispense(order, "dispense.outbound")
    _move_order(order, "dispense.outbound")
    order.dispense.sale_no = payload.sale_no
    order.dispense.out_at_ms = at.recorded_at_ms
    order.dispense.lots.extend(payload.lots)
    order.claim.goods_out = True
    uses = {use.line_no: use for use in state.lines}
    for lot in payload.lots:
        uses[lot.line_no].out_e4 += parse_quantity_e4(lot.quantity)


def _handed_over(state: state_pb2.PrescriptionState, payload: events_pb2.HandedOver, at: At) -> None:
    order = order_of(state, payload.order_no)
    _move_dispense(order, "dispense.handed_over")
    _move_order(order, "dispense.handed_over")
    order.handed_over_at_ms = at.recorded_at_ms


# ---- delivery ----


def _move_delivery(order: state_pb2.Order, event: str) -> None:
    order.delivery.status = common_pb2.DeliveryStatus.ValueType(move(Machine.DELIVERY, order.delivery.status, event))


def _delivery_requested(state: state_pb2.PrescriptionState, payload: events_pb2.DeliveryRequested, at: At) -> None:
    order = order_of(state, payload.order_no)
    _move_delivery(order, "delivery.requested")
    order.mode = common_pb2.FULFILMENT_MODE_DELIVERY
    order.delivery.delivery_no = payload.delivery_no
    order.delivery.sign_code_mac = payload.sign_code_mac


def _sign_code_renewed(state: state_pb2.PrescriptionState, payload: events_pb2.SignCodeRenewed, at: At) -> None:
    delivery = order_of(state, payload.order_no)
    _move_delivery(delivery, "delivery.sign_code_renewed")
    delivery.delivery.sign_code_mac = payload.sign_code_mac
    delivery.delivery.wrong_tries = 0
    delivery.delivery.locked = False


def _delivery_try_counted(state: state_pb2.PrescriptionState, payload: events_pb2.DeliveryTryCounted, at: At) -> None:
    order = order_of(state, payload.order_no)
    _move_delivery(order, "delivery.try_counted")
    order.delivery.wrong_tries += 1
    order.delivery.locked = payload.locked


def _delivery_assigned(state: state_pb2.PrescriptionState, payload: events_pb2.DeliveryAssigned, at: At) -> None:
    order = order_of(state, payload.order_no)
    _move_delivery(order, "delivery.assigned")
    order.delivery.company = payload.company
    order.delivery.courier_code = payload.courier_code
    order.delivery.cold_chain = payload.cold_chain


def _delivery_moved(event: str) -> Callable[[Any, Any, At], None]:
    def fold(state: state_pb2.PrescriptionState, payload: events_pb2.DeliveryMoved, at: At) -> None:
        order = order_of(state, payload.order_no)
        _move_delivery(order, event)
        if event == "delivery.picked_up":
            _move_dispense(order, event)
        if lifecycle.can_happen(Machine.ORDER, state_name(Machine.ORDER, order.status), event):
            _move_order(order, event)
        order.delivery.last_step_at_ms = payload.at_ms
        order.delivery.latitude_e6 = payload.latitude_e6
        order.delivery.longitude_e6 = payload.longitude_e6

    return fold


def _delivery_ended(event: str) -> Callable[[Any, Any, At], None]:
    def fold(state: state_pb2.PrescriptionState, payload: Any, at: At) -> None:
        _move_delivery(order_of(state, payload.order_no), event)

    return fold


FOLDS: Final[Folds] = {
    ("prescription", "prescription.downloaded"): _downloaded,
    ("prescription", "order.created"): _order_created,
    ("prescription", "order.held"): _order_held,
    ("prescription", "order.released"): _order_ended("order.released"),
    ("prescription", "order.cancelled"): _order_ended("order.cancelled"),
    ("prescription", "order.expired"): _order_ended("order.expired"),
    ("prescription", "order.completed"): _order_completed,
    ("prescription", "review.passed"): _review("review.passed"),
    ("prescription", "review.rejected"): _review("review.rejected"),
    ("prescription", "review.returned_to_doctor"): _review("review.returned_to_doctor"),
    ("prescription", "settlement.quoted"): _quoted,
    ("prescription", "settlement.quote_expired"): _quote_expired,
    ("prescription", "settlement.committed"): _settled("settlement.committed"),
    ("prescription", "settlement.self_paid"): _settled("settlement.self_paid"),
    ("prescription", "settlement.undone"): _settlement_undone,
    ("prescription", "settlement.reversed"): _settlement_reversed,
    ("prescription", "dispense.ready"): _dispense_moved("dispense.ready"),
    ("prescription", "dispense.picked"): _picked,
    ("prescription", "dispense.checked"): _checked,
    ("prescription", "dispense.outbound"): _outbound,
    ("prescription", "dispense.voided"): _dispense_moved("dispense.voided"),
    ("prescription", "dispense.handed_over"): _handed_over,
    ("prescription", "delivery.requested"): _delivery_requested,
    ("prescription", "delivery.sign_code_renewed"): _sign_code_renewed,
    ("prescription", "delivery.try_counted"): _delivery_try_counted,
    ("prescription", "delivery.assigned"): _delivery_assigned,
    ("prescription", "delivery.picked_up"): _delivery_moved("delivery.picked_up"),
    ("prescription", "delivery.in_transit"): _delivery_moved("delivery.in_transit"),
    ("prescription", "delivery.arrived"): _delivery_moved("delivery.arrived"),
    ("prescription", "delivery.refused"): _delivery_moved("delivery.refused"),
    ("prescription", "delivery.lost"): _delivery_moved("delivery.lost"),
    ("prescription", "delivery.returning"): _delivery_moved("delivery.returning"),
    ("prescription", "delivery.returned"): _delivery_moved("delivery.returned"),
    ("prescription", "delivery.signed"): _delivery_ended("delivery.signed"),
    ("prescription", "delivery.cancelled"): _delivery_ended("delivery.cancelled"),
}
