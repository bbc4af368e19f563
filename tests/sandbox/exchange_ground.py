"""One hub behind the exchange layer, on a real port: as a namespace has it, without the rest of a sandbox.

The control is a small one of the test's own. Nothing sleeps: pauses are counted and over at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from erxhub.app import HubCore, Shared, start_core
from erxhub.client import Connection, RetryPolicy
from erxhub.config import Config
from erxhub.crypto.ca import TrustDomain
from erxhub.keys import HubKeys
from erxhub.ledger.memory import MemoryStore
from erxhub.ledger.store import Store, StoredEntry
from erxhub.ports import ManualClock, SeededIds, system_pause
from erxhub.rpc.methods import METHODS, Method
from erxhub.rpc.server import FixedIdentity, HubServer, ServerIdentity
from erxhub.sandbox import inprocess
from erxhub.sandbox.exchange import Exchanges
from erxhub.sandbox.faults import Faults
from erxhub.sandbox.faulty_store import FaultyStore
from erxhub.sandbox.magic import Magic, Prepared, prepare_world
from erxhub.sandbox.magic_data import world_additions
from erxhub.sandbox.recorder import Filter, Recorder
from erxhub.seed import SeedWorld, register_world
from erxhub.seed.catalogue import catalogue
from erxhub.v1 import catalog_pb2, sandbox_pb2
from tests.live import (
    CERTIFICATE_DAYS,
    CHILD,
    CLIENTS,
    DAY_MS,
    EMPLOYEE,
    PERSON,
    REQUEST_IDS,
    START_MS,
    AuditorClient,
    Live,
    _Environment,
)

CONFIG = Config(drain_ms=200, drain_quiet_ms=0)


class NoPause:
    """Waits that are over at once; `waited_ms` is what they would have taken."""

    def __init__(self) -> None:
        self.waited_ms: list[int] = []

    async def __call__(self, ms: int) -> None:
        self.waited_ms.append(ms)
        await asyncio.sleep(0)


class Machine:
    """A clock that says how often it was asked."""

    def __init__(self) -> None:
        self.us = 0

    def __call__(self) -> int:
        self.us += 1
        return self.us


@dataclass
class Ground(Live):
    """A live hub with the exchange layer in front; fulfils Control."""

    pauses: NoPause = field(default_factory=NoPause)
    seed: int = 7
    name: str = "test"
    trust_domain: str = "erxhub.test"
    ledger: Store = field(default_factory=MemoryStore)
    replies: list[tuple[str, bytes]] = field(default_factory=list)
    crashes: int = 0
    goaways: int = 0
    recorder: Recorder = field(init=False)
    faults: Faults = field(init=False)
    magic: Magic = field(init=False)
    exchanges: Exchanges = field(init=False)
    core: HubCore | None = None
    shared: Shared = field(default_factory=lambda: Shared.make(None))
    wrapped: bool = True
    _machine: Machine = field(default_factory=Machine)
    _calls: set[asyncio.Task[Any]] = field(default_factory=set)
    _lost: set[asyncio.Task[Any]] = field(default_factory=set)
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    ids: SeededIds = field(default_factory=lambda: SeededIds(11))

    def equip(self, prepared: Prepared | None = None) -> None:
        self.recorder = Recorder(self)
        self.faults = Faults(self.seed)
        self.magic = Magic(self, prepared)
        self.exchanges = Exchanges(self, recorder=self.recorder, faults=self.faults, magic=self.magic)

    # ---- Control ----

    @property
    def store(self) -> Store:
        assert self.core is not None
        return self.core.store

    def now_ms(self) -> int:
        return self.clock.now_ms()

    def machine_us(self) -> int:
        return self._machine()

    async def pause(self, ms: int) -> None:
        await self.pauses(ms)

    async def goaway(self) -> None:
        self.goaways += 1

    async def crash(self) -> None:
        task = asyncio.create_task(self._crash())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)

    async def _crash(self) -> None:
        self.crashes += 1
        core, self.core = self.core, None
        assert core is not None
        self.exchanges.losing_connections()
        for call in self._calls:
            self._lost.add(call)
            call.cancel()
        await core.abandon()
        await self.begin()

    async def as_caller(self, role: str, peer_id: str, method: str, request: Any) -> Any:
        assert self.core is not None
        issued = self.trust.issue_tls(role, peer_id, self.start_ms, CERTIFICATE_DAYS)
        return await inprocess.call(self.core.dispatcher.handler(METHODS[method]), issued.cert_pem, method, request)

    async def log_entries(self, after_position: int, limit: int) -> list[StoredEntry]:
        return await self.store.log(after_position, limit)

    # ---- the hub ----

    async def begin(self) -> None:
        store: Any = self.ledger
        if self.wrapped:
            store = FaultyStore(store, control=self, faults=self.faults, recorder=self.recorder)
        self.core = await start_core(
            store,
            self.hub_keys,
            shared=self.shared,
            authority=lambda: self.trust.ca_pem,
            config=CONFIG,
            clock=self.clock,
            ids=self.ids,
            pause=system_pause,
            sweeps=False,
        )

    def handler(self, method: Method) -> Any:
        """What HubServer asks a dispatcher for: the handler of the hub that runs when the call comes."""

        def behind() -> Any:
            assert self.core is not None
            handler = self.core.dispatcher.handler(method)
            return self.exchanges.wrapped(method, handler) if self.wrapped else handler

        async def unary(request: Any, context: Any) -> Any:
            handler = behind()
            task = asyncio.current_task()
            assert task is not None
            self._calls.add(task)
            try:
                reply = await (handler.stream_unary if method.streams_in else handler.unary_unary)(request, context)
                self.replies.append((method.name, reply))
                return reply
            except asyncio.CancelledError:
                if task in self._lost:
                    task.uncancel()
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "connection lost")
                raise
            finally:
                self._calls.discard(task)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            handler = behind()
            async for message in (handler.stream_stream if method.streams_in else handler.unary_stream)(
                request, context
            ):
                yield message

        if method.streams_in and method.streams_out:
            return grpc.stream_stream_rpc_method_handler(stream)
        if method.streams_in:
            return grpc.stream_unary_rpc_method_handler(unary)
        if method.streams_out:
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(unary)

    async def drained(self) -> None:
        """Nothing is waited for."""

    # ---- for tests ----

    async def import_magic_drugs(self) -> None:
        """The magic drugs, and the edition of the next day that has one of them no longer."""
        additions = world_additions()
        rows = [
            *(row.drug for file in catalogue() for row in file.entries if row.HasField("drug")),
            *additions.drugs,
        ]
        agency = await self.agency()
        for edition, day, left_out in (
            ("magic", "2026-11-20", frozenset[str]()),
            ("magic-next", "2026-11-21", additions.delisted),
        ):
            await agency.import_catalog(
                dataset=catalog_pb2.CATALOG_DATASET_DRUGS,
                edition=edition,
                valid_from_on=day,
                file_sha256=bytes(32),
                entries=[
                    catalog_pb2.CatalogEntry(line=line, drug=drug)
                    for line, drug in enumerate(rows, start=2)
                    if drug.code not in left_out
                ],
            )

    def rule(self, **fields: Any) -> None:
        """Set one fault rule."""
        self.faults.set([sandbox_pb2.FaultRule(**fields)])

    def told(self, rule_id: str) -> sandbox_pb2.FaultRule:
        """A rule with its counters."""
        return next(rule for rule in self.faults.list() if rule.rule_id == rule_id)

    async def traffic(self, **wanted: Any) -> list[sandbox_pb2.Exchange]:
        """What was recorded."""
        return [exchange async for exchange in self.recorder.exchanges(Filter(**wanted))]

    async def patient(self, attempts: int = 1, role: str = "hospital", code: str = "H33010099901") -> Any:
        """A client that tries so often."""
        connection = Connection(
            self.target,
            self.identity(role, code),
            receipt_keys=self.receipt_keys,
            environment=_Environment(self.clock),
            retry=RetryPolicy(attempts=attempts, backoff_ms=10, backoff_max_ms=20),
        )
        await self.stack.enter_async_context(connection)
        kind = CLIENTS[role]
        reason = {"case_reason": "case T-1"} if kind is AuditorClient else {}
        return kind(connection, request_ids=REQUEST_IDS, **reason)


@dataclass
class _Port:
    """Where the hub listens, as Live asks it."""

    port: int


@dataclass(frozen=True)
class _Founded:
    """A world that was registered once, and is copied for each test."""

    trust: TrustDomain
    keys: HubKeys
    world: SeedWorld
    ledger: MemoryStore
    drawn: SeededIds
    prepared: Prepared | None


_FOUNDED: dict[tuple[str, bool], _Founded] = {}


async def _founded(suite: str, magic: bool) -> _Founded:
    if (suite, magic) not in _FOUNDED:
        trust = TrustDomain.in_memory("erxhub.test", START_MS)
        keys = HubKeys.generate(SeededIds(99))
        async with _running(trust, keys, MemoryStore(), SeededIds(11), START_MS) as live:
            world = await register_world(await live.agency(), trust, START_MS, suite)
            channel = await live.channel()
            for person_no in (PERSON, EMPLOYEE, CHILD):
                await channel.activate_voucher(person_no=person_no)
            prepared = await prepare_world(live.as_caller) if magic else None
            await live.import_magic_drugs() if magic else None
        ledger = live.ledger
        assert isinstance(ledger, MemoryStore)
        _FOUNDED[suite, magic] = _Founded(trust, keys, world, ledger, live.ids, prepared)
    return _FOUNDED[suite, magic]


@asynccontextmanager
async def _running(
    trust: TrustDomain, keys: HubKeys, ledger: Store, ids: SeededIds, at_ms: int, wrapped: bool = True
) -> AsyncIterator[Ground]:
    issued = trust.issue_tls("hub", "hub-1", START_MS, CERTIFICATE_DAYS, hosts=("localhost", "127.0.0.1"))
    async with AsyncExitStack() as stack:
        made: Any = None
        clock = ManualClock(at_ms)
        live = Ground(made, clock, trust, keys, START_MS, stack, made, ledger=ledger, ids=ids, wrapped=wrapped)
        live.equip()
        await live.begin()
        server = HubServer(live, FixedIdentity(ServerIdentity(issued.cert_pem, issued.key_pem, trust.ca_pem)), CONFIG)
        hub: Any = _Port(await server.start("127.0.0.1:0"))
        live.hub = hub
        try:
            yield live
        finally:
            await stack.aclose()
            await server.cut()
            if live.core is not None:
                await live.core.stop()
            live.shared.close()


@asynccontextmanager
async def ground(*, suite: str = "EdDSA", wrapped: bool = True, magic: bool = False) -> AsyncIterator[Ground]:
    """A seeded hub behind the exchange layer (or, not `wrapped`, without it); `magic`: in the magic world."""
    founded = await _founded(suite, magic)
    begins_ms = START_MS + (DAY_MS if magic else 0)
    ids = SeededIds(7)
    async with _running(founded.trust, founded.keys, founded.ledger.copy(), ids, begins_ms, wrapped) as live:
        live.world = founded.world
        live.magic = Magic(live, founded.prepared)
        live.exchanges.magic = live.magic
        live.recorder.clear()
        yield live
