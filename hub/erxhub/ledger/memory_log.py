"""The log in memory: the part of the memory store that keeps checkpoints, tiles and pages.

Owns these dictionaries. It must never be more lenient than the other stores; nothing here waits for anything.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import TypeVar

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
)
from erxhub.ledger.store import StoredEntry, check_limit
from erxhub.proof.tiles import TilePlace

_T = TypeVar("_T")


class MemoryLog:
    """Over a list of entries in order of position, and the same by stream; it changes neither."""

    def __init__(self, entries: list[StoredEntry], streams: dict[bytes, list[StoredEntry]]) -> None:
        self._entries = entries
        self._streams = streams
        self._checkpoints: list[Checkpoint] = []
        self._tiles: dict[TilePlace, bytes] = {}
        self._pages: dict[bytes, bytes] = {}

    def copy(self, entries: list[StoredEntry], streams: dict[bytes, list[StoredEntry]]) -> MemoryLog:
        """The same log over a copy of the entries."""
        twin = MemoryLog(entries, streams)
        twin._checkpoints = self._checkpoints.copy()
        twin._tiles = self._tiles.copy()
        twin._pages = self._pages.copy()
        return twin

    def integrate(self, now_ms: int, leaves_max: int) -> Checkpoint | None:
        """See `Store.integrate`."""
        check_limit(leaves_max)
        newest = self._checkpoints[-1] if self._checkpoints else None
        covered = newest.covered_position if newest else 0
        leaves = [
            PlacedLeaf(entry.position, entry.stream_key, entry.version, entry.leaf_hash)
            for entry in self._entries[covered : covered + leaves_max]
        ]
        if not leaves:
            return None
        step = self._run(log.next_step(newest, leaves, now_ms))
        self._tiles.update(step.tiles)
        self._pages.update(step.pages)
        self._checkpoints.append(step.checkpoint)
        return step.checkpoint

    def checkpoint(self, no: int | None, size: int | None) -> Checkpoint | None:
        """See `Store.checkpoint`."""
        if no is None and size is None:
            return self._checkpoints[-1] if self._checkpoints else None
        for found in self._checkpoints:
            if no in (None, found.no) and size in (None, found.size):
                return found
        return None

    def checkpoints(self, after_no: int, limit: int) -> list[Checkpoint]:
        """See `Store.checkpoints`."""
        start = max(after_no, 0)
        return [replace(found, cosignatures=()) for found in self._checkpoints[start : start + limit]]

    def sign(self, no: int, note: str) -> None:
        """See `Store.sign`."""
        found = self._of(no)
        if found.note is None:
            self._checkpoints[no - 1] = replace(found, note=note)
        elif found.note != note:
            raise AnotherNote(f"checkpoint {no} has another note")

    def cosign(self, no: int, lines: Iterable[Cosignature]) -> None:
        """See `Store.cosign`."""
        found = self._of(no)
        known = {line.witness: line for line in found.cosignatures}
        for line in lines:
            known.setdefault(line.witness, Cosignature(*line))
        self._checkpoints[no - 1] = replace(found, cosignatures=tuple(known[name] for name in sorted(known)))

    def witness_sizes(self) -> dict[str, int]:
        """See `Store.witness_sizes`."""
        return {line.witness: found.size for found in self._checkpoints for line in found.cosignatures}

    def prove(self, wanted: ProofsWanted) -> Proofs:
        """See `Store.prove`."""
        if not self._checkpoints:
            raise LogEmpty("there is no checkpoint yet")
        checkpoint = self._checkpoints[-1]
        covered = checkpoint.covered_position
        standings = {
            (key, version): self._standing(self._streams[key][version - 1].position)
            for key, version in wanted.entries
            if 1 <= version <= len(self._streams.get(key, ()))
        }
        heads = {}
        for key in wanted.map_keys:
            before = [entry for entry in self._streams.get(key, ()) if entry.position <= covered]
            if before:
                heads[key] = (before[-1].version, before[-1].leaf_hash)
        return self._run(log.prove(checkpoint, standings, heads, wanted))

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """See `Store.inclusion`."""
        self._check_size(size)
        return self._run(log.inclusion(index, size))

    def consistency(self, size1: int, size2: int) -> list[bytes]:
        """See `Store.consistency`."""
        self._check_size(size2)
        return self._run(log.consistency(size1, size2))

    def tiles(self, places: Collection[TilePlace]) -> dict[TilePlace, bytes]:
        """See `Store.tiles`."""
        return {place: self._tiles[place] for place in places if place in self._tiles}

    def pages(self, paths: Collection[bytes]) -> dict[bytes, bytes]:
        """See `Store.pages`."""
        return {path: self._pages[path] for path in paths if path in self._pages}

    def _of(self, no: int) -> Checkpoint:
        if not 1 <= no <= len(self._checkpoints):
            raise LogEmpty(f"there is no checkpoint {no}")
        return self._checkpoints[no - 1]

    def _check_size(self, size: int) -> None:
        if not self._checkpoints or size > self._checkpoints[-1].size:
            raise LogEmpty(f"the log has no {size} leaves")

    def _standing(self, position: int) -> Standing:
        return Standing(position, bisect_left(self._checkpoints, position, key=_covered))

    def _run(self, steps: LogSteps[_T]) -> _T:
        return log.run(steps, self.tiles, self.pages)


def _covered(checkpoint: Checkpoint) -> int:
    return checkpoint.covered_position
