"""What a hospital does with a prescription, and the agency's freeze: precheck, upload, revoke, freeze, unfreeze.

Owns who may take these steps, in which order their guards are asked, and what each step leaves. The rules about the
content of a prescription are the table of `rx_rules`; what follows by itself is in `consequences`.
"""

from __future__ import annotations

import dataclasses
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from erxhub.core import catalog, consequences, guards, lifecycle, rx_rules
from erxhub.core.index import hospital_rx_name
from erxhub.core.keys import prescription_key
from erxhub.core.lifecycle import START, Machine, Role
from erxhub.core.model import Accepted, Ahead, Command, Draft, Handler, LookAhead, MessageT, Outcome, Refused, Target
from erxhub.core.refusals import CATALOGUE
from erxhub.core.rx_rules import Facts, Finding
from erxhub.core.statuses import state_name
from erxhub.v1 import catalog_pb2, common_pb2, events_pb2, prescribing_pb2, registry_pb2, signed_pb2, state_pb2

PRESCRIBING: Final = frozenset({"DIAGNOSED"})
"""Encounter states in which a prescription may be prechecked."""

UPLOADING: Final = frozenset({"DIAGNOSED", "CLOSED"})
"""Encounter states in which a prechecked prescription may be uploaded; a cancelled visit has none."""

HELD: Final = frozenset({"HELD"})
"""Use states in which a pharmacy holds the prescription."""

FINDINGS_SHOWN: Final = 16
"""A refused precheck names at most so many findings."""

_RX: Final = "prescription"
_MAGIC: Final[Mapping[str, bytes]] = {"application/pdf": b"%PDF-", "application/ofd": b"PK"}
_HOSPITAL_ROLES: Final = frozenset({Role.HOSPITAL, Role.DOCTOR, Role.HOSP_PHARMACIST})

# What an upload meets in a state that has left PRECHECKED. Every state that is not named came after an upload, so the
# trace code is used.
_NO_UPLOAD: Final[Mapping[str, str]] = {"UNDONE": "RX_UNDONE", "EXPIRED": "RX_NOT_EFFECTIVE"}
_UPLOADED_BEFORE: Final = "RX_TRACE_CODE"


def _legal(state: state_pb2.PrescriptionState, roles: frozenset[Role]) -> tuple[str, ...]:
    status = state_name(Machine.RX, state.rx_status)
    return tuple(trigger for trigger, by in lifecycle.triggers_from(Machine.RX, status) if by & roles)


def _doctor(
    tx: Draft, command: Command, code: str, refusal_code: str, field: str
) -> state_pb2.PractitionerState | Refused:
    kinds = (registry_pb2.PRACTITIONER_KIND_DOCTOR,)
    return guards.practitioner(tx, code, kinds, command.caller.id, refusal_code, field)


def _agreements(
    tx: Draft, institution: state_pb2.InstitutionState, encounter: state_pb2.EncounterState
) -> Refused | None:
    """The base agreement, and the supplement for an internet visit. Refusals: AGR_INACTIVE, AGR_NO_SUPPLEMENT."""
    inactive = guards.agreement(tx, institution, registry_pb2.AGREEMENT_KIND_BASE)
    if inactive is not None or encounter.visit_kind != common_pb2.VISIT_KIND_INTERNET:
        return inactive
    return guards.agreement(tx, institution, registry_pb2.AGREEMENT_KIND_INTERNET)


# ---- precheck ----


