"""The clock of a namespace: it stands until told, or goes like the machine's from where it was set.

Owns that it moves forward only, but for a reset or a snapshot, which set the whole namespace back.
"""

from __future__ import annotations

from erxhub.ports import Clock, ManualClock, RunningClock


class SandboxClock:
    """One namespace's clock. `standing` never changes; the instant is UTC milliseconds."""

    def __init__(self, at_ms: int, *, standing: bool, machine: Clock) -> None:
        self.standing = standing
        self._machine = machine
        self._inner = self._made(at_ms)

    def now_ms(self) -> int:
        """Where it stands."""
        return self._inner.now_ms()

    def forward_to(self, at_ms: int) -> None:
        """Move forward to an instant; one that is over changes nothing."""
        self._inner.advance(max(at_ms - self._inner.now_ms(), 0))

    def set_back(self, at_ms: int) -> None:
        """Begin anew at an instant, with the rest of the namespace."""
        self._inner = self._made(at_ms)

    def _made(self, at_ms: int) -> ManualClock | RunningClock:
        return ManualClock(at_ms) if self.standing else RunningClock(at_ms, self._machine)
