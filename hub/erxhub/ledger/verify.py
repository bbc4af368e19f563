"""Verification of a ledger against itself: every hash, every chain, every head.

Owns the findings that say which entry broke and how. It must never write, and never trust a column that it
can work out. What it cannot see: a whole stream taken out with all its rows, or a stream without state cut
off at its end; that takes the tree over all entries.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from erxhub.ledger.entry import (
    CONTENT_ERASED_TYPE,
    FIRST_PREV_LEAF_HASH,
    HASH_BYTES,
    SALT_BYTES,
    EntryKind,
    Header,
    HeaderMalformed,
    commitment,
    leaf_bytes,
    leaf_hash,
)
from erxhub.ledger.store import Head, Store, StoredEntry, Wanted

_PAGE_ENTRIES = 256  # a few milliseconds of hashing, then the event loop has its turn
_PAGE_HEADS = 256
FINDINGS_MAX = 1000  # by then nobody reads on; a ledger replaced as a whole must not fill the memory
_GONE_MAX = 100  # entries of one stream that are named as without content; no prescription has as many


class Reason(StrEnum):
    HEADER_MALFORMED = "HEADER_MALFORMED"
    """The header is not in the format."""
    HEADER_MISMATCH = "HEADER_MISMATCH"
    """The header names another stream, stream kind or version than the row it lies in."""
    COMMITMENT = "COMMITMENT"
    """The commitment does not follow from salt, header and payload."""
    LEAF_HASH = "LEAF_HASH"
    """The leaf hash does not follow from the entry."""
    PREV_LEAF = "PREV_LEAF"
    """The leaf hash is the one that later records rest on, but does not follow from this entry and the stored
    leaf hash of the one before: that one, or this one's commitment, was rewritten.
    """
    VERSION_GAP = "VERSION_GAP"
    """An entry before this one is missing, or this one is out of order."""
    TIME_BACKWARDS = "TIME_BACKWARDS"
    """Recorded before its predecessor."""
    HEAD_MISMATCH = "HEAD_MISMATCH"
    """The stream's state does not stand on its last entry."""
    CONTENT_MISSING = "CONTENT_MISSING"
    """Salt and payload are gone, and no later entry of the stream says that they were erased."""


@dataclass(frozen=True, slots=True)
class Finding:
    stream_kind: str
    stream_key: bytes
    version: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class Verification:
    """How much was looked at, and what is wrong with it: nothing if `findings`, at most FINDINGS_MAX, is empty."""

    entries: int
    streams: int
    findings: list[Finding]


async def _at_once() -> None:
    """Goes on without a break."""


async def verify_ledger(
    store: Store, *, from_position: int = 0, between_pages: Callable[[], Awaitable[None]] = _at_once
) -> Verification:
    """Verifies every entry after `from_position`, its link to the one before, and the heads of the streams met.

    Content that is gone is no finding where a later entry says that it was erased. Works while the ledger is written
    to: entries that come in meanwhile are left to the next verification. `between_pages` lets other work have its turn.
    Raises StoreUnavailable.
    """
    chains: dict[bytes, _Chain] = {}
    findings: list[Finding] = []
    entries = 0
    last_position = await store.last_position()
    position = from_position
    while position < last_position:
        page = await store.log(position, min(_PAGE_ENTRIES, last_position - position))
        if not page:
            break
        for stored in page:
            chain = chains.get(stored.stream_key)
            if chain is None:
                chain = chains[stored.stream_key] = _Chain(findings)
                if from_position and stored.version > 1:
                    chain.start_after(await store.entries(stored.stream_key, stored.version - 2, 1))
            chain.take(stored)
        entries += len(page)
        position = page[-1].position
        await between_pages()
    keys = list(chains)
    for start in range(0, len(keys), _PAGE_HEADS):
        page_keys = keys[start : start + _PAGE_HEADS]
        heads = (await store.read(Wanted(streams=frozenset(page_keys)))).heads
        for key in page_keys:
            head = heads.get(key)
            later: list[StoredEntry] = []
            if head is not None and head.version > chains[key].version:
                later = await store.entries(key, head.version - 1, 1)
            chains[key].finish(head, later)
            if chains[key].lacks_content and not await _erased_meanwhile(store, key, chains[key].version):
                chains[key].blame_lack()
        await between_pages()
    return Verification(entries, len(chains), findings)


async def _erased_meanwhile(store: Store, stream_key: bytes, version: int) -> bool:
    """Whether an entry after this version says that what was before it was erased: while the log was walked."""
    while page := await store.entries(stream_key, version, _PAGE_ENTRIES):
        if any(_says_erased(_header(stored)) for stored in page):
            return True
        version = page[-1].version
    return False


def verify_entries(entries: Sequence[StoredEntry]) -> Verification:
    """Verifies streams given whole and in order, each from its first entry. Heads are not looked at."""
    chains: dict[bytes, _Chain] = {}
    findings: list[Finding] = []
    for stored in entries:
        chain = chains.get(stored.stream_key)
        if chain is None:
            chain = chains[stored.stream_key] = _Chain(findings)
        chain.take(stored)
    for chain in chains.values():
        chain.finish(None, [])
        chain.blame_lack()
    return Verification(len(entries), len(chains), findings)


