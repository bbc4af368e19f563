"""A driver under way: its process or its TCP connection, and the lines that go to and fro.

Owns: framing, deadlines, matching answers to requests, and telling each kind of misbehaviour by name. Must never: know
what an operation means, or let a driver's misbehaviour become an exception of anything but `DriverFault`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from erxhub.conform.model import Text
from erxhub.conform.vocabulary import OUTCOMES

LINE_BYTES_MAX: Final = 4 * 1024 * 1024
"""A longer answer is garbage: nothing that a driver says is that large."""
GARBAGE_LINES_MAX: Final = 50
"""So many bad lines are kept; then the driver is ended."""
STDERR_BYTES_KEPT: Final = 32 * 1024
"""Kept from the beginning, and as much from the end."""
OPERATION_MS: Final = 10_000
CONFIGURE_MS: Final = 30_000
SHUTDOWN_MS: Final = 3_000
STDERR_MS: Final = 500
"""How long a driver that has ended may go on writing to its standard error."""

_READ_BYTES: Final = 64 * 1024
_SHOWN_CHARACTERS: Final = 200

FAULT_TEXTS: Final[Mapping[str, Text]] = {
    "DRV_NOT_STARTED": Text("The driver cannot be started.", "驱动无法启动。"),
    "DRV_CRASHED": Text("The driver ended in the middle of its work.", "驱动在执行过程中退出。"),
    "DRV_HANGS": Text("The driver did not answer in time.", "驱动未在时限内应答。"),
    "DRV_GARBAGE": Text("The driver wrote something that is no answer.", "驱动输出了不属于应答的内容。"),
    "DRV_ANSWERED_TWICE": Text("The driver answered one request twice.", "驱动对同一请求应答了两次。"),
    "DRV_UNKNOWN_ID": Text("The driver answered a request that nobody made.", "驱动应答了不存在的请求。"),
    "DRV_SHAPE": Text("The driver's answer has another form than the protocol's.", "驱动应答的格式不符合协议。"),
    "DRV_LINE_TOO_LONG": Text("The driver wrote a line without end.", "驱动输出的单行过长。"),
    "DRV_ERROR": Text("The driver says that it could not do the operation.", "驱动报告操作未能执行。"),
}


class DriverFault(Exception):
    """A driver did not keep the protocol. `code` is a key of FAULT_TEXTS, `detail` what was seen."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(f"{code}: {FAULT_TEXTS[code].en} {detail}".rstrip())
        self.code = code
        self.detail = detail

    @property
    def text(self) -> Text:
        """What it means, in both languages."""
        return FAULT_TEXTS[self.code]


class OperationUnsupported(Exception):
    """The driver says that the product cannot do this."""


class KeptOutput:
    """The beginning and the end of what somebody writes without end."""

    def __init__(self, kept_bytes: int = STDERR_BYTES_KEPT) -> None:
        self._kept_bytes = kept_bytes
        self._head = bytearray()
        self._tail = bytearray()
        self.bytes = 0

    def add(self, data: bytes) -> None:
        """Takes what was read."""
        self.bytes += len(data)
        room = max(0, self._kept_bytes - len(self._head))
        self._head += data[:room]
        self._tail += data[room:]
        if len(self._tail) > 2 * self._kept_bytes:
            del self._tail[: -self._kept_bytes]

    def text(self) -> str:
        """What is kept, with a line that says how much is missing between."""
        tail = self._tail[-self._kept_bytes :]
        missing = self.bytes - len(self._head) - len(tail)
        between = f"\n… {missing} bytes left out …\n" if missing else ""
        return (bytes(self._head) + between.encode() + bytes(tail)).decode("utf-8", "replace")


def is_tcp(command: str) -> bool:
    """Whether a driver is connected to and not started."""
    return command.startswith("tcp://")


