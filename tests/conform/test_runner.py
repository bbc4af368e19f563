"""Whole runs: the verbs of the steps in a real sandbox, and the same seed twice."""

import asyncio
import shlex
import sys
from pathlib import Path

from erxhub.conform.load import load_suite
from erxhub.conform.model import Verdict
from erxhub.conform.result import CaseResult, RunResult, without_timings
from erxhub.conform.runner import run_suite
from erxhub.conform.settings import Settings
from tests.conform.ground import case_text, run_cases, verdicts

PHARMACY = shlex.join([sys.executable, "-m", "erxhub.conform.drivers.pharmacy"])
CHOSEN = ("IDEM-003", "DSP-010", "EVT-002", "CLM-010")


async def chosen_run(folder: Path, profile: str = "strict", workers: int = 2) -> RunResult:
    settings = Settings(
        role="pharmacy", folder=folder, driver=PHARMACY, profile=profile, patterns=CHOSEN, seed=7, workers=workers
    )
    return await run_suite(load_suite(), settings)


async def test_the_same_seed_twice_gives_the_same_results_but_for_timings(tmp_path: Path) -> None:
    first = await chosen_run(tmp_path / "a")
    second = await chosen_run(tmp_path / "b", workers=1)
    assert first.counts() == {"PASS": len(CHOSEN)}
    assert without_timings(first.record()) == without_timings(second.record())


VERBS = """
      - note: {zh: 开始, en: begin}
      - voucher: {name: code, person: P01, business_type: download}
      - sut: {op: list_available, args: {voucher_code: $code}, expect: {outcome: ok}, save: listed}
      - robot: {actor: patient, do: choose_pharmacy, args: {rx: $rx, pharmacy: pharmacy_b}}
      - robot: {actor: pharmacy_b, do: hold, args: {rx: $rx}}
      - expect: {hub: [{rx: $rx, use: HELD, order: HELD, pharmacy: pharmacy_b, events: {order.held: 1}}]}
      - snapshot: {save: held}
      - advance: {next_timer: true}
      - advance: {by_ms: 7200000}
      - expect: {hub: [{rx: $rx, use: UNUSED, order: TIMED_OUT, pharmacy: pharmacy_b}]}
      - snapshot: {load: held}
      - expect: {hub: [{rx: $rx, use: HELD, order: HELD, pharmacy: pharmacy_b}]}
      - trigger: {kind: expire_hold, rx: $rx}
      - expect: {hub: [{rx: $rx, use: UNUSED, order: TIMED_OUT, pharmacy: pharmacy_b}]}
      - faults: {set: [{id: slow, method: "*", do: delay, args: {delay_ms: 1}}]}
      - faults: {clear: [slow]}
      - outage: {begin: true}
      - outage: {end: true}
      - restart: {}
      - kill: {}
      - wait_idle: {quiet_ms: 20}
      - advance: {until: "${rx.valid_until_ms}", plus_ms: 1000}
"""
EXPECT = """
    given: {prescriptions: [{name: rx, person: P01, state: effective, lines: 1}]}
    expect:
      hub:
        - {rx: $rx, status: EXPIRED, use: UNUSED, light: CLOSED, gaps: [], verified: true}
        - {events: {prescription.expired: 1, order.expired: 1}}
      wire: [{method: "*", no_call: true}, {actor: any, method: Dispensing/DownloadPrescription, codes: {OK: 1}}]
"""


async def test_every_verb_does_what_the_manual_says(tmp_path: Path) -> None:
    run = await run_cases(tmp_path, case_text("STP-001", VERBS, more=EXPECT))
    (result,) = run.results
    assert (result.verdict, result.failed_checks) == (Verdict.PASS, [])
    assert [step["verb"] for step in result.steps][:3] == ["note", "voucher", "sut"]
    assert result.notes[0].zh == "开始"
    assert result.traffic


GIVEN = """
    given:
      prescriptions:
        - {{name: rx, state: {state}}}
    expect: {{hub: [{{rx: $rx, pharmacy: pharmacy_b, {expected}}}]}}
"""
STATES = {
    "effective": "use: UNUSED, order: NONE",
    "held": "use: HELD, order: HELD",
    "reviewed": "use: HELD, order: REVIEWED, review: PASSED",
    "quoted": "order: PRESETTLED, settlement: PRE",
    "settled": "order: SETTLED, settlement: SETTLED, dispense: READY",
    "dispensed": "use: USED, status: EXHAUSTED, order: DISPENSED, dispense: OUT",
    "handed_over": "order: COMPLETED, light: GREEN",
    "revoked": "status: UNDONE, light: CLOSED",
}


async def test_robots_bring_a_prescription_to_every_state(tmp_path: Path) -> None:
    cases = [
        case_text(f"STP-{number:03d}", "[{sut: {op: reset}}]", more=GIVEN.format(state=state, expected=expected))
        for number, (state, expected) in enumerate(STATES.items(), start=1)
    ]
    run = await run_cases(tmp_path, *cases)
    failed = {result.key: result.failed_checks for result in run.results if result.verdict is not Verdict.PASS}
    assert not failed


async def test_an_expectation_of_the_hub_that_does_not_hold_fails(tmp_path: Path) -> None:
    more = GIVEN.format(state="held", expected="use: UNUSED, events: {order.held: 2}")
    run = await run_cases(tmp_path, case_text("STP-001", "[{sut: {op: reset}}]", more=more))
    assert verdicts(run) == {"STP-001": Verdict.FAIL}
    assert {(check.expected, check.actual) for check in run.results[0].failed_checks} == {
        ("UNUSED", "HELD"),
        ("2", "1"),
    }


async def test_a_driver_over_tcp_is_tested_the_same_way_and_left_running(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *shlex.split(PHARMACY), "--listen", "127.0.0.1:0", stderr=asyncio.subprocess.PIPE
    )
    try:
        assert process.stderr is not None
        port = int((await process.stderr.readline()).split()[-1])
        patterns = ("CLM-001", "CLM-007", "IDEM-003")
        settings = Settings(role="pharmacy", folder=tmp_path, driver=f"tcp://127.0.0.1:{port}", patterns=patterns)
        run = await run_suite(load_suite(), settings)
        expected = {"CLM-001": Verdict.PASS, "CLM-007": Verdict.PASS, "IDEM-003": Verdict.UNSUPPORTED}
        assert verdicts(run) == expected
        assert process.returncode is None
    finally:
        process.kill()
        await process.wait()


async def test_progress_is_told_as_cases_end(tmp_path: Path) -> None:
    seen: list[CaseResult] = []
    suite = load_suite()
    settings = Settings(role="pharmacy", folder=tmp_path, driver=PHARMACY, patterns=("CONN-001",), seed=1)
    run = await run_suite(suite, settings, progress=seen.append)
    assert [one.key for one in seen] == ["CONN-001"] == [one.key for one in run.results]
    assert run.under_test["features"]


def test_the_command_repeats_the_run() -> None:
    settings = Settings(role="pharmacy", folder=Path("x"), driver="python 'my driver.py'", profile="strict", seed=9)
    words = shlex.split(settings.command("DSP-010@ES256"))
    assert words[:3] == ["erxhub", "conform", "run"]
    assert words[words.index("--driver") + 1] == settings.driver
    assert words[words.index("--seed") + 1] == "9"
    assert words[-2:] == ["--run", "DSP-010@ES256"]
