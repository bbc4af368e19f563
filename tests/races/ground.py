"""What races and crashes are judged by: a record of every command sent, and the ledger's own record of each.

Owns the one comparison that all of them share: a command that was answered left exactly the entries of its receipt, and
a command that was not left all of its entries or none. Must never: repeat a call on its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from erxhub.client.base import UNARY_PATHS
from erxhub.ledger.entry import EntryKind, Header
from erxhub.ledger.store import AppendResult, Store, StoredEntry, Write
from erxhub.ledger.verify import verify_ledger
from erxhub.v1 import registry_pb2
from tests.live import DAY_MS, Live

Place = tuple[bytes, int, bytes]
"""Stream key, version, leaf hash."""


@dataclass
class Sent:
    """A command that went out: who sent it, the message, and the reply's bytes once there was one."""

    client: Any
    request: Any
    reply: bytes = b""
    failure: Exception | None = None

    @property
    def receipt(self) -> list[Place]:
        """The entries that the reply's receipt names."""
        _, reply_class = UNARY_PATHS[type(self.request)]
        reply: Any = reply_class.FromString(self.reply)
        return [(entry.stream_key, entry.version, entry.leaf_hash) for entry in reply.receipt.entries]


@dataclass
class Book:
    """Every command of some clients, by request id."""

    sent: dict[str, Sent] = field(default_factory=dict)
    replies: int = 0
    _grown: asyncio.Event = field(default_factory=asyncio.Event)

    async def reach(self, replies: int) -> None:
        """Return once there are so many replies; does not turn the loop meanwhile, which would slow the hubs down."""
        while self.replies < replies:
            self._grown.clear()
            await self._grown.wait()

    def keep(self, client: Any) -> Any:
        """Write down what this client sends and gets from now on, byte for byte."""
        connection = client.connection
        plain = connection.unary

        async def unary(method: Any, request: Any, timeout_s: float | None = None) -> Any:
            if not getattr(request, "request_id", ""):
                return await plain(method, request, timeout_s)
            note = self.sent.setdefault(request.request_id, Sent(client, request))
            try:
                reply, note.reply = await _exactly(plain, connection, request, timeout_s)
            except Exception as failure:
                note.failure = failure
                raise
            self.replies += 1
            self._grown.set()
            return reply

        connection.unary = unary
        return client

    @property
    def answered(self) -> list[Sent]:
        """The commands that were accepted."""
        return [note for note in self.sent.values() if note.reply]

    @property
    def unanswered(self) -> list[Sent]:
        """The commands that were refused or got no answer."""
        return [note for note in self.sent.values() if not note.reply]


async def _exactly(plain: Any, connection: Any, request: Any, timeout_s: float | None) -> tuple[Any, bytes]:
    path, reply_class = UNARY_PATHS[type(request)]
    seen = [b""]

    def read(data: bytes) -> Any:
        seen[0] = data
        return reply_class.FromString(data)

    method = connection.channel.unary_unary(
        path, request_serializer=type(request).SerializeToString, response_deserializer=read
    )
    reply = await plain(method, request, timeout_s)
    return reply, seen[0]


async def reply_bytes(client: Any, request: Any, timeout_s: float | None = None) -> bytes:
    """The reply to exactly this message, as it came over the wire. Raises what a call of the client raises."""
    plain = type(client.connection).unary.__get__(client.connection)
    _, data = await _exactly(plain, client.connection, request, timeout_s)
    return data


async def whole_log(store: Store) -> list[StoredEntry]:
    """Every entry of the ledger."""
    found: list[StoredEntry] = []
    while page := await store.log(found[-1].position if found else 0, 5_000):
        found += page
    return found


def events_by_request(log: Sequence[StoredEntry]) -> dict[str, list[Place]]:
    """The event entries that each request left, in the order of the ledger. Accesses and refusals are no effects."""
    found: dict[str, list[Place]] = {}
    for entry in log:
        header = Header.decode(entry.header)
        if header.kind is EntryKind.EVENT and header.request_id:
            found.setdefault(header.request_id, []).append((header.stream_key, header.version, entry.leaf_hash))
    return found


def event_types(log: Sequence[StoredEntry]) -> list[int]:
    """The type of every event entry."""
    headers = [Header.decode(entry.header) for entry in log]
    return [header.type for header in headers if header.kind is EntryKind.EVENT]


async def assert_each_once(store: Store, book: Book) -> None:
    """Every answered command left exactly its receipt's entries, no other command left any; the ledger verifies."""
    left = events_by_request(await whole_log(store))
    for request_id, note in book.sent.items():
        if note.reply:
            assert sorted(left.get(request_id, [])) == sorted(note.receipt), type(note.request).__name__
        else:
            assert request_id not in left, f"{type(note.request).__name__} left entries and ended in {note.failure!r}"
    verification = await verify_ledger(store)
    assert verification.findings == []


class GatedStore:
    """A store whose writes wait while the gate is shut, so that a test knows what is in flight."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self._gate = asyncio.Event()
        self._gate.set()
        self.arrived = asyncio.Event()
        self.appends = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Let no write through inside the block, or until it is opened there."""
        self._gate.clear()
        self.arrived.clear()
        try:
            yield
        finally:
            self.open()

    def open(self) -> None:
        """Let every write through."""
        self._gate.set()

    async def append(self, batch: Sequence[Write]) -> AppendResult:
        self.arrived.set()
        await self._gate.wait()
        self.appends += 1
        return await self._inner.append(batch)


async def found_pharmacies(live: Live, codes: Sequence[str]) -> None:
    """Register pharmacies and sign their base agreements."""
    agency = await live.agency()
    now_ms = live.clock.now_ms()
    for code in codes:
        await agency.register_institution(institution_code=code, name=f"示例药房 {code}（虚构）")
        await agency.sign_agreement(
            institution_code=code,
            kind=registry_pb2.AGREEMENT_KIND_BASE,
            agreement_no=f"RACE-{code}",
            valid_from_ms=now_ms,
            valid_until_ms=now_ms + 365 * DAY_MS,
            clauses=("scope", "conditions", "charge_and_settlement_standard", "payment_mode"),
        )


async def until_so(condition: Callable[[], bool], turns_max: int = 1_000_000) -> None:
    """Let the loop go round until something is so."""
    for _ in range(turns_max):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to be so")


async def turns(count: int) -> None:
    """Let the loop go round so many times."""
    for _ in range(count):
        await asyncio.sleep(0)
