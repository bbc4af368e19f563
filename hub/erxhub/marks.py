"""When a traced call reached which step: put down by the lane, read by whoever traces.

Owns the four instants. A call that nobody traces has none, and costs one look.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final


@dataclass(slots=True)
class Marks:
    """Microseconds of the machine's monotonic clock; 0 for a step that the call did not reach.

    Of a command that is decided again, because another hub came first, the last time counts.
    """

    queued_us: int = 0
    taken_us: int = 0
    decided_us: int = 0
    committed_us: int = 0


MARKS: Final[ContextVar[Marks | None]] = ContextVar("erxhub_marks", default=None)
"""The marks of the call that runs."""
