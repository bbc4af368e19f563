"""The hub as a process of its own: mutual TLS, the ledger in an SQLite file with synchronous=FULL.

Run by `processes.py` as `python -m tests.bench.hub_server FOLDER`. Prints its port on one line, serves until its
standard input ends, and stops in good order. The options take away or add what a row of the benchmark is about; without
any it is what `erxhub serve` starts.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from erxhub import engine, process
from erxhub.app import start_hub
from erxhub.config import Config
from erxhub.keys import HubKeys
from erxhub.ledger.sqlite import SqliteStore, open_sqlite
from erxhub.ledger.store import Store
from erxhub.proof.policy import read_policy
from erxhub.rpc.server import FixedIdentity, ServerIdentity


class _SlowToCommit:
    """A connection whose thread stands still for so long before each commit."""

    def __init__(self, connection: sqlite3.Connection, hold_ms: int) -> None:
        self._connection = connection
        self._hold_s = hold_ms / 1000

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        if statement == "COMMIT":
            time.sleep(self._hold_s)
        return self._connection.execute(statement, *parameters)


def hold_writer(store: SqliteStore, hold_ms: int) -> None:
    """A test hook: the writer's thread stands still for so long at each commit, as on a slow disk."""
    writer: Any = store._writer
    writer._connection = _SlowToCommit(writer._connection, hold_ms)


def without_receipts() -> None:
    """Commands leave no receipt: for the row that asks what proofs cost."""
    engine.write_receipt = lambda *_: None  # type: ignore[assignment]


async def pragma(store: SqliteStore, setting: str) -> None:
    """Change a setting of the writing connection, as `name = value`."""

    def run(connection: sqlite3.Connection) -> None:
        connection.execute(f"PRAGMA {setting}")

    await store._connection._execute(run, store._connection._conn)  # type: ignore[no-untyped-call]


async def _open(options: argparse.Namespace) -> Store:
    if options.db:
        from erxhub.ledger.postgres import open_postgres
        from erxhub.placement import AreaPlacement

        return await open_postgres(options.db, placement=AreaPlacement())
    store = await open_sqlite(options.folder / "ledger.db")
    if options.synchronous:
        await pragma(store, f"synchronous = {options.synchronous}")
    if options.hold_ms:
        hold_writer(store, options.hold_ms)
    if options.naive:
        from tests.bench.naive import NaiveStore

        return NaiveStore(store)
    return store


def config_of_plain() -> Config:
    """The settings of every hub that is measured: nobody is slowed."""
    return Config(access_budget_per_minute=1_000_000_000)


def config_of(options: argparse.Namespace) -> Config:
    """The hub's settings for these options."""
    config = config_of_plain()
    if options.naive:
        config = replace(config, batch_commands_max=1, batch_linger_ms=0)
    if options.hub_id:
        config = replace(config, hub_id=options.hub_id)
    if options.without_proofs or options.without_log:
        config = replace(config, checkpoint_interval_ms=0)
    return config


async def serve(options: argparse.Namespace) -> None:
    """Start, print the port, wait for the end of standard input, stop."""
    folder: Path = options.folder
    identity = ServerIdentity(
        (folder / "cert.pem").read_bytes(), (folder / "key.pem").read_bytes(), (folder / "ca.pem").read_bytes()
    )
    if options.without_proofs:
        without_receipts()
    store = await _open(options)
    hub = await start_hub(
        store,
        FixedIdentity(identity),
        HubKeys.load(folder / "keys"),
        config=config_of(options),
        witnesses=read_policy(options.witnesses.read_bytes()) if options.witnesses else None,
    )
    process.settle_memory()  # as `erxhub serve` does
    print(hub.port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await hub.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--db", help="a PostgreSQL database instead of the folder's ledger.db")
    parser.add_argument("--hub-id", help="this hub among those of one database")
    parser.add_argument("--synchronous", choices=("OFF",), help="SQLite does not wait for the disk")
    parser.add_argument("--hold-ms", type=int, default=0, help="the writer's thread waits so long at each commit")
    parser.add_argument("--witnesses", type=Path, help="a policy file: who cosigns this hub's checkpoints")
    parser.add_argument("--naive", action="store_true", help="one transaction a request, a hop for each statement")
    parser.add_argument("--without-log", action="store_true", help="no log, map and checkpoints; receipts all the same")
    parser.add_argument("--without-proofs", action="store_true", help="no log, map, checkpoints, receipts")
    process.run(serve(parser.parse_args()))  # as `erxhub serve` does


if __name__ == "__main__":
    main()
