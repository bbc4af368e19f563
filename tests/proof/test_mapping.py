"""The map's two verifications against a map that is built anew for every question."""

from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erxhub.proof.hashing import EMPTY_ROOT
from erxhub.proof.mapping import key_bit, varint, verify_absent, verify_present
from erxhub.proof.merkle import ProofInvalid
from tests.proof.naive import NaiveMap, bits, number

_short = st.binary(max_size=3)
_hash = st.binary(max_size=2).map(lambda data: sha256(data).digest())


def check(held: NaiveMap, key: bytes, *, strict32: bool) -> bytes:
    value, proof = held.prove(key)
    if value is None:
        verify_absent(held.root, key, proof, strict32=strict32)
        with pytest.raises(ProofInvalid):
            verify_present(held.root, key, sha256(b"any").digest(), proof, strict32=strict32)
    else:
        verify_present(held.root, key, value, proof, strict32=strict32)
        with pytest.raises(ProofInvalid):
            verify_absent(held.root, key, proof, strict32=strict32)
        with pytest.raises(ProofInvalid):
            verify_present(held.root, key, sha256(value).digest(), proof, strict32=strict32)
    return proof


@given(st.dictionaries(_short, _short, max_size=8), _short)
@settings(derandomize=True, database=None, deadline=None, max_examples=60)
def test_keys_of_any_length(entries: dict[bytes, bytes], other: bytes) -> None:
    held = NaiveMap(entries)
    for key in [*entries, other]:
        check(held, key, strict32=False)


@given(st.dictionaries(_hash, _hash, max_size=8), _hash)
@settings(derandomize=True, database=None, deadline=None, max_examples=60)
def test_keys_of_this_project(entries: dict[bytes, bytes], other: bytes) -> None:
    held = NaiveMap(entries)
    for key in [*entries, other]:
        check(held, key, strict32=True)


@given(st.dictionaries(_hash, _hash, min_size=1, max_size=6), _hash, st.data())
@settings(derandomize=True, database=None, deadline=None, max_examples=60)
def test_a_turned_bit_anywhere_is_seen(entries: dict[bytes, bytes], other: bytes, data: st.DataObject) -> None:
    held = NaiveMap(entries)
    key = data.draw(st.sampled_from([*entries, other]))
    value, proof = held.prove(key)
    parts = [bytearray(held.root), bytearray(value or b""), bytearray(proof)]
    part = data.draw(st.sampled_from([one for one in parts if one]))
    part[data.draw(st.integers(0, len(part) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    root, changed, shown = map(bytes, parts)
    if value is None:
        with pytest.raises(ProofInvalid):
            verify_absent(root, key, shown)
    else:
        with pytest.raises(ProofInvalid):
            verify_present(root, key, changed, shown)


@given(st.dictionaries(_hash, _hash, max_size=6), _hash, st.binary(max_size=120))
@settings(derandomize=True, database=None, deadline=None, max_examples=60)
def test_made_up_bytes_prove_nothing(entries: dict[bytes, bytes], key: bytes, proof: bytes) -> None:
    held = NaiveMap(entries)
    value, real = held.prove(key)
    if proof == real:
        return
    with pytest.raises(ProofInvalid):
        verify_absent(held.root, key, proof)
    with pytest.raises(ProofInvalid):
        verify_present(held.root, key, value or bytes(32), proof)


@given(st.binary(max_size=5))
@settings(derandomize=True, database=None, deadline=None, max_examples=60)
def test_the_bits_of_a_key(key: bytes) -> None:
    assert "".join(str(key_bit(key, n)) for n in range(64)) == bits(key, 64)


@given(st.integers(0, 2**64 - 1))
@settings(derandomize=True, database=None, deadline=None, max_examples=60)
def test_numbers(value: int) -> None:
    assert varint(value) == number(value)


def reason(proof: bytes, key: bytes = b"k", *, strict32: bool = False, root: bytes = bytes(32)) -> str:
    with pytest.raises(ProofInvalid) as found:
        verify_absent(root, key, proof, strict32=strict32)
    return found.value.reason


def test_lengths() -> None:
    hash_, long = sha256(b"").digest(), b"x" * 1_025
    for key, value in ((long, b""), (b"", long)):
        with pytest.raises(ProofInvalid):
            verify_present(hash_, key, value, b"", strict32=False)
    for key, value in ((b"k", hash_), (hash_, b"v"), (hash_ + b"x", hash_)):
        with pytest.raises(ProofInvalid):
            verify_present(hash_, key, value, b"")
    assert reason(b"", long) == "KEY_LENGTH"
    assert reason(b"", root=b"short") == "HASH_LENGTH"
    assert reason(varint(1_025) + long + b"\x00") == "KEY_LENGTH"
    assert reason(b"\x00" + varint(1_025) + long) == "VALUE_LENGTH"
    # In this project's maps the neighbour has 32 bytes and 32 bytes as well.
    assert reason(b"\x01a\x20" + hash_, hash_, strict32=True) == "KEY_LENGTH"
    assert reason(b"\x20" + hash_ + b"\x01a", sha256(b"k").digest(), strict32=True) == "VALUE_LENGTH"


def test_numbers_of_bits() -> None:
    hash_, key = sha256(b"").digest(), sha256(b"k").digest()
    present = varint(255) + hash_, varint(256) + hash_, varint(8_192) + hash_, varint(8_193) + hash_
    for proof, strict32, wanted in (
        (present[0], True, "ROOT_MISMATCH"),
        (present[1], True, "BIT_ORDER"),
        (present[2], False, "ROOT_MISMATCH"),
        (present[3], False, "BIT_ORDER"),
    ):
        with pytest.raises(ProofInvalid) as found:
            verify_present(hash_, key, hash_, proof, strict32=strict32)
        assert found.value.reason == wanted


@pytest.mark.parametrize(
    ("proof", "wanted"),
    [
        (b"\x80", "VARINT"),
        (b"\x80\x00", "VARINT"),
        (b"\xff" * 9 + b"\x02", "VARINT"),
        (b"\xff" * 9 + b"\x01", "TRUNCATED"),
        (b"\x80" * 100, "VARINT"),
        (b"\x01", "TRUNCATED"),
        (b"\x01k\x00", "SAME_KEY"),
        (b"\x01a\x00\x00", "TRUNCATED"),
    ],
)
def test_bytes_that_are_no_proof(proof: bytes, wanted: str) -> None:
    assert reason(proof) == wanted


def test_the_empty_map() -> None:
    verify_absent(EMPTY_ROOT, bytes(32), b"")
    assert reason(b"\x00\x00", root=EMPTY_ROOT) == "EMPTY_MAP"
    assert reason(b"") == "NOT_EMPTY"
    with pytest.raises(ProofInvalid):
        verify_present(EMPTY_ROOT, b"", b"", b"", strict32=False)
