"""THE composition root: puts store, keys, packs, lane, queries and server together, and takes them apart again.

Nothing else constructs these. It owns the order of start and stop, the background sweep of deadlines, and that health
follows the lane.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
from contextlib import AsyncExitStack
from dataclasses import dataclass

from erxhub.admission import FieldRules, SignatureProof
from erxhub.config import Config
from erxhub.crypto.suites import Verifier
from erxhub.engine import Engine, HubStopped
from erxhub.keys import HubKeys
from erxhub.ledger.store import Store, StoreUnavailable
from erxhub.ledger.verify import Verification, verify_ledger
from erxhub.policy.pack import PackLibrary, shipped_packs
from erxhub.ports import Clock, Ids, Pause, SystemClock, SystemIds, system_pause
from erxhub.queries.base import ReadContext
from erxhub.rpc.dispatch import Dispatcher
from erxhub.rpc.methods import METHODS, STATEMENTS
from erxhub.rpc.server import HubServer, IdentitySource

_log = logging.getLogger("erxhub.app")


class LedgerRefused(Exception):
    """The newest entries of the ledger do not verify: the hub does not start on it. Names the entries."""

    def __init__(self, verification: Verification) -> None:
        places = ", ".join(
            f"{finding.stream_kind}/{finding.stream_key.hex()[:16]} version {finding.version} {finding.reason}"
            for finding in verification.findings[:5]
        )
        super().__init__(f"the ledger does not verify: {places}; `erxhub audit verify` lists everything")
        self.verification = verification


@dataclass(slots=True)
class Hub:
    """A running hub. `port` is where it listens."""

    engine: Engine
    server: HubServer
    store: Store
    keys: HubKeys
    port: int
    verified_entries: int
    _background: tuple[asyncio.Task[None], ...]
    _verifier: Verifier

    async def stop(self) -> None:
        """Drain the server, finish the lane, close the store."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        # Watches end first, or the drain would wait for them; calls in flight are answered by a lane that still runs.
        self.engine.end_watches()
        await self.server.drain()
        await self.engine.stop()
        self._verifier.close()
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
) -> Hub:
    """Verify the newest entries, open or join the ledger, and listen.

    Raises LedgerRefused when an entry does not verify, StoreUnavailable when the store cannot be used, RuntimeError
    when the address cannot be listened on. The store belongs to the hub from here on: a failed start closes it too.
    """
    config = config or Config()
    clock = clock or SystemClock()
    packs = packs or shipped_packs()
    async with AsyncExitStack() as undo:
        undo.push_async_callback(store.close)
        verification = await _verify_newest(store, config)
        engine = Engine(store, clock=clock, ids=ids or SystemIds(), keys=keys, packs=packs, config=config)
        await engine.start()
        undo.push_async_callback(engine.stop)
        verifier = Verifier()
        undo.callback(verifier.close)
        rules = FieldRules(STATEMENTS)
        rules.warm([*(method.request for method in METHODS.values()), *STATEMENTS.values()])
        reads = ReadContext(
            store=store,
            mac_keys=keys.mac_keys,
            ledger_key=engine.ledger_key,
            config=config,
            clock=clock,
            packs=packs,
            verifier=verifier,
            subscribe=engine.subscribe,
            unsubscribe=engine.unsubscribe,
            running=lambda: engine.feeds_watches,
            page_key=hashlib.sha256(keys.content_mac_key() + b"page").digest(),
        )
        dispatcher = Dispatcher(
            engine=engine,
            reads=reads,
            proof=SignatureProof(
                store, verifier, lambda: identity.current().ca_certificates, config.trust_domain
            ),
            rules=rules,
            config=config,
            pause=pause,
        )
        server = HubServer(dispatcher, identity, config)
        port = await server.start(address)
        undo.pop_all()
    background = (
        asyncio.create_task(_sweep(engine, config, pause), name="sweep"),
        asyncio.create_task(_tell_health(engine, server), name="health"),
    )
    _log.info("hub %s listens on port %d; %d entries verified", config.hub_id, port, verification.entries)
    return Hub(engine, server, store, keys, port, verification.entries, background, verifier)


def settle_memory() -> None:
    """Tell the garbage collector that what is loaded now stays; for a process that is a hub and nothing else.

    A call's objects die with it. By default the collector would look at all that live after every 700 new ones, and
    now and then at the thousands of the loaded modules: 5 % of a hub's CPU under load.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


async def _verify_newest(store: Store, config: Config) -> Verification:
    newest = await store.last_position()
    verification = await verify_ledger(store, from_position=max(0, newest - config.start_verify_entries))
    if verification.findings:
        raise LedgerRefused(verification)
    return verification


async def _sweep(engine: Engine, config: Config, pause: Pause) -> None:
    """Write the deadlines that nobody asked about; a full step is followed by the next at once.

    Whatever goes wrong in one round, the next comes: a deadline that nobody writes holds goods back from everybody.
    """
    while engine.running:
        # A stream that failed is left out for the rest of the round only, so that it is tried again.
        failed: set[bytes] = set()
        try:
            while await engine.sweep(failed) >= config.sweep_streams_max:
                pass
        except (HubStopped, StoreUnavailable):
            # The lane says so too when it cannot write; when it ends, so does this loop.
            _log.warning("the sweep waits: the store cannot be used now")
        except Exception:  # noqa: BLE001 a sweep that ended would leave every later deadline unwritten
            _log.exception("the sweep failed and goes on with the next round")
        await pause(config.sweep_interval_ms)


async def _tell_health(engine: Engine, server: HubServer) -> None:
    """Tell health clients whether the lane takes commands and can write."""
    while True:
        engine.turned.clear()
        await server.announce(serving=engine.serving)
        await engine.turned.wait()
