"""Characters that hide, in every text of a message: controls, and marks that turn the direction of writing.

Owns the one rule for texts that no pattern of their own keeps: nothing that a screen, a log or an auditor does not show
as what it is. Must never: change a text; what is signed stays as it came, so what hides is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor

from erxhub._vendor.buf.validate import validate_pb2

PROSE_CHARACTERS: Final = 200
"""A text that may be so long may have lines and tabs: reasons, opinions, notes. Shorter ones are names and numbers."""

HIDES: Final = "has a character that hides: a control, a bidirectional mark, a separator or a byte order mark"

_HIDING: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls but TAB and LF, those after DEL too: U+009B begins a terminal's command
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # Bidi_Control
    "\u2028\u2029\ufeff]"  # line and paragraph separators, byte order mark
)
_HIDING_OR_LINES: Final = re.compile(_HIDING.pattern[:-1] + "\t\n]")


_Gather = Callable[[Any, list[str]], None]


@dataclass(slots=True)
class _Kind:
    """The texts of one message type that have no pattern; `inner` are the fields whose messages have some."""

    singles: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    prose: frozenset[str] = frozenset()
    inner: list[tuple[str, bool, _Kind]] = field(default_factory=list)
    gather: _Gather | None = None

    @property
    def has_texts(self) -> bool:
        return bool(self.singles or self.lists or self.inner)


class Texts:
    """Looks through the texts of messages; what it knows of a type it finds out once."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {}

    def warm(self, kind: Any) -> None:
        """Find out about a type now, so that no caller waits for it."""
        self._kind(kind)

    def hiding(self, message: Any) -> list[str]:
        """The paths of the texts that hold a character which hides, e.g. "lines[0].usage_note"."""
        descriptor = message.DESCRIPTOR
        kind = self._kinds.get(descriptor.full_name) or self._kind(descriptor)
        if kind.gather is None:
            return []
        found: list[str] = []
        kind.gather(message, found)
        text = "".join(found)
        # Nearly every text is printable, and to see that is many times cheaper than to search it.
        if text.isprintable() or not _HIDING_OR_LINES.search(text):
            return []
        return list(_paths(kind, message, ""))

    def _kind(self, descriptor: Any) -> _Kind:
        known = self._kinds.get(descriptor.full_name)
        if known is not None:
            return known
        kind = self._kinds[descriptor.full_name] = _Kind()
        texts = [one for one in descriptor.fields if one.type == FieldDescriptor.TYPE_STRING and not _has_pattern(one)]
        kind.singles = tuple(one.name for one in texts if not one.is_repeated)
        kind.lists = tuple(one.name for one in texts if one.is_repeated)
        kind.prose = frozenset(one.name for one in texts if _rules(one).max_len >= PROSE_CHARACTERS)
        for one in descriptor.fields:
            if one.message_type is not None and not _is_passed_over(one, one.message_type):
                inner = self._kind(one.message_type)
                if inner.has_texts:
                    kind.inner.append((one.name, one.is_repeated, inner))
        if kind.has_texts:
            kind.gather = _gather_of(kind)
        return kind


def _gather_of(kind: _Kind) -> _Gather:
    """Puts all texts of a message into a list. Every call pays for it, so what a type has not is not asked for."""
    # Of one name alone attrgetter makes no tuple.
    names = kind.singles * 2 if len(kind.singles) == 1 else kind.singles
    singles = attrgetter(*names) if names else None
    lists = [attrgetter(name) for name in kind.lists]
    ones = [(name, attrgetter(name), inner) for name, is_repeated, inner in kind.inner if not is_repeated]
    many = [(attrgetter(name), inner) for name, is_repeated, inner in kind.inner if is_repeated]

    def gather(message: Any, found: list[str]) -> None:
        if singles is not None:
            found += singles(message)
        for texts in lists:
            found += texts(message)
        for name, one, inner in ones:
            if message.HasField(name):
                inner.gather(one(message), found)  # type: ignore[misc]
        for each_of, inner in many:
            deeper = inner.gather
            for each in each_of(message):
                deeper(each, found)  # type: ignore[misc]

    return gather


def _rules(one: FieldDescriptor) -> validate_pb2.StringRules:
    rules = one.GetOptions().Extensions[validate_pb2.field]
    return rules.repeated.items.string if one.is_repeated else rules.string


def _is_passed_over(one: FieldDescriptor, kind: Any) -> bool:
    """Whether the field's messages have no rules of their own, e.g. because they equal what was checked before."""
    ignored: int = one.GetOptions().Extensions[validate_pb2.field].ignore
    return bool(kind.GetOptions().map_entry) or ignored == validate_pb2.IGNORE_ALWAYS


def _has_pattern(one: FieldDescriptor) -> bool:
    """Whether the field's own rule says which characters it may have."""
    rules = _rules(one)
    return rules.HasField("pattern") or bool(getattr(rules, "in"))


def _paths(kind: _Kind, message: Any, prefix: str) -> Iterator[str]:
    def hides(name: str, text: str) -> bool:
        return bool((_HIDING if name in kind.prose else _HIDING_OR_LINES).search(text))

    for name in kind.singles:
        if hides(name, getattr(message, name)):
            yield prefix + name
    for name in kind.lists:
        for place, text in enumerate(getattr(message, name)):
            if hides(name, text):
                yield f"{prefix}{name}[{place}]"
    for name, is_repeated, inner in kind.inner:
        if is_repeated:
            for place, each in enumerate(getattr(message, name)):
                yield from _paths(inner, each, f"{prefix}{name}[{place}].")
        elif message.HasField(name):
            yield from _paths(inner, getattr(message, name), f"{prefix}{name}.")
