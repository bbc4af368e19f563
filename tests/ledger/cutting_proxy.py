"""A TCP proxy that cuts a PostgreSQL connection at a COMMIT, on whichever side of it the test wants."""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Self

_COMMIT = b"COMMIT"


class Cut(Enum):
    """Where the next COMMIT meets the cut."""

    BEFORE = "before"
    """It never reaches the server."""
    DURING = "during"
    """It is sent and the connection cut at once: the server may be anywhere in it."""
    AFTER = "after"
    """It is done, and the answer never comes back."""


class CuttingProxy:
    """Passes bytes between clients and one server until it is armed; one cut, then it passes again."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._server: asyncio.Server | None = None
        self._armed: Cut | None = None
        self.cuts = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def arm(self, cut: Cut) -> None:
        """Cut at the next COMMIT of any connection."""
        self._armed = cut

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        answers = asyncio.create_task(_pass_on(from_server, writer))
        while data := await reader.read(65536):
            cut = self._armed if _COMMIT in data else None
            if cut is None:
                to_server.write(data)
                continue
            self._armed, self.cuts = None, self.cuts + 1
            answers.cancel()
            await asyncio.gather(answers, return_exceptions=True)
            if cut is not Cut.BEFORE:
                to_server.write(data)
                await to_server.drain()
            if cut is Cut.AFTER:
                await from_server.read(1)  # the server has answered, so the commit is over
            break
        for side in (writer, to_server):
            side.transport.abort()
        answers.cancel()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()
