"""Signing exact bytes: a statement is serialised once, and those bytes are signed, sent and kept.

Owns: how a Signed is made, and the three of an upload, each bound to the bytes of the one before.
Must never: serialise a signed message a second time; protobuf does not promise the same bytes.
"""

from __future__ import annotations

import hashlib
from typing import Final

from google.protobuf.message import Message

from erxhub.crypto.envelope import pae
from erxhub.crypto.suites import SigningKey
from erxhub.v1 import common_pb2, prescribing_pb2, signed_pb2

PAYLOAD_TYPE_PREFIX: Final = "application/vnd.erxhub.v1."


def payload_type(message: Message | type[Message]) -> str:
    """The name under which messages of this type are signed."""
    return PAYLOAD_TYPE_PREFIX + message.DESCRIPTOR.name


def sha256(data: bytes) -> bytes:
    """32 bytes."""
    return hashlib.sha256(data).digest()


def sign(statement: Message, *keys: SigningKey) -> common_pb2.Signed:
    """Serialises `statement` and signs the bytes with each key; the first is the acting person's or institution's."""
    return sign_bytes(payload_type(statement), statement.SerializeToString(), *keys)


def sign_bytes(type_name: str, payload: bytes, *keys: SigningKey) -> common_pb2.Signed:
    """Signs bytes that exist already, for instance a document signed on another machine by a second person."""
    if not keys:
        raise ValueError("a signed content needs at least one key")
    message = pae(type_name, payload)
    return common_pb2.Signed(
        payload_type=type_name,
        payload=payload,
        signatures=[common_pb2.Signature(key_id=key.key_id, signature=key.sign(message)) for key in keys],
    )


def signed_upload(
    *,
    request_id: str,
    document: signed_pb2.PrescriptionDocument,
    pharmacist_code: str,
    doctor_key: SigningKey,
    pharmacist_key: SigningKey,
    seal_key: SigningKey,
    file: bytes,
    media_type: str,
    opinion: str,
    hospital_code: str,
    signed_at_ms: int,
    wait_for: common_pb2.WaitFor.ValueType = common_pb2.WAIT_FOR_UNSPECIFIED,
) -> prescribing_pb2.UploadPrescriptionRequest:
    """The three signed contents of an upload.

    `document` is signed as it is, with `signed_at_ms` written in where it names no time. The review covers the
    SHA-256 of the document's bytes; the seal covers those of document, review and file.
    """
    if not document.signed_at_ms:
        unsigned, document = document, signed_pb2.PrescriptionDocument()
        document.CopyFrom(unsigned)
        document.signed_at_ms = signed_at_ms
    prescription = sign(document, doctor_key)
    review = sign(
        signed_pb2.HospitalReviewStatement(
            rx_no=document.rx_no,
            pharmacist_code=pharmacist_code,
            prescription_sha256=sha256(prescription.payload),
            opinion=opinion,
            signed_at_ms=signed_at_ms,
        ),
        pharmacist_key,
    )
    seal = sign(
        signed_pb2.UploadSealStatement(
            rx_no=document.rx_no,
            hospital_code=hospital_code,
            prescription_sha256=sha256(prescription.payload),
            review_sha256=sha256(review.payload),
            file_sha256=sha256(file),
            signed_at_ms=signed_at_ms,
        ),
        seal_key,
    )
    return prescribing_pb2.UploadPrescriptionRequest(
        request_id=request_id,
        wait_for=wait_for,
        prescription=prescription,
        review=review,
        seal=seal,
        file=common_pb2.PrescriptionFile(media_type=media_type, data=file),
    )
