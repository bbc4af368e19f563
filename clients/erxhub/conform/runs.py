"""Putting the results of a run together, whatever role it was of.

Owns: that a bad case is a result too, and the order of results. Must never: judge one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from fnmatch import fnmatchcase
from importlib.metadata import version

from erxhub.conform.load import Problem, Suite
from erxhub.conform.model import Text, Verdict
from erxhub.conform.plan import Described
from erxhub.conform.result import CaseResult, RunResult, result_of_problems
from erxhub.conform.settings import Settings


class Unusable(Exception):
    """What is under test cannot be started or reached at all."""

    def __init__(self, text: Text) -> None:
        super().__init__(text.en)
        self.text = text


def problem_results(suite: Suite, settings: Settings) -> list[CaseResult]:
    """An ERROR for each bad case of the role that was selected; what does not tell its roles counts for all."""
    by_case: dict[str, list[Problem]] = defaultdict(list)
    for problem in suite.problems:
        if not problem.roles or settings.role in problem.roles:
            by_case[problem.case_id or problem.file].append(problem)
    return [
        result_of_problems(name, problems, settings.role, settings.profile, settings.seed)
        for name, problems in sorted(by_case.items())
        if not settings.patterns or any(fnmatchcase(name, one) for one in settings.patterns)
    ]


def run_result(
    suite: Suite, settings: Settings, described: Described, results: Sequence[CaseResult], unusable: Text | None
) -> RunResult:
    """The whole, with the results in the order of their keys."""
    return RunResult(
        role=settings.role,
        profile=settings.profile,
        seed=settings.seed,
        start_at_ms=settings.start_at_ms,
        suite_version=version("erxhub"),
        under_test={
            "name": described.name,
            "version": described.version,
            "attached_by": settings.attached_by,
            "driver": settings.driver,
            "target": settings.target,
            "features": sorted(described.features),
            "suites": sorted(described.suites),
            "described": dict(described.record or {}),
        },
        results=sorted(results, key=lambda one: one.key),
        problems=suite.problems,
        requirements={one.id: one.row for one in suite.requirements.values()},
        command=settings.command(),
        unusable=unusable,
    )


def flaky(result: CaseResult) -> None:
    """It failed, and did not fail when it was repeated."""
    result.verdict = Verdict.FLAKY
    result.reason = Text(
        "It failed, and did not fail when it was repeated with the same seed.",
        "本用例失败，但以相同种子重复时未失败。",
    )
