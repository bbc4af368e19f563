"""A hub's publisher in a process of its own, which stops for ever at one place of a step and waits to be killed.

python -m tests.hub.publishing_process FOLDER [DATABASE-URL]

Reads lines of a place and a number, and begins a hub for each, as a child, on what the last one left: it proves its
start, writes so many entries, publishes them and shows them to the witnesses of FOLDER/policy, where there are any. The
child says where it stopped, and its process number, or why it did not start.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from erxhub.config import Config
from erxhub.high_water import HighWater
from erxhub.keys import HubKeys
from erxhub.ledger.postgres import open_postgres
from erxhub.ledger.sqlite import open_sqlite
from erxhub.ledger.store import Store, Write
from erxhub.ports import ManualClock, system_pause
from erxhub.proof.policy import read_policy
from erxhub.publishing import Publisher
from erxhub.starting import log_keys, prove_start
from erxhub.witnessing import Witnessing
from tests.ledger.contract import T0_MS, next_entry

CONFIG = Config(checkpoint_leaves_max=4)


async def main(folder: Path, url: str, place: str, entries: int) -> None:
    async def between(done: str) -> None:
        if done == place:
            print(place, os.getpid(), flush=True)
            await asyncio.Event().wait()

    store: Store = await (open_postgres(url, readers=1) if url else open_sqlite(folder / "ledger.db"))
    clock, water = ManualClock(T0_MS), HighWater(folder / "outside.json")
    key = HubKeys.load(folder / "keys").log
    witnessing = None
    if (folder / "policy").exists():
        policy, keys = read_policy((folder / "policy").read_bytes()), await log_keys(store, key, CONFIG)
        witnessing = Witnessing(policy, store, keys, clock=clock, config=CONFIG, high_water=water, between=between)
    await prove_start(store, key, CONFIG, water, witnessing)
    publisher = Publisher(
        store,
        key,
        clock=clock,
        config=CONFIG,
        pause=system_pause,
        high_water=water,
        witnessing=witnessing,
        between=between,
    )
    for _ in range(entries):
        name = f"entry {await store.last_position() + 1}"
        result = await store.append([Write(entries=(next_entry(name),))])
        assert not result.conflicts
        water.acknowledge(await store.last_position())
        await between("append")
    await publisher.publish_all()
    if witnessing is not None:
        await witnessing.open()
        await witnessing.show_all()
        assert witnessing.halted is None, witnessing.halted
    await between("end")


def serve(folder: Path, url: str) -> None:
    for line in sys.stdin:
        place, entries = line.split()
        child = os.fork()
        if child == 0:
            try:
                asyncio.run(main(folder, url, place, int(entries)))
                print("passed", place, flush=True)
            except BaseException as error:  # noqa: BLE001 whatever it is, the test has to be told
                print(f"failed {type(error).__name__}: {str(error).splitlines()}", flush=True)
            os._exit(0)
        os.waitpid(child, 0)


serve(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
