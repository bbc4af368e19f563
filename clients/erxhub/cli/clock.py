"""`erxhub clock`: the time of a sandbox's namespace (时钟). It moves when it is told, and only forward."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from erxhub.cli.arguments import DurationType, InstantType
from erxhub.cli.commands import group
from erxhub.cli.local_errors import Failed
from erxhub.cli.namespaces import with_sandbox

if TYPE_CHECKING:
    from erxhub.cli.context import Context
    from erxhub.cli.output import Output
    from erxhub.client import SandboxClient


@group("clock", example="erxhub clock advance 2h")
def clock() -> None:
    """The clock of a sandbox's namespace (时钟): what it shows, and moving it forward.

    Commands of the namespace's contexts date their signatures by it.
    """


@clock.command("show", example="erxhub clock show")
@with_sandbox
async def show(client: SandboxClient, ctx: Context, out: Output) -> None:
    """What the clock shows, whether it stands or runs, and how far it is from this machine's."""
    from erxhub.cli.arguments import iso_beijing
    from erxhub.cli.namespaces import clock_word
    from erxhub.client.fault_rules import duration_text

    found = await client.get_namespace()
    # To the second: the rest is the way of the call, and no difference of the clocks.
    ahead_ms = round((found.now_ms - client.connection.environment.now_ms()) / 1000) * 1000
    out.object(
        {
            "namespace": found.name,
            "now": iso_beijing(found.now_ms),
            "clock": clock_word(found),
            "ahead": duration_text(ahead_ms),
        }
    )


@clock.command(
    "advance",
    example="erxhub clock advance 2h\nerxhub clock advance --to 2027-01-01T08:00:00\nerxhub clock advance --next",
)
@click.argument("by_ms", metavar="[DURATION]", required=False, type=DurationType())
@click.option("--to", "until_ms", type=InstantType(), help="To this instant instead (Beijing time where no offset).")
@click.option("--next", "next_timer", is_flag=True, help="To the earliest deadline that is set instead.")
@with_sandbox
async def advance(
    client: SandboxClient, ctx: Context, out: Output, by_ms: int | None, until_ms: int | None, next_timer: bool
) -> None:
    """Move the clock forward by a duration (w, d, h, m, s, ms) and print what the passing of time wrote (拨快时钟)."""
    from erxhub.cli.arguments import iso_beijing
    from erxhub.cli.records import record

    if (by_ms is not None) + (until_ms is not None) + next_timer != 1:
        raise Failed("CLI_OPTION_ONE_OF", field="DURATION, --to, --next", options="DURATION, --to, --next")
    if by_ms is not None and by_ms < 0:
        raise Failed("CLI_CLOCK_BACK", field="DURATION")
    reply = await client.advance_clock(by_ms=by_ms, until_ms=until_ms, next_timer=next_timer)
    fired = [record(timer) for timer in reply.fired]
    if out.format != "table":
        out.object({"namespace": client.namespace, "now": iso_beijing(reply.now_ms), "fired": fired})
        return
    out.say(f"{client.namespace}: {iso_beijing(reply.now_ms)}, {len(fired)} deadlines passed")
    if fired:
        out.rows(fired, ("position", "recorded_at", "event", "rx_no"))
