"""evolve(state, event): the state of every thing is the fold of its events, and this is the fold.

Owns what each event does to a state. A status moves only through `lifecycle.advance`. Nothing here decides, refuses or
looks anything up: an event that does not fit is a bug and raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import Message

from erxhub.core import lifecycle
from erxhub.core.claim_arithmetic import parse_quantity_e4
from erxhub.core.lifecycle import BEFORE_HOLD, START, Machine
from erxhub.v1 import common_pb2, events_pb2, registry_pb2, state_pb2

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


def numbers_of(machine: Machine, holds: Callable[[str], bool]) -> frozenset[int]:
    """The status values of whose names something holds: asked once, where a state is looked at all the time."""
    return frozenset(number for number, name in _NAMES[machine].items() if holds(name))


def is_open(machine: Machine, number: int) -> bool:
    """Whether any row of the tables leads on from this status value."""
    return next(lifecycle.triggers_from(machine, state_name(machine, number)), None) is not None


def move(machine: Machine, number: int, event: str) -> int:
    """The status value after `event`; raises IllegalTransition when no row allows it."""
    number = _NUMBERS[machine][lifecycle.advance(machine, _NAMES[machine][number], event)]
    assert isinstance(number, int)
    return number


@dataclass(slots=True, init=False)
class At:
    """Where an event stands: its version in the stream, its instant (UTC ms), the request that caused it."""

    version: int
    recorded_at_ms: int
    request_id: str

    def __init__(self, version: int, recorded_at_ms: int, request_id: str) -> None:
        self.version = version
        self.recorded_at_ms = recorded_at_ms
        self.request_id = request_id


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


# ---- registry, ledger ----


def _ledger_opened(state: state_pb2.LedgerState, payload: events_pb2.LedgerOpened, at: At) -> None:
    state.origin = payload.origin


def _hub_key_registered(state: state_pb2.LedgerState, payload: events_pb2.HubKeyRegistered, at: At) -> None:
    state.keys.add().CopyFrom(payload.key)


def _catalogue_imported(state: state_pb2.LedgerState, payload: events_pb2.CatalogueImported, at: At) -> None:
    state.editions.add().CopyFrom(payload.edition)


def _nothing(state: Any, payload: Any, at: At) -> None:
    """The event adds no state: the entry and its index are all there is to it."""


def _institution_registered(
    state: state_pb2.InstitutionState, payload: events_pb2.InstitutionRegistered, at: At
) -> None:
    state.CopyFrom(payload.institution)


def _agreement_signed(state: state_pb2.InstitutionState, payload: events_pb2.AgreementSigned, at: At) -> None:
    for held in state.agreements:
        if held.kind == payload.agreement.kind:
            status = move(Machine.AGREEMENT, held.status, "agreement.signed")
            held.CopyFrom(payload.agreement)
            held.status = registry_pb2.AgreementStatus.ValueType(status)
            return
    added = state.agreements.add()
    added.CopyFrom(payload.agreement)
    added.status = registry_pb2.AgreementStatus.ValueType(move(Machine.AGREEMENT, 0, "agreement.signed"))


def _agreement_changed(event: str) -> Callable[[Any, Any, At], None]:
    def fold(state: state_pb2.InstitutionState, payload: events_pb2.AgreementChanged, at: At) -> None:
        held = next(agreement for agreement in state.agreements if agreement.kind == payload.kind)
        held.status = registry_pb2.AgreementStatus.ValueType(move(Machine.AGREEMENT, held.status, event))
        held.case_no = payload.case_no

    return fold


def _signing_key_registered(state: Any, payload: events_pb2.SigningKeyRegistered, at: At) -> None:
    state.keys.add().CopyFrom(payload.key)


def _practitioner_registered(
    state: state_pb2.PractitionerState, payload: events_pb2.PractitionerRegistered, at: At
) -> None:
    state.CopyFrom(payload.practitioner)
    state.status = registry_pb2.PractitionerStatus.ValueType(move(Machine.PRACTITIONER, 0, "practitioner.registered"))


def _practitioner_changed(event: str) -> Callable[[Any, Any, At], None]:
    def fold(state: state_pb2.PractitionerState, payload: events_pb2.PractitionerChanged, at: At) -> None:
        state.status = registry_pb2.PractitionerStatus.ValueType(move(Machine.PRACTITIONER, state.status, event))
        state.case_no = payload.case_no

    return fold


def _person_registered(state: state_pb2.PersonState, payload: events_pb2.PersonRegistered, at: At) -> None:
    state.CopyFrom(payload.person)
    state.status = registry_pb2.PersonStatus.ValueType(move(Machine.PERSON, 0, "person.registered"))


def _person_status_changed(state: state_pb2.PersonState, payload: events_pb2.PersonStatusChanged, at: At) -> None:
    event = f"person.status_changed {state_name(Machine.PERSON, payload.status)}"
    state.status = registry_pb2.PersonStatus.ValueType(move(Machine.PERSON, state.status, event))


def _activation_state(state: state_pb2.PersonState, channel_id: str) -> tuple[state_pb2.Activation | None, str]:
    for activation in state.activations:
        if activation.channel_id == channel_id:
            return activation, "ACTIVATED" if activation.active else "ENDED"
    return None, START


def activation_state(state: state_pb2.PersonState, channel_id: str) -> str:
    """The activation's state on a channel, as the tables name it."""
    return _activation_state(state, channel_id)[1]


