"""Which way serves which method: every one of every service, through the same few steps.

Owns nothing but that choice. The steps stand in `rpc/steps.py`, the unary calls in `rpc/calls.py`, the streams in
`rpc/streams.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import grpc

from erxhub.core.decide import HANDLERS
from erxhub.queries import QUERIES, STREAMS
from erxhub.rpc.calls import Calls
from erxhub.rpc.methods import COMMAND, Method
from erxhub.rpc.streams import BULK, Streams


class Dispatcher:
    """Serves the methods of one hub."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._streams = Streams(calls)

    def handler(self, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        """The gRPC handler of a method; bytes go in and out unread, so that unreadable ones get an answer too.

        Raises KeyError for a method that nothing serves.
        """
        calls, streams = self._calls, self._streams
        if method.streams_in and method.streams_out:
            BULK[method.name]
            return grpc.stream_stream_rpc_method_handler(streams.sealed(method, streams.bulk))
        if method.streams_in:
            return grpc.stream_unary_rpc_method_handler(calls.sealed(method, streams.catalog_import))
        if method.streams_out:
            STREAMS[method.name]
            return grpc.unary_stream_rpc_method_handler(streams.sealed(method, streams.watch))
        if method.effect == COMMAND:
            HANDLERS[method.name]
            return grpc.unary_unary_rpc_method_handler(calls.sealed(method, calls.command))
        QUERIES[method.name]
        return grpc.unary_unary_rpc_method_handler(calls.sealed(method, calls.read))

    async def drained(self) -> None:
        """Answer new calls with HUB_UNAVAILABLE from now on; returns once no call is open and none comes any more.

        What is on its way to a server when it stops ends as CANCELLED, so it is let in here first.
        """
        self._streams.end_bulks()
        await self._calls.drained()


class Served(Protocol):
    """What a server listens for: a dispatcher, or whatever chooses among several."""

    def handler(self, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        """The gRPC handler of a method, bytes in and out."""

    async def drained(self) -> None:
        """Take no new calls; returns once none is open."""


class Methods(grpc.GenericRpcHandler):
    """The methods of all services by their paths: gRPC asks one handler after the other, for each call anew."""

    def __init__(self, dispatcher: Served, methods: Iterable[Method]) -> None:
        self._handlers = {f"/{method.service}/{method.rpc}": dispatcher.handler(method) for method in methods}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of a call; None for a method that no service has."""
        return self._handlers.get(handler_call_details.method)
