"""The main job by command-line verbs alone, against a dev hub in its own process; refusals and their exit codes."""

import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from erxhub.cli.main import main
from erxhub.cli.trace import in_colour
from erxhub.cli.trace_view import columns
from erxhub.client import AuditorClient
from erxhub.seed import SeedWorld
from erxhub.v1 import audit_pb2
from tests.cli.test_trace_view import COLOUR

PERSON = SeedWorld.person_no
PHARMACY = SeedWorld.pharmacy_code
SELLS = {"pharmacy": ("YS330100990001", "PY330100990001", "PY330100990003", "PS330100990001")}
"""Reviewer, dispenser, checker and courier of a pharmacy's context."""

_PACKS = itertools.count(1)


def packs(count: int) -> str:
    """Drug trace codes that were never sold."""
    return ",".join(f"8{next(_PACKS):019d}" for _ in range(count))


@dataclass
class Cli:
    """The command line of somebody whose contexts lie in `home`, and who works in `desk`."""

    home: Path
    desk: Path

    def run(self, *words: str, **environment: str) -> Result:
        variables: dict[str, str | None] = {"ERXHUB_HOME": str(self.home), "ERXHUB_CONTEXT": None}
        before = Path.cwd()
        os.chdir(self.desk)
        try:
            return CliRunner().invoke(main, words, env=variables | environment, catch_exceptions=False)
        finally:
            os.chdir(before)

    def ok(self, *words: str) -> Any:
        """The JSON that a verb prints; it must succeed."""
        result = self.run(*words, "-o", "json")
        assert result.exit_code == 0, f"{words}: {result.stderr}"
        return json.loads(result.stdout)

    def refused(self, *words: str) -> tuple[int, dict[str, Any]]:
        """Exit code and failure of a verb; nothing stands on stdout, and both languages on stderr."""
        result = self.run(*words, "-o", "json")
        assert result.stdout == ""
        error = json.loads(result.stderr)["error"]
        assert error["text_en"]
        assert error["text_zh"]
        return result.exit_code, error


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of a dev hub, which runs as long as this module's tests."""
    folder = tmp_path_factory.mktemp("dev")
    ready, log = folder / "ready.json", folder / "log"
    command = [sys.executable, "-c", "from erxhub.cli.main import main; main()", "dev"]
    with log.open("w") as output:
        hub = subprocess.Popen(
            [*command, "--home", str(folder / "home"), "--ready-file", str(ready)], stdout=output, stderr=output
        )
    try:
        ends_at = time.monotonic() + 30
        while not ready.exists():
            assert hub.poll() is None and time.monotonic() < ends_at, log.read_text()  # noqa: PT018
            time.sleep(0.05)
        yield folder / "home"
    finally:
        hub.send_signal(signal.SIGTERM)
        hub.wait(30)


@pytest.fixture
def cli(home: Path, tmp_path: Path) -> Cli:
    """The command line; the person's e-voucher is active."""
    cli = Cli(home, tmp_path)
    # Activated by the test before: then the hub refuses it, which is as good.
    cli.run("voucher", "activate", PERSON)
    return cli


# --- the steps that several tests need ---


def reference(cli: Cli, business: str, context: str = "pharmacy") -> str:
    code = cli.ok("voucher", "issue", PERSON, "--for", business)["voucher_code"]
    verified = cli.ok("voucher", "verify", code, "--for", business, "--context", context)
    return str(verified["voucher_ref"])


def diagnosed(cli: Cli) -> str:
    ref = reference(cli, "visit", "hospital")
    encounter_id = str(
        cli.ok("encounter", "register", PERSON, "--voucher-ref", ref, "--department", "全科")["encounter_id"]
    )
    cli.ok("encounter", "start", encounter_id, "--doctor", SeedWorld.doctor_code)
    found = cli.ok(
        "encounter", "diagnose", encounter_id, "--doctor", SeedWorld.doctor_code, "--diagnosis", "I10.x00x002"
    )
    assert found["diagnoses"][0]["name"] == "高血压"
    return encounter_id


