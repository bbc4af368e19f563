"""The bytes of an entry. The golden values are worked out here with struct and hashlib alone, never by the module."""

from __future__ import annotations

import struct
from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erxhub.core.keys import stream_key
from erxhub.ledger.entry import (
    EntryKind,
    Header,
    HeaderMalformed,
    commitment,
    leaf_bytes,
    leaf_hash,
    seal,
)

RX_NO = b"110101" + b"012345678901234567890"
KEY = sha256(b"erxhub/v1/stream\x00" + struct.pack(">I", 12) + b"prescription" + RX_NO).digest()
CAUSE = bytes(range(32))
SALT = bytes(range(16))
PAYLOAD = "处方".encode()
PREV = b"\xaa" * 32
HEADER = Header(
    stream_kind="prescription",
    stream_key=KEY,
    version=2,
    kind=EntryKind.EVENT,
    type=0x0102,
    recorded_at_ms=1_750_000_000_123,
    actor="hospital/H11010100001",
    request_id="H11010100001202506150000000001",
    policy_digest=b"\x05" * 32,
    causes=(CAUSE,),
)


def field(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


HEADER_BYTES = (
    b"\x01"
    + field(b"prescription")
    + field(KEY)
    + field(struct.pack(">Q", 2))
    + field(b"\x01")
    + field(struct.pack(">H", 0x0102))
    + field(struct.pack(">Q", 1_750_000_000_123))
    + field(b"hospital/H11010100001")
    + field(b"H11010100001202506150000000001")
    + field(b"\x05" * 32)
    + field(CAUSE)
)
COMMITMENT = sha256(
    b"erxhub/v1/commit\x00"
    + SALT
    + struct.pack(">I", len(HEADER_BYTES))
    + HEADER_BYTES
    + struct.pack(">Q", len(PAYLOAD))
    + PAYLOAD
).digest()
LEAF = (
    b"\x01"
    + struct.pack(">H", 0x0102)
    + KEY
    + struct.pack(">Q", 2)
    + PREV
    + COMMITMENT
    + struct.pack(">Q", 1_750_000_000_123)
)

# The same example in full, so that an error common to the module and to the sums above would still show.
GOLDEN = {
    "stream_key": "90da1bd7a7ae8df3002a968dc582d807fd16fa27576b47df557928225e4bb6ed",
    "header": (
        "010000000c707265736372697074696f6e0000002090da1bd7a7ae8df3002a968dc582d807fd16fa27576b47df557928"
        "225e4bb6ed000000080000000000000002000000010100000002010200000008000001977420dc7b00000015686f7370"
        "6974616c2f4831313031303130303030310000001e483131303130313030303031323032353036313530303030303030"
        "303031000000200505050505050505050505050505050505050505050505050505050505050505000000200001020304"
        "05060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
    ),
    "commitment": "20f2c528220f4d6862b456de3a4def622ea0efc123475d6ca6879cd76033922f",
    "leaf": (
        "01010290da1bd7a7ae8df3002a968dc582d807fd16fa27576b47df557928225e4bb6ed0000000000000002aaaaaaaaaa"
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa20f2c528220f4d6862b456de3a4def622ea0efc123"
        "475d6ca6879cd76033922f000001977420dc7b"
    ),
    "leaf_hash": "fa5b829f392379b85e12142434803145c2e540781ee3263a7306cfbbbef27aa0",
}


def test_stream_key_is_the_hash_of_kind_and_id() -> None:
    assert stream_key("prescription", RX_NO) == KEY
    assert stream_key("access", b"") == sha256(b"erxhub/v1/stream\x00\x00\x00\x00\x06access").digest()


def test_header_has_golden_bytes() -> None:
    assert HEADER.encode() == HEADER_BYTES
    assert Header.decode(HEADER_BYTES) == HEADER


def test_commitment_leaf_and_leaf_hash_have_golden_bytes() -> None:
    assert commitment(SALT, HEADER_BYTES, PAYLOAD) == COMMITMENT
    assert leaf_bytes(0x0102, KEY, 2, PREV, COMMITMENT, 1_750_000_000_123) == LEAF
    assert len(LEAF) == 115
    assert leaf_hash(LEAF) == sha256(b"\x00" + LEAF).digest()
    entry = seal(HEADER, SALT, PAYLOAD, PREV)
    assert (entry.header_bytes, entry.commitment, entry.leaf_hash) == (
        HEADER_BYTES,
        COMMITMENT,
        sha256(b"\x00" + LEAF).digest(),
    )


def test_whole_example_matches_the_literal_bytes() -> None:
    entry = seal(HEADER, SALT, PAYLOAD, PREV)
    assert entry.header.stream_key.hex() == GOLDEN["stream_key"]
    assert entry.header_bytes.hex() == GOLDEN["header"]
    assert entry.commitment.hex() == GOLDEN["commitment"]
    leaf = leaf_bytes(0x0102, KEY, 2, PREV, entry.commitment, 1_750_000_000_123)
    assert leaf.hex() == GOLDEN["leaf"]
    assert entry.leaf_hash.hex() == GOLDEN["leaf_hash"]


def test_smallest_header_has_golden_bytes() -> None:
    header = Header("x", KEY, 1, EntryKind.ACCESS, 1, 0, "", "", b"", ())
    expected = (
        b"\x01\x00\x00\x00\x01x\x00\x00\x00\x20"
        + KEY
        + b"\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x01"
        + b"\x00\x00\x00\x01\x03\x00\x00\x00\x02\x00\x01\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00"
        + bytes(16)
    )
    assert header.encode() == expected
    assert Header.decode(expected) == header


@given(
    kind=st.sampled_from(EntryKind),
    stream_kind=st.text(st.characters(max_codepoint=127), min_size=1, max_size=20),
    version=st.integers(1, 2**64 - 1),
    type_=st.integers(1, 0xFFFE),
    recorded_at_ms=st.integers(0, 2**64 - 1),
    actor=st.text(st.characters(codec="utf-8"), max_size=32),
    request_id=st.text(st.characters(codec="utf-8"), max_size=64),
    policy_digest=st.sampled_from([b"", b"\x07" * 32]),
    causes=st.lists(st.binary(min_size=32, max_size=32), max_size=4),
)
def test_every_header_decodes_to_itself(
    kind: EntryKind,
    stream_kind: str,
    version: int,
    type_: int,
    recorded_at_ms: int,
    actor: str,
    request_id: str,
    policy_digest: bytes,
    causes: list[bytes],
) -> None:
    header = Header(
        stream_kind, KEY, version, kind, type_, recorded_at_ms, actor, request_id, policy_digest, tuple(causes)
    )
    assert Header.decode(header.encode()) == header


@given(st.integers(0, len(HEADER_BYTES) - 1), st.integers(1, 255))
def test_altered_header_is_malformed_or_another_header(at: int, difference: int) -> None:
    altered = bytearray(HEADER_BYTES)
    altered[at] ^= difference
    try:
        header = Header.decode(bytes(altered))
    except HeaderMalformed:
        return
    assert header != HEADER
    assert header.encode() == bytes(altered)


def test_truncated_header_is_malformed() -> None:
    for length in range(len(HEADER_BYTES)):
        with pytest.raises(HeaderMalformed):
            Header.decode(HEADER_BYTES[:length])


def rebuilt(**fields: bytes) -> bytes:
    parts = {
        "stream_kind": b"prescription",
        "stream_key": KEY,
        "version": struct.pack(">Q", 2),
        "kind": b"\x01",
        "type": b"\x01\x02",
        "recorded_at": struct.pack(">Q", 1),
        "actor": b"hub/1",
        "request_id": b"r",
        "policy_digest": b"",
        "causes": b"",
    }
    return b"\x01" + b"".join(field(part) for part in (parts | fields).values())


def test_rebuilt_header_is_well_formed() -> None:
    assert Header.decode(rebuilt()).actor == "hub/1"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02" + HEADER_BYTES[1:],
        HEADER_BYTES + b"\x00",
        rebuilt(stream_kind=b""),
        rebuilt(stream_kind="处方".encode()),
        rebuilt(stream_key=KEY[:31]),
        rebuilt(version=bytes(8)),
        rebuilt(version=b"\x00" * 8 + b"\x01"),
        rebuilt(version=b"\x01"),
        rebuilt(kind=b"\x00"),
        rebuilt(kind=b"\x04"),
        rebuilt(kind=b""),
        rebuilt(type=b"\x00\x00"),
        rebuilt(type=b"\xff\xff"),
        rebuilt(type=b"\x01"),
        rebuilt(recorded_at=bytes(7)),
        rebuilt(actor=b"\xff"),
        rebuilt(actor=b"a" * 129),
        rebuilt(actor="药".encode() * 43),
        rebuilt(request_id=b"\xc0\x80"),
        rebuilt(policy_digest=bytes(31)),
        rebuilt(causes=bytes(33)),
    ],
)
def test_bytes_outside_the_format_are_malformed(data: bytes) -> None:
    with pytest.raises(HeaderMalformed):
        Header.decode(data)


