"""SIG: what was signed, by whom, with which key, and when."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from erxhub.client import sign
from erxhub.client.signing import sign_bytes
from erxhub.conform.hub.journey import Journey
from erxhub.conform.hub.parties import Party
from erxhub.conform.hub.run import HubRun
from erxhub.conform.registry import case
from erxhub.crypto.suites import SigningKey
from erxhub.rpc.methods import STATEMENTS
from erxhub.seed.world import SeedWorld
from erxhub.v1 import common_pb2, signed_pb2

PROFILES = ("dev", "strict")
SUITES = ("ES256", "SM2-SM3")
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
SIGNING_AGE_MS = 15 * MINUTE_MS
SAYS_FIRST = {
    "rx_no": ("RX_UNKNOWN",),
    "rx_trace_code": ("RX_TRACE_CODE_INVALID",),
    "hospital_code": ("INST_IMPERSONATION",),
    "pharmacy_code": ("INST_IMPERSONATION",),
    "pharmacist_code": ("REVIEW_PHARMACIST", "RX_NO_HOSP_REVIEW"),
}
"""A field that leads to somebody or something else when it is changed: a hub may refuse that before it looks at the
signature."""


def flipped(request: Any, field: str) -> Iterator[tuple[str, Any]]:
    """Copies of a request, each with one bit of one signed content the other way round.

    Bits of the signature's first, middle and last byte; and each field of the content changed by as little as can be,
    under the signature of what it was.
    """
    signature = getattr(request, field).signatures[0].signature
    for place in (0, len(signature) // 2, len(signature) - 1):
        copy = _copy(request)
        found = getattr(copy, field).signatures[0]
        found.signature = _with_bit(signature, place)
        yield f"{field}.signature[{place}]", copy
    signed = getattr(request, field)
    statement = STATEMENTS[signed.payload_type].FromString(signed.payload)
    for path, changed in _changed(statement):
        copy = _copy(request)
        getattr(copy, field).payload = changed.SerializeToString()
        yield f"{field}.{path}", copy


def _changed(statement: Message) -> Iterator[tuple[str, Message]]:
    """Copies of a message, each with one of its set fields changed by one bit; nested messages by their first field."""
    for descriptor, value in statement.ListFields():
        copy = _copy(statement)
        target: Any = copy
        name = descriptor.name
        if descriptor.message_type is not None:
            target = getattr(target, name)
            target = target[0] if descriptor.is_repeated else target
            name = next((f.name for f, v in target.ListFields() if f.message_type is None and not f.is_repeated), "")
            if not name:
                continue
            descriptor_inner = target.DESCRIPTOR.fields_by_name[name]
            setattr(target, name, _nudged(descriptor_inner, getattr(target, name)))
            yield f"{descriptor.name}.{name}", copy
        elif descriptor.is_repeated:
            getattr(target, name)[0] = _nudged(descriptor, value[0])
            yield name, copy
        else:
            setattr(target, name, _nudged(descriptor, value))
            yield name, copy


def _nudged(descriptor: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, bytes):
        return _with_bit(value, len(value) // 2)
    if isinstance(value, str):
        # The lowest bit of the last character: a digit stays a digit, a letter a letter or nearly so.
        return value[:-1] + chr(ord(value[-1]) ^ 1)
    if descriptor.enum_type is not None:
        return next(one.number for one in descriptor.enum_type.values if one.number not in (0, value))
    return value + 1


def _with_bit(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def _copy(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


@case(
    id="SIG-001",
    revision=1,
    since="0.2",
    status="stable",
    first_release=True,
    title_zh="签名内容任一字段翻转一位",
    title_en="One bit flipped in each signed field",
    level="MUST",
    verifies=("ERR-SIG_INVALID", "INV-I13"),
    suites=SUITES,
    profiles=PROFILES,
    deadline_ms=90_000,
)
async def one_bit_flipped(run: HubRun) -> None:
    """I13, X-03: a signed content counts only as it was signed; a bit in it, or in its signature, makes it nothing.

    At every step with a signature: diagnosis, upload (three signatures), review, settlement, dispensing, hand-over. The
    untouched request is accepted afterwards, and each attempt stands in the trace as a refusal.
    """
    journey = await run.journey().to("started")
    journey.prescription = journey.written()
    doctor = run.hospital.staff["doctor"]
    diagnosis = await run.hospital.drafts.record_diagnosis(
        encounter_id=journey.encounter_id,
        doctor_code=doctor,
        diagnoses=journey.prescription.diagnoses,
        doctor_key=run.key(doctor),
    )
    await _all_refused(run, run.hospital, diagnosis, ("statement",))
    await run.hospital.client.send(diagnosis)
    journey.state = "diagnosed"
    await journey.to("prechecked")
    attempts = await _all_refused(run, run.hospital, await journey.upload_request(), ("prescription", "review", "seal"))
    await run.chain(journey.rx_no, events={"prescription.effective": 0})
    await journey.to("held")
    attempts += await _all_refused(run, run.pharmacy, await journey.review_request(), ("statement",))
    await journey.to("quoted")
    attempts += await _all_refused(run, run.pharmacy, await journey.settle_request(), ("statement",))
    await journey.to("settled")
    attempts += await _all_refused(run, run.pharmacy, await journey.dispense_request(), ("statement",))
    await journey.to("handed_over")
    traced = await run.chain(journey.rx_no, events={"dispense.handed_over": 1}, light="GREEN")
    refused = sum(access.kind == "refusal" and access.outcome == "SIG_INVALID" for access in traced.accesses)
    run.checks.that(
        refused >= attempts,
        en="each attempt stands in the trace as a refusal",
        zh="每次尝试都应作为拒绝记录在追溯中",
        expected=attempts,
        actual=refused,
    )


async def _all_refused(run: HubRun, party: Party, request: Any, fields: tuple[str, ...]) -> int:
    """Sends every altered copy; how many of them were refused as SIG_INVALID."""
    position = await run.entries()
    invalid = 0
    for field in fields:
        for where, altered in flipped(request, field):
            answer = await party.ask(altered)
            allowed = ("SIG_INVALID", *SAYS_FIRST.get(where.rpartition(".")[2], ()))
            code = answer.code if answer.code in allowed else "SIG_INVALID"
            run.refused(answer, code, where=f"{answer.method} {where}")
            invalid += answer.code == "SIG_INVALID"
    await run.no_effect(position)
    return invalid


@case(
    id="SIG-002",
    revision=1,
    since="0.2",
    status="stable",
    first_release=True,
    title_zh="他人的有效签名",
    title_en="A valid signature of somebody else",
    level="MUST",
    verifies=("ERR-SIG_CERT", "INV-I14"),
    suites=SUITES,
    profiles=PROFILES,
)
async def signature_of_somebody_else(run: HubRun) -> None:
    """I14: the key that signed is the named signer's at the named institution; nobody else's valid signature counts."""
    journey = await run.journey().to("prechecked")
    doctor_b, pharmacist = run.hospital_b.staff["doctor"], run.hospital.staff["pharmacist"]
    seal_b = run.key(run.hospital_b.code)
    for where, change in (
        ("a doctor of another hospital", {"doctor_key": run.key(doctor_b)}),
        ("another doctor of this hospital", {"doctor_key": run.key(SeedWorld.junior_doctor_code)}),
        ("the pharmacist as doctor", {"doctor_key": run.key(pharmacist)}),
        ("the doctor as pharmacist", {"pharmacist_key": run.key(run.hospital.staff["doctor"])}),
        ("another hospital's seal", {"seal_key": seal_b}),
        ("the doctor's key as seal", {"seal_key": run.key(run.hospital.staff["doctor"])}),
        ("a key that nobody registered", {"doctor_key": SigningKey.generate(run.planned.suite)}),
    ):
        answer = await run.hospital.ask(await journey.upload_request(**change))
        run.refused(answer, "SIG_CERT", where=where)
    await run.chain(journey.rx_no, events={"prescription.effective": 0}, refusals={"SIG_CERT": 7})
    await journey.to("held")
    pharmacist_b = run.key(run.pharmacy_b.staff["pharmacist"])
    review = await journey.review_request(pharmacist_key=pharmacist_b)
    run.refused(await run.pharmacy.ask(review), "SIG_CERT", where="Dispensing/ReviewPrescription")
    await journey.to("quoted")
    settle = await journey.settle_request(seal_key=run.key(run.pharmacy_b.code))
    run.refused(await run.pharmacy.ask(settle), "SIG_CERT", where="Dispensing/Settle")
    await journey.to("settled")
    dispense = await journey.dispense_request(seal_key=run.key(run.pharmacy.staff["pharmacist"]))
    run.refused(await run.pharmacy.ask(dispense), "SIG_CERT", where="Dispensing/Dispense")
    await journey.dispense()
    await run.chain(journey.rx_no, events={"dispense.outbound": 1}, refusals={"SIG_CERT": 10})


@case(
    id="SIG-003",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="签名时证书已过期",
    title_en="A key that had expired when it signed",
    level="MUST",
    verifies=("ERR-SIG_CERT", "INV-I14"),
    needs=("clock",),
    suites=SUITES,
    profiles=PROFILES,
)
async def expired_signing_key(run: HubRun) -> None:
    """I14: a key signs inside its life; what it signed then still verifies when it has ended."""
    doctor, hospital = run.hospital.staff["doctor"], run.hospital.code
    key = await run.register_key(doctor, hospital, valid_until_ms=run.now_ms + HOUR_MS)
    future = await run.register_key(doctor, hospital, valid_from_ms=run.now_ms + 1)
    first = await run.journey().to("prechecked")
    early = await run.hospital.ask(await first.upload_request(doctor_key=future))
    run.refused(early, "SIG_CERT", where="before its life")
    run.accepted(await run.hospital.ask(await first.upload_request(doctor_key=key)))
    second = await run.journey().to("prechecked")
    await run.advance(by_ms=HOUR_MS + 1)
    late = await run.hospital.ask(await second.upload_request(doctor_key=key))
    run.refused(late, "SIG_CERT", where="after its life")
    await run.chain(second.rx_no, events={"prescription.effective": 0}, refusals={"SIG_CERT": 1})
    first.state = "effective"
    await first.to("handed_over")
    await run.chain(first.rx_no, events={"prescription.effective": 1}, light="GREEN")


@case(
    id="SIG-004",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="签名密钥被吊销",
    title_en="A signing key that was revoked",
    level="MUST",
    verifies=("ERR-SIG_CERT", "INV-I14", "LC-3.9-certificate.revoked"),
    suites=SUITES,
    profiles=PROFILES,
)
async def revoked_signing_key(run: HubRun) -> None:
    """I14: from the revocation on a key signs nothing, whatever time the signer claims; what it signed before stands.

    The doctor signs with a key of this case's own, so that nobody else's is revoked.
    """
    doctor, hospital = run.hospital.staff["doctor"], run.hospital.code
    key = await run.register_key(doctor, hospital)
    before = await run.journey().to("prechecked")
    run.accepted(await run.hospital.ask(await before.upload_request(doctor_key=key)))
    before.state = "effective"
    after = await run.journey().to("prechecked")
    ready = await after.upload_request(doctor_key=key)
    await run.agency.client.revoke_certificate(key_id=key.key_id, reason="私钥泄露")
    run.refused(await run.hospital.ask(ready), "SIG_CERT", where="signed before, sent after")
    claimed = await after.upload_request(
        doctor_key=key, document=after.document(signed_at_ms=run.now_ms - 10 * MINUTE_MS)
    )
    answer = await run.hospital.ask(claimed)
    run.checks.that(
        answer.code in ("SIG_CERT", "RX_TIME"),
        point="sut",
        en="an earlier claimed time does not help",
        zh="声称更早的签名时间无效",
        actual=answer.code,
    )
    await run.chain(after.rx_no, events={"prescription.effective": 0})
    await before.to("handed_over")
    await run.chain(before.rx_no, events={"prescription.effective": 1}, light="GREEN")
    await after.to("effective")


@case(
    id="SIG-005",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="不在表中的算法与弱密钥",
    title_en="Algorithms that are not in the table",
    level="MUST",
    verifies=("ERR-SIG_INVALID", "ERR-INPUT_MALFORMED"),
    suites=SUITES,
    profiles=PROFILES,
)
async def algorithms_outside_the_table(run: HubRun) -> None:
    """X-03: a key is registered under one suite of the table, and only that suite's signatures count under it."""
    journey = await run.journey().to("prechecked")
    good = await journey.upload_request()
    signature = good.prescription.signatures[0].signature
    other = next(one for one in ("ES256", "SM2-SM3", "EdDSA") if one != run.planned.suite)
    message = sign_bytes(good.prescription.payload_type, good.prescription.payload, SigningKey.generate(other))
    half = len(signature) // 2
    for where, wrong in (
        ("all zero", bytes(len(signature))),
        ("r of zero", bytes(half) + signature[half:]),
        ("s of zero", signature[:half] + bytes(half)),
        ("cut short", signature[:-1]),
        ("made longer", signature + b"\x00"),
        ("halves exchanged", signature[half:] + signature[:half]),
        ("one byte", b"\x01"),
        ("of another suite's key", message.signatures[0].signature),
    ):
        request = _copy(good)
        request.prescription.signatures[0].signature = wrong
        run.refused(await run.hospital.ask(request), "SIG_INVALID", where=where)
    typed = _copy(good)
    typed.prescription.payload_type = "application/vnd.erxhub.v1.ReviewStatement"
    answer = await run.hospital.ask(typed)
    run.checks.that(
        answer.code in ("SIG_INVALID", "INPUT_MALFORMED"),
        point="sut",
        en="a content under another type's name is refused",
        zh="类型名称不符的内容应被拒绝",
        actual=answer.code,
    )
    for suite in ("none", "HS256", "RS256-SHA1", "ES256K", "P-192", ""):
        request = await run.agency.drafts.register_signing_key(
            subject_code=run.hospital.staff["doctor"],
            institution_code=run.hospital.code,
            suite=suite,
            public_key=SigningKey.generate("ES256").public_key,
            valid_from_ms=run.now_ms,
            valid_until_ms=run.now_ms + HOUR_MS,
        )
        run.refused(await run.agency.ask(request), "INPUT_MALFORMED", field="suite", where=f"suite {suite!r}")
    off = await run.agency.drafts.register_signing_key(
        subject_code=run.hospital.staff["doctor"],
        institution_code=run.hospital.code,
        suite="ES256",
        public_key=b"\x04" + bytes(63) + b"\x01",
        valid_from_ms=run.now_ms,
        valid_until_ms=run.now_ms + HOUR_MS,
    )
    run.refused(await run.agency.ask(off), "INPUT_MALFORMED", field="public_key", where="a point off the curve")
    await run.chain(journey.rx_no, events={"prescription.effective": 0})
    run.accepted(await run.hospital.ask(good), "the right signature is accepted", "正确的签名应被受理")


