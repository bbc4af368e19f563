"""Calls with exactly the bytes that a case wants to send, and their answers as values.

Owns: one channel of one caller without retries and without limits of its own. Must never: alter a byte of a request, or
raise for what a hub answers.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from google.protobuf.message import Message

from erxhub.client import ClientIdentity, Refusal
from erxhub.client.environment import Environment
from erxhub.client.failures import refusal_of
from erxhub.rpc.methods import METHODS, Method

TIMEOUT_S: Final = 15.0
PATIENCE: Final = 6
"""Tries of a call that a disturbed line (profile strict) may make UNAVAILABLE; each has the same bytes."""
WAIT_MAX_MS: Final = 200

Metadata = Sequence[tuple[str, str | bytes]]

BY_REQUEST: Final[Mapping[type[Message], Method]] = {method.request: method for method in METHODS.values()}
BY_SHORT_NAME: Final[Mapping[str, Method]] = {name.replace("Service/", "/"): method for name, method in METHODS.items()}


def path_of(name: str) -> str:
    """The path of "Dispensing/Settle"; a name with a dot is a path already, but for its first slash."""
    if name in BY_SHORT_NAME:
        method = BY_SHORT_NAME[name]
        return f"/{method.service}/{method.rpc}"
    return f"/{name.lstrip('/')}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one call. `status` is the gRPC status's name; `data` the reply's bytes, empty without one."""

    method: str
    status: str
    data: bytes = b""
    reply: Any = None
    refusal: Refusal | None = None
    details: str = ""
    request: bytes = field(default=b"", repr=False)
    trailers: Mapping[str, str | bytes] = field(default_factory=dict, repr=False)

    @property
    def ok(self) -> bool:
        """Whether the hub accepted."""
        return self.status == "OK"

    @property
    def code(self) -> str:
        """ "OK", the refusal's code, or the bare gRPC status's name."""
        return self.refusal.code if self.refusal is not None else self.status

    def known(self) -> bytes:
        """The reply without fields that no published message has, in one fixed encoding."""
        if self.reply is None:
            return b""
        copy = type(self.reply)()
        copy.CopyFrom(self.reply)
        copy.DiscardUnknownFields()
        return bytes(copy.SerializeToString(deterministic=True))


class RawCaller:
    """One caller's channel. Make it inside a running event loop, and close it."""

    def __init__(
        self,
        target: str,
        identity: ClientIdentity,
        environment: Environment,
        *,
        server_name: str | None = None,
    ) -> None:
        self.target = target
        self._environment = environment
        options: list[tuple[str, str | int]] = [
            ("grpc.enable_retries", 0),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", 256 * 1024),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 200),
        ]
        if server_name:
            options.append(("grpc.ssl_target_name_override", server_name))
        credentials = grpc.ssl_channel_credentials(identity.ca_pem, identity.key_pem, identity.cert_pem)
        self.channel = grpc.aio.secure_channel(target, credentials, options)

    async def close(self) -> None:
        """Ends every call that is under way."""
        await self.channel.close()

    def begin(
        self, name: str, data: bytes, *, metadata: Metadata = (), timeout_s: float = TIMEOUT_S
    ) -> grpc.aio.UnaryUnaryCall[bytes, bytes]:
        """A call under way, to be awaited or cancelled."""
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(path_of(name))
        return method(data, timeout=timeout_s, metadata=tuple(metadata))

    async def call(
        self,
        name: str,
        data: bytes,
        *,
        metadata: Metadata = (),
        timeout_s: float = TIMEOUT_S,
        once: bool = False,
    ) -> Answer:
        """One unary call, and unless `once` the same bytes again while the hub is UNAVAILABLE."""
        for attempt in range(1, PATIENCE + 1):
            answer = await self._attempt(name, data, metadata, timeout_s)
            if once or answer.status != "UNAVAILABLE" or attempt == PATIENCE:
                break
            named_ms = answer.refusal.retry_after_ms if answer.refusal is not None else 0
            await self._environment.sleep_ms(min(max(named_ms, 20 * attempt), WAIT_MAX_MS))
        return answer

    async def ask(self, request: Message, *, metadata: Metadata = (), once: bool = False) -> Answer:
        """Sends a request message, serialised once, to the method that takes it."""
        method = BY_REQUEST[type(request)]
        name = method.name.replace("Service/", "/")
        return await self.call(name, request.SerializeToString(), metadata=metadata, once=once)

    async def _attempt(self, name: str, data: bytes, metadata: Metadata, timeout_s: float) -> Answer:
        try:
            reply = await self.begin(name, data, metadata=metadata, timeout_s=timeout_s)
        except grpc.aio.AioRpcError as error:
            return failed(name, data, error)
        found = BY_SHORT_NAME.get(name)
        return Answer(name, "OK", reply, found.response.FromString(reply) if found else None, request=data)

    async def stream(
        self, name: str, request: Message | bytes, *, count: int, timeout_s: float = TIMEOUT_S
    ) -> tuple[list[Any], Answer | None]:
        """The first `count` messages of a stream, and how it ended where it ended earlier."""
        data = request if isinstance(request, bytes) else request.SerializeToString()
        messages: list[Any] = []
        async with aclosing(self.messages(name, data, timeout_s)) as coming:
            try:
                async for message in coming:
                    messages.append(message)
                    if len(messages) == count:
                        return messages, None
            except grpc.aio.AioRpcError as error:
                return messages, failed(name, data, error)
        return messages, Answer(name, "OK", request=data)

    async def messages(self, name: str, data: bytes, timeout_s: float = TIMEOUT_S) -> AsyncGenerator[Any, None]:
        """The messages of a stream. Raises AioRpcError as gRPC does."""
        response = BY_SHORT_NAME[name].response
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self.channel.unary_stream(path_of(name))
        call = method(data, timeout=timeout_s)
        try:
            async for raw in call:
                yield response.FromString(raw)
        finally:
            call.cancel()

    def open_stream(self, name: str, request: Message) -> grpc.aio.UnaryStreamCall[bytes, bytes]:
        """A stream that the case reads, or does not read, itself."""
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self.channel.unary_stream(path_of(name))
        return method(request.SerializeToString())


def failed(name: str, data: bytes, error: grpc.aio.AioRpcError) -> Answer:
    """The answer that an error of gRPC is."""
    trailers: dict[str, str | bytes] = dict(error.trailing_metadata() or ())
    refusal = refusal_of(error)
    return Answer(
        name,
        error.code().name,
        refusal=refusal,
        details=error.details() or "",
        request=data,
        trailers=trailers,
    )
