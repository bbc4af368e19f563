"""`erxhub audit`: verify the whole ledger, and find the chains of a case (审计).

Owns the words of these verbs. It must never call without a reason of its own or the context's; the hub refuses it.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

import click

from erxhub.cli.commands import group
from erxhub.cli.exits import NEGATIVE, OK
from erxhub.cli.replies import limit_option, rows_of, show_rows
from erxhub.cli.session import with_client

if TYPE_CHECKING:
    from erxhub.cli.context import Context
    from erxhub.cli.output import Output
    from erxhub.client import AuditorClient

LIST_COLUMNS: Final = ("rx_no", "hospital_code", "prescribed_at")
REASON_HELP: Final = "审计事由; by default the context's."


@group("audit", example="erxhub audit verify --reason 'case 2026-17'")
def audit() -> None:
    """Verify the ledger and find chains, as an auditor (审计). One chain: `erxhub trace`."""


@audit.command("verify", example="erxhub audit verify --reason 'case 2026-17'")
@click.option("--reason", help=REASON_HELP)
@with_client("auditor")
async def verify(client: AuditorClient, ctx: Context, out: Output, reason: str | None) -> int:
    """Verify the hub's whole ledger, also what lies beside entries; exit code 1 when anything is broken (账本校验)."""
    from erxhub.cli.records import finding_record

    reply = await client.verify_ledger(case_reason=reason)
    findings = [finding_record(finding) for finding in reply.findings]
    out.object(
        {
            "verified": reply.verified,
            "entries": reply.entries,
            "streams": reply.streams,
            "as_of": reply.as_of_position,
            "findings": findings,
        }
    )
    return OK if reply.verified and not findings else NEGATIVE


@audit.command("find", example="erxhub audit find --institution P33010099101 --reason 'case 2026-17'")
@click.option("--rx", "rx_no", metavar="RX_NO", help="The prescription with this number.")
@click.option("--encounter", "encounter_id", metavar="ID", help="The prescriptions of this visit.")
@click.option("--institution", "institution_code", metavar="CODE", help="Those that this institution had to do with.")
@click.option("--trace-code", metavar="CODE", help="The one with which this pack was sold (药品追溯码).")
@click.option("--reason", help=REASON_HELP)
@limit_option
@with_client("auditor")
async def find(
    client: AuditorClient,
    ctx: Context,
    out: Output,
    rx_no: str | None,
    encounter_id: str | None,
    institution_code: str | None,
    trace_code: str | None,
    reason: str | None,
    limit: int,
) -> None:
    """Find prescriptions; exactly one criterion (查找链条)."""
    criteria = (rx_no, encounter_id, institution_code, trace_code)
    if sum(criterion is not None for criterion in criteria) != 1:
        raise click.UsageError("name exactly one of --rx, --encounter, --institution and --trace-code")
    fetch = functools.partial(
        client.find,
        rx_no=rx_no,
        encounter_id=encounter_id,
        institution_code=institution_code,
        trace_code=trace_code,
        case_reason=reason,
    )
    show_rows(out, await rows_of(fetch, "chains", limit), LIST_COLUMNS)
