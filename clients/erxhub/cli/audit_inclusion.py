"""One entry and the proof that it is in the log: a proof file (`.tlog-proof`), kept and checked without the hub.

Owns what such a file of ours carries: the entry's leaf record as its extra data. It must never take the file's word
for which entry that is.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from erxhub.cli.exits import NEGATIVE, OK

if TYPE_CHECKING:
    from erxhub.cli.output import Output
    from erxhub.proof.bundle import Subject


def verify_file(
    data: bytes, out: Output, *, log_keys: tuple[str, ...], policy: Path | None, asked: Subject, version: int
) -> int:
    """Verify the bytes of a proof file and print which entry it proves; the exit code."""
    from erxhub.proof.merkle import ProofInvalid

    try:
        told = _proven(data, log_keys, policy, asked, version)
    except ProofInvalid as error:
        out.say(f"REFUSED {error.reason}: {error}")
        return NEGATIVE
    out.object(told)
    return OK


def _proven(
    data: bytes, log_keys: tuple[str, ...], policy: Path | None, asked: Subject, version: int
) -> dict[str, Any]:
    """What the file proves. Raises ProofInvalid: LEAF when its leaf is not that of the entry asked about."""
    from erxhub.cli.arguments import iso_beijing
    from erxhub.cli.audit_proofs import trust_of
    from erxhub.core.events import BY_NUMBER
    from erxhub.ledger.entry import leaf_hash, read_leaf
    from erxhub.proof.merkle import ProofInvalid
    from erxhub.proof.policy import Policy
    from erxhub.proof.tlogproof import read_tlog_proof, verify_tlog_proof

    parts = read_tlog_proof(data)
    try:
        leaf = read_leaf(parts.extra or b"")
    except ValueError as error:
        raise ProofInvalid("LEAF", str(error)) from None
    if (leaf.format, leaf.stream_key, leaf.version) != (1, asked.key, version):
        raise ProofInvalid("LEAF", "it is another entry's")
    trust = trust_of(log_keys, policy, None, parts.note.partition(b"\n")[0].decode(errors="replace"))
    hashed = leaf_hash(parts.extra or b"")
    said = verify_tlog_proof(data, hashed, trust.policy or Policy((), {}, {}, None), trust.log_keys)
    event = BY_NUMBER.get(leaf.type)
    return {
        "origin": said.origin,
        "size": said.size,
        "index": parts.index,
        "stream": asked.key.hex(),
        "version": version,
        "type": event.name if event is not None else f"0x{leaf.type:04x}",
        "recorded_at": iso_beijing(leaf.recorded_at_ms),
        "leaf_hash": hashed.hex(),
    }
