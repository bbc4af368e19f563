"""Clock, randomness and pauses: the only places where the hub meets them.

Everything else gets an instant or a drawn value handed in, so that a test can stand still and a simulation can repeat
itself byte for byte.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from dataclasses import dataclass
from typing import Final, Protocol

_TOKEN_ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


class Draw:
    """Random values of one command: a deterministic stream from a seed of 32 bytes.

    The stream is SHAKE-256 over the seed and a block counter, so a decision that is made again from the same seed draws
    the same values. Whoever does not know the seed cannot tell the values from random ones; the seed is kept nowhere.
    """

    __slots__ = ("_block", "_buffer", "_seed")

    _BLOCK_BYTES: Final = 512

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._block = 0
        self._buffer = b""

    def restarted(self) -> Draw:
        """The same values again from the first: a decision made anew draws what it drew before."""
        return Draw(self._seed)

    def bytes(self, count: int) -> bytes:
        """`count` random bytes."""
        while len(self._buffer) < count:
            block = hashlib.shake_256(self._seed + self._block.to_bytes(8, "big")).digest(self._BLOCK_BYTES)
            self._buffer += block
            self._block += 1
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def _below(self, bound: int, count: int) -> list[int]:
        # Bytes at or above the largest multiple of the bound are thrown away, so that every value is equally likely.
        limit = 256 - 256 % bound
        values: list[int] = []
        while len(values) < count:
            values += [byte % bound for byte in self.bytes(count + 8) if byte < limit]
        return values[:count]

    def digits(self, count: int) -> str:
        """`count` random decimal digits."""
        return "".join(map(str, self._below(10, count)))

    def token(self, count: int) -> str:
        """`count` random characters of A–Z, a–z, 0–9."""
        return "".join(chr(_TOKEN_ALPHABET[value]) for value in self._below(62, count))


class Clock(Protocol):
    """The hub's clock."""

    def now_ms(self) -> int:
        """UTC milliseconds since 1970."""


class Ids(Protocol):
    """Where random values come from."""

    def draw(self) -> Draw:
        """A fresh draw, one per command."""


class Pause(Protocol):
    """How the hub waits."""

    async def __call__(self, ms: int) -> None:
        """Return after `ms` milliseconds."""


@dataclass(frozen=True, slots=True)
class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        """UTC milliseconds since 1970."""
        return time.time_ns() // 1_000_000


@dataclass(slots=True)
class ManualClock:
    """A clock that moves only when told, for tests and sandboxes."""

    at_ms: int

    def now_ms(self) -> int:
        """The instant that was set."""
        return self.at_ms

    def advance(self, ms: int) -> None:
        """Move forward; a clock never goes back."""
        if ms < 0:
            raise ValueError("a clock never goes back")
        self.at_ms += ms


class RunningClock:
    """A clock that goes like the machine's from wherever it was set, for sandboxes."""

    def __init__(self, at_ms: int, machine: Clock) -> None:
        self._machine = machine
        self._offset_ms = at_ms - machine.now_ms()

    def now_ms(self) -> int:
        """The machine's instant, moved by what was set and advanced."""
        return self._machine.now_ms() + self._offset_ms

    def advance(self, ms: int) -> None:
        """Move forward; a clock never goes back."""
        if ms < 0:
            raise ValueError("a clock never goes back")
        self._offset_ms += ms


@dataclass(frozen=True, slots=True)
class SystemIds:
    """Randomness of the operating system."""

    def draw(self) -> Draw:
        """A draw from 32 fresh random bytes."""
        return Draw(os.urandom(32))


class SeededIds:
    """Draws that repeat: the same seed gives the same draws in the same order. Never for a real ledger."""

    def __init__(self, seed: int, count: int = 0) -> None:
        self._seed = seed
        self._count = count

    @property
    def count(self) -> int:
        """How many were drawn: with it the sequence goes on elsewhere from here."""
        return self._count

    def draw(self) -> Draw:
        """The next draw of the sequence."""
        self._count += 1
        return Draw(hashlib.sha256(b"erxhub seeded ids %d %d" % (self._seed, self._count)).digest())


def machine_us() -> int:
    """Microseconds of the machine's monotonic clock: for durations, never for instants."""
    return time.monotonic_ns() // 1_000


async def give_way() -> None:
    """Let the other tasks of the loop run once."""
    await asyncio.sleep(0)


async def system_pause(ms: int) -> None:
    """Wait by the event loop's clock."""
    await asyncio.sleep(ms / 1000)
