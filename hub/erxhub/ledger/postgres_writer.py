"""The writing side of a hub on PostgreSQL: one connection, and one job at a time in the order of the calls.

Owns transactions: when one is tried again, when its outcome is unknown and how that is found out. A caller's
cancellation never reaches a job. It must never report a batch as failed that was committed, as far as the database can
be asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import asyncpg

from erxhub.ledger.postgres_append import Appender, Gathered, Learned
from erxhub.ledger.postgres_plan import Facts, Plan, StreamMissing
from erxhub.ledger.postgres_sequencer import LAST_INDEX, Sequencer
from erxhub.ledger.postgres_session import (
    Connection,
    close_connection,
    connect,
    is_retriable,
    is_unavailable,
    unavailable,
)
from erxhub.ledger.store import AppendResult, OutcomeUnknown, StoreUnavailable, Write

_log = logging.getLogger("erxhub.ledger.postgres")

_T = TypeVar("_T")

_APPEND_S: Final = 10.0
"""A batch that is not committed by then is given up: its callers' deadlines are not much longer."""
_TRIES_MAX: Final = 8
"""Serialisation failures and deadlocks of one batch: more is a database that cannot keep up."""
_OUTCOME_TRIES_MAX: Final = 60

OUTCOME: Final = "SELECT pg_xact_status($1::text::xid8)"
OUTCOME_PAUSE: Final = "SELECT pg_sleep(0.05)"
"""The old session may still be at its commit; the database does the waiting."""


class _Done(NamedTuple):
    """One transaction's work. `last_position` where its entries have their positions already."""

    plan: Plan
    gathered: Gathered
    last_position: int | None


class _StillTaken(Exception):
    """A batch waited for the streams of others as long as one may wait; nothing was written."""


class _OutcomeUnknown(Exception):
    """The connection was lost while a commit was on its way."""

    def __init__(self, done: _Done) -> None:
        super().__init__(done.gathered.transaction_id)
        self.done = done


