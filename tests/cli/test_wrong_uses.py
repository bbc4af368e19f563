"""What goes wrong outside of any hub: files, folders and ports that cannot be used, options that mean another thing.

Each is one sentence on stderr and an exit code, never a traceback.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from erxhub.cli.exits import CONFLICT, NEGATIVE, OK, USAGE
from erxhub.crypto.ca import TrustDomain
from erxhub.ports import SystemClock
from tests.cli.conftest import Erxhub

NOWHERE = "/dev/null/x"
"""Below something that is no folder: nobody can make it, the superuser neither."""


@pytest.mark.parametrize(
    "words",
    [
        ("dev", "--home", NOWHERE),
        ("dev", "--db", NOWHERE),
        ("keys", "init", "--keys", NOWHERE),
        ("ca", "init", "--pki", NOWHERE),
        ("witness", "keygen", "example.org/w", "--folder", NOWHERE),
        ("db", "migrate", "--db", NOWHERE),
        ("db", "check", "--db", NOWHERE),
    ],
    ids=" ".join,
)
def test_a_path_that_cannot_be_used_is_named(erxhub: Erxhub, words: tuple[str, ...]) -> None:
    result = erxhub(*words)
    assert result.exit_code == USAGE
    assert "/dev/null" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("verb", ["check", "migrate", "scrub"])
def test_a_folder_is_no_database(erxhub: Erxhub, tmp_path: Path, verb: str) -> None:
    result = erxhub("db", verb, "--db", str(tmp_path))
    assert result.exit_code == USAGE
    assert result.stderr.splitlines() == [
        "CLI_FILE_IS_FOLDER (local)",
        f"  {tmp_path} is a folder; a file is needed.",
        f"  {tmp_path} 是文件夹，此处须为文件。",
        f"  field: {tmp_path}",
    ]


def test_of_a_copy_the_file_at_fault_is_named(erxhub: Erxhub, tmp_path: Path) -> None:
    database, text, nowhere = tmp_path / "hub.db", tmp_path / "text", tmp_path / "none/copy.db"
    erxhub("db", "migrate", "--db", str(database))
    text.write_text("no database " * 200)
    for words, fault in (
        (("backup", "--db", str(database), str(nowhere)), ("CLI_FILE_ABSENT", str(nowhere))),
        (("backup", "--db", str(text), f"{tmp_path}/copy.db"), ("CLI_DATABASE_FORMAT", str(text))),
        (("restore", "--db", f"{tmp_path}/new.db", str(text)), ("CLI_DATABASE_FORMAT", str(text))),
    ):
        result = erxhub("db", *words, "-o", "json")
        assert result.exit_code == USAGE
        error = json.loads(result.stderr)["error"]
        assert (error["code"], error["field"]) == fault
    assert not (tmp_path / "copy.db").exists()


def test_a_context_that_cannot_be_kept_is_said(tmp_path: Path, erxhub: Erxhub) -> None:
    trust = TrustDomain.init(tmp_path / "pki", "example.org", SystemClock().now_ms())
    trust.issue_tls("auditor", "auditor-1", SystemClock().now_ms(), 30)
    folder = tmp_path / "pki/tls/auditor/auditor-1"
    words = ("context", "add", "x", "--target", "localhost:1", "--dir", str(folder))
    result = erxhub(*words, ERXHUB_HOME=NOWHERE)
    assert result.exit_code == USAGE
    assert NOWHERE in result.stderr


def test_a_full_disk_under_the_output_is_one_sentence() -> None:
    with Path("/dev/full").open("w") as full:
        words = [sys.executable, "-m", "erxhub.cli", "errors", "list"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == USAGE
    assert done.stderr.splitlines()[:3] == [
        "CLI_DISK_FULL (local)",
        "  There is no space left on the device.",
        "  设备上没有剩余空间。",
    ]


def test_a_taken_port_is_named_and_grpc_says_nothing_of_its_own(dev_home: Path, tmp_path: Path) -> None:
    port = json.loads((dev_home / "contexts.json").read_text())["contexts"]["hospital"]["target"].rpartition(":")[2]
    words = [sys.executable, "-m", "erxhub.cli", "dev", "--home", str(tmp_path / "home"), "--port", port]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == USAGE
    assert done.stderr.splitlines() == [
        "CLI_ADDRESS_TAKEN (local)",
        f"  127.0.0.1:{port} cannot be listened on: it is in use, or not this machine's.",
        f"  无法监听 127.0.0.1:{port}：已被占用，或不是本机地址。",
        f"  field: 127.0.0.1:{port}",
        f"  details: Failed to bind to address 127.0.0.1:{port}",
    ]


def test_a_folder_has_one_sandbox_at_a_time(dev_home: Path) -> None:
    before = (dev_home / "contexts.json").read_bytes()
    words = [sys.executable, "-m", "erxhub.cli", "dev", "--home", str(dev_home)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == CONFLICT
    assert done.stderr.startswith("CLI_HOME_IN_USE (local)\n  Another `erxhub dev` runs")
    assert (dev_home / "contexts.json").read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        ("audit", "export", "3" * 27),
        ("sandbox", "inspect"),
        ("conform", "run", "--role", "pharmacy", "--driver", "true"),
    ],
    ids=" ".join,
)
def test_a_format_is_no_name_of_a_file(erxhub: Erxhub, words: tuple[str, ...]) -> None:
    result = erxhub(*words, "-o", "json")
    assert result.exit_code == USAGE
    assert "./json" in result.stderr


def test_an_absence_is_told_as_an_object(at_dev: Erxhub, dev_home: Path) -> None:
    listed = at_dev("keys", "list", "--keys", str(dev_home / "keys"), "--origin", "erxhub.test/ledger", "-o", "json")
    vkey = json.loads(listed.stdout)[0]["vkey"]
    result = at_dev("audit", "absent", "9" * 27, "--log-key", vkey, "-o", "json")
    assert result.exit_code == OK
    assert json.loads(result.stdout)["verified"] is True


def test_of_keys_and_policy_the_one_that_cannot_be_read_is_named(erxhub: Erxhub, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no policy\n")
    words = ("audit", "verify", str(text))
    for option, value, code, reason in (
        ("--log-key", "garbage", "CLI_LOG_KEY", "VKEY_FORM"),
        ("--policy", str(text), "CLI_POLICY", "KEYWORD"),
    ):
        told = erxhub(*words, option, value).stderr
        assert told.startswith(f"{code} (local)")
        assert f"  field: {option}\n  details: {reason}: " in told


def test_doctor_knows_what_a_mirror_may_do(erxhub: Erxhub, dev_home: Path) -> None:
    pki = dev_home / "pki"
    assert erxhub("ca", "issue", "mirror/mirror-1", "--pki", str(pki)).exit_code == OK
    target = json.loads((dev_home / "contexts.json").read_text())["contexts"]["auditor"]["target"]
    erxhub("context", "add", "mirror", "--target", target, "--dir", str(pki / "tls/mirror/mirror-1"))
    result = erxhub("doctor", "--context", "mirror")
    assert result.exit_code == OK, result.stdout


def test_doctor_goes_on_where_a_sandbox_is_gone(erxhub: Erxhub, dev_home: Path, tmp_path: Path) -> None:
    kept = json.loads((dev_home / "contexts.json").read_text())
    moved = {**kept["contexts"]["auditor"], "sandbox": "gone"}
    moved |= {name: str(dev_home / moved[name]) for name in ("ca", "cert", "key")}
    (tmp_path / "home").mkdir()
    (tmp_path / "home/contexts.json").write_text(json.dumps({"format": 1, "current": "", "contexts": {"x": moved}}))
    result = erxhub("doctor", "-o", "json")
    assert result.exit_code == NEGATIVE
    assert [row["result"] for row in json.loads(result.stdout) if "gone" in row["detail"]] == ["FAIL"]


def test_a_trust_domain_is_made_once(erxhub: Erxhub, tmp_path: Path) -> None:
    words = ("ca", "init", "--pki", str(tmp_path / "pki"))
    assert [erxhub(*words).exit_code, erxhub(*words).exit_code] == [OK, USAGE]
    assert "--pki" in erxhub("ca", "list", "--pki", str(tmp_path / "elsewhere")).stderr


def test_a_copy_never_replaces_a_file(erxhub: Erxhub, tmp_path: Path) -> None:
    database = str(tmp_path / "hub.db")
    erxhub("db", "migrate", "--db", database)
    assert erxhub("db", "backup", "--db", database, database).exit_code == CONFLICT


def test_a_misspelt_verb_is_told_its_neighbour(erxhub: Erxhub) -> None:
    assert "Did you mean 'pharmacy'?" in erxhub("pharmcy").stderr
    assert "Did you mean 'run'?" in erxhub("conform", "rnu").stderr
