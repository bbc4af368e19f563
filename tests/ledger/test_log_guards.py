"""What guards the log against other hands: the file's triggers, the database's privileges, and the row of a step."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing
from pathlib import Path

import asyncpg
import pytest

from erxhub.config import Config
from erxhub.keys import HubKeys
from erxhub.ledger.log import Cosignature
from erxhub.ledger.postgres import PostgresStore, open_postgres
from erxhub.ledger.sqlite import open_sqlite
from erxhub.ledger.store import Store, StoreUnavailable, Write
from erxhub.ports import ManualClock, SeededIds, system_pause
from erxhub.publishing import Publisher
from tests.ledger.contract import T0_MS, append_all, next_entry, stream_of
from tests.ledger.log_contract import WHOLE, all_leaves
from tests.postgres import PostgresServer

FORBIDDEN = [
    "UPDATE {}checkpoint SET root = map_root",
    "DELETE FROM {}checkpoint",
    "UPDATE {}checkpoint_note SET note = 'other'",
    "DELETE FROM {}checkpoint_note",
    "UPDATE {}cosignature SET line = 'other'",
    "DELETE FROM {}cosignature",
    "DELETE FROM {}tile",
    "DELETE FROM {}page",
]
FORKED = [
    "INSERT INTO {}checkpoint SELECT no, size + 7, root, map_root, covered_position + 7, 0 FROM {}checkpoint",
    "INSERT INTO {}checkpoint SELECT no + 1, size, root, map_root, covered_position - 1, 0 FROM {}checkpoint",
    "INSERT INTO {}checkpoint SELECT no + 1, size + 1, root, map_root, covered_position, 0 FROM {}checkpoint",
]


async def with_a_log(store: Store) -> None:
    await append_all(store, [Write(entries=tuple(stream_of("a", 3)))])
    await store.integrate(T0_MS, WHOLE)
    await store.sign(1, "note")
    await store.cosign(1, [Cosignature("witness", "line")])


async def test_rows_of_the_log_in_a_file_can_only_be_added(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    store = await open_sqlite(path)
    await with_a_log(store)
    await store.close()
    with closing(sqlite3.connect(path)) as shell:
        for statement in (*FORBIDDEN, *FORKED):
            with pytest.raises(sqlite3.IntegrityError):
                shell.execute(statement.format("", ""))


# --- several hubs ---------------------------------------------------------------------------------


@pytest.fixture
def database(postgres_server: PostgresServer) -> str:
    return postgres_server.database(postgres_server.ledger_template())


@pytest.fixture
async def hubs(postgres_server: PostgresServer, database: str) -> AsyncIterator[list[PostgresStore]]:
    async with AsyncExitStack() as stack:
        stores = []
        for _ in range(2):
            stores.append(await open_postgres(postgres_server.url(database, "hub"), readers=2))
            stack.push_async_callback(stores[-1].close)
        yield stores


async def test_a_hub_may_only_add_rows_of_the_log(
    postgres_server: PostgresServer, database: str, hubs: list[PostgresStore]
) -> None:
    await with_a_log(hubs[0])
    hub = await asyncpg.connect(postgres_server.url(database, "hub"))
    try:
        for statement in FORBIDDEN:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await hub.execute(statement.format("erxhub_log."))
        for statement in FORKED:
            with pytest.raises(asyncpg.IntegrityConstraintViolationError):
                await hub.execute(statement.format("erxhub_log.", "erxhub_log."))
    finally:
        await hub.close()


async def test_two_hubs_that_step_at_once_make_one_log(hubs: list[PostgresStore]) -> None:
    async def work(number: int) -> None:
        store, before = hubs[number], None
        for _ in range(12):
            before = next_entry(f"of {number}", before)
            await append_all(store, [Write(entries=(before,))])
            await store.integrate(T0_MS, 3)

    await asyncio.gather(work(0), work(1))
    while await hubs[0].integrate(T0_MS, 3) is not None:
        pass
    leaves = await all_leaves(hubs[1])
    newest = await hubs[1].checkpoint()
    assert newest is not None
    assert (newest.covered_position, newest.size) == (24, len(leaves))


async def test_a_step_that_stands_still_holds_up_other_steps_and_no_commit(
    postgres_server: PostgresServer, database: str, hubs: list[PostgresStore]
) -> None:
    other = await asyncpg.connect(postgres_server.url(database, "hub"))
    transaction = other.transaction()
    await transaction.start()
    await other.execute("SELECT FROM erxhub_log.integrator FOR UPDATE")
    stepping = asyncio.create_task(hubs[1].integrate(T0_MS, WHOLE))
    for number in range(5):
        await asyncio.wait_for(append_all(hubs[number % 2], [Write(entries=(next_entry(f"{number}"),))]), 1)
    assert not stepping.done()
    await transaction.rollback()
    await other.close()
    made = await stepping
    assert made is not None
    assert made.covered_position == 5


async def test_a_hub_that_is_gone_is_followed_by_another_within_five_seconds(hubs: list[PostgresStore]) -> None:
    first, second = hubs
    assert (first.integrates, second.integrates) == (True, False)
    keys = HubKeys.generate(SeededIds(3))
    publisher = Publisher(
        second, keys.log, clock=ManualClock(T0_MS), config=Config(checkpoint_interval_ms=50), pause=system_pause
    )
    running = asyncio.create_task(publisher.run())
    await append_all(first, [Write(entries=(next_entry("a"),))])
    await first.integrate(T0_MS, WHOLE)  # and no signature: the hub ends here, as by a kill
    task = first._sequencer._task
    assert task is not None
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    first._sequencer._epoch = None  # whoever is killed gives no lease back
    async with asyncio.timeout(5):
        await append_all(second, [Write(entries=(next_entry("b"),))])
        made = await publisher.reached(2)
    assert made.no == 2
    assert second.integrates
    signed = await second.checkpoint(1)
    assert signed is not None
    assert signed.note is not None
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_database_that_goes_away_is_unavailable_and_used_again_later(
    postgres_server: PostgresServer, database: str, hubs: list[PostgresStore]
) -> None:
    await append_all(hubs[0], [Write(entries=tuple(stream_of("a", 4)))])
    assert await hubs[0].integrate(T0_MS, 2) is not None
    postgres_server.sql(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'", "postgres"
    )
    with pytest.raises(StoreUnavailable):
        await hubs[0].integrate(T0_MS, 2)
    made = await hubs[0].integrate(T0_MS, 2)
    assert made is not None
    assert made.no == 2
