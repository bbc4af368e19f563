"""`erxhub proof check`: every kind of line, everything that is no such line, and never an end before the last one."""

import base64
import copy
import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erxhub.proof import check
from erxhub.proof.check import check_line
from tests.proof.naive import VECTORS, H, Key, b64, vectors

LINES = [json.loads(line) for line in VECTORS.read_text(encoding="utf-8").splitlines()]
GOOD = [line["line"] for line in LINES if line["ok"]]


def verdict(line: Any) -> check.Verdict:
    return check_line(json.dumps(line).encode())


def run(data: bytes) -> list[dict[str, Any]]:
    words = [sys.executable, "-m", "erxhub.cli", "proof", "check"]
    done = subprocess.run(words, input=data, capture_output=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_vectors_are_those_of_the_naive_code() -> None:
    assert VECTORS.read_text(encoding="utf-8") == vectors()


@pytest.mark.parametrize("vector", LINES, ids=lambda vector: vector["line"]["kind"])
def test_vectors(vector: dict[str, Any]) -> None:
    assert verdict(vector["line"]).ok is vector["ok"]


def test_shared_vectors_as_lines(shared: Any) -> None:
    """The shared examples of five sections, as the command is given them."""
    whole = json.loads((shared / "design" / "formats_vectors.json").read_text(encoding="utf-8"))

    def b(value: str | None) -> str | None:
        return None if value is None else b64(bytes.fromhex(value))

    lines: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for name, numbers, hashes in (
        ("inclusion", ("index", "size"), ("root", "leaf_hash")),
        ("consistency", ("size1", "size2"), ("root1", "root2")),
    ):
        for one in whole[name]:
            line = {"kind": name, **{n: one[n] for n in numbers}, **{h: b(one[h]) for h in hashes}}
            lines.append((one, {**line, "proof": [b(element) for element in one["proof"]]}))
    lines += [
        (one, {"kind": "note", "note": one["note"], "vkeys": one["vkeys"]})
        for one in whole["notes"]
        if "note" in one and "vkeys" in one
    ]
    lines += [
        (one, {"kind": "cosignature", "note": f"{one['text']}\n{one['line']}", "vkeys": [one["vkey"]]})
        for one in whole["cosignature"]
    ]
    lines += [
        (one, {"kind": "map", **{name: b(one[name]) for name in ("root", "key", "value", "proof")}})
        for one in whole["map"]["lookups"]
    ]
    answers = run("".join(json.dumps(line) + "\n" for _, line in lines).encode())
    for (one, line), answer in zip(lines, answers, strict=True):
        assert answer["ok"] is one["accept"], line
        assert answer["reason"].partition(":")[0] == one.get("code", "OK"), line


GARBAGE = [
    (b"", "NOT_JSON"),
    (b" ", "NOT_JSON"),
    (b"x", "NOT_JSON"),
    (b"\xff\xfe", "NOT_UTF8"),
    (b"\x00", "NOT_JSON"),
    ("\ufeff{}".encode(), "NOT_JSON"),
    (b"[]", "NOT_AN_OBJECT"),
    (b"null", "NOT_AN_OBJECT"),
    (b'"kind"', "NOT_AN_OBJECT"),
    (b"{}", "UNKNOWN_KIND"),
    (b'{"kind":null}', "UNKNOWN_KIND"),
    (b'{"kind":["map"]}', "UNKNOWN_KIND"),
    (b'{"kind":{"kind":"map"}}', "UNKNOWN_KIND"),
    (b'{"kind":"Map"}', "UNKNOWN_KIND"),
    (b'{"kind":"map","kind":"map"}', "DUPLICATE_FIELD"),
    (b'{"kind":"map"} {"kind":"map"}', "NOT_JSON"),
    (b'{"kind":"map"},', "NOT_JSON"),
    (b'{"kind":NaN}', "NUMBER"),
    (b'{"kind":-Infinity}', "NUMBER"),
    (b'{"kind":1e999}', "NUMBER"),
    (b'{"kind":' + b"9" * 10_000 + b"}", "NUMBER"),
    (b"[" * 200_000, "NOT_JSON"),
    (b'{"kind":' * 100_000, "NOT_JSON"),
    (b'{"kind":"' + b"x" * 10_000_000 + b'"}', "UNKNOWN_KIND"),
    (b"x" * 10_000_000, "NOT_JSON"),
]


@pytest.mark.parametrize(("line", "reason"), GARBAGE, ids=lambda value: str(value[:20]))
def test_garbage_has_a_reason(line: bytes, reason: str) -> None:
    found = check_line(line)
    assert (found.ok, found.reason.partition(":")[0]) == (False, reason)


def test_the_line_after_garbage_is_answered() -> None:
    good = json.dumps(GOOD[0]).encode()
    answers = run(b"".join(line + b"\n" + good + b"\n" for line, _ in GARBAGE))
    assert [answer["ok"] for answer in answers] == [False, True] * len(GARBAGE)
    assert all(answer.keys() == {"ok", "reason"} for answer in answers)
    assert run(good + b"\r\n" + good) == [{"ok": True, "reason": "OK"}] * 2
    assert run(b"") == []


def test_a_line_beyond_the_limit_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from erxhub.cli.proof import check as verb

    monkeypatch.setattr(check, "LINE_BYTES_MAX", 2_000)
    good = json.dumps(GOOD[0]).encode()
    for length in (2_001, 2_002, 2_003, 4_004, 9_999):
        result = CliRunner().invoke(verb, input=b"x" * length + b"\n" + good + b"\n")
        answers = [json.loads(line) for line in result.stdout.splitlines()]
        assert [answer["reason"].partition(":")[0] for answer in answers] == ["LINE_LENGTH", "OK"]


def test_answers_come_line_by_line() -> None:
    words = [sys.executable, "-m", "erxhub.cli", "proof", "check"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in GOOD[:3]:
            process.stdin.write(json.dumps(line).encode() + b"\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["ok"] is True
        process.stdin.close()
        assert process.wait(10) == 0


@pytest.mark.parametrize("line", {line["kind"]: line for line in GOOD}.values(), ids=lambda line: line["kind"])
def test_every_field_is_needed_and_no_other_is_taken(line: dict[str, Any]) -> None:
    assert verdict(line).ok
    assert verdict({**line, "more": 1}).reason.startswith("UNKNOWN_FIELD")
    for name, value in line.items():
        less = {other: value for other, value in line.items() if other != name}
        assert verdict(less).reason.startswith("UNKNOWN_KIND" if name == "kind" else "MISSING_FIELD")
        for wrong in (True, False, -1, 1.0, 0.5, 2**63, 2**64, "1", "", {}, [], [1], [None], [[]], {"a": 1}, "\ud800"):
            if wrong != value:
                assert verdict({**line, name: wrong}).ok is False, (name, wrong)
        if name != "value":
            assert verdict({**line, name: None}).ok is False
        if isinstance(value, str) and name not in ("kind", "note", "origin"):
            for altered in (value + "\n", value + " ", value.rstrip("="), value.replace("+", "-"), value + "===="):
                assert altered == value or verdict({**line, name: altered}).ok is False, (name, altered)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary().map(b64),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def loose(line: dict[str, Any]) -> set[str]:
    """Fields of which another value may be as true.

    An inclusion does not say of which size its tree is, one entry shows the absence of many keys, and more keys do no
    harm.
    """
    return {"vkeys", "size", "size1", "size2"} | ({"key"} if line["kind"] == "map" and line["value"] is None else set())


@given(st.binary(max_size=200))
@settings(derandomize=True, database=None, deadline=None)
def test_no_bytes_are_ever_good(line: bytes) -> None:
    assert check_line(line).ok is False


@given(st.sampled_from(GOOD), st.data())
@settings(derandomize=True, database=None, deadline=None)
def test_no_field_may_be_anything_else(line: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(line)))
    value = data.draw(_json)
    if type(value) is not type(line[name]) or value != line[name]:
        assert verdict({**line, name: value}).ok is False or name in loose(line)


@given(st.sampled_from(GOOD), st.data())
@settings(derandomize=True, database=None, deadline=None)
def test_a_changed_character_is_seen(line: dict[str, Any], data: st.DataObject) -> None:
    raw = bytearray(json.dumps(line, ensure_ascii=False).encode())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != raw[place]))
    found = check_line(bytes(raw))
    assert isinstance(found.ok, bool)
    if found.ok:  # then it is another spelling of the same, or another thing that is as true
        again = json.loads(bytes(raw))
        changed = {name for name in line if again[name] != line[name]}
        assert changed <= loose(line) | {"note"}
        if "note" in changed:  # the line of a key that was not given may say anything
            assert again["note"].rpartition("\n\n")[0] == line["note"].rpartition("\n\n")[0]


