"""The two hashes of an RFC 6962 tree.

Owns the prefixes that keep a leaf from being taken for an inner node. It must never accept text.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = sha256(b"").digest()
"""The root of a tree, or of a map, with nothing in it."""


def leaf_hash(data: bytes) -> bytes:
    """The hash of a leaf with this data, which may be empty."""
    return sha256(b"\x00" + data).digest()


def inner(left: bytes, right: bytes) -> bytes:
    """The hash of the node above two hashes of 32 bytes."""
    return sha256(b"\x01" + left + right).digest()
