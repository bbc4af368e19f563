"""What the server says when it is at a limit, when it ends, and about itself: overload, drain, health, reflection."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from erxhub.client import CallFailed, Refusal
from erxhub.config import Config
from erxhub.ledger.memory import MemoryStore
from erxhub.rpc.methods import SERVICES
from erxhub.v1 import voucher_pb2
from tests.chain import CONSULT, Chain
from tests.live import HOSPITAL, PERSON, live_hub
from tests.races.ground import GatedStore, reply_bytes, until_so, whole_log

pytestmark = pytest.mark.campaign

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def _issue(number: int) -> voucher_pb2.IssueVoucherRequest:
    return voucher_pb2.IssueVoucherRequest(request_id=f"limit-{number:08d}", person_no=PERSON, business_type=CONSULT)


async def _ending(call: Any) -> str:
    try:
        await call
    except Refusal as refusal:
        return refusal.code
    except CallFailed as failed:
        return failed.code
    return "OK"


# ---- overload ----


async def test_full_queue_refuses_at_once_with_retry_info_and_leaves_no_entry() -> None:
    store = GatedStore(MemoryStore())
    async with live_hub(store=store, config=Config(queue_commands_max=5, drain_ms=200, drain_quiet_ms=0)) as live:
        channel = await live.channel()
        with store.shut():
            first = asyncio.create_task(reply_bytes(channel, _issue(0)))
            await store.arrived.wait()
            queued = [asyncio.create_task(reply_bytes(channel, _issue(number))) for number in range(1, 6)]
            await until_so(lambda: live.hub.engine.queue_depth == 5)
            entries = len(await whole_log(store))
            with pytest.raises(Refusal) as refused:
                await reply_bytes(channel, _issue(6))
            assert refused.value.code == "OVERLOADED"
            assert refused.value.grpc_status == "RESOURCE_EXHAUSTED"
            assert refused.value.retriable
            assert refused.value.retry_after_ms == live.hub.engine.config.retry_after_ms
            assert live.hub.engine.counters.counted_only["OVERLOADED"] == 1
            assert len(await whole_log(store)) == entries
        assert all(await asyncio.gather(first, *queued))
        # The same request again, once there is room.
        assert await reply_bytes(channel, _issue(6))


async def test_bytes_that_wait_have_a_limit_too() -> None:
    store = GatedStore(MemoryStore())
    async with live_hub(store=store, config=Config(queue_bytes_max=60_000, drain_ms=200, drain_quiet_ms=0)) as live:
        hospital = await live.hospital()
        chains = [await Chain(live).prechecked() for _ in range(6)]
        with store.shut():
            uploads = [
                asyncio.create_task(
                    _ending(hospital.upload(**(chain.upload_arguments() | {"file": b"%PDF-" + bytes(20_000)})))
                )
                for chain in chains
            ]
            await until_so(lambda: sum(task.done() for task in uploads) >= 3)
        endings = Counter(await asyncio.gather(*uploads))
        assert set(endings) == {"OK", "OVERLOADED"}


async def test_2048_calls_in_flight_end_in_an_answer_of_the_hub() -> None:
    async with live_hub() as live:
        channels = [await live.channel()] + [await live.connect("channel", "demo-app") for _ in range(3)]
        calls = [
            _ending(channels[number % 4].issue_voucher(person_no=PERSON, business_type=CONSULT, timeout_s=60))
            for number in range(2_048)
        ]
        assert Counter(await asyncio.gather(*calls)) == {"OK": 2_048}


async def test_2048_calls_in_flight_on_a_small_queue_end_in_an_answer_of_the_hub() -> None:
    store = GatedStore(MemoryStore())
    async with live_hub(store=store, config=Config(queue_commands_max=256, drain_ms=200, drain_quiet_ms=0)) as live:
        channel = await live.channel()
        with store.shut():
            calls = [
                asyncio.create_task(
                    _ending(channel.issue_voucher(person_no=PERSON, business_type=CONSULT, timeout_s=60))
                )
                for _ in range(2_048)
            ]
            await until_so(lambda: sum(task.done() for task in calls) >= 1_000)
        endings = Counter(await asyncio.gather(*calls))
        assert set(endings) == {"OK", "OVERLOADED"}
        assert endings["OK"] >= 256


# ---- streams ----


async def test_caller_has_a_limit_of_open_watches() -> None:
    async with live_hub(config=Config(streams_per_peer_max=2, drain_ms=200, drain_quiet_ms=0)) as live:
        await Chain(live).uploaded()
        hospital, other = await live.hospital(), await live.connect("hospital", HOSPITAL)

        def watch(client: Any) -> Any:
            return client.watch(from_start=True)

        first, second = watch(hospital), watch(other)
        await anext(first)
        await anext(second)
        with pytest.raises(Refusal) as refused:
            await anext(watch(hospital))
        assert refused.value.code == "OVERLOADED"
        # Another caller's watches are another caller's.
        pharmacy = await live.pharmacy()
        await Chain(live).held()
        third = watch(pharmacy)
        await anext(third)
        await first.aclose()
        again = watch(hospital)
        for _ in range(1_000):
            try:
                await anext(again)
                break
            except Refusal:
                # The hub has not heard yet that the first watch is over.
                again = watch(hospital)
        else:
            raise AssertionError("a watch that ended still counts")
        for open_watch in (second, third, again):
            await open_watch.aclose()


# ---- drain ----


async def test_drain_answers_what_is_in_flight_and_refuses_what_comes() -> None:
    store = GatedStore(MemoryStore())
    async with live_hub(store=store, config=Config(drain_ms=5_000)) as live:
        channel = await live.channel()
        health = health_pb2_grpc.HealthStub(channel.connection.channel)
        watched = health.Watch(health_pb2.HealthCheckRequest(service=SERVICES[0]))
        assert (await watched.read()).status == SERVING
        with store.shut():
            in_flight = [asyncio.create_task(reply_bytes(channel, _issue(0)))]
            await store.arrived.wait()
            in_flight += [asyncio.create_task(reply_bytes(channel, _issue(number))) for number in range(1, 20)]
            await until_so(lambda: live.hub.engine.queue_depth == 19)
            stopping = asyncio.create_task(live.hub.stop())
            assert (await watched.read()).status == NOT_SERVING
            assert (await health.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING
            late = await asyncio.gather(*(_ending(reply_bytes(channel, _issue(number))) for number in range(100, 110)))
            assert set(late) == {"HUB_UNAVAILABLE"}
            assert not any(task.done() for task in in_flight)
            entries = len(await whole_log(store))
        replies = await asyncio.gather(*in_flight)
        assert all(replies)
        # An open health stream must not hold the end up until the drain's last moment.
        await asyncio.wait_for(stopping, 2)
        assert entries
        with pytest.raises((CallFailed, Refusal)) as failed:
            await reply_bytes(channel, _issue(200))
        assert failed.value.grpc_status == "UNAVAILABLE"


async def _to_its_end(watching: Any) -> None:
    async for _ in watching:
        pass


async def test_drain_ends_an_open_watch_at_once_and_as_unavailable() -> None:
    async with live_hub(config=Config(drain_ms=5_000)) as live:
        await Chain(live).uploaded()
        hospital = await live.hospital()
        watching = hospital.watch(from_start=True)
        await anext(watching)
        await asyncio.wait_for(live.hub.stop(), 2)
        # Everything that was told before is still there to read.
        with pytest.raises(CallFailed) as failed:
            await _to_its_end(watching)
        assert failed.value.grpc_status == "UNAVAILABLE"


async def test_call_that_outlasts_the_drain_is_committed_all_the_same() -> None:
    store = GatedStore(MemoryStore())
    async with live_hub(store=store, config=Config(drain_ms=50)) as live:
        channel = await live.channel()
        with store.shut():
            slow = asyncio.create_task(_ending(reply_bytes(channel, _issue(0))))
            await store.arrived.wait()
            stopping = asyncio.create_task(live.hub.stop())
            assert await slow in {"HUB_UNREACHABLE", "TLS_NOT_YET_VALID", "TLS_EXPIRED", "CANCELLED"}
            appends = store.appends
            assert not stopping.done()
        await stopping
        assert store.appends > appends


# ---- health and reflection ----


async def test_health_is_told_per_service() -> None:
    async with live_hub(seed=False) as live:
        channel = (await live.channel()).connection.channel
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", *SERVICES):
            assert (await health.Check(health_pb2.HealthCheckRequest(service=service))).status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await health.Check(health_pb2.HealthCheckRequest(service="erxhub.v1.NoSuchService"))
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_describes_every_service_and_can_be_switched_off() -> None:
    async with live_hub(seed=False) as live:
        stub = reflection_pb2_grpc.ServerReflectionStub((await live.channel()).connection.channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        listed = (await call.read()).list_services_response.service
        assert set(SERVICES) <= {service.name for service in listed}
    async with live_hub(seed=False, config=Config(reflection=False, drain_ms=200, drain_quiet_ms=0)) as live:
        stub = reflection_pb2_grpc.ServerReflectionStub((await live.channel()).connection.channel)
        # Nothing is sent: a message that meets the refusal on its way ends as INTERNAL in the client's own core.
        async with asyncio.timeout(20):
            assert await stub.ServerReflectionInfo().code() is grpc.StatusCode.UNIMPLEMENTED
