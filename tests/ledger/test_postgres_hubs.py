"""Several stores over one database, as several hubs have: what one wrote binds the others, and the log stays one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import asyncpg
import pytest

from erxhub.ledger import postgres_append, postgres_session
from erxhub.ledger.entry import Entry
from erxhub.ledger.postgres import PostgresStore, open_postgres
from erxhub.ledger.store import AppendResult, CatalogRow, Listing, NewName, Reads, Store, Wanted, Write
from erxhub.ledger.verify import verify_ledger
from tests.ledger.contract import append_all, key_of, next_entry, reply_to, state_at
from tests.postgres import PostgresServer

HUBS = 3


@pytest.fixture
def url(postgres_server: PostgresServer) -> str:
    return postgres_server.url(postgres_server.database(postgres_server.ledger_template()), "hub")


@pytest.fixture
async def hubs(url: str) -> AsyncIterator[list[PostgresStore]]:
    async with AsyncExitStack() as stack:
        stores = []
        for _ in range(HUBS):
            stores.append(await open_postgres(url, readers=2))
            stack.push_async_callback(stores[-1].close)
        yield stores


async def written(store: Store, write: Write) -> bool:
    """Whether a Write was taken; one that is busy is sent again."""
    while True:
        result = await store.append([write])
        if not result.busy:
            return not result.conflicts


async def test_exactly_one_hub_extends_a_stream_by_each_version(hubs: list[PostgresStore]) -> None:
    before: Entry | None = None
    for number in range(20):
        rivals = [next_entry("a", before, request_id=f"{number} of {hub}") for hub in range(HUBS)]
        writes = [Write(entries=(rival,), states=(state_at(rival),)) for rival in rivals]
        taken = await asyncio.gather(*(written(store, write) for store, write in zip(hubs, writes, strict=True)))
        assert sum(taken) == 1
        before = rivals[taken.index(True)]
    assert [entry.version for entry in await hubs[0].log(0, 100)] == list(range(1, 21))
    assert (await verify_ledger(hubs[1])).findings == []


@pytest.mark.parametrize("what", ["name", "reply", "trace code", "catalogue row"])
async def test_what_is_unique_is_so_across_hubs(hubs: list[PostgresStore], what: str) -> None:
    for number in range(8):
        writes = []
        for hub in range(HUBS):
            entry = next_entry(f"{number} of {hub}")
            key = entry.header.stream_key
            if what == "name":
                write = Write(entries=(entry,), names=(NewName("authorization", b"%d" % number, key),))
            elif what == "reply":
                write = Write(entries=(entry,), replies=(reply_to(entry, request_id=str(number)),))
            elif what == "trace code":
                write = Write(entries=(next_entry(f"code {number}", kind="trace_code", request_id=str(hub)), entry))
            else:
                write = Write(entries=(entry,), catalog_rows=(CatalogRow("drugs", "1", str(number), b"%d" % hub),))
            writes.append(write)
        taken = await asyncio.gather(*(written(store, write) for store, write in zip(hubs, writes, strict=True)))
        assert sum(taken) == 1
        keys = [key_of(f"{number} of {hub}") for hub in range(HUBS)]
        heads = (await hubs[number % HUBS].read(Wanted(streams=frozenset(keys)))).heads
        assert set(heads) == {keys[taken.index(True)]}  # the losers left nothing


async def test_batches_that_cross_each_other_are_both_decided(hubs: list[PostgresStore]) -> None:
    """Each of two hubs gives a name that the other one gives too, in the opposite order."""
    for number in range(10):
        batches = []
        for hub in range(2):
            batch = []
            for name in (0, 1)[:: 1 if hub else -1]:
                entry = next_entry(f"{number} {name} of {hub}")
                given = NewName("rx", b"%d %d" % (number, name), entry.header.stream_key)
                batch.append(Write(entries=(entry,), names=(given,)))
            batches.append(batch)
        results = await asyncio.gather(*(store.append(batch) for store, batch in zip(hubs, batches, strict=False)))
        assert sum(len(result.conflicts) for result in results) == 2
    assert await hubs[2].last_position() == 20


async def test_log_of_all_hubs_is_gap_free_and_in_order_of_causes(hubs: list[PostgresStore]) -> None:
    newest: dict[str, Entry] = {}
    leaves: list[bytes] = []

    async def work(hub: int, store: PostgresStore) -> None:
        for number in range(30):
            name = f"hub {hub} stream {number % 3}"
            entry = next_entry(name, newest.get(name), causes=tuple(leaves[-1:]))
            listing = Listing("feed", b"all", entry.header.stream_key, entry.header.version)
            assert await written(store, Write(entries=(entry,), states=(state_at(entry),), listings=(listing,)))
            newest[name] = entry
            leaves.append(entry.leaf_hash)
            # Whoever was told finds it through every hub, at once.
            rows = await hubs[(hub + 1) % HUBS].listing("feed", b"all", 0, 1000)
            assert (entry.header.stream_key, entry.header.version) in {(row.stream_key, row.version) for row in rows}

    await asyncio.gather(*(work(hub, store) for hub, store in enumerate(hubs)))
    log = await hubs[0].log(0, 1000)
    assert [entry.position for entry in log] == list(range(1, 30 * HUBS + 1))
    assert [row.position for row in await hubs[1].listing("feed", b"all", 0, 1000)] == list(range(1, 30 * HUBS + 1))
    assert (await verify_ledger(hubs[2])).findings == []
    placed: set[bytes] = set()
    causes = {entry.leaf_hash: entry for entry in newest.values()}
    for stored in log:
        cause = causes.get(stored.leaf_hash)
        assert cause is None or placed.issuperset(cause.header.causes)
        placed.add(stored.leaf_hash)


# --- what a decision read -------------------------------------------------------------------------


def reading(entry: Entry, *read: Entry) -> Write:
    """A Write that extends a stream and rests on where others stand."""
    streams = tuple((other.header.stream_key, other.header.version) for other in read)
    return Write(entries=(entry,), states=(state_at(entry),), reads=Reads(streams))


async def test_write_whose_read_stream_moved_conflicts(hubs: list[PostgresStore]) -> None:
    first, second = next_entry("read"), next_entry("read", next_entry("read"))
    await append_all(hubs[0], [Write(entries=(first,))])
    assert await written(hubs[1], reading(next_entry("a"), first))
    await append_all(hubs[0], [Write(entries=(second,))])
    result = await hubs[1].append([reading(next_entry("b"), first), reading(next_entry("c"), second)])
    assert (result.conflicts, result.busy) == ({0}, frozenset())


async def test_of_two_writes_that_read_what_the_other_extends_one_is_written(hubs: list[PostgresStore]) -> None:
    for number in range(12):
        firsts = [next_entry(f"{number} {side}") for side in "ab"]
        await append_all(hubs[2], [Write(entries=(first,), states=(state_at(first),)) for first in firsts])
        seconds = [next_entry(f"{number} {side}", first) for side, first in zip("ab", firsts, strict=True)]
        skew = (reading(seconds[0], firsts[1]), reading(seconds[1], firsts[0]))
        assert sum(await asyncio.gather(*(written(hubs[hub], write) for hub, write in enumerate(skew)))) == 1


async def test_reads_within_a_batch_see_what_comes_before_them(hubs: list[PostgresStore]) -> None:
    first = next_entry("a")
    second = next_entry("a", first)
    batch = [Write(entries=(first,)), reading(next_entry("b"), first), Write(entries=(second,))]
    batch += [reading(next_entry("c"), first), reading(next_entry("d"), second)]
    assert await hubs[0].append(batch) == AppendResult(frozenset({3}), 4)


async def test_reader_and_writer_of_a_stream_are_busy_for_one_another(url: str, hubs: list[PostgresStore]) -> None:
    first, second = next_entry("a"), next_entry("a", next_entry("a"))
    await append_all(hubs[0], [Write(entries=(first,))])
    other = await asyncpg.connect(url)
    for lock, reads_too in (("UPDATE", False), ("SHARE", True)):
        async with other.transaction():
            await other.execute(f"SELECT FROM erxhub.state FOR {lock}")
            assert (await hubs[0].append([Write(entries=(second,))])).busy == {0}
            assert (await hubs[0].append([reading(next_entry(lock), first)])).busy == (set() if reads_too else {0})
    await other.close()
    assert await written(hubs[0], Write(entries=(second,)))


async def test_write_that_waits_is_written_when_the_stream_is_let_go(url: str, hubs: list[PostgresStore]) -> None:
    first, second = next_entry("a"), next_entry("a", next_entry("a"))
    await append_all(hubs[0], [Write(entries=(first,))])
    other = await asyncpg.connect(url)
    transaction = other.transaction()
    await transaction.start()
    await other.execute("SELECT FROM erxhub.state FOR UPDATE")
    appending = asyncio.ensure_future(hubs[0].append([Write(entries=(second,), waits=True)]))
    await until_waiting(other)
    await transaction.rollback()
    assert await appending == AppendResult(frozenset(), 2)
    await other.close()


async def test_write_that_waited_too_long_is_busy_and_the_hub_goes_on(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(postgres_session._SETTINGS, "lock_timeout", "50ms")
    store = await open_postgres(url, readers=1)
    first, second = next_entry("a"), next_entry("a", next_entry("a"))
    await append_all(store, [Write(entries=(first,))])
    other = await asyncpg.connect(url)
    async with other.transaction():
        await other.execute("SELECT FROM erxhub.state FOR UPDATE")
        result = await store.append([Write(entries=(second,), waits=True)])
        assert (result.busy, result.conflicts, result.last_position) == ({0}, frozenset(), 1)
    assert await written(store, Write(entries=(second,)))
    await other.close()
    await store.close()


async def test_name_that_denies_waits_for_those_who_know_it_absent(url: str, hubs: list[PostgresStore]) -> None:
    first = next_entry("ledger")
    name = ("revoked_key", b"k")
    known = Write(entries=(next_entry("a"),), reads=Reads(absent=(name,)))
    denying = Write(entries=(first,), names=(NewName(*name, first.header.stream_key),), denies=True)
    sharing = await asyncpg.connect(url)
    transaction = sharing.transaction()
    await transaction.start()
    await sharing.execute(postgres_append.SHARE_DENIALS)
    appending = asyncio.ensure_future(hubs[0].append([denying]))
    await until_waiting(sharing)
    beside = asyncio.ensure_future(hubs[1].append([known]))  # comes after the one that waits, and learns of it
    await transaction.rollback()
    assert (await appending).conflicts == frozenset()
    assert (await beside).conflicts == {0}
    await sharing.close()


async def until_waiting(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """Until some session of this database waits for a lock."""
    async with asyncio.timeout(10):
        while not await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ):
            await connection.execute("SELECT pg_sleep(0.002)")


async def test_list_that_grew_since_it_was_read_is_a_conflict(hubs: list[PostgresStore]) -> None:
    first, second = next_entry("a"), next_entry("a", next_entry("a"))
    listing = Listing("of visit", b"v", first.header.stream_key, 1)
    empty = Reads(lists=(("of visit", b"v", 0),))
    assert await written(hubs[0], Write(entries=(next_entry("b"),), reads=empty))
    await append_all(hubs[1], [Write(entries=(first,), listings=(listing,))])
    (row,) = await hubs[0].listing("of visit", b"v", 0, 10)
    write = Write(entries=(second,), reads=empty)
    assert not await written(hubs[0], write)
    assert await written(hubs[0], write._replace(reads=Reads(lists=(("of visit", b"v", row.position),))))


# --- the other hubs' side -------------------------------------------------------------------------


async def test_store_tells_what_another_one_wrote(hubs: list[PostgresStore]) -> None:
    start = await hubs[1].last_position()
    waiting = asyncio.ensure_future(hubs[1].changed(start))
    entry = next_entry("a")
    listings = tuple(Listing("feed", key, entry.header.stream_key, 1) for key in (b"x", b"y"))
    last = await append_all(hubs[0], [Write(entries=(entry,), listings=listings)])
    async with asyncio.timeout(10):
        assert await waiting == last
    assert await hubs[1].grown("feed", [b"x", b"z"], start) == {b"x"}
    assert await hubs[1].grown("feed", [b"x", b"z"], last) == frozenset()
    assert await hubs[1].changed(last - 1) == last


# --- the sequencer --------------------------------------------------------------------------------


def leading(hubs: list[PostgresStore]) -> list[int]:
    return [number for number, store in enumerate(hubs) if store.gives_positions]


async def test_one_hub_gives_positions_and_another_goes_on_when_it_ends(hubs: list[PostgresStore]) -> None:
    assert leading(hubs) == [0]
    await append_all(hubs[1], [Write(entries=(next_entry("a"),))])
    await hubs[0].close()
    for number in range(5):
        assert await append_all(hubs[1], [Write(entries=(next_entry(f"b{number}"),))]) == 2 + number
    assert leading(hubs[1:]) in ([0], [1])


async def test_lease_of_a_hub_that_died_runs_out(url: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(
        "UPDATE erxhub_log.sequencer SET epoch = 7, leased_until = clock_timestamp() + interval '1 second'"
    )
    await connection.close()
    store = await open_postgres(url, readers=1)
    assert not store.gives_positions
    assert await append_all(store, [Write(entries=(next_entry("a"),))]) == 1
    assert store.gives_positions
    await store.close()


async def test_holder_that_was_replaced_gives_no_position(url: str) -> None:
    store = await open_postgres(url, readers=1)
    await append_all(store, [Write(entries=(next_entry("a"),))])
    connection = await asyncpg.connect(url)
    # Another hub takes over, as it would while this one stood still for longer than its lease.
    await connection.execute(
        "UPDATE erxhub_log.sequencer SET epoch = epoch + 1, leased_until = clock_timestamp() + interval '1 second'"
    )
    appending = asyncio.ensure_future(store.append([Write(entries=(next_entry("b"),))]))
    async with asyncio.timeout(10):
        while not await connection.fetchval("SELECT count(*) FROM erxhub.unindexed"):
            await connection.execute("SELECT pg_sleep(0.005)")
    assert await connection.fetchval("SELECT last_idx FROM erxhub_log.sequencer") == 1
    assert not appending.done()
    # Its lease runs out as well, and the first one leads again, under a new epoch.
    assert (await appending).last_position == 2
    assert await connection.fetchval("SELECT epoch FROM erxhub_log.sequencer") == 3
    await connection.close()
    await store.close()


async def test_watchers_are_told_once_a_batch_and_never_by_a_writing_transaction(
    url: str, hubs: list[PostgresStore]
) -> None:
    told: list[str] = []
    connection = await asyncpg.connect(url)
    await connection.add_listener("erxhub_log", lambda *notice: told.append(notice[3]))
    for number in range(5):
        await append_all(hubs[0], [Write(entries=(next_entry(f"{number}"), next_entry(f"{number}+")))])
    async with asyncio.timeout(10):
        while told[-1:] != ["10"]:
            await connection.execute("SELECT pg_sleep(0.005)")
    assert 1 <= len(told) <= 5
    assert told == sorted(told, key=int)
    await connection.close()
