"""Rows about one hub under load: against naive and interpreted ones, on a slow disk, crowded, by stream, with proof."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import grpc

from erxhub import process
from tests.bench import bulk
from tests.bench.results import Results
from tests.bench.targets import Target, Turn, bare_fsync_us, in_turns, signatures_us

IN_FLIGHT = 64
_TURNS = 3


async def naive(folder: Path, quick: bool, results: Results) -> None:
    """Uploads a second of the hub ÷ of a naive hub, at 64 in flight."""
    rounds, calls = (1, 128) if quick else (5, 512)
    async with AsyncExitStack() as stack:
        hub, plain = Target(folder / "hub"), Target(folder / "naive", "--naive")
        found = await _turns(stack, (hub, plain), rounds, calls)
    pairs = list(zip(*found.values(), strict=True))
    results.goal(
        "throughput_vs_naive", [a.segment.throughput / b.segment.throughput for a, b in pairs], 2.5, at_least=True
    )
    results.figure("cpu_vs_naive", [b.cpu_us / a.cpu_us for a, b in pairs])
    results.figure("naive_throughput_at_64", [b.segment.throughput for _, b in pairs])
    results.figure("naive_cpu_us_at_64", [b.cpu_us for _, b in pairs])


async def disk(folder: Path, quick: bool, results: Results) -> None:
    """Throughput with FULL and OFF beside the bare fsync, and with 5 ms of standing still at each commit."""
    rounds, calls = (1, 128) if quick else (5, 512)
    async with AsyncExitStack() as stack:
        full = Target(folder / "full")
        off = Target(folder / "off", "--synchronous", "OFF")
        held = Target(folder / "held", "--hold-ms", "5")
        fsync = [bare_fsync_us(folder)]
        found = await _turns(stack, (full, off, held), rounds, calls)
        fsync.append(bare_fsync_us(folder))
    by_full, by_off, by_held = ([turn.segment.throughput for turn in turns] for turns in found.values())
    results.goal("held_writer_throughput", [b / a for a, b in zip(by_full, by_held, strict=True)], 0.5, at_least=True)
    results.figure("throughput_full_at_64", by_full)
    results.figure("throughput_off_at_64", by_off)
    results.figure("throughput_held_at_64", by_held)
    results.figure("bare_fsync_us", fsync)


async def _turns(
    stack: AsyncExitStack, targets: tuple[Target, ...], rounds: int, calls: int
) -> dict[Target, list[Turn]]:
    for target in targets:
        await target.begin(stack)
    return await in_turns(targets, rounds=rounds, turns=_TURNS, calls=calls, in_flight=IN_FLIGHT)


async def compiled(folder: Path, quick: bool, results: Results) -> None:
    """CPU of an upload of the compiled hub ÷ of the same hub from its .py files, where the benchmark runs compiled."""
    if process.code() != "compiled":
        return
    rounds, calls = (1, 128) if quick else (5, 1024)
    async with AsyncExitStack() as stack:
        hub, plain = Target(folder / "compiled"), Target(folder / "interpreted", interpreted=True)
        found = await _turns(stack, (hub, plain), rounds, calls)
        checks = signatures_us(hub.world, await hub.ready(100))
    pairs = [(a.cpu_us, b.cpu_us) for a, b in zip(found[hub], found[plain], strict=True)]
    results.figure("compiled_vs_interpreted_cpu", [(a - checks) / (b - checks) for a, b in pairs])
    results.figure("compiled_vs_interpreted_cpu_whole", [a / b for a, b in pairs])
    results.figure("compiled_cpu_us", [a for a, _ in pairs])
    results.figure("interpreted_cpu_us", [b for _, b in pairs])


async def crowd(folder: Path, quick: bool, results: Results) -> None:
    """4,096 calls in flight: OK replies for a second of CPU, against those at 64, and how calls end."""
    rounds, in_flight = (1, 4096) if quick else (3, 4096)
    net, whole, ended = [], [], 0
    statuses: dict[str, int] = {}
    async with AsyncExitStack() as stack:
        hub = Target(folder / "hub")
        await hub.begin(stack)
        for _ in range(rounds):
            few = await hub.turn(await hub.ready(1024), IN_FLIGHT)
            many = await hub.turn(await hub.ready(2 * in_flight), in_flight, all_ok=False)
            checks = signatures_us(hub.world, await hub.ready(100))
            net.append(many.ok_per_cpu_s(checks) / few.ok_per_cpu_s(checks))
            whole.append(many.ok_per_cpu_s() / few.ok_per_cpu_s())
            for status, count in many.segment.statuses().items():
                statuses[status] = statuses.get(status, 0) + count
            ended = sum(count for status, count in statuses.items() if status not in ("OK", "RESOURCE_EXHAUSTED"))
    results.goal("ok_per_cpu_at_4096_vs_64", net, 0.8, at_least=True)
    results.figure("ok_per_cpu_at_4096_vs_64_whole", whole)
    results.goal("no_bad_status_at_4096", [ended], 0)
    results.note("statuses_at_4096", statuses)


async def stream(folder: Path, quick: bool, results: Results) -> None:
    """One bulk stream ÷ single calls: server CPU of one prescription, net of its signature checks."""
    rounds, count = (1, 256) if quick else (5, 768)
    sizes = (1, 32)
    found: dict[int, list[float]] = {size: [] for size in (0, *sizes)}
    signatures = []
    async with AsyncExitStack() as stack:
        hub = Target(folder / "hub")
        await hub.begin(stack)
        identity = hub.world.hospital
        channel = await stack.enter_async_context(
            grpc.aio.secure_channel(
                f"localhost:{hub.server.port}",
                grpc.ssl_channel_credentials(identity.ca_pem, identity.key_pem, identity.cert_pem),
            )
        )
        await bulk.upload_many(channel, await hub.ready(64), 16)
        for number in range(rounds):
            order = list(found)
            order = order[number % len(order) :] + order[: number % len(order)]
            for size in order:
                mine = await hub.ready(count)
                if size:
                    before_ns = hub.server.cpu_ns()
                    replies = await bulk.upload_many(channel, mine, size)
                    found[size].append((hub.server.cpu_ns() - before_ns) / count / 1000)
                    bulk.check_replies(hub.world, mine, replies)
                else:
                    found[size].append((await hub.turn(mine, IN_FLIGHT)).cpu_us)
            signatures.append(signatures_us(hub.world, mine))
    for size in sizes:
        net = [
            (single - checks) / (many - checks)
            for single, many, checks in zip(found[0], found[size], signatures, strict=True)
        ]
        results.goal(
            "bulk_vs_unary_cpu" if size == sizes[-1] else f"bulk_vs_unary_cpu_{size}_a_message", net, 1.6, at_least=True
        )
        results.figure(f"bulk_cpu_us_{size}_a_message", found[size])
    results.figure("bulk_single_call_cpu_us", found[0])
    results.figure("bulk_whole", [single / many for single, many in zip(found[0], found[sizes[-1]], strict=True)])


async def proofs(folder: Path, quick: bool, results: Results) -> None:
    """CPU of an upload with log, map, checkpoints and receipts ÷ without any of them."""
    rounds, calls = (1, 256) if quick else (5, 1024)
    async with AsyncExitStack() as stack:
        on, off = Target(folder / "on"), Target(folder / "off", "--without-proofs", receipts=False)
        found = await _turns(stack, (on, off), rounds, calls)
        checks = signatures_us(on.world, await on.ready(100))
    pairs = [(a.cpu_us, b.cpu_us) for a, b in zip(found[on], found[off], strict=True)]
    results.goal("proofs_on_vs_off_cpu", [(a - checks) / (b - checks) for a, b in pairs], 1.25)
    results.figure("proofs_on_vs_off_cpu_whole", [a / b for a, b in pairs])
    results.figure("proofs_on_cpu_us", [a for a, _ in pairs])
    results.figure("proofs_off_cpu_us", [b for _, b in pairs])
