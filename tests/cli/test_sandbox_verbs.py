"""The sandbox verbs against a dev sandbox: namespaces, clock, faults, snapshots, triggers, traffic, certificates.

Every test that moves a clock or breaks something does so in a namespace of its own, because all share one sandbox.
"""

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from erxhub.cli import sandbox as sandbox_verbs
from erxhub.cli.main import main
from erxhub.cli.trigger import KINDS
from erxhub.client import SystemEnvironment
from erxhub.v1 import sandbox_pb2
from tests.cli.conftest import Erxhub, erxhub_in, start_process, stop_process

PERSON = "33010000990001"
RESIDENT = "33010000990004"
DOCTOR = "D330100990001"
HOUR_MS = 3_600_000


def told(erxhub: Erxhub, *words: str) -> Any:
    """What a command prints as JSON; it must succeed."""
    run = erxhub(*words, "-o", "json")
    assert run.exit_code == 0, (words, run.stdout, run.stderr)
    return json.loads(run.stdout)


_NUMBERS = itertools.count(1)


@pytest.fixture
def lab(at_dev: Erxhub) -> Iterator[str]:
    """A namespace of this test's own, with contexts for its callers."""
    name = f"lab-{next(_NUMBERS)}"
    told(at_dev, "sandbox", "create", name, "--seed", "7")
    yield name
    told(at_dev, "sandbox", "delete", name)


def now_of(erxhub: Erxhub, namespace: str) -> str:
    return str(told(erxhub, "clock", "show", "-n", namespace)["now"])


# --- namespaces -------------------------------------------------------------------------------------


def test_a_dev_sandbox_says_where_it_stands(at_dev: Erxhub) -> None:
    status = told(at_dev, "sandbox", "status")
    assert (status["namespace"], status["clock"], status["owner"]) == ("default", "running", "sandbox/operator")
    assert status["entries"] > 0
    assert "trust_domain" in at_dev("sandbox", "status").stdout


def test_a_namespace_has_contexts_that_reach_it_and_nothing_else(at_dev: Erxhub, dev_home: Path) -> None:
    made = told(at_dev, "sandbox", "create", "reach", "--seed", "3")
    assert (made["clock"], made["seed"], made["trust_domain"]) == ("standing", 3, "reach.erxhub.test")
    assert made["contexts"][:2] == ["reach-hospital", "reach-hospital2"]
    kept = list((dev_home / "namespaces" / "reach").rglob("key.pem"))
    assert len(kept) >= 7
    assert [path for path in kept if path.stat().st_mode & 0o077] == []

    assert at_dev("voucher", "activate", PERSON, "--context", "reach-channel").exit_code == 0
    default_before = told(at_dev, "sandbox", "status")["entries"]
    assert told(at_dev, "sandbox", "status", "-n", "reach")["entries"] == made["entries"] + 1
    assert told(at_dev, "sandbox", "status")["entries"] == default_before
    assert "reach" in [row["namespace"] for row in told(at_dev, "sandbox", "namespaces")]

    deleted = told(at_dev, "sandbox", "delete", "reach")
    assert sorted(deleted["contexts"]) == sorted(made["contexts"])
    assert not (dev_home / "namespaces" / "reach").exists()
    assert not [row for row in told(at_dev, "context", "list") if row["namespace"] == "reach"]
    gone = at_dev("sandbox", "status", "-n", "reach")
    assert gone.exit_code == 3
    assert "SBX_NAMESPACE_UNKNOWN" in gone.stderr


def test_a_namespace_is_named_by_the_environment_too(at_dev: Erxhub, lab: str) -> None:
    found = json.loads(at_dev("sandbox", "status", "-o", "json", ERXHUB_NAMESPACE=lab).stdout)
    assert found["namespace"] == lab


def test_a_bare_namespace_leaves_no_context(at_dev: Erxhub, dev_home: Path) -> None:
    assert told(at_dev, "sandbox", "create", "bare", "--bare")["contexts"] == []
    assert not (dev_home / "namespaces" / "bare").exists()
    again = at_dev("sandbox", "create", "bare", "--bare")
    assert again.exit_code == 5
    assert "SBX_NAMESPACE_EXISTS" in again.stderr
    told(at_dev, "sandbox", "delete", "bare")


def test_the_sandbox_verbs_need_the_operators_context(at_dev: Erxhub, erxhub: Erxhub) -> None:
    assert "is of the role pharmacy" in at_dev("clock", "show", "--context", "pharmacy").stderr
    without = erxhub("clock", "show")
    assert without.exit_code == 2
    assert "erxhub dev" in without.stderr


