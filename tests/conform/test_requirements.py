"""The requirements: generated from the tables, complete in both languages, listed with the cases that verify them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from erxhub.cli.main import main
from erxhub.conform.load import load_requirements, load_suite
from erxhub.core.lifecycle import ROWS
from erxhub.core.refusals import CATALOGUE
from erxhub.core.rx_rules import RULES

ROOT = Path(__file__).parents[2]
ROWS_OF = {one.id: one.row for one in load_requirements().values()}


@pytest.mark.interpreted
def test_the_file_is_what_the_tables_say() -> None:
    run = subprocess.run([sys.executable, ROOT / "docs" / "requirements.py", "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_row_of_the_lifecycle_every_refusal_every_rule_and_every_invariant_is_a_requirement() -> None:
    texts = " ".join(row["requirement_en"] for row in ROWS_OF.values() if row["set"] == "lifecycle")
    for row in ROWS:
        assert f"{row.trigger!r} by {' or '.join(row.roles)} leaves {row.event};" in texts, row
    assert {f"ERR-{code}" for code in CATALOGUE} <= ROWS_OF.keys()
    assert {f"RX-{rule_id}" for rule in RULES for rule_id in rule.rule_ids} <= ROWS_OF.keys()
    assert {f"INV-I{number}" for number in range(1, 26)} <= ROWS_OF.keys()


@pytest.mark.parametrize("column", ["set", "document", "requirement_en", "requirement_zh", "conformance", "actors"])
def test_no_requirement_leaves_a_column_empty(column: str) -> None:
    assert [name for name, row in ROWS_OF.items() if not row[column].strip()] == []


def test_a_requirement_has_a_source_and_a_conformance_of_the_agreed_ones() -> None:
    assert {row["source"] for row in ROWS_OF.values()} == {"law", "published interface", "our choice"}
    assert {row["conformance"] for row in ROWS_OF.values()} <= {"MUST", "SHOULD", "MAY"}
    assert {row["document"].partition("#")[0] for row in ROWS_OF.values()} <= {
        str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")
    }


def test_the_list_names_the_cases_that_verify_a_requirement() -> None:
    ran = CliRunner().invoke(main, ["conform", "list", "--requirements", "-o", "json"])
    assert ran.exit_code == 0, ran.output
    listed = {row["id"]: row for row in json.loads(ran.output)}
    assert listed.keys() == ROWS_OF.keys()
    for case in load_suite().cases:
        assert all(case.id in listed[requirement]["cases"] for requirement in case.verifies), case.id
    assert listed["ERR-RET_INVALID"]["not_tested"]


def test_the_list_of_a_role_names_its_cases_only() -> None:
    ran = CliRunner().invoke(main, ["conform", "list", "--requirements", "--role", "pharmacy", "-o", "json"])
    named = {one for row in json.loads(ran.output) for one in row["cases"]}
    assert named == {case.id for case in load_suite().cases if "pharmacy" in case.roles}
