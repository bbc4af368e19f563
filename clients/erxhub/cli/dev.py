"""`erxhub dev`: a sandbox on this machine, with a seeded world, its certificates and contexts.

Owns the folder that it lives in: `pki/` (trust domain), `keys/` (the hub's own), `contexts.json`.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from erxhub.cli.commands import command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from erxhub.cli.context import Context, Contexts
    from erxhub.keys import HubKeys
    from erxhub.seed import SeedWorld
    from erxhub.testing import RunningSandbox

OPERATOR_CONTEXT: Final = "sandbox"


@command("dev", example="erxhub dev\nerxhub dev --db demo.db --port 7443 --control-port 7444")
@click.option("--db", type=click.Path(path_type=Path, dir_okay=False), help="Keep the ledger in this SQLite file.")
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of certificates, keys and contexts. Default: a new temporary one, or PATH-home beside --db PATH.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, show_default=True, help="0: any that is free.")
@click.option(
    "--control-port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default=True,
    help="Where `erxhub sandbox`, clock, fault … call; 0: any that is free.",
)
@click.option(
    "--suite",
    type=click.Choice(["ES256", "EdDSA", "SM2-SM3"]),
    default="ES256",
    show_default=True,
    help="Of the seeded signing keys.",
)
@click.option(
    "--profile",
    type=click.Choice(["dev", "strict", "chaos"]),
    default="dev",
    show_default=True,
    help="Faults to begin with: none, what every client must bear, or everything.",
)
@click.option("--config", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of the hub; repeatable.")
@click.option(
    "--until-eof",
    is_flag=True,
    help="Stop when standard input ends, too: for a program that starts it, and may be killed itself.",
)
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help='Written when the hub takes calls: {"target": …, "control_target": …, "home": …, "operator": …}.',
)
def dev(
    db: Path | None,
    home: Path | None,
    port: int,
    control_port: int,
    suite: str,
    profile: str,
    settings: tuple[str, ...],
    until_eof: bool,
    ready_file: Path | None,
) -> None:
    """Run a sandbox in this process until Ctrl-C or SIGTERM: a seeded hub, with clock, faults and traffic to command.

    Without --db everything is gone at the end, except the temporary folder with the certificates. It listens on
    127.0.0.1 only, has its own trust domain, and registers a fictional hospital, pharmacies and persons.
    """
    from erxhub import process

    process.run(_dev(db, _home(db, home), (port, control_port), suite, profile, settings, until_eof, ready_file))


async def _dev(
    db: Path | None,
    home: Path,
    ports: tuple[int, int],
    suite: str,
    profile: str,
    settings: tuple[str, ...],
    until_eof: bool,
    ready_file: Path | None,
) -> None:
    from contextlib import AsyncExitStack

    from erxhub.cli.hosting import configured, stop_at_end_of_input, stop_signal, write_ready
    from erxhub.cli.keys import receipt_pins
    from erxhub.cli.seeding import save_contexts
    from erxhub.process import settle_memory
    from erxhub.testing import running_sandbox
    from erxhub.testing.sandbox import default_config
    from erxhub.v1 import sandbox_pb2

    stopping = stop_signal()
    if until_eof:
        stop_at_end_of_input(stopping)
    async with AsyncExitStack() as undo:
        undo.enter_context(_alone(home))
        with _failing(db, home):
            config = configured(default_config(), settings)
            sandbox = await undo.enter_async_context(
                running_sandbox(
                    home=home,
                    database=db,
                    data_address=f"127.0.0.1:{ports[0]}",
                    control_address=f"127.0.0.1:{ports[1]}",
                    suite=suite,
                    default_profile=sandbox_pb2.FaultProfile.Value(f"FAULT_PROFILE_{profile.upper()}"),
                    config=config,
                )
            )
            world, operator = _identities(sandbox, home / "pki", suite)
        settle_memory()
        pins = receipt_pins(sandbox.keys, home / "keys")
        _forget_namespaces(home, operator)
        contexts = save_contexts(home, world, sandbox.target, pins, operator=operator)
        write_ready(
            ready_file,
            target=sandbox.target,
            control_target=sandbox.control_target,
            home=str(home),
            operator=str(operator.cert.parent),
        )
        _introduce(contexts, world, operator, db, _log_vkey(sandbox.keys, config.origin))
        await stopping.wait()
    click.echo("stopped", err=True)


@contextmanager
def _failing(db: Path | None, home: Path) -> Iterator[None]:
    """Says why a sandbox does not come up, and ends the command with the exit code of that."""
    from erxhub.cli.hosting import unlistenable
    from erxhub.cli.local_errors import Failed
    from erxhub.crypto.ca import TrustDomainError
    from erxhub.keys import HubKeysError
    from erxhub.ledger.store import StoreFormatError, StoreInUse, StoreUnavailable
    from erxhub.starting import LedgerRefused

    try:
        yield
    except (TrustDomainError, HubKeysError) as error:
        raise Failed("CLI_HOME", field="--home", details=str(error), path=home) from None
    except LedgerRefused as error:
        raise Failed("CLI_LEDGER_REFUSED", field="--db", details=str(error)) from None
    except FileNotFoundError:
        raise Failed("CLI_FILE_ABSENT", field="--db", path=db) from None
    except StoreInUse as error:
        raise Failed("CLI_DATABASE_IN_USE", field="--db", details=str(error), name=db) from None
    except StoreFormatError as error:
        raise Failed("CLI_DATABASE_FORMAT", field="--db", details=str(error), name=db) from None
    except StoreUnavailable as error:
        raise Failed("CLI_DATABASE_UNAVAILABLE", field="--db", details=str(error), name=db) from None
    except RuntimeError as error:
        raise unlistenable(error) from None


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """One sandbox a folder: a second one would write its contexts over those of the first."""
    import fcntl
    import os

    from erxhub.cli.local_errors import Failed

    lock = os.open(home / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failed("CLI_HOME_IN_USE", field="--home", path=home) from None
        yield
    finally:
        os.close(lock)


def _home(db: Path | None, home: Path | None) -> Path:
    import tempfile

    if home is None and db is None:
        return Path(tempfile.mkdtemp(prefix="erxhub-dev-"))
    if home is None:
        assert db is not None
        home = db.with_name(f"{db.name}-home")
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    return home.resolve()


def _identities(sandbox: RunningSandbox, pki: Path, suite: str) -> tuple[SeedWorld, Context]:
    """The registered world as files, and the operator's context."""
    from erxhub.cli.context import Context
    from erxhub.client.sandbox import DEFAULT_NAMESPACE
    from erxhub.ports import SystemClock
    from erxhub.seed import identity, issue_world

    now_ms = SystemClock().now_ms()
    world = issue_world(sandbox.trust, now_ms, suite, pki)
    peer = sandbox.operator.peer_name()
    assert peer is not None, "the operator's certificate names him"
    held = identity(sandbox.trust, peer.role, peer.id, now_ms, directory=pki)
    assert held.path is not None, "an identity of a folder has files"
    folder = held.path
    return world, Context(
        name=OPERATOR_CONTEXT,
        target=sandbox.control_target,
        role=peer.role,
        id=peer.id,
        ca=folder / "ca.pem",
        cert=folder / "cert.pem",
        key=folder / "key.pem",
        namespace=DEFAULT_NAMESPACE,
    )


