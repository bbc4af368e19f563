"""What goes over the wire between a log and a witness: the body of add-checkpoint, and where a checkpoint is found.

Owns these forms. It must never verify anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Final, NamedTuple

from erxhub.proof.merkle import ProofInvalid
from erxhub.proof.text import read_decimal, read_hash, write_base64

ADD_CHECKPOINT: Final = "/add-checkpoint"
SIZE_TYPE: Final = "text/x.tlog.size"
TEXT_TYPE: Final = "text/plain; charset=utf-8"
PROOF_LINES_MAX: Final = 63
BODY_BYTES_MAX: Final = 512 * 1024


class AddCheckpoint(NamedTuple):
    """A request: the size that the log believes to be recorded, the proof from there, and the signed note."""

    old: int
    proof: tuple[bytes, ...]
    note: bytes


def read_add_checkpoint(body: bytes) -> AddCheckpoint:
    """Take a request apart. Raises ProofInvalid REQUEST_FORM, DECIMAL, BASE64, HASH_LENGTH."""
    head, separator, note = body.partition(b"\n\n")
    try:
        first, *lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise ProofInvalid("REQUEST_FORM", "the lines before the checkpoint are not ASCII") from None
    if not separator or not first.startswith("old "):
        raise ProofInvalid("REQUEST_FORM", "not a line `old <size>`, hashes, an empty line and a checkpoint")
    if len(lines) > PROOF_LINES_MAX:
        raise ProofInvalid("REQUEST_FORM", f"more than {PROOF_LINES_MAX} hashes")
    return AddCheckpoint(read_decimal(first.removeprefix("old ")), tuple(map(read_hash, lines)), note)


def write_add_checkpoint(old: int, proof: Sequence[bytes], note: str) -> bytes:
    """A request."""
    return "\n".join([f"old {old}", *map(write_base64, proof), "", note]).encode()


def origin_hash(origin: str) -> str:
    """The name of an origin in the monitoring path, 64 hexadecimal digits."""
    return sha256(origin.encode()).hexdigest()


def monitoring_path(origin: str) -> str:
    """Where a witness shows the newest checkpoint of a log, below its monitoring prefix."""
    return f"/{origin_hash(origin)}/checkpoint"
