"""Every command of docs/sandbox.md works as it stands there, in the order of the page."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from erxhub.cli.main import main
from erxhub.client.fault_rules import ACTIONS, KEYS
from erxhub.testing.plugin import SEED, SETTINGS
from tests.cli.conftest import start_process, stop_process

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "sandbox.md").read_text(encoding="utf-8")
SHELL = [block.partition("\n")[2] for block in re.split(r"^```", PAGE, flags=re.MULTILINE)[1::2] if block[0] == "\n"]
COMMANDS = [line for block in SHELL for line in block.splitlines() if line.startswith("erxhub ")]
PORTS = ("--port", "7443", "--control-port", "7444")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, dict[str, str]]]:
    """The folder in which the page's first command runs, and what that sandbox said of itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ERXHUB_CONTEXT", raising=False)
    words = shlex.split(COMMANDS[0], comments=True)[1:]
    assert tuple(words[-4:]) == PORTS
    process, _ = start_process(*words[:-4], "--ready-file", "ready.json", until="Try in another terminal")
    monkeypatch.setenv("ERXHUB_HOME", str(tmp_path / "home"))
    yield tmp_path, dict(re.findall(r'"(\w+)": "([^"]+)"', (tmp_path / "ready.json").read_text()))
    code, _ = stop_process(process)
    assert code == 0


def test_the_commands_of_the_page_work_one_after_the_other(desk: tuple[Path, dict[str, str]]) -> None:
    assert len(COMMANDS) > 30
    for line in COMMANDS[1:]:
        words = shlex.split(line, comments=True)[1:]
        file = words.pop() if words[-2:-1] == [">"] else None
        if file:
            words.remove(">")
        done = CliRunner().invoke(main, words, catch_exceptions=False)
        assert done.exit_code == 0, (line, done.stderr)
        if file:
            Path(file).write_text(done.stdout, encoding="utf-8")


def test_the_control_port_is_called_from_any_language(desk: tuple[Path, dict[str, str]]) -> None:
    folder, ready = desk
    [call] = [block for block in SHELL if "buf curl" in block]
    buf = Path(sys.executable).with_name("buf")
    script = call.replace("buf curl", f"{buf} curl", 1).replace("localhost:7444", ready["control_target"])
    script = script.replace("--schema protos", f"--schema {ROOT / 'protos'}")
    done = subprocess.run(["sh", "-ec", script], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "nowMs" in done.stdout


def test_the_page_names_every_action_word_and_setting() -> None:
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    named = {word for row in rows for word in re.findall(r"`([^`]+)`", row)}
    assert set(ACTIONS) <= named
    assert {"do", "nth", "prob", "actor", "rx", "id", "max_consecutive", "max_total"} <= named
    words = set(re.findall(r"(\w+)=", PAGE))
    assert set(KEYS) - {"on", "id", "max_consecutive", "max_total", "rx"} <= words
    assert {f"--{name.replace('_', '-')}" for name in (*SETTINGS, SEED)} <= named
