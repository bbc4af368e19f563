"""Where streams live: remembered by this hub, because it never changes, and looked for otherwise.

Owns the memory, and what a key tells of its stream's place. It must never remember what is not committed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from erxhub.ledger.placement import HASH_SHARDS, Placement, stream_shard
from erxhub.ledger.postgres_plan import Home
from erxhub.ledger.postgres_session import Connection

_REMEMBERED_MAX: Final = 200_000
"""Some 40 MB. A stream not in here, whose key tells nothing of its place, costs a look-up over all shards."""

FIND_IN_SHARD: Final = """
SELECT s.key, s.shard, s.no FROM unnest($1::integer[], $2::bytea[]) AS w(shard, key)
JOIN stream s ON s.shard = w.shard AND s.key = w.key
"""
FIND_EVERYWHERE: Final = "SELECT key, shard, no FROM stream WHERE key = ANY($1::bytea[])"


class Homes:
    """What was met last is forgotten last."""

    def __init__(self, placement: Placement) -> None:
        self._known: dict[bytes, Home] = {}
        self._placement = placement

    def get(self, stream_key: bytes) -> Home | None:
        """The home of a stream, if this hub knows it."""
        return self._known.get(stream_key)

    def told(self, stream_key: bytes) -> tuple[int, bool] | None:
        """The shard that a key tells of its stream, and whether the stream is surely there; None if it tells nothing.

        Such a key has `area` (six digits, "" for none), `beside` (b"" or a stream in the same shard) and `surely`.
        """
        key: Any = stream_key
        area: str | None = getattr(key, "area", None)
        if area is None:
            return None
        if not key.beside:
            return stream_shard(self._placement.of_number(area), stream_key), key.surely
        beside = self._known.get(key.beside)
        # What belongs to no area is spread by its own hash, and so are its neighbours.
        return None if beside is None or beside.shard < HASH_SHARDS else (beside.shard, key.surely)

    def remember(self, homes: Mapping[bytes, Home]) -> None:
        """Keep homes of streams whose first entry is committed."""
        known = self._known
        for key, home in homes.items():
            known.pop(key, None)
            known[key] = home
        while len(known) > _REMEMBERED_MAX:
            del known[next(iter(known))]

    async def find(self, connection: Connection, stream_keys: Iterable[bytes]) -> dict[bytes, Home]:
        """The homes of those of the streams that exist."""
        found: dict[bytes, Home] = {}
        unknown: list[bytes] = []
        told: list[tuple[int, bytes]] = []
        for key in stream_keys:
            home = self._known.get(key)
            place = self.told(key) if home is None else None
            if home is not None:
                found[key] = home
            elif place is not None:
                told.append((place[0], key))
                if not place[1]:
                    unknown.append(key)
            else:
                unknown.append(key)
        looked_for: dict[bytes, Home] = {}
        if told:
            rows = await connection.fetch(FIND_IN_SHARD, *zip(*told, strict=True))
            looked_for = {key: Home(shard, no) for key, shard, no in rows}
        unknown = [key for key in unknown if key not in looked_for]
        if unknown:
            rows = await connection.fetch(FIND_EVERYWHERE, unknown)
            looked_for.update((key, Home(shard, no)) for key, shard, no in rows)
        self.remember(looked_for)
        return found | looked_for
