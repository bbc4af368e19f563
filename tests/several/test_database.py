"""PostgreSQL stops and comes back under load: hubs say so, and go on by themselves."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from erxhub.client import CallFailed, Refusal
from tests.chain import CONSULT
from tests.live import CHANNEL, PERSON, Live
from tests.postgres import start_server, stop_server
from tests.races.ground import Book, assert_each_once, reply_bytes
from tests.several.ground import new_ledger, several_hubs

pytestmark = [pytest.mark.campaign]

Rounds = Callable[[int, int], int]

HUBS = 2
_BACK_S = 20.0


async def _issue(channel: Any) -> Any:
    return await channel.issue_voucher(person_no=PERSON, business_type=CONSULT)


async def _until_taken(channel: Any) -> None:
    """Ask until the hub takes a command again; every "no" on the way says that it is retriable."""
    async with asyncio.timeout(_BACK_S):
        while (refusal := await _refused(channel)) is not None:
            assert (refusal.code, refusal.retriable) == ("HUB_UNAVAILABLE", True)
            assert refusal.retry_after_ms
            await asyncio.sleep(0)


async def _refused(channel: Any) -> Refusal | None:
    try:
        await _issue(channel)
    except Refusal as refusal:
        return refusal
    return None


async def _health(live: Live) -> int:
    issued = live.identity("channel", CHANNEL)
    credentials = grpc.ssl_channel_credentials(issued.ca_pem, issued.key_pem, issued.cert_pem)
    async with grpc.aio.secure_channel(live.target, credentials) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        reply = await stub.Check(health_pb2.HealthCheckRequest())
        return int(reply.status)


async def test_hubs_outlive_their_database(rounds: Rounds) -> None:
    server = start_server()
    try:
        async with several_hubs([new_ledger(server)] * HUBS) as several:
            channels = [await several[hub].connect("channel", CHANNEL, attempts=1) for hub in range(HUBS)]
            book = Book()
            for channel in channels:
                book.keep(channel)
            for number in range(rounds(2, 15)):
                loads = [asyncio.create_task(_load(channel)) for channel in channels for _ in range(3)]
                await book.reach(book.replies + 20)
                # In order, and as a crash.
                await asyncio.to_thread(server.stop, (signal.SIGINT, signal.SIGQUIT)[number % 2])
                for failure in await asyncio.gather(*loads):
                    assert isinstance(failure, Refusal), repr(failure)
                    assert (failure.code, failure.grpc_status) == ("HUB_UNAVAILABLE", "UNAVAILABLE")
                    assert failure.retriable
                for hub in range(HUBS):
                    assert await _health(several[hub]) == health_pb2.HealthCheckResponse.NOT_SERVING
                await asyncio.to_thread(server.start)
                await asyncio.gather(*(_until_taken(channel) for channel in channels))
                for hub in range(HUBS):
                    assert await _health(several[hub]) == health_pb2.HealthCheckResponse.SERVING
            assert (await (await several[0].auditor()).verify_ledger()).verified
            # What was answered is there; what was not is whole or absent, and its caller finds out with the same id.
            other = await several[1].channel()
            for note in book.sent.values():
                reply = await reply_bytes(other, note.request)
                assert note.reply in (b"", reply)
                note.reply = reply
            await assert_each_once(several.stores[0], book)
    finally:
        stop_server(server)


async def _load(channel: Any) -> Any:
    while True:
        try:
            await _issue(channel)
        except (Refusal, CallFailed) as failure:
            return failure
