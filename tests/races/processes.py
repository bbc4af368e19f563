"""Starting, killing and calling a hub that is a process of its own.

Owns the folder with its fixed keys and certificates. Must never: open the ledger while the hub runs.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from erxhub.client import ClientIdentity, Connection, RetryPolicy
from erxhub.client.environment import SystemEnvironment
from erxhub.crypto.ca import TrustDomain
from erxhub.crypto.suites import SigningKey
from erxhub.keys import HubKeys
from erxhub.ports import SeededIds
from erxhub.seed import SeedWorld, register_world
from tests.live import AGENCY, AUDITOR, CHANNEL, CLIENTS, HOSPITAL, PERSON, PHARMACY, REQUEST_IDS

ROOT = Path(__file__).resolve().parents[2]
_END_S = 30.0


class HubProcess:
    """A running hub process. `said` is what it printed when it was ready."""

    def __init__(self, folder: Path) -> None:
        self._errors = (folder / "stderr.log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.races.hub_process", str(folder)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError("the hub did not start: " + (folder / "stderr.log").read_text()[-2_000:])
        self.said: dict[str, int] = json.loads(line)

    @property
    def target(self) -> str:
        return f"localhost:{self.said['port']}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL: nothing is finished, nothing is told."""
        self._process.kill()
        self._reap()

    def ask_to_end(self) -> None:
        """SIGTERM."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        self._process.wait(_END_S)
        return self._reap()

    def _reap(self) -> int:
        code = self._process.wait(_END_S)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()
        return code


class _Clock(SystemEnvironment):
    """The machine's clock, under the name that a `Chain` asks."""

    def advance(self, ms: int) -> None:
        raise AssertionError("the machine's clock is not ours to move")


class Outside:
    """What a `Chain` needs from a hub that runs elsewhere: the seeded world, a clock, and clients."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = _Clock()
        now_ms = self.clock.now_ms()
        self.trust = TrustDomain.in_memory("erxhub.test", now_ms)
        server = self.trust.issue_tls("hub", "hub-1", now_ms, 30, hosts=("localhost", "127.0.0.1"))
        (folder / "cert.pem").write_bytes(server.cert_pem)
        (folder / "key.pem").write_bytes(server.key_pem)
        (folder / "ca.pem").write_bytes(self.trust.ca_pem)
        self.hub_keys = HubKeys.init(folder / "keys", SeededIds(98))
        self.receipt_keys = {self.hub_keys.receipt.key_id: self.hub_keys.receipt.public_key}
        self.process = HubProcess(folder)
        self.world: SeedWorld
        self._stack = AsyncExitStack()
        self._clients: dict[tuple[str, str], Any] = {}
        self._identities: dict[tuple[str, str], ClientIdentity] = {}

    async def seeded(self) -> Outside:
        """Register the world in the hub."""
        now_ms = self.clock.now_ms()
        self.world = await register_world(await self.agency(), self.trust, now_ms)
        await (await self.channel()).activate_voucher(person_no=PERSON)
        return self

    async def started_again(self) -> HubProcess:
        """A new process on the same folder; every client connects anew."""
        await self.close()
        self.process = HubProcess(self.folder)
        return self.process

    async def close(self) -> None:
        """End every connection."""
        await self._stack.aclose()
        self._stack = AsyncExitStack()
        self._clients.clear()

    async def client(self, role: str, peer_id: str) -> Any:
        if (role, peer_id) not in self._clients:
            if (role, peer_id) not in self._identities:
                issued = self.trust.issue_tls(role, peer_id, self.clock.now_ms(), 30)
                self._identities[role, peer_id] = ClientIdentity(self.trust.ca_pem, issued.cert_pem, issued.key_pem)
            connection = Connection(
                self.process.target,
                self._identities[role, peer_id],
                receipt_keys=self.receipt_keys,
                # A test that kills wants to see the first failure.
                retry=RetryPolicy(attempts=1),
            )
            await self._stack.enter_async_context(connection)
            reason = {"case_reason": "case T-2"} if role == "auditor" else {}
            self._clients[role, peer_id] = CLIENTS[role](connection, request_ids=REQUEST_IDS, **reason)
        return self._clients[role, peer_id]

    async def hospital(self, code: str = HOSPITAL) -> Any:
        return await self.client("hospital", code)

    async def pharmacy(self, code: str = PHARMACY) -> Any:
        return await self.client("pharmacy", code)

    async def channel(self) -> Any:
        return await self.client("channel", CHANNEL)

    async def agency(self) -> Any:
        return await self.client("agency", AGENCY)

    async def auditor(self) -> Any:
        return await self.client("auditor", AUDITOR)

    def key(self, subject: str, institution: str) -> SigningKey:
        return self.world.signing_keys[subject, institution]


@asynccontextmanager
async def seeded_outside(folder: Path) -> AsyncIterator[Outside]:
    """A hub process with a registered world; killed at the end, if it still runs."""
    there = Outside(folder)
    try:
        yield await there.seeded()
    finally:
        await there.close()
        there.process.kill()