def test_a_dev_sandbox_begins_with_its_profile_and_without_the_namespaces_of_the_last_one(tmp_path: Path) -> None:
    erxhub = erxhub_in(tmp_path)
    words = ("dev", "--home", str(tmp_path), "--profile", "strict")
    for _ in range(2):
        process, _line = start_process(*words, until="Try in another terminal")
        assert told(erxhub, "sandbox", "status")["profile"] == "strict"
        assert {row["id"].partition(".")[0] for row in told(erxhub, "fault", "list")} == {"strict"}
        assert [row["name"] for row in told(erxhub, "context", "list") if row["namespace"] != "default"] == []
        told(erxhub, "sandbox", "create", "lab")
        assert (tmp_path / "namespaces" / "lab").is_dir()
        code, _printed = stop_process(process)
        assert code == 0


def test_a_port_that_is_taken_ends_dev_with_a_sentence(at_dev: Erxhub, tmp_path: Path) -> None:
    port = told(at_dev, "sandbox", "status")["target"].partition(":")[2]
    for option in ("--port", "--control-port"):
        run = subprocess.run(
            [sys.executable, "-m", "erxhub.cli", "dev", "--home", str(tmp_path), option, port],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert run.returncode == 2
        assert port in run.stderr
        assert "Traceback" not in run.stderr


# --- the world --------------------------------------------------------------------------------------


def test_the_world_says_who_is_there_and_writes_keys(at_dev: Erxhub, tmp_path: Path) -> None:
    rows = told(at_dev, "sandbox", "world", "--keys", str(tmp_path / "keys"))
    assert {"hospital", "pharmacy", "doctor", "person", "channel", "agency", "auditor"} <= {row["kind"] for row in rows}
    assert {row["signs_with"] for row in rows} == {"ES256", ""}
    for row in rows:
        if row["signs_with"]:
            key = tmp_path / "keys" / row["institution"] / row["id"] / "key.pem"
            assert b"PRIVATE KEY" in key.read_bytes()
            assert key.stat().st_mode & 0o077 == 0


def test_magic_values_are_listed_in_both_languages(at_dev: Erxhub) -> None:
    rows = told(at_dev, "sandbox", "magic")
    assert {row["kind"] for row in rows} == set(sandbox_verbs.MAGIC_KINDS)
    assert all(row["effect_en"] and row["effect_zh"] for row in rows)
    vouchers = told(at_dev, "sandbox", "magic", "voucher")
    assert {row["kind"] for row in vouchers} == {"voucher"}
    assert "tst_ec_expired" in {row["name"] for row in vouchers}


def test_a_minted_certificate_is_a_context_that_works(at_dev: Erxhub, lab: str, tmp_path: Path) -> None:
    words = ("sandbox", "mint", "pharmacy", "P33010099102", "-n", lab, "--dir", str(tmp_path / "tls"), "--as", "minted")
    assert told(at_dev, *words)["folder"] == str(tmp_path / "tls")
    assert (tmp_path / "tls" / "key.pem").stat().st_mode & 0o077 == 0
    context = next(row for row in told(at_dev, "context", "list") if row["name"] == "minted")
    assert (context["caller"], context["namespace"]) == ("pharmacy/P33010099102", lab)
    assert context["signs_for"] == ["P33010099102", "YS330100990002"]
    assert at_dev("catalog", "list", "frequencies", "--context", "minted").exit_code == 0


def test_a_defective_certificate_is_refused_by_the_hub(at_dev: Erxhub, lab: str, tmp_path: Path) -> None:
    words = ("sandbox", "mint", "pharmacy", "P33010099101", "-n", lab, "--defect", "revoked", "--as", "defective")
    assert told(at_dev, *words, "--dir", str(tmp_path))["defects"] == ["revoked"]
    refused = at_dev("catalog", "list", "frequencies", "--context", "defective")
    assert refused.exit_code == 4
    assert "CERT_REVOKED" in refused.stderr


# --- time -------------------------------------------------------------------------------------------


def test_a_clock_is_advanced_and_signatures_follow_it(at_dev: Erxhub, lab: str) -> None:
    before = now_of(at_dev, lab)
    assert now_of(at_dev, lab) == before
    advanced = told(at_dev, "clock", "advance", "9d2h", "-n", lab)
    assert now_of(at_dev, lab) == advanced["now"] > before
    assert told(at_dev, "clock", "show")["ahead"] == "0s"

    channel, hospital = ("--context", f"{lab}-channel"), ("--context", f"{lab}-hospital")
    told(at_dev, "voucher", "activate", PERSON, *channel)
    code = told(at_dev, "voucher", "issue", PERSON, "--for", "visit", *channel)["voucher_code"]
    reference = told(at_dev, "voucher", "verify", code, "--for", "visit", *hospital)["voucher_ref"]
    visit = ("encounter", "register", PERSON, "--voucher-ref", reference, "--department", "全科")
    encounter_id = told(at_dev, *visit, *hospital)["encounter_id"]
    told(at_dev, "encounter", "start", encounter_id, "--doctor", DOCTOR, *hospital)
    # The hub refuses what is signed at another time than its own.
    diagnosis = ("--doctor", DOCTOR, "--diagnosis", "I10.x00x002")
    told(at_dev, "encounter", "diagnose", encounter_id, *diagnosis, *hospital)
    assert at_dev("doctor", *hospital).exit_code == 0


def test_a_clock_goes_to_an_instant_and_to_the_next_deadline(at_dev: Erxhub, lab: str) -> None:
    at_dev("voucher", "activate", PERSON, "--context", f"{lab}-channel")
    code = told(at_dev, "voucher", "issue", PERSON, "--for", "download", "--context", f"{lab}-channel")
    advanced = told(at_dev, "clock", "advance", "--next", "-n", lab)
    assert advanced["now"] >= code["expires_at"]
    year = SystemEnvironment().now_ms() // (365 * 24 * HOUR_MS) + 1970 + 2
    assert told(at_dev, "clock", "advance", "--to", f"{year}-01-01T08:00:00", "-n", lab)["now"].startswith(str(year))
    table = at_dev("clock", "advance", "1h", "-n", lab)
    assert f"{year}-01-01T09:00:00" in table.stderr


def test_a_clock_never_goes_back(at_dev: Erxhub, lab: str) -> None:
    back = at_dev("clock", "advance", "--to", "2001-01-01T00:00:00", "-n", lab)
    assert back.exit_code == 2
    assert "SBX_CLOCK_BACK" in back.stderr
    for words in (("--", "-2h"), (), ("2h", "--next"), ("2",), ("soon",)):
        assert at_dev("clock", "advance", "-n", lab, *words).exit_code == 2, words


# --- faults -----------------------------------------------------------------------------------------


def test_a_fault_happens_when_it_is_set_for_and_shows_in_the_traffic(at_dev: Erxhub, lab: str) -> None:
    rule = "Registry/ListInstitutions id=down nth=1 do=error code=OVERLOADED"
    assert at_dev("fault", "set", rule, "-n", lab).exit_code == 0
    refused = at_dev("registry", "list", "institutions", "--context", f"{lab}-agency")
    assert refused.exit_code == 6
    assert "OVERLOADED" in refused.stderr
    assert at_dev("registry", "list", "institutions", "--context", f"{lab}-agency").exit_code == 0
    [row] = told(at_dev, "fault", "list", "-n", lab)
    assert (row["id"], row["fired"], row["matched"]) == ("down", 1, 2)
    calls = told(at_dev, "sandbox", "traffic", "-n", lab, "--method", "Registry/ListInstitutions")
    assert calls[0]["refusal_code"] == "OVERLOADED"
    assert calls[0]["faults"] == ["down error"]
    assert calls[-1]["status"] == "OK"
    assert calls[-1]["replies"][0]["institutions"]


def test_what_a_list_prints_can_be_set_again(at_dev: Erxhub, lab: str, tmp_path: Path) -> None:
    assert at_dev("fault", "set", "--profile", "strict", "-n", lab).exit_code == 0
    rules = at_dev("fault", "list", "-n", lab, "-o", "json").stdout
    (tmp_path / "rules.json").write_text(rules, encoding="utf-8")
    assert at_dev("fault", "clear", "-n", lab, "-o", "json").stdout.strip() == "[]"
    assert told(at_dev, "fault", "set", "--file", str(tmp_path / "rules.json"), "-n", lab) == json.loads(rules)
    first = json.loads(rules)[0]["id"]
    left = told(at_dev, "fault", "clear", first, "-n", lab)
    assert [row["id"] for row in left] == [row["id"] for row in json.loads(rules)[1:]]
    assert at_dev("fault", "clear", first, "-n", lab).exit_code == 3


def test_rules_are_replaced_or_added(at_dev: Erxhub, lab: str) -> None:
    told(at_dev, "fault", "set", "* id=one do=delay delay=1ms", "-n", lab)
    assert len(told(at_dev, "fault", "set", "* id=two do=delay delay=1ms", "-n", lab)) == 2
    replaced = at_dev("fault", "set", "* id=three do=delay delay=1ms", "--replace", "-n", lab)
    assert "* id=three do=delay delay=1ms" in replaced.stdout
    assert "id=one" not in replaced.stdout


def test_a_rule_that_can_match_nothing_is_refused_and_says_why(at_dev: Erxhub, lab: str) -> None:
    refused = at_dev("fault", "set", "Dispensing/Sell do=lose_ack", "-n", lab)
    assert refused.exit_code == 2
    assert "SBX_FAULT_NEVER_MATCHES" in refused.stderr
    assert "method" in refused.stderr


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is no JSON"),
        ("{}", "no JSON array"),
        ('[{"on": "*", "do": "explode"}]', "rule 1: 'do'"),
        ('[{"on": "*", "do": "goaway", "when": 1}]', "'when' is no key"),
    ],
)
def test_a_wrong_file_of_rules_is_refused_naming_the_place(
    at_dev: Erxhub, tmp_path: Path, content: str, says: str
) -> None:
    (tmp_path / "rules.json").write_text(content, encoding="utf-8")
    refused = at_dev("fault", "set", "--file", str(tmp_path / "rules.json"))
    assert refused.exit_code == 2
    assert says in refused.stderr


