"""`upload_many`: what is sent, in which messages, and what happens when stream or source fail."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from erxhub.client import CallFailed, Connection, HospitalClient, HubUnreachable, Refusal
from erxhub.client.bulk import ITEMS_A_MESSAGE, MESSAGE_BYTES, UNANSWERED_MAX
from erxhub.v1 import common_pb2, prescribing_pb2
from tests.client.conftest import HOSPITAL
from tests.client.fake_hub import FakeHub, refuse

Request = prescribing_pb2.UploadPrescriptionRequest
Messages = AsyncIterator[prescribing_pb2.UploadPrescriptionsRequest]


def requests(count: int, file_bytes: int = 10) -> list[Request]:
    file = common_pb2.PrescriptionFile(data=bytes(file_bytes))
    return [Request(request_id=f"request-{number:06d}", file=file) for number in range(count)]


async def each(items: list[Request]) -> AsyncIterator[Request]:
    for item in items:
        yield item


def answer(message: Any) -> prescribing_pb2.UploadPrescriptionsResponse:
    """Every item of a message accepted; its number is its id."""
    results = [
        prescribing_pb2.UploadResult(accepted=prescribing_pb2.UploadPrescriptionResponse(rx_no=item.request_id))
        for item in message.items
    ]
    return prescribing_pb2.UploadPrescriptionsResponse(results=results)


@pytest.fixture
def hospital(connected: Callable[[str, str], Connection]) -> HospitalClient:
    return HospitalClient(connected("hospital", HOSPITAL))


async def test_items_share_messages_and_are_answered_in_order(hub: FakeHub, hospital: HospitalClient) -> None:
    messages: list[Any] = []

    async def serve(requests: Messages, context: Any) -> AsyncIterator[Any]:
        async for message in requests:
            messages.append(message)
            yield answer(message)

    hub.on["UploadPrescriptions"] = serve
    sent = requests(100)
    got = [(request, outcome) async for request, outcome in hospital.upload_many(each(sent))]
    assert [request for request, _ in got] == sent
    assert [outcome.rx_no for _, outcome in got] == [request.request_id for request in sent]  # type: ignore[union-attr]
    assert [item for message in messages for item in message.items] == sent
    assert max(len(message.items) for message in messages) == ITEMS_A_MESSAGE


async def test_large_items_go_in_smaller_messages(hub: FakeHub, hospital: HospitalClient) -> None:
    sizes: list[int] = []

    async def serve(requests: Messages, context: Any) -> AsyncIterator[Any]:
        async for message in requests:
            sizes.append(message.ByteSize())
            yield answer(message)

    hub.on["UploadPrescriptions"] = serve
    sent = requests(12, file_bytes=400 * 1024)
    assert len([one async for one in hospital.upload_many(each(sent))]) == 12
    assert max(sizes) <= MESSAGE_BYTES


async def test_a_lost_stream_goes_on_with_what_was_not_answered(hub: FakeHub, hospital: HospitalClient) -> None:
    streams: list[list[str]] = []

    async def serve(requests: Messages, context: Any) -> AsyncIterator[Any]:
        mine: list[str] = []
        streams.append(mine)
        async for message in requests:
            mine += [item.request_id for item in message.items]
            if len(streams) < 3 and len(mine) > ITEMS_A_MESSAGE:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            yield answer(message)

    hub.on["UploadPrescriptions"] = serve
    sent = requests(5 * ITEMS_A_MESSAGE)
    got = [outcome.rx_no async for _, outcome in hospital.upload_many(each(sent))]  # type: ignore[union-attr]
    assert got == [request.request_id for request in sent]
    assert len(streams) == 3
    # Each stream begins where the answers of the one before it ended, which may be later than the hub knew.
    begins = [[request.request_id for request in sent].index(mine[0]) for mine in streams]
    assert begins == sorted(begins)
    assert begins[-1] <= 2 * ITEMS_A_MESSAGE


async def test_a_stream_that_cannot_be_opened_again_is_given_up(hub: FakeHub, hospital: HospitalClient) -> None:
    opened = 0

    async def serve(requests: Messages, context: Any) -> AsyncIterator[Any]:
        nonlocal opened
        opened += 1
        await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        yield

    hub.on["UploadPrescriptions"] = serve
    with pytest.raises(HubUnreachable):
        await anext(hospital.upload_many(each(requests(1))))
    assert opened == hospital.connection.retry.stream_resumes + 1


async def test_a_refused_stream_says_so(hub: FakeHub, hospital: HospitalClient) -> None:
    async def serve(requests: Messages, context: Any) -> AsyncIterator[Any]:
        info = error_details_pb2.ErrorInfo(reason="ROLE_NOT_ALLOWED", domain="erxhub")
        await refuse(context, grpc.StatusCode.PERMISSION_DENIED, "no", info)
        yield

    hub.on["UploadPrescriptions"] = serve
    with pytest.raises(Refusal) as caught:
        await anext(hospital.upload_many(each(requests(1))))
    assert caught.value.code == "ROLE_NOT_ALLOWED"


async def test_a_refused_item_and_a_failed_one_are_outcomes(hub: FakeHub, hospital: HospitalClient) -> None:
    refused = status_pb2.Status(code=9, message="not now")
    refused.details.add().Pack(
        error_details_pb2.ErrorInfo(reason="RX_TIME", domain="erxhub", metadata={"field": "seal", "retriable": "no"})
    )
    failed = status_pb2.Status(code=13, message="inside")

    async def serve(requests: Messages, context: Any) -> AsyncIterator[Any]:
        async for _ in requests:
            yield prescribing_pb2.UploadPrescriptionsResponse(
                results=[
                    prescribing_pb2.UploadResult(
                        refused=prescribing_pb2.UploadRefusal(status=status.SerializeToString())
                    )
                    for status in (refused, failed)
                ]
            )

    hub.on["UploadPrescriptions"] = serve
    first, second = [outcome async for _, outcome in hospital.upload_many(each(requests(2)))]
    assert isinstance(first, Refusal)
    assert (first.code, first.field, first.grpc_status, first.retriable) == (
        "RX_TIME",
        "seal",
        "FAILED_PRECONDITION",
        False,
    )
    assert isinstance(second, CallFailed)
    assert second.code == "INTERNAL"
    assert second.request is not None


class SourceFailed(Exception):
    """What a test's source raises."""


