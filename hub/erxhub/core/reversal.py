"""Decisions that give money back, or let a settlement stand again: undo and reverse.

Owns what ends with a settlement that was given back. It never computes an amount: what was taken is restored exactly
(I20). What is out it never takes back: that is a return.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from erxhub.core import account, guards, orders
from erxhub.core.consequences import after_hold_ended, current, end_with_order, statuses
from erxhub.core.fold_order import order_of
from erxhub.core.lifecycle import Machine, Role, permits
from erxhub.core.model import Accepted, Command, Draft, Handler, Outcome, Refused
from erxhub.core.orders import PRESCRIPTION, Seen, claim_status, order_status
from erxhub.core.statuses import state_name
from erxhub.policy.pack import china_date
from erxhub.v1 import dispensing_pb2, events_pb2, state_pb2

SETTLE: Final = "DispensingService/Settle"
UNDO: Final = "DispensingService/UndoSettlement"

REVERSIBLE: Final[Mapping[str, str]] = {"2102": SETTLE, "2103": UNDO}
"""National numbers of what a pharmacy may reverse (T-21), with the call behind each."""


# ---- undo ----


def undo(tx: Draft, command: Command) -> Outcome:
    """Give a settlement back, as a business act, before goods are out and on the same day in China (2103).

    Leaves `account.restored` when the claim had moved the account, `settlement.undone`, `dispense.voided`,
    `order.released`; a requested withdrawal takes effect then (`prescription.undone`).
    Refusals: INST_UNKNOWN, RX_UNKNOWN, SETL_TERMINAL (no such settlement here, given back already, or another day),
    SETL_NOT_REVERSIBLE.
    """
    request: dispensing_pb2.UndoSettlementRequest = command.request
    orders.want(tx, command, request.rx_no)
    step = orders.finishing(tx, command, request.rx_no)
    if isinstance(step, Refused):
        return step
    seen = step.seen
    order = next((order for order in seen.own_orders() if order.claim.settlement_id == request.settlement_id), None)
    refused = _not_returnable(seen, order, "undo", "settlement_id")
    if refused is not None or order is None:
        return refused or seen.refuse("SETL_TERMINAL", "settlement_id")
    if tx.rules(command.caller.area_code).flag("undo_same_day") and china_date(tx.now_ms) != china_date(
        order.claim.settled_at_ms
    ):
        return seen.refuse("SETL_TERMINAL", "settlement_id", order=order, detail={"undo_until": "same day"})
    causes = account.restore(tx, seen, order.claim)
    undone = events_pb2.SettlementUndone(
        order_no=order.order_no,
        settlement_id=order.claim.settlement_id,
        reason=request.reason,
        undo_request_id=command.request_id,
        account_version=tx.version(account.account_key(tx, seen)),
    )
    tx.emit(PRESCRIPTION, seen.key, "settlement.undone", undone, causes=causes)
    _end_settled(tx, seen, order.order_no, "settlement undone")
    reply = dispensing_pb2.UndoSettlementResponse(statuses=statuses(current(tx, seen.key)))
    return Accepted(reply, targets=seen.targets)


def _not_returnable(seen: Seen, order: state_pb2.Order | None, trigger: str, field: str) -> Refused | None:
    if order is None:
        return seen.refuse("SETL_TERMINAL", field)
    if not permits(Machine.SETTLEMENT, claim_status(order), trigger, Role.PHARMACY):
        detail = {"settlement": claim_status(order)}
        return seen.refuse("SETL_TERMINAL", field, order=order, detail=detail)
    if not permits(Machine.ORDER, order_status(order), "undo or reversal before goods out", Role.PHARMACY):
        return seen.refuse("SETL_NOT_REVERSIBLE", field, order=order)
    return None


def _end_settled(tx: Draft, seen: Seen, order_no: str, reason: str) -> None:
    """End the dispensing and the order whose settlement was given back."""
    order = order_of(current(tx, seen.key), order_no)
    if permits(Machine.DISPENSE, orders.dispense_status(order), "void", Role.HUB):
        voided = events_pb2.DispenseVoided(order_no=order_no, reason=reason)
        tx.emit(PRESCRIPTION, seen.key, "dispense.voided", voided)
    end_with_order(tx, seen.key, order_no, reason)
    released = events_pb2.OrderReleased(order_no=order_no, reason=reason)
    tx.emit(PRESCRIPTION, seen.key, "order.released", released)
    after_hold_ended(tx, seen.key)


# ---- reverse ----


def reverse(tx: Draft, command: Command) -> Outcome:
    """Repair an unknown outcome by naming the original request (2601, T-21). The stored outcome decides, never a guess.

    A settlement that was accepted is given back; an undo that was accepted is cancelled and the settlement stands
    again; a request that never was accepted can never be from now on (`settlement.reversed` in the institution's
    stream). Leaves `account.restored` or `account.debited` when money moves, and what ends or begins again with it.
    Refusals: SETL_TERMINAL (another kind of transaction, reversed or given back before, or what the undo restored was
    used since), INST_UNKNOWN, INPUT_MALFORMED (another person's), SETL_NOT_REVERSIBLE.
    """
    request: dispensing_pb2.ReverseSettlementRequest = command.request
    method = REVERSIBLE.get(request.original_transaction)
    if method is None:
        return Refused("SETL_TERMINAL", field="original_transaction")
    if request.original_request_id == command.request_id:
        return Refused("SETL_TERMINAL", field="original_request_id")
    pharmacy_name = ("institution", command.caller.id.encode())
    tx.want(names=[pharmacy_name, *(tx.secret_names("person", request.person_no) if request.person_no else ())])
    pharmacy = guards.institution(tx, command.caller.id)
    if isinstance(pharmacy, Refused):
        return pharmacy
    original = tx.reply(request.original_request_id)
    if original is None:
        return _reverse_nothing(tx, command)
    if original.method != method:
        return Refused("SETL_TERMINAL", field="original_request_id")
    found = _settled_by(tx, command, original.stream_key)
    if found is None:
        return Refused("SETL_TERMINAL", field="original_request_id")
    seen, order = found
    if request.person_no and tx.find_secret("person", request.person_no) != seen.rx.person_key:
        return seen.refuse("INPUT_MALFORMED", "person_no")
    if method == UNDO:
        return _reverse_undo(tx, command, seen, order)
    return _reverse_settlement(tx, command, seen, order)


def _reverse_nothing(tx: Draft, command: Command) -> Accepted:
    request: dispensing_pb2.ReverseSettlementRequest = command.request
    key = tx.find("institution", command.caller.id.encode())
    assert key is not None
    payload = events_pb2.SettlementReversed(
        target=events_pb2.REVERSAL_OF_NONE, original_request_id=request.original_request_id
    )
    tx.emit("institution", key, "settlement.reversed", payload)
    reply = dispensing_pb2.ReverseSettlementResponse(target=dispensing_pb2.REVERSAL_TARGET_NONE)
    return Accepted(reply, taken_request_id=request.original_request_id)


def _settled_by(tx: Draft, command: Command, rx_key: bytes) -> tuple[Seen, state_pb2.Order] | None:
    """The caller's order that the original request settled or gave back."""
    seen = Seen(rx_key, current(tx, rx_key), command.caller.id)
    original = command.request.original_request_id
    for order in seen.own_orders():
        if original in (order.claim.settle_request_id, order.claim.undo_request_id):
            return seen, order
    return None


def _reverse_settlement(tx: Draft, command: Command, seen: Seen, order: state_pb2.Order) -> Outcome:
    refused = _not_returnable(seen, order, "reverse", "original_request_id")
    if refused is not None:
        return refused
    causes = account.restore(tx, seen, order.claim)
    _reversed(tx, command, seen, order, events_pb2.REVERSAL_OF_SETTLEMENT, causes)
    _end_settled(tx, seen, order.order_no, "settlement reversed")
    reply = dispensing_pb2.ReverseSettlementResponse(
        target=dispensing_pb2.REVERSAL_TARGET_SETTLEMENT, settlement_id=order.claim.settlement_id
    )
    return Accepted(reply, targets=seen.targets)


def _reverse_undo(tx: Draft, command: Command, seen: Seen, order: state_pb2.Order) -> Outcome:
    remaining = {use.line_no: orders.remaining_e4(seen.rx, use) for use in seen.rx.lines}
    may_stand_again = all(_undo_is_untouched(tx, seen, order)) and all(
        line.quantity_e4 <= remaining[line.line_no] for line in order.claim.lines
    )
    if not may_stand_again:
        detail = {"settlement": claim_status(order)}
        return seen.refuse("SETL_TERMINAL", "original_request_id", order=order, detail=detail)
    causes = account.debit(tx, seen, order.claim)
    _reversed(tx, command, seen, order, events_pb2.REVERSAL_OF_UNDO, causes)
    tx.emit(PRESCRIPTION, seen.key, "dispense.ready", events_pb2.DispenseReady(order_no=order.order_no))
    reply = dispensing_pb2.ReverseSettlementResponse(
        target=dispensing_pb2.REVERSAL_TARGET_UNDO, settlement_id=order.claim.settlement_id
    )
    return Accepted(reply, targets=seen.targets)


def _reversed(
    tx: Draft,
    command: Command,
    seen: Seen,
    order: state_pb2.Order,
    target: events_pb2.ReversalOf.ValueType,
    causes: list[bytes | tuple[bytes, int]],
) -> None:
    payload = events_pb2.SettlementReversed(
        order_no=order.order_no,
        settlement_id=order.claim.settlement_id,
        target=target,
        original_request_id=command.request.original_request_id,
    )
    tx.emit(PRESCRIPTION, seen.key, "settlement.reversed", payload, causes=causes)


def _undo_is_untouched(tx: Draft, seen: Seen, order: state_pb2.Order) -> Iterator[bool]:
    """The conditions under which an undone settlement may stand again."""
    yield permits(Machine.SETTLEMENT, claim_status(order), "reverse the undo", Role.PHARMACY)
    yield permits(Machine.ORDER, order_status(order), "undo reversed", Role.PHARMACY)
    # Nobody holds the prescription and something of it is left.
    yield permits(Machine.USE, state_name(Machine.USE, seen.rx.use_status), "undo reversed", Role.PHARMACY)
    yield orders.is_in_force(seen.rx) and not seen.rx.undo_requested
    # A self-payment is no transaction of the fund, so neither it nor its undo can be reversed.
    yield bool(order.claim.quote_id)
    # What was given back was not used since.
    yield tx.version(account.account_key(tx, seen)) == order.claim.account_version_after_undo


HANDLERS: Final[Mapping[str, Handler]] = {
    UNDO: undo,
    "DispensingService/ReverseSettlement": reverse,
}
