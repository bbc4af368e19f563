"""`python -m tests.mutants [--all] [--mutant GLOB]`: mutants against cases, as a table with its score.

Owns: the command. Without --all each mutant meets the cases that its table names, with it every stable case of its
role; then matrix.csv is written anew. Exit code 1 where a mutant survives, or (--all) a stable case catches nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import tempfile
import time
from fnmatch import fnmatch
from pathlib import Path

from tests.mutants import matrix
from tests.mutants.matrix import MUTANTS, Row
from tests.mutants.patching import Mutant
from tests.mutants.trying import caught_by, verdicts_of


async def _row(mutant: Mutant, *, every: bool) -> Row:
    with tempfile.TemporaryDirectory(prefix="erxhub-mutant-") as folder:
        named = caught_by(await verdicts_of(mutant, mutant.killed_by, Path(folder)))
    if not every:
        return Row(mutant.cases_of, mutant.name, named)
    with tempfile.TemporaryDirectory(prefix="erxhub-mutant-") as folder:
        found = caught_by(await verdicts_of(mutant, (), Path(folder), selection="stable"))
    return Row(mutant.cases_of, mutant.name, tuple(sorted({*named, *found})))


def main() -> int:
    """Runs what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--all", action="store_true", help="every stable case against every mutant")
    parser.add_argument("--role", choices=matrix.ROLES, help="only mutants that cases of this role judge")
    parser.add_argument("--mutant", metavar="GLOB", default="*", help="only these; the kept rows of others stay")
    told = parser.parse_args()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # What a broken hub says of itself is long, and its table says what is broken.
    logging.disable(logging.CRITICAL)
    kept = matrix.read()
    rows: dict[str, Row] = {}
    for mutant in MUTANTS.values():
        if not fnmatch(mutant.name, told.mutant) or told.role not in (None, mutant.cases_of):
            continue
        began = time.monotonic()
        rows[mutant.name] = row = asyncio.run(_row(mutant, every=told.all))
        took = time.monotonic() - began
        print(f"{mutant.role:<9} {mutant.name:<42} {took:5.1f} s  {' '.join(row.killed_by) or 'SURVIVES'}", flush=True)
        if told.all:
            # Read anew: several may run at a time, each with its own mutants.
            kept = matrix.read()
            matrix.write({**kept, **rows})
    shown = {**kept, **rows} if told.all else rows
    print()
    for line in matrix.table({name: shown[name] for name in MUTANTS if name in shown}):
        print(line)
    alive = [name for name in rows if not rows[name].killed_by]
    print(f"mutation score: {len(rows) - len(alive)} of {len(rows)} killed")
    lost = matrix.idle(shown) if told.all else []
    for what, names in (("survive", alive), ("catch nothing", lost)):
        if names:
            print(f"{what}: {', '.join(names)}")
    return 1 if alive or lost else 0


if __name__ == "__main__":
    sys.exit(main())
