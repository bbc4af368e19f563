"""A publisher with its witnesses over a store: a hub, as far as the log goes."""

from __future__ import annotations

from pathlib import Path

from erxhub.config import Config
from erxhub.high_water import HighWater
from erxhub.keys import HubKeys
from erxhub.ledger.entry import Entry
from erxhub.ledger.log import Checkpoint
from erxhub.ledger.store import Store, Write
from erxhub.ports import SeededIds
from erxhub.proof.notes import LogSigner
from erxhub.publishing import Publisher
from erxhub.witnessing import Witnessing
from tests.ledger.contract import append_all, next_entry
from tests.witness.town import Town

KEYS = HubKeys.generate(SeededIds(11))
CONFIG = Config(checkpoint_leaves_max=16, witness_timeout_ms=2_000, drain_ms=200, drain_quiet_ms=0)
SIGNER = LogSigner(CONFIG.origin, KEYS.log)


async def never(ms: int) -> None:
    raise AssertionError


class Hub:
    """A publisher with witnesses over a store, without anything that calls it."""

    def __init__(self, store: Store, town: Town, folder: Path | None = None, name: str = "a") -> None:
        self.store = store
        self.name = name
        self.last: Entry | None = None
        water = HighWater(folder / "mark.json") if folder else None
        self.witnessing = Witnessing(
            town.policy, store, [SIGNER.key], clock=town.clock, config=CONFIG, high_water=water
        )
        self.publisher = Publisher(
            store,
            KEYS.log,
            clock=town.clock,
            config=CONFIG,
            pause=never,
            high_water=water,
            witnessing=self.witnessing,
        )

    async def write(self) -> int:
        self.last = next_entry(self.name, self.last)
        await append_all(self.store, [Write(entries=(self.last,))])
        return await self.store.last_position()

    async def publish(self) -> Checkpoint:
        """One more entry, and a published checkpoint over it."""
        return await self.publisher.covering(await self.write())


async def opened(store: Store, town: Town, folder: Path | None = None, name: str = "a") -> Hub:
    hub = Hub(store, town, folder, name)
    await hub.witnessing.open()
    return hub
