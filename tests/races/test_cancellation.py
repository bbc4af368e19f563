"""A caller that goes away: its command is done whole or not at all, and the same request finds out which."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
import pytest_asyncio

from erxhub.client import CallFailed
from erxhub.client.base import UNARY_PATHS
from erxhub.ledger.memory import MemoryStore
from tests.live import Live, live_hub
from tests.races.commands import first_request
from tests.races.ground import (
    Book,
    GatedStore,
    Sent,
    assert_each_once,
    events_by_request,
    reply_bytes,
    turns,
    whole_log,
)

pytestmark = [pytest.mark.campaign, pytest.mark.asyncio(loop_scope="module")]

Rounds = Callable[[int, int], int]

KINDS = ["issue", "precheck", "upload", "download", "settle", "dispense"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live() -> AsyncIterator[Live]:
    async with live_hub(store=GatedStore(MemoryStore())) as running:
        yield running


def _call(client: Any, request: Any, timeout_s: float | None = None) -> Any:
    """The bare call, so that a test can cancel it like a client that goes away."""
    path, reply_class = UNARY_PATHS[type(request)]
    method = client.connection.channel.unary_unary(
        path, request_serializer=type(request).SerializeToString, response_deserializer=reply_class.FromString
    )
    return method(request, timeout=timeout_s)


async def _whole_or_nothing(live: Live, client: Any, request: Any) -> None:
    """The same request again is answered, and all attempts together left what its receipt says."""
    reply = await reply_bytes(client, request)
    assert await reply_bytes(client, request) == reply
    await assert_each_once(live.hub.store, Book({request.request_id: Sent(client, request, reply)}))


@pytest.mark.parametrize("kind", KINDS)
async def test_call_cancelled_during_its_commit_is_committed_whole(live: Live, kind: str) -> None:
    client, request = await first_request(live, kind)
    store: Any = live.hub.store
    with store.shut():
        call = _call(client, request)
        await store.arrived.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await turns(50)
    await live.hub.engine.sweep()
    # Something behind it in the queue, so that its commit is over.
    await first_request(live, "verify")
    assert events_by_request(await whole_log(store))[request.request_id]
    await _whole_or_nothing(live, client, request)


@pytest.mark.parametrize("kind", KINDS)
async def test_deadline_that_passes_during_the_commit_leaves_a_whole_command(live: Live, kind: str) -> None:
    client, request = await first_request(live, kind)
    store: Any = live.hub.store
    with store.shut():
        with pytest.raises(CallFailed) as failed:
            await reply_bytes(client, request, timeout_s=0.05)
        assert failed.value.code == "DEADLINE_EXCEEDED"
    await _whole_or_nothing(live, client, request)


async def test_deadline_of_a_millisecond_never_leaves_half_a_command(live: Live, rounds: Rounds) -> None:
    for number in range(rounds(12, 120)):
        client, request = await first_request(live, KINDS[number % len(KINDS)])
        call = _call(client, request, timeout_s=0.001)
        assert await call.code() in {grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED}
        await _whole_or_nothing(live, client, request)


async def test_call_cancelled_at_any_moment_never_leaves_half_a_command(live: Live, rounds: Rounds) -> None:
    chance = random.Random(6)
    for number in range(rounds(24, 240)):
        client, request = await first_request(live, KINDS[number % len(KINDS)])
        call = _call(client, request)
        await turns(chance.randrange(40))
        call.cancel()
        assert await call.code() in {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED}
        await _whole_or_nothing(live, client, request)


async def test_lane_goes_on_after_its_callers_went_away(live: Live) -> None:
    calls = [_call(*(await first_request(live, "issue"))) for _ in range(40)]
    for call in calls:
        call.cancel()
    client, request = await first_request(live, "issue")
    await _whole_or_nothing(live, client, request)
    assert live.hub.engine.queue_depth == 0
    assert (await (await live.auditor()).verify_ledger()).verified
