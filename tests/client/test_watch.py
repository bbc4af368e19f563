"""Streams: they go on after the last message when the connection is lost, and give up in the end."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from erxhub.client import AuditorClient, Connection, HospitalClient, HubUnreachable, PharmacyClient, Refusal
from erxhub.v1 import audit_pb2, dispensing_pb2, prescribing_pb2
from tests.client.conftest import PHARMACY
from tests.client.fake_hub import QUICK, FakeEnvironment, FakeHub, refuse


def steps(*, each: int, until: int) -> Callable[[Any, Any], AsyncIterator[Any]]:
    """A stream of numbered steps that loses the connection after `each` of them, and ends after `until`."""

    async def handler(request: Any, context: Any) -> AsyncIterator[Any]:
        begin = int(request.cursor or "0")
        for number in range(begin + 1, min(begin + each, until) + 1):
            yield prescribing_pb2.WatchPrescriptionsResponse(cursor=str(number), rx_no="1" * 27, version=number)
        if begin + each < until:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "going down")

    return handler


async def test_a_watch_goes_on_after_the_last_message(
    hub: FakeHub, connection: Connection, environment: FakeEnvironment
) -> None:
    hub.on["WatchPrescriptions"] = steps(each=2, until=7)
    seen = [message.version async for message in HospitalClient(connection).watch(from_start=True)]
    assert seen == [1, 2, 3, 4, 5, 6, 7]
    opened = [(request.cursor, request.from_start) for request in hub.requests("WatchPrescriptions")]
    assert opened == [("", True), ("2", False), ("4", False), ("6", False)]
    assert environment.slept_ms == [10, 10, 10]
    assert all(call.deadline_s is None for call in hub.received)


async def test_a_watch_begins_at_a_given_cursor(hub: FakeHub, connection: Connection) -> None:
    hub.on["WatchPrescriptions"] = steps(each=9, until=7)
    assert [message.version async for message in HospitalClient(connection).watch(cursor="5")] == [6, 7]


async def test_a_watch_that_makes_no_progress_gives_up_after_its_resumes(
    hub: FakeHub, connection: Connection, environment: FakeEnvironment
) -> None:
    async def down(request: Any, context: Any) -> AsyncIterator[Any]:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        yield

    hub.on["WatchPrescriptions"] = down
    with pytest.raises(HubUnreachable):
        await anext(HospitalClient(connection).watch())
    assert len(hub.received) == QUICK.stream_resumes + 1
    assert environment.slept_ms == [10, 20, 20]


async def test_a_refused_watch_is_not_opened_again(hub: FakeHub, connection: Connection) -> None:
    async def revoked(request: Any, context: Any) -> AsyncIterator[Any]:
        yield prescribing_pb2.WatchPrescriptionsResponse(cursor="1", version=1)
        info = error_details_pb2.ErrorInfo(reason="CERT_REVOKED", domain="erxhub")
        await refuse(context, grpc.StatusCode.UNAUTHENTICATED, "The certificate was revoked.", info)

    hub.on["WatchPrescriptions"] = revoked
    watch = HospitalClient(connection).watch()
    assert (await anext(watch)).version == 1
    with pytest.raises(Refusal) as caught:
        await anext(watch)
    assert caught.value.code == "CERT_REVOKED"
    assert len(hub.received) == 1


async def test_a_hub_that_names_a_time_is_left_alone_that_long(
    hub: FakeHub, connection: Connection, environment: FakeEnvironment
) -> None:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(1_500)

    async def busy(request: Any, context: Any) -> AsyncIterator[Any]:
        if len(hub.received) == 1:
            info = error_details_pb2.ErrorInfo(reason="HUB_UNAVAILABLE", domain="erxhub")
            await refuse(context, grpc.StatusCode.UNAVAILABLE, "Not now.", info, retry)
        yield prescribing_pb2.WatchPrescriptionsResponse(cursor="1", version=1)

    hub.on["WatchPrescriptions"] = busy
    assert [message.version async for message in HospitalClient(connection).watch()] == [1]
    assert environment.slept_ms == [1_500]


async def test_a_pharmacy_watches_its_orders_the_same_way(
    hub: FakeHub, connected: Callable[[str, str], Connection]
) -> None:
    async def orders(request: Any, context: Any) -> AsyncIterator[Any]:
        if not request.cursor:
            yield dispensing_pb2.WatchOrdersResponse(cursor="a", version=1)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "going down")
        yield dispensing_pb2.WatchOrdersResponse(cursor="b", version=2)

    hub.on["WatchOrders"] = orders
    pharmacy = PharmacyClient(connected("pharmacy", PHARMACY))
    assert [message.version async for message in pharmacy.watch()] == [1, 2]


async def test_ledger_entries_go_on_at_their_position_with_what_is_left_of_the_limit(
    hub: FakeHub, connected: Callable[[str, str], Connection]
) -> None:
    async def entries(request: Any, context: Any) -> AsyncIterator[Any]:
        for position in range(request.after_position + 1, request.after_position + 3):
            yield audit_pb2.StreamEntriesResponse(position=position)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "going down")

    hub.on["StreamEntries"] = entries
    auditor = AuditorClient(connected("auditor", "auditor-1"), case_reason="case 7")
    positions = [entry.position async for entry in auditor.stream_entries(after_position=10, limit=5)]
    assert positions == [11, 12, 13, 14, 15]
    opened = [(r.after_position, r.limit, r.case_reason) for r in hub.requests("StreamEntries")]
    assert opened == [(10, 5, "case 7"), (12, 3, "case 7"), (14, 1, "case 7")]
