"""The bulk upload stream: each item as a call of its own, answered in order, and resumable by request id."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest

from erxhub.client import Refusal
from erxhub.client.failures import refusal_of
from erxhub.client.signing import signed_upload
from erxhub.config import Config
from erxhub.engine import HubBusy, HubStopped
from erxhub.ledger.entry import EntryKind, Header
from erxhub.ledger.memory import MemoryStore
from erxhub.ledger.store import StoreUnavailable
from erxhub.rpc.bulk_wire import items_of
from erxhub.v1 import catalog_pb2, prescribing_pb2
from tests.chain import Chain
from tests.hub.test_lane import _Rounds as Rounds
from tests.live import HOSPITAL, PHARMACY, Live, live_hub

UPLOAD = "/erxhub.v1.PrescribingService/UploadPrescription"
BULK = "/erxhub.v1.PrescribingService/UploadPrescriptions"
Request = prescribing_pb2.UploadPrescriptionRequest
Result = prescribing_pb2.UploadResult


async def ready(live: Live, count: int) -> list[Request]:
    """Signed uploads of as many prescriptions."""
    uploads = []
    for number in range(count):
        chain = await Chain(live).prechecked()
        uploads.append(
            signed_upload(
                request_id=f"bulk-upload-{number:06d}",
                hospital_code=HOSPITAL,
                signed_at_ms=live.clock.now_ms(),
                media_type="application/pdf",
                opinion="审核通过",
                **chain.upload_arguments(),
            )
        )
    return uploads


def message(*items: Request) -> bytes:
    return prescribing_pb2.UploadPrescriptionsRequest(items=items).SerializeToString()


class Stream:
    """A bulk upload as bytes; `results` is what came so far."""

    def __init__(self, client: Any) -> None:
        self.call = client.connection.channel.stream_stream(BULK)()
        self.results: list[Result] = []

    async def send(self, *items: Request) -> None:
        await self.call.write(message(*items))

    async def next(self) -> list[Result]:
        async with asyncio.timeout(10):
            raw = await self.call.read()
        if raw is grpc.aio.EOF:
            return []
        found = list(prescribing_pb2.UploadPrescriptionsResponse.FromString(raw).results)
        self.results += found
        return found

    async def finish(self) -> list[Result]:
        """Half-close, and everything that comes until the end."""
        await self.call.done_writing()
        while await self.next():
            continue
        return self.results

    async def code(self) -> str:
        """How the stream ended."""
        async with asyncio.timeout(10):
            code = await self.call.code()
        if code is grpc.StatusCode.OK:
            return "OK"
        error = grpc.aio.AioRpcError(
            code, await self.call.initial_metadata(), await self.call.trailing_metadata(), await self.call.details()
        )
        refusal = refusal_of(error)
        return refusal.code if refusal else str(code.name)


async def unary(client: Any, request: Request) -> bytes:
    reply: bytes = await client.connection.channel.unary_unary(UPLOAD)(request.SerializeToString())
    return reply


async def refused(client: Any, request: Request) -> bytes:
    """The status details of a refused unary upload."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await unary(client, request)
    return bytes(dict(caught.value.trailing_metadata() or ())["grpc-status-details-bin"])


def outcomes(results: Sequence[Result]) -> list[str]:
    return [result.refused.code or "OK" for result in results]


async def test_items_are_answered_in_order_and_are_what_single_calls_would_be() -> None:
    async with live_hub() as live:
        hospital, uploads = await live.hospital(), await ready(live, 5)
        before = await live.hub.store.last_position()
        stream = Stream(hospital)
        await stream.send(*uploads[:3])
        await stream.send(uploads[3])
        await stream.send(uploads[4])
        results = await stream.finish()
        assert await stream.code() == "OK"
        assert [result.item for result in results] == [0, 1, 2, 3, 4]
        assert [result.request_id for result in results] == [upload.request_id for upload in uploads]
        # The same request as a single call gets the same reply, so what was decided is the same command.
        singles = [await unary(hospital, upload) for upload in uploads]
        assert [result.accepted.SerializeToString() for result in results] == singles
        headers = [Header.decode(entry.header) for entry in await live.hub.store.log(before, 100)]
        events = [header for header in headers if header.kind == EntryKind.EVENT]
        assert {header.request_id for header in events} == {upload.request_id for upload in uploads}
        per_upload = [sum(header.request_id == upload.request_id for header in events) for upload in uploads]
        assert len(set(per_upload)) == 1