def test_a_wrong_rule_is_refused_before_anything_is_sent(at_dev: Erxhub) -> None:
    assert at_dev("fault", "set").exit_code == 2
    assert "lose_ack" in at_dev("fault", "set", "Dispensing/Settle do=explode").stderr


# --- states and events ------------------------------------------------------------------------------


def test_a_snapshot_is_saved_and_loaded_and_a_reset_goes_back_to_the_creation(at_dev: Erxhub, lab: str) -> None:
    created = told(at_dev, "sandbox", "status", "-n", lab)
    at_dev("voucher", "activate", PERSON, "--context", f"{lab}-channel")
    saved = told(at_dev, "snapshot", "save", "active", "-n", lab)
    assert saved["snapshots"] == ["active"]
    told(at_dev, "clock", "advance", "3h", "-n", lab)
    at_dev("voucher", "activate", RESIDENT, "--context", f"{lab}-channel")
    loaded = told(at_dev, "snapshot", "load", "active", "-n", lab)
    assert (loaded["entries"], loaded["now"]) == (saved["entries"], saved["now"])
    assert told(at_dev, "snapshot", "list", "-n", lab) == [{"namespace": lab, "snapshot": "active"}]
    unknown = at_dev("snapshot", "load", "other", "-n", lab)
    assert unknown.exit_code == 3
    assert "SBX_SNAPSHOT_UNKNOWN" in unknown.stderr
    reset = told(at_dev, "reset", "-n", lab)
    assert (reset["entries"], reset["now"]) == (created["entries"], created["now"])


