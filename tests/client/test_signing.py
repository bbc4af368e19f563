"""Signed contents: the bytes that are sent are the bytes that were signed, and a download is checked against them."""

import hashlib
from collections.abc import Callable, Iterable

import pytest

from erxhub.client import Connection, DownloadInvalid, HospitalClient, PharmacyClient, check_download, sign, sign_bytes
from erxhub.crypto.envelope import pae
from erxhub.crypto.suites import SUITES, SigningKey
from erxhub.v1 import common_pb2, dispensing_pb2, prescribing_pb2, registry_pb2, signed_pb2
from tests.client.conftest import HOSPITAL, PHARMACY
from tests.client.fake_hub import FakeEnvironment, FakeHub

RX_NO = "330100" + "7" * 21
AT_MS = 1_767_225_600_000
DOCTOR = SigningKey.generate("ES256")
PHARMACIST = SigningKey.generate("EdDSA")
SEAL = SigningKey.generate("SM2-SM3")
KEYS = {"D330100000001": DOCTOR, "P330100000009": PHARMACIST, HOSPITAL: SEAL}


def verifies(signed: common_pb2.Signed, key: SigningKey) -> bool:
    message = pae(signed.payload_type, signed.payload)
    return key.suite.verify(key.public_key, message, signed.signatures[0].signature)


@pytest.mark.parametrize("suite", sorted(SUITES))
def test_a_statement_is_signed_over_the_bytes_that_are_sent(suite: str) -> None:
    key = SigningKey.generate(suite)
    statement = signed_pb2.HandOverStatement(rx_no=RX_NO, pharmacy_code=PHARMACY, signed_at_ms=AT_MS)
    signed = sign(statement, key)
    assert signed.payload_type == "application/vnd.erxhub.v1.HandOverStatement"
    assert signed.payload == statement.SerializeToString()
    assert signed.signatures[0].key_id == key.key_id
    assert verifies(signed, key)


def test_a_signature_needs_a_key() -> None:
    with pytest.raises(ValueError):
        sign_bytes("application/vnd.erxhub.v1.HandOverStatement", b"")


def document() -> signed_pb2.PrescriptionDocument:
    return signed_pb2.PrescriptionDocument(
        rx_no=RX_NO,
        rx_trace_code="8" * 20,
        prescription=common_pb2.Prescription(hospital_code=HOSPITAL, doctor_code="D330100000001"),
    )


async def uploaded(hub: FakeHub, connection: Connection) -> prescribing_pb2.UploadPrescriptionRequest:
    await HospitalClient(connection).upload(
        document=document(),
        pharmacist_code="P330100000009",
        doctor_key=DOCTOR,
        pharmacist_key=PHARMACIST,
        seal_key=SEAL,
        file=b"%PDF-1.7",
    )
    request: prescribing_pb2.UploadPrescriptionRequest = hub.requests("UploadPrescription")[0]
    return request


async def test_an_upload_binds_review_and_seal_to_the_exact_bytes(
    hub: FakeHub, connection: Connection, environment: FakeEnvironment
) -> None:
    request = await uploaded(hub, connection)
    sent = signed_pb2.PrescriptionDocument.FromString(request.prescription.payload)
    review = signed_pb2.HospitalReviewStatement.FromString(request.review.payload)
    seal = signed_pb2.UploadSealStatement.FromString(request.seal.payload)
    prescription_sha256 = hashlib.sha256(request.prescription.payload).digest()
    assert verifies(request.prescription, DOCTOR)
    assert verifies(request.review, PHARMACIST)
    assert verifies(request.seal, SEAL)
    assert sent.signed_at_ms == review.signed_at_ms == seal.signed_at_ms == environment.now_ms()
    assert review.prescription_sha256 == seal.prescription_sha256 == prescription_sha256
    assert seal.review_sha256 == hashlib.sha256(request.review.payload).digest()
    assert seal.file_sha256 == hashlib.sha256(b"%PDF-1.7").digest()
    assert seal.hospital_code == HOSPITAL
    assert request.file.media_type == "application/pdf"


async def test_a_signing_time_in_the_document_is_kept_and_the_document_left_alone(
    hub: FakeHub, connection: Connection
) -> None:
    timed = document()
    timed.signed_at_ms = AT_MS
    given = document()
    for one in (timed, given):
        await HospitalClient(connection).upload(
            document=one, pharmacist_code="P9", doctor_key=DOCTOR, pharmacist_key=DOCTOR, seal_key=DOCTOR, file=b"x"
        )
    assert hub.requests("UploadPrescription")[0].prescription.payload == timed.SerializeToString()
    assert given == document()


