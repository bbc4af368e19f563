"""Decisions about the visit that a prescription rests on: from its registration to its close or cancellation.

Owns the proofs of presence of a registration (X-06, X-07), the two proofs of an internet visit, and what a recorded
diagnosis must be. It never touches a prescription; it only looks whether one of the visit is in force.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date, timedelta
from typing import Final

from erxhub.core import catalog, guards
from erxhub.core.guards import Visit, about, visit
from erxhub.core.keys import stream_key
from erxhub.core.lifecycle import Machine, Role, permits
from erxhub.core.model import Accepted, Ahead, Command, Draft, Handler, LookAhead, Outcome, Refused, Target
from erxhub.core.statuses import state_name
from erxhub.policy.codes import has_form, id_number_fault, normal_id_number, standing
from erxhub.policy.pack import china_date
from erxhub.v1 import common_pb2, encounter_pb2, events_pb2, registry_pb2, signed_pb2, state_pb2

ID_DIGITS: Final = 20

PRESCRIPTIONS_LOOKED_AT: Final = 50
"""A cancellation looks at fewer prescriptions than this; a visit with as many or more cannot be cancelled."""

IN_FORCE_OR_USED: Final = frozenset({"EFFECTIVE", "FROZEN", "EXHAUSTED"})
"""Prescription states that keep the visit from being cancelled."""

_NEXT_STEP: Final[Mapping[str, str]] = {"REGISTERED": "start consultation", "IN_CONSULT": "record diagnosis"}
"""What has to come next in a state; from every other state a step that was missed needs a new visit."""

_ID_NUMBER_SHAPE: Final = re.compile("[0-9]{17}[0-9Xx]")
"""What a citizen identity number looks like; a social card may be held by somebody with another document."""

_INTERNET: Final = common_pb2.VISIT_KIND_INTERNET


def _step(tx: Draft, command: Command, encounter_id: str, trigger: str, role: Role) -> Visit | Refused:
    """The caller's encounter in a state in which `role` may fire `trigger`. Refusals: ENCOUNTER_STATE."""
    found = visit(tx, command, encounter_id)
    if isinstance(found, Refused) or permits(Machine.ENCOUNTER, found.status, trigger, role):
        return found
    return found.missing(_NEXT_STEP.get(found.status, "register"))


# ---- registration ----


def register(tx: Draft, command: Command) -> Outcome:
    """Register a visit of a proven person (挂号, 2201). Leaves `encounter.registered`, caused by the voucher's decode.

    Offline, certificate type 01 needs a live voucher reference, 02 and 03 the number of the certificate as registered,
    03 the card's serial number besides. Online, the online identity number is the proof, whatever the certificate. A
    number or reference that is given without need must be right too.

    Refusals: INST_CODE, INST_IMPERSONATION, INST_UNKNOWN, AGR_INACTIVE, AGR_NO_SUPPLEMENT; INPUT_MALFORMED (med_type);
    CERT_CARD_SN_MISSING, CERT_PROOF_MISSING, ID_CHECKSUM, ID_MISMATCH (a person who does not exist has no matching
    number either), VCH_*, VCH_SUBJECT_MISMATCH, PSN_INACTIVE.
    """
    request: encounter_pb2.RegisterEncounterRequest = command.request
    internet = request.visit_kind == _INTERNET
    refused = guards.own_institution(command, request.hospital_code, "hospital_code")
    if refused is not None:
        return refused
    institution = guards.institution(tx, request.hospital_code, "hospital_code")
    if isinstance(institution, Refused):
        return institution
    kinds = [registry_pb2.AGREEMENT_KIND_BASE, *([registry_pb2.AGREEMENT_KIND_INTERNET] if internet else [])]
    for kind in kinds:
        refused = guards.agreement(tx, institution, kind)
        if refused is not None:
            return refused
    if standing("med_type", request.med_type) is None:
        return Refused("INPUT_MALFORMED", field="med_type")
    refused = _proof_missing(request, internet)
    if refused is not None:
        return refused

    person_key = tx.find_secret("person", request.person_no)
    reference = _reference(tx, command, request, internet)
    if isinstance(reference, Refused):
        return reference
    if reference is not None and reference.person_key != person_key:
        subject = Target(reference.voucher_key, reference.person_key)
        return Refused("VCH_SUBJECT_MISMATCH", field="person_no", targets=(subject,))
    if request.id_number:
        refused = _id_number_refused(tx, request, person_key)
        if refused is not None:
            return refused
    assert person_key is not None, "a reference or a matching number proved the person"
    person = guards.person_active(tx, person_key)
    if isinstance(person, Refused):
        return person

    encounter_id = institution.area_code + tx.draw.digits(ID_DIGITS)
    registered = events_pb2.EncounterRegistered(
        encounter_id=encounter_id,
        hospital_code=request.hospital_code,
        person_key=person_key,
        person_no=request.person_no,
        visit_kind=request.visit_kind,
        med_type=request.med_type,
        first_visit=request.first_visit,
        department=request.department,
        voucher_key=reference.voucher_key if reference is not None else b"",
        certificate_type=f"{request.certificate_type:02d}",
    )
    causes = [tx.leaf(reference.voucher_key)] if reference is not None else []
    key = stream_key("encounter", tx.draw.bytes(16))
    tx.emit("encounter", key, "encounter.registered", registered, causes=causes)
    return Accepted(encounter_pb2.RegisterEncounterResponse(encounter_id=encounter_id))


