"""Reading code lists from CSV files: drugs, diseases, regions, frequencies, chronic diseases.

Owns the columns of the files and their mapping to rows of the catalogue. A line that cannot be mapped is left out and
named; whether a row may be in the catalogue is for the hub to say. Must never: talk to a hub, or guess a code.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final

from erxhub.cli.local_errors import Failed, unusable
from erxhub.v1 import catalog_pb2

DATASETS: Final[Mapping[str, catalog_pb2.CatalogDataset.ValueType]] = {
    "drugs": catalog_pb2.CATALOG_DATASET_DRUGS,
    "diseases": catalog_pb2.CATALOG_DATASET_DISEASES,
    "regions": catalog_pb2.CATALOG_DATASET_REGIONS,
    "frequencies": catalog_pb2.CATALOG_DATASET_FREQUENCIES,
    "chronic": catalog_pb2.CATALOG_DATASET_CHRONIC,
}
FILE_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "drugs": ("drugs.csv",),
    "diseases": ("diseases.csv",),
    # The insurance areas hold the administrative ones and more, and a dataset has one list in force.
    "regions": ("regions_nhsa.csv", "regions.csv"),
    "frequencies": ("frequencies.csv",),
    "chronic": ("chronic_special.csv", "chronic.csv"),
}
"""Dataset → the names of its file, the preferred one first."""

FILE_BYTES_MAX: Final = 256 * 1024 * 1024
_CLASSES: Final = {"甲": "01", "乙": "02", "丙": "03", "01": "01", "02": "02", "03": "03", "": "03"}
_OWN_PAY: Final = "03"
_INSURED: Final = {"Y": True, "N": False, "": None}
_FLAGS: Final = {"Y": True, "N": False, "": False}
_KIND_LETTERS: Final = {"western": "X", "patent": "Z", "herbal": "T"}
_DISEASE_LEVELS: Final = ("category", "subcategory", "diagnosis")
_DECIMAL: Final = re.compile(r"[0-9]{1,10}(\.[0-9]{1,6})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class LineFault:
    """A line that was left out: the column at fault, and why in both languages."""

    line: int
    field: str
    message_en: str
    message_zh: str


@dataclass(frozen=True, slots=True)
class LineNote:
    """What was assumed for a line that was taken."""

    line: int
    field: str
    message_en: str
    message_zh: str


@dataclass(frozen=True, slots=True)
class CatalogFile:
    """A file that was read. `lines` counts the rows below the header; `sha256` is over the bytes of the file."""

    name: str
    dataset: str
    sha256: bytes
    lines: int
    entries: tuple[catalog_pb2.CatalogEntry, ...]
    faults: tuple[LineFault, ...]
    notes: tuple[LineNote, ...]


class _Fault(Exception):
    def __init__(self, field: str, en: str, zh: str) -> None:
        super().__init__(en)
        self.field, self.en, self.zh = field, en, zh


@dataclass(frozen=True, slots=True)
class _Shape:
    """How a dataset is read: the columns that must be there, and the making of an entry."""

    columns: tuple[str, ...]
    entry: Callable[[_Row], catalog_pb2.CatalogEntry]


class _Row:
    """One line. `text` is the cell of a column, "" where the file has no such column."""

    def __init__(self, line: int, cells: Mapping[str, str]) -> None:
        self.line = line
        self._cells = cells
        self.notes: list[LineNote] = []

    def text(self, column: str) -> str:
        return self._cells.get(column, "").strip()

    def needed(self, column: str) -> str:
        text = self.text(column)
        if not text:
            raise _Fault(column, "the cell is empty", "单元格为空")
        return text

    def one_of(self, column: str, values: Mapping[str, Any]) -> Any:
        text = self.text(column)
        if text not in values:
            known = ", ".join(value or "(empty)" for value in values)
            raise _Fault(column, f"{text!r} is not one of {known}", f"{text!r} 不在取值范围内")
        return values[text]

    def decimal(self, column: str) -> str:
        """A plain decimal, or "" for an empty cell."""
        text = self.text(column)
        if text and not _DECIMAL.fullmatch(text):
            raise _Fault(column, f"{text!r} is not a decimal number", f"{text!r} 不是十进制数")
        return text

    def whole(self, column: str) -> int:
        """A whole number, 0 for an empty cell."""
        text = self.text(column)
        if text and not (text.isascii() and text.isdecimal() and len(text) <= 6):
            raise _Fault(column, f"{text!r} is not a whole number", f"{text!r} 不是整数")
        return int(text or "0")

    def note(self, field: str, en: str, zh: str) -> None:
        self.notes.append(LineNote(self.line, field, en, zh))


# --- the five lists -------------------------------------------------------------------------------


def _drug(row: _Row) -> catalog_pb2.CatalogEntry:
    code = row.needed("code")
    if not code.startswith(row.one_of("kind", _KIND_LETTERS)):
        raise _Fault("kind", "the kind is not that of the code", "药品类别与编码不符")
    charge_class = row.one_of("class", _CLASSES)
    ratio = row.decimal("prior_pay_ratio")
    insured = row.one_of("insured", _INSURED)
    if insured is False or (ratio and _ratio(ratio) == 1):
        charge_class = _OWN_PAY
    if charge_class == _OWN_PAY:
        ratio = "1"
    elif not ratio:
        ratio = "0"
        if charge_class == "02":
            row.note("prior_pay_ratio", "not known; taken as 0", "先行自付比例未知，按 0 处理")
    drug = catalog_pb2.Drug(
        code=code,
        generic_name=row.needed("generic_name"),
        product_name=row.text("product_name"),
        dosage_form=row.text("dosage_form"),
        strength=row.text("strength"),
        pack=row.text("pack"),
        maker=row.text("maker"),
        charge_class=charge_class,
        prior_pay_ratio=ratio,
        payment_standard=row.decimal("payment_standard"),
        limits=row.text("limits"),
        control=row.one_of("control", _CONTROLS),
        dual_channel=row.one_of("dual_channel", _FLAGS),
        hospital_preparation=row.one_of("hospital_preparation", _FLAGS),
        max_daily_dose=row.decimal("max_daily_dose"),
        max_daily_dose_unit=row.text("max_daily_dose_unit"),
        units_per_pack=row.decimal("units_per_pack"),
        cold_chain=row.one_of("cold_chain", _FLAGS),
    )
    return catalog_pb2.CatalogEntry(line=row.line, drug=drug)


def _ratio(text: str) -> Decimal:
    try:
        ratio = Decimal(text)
    except InvalidOperation:
        ratio = Decimal(-1)
    if not 0 <= ratio <= 1:
        raise _Fault("prior_pay_ratio", f"{text} is not from 0 to 1", f"{text} 不在 0 到 1 之间")
    return ratio


def _controls() -> dict[str, catalog_pb2.DrugControl.ValueType]:
    prefix = "DRUG_CONTROL_"
    named = {
        name.removeprefix(prefix).lower(): number
        for name, number in catalog_pb2.DrugControl.items()
        if number != catalog_pb2.DRUG_CONTROL_UNSPECIFIED
    }
    # A list without the column leaves the question open, which is not the same as "none".
    return {**named, "": catalog_pb2.DRUG_CONTROL_UNSPECIFIED}


_CONTROLS: Final = _controls()


def _disease(row: _Row) -> catalog_pb2.CatalogEntry:
    level = row.one_of("level", {name: name for name in _DISEASE_LEVELS})
    disease = catalog_pb2.Disease(code=row.needed("code"), name=row.needed("name"), is_diagnosis=level == "diagnosis")
    return catalog_pb2.CatalogEntry(line=row.line, disease=disease)


def _region(row: _Row) -> catalog_pb2.CatalogEntry:
    region = catalog_pb2.Region(code=row.needed("code"), name=row.needed("name"), level=row.text("level"))
    return catalog_pb2.CatalogEntry(line=row.line, region=region)


def _frequency(row: _Row) -> catalog_pb2.CatalogEntry:
    frequency = catalog_pb2.Frequency(
        code=row.needed("code"),
        name=row.needed("name"),
        times=row.whole("times"),
        period_days=row.whole("period_days"),
        schedule=row.needed("schedule"),
    )
    return catalog_pb2.CatalogEntry(line=row.line, frequency=frequency)


def _chronic(row: _Row) -> catalog_pb2.CatalogEntry:
    chronic = catalog_pb2.ChronicDisease(code=row.needed("code"), name=row.needed("name"))
    return catalog_pb2.CatalogEntry(line=row.line, chronic=chronic)


_SHAPES: Final[Mapping[str, _Shape]] = {
    "drugs": _Shape(("code", "kind", "generic_name", "class"), _drug),
    "diseases": _Shape(("code", "name", "level"), _disease),
    "regions": _Shape(("code", "name", "level"), _region),
    "frequencies": _Shape(("code", "name", "times", "period_days", "schedule"), _frequency),
    "chronic": _Shape(("code", "name"), _chronic),
}


# --- files ----------------------------------------------------------------------------------------


def dataset_of(path: Path) -> str | None:
    """The dataset that a file of this name holds, or None."""
    return next((dataset for dataset, names in FILE_NAMES.items() if path.name in names), None)


def _all_names() -> str:
    return ", ".join(name for names in FILE_NAMES.values() for name in names)


def find_files(folder: Path) -> list[Path]:
    """The code lists of a folder, at most one for each dataset. Raises Failed when there is none."""
    found = []
    for names in FILE_NAMES.values():
        found += [folder / name for name in names if (folder / name).is_file()][:1]
    if not found:
        raise Failed("CLI_CATALOG_NONE", field=str(folder), path=folder, known=_all_names())
    return found


def read_file(path: Path, dataset: str | None = None) -> CatalogFile:
    """Reads one file; its name says which dataset it is, unless that is given. Raises Failed."""
    dataset = dataset or dataset_of(path)
    if dataset is None:
        raise Failed("CLI_CATALOG_DATASET", field="--dataset", path=path.name, known=_all_names())
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            limit_mib = FILE_BYTES_MAX // (1024 * 1024)
            raise Failed("CLI_CATALOG_LARGE", field=str(path), path=path, limit_mib=limit_mib)
        return parse(path.name, dataset, path.read_bytes())
    except OSError as error:
        raise unusable(error, path) from None


def parse(name: str, dataset: str, data: bytes) -> CatalogFile:
    """Reads the bytes of a file: UTF-8, comma-separated, a header line. Raises Failed."""
    shape = _SHAPES[dataset]
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Failed("CLI_CATALOG_ENCODING", field=name, path=name, byte=error.start) from None
    entries: list[catalog_pb2.CatalogEntry] = []
    faults: list[LineFault] = []
    notes: list[LineNote] = []
    lines = 0
    seen: dict[str, int] = {}
    for row in _rows(name, shape.columns, text):
        lines += 1
        if isinstance(row, LineFault):
            faults.append(row)
            continue
        try:
            entry = shape.entry(row)
            _refuse_repeated(row, seen)
        except _Fault as fault:
            faults.append(LineFault(row.line, fault.field, fault.en, fault.zh))
            continue
        entries.append(entry)
        notes += row.notes
    return CatalogFile(name, dataset, hashlib.sha256(data).digest(), lines, tuple(entries), tuple(faults), tuple(notes))


def _refuse_repeated(row: _Row, seen: dict[str, int]) -> None:
    code = row.text("code")
    first = seen.setdefault(code, row.line)
    if first != row.line:
        raise _Fault("code", f"the code is that of line {first}", f"编码与第 {first} 行重复")


def _rows(name: str, columns: Iterable[str], text: str) -> Iterator[_Row | LineFault]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [cell.strip() for cell in next(reader, [])]
        missing = [column for column in columns if column not in header]
        if missing:
            raise Failed("CLI_CATALOG_COLUMN", field=name, path=name, columns=", ".join(missing))
        ended = reader.line_num
        for cells in reader:
            # A quoted cell may span lines; the row is named by its first one.
            line, ended = ended + 1, reader.line_num
            if not cells:
                continue
            if len(cells) != len(header):
                yield LineFault(
                    line, "", f"{len(cells)} cells, the header has {len(header)}", f"列数 {len(cells)} 与表头不符"
                )
            else:
                yield _Row(line, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise Failed("CLI_CATALOG_CSV", field=name, details=str(error), path=name, line=reader.line_num) from None
