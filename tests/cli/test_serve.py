"""`erxhub serve`: from an empty folder to a hub that is seeded, drained and started again."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from erxhub.cli.exits import USAGE
from erxhub.cli.hosting import configured
from erxhub.cli.local_errors import Failed
from erxhub.config import Config
from erxhub.proof.notes import COSIGNATURE, NoteKey
from tests.cli.conftest import erxhub_in, start_process, stop_process


def serve_words(folder: Path, *more: str) -> tuple[str, ...]:
    tls = folder / "pki/tls/hub/hub-1"
    return (
        *("serve", "--db", str(folder / "hub.db"), "--keys", str(folder / "keys")),
        *("--cert", str(tls / "cert.pem"), "--key", str(tls / "key.pem"), "--ca", str(folder / "pki/ca.pem")),
        *("--trust-domain", "example.org", "--address", "127.0.0.1:0", *more),
    )


def ended(*words: str) -> "subprocess.CompletedProcess[str]":
    """A hub that does not come up; in a process of its own, because it sets up logging."""
    return subprocess.run([sys.executable, "-m", "erxhub.cli", *words], capture_output=True, text=True, timeout=30)


def test_a_hub_is_set_up_served_seeded_and_started_again(tmp_path: Path) -> None:
    erxhub = erxhub_in(tmp_path)
    pki, ready = ("--pki", str(tmp_path / "pki")), tmp_path / "ready.json"
    assert erxhub("ca", "init", "--trust-domain", "example.org").exit_code == 0
    assert erxhub("ca", "issue", "hub/hub-1", "--host", "localhost", "--host", "127.0.0.1").exit_code == 0
    assert erxhub("ca", "issue", "agency/330100").exit_code == 0

    without_keys = ended(*serve_words(tmp_path))
    assert without_keys.returncode == 2
    assert "erxhub keys init" in without_keys.stderr
    assert erxhub("keys", "init").exit_code == 0

    for start in ("first", "second"):
        process, line = start_process(*serve_words(tmp_path, "--ready-file", str(ready)), until="listens on port")
        target = "localhost:" + json.loads(line)["message"].partition("listens on port ")[2].partition(";")[0]
        added = erxhub("context", "add", "agency", "--target", target, "--dir", str(tmp_path / "pki/tls/agency/330100"))
        assert added.exit_code == 0, added.stderr
        seeded = erxhub("seed", *pki, "--context", "agency", "-o", "json")
        assert seeded.exit_code == 0, (start, seeded.stderr)
        assert len(json.loads(seeded.stdout)) == 7
        rows = json.loads(erxhub("registry", "list", "institutions", "-o", "json").stdout)
        assert len(rows) == 4
        etags = [row["etag"] for row in rows]
        assert etags == ["4", "3", "5", "4"], "seeding again leaves no entry"
        code, printed = stop_process(process)
        assert code == 0
        assert json.loads(ready.read_text())["target"].partition(":")[2] == target.partition(":")[2]
        for line in printed.splitlines():
            assert {"at", "level", "logger", "message"} <= json.loads(line).keys()
    assert erxhub("keys", "init", "--keys", str(tmp_path / "others")).exit_code == 0
    foreign = ended(*serve_words(tmp_path, "--keys", str(tmp_path / "others")))
    assert foreign.returncode == 2
    assert "HMAC key 1 is not the key" in foreign.stderr
    assert "hmac-*.key" in foreign.stderr
    database = erxhub("doctor", "--context", "agency", "--db", str(tmp_path / "hub.db"), "-o", "json")
    assert database.exit_code == 6
    checks = {row["check"]: row["result"] for row in json.loads(database.stdout)}
    assert checks["database: journal"] == "ok"


def test_a_policy_that_cannot_be_met_or_read_is_said_before_anything_is_opened(tmp_path: Path) -> None:
    erxhub, policy = erxhub_in(tmp_path), tmp_path / "policy"
    for words in (("ca", "init"), ("ca", "issue", "hub/hub-1", "--host", "localhost"), ("keys", "init")):
        assert erxhub(*words).exit_code == 0
    vkey = NoteKey("witness.test/1", COSIGNATURE, bytes(32)).vkey
    for text, reason in (("witness W one two three four\n", "FIELDS"), (f"witness W {vkey}\nquorum W\n", "no URL")):
        policy.write_text(text)
        refused = ended(*serve_words(tmp_path, "--witness-policy", str(policy)))
        assert refused.returncode == 2
        assert reason in refused.stderr
    assert not (tmp_path / "hub.db").exists()


def test_a_taken_address_and_a_missing_certificate_are_named(tmp_path: Path) -> None:
    erxhub = erxhub_in(tmp_path)
    for words in (("ca", "init"), ("ca", "issue", "hub/hub-1", "--host", "localhost"), ("keys", "init")):
        assert erxhub(*words).exit_code == 0
    absent = erxhub(*serve_words(tmp_path, "--cert", "absent.pem"))
    assert absent.exit_code == 2
    assert "absent.pem" in absent.stderr
    (tmp_path / "text").write_text("no certificate")
    for more, said in (
        (("--ca", str(tmp_path / "text")), "no certificate in PEM"),
        (("--origin", "two words"), "The origin 'two words'"),
        (("--hub-id", ""), "The id of a hub"),
    ):
        wrong = ended(*serve_words(tmp_path, *more))
        assert wrong.returncode == 2
        assert said in wrong.stderr
    assert not (tmp_path / "hub.db").exists()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        run = ended(*serve_words(tmp_path, "--address", address))
    assert run.returncode == 2
    assert address in run.stderr


def test_settings_are_read_by_the_type_of_their_default() -> None:
    config = configured(Config(), ["reflection=no", "drain_ms=5", "hub_id=hub-9", "national_agencies=000000, 330000"])
    assert (config.reflection, config.drain_ms, config.hub_id) == (False, 5, "hub-9")
    assert config.national_agencies == ("000000", "330000")


@pytest.mark.parametrize(
    "setting",
    ["drain_ms", "drain_ms=", "drain_ms=-1", "reflection=maybe", "hub_id=", "nothing=1", "national_agencies="],
)
def test_a_wrong_setting_is_named(setting: str) -> None:
    with pytest.raises(Failed, match=f"--config {setting}"):
        configured(Config(), [setting])


@pytest.mark.parametrize(
    ("setting", "bound"),
    [
        ("sweep_interval_ms=0", "from 1 to 86400000"),
        ("page_size_default=0", "from 1 to 200"),
        ("message_bytes_max=1", "from 1310720 to 2147483647"),
        ("page_size_default=150", ""),
    ],
)
def test_a_number_out_of_its_bounds_is_a_usage_error_with_the_bound(setting: str, bound: str) -> None:
    with pytest.raises(Failed) as failed:
        configured(Config(), ["page_size_max=100", setting])
    assert (failed.value.exit_code, failed.value.code) == (USAGE, "CLI_SETTING_BOUNDS")
    assert failed.value.field == "--config"
    assert failed.value.details.startswith(f"{setting}: the value is {bound}")
