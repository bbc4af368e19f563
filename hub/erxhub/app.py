"""THE composition root: puts store, keys, packs, lane, queries and server together, and takes them apart again.

Nothing else constructs these. It owns the order of start and stop, the background sweep of deadlines, and that health
follows the lane. A hub is a core (store, lane, reads, dispatcher) behind a server; a sandbox has many cores behind one.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from erxhub.admission import FieldRules, SignatureProof
from erxhub.config import Config
from erxhub.crypto.suites import Verifier
from erxhub.engine import Engine, HubStopped
from erxhub.erasing import Erasing
from erxhub.high_water import HighWater
from erxhub.keys import HubKeys
from erxhub.ledger.store import Store, StoreUnavailable
from erxhub.policy.pack import PackLibrary, shipped_packs
from erxhub.ports import Clock, Ids, Pause, SystemClock, SystemIds, system_pause
from erxhub.proof.policy import Policy
from erxhub.publishing import Publisher
from erxhub.queries.base import ReadContext
from erxhub.rpc.calls import Calls
from erxhub.rpc.dispatch import Dispatcher
from erxhub.rpc.methods import METHODS, STATEMENTS
from erxhub.rpc.server import HubServer, IdentitySource, Layer
from erxhub.rpc.waiting import Waiting
from erxhub.starting import log_keys, prove_start
from erxhub.witnessing import Witnessing

_log = logging.getLogger("erxhub.app")

_LAST_WITNESSING_MS = 1_000
"""At the end of a hub, when whoever stopped it waits."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What the cores of one process can share: compiled field rules, the pool that verifies, and the policy packs."""

    rules: FieldRules
    verifier: Verifier
    packs: PackLibrary

    @classmethod
    def make(cls, packs: PackLibrary | None = None) -> Shared:
        """With every field rule compiled, so that no caller waits for it. `close` ends its threads."""
        rules = FieldRules(STATEMENTS)
        rules.warm([*(method.request for method in METHODS.values()), *STATEMENTS.values()])
        return cls(rules, Verifier(), packs or shipped_packs())

    def close(self) -> None:
        """End the pool; once nothing uses it any more."""
        self.verifier.close()


@dataclass(slots=True)
class HubCore:
    """A hub without its server: the lane over one store, and the dispatcher that serves it."""

    engine: Engine
    dispatcher: Dispatcher
    reads: ReadContext
    store: Store
    publisher: Publisher
    verified_entries: int
    erasing: Erasing
    _sweep: asyncio.Task[None] | None
    _publishing: asyncio.Task[None] | None
    _gathering: asyncio.Task[None] | None
    _high_water: HighWater | None

    async def end_sweep(self) -> None:
        """End the background sweep."""
        if self._sweep is not None:
            self._sweep.cancel()
            await asyncio.gather(self._sweep, return_exceptions=True)

    async def stop(self) -> None:
        """Finish what the lane has queued, then end it, and publish what it left. The store stays its owner's."""
        await self.end_sweep()
        await self.engine.stop()
        await self._end_publishing()
        if self._publishing is not None and self.store.integrates:
            try:
                await self.publisher.publish_all()
            except (StoreUnavailable, OSError, ValueError) as error:
                _log.warning("the last entries are not in the log yet: %s", error)
        await self._witness_the_last()
        if self._high_water is not None:
            self._high_water.close()

    async def abandon(self) -> None:
        """End the lane where it stands, as when the process dies. The store stays open."""
        await self.end_sweep()
        await self._end_publishing()
        await self.engine.abandon()

    async def _end_publishing(self) -> None:
        for task in (self._publishing, self._gathering):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _witness_the_last(self) -> None:
        """Have the last checkpoint cosigned if that is quickly done; the next start would do it otherwise."""
        if self.publisher.witnessing is None or not self.publisher.witnessing.is_behind:
            return
        try:
            async with asyncio.timeout(_LAST_WITNESSING_MS / 1000):
                await self.publisher.witnessing.show_all()
        except (TimeoutError, StoreUnavailable, OSError, ValueError) as error:
            _log.warning("the last checkpoint is not witnessed yet: %s", error or type(error).__name__)


@dataclass(slots=True)
class Hub:
    """A running hub. `port` is where it listens."""

    engine: Engine
    server: HubServer
    store: Store
    keys: HubKeys
    port: int
    verified_entries: int
    core: HubCore
    _health: asyncio.Task[None]
    _shared: Shared

    async def stop(self) -> None:
        """Drain the server, finish the lane, close the store."""
        self._health.cancel()
        await asyncio.gather(self._health, self.core.end_sweep(), return_exceptions=True)
        # Watches end first, or the drain would wait for them; calls in flight are answered by a lane that still runs.
        self.engine.watches.end()
        await self.server.drain()
        await self.core.stop()
        self._shared.close()
        await self.store.close()