def _voucher_activated(state: state_pb2.PersonState, payload: events_pb2.VoucherActivated, at: At) -> None:
    held, name = _activation_state(state, payload.channel_id)
    after = lifecycle.advance(Machine.ACTIVATION, name, "person.voucher_activated")
    if held is None:
        held = state.activations.add()
        held.channel_id = payload.channel_id
    held.level = payload.level
    held.active = after == "ACTIVATED"


def _voucher_deactivated(state: state_pb2.PersonState, payload: events_pb2.VoucherDeactivated, at: At) -> None:
    held, name = _activation_state(state, payload.channel_id)
    after = lifecycle.advance(Machine.ACTIVATION, name, "person.voucher_deactivated")
    assert held is not None
    held.active = after == "ACTIVATED"


# ---- account, trace code, voucher ----


def _account_opened(state: state_pb2.AccountState, payload: events_pb2.AccountOpened, at: At) -> None:
    state.balance_fen = payload.balance_fen
    state.person_key = payload.person_key


def _account_debited(state: state_pb2.AccountState, payload: events_pb2.AccountDebited, at: At) -> None:
    state.balance_fen -= payload.amount_fen
    if payload.benefit_year > state.benefit_year:
        state.benefit_year = payload.benefit_year
        state.in_scope_year_fen = state.fund_year_fen = 0
    if payload.benefit_year == state.benefit_year:
        state.in_scope_year_fen += payload.in_scope_fen
        state.fund_year_fen += payload.fund_fen


def _account_restored(state: state_pb2.AccountState, payload: events_pb2.AccountRestored, at: At) -> None:
    state.balance_fen += payload.amount_fen
    # The totals of an earlier year are gone: nothing of this year was taken for it.
    if payload.benefit_year == state.benefit_year:
        state.in_scope_year_fen -= payload.in_scope_fen
        state.fund_year_fen -= payload.fund_fen


def _trace_code_sold(state: state_pb2.TraceCodeState, payload: events_pb2.TraceCodeSold, at: At) -> None:
    state.status = state_pb2.TraceCodeStatus.ValueType(move(Machine.TRACE_CODE, state.status, "trace_code.sold"))
    state.drug_code = payload.drug_code
    state.rx_key = payload.rx_key
    state.pharmacy_code = payload.pharmacy_code


def _voucher_issued(state: state_pb2.VoucherState, payload: events_pb2.VoucherIssued, at: At) -> None:
    state.person_key = payload.person_key
    state.delegate_key = payload.delegate_key
    state.channel_id = payload.channel_id
    state.business_type = payload.business_type
    state.issued_at_ms = at.recorded_at_ms
    state.expires_at_ms = payload.expires_at_ms
    _move_voucher(state, "voucher.issued")


def _move_voucher(state: state_pb2.VoucherState, event: str) -> None:
    state.status = state_pb2.VoucherStatus.ValueType(move(Machine.VOUCHER, state.status, event))


def _voucher_verified(state: state_pb2.VoucherState, payload: events_pb2.VoucherVerified, at: At) -> None:
    state.institution_code = payload.institution_code
    state.ref_expires_at_ms = payload.ref_expires_at_ms
    _move_voucher(state, "voucher.verified")


def _voucher_try_counted(state: state_pb2.VoucherState, payload: events_pb2.VoucherTryCounted, at: At) -> None:
    state.refused_decodes += 1
    _move_voucher(state, "voucher.try_counted")


def _voucher_ended(event: str) -> Callable[[Any, Any, At], None]:
    def fold(state: state_pb2.VoucherState, payload: Any, at: At) -> None:
        _move_voucher(state, event)

    return fold


# ---- encounter ----


def _move_encounter(state: state_pb2.EncounterState, event: str) -> None:
    state.status = state_pb2.EncounterStatus.ValueType(move(Machine.ENCOUNTER, state.status, event))


