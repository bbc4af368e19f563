"""The watches: nothing missed, nothing twice, from a cursor, from the beginning and from now on."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from erxhub.config import Config
from erxhub.core.model import Caller, Refused
from erxhub.ports import give_way
from erxhub.queries import STREAMS
from erxhub.queries.base import Messages
from erxhub.v1 import common_pb2, dispensing_pb2, prescribing_pb2
from tests.core import population as people
from tests.core.population import HOSPITAL, OTHER_HOSPITAL, PHARMACY
from tests.queries.hub import Hub, download, prescription

RX = "PrescribingService/WatchPrescriptions"
ORDERS = "DispensingService/WatchOrders"
UPLOADED = [
    "prescription.hospital_reviewed",
    "prescription.signed",
    "prescription.uploaded",
    "prescription.effective",
]


def from_start(cursor: str = "") -> prescribing_pb2.WatchPrescriptionsRequest:
    return prescribing_pb2.WatchPrescriptionsRequest(cursor=cursor, from_start=not cursor)


async def take(messages: Messages, count: int) -> list[Any]:
    return [await asyncio.wait_for(anext(messages), 10) for _ in range(count)]


def told(hub: Hub, caller: Caller, method: str, request: Any, count: int) -> list[Any]:
    """The first messages of a watch, which is closed then."""

    async def watch() -> list[Any]:
        opened = await hub.open(caller, method, request)
        taken = await take(opened.messages, count)
        await opened.messages.aclose()
        return taken

    return hub.run(watch())


def test_a_hospital_is_told_each_step_with_its_events_and_the_statuses_after_it(hub: Hub) -> None:
    rx_no = prescription(hub).rx_no
    download(hub, rx_no)
    prechecked, uploaded, listed, held = told(hub, HOSPITAL, RX, from_start(), 4)
    assert {step.rx_no for step in (prechecked, uploaded, listed, held)} == {rx_no}
    assert list(prechecked.events) == ["prescription.prechecked"]
    assert list(uploaded.events) == UPLOADED
    assert "authorization.issued" in listed.events
    assert "order.held" in held.events
    assert [step.statuses.rx for step in (prechecked, uploaded)] == [
        common_pb2.RX_STATUS_PRECHECKED,
        common_pb2.RX_STATUS_EFFECTIVE,
    ]
    assert [step.statuses.use for step in (uploaded, listed, held)] == [
        common_pb2.RX_USE_STATUS_UNUSED,
        common_pb2.RX_USE_STATUS_UNUSED,
        common_pb2.RX_USE_STATUS_HELD,
    ]
    assert prechecked.version == 1
    assert uploaded.version == 5
    assert held.recorded_at_ms == hub.now_ms


def test_a_pharmacy_is_told_of_its_order_and_hold(hub: Hub) -> None:
    rx_no = prescription(hub).rx_no
    download(hub, rx_no)
    (held,) = told(hub, PHARMACY, ORDERS, dispensing_pb2.WatchOrdersRequest(from_start=True), 1)
    assert isinstance(held, dispensing_pb2.WatchOrdersResponse)
    assert (held.rx_no, held.order) == (rx_no, common_pb2.ORDER_STATUS_HELD)
    assert held.hold_until_ms > hub.now_ms


def test_a_step_of_a_timer_is_told_too(hub: Hub) -> None:
    rx_no = prescription(hub).rx_no
    download(hub, rx_no)
    cursor = told(hub, PHARMACY, ORDERS, dispensing_pb2.WatchOrdersRequest(from_start=True), 1)[0].cursor
    hub.advance(2 * 3_600_000 + 1)
    hub.run(hub.engine.sweep())
    (ended,) = told(hub, PHARMACY, ORDERS, dispensing_pb2.WatchOrdersRequest(cursor=cursor), 1)
    assert (list(ended.events), ended.order) == (["order.expired"], common_pb2.ORDER_STATUS_TIMED_OUT)


def test_a_watch_goes_on_exactly_after_every_cursor(hub: Hub) -> None:
    rx_no = [prescription(hub, number).rx_no for number in (1, 2)][1]
    download(hub, rx_no)
    whole = told(hub, HOSPITAL, RX, from_start(), 7)
    assert len({step.cursor for step in whole}) == len(whole)
    for place, step in enumerate(whole[:-1]):
        assert told(hub, HOSPITAL, RX, from_start(step.cursor), len(whole) - place - 1) == whole[place + 1 :]


def test_small_pages_tell_the_same_as_large_ones(hub: Hub) -> None:
    prescription(hub, 1)
    download(hub, prescription(hub, 2).rx_no)
    large = told(hub, HOSPITAL, RX, from_start(), 7)
    hub.ctx = replace(hub.ctx, config=Config(watch_page=1))
    assert told(hub, HOSPITAL, RX, from_start(), 7) == large


def test_a_watch_from_now_on_waits_for_the_next_step(hub: Hub) -> None:
    prescription(hub, 1)

    async def watch() -> list[Any]:
        opened = await hub.open(HOSPITAL, RX, prescribing_pb2.WatchPrescriptionsRequest())
        # Committed after the opening and before the first message is asked for: not missed.
        await hub.submit(HOSPITAL, "PrescribingService/RevokePrescription", revoke(first))
        early = await take(opened.messages, 1)
        waiting = asyncio.create_task(anext(opened.messages))
        await give_way()
        assert not waiting.done()
        await hub.submit(HOSPITAL, "PrescribingService/RevokePrescription", revoke(second))
        late = [await asyncio.wait_for(waiting, 10)]
        await opened.messages.aclose()
        return early + late

    first, second = (prescription(hub, number).rx_no for number in (2, 3))
    steps = hub.run(watch())
    assert [(step.rx_no, list(step.events)) for step in steps] == [
        (first, ["prescription.undone"]),
        (second, ["prescription.undone"]),
    ]


def revoke(rx_no: str) -> prescribing_pb2.RevokePrescriptionRequest:
    return prescribing_pb2.RevokePrescriptionRequest(rx_no=rx_no, doctor_code=people.DOCTOR_CODE, reason="用药调整")


def test_many_steps_while_a_watch_runs_come_once_each_and_in_order(hub: Hub) -> None:
    numbers = [prescription(hub, number).rx_no for number in range(1, 9)]

    async def watch() -> list[Any]:
        opened = await hub.open(HOSPITAL, RX, prescribing_pb2.WatchPrescriptionsRequest())
        reading = asyncio.create_task(take(opened.messages, len(numbers)))
        for rx_no in numbers:
            await hub.submit(HOSPITAL, "PrescribingService/RevokePrescription", revoke(rx_no))
        steps = await reading
        await opened.messages.aclose()
        return steps

    assert [step.rx_no for step in hub.run(watch())] == numbers


def test_another_hospital_is_told_nothing(hub: Hub) -> None:
    prescription(hub)

    async def watch() -> bool:
        opened = await hub.open(OTHER_HOSPITAL, RX, from_start())
        waiting = asyncio.create_task(anext(opened.messages))
        for _ in range(3):
            await give_way()
        idle = not waiting.done()
        waiting.cancel()
        return idle

    assert hub.run(watch())


def test_a_closed_watch_leaves_no_subscription(hub: Hub) -> None:
    prescription(hub)
    told(hub, HOSPITAL, RX, from_start(), 1)
    assert hub.engine.watches._watching == {}


def test_a_watch_ends_when_the_lane_stops(hub: Hub) -> None:
    async def watch() -> Any:
        opened = await hub.open(HOSPITAL, RX, prescribing_pb2.WatchPrescriptionsRequest())
        waiting = asyncio.create_task(anext(opened.messages))
        await give_way()
        await hub.engine.stop()
        return await asyncio.wait_for(waiting, 10)

    assert hub.run(watch()) == Refused("HUB_UNAVAILABLE")


@pytest.mark.parametrize("caller", [OTHER_HOSPITAL, HOSPITAL])
def test_a_cursor_of_another_caller_or_of_nobody_is_refused(hub: Hub, caller: Caller) -> None:
    prescription(hub)
    cursor = told(hub, HOSPITAL, RX, from_start(), 1)[0].cursor
    if caller is HOSPITAL:
        cursor = cursor[:-4] + "AAAA"
    refused = hub.run(STREAMS[RX](hub.ctx, caller, from_start(cursor)))
    assert isinstance(refused, Refused)
    assert (refused.code, refused.field) == ("PAGE_TOKEN_INVALID", "cursor")
