"""The entry format: headers, commitments and leaves, byte for byte. Stream keys are made in core.keys.

Owns the bytes that every proof rests on; all integers are big-endian. A change here breaks every ledger ever
written, so the tests hold golden bytes. It must never touch a store, the clock or randomness, and never look
inside a payload.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple

HASH_BYTES = 32
SALT_BYTES = 16
ACTOR_BYTES_MAX = 128
FIRST_PREV_LEAF_HASH = bytes(HASH_BYTES)
"""What the first entry of a stream names as the leaf before it."""
CONTENT_ERASED_TYPE = 0x0121
"""The event which says that what the entries of its stream before it said was erased."""

_COMMIT_TAG = b"erxhub/v1/commit\x00"
_FORMAT = b"\x01"
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_U64_MAX = 2**64 - 1
_BEGINNINGS_KEPT = 64  # there are a dozen kinds of streams
_TYPE_MAX = 0xFFFE  # 0x0000 and 0xFFFF are never an entry's type: the second marks the map root's leaf
# From the length of stream_key to the length of actor: every field between has a fixed size.
_MIDDLE = struct.Struct(">I32sIQIBIHIQI")
_LEAF = struct.Struct(">BH32sQ32s32sQ")


class EntryKind(IntEnum):
    EVENT = 1
    REFUSAL = 2
    ACCESS = 3


class HeaderMalformed(ValueError):
    """The bytes are not a header, or a field is outside the format."""


@dataclass(slots=True, init=False)
class Header:
    """Who, when, under which request and which rules. One that exists fits the format, and nobody changes it.

    (Not `frozen`, and with an `__init__` that is compiled with the rest: four are made for an upload.)

    `type` is the event's stable number 1..0xFFFE, `actor` a registry id of at most 128 UTF-8 bytes and never
    a name, `policy_digest` 32 bytes or none, `causes` the leaf hashes (32 bytes each) of entries that this
    one rests on. Raises HeaderMalformed.
    """

    stream_kind: str
    stream_key: bytes
    version: int
    kind: EntryKind
    type: int
    recorded_at_ms: int
    actor: str
    request_id: str
    policy_digest: bytes
    causes: tuple[bytes, ...]

    def __init__(
        self,
        stream_kind: str,
        stream_key: bytes,
        version: int,
        kind: EntryKind,
        type: int,  # noqa: A002 the field's name
        recorded_at_ms: int,
        actor: str,
        request_id: str,
        policy_digest: bytes,
        causes: tuple[bytes, ...],
    ) -> None:
        if not stream_kind or not stream_kind.isascii():
            raise HeaderMalformed("stream_kind is not ASCII text")
        if len(stream_key) != HASH_BYTES:
            raise HeaderMalformed("stream_key is not 32 bytes")
        if not 1 <= version <= _U64_MAX:
            raise HeaderMalformed("version is not in 1..2^64-1")
        if kind not in _KINDS:
            raise HeaderMalformed("kind is none of event, refusal, access")
        if not 1 <= type <= _TYPE_MAX:
            raise HeaderMalformed("type is not in 1..0xFFFE")
        if not 0 <= recorded_at_ms <= _U64_MAX:
            raise HeaderMalformed("recorded_at is not in 0..2^64-1")
        # A character is at most four bytes, so most actors need no encoding to be known as short enough.
        if len(actor) * 4 > ACTOR_BYTES_MAX and len(actor.encode()) > ACTOR_BYTES_MAX:
            raise HeaderMalformed("actor is longer than 128 bytes")
        if len(policy_digest) not in (0, HASH_BYTES):
            raise HeaderMalformed("policy_digest is neither 32 bytes nor none")
        for cause in causes:
            if len(cause) != HASH_BYTES:
                raise HeaderMalformed("a cause is not 32 bytes")
        self.stream_kind = stream_kind
        self.stream_key = stream_key
        self.version = version
        self.kind = kind
        self.type = type
        self.recorded_at_ms = recorded_at_ms
        self.actor = actor
        self.request_id = request_id
        self.policy_digest = policy_digest
        self.causes = causes

    def encode(self) -> bytes:
        actor = self.actor.encode()
        request_id = self.request_id.encode()
        causes = b"".join(self.causes)
        length = _U32.pack
        # fmt: off
        middle = _MIDDLE.pack(
            HASH_BYTES, self.stream_key,
            8, self.version,
            1, self.kind,
            2, self.type,
            8, self.recorded_at_ms,
            len(actor),
        )
        # fmt: on
        return b"".join(
            (
                _beginning(self.stream_kind),
                middle,
                actor,
                length(len(request_id)),
                request_id,
                length(len(self.policy_digest)),
                self.policy_digest,
                length(len(causes)),
                causes,
            )
        )

    @staticmethod
    def decode(data: bytes) -> Header:
        """The header that encodes to exactly these bytes. Raises HeaderMalformed: there is no second
        reading.
        """
        if data[:1] != _FORMAT:
            raise HeaderMalformed("unknown header format")
        try:
            end = _AFTER_FORMAT + _U32.unpack_from(data, 1)[0]
            stream_kind = data[_AFTER_FORMAT:end]
            # fmt: off
            key_size, key, size8, version, size1, kind, size2, type_, size8_too, recorded_at, actor_size = (
                _MIDDLE.unpack_from(data, end)
            )
            # fmt: on
        except struct.error:
            raise HeaderMalformed("header ends early") from None
        if (key_size, size8, size1, size2, size8_too) != (HASH_BYTES, 8, 1, 2, 8):
            raise HeaderMalformed("a key or an integer has the wrong size")
        fields = []
        start = end + _MIDDLE.size
        end = start + actor_size
        for _ in range(_FIELDS_BEHIND):
            fields.append(data[start:end])
            start = end + 4
            if start > len(data):
                raise HeaderMalformed("header ends early")
            end = start + int.from_bytes(data[start - 4 : start], "big")
        if end != len(data):
            raise HeaderMalformed("the last field ends elsewhere than the header")
        actor, request_id, policy_digest = fields
        causes = data[start:]
        if kind not in _KINDS:
            raise HeaderMalformed("kind is none of event, refusal, access")
        if len(causes) % HASH_BYTES:
            raise HeaderMalformed("causes are not whole hashes")
        try:
            return Header(
                stream_kind=stream_kind.decode("ascii"),
                stream_key=key,
                version=version,
                kind=_KINDS[kind],
                type=type_,
                recorded_at_ms=recorded_at,
                actor=actor.decode(),
                request_id=request_id.decode(),
                policy_digest=policy_digest,
                causes=tuple(causes[at : at + HASH_BYTES] for at in range(0, len(causes), HASH_BYTES)),
            )
        except UnicodeDecodeError:
            raise HeaderMalformed("text is not valid UTF-8") from None


@lru_cache(_BEGINNINGS_KEPT)
def _beginning(stream_kind: str) -> bytes:
    kind_bytes = stream_kind.encode("ascii")
    return _FORMAT + _U32.pack(len(kind_bytes)) + kind_bytes


_KINDS = {int(kind): kind for kind in EntryKind}
_AFTER_FORMAT = 5  # the format, and the length of stream_kind
_FIELDS_BEHIND = 3  # actor, request_id and policy_digest; the causes are what is left


def commitment(salt: bytes, header_bytes: bytes, payload: bytes) -> bytes:
    """The 32 bytes that bind header and payload. Without the salt they say nothing, so content can be erased."""
    if len(salt) != SALT_BYTES:
        raise ValueError("salt is not 16 bytes")
    parts = (_COMMIT_TAG, salt, _U32.pack(len(header_bytes)), header_bytes, _U64.pack(len(payload)), payload)
    return sha256(b"".join(parts)).digest()


def leaf_bytes(
    type: int,  # noqa: A002 the format's own word
    stream_key: bytes,
    version: int,
    prev_leaf_hash: bytes,
    commitment: bytes,
    recorded_at_ms: int,
) -> bytes:
    """The 115 bytes that stand for an entry in every proof."""
    if len(stream_key) != HASH_BYTES or len(prev_leaf_hash) != HASH_BYTES or len(commitment) != HASH_BYTES:
        raise ValueError("stream_key, prev_leaf_hash and commitment are 32 bytes each")
    return _LEAF.pack(1, type, stream_key, version, prev_leaf_hash, commitment, recorded_at_ms)


class Leaf(NamedTuple):
    """What a leaf record says. `format` is 1 in an entry's."""

    format: int
    type: int
    stream_key: bytes
    version: int
    prev_leaf_hash: bytes
    commitment: bytes
    recorded_at_ms: int


