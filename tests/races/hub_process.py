"""A hub as a process of its own, to be killed: mutual TLS, the machine's clock, and a durable ledger.

Run by `processes.py` as `python -m tests.races.hub_process FOLDER`, where FOLDER holds cert.pem, key.pem, ca.pem and
keys/. The ledger is a SQLite file in there, or the PostgreSQL database whose address database.url holds; the hub is
then called as the folder is. Prints one JSON line when it takes calls; serves until SIGTERM, and then drains.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from erxhub.app import start_hub
from erxhub.cli.hosting import log_to_stderr, stop_signal, until_stopped
from erxhub.config import Config
from erxhub.keys import HubKeys
from erxhub.ledger.sqlite import open_sqlite
from erxhub.placement import AreaPlacement
from erxhub.rpc.server import IdentityFiles


async def serve(folder: Path) -> None:
    stopping = stop_signal()
    identity = IdentityFiles(folder / "cert.pem", folder / "key.pem", folder / "ca.pem")
    keys = HubKeys.load(folder / "keys")
    url = folder / "database.url"
    if url.exists():
        # Not at the top: only some machines have what it needs.
        from erxhub.ledger.postgres import open_postgres

        shared = await open_postgres(url.read_text(), placement=AreaPlacement(), readers=4)
        hub = await start_hub(shared, identity, keys, config=Config(hub_id=folder.name))
    else:
        hub = await start_hub(await open_sqlite(folder / "ledger.db"), identity, keys)
    print(json.dumps({"port": hub.port, "verified_entries": hub.verified_entries}), flush=True)
    await until_stopped(hub, stopping)


if __name__ == "__main__":
    log_to_stderr("INFO")
    asyncio.run(serve(Path(sys.argv[1])))
