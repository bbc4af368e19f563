"""What the log says about itself, byte for byte."""

from __future__ import annotations

from hashlib import sha256

import pytest

from erxhub.proof.records import map_value, maproot_leaf

ROOT = bytes(range(32))
LEAF = bytes.fromhex("01ffff0000000000000102") + ROOT


def test_the_leaf_of_a_map_root_has_one_form() -> None:
    assert maproot_leaf(0x102, ROOT) == LEAF


def test_a_root_of_another_length_is_a_bug() -> None:
    with pytest.raises(ValueError):
        maproot_leaf(1, ROOT[:31])


def test_the_value_of_a_stream_binds_version_and_leaf_hash() -> None:
    assert map_value(7, ROOT) == sha256(bytes(7) + b"\x07" + ROOT).digest()