async def test_what_the_source_raises_reaches_the_caller(hub: FakeHub, hospital: HospitalClient) -> None:
    async def serve(requests: Messages, context: Any) -> AsyncIterator[Any]:
        async for message in requests:
            yield answer(message)

    async def source() -> AsyncIterator[Request]:
        yield requests(1)[0]
        raise SourceFailed

    hub.on["UploadPrescriptions"] = serve
    with pytest.raises(SourceFailed):
        async for _ in hospital.upload_many(source()):
            pass


async def test_a_hub_that_does_not_answer_is_not_sent_everything(hub: FakeHub, hospital: HospitalClient) -> None:
    taken = 0

    async def source() -> AsyncIterator[Request]:
        nonlocal taken
        for request in requests(4 * UNANSWERED_MAX):
            taken += 1
            yield request

    async def serve(requests: Messages, context: Any) -> AsyncIterator[Any]:
        waiting: list[Any] = []
        answered = 0
        async for message in requests:
            waiting.append(message)
            if sum(len(one.items) for one in waiting) == UNANSWERED_MAX:
                # One more is drawn from the source beforehand, and none beyond it.
                assert taken <= answered + UNANSWERED_MAX + 1
                answered += UNANSWERED_MAX
                for one in waiting:
                    yield answer(one)
                waiting = []

    hub.on["UploadPrescriptions"] = serve
    assert len([one async for one in hospital.upload_many(source())]) == 4 * UNANSWERED_MAX
