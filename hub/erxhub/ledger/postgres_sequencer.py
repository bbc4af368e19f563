"""Who gives committed entries their position in the log, and how.

Owns the sequencer's statements. One hub holds a lease and gives positions; a locked row and its epoch fence off
whoever held it before, and the key of `log_index` is the last defence: two can at worst wait, never fork. Positions are
given in the order of the batches' tickets to all that is committed and has none. It tells the other hubs once a batch;
it must never do so inside a transaction that writes domain state, because a NOTIFY holds a lock of the whole database
while it commits.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any, Final

import asyncpg

from erxhub.ledger.postgres_append import Gathered
from erxhub.ledger.postgres_session import Connection, close_connection, connect, is_unavailable

_log = logging.getLogger("erxhub.ledger.postgres")

CHANNEL: Final = "erxhub_log"
LEASE_S: Final = 3.0
"""How long the hubs wait for a holder that died. It is renewed when half of it is over."""
STEP_ENTRIES: Final = 1024
"""Entries in one step: bounds how long the sequencer's row stays locked."""
_BUSY_PAUSE_S: Final = 0.01
"""How often the holder looks for other hubs' entries while there are any; what a call through another hub may wait."""
_IDLE_PAUSE_S: Final = 0.05
_WAITING_PAUSE_S: Final = 0.5
"""How often a hub without the lease looks whether it is free."""
_WAIT_ROUNDS_MAX: Final = 100
"""Looks for a position that does not come, one in each _IDLE_PAUSE_S: longer than a lease takes to pass on. Then the
append returns, since what is committed is durable without a position."""

TAKE_LEASE: Final = """
UPDATE erxhub_log.sequencer SET epoch = epoch + 1, leased_until = clock_timestamp() + $1 * interval '1 second'
WHERE leased_until < clock_timestamp() RETURNING epoch
"""
RENEW_LEASE: Final = """
UPDATE erxhub_log.sequencer SET leased_until = clock_timestamp() + $2 * interval '1 second'
WHERE epoch = $1 RETURNING epoch
"""
GIVE_LEASE_BACK: Final = "UPDATE erxhub_log.sequencer SET leased_until = '-infinity' WHERE epoch = $1"
LOOK: Final = """
SELECT leased_until < clock_timestamp() + $2 * interval '1 second',
       EXISTS (SELECT FROM unindexed) OR EXISTS (SELECT FROM unlisted)
FROM erxhub_log.sequencer WHERE epoch = $1
"""
LOCK_ROW: Final = "SELECT last_idx FROM erxhub_log.sequencer WHERE epoch = $1 FOR UPDATE"
LOCK_ROW_NOW: Final = f"{LOCK_ROW} SKIP LOCKED"
# All shards, because the log is one; `taken` is small, as this runs many times a second.
PLACE_ENTRIES: Final = """
WITH next AS (
    SELECT shard, ticket, ordinal FROM unindexed ORDER BY ticket, ordinal LIMIT $2
), taken AS (
    DELETE FROM unindexed u USING next n
    WHERE u.shard = n.shard AND u.ticket = n.ticket AND u.ordinal = n.ordinal
    RETURNING u.shard, u.ticket, u.ordinal, u.stream, u.version
), placed AS (
    INSERT INTO erxhub_log.log_index (idx, shard, stream, version)
    SELECT $1 + row_number() OVER (ORDER BY ticket, ordinal), shard, stream, version FROM taken
)
SELECT count(*) FROM taken
"""
PLACE_LISTINGS: Final = """
WITH ready AS (
    SELECT p.shard, p.ticket, p.ordinal, i.idx FROM unlisted p
    JOIN erxhub_log.log_index i ON i.shard = p.shard AND i.stream = p.stream AND i.version = p.version
), taken AS (
    DELETE FROM unlisted u USING ready r
    WHERE u.shard = r.shard AND u.ticket = r.ticket AND u.ordinal = r.ordinal
    RETURNING u.list_shard, u.space, u.key, r.idx, u.shard, u.stream, u.version, u.value
)
INSERT INTO listing (shard, space, key, position, home, stream, version, value) SELECT * FROM taken
"""
ADVANCE: Final = "UPDATE erxhub_log.sequencer SET last_idx = last_idx + $2 WHERE epoch = $1"
NOTIFY: Final = f"SELECT pg_notify('{CHANNEL}', $1)"
LAST_INDEX: Final = "SELECT last_idx FROM erxhub_log.sequencer"
STILL_WAITING: Final = """
SELECT last_idx,
       EXISTS (SELECT FROM unindexed u WHERE u.shard = ANY($1::integer[]) AND u.ticket = $2)
       OR EXISTS (SELECT FROM unlisted u WHERE u.shard = ANY($1::integer[]) AND u.ticket = $2)
FROM erxhub_log.sequencer
"""


