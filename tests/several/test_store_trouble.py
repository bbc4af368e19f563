"""A store in trouble: a disk that takes no more, a statement that takes too long. A clean no, then recovery."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from erxhub.client import Refusal
from erxhub.ledger import postgres_session
from erxhub.ledger.sqlite import open_sqlite
from tests.chain import CONSULT
from tests.live import CHANNEL, PERSON
from tests.postgres import PostgresServer
from tests.races.ground import Book, assert_each_once, reply_bytes
from tests.races.processes import Outside, seeded_outside
from tests.several.ground import new_ledger, several_hubs

_UNLIMITED = resource.RLIM_INFINITY


@pytest_asyncio.fixture
async def outside(tmp_path: Path) -> AsyncIterator[Outside]:
    async with seeded_outside(tmp_path) as there:
        yield there


async def _refused(call: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await call
    return caught.value


async def test_a_disk_that_takes_no_more_is_a_clean_no(outside: Outside) -> None:
    """The operating system refuses every write past the file's present size, in the middle of a batch."""
    channel = await outside.channel()
    book = Book()
    book.keep(channel)
    process = outside.process.pid
    for extra in (0, 5_000, 20_000):
        size = max((outside.folder / name).stat().st_size for name in ("ledger.db", "ledger.db-wal"))
        resource.prlimit(process, resource.RLIMIT_FSIZE, (size + extra, _UNLIMITED))
        refusals: list[Refusal] = []
        for _ in range(200):
            calls = [channel.issue_voucher(person_no=PERSON, business_type=CONSULT) for _ in range(8)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            refusals = [answer for answer in answers if isinstance(answer, Refusal)]
            if refusals:
                break
        assert {(refusal.code, refusal.retriable) for refusal in refusals} == {("HUB_UNAVAILABLE", True)}
        # Nothing personal is shown while its access could not be recorded.
        assert (await _refused((await outside.hospital()).get(rx_no="0" * 27))).code == "HUB_UNAVAILABLE"
        resource.prlimit(process, resource.RLIMIT_FSIZE, (_UNLIMITED, _UNLIMITED))
        async with asyncio.timeout(10):
            for note in book.sent.values():
                reply = await reply_bytes(channel, note.request)
                assert note.reply in (b"", reply)
                note.reply = reply
    assert (await (await outside.auditor()).verify_ledger()).verified
    outside.process.ask_to_end()
    assert outside.process.wait() == 0
    store = await open_sqlite(outside.folder / "ledger.db")
    try:
        await assert_each_once(store, book)
    finally:
        await store.close()


async def test_a_statement_that_takes_too_long_is_a_clean_no(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_ledger(postgres_server)
    database = url.rsplit("/", 1)[1].split("?")[0]

    def urls() -> Iterator[str]:
        yield url
        # The second hub alone is impatient: on a busy machine a statement that seeds the world may take longer.
        monkeypatch.setitem(postgres_session._SETTINGS, "statement_timeout", "300ms")
        yield url

    async with several_hubs(urls()) as several:
        channel = await several[1].connect("channel", CHANNEL, attempts=1)
        book = Book()
        book.keep(channel)
        shell = await asyncpg.connect(postgres_server.url(database))
        transaction = shell.transaction()
        await transaction.start()
        await shell.execute("LOCK TABLE erxhub.entry IN ACCESS EXCLUSIVE MODE")
        refusal = await _refused(channel.issue_voucher(person_no=PERSON, business_type=CONSULT))
        assert (refusal.code, refusal.grpc_status, refusal.retriable) == ("HUB_UNAVAILABLE", "UNAVAILABLE", True)
        await transaction.rollback()
        await shell.close()
        (note,) = book.sent.values()
        note.reply = await reply_bytes(await several[0].channel(), note.request)
        assert await reply_bytes(channel, note.request) == note.reply
        await assert_each_once(several.stores[0], book)
