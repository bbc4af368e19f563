"""kill -9 of one of three hubs under load: the others go on, and what it was asked is answered by them."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from erxhub.core import index
from erxhub.ledger.postgres import open_postgres
from erxhub.placement import AreaPlacement
from tests.chain import Chain
from tests.live import HOSPITAL
from tests.postgres import PostgresServer
from tests.races.ground import Book, assert_each_once, reply_bytes
from tests.races.loads import issue, prescribe, until_broken
from tests.several.ground import new_ledger
from tests.several.processes import SeveralOutside, start_several

pytestmark = [pytest.mark.campaign]

Rounds = Callable[[int, int], int]

HUBS = 3


@pytest.fixture
def url(postgres_server: PostgresServer) -> str:
    return new_ledger(postgres_server)


@pytest_asyncio.fixture
async def several(tmp_path: Path, url: str) -> AsyncIterator[SeveralOutside]:
    running = await start_several(tmp_path, url, HUBS)
    try:
        yield running
    finally:
        await running.close()


async def test_a_killed_hub_is_replaced_by_the_others_and_nothing_is_lost(
    several: SeveralOutside, url: str, rounds: Rounds
) -> None:
    chance = random.Random(11)
    every = Book()
    unanswered = 0
    for _ in range(rounds(5, 50)):
        victim = chance.randrange(HUBS)
        books = [Book() for _ in range(HUBS)]
        tasks: list[list[asyncio.Task[Any]]] = []
        for hub, book in enumerate(books):
            live = several[hub]
            for client in (await live.hospital(), await live.channel()):
                book.keep(client)
            encounters = [(await Chain(live).diagnosed()).encounter_id for _ in range(2)]
            works = [prescribe(live, encounter) for encounter in encounters] + [issue(live) for _ in range(2)]
            tasks.append([asyncio.create_task(until_broken(work)) for work in works])
        await asyncio.gather(*(book.reach(book.replies + chance.randrange(15, 50)) for book in books))
        several[victim].process.kill()
        await asyncio.wait(tasks[victim])
        # Also when it gave the log's positions: the others take over and go on.
        survivors = [hub for hub in range(HUBS) if hub != victim]
        going_on = asyncio.gather(*(books[hub].reach(books[hub].replies + 15) for hub in survivors))
        at_work = [task for hub in survivors for task in tasks[hub]]
        async with asyncio.timeout(30):
            await asyncio.wait([going_on, *at_work], return_when=asyncio.FIRST_COMPLETED)
        assert not any(task.done() for task in at_work)
        await going_on
        for hub in survivors:
            for task in tasks[hub]:
                task.cancel()
        await asyncio.gather(*itertools.chain(*tasks), return_exceptions=True)
        for hub, book in enumerate(books):
            assert len(book.answered) >= 15
            unanswered += len(book.unanswered)
            # Through another hub, while the one that was asked first is gone.
            other = several[next(each for each in survivors if each != hub)]
            for note in book.sent.values():
                client = await other.client(note.client.connection.peer_name.role, note.client.connection.peer_name.id)
                reply = await reply_bytes(client, note.request)
                assert note.reply in (b"", reply), f"{type(note.request).__name__} got another reply"
                note.reply = reply
            every.sent |= book.sent
        await several[victim].started_again()
        for hub in survivors:
            await several[hub].close()  # so that the next round's books begin with fresh clients
    assert unanswered
    assert (await (await several[0].auditor()).verify_ledger()).verified
    store = await open_postgres(url, placement=AreaPlacement(), readers=1, gives_positions=False)
    try:
        await assert_each_once(store, every)
        rows = await store.listing(index.FEED, HOSPITAL.encode(), 0, 100_000)
        assert len({(row.stream_key, row.version) for row in rows}) == len(rows)
    finally:
        await store.close()