@case(
    id="SIG-006",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="字段次序不同的序列化",
    title_en="The same content with its fields in another order",
    level="MUST",
    verifies=("INV-I13", "LC-3.1a-prescription.signed"),
    suites=SUITES,
    profiles=PROFILES,
)
async def fields_in_another_order(run: HubRun) -> None:
    """A signature is over the bytes that were sent: the hub never writes them again, to verify or to hand them on."""
    journey = await run.journey().to("prechecked")
    document = journey.document()
    parts = [
        signed_pb2.PrescriptionDocument(signed_at_ms=document.signed_at_ms),
        signed_pb2.PrescriptionDocument(prescription=document.prescription),
        signed_pb2.PrescriptionDocument(rx_trace_code=document.rx_trace_code),
        signed_pb2.PrescriptionDocument(rx_no=document.rx_no),
    ]
    payload = b"".join(part.SerializeToString() for part in parts)
    run.checks.must(payload != document.SerializeToString(), point="harness", en="other bytes", zh="字节不同")
    staff, seal = run.hospital.staff, run.key(run.hospital.code)
    upload = await journey.upload_request()
    upload.prescription.CopyFrom(sign_bytes(upload.prescription.payload_type, payload, run.key(staff["doctor"])))
    digest = _sha256(payload)
    review = signed_pb2.HospitalReviewStatement.FromString(upload.review.payload)
    review.prescription_sha256 = digest
    upload.review.CopyFrom(sign(review, run.key(staff["pharmacist"])))
    sealed = signed_pb2.UploadSealStatement.FromString(upload.seal.payload)
    sealed.prescription_sha256, sealed.review_sha256 = digest, _sha256(upload.review.payload)
    upload.seal.CopyFrom(sign(sealed, seal))
    run.must_accept(await run.hospital.ask(upload))
    journey.state = "effective"
    await journey.to("held")
    run.checks.equal(
        journey.download.prescription.payload,
        payload,
        point="sut",
        en="the download has the bytes that were signed",
        zh="下载内容应为签名时的字节",
    )
    await journey.to("handed_over")
    await run.chain(journey.rx_no, events={"dispense.handed_over": 1}, light="GREEN")


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


