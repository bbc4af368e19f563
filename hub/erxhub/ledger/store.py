"""What a store must do, and the records that go in and out. One contract suite runs against every store.

No record is changed once it is made. (Those that are made for every entry are not `frozen`: that would cost three times
as much.)

Owns the protocol only. It must never name an engine: each store is native to its own, and `append` is the
only way to write domain state in all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from erxhub.ledger.entry import Entry, Header
from erxhub.ledger.log import Checkpoint, Cosignature, Proofs, ProofsWanted
from erxhub.proof.tiles import TilePlace


class StoreUnavailable(Exception):
    """The store cannot read or write now (disk full, I/O error, closed). Nothing of the call was written."""


class OutcomeUnknown(StoreUnavailable):
    """The connection was lost while a batch was committed, and the store cannot be asked: all of it was written, or
    nothing. Sending the same requests again finds out.
    """


class StoreInUse(StoreUnavailable):
    """Another process, or another store of this one, has the ledger open for writing."""


class StoreFormatError(Exception):
    """The file is no ledger, or one that a newer release wrote."""


@dataclass(slots=True, init=False)
class Head:
    """Where a stream stands: its folded state, or b"" and no deadline for a stream that keeps none."""

    stream_kind: str
    stream_key: bytes
    version: int
    leaf_hash: bytes
    body: bytes
    due_at_ms: int | None
    recorded_at_ms: int = field(compare=False)
    """Of the newest entry, where several hubs write and their clocks may differ; 0 where the store does not tell."""

    def __init__(
        self,
        stream_kind: str,
        stream_key: bytes,
        version: int,
        leaf_hash: bytes,
        body: bytes,
        due_at_ms: int | None,
        recorded_at_ms: int = 0,
    ) -> None:
        self.stream_kind = stream_kind
        self.stream_key = stream_key
        self.version = version
        self.leaf_hash = leaf_hash
        self.body = body
        self.due_at_ms = due_at_ms
        self.recorded_at_ms = recorded_at_ms


class Reply(NamedTuple):
    """The stored answer to one accepted request, unique by (caller, request_id).

    `stream_key` and `version` name the command's first entry of the thing that it was about, with whose content the
    reply is erased; both or none.
    """

    caller: str
    request_id: str
    method: str
    content_mac: bytes
    body: bytes
    stream_key: bytes | None
    version: int | None


class NewState(NamedTuple):
    """The state that a stream is in after the last entry this Write gives it."""

    stream_key: bytes
    version: int
    leaf_hash: bytes
    body: bytes
    due_at_ms: int | None


class NewName(NamedTuple):
    """A unique (space, key) that leads to a stream."""

    space: str
    key: bytes
    stream_key: bytes


class Listing(NamedTuple):
    """Puts an entry under (space, key), ordered by log position; an entry is at most once under one (space,
    key).
    """

    space: str
    key: bytes
    stream_key: bytes
    version: int
    value: bytes = b""


class Blob(NamedTuple):
    """A large byte field, kept once per (stream, SHA-256). Giving it again is no conflict."""

    stream_key: bytes
    digest: bytes
    data: bytes


class CatalogRow(NamedTuple):
    """One row of a catalogue edition. Giving it again is no conflict; giving another body for it is one.

    A tuple, because an import brings its rows as tuples and the lane must not touch each of 200,000.
    """

    dataset: str
    edition: str
    code: str
    body: bytes


class Reads(NamedTuple):
    """What a decision rests on beside the streams that it extends. Only a store that several hubs write looks at it."""

    streams: tuple[tuple[bytes, int], ...] = ()
    """(stream key, version) of streams that were read and do not grow."""
    absent: tuple[tuple[str, bytes], ...] = ()
    """Names that lead nowhere, where that matters though the decision does not give them itself."""
    lists: tuple[tuple[str, bytes, int], ...] = ()
    """(space, key, position of the newest row or 0) of lists that were read to their end."""


class Erasure(NamedTuple):
    """Takes away what a stream says, and leaves that it is there.

    Gone are salt and payload of every entry before `version`, which is the entry of this Write that says so, the
    stream's blobs, the rows of lists that name those entries, the given names, and what the replies to their requests
    said. Of a reply remains that there was one: its method, an empty body and an empty `content_mac`.
    """

    stream_key: bytes
    version: int
    names: tuple[tuple[str, bytes], ...] = ()
    """(space, key) of names of the stream that lead nowhere from now on."""


class Write(NamedTuple):
    """All that one command leaves; it is written as a whole or not at all."""

    entries: tuple[Entry, ...] = ()
    states: tuple[NewState, ...] = ()
    names: tuple[NewName, ...] = ()
    listings: tuple[Listing, ...] = ()
    blobs: tuple[Blob, ...] = ()
    catalog_rows: tuple[CatalogRow | tuple[str, str, str, bytes], ...] = ()
    replies: tuple[Reply, ...] = ()
    erasures: tuple[Erasure, ...] = ()
    reads: Reads | None = None
    denies: bool = False
    """Whether it gives a name that other decisions know to be absent (`Reads.absent`): it waits for those on their way,
    so that none of them commits after it."""
    waits: bool = False
    """Whether it waits, for a bounded time, for streams that others are extending, rather than being busy at once."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Look-ups of one round trip."""

    names: frozenset[tuple[str, bytes]] = frozenset()
    streams: frozenset[bytes] = frozenset()
    replies: frozenset[tuple[str, str]] = frozenset()
    catalog: frozenset[tuple[str, str, str]] = frozenset()


