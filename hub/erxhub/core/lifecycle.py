"""THE transition tables: every status change of every thing is a row here.

Two rules hold this file together:

1. A status changes only by `advance`, which finds the row that the event names. The folds call it, mostly through
   `statuses.move`, and nothing else does, so the state of a thing is the fold of its events and an event that no
   row allows is a bug (`IllegalTransition`).
2. Whether a caller may fire a trigger is asked of `permits`, never of an `if` on a status elsewhere. A guard that is
   not about a status (a signature, a hold's owner, a time) belongs to the module that decides the command.

Theory of operation. A prescription carries three orthogonal statuses (in force, use, review of an order); an order, its
claim, its dispensing and its delivery have one each. One command may move several of them: a download moves the order
to HELD, the use status to HELD and the review to PENDING, each by its own row. `START` stands for "does not exist yet".
`BEFORE_HOLD` as a next state means the use status that the prescription had when the hold began.

The diagrams in docs/lifecycle.md are generated from these tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

START: Final = "–"
BEFORE_HOLD: Final = "(before the hold)"


class Role(StrEnum):
    """Who fires a trigger. Most have no certificate of their own; an institution's certificate speaks for them."""

    PATIENT = "PATIENT"
    DELEGATE = "DELEGATE"
    DOCTOR = "DOCTOR"
    HOSP_PHARMACIST = "HOSP_PHARMACIST"
    HOSPITAL = "HOSPITAL"
    PHARMACY = "PHARMACY"
    PHARMACIST = "PHARMACIST"
    DISPENSER = "DISPENSER"
    CHECKER = "CHECKER"
    COURIER = "COURIER"
    AGENCY = "AGENCY"
    TIMER = "TIMER"
    HUB = "HUB"


class Machine(StrEnum):
    """What has a status of its own."""

    ACTIVATION = "activation"
    VOUCHER = "voucher"
    ENCOUNTER = "encounter"
    RX = "rx"
    REVIEW = "review"
    USE = "use"
    AUTHORIZATION = "authorization"
    ORDER = "order"
    SETTLEMENT = "settlement"
    DISPENSE = "dispense"
    DELIVERY = "delivery"
    AGREEMENT = "agreement"
    PRACTITIONER = "practitioner"
    PERSON = "person"
    SIGNING_KEY = "signing_key"
    CONTENT = "content"
    TRACE_CODE = "trace_code"


@dataclass(frozen=True, slots=True)
class Row:
    """One row: in one of `states`, `trigger` by one of `roles` leaves `event` and leads to `next_state`.

    `next_state` "" means unchanged.
    """

    machine: Machine
    states: tuple[str, ...]
    trigger: str
    roles: tuple[Role, ...]
    event: str
    next_state: str


class IllegalTransition(Exception):
    """An event met a state in which no row allows it: a bug of the caller, never a refusal."""


def _row(machine: Machine, states: str, trigger: str, roles: str, event: str, next_state: str) -> Row:
    return Row(
        machine,
        tuple(states.split("|")),
        trigger,
        tuple(Role(role) for role in roles.split("|")),
        event,
        next_state,
    )


_M = Machine

