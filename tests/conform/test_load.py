from pathlib import Path

import pytest

from erxhub.conform import vocabulary
from erxhub.conform.load import load_requirements, load_suite
from erxhub.conform.model import Case
from tests.conform.ground import REQUIREMENTS, a_case, case_text, suite_of

GOOD = case_text("DSP-001", "[{sut: {op: list_available, expect: {outcome: ok}}}]")


def test_the_installed_cases_are_good_and_there_are_some() -> None:
    suite = load_suite()
    assert not [str(problem) for problem in suite.problems]
    assert {role for case in suite.cases for role in case.roles} >= {"hospital", "pharmacy"}
    assert any(case.core for case in suite.cases)


def test_a_good_case_is_read_with_all_its_metadata(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, GOOD)
    assert not suite.problems
    (case,) = suite.cases
    assert (case.id, case.level, case.roles, case.verifies) == ("DSP-001", "MUST", ("pharmacy",), ("R-1",))
    assert case.core
    assert case.title.zh == "标题DSP-001"
    assert case.plays["pharmacy"].steps[0].sut.op == "list_available"


def test_a_number_with_a_leading_zero_is_text(tmp_path: Path) -> None:
    steps = "[{sut: {op: settle, args: {business_type: 02122, count: 3, share: 0.5, on: yes, at: 2026-11-20}}}]"
    suite = suite_of(tmp_path, case_text("DSP-001", steps))
    assert not suite.problems
    args = suite.cases[0].plays["pharmacy"].steps[0].sut.args
    assert dict(args.items()) == {"business_type": "02122", "count": 3, "share": 0.5, "on": "yes", "at": "2026-11-20"}