def uploaded(cli: Cli) -> str:
    encounter_id = diagnosed(cli)
    checked = cli.ok(
        "rx", "precheck", "--sample", "--encounter", encounter_id, "--person", PERSON, "--save", "checked.json"
    )
    done = cli.ok(
        "rx", "upload", checked["rx_no"], checked["rx_trace_code"],
        "--file", "checked.json", "--sample-pdf", "--pharmacist", SeedWorld.hospital_pharmacist_code,
    )  # fmt: skip
    assert done["statuses"]["rx"] == "EFFECTIVE"
    return str(done["rx_no"])


def held(cli: Cli) -> str:
    rx_no = uploaded(cli)
    offered = cli.ok("pharmacy", "list", reference(cli, "download"))
    authorization = next(one["authorization_no"] for one in offered if one["rx_no"] == rx_no)
    got = cli.ok("pharmacy", "download", "--authorization", authorization)
    assert got["files"] == [f"{rx_no}/{name}" for name in ("prescription.pdf", "prescription.bin", "signatures.json")]
    assert [line["line_no"] for line in got["lines"]] == [1, 2]
    return rx_no


def settled(cli: Cli) -> tuple[str, str]:
    rx_no = held(cli)
    reviewed = cli.ok("pharmacy", "review", rx_no, "pass", "--pharmacist", SELLS["pharmacy"][0])
    assert reviewed["review"] == "PASSED"
    ref = reference(cli, "purchase")
    quoted = cli.ok("pharmacy", "quote", rx_no, "--voucher-ref", ref, "--save", "quote.json")
    done = cli.ok("pharmacy", "settle", rx_no, "--quote", "quote.json", "--voucher-ref", ref)
    assert done["amounts"] == quoted["amounts"]
    assert done["request_id"]
    return rx_no, str(done["settlement_id"])


def dispense(cli: Cli, rx_no: str, settlement_id: str, **changes: str) -> list[str]:
    reviewer, dispenser, checker, _ = SELLS["pharmacy"]
    return [
        "pharmacy", "dispense", rx_no, "--settlement", settlement_id,
        "--reviewer", changes.get("reviewer", reviewer),
        "--dispenser", changes.get("dispenser", dispenser),
        "--checker", changes.get("checker", checker),
        "--lot", f"1=1@L2601/2099-12-31/{packs(1)}", "--lot", f"2=1@L2602/2099-12-31/{packs(1)}",
    ]  # fmt: skip


# --- the whole job ---


def test_signed_uploads_go_over_one_stream_and_a_second_time_do_nothing(cli: Cli) -> None:
    numbers, files = [], []
    for number in range(3):
        encounter_id = diagnosed(cli)
        checked = cli.ok(
            "rx", "precheck", "--sample", "--encounter", encounter_id, "--person", PERSON, "--save", "checked.json"
        )
        files.append(f"signed-{number}.json")
        signed = cli.ok(
            "rx", "upload", checked["rx_no"], checked["rx_trace_code"], "--file", "checked.json", "--sample-pdf",
            "--pharmacist", SeedWorld.hospital_pharmacist_code, "--only-sign", files[-1],
        )  # fmt: skip
        assert signed["saved"] == files[-1]
        numbers.append(checked["rx_no"])
    # One file says something else than what was signed.
    spoilt = json.loads((cli.desk / files[1]).read_text())
    spoilt["seal"]["signatures"][0]["signature"] = "A" * 86 + "=="
    (cli.desk / files[1]).write_text(json.dumps(spoilt))
    for _ in range(2):
        run = cli.run("rx", "upload-many", *files, "-o", "json")
        assert run.exit_code == 1
        rows = json.loads(run.stdout)
        assert [(row["file"], row["rx_no"]) for row in rows] == list(
            zip(files, (numbers[0], "", numbers[2]), strict=True)
        )
        assert [row["code"] == "OK" for row in rows] == [True, False, True]
        assert rows[1]["text"]
    assert cli.ok("rx", "get", numbers[0])["statuses"]["rx"] == "EFFECTIVE"


