"""Decisions of an agency about its registry: institutions, persons, practitioners, agreements, keys, revocations.

Owns what a registration must hold and the rule that an agency writes inside its own area only; a record outside it gets
the answer of one that does not exist. Registering equal content again returns the existing record and leaves nothing,
so that a registration can be repeated under another request id; other content is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Final, NamedTuple

from google.protobuf.message import Message

from erxhub.core import guards
from erxhub.core.catalog import import_catalog
from erxhub.core.guards import area_covers
from erxhub.core.keys import stream_key
from erxhub.core.lifecycle import START, Machine, Role, permits, triggers_exist
from erxhub.core.model import Accepted, Command, Draft, Evidence, Handler, Outcome, Refused, Target
from erxhub.core.statuses import state_name
from erxhub.policy import codes
from erxhub.policy.pack import china_date
from erxhub.v1 import common_pb2, events_pb2, registry_pb2, state_pb2

REQUIRED_CLAUSES: Final = ("scope", "conditions", "charge_and_settlement_standard", "payment_mode")
"""范围、条件、收费和结算标准、支付方式 (S2-18)."""

PUBLIC_KEY_BYTES: Final[Mapping[str, int]] = {"ES256": 65, "EdDSA": 32, "SM2-SM3": 65}
"""Length of a public key by suite; 65 bytes are an uncompressed point."""

_UNCOMPRESSED_POINT: Final = 0x04

_KIND_FORM: Final[Mapping[int, str]] = {
    registry_pb2.PRACTITIONER_KIND_DOCTOR: "hospital",
    registry_pb2.PRACTITIONER_KIND_HOSPITAL_PHARMACIST: "hospital",
    registry_pb2.PRACTITIONER_KIND_PHARMACIST: "pharmacy",
    registry_pb2.PRACTITIONER_KIND_DISPENSER: "pharmacy",
    registry_pb2.PRACTITIONER_KIND_COURIER: "pharmacy",
}
"""The kind of institution at which a practitioner works."""

_SEX: Final[Mapping[int, str]] = {common_pb2.SEX_MALE: "1", common_pb2.SEX_FEMALE: "2"}


class _Change(NamedTuple):
    """How a wanted status is reached. `needs` is the request field that must say why."""

    trigger: str
    event: str
    needs: str = ""


_PERSON_CHANGES: Final[Mapping[int, _Change]] = {
    registry_pb2.PERSON_STATUS_PAUSED: _Change("pause insurance", "person.status_changed", "reason"),
    registry_pb2.PERSON_STATUS_ACTIVE: _Change("resume insurance", "person.status_changed"),
    registry_pb2.PERSON_STATUS_DEAD: _Change("register death", "person.status_changed"),
}
_PRACTITIONER_CHANGES: Final[Mapping[int, _Change]] = {
    registry_pb2.PRACTITIONER_STATUS_SUSPENDED: _Change("suspend", "practitioner.suspended", "case_no"),
    registry_pb2.PRACTITIONER_STATUS_ACTIVE: _Change("resume", "practitioner.resumed"),
    registry_pb2.PRACTITIONER_STATUS_TERMINATED: _Change("end", "practitioner.terminated"),
}
_AGREEMENT_CHANGES: Final[Mapping[int, _Change]] = {
    registry_pb2.AGREEMENT_STATUS_SUSPENDED: _Change("suspend", "agreement.suspended", "case_no"),
    registry_pb2.AGREEMENT_STATUS_ACTIVE: _Change("resume", "agreement.resumed"),
    registry_pb2.AGREEMENT_STATUS_TERMINATED: _Change("terminate", "agreement.terminated"),
}


def _etag(tx: Draft, key: bytes) -> str:
    return str(tx.version(key))


def _stale(tx: Draft, key: bytes, etag: str) -> Refused | None:
    """ETAG_MISMATCH when the caller read another version; an empty etag writes unconditionally."""
    return Refused("ETAG_MISMATCH", field="etag") if etag and etag != _etag(tx, key) else None


def _change_refused(machine: Machine, number: int, change: _Change, reason: str) -> Refused | None:
    """Why a status cannot be changed so, or None. Refusals: INPUT_MALFORMED (no case or reason), RECORD_STATE."""
    if change.needs and not reason.strip():
        return Refused("INPUT_MALFORMED", field=change.needs)
    name = state_name(machine, number)
    if not permits(machine, name, change.trigger, Role.AGENCY):
        return Refused("RECORD_STATE", field="status", detail={"state": name})
    return None


# ---- institutions and agreements ----


class _Institution(NamedTuple):
    key: bytes
    state: state_pb2.InstitutionState


def _institution_in_area(tx: Draft, command: Command, code: str, field: str) -> _Institution | Refused:
    """A registered institution of the agency's area. Refusals: INST_CODE, RECORD_UNKNOWN."""
    if not (codes.has_form("hospital", code) or codes.has_form("pharmacy", code)):
        return Refused("INST_CODE", field=field)
    key = tx.find("institution", code.encode())
    found = tx.state(key, state_pb2.InstitutionState) if key else None
    if key is None or found is None:
        return Refused("RECORD_UNKNOWN", field=field)
    if not area_covers(command.caller.area_code, found.area_code):
        return Refused("RECORD_UNKNOWN", field=field, targets=(Target(key),))
    return _Institution(key, found)


