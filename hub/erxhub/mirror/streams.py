"""The streams that a mirror is following: where each stands, its folded state, and its records while they are fresh.

Owns the checks of one entry against its stream. It reads the mirror's own store only, and only for what it forgot.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from google.protobuf.message import DecodeError

from erxhub.audit.chain import NO_STREAM, Record, Stream, read_stream
from erxhub.core import events
from erxhub.core.events import At
from erxhub.core.fold import STATE_TYPES, EventMisplaced, evolve
from erxhub.core.lifecycle import START, IllegalTransition, Machine, Role, permits
from erxhub.ledger.entry import (
    CONTENT_ERASED_TYPE,
    FIRST_PREV_LEAF_HASH,
    SALT_BYTES,
    Entry,
    EntryKind,
    Header,
    HeaderMalformed,
    commitment,
    leaf_bytes,
    leaf_hash,
)
from erxhub.ledger.store import Store, StoredEntry, Wanted
from erxhub.mirror.faults import MirrorFault, Reason
from erxhub.v1 import audit_pb2, registry_pb2

_MISFITS: Final = (IllegalTransition, EventMisplaced, LookupError, StopIteration, ValueError, AssertionError)

_STREAMS_MAX: Final = 20_000
"""Streams in memory: what is read again from the store is the account or institution that was long not met."""

NO_SALT: Final = bytes(SALT_BYTES)
"""Stands in the copy for the salt of content that was erased before it could be copied."""

_LEAF_COMMITMENT: Final = slice(75, 107)
_LEAF_TYPE: Final = slice(1, 3)
_ERASED_TYPE: Final = CONTENT_ERASED_TYPE.to_bytes(2, "big")
_ERASING: Final = {"agency": Role.AGENCY, "hub": Role.TIMER}
"""Whose entries may erase, by how their names begin; the hub's own are those of its clock."""

_ENTRIES_AT_ONCE: Final = 256
_EVERY_POSITION: Final = 2**63


@dataclass(slots=True)
class Following:
    """One stream. `state` is None when it keeps none or content was erased, `records` when older ones are forgotten."""

    kind: str
    version: int = 0
    leaf_hash: bytes = FIRST_PREV_LEAF_HASH
    recorded_at_ms: int = 0
    state: Any = None
    records: list[Record] | None = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Taken:
    """An entry that holds. `record` is None where its content was erased."""

    entry: Entry
    following: Following
    record: Record | None


