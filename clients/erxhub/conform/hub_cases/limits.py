"""LIM: odd values, floods of nonsense, many calls at once, a full disk, snapshots and the calendar."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

from erxhub.conform.checks import Unsupported
from erxhub.conform.hub.fuzz import Chance, made_up, mangled
from erxhub.conform.hub.ledger_copy import EVENT, read_header
from erxhub.conform.hub.run import BROKEN, HubRun
from erxhub.conform.model import Text
from erxhub.conform.registry import case
from erxhub.rpc.methods import COMMAND, METHODS
from erxhub.seed.catalogue import seed_drugs
from erxhub.v1 import common_pb2, prescribing_pb2

PROFILES = ("dev", "strict")
FUZZED = 10_000
AT_ONCE = 32
MIXED_CALLS = 1_000
STREAMS = 8
BUDGET_MS = 2_000
DAY_MS = 86_400_000
BEIJING = timedelta(hours=8)
BIDI = "阿莫西林\u202e\u2066"

Change = Callable[[common_pb2.Prescription], None]


def _of_line(**fields: Any) -> Change:
    def change(text: common_pb2.Prescription) -> None:
        for name, value in fields.items():
            setattr(text.lines[0], name, value)

    return change


def _of_text(**fields: Any) -> Change:
    def change(text: common_pb2.Prescription) -> None:
        for name, value in fields.items():
            setattr(text, name, value)

    return change


def _without_lines(text: common_pb2.Prescription) -> None:
    del text.lines[:]


def _the_same_drug_twice(text: common_pb2.Prescription) -> None:
    text.lines.add().CopyFrom(text.lines[0])
    text.lines[-1].line_no = len(text.lines)


ODD: tuple[tuple[str, Change, tuple[str, ...]], ...] = (
    ("no line", _without_lines, ("RX_LINES",)),
    ("one drug twice", _the_same_drug_twice, ("RX_LINES",)),
    ("quantity 0", _of_line(quantity="0"), ("AMT_MISMATCH", "INPUT_MALFORMED")),
    ("quantity below 0", _of_line(quantity="-1"), ("INPUT_MALFORMED",)),
    ("a huge quantity", _of_line(quantity="9999999999"), ("AMT_MISMATCH", "INPUT_MALFORMED")),
    ("too many digits", _of_line(quantity="99999999999"), ("INPUT_MALFORMED",)),
    ("too many decimals", _of_line(quantity="1.00001"), ("INPUT_MALFORMED",)),
    ("an amount below 0", _of_line(amount_fen=-1), ("INPUT_MALFORMED",)),
    ("an amount that does not fit", _of_line(amount_fen=1), ("AMT_MISMATCH",)),
    ("supply of 0 days", _of_line(supply_days=0), ("INPUT_MALFORMED",)),
    ("supply of 367 days", _of_line(supply_days=367), ("INPUT_MALFORMED",)),
    ("no name", _of_line(generic_name=""), ("INPUT_MALFORMED",)),
    ("a name of 201 characters", _of_line(generic_name="药" * 201), ("INPUT_MALFORMED",)),
    ("a NUL", _of_line(generic_name="氨氯地平\x00"), ("INPUT_MALFORMED",)),
    ("bidi controls", _of_line(generic_name=BIDI), ("INPUT_MALFORMED",)),
    ("a number of 41 characters", _of_text(hospital_rx_no="R" * 41), ("INPUT_MALFORMED",)),
    ("valid for 0 days", _of_text(valid_days=0), ("INPUT_MALFORMED",)),
    ("a time beyond the calendar", _of_text(prescribed_at_ms=253_402_272_000_000), ("INPUT_MALFORMED",)),
    ("an unknown origin", _of_text(origin=99), ("INPUT_MALFORMED",)),
)


@case(
    id="LIM-001",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="边界值：零、最大、超限、空串、控制字符",
    title_en="Zero, most, more than most, empty, and characters that hide",
    level="MUST",
    verifies=("ERR-INPUT_MALFORMED", "ERR-RX_LINES", "ERR-RX_TOO_MANY_DRUGS", "ERR-AMT_MISMATCH", "RX-P-02", "RX-P-05"),
    profiles=PROFILES,
)
async def odd_values(run: HubRun) -> None:
    """S1-03, P-02, P-05: every value outside its rule is refused by it, and five lines, the most, are accepted."""
    journey = await run.journey().to("diagnosed")
    position = await run.entries()
    for number, (where, change, codes) in enumerate(ODD):
        text = common_pb2.Prescription()
        text.CopyFrom(journey.prescription)
        text.hospital_rx_no += f"-{number}"
        change(text)
        answer = await run.hospital.ask(await journey.precheck_request(text))
        run.refused(answer, answer.code if answer.code in codes else codes[0], where=where)
    for request_id in ("", "short", "x" * 65, "with space", "编号编号编号编号"):
        request = await journey.precheck_request()
        request.request_id = request_id
        run.refused(await run.hospital.ask(request), "INPUT_MALFORMED", field="request_id", where=repr(request_id))
    await run.no_effect(position)
    most = await run.journey(lines=5).to("diagnosed")
    six = common_pb2.Prescription()
    six.CopyFrom(most.prescription)
    six.lines.add().CopyFrom(six.lines[1])
    six.lines[5].line_no = 6
    six.lines[5].drug_code = next(code for code in seed_drugs() if code not in {line.drug_code for line in six.lines})
    answer = await run.hospital.ask(await most.precheck_request(six))
    findings = answer.refusal.metadata.get("findings", "") if answer.refusal is not None else ""
    run.checks.that(
        answer.code == "RX_TOO_MANY_DRUGS" or "RX_TOO_MANY_DRUGS" in findings,
        point="sut",
        en="a sixth drug is refused",
        zh="第六种药品应被拒绝",
        expected="RX_TOO_MANY_DRUGS",
        actual=(answer.code, findings),
    )
    await most.to("handed_over")
    await run.chain(most.rx_no, events={"dispense.handed_over": 1}, light="GREEN")


@case(
    id="LIM-002",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="按描述符生成的一万条随机报文",
    title_en="Ten thousand made-up messages",
    level="MUST",
    verifies=("ERR-INPUT_MALFORMED", "INV-I10"),
    profiles=("dev",),
    deadline_ms=180_000,
)
async def made_up_messages(run: HubRun) -> None:
    """S1-03: whatever a caller sends, the hub answers with a refusal or a reply and never breaks; what it refused left
    nothing behind. Seeded: the same run sends the same messages."""
    chance = Chance(run.planned.seed)
    journey = await run.journey().to("effective")
    position = await run.entries()
    statuses: Counter[str] = Counter()
    accepted: set[str] = set()
    callers = [
        (party, method)
        for party in (run.hospital, run.pharmacy, run.channel, run.agency, run.auditor)
        for method in METHODS.values()
        if party.role in method.callers
        and not method.streams_in
        and not method.streams_out
        # A whole ledger is not verified a thousand times.
        and method.rpc != "VerifyLedger"
    ]
    gate = asyncio.Semaphore(AT_ONCE)

    async def send(party: Any, method: Any, data: bytes, request_id: str) -> None:
        async with gate:
            answer = await party.raw.call(method.name.replace("Service/", "/"), data)
        statuses[answer.status] += 1
        if answer.ok and method.effect == COMMAND:
            accepted.add(request_id)

    calls = []
    for number in range(FUZZED):
        party, method = callers[number % len(callers)]
        message = made_up(method.request, chance)
        request_id = f"fuzz-{number:08d}"
        if "request_id" in method.request.DESCRIPTOR.fields_by_name and chance.below(8):
            message.request_id = request_id
        data = message.SerializeToString()
        if not chance.below(5):
            data, request_id = mangled(data, chance), ""
        calls.append(send(party, method, data, request_id))
    await asyncio.gather(*calls)
    broken = {status: count for status, count in statuses.items() if status in BROKEN}
    run.checks.that(
        not broken, point="sut", en="no message breaks the hub", zh="任何报文不得使中心出错", actual=dict(statuses)
    )
    run.checks.note(f"statuses: {dict(statuses)}", f"状态分布：{dict(statuses)}")
    headers = [read_header(one.header) for one in await run.copy(after=position, as_mirror=False)]
    strangers = [header for header in headers if header.kind == EVENT and header.request_id not in accepted]
    run.checks.that(
        not strangers,
        en="only accepted requests left events",
        zh="仅受理的请求可留下事件",
        actual=[(one.type_name, one.request_id) for one in strangers[:5]],
    )
    await journey.to("handed_over")
    await run.chain(journey.rx_no, events={"dispense.handed_over": 1}, light="GREEN")


@case(
    id="LIM-003",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="大量并发的订阅与调用",
    title_en="Many watches and calls at once",
    level="SHOULD",
    verifies=("ERR-OVERLOADED",),
    profiles=("dev",),
    deadline_ms=90_000,
)
async def many_at_once(run: HubRun) -> None:
    """MUST-9: a thousand calls beside open watches all end in an answer; 99 of 100 within two seconds (a budget)."""
    journey = await run.journey().to("effective")
    watch = prescribing_pb2.WatchPrescriptionsRequest()
    open_calls = []
    for party in (run.hospital, run.hospital_b):
        for _ in range(STREAMS):
            call = party.raw.open_stream("Prescribing/WatchPrescriptions", watch)
            await call.initial_metadata()
            open_calls.append(call)
    took: list[int] = []
    codes: Counter[str] = Counter()

    async def one(number: int) -> None:
        began = run.environment.now_ms()
        request: Any
        if number % 3:
            party, request = run.hospital, prescribing_pb2.GetPrescriptionRequest(rx_no=journey.rx_no)
        else:
            party = run.pharmacy
            request = await party.drafts.release(rx_no=journey.rx_no)
        answer = await party.ask(request)
        took.append(run.environment.now_ms() - began)
        codes[answer.code] += 1

    await asyncio.gather(*(one(number) for number in range(MIXED_CALLS)))
    for call in open_calls:
        call.cancel()
    took.sort()
    p99 = took[len(took) * 99 // 100]
    run.checks.equal(
        sum(codes[code] for code in ("OK", "RX_UNKNOWN", "OVERLOADED")),
        MIXED_CALLS,
        point="sut",
        en="every call ends in an answer",
        zh="每个调用都应有应答",
    )
    run.checks.that(
        p99 <= BUDGET_MS,
        point="wire",
        en="99 of 100 within the budget",
        zh="百分之九十九在预算内",
        expected=BUDGET_MS,
        actual=p99,
    )
    run.checks.note(f"p99 {p99} ms, {dict(codes)}", f"p99 {p99} 毫秒，{dict(codes)}")
    await run.chain(journey.rx_no, events={"prescription.effective": 1})


@case(
    id="LIM-004",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="提交时磁盘已满",
    title_en="The disk is full at the commit",
    level="MUST",
    verifies=("ERR-HUB_UNAVAILABLE", "INV-I10", "INV-I19"),
    needs=("sandbox",),
    profiles=PROFILES,
)
async def full_disk(run: HubRun) -> None:
    """MUST-2: what cannot be written is UNAVAILABLE and leaves no part of itself; the same request succeeds later."""
    journey = await run.journey().to("prechecked")
    for state, write, party, event in (
        ("effective", journey.upload_request, run.hospital, "prescription.effective"),
        ("held", journey.hold_request, run.pharmacy, "order.held"),
        ("settled", journey.settle_request, run.pharmacy, "settlement.committed"),
        ("dispensed", journey.dispense_request, run.pharmacy, "dispense.outbound"),
    ):
        await journey.to(
            {"effective": "prechecked", "held": "listed", "settled": "quoted", "dispensed": "settled"}[state]
        )
        request = await write()
        before = await run.events(journey.rx_no)
        await run.place.set_faults(f"{event} do=disk_full id=full")
        refused = await party.ask(request, once=True)
        run.refused(refused, "HUB_UNAVAILABLE", where=event)
        await run.place.clear_faults()
        run.checks.equal(
            await run.events(journey.rx_no), before, en="no part of it was written", zh="不得部分写入", where=event
        )
        reply = run.must_accept(await party.ask(request), "the same request succeeds", "恢复后同一请求应被受理")
        journey.state = state
        if state == "held":
            journey.download = reply
        if state == "settled":
            journey.settlement_id = reply.settlement_id
    await journey.to("handed_over")
    await run.chain(journey.rx_no, events={"dispense.handed_over": 1}, light="GREEN")


@case(
    id="LIM-005",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="快照恢复后继续",
    title_en="A snapshot, brought back, goes on the same way",
    level="MUST",
    verifies=("INV-I10", "INV-I11"),
    needs=("snapshots",),
    profiles=PROFILES,
)
async def snapshot_and_restore(run: HubRun) -> None:
    """I10: from a snapshot on, the same requests give the same answers and the same events as without the detour."""
    journey = await run.journey().to("quoted")
    settle = await journey.settle_request()
    position = await run.entries()
    await run.place.save("middle")
    first = await run.pharmacy.ask(settle)
    run.must_accept(first)
    once = await run.written(position)
    other = await run.journey(person_no=run.place.second_person_no).to("effective")
    await run.place.load("middle")
    again = await run.pharmacy.ask(settle)
    run.must_accept(again)
    run.checks.equal(again.known(), first.known(), point="sut", en="the answer is the same", zh="应答应相同")
    run.checks.equal(await run.written(position), once, en="the events are the same", zh="事件应相同")
    gone = await run.hospital.ask(prescribing_pb2.GetPrescriptionRequest(rx_no=other.rx_no))
    run.refused(gone, "RX_UNKNOWN", where="what came after the snapshot")
    journey.settlement_id, journey.state = again.reply.settlement_id, "settled"
    await journey.to("handed_over")
    await run.chain(journey.rx_no, events={"settlement.committed": 1}, light="GREEN")


@case(
    id="LIM-007",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="闰日、年末与零点的日期归属",
    title_en="Leap day, the end of the year, and midnight",
    level="MUST",
    verifies=("ERR-BATCH_EXPIRED", "ERR-RX_NOT_EFFECTIVE", "INV-I12"),
    needs=("clock",),
    profiles=PROFILES,
)
async def days_of_the_calendar(run: HubRun) -> None:
    """X-16, P-01: a day is a day in Beijing and ends at its 24:00; a prescription ends at an instant.

    At the end of the year and on the leap day of 2028: a lot is good through its last day, to the millisecond.
    """
    year = datetime.fromtimestamp(run.now_ms // 1000, UTC).year
    for last_day in (date(year, 12, 31), date(2028, 2, 29)):
        next_day = last_day + timedelta(days=1)
        midnight = datetime(next_day.year, next_day.month, next_day.day, tzinfo=UTC) - BEIJING
        midnight_ms = int(midnight.timestamp()) * 1000
        if midnight_ms - 3_600_000 <= run.now_ms:
            raise Unsupported(Text("The hub's clock is past these days.", "中心时钟已过这些日期。"))
        await run.advance(until_ms=midnight_ms - 3_600_000)
        await _renew_keys(run)
        # A settled order waits for its goods, however long.
        journeys = [await run.journey().to("settled") for _ in range(2)]
        expires_on = last_day.isoformat()
        await run.advance(until_ms=midnight_ms - 1)
        good = await journeys[0].dispense_request(lots=journeys[0].lots(expires_on=expires_on))
        run.accepted(await run.pharmacy.ask(good), "a lot is good through its last day", "有效期当日仍可销售")
        await run.advance(until_ms=midnight_ms)
        late = await journeys[1].dispense_request(lots=journeys[1].lots(expires_on=expires_on))
        run.refused(await run.pharmacy.ask(late), "BATCH_EXPIRED", where=expires_on)
        await run.chain(journeys[0].rx_no, events={"dispense.outbound": 1})
        await run.chain(journeys[1].rx_no, events={"dispense.outbound": 0}, refusals={"BATCH_EXPIRED": 1})
    ending = await run.journey().to("listed")
    end_ms = ending.prescription.valid_until_ms
    await run.advance(until_ms=end_ms)
    await ending.authorize()
    on_time = await ending.hold_request()
    run.accepted(await run.pharmacy.ask(on_time), "it may be held until its last instant", "有效期最后时刻仍可占用")
    second = await run.journey().to("listed")
    end_ms = second.prescription.valid_until_ms
    await run.advance(until_ms=end_ms - 60_000)
    await second.authorize()
    await run.advance(until_ms=end_ms + 1)
    run.refused(await run.pharmacy.ask(await second.hold_request()), "RX_NOT_EFFECTIVE")
    await run.stands(second.rx_no, "EXPIRED", "UNUSED")


async def _renew_keys(run: HubRun) -> None:
    """Signing keys of this year for everybody who signs here: those of the world end after one."""
    hospital, pharmacy = run.hospital, run.pharmacy
    for subject, institution in (
        (hospital.staff["doctor"], hospital.code),
        (hospital.staff["pharmacist"], hospital.code),
        (hospital.code, hospital.code),
        (pharmacy.staff["pharmacist"], pharmacy.code),
        (pharmacy.code, pharmacy.code),
    ):
        await run.renew_key(subject, institution, valid_ms=30 * DAY_MS)