def register_institution(tx: Draft, command: Command) -> Outcome:
    """Register a hospital or a pharmacy of the agency's area (登记定点机构). Leaves `institution.registered`.

    Refusals: INST_CODE, INPUT_MALFORMED (social credit code), RECORD_UNKNOWN (another area), RECORD_EXISTS.
    """
    request: registry_pb2.RegisterInstitutionRequest = command.request
    code = request.institution_code
    if not (codes.has_form("hospital", code) or codes.has_form("pharmacy", code)):
        return Refused("INST_CODE", field="institution_code")
    area_code = code[1:7]
    if not area_covers(command.caller.area_code, area_code):
        return Refused("RECORD_UNKNOWN", field="institution_code")
    if request.social_credit_code and codes.social_credit_code_fault(request.social_credit_code) is not None:
        return Refused("INPUT_MALFORMED", field="social_credit_code")
    wanted = state_pb2.InstitutionState(
        institution_code=code,
        name=request.name,
        area_code=area_code,
        level=request.level,
        licences=registry_pb2.Licences(internet=request.licences.internet),
        social_credit_code=request.social_credit_code,
    )
    key = tx.find("institution", code.encode())
    held = tx.state(key, state_pb2.InstitutionState) if key else None
    if key is not None and held is not None:
        if not _equal_but(held, wanted, ("agreements", "keys")):
            return Refused("RECORD_EXISTS", field="institution_code", targets=(Target(key),))
    else:
        key = stream_key("institution", tx.draw.bytes(16))
        tx.emit("institution", key, "institution.registered", events_pb2.InstitutionRegistered(institution=wanted))
    return Accepted(registry_pb2.RegisterInstitutionResponse(etag=_etag(tx, key)))


def _equal_but(held: Message, wanted: Message, grown: Iterable[str]) -> bool:
    """Whether a record still says what is wanted, leaving out the fields that grew since its registration."""
    compared = type(held)()
    compared.CopyFrom(held)
    for field in grown:
        compared.ClearField(field)
    return compared == wanted


