"""The witness over HTTP: connections, paths and methods.

Owns the limits on what a stranger may send and how slowly. It must never decide anything about a checkpoint.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from erxhub.witness import http
from erxhub.witness.protocol import ADD_CHECKPOINT, BODY_BYTES_MAX, TEXT_TYPE
from erxhub.witness.witness import Answer, Witness

_log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 256
"""A witness serves a handful of logs; more connections than this are turned away with 503."""
HEAD_SECONDS: Final = 15.0
"""For the whole head of a request, and for an idle connection to send the next one."""
BODY_SECONDS: Final = 15.0
WRITE_SECONDS: Final = 15.0
LINGER_SECONDS: Final = 2.0


class WitnessServer:
    """Serves one witness."""

    def __init__(
        self, witness: Witness, *, head_seconds: float = HEAD_SECONDS, connections_max: int = CONNECTIONS_MAX
    ) -> None:
        self._witness = witness
        self._head_seconds = head_seconds
        self._connections_max = connections_max
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; port 0 takes a free one. Returns the port. Raises OSError."""
        self._server = await asyncio.start_server(self._connected, host, port, limit=http.stream_limit())
        listening: int = self._server.sockets[0].getsockname()[1]
        return listening

    async def stop(self) -> None:
        """Stop listening and end every connection."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        is_full = len(self._connections) >= self._connections_max
        self._connections.add(task)
        try:
            if is_full:
                await self._send(writer, _said(503, "too many connections"), stays=False)
                await _lingered(reader, writer)
            else:
                while await self._one(reader, writer):
                    pass
        except (OSError, TimeoutError):
            pass  # the other side is gone, or too slow for an answer
        except asyncio.CancelledError:
            pass  # the server stops; asyncio would report a connection that ends by it as an error
        finally:
            self._connections.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one request; whether the connection stays."""
        try:
            async with asyncio.timeout(self._head_seconds):
                head = await http.read_request_head(reader)
            if head is None:
                return False
            if head.headers.get("expect", "").lower() == "100-continue":
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            async with asyncio.timeout(BODY_SECONDS):
                body = await http.read_body(reader, head, BODY_BYTES_MAX)
        except http.BadMessage as bad:
            await self._send(writer, _said(bad.status, str(bad)), stays=False)
            await _lingered(reader, writer)
            return False
        method, target, _version = head.line
        answer = await self._answer(method, target.partition("?")[0], body)
        await self._send(writer, answer, stays=head.stays, with_body=method != "HEAD")
        return head.stays

    async def _answer(self, method: str, path: str, body: bytes) -> Answer:
        if path == ADD_CHECKPOINT:
            if method != "POST":
                return _said(405, "POST only")
            return await self._witness.add_checkpoint(body)
        hashed, slash, rest = path.removeprefix("/").partition("/")
        if slash and rest == "checkpoint":
            if method not in ("GET", "HEAD"):
                return _said(405, "GET only")
            return await self._witness.newest(hashed)
        return _said(404, "nothing is here")

    async def _send(self, writer: asyncio.StreamWriter, answer: Answer, *, stays: bool, with_body: bool = True) -> None:
        headers = {"Content-Type": answer.content_type, "Connection": "keep-alive" if stays else "close"}
        if answer.status == 405:
            headers["Allow"] = answer.body.decode("ascii").partition(" ")[0]
        writer.write(http.write_message(http.status_line(answer.status), headers, answer.body, with_body=with_body))
        async with asyncio.timeout(WRITE_SECONDS):
            await writer.drain()


async def _lingered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take in what the other side is still sending: closing on it would take the answer from under its eyes."""
    writer.write_eof()
    taken = 0
    async with asyncio.timeout(LINGER_SECONDS):
        while taken < BODY_BYTES_MAX and (part := await reader.read(http.HEAD_BYTES_MAX)):
            taken += len(part)


def _said(status: int, words: str) -> Answer:
    return Answer(status, TEXT_TYPE, f"{words}\n".encode())
