"""Runs recorded work through an engine on a memory store, and prints the digest of the ledger that it leaves.

Run by `test_determinism.py` as `python -m tests.races.replay FILE`: the order of Python's sets changes from process to
process, and so is part of what is tested.
"""

from __future__ import annotations

import asyncio
import hashlib
import pickle
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erxhub.config import Config
from erxhub.crypto.suites import SigningKey
from erxhub.engine import Engine
from erxhub.keys import HubKeys
from erxhub.ledger.memory import MemoryStore
from erxhub.ledger.store import Store, StoredEntry
from erxhub.policy.pack import shipped_packs
from erxhub.ports import ManualClock, SeededIds
from tests.live import START_MS
from tests.races.ground import whole_log


@dataclass
class Recording:
    """What an engine was asked to do, in order: (instant, kind of work, its arguments)."""

    seed: int
    receipt_pem: bytes
    log_pem: bytes
    hmac_keys: dict[int, bytes]
    steps: list[tuple[int, str, tuple[Any, ...]]] = field(default_factory=list)

    def keys(self) -> HubKeys:
        """The hub's keys."""
        return HubKeys(SigningKey.from_pem(self.receipt_pem), SigningKey.from_pem(self.log_pem), self.hmac_keys)


async def replay(recording: Recording) -> Store:
    """The store after the same work on a fresh engine."""
    store, clock = MemoryStore(), ManualClock(START_MS)
    engine = Engine(
        store,
        clock=clock,
        ids=SeededIds(recording.seed),
        keys=recording.keys(),
        packs=shipped_packs(),
        config=Config(),
    )
    await engine.start()
    for at_ms, kind, arguments in recording.steps:
        clock.advance(at_ms - clock.now_ms())
        await getattr(engine, kind)(*arguments)
    await engine.stop()
    return store


def digest(log: list[StoredEntry]) -> str:
    """SHA-256 over every byte of every entry."""
    hasher = hashlib.sha256()
    for entry in log:
        for part in (entry.header, entry.commitment, entry.leaf_hash, entry.salt or b"", entry.payload or b""):
            hasher.update(len(part).to_bytes(8, "big") + part)
    return hasher.hexdigest()


async def main(recording: Recording) -> None:
    print(digest(await whole_log(await replay(recording))))


if __name__ == "__main__":
    # The file is the test's own, made a moment ago.
    asyncio.run(main(pickle.loads(Path(sys.argv[1]).read_bytes())))
