"""Which Writes of a batch fit what is in the ledger: decided in memory, from what one locking look-up told.

Owns the rules of a conflict for the PostgreSQL store. It does no I/O: a plan that misses a fact says which one, and is
made again once it is known. It must never let a Write through that the memory store would refuse.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from erxhub.ledger.entry import FIRST_PREV_LEAF_HASH
from erxhub.ledger.placement import stream_shard
from erxhub.ledger.store import NewState, Write


class Home(NamedTuple):
    """Where a stream is: its shard, and its number there. It never changes."""

    shard: int
    no: int


class Standing(NamedTuple):
    """Where an existing stream stands. `taken`: another transaction is extending it."""

    home: Home
    version: int
    leaf_hash: bytes
    taken: bool


@dataclass(slots=True)
class Facts:
    """What is known of the ledger beyond what the Writes say. Grows from attempt to attempt of one append."""

    exists: set[bytes] = field(default_factory=set)
    """Streams that begin in the batch and were found to be there already, or must be looked for."""
    names: set[tuple[str, bytes]] = field(default_factory=set)
    """Names that are taken."""
    replies: set[tuple[str, str]] = field(default_factory=set)
    """Requests that have their reply."""
    catalog: set[tuple[str, str, str, bytes]] = field(default_factory=set)
    """Catalogue rows as the batch gives them that are there with another body."""
    grown: set[tuple[str, bytes, int]] = field(default_factory=set)
    """Lists (space, key, position) that have rows after a position."""


class StreamMissing(Exception):
    """A stream that the batch was taken to begin has to be looked up after all."""

    def __init__(self, stream_key: bytes) -> None:
        super().__init__(stream_key.hex())
        self.stream_key = stream_key


class Verdict(Enum):
    FITS = auto()
    CONFLICT = auto()
    BUSY = auto()


@dataclass(frozen=True, slots=True)
class Asked:
    """The streams that a batch needs to know, beside those that it begins itself."""

    begun: frozenset[bytes]
    lock: frozenset[bytes]
    share: frozenset[bytes]
    look_up: frozenset[bytes]


def asked(batch: Sequence[Write], areas: Iterable[Mapping[bytes, str | bytes]], facts: Facts) -> Asked:
    """What to look up. Streams that grow are locked, and so are those whose older entries are put into lists; those by
    which something was decided are shared, so that they do not grow before the commit.
    """
    begun: set[bytes] = set()
    lock: set[bytes] = set()
    share: set[bytes] = set()
    look_up: set[bytes] = set()
    for write in batch:
        for entry in write.entries:
            key = entry.header.stream_key
            if key in begun or key in lock:
                continue
            if entry.header.version == 1 and key not in facts.exists:
                begun.add(key)
            else:
                lock.add(key)
        lock.update(listing.stream_key for listing in write.listings if listing.stream_key not in begun)
        look_up.update(name.stream_key for name in write.names)
        look_up.update(blob.stream_key for blob in write.blobs)
        look_up.update(reply.stream_key for reply in write.replies if reply.stream_key is not None)
        if write.reads is not None:
            share.update(key for key, _ in write.reads.streams)
    for begins in areas:
        look_up.update(area for area in begins.values() if isinstance(area, bytes))
    share -= lock | begun
    return Asked(frozenset(begun), frozenset(lock), frozenset(share), frozenset(look_up - lock - share - begun))


@dataclass(slots=True)
class Plan:
    """The Writes that fit, with what they leave streams and new streams at."""

    batch: Sequence[Write]
    areas: Sequence[Mapping[bytes, str | bytes]]
    standing: Mapping[bytes, Standing]
    listed: frozenset[tuple[str, bytes, bytes, int]]
    """(space, key, stream key, version) of those older entries that are in their list already."""
    begun_in_batch: frozenset[bytes]
    facts: Facts
    fitting: list[Write] = field(default_factory=list)
    conflicts: set[int] = field(default_factory=set)
    busy: set[int] = field(default_factory=set)
    begun: dict[bytes, tuple[int, str]] = field(default_factory=dict)
    """New streams: shard and kind."""
    states: dict[bytes, tuple[int, bytes, NewState | None, int]] = field(default_factory=dict)
    """Streams that grow: version, leaf hash, the newest state that a Write brings, and when it was recorded (ms)."""
    catalog: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    _names: set[tuple[str, bytes]] = field(default_factory=set)
    _replies: set[tuple[str, str]] = field(default_factory=set)
    _late: set[tuple[str, bytes, bytes, int]] = field(default_factory=set)
    _dropped: set[bytes] = field(default_factory=set)
    _waiting: set[bytes] = field(default_factory=set)
    _busy_streams: set[bytes] = field(default_factory=set)

    def make(self) -> Plan:
        """Judge each Write in turn. Raises StreamMissing."""
        for number, write in enumerate(self.batch):
            verdict = self._judge(write)
            if verdict is Verdict.FITS:
                self._take(write, self.areas[number])
                continue
            leaves = [entry.leaf_hash for entry in write.entries]
            if verdict is Verdict.BUSY:
                self.busy.add(number)
                self._waiting.update(leaves)
                self._busy_streams.update(entry.header.stream_key for entry in write.entries)
            else:
                self.conflicts.add(number)
                self._dropped.update(leaves)
        return self

    def shard_of(self, key: bytes) -> int:
        """The shard of a stream that exists or begins here."""
        begun = self.begun.get(key)
        return begun[0] if begun is not None else self.standing[key].home.shard

    def _judge(self, write: Write) -> Verdict:
        causes = {cause for entry in write.entries for cause in entry.header.causes}
        if not causes.isdisjoint(self._dropped):
            return Verdict.CONFLICT
        if self._is_busy(write, causes):
            return Verdict.BUSY
        if not self._still_so(write):
            return Verdict.CONFLICT
        heads: dict[bytes, tuple[int, bytes]] = {}
        for entry in write.entries:
            key = entry.header.stream_key
            version, leaf_hash = heads.get(key) or self._head(key)
            if entry.header.version != version + 1 or entry.prev_leaf_hash != leaf_hash:
                return Verdict.CONFLICT
            heads[key] = (entry.header.version, entry.leaf_hash)
        fits = self._names_fit(write, heads) and self._listings_fit(write, heads) and self._rest_fits(write, heads)
        return Verdict.FITS if fits else Verdict.CONFLICT

    def _is_busy(self, write: Write, causes: set[bytes]) -> bool:
        if not causes.isdisjoint(self._waiting):
            return True
        keys = {entry.header.stream_key for entry in write.entries}
        keys.update(listing.stream_key for listing in write.listings)
        if write.reads is not None:
            keys.update(key for key, _ in write.reads.streams)
        return any(key in self._busy_streams or self._is_taken(key) for key in keys)

    def _still_so(self, write: Write) -> bool:
        """Whether all that was read is as it was; nobody can change it before the commit."""
        reads = write.reads
        return reads is None or (
            all(self._head(key)[0] == version for key, version in reads.streams)
            and self._names.isdisjoint(reads.absent)
            and self.facts.names.isdisjoint(reads.absent)
            and self.facts.grown.isdisjoint(reads.lists)
        )

    def _is_taken(self, key: bytes) -> bool:
        standing = self.standing.get(key)
        return standing is not None and standing.taken

    def _head(self, key: bytes) -> tuple[int, bytes]:
        """Where a stream stands after the Writes so far."""
        state = self.states.get(key)
        if state is not None:
            return state[0], state[1]
        standing = self.standing.get(key)
        return (standing.version, standing.leaf_hash) if standing is not None else (0, FIRST_PREV_LEAF_HASH)

    def _entry_exists(self, key: bytes, version: int, heads: Mapping[bytes, tuple[int, bytes]]) -> bool:
        newest = (heads.get(key) or self._head(key))[0]
        if not newest and key in self.begun_in_batch:
            raise StreamMissing(key)  # the Write that was to begin it was dropped, so it may be there already
        return 1 <= version <= newest

    def _names_fit(self, write: Write, heads: Mapping[bytes, tuple[int, bytes]]) -> bool:
        names = [(name.space, name.key) for name in write.names]
        taken = self.facts.names | self._names
        if len(set(names)) < len(names) or not taken.isdisjoint(names):
            return False
        return all(self._entry_exists(name.stream_key, 1, heads) for name in write.names)

    def _listings_fit(self, write: Write, heads: Mapping[bytes, tuple[int, bytes]]) -> bool:
        for listing in write.listings:
            if not self._entry_exists(listing.stream_key, listing.version, heads):
                return False
            place = (listing.space, listing.key, listing.stream_key, listing.version)
            if place in self.listed or place in self._late:
                return False
        return True

    def _rest_fits(self, write: Write, heads: Mapping[bytes, tuple[int, bytes]]) -> bool:
        if not all(self._entry_exists(blob.stream_key, 1, heads) for blob in write.blobs):
            return False
        rows: dict[tuple[str, str, str], bytes] = {}
        for dataset, edition, code, body in write.catalog_rows:
            row = (dataset, edition, code)
            if (*row, body) in self.facts.catalog:
                return False
            if self.catalog.get(row, rows.setdefault(row, body)) != body:
                return False
        requests = [(reply.caller, reply.request_id) for reply in write.replies]
        taken = self.facts.replies | self._replies
        if len(set(requests)) < len(requests) or not taken.isdisjoint(requests):
            return False
        return all(
            reply.stream_key is None
            or reply.version is None
            or self._entry_exists(reply.stream_key, reply.version, heads)
            for reply in write.replies
        )

    def _take(self, write: Write, areas: Mapping[bytes, str | bytes]) -> None:
        self.fitting.append(write)
        brought = {state.stream_key: state for state in write.states}
        for entry in write.entries:
            key, version = entry.header.stream_key, entry.header.version
            if version == 1:
                self.begun[key] = (self._new_shard(key, areas.get(key, "")), entry.header.stream_kind)
            before = self.states.get(key)
            state = brought.get(key) or (before[2] if before else None)
            self.states[key] = (version, entry.leaf_hash, state, entry.header.recorded_at_ms)
        self._names.update((name.space, name.key) for name in write.names)
        self._replies.update((reply.caller, reply.request_id) for reply in write.replies)
        self._late.update((row.space, row.key, row.stream_key, row.version) for row in write.listings)
        for dataset, edition, code, body in write.catalog_rows:
            self.catalog[dataset, edition, code] = body

    def _new_shard(self, key: bytes, area: str | bytes) -> int:
        if isinstance(area, str):
            return stream_shard(area, key)
        known = area in self.begun or area in self.standing
        return self.shard_of(area) if known else stream_shard("", key)
