"""The loop that a server's process runs on."""

from __future__ import annotations

import asyncio
import sys

import pytest

from erxhub import process


async def _module_of_the_loop() -> str:
    return type(asyncio.get_running_loop()).__module__


@pytest.mark.skipif(sys.platform == "win32", reason="uvloop is not made for this system; the other test covers it")
def test_a_server_runs_on_uvloop() -> None:
    assert process.run(_module_of_the_loop()).startswith("uvloop")


def test_without_uvloop_a_server_runs_on_asyncios_own_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert process.run(_module_of_the_loop()).startswith("asyncio")
