"""How the SQLite ledger is asked: the look-ups of one round trip, and several statements over one state of the file.

Functions over a connection, the writer's or a reader's; it owns none. It must never write.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection
from functools import cache
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from erxhub.ledger.store import Head, Loaded, Reply, Wanted

_P = ParamSpec("_P")
_T = TypeVar("_T")

INTEGER_MAX: Final = 2**63 - 1
"""SQLite's largest; a larger position or instant is beyond every row anyway."""

_TOGETHER: Final = 16
"""How many look-ups go into one statement: around each statement the interpreter's lock changes hands."""

_COPIED_MAX: Final = 4_096
"""Bytes. A longer value costs less as it is."""

_HEAD_COLUMNS: Final = "SELECT s.no, s.kind, s.key, t.version, t.leaf_hash, t.body, t.due_at_ms"
# Constants and not built where they are used: a new string costs as much as finding the row.
HEAD_BY_NAME: Final = (
    f"{_HEAD_COLUMNS}, n.space, n.key FROM name n JOIN stream s ON s.no = n.stream"
    " LEFT JOIN state t ON t.stream = s.no WHERE n.space = ? AND n.key = ?"
)
HEAD_BY_KEY: Final = f"{_HEAD_COLUMNS} FROM stream s LEFT JOIN state t ON t.stream = s.no WHERE s.key = ?"
NEWEST_ENTRY: Final = "SELECT version, leaf_hash FROM entry WHERE stream = ? ORDER BY version DESC LIMIT 1"
REPLY_BY_REQUEST: Final = (
    "SELECT r.caller, r.request_id, r.method, r.content_mac, r.body, s.key, r.version FROM reply r"
    " LEFT JOIN stream s ON s.no = r.stream WHERE r.caller = ? AND r.request_id = ?"
)
CATALOG_ROW: Final = (
    "SELECT body, dataset, edition, code FROM catalog_row WHERE dataset = ? AND edition = ? AND code = ?"
)


def load(connection: sqlite3.Connection, wanted: Wanted) -> Loaded:
    """The look-ups of one round trip, on whichever connection."""
    names: dict[tuple[str, bytes], bytes] = {}
    heads: dict[bytes, Head] = {}
    for row in found(connection, HEAD_BY_NAME, wanted.names):
        names[row[7], row[8]] = row[2]
        heads.update(_head(connection, row))
    keys = [(key,) for key in wanted.streams if key not in heads]
    for row in found(connection, HEAD_BY_KEY, keys):
        heads.update(_head(connection, row))
    replies: dict[tuple[str, str], Reply] = {}
    for row in found(connection, REPLY_BY_REQUEST, wanted.replies):
        replies[row[0], row[1]] = Reply(*row)
    catalog: dict[tuple[str, str, str], bytes] = {}
    for row in found(connection, CATALOG_ROW, wanted.catalog):
        catalog[row[1], row[2], row[3]] = row[0]
    return Loaded(names, heads, replies, catalog)


def found(connection: sqlite3.Connection, statement: str, wanted: Collection[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The rows that a look-up finds for each of these."""
    rows: list[tuple[Any, ...]] = []
    execute, keys = connection.execute, list(wanted)
    alone_from = len(keys) - len(keys) % _TOGETHER
    for begin in range(0, alone_from, _TOGETHER):
        together = keys[begin : begin + _TOGETHER]
        rows += execute(_of_many(statement), [bindable(value) for key in together for value in key]).fetchall()
    for key in keys[alone_from:]:
        rows += execute(statement, key).fetchall()
    return rows


def bindable(value: Any) -> Any:
    """The value as Python's sqlite3 binds it at once.

    It takes every parameter that is not exactly an int, float, str or bytearray for something to be adapted, and looks
    for an adapter: for bytes, which it then binds as they are, that costs three times the copy made here.
    """
    if isinstance(value, bytes) and len(value) <= _COPIED_MAX:
        return bytearray(value)
    return value


@cache
def _of_many(statement: str) -> str:
    """A look-up for many keys at a time."""
    text, _, condition = statement.partition(" WHERE ")
    return f"{text} WHERE " + " OR ".join([f"({condition})"] * _TOGETHER)


def _head(connection: sqlite3.Connection, row: tuple[Any, ...]) -> dict[bytes, Head]:
    """One head, or none for a stream whose entries somebody has taken out."""
    no, kind, key, version, leaf_hash, body, due_at_ms = row[:7]
    if version is not None:
        return {key: Head(kind, key, version, leaf_hash, body, due_at_ms)}
    newest = connection.execute(NEWEST_ENTRY, (no,)).fetchone()
    return {} if newest is None else {key: Head(kind, key, newest[0], newest[1], b"", None)}


def in_snapshot(
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


def bounded(number: int) -> int:
    return max(-INTEGER_MAX, min(number, INTEGER_MAX))
