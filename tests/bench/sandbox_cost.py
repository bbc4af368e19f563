"""What a sandbox costs a call when it has nothing to do, against a hub: recorder on, no rule set, no magic value sent.

Two servers run beside each other, each in a process of its own on a ledger in memory: a hub as `start_hub` makes it,
and a sandbox as `erxhub dev` makes it, with everything between its port and its lane (the way from the certificate to
the namespace, recorder, fault layer, seeded draws, the store with faults in front). The same calls go to both in short
turns that change their order, and the CPU time of each process is read around each turn. Every answer is checked.
`python -m tests.bench.sandbox_cost`; `--quick` for a look.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import grpc

from erxhub import process
from erxhub.app import start_hub
from erxhub.config import Config
from erxhub.crypto.ca import TrustDomain
from erxhub.keys import HubKeys
from erxhub.ledger.memory import MemoryStore
from erxhub.ports import SystemClock, system_pause
from erxhub.rpc.server import FixedIdentity, ServerIdentity
from erxhub.sandbox.ledgers import MemoryLedger
from erxhub.sandbox.magic import Prepared
from erxhub.sandbox.serving import Setting, start_sandbox
from erxhub.sandbox.worlds import Template
from erxhub.sandbox.worlds import World as SandboxWorld
from erxhub.v1 import prescribing_pb2, sandbox_pb2
from tests.bench import load
from tests.bench.answers import AnswerWrong, check_reply
from tests.bench.load import Calls, Segment
from tests.bench.processes import ServerProcess
from tests.bench.world import Upload, World, now_ms

HUB, SANDBOX = "hub", "sandbox"
GOAL_PERCENT = 5.0
_READ = "/erxhub.v1.PrescribingService/GetPrescription"


# ---- the servers ----


class _NoFounder:
    """The bench registers its own world, in the ledger of the default namespace."""

    async def found(self, suite: str, at_ms: int) -> Template:
        raise AssertionError("nobody makes a namespace here")


async def _hub(identity: ServerIdentity, keys: HubKeys, config: Config) -> tuple[int, Callable[[], Awaitable[None]]]:
    hub = await start_hub(MemoryStore(), FixedIdentity(identity), keys, config=config)
    return hub.port, hub.stop


async def _sandbox(
    identity: ServerIdentity, keys: HubKeys, config: Config
) -> tuple[int, Callable[[], Awaitable[None]]]:
    sandbox = await start_sandbox(
        Setting(
            trust=TrustDomain.in_memory("erxhub.test", now_ms()),
            keys=keys,
            identity=identity,
            founder=_NoFounder(),
            machine=SystemClock(),
            pause=system_pause,
            config=config,
            owner="sandbox/operator",
            suite="ES256",
            default_standing=False,
            default_start_ms=0,
            default_profile=sandbox_pb2.FAULT_PROFILE_DEV,
            default_seed=1,
            data_address="127.0.0.1:0",
            control_address="127.0.0.1:0",
            host="localhost",
            ledger=MemoryLedger(MemoryStore()),
            world=SandboxWorld((), (), Prepared()),
        )
    )
    return sandbox.data.port, sandbox.stop


async def serve(folder: Path, kind: str) -> None:
    """One of the two; prints its port and serves until its standard input ends."""
    identity = ServerIdentity(
        (folder / "cert.pem").read_bytes(), (folder / "key.pem").read_bytes(), (folder / "ca.pem").read_bytes()
    )
    config = Config(access_budget_per_minute=1_000_000_000)  # nobody is slowed here
    start = _sandbox if kind == SANDBOX else _hub
    port, stop = await start(identity, HubKeys.load(folder / "keys"), config)
    process.settle_memory()
    print(port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await stop()


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
    """One of the two with its world, and what its calls cost."""

    def __init__(self, kind: str, folder: Path, cases: Sequence[Case]) -> None:
        self.kind = kind
        self.cases = cases
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
        for case in self.cases:
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


async def measure(rounds: int, folder: Path, cases: Sequence[Case] = CASES) -> list[Target]:
    """Both, called in turns."""
    targets = [Target(kind, folder / kind, cases) for kind in (HUB, SANDBOX)]
    async with AsyncExitStack() as stack:
        for target in targets:
            await target.begin(stack)
        for number in range(rounds):
            for case in cases:
                for target in targets if number % 2 else reversed(targets):
                    await target.turn(case)
    return targets


class Cost(NamedTuple):
    """CPU of a call in microseconds, without and with a sandbox, and what it is more: medians over the rounds.

    `more_us` is the median of each round's difference, whose two turns ran right after each other; `spread_us` are its
    quartiles.
    """

    hub_us: float
    sandbox_us: float
    more_us: float
    spread_us: tuple[float, float]

    @property
    def more_percent(self) -> float:
        return self.more_us / self.hub_us * 100


def costs(targets: Sequence[Target]) -> dict[str, Cost]:
    """What each case costs."""
    hub, sandbox = targets
    found = {}
    for case in hub.cases:
        pairs = list(zip(hub.us[case.name], sandbox.us[case.name], strict=True))
        more = [with_us - without_us for without_us, with_us in pairs]
        quartiles = statistics.quantiles(more, n=4)
        found[case.name] = Cost(
            statistics.median(without_us for without_us, _ in pairs),
            statistics.median(with_us for _, with_us in pairs),
            statistics.median(more),
            (quartiles[0], quartiles[2]),
        )
    return found


def report(found: dict[str, Cost]) -> str:
    """A line for each case."""
    lines = [f"{'case':24} {'hub µs':>9} {'sandbox µs':>11} {'more µs':>9} {'quartiles':>15} {'more %':>8}"]
    for name, cost in found.items():
        spread = f"{cost.spread_us[0]:.1f} … {cost.spread_us[1]:.1f}"
        lines.append(
            f"{name:24} {cost.hub_us:9.1f} {cost.sandbox_us:11.1f} {cost.more_us:9.1f} {spread:>15} "
            f"{cost.more_percent:8.2f}"
        )
    return "\n".join([*lines, f"goal: at most {GOAL_PERCENT} % of a call's server CPU"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two rounds: a look, no measurement")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--kind", choices=(HUB, SANDBOX), default=HUB, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        process.run(serve(options.serve, options.kind))  # as `erxhub dev` does
        return
    with tempfile.TemporaryDirectory(prefix="erxhub-bench-") as folder:
        print(report(costs(asyncio.run(measure(2 if options.quick else options.rounds, Path(folder))))))


if __name__ == "__main__":
    main()
