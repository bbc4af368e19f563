"""AUD: what an auditor sees of a chain, and what a copy of the ledger proves without the hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from erxhub.conform.hub.ledger_copy import CopiedEntry, missing, read_header, verify
from erxhub.conform.hub.run import HubRun
from erxhub.conform.registry import case
from erxhub.core.events import BY_NUMBER
from erxhub.crypto.envelope import pae
from erxhub.crypto.suites import SUITES
from erxhub.rpc.methods import METHODS
from erxhub.rpc.steps import SENT_AT_HEADER
from erxhub.seed.world import PERSONS
from erxhub.v1 import audit_pb2, common_pb2, events_pb2, patient_pb2, signed_pb2

PROFILES = ("dev", "strict")
SUITES_OF_CASES = ("ES256", "SM2-SM3")
MINUTE_MS = 60_000
BESIDE = ("voucher.issued", "voucher.verified", "trace_code.sold", "account.debited")
"""Events of other things that a step rests on; how many there are depends on the step."""
WHOLE_CHAIN = (
    "encounter.registered",
    "encounter.started",
    "diagnosis.recorded",
    "prescription.prechecked",
    "prescription.hospital_reviewed",
    "prescription.signed",
    "prescription.uploaded",
    "prescription.effective",
    "authorization.issued",
    "order.created",
    "authorization.consumed",
    "order.held",
    "prescription.downloaded",
    "review.passed",
    "settlement.quoted",
    "settlement.committed",
    "dispense.ready",
    "delivery.requested",
    "dispense.picked",
    "dispense.checked",
    "dispense.outbound",
    "prescription.used",
    "prescription.exhausted",
    "delivery.assigned",
    "delivery.picked_up",
    "delivery.in_transit",
    "delivery.arrived",
    "delivery.signed",
    "order.completed",
)
STAGES = ("DIAGNOSIS", "PRESCRIPTION", "TRANSACTION", "DELIVERY")


def _index(entries: list[CopiedEntry], type_name: str) -> int:
    return next(at for at, one in enumerate(entries) if read_header(one.header).type_name == type_name)


def _faults(run: HubRun, entries: list[CopiedEntry], what: str) -> None:
    found = verify(entries)
    run.checks.that(not found, en=f"{what} verifies away from the hub", zh="副本应可脱离中心校验通过", actual=found[:5])


@case(
    id="AUD-001",
    revision=1,
    since="0.2",
    status="stable",
    first_release=True,
    title_zh="诊断、处方、交易、配送全链条追溯",
    title_en="A chain from the diagnosis to the door",
    level="MUST",
    verifies=(
        "INV-I10",
        "INV-I11",
        "INV-I24",
        "LC-2.1-voucher.issued",
        "LC-2.1-voucher.verified",
        "LC-2.2-encounter.registered",
        "LC-2.2-encounter.started",
        "LC-2.2-diagnosis.recorded",
        "LC-3.1a-prescription.prechecked",
        "LC-3.1a-prescription.hospital_reviewed",
        "LC-3.1a-prescription.signed",
        "LC-3.1a-prescription.effective",
        "LC-3.1a-prescription.exhausted",
        "LC-3.1b-order.created",
        "LC-3.1b-order.held",
        "LC-3.1b-review.passed",
        "LC-3.1c-prescription.effective",
        "LC-3.1c-order.held",
        "LC-3.1c-prescription.used",
        "LC-3.3-authorization.issued",
        "LC-3.3-authorization.consumed",
        "LC-3.4-order.created",
        "LC-3.4-order.held",
        "LC-3.4-order.completed",
        "LC-3.4-delivery.picked_up",
        "LC-3.5-settlement.quoted",
        "LC-3.5-settlement.committed",
        "LC-3.6-dispense.ready",
        "LC-3.6-dispense.picked",
        "LC-3.6-dispense.checked",
        "LC-3.6-dispense.outbound",
        "LC-3.6-delivery.picked_up",
        "LC-3.6-trace_code.sold",
        "LC-3.7-delivery.requested",
        "LC-3.7-delivery.assigned",
        "LC-3.7-delivery.picked_up",
        "LC-3.7-delivery.in_transit",
        "LC-3.7-delivery.arrived",
        "LC-3.7-delivery.signed",
    ),
    suites=SUITES_OF_CASES,
    profiles=PROFILES,
)
async def whole_chain(run: HubRun) -> None:
    """I11: the four stages are there in order and joined by their causes, the three flows agree, and every link
    verifies with the copy alone."""
    journey = await run.journey().to("settled")
    await journey.deliver()
    traced = await run.chain(journey.rx_no, light="GREEN")
    types = [entry.type for entry in traced.entries]
    run.checks.equal(
        [name for name in types if name not in BESIDE],
        list(WHOLE_CHAIN),
        en="every step from the visit to the door is there once, in its order",
        zh="从就诊到签收的每一步应依次各有一条",
    )
    run.checks.equal(list(traced.gaps), [], en="there is no gap", zh="链条不得有缺口")
    stages = [audit_pb2.Stage.Name(entry.stage).removeprefix("STAGE_") for entry in traced.entries]
    firsts = sorted((stages.index(stage), stage) for stage in STAGES if stage in stages)
    run.checks.equal(
        tuple(stage for _, stage in firsts), STAGES, en="the four stages follow each other", zh="四阶段应依次齐全"
    )
    flows = {audit_pb2.Flow.Name(flow.flow).removeprefix("FLOW_"): flow.agrees for flow in traced.flows}
    run.checks.equal(
        flows,
        {"INFORMATION": True, "FUND": True, "GOODS": True},
        en="information, fund and goods agree",
        zh="信息流、资金流、物流应一致",
    )
    entries = await run.copy()
    _faults(run, entries, "the copy")
    by_leaf = {one.leaf_hash: read_header(one.header) for one in entries}
    run.checks.that(
        all(by_leaf[entry.leaf_hash].type_name == entry.type for entry in traced.entries if entry.leaf_hash in by_leaf)
        and all(entry.leaf_hash in by_leaf for entry in traced.entries),
        en="every entry of the trace is one of the ledger",
        zh="追溯中的每条都应在账本中",
    )
    for effect, cause in (
        ("encounter.registered", "voucher.verified"),
        ("prescription.prechecked", "diagnosis.recorded"),
        ("dispense.outbound", "trace_code.sold"),
    ):
        header = by_leaf[next(entry.leaf_hash for entry in traced.entries if entry.type == effect)]
        named = {by_leaf[leaf].type_name for leaf in header.causes if leaf in by_leaf}
        run.checks.that(
            cause in named,
            en=f"{effect} names {cause} as its cause",
            zh=f"{effect} 应以 {cause} 为因",
            actual=sorted(named),
        )
    actors = {by_leaf[entry.leaf_hash].actor for entry in traced.entries if entry.type == "order.held"}
    run.checks.equal(actors, {run.pharmacy.actor}, en="an entry names who acted", zh="条目应记录行为方")


@case(
    id="AUD-002",
    revision=1,
    since="0.2",
    status="stable",
    first_release=True,
    title_zh="篡改、删除、调换、截尾均可定位",
    title_en="Altered, removed, swapped, cut off: the break is found where it is",
    level="MUST",
    verifies=("INV-I11", "INV-I13"),
    profiles=PROFILES,
)
async def broken_copies(run: HubRun) -> None:
    """I11: the hub's entries bind each other, so that a copy shows every change at the entry that was changed.

    The copy as it came verifies; then in turn one bit of a content is altered, an entry taken out, two of one stream
    swapped, and the tail cut off, which the receipt of what was cut off gives away.
    """
    journey = await run.journey().to("held")
    request = await journey.review_request()
    receipt = run.must_accept(await run.pharmacy.ask(request)).receipt
    entries = await run.copy()
    _faults(run, entries, "the copy as it came")
    run.checks.equal(missing(entries, [receipt]), [], en="the receipt's entries are there", zh="回执所列条目应在账本中")
    held = _index(entries, "order.held")
    target = entries[held]
    altered = [*entries[:held], target.with_payload_bit(), *entries[held + 1 :]]
    _located(run, verify(altered), target.position, "COMMITMENT", "one bit of a content")
    forged = replace(target, leaf=target.leaf[:-1] + bytes([target.leaf[-1] ^ 1]))
    _located(run, verify([*entries[:held], forged, *entries[held + 1 :]]), target.position, "LEAF", "a leaf")
    removed = [*entries[:held], *entries[held + 1 :]]
    _located(run, verify(removed), target.position, "POSITION", "an entry taken out")
    renumbered = [replace(one, position=one.position - 1) if one.position > target.position else one for one in removed]
    after = next(
        one for one in renumbered[held:] if read_header(one.header).stream_key == read_header(target.header).stream_key
    )
    _located(run, verify(renumbered), after.position, "VERSION_GAP", "an entry taken out, the rest moved up")
    following = next(
        at
        for at in range(held + 1, len(entries))
        if read_header(entries[at].header).stream_key == read_header(target.header).stream_key
    )
    swapped = list(entries)
    swapped[held] = replace(entries[following], position=target.position)
    swapped[following] = replace(target, position=entries[following].position)
    _located(run, verify(swapped), target.position, "VERSION_GAP", "two entries swapped")
    end = min(at for at, one in enumerate(entries) if one.leaf_hash in {each.leaf_hash for each in receipt.entries})
    cut = entries[:end]
    run.checks.that(
        not verify(cut) and [fault.position for fault in missing(cut, [receipt])][:1] == [end + 1],
        en="a tail that was cut off is missed by the receipt, at its place",
        zh="截去的尾部应由回执定位",
        actual=missing(cut, [receipt]),
    )


def _located(run: HubRun, faults: list[Any], position: int, reason: str, what: str) -> None:
    first = faults[0].position if faults else 0
    run.checks.that(
        first == position and any(fault == (position, reason) for fault in faults),
        en=f"{what} is found at its entry",
        zh="断点应定位到相应条目",
        expected=(position, reason),
        actual=faults[:3],
    )


@case(
    id="AUD-003",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="部分调配、冲正、再结算",
    title_en="Partial fills, a reversal and a new settlement",
    level="MUST",
    verifies=("INV-I2", "INV-I7", "INV-I20", "LC-3.1c-prescription.used"),
    profiles=PROFILES,
)
async def partial_fills_and_reversal(run: HubRun) -> None:
    """I2, I20: one chain holds every fill and every reversal, and its quantities and amounts come out even."""
    journey = await run.journey().to("reviewed")
    first, second = (line.quantity for line in journey.prescription.lines)
    await journey.quote_sale(lines=journey.sale_lines({1: first}))
    await journey.settle()
    await run.pharmacy.client.send(await journey.dispense_request(lots=journey.lots({1: first})))
    await run.pharmacy.client.hand_over(
        rx_no=journey.rx_no,
        staff_code=run.pharmacy.staff["dispenser"],
        voucher_ref=await journey.reference("01302"),
        seal_key=run.key(run.pharmacy.code),
    )
    rest = run.journey(pharmacy=run.pharmacy_b)
    rest.rx_no, rest.prescription = journey.rx_no, journey.prescription
    for attempt in (1, 2):
        await rest.authorize()
        await rest.hold()
        await rest.review()
        await rest.quote_sale(lines=rest.sale_lines({2: second}))
        settle = await rest.settle_request()
        rest.settlement_id = run.must_accept(await run.pharmacy_b.ask(settle)).settlement_id
        if attempt == 1:
            await run.pharmacy_b.client.reverse_settlement(
                original_request_id=settle.request_id, person_no=rest.person_no
            )
    await run.pharmacy_b.client.send(await rest.dispense_request(lots=rest.lots({2: second})))
    await rest.hand_over()
    traced = await run.chain(
        journey.rx_no,
        events={
            "settlement.committed": 3,
            "settlement.reversed": 1,
            "dispense.outbound": 2,
            "dispense.handed_over": 2,
            "prescription.exhausted": 1,
        },
        light="GREEN",
    )
    run.checks.equal([flow.agrees for flow in traced.flows], [True] * 3, en="the three flows agree", zh="三流应一致")
    await run.stands(journey.rx_no, "EXHAUSTED", "USED")


@case(
    id="AUD-004",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="跨算法套件与密钥轮换的链条",
    title_en="A chain across suites and key rotations",
    level="MUST",
    verifies=("INV-I14", "INV-I13"),
    profiles=PROFILES,
)
async def across_suites(run: HubRun) -> None:
    """I14: each signature is verified under the key and suite that signed it; a rotation breaks nothing."""
    old = await run.journey().to("held")
    new = await run.journey().to("prechecked")
    doctor, hospital, pharmacy = run.hospital.staff["doctor"], run.hospital.code, run.pharmacy.code
    upload = await new.upload_request(
        doctor_key=await run.register_key(doctor, hospital, suite="SM2-SM3"),
        seal_key=await run.register_key(hospital, hospital, suite="EdDSA"),
    )
    run.must_accept(await run.hospital.ask(upload))
    new.state = "effective"
    seal = await run.register_key(pharmacy, pharmacy, suite="SM2-SM3")
    for journey in (old, new):
        await journey.to("quoted")
        settle = await journey.settle_request(seal_key=seal)
        journey.settlement_id = run.must_accept(await run.pharmacy.ask(settle)).settlement_id
        journey.state = "settled"
        await journey.to("handed_over")
        await run.chain(journey.rx_no, events={"dispense.handed_over": 1}, light="GREEN")


@case(
    id="AUD-005",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="被拒绝的尝试出现在追溯中",
    title_en="Refused attempts stand in the trace, without effect",
    level="MUST",
    verifies=("INV-I21", "ERR-REVIEW_REQUIRED", "ERR-RX_UNKNOWN", "ERR-RX_UNDO_STATE"),
    profiles=PROFILES,
)
async def refused_attempts(run: HubRun) -> None:
    """I21: every refused attempt of an identified caller is in the trace, as a refusal, with who, what and its code."""
    journey = await run.journey().to("held")
    wanted = []
    for party, request, code in (
        (run.pharmacy, await journey.quote_request(), "REVIEW_REQUIRED"),
        (run.pharmacy_b, await run.pharmacy_b.drafts.release(rx_no=journey.rx_no), "RX_UNKNOWN"),
        (run.hospital, await journey.revoke_request(), "RX_UNDO_STATE"),
    ):
        answer = await party.ask(request)
        run.refused(answer, code)
        wanted.append((party.actor, code))
    traced = await run.trace(journey.rx_no)
    shown = [(access.actor, access.outcome) for access in traced.accesses if access.kind == "refusal"]
    run.checks.equal(
        sorted(shown), sorted(wanted), en="each refusal stands there with its caller", zh="每次拒绝均应列明调用方"
    )
    types = [entry.type for entry in traced.entries]
    run.checks.that(
        "settlement.quoted" not in types and types.count("order.released") == 0 and "prescription.undone" not in types,
        en="none of them had the effect that it asked for",
        zh="被拒绝的尝试不得产生效果",
        actual=types,
    )
    run.checks.that(
        all(access.at_ms and access.method for access in traced.accesses),
        en="each access says when and by which call",
        zh="每次访问应有时间和方法",
    )
    page = await run.channel.client.list_accesses(person_no=journey.person_no, rx_no=journey.rx_no)
    told = {access.outcome for access in page.accesses}
    for _ in range(20):
        if not page.next_page_token:
            break
        page = await run.channel.client.list_accesses(
            person_no=journey.person_no, rx_no=journey.rx_no, page_token=page.next_page_token
        )
        told |= {access.outcome for access in page.accesses}
    run.checks.that(
        {code for _, code in wanted} <= told,
        point="sut",
        en="the patient can see them too",
        zh="患者也应能看到",
        actual=sorted(told),
    )


@case(
    id="AUD-006",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="导出后离线验证",
    title_en="A copy verified without the hub",
    level="MUST",
    verifies=("INV-I11", "INV-I13", "INV-I14"),
    suites=SUITES_OF_CASES,
    profiles=PROFILES,
)
async def offline_copy(run: HubRun) -> None:
    """I11, I14: hashes, links and all signatures of signed contents verify from a mirror's copy and nothing else."""
    journey = await run.journey().to("handed_over")
    entries = await run.copy()
    _faults(run, entries, "the copy")
    payloads = [(one, BY_NUMBER[read_header(one.header).type].payload.FromString(one.payload)) for one in entries]
    keys = {
        message.key.key_id: (message.key.suite, message.key.public_key)
        for _, message in payloads
        if isinstance(message, events_pb2.SigningKeyRegistered)
    }
    verified = 0
    bad = []
    for entry, message in payloads:
        for signed in _signed_in(message):
            data = pae(signed.payload_type, signed.payload)
            for signature in signed.signatures:
                suite, public_key = keys.get(signature.key_id, ("", b""))
                if suite and SUITES[suite].verify(public_key, data, signature.signature):
                    verified += 1
                else:
                    bad.append((entry.position, signed.payload_type))
    run.checks.that(
        not bad and verified >= 7,
        en="every signature in the copy verifies under a key that is in it",
        zh="副本中的每个签名均应可用其中登记的公钥验证",
        expected="7 or more",
        actual=(verified, bad),
    )
    await run.chain(journey.rx_no, events={"dispense.handed_over": 1}, light="GREEN")


