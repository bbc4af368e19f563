"""A pack on one day: the parameters that a decision asks for, without the date in every question.

Owns the pairing of pack and day only, for an area and an instant too. Values, kinds and errors are the pack's (see
erxhub.policy.pack).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final, TypeVar

from erxhub.core.claim_arithmetic import Benefit
from erxhub.policy.pack import Pack, PackLibrary, china_date

_NATION: Final = "000000"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rules:
    """The parameters of one area in force on one day in China.

    A value never changes within a day, so each is looked up once.
    """

    pack: Pack
    on: date
    _known: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the resolved pack, 32 bytes; every entry carries it."""
        return self.pack.digest

    def _once(self, name: str, look_up: Callable[[str, date], T]) -> T:
        try:
            known: T = self._known[name]
        except KeyError:
            known = self._known[name] = look_up(name, self.on)
        return known

    def integer(self, name: str) -> int:
        """A count."""
        return self._once(name, self.pack.integer)

    def duration_ms(self, name: str) -> int:
        """A length of time in milliseconds."""
        return self._once(name, self.pack.duration_ms)

    def flag(self, name: str) -> bool:
        """A yes or no."""
        return self._once(name, self.pack.flag)

    def text(self, name: str) -> str:
        """A word or code."""
        return self._once(name, self.pack.text)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of words or codes."""
        return self._once(name, self.pack.texts)

    def has_form(self, name: str, text: str) -> bool:
        """Whether the text as a whole has one of the parameter's forms."""
        return self.pack.has_form(name, self.on, text)

    def benefit(self, *, cum_inscope_fen: int, cum_fund_fen: int) -> Benefit:
        """The person's benefit today, ready for claim_arithmetic.compute."""
        return self.pack.benefit(self.on, cum_inscope_fen=cum_inscope_fen, cum_fund_fen=cum_fund_fen)


def rules_at(packs: PackLibrary, area_code: str, now_ms: int) -> Rules:
    """The parameters in force for an area on the day of `now_ms`; the nation's where no area is named."""
    return Rules(packs.pack_for(area_code or _NATION), china_date(now_ms))
