"""The log on PostgreSQL: every statement about checkpoints, tiles and pages, and the connection that writes them.

Owns that connection, made when it is first used. A step locks a row of its own, so that two hubs wait for one another
and no commit waits for a step; should a hub stand still in the middle of one, the database ends its transaction soon.
It must never take the sequencer's row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from erxhub.ledger import log
from erxhub.ledger.log import (
    AnotherNote,
    Checkpoint,
    Cosignature,
    LogEmpty,
    LogSteps,
    PlacedLeaf,
    Proofs,
    ProofsWanted,
    RowsFound,
    Standing,
)
from erxhub.ledger.postgres_homes import Homes
from erxhub.ledger.postgres_session import Connection, close_connection, connect, unavailable
from erxhub.proof.tiles import TilePlace

_T = TypeVar("_T")

_CHECKPOINT: Final = (
    "SELECT c.no, c.size, c.root, c.map_root, c.covered_position, c.made_at_ms, n.note"
    " FROM erxhub_log.checkpoint c LEFT JOIN erxhub_log.checkpoint_note n ON n.no = c.no"
)
NEWEST: Final = f"{_CHECKPOINT} ORDER BY c.no DESC LIMIT 1"
BY_NO: Final = f"{_CHECKPOINT} WHERE c.no = $1"
BY_SIZE: Final = f"{_CHECKPOINT} WHERE c.size = $1"
AFTER: Final = f"{_CHECKPOINT} WHERE c.no > $1 ORDER BY c.no LIMIT $2"
COSIGNATURES: Final = "SELECT witness, line FROM erxhub_log.cosignature WHERE no = $1 ORDER BY witness"
WITNESS_SIZES: Final = (
    "SELECT s.witness, max(c.size) FROM erxhub_log.cosignature s JOIN erxhub_log.checkpoint c ON c.no = s.no"
    " GROUP BY s.witness"
)
LEAVES: Final = """
SELECT i.idx, s.key, e.version, e.leaf_hash FROM erxhub_log.log_index i
JOIN entry e ON e.shard = i.shard AND e.stream = i.stream AND e.version = i.version
JOIN stream s ON s.shard = e.shard AND s.no = e.stream
WHERE i.idx > $1 ORDER BY i.idx LIMIT $2
"""
TILES: Final = """
SELECT t.level, t.number, t.hashes FROM unnest($1::integer[], $2::bigint[]) AS w(level, number)
JOIN erxhub_log.tile t ON t.level = w.level AND t.number = w.number
"""
PAGES: Final = """
SELECT p.path, p.data FROM unnest($1::bytea[]) AS w(path) JOIN erxhub_log.page p ON p.path = w.path
"""
STANDINGS: Final = """
SELECT w.i, x.idx, coalesce((SELECT c.no FROM erxhub_log.checkpoint c WHERE c.covered_position < x.idx
    ORDER BY c.covered_position DESC LIMIT 1), 0)
