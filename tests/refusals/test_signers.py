"""Who signed what: forged, altered, expired, revoked, back-dated and unknown signers are refused in every step."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf.message import Message

from erxhub.client.signing import sign
from erxhub.crypto.suites import SigningKey
from erxhub.seed import sample_pdf
from erxhub.v1 import common_pb2, prescribing_pb2, signed_pb2
from tests.chain import DOCTOR, HOSPITAL_PHARMACIST, PICK_UP, PURCHASE, Chain
from tests.live import HOSPITAL, HOUR_MS, MINUTE_MS, PHARMACY
from tests.refusals.bench import Bench, open_bench
from tests.refusals.provoking import Attempt, Expected, refused

pytestmark = pytest.mark.asyncio(loop_scope="module")

SIGNERS = {"prescription": DOCTOR, "review": HOSPITAL_PHARMACIST, "seal": HOSPITAL}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["ES256", "SM2-SM3"])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    """A hub whose seeded signers use one suite."""
    async with open_bench(suite=request.param) as opened:
        yield opened


def _suite(bench: Bench) -> str:
    return bench.live.key(DOCTOR, HOSPITAL).suite.name


async def _registered(bench: Bench, part: str, from_ms: int, until_ms: int) -> SigningKey:
    """A further key of the part's own signer, valid from and until so many milliseconds after now."""
    key = SigningKey.generate(_suite(bench))
    now_ms = bench.live.clock.now_ms()
    agency = await bench.live.agency()
    await agency.register_signing_key(
        subject_code=SIGNERS[part],
        institution_code=HOSPITAL,
        suite=key.suite.name,
        public_key=key.public_key,
        valid_from_ms=now_ms + from_ms,
        valid_until_ms=now_ms + until_ms,
    )
    return key


Fault = Callable[[Bench, str, Any], Awaitable[common_pb2.Signed]]


def _own(bench: Bench, part: str) -> SigningKey:
    return bench.live.key(SIGNERS[part], HOSPITAL)


async def nothing_wrong(bench: Bench, part: str, statement: Any) -> common_pb2.Signed:
    return sign(statement, _own(bench, part))


async def forged(bench: Bench, part: str, statement: Any) -> common_pb2.Signed:
    """The signature is genuine, and over another content."""
    other = type(statement)()
    other.CopyFrom(statement)
    other.signed_at_ms -= 1
    signed = sign(other, _own(bench, part))
    signed.payload = statement.SerializeToString()
    return signed


async def altered(bench: Bench, part: str, statement: Any) -> common_pb2.Signed:
    """One bit of the signature is another."""
    signed = sign(statement, _own(bench, part))
    signature = bytearray(signed.signatures[0].signature)
    signature[40] ^= 1
    signed.signatures[0].signature = bytes(signature)
    return signed


async def cut(bench: Bench, part: str, statement: Any) -> common_pb2.Signed:
    """The signature is too short to be one."""
    signed = sign(statement, _own(bench, part))
    signed.signatures[0].signature = signed.signatures[0].signature[:10]
    return signed


async def wrong_key(bench: Bench, part: str, statement: Any) -> common_pb2.Signed:
    """Another key signed under the name of the registered one."""
    key = SigningKey.generate(_suite(bench))
    key.key_id = _own(bench, part).key_id
    return sign(statement, key)


async def somebody_elses(bench: Bench, part: str, statement: Any) -> common_pb2.Signed:
    """The key is registered, to another signer."""
    other = "seal" if part != "seal" else "prescription"
    return sign(statement, _own(bench, other))


async def not_registered(bench: Bench, part: str, statement: Any) -> common_pb2.Signed:
    return sign(statement, SigningKey.generate(_suite(bench)))


async def expired(bench: Bench, part: str, statement: Any) -> common_pb2.Signed:
    return sign(statement, await _registered(bench, part, -2 * HOUR_MS, -1))


async def not_yet_valid(bench: Bench, part: str, statement: Any) -> common_pb2.Signed:
    return sign(statement, await _registered(bench, part, 1, HOUR_MS))


async def revoked(bench: Bench, part: str, statement: Any) -> common_pb2.Signed:
    """The key was revoked since; that the signing time lies before its revocation helps nobody."""
    key = await _registered(bench, part, -HOUR_MS, HOUR_MS)
    agency = await bench.live.agency()
    await agency.revoke_certificate(key_id=key.key_id, reason="私钥泄露")
    statement.signed_at_ms -= 5 * MINUTE_MS
    return sign(statement, key)


