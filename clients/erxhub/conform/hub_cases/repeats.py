"""IDEM: one request id, one effect: repeats, races, crashes, and callers who go away."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from erxhub.conform.hub.journey import CONSULT
from erxhub.conform.hub.raw import Answer, failed
from erxhub.conform.hub.run import HubRun
from erxhub.conform.registry import case
from erxhub.v1 import common_pb2, prescribing_pb2

PROFILES = ("dev", "strict")
AT_ONCE = 50
CANCELLED = 24
WATCHES_MAX = 400


def _copy(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


@case(
    id="IDEM-001",
    revision=1,
    since="0.2",
    status="stable",
    first_release=True,
    title_zh="同一请求先后发送两次",
    title_en="The same request twice, one after the other",
    level="MUST",
    verifies=("INV-I19",),
    suites=("ES256", "SM2-SM3"),
    profiles=PROFILES,
)
async def the_same_request_twice(run: HubRun) -> None:
    """I19: an accepted id with the same content gets the first reply, byte for byte, and has no second effect.

    At every command of the chain, and also after the state has gone on and the first step could not be done any more.
    """
    journey = await run.journey().to("diagnosed")
    sent: list[tuple[Any, Any, Any]] = []

    async def twice(party: Any, request: Any) -> Any:
        first = await party.ask(request)
        reply = run.must_accept(first)
        position = await run.entries()
        run.same_reply(first, await party.ask(request))
        await run.no_effect(position)
        sent.append((party, request, first))
        return reply

    checked = await twice(run.hospital, await journey.precheck_request())
    journey.rx_no, journey.rx_trace_code = checked.rx_no, checked.rx_trace_code
    await twice(run.hospital, await journey.upload_request())
    journey.state = "effective"
    await journey.to("listed")
    journey.download = await twice(run.pharmacy, await journey.hold_request())
    await twice(run.pharmacy, await journey.review_request())
    journey.quote = await twice(run.pharmacy, await journey.quote_request())
    journey.settlement_id = (await twice(run.pharmacy, await journey.settle_request())).settlement_id
    await twice(run.pharmacy, await journey.dispense_request())
    code = await run.show_code(journey.person_no, CONSULT)
    await twice(run.hospital, await run.hospital.drafts.verify_voucher(voucher_code=code, business_type=CONSULT))
    position = await run.entries()
    for party, request, first in sent:
        run.same_reply(first, await party.ask(request))
    await run.no_effect(position)
    await run.chain(
        journey.rx_no,
        events={
            "prescription.prechecked": 1,
            "prescription.effective": 1,
            "order.held": 1,
            "review.passed": 1,
            "settlement.quoted": 1,
            "settlement.committed": 1,
            "dispense.outbound": 1,
        },
    )


@case(
    id="IDEM-002",
    revision=1,
    since="0.2",
    status="stable",
    first_release=True,
    title_zh="同一请求五十次并发",
    title_en="The same request fifty times at once",
    level="MUST",
    verifies=("INV-I19", "INV-I7"),
    profiles=PROFILES,
)
async def fifty_at_once(run: HubRun) -> None:
    """I19: however many of one request arrive at once, one has an effect, and all get the same bytes."""
    journey = await run.journey().to("prechecked")
    for party, state, write, method in (
        (run.hospital, "effective", journey.upload_request, "Prescribing/UploadPrescription"),
        (run.pharmacy, "held", journey.hold_request, "Dispensing/DownloadPrescription"),
        (run.pharmacy, "settled", journey.settle_request, "Dispensing/Settle"),
        (run.pharmacy, "dispensed", journey.dispense_request, "Dispensing/Dispense"),
    ):
        await journey.to(
            {"effective": "prechecked", "held": "listed", "settled": "quoted", "dispensed": "settled"}[state]
        )
        request = await write()
        answers = await asyncio.gather(*(party.ask(request) for _ in range(AT_ONCE)))
        codes = sorted({answer.code for answer in answers})
        replies = {answer.known() if run.disturbed else answer.data for answer in answers}
        run.checks.equal(
            (codes, len(replies)),
            (["OK"], 1),
            point="sut",
            en="all are accepted with the same bytes",
            zh="应全部受理且应答逐字节相同",
            where=method,
        )
        reply = run.must_accept(answers[0])
        journey.state = state
        if state == "held":
            journey.download = reply
        if state == "settled":
            journey.settlement_id = reply.settlement_id
        await run.on_the_wire(method, outcomes={"OK": AT_ONCE})
    await run.chain(
        journey.rx_no,
        events={
            "prescription.effective": 1,
            "order.held": 1,
            "settlement.committed": 1,
            "dispense.outbound": 1,
        },
    )


@case(
    id="IDEM-005",
    revision=1,
    since="0.2",
    status="stable",
    first_release=True,
    title_zh="同一编号、不同内容或方法",
    title_en="An accepted id with another content or method",
    level="MUST",
    verifies=("ERR-IDEMPOTENCY_CONFLICT", "INV-I19"),
    profiles=PROFILES,
)
async def the_same_id_otherwise(run: HubRun) -> None:
    """I19: an accepted id names one method and one content; with anything else it is a conflict, without an effect."""
    journey = await run.journey().to("diagnosed")
    precheck = await journey.precheck_request()
    first = await run.hospital.ask(precheck)
    run.must_accept(first)
    position = await run.entries()
    other = _copy(precheck)
    other.prescription.hospital_rx_no += "-X"
    run.refused(await run.hospital.ask(other), "IDEMPOTENCY_CONFLICT", where="another content")
    tiny = _copy(precheck)
    tiny.prescription.department += "。"
    run.refused(await run.hospital.ask(tiny), "IDEMPOTENCY_CONFLICT", where="one character more")
    method = await run.hospital.drafts.start_encounter(
        encounter_id=journey.encounter_id,
        doctor_code=run.hospital.staff["doctor"],
        request_id=precheck.request_id,
    )
    run.refused(await run.hospital.ask(method), "IDEMPOTENCY_CONFLICT", where="another method")
    await run.no_effect(position)
    run.same_reply(first, await run.hospital.ask(precheck))
    journey.rx_no, journey.rx_trace_code = first.reply.rx_no, first.reply.rx_trace_code
    journey.state = "prechecked"
    await journey.to("reviewed")
    quote = await journey.quote_request()
    run.must_accept(await run.pharmacy.ask(quote))
    alone = _copy(quote)
    alone.use_account = not quote.use_account
    run.refused(await run.pharmacy.ask(alone), "IDEMPOTENCY_CONFLICT", where="Dispensing/QuoteSettlement")
    await run.chain(journey.rx_no, events={"settlement.quoted": 1})


@case(
    id="IDEM-006",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="其他机构使用同一请求编号",
    title_en="The same request id of another institution",
    level="MUST",
    verifies=("INV-I19",),
    profiles=PROFILES,
)
async def the_same_id_of_another(run: HubRun) -> None:
    """I19: an id belongs to its caller; another institution's request under it is a request of its own."""
    answers = []
    for party in (run.hospital, run.hospital_b, run.pharmacy):
        code = await run.show_code(run.place.person_no, CONSULT)
        request = await party.drafts.verify_voucher(
            voucher_code=code, business_type=CONSULT, request_id=f"shared-{run.place.name}"[:64]
        )
        answers.append(await party.ask(request))
    for answer in answers:
        run.accepted(answer)
    references = {answer.reply.voucher_ref for answer in answers if answer.ok}
    run.checks.equal(len(references), 3, point="sut", en="each has a result of its own", zh="各自应有独立结果")
    visit = await run.journey(hospital=run.hospital_b).visit_request(voucher_ref=answers[1].reply.voucher_ref)
    run.accepted(await run.hospital_b.ask(visit), "the second one's result is good", "后者的结果应有效")


