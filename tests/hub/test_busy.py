"""A command whose stream another hub extends at the same time: it is decided again, in time, and not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from erxhub.client import Refusal
from erxhub.config import Config
from erxhub.ledger.memory import MemoryStore
from erxhub.ledger.store import AppendResult, Write
from tests.chain import Chain
from tests.live import CHANNEL, PERSON, Live, live_hub
from tests.races.ground import GatedStore, until_so


class ContendedStore(MemoryStore):
    """Keeps Writes to vouchers out for so many appends: their streams are taken, or another hub came first."""

    def __init__(self, *, came_first: bool = False) -> None:
        super().__init__()
        self.kept_out = 0
        self.asked = 0
        self._came_first = came_first

    async def append(self, batch: Sequence[Write]) -> AppendResult:
        lost = _to(batch, "voucher")
        self.asked += len(lost)
        if not lost or not self.kept_out:
            return await super().append(batch)
        self.kept_out -= 1
        last = await _append_others(super(), batch, lost)
        return AppendResult(lost, last) if self._came_first else AppendResult(frozenset(), last, lost)


class TakenStore(MemoryStore):
    """Here each prescription is just being extended by another hub, for whoever does not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.is_taken = False
        self.waited: list[list[Write]] = []

    async def append(self, batch: Sequence[Write]) -> AppendResult:
        wanted = _to(batch, "prescription") if self.is_taken else frozenset[int]()
        if all(batch[number].waits for number in wanted):
            self.waited += [[batch[number] for number in wanted]] if wanted else []
            return await super().append(batch)
        return AppendResult(frozenset(), await _append_others(super(), batch, wanted), wanted)


def _to(batch: Sequence[Write], kind: str) -> frozenset[int]:
    """The Writes of a batch that extend a stream of a kind."""
    extending = (any(entry.header.stream_kind == kind for entry in write.entries) for write in batch)
    return frozenset(number for number, is_such in enumerate(extending) if is_such)


async def _append_others(store: Any, batch: Sequence[Write], left_out: frozenset[int]) -> int:
    result = await store.append([write for number, write in enumerate(batch) if number not in left_out])
    assert not result.conflicts
    return int(result.last_position)


async def _issue(live: Live) -> str:
    channel = await live.connect("channel", CHANNEL, attempts=1)
    return str((await channel.issue_voucher(person_no=PERSON, business_type="02122")).voucher_code)


@pytest.mark.parametrize("came_first", [False, True], ids=["taken", "came first"])
@pytest.mark.parametrize("times", [1, 40])
async def test_command_that_loses_to_another_hub_is_decided_again_and_written_once(
    times: int, came_first: bool
) -> None:
    store = ContendedStore(came_first=came_first)
    async with live_hub(store=store) as live:
        store.kept_out = times
        assert await _issue(live)
        assert store.asked == times + 1
        assert (await (await live.auditor()).verify_ledger()).verified


@pytest.mark.parametrize("came_first", [False, True], ids=["taken", "came first"])
async def test_command_that_loses_for_too_long_is_refused_as_retriable(came_first: bool) -> None:
    store = ContendedStore(came_first=came_first)
    async with live_hub(store=store, config=Config(drain_ms=200, drain_quiet_ms=0, contended_ms=20)) as live:
        position = await store.last_position()
        store.kept_out = 1_000_000
        with pytest.raises(Refusal) as refused:
            await _issue(live)
        assert (refused.value.code, refused.value.retriable) == ("HUB_UNAVAILABLE", True)
        assert await store.last_position() == position
        store.kept_out = 0
        assert await _issue(live)


async def test_commands_that_wait_for_one_stream_wait_together_and_for_two_apart() -> None:
    store = TakenStore()
    gated = GatedStore(store)
    async with live_hub(store=gated) as live:
        chains = [await Chain(live, hospital_rx_no=f"BUSY-{number}").uploaded() for number in range(2)]
        channel = await live.channel()
        store.is_taken = True
        with gated.shut():
            made = [channel.make_qr(person_no=PERSON, rx_no=chain.rx_no) for chain in chains for _ in range(10)]
            calls = [asyncio.ensure_future(each) for each in made]
            await until_so(lambda: live.hub.engine.queue_depth > 15)
        await asyncio.gather(*calls)
        assert sum(map(len, store.waited)) == len(calls)
        assert len(store.waited) <= 5
        for writes in store.waited:
            assert len({entry.header.stream_key for write in writes for entry in write.entries}) == 1
