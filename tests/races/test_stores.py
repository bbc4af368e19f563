"""A store that fails, and a store that several hubs write: no answer rests on what was not written."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from erxhub.client import Refusal
from erxhub.ledger.memory import MemoryStore
from erxhub.ledger.store import AppendResult, Loaded, StoreUnavailable, Wanted, Write
from erxhub.v1 import common_pb2
from tests.chain import CONSULT, DOWNLOAD, Chain
from tests.live import PERSON, PHARMACY, PHARMACY_B, Live, live_hub
from tests.races.commands import first_request
from tests.races.ground import Book, GatedStore, Sent, assert_each_once, reply_bytes, turns

pytestmark = pytest.mark.campaign

Rounds = Callable[[int, int], int]


class _FailingStore(GatedStore):
    """Fails the writes that a test names: before they happen, or after, when nobody is told that they did."""

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__(inner)
        self.failing = ""

    async def append(self, batch: Sequence[Write]) -> AppendResult:
        if self.failing == "before":
            raise StoreUnavailable("the disk is full")
        result = await super().append(batch)
        if self.failing == "after":
            raise StoreUnavailable("the disk did not answer")
        return result


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["issue", "upload", "download", "settle"])
async def test_failed_commit_answers_unavailable_and_the_same_request_finds_out(when: str, kind: str) -> None:
    store = _FailingStore(MemoryStore())
    async with live_hub(store=store) as live:
        client, request = await first_request(live, kind)
        store.failing = when
        answers = await asyncio.gather(*(reply_bytes(client, request) for _ in range(5)), return_exceptions=True)
        assert {answer.code for answer in answers if isinstance(answer, Refusal)} == {"HUB_UNAVAILABLE"}
        assert len(answers) == 5
        store.failing = ""
        reply = await reply_bytes(client, request)
        assert await reply_bytes(client, request) == reply
        await assert_each_once(store, Book({request.request_id: Sent(client, request, reply)}))
        assert (await (await live.auditor()).verify_ledger()).verified


class _DistantStore(GatedStore):
    """A store to which every way takes a while, so that two hubs meet on it."""

    def __init__(self, inner: MemoryStore, chance: random.Random) -> None:
        super().__init__(inner)
        self.chance = chance
        self.conflicts = 0

    async def load(self, wanted: Wanted) -> Loaded:
        loaded: Loaded = await self._inner.load(wanted)
        await turns(self.chance.randrange(4))
        return loaded

    async def append(self, batch: Sequence[Write]) -> AppendResult:
        await turns(self.chance.randrange(4))
        result = await super().append(batch)
        self.conflicts += len(result.conflicts)
        return result


@asynccontextmanager
async def _two_hubs() -> AsyncIterator[tuple[Live, Live, _DistantStore]]:
    """Two hubs on one ledger, each seen by clients of its own."""
    store = _DistantStore(MemoryStore(), random.Random(10))
    async with live_hub(store=store) as live:
        second = dataclasses.replace(live, hub=await live.start(store, "127.0.0.1:0"), _clients={})
        second.world = live.world
        try:
            yield live, second, store
        finally:
            for client in second._clients.values():
                await client.connection.close()
            await second.hub.stop()


async def test_two_hubs_on_one_ledger_let_one_pharmacy_hold(rounds: Rounds) -> None:
    async with _two_hubs() as (live, second, store):
        for _ in range(rounds(20, 200)):
            chains = [await Chain(live).uploaded()]
            chains.append(Chain(second, pharmacy_code=PHARMACY_B, rx_no=chains[0].rx_no))
            for chain in chains:
                await chain.listed()
            clients = [await live.pharmacy(PHARMACY), await second.pharmacy(PHARMACY_B)]
            answers = await asyncio.gather(
                *(
                    client.download(authorization_no=chain.authorization_no)
                    for client, chain in zip(clients, chains, strict=True)
                ),
                return_exceptions=True,
            )
            refused = [answer for answer in answers if isinstance(answer, BaseException)]
            assert len(refused) == 1
            assert isinstance(refused[0], Refusal)
            assert refused[0].code == "ORDER_ALREADY_HELD"
            seen = await (await second.hospital()).get(rx_no=chains[0].rx_no)
            assert [order.status for order in seen.orders].count(common_pb2.ORDER_STATUS_HELD) == 1
        assert store.conflicts
        assert (await (await live.auditor()).verify_ledger()).verified


async def test_two_hubs_answer_one_request_with_one_reply(rounds: Rounds) -> None:
    async with _two_hubs() as (live, second, store):
        kinds = ["issue", "upload", "download", "settle", "list", "dispense"]
        for number in range(rounds(12, 120)):
            client, request = await first_request(live, kinds[number % len(kinds)])
            name = client.connection.peer_name
            other: Any = await second.client(name.role, name.id)
            replies = await asyncio.gather(
                *(reply_bytes(client if place % 2 else other, request) for place in range(10))
            )
            assert len(set(replies)) == 1
            await assert_each_once(store, Book({request.request_id: Sent(client, request, replies[0])}))
        assert store.conflicts


async def test_code_shown_at_two_hubs_is_verified_once(rounds: Rounds) -> None:
    async with _two_hubs() as (live, second, _):
        channel = await live.channel()
        for number in range(rounds(10, 100)):
            business = (DOWNLOAD, CONSULT)[number % 2]
            issued = await channel.issue_voucher(person_no=PERSON, business_type=business)
            answers = await asyncio.gather(
                *(
                    pharmacy.verify_voucher(voucher_code=issued.voucher_code, business_type=business)
                    for pharmacy in (await live.pharmacy(PHARMACY), await second.pharmacy(PHARMACY_B))
                ),
                return_exceptions=True,
            )
            refused = [answer for answer in answers if isinstance(answer, Refusal)]
            assert [refusal.code for refusal in refused] == ["VCH_REPLAYED"]
