"""Ids for requests (报文ID msgid), the key under which the hub answers a repeated request with its first reply.

Owns: the two shapes of an id. Must never: give the same id twice; a repeat of a request sends the same message, and
with it the same id, without coming here.
"""

from __future__ import annotations

import string
from datetime import UTC, datetime, timedelta, timezone
from typing import Final, Protocol

from erxhub.client.environment import Environment

BEIJING: Final = timezone(timedelta(hours=8))
SEQUENCE_SIZE: Final = 10_000
TOKEN_LENGTH: Final = 26
"""62^26 ids: as hard to meet twice as a random UUID and more."""

_ALPHABET = string.ascii_letters + string.digits


class RequestIds(Protocol):
    """A source of request ids, `[A-Za-z0-9._-]{8,64}`."""

    def new(self) -> str:
        """An id that was not given before."""


class RandomRequestIds:
    """Ids for callers that the national interface gives no shape: 26 random letters and digits."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def new(self) -> str:
        return "".join(_ALPHABET[self._environment.below(len(_ALPHABET))] for _ in range(TOKEN_LENGTH))


class NationalRequestIds:
    """Ids in the national shape, 30 characters: institution code (12), yyyyMMddHHmmss in Beijing time, sequence (4).

    The sequence starts at a random number, so that two processes of one institution rarely meet in a second; where
    that is not enough, give each process a source of its own. An id never comes twice from one source: when ten
    thousand were given for one second, or the clock was set back, the next second that was not used is written.
    """

    def __init__(self, institution_code: str, environment: Environment) -> None:
        self._institution_code = institution_code
        self._environment = environment
        self._sequence = environment.below(SEQUENCE_SIZE)
        self._second = 0
        self._given_in_second = 0

    def new(self) -> str:
        second = max(self._second, self._environment.now_ms() // 1000)
        if second == self._second and self._given_in_second == SEQUENCE_SIZE:
            second += 1
        if second != self._second:
            self._second, self._given_in_second = second, 0
        self._given_in_second += 1
        self._sequence = (self._sequence + 1) % SEQUENCE_SIZE
        written = datetime.fromtimestamp(second, UTC).astimezone(BEIJING).strftime("%Y%m%d%H%M%S")
        return f"{self._institution_code}{written}{self._sequence:04d}"
