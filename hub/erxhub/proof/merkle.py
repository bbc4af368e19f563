"""The RFC 6962 tree: making and checking roots, inclusion proofs and consistency proofs.

Owns the two verifications, in the order of steps of docs/formats.md. It must never accept a hash that is not 32 bytes,
also one that the verdict does not need, and knows nothing about where nodes are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from erxhub.proof.hashing import EMPTY_ROOT, HASH_BYTES, inner

SIZE_MAX: Final = 2**63 - 1
"""Sizes, indexes and times above it are refused when they are read."""

ReadNode = Callable[[int, int], bytes]
"""(level, index) → the root of the complete subtree of 2^level leaves that begins at leaf index · 2^level."""


class ProofInvalid(ValueError):
    """What was shown does not prove what was asked. `reason` is a stable code, the message says it in words."""

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason = reason


def root_of(leaf_hashes: Iterable[bytes]) -> bytes:
    """The root of the tree over these leaf hashes."""
    # Complete subtrees that wait for a neighbour of their own height, lowest last.
    waiting: list[bytes] = []
    for size, hash_ in enumerate(leaf_hashes, start=1):
        while not size & 1:
            hash_ = inner(waiting.pop(), hash_)
            size >>= 1
        waiting.append(hash_)
    return _folded(waiting) if waiting else EMPTY_ROOT


def inclusion_path(index: int, size: int, read: ReadNode) -> list[bytes]:
    """The inclusion proof of leaf `index` in the tree of `size` leaves, the leaf's own sibling first."""
    if not 0 <= index < size <= SIZE_MAX:
        raise ValueError(f"no leaf {index} in a tree of {size}")
    path = []
    start, count = 0, size
    while count > 1:
        half = _half(count)
        if index - start < half:
            path.append(_range_root(start + half, count - half, read))
            count = half
        else:
            path.append(_range_root(start, half, read))
            start, count = start + half, count - half
    path.reverse()
    return path


def consistency_path(size1: int, size2: int, read: ReadNode) -> list[bytes]:
    """The proof that the tree of `size1` leaves is the beginning of the tree of `size2` leaves."""
    if not 0 < size1 <= size2 <= SIZE_MAX:
        raise ValueError(f"there is no proof from size {size1} to size {size2}")
    path = []
    start, old, count = 0, size1, size2
    while old != count:
        half = _half(count)
        if old <= half:
            path.append(_range_root(start + half, count - half, read))
            count = half
        else:
            path.append(_range_root(start, half, read))
            start, old, count = start + half, old - half, count - half
    if start:  # otherwise it is the old root itself, which the verifier has
        path.append(_range_root(start, count, read))
    path.reverse()
    return path


def verify_inclusion(index: int, size: int, leaf_hash: bytes, proof: Sequence[bytes], root: bytes) -> None:
    """Accept that the leaf is number `index` of the tree (size, root), or raise ProofInvalid.

    Index and size must be the verifier's own or be signed, and the leaf hash computed from the leaf's data.
    Reasons: SIZE_RANGE, INDEX_RANGE, HASH_LENGTH, PROOF_TOO_SHORT, PROOF_TOO_LONG, ROOT_MISMATCH.
    """
    if not 0 <= size <= SIZE_MAX:
        raise ProofInvalid("SIZE_RANGE", "a size is from 0 to 2^63 - 1")
    if not 0 <= index < size:
        raise ProofInvalid("INDEX_RANGE", "the index is not below the size")
    _check_hashes(leaf_hash, root, *proof)
    position, last, computed = index, size - 1, leaf_hash
    for element in proof:
        if last == 0:
            raise ProofInvalid("PROOF_TOO_LONG", "hashes of the proof are left over")
        if position & 1 or position == last:
            computed = inner(element, computed)
            while position and not position & 1:
                position, last = position >> 1, last >> 1
        else:
            computed = inner(computed, element)
        position, last = position >> 1, last >> 1
    if last:
        raise ProofInvalid("PROOF_TOO_SHORT", "hashes of the proof are missing")
    if computed != root:
        raise ProofInvalid("ROOT_MISMATCH", "the proof leads to another root")


def verify_consistency(size1: int, size2: int, proof: Sequence[bytes], root1: bytes, root2: bytes) -> None:
    """Accept that the tree (size1, root1) is the beginning of the tree (size2, root2), or raise ProofInvalid.

    Never from size 0: whoever starts from nothing has nothing to prove and must not call this.
    Reasons: SIZE_RANGE, SIZE_ZERO, SIZE_ORDER, HASH_LENGTH, PROOF_TOO_SHORT, PROOF_TOO_LONG, OLD_ROOT_MISMATCH,
    ROOT_MISMATCH.
    """
    if not (0 <= size1 <= SIZE_MAX and 0 <= size2 <= SIZE_MAX):
        raise ProofInvalid("SIZE_RANGE", "a size is from 0 to 2^63 - 1")
    _check_hashes(root1, root2, *proof)
    if size1 == 0:
        raise ProofInvalid("SIZE_ZERO", "from size 0 there is nothing to prove")
    if size1 > size2:
        raise ProofInvalid("SIZE_ORDER", "the first size is above the second")
    if size1 == size2:
        if proof:
            raise ProofInvalid("PROOF_TOO_LONG", "equal sizes take an empty proof")
        if root1 != root2:
            raise ProofInvalid("ROOT_MISMATCH", "equal sizes with different roots")
        return
    if not proof:
        raise ProofInvalid("PROOF_TOO_SHORT", "an empty proof between different sizes")
    # The old tree is complete: its root is the first element, and the producer leaves it out.
    elements = [root1, *proof] if size1 & (size1 - 1) == 0 else list(proof)
    old, new = _climb(size1 - 1, size2 - 1, elements)
    if old != root1:
        raise ProofInvalid("OLD_ROOT_MISMATCH", "the proof leads to another root of the first tree")
    if new != root2:
        raise ProofInvalid("ROOT_MISMATCH", "the proof leads to another root of the second tree")


def _climb(position: int, last: int, elements: Sequence[bytes]) -> tuple[bytes, bytes]:
    while position & 1:
        position, last = position >> 1, last >> 1
    old = new = elements[0]
    for element in elements[1:]:
        if last == 0:
            raise ProofInvalid("PROOF_TOO_LONG", "hashes of the proof are left over")
        if position & 1 or position == last:
            old, new = inner(element, old), inner(element, new)
            while position and not position & 1:
                position, last = position >> 1, last >> 1
        else:
            new = inner(new, element)
        position, last = position >> 1, last >> 1
    if last:
        raise ProofInvalid("PROOF_TOO_SHORT", "hashes of the proof are missing")
    return old, new


def _check_hashes(*hashes: bytes) -> None:
    if any(len(one) != HASH_BYTES for one in hashes):
        raise ProofInvalid("HASH_LENGTH", "a hash is not 32 bytes")


def _half(count: int) -> int:
    """The largest power of two below `count`, which is at least 2."""
    return 1 << ((count - 1).bit_length() - 1)


def _range_root(start: int, count: int, read: ReadNode) -> bytes:
    """The root over `count` leaves from `start`, which is a multiple of the largest power of two in `count`."""
    parts = []
    while count:
        level = count.bit_length() - 1
        parts.append(read(level, start >> level))
        start, count = start + (1 << level), count - (1 << level)
    return _folded(parts)


def _folded(parts: list[bytes]) -> bytes:
    """The hash above complete subtrees of falling height."""
    computed = parts[-1]
    for part in reversed(parts[:-1]):
        computed = inner(part, computed)
    return computed
