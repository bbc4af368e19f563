"""What faults, magic values and triggers may ask of the namespace that they work in.

Owns the protocol only; `namespace.Namespace` fulfils it. Nothing here reaches past the namespace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from erxhub.admission import Violation
from erxhub.ledger.store import Store, StoredEntry


class RefusedCall(Exception):
    """The hub refused an in-process call: its refusal code, status name, sentences, the code's metadata, broken rules.

    Where a bare status came back, `code` is empty.
    """

    def __init__(
        self,
        code: str,
        status: str,
        en: str,
        zh: str,
        metadata: Mapping[str, str],
        violations: Sequence[Violation] = (),
    ) -> None:
        super().__init__(f"{code or status}: {en}")
        self.code = code
        self.status = status
        self.en = en
        self.zh = zh
        self.metadata = metadata
        self.violations = tuple(violations)


class Control(Protocol):
    """One namespace, as what works inside it sees it."""

    @property
    def name(self) -> str:
        """Unique in the sandbox."""

    @property
    def seed(self) -> int:
        """0 to 2^64 - 1."""

    @property
    def trust_domain(self) -> str:
        """Of the certificates that lead here."""

    @property
    def store(self) -> Store:
        """The ledger, to read. Whoever writes here breaks the hub."""

    def now_ms(self) -> int:
        """The namespace's clock, UTC milliseconds."""

    def machine_us(self) -> int:
        """Microseconds since the sandbox started, by the machine; for arrival times."""

    async def pause(self, ms: int) -> None:
        """Wait, really."""

    async def goaway(self) -> None:
        """Cut every connection of the namespace; a call that asks for it is cut too."""

    async def crash(self) -> None:
        """The namespace's hub loses its memory and starts again on its ledger; calls in flight, the asking one among
        them, see a lost connection."""

    async def as_caller(self, role: str, peer_id: str, method: str, request: Any) -> Any:
        """A unary call by role/peer_id, past faults and recorder; `method` as in METHODS, e.g.
        "RegistryService/GetPerson".

        Raises RefusedCall, KeyError for an unknown method.
        """

    async def log_entries(self, after_position: int, limit: int) -> list[StoredEntry]:
        """Entries after a position, in the order of commit."""
