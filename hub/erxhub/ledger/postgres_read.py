"""What a PostgreSQL ledger is asked: the look-ups of one round trip, streams, lists, the log.

Owns the reading statements. Each names the shard of what it looks for, except those in OVER_ALL_SHARDS, which say why
not. It must never write.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Final

from erxhub.ledger.placement import Placement, caller_shard, keyed_shard
from erxhub.ledger.postgres_append import FIND_GROWN
from erxhub.ledger.postgres_homes import FIND_EVERYWHERE, Homes
from erxhub.ledger.postgres_plan import Home
from erxhub.ledger.postgres_sequencer import LOOK, PLACE_ENTRIES, PLACE_LISTINGS
from erxhub.ledger.postgres_session import Connection
from erxhub.ledger.store import Head, Loaded, Reply, Wanted

UNPLACED: Final = 2**63 - 1
"""The position of an entry that is committed and has none yet: after all that have one."""

# The parts of one look-up. Each row begins with what it is and with the number of what was asked for.
_HEAD: Final = (
    "s.kind, s.key, t.version, t.leaf_hash, coalesce(t.body, ''::bytea), t.due_at_ms, t.shard, t.stream,"
    " coalesce(t.recorded_at_ms, 0)"
)
_JOIN_HEAD: Final = "JOIN state t ON t.shard = {0} AND t.stream = {1} JOIN stream s ON s.shard = {0} AND s.no = {1}"
_NAMES: Final = (
    f"SELECT 1 AS what, w.i, {_HEAD} FROM unnest({{0}}::integer[], {{1}}::text[], {{2}}::bytea[]) WITH ORDINALITY AS"
    " w(shard, space, key, i) JOIN name n ON n.shard = w.shard AND n.space = w.space AND n.key = w.key "
    + _JOIN_HEAD.format("n.home", "n.stream")
)
_STREAMS: Final = (
    f"SELECT 2, w.i, {_HEAD} FROM unnest({{0}}::integer[], {{1}}::bigint[]) WITH ORDINALITY AS w(shard, stream, i) "
    + _JOIN_HEAD.format("w.shard", "w.stream")
)
_UNKNOWN_STREAMS: Final = (
    f"SELECT 2, w.i, {_HEAD} FROM unnest({{0}}::bytea[]) WITH ORDINALITY AS w(key, i) JOIN stream s ON s.key = w.key"
    " JOIN state t ON t.shard = s.shard AND t.stream = s.no"
)
_PLACED_STREAMS: Final = (
    f"SELECT 2, w.i, {_HEAD} FROM unnest({{0}}::integer[], {{1}}::bytea[]) WITH ORDINALITY AS w(shard, key, i)"
    " JOIN stream s ON s.shard = w.shard AND s.key = w.key JOIN state t ON t.shard = s.shard AND t.stream = s.no"
)
_REPLIES: Final = (
    "SELECT 3, w.i, r.method, s.key, r.version, r.content_mac, r.body, NULL::bigint, r.home, r.stream, NULL::bigint"
    " FROM unnest({0}::integer[], {1}::text[], {2}::text[]) WITH ORDINALITY AS w(shard, caller, request_id, i)"
    " JOIN reply r ON r.shard = w.shard AND r.caller = w.caller AND r.request_id = w.request_id"
    " LEFT JOIN stream s ON s.shard = r.home AND s.no = r.stream"
)
_CATALOG: Final = (
    "SELECT 4, w.i, NULL::text, NULL::bytea, NULL::bigint, NULL::bytea, c.body, NULL::bigint, NULL::integer,"
    " NULL::bigint, NULL::bigint FROM unnest({0}::text[], {1}::text[], {2}::text[])"
    " WITH ORDINALITY AS w(dataset, edition, code, i)"
    " JOIN catalog_row c ON c.dataset = w.dataset AND c.edition = w.edition AND c.code = w.code"
)
_PARTS: Final = ((_NAMES, 3), (_STREAMS, 2), (_UNKNOWN_STREAMS, 1), (_REPLIES, 3), (_CATALOG, 3), (_PLACED_STREAMS, 2))

_ENTRY: Final = (
    f"SELECT coalesce(i.idx, {UNPLACED}), s.kind, s.key, e.header, e.commitment, e.leaf_hash, c.salt, c.payload,"
    " e.version"
)
_CONTENT: Final = "LEFT JOIN content c ON c.shard = e.shard AND c.stream = e.stream AND c.version = e.version"
ENTRIES: Final = f"""
{_ENTRY} FROM entry e JOIN stream s ON s.shard = e.shard AND s.no = e.stream
LEFT JOIN erxhub_log.log_index i ON i.shard = e.shard AND i.stream = e.stream AND i.version = e.version {_CONTENT}
WHERE e.shard = $1 AND e.stream = $2 AND e.version > $3 ORDER BY e.version LIMIT $4
"""
LOG: Final = f"""
{_ENTRY} FROM erxhub_log.log_index i
JOIN entry e ON e.shard = i.shard AND e.stream = i.stream AND e.version = i.version
JOIN stream s ON s.shard = e.shard AND s.no = e.stream {_CONTENT}
WHERE i.idx > $1 ORDER BY i.idx LIMIT $2
"""
_LISTING: Final = (
    "SELECT l.position, s.key, l.version, l.value, l.home, l.stream"
    " FROM listing l JOIN stream s ON s.shard = l.home AND s.no = l.stream"
    " WHERE l.shard = $1 AND l.space = $2 AND l.key = $3"
)
LISTING_UP: Final = f"{_LISTING} AND l.position > $4 ORDER BY l.position LIMIT $5"
LISTING_DOWN: Final = f"{_LISTING} AND l.position < $4 ORDER BY l.position DESC LIMIT $5"
BLOB: Final = "SELECT data FROM blob WHERE shard = $1 AND stream = $2 AND digest = $3"
CATALOG_PAGE: Final = (
    "SELECT code, body FROM catalog_row WHERE dataset = $1 AND edition = $2 AND code > $3 ORDER BY code LIMIT $4"
)
_ALL_NAMES: Final = (
    "SELECT n.space, n.key, coalesce(s.kind, ''), coalesce(s.key, ''::bytea) FROM name n"
    " LEFT JOIN stream s ON s.shard = n.home AND s.no = n.stream"
)
NAMES_FROM_START: Final = f"{_ALL_NAMES} ORDER BY n.space, n.key LIMIT $1"
NAMES_AFTER: Final = f"{_ALL_NAMES} WHERE (n.space, n.key) > ($2, $3) ORDER BY n.space, n.key LIMIT $1"
GROWN: Final = (
    "SELECT w.key FROM unnest($1::integer[], $2::bytea[]) AS w(shard, key) WHERE EXISTS (SELECT FROM listing l"
    " WHERE l.shard = w.shard AND l.space = $3 AND l.key = w.key AND l.position > $4)"
)
LISTINGS: Final = (
    "SELECT position, space, key, value FROM listing WHERE position > $1 AND position <= $2"
    " ORDER BY position, space, key"
)
DUE: Final = (
    "SELECT s.key, t.shard, t.stream FROM state t JOIN stream s ON s.shard = t.shard AND s.no = t.stream"
    " WHERE t.due_at_ms <= $1 ORDER BY t.due_at_ms, t.stream LIMIT $2"
)

_UNKNOWN: Final = 2
"""The part that names no shard."""


@cache
def load_statement(parts: tuple[int, ...]) -> str:
    """The look-ups of these parts as one statement, so that they are one round trip and one snapshot."""
    selects, number = [], 1
    for part in parts:
        text, width = _PARTS[part]
        selects.append(text.format(*(f"${number + offset}" for offset in range(width))))
        number += width
    return " UNION ALL ".join(selects)


OVER_ALL_SHARDS: Final[Mapping[str, str]] = {
    FIND_EVERYWHERE: "a stream whose home this hub has not met yet; it is remembered then",
    load_statement((_UNKNOWN,)): "the same, within the look-ups of one round trip",
    NAMES_FROM_START: "verification reads every name there is",
    NAMES_AFTER: "verification reads every name there is",
    FIND_GROWN: "only a visit's cancellation decides by a list, and what waits for a position is little and soon gone",
    LISTINGS: "verification reads the lists beside the log",
    DUE: "the sweep of deadlines, which one hub does at a time",
    LOOK: "the log is one, so its sequencer takes from every shard",
    PLACE_ENTRIES: "the log is one, so its sequencer takes from every shard",
    PLACE_LISTINGS: "the log is one, so its sequencer takes from every shard",
}
"""The statements that name no shard, each with the reason."""


async def load(connection: Connection, wanted: Wanted, homes: Homes, placement: Placement) -> Loaded:
    """The look-ups of one round trip, on whichever connection."""
    names = [(keyed_shard(placement.of_name(*name), *name), *name) for name in wanted.names]
    known: list[Home] = []
    unknown: list[tuple[bytes]] = []
    placed: list[tuple[int, bytes]] = []
    elsewhere: list[tuple[bytes]] = []
    for key in wanted.streams:
        home = homes.get(key)
        if home is not None:
            known.append(home)
            continue
        told = homes.told(key)
        if told is None:
            unknown.append((key,))
            continue
        placed.append((told[0], key))
        if not told[1]:
            elsewhere.append((key,))
    replies = [(caller_shard(placement.of_caller(caller), caller), caller, id_) for caller, id_ in wanted.replies]
    catalog = list(wanted.catalog)
    asked: Sequence[Sequence[Sequence[Any]]] = (names, known, unknown, replies, catalog, placed)
    parts = tuple(number for number, rows in enumerate(asked) if rows)
    if not parts:
        return Loaded()
    arguments = [column for part in parts for column in zip(*asked[part], strict=True)]
    rows = await connection.fetch(load_statement(parts), *arguments)
    loaded = _loaded(rows, names, replies, catalog, homes)
    elsewhere = [row for row in elsewhere if row[0] not in loaded.heads]
    if not elsewhere:
        return loaded
    # Not where it lives as a rule. One snapshot is not needed: what was read is looked at again when it is written.
    rows = await connection.fetch(load_statement((_UNKNOWN,)), *zip(*elsewhere, strict=True))
    return replace(loaded, heads={**loaded.heads, **_loaded(rows, (), (), (), homes).heads})


def _loaded(
    rows: Iterable[Any],
    names: Sequence[tuple[int, str, bytes]],
    replies: Sequence[tuple[int, str, str]],
    catalog: Sequence[tuple[str, str, str]],
    homes: Homes,
) -> Loaded:
    found_names: dict[tuple[str, bytes], bytes] = {}
    heads: dict[bytes, Head] = {}
    found_replies: dict[tuple[str, str], Reply] = {}
    found_catalog: dict[tuple[str, str, str], bytes] = {}
    met: dict[bytes, Home] = {}
    for what, number, text, key, version, hashed, body, due_at_ms, shard, stream, recorded_at_ms in rows:
        if what == 4:
            found_catalog[catalog[number - 1]] = body
        elif what == 3:
            _, caller, request_id = replies[number - 1]
            found_replies[caller, request_id] = Reply(caller, request_id, text, hashed, body, key, version)
            if key is not None:
                met[key] = Home(shard, stream)
        else:
            heads[key] = Head(text, key, version, hashed, body, due_at_ms, recorded_at_ms)
            met[key] = Home(shard, stream)
            if what == 1:
                found_names[names[number - 1][1:]] = key
    homes.remember(met)
    return Loaded(found_names, heads, found_replies, found_catalog)
