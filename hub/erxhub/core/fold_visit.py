"""What events do to vouchers, visits, accounts and drug trace codes.

Owns the small things around a prescription. It never decides or refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from erxhub.core.events import At, Folds
from erxhub.core.lifecycle import Machine
from erxhub.core.statuses import is_open, move
from erxhub.v1 import events_pb2, state_pb2

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


FOLDS: Final[Folds] = {
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
}
