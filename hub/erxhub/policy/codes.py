"""Codes: the form of every identifier, the numbers with a check character, and the value sets.

Owns the reading of ``codes.toml`` and the questions about a single code. It never says whether a code
*exists*: that is for the registry and the catalogue, and "malformed" and "unknown" are two different
refusals. It never looks at the area part of an identity number, because areas are renumbered while numbers
stay (K-17).
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache, lru_cache
from importlib import resources
from types import MappingProxyType
from typing import Any, Final, Literal

DrugKind = Literal["western", "patent", "herbal"]
Standing = Literal["national", "local"]

_DRUG_FORMS: Final[tuple[tuple[str, DrugKind], ...]] = (
    ("western_drug", "western"),
    ("patent_drug", "patent"),
    ("herbal_piece", "herbal"),
)
_DRUG_CODES_KEPT: Final = 4_096


class CodesError(ValueError):
    """``codes.toml`` is wrong; says where."""


@dataclass(frozen=True, slots=True)
class Form:
    """One dated form of a code: it must match one of the patterns as a whole. Days in force are inclusive."""

    name: str
    rule_id: str
    name_zh: str
    patterns: tuple[re.Pattern[str], ...]
    valid_from: date
    valid_to: date | None
    verified: str
    source_doc: str

    def in_force(self, on: date) -> bool:
        """Whether this form applies on that day."""
        return self.valid_from <= on and (self.valid_to is None or on <= self.valid_to)


@dataclass(frozen=True, slots=True)
class ValueSet:
    """One list of codes with their Chinese names, and what follows from a code (``facts``)."""

    name: str
    name_zh: str
    verified: str
    source_doc: str
    names_zh: Mapping[str, str]
    facts: Mapping[str, Mapping[str, object]]
    local_forms: tuple[re.Pattern[str], ...]


@dataclass(frozen=True, slots=True)
class Codes:
    """The whole of ``codes.toml``. ``digest`` is the SHA-256 of its bytes (32 bytes)."""

    digest: bytes
    forms: Mapping[str, tuple[Form, ...]]
    value_sets: Mapping[str, ValueSet]
    identity_weights: tuple[int, ...]
    identity_check_characters: str
    credit_alphabet: str
    credit_weight_base: int
    organisation_weights: tuple[int, ...]


def parse_codes(data: bytes) -> Codes:
    """Read the file. Raises ``CodesError`` for a missing field, a bad pattern or a repeated code."""
    try:
        document = tomllib.loads(data.decode("utf-8"))
        forms: dict[str, tuple[Form, ...]] = {}
        for raw in document["form"]:
            forms[raw["name"]] = (*forms.get(raw["name"], ()), _form(raw))
        return Codes(
            digest=hashlib.sha256(data).digest(),
            forms=MappingProxyType(forms),
            value_sets=MappingProxyType({name: _value_set(name, raw) for name, raw in document["value_set"].items()}),
            identity_weights=tuple(document["identity_number"]["weights"]),
            identity_check_characters=document["identity_number"]["check_characters"],
            credit_alphabet=document["social_credit_code"]["alphabet"],
            credit_weight_base=document["social_credit_code"]["weight_base"],
            organisation_weights=tuple(document["social_credit_code"]["organisation_weights"]),
        )
    except (ValueError, KeyError, TypeError, re.error) as error:
        raise CodesError(f"codes.toml: {error!r}") from error


def _compiled(patterns: list[str]) -> tuple[re.Pattern[str], ...]:
    # ASCII: without it \d would also accept the digits of other scripts.
    return tuple(re.compile(pattern, re.ASCII) for pattern in patterns)


def _form(raw: Mapping[str, Any]) -> Form:
    return Form(
        name=raw["name"],
        rule_id=raw["rule_id"],
        name_zh=raw["name_zh"],
        patterns=_compiled(raw["patterns"]),
        valid_from=raw["valid_from"],
        valid_to=raw.get("valid_to"),
        verified=raw["verified"],
        source_doc=raw["source_doc"],
    )


def _value_set(name: str, raw: Mapping[str, Any]) -> ValueSet:
    names = {value["code"]: value["zh"] for value in raw["values"]}
    if len(names) != len(raw["values"]):
        raise ValueError(f"value_set.{name} repeats a code")
    facts = {
        value["code"]: MappingProxyType({key: fact for key, fact in value.items() if key not in ("code", "zh")})
        for value in raw["values"]
    }
    return ValueSet(
        name=name,
        name_zh=raw["name_zh"],
        verified=raw["verified"],
        source_doc=raw["source_doc"],
        names_zh=MappingProxyType(names),
        facts=MappingProxyType(facts),
        local_forms=_compiled(raw.get("local_forms", [])),
    )


@cache
def shipped_codes() -> Codes:
    """The code lists that come with the project."""
    return parse_codes(resources.files("erxhub.policy").joinpath("codes.toml").read_bytes())


# --- Forms ---


def has_form(name: str, text: str, on: date | None = None) -> bool:
    """Whether ``text`` has the form of that name (the ``[[form]]`` entries of the file).

    With a date, the form in force on that day counts; without one, the newest. Raises ``KeyError`` for a name
    that the file does not have.
    """
    if on is None:
        return any(pattern.fullmatch(text) for pattern in _newest_patterns(name))
    return any(
        pattern.fullmatch(text)
        for form in shipped_codes().forms[name]
        if form.in_force(on)
        for pattern in form.patterns
    )


@cache
def _newest_patterns(name: str) -> tuple[re.Pattern[str], ...]:
    return tuple(max(shipped_codes().forms[name], key=lambda form: form.valid_from).patterns)


@lru_cache(_DRUG_CODES_KEPT)
def drug_kind(code: str) -> DrugKind | None:
    """What kind of drug a code stands for by its form (K-01…K-03); None for a malformed code."""
    for form, kind in _DRUG_FORMS:
        if has_form(form, code):
            return kind
    return None


# --- Value sets ---


def standing(value_set: str, code: str) -> Standing | None:
    """Whether a code is on the national list, has the form of a region's own code, or is neither (None).

    A local code means something only together with its region. Raises ``KeyError`` for an unknown list.
    """
    values = shipped_codes().value_sets[value_set]
    if code in values.names_zh:
        return "national"
    if any(form.fullmatch(code) for form in values.local_forms):
        return "local"
    return None


def has_fact(value_set: str, code: str, fact: str) -> bool:
    """Whether the file says ``fact = true`` of a code, e.g. ``("rx_type_code", "3", "emergency")``.

    False for a code that is not listed. Raises ``KeyError`` for an unknown list.
    """
    return shipped_codes().value_sets[value_set].facts.get(code, {}).get(fact) is True


def item_drug_kind(item_type: str) -> str | None:
    """The drug kind that a rx_item_type_code names, None for a code that cannot circulate."""
    kind = shipped_codes().value_sets["rx_item_type_code"].facts.get(item_type, {}).get("drug_kind")
    return kind if isinstance(kind, str) else None


# --- Identity numbers (K-17) ---


def normal_id_number(text: str) -> str:
    """The form in which an identity number is kept: a final x in upper case, otherwise unchanged."""
    return f"{text[:-1]}X" if text.endswith("x") else text


def id_number_fault(certno: str, today_iso: str) -> str | None:
    """What is wrong with a citizen identity number, or None.

    LENGTH: not 18 characters. CHARACTERS: another sign than a digit, or than a digit or X (x) at the end.
    DATE: no such day. FUTURE: born after ``today_iso`` (yyyy-mm-dd, a day in China). CHECKSUM: the check
    character is wrong.
    The area part never refuses: numbers outlive the areas they were given in, and made-up persons use an area
    that was never given out.
    """
    number = normal_id_number(certno)
    if len(number) != 18:
        return "LENGTH"
    if re.fullmatch(r"[0-9]{17}[0-9X]", number) is None:
        return "CHARACTERS"
    try:
        born = _birth_part(number)
    except ValueError:
        return "DATE"
    if born > date.fromisoformat(today_iso):
        return "FUTURE"
    return None if _identity_check_character(number[:17]) == number[17] else "CHECKSUM"


def _identity_check_character(body: str) -> str:
    codes = shipped_codes()
    total = sum(int(digit) * weight for digit, weight in zip(body, codes.identity_weights, strict=True))
    return codes.identity_check_characters[total % len(codes.identity_check_characters)]


def _birth_part(number: str) -> date:
    return date(int(number[6:10]), int(number[10:12]), int(number[12:14]))


def birth_date(certno: str) -> date:
    """The birth date of an identity number; only for faultless numbers."""
    return _birth_part(certno)


def sex(certno: str) -> str:
    """The sex of an identity number as a gend code, "1" male, "2" female; only for faultless numbers."""
    return "1" if int(certno[16]) % 2 else "2"


def age_years(born: date, on: date) -> int:
    """Completed years of age on a day; somebody born on 29 February completes a common year on 1 March."""
    return on.year - born.year - ((on.month, on.day) < (born.month, born.day))


# --- Unified social credit codes (K-18) ---


def social_credit_code_fault(code: str) -> str | None:
    """What is wrong with a unified social credit code, or None.

    LENGTH: not 18 characters. CHARACTERS: a letter or sign outside the alphabet of the standard.
    ORGANISATION: the organisation code inside (positions 9 to 17) fails its own check. CHECKSUM: the last
    character is wrong.
    """
    codes = shipped_codes()
    alphabet = codes.credit_alphabet
    if len(code) != 18:
        return "LENGTH"
    if any(character not in alphabet for character in code):
        return "CHARACTERS"
    if _organisation_check_character(code[8:16]) != code[16]:
        return "ORGANISATION"
    size = len(alphabet)
    total = sum(
        alphabet.index(character) * pow(codes.credit_weight_base, place, size)
        for place, character in enumerate(code[:17])
    )
    return None if alphabet[-total % size] == code[17] else "CHECKSUM"


def _organisation_check_character(body: str) -> str:
    # Values 0–35: digits as they are, letters in the order of the whole Latin alphabet.
    weights = shipped_codes().organisation_weights
    total = sum(int(character, 36) * weight for character, weight in zip(body, weights, strict=True))
    return "0123456789X0"[11 - total % 11]