async def back_dated(bench: Bench, part: str, statement: Any) -> common_pb2.Signed:
    """The key has ended, and the claimed time lies in its life."""
    key = await _registered(bench, part, -2 * HOUR_MS, -20 * MINUTE_MS)
    statement.signed_at_ms -= 30 * MINUTE_MS
    return sign(statement, key)


async def from_the_future(bench: Bench, part: str, statement: Any) -> common_pb2.Signed:
    statement.signed_at_ms += 1
    return sign(statement, _own(bench, part))


async def of_another_kind(bench: Bench, part: str, statement: Any) -> common_pb2.Signed:
    """The bytes are signed as a hand-over, which they are not."""
    del statement
    return sign(signed_pb2.HandOverStatement(rx_no="1" * 27, pharmacy_code=PHARMACY, signed_at_ms=1), _own(bench, part))


FAULTS: tuple[tuple[Fault, str, str], ...] = (
    (forged, "SIG_INVALID", ".signatures[0]"),
    (altered, "SIG_INVALID", ".signatures[0]"),
    (cut, "SIG_INVALID", ".signatures[0]"),
    (wrong_key, "SIG_INVALID", ".signatures[0]"),
    (of_another_kind, "SIG_INVALID", ".payload_type"),
    (somebody_elses, "SIG_CERT", ".signatures[0].key_id"),
    (not_registered, "SIG_CERT", ".signatures[0].key_id"),
    (expired, "SIG_CERT", ".signatures[0].key_id"),
    (not_yet_valid, "SIG_CERT", ".signatures[0].key_id"),
    (revoked, "SIG_CERT", ".signatures[0].key_id"),
    (back_dated, "RX_TIME", ".signed_at_ms"),
    (from_the_future, "RX_TIME", ".signed_at_ms"),
)


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


async def _upload(bench: Bench, rx: Chain, faulty: str, fault: Fault) -> prescribing_pb2.UploadPrescriptionRequest:
    """An upload with one fault in one of its three signed contents; the other two cover it as it is."""

    async def signed(part: str, statement: Message) -> common_pb2.Signed:
        return await (fault if part == faulty else nothing_wrong)(bench, part, statement)

    file, now_ms = sample_pdf(rx.rx_no), bench.live.clock.now_ms()
    prescription = await signed("prescription", rx.document())
    review = await signed(
        "review",
        signed_pb2.HospitalReviewStatement(
            rx_no=rx.rx_no,
            pharmacist_code=HOSPITAL_PHARMACIST,
            prescription_sha256=_sha256(prescription.payload),
            opinion="审核通过",
            signed_at_ms=now_ms,
        ),
    )
    seal = await signed(
        "seal",
        signed_pb2.UploadSealStatement(
            rx_no=rx.rx_no,
            hospital_code=HOSPITAL,
            prescription_sha256=_sha256(prescription.payload),
            review_sha256=_sha256(review.payload),
            file_sha256=_sha256(file),
            signed_at_ms=now_ms,
        ),
    )
    hospital = await bench.live.hospital()
    return prescribing_pb2.UploadPrescriptionRequest(
        request_id=hospital.request_ids.new(),
        prescription=prescription,
        review=review,
        seal=seal,
        file=common_pb2.PrescriptionFile(media_type="application/pdf", data=file),
    )


@pytest.mark.parametrize("part", SIGNERS)
@pytest.mark.parametrize(("fault", "code", "field"), FAULTS, ids=[fault.__name__ for fault, _, _ in FAULTS])
async def test_signature_of_an_upload_that_is_not_the_signers_refuses_it(
    bench: Bench, part: str, fault: Fault, code: str, field: str
) -> None:
    rx = await bench.rx().prechecked()
    hospital = await bench.live.hospital()
    request = await _upload(bench, rx, part, fault)
    await refused(bench, Attempt(hospital, hospital.send(request)), Expected(code, part + field))
    # The fault was the only thing wrong: without it the same prescription is taken.
    await hospital.send(await _upload(bench, rx, "", nothing_wrong))


@pytest.mark.parametrize(
    ("part", "digest", "field"),
    [
        ("review", "prescription_sha256", "review.payload"),
        ("seal", "prescription_sha256", "seal.payload"),
        ("seal", "review_sha256", "seal.payload"),
        ("seal", "file_sha256", "file"),
    ],
)
async def test_digest_that_is_not_of_the_bytes_refuses_the_upload(
    bench: Bench, part: str, digest: str, field: str
) -> None:
    async def of_other_bytes(bench: Bench, part: str, statement: Any) -> common_pb2.Signed:
        setattr(statement, digest, bytes(32))
        return sign(statement, _own(bench, part))

    rx = await bench.rx().prechecked()
    hospital = await bench.live.hospital()
    request = await _upload(bench, rx, part, of_other_bytes)
    await refused(bench, Attempt(hospital, hospital.send(request)), Expected("SIG_INVALID", field))