def _encounter_registered(state: state_pb2.EncounterState, payload: events_pb2.EncounterRegistered, at: At) -> None:
    state.encounter_id = payload.encounter_id
    state.hospital_code = payload.hospital_code
    state.person_key = payload.person_key
    state.person_no = payload.person_no
    state.visit_kind = payload.visit_kind
    state.med_type = payload.med_type
    state.first_visit = payload.first_visit
    state.voucher_key = payload.voucher_key
    state.registered_at_ms = at.recorded_at_ms
    _move_encounter(state, "encounter.registered")


def _encounter_started(state: state_pb2.EncounterState, payload: events_pb2.EncounterStarted, at: At) -> None:
    state.doctor_code = payload.doctor_code
    state.started_at_ms = at.recorded_at_ms
    _move_encounter(state, "encounter.started")


def _doctor_attested(state: state_pb2.EncounterState, payload: events_pb2.DoctorAttested, at: At) -> None:
    state.attested = True
    _move_encounter(state, "encounter.doctor_attested")


def _revisit_proven(state: state_pb2.EncounterState, payload: events_pb2.FollowUpProven, at: At) -> None:
    state.follow_up_proven = True
    _move_encounter(state, "encounter.revisit_proven")


def _diagnosis(event: str) -> Callable[[Any, Any, At], None]:
    def fold(state: state_pb2.EncounterState, payload: events_pb2.DiagnosisRecorded, at: At) -> None:
        del state.diagnoses[:]
        state.diagnoses.extend(payload.diagnoses)
        state.diagnosis_version = at.version
        state.diagnosed_at_ms = at.recorded_at_ms
        _move_encounter(state, event)

    return fold


def _encounter_ended(event: str) -> Callable[[Any, Any, At], None]:
    def fold(state: state_pb2.EncounterState, payload: Any, at: At) -> None:
        _move_encounter(state, event)

    return fold


# ---- prescription ----


def _move_rx(state: state_pb2.PrescriptionState, event: str) -> None:
    state.rx_status = common_pb2.RxStatus.ValueType(move(Machine.RX, state.rx_status, event))


def _move_use(state: state_pb2.PrescriptionState, event: str) -> None:
    after = lifecycle.advance(Machine.USE, state_name(Machine.USE, state.use_status), event)
    number = state.use_before_hold if after == BEFORE_HOLD else _NUMBERS[Machine.USE][after]
    state.use_status = common_pb2.RxUseStatus.ValueType(number)


def _prechecked(state: state_pb2.PrescriptionState, payload: events_pb2.PrescriptionPrechecked, at: At) -> None:
    _move_rx(state, "prescription.prechecked")
    state.rx_no = payload.rx_no
    state.rx_trace_code = payload.rx_trace_code
    state.content.CopyFrom(payload.content)
    state.encounter_key = payload.encounter_key
    state.person_key = payload.person_key
    state.fills_allowed = payload.fills_allowed
    state.prechecked_at_ms = at.recorded_at_ms
    for line in payload.content.lines:
        use = state.lines.add()
        use.line_no = line.line_no
        use.prescribed_e4 = parse_quantity_e4(line.quantity)


def _hospital_reviewed(state: state_pb2.PrescriptionState, payload: events_pb2.HospitalReviewed, at: At) -> None:
    _move_rx(state, "prescription.hospital_reviewed")
    state.reviewed = True
    state.hospital_reviewer_code = payload.pharmacist_code


def _signed(state: state_pb2.PrescriptionState, payload: events_pb2.PrescriptionSigned, at: At) -> None:
    _move_rx(state, "prescription.signed")
    state.prescription_sha256 = payload.prescription_sha256


def _uploaded(state: state_pb2.PrescriptionState, payload: events_pb2.PrescriptionUploaded, at: At) -> None:
    state.uploaded_version = at.version
    state.trace_code_used = True
    state.file_sha256 = payload.file_sha256
    state.file_media_type = payload.file_media_type


def _effective(state: state_pb2.PrescriptionState, payload: Any, at: At) -> None:
    _move_rx(state, "prescription.effective")
    _move_use(state, "prescription.effective")


def _undo_requested(state: state_pb2.PrescriptionState, payload: events_pb2.UndoRequested, at: At) -> None:
    _move_rx(state, "prescription.undo_requested")
    state.undo_requested = True
    state.undo_doctor_code = payload.doctor_code
    state.undo_reason = payload.reason


def _undone(state: state_pb2.PrescriptionState, payload: events_pb2.PrescriptionUndone, at: At) -> None:
    _move_rx(state, "prescription.undone")
    state.undo_requested = False
    state.undo_doctor_code = payload.doctor_code
    state.undo_reason = payload.reason


