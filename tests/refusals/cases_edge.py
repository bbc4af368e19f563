"""Refusals that no business rule decides: identity of the connection, form of the request, limits, reads."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from erxhub.client import ClientIdentity
from erxhub.config import Config
from erxhub.core.model import Accepted
from erxhub.proof.policy import read_policy
from erxhub.rpc import calls as rpc_calls
from erxhub.v1 import audit_pb2, dispensing_pb2, encounter_pb2
from erxhub.witnessing import Witnessing
from tests.live import HOSPITAL, PERSON
from tests.refusals.bench import Bench, as_pharmacy, raw_call
from tests.refusals.certificates import odd_certificate
from tests.refusals.provoking import Attempt, provokes


@provokes("PEER_IDENTITY", status="UNAUTHENTICATED", counted=True)
async def certificate_with_a_common_name_only(bench: Bench) -> Attempt:
    identity = odd_certificate(bench.live.trust, HOSPITAL)
    nobody = await bench.live.connect("hospital", HOSPITAL, identity)
    return Attempt(nobody, nobody.get(rx_no="1" * 27))


@provokes("CERT_REVOKED", status="UNAUTHENTICATED")
async def command_under_a_revoked_certificate(bench: Bench) -> Attempt:
    client = await revoked_client(bench)
    return Attempt(client, client.close_encounter(encounter_id="E1"))


@provokes("CERT_REVOKED", status="UNAUTHENTICATED")
async def read_under_a_revoked_certificate(bench: Bench) -> Attempt:
    client = await revoked_client(bench)
    return Attempt(client, client.list_prescriptions())


async def revoked_client(bench: Bench) -> Any:
    """A hospital whose connection certificate the agency revoked."""
    identity: ClientIdentity = bench.live.identity("hospital", HOSPITAL)
    client = await bench.live.connect("hospital", HOSPITAL, identity)
    agency = await bench.live.agency()
    await agency.revoke_certificate(certificate_pem=identity.cert_pem, reason="私钥泄露")
    return client


@provokes("ROLE_NOT_ALLOWED", status="PERMISSION_DENIED")
async def hospital_calls_a_pharmacy_rpc(bench: Bench) -> Attempt:
    hospital = as_pharmacy(await bench.live.hospital())
    return Attempt(hospital, hospital.download(authorization_no="1" * 32))


@provokes("INPUT_MALFORMED", status="INVALID_ARGUMENT", field="med_type")
async def value_of_no_form(bench: Bench) -> Attempt:
    hospital = await bench.live.hospital()
    return Attempt(hospital, hospital.register_encounter(**await bench.visitor(med_type="eleven")))


@provokes("INPUT_MALFORMED", status="INVALID_ARGUMENT", counted=True)
async def bytes_that_end_early(bench: Bench) -> Attempt:
    hospital = await bench.live.hospital()
    whole = encounter_pb2.CloseEncounterRequest(request_id="request-1", encounter_id="E1").SerializeToString()
    return Attempt(hospital, raw_call(hospital, "EncounterService/CloseEncounter", whole[:-1]))


@provokes("TIME_SKEW", status="INVALID_ARGUMENT", field="erxhub-sent-at-ms")
async def clock_six_minutes_behind(bench: Bench) -> Attempt:
    hospital = await bench.live.hospital()
    request = encounter_pb2.CloseEncounterRequest(request_id="request-2", encounter_id="E1")
    behind = str(bench.live.clock.now_ms() - 6 * 60_000)
    method = "EncounterService/CloseEncounter"
    call = raw_call(hospital, method, request.SerializeToString(), (("erxhub-sent-at-ms", behind),))
    return Attempt(hospital, call, method=method)


@provokes("OVERLOADED", status="RESOURCE_EXHAUSTED", counted=True)
async def one_watch_too_many(bench: Bench) -> Attempt:
    pharmacy = await bench.live.connect("pharmacy", "P33010066601")
    calls = [
        pharmacy.connection.channel.unary_stream(
            "/erxhub.v1.DispensingService/WatchOrders",
            request_serializer=dispensing_pb2.WatchOrdersRequest.SerializeToString,
        )(dispensing_pb2.WatchOrdersRequest())
        for _ in range(Config().streams_per_peer_max)
    ]

    async def close() -> None:
        for call in calls:
            call.cancel()

    bench.afterwards(close)
    for call in calls:
        await call.initial_metadata()

    async def one_more() -> None:
        async with aclosing(pharmacy.watch()) as watch:
            await anext(watch)

    return Attempt(pharmacy, one_more())


@provokes("HUB_UNAVAILABLE", status="UNAVAILABLE", counted=True)
async def store_that_cannot_write(bench: Bench) -> Attempt:
    channel = await bench.live.channel()
    bench.store.refuses_writes = True
    return Attempt(channel, channel.issue_voucher(person_no=PERSON, business_type="01201"))


@provokes("CHAIN_BROKEN", status="DATA_LOSS")
async def export_when_a_witness_has_shown_another_history(bench: Bench) -> Attempt:
    rx = await bench.rx().uploaded()
    auditor, hub = await bench.live.auditor(), bench.live.hub
    publisher = hub.core.publisher
    publisher.witnessing = Witnessing(
        read_policy(b"quorum none\n"), hub.store, [publisher.signer.key], clock=bench.live.clock, config=Config()
    )
    publisher.witnessing.halted = "FORK_SUSPECTED: two histories"

    async def go_on() -> None:
        publisher.witnessing = None

    bench.afterwards(go_on)
    return Attempt(auditor, auditor.export_bundle(rx_no=rx.rx_no))


@provokes("PAGE_TOKEN_INVALID", status="INVALID_ARGUMENT", field="page.page_token")
async def page_token_of_nobody(bench: Bench) -> Attempt:
    hospital = await bench.live.hospital()
    return Attempt(hospital, hospital.list_prescriptions(page_token="AAAA"))


@provokes("PAGE_TOKEN_INVALID", status="INVALID_ARGUMENT", field="cursor")
async def cursor_of_nobody(bench: Bench) -> Attempt:
    pharmacy = await bench.live.pharmacy()
    return Attempt(pharmacy, anext(pharmacy.watch(cursor="AAAA")))


@provokes("REPLY_TOO_LARGE", status="FAILED_PRECONDITION")
async def trace_above_what_is_sent(bench: Bench) -> Attempt:
    auditor, read = await bench.live.auditor(), rpc_calls.QUERIES
    length = Config().reply_bytes_max

    async def long(*of: Any) -> Accepted:
        return Accepted(audit_pb2.TraceChainResponse(rx_no="1" * length))

    async def go_back() -> None:
        rpc_calls.QUERIES = read

    rpc_calls.QUERIES = {**read, "AuditService/TraceChain": long}
    bench.afterwards(go_back)
    return Attempt(auditor, auditor.trace(rx_no="1" * 27))


@provokes("AUDIT_REASON", status="PERMISSION_DENIED", field="case_reason")
async def audit_without_a_case(bench: Bench) -> Attempt:
    auditor = await bench.live.auditor()
    return Attempt(auditor, auditor.trace(rx_no="1" * 27, case_reason=" "))
