"""Code lists of the catalogue: which edition is in force, what a row says, and which rows an import may bring.

Owns the names of the datasets, the choice of the edition and the check of a row by itself. It never says whether a
prescription may hold a code: that is for whoever asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Final, TypeVar

from google.protobuf.message import Message

from erxhub.core.model import Accepted, Command, Draft, Outcome, Refused
from erxhub.core.refusals import CATALOGUE
from erxhub.policy.codes import drug_kind, has_form
from erxhub.v1 import catalog_pb2, events_pb2, registry_pb2, state_pb2

DRUGS: Final = "drugs"
DISEASES: Final = "diseases"
REGIONS: Final = "regions"
FREQUENCIES: Final = "frequencies"
CHRONIC: Final = "chronic"

DATASETS: Final[Mapping[str, catalog_pb2.CatalogDataset.ValueType]] = {
    DRUGS: catalog_pb2.CATALOG_DATASET_DRUGS,
    DISEASES: catalog_pb2.CATALOG_DATASET_DISEASES,
    REGIONS: catalog_pb2.CATALOG_DATASET_REGIONS,
    FREQUENCIES: catalog_pb2.CATALOG_DATASET_FREQUENCIES,
    CHRONIC: catalog_pb2.CATALOG_DATASET_CHRONIC,
}
DATASET_NAMES: Final[Mapping[int, str]] = {number: name for name, number in DATASETS.items()}

REFUSED_ROWS_SHOWN: Final = 200
"""A reply lists at most so many refused rows; it always gives their number."""

_ROW_FIELDS: Final[Mapping[str, str]] = {
    DRUGS: "drug",
    DISEASES: "disease",
    REGIONS: "region",
    FREQUENCIES: "frequency",
    CHRONIC: "chronic",
}

_EPOCH: Final = date(1970, 1, 1)
_DAY_MS: Final = 86_400_000
_BEIJING_AHEAD_MS: Final = 8 * 3_600_000

RowT = TypeVar("RowT", bound=Message)


@dataclass(frozen=True, slots=True)
class CatalogImport:
    """One import as a command: the header of the stream and all rows that followed it."""

    header: registry_pb2.CatalogHeader
    entries: tuple[catalog_pb2.CatalogEntry, ...]
    malformed: tuple[registry_pb2.RefusedRow, ...] = ()
    """Rows that broke a field rule; they are not among `entries`."""

    @property
    def request_id(self) -> str:
        """The idempotency key of the import."""
        return self.header.request_id


# ---- reading ----


def edition_in_force(ledger: state_pb2.LedgerState | None, dataset: str, now_ms: int) -> str | None:
    """The edition of a dataset that counts now: the one with the latest day of effect that has come.

    Of two with the same day the later import counts. None while no edition is in force.
    """
    if ledger is None:
        return None
    number = DATASETS[dataset]
    begun = [
        (edition.valid_from_ms, place, edition.edition)
        for place, edition in enumerate(ledger.editions)
        if edition.dataset == number and edition.valid_from_ms <= now_ms
    ]
    return max(begun)[2] if begun else None


def current_edition(tx: Draft, dataset: str) -> str | None:
    """`edition_in_force` by the ledger's state at the draft's time."""
    return edition_in_force(tx.state(tx.ledger_key, state_pb2.LedgerState), dataset, tx.now_ms)


def drug(tx: Draft, edition: str, code: str) -> catalog_pb2.Drug | None:
    """A drug of the edition, or None."""
    return _row(tx, DRUGS, edition, code, catalog_pb2.Drug)


def disease(tx: Draft, edition: str, code: str) -> catalog_pb2.Disease | None:
    """A disease of the edition, or None."""
    return _row(tx, DISEASES, edition, code, catalog_pb2.Disease)


def region(tx: Draft, edition: str, code: str) -> catalog_pb2.Region | None:
    """A region of the edition, or None."""
    return _row(tx, REGIONS, edition, code, catalog_pb2.Region)


def frequency(tx: Draft, edition: str, code: str) -> catalog_pb2.Frequency | None:
    """A frequency of use of the edition, or None."""
    return _row(tx, FREQUENCIES, edition, code, catalog_pb2.Frequency)


def chronic_disease(tx: Draft, edition: str, code: str) -> catalog_pb2.ChronicDisease | None:
    """A chronic or special disease of the edition, or None."""
    return _row(tx, CHRONIC, edition, code, catalog_pb2.ChronicDisease)


def _row(tx: Draft, dataset: str, edition: str, code: str, kind: type[RowT]) -> RowT | None:
    body = tx.catalog(dataset, edition, code)
    return None if body is None else kind.FromString(body)


# ---- diagnoses (P-07, K-12) ----


def diagnosis_fault(tx: Draft, diagnoses: Iterable[tuple[str, str]]) -> int | None:
    """The place of the first (code, diagnosis type) that is no known diagnosis, or None.

    A western code (type "1") must have the form of K-12 and, when a disease list is in force, be a diagnosis of it:
    categories and subcategories are none. Forms and lists of the TCM codes are not established, so they are taken as
    they are.
    """
    western = [(place, code) for place, (code, kind) in enumerate(diagnoses) if kind == "1"]
    for place, code in western:
        if not has_form("disease", code):
            return place
    edition = current_edition(tx, DISEASES)
    if edition is None:
        return None
    tx.want(catalog=[(DISEASES, edition, code) for _, code in western])
    for place, code in western:
        found = disease(tx, edition, code)
        if found is None or not found.is_diagnosis:
            return place
    return None


# ---- importing ----


def import_catalog(tx: Draft, command: Command) -> Outcome:
    """Import one edition of a code list (agency). Leaves `catalogue.imported`.

    A row that is wrong by itself is left out and named in the reply; the others are taken. An import of which no row is
    taken leaves nothing. The same edition with the same file and day again returns the first result.
    Refusals: INPUT_MALFORMED (no such day of effect), RECORD_EXISTS (the edition exists with other content).
    """
    request: CatalogImport = command.request
    header = request.header
    dataset = DATASET_NAMES[header.dataset]
    try:
        begins = date.fromisoformat(header.valid_from_on)
    except ValueError:
        return Refused("INPUT_MALFORMED", field="header.valid_from_on")
    ledger = tx.state(tx.ledger_key, state_pb2.LedgerState)
    rows, refused = _checked(dataset, request.entries)
    refused = sorted([*request.malformed, *refused], key=lambda row: row.line)
    edition = registry_pb2.CatalogEdition(
        dataset=header.dataset,
        edition=header.edition,
        valid_from_ms=(begins - _EPOCH).days * _DAY_MS - _BEIJING_AHEAD_MS,
        file_sha256=header.file_sha256,
        rows=len(rows),
        source=header.source,
    )
    reply = registry_pb2.ImportCatalogResponse(
        rows_taken=len(rows), rows_refused=len(refused), refused=refused[:REFUSED_ROWS_SHOWN]
    )
    for held in ledger.editions if ledger is not None else ():
        if (held.dataset, held.edition) == (edition.dataset, edition.edition):
            return Accepted(reply) if held == edition else Refused("RECORD_EXISTS", field="header.edition")
    if not rows:
        return Accepted(reply)
    tx.emit("ledger", tx.ledger_key, "catalogue.imported", events_pb2.CatalogueImported(edition=edition))
    return Accepted(reply, catalog_rows=tuple((dataset, header.edition, code, body) for code, body in rows.items()))


def refused_row(line: int, code: str, field: str) -> registry_pb2.RefusedRow:
    """How the reply names a row that was not taken."""
    kind = CATALOGUE[code]
    return registry_pb2.RefusedRow(line=line, code=code, field=field, message_en=kind.en, message_zh=kind.zh)


def _checked(
    dataset: str, entries: Iterable[catalog_pb2.CatalogEntry]
) -> tuple[dict[str, bytes], list[registry_pb2.RefusedRow]]:
    """The rows to take, by code, and the refused ones in the order of the file."""
    rows: dict[str, bytes] = {}
    refused: list[registry_pb2.RefusedRow] = []
    for entry in entries:
        fault = _row_fault(dataset, entry, rows)
        if fault is not None:
            refused.append(refused_row(entry.line, *fault))
            continue
        row = getattr(entry, _ROW_FIELDS[dataset])
        rows[row.code] = row.SerializeToString(deterministic=True)
    return rows, refused


def _row_fault(dataset: str, entry: catalog_pb2.CatalogEntry, taken: Mapping[str, bytes]) -> tuple[str, str] | None:
    """(refusal code, field) of what is wrong with a row, or None."""
    kind = _ROW_FIELDS[dataset]
    if entry.WhichOneof("row") != kind:
        return "INPUT_MALFORMED", kind
    code = getattr(entry, kind).code
    field = f"{kind}.code"
    if code in taken:
        return "INPUT_MALFORMED", field
    if dataset == DRUGS and drug_kind(code) is None:
        return "DRUG_CODE", field
    if dataset == DISEASES and not has_form("disease", code):
        return "DX_INVALID", field
    return None