def test_a_person_is_paused_by_a_trigger(at_dev: Erxhub, lab: str) -> None:
    fired = told(at_dev, "trigger", "pause-person", "--id", RESIDENT, "-n", lab)
    assert len(fired["events"]) == 1
    person = told(at_dev, "registry", "list", "person", RESIDENT, "--context", f"{lab}-agency")
    assert person["status"] == "PAUSED"
    again = at_dev("trigger", "pause-person", "--id", RESIDENT, "-n", lab)
    assert again.exit_code == 5
    assert "SBX_TRIGGER_STATE" in again.stderr
    malformed = at_dev("trigger", "pause-person", "--id", "999", "-n", lab)
    assert malformed.exit_code == 2
    assert "SBX_ARGUMENT" in malformed.stderr


@pytest.mark.parametrize("words", [("freeze",), ("freeze", "--id", "x"), ("pause-person", "--rx", "1", "--id", "2")])
def test_a_trigger_needs_its_own_subject(at_dev: Erxhub, words: tuple[str, ...]) -> None:
    assert at_dev("trigger", *words).exit_code == 2


# --- what happened ----------------------------------------------------------------------------------


def test_traffic_shows_a_call_with_its_messages_and_entries(at_dev: Erxhub, lab: str, tmp_path: Path) -> None:
    assert at_dev("sandbox", "traffic", "-n", lab).stdout == ""
    at_dev("voucher", "activate", PERSON, "--context", f"{lab}-channel")
    at_dev("voucher", "activate", "33010000999999", "--context", f"{lab}-channel")
    done, refused = told(at_dev, "sandbox", "traffic", "-n", lab)
    assert (done["actor"], done["method"], done["status"]) == ("channel/demo-app", "Voucher/ActivateVoucher", "OK")
    assert PERSON in json.dumps(done["requests"])
    assert len(done["entries"]) == 1
    assert refused["refusal_code"]
    lines = at_dev("sandbox", "traffic", "-n", lab).stdout.splitlines()
    assert len(lines) == 2
    assert "Voucher/ActivateVoucher" in lines[0]
    assert refused["refusal_code"] in lines[1]
    after = at_dev("sandbox", "traffic", "-n", lab, "--after", "1", "-o", "jsonl").stdout.splitlines()
    assert [json.loads(line)["number"] for line in after] == [2]
    assert told(at_dev, "sandbox", "traffic", "-n", lab, "--actor", "hospital/H33010099901") == []

    page = tmp_path / "traffic.html"
    assert at_dev("sandbox", "inspect", "-o", str(page), "-n", lab).exit_code == 0
    assert "ActivateVoucher" in page.read_text(encoding="utf-8")
    nowhere = at_dev("sandbox", "inspect", "-o", str(tmp_path / "no" / "page.html"), "-n", lab)
    assert nowhere.exit_code == 2


