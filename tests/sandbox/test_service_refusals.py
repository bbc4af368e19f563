"""Every "no" of the control service: a stable code, both languages, and the field or rule at fault."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from erxhub.client import ClientIdentity, HubUnreachable, Refusal, SandboxClient
from erxhub.crypto.ca import TrustDomain
from erxhub.sandbox import namespace as namespace_module
from erxhub.sandbox import namespaces as namespaces_module
from erxhub.sandbox.errors import ERRORS
from erxhub.testing import running_sandbox
from erxhub.v1 import sandbox_pb2, sandbox_pb2_grpc
from tests.live import HOSPITAL, PHARMACY
from tests.sandbox.ground import START_MS, Box

D = sandbox_pb2.IdentityDefect


async def _refused(call: Awaitable[Any]) -> Refusal:
    with pytest.raises(Refusal) as refused:
        await call
    failure = refused.value
    kind = ERRORS[failure.code]
    assert (failure.grpc_status, failure.text_en, failure.text_zh) == (kind.status.name, kind.en, kind.zh)
    return failure


async def _other(box: Box, role: str, peer_id: str) -> SandboxClient:
    issued = box.sandbox.trust.issue_tls(role, peer_id, box.namespace("default").now_ms(), 30)
    identity = ClientIdentity(issued.ca_pem, issued.cert_pem, issued.key_pem)
    return await box.stack.enter_async_context(SandboxClient.connect(box.sandbox.control_target, identity))


EVERY_CALL: dict[str, Callable[[SandboxClient], Awaitable[Any]]] = {
    "GetNamespace": lambda client: client.get_namespace(),
    "DeleteNamespace": lambda client: client.delete_namespace(),
    "ResetNamespace": lambda client: client.reset(),
    "SaveSnapshot": lambda client: client.save_snapshot("a"),
    "LoadSnapshot": lambda client: client.load_snapshot("a"),
    "AdvanceClock": lambda client: client.advance_clock(by_ms=1),
    "SetFaults": lambda client: client.set_faults([]),
    "ListFaults": lambda client: client.list_faults(),
    "ClearFaults": lambda client: client.clear_faults(),
    "Trigger": lambda client: client.trigger(sandbox_pb2.TRIGGER_KIND_FREEZE, rx_no="1"),
    "MintIdentity": lambda client: client.mint_identity("hospital", HOSPITAL),
    "GetWorld": lambda client: client.get_world(),
    "StreamTraffic": lambda client: anext(client.traffic()),
    "CheckInvariants": lambda client: client.check_invariants(),
}


def test_every_call_about_a_namespace_is_tried() -> None:
    service = sandbox_pb2.DESCRIPTOR.services_by_name["SandboxService"]
    assert set(EVERY_CALL) == {method.name for method in service.methods} - {"CreateNamespace", "ListNamespaces"}


async def test_a_namespace_that_does_not_exist_is_unknown_to_every_call(box: Box) -> None:
    box.operator.namespace = "nowhere"
    for name, call in EVERY_CALL.items():
        refused = await _refused(call(box.operator))
        assert (name, refused.code, refused.metadata["namespace"]) == (name, "SBX_NAMESPACE_UNKNOWN", "nowhere")


async def test_a_namespace_of_another_certificate_is_closed_to_every_call(box: Box) -> None:
    stranger = await _other(box, "sandbox", "somebody-else")
    for name, call in EVERY_CALL.items():
        refused = await _refused(call(stranger))
        assert (name, refused.code, refused.metadata["namespace"]) == (name, "SBX_NAMESPACE_FOREIGN", "default")
    assert await stranger.list_namespaces() == []


async def test_whoever_made_a_namespace_controls_it_and_nobody_else(box: Box) -> None:
    other = await _other(box, "sandbox", "somebody-else")
    await other.create_namespace("theirs")
    assert (await other.get_namespace(namespace="theirs")).owner == "sandbox/somebody-else"
    assert (await _refused(box.operator.get_namespace(namespace="theirs"))).code == "SBX_NAMESPACE_FOREIGN"


@pytest.mark.parametrize(("role", "peer_id"), [("hospital", HOSPITAL), ("agency", "330100"), ("hub", "hub-1")])
async def test_a_certificate_of_another_role_controls_nothing(box: Box, role: str, peer_id: str) -> None:
    refused = await _refused((await _other(box, role, peer_id)).list_namespaces())
    assert (refused.code, refused.metadata["role"]) == ("SBX_ROLE", role)


async def test_a_certificate_of_a_namespace_controls_nothing(box: Box) -> None:
    await box.operator.create_namespace("one")
    cert_pem, key_pem = box.sandbox.trust.issue_unlisted(
        "spiffe://one.erxhub.test/sandbox/operator", "operator", START_MS, START_MS + 86_400_000 * 90
    )
    identity = ClientIdentity(box.sandbox.trust.ca_pem, cert_pem, key_pem)
    client = await box.stack.enter_async_context(SandboxClient.connect(box.sandbox.control_target, identity))
    refused = await _refused(client.list_namespaces())
    assert (refused.code, refused.metadata["reason"]) == ("SBX_ROLE", "FOREIGN_TRUST_DOMAIN")


async def test_a_certificate_of_another_authority_is_not_heard_at_all(box: Box) -> None:
    foreign = TrustDomain.in_memory("erxhub.test", START_MS)
    issued = foreign.issue_tls("sandbox", "operator", START_MS, 90)
    identity = ClientIdentity(box.sandbox.trust.ca_pem, issued.cert_pem, issued.key_pem)
    client = await box.stack.enter_async_context(SandboxClient.connect(box.sandbox.control_target, identity))
    with pytest.raises(HubUnreachable):
        await client.list_namespaces()


async def test_the_data_port_knows_no_control_and_the_control_port_no_data(box: Box) -> None:
    operator = box.sandbox.operator
    credentials = grpc.ssl_channel_credentials(operator.ca_pem, operator.key_pem, operator.cert_pem)
    async with grpc.aio.secure_channel(box.sandbox.target, credentials) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await sandbox_pb2_grpc.SandboxServiceStub(channel).ListNamespaces(sandbox_pb2.ListNamespacesRequest())
    assert failed.value.code() == grpc.StatusCode.UNIMPLEMENTED
    place = await box.place("default")
    place.target = box.sandbox.control_target
    with pytest.raises(Exception, match="UNIMPLEMENTED"):
        await place.activated()


async def test_a_name_is_given_once(box: Box) -> None:
    await box.operator.create_namespace("one")
    refused = await _refused(box.operator.create_namespace("one"))
    assert (refused.code, refused.metadata["namespace"]) == ("SBX_NAMESPACE_EXISTS", "one")
    assert (await _refused(box.operator.create_namespace("default"))).code == "SBX_NAMESPACE_EXISTS"


@pytest.mark.parametrize("name", ["UPPER", "-x", "x-", "a.b", "a/b", "x" * 41, "名"])
async def test_a_name_has_a_form(box: Box, name: str) -> None:
    refused = await _refused(box.operator.create_namespace(name))
    assert (refused.code, refused.violations[0].field) == ("SBX_ARGUMENT", "namespace")


@pytest.mark.parametrize(("start_at_ms", "rule"), [(1, "range"), (START_MS * 2, "range"), (-1, "int64.gte")])
async def test_a_clock_begins_within_the_life_of_the_authority(box: Box, start_at_ms: int, rule: str) -> None:
    refused = await _refused(box.operator.create_namespace("one", start_at_ms=start_at_ms))
    assert refused.code == "SBX_ARGUMENT"
    assert (refused.violations[0].field, refused.violations[0].rule) == ("start_at_ms", rule)
    # What was refused left no name behind.
    assert (await box.operator.create_namespace("one")).name == "one"


@pytest.mark.parametrize(
    ("role", "peer_id", "field"),
    [("hub", "hub-1", "role"), ("sandbox", "x", "role"), ("hospital", PHARMACY, "id")],
)
async def test_only_peers_of_a_hub_are_minted(box: Box, role: str, peer_id: str, field: str) -> None:
    refused = await _refused(box.operator.mint_identity(role, peer_id))
    assert (refused.code, refused.violations[0].field) == ("SBX_ARGUMENT", field)


@pytest.mark.parametrize(
    "defects",
    [
        (D.IDENTITY_DEFECT_EXPIRED, D.IDENTITY_DEFECT_NOT_YET_VALID),
        (D.IDENTITY_DEFECT_NO_URI, D.IDENTITY_DEFECT_FOREIGN_TRUST_DOMAIN),
        (D.IDENTITY_DEFECT_REVOKED, D.IDENTITY_DEFECT_NO_URI),
    ],
)
async def test_defects_that_exclude_each_other_are_refused(box: Box, defects: tuple[Any, ...]) -> None:
    before = await box.ledger("default")
    refused = await _refused(box.operator.mint_identity("hospital", HOSPITAL, defects=defects))
    assert (refused.code, refused.violations[0].field) == ("SBX_ARGUMENT", "defects")
    assert await box.ledger("default") == before


async def test_bytes_that_are_no_message_are_refused(box: Box) -> None:
    operator = box.sandbox.operator
    credentials = grpc.ssl_channel_credentials(operator.ca_pem, operator.key_pem, operator.cert_pem)
    async with grpc.aio.secure_channel(box.sandbox.control_target, credentials) as channel:
        call = channel.unary_unary("/erxhub.v1.SandboxService/GetNamespace")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(b"\xff\xff\xff")
    assert failed.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_the_default_namespace_cannot_be_deleted(box: Box) -> None:
    refused = await _refused(box.operator.delete_namespace())
    assert (refused.code, refused.violations[0].field) == ("SBX_ARGUMENT", "namespace")


async def test_there_is_a_limit_of_namespaces(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces_module, "NAMESPACES_MAX", 2)
    await box.operator.create_namespace("one")
    refused = await _refused(box.operator.create_namespace("two"))
    assert (refused.code, refused.metadata["namespaces_max"]) == ("SBX_LIMIT", "2")
    await box.operator.delete_namespace(namespace="one")
    await box.operator.create_namespace("two")


async def test_there_is_a_limit_of_snapshots(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace_module, "SNAPSHOTS_MAX", 1)
    await box.operator.save_snapshot("a")
    assert (await _refused(box.operator.save_snapshot("b"))).code == "SBX_LIMIT"
    assert (await box.operator.save_snapshot("a")).snapshots == ["a"]


async def test_the_control_port_opens_to_other_machines_only_when_told_to() -> None:
    with pytest.raises(ValueError, match="control_from_anywhere"):
        async with running_sandbox(control_address="0.0.0.0:0"):
            raise AssertionError("it listens")
