"""`erxhub keys`: the hub's own keys. Prints public parts only."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from erxhub.cli.commands import group
from erxhub.cli.output import Output, output_option

if TYPE_CHECKING:
    from erxhub.crypto.suites import SigningKey
    from erxhub.keys import HubKeys

_Function = TypeVar("_Function", bound=Callable[..., Any])


@group("keys", example="erxhub keys init --keys keys")
def keys() -> None:
    """The hub's own keys: receipts, log, and the keyed hashes of the ledger.

    All hubs of one ledger share the hmac keys; the receipt key is each hub's own. So a further hub's keys are a copy
    of the folder with `erxhub keys rotate receipt`. Without its hmac keys a ledger's secrets and personal numbers
    cannot be found any more, so keep a copy.
    """


def _keys_option(function: _Function) -> _Function:
    return click.option(
        "--keys",
        "folder",
        type=click.Path(path_type=Path, file_okay=False),
        help="The folder. Default: keys in ERXHUB_HOME.",
        callback=lambda _context, _parameter, value: value or _default_folder(),
    )(function)


def _default_folder() -> Path:
    from erxhub.cli.context import home

    return home() / "keys"


def _needing_keys(folder: Path) -> AbstractContextManager[None]:
    from erxhub.cli.local_errors import failing_as
    from erxhub.keys import HubKeysError

    return failing_as("CLI_HUB_KEYS", HubKeysError, field="--keys", path=folder)


@keys.command("init", example="erxhub keys init --keys keys")
@_keys_option
@output_option
def init(folder: Path, out: Output) -> None:
    """Make the keys in an empty folder, readable by its owner only."""
    from erxhub.cli.local_errors import failing_as
    from erxhub.keys import HubKeys, HubKeysError
    from erxhub.ports import SystemIds

    with failing_as("CLI_FOLDER_NOT_EMPTY", HubKeysError, field="--keys", path=folder):
        made = HubKeys.init(folder, SystemIds())
    with _needing_keys(folder):
        _print(made, folder, out)


@keys.command("rotate", example="erxhub keys rotate receipt --keys keys")
@click.argument("what", type=click.Choice(["receipt", "log", "hmac"]))
@_keys_option
@output_option
def rotate(what: str, folder: Path, out: Output) -> None:
    """Renew one key. The old one stays good for what it signed; the hub uses the new one after a restart."""
    from erxhub.keys import HubKeys
    from erxhub.ports import SystemIds

    with _needing_keys(folder):
        made = HubKeys.rotate(folder, what, SystemIds())
        _print(made, folder, out)


@keys.command(
    "list", example="erxhub keys list --keys keys -o json\nerxhub keys list --keys keys --origin example.org/ledger"
)
@_keys_option
@click.option(
    "--origin", metavar="NAME", help="The ledger's name: show the log keys as witnesses and policies take them (vkey)."
)
@output_option
def list_(folder: Path, origin: str | None, out: Output) -> None:
    """The public parts: pin the receipt keys (`erxhub context add … --receipt-key ID=HEX`)."""
    from erxhub.keys import HubKeys

    with _needing_keys(folder):
        held = HubKeys.load(folder)
        if origin is None:
            _print(held, folder, out)
        else:
            out.rows(_vkeys(held, folder, origin), ("key", "id", "vkey", "in_use"))


def receipt_pins(held: HubKeys, folder: Path) -> dict[str, str]:
    """Every receipt key that the hub ever used, key id to the public key in hexadecimal: old receipts stay good."""
    return {one.key_id: one.public_key.hex() for one in (*_retired("receipt", folder), held.receipt)}


def _vkeys(held: HubKeys, folder: Path, origin: str) -> list[dict[str, Any]]:
    from erxhub.cli.local_errors import Failed
    from erxhub.proof.notes import ED25519, NoteKey, valid_name

    if not valid_name(origin):
        raise Failed("CLI_ORIGIN", field="--origin", origin=origin)
    return [
        {
            "key": "log",
            "id": one.key_id,
            "vkey": NoteKey(origin, ED25519, one.public_key).vkey,
            "in_use": one is held.log,
        }
        for one in (held.log, *_retired("log", folder))
    ]


def _retired(kind: str, folder: Path) -> list[SigningKey]:
    from erxhub.crypto.suites import SigningKey

    return [SigningKey.from_pem(path.read_bytes()) for path in sorted(folder.glob(f"{kind}-*.old.pem"))]


def _print(held: HubKeys, folder: Path, out: Output) -> None:
    rows: list[dict[str, Any]] = []
    for kind, current in (("receipt", held.receipt), ("log", held.log)):
        rows += [
            {"key": kind, "id": one.key_id, "public": one.public_key.hex(), "in_use": one is current}
            for one in (current, *_retired(kind, folder))
        ]
    newest = max(held.hmac_keys)
    rows += [
        {"key": "hmac", "id": str(version), "public": "", "in_use": version == newest}
        for version in sorted(held.hmac_keys)
    ]
    out.rows(rows, ("key", "id", "public", "in_use"))
