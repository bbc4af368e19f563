"""Calls that come close to each other are admitted one right after another.

The first of them brings the code and data of an admission into the processor's caches, and the others find them there.
With gRPC's work between any two, each would fetch them anew: a tenth of an upload's CPU.

Owns the wait of a call before its admission. It never holds a caller back when there are few, or for long, and never
looks at what a call says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

CALLS: Final = 8
"""Calls that go in together; with more the caches win hardly anything, and the first wait for longer."""

WAIT_MS: Final = 4
"""How long the first of them waits at most."""


class Together:
    """Where calls wait for each other; at most CALLS - 1 at any time."""

    def __init__(self, awaits_more: Callable[[int], bool]) -> None:
        """`awaits_more` is the lane's: whether it is worth to wait, with so many calls here."""
        self._awaits_more = awaits_more
        self._waiting: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None

    async def enter(self) -> None:
        """Returns when this call may be admitted."""
        calls = len(self._waiting) + 1
        if calls >= CALLS or not self._awaits_more(calls):
            self._open()
            return
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._timer = loop.call_later(WAIT_MS / 1000, self._open)
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _open(self) -> None:
        """Let all that wait go in, in the order in which they came."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            # Its caller may have gone.
            if not turn.done():
                turn.set_result(None)
