"""Whether a recorded history of one prescription has an order that explains every answer, and a recorder of histories.

A history is linearizable when each call can be given one instant between its beginning and its end, so that the calls
in the order of these instants answer as the sequential prescription of `model` does. Owns the search and nothing about
what an answer means.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tests.linear.model import Call, Done, Kind, Refused, Seen, State, after

_STEPS_MAX = 2_000_000
"""A search that takes longer is a checker to be improved, never a verdict."""


class NotLinearizable(AssertionError):
    """No order explains the history. Shows the longest beginning that one does, and what could not follow it."""

    def __init__(self, explained: Sequence[Call], left: Sequence[Call], state: State) -> None:
        lines = ["no order of these calls explains their answers; as far as one does:"]
        lines += [f"  {_told(call)}" for call in explained]
        lines += [f"then, in {state}, none of these fits:", *(f"  {_told(call)}" for call in left)]
        super().__init__("\n".join(lines))


def check(history: Sequence[Call]) -> list[Call]:
    """One order that explains a history of one prescription. Raises NotLinearizable.

    Calls whose outcome nobody knows are in the order if they had an effect.
    """
    calls = sorted(history, key=lambda call: call.begun)
    whole = (1 << len(calls)) - 1
    unknown = sum(1 << number for number, call in enumerate(calls) if call.ended is None)
    start = State()
    best: tuple[list[int], State] = ([], start)
    tried: set[tuple[int, State]] = set()
    # Each frame: what is placed, the state, the order so far, and the calls that may come next.
    stack = [(0, start, (), _next(calls, 0))]
    steps = 0
    while stack:
        steps += 1
        if steps > _STEPS_MAX:
            raise RuntimeError("the search for an order takes too long")
        placed, state, order, candidates = stack.pop()
        if placed | unknown == whole:
            return [calls[number] for number in _order(order)]
        if order and len(_order(order)) > len(best[0]):
            best = (_order(order), state)
        followers = []
        for number in candidates:
            following = after(state, calls[number])
            if following is None:
                continue
            with_it = placed | 1 << number
            if following == state and not unknown >> number & 1:
                # What changes nothing can always go first: no other order needs to be tried.
                followers = [(with_it, following, (order, number))]
                break
            followers.append((with_it, following, (order, number)))
        for with_it, following, longer in reversed(followers):
            if (with_it, following) not in tried:
                tried.add((with_it, following))
                stack.append((with_it, following, longer, _next(calls, with_it)))
    explained, state = best
    left = [call for number, call in enumerate(calls) if number not in explained]
    raise NotLinearizable([calls[number] for number in explained], left, state)


def _next(calls: Sequence[Call], placed: int) -> list[int]:
    """Calls that no call still to be placed ended before."""
    open_ = [number for number in range(len(calls)) if not placed >> number & 1]
    first_end = min((end for number in open_ if (end := calls[number].ended) is not None), default=None)
    return [number for number in open_ if first_end is None or calls[number].begun < first_end]


def _order(chain: tuple[object, ...]) -> list[int]:
    """A linked list of numbers, the newest outermost, as a list from the oldest."""
    numbers: list[int] = []
    while chain:
        chain, number = chain  # type: ignore[assignment]
        numbers.append(number)  # type: ignore[arg-type]
    return numbers[::-1]


def _told(call: Call) -> str:
    end = "…" if call.ended is None else call.ended
    return f"[{call.begun}–{end}] {call.caller} {call.kind} {call.request_id}: {call.answer}"


@dataclass(slots=True)
class Recorder:
    """Histories of many prescriptions, as the callers saw them."""

    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _calls: dict[str, list[Call]] = field(default_factory=dict)

    def begin(self, rx_no: str, kind: Kind, caller: str, request_id: str, about: str = "") -> int:
        """Right before a call is made; returns its number for `end`."""
        calls = self._calls.setdefault(rx_no, [])
        calls.append(Call(kind, caller, request_id, next(self._numbers), about=about))
        return len(calls) - 1

    def end(self, rx_no: str, number: int, answer: Done | Refused | Seen) -> None:
        """Right after its answer came. A call that is never ended has an unknown outcome."""
        calls = self._calls[rx_no]
        calls[number] = replace(calls[number], ended=next(self._numbers), answer=answer)

    def history(self, rx_no: str) -> list[Call]:
        """All calls about one prescription."""
        return self._calls[rx_no]

    def check(self) -> int:
        """Check every prescription; returns the number of calls. Raises NotLinearizable."""
        for history in self._calls.values():
            check(history)
        return sum(map(len, self._calls.values()))
