"""Help: it begins with an example, needs nothing slow, and answers at once."""

import json
import resource
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from erxhub.cli.main import VERBS, main

HELP_CPU_SECONDS = 0.3
_WALK = """
import json, sys
import click
from erxhub.cli.main import main

def walk(command, name):
    context = click.Context(command, info_name=name)
    pages[name] = command.get_help(context)
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            walk(command.get_command(context, child), f"{name} {child}")

pages = {}
walk(main, "erxhub")
slow = [name for name in ("grpc", "cryptography", "rich", "google.protobuf", "erxhub.client") if name in sys.modules]
print(json.dumps({"pages": pages, "slow": slow}))
"""


@pytest.fixture(scope="module")
def walked() -> dict[str, object]:
    """Every page of help, made in a fresh interpreter, and the slow modules that this took."""
    run = subprocess.run([sys.executable, "-c", _WALK], capture_output=True, text=True, check=True)
    found: dict[str, object] = json.loads(run.stdout)
    return found


def _commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None
            yield from _commands(found, f"{name} {child}")


def test_every_help_starts_with_an_example_of_itself(walked: dict[str, object]) -> None:
    pages = walked["pages"]
    assert isinstance(pages, dict)
    assert set(VERBS) <= {name.split(" ")[1] for name in pages if " " in name}
    for name, page in pages.items():
        first, second = page.splitlines()[:2]
        assert first == "Example:", name
        assert second.strip().startswith(name), name


def test_help_imports_neither_grpc_nor_cryptography(walked: dict[str, object]) -> None:
    assert walked["slow"] == []


@pytest.mark.parametrize("words", [(), ("rx",), ("registry", "add", "person"), ("doctor",)])
def test_help_answers_at_once(words: tuple[str, ...]) -> None:
    def cpu_seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "erxhub.cli", *words, "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(cpu_seconds() for _ in range(3)) < HELP_CPU_SECONDS


def test_every_option_has_a_help_text_or_speaks_for_itself() -> None:
    for name, command in _commands(main, "erxhub"):
        assert command.help, name


def test_an_unknown_verb_is_a_usage_error() -> None:
    run = subprocess.run([sys.executable, "-m", "erxhub.cli", "nonsense"], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stdout == ""
