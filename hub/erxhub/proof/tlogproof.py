"""Proof files (`.tlog-proof`): one leaf's inclusion with the checkpoint that it refers to.

Owns the lines. It must never take the leaf from the file: the verifier brings its hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from erxhub.proof.checkpoints import CheckpointText
from erxhub.proof.merkle import ProofInvalid, verify_inclusion
from erxhub.proof.notes import NoteKey
from erxhub.proof.policy import Policy
from erxhub.proof.text import read_base64, read_decimal, read_hash, write_base64

_VERSION: Final = "c2sp.org/tlog-proof@v1"
PROOF_LINES_MAX: Final = 63


@dataclass(frozen=True, slots=True)
class TlogProof:
    """The parts of a proof file; nothing is verified yet. `extra` never is."""

    index: int
    proof: tuple[bytes, ...]
    note: bytes
    extra: bytes | None = None


def read_tlog_proof(file: bytes) -> TlogProof:
    """Take a proof file apart. Raises ProofInvalid PROOF_FORM, BASE64, DECIMAL, HASH_LENGTH."""
    head, separator, note = file.partition(b"\n\n")
    try:
        lines = head.decode().split("\n")
    except UnicodeDecodeError:
        raise ProofInvalid("PROOF_FORM", "not UTF-8") from None
    if not separator or lines.pop(0) != _VERSION:
        raise ProofInvalid("PROOF_FORM", "not a proof file of this version")
    extra = None
    if lines and lines[0].startswith("extra "):
        extra = read_base64(lines.pop(0).removeprefix("extra "))
    if not lines or not lines[0].startswith("index "):
        raise ProofInvalid("PROOF_FORM", "no index line")
    index = read_decimal(lines.pop(0).removeprefix("index "))
    if len(lines) > PROOF_LINES_MAX:
        raise ProofInvalid("PROOF_FORM", f"more than {PROOF_LINES_MAX} hashes")
    return TlogProof(index, tuple(read_hash(line) for line in lines), note, extra)


def write_tlog_proof(index: int, proof: Sequence[bytes], note: str, extra: bytes | None = None) -> str:
    """A proof file."""
    head = [_VERSION]
    if extra is not None:
        head.append(f"extra {write_base64(extra)}")
    head.append(f"index {index}")
    return "\n".join([*head, *map(write_base64, proof)]) + f"\n\n{note}"


def verify_tlog_proof(
    file: bytes, leaf_hash: bytes, policy: Policy, log_keys: Sequence[NoteKey] = ()
) -> CheckpointText:
    """Accept that the leaf is in a log of the policy, and say where; `leaf_hash` is computed from what is known.

    `log_keys`: logs that are known otherwise. Raises ProofInvalid with the reasons of read_tlog_proof, Policy.check
    and verify_inclusion.
    """
    parts = read_tlog_proof(file)
    said = policy.check(parts.note, log_keys).said
    verify_inclusion(parts.index, said.size, leaf_hash, parts.proof, said.root)
    return said
