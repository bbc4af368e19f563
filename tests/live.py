"""A real hub for tests: gRPC over mutual TLS on a random port, a seeded world, and one client for each identity.

Time stands still unless a test moves it. Must never sleep, and must never reach into the hub where a call would do.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erxhub.app import Hub, start_hub
from erxhub.client import (
    AgencyClient,
    AuditorClient,
    ClientIdentity,
    Connection,
    HospitalClient,
    MirrorClient,
    PatientClient,
    PharmacyClient,
    RetryPolicy,
)
from erxhub.config import Config
from erxhub.crypto.ca import TrustDomain
from erxhub.crypto.suites import SigningKey
from erxhub.keys import HubKeys
from erxhub.ledger.memory import MemoryStore
from erxhub.ledger.sqlite import open_sqlite
from erxhub.ledger.store import Store
from erxhub.ports import ManualClock, Pause, SeededIds, system_pause
from erxhub.proof.policy import Policy
from erxhub.rpc.server import FixedIdentity, Layer, ServerIdentity
from erxhub.seed import SeedWorld, register_world
from erxhub.v1 import common_pb2

START_MS = 1_795_140_000_000
"""2026-11-20 10:00 in Beijing. The hub's clock begins here; only TLS goes by the machine's."""

CERTIFICATE_DAYS = 800
"""From where the hub's clock begins until long after the machine's: both judge a certificate."""

AGENCY = "330100"
HOSPITAL = "H33010099901"
HOSPITAL_B = "H33010099902"
PHARMACY = "P33010099101"
PHARMACY_B = "P33010099102"
CHANNEL = "demo-app"
PERSON = "33010000990001"
EMPLOYEE = "33010000990002"
CHILD = "33010000990003"
AUDITOR = "auditor-1"

MINUTE_MS = 60_000
HOUR_MS = 3_600_000
DAY_MS = 86_400_000

CLIENTS: dict[str, type[Any]] = {
    "hospital": HospitalClient,
    "pharmacy": PharmacyClient,
    "channel": PatientClient,
    "agency": AgencyClient,
    "auditor": AuditorClient,
    "mirror": MirrorClient,
}


class _Environment:
    """The clients' clock is the hub's, and they never really wait."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock

    def now_ms(self) -> int:
        return self._clock.now_ms()

    def below(self, bound: int) -> int:
        return bound // 2

    async def sleep_ms(self, duration_ms: int) -> None:
        await asyncio.sleep(0)


