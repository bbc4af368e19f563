"""A closed loop of unary calls: always the same number in flight, each answered before its place takes the next."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import grpc

from erxhub.client import ClientIdentity

UPLOAD = "/erxhub.v1.PrescribingService/UploadPrescription"
CONNECTIONS = 4
"""Connections that calls in flight are spread over; one call in flight uses one."""

_MESSAGE_BYTES_MAX = 16 * 1024 * 1024


class Outcome(NamedTuple):
    """One call: its place in the requests, gRPC status name, reply bytes (b"" unless OK), seconds it took."""

    place: int
    status: str
    reply: bytes
    seconds: float


class Segment(NamedTuple):
    """What one stretch of calls gave."""

    outcomes: list[Outcome]
    elapsed_s: float

    @property
    def throughput(self) -> float:
        """Answered calls a second."""
        return len(self.outcomes) / self.elapsed_s

    def latency_ms(self, share: float) -> float:
        """The latency that `share` of the calls did not exceed."""
        ordered = sorted(outcome.seconds for outcome in self.outcomes)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000

    def statuses(self) -> Counter[str]:
        """How many calls ended with which status."""
        return Counter(outcome.status for outcome in self.outcomes)


Calls = Sequence[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]]


@asynccontextmanager
async def connected(port: int, identity: ClientIdentity) -> AsyncGenerator[Calls, None]:
    """The upload method over CONNECTIONS connections to a server; bytes go out and come in as they are."""
    credentials = grpc.ssl_channel_credentials(identity.ca_pem, identity.key_pem, identity.cert_pem)
    options: list[tuple[str, Any]] = [
        ("grpc.use_local_subchannel_pool", 1),  # otherwise equal channels share one connection
        ("grpc.enable_retries", 0),
        ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
        ("grpc.max_metadata_size", 16 * 1024),
    ]
    channels = [grpc.aio.secure_channel(f"localhost:{port}", credentials, options) for _ in range(CONNECTIONS)]
    try:
        for channel in channels:
            await channel.channel_ready()
        yield [channel.unary_unary(UPLOAD, None, None) for channel in channels]
    finally:
        for channel in channels:
            await channel.close()


async def run(calls: Calls, requests: Sequence[bytes], in_flight: int) -> Segment:
    """Send every request once, `in_flight` at a time."""
    outcomes: list[Outcome] = []
    places = iter(range(len(requests)))

    async def worker(call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes], places: Iterator[int]) -> None:
        for place in places:
            begun = time.perf_counter()
            try:
                reply, status = await call(requests[place]), "OK"
            except grpc.aio.AioRpcError as error:
                reply, status = b"", error.code().name
            outcomes.append(Outcome(place, status, reply, time.perf_counter() - begun))

    begun = time.perf_counter()
    await asyncio.gather(*(worker(calls[number % len(calls)], places) for number in range(in_flight)))
    return Segment(outcomes, time.perf_counter() - begun)