class _Exit(asyncio.subprocess.SubprocessStreamProtocol):
    """Tells when a process has ended; asyncio's own `wait` waits for its pipes too, which a child may keep open."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit=_READ_BYTES, loop=loop)
        self.exited = asyncio.Event()

    def process_exited(self) -> None:
        """Called by the loop."""
        super().process_exited()
        self.exited.set()


class Driver:
    """One running driver. `faults` are the misbehaviours that were seen and not yet taken."""

    def __init__(self, command: str, *, operation_ms: int = OPERATION_MS) -> None:
        """`command` is a command line, or tcp://HOST:PORT."""
        self.command = command
        self.operation_ms = operation_ms
        self.stderr = KeptOutput()
        self._faults: list[DriverFault] = []
        self._process: Process | None = None
        self._exited = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._group_lives = False
        self._pending: dict[int, asyncio.Future[Mapping[str, Any]]] = {}
        self._answered: set[int] = set()
        self._given_up: set[int] = set()
        self._next_id = 0
        self._given_over = False
        self._ended: DriverFault | None = None

    @property
    def can_be_killed(self) -> bool:
        """Whether there is a process of ours to kill."""
        return not is_tcp(self.command)

    @property
    def usable(self) -> bool:
        """Whether it runs and has not misbehaved."""
        return self._writer is not None and self._ended is None and not self._faults and not self._given_over

    def take_faults(self) -> list[DriverFault]:
        """The misbehaviours since the last time."""
        taken, self._faults = self._faults, []
        return taken

    def give_up(self) -> None:
        """It is not used again, only ended."""
        self._given_over = True

    async def start(self) -> None:
        """Also after `kill`. Raises DriverFault DRV_NOT_STARTED."""
        self._ended, self._given_over = None, False
        self._answered.clear()
        self._given_up.clear()
        self._pending.clear()
        try:
            reader = await (self._connect() if is_tcp(self.command) else self._spawn())
        except (OSError, ValueError) as error:
            raise DriverFault("DRV_NOT_STARTED", str(error)) from None
        self._tasks.append(asyncio.create_task(self._read(reader), name="driver answers"))

    async def _connect(self) -> asyncio.StreamReader:
        host, _, port = self.command.removeprefix("tcp://").rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"{self.command} is not tcp://HOST:PORT")
        async with asyncio.timeout(CONFIGURE_MS / 1000):
            reader, self._writer = await asyncio.open_connection(host.strip("[]"), int(port))
        return reader

    async def _spawn(self) -> asyncio.StreamReader:
        arguments = shlex.split(self.command)
        if not arguments:
            raise ValueError("the command is empty")
        # A session of its own, so that a kill reaches what the driver has started too.
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.subprocess_exec(
            lambda: _Exit(loop), *arguments, stdin=PIPE, stdout=PIPE, stderr=PIPE, start_new_session=True
        )
        self._process = Process(transport, protocol, loop)
        self._exited = protocol.exited
        self._group_lives = True
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._writer = self._process.stdin
        self._tasks.append(asyncio.create_task(self._read_stderr(self._process.stderr), name="driver stderr"))
        self._tasks.append(asyncio.create_task(self._watch(), name="driver process"))
        return self._process.stdout

    async def call(self, op: str, args: Mapping[str, Any], at_ms: int, *, deadline_ms: int = 0) -> Mapping[str, Any]:
        """One operation; the members of its `result`. Raises DriverFault, OperationUnsupported.

        Args:
            at_ms: the hub's clock.
            deadline_ms: real; 0: the driver's, or that of `configure`.
        """
        loop = asyncio.get_running_loop()
        number, future = self._begin(loop)
        limit_ms = deadline_ms or (CONFIGURE_MS if op == "configure" else self.operation_ms)
        line = json.dumps({"id": number, "op": op, "args": args, "at_ms": at_ms}, ensure_ascii=False)
        try:
            async with asyncio.timeout(limit_ms / 1000):
                await self._write(line.encode() + b"\n")
                answer = await future
        except TimeoutError:
            self._given_up.add(number)
            raise DriverFault("DRV_HANGS", f"{op} took more than {limit_ms} ms") from None
        finally:
            self._pending.pop(number, None)
        return self._understood(op, answer)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> tuple[int, asyncio.Future[Mapping[str, Any]]]:
        if self._ended is not None:
            raise DriverFault(self._ended.code, self._ended.detail)
        if self._writer is None:
            raise DriverFault("DRV_NOT_STARTED")
        self._next_id += 1
        future: asyncio.Future[Mapping[str, Any]] = loop.create_future()
        self._pending[self._next_id] = future
        return self._next_id, future

    async def _write(self, data: bytes) -> None:
        assert self._writer is not None
        try:
            self._writer.write(data)
            await self._writer.drain()
        except (ConnectionError, BrokenPipeError):
            # The reader sees the end as well, and knows how the process ended.
            return

    @staticmethod
    def _understood(op: str, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        if "error" in answer:
            error = answer["error"]
            code, message = str(error.get("code", "")), str(error.get("message", ""))
            if code == "unsupported":
                raise OperationUnsupported(message or op)
            raise DriverFault("DRV_CRASHED" if code == "crash" else "DRV_ERROR", f"{op}: {code} {message}")
        result: Mapping[str, Any] = answer["result"]
        if op != "describe" and result.get("outcome") not in OUTCOMES:
            raise DriverFault("DRV_SHAPE", f"{op}: the outcome is {result.get('outcome')!r}")
        return result

    # ---- what comes back ----

    async def _read(self, reader: asyncio.StreamReader) -> None:
        rest = b""
        while True:
            try:
                data = await reader.read(_READ_BYTES)
            except OSError:
                data = b""
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.strip():
                    self._take_line(line)
            if len(rest) > LINE_BYTES_MAX:
                self._misbehaved("DRV_LINE_TOO_LONG", f"{len(rest)} bytes and no end of line")
                break
            if len(self._faults) >= GARBAGE_LINES_MAX:
                break
        if rest.strip() and len(rest) <= LINE_BYTES_MAX:
            self._misbehaved("DRV_GARBAGE", f"a line without an end: {_cut(rest)}")
        await self._end()

    async def _watch(self) -> None:
        """A child of a driver that has ended may keep its output open; nobody answers there any more."""
        await self._exited.wait()
        answers = [task for task in self._tasks if task.get_name() == "driver answers"]
        if answers:
            await asyncio.wait(answers, timeout=STDERR_MS / 1000)
        await self._end()

    async def _end(self) -> None:
        if self._ended is not None:
            return
        self._kill_process()
        detail = "the connection was closed"
        if self._process is not None:
            await self._exited.wait()
            code = self._process.returncode or 0
            detail = f"exit code {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"
        # One that was ended for what it wrote has not crashed.
        flooded = len(self._faults) >= GARBAGE_LINES_MAX or any(one.code == "DRV_LINE_TOO_LONG" for one in self._faults)
        self._ended = self._faults[-1] if flooded else DriverFault("DRV_CRASHED", detail)
        for future in self._pending.values():
            if not future.done():
                future.set_exception(self._ended)

    def _take_line(self, line: bytes) -> None:
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            self._misbehaved("DRV_GARBAGE", _cut(line))
            return
        number = answer.get("id") if isinstance(answer, dict) else None
        if not isinstance(number, int) or isinstance(number, bool):
            self._misbehaved("DRV_SHAPE", f"no id of a request: {_cut(line)}")
        elif number in self._answered:
            self._misbehaved("DRV_ANSWERED_TWICE", _cut(line))
        elif number in self._given_up:
            # Too late, and known as that already.
            self._answered.add(number)
        elif number not in self._pending:
            self._misbehaved("DRV_UNKNOWN_ID", _cut(line))
        elif not _has_shape(answer):
            self._misbehaved("DRV_SHAPE", _cut(line), number)
        else:
            self._answered.add(number)
            future = self._pending[number]
            if not future.done():
                future.set_result(answer)

    def _misbehaved(self, code: str, detail: str, number: int | None = None) -> None:
        fault = DriverFault(code, detail)
        if len(self._faults) < GARBAGE_LINES_MAX:
            self._faults.append(fault)
        future = self._pending.get(number) if number is not None else None
        if future is not None and not future.done():
            future.set_exception(fault)

    async def _read_stderr(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_READ_BYTES):
                self.stderr.add(data)

    # ---- the end ----

    async def shut_down(self, at_ms: int) -> None:
        """Asks it to end, and ends it when it does not. One that runs by itself is left running. Never raises."""
        if self.usable and not is_tcp(self.command):
            with contextlib.suppress(DriverFault, OperationUnsupported):
                await self.call("shutdown", {}, at_ms, deadline_ms=SHUTDOWN_MS)
                if self._process is not None:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(SHUTDOWN_MS / 1000):
                            await self._exited.wait()
        await self.kill()

    async def kill(self) -> None:
        """SIGKILL to the process and all that it started, or the end of the connection. Never raises."""
        self._kill_process()
        if self._process is not None:
            await self._exited.wait()
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
            self._writer = None
        # What lies in the pipe belongs to the report; a grandchild may keep it open for good.
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STDERR_MS / 1000)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self._ended = self._ended or DriverFault("DRV_CRASHED", "ended by the harness")

    def _kill_process(self) -> None:
        # Once: the number of a group that has ended may be another's later.
        if self._process is not None and self._group_lives:
            self._group_lives = False
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)


def _has_shape(answer: Mapping[str, Any]) -> bool:
    if ("result" in answer) == ("error" in answer):
        return False
    return isinstance(answer.get("result", answer.get("error")), dict)


def _cut(line: bytes) -> str:
    text = line.decode("utf-8", "replace").strip()
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def ensure_folder(path: Path) -> Path:
    """The folder, made where it is missing and readable by its owner alone."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path
