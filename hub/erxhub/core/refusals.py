"""The refusal catalogue: every "no" that the hub can say, with its status, its rules and its two sentences.

Owns the reading of ``refusals.csv``, the one list of refusals. It never decides *whether* to refuse, never
formats a reply, and never invents a code: a code that is missing from the file is a bug in the caller and
shows itself as a ``KeyError``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Final

COLUMNS: Final = ("code", "grpc_status", "rule_ids", "en", "zh", "retriable", "needs")

# OK is a status here because a finding travels inside a successful reply (RECON_MISMATCH, DLV_IMPLAUSIBLE).
STATUSES: Final = frozenset(
    {
        "OK",
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "FAILED_PRECONDITION",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "ALREADY_EXISTS",
        "ABORTED",
        "RESOURCE_EXHAUSTED",
        "UNAVAILABLE",
        "DATA_LOSS",
    }
)


class CatalogueError(ValueError):
    """The catalogue file itself is wrong; says the row and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class RefusalKind:
    """One row of the catalogue.

    ``grpc_status`` is the name of a gRPC status. ``rule_ids`` are the rules that cause it, in the order of
    the file. ``retriable`` is true when the same request under the same request id can succeed once
    ``needs`` is met. Source: lifecycle, "Reading the refusals".
    """

    code: str
    grpc_status: str
    rule_ids: tuple[str, ...]
    en: str
    zh: str
    retriable: bool
    needs: str


def parse_catalogue(text: str) -> Mapping[str, RefusalKind]:
    """Read the catalogue from CSV text; keeps the order of the rows.

    Raises ``CatalogueError`` for another header, a repeated code, an unknown status, a ``retriable`` other
    than yes or no, or an empty cell.
    """
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise CatalogueError(f"header must be {','.join(COLUMNS)}")
    kinds: dict[str, RefusalKind] = {}
    for row in reader:
        kind = _kind(row, reader.line_num)
        if kind.code in kinds:
            raise CatalogueError(f"line {reader.line_num}: code {kind.code} appears twice")
        kinds[kind.code] = kind
    return MappingProxyType(kinds)


def _kind(row: Mapping[str, str | None], line: int) -> RefusalKind:
    # A row with too many cells carries them under a key outside COLUMNS; one with too few carries None.
    cells = {name: (row.get(name) or "").strip() for name in COLUMNS}
    if len(row) != len(COLUMNS) or not all(cells.values()):
        raise CatalogueError(f"line {line}: needs {len(COLUMNS)} cells, none of them empty")
    if cells["grpc_status"] not in STATUSES:
        raise CatalogueError(f"line {line}: {cells['grpc_status']} is not a status the hub answers with")
    if cells["retriable"] not in ("yes", "no"):
        raise CatalogueError(f"line {line}: retriable must be yes or no")
    return RefusalKind(
        code=cells["code"],
        grpc_status=cells["grpc_status"],
        rule_ids=tuple(cells["rule_ids"].split(";")),
        en=cells["en"],
        zh=cells["zh"],
        retriable=cells["retriable"] == "yes",
        needs=cells["needs"],
    )


CATALOGUE: Final[Mapping[str, RefusalKind]] = parse_catalogue(
    resources.files("erxhub.core").joinpath("refusals.csv").read_text(encoding="utf-8")
)
"""Code → row, for all refusals of the hub."""
