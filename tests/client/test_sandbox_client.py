"""The sandbox's client: every RPC has a method, nothing is sent twice, and fault rules are read as they are written."""

import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2

from erxhub.client import (
    ClientIdentity,
    Environment,
    HubUnreachable,
    Refusal,
    SandboxClient,
    SandboxEnvironment,
    SystemEnvironment,
    fault_rule,
)
from erxhub.client.fault_rules import duration_ms, duration_text, fault_record, fault_rule_of, fault_words
from erxhub.crypto.ca import Identity, TrustDomain
from erxhub.v1 import sandbox_pb2, sandbox_pb2_grpc
from tests.client.fake_hub import FakeEnvironment, client_identity, refuse

SERVICE = sandbox_pb2.DESCRIPTOR.services_by_name["SandboxService"]


class FakeSandbox(sandbox_pb2_grpc.SandboxServiceServicer):
    """Answers every RPC with an empty reply, or with what `on` says; keeps the requests."""

    def __init__(self) -> None:
        self.received: list[tuple[str, Any]] = []
        self.on: dict[str, Any] = {}
        for method in SERVICE.methods:
            made = self._stream if method.server_streaming else self._unary
            setattr(self, method.name, made(method.name, GetMessageClass(method.output_type)))

    def _unary(self, name: str, reply: type[Any]) -> Any:
        async def answer(request: Any, context: Any) -> Any:
            self.received.append((name, request))
            return await self.on[name](request, context) if name in self.on else reply()

        return answer

    def _stream(self, name: str, reply: type[Any]) -> Any:
        async def answer(request: Any, context: Any) -> AsyncIterator[Any]:
            self.received.append((name, request))
            if name in self.on:
                async for exchange in self.on[name](request, context):
                    yield reply(exchange=exchange)

        return answer


@asynccontextmanager
async def running(
    fake: FakeSandbox, served: Identity, operator: ClientIdentity, environment: Environment
) -> AsyncIterator[SandboxClient]:
    server = grpc.aio.server()
    sandbox_pb2_grpc.add_SandboxServiceServicer_to_server(fake, server)  # type: ignore[no-untyped-call]
    credentials = grpc.ssl_server_credentials(
        [(served.key_pem, served.cert_pem)], root_certificates=served.ca_pem, require_client_auth=True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        async with SandboxClient.connect(
            f"localhost:{port}", operator, namespace="lab", environment=environment
        ) as client:
            yield client
    finally:
        await server.stop(None)


@pytest.fixture
def fake() -> FakeSandbox:
    return FakeSandbox()


@pytest.fixture
async def client(
    fake: FakeSandbox,
    hub_identity: Identity,
    trust_domain: TrustDomain,
    environment: FakeEnvironment,
    now_ms: int,
) -> AsyncIterator[SandboxClient]:
    operator = client_identity(trust_domain.issue_tls("sandbox", "operator", now_ms, 30))
    async with running(fake, hub_identity, operator, environment) as client:
        yield client


def calls(client: SandboxClient) -> list[Any]:
    given: dict[str, dict[str, Any]] = {
        "save_snapshot": {"snapshot": "s"},
        "load_snapshot": {"snapshot": "s"},
        "advance_clock": {"by_ms": 1},
        "set_faults": {"rules": [fault_rule("* do=delay delay=1s")]},
        "trigger": {"kind": sandbox_pb2.TRIGGER_KIND_FREEZE},
        "mint_identity": {"role": "agency", "id": "330100"},
    }
    methods = inspect.getmembers(client, callable)
    return [method(**given.get(name, {})) for name, method in methods if not name.startswith("_") and name != "connect"]


async def test_there_is_a_method_for_every_rpc_and_it_means_the_clients_namespace(
    client: SandboxClient, fake: FakeSandbox
) -> None:
    for outcome in calls(client):
        if isinstance(outcome, AsyncIterator):
            assert [exchange async for exchange in outcome] == []
        else:
            await outcome
    assert {name for name, _ in fake.received} == {method.name for method in SERVICE.methods}
    named = {name: request.namespace for name, request in fake.received if hasattr(request, "namespace")}
    assert named.pop("CreateNamespace") == ""
    assert set(named.values()) == {"lab"}


async def test_a_call_may_name_another_namespace(client: SandboxClient, fake: FakeSandbox) -> None:
    await client.reset(namespace="other")
    assert fake.received[-1][1].namespace == "other"


async def test_a_clock_is_advanced_by_exactly_one_of_three_ways(client: SandboxClient, fake: FakeSandbox) -> None:
    for wrong in ({}, {"by_ms": 1, "next_timer": True}, {"by_ms": 0, "until_ms": 5}):
        with pytest.raises(ValueError, match="exactly one"):
            await client.advance_clock(**wrong)  # type: ignore[arg-type]
    await client.advance_clock(by_ms=0)
    assert fake.received[-1][1].WhichOneof("to") == "by_ms"


async def test_a_call_that_was_lost_is_not_repeated(client: SandboxClient, fake: FakeSandbox) -> None:
    async def lose(_request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "lost")

    fake.on["AdvanceClock"] = lose
    with pytest.raises(HubUnreachable):
        await client.advance_clock(by_ms=1000)
    assert len(fake.received) == 1


async def test_a_refusal_of_the_sandbox_has_its_code_and_both_languages(
    client: SandboxClient, fake: FakeSandbox
) -> None:
    async def unknown(_request: Any, context: Any) -> None:
        info = error_details_pb2.ErrorInfo(domain="erxhub", reason="SBX_NAMESPACE_UNKNOWN")
        text = error_details_pb2.LocalizedMessage(locale="zh-CN", message="没有该命名空间。")
        await refuse(context, grpc.StatusCode.NOT_FOUND, "There is no such namespace.", info, text)

    fake.on["GetNamespace"] = unknown
    with pytest.raises(Refusal) as refusal:
        await client.get_namespace()
    assert (refusal.value.code, refusal.value.text_zh) == ("SBX_NAMESPACE_UNKNOWN", "没有该命名空间。")


async def test_traffic_goes_on_after_the_last_call_when_the_connection_is_lost(
    client: SandboxClient, fake: FakeSandbox
) -> None:
    async def two_at_a_time(request: sandbox_pb2.StreamTrafficRequest, context: Any) -> AsyncIterator[Any]:
        yield sandbox_pb2.Exchange(number=request.after_number + 1)
        yield sandbox_pb2.Exchange(number=request.after_number + 2)
        if request.after_number < 4:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "lost")

    fake.on["StreamTraffic"] = two_at_a_time
    assert [exchange.number async for exchange in client.traffic(rx_no="1")] == [1, 2, 3, 4, 5, 6]
    assert {request.rx_no for _, request in fake.received} == {"1"}


