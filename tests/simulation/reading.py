"""Reads the ledger without the hub's own reader: header fields, commitment, leaf and chain, after docs/formats.md.

Owns the second reading of the format. Must never import what wrote the bytes, but for the table that names event types.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from erxhub.core.events import BY_NUMBER
from erxhub.ledger.store import StoredEntry

EVENT: Final = 1
REFUSAL: Final = 2
ACCESS: Final = 3

_LEAF: Final = struct.Struct(">BH32sQ32s32sQ")


class Violation(Exception):
    """An invariant does not hold."""

    def __init__(self, invariant: str, text: str) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant


@dataclass(slots=True)
class Line:
    """One entry as read."""

    position: int
    stream_kind: str
    stream_key: bytes
    version: int
    kind: int
    name: str
    at_ms: int
    actor: str
    request_id: str
    policy_digest: bytes
    causes: tuple[bytes, ...]
    payload: Any

    @property
    def institution(self) -> str:
        """Kind and id of the caller, without the person who acted."""
        return "/".join(self.actor.split("/")[:2])

    @property
    def operator(self) -> str:
        """The person who acted for the caller; empty for none."""
        return "/".join(self.actor.split("/")[2:])


def read(entry: StoredEntry) -> Line:
    """The entry's line. Violations: I11 for bytes that are no header, I25 for content that is gone."""
    data = entry.header
    fields = []
    offset = 1
    while offset < len(data):
        size = int.from_bytes(data[offset : offset + 4], "big")
        fields.append(data[offset + 4 : offset + 4 + size])
        offset += 4 + size
    if data[:1] != b"\1" or offset != len(data) or len(fields) != 10:
        raise Violation("I11", f"entry {entry.position}: the header cannot be read")
    if entry.payload is None or entry.salt is None:
        raise Violation("I25", f"entry {entry.position}: the content is gone, and nothing was ever old enough")
    stream_kind, key, version, kind, number, at_ms, actor, request_id, policy_digest, causes = fields
    event = BY_NUMBER.get(int.from_bytes(number, "big"))
    if event is None:
        raise Violation("I11", f"entry {entry.position}: type {number.hex()} is none of the table's")
    return Line(
        entry.position,
        stream_kind.decode(),
        key,
        int.from_bytes(version, "big"),
        kind[0],
        event.name,
        int.from_bytes(at_ms, "big"),
        actor.decode(),
        request_id.decode(),
        policy_digest,
        tuple(causes[place : place + 32] for place in range(0, len(causes), 32)),
        event.payload.FromString(entry.payload),
    )


class Chains:
    """I11: positions without gaps, every stream a chain of hashes, and the hub's time never going back."""

    def __init__(self) -> None:
        self.position = 0
        self.heads: dict[bytes, tuple[int, bytes]] = {}
        self._leaves: set[bytes] = set()
        self._newest_ms = 0

    def take(self, entry: StoredEntry, line: Line) -> None:
        """The next entry of the log."""
        where = f"entry {entry.position} ({line.name})"
        if entry.position != self.position + 1:
            raise Violation("I11", f"{where} follows position {self.position}")
        version, before = self.heads.get(line.stream_key, (0, bytes(32)))
        if line.version != version + 1 or entry.version != line.version:
            raise Violation("I11", f"{where} has version {line.version} after {version}")
        if (entry.stream_kind, entry.stream_key) != (line.stream_kind, line.stream_key):
            raise Violation("I11", f"{where} lies in another stream than its header says")
        if line.at_ms < self._newest_ms:
            raise Violation("I11", f"{where} is {self._newest_ms - line.at_ms} ms older than the one before")
        assert entry.salt is not None
        assert entry.payload is not None
        committed = sha256(
            b"erxhub/v1/commit\0"
            + entry.salt
            + struct.pack(">I", len(entry.header))
            + entry.header
            + struct.pack(">Q", len(entry.payload))
            + entry.payload
        ).digest()
        number = int.from_bytes(entry.header[_number_at(entry.header) :][:2], "big")
        leaf = _LEAF.pack(1, number, line.stream_key, line.version, before, committed, line.at_ms)
        if committed != entry.commitment or sha256(b"\0" + leaf).digest() != entry.leaf_hash:
            raise Violation("I11", f"{where} does not hash to its leaf")
        if not all(cause in self._leaves for cause in line.causes):
            raise Violation("I11", f"{where} rests on an entry that is not there")
        self.position = entry.position
        self._newest_ms = line.at_ms
        self.heads[line.stream_key] = (line.version, entry.leaf_hash)
        self._leaves.add(entry.leaf_hash)


def _number_at(header: bytes) -> int:
    """Where the event type's two bytes stand: after stream kind, key, version and kind."""
    offset = 1
    for _ in range(4):
        offset += 4 + int.from_bytes(header[offset : offset + 4], "big")
    return offset + 4
