"""`erxhub serve`: a hub with keys, certificates and a database of its operator.

Must never: make a key, a certificate or anybody's registration; `erxhub ca`, `keys` and `registry` do.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from erxhub.cli.commands import command
from erxhub.cli.stores import database_option

if TYPE_CHECKING:
    from erxhub.config import Config
    from erxhub.keys import HubKeys
    from erxhub.rpc.server import IdentityFiles

_File = click.Path(path_type=Path, dir_okay=False, exists=True)


@command(
    "serve",
    example="erxhub serve --db hub.db --keys keys --cert pki/tls/hub/hub-1/cert.pem --key pki/tls/hub/hub-1/key.pem "
    "--ca pki/ca.pem --address 0.0.0.0:7443 --trust-domain example.org",
)
@database_option
@click.option(
    "--keys",
    "keys_folder",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="The hub's own keys, as `erxhub keys init` makes them.",
)
@click.option("--cert", required=True, type=_File, help="The server's certificate (PEM).")
@click.option("--key", required=True, type=_File, help="Its private key (PEM).")
@click.option("--ca", required=True, type=_File, help="The authority whose certificates are callers (PEM).")
@click.option("--address", default="127.0.0.1:7443", show_default=True, metavar="HOST:PORT")
@click.option("--trust-domain", required=True, metavar="NAME", help="Callers are spiffe://NAME/<role>/<id>.")
@click.option("--hub-id", default="hub-1", show_default=True, metavar="ID", help="This process among the hubs.")
@click.option("--origin", metavar="NAME", help="The ledger's name in receipts; by default <trust domain>/ledger.")
@click.option("--config", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of the hub; repeatable.")
@click.option(
    "--log-level",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]),
    default="INFO",
    show_default=True,
)
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help='Written when the hub takes calls: {"target": …, "pid": …}.',
)
def serve(
    db: str,
    keys_folder: Path,
    cert: Path,
    key: Path,
    ca: Path,
    address: str,
    trust_domain: str,
    hub_id: str,
    origin: str | None,
    settings: tuple[str, ...],
    log_level: str,
    ready_file: Path | None,
) -> None:
    """Run a hub until SIGTERM, which lets calls in flight end.

    Logs are JSON lines on stderr and hold no personal data. Certificate files that change are read again by themselves,
    at the next handshake.
    """
    import asyncio

    from erxhub.cli.exits import USAGE, Failed
    from erxhub.cli.hosting import configured, log_to_stderr
    from erxhub.config import Config
    from erxhub.keys import HubKeys, HubKeysError
    from erxhub.rpc.server import IdentityFiles

    log_to_stderr(log_level)
    try:
        keys = HubKeys.load(keys_folder)
        identity = IdentityFiles(cert, key, ca)
    except HubKeysError as error:
        raise Failed(str(error), USAGE) from None
    except (OSError, ValueError) as error:
        raise Failed(f"the server's certificate: {error}", USAGE) from None
    config = Config(trust_domain=trust_domain, hub_id=hub_id, origin=origin or f"{trust_domain}/ledger")
    asyncio.run(_serve(db, keys, identity, address, configured(config, settings), ready_file))


async def _serve(
    db: str, keys: HubKeys, identity: IdentityFiles, address: str, config: Config, ready_file: Path | None
) -> None:
    import os

    from erxhub.cli.hosting import started, stop_signal, until_stopped, write_ready
    from erxhub.cli.stores import open_store

    stopping = stop_signal()
    hub = await started(await open_store(db), identity, keys, address, config)
    write_ready(ready_file, target=f"{address.rpartition(':')[0]}:{hub.port}", pid=os.getpid())
    await until_stopped(hub, stopping)
