"""The collector of checks: what a case looked at, and whether it held.

Owns: the shape of a check and the ways to end a case early. Must never: weigh them; the judge does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from erxhub.conform.model import Check, Point, Text

SHOWN_CHARACTERS_MAX: Final = 2_000


class CaseEnded(Exception):
    """A case cannot go on: a check that everything after it needs does not hold. The check is collected already."""


class Unsupported(Exception):
    """What is under test does not have what the case needs. `text` says what."""

    def __init__(self, text: Text) -> None:
        super().__init__(text.en)
        self.text = text


class Skipped(Exception):
    """The case cannot be run here. `text` says why."""

    def __init__(self, text: Text) -> None:
        super().__init__(text.en)
        self.text = text


class NeedsReview(Exception):
    """Somebody has to look. `text` says at what."""

    def __init__(self, text: Text) -> None:
        super().__init__(text.en)
        self.text = text


def shown(value: object) -> str:
    """A value as a report shows it, cut where it is very long."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= SHOWN_CHARACTERS_MAX else f"{text[:SHOWN_CHARACTERS_MAX]}… ({len(text)} characters)"


class Checks:
    """What a case found, in order, and what is left for somebody to look at."""

    def __init__(self) -> None:
        self.found: list[Check] = []
        self.to_review: list[Text] = []
        self.notes: list[Text] = []

    @property
    def failed(self) -> Sequence[Check]:
        """Those that do not hold."""
        return [check for check in self.found if not check.holds]

    def add(self, check: Check) -> bool:
        """Keeps a check; returns whether it holds."""
        self.found.append(check)
        return check.holds

    def that(
        self,
        holds: bool,
        *,
        en: str,
        zh: str,
        point: Point = "hub",
        expected: object = "",
        actual: object = "",
        where: str = "",
        code: str = "",
    ) -> bool:
        """Checks that something holds. The sentence says what ought to be; returns `holds`."""
        return self.add(Check(point, bool(holds), Text(en, zh), shown(expected), shown(actual), where, code))

    def equal(self, actual: Any, expected: Any, *, en: str, zh: str, point: Point = "hub", where: str = "") -> bool:
        """Checks that a value is the expected one."""
        holds = actual == expected
        return self.that(holds, en=en, zh=zh, point=point, expected=expected, actual=actual, where=where)

    def must(self, holds: bool, *, en: str, zh: str, point: Point = "hub", **more: Any) -> None:
        """A check without which the case cannot go on. Raises CaseEnded when it does not hold."""
        if not self.that(holds, en=en, zh=zh, point=point, **more):
            raise CaseEnded(en)

    def note(self, en: str, zh: str) -> None:
        """Something that the report shall say; no check."""
        self.notes.append(Text(en, zh))

    def review(self, en: str, zh: str) -> None:
        """Something that somebody has to look at: the case ends as REVIEW unless it fails."""
        self.to_review.append(Text(en, zh))