@given(st.sampled_from([line for line in GOOD if line["kind"] in ("inclusion", "consistency", "map")]), st.data())
@settings(derandomize=True, database=None, deadline=None)
def test_a_flipped_bit_of_a_hash_is_seen(line: dict[str, Any], data: st.DataObject) -> None:
    altered = copy.deepcopy(line)
    places = [(name, None) for name in line if name in ("root", "root1", "root2", "leaf_hash", "key", "value")]
    places += (
        [("proof", n) for n in range(len(line["proof"]))] if isinstance(line["proof"], list) else [("proof", None)]
    )
    name, number = data.draw(st.sampled_from(places))
    text = line[name] if number is None else line[name][number]
    if not text:
        return
    raw = bytearray(base64.b64decode(text))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    if number is None:
        altered[name] = b64(bytes(raw))
    else:
        altered[name][number] = b64(bytes(raw))
    found = verdict(altered)
    assert found.ok is False or name in loose(line)


def test_an_origin_that_is_no_name_takes_the_keys_that_are_given() -> None:
    key, text = Key("sum.test", 1), f"a database tree\n0\n{b64(H(b''))}\n"
    line = {"kind": "checkpoint", "note": f"{text}\n{key.line(text)}", "vkeys": [key.vkey]}
    assert verdict({**line, "origin": "a database tree"}).ok
    assert not verdict({**line, "origin": "a database"}).ok
    named = text.replace("a database tree", "tree.test")
    line = {**line, "note": f"{named}\n{key.line(named)}", "origin": "tree.test"}
    assert verdict(line).reason.startswith("LOG_UNSIGNED")


def test_true_is_not_one() -> None:
    root, first = b64(H(b"\x01" + H(b"\x00a") + H(b"\x00b"))), b64(H(b"\x00a"))
    line = {"kind": "inclusion", "index": 1, "size": 2, "leaf_hash": b64(H(b"\x00b")), "root": root, "proof": [first]}
    assert verdict(line).ok
    for index in (True, 1.0, "1", [1]):
        assert not verdict({**line, "index": index}).ok


def test_the_key_of_a_log_in_one_line() -> None:
    from click.testing import CliRunner

    from erxhub.cli.proof import vkey

    key = Key("log.test/ledger", 1)
    public = base64.b64decode(key.vkey.split("+", 2)[2])[1:].hex()
    assert CliRunner().invoke(vkey, ["log.test/ledger", public]).stdout == key.vkey + "\n"
    for words in (["log.test/ledger", "00"], ["log.test/ledger", "x"], ["a b", public], ["", public]):
        assert CliRunner().invoke(vkey, words).exit_code == 2
