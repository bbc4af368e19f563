"""Reads of a prescription, and refused attempts on it, as a trace shows them.

Owns how an entry of an access stream is told. A payload that cannot be read tells an access without method and outcome.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from erxhub.audit.chain import Finding, Reason, Record, read_entry
from erxhub.ledger.entry import SALT_BYTES, commitment
from erxhub.ledger.store import StoredEntry
from erxhub.ledger.verify import Reason as LedgerReason
from erxhub.v1 import audit_pb2, events_pb2

ACCESS: Final = "access"
REFUSAL: Final = "refusal"


def accesses(entry: StoredEntry, rx_key: bytes) -> Iterator[audit_pb2.TraceAccess]:
    """What one entry says of the prescription: one access for each time it names it, or one refusal."""
    record = read_entry(entry)
    if record is None:
        return
    payload = record.payload
    if isinstance(payload, events_pb2.CommandRefused):
        yield _shown(record, REFUSAL, payload.method, payload.code)
    elif isinstance(payload, events_pb2.AccessRecorded):
        for target in payload.targets:
            if target.stream_key == rx_key:
                yield _shown(record, ACCESS, target.method, target.outcome)
    else:
        yield _shown(record, ACCESS, "", "")


def _shown(record: Record, kind: str, method: str, outcome: str) -> audit_pb2.TraceAccess:
    return audit_pb2.TraceAccess(
        at_ms=record.at_ms, actor=record.header.actor, kind=kind, method=method, outcome=outcome
    )


def access_findings(entry: StoredEntry) -> list[Finding]:
    """Whether an access entry is what its commitment says; its stream as a whole is for the ledger's verification."""
    found = []
    salt, payload = entry.salt, entry.payload
    if salt is not None and payload is not None:
        sound = len(salt) == SALT_BYTES and commitment(salt, entry.header, payload) == entry.commitment
        if not sound:
            found.append(LedgerReason.COMMITMENT.value)
    record = read_entry(entry)
    if record is None or record.payload is None:
        found.append(Reason.PAYLOAD)
    return [Finding(entry.stream_kind, entry.stream_key, entry.version, reason) for reason in found]
