"""Draws one traced chain as a timeline of text: four stages, three flows, gaps, accesses.

Owns the layout and the words of the picture, among them what each gap means. Pure: it takes the object that
`erxhub trace -o json` prints and returns text. It must never call a hub, print, or leave out a gap, an entry or an
access.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

WIDTH: Final = 100
WIDTH_MIN: Final = 80
"""Below it time, type and actor cannot stand side by side."""

STAGES: Final[Mapping[str, str]] = MappingProxyType(
    {"diagnosis": "诊疗", "prescription": "处方", "transaction": "交易", "delivery": "配送"}
)
FLOWS: Final[Mapping[str, str]] = MappingProxyType({"information": "信息流", "fund": "资金流", "goods": "物流"})
FLOW_MARKS: Final[Mapping[str, str]] = MappingProxyType({"information": "信", "fund": "资", "goods": "物"})
LIGHTS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "GREEN": ("绿灯 链条完整", "every step is there, in order, and the flows agree"),
        "OPEN": ("进行中", "the next step is still possible and its time has not run out"),
        "CLOSED": ("已终结", "ended regularly without a sale"),
        "ERASED": ("内容已清除", "content erased, existence and order proven"),
        "RED": ("红灯 存在缺口", "a gap exists"),
    }
)
GAPS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "GAP_NO_VOUCHER": ("无身份核验", "nobody proved the patient's identity before the visit or the payment"),
        "GAP_NO_ENCOUNTER": ("无就诊", "a prescription or a settlement without a visit"),
        "GAP_NO_DIAGNOSIS": ("无诊断", "a prescription without a recorded diagnosis"),
        "GAP_NO_ATTESTATION": (
            "无医师真实性核验",
            "an internet visit without an attested doctor or a proven follow-up",
        ),
        "GAP_NO_PRESCRIPTION": ("无有效处方", "an order, a settlement or a sale before any prescription was in force"),
        "GAP_SIGNATURE": ("签名不符", "a signature or the signed bytes do not verify"),
        "GAP_NO_REVIEW": ("无药师审核", "a settlement or a sale without a passed review"),
        "GAP_NO_SETTLEMENT": ("无结算", "goods went out without a settlement or a self-payment"),
        "GAP_NO_DISPENSE": ("无出库", "paid, the time has run out, and nothing went out or was paid back"),
        "GAP_NO_RECEIPT": ("无签收", "goods went out, the time has run out, and nobody received or returned them"),
        "GAP_ORDER": ("顺序错误", "every step exists, and their order or their times are wrong"),
        "GAP_QUANTITY": ("数量不符", "more was sold than prescribed, or delivered than sold"),
        "GAP_MONEY": ("金额不符", "amounts, accounts and lines of the settlement disagree"),
        "GAP_TRACE_CODE": ("追溯码缺失或重复", "an insured pack without a drug trace code, or a code sold twice"),
        "GAP_IDENTITY": ("人员不符", "the steps belong to different persons without a delegation"),
        "GAP_RETURN_OPEN": ("退药未了", "goods came back and the money did not, or the reverse"),
        "GAP_CHAIN": ("链断裂", "the hash chain is broken, or an entry is missing or altered"),
    }
)
"""What each gap means: Chinese, English (the auditor's green light, lifecycle §6)."""

_RESET: Final = "\x1b[0m"
_STYLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "bold": "\x1b[1m",
        "dim": "\x1b[2m",
        "GREEN": "\x1b[1;32m",
        "OPEN": "\x1b[1;33m",
        "CLOSED": "\x1b[1;36m",
        "ERASED": "\x1b[1;36m",
        "RED": "\x1b[1;31m",
        "information": "\x1b[36m",
        "fund": "\x1b[33m",
        "goods": "\x1b[32m",
    }
)
_CLOCK_WIDTH: Final = 12
_MARK_WIDTH: Final = 2
_KEY_DIGITS: Final = 6
_PLACE_WIDTH: Final = _KEY_DIGITS + len("#999")
_MOMENT_WIDTH: Final = 19
_METHOD_WIDTH: Final = 22
_OUTCOME_WIDTH: Final = 22