FROM unnest($1::integer[], $2::bigint[], $3::bigint[]) WITH ORDINALITY AS w(shard, stream, version, i)
JOIN erxhub_log.log_index x ON x.shard = w.shard AND x.stream = w.stream AND x.version = w.version
"""
HEADS: Final = """
SELECT w.i, e.version, e.leaf_hash FROM unnest($1::integer[], $2::bigint[]) WITH ORDINALITY AS w(shard, stream, i)
CROSS JOIN LATERAL (
    SELECT x.version FROM erxhub_log.log_index x
    WHERE x.shard = w.shard AND x.stream = w.stream AND x.idx <= $3 ORDER BY x.version DESC LIMIT 1
) newest
JOIN entry e ON e.shard = w.shard AND e.stream = w.stream AND e.version = newest.version
"""
LIMIT_STANDSTILL: Final = "SELECT set_config('idle_in_transaction_session_timeout', '2s', true)"
LOCK_INTEGRATOR: Final = "SELECT only_row FROM erxhub_log.integrator FOR UPDATE"
ADD_CHECKPOINT: Final = "INSERT INTO erxhub_log.checkpoint VALUES ($1, $2, $3, $4, $5, $6)"
PUT_TILES: Final = """
INSERT INTO erxhub_log.tile SELECT * FROM unnest($1::integer[], $2::bigint[], $3::bytea[])
ON CONFLICT (level, number) DO UPDATE SET hashes = excluded.hashes
"""
PUT_PAGES: Final = """
INSERT INTO erxhub_log.page SELECT * FROM unnest($1::bytea[], $2::bytea[])
ON CONFLICT (path) DO UPDATE SET data = excluded.data
"""
ADD_NOTE: Final = "INSERT INTO erxhub_log.checkpoint_note VALUES ($1, $2) ON CONFLICT DO NOTHING"
NOTE: Final = "SELECT note FROM erxhub_log.checkpoint_note WHERE no = $1"
ADD_COSIGNATURES: Final = """
INSERT INTO erxhub_log.cosignature SELECT $1, * FROM unnest($2::text[], $3::text[]) ON CONFLICT DO NOTHING
"""
_INTEGER_MAX: Final = 2**63 - 1


class LogWriter:
    """The connection that takes steps and keeps notes, for one job at a time."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: Connection | None = None
        self._turn = asyncio.Lock()

    async def run(self, job: Callable[[Connection], Awaitable[_T]]) -> _T:
        """A job as one transaction. Raises StoreUnavailable, and what the job raises."""
        async with self._turn:
            try:
                if self._connection is None or self._connection.is_closed():
                    self._connection = await connect(self._url)
                async with self._connection.transaction():
                    return await job(self._connection)
            except (ValueError, LogEmpty):
                raise
            except BaseException as error:
                await self._drop()  # whatever state it is in
                if isinstance(error, Exception):
                    raise unavailable(error) from error
                raise

    async def close(self) -> None:
        """Close the connection, after the job that runs."""
        async with self._turn:
            await self._drop()

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await close_connection(connection)


async def integrate(connection: Connection, now_ms: int, leaves_max: int) -> Checkpoint | None:
    """See `Store.integrate`; inside a transaction."""
    await connection.execute(LIMIT_STANDSTILL)
    await connection.fetchval(LOCK_INTEGRATOR)
    newest = await checkpoint(connection, None, None)
    covered = newest.covered_position if newest else 0
    rows = await connection.fetch(LEAVES, covered, _bounded(leaves_max))
    if not rows:
        return None
    step = await _run(connection, log.next_step(newest, [PlacedLeaf(*row) for row in rows], now_ms))
    made = step.checkpoint
    await connection.execute(
        ADD_CHECKPOINT, made.no, made.size, made.root, made.map_root, made.covered_position, made.made_at_ms
    )
    levels, numbers = zip(*step.tiles, strict=True)
    await connection.execute(PUT_TILES, levels, numbers, list(step.tiles.values()))
    await connection.execute(PUT_PAGES, list(step.pages), list(step.pages.values()))
    return made


async def checkpoint(connection: Connection, no: int | None, size: int | None) -> Checkpoint | None:
    """See `Store.checkpoint`."""
    if no is not None:
        row = await connection.fetchrow(BY_NO, _bounded(no))
    elif size is not None:
        row = await connection.fetchrow(BY_SIZE, _bounded(size))
    else:
        row = await connection.fetchrow(NEWEST)
    if row is None or size not in (None, row[1]):
        return None
    lines = tuple(Cosignature(*line) for line in await connection.fetch(COSIGNATURES, row[0]))
    return replace(Checkpoint(*row), cosignatures=lines)


async def checkpoints(connection: Connection, after_no: int, limit: int) -> list[Checkpoint]:
    """See `Store.checkpoints`."""
    return [Checkpoint(*row) for row in await connection.fetch(AFTER, _bounded(after_no), _bounded(limit))]


async def sign(connection: Connection, no: int, note: str) -> None:
    """See `Store.sign`; inside a transaction."""
    await _check_no(connection, no)
    await connection.execute(ADD_NOTE, no, note)
    if await connection.fetchval(NOTE, no) != note:
        raise AnotherNote(f"checkpoint {no} has another note")