def read_leaf(leaf: bytes) -> Leaf:
    """The parts of a leaf record, whatever they are. Raises ValueError unless it has 115 bytes."""
    if len(leaf) != _LEAF.size:
        raise ValueError(f"a leaf record has {_LEAF.size} bytes")
    return Leaf(*_LEAF.unpack(leaf))


def leaf_hash(leaf: bytes) -> bytes:
    """The RFC 6962 leaf hash (32 bytes)."""
    return sha256(b"\x00" + leaf).digest()


class Entry(NamedTuple):
    """One sealed line of a stream. Made by `seal`, so that its hashes follow from its parts."""

    header: Header
    header_bytes: bytes
    salt: bytes
    payload: bytes
    commitment: bytes
    prev_leaf_hash: bytes
    leaf_hash: bytes


def seal(header: Header, salt: bytes, payload: bytes, prev_leaf_hash: bytes) -> Entry:
    """Closes an entry over its predecessor.

    Raises ValueError when the first entry of a stream names a predecessor, or a later one none.
    """
    if (header.version == 1) != (prev_leaf_hash == FIRST_PREV_LEAF_HASH):
        raise ValueError("exactly the first entry of a stream has no predecessor")
    header_bytes = header.encode()
    committed = commitment(salt, header_bytes, payload)
    leaf = leaf_bytes(header.type, header.stream_key, header.version, prev_leaf_hash, committed, header.recorded_at_ms)
    # Not by `Entry(…)`, a function that is never compiled: an upload makes four.
    return tuple.__new__(Entry, (header, header_bytes, salt, payload, committed, prev_leaf_hash, leaf_hash(leaf)))
