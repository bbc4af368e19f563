"""Stream keys: how a stream's id becomes the 32 bytes that entries, proofs and look-ups use."""

from __future__ import annotations

import hashlib
from typing import Final

_PREFIX: Final = b"erxhub/v1/stream\0"


def stream_key(kind: str, stream_id: bytes) -> bytes:
    """SHA-256("erxhub/v1/stream" ‖ 0x00 ‖ u32 len(kind) ‖ kind ‖ id), 32 bytes. Never give it a person's data."""
    name = kind.encode("ascii")
    return hashlib.sha256(_PREFIX + len(name).to_bytes(4, "big") + name + stream_id).digest()


def prescription_key(rx_no: str) -> bytes:
    """The stream of a prescription; anybody who knows the number can compute it."""
    return stream_key("prescription", rx_no.encode())


def trace_code_key(trace_code: str) -> bytes:
    """The stream of a drug trace code; anybody who knows the code can compute it."""
    return stream_key("trace_code", trace_code.encode())