def test_header_outside_the_format_cannot_be_made() -> None:
    for change in (
        {"version": 0},
        {"version": 2**64},
        {"type": 0},
        {"type": 0xFFFF},
        {"recorded_at_ms": -1},
        {"actor": "a" * 129},
        {"causes": (b"short",)},
        {"policy_digest": b"short"},
        {"stream_key": b"short"},
        {"stream_kind": "药"},
    ):
        with pytest.raises(HeaderMalformed):
            replace(HEADER, **change)
    assert replace(HEADER, actor="药" * 42 + "ab").encode()


def test_only_the_first_entry_has_no_predecessor() -> None:
    with pytest.raises(ValueError):
        seal(HEADER, SALT, PAYLOAD, bytes(32))
    with pytest.raises(ValueError):
        seal(replace(HEADER, version=1), SALT, PAYLOAD, PREV)
    assert seal(replace(HEADER, version=1), SALT, PAYLOAD, bytes(32)).prev_leaf_hash == bytes(32)


def test_hashes_and_salts_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError):
        commitment(SALT + b"x", HEADER_BYTES, PAYLOAD)
    for key, prev, committed in ((KEY[1:], PREV, COMMITMENT), (KEY, PREV + b"x", COMMITMENT), (KEY, PREV, b"")):
        with pytest.raises(ValueError):
            leaf_bytes(1, key, 1, prev, committed, 0)
