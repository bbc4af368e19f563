from pathlib import Path

from erxhub.conform.load import Suite
from erxhub.conform.model import Verdict
from erxhub.conform.plan import Described, Plan, make_plan
from tests.conform.ground import case_text, suite_of

EVERYTHING = Described("p", "1", frozenset({"list_available", "download", "wait_scale"}), frozenset({"ES256"}))
LIST = "[{sut: {op: list_available}}]"


def plan_of(suite: Suite, described: Described = EVERYTHING, **more: object) -> Plan:
    arguments: dict[str, object] = {"role": "pharmacy", "profile": "dev", "seed": 7, "described": described}
    return make_plan(suite, **(arguments | more))  # type: ignore[arg-type]


def pruned(plan: Plan) -> dict[str, tuple[Verdict, str]]:
    return {one.planned.key: (one.verdict, one.why.en) for one in plan.pruned}


def test_a_case_runs_once_for_each_suite_that_the_product_has(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, case_text("DSP-001", LIST, more="    axes: {suite: [ES256, SM2-SM3]}\n"))
    plan = plan_of(suite)
    assert [one.key for one in plan.to_run] == ["DSP-001@ES256"]
    assert pruned(plan)["DSP-001@SM2-SM3"][0] is Verdict.UNSUPPORTED


def test_what_a_product_does_not_name_prunes_the_case_and_says_what(tmp_path: Path) -> None:
    suite = suite_of(
        tmp_path,
        case_text("DSP-001", "[{sut: {op: settle}}]"),
        case_text("DSP-002", LIST, more="    needs: [mind_reading]\n"),
        case_text("DSP-003", "[{sut: {op: resume}}, {sut: {op: pull_events}}]"),
    )
    plan = plan_of(suite)
    assert [one.key for one in plan.to_run] == ["DSP-003"]
    assert "settle" in pruned(plan)["DSP-001"][1]
    assert "mind_reading" in pruned(plan)["DSP-002"][1]


def test_a_profile_a_status_and_a_selection_prune(tmp_path: Path) -> None:
    suite = suite_of(
        tmp_path,
        case_text("DSP-001", LIST, more="    profiles: [strict]\n"),
        case_text("DSP-002", LIST, status="provisional"),
        case_text("DSP-003", LIST, status="deprecated"),
        case_text("DSP-004", LIST).replace("first_release: true", "first_release: false"),
    )
    assert [one.key for one in plan_of(suite).to_run] == ["DSP-002", "DSP-004"]
    assert [one.key for one in plan_of(suite, profile="strict").to_run] == ["DSP-001", "DSP-002", "DSP-004"]
    assert [one.key for one in plan_of(suite, selection="stable").to_run] == ["DSP-004"]
    assert [one.key for one in plan_of(suite, selection="core", profile="strict").to_run] == ["DSP-001"]
    assert [one.key for one in plan_of(suite, patterns=["DSP-003"]).to_run] == ["DSP-003"]


def test_what_cannot_be_done_to_a_product_prunes(tmp_path: Path) -> None:
    suite = suite_of(
        tmp_path,
        case_text("DSP-001", "[{kill: {}}]"),
        case_text("DSP-002", "[{advance: {by_ms: 5}}]"),
        case_text("DSP-003", LIST),
    )
    over_tcp = Described("p", "1", EVERYTHING.features, EVERYTHING.suites, kills=False)
    assert [one.key for one in plan_of(suite, over_tcp).to_run] == ["DSP-002", "DSP-003"]
    own_clock = Described("p", "1", EVERYTHING.features, EVERYTHING.suites, told_clock=False)
    assert [one.key for one in plan_of(suite, own_clock).to_run] == ["DSP-001", "DSP-003"]


def test_patterns_are_globs_and_leave_the_rest_unmentioned(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, *(case_text(one, LIST) for one in ("CLM-001", "DSP-001", "DSP-002")))
    plan = plan_of(suite, patterns=["DSP-*"])
    assert [one.key for one in plan.to_run] == ["DSP-001", "DSP-002"]
    assert not plan.pruned


def test_a_case_has_its_own_seed_whatever_runs_beside_it(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, case_text("DSP-001", LIST), case_text("DSP-002", LIST))
    together = {one.key: one.seed for one in plan_of(suite).to_run}
    alone = plan_of(suite, patterns=["DSP-002"]).to_run[0]
    assert together["DSP-002"] == alone.seed
    assert together["DSP-001"] != together["DSP-002"]
    assert plan_of(suite, seed=8).to_run[0].seed != together["DSP-001"]
