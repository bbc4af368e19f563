"""Rows about watches: what an idle one takes of memory, and how long an event is on its way with 1,000 of them open."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any

import grpc

from erxhub.client import ClientIdentity
from erxhub.v1 import dispensing_pb2, prescribing_pb2
from tests import postgres
from tests.bench import load
from tests.bench.answers import AnswerWrong, check_reply
from tests.bench.echo_server import WATCH
from tests.bench.processes import ServerProcess
from tests.bench.results import Results, percentile
from tests.bench.rows_chains import new_postgres
from tests.bench.world import World

STREAMS = 1000
_ORDERS = "/erxhub.v1.DispensingService/WatchOrders"
_PRESCRIPTIONS = "/erxhub.v1.PrescribingService/WatchPrescriptions"
_AT_ONCE = 50
_ARRIVES_S = 10.0


async def watches(folder: Path, quick: bool, results: Results) -> None:
    """Memory of an idle watch ÷ of a bare stream; an event's way on SQLite and, from hub to hub, on PostgreSQL."""
    streams, events, rounds = (100, 50, 1) if quick else (STREAMS, 400, 3)
    world = World(folder)
    identities = [world.identity("pharmacy", f"P330100{number:05d}") for number in range(streams)]
    memory, bare_kib, watch_kib = [], [], []
    ratios, ways_ms, whole_ms = [], [], []
    for _ in range(rounds):
        with ServerProcess("tests.bench.echo_server", str(folder), "1000") as echo:
            async with AsyncExitStack() as stack:
                bare = await _opened(stack, echo, WATCH, identities, b"")
                echo_ms = await _echo_p50_ms(echo, world, events)
        with ServerProcess("tests.bench.hub_server", str(folder)) as hub:
            if not world.encounter_id:
                await world.populate(hub.port)
            async with AsyncExitStack() as stack:
                empty = dispensing_pb2.WatchOrdersRequest().SerializeToString()
                watching = await _opened(stack, hub, _ORDERS, identities, empty)
                ways, wholes = await _ways_ms(hub.port, hub.port, world, events)
        memory.append(watching / bare)
        bare_kib.append(bare / 1024)
        watch_kib.append(watching / 1024)
        ratios.append(median(ways) / echo_ms)
        ways_ms.append(median(ways))
        whole_ms.append(median(wholes))
    results.goal("watch_memory_vs_bare_stream", memory, 1.5)
    results.figure("bare_stream_kib", bare_kib)
    results.figure("watch_kib", watch_kib)
    results.goal("watch_route_p50_vs_echo", ratios, 3)
    results.figure("watch_route_p50_ms", ways_ms)
    results.figure("watch_call_to_event_p50_ms", whole_ms)
    await _between_hubs(folder / "postgres", identities, events, results)


async def _between_hubs(folder: Path, identities: list[ClientIdentity], events: int, results: Results) -> None:
    goal = "watch_route_p99_ms_postgres"
    if postgres.binaries() is None:
        results.not_measured(goal, 150)
        return
    world = World(folder)
    identities = [world.identity("pharmacy", f"P330100{number:05d}") for number in range(len(identities))]
    async with AsyncExitStack() as stack:
        _, url = new_postgres(stack)
        writing, telling = (
            stack.enter_context(
                ServerProcess("tests.bench.hub_server", str(folder), "--db", url, "--hub-id", f"hub-{number}")
            )
            for number in (1, 2)
        )
        await world.populate(writing.port)
        empty = dispensing_pb2.WatchOrdersRequest().SerializeToString()
        await _opened(stack, telling, _ORDERS, identities, empty)
        ways, wholes = await _ways_ms(writing.port, telling.port, world, events)
    results.goal(goal, [percentile(ways, 0.99)], 150)
    results.figure("watch_route_p50_ms_postgres", [median(ways)])
    results.figure("watch_call_to_event_p99_ms_postgres", [percentile(wholes, 0.99)])


def _channel(port: int, identity: ClientIdentity) -> grpc.aio.Channel:
    return grpc.aio.secure_channel(
        f"localhost:{port}",
        grpc.ssl_channel_credentials(identity.ca_pem, identity.key_pem, identity.cert_pem),
        [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)],
    )


async def _opened(
    stack: AsyncExitStack, server: ServerProcess, method: str, identities: list[ClientIdentity], request: bytes
) -> float:
    """Open a stream for each identity, over a connection of its own; what one takes of the server, bytes."""
    first, rest = identities[: _AT_ONCE // 5], identities[_AT_ONCE // 5 :]
    await _open_all(stack, server, method, first, request)
    before = server.resident_bytes()
    for begin in range(0, len(rest), _AT_ONCE):
        await _open_all(stack, server, method, rest[begin : begin + _AT_ONCE], request)
    return (server.resident_bytes() - before) / len(rest)


async def _open_all(
    stack: AsyncExitStack, server: ServerProcess, method: str, identities: list[ClientIdentity], request: bytes
) -> None:
    async def open_one(identity: ClientIdentity) -> Any:
        channel = await stack.enter_async_context(_channel(server.port, identity))
        await channel.channel_ready()
        call = channel.unary_stream(method, None, None)(request)
        await call.initial_metadata()  # the stream stands
        reading = asyncio.create_task(call.read())
        stack.callback(reading.cancel)
        stack.callback(call.cancel)
        return call

    calls = await asyncio.gather(*map(open_one, identities))
    if any(call.done() for call in calls):
        raise AnswerWrong("a stream ended that should stay open")


async def _echo_p50_ms(echo: ServerProcess, world: World, calls: int) -> float:
    async with load.connected(echo.port, world.hospital) as calling:
        await load.run(calling, [bytes(18_800)] * 50, 1)
        return (await load.run(calling, [bytes(18_800)] * calls, 1)).latency_ms(0.5)


async def _ways_ms(writing_port: int, telling_port: int, world: World, events: int) -> tuple[list[float], list[float]]:
    """For one upload after another: from its reply to its event at the hospital's watch, and from the call to it."""
    ways, wholes = [], []
    async with _channel(telling_port, world.hospital) as channel, load.connected(writing_port, world.hospital) as calls:
        watch = channel.unary_stream(
            _PRESCRIPTIONS,
            prescribing_pb2.WatchPrescriptionsRequest.SerializeToString,
            prescribing_pb2.WatchPrescriptionsResponse.FromString,
        )(prescribing_pb2.WatchPrescriptionsRequest())
        await watch.initial_metadata()
        arrived: dict[str, asyncio.Future[float]] = {}
        listening = asyncio.create_task(_listen(watch, arrived))
        uploads = (await world.prepare(writing_port, {"ES256": events}))["ES256"]
        loop = asyncio.get_running_loop()
        for upload in uploads:
            arrived[upload.rx_no] = loop.create_future()
            begun = time.perf_counter()
            reply = await calls[0](upload.request)
            replied = time.perf_counter()
            told = await asyncio.wait_for(arrived[upload.rx_no], _ARRIVES_S)
            check_reply(upload.rx_no, reply, world.receipt_keys)
            ways.append(max(0.0, told - replied) * 1000)
            wholes.append((told - begun) * 1000)
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    return ways, wholes


async def _listen(watch: Any, arrived: dict[str, asyncio.Future[float]]) -> None:
    async for message in watch:
        if "prescription.uploaded" in message.events and message.rx_no in arrived:
            arrived[message.rx_no].set_result(time.perf_counter())
