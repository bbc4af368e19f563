"""Where a client meets the clock, chance and waiting.

Owns: the only reads of the time, of randomness and the only sleeps of the client library; everything else takes an
`Environment`. Must never: know what its values are used for.
"""

from __future__ import annotations

from asyncio import sleep
from secrets import randbelow
from time import time_ns
from typing import Protocol


class Environment(Protocol):
    """What a client needs from the world; tests and simulations bring their own."""

    def now_ms(self) -> int:
        """Milliseconds since 1970, UTC."""

    def below(self, bound: int) -> int:
        """A number from 0 to `bound` - 1, each as likely, that nobody can foretell."""

    async def sleep_ms(self, duration_ms: int) -> None:
        """Waits."""


class SystemEnvironment:
    """The machine's clock, its secure random source, and the event loop's timer."""

    def now_ms(self) -> int:
        return time_ns() // 1_000_000

    def below(self, bound: int) -> int:
        return randbelow(bound)

    async def sleep_ms(self, duration_ms: int) -> None:
        await sleep(duration_ms / 1000)


class SandboxEnvironment:
    """The machine's chance and timer, with the clock of a sandbox's namespace as it was last told.

    A clock that `runs` goes on from there with the machine's; one that stands is told again whenever it was moved.
    """

    def __init__(self, now_ms: int, *, runs: bool) -> None:
        self._machine = SystemEnvironment()
        self._runs = runs
        self.tell(now_ms)

    def tell(self, now_ms: int) -> None:
        """What the namespace's clock shows now."""
        self._told_ms, self._told_at_ms = now_ms, self._machine.now_ms()

    def now_ms(self) -> int:
        return self._told_ms + (self._machine.now_ms() - self._told_at_ms if self._runs else 0)

    def below(self, bound: int) -> int:
        return self._machine.below(bound)

    async def sleep_ms(self, duration_ms: int) -> None:
        await self._machine.sleep_ms(duration_ms)