def _signed_in(message: Any) -> Iterator[common_pb2.Signed]:
    """Every signed content in a message."""
    if isinstance(message, common_pb2.Signed):
        yield message
        return
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None or descriptor.message_type.GetOptions().map_entry:
            continue
        for inner in value if descriptor.is_repeated else (value,):
            yield from _signed_in(inner)


@case(
    id="AUD-007",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="各方时钟不一致",
    title_en="Parties whose clocks differ",
    level="MUST",
    verifies=("ERR-TIME_SKEW", "INV-I11"),
    needs=("clock",),
    profiles=PROFILES,
)
async def clocks_that_differ(run: HubRun) -> None:
    """I11: the ledger goes by the hub's clock; what a party claims is kept as signed; too far off is TIME_SKEW."""
    journey = await run.journey().to("prechecked")
    await run.advance(by_ms=10 * MINUTE_MS)
    claimed = run.now_ms - 9 * MINUTE_MS
    upload = await journey.upload_request(document=journey.document(signed_at_ms=claimed))
    for skew_minutes in (-6, 6):
        sent_at = str(run.now_ms + skew_minutes * MINUTE_MS)
        answer = await run.hospital.ask(upload, metadata=((SENT_AT_HEADER, sent_at),))
        run.refused(answer, "TIME_SKEW", where=f"{skew_minutes:+d} minutes")
    sent_at = str(run.now_ms + 4 * MINUTE_MS)
    run.accepted(
        await run.hospital.ask(upload, metadata=((SENT_AT_HEADER, sent_at),)),
        "four minutes are borne",
        "四分钟偏差可接受",
    )
    journey.state = "effective"
    await journey.to("reviewed")
    traced = await run.chain(journey.rx_no, events={"prescription.effective": 1, "review.passed": 1})
    times = [entry.at_ms for entry in traced.entries]
    effective = next(entry.at_ms for entry in traced.entries if entry.type == "prescription.effective")
    run.checks.that(
        times == sorted(times) and effective == run.now_ms,
        en="the chain is in the hub's order and time",
        zh="链条应按中心时间和顺序",
        actual=times,
    )
    document = signed_pb2.PrescriptionDocument.FromString(journey.download.prescription.payload)
    run.checks.equal(
        document.signed_at_ms, claimed, point="sut", en="the party's own time is kept", zh="各方声称的时间应原样保留"
    )


