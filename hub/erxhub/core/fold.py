"""evolve(state, event): the state of every thing is the fold of its events, and this is the fold.

Owns which state a kind of stream has, and which events add nothing to it; what the others do is in the fold modules
beside this one. A status moves only through `lifecycle.advance`. Nothing here or there decides, refuses or looks
anything up: an event that does not fit is a bug and raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.message import Message

from erxhub.core import fold_order, fold_prescription, fold_registry, fold_visit
from erxhub.core.events import At, Folds
from erxhub.v1 import state_pb2

STATE_TYPES: Final[Mapping[str, type[Message]]] = {
    "ledger": state_pb2.LedgerState,
    "institution": state_pb2.InstitutionState,
    "practitioner": state_pb2.PractitionerState,
    "person": state_pb2.PersonState,
    "account": state_pb2.AccountState,
    "voucher": state_pb2.VoucherState,
    "encounter": state_pb2.EncounterState,
    "trace_code": state_pb2.TraceCodeState,
    "prescription": state_pb2.PrescriptionState,
}


class EventMisplaced(Exception):
    """An event that its stream kind does not fold: a bug."""


def evolve(stream_kind: str, state: Any, event: str, payload: Any, at: At) -> None:
    """Apply one event to `state` in place.

    Raises:
        EventMisplaced: the stream kind has no such event.
        lifecycle.IllegalTransition: no row of the tables allows it.
    """
    try:
        fold = _FOLDS[stream_kind, event]
    except KeyError:
        raise EventMisplaced(f"{event} in a {stream_kind} stream") from None
    fold(state, payload, at)


def _nothing(state: Any, payload: Any, at: At) -> None:
    """The event adds no state: the entry and its index are all there is to it."""


_FOLDS: Final[Folds] = {
    **fold_registry.FOLDS,
    **fold_visit.FOLDS,
    **fold_prescription.FOLDS,
    **fold_order.FOLDS,
    ("ledger", "certificate.revoked"): _nothing,
    ("institution", "settlement.reversed"): _nothing,
    ("prescription", "prescription.rule_warned"): _nothing,
    ("prescription", "prescription.override_recorded"): _nothing,
    ("prescription", "prescription.renewed"): _nothing,
    ("prescription", "order.routed"): _nothing,
}
