"""What the log says about itself: the leaf that carries the map's root, and the values of the map.

Owns these bytes. An entry's leaf is made in ledger.entry. It must never look inside an entry.
"""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import Final

MAPROOT_TYPE: Final = 0xFFFF
"""No entry has this type."""

_MAPROOT: Final = struct.Struct(">BHQ32s")
_VALUE: Final = struct.Struct(">Q32s")


def maproot_leaf(covered_size: int, map_root: bytes) -> bytes:
    """The 43 bytes of the last leaf of a checkpoint of size `covered_size` + 1."""
    if len(map_root) != 32:
        raise ValueError("the map's root is not 32 bytes")
    return _MAPROOT.pack(1, MAPROOT_TYPE, covered_size, map_root)


def map_value(version: int, leaf_hash: bytes) -> bytes:
    """What the map holds for a stream whose newest entry has this version and leaf hash (32 bytes)."""
    return sha256(_VALUE.pack(version, leaf_hash)).digest()
