"""CLM: finding a prescription, holding it, and giving it back."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from erxhub.conform.hub.journey import DOWNLOAD, Journey
from erxhub.conform.hub.parties import Party
from erxhub.conform.hub.raw import Answer
from erxhub.conform.hub.run import HubRun
from erxhub.conform.registry import case
from erxhub.v1 import audit_pb2, patient_pb2, prescribing_pb2

PROFILES = ("dev", "strict")
RACES = 100
PRESCRIPTIONS = 10
"""One prescription bears only so many orders of one pharmacy."""
DETAILS = "grpc-status-details-bin"


@case(
    id="CLM-003",
    revision=1,
    since="0.2",
    status="stable",
    first_release=True,
    title_zh="两家药店同时下载",
    title_en="Two pharmacies download at the same time",
    level="MUST",
    verifies=("ERR-ORDER_ALREADY_HELD", "INV-I1", "LC-3.4-order.held", "LC-3.3-authorization.consumed"),
    profiles=PROFILES,
    deadline_ms=90_000,
)
async def race_for_a_hold(run: HubRun) -> None:
    """I1: of two downloads at once exactly one holds, a hundred times over; the loser learns ORDER_ALREADY_HELD."""
    won: Counter[str] = Counter()
    for _ in range(PRESCRIPTIONS):
        journey = await run.journey().to("effective")
        references = [await journey.reference(DOWNLOAD, party) for party in (run.pharmacy, run.pharmacy_b)]
        for _ in range(RACES // PRESCRIPTIONS):
            winner = await _race(run, journey, references)
            won[winner.name] += 1
            await winner.client.release(rx_no=journey.rx_no, reason="缺货")
        rounds = RACES // PRESCRIPTIONS
        traced = await run.chain(journey.rx_no, events={"order.held": rounds, "order.released": rounds})
        turns = [entry.type for entry in traced.entries if entry.type in ("order.held", "order.released")]
        run.checks.equal(
            turns,
            ["order.held", "order.released"] * rounds,
            en="at no moment there were two holds",
            zh="任何时刻不得有两个占用",
        )
        await run.stands(journey.rx_no, "EFFECTIVE", "UNUSED")
    run.checks.note(f"won: {dict(won)}", f"各自占用次数：{dict(won)}")
    await run.on_the_wire("Dispensing/DownloadPrescription", outcomes={"OK": RACES, "ORDER_ALREADY_HELD": RACES})


async def _race(run: HubRun, journey: Journey, references: Sequence[str]) -> Party:
    """Both download at once; who holds. Ends the case unless exactly one does."""
    rivals = (run.pharmacy, run.pharmacy_b)
    requests = []
    for party, reference in zip(rivals, references, strict=True):
        number = await journey.authorize(party, reference)
        requests.append(await party.drafts.download(authorization_no=number))
    answers = await asyncio.gather(*(party.ask(request) for party, request in zip(rivals, requests, strict=True)))
    codes = [answer.code for answer in answers]
    run.checks.must(
        sorted(codes) == ["OK", "ORDER_ALREADY_HELD"],
        point="sut",
        en="exactly one holds, and the other learns ORDER_ALREADY_HELD",
        zh="恰有一家占用，另一家得到 ORDER_ALREADY_HELD",
        actual=codes,
    )
    return rivals[codes.index("OK")]


@case(
    id="CLM-008",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="无关药店、先前占用者释放",
    title_en="Release by a stranger, and by a former holder",
    level="MUST",
    verifies=("ERR-RX_UNKNOWN", "ERR-ORDER_HOLD_LOST", "LC-3.4-order.released", "INV-I21"),
    profiles=PROFILES,
)
async def release_by_others(run: HubRun) -> None:
    """I1, I21: who never had to do with a prescription learns nothing of it; who lost his hold learns that."""
    journey = await run.journey().to("held")
    stranger = await run.pharmacy_b.ask(await run.pharmacy_b.drafts.release(rx_no=journey.rx_no, reason="缺货"))
    run.refused(stranger, "RX_UNKNOWN")
    run.accepted(await run.pharmacy.ask(await journey.release_request()))
    former = await run.pharmacy.ask(await journey.release_request())
    run.refused(former, "ORDER_HOLD_LOST", where="after the release")
    other = run.journey(pharmacy=run.pharmacy_b)
    other.rx_no = journey.rx_no
    await other.authorize()
    await other.hold()
    run.refused(await run.pharmacy.ask(await journey.release_request()), "ORDER_HOLD_LOST", where="another holds it")
    review = await journey.review_request()
    run.refused(await run.pharmacy.ask(review), "ORDER_HOLD_LOST", where="Dispensing/ReviewPrescription")
    await run.stands(journey.rx_no, "EFFECTIVE", "HELD")
    await run.chain(
        journey.rx_no,
        events={"order.held": 2, "order.released": 1},
        refusals={"RX_UNKNOWN": 1, "ORDER_HOLD_LOST": 3},
        light="OPEN",
    )


@case(
    id="CLM-011",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="分页令牌的再用与挪用",
    title_en="Page tokens used again, and by another",
    level="MUST",
    verifies=("ERR-PAGE_TOKEN_INVALID", "INV-I21"),
    profiles=PROFILES,
)
async def page_tokens(run: HubRun) -> None:
    """AIP-158: a token goes on where it stood, for its own caller and request; nobody else gets a row by it."""
    numbers = [(await run.journey().to("effective")).rx_no for _ in range(4)]
    first = await run.hospital.client.list_prescriptions(page_size=2)
    token = first.next_page_token
    run.checks.must(bool(token), point="sut", en="there is a second page", zh="应有下一页")
    await run.hospital.client.revoke(rx_no=numbers[0], doctor_code=run.hospital.staff["doctor"], reason="开具有误")
    again = await run.hospital.client.list_prescriptions(page_size=2, page_token=token)
    shown = [one.rx_no for one in (*first.prescriptions, *again.prescriptions)]
    run.checks.equal(
        shown,
        list(reversed(numbers)),
        point="sut",
        en="after a change the pages still hold each prescription once, newest first",
        zh="状态变化后分页仍应不重不漏",
    )
    stolen = await run.hospital_b.ask(await run.hospital_b.drafts.list_prescriptions(page_size=2, page_token=token))
    rows = [one.rx_no for one in stolen.reply.prescriptions] if stolen.ok else []
    run.checks.that(
        not rows and stolen.code in ("OK", "PAGE_TOKEN_INVALID"),
        point="sut",
        en="another hospital's token shows nothing of its owner",
        zh="他人令牌不得显示其数据",
        actual=(stolen.code, rows),
    )
    for wrong in (token[:-1] + ("A" if token[-1] != "A" else "B"), "not-a-token"):
        answer = await run.hospital.ask(await run.hospital.drafts.list_prescriptions(page_size=2, page_token=wrong))
        run.refused(answer, "PAGE_TOKEN_INVALID", where="an altered token")
    watch = prescribing_pb2.WatchPrescriptionsRequest(cursor=token)
    _, ended = await run.hospital.raw.stream("Prescribing/WatchPrescriptions", watch, count=1, timeout_s=3)
    run.checks.equal(
        ended.code if ended else "",
        "PAGE_TOKEN_INVALID",
        point="sut",
        en="it is no cursor of a watch",
        zh="分页令牌不是订阅游标",
    )
    accesses = patient_pb2.ListAccessesRequest(person_no=run.place.person_no)
    accesses.page.page_token = token
    run.refused(await run.channel.ask(accesses), "PAGE_TOKEN_INVALID", where="Patient/ListAccesses")


@case(
    id="CLM-013",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="无凭证枚举处方编号",
    title_en="Trying prescription numbers without a voucher",
    level="MUST",
    verifies=("ERR-RX_UNKNOWN", "INV-I21", "ERR-AUTH_REQUIRED", "ERR-AUTH_REUSED"),
    profiles=PROFILES,
)
async def enumeration(run: HubRun) -> None:
    """I21: for a caller without a relation every number gives the same bytes, whether it exists or not."""
    journey = await run.journey().to("effective")
    numbers = [journey.rx_no, *(f"330100{n:021d}" for n in range(20))]
    answers: list[Answer] = []
    for number in numbers:
        answers.append(await run.hospital_b.ask(prescribing_pb2.GetPrescriptionRequest(rx_no=number)))
        answers.append(await run.pharmacy.ask(await run.pharmacy.drafts.release(rx_no=number, reason="缺货")))
    for answer in answers[:2]:
        run.refused(answer, "RX_UNKNOWN")
    run.checks.equal(
        len({(answer.status, answer.details, answer.trailers.get(DETAILS)) for answer in answers}),
        1,
        point="sut",
        en="every number gives the same bytes",
        zh="任何编号的应答应逐字节相同",
    )
    empty = await run.pharmacy.ask(await run.pharmacy.drafts.download())
    run.refused(empty, "AUTH_REQUIRED")
    guessed = await run.pharmacy.ask(await run.pharmacy.drafts.download(authorization_no="A" * 30))
    run.refused(guessed, "AUTH_REUSED")
    traced = await run.chain(journey.rx_no, events={"order.held": 0}, refusals={"RX_UNKNOWN": 2})
    run.checks.equal(
        audit_pb2.Light.Name(traced.light),
        "LIGHT_OPEN",
        en="the prescription waits for its patient",
        zh="处方应等待患者使用",
    )
