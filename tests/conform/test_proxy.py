"""The fault proxy: what passes through it unchanged, and what its rules do to a call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from erxhub.client import ClientIdentity, Connection, HospitalClient, HubUnreachable, SystemEnvironment, fault_rule
from erxhub.conform.hub.journey import CONSULT
from erxhub.conform.hub.parties import NumberedIds, meet
from erxhub.conform.hub.places import BarePlace
from erxhub.conform.hub.proxy import FaultProxy
from erxhub.conform.hub.raw import RawCaller
from erxhub.crypto.ca import TrustDomain
from erxhub.sandbox.errors import SandboxRefused
from erxhub.seed.catalogue import catalogue
from erxhub.seed.world import SeedWorld
from erxhub.testing import running_sandbox
from erxhub.v1 import prescribing_pb2

ENVIRONMENT = SystemEnvironment()
HOSPITAL = SeedWorld.hospital_code
LISTING = prescribing_pb2.ListPrescriptionsRequest()
DETAILS = "grpc-status-details-bin"


# ---- an upstream that shows what reached it ----------------------------------------------------------


@dataclass
class Upstream(grpc.GenericRpcHandler):
    """A server that answers by the name of the method, and remembers what it was shown."""

    target: str = ""
    metadata: list[dict[str, Any]] = field(default_factory=list)
    remaining_s: list[float | None] = field(default_factory=list)
    callers: list[bytes] = field(default_factory=list)
    received: list[bytes] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        path = handler_call_details.method

        async def serve(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            self.metadata.append(dict(context.invocation_metadata() or ()))
            self.remaining_s.append(context.time_remaining())
            self.callers.append(context.auth_context()["x509_common_name"][0])
            try:
                async for message in self._answer(path, requests, context):
                    yield message
            except asyncio.CancelledError:
                self.cancelled.set()
                raise

        return grpc.stream_stream_rpc_method_handler(serve)

    async def _answer(self, path: str, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for raw in requests:
            self.received.append(raw)
            if path.endswith("/Echo"):
                yield raw
        if path.endswith("/Refuse"):
            await context.abort(grpc.StatusCode.DATA_LOSS, "broken 断链", (("x-bin", b"\x00\xff"), ("plain", "text")))
        if path.endswith("/HalfThenRefuse"):
            yield b"one"
            await context.abort(grpc.StatusCode.ABORTED, "after one", (("x-bin", b"\x01"),))
        if path.endswith("/Wait"):
            await asyncio.Event().wait()
        if path.endswith("/Trailers"):
            await context.send_initial_metadata((("first", "1"),))
            yield b"ok"
            context.set_trailing_metadata((("last-bin", b"\x02"),))


@asynccontextmanager
async def proxied_upstream() -> AsyncIterator[tuple[Upstream, FaultProxy, RawCaller]]:
    trust = TrustDomain.in_memory("up.test", ENVIRONMENT.now_ms())
    served = trust.issue_tls("hub", "up", ENVIRONMENT.now_ms(), 1, ("localhost",))
    caller = trust.issue_tls("hospital", HOSPITAL, ENVIRONMENT.now_ms(), 1)
    upstream = Upstream()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((upstream,))
    credentials = grpc.ssl_server_credentials([(served.key_pem, served.cert_pem)], trust.ca_pem, True)
    upstream.target = f"localhost:{server.add_secure_port('127.0.0.1:0', credentials)}"
    await server.start()
    proxy = FaultProxy(upstream.target, server_name="localhost", environment=ENVIRONMENT)
    await proxy.start()
    near = proxy.identity_for(ClientIdentity(caller.ca_pem, caller.cert_pem, caller.key_pem))
    raw = RawCaller(proxy.target, near, ENVIRONMENT)
    try:
        yield upstream, proxy, raw
    finally:
        await raw.close()
        await proxy.stop()
        await server.stop(None)


async def test_bytes_metadata_and_the_caller_of_any_method_pass() -> None:
    async with proxied_upstream() as (upstream, _, raw):
        answer = await raw.call("any.Service/Echo", b"\x00\xffbytes", metadata=(("x-one", "1"), ("y-bin", b"\x00\x01")))
    assert (answer.status, answer.data) == ("OK", b"\x00\xffbytes")
    assert upstream.metadata[0]["x-one"] == "1"
    assert upstream.metadata[0]["y-bin"] == b"\x00\x01"
    assert upstream.callers == [HOSPITAL.encode()]


async def test_status_details_and_trailers_of_an_error_pass() -> None:
    async with proxied_upstream() as (_, _, raw):
        answer = await raw.call("any.Service/Refuse", b"x")
    assert (answer.status, answer.details) == ("DATA_LOSS", "broken 断链")
    assert answer.trailers["x-bin"] == b"\x00\xff"
    assert answer.trailers["plain"] == "text"


async def test_an_error_after_messages_of_a_stream_passes_with_its_trailers() -> None:
    async with proxied_upstream() as (_, _, raw):
        method: Any = raw.channel.stream_stream("/any.Service/HalfThenRefuse")
        call = method(iter([b"a", b"b"]), timeout=5)
        assert await call.read() == b"one"
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call.read()
    assert (failure.value.code(), failure.value.details()) == (grpc.StatusCode.ABORTED, "after one")
    assert dict(failure.value.trailing_metadata() or ())["x-bin"] == b"\x01"


async def test_trailers_of_a_good_call_pass() -> None:
    async with proxied_upstream() as (_, _, raw):
        call = raw.begin("any.Service/Trailers", b"x")
        assert await call == b"ok"
        assert dict(await call.trailing_metadata())["last-bin"] == b"\x02"


async def test_every_message_of_a_two_way_stream_passes_in_its_order() -> None:
    sent = [bytes([number]) * number for number in range(40)]
    async with proxied_upstream() as (upstream, _, raw):
        method: Any = raw.channel.stream_stream("/any.Service/Echo")
        found = [message async for message in method(iter(sent), timeout=5)]
    assert found == sent == upstream.received


async def test_the_deadline_of_the_caller_reaches_the_hub() -> None:
    async with proxied_upstream() as (upstream, _, raw):
        answer = await raw.call("any.Service/Wait", b"x", timeout_s=0.3)
    assert answer.status == "DEADLINE_EXCEEDED"
    assert upstream.remaining_s[0] is not None
    assert 0 < upstream.remaining_s[0] <= 0.3


async def test_a_caller_who_cancels_is_a_caller_who_cancels_at_the_hub() -> None:
    async with proxied_upstream() as (upstream, _, raw):
        call = raw.begin("any.Service/Wait", b"x")
        while not upstream.received:
            await ENVIRONMENT.sleep_ms(5)
        call.cancel()
        async with asyncio.timeout(5):
            await upstream.cancelled.wait()


async def test_a_stranger_is_refused_in_the_handshake() -> None:
    async with proxied_upstream() as (upstream, proxy, _):
        stranger = TrustDomain.in_memory("up.test", ENVIRONMENT.now_ms())
        made = stranger.issue_tls("hospital", HOSPITAL, ENVIRONMENT.now_ms(), 1)
        trusted = proxy.identity_for(ClientIdentity(made.ca_pem, made.cert_pem, made.key_pem)).ca_pem
        other = RawCaller(proxy.target, ClientIdentity(trusted, made.cert_pem, made.key_pem), ENVIRONMENT)
        answer = await other.call("any.Service/Echo", b"x", once=True)
        await other.close()
    assert answer.status == "UNAVAILABLE"
    assert not upstream.received


@pytest.mark.parametrize("rule", ["Dispensing/Settle do=disk_full", "settlement.committed do=lose_ack"])
async def test_a_fault_that_no_line_has_is_no_rule_of_a_proxy(rule: str) -> None:
    proxy = FaultProxy("localhost:1", server_name="localhost", environment=ENVIRONMENT)
    with pytest.raises(ValueError, match="cannot happen on a line"):
        proxy.set_faults([fault_rule(rule)])


async def test_a_rule_that_can_match_nothing_is_refused() -> None:
    proxy = FaultProxy("localhost:1", server_name="localhost", environment=ENVIRONMENT)
    with pytest.raises(SandboxRefused):
        proxy.set_faults([fault_rule("Dispensing/NoSuchMethod do=lose_ack")])


# ---- before a hub -----------------------------------------------------------------------------------


@dataclass
class Line:
    """Our hub with a proxy before it, and the hospital on both sides of it."""

    proxy: FaultProxy
    near: RawCaller
    direct: RawCaller
    hospital: Any
    channel: Any
    agency: Any

    async def verification(self) -> Any:
        """A request that verifies a fresh code, not sent."""
        code = await self.channel.client.issue_voucher(person_no=SeedWorld.person_no, business_type=CONSULT)
        return await self.hospital.drafts.verify_voucher(voucher_code=code.voucher_code, business_type=CONSULT)

    def fail(self, *rules: str) -> None:
        """Sets rules and no others."""
        self.proxy.set_faults([fault_rule(rule) for rule in rules])


@asynccontextmanager
async def a_line() -> AsyncIterator[Line]:
    async with running_sandbox() as sandbox:
        proxy = FaultProxy(sandbox.target, server_name="localhost", environment=ENVIRONMENT)
        await proxy.start()
        place = _Minted(sandbox.trust, sandbox.target, proxy)
        parties = [
            await meet(name, place, NumberedIds(name), ENVIRONMENT) for name in ("hospital", "channel", "agency")
        ]
        hospital, channel, agency = parties
        direct = RawCaller(sandbox.target, place.callers["hospital", HOSPITAL], ENVIRONMENT)
        await channel.client.activate_voucher(person_no=SeedWorld.person_no)
        try:
            yield Line(proxy, hospital.raw, direct, hospital, channel, agency)
        finally:
            for party in parties:
                await party.close()
            await direct.close()
            await proxy.stop()


class _Minted(BarePlace):
    """A place whose certificates a test's authority makes as they are asked for."""

    def __init__(self, trust: TrustDomain, target: str, proxy: FaultProxy) -> None:
        self._trust = trust
        self._proxy = proxy
        self._environment = ENVIRONMENT
        self.direct_target, self.target, self.server_name, self.name = target, proxy.target, "localhost", "line"
        self.receipt_keys = {}
        self.callers: dict[tuple[str, str], ClientIdentity] = {}

    async def identity(self, role: str, peer_id: str) -> ClientIdentity:
        made = self._trust.issue_tls(role, peer_id, ENVIRONMENT.now_ms(), 1)
        self.callers[role, peer_id] = ClientIdentity(made.ca_pem, made.cert_pem, made.key_pem)
        return self._proxy.identity_for(self.callers[role, peer_id])


