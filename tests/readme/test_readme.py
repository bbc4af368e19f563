"""What the README tells a new user to type works as it stands there, in both languages."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from erxhub.cli.main import main

ROOT = Path(__file__).parents[2]
READMES = ("README.md", "README.zh-CN.md")
PERSON = "33010000990001"


def blocks(readme: str, language: str) -> list[str]:
    """The fenced blocks of one language; "" for those without one."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    # Fences come in pairs, so every second part is a block; its first line is the language.
    fenced = [part.partition("\n") for part in re.split(r"^```", text, flags=re.MULTILINE)[1::2]]
    return [body for name, _, body in fenced if name == language]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The folder in which `erxhub dev --home ./home` runs, and its address."""
    folder = tmp_path_factory.mktemp("readme")
    process = subprocess.Popen(
        [sys.executable, "-m", "erxhub.cli", "dev", "--home", "./home", "--ready-file", "ready.json"],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    # The introduction is printed before the ready file is written, and ends with what to try next.
    for line in process.stdout:
        if "voucher activate" in line:
            break
    while not (folder / "ready.json").exists():
        assert process.poll() is None
    yield folder, json.loads((folder / "ready.json").read_text())["target"]
    process.terminate()
    process.wait()
    process.stdout.close()


def run(folder: Path, arguments: list[str], given: str = "") -> str:
    environment = os.environ | {"ERXHUB_HOME": str(folder / "home")}
    done = subprocess.run(
        arguments, cwd=folder, env=environment, input=given, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def code(folder: Path) -> str:
    """A fresh code on the patient's screen, as the README says to get one."""
    erxhub = [sys.executable, "-m", "erxhub.cli"]
    issued = run(folder, [*erxhub, "voucher", "issue", PERSON, "--for", "download", "-o", "json"])
    return str(json.loads(issued)["voucher_code"])


@pytest.fixture(scope="module")
def activated(started: tuple[Path, str]) -> tuple[Path, str]:
    """The same, with the patient's e-voucher activated."""
    run(started[0], [sys.executable, "-m", "erxhub.cli", "voucher", "activate", PERSON])
    return started


@pytest.mark.parametrize("readme", READMES)
def test_python_programs_run_as_they_stand(readme: str, activated: tuple[Path, str]) -> None:
    folder, target = activated
    programs = blocks(readme, "python")
    assert len(programs) == 3
    for program in programs:
        run(folder, [sys.executable, "-c", program.replace("localhost:7443", target)], code(folder) + "\n")


@pytest.mark.parametrize("readme", READMES)
def test_calls_from_any_language_run_as_they_stand(readme: str, activated: tuple[Path, str]) -> None:
    folder, target = activated
    buf = Path(sys.executable).with_name("buf")
    calls = [block for block in blocks(readme, "") if "buf curl" in block]
    assert calls
    for call in calls:
        script = call.replace("buf curl", f"{buf} curl", 1).replace("localhost:7443", target)
        run(folder, ["sh", "-ec", script.replace("CODE", code(folder))])


@pytest.mark.parametrize("readme", READMES)
def test_commands_have_the_options_that_the_readme_names(
    readme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("rx.bundle", "P"):  # what the examples verify, and by which policy
        Path(name).touch()
    lines = [
        line.partition("#")[0].strip()
        for block in blocks(readme, "")
        for line in block.splitlines()
        if line.startswith("erxhub ")
    ]
    assert len(lines) >= 6
    for line in lines:
        arguments = shlex.split(line)[1:]
        command: click.Command = main
        context = click.Context(main)
        while isinstance(command, click.Group):
            found = command.get_command(context, arguments.pop(0))
            assert found is not None, line
            command = found
        command.make_context("erxhub", arguments)


@pytest.mark.parametrize("readme", READMES)
def test_links_lead_somewhere(readme: str) -> None:
    text = (ROOT / readme).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / target).exists(), target
