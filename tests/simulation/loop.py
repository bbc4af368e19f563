"""An event loop whose time is a number: callbacks run in the order in which they were asked for, timers by instant.

Owns the order of everything in a simulated process. It never waits and never asks the machine what time it is, so the
same work gives the same order of steps.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from contextvars import Context
from typing import Any


class Stuck(Exception):
    """Nothing is left to run and the awaited thing is not done: it waits for what never comes."""


class VirtualLoop(asyncio.AbstractEventLoop):
    """As much of an event loop as a lane over a store in memory needs."""

    def __init__(self) -> None:
        self.troubles: list[str] = []
        """What callbacks and tasks left behind that nobody asked for."""
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._now_s = 0.0
        self._numbered = 0

    # ---- what asyncio asks of a loop ----

    def time(self) -> float:
        return self._now_s

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self, name=name, context=context)

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._numbered += 1
        heapq.heappush(self._timers, (when, self._numbered, handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """A cancelled timer is passed over when its turn comes."""

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.troubles.append(f"{context.get('message')}: {context.get('exception')!r}")

    # ---- for the simulation ----

    def begin(self, works: Iterable[Coroutine[Any, Any, Any]]) -> list[asyncio.Task[Any]]:
        """Tasks that start with the next `settle`, in this order."""
        return [asyncio.Task(work, loop=self) for work in works]

    def settle(self) -> None:
        """Run until everything waits for something that is not there yet."""
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        ready, timers = self._ready, self._timers
        try:
            while ready or timers:
                if not ready:
                    when, _, timer = heapq.heappop(timers)
                    self._now_s = max(self._now_s, when)
                    ready.append(timer)
                handle = ready.popleft()
                if not handle.cancelled():
                    handle._run()
        finally:
            asyncio._set_running_loop(before)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of a coroutine, or what it raises. Raises Stuck."""
        (task,) = self.begin([work])
        self.settle()
        if not task.done():
            task.cancel()
            self.settle()
            raise Stuck("nothing is left to run")
        return task.result()