async def start_hub(
    store: Store,
    identity: IdentitySource,
    keys: HubKeys,
    *,
    address: str = "127.0.0.1:0",
    config: Config | None = None,
    clock: Clock | None = None,
    ids: Ids | None = None,
    packs: PackLibrary | None = None,
    pause: Pause = system_pause,
    layers: Sequence[Layer] = (),
    high_water: Path | None = None,
    witnesses: Policy | None = None,
) -> Hub:
    """Prove the newest entries and the log over them, open or join the ledger, publish it, and listen.

    `high_water` is the file with the newest checkpoint that this hub published, in a folder other than the database's.
    `witnesses` are shown every checkpoint; their quorum makes it a witnessed one (see `witnessing.check_policy`).
    Raises LedgerRefused, StoreUnavailable when the store cannot be used, HighWaterUnreadable, ForeignKeys, RuntimeError
    when the address cannot be listened on. `layers` stand around every handler, the last one outermost. The store
    belongs to the hub from here on: a failed start closes it too.
    """
    config = config or Config()
    async with AsyncExitStack() as undo:
        undo.push_async_callback(store.close)
        shared = Shared.make(packs)
        undo.callback(shared.close)
        core = await start_core(
            store,
            keys,
            shared=shared,
            authority=lambda: identity.current().ca_certificates,
            config=config,
            clock=clock,
            ids=ids,
            pause=pause,
            publishes=bool(config.checkpoint_interval_ms),
            high_water=high_water,
            witnesses=witnesses,
        )
        undo.push_async_callback(core.stop)
        server = HubServer(core.dispatcher, identity, config, layers)
        port = await server.start(address)
        undo.pop_all()
    health = asyncio.create_task(_tell_health(core, server), name="health")
    _log.info("hub %s listens on port %d; %d entries verified", config.hub_id, port, core.verified_entries)
    return Hub(core.engine, server, store, keys, port, core.verified_entries, core, health, shared)


async def start_core(
    store: Store,
    keys: HubKeys,
    *,
    shared: Shared,
    authority: Callable[[], bytes],
    config: Config,
    clock: Clock | None = None,
    ids: Ids | None = None,
    pause: Pause = system_pause,
    sweeps: bool = True,
    publishes: bool = False,
    high_water: Path | None = None,
    witnesses: Policy | None = None,
) -> HubCore:
    """Prove the newest entries, open or join the ledger, and start the lane; `authority` gives the CA's PEM.

    Without `sweeps` nobody writes deadlines in the background: for a clock that stands, whoever moves it sweeps.
    Without `publishes` a checkpoint is made only when somebody asks for one.
    Raises LedgerRefused, StoreUnavailable, HighWaterUnreadable, ForeignKeys. The store stays its owner's.
    """
    clock = clock or SystemClock()
    water = HighWater(high_water) if high_water else None
    witnessing = None
    if witnesses is not None:
        known = await log_keys(store, keys.log, config)
        witnessing = Witnessing(witnesses, store, known, clock=clock, config=config, high_water=water)
    verification = await prove_start(store, keys.log, config, water, witnessing)
    if witnessing is not None:
        await witnessing.open()
    engine = Engine(
        store,
        clock=clock,
        ids=ids or SystemIds(),
        keys=keys,
        packs=shared.packs,
        config=config,
        acknowledging=water.acknowledge if water else None,
    )
    await engine.start()
    publisher = Publisher(
        store, keys.log, clock=clock, config=config, pause=pause, high_water=water, witnessing=witnessing
    )
    gathering = None
    if witnessing is not None:
        witnessing.on_halt = engine.turned.set
        gathering = asyncio.create_task(witnessing.run(), name="gathering")
    reads = ReadContext(
        store=store,
        mac_keys=keys.mac_keys,
        ledger_key=engine.ledger_key,
        config=config,
        clock=clock,
        packs=shared.packs,
        verifier=shared.verifier,
        subscribe=engine.watches.subscribe,
        unsubscribe=engine.watches.unsubscribe,
        running=lambda: engine.feeds_watches,
        page_key=hashlib.sha256(keys.content_mac_key() + b"page").digest(),
        covering=publisher.covering,
        cosigned=witnessing.cosigned if witnessing is not None else None,
        evidence=water.evidence if water else tuple,
    )
    calls = Calls(
        engine=engine,
        reads=reads,
        proof=SignatureProof(store, shared.verifier, authority, config.trust_domain),
        rules=shared.rules,
        config=config,
        pause=pause,
        waiting=Waiting(publisher.reached if publishes else publisher.covering, publisher.witnessed, store, pause),
    )
    dispatcher = Dispatcher(calls)
    erasing = Erasing(engine, config)
    sweep = asyncio.create_task(_sweep(engine, erasing, config, pause), name="sweep") if sweeps else None
    publishing = asyncio.create_task(publisher.run(), name="publishing") if publishes else None
    return HubCore(
        engine, dispatcher, reads, store, publisher, verification.entries, erasing, sweep, publishing, gathering, water
    )


async def _sweep(engine: Engine, erasing: Erasing, config: Config, pause: Pause) -> None:
    """Write the deadlines that nobody asked about; a full step is followed by the next at once. Then a step of erasing.

    Whatever goes wrong in one round, the next comes: a deadline that nobody writes holds goods back from everybody.
    """
    while engine.running:
        # A stream that failed is left out for the rest of the round only, so that it is tried again.
        failed: set[bytes] = set()
        try:
            while await engine.sweep(failed) >= config.sweep_streams_max:
                pass
            await erasing.step()
        except (HubStopped, StoreUnavailable):
            # The lane says so too when it cannot write; when it ends, so does this loop.
            _log.warning("the sweep waits: the store cannot be used now")
        except Exception:  # noqa: BLE001 a sweep that ended would leave every later deadline unwritten
            _log.exception("the sweep failed and goes on with the next round")
        await pause(config.sweep_interval_ms)


async def _tell_health(core: HubCore, server: HubServer) -> None:
    """Tell health clients whether the lane takes commands and can write, and whether the log is published."""
    engine, witnessing = core.engine, core.publisher.witnessing
    while True:
        engine.turned.clear()
        halted = witnessing is not None and witnessing.halted is not None
        await server.announce(serving=engine.serving, publishing=not halted)
        await engine.turned.wait()
