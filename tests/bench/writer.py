"""What one upload costs the writer's thread of the SQLite store: `python -m tests.bench.writer`.

A hub writes down what its store's writer was given, upload by upload with 64 in flight, and a new file is given the
same again and again, with nothing else on the thread. So two ways to write can be told apart by less than a whole hub's
noise. What the same takes inside a hub, where other code uses the same caches, is about a third more.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import statistics
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from erxhub.app import start_hub
from erxhub.config import Config
from erxhub.keys import HubKeys
from erxhub.ledger import sqlite
from erxhub.ledger.sqlite import open_sqlite
from erxhub.rpc.server import FixedIdentity, ServerIdentity
from tests.bench import load
from tests.bench.world import World

SUITE = "ES256"
IN_FLIGHT = 64
_AT_ONCE = 1000
_FRAME_HEADER_BYTES = 24
_WAL_HEADER_BYTES = 32


class Step(NamedTuple):
    """One job of the writer: the name of its method, and what it was given."""

    method: str
    given: tuple[Any, ...]

    @property
    def uploads(self) -> int:
        """Uploads in it; an append without any is somebody else's."""
        return sum(bool(write.blobs) for write in self.given[0]) if self.method == "append" else 0


class _WrittenDown:
    """A store's writer that notes each job before it does it."""

    def __init__(self, writer: Any, steps: list[Step]) -> None:
        self._writer = writer
        self._steps = steps

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._writer, name)

        def run(*given: Any) -> Any:
            self._steps.append(Step(name, given))
            return method(*given)

        return run


async def record(folder: Path, uploads: int) -> list[Step]:
    """What the writer of a hub is given, from the first entry of a ledger to so many uploads."""
    world, steps = World(folder), list[Step]()
    identity = ServerIdentity(*((folder / name).read_bytes() for name in ("cert.pem", "key.pem", "ca.pem")))
    store: Any = await open_sqlite(folder / "recorded.db")
    store._writer = _WrittenDown(store._writer, steps)
    config = Config(access_budget_per_minute=1_000_000_000)
    hub = await start_hub(store, FixedIdentity(identity), HubKeys.load(folder / "keys"), config=config)
    await world.populate(hub.port)
    async with load.connected(hub.port, world.hospital) as calls:
        while (left := uploads - sum(step.uploads for step in steps)) > 0:
            ready = (await world.prepare(hub.port, {SUITE: min(left, _AT_ONCE)}))[SUITE]
            await load.run(calls, [upload.request for upload in ready], IN_FLIGHT)
    await hub.stop()
    return steps


class _Timed:
    """A connection that adds up the thread's CPU time by statement while `on`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.on = False
        self.spent_ns: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def _run(self, run: Callable[..., Any], statement: str, *parameters: Any) -> Any:
        begun_ns = time.thread_time_ns()
        found = run(statement, *parameters)
        if self.on:
            self.spent_ns[" ".join(statement.split()[:3])] += time.thread_time_ns() - begun_ns
        return found

    def execute(self, statement: str, *parameters: Any) -> Any:
        return self._run(self._connection.execute, statement, *parameters)

    def executemany(self, statement: str, rows: Any) -> Any:
        return self._run(self._connection.executemany, statement, rows)


def replay(steps: list[Step], file: Path, *, by_statement: bool = False) -> dict[str, float]:
    """CPU of the writer's thread, µs an upload: all of it and its looking up; or also each statement's.

    The pages that are left in the WAL at the end are folded into the file, and paid for by the uploads too.
    """
    with closing(sqlite3.connect(file, isolation_level=None, cached_statements=256)) as connection:
        writer: Any = sqlite._prepare_writer(connection, str(file))
        timed = _Timed(connection)
        if by_statement:
            writer._connection = timed
        uploads = spent_ns = looked_up_ns = since_ns = 0
        for step in steps:
            timed.on = bool(step.uploads)
            begun_ns = time.thread_time_ns()
            result = getattr(writer, step.method)(*step.given)
            taken_ns = time.thread_time_ns() - begun_ns
            if step.method == "load":
                since_ns += taken_ns
            elif step.method == "append":
                assert not result.conflicts
                if step.uploads:
                    uploads += step.uploads
                    spent_ns, looked_up_ns = spent_ns + taken_ns, looked_up_ns + since_ns
                since_ns = 0
        begun_ns = time.thread_time_ns()
        connection.execute("PRAGMA wal_checkpoint")
        spent_ns += time.thread_time_ns() - begun_ns
    parts = {"all": spent_ns + looked_up_ns, "look-ups": looked_up_ns, **timed.spent_ns}
    return {name: ns / uploads / 1000 for name, ns in parts.items()}


def pages(steps: list[Step], file: Path) -> dict[str, float]:
    """Pages that uploads put into the WAL, by b-tree, an upload."""
    found: Counter[int] = Counter()
    uploads = 0
    wal = Path(f"{file}-wal")
    with closing(sqlite3.connect(file, isolation_level=None, cached_statements=256)) as connection:
        writer: Any = sqlite._prepare_writer(connection, str(file))
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
        for step in steps:
            before = max(wal.stat().st_size, _WAL_HEADER_BYTES)
            getattr(writer, step.method)(*step.given)
            if step.uploads:
                uploads += step.uploads
                with wal.open("rb") as frames:
                    for place in range(before, wal.stat().st_size, page_bytes + _FRAME_HEADER_BYTES):
                        frames.seek(place)
                        found[struct.unpack(">I", frames.read(4))[0]] += 1
        of = {page: f"{name} {kind}" for name, kind, page in connection.execute(
            "SELECT name, pagetype, pageno FROM dbstat")}  # fmt: skip
    by_tree: Counter[str] = Counter()
    for page, times in found.items():
        by_tree[of.get(page, "freed")] += times
    return {"all": found.total() / uploads, **{name: times / uploads for name, times in by_tree.most_common()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--uploads", type=int, default=3000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps = asyncio.run(record(folder, options.uploads))
        batches = [step.uploads for step in steps if step.uploads]
        print(f"{sum(batches)} uploads in {len(batches)} commits, {statistics.median(batches):.0f} in the median one")
        rounds = [replay(steps, folder / f"{number}.db") for number in range(options.rounds)]
        for part in rounds[0]:
            us = sorted(one[part] for one in rounds)
            print(f"{part}: {statistics.median(us):.1f} µs ({us[0]:.1f}–{us[-1]:.1f})")
        for part, us_each in replay(steps, folder / "parts.db", by_statement=True).items():
            print(f"  {part:32} {us_each:6.1f} µs, each statement timed")
        for tree, times in pages(steps, folder / "pages.db").items():
            print(f"  {tree:44} {times:5.2f} pages in the WAL")


if __name__ == "__main__":
    main()
