"""A naive hub's store: aiosqlite as most would use it, a hop for each statement and one transaction a request.

The file, the schema, the durability and every row are the hub's own; so are gRPC, checks and decisions before it. What
is missing is what the hub does beside that: many commands in one commit, and one hop for all statements of a batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from erxhub.ledger import sqlite_read, sqlite_writer
from erxhub.ledger.log import Checkpoint
from erxhub.ledger.sqlite import SqliteStore
from erxhub.ledger.store import AppendResult, Head, Loaded, Reply, Wanted, Write, check_write


class NaiveStore:
    """A SqliteStore with another way to load and to append. Its batches hold one command (`batch_commands_max`)."""

    def __init__(self, inner: SqliteStore) -> None:
        self._inner = inner
        self._connection = inner._connection
        self._writer: Any = inner._writer
        self._turn = asyncio.Lock()  # one connection: the log's steps must not fall into a transaction of many hops

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def load(self, wanted: Wanted) -> Loaded:
        names: dict[tuple[str, bytes], bytes] = {}
        heads: dict[bytes, Head] = {}
        replies: dict[tuple[str, str], Reply] = {}
        catalog: dict[tuple[str, str, str], bytes] = {}
        for name in wanted.names:
            if row := await self._one(sqlite_read.HEAD_BY_NAME, name):
                names[name] = row[2]
                await self._head(heads, row)
        for key in wanted.streams:
            if key not in heads and (row := await self._one(sqlite_read.HEAD_BY_KEY, (key,))):
                await self._head(heads, row)
        for request in wanted.replies:
            if row := await self._one(sqlite_read.REPLY_BY_REQUEST, request):
                replies[request] = Reply(*row)
        for code in wanted.catalog:
            if row := await self._one(sqlite_read.CATALOG_ROW, code):
                catalog[code] = row[0]
        return Loaded(names, heads, replies, catalog)

    async def append(self, batch: Sequence[Write]) -> AppendResult:
        """One transaction, one statement a row. A conflict takes the store's own way."""
        for write in batch:
            check_write(write)
        async with self._turn:
            rows = await self._job(self._gathered, batch)
            if rows is None:
                return await self._inner.append(batch)
            await self._insert(rows)
            return AppendResult(frozenset(), self._writer._last_position)

    async def integrate(self, now_ms: int, leaves_max: int) -> Checkpoint | None:
        async with self._turn:
            return await self._inner.integrate(now_ms, leaves_max)

    async def sign(self, no: int, note: str) -> None:
        async with self._turn:
            await self._inner.sign(no, note)

    async def _insert(self, rows: Any) -> None:
        await self._connection.execute("BEGIN IMMEDIATE")
        for statement, parameters in sqlite_writer.inserts(rows):
            for row in parameters:
                await self._connection.execute(statement, row)
        await self._job(self._committed, rows)

    def _gathered(self, batch: Sequence[Write]) -> Any:
        rows = sqlite_writer._Rows(self._writer._last_stream, self._writer._last_position)
        try:
            for write in batch:
                self._writer._gather(rows, write, new_streams_are_new=True)
        except sqlite_writer._Conflict:
            return None
        return rows

    def _committed(self, rows: Any) -> None:
        self._writer._commit(rows)

    async def _one(self, statement: str, parameters: Sequence[Any]) -> Any:
        async with self._connection.execute(statement, parameters) as cursor:
            return await cursor.fetchone()

    async def _head(self, heads: dict[bytes, Head], row: Any) -> None:
        no, kind, key, version, leaf_hash, body, due_at_ms = row[:7]
        if version is not None:
            heads[key] = Head(kind, key, version, leaf_hash, body, due_at_ms)
        elif newest := await self._one(sqlite_read.NEWEST_ENTRY, (no,)):
            heads[key] = Head(kind, key, newest[0], newest[1], b"", None)

    async def _job(self, function: Any, *arguments: Any) -> Any:
        return await self._connection._execute(lambda _: function(*arguments), self._connection._conn)  # type: ignore[no-untyped-call]
