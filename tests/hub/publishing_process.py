"""A hub's publisher over a SQLite file, which stops for ever at one place of a step and waits to be killed.

python publishing_process.py FOLDER PLACE
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from erxhub.config import Config
from erxhub.high_water import HighWater
from erxhub.keys import HubKeys
from erxhub.ledger.sqlite import open_sqlite
from erxhub.ledger.store import Write
from erxhub.ports import ManualClock, system_pause
from erxhub.publishing import Publisher
from tests.ledger.contract import T0_MS, next_entry


async def main(folder: Path, place: str) -> None:
    async def between(done: str) -> None:
        if done == place:
            print(place, flush=True)
            await asyncio.Event().wait()

    store = await open_sqlite(folder / "ledger.db")
    publisher = Publisher(
        store,
        HubKeys.load(folder / "keys").log,
        clock=ManualClock(T0_MS),
        config=Config(),
        pause=system_pause,
        high_water=HighWater(folder / "outside.json"),
        between=between,
    )
    await store.append([Write(entries=(next_entry(f"for {place}"),))])
    await publisher.publish_all()


asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