def _rx_moved(event: str) -> Callable[[Any, Any, At], None]:
    def fold(state: state_pb2.PrescriptionState, payload: Any, at: At) -> None:
        _move_rx(state, event)

    return fold


def _frozen(state: state_pb2.PrescriptionState, payload: events_pb2.PrescriptionFrozen, at: At) -> None:
    _move_rx(state, "prescription.frozen")
    state.case_no = payload.case_no


def _used(state: state_pb2.PrescriptionState, payload: events_pb2.PrescriptionUsed, at: At) -> None:
    _move_use(state, "prescription.used partial" if payload.partial else "prescription.used")


# ---- authorisation ----


def _qr_issued(state: state_pb2.PrescriptionState, payload: events_pb2.QrIssued, at: At) -> None:
    # Only values that can still be used are kept, so that the state does not grow with every value made.
    live = [value for value in state.qr_values if not value.used and value.expires_at_ms >= at.recorded_at_ms]
    del state.qr_values[:]
    state.qr_values.extend(live)
    added = state.qr_values.add()
    added.secret_mac = payload.secret_mac
    added.expires_at_ms = payload.expires_at_ms


def _authorization_issued(state: state_pb2.PrescriptionState, payload: events_pb2.AuthorizationIssued, at: At) -> None:
    for value in state.qr_values:
        if payload.qr_mac and value.secret_mac == payload.qr_mac:
            value.used = True
    issued = [
        held
        for held in state.authorizations
        if lifecycle.triggers_exist(Machine.AUTHORIZATION, state_name(Machine.AUTHORIZATION, held.status))
    ]
    del state.authorizations[:]
    state.authorizations.extend(issued)
    added = state.authorizations.add()
    added.CopyFrom(payload.authorization)
    added.status = state_pb2.AuthorizationStatus.ValueType(move(Machine.AUTHORIZATION, 0, "authorization.issued"))


def _authorization_moved(event: str) -> Callable[[Any, Any, At], None]:
    def fold(state: state_pb2.PrescriptionState, payload: Any, at: At) -> None:
        held = next(held for held in state.authorizations if held.secret_mac == payload.secret_mac)
        held.status = state_pb2.AuthorizationStatus.ValueType(move(Machine.AUTHORIZATION, held.status, event))

    return fold


# ---- order, review ----


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
    _move_use(state, "order.held")
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
            _move_use(state, event)
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
    _move_use(state, "settlement.reversed undo")
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


# ---- erasure ----


def _voucher_erased(state: state_pb2.VoucherState, payload: events_pb2.ContentErased, at: At) -> None:
    """What stays is that the code was used up, where, and until when its reference was good."""
    assert not is_open(Machine.VOUCHER, state.status), "a code that can still be used is not erased"
    state.CopyFrom(
        state_pb2.VoucherState(
            status=state.status,
            institution_code=state.institution_code,
            expires_at_ms=state.expires_at_ms,
            ref_expires_at_ms=state.ref_expires_at_ms,
            erased_version=at.version,
        )
    )


def _account_erased(state: state_pb2.AccountState, payload: events_pb2.ContentErased, at: At) -> None:
    """Nothing stays, and nothing may have been left in it."""
    assert not state.balance_fen, "an account with money in it is not erased"
    state.CopyFrom(state_pb2.AccountState(erased_version=at.version))


def _encounter_erased(state: state_pb2.EncounterState, payload: events_pb2.ContentErased, at: At) -> None:
    """What stays is whose it was to handle and how it ended, and nothing of the person."""
    state.CopyFrom(
        state_pb2.EncounterState(
            encounter_id=state.encounter_id,
            status=state.status,
            hospital_code=state.hospital_code,
            erased_version=at.version,
        )
    )


def _prescription_erased(state: state_pb2.PrescriptionState, payload: events_pb2.ContentErased, at: At) -> None:
    """As for an encounter; the statuses are unchanged."""
    state.CopyFrom(
        state_pb2.PrescriptionState(
            rx_no=state.rx_no,
            rx_status=state.rx_status,
            use_status=state.use_status,
            content=common_pb2.Prescription(hospital_code=state.content.hospital_code),
            orders=[
                state_pb2.Order(
                    order_no=order.order_no,
                    pharmacy_code=order.pharmacy_code,
                    status=order.status,
                    review=order.review,
                    claim=state_pb2.Claim(status=order.claim.status),
                    dispense=state_pb2.DispenseRecord(status=order.dispense.status),
                    delivery=state_pb2.DeliveryRecord(status=order.delivery.status),
                )
                for order in state.orders
            ],
            erased_version=at.version,
        )
    )


