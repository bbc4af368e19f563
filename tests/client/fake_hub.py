"""A hub that does nothing: every RPC of the contract over real mutual TLS, answered by functions that a test sets.

Owns: the server, and what it was sent. Must never hold a rule of the real hub.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from erxhub.client import ClientIdentity, RetryPolicy
from erxhub.client.connection import SERVICE_MODULES
from erxhub.crypto.ca import Identity

QUICK = RetryPolicy(attempts=4, backoff_ms=10, backoff_max_ms=20, stream_resumes=3)
Handler = Callable[[Any, "grpc.aio.ServicerContext[Any, Any]"], Any]


def methods() -> Iterator[MethodDescriptor]:
    """Every method of the contract."""
    for module in SERVICE_MODULES:
        for service in module.DESCRIPTOR.services_by_name.values():
            yield from service.methods


@dataclass
class Received:
    """One call as it arrived; `requests` holds one message, or those of a client stream."""

    method: str
    requests: list[Any]
    deadline_s: float | None


@dataclass
class FakeHub:
    """`on["Settle"] = handler` answers a method; any other method is answered with an empty reply."""

    target: str = ""
    on: dict[str, Handler] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)

    def requests(self, method: str) -> list[Any]:
        return [request for call in self.received if call.method == method for request in call.requests]


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, hub: FakeHub) -> None:
        self._hub = hub
        self._methods = {f"/{method.containing_service.full_name}/{method.name}": method for method in methods()}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = self._methods[handler_call_details.method]
        codec = {
            "request_deserializer": GetMessageClass(method.input_type).FromString,
            "response_serializer": GetMessageClass(method.output_type).SerializeToString,
        }
        if method.server_streaming and method.client_streaming:
            return grpc.stream_stream_rpc_method_handler(self._stream(method), **codec)  # type: ignore[arg-type]
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(self._stream(method), **codec)  # type: ignore[arg-type]
        if method.client_streaming:
            return grpc.stream_unary_rpc_method_handler(self._collect(method), **codec)  # type: ignore[arg-type]
        return grpc.unary_unary_rpc_method_handler(self._unary(method), **codec)  # type: ignore[arg-type]

    def _record(self, method: MethodDescriptor, requests: list[Any], context: Any) -> None:
        self._hub.received.append(Received(method.name, requests, context.time_remaining()))

    async def _answer(self, method: MethodDescriptor, request: Any, context: Any) -> Message:
        handler = self._hub.on.get(method.name)
        if handler is None:
            return GetMessageClass(method.output_type)()
        answer = handler(request, context)
        reply: Message = await answer if isinstance(answer, Awaitable) else answer
        return reply

    def _unary(self, method: MethodDescriptor) -> Any:
        async def unary(request: Any, context: Any) -> Message:
            self._record(method, [request], context)
            return await self._answer(method, request, context)

        return unary

    def _collect(self, method: MethodDescriptor) -> Any:
        async def collect(requests: AsyncIterator[Any], context: Any) -> Message:
            taken: list[Any] = []
            self._record(method, taken, context)
            if method.name in self._hub.on:
                return await self._answer(method, requests, context)
            taken += [request async for request in requests]
            return GetMessageClass(method.output_type)()

        return collect

    def _stream(self, method: MethodDescriptor) -> Any:
        async def stream(request: Any, context: Any) -> AsyncIterator[Message]:
            self._record(method, [] if method.client_streaming else [request], context)
            handler = self._hub.on.get(method.name)
            if handler is not None:
                async for message in handler(request, context):
                    yield message

        return stream


@asynccontextmanager
async def running_hub(identity: Identity) -> AsyncIterator[FakeHub]:
    """A FakeHub on a free port, with mutual TLS required.

    On one address: of `localhost` two are taken, and the port of the second may be another server's.
    """
    hub = FakeHub()
    server = grpc.aio.server(handlers=[_Handlers(hub)])
    credentials = grpc.ssl_server_credentials(
        [(identity.key_pem, identity.cert_pem)], root_certificates=identity.ca_pem, require_client_auth=True
    )
    hub.target = f"localhost:{server.add_secure_port('127.0.0.1:0', credentials)}"
    await server.start()
    try:
        yield hub
    finally:
        await server.stop(None)


def client_identity(identity: Identity) -> ClientIdentity:
    return ClientIdentity(identity.ca_pem, identity.cert_pem, identity.key_pem)


def details_trailer(code: int, message: str, *details: Message) -> tuple[tuple[str, bytes]]:
    """google.rpc details as the hub sends them."""
    packed = []
    for detail in details:
        packed.append(AnyMessage())
        packed[-1].Pack(detail)
    status = status_pb2.Status(code=code, message=message, details=packed)
    return (("grpc-status-details-bin", status.SerializeToString()),)


async def refuse(
    context: Any, status: grpc.StatusCode, message: str, info: error_details_pb2.ErrorInfo, *details: Message
) -> None:
    await context.abort(status, message, trailing_metadata=details_trailer(status.value[0], message, info, *details))


class FakeEnvironment:
    """The machine's clock at the start, no chance, and waits that only leave their length behind."""

    def __init__(self, now_ms: int) -> None:
        self.at_ms = now_ms
        self.slept_ms: list[int] = []

    def now_ms(self) -> int:
        return self.at_ms

    def below(self, bound: int) -> int:
        return bound - 1

    async def sleep_ms(self, duration_ms: int) -> None:
        self.slept_ms.append(duration_ms)