ROWS: Final[tuple[Row, ...]] = (
    # Activation of a person's e-voucher on one channel (激活)
    _row(_M.ACTIVATION, START, "activate", "PATIENT", "person.voucher_activated", "ACTIVATED"),
    _row(_M.ACTIVATION, "ACTIVATED", "deactivate", "PATIENT|AGENCY", "person.voucher_deactivated", "ENDED"),
    _row(_M.ACTIVATION, "ENDED", "activate again", "PATIENT", "person.voucher_activated", "ACTIVATED"),
    # The e-voucher code (医保电子凭证码)
    _row(_M.VOUCHER, START, "issue", "PATIENT|DELEGATE", "voucher.issued", "ISSUED"),
    _row(_M.VOUCHER, "ISSUED", "decode", "HOSPITAL|PHARMACY", "voucher.verified", "CONSUMED"),
    _row(_M.VOUCHER, "ISSUED", "decode refused", "HOSPITAL|PHARMACY", "voucher.try_counted", ""),
    _row(_M.VOUCHER, "ISSUED", "decode refused for the third time", "HOSPITAL|PHARMACY", "voucher.revoked", "REVOKED"),
    _row(_M.VOUCHER, "ISSUED", "lifetime over", "TIMER", "voucher.expired", "EXPIRED"),
    _row(_M.VOUCHER, "ISSUED", "revoke", "PATIENT|AGENCY", "voucher.revoked", "REVOKED"),
    # Encounters (就诊), from registration to their end
    _row(_M.ENCOUNTER, START, "register", "HOSPITAL", "encounter.registered", "REGISTERED"),
    _row(_M.ENCOUNTER, "REGISTERED", "start consultation", "DOCTOR", "encounter.started", "IN_CONSULT"),
    _row(_M.ENCOUNTER, "IN_CONSULT", "attest doctor", "HOSPITAL", "encounter.doctor_attested", ""),
    _row(_M.ENCOUNTER, "IN_CONSULT", "prove follow-up", "HOSPITAL", "encounter.revisit_proven", ""),
    _row(_M.ENCOUNTER, "IN_CONSULT", "record diagnosis", "DOCTOR", "diagnosis.recorded", "DIAGNOSED"),
    _row(_M.ENCOUNTER, "DIAGNOSED", "amend diagnosis", "DOCTOR", "diagnosis.amended", ""),
    _row(_M.ENCOUNTER, "DIAGNOSED", "close", "HOSPITAL", "encounter.closed", "CLOSED"),
    _row(_M.ENCOUNTER, "REGISTERED|IN_CONSULT|DIAGNOSED", "cancel", "HOSPITAL", "encounter.cancelled", "CANCELLED"),
    # Prescription in force? (处方状态 rx_stas)
    _row(_M.RX, START, "precheck", "HOSPITAL", "prescription.prechecked", "PRECHECKED"),
    _row(_M.RX, "PRECHECKED", "hospital review", "HOSP_PHARMACIST", "prescription.hospital_reviewed", ""),
    _row(_M.RX, "PRECHECKED", "sign", "DOCTOR", "prescription.signed", "SIGNED"),
    _row(_M.RX, "SIGNED", "upload", "HOSPITAL", "prescription.effective", "EFFECTIVE"),
    _row(_M.RX, "PRECHECKED|SIGNED|EFFECTIVE", "undo", "DOCTOR", "prescription.undone", "UNDONE"),
    _row(_M.RX, "EFFECTIVE", "undo while held", "DOCTOR", "prescription.undo_requested", ""),
    _row(_M.RX, "EFFECTIVE", "the hold ended", "HUB", "prescription.undone", "UNDONE"),
    _row(_M.RX, "PRECHECKED|SIGNED|EFFECTIVE|FROZEN", "time over", "TIMER", "prescription.expired", "EXPIRED"),
    _row(_M.RX, "EFFECTIVE", "last fill out", "HUB", "prescription.exhausted", "EXHAUSTED"),
    _row(_M.RX, "EFFECTIVE", "freeze", "AGENCY", "prescription.frozen", "FROZEN"),
    _row(_M.RX, "FROZEN", "unfreeze", "AGENCY", "prescription.unfrozen", "EFFECTIVE"),
    # Review of one order (审核状态 rx_chk)
    _row(_M.REVIEW, START, "order created", "HUB", "order.created", "NONE"),
    _row(_M.REVIEW, "NONE", "download", "PHARMACY", "order.held", "PENDING"),
    _row(_M.REVIEW, "PENDING", "pass", "PHARMACIST", "review.passed", "PASSED"),
    _row(_M.REVIEW, "PENDING", "reject", "PHARMACIST", "review.rejected", "REJECTED"),
    _row(_M.REVIEW, "PENDING", "return to doctor", "PHARMACIST", "review.returned_to_doctor", "RETURNED_TO_DOCTOR"),
    _row(_M.REVIEW, "PENDING", "hold released", "PHARMACY", "order.released", "NONE"),
    _row(_M.REVIEW, "PENDING", "hold cancelled", "PATIENT|DELEGATE", "order.cancelled", "NONE"),
    _row(_M.REVIEW, "PENDING", "hold ended", "TIMER", "order.expired", "NONE"),
    # What was taken (使用状态 rx_used)
    _row(_M.USE, START, "upload effective", "HUB", "prescription.effective", "UNUSED"),
    _row(_M.USE, "UNUSED|PARTLY_USED", "hold", "PHARMACY", "order.held", "HELD"),
    _row(_M.USE, "HELD", "release", "PHARMACY|PHARMACIST|HUB", "order.released", BEFORE_HOLD),
    _row(_M.USE, "HELD", "cancel", "PATIENT|DELEGATE", "order.cancelled", BEFORE_HOLD),
    _row(_M.USE, "HELD", "time out", "TIMER", "order.expired", BEFORE_HOLD),
    _row(_M.USE, "HELD", "goods out, something left", "HUB", "prescription.used partial", "PARTLY_USED"),
    _row(_M.USE, "HELD", "goods out, nothing left", "HUB", "prescription.used", "USED"),
    _row(_M.USE, "UNUSED|PARTLY_USED", "undo reversed", "PHARMACY", "settlement.reversed undo", "HELD"),
    # Authorisations (流转授权) of a pharmacy
    _row(
        _M.AUTHORIZATION,
        START,
        "list prescriptions, or resolve a QR value",
        "PHARMACY",
        "authorization.issued",
        "ISSUED",
    ),
    _row(_M.AUTHORIZATION, "ISSUED", "list or resolve again", "PHARMACY", "authorization.revoked", "REVOKED"),
    _row(_M.AUTHORIZATION, "ISSUED", "download", "PHARMACY", "authorization.consumed", "CONSUMED"),
    _row(_M.AUTHORIZATION, "ISSUED", "time over", "TIMER", "authorization.expired", "EXPIRED"),
    _row(_M.AUTHORIZATION, "ISSUED", "revoke", "HUB|PATIENT|DELEGATE", "authorization.revoked", "REVOKED"),
    # Orders (订单): claim and hold of a pharmacy
    _row(_M.ORDER, START, "create", "PATIENT|DELEGATE", "order.created", "CREATED"),
    _row(_M.ORDER, START, "create at the counter", "HUB", "order.created", "CREATED"),
    _row(_M.ORDER, "CREATED", "download and hold", "PHARMACY", "order.held", "HELD"),
    _row(_M.ORDER, "HELD|REVIEWED|PRESETTLED", "download again", "PHARMACY", "prescription.downloaded", ""),
    _row(_M.ORDER, "HELD", "review passed", "PHARMACIST", "review.passed", "REVIEWED"),
    _row(_M.ORDER, "HELD", "review not passed", "PHARMACIST", "order.released", "RELEASED"),
    _row(_M.ORDER, "REVIEWED", "pre-settle", "PHARMACY", "settlement.quoted", "PRESETTLED"),
    _row(_M.ORDER, "PRESETTLED", "pre-settle again", "PHARMACY", "settlement.quoted", ""),
    _row(_M.ORDER, "PRESETTLED", "settle", "PHARMACY", "settlement.committed", "SETTLED"),
    _row(_M.ORDER, "REVIEWED|PRESETTLED", "record a self-payment", "PHARMACY", "settlement.self_paid", "SETTLED"),
    _row(_M.ORDER, "SETTLED", "goods out", "DISPENSER|CHECKER", "dispense.outbound", "DISPENSED"),
    _row(_M.ORDER, "SETTLED", "undo or reversal before goods out", "PHARMACY", "order.released", "RELEASED"),
    _row(_M.ORDER, "RELEASED", "undo reversed", "PHARMACY", "settlement.reversed undo", "SETTLED"),
    _row(_M.ORDER, "DISPENSED", "hand over", "PHARMACY", "dispense.handed_over", "COMPLETED"),
    _row(_M.ORDER, "DISPENSED", "picked up by courier", "COURIER", "delivery.picked_up", "DELIVERING"),
    _row(_M.ORDER, "DELIVERING", "signed", "PATIENT|DELEGATE", "order.completed", "COMPLETED"),
    _row(_M.ORDER, "DELIVERING", "refused", "COURIER|PATIENT|DELEGATE", "delivery.refused", ""),
    _row(_M.ORDER, "DELIVERING", "lost", "COURIER|PHARMACY", "delivery.lost", ""),
    _row(_M.ORDER, "CREATED|HELD|REVIEWED|PRESETTLED", "release", "PHARMACY", "order.released", "RELEASED"),
    _row(_M.ORDER, "CREATED|HELD|REVIEWED|PRESETTLED", "cancel", "PATIENT|DELEGATE", "order.cancelled", "CANCELLED"),
    _row(_M.ORDER, "CREATED|HELD|REVIEWED|PRESETTLED", "time over", "TIMER|HUB", "order.expired", "TIMED_OUT"),
    # Settlements (结算), from the quote on
    _row(_M.SETTLEMENT, f"{START}|PRE|LAPSED", "quote", "PHARMACY", "settlement.quoted", "PRE"),
    _row(_M.SETTLEMENT, "PRE", "time over", "TIMER", "settlement.quote_expired", "LAPSED"),
    _row(_M.SETTLEMENT, "PRE", "commit", "PHARMACY", "settlement.committed", "SETTLED"),
    _row(
        _M.SETTLEMENT,
        f"{START}|PRE|LAPSED",
        "record a self-payment",
        "PHARMACY",
        "settlement.self_paid",
        "SELF_PAID",
    ),
    _row(_M.SETTLEMENT, "SETTLED|SELF_PAID", "undo", "PHARMACY", "settlement.undone", "UNDONE"),
    _row(_M.SETTLEMENT, "SETTLED", "reverse", "PHARMACY", "settlement.reversed", "REVERSED"),
    _row(_M.SETTLEMENT, "UNDONE", "reverse the undo", "PHARMACY", "settlement.reversed undo", "SETTLED"),
    # Dispensing (调配) of a settled order
    _row(_M.DISPENSE, f"{START}|VOIDED", "settled, or self-pay recorded", "HUB", "dispense.ready", "READY"),
    _row(_M.DISPENSE, "READY", "pick", "DISPENSER", "dispense.picked", "PICKED"),
    _row(_M.DISPENSE, "PICKED", "check", "CHECKER", "dispense.checked", "CHECKED"),
    _row(_M.DISPENSE, "CHECKED", "out", "PHARMACY", "dispense.outbound", "OUT"),
    _row(_M.DISPENSE, "OUT", "hand over", "PHARMACY", "dispense.handed_over", "HANDED_OVER"),
    _row(_M.DISPENSE, "OUT", "give to courier", "COURIER", "delivery.picked_up", "SHIPPED"),
    _row(_M.DISPENSE, "READY|PICKED|CHECKED", "void", "PHARMACY|HUB", "dispense.voided", "VOIDED"),
    # Deliveries (配送) to the door
    _row(_M.DELIVERY, START, "request", "PATIENT|DELEGATE", "delivery.requested", "REQUESTED"),
    _row(
        _M.DELIVERY,
        "REQUESTED|ASSIGNED|PICKED_UP|IN_TRANSIT|ARRIVED",
        "request again",
        "PATIENT|DELEGATE",
        "delivery.sign_code_renewed",
        "",
    ),
    _row(_M.DELIVERY, "REQUESTED", "assign", "PHARMACY", "delivery.assigned", "ASSIGNED"),
    _row(_M.DELIVERY, "ASSIGNED", "pick up", "COURIER", "delivery.picked_up", "PICKED_UP"),
    _row(_M.DELIVERY, "PICKED_UP", "on the way", "COURIER", "delivery.in_transit", "IN_TRANSIT"),
    _row(_M.DELIVERY, "IN_TRANSIT", "arrive", "COURIER", "delivery.arrived", "ARRIVED"),
    _row(_M.DELIVERY, "ARRIVED", "sign for", "PATIENT|DELEGATE", "delivery.signed", "SIGNED"),
    _row(_M.DELIVERY, "ARRIVED", "sign for with a wrong code", "PATIENT|DELEGATE", "delivery.try_counted", ""),
    _row(_M.DELIVERY, "ARRIVED|IN_TRANSIT", "refuse", "PATIENT|DELEGATE", "delivery.refused", "REFUSED"),
    _row(_M.DELIVERY, "PICKED_UP|IN_TRANSIT|ARRIVED", "lose", "COURIER|PHARMACY", "delivery.lost", "LOST"),
    _row(_M.DELIVERY, "REFUSED", "go back", "COURIER", "delivery.returning", "RETURNING"),
    _row(_M.DELIVERY, "RETURNING", "received", "PHARMACY", "delivery.returned", "RETURNED"),
    _row(_M.DELIVERY, "REQUESTED|ASSIGNED", "cancel", "HUB", "delivery.cancelled", "CANCELLED"),
    # Agreements (服务协议) with institutions
    _row(_M.AGREEMENT, f"{START}|TERMINATED", "sign", "AGENCY", "agreement.signed", "ACTIVE"),
    _row(_M.AGREEMENT, "ACTIVE", "suspend", "AGENCY", "agreement.suspended", "SUSPENDED"),
    _row(_M.AGREEMENT, "SUSPENDED", "resume", "AGENCY", "agreement.resumed", "ACTIVE"),
    _row(_M.AGREEMENT, "ACTIVE|SUSPENDED", "terminate", "AGENCY", "agreement.terminated", "TERMINATED"),
    _row(_M.AGREEMENT, "ACTIVE|SUSPENDED", "valid_to passed", "TIMER", "agreement.terminated", "TERMINATED"),
    # Practitioners (执业人员), the doctors and the staff
    _row(_M.PRACTITIONER, START, "register", "AGENCY", "practitioner.registered", "ACTIVE"),
    _row(_M.PRACTITIONER, "ACTIVE", "suspend", "AGENCY", "practitioner.suspended", "SUSPENDED"),
    _row(_M.PRACTITIONER, "SUSPENDED", "resume", "AGENCY", "practitioner.resumed", "ACTIVE"),
    _row(_M.PRACTITIONER, "ACTIVE|SUSPENDED", "end", "AGENCY", "practitioner.terminated", "TERMINATED"),
    # Insured persons (参保人)
    _row(_M.PERSON, START, "register", "AGENCY", "person.registered", "ACTIVE"),
    _row(_M.PERSON, "ACTIVE", "pause insurance", "AGENCY", "person.status_changed PAUSED", "PAUSED"),
    _row(_M.PERSON, "PAUSED", "resume insurance", "AGENCY", "person.status_changed ACTIVE", "ACTIVE"),
    _row(_M.PERSON, "ACTIVE|PAUSED", "register death", "AGENCY", "person.status_changed DEAD", "DEAD"),
    # Signing key (签名密钥)
    _row(_M.SIGNING_KEY, START, "register", "AGENCY", "signing_key.registered", "VALID"),
    _row(_M.SIGNING_KEY, "VALID", "revoke", "AGENCY", "certificate.revoked", "REVOKED"),
    # What the entries of a prescription or an encounter say (内容), beside its status, which erasure leaves alone
    _row(_M.CONTENT, START, "erase content", "AGENCY|TIMER", "content.erased", "ERASED"),
    # Drug trace code (药品追溯码)
    _row(_M.TRACE_CODE, START, "sell", "HUB", "trace_code.sold", "SOLD"),
)