class Sequencer:
    """One hub's part in it: holds the lease, or waits for it."""

    def __init__(self, url: str, *, may_lead: bool = True) -> None:
        self._url = url
        self._may_lead = may_lead
        self._connection: Connection | None = None
        self._epoch: int | None = None
        self._held: int | None = None  # the newest epoch of its own, to go on with after the connection was lost
        self._moved = asyncio.Event()
        self._last_heard: int | None = None  # None: perhaps not everything was heard of
        self._heard_more = asyncio.Event()
        self._wanted = asyncio.Event()
        self._announced: int | None = None
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    @property
    def holds_lease(self) -> bool:
        """Whether this hub gives positions, as far as it knows."""
        return self._epoch is not None

    async def start(self) -> None:
        """Take the lease if it is free, and go on in the background. Raises StoreUnavailable."""
        await self._connected()
        await self._try_to_lead()
        self._task = asyncio.create_task(self._run(), name="sequencer")

    async def close(self) -> None:
        """Give the lease back, so that another hub goes on at once."""
        self._closing = True
        self._wanted.set()
        if self._task is not None:
            await asyncio.wait({self._task})
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                if self._epoch is not None:
                    await connection.execute(GIVE_LEASE_BACK, self._epoch)
            await close_connection(connection)

    # ---- beside a commit ----

    async def place(self, connection: Connection) -> int | None:
        """Give positions inside a transaction that writes, when this hub leads and nobody is doing it just now.

        Returns the last position if all that waits is placed, None otherwise. Tells nobody; `announce` does, after the
        commit.
        """
        epoch = self._epoch
        if epoch is None:
            return None
        last: int | None = await connection.fetchval(LOCK_ROW_NOW, epoch)
        if last is None:
            return None
        count = await _place(connection, epoch, last)
        return None if count >= STEP_ENTRIES else last + count

    def announce(self, last_position: int) -> None:
        """A commit placed entries up to here: let the other hubs know."""
        self._announced = last_position
        self._wanted.set()

    async def until_placed(self, connection: Connection, gathered: Gathered) -> int:
        """Wait until a committed batch has its positions; returns the last position then."""
        shards, last = sorted(gathered.shards), 0
        for _ in range(_WAIT_ROUNDS_MAX):
            self._wanted.set()
            self._moved.clear()
            row = await connection.fetchrow(STILL_WAITING, shards, gathered.ticket)
            assert row is not None
            last = int(row[0])
            if not row[1]:
                return last
            with suppress(TimeoutError):
                await asyncio.wait_for(self._moved.wait(), _IDLE_PAUSE_S)
        _log.warning("a batch is committed and has no position yet: no hub gives any")
        return last

    # ---- for whoever wants to know what the other hubs do ----

    async def until_beyond(self, position: int) -> int:
        """Wait until the log is known to have grown beyond a position; the last position then."""
        while self._last_heard is None or self._last_heard <= position:
            self._heard_more.clear()
            await self._heard_more.wait()
        return self._last_heard

    def doubt(self) -> None:
        """Have the log's end asked for once more, though nothing may have been heard since."""
        self._last_heard = None

    # ---- in the background ----

    async def _run(self) -> None:
        while not self._closing:
            pause_s = _WAITING_PAUSE_S
            self._wanted.clear()
            try:
                connection = await self._connected()
                await self._tell(connection)
                if self._last_heard is None:
                    self._know(await connection.fetchval(LAST_INDEX))
                if self._epoch is None:
                    await self._try_to_lead()
                if self._epoch is not None:
                    pause_s = _BUSY_PAUSE_S if await self._lead(connection, self._epoch) else _IDLE_PAUSE_S
            except Exception as error:  # noqa: BLE001 the database may be away; whoever waits must not wait for ever
                if not is_unavailable(error):
                    _log.exception("the sequencer failed and goes on")
                self._epoch = None
                await self._drop_connection()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), pause_s)

    async def _try_to_lead(self) -> None:
        connection = await self._connected()
        if self._held is not None:
            self._epoch = await connection.fetchval(RENEW_LEASE, self._held, LEASE_S)
        if self._epoch is None and self._may_lead:
            self._epoch = await connection.fetchval(TAKE_LEASE, LEASE_S)
            if self._epoch is not None:
                _log.info("this hub gives positions from now on (epoch %d)", self._epoch)
        self._held = self._epoch

    async def _lead(self, connection: Connection, epoch: int) -> bool:
        """One look and, where entries wait, one step; whether there was anything to do."""
        row = await connection.fetchrow(LOOK, epoch, LEASE_S / 2)
        if row is None:
            self._epoch = None  # another hub has taken over
            return False
        is_due, are_waiting = row
        if is_due and await connection.fetchval(RENEW_LEASE, epoch, LEASE_S) is None:
            self._epoch = None
            return False
        if are_waiting:
            await self._step(connection, epoch)
        return bool(are_waiting)

    async def _step(self, connection: Connection, epoch: int) -> None:
        async with connection.transaction():
            last = await connection.fetchval(LOCK_ROW, epoch)
            if last is None:
                self._epoch = None
                return
            count = await _place(connection, epoch, last)
            await connection.execute(NOTIFY, str(last + count))
        self._moved.set()

    async def _tell(self, connection: Connection) -> None:
        announced, self._announced = self._announced, None
        if announced is not None:
            await connection.execute(NOTIFY, str(announced))

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(self._url)
            await self._connection.add_listener(CHANNEL, self._heard)
            self.doubt()  # what was told while nobody listened is not told again
        return self._connection

    async def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await close_connection(connection)

    def _heard(self, _connection: Any, _pid: int, _channel: str, last_position: object) -> None:
        self._moved.set()
        if self._last_heard is None:
            self._wanted.set()  # the log's end is asked for: what is told now may be older than what was missed
        else:
            self._know(int(str(last_position)))

    def _know(self, last_position: int) -> None:
        # Two hubs may tell in another order than they placed.
        self._last_heard = max(self._last_heard or 0, last_position)
        self._heard_more.set()


async def _place(connection: Connection, epoch: int, last: int) -> int:
    """Under the lock of the sequencer's row: positions after `last` for what waits; how many entries that was."""
    count: int = await connection.fetchval(PLACE_ENTRIES, last, STEP_ENTRIES)
    await connection.execute(PLACE_LISTINGS)
    if count:
        await connection.execute(ADVANCE, epoch, count)
    return count
