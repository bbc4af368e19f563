"""What the five clients have in common: a connection, request ids, and the sending of a message that exists already.

Owns: who gets which shape of request id. Must never: hold a method of one service.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Self, TypeAlias

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from erxhub.client.connection import SERVICE_MODULES, ClientIdentity, Connection, RetryPolicy
from erxhub.client.environment import Environment
from erxhub.client.request_ids import NationalRequestIds, RandomRequestIds, RequestIds
from erxhub.v1 import common_pb2, registry_pb2_grpc, voucher_pb2_grpc

NATIONAL_ROLES: Final = ("hospital", "pharmacy")


def _unary_paths() -> dict[type[Message], tuple[str, type[Message]]]:
    return {
        GetMessageClass(method.input_type): (
            f"/{service.full_name}/{method.name}",
            GetMessageClass(method.output_type),
        )
        for module in SERVICE_MODULES
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if not method.client_streaming and not method.server_streaming
    }


UNARY_PATHS: Final[Mapping[type[Message], tuple[str, type[Message]]]] = _unary_paths()
"""Every unary method by its request: (path, type of its reply)."""


WaitFor: TypeAlias = "common_pb2.WaitFor.ValueType"
"""What a reply waits for: WAIT_FOR_DURABLE, WAIT_FOR_INTEGRATED or WAIT_FOR_WITNESSED of `erxhub.v1.common_pb2`."""

DEFAULT_WAIT: Final = common_pb2.WAIT_FOR_UNSPECIFIED
"""As the connection says, and DURABLE where that says nothing."""


class Client:
    """One caller of a hub.

    Commands take `request_id` (made by the library when it is None), `wait_for` and `timeout_s` (both the
    connection's unless given), and return the reply message. A reply waits no longer than its deadline;
    `Connection.on_reached` hears what it reached. Every call raises Refusal, HubUnreachable, CallFailed or
    ReceiptInvalid.
    """

    def __init__(self, connection: Connection, *, request_ids: RequestIds | None = None) -> None:
        self.connection = connection
        self.request_ids = request_ids or self._default_request_ids()
        # The two services that several kinds of caller share.
        self._registry = registry_pb2_grpc.RegistryServiceStub(connection.channel)
        self._vouchers = voucher_pb2_grpc.VoucherServiceStub(connection.channel)

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        target: str,
        identity: ClientIdentity,
        *,
        server_name: str | None = None,
        receipt_keys: Mapping[str, bytes] | None = None,
        request_ids: RequestIds | None = None,
        retry: RetryPolicy | None = None,
        environment: Environment | None = None,
    ) -> AsyncGenerator[Self, None]:
        """A client with a connection of its own, closed at the end of the block. Arguments as for Connection."""
        async with Connection(
            target,
            identity,
            server_name=server_name,
            receipt_keys=receipt_keys,
            retry=retry,
            environment=environment,
        ) as connection:
            yield cls(connection, request_ids=request_ids)

    async def send(self, request: Message, *, timeout_s: float | None = None) -> Message:
        """Sends a request message exactly as it is, and returns the reply of its method.

        This is how a request whose outcome is unknown is repeated: `await client.send(failure.request)` carries the
        same id and the same signatures, and gets the first reply. Raises TypeError for a message that is no request
        of a unary method.
        """
        found = UNARY_PATHS.get(type(request))
        if found is None:
            raise TypeError(f"{type(request).__name__} is not the request of a unary method")
        path, reply_class = found
        method: grpc.aio.UnaryUnaryMultiCallable[Any, Any] = self.connection.channel.unary_unary(
            path, request_serializer=type(request).SerializeToString, response_deserializer=reply_class.FromString
        )
        reply: Message = await self.connection.unary(method, request, timeout_s)
        return reply

    def _default_request_ids(self) -> RequestIds:
        environment, peer = self.connection.environment, self.connection.peer_name
        if peer and peer.role in NATIONAL_ROLES:
            return NationalRequestIds(peer.id, environment)
        return RandomRequestIds(environment)

    def _id(self, request_id: str | None) -> str:
        return self.request_ids.new() if request_id is None else request_id

    def _now_unless(self, at_ms: int | None) -> int:
        return self.connection.environment.now_ms() if at_ms is None else at_ms

    def _institution(self, institution_code: str | None) -> str:
        """The given code, by default the certificate's; empty when it names none, which the hub will refuse."""
        if institution_code is not None:
            return institution_code
        peer = self.connection.peer_name
        return peer.id if peer else ""


def page_of(page_size: int, page_token: str) -> common_pb2.Page:
    """A page of a list; 0 and "" stand for the hub's default size and the first page."""
    return common_pb2.Page(page_size=page_size, page_token=page_token)
