"""Printing: data on stdout in three formats, and failures on stderr with the right exit code."""

import json

import pytest

from erxhub.cli.exits import exit_code_for, exit_code_of_status
from erxhub.cli.output import Output
from erxhub.cli.session import say_failure
from erxhub.client import CallFailed, ReceiptInvalid, Refusal, Violation
from erxhub.core.refusals import CATALOGUE

ROWS = [{"code": "01", "name": "甲类", "flags": ["a", "b"]}, {"code": "2", "name": "x", "flags": []}]
REFUSAL = Refusal(
    "VCH_EXPIRED",
    "FAILED_PRECONDITION",
    field="voucher_code",
    violations=(Violation("voucher_code", "string.len", "28 digits"),),
    rule_ids=("S1-05",),
    text_en="It has expired.",
    text_zh="已过期。",
    retriable=True,
    needs="a new code",
    legal_actions=("issue",),
)


def test_a_table_that_is_no_terminal_is_plain_and_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    Output("table").rows(ROWS, ("code", "name", "flags"))
    assert capsys.readouterr().out.splitlines() == ["code  name  flags", "01    甲类  a, b", "2     x"]


def test_json_is_one_array_and_jsonl_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    Output("json").rows(ROWS)
    assert json.loads(capsys.readouterr().out) == ROWS
    Output("jsonl").rows(ROWS)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == ROWS


def test_an_object_is_flattened_in_a_table_only(capsys: pytest.CaptureFixture[str]) -> None:
    data = {"a": {"b": 1}, "c": [{"d": True}], "e": None}
    Output("table").object(data)
    assert capsys.readouterr().out.splitlines() == ["a.b     1", "c[1].d  yes", "e"]
    Output("json").object(data)
    assert json.loads(capsys.readouterr().out) == data


def test_a_refusal_is_told_in_both_languages_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    say_failure(REFUSAL, Output("table"))
    printed = capsys.readouterr()
    assert printed.out == ""
    for part in (
        "VCH_EXPIRED",
        "It has expired.",
        "已过期。",
        "voucher_code",
        "S1-05",
        "a new code",
        "issue",
        "28 digits",
    ):
        assert part in printed.err


def test_a_refusal_is_one_json_object_on_stderr_when_the_output_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    say_failure(REFUSAL, Output("json"))
    printed = capsys.readouterr()
    assert printed.out == ""
    error = json.loads(printed.err)["error"]
    assert (error["code"], error["field"], error["text_zh"]) == ("VCH_EXPIRED", "voucher_code", "已过期。")
    assert error["violations"] == [{"field": "voucher_code", "rule": "string.len", "message": "28 digits"}]


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("NOT_FOUND", 3),
        ("PERMISSION_DENIED", 4),
        ("UNAUTHENTICATED", 4),
        ("INVALID_ARGUMENT", 2),
        ("FAILED_PRECONDITION", 5),
        ("ABORTED", 5),
        ("ALREADY_EXISTS", 5),
        ("UNAVAILABLE", 6),
        ("RESOURCE_EXHAUSTED", 6),
        ("DEADLINE_EXCEEDED", 6),
        ("DATA_LOSS", 1),
        ("INTERNAL", 1),
    ],
)
def test_the_exit_code_follows_from_the_status(status: str, code: int) -> None:
    assert exit_code_for(CallFailed(status, status, text_en="", text_zh="")) == code


def test_a_receipt_that_proves_nothing_is_a_negative_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    failure = ReceiptInvalid("SIGNATURE", "not the pinned key's")
    assert exit_code_for(failure) == 1
    say_failure(failure, Output("table"))
    assert "RECEIPT_SIGNATURE" in capsys.readouterr().err


def test_every_refusal_has_an_exit_code_of_its_own_class() -> None:
    codes = {kind.code: exit_code_of_status(kind.grpc_status) for kind in CATALOGUE.values()}
    assert set(codes.values()) <= {0, 1, 2, 3, 4, 5, 6}
    assert codes["RX_UNKNOWN"] == 3
