"""From rounds to a table and to bench.json: goals where the issue states one, every other number as a figure."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from tests.bench.signatures import openssl_version
from tests.bench.world import SIGNATURES

ECHO = "echo"
UPLOADS: Mapping[str, str] = {"p256": "ES256", "sm2": "SM2-SM3"}
"""Suite by the name that the goals use."""

RATIO_GOAL = 3.5
SM2_GOAL = 0.6
"""With tables of keys; without them 1.5 is what can be had."""
JUDGED_AT = 64
"""The number in flight at which the ratio is judged: a hub under load, and neither idle nor at its limit."""


class Measured(NamedTuple):
    """One stretch of calls of one round."""

    cpu_us: float
    throughput: float
    p50_ms: float
    p99_ms: float


@dataclass
class Rounds:
    """Every round's numbers. `segments` is by (target, in flight), target "echo", "p256" or "sm2"."""

    segments: dict[tuple[str, int], list[Measured]] = field(default_factory=dict)
    verification_us: dict[str, list[float]] = field(default_factory=dict)
    openssl_sm2_us: list[float] = field(default_factory=list)

    @property
    def levels(self) -> list[int]:
        """The numbers in flight, ascending."""
        return sorted({level for _, level in self.segments})

    def ratios(self, target: str, level: int, *, whole: bool = False) -> list[float]:
        """Server CPU of an upload over that of an echo, per round; without its verifications unless `whole`."""
        return [
            (upload.cpu_us - (0.0 if whole else SIGNATURES * verification_us)) / echo.cpu_us
            for upload, echo, verification_us in zip(
                self.segments[target, level],
                self.segments[ECHO, level],
                self.verification_us[target],
                strict=True,
            )
        ]


def goals(rounds: Rounds, *, overload: Mapping[str, int], overload_in_flight: int) -> dict[str, Any]:
    """What the issue asks for, each with value, goal, whether it is met, and the spread over the rounds."""
    found: dict[str, Any] = {}
    for target in UPLOADS:
        found[f"upload_cpu_ratio_{target}"] = _goal(rounds.ratios(target, JUDGED_AT), RATIO_GOAL)
    if rounds.openssl_sm2_us:
        pairs = zip(rounds.verification_us["sm2"], rounds.openssl_sm2_us, strict=True)
        found["sm2_verify_vs_openssl"] = _goal([ours / theirs for ours, theirs in pairs], SM2_GOAL)
    else:
        found["sm2_verify_vs_openssl"] = {"value": None, "goal": SM2_GOAL, "ok": False, "spread": None}
    bad = sum(overload.get(status, 0) for status in ("CANCELLED", "UNKNOWN", "INTERNAL"))
    found[f"no_bad_status_at_{overload_in_flight}"] = {"value": bad, "goal": 0, "ok": not bad, "spread": [bad, bad]}
    return found


def figures(rounds: Rounds, *, overload: Mapping[str, int], answers: Mapping[str, int]) -> dict[str, Any]:
    """Everything else that was measured."""
    found: dict[str, Any] = {}
    for (target, level), measured in sorted(rounds.segments.items()):
        for name in Measured._fields:
            found[f"{target}_{name}_at_{level}"] = _spread([getattr(one, name) for one in measured])
    for target in UPLOADS:
        found[f"verification_us_{target}"] = _spread(rounds.verification_us[target])
        for level in rounds.levels:
            found[f"ratio_{target}_at_{level}"] = _spread(rounds.ratios(target, level))
            found[f"whole_ratio_{target}_at_{level}"] = _spread(rounds.ratios(target, level, whole=True))
    if rounds.openssl_sm2_us:
        found["openssl_sm2_verification_us"] = _spread(rounds.openssl_sm2_us)
    found["overload_statuses"] = dict(overload)
    found["answers"] = dict(answers)
    return found


def machine() -> dict[str, Any]:
    """What it ran on; no name of the machine or of anybody."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "grpcio": version("grpcio"),
        "openssl": openssl_version(),
    }


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write bench.json, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", "utf-8")


def table(rounds: Rounds, content: Mapping[str, Any]) -> str:
    """The table that is printed: medians, with the spread over the rounds where it matters."""
    lines = [
        f"{'':10}{'in flight':>10}{'CPU µs/call':>24}{'calls/s':>22}{'p50 ms':>9}{'p99 ms':>9}{'ratio':>20}{'whole':>8}"
    ]
    for level in rounds.levels:
        for target in (ECHO, *UPLOADS):
            measured = rounds.segments[target, level]
            cpu = _text([one.cpu_us for one in measured], ".0f")
            throughput = _text([one.throughput for one in measured], ".0f")
            p50, p99 = (median(getattr(one, name) for one in measured) for name in ("p50_ms", "p99_ms"))
            ratio = whole = ""
            if target != ECHO:
                ratio = _text(rounds.ratios(target, level), ".2f")
                whole = f"{median(rounds.ratios(target, level, whole=True)):.2f}"
            lines.append(f"{target:10}{level:>10}{cpu:>24}{throughput:>22}{p50:>9.1f}{p99:>9.1f}{ratio:>20}{whole:>8}")
    lines.append("")
    lines += [
        f"one verification, {target}: {_text(rounds.verification_us[target], '.0f')} µs CPU" for target in UPLOADS
    ]
    if rounds.openssl_sm2_us:
        lines.append(f"one verification, openssl speed sm2: {_text(rounds.openssl_sm2_us, '.0f')} µs CPU")
    lines.append(f"at the highest number in flight: {content['figures']['overload_statuses']}")
    lines.append(f"answers: {content['figures']['answers']}")
    lines.append("")
    for name, goal in content["goals"].items():
        value = "not measured" if goal["value"] is None else f"{goal['value']:.2f}"
        lines.append(f"{'ok  ' if goal['ok'] else 'MISS'} {name} = {value} (goal: at most {goal['goal']})")
    return "\n".join(lines)


def _goal(values: Sequence[float], goal: float) -> dict[str, Any]:
    value = median(values)
    return {
        "value": round(value, 3),
        "goal": goal,
        "ok": value <= goal,
        "spread": [round(min(values), 3), round(max(values), 3)],
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {"value": round(median(values), 3), "spread": [round(min(values), 3), round(max(values), 3)]}


def _text(values: Sequence[float], form: str) -> str:
    return f"{median(values):{form}} [{min(values):{form}}–{max(values):{form}}]"