@case(
    id="SIG-007",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="换成其他患者的已签名处方",
    title_en="Another patient's signed prescription in its place",
    level="MUST",
    verifies=("ERR-SIG_INVALID", "INV-I13"),
    suites=SUITES,
    profiles=PROFILES,
)
async def another_patients_document(run: HubRun) -> None:
    """X-03: document, review, seal and file belong to each other by their digests; parts of two uploads do not."""
    mine = await run.journey().to("prechecked")
    other = await run.journey(person_no=run.place.second_person_no).to("prechecked")
    good, foreign = await mine.upload_request(), await other.upload_request()
    for field in ("prescription", "review", "seal", "file"):
        mixed = _copy(good)
        getattr(mixed, field).CopyFrom(getattr(foreign, field))
        run.refused(await run.hospital.ask(mixed), "SIG_INVALID", where=f"{field} of another patient")
    changed = await mine.upload_request(document=mine.document(prescription=_of_person(mine, other)))
    run.refused(await run.hospital.ask(changed), "SIG_INVALID", where="another person under the same number")
    stripped = _copy(good)
    del stripped.prescription.signatures[:]
    answer = await run.hospital.ask(stripped)
    run.checks.that(
        answer.code in ("SIG_INVALID", "INPUT_MALFORMED"),
        point="sut",
        en="a content without a signature is refused",
        zh="无签名的内容应被拒绝",
        actual=answer.code,
    )
    for journey in (mine, other):
        await run.chain(journey.rx_no, events={"prescription.effective": 0})
    run.accepted(await run.hospital.ask(good), "each by itself is accepted", "各自完整的上传应被受理")
    run.accepted(await run.hospital.ask(foreign), "each by itself is accepted", "各自完整的上传应被受理")