def _forget_namespaces(home: Path, operator: Context) -> None:
    """Drops the contexts of an earlier sandbox's namespaces, which ended with it."""
    from erxhub.cli.context import Contexts
    from erxhub.cli.namespaces import forget

    contexts = Contexts.load(home)
    ended = {one.namespace for one in contexts.by_name.values() if one.sandbox == operator.name}
    for namespace in ended - {operator.namespace}:
        forget(contexts, operator, namespace)


def _log_vkey(keys: HubKeys, origin: str) -> str:
    """The log's public key, as whoever verifies a bundle names it."""
    from erxhub.proof.notes import ED25519, NoteKey

    return NoteKey(origin, ED25519, keys.log.public_key).vkey


def _introduce(contexts: Contexts, world: SeedWorld, operator: Context, db: Path | None, log_vkey: str) -> None:
    from erxhub.cli.output import Output
    from erxhub.cli.seeding import caller_rows, shown_path, signer_rows

    out = Output()
    home, hospital = contexts.folder, contexts.by_name["hospital"]
    where = f"the ledger is in {db}" if db else "in memory: gone when it stops"
    click.echo(f"erxhub dev listens on {hospital.target} (mTLS), {where}\nFolder: {home}\n")
    out.rows(caller_rows(contexts, world), title="Seeded identities")
    click.echo("")
    out.rows(signer_rows(home, world), title="Signing keys")
    click.echo("")
    out.rows([{"receipt key": key_id, "public (Ed25519)": key} for key_id, key in hospital.receipt_keys.items()])
    click.echo(
        f"\nLog key, for bundles:  {log_vkey}"
        f"\nSandbox control: {operator.target} (mTLS), context {operator.name}, "
        f"{operator.role}/{operator.id}, {shown_path(home, operator.cert.parent)}"
        "\n\nTry in another terminal:\n"
        f"  export ERXHUB_HOME={home}\n"
        "  erxhub doctor\n"
        "  erxhub sandbox traffic -f                                    # every call, as it comes\n"
        "  erxhub sandbox magic                                         # values with a known effect\n"
        "  erxhub fault set 'Dispensing/Settle nth=1 do=lose_ack'       # a reply that is lost after the commit\n"
        "  erxhub clock advance 2h                                      # time passes, deadlines with it\n"
        "  erxhub sandbox create lab                                    # a hub of its own: --context lab-hospital\n"
        "  erxhub registry list institutions\n"
        f"  erxhub voucher activate {world.person_no}\n"
        "  erxhub audit export RX_NO -o rx.bundle                       # a prescription's whole proof, as one file\n"
        f"  erxhub audit verify rx.bundle --log-key '{log_vkey}'\n"
    )
