"""Writes clients/erxhub/conform/spec/requirements.csv: what the conformance suite can be asked to prove.

The parts that follow from the code are generated: every row of the transition tables (LC-…), every refusal (ERR-…),
every rule of the precheck and of the national pack (RX-…). spec/written.csv has what no table says, spec/words.toml
the Chinese words. `--check` only compares, and fails when the file is behind.
"""

from __future__ import annotations

import csv
import io
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from erxhub.conform.load import REQUIREMENT_COLUMNS
from erxhub.core.lifecycle import BEFORE_HOLD, ROWS, START, Row
from erxhub.core.refusals import CATALOGUE, RefusalKind
from erxhub.core.rx_rules import RULES
from generate import LATER

ROOT: Final = Path(__file__).parents[1]
SPEC: Final = ROOT / "clients" / "erxhub" / "conform" / "spec"
PACK: Final = ROOT / "hub" / "erxhub" / "policy" / "packs" / "CN.toml"

Requirement = dict[str, str]


def lifecycle(words: dict[str, Any]) -> Iterator[Requirement]:
    """One requirement for each section and event; its text has every row with that event."""
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in ROWS:
        section = words["machines"][row.machine.value]["section"]
        rows[f"LC-{section}-{row.event.replace(' ', '.')}"].append(row)
    for requirement, same in rows.items():
        actors = dict.fromkeys(["hub", *(words["roles"][role]["actor"] for row in same for role in row.roles)])
        yield {
            "set": "lifecycle",
            "id": requirement,
            "document": f"docs/lifecycle.md#{same[0].machine.value}",
            "requirement_en": " ".join(_row_en(row) for row in same) + " In no other state.",
            "requirement_zh": "".join(_row_zh(row, words) for row in same) + "其他状态下不得发生。",
            "conformance": "MUST",
            "actors": ";".join(actors),
            "source": "our choice",
            "not_tested": "",
        }


def _row_en(row: Row) -> str:
    states = " or ".join("before it exists" if state == START else state for state in row.states)
    after = {"": "the state stays", BEFORE_HOLD: "it is again as before the hold"}.get(
        row.next_state, f"it is {row.next_state}"
    )
    return f"{row.machine.value}: {states}, {row.trigger!r} by {' or '.join(row.roles)} leaves {row.event}; {after}."


def _row_zh(row: Row, words: dict[str, Any]) -> str:
    states = "、".join("尚不存在" if state == START else state for state in row.states)
    who = "、".join(words["roles"][role]["zh"] for role in row.roles)
    after = {"": "状态不变", BEFORE_HOLD: "恢复为占用前状态"}.get(row.next_state, f"状态变为 {row.next_state}")
    thing, trigger = words["machines"][row.machine.value]["zh"], words["triggers"][row.trigger]
    return f"{thing}处于 {states} 时，{who}“{trigger}”产生 {row.event}，{after}。"


def refusals() -> Iterator[Requirement]:
    """One requirement for each refusal of the catalogue; those that no call can meet say why."""
    for kind in CATALOGUE.values():
        yield {
            "set": "refusals",
            "id": f"ERR-{kind.code}",
            "document": "docs/refusals.md",
            "requirement_en": f"{kind.en} The answer is {kind.code} with {kind.grpc_status}, {_again_en(kind)}",
            "requirement_zh": f"{kind.zh}应答为 {kind.code}（{kind.grpc_status}），{_again_zh(kind)}",
            "conformance": "MUST",
            "actors": "hub",
            "source": "our choice",
            "not_tested": LATER.get(kind.code, ""),
        }


def _again_en(kind: RefusalKind) -> str:
    return "and the same request may be sent again." if kind.retriable else "and the same request is not sent again."


def _again_zh(kind: RefusalKind) -> str:
    return "同一请求可以重试。" if kind.retriable else "同一请求不得重试。"


def rules(words: dict[str, Any]) -> Iterator[Requirement]:
    """One requirement for each rule id that the precheck or a parameter of the national pack stands for."""
    texts: dict[str, list[str]] = defaultdict(list)
    for rule in RULES:
        for rule_id in rule.rule_ids:
            said = " ".join((rule.check.__doc__ or "").split("\n\n")[0].split())
            texts[rule_id].append(said.partition(": ")[2])
    pack: dict[str, Any] = tomllib.loads(PACK.read_text(encoding="utf-8"))["parameter"]
    for name, parameter in pack.items():
        for rule_id in parameter["rule_ids"]:
            texts[rule_id].append(f"{parameter['meaning']}: as the pack says ({name}).")
    unknown = words["rules"].keys() - texts.keys()
    if unknown:
        raise ValueError(f"words.toml has rules that nothing stands for: {sorted(unknown)}")
    for rule_id in sorted(texts):
        sentences = dict.fromkeys(text[:1].upper() + text[1:] for text in texts[rule_id])
        yield {
            "set": "rules",
            "id": f"RX-{rule_id}",
            "document": "docs/policy.md",
            "requirement_en": " ".join(sentences),
            "requirement_zh": words["rules"][rule_id]["zh"],
            "conformance": "MUST",
            "actors": "hub",
            "source": words["rules"][rule_id]["source"],
            "not_tested": "",
        }


def written() -> Iterator[Requirement]:
    """What no table says: the invariants, and how the parties behave on the wire."""
    with (SPEC / "written.csv").open(encoding="utf-8") as lines:
        yield from csv.DictReader(lines)


def content() -> str:
    """The whole file."""
    words = tomllib.loads((SPEC / "words.toml").read_text(encoding="utf-8"))
    text = io.StringIO()
    writer = csv.DictWriter(text, REQUIREMENT_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for part in (lifecycle(words), refusals(), rules(words), written()):
        writer.writerows(part)
    return text.getvalue()


def main() -> int:
    """Write the file, or with --check say whether it is behind."""
    check = "--check" in sys.argv[1:]
    path = SPEC / "requirements.csv"
    if path.exists() and path.read_text(encoding="utf-8") == content():
        return 0
    if not check:
        path.write_text(content(), encoding="utf-8")
    print(f"{'behind' if check else 'written'}: {path.name}")
    return 1 if check else 0


if __name__ == "__main__":
    sys.exit(main())
