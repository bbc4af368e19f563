"""The hub as a process of its own: mutual TLS, the ledger in an SQLite file with synchronous=FULL.

Run by `processes.py` as `python -m tests.bench.hub_server FOLDER`. Prints its port on one line, serves until its
standard input ends, and stops in good order.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from erxhub.app import settle_memory, start_hub
from erxhub.keys import HubKeys
from erxhub.ledger.sqlite import open_sqlite
from erxhub.rpc.server import FixedIdentity, ServerIdentity


async def serve(folder: Path) -> None:
    identity = ServerIdentity(
        (folder / "cert.pem").read_bytes(), (folder / "key.pem").read_bytes(), (folder / "ca.pem").read_bytes()
    )
    store = await open_sqlite(folder / "ledger.db")
    hub = await start_hub(store, FixedIdentity(identity), HubKeys.load(folder / "keys"))
    settle_memory()  # as `erxhub serve` does
    print(hub.port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await hub.stop()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
