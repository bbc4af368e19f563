"""What a row of the benchmark leaves: goals where an issue states one, every other number as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any


class Results:
    """The goals and figures of one run."""

    def __init__(self) -> None:
        self.goals: dict[str, Any] = {}
        self.figures: dict[str, Any] = {}

    def goal(self, name: str, values: Sequence[float], goal: float, *, at_least: bool = False) -> None:
        """A goal with one value for each round: its median counts. `at_least`: more is better."""
        value = median(values)
        self.goals[name] = {
            "value": round(value, 3),
            "goal": goal,
            "ok": value >= goal if at_least else value <= goal,
            "spread": [round(min(values), 3), round(max(values), 3)],
        }

    def not_measured(self, name: str, goal: float) -> None:
        """A goal that could not be measured on this machine is not met."""
        self.goals[name] = {"value": None, "goal": goal, "ok": False, "spread": None}

    def figure(self, name: str, values: Sequence[float]) -> None:
        """A number that is reported."""
        self.figures[name] = {
            "value": round(median(values), 3),
            "spread": [round(min(values), 3), round(max(values), 3)],
        }

    def note(self, name: str, value: Mapping[str, Any]) -> None:
        """Counts and the like."""
        self.figures[name] = dict(value)

    def lines(self) -> list[str]:
        """The goals and figures as a table."""
        found = []
        for name, goal in self.goals.items():
            value = "not measured" if goal["value"] is None else f"{goal['value']:.2f} {_spread(goal['spread'])}"
            found.append(f"{'ok  ' if goal['ok'] else 'MISS'} {name} = {value} (goal: {goal['goal']})")
        for name, figure in self.figures.items():
            shown = figure
            if set(figure) == {"value", "spread"}:
                shown = f"{figure['value']:.2f} {_spread(figure['spread'])}"
            found.append(f"     {name} = {shown}")
        return found


def _spread(spread: Sequence[float]) -> str:
    return f"[{spread[0]:.2f}–{spread[1]:.2f}]"


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