_FOLDS: Final[Mapping[tuple[str, str], Callable[[Any, Any, At], None]]] = {
    ("ledger", "ledger.opened"): _ledger_opened,
    ("ledger", "hub_key.registered"): _hub_key_registered,
    ("ledger", "certificate.revoked"): _nothing,
    ("ledger", "catalogue.imported"): _catalogue_imported,
    ("institution", "institution.registered"): _institution_registered,
    ("institution", "agreement.signed"): _agreement_signed,
    ("institution", "agreement.suspended"): _agreement_changed("agreement.suspended"),
    ("institution", "agreement.resumed"): _agreement_changed("agreement.resumed"),
    ("institution", "agreement.terminated"): _agreement_changed("agreement.terminated"),
    ("institution", "signing_key.registered"): _signing_key_registered,
    ("institution", "settlement.reversed"): _nothing,
    ("practitioner", "practitioner.registered"): _practitioner_registered,
    ("practitioner", "practitioner.suspended"): _practitioner_changed("practitioner.suspended"),
    ("practitioner", "practitioner.resumed"): _practitioner_changed("practitioner.resumed"),
    ("practitioner", "practitioner.terminated"): _practitioner_changed("practitioner.terminated"),
    ("practitioner", "signing_key.registered"): _signing_key_registered,
    ("person", "person.registered"): _person_registered,
    ("person", "person.status_changed"): _person_status_changed,
    ("person", "person.voucher_activated"): _voucher_activated,
    ("person", "person.voucher_deactivated"): _voucher_deactivated,
    ("account", "account.opened"): _account_opened,
    ("account", "account.debited"): _account_debited,
    ("account", "account.restored"): _account_restored,
    ("trace_code", "trace_code.sold"): _trace_code_sold,
    ("voucher", "voucher.issued"): _voucher_issued,
    ("voucher", "voucher.verified"): _voucher_verified,
    ("voucher", "voucher.try_counted"): _voucher_try_counted,
    ("voucher", "voucher.expired"): _voucher_ended("voucher.expired"),
    ("voucher", "voucher.revoked"): _voucher_ended("voucher.revoked"),
    ("encounter", "encounter.registered"): _encounter_registered,
    ("encounter", "encounter.started"): _encounter_started,
    ("encounter", "encounter.doctor_attested"): _doctor_attested,
    ("encounter", "encounter.revisit_proven"): _revisit_proven,
    ("encounter", "diagnosis.recorded"): _diagnosis("diagnosis.recorded"),
    ("encounter", "diagnosis.amended"): _diagnosis("diagnosis.amended"),
    ("encounter", "encounter.closed"): _encounter_ended("encounter.closed"),
    ("encounter", "encounter.cancelled"): _encounter_ended("encounter.cancelled"),
    ("voucher", "content.erased"): _voucher_erased,
    ("account", "content.erased"): _account_erased,
    ("encounter", "content.erased"): _encounter_erased,
    ("prescription", "content.erased"): _prescription_erased,
    ("prescription", "prescription.prechecked"): _prechecked,
    ("prescription", "prescription.rule_warned"): _nothing,
    ("prescription", "prescription.override_recorded"): _nothing,
    ("prescription", "prescription.renewed"): _nothing,
    ("prescription", "prescription.hospital_reviewed"): _hospital_reviewed,
    ("prescription", "prescription.signed"): _signed,
    ("prescription", "prescription.uploaded"): _uploaded,
    ("prescription", "prescription.effective"): _effective,
    ("prescription", "prescription.undo_requested"): _undo_requested,
    ("prescription", "prescription.undone"): _undone,
    ("prescription", "prescription.expired"): _rx_moved("prescription.expired"),
    ("prescription", "prescription.exhausted"): _rx_moved("prescription.exhausted"),
    ("prescription", "prescription.frozen"): _frozen,
    ("prescription", "prescription.unfrozen"): _rx_moved("prescription.unfrozen"),
    ("prescription", "prescription.used"): _used,
    ("prescription", "prescription.downloaded"): _downloaded,
    ("prescription", "authorization.qr_issued"): _qr_issued,
    ("prescription", "authorization.issued"): _authorization_issued,
    ("prescription", "authorization.consumed"): _authorization_moved("authorization.consumed"),
    ("prescription", "authorization.expired"): _authorization_moved("authorization.expired"),
    ("prescription", "authorization.revoked"): _authorization_moved("authorization.revoked"),
    ("prescription", "order.created"): _order_created,
    ("prescription", "order.routed"): _nothing,
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