def test_a_prescription_goes_from_voucher_to_hand_over_by_verbs_alone(cli: Cli) -> None:
    rx_no, settlement_id = settled(cli)
    out = cli.ok(*dispense(cli, rx_no, settlement_id))
    assert out["statuses"]["use"] == "USED"
    handed = cli.ok(
        "pharmacy", "handover", rx_no, "--voucher-ref", reference(cli, "pickup"), "--staff", "PY330100990001"
    )
    assert handed["handed_over"] is True

    traced = cli.ok("trace", rx_no, "--reason", "case 2026-17", "--verify")
    assert traced["light"] == "GREEN"
    assert traced["complete"] is True
    assert traced["verified"] is True
    assert traced["gaps"] == []
    assert all(stage["entries"] for stage in traced["stages"])
    assert all(flow["agrees"] and flow["summary"] for flow in traced["flows"].values())
    types = [entry["type"] for stage in traced["stages"] for entry in stage["entries"]]
    assert {"voucher.verified", "prescription.effective", "settlement.committed", "dispense.handed_over"} <= set(types)
    assert any(access["outcome"] == "OK" for access in traced["accesses"])

    accesses = cli.ok("patient", "accesses", PERSON, "--rx", rx_no)
    assert any(access["role"] == "auditor" for access in accesses)
    assert cli.ok("rx", "get", rx_no)["statuses"]["rx"] == "EXHAUSTED"
    cli.ok("encounter", "close", cli.ok("rx", "get", rx_no)["prescription"]["encounter_id"])


def test_a_prescription_is_chosen_online_and_delivered_to_the_door(cli: Cli) -> None:
    rx_no = uploaded(cli)
    assert cli.ok("patient", "choose", PERSON, rx_no, PHARMACY, "--delivery")["mode"] == "DELIVERY"
    qr = cli.ok("patient", "qr", PERSON, rx_no)["rx_qr"]
    assert cli.ok("pharmacy", "download", "--qr", qr, "--out", "shelf")["mode"] == "DELIVERY"
    kept = ("--from", "shelf")
    cli.ok("pharmacy", "review", rx_no, "pass", "--pharmacist", SELLS["pharmacy"][0], *kept)
    ref = reference(cli, "online-purchase")
    quoted = cli.run("pharmacy", "quote", rx_no, "--voucher-ref", ref, "-o", "json", *kept)
    (cli.desk / "quote.json").write_text(quoted.stdout)
    paid = cli.ok("pharmacy", "settle", rx_no, "--quote", "quote.json", "--voucher-ref", ref)
    asked = cli.ok("patient", "deliver", PERSON, rx_no, PHARMACY, "--address", "示例路1号", "--phone", "000-0000000")
    cli.ok(*dispense(cli, rx_no, paid["settlement_id"]), *kept)
    courier = ("--courier", SELLS["pharmacy"][3])
    started = cli.ok("delivery", "start", rx_no, "--company", "示例配送", *courier, "--distance-m", "3000")
    delivery_no = started["delivery_no"]
    assert delivery_no == asked["delivery_no"]
    cli.ok("delivery", "update", rx_no, delivery_no, "on-the-way", *courier)
    cli.ok("delivery", "update", rx_no, delivery_no, "arrive", *courier, "--position", "30.2741,120.1551")
    code, error = cli.refused("delivery", "sign", rx_no, delivery_no, "--code", wrong(asked["sign_code"]))
    assert code in (4, 5)
    assert error["code"] == "DLV_SIGN_CODE"
    assert cli.ok("delivery", "sign", rx_no, delivery_no, "--code", asked["sign_code"])["status"] == "SIGNED"
    assert cli.ok("trace", rx_no, "--verify")["light"] == "GREEN"


def wrong(code: str) -> str:
    return f"{(int(code) + 1) % 1_000_000:06d}"


