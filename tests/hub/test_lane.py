"""The lane and what follows it: the sweep goes on, health tells the truth, one verification at a time, dates count."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from erxhub.client import ClientIdentity, Refusal
from erxhub.config import Config
from erxhub.core.keys import prescription_key
from erxhub.ledger.store import Loaded, StoredEntry, Wanted
from erxhub.ledger.verify import verify_ledger
from erxhub.policy.pack import china_date, day_begins_ms
from erxhub.ports import SystemClock
from tests.live import AGENCY, HOSPITAL, HOUR_MS, Live, live_hub
from tests.refusals.bench import Bench, FailingStore, Ledger, event_of, open_bench

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class _Rounds:
    """The sweep and the look at open streams come when the test says so; nothing else waits."""

    def __init__(self) -> None:
        self._gates: dict[int, asyncio.Event] = {}
        self._reached: dict[int, asyncio.Event] = {}

    async def __call__(self, ms: int) -> None:
        self._reached.setdefault(ms, asyncio.Event()).set()
        await self._gates.setdefault(ms, asyncio.Event()).wait()
        self._gates[ms].clear()

    async def round(self, ms: int) -> None:
        """End the pause of the one loop that pauses this long."""
        reached = self._reached.setdefault(ms, asyncio.Event())
        async with asyncio.timeout(10):
            await reached.wait()
        reached.clear()
        self._gates.setdefault(ms, asyncio.Event()).set()

    async def next(self, ms: int) -> None:
        """Let that loop go round until it pauses again."""
        await self.round(ms)
        async with asyncio.timeout(10):
            await self._reached[ms].wait()

    async def sweep(self) -> None:
        """One round of the sweep."""
        await self.next(Config().sweep_interval_ms)


# ---- days ----


async def test_the_parameters_of_a_day_are_in_force_until_it_ends_in_china() -> None:
    async with live_hub() as live:
        today = china_date(live.clock.now_ms())
        tomorrow = today + timedelta(days=1)
        live.advance(day_begins_ms(tomorrow) - 1 - live.clock.now_ms())
        before = live.hub.engine.rules(AGENCY)
        assert before.on == today
        assert live.hub.engine.rules(AGENCY) is before, "looked up once a day"
        live.advance(1)
        assert live.hub.engine.rules(AGENCY).on == tomorrow


# ---- dates of a certificate ----


@asynccontextmanager
async def _short_lived(live: Live) -> AsyncIterator[tuple[Any, int]]:
    """A hospital's client, and the instant at which its certificate ends."""
    machine_ms = SystemClock().now_ms()
    issued = live.trust.issue_tls("hospital", HOSPITAL, machine_ms, 1)
    live.advance(machine_ms - live.clock.now_ms())
    identity = ClientIdentity(live.trust.ca_pem, issued.cert_pem, issued.key_pem)
    yield await live.connect("hospital", HOSPITAL, identity), issued.not_after_ms


async def _peer_identity(live: Live, call: Any) -> str:
    """The reason of a refusal that has to be counted and to leave nothing."""
    counted = live.hub.engine.counters.counted_only
    before = counted.get("PEER_IDENTITY", 0), await live.hub.store.last_position()
    with pytest.raises(Refusal) as caught:
        await call
    assert caught.value.code == "PEER_IDENTITY"
    assert (counted["PEER_IDENTITY"] - 1, await live.hub.store.last_position()) == before
    return caught.value.metadata["reason"]


async def test_certificate_that_expires_on_an_open_connection_ends_its_calls() -> None:
    async with live_hub() as live, _short_lived(live) as (hospital, ends_ms):
        await hospital.list_prescriptions()
        live.advance(ends_ms - live.clock.now_ms())
        await hospital.list_prescriptions()
        live.advance(1)
        assert await _peer_identity(live, hospital.list_prescriptions()) == "EXPIRED"
        assert await _peer_identity(live, hospital.close_encounter(encounter_id="E1")) == "EXPIRED"
        # Another certificate of the same institution goes on.
        await (await live.hospital()).list_prescriptions()


async def test_certificate_that_expires_ends_an_open_watch() -> None:
    rounds = _Rounds()
    async with live_hub(pause=rounds) as live, _short_lived(live) as (hospital, ends_ms):
        coming = asyncio.ensure_future(anext(hospital.watch()))
        # Once it has looked at the certificate the stream stands, and its access is recorded.
        await rounds.next(Config().stream_check_interval_ms)
        ending = asyncio.ensure_future(_peer_identity(live, coming))
        assert not ending.done()
        live.advance(ends_ms + 1 - live.clock.now_ms())
        await rounds.round(Config().stream_check_interval_ms)
        async with asyncio.timeout(10):
            assert await ending == "EXPIRED"


# ---- the sweep ----


class _Damaged(FailingStore):
    """A store in which the states of some streams cannot be read any more."""

    def __init__(self) -> None:
        super().__init__()
        self.broken: set[bytes] = set()

    async def load(self, wanted: Wanted) -> Loaded:
        loaded = await super().load(wanted)
        heads = {key: replace(head, body=b"\xff") if key in self.broken else head for key, head in loaded.heads.items()}
        return replace(loaded, heads=heads)


async def _expired(bench: Bench, position: int) -> set[bytes]:
    entries = await bench.ledger.after(position)
    return {entry.stream_key for entry in entries if event_of(entry) == "order.expired"}


