"""report.html: a run for people, one file in both languages that asks nobody for anything.

Owns: what is shown and how it is escaped. Must never: put a value into the page unescaped, or link outside it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from typing import Any, Final

from erxhub.conform.judge import code_of
from erxhub.conform.model import Text, Verdict
from erxhub.conform.result import CaseResult, RunResult
from erxhub.conform.vocabulary import short_method

CALLS_SHOWN: Final = 200
"""Of one case; traffic.ndjson has them all."""


def report_html(run: RunResult) -> str:
    """The page."""
    template = resources.files("erxhub.conform").joinpath("report.html").read_text(encoding="utf-8")
    parts = {
        "title": escape(f"erxhub conform: {run.role} {run.profile}"),
        "options": "".join(
            f'<option value="{verdict}">{verdict} ({count})</option>' for verdict, count in run.counts().items()
        ),
        "facts": _facts(run),
        "rows": "".join(_row(result) for result in run.results),
        "sections": "".join(_section(result) for result in run.results),
        "requirements": _requirements(run),
    }
    page = []
    # One pass over the template: what a part holds is never taken for a place to put another.
    for piece in template.split("{{"):
        name, closed, rest = piece.partition("}}")
        page.append(parts[name] + rest if closed and name in parts else piece)
    return "".join(page)


def _both(text: Text | Mapping[str, str]) -> str:
    en, zh = (text.en, text.zh) if isinstance(text, Text) else (text["en"], text["zh"])
    if en == zh:
        return escape(en)
    return f'<span class="zh">{escape(zh)}</span><span class="en">{escape(en)}</span>'


def _facts(run: RunResult) -> str:
    under_test = run.under_test
    facts = [
        (Text("Result", "结果"), ", ".join(f"{verdict} {count}" for verdict, count in run.counts().items())),
        (Text("Exit code", "退出码"), str(int(run.exit_code()))),
        (Text("Under test", "被测系统"), f"{under_test.get('name', '')} {under_test.get('version', '')}".strip()),
        (Text("Role", "角色"), run.role),
        (Text("Profile", "故障档位"), run.profile),
        (Text("Seed", "种子"), str(run.seed)),
        (Text("Suite version", "用例集版本"), run.suite_version),
        (Text("Repeat", "重复运行"), run.command),
    ]
    if run.unusable is not None:
        facts.insert(0, (Text("Unusable", "不可用"), f"{run.unusable.zh} {run.unusable.en}"))
    return "".join(f"<dt>{_both(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)


def _row(result: CaseResult) -> str:
    verdict = str(result.verdict)
    return (
        f'<tr data-verdict="{verdict}"><td><a href="#{_anchor(result)}">{escape(result.key)}</a></td>'
        f'<td class="verdict {verdict}">{verdict}</td><td>{escape(str(result.case.get("level", "")))}</td>'
        f"<td>{_both(result.case['title'])}</td><td>{result.took_ms}</td></tr>"
    )


def _anchor(result: CaseResult) -> str:
    return f"case-{escape(result.key, quote=True)}"


def _section(result: CaseResult) -> str:
    verdict = str(result.verdict)
    parts = [
        f'<section id="{_anchor(result)}" data-verdict="{verdict}">'
        f'<h2>{escape(result.key)} <span class="verdict {verdict}">{verdict}</span> {_both(result.case["title"])}</h2>'
    ]
    if result.reason is not None:
        parts.append(f"<p>{_both(result.reason)}</p>")
    if result.known_failing:
        parts.append(f"<p>{_both(Text('Known failing', '已知失败'))}: {escape(result.known_failing)}</p>")
    if result.repeat:
        parts.append(f"<pre>{escape(result.repeat)}</pre>")
    for title, items in (
        (Text("To be looked at", "需人工确认"), result.to_review),
        (Text("Notes", "说明"), result.notes),
    ):
        if items:
            parts.append(f"<p>{_both(title)}</p><ul>{''.join(f'<li>{_both(item)}</li>' for item in items)}</ul>")
    parts += [_checks(result), _steps(result), _calls(result)]
    if result.stderr:
        parts.append(f"<p>stderr</p><pre>{escape(result.stderr)}</pre>")
    parts.append('<p><a href="#top">↑</a></p></section>')
    return "".join(parts)


def _table(heads: Iterable[Text], rows: Iterable[str]) -> str:
    body = "".join(rows)
    head = "".join(f"<th>{_both(one)}</th>" for one in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if body else ""


def _checks(result: CaseResult) -> str:
    heads = (
        Text("Point", "判定点"),
        Text("Where", "位置"),
        Text("Check", "检查"),
        Text("Expected", "期望"),
        Text("Actual", "实际"),
    )
    return _table(
        heads,
        (
            f'<tr class="{"yes" if check.holds else "no"}"><td>{check.point} {"✓" if check.holds else "✗"}</td>'
            f"<td>{escape(check.where)}</td><td>{escape(check.code)} {_both(check.what)}</td>"
            f"<td>{escape(check.expected)}</td><td>{escape(check.actual)}</td></tr>"
            for check in result.checks
        ),
    )


def _steps(result: CaseResult) -> str:
    heads = (Text("Step", "步骤"), Text("Verb", "动作"), Text("What", "内容"), Text("Came of it", "结果"))
    return _table(
        heads,
        (
            "<tr>"
            + "".join(f"<td>{escape(str(step.get(name, '')))}</td>" for name in ("where", "verb", "did", "came"))
            + "</tr>"
            for step in result.steps
        ),
    )


def _calls(result: CaseResult) -> str:
    if result.verdict is Verdict.PASS:
        return ""
    heads = (
        Text("Call", "调用"),
        Text("By", "调用方"),
        Text("Request id", "请求编号"),
        Text("Answer", "应答"),
        Text("Entries", "账本条目"),
        Text("Faults", "故障"),
    )
    return _table(
        heads,
        (
            f"<tr><td>{call.number} {escape(short_method(call.method))}</td><td>{escape(call.actor)}</td>"
            f"<td>{escape(call.request_id)}</td><td>{escape(code_of(call))}</td>"
            f"<td>{escape(', '.join(entry.type for entry in call.entries))}</td>"
            f"<td>{escape(', '.join(call.faults))}</td></tr>"
            for call in result.traffic[:CALLS_SHOWN]
        ),
    )


def _requirements(run: RunResult) -> str:
    by_requirement: dict[str, list[CaseResult]] = defaultdict(list)
    for result in run.results:
        for requirement in result.case.get("verifies", ()):
            by_requirement[requirement].append(result)
    return "".join(
        _requirement(name, run.requirements.get(name, {}), found) for name, found in sorted(by_requirement.items())
    )


def _requirement(name: str, row: Mapping[str, Any], results: Iterable[CaseResult]) -> str:
    links = " ".join(f'<a class="{one.verdict}" href="#{_anchor(one)}">{escape(one.key)}</a>' for one in results)
    text = _both(Text(str(row.get("requirement_en", "")), str(row.get("requirement_zh", ""))))
    return f"<tr><td>{escape(name)}</td><td>{text}</td><td>{links}</td></tr>"
