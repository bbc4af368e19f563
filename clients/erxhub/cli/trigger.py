"""`erxhub trigger`: something happens to an existing object of a sandbox, by its rightful actor (触发)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from erxhub.cli.commands import command
from erxhub.cli.local_errors import Failed
from erxhub.cli.namespaces import with_sandbox

if TYPE_CHECKING:
    from erxhub.cli.context import Context
    from erxhub.cli.output import Output
    from erxhub.client import SandboxClient

OF_PRESCRIPTION: Final = ("cancel-order", "freeze", "unfreeze", "expire-hold", "expire-prescription")
OF_SOMEBODY: Final = (
    "suspend-practitioner",
    "resume-practitioner",
    "suspend-agreement",
    "resume-agreement",
    "pause-person",
    "resume-person",
    "revoke-signing-key",
)
KINDS: Final = OF_PRESCRIPTION + OF_SOMEBODY


@command(
    "trigger",
    example="erxhub trigger cancel-order --rx RX_NO\nerxhub trigger suspend-practitioner --id D330100990001",
)
@click.argument("kind", type=click.Choice(KINDS))
@click.option("--rx", "rx_no", default="", metavar="RX_NO", help="The prescription, where the kind is about one.")
@click.option("--id", "id_", default="", metavar="ID", help="The practitioner, institution or person it is about.")
@with_sandbox
async def trigger(client: SandboxClient, ctx: Context, out: Output, kind: str, rx_no: str, id_: str) -> None:
    """Make something happen now: the patient cancels, the agency freezes or suspends, a deadline passes (触发).

    Of a prescription (--rx): cancel-order, freeze, unfreeze, expire-hold, expire-prescription; the last two move the
    clock. Of a practitioner, institution or person (--id): the others.
    """
    from erxhub.cli.arguments import iso_beijing
    from erxhub.v1 import sandbox_pb2

    option, given, other = ("--rx", rx_no, id_) if kind in OF_PRESCRIPTION else ("--id", id_, rx_no)
    if not given or other:
        raise Failed("CLI_TRIGGER_OF", field=option, kind=kind, option=option)
    number = sandbox_pb2.TriggerKind.Value(f"TRIGGER_KIND_{kind.replace('-', '_').upper()}")
    reply = await client.trigger(number, rx_no=rx_no, id=id_)
    out.object({"kind": kind, "now": iso_beijing(reply.now_ms), "events": list(reply.events)})
