"""Pages of the map against the definition of the map, computed anew from all keys each time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erxhub.proof import pages
from erxhub.proof.hashing import EMPTY_ROOT
from erxhub.proof.pages import PageDamaged


def varint(number: int) -> bytes:
    return bytes((number,)) if number < 128 else bytes((number & 127 | 128, number >> 7))


def bit(key: bytes, number: int) -> int:
    return key[number // 8] >> (7 - number % 8) & 1


def naive_root(entries: Mapping[bytes, bytes]) -> bytes:
    """docs/formats.md, word for word."""
    keys = list(entries)
    if not keys:
        return EMPTY_ROOT
    if len(keys) == 1:
        return sha256(b"\x00\x20" + keys[0] + b"\x20" + entries[keys[0]]).digest()
    split = first_split(keys)
    left = {key: entries[key] for key in keys if not bit(key, split)}
    right = {key: entries[key] for key in keys if bit(key, split)}
    return sha256(b"\x01" + varint(split) + naive_root(left) + naive_root(right)).digest()


def first_split(keys: Collection[bytes]) -> int:
    return next(number for number in range(256) if len({bit(key, number) for key in keys}) == 2)


def naive_proof(entries: Mapping[bytes, bytes], key: bytes) -> tuple[bytes | None, bytes]:
    """Value and proof of a key."""
    if not entries:
        return None, b""
    if len(entries) == 1:
        (there, value), *_ = entries.items()
        return (value, b"") if there == key else (None, b"\x20" + there + b"\x20" + value)
    split = first_split(entries)
    near = {other: entries[other] for other in entries if bit(other, split) == bit(key, split)}
    far = {other: entries[other] for other in entries if bit(other, split) != bit(key, split)}
    value, proof = naive_proof(near, key)
    return value, proof + varint(split) + naive_root(far)


class Kept:
    """Pages in a dictionary."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}

    def read(self, paths: Collection[bytes]) -> dict[bytes, bytes]:
        return {path: self.rows[path] for path in paths if path in self.rows}

    def put(self, changes: Mapping[bytes, bytes]) -> bytes:
        update = pages.run(pages.update(changes), self.read)
        self.rows.update(update.pages)
        return update.root


# Keys that share long beginnings, also up to the last bits, beside keys that share none.
BEGINNINGS = [b"", bytes(10), b"\xff" * 31, bytes(31), b"\x10" * 17]


@st.composite
def keys(draw: st.DrawFn) -> bytes:
    beginning = draw(st.sampled_from(BEGINNINGS))
    return beginning + draw(st.binary(min_size=32 - len(beginning), max_size=32 - len(beginning)))


values = st.binary(min_size=32, max_size=32)
portions = st.lists(st.dictionaries(keys(), values, max_size=12), max_size=4)


@given(portions, keys())
@settings(max_examples=80, deadline=None)
def test_roots_and_proofs_are_those_of_the_definition(changes: list[dict[bytes, bytes]], other: bytes) -> None:
    kept, entries = Kept(), {}
    for portion in changes:
        entries.update(portion)
        assert kept.put(portion) == naive_root(entries)
        assert pages.run(pages.root(), kept.read) == naive_root(entries)
    wanted = [*entries, other]
    answers = pages.run(pages.prove(wanted), kept.read)
    assert {key: tuple(answer) for key, answer in answers.items()} == {key: naive_proof(entries, key) for key in wanted}


@given(portions)
@settings(max_examples=60, deadline=None)
def test_order_and_portions_leave_no_trace(changes: list[dict[bytes, bytes]]) -> None:
    kept, at_once = Kept(), Kept()
    entries: dict[bytes, bytes] = {}
    kept.put({})
    for portion in changes:
        kept.put(portion)
        entries.update(portion)
    at_once.put(dict(reversed(entries.items())))
    assert kept.rows == at_once.rows


def test_pages_that_miss_or_are_none_are_damage() -> None:
    entries = {bytes(30) + bytes((0, number)): bytes(32) for number in range(20)}
    kept = Kept()
    kept.put(entries)
    deepest = max(kept.rows, key=len)
    whole = kept.rows[deepest]
    for damaged in (None, b"", whole[:-1], whole + b"\x00", b"\x00\x01" + whole[2:]):
        rows = {path: data for path, data in kept.rows.items() if path != deepest}
        if damaged is not None:
            rows[deepest] = damaged
        key = next(key for key in entries if key.hex()[: len(deepest)] == deepest.hex()[1::2])
        with pytest.raises(PageDamaged):
            pages.run(pages.prove([key]), lambda paths, rows=rows: {path: rows[path] for path in paths if path in rows})
        with pytest.raises(PageDamaged):
            pages.run(
                pages.update({key: bytes(32)}),
                lambda paths, rows=rows: {path: rows[path] for path in paths if path in rows},
            )


@pytest.mark.parametrize(("key", "value"), [(bytes(31), bytes(32)), (bytes(32), bytes(33))])
def test_other_lengths_are_a_bug(key: bytes, value: bytes) -> None:
    with pytest.raises(ValueError):
        Kept().put({key: value})
