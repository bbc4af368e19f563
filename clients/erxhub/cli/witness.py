"""`erxhub witness`: a witness of logs, with a key and a memory of its own.

Must never: print the private key, or open a ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from erxhub.cli.commands import group
from erxhub.cli.output import Output, output_option

if TYPE_CHECKING:
    from erxhub.proof.notes import NoteKey

_Function = TypeVar("_Function", bound=Callable[..., Any])


@group("witness", example="erxhub witness keygen example.org/witness-1 --folder witness-1")
def witness() -> None:
    """A witness: remembers how far a log has come, and cosigns its checkpoints while they only grow.

    Run it on another machine than the hub, by other people: what it is good for is that the log's operator cannot make
    it forget.
    """


def _folder_option(function: _Function) -> _Function:
    return click.option(
        "--folder",
        required=True,
        type=click.Path(path_type=Path, file_okay=False),
        help="The witness's folder: its key and what it remembers.",
    )(function)


@contextmanager
def _needing_witness(folder: Path) -> Iterator[None]:
    from erxhub.cli.local_errors import failing_as
    from erxhub.witness.keyfiles import WitnessFilesError
    from erxhub.witness.records import RecordsBroken

    with (
        failing_as("CLI_WITNESS", WitnessFilesError, field="--folder", path=folder),
        failing_as("CLI_WITNESS_RECORDS", RecordsBroken, field="--folder", path=folder),
    ):
        yield


@witness.command("keygen", example="erxhub witness keygen example.org/witness-1 --folder witness-1")
@click.argument("name")
@_folder_option
@output_option
def keygen(name: str, folder: Path, out: Output) -> None:
    """Make a witness: a key in a folder, readable by its owner only. NAME is under what it signs.

    The line that is printed is the public key: it goes into the policies of those who trust this witness.
    """
    from erxhub.cli.local_errors import failing_as
    from erxhub.witness.keyfiles import WitnessFilesError, make_witness

    with failing_as("CLI_WITNESS_NOT_MADE", WitnessFilesError, field="--folder", path=folder, name=name):
        made = make_witness(folder, name)
    out.object({"name": made.key.name, "vkey": made.key.vkey, "folder": str(folder)})


@witness.command("show", example="erxhub witness show --folder witness-1")
@_folder_option
@output_option
def show(folder: Path, out: Output) -> None:
    """The public key, and for each log the newest checkpoint that was cosigned."""
    from erxhub.witness.keyfiles import RECORDS_FOLDER, load_witness
    from erxhub.witness.records import read_records

    with _needing_witness(folder):
        key = load_witness(folder).key
        recorded = read_records(folder / RECORDS_FOLDER, key)
    logs = [{"origin": origin, "size": one.size, "root": one.root.hex()} for origin, one in recorded.items()]
    out.object({"name": key.name, "vkey": key.vkey, "logs": logs})


@witness.command(
    "serve",
    example="erxhub witness serve --folder witness-1 --log 'example.org/ledger+8c0f7e78+ATFj+v/1yJRL…' "
    "--address 127.0.0.1:7490",
)
@_folder_option
@click.option(
    "--log",
    "logs",
    required=True,
    multiple=True,
    metavar="VKEY",
    help="The key of a log to cosign; its name is the log's origin. Repeatable, also for a second key of one log.",
)
@click.option("--address", default="127.0.0.1:7490", show_default=True, metavar="HOST:PORT")
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help='Written when the witness answers: {"url": …, "vkey": …, "pid": …}.',
)
def serve(folder: Path, logs: tuple[str, ...], address: str, ready_file: Path | None) -> None:
    """Answer logs over HTTP until SIGTERM: POST /add-checkpoint, GET /<hash of the origin>/checkpoint.

    It speaks plain HTTP; a checkpoint is public and signed. Put a proxy in front for TLS.
    """
    from erxhub import process
    from erxhub.cli.hosting import log_to_stderr
    from erxhub.cli.local_errors import Failed

    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or int(port) > 65_535:
        raise Failed("CLI_VALUE_FORM", field="--address", value=address, form="HOST:PORT")
    keys = [_log_key(vkey) for vkey in dict.fromkeys(logs)]
    log_to_stderr()
    with _needing_witness(folder):
        process.run(_serve(folder, keys, host.strip("[]"), int(port), ready_file))


def _log_key(vkey: str) -> NoteKey:
    from erxhub.cli.local_errors import failing_as
    from erxhub.proof.merkle import ProofInvalid
    from erxhub.proof.notes import ED25519, read_vkey

    with failing_as("CLI_LOG_KEY", ProofInvalid, field="--log"):
        return read_vkey(vkey, (ED25519,))


async def _serve(folder: Path, keys: list[NoteKey], host: str, port: int, ready_file: Path | None) -> None:
    from erxhub.cli.hosting import stop_signal
    from erxhub.cli.local_errors import Failed
    from erxhub.ports import SystemClock
    from erxhub.witness.keyfiles import RECORDS_FOLDER, load_witness
    from erxhub.witness.records import FileRecords
    from erxhub.witness.server import WitnessServer
    from erxhub.witness.witness import Witness

    stopping = stop_signal()
    cosigner = load_witness(folder)
    records = FileRecords(folder / RECORDS_FOLDER, cosigner.key)
    try:
        server = WitnessServer(Witness(cosigner, keys, records, SystemClock()))
        try:
            listening = await server.start(host, port)
        except OSError as error:
            address, details = f"{host}:{port}", error.strerror or ""
            raise Failed("CLI_ADDRESS_TAKEN", field="--address", details=details, address=address) from None
        _ready(f"http://{f'[{host}]' if ':' in host else host}:{listening}", cosigner.key, ready_file)
        await stopping.wait()
        await server.stop()
    finally:
        records.close()


def _ready(url: str, key: NoteKey, ready_file: Path | None) -> None:
    import os

    from erxhub.cli.hosting import write_ready

    write_ready(ready_file, url=url, vkey=key.vkey, pid=os.getpid())
    click.echo(f"{key.name} answers at {url}", err=True)
