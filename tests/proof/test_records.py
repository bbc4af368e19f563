"""What the log says about itself, byte for byte."""

from __future__ import annotations

from hashlib import sha256

import pytest

from erxhub.proof.records import MapRoot, map_value, maproot_leaf, read_maproot_leaf

ROOT = bytes(range(32))
LEAF = bytes.fromhex("01ffff0000000000000102") + ROOT


def test_the_leaf_of_a_map_root_has_one_form() -> None:
    assert maproot_leaf(0x102, ROOT) == LEAF
    assert read_maproot_leaf(LEAF) == MapRoot(0x102, ROOT)


@pytest.mark.parametrize("leaf", [b"", LEAF[:-1], LEAF + b"\x00", b"\x02" + LEAF[1:], b"\x01\xff\xfe" + LEAF[3:]])
def test_other_bytes_are_no_map_root(leaf: bytes) -> None:
    with pytest.raises(ValueError):
        read_maproot_leaf(leaf)


def test_a_root_of_another_length_is_a_bug() -> None:
    with pytest.raises(ValueError):
        maproot_leaf(1, ROOT[:31])


def test_the_value_of_a_stream_binds_version_and_leaf_hash() -> None:
    assert map_value(7, ROOT) == sha256(bytes(7) + b"\x07" + ROOT).digest()
