"""What the SQLite ledger's one writing connection does: it appends batches of Writes, and erases.

Owns every statement that writes streams, entries and what comes with them, and the two counters behind their numbers.
It must never report a Write as written before its commit.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Concatenate, Final, ParamSpec, TypeAlias, TypeVar

from erxhub.ledger.entry import FIRST_PREV_LEAF_HASH
from erxhub.ledger.sqlite_read import bindable, bounded, in_snapshot, load
from erxhub.ledger.store import AppendResult, Erasure, Loaded, Wanted, Write, requests_of

_P = ParamSpec("_P")
_T = TypeVar("_T")

_HEADS_CACHED: Final = 50_000
"""About 15 MB; a stream not in here costs two look-ups."""

_ROWS_A_STATEMENT: Final = (64, 16, 4)
"""How many rows an INSERT may have; the rest go one by one."""

# Of the constraints, those that another Write can cause. A failed CHECK or NOT NULL is a bug.
_CONFLICT: Final = frozenset(
    {
        sqlite3.SQLITE_CONSTRAINT_UNIQUE,
        sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY,
        sqlite3.SQLITE_CONSTRAINT_ROWID,
        sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY,
        sqlite3.SQLITE_CONSTRAINT_TRIGGER,
    }
)

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


def inserts(rows: _Rows) -> tuple[tuple[str, Sequence[tuple[Any, ...]]], ...]:
    """The statements that write the rows, one row each, with what they write; erasures are not among them."""
    return (
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
    )


def put_rows(connection: sqlite3.Connection, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """An INSERT of one row, for all rows, many to a statement: at each one the interpreter's lock changes hands."""
    begin = 0
    for many in _ROWS_A_STATEMENT:
        while len(rows) - begin >= many:
            group = rows[begin : begin + many]
            connection.execute(_of_many(statement, many), [bindable(value) for row in group for value in row])
            begin += many
    if begin < len(rows):
        connection.executemany(statement, rows[begin:])


@cache
def _of_many(statement: str, rows: int) -> str:
    """The statement with the values of so many rows."""
    row = statement[statement.index("(") : statement.index(")") + 1]
    return statement.replace(row, ", ".join([row] * rows), 1)


class _Conflict(Exception):
    """A Write does not fit what is in the ledger."""


class Writer:
    """What happens on the writer's thread, and never on another.

    All of it assumes, and the lock file grants, that nobody else writes: stream heads and the two counters are kept
    here instead of being asked for every time.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._heads_max = _HEADS_CACHED
        self._heads: dict[bytes, _StreamHead] = {}  # what was written last comes last
        self._wal_keeps_erased = False
        self._last_stream: int = connection.execute("SELECT ifnull(max(no), 0) FROM stream").fetchone()[0]
        self._last_position: int = connection.execute("SELECT ifnull(max(position), 0) FROM entry").fetchone()[0]

    def load(self, wanted: Wanted) -> Loaded:
        self._roll_back()  # of an append whose own roll-back failed with the disk
        return in_snapshot(load, wanted)(self._connection)  # one transaction is also half the price of many

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
        while len(cache) > self._heads_max:
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
        for statement, parameters in inserts(rows):
            put_rows(self._connection, statement, parameters)
        for no, erasure in rows.erasures:
            self._erase(no, erasure)

    def _erase(self, no: int, erasure: Erasure) -> None:
        execute, before = self._connection.execute, (no, erasure.version)
        execute("INSERT INTO erasure VALUES (?, ?)", before)
        headers = execute("SELECT header FROM entry WHERE stream = ? AND version < ?", before).fetchall()
        for place in requests_of([row[0] for row in headers]):
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
            (key, bounded(version)),
        ).fetchone()
        if row is None:
            raise _Conflict
        position: int = row[0]
        return position
