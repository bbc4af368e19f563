"""The bytes that a receipt's signature covers.

Owns one encoding, shared by the hub that signs and by everybody who keeps receipts. Does no I/O and knows
no keys.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from erxhub.crypto.envelope import pae

RECEIPT_PAYLOAD_TYPE = "application/vnd.erxhub.v1.Receipt"

_PROMISE = struct.Struct(">QQI")


def receipt_message(
    origin: str,
    recorded_at_ms: int,
    max_merge_delay_ms: int,
    entries: Iterable[tuple[bytes, int, bytes]],
) -> bytes:
    """Return the message that the hub's Ed25519 receipt key signs.

    Args:
        origin: the ledger's name, UTF-8.
        recorded_at_ms: milliseconds since 1970, by the hub's clock.
        max_merge_delay_ms: milliseconds after `recorded_at_ms` within which the entries are in the public
            log.
        entries: (stream_key 32 bytes, version, leaf_hash 32 bytes) of each entry, in commit order.

    The payload is: u32 length of origin, origin, u64 recorded_at_ms, u64 max_merge_delay_ms, u32 number of
    entries, and for each entry the stream key, the version as u64 and the leaf hash; all integers
    big-endian. It is wrapped in the pre-authentication encoding under RECEIPT_PAYLOAD_TYPE, so that no
    other signature can be taken for a receipt.
    """
    origin_bytes = origin.encode()
    parts = [b"%b%b%b" % (key, version.to_bytes(8, "big"), leaf_hash) for key, version, leaf_hash in entries]
    promised = _PROMISE.pack(recorded_at_ms, max_merge_delay_ms, len(parts))
    head = (len(origin_bytes).to_bytes(4, "big"), origin_bytes, promised)
    return pae(RECEIPT_PAYLOAD_TYPE, b"".join((*head, *parts)))
