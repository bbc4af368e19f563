"""Decisions about a delivery: start, each further step, and the signature at the door.

Owns the order and the times of the steps and the proof that the right person took the goods. It never lets goods travel
that are not out, and a wrong sign-for code always counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final, NamedTuple

from erxhub.core import guards, orders
from erxhub.core.consequences import current
from erxhub.core.fold_order import order_of
from erxhub.core.goods import STAFF_KINDS
from erxhub.core.lifecycle import Machine, Role, permits
from erxhub.core.model import Accepted, Command, Draft, Handler, Outcome, Refused
from erxhub.core.orders import PRESCRIPTION, Seen, delivery_status, delivery_steps
from erxhub.core.patient import sign_code_secret
from erxhub.core.refusals import CATALOGUE
from erxhub.policy.rules import Rules
from erxhub.v1 import dispensing_pb2, events_pb2, prescribing_pb2, registry_pb2, signed_pb2, state_pb2

_COURIER_KINDS: Final = (registry_pb2.PRACTITIONER_KIND_COURIER,)
_METRES_PER_KM: Final = 1_000


class _Reported(NamedTuple):
    """A step as the tables know it. `role` acts; `staff_may`: pharmacy staff may report it instead of the courier."""

    trigger: str
    role: Role
    event: str
    staff_may: bool = False


_STEPS: Final[Mapping[int, _Reported]] = {
    dispensing_pb2.DELIVERY_STEP_ON_THE_WAY: _Reported("on the way", Role.COURIER, "delivery.in_transit"),
    dispensing_pb2.DELIVERY_STEP_ARRIVE: _Reported("arrive", Role.COURIER, "delivery.arrived"),
    # The courier reports what the patient or delegate said.
    dispensing_pb2.DELIVERY_STEP_REFUSE: _Reported("refuse", Role.PATIENT, "delivery.refused"),
    dispensing_pb2.DELIVERY_STEP_LOSE: _Reported("lose", Role.COURIER, "delivery.lost", staff_may=True),
    dispensing_pb2.DELIVERY_STEP_GO_BACK: _Reported("go back", Role.COURIER, "delivery.returning"),
    dispensing_pb2.DELIVERY_STEP_RECEIVED: _Reported("received", Role.PHARMACY, "delivery.returned", staff_may=True),
}


def _refuse(seen: Seen, order: state_pb2.Order, code: str, field: str, **detail: str) -> Refused:
    shown = {"delivery": delivery_status(order), **detail}
    return seen.refuse(code, field, order=order, detail=shown, legal=delivery_steps(order))


# ---- start ----


def start(tx: Draft, command: Command) -> Outcome:
    """Assign the courier, who picks the goods up (X-18). Leaves `delivery.assigned` and `delivery.picked_up`.

    A long way, or a drug that needs cooling on a warm way, is a warning in the reply and no refusal.
    Refusals: INST_UNKNOWN, AGR_INACTIVE, RX_UNKNOWN, PSN_INACTIVE, DLV_NOT_OUT (not out, or nobody asked for delivery),
    DLV_BACKWARD (started before), ORDER_HOLD_LOST, DLV_COURIER, DLV_TIME.
    """
    request: dispensing_pb2.StartDeliveryRequest = command.request
    orders.want(tx, command, request.rx_no, [("practitioner", request.courier_code.encode())])
    step = orders.forward(tx, command, request.rx_no, with_drugs=True)
    if isinstance(step, Refused):
        return step
    seen = step.seen
    order = _to_start(seen)
    if isinstance(order, Refused):
        return order
    courier = guards.practitioner(
        tx, request.courier_code, _COURIER_KINDS, seen.pharmacy_code, "DLV_COURIER", "courier_code"
    )
    if isinstance(courier, Refused):
        return guards.about(courier, *seen.targets)
    if not order.dispense.out_at_ms <= request.picked_up_at_ms <= tx.now_ms:
        out_at_ms = str(order.dispense.out_at_ms)
        return _refuse(seen, order, "DLV_TIME", "picked_up_at_ms", not_before_ms=out_at_ms)
    warnings = _implausible(tx, order, request, tx.rules(command.caller.area_code))
    order_no, delivery_no = order.order_no, order.delivery.delivery_no
    assigned = events_pb2.DeliveryAssigned(
        order_no=order_no,
        company=request.company,
        courier_code=request.courier_code,
        cold_chain=request.cold_chain,
    )
    tx.emit(PRESCRIPTION, seen.key, "delivery.assigned", assigned)
    moved = events_pb2.DeliveryMoved(
        order_no=order_no, at_ms=request.picked_up_at_ms, courier_code=request.courier_code
    )
    tx.emit(PRESCRIPTION, seen.key, "delivery.picked_up", moved, actor=request.courier_code)
    reply = dispensing_pb2.StartDeliveryResponse(
        delivery_no=delivery_no, status=order_of(current(tx, seen.key), order_no).delivery.status, warnings=warnings
    )
    return Accepted(reply, targets=seen.targets)


def _to_start(seen: Seen) -> state_pb2.Order | Refused:
    """The caller's oldest order whose goods are out and whose delivery was asked for and not started."""
    own = seen.open_orders()
    is_out = [
        order
        for order in own
        if permits(Machine.DISPENSE, orders.dispense_status(order), "give to courier", Role.COURIER)
    ]
    for order in is_out:
        if permits(Machine.DELIVERY, delivery_status(order), "assign", Role.PHARMACY):
            return order
    if is_out:
        return _refuse(seen, is_out[0], "DLV_NOT_OUT", "rx_no", missing_step="request")
    gone = [order for order in seen.own_orders() if order.claim.goods_out]
    held = seen.held_order()
    if held is not None:
        return _refuse(seen, held, "DLV_NOT_OUT", "rx_no", missing_step="goods out")
    if gone:
        return _refuse(seen, gone[-1], "DLV_BACKWARD", "rx_no")
    if own:
        return _refuse(seen, own[-1], "DLV_NOT_OUT", "rx_no", missing_step="goods out")
    return seen.refuse("ORDER_HOLD_LOST", "rx_no")


