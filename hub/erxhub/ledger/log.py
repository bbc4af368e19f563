"""The log over the entries: its records, and the one step that extends tree and map. Each store has verbs of its own.

Owns what a checkpoint is made of. A step and a proof are generators that ask for rows and return what to write or to
answer, so that every store runs the same ones inside a transaction of its own. It must never sign anything.

The log holds the entries in order of position and, as the last leaf of every checkpoint, one that carries the map's
root. So the index of an entry follows from its position and from how many checkpoints were made before it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from erxhub.proof import pages, tiles
from erxhub.proof.hashing import leaf_hash
from erxhub.proof.records import map_value, maproot_leaf
from erxhub.proof.tiles import TilePlace

_T = TypeVar("_T")
_Asked = TypeVar("_Asked")
_Given = TypeVar("_Given")


class Cosignature(NamedTuple):
    """A witness's signature line under a checkpoint, with the name of the witness."""

    witness: str
    line: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One state of the log, and the promise over it once `note` is there.

    Checkpoints are numbered from 1. `size` leaves: the entries up to `covered_position`, and a MAPROOT leaf for each
    checkpoint up to this one, whose own is the last leaf.
    """

    no: int
    size: int
    root: bytes
    map_root: bytes
    covered_position: int
    made_at_ms: int
    note: str | None = None
    cosignatures: tuple[Cosignature, ...] = ()


class PlacedLeaf(NamedTuple):
    """An entry as the log sees it."""

    position: int
    stream_key: bytes
    version: int
    leaf_hash: bytes


class Step(NamedTuple):
    """A checkpoint to insert, and the rows to write over what was there."""

    checkpoint: Checkpoint
    tiles: dict[TilePlace, bytes]
    pages: dict[bytes, bytes]


@dataclass(frozen=True, slots=True)
class ProofsWanted:
    """Streams to look up in the map, and entries (stream key, version) to prove."""

    map_keys: tuple[bytes, ...] = ()
    entries: tuple[tuple[bytes, int], ...] = ()


class MapProof(NamedTuple):
    """The newest entry of a stream that a checkpoint covers (version, leaf hash), or None, and the map's proof of it.

    A stream that the map holds and that no entry backs is a ledger that was damaged: `head` is None and `value` is not.
    """

    head: tuple[int, bytes] | None
    value: bytes | None
    proof: bytes


@dataclass(frozen=True, slots=True)
class EntryProof:
    """Where an entry stands in the log, and the inclusion path from there."""

    index: int
    path: list[bytes]


@dataclass(frozen=True, slots=True)
class Proofs:
    """Proofs against one checkpoint. An entry that it does not cover is absent from `entries`."""

    checkpoint: Checkpoint
    maproot_path: list[bytes]
    map: Mapping[bytes, MapProof]
    entries: Mapping[tuple[bytes, int], EntryProof]


class LogEmpty(Exception):
    """There is no checkpoint yet, or none of that size."""


class AnotherNote(ValueError):
    """A checkpoint has a signed note already, and it is a different one."""


@dataclass(frozen=True, slots=True)
class RowsWanted:
    """Rows that a step or a proof asks its store for."""

    tiles: Collection[TilePlace] = ()
    pages: Collection[bytes] = ()


@dataclass(frozen=True, slots=True)
class RowsFound:
    """Those of them that exist."""

    tiles: Mapping[TilePlace, bytes] = field(default_factory=dict)
    pages: Mapping[bytes, bytes] = field(default_factory=dict)


LogSteps = Generator[RowsWanted, RowsFound, _T]


@dataclass(frozen=True, slots=True)
class Standing:
    """What a store knows about an entry: its position, and how many checkpoints lie before it."""

    position: int
    checkpoints_before: int

    @property
    def index(self) -> int:
        """Its leaf in the log."""
        return self.position - 1 + self.checkpoints_before


def next_step(newest: Checkpoint | None, leaves: Sequence[PlacedLeaf], now_ms: int) -> LogSteps[Step]:
    """The step over these entries, which follow `newest` without a gap. Raises ValueError, TileDamaged, PageDamaged."""
    size = newest.size if newest else 0
    covered = newest.covered_position if newest else 0
    if [leaf.position for leaf in leaves] != list(range(covered + 1, covered + 1 + len(leaves))) or not leaves:
        raise ValueError("the entries do not follow the newest checkpoint")
    newest_of = {leaf.stream_key: leaf for leaf in leaves}  # the last one of a stream is its newest
    changes = {key: map_value(leaf.version, leaf.leaf_hash) for key, leaf in newest_of.items()}
    the_map = yield from _from_pages(pages.update(changes))
    maproot = leaf_hash(maproot_leaf(size + len(leaves), the_map.root))
    tree = yield from _from_tiles(tiles.append(size, [*(leaf.leaf_hash for leaf in leaves), maproot]))
    checkpoint = Checkpoint(
        no=newest.no + 1 if newest else 1,
        size=tree.size,
        root=tree.root,
        map_root=the_map.root,
        covered_position=leaves[-1].position,
        made_at_ms=max(now_ms, newest.made_at_ms if newest else 0),
    )
    return Step(checkpoint, tree.tiles, the_map.pages)


def prove(
    checkpoint: Checkpoint,
    standings: Mapping[tuple[bytes, int], Standing],
    heads: Mapping[bytes, tuple[int, bytes]],
    wanted: ProofsWanted,
) -> LogSteps[Proofs]:
    """Proofs against the newest checkpoint. `heads`: the newest entry of each wanted stream that it covers.

    Raises TileDamaged, PageDamaged.
    """
    indexes = {
        entry: standing.index
        for entry in wanted.entries
        if (standing := standings.get(entry)) and standing.position <= checkpoint.covered_position
    }
    last = checkpoint.size - 1
    paths = yield from _from_tiles(tiles.inclusions([last, *indexes.values()], checkpoint.size))
    found = yield from _from_pages(pages.prove(wanted.map_keys))
    return Proofs(
        checkpoint,
        paths[last],
        {key: MapProof(heads.get(key), answer.value, answer.proof) for key, answer in found.items()},
        {entry: EntryProof(index, paths[index]) for entry, index in indexes.items()},
    )


def run(
    steps: LogSteps[_T],
    read_tiles: Callable[[Collection[TilePlace]], Mapping[TilePlace, bytes]],
    read_pages: Callable[[Collection[bytes]], Mapping[bytes, bytes]],
) -> _T:
    """Drive a step or a proof with readers that answer at once."""
    try:
        wanted = next(steps)
        while True:
            wanted = steps.send(RowsFound(read_tiles(wanted.tiles), read_pages(wanted.pages)))
    except StopIteration as done:
        result: _T = done.value
        return result


def inclusion(index: int, size: int) -> LogSteps[list[bytes]]:
    """See `tiles.inclusion`."""
    return (yield from _from_tiles(tiles.inclusion(index, size)))


def consistency(size1: int, size2: int) -> LogSteps[list[bytes]]:
    """See `tiles.consistency`."""
    return (yield from _from_tiles(tiles.consistency(size1, size2)))


def _from_tiles(steps: tiles.TileSteps[_T]) -> LogSteps[_T]:
    return (yield from _through(steps, lambda wanted: RowsWanted(tiles=wanted), lambda found: found.tiles))


def _from_pages(steps: pages.PageSteps[_T]) -> LogSteps[_T]:
    return (yield from _through(steps, lambda wanted: RowsWanted(pages=wanted), lambda found: found.pages))


def _through(
    steps: Generator[_Asked, _Given, _T], asks: Callable[[_Asked], RowsWanted], gives: Callable[[RowsFound], _Given]
) -> LogSteps[_T]:
    """Steps over one kind of rows as steps over all."""
    try:
        wanted = next(steps)
        while True:
            wanted = steps.send(gives((yield asks(wanted))))
    except StopIteration as done:
        result: _T = done.value
        return result
