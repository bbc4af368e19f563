import pytest

from erxhub.conform.checks import Checks
from erxhub.conform.load import Problem
from erxhub.conform.model import Text, Verdict
from erxhub.conform.result import (
    Exit,
    ListMalformed,
    against_list,
    read_known_failing,
    result_of_problems,
    verdict_of,
    without_timings,
)
from tests.conform.ground import a_result, a_run, checks_of, planned


@pytest.mark.parametrize(
    ("level", "status", "verdict"),
    [
        ("MUST", "stable", Verdict.FAIL),
        ("SHOULD", "stable", Verdict.WARN),
        ("MAY", "stable", Verdict.INFO),
        ("MUST", "provisional", Verdict.WARN),
        ("SHOULD", "provisional", Verdict.WARN),
    ],
)
def test_a_check_that_does_not_hold_weighs_as_the_level_says(level: str, status: str, verdict: Verdict) -> None:
    assert verdict_of(planned(level=level, status=status), checks_of(True, False))[0] is verdict


def test_all_that_holds_is_a_pass_and_nothing_to_look_at() -> None:
    assert verdict_of(planned(), checks_of(True, True)) == (Verdict.PASS, None)


def test_what_somebody_has_to_look_at_is_a_review_unless_something_failed() -> None:
    checks = checks_of(True)
    checks.review("look at the screen", "请看屏幕")
    assert verdict_of(planned(), checks)[0] is Verdict.REVIEW
    checks.that(False, en="x", zh="x")
    assert verdict_of(planned(), checks)[0] is Verdict.FAIL


def test_a_mistake_of_the_harness_is_an_error_whatever_else_failed() -> None:
    checks = Checks()
    checks.that(False, en="a", zh="a")
    checks.that(False, en="b", zh="b", point="harness")
    assert verdict_of(planned(), checks)[0] is Verdict.ERROR


KNOWN = {"DSP-001": "ticket 7"}


@pytest.mark.parametrize(
    ("verdict", "listed"),
    [
        (Verdict.FAIL, Verdict.XFAIL),
        (Verdict.WARN, Verdict.XFAIL),
        (Verdict.PASS, Verdict.XPASS),
        (Verdict.REVIEW, Verdict.XPASS),
        (Verdict.SKIP, Verdict.SKIP),
        (Verdict.UNSUPPORTED, Verdict.UNSUPPORTED),
        (Verdict.ERROR, Verdict.ERROR),
    ],
)
def test_the_known_failing_list_is_strict(verdict: Verdict, listed: Verdict) -> None:
    assert against_list(a_result(verdict), KNOWN).verdict is listed
    assert against_list(a_result(verdict, id="DSP-002"), KNOWN).verdict is verdict


def test_a_list_is_read_with_its_reasons() -> None:
    text = "# why\n\nDSP-001  # ticket 7\nCLM-002@SM2-SM3\n"
    assert read_known_failing(text, ["DSP-001", "CLM-002"]) == {"DSP-001": "ticket 7", "CLM-002@SM2-SM3": ""}


@pytest.mark.parametrize("text", ["DSP-999", "DSP-001\nDSP-001", "DSP-*"])
def test_a_list_with_a_line_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(ListMalformed):
        read_known_failing(text, ["DSP-001"])


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        (
            [
                Verdict.PASS,
                Verdict.WARN,
                Verdict.INFO,
                Verdict.SKIP,
                Verdict.UNSUPPORTED,
                Verdict.REVIEW,
                Verdict.XFAIL,
            ],
            0,
        ),
        ([Verdict.PASS, Verdict.FAIL], 1),
        ([Verdict.XPASS], 1),
        ([Verdict.FLAKY], 1),
        ([Verdict.FAIL, Verdict.ERROR], 2),
        ([], 2),
    ],
)
def test_the_exit_code(verdicts: list[Verdict], code: int) -> None:
    assert a_run(*map(a_result, verdicts)).exit_code() == code


def test_an_unusable_product_has_an_exit_code_of_its_own() -> None:
    run = a_run(a_result(Verdict.FAIL))
    run.unusable = Text("gone", "不可用")
    assert run.exit_code() is Exit.UNUSABLE


def test_a_bad_case_is_a_result_that_names_every_problem() -> None:
    problems = [Problem("a.yaml", "DSP-009", place, "CASE_SCHEMA", Text(place, place)) for place in ("level", "id")]
    result = result_of_problems("DSP-009", problems, "pharmacy", "dev", 1)
    assert result.verdict is Verdict.ERROR
    assert [check.where for check in result.checks] == ["level", "id"]


def test_timings_are_all_that_is_left_out() -> None:
    record = a_run(a_result(Verdict.PASS, took_ms=5)).record()
    assert without_timings(record).keys() == record.keys() - {"began_at_ms", "took_ms"}
    assert "took_ms" not in without_timings(record)["results"][0]
