"""What the last full run of the matrix found (`python -m tests.mutants --all`, part of `make campaign`)."""

from __future__ import annotations

from tests.mutants import matrix
from tests.mutants.matrix import MUTANTS


def test_every_mutant_was_tried_and_caught() -> None:
    rows = matrix.read()
    assert rows.keys() == MUTANTS.keys(), "run `python -m tests.mutants --all --mutant NAME` for what is new"
    assert matrix.survivors(rows) == []


def test_every_case_that_a_mutants_table_names_caught_it() -> None:
    rows = matrix.read()
    missed = {name: set(one.killed_by) - set(rows[name].killed_by) for name, one in MUTANTS.items()}
    assert {name: cases for name, cases in missed.items() if cases} == {}


def test_every_stable_case_catches_a_mutant() -> None:
    assert matrix.idle(matrix.read()) == []


def test_the_table_has_a_line_for_each_mutant() -> None:
    lines = list(matrix.table(matrix.read()))
    assert {name for name in MUTANTS if any(line.startswith(name) for line in lines)} == MUTANTS.keys()
