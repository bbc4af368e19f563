"""Connections that name nobody: what fails in the handshake leaves nothing, and the client says which it was."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from erxhub.client import ClientIdentity, Connection, HospitalClient, HubUnreachable, Refusal, RetryPolicy
from erxhub.client.environment import SystemEnvironment
from erxhub.crypto.ca import TrustDomain
from tests.live import DAY_MS, HOSPITAL, HOUR_MS
from tests.refusals.bench import Bench, header_of
from tests.refusals.cases_edge import revoked_client
from tests.refusals.certificates import odd_certificate
from tests.refusals.provoking import Attempt, Expected, refused

pytestmark = pytest.mark.asyncio(loop_scope="module")

MACHINE = SystemEnvironment()
"""TLS goes by the machine's clock."""


@pytest_asyncio.fixture(loop_scope="module", params=["foreign", "expired", "not yet valid", "missing"])
async def stranger(request: pytest.FixtureRequest, bench: Bench) -> AsyncIterator[tuple[HospitalClient, str]]:
    """A client that the hub does not let in, and what its library has to call that."""
    trust, now_ms = bench.live.trust, MACHINE.now_ms()

    def of(issuer: TrustDomain, at_ms: int, days: int) -> ClientIdentity:
        issued = issuer.issue_tls("hospital", HOSPITAL, at_ms, days)
        return ClientIdentity(trust.ca_pem, issued.cert_pem, issued.key_pem)

    identities: dict[str, Callable[[], tuple[ClientIdentity, str]]] = {
        "foreign": lambda: (of(TrustDomain.in_memory("erxhub.test", now_ms), now_ms, 30), "TLS_FOREIGN_CA"),
        "expired": lambda: (of(trust, now_ms - 3 * DAY_MS, 1), "TLS_EXPIRED"),
        "not yet valid": lambda: (of(trust, now_ms + 3 * DAY_MS, 30), "TLS_NOT_YET_VALID"),
        "missing": lambda: (ClientIdentity(trust.ca_pem), "TLS_CERTIFICATE_MISSING"),
    }
    identity, code = identities[request.param]()
    retry = RetryPolicy(attempts=2, backoff_ms=10, backoff_max_ms=20)
    async with Connection(bench.live.target, identity, retry=retry, environment=MACHINE) as connection:
        yield HospitalClient(connection), code


async def test_failed_handshake_leaves_nothing_and_the_client_says_why(
    bench: Bench, stranger: tuple[HospitalClient, str]
) -> None:
    client, code = stranger
    counters = bench.live.hub.engine.counters
    before, counted = await bench.ledger.seen(), dict(counters.counted_only)
    with pytest.raises(HubUnreachable) as caught:
        await client.get(rx_no="1" * 27)
    assert (caught.value.grpc_status, caught.value.code) == ("UNAVAILABLE", code)
    assert caught.value.text_en
    assert caught.value.text_zh
    assert await bench.ledger.seen() == before
    assert counters.counted_only == counted


@pytest.mark.parametrize(("role", "peer_id"), [("hub", "hub-9"), ("supervisor", "330100"), ("mirror", "m-1")])
async def test_identity_of_another_role_may_call_nothing_of_a_hospital(bench: Bench, role: str, peer_id: str) -> None:
    identity = bench.live.identity(role, peer_id)
    client = await bench.live.connect("hospital", HOSPITAL, identity)
    await refused(bench, Attempt(client, client.get(rx_no="1" * 27)), Expected("ROLE_NOT_ALLOWED"))


@pytest.mark.parametrize(
    ("uris", "reason"),
    [
        ((), "NO_URI"),
        ((f"spiffe://elsewhere.test/hospital/{HOSPITAL}",), "FOREIGN_TRUST_DOMAIN"),
        ((f"spiffe://erxhub.test/hospital/{HOSPITAL}", "spiffe://erxhub.test/auditor/auditor-1"), "SEVERAL_URIS"),
        (("spiffe://erxhub.test/hospital/P33010099101",), "MALFORMED"),
        (("spiffe://erxhub.test/king/k-1",), "MALFORMED"),
        ((f"spiffe://erxhub.test/hospital/{HOSPITAL}?admin=1",), "MALFORMED"),
    ],
    ids=["a common name only", "a foreign domain", "two names", "a wrong id", "an unknown role", "a query"],
)
async def test_certificate_without_a_usable_identity_is_counted(
    bench: Bench, uris: tuple[str, ...], reason: str
) -> None:
    nobody = await bench.live.connect("hospital", HOSPITAL, odd_certificate(bench.live.trust, HOSPITAL, *uris))
    for call in (nobody.get(rx_no="1" * 27), nobody.close_encounter(encounter_id="E1"), _opened(nobody)):
        refusal = await refused(bench, Attempt(nobody, call), Expected("PEER_IDENTITY", counted=True))
        assert refusal.metadata["reason"] == reason


async def _opened(client: Any) -> None:
    watch = client.watch()
    try:
        await anext(watch)
    finally:
        await watch.aclose()


@pytest.mark.parametrize("kind", ["read", "command", "watch"])
async def test_revoked_certificate_is_recorded_once_an_hour_and_counted_otherwise(bench: Bench, kind: str) -> None:
    client = await revoked_client(bench)

    def call() -> Any:
        if kind == "watch":
            return _opened(client)
        return client.list_prescriptions() if kind == "read" else client.close_encounter(encounter_id="E1")

    await refused(bench, Attempt(client, call()), Expected("CERT_REVOKED"))
    for _ in range(3):
        await refused(bench, Attempt(client, call()), Expected("CERT_REVOKED", counted=True))
    bench.live.advance(HOUR_MS)
    await refused(bench, Attempt(client, call()), Expected("CERT_REVOKED"))


async def test_revocation_ends_one_certificate_and_not_its_institution(bench: Bench) -> None:
    client = await revoked_client(bench)
    with pytest.raises(Refusal):
        await client.list_prescriptions()
    hospital = await bench.live.hospital()
    before = await bench.ledger.seen()
    await hospital.list_prescriptions()
    entries = await bench.ledger.after(before.position)
    assert [header_of(entry).actor for entry in entries] == [f"hospital/{HOSPITAL}"] * len(entries)
