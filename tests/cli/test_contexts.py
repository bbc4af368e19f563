"""Contexts: which one a command takes, and what the file holds."""

import json
from pathlib import Path

import pytest

from erxhub.cli.context import Context, Contexts
from erxhub.cli.local_errors import Failed
from erxhub.client import SystemEnvironment
from erxhub.crypto.ca import TrustDomain
from tests.cli.conftest import Erxhub

NOW_MS = SystemEnvironment().now_ms()


def context(name: str, role: str, **other: object) -> Context:
    fields: dict[str, object] = {
        "target": "localhost:1",
        "id": "x",
        "ca": Path("a"),
        "cert": Path("b"),
        "key": Path("c"),
    }
    return Context(name=name, role=role, **(fields | other))  # type: ignore[arg-type]


def contexts(*found: Context, current: str = "") -> Contexts:
    return Contexts(Path("/nowhere"), {one.name: one for one in found}, current)


def test_a_named_context_must_exist_and_fit() -> None:
    known = contexts(context("one", "hospital"))
    assert known.pick("one", ("hospital",)).name == "one"
    with pytest.raises(Failed, match="There is no context 'two'"):
        known.pick("two", ("hospital",))
    with pytest.raises(Failed, match="this command is for pharmacy"):
        known.pick("one", ("pharmacy",))


def test_the_current_context_comes_before_the_one_named_like_the_role() -> None:
    known = contexts(context("pharmacy", "pharmacy"), context("mine", "pharmacy"), current="mine")
    assert known.pick(None, ("pharmacy",)).name == "mine"


def test_a_current_context_that_does_not_fit_is_passed_over() -> None:
    known = contexts(context("hospital", "hospital"), context("agency", "agency"), current="hospital")
    assert known.pick(None, ("agency",)).name == "agency"


def test_the_only_context_of_a_role_needs_no_name() -> None:
    assert contexts(context("odd", "auditor")).pick(None, ("auditor",)).name == "odd"
    with pytest.raises(Failed, match="several contexts that fit"):
        contexts(context("odd", "auditor"), context("even", "auditor")).pick(None, ("auditor",))


def test_paths_inside_the_folder_are_kept_relative_so_that_it_can_be_moved(tmp_path: Path) -> None:
    home = tmp_path / "home"
    known = Contexts.load(home)
    known.by_name["h"] = context("h", "hospital", cert=home / "pki" / "cert.pem", key=tmp_path / "key.pem")
    known.save()
    row = json.loads((home / "contexts.json").read_text())["contexts"]["h"]
    assert row["cert"] == "pki/cert.pem"
    assert row["key"] == str((tmp_path / "key.pem").resolve())
    home.rename(tmp_path / "moved")
    assert Contexts.load(tmp_path / "moved").by_name["h"].cert == tmp_path / "moved" / "pki" / "cert.pem"


def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    Contexts.load(tmp_path / "home").save()
    assert (tmp_path / "home" / "contexts.json").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700


_ROW = (
    '{"target": "h:1", "role": "agency", "id": "a", "ca": "a", "cert": "b", "key": "c", "receipt_keys": {"ab": "no"}}'
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 2, "contexts": {}, "current": ""}',
        '{"format": 1}',
        f'{{"format": 1, "current": "", "contexts": {{"x": {_ROW}}}}}',
    ],
)
def test_an_unreadable_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "contexts.json").write_text(text)
    with pytest.raises(Failed, match=r"contexts\.json"):
        Contexts.load(tmp_path)


def test_add_use_and_list(erxhub: Erxhub, tmp_path: Path) -> None:
    trust = TrustDomain.init(tmp_path / "pki", "erxhub.test", NOW_MS)
    for code in ("H33010099901", "H33010099902"):
        trust.issue_tls("hospital", code, NOW_MS, 30)
    key = trust.issue_signing("D330100990001", "H33010099901", "ES256", NOW_MS, 30).path
    pin = f"{'0f' * 16}={'a1' * 32}"
    for name, code in (("one", "H33010099901"), ("two", "H33010099902")):
        added = erxhub(
            *("context", "add", name, "--target", "localhost:1", "--dir", str(tmp_path / "pki/tls/hospital" / code)),
            *("--signing-key", f"D330100990001={key}", "--receipt-key", pin, "-o", "json"),
        )
        assert added.exit_code == 0, added.stderr
    assert json.loads(added.stdout)["caller"] == "hospital/H33010099902"
    assert erxhub("context", "use", "two").exit_code == 0
    assert erxhub("context", "use", "three").exit_code == 3
    rows = json.loads(erxhub("context", "list", "-o", "json").stdout)
    assert [(row["name"], row["current"]) for row in rows] == [("one", False), ("two", True)]
    assert rows[0]["signs_for"] == ["D330100990001"]
    stored = Contexts.load(tmp_path / "home").by_name["one"]
    assert stored.signing_key("D330100990001").suite.name == "ES256"
    assert stored.receipt_key_bytes() == {"0f" * 16: b"\xa1" * 32}
    with pytest.raises(Failed, match="no signing key of D999"):
        stored.signing_key("D999")


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--dir", "absent"),
        ("--dir", "{pki}", "--target", "nowhere"),
        ("--dir", "{pki}", "--receipt-key", "ab=cd"),
        ("--dir", "{pki}", "--signing-key", "D1=absent.pem"),
    ],
)
def test_a_context_that_could_not_work_is_not_added(erxhub: Erxhub, tmp_path: Path, words: tuple[str, ...]) -> None:
    issued = TrustDomain.init(tmp_path / "pki", "erxhub.test", NOW_MS).issue_tls("agency", "330100", NOW_MS, 30)
    added = erxhub("context", "add", "x", "--target", "h:1", *(word.format(pki=issued.path) for word in words))
    assert added.exit_code == 2
    assert added.stderr
    assert erxhub("context", "list", "-o", "json").stdout.strip() == "[]"


def test_without_a_context_a_command_says_how_to_get_one(erxhub: Erxhub) -> None:
    run = erxhub("registry", "list", "institutions")
    assert run.exit_code == 2
    assert "erxhub context add" in run.stderr
    assert run.stdout == ""
