"""A run goes on whatever a driver, a case file or the product does; each has a clear verdict."""

from pathlib import Path

import pytest

from erxhub.conform.model import Verdict
from erxhub.conform.result import Exit, RunResult
from tests.conform.ground import case_text, codes, driver_command, run_cases, verdicts


def asked(how: str, expect: str = "{outcome: ok}", more: str = "") -> str:
    return f"[{{sut: {{op: list_available, args: {{voucher_code: {how}}}, expect: {expect}{more}}}}}]"


HANG_MS = ", deadline_ms: 150"
MISBEHAVIOUR = {
    "crash": (Verdict.FAIL, "DRV_CRASHED"),
    "killed": (Verdict.FAIL, "DRV_CRASHED"),
    "hang": (Verdict.FAIL, "DRV_HANGS"),
    "garbage": (Verdict.FAIL, "DRV_GARBAGE"),
    "binary": (Verdict.FAIL, "DRV_GARBAGE"),
    "garbage_flood": (Verdict.FAIL, "DRV_GARBAGE"),
    "twice": (Verdict.FAIL, "DRV_ANSWERED_TWICE"),
    "unknown_id": (Verdict.FAIL, "DRV_UNKNOWN_ID"),
    "no_id": (Verdict.FAIL, "DRV_SHAPE"),
    "both": (Verdict.FAIL, "DRV_SHAPE"),
    "bad_outcome": (Verdict.FAIL, "DRV_SHAPE"),
    "endless_line": (Verdict.FAIL, "DRV_LINE_TOO_LONG"),
    "half_line": (Verdict.FAIL, "DRV_CRASHED"),
    "error": (Verdict.FAIL, "DRV_CRASHED"),
    "unsupported": (Verdict.FAIL, "DRV_NOT_AS_DESCRIBED"),
    "rejected": (Verdict.FAIL, ""),
    "stderr_flood": (Verdict.PASS, ""),
}


async def test_each_misbehaviour_has_its_verdict_and_the_case_after_it_passes(tmp_path: Path) -> None:
    cases = []
    for number, how in enumerate(MISBEHAVIOUR, start=1):
        cases.append(case_text(f"BAD-{number:03d}", asked(how, more=HANG_MS if how == "hang" else "")))
        cases.append(case_text(f"BAD-{number + 500:03d}", asked("good")))
    # Good ones stand between: in the order of ids they would all come last.
    order = [f"BAD-{2 * place + kind:03d}" for place in range(len(MISBEHAVIOUR)) for kind in (0, 1)]
    cases = [text.replace(text.split()[2], one) for text, one in zip(cases, order, strict=True)]
    run = await run_cases(tmp_path, *cases)
    by_key = {result.key: result for result in run.results}
    for place, (how, (verdict, code)) in enumerate(MISBEHAVIOUR.items()):
        bad, good = by_key[order[2 * place]], by_key[order[2 * place + 1]]
        assert (how, bad.verdict, code in codes(bad) or not code) == (how, verdict, True), bad.checks
        assert (how, good.verdict) == (how, Verdict.PASS), good.checks
    assert run.exit_code() is Exit.FAILURES


async def test_answers_in_any_order_are_no_misbehaviour(tmp_path: Path) -> None:
    steps = """
      - sut: {op: list_available, args: {voucher_code: reversed}, background: first}
      - sut: {op: list_available, args: {voucher_code: reversed}, background: second}
      - join: {name: first, expect: {outcome: ok, number: 0}}
      - join: {name: second, expect: {outcome: ok, number: 1}}
"""
    run = await run_cases(tmp_path, case_text("BAD-001", steps))
    assert verdicts(run) == {"BAD-001": Verdict.PASS}


async def test_stderr_is_kept_for_a_case_that_fails(tmp_path: Path) -> None:
    run = await run_cases(tmp_path, case_text("BAD-001", asked("stderr_flood", "{outcome: unknown}")))
    (result,) = run.results
    assert result.verdict is Verdict.FAIL
    assert "line 199999 of very much" in result.stderr
    assert len(result.stderr) < 100_000


@pytest.mark.parametrize("driver", ["/no/such/program", driver_command("not_at_all"), "tcp://127.0.0.1:1"])
async def test_a_driver_that_never_starts_ends_the_run_as_unusable(tmp_path: Path, driver: str) -> None:
    run = await run_cases(tmp_path, case_text("BAD-001", asked("good")), driver=driver)
    assert run.exit_code() is Exit.UNUSABLE
    assert run.unusable is not None
    if "not_at_all" in driver:
        assert "cannot find my licence" in run.unusable.en


