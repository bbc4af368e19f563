"""What the exchange layer costs a call when it has nothing to do: the recorder on, no rule set, no magic value sent.

Two hubs run beside each other, each in a process of its own on a ledger in memory: one plain, one behind the layer. The
same calls go to both in short turns that change their order, and the CPU time of each process is read around each turn.
Every answer is checked. `python -m tests.bench.sandbox_cost`; `--quick` for a look.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from erxhub.app import Shared, settle_memory, start_core
from erxhub.config import Config
from erxhub.keys import HubKeys
from erxhub.ledger.memory import MemoryStore
from erxhub.ledger.store import Store, StoredEntry
from erxhub.ports import SystemClock
from erxhub.rpc.methods import Method
from erxhub.rpc.server import FixedIdentity, HubServer, ServerIdentity
from erxhub.sandbox.exchange import Exchanges
from erxhub.sandbox.faults import Faults
from erxhub.sandbox.faulty_store import FaultyStore
from erxhub.sandbox.magic import Magic
from erxhub.sandbox.recorder import Recorder
from erxhub.v1 import prescribing_pb2
from tests.bench import load
from tests.bench.answers import AnswerWrong, check_reply
from tests.bench.load import Calls, Segment
from tests.bench.processes import ServerProcess
from tests.bench.world import Upload, World

PLAIN, LAYER = "plain", "layer"
GOAL_PERCENT = 5.0
_READ = "/erxhub.v1.PrescribingService/GetPrescription"


# ---- the servers ----


class _Control:
    """As much of a namespace as idle exchanges ask for."""

    name, seed, trust_domain = "bench", 1, "erxhub.test"
    store: Store

    def __init__(self) -> None:
        self._clock = SystemClock()

    def now_ms(self) -> int:
        return self._clock.now_ms()

    def machine_us(self) -> int:
        return time.perf_counter_ns() // 1000

    async def pause(self, ms: int) -> None:
        raise AssertionError("nothing waits here")

    async def goaway(self) -> None:
        raise AssertionError("nothing goes away here")

    async def crash(self) -> None:
        raise AssertionError("nothing crashes here")

    async def as_caller(self, role: str, peer_id: str, method: str, request: Any) -> Any:
        raise AssertionError("nobody calls here")

    async def log_entries(self, after_position: int, limit: int) -> list[StoredEntry]:
        return await self.store.log(after_position, limit)


class _Behind:
    """The dispatcher's methods behind the exchanges, as a namespace serves them."""

    def __init__(self, dispatcher: Any, exchanges: Exchanges) -> None:
        self._dispatcher = dispatcher
        self._exchanges = exchanges

    def handler(self, method: Method) -> Any:
        return self._exchanges.wrapped(method, self._dispatcher.handler(method))

    async def drained(self) -> None:
        await self._dispatcher.drained()


