"""EVT: watches, from the side of the hub."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import grpc

from erxhub.conform.hub.parties import Party
from erxhub.conform.hub.raw import failed
from erxhub.conform.hub.run import HubRun
from erxhub.conform.registry import case
from erxhub.v1 import dispensing_pb2, prescribing_pb2

PROFILES = ("dev", "strict")
WATCH_S = 10.0
RESUMES = 50
STEPS = 30


async def follow(run: HubRun, party: Party, enough: Callable[[list[Any]], bool]) -> list[Any]:
    """A watch of the party from its beginning, until there is enough of it.

    A stream that ends is opened again after the last message, as a client does; doubles stay in the list.
    """
    hospital = party.role == "hospital"
    name = "Prescribing/WatchPrescriptions" if hospital else "Dispensing/WatchOrders"
    kind: Any = prescribing_pb2.WatchPrescriptionsRequest if hospital else dispensing_pb2.WatchOrdersRequest
    found: list[Any] = []
    for _ in range(RESUMES):
        at = found[-1].cursor if found else ""
        request = kind(cursor=at, from_start=not at)
        try:
            async with aclosing(party.raw.messages(name, request.SerializeToString(), WATCH_S)) as messages:
                async for message in messages:
                    found.append(message)
                    if enough(found):
                        return found
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                run.checks.that(
                    False,
                    point="sut",
                    en="the watch brings every step",
                    zh="订阅应送达每一步",
                    actual=failed(name, b"", error).code,
                    where=party.name,
                )
                return found
            await run.environment.sleep_ms(50)
    return found


def told(messages: list[Any], rx_no: str, event: str) -> int:
    """How often an event of a prescription was told, doubles apart."""
    return sum(list(message.events).count(event) for message in once(messages, rx_no))


def once(messages: list[Any], rx_no: str) -> list[Any]:
    """The steps of one prescription in the order of their versions, doubles dropped."""
    by_version = {message.version: message for message in messages if message.rx_no == rx_no}
    return [by_version[version] for version in sorted(by_version)]


def tells(rx_no: str, event: str, count: int = 1) -> Callable[[list[Any]], bool]:
    """Whether messages tell an event of a prescription so often."""
    return lambda messages: told(messages, rx_no, event) >= count


@case(
    id="EVT-006",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="慢速订阅者",
    title_en="A consumer that reads slowly",
    level="MUST",
    verifies=("INV-I10", "ERR-PAGE_TOKEN_INVALID"),
    profiles=PROFILES,
)
async def slow_consumer(run: HubRun) -> None:
    """A watch that is not read keeps nobody waiting; once it is read, or resumed at its cursor, nothing is missing."""
    watch = run.hospital.raw.open_stream(
        "Prescribing/WatchPrescriptions", prescribing_pb2.WatchPrescriptionsRequest(from_start=True)
    )
    await asyncio.wait({asyncio.ensure_future(watch.wait_for_connection())}, timeout=WATCH_S)
    journeys = [await run.journey().to("held") for _ in range(STEPS // 10)]
    for journey in journeys:
        for _ in range(3):
            await run.pharmacy.client.release(rx_no=journey.rx_no, reason="缺货")
            await journey.authorize()
            await journey.hold()
    await run.pharmacy.client.release(rx_no=journeys[-1].rx_no, reason="缺货")
    watch.cancel()
    last = journeys[-1].rx_no
    traced = await run.trace(last)
    steps = [entry for entry in traced.entries if entry.stream_kind == "prescription"]
    released = sum(entry.type == "order.released" for entry in steps)
    messages = await follow(run, run.hospital, tells(last, "order.released", released))
    for journey in journeys:
        seen = once(messages, journey.rx_no)
        chain = [entry for entry in (await run.trace(journey.rx_no)).entries if entry.stream_kind == "prescription"]
        versions = {entry.version for entry in chain}
        run.checks.equal(
            told(messages, journey.rx_no, "order.held"),
            sum(entry.type == "order.held" for entry in chain),
            point="sut",
            en="no step is missing",
            zh="不得遗漏任何一步",
        )
        run.checks.that(
            {message.version for message in seen} <= versions,
            point="sut",
            en="every step is one of the ledger",
            zh="每一步都应在账本中",
        )


@case(
    id="EVT-008",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="不得看到其他机构的事件",
    title_en="Nobody sees the steps of another institution",
    level="MUST",
    verifies=("INV-I21",),
    profiles=PROFILES,
)
async def watches_of_others(run: HubRun) -> None:
    """I21: a watch shows the caller's own prescriptions or orders, also when resumed with somebody else's cursor."""
    first = await run.journey().to("dispensed")
    other = await run.journey(
        person_no=run.place.second_person_no, hospital=run.hospital_b, pharmacy=run.pharmacy_b
    ).to("dispensed")
    cursors = {}
    for party, own, foreign, last in (
        (run.hospital, first, other, "prescription.used"),
        (run.hospital_b, other, first, "prescription.used"),
        (run.pharmacy, first, other, "dispense.outbound"),
        (run.pharmacy_b, other, first, "dispense.outbound"),
    ):
        messages = await follow(run, party, tells(own.rx_no, last))
        seen = {message.rx_no for message in messages}
        run.checks.that(
            own.rx_no in seen and foreign.rx_no not in seen,
            point="sut",
            en="a watch shows the caller's own and nothing of another's",
            zh="订阅仅应显示本机构的事件",
            actual=sorted(seen & {own.rx_no, foreign.rx_no}),
            where=party.name,
        )
        cursors[party.name] = messages[0].cursor if messages else ""
    borrowed = prescribing_pb2.WatchPrescriptionsRequest(cursor=cursors["hospital"])
    messages, ended = await run.hospital_b.raw.stream("Prescribing/WatchPrescriptions", borrowed, count=1, timeout_s=2)
    run.checks.that(
        all(message.rx_no != first.rx_no for message in messages),
        point="sut",
        en="somebody else's cursor opens nothing of his",
        zh="他人的游标不得打开其事件",
        actual=([message.rx_no for message in messages], ended.code if ended else ""),
    )
    await run.chain(first.rx_no, events={"dispense.outbound": 1})
