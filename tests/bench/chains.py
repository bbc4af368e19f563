"""Full chains through gRPC: the simulation's robots at their counters, each caller with a certificate of its own.

A chain is twenty commands, from the patient's first code to the goods in his hands: four codes issued and verified,
visit, diagnosis, pre-check, upload, list, download, review, quote, settlement, dispensing, hand-over. Every person has
one prescription, so that no list grows with the number of chains. Statements are signed with Ed25519.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import grpc

from erxhub.client import AgencyClient, ClientIdentity
from erxhub.core.model import Caller
from erxhub.crypto.envelope import pae
from erxhub.crypto.suites import SUITES
from erxhub.rpc.methods import METHODS
from tests.bench.answers import AnswerWrong
from tests.bench.world import World, now_ms
from tests.simulation import cast, hospital, pharmacy
from tests.simulation.desk import Desk
from tests.simulation.wire import Answer, Call, Pen

COMMANDS = 20
SIGNATURES = 8
"""In one chain: diagnosis; prescription, review and seal; the pharmacy's review; settlement, dispensing, hand-over."""

_REGISTERED_AT_ONCE = 32


class _Now:
    """The robots' clock: the machine's, standing still while one of them writes down a call."""

    def __init__(self) -> None:
        self.at_ms = now_ms()


@dataclass
class ChainWorld:
    """The robots' world on one hub: its callers' connections, and persons who wait to fall ill."""

    world: World
    seed: int = 1
    _channels: dict[str, grpc.aio.Channel] = field(default_factory=dict)
    _registered: int = 0

    def __post_init__(self) -> None:
        self.desk = Desk(Random(self.seed), _Now(), Pen(signs=True))  # type: ignore[arg-type]

    def tell_time(self) -> None:
        """Let the robots know how late it is; before each call that one writes."""
        self.desk.clock.at_ms = now_ms()

    def person(self) -> cast.Person:
        """A person whom nobody knows yet."""
        self._registered += 1
        number = f"330100{self.seed:02d}{self._registered:06d}"
        return cast.Person(number, "林示例", "08", f"E{self.seed}{self._registered:07d}", "1961-04-12", 1_000_000)

    async def populate(self, port: int, *, beside: bool = False) -> None:
        """Register the cast. `beside`: on a ledger where the benchmark's own hospital is known already."""
        async with self.connected(port):
            if not beside:
                await self._import(port)
            for round_ in cast.registrations(now_ms()):
                await asyncio.gather(*(self._register(row, beside) for row in round_ if "Import" not in row[1]))

    async def _import(self, port: int) -> None:
        identity = identity_of(self.world, cast.AGENCY)
        async with AgencyClient.connect(f"localhost:{port}", identity) as agency:
            for batch in (cast.drug_import("2026"), cast.disease_import("2026")):
                rows = [_entry(line, batch.header.dataset, row) for line, row in enumerate(batch.rows, start=2)]
                await agency.import_catalog(
                    dataset=batch.header.dataset,
                    edition=batch.header.edition,
                    valid_from_on=batch.header.valid_from_on,
                    file_sha256=bytes(32),
                    entries=rows,
                    source="bench",
                )

    async def _register(self, row: cast.Registration, beside: bool) -> None:
        answer = await self.send(self.desk.call(*row))
        if not answer.ok and not beside:
            raise AnswerWrong(f"{row[1]} was refused with {answer.code}")

    @asynccontextmanager
    async def connected(self, port: int) -> AsyncGenerator[None, None]:
        """A connection for each caller."""
        callers = (cast.AGENCY, *cast.HOSPITALS, *cast.PHARMACIES, *cast.CHANNELS)
        async with AsyncExitStack() as stack:
            for caller in callers:
                identity = identity_of(self.world, caller)
                channel = grpc.aio.secure_channel(
                    f"localhost:{port}",
                    grpc.ssl_channel_credentials(identity.ca_pem, identity.key_pem, identity.cert_pem),
                    [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)],
                )
                self._channels[caller.actor] = await stack.enter_async_context(channel)
            yield

    async def send(self, call: Call) -> Answer:
        """One call as its caller sends it."""
        multicallable = self._channels[call.caller.actor].unary_unary(f"/erxhub.v1.{call.method}", None, None)
        try:
            body = await multicallable(call.request.SerializeToString())
        except grpc.aio.AioRpcError as error:
            return Answer(f"{error.code().name}: {error.details()}")
        return Answer("OK", METHODS[call.method].response.FromString(body), body)

    async def admit(self, count: int) -> list[cast.Person]:
        """Register so many new persons, and their channel."""
        persons = [self.person() for _ in range(count)]
        for begin in range(0, count, _REGISTERED_AT_ONCE):
            some = persons[begin : begin + _REGISTERED_AT_ONCE]
            await asyncio.gather(*(self.admit_one(who) for who in some))
        return persons

    async def admit_one(self, who: cast.Person) -> None:
        """Register a person, and activate his voucher."""
        for caller, method, request in (
            (cast.AGENCY, "RegistryService/RegisterPerson", cast.person(who)),
            (cast.CHANNELS[0], "VoucherService/ActivateVoucher", cast.activation(who)),
        ):
            answer = await self.send(self.desk.call(caller, method, request))
            if not answer.ok:
                raise AnswerWrong(f"{method} was refused with {answer.code}")

    async def chain(self, who: cast.Person) -> str:
        """One full chain; returns the prescription's number. Raises AnswerWrong when any step is refused."""

        def journey() -> Any:
            rx = yield from hospital.visited(self.desk, who, cast.WARDS[0])
            assert rx is not None
            yield from pharmacy.fill_this(self.desk, rx, cast.SHOPS[0])
            return rx.rx_no

        steps, commands = journey(), 0
        self.tell_time()
        call = next(steps)
        while True:
            answer = await self.send(call)
            commands += 1
            if not answer.ok:
                raise AnswerWrong(f"{call.method} was refused with {answer.code}")
            self.tell_time()
            try:
                call = steps.send(answer)
            except StopIteration as done:
                if commands != COMMANDS:
                    raise AnswerWrong(f"a chain took {commands} commands") from None
                return str(done.value)

    async def run(self, persons: list[cast.Person], in_flight: int) -> tuple[list[str], float]:
        """A chain for each person, `in_flight` at a time: the prescriptions' numbers, and seconds."""
        waiting: Iterator[cast.Person] = iter(persons)
        numbers: list[str] = []

        async def robot() -> None:
            for who in waiting:
                number = await self.chain(who)
                numbers.append(number)

        begun = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(robot())
        return numbers, time.perf_counter() - begun


def identity_of(world: World, caller: Caller) -> ClientIdentity:
    """A certificate of the benchmark's trust domain for one of the cast."""
    return world.identity(caller.kind, caller.id)


def _entry(line: int, dataset: Any, row: tuple[str, str, str, bytes]) -> Any:
    from erxhub.v1 import catalog_pb2

    entry = catalog_pb2.CatalogEntry(line=line)
    content = entry.drug if dataset == catalog_pb2.CATALOG_DATASET_DRUGS else entry.disease
    content.MergeFromString(row[3])
    return entry


def verification_us() -> float:
    """CPU of one verification of a chain's signatures (microseconds)."""
    suite, key = SUITES[cast.SUITE], cast.signing_key("bench")
    message = pae("bench", bytes(1500))
    signature = key.sign(message)
    begun = time.thread_time_ns()
    for _ in range(200):
        assert suite.verify(key.public_key, message, signature)
    return (time.thread_time_ns() - begun) / 200 / 1000
