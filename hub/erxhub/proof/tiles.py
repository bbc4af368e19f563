"""The tree of the log as tiles of 256 hashes: appending, roots, and the nodes that proofs are made of.

Owns the cut of docs/formats.md: tile (level, number) holds, in order, the roots of complete subtrees of 256^level
leaves. It must never read or write a store: an update is a generator that asks for tiles and returns those to write
(`run` drives it), and a proof says first which tiles it needs. Nodes within a tile are computed, never stored.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

from erxhub.proof.hashing import EMPTY_ROOT, HASH_BYTES, inner
from erxhub.proof.merkle import consistency_path, inclusion_path

WIDTH: Final = 256
_LEVEL_BITS: Final = 8

_T = TypeVar("_T")


class TilePlace(NamedTuple):
    """Where a tile lies: its level, 0 for leaf hashes, and its number in that level."""

    level: int
    number: int


Tiles = Mapping[TilePlace, bytes]
TileSteps = Generator[Collection[TilePlace], Tiles, _T]
"""Asks for tiles, and is sent those of them that exist."""


class TileDamaged(ValueError):
    """A tile is missing, or holds other than the hashes that the size of the tree calls for."""


class TilesUpdate(NamedTuple):
    """The tree after an update, and the tiles to write over what was there."""

    size: int
    root: bytes
    tiles: dict[TilePlace, bytes]


def run(steps: TileSteps[_T], read: Callable[[Collection[TilePlace]], Tiles]) -> _T:
    """Drive an update or a proof with a reader that answers at once."""
    try:
        wanted = next(steps)
        while True:
            wanted = steps.send(read(wanted))
    except StopIteration as done:
        result: _T = done.value
        return result


def edge(size: int) -> list[TilePlace]:
    """The partial tiles at the right side of a tree: what its root and the next leaf need, at most eight."""
    places = []
    level, count = 0, size
    while count:
        if count % WIDTH:
            places.append(TilePlace(level, count // WIDTH))
        level, count = level + 1, count // WIDTH
    return places


def append(size: int, leaf_hashes: Sequence[bytes]) -> TileSteps[TilesUpdate]:
    """Add leaves to a tree of `size` leaves. Raises TileDamaged."""
    found = (yield edge(size)) if size else {}
    tiles = {place: _partial(found, place, size) for place in edge(size)}
    written: dict[TilePlace, bytes] = {}
    level, count, hashes = 0, size, list(leaf_hashes)
    while hashes:
        full: list[bytes] = []
        number = count // WIDTH
        data = tiles.get(TilePlace(level, number), b"") + b"".join(hashes)
        for at in range(0, len(data), WIDTH * HASH_BYTES):
            place, tile = TilePlace(level, number), data[at : at + WIDTH * HASH_BYTES]
            written[place] = tiles[place] = tile
            if len(tile) == WIDTH * HASH_BYTES:
                full.append(complete(tile))
            number += 1
        count = count // WIDTH
        level, hashes = level + 1, full
    after = size + len(leaf_hashes)
    return TilesUpdate(after, _root(after, tiles), written)


def root(size: int) -> TileSteps[bytes]:
    """The root of the first `size` leaves. Raises TileDamaged."""
    if not size:
        return EMPTY_ROOT
    found = yield edge(size)
    return _root(size, {place: _partial(found, place, size) for place in edge(size)})


def inclusion(index: int, size: int) -> TileSteps[list[bytes]]:
    """The proof that leaf `index` is in the tree of `size` leaves. Raises ValueError, TileDamaged."""
    found = yield _needed(lambda read: inclusion_path(index, size, read))
    return inclusion_path(index, size, Nodes(found))


def inclusions(indexes: Iterable[int], size: int) -> TileSteps[dict[int, list[bytes]]]:
    """The proofs of several leaves in one tree, with one reading. Raises ValueError, TileDamaged."""
    wanted = list(dict.fromkeys(indexes))
    found = yield _needed(lambda read: [inclusion_path(index, size, read) for index in wanted])
    nodes = Nodes(found)
    return {index: inclusion_path(index, size, nodes) for index in wanted}


def consistency(size1: int, size2: int) -> TileSteps[list[bytes]]:
    """The proof that the tree of `size1` leaves begins that of `size2`. Raises ValueError, TileDamaged."""
    found = yield _needed(lambda read: consistency_path(size1, size2, read))
    return consistency_path(size1, size2, Nodes(found))


class Nodes:
    """Reads nodes from tiles: the root of the complete subtree of 2^level leaves no. `index`."""

    def __init__(self, tiles: Tiles) -> None:
        self._tiles = tiles
        self._known: dict[tuple[int, int], bytes] = {}

    def __call__(self, level: int, index: int) -> bytes:
        known = self._known.get((level, index))
        if known is None:
            place, first, count = _span(level, index)
            data = self._tiles.get(place, b"")[first * HASH_BYTES : (first + count) * HASH_BYTES]
            if len(data) != count * HASH_BYTES:
                raise TileDamaged(f"tile {place.level}/{place.number} lacks hashes that the tree has")
            known = self._known[level, index] = complete(data)
        return known


def _span(level: int, index: int) -> tuple[TilePlace, int, int]:
    """The tile of a node, and the first and the number of the hashes in it that the node stands over."""
    tile_level, height = divmod(level, _LEVEL_BITS)
    number, first = divmod(index << height, WIDTH)
    return TilePlace(tile_level, number), first, 1 << height


def _needed(prove: Callable[[Callable[[int, int], bytes]], object]) -> list[TilePlace]:
    """The tiles that a proof reads: it is made once with nothing in it."""
    places: dict[TilePlace, None] = {}

    def note(level: int, index: int) -> bytes:
        places[_span(level, index)[0]] = None
        return EMPTY_ROOT

    prove(note)
    return list(places)


def _partial(found: Tiles, place: TilePlace, size: int) -> bytes:
    """The first hashes of an edge tile, as many as the size calls for: the stored tile may be of a later tree."""
    count = (size >> _LEVEL_BITS * place.level) % WIDTH
    data = found.get(place, b"")
    if len(data) < count * HASH_BYTES or len(data) % HASH_BYTES:
        raise TileDamaged(f"tile {place.level}/{place.number} lacks hashes that the tree has")
    return data[: count * HASH_BYTES]


def complete(data: bytes) -> bytes:
    """The root over 2^n hashes, given as one run of bytes."""
    level = [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]
    while len(level) > 1:
        level = [inner(level[at], level[at + 1]) for at in range(0, len(level), 2)]
    return level[0]


def _root(size: int, tiles: Tiles) -> bytes:
    """The root over the complete subtrees of the edge, the largest of which lies leftmost."""
    result: bytes | None = None
    for place in edge(size):  # from the leaves upwards, that is from the right
        data = tiles[place]
        end = (size >> _LEVEL_BITS * place.level) % WIDTH
        while end:
            width = end & -end
            peak = complete(data[(end - width) * HASH_BYTES : end * HASH_BYTES])
            result = peak if result is None else inner(peak, result)
            end -= width
    return EMPTY_ROOT if result is None else result
