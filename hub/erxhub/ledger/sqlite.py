"""The ledger in one SQLite file: the embedded store.

Owns the file, its lock and every SQL statement about it. One connection writes and a few read-only ones read,
each on its own thread; a call is one hop to such a thread, whatever the size of its batch. It must never
write outside `append`, and never acknowledge what is not yet on disk (WAL, synchronous=FULL).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar
from urllib.parse import quote

import aiosqlite

from erxhub.ledger import sqlite_log
from erxhub.ledger.entry import FIRST_PREV_LEAF_HASH
from erxhub.ledger.log import Checkpoint, Cosignature, Proofs, ProofsWanted
from erxhub.ledger.migrations import check_version, newest, run_sqlite, sqlite_version
from erxhub.ledger.store import (
    AppendResult,
    Erasure,
    Head,
    ListingRow,
    Loaded,
    NameRow,
    PlacedRow,
    Reply,
    StoredEntry,
    StoreInUse,
    StoreUnavailable,
    Wanted,
    Write,
    check_limit,
    check_write,
    requests_of,
)
from erxhub.proof.tiles import TilePlace

_P = ParamSpec("_P")
_T = TypeVar("_T")

_APPLICATION_ID = 0x65727868  # as the schema sets it
_BUSY_TIMEOUT_S = 5.0  # a copy or a shell may hold the file for a moment; longer is an operator's mistake
_STATEMENTS_CACHED = 256  # more than this module has, so that each is parsed once
_HEADS_CACHED = 50_000  # about 15 MB; a stream not in here costs two look-ups
_WRITER_CACHE_KIB = 64 * 1024
_PAGE_BYTES = 8192  # a prescription file is some 16 KiB: half the pages of SQLite's own size, and half the writes
_CHECKPOINT_PAGES = 4000  # a WAL of 32 MiB: often enough for a quick start, rare enough to write a hot page once
_INTEGER_MAX = 2**63 - 1  # SQLite's; a larger position or instant is beyond every row anyway

# Of SQLite's primary result codes, those that say "not now" about the disk or the file. All others are bugs.
_UNAVAILABLE = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOTADB,
    }
)
# Of the constraints, those that another Write can cause. A failed CHECK or NOT NULL is a bug.
_CONFLICT = frozenset(
    {
        sqlite3.SQLITE_CONSTRAINT_UNIQUE,
        sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY,
        sqlite3.SQLITE_CONSTRAINT_ROWID,
        sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY,
        sqlite3.SQLITE_CONSTRAINT_TRIGGER,
    }
)

# Cast, so that verification meets bytes and numbers also where somebody has put something else.
_ENTRY_COLUMNS = (
    "SELECT e.position, s.kind, CAST(s.key AS BLOB), CAST(e.header AS BLOB), CAST(e.commitment AS BLOB),"
    " CAST(e.leaf_hash AS BLOB), CAST(c.salt AS BLOB), CAST(c.payload AS BLOB), CAST(e.version AS INTEGER)"
)
_CONTENT_JOIN = "LEFT JOIN content c ON c.stream = e.stream AND c.version = e.version"
_HEAD_COLUMNS = "SELECT s.no, s.kind, s.key, t.version, t.leaf_hash, t.body, t.due_at_ms"
# Constants and not built where they are used: a new string costs as much as finding the row.
_HEAD_BY_NAME = (
    f"{_HEAD_COLUMNS} FROM name n JOIN stream s ON s.no = n.stream LEFT JOIN state t ON t.stream = s.no"
    " WHERE n.space = ? AND n.key = ?"
)
_HEAD_BY_KEY = f"{_HEAD_COLUMNS} FROM stream s LEFT JOIN state t ON t.stream = s.no WHERE s.key = ?"
_NEWEST_ENTRY = "SELECT version, leaf_hash FROM entry WHERE stream = ? ORDER BY version DESC LIMIT 1"
_REPLY_BY_REQUEST = (
    "SELECT r.caller, r.request_id, r.method, r.content_mac, r.body, s.key, r.version FROM reply r"
    " LEFT JOIN stream s ON s.no = r.stream WHERE r.caller = ? AND r.request_id = ?"
)
_CATALOG_ROW = "SELECT body FROM catalog_row WHERE dataset = ? AND edition = ? AND code = ?"


async def open_sqlite(path: str | os.PathLike[str], *, create: bool = True, readers: int = 3) -> SqliteStore:
    """Opens a ledger for writing and holds `<path>.lock` until `close` or the end of the process.

    Raises FileNotFoundError (no such file and not `create`, or no such folder), StoreInUse, StoreFormatError,
    StoreUnavailable.
    """
    if readers < 1:
        raise ValueError("at least one reader is needed")
    lock, file = _lock(path, create=create)
    connections: list[aiosqlite.Connection] = []
    try:
        _create_private(file)
        connections.append(await _connect(str(file), uri=False))
        writer = await _on_thread(connections[0], partial(_prepare_writer, database=str(file)))
        for _ in range(readers):
            connections.append(await _connect(_uri(file, "mode=ro"), uri=True))
            await _on_thread(connections[-1], _prepare_reader)
    except BaseException:
        for connection in reversed(connections):
            with suppress(Exception):
                await connection.close()
        os.close(lock)
        raise
    return SqliteStore(connections[0], writer, connections[1:], lock)


def copy_sqlite(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """A consistent copy of a ledger, also of one that a running hub writes to. Blocks until it is done.

    Raises FileNotFoundError, FileExistsError (a copy never replaces a file), StoreFormatError, StoreUnavailable.
    """
    # Not mode=ro: when no hub runs, reading a WAL database has to create the files beside it.
    uri = _uri(_existing(source), "mode=rw")
    target_file = Path(target)
    _create_private(target_file, exclusively=True)
    try:
        with (
            closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_S)) as reading,
            closing(sqlite3.connect(target_file)) as writing,
        ):
            reading.execute("PRAGMA query_only = ON")
            sqlite_version(reading, _APPLICATION_ID)
            reading.backup(writing)
    except BaseException as error:
        target_file.unlink()
        if isinstance(error, sqlite3.Error) and _is_unavailable(error):
            raise StoreUnavailable(f"the ledger cannot be copied: {error}") from error
        raise


def migrate_sqlite(path: str | os.PathLike[str]) -> list[int]:
    """Brings a ledger that no hub has open up to date, or makes it; the numbers of the scripts that were run. Blocks.

    Raises FileNotFoundError (no such folder), StoreInUse, StoreFormatError, StoreUnavailable.
    """
    lock, file = _lock(path, create=True)
    try:
        _create_private(file)
        with closing(sqlite3.connect(file, timeout=_BUSY_TIMEOUT_S, isolation_level=None)) as connection:
            version = sqlite_version(connection, _APPLICATION_ID)
            if version > newest("sqlite"):
                check_version("sqlite", version, str(file))
            if not version:
                connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
                connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            return run_sqlite(connection, version)
    except sqlite3.Error as error:
        if _is_unavailable(error):
            raise StoreUnavailable(f"the ledger cannot be used: {error}") from error
        raise
    finally:
        os.close(lock)


@contextmanager
def locked_sqlite(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A ledger file that no hub has open, of this release's schema, for as long as the context lasts.

    Raises FileNotFoundError, StoreInUse, StoreFormatError.
    """
    lock, file = _lock(path, create=False)
    try:
        check_version("sqlite", version_sqlite(file), str(file))
        yield file
    finally:
        os.close(lock)


