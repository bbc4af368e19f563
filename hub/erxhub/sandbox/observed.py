"""gRPC's context as the hub sees it through the exchanges: what the hub answers is kept here and told by them.

Owns the stand-in. It never answers a caller itself: whether the hub's answer reaches him is decided behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import grpc

from erxhub.rpc.dispatch import SENT_AT_HEADER
from erxhub.sandbox.answers import DETAILS_KEY, Status


class Observed:
    """The context of one call. `status` is what the hub aborted it with; `skew_ms` how far its caller's clock is off.

    `opened` is called when the hub says that a stream stands.
    """

    __slots__ = ("_auth", "_context", "_now_ms", "opened", "skew_ms", "status")

    def __init__(self, context: Any, now_ms: Callable[[], int]) -> None:
        self._context = context
        self._now_ms = now_ms
        self._auth: Any = None
        self.status: Status | None = None
        self.skew_ms = 0
        self.opened: Callable[[], None] | None = None

    def auth_context(self) -> Any:
        """Who calls, asked of gRPC once."""
        if self._auth is None:
            self._auth = self._context.auth_context()
        return self._auth

    @property
    def certificate(self) -> bytes:
        """The caller's certificate, PEM, or b""."""
        return bytes(next(iter(self.auth_context().get("x509_pem_cert", ())), b""))

    def invocation_metadata(self) -> Any:
        """The caller's metadata; with a skew its clock is as far off."""
        metadata = self._context.invocation_metadata() or ()
        if not self.skew_ms:
            return metadata
        sent: Any = None
        kept = []
        for key, value in metadata:
            if key == SENT_AT_HEADER:
                sent = value if isinstance(value, str) else value.decode("ascii", "replace")
            else:
                kept.append((key, value))
        at_ms = int(sent) if sent is not None and sent.isdecimal() else self._now_ms()
        return (*kept, (SENT_AT_HEADER, str(max(at_ms + self.skew_ms, 0))))

    def aborted_with(self) -> Status:
        """What the hub aborted the call with. Called once it has."""
        assert self.status is not None
        return self.status

    async def send_initial_metadata(self, metadata: Any) -> None:
        """Pass it on, and tell that the stream stands."""
        await self._context.send_initial_metadata(metadata)
        if self.opened is not None:
            self.opened()

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        """Keep the status and end the hub's part of the call."""
        packed = b""
        for key, value in trailing_metadata:
            if key == DETAILS_KEY:
                packed = value
        self.status = Status(code, details, packed)
        raise grpc.aio.AbortError
