"""kill -9 and SIGTERM of a hub under load: what was acknowledged is there once, and what was not is whole or absent."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from erxhub.client import CallFailed, HubUnreachable, Refusal
from erxhub.ledger.sqlite import open_sqlite
from tests.chain import Chain
from tests.races.ground import Book, assert_each_once, reply_bytes
from tests.races.loads import issue, prescribe, until_broken
from tests.races.processes import Outside, seeded_outside

pytestmark = [pytest.mark.campaign]

Rounds = Callable[[int, int], int]


@pytest_asyncio.fixture
async def outside(tmp_path: Path) -> AsyncIterator[Outside]:
    async with seeded_outside(tmp_path) as there:
        yield there


async def _load_until(outside: Outside, book: Book, acknowledged: int, strike: Callable[[], None]) -> list[Any]:
    """Load the hub, strike when so many more commands were acknowledged, and return how each worker ended."""
    for client in (await outside.hospital(), await outside.channel()):
        book.keep(client)
    chains = [await Chain(outside).diagnosed() for _ in range(6)]
    goal = book.replies + acknowledged
    works = [prescribe(outside, chain.encounter_id) for chain in chains] + [issue(outside) for _ in range(6)]
    tasks = [asyncio.create_task(until_broken(work)) for work in works]
    reaching = asyncio.create_task(book.reach(goal))
    await asyncio.wait([reaching, *tasks], return_when=asyncio.FIRST_COMPLETED)
    reaching.cancel()
    strike()
    return await asyncio.gather(*tasks)


async def _assert_first_replies(outside: Outside, book: Book) -> None:
    """Every command again: the answered ones get their first reply, the others get theirs now."""
    clients = {"hospital": await outside.hospital(), "channel": await outside.channel()}
    for note in book.sent.values():
        client = clients[note.client.connection.peer_name.role]
        reply = await reply_bytes(client, note.request)
        assert note.reply in (b"", reply), f"{type(note.request).__name__} got another reply"
        note.reply = reply
        assert await reply_bytes(client, note.request) == reply


async def test_killed_hub_keeps_what_it_acknowledged_and_nothing_twice(outside: Outside, rounds: Rounds) -> None:
    chance = random.Random(7)
    every = Book()
    in_flight = 0
    for _ in range(rounds(5, 50)):
        book = Book()
        await _load_until(outside, book, chance.randrange(30, 120), outside.process.kill)
        answered, in_flight = len(book.answered), in_flight + len(book.unanswered)
        assert answered >= 30
        process = await outside.started_again()
        # The start itself verified the newest entries, those of the load among them.
        assert process.said["verified_entries"] >= min(2_000, answered)
        await _assert_first_replies(outside, book)
        verified = await (await outside.auditor()).verify_ledger()
        assert verified.verified
        every.sent |= book.sent
    assert in_flight
    outside.process.ask_to_end()
    assert outside.process.wait() == 0
    log = (outside.folder / "stderr.log").read_text()
    assert "entries verified" in log
    assert '"ERROR"' not in log
    store = await open_sqlite(outside.folder / "ledger.db")
    try:
        await assert_each_once(store, every)
    finally:
        await store.close()


async def test_sigterm_answers_what_is_in_flight_and_loses_nothing(outside: Outside, rounds: Rounds) -> None:
    chance = random.Random(8)
    for _ in range(rounds(2, 20)):
        book = Book()
        ends = await _load_until(outside, book, chance.randrange(30, 120), outside.process.ask_to_end)
        for failure in ends:
            assert isinstance(failure, CallFailed | Refusal)
            assert failure.grpc_status == "UNAVAILABLE", repr(failure)
            assert isinstance(failure, HubUnreachable) or failure.code == "HUB_UNAVAILABLE"
        assert outside.process.wait() == 0
        await outside.close()
        store = await open_sqlite(outside.folder / "ledger.db")
        try:
            # Not one command was done without its answer: what ended in UNAVAILABLE left nothing.
            await assert_each_once(store, book)
        finally:
            await store.close()
        await outside.started_again()
        await _assert_first_replies(outside, book)
