"""Files of a killed hub with bits flipped or their ends cut off: the next hub serves all of it, or does not start."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from erxhub.app import Shared, start_core
from erxhub.config import Config
from erxhub.high_water import HighWaterUnreadable
from erxhub.ledger.sqlite import open_sqlite
from erxhub.ledger.store import Store, StoreFormatError, StoreUnavailable, Wanted
from erxhub.ports import SeededIds
from erxhub.starting import LedgerRefused
from tests.chain import Chain
from tests.live import Live, live_hub
from tests.races.ground import whole_log

pytestmark = [pytest.mark.campaign]

Rounds = Callable[[int, int], int]

_DATABASE, _WAL = "ledger.db", "ledger.db-wal"
_MARK, _POSITION = "high-water.json", "high-water.position"


async def _content(store: Store) -> Mapping[str, Any]:
    """Everything that a hub answers from, as far as a caller could notice."""
    log = await whole_log(store)
    keys = frozenset(entry.stream_key for entry in log)
    heads = (await store.read(Wanted(streams=keys))).heads
    return {
        "log": {(entry.position, entry.stream_key, entry.header, entry.salt, entry.payload) for entry in log},
        "heads": {(key, head.version, head.leaf_hash, head.body, head.due_at_ms) for key, head in heads.items()},
        "names": {(row.space, row.key, row.stream_key) for row in await store.names(None, 100_000)},
        "listings": {(row.position, row.space, row.key, row.value) for row in await store.listings(0, len(log))},
    }


async def _killed(folder: Path, running: Path) -> tuple[Live, Mapping[str, Any]]:
    """A hub's files as a kill -9 leaves them: one part in the database file, one in the WAL, the newest unpublished."""
    (folder / "keys").mkdir(parents=True)
    (running / "keys").mkdir(parents=True)
    async with live_hub(database=running / _DATABASE, high_water=running / "keys" / _MARK) as live:
        await Chain(live).handed_over()
        with closing(sqlite3.connect(running / _DATABASE)) as shell:
            shell.execute("PRAGMA wal_checkpoint(PASSIVE)")
        await Chain(live).handed_over()
        await live.hub.core.publisher.publish_all()
        await Chain(live).settled()
        content = await _content(live.hub.store)
        for name in (_DATABASE, _WAL, f"keys/{_MARK}", f"keys/{_POSITION}"):
            shutil.copy(running / name, folder / name)
    return live, content


def _damage(folder: Path, chance: random.Random) -> str:
    """Flip one bit of one of the two files, or cut it off somewhere; what was done."""
    name = chance.choice((_DATABASE, _WAL))
    data = bytearray((folder / name).read_bytes())
    at = chance.randrange(len(data))
    if chance.random() < 0.3:
        del data[at:]
    else:
        data[at] ^= 1 << chance.randrange(8)
    (folder / name).write_bytes(data)
    return f"{name}, {'cut' if len(data) == at else 'flipped'} at {at}"


async def _end(folder: Path, live: Live, shared: Shared, content: Mapping[str, Any], what: str) -> str:
    """How a start on these files ends; a hub that starts has everything."""
    try:
        store = await open_sqlite(folder / _DATABASE)
    except (StoreFormatError, StoreUnavailable) as error:
        return type(error).__name__
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
            publishes=False,
            high_water=folder / "keys" / _MARK,
        )
        await core.stop()
        found = await _content(store)
        for name, rows in content.items():
            assert found[name] >= rows, f"{what}: the hub started, and its {name} are not what they were"
    except (LedgerRefused, StoreUnavailable, HighWaterUnreadable) as error:
        return str(getattr(error, "code", type(error).__name__))
    finally:
        await store.close()
    return "served"


async def test_damaged_files_are_served_whole_or_not_at_all(tmp_path: Path, rounds: Rounds) -> None:
    chance = random.Random(21)
    live, content = await _killed(tmp_path / "killed", tmp_path / "running")
    shared = Shared.make()
    ends: Counter[str] = Counter()
    try:
        shutil.copytree(tmp_path / "killed", tmp_path / "whole")
        assert await _end(tmp_path / "whole", live, shared, content, "untouched") == "served"
        for number in range(rounds(100, 2_000)):
            folder = tmp_path / f"copy-{number}"
            shutil.copytree(tmp_path / "killed", folder)
            what = _damage(folder, chance)
            ends[await _end(folder, live, shared, content, what)] += 1
            shutil.rmtree(folder)
    finally:
        shared.close()
    assert ends["ROLLBACK_DETECTED"], dict(ends)
    assert ends["LEDGER_DAMAGED"], dict(ends)