def _index_events() -> dict[tuple[Machine, str, str], str]:
    index: dict[tuple[Machine, str, str], str] = {}
    for row in ROWS:
        for state in row.states:
            key = (row.machine, state, row.event)
            target = row.next_state or state
            if index.setdefault(key, target) != target:
                raise AssertionError(f"two rows lead {key} to different states")
    return index


def _index_triggers() -> dict[tuple[Machine, str], list[tuple[str, frozenset[Role]]]]:
    index: dict[tuple[Machine, str], list[tuple[str, frozenset[Role]]]] = {}
    for row in ROWS:
        for state in row.states:
            index.setdefault((row.machine, state), []).append((row.trigger, frozenset(row.roles)))
    return index


HOLDING: Final = frozenset({"HELD", "REVIEWED", "PRESETTLED", "SETTLED"})
"""Order states in which the order's pharmacy holds the prescription."""

WITHDRAWABLE: Final = HOLDING - {"SETTLED"}
"""Order states whose hold ends by time, release or cancellation; after settlement only undo, reversal or return do."""

ENDED_ORDER: Final = frozenset({"COMPLETED", "RELEASED", "CANCELLED", "TIMED_OUT", "RETURNED"})
"""Order states after which the pharmacy needs a new order."""

_BY_EVENT = MappingProxyType(_index_events())
_TRIGGERS = MappingProxyType(_index_triggers())
_PERMITTED = frozenset(
    (machine, state, trigger, role)
    for (machine, state), triggers in _TRIGGERS.items()
    for trigger, roles in triggers
    for role in roles
)


