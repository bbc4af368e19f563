"""The verifiable map: checking that a key has a value, or that there is no such key.

Owns the two verifications and the hashes of docs/formats.md. It must never take the key from the proof: the verifier
computes it from what was asked. The map is kept and proved elsewhere (`pages`); a verifier needs none of that.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

from erxhub.proof.hashing import EMPTY_ROOT, HASH_BYTES
from erxhub.proof.merkle import ProofInvalid

KEY_BYTES_MAX: Final = 1_024
VALUE_BYTES_MAX: Final = 1_024
_BITS_MAX: Final = 8 * KEY_BYTES_MAX
_BITS_STRICT: Final = 255
_VARINT_BITS: Final = 64


def varint(number: int) -> bytes:
    """Unsigned base 128, low 7 bits first, high bit = more follows."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def entry_hash(key: bytes, value: bytes) -> bytes:
    """The leaf of one entry of the map."""
    return sha256(b"\x00" + varint(len(key)) + key + varint(len(value)) + value).digest()


def node_hash(bit: int, left: bytes, right: bytes) -> bytes:
    """The node above two hashes, whose keys first differ at `bit`."""
    return sha256(b"\x01" + varint(bit) + left + right).digest()


def key_bit(key: bytes, number: int) -> int:
    """Bit `number` of a key, the most significant of its first byte being 0; a key reads on as 0x00, then 0xFF …"""
    place, within = divmod(number, 8)
    if place < len(key):
        return key[place] >> (7 - within) & 1
    return 0 if place == len(key) else 1


def verify_present(root: bytes, key: bytes, value: bytes, proof: bytes, *, strict32: bool = True) -> None:
    """Accept that the map `root` holds `value` under `key`, or raise ProofInvalid.

    `strict32`: keys and values are 32 bytes, as in the maps of this project; otherwise up to 1,024 bytes each.
    Reasons: HASH_LENGTH, KEY_LENGTH, VALUE_LENGTH, VARINT, BIT_ORDER, TRUNCATED, ROOT_MISMATCH.
    """
    _check_root(root)
    _check_lengths(key, value, strict32)
    _climb(root, key, key, entry_hash(key, value), proof, 0, strict32)


def verify_absent(root: bytes, key: bytes, proof: bytes, *, strict32: bool = True) -> None:
    """Accept that the map `root` holds nothing under `key`, or raise ProofInvalid.

    Reasons: those of verify_present, and NOT_EMPTY, EMPTY_MAP, SAME_KEY, WRONG_SIDE.
    """
    _check_root(root)
    _check_lengths(key, bytes(HASH_BYTES), strict32)
    if not proof:
        if root != EMPTY_ROOT:
            raise ProofInvalid("NOT_EMPTY", "an empty proof, and the map is not empty")
        return
    if root == EMPTY_ROOT:
        raise ProofInvalid("EMPTY_MAP", "the empty map has the empty proof")
    neighbour, at = _sized(proof, 0)
    value, at = _sized(proof, at)
    _check_lengths(neighbour, value, strict32)
    if neighbour == key:
        raise ProofInvalid("SAME_KEY", "the entry where the search ends is that of the key itself")
    _climb(root, key, neighbour, entry_hash(neighbour, value), proof, at, strict32)


def _climb(root: bytes, key: bytes, leaf_key: bytes, computed: bytes, proof: bytes, at: int, strict32: bool) -> None:
    previous = (_BITS_STRICT if strict32 else _BITS_MAX) + 1
    while at < len(proof):
        bit, at = _read_varint(proof, at)
        if bit >= previous:
            raise ProofInvalid("BIT_ORDER", "bit numbers must fall from the leaf to the root")
        sibling, at = _taken(proof, at, HASH_BYTES)
        side = key_bit(leaf_key, bit)
        if key_bit(key, bit) != side:
            raise ProofInvalid("WRONG_SIDE", "the search for the key would have gone the other way")
        computed = node_hash(bit, sibling, computed) if side else node_hash(bit, computed, sibling)
        previous = bit
    if computed != root:
        raise ProofInvalid("ROOT_MISMATCH", "the proof leads to another root")


def _check_root(root: bytes) -> None:
    if len(root) != HASH_BYTES:
        raise ProofInvalid("HASH_LENGTH", "the root is not 32 bytes")


def _check_lengths(key: bytes, value: bytes, strict32: bool) -> None:
    if len(key) != HASH_BYTES if strict32 else len(key) > KEY_BYTES_MAX:
        raise ProofInvalid("KEY_LENGTH", "the key has a length that the map does not have")
    if len(value) != HASH_BYTES if strict32 else len(value) > VALUE_BYTES_MAX:
        raise ProofInvalid("VALUE_LENGTH", "the value has a length that the map does not have")


def _sized(proof: bytes, at: int) -> tuple[bytes, int]:
    size, at = _read_varint(proof, at)
    return _taken(proof, at, size)


def _taken(proof: bytes, at: int, size: int) -> tuple[bytes, int]:
    end = at + size
    if end > len(proof):
        raise ProofInvalid("TRUNCATED", "the proof ends within a part, or has bytes left over")
    return proof[at:end], end


def _read_varint(proof: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        if at >= len(proof):
            raise ProofInvalid("VARINT", "a number without end")
        byte = proof[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if number >> _VARINT_BITS:
            raise ProofInvalid("VARINT", "a number above 64 bits")
        if byte < 0x80:
            break
        shift += 7
        if shift >= _VARINT_BITS:
            raise ProofInvalid("VARINT", "a number above 64 bits")
    if byte == 0 and shift:
        raise ProofInvalid("VARINT", "a number that is not in its shortest form")
    return number, at