# --- what follows a namespace's clock ---------------------------------------------------------------


def test_a_standing_clock_shows_what_it_was_told_and_a_running_one_goes_on() -> None:
    standing, running_ = SandboxEnvironment(5, runs=False), SandboxEnvironment(5, runs=True)
    started = SystemEnvironment().now_ms()
    while SystemEnvironment().now_ms() < started + 2:
        pass
    assert standing.now_ms() == 5
    assert running_.now_ms() >= 7
    standing.tell(9)
    assert standing.now_ms() == 9


# --- the written form of fault rules ----------------------------------------------------------------

RULES = (
    "Dispensing/Settle do=lose_ack nth=1",
    "Dispensing/* id=busy do=error actor=pharmacy/P33010099101 prob=0.05 max_consecutive=2 code=BUSY retry_after=2s",
    "* do=delay delay=1m30s",
    "settlement.committed do=crash_hub rx=330100000000000000000000001 max_total=1 after_commit=yes",
    "Prescribing/WatchPrescriptions do=reorder window=4",
    "Prescribing/ListPrescriptions do=stale_read lag=1",
    "Dispensing/WatchOrders do=truncate_stream after_messages=3",
    "Voucher/VerifyVoucher do=clock_skew skew=-5m",
    "Dispensing/Settle do=drop_request hang=yes",
    "* do=small_pages page_size=3",
)


@pytest.mark.parametrize("words", RULES)
def test_a_rule_is_written_as_it_is_read_in_words_and_as_an_object(words: str) -> None:
    rule = fault_rule(words)
    assert fault_words(rule) == words
    rule.matched, rule.fired = 7, 2
    record = fault_record(rule)
    assert (record["matched"], record["fired"]) == (7, 2)
    assert fault_words(fault_rule_of(record)) == words


def test_a_method_and_an_event_are_told_apart() -> None:
    assert fault_rule("Dispensing/Settle do=goaway").method == "Dispensing/Settle"
    assert fault_rule("* do=goaway").method == "*"
    assert fault_rule("settlement.committed do=disk_full").event == "settlement.committed"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "begins with what it is on"),
        ("do=goaway", "begins with what it is on"),
        ("Dispensing/Settle", "'do' is 'missing'"),
        ("Dispensing/Settle do=explode", "lose_ack"),
        ("Dispensing/Settle do=goaway when=now", "'when' is no key"),
        ("Dispensing/Settle do=goaway nth", "is not KEY=VALUE"),
        ("Dispensing/Settle do=goaway nth=first", "'nth' is a whole number"),
        ("Dispensing/Settle do=goaway nth=1 nth=2", "twice"),
        ("Dispensing/Settle do=goaway prob=2", "a chance from 0 to 1"),
        ("Dispensing/Settle do=delay delay=2", "'delay' is a duration"),
        ("Dispensing/Settle do=drop_request hang=perhaps", "'hang' is yes or no"),
        ("Dispensing/Settle do=goaway nth=99999999999", "nth"),
        ("Dispensing/Settle 'do=goaway", "quotation"),
    ],
)
def test_a_wrong_rule_is_refused_naming_the_word(words: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        fault_rule(words)


@pytest.mark.parametrize(("text", "expected"), [("2h", 7_200_000), ("1d12h", 129_600_000), ("-300ms", -300), ("0s", 0)])
def test_durations_are_written_as_they_are_read(text: str, expected: int) -> None:
    assert duration_ms(text) == expected
    assert duration_text(expected) == text


@pytest.mark.parametrize("text", ["", "2", "h", "2h ", "2 h", "1.5h", "--2h", "２h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        duration_ms(text)
