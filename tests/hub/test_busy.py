"""A command whose stream another hub is just extending: it is put off, and not for ever."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from erxhub.client import Refusal
from erxhub.config import Config
from erxhub.ledger.memory import MemoryStore
from erxhub.ledger.store import AppendResult, Write
from tests.live import PERSON, live_hub

RETRIES_MAX = Config().batch_retries_max
FREE = 2


class TakenStore(MemoryStore):
    """Says of so many appends of a voucher that its stream is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = 0
        self.asked = 0

    async def append(self, batch: Sequence[Write]) -> AppendResult:
        busy = {
            number for number, write in enumerate(batch) if any(name.space == "voucher_code" for name in write.names)
        }
        self.asked += len(busy)
        if not busy or not self.taken:
            return await super().append(batch)
        self.taken -= 1
        rest = [write for number, write in enumerate(batch) if number not in busy]
        result = await super().append(rest)
        assert not result.conflicts
        return AppendResult(frozenset(), result.last_position, frozenset(busy))


@pytest.mark.parametrize("times", [1, FREE + RETRIES_MAX])
async def test_busy_command_is_decided_again_and_written_once(times: int) -> None:
    store = TakenStore()
    async with live_hub(store=store) as live:
        store.taken = times
        reply = await (await live.channel()).issue_voucher(person_no=PERSON, business_type="02122")
        assert store.asked == times + 1
        assert reply.voucher_code
        assert (await (await live.auditor()).verify_ledger()).verified


async def test_command_that_stays_busy_is_refused_as_retriable() -> None:
    store = TakenStore()
    async with live_hub(store=store) as live:
        position = await store.last_position()
        store.taken = 1000
        with pytest.raises(Refusal) as refused:
            await (await live.channel()).issue_voucher(person_no=PERSON, business_type="02122")
        assert refused.value.code == "HUB_UNAVAILABLE"
        assert refused.value.retriable
        assert store.asked % (FREE + RETRIES_MAX + 1) == 0
        assert await store.last_position() == position
