"""How a batch is written to PostgreSQL: one transaction, one statement for each table, and only what fits.

Owns the statements of `append`. Streams that grow are locked with SKIP LOCKED, so two hubs never wait for one
another's streams; a Write whose stream is taken is left to the next batch. What can only be found out by writing (a
name, a reply or a stream that another hub gave first) is learned, and the transaction begun anew without the loser. It
must never commit half a Write.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, NamedTuple

from erxhub.ledger.placement import Placement, caller_shard, keyed_shard
from erxhub.ledger.postgres_homes import Homes
from erxhub.ledger.postgres_plan import Asked, Facts, Home, Plan, Standing, asked
from erxhub.ledger.postgres_session import Connection
from erxhub.ledger.store import Erasure, Write, requests_of

_CATALOG_ROWS_AT_ONCE: Final = 20_000  # some 6 MB of an import in one statement

_LOOKS_UP, _SHARES, _LOCKS = range(3)

# `w` names what is wanted, and how. The version of a locked or shared row is read from the lock: it is newer than the
# snapshot when another hub let go of it in between.
LOCK_STREAMS: Final = f"""
SELECT w.key, t.shard, t.stream, coalesce(l.version, r.version, t.version), coalesce(l.leaf_hash, t.leaf_hash),
       w.how > {_LOOKS_UP} AND l.stream IS NULL AND r.stream IS NULL
FROM unnest($1::integer[], $2::bigint[], $3::bytea[], $4::integer[]) AS w(shard, stream, key, how)
JOIN state t ON t.shard = w.shard AND t.stream = w.stream
LEFT JOIN LATERAL (
    SELECT x.stream, x.version, x.leaf_hash FROM state x
    WHERE x.shard = w.shard AND x.stream = w.stream AND w.how = {_LOCKS} FOR UPDATE SKIP LOCKED
) l ON true
LEFT JOIN LATERAL (
    SELECT x.stream, x.version FROM state x
    WHERE x.shard = w.shard AND x.stream = w.stream AND w.how = {_SHARES} FOR SHARE SKIP LOCKED
) r ON true
"""
WAIT_FOR_STREAMS: Final = LOCK_STREAMS.replace(" SKIP LOCKED", "")
# A lock of the node with the log, in its memory. Whoever knows that a denying name is absent holds a share of it until
# the commit, and whoever gives one holds it alone. It is taken before the names are looked at and before any row.
_DENIALS: Final = 0x6572786875620001
SHARE_DENIALS: Final = f"SELECT pg_advisory_xact_lock_shared({_DENIALS})"
WAIT_FOR_DENIALS: Final = f"SELECT pg_advisory_xact_lock({_DENIALS})"
FIND_NAMES: Final = """
SELECT n.space, n.key FROM unnest($1::integer[], $2::text[], $3::bytea[]) AS w(shard, space, key)
JOIN name n ON n.shard = w.shard AND n.space = w.space AND n.key = w.key
"""
# Rows that wait for their position lie in the shards of their streams, whichever these are.
FIND_GROWN: Final = """
SELECT w.space, w.key, w.position
FROM unnest($1::integer[], $2::text[], $3::bytea[], $4::bigint[]) AS w(shard, space, key, position)
WHERE EXISTS (
    SELECT FROM listing l
    WHERE l.shard = w.shard AND l.space = w.space AND l.key = w.key AND l.position > w.position
) OR EXISTS (SELECT FROM unlisted u WHERE u.space = w.space AND u.key = w.key)
"""
FIND_LISTED: Final = """
SELECT w.space, w.key, w.stream_key, w.version
FROM unnest($1::integer[], $2::text[], $3::bytea[], $4::integer[], $5::bigint[], $6::bigint[], $7::bytea[])
    AS w(list_shard, space, key, shard, stream, version, stream_key)
