"""The first rows: uploads with P-256 and SM2 against an echo, and one SM2 verification against OpenSSL's."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.bench import load, report
from tests.bench.answers import AnswerWrong, check_ledger, check_reply
from tests.bench.load import Calls, Segment
from tests.bench.processes import ServerProcess
from tests.bench.report import ECHOES, UPLOADS, Measured, Rounds
from tests.bench.results import Results
from tests.bench.saying import say
from tests.bench.signatures import openssl_sm2_verification_ns, verification_cpu_ns
from tests.bench.targets import bare_fsync_us
from tests.bench.world import Upload, World

_VERIFICATIONS = 100  # uploads whose signatures are verified to time one


_TURNS = 4  # stretches that a round's calls are cut into, each target taking its turn


class Stretch(NamedTuple):
    """Calls that one server answered without a break, and the CPU it used for them."""

    cpu_ns: int
    segment: Segment


@dataclass(frozen=True)
class Plan:
    """How much is measured. `calls` is by number in flight, per round and target."""

    rounds: int
    calls: dict[int, int]
    overload_in_flight: int
    overload_calls: int


FULL = Plan(rounds=7, calls={1: 400, 64: 1536, 256: 2048}, overload_in_flight=2048, overload_calls=4096)
QUICK = Plan(rounds=1, calls={1: 20, 64: 128, 256: 256}, overload_in_flight=2048, overload_calls=2048)
TINY = Plan(rounds=1, calls={1: 4, 64: 64}, overload_in_flight=128, overload_calls=128)
"""For the test of the benchmark itself; its numbers say nothing."""


class Bench:
    """One run against one hub and one echo."""

    def __init__(self, plan: Plan, world: World, hub: ServerProcess) -> None:
        self.plan = plan
        self.world = world
        self.hub = hub
        self.rounds = Rounds()
        self.accepted: list[str] = []
        self.overload: Counter[str] = Counter()

    async def run(self) -> None:
        """Warm up, then the rounds, then the greatest number in flight."""
        async with load.connected(self.hub.port, self.world.hospital) as uploading:
            warm = await self.world.prepare(self.hub.port, dict.fromkeys(UPLOADS.values(), 64))
            for uploads in warm.values():
                first = self._take(uploads, await load.run(uploading, _requests(uploads), 16))
            reply_bytes = len(first.outcomes[0].reply)
            servers = dict.fromkeys(UPLOADS, (self.hub, uploading))
            async with AsyncExitStack() as echoes:
                for target, options in ECHOES.items():
                    words = (str(self.world.folder), str(reply_bytes), *options)
                    echo = echoes.enter_context(ServerProcess("tests.bench.echo_server", *words))
                    echoing = await echoes.enter_async_context(load.connected(echo.port, self.world.hospital))
                    self._echoed(await load.run(echoing, _requests(uploads), 16), reply_bytes)
                    servers[target] = (echo, echoing)
                for number in range(self.plan.rounds):
                    await self._round(number, servers, reply_bytes)
                    say(f"round {number + 1} of {self.plan.rounds}")
            await self._overload(uploading)

    async def _round(self, number: int, servers: Mapping[str, tuple[ServerProcess, Calls]], reply_bytes: int) -> None:
        ready = await self.world.prepare(self.hub.port, dict.fromkeys(UPLOADS.values(), sum(self.plan.calls.values())))
        for target, suite in UPLOADS.items():
            used = verification_cpu_ns(self.world, suite, ready[suite][:_VERIFICATIONS])
            self.rounds.verification_us.setdefault(target, []).append(used / 1000)
        self.rounds.fsync_us.append(bare_fsync_us(self.world.folder))
        openssl_ns = openssl_sm2_verification_ns()
        if openssl_ns is not None:
            self.rounds.openssl_sm2_us.append(openssl_ns / 1000)
        begin = 0
        for in_flight, calls in self.plan.calls.items():
            stretches: dict[str, list[Stretch]] = {target: [] for target in servers}
            size = max(in_flight, calls // _TURNS)
            for turn, first in enumerate(range(begin, begin + calls, size)):
                # Short turns, and who comes first changes, so that whatever else the machine does meets all alike.
                targets = list(stretches)
                shift = (number + turn) % len(targets)
                for target in targets[shift:] + targets[:shift]:
                    uploads = ready[UPLOADS.get(target, "ES256")][first : min(first + size, begin + calls)]
                    server, calling = servers[target]
                    before_ns = server.cpu_ns()
                    segment = await load.run(calling, _requests(uploads), in_flight)
                    stretches[target].append(Stretch(server.cpu_ns() - before_ns, segment))
                    if target in ECHOES:
                        self._echoed(segment, reply_bytes)
                    else:
                        self._take(uploads, segment)
            for target, parts in stretches.items():
                self.rounds.segments.setdefault((target, in_flight), []).append(_measured(parts))
            begin += calls

    async def _overload(self, uploading: Calls) -> None:
        ready = await self.world.prepare(self.hub.port, {"ES256": self.plan.overload_calls})
        uploads = ready["ES256"]
        segment = await load.run(uploading, _requests(uploads), self.plan.overload_in_flight)
        self.overload = segment.statuses()
        self._keep(uploads, segment)

    def _take(self, uploads: Sequence[Upload], segment: Segment) -> Segment:
        """Every call of a measured stretch is OK, or the numbers are about something else."""
        statuses = segment.statuses()
        if set(statuses) != {"OK"}:
            raise AnswerWrong(f"uploads ended {dict(statuses)}")
        return self._keep(uploads, segment)

    def _keep(self, uploads: Sequence[Upload], segment: Segment) -> Segment:
        for outcome in segment.outcomes:
            if outcome.status == "OK":
                rx_no = uploads[outcome.place].rx_no
                check_reply(rx_no, outcome.reply, self.world.receipt_keys)
                self.accepted.append(rx_no)
        return segment

    @staticmethod
    def _echoed(segment: Segment, reply_bytes: int) -> None:
        if any(outcome.status != "OK" or len(outcome.reply) != reply_bytes for outcome in segment.outcomes):
            raise AnswerWrong(f"the echo ended {dict(segment.statuses())}")


def _measured(parts: Sequence[Stretch]) -> Measured:
    """One round's numbers from its stretches."""
    whole = Segment(
        [outcome for part in parts for outcome in part.segment.outcomes],
        sum(part.segment.elapsed_s for part in parts),
    )
    cpu_ns = sum(part.cpu_ns for part in parts)
    return Measured(
        cpu_ns / len(whole.outcomes) / 1000, whole.throughput, whole.latency_ms(0.5), whole.latency_ms(0.99)
    )


def _requests(uploads: Sequence[Upload]) -> list[bytes]:
    return [upload.request for upload in uploads]


async def measure(plan: Plan, folder: Path, results: Results) -> str:
    """Run the plan and put down its goals and figures; returns the table. Raises AnswerWrong."""
    world = World(folder)
    # What the log costs is a row of its own (proofs on ÷ off); these rows are as old as the lane.
    with ServerProcess("tests.bench.hub_server", str(folder), "--without-log") as hub:
        await world.populate(hub.port)
        bench = Bench(plan, world, hub)
        await bench.run()
    entries = await check_ledger(folder / "ledger.db", bench.accepted, hashlib.sha256(world.file).digest())
    answers = {"ok_replies": len(bench.accepted), "rows": len(bench.accepted), "entries_verified": entries}
    report.put(results, bench.rounds, overload=bench.overload, overload_in_flight=plan.overload_in_flight)
    results.note("answers", answers)
    return report.table(bench.rounds)
