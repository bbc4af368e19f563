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

from erxhub.core.randomness import Randomness


class _Alphabet:
    """Turns random bytes into random characters.

    Bytes at or above the largest multiple of the alphabet's size are thrown away, so that every character is equally
    likely.
    """

    __slots__ = ("_table", "_thrown_away")

    def __init__(self, characters: bytes) -> None:
        size = len(characters)
        self._table = bytes(characters[byte % size] for byte in range(256))
        self._thrown_away = bytes(range(256 - 256 % size, 256))

    def read(self, drawn: bytes) -> str:
        """The characters that these bytes stand for, at most one for each."""
        return drawn.translate(self._table, self._thrown_away).decode("ascii")


_DIGITS: Final = _Alphabet(b"0123456789")
_LETTERS_AND_DIGITS: Final = _Alphabet(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_SPARE_BYTES: Final = 8
"""So many more than characters are drawn at once, because some are thrown away."""


def _block(seed: bytes, number: int, size: int) -> bytes:
    return hashlib.shake_256(seed + number.to_bytes(8, "big")).digest(size)


class Draw:
    """Random values of one command: a deterministic stream from a seed of 32 bytes.

    The stream is SHAKE-256 over the seed and a block counter, so a decision that is made again from the same seed draws
    the same values. Whoever does not know the seed cannot tell the values from random ones; the seed is kept nowhere.
    """

    __slots__ = ("_drawn", "_position", "_seed")

    _BLOCK_BYTES: Final = 512
    _BEGINNING_BYTES: Final = 136
    """What one round of SHAKE-256 gives. Most commands draw less, and need no whole block."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._drawn = b""
        self._position = 0

    def restart(self) -> None:
        """Give the same values again from the first: a decision made anew draws what it drew before."""
        self._position = 0

    def bytes(self, count: int) -> bytes:
        """`count` random bytes."""
        begin = self._position
        end = self._position = begin + count
        if end > len(self._drawn):
            self._draw(end)
        return self._drawn[begin:end]

    def _draw(self, end: int) -> None:
        if end <= self._BEGINNING_BYTES:
            self._drawn = _block(self._seed, 0, self._BEGINNING_BYTES)
            return
        blocks = -(-end // self._BLOCK_BYTES)
        begun = len(self._drawn) // self._BLOCK_BYTES
        whole = self._drawn[: begun * self._BLOCK_BYTES]
        self._drawn = whole + b"".join(_block(self._seed, number, self._BLOCK_BYTES) for number in range(begun, blocks))

    def _characters(self, alphabet: _Alphabet, count: int) -> str:
        found = ""
        while len(found) < count:
            found += alphabet.read(self.bytes(count + _SPARE_BYTES))
        return found[:count]

    def digits(self, count: int) -> str:
        """`count` random decimal digits."""
        return self._characters(_DIGITS, count)

    def token(self, count: int) -> str:
        """`count` random characters of A–Z, a–z, 0–9."""
        return self._characters(_LETTERS_AND_DIGITS, count)


class Clock(Protocol):
    """The hub's clock."""

    def now_ms(self) -> int:
        """UTC milliseconds since 1970."""


class Drawing(Randomness, Protocol):
    """Random values of one command, as `Draw` gives them."""

    def restart(self) -> None:
        """Give the same values again from the first."""


class Ids(Protocol):
    """Where random values come from."""

    def draw(self) -> Drawing:
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
