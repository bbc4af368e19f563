"""The data port's way from a client certificate to its namespace.

Owns the choice, by the trust domain in the certificate and by nothing that a caller could claim. A certificate of no
namespace is refused as any hub refuses a stranger.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any, Final, NamedTuple, NoReturn

import grpc

from erxhub.config import Config
from erxhub.core.model import Refused
from erxhub.crypto.certs import PeerIdentityError, trust_domain_of
from erxhub.metrics import Counters
from erxhub.rpc.errors import wire_status
from erxhub.rpc.methods import Method
from erxhub.sandbox import facts
from erxhub.sandbox.answers import Status
from erxhub.sandbox.namespace import Namespace
from erxhub.sandbox.namespaces import Namespaces
from erxhub.sandbox.observed import Observed

_CERTIFICATES_KEPT: Final = 4096

_CONTEXT = grpc.aio.ServicerContext[Any, Any]


class _Known(NamedTuple):
    """What a certificate says, which cannot change: whose namespace it leads to and who he is there, or why to none."""

    certificate: bytes
    trust_domain: str = ""
    actor: str = ""
    refused: Refused | None = None


class Router:
    """Serves the data port of a sandbox, as a dispatcher serves that of a hub."""

    def __init__(self, namespaces: Namespaces, config: Config) -> None:
        self.counters = Counters()
        self._draining = False
        self._namespaces = namespaces
        self._config = config
        self._known: OrderedDict[bytes, _Known] = OrderedDict()

    def handler(self, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        """The gRPC handler of a method: it finds the namespace, which serves the call."""
        name = method.name

        async def call(request: Any, context: _CONTEXT) -> bytes:
            caller = Observed(context)
            found = self._found(caller)
            if isinstance(found, Refused):
                return await self._refuse(found, caller)
            found.connections.note(context.peer())
            return await found.serve(name, request, caller)

        async def stream(request: Any, context: _CONTEXT) -> AsyncIterator[bytes]:
            caller = Observed(context)
            found = self._found(caller)
            if isinstance(found, Refused):
                await self._refuse(found, caller)
            found.connections.note(context.peer())
            async for message in found.serve_stream(name, request, caller):
                yield message

        if method.streams_in and method.streams_out:
            return grpc.stream_stream_rpc_method_handler(stream)
        if method.streams_in:
            return grpc.stream_unary_rpc_method_handler(call)
        if method.streams_out:
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(call)

    async def drained(self) -> None:
        """Answer new calls with HUB_UNAVAILABLE from now on; returns once no call is open in any namespace."""
        self._draining = True
        await asyncio.gather(*(namespace.quiet() for namespace in self._namespaces.all()))

    def _found(self, caller: Observed) -> Namespace | Refused:
        if self._draining:
            return Refused("HUB_UNAVAILABLE")
        known = self._known.get(caller.certificate) or self._read(caller.certificate)
        if known.refused is not None:
            return known.refused
        caller.is_known(known.certificate, known.actor)
        return self._namespaces.of_domain(known.trust_domain) or _stranger("FOREIGN_TRUST_DOMAIN")

    def _read(self, certificate: bytes) -> _Known:
        try:
            trust_domain = trust_domain_of(certificate)
            known = _Known(certificate, trust_domain, facts.actor_of(certificate, trust_domain))
        except PeerIdentityError as error:
            known = _Known(certificate, refused=_stranger(error.reason))
        self._known[certificate] = known
        if len(self._known) > _CERTIFICATES_KEPT:
            self._known.popitem(last=False)
        return known

    async def _refuse(self, refused: Refused, context: Observed) -> NoReturn:
        self.counters.count(refused.code)
        await context.answer(Status(*wire_status(refused, self._config)))


def _stranger(reason: str) -> Refused:
    return Refused("PEER_IDENTITY", detail={"reason": reason})
