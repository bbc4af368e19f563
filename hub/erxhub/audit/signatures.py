"""The signed contents of a chain: whose signature each needs, what it must say, and whether it holds.

Owns the table of signed contents and the checks around a signature: its type, its key's record, the digests and facts
that it covers. The signature itself is verified by whoever calls: `proofs` gives what to verify, `findings` takes the
verdicts. Bytes are verified exactly as they were recorded; nothing is serialised again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Final

from google.protobuf.message import DecodeError, Message

from erxhub.audit.chain import Chain, Finding, Name, Reason, Record, Sources, Stream
from erxhub.audit.sales import Sale
from erxhub.crypto.envelope import pae
from erxhub.crypto.suites import SUITES, Check
from erxhub.v1 import common_pb2, events_pb2, registry_pb2, signed_pb2

_PAYLOAD_TYPE_PREFIX: Final = "application/vnd.erxhub.v1."

_DECISIONS: Final[Mapping[str, signed_pb2.ReviewDecision.ValueType]] = {
    "review.passed": signed_pb2.REVIEW_DECISION_PASS,
    "review.rejected": signed_pb2.REVIEW_DECISION_REJECT,
    "review.returned_to_doctor": signed_pb2.REVIEW_DECISION_RETURN_TO_DOCTOR,
}


@dataclass(frozen=True, slots=True)
class SignedContent:
    """One signed content of an entry.

    `facts` says whether the statement is what the entry and the chain say; it is asked with the parsed statement.
    """

    record: Record
    signed: common_pb2.Signed
    message_type: type[Message]
    subject_code: str
    institution_code: str
    facts: Callable[[Any], bool]
    is_sealed: bool = False
    """The institution signs with its seal; otherwise a person, for whom no seal can stand."""

    def statement(self) -> Any:
        """The parsed statement, or None when the bytes are none of its type."""
        if self.signed.payload_type != _PAYLOAD_TYPE_PREFIX + self.message_type.DESCRIPTOR.name:
            return None
        try:
            return self.message_type.FromString(self.signed.payload)
        except DecodeError:
            return None

    @property
    def holder(self) -> Name:
        """The name of the registry stream that holds the signer's keys."""
        return "institution" if self.is_sealed else "practitioner", self.subject_code.encode()

    def finding(self, reason: Reason) -> Finding:
        """A fault of this content."""
        header = self.record.header
        return Finding(header.stream_kind, header.stream_key, header.version, reason)


# ---- which contents ----

_BY_HOSPITAL: Final = (events_pb2.HospitalReviewed, events_pb2.PrescriptionUploaded)
"""The events of a prescription that hold what a hospital and its people signed."""


def contents(chain: Chain, sales: Sequence[Sale]) -> list[SignedContent]:
    """Every signed content of the chain, in the order of the log within each stream."""
    pharmacies = {sale.order_no: sale for sale in sales}
    found = [
        _diagnosis(chain, record)
        for record in chain.encounter.records
        if isinstance(record.payload, events_pb2.DiagnosisRecorded)
    ]
    for record in chain.rx.records:
        found.extend(_of_prescription(chain, record))
        sale = pharmacies.get(getattr(record.payload, "order_no", ""))
        if sale is not None:
            found.extend(_of_sale(chain, record, sale))
    return found


def holders(chain: Chain, sales: Sequence[Sale]) -> set[Name]:
    """The names of the registry streams whose keys the chain's signatures need."""
    return {content.holder for content in contents(chain, sales) if content.subject_code}


def revocation_names(chain: Chain, sales: Sequence[Sale]) -> set[Name]:
    """The names under which the hub would find the keys of the chain's signatures revoked."""
    return {
        ("revoked_key", signature.key_id.encode())
        for content in contents(chain, sales)
        for signature in content.signed.signatures[:1]
    }


def _diagnosis(chain: Chain, record: Record) -> SignedContent:
    payload, registered = record.payload, chain.registered
    return SignedContent(
        record,
        payload.statement,
        signed_pb2.DiagnosisStatement,
        payload.doctor_code,
        registered.payload.hospital_code if registered else record.institution_code,
        lambda statement: (
            statement.doctor_code == payload.doctor_code
            and list(statement.diagnoses) == list(payload.diagnoses)
            and (registered is None or statement.encounter_id == registered.payload.encounter_id)
        ),
    )


