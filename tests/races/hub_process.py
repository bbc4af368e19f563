"""A hub as a process of its own, to be killed: mutual TLS, the machine's clock, SQLite with synchronous=FULL.

Run by `processes.py` as `python -m tests.races.hub_process FOLDER`, where FOLDER holds cert.pem, key.pem, ca.pem and
keys/. Prints one JSON line when it takes calls; serves until SIGTERM, and then drains.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from erxhub.app import start_hub
from erxhub.cli.hosting import log_to_stderr, stop_signal, until_stopped
from erxhub.keys import HubKeys
from erxhub.ledger.sqlite import open_sqlite
from erxhub.rpc.server import IdentityFiles


async def serve(folder: Path) -> None:
    stopping = stop_signal()
    identity = IdentityFiles(folder / "cert.pem", folder / "key.pem", folder / "ca.pem")
    store = await open_sqlite(folder / "ledger.db")
    hub = await start_hub(store, identity, HubKeys.load(folder / "keys"))
    print(json.dumps({"port": hub.port, "verified_entries": hub.verified_entries}), flush=True)
    await until_stopped(hub, stopping)


if __name__ == "__main__":
    log_to_stderr("INFO")
    asyncio.run(serve(Path(sys.argv[1])))
