"""The ledger on PostgreSQL, for any number of hubs over one database.

Owns this hub's connections, at most sixteen: one writes, one is the sequencer's, one the log's, the others read.
It must never write domain state outside `append`, never acknowledge what is not durable (synchronous_commit, checked
when it opens), and never return from an append before readers of every hub find it in lists and log, while some hub
gives positions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, TypeVar, cast

import asyncpg

from erxhub.ledger import postgres_log
from erxhub.ledger.log import Checkpoint, Cosignature, Proofs, ProofsWanted
from erxhub.ledger.migrations import check_version, postgres_version
from erxhub.ledger.placement import NoAreas, Placement, keyed_shard
from erxhub.ledger.postgres_append import Appender
from erxhub.ledger.postgres_homes import Homes
from erxhub.ledger.postgres_log import LogWriter
from erxhub.ledger.postgres_plan import Home
from erxhub.ledger.postgres_read import (
    BLOB,
    CATALOG_PAGE,
    DUE,
    ENTRIES,
    GROWN,
    LISTING_DOWN,
    LISTING_UP,
    LISTINGS,
    LOG,
    NAMES_AFTER,
    NAMES_FROM_START,
    UNPLACED,
    load,
)
from erxhub.ledger.postgres_sequencer import LAST_INDEX, Sequencer
from erxhub.ledger.postgres_session import (
    Connection,
    check_durable,
    check_privileges,
    connect,
    described,
    is_unavailable,
    make_pool,
    unavailable,
)
from erxhub.ledger.postgres_writer import Writer
from erxhub.ledger.store import (
    AppendResult,
    ListingRow,
    Loaded,
    NameRow,
    PlacedRow,
    StoredEntry,
    StoreUnavailable,
    Wanted,
    Write,
    check_limit,
    check_write,
)
from erxhub.proof.tiles import TilePlace

_T = TypeVar("_T")

CONNECTIONS_MAX: Final = 16
_READERS: Final = CONNECTIONS_MAX - 3
_READER_WAIT_S: Final = 5.0


async def open_postgres(
    url: str, *, placement: Placement | None = None, readers: int = _READERS, gives_positions: bool = True
) -> PostgresStore:
    """Opens a ledger of a database that `erxhub db migrate` made.

    `placement` says which area things belong to and must be the same in all hubs of a ledger. Without
    `gives_positions` the store never takes the sequencer's part: for whoever only reads.
    Raises StoreFormatError (no ledger, another schema, settings that may lose a commit, a role with the wrong rights;
    the message says what to do), StoreUnavailable.
    """
    if not 1 <= readers <= _READERS:
        raise ValueError(f"readers are 1 to {_READERS}")
    async with AsyncExitStack() as undo:
        connection = await connect(url)
        undo.push_async_callback(connection.close)
        try:
            check_version("postgres", await postgres_version(connection), described(url))
            await check_durable(connection)
            await check_privileges(connection)
        except asyncpg.PostgresError as error:
            raise unavailable(error) from error
        pool = await make_pool(url, readers)
        undo.push_async_callback(pool.close)
        sequencer = Sequencer(url, may_lead=gives_positions)
        undo.push_async_callback(sequencer.close)
        await sequencer.start()
        placement = placement or NoAreas()
        homes = Homes(placement)
        writer = Writer(url, connection, Appender(homes, placement), sequencer)
        undo.pop_all()
    return PostgresStore(writer, pool, sequencer, homes, placement, LogWriter(url))


class PostgresStore:
    """See `Store`. Made by `open_postgres`."""

    def __init__(
        self,
        writer: Writer,
        pool: asyncpg.Pool[asyncpg.Record],
        sequencer: Sequencer,
        homes: Homes,
        placement: Placement,
        log_writer: LogWriter,
    ) -> None:
        self._writer = writer
        self._pool = pool
        self._sequencer = sequencer
        self._homes = homes
        self._placement = placement
        self._log_writer = log_writer
        self._closed = False

    @property
    def gives_positions(self) -> bool:
        """Whether this hub is the sequencer now."""
        return self._sequencer.holds_lease

    @property
    def others(self) -> PostgresStore:
        return self

    async def changed(self, after_position: int) -> int:
        """See `Others`."""
        return await self._sequencer.until_beyond(after_position)

    async def grown(self, space: str, keys: Collection[bytes], after_position: int) -> frozenset[bytes]:
        """See `Others`. After a failure `changed` waits until the database was asked again."""
        shards = [keyed_shard(self._placement.of_list(space, key), space, key) for key in keys]
        try:
            rows = await self._fetch(GROWN, shards, list(keys), space, _bounded(after_position))
        except BaseException:
            self._sequencer.doubt()
            raise
        return frozenset(row[0] for row in rows)

    async def load(self, wanted: Wanted) -> Loaded:
        self._check_open()
        return await self._writer.run(lambda connection: load(connection, wanted, self._homes, self._placement))

    async def read(self, wanted: Wanted) -> Loaded:
        return await self._reading(lambda connection: load(connection, wanted, self._homes, self._placement))

    async def append(self, batch: Sequence[Write]) -> AppendResult:
        self._check_open()
        writes = tuple(batch)
        for write in writes:
            check_write(write)
        # Handed over before anything waits, so calls keep their order and a cancelled caller cannot reach the batch.
        return await self._writer.append(writes)

    async def entries(self, stream_key: bytes, after_version: int, limit: int) -> list[StoredEntry]:
        check_limit(limit)

        async def find(connection: Connection) -> list[Any]:
            home = await self._home(connection, stream_key)
            if home is None:
                return []
            return await connection.fetch(ENTRIES, *home, _bounded(after_version), _bounded(limit))

        return [StoredEntry(*row) for row in await self._reading(find)]

    async def log(self, after_position: int, limit: int) -> list[StoredEntry]:
        check_limit(limit)
        rows = await self._fetch(LOG, _bounded(after_position), _bounded(limit))
        return [StoredEntry(*row) for row in rows]

    async def listing(
        self, space: str, key: bytes, after_position: int, limit: int, newest_first: bool = False
    ) -> list[ListingRow]:
        check_limit(limit)
        shard = keyed_shard(self._placement.of_list(space, key), space, key)
        if newest_first:
            statement, bound = LISTING_DOWN, after_position or UNPLACED
        else:
            statement, bound = LISTING_UP, after_position
        rows = await self._fetch(statement, shard, space, key, _bounded(bound), _bounded(limit))
        self._homes.remember({row[1]: Home(row[4], row[5]) for row in rows})
        return [ListingRow(*row[:4]) for row in rows]

    async def names(self, after: tuple[str, bytes] | None, limit: int) -> list[NameRow]:
        check_limit(limit)
        statement = NAMES_FROM_START if after is None else NAMES_AFTER
        return [NameRow(*row) for row in await self._fetch(statement, _bounded(limit), *(after or ()))]

    async def listings(self, after_position: int, until_position: int) -> list[PlacedRow]:
        rows = await self._fetch(LISTINGS, _bounded(after_position), _bounded(until_position))
        return [PlacedRow(*row) for row in rows]

    async def blob(self, stream_key: bytes, digest: bytes) -> bytes | None:
        async def find(connection: Connection) -> bytes | None:
            home = await self._home(connection, stream_key)
            if home is None:
                return None
            data: bytes | None = await connection.fetchval(BLOB, *home, digest)
            return data

        return await self._reading(find)

    async def catalog_page(self, dataset: str, edition: str, after_code: str, limit: int) -> list[tuple[str, bytes]]:
        check_limit(limit)
        return [tuple(row) for row in await self._fetch(CATALOG_PAGE, dataset, edition, after_code, _bounded(limit))]

    async def due(self, now_ms: int, limit: int) -> list[bytes]:
        check_limit(limit)
        rows = await self._fetch(DUE, _bounded(now_ms), _bounded(limit))
        self._homes.remember({key: Home(shard, no) for key, shard, no in rows})
        return [row[0] for row in rows]

    async def last_position(self) -> int:
        rows = await self._fetch(LAST_INDEX)
        position: int = rows[0][0]
        return position

    @property
    def integrates(self) -> bool:
        return self._sequencer.holds_lease

    async def integrate(self, now_ms: int, leaves_max: int) -> Checkpoint | None:
        check_limit(leaves_max)
        return await self._logging(lambda connection: postgres_log.integrate(connection, now_ms, leaves_max))

    async def checkpoint(self, no: int | None = None, size: int | None = None) -> Checkpoint | None:
        return await self._reading(lambda connection: postgres_log.checkpoint(connection, no, size))

    async def checkpoints(self, after_no: int, limit: int) -> list[Checkpoint]:
        check_limit(limit)
        return await self._reading(lambda connection: postgres_log.checkpoints(connection, after_no, limit))

    async def sign(self, no: int, note: str) -> None:
        await self._logging(lambda connection: postgres_log.sign(connection, no, note))

    async def cosign(self, no: int, lines: Sequence[Cosignature]) -> None:
        await self._logging(lambda connection: postgres_log.cosign(connection, no, lines))

    async def witness_sizes(self) -> dict[str, int]:
        return await self._reading(postgres_log.witness_sizes)

    async def prove(self, wanted: ProofsWanted) -> Proofs:
        async def from_one_snapshot(connection: Connection) -> Proofs:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                return await postgres_log.prove(connection, self._homes, wanted)

        return await self._reading(from_one_snapshot)

    async def inclusion(self, index: int, size: int) -> list[bytes]:
        return await self._reading(lambda connection: postgres_log.inclusion(connection, index, size))

    async def consistency(self, size1: int, size2: int) -> list[bytes]:
        return await self._reading(lambda connection: postgres_log.consistency(connection, size1, size2))

    async def tiles(self, places: Collection[TilePlace]) -> dict[TilePlace, bytes]:
        return await self._reading(lambda connection: postgres_log.tiles(connection, places))

    async def pages(self, paths: Collection[bytes]) -> dict[bytes, bytes]:
        return await self._reading(lambda connection: postgres_log.pages(connection, paths))

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._log_writer.close()
        await self._writer.close()
        await self._sequencer.close()
        try:
            await asyncio.wait_for(self._pool.close(), _READER_WAIT_S)
        except (TimeoutError, asyncpg.InterfaceError, OSError):
            self._pool.terminate()

    async def _logging(self, job: Callable[[Connection], Awaitable[_T]]) -> _T:
        self._check_open()
        return await self._log_writer.run(job)

    async def _home(self, connection: Connection, stream_key: bytes) -> Home | None:
        return (await self._homes.find(connection, (stream_key,))).get(stream_key)

    async def _fetch(self, statement: str, *arguments: Any) -> list[Any]:
        return await self._reading(lambda connection: connection.fetch(statement, *arguments))

    async def _reading(self, job: Callable[[Connection], Awaitable[_T]]) -> _T:
        self._check_open()
        try:
            async with self._pool.acquire(timeout=_READER_WAIT_S) as connection:
                # The pool's proxy has all that a connection has.
                return await job(cast("Connection", connection))
        except Exception as error:
            if is_unavailable(error):
                raise unavailable(error) from error
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")


def _bounded(number: int) -> int:
    return max(-UNPLACED, min(number, UNPLACED))