def _ahead_of_registration(command: Command) -> Ahead:
    request: encounter_pb2.RegisterEncounterRequest = command.request
    if guards.own_institution(command, request.hospital_code, "hospital_code") is not None:
        return Ahead()
    references = (("voucher_ref", request.voucher_ref), ("online_identity", request.online_identity_no))
    return Ahead(
        names=(("institution", command.caller.id.encode()),),
        secrets=(("person", request.person_no), *[reference for reference in references if reference[1]]),
    )


def _proof_missing(request: encounter_pb2.RegisterEncounterRequest, internet: bool) -> Refused | None:
    """What X-06 and X-07 ask for this kind of visit and certificate, and the request does not bring."""
    social_card = request.certificate_type == encounter_pb2.VISIT_CERTIFICATE_TYPE_SOCIAL_CARD
    if social_card and not request.card_sn:
        return Refused("CERT_CARD_SN_MISSING", field="card_sn")
    if internet:
        needed = "online_identity_no"
    elif request.certificate_type == encounter_pb2.VISIT_CERTIFICATE_TYPE_VOUCHER:
        needed = "voucher_ref"
    else:
        needed = "id_number"
    return None if getattr(request, needed) else Refused("CERT_PROOF_MISSING", field=needed)


def _reference(
    tx: Draft, command: Command, request: encounter_pb2.RegisterEncounterRequest, internet: bool
) -> guards.Reference | Refused | None:
    if internet:
        return guards.online_identity(tx, command, request.online_identity_no, "online_identity_no")
    if not request.voucher_ref:
        return None
    business_type = tx.rules(command.caller.area_code).text("business_type_prescribing_offline")
    return guards.reference(tx, command, request.voucher_ref, (business_type,), "voucher_ref")


def _id_number_refused(
    tx: Draft, request: encounter_pb2.RegisterEncounterRequest, person_key: bytes | None
) -> Refused | None:
    """The certificate's number against its own check (K-17) and against the person's record.

    Whether the number has a check is told by the request alone, and a person who is not registered is answered like one
    with another number: nobody learns here who is insured, or with which certificate.
    """
    id_card = request.certificate_type == encounter_pb2.VISIT_CERTIFICATE_TYPE_ID_CARD
    checked = id_card or _ID_NUMBER_SHAPE.fullmatch(request.id_number) is not None
    if checked and id_number_fault(request.id_number, china_date(tx.now_ms).isoformat()) is not None:
        return Refused("ID_CHECKSUM", field="id_number")
    person = guards.person(tx, person_key) if person_key is not None else None
    if person is None or normal_id_number(request.id_number) != person.id_number:
        targets = (Target(person_key, person_key),) if person_key is not None else ()
        return Refused("ID_MISMATCH", field="id_number", targets=targets)
    return None