def test_the_timeline_fits_a_hundred_columns_and_has_no_colour_off_a_terminal(cli: Cli) -> None:
    rx_no = uploaded(cli)
    result = cli.run("trace", rx_no, "--reason", "case 2026-17", NO_COLOR="1")
    assert result.exit_code == 1
    assert "● OPEN 进行中" in result.stdout
    assert not COLOUR.search(result.stdout)
    assert max(columns(line) for line in result.stdout.splitlines()) <= 100
    lines = cli.run("trace", rx_no, "-o", "jsonl").stdout.splitlines()
    assert len(lines) == 1
    assert json.loads(lines[0])["verified"] is None


def test_a_revoked_prescription_is_a_closed_and_so_a_complete_chain(cli: Cli) -> None:
    rx_no = uploaded(cli)
    revoked = cli.ok("rx", "revoke", rx_no, "--doctor", SeedWorld.doctor_code, "--reason", "wrong dose")
    assert revoked["statuses"]["rx"] == "UNDONE"
    traced = cli.ok("trace", rx_no, "--verify")
    assert (traced["light"], traced["complete"]) == ("CLOSED", True)


def test_a_record_that_has_to_be_kept_is_not_erased(cli: Cli) -> None:
    code, error = cli.refused("registry", "erase", uploaded(cli), "--basis", "保存期满")
    assert (code, error["code"]) == (5, "RETENTION")


def test_a_reply_waits_for_the_log_and_says_when_it_did_not_come(cli: Cli) -> None:
    result = cli.run("--wait-for", "integrated", "registry", "erase", "1" * 27, "--basis", "保存期满", "-o", "json")
    assert json.loads(result.stderr)["error"]["code"] == "RX_UNKNOWN"
    issue = ("voucher", "issue", PERSON, "--for", "download", "-o", "json")
    waited = cli.run("--wait-for", "integrated", *issue)
    assert (waited.exit_code, waited.stderr) == (0, "")
    # A dev hub has no witnesses.
    unwitnessed = cli.run("--wait-for", "witnessed", *issue)
    assert unwitnessed.exit_code == 0
    assert unwitnessed.stderr == "accepted; waited for WITNESSED, reached INTEGRATED\n"


def test_a_settlement_is_undone_and_an_unknown_outcome_is_reversed(cli: Cli) -> None:
    rx_no, settlement_id = settled(cli)
    undone = cli.ok("pharmacy", "undo", rx_no, settlement_id, "--reason", "patient changed his mind")
    assert undone["settlement_id"] == settlement_id
    reversal = cli.ok("pharmacy", "reverse", undone["request_id"], "--of", "undo")
    assert reversal["target"] == "UNDO"
    never_sent = cli.ok("pharmacy", "reverse", f"{PHARMACY}-never-sent-1")
    assert never_sent["target"] == "NONE"


def test_a_self_payment_needs_no_quote(cli: Cli) -> None:
    rx_no = held(cli)
    cli.ok("pharmacy", "review", rx_no, "pass", "--pharmacist", SELLS["pharmacy"][0])
    paid = cli.ok("pharmacy", "settle", rx_no, "--self-paid", "--line", "1=1@10.37", "--line", "2=1@22.24")
    assert paid["amounts"]["cash_fen"] == 3261
    assert paid["amounts"]["fund_fen"] == 0


def test_a_hold_is_released_and_an_order_is_cancelled(cli: Cli) -> None:
    rx_no = held(cli)
    assert cli.ok("pharmacy", "release", rx_no, "--reason", "not in stock")["statuses"]["use"] == "UNUSED"
    cli.ok("patient", "choose", PERSON, rx_no, PHARMACY)
    cli.ok("patient", "cancel", PERSON, rx_no, PHARMACY)
    listed = cli.ok("patient", "list", PERSON, "--limit", "0")
    assert next(one for one in listed if one["rx_no"] == rx_no)["held_by_pharmacy_code"] == ""


