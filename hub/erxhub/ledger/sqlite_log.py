"""The log on SQLite: every statement about checkpoints, tiles and pages, as functions over a connection.

Owns no connection: the store runs what reads in a snapshot of a reader, and `write` on its writer. So the hashing of a
step goes on beside the commits, and the writer only puts down its rows. It must never write outside `write`, `sign` and
`cosign`, each one transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

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
    Standing,
    Step,
)
from erxhub.ledger.sqlite_read import bounded, found
from erxhub.ledger.sqlite_writer import put_rows
from erxhub.proof.tiles import TilePlace

_T = TypeVar("_T")

# Cast, so that whoever verifies meets bytes and numbers also where somebody has put something else.
_CHECKPOINT: Final = (
    "SELECT c.no, CAST(c.size AS INTEGER), CAST(c.root AS BLOB), CAST(c.map_root AS BLOB),"
    " CAST(c.covered_position AS INTEGER), CAST(c.made_at_ms AS INTEGER), CAST(n.note AS BLOB)"
    " FROM checkpoint c LEFT JOIN checkpoint_note n ON n.no = c.no"
)
_NEWEST: Final = f"{_CHECKPOINT} ORDER BY c.no DESC LIMIT 1"
_BY_NO: Final = f"{_CHECKPOINT} WHERE c.no = ?"
_BY_SIZE: Final = f"{_CHECKPOINT} WHERE c.size = ?"
_AFTER: Final = f"{_CHECKPOINT} WHERE c.no > ? ORDER BY c.no LIMIT ?"
_COSIGNATURES: Final = "SELECT witness, line FROM cosignature WHERE no = ? ORDER BY witness"
_WITNESS_SIZES: Final = (
    "SELECT s.witness, max(c.size) FROM cosignature s JOIN checkpoint c ON c.no = s.no GROUP BY s.witness"
)
_LEAVES: Final = (
    "SELECT e.position, CAST(s.key AS BLOB), CAST(e.version AS INTEGER), CAST(e.leaf_hash AS BLOB) FROM entry e"
    " JOIN stream s ON s.no = e.stream WHERE e.position > ? ORDER BY e.position LIMIT ?"
)
_TILE: Final = "SELECT CAST(hashes AS BLOB), level, number FROM tile WHERE level = ? AND number = ?"
_PAGE: Final = "SELECT CAST(data AS BLOB), path FROM page WHERE path = ?"
_POSITION: Final = "SELECT e.position FROM stream s JOIN entry e ON e.stream = s.no WHERE s.key = ? AND e.version = ?"
_CHECKPOINTS_BEFORE: Final = (
    "SELECT no FROM checkpoint WHERE covered_position < ? ORDER BY covered_position DESC LIMIT 1"
)
_HEAD: Final = (
    "SELECT CAST(e.version AS INTEGER), CAST(e.leaf_hash AS BLOB) FROM stream s JOIN entry e ON e.stream = s.no"
    " WHERE s.key = ? AND e.position <= ? ORDER BY e.version DESC LIMIT 1"
)


def checkpoint(connection: sqlite3.Connection, no: int | None = None, size: int | None = None) -> Checkpoint | None:
    """See `Store.checkpoint`."""
    if no is not None:
        row = connection.execute(_BY_NO, (bounded(no),)).fetchone()
    elif size is not None:
        row = connection.execute(_BY_SIZE, (bounded(size),)).fetchone()
    else:
        row = connection.execute(_NEWEST).fetchone()
    if row is None or size not in (None, row[1]):
        return None
    lines = tuple(Cosignature(*line) for line in connection.execute(_COSIGNATURES, (row[0],)))
    return _checkpoint(row, lines)


def checkpoints(connection: sqlite3.Connection, after_no: int, limit: int) -> list[Checkpoint]:
    """See `Store.checkpoints`."""
    return [_checkpoint(row, ()) for row in connection.execute(_AFTER, (bounded(after_no), bounded(limit)))]


def _checkpoint(row: Sequence[Any], lines: tuple[Cosignature, ...]) -> Checkpoint:
    note = None if row[6] is None else bytes(row[6]).decode("utf-8", "replace")
    no, size, root, map_root, covered_position, made_at_ms, _ = row
    return Checkpoint(no, size, root, map_root, covered_position, made_at_ms, note, lines)


def plan(connection: sqlite3.Connection, now_ms: int, leaves_max: int) -> Step | None:
    """The next step over what is committed, None when everything is in the log."""
    newest = checkpoint(connection)
    covered = newest.covered_position if newest else 0
    rows = connection.execute(_LEAVES, (covered, bounded(leaves_max))).fetchall()
    if not rows:
        return None
    return _run(connection, log.next_step(newest, [PlacedLeaf(*row) for row in rows], now_ms))


def write(connection: sqlite3.Connection, step: Step) -> bool:
    """Put a step down as a whole; False when it does not follow the newest checkpoint any more."""
    connection.execute("BEGIN IMMEDIATE")
    made = step.checkpoint
    newest = connection.execute("SELECT ifnull(max(no), 0) FROM checkpoint").fetchone()[0]
    if newest != made.no - 1:
        connection.execute("ROLLBACK")
        return False
    connection.execute(
        "INSERT INTO checkpoint VALUES (?, ?, ?, ?, ?, ?)",
        (made.no, made.size, made.root, made.map_root, made.covered_position, made.made_at_ms),
    )
    put_rows(
        connection,
        "INSERT INTO tile VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET hashes = excluded.hashes",
        [(*place, hashes) for place, hashes in step.tiles.items()],
    )
    put_rows(
        connection,
        "INSERT INTO page VALUES (?, ?) ON CONFLICT DO UPDATE SET data = excluded.data",
        sorted(step.pages.items()),
    )
    connection.execute("COMMIT")
    return True


def sign(connection: sqlite3.Connection, no: int, note: str) -> None:
    """See `Store.sign`."""
    connection.execute("BEGIN IMMEDIATE")
    _check_no(connection, no)
    connection.execute("INSERT INTO checkpoint_note VALUES (?, ?) ON CONFLICT DO NOTHING", (no, note))
    there = connection.execute("SELECT note FROM checkpoint_note WHERE no = ?", (no,)).fetchone()[0]
    connection.execute("COMMIT")
    if there != note:
        raise AnotherNote(f"checkpoint {no} has another note")


def cosign(connection: sqlite3.Connection, no: int, lines: Iterable[Cosignature]) -> None:
    """See `Store.cosign`."""
    connection.execute("BEGIN IMMEDIATE")
    _check_no(connection, no)
    connection.executemany(
        "INSERT INTO cosignature VALUES (?, ?, ?) ON CONFLICT DO NOTHING", [(no, *line) for line in lines]
    )
    connection.execute("COMMIT")


def witness_sizes(connection: sqlite3.Connection) -> dict[str, int]:
    """See `Store.witness_sizes`."""
    return dict(connection.execute(_WITNESS_SIZES).fetchall())


def prove(connection: sqlite3.Connection, wanted: ProofsWanted) -> Proofs:
    """See `Store.prove`."""
    newest = checkpoint(connection)
    if newest is None:
        raise LogEmpty("there is no checkpoint yet")
    standings = {}
    for key, version in wanted.entries:
        row = connection.execute(_POSITION, (key, bounded(version))).fetchone()
        if row is not None:
            before = connection.execute(_CHECKPOINTS_BEFORE, row).fetchone()
            standings[key, version] = Standing(row[0], before[0] if before else 0)
    heads = {}
    for key in wanted.map_keys:
        row = connection.execute(_HEAD, (key, newest.covered_position)).fetchone()
        if row is not None:
            heads[key] = (row[0], row[1])
    return _run(connection, log.prove(newest, standings, heads, wanted))


def inclusion(connection: sqlite3.Connection, index: int, size: int) -> list[bytes]:
    """See `Store.inclusion`."""
    _check_size(connection, size)
    return _run(connection, log.inclusion(index, size))


def consistency(connection: sqlite3.Connection, size1: int, size2: int) -> list[bytes]:
    """See `Store.consistency`."""
    _check_size(connection, size2)
    return _run(connection, log.consistency(size1, size2))


def tiles(connection: sqlite3.Connection, places: Collection[TilePlace]) -> dict[TilePlace, bytes]:
    """See `Store.tiles`."""
    wanted = [tuple(map(bounded, place)) for place in places]
    return {TilePlace(row[1], row[2]): row[0] for row in found(connection, _TILE, wanted)}


def pages(connection: sqlite3.Connection, paths: Collection[bytes]) -> dict[bytes, bytes]:
    """See `Store.pages`."""
    return {row[1]: row[0] for row in found(connection, _PAGE, [(path,) for path in paths])}


def _run(connection: sqlite3.Connection, steps: LogSteps[_T]) -> _T:
    def read_tiles(places: Collection[TilePlace]) -> Mapping[TilePlace, bytes]:
        return tiles(connection, places)

    def read_pages(paths: Collection[bytes]) -> Mapping[bytes, bytes]:
        return pages(connection, paths)

    return log.run(steps, read_tiles, read_pages)


def _check_no(connection: sqlite3.Connection, no: int) -> None:
    if connection.execute("SELECT 1 FROM checkpoint WHERE no = ?", (bounded(no),)).fetchone() is None:
        connection.execute("ROLLBACK")
        raise LogEmpty(f"there is no checkpoint {no}")


def _check_size(connection: sqlite3.Connection, size: int) -> None:
    newest = checkpoint(connection)
    if newest is None or size > newest.size:
        raise LogEmpty(f"the log has no {size} leaves")