async def test_signed_content_that_is_not_the_prechecked_one_refuses_the_upload(bench: Bench) -> None:
    rx = await bench.rx().prechecked()
    rx.prescription.lines[0].quantity = "9"
    hospital = await bench.live.hospital()
    request = await _upload(bench, rx, "", nothing_wrong)
    await refused(bench, Attempt(hospital, hospital.send(request)), Expected("SIG_INVALID", "prescription.payload"))


# ---- every other signed step ----


async def _diagnosis(bench: Bench) -> tuple[Any, Callable[[SigningKey], Awaitable[Any]], SigningKey]:
    rx = await bench.rx().registered()
    hospital = await bench.live.hospital()
    await hospital.start_encounter(encounter_id=rx.encounter_id, doctor_code=DOCTOR)
    diagnoses = list(rx.written().diagnoses)
    return (
        hospital,
        lambda key: hospital.record_diagnosis(
            encounter_id=rx.encounter_id, doctor_code=DOCTOR, diagnoses=diagnoses, doctor_key=key
        ),
        bench.live.key(DOCTOR, HOSPITAL),
    )


async def _review(bench: Bench) -> tuple[Any, Callable[[SigningKey], Awaitable[Any]], SigningKey]:
    rx = await bench.rx().held()
    pharmacy = await bench.live.pharmacy()
    return (
        pharmacy,
        lambda key: pharmacy.review(
            rx_no=rx.rx_no,
            pharmacist_code=rx.pharmacist,
            decision=signed_pb2.REVIEW_DECISION_PASS,
            opinion="用药合理",
            prescription=rx.download.prescription,
            pharmacist_key=key,
        ),
        bench.live.key(rx.pharmacist, PHARMACY),
    )


async def _settlement(bench: Bench) -> tuple[Any, Callable[[SigningKey], Awaitable[Any]], SigningKey]:
    rx = await bench.rx().quoted()
    reference = await rx.reference(PURCHASE)
    pharmacy = await bench.live.pharmacy()
    return pharmacy, lambda key: rx.settle(seal_key=key, voucher_ref=reference), bench.live.key(PHARMACY, PHARMACY)


async def _dispensing(bench: Bench) -> tuple[Any, Callable[[SigningKey], Awaitable[Any]], SigningKey]:
    rx = await bench.rx().settled()
    pharmacy = await bench.live.pharmacy()
    arguments = rx.dispense_arguments()
    return (
        pharmacy,
        lambda key: pharmacy.dispense(**arguments | {"seal_key": key}),
        bench.live.key(PHARMACY, PHARMACY),
    )


async def _hand_over(bench: Bench) -> tuple[Any, Callable[[SigningKey], Awaitable[Any]], SigningKey]:
    rx = await bench.rx().dispensed()
    reference = await rx.reference(PICK_UP)
    pharmacy = await bench.live.pharmacy()
    return (
        pharmacy,
        lambda key: pharmacy.hand_over(rx_no=rx.rx_no, staff_code=rx.dispenser, voucher_ref=reference, seal_key=key),
        bench.live.key(PHARMACY, PHARMACY),
    )


async def _delivery(bench: Bench) -> tuple[Any, Callable[[SigningKey], Awaitable[Any]], SigningKey]:
    rx = await bench.rx().arrived()
    pharmacy = await bench.live.pharmacy()
    return pharmacy, lambda key: rx.sign(seal_key=key), bench.live.key(PHARMACY, PHARMACY)


@pytest.mark.parametrize("step", [_diagnosis, _review, _settlement, _dispensing, _hand_over, _delivery])
async def test_step_that_is_signed_by_a_stranger_is_refused(bench: Bench, step: Any) -> None:
    client, call, right = await step(bench)
    stranger = SigningKey.generate(_suite(bench))
    unknown = Expected("SIG_CERT", "statement.signatures[0].key_id")
    await refused(bench, Attempt(client, call(stranger)), unknown)
    stranger.key_id = right.key_id
    await refused(bench, Attempt(client, call(stranger)), Expected("SIG_INVALID", "statement.signatures[0]"))
    await call(right)
