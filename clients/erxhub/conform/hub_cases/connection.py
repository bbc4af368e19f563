"""CONN: who may call at all, and what the line itself refuses."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection_pb2

from erxhub.client import ClientIdentity
from erxhub.conform.hub.raw import failed
from erxhub.conform.hub.run import HubRun
from erxhub.conform.registry import case
from erxhub.rpc.methods import METHODS, SERVICES
from erxhub.v1 import prescribing_pb2, registry_pb2

MESSAGE_BYTES_MAX = 2 * 1024 * 1024
METADATA_BYTES = 128 * 1024
PROFILES = ("dev", "strict")
UNKNOWN_FIELD = b"\xf2\xff\x7f\x07unknown"
"""Field 262142 (of no published message) with seven bytes."""


async def _handshake_fails(run: HubRun, identity: ClientIdentity, what_en: str, what_zh: str) -> None:
    answer = await run.caller(identity).ask(prescribing_pb2.ListPrescriptionsRequest(), once=True)
    run.checks.that(
        answer.status == "UNAVAILABLE" and answer.refusal is None,
        point="sut",
        en=f"{what_en} ends the handshake: UNAVAILABLE without an answer of the hub",
        zh=f"{what_zh}：握手失败，UNAVAILABLE，且无中心应答",
        actual=(answer.status, answer.code, answer.details),
    )


@case(
    id="CONN-002",
    revision=1,
    since="0.2",
    status="stable",
    first_release=True,
    title_zh="无客户端证书不得接入",
    title_en="No client certificate, no call",
    level="MUST",
    verifies=("ERR-PEER_IDENTITY",),
    profiles=PROFILES,
)
async def no_client_certificate(run: HubRun) -> None:
    """S1-06: calls go over mutual TLS; without a client certificate the handshake fails and nothing is written."""
    known = await run.place.direct_identity("hospital", run.hospital.code)
    before = await run.entries()
    seen = len(await run.place.traffic())
    await _handshake_fails(run, ClientIdentity(known.ca_pem), "no client certificate", "无客户端证书")
    calls = [one.method for one in (await run.place.traffic())[seen:]]
    run.checks.that(not calls, point="wire", en="no call reaches the hub", zh="不得有调用到达中心", actual=calls)
    # The verification that counted the entries is an access itself.
    run.checks.equal(await run.entries(), before + 1, en="nothing is written", zh="不得写入任何条目")


@case(
    id="CONN-003",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="过期、未生效或来历不明的客户端证书",
    title_en="Expired, not yet valid and unknown client certificates",
    level="MUST",
    verifies=("ERR-PEER_IDENTITY",),
    needs=("sandbox",),
    profiles=PROFILES,
)
async def certificates_out_of_time(run: HubRun) -> None:
    """S1-06: a certificate outside its life, of another authority or without a usable name speaks for nobody."""
    defects = {
        "expired": ("an expired certificate", "证书已过期"),
        "not_yet_valid": ("a certificate that is not valid yet", "证书尚未生效"),
        "unknown_authority": ("a certificate of an unknown authority", "证书由未知机构签发"),
    }
    before = await run.entries()
    for defect, (en, zh) in defects.items():
        await _handshake_fails(run, await run.place.direct_identity("hospital", run.hospital.code, defect), en, zh)
    for defect in ("no_uri", "foreign_trust_domain"):
        identity = await run.place.direct_identity("hospital", run.hospital.code, defect)
        answer = await run.caller(identity).ask(prescribing_pb2.ListPrescriptionsRequest())
        run.refused(answer, "PEER_IDENTITY", where=defect)
    run.checks.equal(await run.entries(), before + 1, en="nothing is written", zh="不得写入任何条目")


@case(
    id="CONN-004",
    revision=1,
    since="0.2",
    status="stable",
    first_release=True,
    title_zh="各方只能调用公布给它的接口",
    title_en="Each kind of caller may use its own calls only",
    level="MUST",
    verifies=("ERR-ROLE_NOT_ALLOWED", "INV-I21"),
    profiles=PROFILES,
)
async def calls_of_other_roles(run: HubRun) -> None:
    """S1-06: the callers of a method stand in its published options; every other identified caller is refused.

    A pharmacy's upload of a prescription that is ready for it does not take effect, and the hospital's still does.
    """
    journey = await run.journey().to("prechecked")
    position = await run.entries()
    upload = await journey.upload_request()
    run.refused(await run.pharmacy.ask(upload), "ROLE_NOT_ALLOWED", where="Prescribing/UploadPrescription")
    for party in (run.hospital, run.pharmacy, run.channel, run.agency, run.auditor):
        for name, method in METHODS.items():
            if party.role in method.callers or method.streams_in:
                continue
            short = name.replace("Service/", "/")
            if method.streams_out:
                messages, ended = await party.raw.stream(short, b"", count=1)
                while ended is not None and ended.status == "UNAVAILABLE":
                    messages, ended = await party.raw.stream(short, b"", count=1)
                refused = not messages and ended is not None and ended.code == "ROLE_NOT_ALLOWED"
                actual: Any = ended.code if ended is not None else messages
            else:
                answer = await party.raw.call(short, b"")
                refused, actual = answer.code == "ROLE_NOT_ALLOWED", answer.code
            run.checks.that(
                refused,
                point="sut",
                en="a caller of another kind is refused",
                zh="其他类型的调用方应被拒绝",
                expected="ROLE_NOT_ALLOWED",
                actual=actual,
                where=f"{party.role} {short}",
            )
    await run.no_effect(position)
    run.accepted(await run.hospital.ask(upload))
    await run.chain(journey.rx_no, events={"prescription.effective": 1})


@case(
    id="CONN-005",
    revision=1,
    since="0.2",
    status="stable",
    first_release=True,
    title_zh="证书与请求中的机构不一致",
    title_en="The certificate of one institution, the name of another",
    level="MUST",
    verifies=("ERR-INST_IMPERSONATION", "INV-I21"),
    profiles=PROFILES,
)
async def speaking_for_another_institution(run: HubRun) -> None:
    """S1-06, X-03: the institution in a request, also inside its signed content, is the one of the certificate."""
    other = run.hospital_b.code
    journey = run.journey()
    position = await run.entries()
    visit = await journey.visit_request(hospital_code=other)
    position = await run.entries()
    run.refused(await run.hospital.ask(visit), "INST_IMPERSONATION", field="hospital_code")
    await run.no_effect(position)
    await journey.to("diagnosed")
    position = await run.entries()
    written = journey.written()
    written.hospital_code = other
    run.refused(await run.hospital.ask(await journey.precheck_request(written)), "INST_IMPERSONATION")
    await run.no_effect(position)
    await journey.to("held")
    await run.chain(journey.rx_no, events={"order.held": 1})
    position = await run.entries()
    review = await journey.review_request(pharmacy_code=run.pharmacy_b.code)
    run.refused(await run.pharmacy.ask(review), "INST_IMPERSONATION", where="Dispensing/ReviewPrescription")
    await run.no_effect(position)
    await run.chain(journey.rx_no, events={"review.passed": 0})


@case(
    id="CONN-006",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="会话中证书被吊销",
    title_en="A certificate revoked in the middle of a session",
    level="MUST",
    verifies=("ERR-CERT_REVOKED", "LC-3.9-certificate.revoked"),
    needs=("sandbox",),
    profiles=PROFILES,
    deadline_ms=90_000,
)
async def certificate_revoked_mid_session(run: HubRun) -> None:
    """S1-06: from the revocation on the next call is CERT_REVOKED, and an open watch ends within 30 seconds."""
    identity = await run.place.direct_identity("hospital", run.hospital.code)
    caller = run.caller(identity)
    listing = prescribing_pb2.ListPrescriptionsRequest()
    run.accepted(await caller.ask(listing))
    watch = caller.open_stream("Prescribing/WatchPrescriptions", prescribing_pb2.WatchPrescriptionsRequest())
    await watch.initial_metadata()
    reading = asyncio.ensure_future(watch.read())
    await run.agency.client.revoke_certificate(certificate_pem=identity.cert_pem, reason="私钥泄露")
    verify = await run.hospital.drafts.verify_voucher(voucher_code="0" * 28, business_type="01201")
    run.refused(await caller.ask(verify), "CERT_REVOKED")
    # A read may be shown as it was once, under a profile that ages reads; the second one is fresh.
    answers = [await caller.ask(listing) for _ in range(1 + run.disturbed)]
    run.refused(answers[-1], "CERT_REVOKED")
    others = [await run.hospital.ask(listing) for _ in range(1 + run.disturbed)]
    run.accepted(
        others[-1],
        "another certificate of the same institution goes on working",
        "同一机构的其他证书应继续有效",
    )
    ended = ""
    try:
        async with asyncio.timeout(30):
            message = await reading
            ended = "END" if message is grpc.aio.EOF else "MESSAGE"
    except TimeoutError:
        ended = "OPEN"
    except grpc.aio.AioRpcError as error:
        ended = failed("Prescribing/WatchPrescriptions", b"", error).code
    watch.cancel()
    run.checks.equal(
        ended, "CERT_REVOKED", point="sut", en="the open watch ends within 30 seconds", zh="已打开的订阅应在30秒内关闭"
    )


@case(
    id="CONN-008",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="未实现的方法",
    title_en="A method that does not exist",
    level="MUST",
    verifies=("W-13",),
    profiles=PROFILES,
)
async def unknown_method(run: HubRun) -> None:
    """gRPC: a method or service that the hub does not have is UNIMPLEMENTED, and it serves on."""
    for path in ("erxhub.v1.PrescribingService/NoSuchMethod", "erxhub.v1.NoSuchService/Upload", "nothing/at.all"):
        answer = await run.hospital.raw.call(path, b"\x0a\x03abc")
        run.checks.equal(
            answer.status,
            "UNIMPLEMENTED",
            point="sut",
            en="an unknown method is UNIMPLEMENTED",
            zh="未知方法应返回 UNIMPLEMENTED",
        )
    journey = await run.journey().to("effective")
    await run.chain(journey.rx_no, events={"prescription.effective": 1})


@case(
    id="CONN-011",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="请求中的未知字段",
    title_en="Unknown fields in requests and in signed contents",
    level="MUST",
    verifies=("INV-I13", "INV-I19"),
    suites=("ES256", "SM2-SM3"),
    profiles=PROFILES,
)
async def unknown_fields_in_requests(run: HubRun) -> None:
    """A newer client's unknown fields are accepted, and those in signed contents stay in the bytes that were signed.

    They count for the repeat: the same id without them is another content.
    """
    journey = await run.journey().to("prechecked")
    document = journey.document()
    document.MergeFromString(UNKNOWN_FIELD)
    upload = await journey.upload_request(document=document)
    signed = upload.prescription.payload
    run.checks.must(
        UNKNOWN_FIELD in signed, point="harness", en="the signed bytes carry the field", zh="签名内容应含未知字段"
    )
    data = upload.SerializeToString() + UNKNOWN_FIELD
    first = await run.hospital.raw.call("Prescribing/UploadPrescription", data)
    run.must_accept(first)
    run.same_reply(first, await run.hospital.raw.call("Prescribing/UploadPrescription", data))
    without = await run.hospital.ask(upload)
    run.refused(without, "IDEMPOTENCY_CONFLICT", where="without the unknown field")
    await journey.authorize()
    await journey.hold()
    run.checks.equal(
        journey.download.prescription.payload == signed,
        True,
        point="sut",
        en="the download holds exactly the bytes that were signed",
        zh="下载内容应与签名内容逐字节一致",
    )
    await journey.review()
    await journey.quote_sale()
    amounts = journey.quote.amounts
    amounts.MergeFromString(UNKNOWN_FIELD)
    settled = await run.pharmacy.ask(await journey.settle_request(amounts=amounts))
    journey.settlement_id = run.must_accept(settled).settlement_id
    await journey.dispense()
    await journey.hand_over()
    await run.chain(journey.rx_no, events={"dispense.handed_over": 1}, light="GREEN")


@case(
    id="CONN-012",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="不支持的协议版本",
    title_en="A protocol version that the hub does not have",
    level="MUST",
    verifies=("W-13",),
    profiles=PROFILES,
)
async def unsupported_protocol_version(run: HubRun) -> None:
    """A version is a proto package: erxhub.v2 is UNIMPLEMENTED, and reflection lists the packages that are served."""
    journey = await run.journey().to("prechecked")
    upload = await journey.upload_request()
    answer = await run.hospital.raw.call("erxhub.v2.PrescribingService/UploadPrescription", upload.SerializeToString())
    run.checks.equal(
        answer.status, "UNIMPLEMENTED", point="sut", en="version 2 is UNIMPLEMENTED", zh="版本 2 应返回 UNIMPLEMENTED"
    )
    reflect: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = run.hospital.raw.channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    )
    asked = reflection_pb2.ServerReflectionRequest(list_services="*").SerializeToString()
    served: set[str] = set()
    async for raw in reflect(iter([asked]), timeout=10):
        reply = reflection_pb2.ServerReflectionResponse.FromString(raw)
        served |= {service.name for service in reply.list_services_response.service}
    run.checks.that(
        set(SERVICES) <= served,
        point="sut",
        en="reflection lists every service of version 1",
        zh="反射应列出版本 1 的全部服务",
        expected=sorted(SERVICES),
        actual=sorted(served),
    )
    run.accepted(await run.hospital.ask(upload), "version 1 serves the same request", "版本 1 应受理同一请求")
    await run.chain(journey.rx_no, events={"prescription.effective": 1})


@case(
    id="CONN-014",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="超限的报文与元数据",
    title_en="Messages and metadata beyond the limit",
    level="MUST",
    verifies=("ERR-OVERLOADED", "ERR-INPUT_MALFORMED"),
    profiles=PROFILES,
)
async def oversize_messages(run: HubRun) -> None:
    """A message of 2 MiB and a file of 1 MiB are taken; one byte more is refused, and the hub serves on."""
    name = "Prescribing/ListPrescriptions"
    # An unknown field fills the message up: a tag of three bytes and a length of four.
    body = MESSAGE_BYTES_MAX - 7
    exact = b"\xf2\xff\x07" + bytes([body & 0x7F | 0x80, body >> 7 & 0x7F | 0x80, body >> 14 | 0x80, 0]) + bytes(body)
    run.accepted(await run.hospital.raw.call(name, exact), "a message of 2 MiB is taken", "2 MiB 的报文应被受理")
    for what, data, metadata in (
        ("message", exact + b"\x08", ()),
        ("metadata", b"", (("padding", "x" * METADATA_BYTES),)),
    ):
        answer = await run.hospital.raw.call(name, data, metadata=metadata)
        run.checks.equal(
            answer.status,
            "RESOURCE_EXHAUSTED",
            point="sut",
            en=f"the oversize {what} is RESOURCE_EXHAUSTED",
            zh="超限应返回 RESOURCE_EXHAUSTED",
            where=what,
        )
    run.accepted(await run.hospital.raw.call(name, b""), "the hub serves on", "中心应继续服务")
    journey = await run.journey().to("prechecked")
    file = b"%PDF-1.4\n" + bytes(1024 * 1024 - 9)
    larger = await journey.upload_request(file=file + b"\n")
    run.refused(await run.hospital.ask(larger), "INPUT_MALFORMED", field="file.data")
    run.accepted(
        await run.hospital.ask(await journey.upload_request(file=file)),
        "a file of 1 MiB is taken",
        "1 MiB 的原件应被受理",
    )
    await run.chain(journey.rx_no, events={"prescription.effective": 1})


@case(
    id="CONN-015",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="机构协议中止",
    title_en="The institution's agreement is suspended",
    level="MUST",
    verifies=("ERR-AGR_INACTIVE", "LC-3.9-agreement.suspended", "LC-3.9-agreement.resumed"),
    profiles=PROFILES,
    needs=("sandbox",),
)
async def suspended_agreement(run: HubRun) -> None:
    """S2-25: the agreement is read again at every step; a prescription that is held stops at its next one."""
    journey = await run.journey().to("held")
    visit = await run.journey().visit_request()
    suspend = registry_pb2.AGREEMENT_STATUS_SUSPENDED
    for code in (run.pharmacy.code, run.hospital.code):
        await run.agency.client.change_agreement_status(
            institution_code=code, kind=registry_pb2.AGREEMENT_KIND_BASE, status=suspend, case_no="CASE-1"
        )
    review = await journey.review_request()
    run.refused(await run.pharmacy.ask(review), "AGR_INACTIVE")
    run.refused(await run.hospital.ask(visit), "AGR_INACTIVE")
    await run.chain(journey.rx_no, events={"review.passed": 0}, refusals={"AGR_INACTIVE": 1})
    for code in (run.pharmacy.code, run.hospital.code):
        await run.agency.client.change_agreement_status(
            institution_code=code,
            kind=registry_pb2.AGREEMENT_KIND_BASE,
            status=registry_pb2.AGREEMENT_STATUS_ACTIVE,
            case_no="CASE-1",
        )
    run.accepted(await run.pharmacy.ask(review), "the same request succeeds afterwards", "恢复后同一请求应被受理")
    run.accepted(await run.hospital.ask(visit), "the same request succeeds afterwards", "恢复后同一请求应被受理")
    await run.chain(journey.rx_no, events={"review.passed": 1})
