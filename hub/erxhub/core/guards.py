"""Guards that several decisions share: who calls, who acts, whose proof is shown, whose signature it is.

Owns the look-ups of institutions, agreements, practitioners, persons, encounters and voucher references, and the one
answer that each of them gives when it fails. Every guard returns the thing or a `Refused`, never raises for an expected
"no", and never emits an event.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message

from erxhub.core.fold_registry import activation_state
from erxhub.core.lifecycle import Machine, triggers_exist, triggers_from
from erxhub.core.model import Command, Draft, Refused, SignatureFact, Target
from erxhub.core.statuses import state_name
from erxhub.policy.codes import has_form
from erxhub.policy.rules import Rules
from erxhub.v1 import common_pb2, registry_pb2, signed_pb2, state_pb2

ACTIVE: Final = frozenset({"ACTIVE"})
"""Agreement, practitioner and person states in which the thing may act."""

ACTIVATED: Final = frozenset({"ACTIVATED"})
"""Activation states in which a channel may speak for the person."""

VERIFIED: Final = frozenset({"CONSUMED"})
"""Voucher states in which its reference exists."""

PAYLOAD_TYPE_PREFIX: Final = "application/vnd.erxhub.v1."

_FORMS_KEPT: Final = 4096

_INSTITUTION_FORMS: Final[Mapping[str, str]] = {"hospital": "hospital", "pharmacy": "pharmacy"}

_NO_AGREEMENT: Final[Mapping[int, str]] = {
    registry_pb2.AGREEMENT_KIND_BASE: "AGR_INACTIVE",
    registry_pb2.AGREEMENT_KIND_INTERNET: "AGR_NO_SUPPLEMENT",
    registry_pb2.AGREEMENT_KIND_POOLING: "AGR_NO_POOLING",
    registry_pb2.AGREEMENT_KIND_DUAL_CHANNEL: "RX_DUAL_CHANNEL",
}

StatementT = TypeVar(
    "StatementT",
    signed_pb2.DiagnosisStatement,
    signed_pb2.PrescriptionDocument,
    signed_pb2.HospitalReviewStatement,
    signed_pb2.UploadSealStatement,
    signed_pb2.ReviewStatement,
    signed_pb2.SettleStatement,
    signed_pb2.DispenseStatement,
    signed_pb2.HandOverStatement,
    signed_pb2.SignDeliveryStatement,
)

_PAYLOAD_TYPES: Final[Mapping[type[Message], str]] = {
    statement: PAYLOAD_TYPE_PREFIX + statement.DESCRIPTOR.name for statement in StatementT.__constraints__
}


def about(refused: Refused, *targets: Target) -> Refused:
    """The same refusal, recorded under what it was about as well."""
    return replace(refused, targets=tuple(dict.fromkeys((*refused.targets, *targets))))


def erased(field: str, *targets: Target) -> Refused:
    """CONTENT_ERASED, to somebody who may know that there was a content."""
    return Refused("CONTENT_ERASED", field=field, targets=targets)


# ---- areas ----


def area_covers(agency_area: str, area_code: str) -> bool:
    """Whether an agency of one area is responsible for another: 330100 covers 3301??, 330000 covers 33????.

    An area without a province covers nothing.
    """
    prefix = agency_area
    while prefix.endswith("00"):
        prefix = prefix[:-2]
    return bool(prefix) and area_code.startswith(prefix)


# ---- institutions and agreements ----


def own_institution(command: Command, code: str, field: str) -> Refused | None:
    """The institution named in the request is the caller.

    Refusals: INST_CODE (malformed, or not of the caller's kind), INST_IMPERSONATION.
    """
    form = _INSTITUTION_FORMS.get(command.caller.kind)
    if form is None or not _has_form(form, code):
        return Refused("INST_CODE", field=field)
    if code != command.caller.id:
        return Refused("INST_IMPERSONATION", field=field)
    return None


@lru_cache(_FORMS_KEPT)
def _has_form(form: str, code: str) -> bool:
    return has_form(form, code)


def institution(tx: Draft, code: str, field: str = "") -> state_pb2.InstitutionState | Refused:
    """The registered institution. Refusals: INST_UNKNOWN."""
    key = tx.find("institution", code.encode())
    found = tx.state(key, state_pb2.InstitutionState) if key else None
    return Refused("INST_UNKNOWN", field=field) if found is None else found


def agreement(
    tx: Draft, institution: state_pb2.InstitutionState, kind: registry_pb2.AgreementKind.ValueType
) -> Refused | None:
    """The institution has an agreement of this kind in force now (S2-01, S2-25).

    Refusals: AGR_INACTIVE for the base agreement, AGR_NO_SUPPLEMENT for internet services, AGR_NO_POOLING,
    RX_DUAL_CHANNEL.
    """
    for held in institution.agreements:
        if (
            held.kind == kind
            and state_name(Machine.AGREEMENT, held.status) in ACTIVE
            and held.valid_from_ms <= tx.now_ms <= held.valid_until_ms
        ):
            return None
    return Refused(_NO_AGREEMENT[kind])


# ---- practitioners and persons ----


def practitioner(
    tx: Draft,
    code: str,
    kinds: tuple[registry_pb2.PractitionerKind.ValueType, ...],
    institution_code: str,
    refusal_code: str,
    field: str,
) -> state_pb2.PractitionerState | Refused:
    """The practitioner, of one of the kinds, registered at the institution and not suspended.

    Refusals: `refusal_code`, whichever of these fails, so that the answer tells nothing about other places' staff.
    """
    key = tx.find("practitioner", code.encode())
    found = tx.state(key, state_pb2.PractitionerState) if key else None
    if (
        found is None
        or found.kind not in kinds
        or institution_code not in found.institution_codes
        or state_name(Machine.PRACTITIONER, found.status) not in ACTIVE
    ):
        return Refused(refusal_code, field=field)
    return found


def person(tx: Draft, person_key: bytes) -> state_pb2.PersonState:
    """The state of a person whose stream is known to exist."""
    found = tx.state(person_key, state_pb2.PersonState)
    assert found is not None
    return found


def person_active(tx: Draft, person_key: bytes) -> state_pb2.PersonState | Refused:
    """The person, neither paused nor dead (M22). Refusals: PSN_INACTIVE."""
    found = person(tx, person_key)
    if state_name(Machine.PERSON, found.status) in ACTIVE:
        return found
    return Refused("PSN_INACTIVE", targets=(Target(person_key, person_key),))


class Acting(NamedTuple):
    """Whom a channel speaks for: the subject, and the delegate who acts for him (b"" when he acts himself)."""

    person_key: bytes
    person: state_pb2.PersonState
    delegate_key: bytes


def acting_person(tx: Draft, command: Command, person_no: str, delegate_person_no: str = "") -> Acting | Refused:
    """The person on the calling channel, and his delegate if one acts (V-05, V-11).

    The insurance status is not looked at: a paused person still reads his own records.
    Refusals: VCH_REVOKED, with the same bytes for a person who does not exist and one who is not activated here;
    VCH_NO_DELEGATION when the delegate is not linked, not activated on this channel or dead.
    """
    tx.want(
        names=[
            *tx.secret_names("person", person_no),
            *(tx.secret_names("person", delegate_person_no) if delegate_person_no else ()),
        ]
    )
    key = tx.find_secret("person", person_no)
    found = tx.state(key, state_pb2.PersonState) if key else None
    if key is None or found is None:
        return Refused("VCH_REVOKED")
    target = Target(key, key)
    if activation_state(found, command.caller.id) not in ACTIVATED:
        return Refused("VCH_REVOKED", targets=(target,))
    if not delegate_person_no:
        return Acting(key, found, b"")
    no_link = Refused("VCH_NO_DELEGATION", field="delegate_person_no", targets=(target,))
    if delegate_person_no not in found.delegate_person_nos:
        return no_link
    delegate_key = tx.find_secret("person", delegate_person_no)
    delegate = tx.state(delegate_key, state_pb2.PersonState) if delegate_key else None
    if delegate_key is None or delegate is None or activation_state(delegate, command.caller.id) not in ACTIVATED:
        return no_link
    if not triggers_exist(Machine.PERSON, state_name(Machine.PERSON, delegate.status)):
        return no_link
    return Acting(key, found, delegate_key)


# ---- proofs of presence ----


class Reference(NamedTuple):
    """A live reference of a verified code: its voucher and the person it proves."""

    voucher_key: bytes
    voucher: state_pb2.VoucherState
    person_key: bytes


def reference(
    tx: Draft, command: Command, voucher_ref: str, business_types: tuple[str, ...], field: str
) -> Reference | Refused:
    """The live reference (ecToken) of the calling institution for one of the business types (V-14).

    Refusals: VCH_INVALID (empty, unknown, or another institution's: the same answer), VCH_EXPIRED, VCH_WRONG_BUSINESS.
    """
    return _reference(tx, command, "voucher_ref", voucher_ref, business_types, field)


def online_identity(tx: Draft, command: Command, online_identity_no: str, field: str) -> Reference | Refused:
    """The live online identity number (authNo) of the calling institution (V-15). Refusals as `reference`."""
    business_type = tx.rules(command.caller.area_code).text("business_type_prescribing_internet")
    return _reference(tx, command, "online_identity", online_identity_no, (business_type,), field)


def _reference(
    tx: Draft, command: Command, space: str, value: str, business_types: tuple[str, ...], field: str
) -> Reference | Refused:
    key = tx.find_secret(space, value)
    voucher = tx.state(key, state_pb2.VoucherState) if key else None
    if key is None or voucher is None:
        return Refused("VCH_INVALID", field=field)
    targets = (Target(key, voucher.person_key),)
    if voucher.institution_code != command.caller.id or state_name(Machine.VOUCHER, voucher.status) not in VERIFIED:
        return Refused("VCH_INVALID", field=field, targets=targets)
    if tx.now_ms > voucher.ref_expires_at_ms:
        return Refused("VCH_EXPIRED", field=field, targets=targets)
    if voucher.business_type not in business_types:
        return Refused("VCH_WRONG_BUSINESS", field=field, targets=targets)
    return Reference(key, voucher, voucher.person_key)


# ---- encounters ----


@dataclass(frozen=True, slots=True)
class Visit:
    """An encounter of the calling hospital."""

    key: bytes
    state: state_pb2.EncounterState
    field: str = "encounter_id"
    """Path of the request field that names it."""

    @property
    def target(self) -> Target:
        """The encounter as the target of an access or a refusal."""
        return Target(self.key, self.state.person_key)

    @property
    def status(self) -> str:
        """The encounter's state as the tables name it."""
        return state_name(Machine.ENCOUNTER, self.state.status)

    def missing(self, step: str) -> Refused:
        """ENCOUNTER_STATE: `step` has to come first; a step that is past needs a new encounter ("register")."""
        return Refused(
            "ENCOUNTER_STATE",
            field=self.field,
            detail={"missing_step": step, "state": self.status},
            targets=(self.target,),
            legal=tuple(trigger for trigger, _ in triggers_from(Machine.ENCOUNTER, self.status)),
        )


def visit(tx: Draft, command: Command, encounter_id: str, field: str = "encounter_id") -> Visit | Refused:
    """The encounter, if it is the calling hospital's.

    Refusals: ENCOUNTER_STATE with the missing step "register", with the same bytes for an encounter that does not exist
    and one of another hospital.
    """
    key = tx.find("encounter", encounter_id.encode())
    found = tx.state(key, state_pb2.EncounterState) if key else None
    unknown = {"missing_step": "register"}
    if key is None or found is None:
        return Refused("ENCOUNTER_STATE", field=field, detail=unknown)
    if found.hospital_code != command.caller.id:
        return Refused("ENCOUNTER_STATE", field=field, detail=unknown, targets=(Target(key, found.person_key),))
    if found.erased_version:
        return erased(field, Target(key))
    return Visit(key, found, field)


# ---- signatures ----


def claimed(command: Command, field: str, message_type: type[StatementT]) -> StatementT | Refused:
    """The content of a `Signed` field, not proven yet: only good to find out what it is about and whose it has to be.

    Refusals: SIG_INVALID (another type of content), INPUT_MALFORMED (it does not parse).
    """
    read = command.evidence.statements.get(field)
    if isinstance(read, message_type):  # admission reads a content as what its payload_type says
        return read
    content: common_pb2.Signed = getattr(command.request, field)
    if content.payload_type != _PAYLOAD_TYPES[message_type]:
        return Refused("SIG_INVALID", field=f"{field}.payload_type")
    try:
        return message_type.FromString(content.payload)
    except DecodeError:
        return Refused("INPUT_MALFORMED", field=f"{field}.payload")


def signed(
    tx: Draft,
    command: Command,
    field: str,
    message_type: type[StatementT],
    subject_code: str,
    institution_code: str,
) -> StatementT | Refused:
    """The content of a `Signed` field, signed by the subject at the institution (I13, I14, X-21).

    Only the first signature counts: it is the acting person's, or the institution's when `subject_code` is the
    institution's code. The content itself was checked field by field before the decision.

    Refusals: SIG_INVALID (another type of content, or the bytes do not verify), SIG_CERT (the key is unknown, revoked,
    not the subject's at this institution, or was not valid at the claimed time), RX_TIME (the claimed time lies in the
    future or is too old), INPUT_MALFORMED (the content does not parse).
    """
    statement = claimed(command, field, message_type)
    if isinstance(statement, Refused):
        return statement
    facts = command.evidence.signatures.get(field)
    fact = facts[0] if facts else None
    key = _signing_key(tx, fact, subject_code, institution_code)
    if fact is None or key is None:
        return Refused("SIG_CERT", field=f"{field}.signatures[0].key_id")
    if not fact.valid:
        return Refused("SIG_INVALID", field=f"{field}.signatures[0]")
    signed_at_ms = statement.signed_at_ms
    if not key.valid_from_ms <= signed_at_ms <= key.valid_until_ms:
        return Refused("SIG_CERT", field=f"{field}.signatures[0].key_id")
    if not fresh(tx, tx.rules(command.caller.area_code), signed_at_ms):
        return Refused("RX_TIME", field=f"{field}.signed_at_ms")
    return statement


def fresh(tx: Draft, rules: Rules, signed_at_ms: int) -> bool:
    """Whether a claimed signing time is neither in the future nor too old (X-21)."""
    return 0 <= tx.now_ms - signed_at_ms <= rules.duration_ms("signing_age")


def follows(tx: Draft, signed_at_ms: int, before_ms: int) -> bool:
    """Whether a statement was signed after a step, and so is none that served that step or an earlier one.

    Steps of one instant may be alike, as they may to an auditor.
    """
    return signed_at_ms > before_ms or signed_at_ms == before_ms == tx.now_ms


def _signing_key(
    tx: Draft, fact: SignatureFact | None, subject_code: str, institution_code: str
) -> registry_pb2.SigningKeyRecord | None:
    if fact is None or not fact.suite:
        return None
    if tx.find("revoked_key", fact.key_id.encode()) is not None:
        return None
    for record in _keys(tx, subject_code, institution_code):
        if record.key_id == fact.key_id and record.institution_code == institution_code:
            return record
    return None


def _keys(tx: Draft, subject_code: str, institution_code: str) -> Iterable[registry_pb2.SigningKeyRecord]:
    if subject_code == institution_code:
        key = tx.find("institution", subject_code.encode())
        seal = tx.state(key, state_pb2.InstitutionState) if key else None
        return seal.keys if seal else ()
    key = tx.find("practitioner", subject_code.encode())
    holder = tx.state(key, state_pb2.PractitionerState) if key else None
    return holder.keys if holder else ()
