"""OpenTelemetry traces, where the extra `otel` is installed: one span for each call, with its steps below it.

Owns names and attributes. A span says which method was called, how it ended and how long each step took; it must never
say who called, for whom or about what. Nothing here is imported unless traces are asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import grpc

from erxhub.marks import MARKS, Marks
from erxhub.ports import Clock, SystemClock, machine_us
from erxhub.rpc.methods import Method

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

TRACEPARENT: Final = ("traceparent", "tracestate")
"""The metadata of a call that name the trace that it belongs to (W3C Trace Context)."""

STEPS: Final = (
    ("admission", "", "queued_us"),
    ("lane wait", "queued_us", "taken_us"),
    ("decide", "taken_us", "decided_us"),
    ("commit", "decided_us", "committed_us"),
)
"""Name of a step, and the marks between which it lies; "" is the begin of the call. `decide` and `commit` are those of
the whole batch that the call was in."""

_CONTEXT = grpc.aio.ServicerContext[Any, Any]


class TracingMissing(Exception):
    """The extra `otel` is not installed."""


class Tracing:
    """Traces the calls of a server."""

    def __init__(self, provider: TracerProvider, clock: Clock | None = None) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("erxhub")
        self._propagator = TraceContextTextMapPropagator()
        self._clock = clock or SystemClock()

    def traced(self, method: Method, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        """The handler, traced. The steps are told of calls with one reply; of a stream its whole life."""
        behavior: Any = handler
        if method.streams_out:
            both = method.streams_in
            inner = behavior.stream_stream if both else behavior.unary_stream
            make: Any = grpc.stream_stream_rpc_method_handler if both else grpc.unary_stream_rpc_method_handler
            made: grpc.RpcMethodHandler[Any, Any] = make(self._streaming(method, inner))
            return made
        if method.streams_in:
            return grpc.stream_unary_rpc_method_handler(self._single(method, behavior.stream_unary))
        return grpc.unary_unary_rpc_method_handler(self._single(method, behavior.unary_unary))

    async def close(self) -> None:
        """Send what is left."""
        await asyncio.to_thread(self._provider.shutdown)

    def _single(self, method: Method, inner: Any) -> Any:
        async def call(request: Any, context: _CONTEXT) -> Any:
            marks = Marks()
            token = MARKS.set(marks)
            try:
                with self._span(method, context, marks):
                    return await inner(request, context)
            finally:
                MARKS.reset(token)

        return call

    def _streaming(self, method: Method, inner: Any) -> Any:
        async def call(request: Any, context: _CONTEXT) -> AsyncIterator[Any]:
            with self._span(method, context, None):
                async for message in inner(request, context):
                    yield message

        return call

    @contextmanager
    def _span(self, method: Method, context: _CONTEXT, marks: Marks | None) -> Iterator[None]:
        from opentelemetry import trace

        begun_us, begun_ns = machine_us(), self._clock.now_ms() * 1_000_000

        def at(us: int) -> int:
            return begun_ns + (us - begun_us) * 1_000

        parent = self._propagator.extract(_told(context.invocation_metadata() or ()))
        span = self._tracer.start_span(
            f"{method.service}/{method.rpc}",
            context=parent,
            kind=trace.SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": method.service, "rpc.method": method.rpc},
            start_time=begun_ns,
        )
        code: Any = grpc.StatusCode.CANCELLED.value[0]
        try:
            yield
            code = grpc.StatusCode.OK.value[0]
        except Exception:
            code = context.code()
            code = code.value[0] if isinstance(code, grpc.StatusCode) else code or grpc.StatusCode.UNKNOWN.value[0]
            raise
        finally:
            if span.is_recording():
                span.set_attribute("rpc.grpc.status_code", int(code))
                below = trace.set_span_in_context(span, parent)
                for name, since, until in STEPS if marks is not None else ():
                    from_us = getattr(marks, since) if since else begun_us
                    until_us = getattr(marks, until)
                    if from_us and until_us:
                        step = self._tracer.start_span(name, context=below, start_time=at(from_us))
                        step.end(at(until_us))
            span.end(at(machine_us()))


def _told(metadata: Iterable[tuple[str, str | bytes]]) -> dict[str, str]:
    return {key: value for key, value in metadata if key in TRACEPARENT and isinstance(value, str)}


def otlp_tracing(endpoint: str, hub_id: str) -> Tracing:
    """Traces that go to a collector by OTLP over HTTP, in the background. Raises TracingMissing."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        raise TracingMissing("traces need more than is installed: pip install 'erxhub[otel]'") from None
    provider = TracerProvider(resource=Resource.create({"service.name": "erxhub", "service.instance.id": hub_id}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return Tracing(provider)
