"""Checking a downloaded prescription without trusting the hub that gave it.

Owns: which bytes must be signed by whom, and that they belong together. Must never: fetch a key; the caller brings the
registry records that it trusts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message

from erxhub.client.signing import payload_type, sha256
from erxhub.crypto.envelope import pae
from erxhub.crypto.suites import SUITES
from erxhub.v1 import common_pb2, dispensing_pb2, registry_pb2, signed_pb2

Statement = TypeVar("Statement", bound=Message)


class DownloadInvalid(Exception):
    """The prescription is not what hospital, doctor and pharmacist signed; do not dispense it.

    `part` is prescription, review, seal or file. `reason` is PAYLOAD (not the expected message), UNKNOWN_KEY,
    NOT_THE_SIGNER (the key is another person's), KEY_NOT_VALID (at the signing time, or revoked), SIGNATURE,
    DIGEST (it was signed for other bytes) or OTHER_PRESCRIPTION.
    """

    def __init__(self, part: str, reason: str, message: str) -> None:
        super().__init__(f"{part}: {reason}: {message}")
        self.part = part
        self.reason = reason


class CheckedDownload(NamedTuple):
    """The three contents, read from bytes whose signatures were verified before."""

    document: signed_pb2.PrescriptionDocument
    review: signed_pb2.HospitalReviewStatement
    seal: signed_pb2.UploadSealStatement


def _read(part: str, signed: common_pb2.Signed, kind: type[Statement]) -> Statement:
    if signed.payload_type != payload_type(kind):
        raise DownloadInvalid(part, "PAYLOAD", f"a {signed.payload_type or 'nameless'} payload stands in its place")
    try:
        return kind.FromString(signed.payload)
    except DecodeError as error:
        raise DownloadInvalid(part, "PAYLOAD", "its bytes are no such message") from error


def _check_signatures(
    part: str,
    signed: common_pb2.Signed,
    keys: Mapping[str, registry_pb2.SigningKeyRecord],
) -> None:
    if not signed.signatures:
        raise DownloadInvalid(part, "SIGNATURE", "it is not signed")
    message = pae(signed.payload_type, signed.payload)
    for signature in signed.signatures:
        record = keys.get(signature.key_id)
        suite = SUITES.get(record.suite) if record else None
        if record is None or suite is None:
            raise DownloadInvalid(part, "UNKNOWN_KEY", f"nothing is known of the key {signature.key_id}")
        if not suite.verify(record.public_key, message, signature.signature):
            raise DownloadInvalid(part, "SIGNATURE", f"the signature is not that of the key {signature.key_id}")


def _check_signer(
    part: str,
    signed: common_pb2.Signed,
    keys: Mapping[str, registry_pb2.SigningKeyRecord],
    signer: tuple[str, str],
    signed_at_ms: int,
) -> None:
    record = keys[signed.signatures[0].key_id]
    if (record.subject_code, record.institution_code) != signer:
        raise DownloadInvalid(part, "NOT_THE_SIGNER", f"it names {signer[0]} and {record.subject_code} signed it")
    if record.revoked or not record.valid_from_ms <= signed_at_ms < record.valid_until_ms:
        raise DownloadInvalid(
            part, "KEY_NOT_VALID", f"the key {record.key_id} was revoked, or not valid at the signing time"
        )


def check_download(
    response: dispensing_pb2.DownloadPrescriptionResponse, keys: Iterable[registry_pb2.SigningKeyRecord]
) -> CheckedDownload:
    """Raises DownloadInvalid unless doctor, hospital pharmacist and hospital signed exactly what was downloaded.

    `keys` are registry records of the signers, got from somebody other than this reply. In this order:

    1. Every signature of the three contents is that of a known key, over the bytes as they came.
    2. The contents are of the right types and about the prescription that was downloaded.
    3. The first signer is who the content says: the prescribing doctor, the reviewing pharmacist, the hospital
       itself; the key is registered at that hospital, was valid at the claimed time, and is not revoked (a record
       does not say when it was, so a revoked key is not trusted with anything that is still to be dispensed).
    4. Review and seal cover these very bytes of prescription, review and file.
    """
    by_id = {record.key_id: record for record in keys}
    parts = (("prescription", response.prescription), ("review", response.review), ("seal", response.seal))
    for part, signed in parts:
        _check_signatures(part, signed, by_id)
    document = _read("prescription", response.prescription, signed_pb2.PrescriptionDocument)
    review = _read("review", response.review, signed_pb2.HospitalReviewStatement)
    seal = _read("seal", response.seal, signed_pb2.UploadSealStatement)

    for part, rx_no in (("prescription", document.rx_no), ("review", review.rx_no), ("seal", seal.rx_no)):
        if rx_no != response.rx_no:
            raise DownloadInvalid(part, "OTHER_PRESCRIPTION", f"it is about {rx_no}")

    hospital = document.prescription.hospital_code
    if seal.hospital_code != hospital:
        raise DownloadInvalid("seal", "NOT_THE_SIGNER", f"the prescription is of {hospital}")
    doctor = document.prescription.doctor_code
    _check_signer("prescription", response.prescription, by_id, (doctor, hospital), document.signed_at_ms)
    _check_signer("review", response.review, by_id, (review.pharmacist_code, hospital), review.signed_at_ms)
    _check_signer("seal", response.seal, by_id, (hospital, hospital), seal.signed_at_ms)

    prescription_sha256 = sha256(response.prescription.payload)
    digests = (
        ("review", review.prescription_sha256, prescription_sha256),
        ("seal", seal.prescription_sha256, prescription_sha256),
        ("seal", seal.review_sha256, sha256(response.review.payload)),
        ("file", seal.file_sha256, sha256(response.file.data)),
    )
    for part, stated, actual in digests:
        if stated != actual:
            raise DownloadInvalid(part, "DIGEST", "the signed digest is that of other bytes")
    return CheckedDownload(document, review, seal)
