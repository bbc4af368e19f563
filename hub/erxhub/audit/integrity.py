"""Whether the streams of a chain hold by themselves: their hashes, their heads, and their states.

Owns I10 and I11 for single streams. Links between streams are `chain`'s, signatures are `signatures`'s. It reads no
store.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf.message import DecodeError

from erxhub.audit.chain import Finding, Reason, Record, Stream, read_entry
from erxhub.core.events import At
from erxhub.core.fold import STATE_TYPES, EventMisplaced, evolve
from erxhub.core.lifecycle import IllegalTransition
from erxhub.ledger import verify
from erxhub.ledger.store import Head, StoredEntry

# What a fold raises on events that do not fit; nothing else may hide here.
_MISFITS = (IllegalTransition, EventMisplaced, LookupError, StopIteration, ValueError, AssertionError)


def findings(streams: Iterable[Stream]) -> list[Finding]:
    """The faults of each stream: hashes, links within it and order first, then head and state where these hold.

    A state is compared only where the entries themselves hold: over an altered entry the fold would prove nothing.
    """
    found: list[Finding] = []
    for stream in streams:
        broken = hash_findings(stream.stored)
        found.extend(broken)
        if not broken:
            found.extend(state_findings(stream.head, stream.stored))
    return found


def hash_findings(stored: Iterable[StoredEntry]) -> list[Finding]:
    """The faults of a stream given from its first entry (I11)."""
    return [
        Finding(each.stream_kind, each.stream_key, each.version, each.reason.value)
        for each in verify.verify_entries(list(stored)).findings
    ]


def state_findings(head: Head | None, stored: Iterable[StoredEntry]) -> list[Finding]:
    """Whether the head's state is the fold of the stream's entries, byte for byte (I10).

    Entries after the head's version are left out: they came after the head was read. Nothing is found for a stream that
    keeps no state, or whose content was erased.
    """
    entries = list(stored)
    if not entries or entries[0].stream_kind not in STATE_TYPES:
        return []
    if head is None:
        return [_finding(entries[-1], verify.Reason.HEAD_MISMATCH.value)]
    entries = [entry for entry in entries if entry.version <= head.version]
    if not entries or (entries[-1].version, entries[-1].leaf_hash) != (head.version, head.leaf_hash):
        return [Finding(head.stream_kind, head.stream_key, head.version, verify.Reason.HEAD_MISMATCH.value)]
    refold = Refold(entries[0].stream_kind, head)
    for entry in entries:
        found = refold.take(entry, read_entry(entry))
        if found is not None:
            return [found]
        if refold.state is None:
            break
    return []


class Refold:
    """The state of one stream, folded again entry by entry from the first, and compared where its head stands (I10).

    `state` is None from the entry on that cannot be folded.
    """

    def __init__(self, stream_kind: str, head: Head | None) -> None:
        self.state: Any = STATE_TYPES[stream_kind]()
        self._head = head

    def take(self, entry: StoredEntry, record: Record | None) -> Finding | None:
        """Fold the next entry, of which `record` is the reading; what is wrong with it, or None. Erased is no fault."""
        if self.state is None:
            return None
        if entry.payload is None or record is None or record.payload is None:
            self.state = None
            return None if entry.payload is None else _finding(entry, Reason.PAYLOAD)
        at = At(record.header.version, record.at_ms, record.header.request_id)
        try:
            evolve(entry.stream_kind, self.state, record.name, record.payload, at)
        except _MISFITS:
            self.state = None
            return _finding(entry, Reason.STATE)
        if self._head is None:
            return _finding(entry, verify.Reason.HEAD_MISMATCH.value)
        if self._head.version == entry.version and not _same(self.state, self._head.body):
            return _finding(entry, Reason.STATE)
        return None


def _same(state: Any, body: bytes) -> bool:
    if state.SerializeToString(deterministic=True) == body:
        return True
    # A hub of another release may write the same fields in another order.
    try:
        return bool(type(state).FromString(body) == state)
    except DecodeError:
        return False


def _finding(entry: StoredEntry, reason: str) -> Finding:
    return Finding(entry.stream_kind, entry.stream_key, entry.version, reason)
