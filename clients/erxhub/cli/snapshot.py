"""`erxhub snapshot`: states of a sandbox's namespace to come back to (快照)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from erxhub.cli.commands import group
from erxhub.cli.namespaces import with_sandbox

if TYPE_CHECKING:
    from erxhub.cli.context import Context
    from erxhub.cli.output import Output
    from erxhub.client import SandboxClient


@group("snapshot", example="erxhub snapshot save before-settlement")
def snapshot() -> None:
    """Keep the state of a namespace under a name, and come back to it (快照).

    What follows a load is what would have followed the save: the same calls give the same ledger.
    """


@snapshot.command("save", example="erxhub snapshot save before-settlement")
@click.argument("name")
@with_sandbox
async def save(client: SandboxClient, ctx: Context, out: Output, name: str) -> None:
    """Keep the present state: ledger, clock, draws, fault counters (保存)."""
    from erxhub.cli.namespaces import namespace_record

    out.object(namespace_record(await client.save_snapshot(name)))


@snapshot.command("load", example="erxhub snapshot load before-settlement")
@click.argument("name")
@with_sandbox
async def load(client: SandboxClient, ctx: Context, out: Output, name: str) -> None:
    """Come back to a kept state (恢复)."""
    from erxhub.cli.namespaces import namespace_record

    out.object(namespace_record(await client.load_snapshot(name)))


@snapshot.command("list", example="erxhub snapshot list")
@with_sandbox
async def list_(client: SandboxClient, ctx: Context, out: Output) -> None:
    """The names that are kept (列表)."""
    found = await client.get_namespace()
    out.rows([{"namespace": found.name, "snapshot": name} for name in found.snapshots], ("namespace", "snapshot"))