async def test_a_single_call_comes_first_and_the_stream_repeats_its_reply() -> None:
    async with live_hub() as live:
        hospital, (upload,) = await live.hospital(), await ready(live, 1)
        single = await unary(hospital, upload)
        stream = Stream(hospital)
        await stream.send(upload)
        (result,) = await stream.finish()
        assert result.accepted.SerializeToString() == single


async def test_a_refused_item_does_not_end_the_stream_and_says_what_a_single_call_says() -> None:
    async with live_hub() as live:
        hospital, (good, bad, last) = await live.hospital(), await ready(live, 3)
        forged, empty = Request(), Request()
        forged.CopyFrom(bad)
        forged.seal.signatures[0].signature = bytes(64)
        empty.request_id = "x"
        conflict = Request()
        conflict.CopyFrom(last)
        conflict.request_id = good.request_id
        stream = Stream(hospital)
        await stream.send(good)
        await stream.next()
        await stream.send(forged, empty, conflict, last)
        results = await stream.finish()
        assert await stream.code() == "OK"
        codes = outcomes(results)
        assert codes[0] == codes[4] == "OK"
        assert codes[2:4] == ["INPUT_MALFORMED", "IDEMPOTENCY_CONFLICT"]
        assert codes[1] not in ("OK", "")
        for place, request in ((1, forged), (2, empty), (3, conflict)):
            told = results[place].refused
            assert told.status == await refused(hospital, request)
            assert told.message_en
            assert any("\u4e00" <= letter <= "\u9fff" for letter in told.message_zh)
        assert results[2].refused.field == "request_id"
        assert not results[2].refused.retriable


async def test_an_unreadable_item_is_refused_alone() -> None:
    async with live_hub() as live:
        hospital, (upload,) = await live.hospital(), await ready(live, 1)
        stream = Stream(hospital)
        await stream.call.write(b"\x0a\x02\x0a\xff" + message(upload))
        results = await stream.finish()
        assert (outcomes(results), results[0].request_id) == (["INPUT_MALFORMED", "OK"], "")


@pytest.mark.parametrize(
    "raw", [b"", b"\xff", b"\x0a\x05a", b"\x0a", b"\x12\x00", b"\x0a\x00" * 65, b"\x0a" + b"\xff" * 9]
)
async def test_a_message_that_is_none_ends_the_stream_after_the_answers_before_it(raw: bytes) -> None:
    async with live_hub() as live:
        hospital, (upload,) = await live.hospital(), await ready(live, 1)
        stream = Stream(hospital)
        await stream.send(upload)
        await stream.call.write(raw)
        assert outcomes(await stream.next()) == ["OK"]
        assert await stream.code() == "INPUT_MALFORMED"


async def test_a_lost_stream_is_resumed_by_sending_again() -> None:
    async with live_hub() as live:
        hospital, uploads = await live.hospital(), await ready(live, 3)
        lost = Stream(hospital)
        await lost.send(uploads[0])
        (first,) = await lost.next()
        lost.call.cancel()
        again = Stream(hospital)
        await again.send(*uploads)
        results = await again.finish()
        assert outcomes(results) == ["OK"] * 3
        assert results[0].accepted == first.accepted


