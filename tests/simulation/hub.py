"""One hub in this process: its lane over a store in memory, with a clock that is told the time, and a store that fails.

Owns the hub's lives: start, crash, stop, start again over the same store. Must never look at what a command says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from functools import cache
from typing import Any

from erxhub.admission import SignatureProof, signed_parts
from erxhub.config import Config
from erxhub.core.model import Command, Evidence
from erxhub.crypto.suites import Verifier
from erxhub.downloads import attach
from erxhub.engine import Engine, HubStopped
from erxhub.jobs import Answer as HubAnswer
from erxhub.ledger.memory import MemoryStore
from erxhub.ledger.store import AppendResult, Loaded, StoredEntry, StoreUnavailable, Wanted, Write
from erxhub.policy.pack import PackLibrary, shipped_packs
from erxhub.ports import ManualClock, SeededIds
from erxhub.rpc.methods import METHODS, STATEMENTS
from tests.simulation.cast import START_MS, hub_keys
from tests.simulation.loop import VirtualLoop
from tests.simulation.wire import Call, claimed_evidence

_LOG_PAGE = 10_000


class Killed(BaseException):
    """The process ended here."""


class FaultyStore:
    """A store in memory that can be told to fail.

    `fault` is what becomes of the next write: "" nothing; "killed before" and "killed after" it; "lost": it is written,
    and nobody is told; "down": it is not written, and nothing can be read either.
    """

    def __init__(self, inner: MemoryStore) -> None:
        self.inner = inner
        self.fault = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def load(self, wanted: Wanted) -> Loaded:
        if self.fault == "down":
            raise StoreUnavailable("the store is away")
        return await self.inner.load(wanted)

    async def read(self, wanted: Wanted) -> Loaded:
        return await self.load(wanted)

    async def append(self, batch: Sequence[Write]) -> AppendResult:
        if not self.fault:
            return await self.inner.append(batch)
        fault = self.fault
        if fault == "down":
            raise StoreUnavailable("the store is away")
        self.fault = ""
        if fault == "killed before":
            raise Killed
        await self.inner.append(batch)
        if fault == "killed after":
            raise Killed
        raise StoreUnavailable("the store did not answer")


def at_once(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never waits, as every method of a store in memory."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    work.close()
    raise AssertionError("a store in memory never waits")


@cache
def packs() -> PackLibrary:
    """The shipped packs, read once in a process."""
    return shipped_packs()


class SimulatedHub:
    """The hub, its store, its clock, and what it has of randomness."""

    def __init__(self, seed: int, *, signatures: bool = False, store: FaultyStore | None = None) -> None:
        self.signatures = signatures
        self.store = store or FaultyStore(MemoryStore())
        self.clock = ManualClock(START_MS)
        self.loop = VirtualLoop()
        self.registered_keys: set[str] = set()
        """The keys of which the robots know that the hub knows them; only asked when signatures are not checked."""
        self._ids = SeededIds(seed)
        self._config = Config(batch_linger_ms=0)
        self.engine: Engine
        self._proof: SignatureProof
        self.boot()

    # ---- life ----

    def boot(self) -> None:
        """Start over the same store."""
        self.engine = Engine(
            self.store, clock=self.clock, ids=self._ids, keys=hub_keys(), packs=packs(), config=self._config
        )
        # Connection certificates are no part of the simulation, so there is no authority.
        self._proof = SignatureProof(self.store, Verifier(), lambda: b"", self._config.trust_domain)
        self.loop.run(self.engine.start())

    def stop(self) -> None:
        """End as an operator ends it: what is queued is done, minutes that are not over are written."""
        self.loop.run(self.engine.stop())

    @property
    def alive(self) -> bool:
        """Whether the lane takes commands."""
        return self.engine.running

    # ---- calls ----

    def submit(self, calls: Sequence[Call]) -> list[HubAnswer | BaseException | None]:
        """All calls at the same time; None for one without an answer, because the hub died or its store is away."""
        tasks: Sequence[asyncio.Future[HubAnswer]]
        if self.signatures:
            tasks = self.loop.begin([self._one(call) for call in calls])
            self.loop.settle()
        else:
            # Nothing has to be awaited before the lane has a command, so it needs no task of its own.
            tasks = self.loop.run(self._all(calls))
        answers: list[HubAnswer | BaseException | None] = []
        for task in tasks:
            if not task.done():
                task.cancel()
                answers.append(None)
                continue
            error = task.exception()
            if isinstance(error, HubStopped | StoreUnavailable | Killed):
                answers.append(None)
            else:
                answers.append(error if error is not None else task.result())
        self.loop.settle()
        return answers

    async def _one(self, call: Call) -> HubAnswer:
        return await self.engine.submit(self._command(call, await self._evidence(call)), call.content)

    async def _all(self, calls: Sequence[Call]) -> list[asyncio.Future[HubAnswer]]:
        return [self._queued(call) for call in calls]

    def _queued(self, call: Call) -> asyncio.Future[HubAnswer]:
        try:
            return self.engine.queue(self._command(call, claimed_evidence(call, self.registered_keys)), call.content)
        except Exception as error:  # noqa: BLE001 what one call meets is its answer, as it is with a task of its own
            failed: asyncio.Future[HubAnswer] = self.loop.create_future()
            failed.set_exception(error)
            return failed

    def _command(self, call: Call, evidence: Evidence) -> Command:
        return Command(call.method, call.request, call.caller, call.request_id, self.clock.now_ms(), evidence)

    async def _evidence(self, call: Call) -> Evidence:
        if call.proven is not None:
            return call.proven
        method = METHODS[call.method]
        if method.streams_in:
            return Evidence()
        request, fields = call.request, method.signed_fields
        read = {
            name: STATEMENTS[getattr(request, name).payload_type].FromString(getattr(request, name).payload)
            for name in fields
        }
        return await self._proof.evidence(request, signed_parts(request, fields), read)

    def sweep(self) -> bool:
        """Write what is due; False when the store is away."""
        (task,) = self.loop.begin([self.engine.sweep()])
        self.loop.settle()
        if not task.done():
            task.cancel()
            self.loop.settle()
            return False
        error = task.exception()
        if error is not None and not isinstance(error, HubStopped | StoreUnavailable):
            raise error
        return error is None

    # ---- what is in the store; the simulation looks past the faults ----

    def attached(self, method: str, body: bytes, rx_key: bytes) -> bytes:
        """A download's reply with the uploaded bytes in it."""
        done: bytes = at_once(attach(self.store, body, rx_key, METHODS[method].response))
        return done

    def log(self, after_position: int) -> list[StoredEntry]:
        """The entries after a position."""
        found: list[StoredEntry] = []
        while page := at_once(self.store.log(after_position + len(found), _LOG_PAGE)):
            found += page
        return found
