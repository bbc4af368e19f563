"""One dev hub for the command-line tests, in a process of its own, and a way to run commands in this one."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from erxhub.cli.main import main

Erxhub = Callable[..., Result]


def start_process(*words: str, until: str) -> tuple["subprocess.Popen[str]", str]:
    """`erxhub <words>` as a process, once it has printed a line with `until`, and that line."""
    process = subprocess.Popen(
        [sys.executable, "-m", "erxhub.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    printed = []
    for line in process.stdout:
        printed.append(line)
        if until in line:
            return process, line
    raise AssertionError(f"erxhub {words[0]} ended with {process.wait()}:\n{''.join(printed)}")


def stop_process(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """SIGTERM; (exit code, what was printed since the start)."""
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=30)
    return process.returncode, printed


@pytest.fixture(scope="session")
def dev_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of a dev hub that runs until the end of the session."""
    home = tmp_path_factory.mktemp("dev") / "home"
    process, _ = start_process("dev", "--home", str(home), until="Try in another terminal")
    yield home
    code, _ = stop_process(process)
    assert code == 0


def erxhub_in(home: Path) -> Erxhub:
    """Runs a command with this home."""

    def run(*words: str, **environment: str) -> Result:
        variables: dict[str, str | None] = {"ERXHUB_HOME": str(home), "ERXHUB_CONTEXT": None, "ERXHUB_SHARED": None}
        return CliRunner().invoke(main, words, env=variables | environment, catch_exceptions=False)

    return run


@pytest.fixture
def erxhub(tmp_path: Path) -> Erxhub:
    """Runs a command in an empty home."""
    return erxhub_in(tmp_path / "home")


@pytest.fixture
def at_dev(dev_home: Path) -> Erxhub:
    """Runs a command in the home of the dev hub."""
    return erxhub_in(dev_home)
