"""The SQLite store: the contract, and what only a file can do (locks, full disks, guards, copies)."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from erxhub.core.keys import PlacedKey
from erxhub.ledger import sqlite as sqlite_module
from erxhub.ledger.scrub import scrub_sqlite
from erxhub.ledger.sqlite import SqliteStore, copy_sqlite, open_sqlite
from erxhub.ledger.sqlite_writer import put_rows
from erxhub.ledger.store import (
    Blob,
    Erasure,
    Listing,
    Loaded,
    NewName,
    StoreFormatError,
    StoreInUse,
    StoreUnavailable,
    Wanted,
    Write,
)
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
    two_of_a_kind,
)
from tests.ledger.log_contract import LogContract


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    store = await open_sqlite(path)
    yield store
    await store.close()


class TestSqliteStore(StoreContract, LogContract):
    pass


async def on_writer(store: SqliteStore, job: Callable[[sqlite3.Connection], Any]) -> Any:
    return await sqlite_module._on_thread(store._connection, job)


async def pragma(store: SqliteStore, text: str) -> Any:
    return await on_writer(store, lambda connection: connection.execute(f"PRAGMA {text}").fetchone()[0])


async def test_writer_is_durable_and_guarded(store: SqliteStore) -> None:
    assert await pragma(store, "journal_mode") == "wal"
    assert await pragma(store, "synchronous") == 2  # FULL
    assert await pragma(store, "foreign_keys") == 1


async def test_readers_cannot_write(store: SqliteStore) -> None:
    assert len(store._readers) == 3
    for reader in store._readers:
        with pytest.raises(sqlite3.OperationalError) as refused:
            await reader.execute("INSERT INTO schema_version VALUES (99)")
        assert refused.value.sqlite_errorcode == sqlite3.SQLITE_READONLY


async def test_batch_is_one_hop_to_the_thread(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    hops = 0
    execute = store._connection._execute

    async def counting(*arguments: Any) -> Any:
        nonlocal hops
        hops += 1
        return await execute(*arguments)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(store._connection, "_execute", counting)
    await append_all(store, [Write(entries=tuple(stream_of(f"{n}", 4))) for n in range(64)])
    assert hops == 1
    await store.load(Wanted(streams=frozenset(key_of(f"{n}") for n in range(64))))
    assert hops == 2


async def test_reopened_ledger_goes_on_where_it_ended(path: Path) -> None:
    first, second = stream_of("a", 2)
    store = await open_sqlite(path)
    await append_all(store, [Write(entries=(first,), states=(state_at(first),), replies=(reply_to(first),))])
    await store.close()
    assert not path.with_name("ledger.db-wal").exists()
    store = await open_sqlite(path, create=False, readers=1)
    assert (await store.append([Write(entries=(next_entry("a", request_id="rival"),))])).conflicts == {0}
    assert await append_all(store, [Write(entries=(second, next_entry("b")), states=(state_at(second),))]) == 3
    assert (await verify_ledger(store)).findings == []
    await store.close()


async def test_heads_pushed_out_of_the_cache_are_looked_up(store: SqliteStore) -> None:
    store._writer._heads_max = 2
    streams = {name: stream_of(name, 3) for name in "abcdef"}
    for version in range(3):
        for entries in streams.values():
            await append_all(store, [Write(entries=(entries[version],))])
    assert len(store._writer._heads) == 2
    assert (await store.append([Write(entries=(streams["a"][1],))])).conflicts == {0}
    assert (await verify_ledger(store)).findings == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entry SET header = x'00'",
        "DELETE FROM entry",
        "UPDATE stream SET kind = 'other'",
        "DELETE FROM stream",
        "UPDATE content SET payload = x'00'",
        "UPDATE reply SET body = x'00'",
        "UPDATE blob SET data = x'00'",
        "INSERT INTO state VALUES (1, 1, zeroblob(32), x'', NULL)",
        "UPDATE state SET version = 9",
        "UPDATE state SET leaf_hash = zeroblob(32)",
        "REPLACE INTO state VALUES (2, 1, zeroblob(32), x'', NULL)",
    ],
)
async def test_database_refuses_what_the_store_never_does(store: SqliteStore, statement: str) -> None:
    entry = next_entry("a")
    write = Write(
        entries=(entry, next_entry("b")),
        states=(state_at(next_entry("b")),),
        blobs=(Blob(key_of("a"), bytes(32), b"data"),),
        replies=(reply_to(entry),),
    )
    await append_all(store, [write])
    with pytest.raises(sqlite3.IntegrityError):
        await on_writer(store, lambda connection: connection.execute(statement))


async def test_erased_content_leaves_the_entry(store: SqliteStore) -> None:
    entry = next_entry("a")
    await append_all(store, [Write(entries=(entry,), replies=(reply_to(entry),))])
    await on_writer(store, lambda connection: connection.executescript("DELETE FROM content; DELETE FROM reply"))
    (stored,) = await store.log(0, 10)
    assert (stored.leaf_hash, stored.salt, stored.payload) == (entry.leaf_hash, None, None)
    # By hand: no entry says so.
    assert [found.reason for found in (await verify_ledger(store)).findings] == [Reason.CONTENT_MISSING]


@pytest.mark.parametrize("with_conflict", [False, True])
async def test_full_disk_writes_nothing_and_passes(store: SqliteStore, with_conflict: bool) -> None:
    await append_all(store, [Write(entries=(next_entry("a"),))])
    pages = await pragma(store, "page_count")
    await pragma(store, f"max_page_count = {pages + 2}")
    batch = [
        Write(
            entries=tuple(stream_of(f"{number}", 4)),
            names=(NewName("space", b"%d" % number, key_of(f"{number}")),),
            blobs=(Blob(key_of(f"{number}"), bytes(32), bytes(9000)),),
        )
        for number in range(16)
    ]
    if with_conflict:
        batch.insert(1, Write(entries=(next_entry("a", request_id="rival"),)))
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await store.append(batch)
        assert await store.last_position() == 1
        assert await store.load(Wanted(names=frozenset({("space", b"0")}))) == Loaded()
    await append_all(store, [Write(entries=(next_entry("a", next_entry("a")),))])  # what still fits is written
    await pragma(store, f"max_page_count = {pages + 2000}")
    result = await store.append(batch)
    assert (result.conflicts, result.last_position) == (frozenset({1} if with_conflict else ()), 66)
    assert (await verify_ledger(store)).findings == []


async def test_foreign_writer_makes_the_store_unavailable_for_as_long_as_it_writes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_module, "_BUSY_TIMEOUT_S", 0.01)
    store = await open_sqlite(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable):
            await store.append([Write(entries=(next_entry("a"),))])
        assert await store.last_position() == 0
        shell.execute("ROLLBACK")
    await append_all(store, [Write(entries=(next_entry("a"),))])
    await store.close()


async def test_row_outside_the_schema_is_a_bug_and_not_a_conflict(store: SqliteStore) -> None:
    entry = next_entry("a")
    for batch in (
        [Write(entries=(entry._replace(commitment=b"short"),))],
        [
            Write(replies=(reply_to(None),)),
            Write(replies=(reply_to(None),)),
            Write(entries=(entry._replace(commitment=b""),)),
        ],
    ):
        with pytest.raises(sqlite3.IntegrityError):
            await store.append(batch)
        assert await store.last_position() == 0
    await append_all(store, [Write(entries=(entry,), replies=(reply_to(None),))])


async def test_cancelled_callers_leave_whole_batches_in_order(store: SqliteStore) -> None:
    tasks = [
        asyncio.ensure_future(store.append([Write(entries=tuple(stream_of(f"{n}.{m}", 2))) for m in range(30)]))
        for n in range(6)
    ]
    await asyncio.wait({tasks[0]}, timeout=0)
    for task in tasks:
        task.cancel()
    assert all(task.cancelled() for task in (await asyncio.wait(tasks))[0])
    await store.load(Wanted())  # waits for its turn behind them
    assert await store.last_position() == 6 * 60
    assert (await verify_ledger(store)).findings == []


async def test_second_opening_is_refused_until_the_first_closes(path: Path, tmp_path: Path) -> None:
    alias = tmp_path / "alias.db"
    store = await open_sqlite(path)
    alias.symlink_to(path)
    for name in (path, alias):
        with pytest.raises(StoreInUse, match="open for writing elsewhere"):
            await open_sqlite(name)
    await append_all(store, [Write(entries=(next_entry("a"),))])
    await store.close()
    await (await open_sqlite(alias)).close()


async def test_other_process_is_refused_until_the_first_is_killed(path: Path) -> None:
    holder = (
        "import asyncio, sys\n"
        "from erxhub.ledger.sqlite import open_sqlite\n"
        "async def hold():\n"
        "    store = await open_sqlite(sys.argv[1])\n"
        "    print('open', flush=True)\n"
        "    await asyncio.get_running_loop().create_future()\n"
        "asyncio.run(hold())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        holder,
        path,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"open\n"
        with pytest.raises(StoreInUse):
            await open_sqlite(path)
    finally:
        process.kill()
        await process.wait()
    await (await open_sqlite(path)).close()


async def test_missing_file_is_not_created_unless_asked(path: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await open_sqlite(path, create=False)
    assert list(os.scandir(tmp_path)) == []
    with pytest.raises(FileNotFoundError):
        await open_sqlite(tmp_path / "no folder" / "ledger.db")


async def test_path_with_special_characters_is_taken_literally(tmp_path: Path) -> None:
    path = tmp_path / "a?mode=memory&x=%41#药.db"
    store = await open_sqlite(path)
    await append_all(store, [Write(entries=(next_entry("a"),))])
    assert await store.last_position() == 1
    await store.close()
    assert path.exists()


async def test_foreign_file_is_refused_and_left_alone(path: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(path)) as shell:
        shell.execute("CREATE TABLE something (x)")
    text = tmp_path / "text.db"
    text.write_text("this is no database, whatever its name says" * 100)
    for file in (path, text):
        before = file.read_bytes()
        with pytest.raises(StoreFormatError):
            await open_sqlite(file)
        assert file.read_bytes() == before


async def test_ledger_of_a_newer_release_is_refused(path: Path) -> None:
    await (await open_sqlite(path)).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as shell:
        shell.execute("INSERT INTO schema_version VALUES (9999)")
    with pytest.raises(StoreFormatError, match="9999"):
        await open_sqlite(path)


async def test_files_are_private(path: Path, tmp_path: Path, store: SqliteStore) -> None:
    await append_all(store, [Write(entries=(next_entry("a"),))])
    copy_sqlite(path, tmp_path / "copy.db")
    modes = {entry.name: entry.stat().st_mode & 0o077 for entry in os.scandir(tmp_path)}
    assert {"ledger.db", "ledger.db.lock", "ledger.db-wal", "copy.db"} <= set(modes)
    assert set(modes.values()) == {0}


async def test_copy_of_a_running_ledger_verifies(path: Path, tmp_path: Path, store: SqliteStore) -> None:
    entries = stream_of("a", 3)
    await append_all(
        store,
        [
            Write(
                entries=tuple(entries), states=(state_at(entries[-1]),), listings=(Listing("s", b"k", key_of("a"), 2),)
            )
        ],
    )
    copy_sqlite(path, tmp_path / "copy.db")
    await append_all(store, [Write(entries=(next_entry("later"),))])
    copy = await open_sqlite(tmp_path / "copy.db", create=False)
    assert await copy.last_position() == 3
    assert await copy.log(0, 10) == (await store.log(0, 10))[:3]
    assert (await verify_ledger(copy)).findings == []
    await copy.close()


async def test_copy_of_a_closed_ledger_verifies(path: Path, tmp_path: Path) -> None:
    store = await open_sqlite(path)
    await append_all(store, [Write(entries=(next_entry("a"),))])
    await store.close()
    copy_sqlite(path, tmp_path / "copy.db")
    copy = await open_sqlite(tmp_path / "copy.db", create=False)
    assert (await verify_ledger(copy)).entries == 1
    await copy.close()


def test_copy_neither_invents_a_source_nor_replaces_a_target(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.db"
    with pytest.raises(FileNotFoundError):
        copy_sqlite(path, target)
    assert not target.exists()
    path.write_text("no database" * 1000)
    with pytest.raises(StoreFormatError):
        copy_sqlite(path, target)
    assert not target.exists()
    target.write_text("precious")
    with pytest.raises(FileExistsError):
        copy_sqlite(path, target)
    assert target.read_text() == "precious"


# --- erasure --------------------------------------------------------------------------------------


@pytest.mark.parametrize("statement", ["DELETE FROM name", "DELETE FROM listing", "DELETE FROM erasure"])
async def test_names_and_lists_go_only_where_an_entry_says_so(store: SqliteStore, statement: str) -> None:
    _, gone = await two_of_a_kind(store)
    said = next_entry("gone", gone, number=ERASED)
    await append_all(store, [Write((said,), erasures=(Erasure(key_of("gone"), said.header.version),))])
    with pytest.raises(sqlite3.IntegrityError, match="insert-only"):
        await on_writer(store, lambda connection: connection.execute(statement))


async def test_erased_bytes_leave_the_file_its_wal_and_its_free_pages(path: Path, store: SqliteStore) -> None:
    marker = b"erased-marker-77ab09"
    entry = next_entry("gone", payload=marker * 900, request_id="request of gone")
    write = Write(
        entries=(entry,),
        states=(state_at(entry, marker * 200),),
        names=(NewName("hospital_rx", marker, key_of("gone")),),
        listings=(Listing("list", marker, key_of("gone"), 1, marker),),
        blobs=(Blob(key_of("gone"), bytes(32), marker * 2_000),),
        replies=(reply_to(entry, CALLER, "request of gone")._replace(body=marker * 2),),
    )
    await append_all(store, [Write(tuple(stream_of("before", 20))), write, Write(tuple(stream_of("after", 20)))])
    assert files_with(path, marker)
    said = next_entry("gone", entry, number=ERASED)
    erasure = Erasure(key_of("gone"), 2, (("hospital_rx", marker),))
    await append_all(store, [Write((said,), (state_at(said, b"bare"),), erasures=(erasure,))])
    assert files_with(path, marker) == []
    assert path.with_name("ledger.db-wal").stat().st_size == 0


async def test_a_reader_in_the_way_only_puts_the_emptying_of_the_wal_off(path: Path, store: SqliteStore) -> None:
    _, gone = await two_of_a_kind(store)
    await on_writer(store, lambda connection: connection.execute("PRAGMA busy_timeout = 0"))
    with closing(sqlite3.connect(path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM content").fetchone()
        said = next_entry("gone", gone, number=ERASED)
        await append_all(store, [Write((said,), erasures=(Erasure(key_of("gone"), said.header.version),))])
        assert path.with_name("ledger.db-wal").stat().st_size > 0
    await append_all(store, [Write((next_entry("later"),))])
    assert path.with_name("ledger.db-wal").stat().st_size == 0


async def test_scrubbing_writes_the_file_anew_and_changes_nothing_in_it(path: Path, store: SqliteStore) -> None:
    await append_all(store, [Write(tuple(stream_of("a", 30)))])
    with pytest.raises(StoreInUse):
        scrub_sqlite(path)
    await store.close()
    scrub_sqlite(path)
    again = await open_sqlite(path, create=False)
    assert await again.last_position() == 30
    assert (await verify_ledger(again)).findings == []
    await again.close()


def files_with(path: Path, marker: bytes) -> list[str]:
    """The files of a ledger that hold some bytes."""
    return [file.name for file in path.parent.iterdir() if marker in file.read_bytes()]


@pytest.mark.parametrize("rows", [1, 4, 21])
def test_bytes_of_every_size_and_kind_are_kept_as_they_are(rows: int) -> None:
    """Short ones are handed over as something else than long ones, and many to a statement."""
    values = [b"", b"\0", bytes(4_096), bytes(4_097), bytes(range(256)) * 64, PlacedKey.made(b"\xff" * 32, "330100")]
    given = [(no, f"{no}", values[no % len(values)], None) for no in range(rows * len(values))]
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE kept (no INTEGER, text TEXT, value BLOB, absent BLOB)")
        put_rows(connection, "INSERT INTO kept VALUES (?, ?, ?, ?)", given)
        kept = connection.execute("SELECT no, text, value, absent, typeof(value) FROM kept ORDER BY no").fetchall()
    assert kept == [(*row, "blob") for row in given]