def _of_person(journey: Journey, other: Journey) -> common_pb2.Prescription:
    text: common_pb2.Prescription = _copy(journey.prescription)
    text.person_no = other.person_no
    return text


@case(
    id="SIG-011",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="国密与国际算法套件同样通行",
    title_en="Every suite of the table goes all the way",
    level="MUST",
    verifies=("INV-I14", "INV-I13"),
    suites=("ES256", "EdDSA", "SM2-SM3"),
    profiles=PROFILES,
)
async def every_suite(run: HubRun) -> None:
    """X-21: prescription, review, settlement and goods may be signed with any suite of the table."""
    journey = await run.journey().to("settled")
    await journey.deliver()
    await run.chain(journey.rx_no, events={"delivery.signed": 1, "settlement.committed": 1}, light="GREEN")


@case(
    id="SIG-012",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="声称的签名时间过早或在将来",
    title_en="A claimed signing time too old, or in the future",
    level="MUST",
    verifies=("ERR-RX_TIME", "RX-X-21"),
    suites=SUITES,
    needs=("clock",),
    profiles=PROFILES,
)
async def claimed_signing_time(run: HubRun) -> None:
    """X-21: a claimed signing time is at most 15 minutes old and never in the future, by the hub's clock."""
    journey = await run.journey().to("prechecked")
    await run.advance(by_ms=HOUR_MS)
    now = run.now_ms
    for where, at_ms in (("too old", now - SIGNING_AGE_MS - 1_000), ("in the future", now + 1_000)):
        document = journey.document(signed_at_ms=at_ms)
        answer = await run.hospital.ask(await journey.upload_request(document=document))
        run.refused(answer, "RX_TIME", where=where)
    await run.chain(journey.rx_no, events={"prescription.effective": 0}, refusals={"RX_TIME": 2})
    document = journey.document(signed_at_ms=now - SIGNING_AGE_MS)
    run.accepted(
        await run.hospital.ask(await journey.upload_request(document=document)),
        "fifteen minutes are not too old",
        "恰为十五分钟应被受理",
    )
    journey.state = "effective"
    await journey.to("handed_over")
    await run.chain(journey.rx_no, events={"prescription.effective": 1}, light="GREEN")