class Streams:
    """Every stream of the ledger, as far as the replay has come."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._following: OrderedDict[bytes, Following] = OrderedDict()

    async def recall(self, messages: Iterable[audit_pb2.StreamEntriesResponse]) -> list[Header | HeaderMalformed]:
        """Read again what was forgotten of the streams of these entries; gives their headers, for `take`."""
        headers = [_header(message) for message in messages]
        wanted = {
            header.stream_key
            for header in headers
            if isinstance(header, Header) and header.version > 1 and header.stream_key not in self._following
        }
        if not wanted:
            return headers
        heads = (await self._store.load(Wanted(streams=frozenset(wanted)))).heads
        for key, head in heads.items():
            last = await self._store.entries(key, head.version - 1, 1)
            recorded_at_ms = Header.decode(last[0].header).recorded_at_ms
            kind = STATE_TYPES.get(head.stream_kind)
            state = kind.FromString(head.body) if kind is not None and head.body else None
            self._following[key] = Following(
                head.stream_kind, head.version, head.leaf_hash, recorded_at_ms, state, None
            )
        return headers

    def forget(self) -> None:
        """Keep what was met last."""
        while len(self._following) > _STREAMS_MAX:
            self._following.popitem(last=False)

    def take(self, message: audit_pb2.StreamEntriesResponse, header: Header | HeaderMalformed) -> Taken:
        """Check the next entry of a stream, and move on. Raises MirrorFault, after which nothing more is taken."""
        if isinstance(header, HeaderMalformed):
            raise _fault(Reason.HEADER, str(header), message)
        following = self._following.get(header.stream_key)
        if following is None:
            kind = STATE_TYPES.get(header.stream_kind)
            following = Following(header.stream_kind, state=kind() if kind is not None else None)
            self._following[header.stream_key] = following
        else:
            self._following.move_to_end(header.stream_key)
        entry = _checked(message, header, following)
        record = None
        if message.salt:
            record = _record(message, header, entry)
            if header.type == CONTENT_ERASED_TYPE:
                _check_erasure(message, record)
            _fold(message, following, record)
        elif header.type == CONTENT_ERASED_TYPE:
            raise _fault(Reason.CONTENT_MISSING, "the entry that says what was erased cannot be read", message)
        else:
            following.state = None
        following.version, following.leaf_hash = header.version, entry.leaf_hash
        following.recorded_at_ms = header.recorded_at_ms
        if record is None or record.name == "content.erased":
            following.records = None  # what was erased must not stay behind here
        elif following.records is not None and header.stream_kind != "access":
            following.records.append(record)
        return Taken(entry, following, record)

    async def stream(self, key: bytes) -> Stream:
        """A stream as it stands, from memory or from the store; NO_STREAM when there is none."""
        following = self._following.get(key)
        if following is not None and following.records is not None:
            return Stream(key, None, (), tuple(following.records), ())
        stored: list[StoredEntry] = []
        while page := await self._store.entries(key, stored[-1].version if stored else 0, _ENTRIES_AT_ONCE):
            # What never came is as good as erased.
            stored += [replace(one, salt=None, payload=None) if one.salt == NO_SALT else one for one in page]
            if len(page) < _ENTRIES_AT_ONCE:
                break
        return read_stream(key, None, stored, _EVERY_POSITION) if stored else NO_STREAM


def _header(message: audit_pb2.StreamEntriesResponse) -> Header | HeaderMalformed:
    try:
        return Header.decode(message.header)
    except HeaderMalformed as error:
        return error


def erases(message: audit_pb2.StreamEntriesResponse) -> bool:
    """Whether the entry says that what came before it in its stream was erased, if it holds at all."""
    return message.leaf[_LEAF_TYPE] == _ERASED_TYPE


def _check_erasure(message: audit_pb2.StreamEntriesResponse, record: Record) -> None:
    """An erasure is by whom the tables allow, in a form that can be judged, and not before the end of retention."""
    header, said = record.header, record.payload
    if header.kind != EntryKind.EVENT or said.retention_class not in registry_pb2.RetentionClass.values():
        raise _fault(Reason.PAYLOAD, "no readable erasure", message)
    role = _ERASING.get(header.actor.split("/")[0])
    if header.version < 2 or role is None or not permits(Machine.CONTENT, START, "erase content", role):
        raise _fault(Reason.LIFECYCLE, f"no row of the tables allows {header.actor} to erase here", message)
    if said.kept_until_ms >= header.recorded_at_ms:
        words = f"erased at {header.recorded_at_ms} and to be kept until {said.kept_until_ms} (ms since 1970)"
        raise _fault(Reason.CONTENT_MISSING, words, message)


def _fault(reason: Reason, words: str, message: audit_pb2.StreamEntriesResponse) -> MirrorFault:
    # Header and leaf say where it is and hold nothing personal; salt and payload stay out of evidence.
    return MirrorFault(
        reason,
        f"{words}, position {message.position}",
        position=message.position,
        header=message.header.hex(),
        leaf=message.leaf.hex(),
        leaf_hash=message.leaf_hash.hex(),
    )


def _checked(message: audit_pb2.StreamEntriesResponse, header: Header, following: Following) -> Entry:
    """The entry, its hashes computed from its parts and from what came before."""
    if header.version != following.version + 1 or header.stream_kind != following.kind:
        raise _fault(Reason.VERSION_GAP, f"version {header.version} follows {following.version}", message)
    if message.salt:
        if len(message.salt) != SALT_BYTES:
            raise _fault(Reason.LEAF_HASH, "the salt is not 16 bytes", message)
        committed = commitment(message.salt, message.header, message.payload)
    else:
        if message.payload:
            raise _fault(Reason.LEAF_HASH, "a payload without its salt", message)
        committed = message.leaf[_LEAF_COMMITMENT]
    try:
        leaf = leaf_bytes(
            header.type, header.stream_key, header.version, following.leaf_hash, committed, header.recorded_at_ms
        )
    except ValueError as error:
        raise _fault(Reason.LEAF_HASH, str(error), message) from None
    hashed = leaf_hash(leaf)
    if leaf != message.leaf or hashed != message.leaf_hash:
        raise _fault(Reason.LEAF_HASH, "the leaf does not follow from the entry and the one before it", message)
    if header.recorded_at_ms < following.recorded_at_ms:
        raise _fault(Reason.TIME_BACKWARDS, "recorded before its predecessor", message)
    salt = message.salt or NO_SALT
    return Entry(header, message.header, salt, message.payload, committed, following.leaf_hash, hashed)


def _record(message: audit_pb2.StreamEntriesResponse, header: Header, entry: Entry) -> Record:
    event = events.BY_NUMBER.get(header.type)
    if event is None or header.stream_kind not in event.stream_kinds:
        raise _fault(Reason.PAYLOAD, f"type {header.type:#06x} does not belong into {header.stream_kind}", message)
    payload: Any = event.payload()
    try:
        payload.ParseFromString(message.payload)
    except DecodeError:
        raise _fault(Reason.PAYLOAD, f"no payload of {event.name}", message) from None
    return Record(message.position, header, entry.leaf_hash, event, payload)


def _fold(message: audit_pb2.StreamEntriesResponse, following: Following, record: Record) -> None:
    if following.state is None:
        return
    header = record.header
    at = At(header.version, header.recorded_at_ms, header.request_id)
    try:
        evolve(header.stream_kind, following.state, record.name, record.payload, at)
    except _MISFITS as error:
        raise _fault(
            Reason.LIFECYCLE,
            f"no row of the tables allows {record.name} here ({error or type(error).__name__})",
            message,
        ) from None
