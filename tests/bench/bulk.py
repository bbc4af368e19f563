"""Uploads over one bulk stream, for the row that compares them with single calls."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc

from erxhub.v1 import prescribing_pb2
from tests.bench.answers import AnswerWrong, check_reply
from tests.bench.world import Upload, World

BULK = "/erxhub.v1.PrescribingService/UploadPrescriptions"


async def upload_many(channel: grpc.aio.Channel, uploads: Sequence[Upload], items_a_message: int) -> list[bytes]:
    """All uploads over one stream; their replies in order."""
    call = channel.stream_stream(
        BULK,
        prescribing_pb2.UploadPrescriptionsRequest.SerializeToString,
        prescribing_pb2.UploadPrescriptionsResponse.FromString,
    )()

    async def write() -> None:
        for begin in range(0, len(uploads), items_a_message):
            items = [
                prescribing_pb2.UploadPrescriptionRequest.FromString(upload.request)
                for upload in uploads[begin : begin + items_a_message]
            ]
            await call.write(prescribing_pb2.UploadPrescriptionsRequest(items=items))
        await call.done_writing()

    writing = asyncio.create_task(write())
    replies = []
    async for message in call:
        for result in message.results:
            if result.HasField("refused"):
                raise AnswerWrong(f"an item was refused with {result.refused.code}")
            replies.append(result.accepted.SerializeToString())
    await writing
    return replies


def check_replies(world: World, uploads: Sequence[Upload], replies: Sequence[bytes]) -> None:
    """Each upload has its reply, in order. Raises AnswerWrong."""
    if len(replies) != len(uploads):
        raise AnswerWrong(f"{len(uploads)} items were sent, and {len(replies)} results came")
    for upload, reply in zip(uploads, replies, strict=True):
        check_reply(upload.rx_no, reply, world.receipt_keys)
