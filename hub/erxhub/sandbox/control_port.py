"""The control port: mutual TLS, the caller's role, field rules, and refusals on the wire.

Owns what is the same for every RPC of the control service. Must never: serve a method of the data port.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, NoReturn

import grpc
from google.protobuf import message_factory
from google.protobuf.message import DecodeError, Message

from erxhub.admission import FieldRules
from erxhub.crypto.certs import PeerIdentityError, peer_identity
from erxhub.ledger.store import StoreUnavailable
from erxhub.rpc.server import ServerIdentity
from erxhub.sandbox.answers import DETAILS_KEY
from erxhub.sandbox.errors import SandboxRefused, argument_refused, wire_error
from erxhub.sandbox.service import SandboxService
from erxhub.v1 import sandbox_pb2

_log = logging.getLogger("erxhub.sandbox")

_SERVICE: Final = sandbox_pb2.DESCRIPTOR.services_by_name["SandboxService"]
ROLE: Final = "sandbox"

_INTERNAL: Final = "The sandbox failed inside; its operator finds the cause in the log."

_MESSAGE_BYTES_MAX: Final = 64 * 1024 * 1024
"""A world with its certificates, or one exchange with its messages, is far below; traffic comes as a stream."""

_CONTEXT = grpc.aio.ServicerContext[Any, Any]


class ControlPort:
    """One listening control server."""

    def __init__(self, service: SandboxService, identity: ServerIdentity, trust_domain: str) -> None:
        self._service = service
        self._trust_domain = trust_domain
        self._rules = FieldRules({})
        self._credentials = grpc.ssl_server_credentials(
            [(identity.private_key, identity.certificate_chain)],
            root_certificates=identity.ca_certificates,
            require_client_auth=True,
        )
        self._server = grpc.aio.server(
            options=(
                ("grpc.max_send_message_length", _MESSAGE_BYTES_MAX),
                ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
                ("grpc.so_reuseport", 0),
            )
        )
        unary: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(self._unary(_request_type(name), call))
            for name, call in service.calls.items()
        }
        streams: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_stream_rpc_method_handler(self._stream(_request_type(name), call))
            for name, call in service.streams.items()
        }
        handlers = grpc.method_handlers_generic_handler(_SERVICE.full_name, unary | streams)
        self._server.add_generic_rpc_handlers((handlers,))

    async def start(self, address: str) -> int:
        """Listen on "host:port"; returns the port. Raises RuntimeError when it cannot."""
        port = self._server.add_secure_port(address, self._credentials)
        await self._server.start()
        return port

    async def stop(self) -> None:
        """End it, and the streams that are open."""
        await self._server.stop(None)

    def _unary(self, kind: type[Any], call: Callable[[str, Any], Awaitable[Message]]) -> Any:
        async def serve(raw: bytes, context: _CONTEXT) -> bytes:
            try:
                owner = self._owner(context)
                return (await call(owner, self._request(kind, raw))).SerializeToString()
            except SandboxRefused as refused:
                await _abort(refused, context)
            except StoreUnavailable as error:
                await _unavailable(error, context)
            except Exception as error:
                await _failed(error, context)
                raise

        return serve

    def _stream(self, kind: type[Any], call: Callable[[str, Any], AsyncIterator[Message]]) -> Any:
        async def serve(raw: bytes, context: _CONTEXT) -> AsyncIterator[bytes]:
            try:
                owner = self._owner(context)
                async for message in call(owner, self._request(kind, raw)):
                    yield message.SerializeToString()
            except SandboxRefused as refused:
                await _abort(refused, context)
            except StoreUnavailable as error:
                await _unavailable(error, context)
            except Exception as error:
                await _failed(error, context)
                raise

        return serve

    def _owner(self, context: _CONTEXT) -> str:
        certificate = bytes(next(iter(context.auth_context().get("x509_pem_cert", ())), b""))
        try:
            peer = peer_identity(certificate, self._trust_domain)
        except PeerIdentityError as error:
            raise SandboxRefused("SBX_ROLE", {"reason": error.reason}) from None
        if peer.role != ROLE:
            raise SandboxRefused("SBX_ROLE", {"role": peer.role})
        return f"{ROLE}/{peer.id}"

    def _request(self, kind: type[Any], raw: bytes) -> Any:
        request = kind()
        try:
            request.ParseFromString(raw)
        except DecodeError:
            raise argument_refused("", "bytes", "the bytes are no such message") from None
        violations, _ = self._rules.check(request, ())
        if violations:
            raise SandboxRefused("SBX_ARGUMENT", {"field": violations[0].field}, violations)
        return request


def _request_type(name: str) -> type[Any]:
    return message_factory.GetMessageClass(_SERVICE.methods_by_name[name].input_type)


async def _failed(error: Exception, context: _CONTEXT) -> None:
    """A bug is logged here, and the caller learns nothing of the inside."""
    if not isinstance(error, grpc.aio.AbortError):
        _log.error("the control service failed", exc_info=error)
        await context.abort(grpc.StatusCode.INTERNAL, _INTERNAL)


async def _unavailable(error: StoreUnavailable, context: _CONTEXT) -> NoReturn:
    _log.error("a namespace's ledger cannot be used: %s", error)
    await _abort(SandboxRefused("SBX_UNAVAILABLE"), context)


async def _abort(refused: SandboxRefused, context: _CONTEXT) -> NoReturn:
    status = wire_error(refused)
    await context.abort(status.code, status.message, ((DETAILS_KEY, status.details),))
    raise AssertionError("abort always raises")
