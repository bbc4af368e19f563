"""Numbered schema scripts of both engines: which there are, where a database stands, and bringing it up to date.

Owns the numbers. A script is never edited after a release; what changes comes as the next number, each as one
transaction with its number. A hub must never migrate: it refuses a schema that it does not know and says what to run.
(A new SQLite file is no migration: the store makes it.)
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Final, Literal

from erxhub.ledger.store import StoreFormatError

if TYPE_CHECKING:
    from erxhub.ledger.postgres_session import Connection

Engine = Literal["sqlite", "postgres"]

ROLES: Final = ("erxhub_hub", "erxhub_eraser")
"""Roles of PostgreSQL that hold the rights of a hub and of whoever erases; they cannot log in themselves."""

_LOCK: Final = 0x65727868  # two migrations at once: the second waits, and finds nothing left to do


@cache
def scripts(engine: Engine) -> Mapping[int, str]:
    """The scripts of an engine by number, in order."""
    folder = resources.files("erxhub.ledger") / "schema" / engine
    found = {int(file.name[:4]): file.read_text("utf-8") for file in folder.iterdir() if file.name.endswith(".sql")}
    return dict(sorted(found.items()))


def newest(engine: Engine) -> int:
    """The schema that this release works with."""
    return max(scripts(engine))


def check_version(engine: Engine, version: int, database: str) -> None:
    """Raises StoreFormatError unless `version` is the one that this release works with; says what to run."""
    known = newest(engine)
    if version > known:
        raise StoreFormatError(
            f"the ledger has schema {version}, and this release knows up to {known}: run the release that made it"
        )
    if version < known:
        missing = f"the ledger has schema {version} of {known}" if version else "the database holds no ledger yet"
        raise StoreFormatError(f"{missing}: run `erxhub db migrate --db {database}`")


def run_sqlite(connection: sqlite3.Connection, version: int) -> list[int]:
    """Runs the scripts after `version` on a connection that writes alone; the numbers of those that were run."""
    done = []
    for number, text in scripts("sqlite").items():
        if number > version:
            connection.executescript(
                f"BEGIN IMMEDIATE;\n{text}\nINSERT INTO schema_version VALUES ({number});\nCOMMIT;"
            )
            done.append(number)
    return done


async def postgres_version(connection: Connection) -> int:
    """The schema of a PostgreSQL ledger, 0 where there is none. Raises StoreFormatError for a role without rights."""
    import asyncpg

    try:
        if await connection.fetchval("SELECT to_regclass('erxhub.schema_version')") is None:
            return 0
        version: int = await connection.fetchval("SELECT coalesce(max(version), 0) FROM erxhub.schema_version")
    except asyncpg.InsufficientPrivilegeError:
        role = await connection.fetchval("SELECT current_user")
        raise StoreFormatError(f"the role {role} may not read the ledger: GRANT erxhub_hub TO {role}") from None
    return version


async def migrate_postgres(url: str) -> list[int]:
    """Brings the ledger of a database up to date, or makes it; the numbers of the scripts that were run.

    The role of `url` becomes or is the owner of the tables. Raises StoreUnavailable, StoreFormatError (a newer release
    made it, or the role may not do it; the message says what an administrator has to run).
    """
    import asyncpg

    from erxhub.ledger.postgres_session import connect, described, unavailable

    connection = await connect(url, hub=False)
    try:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
            version = await postgres_version(connection)
            if version > newest("postgres"):
                check_version("postgres", version, described(url))
            await make_roles(connection)
            done = []
            for number, text in scripts("postgres").items():
                if number > version:
                    await connection.execute(text)
                    await connection.execute("INSERT INTO erxhub.schema_version VALUES ($1)", number)
                    done.append(number)
            return done
    except asyncpg.InsufficientPrivilegeError as error:
        raise StoreFormatError(f"this role may not make the ledger: {error}") from None
    except (asyncpg.PostgresError, OSError) as error:
        raise unavailable(error) from error
    finally:
        await connection.close()


async def make_roles(connection: Connection) -> None:
    """Makes the roles of a ledger where the server has none. Raises StoreFormatError, with what to run instead."""
    import asyncpg

    # Roles belong to the whole server: another ledger on it may have made them, even in this moment.
    known = await connection.fetchval("SELECT count(*) FROM pg_roles WHERE rolname = ANY($1)", list(ROLES))
    if known == len(ROLES):
        return
    hub, eraser = ROLES
    try:
        async with connection.transaction():
            await connection.execute(f"CREATE ROLE {hub} NOLOGIN; CREATE ROLE {eraser} NOLOGIN IN ROLE {hub}")
    except (asyncpg.DuplicateObjectError, asyncpg.UniqueViolationError):
        return
    except asyncpg.InsufficientPrivilegeError:
        raise StoreFormatError(
            f"this role may not make roles; an administrator of the server runs: CREATE ROLE {hub} NOLOGIN; "
            f"CREATE ROLE {eraser} NOLOGIN IN ROLE {hub}"
        ) from None


def sqlite_version(connection: sqlite3.Connection, application_id: int) -> int:
    """The schema of a SQLite ledger, 0 for an empty file. Raises StoreFormatError for a file that is something else."""
    try:
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
            raise StoreFormatError("the file is not an SQLite database") from error
        raise
    if not tables:
        return 0
    if connection.execute("PRAGMA application_id").fetchone()[0] != application_id:
        raise StoreFormatError("the file is an SQLite database, but not a ledger")
    version: int = connection.execute("SELECT max(version) FROM schema_version").fetchone()[0]
    return version