def precheck(tx: Draft, command: Command) -> Outcome:
    """Check a prescription before it is signed; give it its number and its trace code (电子处方上传预核验).

    The hospital's own number (hosp_rxno) again with equal content returns the first numbers and leaves no event.

    Refusals: INST_CODE, INST_IMPERSONATION, RX_DUPLICATE, INST_UNKNOWN, ENCOUNTER_STATE (not diagnosed; one answer for
    an unknown and a foreign visit), AGR_INACTIVE, AGR_NO_SUPPLEMENT, VCH_SUBJECT_MISMATCH, PSN_INACTIVE,
    DR_NOT_ALLOWED, and whatever the rules of `rx_rules` block: the first finding decides, and `findings` in the detail
    names the first 16 as CODE, or CODE@line.
    """
    asked: common_pb2.Prescription = command.request.prescription
    foreign = guards.own_institution(command, asked.hospital_code, "prescription.hospital_code")
    if foreign is not None:
        return foreign
    existing = tx.find(*hospital_rx_name(asked.hospital_code, asked.hospital_rx_no))
    if existing is not None:
        return _prechecked_before(tx, existing, asked)
    institution = guards.institution(tx, command.caller.id, "prescription.hospital_code")
    if isinstance(institution, Refused):
        return institution
    visit = guards.visit(tx, command, asked.encounter_id, "prescription.encounter_id")
    if isinstance(visit, Refused):
        return visit
    if visit.status not in PRESCRIBING:
        return dataclasses.replace(visit.missing("record diagnosis"), field="prescription.encounter_id")
    facts = _facts(tx, command, institution, visit.state)
    if isinstance(facts, Refused):
        return guards.about(facts, visit.target)
    findings = rx_rules.assess(facts)
    blocked = rx_rules.blocking(findings)
    if blocked:
        return _rule_blocked(blocked, visit.target)
    return _accept_precheck(tx, command, facts, visit, rx_rules.warnings(findings))


def _ahead_of_precheck(command: Command) -> Ahead:
    asked: common_pb2.Prescription = command.request.prescription
    if guards.own_institution(command, asked.hospital_code, "prescription.hospital_code") is not None:
        return Ahead()
    return Ahead(
        names=(
            hospital_rx_name(asked.hospital_code, asked.hospital_rx_no),
            ("institution", command.caller.id.encode()),
            ("practitioner", asked.doctor_code.encode()),
            ("encounter", asked.encounter_id.encode()),
        ),
        streams=(prescription_key(asked.renews_rx_no),) if asked.renews_rx_no else (),
        ledger=True,
    )


def _prechecked_before(tx: Draft, rx_key: bytes, asked: common_pb2.Prescription) -> Outcome:
    state = consequences.current(tx, rx_key)
    target = Target(rx_key, state.person_key)
    if state.content != asked:
        return Refused("RX_DUPLICATE", field="prescription.hospital_rx_no", targets=(target,))
    reply = prescribing_pb2.PrecheckPrescriptionResponse(rx_no=state.rx_no, rx_trace_code=state.rx_trace_code)
    return Accepted(reply, targets=(target,))


class _Content(NamedTuple):
    """The rows of the editions in force that a prescription names; `diseases`, `chronic`: None without an edition."""

    drugs: dict[str, catalog_pb2.Drug]
    diseases: dict[str, catalog_pb2.Disease] | None
    chronic: dict[str, catalog_pb2.ChronicDisease] | None
    frequencies: dict[str, catalog_pb2.Frequency]


def _content(tx: Draft, asked: common_pb2.Prescription, person_key: bytes) -> _Content:
    """Load person and catalogue rows in one round."""
    wanted: dict[str, list[str]] = {
        catalog.DRUGS: [line.drug_code for line in asked.lines],
        catalog.FREQUENCIES: [line.frequency_code for line in asked.lines if line.frequency_code],
        catalog.DISEASES: [
            diagnosis.code for diagnosis in asked.diagnoses if diagnosis.diagnosis_type == rx_rules.WESTERN_DIAGNOSIS
        ],
        catalog.CHRONIC: [asked.chronic_code] if asked.chronic_code else [],
    }
    editions = {dataset: catalog.current_edition(tx, dataset) for dataset in wanted}
    rows = [
        (dataset, edition, code)
        for dataset, edition in editions.items()
        if edition is not None
        for code in dict.fromkeys(wanted[dataset])
    ]
    tx.want(streams=[person_key], catalog=rows)

    def found(dataset: str, kind: type[MessageT]) -> dict[str, MessageT]:
        bodies = {code: tx.catalog(dataset, edition, code) for name, edition, code in rows if name == dataset}
        return {code: kind.FromString(body) for code, body in bodies.items() if body is not None}

    return _Content(
        drugs=found(catalog.DRUGS, catalog_pb2.Drug),
        diseases=None if editions[catalog.DISEASES] is None else found(catalog.DISEASES, catalog_pb2.Disease),
        chronic=None if editions[catalog.CHRONIC] is None else found(catalog.CHRONIC, catalog_pb2.ChronicDisease),
        frequencies=found(catalog.FREQUENCIES, catalog_pb2.Frequency),
    )