# ---- consultation ----


def start(tx: Draft, command: Command) -> Outcome:
    """The doctor begins the consultation (接诊). Leaves `encounter.started`.

    Refusals: ENCOUNTER_STATE, DR_NOT_ALLOWED, DR_EXPERIENCE (internet visits, P-12).
    """
    request: encounter_pb2.StartEncounterRequest = command.request
    tx.want(names=[("encounter", request.encounter_id.encode()), ("practitioner", request.doctor_code.encode())])
    found = _step(tx, command, request.encounter_id, "start consultation", Role.DOCTOR)
    if isinstance(found, Refused):
        return found
    doctor = _doctor(tx, found, request.doctor_code, "doctor_code")
    if isinstance(doctor, Refused):
        return about(doctor, found.target)
    rules = tx.rules(command.caller.area_code)
    if found.state.visit_kind == _INTERNET and doctor.practice_years < rules.integer("doctor_practice_years"):
        return Refused("DR_EXPERIENCE", field="doctor_code", targets=(found.target,))
    started = events_pb2.EncounterStarted(doctor_code=request.doctor_code)
    tx.emit("encounter", found.key, "encounter.started", started, actor=request.doctor_code)
    return Accepted(encounter_pb2.StartEncounterResponse())


def _doctor(tx: Draft, found: Visit, doctor_code: str, field: str) -> state_pb2.PractitionerState | Refused:
    return guards.practitioner(
        tx, doctor_code, (registry_pb2.PRACTITIONER_KIND_DOCTOR,), found.state.hospital_code, "DR_NOT_ALLOWED", field
    )


def attest_doctor(tx: Draft, command: Command) -> Outcome:
    """Attest by audio or video that the treating doctor is genuine (医师真实性核验, S3-09).

    Leaves `encounter.doctor_attested`.

    The media belong to this consultation: taken since it began and not in the future, by as much as clocks may differ.
    Refusals: ENCOUNTER_STATE, DR_NOT_ATTESTED (no live person found, or taken at another time).
    """
    request: encounter_pb2.AttestDoctorRequest = command.request
    found = _step(tx, command, request.encounter_id, "attest doctor", Role.HOSPITAL)
    if isinstance(found, Refused):
        return found
    if not request.liveness_passed:
        return Refused("DR_NOT_ATTESTED", field="liveness_passed", targets=(found.target,))
    window_ms = tx.rules(command.caller.area_code).duration_ms("attestation_window")
    if not found.state.started_at_ms - window_ms <= request.attested_at_ms <= tx.now_ms + window_ms:
        return Refused("DR_NOT_ATTESTED", field="attested_at_ms", targets=(found.target,))
    attested = events_pb2.DoctorAttested(media_sha256=request.media_sha256, attested_at_ms=request.attested_at_ms)
    tx.emit("encounter", found.key, "encounter.doctor_attested", attested)
    return Accepted(encounter_pb2.AttestDoctorResponse())


