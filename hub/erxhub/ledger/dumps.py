"""Backups of a PostgreSQL ledger, by PostgreSQL's own programs.

Owns how pg_dump and pg_restore are called. It must never put a password where other users of the machine see it, and
never restore over a ledger.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from erxhub.ledger.migrations import make_roles, newest, postgres_version
from erxhub.ledger.postgres_session import connect
from erxhub.ledger.store import StoreFormatError, StoreUnavailable

_SCHEMAS = ("erxhub", "erxhub_log")


class ProgramMissing(Exception):
    """PostgreSQL's client programs are not on this machine."""


def dump_postgres(url: str, target: Path) -> None:
    """A consistent copy of a ledger, also of one that hubs write to, as one file. The role must own the ledger. Blocks.

    Raises FileExistsError (a backup never replaces a file), ProgramMissing, StoreUnavailable.
    """
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        schemas = [f"--schema={schema}" for schema in _SCHEMAS]
        _run("pg_dump", url, ["--format=custom", "--no-owner", *schemas, f"--file={target}"])
    except BaseException:
        target.unlink()
        raise


async def restore_postgres(source: Path, url: str) -> int:
    """A ledger from a backup into a database that holds none; its schema. The role becomes its owner.

    Raises StoreFormatError (there is a ledger already, or a newer release made the backup), ProgramMissing,
    StoreUnavailable (also for a file that is no backup).
    """
    connection = await connect(url, hub=False)
    try:
        if await postgres_version(connection):
            raise StoreFormatError("the database holds a ledger already; a restore never replaces one")
        await make_roles(connection)
        _run("pg_restore", url, ["--no-owner", "--exit-on-error", "--single-transaction", str(source)])
        version = await postgres_version(connection)
    finally:
        await connection.close()
    if version > newest("postgres"):
        raise StoreFormatError(f"a newer release made this backup: its schema is {version}")
    return version


def _run(program: str, url: str, arguments: Sequence[str]) -> None:
    parts = urlsplit(url)
    environment = dict(os.environ)
    if parts.password is not None:
        # In the environment, which belongs to this user; the words of a command are everybody's to read.
        environment["PGPASSWORD"] = unquote(parts.password)
        user, host = parts.username or "", parts.netloc.rpartition("@")[2]
        url = urlunsplit(parts._replace(netloc=f"{user}@{host}"))
    done = subprocess.run(
        [_found(program), f"--dbname={url}", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise StoreUnavailable(f"{program}: {done.stderr.strip() or f'ended with {done.returncode}'}")


def _found(program: str) -> str:
    """The newest one: a dump needs a program at least as new as the server."""
    folders = sorted(
        Path("/usr/lib/postgresql").glob(f"*/bin/{program}"),
        key=lambda path: int(path.parts[-3]) if path.parts[-3].isdigit() else 0,
    )
    found = str(folders[-1]) if folders else shutil.which(program)
    if found is None:
        raise ProgramMissing(f"{program} is not on this machine (Debian, Ubuntu: apt-get install postgresql-client)")
    return found
