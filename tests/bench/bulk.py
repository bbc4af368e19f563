"""Uploads over one bulk stream against single calls: server CPU per prescription. `python -m tests.bench.bulk`.

The same hub and the same prepared requests as in the benchmark, in turns. The cost of the signature checks, measured in
the same run, is subtracted from both sides, since each prescription pays it either way.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import grpc

from erxhub.v1 import prescribing_pb2
from tests.bench import load
from tests.bench.answers import AnswerWrong, check_reply
from tests.bench.processes import ServerProcess
from tests.bench.signatures import verification_cpu_ns
from tests.bench.world import SIGNATURES, Upload, World

BULK = "/erxhub.v1.PrescribingService/UploadPrescriptions"
SUITE = "ES256"
IN_FLIGHT = 64
_WARM = 128
_VERIFICATIONS = 100


async def upload_many(channel: grpc.aio.Channel, uploads: Sequence[Upload], items_a_message: int) -> list[bytes]:
    """All uploads over one stream; their replies in order."""
    call = channel.stream_stream(
        BULK,
        prescribing_pb2.UploadPrescriptionsRequest.SerializeToString,
        prescribing_pb2.UploadPrescriptionsResponse.FromString,
    )()

    async def write() -> None:
        for begin in range(0, len(uploads), items_a_message):
            items = [
                prescribing_pb2.UploadPrescriptionRequest.FromString(upload.request)
                for upload in uploads[begin : begin + items_a_message]
            ]
            await call.write(prescribing_pb2.UploadPrescriptionsRequest(items=items))
        await call.done_writing()

    writing = asyncio.create_task(write())
    replies = []
    async for message in call:
        for result in message.results:
            if result.HasField("refused"):
                raise AnswerWrong(f"an item was refused with {result.refused.code}")
            replies.append(result.accepted.SerializeToString())
    await writing
    return replies


async def measure(folder: Path, rounds: int, count: int, items: Sequence[int]) -> None:
    world = World(folder)
    with ServerProcess("tests.bench.hub_server", str(folder)) as hub:
        await world.populate(hub.port)
        credentials = grpc.ssl_channel_credentials(
            world.hospital.ca_pem, world.hospital.key_pem, world.hospital.cert_pem
        )
        async with (
            load.connected(hub.port, world.hospital) as unary,
            grpc.aio.secure_channel(f"localhost:{hub.port}", credentials) as channel,
        ):
            warm = (await world.prepare(hub.port, {SUITE: _WARM}))[SUITE]
            await load.run(unary, [upload.request for upload in warm[: _WARM // 2]], 16)
            await upload_many(channel, warm[_WARM // 2 :], 16)
            found: dict[int, list[float]] = {size: [] for size in (0, *items)}
            signatures = []
            for number in range(rounds):
                ready = (await world.prepare(hub.port, {SUITE: count * len(found)}))[SUITE]
                signatures.append(SIGNATURES * verification_cpu_ns(world, SUITE, ready[:_VERIFICATIONS]) / 1000)
                order = list(found)
                order = order[number % len(order) :] + order[: number % len(order)]
                for place, size in enumerate(order):
                    mine = ready[place * count : (place + 1) * count]
                    before_ns = hub.cpu_ns()
                    if size:
                        replies = await upload_many(channel, mine, size)
                    else:
                        segment = await load.run(unary, [upload.request for upload in mine], IN_FLIGHT)
                        replies = [outcome.reply for outcome in sorted(segment.outcomes)]
                    found[size].append((hub.cpu_ns() - before_ns) / count / 1000)
                    for upload, reply in zip(mine, replies, strict=True):
                        check_reply(upload.rx_no, reply, world.receipt_keys)
    verification_us = statistics.median(signatures)
    single_us = statistics.median(found[0])
    print(f"signature checks {verification_us:.0f} µs; a single call {single_us:.0f} µs, {IN_FLIGHT} in flight")
    for size in items:
        many_us = statistics.median(found[size])
        net = (single_us - verification_us) / (many_us - verification_us)
        print(
            f"{size:3} items a message: {many_us:.0f} µs ({min(found[size]):.0f}–{max(found[size]):.0f}), "
            f"net of signature checks {net:.2f} × better, whole {single_us / many_us:.2f} ×"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=768, help="uploads of one target in one round")
    parser.add_argument("--items", type=int, nargs="+", default=[1, 32], help="items in one message")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(Path(folder), options.rounds, options.count, options.items))


if __name__ == "__main__":
    main()
