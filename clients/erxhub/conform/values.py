"""References to what was saved (`$name`), and matching of what came against what was expected.

Owns: the two small languages of docs/harness.md, "Values" and "Matching". Must never: know what a value means.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf import struct_pb2

_NAME: Final = r"[A-Za-z][A-Za-z0-9_]*"
_REFERENCE: Final = re.compile(rf"\$\$|\$\{{({_NAME}(?:\.[A-Za-z0-9_]+)*)\}}|\$({_NAME})")
_COMPARISON: Final = re.compile(r"(>=|<=|>|<)\s*(-?\d+(?:\.\d+)?)$")
_OPERATORS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
MATCHERS: Final = frozenset({"any_of", "not", "count", "contains", "each", "unique", "matches", "absent", "present"})


class UnknownName(Exception):
    """A reference to a name, or a field of it, that is not there."""


@dataclass(frozen=True, slots=True)
class Named:
    """A saved thing that is used for its main value, with fields beside: a prescription for its number."""

    value: Any
    fields: Mapping[str, Any] = field(default_factory=dict)


def plain(value: struct_pb2.Value | struct_pb2.Struct | struct_pb2.ListValue) -> Any:
    """A JSON value as Python has it; a number without a fraction is an int."""
    if isinstance(value, struct_pb2.Struct):
        return {name: plain(inner) for name, inner in value.fields.items()}
    if isinstance(value, struct_pb2.ListValue):
        return [plain(inner) for inner in value.values]
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        return int(value.number_value) if value.number_value.is_integer() else value.number_value
    if kind == "struct_value":
        return plain(value.struct_value)
    if kind == "list_value":
        return plain(value.list_value)
    return None if kind in (None, "null_value") else getattr(value, kind)


def references(value: Any) -> Iterator[str]:
    """The names (without fields) that a value refers to, wherever in it they stand."""
    if isinstance(value, str):
        for found in _REFERENCE.finditer(value):
            if found[0] != "$$":
                yield (found[1] or found[2]).split(".")[0]
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from references(name)
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def _looked_up(path: str, names: Mapping[str, Any]) -> Any:
    first, *rest = path.split(".")
    if first not in names:
        raise UnknownName(f"${first} is not known here")
    value = names[first]
    for step in rest:
        if isinstance(value, Named):
            value = value.fields
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            raise UnknownName(f"${{{path}}}: there is no {step}")
    return value.value if isinstance(value, Named) else value


def resolved(value: Any, names: Mapping[str, Any]) -> Any:
    """The value with every reference replaced. Raises UnknownName."""
    if isinstance(value, str):
        whole = _REFERENCE.fullmatch(value)
        if whole and whole[0] != "$$":
            return _looked_up(whole[1] or whole[2], names)

        def put(found: re.Match[str]) -> str:
            return "$" if found[0] == "$$" else str(_looked_up(found[1] or found[2], names))

        return _REFERENCE.sub(put, value)
    if isinstance(value, Mapping):
        return {str(resolved(name, names)): resolved(inner, names) for name, inner in value.items()}
    if isinstance(value, list):
        return [resolved(inner, names) for inner in value]
    return value


def is_comparison(expected: Any) -> bool:
    """Whether a bound is expected, and not one value."""
    return isinstance(expected, str) and _COMPARISON.match(expected) is not None


def _equal(actual: Any, expected: Any) -> bool:
    # True == 1 in Python, and not in any product's answer.
    return isinstance(actual, bool) == isinstance(expected, bool) and bool(actual == expected)


def _compares(actual: Any, comparison: re.Match[str]) -> bool:
    if isinstance(actual, bool) or not isinstance(actual, int | float):
        return False
    return _OPERATORS[comparison[1]](actual, float(comparison[2]))


def _matches_object(actual: Any, expected: Mapping[str, Any]) -> bool:
    named = MATCHERS & expected.keys()
    if named and named == expected.keys():
        return all(_MATCHER[name](actual, expected[name]) for name in named)
    return isinstance(actual, Mapping) and all(matches(actual.get(name), inner) for name, inner in expected.items())


def matches(actual: Any, expected: Any) -> bool:
    """Whether a value is as expected; see "Matching"."""
    if isinstance(expected, Mapping):
        return _matches_object(actual, expected)
    if isinstance(expected, list):
        if isinstance(actual, list):
            return len(actual) == len(expected) and all(map(matches, actual, expected))
        return any(matches(actual, one) for one in expected)
    if isinstance(expected, str) and (comparison := _COMPARISON.match(expected)):
        return _compares(actual, comparison)
    return _equal(actual, expected)


def _is_empty(actual: Any) -> bool:
    return actual is None or (isinstance(actual, str | list | Mapping) and not actual)


def _is_unique(actual: Any, name: str) -> bool:
    if not isinstance(actual, list):
        return False
    values = [repr(one.get(name) if isinstance(one, Mapping) else one) for one in actual]
    return len(values) == len(set(values))


_MATCHER: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "any_of": lambda actual, expected: any(matches(actual, one) for one in expected),
    "not": lambda actual, expected: not matches(actual, expected),
    "count": lambda actual, expected: isinstance(actual, list) and matches(len(actual), expected),
    "contains": lambda actual, expected: isinstance(actual, list) and any(matches(one, expected) for one in actual),
    "each": lambda actual, expected: isinstance(actual, list) and all(matches(one, expected) for one in actual),
    "unique": _is_unique,
    "matches": lambda actual, expected: isinstance(actual, str) and re.search(expected, actual) is not None,
    "absent": lambda actual, expected: _is_empty(actual) == expected,
    "present": lambda actual, expected: _is_empty(actual) != expected,
}
