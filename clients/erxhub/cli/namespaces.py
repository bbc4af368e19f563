"""What the sandbox verbs have in common: which namespace they mean, and the contexts of its callers.

Owns the names and places of those contexts: `<namespace>-<caller>`, with their certificates and signing keys under
`namespaces/<namespace>/` in ERXHUB_HOME. Must never: write outside that folder, or remove anything from elsewhere.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from erxhub.cli.session import with_client

if TYPE_CHECKING:
    from erxhub.cli.context import Context, Contexts
    from erxhub.cli.output import Output
    from erxhub.client import ClientIdentity, SandboxClient
    from erxhub.v1 import sandbox_pb2

NAMESPACE_VARIABLE: Final = "ERXHUB_NAMESPACE"
CALLERS: Final = ("hospital", "pharmacy", "channel", "agency", "auditor")
"""The kinds of the fictional world's parties that call with a certificate of their own."""
CASE_REASON: Final = "sandbox: trying things out"


def namespace_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`-n NAME`; the command gets `namespace`, None for the context's."""
    return click.option(
        "-n",
        "--namespace",
        envvar=NAMESPACE_VARIABLE,
        metavar="NAME",
        help="The namespace; by default the context's, which `erxhub dev` calls default.",
    )(function)


def with_sandbox(function: Callable[..., Awaitable[int | None]]) -> Callable[..., None]:
    """Turns `async def verb(client, ctx, out, **options)` into a command of the sandbox's operator.

    `client` is a SandboxClient that means the namespace of -n; the rest is as with `with_client`.
    """

    @namespace_option
    @with_client("sandbox")
    @functools.wraps(function)
    async def command(
        client: SandboxClient, ctx: Context, out: Output, *, namespace: str | None, **options: Any
    ) -> int | None:
        client.namespace = namespace or client.namespace
        return await function(client, ctx, out, **options)

    return command


def clock_word(namespace: sandbox_pb2.Namespace) -> str:
    """ "standing" or "running"."""
    from erxhub.v1 import sandbox_pb2

    return "running" if namespace.clock_mode == sandbox_pb2.CLOCK_MODE_RUNNING else "standing"


def namespace_record(namespace: sandbox_pb2.Namespace) -> dict[str, Any]:
    """A namespace as it is printed."""
    from erxhub.cli.arguments import iso_beijing
    from erxhub.cli.records import enum_word
    from erxhub.v1 import sandbox_pb2

    return {
        "namespace": namespace.name,
        "target": namespace.target,
        "trust_domain": namespace.trust_domain,
        "owner": namespace.owner,
        "clock": clock_word(namespace),
        "now": iso_beijing(namespace.now_ms),
        "seed": namespace.seed,
        "profile": (enum_word(sandbox_pb2.FaultProfile.DESCRIPTOR, namespace.profile) or "").lower(),
        "suite": namespace.suite,
        "entries": namespace.entries,
        "exchanges": namespace.exchanges,
        "exchanges_kept": namespace.exchanges_kept,
        "fault_rules": namespace.fault_rules,
        "snapshots": list(namespace.snapshots),
        "database": namespace.database,
    }


def folder_of(contexts: Contexts, namespace: str) -> Path:
    """Where the certificates and keys of a namespace are kept."""
    return contexts.folder / "namespaces" / namespace


def write_identity(folder: Path, identity: ClientIdentity) -> None:
    """ca.pem, cert.pem and key.pem; the key for the owner's eyes only."""
    write_private(folder / "key.pem", identity.key_pem or b"")
    (folder / "cert.pem").write_bytes(identity.cert_pem or b"")
    (folder / "ca.pem").write_bytes(identity.ca_pem)


def write_private(path: Path, content: bytes) -> None:
    """A file that only its owner reads, in a folder that only its owner enters."""
    import os

    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)


def write_signers(folder: Path, world: sandbox_pb2.GetWorldResponse) -> dict[str, dict[str, Path]]:
    """The signing keys of a world as files: institution → signer → path of the private key."""
    written: dict[str, dict[str, Path]] = {}
    for signer in world.signers:
        place = folder / signer.institution_code / signer.subject_code
        write_private(place / "key.pem", signer.private_key_pem)
        (place / "cert.pem").write_bytes(signer.certificate_pem)
        written.setdefault(signer.institution_code, {})[signer.subject_code] = place / "key.pem"
    return written


def context_in(
    operator: Context, namespace: sandbox_pb2.Namespace, name: str, role: str, id_: str, folder: Path, **more: Any
) -> Context:
    """A context of a caller of the namespace whose certificate lies in `folder`."""
    from erxhub.cli.context import Context

    return Context(
        name=name,
        target=namespace.target,
        role=role,
        id=id_,
        ca=folder / "ca.pem",
        cert=folder / "cert.pem",
        key=folder / "key.pem",
        server_name=operator.server_name,
        case_reason=CASE_REASON if role == "auditor" else "",
        sandbox=operator.name,
        namespace=namespace.name,
        **more,
    )


async def save_callers(
    client: SandboxClient, contexts: Contexts, operator: Context, namespace: sandbox_pb2.Namespace
) -> list[Context]:
    """Mints a certificate for every caller of the namespace's world and writes their contexts."""
    world = await client.get_world(namespace=namespace.name)
    folder = folder_of(contexts, namespace.name)
    signers = write_signers(folder / "signing", world)
    receipt_keys = {key_id: key.hex() for key_id, key in world.receipt_keys.items()}
    saved, met = [], Counter[str]()
    for party in world.parties:
        if party.kind not in CALLERS:
            continue
        met[party.kind] += 1
        place = folder / "tls" / party.kind / party.id
        write_identity(place, await client.mint_identity(party.kind, party.id, namespace=namespace.name))
        name = f"{namespace.name}-{party.kind}{met[party.kind] if met[party.kind] > 1 else ''}"
        keys = {"signing_keys": signers.get(party.id, {}), "receipt_keys": receipt_keys}
        contexts.by_name[name] = context_in(operator, namespace, name, party.kind, party.id, place, **keys)
        saved.append(contexts.by_name[name])
    contexts.save()
    return saved


def forget(contexts: Contexts, operator: Context, namespace: str) -> list[str]:
    """Removes the contexts of a namespace that is gone, and the folder of their keys; returns their names."""
    import shutil

    names = [
        name
        for name, one in contexts.by_name.items()
        if one.namespace == namespace and one.sandbox == operator.name and one.name != operator.name
    ]
    for name in names:
        del contexts.by_name[name]
    if contexts.current in names:
        contexts.current = ""
    contexts.save()
    shutil.rmtree(folder_of(contexts, namespace), ignore_errors=True)
    return names
