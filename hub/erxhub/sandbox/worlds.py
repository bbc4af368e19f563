"""The fictional worlds that namespaces begin with: founded once for a suite and a day, then copied.

Owns which template a namespace starts from. How a world is registered is not known here: the hub's side has no client,
so a founder comes in.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final, Protocol

from erxhub.ledger.memory import MemoryStore
from erxhub.sandbox.magic import Prepared
from erxhub.v1 import sandbox_pb2

FRESH_MS: Final = 180 * 86_400_000
"""A template serves the starts of so long a time; keys of the world are good for a year from its founding."""

TEMPLATES_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class World:
    """Who is registered and with which keys, and what is made ready for the magic values."""

    signers: tuple[sandbox_pb2.WorldSigner, ...]
    parties: tuple[sandbox_pb2.WorldParty, ...]
    prepared: Prepared

    def party(self, kind: str) -> str:
        """The id of the first party of a kind. Raises LookupError."""
        found = next((party.id for party in self.parties if party.kind == kind), None)
        if found is None:
            raise LookupError(f"the world has no {kind}")
        return found


@dataclass(frozen=True, slots=True)
class Template:
    """A ledger with a world in it, never changed. Good for clocks that begin at `good_from_ms` or later."""

    store: MemoryStore
    world: World
    good_from_ms: int


class Founder(Protocol):
    """Registers a world through the hub's own RPCs."""

    async def found(self, suite: str, at_ms: int) -> Template:
        """A template of this suite for clocks that begin at `at_ms` or later. Raises TrustDomainError."""


class Templates:
    """The templates of a sandbox. Two calls for the same one found it once."""

    def __init__(self, founder: Founder) -> None:
        self._founder = founder
        self._kept: dict[str, list[Template]] = {}
        self._lock = asyncio.Lock()

    async def of(self, suite: str, at_ms: int) -> Template:
        """One whose world is registered by then, and not so long ago that its keys have ended."""
        async with self._lock:
            kept = self._kept.setdefault(suite, [])
            fitting = [one for one in kept if one.good_from_ms <= at_ms < one.good_from_ms + FRESH_MS]
            if fitting:
                # The earliest founded, so that which one it is does not hang on who asked in between.
                return min(fitting, key=lambda one: one.good_from_ms)
            made = await self._founder.found(suite, at_ms)
            kept.append(made)
            if len(kept) > TEMPLATES_MAX:
                # Never the first: that one is of the present, and asked for again and again.
                del kept[1]
            return made
