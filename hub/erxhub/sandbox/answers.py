"""What a caller gets: a reply's bytes, or a status with its details; and the statuses that the sandbox itself makes.

Owns the form. The sentences of refusals come from the hub's catalogue, so a refusal made here looks like the hub's.
"""

from __future__ import annotations

import dataclasses
from typing import Final, NamedTuple, TypeAlias

import grpc

from erxhub.config import Config
from erxhub.core.model import Refused
from erxhub.core.refusals import CATALOGUE
from erxhub.rpc.errors import wire_status

DETAILS_KEY: Final = "grpc-status-details-bin"

_CONFIG: Final = Config()


class Status(NamedTuple):
    """A status other than OK. `details` is a serialised google.rpc.Status, or b""."""

    code: grpc.StatusCode
    message: str
    details: bytes = b""

    @property
    def trailing(self) -> tuple[tuple[str, bytes], ...]:
        """The trailers that go with it."""
        return ((DETAILS_KEY, self.details),) if self.details else ()


Answer: TypeAlias = bytes | Status


def lost_connection() -> Status:
    """What a caller sees of a cut cable or a dead process: no word of ours."""
    return Status(grpc.StatusCode.UNAVAILABLE, "connection lost")


def refusal(code: str, *, retry_after_ms: int = 0, field: str = "") -> Status:
    """A refusal of the catalogue, with the delay of its RetryInfo where it may be tried again. Raises KeyError."""
    config = dataclasses.replace(_CONFIG, retry_after_ms=retry_after_ms) if retry_after_ms else _CONFIG
    return Status(*wire_status(Refused(code, field=field), config))


def answer_named(name: str, *, retry_after_ms: int = 0) -> Status:
    """A refusal code of the catalogue, or the bare gRPC status of that name. Raises KeyError."""
    if name in CATALOGUE:
        return refusal(name, retry_after_ms=retry_after_ms)
    return Status(grpc.StatusCode[name], "as a fault rule has it")
