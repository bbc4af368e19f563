"""A copy of a hub's ledger, as a mirror takes it, and its verification away from the hub.

Owns: a second reading of docs/formats.md, written from that page alone, so that a hub cannot be right by being checked
with its own code. Must never: call a hub; a copy is verified with nothing but itself, and with receipts where there are
any.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from erxhub.core.events import BY_NUMBER
from erxhub.v1 import audit_pb2, common_pb2

FIELDS: Final = 10
ZERO: Final = bytes(32)
EVENT: Final = 1


class Fault(NamedTuple):
    """What does not hold, at which position (one past the end for what is missing there)."""

    position: int
    reason: str


class HeaderFields(NamedTuple):
    """The header of an entry, read."""

    stream_kind: str
    stream_key: bytes
    version: int
    kind: int
    type: int
    recorded_at_ms: int
    actor: str
    request_id: str
    causes: tuple[bytes, ...]

    @property
    def type_name(self) -> str:
        """E.g. "order.held"; the number's text for one that is not published."""
        found = BY_NUMBER.get(self.type)
        return found.name if found is not None else str(self.type)


@dataclass(frozen=True, slots=True)
class CopiedEntry:
    """One entry as it came."""

    position: int
    header: bytes
    leaf: bytes
    leaf_hash: bytes
    salt: bytes
    payload: bytes

    @classmethod
    def of(cls, message: audit_pb2.StreamEntriesResponse) -> CopiedEntry:
        """From the wire."""
        return cls(message.position, message.header, message.leaf, message.leaf_hash, message.salt, message.payload)

    def with_payload_bit(self) -> CopiedEntry:
        """The same with one bit of its content, or of its salt where there is none, the other way round."""
        if self.payload:
            return replace(self, payload=bytes([self.payload[0] ^ 1]) + self.payload[1:])
        return replace(self, salt=bytes([self.salt[0] ^ 1]) + self.salt[1:])


def read_header(data: bytes) -> HeaderFields:
    """Raises ValueError for bytes that are no header."""
    if data[:1] != b"\x01":
        raise ValueError("unknown header format")
    fields: list[bytes] = []
    at = 1
    for _ in range(FIELDS):
        size = int.from_bytes(data[at : at + 4], "big")
        fields.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    if at != len(data):
        raise ValueError("the header's fields do not end with it")
    kind, key, version, entry_kind, number, recorded, actor, request_id, _, causes = fields
    return HeaderFields(
        kind.decode("ascii"),
        key,
        int.from_bytes(version, "big"),
        entry_kind[0],
        int.from_bytes(number, "big"),
        int.from_bytes(recorded, "big"),
        actor.decode(),
        request_id.decode(),
        tuple(causes[at : at + 32] for at in range(0, len(causes), 32)),
    )


def verify(entries: Sequence[CopiedEntry], *, with_content: bool = True) -> list[Fault]:
    """Every fault of a copy from the ledger's first entry on, in its order; an empty list when it holds.

    The chain of each stream is followed from what is in the entries themselves, so that the first entry that was
    altered, taken out or moved is named. `with_content` needs a mirror's copy, with salts and payloads.
    """
    faults: list[Fault] = []
    heads: dict[bytes, tuple[int, bytes]] = {}
    time_ms, expected = 0, 1
    for entry in entries:
        if entry.position != expected:
            faults.append(Fault(expected, "POSITION"))
        expected = entry.position + 1
        try:
            header = read_header(entry.header)
        except ValueError:
            faults.append(Fault(entry.position, "HEADER"))
            continue
        version, previous = heads.get(header.stream_key, (0, ZERO))
        if header.version != version + 1:
            faults.append(Fault(entry.position, "VERSION_GAP"))
        if header.recorded_at_ms < time_ms:
            faults.append(Fault(entry.position, "TIME"))
        faults += [Fault(entry.position, reason) for reason in _leaf_faults(entry, header, previous, with_content)]
        time_ms = max(time_ms, header.recorded_at_ms)
        heads[header.stream_key] = (header.version, entry.leaf_hash)
    return faults


def _leaf_faults(entry: CopiedEntry, header: HeaderFields, previous: bytes, with_content: bool) -> Iterable[str]:
    committed = entry.leaf[75:107]
    if with_content:
        computed = hashlib.sha256(
            b"erxhub/v1/commit\x00"
            + entry.salt
            + len(entry.header).to_bytes(4, "big")
            + entry.header
            + len(entry.payload).to_bytes(8, "big")
            + entry.payload
        ).digest()
        if computed != committed:
            yield "COMMITMENT"
    leaf = (
        b"\x01"
        + header.type.to_bytes(2, "big")
        + header.stream_key
        + header.version.to_bytes(8, "big")
        + previous
        + committed
        + header.recorded_at_ms.to_bytes(8, "big")
    )
    if entry.leaf[43:75] != previous:
        yield "PREV_LEAF"
    elif leaf != entry.leaf:
        yield "LEAF"
    if hashlib.sha256(b"\x00" + entry.leaf).digest() != entry.leaf_hash:
        yield "LEAF_HASH"


def missing(entries: Sequence[CopiedEntry], receipts: Iterable[common_pb2.Receipt]) -> list[Fault]:
    """Entries that a receipt promises and that the copy does not have: a tail that was cut off shows itself so."""
    there: Mapping[bytes, int] = {entry.leaf_hash: entry.position for entry in entries}
    end = entries[-1].position + 1 if entries else 1
    return [
        Fault(end, "RECEIPT") for receipt in receipts for promised in receipt.entries if promised.leaf_hash not in there
    ]
