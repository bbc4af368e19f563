"""Stream keys: how a stream's id becomes the 32 bytes that entries, proofs and look-ups use."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Final

_PREFIX: Final = b"erxhub/v1/stream\0"
_PRESCRIPTIONS_KEPT: Final = 4_096


def stream_key(kind: str, stream_id: bytes) -> bytes:
    """SHA-256("erxhub/v1/stream" ‖ 0x00 ‖ u32 len(kind) ‖ kind ‖ id), 32 bytes. Never give it a person's data."""
    name = kind.encode("ascii")
    return hashlib.sha256(_PREFIX + len(name).to_bytes(4, "big") + name + stream_id).digest()


class PlacedKey(bytes):
    """A stream's key that also tells in which area the stream lives, for a ledger that is spread by area.

    In all else it is its bytes: whoever drops what it tells has it looked for everywhere.
    """

    area: str
    """Six digits, or "" for a stream of no area."""
    beside: bytes
    """A stream that was loaded and lives in the same area, where the digits are not known; otherwise b""."""
    surely: bool
    """False: it lives there as a rule."""

    @classmethod
    def made(cls, key: bytes, area: str = "", beside: bytes = b"", *, surely: bool = True) -> PlacedKey:
        """The key with what is known of its place."""
        placed = cls(key)
        placed.area, placed.beside, placed.surely = area, beside, surely
        return placed


@lru_cache(_PRESCRIPTIONS_KEPT)
def prescription_key(rx_no: str) -> bytes:
    """The stream of a prescription; anybody who knows the number can compute it."""
    return PlacedKey.made(stream_key("prescription", rx_no.encode()), rx_no[:6])


def trace_code_key(trace_code: str) -> bytes:
    """The stream of a drug trace code; anybody who knows the code can compute it."""
    return PlacedKey.made(stream_key("trace_code", trace_code.encode()))