@case(
    id="IDEM-007",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="先被拒绝，再以更正内容重发",
    title_en="Refused first, then corrected under the same id",
    level="MUST",
    verifies=("INV-I19", "ERR-IDEMPOTENCY_CONFLICT"),
    profiles=PROFILES,
)
async def a_refusal_binds_nothing(run: HubRun) -> None:
    """I19: after a refusal the id is free; what is accepted under it binds it, and the refused content conflicts."""
    journey = await run.journey().to("diagnosed")
    wrong = await journey.precheck_request()
    wrong.prescription.lines[0].supply_days = 8
    right = _copy(wrong)
    right.prescription.CopyFrom(journey.prescription)
    for _ in range(2):
        run.refused(await run.hospital.ask(wrong), "RX_SUPPLY_DAYS")
    first = await run.hospital.ask(right)
    rx_no = run.must_accept(first, "the corrected request is evaluated afresh", "更正后应重新评估").rx_no
    run.refused(await run.hospital.ask(wrong), "IDEMPOTENCY_CONFLICT")
    run.same_reply(first, await run.hospital.ask(right))
    await run.chain(rx_no, events={"prescription.prechecked": 1})


@case(
    id="IDEM-009",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="截获的请求在其他会话重放",
    title_en="A captured request on another session",
    level="MUST",
    verifies=("INV-I19", "ERR-INST_IMPERSONATION"),
    profiles=PROFILES,
)
async def a_captured_request(run: HubRun) -> None:
    """I19, S1-06: on another session of the same institution it is a repeat; under another certificate nothing."""
    journey = await run.journey().to("prechecked")
    first = await run.hospital.ask(await journey.upload_request())
    run.must_accept(first)
    session = run.caller(await run.place.identity("hospital", run.hospital.code), direct=False)
    position = await run.entries()
    run.same_reply(first, await session.call("Prescribing/UploadPrescription", first.request))
    stolen = await run.hospital_b.raw.call("Prescribing/UploadPrescription", first.request)
    # To another hospital the number does not exist: a hub may say that before it looks at the seal's institution.
    run.refused(stolen, "RX_UNKNOWN" if stolen.code == "RX_UNKNOWN" else "INST_IMPERSONATION")
    visit = await run.journey().visit_request()
    position = await run.entries()
    run.refused(await run.hospital_b.ask(visit), "INST_IMPERSONATION", field="hospital_code")
    await run.no_effect(position)
    await journey.authorize()
    await journey.hold()
    review = await journey.review_request()
    taken = await run.pharmacy_b.ask(review)
    run.refused(taken, "INST_IMPERSONATION", where="Dispensing/ReviewPrescription")
    run.accepted(await run.pharmacy.ask(review))
    await run.chain(journey.rx_no, events={"prescription.effective": 1, "review.passed": 1})