def _facts(
    tx: Draft, command: Command, institution: state_pb2.InstitutionState, encounter: state_pb2.EncounterState
) -> Facts | Refused:
    """Check the parties of the visit, then gather what the rules read."""
    asked: common_pb2.Prescription = command.request.prescription
    content = _content(tx, asked, encounter.person_key)
    no_agreement = _agreements(tx, institution, encounter)
    if no_agreement is not None:
        return no_agreement
    if asked.person_no != encounter.person_no:
        return Refused("VCH_SUBJECT_MISMATCH", field="prescription.person_no")
    person = guards.person_active(tx, encounter.person_key)
    if isinstance(person, Refused):
        return person
    if asked.doctor_code != encounter.doctor_code:
        return Refused("DR_NOT_ALLOWED", field="prescription.doctor_code")
    doctor = _doctor(tx, command, asked.doctor_code, "DR_NOT_ALLOWED", "prescription.doctor_code")
    if isinstance(doctor, Refused):
        return doctor
    renewed = None
    if asked.renews_rx_no:
        renewed = tx.state(prescription_key(asked.renews_rx_no), state_pb2.PrescriptionState)
        if renewed is not None and renewed.erased_version:
            renewed = None  # what it said is not known any more
    return Facts(
        prescription=asked,
        encounter=encounter,
        person=person,
        doctor=doctor,
        drugs=content.drugs,
        diseases=content.diseases,
        chronic=content.chronic,
        frequencies=content.frequencies,
        renewed=renewed,
        rules=tx.rules(command.caller.area_code),
        now_ms=tx.now_ms,
    )


def _rule_blocked(blocked: Sequence[Finding], target: Target) -> Refused:
    shown = (
        f"{finding.code}@{finding.line_no}" if finding.line_no else finding.code for finding in blocked[:FINDINGS_SHOWN]
    )
    return Refused(
        blocked[0].code,
        field=blocked[0].field,
        detail={"findings": ";".join(shown)},
        targets=(target,),
        entry="prescription.rule_blocked",
    )


def _accept_precheck(
    tx: Draft, command: Command, facts: Facts, visit: guards.Visit, warned: Sequence[Finding]
) -> Accepted:
    asked = facts.prescription
    area = command.caller.id[1:7]
    rx_no = area + tx.draw.digits(21)
    rx_trace_code = area + tx.draw.digits(14)
    rx_key = prescription_key(rx_no)
    multi_use = asked.repeatable and facts.rules.flag("multi_use")
    prechecked = events_pb2.PrescriptionPrechecked(
        rx_no=rx_no,
        rx_trace_code=rx_trace_code,
        content=asked,
        encounter_key=visit.key,
        person_key=visit.state.person_key,
        diagnosis_version=visit.state.diagnosis_version,
        fills_allowed=max(asked.repeats_max, 1) if multi_use else 1,
    )
    tx.emit(_RX, rx_key, "prescription.prechecked", prechecked, causes=[tx.leaf(visit.key)])
    shown = [_warning(finding) for finding in warned]
    if shown:
        tx.emit(_RX, rx_key, "prescription.rule_warned", events_pb2.RuleWarned(warnings=shown))
    for finding in warned:
        if finding.answer is not None:
            override = events_pb2.OverrideRecorded(acknowledgement=finding.answer)
            tx.emit(_RX, rx_key, "prescription.override_recorded", override, actor=asked.doctor_code)
    if asked.renews_rx_no:
        tx.emit(
            _RX,
            rx_key,
            "prescription.renewed",
            events_pb2.PrescriptionRenewed(renews_rx_no=asked.renews_rx_no),
            causes=[tx.leaf(prescription_key(asked.renews_rx_no))],
        )
    reply = prescribing_pb2.PrecheckPrescriptionResponse(rx_no=rx_no, rx_trace_code=rx_trace_code, warnings=shown)
    return Accepted(reply)


def _warning(finding: Finding) -> prescribing_pb2.Warning:
    kind = CATALOGUE[finding.code]
    return prescribing_pb2.Warning(code=finding.code, line_no=finding.line_no, message_en=kind.en, message_zh=kind.zh)


# ---- upload ----


