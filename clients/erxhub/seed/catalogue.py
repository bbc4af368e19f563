"""The code lists that come with the seed: invented drugs in real shapes, some real diseases, areas and frequencies.

Owns the files in `data/`, whose columns are the fields of the catalogue's messages. Must never: judge a row.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor

from erxhub.v1 import catalog_pb2

EDITION: Final = "seed-1"

_FILES: Final[Mapping[str, tuple[catalog_pb2.CatalogDataset.ValueType, str]]] = {
    "drugs.csv": (catalog_pb2.CATALOG_DATASET_DRUGS, "drug"),
    "diseases.csv": (catalog_pb2.CATALOG_DATASET_DISEASES, "disease"),
    "regions.csv": (catalog_pb2.CATALOG_DATASET_REGIONS, "region"),
    "frequencies.csv": (catalog_pb2.CATALOG_DATASET_FREQUENCIES, "frequency"),
    "chronic.csv": (catalog_pb2.CATALOG_DATASET_CHRONIC, "chronic"),
}


@dataclass(frozen=True, slots=True)
class SeedFile:
    """One shipped list; `sha256` is over the bytes of its file."""

    name: str
    dataset: catalog_pb2.CatalogDataset.ValueType
    sha256: bytes
    entries: tuple[catalog_pb2.CatalogEntry, ...]


@cache
def catalogue() -> tuple[SeedFile, ...]:
    """The shipped lists."""
    return tuple(_read(name, dataset, field) for name, (dataset, field) in _FILES.items())


@cache
def seed_drugs() -> Mapping[str, catalog_pb2.Drug]:
    """The shipped drugs by code."""
    return {entry.drug.code: entry.drug for entry in catalogue()[0].entries}


def _read(name: str, dataset: catalog_pb2.CatalogDataset.ValueType, field: str) -> SeedFile:
    data = resources.files("erxhub.seed").joinpath("data", name).read_bytes()
    entries = []
    reader = csv.DictReader(io.StringIO(data.decode("utf-8"), newline=""), strict=True)
    for row in reader:
        entry = catalog_pb2.CatalogEntry(line=reader.line_num)
        message = getattr(entry, field)
        for column, text in row.items():
            if text:
                setattr(message, column, _value(message.DESCRIPTOR.fields_by_name[column], text))
        entries.append(entry)
    return SeedFile(name, dataset, hashlib.sha256(data).digest(), tuple(entries))


def _value(field: Any, text: str) -> str | bool | int:
    if field.type == FieldDescriptor.TYPE_BOOL:
        return text == "true"
    if field.enum_type is not None:
        return int(field.enum_type.values_by_name[text].number)
    return int(text) if field.type == FieldDescriptor.TYPE_INT32 else text
