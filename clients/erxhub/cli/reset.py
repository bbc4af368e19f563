"""`erxhub reset`: a sandbox's namespace as it was when it was created (重置)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from erxhub.cli.commands import command
from erxhub.cli.namespaces import with_sandbox

if TYPE_CHECKING:
    from erxhub.cli.context import Context
    from erxhub.cli.output import Output
    from erxhub.client import SandboxClient


@command("reset", example="erxhub reset\nerxhub reset -n lab")
@with_sandbox
async def reset(client: SandboxClient, ctx: Context, out: Output) -> None:
    """Take a namespace back to the moment of its creation: ledger, clock, seed, faults, traffic (重置).

    Certificates and signing keys stay good.
    """
    from erxhub.cli.namespaces import namespace_record

    out.object(namespace_record(await client.reset()))
