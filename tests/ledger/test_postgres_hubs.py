"""Several stores over one database, as several hubs have: what one wrote binds the others, and the log stays one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import asyncpg
import pytest

from erxhub.ledger.entry import Entry
from erxhub.ledger.postgres import PostgresStore, open_postgres
from erxhub.ledger.store import CatalogRow, Listing, NewName, Store, Wanted, Write
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
