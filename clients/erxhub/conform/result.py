"""What came of a run, in the form of results.json.

Owns: how checks become a verdict, what the known-failing list makes of it, and the exit code. Must never: write a file.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from erxhub.conform.checks import Checks
from erxhub.conform.load import Problem
from erxhub.conform.model import FAILING, LEVEL_VERDICTS, Check, Text, Verdict
from erxhub.conform.plan import Planned
from erxhub.v1 import sandbox_pb2

FORMAT: Final = 1
"""Of results.json."""


class Exit(enum.IntEnum):
    """The exit codes of `erxhub conform`."""

    OK = 0
    FAILURES = 1
    """Failures, flaky cases or unexpected passes."""
    HARNESS_ERROR = 2
    UNUSABLE = 3
    """What is under test cannot be started or reached at all."""


@dataclass(slots=True)
class CaseResult:
    """What came of one run of one case."""

    key: str
    case: Mapping[str, Any]
    role: str
    suite: str
    profile: str
    seed: int
    verdict: Verdict
    reason: Text | None = None
    """Why it was not run, could not be judged, or has to be looked at."""
    checks: Sequence[Check] = ()
    notes: Sequence[Text] = ()
    to_review: Sequence[Text] = ()
    steps: Sequence[Mapping[str, Any]] = ()
    repeat: str = ""
    """The command that repeats it."""
    known_failing: str = ""
    """The reason that the list gives."""
    stderr: str = ""
    took_ms: int = 0
    traffic: Sequence[sandbox_pb2.Exchange] = field(default=(), repr=False)
    faults: Sequence[str] = ()
    """Ids of the rules that were set, with their action."""

    @property
    def failed_checks(self) -> list[Check]:
        """Those that do not hold."""
        return [check for check in self.checks if not check.holds]

    def record(self) -> dict[str, Any]:
        """As it stands in results.json."""
        return {
            "key": self.key,
            "case": dict(self.case),
            "role": self.role,
            "suite": self.suite,
            "profile": self.profile,
            "seed": self.seed,
            "verdict": str(self.verdict),
            "reason": self.reason.record() if self.reason else None,
            "checks": [check.record() for check in self.checks],
            "notes": [note.record() for note in self.notes],
            "to_review": [item.record() for item in self.to_review],
            "steps": [dict(step) for step in self.steps],
            "faults": list(self.faults),
            "repeat": self.repeat,
            "known_failing": self.known_failing,
            "stderr": self.stderr,
            "took_ms": self.took_ms,
        }


@dataclass(slots=True)
class RunResult:
    """What came of a run."""

    role: str
    profile: str
    seed: int
    start_at_ms: int
    suite_version: str
    under_test: Mapping[str, Any]
    results: list[CaseResult]
    problems: Sequence[Problem]
    requirements: Mapping[str, Mapping[str, str]]
    command: str
    """The line that repeats the run."""
    unusable: Text | None = None
    began_at_ms: int = 0
    took_ms: int = 0

    def counts(self) -> dict[str, int]:
        """How many of each verdict, those that are there."""
        found = dict.fromkeys(Verdict, 0)
        for result in self.results:
            found[result.verdict] += 1
        return {str(verdict): count for verdict, count in found.items() if count}

    def exit_code(self) -> Exit:
        """Unusable before harness error before failures. A run of nothing proves nothing: it is a harness error."""
        verdicts = {result.verdict for result in self.results}
        if self.unusable is not None:
            return Exit.UNUSABLE
        if Verdict.ERROR in verdicts or not verdicts:
            return Exit.HARNESS_ERROR
        return Exit.FAILURES if verdicts & FAILING else Exit.OK

    def record(self) -> dict[str, Any]:
        """results.json."""
        return {
            "format": FORMAT,
            "suite_version": self.suite_version,
            "role": self.role,
            "profile": self.profile,
            "seed": self.seed,
            "start_at_ms": self.start_at_ms,
            "under_test": dict(self.under_test),
            "command": self.command,
            "exit_code": int(self.exit_code()),
            "unusable": self.unusable.record() if self.unusable else None,
            "counts": self.counts(),
            "began_at_ms": self.began_at_ms,
            "took_ms": self.took_ms,
            "results": [result.record() for result in self.results],
        }


TIMINGS: Final = frozenset({"began_at_ms", "took_ms"})
"""The members of results.json that differ between two runs with the same seed."""


def without_timings(record: Any) -> Any:
    """results.json without what may differ between two runs with the same seed."""
    if isinstance(record, Mapping):
        return {name: without_timings(value) for name, value in record.items() if name not in TIMINGS}
    return [without_timings(value) for value in record] if isinstance(record, list) else record


def result_of(planned: Planned, verdict: Verdict, reason: Text | None = None) -> CaseResult:
    """A result without checks, or to be filled."""
    return CaseResult(
        key=planned.key,
        case=planned.case.record(),
        role=planned.role,
        suite=planned.suite,
        profile=planned.profile,
        seed=planned.run_seed,
        verdict=verdict,
        reason=reason,
    )


def result_of_problems(case_id: str, problems: Iterable[Problem], role: str, profile: str, seed: int) -> CaseResult:
    """A case that could not be read."""
    found = list(problems)
    checks = [Check("harness", False, one.text, where=one.where, code=one.code) for one in found]
    names = ", ".join(sorted({one.file for one in found}))
    metadata = {"id": case_id, "source": names, "title": {"en": case_id, "zh": case_id}, "level": "MUST"}
    reason = Text(f"The case in {names} is bad.", f"{names} 中的用例有误。")
    return CaseResult(case_id, metadata, role, "", profile, seed, Verdict.ERROR, reason, checks)


def verdict_of(planned: Planned, checks: Checks) -> tuple[Verdict, Text | None]:
    """Weighs what was found."""
    failed = checks.failed
    if harness := [check for check in failed if check.point == "harness"]:
        return Verdict.ERROR, harness[0].what
    if failed:
        verdict = LEVEL_VERDICTS[planned.case.level]
        if verdict is Verdict.FAIL and planned.case.status == "provisional":
            why = Text(
                "The case is provisional: as a stable one it would fail.", "用例尚属试行，转为稳定后将判为失败。"
            )
            return Verdict.WARN, why
        return verdict, None
    return (Verdict.REVIEW, checks.to_review[0]) if checks.to_review else (Verdict.PASS, None)


_NOT_JUDGED: Final = frozenset({Verdict.SKIP, Verdict.UNSUPPORTED, Verdict.ERROR})


def against_list(result: CaseResult, known: Mapping[str, str]) -> CaseResult:
    """What the known-failing list makes of a result; it is strict, a listed case that does not fail is XPASS."""
    reason = known.get(result.key, known.get(str(result.case["id"])))
    if reason is None or result.verdict in _NOT_JUDGED:
        return result
    result.known_failing = reason or "listed"
    result.verdict = Verdict.XFAIL if result.failed_checks else Verdict.XPASS
    return result


class ListMalformed(ValueError):
    """A known-failing list has a line that is none, or names a case that does not exist."""


def read_known_failing(text: str, ids: Iterable[str]) -> dict[str, str]:
    """Reads a list: one id or key a line, a reason after `#`. Raises ListMalformed."""
    known_ids = set(ids)
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        name, _, reason = (part.strip() for part in line.partition("#"))
        if not name:
            continue
        if name in found:
            raise ListMalformed(f"line {number}: {name} is listed twice")
        if name.partition("@")[0] not in known_ids:
            raise ListMalformed(f"line {number}: there is no case {name}")
        found[name] = reason
    return found