async def cosign(connection: Connection, no: int, lines: Sequence[Cosignature]) -> None:
    """See `Store.cosign`; inside a transaction."""
    await _check_no(connection, no)
    await connection.execute(ADD_COSIGNATURES, no, [line[0] for line in lines], [line[1] for line in lines])


async def witness_sizes(connection: Connection) -> dict[str, int]:
    """See `Store.witness_sizes`."""
    rows = await connection.fetch(WITNESS_SIZES)
    return {row[0]: row[1] for row in rows}


async def prove(connection: Connection, homes: Homes, wanted: ProofsWanted) -> Proofs:
    """See `Store.prove`; inside a transaction with one snapshot."""
    newest = await checkpoint(connection, None, None)
    if newest is None:
        raise LogEmpty("there is no checkpoint yet")
    known = await homes.find(connection, {*wanted.map_keys, *(key for key, _ in wanted.entries)})
    asked = [(key, version, *known[key]) for key, version in wanted.entries if key in known]
    rows = await connection.fetch(
        STANDINGS, [row[2] for row in asked], [row[3] for row in asked], [_bounded(row[1]) for row in asked]
    )
    standings = {asked[i - 1][:2]: Standing(position, before) for i, position, before in rows}
    keys = [key for key in wanted.map_keys if key in known]
    rows = await connection.fetch(
        HEADS, [known[key][0] for key in keys], [known[key][1] for key in keys], newest.covered_position
    )
    heads = {keys[i - 1]: (version, leaf_hash) for i, version, leaf_hash in rows}
    return await _run(connection, log.prove(newest, standings, heads, wanted))


async def inclusion(connection: Connection, index: int, size: int) -> list[bytes]:
    """See `Store.inclusion`."""
    await _check_size(connection, size)
    return await _run(connection, log.inclusion(index, size))


async def consistency(connection: Connection, size1: int, size2: int) -> list[bytes]:
    """See `Store.consistency`."""
    await _check_size(connection, size2)
    return await _run(connection, log.consistency(size1, size2))


async def tiles(connection: Connection, places: Collection[TilePlace]) -> dict[TilePlace, bytes]:
    """See `Store.tiles`."""
    levels, numbers = [place.level for place in places], [_bounded(place.number) for place in places]
    rows = await connection.fetch(TILES, levels, numbers)
    return {TilePlace(level, number): hashes for level, number, hashes in rows}


async def pages(connection: Connection, paths: Collection[bytes]) -> dict[bytes, bytes]:
    """See `Store.pages`."""
    return {row[0]: row[1] for row in await connection.fetch(PAGES, list(paths))}


async def _run(connection: Connection, steps: LogSteps[_T]) -> _T:
    """Drive a step or a proof; what it computes runs beside the event loop, which serves calls meanwhile."""
    found: RowsFound | None = None
    while True:
        wanted, result = await asyncio.to_thread(_advance, steps, found)
        if wanted is None:
            return result[0]
        found_tiles: Mapping[TilePlace, bytes] = await tiles(connection, wanted.tiles) if wanted.tiles else {}
        found_pages: Mapping[bytes, bytes] = await pages(connection, wanted.pages) if wanted.pages else {}
        found = RowsFound(found_tiles, found_pages)


def _advance(steps: LogSteps[_T], found: RowsFound | None) -> tuple[log.RowsWanted | None, list[_T]]:
    """The next rows that are wanted, or the result; a StopIteration cannot leave a thread."""
    try:
        return (next(steps) if found is None else steps.send(found)), []
    except StopIteration as done:
        return None, [done.value]


async def _check_no(connection: Connection, no: int) -> None:
    if await connection.fetchrow(BY_NO, _bounded(no)) is None:
        raise LogEmpty(f"there is no checkpoint {no}")


async def _check_size(connection: Connection, size: int) -> None:
    newest = await connection.fetchrow(NEWEST)
    if newest is None or size > newest[1]:
        raise LogEmpty(f"the log has no {size} leaves")


def _bounded(number: int) -> int:
    return max(-_INTEGER_MAX, min(number, _INTEGER_MAX))
