"""Who waits until the log covers a position, and is told when it does.

Owns the waiting alone. It never decides which checkpoint counts: whoever calls `tell` does.
"""

from __future__ import annotations

import asyncio

from erxhub.ledger.log import Checkpoint


class Waiters:
    """Callers that wait, each for a position of its own."""

    def __init__(self) -> None:
        self._positions: dict[asyncio.Future[Checkpoint], int] = {}

    def __len__(self) -> int:
        return len(self._positions)

    async def wait(self, position: int) -> Checkpoint:
        """The first checkpoint told from now on that covers the entry at `position`. Raises what `fail` is given."""
        future: asyncio.Future[Checkpoint] = asyncio.get_running_loop().create_future()
        self._positions[future] = position
        try:
            return await future
        finally:
            self._positions.pop(future, None)

    def tell(self, made: Checkpoint) -> None:
        """A checkpoint counts from now on."""
        for future, position in self._positions.items():
            if position <= made.covered_position and not future.done():
                future.set_result(made)

    def fail(self, error: Exception) -> None:
        """There will be none any more."""
        for future in self._positions:
            if not future.done():
                future.set_exception(error)
