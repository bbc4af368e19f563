"""Numbers and bytes as the text formats write them: one spelling each, everything else refused.

Owns the two spellings. It must never be lenient: a text that comes back different after reading and writing is no such
text.
"""

from __future__ import annotations

import binascii
import re
from typing import Final

from erxhub.proof.hashing import HASH_BYTES
from erxhub.proof.merkle import SIZE_MAX, ProofInvalid

_DECIMAL: Final = re.compile(r"0|[1-9][0-9]{0,18}")


def read_decimal(text: str) -> int:
    """A number from 0 to 2^63 - 1 without sign, blank or leading zero. Raises ProofInvalid DECIMAL."""
    if not _DECIMAL.fullmatch(text) or int(text) > SIZE_MAX:
        raise ProofInvalid("DECIMAL", "not a decimal number from 0 to 2^63 - 1 in its only form")
    return int(text)


def read_base64(text: str) -> bytes:
    """Padded base64 of the standard alphabet in its only form. Raises ProofInvalid BASE64."""
    try:
        data = binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except (ValueError, UnicodeEncodeError):
        data = None
    if data is None or write_base64(data) != text:
        raise ProofInvalid("BASE64", "not base64 in its only form")
    return data


def write_base64(data: bytes) -> str:
    """Padded base64 of the standard alphabet."""
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def read_hash(text: str) -> bytes:
    """A hash in base64. Raises ProofInvalid BASE64, HASH_LENGTH."""
    data = read_base64(text)
    if len(data) != HASH_BYTES:
        raise ProofInvalid("HASH_LENGTH", "a hash is not 32 bytes")
    return data