def sign_agreement(tx: Draft, command: Command) -> Outcome:
    """Sign an agreement with an institution of the area (签订服务协议, S2-01, S2-18). Leaves `agreement.signed`.

    An agreement number is used once, and one agreement of a kind runs at a time.
    Refusals: INST_CODE, RECORD_UNKNOWN, ETAG_MISMATCH, INPUT_MALFORMED (valid_until_ms), AGR_INCOMPLETE (names the
    missing clauses), AGR_NO_SUPPLEMENT (no licence for internet services), RECORD_EXISTS (the number is taken),
    RECORD_STATE.
    """
    request: registry_pb2.SignAgreementRequest = command.request
    found = _institution_in_area(tx, command, request.institution_code, "institution_code")
    if isinstance(found, Refused):
        return found
    wanted = registry_pb2.AgreementRecord(
        kind=request.kind,
        agreement_no=request.agreement_no,
        valid_from_ms=request.valid_from_ms,
        valid_until_ms=request.valid_until_ms,
        clauses=request.clauses,
    )
    held = next((held for held in found.state.agreements if held.kind == request.kind), None)
    name = state_name(Machine.AGREEMENT, held.status) if held is not None else START
    may_sign = permits(Machine.AGREEMENT, name, "sign", Role.AGENCY)
    if held is not None and not may_sign and _equal_but(held, wanted, ("status", "case_no")):
        return Accepted(registry_pb2.SignAgreementResponse(etag=_etag(tx, found.key)))
    refused = _stale(tx, found.key, request.etag) or _agreement_refused(tx, request, found.state)
    if refused is not None:
        return refused
    if not may_sign:
        return Refused("RECORD_STATE", field="kind", detail={"state": name})
    if tx.find("agreement", request.agreement_no.encode()) is not None:
        return Refused("RECORD_EXISTS", field="agreement_no")
    tx.emit("institution", found.key, "agreement.signed", events_pb2.AgreementSigned(agreement=wanted))
    return Accepted(registry_pb2.SignAgreementResponse(etag=_etag(tx, found.key)))


def _agreement_refused(
    tx: Draft, request: registry_pb2.SignAgreementRequest, institution: state_pb2.InstitutionState
) -> Refused | None:
    if not max(request.valid_from_ms, tx.now_ms) < request.valid_until_ms:
        return Refused("INPUT_MALFORMED", field="valid_until_ms")
    missing = [clause for clause in REQUIRED_CLAUSES if clause not in request.clauses]
    if missing:
        return Refused("AGR_INCOMPLETE", field="clauses", detail={"missing": ",".join(missing)})
    if request.kind == registry_pb2.AGREEMENT_KIND_INTERNET and not institution.licences.internet:
        return Refused("AGR_NO_SUPPLEMENT", field="kind")
    return None


def change_agreement_status(tx: Draft, command: Command) -> Outcome:
    """Suspend, resume or terminate an agreement (中止、恢复、解除协议, S2-25).

    Leaves `agreement.suspended`, `agreement.resumed` or `agreement.terminated`.
    Refusals: INST_CODE, RECORD_UNKNOWN (no such institution or agreement), ETAG_MISMATCH, INPUT_MALFORMED (a suspension
    without case_no), RECORD_STATE.
    """
    request: registry_pb2.ChangeAgreementStatusRequest = command.request
    found = _institution_in_area(tx, command, request.institution_code, "institution_code")
    if isinstance(found, Refused):
        return found
    held = next((held for held in found.state.agreements if held.kind == request.kind), None)
    if held is None:
        return Refused("RECORD_UNKNOWN", field="kind", targets=(Target(found.key),))
    change = _AGREEMENT_CHANGES[request.status]
    refused = _stale(tx, found.key, request.etag) or _change_refused(
        Machine.AGREEMENT, held.status, change, request.case_no
    )
    if refused is not None:
        return refused
    changed = events_pb2.AgreementChanged(kind=request.kind, case_no=request.case_no)
    tx.emit("institution", found.key, change.event, changed)
    return Accepted(registry_pb2.ChangeAgreementStatusResponse(etag=_etag(tx, found.key)))


# ---- persons ----