def _implausible(
    tx: Draft, order: state_pb2.Order, request: dispensing_pb2.StartDeliveryRequest, rules: Rules
) -> list[prescribing_pb2.Warning]:
    """What a person should look at again: the distance, and lines that need cooling on a way without it."""
    lines = {0} if request.distance_m > rules.integer("delivery_distance_max_km") * _METRES_PER_KM else set()
    if not request.cold_chain:
        drugs = orders.drugs_of(tx, [lot.drug_code for lot in order.dispense.lots])
        for lot in order.dispense.lots:
            drug = drugs.get(lot.drug_code)
            if drug is not None and drug.cold_chain:
                lines.add(lot.line_no)
    kind = CATALOGUE["DLV_IMPLAUSIBLE"]
    return [
        prescribing_pb2.Warning(code=kind.code, line_no=line_no, message_en=kind.en, message_zh=kind.zh)
        for line_no in sorted(lines)
    ]


# ---- further steps ----


def _delivery(seen: Seen, delivery_no: str, field: str) -> state_pb2.Order | Refused:
    """The caller's order with this delivery."""
    delivered = [order for order in seen.own_orders() if order.delivery.delivery_no]
    for order in delivered:
        if order.delivery.delivery_no == delivery_no:
            return order
    if delivered:
        return seen.refuse("INPUT_MALFORMED", field)
    return seen.refuse("DLV_NOT_OUT", "rx_no", detail={"missing_step": "request"})


def update(tx: Draft, command: Command) -> Outcome:
    """Report one step: on the way, arrived, refused, lost, going back, received (X-18). Leaves that step's event.

    What was picked up goes its way: neither the agreement nor the person's insurance is looked at again, only the
    courier.
    Refusals: INST_UNKNOWN, RX_UNKNOWN, DLV_NOT_OUT, INPUT_MALFORMED (another delivery), DLV_BACKWARD, DLV_COURIER (not
    the assigned one, or suspended), DLV_TIME.
    """
    request: dispensing_pb2.UpdateDeliveryRequest = command.request
    reported = _STEPS[request.step]
    orders.want(tx, command, request.rx_no, [("practitioner", request.courier_code.encode())])
    step = orders.finishing(tx, command, request.rx_no)
    if isinstance(step, Refused):
        return step
    seen = step.seen
    order = _delivery(seen, request.delivery_no, "delivery_no")
    if isinstance(order, Refused):
        return order
    if not permits(Machine.DELIVERY, delivery_status(order), reported.trigger, reported.role):
        return _refuse(seen, order, "DLV_BACKWARD", "step")
    if not _may_report(tx, seen, order, reported, request.courier_code):
        return _refuse(seen, order, "DLV_COURIER", "courier_code")
    if not order.delivery.last_step_at_ms <= request.at_ms <= tx.now_ms:
        return _refuse(seen, order, "DLV_TIME", "at_ms", not_before_ms=str(order.delivery.last_step_at_ms))
    order_no = order.order_no
    moved = events_pb2.DeliveryMoved(
        order_no=order_no,
        at_ms=request.at_ms,
        courier_code=request.courier_code,
        latitude_e6=request.latitude_e6,
        longitude_e6=request.longitude_e6,
        note=request.note,
    )
    tx.emit(PRESCRIPTION, seen.key, reported.event, moved, actor=request.courier_code)
    status = order_of(current(tx, seen.key), order_no).delivery.status
    return Accepted(dispensing_pb2.UpdateDeliveryResponse(status=status), targets=seen.targets)


