"""gRPC's context as the sandbox passes it on: what the hub answers is kept here and told by whoever stands in between.

Owns the stand-in, made once for each call. The hub's own `abort` never reaches the caller: whether he gets that answer
is decided behind it, and `answer` tells him.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import grpc

from erxhub.rpc.steps import SENT_AT_HEADER
from erxhub.sandbox.answers import DETAILS_KEY, Status
from erxhub.sandbox.recorder import CANCELLED, Record


class Observed:
    """The context of one call.

    `actor` is None until somebody read the certificate, `record` is set once the call is recorded, `status` is what the
    hub aborted it with, `if_cut` what its caller sees should the connection be cut under it. `opened` is called when
    the hub says that a stream stands.
    """

    __slots__ = ("_certificate", "_context", "_sent_at", "actor", "if_cut", "opened", "record", "status")

    record: Record

    def __init__(self, context: Any) -> None:
        self._context = context
        self._certificate: bytes | None = None
        self._sent_at: Callable[[int | None], int] | None = None
        self.actor: str | None = None
        self.status: Status | None = None
        self.if_cut = CANCELLED
        self.opened: Callable[[], None] | None = None

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """Who calls, as much of it as a hub asks for. gRPC builds its answer anew each time, so it is asked once."""
        return {"x509_pem_cert": (self.certificate,)}

    @property
    def certificate(self) -> bytes:
        """The caller's certificate, PEM, or b""."""
        if self._certificate is None:
            self._certificate = bytes(next(iter(self._context.auth_context().get("x509_pem_cert", ())), b""))
        return self._certificate

    def is_known(self, certificate: bytes, actor: str) -> None:
        """The same certificate was here before and names this caller, "<role>/<id>" or "" for nobody.

        From here on it is the object of then: whoever looks something up by it need not compare a kilobyte each time.
        """
        self._certificate = certificate
        self.actor = actor

    def skew(self, skew_ms: int, now_ms: Callable[[], int]) -> None:
        """From now on the caller's clock is so far off; one that he did not tell is the hub's own."""
        self._sent_at = lambda told_ms: max((now_ms() if told_ms is None else told_ms) + skew_ms, 0)

    def invocation_metadata(self) -> Any:
        """The caller's metadata; with a skew its clock is as far off."""
        metadata = self._context.invocation_metadata() or ()
        if self._sent_at is None:
            return metadata
        sent: Any = None
        kept = []
        for key, value in metadata:
            if key == SENT_AT_HEADER:
                sent = value if isinstance(value, str) else value.decode("ascii", "replace")
            else:
                kept.append((key, value))
        told_ms = int(sent) if sent is not None and sent.isdecimal() else None
        return (*kept, (SENT_AT_HEADER, str(self._sent_at(told_ms))))

    def aborted_with(self) -> Status:
        """What the hub aborted the call with. Called once it has."""
        assert self.status is not None
        return self.status

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline, None without one."""
        remaining: float | None = self._context.time_remaining()
        return remaining

    def set_trailing_metadata(self, metadata: Any) -> None:
        """Told with the reply; a refusal has its own."""
        self._context.set_trailing_metadata(metadata)

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

    async def answer(self, status: Status) -> NoReturn:
        """End the call: this is what its caller gets."""
        await self._context.abort(status.code, status.message, status.trailing)
        raise AssertionError("abort always raises")
