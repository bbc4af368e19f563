"""Which requirement is tested by which case, and what came of it: coverage.csv.

Owns: the columns. Must never: count a case that was not judged as a test.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from erxhub.conform.model import FAILING, Verdict
from erxhub.conform.result import CaseResult, RunResult

COLUMNS: Final = (
    "id",
    "set",
    "conformance",
    "requirement_en",
    "requirement_zh",
    "result",
    "passed",
    "failed",
    "not_judged",
    "cases",
    "not_tested",
)

_FAILED: Final = frozenset({*FAILING, Verdict.WARN, Verdict.INFO, Verdict.XFAIL})


def coverage_csv(run: RunResult) -> str:
    """Every requirement in a row, with the cases of this run that verify it."""
    by_requirement: dict[str, list[CaseResult]] = defaultdict(list)
    for result in run.results:
        for requirement in result.case.get("verifies", ()):
            by_requirement[requirement].append(result)
    written = io.StringIO()
    writer = csv.DictWriter(written, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for requirement, row in run.requirements.items():
        found = by_requirement[requirement]
        passed = [one for one in found if one.verdict is Verdict.PASS]
        failed = [one for one in found if one.verdict in _FAILED]
        writer.writerow(
            {
                **{name: row[name] for name in COLUMNS if name in row},
                "result": _result(found, passed, failed),
                "passed": len(passed),
                "failed": len(failed),
                "not_judged": len(found) - len(passed) - len(failed),
                "cases": " ".join(f"{one.key}={one.verdict}" for one in found),
            }
        )
    return written.getvalue()


def _result(found: Sequence[CaseResult], passed: Sequence[CaseResult], failed: Sequence[CaseResult]) -> str:
    if failed:
        return "failed"
    if passed:
        return "passed"
    return "not judged" if found else "not in this run"
