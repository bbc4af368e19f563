"""Status values: their names in the tables, and how an event moves one.

Owns which enumeration belongs to which machine. It never decides whether a move is allowed: `lifecycle.advance` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from erxhub.core import lifecycle
from erxhub.core.lifecycle import START, Machine
from erxhub.v1 import common_pb2, registry_pb2, state_pb2

_ENUMS: Final[Mapping[Machine, tuple[Any, str]]] = {
    Machine.VOUCHER: (state_pb2.VoucherStatus, "VOUCHER_STATUS_"),
    Machine.ENCOUNTER: (state_pb2.EncounterStatus, "ENCOUNTER_STATUS_"),
    Machine.RX: (common_pb2.RxStatus, "RX_STATUS_"),
    Machine.REVIEW: (common_pb2.ReviewStatus, "REVIEW_STATUS_"),
    Machine.USE: (common_pb2.RxUseStatus, "RX_USE_STATUS_"),
    Machine.AUTHORIZATION: (state_pb2.AuthorizationStatus, "AUTHORIZATION_STATUS_"),
    Machine.ORDER: (common_pb2.OrderStatus, "ORDER_STATUS_"),
    Machine.SETTLEMENT: (common_pb2.SettlementStatus, "SETTLEMENT_STATUS_"),
    Machine.DISPENSE: (common_pb2.DispenseStatus, "DISPENSE_STATUS_"),
    Machine.DELIVERY: (common_pb2.DeliveryStatus, "DELIVERY_STATUS_"),
    Machine.AGREEMENT: (registry_pb2.AgreementStatus, "AGREEMENT_STATUS_"),
    Machine.PRACTITIONER: (registry_pb2.PractitionerStatus, "PRACTITIONER_STATUS_"),
    Machine.PERSON: (registry_pb2.PersonStatus, "PERSON_STATUS_"),
    Machine.TRACE_CODE: (state_pb2.TraceCodeStatus, "TRACE_CODE_STATUS_"),
}
_NAMES: Final = {
    machine: {number: START if number == 0 else name.removeprefix(prefix) for name, number in enum.items()}
    for machine, (enum, prefix) in _ENUMS.items()
}
_NUMBERS: Final = {machine: {name: number for number, name in names.items()} for machine, names in _NAMES.items()}


def state_name(machine: Machine, number: int) -> str:
    """The table's name of a status value, e.g. "HELD"; START for the unspecified value."""
    return _NAMES[machine][number]


def number_of(machine: Machine, name: str) -> int:
    """The status value that the tables call `name`."""
    number = _NUMBERS[machine][name]
    assert isinstance(number, int)
    return number


def numbers_of(machine: Machine, holds: Callable[[str], bool]) -> frozenset[int]:
    """The status values of whose names something holds: asked once, where a state is looked at all the time."""
    return frozenset(number for number, name in _NAMES[machine].items() if holds(name))


def is_open(machine: Machine, number: int) -> bool:
    """Whether any row of the tables leads on from this status value."""
    return next(lifecycle.triggers_from(machine, state_name(machine, number)), None) is not None


def move(machine: Machine, number: int, event: str) -> int:
    """The status value after `event`; raises IllegalTransition when no row allows it."""
    return number_of(machine, lifecycle.advance(machine, _NAMES[machine][number], event))
