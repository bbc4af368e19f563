"""Small suites made of text, and runs of them: what the tests of the conformance framework stand on."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from erxhub.conform.checks import Checks
from erxhub.conform.load import Requirement, Suite, load_suite
from erxhub.conform.model import Case, Check, Text, Verdict
from erxhub.conform.plan import Planned
from erxhub.conform.result import CaseResult, RunResult, result_of
from erxhub.conform.runner import run_suite
from erxhub.conform.settings import Settings

MISBEHAVING = Path(__file__).with_name("misbehaving.py")
REQUIREMENTS = {
    one: Requirement(one, {"id": one, "set": "test", "requirement_en": f"en {one}", "requirement_zh": f"zh {one}"})
    for one in ("R-1", "R-2", "R-3")
}

HEAD = """
  - id: {id}
    revision: 1
    since: "0.2"
    status: {status}
    first_release: true
    title: {{zh: 标题{id}, en: Title of {id}}}
    roles: [pharmacy]
    level: {level}
    verifies: [R-1]
"""


def case_text(id: str, steps: str, *, status: str = "stable", level: str = "MUST", more: str = "") -> str:  # noqa: A002
    """A case of a file, with its steps in flow style: "[{kill: {}}]"."""
    return HEAD.format(id=id, status=status, level=level) + f"    steps: {steps}\n" + more


def suite_of(folder: Path, *cases: str, in_code: Sequence[Case] = ()) -> Suite:
    """A suite of one file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "test.yaml"
    file.write_text("cases:" + "".join(cases), encoding="utf-8")
    return load_suite([file], in_code=in_code, requirements=REQUIREMENTS)


def driver_command(*arguments: str) -> str:
    """Starts the driver that misbehaves as it is told."""
    return shlex.join([sys.executable, str(MISBEHAVING), *arguments])


async def run_cases(folder: Path, *cases: str, **settings: Any) -> RunResult:
    """Runs a suite of one file against the misbehaving driver, in a sandbox of its own."""
    suite = suite_of(folder / "cases", *cases)
    settings.setdefault("driver", driver_command())
    # Only so that a hang ends; what has to end in time says so in its own steps.
    settings.setdefault("operation_ms", 60_000)
    settings.setdefault("workers", 1)
    return await run_suite(suite, Settings(role="pharmacy", folder=folder / "work", **settings))


def verdicts(run: RunResult) -> dict[str, Verdict]:
    """Verdict by key."""
    return {result.key: result.verdict for result in run.results}


def codes(result: CaseResult) -> set[str]:
    """The codes of what does not hold."""
    return {check.code for check in result.failed_checks}


def a_case(**changes: Any) -> Case:
    """A case whose script does not matter."""
    metadata: dict[str, Any] = {
        "id": "DSP-001",
        "revision": 1,
        "since": "0.2",
        "status": "stable",
        "first_release": True,
        "title": Text("A <title> & more", "标题"),
        "roles": ("pharmacy",),
        "level": "MUST",
        "verifies": ("R-1",),
        "source": "test.yaml",
    }
    return Case(**(metadata | changes))


def planned(**changes: Any) -> Planned:
    """One run of it."""
    return Planned(a_case(**changes), "pharmacy", "ES256", "dev", 7)


def checks_of(*holds: bool) -> Checks:
    """A collector with such checks."""
    checks = Checks()
    for number, one in enumerate(holds):
        checks.that(one, en=f"check {number}", zh=f"检查 {number}", expected="a", actual="b", where=f"steps[{number}]")
    return checks


def a_result(verdict: Verdict, **changes: Any) -> CaseResult:
    """A result with that verdict, and checks that go with it."""
    result = result_of(planned(id=changes.pop("id", "DSP-001")), verdict)
    if verdict in (Verdict.FAIL, Verdict.WARN, Verdict.XFAIL, Verdict.ERROR, Verdict.FLAKY):
        result.checks = [Check("wire", False, Text("one effect", "一次生效"), "1", "2 <&>", "expect.wire[0]")]
    for name, value in changes.items():
        setattr(result, name, value)
    return result


def a_run(*results: CaseResult) -> RunResult:
    """A run with these results."""
    return RunResult(
        role="pharmacy",
        profile="dev",
        seed=7,
        start_at_ms=1,
        suite_version="0.1.0",
        under_test={"name": "a <product>", "version": "1"},
        results=list(results),
        problems=(),
        requirements={name: one.row for name, one in REQUIREMENTS.items()},
        command="erxhub conform run --role pharmacy --driver 'x & y'",
        began_at_ms=1_795_140_000_000,
        took_ms=1_234,
    )
