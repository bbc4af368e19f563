"""Checking the hub's receipts (回执) with pinned keys.

Owns: when a receipt proves something. Must never: learn a key from the hub that it checks; keys come from the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from erxhub.client.failures import ReceiptInvalid
from erxhub.crypto.receipt import receipt_message
from erxhub.crypto.suites import SIGNATURE_SIZE, SUITES
from erxhub.v1 import common_pb2

RECEIPT_SUITE: Final = "EdDSA"
HASH_SIZE: Final = 32


def check_receipt(receipt: common_pb2.Receipt, keys: Mapping[str, bytes]) -> None:
    """Raises ReceiptInvalid unless a key of `keys` signed this receipt.

    Args:
        receipt: as it came in a reply.
        keys: key id (32 hexadecimal characters) to the raw Ed25519 public key of 32 bytes. All keys that the hub ever
            used may be here: old receipts stay verifiable.

    1. Every stream key and leaf hash has 32 bytes: the signed encoding writes no lengths for them. A request that asked
       for what already stands leaves no entry, and its receipt names none.
    2. Its key is pinned.
    3. The signature is that key's over `receipt_message`.
    """
    entries = [(entry.stream_key, entry.version, entry.leaf_hash) for entry in receipt.entries]
    sizes_fit = all(len(stream) == HASH_SIZE == len(leaf) for stream, _, leaf in entries)
    times_fit = receipt.recorded_at_ms > 0 and receipt.max_merge_delay_ms >= 0
    if not sizes_fit or not times_fit or len(receipt.signature) != SIGNATURE_SIZE:
        raise ReceiptInvalid("MALFORMED", "a part of the receipt has a wrong size")
    key = keys.get(receipt.key_id)
    if key is None:
        raise ReceiptInvalid(
            "UNKNOWN_KEY", f"the receipt is signed with {receipt.key_id or 'no key'}, which is not pinned"
        )
    message = receipt_message(receipt.origin, receipt.recorded_at_ms, receipt.max_merge_delay_ms, entries)
    if not SUITES[RECEIPT_SUITE].verify(key, message, receipt.signature):
        raise ReceiptInvalid("SIGNATURE", "the receipt's signature is not that of the pinned key")
