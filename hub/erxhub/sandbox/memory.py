"""What the exchanges remember between calls: requests that the hub was given in another form, and what reads showed.

Owns two bounded memories. They are part of a snapshot where the hub's ledger depends on them.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from erxhub.sandbox.answers import Answer

_KEPT_MAX: Final = 20_000
_READS_MAX: Final = 5_000

Operation = tuple[str, str]
"""Caller and request id, or caller and digest of a read."""


class KeptRequests:
    """What the hub was given for a command stays what it is given at every repeat, or it would not be the same one."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Operation, bytes], bytes] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._kept)

    def given_for(self, operation: Operation, raw: bytes) -> bytes:
        """What the hub was given when these bytes came first; the same bytes where they were not changed."""
        return self._kept.get((operation, raw), raw)

    def keep(self, operation: Operation, raw: bytes, given: bytes) -> None:
        """The hub is given other bytes for these."""
        self._kept[operation, raw] = given
        if len(self._kept) > _KEPT_MAX:
            self._kept.popitem(last=False)

    def export_state(self) -> tuple[tuple[tuple[Operation, bytes], bytes], ...]:
        """For a snapshot."""
        return tuple(self._kept.items())

    def import_state(self, state: tuple[tuple[tuple[Operation, bytes], bytes], ...]) -> None:
        """Go back to a snapshot."""
        self._kept = OrderedDict(state)


@dataclass(slots=True)
class _Shown:
    answer: Answer
    old_shown: int = 0


class StaleReads:
    """What each read showed last, so that it can be shown again after a change."""

    def __init__(self) -> None:
        self._shown: OrderedDict[Operation, _Shown] = OrderedDict()

    def answer(self, operation: Operation, fresh: Answer, lag: int) -> Answer:
        """What the caller gets: the older answer while fewer than `lag` reads since the change got it, else the fresh.

        With a lag of 0 the fresh one is shown and remembered.
        """
        known = self._shown.get(operation)
        if known is not None and known.answer != fresh and known.old_shown < lag:
            known.old_shown += 1
            return known.answer
        if known is None or known.answer != fresh:
            self._shown[operation] = _Shown(fresh)
            if len(self._shown) > _READS_MAX:
                self._shown.popitem(last=False)
        return fresh

    def clear(self) -> None:
        """Forget what was shown: the ledger is another one."""
        self._shown.clear()
