"""The full matrix: every stable case against every mutant, kept in a file that a quick test reads.

Owns: matrix.csv, one row a mutant with the cases that caught it. Must never: leave out a case that caught nothing; the
score is of what was run.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from erxhub.conform.load import load_suite
from tests.mutants.clients import CLIENTS
from tests.mutants.hubs import HUBS
from tests.mutants.patching import Mutant

FILE: Final = Path(__file__).with_name("matrix.csv")
MUTANTS: Final[Mapping[str, Mutant]] = {**CLIENTS, **HUBS}
ROLES: Final = ("hospital", "pharmacy", "hub")
_COLUMNS: Final = ("role", "mutant", "killed_by")


class Row(NamedTuple):
    """One mutant: whose cases judged it, and which of them caught it, by id."""

    role: str
    mutant: str
    killed_by: tuple[str, ...]


@cache
def stable_cases(role: str) -> list[str]:
    """The ids of a role's stable cases, in order."""
    return [case.id for case in load_suite().cases if role in case.roles and case.status == "stable"]


def read() -> dict[str, Row]:
    """The kept rows by mutant."""
    if not FILE.exists():
        return {}
    with FILE.open(encoding="utf-8", newline="") as file:
        rows = [Row(one["role"], one["mutant"], tuple(one["killed_by"].split())) for one in csv.DictReader(file)]
    return {row.mutant: row for row in rows}


def write(rows: Mapping[str, Row]) -> None:
    """Keeps the rows of mutants that there are, in the order of their tables."""
    with FILE.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(_COLUMNS)
        out.writerows((*rows[name][:2], " ".join(rows[name].killed_by)) for name in MUTANTS if name in rows)


def survivors(rows: Mapping[str, Row]) -> list[str]:
    """Mutants that no stable case caught, nor one that their table names."""
    return [name for name in MUTANTS if name not in rows or not rows[name].killed_by]


def idle(rows: Mapping[str, Row]) -> list[str]:
    """Stable cases that caught nothing, as "<role> <case>"."""
    caught = {(row.role, case) for row in rows.values() for case in row.killed_by}
    return [f"{role} {case}" for role in ROLES for case in stable_cases(role) if (role, case) not in caught]


def table(rows: Mapping[str, Row]) -> Iterable[str]:
    """The matrix to read, role by role: a line for each mutant, a column for each case."""
    for role in ROLES:
        cases = stable_cases(role)
        mine = [row for row in rows.values() if row.role == role]
        others = sorted({case for row in mine for case in row.killed_by} - set(cases))
        width = max((len(row.mutant) for row in mine), default=0)
        yield f"{role}: {len(mine)} mutants, {len(cases)} stable cases"
        columns = [*cases, *others]
        for place in range(max(map(len, columns), default=0)):
            yield " " * (width + 2) + " ".join(one[place : place + 1] or " " for one in columns)
        for row in mine:
            marks = " ".join("#" if case in row.killed_by else "." for case in columns)
            yield f"{row.mutant:<{width}}  {marks}  {sum(case in row.killed_by for case in columns)}"
        counts = [sum(case in row.killed_by for row in mine) for case in columns]
        yield f"{'caught':<{width}}  " + " ".join(str(count) if count < 10 else "+" for count in counts)
        yield ""
