"""wait_for: a reply that waits for the log, and says how far it came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from erxhub.config import Config
from erxhub.ledger.memory import MemoryStore
from erxhub.ledger.store import StoreUnavailable, Write
from erxhub.ports import system_pause
from erxhub.publishing import NotWitnessed
from erxhub.rpc.methods import COMMAND, METHODS
from erxhub.rpc.waiting import Waiting
from erxhub.v1 import common_pb2, prescribing_pb2, registry_pb2
from tests.chain import Chain
from tests.hub.test_bulk import BULK, Stream, message, ready, unary
from tests.ledger.contract import append_all, next_entry
from tests.live import Live, live_hub
from tests.postgres import PostgresServer
from tests.races.ground import until_so
from tests.several.ground import new_ledger, several_hubs

DURABLE, INTEGRATED, WITNESSED = (
    common_pb2.WAIT_FOR_DURABLE,
    common_pb2.WAIT_FOR_INTEGRATED,
    common_pb2.WAIT_FOR_WITNESSED,
)


async def ended(_: int) -> Any:
    return object()


async def never(_: int) -> Any:
    await asyncio.Event().wait()


async def unwitnessed(_: int) -> Any:
    raise NotWitnessed("no witnesses")


async def halted(_: int) -> Any:
    raise StoreUnavailable("publishing has ended")


def pause_after(limit_ms: int) -> Callable[[int], Awaitable[None]]:
    """Time that is over at once when it is no longer than this."""

    async def pause(duration_ms: int) -> None:
        if duration_ms > limit_ms:
            await asyncio.Event().wait()

    return pause


async def hurried(duration_ms: int) -> None:
    """A hub's time, in which what is left of a call's 40 seconds is over at once."""
    if not 25_000 < duration_ms < 40_000:  # the hub's own pauses are shorter or longer
        await system_pause(duration_ms)


Level = Callable[[int], Awaitable[Any]]


@pytest.mark.parametrize(
    ("integrated", "witnessed", "level", "reached"),
    [
        (ended, ended, INTEGRATED, INTEGRATED),
        (ended, ended, WITNESSED, WITNESSED),
        (ended, unwitnessed, WITNESSED, INTEGRATED),
        (ended, halted, WITNESSED, INTEGRATED),
        (halted, ended, WITNESSED, DURABLE),
        (never, ended, INTEGRATED, DURABLE),
        (ended, never, WITNESSED, INTEGRATED),
    ],
)
async def test_a_reply_says_what_was_reached_200_ms_before_its_deadline(
    integrated: Level, witnessed: Level, level: int, reached: int
) -> None:
    store, entry = MemoryStore(), next_entry("a")
    await append_all(store, [Write(entries=(entry,))])
    receipt = common_pb2.Receipt()
    receipt.entries.add(stream_key=entry.header.stream_key, version=1, leaf_hash=entry.leaf_hash)
    # A deadline in 1,200 ms leaves 1,000: the clock of this test lets that much pass, and no more.
    waiting = Waiting(integrated, witnessed, store, pause_after(1_000))
    assert await waiting.wait(level, receipt, 1.2) == reached


async def test_a_command_that_wrote_nothing_has_nothing_to_wait_for() -> None:
    waiting = Waiting(never, never, MemoryStore(), pause_after(0))
    assert await waiting.wait(WITNESSED, common_pb2.Receipt(), None) == DURABLE


async def reached_by(live: Live, **options: Any) -> tuple[registry_pb2.FreezePrescriptionResponse, list[str]]:
    """The reply to a freeze, and what the client heard of its waiting."""
    chain = await Chain(live).uploaded()
    agency = await live.agency()
    heard: list[str] = []
    agency.connection.on_reached = lambda request, reached: heard.append(reached)
    reply = await agency.freeze_prescription(rx_no=chain.rx_no, case_no="CASE-1", **options)
    return reply, heard


async def test_a_reply_that_waits_for_a_checkpoint_comes_when_one_covers_its_entries() -> None:
    async with live_hub(config=Config(drain_ms=200, drain_quiet_ms=0, checkpoint_interval_ms=20)) as live:
        reply, heard = await reached_by(live, wait_for=INTEGRATED)
        assert heard == ["INTEGRATED"]
        last = reply.receipt.entries[-1]
        (entry,) = await live.hub.store.entries(last.stream_key, last.version - 1, 1)
        newest = live.hub.core.publisher.newest
        assert newest is not None
        assert newest.covered_position >= entry.position


async def test_a_hub_without_witnesses_answers_and_says_that_it_only_integrated() -> None:
    async with live_hub(config=Config(drain_ms=200, drain_quiet_ms=0, checkpoint_interval_ms=20)) as live:
        assert (await reached_by(live, wait_for=WITNESSED))[1] == ["INTEGRATED"]


async def test_a_deadline_that_is_near_brings_the_reply_all_the_same() -> None:
    config = Config(drain_ms=200, drain_quiet_ms=0, checkpoint_interval_ms=3_600_000)
    async with live_hub(config=config, pause=hurried) as live:
        assert (await reached_by(live, wait_for=INTEGRATED, timeout_s=40))[1] == ["DURABLE"]


async def test_waiting_is_no_part_of_the_request_and_changes_no_byte_of_the_reply() -> None:
    async with live_hub(config=Config(drain_ms=200, drain_quiet_ms=0, checkpoint_interval_ms=20)) as live:
        chain = await Chain(live).uploaded()
        agency = await live.agency()
        call = {"rx_no": chain.rx_no, "case_no": "CASE-1", "request_id": "freeze-once-1"}
        first = await agency.freeze_prescription(**call)
        again = await agency.freeze_prescription(**call, wait_for=INTEGRATED)
        assert again.SerializeToString(deterministic=True) == first.SerializeToString(deterministic=True)


async def test_an_item_of_a_bulk_upload_waits_like_a_call_and_its_result_says_what_it_reached() -> None:
    async with live_hub(config=Config(drain_ms=200, drain_quiet_ms=0, checkpoint_interval_ms=20)) as live:
        hospital, uploads = await live.hospital(), await ready(live, 3)
        uploads[1].wait_for = INTEGRATED
        stream = Stream(hospital)
        await stream.send(*uploads)
        results = await stream.finish()
        unspecified = common_pb2.WAIT_FOR_UNSPECIFIED
        assert [result.reached for result in results] == [unspecified, INTEGRATED, unspecified]
        newest = live.hub.core.publisher.newest
        last = results[1].accepted.receipt.entries[-1]
        (entry,) = await live.hub.store.entries(last.stream_key, last.version - 1, 1)
        assert newest is not None
        assert newest.covered_position >= entry.position
        assert results[1].accepted.SerializeToString() == await unary(hospital, uploads[1])
        assert live.hub.engine.under_way == 0


async def test_a_bulk_stream_takes_the_default_of_its_connection_and_tells_what_was_reached() -> None:
    async with live_hub(config=Config(drain_ms=200, drain_quiet_ms=0, checkpoint_interval_ms=20)) as live:
        hospital, uploads = await live.hospital(), await ready(live, 2)
        heard: list[tuple[str, str]] = []
        hospital.connection.wait_for = WITNESSED
        hospital.connection.on_reached = lambda request, reached: heard.append((request.request_id, reached))

        async def source() -> AsyncIterator[prescribing_pb2.UploadPrescriptionRequest]:
            for upload in uploads:
                yield upload

        outcomes = [outcome async for _, outcome in hospital.upload_many(source())]
        assert all(isinstance(outcome, prescribing_pb2.UploadPrescriptionResponse) for outcome in outcomes)
        assert heard == [(upload.request_id, "INTEGRATED") for upload in uploads]


async def test_items_that_wait_do_not_hold_up_the_lane_and_a_near_deadline_of_the_stream_ends_their_wait() -> None:
    config = Config(drain_ms=200, drain_quiet_ms=0, checkpoint_interval_ms=3_600_000)
    async with live_hub(config=config, pause=hurried) as live:
        hospital, uploads = await live.hospital(), await ready(live, 2)
        for upload in uploads:
            upload.wait_for = INTEGRATED
        call = hospital.connection.channel.stream_stream(BULK)(timeout=40)
        await call.write(message(*uploads))
        position = await live.hub.store.last_position()
        await until_so(lambda: live.hub.engine.under_way == 0)
        # They are written and wait.
        assert await live.hub.store.last_position() >= position
        raw = await call.read()
        results = prescribing_pb2.UploadPrescriptionsResponse.FromString(raw).results
        assert [result.reached for result in results] == [DURABLE, DURABLE]
        call.cancel()


async def test_a_hub_that_does_not_integrate_answers_when_the_other_one_has(postgres_server: PostgresServer) -> None:
    """Of several hubs one holds the lease of the log; a reply of the others waits for its checkpoints."""
    async with several_hubs([new_ledger(postgres_server)] * 2) as several:
        chain = await Chain(several[0]).uploaded()
        integrating = [store.integrates for store in several.stores]
        assert sorted(integrating) == [False, True]
        other = several[integrating.index(False)]
        heard: list[str] = []
        agency = await other.agency()
        agency.connection.on_reached = lambda request, reached: heard.append(reached)
        reply = await agency.freeze_prescription(rx_no=chain.rx_no, case_no="CASE-1", wait_for=INTEGRATED, timeout_s=20)
        assert heard == ["INTEGRATED"]
        last = reply.receipt.entries[-1]
        store = several.stores[integrating.index(True)]
        (entry,) = await store.entries(last.stream_key, last.version - 1, 1)
        newest = await store.checkpoint()
        assert newest is not None
        assert newest.covered_position >= entry.position
        assert [one.integrates for one in several.stores] == integrating


def test_every_command_can_wait() -> None:
    for method in METHODS.values():
        if method.effect == COMMAND and not method.streams_in:
            assert method.request.DESCRIPTOR.fields_by_name["wait_for"].number == 2, method.name
    assert registry_pb2.CatalogHeader.DESCRIPTOR.fields_by_name["wait_for"].number == 2
