"""What the two adapters have in common: configure, reset, resume, pull_events, shutdown.

Owns: which product an adapter speaks for, and since when. Must never: do business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable
from typing import Any, Final

from erxhub.conform.drivers.product import OutcomeUnknown, Product, Rejected, ToldClock
from erxhub.conform.drivers.wire import Operation, farewell

VERSION: Final = "1"
SUITES: Final = ["ES256", "EdDSA", "SM2-SM3"]
OPTIONS: Final = ["wait_scale", "receipts"]
"""Options of the protocol that both reference drivers have, beside their operations."""


class BaseAdapter(ABC):
    """`act(verb)` makes an operation of an act of the product."""

    role = ""
    options: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.clock = ToldClock()
        self._product: Product | None = None
        self.operations: dict[str, Operation] = {
            "describe": self._describe,
            "configure": self._configure,
            "reset": self._reset,
            "resume": self._resume,
            "pull_events": self._pull_events,
            "shutdown": farewell,
        }

    @abstractmethod
    def make(self, arguments: dict[str, Any]) -> Product:
        """The product of the adapter's role."""

    @property
    def product(self) -> Product:
        """Raises ValueError before `configure`."""
        if self._product is None:
            raise ValueError("configure comes first")
        return self._product

    def told_time(self, at_ms: int) -> None:
        self.clock.told_ms = at_ms

    async def close(self) -> None:
        if self._product is not None:
            await self._product.close()
            self._product = None

    def act(self, verb: str) -> Operation:
        """An operation that is one act, about the prescription that it names."""

        async def operation(arguments: dict[str, Any]) -> dict[str, Any]:
            return await self.product.perform(verb, str(arguments.get("rx_no") or ""), arguments)

        return operation

    async def _describe(self, _: dict[str, Any]) -> dict[str, Any]:
        return {
            "name": f"erxhub reference {self.role}",
            "version": VERSION,
            "role": self.role,
            "protocol": 1,
            "features": list(dict.fromkeys([*self.operations, *OPTIONS, *self.options])),
            "suites": SUITES,
            "clock": "told",
        }

    async def _configure(self, arguments: dict[str, Any]) -> dict[str, Any]:
        await self.close()
        self._product = self.make(arguments)
        return {"outcome": "ok"}

    async def _reset(self, _: dict[str, Any]) -> dict[str, Any]:
        self.product.forget()
        return {"outcome": "ok"}

    async def _resume(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"outcome": "ok", "resolved": await self.product.resume()}

    async def _pull_events(self, _: dict[str, Any]) -> dict[str, Any]:
        return await answered(self._pulled())

    async def _pulled(self) -> dict[str, Any]:
        events = await self.product.pull()
        return {"events": events, "state": self.product.known(), "cursor": self.product.journal.get("cursor") or ""}


async def answered(reading: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    """The result of a reading that is no act."""
    try:
        return {"outcome": "ok"} | await reading
    except OutcomeUnknown as unknown:
        return {"outcome": "unknown", "code": unknown.code}
    except Rejected as rejected:
        by = "product" if rejected.by_product else "hub"
        return {"outcome": "rejected", "code": rejected.code, "reason": rejected.reason, "by": by}
