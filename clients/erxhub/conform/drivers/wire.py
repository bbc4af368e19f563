"""The driver protocol: one JSON object a line, on standard input and output or on one TCP connection.

Owns the framing, the order (one operation after the other) and what becomes of an error. Must never: know an operation.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

LINE_BYTES_MAX: Final = 16 * 1024 * 1024
_READ_BYTES: Final = 64 * 1024

Operation = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class Unsupported(Exception):
    """The product has no such operation, or not with these arguments."""


class Adapter(Protocol):
    """What a harness talks to."""

    operations: dict[str, Operation]

    def told_time(self, at_ms: int) -> None:
        """The hub's clock now, milliseconds since 1970."""

    async def close(self) -> None:
        """Lets go of connection and files."""


class _Writer(Protocol):
    def write(self, data: bytes) -> None: ...

    async def drain(self) -> None: ...


class _Output:
    """Standard output. A harness reads while it waits, so a blocking write is short."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "wb", buffering=0)

    def write(self, data: bytes) -> None:
        self._file.write(data)

    async def drain(self) -> None: ...


async def _answer(adapter: Adapter, line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
        number, name, arguments = request["id"], request["op"], request.get("args") or {}
        at_ms = request.get("at_ms")
        if not isinstance(arguments, dict):
            raise TypeError("args is no object")
    except (ValueError, KeyError, TypeError) as error:
        return {"id": None, "error": {"code": "bad_request", "message": f"{type(error).__name__}: {error}"}}
    operation = adapter.operations.get(name)
    if operation is None:
        return {"id": number, "error": {"code": "unsupported", "message": f"no operation {name}"}}
    if isinstance(at_ms, int):
        adapter.told_time(at_ms)
    try:
        return {"id": number, "result": await operation(arguments)}
    except Unsupported as error:
        return {"id": number, "error": {"code": "unsupported", "message": str(error)}}
    except (KeyError, ValueError, TypeError) as error:
        traceback.print_exc()
        return {"id": number, "error": {"code": "bad_request", "message": f"{type(error).__name__}: {error}"}}
    except Exception as error:  # noqa: BLE001 whatever it is, the harness hears of it and the driver goes on
        traceback.print_exc()
        return {"id": number, "error": {"code": "crash", "message": f"{type(error).__name__}: {error}"}}


async def _serve(adapter: Adapter, reader: asyncio.StreamReader, writer: _Writer) -> bool:
    """Answers until the input ends; True when the harness asked for the end."""
    while line := await reader.readline():
        if not line.strip():
            continue
        answer = await _answer(adapter, line)
        writer.write(json.dumps(answer, ensure_ascii=False).encode() + b"\n")
        await writer.drain()
        if answer.get("result") == {"outcome": "ok", "bye": True}:
            return True
    return False


async def farewell(_: dict[str, Any]) -> dict[str, Any]:
    """The operation `shutdown`: the answer after which the driver ends."""
    return {"outcome": "ok", "bye": True}


def _feed(loop: asyncio.AbstractEventLoop, reader: asyncio.StreamReader) -> None:
    """Standard input into the reader, until it ends. The driver may end before it does."""
    with contextlib.suppress(RuntimeError):  # of a loop that is closed
        while data := os.read(0, _READ_BYTES):
            loop.call_soon_threadsafe(reader.feed_data, data)
        loop.call_soon_threadsafe(reader.feed_eof)


async def _on_standard_streams(adapter: Adapter) -> None:
    reader = asyncio.StreamReader(limit=LINE_BYTES_MAX)
    # A thread, because the event loop waits for pipes and terminals only: input may also be a file, or /dev/null.
    threading.Thread(target=_feed, args=(asyncio.get_running_loop(), reader), name="input", daemon=True).start()
    # Whatever a library prints must not come between the answers.
    answers = _Output(os.dup(1))
    os.dup2(2, 1)
    await _serve(adapter, reader, answers)


async def _on_tcp(adapter: Adapter, address: str) -> None:
    host, _, port = address.rpartition(":")
    ended = asyncio.Event()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if await _serve(adapter, reader, writer):
                ended.set()
        finally:
            writer.close()

    server = await asyncio.start_server(connected, host.strip("[]"), int(port), limit=LINE_BYTES_MAX)
    sys.stderr.write(f"listening on port {server.sockets[0].getsockname()[1]}\n")
    sys.stderr.flush()
    await ended.wait()
    server.close()


def run(adapter: Callable[[], Adapter], description: str) -> None:
    """The main function of a driver."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--listen", metavar="HOST:PORT", help="serve on TCP instead of standard input and output")
    address: str | None = parser.parse_args().listen

    async def main() -> None:
        made = adapter()
        try:
            await (_on_standard_streams(made) if address is None else _on_tcp(made, address))
        finally:
            await made.close()

    asyncio.run(main())
