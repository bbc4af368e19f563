"""The store contract on PostgreSQL, and what a single hub has to get right there: outcomes, guards, settings."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from erxhub.ledger.migrations import migrate_postgres, newest
from erxhub.ledger.postgres import CONNECTIONS_MAX, PostgresStore, open_postgres
from erxhub.ledger.scrub import scrub_postgres
from erxhub.ledger.store import Blob, Erasure, Listing, NewName, StoreFormatError, StoreUnavailable, Wanted, Write
from erxhub.ledger.verify import Reason, verify_ledger
from tests.ledger.contract import (
    CALLER,
    ERASED,
    StoreContract,
    append_all,
    key_of,
    next_entry,
    reply_to,
    state_at,
    stream_of,
)
from tests.ledger.cutting_proxy import Cut, CuttingProxy
from tests.ledger.log_contract import LogContract
from tests.postgres import PostgresServer, start_server, stop_server


@pytest.fixture
def database(postgres_server: PostgresServer) -> str:
    return postgres_server.database(postgres_server.ledger_template())


@pytest.fixture
def url(postgres_server: PostgresServer, database: str) -> str:
    return postgres_server.url(database, "hub")


@pytest.fixture
async def store(url: str) -> AsyncIterator[PostgresStore]:
    store = await open_postgres(url, readers=2)
    yield store
    await store.close()


class TestPostgresStore(StoreContract, LogContract):
    """The whole contract."""


# --- what stands in the way of a commit -----------------------------------------------------------


async def test_taken_streams_are_busy_and_the_rest_commits(
    postgres_server: PostgresServer, database: str, store: PostgresStore
) -> None:
    first, second = stream_of("a", 2)
    await append_all(store, [Write(entries=(first,), states=(state_at(first),))])
    third = next_entry("a", second)
    caused = next_entry("b", causes=(second.leaf_hash,))
    batch = [
        Write(entries=(second,), states=(state_at(second),)),
        Write(entries=(next_entry("c"),)),
        Write(entries=(third,)),
        Write(entries=(caused,)),
        Write(entries=(next_entry("d", next_entry("d")),)),
    ]
    other = await asyncpg.connect(postgres_server.url(database))
    try:
        async with other.transaction():
            await other.execute("SELECT FROM erxhub.state FOR UPDATE")
            result = await store.append(batch)
        assert (result.busy, result.conflicts, result.last_position) == ({0, 2, 3}, {4}, 2)
    finally:
        await other.close()
    assert (await store.append(batch[:1])).busy == frozenset()


async def _failing(postgres_server: PostgresServer, database: str, times: int) -> None:
    """Makes the first `times` appends of this database fail as a serialisation failure does."""
    postgres_server.sql(
        f"""
        CREATE SEQUENCE failures; GRANT USAGE ON SEQUENCE failures TO erxhub_hub;
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF nextval('public.failures') <= {times} THEN RAISE serialization_failure; END IF;
            RETURN NULL;
        END $$;
        CREATE TRIGGER fail AFTER INSERT ON erxhub.entry EXECUTE FUNCTION fail();
        """,
        database,
    )


async def test_serialisation_failure_is_tried_again(
    postgres_server: PostgresServer, database: str, store: PostgresStore
) -> None:
    await _failing(postgres_server, database, 3)
    assert await append_all(store, [Write(entries=(next_entry("a"),))]) == 1


async def test_serialisation_failure_that_does_not_end_is_unavailable(
    postgres_server: PostgresServer, database: str, store: PostgresStore
) -> None:
    await _failing(postgres_server, database, 1000)
    with pytest.raises(StoreUnavailable):
        await store.append([Write(entries=(next_entry("a"),))])
    assert await store.last_position() == 0


async def _backend_waits(postgres_server: PostgresServer, database: str) -> int:
    """The process id of the session that waits for another's transaction, once there is one."""
    connection = await asyncpg.connect(postgres_server.url(database))
    try:
        async with asyncio.timeout(10):
            while True:
                pid: int | None = await connection.fetchval(
                    "SELECT pid FROM pg_stat_activity WHERE datname = $1 AND wait_event_type = 'Lock'", database
                )
                if pid is not None:
                    return pid
                await connection.execute("SELECT pg_sleep(0.005)")
    finally:
        await connection.close()


