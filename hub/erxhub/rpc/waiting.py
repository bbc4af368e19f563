"""What a reply waits for: a checkpoint of the log, or its cosignatures (`wait_for`).

Owns the wait between a command's commit and its reply. It delays a reply and never changes one, and never turns an
accepted command into a failure: what cannot be reached is told in a trailer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from erxhub.ledger.log import Checkpoint, LogEmpty
from erxhub.ledger.store import Store, StoreUnavailable
from erxhub.ports import Pause
from erxhub.proof.pages import PageDamaged
from erxhub.proof.tiles import TileDamaged
from erxhub.publishing import NotWitnessed
from erxhub.v1 import common_pb2

REACHED_TRAILER: Final = "erxhub-reached"
"""DURABLE, INTEGRATED or WITNESSED: what a reply that waited has reached."""

MARGIN_MS: Final = 200
"""Before the caller's deadline: the time in which the reply travels."""

WITHOUT_DEADLINE_MS: Final = 60_000
"""How long a call without a deadline waits at most: the merge delay, within which an entry is in the log."""

_LOOK_MS: Final = 20
"""Between two looks for the position of an entry that another hub has yet to give."""

_UNPLACED: Final = 2**63 - 1


Covering = Callable[[int], Awaitable[Checkpoint]]
"""A checkpoint that covers a position of the log, once there is one."""


class Waiting:
    """Waits for one hub's log."""

    def __init__(self, integrated: Covering, witnessed: Covering, store: Store, pause: Pause) -> None:
        self._integrated = integrated
        self._witnessed = witnessed
        self._store = store
        self._pause = pause

    async def wait(
        self, level: int, receipt: common_pb2.Receipt, remaining_s: float | None
    ) -> common_pb2.WaitFor.ValueType:
        """Wait until the entries of a receipt have reached a level, or the time for it is over; what they reached."""
        budget_ms = WITHOUT_DEADLINE_MS if remaining_s is None else int(remaining_s * 1000) - MARGIN_MS
        reached = common_pb2.WAIT_FOR_DURABLE
        if not receipt.entries:
            return reached  # nothing was written, now or at the first time
        timer: asyncio.Task[None] = asyncio.ensure_future(self._pause(max(budget_ms, 0)))
        try:
            position = await _before(timer, self._position(receipt))
            if position is None:
                return reached
            if await _before(timer, self._integrated(position)) is None:
                return reached
            reached = common_pb2.WAIT_FOR_INTEGRATED
            if level == common_pb2.WAIT_FOR_WITNESSED and await _before(timer, self._witnessed(position)):
                reached = common_pb2.WAIT_FOR_WITNESSED
        except (StoreUnavailable, NotWitnessed, LogEmpty, TileDamaged, PageDamaged):
            pass  # the command stands, and the trailer says how far it got
        finally:
            timer.cancel()
            await asyncio.gather(timer, return_exceptions=True)
        return reached

    async def _position(self, receipt: common_pb2.Receipt) -> int:
        """Where the newest of the entries stands in the log."""
        last = receipt.entries[-1]
        while True:
            (entry,) = await self._store.entries(last.stream_key, last.version - 1, 1)
            if entry.position < _UNPLACED:
                return entry.position
            await self._pause(_LOOK_MS)


async def _before(timer: asyncio.Task[None], coming: Awaitable[Any]) -> Any:
    """What is coming, or None when the timer was first."""
    task = asyncio.ensure_future(coming)
    try:
        await asyncio.wait({task, timer}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
