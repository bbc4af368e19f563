"""Deadlines: a deadline is part of state, and what is due is fired before anything else is decided.

Owns which deadline fires which event, and in what order. It reads no clock: `now_ms` is the draft's. An instant is over
when now > deadline, so a thing is still good at its last millisecond.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from erxhub.core import lifecycle
from erxhub.core.consequences import after_hold_ended, current, end_effective, end_with_order
from erxhub.core.fold import STATE_TYPES
from erxhub.core.fold_order import order_of
from erxhub.core.lifecycle import Machine, Role
from erxhub.core.model import Draft
from erxhub.core.statuses import numbers_of
from erxhub.v1 import events_pb2, state_pb2


@dataclass(slots=True, init=False)
class _Deadline:
    # The lowest rank goes first at one instant: the narrower thing ends before what it stands in.
    at_ms: int
    rank: int
    fire: Callable[[Draft, bytes], None]

    def __init__(self, at_ms: int, rank: int, fire: Callable[[Draft, bytes], None]) -> None:
        self.at_ms = at_ms
        self.rank = rank
        self.fire = fire


def _ended_by(machine: Machine, trigger: str) -> frozenset[int]:
    """The status values that the tables let this trigger of the timer end."""
    return numbers_of(machine, lambda name: lifecycle.permits(machine, name, trigger, Role.TIMER))


_VOUCHER_ENDS: Final = _ended_by(Machine.VOUCHER, "lifetime over")
_AGREEMENT_ENDS: Final = _ended_by(Machine.AGREEMENT, "valid_to passed")
_AUTHORIZATION_ENDS: Final = _ended_by(Machine.AUTHORIZATION, "time over")
_QUOTE_ENDS: Final = _ended_by(Machine.SETTLEMENT, "time over")
_HOLD_ENDS: Final = numbers_of(Machine.ORDER, lifecycle.WITHDRAWABLE.__contains__)
_PRESCRIPTION_ENDS: Final = _ended_by(Machine.RX, "time over")


def next_due_ms(stream_kind: str, state: Any) -> int | None:
    """The first instant at which a deadline of this state is over (UTC ms), or None."""
    found = _DEADLINES.get(stream_kind)
    if found is None:
        return None
    first = min([deadline.at_ms for deadline in found(state)], default=None)
    return None if first is None else first + 1


def fire_due(tx: Draft, stream_kind: str, stream_key: bytes) -> None:
    """Emit the events of all deadlines that are over, oldest first, until none is left."""
    found = _DEADLINES.get(stream_kind)
    if found is None:
        return
    while True:
        state = tx.state(stream_key, STATE_TYPES[stream_kind])
        over = [deadline for deadline in found(state) if tx.now_ms > deadline.at_ms]
        if not over:
            return
        min(over, key=lambda deadline: (deadline.at_ms, deadline.rank)).fire(tx, stream_key)


def _voucher(state: state_pb2.VoucherState) -> list[_Deadline]:
    return [_Deadline(state.expires_at_ms, 0, _expire_voucher)] if state.status in _VOUCHER_ENDS else []


def _expire_voucher(tx: Draft, key: bytes) -> None:
    tx.emit("voucher", key, "voucher.expired", events_pb2.VoucherExpired())


def _institution(state: state_pb2.InstitutionState) -> list[_Deadline]:
    return [
        _Deadline(agreement.valid_until_ms, 0, _end_agreement(agreement.kind))
        for agreement in state.agreements
        if agreement.status in _AGREEMENT_ENDS
    ]


def _end_agreement(kind: Any) -> Callable[[Draft, bytes], None]:
    def fire(tx: Draft, key: bytes) -> None:
        tx.emit("institution", key, "agreement.terminated", events_pb2.AgreementChanged(kind=kind))

    return fire


def _prescription(state: state_pb2.PrescriptionState) -> list[_Deadline]:
    found: list[_Deadline] = []
    if state.erased_version:
        return found  # the instants went with the content
    # `or ()`: protobuf takes longer to find out that a list is empty than to say so.
    found += [
        _Deadline(held.expires_at_ms, 0, _expire_authorization(held.secret_mac))
        for held in state.authorizations or ()
        if held.status in _AUTHORIZATION_ENDS
    ]
    for order in state.orders or ():
        if order.claim.status in _QUOTE_ENDS:
            found.append(_Deadline(order.claim.quote_expires_at_ms, 1, _expire_quote(order.order_no)))
        if order.status in _HOLD_ENDS:
            found.append(_Deadline(order.hold_until_ms, 2, _expire_hold(order.order_no)))
    if state.rx_status in _PRESCRIPTION_ENDS:
        found.append(_Deadline(state.content.valid_until_ms, 3, _expire_prescription))
    return found


def _expire_authorization(secret_mac: bytes) -> Callable[[Draft, bytes], None]:
    def fire(tx: Draft, key: bytes) -> None:
        tx.emit(
            "prescription",
            key,
            "authorization.expired",
            events_pb2.AuthorizationExpired(secret_mac=secret_mac),
        )

    return fire


def _quote_expired(tx: Draft, key: bytes, order: state_pb2.Order) -> None:
    tx.emit(
        "prescription",
        key,
        "settlement.quote_expired",
        events_pb2.SettlementQuoteExpired(order_no=order.order_no, quote_id=order.claim.quote_id),
    )


def _expire_quote(order_no: str) -> Callable[[Draft, bytes], None]:
    def fire(tx: Draft, key: bytes) -> None:
        _quote_expired(tx, key, order_of(current(tx, key), order_no))

    return fire


def _expire_hold(order_no: str) -> Callable[[Draft, bytes], None]:
    def fire(tx: Draft, key: bytes) -> None:
        end_with_order(tx, key, order_no, "hold lapsed")
        tx.emit("prescription", key, "order.expired", events_pb2.OrderExpired(order_no=order_no, hold_lapsed=True))
        after_hold_ended(tx, key)

    return fire


def _expire_prescription(tx: Draft, key: bytes) -> None:
    end_effective(tx, key)
    tx.emit("prescription", key, "prescription.expired", events_pb2.PrescriptionExpired())


_DEADLINES: Final[Mapping[str, Callable[[Any], list[_Deadline]]]] = {
    "voucher": _voucher,
    "institution": _institution,
    "prescription": _prescription,
}