async def test_a_pharmacys_review_covers_the_downloaded_bytes(
    hub: FakeHub, connected: Callable[[str, str], Connection]
) -> None:
    prescription = sign(document(), DOCTOR)
    await PharmacyClient(connected("pharmacy", PHARMACY)).review(
        rx_no=RX_NO,
        pharmacist_code="P330100000010",
        decision=signed_pb2.REVIEW_DECISION_PASS,
        opinion="审核通过",
        prescription=prescription,
        pharmacist_key=PHARMACIST,
    )
    request = hub.requests("ReviewPrescription")[0]
    statement = signed_pb2.ReviewStatement.FromString(request.statement.payload)
    assert verifies(request.statement, PHARMACIST)
    assert statement.prescription_sha256 == hashlib.sha256(prescription.payload).digest()
    assert statement.pharmacy_code == PHARMACY


# --- downloads ---


def records() -> list[registry_pb2.SigningKeyRecord]:
    return [
        registry_pb2.SigningKeyRecord(
            key_id=key.key_id,
            subject_code=subject,
            institution_code=HOSPITAL,
            suite=key.suite.name,
            public_key=key.public_key,
            valid_from_ms=AT_MS - 1_000,
            valid_until_ms=2**62,
        )
        for subject, key in KEYS.items()
    ]


@pytest.fixture
async def download(hub: FakeHub, connection: Connection) -> dispensing_pb2.DownloadPrescriptionResponse:
    request = await uploaded(hub, connection)
    return dispensing_pb2.DownloadPrescriptionResponse(
        rx_no=RX_NO, prescription=request.prescription, review=request.review, seal=request.seal, file=request.file
    )


def reason(
    download: dispensing_pb2.DownloadPrescriptionResponse, keys: Iterable[registry_pb2.SigningKeyRecord]
) -> tuple[str, str]:
    with pytest.raises(DownloadInvalid) as caught:
        check_download(download, keys)
    return caught.value.part, caught.value.reason


def test_a_download_as_it_was_uploaded_is_good(download: dispensing_pb2.DownloadPrescriptionResponse) -> None:
    checked = check_download(download, records())
    assert checked.document.rx_no == checked.review.rx_no == checked.seal.rx_no == RX_NO


def test_another_file_is_found(download: dispensing_pb2.DownloadPrescriptionResponse) -> None:
    download.file.data = b"%PDF-1.7 other"
    assert reason(download, records()) == ("file", "DIGEST")


def test_an_altered_content_is_found(download: dispensing_pb2.DownloadPrescriptionResponse) -> None:
    download.prescription.payload += b"\x20\x01"
    assert reason(download, records()) == ("prescription", "SIGNATURE")


def test_a_content_without_signature_is_found(download: dispensing_pb2.DownloadPrescriptionResponse) -> None:
    del download.review.signatures[:]
    assert reason(download, records()) == ("review", "SIGNATURE")


def test_contents_that_changed_places_are_found(download: dispensing_pb2.DownloadPrescriptionResponse) -> None:
    download.review.CopyFrom(download.seal)
    assert reason(download, records()) == ("review", "PAYLOAD")


def test_an_unknown_key_is_found(download: dispensing_pb2.DownloadPrescriptionResponse) -> None:
    assert reason(download, records()[1:]) == ("prescription", "UNKNOWN_KEY")


def test_a_key_of_another_person_or_another_hospital_is_found(
    download: dispensing_pb2.DownloadPrescriptionResponse,
) -> None:
    keys = records()
    keys[1].subject_code = "P330100000011"
    assert reason(download, keys) == ("review", "NOT_THE_SIGNER")
    keys = records()
    keys[0].institution_code = "H33010600099"
    assert reason(download, keys) == ("prescription", "NOT_THE_SIGNER")


def test_a_key_that_was_not_valid_or_is_revoked_is_found(
    download: dispensing_pb2.DownloadPrescriptionResponse,
) -> None:
    keys = records()
    keys[2].valid_until_ms = AT_MS
    assert reason(download, keys) == ("seal", "KEY_NOT_VALID")
    keys = records()
    keys[0].revoked = True
    assert reason(download, keys) == ("prescription", "KEY_NOT_VALID")


def test_contents_of_another_prescription_are_found(download: dispensing_pb2.DownloadPrescriptionResponse) -> None:
    download.rx_no = "1" * 27
    assert reason(download, records()) == ("prescription", "OTHER_PRESCRIPTION")


def test_a_review_of_other_bytes_is_found(download: dispensing_pb2.DownloadPrescriptionResponse) -> None:
    download.prescription.CopyFrom(
        sign(signed_pb2.PrescriptionDocument.FromString(download.prescription.payload), DOCTOR)
    )
    check_download(download, records())
    longer = signed_pb2.PrescriptionDocument.FromString(download.prescription.payload)
    longer.prescription.department = "内科"
    download.prescription.CopyFrom(sign(longer, DOCTOR))
    assert reason(download, records()) == ("review", "DIGEST")