def register_person(tx: Draft, command: Command) -> Outcome:
    """Register a person insured in the agency's area, with his personal account (参保登记).

    Leaves `person.registered` and `account.opened`. A repetition compares everything but the balance: the account lives
    its own life from the first debit on.
    Refusals: RECORD_UNKNOWN (another area), INPUT_MALFORMED (a date, value or delegate that cannot be), ID_CHECKSUM,
    ID_MISMATCH, RECORD_EXISTS.
    """
    request: registry_pb2.RegisterPersonRequest = command.request
    if not area_covers(command.caller.area_code, request.insured_area_code):
        return Refused("RECORD_UNKNOWN", field="insured_area_code")
    refused = _person_refused(tx, request)
    if refused is not None:
        return refused
    wanted = state_pb2.PersonState(
        person_no=request.person_no,
        name=request.name,
        certificate_type=request.certificate_type,
        id_number=codes.normal_id_number(request.id_number),
        sex=request.sex,
        born_on=request.born_on,
        insured_area_code=request.insured_area_code,
        insurance_type=request.insurance_type,
        person_type=request.person_type,
        delegate_person_nos=request.delegate_person_nos,
        chronic_codes=request.chronic_codes,
    )
    key = tx.find_secret("person", request.person_no)
    held = tx.state(key, state_pb2.PersonState) if key else None
    if key is not None and held is not None:
        if not _equal_but(held, wanted, ("status", "activations", "account_key")):
            return Refused("RECORD_EXISTS", field="person_no", targets=(Target(key, key),))
        return Accepted(registry_pb2.RegisterPersonResponse(etag=_etag(tx, key)))
    key = stream_key("person", tx.draw.bytes(16))
    account_key = stream_key("account", tx.draw.bytes(16))
    wanted.account_key = account_key
    tx.emit("person", key, "person.registered", events_pb2.PersonRegistered(person=wanted))
    opened = events_pb2.AccountOpened(balance_fen=request.account_balance_fen, person_key=key)
    tx.emit("account", account_key, "account.opened", opened, causes=[(key, tx.version(key))])
    return Accepted(registry_pb2.RegisterPersonResponse(etag=_etag(tx, key)))


def _person_refused(tx: Draft, request: registry_pb2.RegisterPersonRequest) -> Refused | None:
    today = china_date(tx.now_ms)
    try:
        born = date.fromisoformat(request.born_on)
    except ValueError:
        return Refused("INPUT_MALFORMED", field="born_on")
    if born > today:
        return Refused("INPUT_MALFORMED", field="born_on")
    for field, value_set in (
        ("certificate_type", "psn_cert_type"),
        ("insurance_type", "insutype"),
        ("person_type", "psn_type"),
    ):
        if codes.standing(value_set, getattr(request, field)) is None:
            return Refused("INPUT_MALFORMED", field=field)
    if codes.has_fact("psn_cert_type", request.certificate_type, "checked"):
        if codes.id_number_fault(request.id_number, today.isoformat()) is not None:
            return Refused("ID_CHECKSUM", field="id_number")
        if codes.birth_date(request.id_number) != born:
            return Refused("ID_MISMATCH", field="born_on")
        if codes.sex(request.id_number) != _SEX[request.sex]:
            return Refused("ID_MISMATCH", field="sex")
    for place, delegate in enumerate(request.delegate_person_nos):
        if delegate == request.person_no or delegate in request.delegate_person_nos[:place]:
            return Refused("INPUT_MALFORMED", field=f"delegate_person_nos[{place}]")
    for place, chronic_code in enumerate(request.chronic_codes):
        if not codes.has_form("chronic_disease", chronic_code):
            return Refused("INPUT_MALFORMED", field=f"chronic_codes[{place}]")
    return None


def change_person_status(tx: Draft, command: Command) -> Outcome:
    """Pause or resume insurance, or register a death (参保状态变更). Leaves `person.status_changed`.

    Refusals: RECORD_UNKNOWN, ETAG_MISMATCH, INPUT_MALFORMED (a pause without reason), RECORD_STATE.
    """
    request: registry_pb2.ChangePersonStatusRequest = command.request
    key = tx.find_secret("person", request.person_no)
    held = tx.state(key, state_pb2.PersonState) if key else None
    if key is None or held is None:
        return Refused("RECORD_UNKNOWN", field="person_no")
    target = Target(key, key)
    if not area_covers(command.caller.area_code, held.insured_area_code):
        return Refused("RECORD_UNKNOWN", field="person_no", targets=(target,))
    change = _PERSON_CHANGES[request.status]
    refused = _stale(tx, key, request.etag) or _change_refused(Machine.PERSON, held.status, change, request.reason)
    if refused is not None:
        return guards.about(refused, target)
    changed = events_pb2.PersonStatusChanged(status=request.status, reason=request.reason)
    tx.emit("person", key, change.event, changed)
    return Accepted(registry_pb2.ChangePersonStatusResponse(etag=_etag(tx, key)))


