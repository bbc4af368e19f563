"""What the exit code of a command says, the same for every verb.

Owns the codes and their meaning. Must never: end the process itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from erxhub.client import ClientFailure

OK: Final = 0
NEGATIVE: Final = 1
"""A negative verdict, or a failure that none of the others names."""
USAGE: Final = 2
"""The command or its input is wrong."""
NOT_FOUND: Final = 3
DENIED: Final = 4
CONFLICT: Final = 5
"""A precondition is not met, or the record is otherwise than assumed."""
UNAVAILABLE: Final = 6
"""No hub, or no time for this call; it may be repeated."""

_BY_STATUS: Final = {
    "INVALID_ARGUMENT": USAGE,
    "OUT_OF_RANGE": USAGE,
    "NOT_FOUND": NOT_FOUND,
    "PERMISSION_DENIED": DENIED,
    "UNAUTHENTICATED": DENIED,
    "FAILED_PRECONDITION": CONFLICT,
    "ABORTED": CONFLICT,
    "ALREADY_EXISTS": CONFLICT,
    "UNAVAILABLE": UNAVAILABLE,
    "RESOURCE_EXHAUSTED": UNAVAILABLE,
    "DEADLINE_EXCEEDED": UNAVAILABLE,
}


def exit_code_of_status(grpc_status: str) -> int:
    """The exit code of a gRPC status by its name. OK is 0: a finding travels in a reply that succeeded."""
    return OK if grpc_status == "OK" else _BY_STATUS.get(grpc_status, NEGATIVE)


def exit_code_for(failure: ClientFailure) -> int:
    """The exit code of a failed call, by its status. A receipt that proves nothing is a negative verdict."""
    return exit_code_of_status(getattr(failure, "grpc_status", ""))
