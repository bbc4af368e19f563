"""Calls counted by method and status, from outside the handlers that a server was given.

Owns the families of go-grpc-prometheus. It must never look into a message or a certificate.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Final

import grpc

from erxhub.metrics import SECONDS, Family, Histogram, Sample, buckets
from erxhub.ports import machine_us
from erxhub.rpc.methods import Method

_CONTEXT = grpc.aio.ServicerContext[Any, Any]

_GO_NAMES: Final[Mapping[int, str]] = {
    code.value[0]: "OK" if code is grpc.StatusCode.OK else "".join(part.title() for part in code.name.split("_"))
    for code in grpc.StatusCode
} | {grpc.StatusCode.CANCELLED.value[0]: "Canceled"}
"""Status codes as Go writes them, which is what dashboards made for go-grpc-prometheus look for."""


class _Calls:
    """What is counted of one method."""

    __slots__ = ("handled", "received", "seconds", "sent", "started")

    def __init__(self) -> None:
        self.started = 0
        self.received = 0
        self.sent = 0
        self.handled: dict[int, int] = {}
        self.seconds = Histogram(SECONDS)

    def ended(self, code: int, begun_us: int) -> None:
        self.handled[code] = self.handled.get(code, 0) + 1
        self.seconds.observe((machine_us() - begun_us) / 1e6)


class RpcMeter:
    """Counts calls by method, from outside the handlers that a server was given."""

    def __init__(self, methods: Mapping[str, Method]) -> None:
        self._calls = {name: (method, _Calls()) for name, method in methods.items()}

    def metered(self, method: Method, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        """The handler, counted."""
        calls = self._calls[method.name][1]
        behavior: Any = handler
        if method.streams_out:
            both = method.streams_in
            make: Any = grpc.stream_stream_rpc_method_handler if both else grpc.unary_stream_rpc_method_handler
            inner = behavior.stream_stream if both else behavior.unary_stream
            made: grpc.RpcMethodHandler[Any, Any] = make(_streaming(calls, inner, streams_in=both))
            return made
        inner = behavior.stream_unary if method.streams_in else behavior.unary_unary
        counted = _single(calls, inner, streams_in=method.streams_in)
        if method.streams_in:
            return grpc.stream_unary_rpc_method_handler(counted)
        return grpc.unary_unary_rpc_method_handler(counted)

    def families(self) -> Iterator[Family]:
        """The go-grpc-prometheus families. A method appears from the start, with zeros."""
        started: list[Sample] = []
        received: list[Sample] = []
        sent: list[Sample] = []
        handled: list[Sample] = []
        seconds: list[Sample] = []
        for method, calls in self._calls.values():
            labels = {"grpc_type": _type(method), "grpc_service": method.service, "grpc_method": method.rpc}
            started.append(Sample(labels, calls.started))
            received.append(Sample(labels, calls.received))
            sent.append(Sample(labels, calls.sent))
            handled += [
                Sample({**labels, "grpc_code": _GO_NAMES[code]}, n) for code, n in sorted(calls.handled.items())
            ]
            seconds += buckets(calls.seconds, labels)
        yield Family("grpc_server_started_total", "counter", "Calls begun.", started)
        yield Family("grpc_server_handled_total", "counter", "Calls ended, by status.", handled)
        yield Family("grpc_server_msg_received_total", "counter", "Messages that came in.", received)
        yield Family("grpc_server_msg_sent_total", "counter", "Messages that went out.", sent)
        yield Family("grpc_server_handling_seconds", "histogram", "Seconds from a call's begin to its end.", seconds)


def _type(method: Method) -> str:
    if method.streams_in:
        return "bidi_stream" if method.streams_out else "client_stream"
    return "server_stream" if method.streams_out else "unary"


def _code_of(context: _CONTEXT) -> int:
    """The status that a call was aborted with; gRPC answers UNKNOWN for an error that nobody made a status of."""
    code: Any = context.code()
    if isinstance(code, grpc.StatusCode):
        code = code.value[0]
    return int(code) if code else int(grpc.StatusCode.UNKNOWN.value[0])


_OK: Final[int] = grpc.StatusCode.OK.value[0]
_CANCELLED: Final[int] = grpc.StatusCode.CANCELLED.value[0]


def _single(calls: _Calls, inner: Any, *, streams_in: bool) -> Any:
    async def call(request: Any, context: _CONTEXT) -> Any:
        begun_us = machine_us()
        calls.started += 1
        code = _CANCELLED
        try:
            if streams_in:
                request = _received(calls, request)
            else:
                calls.received += 1
            reply = await inner(request, context)
            code = _OK
            calls.sent += 1
            return reply
        except Exception:
            code = _code_of(context)
            raise
        finally:
            calls.ended(code, begun_us)

    return call


def _streaming(calls: _Calls, inner: Any, *, streams_in: bool) -> Any:
    async def call(request: Any, context: _CONTEXT) -> AsyncIterator[Any]:
        begun_us = machine_us()
        calls.started += 1
        code = _CANCELLED
        try:
            if streams_in:
                request = _received(calls, request)
            else:
                calls.received += 1
            async for message in inner(request, context):
                calls.sent += 1
                yield message
            code = _OK
        except Exception:
            code = _code_of(context)
            raise
        finally:
            calls.ended(code, begun_us)

    return call


async def _received(calls: _Calls, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        calls.received += 1
        yield request