# ---- practitioners ----


def register_practitioner(tx: Draft, command: Command) -> Outcome:
    """Register a practitioner at institutions of the agency's area (登记执业人员). Leaves `practitioner.registered`.

    Refusals: INST_CODE (malformed, or not where this kind works), RECORD_UNKNOWN (an institution that is not registered
    in the area), RECORD_EXISTS.
    """
    request: registry_pb2.RegisterPractitionerRequest = command.request
    institution_codes = list(dict.fromkeys(request.institution_codes))
    tx.want(
        names=[
            ("practitioner", request.practitioner_code.encode()),
            *(("institution", code.encode()) for code in institution_codes),
        ]
    )
    for code in institution_codes:
        field = f"institution_codes[{list(request.institution_codes).index(code)}]"
        if not codes.has_form(_KIND_FORM[request.kind], code):
            return Refused("INST_CODE", field=field)
        found = _institution_in_area(tx, command, code, field)
        if isinstance(found, Refused):
            return found
    wanted = state_pb2.PractitionerState(
        practitioner_code=request.practitioner_code,
        name=request.name,
        kind=request.kind,
        practice_years=request.practice_years,
        institution_codes=institution_codes,
        dual_channel=request.dual_channel,
        area_code=command.caller.area_code,
    )
    key = tx.find("practitioner", request.practitioner_code.encode())
    held = tx.state(key, state_pb2.PractitionerState) if key else None
    if key is not None and held is not None:
        if not _equal_but(held, wanted, ("status", "keys", "case_no")):
            return Refused("RECORD_EXISTS", field="practitioner_code", targets=(Target(key),))
    else:
        key = stream_key("practitioner", tx.draw.bytes(16))
        registered = events_pb2.PractitionerRegistered(practitioner=wanted)
        tx.emit("practitioner", key, "practitioner.registered", registered)
    return Accepted(registry_pb2.RegisterPractitionerResponse(etag=_etag(tx, key)))


def change_practitioner_status(tx: Draft, command: Command) -> Outcome:
    """Suspend, resume or end a practitioner (暂停、恢复、注销执业人员).

    Leaves `practitioner.suspended`, `practitioner.resumed` or `practitioner.terminated`.
    Refusals: RECORD_UNKNOWN, ETAG_MISMATCH, INPUT_MALFORMED (a suspension without case_no), RECORD_STATE.
    """
    request: registry_pb2.ChangePractitionerStatusRequest = command.request
    key = tx.find("practitioner", request.practitioner_code.encode())
    held = tx.state(key, state_pb2.PractitionerState) if key else None
    if key is None or held is None:
        return Refused("RECORD_UNKNOWN", field="practitioner_code")
    if not area_covers(command.caller.area_code, held.area_code):
        return Refused("RECORD_UNKNOWN", field="practitioner_code", targets=(Target(key),))
    change = _PRACTITIONER_CHANGES[request.status]
    refused = _stale(tx, key, request.etag) or _change_refused(
        Machine.PRACTITIONER, held.status, change, request.case_no
    )
    if refused is not None:
        return refused
    tx.emit("practitioner", key, change.event, events_pb2.PractitionerChanged(case_no=request.case_no))
    return Accepted(registry_pb2.ChangePractitionerStatusResponse(etag=_etag(tx, key)))


# ---- signing keys and revocations ----


def signing_key_id(suite: str, public_key: bytes) -> str:
    """First 32 hexadecimal characters of SHA-256(suite name ‖ 0x00 ‖ public key)."""
    return hashlib.sha256(suite.encode() + b"\0" + public_key).hexdigest()[:32]