@dataclass(slots=True, init=False)
class _Upload:
    """The three signed contents of an upload, parsed and not yet proven."""

    document: signed_pb2.PrescriptionDocument
    review: signed_pb2.HospitalReviewStatement
    seal: signed_pb2.UploadSealStatement

    def __init__(
        self,
        document: signed_pb2.PrescriptionDocument,
        review: signed_pb2.HospitalReviewStatement,
        seal: signed_pb2.UploadSealStatement,
    ) -> None:
        self.document = document
        self.review = review
        self.seal = seal


def upload(tx: Draft, command: Command) -> Outcome:
    """Take the signed prescription with its file; it takes effect (电子处方上传).

    One call carries three steps in this order: the hospital pharmacist's review, the doctor's signature, the upload
    under the hospital's seal. All or none of them happen.

    Refusals: SIG_INVALID (a signature or a digest does not fit, or the content is not the prechecked one),
    INPUT_MALFORMED (a content does not parse, or the file is not of its media type), RX_UNKNOWN, INST_CODE and
    INST_IMPERSONATION (the seal names another hospital), RX_UNDONE, RX_NOT_EFFECTIVE (expired before the upload),
    RX_TRACE_CODE, RX_TRACE_CODE_INVALID, INST_UNKNOWN, AGR_INACTIVE, AGR_NO_SUPPLEMENT, ENCOUNTER_STATE (cancelled),
    PSN_INACTIVE, DR_NOT_ALLOWED, RX_NO_HOSP_REVIEW, SIG_CERT, RX_TIME.
    """
    parsed = _parse(command)
    if isinstance(parsed, Refused):
        return parsed
    document, seal = parsed.document, parsed.seal
    rx_key = prescription_key(document.rx_no)
    state = _issued_here(tx, command, rx_key)
    if isinstance(state, Refused):
        return state
    refused = (
        guards.own_institution(command, seal.hospital_code, "seal.payload")
        or _may_upload(state, document)
        or _parties(tx, command, state)
        or _proofs(tx, command, state, parsed)
    )
    if refused is not None:
        return guards.about(refused, Target(rx_key, state.person_key))
    return _accept_upload(tx, command, rx_key, parsed)


def _ahead_of_upload(command: Command) -> Ahead:
    """All that an upload looks up. Visit and person by what the document says of them, which is what the prescription's
    state says, or the upload is refused.
    """
    parsed = _parse(command)
    if isinstance(parsed, Refused):
        return Ahead()
    document, review = parsed.document, parsed.review
    content = document.prescription
    return Ahead(
        names=(
            ("institution", command.caller.id.encode()),
            ("practitioner", content.doctor_code.encode()),
            ("practitioner", review.pharmacist_code.encode()),
            ("encounter", content.encounter_id.encode()),
            *[("revoked_key", facts[0].key_id.encode()) for facts in command.evidence.signatures.values() if facts],
        ),
        streams=(prescription_key(document.rx_no),),
        secrets=(("person", content.person_no),),
    )


def _parse(command: Command) -> _Upload | Refused:
    document = guards.claimed(command, "prescription", signed_pb2.PrescriptionDocument)
    if isinstance(document, Refused):
        return document
    review = guards.claimed(command, "review", signed_pb2.HospitalReviewStatement)
    if isinstance(review, Refused):
        return review
    seal = guards.claimed(command, "seal", signed_pb2.UploadSealStatement)
    return seal if isinstance(seal, Refused) else _Upload(document, review, seal)


def _issued_here(tx: Draft, command: Command, rx_key: bytes) -> state_pb2.PrescriptionState | Refused:
    """The prescription, if the calling hospital issued it; RX_UNKNOWN alike for none and for another's."""
    state = tx.state(rx_key, state_pb2.PrescriptionState)
    if state is None:
        return Refused("RX_UNKNOWN", field="rx_no")
    if state.content.hospital_code != command.caller.id:
        return Refused("RX_UNKNOWN", field="rx_no", targets=(Target(rx_key, state.person_key),))
    if state.erased_version:
        return guards.erased("rx_no", Target(rx_key))
    return state


