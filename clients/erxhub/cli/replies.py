"""What the business verbs share: the ids they print beside a reply, lists that run over pages, typed options.

Owns no verb, and the request ids of all of them. It must never keep anything between two commands: every verb prints
what the next one needs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from erxhub.cli.output import Output

PAGE_ROWS: Final = 200
"""The hub's largest page."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


def show(out: Output, reply: Message, **named: Any) -> None:
    """A reply, after what the caller knows of it; the table leaves out the receipt, which is for machines."""
    from erxhub.cli.records import record

    data = {**named, **record(reply)}
    if out.format == "table":
        data.pop("receipt", None)
    out.object(data)


def show_rows(out: Output, rows: list[dict[str, Any]], columns: Sequence[str]) -> None:
    """A list; the table has these columns and says nested statuses in words."""
    if out.format == "table":
        rows = [{name: _in_words(row.get(name)) for name in columns} for row in rows]
    out.rows(rows, columns=columns)


def _in_words(value: Any) -> Any:
    """{"rx": "EFFECTIVE", "undo_requested": True} as "EFFECTIVE undo_requested"; anything else as it is."""
    if not isinstance(value, Mapping):
        return value
    return " ".join(name if found is True else str(found) for name, found in value.items() if found)


async def rows_of(fetch: Callable[..., Awaitable[Message]], field: str, limit: int) -> list[dict[str, Any]]:
    """The rows of a list from its pages: at most `limit`, all for 0. `fetch` takes page_size and page_token."""
    from erxhub.cli.records import record

    rows: list[dict[str, Any]] = []
    token = ""
    # The size stays the same from page to page: a token belongs to the list that it was given for.
    page_size = min(limit, PAGE_ROWS) if limit else PAGE_ROWS
    while True:
        reply: Any = await fetch(page_size=page_size, page_token=token)
        rows += [record(row) for row in getattr(reply, field)]
        token = reply.next_page_token
        if not token or (limit and len(rows) >= limit):
            return rows[:limit] if limit else rows


def signed_request_id_option(function: _Function) -> _Function:
    """`--request-id ID` of a verb that signs: a second signature is another request, so the id repeats nothing."""
    return click.option(
        "--request-id", metavar="ID", help="Choose the request's id (报文ID), e.g. to reverse it later."
    )(function)


def limit_option(function: _Function) -> _Function:
    """`--limit N`; 0 for everything."""
    return click.option(
        "--limit", type=click.IntRange(min=0), default=50, show_default=True, help="Rows at most; 0 for all of them."
    )(function)


def watch_options(function: _Function) -> _Function:
    """`--cursor`, `--from-start`, `--count`: where a watch begins, and when it ends."""
    options = (
        click.option("--cursor", default="", help="Go on after the message that had this cursor."),
        click.option("--from-start", is_flag=True, help="Begin with the first step ever, not with the next one."),
        click.option("--count", type=click.IntRange(min=0), default=0, help="End after so many; 0 never ends."),
    )
    for option in reversed(options):
        function = option(function)
    return function


async def watch(messages: AsyncIterator[Any], out: Output, count: int) -> None:
    """Prints the messages of a watch as they come, `count` of them or (0) until Ctrl-C."""
    import asyncio

    from erxhub.cli.records import record

    shown = 0
    try:
        async for message in messages:
            out.event(record(message))
            shown += 1
            if shown == count:
                return
    except asyncio.CancelledError:
        # Ctrl-C cancels the command's task; it is how a person ends a watch, and no failure.
        return