async def test_a_driver_that_starts_no_more_ends_the_run_and_what_is_left_is_skipped(tmp_path: Path) -> None:
    cases = [
        case_text("BAD-001", asked("good")),
        case_text("BAD-002", asked("crash")),
        case_text("BAD-003", asked("good")),
    ]
    run = await run_cases(tmp_path, *cases, driver=driver_command("starts", "2", str(tmp_path / "count")))
    assert verdicts(run) == {"BAD-001": Verdict.PASS, "BAD-002": Verdict.FAIL, "BAD-003": Verdict.SKIP}
    assert run.exit_code() is Exit.UNUSABLE


async def test_an_unknown_outcome_of_a_file_stands_beside_the_good_cases(tmp_path: Path) -> None:
    bad = case_text("BAD-001", asked("good")).replace("level:", "lvl:")
    run = await run_cases(tmp_path, bad, case_text("BAD-002", asked("good")))
    assert verdicts(run) == {"BAD-001": Verdict.ERROR, "BAD-002": Verdict.PASS}
    assert run.exit_code() is Exit.HARNESS_ERROR


async def one(tmp_path: Path, steps: str, **settings: object) -> tuple[RunResult, Verdict, set[str]]:
    run = await run_cases(tmp_path, case_text("BAD-001", steps), **settings)
    (result,) = run.results
    return run, result.verdict, codes(result)


async def test_a_case_has_a_deadline_of_its_own(tmp_path: Path) -> None:
    run = await run_cases(
        tmp_path,
        case_text("BAD-001", asked("hang"), more="    deadline_ms: 5000\n"),
        case_text("BAD-002", asked("good")),
        operation_ms=60_000,
    )
    assert verdicts(run) == {"BAD-001": Verdict.FAIL, "BAD-002": Verdict.PASS}
    assert codes(run.results[0]) == {"CASE_DEADLINE"}


async def test_a_product_that_never_makes_the_call_that_is_waited_for_fails(tmp_path: Path) -> None:
    _, verdict, _ = await one(tmp_path, "[{wait_for: {method: Dispensing/Settle, calls: 1, deadline_ms: 50}}]")
    assert verdict is Verdict.FAIL


async def test_an_answer_without_what_the_next_step_needs_fails(tmp_path: Path) -> None:
    steps = """
      - sut: {op: list_available, args: {voucher_code: good}, save: listed}
      - sut: {op: list_available, args: {voucher_code: "${listed.next}"}}
"""
    _, verdict, _ = await one(tmp_path, steps)
    assert verdict is Verdict.FAIL


async def test_an_operation_that_is_not_there_and_not_named_is_unsupported(tmp_path: Path) -> None:
    _, verdict, _ = await one(tmp_path, "[{sut: {op: resume}}, {sut: {op: settle, args: {}}}, {sut: {op: hand_over}}]")
    assert verdict is Verdict.UNSUPPORTED


async def test_a_fault_that_can_match_nothing_is_an_error_of_the_case(tmp_path: Path) -> None:
    fault = "[{faults: {set: [{method: Prescribing/UploadPrescription, actor: sut, do: delay, args: {delay_ms: 1}}]}}]"
    run, verdict, _ = await one(tmp_path, fault)
    assert verdict is Verdict.ERROR
    assert "SBX_FAULT_NEVER_MATCHES" in run.results[0].checks[0].what.en


async def test_the_robots_refusal_that_was_not_expected_fails_and_the_expected_one_passes(tmp_path: Path) -> None:
    steps = """
      - robot: {{actor: hospital, do: issue, save: rx}}
      - robot: {{actor: hospital, do: revoke, args: {{rx: $rx}}}}
      - robot: {{actor: pharmacy_b, do: hold, args: {{rx: $rx}}{more}}}
"""
    run = await run_cases(
        tmp_path,
        case_text("BAD-001", steps.format(more="")),
        case_text("BAD-002", steps.format(more=", refused: RX_UNDO_STATE")),
    )
    assert verdicts(run) == {"BAD-001": Verdict.FAIL, "BAD-002": Verdict.FAIL}


async def test_a_repeat_finds_out_whether_a_failure_stays(tmp_path: Path) -> None:
    run = await run_cases(tmp_path, case_text("BAD-001", asked("bad_outcome")), repeat_failed=1)
    assert verdicts(run) == {"BAD-001": Verdict.FAIL}
    assert "--run BAD-001" in run.results[0].repeat


async def test_a_known_failing_case_does_not_fail_the_run_and_a_healed_one_does(tmp_path: Path) -> None:
    cases = (case_text("BAD-001", asked("bad_outcome")), case_text("BAD-002", asked("good")))
    run = await run_cases(tmp_path / "a", *cases, known_failing={"BAD-001": "ticket"})
    assert (run.exit_code(), verdicts(run)["BAD-001"]) == (Exit.OK, Verdict.XFAIL)
    run = await run_cases(tmp_path / "b", *cases, known_failing={"BAD-001": "ticket", "BAD-002": "healed"})
    assert (run.exit_code(), verdicts(run)["BAD-002"]) == (Exit.FAILURES, Verdict.XPASS)
