"""`erxhub trace`: one prescription's whole chain, from diagnosis to delivery, as an auditor (全流程追溯).

Owns the verb and its verdict. It must never soften it: the exit code is 0 only for a chain that is complete and, when
asked for, verified.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from erxhub.cli.commands import command
from erxhub.cli.exits import NEGATIVE, OK
from erxhub.cli.session import with_client

if TYPE_CHECKING:
    from erxhub.cli.context import Context
    from erxhub.cli.output import Output
    from erxhub.client import AuditorClient


@command(
    "trace",
    example="""\
erxhub trace RX_NO --reason 'case 2026-17' --verify
erxhub trace RX_NO --reason 'case 2026-17' --verify -o json""",
)
@click.argument("rx_no")
@click.option("--reason", help="审计事由; by default the context's. Every trace is recorded, and shown to the patient.")
@click.option("--verify", is_flag=True, help="Verify hashes, links and signatures of the chain too.")
@with_client("auditor")
async def trace(client: AuditorClient, ctx: Context, out: Output, rx_no: str, reason: str | None, verify: bool) -> int:
    """Trace one prescription through its four stages (诊疗 → 处方 → 交易 → 配送).

    Exit code 0 only if the chain is complete (GREEN or CLOSED), or its content was erased after its retention (ERASED),
    and, with --verify, verified; 1 otherwise.
    """
    from erxhub.cli.records import finding_record, trace_record
    from erxhub.cli.trace_view import render_trace

    reply = await client.trace(rx_no=rx_no, verify=verify, case_reason=reason)
    traced = trace_record(reply, verify=verify)
    if out.format == "table":
        # The width is fixed: what a terminal shows is what a file or a ticket shows.
        click.echo(render_trace(traced, colour=in_colour()), nl=False)
    else:
        out.object(traced)
    for finding in map(finding_record, reply.findings):
        out.say(f"{finding['stream']}/{finding['version']}: {finding['reason']}")
    is_proven = traced["verified"] is True or not verify
    is_in_order = traced["complete"] or traced["light"] == "ERASED"
    return OK if is_in_order and is_proven else NEGATIVE


def in_colour() -> bool:
    """On a terminal that takes it, unless NO_COLOR is set to anything (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
