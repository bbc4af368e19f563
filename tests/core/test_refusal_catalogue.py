"""The refusal catalogue: complete, well-formed, and equal to the facts it was copied from."""

from __future__ import annotations

import csv
import dataclasses
import re
from pathlib import Path

import pytest

from erxhub.core.refusals import CATALOGUE, COLUMNS, CatalogueError, RefusalKind, parse_catalogue

HEADER = ",".join(COLUMNS)
OWN = {
    "RECORD_UNKNOWN": (
        "NOT_FOUND",
        "No such registry record, or none in the caller's area.",
    ),
    "RECORD_STATE": (
        "FAILED_PRECONDITION",
        "The registry record is not in a state that allows this change.",
    ),
    "RECORD_EXISTS": ("ALREADY_EXISTS", "The registry record exists with other content."),
    "REPLY_TOO_LARGE": ("FAILED_PRECONDITION", "The reply would be larger than the hub sends."),
}


@pytest.fixture
def shared_rows(shared: Path) -> dict[str, dict[str, str]]:
    with (shared / "domain" / "refusals.csv").open(encoding="utf-8", newline="") as file:
        return {row["code"]: row for row in csv.DictReader(file)}


def test_every_shared_refusal_is_in_the_catalogue_word_for_word(
    shared_rows: dict[str, dict[str, str]],
) -> None:
    for code, row in shared_rows.items():
        assert CATALOGUE[code] == RefusalKind(
            code=code,
            grpc_status=row["grpc_status"],
            rule_ids=tuple(row["rule_ids"].split(";")),
            en=row["en"],
            zh=row["zh"],
            retriable=row["retriable"] == "yes",
            needs=row["needs"],
        )


def test_the_project_adds_only_its_own_registry_refusals(shared_rows: dict[str, dict[str, str]]) -> None:
    assert set(CATALOGUE) - set(shared_rows) == set(OWN)


@pytest.mark.parametrize("code", OWN)
def test_own_registry_refusals_have_their_status_and_sentence(code: str) -> None:
    assert (CATALOGUE[code].grpc_status, CATALOGUE[code].en) == OWN[code]


@pytest.mark.parametrize("kind", CATALOGUE.values(), ids=lambda kind: str(kind.code))
def test_a_refusal_has_a_code_rules_and_both_languages(kind: RefusalKind) -> None:
    assert re.fullmatch(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*", kind.code)
    assert kind.rule_ids
    assert all(re.fullmatch(r"[A-Z][A-Z0-9]*(-\d+b?)?", rule_id) for rule_id in kind.rule_ids)
    assert re.search(r"[\u4e00-\u9fff]", kind.zh)
    assert not re.search(r"[\u4e00-\u9fff]", kind.en)
    assert kind.en.endswith(".")
    assert kind.zh.endswith("。")
    assert kind.needs


def test_only_an_overloaded_hub_exhausts_a_resource_and_only_a_broken_one_is_unavailable() -> None:
    by_status = {
        status: {kind.code for kind in CATALOGUE.values() if kind.grpc_status == status}
        for status in ("RESOURCE_EXHAUSTED", "UNAVAILABLE", "DATA_LOSS")
    }
    assert by_status == {
        "RESOURCE_EXHAUSTED": {"OVERLOADED"},
        "UNAVAILABLE": {"HUB_UNAVAILABLE"},
        "DATA_LOSS": {"CHAIN_BROKEN"},
    }


def test_the_catalogue_cannot_be_changed_while_the_hub_runs() -> None:
    with pytest.raises(TypeError):
        CATALOGUE["X"] = CATALOGUE["RX_UNKNOWN"]  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        CATALOGUE["RX_UNKNOWN"].code = "X"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("", "header"),
        (f"{HEADER},more\nA,OK,P-01,e,z,no,n,x\n", "header"),
        (f"{HEADER}\nA,OK,P-01,e,z,no,n\nA,OK,P-01,e,z,no,n\n", "twice"),
        (f"{HEADER}\nA,INTERNAL,P-01,e,z,no,n\n", "INTERNAL"),
        (f"{HEADER}\nA,OK,P-01,e,z,maybe,n\n", "retriable"),
        (f"{HEADER}\nA,OK,P-01,e,z,no\n", "line 2"),
        (f"{HEADER}\nA,OK,P-01,e,z,no,n,x\n", "line 2"),
        (f"{HEADER}\nA,OK,P-01,e, ,no,n\n", "line 2"),
    ],
)
def test_a_wrong_catalogue_file_is_not_read(rows: str, says: str) -> None:
    with pytest.raises(CatalogueError, match=says):
        parse_catalogue(rows)