class _Chain:
    """One stream, entry by entry.

    An entry does not carry its predecessor's leaf hash: its own is recomputed with the one stored there. When that
    fails although the entry's parts agree, either its leaf hash was altered or what it was chained to. The next
    record rests on the genuine one and tells which; until then the verdict is open.
    """

    def __init__(self, findings: list[Finding]) -> None:
        self.version = 0  # of the last entry taken
        self._findings = findings
        self._leaf_hash = FIRST_PREV_LEAF_HASH  # of the last entry, as stored
        self._computed: bytes | None = None  # of the last entry, where it differs from the stored one
        self._open: StoredEntry | None = None  # the last entry, while the verdict on it is open
        self._last: StoredEntry | None = None
        self._recorded_at_ms = 0
        self._gone: list[tuple[str, bytes, int]] = []  # entries without content since an entry said why, oldest first

    def start_after(self, before: Sequence[StoredEntry]) -> None:
        """Begins in the middle: `before` is the entry that comes before the first one to verify, or
        nothing.
        """
        for stored in before:
            self.version = stored.version
            self._leaf_hash = stored.leaf_hash
            header = _header(stored)
            self._recorded_at_ms = header.recorded_at_ms if header is not None else 0

    def take(self, stored: StoredEntry) -> None:
        header = _header(stored)
        reasons = list(_own_faults(stored, header))
        sound = not reasons
        # One of the two suffices, so that an altered number is one finding and not three.
        follows = self.version + 1 in (stored.version, header.version if header is not None else 0)
        computed = None
        if not follows:
            reasons.append(Reason.VERSION_GAP)
            self._settle(Reason.LEAF_HASH)
        elif header is None:
            self._settle(Reason.LEAF_HASH)
        else:
            computed = _leaf_hash(header, self._leaf_hash, stored.commitment)
            if computed == stored.leaf_hash:
                self._settle(Reason.PREV_LEAF)
                computed = None
            else:
                self._settle(Reason.LEAF_HASH)
                if self._computed and _leaf_hash(header, self._computed, stored.commitment) == stored.leaf_hash:
                    computed = None  # it rests on the genuine leaf of its predecessor, whose column was altered
                elif sound and self.version:
                    self._open = stored
                else:
                    reasons.append(Reason.LEAF_HASH)
        if header is not None and header.recorded_at_ms < self._recorded_at_ms:
            reasons.append(Reason.TIME_BACKWARDS)
        if header is not None and sound:  # an altered instant must not turn on the entries after it
            self._recorded_at_ms = header.recorded_at_ms
        for reason in reasons:
            self._find(stored, reason)
        if sound:
            self._note_content(stored, header)
        self._last = stored
        self._leaf_hash = stored.leaf_hash
        self._computed = computed
        self.version = self.version + 1 if follows else stored.version

    def finish(self, head: Head | None, later: Sequence[StoredEntry]) -> None:
        """`later`: the entry of the head's version, when the head is beyond the last entry taken."""
        last = self._last
        if last is None or head is None:
            self._settle(Reason.LEAF_HASH)
        elif head.version > self.version:
            self._settle(Reason.LEAF_HASH)
            if not later or (later[0].version, later[0].leaf_hash) != (head.version, head.leaf_hash):
                self._find(last, Reason.HEAD_MISMATCH)
        elif head.version < self.version or head.leaf_hash != last.leaf_hash:
            self._settle(Reason.LEAF_HASH)
            self._find(last, Reason.HEAD_MISMATCH)
        else:
            # Without a state the head is but the entry itself and can bear no witness.
            self._settle(Reason.PREV_LEAF if head.body else Reason.LEAF_HASH)

    @property
    def lacks_content(self) -> bool:
        """Whether content is gone, and no entry that was taken says why."""
        return bool(self._gone)

    def blame_lack(self) -> None:
        """Every entry without content is a finding, unless an entry after it says that it was erased."""
        for place in self._gone:
            self._add(Finding(*place, Reason.CONTENT_MISSING))
        self._gone = []

    def _note_content(self, stored: StoredEntry, header: Header | None) -> None:
        if self._gone and _says_erased(header):
            self._gone = []
        if stored.salt is None and stored.payload is None and len(self._gone) < _GONE_MAX:
            self._gone.append((stored.stream_kind, stored.stream_key, stored.version))

    def _settle(self, reason: Reason) -> None:
        if self._open is not None:
            self._find(self._open, reason)
            self._open = None

    def _find(self, stored: StoredEntry, reason: Reason) -> None:
        self._add(Finding(stored.stream_kind, stored.stream_key, stored.version, reason))

    def _add(self, finding: Finding) -> None:
        if len(self._findings) < FINDINGS_MAX:
            self._findings.append(finding)


def _header(stored: StoredEntry) -> Header | None:
    try:
        return Header.decode(stored.header)
    except HeaderMalformed:
        return None


def _says_erased(header: Header | None) -> bool:
    return header is not None and header.type == CONTENT_ERASED_TYPE and header.kind == EntryKind.EVENT


def _own_faults(stored: StoredEntry, header: Header | None) -> Iterator[Reason]:
    """What is wrong with an entry by itself, whatever comes before it."""
    if header is None:
        yield Reason.HEADER_MALFORMED
        return
    if (header.stream_kind, header.stream_key, header.version) != (
        stored.stream_kind,
        stored.stream_key,
        stored.version,
    ):
        yield Reason.HEADER_MISMATCH
    salt, payload = stored.salt, stored.payload
    if salt is None or payload is None:
        erased = salt is None and payload is None
        if not erased:
            yield Reason.COMMITMENT
    elif len(salt) != SALT_BYTES or commitment(salt, stored.header, payload) != stored.commitment:
        yield Reason.COMMITMENT


def _leaf_hash(header: Header, prev_leaf_hash: bytes, committed: bytes) -> bytes | None:
    if len(prev_leaf_hash) != HASH_BYTES or len(committed) != HASH_BYTES:
        return None
    return leaf_hash(
        leaf_bytes(header.type, header.stream_key, header.version, prev_leaf_hash, committed, header.recorded_at_ms)
    )