async def test_answers_of_the_hub_are_the_same_with_and_without_the_proxy() -> None:
    async with a_line() as line:
        for name, data in (
            ("Prescribing/ListPrescriptions", b""),
            ("Prescribing/GetPrescription", prescribing_pb2.GetPrescriptionRequest(rx_no="1").SerializeToString()),
            ("Prescribing/GetPrescription", b"\xff"),
            ("Dispensing/Settle", b""),
            ("erxhub.v1.PrescribingService/NoSuchMethod", b""),
            ("no.Service/NoMethod", b"x"),
        ):
            direct, near = await line.direct.call(name, data), await line.near.call(name, data)
            told = [(one.status, one.data, one.details, one.trailers.get(DETAILS)) for one in (direct, near)]
            assert told[0] == told[1], name
        watch = prescribing_pb2.WatchPrescriptionsRequest(cursor="nonsense")
        ends = [await one.stream("Prescribing/WatchPrescriptions", watch, count=1) for one in (line.direct, line.near)]
    assert [end.code for _, end in ends if end is not None] == ["PAGE_TOKEN_INVALID"] * 2
    assert ends[0][1] is not None
    assert ends[1][1] is not None
    assert ends[0][1].trailers.get(DETAILS) == ends[1][1].trailers.get(DETAILS)