def _may_report(tx: Draft, seen: Seen, order: state_pb2.Order, reported: _Reported, code: str) -> bool:
    """The assigned courier reports his steps; a loss and a receipt also the pharmacy, by itself or by its staff.

    Whoever reports is registered there and not suspended.
    """
    is_courier = code == order.delivery.courier_code
    # The goods are received by the pharmacy, not by the one who brings them.
    if reported.role is Role.PHARMACY if is_courier else not reported.staff_may:
        return False
    if not code:
        return True
    kinds = _COURIER_KINDS if is_courier else STAFF_KINDS
    found = guards.practitioner(tx, code, kinds, seen.pharmacy_code, "DLV_COURIER", "courier_code")
    return not isinstance(found, Refused)


# ---- sign for ----


def sign(tx: Draft, command: Command) -> Outcome:
    """The patient or his delegate signs for the goods, by sign-for code or voucher reference (签收, X-23).

    Leaves `delivery.signed` and `order.completed`. A wrong code leaves `delivery.try_counted` with the refusal, and the
    last allowed one locks the code.
    As with every step after the pick-up, agreement and insurance are not looked at again.
    Refusals: SIG_*, RX_TIME, INPUT_MALFORMED, INST_CODE, INST_IMPERSONATION, INST_UNKNOWN, RX_UNKNOWN, DLV_NOT_OUT,
    DLV_BACKWARD, DLV_TIME, DLV_SIGN_CODE, VCH_*.
    """
    request: dispensing_pb2.SignDeliveryRequest = command.request
    if request.sign_code and request.voucher_ref:
        return Refused("INPUT_MALFORMED", field="voucher_ref")
    claimed = orders.claimed(command, signed_pb2.SignDeliveryStatement)
    if isinstance(claimed, Refused):
        return claimed
    voucher_names = tx.secret_names("voucher_ref", request.voucher_ref) if request.voucher_ref else []
    orders.want(tx, command, claimed.rx_no, [*voucher_names, *orders.key_names(command)])
    step = orders.finishing(tx, command, claimed.rx_no)
    if isinstance(step, Refused):
        return step
    seen = step.seen
    statement = orders.proven_by_seal(tx, command, signed_pb2.SignDeliveryStatement, seen.targets)
    if isinstance(statement, Refused):
        return statement
    order = _delivery(seen, statement.delivery_no, "statement.delivery_no")
    if isinstance(order, Refused):
        return order
    if not permits(Machine.DELIVERY, delivery_status(order), "sign for", Role.PATIENT):
        return _refuse(seen, order, "DLV_BACKWARD" if order.claim.goods_out else "DLV_NOT_OUT", "statement.delivery_no")
    if statement.signed_at_ms < order.delivery.last_step_at_ms:
        not_before_ms = str(order.delivery.last_step_at_ms)
        return _refuse(seen, order, "DLV_TIME", "statement.signed_at_ms", not_before_ms=not_before_ms)
    rules = tx.rules(command.caller.area_code)
    signed = events_pb2.DeliverySigned(order_no=order.order_no, statement=request.statement)
    causes = []
    if request.voucher_ref:
        business_type = rules.text("business_type_hand_over")
        shown = orders.same_person(tx, command, seen, request.voucher_ref, (business_type,))
        if isinstance(shown, Refused):
            return shown
        signed.voucher_key = shown.voucher_key
        causes.append(tx.leaf(shown.voucher_key))
    else:
        refused = _wrong_code(tx, seen, order, request.sign_code, rules.integer("sign_code_tries"))
        if refused is not None:
            return refused
        signed.by_sign_code = True
    tx.emit(PRESCRIPTION, seen.key, "delivery.signed", signed, causes=causes)
    completed = events_pb2.OrderCompleted(order_no=signed.order_no)
    tx.emit(PRESCRIPTION, seen.key, "order.completed", completed)
    status = order_of(current(tx, seen.key), signed.order_no).delivery.status
    return Accepted(dispensing_pb2.SignDeliveryResponse(status=status), targets=seen.targets)


def _wrong_code(tx: Draft, seen: Seen, order: state_pb2.Order, sign_code: str, tries_max: int) -> Refused | None:
    """Whether the code is not the one that the patient has; a try is counted, and kept with the refusal."""
    delivery = order.delivery
    if delivery.locked or not sign_code:
        return _refuse(seen, order, "DLV_SIGN_CODE", "sign_code", locked=str(delivery.locked).lower())
    if tx.mac_matches("sign_code", sign_code_secret(delivery.delivery_no, sign_code), delivery.sign_code_mac):
        return None
    tries_left = max(tries_max - delivery.wrong_tries - 1, 0)
    locked = not tries_left
    refused = _refuse(seen, order, "DLV_SIGN_CODE", "sign_code", locked=str(locked).lower(), tries_left=str(tries_left))
    counted = events_pb2.DeliveryTryCounted(order_no=order.order_no, locked=locked)
    tx.emit(PRESCRIPTION, seen.key, "delivery.try_counted", counted)
    return dataclasses.replace(refused, keeps_events=True)


HANDLERS: Final[Mapping[str, Handler]] = {
    "DispensingService/StartDelivery": start,
    "DispensingService/UpdateDelivery": update,
    "DispensingService/SignDelivery": sign,
}