def _may_upload(state: state_pb2.PrescriptionState, document: signed_pb2.PrescriptionDocument) -> Refused | None:
    status = state_name(Machine.RX, state.rx_status)
    if not lifecycle.permits(Machine.RX, status, "hospital review", Role.HOSP_PHARMACIST):
        return Refused(
            _NO_UPLOAD.get(status, _UPLOADED_BEFORE),
            field="prescription.payload",
            detail={"rx_status": status},
            legal=_legal(state, _HOSPITAL_ROLES),
        )
    if not hmac.compare_digest(document.rx_trace_code.encode(), state.rx_trace_code.encode()):
        return Refused("RX_TRACE_CODE_INVALID", field="prescription.payload")
    return None


def _parties(tx: Draft, command: Command, state: state_pb2.PrescriptionState) -> Refused | None:
    """Agreement, visit and person may have changed since the precheck."""
    tx.want(streams=[state.person_key, state.encounter_key])
    institution = guards.institution(tx, command.caller.id)
    if isinstance(institution, Refused):
        return institution
    encounter = tx.state(state.encounter_key, state_pb2.EncounterState)
    assert encounter is not None, "a prescription is prechecked on an encounter"
    status = state_name(Machine.ENCOUNTER, encounter.status)
    if status not in UPLOADING:
        return Refused("ENCOUNTER_STATE", field="prescription.payload", detail={"state": status})
    no_agreement = _agreements(tx, institution, encounter)
    if no_agreement is not None:
        return no_agreement
    person = guards.person_active(tx, state.person_key)
    return person if isinstance(person, Refused) else None


def _proofs(tx: Draft, command: Command, state: state_pb2.PrescriptionState, parsed: _Upload) -> Refused | None:
    """Doctor, pharmacist and seal, each with the signature and with what it covers, in the order of signing."""
    return (
        _doctor_signed(tx, command, state, parsed)
        or _review_signed(tx, command, state, parsed)
        or _sealed(tx, command, parsed)
    )


def _doctor_signed(tx: Draft, command: Command, state: state_pb2.PrescriptionState, parsed: _Upload) -> Refused | None:
    if parsed.document.prescription != state.content:
        return Refused("SIG_INVALID", field="prescription.payload")
    doctor_code = state.content.doctor_code
    doctor = _doctor(tx, command, doctor_code, "DR_NOT_ALLOWED", "prescription.payload")
    if isinstance(doctor, Refused):
        return doctor
    document = guards.signed(
        tx, command, "prescription", signed_pb2.PrescriptionDocument, doctor_code, command.caller.id
    )
    return document if isinstance(document, Refused) else None


def _review_signed(tx: Draft, command: Command, state: state_pb2.PrescriptionState, parsed: _Upload) -> Refused | None:
    code = parsed.review.pharmacist_code
    if code == state.content.doctor_code:
        return Refused("RX_NO_HOSP_REVIEW", field="review.payload")
    kinds = (registry_pb2.PRACTITIONER_KIND_HOSPITAL_PHARMACIST,)
    pharmacist = guards.practitioner(tx, code, kinds, command.caller.id, "RX_NO_HOSP_REVIEW", "review.payload")
    if isinstance(pharmacist, Refused):
        return pharmacist
    review = guards.signed(tx, command, "review", signed_pb2.HospitalReviewStatement, code, command.caller.id)
    if isinstance(review, Refused):
        return review
    if review.rx_no != state.rx_no or review.prescription_sha256 != command.evidence.sha256["prescription"]:
        return Refused("SIG_INVALID", field="review.payload")
    return None


def _sealed(tx: Draft, command: Command, parsed: _Upload) -> Refused | None:
    digests = command.evidence.sha256
    seal = guards.signed(tx, command, "seal", signed_pb2.UploadSealStatement, command.caller.id, command.caller.id)
    if isinstance(seal, Refused):
        return seal
    if (
        seal.rx_no != parsed.document.rx_no
        or seal.prescription_sha256 != digests["prescription"]
        or seal.review_sha256 != digests["review"]
    ):
        return Refused("SIG_INVALID", field="seal.payload")
    if seal.file_sha256 != digests["file"]:
        return Refused("SIG_INVALID", field="file")
    if not command.evidence.file.startswith(_MAGIC[command.request.file.media_type]):
        return Refused("INPUT_MALFORMED", field="file.data")
    return None


