"""Shared by all tests: the shared-folder fixture, the rounds of a campaign, what is compiled once, tests that hang, and
the report at the end.

Must never hold fixtures of one area; those live in that area's own conftest.py.
"""

import asyncio
import faulthandler
import os
import signal
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests import postgres
from tests import shared as shared_data
from tests.mutants.score import KILLED
from tests.postgres import postgres_server

__all__ = ["postgres_server"]

# Suites imported by several test modules: their asserts are rewritten like those of a test file.
pytest.register_assert_rewrite("tests.ledger.contract")

HANGS_AFTER_S = 180
"""The longest phase of a test takes a few tens of seconds on two quiet cores; campaigns take as long as they take."""

LONG_AREAS = ("several", "conform", "mutants", "races", "testing", "simulation")

BYTECODE = shared_data.ROOT / "build" / "bytecode"

_seconds: defaultdict[str, float] = defaultdict(float)
_tests: Counter[str] = Counter()
_mutants: list[bool] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--campaign", action="store_true", help="run races and crashes with the large numbers")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Areas with long tests begin first, so that no process is left alone with one at the end."""
    items.sort(key=lambda item: LONG_AREAS.index(area) if (area := _area(item.nodeid)) in LONG_AREAS else 99)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared data folder; the test is left out, and listed at the end, where it is absent."""
    return shared_data.shared_or_skip()


@pytest.fixture(scope="session")
def rounds(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """`rounds(20, 200)`: how often to repeat; the large number under --campaign."""
    campaign = bool(request.config.getoption("--campaign"))
    return lambda small, large: large if campaign else small


# ---- what is compiled once ----


def _keep_bytecode() -> None:
    """Where the environment wants no bytecode beside the sources, it is kept apart from them.

    A run starts a few hundred Python programs, and each would compile the same files again.
    """
    if sys.dont_write_bytecode:
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(BYTECODE)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(BYTECODE)


_keep_bytecode()


@pytest.fixture(scope="session", autouse=True)
def _field_rules_are_compiled_once() -> Iterator[None]:
    """Not by each of the hundreds of hubs that a process starts: they are a function of the .proto files alone."""
    import protovalidate

    compiled = protovalidate.Validator()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protovalidate, "Validator", lambda: compiled)
        yield


# ---- a test that hangs fails, and says where it stood ----


@contextmanager
def _hangs(item: pytest.Item, phase: str) -> Iterator[None]:
    if item.config.getoption("--campaign") or not hasattr(signal, "setitimer"):
        yield
        return

    def give_up(*_: object) -> None:
        with tempfile.TemporaryFile("w+") as stacks:
            faulthandler.dump_traceback(stacks)
            with suppress(RuntimeError):  # no loop runs
                for task in asyncio.all_tasks():
                    task.print_stack(limit=5, file=stacks)
            stacks.seek(0)
            pytest.fail(f"hangs: its {phase} was not over after {HANGS_AFTER_S} s\n{stacks.read()}", pytrace=False)

    before = signal.signal(signal.SIGALRM, give_up)
    # Again every few seconds, as the first may strike in a task of somebody else and end only that.
    signal.setitimer(signal.ITIMER_REAL, HANGS_AFTER_S, 5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    with _hangs(item, "set-up"):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with _hangs(item, "body"):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    with _hangs(item, "end"):
        return (yield)


# ---- the report at the end ----


def _area(nodeid: str) -> str:
    parts = nodeid.partition("::")[0].split("/")
    return parts[1] if len(parts) > 2 else "(all)"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    area = _area(report.nodeid)
    _seconds[area] += report.duration
    _tests[area] += report.when == "call"
    if report.when == "call":
        _mutants.extend(killed for name, killed in report.user_properties if name == KILLED)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _seconds:
        terminalreporter.section("time per area")
        for area, seconds in sorted(_seconds.items(), key=lambda item: -item[1]):
            terminalreporter.line(f"{seconds:8.2f} s  {_tests[area]:5d} tests  {area}")
    if _mutants:
        terminalreporter.section("mutation score")
        every = "" if terminalreporter.config.getoption("--campaign") else "; a sample, all of them with --campaign"
        terminalreporter.line(f"{sum(_mutants)} of {len(_mutants)} mutants killed{every}")
    _tell_left_out(
        terminalreporter, "the shared folder is absent", shared_data.ABSENT, f"{shared_data.VARIABLE} names the folder"
    )
    _tell_left_out(
        terminalreporter, f"{postgres.VARIABLE} is set", postgres.ABSENT, "PostgreSQL was not tested in this run"
    )


def _tell_left_out(terminalreporter: pytest.TerminalReporter, why: str, reason: str, advice: str) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    left_out = sorted({report.nodeid for report in skipped if reason in str(report.longrepr)})
    if left_out:
        terminalreporter.section(f"left out because {why}")
        for nodeid in left_out:
            terminalreporter.line(nodeid)
        terminalreporter.line(f"{len(left_out)} left out; {advice}")
