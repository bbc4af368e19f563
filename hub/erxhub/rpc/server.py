"""The gRPC server: mutual TLS, limits, health, reflection, drain, and certificates read again when they change.

Owns the transport. It knows no method by name; the dispatcher serves what the protos describe.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from erxhub.config import Config
from erxhub.crypto.certs import key_matches
from erxhub.rpc.dispatch import Methods, Served
from erxhub.rpc.methods import METHODS, SERVICES, Method

_log = logging.getLogger("erxhub.server")

_CLOSING_MS: Final = 100
"""What a call that slipped in while the server closed may take to learn that it came too late."""

_HEALTH_SERVICE: Final = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
PUBLISHING_HEALTH: Final = "erxhub.publishing"
"""As the health service calls it: NOT_SERVING while commands are taken and a witness knows another history."""


class ServerIdentity(NamedTuple):
    """What the server shows and whom it trusts, PEM."""

    certificate_chain: bytes
    private_key: bytes
    ca_certificates: bytes


class IdentitySource(Protocol):
    """Where the server's identity comes from; asked again at each handshake."""

    def current(self) -> ServerIdentity:
        """The identity to use now."""


class FixedIdentity:
    """An identity that never changes, for tests and demonstrations."""

    def __init__(self, identity: ServerIdentity) -> None:
        self._identity = identity

    def current(self) -> ServerIdentity:
        """The identity."""
        return self._identity


class IdentityFiles:
    """An identity in three files. A changed file is read at the next handshake; a broken pair keeps the old one."""

    def __init__(self, certificate: Path, key: Path, ca: Path) -> None:
        self._paths = (certificate, key, ca)
        self._stamp: tuple[tuple[int, int], ...] = ()
        self._identity = self._read()

    def current(self) -> ServerIdentity:
        """The newest identity whose certificate and key belong together."""
        try:
            if self._stamps() != self._stamp:
                self._identity = self._read()
        except (OSError, ValueError) as error:
            _log.error("the server certificate was not read again: %s", error)
        return self._identity

    def _stamps(self) -> tuple[tuple[int, int], ...]:
        stats = [path.stat() for path in self._paths]
        return tuple((stat.st_mtime_ns, stat.st_size) for stat in stats)

    def _read(self) -> ServerIdentity:
        stamp = self._stamps()
        certificate, key, ca = (path.read_bytes() for path in self._paths)
        if not key_matches(certificate, key):
            raise ValueError(f"{self._paths[1]} is not the key of {self._paths[0]}")
        self._stamp = stamp
        return ServerIdentity(certificate, key, ca)


Layer: TypeAlias = "Callable[[Method, grpc.RpcMethodHandler[Any, Any]], grpc.RpcMethodHandler[Any, Any]]"
"""What stands around every handler, for instance to count its calls."""


class _Layered:
    """A dispatcher with layers around its handlers, the last one outermost."""

    def __init__(self, inner: Served, layers: Sequence[Layer]) -> None:
        self._inner = inner
        self._layers = layers

    def handler(self, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        found = self._inner.handler(method)
        for layer in self._layers:
            found = layer(method, found)
        return found

    async def drained(self) -> None:
        await self._inner.drained()


class HubServer:
    """One listening server over a dispatcher."""

    def __init__(
        self, dispatcher: Served, identity: IdentitySource, config: Config, layers: Sequence[Layer] = ()
    ) -> None:
        dispatcher = _Layered(dispatcher, layers) if layers else dispatcher
        self._config = config
        self._dispatcher = dispatcher
        self._health = HealthServicer()
        self._server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", config.message_bytes_max),
                ("grpc.max_send_message_length", config.reply_bytes_max),
                # grpc fails calls above its own limits as CANCELLED; ours are lower and answer OVERLOADED.
                ("grpc.server.max_pending_requests", config.calls_pending_max),
                ("grpc.server.max_pending_requests_hard_limit", config.calls_pending_max),
                ("grpc.max_concurrent_streams", config.calls_pending_max),
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            )
        )
        self._server.add_generic_rpc_handlers((Methods(dispatcher, METHODS.values()),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if config.reflection:
            reflection.enable_server_reflection((*SERVICES, _HEALTH_SERVICE, reflection.SERVICE_NAME), self._server)
        self._credentials = _credentials(identity)

    async def start(self, address: str) -> int:
        """Listen on "host:port" and say that every service is served; returns the port (chosen when 0)."""
        port = self._server.add_secure_port(address, self._credentials)
        await self._server.start()
        await self.announce(serving=True)
        return port

    async def announce(self, *, serving: bool, publishing: bool = True) -> None:
        """Tell health clients, per service, whether calls are taken; and whether the log is published, as a service."""
        told = {**dict.fromkeys(("", *SERVICES), serving), PUBLISHING_HEALTH: serving and publishing}
        for service, is_well in told.items():
            status = health_pb2.HealthCheckResponse.SERVING if is_well else health_pb2.HealthCheckResponse.NOT_SERVING
            await self._health.set(service, status)

    async def drain(self) -> None:
        """Say NOT_SERVING, answer new calls with UNAVAILABLE, let calls in flight finish within the configured time."""
        await self.announce(serving=False)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._dispatcher.drained(), self._config.drain_ms / 1000)
        # What is left is over its time, or a stream of the health service, which never ends by itself.
        await self._server.stop(min(self._config.drain_ms, _CLOSING_MS) / 1000)

    async def cut(self) -> None:
        """Stop at once: every connection is told to go away, and calls in flight end unanswered."""
        await self._server.stop(None)

    async def wait(self) -> None:
        """Until the server has ended."""
        await self._server.wait_for_termination()


def _credentials(source: IdentitySource) -> grpc.ServerCredentials:
    def configuration(identity: ServerIdentity) -> Any:
        return grpc.ssl_server_certificate_configuration(
            [(identity.private_key, identity.certificate_chain)], root_certificates=identity.ca_certificates
        )

    shown = source.current()

    def fetch() -> Any:
        nonlocal shown
        newest = source.current()
        if newest is shown:
            # None tells grpc to go on with what it has.
            return None
        shown = newest
        return configuration(newest)

    make: Callable[..., grpc.ServerCredentials] = grpc.dynamic_ssl_server_credentials
    return make(configuration(shown), fetch, require_client_authentication=True)