def _accept_upload(tx: Draft, command: Command, rx_key: bytes, parsed: _Upload) -> Accepted:
    request: prescribing_pb2.UploadPrescriptionRequest = command.request
    document, review = parsed.document, parsed.review
    doctor_code = document.prescription.doctor_code
    file, file_sha256 = command.evidence.file, command.evidence.sha256["file"]
    reviewed = events_pb2.HospitalReviewed(statement=request.review, pharmacist_code=review.pharmacist_code)
    tx.emit(_RX, rx_key, "prescription.hospital_reviewed", reviewed, actor=review.pharmacist_code)
    signed = events_pb2.PrescriptionSigned(
        doctor_code=doctor_code,
        prescription_sha256=command.evidence.sha256["prescription"],
        signed_at_ms=document.signed_at_ms,
    )
    tx.emit(_RX, rx_key, "prescription.signed", signed, actor=doctor_code)
    uploaded = events_pb2.PrescriptionUploaded(
        prescription=request.prescription,
        seal=request.seal,
        file_sha256=file_sha256,
        file_media_type=request.file.media_type,
        file_size_bytes=len(file),
    )
    tx.emit(_RX, rx_key, "prescription.uploaded", uploaded)
    valid_until_ms = document.prescription.valid_until_ms
    tx.emit(_RX, rx_key, "prescription.effective", events_pb2.PrescriptionEffective(valid_until_ms=valid_until_ms))
    state = consequences.current(tx, rx_key)
    reply = prescribing_pb2.UploadPrescriptionResponse(
        rx_no=state.rx_no, statuses=consequences.statuses(state), valid_until_ms=valid_until_ms
    )
    return Accepted(reply, blobs=((rx_key, file_sha256, file),))


# ---- revoke ----


def revoke(tx: Draft, command: Command) -> Outcome:
    """Withdraw a prescription that nobody used (电子处方撤销).

    While a pharmacy holds it, and nothing was taken or settled, the withdrawal is refused and kept: it takes effect
    when the hold ends. The request is recorded once. Nobody withdraws in the doctor's place: while he is suspended, or
    after he left the hospital, the agency's freeze is what stops the prescription.

    Refusals: RX_UNKNOWN, RX_UNDO_DENIED (not the issuing doctor, or he is not active at this hospital), RX_UNDO_STATE.
    """
    request: prescribing_pb2.RevokePrescriptionRequest = command.request
    rx_key = prescription_key(request.rx_no)
    tx.want(names=[("practitioner", request.doctor_code.encode())], streams=[rx_key])
    state = _issued_here(tx, command, rx_key)
    if isinstance(state, Refused):
        return state
    target = Target(rx_key, state.person_key)
    if request.doctor_code != state.content.doctor_code:
        return Refused("RX_UNDO_DENIED", field="doctor_code", targets=(target,))
    doctor = _doctor(tx, command, request.doctor_code, "RX_UNDO_DENIED", "doctor_code")
    if isinstance(doctor, Refused):
        return guards.about(doctor, target)
    if _may_undo(state):
        consequences.end_effective(tx, rx_key, "prescription undone")
        undone = events_pb2.PrescriptionUndone(doctor_code=request.doctor_code, reason=request.reason)
        tx.emit(_RX, rx_key, "prescription.undone", undone, actor=request.doctor_code)
        statuses = consequences.statuses(consequences.current(tx, rx_key))
        return Accepted(prescribing_pb2.RevokePrescriptionResponse(rx_no=request.rx_no, statuses=statuses))
    refused = Refused(
        "RX_UNDO_STATE",
        field="rx_no",
        detail={
            "rx_status": state_name(Machine.RX, state.rx_status),
            "use_status": state_name(Machine.USE, state.use_status),
        },
        targets=(target,),
    )
    if not _may_request_undo(state):
        return refused
    asked = events_pb2.UndoRequested(doctor_code=request.doctor_code, reason=request.reason)
    tx.emit(_RX, rx_key, "prescription.undo_requested", asked, actor=request.doctor_code)
    return dataclasses.replace(refused, detail={**refused.detail, "undo_requested": "true"}, keeps_events=True)


def _may_undo(state: state_pb2.PrescriptionState) -> bool:
    """Not used and not held; before it takes effect there is no use at all."""
    return lifecycle.permits(Machine.RX, state_name(Machine.RX, state.rx_status), "undo", Role.DOCTOR) and state_name(
        Machine.USE, state.use_status
    ) in consequences.UNTOUCHED | {START}


