"""The coverage gate: every MUST is shown by something that keeps it and by something that breaks it.

`traces.csv` names, for a requirement or a pattern of them, a conformance case or a test of this suite, and which side
it shows: positive (what is demanded happens), negative (what is forbidden does not), or both.
"""

from __future__ import annotations

import ast
import csv
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from erxhub.conform.load import load_suite

ROOT = Path(__file__).parents[2]
BOTH = frozenset({"positive", "negative"})


@cache
def traces() -> list[dict[str, str]]:
    with (Path(__file__).parent / "traces.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@cache
def names_in_this_suite() -> frozenset[str]:
    return frozenset(
        f"{path.relative_to(ROOT).as_posix()}::{node.name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def sides(requirement: str) -> frozenset[str]:
    found: set[str] = set()
    for trace in traces():
        if fnmatchcase(requirement, trace["requirement"]):
            found |= BOTH if trace["side"] == "both" else {trace["side"]}
    return frozenset(found)


def test_every_must_is_shown_from_both_sides_or_says_why_not() -> None:
    requirements = load_suite().requirements
    assert len(requirements) > 300
    gaps = {
        name: sorted(BOTH - sides(name))
        for name, row in requirements.items()
        if row.row["conformance"] == "MUST" and not row.row["not_tested"] and sides(name) != BOTH
    }
    assert not gaps


def test_every_trace_is_about_a_requirement_and_names_what_exists() -> None:
    suite = load_suite()
    cases = {case.id for case in suite.cases}
    for trace in traces():
        assert any(fnmatchcase(name, trace["requirement"]) for name in suite.requirements), trace
        assert trace["side"] in {*BOTH, "both"}, trace
        assert trace["by"] in cases or trace["by"] in names_in_this_suite(), trace


def test_every_case_verifies_requirements_that_exist() -> None:
    suite = load_suite()
    assert not suite.problems
    for case in suite.cases:
        assert case.verifies, case.id
        assert set(case.verifies) <= suite.requirements.keys(), case.id