class _RequestIds:
    """Ids that never repeat in a test run, so that two clients of one institution never meet by chance."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def new(self) -> str:
        return f"request-{next(self._numbers):012d}"


REQUEST_IDS = _RequestIds()


@dataclass
class Live:
    """A running hub and what a test needs to talk to it."""

    hub: Hub
    clock: ManualClock
    trust: TrustDomain
    hub_keys: HubKeys
    start_ms: int
    stack: AsyncExitStack
    start: Callable[[Store, str], Awaitable[Hub]]
    world: SeedWorld = field(init=False)
    _clients: dict[tuple[str, str], Any] = field(default_factory=dict)

    @property
    def target(self) -> str:
        """Where the hub listens."""
        return f"localhost:{self.hub.port}"

    @property
    def receipt_keys(self) -> dict[str, bytes]:
        """The hub's pinned receipt key."""
        return {self.hub_keys.receipt.key_id: self.hub_keys.receipt.public_key}

    def identity(self, role: str, peer_id: str) -> ClientIdentity:
        """A fresh certificate of the trust domain."""
        issued = self.trust.issue_tls(role, peer_id, self.start_ms, CERTIFICATE_DAYS)
        return ClientIdentity(self.trust.ca_pem, issued.cert_pem, issued.key_pem)

    async def connect(
        self, role: str, peer_id: str, identity: ClientIdentity | None = None, *, attempts: int = 2
    ) -> Any:
        """A new typed client over a connection of its own; with one attempt it shows the first failure."""
        connection = Connection(
            self.target,
            identity or self.identity(role, peer_id),
            receipt_keys=self.receipt_keys,
            environment=_Environment(self.clock),
            retry=RetryPolicy(attempts=attempts, backoff_ms=10, backoff_max_ms=20),
        )
        await self.stack.enter_async_context(connection)
        kind = CLIENTS[role]
        reason = {"case_reason": "case T-1"} if kind is AuditorClient else {}
        return kind(connection, request_ids=REQUEST_IDS, **reason)

    async def client(self, role: str, peer_id: str) -> Any:
        """The client of an identity, connected once."""
        if (role, peer_id) not in self._clients:
            self._clients[role, peer_id] = await self.connect(role, peer_id)
        return self._clients[role, peer_id]

    async def hospital(self, code: str = HOSPITAL) -> HospitalClient:
        """A hospital's client."""
        client: HospitalClient = await self.client("hospital", code)
        return client

    async def pharmacy(self, code: str = PHARMACY) -> PharmacyClient:
        """A pharmacy's client."""
        client: PharmacyClient = await self.client("pharmacy", code)
        return client

    async def channel(self, channel_id: str = CHANNEL) -> PatientClient:
        """The patient channel's client."""
        client: PatientClient = await self.client("channel", channel_id)
        return client

    async def agency(self, area: str = AGENCY) -> AgencyClient:
        """The agency's client."""
        client: AgencyClient = await self.client("agency", area)
        return client

    async def insure(self, person_no: str, *, balance_fen: int = 0, activated: bool = True) -> None:
        """Register one more fictional person, who uses the channel unless told otherwise."""
        await (await self.agency()).register_person(
            person_no=person_no,
            name="何示例",
            certificate_type="08",
            id_number=f"E{person_no}",
            sex=common_pb2.SEX_FEMALE,
            born_on="1986-02-03",
            insured_area_code="330100",
            insurance_type="310",
            person_type="1101",
            account_balance_fen=balance_fen,
        )
        if activated:
            await (await self.channel()).activate_voucher(person_no=person_no)

    async def auditor(self) -> AuditorClient:
        """The auditor's client, with a case reason."""
        client: AuditorClient = await self.client("auditor", AUDITOR)
        return client

    def key(self, subject: str, institution: str) -> SigningKey:
        """A seeded signing key."""
        return self.world.signing_keys[subject, institution]

    async def restart(self, store: Callable[[], Awaitable[Store]]) -> None:
        """Stop the hub and start it again with the same keys at the same port, on the store that is opened then."""
        await self.hub.stop()
        self.hub = await self.start(await store(), f"127.0.0.1:{self.hub.port}")

    def advance(self, ms: int) -> None:
        """Move the hub's clock, and with it the clients'."""
        self.clock.advance(ms)


@asynccontextmanager
async def live_hub(
    *,
    database: Path | None = None,
    store: Store | None = None,
    suite: str = "ES256",
    config: Config | None = None,
    seed: bool = True,
    pause: Pause = system_pause,
    start_ms: int = START_MS,
    hub_keys: HubKeys | None = None,
    layers: Sequence[Layer] = (),
    high_water: Path | None = None,
    witnesses: Policy | None = None,
) -> AsyncIterator[Live]:
    """Start a hub on memory (or a SQLite file), seed it, and stop it at the end.

    `start_ms` is where its clock begins; never after the machine's, by which TLS judges the trust domain.
    """
    clock = ManualClock(start_ms)
    trust = TrustDomain.in_memory("erxhub.test", start_ms)
    server = trust.issue_tls("hub", "hub-1", start_ms, CERTIFICATE_DAYS, hosts=("localhost", "127.0.0.1"))
    hub_keys = hub_keys or HubKeys.generate(SeededIds(99))
    seeds = itertools.count(11)

    async def start(on: Store, address: str) -> Hub:
        return await start_hub(
            on,
            FixedIdentity(ServerIdentity(server.cert_pem, server.key_pem, trust.ca_pem)),
            hub_keys,
            address=address,
            config=config or Config(drain_ms=200, drain_quiet_ms=0),
            clock=clock,
            # A hub that starts again on its ledger draws other values than before.
            ids=SeededIds(next(seeds)),
            pause=pause,
            layers=layers,
            high_water=high_water,
            witnesses=witnesses,
        )

    if store is None:
        store = await open_sqlite(database) if database is not None else MemoryStore()
    hub = await start(store, "127.0.0.1:0")
    async with AsyncExitStack() as stack:
        live = Live(hub, clock, trust, hub_keys, start_ms, stack, start)
        try:
            if seed:
                live.world = await register_world(await live.agency(), trust, start_ms, suite)
                channel = await live.channel()
                for person_no in (PERSON, EMPLOYEE, CHILD):
                    await channel.activate_voucher(person_no=person_no)
            yield live
        finally:
            await stack.aclose()
            await live.hub.stop()