def register_signing_key(tx: Draft, command: Command) -> Outcome:
    """Register a signing key of a practitioner, or of an institution for its seal (登记签名密钥, X-21).

    Leaves `signing_key.registered` in the subject's stream. A key belongs to one subject at one institution.
    Refusals: INST_CODE, RECORD_UNKNOWN (institution or subject), INPUT_MALFORMED (suite, public_key, valid_until_ms),
    SIG_CERT (the certificate is foreign, or says something else than the request), RECORD_EXISTS (the key is
    registered otherwise), RECORD_STATE (it was revoked, or the subject ended).
    """
    request: registry_pb2.RegisterSigningKeyRequest = command.request
    size = PUBLIC_KEY_BYTES.get(request.suite)
    if size is None:
        return Refused("INPUT_MALFORMED", field="suite")
    public_key = request.public_key
    if len(public_key) != size or (size == 65 and public_key[0] != _UNCOMPRESSED_POINT):
        return Refused("INPUT_MALFORMED", field="public_key")
    if not command.evidence.key_is_sound:
        return Refused("INPUT_MALFORMED", field="public_key")
    if request.certificate_pem and (fault := _certificate_fault(request, command.evidence)):
        return Refused("SIG_CERT", field="certificate_pem", detail={"reason": fault})
    if not request.valid_from_ms < request.valid_until_ms:
        return Refused("INPUT_MALFORMED", field="valid_until_ms")
    key_id = signing_key_id(request.suite, public_key)
    tx.want(
        names=[
            ("institution", request.institution_code.encode()),
            ("practitioner", request.subject_code.encode()),
            ("signing_key", key_id.encode()),
            ("revoked_key", key_id.encode()),
        ]
    )
    institution = _institution_in_area(tx, command, request.institution_code, "institution_code")
    if isinstance(institution, Refused):
        return institution
    subject = _subject(tx, request, institution)
    if isinstance(subject, Refused):
        return subject
    kind, key, records = subject
    wanted = registry_pb2.SigningKeyRecord(
        key_id=key_id,
        subject_code=request.subject_code,
        institution_code=request.institution_code,
        suite=request.suite,
        public_key=public_key,
        valid_from_ms=request.valid_from_ms,
        valid_until_ms=request.valid_until_ms,
    )
    state = _key_state(tx, key_id)
    if not triggers_exist(Machine.SIGNING_KEY, state):
        return Refused("RECORD_STATE", field="public_key", detail={"state": state})
    if permits(Machine.SIGNING_KEY, state, "register", Role.AGENCY):
        registered = events_pb2.SigningKeyRegistered(key=wanted, certificate_pem=request.certificate_pem)
        tx.emit(kind, key, "signing_key.registered", registered)
    elif wanted not in records:
        return Refused("RECORD_EXISTS", field="public_key")
    return Accepted(registry_pb2.RegisterSigningKeyResponse(key_id=key_id))


def _certificate_fault(request: registry_pb2.RegisterSigningKeyRequest, evidence: Evidence) -> str:
    """What is wrong with the certificate that the record is made from, or ""."""
    certified = evidence.certificate
    if certified is None:
        return evidence.certificate_fault or "the certificate was not read"
    said = (certified.subject_code, certified.institution_code, certified.suite, certified.public_key)
    asked = (request.subject_code, request.institution_code, request.suite, request.public_key)
    if said != asked:
        return "the certificate is another signer's or another key's"
    if request.valid_from_ms < certified.not_before_ms or request.valid_until_ms > certified.not_after_ms:
        return "the key would outlive its certificate"
    return ""


def _subject(
    tx: Draft, request: registry_pb2.RegisterSigningKeyRequest, institution: _Institution
) -> tuple[str, bytes, list[registry_pb2.SigningKeyRecord]] | Refused:
    """(stream kind, stream, keys so far) of the holder: the institution itself, or a practitioner registered there."""
    if request.subject_code == request.institution_code:
        return "institution", institution.key, list(institution.state.keys)
    key = tx.find("practitioner", request.subject_code.encode())
    held = tx.state(key, state_pb2.PractitionerState) if key else None
    if key is None or held is None or request.institution_code not in held.institution_codes:
        return Refused("RECORD_UNKNOWN", field="subject_code")
    name = state_name(Machine.PRACTITIONER, held.status)
    if not triggers_exist(Machine.PRACTITIONER, name):
        return Refused("RECORD_STATE", field="subject_code", detail={"state": name}, targets=(Target(key),))
    return "practitioner", key, list(held.keys)