@case(
    id="IDEM-014",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="调用方在处理中取消",
    title_en="The caller cancels while the hub is at it",
    level="MUST",
    verifies=("INV-I19", "INV-I10"),
    profiles=PROFILES,
)
async def cancelled_calls(run: HubRun) -> None:
    """I19: a call whose caller went away is either done or not; the repeat brings it to exactly one effect."""
    journey = await run.journey().to("diagnosed")
    position = await run.entries()
    requests = []
    for number in range(CANCELLED):
        text = common_pb2.Prescription()
        text.CopyFrom(journey.prescription)
        text.hospital_rx_no += f"-C{number}"
        request = await journey.precheck_request(text)
        requests.append(request)
        call = run.hospital.raw.begin("Prescribing/PrecheckPrescription", request.SerializeToString())
        await asyncio.wait({asyncio.ensure_future(call.wait_for_connection())}, timeout=1)
        await run.environment.sleep_ms(number % 8)
        call.cancel()
    answers = [await run.hospital.ask(request) for request in requests]
    for answer in answers:
        run.accepted(answer, "the repeat is accepted", "重发应被受理")
    numbers = {answer.reply.rx_no for answer in answers if answer.ok}
    run.checks.equal(len(numbers), CANCELLED, point="sut", en="each is one prescription", zh="每个请求对应一张处方")
    found = await run.written(position)
    run.checks.equal(
        found["prescription.prechecked"], CANCELLED, en="each had exactly one effect", zh="每个请求恰有一次效果"
    )


