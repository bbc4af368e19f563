"""Runs the benchmark. See docs/benchmark.md; `--help` lists the settings and the rows."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from tests.bench import report, rows_chains, rows_grown, rows_load, rows_proof, rows_watch, uploads
from tests.bench.answers import AnswerWrong
from tests.bench.processes import ROOT
from tests.bench.results import Results
from tests.bench.saying import say

Row = Callable[[Path, bool, Results], Awaitable[None]]

ROWS: Final[Mapping[str, Row]] = {
    "naive": rows_load.naive,
    "disk": rows_load.disk,
    "crowd": rows_load.crowd,
    "stream": rows_load.stream,
    "compiled": rows_load.compiled,
    "proofs": rows_load.proofs,
    "watches": rows_watch.watches,
    "chains": rows_chains.chains,
    "witnessed": rows_proof.witnessed,
    "bundle": rows_proof.bundle,
    "mirror": rows_proof.mirror,
    "growth": rows_grown.growth,
}
"""Beside `uploads`, which has a table and plans of its own."""

LARGE: Final = "large"
"""The row that only `--large` runs."""


async def run(names: list[str], plan: uploads.Plan, quick: bool, results: Results) -> None:
    """The rows of these names, one after another, each in a folder of its own."""
    for name in names:
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="erxhub-bench-") as folder:
            if name == "uploads":
                print(await uploads.measure(plan, Path(folder), results), end="\n\n")
            else:
                row = rows_grown.large if name == LARGE else ROWS[name]
                await row(Path(folder), quick, results)
        say(f"{name}: {time.perf_counter() - begun:.0f} s")


def merge(path: Path, results: Results) -> Mapping[str, Any]:
    """Put what was measured into the file, beside the rows that an earlier run left there."""
    content: dict[str, Any] = {"machine": {}, "goals": {}, "judged_at_in_flight": report.JUDGED_AT, "figures": {}}
    if path.exists():
        content |= json.loads(path.read_text("utf-8"))
    content["machine"] = report.machine()
    content["goals"] = content["goals"] | results.goals
    content["figures"] = content["figures"] | results.figures
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", "utf-8")
    return content


def main() -> int:
    """0 when the answers were true, and 1 when not; with --strict also 1 when a goal is missed."""
    every = ("uploads", *ROWS)
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, epilog=f"Rows: {', '.join(every)}; {LARGE} by --large only."
    )
    parser.add_argument("--only", metavar="ROW,…", help="these rows; the others stay in the file as they are")
    parser.add_argument("--large", action="store_true", help="the row with 1,000,000 prescriptions, alone")
    parser.add_argument("--quick", action="store_true", help="one short round of each row: a look, no measurement")
    parser.add_argument("--tiny", action="store_true", help="a few calls, to see that the benchmark itself works")
    parser.add_argument("--rounds", type=int, help="rounds of the row `uploads`")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench.json", help="the file to write")
    parser.add_argument("--strict", action="store_true", help="end with status 1 when a goal is missed")
    arguments = parser.parse_args()
    plan = uploads.TINY if arguments.tiny else uploads.QUICK if arguments.quick else uploads.FULL
    if arguments.rounds:
        plan = uploads.Plan(arguments.rounds, plan.calls, plan.overload_in_flight, plan.overload_calls)
    names = list(every)
    if arguments.only:
        names = arguments.only.split(",")
        if wrong := set(names) - {*every, LARGE}:
            parser.error(f"no row is called {', '.join(sorted(wrong))}")
    elif arguments.large or arguments.tiny:
        names = [LARGE] if arguments.large else ["uploads"]
    results = Results()
    wrong_answer = None
    try:
        asyncio.run(run(names, plan, arguments.quick, results))
    except AnswerWrong as error:
        wrong_answer = error
    merge(arguments.output, results)
    print("\n".join(results.lines()))
    if wrong_answer is not None:
        say(f"the answers are wrong: {wrong_answer}")
        return 1
    return 0 if all(goal["ok"] for goal in results.goals.values()) or not arguments.strict else 1


if __name__ == "__main__":
    sys.exit(main())
