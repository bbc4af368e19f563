from typing import Any

import pytest
from google.protobuf import json_format, struct_pb2

from erxhub.conform.values import Named, UnknownName, matches, plain, references, resolved

NAMES: dict[str, Any] = {
    "rx": Named("330100", {"rx_no": "330100", "valid_until_ms": 17}),
    "listed": {"prescriptions": [{"rx_no": "1"}, {"rx_no": "2"}]},
    "now_ms": 5,
}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("$rx", "330100"),
        ("${rx.valid_until_ms}", 17),
        ("${listed.prescriptions.1.rx_no}", "2"),
        ("$now_ms", 5),
        ("at $now_ms: ${rx.rx_no}", "at 5: 330100"),
        ("$$rx costs $$5", "$rx costs $5"),
        ({"$rx": ["$now_ms", {"a": "$rx"}]}, {"330100": [5, {"a": "330100"}]}),
        (7, 7),
    ],
)
def test_a_reference_is_what_was_saved(written: Any, meant: Any) -> None:
    assert resolved(written, NAMES) == meant


@pytest.mark.parametrize("written", ["$nobody", "${rx.nothing}", "${listed.prescriptions.2}", "${now_ms.more}"])
def test_a_reference_to_nothing_is_said_so(written: str) -> None:
    with pytest.raises(UnknownName):
        resolved(written, NAMES)


def test_references_are_found_in_keys_and_values() -> None:
    assert set(references({"$a": ["${b.c}", "x $d", "$$e"]})) == {"a", "b", "d"}


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ("ok", "ok"),
        ("ok", ["unknown", "ok"]),
        (3, ">=3"),
        (3, "<4"),
        ([1, 2], [1, 2]),
        ([1, 2], {"count": 2}),
        ([1, 2], {"count": ">1"}),
        ([{"a": 1, "b": 2}], {"contains": {"a": 1}}),
        ([{"a": 1}, {"a": 2}], {"unique": "a"}),
        ([{"a": 1}], {"each": {"a": ">0"}}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}),
        ("E11", {"matches": "^E[0-9]+$"}),
        (None, {"absent": True}),
        ("", {"absent": True}),
        (0, {"present": True}),
        ("x", {"not": "y"}),
        ("x", {"any_of": ["x", "y"]}),
        ([], []),
    ],
)
def test_what_matches(actual: Any, expected: Any) -> None:
    assert matches(actual, expected)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ("ok", "rejected"),
        ("ok", ["unknown", "rejected"]),
        (2, ">=3"),
        ("3", ">=3"),
        (True, 1),
        (True, ">=1"),
        (1, True),
        ([1, 2], [2, 1]),
        ([1], [1, 2]),
        ([1, 2], {"count": 3}),
        ("ab", {"count": 2}),
        ([{"a": 1}], {"contains": {"a": 2}}),
        ([{"a": 1}, {"a": 1}], {"unique": "a"}),
        ([{"a": 1}, {"a": 0}], {"each": {"a": ">0"}}),
        ({"a": 1}, {"b": 1}),
        (None, {"a": 1}),
        ("x", {"matches": "^y"}),
        ("x", {"absent": True}),
        (None, {"present": True}),
        ("x", {"not": "x"}),
    ],
)
def test_what_does_not_match(actual: Any, expected: Any) -> None:
    assert not matches(actual, expected)


def test_a_json_number_without_a_fraction_is_an_int() -> None:
    value = json_format.ParseDict({"a": 3, "b": 0.5, "c": None, "d": [True, "x"]}, struct_pb2.Struct())
    assert repr(plain(value)["a"]) == "3"
    assert plain(value) == {"a": 3, "b": 0.5, "c": None, "d": [True, "x"]}
