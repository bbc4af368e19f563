"""Tiles against the definition of the tree, computed anew from all leaves each time."""

from __future__ import annotations

from collections.abc import Collection
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erxhub.proof import tiles
from erxhub.proof.hashing import EMPTY_ROOT, inner
from erxhub.proof.tiles import TileDamaged, TilePlace

LEAVES = [sha256(b"leaf %d" % number).digest() for number in range(70_000)]


def naive_root(leaves: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, word for word."""
    if not leaves:
        return EMPTY_ROOT
    if len(leaves) == 1:
        return leaves[0]
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    return inner(naive_root(leaves[:half]), naive_root(leaves[half:]))


def naive_inclusion(index: int, leaves: list[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    if index < half:
        return [*naive_inclusion(index, leaves[:half]), naive_root(leaves[half:])]
    return [*naive_inclusion(index - half, leaves[half:]), naive_root(leaves[:half])]


def naive_consistency(size: int, leaves: list[bytes], whole: bool = True) -> list[bytes]:
    if size == len(leaves):
        return [] if whole else [naive_root(leaves)]
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    if size <= half:
        return [*naive_consistency(size, leaves[:half], whole), naive_root(leaves[half:])]
    return [*naive_consistency(size - half, leaves[half:], False), naive_root(leaves[:half])]


class Kept:
    """Tiles in a dictionary."""

    def __init__(self) -> None:
        self.rows: dict[TilePlace, bytes] = {}
        self.size = 0

    def read(self, places: Collection[TilePlace]) -> dict[TilePlace, bytes]:
        return {place: self.rows[place] for place in places if place in self.rows}

    def grow(self, count: int) -> bytes:
        update = tiles.run(tiles.append(self.size, LEAVES[self.size : self.size + count]), self.read)
        self.rows.update(update.tiles)
        self.size = update.size
        return update.root


@given(st.lists(st.integers(1, 400), min_size=1, max_size=6), st.data())
@settings(max_examples=60, deadline=None)
def test_roots_and_proofs_are_those_of_the_definition(portions: list[int], data: st.DataObject) -> None:
    kept = Kept()
    for portion in portions:
        assert kept.grow(portion) == naive_root(LEAVES[: kept.size])
    size = data.draw(st.integers(1, kept.size))
    leaves = LEAVES[:size]
    assert tiles.run(tiles.root(size), kept.read) == naive_root(leaves)
    index = data.draw(st.integers(0, size - 1))
    assert tiles.run(tiles.inclusion(index, size), kept.read) == naive_inclusion(index, leaves)
    smaller = data.draw(st.integers(1, size))
    assert tiles.run(tiles.consistency(smaller, size), kept.read) == naive_consistency(smaller, leaves)


@given(st.lists(st.integers(1, 700), max_size=5))
@settings(max_examples=30, deadline=None)
def test_portions_leave_no_trace(portions: list[int]) -> None:
    kept, at_once = Kept(), Kept()
    for portion in portions:
        kept.grow(portion)
    at_once.grow(kept.size)
    assert kept.rows == at_once.rows


def test_three_levels_of_tiles_hold_what_the_format_says() -> None:
    kept = Kept()
    root = kept.grow(65_536 + 256 + 3)
    assert kept.rows[TilePlace(0, 257)] == b"".join(LEAVES[65_792:65_795])
    assert kept.rows[TilePlace(1, 1)] == naive_root(LEAVES[65_536:65_792])
    assert kept.rows[TilePlace(2, 0)] == naive_root(LEAVES[:65_536])
    assert {place.level for place in kept.rows} == {0, 1, 2}
    assert root == naive_root(LEAVES[:65_795])


def test_missing_and_short_tiles_are_damage() -> None:
    kept = Kept()
    kept.grow(300)
    kept.rows[TilePlace(0, 1)] = kept.rows[TilePlace(0, 1)][:-32]
    for steps in (tiles.root(300), tiles.append(300, LEAVES[:1]), tiles.inclusion(0, 300)):
        with pytest.raises(TileDamaged):
            tiles.run(steps, kept.read)  # type: ignore[arg-type]
    del kept.rows[TilePlace(0, 1)]
    with pytest.raises(TileDamaged):
        tiles.run(tiles.root(300), kept.read)


@pytest.mark.parametrize(("index", "size"), [(-1, 3), (3, 3), (0, 0)])
def test_no_proof_of_a_leaf_that_is_not_there(index: int, size: int) -> None:
    with pytest.raises(ValueError):
        tiles.run(tiles.inclusion(index, size), Kept().read)