BAD = {
    "an unknown key": (GOOD.replace("revision:", "revison:"), "CASE_SCHEMA", "revison"),
    "an unknown key of a step": (case_text("DSP-001", "[{sut: {op: reset, exect: {}}}]"), "CASE_SCHEMA", "exect"),
    "a key given twice": (GOOD + "    level: MAY\n", "CASE_FILE", "level"),
    "an unknown verb": (case_text("DSP-001", "[{repeat: {}}]"), "CASE_SCHEMA", "repeat"),
    "two verbs in a step": (case_text("DSP-001", "[{kill: {}, restart: {}}]"), "CASE_SCHEMA", "verb"),
    "no step": (case_text("DSP-001", "[]"), "CASE_SCHEMA", "steps"),
    "an unknown level": (case_text("DSP-001", "[{kill: {}}]", level="WILL"), "CASE_SCHEMA", "level"),
    "a malformed id": (case_text("dsp1", "[{kill: {}}]"), "CASE_SCHEMA", "id"),
    "an unknown requirement": (GOOD.replace("[R-1]", "[R-1, R-9]"), "CASE_REQUIREMENT", "R-9"),
    "the role hub": (GOOD.replace("[pharmacy]", "[pharmacy, hub]"), "CASE_SCHEMA", "hub"),
    "an unknown operation": (case_text("DSP-001", "[{sut: {op: sing}}]"), "CASE_SCRIPT", "sing"),
    "an operation of another role": (case_text("DSP-001", "[{sut: {op: issue_prescription}}]"), "CASE_SCRIPT", "issue"),
    "an unknown outcome": (
        case_text("DSP-001", "[{sut: {op: settle, expect: {outcome: okay}}}]"),
        "CASE_SCRIPT",
        "okay",
    ),
    "an unknown verb of a robot": (
        case_text("DSP-001", "[{robot: {actor: patient, do: sing}}]"),
        "CASE_SCRIPT",
        "sing",
    ),
    "a robot as the product": (
        case_text("DSP-001", "[{robot: {actor: pharmacy, do: hold}}]"),
        "CASE_SCRIPT",
        "under test",
    ),
    "a name that nobody saved": (
        case_text("DSP-001", "[{sut: {op: download, args: {rx_no: $rx}}}]"),
        "CASE_SCRIPT",
        "$rx",
    ),
    "a name that is saved later": (
        case_text("DSP-001", "[{sut: {op: download, args: {code: $v}}}, {voucher: {name: v}}]"),
        "CASE_SCRIPT",
        "$v",
    ),
    "an unknown fault": (case_text("DSP-001", "[{faults: {set: [{method: '*', do: lose}]}}]"), "CASE_SCRIPT", "lose"),
    "an unknown method": (
        case_text("DSP-001", "[{faults: {set: [{method: Dispensing/Steal, do: delay}]}}]"),
        "CASE_SCRIPT",
        "Steal",
    ),
    "an unknown event": (
        case_text("DSP-001", "[{expect: {hub: [{events: {order.lost: 1}}]}}]"),
        "CASE_SCRIPT",
        "order.lost",
    ),
    "an unknown status": (
        case_text("DSP-001", "[{voucher: {name: v}}, {expect: {hub: [{rx: $v, status: EFECTIVE}]}}]"),
        "CASE_SCRIPT",
        "EFECTIVE",
    ),
    "an unknown refusal": (
        case_text("DSP-001", "[{expect: {wire: [{method: '*', codes: {NOPE: 1}}]}}]"),
        "CASE_SCRIPT",
        "NOPE",
    ),
    "an expectation of nothing": (
        case_text("DSP-001", "[{expect: {wire: [{method: '*'}]}}]"),
        "CASE_SCRIPT",
        "nothing is expected",
    ),
    "a join of nothing": (case_text("DSP-001", "[{join: {name: a}}]"), "CASE_SCRIPT", "no operation a"),
    "an operation that nobody joins": (
        case_text("DSP-001", "[{sut: {op: settle, background: a}}]"),
        "CASE_SCRIPT",
        "nothing joins",
    ),
    "a change of configure that is not allowed": (
        case_text("DSP-001", "[{restart: {configure: {state_dir: /}}}]"),
        "CASE_SCRIPT",
        "state_dir",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_case_is_named_and_the_others_are_read(tmp_path: Path, what: str) -> None:
    text, code, said = BAD[what]
    other = case_text("DSP-002", "[{sut: {op: list_available}}]")
    files = []
    for name, content in (("bad.yaml", text), ("good.yaml", other)):
        (tmp_path / name).write_text("cases:" + content, encoding="utf-8")
        files.append(tmp_path / name)
    suite = load_suite(files, in_code=(), requirements=REQUIREMENTS)
    assert [case.id for case in suite.cases] == ["DSP-002"]
    assert {problem.code for problem in suite.problems} == {code}
    assert any(said in str(problem) for problem in suite.problems), suite.problems
    assert all(problem.file == "bad.yaml" and problem.text.zh for problem in suite.problems)


def test_an_id_given_twice_for_a_role_leaves_the_first(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, GOOD, GOOD)
    assert [problem.code for problem in suite.problems] == ["CASE_ID_TWICE"]
    assert len(suite.cases) == 1


def test_an_id_may_stand_in_code_for_the_hub_and_in_a_file_for_a_product(tmp_path: Path) -> None:
    async def hub_case(run: object) -> None:
        """R-2: said."""

    in_code = a_case(roles=("hub",), function=hub_case, verifies=("R-2",))
    suite = suite_of(tmp_path, GOOD, in_code=[in_code])
    assert not suite.problems
    assert [case.roles for case in suite.cases] == [("hub",), ("pharmacy",)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cases: 7",
        "- a",
        "cases: []\nmore: 1",
        "cases: [\x00]",
        "cases: [&a [*a]]",
        "cases: !!python/object:os.system {}",
    ],
)
def test_a_file_that_is_no_case_file_is_one_problem(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text, encoding="utf-8")
    suite = load_suite([file], in_code=(), requirements=REQUIREMENTS)
    assert not suite.cases
    assert suite.problems
    assert all(problem.file == "bad.yaml" for problem in suite.problems)


def test_a_file_that_is_not_utf_8_is_one_problem(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes("cases: [标题]".encode("gb18030"))
    assert [problem.code for problem in load_suite([file], in_code=(), requirements={}).problems] == ["CASE_FILE"]


def test_a_case_in_code_is_held_to_the_same_schema(tmp_path: Path) -> None:
    async def hub_case(run: object) -> None:
        """R-2: said."""

    in_code = a_case(roles=("hub",), function=hub_case, level="PERHAPS", verifies=("R-2", "R-9"))
    suite = suite_of(tmp_path, GOOD, in_code=[in_code])
    assert {problem.code for problem in suite.problems} == {"CASE_SCHEMA", "CASE_REQUIREMENT"}
    assert [case.roles for case in suite.cases] == [("pharmacy",)]


def test_the_digest_follows_what_a_case_demands(tmp_path: Path) -> None:
    def digest(*texts: str) -> str:
        case: Case = suite_of(tmp_path, *texts).cases[0]
        return case.digest()

    assert digest(GOOD) == digest(GOOD)
    assert digest(GOOD) != digest(GOOD.replace("outcome: ok", "outcome: unknown"))
    assert digest(GOOD) != digest(GOOD.replace("level: MUST", "level: MAY"))


@pytest.mark.parametrize("text", ["id,set\nR-1,a\n", "{header}\na,R-1,,,,,,,\na,R-1,,,,,,,\n"])
def test_a_bad_requirements_file_is_an_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "requirements.csv"
    header = "set,id,document,requirement_en,requirement_zh,conformance,actors,source,not_tested"
    file.write_text(text.format(header=header), encoding="utf-8")
    with pytest.raises(ValueError):
        load_requirements(file)


def test_the_vocabulary_has_the_names_of_the_published_interface() -> None:
    assert "Dispensing/Settle" in vocabulary.METHODS
    assert vocabulary.STATES["use"] == {"UNUSED", "HELD", "PARTLY_USED", "USED"}
    assert {"lose_ack", "crash_hub"} <= vocabulary.FAULT_ACTIONS
    assert vocabulary.method_matches("Dispensing/*", "/erxhub.v1.DispensingService/Settle")
    assert not vocabulary.method_matches("Dispensing/*", "PrescribingService/GetPrescription")
