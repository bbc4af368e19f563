"""`erxhub context`: which hub to speak to, and as whom."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from erxhub.cli.commands import group
from erxhub.cli.output import Output, output_option

if TYPE_CHECKING:
    from erxhub.cli.context import Context

_File = click.Path(path_type=Path, dir_okay=False)


@group("context", example="erxhub context add clinic --target hub.example.org:7443 --dir pki/tls/hospital/H33010099901")
def context() -> None:
    """Contexts: a hub's address, a certificate, signing keys, and for an auditor the reason of the case.

    They lie in contexts.json in ERXHUB_HOME (default ~/.erxhub), which holds paths of keys and no key.
    """


@context.command(
    "add",
    example="erxhub context add clinic --target hub.example.org:7443 --dir pki/tls/hospital/H33010099901 "
    "--signing-key D330100990001=doctor.pem",
)
@click.argument("name")
@click.option("--target", required=True, metavar="HOST:PORT", help="The hub.")
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with cert.pem, key.pem and ca.pem, as `erxhub ca issue` writes it.",
)
@click.option("--cert", type=_File, help="Instead of --dir: the certificate.")
@click.option("--key", type=_File, help="Instead of --dir: its private key.")
@click.option("--ca", type=_File, help="Instead of --dir: the hub's authority.")
@click.option("--server-name", default="", metavar="NAME", help="The name in the hub's certificate, if it is another.")
@click.option("--receipt-key", "receipt_keys", multiple=True, metavar="ID=HEX", help="Pin a receipt key; repeatable.")
@click.option(
    "--signing-key",
    "signing_keys",
    multiple=True,
    metavar="CODE=FILE",
    help="Private key (PEM) of a signer, or the folder that `erxhub ca issue --signing` wrote; repeatable.",
)
@click.option("--reason", default="", help="An auditor's case.")
@output_option
def add(
    name: str,
    target: str,
    folder: Path | None,
    cert: Path | None,
    key: Path | None,
    ca: Path | None,
    server_name: str,
    receipt_keys: tuple[str, ...],
    signing_keys: tuple[str, ...],
    reason: str,
    out: Output,
) -> None:
    """Add or replace a context. Role and id are those of its certificate."""
    from erxhub.cli.context import Context, Contexts
    from erxhub.cli.local_errors import Failed
    from erxhub.client import ClientIdentity

    if not re.fullmatch(r".+:[0-9]{1,5}", target):
        raise Failed("CLI_VALUE_FORM", field="--target", value=target, form="HOST:PORT")
    cert, key, ca = (
        given or (folder / f"{file}.pem" if folder else None)
        for file, given in (("cert", cert), ("key", key), ("ca", ca))
    )
    if cert is None or key is None or ca is None:
        raise Failed("CLI_OPTION_SOME_OF", field="--dir", options="--dir, --cert + --key + --ca")
    peer = ClientIdentity.from_files(ca=ca, cert=cert, key=key).peer_name()
    if peer is None:
        raise Failed("CLI_CONTEXT_NO_CALLER", field=str(cert), path=cert)
    contexts = Contexts.load()
    contexts.by_name[name] = Context(
        name=name,
        target=target,
        role=peer.role,
        id=peer.id,
        ca=ca.absolute(),
        cert=cert.absolute(),
        key=key.absolute(),
        server_name=server_name,
        receipt_keys=dict(_receipt_key(text) for text in receipt_keys),
        signing_keys=dict(_signing_key(text) for text in signing_keys),
        case_reason=reason,
    )
    contexts.current = contexts.current or name
    contexts.save()
    out.object(_row(contexts.by_name[name], current=contexts.current == name))


@context.command("use", example="erxhub context use pharmacy")
@click.argument("name")
@output_option
def use(name: str, out: Output) -> None:
    """Make a context the current one."""
    from erxhub.cli.context import Contexts
    from erxhub.cli.local_errors import Failed

    contexts = Contexts.load()
    if name not in contexts.by_name:
        known = ", ".join(contexts.by_name) or "-"
        raise Failed("CLI_CONTEXT_NOT_FOUND", field="NAME", name=name, folder=contexts.folder, known=known)
    contexts.current = name
    contexts.save()
    out.object(_row(contexts.by_name[name], current=True))


@context.command("list", example="erxhub context list")
@output_option
def list_(out: Output) -> None:
    """All contexts of ERXHUB_HOME."""
    from erxhub.cli.context import Contexts

    contexts = Contexts.load()
    rows = [_row(one, current=name == contexts.current) for name, one in contexts.by_name.items()]
    if not rows:
        out.say(f"there is no context in {contexts.folder}; `erxhub dev` makes some, `erxhub context add` one")
    out.rows(rows, ("name", "current", "caller", "target", "signs_for", "reason", "namespace"))


def _row(one: Context, *, current: bool) -> dict[str, Any]:
    return {
        "name": one.name,
        "current": current,
        "caller": f"{one.role}/{one.id}",
        "target": one.target,
        "server_name": one.server_name,
        "certificate": str(one.cert),
        "signs_for": sorted(one.signing_keys),
        "receipt_keys": sorted(one.receipt_keys),
        "reason": one.case_reason,
        "sandbox": one.sandbox,
        "namespace": one.namespace,
    }


def _receipt_key(text: str) -> tuple[str, str]:
    from erxhub.cli.local_errors import Failed

    key_id, _, key = text.partition("=")
    try:
        sizes_fit = (len(bytes.fromhex(key_id)), len(bytes.fromhex(key))) == (16, 32)
    except ValueError:
        sizes_fit = False
    if not sizes_fit:
        raise Failed("CLI_VALUE_FORM", field="--receipt-key", value=text, form="ID=HEX (`erxhub keys list`)")
    return key_id.lower(), key.lower()


def _signing_key(text: str) -> tuple[str, Path]:
    from erxhub.cli.local_errors import Failed

    code, separator, name = text.partition("=")
    path = Path(name) / "key.pem" if Path(name).is_dir() else Path(name)
    if separator and code and not path.is_file():
        raise Failed("CLI_FILE_ABSENT", field="--signing-key", path=path)
    if not separator or not code:
        raise Failed("CLI_VALUE_FORM", field="--signing-key", value=text, form="CODE=FILE")
    return code, path.absolute()
