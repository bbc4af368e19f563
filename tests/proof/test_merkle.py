"""The tree against its definition, and every proof against every bit of it turned."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erxhub.proof.hashing import EMPTY_ROOT, leaf_hash
from erxhub.proof.merkle import (
    SIZE_MAX,
    ProofInvalid,
    consistency_path,
    inclusion_path,
    root_of,
    verify_consistency,
    verify_inclusion,
)
from tests.proof import naive

LEAVES = [f"leaf {n}".encode() for n in range(130)]
HASHES = [leaf_hash(leaf) for leaf in LEAVES]
ROOTS = [naive.mth(LEAVES[:size]) for size in range(len(LEAVES) + 1)]
SMALL = 20


def read(size: int) -> Callable[[int, int], bytes]:
    """Complete subtrees of the tree of that size, and nothing beyond it."""

    def node(level: int, index: int) -> bytes:
        assert (index + 1) << level <= size, "only complete subtrees are stored"
        return naive.mth(LEAVES[index << level : (index + 1) << level])

    return node


def test_roots() -> None:
    assert ROOTS[0] == EMPTY_ROOT
    for size, root in enumerate(ROOTS):
        assert root_of(iter(HASHES[:size])) == root


def test_every_small_proof() -> None:
    for size in range(1, SMALL):
        for index in range(size):
            proof = inclusion_path(index, size, read(size))
            assert proof == naive.path(index, LEAVES[:size])
            verify_inclusion(index, size, HASHES[index], proof, ROOTS[size])
        for old in range(1, size + 1):
            proof = consistency_path(old, size, read(size))
            assert proof == naive.proof(old, LEAVES[:size])
            verify_consistency(old, size, proof, ROOTS[old], ROOTS[size])


@given(st.integers(1, 130), st.data())
@settings(derandomize=True, database=None, deadline=None)
def test_larger_proofs(size: int, data: st.DataObject) -> None:
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    proof = inclusion_path(index, size, read(size))
    assert proof == naive.path(index, LEAVES[:size])
    verify_inclusion(index, size, HASHES[index], proof, ROOTS[size])
    proof = consistency_path(old, size, read(size))
    assert proof == naive.proof(old, LEAVES[:size])
    verify_consistency(old, size, proof, ROOTS[old], ROOTS[size])


def test_every_turned_bit_is_seen() -> None:
    inclusion = naive.path(5, LEAVES[:11])
    consistency = naive.proof(6, LEAVES[:11])
    for bit in range(256):
        for place in range(len(inclusion) + 2):
            parts = [HASHES[5], ROOTS[11], *inclusion]
            parts[place] = _turned(parts[place], bit)
            with pytest.raises(ProofInvalid, match="another root"):
                verify_inclusion(5, 11, parts[0], parts[2:], parts[1])
        for place in range(len(consistency) + 2):
            parts = [ROOTS[6], ROOTS[11], *consistency]
            parts[place] = _turned(parts[place], bit)
            with pytest.raises(ProofInvalid, match="another root"):
                verify_consistency(6, 11, parts[2:], parts[0], parts[1])


def _turned(hash_: bytes, bit: int) -> bytes:
    return (int.from_bytes(hash_, "big") ^ 1 << bit).to_bytes(32, "big")


@pytest.mark.parametrize("size", range(2, SMALL))
def test_no_proof_passes_for_another_leaf_or_another_beginning(size: int) -> None:
    for index in range(size):
        proof = naive.path(index, LEAVES[:size])
        for other in range(size):
            if other != index:
                with pytest.raises(ProofInvalid):
                    verify_inclusion(other, size, HASHES[index], proof, ROOTS[size])
                with pytest.raises(ProofInvalid):
                    verify_inclusion(index, size, HASHES[other], proof, ROOTS[size])
    for old in range(1, size):
        proof = naive.proof(old, LEAVES[:size])
        for other in range(1, size):
            if other != old:
                with pytest.raises(ProofInvalid):
                    verify_consistency(old, size, proof, ROOTS[other], ROOTS[size])


@pytest.mark.parametrize("size", range(1, SMALL))
def test_a_proof_with_a_hash_more_or_less_is_refused(size: int) -> None:
    for index in range(size):
        proof = naive.path(index, LEAVES[:size])
        for place in range(len(proof) + 1):
            longer = [*proof[:place], ROOTS[1], *proof[place:]]
            with pytest.raises(ProofInvalid) as found:
                verify_inclusion(index, size, HASHES[index], longer, ROOTS[size])
            assert found.value.reason == "PROOF_TOO_LONG"
        for place in range(len(proof)):
            with pytest.raises(ProofInvalid) as found:
                verify_inclusion(index, size, HASHES[index], proof[:place] + proof[place + 1 :], ROOTS[size])
            assert found.value.reason == "PROOF_TOO_SHORT"
    for old in range(1, size + 1):
        proof = naive.proof(old, LEAVES[:size])
        for other in ([*proof, ROOTS[1]], [ROOTS[old], *proof], proof[:-1] if proof else [ROOTS[1]]):
            with pytest.raises(ProofInvalid):
                verify_consistency(old, size, other, ROOTS[old], ROOTS[size])


@pytest.mark.parametrize("length", [0, 1, 31, 33, 64])
def test_every_hash_has_32_bytes_also_one_that_the_verdict_does_not_need(length: int) -> None:
    bad = b"x" * length
    for leaf, proof, root in ((bad, [], ROOTS[1]), (HASHES[0], [], bad), (HASHES[0], [bad], ROOTS[1])):
        with pytest.raises(ProofInvalid) as found:
            verify_inclusion(0, 1, leaf, proof, root)
        assert found.value.reason == "HASH_LENGTH"
    for proof, root1, root2 in (([bad], ROOTS[1], ROOTS[1]), ([], bad, ROOTS[1]), ([], bad, bad)):
        with pytest.raises(ProofInvalid) as found:
            verify_consistency(1, 1, proof, root1, root2)
        assert found.value.reason == "HASH_LENGTH"


@pytest.mark.parametrize(
    ("index", "size", "reason"),
    [
        (-1, 1, "INDEX_RANGE"),
        (0, 0, "INDEX_RANGE"),
        (1, 1, "INDEX_RANGE"),
        (0, -1, "SIZE_RANGE"),
        (0, SIZE_MAX + 1, "SIZE_RANGE"),
    ],
)
def test_numbers_out_of_range(index: int, size: int, reason: str) -> None:
    with pytest.raises(ProofInvalid) as found:
        verify_inclusion(index, size, HASHES[0], [], ROOTS[1])
    assert found.value.reason == reason
    with pytest.raises(ValueError):
        inclusion_path(index, size, read(1))


@pytest.mark.parametrize(("size1", "size2"), [(0, 0), (0, 5), (5, 3), (-1, 5), (1, SIZE_MAX + 1)])
def test_sizes_between_which_there_is_no_proof(size1: int, size2: int) -> None:
    with pytest.raises(ProofInvalid):
        verify_consistency(size1, size2, [], EMPTY_ROOT, ROOTS[5])
    with pytest.raises(ValueError):
        consistency_path(size1, size2, read(5))


def test_the_largest_tree_there_may_be() -> None:
    def node(level: int, index: int) -> bytes:
        return leaf_hash(b"%d %d" % (level, index))

    # 2^63 − 1 leaves are one complete subtree of each height below 63, the highest first.
    root = node(0, SIZE_MAX - 1)
    for level in range(1, 63):
        root = naive.H(b"\x01" + node(level, (SIZE_MAX >> level) - 1) + root)
    proof = inclusion_path(SIZE_MAX - 1, SIZE_MAX, node)
    verify_inclusion(SIZE_MAX - 1, SIZE_MAX, node(0, SIZE_MAX - 1), proof, root)
    with pytest.raises(ProofInvalid):
        verify_inclusion(SIZE_MAX - 2, SIZE_MAX, node(0, SIZE_MAX - 1), proof, root)