def prove_follow_up(tx: Draft, command: Command) -> Outcome:
    """Prove that the visit is a follow-up of the same disease (复诊证明, S2-02). Leaves `encounter.revisit_proven`.

    Refusals: ENCOUNTER_STATE; INPUT_MALFORMED (no such day), DX_INVALID, INST_CODE; RX_NOT_REVISIT (registered as a
    first visit, or the earlier visit lies in the future or outside the look-back time).
    """
    request: encounter_pb2.ProveFollowUpRequest = command.request
    found = _step(tx, command, request.encounter_id, "prove follow-up", Role.HOSPITAL)
    if isinstance(found, Refused):
        return found
    try:
        earlier = date.fromisoformat(request.earlier_visit_on)
    except ValueError:
        return Refused("INPUT_MALFORMED", field="earlier_visit_on", targets=(found.target,))
    if not has_form("disease", request.disease_code):
        return Refused("DX_INVALID", field="disease_code", targets=(found.target,))
    if not has_form("hospital", request.earlier_hospital_code):
        return Refused("INST_CODE", field="earlier_hospital_code", targets=(found.target,))
    if found.state.first_visit:
        return Refused("RX_NOT_REVISIT", targets=(found.target,))
    today = china_date(tx.now_ms)
    look_back = timedelta(milliseconds=tx.rules(command.caller.area_code).duration_ms("follow_up_lookback"))
    if not today - look_back <= earlier <= today:
        return Refused("RX_NOT_REVISIT", field="earlier_visit_on", targets=(found.target,))
    proven = events_pb2.FollowUpProven(
        disease_code=request.disease_code,
        earlier_hospital_code=request.earlier_hospital_code,
        earlier_visit_on=request.earlier_visit_on,
    )
    tx.emit("encounter", found.key, "encounter.revisit_proven", proven)
    return Accepted(encounter_pb2.ProveFollowUpResponse())


# ---- diagnosis ----


def record_diagnosis(tx: Draft, command: Command) -> Outcome:
    """Record the diagnosis that the treating doctor signed (诊断, 2203, P-07). Leaves `diagnosis.recorded`.

    Refusals: ENCOUNTER_STATE; DR_NOT_ALLOWED; SIG_INVALID (also for a statement about another visit or by another
    doctor), SIG_CERT, RX_TIME; DX_INVALID; online DR_NOT_ATTESTED and RX_NOT_REVISIT.
    """
    refused = _diagnosis(tx, command, "record diagnosis", "diagnosis.recorded", "")
    return refused or Accepted(encounter_pb2.RecordDiagnosisResponse())


def amend_diagnosis(tx: Draft, command: Command) -> Outcome:
    """Replace the diagnosis; a signed prescription keeps its own copy (更正诊断). Leaves `diagnosis.amended`.

    Refusals: as `record_diagnosis`.
    """
    request: encounter_pb2.AmendDiagnosisRequest = command.request
    refused = _diagnosis(tx, command, "amend diagnosis", "diagnosis.amended", request.reason)
    return refused or Accepted(encounter_pb2.AmendDiagnosisResponse())


def _diagnosis(tx: Draft, command: Command, trigger: str, event: str, reason: str) -> Refused | None:
    request: encounter_pb2.RecordDiagnosisRequest | encounter_pb2.AmendDiagnosisRequest = command.request
    found = _step(tx, command, request.encounter_id, trigger, Role.DOCTOR)
    if isinstance(found, Refused):
        return found
    doctor_code = found.state.doctor_code
    doctor = _doctor(tx, found, doctor_code, "statement")
    if isinstance(doctor, Refused):
        return about(doctor, found.target)
    if found.state.visit_kind == _INTERNET:
        if not found.state.attested:
            return Refused("DR_NOT_ATTESTED", targets=(found.target,), legal=("attest doctor",))
        if not found.state.follow_up_proven:
            return Refused("RX_NOT_REVISIT", targets=(found.target,), legal=("prove follow-up",))
    statement = guards.signed(
        tx, command, "statement", signed_pb2.DiagnosisStatement, doctor_code, found.state.hospital_code
    )
    if isinstance(statement, Refused):
        return about(statement, found.target)
    if statement.encounter_id != request.encounter_id:
        return Refused("SIG_INVALID", field="statement.encounter_id", targets=(found.target,))
    if statement.doctor_code != doctor_code:
        return Refused("SIG_INVALID", field="statement.doctor_code", targets=(found.target,))
    if not guards.follows(tx, statement.signed_at_ms, found.state.diagnosed_at_ms):
        detail = {"not_before_ms": str(found.state.diagnosed_at_ms)}
        return Refused("RX_TIME", field="statement.signed_at_ms", detail=detail, targets=(found.target,))
    refused = _diagnoses_refused(tx, statement)
    if refused is not None:
        return about(refused, found.target)
    recorded = events_pb2.DiagnosisRecorded(
        statement=request.statement, diagnoses=statement.diagnoses, doctor_code=doctor_code, reason=reason
    )
    tx.emit("encounter", found.key, event, recorded, actor=doctor_code)
    return None