WHERE EXISTS (
    SELECT FROM erxhub_log.log_index i
    JOIN listing l ON l.shard = w.list_shard AND l.space = w.space AND l.key = w.key AND l.position = i.idx
    WHERE i.shard = w.shard AND i.stream = w.stream AND i.version = w.version
) OR EXISTS (
    SELECT FROM unlisted u WHERE u.shard = w.shard AND u.stream = w.stream AND u.version = w.version
    AND u.space = w.space AND u.key = w.key
)
"""
INSERT_STREAMS: Final = """
INSERT INTO stream (shard, kind, key) SELECT * FROM unnest($1::integer[], $2::text[], $3::bytea[])
ON CONFLICT DO NOTHING RETURNING key, shard, no
"""
INSERT_NAMES: Final = """
INSERT INTO name (shard, space, key, home, stream)
SELECT * FROM unnest($1::integer[], $2::text[], $3::bytea[], $4::integer[], $5::bigint[])
ON CONFLICT DO NOTHING RETURNING space, key
"""
INSERT_REPLIES: Final = """
INSERT INTO reply (shard, caller, request_id, method, content_mac, body, home, stream, version)
SELECT * FROM unnest($1::integer[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::bytea[], $7::integer[],
    $8::bigint[], $9::bigint[])
ON CONFLICT DO NOTHING RETURNING caller, request_id
"""
INSERT_CATALOG: Final = """
INSERT INTO catalog_row (dataset, edition, code, body)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[]) ON CONFLICT DO NOTHING
"""
FIND_OTHER_CATALOG: Final = """
SELECT w.dataset, w.edition, w.code, w.body
FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[]) AS w(dataset, edition, code, body)
JOIN catalog_row c ON c.dataset = w.dataset AND c.edition = w.edition AND c.code = w.code
WHERE c.body <> w.body
"""
INSERT_ENTRIES: Final = """
INSERT INTO entry (shard, stream, version, header, commitment, leaf_hash)
SELECT * FROM unnest($1::integer[], $2::bigint[], $3::bigint[], $4::bytea[], $5::bytea[], $6::bytea[])
"""
INSERT_CONTENTS: Final = """
INSERT INTO content (shard, stream, version, salt, payload)
SELECT * FROM unnest($1::integer[], $2::bigint[], $3::bigint[], $4::bytea[], $5::bytea[])
"""
WRITE_STATES: Final = """
INSERT INTO state AS t (shard, stream, version, leaf_hash, body, due_at_ms, recorded_at_ms)
SELECT * FROM unnest($1::integer[], $2::bigint[], $3::bigint[], $4::bytea[], $5::bytea[], $6::bigint[], $7::bigint[])
ON CONFLICT (shard, stream) DO UPDATE SET version = excluded.version, leaf_hash = excluded.leaf_hash,
    body = coalesce(excluded.body, t.body), recorded_at_ms = excluded.recorded_at_ms,
    due_at_ms = CASE WHEN excluded.body IS NULL THEN t.due_at_ms ELSE excluded.due_at_ms END
"""
INSERT_BLOBS: Final = """
INSERT INTO blob (shard, stream, digest, data)
SELECT * FROM unnest($1::integer[], $2::bigint[], $3::bytea[], $4::bytea[]) ON CONFLICT DO NOTHING
"""
DRAW_TICKET: Final = "SELECT nextval('erxhub_log.ticket'), pg_current_xact_id()::text"
INSERT_UNINDEXED: Final = """
INSERT INTO unindexed (shard, ticket, ordinal, stream, version)
SELECT w.shard, $1, w.ordinal, w.stream, w.version
FROM unnest($2::integer[], $3::bigint[], $4::bigint[]) WITH ORDINALITY AS w(shard, stream, version, ordinal)
"""
INSERT_UNLISTED: Final = """
INSERT INTO unlisted (shard, ticket, ordinal, stream, version, list_shard, space, key, value)
SELECT w.shard, $1, w.ordinal, w.stream, w.version, w.list_shard, w.space, w.key, w.value
FROM unnest($2::integer[], $3::bigint[], $4::bigint[], $5::integer[], $6::text[], $7::bytea[], $8::bytea[])
    WITH ORDINALITY AS w(shard, stream, version, list_shard, space, key, value, ordinal)
