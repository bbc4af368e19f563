"""A reference driver's adapter against a live hub, in this process or in one of its own.

Owns: the argument of `configure`. Must never: speak to the hub itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from erxhub.conform.drivers.base_adapter import BaseAdapter
from tests.live import Live

STAFF: Mapping[str, Mapping[str, str]] = {
    "H33010099901": {"doctor": "D330100990001", "pharmacist": "HY330100990001"},
    "P33010099101": {
        "pharmacist": "YS330100990001",
        "dispenser": "PY330100990001",
        "checker": "PY330100990003",
        "courier": "PS330100990001",
    },
    "P33010099102": {
        "pharmacist": "YS330100990002",
        "dispenser": "PY330100990002",
        "checker": "PY330100990004",
        "courier": "PS330100990002",
    },
}


def arguments(live: Live, role: str, code: str, folder: Path, **changes: Any) -> dict[str, Any]:
    """What `configure` gets."""
    folder.mkdir(parents=True, exist_ok=True)
    identity = live.identity(role, code)
    paths = {name: folder / f"{name}.pem" for name in ("ca", "cert", "key")}
    for name, pem in zip(paths, (identity.ca_pem, identity.cert_pem, identity.key_pem), strict=True):
        paths[name].write_bytes(pem or b"")
    signing = {}
    for (subject, institution), held in live.world.signing_identities.items():
        if institution == code:
            path = folder / f"{subject}.pem"
            path.write_bytes(held.key.to_pem())
            signing[subject] = {"suite": held.suite, "pem_path": str(path)}
    return {
        "target": live.target,
        "server_name": "",
        "ca_pem_path": str(paths["ca"]),
        "cert_pem_path": str(paths["cert"]),
        "key_pem_path": str(paths["key"]),
        "receipt_keys": {key_id: key.hex() for key_id, key in live.receipt_keys.items()},
        "institution_code": code,
        "staff": STAFF[code],
        "signing_keys": signing,
        "trusted_signers": [
            {
                "subject_code": held.subject_code,
                "institution_code": held.institution_code,
                "suite": held.suite,
                "key_id": held.key.key_id,
                "public_key": held.key.public_key.hex(),
                "valid_from_ms": held.not_before_ms,
                "valid_until_ms": held.not_after_ms,
            }
            for held in live.world.signing_identities.values()
        ],
        "state_dir": str(folder / "state"),
        "timeout_ms": 2_000,
        "wait_scale": 0.01,
    } | changes


class Valve:
    """A wire between driver and hub that can be closed: for what comes back, or altogether."""

    def __init__(self, hub_port: int) -> None:
        self._hub_port = hub_port
        self._server: asyncio.Server
        self._open_wires: set[asyncio.StreamWriter] = set()
        self.answers_come_back = True
        self.connects = True

    async def __aenter__(self) -> Valve:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()

    @property
    def target(self) -> str:
        """Where the driver connects."""
        return f"localhost:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Ends every connection."""
        for writer in self._open_wires:
            writer.close()
        self._open_wires.clear()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.connects:
            writer.close()
            return
        hub_reader, hub_writer = await asyncio.open_connection("127.0.0.1", self._hub_port)
        self._open_wires |= {writer, hub_writer}
        await asyncio.gather(
            self._pump(reader, hub_writer, lambda: True),
            self._pump(hub_reader, writer, lambda: self.answers_come_back),
        )

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passes: Callable[[], bool]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                if passes():
                    writer.write(data)
                    await writer.drain()
            writer.close()


class Inside:
    """An adapter in this process."""

    def __init__(self, live: Live, adapter: BaseAdapter) -> None:
        self.live = live
        self.adapter = adapter

    async def __call__(self, op: str, **args: Any) -> dict[str, Any]:
        self.adapter.told_time(self.live.clock.now_ms())
        return await self.adapter.operations[op](args)


class Outside:
    """A driver in a process of its own, spoken to in JSON lines."""

    def __init__(self, live: Live, module: str) -> None:
        self.live = live
        self._module = f"erxhub.conform.drivers.{module}"
        self._numbers = 0
        self.process: asyncio.subprocess.Process

    async def start(self) -> None:
        """Starts it, again after a kill."""
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(sys.executable, "-m", self._module, stdin=pipe, stdout=pipe)

    async def send(self, op: str, **args: Any) -> None:
        """Asks without waiting for the answer."""
        self._numbers += 1
        request = {"id": self._numbers, "op": op, "args": args, "at_ms": self.live.clock.now_ms()}
        await self.send_line(json.dumps(request).encode())

    async def send_line(self, line: bytes) -> None:
        """Writes any line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        await self.process.stdin.drain()

    async def answer(self) -> dict[str, Any]:
        """The next line."""
        assert self.process.stdout is not None
        read: dict[str, Any] = json.loads(await self.process.stdout.readline())
        return read

    async def __call__(self, op: str, **args: Any) -> dict[str, Any]:
        await self.send(op, **args)
        answer = await self.answer()
        assert answer["id"] == self._numbers
        result: dict[str, Any] = answer["result"]
        return result

    async def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        await self.process.wait()
