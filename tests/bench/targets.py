"""A hub that is measured by uploads, with a world of its own, so that two that differ in one thing take turns."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tests.bench import load
from tests.bench.answers import AnswerWrong, check_reply
from tests.bench.load import Segment
from tests.bench.processes import ServerProcess
from tests.bench.signatures import verification_cpu_ns
from tests.bench.world import SIGNATURES, Upload, World

SUITE = "ES256"
_WARM = 128


class Turn(NamedTuple):
    """One stretch of uploads: server CPU of one (microseconds), and the calls."""

    cpu_us: float
    segment: Segment

    def ok_per_cpu_s(self, checks_us: float = 0.0) -> float:
        """OK replies for a second of the server's CPU, without what their signature checks cost."""
        ok = self.segment.statuses()["OK"]
        return ok / ((self.cpu_us * len(self.segment.outcomes) - ok * checks_us) / 1e6)


class Target:
    """A hub process with the options of its row."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        receipts: bool = True,
        world: World | None = None,
        interpreted: bool = False,
    ) -> None:
        self.world = world or World(folder)
        self._options = options
        self._interpreted = interpreted
        self._receipts = receipts
        self.accepted: list[str] = []

    async def begin(self, stack: AsyncExitStack, *, populate: bool = True) -> None:
        """Start it, register its world, and warm it up."""
        self.server = stack.enter_context(
            ServerProcess(
                "tests.bench.hub_server", str(self.world.folder), *self._options, interpreted=self._interpreted
            )
        )
        if populate:
            await self.world.populate(self.server.port)
        self._calls = await stack.enter_async_context(load.connected(self.server.port, self.world.hospital))
        await self.turn(await self.ready(_WARM), 32)

    async def ready(self, count: int) -> list[Upload]:
        """So many uploads, to be sent within minutes."""
        return (await self.world.prepare(self.server.port, {SUITE: count}))[SUITE]

    async def turn(self, uploads: Sequence[Upload], in_flight: int, *, all_ok: bool = True) -> Turn:
        """Send them; every OK reply is checked. Raises AnswerWrong."""
        before_ns = self.server.cpu_ns()
        segment = await load.run(self._calls, [upload.request for upload in uploads], in_flight)
        used_ns = self.server.cpu_ns() - before_ns
        if all_ok and set(segment.statuses()) != {"OK"}:
            raise AnswerWrong(f"uploads ended {dict(segment.statuses())}")
        for outcome in segment.outcomes:
            if outcome.status == "OK":
                rx_no = uploads[outcome.place].rx_no
                if self._receipts:
                    check_reply(rx_no, outcome.reply, self.world.receipt_keys)
                self.accepted.append(rx_no)
        return Turn(used_ns / len(uploads) / 1000, segment)


async def in_turns(
    targets: Sequence[Target], *, rounds: int, turns: int, calls: int, in_flight: int
) -> dict[Target, list[Turn]]:
    """Each round's uploads to each target, in short turns that change their order; the sum of a round's turns."""
    found: dict[Target, list[Turn]] = {target: [] for target in targets}
    for number in range(rounds):
        ready = {target: await target.ready(calls * turns) for target in targets}
        parts: dict[Target, list[Turn]] = {target: [] for target in targets}
        for turn in range(turns):
            shift = (number + turn) % len(targets)
            for target in [*targets[shift:], *targets[:shift]]:
                mine = ready[target][turn * calls : (turn + 1) * calls]
                parts[target].append(await target.turn(mine, in_flight))
        for target, some in parts.items():
            whole = some[0].segment._replace(
                outcomes=[outcome for part in some for outcome in part.segment.outcomes],
                elapsed_s=sum(part.segment.elapsed_s for part in some),
            )
            found[target].append(Turn(sum(part.cpu_us for part in some) / len(some), whole))
    return found


def signatures_us(world: World, uploads: Sequence[Upload], suite: str = SUITE) -> float:
    """CPU of one upload's signature checks (microseconds)."""
    return SIGNATURES * verification_cpu_ns(world, suite, uploads[:100]) / 1000


def bare_fsync_us(folder: Path, times: int = 100) -> float:
    """Wall time of one fsync after 8 KiB were appended to a file of that disk (microseconds, median)."""
    found = []
    path = folder / "fsync"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        for _ in range(times):
            os.write(descriptor, bytes(8192))
            begun = time.perf_counter_ns()
            os.fsync(descriptor)
            found.append((time.perf_counter_ns() - begun) / 1000)
    finally:
        os.close(descriptor)
        path.unlink()
    return median(found)