def _ahead_of_diagnosis(command: Command) -> Ahead:
    claimed = guards.claimed(command, "statement", signed_pb2.DiagnosisStatement)
    doctor = () if isinstance(claimed, Refused) else (("practitioner", claimed.doctor_code.encode()),)
    facts = command.evidence.signatures.get("statement", ())
    keys = [("revoked_key", fact.key_id.encode()) for fact in facts[:1]]
    return Ahead((("encounter", command.request.encounter_id.encode()), *doctor, *keys), ledger=True)


def _diagnoses_refused(tx: Draft, statement: signed_pb2.DiagnosisStatement) -> Refused | None:
    """DX_INVALID for none, a repeated one, not exactly one main one, or a code that is no known diagnosis."""
    diagnoses = statement.diagnoses
    codes = [diagnosis.code for diagnosis in diagnoses]
    if len(set(codes)) != len(codes) or sum(diagnosis.main for diagnosis in diagnoses) != 1:
        return Refused("DX_INVALID", field="statement.diagnoses")
    place = catalog.diagnosis_fault(tx, [(diagnosis.code, diagnosis.diagnosis_type) for diagnosis in diagnoses])
    return None if place is None else Refused("DX_INVALID", field=f"statement.diagnoses[{place}].code")


# ---- end ----


def close(tx: Draft, command: Command) -> Outcome:
    """Close the visit (结束就诊). Leaves `encounter.closed`. Refusals: ENCOUNTER_STATE."""
    request: encounter_pb2.CloseEncounterRequest = command.request
    found = _step(tx, command, request.encounter_id, "close", Role.HOSPITAL)
    if isinstance(found, Refused):
        return found
    tx.emit("encounter", found.key, "encounter.closed", events_pb2.EncounterClosed())
    return Accepted(encounter_pb2.CloseEncounterResponse())


def cancel(tx: Draft, command: Command) -> Outcome:
    """Cancel the visit while no prescription of it is in force, frozen or used (退号, 2202).

    Leaves `encounter.cancelled`.
    Refusals: ENCOUNTER_STATE, also with the missing step "undo" while a prescription stands in the way.
    """
    request: encounter_pb2.CancelEncounterRequest = command.request
    found = _step(tx, command, request.encounter_id, "cancel", Role.HOSPITAL)
    if isinstance(found, Refused):
        return found
    prescriptions = tx.listing("encounter_rx", found.key, PRESCRIPTIONS_LOOKED_AT)
    if len(prescriptions) == PRESCRIPTIONS_LOOKED_AT:
        return found.missing("undo")
    tx.want(streams=prescriptions)
    for rx_key in prescriptions:
        rx = tx.state(rx_key, state_pb2.PrescriptionState)
        if rx is not None and state_name(Machine.RX, rx.rx_status) in IN_FORCE_OR_USED:
            return found.missing("undo")
    tx.emit("encounter", found.key, "encounter.cancelled", events_pb2.EncounterCancelled(reason=request.reason))
    return Accepted(encounter_pb2.CancelEncounterResponse())


HANDLERS: Final[Mapping[str, Handler]] = {
    "EncounterService/RegisterEncounter": register,
    "EncounterService/StartEncounter": start,
    "EncounterService/AttestDoctor": attest_doctor,
    "EncounterService/ProveFollowUp": prove_follow_up,
    "EncounterService/RecordDiagnosis": record_diagnosis,
    "EncounterService/AmendDiagnosis": amend_diagnosis,
    "EncounterService/CloseEncounter": close,
    "EncounterService/CancelEncounter": cancel,
}

LOOK_AHEADS: Final[Mapping[str, LookAhead]] = {
    "EncounterService/RegisterEncounter": _ahead_of_registration,
    "EncounterService/RecordDiagnosis": _ahead_of_diagnosis,
    "EncounterService/AmendDiagnosis": _ahead_of_diagnosis,
}