class _Gate:
    """A store whose appends wait until they are let through, or find the disk full."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.open = asyncio.Event()
        self.open.set()
        self.full = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def append(self, batch: Any) -> Any:
        await self.open.wait()
        if self.full:
            raise StoreUnavailable("no room")
        return await self._store.append(batch)


@pytest.mark.interpreted
async def test_no_more_items_are_taken_than_may_be_under_way() -> None:
    gate: Any = _Gate(MemoryStore())
    config = Config(bulk_items_max=2, drain_ms=200, drain_quiet_ms=0)
    async with live_hub(store=gate, config=config) as live:
        hospital, uploads = await live.hospital(), await ready(live, 6)
        seen: list[int] = []
        queue = live.hub.engine.queue

        def counting(*arguments: Any) -> Any:
            seen.append(1)
            return queue(*arguments)

        live.hub.engine.queue = counting  # type: ignore[method-assign]
        gate.open.clear()
        stream = Stream(hospital)
        for upload in uploads:
            await stream.send(upload)
        # One connection keeps its order: when these are answered, the hub has had every message before them.
        for _ in range(3):
            await hospital.list_catalog(dataset=catalog_pb2.CATALOG_DATASET_FREQUENCIES)
        assert len(seen) == 2
        gate.open.set()
        assert outcomes(await stream.finish()) == ["OK"] * 6
        assert len(seen) == 6


@pytest.mark.interpreted
async def test_items_of_a_lost_stream_that_are_in_the_lane_are_committed(caplog: pytest.LogCaptureFixture) -> None:
    gate: Any = _Gate(MemoryStore())
    async with live_hub(store=gate) as live:
        hospital, (first, *others) = await live.hospital(), await ready(live, 4)
        await unary(hospital, first)  # from now on the hub knows the keys, and items need not wait for them
        taken = asyncio.Event()
        queue = live.hub.engine.queue

        def seen(*arguments: Any) -> Any:
            taken.set()
            return queue(*arguments)

        live.hub.engine.queue = seen  # type: ignore[method-assign]
        gate.open.clear()
        before = live.hub.engine.counters.commands
        stream = Stream(hospital)
        await stream.send(*others)
        async with asyncio.timeout(10):
            await taken.wait()
        stream.call.cancel()
        gate.open.set()
        single = await unary(hospital, others[0])
        again = Stream(hospital)
        await again.send(*others)
        results = await again.finish()
        assert outcomes(results) == ["OK"] * 3
        assert results[0].accepted.SerializeToString() == single
        # Three were decided for the lost stream, and four answers were repeated.
        assert live.hub.engine.counters.commands == before + 7
        headers = [Header.decode(entry.header) for entry in await live.hub.store.log(0, 1000)]
        events = [header.request_id for header in headers if header.kind == EntryKind.EVENT]
        assert len({events.count(upload.request_id) for upload in (first, *others)}) == 1
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_items_meet_a_store_that_cannot_write_as_single_calls_do() -> None:
    gate: Any = _Gate(MemoryStore())
    async with live_hub(store=gate) as live:
        hospital, (first, *others) = await live.hospital(), await ready(live, 3)
        await unary(hospital, first)
        gate.full = True
        single = await refused(hospital, others[0])
        stream = Stream(hospital)
        await stream.send(*others)
        results = await stream.finish()
        assert await stream.code() == "OK"
        assert outcomes(results) == ["HUB_UNAVAILABLE"] * 2
        assert [result.refused.status for result in results] == [single] * 2
        gate.full = False
        again = Stream(hospital)
        await again.send(*others)
        assert outcomes(await again.finish()) == ["OK"] * 2


@pytest.mark.interpreted
@pytest.mark.parametrize(("end", "code"), [(HubBusy, "OVERLOADED"), (HubStopped, "HUB_UNAVAILABLE")])
async def test_items_meet_a_lane_that_takes_no_more_as_single_calls_do(end: type[Exception], code: str) -> None:
    async with live_hub() as live:
        hospital, (first, *others) = await live.hospital(), await ready(live, 4)
        await unary(hospital, first)
        engine, room = live.hub.engine, 1
        queue, before = engine.queue, engine.counters.counted_only.get(code, 0)

        def full(*arguments: Any) -> Any:
            nonlocal room
            room -= 1
            if room < 0:
                raise end
            return queue(*arguments)

        engine.queue = full  # type: ignore[method-assign]
        stream = Stream(hospital)
        await stream.send(*others)
        results = await stream.finish()
        assert await stream.code() == "OK"
        assert outcomes(results) == ["OK", code, code]
        assert engine.counters.counted_only[code] == before + 2
        single = await refused(hospital, others[1])
        assert [result.refused.status for result in results[1:]] == [single] * 2
        engine.queue = queue  # type: ignore[method-assign]
        again = Stream(hospital)
        await again.send(*others)
        assert outcomes(await again.finish()) == ["OK"] * 3


@pytest.mark.interpreted
async def test_what_there_is_no_room_for_costs_no_check() -> None:
    async with live_hub() as live:
        hospital, uploads = await live.hospital(), await ready(live, 2)
        looked_at: list[str] = []

        def no_room(size: int) -> None:
            if size:
                raise HubBusy

        def seen(request: Any, *_: Any) -> Any:
            looked_at.append(request.request_id)
            return [], {}

        live.hub.engine.check_room = no_room  # type: ignore[method-assign]
        live.hub.core.dispatcher._calls.steps.rules.check = seen  # type: ignore[method-assign]
        stream = Stream(hospital)
        await stream.send(*uploads)
        results = await stream.finish()
        assert outcomes(results) == ["OVERLOADED"] * 2
        assert [result.refused.status for result in results] == [await refused(hospital, uploads[0])] * 2
        assert looked_at == []


@pytest.mark.interpreted
async def test_an_item_with_a_bug_costs_no_other_item_its_answer(caplog: pytest.LogCaptureFixture) -> None:
    async with live_hub() as live:
        hospital, (first, bad, last) = await live.hospital(), await ready(live, 3)
        await unary(hospital, first)
        check = live.hub.core.dispatcher._calls.steps.rules.check

        def faulty(request: Any, *arguments: Any) -> Any:
            if request.request_id == bad.request_id:
                raise RuntimeError("a bug")
            return check(request, *arguments)

        live.hub.core.dispatcher._calls.steps.rules.check = faulty  # type: ignore[method-assign]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unary(hospital, bad)
        stream = Stream(hospital)
        await stream.send(bad, last)
        results = await stream.finish()
        assert await stream.code() == "OK"
        assert results[0].refused.message_en == caught.value.details()
        assert results[1].HasField("accepted")
    # Both times the operator finds where it happened.
    logged = [record.exc_info for record in caplog.records if record.levelname == "ERROR"]
    assert len(logged) == 2
    for error in logged:
        assert error is not None
        assert traceback.extract_tb(error[2])[-1].name == "faulty"


async def test_a_draining_hub_answers_what_it_took_and_ends_the_stream() -> None:
    async with live_hub() as live:
        hospital, (upload,) = await live.hospital(), await ready(live, 1)
        stream = Stream(hospital)
        await stream.send(upload)
        assert outcomes(await stream.next()) == ["OK"]
        await live.hub.core.dispatcher.drained()
        assert await stream.code() == "HUB_UNAVAILABLE"


async def test_a_revoked_certificate_ends_an_idle_stream_and_refuses_its_items() -> None:
    rounds = Rounds()
    async with live_hub(pause=rounds) as live:
        uploads, identity = await ready(live, 2), live.identity("hospital", HOSPITAL)
        hospital = await live.connect("hospital", HOSPITAL, identity)
        stream = Stream(hospital)
        await stream.send(uploads[0])
        assert outcomes(await stream.next()) == ["OK"]
        agency = await live.agency()
        await agency.revoke_certificate(reason="密钥遗失", certificate_pem=identity.cert_pem)
        await stream.send(uploads[1])
        assert outcomes(await stream.next()) == ["CERT_REVOKED"]
        await rounds.round(Config().stream_check_interval_ms)
        assert await stream.code() == "CERT_REVOKED"


async def test_only_hospitals_and_only_so_many_streams() -> None:
    async with live_hub(config=Config(streams_per_peer_max=1, drain_ms=200, drain_quiet_ms=0)) as live:
        hospital, pharmacy = await live.hospital(), await live.pharmacy(PHARMACY)
        assert await Stream(pharmacy).code() == "ROLE_NOT_ALLOWED"
        first = Stream(hospital)
        await first.call.initial_metadata()
        assert await Stream(hospital).code() == "OVERLOADED"
        assert await first.finish() == []
        assert await first.code() == "OK"


async def test_the_client_uploads_many() -> None:
    async with live_hub() as live:
        hospital, uploads = await live.hospital(), await ready(live, 5)
        uploads[2].seal.signatures[0].signature = bytes(64)

        async def source() -> AsyncIterator[Request]:
            for upload in uploads:
                yield upload

        found = [(request.request_id, outcome) async for request, outcome in hospital.upload_many(source())]
        assert [request_id for request_id, _ in found] == [upload.request_id for upload in uploads]
        for place, (_, outcome) in enumerate(found):
            if place == 2:
                assert isinstance(outcome, Refusal)
                assert outcome.text_zh
                assert outcome.request == uploads[2]
            else:
                assert outcome.receipt.entries


def test_items_are_the_bytes_that_were_sent() -> None:
    parts = [b"", b"a", b"b" * 127, b"c" * 128, b"d" * 40_000]
    raw = b"".join(b"\x0a" + _varint(len(part)) + part for part in parts)
    assert items_of(raw) == parts
    assert all(items_of(raw[:cut]) is None for cut in (1, 3, len(raw) - 1))


def _varint(size: int) -> bytes:
    found = b""
    while size >= 0x80:
        found += bytes([size & 0x7F | 0x80])
        size >>= 7
    return found + bytes([size])
