"""Files of a killed hub with bits flipped or their ends cut off: the next hub serves all of it, or does not start."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from erxhub.app import Shared, start_core
from erxhub.config import Config
from erxhub.ledger.sqlite import open_sqlite
from erxhub.ledger.store import StoreFormatError, StoreUnavailable, Wanted
from erxhub.ports import SeededIds
from erxhub.starting import LedgerRefused
from tests.chain import Chain
from tests.live import Live, live_hub
from tests.races.ground import whole_log

pytestmark = [pytest.mark.campaign]

Rounds = Callable[[int, int], int]

_FILES = ("ledger.db", "ledger.db-wal")


async def _content(store: Any) -> dict[str, Any]:
    """Everything that a hub answers from, as far as a caller could notice."""
    log = await whole_log(store)
    keys = frozenset(entry.stream_key for entry in log)
    heads = (await store.read(Wanted(streams=keys))).heads
    return {
        "log": [(entry.position, entry.stream_key, entry.header, entry.salt, entry.payload) for entry in log],
        "heads": {key: (head.version, head.leaf_hash, head.body, head.due_at_ms) for key, head in heads.items()},
        "names": await store.names(None, 100_000),
        "listings": await store.listings(0, len(log)),
    }


async def _killed(folder: Path) -> tuple[Live, dict[str, Any]]:
    """The files of a hub as a kill -9 leaves them, its WAL full of what the database file does not hold yet."""
    folder.mkdir()
    async with live_hub(database=folder.parent / "running" / "ledger.db") as live:
        for _ in range(2):
            await Chain(live).handed_over()
        await live.hub.core.publisher.publish_all()
        await Chain(live).settled()
        for name in _FILES:
            shutil.copy(folder.parent / "running" / name, folder / name)
        content = await _content(live.hub.store)
    return live, content


def _damage(folder: Path, chance: random.Random) -> str:
    name = chance.choice(_FILES)
    data = bytearray((folder / name).read_bytes())
    if chance.random() < 0.3:
        del data[chance.randrange(len(data)) :]
        what = f"{name} cut to {len(data)}"
    else:
        at = chance.randrange(len(data))
        data[at] ^= 1 << chance.randrange(8)
        what = f"{name} flipped at {at}"
    (folder / name).write_bytes(data)
    return what


async def test_damaged_files_are_served_whole_or_not_at_all(tmp_path: Path, rounds: Rounds) -> None:
    chance = random.Random(21)
    (tmp_path / "running").mkdir()
    live, content = await _killed(tmp_path / "killed")
    shared = Shared.make()
    ends: Counter[str] = Counter()
    try:
        for number in range(rounds(100, 2_000)):
            folder = tmp_path / f"copy-{number}"
            shutil.copytree(tmp_path / "killed", folder)
            what = _damage(folder, chance)
            try:
                store = await open_sqlite(folder / "ledger.db")
            except (StoreFormatError, StoreUnavailable) as error:
                ends[type(error).__name__] += 1
                continue
            try:
                core = await start_core(
                    store,
                    live.hub_keys,
                    shared=shared,
                    authority=lambda: live.trust.ca_pem,
                    config=Config(),
                    clock=live.clock,
                    ids=SeededIds(5),
                    sweeps=False,
                )
                found = await _content(store)
                for name, rows in content.items():
                    assert found[name][: len(rows)] == rows if isinstance(rows, list) else found[name].items() >= rows.items(), (
                        f"{what}: the hub started, and its {name} are not what they were"
                    )
                ends["served"] += 1
                await core.stop()
            except (LedgerRefused, StoreUnavailable) as error:
                ends[getattr(error, "code", type(error).__name__)] += 1
            finally:
                await store.close()
                shutil.rmtree(folder)
    finally:
        shared.close()
    print(dict(ends))
    assert ends["served"] and ends["LEDGER_DAMAGED"]