async def test_stream_that_cannot_be_swept_holds_up_no_other() -> None:
    rounds, store = _Rounds(), _Damaged()
    async with live_hub(store=store, pause=rounds) as live:
        bench = Bench(live, store, Ledger(store))
        bad, good = await bench.rx().held(), await bench.rx().held()
        live.advance(2 * HOUR_MS + 1)
        store.broken.add(prescription_key(bad.rx_no))
        position = await store.last_position()
        await rounds.sweep()
        assert await _expired(bench, position) == {prescription_key(good.rx_no)}
        # It is tried again in each round.
        store.broken.clear()
        await rounds.sweep()
        assert await _expired(bench, position) == {prescription_key(bad.rx_no), prescription_key(good.rx_no)}


async def test_step_full_of_streams_that_cannot_be_swept_is_not_the_last() -> None:
    store = _Damaged()
    async with live_hub(store=store, pause=_Rounds(), config=Config(drain_ms=200, sweep_streams_max=1)) as live:
        bench = Bench(live, store, Ledger(store))
        bad, good = await bench.rx().held(), await bench.rx().held()
        live.advance(2 * HOUR_MS + 1)
        store.broken.add(prescription_key(bad.rx_no))
        position = await store.last_position()
        failed: set[bytes] = set()
        async with asyncio.timeout(10):
            while await live.hub.engine.sweep(failed):
                pass
        assert failed == {prescription_key(bad.rx_no)}
        assert await _expired(bench, position) == {prescription_key(good.rx_no)}


async def test_sweep_goes_on_after_an_error_that_nobody_foresaw(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = _Rounds()
    async with open_bench(pause=rounds) as bench:
        rx = await bench.rx().held()
        bench.live.advance(2 * HOUR_MS + 1)
        position = await bench.store.last_position()

        async def due(now_ms: int, limit: int) -> list[bytes]:
            raise RuntimeError("nobody foresaw this")

        with monkeypatch.context() as patched:
            patched.setattr(bench.store, "due", due)
            await rounds.sweep()
        await rounds.sweep()
        assert await _expired(bench, position) == {prescription_key(rx.rx_no)}


# ---- health ----


async def _until(live: Live, status: Any) -> None:
    """Returns once health says so."""
    stub = health_pb2_grpc.HealthStub((await live.hospital()).connection.channel)
    async with asyncio.timeout(10):
        async for told in stub.Watch(health_pb2.HealthCheckRequest(service="erxhub.v1.DispensingService")):
            if told.status == status:
                return


async def _refused_command(live: Live) -> str:
    with pytest.raises(Refusal) as caught:
        await (await live.hospital()).close_encounter(encounter_id="E1")
    return caught.value.code


async def test_health_says_whether_the_last_commit_could_be_written() -> None:
    async with open_bench() as bench:
        await _until(bench.live, SERVING)
        bench.store.refuses_writes = True
        assert await _refused_command(bench.live) == "HUB_UNAVAILABLE"
        await _until(bench.live, NOT_SERVING)
        bench.store.works_again()
        assert await _refused_command(bench.live) == "ENCOUNTER_STATE"
        await _until(bench.live, SERVING)


async def test_hub_that_nobody_calls_finds_out_that_its_store_is_back() -> None:
    rounds = _Rounds()
    async with open_bench(pause=rounds) as bench:
        bench.store.refuses_writes = True
        assert await _refused_command(bench.live) == "HUB_UNAVAILABLE"
        await rounds.sweep()
        await _until(bench.live, NOT_SERVING)
        bench.store.works_again()
        position = await bench.store.last_position()
        await rounds.sweep()
        await _until(bench.live, SERVING)
        assert await bench.store.last_position() == position


async def test_dead_lane_is_told_and_leaves_no_call_waiting() -> None:
    async with open_bench() as bench:
        lane = bench.live.hub.engine._task
        assert lane is not None
        lane.cancel()
        await _until(bench.live, NOT_SERVING)
        assert await _refused_command(bench.live) == "HUB_UNAVAILABLE"


# ---- verification of everything ----


class _Held(FailingStore):
    """A store whose log waits while it is held."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.go.set()
        self.reading = asyncio.Event()

    async def log(self, after_position: int, limit: int) -> list[StoredEntry]:
        self.reading.set()
        await self.go.wait()
        return await super().log(after_position, limit)


async def test_hub_verifies_its_whole_ledger_for_one_caller_at_a_time() -> None:
    store = _Held()
    async with live_hub(store=store) as live:
        auditor = await live.auditor()
        store.go.clear()
        store.reading.clear()
        first = asyncio.ensure_future(auditor.verify_ledger())
        async with asyncio.timeout(10):
            await store.reading.wait()
        position = await store.last_position()
        with pytest.raises(Refusal) as caught:
            await auditor.verify_ledger()
        assert (caught.value.code, caught.value.grpc_status) == ("OVERLOADED", "RESOURCE_EXHAUSTED")
        assert await store.last_position() == position
        store.go.set()
        assert (await first).verified
        assert (await auditor.verify_ledger()).verified


async def test_verification_gives_way_between_pages() -> None:
    async with open_bench() as bench:
        turns = 0

        async def give_way() -> None:
            nonlocal turns
            turns += 1

        verified = await verify_ledger(bench.store, between_pages=give_way)
        assert verified.findings == []
        # Each page of entries, and each page of heads.
        assert turns >= 2
