"""What a server's process sets for itself: its loop, and how gRPC serves connections."""

from __future__ import annotations

import asyncio
import os
import subprocess
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


def _in_a_process_of_its_own(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {name: value for name, value in os.environ.items() if name not in process.TRANSPORT}
    return subprocess.run(
        [sys.executable, "-c", code], env=given | environment, capture_output=True, text=True, check=True
    )


_SETTLED = "from erxhub import process; print(process.settle_transport()); import grpc, os; print(*("
_SETTLED += "os.environ.get(name) for name in process.TRANSPORT))"


def test_the_transport_is_set_before_grpc_is_loaded_and_grpc_knows_all_of_it() -> None:
    run = _in_a_process_of_its_own(_SETTLED)
    assert run.stdout.splitlines() == ["True", *process.TRANSPORT.values()]
    assert "Unknown experiment" not in run.stderr


def test_grpc_says_what_it_does_not_know_so_that_the_test_before_this_one_would_see_it() -> None:
    assert "Unknown experiment: nosuch" in _in_a_process_of_its_own(_SETTLED, GRPC_EXPERIMENTS="nosuch").stderr


def test_what_an_operator_has_set_stands() -> None:
    own = "-event_engine_fork"
    assert _in_a_process_of_its_own(_SETTLED, GRPC_EXPERIMENTS=own).stdout.splitlines() == ["True", own]


def test_with_grpc_loaded_it_is_too_late_and_nothing_is_set() -> None:
    assert _in_a_process_of_its_own("import grpc; " + _SETTLED).stdout.splitlines() == ["False", "None"]


def test_for_another_grpc_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "version", lambda _: "1.86.0")
    monkeypatch.delitem(sys.modules, "grpc", raising=False)
    before = dict(os.environ)
    assert not process.settle_transport()
    assert dict(os.environ) == before


_SERVED = """
import sys
from erxhub import process
def settle():
    print("settled", "grpc" in sys.modules)
    sys.exit()
process.settle_transport = settle
files = [word for option in ("--cert", "--key", "--ca") for word in (option, sys.executable)]
sys.argv = ["erxhub", "serve", "--db", "x", "--keys", "x", "--trust-domain", "x", *files]
from erxhub.cli.main import main
main()
"""


def test_serve_settles_the_transport_and_does_it_before_grpc_is_loaded() -> None:
    assert _in_a_process_of_its_own(_SERVED).stdout.strip() == "settled False"
