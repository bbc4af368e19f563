"""A sandbox for tests, and one namespace of it as the place where a chain plays: clients, keys, clock, raw replies.

Must never sleep. It reaches into the sandbox only to read a ledger or a clock.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from erxhub.client import ClientIdentity, Connection, RetryPolicy, SandboxClient
from erxhub.crypto.suites import SigningKey
from erxhub.sandbox.namespace import Namespace
from erxhub.seed import SeedWorld
from erxhub.testing import RunningSandbox, running_sandbox
from erxhub.v1 import sandbox_pb2
from tests.chain import Chain
from tests.live import AGENCY, AUDITOR, CHANNEL, CLIENTS, HOSPITAL, PERSON, PHARMACY

START_MS = 1_795_140_000_000
UNKNOWN_RX = "330100000000000000000001"

STANDING = sandbox_pb2.CLOCK_MODE_STANDING
RUNNING = sandbox_pb2.CLOCK_MODE_RUNNING


@dataclass
class RequestIds:
    """The same ids in every place, so that two places differ in nothing that a caller says."""

    numbers: Any = field(default_factory=lambda: itertools.count(1))

    def new(self) -> str:
        return f"request-{next(self.numbers):012d}"


class Recording(Connection):
    """A connection that keeps the bytes of each unary exchange, in `kept`."""

    kept: list[tuple[bytes, bytes | str]]

    async def unary(self, method: Any, request: Any, timeout_s: float | None = None) -> Any:
        raw = request.SerializeToString(deterministic=True)
        try:
            reply = await super().unary(method, request, timeout_s)
        except Exception as error:
            self.kept.append((raw, f"{type(error).__name__} {error}"))
            raise
        self.kept.append((raw, reply.SerializeToString(deterministic=True)))
        return reply


class _Environment:
    def __init__(self, clock: Any) -> None:
        self._clock = clock

    def now_ms(self) -> int:
        return int(self._clock.now_ms())

    def below(self, bound: int) -> int:
        return bound // 2

    async def sleep_ms(self, duration_ms: int) -> None:
        raise AssertionError("no client waits here")


@dataclass
class Place:
    """A namespace, or a hub, as callers see it; what `Chain` asks of a live hub."""

    target: str
    clock: Any
    keys: dict[tuple[str, str], SigningKey]
    receipt_keys: dict[str, bytes]
    identities: Any
    stack: AsyncExitStack
    request_ids: RequestIds = field(default_factory=RequestIds)
    kept: list[tuple[bytes, bytes | str]] = field(default_factory=list)
    world: Any = SeedWorld
    _clients: dict[tuple[str, str], Any] = field(default_factory=dict)

    async def connect(self, role: str, peer_id: str, identity: ClientIdentity | None = None) -> Any:
        connection = Recording(
            self.target,
            identity or await self.identities(role, peer_id),
            receipt_keys=self.receipt_keys,
            environment=_Environment(self.clock),
            retry=RetryPolicy(attempts=1, stream_resumes=0),
        )
        connection.kept = self.kept
        await self.stack.enter_async_context(connection)
        reason = {"case_reason": "case T-1"} if role == "auditor" else {}
        return CLIENTS[role](connection, request_ids=self.request_ids, **reason)

    async def client(self, role: str, peer_id: str) -> Any:
        if (role, peer_id) not in self._clients:
            self._clients[role, peer_id] = await self.connect(role, peer_id)
        return self._clients[role, peer_id]

    async def hospital(self, code: str = HOSPITAL) -> Any:
        return await self.client("hospital", code)

    async def pharmacy(self, code: str = PHARMACY) -> Any:
        return await self.client("pharmacy", code)

    async def channel(self, channel_id: str = CHANNEL) -> Any:
        return await self.client("channel", channel_id)

    async def agency(self, area: str = AGENCY) -> Any:
        return await self.client("agency", area)

    async def auditor(self) -> Any:
        return await self.client("auditor", AUDITOR)

    def key(self, subject: str, institution: str) -> SigningKey:
        return self.keys[subject, institution]

    def chain(self, number: int = 1) -> Chain:
        """A prescription whose number does not depend on what other tests did."""
        return Chain(self, hospital_rx_no=f"RX-PLACE-{number:04d}")  # type: ignore[arg-type]

    async def activated(self) -> Place:
        """With the person's e-voucher activated."""
        await (await self.channel()).activate_voucher(person_no=PERSON)
        return self


@dataclass
class Box:
    """A running sandbox and its operator's client."""

    sandbox: RunningSandbox
    operator: SandboxClient
    stack: AsyncExitStack

    def namespace(self, name: str) -> Namespace:
        """The namespace itself, to read."""
        domain = self.sandbox.trust.trust_domain
        found = self.sandbox.sandbox.namespaces.of_domain(domain if name == "default" else f"{name}.{domain}")
        assert found is not None
        return found

    async def identity(self, name: str, role: str, peer_id: str, *defects: Any) -> ClientIdentity:
        """A fresh certificate of the namespace."""
        return await self.operator.mint_identity(role, peer_id, defects=defects, namespace=name)

    async def place(self, name: str) -> Place:
        """An existing namespace as a place."""
        world = await self.operator.get_world(namespace=name)
        return Place(
            target=self.sandbox.target,
            clock=self.namespace(name),
            keys={
                (signer.subject_code, signer.institution_code): SigningKey.from_pem(signer.private_key_pem)
                for signer in world.signers
            },
            receipt_keys=dict(world.receipt_keys),
            identities=lambda role, peer_id: self.identity(name, role, peer_id),
            stack=self.stack,
        )

    async def new(self, name: str, **made: Any) -> Place:
        """A new namespace as a place, on a standing clock from START_MS, with signatures that repeat."""
        await self.operator.create_namespace(name, **({"start_at_ms": START_MS, "suite": "EdDSA"} | made))
        return await (await self.place(name)).activated()

    async def ledger(self, name: str) -> list[tuple[Any, ...]]:
        """Every entry of a namespace's ledger, byte for byte."""
        await self.namespace(name).ready()
        return await entries_of(self.namespace(name).store)


async def entries_of(store: Any) -> list[tuple[Any, ...]]:
    """Every entry of a store, byte for byte."""
    return [
        (entry.position, entry.stream_kind, entry.stream_key, entry.header, entry.leaf_hash, entry.salt, entry.payload)
        for entry in await store.log(0, 1_000_000)
    ]


@asynccontextmanager
async def opened(**arguments: Any) -> AsyncIterator[Box]:
    """A sandbox with its operator connected."""
    async with running_sandbox(**arguments) as sandbox, AsyncExitStack() as stack:
        client = await stack.enter_async_context(SandboxClient.connect(sandbox.control_target, sandbox.operator))
        yield Box(sandbox, client, stack)
