"""Region packs: the dated parameters of a pooling area, inherited from the province and the nation.

Owns the reading and checking of pack files, the order of inheritance and the digest that entries carry. It
never holds a parameter value, never names a region, and never reads a clock: every question about a value
carries the date it is asked for.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

from erxhub.core.claim_arithmetic import AccountScope, Band, Benefit, Supplement, parse_fen, parse_ratio

NATIONAL: Final = "CN"
VERIFIED: Final = ("yes", "no", "choice")

_AREA: Final = re.compile(r"[0-9]{6}")
_PACK_ID: Final = re.compile(r"CN|CN-[0-9]{2}|[0-9]{6}")
_DURATION: Final = re.compile(r"([1-9][0-9]{0,5})(s|min|h|d)")
DAY_MS: Final = 86_400_000
"""A day in milliseconds; in China every day has as many."""

_UNIT_MS: Final = {"s": 1_000, "min": 60_000, "h": 3_600_000, "d": DAY_MS}
_AHEAD_MS: Final = 8 * _UNIT_MS["h"]
_EPOCH_ORDINAL: Final = date(1970, 1, 1).toordinal()

T = TypeVar("T")


class PackError(ValueError):
    """A pack file is wrong, or a parameter has no value on a date. Names the file or the parameter."""


def china_date(now_ms: int) -> date:
    """The calendar day in China (UTC+8, no summer time) of an instant in UTC milliseconds."""
    return date.fromordinal(_EPOCH_ORDINAL + (now_ms + _AHEAD_MS) // DAY_MS)


def day_begins_ms(day: date) -> int:
    """The instant in UTC milliseconds at which a calendar day begins in China."""
    return (day.toordinal() - _EPOCH_ORDINAL) * DAY_MS - _AHEAD_MS


# --- Values ---


def _expect(kind: type[T]) -> Callable[[Any], T]:
    def read(value: Any) -> T:
        # bool is a subclass of int, so that isinstance would take `true` for an integer.
        if type(value) is not kind:
            raise ValueError(f"expected {kind.__name__}")
        return value

    return read


_text: Final = _expect(str)


def _count(value: Any) -> int:
    number = _expect(int)(value)
    if number < 0:
        raise ValueError("expected an integer of zero and above")
    return number


def _duration_ms(value: Any) -> int:
    found = _DURATION.fullmatch(_text(value))
    if found is None:
        raise ValueError('expected a duration such as "60s", "30min", "2h", "7d"')
    return int(found[1]) * _UNIT_MS[found[2]]


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(_text(item) for item in _expect(list)(value))


def _patterns(value: Any) -> tuple[re.Pattern[str], ...]:
    try:
        # ASCII: without it \d would also accept the digits of other scripts.
        return tuple(re.compile(item, re.ASCII) for item in _texts(value))
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error


def _bands(value: Any) -> tuple[Band, ...]:
    bands = []
    for item in _expect(list)(value):
        if not isinstance(item, dict) or not {"ratio"} <= set(item) <= {"ratio", "upto_yuan"}:
            raise ValueError("a band has a ratio and, unless it is open, upto_yuan")
        upto = parse_fen(_text(item["upto_yuan"])) if "upto_yuan" in item else None
        bands.append(Band(upto, parse_ratio(_text(item["ratio"]))))
    Benefit(tuple(bands))  # checks that the bands ascend
    return tuple(bands)


# Ratios and amounts are text in the file: TOML numbers with a point would be binary floating point.
_READERS: Final[Mapping[str, Callable[[Any], object]]] = MappingProxyType(
    {
        "integer": _count,
        "flag": _expect(bool),
        "text": _text,
        "texts": _texts,
        "duration": _duration_ms,
        "amount": lambda value: parse_fen(_text(value)),
        "patterns": _patterns,
        "bands": _bands,
    }
)


# --- Files ---


@dataclass(frozen=True, slots=True)
class Row:
    """One dated value. In force from ``valid_from`` to ``valid_to``, both days included; None = no end known.

    ``verified`` is yes (read in a source), no (from memory) or choice (a decision of this project);
    ``illustrative`` marks a value that serves demonstration only. ``value`` is typed by the parameter's kind:
    durations in ms, amounts in fen.
    """

    value: object
    valid_from: date
    valid_to: date | None
    verified: str
    illustrative: bool
    source_doc: str
    pack_id: str

    def in_force(self, on: date) -> bool:
        """Whether this row applies on that day."""
        return self.valid_from <= on and (self.valid_to is None or on <= self.valid_to)


@dataclass(frozen=True, slots=True)
class Parameter:
    """What a parameter means; declared once, in the national pack."""

    name: str
    kind: str
    unit: str
    rule_ids: tuple[str, ...]
    meaning: str


@dataclass(frozen=True, slots=True)
class _File:
    pack_id: str
    data: bytes
    declared: Mapping[str, Parameter]
    rows: Mapping[str, tuple[Row, ...]]


def _row(raw: Any, kind: str, pack_id: str) -> Row:
    if not isinstance(raw, dict):
        raise ValueError("a row is a table")
    needed, optional = {"value", "valid_from", "verified", "source_doc"}, {"valid_to", "illustrative"}
    if not needed <= set(raw) <= needed | optional:
        raise ValueError(f"a row has {', '.join(sorted(needed))} and may have {', '.join(sorted(optional))}")
    row = Row(
        value=_READERS[kind](raw["value"]),
        valid_from=_expect(date)(raw["valid_from"]),
        valid_to=_expect(date)(raw["valid_to"]) if "valid_to" in raw else None,
        verified=_text(raw["verified"]),
        illustrative=_expect(bool)(raw.get("illustrative", False)),
        source_doc=_text(raw["source_doc"]),
        pack_id=pack_id,
    )
    if row.verified not in VERIFIED:
        raise ValueError(f"verified is one of {', '.join(VERIFIED)}")
    if not row.source_doc.strip():
        raise ValueError("source_doc is empty")
    if row.valid_to is not None and row.valid_to < row.valid_from:
        raise ValueError("valid_to lies before valid_from")
    return row


def _rows(raw: Any, kind: str, pack_id: str) -> tuple[Row, ...]:
    rows = sorted((_row(item, kind, pack_id) for item in _expect(list)(raw)), key=lambda row: row.valid_from)
    for earlier, later in pairwise(rows):
        if earlier.valid_to is None or later.valid_from <= earlier.valid_to:
            raise ValueError(f"two rows are in force on {later.valid_from.isoformat()}")
    return tuple(rows)


def _declaration(name: str, raw: Mapping[str, Any]) -> Parameter:
    needed, optional = {"kind", "rule_ids", "meaning", "rows"}, {"unit"}
    if not needed <= set(raw) <= needed | optional:
        raise ValueError(f"a declaration has {', '.join(sorted(needed))} and may have a unit")
    if raw["kind"] not in _READERS:
        raise ValueError(f"kind is one of {', '.join(_READERS)}")
    return Parameter(
        name=name,
        kind=raw["kind"],
        unit=_text(raw.get("unit", "")),
        rule_ids=_texts(raw["rule_ids"]),
        meaning=_text(raw["meaning"]),
    )


def _read_file(pack_id: str, data: bytes, national: Mapping[str, Parameter] | None) -> _File:
    """Parse one pack file. ``national`` holds the declarations; None while the national file is read."""
    where = f"{pack_id}.toml"
    try:
        text = data.decode("utf-8")
        document = tomllib.loads(text)
        first = next((line.strip() for line in text.splitlines() if line.strip()[:1] not in ("", "#")), "")
        # With this first line no byte can move from one file to the next without a change of meaning, so the
        # digest may be taken over the plain sequence of the files.
        if first != "[pack]" or set(document) - {"pack", "parameter"}:
            raise ValueError("a pack begins with [pack] and holds only [pack] and [parameter.…] tables")
        if document["pack"].get("id") != pack_id or _PACK_ID.fullmatch(pack_id) is None:
            raise ValueError("the id in [pack] is not the name of the file")
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, ValueError) as error:
        raise PackError(f"{where}: {error}") from error

    declared: dict[str, Parameter] = dict(national or {})
    rows: dict[str, tuple[Row, ...]] = {}
    for name, raw in document.get("parameter", {}).items():
        try:
            if national is None:
                declared[name] = _declaration(name, raw)
            elif name not in declared:
                raise ValueError("not a parameter of the national pack")
            elif set(raw) != {"rows"}:
                raise ValueError("a regional pack gives rows only")
            rows[name] = _rows(raw["rows"], declared[name].kind, pack_id)
        except ValueError as error:
            raise PackError(f"{where}: {name}: {error}") from error
    return _File(pack_id, data, MappingProxyType(declared), MappingProxyType(rows))


# --- Packs ---


class Pack:
    """The resolved policy of one area. Immutable; safe to share.

    A question about a parameter goes to the area's own file first, then to the prefecture's, the province's
    and the national one; the first with a row in force on that day answers. So a regional value whose time
    is over falls through to the wider one.

    The getters raise ``KeyError`` for a name that no pack declares, ``TypeError`` for a getter of another
    kind, and ``PackError`` when no row is in force.
    """

    def __init__(self, files: Iterable[_File]) -> None:
        chain = tuple(files)
        self._nearest_first: Final = tuple(reversed(chain))
        self.ids: Final = tuple(file.pack_id for file in chain)
        """Pack ids from the national one to the area's own."""
        self.parameters: Final = chain[0].declared
        """All declared parameters by name."""
        self.digest: Final = hashlib.sha256(b"".join(file.data for file in chain)).digest()
        """32 bytes: SHA-256 over the bytes of the files, in the order of ``ids``."""

    def row(self, name: str, on: date) -> Row | None:
        """The row in force on that day, or None where no file sets the parameter."""
        if name not in self.parameters:
            raise KeyError(name)
        for file in self._nearest_first:
            for row in file.rows.get(name, ()):
                if row.in_force(on):
                    return row
        return None

    def _value(self, name: str, on: date, kind: str, type_: type[T]) -> T:
        row = self.row(name, on)
        if self.parameters[name].kind != kind:
            raise TypeError(f"{name} is of kind {self.parameters[name].kind}, not {kind}")
        if row is None:
            raise PackError(f"{name}: no row in force on {on.isoformat()} in {' > '.join(self.ids)}")
        # The reader of the kind made the value, so that only a wrong pairing of kind and type_ can fail here.
        assert isinstance(row.value, type_)
        return row.value

    def integer(self, name: str, on: date) -> int:
        """A count, in the unit that the parameter declares."""
        return self._value(name, on, "integer", int)

    def duration_ms(self, name: str, on: date) -> int:
        """A length of time, in milliseconds."""
        return self._value(name, on, "duration", int)

    def flag(self, name: str, on: date) -> bool:
        """A yes or no."""
        return self._value(name, on, "flag", bool)

    def text(self, name: str, on: date) -> str:
        """A single word or code."""
        return self._value(name, on, "text", str)

    def texts(self, name: str, on: date) -> tuple[str, ...]:
        """A list of words or codes, in the order of the file."""
        return self._value(name, on, "texts", tuple)

    def amount_fen(self, name: str, on: date) -> int:
        """An amount of money, in fen."""
        return self._value(name, on, "amount", int)

    def bands(self, name: str, on: date) -> tuple[Band, ...]:
        """Bands of cumulative in-scope spending."""
        return self._value(name, on, "bands", tuple)

    def has_form(self, name: str, on: date, text: str) -> bool:
        """Whether ``text`` as a whole matches one of the patterns, e.g. ``trace_code_forms`` (K-15, P-20)."""
        return any(form.fullmatch(text) for form in self._value(name, on, "patterns", tuple))

    def benefit(
        self, on: date, *, cum_inscope_fen: int, cum_fund_fen: int, supplements: tuple[Supplement, ...] = ()
    ) -> Benefit:
        """The benefit of a person on that day, ready for ``claim_arithmetic.compute``.

        The two totals are those of the person's benefit year so far. Where the region sets no ``fund_cap``,
        the fund's payments have no limit.
        """
        capped = self.row("fund_cap", on) is not None
        return Benefit(
            bands=self.bands("pooled_bands", on),
            deductible_fen=self.amount_fen("deductible", on),
            cum_inscope_fen=cum_inscope_fen,
            fund_cap_fen=self.amount_fen("fund_cap", on) if capped else None,
            cum_fund_fen=cum_fund_fen,
            supplements=supplements,
            account_scope=AccountScope(self.text("account_scope", on)),
        )