"""
ERASABLE: Final = "SELECT header FROM entry WHERE shard = $1 AND stream = $2 AND version < $3"
ERASE: Final = "SELECT erase($1, $2, $3, $4, $5, $6, $7, $8, $9)"


class Learned(Exception):
    """The transaction has to be begun anew: another hub gave first what this one wanted to give. The facts know it."""


class Gathered(NamedTuple):
    """What was written by a transaction that is not committed yet."""

    ticket: int
    transaction_id: str
    homes: Mapping[bytes, Home]
    shards: frozenset[int]
    """Shards with entries or list rows that wait for the sequencer."""


@dataclass(frozen=True, slots=True)
class Appender:
    """Writes batches over one connection at a time."""

    homes: Homes
    placement: Placement

    async def plan(self, connection: Connection, batch: Sequence[Write], facts: Facts) -> Plan:
        """Lock what the batch extends and say what fits; inside the caller's transaction. Raises StreamMissing."""
        areas = [self.placement.begun(write) for write in batch]
        wanted = asked(batch, areas, facts)
        await self._look_for_denials(connection, batch, facts)
        standing = await self._standing(connection, wanted, waits=any(write.waits for write in batch))
        await self._look_at_lists(connection, batch, facts)
        listed = await self._listed(connection, batch, standing)
        return Plan(batch, areas, standing, listed, wanted.begun, facts).make()

    async def _look_for_denials(self, connection: Connection, batch: Sequence[Write], facts: Facts) -> None:
        """Learn which names are there by whose absence something was decided; none is given before the commit."""
        absent = {name for write in batch if write.reads is not None for name in write.reads.absent}
        if any(write.denies for write in batch):
            await connection.execute(WAIT_FOR_DENIALS)
        elif absent:
            await connection.execute(SHARE_DENIALS)
        if absent:
            rows = ((self._name_shard(*name), *name) for name in absent)
            facts.names.update(map(tuple, await connection.fetch(FIND_NAMES, *_columns(rows, 3))))

    async def _look_at_lists(self, connection: Connection, batch: Sequence[Write], facts: Facts) -> None:
        """Learn which lists grew by whose end something was decided; under the locks of what is extended."""
        rows = [
            (self._list_shard(space, key), space, key, position)
            for write in batch
            if write.reads is not None
            for space, key, position in write.reads.lists
        ]
        if rows:
            facts.grown.update(map(tuple, await connection.fetch(FIND_GROWN, *_columns(rows, 4))))

    async def _standing(self, connection: Connection, wanted: Asked, *, waits: bool) -> dict[bytes, Standing]:
        keys = wanted.lock | wanted.share | wanted.look_up
        if not keys:
            return {}
        homes = await self.homes.find(connection, keys)
        # Sorted, so that the locks of two hubs are taken in one order.
        places = sorted((home.shard, home.no, key, _how(wanted, key)) for key, home in homes.items())
        if not places:
            return {}
        rows = await connection.fetch(WAIT_FOR_STREAMS if waits else LOCK_STREAMS, *_columns(places, 4))
        return {
            key: Standing(Home(shard, no), version, leaf_hash, taken)
            for key, shard, no, version, leaf_hash, taken in rows
        }

    async def _listed(
        self, connection: Connection, batch: Sequence[Write], standing: Mapping[bytes, Standing]
    ) -> frozenset[tuple[str, bytes, bytes, int]]:
        """Of the list rows for entries that are older than this batch, those that are there already."""
        wanted = []
        for listing in chain.from_iterable(write.listings for write in batch):
            stands = standing.get(listing.stream_key)
            if stands is not None and 1 <= listing.version <= stands.version:
                shard = self._list_shard(listing.space, listing.key)
                home = stands.home
                wanted.append(
                    (shard, listing.space, listing.key, home.shard, home.no, listing.version, listing.stream_key)
                )
        if not wanted:
            return frozenset()
        return frozenset(tuple(row) for row in await connection.fetch(FIND_LISTED, *_columns(wanted, 7)))

    async def write(self, connection: Connection, plan: Plan, facts: Facts) -> Gathered:
        """Write what fits, inside the caller's transaction. Raises Learned."""
        homes = {key: standing.home for key, standing in plan.standing.items()}
        # What others may have given first comes first: losing then costs little.
        await self._begin_streams(connection, plan, facts, homes)
        await self._insert_names(connection, plan, facts, homes)
        await self._insert_replies(connection, plan, facts, homes)
        await _insert_catalog(connection, plan, facts)
        entries = [entry for write in plan.fitting for entry in write.entries]
        placed = [(*homes[entry.header.stream_key], entry.header.version) for entry in entries]
        if entries:
            rows: Iterable[tuple[Any, ...]] = (
                (*place, entry.header_bytes, entry.commitment, entry.leaf_hash)
                for place, entry in zip(placed, entries, strict=True)
            )
            await connection.execute(INSERT_ENTRIES, *_columns(rows, 6))
            rows = ((*place, entry.salt, entry.payload) for place, entry in zip(placed, entries, strict=True))
            await connection.execute(INSERT_CONTENTS, *_columns(rows, 5))
            rows = (
                (
                    *(*homes[key], version, leaf_hash),
                    *((None, None) if state is None else (state.body, state.due_at_ms)),
                    recorded_at_ms,
                )
                for key, (version, leaf_hash, state, recorded_at_ms) in plan.states.items()
            )
            await connection.execute(WRITE_STATES, *_columns(rows, 7))
        blobs = {(*homes[b.stream_key], b.digest): b.data for write in plan.fitting for b in write.blobs}
        if blobs:
            await connection.execute(INSERT_BLOBS, *_columns(((*at, data) for at, data in blobs.items()), 4))
        for erasure in chain.from_iterable(write.erasures for write in plan.fitting):
            await self._erase(connection, erasure, homes[erasure.stream_key])
        ticket, transaction_id = await connection.fetchrow(DRAW_TICKET)  # type: ignore[misc]
        listed = list(self._list_rows(plan, homes))
        if placed:
            await connection.execute(INSERT_UNINDEXED, ticket, *_columns(placed, 3))
        if listed:
            await connection.execute(INSERT_UNLISTED, ticket, *_columns(listed, 7))
        shards = frozenset(row[0] for row in chain(placed, listed))
        return Gathered(ticket, transaction_id, {key: homes[key] for key in plan.begun}, shards)

    async def _erase(self, connection: Connection, erasure: Erasure, home: Home) -> None:
        headers = [row[0] for row in await connection.fetch(ERASABLE, *home, erasure.version)]
        names = ((self._name_shard(*name), *name) for name in erasure.names)
        replies = (
            (caller_shard(self.placement.of_caller(caller), caller), caller, request_id)
            for caller, request_id in sorted(requests_of(headers))
        )
        await connection.execute(ERASE, *home, erasure.version, *_columns(names, 3), *_columns(replies, 3))

    async def _begin_streams(self, connection: Connection, plan: Plan, facts: Facts, homes: dict[bytes, Home]) -> None:
        if not plan.begun:
            return
        rows = sorted((shard, kind, key) for key, (shard, kind) in plan.begun.items())
        for key, shard, no in await connection.fetch(INSERT_STREAMS, *_columns(rows, 3)):
            homes[key] = Home(shard, no)
        there = plan.begun.keys() - homes.keys()
        if there:
            facts.exists |= there
            raise Learned

    async def _insert_names(
        self, connection: Connection, plan: Plan, facts: Facts, homes: Mapping[bytes, Home]
    ) -> None:
        rows = sorted(
            (self._name_shard(name.space, name.key), name.space, name.key, *homes[name.stream_key])
            for write in plan.fitting
            for name in write.names
        )
        if not rows:
            return
        given = {tuple(row) for row in await connection.fetch(INSERT_NAMES, *_columns(rows, 5))}
        if len(given) < len(rows):
            facts.names |= {row[1:3] for row in rows} - given
            raise Learned

    async def _insert_replies(
        self, connection: Connection, plan: Plan, facts: Facts, homes: Mapping[bytes, Home]
    ) -> None:
        rows = [
            (
                *(caller_shard(self.placement.of_caller(reply.caller), reply.caller), reply.caller, reply.request_id),
                *(reply.method, reply.content_mac, reply.body),
                *((None, None) if reply.stream_key is None else homes[reply.stream_key]),
                reply.version,
            )
            for write in plan.fitting
            for reply in write.replies
        ]
        if not rows:
            return
        rows.sort(key=lambda row: row[:3])
        given = {tuple(row) for row in await connection.fetch(INSERT_REPLIES, *_columns(rows, 9))}
        if len(given) < len(rows):
            facts.replies |= {row[1:3] for row in rows} - given
            raise Learned

    def _list_rows(self, plan: Plan, homes: Mapping[bytes, Home]) -> Iterator[tuple[Any, ...]]:
        for write in plan.fitting:
            for listing in write.listings:
                home = homes[listing.stream_key]
                shard = self._list_shard(listing.space, listing.key)
                yield home.shard, home.no, listing.version, shard, listing.space, listing.key, listing.value

    def _name_shard(self, space: str, key: bytes) -> int:
        return keyed_shard(self.placement.of_name(space, key), space, key)

    def _list_shard(self, space: str, key: bytes) -> int:
        return keyed_shard(self.placement.of_list(space, key), space, key)


def _how(wanted: Asked, key: bytes) -> int:
    if key in wanted.lock:
        return _LOCKS
    return _SHARES if key in wanted.share else _LOOKS_UP


async def _insert_catalog(connection: Connection, plan: Plan, facts: Facts) -> None:
    rows = sorted((*row, body) for row, body in plan.catalog.items())
    for start in range(0, len(rows), _CATALOG_ROWS_AT_ONCE):
        columns = _columns(rows[start : start + _CATALOG_ROWS_AT_ONCE], 4)
        await connection.execute(INSERT_CATALOG, *columns)
        # A statement of its own, so that it also sees a row for which the first one waited.
        others = [tuple(row) for row in await connection.fetch(FIND_OTHER_CATALOG, *columns)]
        if others:
            facts.catalog.update(others)
            raise Learned


def _columns(rows: Iterable[Sequence[Any]], width: int) -> list[tuple[Any, ...]]:
    """Rows as the arrays that `unnest` takes."""
    return list(zip(*rows, strict=True)) or [()] * width
