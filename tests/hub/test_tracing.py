"""Traces: a span for each call with its steps below it, in the caller's trace, and nothing personal in them."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from erxhub.client import Refusal
from erxhub.tracing import Tracing, TracingMissing, otlp_tracing
from erxhub.v1 import registry_pb2
from tests.chain import Chain
from tests.live import PERSON, Live, live_hub

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
STEPS = ["admission", "lane wait", "decide", "commit"]


@asynccontextmanager
async def traced() -> AsyncIterator[tuple[Live, InMemorySpanExporter]]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    watching = Tracing(provider)
    async with live_hub(layers=[watching.traced]) as live:
        exporter.clear()
        yield live, exporter
    await watching.close()


def calls(spans: tuple[ReadableSpan, ...]) -> list[ReadableSpan]:
    return [span for span in spans if span.kind is SpanKind.SERVER]


async def test_a_command_has_its_steps_in_order_below_it() -> None:
    async with traced() as (live, exporter):
        await (await live.channel()).issue_voucher(person_no=PERSON, business_type="01201")
        spans = exporter.get_finished_spans()
    (call,) = calls(spans)
    assert call.name == "erxhub.v1.VoucherService/IssueVoucher"
    assert dict(call.attributes or {}) == {
        "rpc.system": "grpc",
        "rpc.service": "erxhub.v1.VoucherService",
        "rpc.method": "IssueVoucher",
        "rpc.grpc.status_code": 0,
    }
    steps = [span for span in spans if span is not call]
    assert [span.name for span in steps] == STEPS
    at = call.start_time
    for step in steps:
        assert step.parent is not None
        assert step.parent.span_id == call.context.span_id
        assert step.start_time == at
        assert step.end_time is not None
        at = step.end_time
    assert call.end_time is not None
    assert at is not None
    assert at <= call.end_time


async def test_a_refusal_says_its_status_and_a_caller_brings_its_trace() -> None:
    async with traced() as (live, exporter):
        agency = await live.agency()
        with pytest.raises(Refusal):
            await agency.get_person(person_no="nobody00001")
        await agency._registry.GetPerson(
            registry_pb2.GetPersonRequest(person_no=PERSON),
            metadata=(("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01"),),
        )
        refused, brought = calls(exporter.get_finished_spans())
    assert (refused.attributes or {})["rpc.grpc.status_code"] == 5
    assert refused.parent is None
    assert format(brought.context.trace_id, "032x") == TRACE_ID
    assert brought.parent is not None
    assert format(brought.parent.span_id, "016x") == PARENT_ID


async def test_a_trace_that_its_caller_does_not_sample_is_not_kept() -> None:
    async with traced() as (live, exporter):
        agency = await live.agency()
        await agency._registry.GetPerson(
            registry_pb2.GetPersonRequest(person_no=PERSON),
            metadata=(("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-00"),),
        )
        assert exporter.get_finished_spans() == ()


async def test_nothing_personal_stands_in_a_trace() -> None:
    async with traced() as (live, exporter):
        chain = await Chain(live).held()
        written = "".join(span.to_json() for span in exporter.get_finished_spans())
    for secret in (PERSON, chain.rx_no, chain.encounter_id, chain.pharmacist, chain.pharmacy_code):
        assert secret not in written


def test_the_extra_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter", None)  # type: ignore[arg-type]
    with pytest.raises(TracingMissing, match=r"erxhub\[otel\]"):
        otlp_tracing("http://127.0.0.1:4318/v1/traces", "hub-1")
