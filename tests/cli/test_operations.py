"""The operating verbs against a dev hub, and what they say when something is wrong."""

import json
from pathlib import Path

from erxhub.cli import local_errors
from erxhub.client import SystemEnvironment
from erxhub.core.refusals import CATALOGUE
from erxhub.crypto.ca import TrustDomain
from erxhub.proof.notes import ED25519, read_vkey
from erxhub.sandbox.errors import ERRORS
from tests.cli.conftest import Erxhub, erxhub_in, start_process, stop_process

DOCTOR = "D330100990001"
JUNIOR = "D330100990002"
HOSPITAL = "H33010099901"
PHARMACY_B = "P33010099102"
RESIDENT = "33010000990004"


# --- what dev leaves ------------------------------------------------------------------------------


def test_dev_writes_a_context_for_each_seeded_caller(at_dev: Erxhub) -> None:
    rows = {row["name"]: row for row in json.loads(at_dev("context", "list", "-o", "json").stdout)}
    assert {name: row["caller"].split("/")[0] for name, row in rows.items()} == {
        "hospital": "hospital",
        "hospital2": "hospital",
        "pharmacy": "pharmacy",
        "pharmacy2": "pharmacy",
        "channel": "channel",
        "agency": "agency",
        "auditor": "auditor",
        "sandbox": "sandbox",
    }
    assert {row["namespace"] for row in rows.values()} == {"default"}
    assert rows["hospital"]["current"]
    assert rows["auditor"]["reason"]
    assert DOCTOR in rows["hospital"]["signs_for"]
    assert rows["hospital"]["receipt_keys"]


def test_private_files_of_dev_are_for_the_owner_only(dev_home: Path) -> None:
    private = [*dev_home.rglob("*key.pem"), *(dev_home / "keys").iterdir(), dev_home / "contexts.json"]
    assert len(private) > 20
    assert [path for path in private if path.stat().st_mode & 0o077] == []


def test_a_dev_ledger_survives_a_restart_and_is_seeded_only_once(tmp_path: Path) -> None:
    ready, home = tmp_path / "ready.json", tmp_path / "demo.db-home"
    erxhub = erxhub_in(home)
    found = []
    for _ in range(2):
        words = ("dev", "--db", str(tmp_path / "demo.db"), "--ready-file", str(ready))
        process, _ = start_process(*words, until="Try in another terminal")
        assert json.loads(ready.read_text())["home"] == str(home)
        institutions = json.loads(erxhub("registry", "list", "institutions", "-o", "json").stdout)
        contexts = json.loads(erxhub("context", "list", "-o", "json").stdout)
        found.append([institutions, [(row["signs_for"], row["receipt_keys"]) for row in contexts]])
        code, printed = stop_process(process)
        assert code == 0
        assert "stopped" in printed
    assert found[0] == found[1]


# --- registry and agreements ----------------------------------------------------------------------


def test_institutions_are_listed_with_their_agreements(at_dev: Erxhub) -> None:
    rows = json.loads(at_dev("registry", "list", "institutions", "-o", "json").stdout)
    found = {row["institution_code"]: row for row in rows}
    assert {"BASE", "INTERNET"} == {one["kind"] for one in found[HOSPITAL]["agreements"]}
    table = at_dev("registry", "list", "institutions").stdout
    assert "BASE ACTIVE, INTERNET ACTIVE" in table


def test_an_institution_a_person_and_a_practitioner_are_added(at_dev: Erxhub) -> None:
    assert at_dev("registry", "add", "institution", "H33010099909", "--name", "示例", "--level", "05").exit_code == 0
    words = ("registry", "add", "practitioner", "D330100990009", "--name", "何示例", "--kind", "doctor")
    assert at_dev(*words, "--at", "H33010099909", "--years", "5").exit_code == 0
    rows = json.loads(at_dev("registry", "list", "practitioners", "H33010099909", "-o", "json").stdout)
    assert [(row["practitioner_code"], row["practice_years"]) for row in rows] == [("D330100990009", 5)]
    added = at_dev(
        *("registry", "add", "person", "33010000990009", "--name", "许示例", "--id-number", "990101196104129019"),
        *("--sex", "male", "--born", "1961-04-12", "--area", "330100", "--insurance", "310", "--type", "1201"),
        *("--balance-fen", "50000", "--chronic", "M03900"),
    )
    assert added.exit_code == 0, added.stderr
    person = json.loads(at_dev("registry", "list", "person", "33010000990009", "-o", "json").stdout)
    assert (person["account_balance_fen"], person["chronic_codes"]) == (50000, ["M03900"])


