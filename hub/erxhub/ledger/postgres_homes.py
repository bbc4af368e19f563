"""Where streams live: remembered by this hub, because it never changes, and looked for otherwise.

Owns the memory. It must never remember what is not committed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from erxhub.ledger.postgres_plan import Home
from erxhub.ledger.postgres_session import Connection

_REMEMBERED_MAX: Final = 200_000
"""Some 40 MB. A stream not in here costs a look-up over all shards."""

FIND_EVERYWHERE: Final = "SELECT key, shard, no FROM stream WHERE key = ANY($1::bytea[])"


class Homes:
    """What was met last is forgotten last."""

    def __init__(self) -> None:
        self._known: dict[bytes, Home] = {}

    def get(self, stream_key: bytes) -> Home | None:
        """The home of a stream, if this hub knows it."""
        return self._known.get(stream_key)

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
        unknown = []
        for key in stream_keys:
            home = self._known.get(key)
            if home is None:
                unknown.append(key)
            else:
                found[key] = home
        if unknown:
            looked_for = {key: Home(shard, no) for key, shard, no in await connection.fetch(FIND_EVERYWHERE, unknown)}
            self.remember(looked_for)
            found.update(looked_for)
        return found