def revoke_certificate(tx: Draft, command: Command) -> Outcome:
    """Revoke a signing key or a connection certificate of the agency's area (吊销证书或密钥).

    Leaves `certificate.revoked`.
    A certificate whose holder has no area (channel, auditor, mirror, hub, witness, sandbox) is revoked by the agencies
    that act for the whole ledger.
    Refusals: INPUT_MALFORMED (the certificate is foreign or speaks for nobody), RECORD_UNKNOWN (no such key in the
    area, or another area's certificate), RECORD_STATE (revoked already).
    """
    request: registry_pb2.RevokeCertificateRequest = command.request
    if request.key_id:
        refused, fingerprint = _key_refused(tx, command, request.key_id), b""
    else:
        refused, fingerprint = _connection_refused(tx, command)
    if refused is not None:
        return refused
    revoked = events_pb2.CertificateRevoked(
        certificate_sha256=fingerprint,
        key_id=request.key_id,
        reason=request.reason,
        revoked_at_ms=tx.now_ms,
    )
    tx.emit("ledger", tx.ledger_key, "certificate.revoked", revoked)
    return Accepted(registry_pb2.RevokeCertificateResponse())


def _connection_refused(tx: Draft, command: Command) -> tuple[Refused | None, bytes]:
    """Why the certificate in the request cannot be revoked, or None; and the SHA-256 under which it is."""
    field = "certificate_pem"
    peer = command.evidence.connection
    if peer is None:
        return Refused("INPUT_MALFORMED", field=field, detail={"reason": command.evidence.certificate_fault}), b""
    # An area covers itself, except 000000: the centre is in no area.
    has_area = area_covers(peer.area_code, peer.area_code)
    allowed = area_covers(command.caller.area_code, peer.area_code) if has_area else command.caller.acts_nationally
    if not allowed:
        return Refused("RECORD_UNKNOWN", field=field), b""
    if tx.find("revoked_certificate", peer.fingerprint) is not None:
        return Refused("RECORD_STATE", field=field, detail={"state": "REVOKED"}), b""
    return None, peer.fingerprint


def _key_state(tx: Draft, key_id: str) -> str:
    """The state of a signing key in its machine, which two names tell: one leads to its holder, one says revoked."""
    if tx.find("revoked_key", key_id.encode()) is not None:
        return "REVOKED"
    return START if tx.find("signing_key", key_id.encode()) is None else "VALID"


def _key_refused(tx: Draft, command: Command, key_id: str) -> Refused | None:
    """Why the key cannot be revoked.

    RECORD_UNKNOWN unless it is registered at an institution of the agency's area; RECORD_STATE.
    """
    name = key_id.encode()
    tx.want(names=[("signing_key", name), ("revoked_key", name)])
    holder_key = tx.find("signing_key", name)
    if holder_key is None:
        return Refused("RECORD_UNKNOWN", field="key_id")
    # The name does not say whether an institution or a practitioner holds the key.
    holder = tx.state(holder_key, Message)
    assert isinstance(holder, state_pb2.InstitutionState | state_pb2.PractitionerState)
    record = next(record for record in holder.keys if record.key_id == key_id)
    institution = _institution_in_area(tx, command, record.institution_code, "key_id")
    if isinstance(institution, Refused):
        return institution
    state = _key_state(tx, key_id)
    if not permits(Machine.SIGNING_KEY, state, "revoke", Role.AGENCY):
        return Refused("RECORD_STATE", field="key_id", detail={"state": state})
    return None


HANDLERS: Final[Mapping[str, Handler]] = {
    "RegistryService/RegisterInstitution": register_institution,
    "RegistryService/RegisterPerson": register_person,
    "RegistryService/ChangePersonStatus": change_person_status,
    "RegistryService/RegisterPractitioner": register_practitioner,
    "RegistryService/ChangePractitionerStatus": change_practitioner_status,
    "RegistryService/SignAgreement": sign_agreement,
    "RegistryService/ChangeAgreementStatus": change_agreement_status,
    "RegistryService/RegisterSigningKey": register_signing_key,
    "RegistryService/RevokeCertificate": revoke_certificate,
    "RegistryService/ImportCatalog": import_catalog,
}
