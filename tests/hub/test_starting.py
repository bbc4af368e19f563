"""A hub that starts while others are at work: what moves under its eyes is no damage."""

from __future__ import annotations

from typing import Any

from erxhub.config import Config
from erxhub.ledger.memory import MemoryStore
from erxhub.ledger.store import Store
from erxhub.starting import prove_start
from tests.chain import CONSULT
from tests.live import PERSON, Live, live_hub


class _MovingStore:
    """A store in which another hub publishes a checkpoint between two reads of the one that starts."""

    others = object()
    """Says that there are other hubs; a start asks no more of it."""

    def __init__(self, inner: Store, live: Live, moves: int) -> None:
        self._inner, self._live, self._moves = inner, live, moves

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def tiles(self, places: Any) -> Any:
        if self._moves:
            self._moves -= 1
            channel = await self._live.channel()
            await channel.issue_voucher(person_no=PERSON, business_type=CONSULT)
            await self._live.hub.core.publisher.publish_all()
        return await self._inner.tiles(places)


async def test_a_checkpoint_that_is_made_during_a_start_is_no_damage() -> None:
    store = MemoryStore()
    async with live_hub(store=store) as live:
        await live.hub.core.publisher.publish_all()
        moving: Any = _MovingStore(store, live, moves=2)
        verification = await prove_start(moving, live.hub_keys.log, Config(), None)
        assert verification.findings == []
        assert verification.entries
