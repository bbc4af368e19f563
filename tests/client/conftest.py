"""The trust domain, the fake hub and the callers of the client tests."""

from collections.abc import AsyncIterator, Callable

import pytest

from erxhub.client import Connection, SystemEnvironment
from erxhub.crypto.ca import Identity, TrustDomain
from tests.client.fake_hub import QUICK, FakeEnvironment, FakeHub, client_identity, running_hub

HOSPITAL = "H33010600001"
PHARMACY = "P33010600002"


@pytest.fixture(scope="session")
def now_ms() -> int:
    """The true time, because a TLS library asks nobody else."""
    return SystemEnvironment().now_ms()


@pytest.fixture(scope="session")
def trust_domain(now_ms: int) -> TrustDomain:
    return TrustDomain.in_memory("erxhub.example", now_ms)


@pytest.fixture(scope="session")
def hub_identity(trust_domain: TrustDomain, now_ms: int) -> Identity:
    return trust_domain.issue_tls("hub", "hub-1", now_ms, 30, ("localhost",))


@pytest.fixture(scope="session")
def hospital_identity(trust_domain: TrustDomain, now_ms: int) -> Identity:
    return trust_domain.issue_tls("hospital", HOSPITAL, now_ms, 30)


@pytest.fixture
async def hub(hub_identity: Identity) -> AsyncIterator[FakeHub]:
    async with running_hub(hub_identity) as hub:
        yield hub


@pytest.fixture
def environment(now_ms: int) -> FakeEnvironment:
    return FakeEnvironment(now_ms)


@pytest.fixture
async def connection(
    hub: FakeHub, hospital_identity: Identity, environment: FakeEnvironment
) -> AsyncIterator[Connection]:
    async with Connection(
        hub.target, client_identity(hospital_identity), retry=QUICK, environment=environment
    ) as connection:
        yield connection


@pytest.fixture
async def connected(
    hub: FakeHub, trust_domain: TrustDomain, now_ms: int, environment: FakeEnvironment
) -> AsyncIterator[Callable[[str, str], Connection]]:
    """Makes connections for other roles; all are closed at the end."""
    made: list[Connection] = []

    def connect(role: str, peer_id: str) -> Connection:
        identity = client_identity(trust_domain.issue_tls(role, peer_id, now_ms, 30))
        made.append(Connection(hub.target, identity, retry=QUICK, environment=environment))
        return made[-1]

    yield connect
    for connection in made:
        await connection.close()
