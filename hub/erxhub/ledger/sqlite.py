"""The ledger in one SQLite file: the embedded store.

Owns the file, its lock, its settings and its connections: one writes and a few read-only ones read, each on its own
thread; a call is one hop to such a thread, whatever the size of its batch. It must never write but through the Writer,
and never acknowledge what is not yet on disk (WAL, synchronous=FULL).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import quote

import aiosqlite

from erxhub.ledger import sqlite_log, sqlite_read
from erxhub.ledger.log import Checkpoint, Cosignature, Proofs, ProofsWanted
from erxhub.ledger.migrations import check_version, newest, run_sqlite, sqlite_version
from erxhub.ledger.sqlite_read import INTEGER_MAX, bounded, in_snapshot
from erxhub.ledger.sqlite_writer import Writer
from erxhub.ledger.store import (
    AppendResult,
    ListingRow,
    Loaded,
    NameRow,
    PlacedRow,
    StoredEntry,
    StoreInUse,
    StoreUnavailable,
    Wanted,
    Write,
    check_limit,
    check_write,
)
from erxhub.proof.tiles import TilePlace

_P = ParamSpec("_P")
_T = TypeVar("_T")

_APPLICATION_ID = 0x65727868  # as the schema sets it
_BUSY_TIMEOUT_S = 5.0  # a copy or a shell may hold the file for a moment; longer is an operator's mistake
_STATEMENTS_CACHED = 256  # more than a connection is given, so that each is parsed once
_WRITER_CACHE_KIB = 64 * 1024
_PAGE_BYTES = 8192  # a prescription file is some 16 KiB: half the pages of SQLite's own size, and half the writes
_CHECKPOINT_PAGES = 4000  # a WAL of 32 MiB: often enough for a quick start, rare enough to write a hot page once

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

# Cast, so that verification meets bytes and numbers also where somebody has put something else.
_ENTRY_COLUMNS = (
    "SELECT e.position, s.kind, CAST(s.key AS BLOB), CAST(e.header AS BLOB), CAST(e.commitment AS BLOB),"
    " CAST(e.leaf_hash AS BLOB), CAST(c.salt AS BLOB), CAST(c.payload AS BLOB), CAST(e.version AS INTEGER)"
)
_CONTENT_JOIN = "LEFT JOIN content c ON c.stream = e.stream AND c.version = e.version"


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
        writer: Writer,
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
        return await self._read_side(sqlite_read.load, wanted)

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
            (stream_key, bounded(after_version), bounded(limit)),
        )
        return [StoredEntry(*row) for row in rows]

    async def log(self, after_position: int, limit: int) -> list[StoredEntry]:
        check_limit(limit)
        rows = await self._read_side(
            _fetch,
            f"{_ENTRY_COLUMNS} FROM entry e JOIN stream s ON s.no = e.stream {_CONTENT_JOIN}"
            " WHERE e.position > ? ORDER BY e.position LIMIT ?",
            (bounded(after_position), bounded(limit)),
        )
        return [StoredEntry(*row) for row in rows]

    async def listing(
        self, space: str, key: bytes, after_position: int, limit: int, newest_first: bool = False
    ) -> list[ListingRow]:
        check_limit(limit)
        if newest_first:
            bound, side, order = after_position or INTEGER_MAX, "<", "DESC"
        else:
            bound, side, order = after_position, ">", "ASC"
        rows = await self._read_side(
            _fetch,
            "SELECT l.position, s.key, e.version, l.value FROM listing l"
            " JOIN entry e ON e.position = l.position JOIN stream s ON s.no = e.stream"
            f" WHERE l.space = ? AND l.key = ? AND l.position {side} ?"
            f" ORDER BY l.position {order} LIMIT ?",
            (space, key, bounded(bound), bounded(limit)),
        )
        return [ListingRow(*row) for row in rows]

    async def names(self, after: tuple[str, bytes] | None, limit: int) -> list[NameRow]:
        check_limit(limit)
        rows = await self._read_side(
            _fetch,
            "SELECT n.space, CAST(n.key AS BLOB), ifnull(s.kind, ''), ifnull(CAST(s.key AS BLOB), X'') FROM name n"
            f" LEFT JOIN stream s ON s.no = n.stream {'' if after is None else 'WHERE (n.space, n.key) > (?, ?)'}"
            " ORDER BY n.space, n.key LIMIT ?",
            (*(after or ()), bounded(limit)),
        )
        return [NameRow(*row) for row in rows]

    async def listings(self, after_position: int, until_position: int) -> list[PlacedRow]:
        rows = await self._read_side(
            _fetch,
            "SELECT position, space, CAST(key AS BLOB), CAST(value AS BLOB) FROM listing"
            " WHERE position > ? AND position <= ? ORDER BY position, space, key",
            (bounded(after_position), bounded(until_position)),
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
            (dataset, edition, after_code, bounded(limit)),
        )

    async def due(self, now_ms: int, limit: int) -> list[bytes]:
        check_limit(limit)
        rows = await self._read_side(
            _fetch,
            "SELECT s.key FROM state t JOIN stream s ON s.no = t.stream WHERE t.due_at_ms <= ?"
            " ORDER BY t.due_at_ms, t.stream LIMIT ?",
            (bounded(now_ms), bounded(limit)),
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
        return await _on_thread(next(self._next_reader), in_snapshot(function, *args, **kwargs))

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")


def _fetch(connection: sqlite3.Connection, statement: str, parameters: Iterable[Any]) -> list[tuple[Any, ...]]:
    return connection.execute(statement, tuple(parameters)).fetchall()


async def _connect(database: str, *, uri: bool) -> aiosqlite.Connection:
    try:
        return await aiosqlite.connect(
            database,
            uri=uri,
            timeout=_BUSY_TIMEOUT_S,
            isolation_level=None,  # transactions are begun and ended by statements
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


def _prepare_writer(connection: sqlite3.Connection, database: str) -> Writer:
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
    return Writer(connection)


def _prepare_reader(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA query_only = ON")
    # A text that is none must reach verification, not break it.
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
