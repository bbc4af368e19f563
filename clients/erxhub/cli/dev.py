"""`erxhub dev`: a hub, its trust domain and a seeded world in one process.

Owns the folder that a dev hub lives in: `pki/` (trust domain), `keys/` (the hub's own), `contexts.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from erxhub.cli.commands import command

if TYPE_CHECKING:
    from erxhub.cli.context import Contexts
    from erxhub.crypto.ca import TrustDomain
    from erxhub.keys import HubKeys
    from erxhub.ledger.store import Store
    from erxhub.seed import SeedWorld

TRUST_DOMAIN: Final = "erxhub.test"
HUB_ID: Final = "hub-1"
HOSTS: Final = ("localhost", "127.0.0.1")


@command("dev", example="erxhub dev\nerxhub dev --db demo.db --port 7443")
@click.option("--db", type=click.Path(path_type=Path, dir_okay=False), help="Keep the ledger in this SQLite file.")
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of certificates, keys and contexts. Default: a new temporary one, or PATH-home beside --db PATH.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, show_default=True, help="0: any that is free.")
@click.option(
    "--suite",
    type=click.Choice(["ES256", "EdDSA", "SM2-SM3"]),
    default="ES256",
    show_default=True,
    help="Of the seeded signing keys.",
)
@click.option("--config", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of the hub; repeatable.")
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help='Written when the hub takes calls: {"target": …, "home": …}.',
)
def dev(
    db: Path | None, home: Path | None, port: int, suite: str, settings: tuple[str, ...], ready_file: Path | None
) -> None:
    """Run a seeded hub in this process until Ctrl-C or SIGTERM.

    Without --db everything is gone at the end, except the temporary folder with the certificates. It listens on
    127.0.0.1 only, has its own trust domain, and registers a fictional hospital, pharmacies and persons.
    """
    import asyncio

    asyncio.run(_dev(db, home, port, suite, settings, ready_file))


async def _dev(
    db: Path | None, home: Path | None, port: int, suite: str, settings: tuple[str, ...], ready_file: Path | None
) -> None:
    from erxhub.cli.hosting import configured, started, stop_signal, until_stopped, write_ready
    from erxhub.cli.keys import receipt_pins
    from erxhub.cli.seeding import save_contexts
    from erxhub.config import Config
    from erxhub.ports import SystemClock
    from erxhub.rpc.server import FixedIdentity, ServerIdentity
    from erxhub.seed import identity

    stopping = stop_signal()
    now_ms = SystemClock().now_ms()
    home = _home(db, home)
    trust = _trust_domain(home / "pki", now_ms)
    keys = _hub_keys(home / "keys")
    config = configured(Config(trust_domain=trust.trust_domain, hub_id=HUB_ID), settings)
    served = identity(trust, "hub", HUB_ID, now_ms, hosts=HOSTS, directory=home / "pki")
    fixed = FixedIdentity(ServerIdentity(served.cert_pem, served.key_pem, served.ca_pem))
    hub = await started(await _store(db), fixed, keys, f"127.0.0.1:{port}", config)
    target = f"localhost:{hub.port}"
    try:
        world = await _seed(target, trust, home / "pki", suite)
        contexts = save_contexts(home, world, target, receipt_pins(keys, home / "keys"))
        write_ready(ready_file, target=target, home=str(home))
        _introduce(contexts, world, target, home, db)
    except BaseException:
        await hub.stop()
        raise
    await until_stopped(hub, stopping)
    click.echo("stopped", err=True)


def _home(db: Path | None, home: Path | None) -> Path:
    import tempfile

    if home is None and db is None:
        return Path(tempfile.mkdtemp(prefix="erxhub-dev-"))
    if home is None:
        assert db is not None
        home = db.with_name(f"{db.name}-home")
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    return home.resolve()


def _trust_domain(folder: Path, now_ms: int) -> TrustDomain:
    from erxhub.cli.exits import USAGE, Failed
    from erxhub.crypto.ca import TrustDomain, TrustDomainError

    try:
        if (folder / "ca.pem").exists():
            return TrustDomain.open(folder)
        return TrustDomain.init(folder, TRUST_DOMAIN, now_ms)
    except TrustDomainError as error:
        raise Failed(str(error), USAGE) from None


def _hub_keys(folder: Path) -> HubKeys:
    from erxhub.cli.exits import USAGE, Failed
    from erxhub.keys import HubKeys, HubKeysError
    from erxhub.ports import SystemIds

    try:
        return HubKeys.load(folder) if folder.exists() else HubKeys.init(folder, SystemIds())
    except HubKeysError as error:
        raise Failed(str(error), USAGE) from None


async def _store(db: Path | None) -> Store:
    from erxhub.cli.stores import open_store
    from erxhub.ledger.memory import MemoryStore

    return MemoryStore() if db is None else await open_store(db)


async def _seed(target: str, trust: TrustDomain, pki: Path, suite: str) -> SeedWorld:
    from erxhub.client import AgencyClient, ClientIdentity
    from erxhub.ports import SystemClock
    from erxhub.seed import identity, register_world
    from erxhub.seed.world import AREA

    now_ms = SystemClock().now_ms()
    agency = identity(trust, "agency", AREA, now_ms, directory=pki)
    caller = ClientIdentity(agency.ca_pem, agency.cert_pem, agency.key_pem)
    async with AgencyClient.connect(target, caller) as client:
        return await register_world(client, trust, now_ms, suite, directory=pki)


def _introduce(contexts: Contexts, world: SeedWorld, target: str, home: Path, db: Path | None) -> None:
    from erxhub.cli.output import Output
    from erxhub.cli.seeding import caller_rows, signer_rows

    out = Output()
    where = f"the ledger is in {db}" if db else "in memory: gone when it stops"
    click.echo(f"erxhub dev listens on {target} (mTLS), {where}\nFolder: {home}\n")
    out.rows(caller_rows(contexts, world), title="Seeded identities")
    click.echo("")
    out.rows(signer_rows(home, world), title="Signing keys")
    click.echo("")
    pins = next(iter(contexts.by_name.values())).receipt_keys
    out.rows([{"receipt key": key_id, "public (Ed25519)": key} for key_id, key in pins.items()])
    click.echo(
        "\nTry in another terminal:\n"
        f"  export ERXHUB_HOME={home}\n"
        "  erxhub doctor\n"
        "  erxhub registry list institutions\n"
        f"  erxhub voucher activate {world.person_no}\n"
    )