def permits(machine: Machine, state: str, trigger: str, role: Role) -> bool:
    """Whether `role` may fire `trigger` on a thing of this machine in `state` (START when it does not exist)."""
    return (machine, state, trigger, role) in _PERMITTED


def advance(machine: Machine, state: str, event: str) -> str:
    """The state after `event`.

    Raises:
        IllegalTransition: no row has this event in this state.
    """
    try:
        return _BY_EVENT[machine, state, event]
    except KeyError:
        raise IllegalTransition(f"{machine}: {event} in state {state}") from None


def can_happen(machine: Machine, state: str, event: str) -> bool:
    """Whether a row has this event in this state."""
    return (machine, state, event) in _BY_EVENT


def triggers_exist(machine: Machine, state: str) -> bool:
    """Whether anything can still happen in this state; False for a terminal one."""
    return (machine, state) in _TRIGGERS


def triggers_from(machine: Machine, state: str) -> Iterator[tuple[str, frozenset[Role]]]:
    """The triggers that the table knows in `state`, with who may fire each, in table order."""
    yield from _TRIGGERS.get((machine, state), ())


def states_of(machine: Machine) -> tuple[str, ...]:
    """All states of a machine in the order in which the table names them, START first."""
    seen: dict[str, None] = {START: None}
    for row in ROWS:
        if row.machine is machine:
            for state in (*row.states, row.next_state):
                if state and state != BEFORE_HOLD:
                    seen[state] = None
    return tuple(seen)