def test_a_practitioner_is_suspended_and_resumed(at_dev: Erxhub) -> None:
    def status() -> str:
        rows = json.loads(at_dev("registry", "list", "practitioners", HOSPITAL, "-o", "json").stdout)
        return str(next(row["status"] for row in rows if row["practitioner_code"] == JUNIOR))

    assert at_dev("registry", "suspend", "practitioner", JUNIOR, "--case", "2026-17").exit_code == 0
    assert status() == "SUSPENDED"
    again = at_dev("registry", "suspend", "practitioner", JUNIOR, "--case", "2026-17")
    assert again.exit_code == 5
    assert "RECORD_STATE" in again.stderr
    assert at_dev("registry", "resume", "practitioner", JUNIOR).exit_code == 0
    assert status() == "ACTIVE"


def test_a_persons_insurance_is_paused_and_resumed(at_dev: Erxhub) -> None:
    assert at_dev("registry", "suspend", "person", RESIDENT, "--reason", "断缴").exit_code == 0
    assert json.loads(at_dev("registry", "list", "person", RESIDENT, "-o", "json").stdout)["status"] == "PAUSED"
    assert at_dev("registry", "resume", "person", RESIDENT).exit_code == 0


def test_an_agreement_is_suspended_resumed_and_another_signed(at_dev: Erxhub) -> None:
    assert at_dev("agreement", "suspend", PHARMACY_B, "--kind", "pooling", "--case", "2026-3").exit_code == 0
    assert at_dev("agreement", "resume", PHARMACY_B, "--kind", "pooling").exit_code == 0
    signed = at_dev("agreement", "sign", PHARMACY_B, "--kind", "dual-channel", "--no", "HT-1", "-o", "json")
    assert signed.exit_code == 0, signed.stderr
    assert json.loads(signed.stdout)["receipt"]["entries"]
    incomplete = at_dev("agreement", "sign", PHARMACY_B, "--kind", "base", "--no", "HT-2", "--clause", "scope")
    assert "AGR_INCOMPLETE" in incomplete.stderr


def test_a_repeated_request_id_gets_the_first_reply(at_dev: Erxhub) -> None:
    words = ("registry", "add", "institution", "P33010099908", "--name", "示例店", "--request-id", "cli-test-0001")
    first, second = at_dev(*words, "-o", "json"), at_dev(*words, "-o", "json")
    assert first.exit_code == 0, first.stderr
    assert first.stdout == second.stdout


def test_what_is_not_registered_is_not_found(at_dev: Erxhub) -> None:
    missing = at_dev("registry", "list", "person", "33010000999999")
    assert missing.exit_code == 3
    assert missing.stdout == ""
    assert "RECORD_UNKNOWN" in missing.stderr


def test_a_context_of_another_role_is_a_usage_error(at_dev: Erxhub) -> None:
    wrong = at_dev("registry", "list", "institutions", "--context", "pharmacy")
    assert wrong.exit_code == 2
    assert "is of the role pharmacy" in wrong.stderr


# --- certificates and keys ------------------------------------------------------------------------


def test_a_revoked_certificate_is_refused_by_the_hub(at_dev: Erxhub, dev_home: Path) -> None:
    pki = ("--pki", str(dev_home / "pki"))
    issued = json.loads(at_dev("ca", "issue", "agency/330199", *pki, "-o", "json").stdout)
    target = json.loads((dev_home / "contexts.json").read_text())["contexts"]["agency"]["target"]
    at_dev("context", "add", "leaver", "--target", target, "--dir", issued["folder"])
    assert at_dev("registry", "list", "institutions", "--context", "leaver").exit_code == 0
    told = at_dev("ca", "revoke", issued["serial"], "--reason", "superseded", "--context", "agency", *pki, "-o", "json")
    assert told.exit_code == 0, told.stderr
    assert json.loads(told.stdout)["hub_told"] is True
    refused = at_dev("registry", "list", "institutions", "--context", "leaver")
    assert refused.exit_code == 4
    assert "CERT_REVOKED" in refused.stderr
    looked = at_dev("doctor", "--context", "leaver")
    assert looked.exit_code == 1
    assert "CERT_REVOKED" in looked.stdout
    listed = json.loads(at_dev("ca", "list", *pki, "-o", "json").stdout)
    assert next(row for row in listed if row["serial"] == issued["serial"])["revoked"].endswith("superseded")