@case(
    id="AUD-008",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="审计员越权、无事由审计",
    title_en="An auditor who would change something, or gives no reason",
    level="MUST",
    verifies=("ERR-ROLE_NOT_ALLOWED", "ERR-AUDIT_REASON", "INV-I21"),
    profiles=PROFILES,
)
async def auditor_limits(run: HubRun) -> None:
    """I21: an auditor reads with a case reason and changes nothing; each look is an entry that the patient can see."""
    journey = await run.journey().to("effective")
    for name, method in METHODS.items():
        if "auditor" in method.callers or method.streams_in or method.streams_out:
            continue
        answer = await run.auditor.raw.call(name.replace("Service/", "/"), b"")
        run.refused(answer, "ROLE_NOT_ALLOWED")
    for reason in ("", "  "):
        trace = audit_pb2.TraceChainRequest(rx_no=journey.rx_no, case_reason=reason)
        run.refused(await run.auditor.ask(trace), "AUDIT_REASON")
        ledger = audit_pb2.VerifyLedgerRequest(case_reason=reason)
        run.refused(await run.auditor.ask(ledger), "AUDIT_REASON")
    traced = await run.trace(journey.rx_no)
    again = await run.trace(journey.rx_no)
    looks = [access for access in again.accesses if access.actor == run.auditor.actor and access.kind == "access"]
    run.checks.that(bool(looks), en="the auditor's look is an entry", zh="审计查询应有记录", actual=len(looks))
    page = await run.channel.ask(
        patient_pb2.ListAccessesRequest(
            person_no=journey.person_no, rx_no=journey.rx_no, page=common_pb2.Page(page_size=200)
        )
    )
    reply = run.must_accept(page)
    run.checks.that(bool(reply.accesses), point="sut", en="the patient sees who looked", zh="患者应能看到访问记录")
    text = traced.SerializeToString()
    run.checks.that(
        journey.person_no.encode() not in text
        and not any(one.name.encode() in text or one.id_number.encode() in text for one in PERSONS),
        point="sut",
        en="the trace names no person",
        zh="追溯结果不得含个人信息",
    )
    entries = await run.copy(as_mirror=False)
    run.checks.that(
        bool(entries) and not any(one.payload or one.salt for one in entries),
        point="sut",
        en="an auditor's entries come without their content",
        zh="审计员获取的条目不含内容",
    )