def test_watches_show_what_happened_and_end_after_a_count(cli: Cli) -> None:
    rx_no = held(cli)
    for words in (("rx", "watch"), ("pharmacy", "watch")):
        result = cli.run(*words, "--from-start", "--count", "3", "-o", "jsonl")
        assert result.exit_code == 0, result.stderr
        steps = [json.loads(line) for line in result.stdout.splitlines()]
        assert len(steps) == 3
        assert all(step["cursor"] and step["events"] for step in steps)
    assert rx_no in {one["rx_no"] for one in cli.ok("rx", "list", "--limit", "1")}
    assert f"{rx_no}  " in (table := cli.run("rx", "list", "--limit", "1").stdout)
    assert "EFFECTIVE HELD" in table


def test_ctrl_c_ends_a_watch_without_a_failure(cli: Cli) -> None:
    uploaded(cli)
    # A shell starts what it runs in the background deaf to Ctrl-C, and this may be such a run.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from erxhub.cli.main import main; main()"
    )
    command = [sys.executable, "-c", program, "rx", "watch", "--from-start"]
    variables = os.environ | {"ERXHUB_HOME": str(cli.home)}
    with subprocess.Popen(
        command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        assert "prescription.prechecked" in watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        try:
            _, messages = watching.communicate(timeout=30)
        finally:
            watching.kill()
    assert watching.returncode == 0, messages
    assert messages == ""


def test_an_auditor_finds_chains_and_verifies_the_ledger(cli: Cli) -> None:
    rx_no = uploaded(cli)
    found = cli.ok("audit", "find", "--institution", SeedWorld.hospital_code, "--reason", "case 1", "--limit", "0")
    assert rx_no in {one["rx_no"] for one in found}
    assert [one["rx_no"] for one in cli.ok("audit", "find", "--rx", rx_no)] == [rx_no]
    verified = cli.ok("audit", "verify", "--reason", "case 1")
    assert verified["verified"] is True
    assert verified["findings"] == []
    assert verified["entries"] > 0


def test_an_internet_visit_is_proven_and_attested(cli: Cli) -> None:
    code = cli.ok("voucher", "issue", PERSON, "--for", "online-identity")["voucher_code"]
    proof = cli.ok("voucher", "verify", code, "--for", "online-identity", "--context", "hospital")
    assert proof["online_identity_no"]
    visit = cli.ok("encounter", "register", PERSON, "--online-identity", proof["online_identity_no"])["encounter_id"]
    cli.ok("encounter", "start", visit, "--doctor", SeedWorld.doctor_code)
    (cli.desk / "doctor.mp4").write_bytes(b"a face")
    assert len(cli.ok("encounter", "attest", visit, "--media", "doctor.mp4")["media_sha256"]) == 64
    cli.ok("encounter", "cancel", visit, "--reason", "patient left")


def test_a_voucher_code_is_revoked_before_use(cli: Cli) -> None:
    code = cli.ok("voucher", "issue", PERSON, "--for", "visit")["voucher_code"]
    cli.ok("voucher", "revoke", code, "--reason", "phone lost")
    exit_code, error = cli.refused("voucher", "verify", code, "--for", "visit", "--context", "hospital")
    assert (exit_code, error["code"]) == (4, "VCH_REVOKED")


# --- verdicts ---


def answered(monkeypatch: pytest.MonkeyPatch, method: str, reply: Any) -> None:
    async def answer(*_: Any, **__: Any) -> Any:
        return reply

    monkeypatch.setattr(AuditorClient, method, answer)


FINDING = audit_pb2.VerificationFinding(
    stream_kind="prescription", stream_key=bytes(range(32)), version=7, reason="COMMITMENT"
)


@pytest.mark.parametrize(
    ("light", "verified", "asked", "exit_code"),
    [
        ("GREEN", True, True, 0),
        ("CLOSED", True, True, 0),
        ("GREEN", False, False, 0),
        ("GREEN", False, True, 1),
        ("ERASED", True, True, 0),
        ("OPEN", True, True, 1),
        ("RED", True, False, 1),
    ],
)
def test_a_trace_succeeds_only_when_complete_and_as_asked_verified(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, light: str, verified: bool, asked: bool, exit_code: int
) -> None:
    findings = [] if verified else [FINDING]
    reply = audit_pb2.TraceChainResponse(
        light=audit_pb2.Light.Value(f"LIGHT_{light}"), verified=verified, findings=findings
    )
    answered(monkeypatch, "trace", reply)
    result = cli.run("trace", "1", "-o", "json", *(["--verify"] if asked else []))
    assert result.exit_code == exit_code
    assert json.loads(result.stdout)["verified"] is (verified if asked else None)
    assert result.stderr == ("" if verified else "prescription/0001020304050607/7: COMMITMENT\n")


def test_a_broken_ledger_is_a_negative_verdict(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    answered(monkeypatch, "verify_ledger", audit_pb2.VerifyLedgerResponse(entries=9, findings=[FINDING]))
    result = cli.run("audit", "verify", "-o", "json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["findings"] == [
        {"stream": "prescription/0001020304050607", "version": 7, "reason": "COMMITMENT"}
    ]


def test_what_is_wrong_beside_the_entries_is_told_too(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [
        audit_pb2.VerificationFinding(stream_kind="ledger", stream_key=bytes(32), version=version, reason=reason)
        for version, reason in ((4, "NAME"), (0, "NAME"), (5, "CATALOGUE"))
    ]
    # A row of a list at a position that no entry has.
    findings.append(audit_pb2.VerificationFinding(reason="LISTING"))
    answered(monkeypatch, "verify_ledger", audit_pb2.VerifyLedgerResponse(entries=9, findings=findings))
    result = cli.run("audit", "verify", "-o", "json")
    assert result.exit_code == 1
    ledger = "ledger/0000000000000000"
    assert [tuple(finding.values()) for finding in json.loads(result.stdout)["findings"]] == [
        (ledger, 4, "NAME"),
        (ledger, 0, "NAME"),
        (ledger, 5, "CATALOGUE"),
        (None, 0, "LISTING"),
    ]


@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_a_terminal_gets_colour_unless_it_asks_for_none(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], coloured: bool
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    for name, value in ({"TERM": "xterm", "NO_COLOR": ""} | variables).items():
        monkeypatch.setenv(name, value)
    assert in_colour() is coloured


# --- refusals ---


def test_each_kind_of_refusal_has_its_exit_code(cli: Cli) -> None:
    rx_no = uploaded(cli)
    nobody = "330100" + "0" * 21
    cases: list[tuple[list[str], int, str]] = [
        (["rx", "get", nobody], 3, "RX_UNKNOWN"),
        (["trace", nobody], 3, "RX_UNKNOWN"),
        (["rx", "revoke", rx_no, "--doctor", "D330100990002", "--reason", "not mine"], 4, ""),
        (["voucher", "verify", "1" * 28, "--for", "visit", "--context", "hospital"], 4, "VCH_INVALID"),
        (["pharmacy", "release", rx_no], 3, "RX_UNKNOWN"),
        (["patient", "cancel", PERSON, rx_no, PHARMACY], 5, "ORDER_HOLD_LOST"),
        (["voucher", "verify", "12", "--for", "visit", "--context", "hospital"], 2, "INPUT_MALFORMED"),
        (["encounter", "start", "no-such-visit", "--doctor", SeedWorld.doctor_code], 5, "ENCOUNTER_STATE"),
    ]
    for words, exit_code, code in cases:
        found, error = cli.refused(*words)
        assert found == exit_code, (words, error)
        assert not code or error["code"] == code, (words, error)


def test_a_refusal_is_said_in_both_languages_with_what_is_needed(cli: Cli) -> None:
    result = cli.run("voucher", "verify", "1" * 28, "--for", "visit", "--context", "hospital")
    assert result.exit_code == 4
    assert result.stdout == ""
    assert "VCH_INVALID (UNAUTHENTICATED)" in result.stderr
    assert "凭证" in result.stderr
    assert "needs: " in result.stderr


def test_goods_do_not_leave_twice_or_with_one_signature(cli: Cli) -> None:
    rx_no, settlement_id = settled(cli)
    one_person = dispense(cli, rx_no, settlement_id, checker="PY330100990001")
    assert cli.refused(*one_person)[1]["code"] == "DISPENSE_DOUBLE_SIGN"
    cli.ok(*dispense(cli, rx_no, settlement_id))
    assert cli.refused(*dispense(cli, rx_no, settlement_id))[0] == 5
    assert cli.refused("pharmacy", "void", rx_no, "--reason", "too late")[0] == 5


def test_an_audit_without_a_reason_is_refused(cli: Cli) -> None:
    assert cli.refused("trace", "330100" + "0" * 21, "--reason", "")[1]["code"] == "AUDIT_REASON"


@pytest.mark.parametrize(
    "words",
    [
        ("voucher", "issue", PERSON),
        ("voucher", "issue", PERSON, "--for", "dinner"),
        ("rx", "precheck"),
        ("rx", "precheck", "--sample"),
        ("rx", "precheck", "--file", "nothing.json"),
        ("rx", "precheck", "--sample", "--encounter", "E", "--person", "330100000000"),
        ("rx", "upload", "1", "2", "--file", "checked.json", "--pharmacist", "HY330100990001"),
        ("pharmacy", "download"),
        ("pharmacy", "download", "--qr", "a", "--token", "b"),
        ("pharmacy", "review", "1", "reject", "--pharmacist", "YS330100990001"),
        ("pharmacy", "review", "1", "pass", "--pharmacist", "YS330100990001"),
        ("pharmacy", "review", "1", "pass", "--pharmacist", "nobody"),
        ("pharmacy", "quote", "1", "--voucher-ref", "r", "--line", "1=NaN@1"),
        ("pharmacy", "settle", "1"),
        ("pharmacy", "settle", "1", "--self-paid", "--quote", "quote.json"),
        ("pharmacy", "dispense", "1", "--reviewer", "a", "--dispenser", "b", "--checker", "c"),
        ("delivery", "update", "1", "2", "fly"),
        ("audit", "find"),
        ("audit", "find", "--rx", "1", "--encounter", "2"),
        ("trace", "1", "--context", "hospital"),
    ],
)
def test_a_wrong_command_line_ends_with_two_and_says_why(cli: Cli, words: tuple[str, ...]) -> None:
    result = cli.run(*words)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert re.search(r"^CLI_[A-Z_]+ \(local\)$", result.stderr, re.MULTILINE)


def test_a_download_that_has_no_place_does_not_use_up_its_number(cli: Cli) -> None:
    (cli.desk / "taken").write_text("a file")
    result = cli.run("pharmacy", "download", "--authorization", "x" * 30, "--out", "taken/shelf")
    assert result.exit_code == 2
    assert result.stderr.startswith("CLI_FOLDER_IS_FILE (local)\n  taken/shelf ")


def test_every_verb_begins_its_help_with_an_example(cli: Cli) -> None:
    groups = ("voucher", "encounter", "rx", "patient", "pharmacy", "delivery", "audit")
    commands = {group: main.get_command(click.Context(main), group) for group in groups}
    verbs = [
        (name, verb) for name, group in commands.items() if isinstance(group, click.Group) for verb in group.commands
    ]
    assert len(verbs) >= 44
    for words in [*verbs, ("trace",)]:
        result = cli.run(*words, "--help")
        assert result.stdout.startswith("Example:\n  erxhub "), words
        assert " ".join(words) in result.stdout.splitlines()[1]


def test_help_loads_neither_grpc_nor_anything_else_that_is_slow() -> None:
    modules = ("voucher", "encounter", "rx", "patient", "pharmacy", "delivery", "trace", "audit")
    slow = ("grpc", "google.protobuf", "cryptography", "rich")
    code = f"""
import importlib, sys
for name in {modules}:
    importlib.import_module("erxhub.cli." + name)
print([name for name in {slow} if name in sys.modules])
"""
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
