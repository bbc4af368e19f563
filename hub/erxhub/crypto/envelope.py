"""What a signature covers: the exact bytes received, bound to the name of their type.

Owns: the pre-authentication encoding of DSSE version 1.
Must never: parse or re-serialise a payload. Bytes are verified first and understood afterwards.
"""

from __future__ import annotations


def pae(payload_type: str, payload: bytes) -> bytes:
    """The bytes to sign for `payload` (DSSE v1): type and payload, each after its length in bytes.

    The lengths make it impossible to move bytes between type and payload, so a signature made for one kind
    of document is never valid for another.
    """
    name = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(name), name, len(payload), payload)