def test_traffic_is_followed_until_it_is_interrupted(
    at_dev: Erxhub, lab: str, dev_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERXHUB_HOME", str(dev_home))
    at_dev("voucher", "activate", PERSON, "--context", f"{lab}-channel")
    process, line = start_process("sandbox", "traffic", "-f", "-n", lab, "-o", "json", until="ActivateVoucher")
    assert json.loads(line)["number"] == 1
    at_dev("voucher", "activate", RESIDENT, "--context", f"{lab}-channel")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["number"] == 2
    stop_process(process)


def test_a_sound_namespace_passes_its_check(at_dev: Erxhub, lab: str) -> None:
    at_dev("voucher", "activate", PERSON, "--context", f"{lab}-channel")
    checked = told(at_dev, "sandbox", "check", "-n", lab)
    assert checked["findings"] == []
    assert checked["checked"]


# --- the words are those of the contract ------------------------------------------------------------


def choices(*path: str, parameter: str) -> set[str]:
    command: click.Command = main
    for word in path:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found is not None
        command = found
    option = next(one for one in command.params if one.name == parameter)
    assert isinstance(option.type, click.Choice)
    return {str(choice) for choice in option.type.choices}


def words_of(enum: Any, prefix: str) -> set[str]:
    return {name.removeprefix(prefix).lower().replace("_", "-") for name, number in enum.items() if number}


def test_the_words_of_the_options_are_the_enums_of_the_contract() -> None:
    assert set(KINDS) == words_of(sandbox_pb2.TriggerKind, "TRIGGER_KIND_")
    assert set(sandbox_verbs.DEFECTS) == words_of(sandbox_pb2.IdentityDefect, "IDENTITY_DEFECT_")
    profiles = words_of(sandbox_pb2.FaultProfile, "FAULT_PROFILE_")
    for path in (("dev",), ("sandbox", "create"), ("fault", "set")):
        assert choices(*path, parameter="profile") == profiles
    assert choices("sandbox", "create", parameter="clock") == words_of(sandbox_pb2.ClockMode, "CLOCK_MODE_")


def test_a_context_whose_operator_is_gone_says_so(at_dev: Erxhub, dev_home: Path, tmp_path: Path) -> None:
    content = json.loads((dev_home / "contexts.json").read_text(encoding="utf-8"))
    channel = content["contexts"]["channel"]
    for name in ("ca", "cert", "key"):
        channel[name] = str(dev_home / channel[name])
    alone = {"format": content["format"], "current": "", "contexts": {"channel": channel}}
    (tmp_path / "contexts.json").write_text(json.dumps(alone), encoding="utf-8")
    run = at_dev("voucher", "activate", PERSON, ERXHUB_HOME=str(tmp_path))
    assert run.exit_code == 2
    assert "context sandbox, which is gone" in run.stderr