def test_a_new_signing_key_is_issued_registered_and_revoked(at_dev: Erxhub, dev_home: Path) -> None:
    pki = ("--pki", str(dev_home / "pki"))
    words = ("ca", "issue", JUNIOR, "--signing", "--institution", HOSPITAL, "--suite", "SM2-SM3")
    issued = json.loads(at_dev(*words, *pki, "-o", "json").stdout)
    added = at_dev("registry", "add", "key", issued["folder"], "-o", "json")
    assert json.loads(added.stdout)["key_id"] == issued["key_id"]
    assert at_dev("ca", "revoke", issued["key_id"], "--context", "agency", *pki).exit_code == 0
    rows = json.loads(at_dev("registry", "list", "practitioners", HOSPITAL, "-o", "json").stdout)
    keys = next(row["keys"] for row in rows if row["practitioner_code"] == JUNIOR)
    assert [key["revoked"] for key in keys if key["key_id"] == issued["key_id"]] == [True]


def test_ca_says_what_is_wrong_with_a_request(erxhub: Erxhub) -> None:
    assert erxhub("ca", "list").exit_code == 2
    assert erxhub("ca", "init", "--trust-domain", "Not A Name").exit_code == 2
    assert erxhub("ca", "init").exit_code == 0
    assert erxhub("ca", "init").exit_code == 2
    for words in (
        ("hospital",),
        ("hospital/x",),
        ("agency/330100", "--institution", "H1"),
        ("D1", "--signing", "--host", "h"),
    ):
        run = erxhub("ca", "issue", *words)
        assert run.exit_code == 2, words
        assert run.stdout == ""
    quiet = erxhub("ca", "revoke", "00ff")
    assert quiet.exit_code == 2


