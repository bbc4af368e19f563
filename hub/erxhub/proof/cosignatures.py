"""A witness's signature over a checkpoint, cosignature/v1: the message that is signed, and how its bytes lie.

Owns these bytes. It must never judge the time: whoever trusts a clock compares it there.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from erxhub.proof.merkle import SIZE_MAX, ProofInvalid

_TIME: Final = struct.Struct(">Q")
_SIGNATURE_BYTES: Final = 64
COSIGNATURE_BYTES: Final = _TIME.size + _SIGNATURE_BYTES


class Cosignature(NamedTuple):
    """`timestamp` in seconds since 1970, and the Ed25519 signature over `signed_message`."""

    timestamp: int
    signature: bytes


def signed_message(text: bytes, timestamp: int) -> bytes:
    """What is signed: the header, the time, and the whole text of the note as it was received."""
    return b"cosignature/v1\ntime %d\n" % timestamp + text


def write_cosignature(timestamp: int, signature: bytes) -> bytes:
    """The bytes that follow the key id in a signature line."""
    return _TIME.pack(timestamp) + signature


def read_cosignature(data: bytes) -> Cosignature:
    """The parts of such bytes. Raises ProofInvalid BAD_SIGNATURE."""
    if len(data) != COSIGNATURE_BYTES:
        raise ProofInvalid("BAD_SIGNATURE", "a cosignature is 72 bytes after the key id")
    (timestamp,) = _TIME.unpack_from(data)
    if timestamp > SIZE_MAX:
        raise ProofInvalid("BAD_SIGNATURE", "the time of a cosignature is above 2^63 - 1")
    return Cosignature(timestamp, data[_TIME.size :])