class Writer:
    """Runs jobs on the writing connection, which it makes anew when it was lost."""

    def __init__(self, url: str, connection: Connection, appender: Appender, sequencer: Sequencer) -> None:
        self._url = url
        self._connection: Connection | None = connection
        self._appender = appender
        self._sequencer = sequencer
        self._jobs: deque[tuple[Callable[[Connection], Awaitable[Any]], asyncio.Future[Any]]] = deque()
        self._wake = asyncio.Event()
        self._last_position = 0
        self._closing = False
        self._task = asyncio.create_task(self._run(), name="postgres-writer")

    def run(self, job: Callable[[Connection], Awaitable[_T]]) -> asyncio.Future[_T]:
        """Queue a job; it is in its place when this returns, and whoever waits may be cancelled."""
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        if self._closing:
            future.set_exception(StoreUnavailable("the store is closed"))
            return future
        self._jobs.append((job, future))
        self._wake.set()
        return future

    def append(self, batch: Sequence[Write]) -> asyncio.Future[AppendResult]:
        """Queue a batch."""
        return self.run(lambda connection: self._append(connection, batch))

    async def close(self) -> None:
        """Finish what is queued and close the connection."""
        self._closing = True
        self._wake.set()
        await asyncio.wait({self._task})
        await self._drop_connection()

    async def _run(self) -> None:
        while self._jobs or not self._closing:
            if not self._jobs:
                self._wake.clear()
                await self._wake.wait()
                continue
            job, future = self._jobs.popleft()
            try:
                result = await job(await self._connected())
            except BaseException as error:
                await self._after_failure(error)
                if not future.done():
                    future.set_exception(unavailable(error) if isinstance(error, Exception) else error)
                if isinstance(error, asyncio.CancelledError):
                    raise
            else:
                if not future.done():
                    future.set_result(result)

    async def _after_failure(self, error: BaseException) -> None:
        """A connection in an unknown state is not used again."""
        connection = self._connection
        if connection is None:
            return
        if is_unavailable(error) or connection.is_closed() or connection.is_in_transaction():
            await self._drop_connection()

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(self._url)
        return self._connection

    async def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await close_connection(connection)

    # ---- one batch ----

    async def _append(self, connection: Connection, batch: Sequence[Write]) -> AppendResult:
        if not batch:
            return AppendResult(frozenset(), await connection.fetchval(LAST_INDEX))
        try:
            plan, gathered, last_position = await self._commit(connection, batch)
        except _StillTaken:
            return AppendResult(frozenset(), await connection.fetchval(LAST_INDEX), busy=frozenset(range(len(batch))))
        except _OutcomeUnknown as unknown:
            plan, gathered, last_position = await self._resolve(unknown)
        self._appender.homes.remember(gathered.homes)
        if last_position is None:
            last_position = await self._until_placed(gathered)
        elif gathered.shards:
            self._sequencer.announce(last_position)
        self._last_position = max(self._last_position, last_position)
        return AppendResult(frozenset(plan.conflicts), last_position, frozenset(plan.busy))

    async def _commit(self, connection: Connection, batch: Sequence[Write]) -> _Done:
        """Tries until the batch is committed. Raises _StillTaken, _OutcomeUnknown, and what else an attempt raises."""
        facts, tries = Facts(), 0
        waits = any(write.waits for write in batch)
        async with asyncio.timeout(_APPEND_S) as deadline:
            while True:
                transaction = connection.transaction()
                await transaction.start()
                try:
                    done = await self._write(connection, batch, facts)
                except Learned:
                    await transaction.rollback()
                    continue
                except Exception as error:
                    tries += 1
                    if waits and isinstance(error, asyncpg.LockNotAvailableError):
                        await transaction.rollback()
                        raise _StillTaken from error
                    if not is_retriable(error) or tries >= _TRIES_MAX:
                        raise
                    await transaction.rollback()
                    continue
                deadline.reschedule(None)  # a commit that has begun is waited for
                try:
                    await transaction.commit()
                except Exception as error:
                    if not is_unavailable(error) or is_retriable(error):
                        raise
                    _log.warning("the connection was lost in a commit: %s", error)
                    raise _OutcomeUnknown(done) from error
                return done

    async def _write(self, connection: Connection, batch: Sequence[Write], facts: Facts) -> _Done:
        while True:
            try:
                plan = await self._appender.plan(connection, batch, facts)
                break
            except StreamMissing as missing:
                facts.exists.add(missing.stream_key)
        if not plan.fitting:
            last_position = await connection.fetchval(LAST_INDEX)
            return _Done(plan, Gathered(0, "", {}, frozenset()), last_position)
        gathered = await self._appender.write(connection, plan, facts)
        if not gathered.shards:
            return _Done(plan, gathered, await connection.fetchval(LAST_INDEX))
        return _Done(plan, gathered, await self._sequencer.place(connection))

    async def _resolve(self, unknown: _OutcomeUnknown) -> _Done:
        """Ask the database what became of a transaction. Raises OutcomeUnknown when it cannot be asked."""
        done = unknown.done
        if not done.gathered.transaction_id:
            return done  # it wrote nothing
        await self._drop_connection()
        try:
            connection = await self._connected()
            for _ in range(_OUTCOME_TRIES_MAX):
                status = await connection.fetchval(OUTCOME, done.gathered.transaction_id)
                if status == "committed":
                    return done
                if status == "aborted":
                    raise StoreUnavailable("the connection was lost before the commit")
                await connection.execute(OUTCOME_PAUSE)
        except Exception as error:
            if is_unavailable(error) and not isinstance(error, StoreUnavailable):
                raise OutcomeUnknown(f"the connection was lost in a commit: {error}") from error
            raise
        raise OutcomeUnknown("the connection was lost in a commit, and it is not over yet")

    async def _until_placed(self, gathered: Gathered) -> int:
        """What is committed is no failure any more, whatever happens while it waits for its positions."""
        try:
            return await self._sequencer.until_placed(await self._connected(), gathered)
        except Exception as error:
            if not is_unavailable(error):
                raise
            _log.warning("a batch is committed, but its positions could not be waited for: %s", error)
            await self._drop_connection()
            return self._last_position