@dataclass(slots=True)
class Loaded:
    """What was found; what does not exist is absent. `heads` covers the wanted streams and every resolved
    name.
    """

    names: Mapping[tuple[str, bytes], bytes] = field(default_factory=dict)
    heads: Mapping[bytes, Head] = field(default_factory=dict)
    replies: Mapping[tuple[str, str], Reply] = field(default_factory=dict)
    catalog: Mapping[tuple[str, str, str], bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AppendResult:
    """`conflicts` and `busy`: indexes into the batch of the Writes that were not written; no index is in both.
    `last_position`: after the commit.

    A Write is busy when somebody else is extending a stream of it at this moment, or when it builds on a busy one:
    nothing is known against it yet. Stores with one writer have none.
    """

    conflicts: frozenset[int]
    last_position: int
    busy: frozenset[int] = frozenset()


@dataclass(slots=True)
class StoredEntry:
    """An entry as the store holds it. No salt and no payload: its content was erased.

    `position` is 2^63-1 for an entry that is committed and has none yet, as only one of several hubs can see it.
    `version` is the store's own column, told so that verification can hold it against the header.
    """

    position: int
    stream_kind: str
    stream_key: bytes
    header: bytes
    commitment: bytes
    leaf_hash: bytes
    salt: bytes | None
    payload: bytes | None
    version: int


@dataclass(slots=True)
class ListingRow:
    position: int
    stream_key: bytes
    version: int
    value: bytes


@dataclass(frozen=True, slots=True)
class NameRow:
    """A name as stored, with the stream that it leads to: "" and b"" when there is no such stream."""

    space: str
    key: bytes
    stream_kind: str
    stream_key: bytes


@dataclass(frozen=True, slots=True)
class PlacedRow:
    """A row of a list as stored, with the position that it stands at."""

    position: int
    space: str
    key: bytes
    value: bytes


class Others(Protocol):
    """What other hubs do to a ledger while this one looks on."""

    async def changed(self, after_position: int) -> int:
        """Waits until the log may have grown beyond a position; the last position then. Raises StoreUnavailable.

        Nobody is forgotten while the database is away: once it is back, what came in between counts.
        """

    async def grown(self, space: str, keys: Collection[bytes], after_position: int) -> frozenset[bytes]:
        """Those of the lists of a space that have rows after a position. Raises StoreUnavailable."""


class Store(Protocol):
    """A ledger. Every method raises StoreUnavailable; a `limit` below 1 raises ValueError."""

    @property
    def others(self) -> Others | None:
        """The other hubs' side; None where this is the only one that writes."""

    async def load(self, wanted: Wanted) -> Loaded:
        """One round trip on the writing side. Sees every append that was submitted before it."""

    async def read(self, wanted: Wanted) -> Loaded:
        """The same on the reading side, from one snapshot. Sees every append that returned before it."""

    async def append(self, batch: Sequence[Write]) -> AppendResult:
        """The only write verb: one commit, durable on return.

        A Write conflicts, and is left out whole while the others commit, when
        - an entry does not extend its stream's newest entry (version and previous leaf hash), or
        - a name, a reply or a listed entry exists already, or a catalogue row with another body, or
        - it refers to a stream or an entry that does not exist, or
        - it names in `causes` an entry of a Write that was dropped from this batch.

        Where several hubs write, it also conflicts when something of its `reads` has changed, and one whose stream
        another hub is extending (or, for one that it only read, is about to) is left out too, as busy. Of two Writes of
        one batch that exclude each other the first is written. A Write that extends a stream with state MUST bring its
        new state; the store does not look. Cancelling the caller MUST NOT cut a batch in two: it is written as a whole
        or not at all.

        Raises ValueError for a Write that contradicts itself (see `check_write`), StoreUnavailable on an I/O
        error or a full disk: in both cases nothing of the batch is written. OutcomeUnknown is the exception to that.
        """

    async def entries(self, stream_key: bytes, after_version: int, limit: int) -> list[StoredEntry]:
        """A stream in order of version."""

    async def log(self, after_position: int, limit: int) -> list[StoredEntry]:
        """All streams in the order of commit; positions start at 1 and leave no gap."""

    async def listing(
        self, space: str, key: bytes, after_position: int, limit: int, newest_first: bool = False
    ) -> list[ListingRow]:
        """Rows after `after_position`; with `newest_first` those before it, downwards, 0 being the end."""

    async def names(self, after: tuple[str, bytes] | None, limit: int) -> list[NameRow]:
        """All names, each once, in one order of (space, key); `after` is the last one seen, None to begin."""

    async def listings(self, after_position: int, until_position: int) -> list[PlacedRow]:
        """The rows of all lists that stand after `after_position` and not after `until_position`, by position."""

    async def blob(self, stream_key: bytes, digest: bytes) -> bytes | None: ...

    async def catalog_page(self, dataset: str, edition: str, after_code: str, limit: int) -> list[tuple[str, bytes]]:
        """Rows with a code greater than `after_code`, by code point."""

    async def due(self, now_ms: int, limit: int) -> list[bytes]:
        """Keys of the streams whose deadline is at or before `now_ms`, earliest first."""

    async def last_position(self) -> int:
        """0 for an empty ledger."""

    # ---- the log over the entries (see ledger.log) ----

    @property
    def integrates(self) -> bool:
        """Whether the steps of the log are this store's to take when nobody asks: of several hubs, one hub's."""

    async def integrate(self, now_ms: int, leaves_max: int) -> Checkpoint | None:
        """One step, in one transaction: the next entries, `leaves_max` at most, into tree and map, and a checkpoint.

        None when every entry that has a position is in the log. Two at once, also of several hubs, wait for one
        another or come to None; they never fork. Never holds up an `append` for as long as it computes.
        Raises TileDamaged or PageDamaged when what is stored of the log contradicts itself.
        """

    async def checkpoint(self, no: int | None = None, size: int | None = None) -> Checkpoint | None:
        """One checkpoint, the newest where none is named; with its note and cosignatures."""

    async def checkpoints(self, after_no: int, limit: int) -> list[Checkpoint]:
        """Checkpoints in order, without their cosignatures."""

    async def sign(self, no: int, note: str) -> None:
        """Keep the signed note of a checkpoint. The same again is fine; another one raises AnotherNote."""

    async def cosign(self, no: int, lines: Sequence[Cosignature]) -> None:
        """Keep lines of witnesses; the first of each witness stays. Raises LogEmpty for an unknown checkpoint."""

    async def witness_sizes(self) -> dict[str, int]:
        """The largest size that each witness has cosigned."""

    async def prove(self, wanted: ProofsWanted) -> Proofs:
        """Proofs from one snapshot, against the newest checkpoint. Raises LogEmpty, TileDamaged, PageDamaged."""

    async def inclusion(self, index: int, size: int) -> list[bytes]:
        """The path of a leaf in the tree of `size` leaves. Raises ValueError, LogEmpty (not so many), TileDamaged."""

    async def consistency(self, size1: int, size2: int) -> list[bytes]:
        """The proof that `size1` leaves begin `size2`. Raises ValueError, LogEmpty (not so many), TileDamaged."""

    async def tiles(self, places: Collection[TilePlace]) -> dict[TilePlace, bytes]:
        """Those of the tiles that exist; the one at the edge grows and has up to 256 hashes."""

    async def pages(self, paths: Collection[bytes]) -> dict[bytes, bytes]:
        """Those of the map's pages that exist."""

    async def close(self) -> None:
        """Waits for what was submitted. Closing again does nothing."""


def check_write(write: Write) -> None:
    """Raises ValueError for a Write that contradicts itself, which is a bug of its maker and never a conflict.

    That is: entries of one stream that do not follow one another, a state that is not that of its stream's last
    entry here, two states of one stream, one entry listed twice under one (space, key), half a reference in the
    reply, an erasure whose own entry is not the stream's last one here and the only one.
    """
    last: dict[bytes, tuple[int, bytes]] = {}
    if write.erasures:
        _check_erasures(write)
    for header, _, _, _, _, prev_leaf_hash, leaf_hash in write.entries:
        key, version = header.stream_key, header.version
        follows = (version - 1, prev_leaf_hash)
        if last.get(key, follows) != follows:
            raise ValueError("entries of one stream do not follow one another")
        last[key] = (version, leaf_hash)
    for key, version, leaf_hash, _, _ in write.states:
        if last.pop(key, None) != (version, leaf_hash):
            raise ValueError("a state is not that of the last entry which this write gives its stream")
    listings = write.listings
    if len(listings) > 1:
        listed = {(listing.space, listing.key, listing.stream_key, listing.version) for listing in listings}
        if len(listed) != len(listings):
            raise ValueError("an entry is listed twice under one space and key")
    for reply in write.replies:
        if (reply.stream_key is None) != (reply.version is None):
            raise ValueError("a reply names a stream and a version, or neither")


def _check_erasures(write: Write) -> None:
    own: dict[bytes, list[int]] = {}
    for entry in write.entries:
        own.setdefault(entry.header.stream_key, []).append(entry.header.version)
    for erasure in write.erasures:
        if own.pop(erasure.stream_key, []) != [erasure.version] or erasure.version < 2:
            raise ValueError("an erasure has one entry of its own, which follows what is erased")


def requests_of(headers: Iterable[bytes]) -> set[tuple[str, str]]:
    """(caller, request id) under which replies to the commands of these entries can be kept. Raises HeaderMalformed."""
    found = set()
    for data in headers:
        header = Header.decode(data)
        if header.request_id:
            # An actor is the caller's kind and id, and behind them whoever acted for him.
            found.add(("/".join(header.actor.split("/")[:2]), header.request_id))
    return found


def check_limit(limit: int) -> None:
    if limit < 1:
        raise ValueError("limit is below 1")