def _may_request_undo(state: state_pb2.PrescriptionState) -> bool:
    """Held for the first time, not settled, and not requested before."""
    return (
        not state.undo_requested
        and lifecycle.permits(Machine.RX, state_name(Machine.RX, state.rx_status), "undo while held", Role.DOCTOR)
        and state_name(Machine.USE, state.use_status) in HELD
        and state_name(Machine.USE, state.use_before_hold) in consequences.UNTOUCHED
        and any(_holds_unsettled(order) for order in state.orders)
    )


def _holds_unsettled(order: state_pb2.Order) -> bool:
    return state_name(Machine.ORDER, order.status) in lifecycle.WITHDRAWABLE


# ---- freeze and unfreeze ----


def freeze(tx: Draft, command: Command) -> Outcome:
    """Stop an effective prescription for a case (冻结, P-24). Its open authorisations end; orders and holds stay.

    Refusals: RX_UNKNOWN (not of the agency's area), RX_NOT_EFFECTIVE (not in force).
    """
    request: registry_pb2.FreezePrescriptionRequest = command.request
    rx_key = prescription_key(request.rx_no)
    state = _in_area(tx, command, request.rx_no, "freeze")
    if isinstance(state, Refused):
        return state
    consequences.revoke_authorizations(tx, rx_key, "prescription frozen")
    tx.emit(_RX, rx_key, "prescription.frozen", events_pb2.PrescriptionFrozen(case_no=request.case_no))
    return Accepted(registry_pb2.FreezePrescriptionResponse(statuses=_statuses(tx, rx_key)))


def unfreeze(tx: Draft, command: Command) -> Outcome:
    """Put a frozen prescription back into force, while its validity lasts (解冻).

    A withdrawal that waited for the end of a hold takes effect now.

    Refusals: RX_UNKNOWN (not of the agency's area), RX_NOT_EFFECTIVE (not frozen).
    """
    request: registry_pb2.UnfreezePrescriptionRequest = command.request
    rx_key = prescription_key(request.rx_no)
    state = _in_area(tx, command, request.rx_no, "unfreeze")
    if isinstance(state, Refused):
        return state
    tx.emit(_RX, rx_key, "prescription.unfrozen", events_pb2.PrescriptionUnfrozen(case_no=request.case_no))
    consequences.after_hold_ended(tx, rx_key)
    return Accepted(registry_pb2.UnfreezePrescriptionResponse(statuses=_statuses(tx, rx_key)))


def _in_area(tx: Draft, command: Command, rx_no: str, trigger: str) -> state_pb2.PrescriptionState | Refused:
    """The prescription, if the agency's area covers the issuing area and the trigger fits the state."""
    rx_key = prescription_key(rx_no)
    state = tx.state(rx_key, state_pb2.PrescriptionState)
    if state is None:
        return Refused("RX_UNKNOWN", field="rx_no")
    targets = (Target(rx_key, state.person_key),)
    if not guards.area_covers(command.caller.area_code, rx_no[:6]):
        return Refused("RX_UNKNOWN", field="rx_no", targets=targets)
    if state.erased_version:
        return guards.erased("rx_no", Target(rx_key))
    status = state_name(Machine.RX, state.rx_status)
    if not lifecycle.permits(Machine.RX, status, trigger, Role.AGENCY):
        return Refused(
            "RX_NOT_EFFECTIVE",
            field="rx_no",
            detail={"rx_status": status},
            targets=targets,
            legal=_legal(state, frozenset({Role.AGENCY})),
        )
    return state


def _statuses(tx: Draft, rx_key: bytes) -> common_pb2.RxStatuses:
    return consequences.statuses(consequences.current(tx, rx_key))


HANDLERS: Final[Mapping[str, Handler]] = {
    "PrescribingService/PrecheckPrescription": precheck,
    "PrescribingService/UploadPrescription": upload,
    "PrescribingService/RevokePrescription": revoke,
    "RegistryService/FreezePrescription": freeze,
    "RegistryService/UnfreezePrescription": unfreeze,
}

LOOK_AHEADS: Final[Mapping[str, LookAhead]] = {
    "PrescribingService/PrecheckPrescription": _ahead_of_precheck,
    "PrescribingService/UploadPrescription": _ahead_of_upload,
}
