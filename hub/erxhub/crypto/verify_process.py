"""The hub's side of the process that verifies (`verify_worker`): it has an interpreter lock of its own.

Owns: the process and the socket to it, what was sent and not answered, and ending a process that does not answer.
Must never: lose a caller. Whatever was asked and not answered is given back when the process is gone.
"""

from __future__ import annotations

import asyncio
import marshal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple, cast

CALLERS_SENT_MAX: Final = 64  # in one batch: some 20 ms for three SM2 signatures each
ANSWER_WITHIN_S: Final = 5.0  # hundreds of times what a batch takes: a process that is slower than that is stuck

READY: Final = b"\x02"  # what the process says when it has loaded everything
LENGTH_SIZE: Final = 4  # bytes before each batch
_WORKER: Final = "erxhub.crypto.verify_worker"

Checks = Sequence[tuple[str, bytes, bytes, bytes]]
"""(suite, public key, message, signature) each."""


class Asked(NamedTuple):
    """The checks of one caller, and where it waits for the verdicts."""

    checks: Checks
    answer: asyncio.Future[list[bool]]


class VerifyProcess(asyncio.Protocol):
    """One process. `start` may run on any thread; everything else belongs to the loop of the callers.

    One batch is there at a time; what is asked meanwhile is the next one. Sending a second one ahead makes batches
    smaller, which costs more than the wait.

    `gone` gets, once, what was asked and not answered, when the process has ended for whatever reason.
    """

    def __init__(self, gone: Callable[[Iterable[Asked]], None]) -> None:
        self.ready = False
        self.answered = False
        self._gone = gone
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[Asked] = deque()
        self._sent: list[Asked] = []
        self._received = bytearray()
        self._flush: asyncio.Handle | None = None
        self._stuck: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Starts the process. Raises OSError where it cannot be started."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                # Without the working directory in its search path (-P): it may be anybody's.
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", _WORKER], stdin=theirs.fileno(), stdout=theirs.fileno()
                )
            except BaseException:
                ours.close()
                raise
        self._socket = ours

    async def connect(self) -> None:
        """Once it is started; `ready` comes some 0.2 s later. A loop that cannot do it leaves it never ready."""
        assert self._socket is not None
        try:
            await asyncio.get_running_loop().create_connection(lambda: self, sock=self._socket)
        except (OSError, NotImplementedError):
            self.close()

    # ---- callers ----

    def ask(self, asked: Asked) -> None:
        """Takes a caller's checks; `ready` must be true. What is asked in one turn of the loop goes out together."""
        self._waiting.append(asked)
        if self._flush is None and not self._sent:
            self._flush = asyncio.get_running_loop().call_soon(self._send)

    def close(self) -> None:
        """Ends the process; callers who still wait are cancelled."""
        self._gone = _cancel
        if self._transport is not None:
            self._transport.abort()
        self._end()

    # ---- the socket ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if not self.ready:
            if data[:1] != READY:
                self._abort()
                return
            self.ready, data = True, data[1:]
        self._received += data
        expected = sum(len(checks) for checks, _ in self._sent)
        if len(self._received) > expected:
            self._abort()  # it says what nobody asked
        elif self._sent and len(self._received) == expected:
            self._answer()
            if self._waiting:
                self._send()

    def connection_lost(self, error: Exception | None) -> None:
        self._end()

    # ---- batches ----

    def _send(self) -> None:
        self._flush = None
        while self._waiting and len(self._sent) < CALLERS_SENT_MAX:
            asked = self._waiting.popleft()
            if not asked.answer.done():
                self._sent.append(asked)
        if self._sent and self._transport is not None:
            content = marshal.dumps([tuple(check) for asked in self._sent for check in asked.checks])
            self._transport.write(len(content).to_bytes(LENGTH_SIZE, "big") + content)
            self._stuck = asyncio.get_running_loop().call_later(ANSWER_WITHIN_S, self._abort)

    def _answer(self) -> None:
        verdicts, sent = [verdict == 1 for verdict in self._received], self._sent
        self._received, self._sent, self.answered = bytearray(), [], True
        if self._stuck is not None:
            self._stuck.cancel()
        start = 0
        for checks, answer in sent:
            end = start + len(checks)
            if not answer.done():
                answer.set_result(verdicts[start:end])
            start = end

    # ---- the end ----

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()  # the loop then calls `connection_lost`

    def _end(self) -> None:
        self.ready = False
        for handle in (self._flush, self._stuck):
            if handle is not None:
                handle.cancel()
        if self._socket is not None:
            self._socket.close()
        process, self._process = self._process, None
        if process is not None:
            with suppress(OSError):
                process.kill()
            process.wait()
        left = [*self._sent, *self._waiting]
        self._sent = []
        self._waiting.clear()
        self._gone(left)
        self._gone = _cancel


def _cancel(left: Iterable[Asked]) -> None:
    for asked in left:
        asked.answer.cancel()
