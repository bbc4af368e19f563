"""`erxhub witness` as a process: made, served, shown, and killed between any two bytes."""

import asyncio
import json
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from erxhub.ports import SystemClock
from erxhub.proof.notes import read_vkey
from erxhub.witness.client import WitnessClient, WitnessUnavailable
from tests.witness.ground import Log

ERXHUB = (sys.executable, "-m", "erxhub.cli")


def erxhub(*words: str) -> dict[str, Any]:
    run = subprocess.run([*ERXHUB, *words, "-o", "json"], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(run.stdout)
    return found


class Process:
    """A witness process over a folder."""

    def __init__(self, folder: Path, log: Log) -> None:
        self._ready = folder / "ready.json"
        self._ready.unlink(missing_ok=True)
        words = ["witness", "serve", "--folder", str(folder), "--log", log.signer.key.vkey]
        words += ["--address", "127.0.0.1:0", "--ready-file", str(self._ready)]
        self._process = subprocess.Popen([*ERXHUB, *words], stderr=subprocess.PIPE)

    def url(self) -> str:
        # Its one message comes after the file.
        assert self._process.stderr is not None
        assert b"answers at" in self._process.stderr.readline()
        url: str = json.loads(self._ready.read_text())["url"]
        return url

    def end(self, number: int) -> int:
        self._process.send_signal(number)
        status = self._process.wait(20)
        assert self._process.stderr is not None
        self._process.stderr.close()
        return status


def test_a_key_is_made_once_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "witness-1"
    made = erxhub("witness", "keygen", "witness.test/1", "--folder", str(folder))
    assert read_vkey(made["vkey"], (4,)).name == "witness.test/1"
    assert stat.S_IMODE((folder / "witness.pem").stat().st_mode) == 0o600
    again = subprocess.run([*ERXHUB, "witness", "keygen", "x", "--folder", str(folder)], capture_output=True, text=True)
    assert again.returncode == 2
    assert "another witness" in again.stderr
    assert erxhub("witness", "show", "--folder", str(folder)) == {
        "name": "witness.test/1",
        "vkey": made["vkey"],
        "logs": [],
    }


@pytest.mark.campaign
async def test_a_killed_witness_forgets_nothing(tmp_path: Path, rounds: Callable[[int, int], int]) -> None:
    log, folder = Log(), tmp_path / "w"
    key = read_vkey(erxhub("witness", "keygen", "witness.test/1", "--folder", str(folder))["vkey"], (4,))
    confirmed = size = 0
    for _ in range(rounds(2, 30)):
        process = await asyncio.to_thread(Process, folder, log)
        client = WitnessClient(await asyncio.to_thread(process.url), key, SystemClock(), log_keys=(log.signer.key,))

        enough = asyncio.Event()

        async def grow(client: WitnessClient = client, enough: asyncio.Event = enough) -> None:
            nonlocal confirmed, size
            first = size
            while True:
                size += 1
                await client.cosign(log.note(size), log.prove(size))
                confirmed = size
                if confirmed >= first + 10:
                    enough.set()

        growing = asyncio.create_task(grow())
        await enough.wait()
        assert await asyncio.to_thread(process.end, signal.SIGKILL) == -signal.SIGKILL
        with pytest.raises(WitnessUnavailable):
            await growing
        # What was confirmed is recorded; at most the one in flight may be as well.
        (shown,) = (await asyncio.to_thread(erxhub, "witness", "show", "--folder", str(folder)))["logs"]
        assert confirmed <= shown["size"] <= size
        assert shown["root"] == log.root(shown["size"]).hex()
    process = await asyncio.to_thread(Process, folder, log)
    await asyncio.to_thread(process.url)
    assert await asyncio.to_thread(process.end, signal.SIGTERM) == 0
    assert not await asyncio.to_thread(lambda: list((folder / "records" / "evidence").iterdir()))


def test_a_log_key_that_is_none_is_a_usage_error(tmp_path: Path) -> None:
    words = [*ERXHUB, "witness", "serve", "--folder", str(tmp_path), "--log", "nonsense"]
    run = subprocess.run(words, capture_output=True, text=True)
    assert run.returncode == 2
    assert "--log" in run.stderr