def _of_prescription(chain: Chain, record: Record) -> Iterator[SignedContent]:
    payload, prechecked = record.payload, chain.prechecked
    if prechecked is None or not isinstance(payload, _BY_HOSPITAL):
        return
    content, rx_no = prechecked.payload.content, chain.rx_no
    uploaded = chain.rx.first("prescription.uploaded")
    reviewed = chain.rx.first("prescription.hospital_reviewed")
    signed = chain.rx.first("prescription.signed")
    if isinstance(payload, events_pb2.HospitalReviewed):
        yield SignedContent(
            record,
            payload.statement,
            signed_pb2.HospitalReviewStatement,
            payload.pharmacist_code,
            content.hospital_code,
            lambda statement: (
                statement.rx_no == rx_no
                and statement.pharmacist_code == payload.pharmacist_code
                and statement.prescription_sha256 == prescription_sha256(chain)
            ),
        )
    else:
        yield SignedContent(
            record,
            payload.prescription,
            signed_pb2.PrescriptionDocument,
            content.doctor_code,
            content.hospital_code,
            lambda statement: (
                statement.rx_no == rx_no
                and statement.rx_trace_code == prechecked.payload.rx_trace_code
                and statement.prescription == content
                and signed is not None
                and signed.payload.prescription_sha256 == prescription_sha256(chain)
            ),
        )
        yield SignedContent(
            record,
            payload.seal,
            signed_pb2.UploadSealStatement,
            content.hospital_code,
            content.hospital_code,
            lambda statement: (
                statement.rx_no == rx_no
                and uploaded is not None
                and reviewed is not None
                and statement.hospital_code == content.hospital_code
                and statement.prescription_sha256 == prescription_sha256(chain)
                and statement.review_sha256 == _digest(reviewed.payload.statement)
                and statement.file_sha256 == uploaded.payload.file_sha256
            ),
            is_sealed=True,
        )


def _digest(signed: common_pb2.Signed) -> bytes:
    return sha256(signed.payload).digest()


def prescription_sha256(chain: Chain) -> bytes:
    """The digest of the bytes that the doctor signed; b"" before the upload."""
    uploaded = chain.rx.first("prescription.uploaded")
    return _digest(uploaded.payload.prescription) if uploaded else b""


def _of_sale(chain: Chain, record: Record, sale: Sale) -> Iterator[SignedContent]:
    found = _SALE_CONTENTS.get(record.name)
    if found is None:
        return
    message_type, subject, facts = found
    payload, pharmacy = record.payload, sale.pharmacy_code
    yield SignedContent(
        record,
        payload.statement,
        message_type,
        pharmacy if subject is None else str(getattr(payload, subject)),
        pharmacy,
        lambda statement: (
            statement.rx_no == chain.rx_no
            and statement.pharmacy_code == pharmacy
            and facts(chain, sale, record, statement)
        ),
        is_sealed=subject is None,
    )


def _known(message: Message) -> Message:
    """What this version can read of a message: a newer signer may have signed more, and that contradicts nothing."""
    known = type(message)()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    return known


def _review_facts(chain: Chain, sale: Sale, record: Record, statement: signed_pb2.ReviewStatement) -> bool:
    return (
        statement.decision == _DECISIONS[record.name]
        and statement.pharmacist_code == record.payload.pharmacist_code
        and statement.opinion == record.payload.opinion
        and statement.prescription_sha256 == prescription_sha256(chain)
    )


def _settle_facts(chain: Chain, sale: Sale, record: Record, statement: signed_pb2.SettleStatement) -> bool:
    claim = record.payload.claim
    insured = record.name == "settlement.committed"
    return (
        _known(statement.amounts) == _known(claim.amounts)
        and statement.quote_id == (claim.quote_id if insured else "")
        and statement.pay_mode == (signed_pb2.PAY_MODE_INSURED if insured else signed_pb2.PAY_MODE_SELF)
    )


def _dispense_facts(chain: Chain, sale: Sale, record: Record, statement: signed_pb2.DispenseStatement) -> bool:
    settled = sale.settled
    if settled is None or [*map(_known, statement.lots)] != [*map(_known, record.payload.lots)]:
        return False
    # A self-payment has no settlement number of the fund, so its sale may name none.
    may_be_empty = settled.name == "settlement.self_paid" and not statement.settlement_id
    return may_be_empty or statement.settlement_id == settled.payload.claim.settlement_id


def _hand_over_facts(chain: Chain, sale: Sale, record: Record, statement: signed_pb2.HandOverStatement) -> bool:
    return True


def _delivery_facts(chain: Chain, sale: Sale, record: Record, statement: signed_pb2.SignDeliveryStatement) -> bool:
    requested = (each for each in chain.rx.all("delivery.requested") if each.payload.order_no == sale.order_no)
    return statement.delivery_no in {each.payload.delivery_no for each in requested}


_SaleFacts = Callable[[Chain, Sale, Record, Any], bool]
_SEAL: Final = None
"""The institution itself signs; otherwise the field of the payload that names who does."""

_REVIEW: Final = (signed_pb2.ReviewStatement, "pharmacist_code", _review_facts)
_SETTLE: Final = (signed_pb2.SettleStatement, _SEAL, _settle_facts)

