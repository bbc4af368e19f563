"""Code lists of the catalogue: which edition is in force, what a row says, and which rows an import may bring.

Owns the names of the datasets, the choice of the edition, the check of a row by itself and the digest that binds an
edition to its rows. It never says whether a prescription may hold a code: that is for whoever asks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Final, TypeVar

from google.protobuf.message import Message

from erxhub.core.model import Accepted, Caller, Command, Draft, Outcome, Refused
from erxhub.core.refusals import CATALOGUE
from erxhub.policy.codes import drug_kind, has_form
from erxhub.policy.pack import day_begins_ms
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

RowT = TypeVar("RowT", bound=Message)


@dataclass(frozen=True, slots=True)
class CatalogImport:
    """One import as a command, made by `prepare_import`: all that needs a look at each row is done.

    `rows` are (dataset, edition, code, row) in ascending order of code, `rows_sha256` is their digest. `refused` is the
    beginning of the rows that were not taken, by line, and `rows_refused` the number of all of them.
    """

    header: registry_pb2.CatalogHeader
    rows: tuple[tuple[str, str, str, bytes], ...]
    rows_sha256: bytes
    refused: tuple[registry_pb2.RefusedRow, ...] = ()
    rows_refused: int = 0

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
    newest = None
    for edition in ledger.editions:
        is_in_force = edition.dataset == number and edition.valid_from_ms <= now_ms
        if is_in_force and (newest is None or newest.valid_from_ms <= edition.valid_from_ms):
            newest = edition
    return None if newest is None else newest.edition


def current_edition(tx: Draft, dataset: str) -> str | None:
    """`edition_in_force` by the ledger's state at the draft's time."""
    return edition_in_force(tx.state(tx.ledger_key, state_pb2.LedgerState), dataset, tx.now_ms)


def drug(tx: Draft, edition: str, code: str) -> catalog_pb2.Drug | None:
    """A drug of the edition, or None."""
    return _row(tx, DRUGS, edition, code, catalog_pb2.Drug)


def disease(tx: Draft, edition: str, code: str) -> catalog_pb2.Disease | None:
    """A disease of the edition, or None."""
    return _row(tx, DISEASES, edition, code, catalog_pb2.Disease)


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


def rows_digest(rows: Iterable[tuple[str, bytes]]) -> bytes:
    """What binds an edition to its rows, given as (code, row) in any order; 32 bytes.

    SHA-256 over, for each code in ascending order of its UTF-8 bytes, u32 length ‖ code ‖ u32 length ‖ row; the lengths
    are big-endian.
    """
    digest = hashlib.sha256()
    for code, row in sorted((code.encode(), row) for code, row in rows):
        digest.update(len(code).to_bytes(4, "big") + code + len(row).to_bytes(4, "big") + row)
    return digest.digest()


def prepare_import(
    header: registry_pb2.CatalogHeader,
    entries: Iterable[catalog_pb2.CatalogEntry],
    malformed: Iterable[registry_pb2.RefusedRow] = (),
) -> CatalogImport:
    """The import of these rows; the place for all work on single rows, because the lane has no time for it.

    `malformed` are rows that broke a field rule; they are not among `entries`.
    """
    dataset = DATASET_NAMES[header.dataset]
    taken, wrong = _checked(dataset, entries)
    refused = sorted([*malformed, *wrong], key=lambda row: row.line)
    rows = sorted(taken.items())
    return CatalogImport(
        header,
        tuple((dataset, header.edition, code, body) for code, body in rows),
        rows_digest(rows),
        tuple(refused[:REFUSED_ROWS_SHOWN]),
        len(refused),
    )


def import_forbidden(caller: Caller) -> Refused | None:
    """ROLE_NOT_ALLOWED unless the agency acts for the whole ledger: every region reads the same code lists."""
    if caller.acts_nationally:
        return None
    return Refused("ROLE_NOT_ALLOWED", detail={"caller": caller.actor, "needs": "national_agencies"})


def import_catalog(tx: Draft, command: Command) -> Outcome:
    """Import one edition of a code list (an agency that acts for the whole ledger). Leaves `catalogue.imported`.

    A row that is wrong by itself is left out and named in the reply; the others are taken. An import of which no row is
    taken leaves nothing. The same edition with the same file, day and rows again returns the first result.
    Refusals: ROLE_NOT_ALLOWED, INPUT_MALFORMED (no such day of effect), RECORD_EXISTS (the edition exists with other
    content).
    """
    request: CatalogImport = command.request
    header = request.header
    forbidden = import_forbidden(command.caller)
    if forbidden is not None:
        return forbidden
    try:
        begins = date.fromisoformat(header.valid_from_on)
    except ValueError:
        return Refused("INPUT_MALFORMED", field="header.valid_from_on")
    ledger = tx.state(tx.ledger_key, state_pb2.LedgerState)
    edition = registry_pb2.CatalogEdition(
        dataset=header.dataset,
        edition=header.edition,
        valid_from_ms=day_begins_ms(begins),
        file_sha256=header.file_sha256,
        rows=len(request.rows),
        source=header.source,
        rows_sha256=request.rows_sha256,
    )
    reply = registry_pb2.ImportCatalogResponse(
        rows_taken=len(request.rows), rows_refused=request.rows_refused, refused=request.refused
    )
    for held in ledger.editions if ledger is not None else ():
        if (held.dataset, held.edition) == (edition.dataset, edition.edition):
            return Accepted(reply) if held == edition else Refused("RECORD_EXISTS", field="header.edition")
    if not request.rows:
        return Accepted(reply)
    tx.emit("ledger", tx.ledger_key, "catalogue.imported", events_pb2.CatalogueImported(edition=edition))
    return Accepted(reply, catalog_rows=request.rows)


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