async def test_health_and_a_stream_of_requests_pass() -> None:
    drugs = catalogue()[0]
    async with a_line() as line:
        health = await line.near.call("grpc.health.v1.Health/Check", b"")
        imported = await line.agency.client.import_catalog(
            dataset=drugs.dataset,
            edition="proxied",
            valid_from_on="2030-01-01",
            file_sha256=drugs.sha256,
            entries=drugs.entries,
        )
    assert health_pb2.HealthCheckResponse.FromString(health.data).status == health_pb2.HealthCheckResponse.SERVING
    assert imported.HasField("receipt")


async def test_a_lost_ack_is_a_committed_request_whose_repeat_gets_the_first_reply() -> None:
    async with a_line() as line:
        request = await line.verification()
        line.fail("Voucher/VerifyVoucher nth=1 do=lose_ack")
        lost = await line.hospital.ask(request, once=True)
        again = await line.hospital.ask(request)
        code = await line.hospital.drafts.verify_voucher(voucher_code=request.voucher_code, business_type=CONSULT)
        other = await line.hospital.ask(code)
    assert (lost.status, lost.refusal) == ("UNAVAILABLE", None)
    assert again.ok
    assert other.code == "VCH_REPLAYED"
    statuses = [one.status for one in line.proxy.exchanges if one.method == "Voucher/VerifyVoucher"]
    assert statuses == ["UNAVAILABLE", "OK", "UNAUTHENTICATED"]


