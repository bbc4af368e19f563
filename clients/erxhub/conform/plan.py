"""What is run, in which order, and what is left out and why.

Owns: permutations and pruning. The order is that of the ids, so that the same plan gives the same report. Must never:
start anything.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from erxhub.conform.load import Suite
from erxhub.conform.model import DEFAULT_SUITE, Case, Text, Verdict
from erxhub.conform.script import kills, moves_clock, operations
from erxhub.conform.vocabulary import COMMON_OPS

SELECTIONS: Final = ("all", "stable", "core")


@dataclass(frozen=True, slots=True)
class Planned:
    """One run of one case."""

    case: Case
    role: str
    suite: str
    profile: str
    run_seed: int

    @property
    def key(self) -> str:
        """Names the run in every report: the id, and the suite where the case has several."""
        return f"{self.case.id}@{self.suite}" if len(self.case.suites) > 1 else self.case.id

    @property
    def seed(self) -> int:
        """Of the namespace: from the run's seed and the key, so that a case alone runs as it does among others."""
        digest = hashlib.sha256(f"{self.run_seed}/{self.role}/{self.key}".encode()).digest()
        return int.from_bytes(digest[:8], "big")


@dataclass(frozen=True, slots=True)
class Pruned:
    """One run that is left out."""

    planned: Planned
    verdict: Verdict
    why: Text


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that was selected."""

    to_run: tuple[Planned, ...]
    pruned: tuple[Pruned, ...]


@dataclass(frozen=True, slots=True)
class Described:
    """What is under test says about itself."""

    name: str
    version: str
    features: frozenset[str]
    suites: frozenset[str]
    told_clock: bool = True
    """Whether it goes by the hub's clock, which the harness moves."""
    kills: bool = True
    """Whether the harness can end its process."""
    record: Mapping[str, Any] | None = None
    """As it came."""


def make_plan(
    suite: Suite,
    *,
    role: str,
    profile: str,
    seed: int,
    described: Described,
    patterns: Sequence[str] = (),
    selection: str = "all",
) -> Plan:
    """The plan of one run. `patterns` are globs on ids or keys; none means all."""
    to_run: list[Planned] = []
    pruned: list[Pruned] = []
    for case in suite.cases:
        if role not in case.roles:
            continue
        for one in case.suites or (DEFAULT_SUITE,):
            planned = Planned(case, role, one, profile, seed)
            if patterns and not any(_meant(planned, pattern) for pattern in patterns):
                continue
            reason = _reason(planned, described, selection, named=case.id in patterns)
            if reason is None:
                to_run.append(planned)
            else:
                pruned.append(Pruned(planned, *reason))
    return Plan(tuple(to_run), tuple(pruned))


def _meant(planned: Planned, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in (planned.case.id, planned.key))


def _reason(planned: Planned, described: Described, selection: str, *, named: bool) -> tuple[Verdict, Text] | None:
    return next(_reasons(planned, described, selection, named=named), None)


def _reasons(planned: Planned, described: Described, selection: str, *, named: bool) -> Iterator[tuple[Verdict, Text]]:
    case = planned.case
    if case.status == "deprecated" and not named:
        yield Verdict.SKIP, Text("The case is deprecated; name it to run it.", "用例已废弃，指定编号方可运行。")
    if selection != "all" and case.status != "stable":
        yield Verdict.SKIP, Text("The case is provisional.", "用例尚属试行。")
    if selection == "core" and not case.core:
        yield Verdict.SKIP, Text("The case is not of the core profile.", "用例不在核心范围内。")
    if planned.profile not in case.profiles:
        where = ", ".join(case.profiles)
        yield Verdict.SKIP, Text(f"The case runs under {where} only.", f"该用例仅在 {where} 档运行。")
    if described.suites and planned.suite not in described.suites:
        yield (
            Verdict.UNSUPPORTED,
            Text(f"The product does not have the suite {planned.suite}.", f"产品不支持算法套件 {planned.suite}。"),
        )
    play = case.plays.get(planned.role)
    needed = set(case.needs)
    if play is not None:
        needed |= operations(play) - {*COMMON_OPS}
        if moves_clock(play) and not described.told_clock:
            yield (
                Verdict.UNSUPPORTED,
                Text("The product goes by a clock of its own.", "产品使用自身时钟，无法随测试拨动。"),
            )
        if kills(play) and not described.kills:
            yield (
                Verdict.UNSUPPORTED,
                Text(
                    "The harness cannot end a driver over TCP and start it again.", "TCP 驱动无法由测试方终止并重启。"
                ),
            )
    if missing := sorted(needed - described.features):
        names = ", ".join(missing)
        yield Verdict.UNSUPPORTED, Text(f"The product does not have: {names}.", f"产品未声明功能：{names}。")