async def test_session_killed_in_the_middle_of_an_append_leaves_nothing(
    postgres_server: PostgresServer, database: str, store: PostgresStore
) -> None:
    a, b = next_entry("a"), next_entry("b")
    await append_all(store, [Write(entries=(b,))])
    write = Write(entries=(a,), names=(NewName("rx_no", b"1", key_of("a")),), replies=(reply_to(a),))
    other = await asyncpg.connect(postgres_server.url(database))
    transaction = other.transaction()
    await transaction.start()
    # The same name, not committed: the append waits for it after it has begun its stream.
    await other.execute(
        "INSERT INTO erxhub.name SELECT s, 'rx_no', '1', shard, no FROM erxhub.stream, generate_series(0, 4095) s"
    )
    appending = asyncio.ensure_future(store.append([write]))
    pid = await _backend_waits(postgres_server, database)
    await other.execute("SELECT pg_terminate_backend($1)", pid)
    with pytest.raises(StoreUnavailable):
        await appending
    await transaction.rollback()
    await other.close()
    assert await store.last_position() == 1
    assert (await store.load(Wanted(streams=frozenset({key_of("a")})))).heads == {}
    assert await append_all(store, [write]) == 2  # over a new connection
    assert (await verify_ledger(store)).findings == []


@pytest.mark.parametrize("cut", list(Cut))
async def test_connection_cut_at_a_commit_tells_what_became_of_it(
    postgres_server: PostgresServer, database: str, cut: Cut
) -> None:
    async with CuttingProxy(postgres_server.port) as proxy:
        direct = postgres_server.url(database, "hub", tcp=True)
        address = urlsplit(direct)._replace(netloc=f"hub:{postgres_server.password}@127.0.0.1:{proxy.port}")
        store = await open_postgres(urlunsplit(address), readers=1)
        first, second = stream_of("a", 2)
        await append_all(store, [Write(entries=(first,))])
        proxy.arm(cut)
        try:
            result = await store.append([Write(entries=(second,), replies=(reply_to(second),))])
            assert (result.conflicts, result.busy) == (frozenset(), frozenset())
            version = 2
        except StoreUnavailable:
            version = 1
        assert proxy.cuts == 1
        # Where the cut fell within the commit decides what became of it, and the store says which it was.
        assert version == {Cut.BEFORE: 1, Cut.AFTER: 2}.get(cut, version)
        head = (await store.load(Wanted(streams=frozenset({key_of("a")})))).heads[key_of("a")]
        assert head.version == version
        assert await append_all(store, [Write(entries=(next_entry("b"),))]) == version + 1
        assert (await verify_ledger(store)).findings == []
        await store.close()


async def test_server_that_comes_back_is_found_again() -> None:
    server = start_server()
    try:
        store = await open_postgres(server.url(server.database(server.ledger_template()), "hub"), readers=1)
        first, second = stream_of("a", 2)
        await append_all(store, [Write(entries=(first,))])
        server.stop()
        with pytest.raises(StoreUnavailable):
            await store.append([Write(entries=(second,))])
        with pytest.raises(StoreUnavailable):
            await store.last_position()
        server.start()
        assert await append_all(store, [Write(entries=(second,))]) == 2
        assert await store.last_position() == 2
        await store.close()
    finally:
        stop_server(server)