def damage_sqlite(path: str | os.PathLike[str]) -> list[str]:
    """What SQLite itself finds wrong with a ledger file, at most a hundred lines; nothing when it is whole. Blocks."""
    with closing(sqlite3.connect(_uri(_existing(path), "mode=rw"), uri=True, timeout=_BUSY_TIMEOUT_S)) as connection:
        connection.execute("PRAGMA query_only = ON")
        try:
            found = [row[0] for row in connection.execute("PRAGMA integrity_check(100)") if row[0] != "ok"]
            for table, _, parent, _ in connection.execute("PRAGMA foreign_key_check"):
                found.append(f"{table} refers to nothing in {parent}")
        except sqlite3.DatabaseError as error:
            found = [str(error)]
    return found[:100]


def version_sqlite(path: str | os.PathLike[str]) -> int:
    """The schema of a ledger file. Raises FileNotFoundError, StoreFormatError (it is none)."""
    with closing(sqlite3.connect(_uri(_existing(path), "mode=ro"), uri=True, timeout=_BUSY_TIMEOUT_S)) as connection:
        return sqlite_version(connection, _APPLICATION_ID)


class SqliteStore:
    """See `Store`. Made by `open_sqlite`."""

    def __init__(
        self,
        connection: aiosqlite.Connection,
        writer: _Writer,
        readers: Sequence[aiosqlite.Connection],
        lock: int,
    ) -> None:
        self._connection = connection
        self._writer = writer
        self._readers = readers
        self._next_reader = cycle(readers)
        self._lock = lock
        self._stepping = asyncio.Lock()
        self._closed = False

    @property
    def others(self) -> None:
        return None

    async def load(self, wanted: Wanted) -> Loaded:
        return await self._write_side(self._writer.load, wanted)

    async def read(self, wanted: Wanted) -> Loaded:
        return await self._read_side(_load, wanted)

    async def append(self, batch: Sequence[Write]) -> AppendResult:
        writes = tuple(batch)
        for write in writes:
            check_write(write)
        # Shielded by construction: up to the hop nothing waits, and the batch is then one job of the writer's
        # thread, which a cancelled caller can no longer reach. (asyncio.shield would add a task, and with it a turn
        # of the loop in which a later call could overtake this one.)
        return await self._write_side(self._writer.append, writes)

    async def entries(self, stream_key: bytes, after_version: int, limit: int) -> list[StoredEntry]:
        check_limit(limit)
        rows = await self._read_side(
            _fetch,
            f"{_ENTRY_COLUMNS} FROM stream s JOIN entry e ON e.stream = s.no {_CONTENT_JOIN}"
            " WHERE s.key = ? AND e.version > ? ORDER BY e.version LIMIT ?",
            (stream_key, _bounded(after_version), _bounded(limit)),
        )
        return [StoredEntry(*row) for row in rows]

    async def log(self, after_position: int, limit: int) -> list[StoredEntry]:
        check_limit(limit)
        rows = await self._read_side(
            _fetch,
            f"{_ENTRY_COLUMNS} FROM entry e JOIN stream s ON s.no = e.stream {_CONTENT_JOIN}"
            " WHERE e.position > ? ORDER BY e.position LIMIT ?",
            (_bounded(after_position), _bounded(limit)),
        )
        return [StoredEntry(*row) for row in rows]

    async def listing(
        self, space: str, key: bytes, after_position: int, limit: int, newest_first: bool = False
    ) -> list[ListingRow]:
        check_limit(limit)
        if newest_first:
            bound, side, order = after_position or _INTEGER_MAX, "<", "DESC"
        else:
            bound, side, order = after_position, ">", "ASC"
        rows = await self._read_side(
            _fetch,
            "SELECT l.position, s.key, e.version, l.value FROM listing l"
            " JOIN entry e ON e.position = l.position JOIN stream s ON s.no = e.stream"
            f" WHERE l.space = ? AND l.key = ? AND l.position {side} ?"
            f" ORDER BY l.position {order} LIMIT ?",
            (space, key, _bounded(bound), _bounded(limit)),
        )
        return [ListingRow(*row) for row in rows]

    async def names(self, after: tuple[str, bytes] | None, limit: int) -> list[NameRow]:
        check_limit(limit)
        rows = await self._read_side(
            _fetch,
            "SELECT n.space, CAST(n.key AS BLOB), ifnull(s.kind, ''), ifnull(CAST(s.key AS BLOB), X'') FROM name n"
            f" LEFT JOIN stream s ON s.no = n.stream {'' if after is None else 'WHERE (n.space, n.key) > (?, ?)'}"
            " ORDER BY n.space, n.key LIMIT ?",
            (*(after or ()), _bounded(limit)),
        )
        return [NameRow(*row) for row in rows]

    async def listings(self, after_position: int, until_position: int) -> list[PlacedRow]:
        rows = await self._read_side(
            _fetch,
            "SELECT position, space, CAST(key AS BLOB), CAST(value AS BLOB) FROM listing"
            " WHERE position > ? AND position <= ? ORDER BY position, space, key",
            (_bounded(after_position), _bounded(until_position)),
        )
        return [PlacedRow(*row) for row in rows]

    async def blob(self, stream_key: bytes, digest: bytes) -> bytes | None:
        rows = await self._read_side(
            _fetch,
            "SELECT b.data FROM stream s JOIN blob b ON b.stream = s.no WHERE s.key = ? AND b.digest = ?",
            (stream_key, digest),
        )
        return rows[0][0] if rows else None

    async def catalog_page(self, dataset: str, edition: str, after_code: str, limit: int) -> list[tuple[str, bytes]]:
        check_limit(limit)
        return await self._read_side(
            _fetch,
            "SELECT code, body FROM catalog_row WHERE dataset = ? AND edition = ? AND code > ? ORDER BY code LIMIT ?",
            (dataset, edition, after_code, _bounded(limit)),
        )

    async def due(self, now_ms: int, limit: int) -> list[bytes]:
        check_limit(limit)
        rows = await self._read_side(
            _fetch,
            "SELECT s.key FROM state t JOIN stream s ON s.no = t.stream WHERE t.due_at_ms <= ?"
            " ORDER BY t.due_at_ms, t.stream LIMIT ?",
            (_bounded(now_ms), _bounded(limit)),
        )
        return [row[0] for row in rows]

    async def last_position(self) -> int:
        rows = await self._read_side(_fetch, "SELECT ifnull(max(position), 0) FROM entry", ())
        position: int = rows[0][0]
        return position

    @property
    def integrates(self) -> bool:
        return True

    async def integrate(self, now_ms: int, leaves_max: int) -> Checkpoint | None:
        check_limit(leaves_max)
        async with self._stepping:
            step = await self._read_side(sqlite_log.plan, now_ms, leaves_max)
            if step is None or not await self._write_side(self._writer.run, sqlite_log.write, step):
                return None
            return step.checkpoint

    async def checkpoint(self, no: int | None = None, size: int | None = None) -> Checkpoint | None:
        return await self._read_side(sqlite_log.checkpoint, no, size)

    async def checkpoints(self, after_no: int, limit: int) -> list[Checkpoint]:
        check_limit(limit)
        return await self._read_side(sqlite_log.checkpoints, after_no, limit)

    async def sign(self, no: int, note: str) -> None:
        await self._write_side(self._writer.run, sqlite_log.sign, no, note)

    async def cosign(self, no: int, lines: Sequence[Cosignature]) -> None:
        await self._write_side(self._writer.run, sqlite_log.cosign, no, lines)

    async def witness_sizes(self) -> dict[str, int]:
        return await self._read_side(sqlite_log.witness_sizes)

    async def prove(self, wanted: ProofsWanted) -> Proofs:
        return await self._read_side(sqlite_log.prove, wanted)

    async def inclusion(self, index: int, size: int) -> list[bytes]:
        return await self._read_side(sqlite_log.inclusion, index, size)

    async def consistency(self, size1: int, size2: int) -> list[bytes]:
        return await self._read_side(sqlite_log.consistency, size1, size2)

    async def tiles(self, places: Collection[TilePlace]) -> dict[TilePlace, bytes]:
        return await self._read_side(sqlite_log.tiles, places)

    async def pages(self, paths: Collection[bytes]) -> dict[bytes, bytes]:
        return await self._read_side(sqlite_log.pages, paths)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            # The writer last: the last connection to close folds the WAL into the file.
            for connection in (*self._readers, self._connection):
                await connection.close()
        finally:
            os.close(self._lock)

    async def _write_side(self, method: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        self._check_open()
        return await _on_thread(self._connection, lambda _: method(*args, **kwargs))

    async def _read_side(
        self, function: Callable[Concatenate[sqlite3.Connection, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        self._check_open()
        return await _on_thread(next(self._next_reader), _in_snapshot(function, *args, **kwargs))

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")


_StreamHead: TypeAlias = tuple[int, int, bytes]
"""Where the writer knows a stream to stand, which the next entry has to extend: number, version, leaf hash."""


@dataclass(slots=True)
class _Rows:
    """The rows of some Writes, gathered so that each table takes one executemany.

    With them, where these Writes leave the streams and the two counters.
    """

    last_stream: int
    last_position: int
    heads: dict[bytes, _StreamHead] = field(default_factory=dict)
    positions: dict[tuple[bytes, int], int] = field(default_factory=dict)
    streams: list[tuple[Any, ...]] = field(default_factory=list)
    entries: list[tuple[Any, ...]] = field(default_factory=list)
    contents: list[tuple[Any, ...]] = field(default_factory=list)
    states: dict[int, tuple[Any, ...]] = field(default_factory=dict)  # by stream: only the newest is written
    names: list[tuple[Any, ...]] = field(default_factory=list)
    listings: list[tuple[Any, ...]] = field(default_factory=list)
    blobs: list[tuple[Any, ...]] = field(default_factory=list)
    catalog_rows: list[tuple[Any, ...]] = field(default_factory=list)
    replies: list[tuple[Any, ...]] = field(default_factory=list)
    erasures: list[tuple[int, Erasure]] = field(default_factory=list)  # with the stream's number


class _Conflict(Exception):
    """A Write does not fit what is in the ledger."""


class _Writer:
    """What happens on the writer's thread, and never on another.

    All of it assumes, and the lock file grants, that nobody else writes: stream heads and the two counters are kept
    here instead of being asked for every time.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._heads: dict[bytes, _StreamHead] = {}  # what was written last comes last
        self._wal_keeps_erased = False
        self._last_stream: int = connection.execute("SELECT ifnull(max(no), 0) FROM stream").fetchone()[0]
        self._last_position: int = connection.execute("SELECT ifnull(max(position), 0) FROM entry").fetchone()[0]

    def load(self, wanted: Wanted) -> Loaded:
        self._roll_back()  # of an append whose own roll-back failed with the disk
        return _in_snapshot(_load, wanted)(self._connection)  # one transaction is also half the price of many

    def run(self, job: Callable[Concatenate[sqlite3.Connection, _P], _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """A transaction that touches neither streams nor entries."""
        self._roll_back()  # as in load
        try:
            return job(self._connection, *args, **kwargs)
        except BaseException:
            with suppress(sqlite3.Error):
                self._roll_back()
            raise

    def append(self, batch: Sequence[Write]) -> AppendResult:
        """Tries the batch as one; only when something conflicts is it worth finding out what."""
        self._roll_back()  # as in load
        try:
            try:
                self._append_together(batch)
                return AppendResult(frozenset(), self._last_position)
            except _Conflict:
                pass
            except sqlite3.IntegrityError as error:
                if error.sqlite_errorcode not in _CONFLICT:
                    raise
            self._roll_back()
            conflicts = self._append_one_by_one(batch)
            return AppendResult(conflicts, self._last_position)
        except BaseException:
            with suppress(sqlite3.Error):
                self._roll_back()
            raise

    def _append_together(self, batch: Sequence[Write]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        rows = _Rows(self._last_stream, self._last_position)
        for write in batch:
            self._gather(rows, write, new_streams_are_new=True)
        self._insert(rows)
        self._commit(rows)

    def _append_one_by_one(self, batch: Sequence[Write]) -> frozenset[int]:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        written = _Rows(self._last_stream, self._last_position)
        conflicts: set[int] = set()
        dropped: set[bytes] = set()
        for index, write in enumerate(batch):
            rows = _Rows(written.last_stream, written.last_position, dict(written.heads))
            execute("SAVEPOINT one_write")
            try:
                if any(not dropped.isdisjoint(entry.header.causes) for entry in write.entries):
                    raise _Conflict
                self._gather(rows, write, new_streams_are_new=False)
                self._insert(rows)
                rows.erasures[:0] = written.erasures
                written = rows
            except (_Conflict, sqlite3.IntegrityError) as error:
                if isinstance(error, sqlite3.IntegrityError) and error.sqlite_errorcode not in _CONFLICT:
                    raise
                execute("ROLLBACK TO one_write")
                conflicts.add(index)
                dropped.update(entry.leaf_hash for entry in write.entries)
            execute("RELEASE one_write")
        self._commit(written)
        return frozenset(conflicts)

    def _commit(self, rows: _Rows) -> None:
        self._connection.execute("COMMIT")
        self._last_stream = rows.last_stream
        self._last_position = rows.last_position
        cache = self._heads
        for key, head in rows.heads.items():
            cache.pop(key, None)
            cache[key] = head
        while len(cache) > _HEADS_CACHED:
            del cache[next(iter(cache))]
        if rows.erasures or self._wal_keeps_erased:
            self._empty_wal()

    def _empty_wal(self) -> None:
        """Fold the WAL into the file and cut it to nothing: it holds what was erased. Tried again when a reader is in
        the way, and when the disk is: the erasure itself is committed.
        """
        self._wal_keeps_erased = True
        with suppress(sqlite3.Error):
            self._wal_keeps_erased = bool(self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _gather(self, rows: _Rows, write: Write, *, new_streams_are_new: bool) -> None:
        """Adds the rows of one Write. Raises _Conflict.

        `new_streams_are_new` takes a first entry's word for it that its stream does not exist, which saves a
        look-up; the unique key catches the lie.
        """
        heads, known = rows.heads, self._heads
        for header, header_bytes, salt, payload, commitment, prev_leaf_hash, leaf_hash in write.entries:
            key, version = header.stream_key, header.version
            head = heads.get(key) or known.get(key)
            if head is None and not (new_streams_are_new and version == 1):
                head = self._find_head(key)
            if head is not None:
                no, newest, newest_leaf_hash = head
                if version != newest + 1 or prev_leaf_hash != newest_leaf_hash:
                    raise _Conflict
            else:
                if version != 1 or prev_leaf_hash != FIRST_PREV_LEAF_HASH:
                    raise _Conflict
                no = rows.last_stream = rows.last_stream + 1
                rows.streams.append((no, header.stream_kind, key))
            position = rows.last_position = rows.last_position + 1
            heads[key] = (no, version, leaf_hash)
            rows.positions[key, version] = position
            rows.entries.append((position, no, version, header_bytes, commitment, leaf_hash))
            rows.contents.append((no, version, salt, payload))
        for key, version, leaf_hash, body, due_at_ms in write.states:
            no = heads[key][0]
            rows.states[no] = (no, version, leaf_hash, body, due_at_ms)
        for space, name, key in write.names:
            rows.names.append((space, name, self._stream_no(rows, key)))
        for space, listed_under, key, version, value in write.listings:
            listed = rows.positions.get((key, version))
            if listed is None:
                listed = self._find_position(key, version)
            rows.listings.append((space, listed_under, listed, value))
        for key, digest, data in write.blobs:
            rows.blobs.append((self._stream_no(rows, key), digest, data))
        rows.catalog_rows.extend(write.catalog_rows)
        for caller, request_id, method, content_mac, body, of_key, of_version in write.replies:
            of = None if of_key is None else self._stream_no(rows, of_key)
            rows.replies.append((caller, request_id, method, content_mac, body, of, of_version))
        rows.erasures.extend([(heads[erasure.stream_key][0], erasure) for erasure in write.erasures])

    def _insert(self, rows: _Rows) -> None:
        for statement, parameters in (
            ("INSERT INTO stream VALUES (?, ?, ?)", rows.streams),
            ("INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?)", rows.entries),
            ("INSERT INTO content VALUES (?, ?, ?, ?)", rows.contents),
            (
                "INSERT INTO state VALUES (?, ?, ?, ?, ?) ON CONFLICT (stream) DO UPDATE SET"
                " version = excluded.version, leaf_hash = excluded.leaf_hash, body = excluded.body,"
                " due_at_ms = excluded.due_at_ms",
                list(rows.states.values()),
            ),
            ("INSERT INTO name VALUES (?, ?, ?)", rows.names),
            ("INSERT INTO listing VALUES (?, ?, ?, ?)", rows.listings),
            ("INSERT INTO blob VALUES (?, ?, ?) ON CONFLICT DO NOTHING", rows.blobs),
            (
                "INSERT INTO catalog_row VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET body = excluded.body"
                " WHERE body <> excluded.body",  # which a trigger refuses: an edition never changes
                rows.catalog_rows,
            ),
            ("INSERT INTO reply VALUES (?, ?, ?, ?, ?, ?, ?)", rows.replies),
        ):
            if parameters:
                self._connection.executemany(statement, parameters)
        for no, erasure in rows.erasures:
            self._erase(no, erasure)

    def _erase(self, no: int, erasure: Erasure) -> None:
        execute, before = self._connection.execute, (no, erasure.version)
        execute("INSERT INTO erasure VALUES (?, ?)", before)
        headers = execute("SELECT header FROM entry WHERE stream = ? AND version < ?", before).fetchall()
        for place in requests_of(row[0] for row in headers):
            # A reply is never changed: what is left of it takes its place.
            found = execute(
                "DELETE FROM reply WHERE caller = ? AND request_id = ? AND stream = ? AND version < ?"
                " RETURNING caller, request_id, method, stream, version",
                (*place, *before),
            ).fetchall()
            for caller, request_id, method, stream, version in found:
                bare = (caller, request_id, method, b"", b"", stream, version)
                execute("INSERT INTO reply VALUES (?, ?, ?, ?, ?, ?, ?)", bare)
        execute("DELETE FROM content WHERE stream = ? AND version < ?", before)
        execute("DELETE FROM blob WHERE stream = ?", (no,))
        execute(
            "DELETE FROM listing WHERE position IN (SELECT position FROM entry WHERE stream = ? AND version < ?)",
            before,
        )
        for space, key in erasure.names:
            execute("DELETE FROM name WHERE space = ? AND key = ? AND stream = ?", (space, key, no))

    def _stream_no(self, rows: _Rows, key: bytes) -> int:
        head = rows.heads.get(key) or self._heads.get(key) or self._find_head(key)
        if head is None:
            raise _Conflict
        return head[0]

    def _find_head(self, key: bytes) -> _StreamHead | None:
        row = self._connection.execute(
            "SELECT s.no, e.version, e.leaf_hash FROM stream s JOIN entry e ON e.stream = s.no"
            " WHERE s.key = ? ORDER BY e.version DESC LIMIT 1",
            (key,),
        ).fetchone()
        return None if row is None else (row[0], row[1], row[2])

    def _find_position(self, key: bytes, version: int) -> int:
        row = self._connection.execute(
            "SELECT e.position FROM stream s JOIN entry e ON e.stream = s.no WHERE s.key = ? AND e.version = ?",
            (key, _bounded(version)),
        ).fetchone()
        if row is None:
            raise _Conflict
        position: int = row[0]
        return position


def _load(connection: sqlite3.Connection, wanted: Wanted) -> Loaded:
    """The look-ups of one round trip, on whichever connection."""
    find = connection.cursor().execute  # one cursor for all: each is read out before the next
    names: dict[tuple[str, bytes], bytes] = {}
    heads: dict[bytes, Head] = {}
    for name in wanted.names:
        row = find(_HEAD_BY_NAME, name).fetchone()
        if row is not None:
            names[name] = row[2]
            heads.update(_head(connection, row))
    for key in wanted.streams:
        if key not in heads:
            row = find(_HEAD_BY_KEY, (key,)).fetchone()
            if row is not None:
                heads.update(_head(connection, row))
    replies: dict[tuple[str, str], Reply] = {}
    for request in wanted.replies:
        row = find(_REPLY_BY_REQUEST, request).fetchone()
        if row is not None:
            replies[request] = Reply(*row)
    catalog: dict[tuple[str, str, str], bytes] = {}
    for code in wanted.catalog:
        row = find(_CATALOG_ROW, code).fetchone()
        if row is not None:
            catalog[code] = row[0]
    return Loaded(names, heads, replies, catalog)


def _head(connection: sqlite3.Connection, row: tuple[Any, ...]) -> dict[bytes, Head]:
    """One head, or none for a stream whose entries somebody has taken out."""
    no, kind, key, version, leaf_hash, body, due_at_ms = row
    if version is not None:
        return {key: Head(kind, key, version, leaf_hash, body, due_at_ms)}
    newest = connection.execute(_NEWEST_ENTRY, (no,)).fetchone()
    return {} if newest is None else {key: Head(kind, key, newest[0], newest[1], b"", None)}


def _fetch(connection: sqlite3.Connection, statement: str, parameters: Iterable[Any]) -> list[tuple[Any, ...]]:
    return connection.execute(statement, tuple(parameters)).fetchall()


def _in_snapshot(
    function: Callable[Concatenate[sqlite3.Connection, _P], _T], *args: _P.args, **kwargs: _P.kwargs
) -> Callable[[sqlite3.Connection], _T]:
    """Several statements of one read see one state of the ledger."""

    def run(connection: sqlite3.Connection) -> _T:
        connection.execute("BEGIN")
        try:
            return function(connection, *args, **kwargs)
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    return run


def _bounded(number: int) -> int:
    return max(-_INTEGER_MAX, min(number, _INTEGER_MAX))


async def _connect(database: str, *, uri: bool) -> aiosqlite.Connection:
    try:
        return await aiosqlite.connect(
            database,
            uri=uri,
            timeout=_BUSY_TIMEOUT_S,
            isolation_level=None,  # transactions are begun and ended by this module alone
            cached_statements=_STATEMENTS_CACHED,
        )
    except sqlite3.Error as error:
        raise StoreUnavailable(f"the ledger cannot be opened: {error}") from error


async def _on_thread(connection: aiosqlite.Connection, job: Callable[[sqlite3.Connection], _T]) -> _T:
    """Runs a whole job, of however many statements, as one hop to the connection's thread.

    aiosqlite offers a hop per statement only. `_execute` is the queue below all its methods and `_conn` the
    plain connection; this is the one place that uses them.
    """
    try:
        result: _T = await connection._execute(job, connection._conn)  # type: ignore[no-untyped-call]
    except sqlite3.Error as error:
        if _is_unavailable(error):
            raise StoreUnavailable(f"the ledger cannot be used: {error}") from error
        raise
    return result


def _is_unavailable(error: sqlite3.Error) -> bool:
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _UNAVAILABLE


def _existing(path: str | os.PathLike[str]) -> Path:
    file = Path(path).resolve()
    if not file.exists():
        raise FileNotFoundError(f"no ledger at {file}")
    return file


def _create_private(file: Path, *, exclusively: bool = False) -> None:
    """Not left to SQLite: a file with personal data must not be readable by others, not even for a moment."""
    os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (os.O_EXCL * exclusively), 0o600))


def _uri(file: Path, query: str) -> str:
    return f"file:{quote(str(file))}?{query}"


def _lock(path: str | os.PathLike[str], *, create: bool) -> tuple[int, Path]:
    """An open lock file, and the ledger's without links, so that two names of it meet at one lock.

    The system lets go of the lock when the process ends, in whatever way.
    """
    file = Path(path).resolve() if create else _existing(path)
    lock = os.open(f"{file}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise StoreInUse(f"{file} is open for writing elsewhere: a ledger has one writer at a time") from error
    return lock, file


def _prepare_writer(connection: sqlite3.Connection, database: str) -> _Writer:
    version = sqlite_version(connection, _APPLICATION_ID)
    if version:
        check_version("sqlite", version, database)
    connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")  # of a new file; another keeps the one it has
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA cache_size = -{_WRITER_CACHE_KIB}")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA secure_delete = ON")  # what is erased, or replaced in a state, is overwritten
    if not version:
        run_sqlite(connection, version)  # a new file is made here; an old one by whoever decides it
    return _Writer(connection)


def _prepare_reader(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA query_only = ON")
    # A text that is none must reach verification, not break it.
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
