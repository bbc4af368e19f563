"""A pack on one day: the parameters that a decision asks for, without the date in every question.

Owns the pairing of pack and day only. Values, kinds and errors are the pack's (see erxhub.policy.pack).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from erxhub.core.claim_arithmetic import Benefit
from erxhub.policy.pack import Pack


@dataclass(frozen=True, slots=True)
class Rules:
    """The parameters of one area in force on one day in China."""

    pack: Pack
    on: date

    @property
    def digest(self) -> bytes:
        """SHA-256 of the resolved pack, 32 bytes; every entry carries it."""
        return self.pack.digest

    def integer(self, name: str) -> int:
        """A count."""
        return self.pack.integer(name, self.on)

    def duration_ms(self, name: str) -> int:
        """A length of time in milliseconds."""
        return self.pack.duration_ms(name, self.on)

    def flag(self, name: str) -> bool:
        """A yes or no."""
        return self.pack.flag(name, self.on)

    def text(self, name: str) -> str:
        """A word or code."""
        return self.pack.text(name, self.on)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of words or codes."""
        return self.pack.texts(name, self.on)

    def has_form(self, name: str, text: str) -> bool:
        """Whether the text as a whole has one of the parameter's forms."""
        return self.pack.has_form(name, self.on, text)

    def benefit(self, *, cum_inscope_fen: int, cum_fund_fen: int) -> Benefit:
        """The person's benefit today, ready for claim_arithmetic.compute."""
        return self.pack.benefit(self.on, cum_inscope_fen=cum_inscope_fen, cum_fund_fen=cum_fund_fen)
