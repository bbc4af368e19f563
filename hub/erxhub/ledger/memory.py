"""A store that lives and dies with its process: for tests and simulations.

Owns the same contract as the others, with dictionaries. It must never be more lenient than they are.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Final

from erxhub.ledger.entry import FIRST_PREV_LEAF_HASH
from erxhub.ledger.log import Checkpoint, Cosignature, Proofs, ProofsWanted
from erxhub.ledger.memory_log import MemoryLog
from erxhub.ledger.store import (
    AppendResult,
    Erasure,
    Head,
    ListingRow,
    Loaded,
    NameRow,
    NewState,
    PlacedRow,
    Reply,
    StoredEntry,
    StoreUnavailable,
    Wanted,
    Write,
    check_limit,
    check_write,
    requests_of,
)
from erxhub.proof.tiles import TilePlace

_PLACE_BYTES: Final = 8
_POSITION_MAX: Final = (1 << 8 * _PLACE_BYTES) - 1


class MemoryStore:
    """No method waits for anything, so every call is atomic on its event loop."""

    def __init__(self) -> None:
        self._log: list[StoredEntry] = []
        self._streams: dict[bytes, list[StoredEntry]] = {}  # in order of creation
        self._states: dict[bytes, NewState] = {}
        self._names: dict[str, dict[bytes, bytes]] = {}  # by space
        self._listings: dict[tuple[str, bytes], list[bytes]] = {}  # a row: `_place`, and the value behind it
        self._replies: dict[str, dict[str, Reply]] = {}  # by caller
        self._blobs: dict[tuple[bytes, bytes], bytes] = {}
        self._catalog: dict[tuple[str, str], dict[str, bytes]] = {}
        self._tree = MemoryLog(self._log, self._streams)
        self._closed = False

    def copy(self) -> MemoryStore:
        """An open store with the same content. What it holds is immutable, so only the containers are copied."""
        twin = MemoryStore()
        twin._log = self._log.copy()
        twin._streams = {key: entries.copy() for key, entries in self._streams.items()}
        twin._states = self._states.copy()
        twin._names = {space: streams.copy() for space, streams in self._names.items()}
        twin._listings = {place: rows.copy() for place, rows in self._listings.items()}
        twin._replies = {caller: replies.copy() for caller, replies in self._replies.items()}
        twin._blobs = self._blobs.copy()
        twin._catalog = {edition: rows.copy() for edition, rows in self._catalog.items()}
        twin._tree = self._tree.copy(twin._log, twin._streams)
        return twin

    @property
    def others(self) -> None:
        return None

    async def load(self, wanted: Wanted) -> Loaded:
        self._check_open()
        names = {name: found for name in wanted.names if (found := self._named(*name)) is not None}
        heads = {}
        for key in wanted.streams.union(names.values()):
            stream = self._streams.get(key)
            if stream is not None:
                heads[key] = self._head(stream[-1])
        catalog = {}
        for dataset, edition, code in wanted.catalog:
            body = self._catalog.get((dataset, edition), {}).get(code)
            if body is not None:
                catalog[dataset, edition, code] = body
        replies = {request: kept for request in wanted.replies if (kept := self._replied(*request)) is not None}
        return Loaded(names, heads, replies, catalog)

    async def read(self, wanted: Wanted) -> Loaded:
        return await self.load(wanted)

    async def append(self, batch: Sequence[Write]) -> AppendResult:
        self._check_open()
        for write in batch:
            check_write(write)
        conflicts: set[int] = set()
        dropped: set[bytes] = set()
        for index, write in enumerate(batch):
            if self._conflicts(write, dropped):
                conflicts.add(index)
                dropped.update(entry.leaf_hash for entry in write.entries)
            else:
                self._apply(write)
        return AppendResult(frozenset(conflicts), len(self._log))

    async def entries(self, stream_key: bytes, after_version: int, limit: int) -> list[StoredEntry]:
        self._check_open()
        check_limit(limit)
        start = max(after_version, 0)
        return self._streams.get(stream_key, [])[start : start + limit]

    async def log(self, after_position: int, limit: int) -> list[StoredEntry]:
        self._check_open()
        check_limit(limit)
        start = max(after_position, 0)
        return self._log[start : start + limit]

    async def listing(
        self, space: str, key: bytes, after_position: int, limit: int, newest_first: bool = False
    ) -> list[ListingRow]:
        self._check_open()
        check_limit(limit)
        rows = self._listings.get((space, key), [])
        if not newest_first:
            start = bisect_left(rows, _place(after_position + 1))
            return [self._row(row) for row in rows[start : start + limit]]
        end = bisect_left(rows, _place(after_position)) if after_position else len(rows)
        return [self._row(row) for row in reversed(rows[max(end - limit, 0) : end])]

    async def names(self, after: tuple[str, bytes] | None, limit: int) -> list[NameRow]:
        self._check_open()
        check_limit(limit)
        names = ((space, key) for space, streams in self._names.items() for key in streams)
        later = sorted(name for name in names if after is None or name > after)
        rows = [(space, key, self._names[space][key]) for space, key in later[:limit]]
        return [NameRow(space, key, self._streams[stream][0].stream_kind, stream) for space, key, stream in rows]

    async def listings(self, after_position: int, until_position: int) -> list[PlacedRow]:
        self._check_open()
        found = [
            PlacedRow(_position(row), space, key, row[_PLACE_BYTES:])
            for (space, key), rows in self._listings.items()
            for row in rows[
                bisect_left(rows, _place(after_position + 1)) : bisect_left(rows, _place(until_position + 1))
            ]
        ]
        return sorted(found, key=_in_order)

    async def blob(self, stream_key: bytes, digest: bytes) -> bytes | None:
        self._check_open()
        return self._blobs.get((stream_key, digest))

    async def catalog_page(self, dataset: str, edition: str, after_code: str, limit: int) -> list[tuple[str, bytes]]:
        self._check_open()
        check_limit(limit)
        rows = self._catalog.get((dataset, edition), {})
        return [(code, rows[code]) for code in sorted(code for code in rows if code > after_code)[:limit]]

    async def due(self, now_ms: int, limit: int) -> list[bytes]:
        self._check_open()
        check_limit(limit)
        waiting = [
            (state.due_at_ms, key)
            for key in self._streams  # the order of creation decides between equal deadlines, as sort() is stable
            if (state := self._states.get(key)) and state.due_at_ms is not None and state.due_at_ms <= now_ms
        ]
        waiting.sort(key=lambda deadline_and_key: deadline_and_key[0])
        return [key for _, key in waiting[:limit]]

    async def last_position(self) -> int:
        self._check_open()
        return len(self._log)

    @property
    def integrates(self) -> bool:
        return True

    async def integrate(self, now_ms: int, leaves_max: int) -> Checkpoint | None:
        self._check_open()
        return self._tree.integrate(now_ms, leaves_max)

    async def checkpoint(self, no: int | None = None, size: int | None = None) -> Checkpoint | None:
        self._check_open()
        return self._tree.checkpoint(no, size)

    async def checkpoints(self, after_no: int, limit: int) -> list[Checkpoint]:
        self._check_open()
        check_limit(limit)
        return self._tree.checkpoints(after_no, limit)

    async def sign(self, no: int, note: str) -> None:
        self._check_open()
        self._tree.sign(no, note)

    async def cosign(self, no: int, lines: Sequence[Cosignature]) -> None:
        self._check_open()
        self._tree.cosign(no, lines)

    async def witness_sizes(self) -> dict[str, int]:
        self._check_open()
        return self._tree.witness_sizes()

    async def prove(self, wanted: ProofsWanted) -> Proofs:
        self._check_open()
        return self._tree.prove(wanted)

    async def inclusion(self, index: int, size: int) -> list[bytes]:
        self._check_open()
        return self._tree.inclusion(index, size)

    async def consistency(self, size1: int, size2: int) -> list[bytes]:
        self._check_open()
        return self._tree.consistency(size1, size2)

    async def tiles(self, places: Collection[TilePlace]) -> dict[TilePlace, bytes]:
        self._check_open()
        return self._tree.tiles(places)

    async def pages(self, paths: Collection[bytes]) -> dict[bytes, bytes]:
        self._check_open()
        return self._tree.pages(paths)

    async def close(self) -> None:
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")

    def _named(self, space: str, key: bytes) -> bytes | None:
        streams = self._names.get(space)
        return None if streams is None else streams.get(key)

    def _replied(self, caller: str, request_id: str) -> Reply | None:
        replies = self._replies.get(caller)
        return None if replies is None else replies.get(request_id)

    def _head(self, newest: StoredEntry) -> Head:
        state = self._states.get(newest.stream_key)
        if state is None:
            return Head(newest.stream_kind, newest.stream_key, newest.version, newest.leaf_hash, b"", None)
        return Head(newest.stream_kind, *state)

    def _row(self, row: bytes) -> ListingRow:
        entry = self._log[_position(row) - 1]
        return ListingRow(entry.position, entry.stream_key, entry.version, row[_PLACE_BYTES:])

    def _conflicts(self, write: Write, dropped: set[bytes]) -> bool:
        heads: dict[bytes, tuple[int, bytes]] = {}  # streams as this write leaves them
        for entry in write.entries:
            header = entry.header
            key = header.stream_key
            version, leaf_hash = heads.get(key) or self._newest(key)
            if header.version != version + 1 or entry.prev_leaf_hash != leaf_hash:
                return True
            if dropped and not dropped.isdisjoint(header.causes):
                return True
            heads[key] = (header.version, entry.leaf_hash)

        def entry_exists(key: bytes, version: int) -> bool:
            return 1 <= version <= (heads[key][0] if key in heads else len(self._streams.get(key, ())))

        new_names: set[tuple[str, bytes]] = set()
        for space, key, stream_key in write.names:
            if self._named(space, key) is not None or (space, key) in new_names:
                return True
            if not entry_exists(stream_key, 1):
                return True
            new_names.add((space, key))
        for listing in write.listings:
            if not entry_exists(listing.stream_key, listing.version):
                return True
            stream = self._streams.get(listing.stream_key, ())
            if listing.version <= len(stream):  # an older entry, so perhaps listed before
                row = _place(stream[listing.version - 1].position)
                rows = self._listings.get((listing.space, listing.key), [])
                at = bisect_left(rows, row)
                if at < len(rows) and rows[at].startswith(row):
                    return True
        for blob in write.blobs:
            if not entry_exists(blob.stream_key, 1):
                return True
        new_rows: dict[tuple[str, str, str], bytes] = {}
        for dataset, edition, code, body in write.catalog_rows:
            known = self._catalog.get((dataset, edition), {}).get(code)
            first = new_rows.setdefault((dataset, edition, code), body)
            if body != (first if known is None else known):
                return True
        taken: set[tuple[str, str]] = set()
        for reply in write.replies:
            request = (reply.caller, reply.request_id)
            if self._replied(*request) is not None or request in taken:
                return True
            of, place = reply.stream_key, reply.version
            if of is not None and place is not None and not entry_exists(of, place):
                return True
            taken.add(request)
        return False

    def _newest(self, key: bytes) -> tuple[int, bytes]:
        stream = self._streams.get(key)
        if not stream:
            return 0, FIRST_PREV_LEAF_HASH
        newest = stream[-1]
        return newest.version, newest.leaf_hash

    def _apply(self, write: Write) -> None:
        for entry in write.entries:
            header, header_bytes, salt, payload, commitment, _, leaf_hash = entry
            kind, key, position = header.stream_kind, header.stream_key, len(self._log) + 1
            stored = StoredEntry(
                position, kind, key, header_bytes, commitment, leaf_hash, salt, payload, header.version
            )
            self._log.append(stored)
            if header.version == 1:
                self._streams[key] = [stored]
            else:
                self._streams[key].append(stored)
        for state in write.states:
            self._states[state.stream_key] = state
        for name in write.names:
            self._names.setdefault(name.space, {})[name.key] = name.stream_key
        for listing in write.listings:
            row = _place(self._streams[listing.stream_key][listing.version - 1].position) + listing.value
            rows = self._listings.setdefault((listing.space, listing.key), [])
            if rows and row < rows[-1]:
                insort(rows, row)
            else:
                rows.append(row)
        for blob in write.blobs:
            self._blobs.setdefault((blob.stream_key, blob.digest), blob.data)
        for dataset, edition, code, body in write.catalog_rows:
            self._catalog.setdefault((dataset, edition), {})[code] = body
        for erasure in write.erasures:
            self._erase(erasure)
        for reply in write.replies:
            self._replies.setdefault(reply.caller, {})[reply.request_id] = reply

    def _erase(self, erasure: Erasure) -> None:
        key = erasure.stream_key
        gone = self._streams[key][: erasure.version - 1]
        for entry in gone:
            bare = replace(entry, salt=None, payload=None)
            self._log[entry.position - 1] = self._streams[key][entry.version - 1] = bare
        for digest in [digest for stream, digest in self._blobs if stream == key]:
            del self._blobs[key, digest]
        for place, rows in self._listings.items():
            listed = ((row, self._log[_position(row) - 1]) for row in rows)
            self._listings[place] = [
                row for row, entry in listed if entry.stream_key != key or entry.version >= erasure.version
            ]
        for space, name in erasure.names:
            if self._named(space, name) == key:
                del self._names[space][name]
        for request in requests_of(entry.header for entry in gone):
            reply = self._replied(*request)
            if reply is not None and reply.stream_key == key:
                self._replies[reply.caller][reply.request_id] = reply._replace(content_mac=b"", body=b"")


def _place(position: int) -> bytes:
    """How the rows of a list begin, so that they sort by position."""
    return min(max(position, 0), _POSITION_MAX).to_bytes(_PLACE_BYTES, "big")


def _position(row: bytes) -> int:
    return int.from_bytes(row[:_PLACE_BYTES], "big")


def _in_order(row: PlacedRow) -> tuple[int, str, bytes]:
    return row.position, row.space, row.key
