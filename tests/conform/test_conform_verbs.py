"""`erxhub conform`: its verbs and its exit codes."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from erxhub.cli.main import main
from erxhub.crypto.suites import SigningKey
from tests.conform.ground import driver_command
from tests.conform.test_runner import PHARMACY


def erxhub(*words: str, typed: str = "") -> Result:
    return CliRunner().invoke(main, ["conform", *words], input=typed)


def test_list_has_the_cases_of_a_role() -> None:
    result = erxhub("list", "--role", "pharmacy", "--cases", "core", "-o", "json")
    rows = json.loads(result.stdout)
    assert {"DSP-010", "IDEM-003"} <= {row["id"] for row in rows}
    assert all("pharmacy" in row["roles"] and row["status"] == "stable" for row in rows)


def test_show_tells_what_a_case_demands() -> None:
    result = erxhub("show", "dsp-010", "-o", "json")
    assert result.exit_code == 0
    shown = json.loads(result.stdout)
    assert shown["scripts"]["pharmacy"]["steps"]
    assert {one["id"] for one in shown["requirements"]} == set(shown["verifies"])


def test_show_of_no_case_is_a_harness_error() -> None:
    result = erxhub("show", "DSP-999")
    assert result.exit_code == 2
    assert "there is no case DSP-999" in result.stderr


def test_a_run_writes_a_bundle_that_verifies(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = erxhub("run", "--role", "pharmacy", "--driver", PHARMACY, "--run", "CLM-001", "-o", str(out))
    assert run.exit_code == 0, run.output
    assert "PASS        CLM-001" in run.stdout
    assert erxhub("verify", str(out)).exit_code == 0
    (out / "badge.svg").write_text("<svg/>", encoding="utf-8")
    verified = erxhub("verify", str(out))
    assert verified.exit_code == 1
    assert "badge.svg: BUNDLE_ALTERED" in verified.stdout


def test_a_bundle_proves_its_maker_by_a_key_that_outlives_the_run(tmp_path: Path) -> None:
    key, out = tmp_path / "maker.pem", tmp_path / "out"
    words = ("run", "--role", "pharmacy", "--driver", PHARMACY, "--run", "CLM-001", "--sign-with", str(key))
    signers = []
    for _ in range(2):
        run = erxhub(*words, "-o", str(out))
        assert run.exit_code == 0, run.output
        signers += [line.removeprefix("signed by ") for line in run.stderr.splitlines() if line.startswith("signed by")]
    assert signers[0] == signers[1]
    assert key.stat().st_mode & 0o777 == 0o600
    unpinned = erxhub("verify", str(out))
    assert f"signed by {signers[0]}; whose key that is, only --key can tell" in unpinned.stdout
    assert "the key that was demanded" in erxhub("verify", str(out), "--key", signers[0]).stdout
    other = erxhub("verify", str(out), "--key", "00" * 32)
    assert (other.exit_code, "BUNDLE_KEY" in other.stdout) == (1, True)


def test_a_key_that_is_none_is_a_harness_error_before_the_run(tmp_path: Path) -> None:
    words = ("run", "--role", "pharmacy", "--driver", "/no/such/driver")
    (tmp_path / "text.pem").write_text("no key", encoding="utf-8")
    (tmp_path / "sm2.pem").write_bytes(SigningKey.generate("SM2-SM3").to_pem())
    for name in ("text.pem", "sm2.pem", "no/folder.pem"):
        run = erxhub(*words, "-o", str(tmp_path / "out"), "--sign-with", str(tmp_path / name))
        assert run.exit_code == 2, run.output
        assert "--sign-with" in run.stderr
    assert erxhub(*words, "--sign-with", str(tmp_path / "new.pem")).exit_code == 2, "there is nothing to sign"


def test_a_failure_shows_its_reasons_and_the_line_that_repeats_it(tmp_path: Path) -> None:
    known = tmp_path / "known.txt"
    known.write_text("CLM-002 # ticket 5\n", encoding="utf-8")
    words = ("run", "--role", "pharmacy", "--driver", driver_command(), "--run", "CLM-001", "--seed", "3")
    run = erxhub(*words, "--known-failing", str(known))
    assert run.exit_code == 1
    assert "FAIL        CLM-001" in run.stdout
    assert "[sut] steps[0]" in run.stdout
    assert "--seed 3 --run CLM-001" in run.stdout


def test_an_unusable_driver_ends_with_3() -> None:
    run = erxhub("run", "--role", "pharmacy", "--driver", "/no/such/driver")
    assert run.exit_code == 3
    assert "unusable" in run.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("--role", "pharmacy"),
        ("--role", "pharmacy", "--driver", "x", "--attach"),
        ("--role", "pharmacy", "--target", "localhost:1", "--driver", "x"),
        ("--role", "hub", "--driver", "x"),
        ("--role", "nurse"),
        ("--role", "pharmacy", "--driver", PHARMACY, "--run", "NOTHING-*"),
    ],
)
def test_what_cannot_be_run_is_a_harness_error(words: tuple[str, ...]) -> None:
    assert erxhub("run", *words).exit_code == 2


def test_a_known_failing_list_that_names_no_case_is_a_harness_error(tmp_path: Path) -> None:
    known = tmp_path / "known.txt"
    known.write_text("DSP-999\n", encoding="utf-8")
    run = erxhub("run", "--role", "pharmacy", "--driver", PHARMACY, "--known-failing", str(known))
    assert run.exit_code == 2
    assert "DSP-999" in run.stderr


def test_an_attached_product_is_worked_by_cards_and_judged_from_the_hubs_side() -> None:
    # The operator says that everything is done, and nothing was: the hub knows better.
    run = erxhub("run", "--role", "pharmacy", "--attach", "--run", "CLM-001", typed="\n" * 20)
    assert run.exit_code == 1, run.output
    assert "配置产品" in run.stdout
    assert "Scan the code and list the prescriptions." in run.stdout
    assert "FAIL        CLM-001" in run.stdout


def test_an_operator_who_cannot_do_a_step_skips_the_case() -> None:
    run = erxhub("run", "--role", "pharmacy", "--attach", "--run", "CLM-001", typed="\n\ns\n")
    assert run.exit_code == 0
    assert "SKIP        CLM-001" in run.stdout


def test_verify_of_nothing_is_a_harness_error(tmp_path: Path) -> None:
    assert erxhub("verify", str(tmp_path / "nothing")).exit_code == 2
    assert erxhub("verify", str(tmp_path), "--key", "xyz").exit_code == 2
