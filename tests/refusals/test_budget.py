"""A caller above its budget of entries: one counting entry stands for the rest, and its replies are kept back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from erxhub.client import Refusal
from erxhub.config import Config
from erxhub.engine import HubStopped
from erxhub.ledger.store import StoredEntry
from erxhub.v1 import events_pb2
from tests.live import HOSPITAL, HOSPITAL_B, MINUTE_MS
from tests.refusals.bench import Bench, event_of, header_of, open_bench

pytestmark = pytest.mark.asyncio(loop_scope="module")

BUDGET = 5

Attempts = Callable[[Bench, int], Awaitable[None]]
SLOWED_MS = Config().slowed_reply_ms


class _Pauses:
    """Keeps what was waited for. The sweep never comes round; nothing else waits."""

    def __init__(self) -> None:
        self.slowed = 0

    async def __call__(self, ms: int) -> None:
        if ms == SLOWED_MS:
            self.slowed += 1
            return
        await asyncio.Event().wait()


PAUSES = _Pauses()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench() -> AsyncIterator[Bench]:
    """A hub with a small budget."""
    async with open_bench(config=Config(drain_ms=200, access_budget_per_minute=BUDGET), pause=PAUSES) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def next_minute(bench: Bench) -> None:
    """Each test begins in a minute of its own, with nothing left to count."""
    bench.live.advance(MINUTE_MS)
    await bench.live.hub.engine.sweep()
    PAUSES.slowed = 0


async def _refused_reads(bench: Bench, count: int, hospital_code: str = HOSPITAL) -> None:
    hospital = await bench.live.hospital(hospital_code)
    for _ in range(count):
        with pytest.raises(Refusal) as caught:
            await hospital.get(rx_no="1" * 27)
        assert caught.value.code == "RX_UNKNOWN"


async def _refused_commands(bench: Bench, count: int) -> None:
    hospital = await bench.live.hospital()
    for _ in range(count):
        with pytest.raises(Refusal) as caught:
            await hospital.close_encounter(encounter_id="E1")
        assert caught.value.code == "ENCOUNTER_STATE"


def _names(entries: list[StoredEntry]) -> list[str]:
    return [event_of(entry) for entry in entries]


@pytest.mark.parametrize("attempts", [_refused_reads, _refused_commands])
async def test_refusals_above_the_budget_leave_one_counting_entry(bench: Bench, attempts: Attempts) -> None:
    began_ms, before = bench.live.clock.now_ms(), await bench.ledger.seen()
    await attempts(bench, BUDGET + 7)
    assert _names(await bench.ledger.after(before.position)) == ["command.refused"] * BUDGET
    bench.live.advance(MINUTE_MS)
    await bench.live.hub.engine.sweep()
    added = (await bench.ledger.after(before.position))[BUDGET:]
    assert _names(added) == ["access.budget_exceeded"]
    assert header_of(added[0]).actor == f"hospital/{HOSPITAL}"
    said = events_pb2.AccessBudgetExceeded.FromString(added[0].payload or b"")
    assert (said.count, said.caller_kind) == (7, "hospital")
    assert (said.from_ms, said.until_ms) == (began_ms, began_ms + MINUTE_MS)


@pytest.mark.parametrize("attempts", [_refused_reads, _refused_commands])
async def test_only_replies_above_the_budget_are_kept_back(bench: Bench, attempts: Attempts) -> None:
    await attempts(bench, BUDGET)
    assert PAUSES.slowed == 0
    await attempts(bench, 3)
    assert PAUSES.slowed == 3


async def test_accesses_above_the_budget_are_counted_and_answered(bench: Bench) -> None:
    rx = await bench.rx().uploaded()
    bench.live.advance(MINUTE_MS)
    hospital = await bench.live.hospital()
    before = await bench.ledger.seen()
    for _ in range(BUDGET + 2):
        assert (await hospital.get(rx_no=rx.rx_no)).prescription == rx.prescription
    assert _names(await bench.ledger.after(before.position)) == ["audit.read"] * BUDGET
    assert PAUSES.slowed == 2


async def test_budget_is_each_callers_own(bench: Bench) -> None:
    await _refused_reads(bench, BUDGET + 1)
    assert PAUSES.slowed == 1
    before = await bench.ledger.seen()
    await _refused_reads(bench, 1, HOSPITAL_B)
    assert PAUSES.slowed == 1
    assert _names(await bench.ledger.after(before.position)) == ["command.refused"]


async def test_next_minute_brings_a_new_budget(bench: Bench) -> None:
    await _refused_reads(bench, BUDGET + 1)
    bench.live.advance(MINUTE_MS)
    before = await bench.ledger.seen()
    await _refused_reads(bench, BUDGET)
    assert PAUSES.slowed == 1
    assert sorted(_names(await bench.ledger.after(before.position))) == [
        "access.budget_exceeded",
        *["command.refused"] * BUDGET,
    ]


async def test_count_is_written_though_the_store_failed_in_between(bench: Bench) -> None:
    await _refused_reads(bench, BUDGET + 4)
    bench.live.advance(MINUTE_MS)
    bench.store.refuses_writes = True
    with pytest.raises(HubStopped):
        await bench.live.hub.engine.sweep()
    bench.store.works_again()
    before = await bench.ledger.seen()
    await bench.live.hub.engine.sweep()
    (entry,) = await bench.ledger.after(before.position)
    assert events_pb2.AccessBudgetExceeded.FromString(entry.payload or b"").count == 4


async def test_count_is_not_written_again_when_the_store_fails_afterwards(bench: Bench) -> None:
    await _refused_reads(bench, BUDGET + 4)
    bench.live.advance(MINUTE_MS)
    await bench.live.hub.engine.sweep()
    before = await bench.ledger.seen()
    bench.store.refuses_writes = bench.store.refuses_reads = True
    hospital = await bench.live.hospital()
    with pytest.raises(Refusal):
        await hospital.close_encounter(encounter_id="E1")
    bench.store.works_again()
    bench.live.advance(MINUTE_MS)
    await bench.live.hub.engine.sweep()
    assert await bench.ledger.after(before.position) == []
