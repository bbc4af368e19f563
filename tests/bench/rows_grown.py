"""Rows about growth: what a call costs on a ledger that is fifty, or a thousand, times as large."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from statistics import median

from erxhub.client import AuditorClient
from tests.bench.answers import AnswerWrong
from tests.bench.grown import Grown
from tests.bench.results import Results, percentile
from tests.bench.saying import say
from tests.bench.targets import Target, in_turns, signatures_us
from tests.bench.world import World

SEED = 20261122
SMALL = 1_000
ASKED = 400
"""Different chains that are traced and found, so that none has many accesses before; the small ledger has as many."""

_IN_FLIGHT = 64


class _Ledger:
    """One of the two sizes, served by a hub."""

    def __init__(self, grown: Grown) -> None:
        self.grown = grown
        self.target = Target(grown.world.folder, world=grown.world)
        self.asked = Random(SEED).sample(range(len(grown.rx_numbers)), min(ASKED, len(grown.rx_numbers)))

    async def begin(self, stack: AsyncExitStack) -> None:
        await self.target.begin(stack, populate=False)
        self.auditor = await stack.enter_async_context(
            AuditorClient.connect(
                f"localhost:{self.target.server.port}", self.grown.world.identity("auditor", "auditor-1")
            )
        )
        self.auditor.case_reason = "growth"

    async def trace(self, number: int) -> None:
        rx_no = self.grown.rx_numbers[self.asked[number]]
        reply = await self.auditor.trace(rx_no=rx_no)
        if reply.rx_no != rx_no or len(reply.entries) < 20 or reply.gaps:
            raise AnswerWrong(f"the trace of {rx_no} has {len(reply.entries)} entries and gaps {list(reply.gaps)}")

    async def find(self, number: int) -> None:
        place = self.asked[number]
        reply = await self.auditor.find(trace_code=self.grown.trace_codes[place])
        if [chain.rx_no for chain in reply.chains] != [self.grown.rx_numbers[place]]:
            raise AnswerWrong("a drug trace code led to another prescription")

    async def export(self, number: int) -> None:
        if not (await self.auditor.export_bundle(rx_no=self.grown.rx_numbers[self.asked[number]])).bundle:
            raise AnswerWrong("an empty bundle was exported")


async def growth(folder: Path, quick: bool, results: Results) -> None:
    """50,000 prescriptions ÷ 1,000."""
    size = 5_000 if quick else 50_000
    small, large = await _small(folder / "small"), await _large(folder / "large", size, size // 50)
    await _compare(small, large[0], "50k", quick, results)


async def large(folder: Path, quick: bool, results: Results) -> None:
    """1,000,000 prescriptions, of which 20,000 are full chains, ÷ 1,000."""
    size = 50_000 if quick else 1_000_000
    begun_ns = time.process_time_ns()
    small, (grown, seconds) = await _small(folder / "small"), await _large(folder / "large", size, size // 50)
    stored = sum(path.stat().st_size for path in (folder / "large").glob("ledger.db*"))
    results.goal("large_store_minutes", [seconds / 60], 15)
    results.figure("large_store_cpu_minutes", [(time.process_time_ns() - begun_ns) / 60e9])
    results.goal("large_store_gb", [stored / 1e9], 10)
    await _compare(small, grown, "1m", quick, results)


async def _small(folder: Path) -> Grown:
    return (await _large(folder, SMALL, ASKED))[0]


async def _large(folder: Path, prescriptions: int, chains: int) -> tuple[Grown, float]:
    grown = Grown(World(folder))
    await grown.begin()
    written = await grown.grow(prescriptions, chains, SEED)
    published = await grown.publish()
    say(f"{prescriptions} prescriptions, {grown.chains} full chains: {written:.0f} s, log and map {published:.0f} s")
    return grown, written + published


async def _compare(small: Grown, large: Grown, name: str, quick: bool, results: Results) -> None:
    rounds, turns, calls = (1, 1, 128) if quick else (7, 3, 768)
    async with AsyncExitStack() as stack:
        sides = [_Ledger(small), _Ledger(large)]
        for side in sides:
            begun = time.perf_counter()
            await side.begin(stack)
        results.figure(f"start_with_{name}_s", [time.perf_counter() - begun])
        targets = [side.target for side in sides]
        found = await in_turns(targets, rounds=rounds, turns=turns, calls=calls, in_flight=_IN_FLIGHT)
        checks = signatures_us(large.world, await sides[1].target.ready(100))
        pairs = [(a.cpu_us, b.cpu_us) for a, b in zip(*found.values(), strict=True)]
        results.goal(f"growth_upload_cpu_{name}", [(b - checks) / (a - checks) for a, b in pairs], 1.15)
        results.figure(f"growth_upload_cpu_{name}_whole", [b / a for a, b in pairs])
        results.figure(f"upload_cpu_us_{name}", [b for _, b in pairs])
        for what, goal in (("trace", 1.5), ("find", 1.5)):
            asks = [side.trace if what == "trace" else side.find for side in sides]
            ratios, p50, p99 = await _ask(asks, 1 if quick else 3, min(len(side.asked) for side in sides))
            results.goal(f"growth_{what}_p99_{name}", ratios, goal)
            results.figure(f"{what}_p50_ms_{name}", p50)
            results.figure(f"{what}_p99_ms_{name}", p99)
        _, p50, p99 = await _ask([side.export for side in sides], 1, min(len(side.asked) for side in sides))
        results.goal(f"export_p99_ms_{name}", p99, 50)
        results.figure(f"export_p50_ms_{name}", p50)


async def _ask(
    asks: list[Callable[[int], Awaitable[None]]], rounds: int, count: int
) -> tuple[list[float], list[float], list[float]]:
    """The same question to both in turns: p99 ÷ p99 of each round, and the large one's p50 and p99 (milliseconds)."""
    ratios, p50, p99 = [], [], []
    for _ in range(rounds):
        took: list[list[float]] = [[], []]
        for number in range(count):
            for place in (0, 1) if number % 2 else (1, 0):
                begun = time.perf_counter()
                await asks[place](number)
                took[place].append((time.perf_counter() - begun) * 1000)
        ratios.append(percentile(took[1], 0.99) / percentile(took[0], 0.99))
        p50.append(median(took[1]))
        p99.append(percentile(took[1], 0.99))
    return ratios, p50, p99
