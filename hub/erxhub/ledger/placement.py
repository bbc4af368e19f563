"""Where things live when the ledger is spread over several nodes: the shard of a stream, a name, a list, a caller.

Owns the number of a shard and the question. Which area something belongs to is business knowledge, so the answer comes
from outside (see `Placement`). Must never change: a shard is part of every key, and a row is found by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Protocol

from erxhub.ledger.store import Write

HASH_SHARDS = 4096
"""Shards 0..4095 hold what belongs to no area; an area's shard is its six digits, which are never below 110000."""


class Placement(Protocol):
    """Which area things belong to: six digits, or "" for none. The same question has the same answer for ever."""

    def begun(self, write: Write) -> Mapping[bytes, str | bytes]:
        """For the streams that begin in this Write (version 1): the area, or the key of an older stream, or of one
        that begins here too, in whose shard it belongs. A stream that is left out belongs to no area.
        """

    def of_name(self, space: str, key: bytes) -> str:
        """The area of a unique name, from the name alone."""

    def of_list(self, space: str, key: bytes) -> str:
        """The area of a list."""

    def of_caller(self, caller: str) -> str:
        """The area of a caller's stored replies."""

    def of_number(self, digits: str) -> str:
        """The area of a stream whose number begins with these six digits."""


class NoAreas:
    """Everything is spread by its own hash: for a ledger that stays on one node, and for tests of stores."""

    def begun(self, write: Write) -> Mapping[bytes, str | bytes]:
        """No stream has an area."""
        return {}

    def of_name(self, space: str, key: bytes) -> str:
        """None."""
        return ""

    def of_list(self, space: str, key: bytes) -> str:
        """None."""
        return ""

    def of_caller(self, caller: str) -> str:
        """None."""
        return ""

    def of_number(self, digits: str) -> str:
        """None."""
        return ""


def stream_shard(area: str, stream_key: bytes) -> int:
    """The shard of a stream; without an area the first twelve bits of its key, which is a hash already."""
    return int(area) if area else int.from_bytes(stream_key[:2], "big") >> 4


def keyed_shard(area: str, space: str, key: bytes) -> int:
    """The shard of a name or a list."""
    return int(area) if area else _hashed(space.encode() + b"\0" + key)


def caller_shard(area: str, caller: str) -> int:
    """The shard of a caller's replies."""
    return int(area) if area else _hashed(caller.encode())


def _hashed(data: bytes) -> int:
    return int.from_bytes(sha256(data).digest()[:2], "big") >> 4
