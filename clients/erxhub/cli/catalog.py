"""`erxhub catalog`: code lists from files into a hub, line by line.

Owns what is said about each line. The columns belong to `catalog_files`, the verdict on a row to the hub.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from erxhub.cli.commands import group
from erxhub.cli.output import Output, output_option
from erxhub.cli.session import request_id_option, with_client

if TYPE_CHECKING:
    from erxhub.cli.catalog_files import CatalogFile
    from erxhub.cli.context import Context
    from erxhub.client import AgencyClient
    from erxhub.v1 import registry_pb2

SHARED_VARIABLE: Final = "ERXHUB_SHARED"
DATASET_NAMES: Final = ("drugs", "diseases", "regions", "frequencies", "chronic")
_LINE_COLUMNS: Final = ("file", "line", "by", "verdict", "field", "message_en", "message_zh")
_Function = TypeVar("_Function", bound=Callable[..., Any])


@group("catalog", example="erxhub catalog check ../shared/data\nerxhub catalog import ../shared/data")
def catalog() -> None:
    """Code lists: drugs, diseases, regions, frequencies, chronic diseases."""


def _files_arguments(function: _Function) -> _Function:
    function = click.option("--dataset", type=click.Choice(DATASET_NAMES), help="What a file of another name holds.")(
        function
    )
    return click.argument("paths", nargs=-1, type=click.Path(path_type=Path, exists=True))(function)


@catalog.command("check", example="erxhub catalog check ../shared/data\nerxhub catalog check drugs.csv -o json")
@_files_arguments
@output_option
def check(paths: tuple[Path, ...], dataset: str | None, out: Output) -> None:
    """Read files as an import would, and report without sending anything.

    PATHS are files, or folders with drugs.csv, diseases.csv, regions_nhsa.csv or regions.csv, frequencies.csv,
    chronic_special.csv. Default: the folder data in ERXHUB_SHARED, or ../shared/data. Exit code 1 when a line is
    left out.
    """
    from erxhub.admission import FieldRules
    from erxhub.cli.exits import NEGATIVE

    rules = FieldRules({})
    summaries = []
    for file in _read(paths, dataset):
        _good, bad = rules.rows(file.entries)
        lines = _own_lines(file)
        lines += [
            _line(file, line, "rules", "refused", field, "breaks the rule of its field", "不符合字段规则")
            for line, field in bad
        ]
        refused = len(file.faults) + len(bad)
        summaries.append(_summary(file, "", file.lines - refused, refused, lines))
    if _report(summaries, out):
        raise click.exceptions.Exit(NEGATIVE)


@catalog.command(
    "import", example="erxhub catalog import ../shared/data\nerxhub catalog import drugs.csv --edition 2026-11"
)
@_files_arguments
@click.option("--edition", help="Name of the edition. Default: the day and the beginning of the file's SHA-256.")
@click.option("--valid-from", "valid_from_on", metavar="YYYY-MM-DD", help="In force from this day on. Default: today.")
@request_id_option
@with_client("agency")
async def import_(
    client: AgencyClient,
    ctx: Context,
    out: Output,
    paths: tuple[Path, ...],
    dataset: str | None,
    edition: str | None,
    valid_from_on: str | None,
    request_id: str | None,
) -> int:
    """Import code lists as an agency (导入目录); each file becomes an edition.

    PATHS as for `erxhub catalog check`. Lines that cannot be taken are left out and named, the others are imported.
    Exit code 1 when a line is left out.
    """
    from erxhub.cli.catalog_files import DATASETS
    from erxhub.cli.exits import NEGATIVE, OK
    from erxhub.cli.local_errors import Failed
    from erxhub.policy.pack import china_date
    from erxhub.ports import SystemClock

    files = _read(paths, dataset)
    if request_id is not None and len(files) > 1:
        raise Failed("CLI_REQUEST_ID_OF_FILES", field="--request-id", count=len(files))
    day = valid_from_on or china_date(SystemClock().now_ms()).isoformat()
    summaries = []
    for file in files:
        named = edition or f"{day}-{file.sha256.hex()[:12]}"
        reply = await client.import_catalog(
            dataset=DATASETS[file.dataset],
            edition=named,
            valid_from_on=day,
            file_sha256=file.sha256,
            entries=file.entries,
            source=file.name,
            request_id=request_id,
        )
        lines = _own_lines(file) + _hub_lines(file, reply)
        refused = len(file.faults) + reply.rows_refused
        summaries.append(_summary(file, named, reply.rows_taken, refused, lines))
    return NEGATIVE if _report(summaries, out) else OK


@catalog.command("list", example="erxhub catalog list drugs --prefix XC08\nerxhub catalog list diseases --editions")
@click.argument("dataset", type=click.Choice(DATASET_NAMES))
@click.option("--prefix", default="", help="Only codes that begin so.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="Rows at most.")
@click.option("--editions", is_flag=True, help="The imported editions instead of the rows in force.")
@with_client("agency", "hospital", "pharmacy", "channel", "auditor")
async def list_(
    client: AgencyClient, ctx: Context, out: Output, dataset: str, prefix: str, limit: int, editions: bool
) -> None:
    """The rows of the edition in force, by code (目录查询)."""
    from erxhub.cli.catalog_files import DATASETS
    from erxhub.cli.records import record

    rows: list[dict[str, Any]] = []
    token = ""
    while True:
        reply = await client.list_catalog(
            dataset=DATASETS[dataset], code_prefix=prefix, page_size=min(limit - len(rows), 200), page_token=token
        )
        if editions:
            out.rows([record(one) for one in reply.editions])
            return
        for entry in reply.entries:
            kind = entry.WhichOneof("row")
            if kind is not None:
                rows.append(record(getattr(entry, kind)))
        token = reply.next_page_token
        if not token or len(rows) >= limit:
            break
    if token:
        out.say(f"there are more than {limit}; see --limit and --prefix")
    columns = {"drugs": ("code", "generic_name", "strength", "pack", "charge_class", "prior_pay_ratio", "limits")}
    out.rows(rows, columns.get(dataset, ()) if out.format == "table" else ())


def _read(paths: Sequence[Path], dataset: str | None) -> list[CatalogFile]:
    from erxhub.cli.catalog_files import find_files, read_file

    if not paths:
        paths = (_shared_folder(),)
    files: list[Path] = []
    for path in paths:
        files += find_files(path) if path.is_dir() else [path]
    return [read_file(file, dataset) for file in files]


def _shared_folder() -> Path:
    from erxhub.cli.local_errors import Failed

    folder = Path(os.environ.get(SHARED_VARIABLE) or "../shared") / "data"
    if not folder.is_dir():
        raise Failed("CLI_CATALOG_SHARED", field=SHARED_VARIABLE, path=folder)
    return folder


def _own_lines(file: CatalogFile) -> list[dict[str, Any]]:
    lines = [_line(file, one.line, "file", "refused", one.field, one.message_en, one.message_zh) for one in file.faults]
    lines += [_line(file, one.line, "file", "assumed", one.field, one.message_en, one.message_zh) for one in file.notes]
    return lines


def _hub_lines(file: CatalogFile, reply: registry_pb2.ImportCatalogResponse) -> list[dict[str, Any]]:
    return [
        _line(file, one.line, "hub", f"refused {one.code}", one.field, one.message_en, one.message_zh)
        for one in reply.refused
    ]


def _line(
    file: CatalogFile, line: int, by: str, verdict: str, field: str, message_en: str, message_zh: str
) -> dict[str, Any]:
    values = (file.name, line, by, verdict, field, message_en, message_zh)
    return dict(zip(_LINE_COLUMNS, values, strict=True))


def _summary(file: CatalogFile, edition: str, taken: int, refused: int, lines: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "file": file.name,
        "dataset": file.dataset,
        "edition": edition,
        "sha256": file.sha256.hex(),
        "lines": file.lines,
        "taken": taken,
        "refused": refused,
        "remarks": sorted(lines, key=lambda line: int(line["line"])),
    }


def _report(summaries: list[dict[str, Any]], out: Output) -> bool:
    """Prints what was taken and refused; returns whether a line was left out."""
    refused = sum(summary["refused"] for summary in summaries)
    if out.format != "table":
        out.rows(summaries)
        return bool(refused)
    lines = [line for summary in summaries for line in summary["remarks"]]
    if lines:
        out.rows(lines, _LINE_COLUMNS)
        click.echo("")
    out.rows(summaries, ("file", "dataset", "edition", "lines", "taken", "refused"))
    taken = sum(summary["taken"] for summary in summaries)
    out.say(f"{taken} lines taken, {refused} refused")
    return bool(refused)