class PackLibrary:
    """A set of pack files, checked as a whole when it is made.

    ``files`` maps pack ids ("CN", "CN-33", "330100") to the bytes of their files; "CN" must be there.
    Raises ``PackError`` for the first file that is wrong.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        if NATIONAL not in files:
            raise PackError(f"{NATIONAL}.toml is missing")
        national = _read_file(NATIONAL, files[NATIONAL], None)
        self._files: Final = {NATIONAL: national} | {
            pack_id: _read_file(pack_id, data, national.declared)
            for pack_id, data in sorted(files.items())
            if pack_id != NATIONAL
        }
        self._packs: Final[dict[tuple[str, ...], Pack]] = {}

    @classmethod
    def with_directory(cls, directory: Path) -> PackLibrary:
        """The shipped packs and those of an operator's directory; a file there replaces a shipped one."""
        own = {path.stem: path.read_bytes() for path in sorted(directory.glob("*.toml"))}
        return cls(_shipped_files() | own)

    def pack_for(self, area_code: str) -> Pack:
        """The pack of a pooling area (K-11), from whatever files exist for it.

        Nation, province (first two digits), prefecture (first four), then the code itself.
        Raises ``ValueError`` for anything but six digits.
        """
        if _AREA.fullmatch(area_code) is None:
            raise ValueError("an area code has six digits")
        wanted = dict.fromkeys((NATIONAL, f"CN-{area_code[:2]}", f"{area_code[:4]}00", area_code))
        chain = tuple(pack_id for pack_id in wanted if pack_id in self._files)
        # One object per chain of files, not per area code: callers cannot make this grow.
        if chain not in self._packs:
            self._packs[chain] = Pack(self._files[pack_id] for pack_id in chain)
        return self._packs[chain]


def _shipped_files() -> dict[str, bytes]:
    folder = resources.files("erxhub.policy").joinpath("packs")
    return {
        item.name.removesuffix(".toml"): item.read_bytes() for item in folder.iterdir() if item.name.endswith(".toml")
    }


@cache
def shipped_packs() -> PackLibrary:
    """The packs that come with the project."""
    return PackLibrary(_shipped_files())


def pack_for(area_code: str) -> Pack:
    """The shipped pack of a pooling area; see ``PackLibrary.pack_for``."""
    return shipped_packs().pack_for(area_code)