async def test_a_dropped_request_never_reaches_the_hub() -> None:
    async with a_line() as line:
        request = await line.verification()
        line.fail("Voucher/VerifyVoucher nth=1 do=drop_request")
        dropped = await line.hospital.ask(request, once=True)
        # Another request may use the code: it was not consumed.
        other = await line.hospital.drafts.verify_voucher(voucher_code=request.voucher_code, business_type=CONSULT)
        taken = await line.hospital.ask(other)
    assert dropped.status == "UNAVAILABLE"
    assert taken.ok


async def test_a_duplicated_request_has_one_effect_and_the_first_reply() -> None:
    async with a_line() as line:
        request = await line.verification()
        line.fail("Voucher/VerifyVoucher do=duplicate")
        twice = await line.hospital.ask(request)
        line.fail()
        again = await line.hospital.ask(request)
    assert twice.ok
    assert twice.data == again.data


async def test_an_error_carries_the_details_of_a_refusal() -> None:
    async with a_line() as line:
        line.fail("Prescribing/ListPrescriptions nth=1 do=error code=OVERLOADED retry_after=7s")
        refused = await line.hospital.ask(LISTING, once=True)
        served = await line.hospital.ask(LISTING, once=True)
        matched = [(rule.matched, rule.fired) for rule in line.proxy.list_faults()]
    assert (refused.code, refused.status) == ("OVERLOADED", "RESOURCE_EXHAUSTED")
    assert refused.refusal is not None
    assert refused.refusal.retry_after_ms == 7_000
    assert served.ok
    assert matched == [(2, 1)]
    assert [one.refusal_code for one in line.proxy.exchanges if one.method == "Prescribing/ListPrescriptions"] == [
        "OVERLOADED",
        "",
    ]


async def test_a_delay_longer_than_the_deadline_ends_the_call_for_its_caller() -> None:
    async with a_line() as line:
        line.fail("Prescribing/ListPrescriptions do=delay delay=400ms")
        late = await line.near.call("Prescribing/ListPrescriptions", b"", timeout_s=0.15)
        borne = await line.near.call("Prescribing/ListPrescriptions", b"", timeout_s=5)
    assert late.status == "DEADLINE_EXCEEDED"
    assert borne.ok


async def test_a_reply_that_hangs_waits_for_the_deadline() -> None:
    async with a_line() as line:
        request = await line.verification()
        line.fail("Voucher/VerifyVoucher nth=1 do=lose_ack hang=yes")
        hung = await line.near.call("Voucher/VerifyVoucher", request.SerializeToString(), timeout_s=0.3)
        again = await line.hospital.ask(request)
    assert hung.status == "DEADLINE_EXCEEDED"
    assert again.ok


async def test_the_line_is_there_again_after_it_told_everybody_to_go_away() -> None:
    async with a_line() as line:
        line.fail("Prescribing/ListPrescriptions nth=1 do=goaway")
        gone = await line.hospital.ask(LISTING, once=True)
        back = await line.hospital.ask(LISTING)
    assert gone.status in ("UNAVAILABLE", "CANCELLED")
    assert back.ok


async def test_a_client_that_finds_no_hub_behind_the_proxy_is_told_so() -> None:
    proxy = FaultProxy("localhost:1", server_name="localhost", environment=ENVIRONMENT)
    await proxy.start()
    trust = TrustDomain.in_memory("up.test", ENVIRONMENT.now_ms())
    made = trust.issue_tls("hospital", HOSPITAL, ENVIRONMENT.now_ms(), 1)
    near = proxy.identity_for(ClientIdentity(made.ca_pem, made.cert_pem, made.key_pem))
    async with Connection(proxy.target, near, environment=ENVIRONMENT, timeout_s=5) as connection:
        with pytest.raises(HubUnreachable):
            await HospitalClient(connection).list_prescriptions()
    await proxy.stop()
