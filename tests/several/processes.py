"""Several hub processes over one PostgreSQL database, to be killed one at a time.

Owns their folders: one trust domain, the keys of one ledger, and a receipt key for each. Must never open the ledger
for writing.
"""

from __future__ import annotations

import shutil
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from erxhub.client import ClientIdentity
from erxhub.keys import HubKeys
from erxhub.ports import SeededIds
from tests.races.processes import HubProcess, Outside


class OneOutside(Outside):
    """One of the processes. Takes the trust domain, the world and the ledger's keys from the first."""

    def __init__(self, folder: Path, first: Outside) -> None:
        self.folder, self.clock, self.trust = folder, first.clock, first.trust
        for name in ("cert.pem", "key.pem", "ca.pem", "database.url"):
            shutil.copy(first.folder / name, folder / name)
        shutil.copytree(first.folder / "keys", folder / "keys")
        self.hub_keys = HubKeys.rotate(folder / "keys", "receipt", SeededIds(97))
        first.receipt_keys[self.hub_keys.receipt.key_id] = self.hub_keys.receipt.public_key
        self.receipt_keys = first.receipt_keys
        self.process = HubProcess(folder)
        self.world = first.world
        self._stack = AsyncExitStack()
        self._clients: dict[tuple[str, str], Any] = {}
        self._identities: dict[tuple[str, str], ClientIdentity] = {}


class SeveralOutside:
    """All of them."""

    def __init__(self, hubs: list[Outside]) -> None:
        self.hubs = hubs

    def __getitem__(self, number: int) -> Outside:
        return self.hubs[number % len(self.hubs)]

    async def close(self) -> None:
        """End every connection and every process."""
        for hub in self.hubs:
            await hub.close()
            hub.process.kill()


async def start_several(folder: Path, url: str, count: int) -> SeveralOutside:
    """Start them on an empty ledger and register the world through the first."""
    folders = [folder / f"hub-{number}" for number in range(1, count + 1)]
    for each in folders:
        each.mkdir()
    (folders[0] / "database.url").write_text(url)
    first = await Outside(folders[0]).seeded()
    others = [OneOutside(each, first) for each in folders[1:]]
    await first.close()  # its clients know its own receipt key only
    return SeveralOutside([first, *others])
