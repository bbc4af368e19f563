"""`erxhub seed`: the fictional world, registered with a hub that runs already, and the contexts to speak as its people.

Owns the names of those contexts. What is in the world belongs to `erxhub.seed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from erxhub.cli.commands import command
from erxhub.cli.session import with_client

if TYPE_CHECKING:
    from erxhub.cli.context import Context, Contexts
    from erxhub.cli.output import Output
    from erxhub.client import AgencyClient
    from erxhub.seed import SeedWorld

CASE_REASON: Final = "dev: trying things out"


@command("seed", example="erxhub seed --pki pki --context agency")
@click.option(
    "--pki",
    required=True,
    type=click.Path(path_type=Path, file_okay=False, exists=True, resolve_path=True),
    help="The trust domain's folder, as `erxhub ca init` makes it.",
)
@click.option(
    "--suite",
    type=click.Choice(["ES256", "EdDSA", "SM2-SM3"]),
    default="ES256",
    show_default=True,
    help="Of the signing keys.",
)
@with_client("agency")
async def seed(client: AgencyClient, ctx: Context, out: Output, pki: Path, suite: str) -> None:
    """Issue, import and register the fictional world of `erxhub dev` at a running hub.

    The agency is that of area 330100. Doing it again changes nothing. The contexts hospital, hospital2, pharmacy,
    pharmacy2, channel and auditor are written beside the agency's.
    """
    from erxhub.cli.local_errors import Failed, failing_as
    from erxhub.crypto.ca import TrustDomain, TrustDomainError
    from erxhub.ports import SystemClock
    from erxhub.seed import register_world
    from erxhub.seed.world import AREA

    if ctx.id != AREA:
        raise Failed("CLI_SEED_AREA", field="--context", name=ctx.name, agency=ctx.id, area=AREA)
    with failing_as("CLI_TRUST_DOMAIN", TrustDomainError, field="--pki", path=pki):
        trust = TrustDomain.open(pki)
        world = await register_world(client, trust, SystemClock().now_ms(), suite, directory=pki)
    contexts = save_contexts(None, world, ctx.target, ctx.receipt_keys, server_name=ctx.server_name)
    out.rows(caller_rows(contexts, world), title="Seeded identities")


def caller_rows(contexts: Contexts, world: SeedWorld) -> list[dict[str, Any]]:
    """What a person wants to know of the seeded contexts."""
    found = [contexts.by_name[name] for name in world.callers]
    return [
        {
            "context": one.name,
            "caller": f"{one.role}/{one.id}",
            "folder": shown_path(contexts.folder, one.cert.parent),
            "signs_for": sorted(one.signing_keys),
        }
        for one in found
    ]


def signer_rows(home: Path, world: SeedWorld) -> list[dict[str, Any]]:
    """Where the seeded signing keys are."""
    return [
        {
            "signer": subject,
            "institution": institution,
            "suite": held.suite,
            "private_key": shown_path(home, held.path / "key.pem") if held.path is not None else "",
        }
        for (subject, institution), held in world.signing_identities.items()
    ]


def shown_path(home: Path, path: Path) -> str:
    """A path as it is shown: relative to the home folder where it lies in it."""
    return str(path.relative_to(home)) if path.is_relative_to(home) else str(path)


def save_contexts(
    home: Path | None,
    world: SeedWorld,
    target: str,
    receipt_keys: Mapping[str, str],
    *,
    server_name: str = "",
    operator: Context | None = None,
) -> Contexts:
    """One context for each seeded caller; the current one becomes `hospital` if there is none.

    `operator` is the context that controls the sandbox of a hub in one; it is written too.
    """
    from erxhub.cli.context import Context, Contexts

    contexts = Contexts.load(home)
    for name, caller in world.callers.items():
        assert caller.path is not None, "a seeded identity in memory has no files"
        contexts.by_name[name] = Context(
            name=name,
            target=target,
            role=caller.role,
            id=caller.id,
            ca=caller.path / "ca.pem",
            cert=caller.path / "cert.pem",
            key=caller.path / "key.pem",
            server_name=server_name,
            receipt_keys=receipt_keys,
            signing_keys={
                subject: held.path / "key.pem"
                for (subject, institution), held in world.signing_identities.items()
                if institution == caller.id and held.path is not None
            },
            case_reason=CASE_REASON if caller.role == "auditor" else "",
            sandbox=operator.name if operator else "",
            namespace=operator.namespace if operator else "",
        )
    if operator is not None:
        contexts.by_name[operator.name] = operator
    contexts.current = contexts.current or "hospital"
    contexts.save()
    return contexts
