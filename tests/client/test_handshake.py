"""A failed handshake: the hub only closes the socket, so the client says what is wrong with the certificates here."""

import dataclasses

import grpc
import pytest

from erxhub.client import ClientIdentity, Connection, HospitalClient, HubUnreachable
from erxhub.crypto.ca import Identity, TrustDomain
from tests.client.conftest import HOSPITAL
from tests.client.fake_hub import QUICK, FakeEnvironment, FakeHub, client_identity

DAY_MS = 86_400_000


async def fault(target: str, identity: ClientIdentity, environment: FakeEnvironment, **options: str) -> HubUnreachable:
    async with Connection(target, identity, retry=QUICK, environment=environment, **options) as connection:  # type: ignore[arg-type]
        with pytest.raises(HubUnreachable) as caught:
            await HospitalClient(connection).close_encounter(encounter_id="E1")
    assert caught.value.grpc_status == "UNAVAILABLE"
    assert caught.value.text_en
    assert caught.value.text_zh
    return caught.value


async def test_an_expired_certificate_is_named(
    hub: FakeHub, trust_domain: TrustDomain, now_ms: int, environment: FakeEnvironment
) -> None:
    expired = trust_domain.issue_tls("hospital", HOSPITAL, now_ms - 3 * DAY_MS, 1)
    failure = await fault(hub.target, client_identity(expired), environment)
    assert failure.code == "TLS_EXPIRED"
    assert "expired at" in failure.text_en
    assert "过期" in failure.text_zh
    assert hub.received == []


async def test_a_certificate_of_a_foreign_authority_is_named(
    hub: FakeHub, hub_identity: Identity, now_ms: int, environment: FakeEnvironment
) -> None:
    foreign = TrustDomain.in_memory("erxhub.example", now_ms).issue_tls("hospital", HOSPITAL, now_ms, 30)
    identity = ClientIdentity(hub_identity.ca_pem, foreign.cert_pem, foreign.key_pem)
    assert (await fault(hub.target, identity, environment)).code == "TLS_FOREIGN_CA"
    assert hub.received == []


async def test_a_missing_certificate_is_named(
    hub: FakeHub, hub_identity: Identity, environment: FakeEnvironment
) -> None:
    failure = await fault(hub.target, ClientIdentity(hub_identity.ca_pem), environment)
    assert failure.code == "TLS_CERTIFICATE_MISSING"
    assert hub.received == []


async def test_a_key_that_is_not_the_certificates_is_named(
    hub: FakeHub, hospital_identity: Identity, hub_identity: Identity, environment: FakeEnvironment
) -> None:
    identity = dataclasses.replace(client_identity(hospital_identity), key_pem=hub_identity.key_pem)
    assert (await fault(hub.target, identity, environment)).code == "TLS_KEY_MISMATCH"


async def test_a_hub_of_another_authority_is_named(hub: FakeHub, now_ms: int, environment: FakeEnvironment) -> None:
    elsewhere = TrustDomain.in_memory("elsewhere.example", now_ms).issue_tls("hospital", HOSPITAL, now_ms, 30)
    assert (await fault(hub.target, client_identity(elsewhere), environment)).code == "TLS_HUB_NOT_TRUSTED"


async def test_a_hub_of_another_authority_is_named_also_where_grpc_tells_of_another_address_only(
    hub: FakeHub, hospital_identity: Identity, now_ms: int
) -> None:
    details = "failed to connect to all addresses; last error: UNKNOWN: ipv6:%5B::1%5D:7443: Connection refused"
    broken = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details)
    elsewhere = TrustDomain.in_memory("elsewhere.example", now_ms).issue_tls("hospital", HOSPITAL, now_ms, 30)
    codes = []
    for identity, server_name in (
        (client_identity(elsewhere), None),
        (client_identity(hospital_identity), "hub.example"),
        (client_identity(hospital_identity), None),
    ):
        async with Connection(hub.target, identity, server_name=server_name) as connection:
            codes.append(getattr(await connection.failure(broken), "code"))  # noqa: B009
    assert codes == ["TLS_HUB_NOT_TRUSTED", "TLS_HUB_NAME", "HUB_UNREACHABLE"]


async def test_a_hub_of_another_name_is_named_and_the_right_name_helps(
    hub: FakeHub, hospital_identity: Identity, environment: FakeEnvironment
) -> None:
    identity = client_identity(hospital_identity)
    failure = await fault(hub.target, identity, environment, server_name="hub.example")
    assert failure.code == "TLS_HUB_NAME"
    address = hub.target.replace("localhost", "127.0.0.1")
    async with Connection(address, identity, server_name="localhost", retry=QUICK) as connection:
        await HospitalClient(connection).close_encounter(encounter_id="E1")


async def test_an_address_where_nobody_listens_is_just_unreachable(
    hospital_identity: Identity, environment: FakeEnvironment
) -> None:
    failure = await fault("localhost:1", client_identity(hospital_identity), environment)
    assert failure.code == "HUB_UNREACHABLE"
    assert "localhost:1" in failure.text_en


async def test_a_watch_with_a_bad_certificate_is_not_opened_again(
    hub: FakeHub, hub_identity: Identity, environment: FakeEnvironment
) -> None:
    identity = ClientIdentity(hub_identity.ca_pem)
    async with Connection(hub.target, identity, retry=QUICK, environment=environment) as connection:
        with pytest.raises(HubUnreachable) as caught:
            await anext(HospitalClient(connection).watch())
    assert caught.value.code == "TLS_CERTIFICATE_MISSING"
    assert environment.slept_ms == []