async def serve(folder: Path, kind: str) -> None:
    """One of the two hubs; prints its port and serves until its standard input ends."""
    identity = ServerIdentity(
        (folder / "cert.pem").read_bytes(), (folder / "key.pem").read_bytes(), (folder / "ca.pem").read_bytes()
    )
    config = Config(access_budget_per_minute=1_000_000_000)  # nobody is slowed here
    control = _Control()
    recorder, faults = Recorder(control), Faults(control.seed)
    exchanges = Exchanges(control, recorder=recorder, faults=faults, magic=Magic(control))
    control.store = store = MemoryStore()
    over: Store = FaultyStore(store, control=control, faults=faults, recorder=recorder) if kind == LAYER else store
    shared = Shared.make(None)
    core = await start_core(
        over, HubKeys.load(folder / "keys"), shared=shared, authority=lambda: identity.ca_certificates, config=config
    )
    served = _Behind(core.dispatcher, exchanges) if kind == LAYER else core.dispatcher
    server = HubServer(served, FixedIdentity(identity), config)
    port = await server.start("127.0.0.1:0")
    settle_memory()
    print(port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    core.engine.end_watches()
    await server.drain()
    await core.stop()
    shared.close()


# ---- the calls ----


class Case(NamedTuple):
    """What is measured: uploads or reads, with so many in flight, so many a turn."""

    name: str
    reads: bool
    in_flight: int
    calls: int


CASES = (
    Case("upload, 1 in flight", False, 1, 48),
    Case("upload, 32 in flight", False, 32, 192),
    Case("read, 1 in flight", True, 1, 150),
    Case("read, 32 in flight", True, 32, 480),
)


class Target:
    """One of the two hubs with its world, and what its calls cost."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        folder.mkdir()
        self.world = World(folder)
        self.us: dict[str, list[float]] = {}
        self._rx_no = ""

    async def begin(self, stack: AsyncExitStack) -> None:
        self.server = stack.enter_context(
            ServerProcess("tests.bench.sandbox_cost", "--serve", str(self.world.folder), "--kind", self.kind)
        )
        await self.world.populate(self.server.port)
        self.uploading = await stack.enter_async_context(load.connected(self.server.port, self.world.hospital))
        self.reading = await stack.enter_async_context(_reading(self.server.port, self.world))
        for case in CASES:
            await self._turn(case, await self._ready(case))

    async def _ready(self, case: Case) -> list[Upload]:
        if case.reads:
            return []
        return (await self.world.prepare(self.server.port, {"ES256": case.calls}))["ES256"]

    async def turn(self, case: Case) -> None:
        """One measured turn."""
        ready = await self._ready(case)
        cpu_ns = await self._turn(case, ready)
        self.us.setdefault(case.name, []).append(cpu_ns / case.calls / 1000)

    async def _turn(self, case: Case, ready: Sequence[Upload]) -> int:
        if case.reads:
            requests = [prescribing_pb2.GetPrescriptionRequest(rx_no=self._rx_no).SerializeToString()] * case.calls
            before_ns = self.server.cpu_ns()
            segment = await load.run(self.reading, requests, case.in_flight)
            used_ns = self.server.cpu_ns() - before_ns
            for outcome in _all_ok(segment):
                if prescribing_pb2.GetPrescriptionResponse.FromString(outcome.reply).rx_no != self._rx_no:
                    raise AnswerWrong("a read showed another prescription")
            return used_ns
        before_ns = self.server.cpu_ns()
        segment = await load.run(self.uploading, [upload.request for upload in ready], case.in_flight)
        used_ns = self.server.cpu_ns() - before_ns
        for outcome in _all_ok(segment):
            check_reply(ready[outcome.place].rx_no, outcome.reply, self.world.receipt_keys)
        self._rx_no = ready[0].rx_no
        return used_ns


def _all_ok(segment: Segment) -> list[load.Outcome]:
    statuses = segment.statuses()
    if set(statuses) != {"OK"}:
        raise AnswerWrong(f"calls ended with {dict(statuses)}")
    return segment.outcomes


@asynccontextmanager
async def _reading(port: int, world: World) -> AsyncIterator[Calls]:
    identity = world.hospital
    credentials = grpc.ssl_channel_credentials(identity.ca_pem, identity.key_pem, identity.cert_pem)
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
        await channel.channel_ready()
        yield [channel.unary_unary(_READ, None, None)]


async def measure(rounds: int, folder: Path) -> list[Target]:
    """Both hubs, called in turns."""
    targets = [Target(kind, folder / kind) for kind in (PLAIN, LAYER)]
    async with AsyncExitStack() as stack:
        for target in targets:
            await target.begin(stack)
        for number in range(rounds):
            for case in CASES:
                for target in targets if number % 2 else reversed(targets):
                    await target.turn(case)
    return targets


def report(targets: Sequence[Target]) -> str:
    """A line for each case: CPU of a call without and with the layer, medians of the turns, and the difference.

    The difference is the median over the rounds of a round's two turns, which ran right after each other.
    """
    plain, layer = targets
    lines = [f"{'case':24} {'plain µs':>10} {'layer µs':>10} {'more µs':>9} {'more %':>8}"]
    for case in CASES:
        pairs = list(zip(plain.us[case.name], layer.us[case.name], strict=True))
        more_us = statistics.median(with_us - without_us for without_us, with_us in pairs)
        base_us = statistics.median(without_us for without_us, _ in pairs)
        layer_us = statistics.median(with_us for _, with_us in pairs)
        lines.append(f"{case.name:24} {base_us:10.1f} {layer_us:10.1f} {more_us:9.1f} {more_us / base_us * 100:8.2f}")
    return "\n".join([*lines, f"goal: at most {GOAL_PERCENT} % of a call's server CPU"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two rounds: a look, no measurement")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--kind", default=PLAIN, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        asyncio.run(serve(options.serve, options.kind))
        return
    with tempfile.TemporaryDirectory(prefix="erxhub-bench-") as folder:
        print(report(asyncio.run(measure(2 if options.quick else options.rounds, Path(folder)))))


if __name__ == "__main__":
    main()
