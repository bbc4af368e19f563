"""Many uploads over one stream: sent as they come, answered in order, and sent again when the stream is lost.

Owns: what is not answered yet. Must never: sign a request, or change what it says; each is sent as it is, also the
second time. (What its answer waits for is the connection's default where the request says nothing.)
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from typing import Final, TypeAlias

import grpc
from google.rpc import status_pb2

from erxhub.client.connection import Connection
from erxhub.client.failures import (
    DETAILS_KEY,
    CallFailed,
    Refusal,
    call_failed,
    refusal_of,
)
from erxhub.v1 import common_pb2, prescribing_pb2, prescribing_pb2_grpc

ITEMS_A_MESSAGE: Final = 16
"""Items that are sent in one message while more are at hand; from here on the cost of an item falls no further."""
MESSAGE_BYTES: Final = 1024 * 1024
"""Several items in one message are no larger together; a hub takes 2 MiB, and one item may have a file of 1 MiB."""
UNANSWERED_MAX: Final = 512
"""Requests that are kept to be sent again; more are not taken from the source."""

_MET_THE_END: Final = "execute_batch"

_Call: TypeAlias = (
    "grpc.aio.StreamStreamCall[prescribing_pb2.UploadPrescriptionsRequest, prescribing_pb2.UploadPrescriptionsResponse]"
)
Request: TypeAlias = prescribing_pb2.UploadPrescriptionRequest
Outcome: TypeAlias = prescribing_pb2.UploadPrescriptionResponse | Refusal | CallFailed


class BulkUpload:
    """One source of requests, over as many streams as it takes."""

    def __init__(self, connection: Connection, source: AsyncIterable[Request]) -> None:
        self._connection = connection
        self._stub = prescribing_pb2_grpc.PrescribingServiceStub(connection.channel)
        self._source = aiter(source)
        self._coming: asyncio.Future[Request | None] | None = None
        self._ended = False
        self._unanswered: deque[Request] = deque()
        self._room = asyncio.Event()

    async def outcomes(self) -> AsyncGenerator[tuple[Request, Outcome], None]:
        """Each request with its outcome, in order. Raises what `Connection.unary` raises when the stream is refused
        or cannot be opened again, and whatever the source raises.
        """
        failed = 0
        try:
            while True:
                answered = False
                try:
                    async for outcome in self._over_one_stream():
                        answered = True
                        yield outcome
                    return
                except grpc.aio.AioRpcError as error:
                    failed = 1 if answered else failed + 1
                    await self._connection.before_resuming(_told(error), failed)
        finally:
            if self._coming is not None:
                self._coming.cancel()
                await asyncio.gather(self._coming, return_exceptions=True)

    async def _over_one_stream(self) -> AsyncGenerator[tuple[Request, Outcome], None]:
        call = self._stub.UploadPrescriptions()
        writing = asyncio.create_task(self._write(call))
        # A source that fails ends the stream, which then says so.
        writing.add_done_callback(lambda task: call.cancel() if task.cancelled() or task.exception() else None)
        try:
            async for message in call:
                for result in message.results:
                    request = self._unanswered.popleft()
                    self._room.set()
                    yield request, self._outcome(request, result)
            await writing
        except asyncio.CancelledError:
            if writing.done() and not writing.cancelled() and (error := writing.exception()) is not None:
                raise error from None
            raise
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            call.cancel()

    def _outcome(self, request: Request, result: prescribing_pb2.UploadResult) -> Outcome:
        if result.WhichOneof("outcome") == "refused":
            failure = _failure(result.refused.status)
            failure.request = request
            return failure
        self._connection.check_reply(result.accepted, request)
        reached = common_pb2.WaitFor.Name(result.reached or common_pb2.WAIT_FOR_DURABLE)
        self._connection.tell_reached(request, reached.removeprefix("WAIT_FOR_"))
        return result.accepted

    async def _write(self, call: _Call) -> None:
        """Send what is not answered, then the rest of the source; the source goes on where it was."""
        try:
            await self._send(call, tuple(self._unanswered))
            while (group := await self._next_group()) is not None:
                await self._send(call, group)
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The stream is over; reading it says why.
            return

    @staticmethod
    async def _send(call: _Call, requests: Sequence[Request]) -> None:
        group: list[Request] = []
        size = 0
        for request in requests:
            if group and (size + request.ByteSize() > MESSAGE_BYTES or len(group) >= ITEMS_A_MESSAGE):
                await call.write(prescribing_pb2.UploadPrescriptionsRequest(items=group))
                group, size = [], 0
            group.append(request)
            size += request.ByteSize()
        if group:
            await call.write(prescribing_pb2.UploadPrescriptionsRequest(items=group))

    async def _next_group(self) -> list[Request] | None:
        """The next requests: what is at hand, at least one; None at the end of the source."""
        group: list[Request] = []
        size = 0
        while len(group) < ITEMS_A_MESSAGE and size < MESSAGE_BYTES:
            while len(self._unanswered) >= UNANSWERED_MAX:
                if group:
                    return group
                self._room.clear()
                await self._room.wait()
            if self._ended:
                return group or None
            if self._coming is None:
                self._coming = asyncio.ensure_future(anext(self._source, None))
            if group:
                # Whoever is quick gets large messages, and nobody is waited for.
                await asyncio.wait({self._coming}, timeout=0)
                if not self._coming.done():
                    return group
            # Shielded: the source is read once, however many streams it takes.
            request = await asyncio.shield(self._coming)
            self._coming = None
            if request is None:
                self._ended = True
                return group or None
            self._connection.waiting(request)
            self._unanswered.append(request)
            group.append(request)
            size += request.ByteSize()
        return group


def _told(error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
    """The error, but a lost stream for a message that met the end of its stream: gRPC then says INTERNAL, and no more.

    Whatever really ended the stream ends the next one too, and says so.
    """
    if error.code() is grpc.StatusCode.INTERNAL and _MET_THE_END in (error.debug_error_string() or ""):
        return grpc.aio.AioRpcError(
            grpc.StatusCode.UNAVAILABLE, error.initial_metadata(), error.trailing_metadata(), error.details()
        )
    return error


def _failure(packed: bytes) -> Refusal | CallFailed:
    """What a unary call with this google.rpc.Status would have raised."""
    status = status_pb2.Status.FromString(packed)
    code = next((known for known in grpc.StatusCode if known.value[0] == status.code), grpc.StatusCode.UNKNOWN)
    error = grpc.aio.AioRpcError(
        code, grpc.aio.Metadata(), grpc.aio.Metadata((DETAILS_KEY, packed)), details=status.message
    )
    return refusal_of(error) or call_failed(error)
