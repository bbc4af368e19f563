"""One namespace: a hub's core with its own ledger, clock, seed and certificates, and how it is stopped and begun again.

Owns the calls that are open in it, and the moments in which its hub stands still (snapshot, reset, crash). It decides
nothing about calls: that is the dispatcher's, as in any hub.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from erxhub.app import HubCore, Shared, start_core
from erxhub.config import Config
from erxhub.crypto.ca import TrustDomain
from erxhub.engine import HubStopped
from erxhub.keys import HubKeys
from erxhub.ledger.entry import EntryKind, Header
from erxhub.ledger.store import Store, StoredEntry, StoreFormatError, StoreUnavailable, Wanted
from erxhub.ports import Clock, Pause, SeededIds, machine_us
from erxhub.rpc.methods import METHODS
from erxhub.sandbox import inprocess
from erxhub.sandbox.answers import lost_connection
from erxhub.sandbox.clocks import SandboxClock
from erxhub.sandbox.connections import Connections
from erxhub.sandbox.errors import SandboxRefused
from erxhub.sandbox.exchange import Exchanges, ExchangesState
from erxhub.sandbox.faults import Faults
from erxhub.sandbox.faulty_store import FaultyStore
from erxhub.sandbox.identities import VALID_MS, Mint, Minted
from erxhub.sandbox.ledgers import Ledger
from erxhub.sandbox.magic import Magic, Prepared
from erxhub.sandbox.observed import Observed
from erxhub.sandbox.profiles import profile_rules
from erxhub.sandbox.recorder import Recorder
from erxhub.starting import LedgerRefused
from erxhub.v1 import sandbox_pb2

_log = logging.getLogger("erxhub.sandbox")

QUIET_MS: Final = 1_000
"""How long calls in flight may take to end before a snapshot or a reset cuts them: a fault may hold one for minutes."""

SNAPSHOTS_MAX: Final = 32

_FAR_MS: Final = 100 * 366 * 86_400_000
_PAGE: Final = 1_000

Behavior: TypeAlias = Callable[[Any, Observed], Any]
"""What serves a method: a coroutine function, or one that gives the messages of a stream."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What all namespaces of a sandbox stand on. `cut` cuts connections of the data port, and no others."""

    trust: TrustDomain
    keys: HubKeys
    shared: Shared
    config: Config
    machine: Clock
    pause: Pause
    cut: Callable[[Connections], None]
    started_us: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a namespace is made to be. `start_at_ms` 0: now."""

    name: str
    trust_domain: str
    owner: str
    seed: int
    start_at_ms: int
    standing: bool
    profile: sandbox_pb2.FaultProfile.ValueType
    suite: str


@dataclass(frozen=True, slots=True)
class _Snapshot:
    image: Any
    drawn: int
    now_ms: int
    exchanges: ExchangesState


class Namespace:
    """A running namespace; fulfils `Control`. Made by `begin`, ended by `end`."""

    def __init__(self, ground: Ground, plan: Plan, ledger: Ledger, prepared: Prepared) -> None:
        self.plan = plan
        self.mint = Mint(ground.trust, plan.trust_domain)
        self.over = asyncio.Event()
        """Set once it has ended."""
        self._ground = ground
        self._ledger = ledger
        # A ledger in a file may be somebody's from yesterday; a copy in memory was verified with its template.
        verified = ground.config.start_verify_entries if ledger.database else 0
        self._config = replace(ground.config, trust_domain=plan.trust_domain, start_verify_entries=verified)
        self._created_ms = plan.start_at_ms or ground.machine.now_ms()
        self._clock = SandboxClock(self._created_ms, standing=plan.standing, machine=ground.machine)
        self._drawn_from = plan.seed
        self._ids = SeededIds(self._drawn_from)
        self.faults = Faults(plan.seed)
        self.faults.set(profile_rules(plan.profile))
        self.connections = Connections()
        self.recorder = Recorder(self)
        self.exchanges = Exchanges(self, recorder=self.recorder, faults=self.faults, magic=Magic(self, prepared))
        self._core: HubCore | None = None
        # Empty while the hub stands still.
        self._behaviors: Mapping[str, Behavior] = {}
        self._snapshots: dict[str, _Snapshot] = {}
        self._founding: _Snapshot | None = None
        self._calls: set[asyncio.Task[Any]] = set()
        self._lost: set[asyncio.Task[Any]] = set()
        self._open = asyncio.Event()
        # Taken in this order. A crash takes the second only: it may come out of the passing of time.
        self._time = asyncio.Lock()
        self._turn = asyncio.Lock()
        self._crashes: set[asyncio.Task[None]] = set()
        self._callers: dict[tuple[str, str], tuple[Minted, int]] = {}

    # ---- what it is ----

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def seed(self) -> int:
        return self.plan.seed

    @property
    def trust_domain(self) -> str:
        return self.plan.trust_domain

    @property
    def store(self) -> Store:
        return self._running.store

    @property
    def database(self) -> str:
        """Path of the ledger's file; empty in memory."""
        return self._ledger.database

    @property
    def snapshots(self) -> list[str]:
        """Names of the snapshots, oldest first."""
        return list(self._snapshots)

    @property
    def core(self) -> HubCore:
        """The hub that serves it now. Raises SandboxRefused (SBX_UNAVAILABLE) while there is none."""
        return self._running

    @property
    def _running(self) -> HubCore:
        if self._core is None:
            raise SandboxRefused("SBX_UNAVAILABLE", {"namespace": self.name})
        return self._core

    def now_ms(self) -> int:
        return self._clock.now_ms()

    def machine_us(self) -> int:
        return machine_us() - self._ground.started_us

    async def pause(self, ms: int) -> None:
        await self._ground.pause(ms)

    async def goaway(self) -> None:
        self.exchanges.losing_connections()
        self._ground.cut(self.connections)

    async def log_entries(self, after_position: int, limit: int) -> list[StoredEntry]:
        return await self.store.log(after_position, limit)

    def issue(self, role: str, peer_id: str, defects: Sequence[sandbox_pb2.IdentityDefect.ValueType] = ()) -> Minted:
        """A client certificate that leads here, from now until long after its clock. Raises SandboxRefused."""
        return self.mint.issue(role, peer_id, self._ground.machine.now_ms(), self.now_ms(), defects)

    async def as_caller(self, role: str, peer_id: str, method: str, request: Any) -> Any:
        handler = self._running.dispatcher.handler(METHODS[method])
        return await inprocess.call(handler, self._certificate(role, peer_id), method, request)

    def _certificate(self, role: str, peer_id: str) -> bytes:
        """Of an in-process caller: kept, because issuing takes longer than most calls."""
        now_ms = self.now_ms()
        held = self._callers.get((role, peer_id))
        if held is None or not held[1] <= now_ms < held[1] + VALID_MS:
            minted = self.issue(role, peer_id)
            held = self._callers[role, peer_id] = (minted, now_ms)
        return held[0].cert_pem

    # ---- calls ----

    async def serve(self, method: str, request: Any, context: Observed) -> bytes:
        """A call with one reply, through whatever serves the method now. A crash cuts it off."""
        behavior = self._behaviors.get(method) or await self._behavior(method, context)
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        try:
            reply: bytes = await behavior(request, context)
        except asyncio.CancelledError:
            await self._cut_off(task, context)
            raise
        finally:
            self._calls.discard(task)
        return reply

    async def serve_stream(self, method: str, request: Any, context: Observed) -> AsyncIterator[bytes]:
        """A call with a stream of replies; a crash cuts it off."""
        behavior = self._behaviors.get(method) or await self._behavior(method, context)
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        try:
            async for message in behavior(request, context):
                yield message
        except asyncio.CancelledError:
            await self._cut_off(task, context)
            raise
        finally:
            self._calls.discard(task)

    async def _behavior(self, method: str, context: Observed) -> Behavior:
        """What serves the method once the hub no longer stands still."""
        await self.ready()
        behavior = self._behaviors.get(method)
        if behavior is None:
            await context.answer(lost_connection())
        return behavior

    async def _cut_off(self, task: asyncio.Task[Any], context: Observed) -> None:
        """What a caller sees of a dead process; returns when it was not the crash that cancelled the call."""
        if task in self._lost:
            task.uncancel()
            await context.answer(lost_connection())

    def _lose_calls(self) -> None:
        self.exchanges.losing_connections()
        for task in self._calls:
            self._lost.add(task)
            task.add_done_callback(self._lost.discard)
            task.cancel()
        self._calls.clear()

    # ---- life ----

    def _hold(self) -> None:
        """New calls wait from now on, until `_open` is set."""
        self._open.clear()
        self._behaviors = {}

    async def ready(self) -> None:
        """Returns once no snapshot, reset or crash is under way. Where one of them left no hub, it is started now; if
        that fails again, there is none and the next call tries again.
        """
        await self._open.wait()
        if self._core is None:
            await self._try_again()

    async def begin(self, founding: Any = None) -> None:
        """Start the hub on the ledger and take calls. `founding` is the image that the ledger was made of, if it was.

        Raises StoreUnavailable, LedgerRefused, StoreFormatError.
        """
        async with self._turn:
            if self._ledger.database:
                self._drawn_from = await self._seed_for_file()
                self._ids = SeededIds(self._drawn_from)
            if founding is not None:
                self._founding = self._snapshot(founding)
            await self._start()
            self._open.set()

    async def _seed_for_file(self) -> int:
        """A seed of its own for each state that a file was left in: what a process before this one drew never comes
        again, unless nothing that it drew was kept.
        """
        store = await self._ledger.open()
        newest = await store.last_position()
        leaves = [entry.leaf_hash for entry in await store.log(newest - 1, 1)] if newest else []
        await self._ledger.close()
        return int.from_bytes(hashlib.sha256(b"%d" % self.seed + b"".join(leaves)).digest()[:8], "big")

    async def found(self) -> None:
        """Take the present state for the one that a reset goes back to."""
        async with self._stilled():
            self._founding = await self._imaged()

    async def end(self) -> None:
        """Finish what is in flight, and stop. A ledger in memory is gone."""
        async with self._time, self._turn:
            self._hold()
            self.over.set()
            try:
                await self._halt()
                await self._ledger.end()
            finally:
                self._open.set()

    async def crash(self) -> None:
        task = asyncio.create_task(self._crash(), name=f"crash of {self.name}")
        self._crashes.add(task)
        task.add_done_callback(self._crashes.discard)
        # The crash cancels whoever waits for it here, but for the operator: it must go on all the same.
        await asyncio.shield(task)

    async def _crash(self) -> None:
        self._hold()
        core, self._core = self._core, None
        self._lose_calls()
        if core is not None:
            await core.abandon()
        if self._turn.locked():
            # A snapshot or a reset was about to stop this hub, and begins the next one.
            return
        await self._try_again()

    async def _try_again(self) -> None:
        """Start a hub where there is none. A failure is logged: whoever asks for the hub then learns of it."""
        async with self._turn:
            if self._core is not None or self.over.is_set():
                # Whoever held the lock in between has begun the next one already, or ended the namespace.
                return
            self._hold()
            try:
                await self._ledger.close()
                await self._start_again()
            except StoreUnavailable as error:
                _log.error("the hub of namespace %s did not start again: %s", self.name, error)
            finally:
                self._open.set()

    async def _start_again(self) -> None:
        """As `_start`, but with one error for a ledger that no hub can start on: StoreUnavailable."""
        try:
            await self._start()
        except (LedgerRefused, StoreFormatError) as error:
            raise StoreUnavailable(str(error)) from error

    async def reset(self) -> None:
        """Back to the moment of its creation; snapshots stay."""
        async with self._stilled():
            assert self._founding is not None
            await self._restore(self._founding, self._first_ms())
            self.recorder.clear()

    async def save(self, snapshot: str) -> None:
        """Keep the present state under a name, in place of an earlier one. Raises SandboxRefused (SBX_LIMIT)."""
        if snapshot not in self._snapshots and len(self._snapshots) >= SNAPSHOTS_MAX:
            raise SandboxRefused("SBX_LIMIT", {"snapshots_max": str(SNAPSHOTS_MAX)})
        async with self._stilled():
            made = await self._imaged()
            before = self._snapshots.pop(snapshot, None)
            self._snapshots[snapshot] = made
            if before is not None:
                await self._ledger.forget(before.image)

    async def load(self, snapshot: str) -> None:
        """Back to a snapshot. Raises SandboxRefused (SBX_SNAPSHOT_UNKNOWN)."""
        if snapshot not in self._snapshots:
            raise SandboxRefused("SBX_SNAPSHOT_UNKNOWN", {"snapshot": snapshot})
        async with self._stilled():
            kept = self._snapshots[snapshot]
            await self._restore(kept, kept.now_ms)

    async def _imaged(self) -> _Snapshot:
        return self._snapshot(await self._ledger.image())

    def _snapshot(self, image: Any) -> _Snapshot:
        return _Snapshot(image, self._ids.count, self.now_ms(), self.exchanges.export_state())

    async def _restore(self, snapshot: _Snapshot, at_ms: int) -> None:
        await self._ledger.restore(snapshot.image)
        self._ids = SeededIds(self._drawn_from, snapshot.drawn)
        self._clock.set_back(at_ms)
        self.exchanges.import_state(snapshot.exchanges)

    @asynccontextmanager
    async def _stilled(self) -> AsyncIterator[None]:
        """The hub stands still and its ledger is closed; then it begins anew, whatever happened meanwhile.

        Beginning anew is part of a snapshot too: what follows a save and what follows its load then begin alike.
        """
        async with self._time, self._turn:
            if self.over.is_set():
                raise SandboxRefused("SBX_NAMESPACE_UNKNOWN", {"namespace": self.name})
            self._hold()
            try:
                await self._halt()
                await self._ledger.close()
                try:
                    yield
                finally:
                    await self._start_again()
            finally:
                self._open.set()

    async def _start(self) -> None:
        store = FaultyStore(await self._ledger.open(), control=self, faults=self.faults, recorder=self.recorder)
        core = await start_core(
            store,
            self._ground.keys,
            shared=self._ground.shared,
            authority=lambda: self._ground.trust.ca_pem,
            config=self._config,
            clock=self._clock,
            ids=self._ids,
            pause=self._ground.pause,
            # A clock that stands passes no deadline unseen: whoever moves it writes them.
            sweeps=not self.plan.standing,
        )
        self._core = core
        self._behaviors = {
            name: _behavior_in(self.exchanges.wrapped(method, core.dispatcher.handler(method)))
            for name, method in METHODS.items()
        }

    async def quiet(self) -> None:
        """End the watches, and return once no call is open, or QUIET_MS are over."""
        if self._core is not None:
            self._core.engine.watches.end()
        if self._calls:
            await asyncio.wait(self._calls.copy(), timeout=QUIET_MS / 1000)

    async def _halt(self) -> None:
        core = self._core
        if core is None:
            return
        await self.quiet()
        self._lose_calls()
        await core.stop()
        self._core = None

    def _first_ms(self) -> int:
        """Where its clock begins after a reset: where it began, but one that runs with the machine's goes with it."""
        with_machine = not self.plan.standing and not self.plan.start_at_ms
        return self._ground.machine.now_ms() if with_machine else self._created_ms

    # ---- time ----

    async def advance(self, until_ms: int | None) -> list[StoredEntry]:
        """Let time pass until an instant, or None: until the earliest deadline. Returns what passing wrote, in order.

        The clock stops at each deadline on the way, so that each is written at its own instant. What retention no
        longer keeps is erased once it has arrived, where the hub does so by itself. Raises SandboxRefused
        (SBX_CLOCK_BACK, SBX_UNAVAILABLE).
        """
        async with self._time:
            now_ms = self.now_ms()
            if until_ms is None:
                due = await self._next_due(now_ms + _FAR_MS, set())
                until_ms = due[1] if due is not None else now_ms
            elif until_ms < now_ms:
                raise SandboxRefused("SBX_CLOCK_BACK", {"now_ms": str(now_ms)})
            await self._open.wait()
            before = await self.store.last_position()
            await self._pass(until_ms)
            return await self._fired(before)

    async def _pass(self, until_ms: int) -> None:
        stuck: set[bytes] = set()
        last: tuple[bytes, int] | None = None
        while (due := await self._next_due(until_ms, stuck)) is not None:
            if due == last:
                # Writing it changed nothing; time goes on without it.
                stuck.add(due[0])
                continue
            last = due
            self._clock.forward_to(due[1])
            await self._sweep(stuck)
        self._clock.forward_to(until_ms)
        while await self._sweep(stuck) >= self._config.sweep_streams_max:
            pass
        await self._in_lane(lambda core: core.erasing.day())

    async def _next_due(self, until_ms: int, without: set[bytes]) -> tuple[bytes, int] | None:
        """The stream with the earliest deadline until then, and the first instant after it."""
        await self._open.wait()
        store = self.store
        for key in await store.due(until_ms, 1 + len(without)):
            if key not in without:
                due_at_ms = (await store.read(Wanted(streams=frozenset({key})))).heads[key].due_at_ms
                return None if due_at_ms is None else (key, due_at_ms)
        return None

    async def _sweep(self, stuck: set[bytes]) -> int:
        return await self._in_lane(lambda core: core.engine.sweep(stuck))

    async def _in_lane(self, work: Callable[[HubCore], Awaitable[int]]) -> int:
        while True:
            await self._open.wait()
            core = self._running
            try:
                return await work(core)
            except (HubStopped, StoreUnavailable):
                if core is self._core:
                    raise SandboxRefused("SBX_UNAVAILABLE", {"namespace": self.name}) from None
                # A deadline's commit met a crash: the next hub writes it.

    async def _fired(self, after_position: int) -> list[StoredEntry]:
        """The events after a position that no caller caused."""
        hub = f"hub/{self._config.hub_id}"
        found: list[StoredEntry] = []
        await self._open.wait()
        while page := await self.log_entries(after_position, _PAGE):
            await self._open.wait()
            after_position = page[-1].position
            for entry in page:
                header = Header.decode(entry.header)
                if header.kind == EntryKind.EVENT and header.actor == hub:
                    found.append(entry)
        return found


def _behavior_in(handler: Any) -> Behavior:
    """The one of a handler's kind; the others are None."""
    found: Behavior = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    return found
