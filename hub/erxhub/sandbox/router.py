"""The data port's way from a client certificate to its namespace.

Owns the choice, by the trust domain in the certificate and by nothing that a caller could claim. A certificate of no
namespace is refused as any hub refuses a stranger.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any, Final, NoReturn

import grpc

from erxhub.config import Config
from erxhub.core.model import Refused
from erxhub.crypto.certs import PeerIdentityError, trust_domain_of
from erxhub.engine import Counters
from erxhub.rpc.errors import wire_status
from erxhub.rpc.methods import Method
from erxhub.sandbox.namespace import Namespace
from erxhub.sandbox.namespaces import Namespaces

_CERTIFICATES_KEPT: Final = 4096

_CONTEXT = grpc.aio.ServicerContext[Any, Any]


class Router:
    """Serves the data port of a sandbox, as a dispatcher serves that of a hub."""

    def __init__(self, namespaces: Namespaces, config: Config) -> None:
        self.counters = Counters()
        self._draining = False
        self._namespaces = namespaces
        self._config = config
        # What is kept cannot change: a certificate's trust domain, or the reason why it has none.
        self._domains: OrderedDict[bytes, str | PeerIdentityError] = OrderedDict()

    def handler(self, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        """The gRPC handler of a method: it finds the namespace, which serves the call."""
        name = method.name

        async def call(request: Any, context: _CONTEXT) -> bytes:
            return await (await self._namespace(context)).serve(name, request, context)

        async def stream(request: bytes, context: _CONTEXT) -> AsyncIterator[bytes]:
            async for message in (await self._namespace(context)).serve_stream(name, request, context):
                yield message

        if method.streams_in:
            return grpc.stream_unary_rpc_method_handler(call)
        if method.streams_out:
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(call)

    async def drained(self) -> None:
        """Answer new calls with HUB_UNAVAILABLE from now on; returns once no call is open in any namespace."""
        self._draining = True
        await asyncio.gather(*(namespace.quiet() for namespace in self._namespaces.all()))

    async def _namespace(self, context: _CONTEXT) -> Namespace:
        if self._draining:
            await self._refuse(Refused("HUB_UNAVAILABLE"), context)
        certificate = bytes(next(iter(context.auth_context().get("x509_pem_cert", ())), b""))
        domain = self._domain(certificate)
        if isinstance(domain, PeerIdentityError):
            await self._refuse(_stranger(domain.reason), context)
        namespace = self._namespaces.of_domain(domain)
        if namespace is None:
            await self._refuse(_stranger("FOREIGN_TRUST_DOMAIN"), context)
        return namespace

    def _domain(self, certificate: bytes) -> str | PeerIdentityError:
        known = self._domains.get(certificate)
        if known is None:
            try:
                known = trust_domain_of(certificate)
            except PeerIdentityError as error:
                known = error
            self._domains[certificate] = known
            if len(self._domains) > _CERTIFICATES_KEPT:
                self._domains.popitem(last=False)
        return known

    async def _refuse(self, refused: Refused, context: _CONTEXT) -> NoReturn:
        self.counters.count(refused.code)
        status = wire_status(refused, self._config)
        await context.abort(status.code, status.message, (("grpc-status-details-bin", status.details),))
        raise AssertionError("abort always raises")


def _stranger(reason: str) -> Refused:
    return Refused("PEER_IDENTITY", detail={"reason": reason})