@case(
    id="IDEM-015",
    revision=1,
    since="0.2",
    status="stable",
    first_release=True,
    title_zh="提交前、提交后中心崩溃",
    title_en="The hub crashes before, and after, the commit",
    level="MUST",
    verifies=("INV-I19", "INV-I10", "INV-I11", "ERR-HUB_UNAVAILABLE"),
    needs=("sandbox",),
    profiles=PROFILES,
)
async def crashed_hub(run: HubRun) -> None:
    """I19: what was not committed is absent after a crash, what was is present; the repeat is safe both times."""
    for after_commit in ("no", "yes"):
        journey = await run.journey().to("prechecked")
        upload = await journey.upload_request()
        await run.place.set_faults(
            f"Prescribing/UploadPrescription nth=1 id=crash do=crash_hub after_commit={after_commit}"
        )
        lost = await run.hospital.ask(upload, once=True)
        run.checks.equal(
            lost.status,
            "UNAVAILABLE",
            point="sut",
            en="the caller does not know",
            zh="调用方得不到结果",
            where=after_commit,
        )
        await run.place.clear_faults()
        present = int(after_commit == "yes")
        await run.chain(journey.rx_no, events={"prescription.effective": present})
        await run.stands(
            journey.rx_no, "EFFECTIVE" if present else "PRECHECKED", "UNUSED" if present else "UNSPECIFIED"
        )
        first = await run.hospital.ask(upload)
        run.must_accept(first, "the repeat is accepted", "重发应被受理")
        run.same_reply(first, await run.hospital.ask(upload))
        await run.chain(journey.rx_no, events={"prescription.effective": 1})
        # It goes on as if nothing had happened: unique names, holds and the account were kept.
        journey.state = "effective"
        await journey.to("dispensed")
        await run.chain(journey.rx_no, events={"dispense.outbound": 1})


@case(
    id="IDEM-017",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="限流只影响一方",
    title_en="Throttling one caller leaves the others alone",
    level="MUST",
    verifies=("ERR-OVERLOADED",),
    profiles=PROFILES,
    deadline_ms=90_000,
)
async def one_caller_throttled(run: HubRun) -> None:
    """MUST-9: who opens too many watches is told OVERLOADED with RetryInfo; others are served, and he is later."""
    watch = "Prescribing/WatchPrescriptions"
    request = prescribing_pb2.WatchPrescriptionsRequest()
    open_calls: list[grpc.aio.UnaryStreamCall[bytes, bytes]] = []
    refused: Answer | None = None
    while refused is None and len(open_calls) < WATCHES_MAX:
        call = run.hospital.raw.open_stream(watch, request)
        await call.initial_metadata()
        # What is refused ends at once; an open one never does.
        await run.environment.sleep_ms(2)
        open_calls.append(call)
        done = [one for one in open_calls if one.done()]
        refused = await _end_of(watch, done[0]) if done else None
        if refused is not None and refused.code == "HUB_UNAVAILABLE":
            open_calls.remove(done[0])
            refused = None
    run.checks.must(
        refused is not None, point="sut", en="the number of open watches has a limit", zh="打开的订阅数应有上限"
    )
    assert refused is not None
    delay_ms = refused.refusal.retry_after_ms if refused.refusal is not None else 0
    run.refused(refused, "OVERLOADED")
    run.checks.that(delay_ms > 0, point="sut", en="RetryInfo names a delay", zh="应给出重试时间", actual=delay_ms)
    run.checks.note(f"watches open: {len(open_calls)}", f"已打开订阅数：{len(open_calls)}")
    run.accepted(
        await run.hospital.ask(prescribing_pb2.ListPrescriptionsRequest()),
        "its other calls are served",
        "其他调用应正常",
    )
    await run.journey(hospital=run.hospital_b).to("effective")
    request.from_start = True
    messages, ended = await run.hospital_b.raw.stream(watch, request, count=1)
    run.checks.that(
        len(messages) == 1,
        point="sut",
        en="another hospital's watch is served",
        zh="其他医院的订阅应正常",
        actual=(len(messages), ended.code if ended else ""),
    )
    for call in open_calls:
        call.cancel()
    mine = await run.journey().to("effective")
    messages, ended = await run.hospital.raw.stream(watch, request, count=1)
    for _ in range(5):
        if messages:
            break
        await run.environment.sleep_ms(100)
        messages, ended = await run.hospital.raw.stream(watch, request, count=1)
    run.checks.that(
        bool(messages),
        point="sut",
        en="once they are closed it is served again",
        zh="关闭后应恢复",
        actual=ended and ended.code,
    )
    await run.chain(mine.rx_no, events={"prescription.effective": 1})


async def _end_of(name: str, call: grpc.aio.UnaryStreamCall[bytes, bytes]) -> Answer:
    """How a stream has ended."""
    error = grpc.aio.AioRpcError(
        await call.code(),
        await call.initial_metadata(),
        await call.trailing_metadata(),
        details=await call.details(),
    )
    return failed(name, b"", error)
