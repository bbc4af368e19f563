"""A run as JUnit XML, for build servers.

Owns: which verdict is which element. Must never: say more than results.json.
"""

from __future__ import annotations

import re
from typing import Final
from xml.etree import ElementTree as Xml

from erxhub.conform.model import FAILING, Verdict
from erxhub.conform.result import CaseResult, RunResult

SKIPPED: Final = frozenset({Verdict.SKIP, Verdict.UNSUPPORTED, Verdict.XFAIL, Verdict.REVIEW})

_NOT_XML: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, not even escaped."""


def junit_xml(run: RunResult) -> bytes:
    """The file, UTF-8."""
    counted = {
        "tests": len(run.results),
        "failures": sum(one.verdict in FAILING for one in run.results),
        "errors": sum(one.verdict is Verdict.ERROR for one in run.results),
        "skipped": sum(one.verdict in SKIPPED for one in run.results),
    }
    totals = {name: str(count) for name, count in counted.items()} | {"time": _seconds(run.took_ms)}
    root = Xml.Element("testsuites", {"name": "erxhub conform", **totals})
    suite = Xml.SubElement(root, "testsuite", {"name": f"{run.role} {run.profile}", **totals})
    properties = Xml.SubElement(suite, "properties")
    for name, value in _properties(run).items():
        Xml.SubElement(properties, "property", {"name": name, "value": _clean(value)})
    for result in run.results:
        _case(suite, result)
    Xml.indent(root)
    written: bytes = Xml.tostring(root, encoding="utf-8", xml_declaration=True)
    return written + b"\n"


def _properties(run: RunResult) -> dict[str, str]:
    return {
        "suite_version": run.suite_version,
        "profile": run.profile,
        "seed": str(run.seed),
        "under_test": f"{run.under_test.get('name', '')} {run.under_test.get('version', '')}".strip(),
        "command": run.command,
    }


def _case(suite: Xml.Element, result: CaseResult) -> None:
    title = result.case["title"]
    case = Xml.SubElement(
        suite,
        "testcase",
        {"classname": f"erxhub.conform.{result.role}", "name": result.key, "time": _seconds(result.took_ms)},
    )
    message = f"{result.verdict}: {title['zh']} / {title['en']}"
    attributes = {"message": _clean(message), "type": str(result.verdict)}
    if result.verdict in FAILING:
        Xml.SubElement(case, "failure", attributes).text = _clean(_why(result))
    elif result.verdict is Verdict.ERROR:
        Xml.SubElement(case, "error", attributes).text = _clean(_why(result))
    elif result.verdict in SKIPPED:
        reason = result.reason.en if result.reason else result.known_failing
        Xml.SubElement(case, "skipped", {"message": _clean(f"{result.verdict}: {reason}")})
    Xml.SubElement(case, "system-out").text = _clean(f"{message}\n{_why(result)}")
    if result.stderr:
        Xml.SubElement(case, "system-err").text = _clean(result.stderr)


def _why(result: CaseResult) -> str:
    lines = [result.reason.en] if result.reason else []
    for check in result.failed_checks:
        place = f"{check.where} " if check.where else ""
        lines.append(
            f"[{check.point}] {place}{check.code} {check.what.en}: expected {check.expected}, got {check.actual}"
        )
    return "\n".join([*lines, f"repeat: {result.repeat}"] if result.repeat else lines)


def _seconds(took_ms: int) -> str:
    return f"{took_ms / 1000:.3f}"


def _clean(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