async def test_store_keeps_to_its_connections(postgres_server: PostgresServer, database: str, url: str) -> None:
    store = await open_postgres(url)
    await append_all(store, [Write(entries=(next_entry("a"),))])
    await asyncio.gather(*(store.log(0, 10) for _ in range(100)), *(store.load(Wanted()) for _ in range(10)))
    used = int(postgres_server.sql(f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'", "postgres"))
    await store.close()
    assert 3 <= used <= CONNECTIONS_MAX


# --- guards ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded_url(postgres_server: PostgresServer) -> str:
    return postgres_server.url(postgres_server.database(postgres_server.ledger_template()), "hub")


_KEPT = ("stream", "entry", "content", "name", "listing", "reply", "blob", "catalog_row")


@pytest.mark.parametrize("table", _KEPT)
@pytest.mark.parametrize("change", ["UPDATE erxhub.{0} SET {1} = {1}", "DELETE FROM erxhub.{0}", "TRUNCATE erxhub.{0}"])
async def test_hub_cannot_change_what_is_written(guarded_url: str, table: str, change: str) -> None:
    column = "body" if table == "catalog_row" else "shard"
    connection = await asyncpg.connect(guarded_url)
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(change.format(table, column))
    finally:
        await connection.close()


async def test_log_is_insert_only_and_the_sequencer_row_stays(guarded_url: str) -> None:
    connection = await asyncpg.connect(guarded_url)
    try:
        for change in (
            "UPDATE erxhub_log.log_index SET idx = idx",
            "DELETE FROM erxhub_log.log_index",
            "DELETE FROM erxhub_log.sequencer",
            "INSERT INTO erxhub_log.sequencer DEFAULT VALUES",
            "UPDATE erxhub.schema_version SET version = 9",
            "CREATE TABLE erxhub.more (a int)",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(change)
    finally:
        await connection.close()


async def test_eraser_deletes_content_and_nothing_else(
    postgres_server: PostgresServer, database: str, store: PostgresStore
) -> None:
    entry = next_entry("a")
    await append_all(store, [Write(entries=(entry,), replies=(reply_to(entry),))])
    eraser = await asyncpg.connect(postgres_server.url(database, "eraser"))
    try:
        for table in ("content", "reply", "blob"):
            await eraser.execute(f"DELETE FROM erxhub.{table}")
        for table in ("entry", "stream", "name", "listing"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await eraser.execute(f"DELETE FROM erxhub.{table}")
    finally:
        await eraser.close()
    (stored,) = await store.log(0, 10)
    assert (stored.salt, stored.payload, stored.leaf_hash) == (None, None, entry.leaf_hash)
    assert (await store.load(Wanted(replies=frozenset({("H11010100001", "request")})))).replies == {}
    # What no entry says was erased is missing, and verification says so.
    assert [found.reason for found in (await verify_ledger(store)).findings] == [Reason.CONTENT_MISSING]


async def test_state_that_no_entry_backs_is_impossible(url: str, store: PostgresStore) -> None:
    await append_all(store, [Write(entries=(next_entry("a"),))])
    connection = await asyncpg.connect(url)
    try:
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            await connection.execute("UPDATE erxhub.state SET version = 2")
    finally:
        await connection.close()


# --- a start --------------------------------------------------------------------------------------


async def test_role_that_may_change_entries_is_refused(postgres_server: PostgresServer, database: str) -> None:
    with pytest.raises(StoreFormatError, match="may change entries"):
        await open_postgres(postgres_server.url(database))


async def test_role_without_rights_is_told_which(postgres_server: PostgresServer, database: str) -> None:
    postgres_server.login("stranger")
    with pytest.raises(StoreFormatError, match="GRANT erxhub_hub TO stranger"):
        await open_postgres(postgres_server.url(database, "stranger"))


@pytest.mark.parametrize("value", ["off", "local", "remote_write"])
async def test_commit_that_may_be_lost_is_refused(postgres_server: PostgresServer, database: str, value: str) -> None:
    postgres_server.sql(f"ALTER DATABASE {database} SET synchronous_commit = {value}")
    with pytest.raises(StoreFormatError, match=f"synchronous_commit is {value}"):
        await open_postgres(postgres_server.url(database, "hub"))


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
async def test_server_that_may_lose_a_commit_is_refused(setting: str) -> None:
    server = start_server(**{setting: "off"})
    try:
        with pytest.raises(StoreFormatError, match=f"{setting} is off"):
            await open_postgres(server.url(server.database(server.ledger_template()), "hub"))
    finally:
        stop_server(server)


async def test_database_without_a_ledger_says_what_to_run(postgres_server: PostgresServer) -> None:
    url = postgres_server.url(postgres_server.database(), "hub")
    with pytest.raises(StoreFormatError, match="run `erxhub db migrate --db postgresql://hub@") as refused:
        await open_postgres(url)
    assert postgres_server.password not in str(refused.value)


async def test_schema_of_a_newer_release_is_refused(postgres_server: PostgresServer, database: str) -> None:
    postgres_server.sql("INSERT INTO erxhub.schema_version VALUES (99)", database)
    with pytest.raises(StoreFormatError, match="schema 99"):
        await open_postgres(postgres_server.url(database, "hub"))
    with pytest.raises(StoreFormatError, match="schema 99"):
        await migrate_postgres(postgres_server.url(database))


async def test_migration_runs_once_also_when_two_begin_it(postgres_server: PostgresServer) -> None:
    postgres_server.ledger_template()
    url = postgres_server.url(postgres_server.database())
    ran = await asyncio.gather(*(migrate_postgres(url) for _ in range(3)))
    assert sorted(ran) == [[], [], list(range(1, newest("postgres") + 1))]


async def test_server_that_is_away_is_unavailable() -> None:
    with pytest.raises(StoreUnavailable):
        await open_postgres("postgresql://hub@127.0.0.1:1/none")


# --- erasure --------------------------------------------------------------------------------------


async def test_hub_erases_only_where_an_entry_says_so(store: PostgresStore, url: str) -> None:
    entry = next_entry("a", request_id="request of a")
    await append_all(store, [Write((entry,), (state_at(entry),)), Write((next_entry("b"),))])
    connection = await asyncpg.connect(url)
    call = "SELECT erxhub.erase(shard, stream, version, $1, $2, $3, $1, $2, $2) FROM erxhub.entry"
    try:
        for reason in ("no entry says", "no entry says"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match=reason):
                await connection.execute(call, [], [], [])
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="no entry says"):
            await connection.execute(call.replace("version,", "99,"), [], [], [])
    finally:
        await connection.close()
    assert [stored.payload is None for stored in await store.log(0, 10)] == [False, False]


async def test_scrubbed_server_holds_no_erased_byte(
    store: PostgresStore, postgres_server: PostgresServer, database: str
) -> None:
    marker = b"erased-marker-51f0c2"
    entry = next_entry("gone", payload=marker * 400, request_id="request of gone")
    write = Write(
        entries=(entry,),
        states=(state_at(entry, marker * 3),),
        names=(NewName("hospital_rx", marker, key_of("gone")),),
        listings=(Listing("list", marker, key_of("gone"), 1, marker),),
        blobs=(Blob(key_of("gone"), bytes(32), marker * 2_000),),
        replies=(reply_to(entry, CALLER, "request of gone")._replace(body=marker * 2),),
    )
    await append_all(store, [write])
    postgres_server.sql("ANALYZE; CHECKPOINT", database)
    said = next_entry("gone", entry, number=ERASED)
    erasure = Erasure(key_of("gone"), 2, (("hospital_rx", marker),))
    await append_all(store, [Write((said,), (state_at(said, b"bare"),), erasures=(erasure,))])
    assert files_with(postgres_server, marker)
    assert await scrub_postgres(postgres_server.url(database)) > 0
    assert files_with(postgres_server, marker) == []
    assert (await verify_ledger(store)).findings == []


def files_with(server: PostgresServer, marker: bytes) -> list[str]:
    """The files of the server that hold some bytes."""
    found = []
    for file in (server.folder / "data").rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if file.is_file() and marker in file.read_bytes():
                found.append(str(file.relative_to(server.folder)))
    return found
