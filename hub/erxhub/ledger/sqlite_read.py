"""How the SQLite ledger is asked: the look-ups of one round trip, and several statements over one state of the file.

Functions over a connection, the writer's or a reader's; it owns none. It must never write.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from erxhub.ledger.store import Head, Loaded, Reply, Wanted

_P = ParamSpec("_P")
_T = TypeVar("_T")

INTEGER_MAX: Final = 2**63 - 1
"""SQLite's largest; a larger position or instant is beyond every row anyway."""

_HEAD_COLUMNS: Final = "SELECT s.no, s.kind, s.key, t.version, t.leaf_hash, t.body, t.due_at_ms"
# Constants and not built where they are used: a new string costs as much as finding the row.
HEAD_BY_NAME: Final = (
    f"{_HEAD_COLUMNS} FROM name n JOIN stream s ON s.no = n.stream LEFT JOIN state t ON t.stream = s.no"
    " WHERE n.space = ? AND n.key = ?"
)
HEAD_BY_KEY: Final = f"{_HEAD_COLUMNS} FROM stream s LEFT JOIN state t ON t.stream = s.no WHERE s.key = ?"
NEWEST_ENTRY: Final = "SELECT version, leaf_hash FROM entry WHERE stream = ? ORDER BY version DESC LIMIT 1"
REPLY_BY_REQUEST: Final = (
    "SELECT r.caller, r.request_id, r.method, r.content_mac, r.body, s.key, r.version FROM reply r"
    " LEFT JOIN stream s ON s.no = r.stream WHERE r.caller = ? AND r.request_id = ?"
)
CATALOG_ROW: Final = "SELECT body FROM catalog_row WHERE dataset = ? AND edition = ? AND code = ?"


def load(connection: sqlite3.Connection, wanted: Wanted) -> Loaded:
    """The look-ups of one round trip, on whichever connection."""
    find = connection.cursor().execute  # one cursor for all: each is read out before the next
    names: dict[tuple[str, bytes], bytes] = {}
    heads: dict[bytes, Head] = {}
    for name in wanted.names:
        row = find(HEAD_BY_NAME, name).fetchone()
        if row is not None:
            names[name] = row[2]
            heads.update(_head(connection, row))
    for key in wanted.streams:
        if key not in heads:
            row = find(HEAD_BY_KEY, (key,)).fetchone()
            if row is not None:
                heads.update(_head(connection, row))
    replies: dict[tuple[str, str], Reply] = {}
    for request in wanted.replies:
        row = find(REPLY_BY_REQUEST, request).fetchone()
        if row is not None:
            replies[request] = Reply(*row)
    catalog: dict[tuple[str, str, str], bytes] = {}
    for code in wanted.catalog:
        row = find(CATALOG_ROW, code).fetchone()
        if row is not None:
            catalog[code] = row[0]
    return Loaded(names, heads, replies, catalog)


def _head(connection: sqlite3.Connection, row: tuple[Any, ...]) -> dict[bytes, Head]:
    """One head, or none for a stream whose entries somebody has taken out."""
    no, kind, key, version, leaf_hash, body, due_at_ms = row
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