_SALE_CONTENTS: Final[Mapping[str, tuple[type[Message], str | None, _SaleFacts]]] = {
    "review.passed": _REVIEW,
    "review.rejected": _REVIEW,
    "review.returned_to_doctor": _REVIEW,
    "settlement.committed": _SETTLE,
    "settlement.self_paid": _SETTLE,
    "dispense.outbound": (signed_pb2.DispenseStatement, _SEAL, _dispense_facts),
    "dispense.handed_over": (signed_pb2.HandOverStatement, _SEAL, _hand_over_facts),
    "delivery.signed": (signed_pb2.SignDeliveryStatement, _SEAL, _delivery_facts),
}


# ---- whether they hold ----


@dataclass(frozen=True, slots=True)
class Proof:
    """One signed content with everything known but the verdict on its bytes; no `check` when no key can verify it."""

    content: SignedContent
    reasons: tuple[Reason, ...]
    check: Check | None


def proofs(chain: Chain, sales: Sequence[Sale], sources: Sources) -> list[Proof]:
    """What there is to verify. Only the first signature counts: it is the acting person's or the institution's.

    A statement about a sale names the prescription and not always the order, so none stands for a later step as well.
    It is known by its bytes: of one content there can be many signatures. Steps of one instant may be alike.
    """
    revoked = _revocations(sources.stream(sources.ledger_key))
    found: list[Proof] = []
    first_at_ms: dict[tuple[str, bytes], int] = {}
    for content in contents(chain, sales):
        proof = _proof(content, sources, revoked)
        at_ms = content.record.at_ms
        if first_at_ms.setdefault((content.signed.payload_type, content.signed.payload), at_ms) != at_ms:
            proof = replace(proof, reasons=(*proof.reasons, Reason.REUSED))
        found.append(proof)
    return found


def _proof(content: SignedContent, sources: Sources, revoked: Mapping[str, list[Record]]) -> Proof:
    signature = next(iter(content.signed.signatures), None)
    statement = content.statement()
    if signature is None or statement is None:
        return Proof(content, (Reason.SIGNATURE,), None)
    reasons = [] if content.facts(statement) else [Reason.DIGEST]
    space, code = content.holder
    key = _key_of(content, signature.key_id, sources.named(space, code.decode()))
    if key is None or key.suite not in SUITES:
        return Proof(content, (Reason.SIGNING_KEY, *reasons), None)
    in_time = key.valid_from_ms <= statement.signed_at_ms <= key.valid_until_ms
    if not in_time or any(each.precedes(content.record) for each in revoked.get(key.key_id, ())):
        reasons.insert(0, Reason.SIGNING_KEY)
    message = pae(content.signed.payload_type, content.signed.payload)
    return Proof(content, tuple(reasons), Check(key.suite, key.public_key, message, signature.signature))


def _key_of(content: SignedContent, key_id: str, holder: Stream) -> registry_pb2.SigningKeyRecord | None:
    """The key's record, if it was registered for this signer at this institution before the entry."""
    for registered in holder.all("signing_key.registered"):
        key: registry_pb2.SigningKeyRecord = registered.payload.key
        if (
            key.key_id == key_id
            and key.subject_code == content.subject_code
            and key.institution_code == content.institution_code
            and registered.precedes(content.record)
        ):
            return key
    return None


def _revocations(ledger: Stream) -> dict[str, list[Record]]:
    revoked: dict[str, list[Record]] = {}
    for record in ledger.all("certificate.revoked"):
        if record.payload.key_id:
            revoked.setdefault(record.payload.key_id, []).append(record)
    return revoked


def checks(proofs_: Iterable[Proof]) -> list[Check]:
    """The signatures to verify, in the order in which `findings` takes the verdicts."""
    return [proof.check for proof in proofs_ if proof.check is not None]


def findings(proofs_: Iterable[Proof], verdicts: Iterable[bool]) -> list[Finding]:
    """The faults of all contents, given a verdict for each check."""
    found: list[Finding] = []
    verdict = iter(verdicts)
    for proof in proofs_:
        if proof.check is not None and not next(verdict):
            found.append(proof.content.finding(Reason.SIGNATURE))
        found.extend(proof.content.finding(reason) for reason in proof.reasons)
    return found


def file_findings(chain: Chain, data: bytes | None) -> list[Finding]:
    """Whether the stored prescription file is the one whose digest the seal covers. `data` is None when it is gone."""
    uploaded = chain.rx.first("prescription.uploaded")
    if uploaded is None or not uploaded.payload.file_sha256:
        return []
    if data is not None and sha256(data).digest() == uploaded.payload.file_sha256:
        return []
    header = uploaded.header
    return [Finding(header.stream_kind, header.stream_key, header.version, Reason.FILE)]
