"""Starting and stopping the two servers, and reading the CPU time that one has used."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from erxhub.process import TRANSPORT

HUB = "tests.bench.hub_server"
HUB_LOOP = "--hub-loop"
"""The option of an echo that is to have what `erxhub serve` sets for its process: event loop and transport."""

ROOT = Path(__file__).resolve().parents[2]
_START_S = 30.0
_STOP_S = 60.0


class ServerProcess:
    """A server in a process of its own. Use it as a context manager; `port` is where it listens."""

    def __init__(self, module: str, *arguments: str, interpreted: bool = False) -> None:
        """`interpreted`: from the .py files, also where the benchmark itself runs on compiled ones."""
        environment = {name: value for name, value in os.environ.items() if not interpreted or name != "PYTHONPATH"}
        if module == HUB or HUB_LOOP in arguments:
            environment = {**TRANSPORT, **environment}
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], _START_S)
        line = self._process.stdout.readline() if ready else ""
        if not line.strip().isdigit():
            self._process.kill()
            self._process.wait()
            raise RuntimeError(f"{module} did not start")
        self.port = int(line)

    def cpu_ns(self) -> int:
        """CPU time that the server has used: user and system time of all its threads, also of those that ended.

        Processes that it has started count with it while they run.
        """
        return sum(process_cpu_ns(pid) for pid in _family(self._process.pid))

    def resident_bytes(self) -> int:
        """Memory of the server that is in RAM."""
        shown = subprocess.run(
            ["ps", "-o", "rss=", "-p", str(self._process.pid)], capture_output=True, text=True, check=True
        )
        return int(shown.stdout) * 1024

    def stop(self) -> None:
        """Ends the server in good order; raises when it does not end, or ends badly."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            code = self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        if code:
            raise RuntimeError(f"a server ended with exit status {code}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.stop()
        else:
            self._process.kill()
            self._process.wait()


def family_cpu_ns(pid: int) -> int:
    """CPU time of a process and all that it has started, those that have ended too (in ticks of 10 ms)."""
    ended = 0
    if sys.platform == "linux":
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        ended = (int(fields[13]) + int(fields[14])) * 10_000_000  # cutime and cstime
    return ended + sum(process_cpu_ns(member) for member in _family(pid))


def _family(pid: int) -> list[int]:
    """A process and those that it has started, and so on."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents():
        children.setdefault(parent, []).append(child)
    family = [pid]
    for member in family:
        family += children.get(member, [])
    return family


def _parents() -> Iterator[tuple[int, int]]:
    """Every process and its parent."""
    if sys.platform != "linux":
        shown = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        for line in shown.splitlines():
            child, parent = line.split()
            yield int(child), int(parent)
        return
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):  # it has ended meanwhile
                # The name, in brackets, may hold anything; the state and the parent follow it.
                yield (
                    int(folder.name),
                    int((folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[1]),
                )


def process_cpu_ns(pid: int) -> int:
    """CPU time of a process so far, all threads together, in nanoseconds.

    On Linux this is the process's own CPU clock, which counts to the nanosecond what /proc/<pid>/stat shows in ticks
    of 10 ms. Elsewhere `ps` is asked, which is coarser.
    """
    if sys.platform == "linux":
        # What clock_getcpuclockid(3) returns: the process's number, inverted, over the kind of clock (2: scheduled).
        return time.clock_gettime_ns((~pid << 3) | 2)
    shown = subprocess.run(["ps", "-o", "cputime=", "-p", str(pid)], capture_output=True, text=True, check=True).stdout
    seconds = 0.0
    for part in shown.strip().replace("-", ":").split(":"):
        seconds = seconds * 60 + float(part)
    return int(seconds * 1e9)
