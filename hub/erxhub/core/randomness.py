"""Random values as a decision draws them. Imports nothing, so that who only draws needs nothing else of the core."""

from __future__ import annotations

from typing import Protocol


class Randomness(Protocol):
    """Random values, drawn once per command; the same seed gives the same values in the same order."""

    def bytes(self, count: int) -> bytes:
        """`count` random bytes."""

    def digits(self, count: int) -> str:
        """`count` random decimal digits."""

    def token(self, count: int) -> str:
        """`count` random characters of A–Z, a–z, 0–9."""