# --- columns ---


def _columns_of(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def columns(text: str) -> int:
    """How many terminal columns a text takes: wide (CJK) characters two, combining ones none."""
    return sum(map(_columns_of, text))


def plain(text: object) -> str:
    """One line without control characters: nothing that a record holds may steer a terminal."""
    return "".join("�" if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in str(text))


def fit(text: str, width: int) -> str:
    """The text in exactly `width` columns: filled with spaces, or cut and ended with an ellipsis."""
    if columns(text) <= width:
        return text + " " * (width - columns(text))
    kept, used = "", 0
    for character in text:
        if used + _columns_of(character) > width - 1:
            break
        kept += character
        used += _columns_of(character)
    return kept + "…" + " " * (width - 1 - used)


def wrap(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` columns, broken at spaces where there are any."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        if line and columns(line) + 1 + columns(word) <= width:
            line += " " + word
            continue
        if line:
            lines.append(line)
        line = ""
        for character in word:
            if columns(line) + _columns_of(character) > width:
                lines.append(line)
                line = ""
            line += character
    return [*lines, line] if line else lines


# --- the picture ---


class _Pen:
    """Draws within a width, with colours or without."""

    def __init__(self, width: int, colour: bool) -> None:
        self.width = width
        self._colour = colour

    def style(self, text: str, name: str) -> str:
        code = _STYLES.get(name, "") if self._colour else ""
        return f"{code}{text}{_RESET}" if code else text

    def heading(self, title: str, note: str = "") -> str:
        rule = "─" * max(0, self.width - columns(title) - columns(note) - (2 if note else 1))
        return f"{self.style(title, 'bold')} {rule}{' ' + note if note else ''}".rstrip()

    def wrapped(self, text: str, indent: str, style: str = "") -> Iterator[str]:
        for line in wrap(plain(text), self.width - columns(indent)):
            yield indent + self.style(line, style)


def render_trace(trace: Mapping[str, Any], width: int = WIDTH, colour: bool = False) -> str:
    """The timeline of one chain; no line is wider than `width` columns (at least 80, ValueError below).

    `trace` is the object of `erxhub trace -o json`. `colour` adds ANSI colours, which take no columns.
    """
    if width < WIDTH_MIN:
        raise ValueError(f"a timeline needs {WIDTH_MIN} columns")
    pen = _Pen(width, colour)
    lines: list[str] = []
    lines += _head(trace, pen)
    day = ""
    for stage in trace["stages"]:
        title = f"{STAGES.get(stage['stage'], '其他')} {plain(stage['stage'])}"
        count = len(stage["entries"])
        lines += ["", pen.heading(title, f"{count} {'entry' if count == 1 else 'entries'}")]
        for entry in stage["entries"]:
            if entry["at"][:10] != day:
                day = entry["at"][:10]
                lines.append(pen.style(f"│ {plain(day)} {plain(entry['at'][23:])}".rstrip(), "dim"))
            lines += _entry(entry, pen)
        if not count:
            lines.append(pen.style("│ — 无记录 nothing recorded", "dim"))
    lines += ["", *_flows(trace["flows"], pen)]
    lines += ["", *_gaps(trace["gaps"], pen)]
    lines += ["", *_accesses(trace["accesses"], pen)]
    lines += ["", *_streams(trace["stages"], pen)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _head(trace: Mapping[str, Any], pen: _Pen) -> Iterator[str]:
    light = plain(trace["light"])
    chinese, english = LIGHTS.get(light, ("未知", "unknown"))
    yield from pen.wrapped(f"处方编号 rx_no {trace['rx_no']}", "", "bold")
    yield f"{pen.style(f'● {light}', light)} {chinese}"
    yield from pen.wrapped(english, "  ")
    verified = {True: "是 yes", False: "校验失败 NO", None: "未校验 not asked for (--verify)"}[trace["verified"]]
    complete = "是 yes" if trace["complete"] else "否 no"
    state = f"完整 complete: {complete} · 校验 verified: {verified} · 账本位置 as of: {trace['as_of']}"
    yield from pen.wrapped(state, "")


def _entry(entry: Mapping[str, Any], pen: _Pen) -> Iterator[str]:
    """One or more lines: clock, flow, type, actor and place; below them the summary."""
    place = f"{plain(entry['stream']).rpartition('/')[2][:_KEY_DIGITS]}#{entry['version']}".rjust(_PLACE_WIDTH)
    # A line begins with the bar and holds four separating spaces.
    text_width = pen.width - len("│ ") - _CLOCK_WIDTH - _MARK_WIDTH - len(place) - 4
    type_width = min(31, text_width // 2)
    clock = fit(plain(entry["at"][11:23]), _CLOCK_WIDTH)
    mark = pen.style(fit(FLOW_MARKS.get(entry["flow"], "··"), _MARK_WIDTH), entry["flow"])
    kind = fit(plain(entry["type"]), type_width)
    actor = fit(plain(entry["actor"]), text_width - type_width)
    yield f"│ {pen.style(clock, 'dim')} {mark} {kind} {actor} {pen.style(place, 'dim')}"
    if entry["summary"]:
        yield from pen.wrapped(entry["summary"], "│" + " " * (_CLOCK_WIDTH + _MARK_WIDTH + 3), "dim")


def _flows(flows: Mapping[str, Mapping[str, Any]], pen: _Pen) -> Iterator[str]:
    yield pen.heading("三流 the three flows")
    for name, flow in flows.items():
        verdict = "一致 agrees" if flow["agrees"] else "不一致 DISAGREES"
        head = f"{FLOW_MARKS.get(name, '··')} {FLOWS.get(name, '')} {plain(name)}: {verdict}"
        yield pen.style(head, name if flow["agrees"] else "RED")
        yield from pen.wrapped(flow["summary"], "   ")


def _gaps(gaps: Sequence[str], pen: _Pen) -> Iterator[str]:
    yield pen.heading("缺口 gaps")
    if not gaps:
        yield "无 none"
    for code in gaps:
        chinese, english = GAPS.get(code, ("未知缺口", "a gap that this version does not know"))
        yield from pen.wrapped(f"✗ {code}", "", "RED")
        yield from pen.wrapped(f"{chinese} · {english}", "  ")


def _accesses(accesses: Sequence[Mapping[str, Any]], pen: _Pen) -> Iterator[str]:
    yield pen.heading("访问 accesses", f"{len(accesses)}")
    if not accesses:
        yield "无 none"
    actor_width = pen.width - len("· ") - _MOMENT_WIDTH - _METHOD_WIDTH - _OUTCOME_WIDTH - 3
    for access in accesses:
        at = plain(access["at"])
        when = fit(f"{at[:10]} {at[11:19]}", _MOMENT_WIDTH)
        actor = fit(plain(access["actor"]), actor_width)
        method = fit(plain(access["method"]).rpartition("/")[2], _METHOD_WIDTH)
        outcome = fit(plain(access["outcome"]), _OUTCOME_WIDTH)
        is_refusal = access["kind"] == "refusal"
        line = f"{'✗' if is_refusal else '·'} {when} {actor} {method} {outcome}".rstrip()
        yield pen.style(line, "RED") if is_refusal else line


def _streams(stages: Sequence[Mapping[str, Any]], pen: _Pen) -> Iterator[str]:
    """The streams in full, of which the entries show the first digits, and how many entries of each are here."""
    yield pen.heading("账本流 streams")
    counts: dict[str, int] = {}
    for stage in stages:
        for entry in stage["entries"]:
            counts[entry["stream"]] = counts.get(entry["stream"], 0) + 1
    for stream, count in counts.items():
        yield fit(f"{plain(stream)}  {count}", pen.width)
