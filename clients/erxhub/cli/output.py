"""How a command prints: data on stdout as a table, JSON or JSON lines; everything for a person's eye on stderr.

Owns the three formats. Must never: mix a message into the data, or import rich before a table goes to a terminal.
"""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from google.protobuf.message import Message

FORMATS: Final = ("table", "json", "jsonl")
_Function = TypeVar("_Function", bound=Callable[..., Any])
_ERROR_LINES: Final = (
    ("text_en", ""),
    ("text_zh", ""),
    ("field", "field: "),
    ("rule_ids", "rules: "),
    ("needs", "needs: "),
    ("legal_actions", "possible now: "),
    ("details", "details: "),
    ("request_id", "request id: "),
)


class Output:
    """Where one command prints. `format` is "table", "json" or "jsonl"."""

    def __init__(self, format: str = "table") -> None:  # noqa: A002 — it is called so everywhere else
        self.format = format

    def object(self, data: Mapping[str, Any], title: str = "") -> None:
        """One thing: a JSON object, or a table of two columns. Nested values are flattened in the table."""
        if self.format != "table":
            self._json(data)
            return
        rows = [(name, _cell(value)) for name, value in _flat(data)]
        self._table(("field", "value"), rows, title, headed=False)

    def rows(self, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = (), title: str = "") -> None:
        """Many things: a JSON array, one JSON object a line, or a table with `columns` (by default all keys)."""
        found = list(rows)
        if self.format == "json":
            self._json(found)
        elif self.format == "jsonl":
            for row in found:
                self._json(row)
        else:
            names = tuple(columns) or tuple(dict.fromkeys(name for row in found for name in row))
            self._table(names, [tuple(_cell(row.get(name)) for name in names) for row in found], title)

    def event(self, data: Mapping[str, Any]) -> None:
        """One thing of an endless row: a line at once, a JSON object in both JSON formats."""
        if self.format == "table":
            click.echo("  ".join(f"{name}={_cell(value)}" for name, value in _flat(data) if value not in ("", None)))
        else:
            click.echo(json.dumps(data, ensure_ascii=False, default=_unknown))
        sys.stdout.flush()

    def reply(self, message: Message, title: str = "") -> None:
        """A reply as an object; the table leaves out the receipt, which is for machines."""
        from erxhub.cli.records import record

        data = record(message)
        if self.format == "table":
            data.pop("receipt", None)
        self.object(data, title)

    def say(self, text: str) -> None:
        """A message for whoever watches, on stderr."""
        click.echo(text, err=True)

    def _json(self, data: Any) -> None:
        indent = 1 if self.format == "json" else None
        click.echo(json.dumps(data, ensure_ascii=False, indent=indent, default=_unknown))

    def _table(self, names: Sequence[str], rows: Sequence[Sequence[str]], title: str, *, headed: bool = True) -> None:
        if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
            _rich_table(names, rows, title, headed=headed)
            return
        if title:
            click.echo(title)
        lines = [tuple(names), *rows] if headed else list(rows)
        # The last column is not padded: its lines end where their text ends.
        widths = [max((_width(line[place]) for line in lines), default=0) for place in range(len(names) - 1)]
        for line in lines:
            padded = [text + " " * (width - _width(text)) for text, width in zip(line[:-1], widths, strict=True)]
            click.echo("  ".join([*padded, *line[-1:]]).rstrip())


def say_error(data: Mapping[str, Any], origin: str, *, as_json: bool) -> None:
    """A failure on stderr: both languages and what to do, or one JSON object. `origin` is where the code is from."""
    if as_json:
        click.echo(json.dumps({"error": data}, ensure_ascii=False), err=True)
        return
    click.echo(f"{data['code']} ({origin})", err=True)
    for name, label in _ERROR_LINES:
        value = data.get(name)
        if value:
            click.echo(f"  {label}{', '.join(value) if isinstance(value, list) else value}", err=True)


def asks_for_json(words: Sequence[str]) -> bool:
    """Whether a command line has `-o json` or `-o jsonl`, in any of the ways to write it, be it right or wrong."""
    json_formats = FORMATS[1:]
    if any(f"{option}{word}" in words for option in ("-o", "--output=") for word in json_formats):
        return True
    return any(option in ("-o", "--output") and word in json_formats for option, word in pairwise(words))


def output_option(function: _Function) -> _Function:
    """`-o table|json|jsonl`; the command gets it as `out: Output`."""
    return click.option(
        "-o",
        "--output",
        "out",
        type=click.Choice(FORMATS),
        default="table",
        show_default=True,
        help="How to print the result.",
        callback=lambda _context, _parameter, value: Output(value),
    )(function)


class NewFile(click.Path):
    """`-o FILE` of a verb whose result is a file; the word of a format is refused, whoever writes it means that."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in FORMATS:
            self.fail(f"here it names what is written; for one that is called so write ./{value}", param, ctx)
        return super().convert(value, param, ctx)


def _unknown(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple) and value and all(isinstance(one, Mapping) for one in value):
            for place, one in enumerate(value, start=1):
                yield from _flat(one, f"{prefix}{name}[{place}].")
        else:
            yield f"{prefix}{name}", value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple) and not any(isinstance(one, Mapping) for one in value):
        return ", ".join(_cell(one) for one in value)
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, ensure_ascii=False, default=_unknown)
    return _unknown(value).replace("\n", " ")


def _width(text: str) -> int:
    """Columns on a terminal: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _rich_table(names: Sequence[str], rows: Sequence[Sequence[str]], title: str, *, headed: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, box=box.SIMPLE, show_header=headed, title_justify="left", pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        # Text, because a value may hold brackets that rich would take for markup.
        table.add_row(*(Text(cell) for cell in row))
    Console(highlight=False).print(table)
