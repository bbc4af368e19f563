"""Fault rules as a person writes them: `Dispensing/Settle nth=1 do=lose_ack`, or the same as a JSON object.

Owns the two written forms of `FaultRule`, each read back from what it writes. Must never: judge whether a rule can
match anything; the sandbox does.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any, Final

from erxhub.v1 import sandbox_pb2

_ACTION: Final = "FAULT_ACTION_"
ACTIONS: Final = tuple(name.removeprefix(_ACTION).lower() for name, number in sandbox_pb2.FaultAction.items() if number)
"""What `do` may be, e.g. "lose_ack"."""

_UNITS_MS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_DURATION: Final = re.compile(r"([0-9]+)(ms|s|m|h|d|w)")


def duration_ms(text: str) -> int:
    """ "2h", "1d12h", "-5m", "300ms" as milliseconds (w, d, h, m, s, ms). Raises ValueError."""
    sign, body = (-1, text[1:]) if text.startswith("-") else (1, text)
    parts = _DURATION.findall(body)
    if not parts or "".join(number + unit for number, unit in parts) != body:
        raise ValueError(f"{text!r} is not a duration like 2h, 90m, 1d12h or 300ms")
    return sign * sum(int(number) * _UNITS_MS[unit] for number, unit in parts)


def duration_text(milliseconds: int) -> str:
    """The shortest text that `duration_ms` reads as this."""
    left, text = abs(milliseconds), ""
    for unit, size_ms in sorted(_UNITS_MS.items(), key=lambda item: -item[1]):
        count, left = divmod(left, size_ms)
        text += f"{count}{unit}" if count else ""
    return ("-" if milliseconds < 0 else "") + (text or "0s")


def _whole(value: object) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"-?[0-9]+", str(value)):
        raise ValueError("is a whole number")
    return int(str(value))


def _chance(value: object) -> float:
    try:
        chance = float(str(value))
    except ValueError:
        chance = -1.0
    if not 0 <= chance <= 1:
        raise ValueError("is a chance from 0 to 1")
    return chance


def _truth(value: object) -> bool:
    if value not in (True, False, "yes", "no", "true", "false"):
        raise ValueError("is yes or no")
    return value in (True, "yes", "true")


def _duration(value: object) -> int:
    try:
        return duration_ms(str(value))
    except ValueError:
        raise ValueError("is a duration like 2s or 300ms") from None


_RULE: Final[Mapping[str, tuple[str, Callable[[Any], Any]]]] = {
    "id": ("rule_id", str),
    "actor": ("actor", str),
    "rx": ("rx_no", str),
    "nth": ("nth", _whole),
    "prob": ("probability", _chance),
    "max_consecutive": ("max_consecutive", _whole),
    "max_total": ("max_total", _whole),
}
_ARGUMENTS: Final[Mapping[str, tuple[str, Callable[[Any], Any]]]] = {
    "delay": ("delay_ms", _duration),
    "code": ("code", str),
    "retry_after": ("retry_after_ms", _duration),
    "window": ("window", _whole),
    "lag": ("lag", _whole),
    "after_messages": ("after_messages", _whole),
    "skew": ("skew_ms", _duration),
    "after_commit": ("after_commit", _truth),
    "hang": ("hang", _truth),
    "page_size": ("page_size", _whole),
    "any_order": ("any_order", _truth),
}
_COUNTS: Final = ("matched", "fired")
"""Output of the sandbox: read past, so that what a list prints can be set again."""
KEYS: Final = ("on", "do", *_RULE, *_ARGUMENTS)


def fault_rule(words: str) -> sandbox_pb2.FaultRule:
    """A rule from words: what it is on, then KEY=VALUE each.

    The first word is a method ("Dispensing/Settle", "Dispensing/*", "*") or an event ("settlement.committed"); `do` is
    one of ACTIONS; durations have a unit. Raises ValueError naming the word.
    """
    try:
        parts = shlex.split(words)
    except ValueError as error:
        raise ValueError(f"{words!r}: {error}") from None
    fields: dict[str, Any] = {}
    for place, part in enumerate(parts):
        key, separator, value = part.partition("=")
        if not separator:
            if place:
                raise ValueError(f"{part!r} is not KEY=VALUE")
            key, value = "on", part
        if key in fields:
            raise ValueError(f"{key!r} is there twice")
        fields[key] = value
    return fault_rule_of(fields)


def fault_rule_of(fields: Mapping[str, Any]) -> sandbox_pb2.FaultRule:
    """A rule from a JSON object: `on`, `do`, the keys of the words, the arguments of the action in `args` or beside.

    Raises ValueError naming the key.
    """
    arguments = fields.get("args", {})
    if not isinstance(arguments, Mapping):
        raise ValueError("'args' is an object")
    given = {key: value for key, value in {**fields, **arguments}.items() if key not in (*_COUNTS, "args")}
    unknown = sorted(given.keys() - set(KEYS))
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no key of a fault rule; these are: {', '.join(KEYS)}")
    if not given.get("on"):
        raise ValueError("a fault rule begins with what it is on: a method like Dispensing/Settle, or an event")
    if given.get("do") not in ACTIONS:
        raise ValueError(f"'do' is {given.get('do', 'missing')!r}; it is one of: {', '.join(ACTIONS)}")
    rule = sandbox_pb2.FaultRule(action=sandbox_pb2.FaultAction.Value(_ACTION + str(given["do"]).upper()))
    on = str(given["on"])
    setattr(rule, "method" if "/" in on or on == "*" else "event", on)
    for message, known in ((rule, _RULE), (rule.arguments, _ARGUMENTS)):
        for key, (name, read) in known.items():
            if key in given:
                try:
                    setattr(message, name, read(given[key]))
                except ValueError as error:
                    raise ValueError(f"{key!r} {error}, not {given[key]!r}") from None
    return rule


def fault_record(rule: sandbox_pb2.FaultRule) -> dict[str, Any]:
    """A rule as the JSON object that `fault_rule_of` reads, and what it matched so far; empty fields are left out."""
    record: dict[str, Any] = {"id": rule.rule_id} if rule.rule_id else {}
    record["on"] = rule.method or rule.event
    record["do"] = action_word(rule.action)
    record |= {key: found for key, (name, _) in _RULE.items() if key != "id" and (found := getattr(rule, name))}
    arguments = {
        key: duration_text(found) if read is _duration else found
        for key, (name, read) in _ARGUMENTS.items()
        if (found := getattr(rule.arguments, name))
    }
    if arguments:
        record["args"] = arguments
    return record | {"matched": rule.matched, "fired": rule.fired}


def fault_words(rule: sandbox_pb2.FaultRule) -> str:
    """A rule in the words that `fault_rule` reads."""
    record = fault_record(rule)
    flat = {**record, **record.get("args", {})}
    pairs = (
        f"{key}={shlex.quote('yes' if value is True else str(value))}"
        for key, value in flat.items()
        if key not in (*_COUNTS, "on", "args")
    )
    return " ".join((record["on"], *pairs))


def action_word(action: sandbox_pb2.FaultAction.ValueType) -> str:
    """ "lose_ack" for FAULT_ACTION_LOSE_ACK; the number's text for one that is not known here."""
    known = sandbox_pb2.FaultAction.DESCRIPTOR.values_by_number.get(action)
    return known.name.removeprefix(_ACTION).lower() if known else str(action)