def test_keys_are_made_renewed_and_listed_without_their_secrets(erxhub: Erxhub, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "keys"
    assert erxhub("keys", "list").exit_code == 2
    assert erxhub("keys", "init").exit_code == 0
    assert erxhub("keys", "init").exit_code == 2
    before = {row["id"] for row in json.loads(erxhub("keys", "list", "-o", "json").stdout)}
    for what in ("receipt", "hmac"):
        assert erxhub("keys", "rotate", what).exit_code == 0
    vkeys = [row["vkey"] for row in json.loads(erxhub("keys", "list", "--origin", "a.test/b", "-o", "json").stdout)]
    assert [read_vkey(vkey, (ED25519,)).name for vkey in vkeys] == ["a.test/b"]
    assert erxhub("keys", "list", "--origin", "a b").exit_code == 2
    listed = erxhub("keys", "list", "-o", "json").stdout
    rows = json.loads(listed)
    assert [(row["key"], row["in_use"]) for row in rows] == [
        ("receipt", True),
        ("receipt", False),
        ("log", True),
        ("hmac", False),
        ("hmac", True),
    ]
    assert before < {row["id"] for row in rows}
    for path in folder.glob("hmac-*.key"):
        assert path.read_text().strip() not in listed


# --- catalogue ------------------------------------------------------------------------------------


def test_an_import_says_line_by_line_what_it_took_and_refused(at_dev: Erxhub, tmp_path: Path) -> None:
    path = tmp_path / "chronic.csv"
    path.write_text("code,name\nM03900,高血压病\nX1,错\nM01600\nM03900,again\nM01600,糖尿病\n")
    run = at_dev("catalog", "import", str(path), "-o", "json")
    assert run.exit_code == 1
    summary = json.loads(run.stdout)[0]
    assert (summary["lines"], summary["taken"], summary["refused"]) == (5, 2, 3)
    assert [(line["line"], line["by"]) for line in summary["remarks"]] == [(3, "hub"), (4, "file"), (5, "file")]
    checked = json.loads(at_dev("catalog", "check", str(path), "-o", "json").stdout)[0]
    assert (checked["taken"], checked["refused"]) == (2, 3)
    rows = json.loads(at_dev("catalog", "list", "chronic", "-o", "json").stdout)
    assert [row["code"] for row in rows] == ["M01600", "M03900"]
    editions = json.loads(at_dev("catalog", "list", "chronic", "--editions", "-o", "json").stdout)
    assert [edition["edition"] for edition in editions] == ["seed-1", summary["edition"]]


def test_the_same_import_again_changes_nothing(at_dev: Erxhub, tmp_path: Path) -> None:
    path = tmp_path / "frequencies.csv"
    path.write_text("code,name,times,period_days,schedule\n11,每天一次,1,1,regular\n")
    words = ("catalog", "import", str(path), "--edition", "f-1", "--valid-from", "2026-01-01")
    assert [at_dev(*words).exit_code for _ in range(2)] == [0, 0]
    path.write_text("code,name,times,period_days,schedule\n12,每天二次,2,1,regular\n")
    other = at_dev(*words)
    assert other.exit_code == 5
    assert "RECORD_EXISTS" in other.stderr


def test_a_list_stops_at_its_limit_and_says_so(at_dev: Erxhub) -> None:
    run = at_dev("catalog", "list", "diseases", "--limit", "3", "-o", "jsonl")
    assert len(run.stdout.splitlines()) == 3
    assert "more than 3" in run.stderr
    assert at_dev("catalog", "list", "drugs", "--prefix", "T99", "--context", "pharmacy").exit_code == 0


def test_without_files_and_without_the_shared_folder_nothing_is_guessed(erxhub: Erxhub, tmp_path: Path) -> None:
    run = erxhub("catalog", "check", ERXHUB_SHARED=str(tmp_path / "absent"))
    assert run.exit_code == 2
    assert "ERXHUB_SHARED" in run.stderr


def test_the_shared_lists_are_imported_whole(shared: Path, at_dev: Erxhub) -> None:
    run = at_dev("catalog", "check", "-o", "json", ERXHUB_SHARED=str(shared))
    assert run.exit_code == 0
    assert [row["refused"] for row in json.loads(run.stdout)] == [0] * 5


# --- errors and doctor ----------------------------------------------------------------------------


def test_every_refusal_is_listed_and_one_explained(erxhub: Erxhub) -> None:
    rows = json.loads(erxhub("errors", "list", "-o", "json").stdout)
    assert [row["code"] for row in rows] == [*CATALOGUE, *ERRORS, *local_errors.CATALOGUE]
    one = json.loads(erxhub("errors", "explain", "rx_unknown", "-o", "json").stdout)
    assert one["exit_code"] == 3
    assert one["zh"]
    of_sandbox = json.loads(erxhub("errors", "explain", "SBX_CLOCK_BACK", "-o", "json").stdout)
    assert of_sandbox.keys() == one.keys()
    assert (of_sandbox["exit_code"], of_sandbox["retriable"]) == (2, False)


def test_a_misspelt_code_is_not_found_and_the_near_ones_are_named(erxhub: Erxhub) -> None:
    run = erxhub("errors", "explain", "RX_UNKNWN")
    assert run.exit_code == 3
    assert "RX_UNKNOWN" in run.stderr
    for code in ("TLS_EXPIRED", "HUB_UNREACHABLE"):
        of_connection = erxhub("errors", "explain", code)
        assert of_connection.exit_code == 3
        assert of_connection.stderr.startswith("CLI_CODE_OF_CONNECTION (local)")


def test_doctor_finds_nothing_wrong_with_a_dev_hub(at_dev: Erxhub) -> None:
    run = at_dev("doctor", "--context", "pharmacy", "-o", "json")
    assert run.exit_code == 0, run.stdout
    checks = {row["check"]: row for row in json.loads(run.stdout)}
    assert "SERVING" in checks["pharmacy: hub"]["detail"]
    assert {row["result"] for row in checks.values()} == {"ok"}


def test_doctor_names_an_expired_certificate_and_a_foreign_one(erxhub: Erxhub, tmp_path: Path) -> None:
    now_ms = SystemEnvironment().now_ms()
    trust = TrustDomain.init(tmp_path / "pki", "erxhub.test", now_ms)
    trust.issue_tls("agency", "330100", now_ms - 40 * 86_400_000, 30)
    folder = tmp_path / "pki/tls/agency/330100"
    assert erxhub("context", "add", "late", "--target", "localhost:1", "--dir", str(folder)).exit_code == 0
    run = erxhub("doctor", "-o", "json")
    assert run.exit_code == 1
    assert "TLS_EXPIRED" in run.stdout
    other = TrustDomain.init(tmp_path / "other", "erxhub.test", now_ms)
    (folder / "ca.pem").write_bytes(other.ca_pem)
    assert "TLS_FOREIGN_CA" in erxhub("doctor", "-o", "json").stdout


def test_an_unreachable_hub_has_its_own_exit_code(erxhub: Erxhub, dev_home: Path) -> None:
    folder = dev_home / "pki/tls/agency/330100"
    assert erxhub("context", "add", "nobody", "--target", "localhost:1", "--dir", str(folder)).exit_code == 0
    assert erxhub("doctor").exit_code == 6
    call = erxhub("registry", "list", "institutions")
    assert call.exit_code == 6
    assert "HUB_UNREACHABLE" in call.stderr


def test_doctor_looks_at_a_database(erxhub: Erxhub, tmp_path: Path) -> None:
    missing, text = tmp_path / "missing.db", tmp_path / "text.db"
    text.write_text("no database" * 20)
    assert erxhub("doctor", "--db", str(missing)).exit_code == 1
    run = erxhub("doctor", "--db", str(text))
    assert run.exit_code == 1
    assert "is no SQLite file" in run.stdout
