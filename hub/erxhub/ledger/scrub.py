"""Takes what was erased from the disk as well: `erxhub db scrub`.

Erasing deletes rows; a database keeps the bytes of deleted rows for a while. Owns how each engine is made to let go of
them: every table that can lose a row is written anew, and with it the statistics and the log of changes. It must never
change what the ledger says. Backups, archives of the log of changes and replicas are not reached from here.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import Final

from erxhub.ledger.migrations import check_version, postgres_version
from erxhub.ledger.postgres_session import Connection, connect, described, unavailable
from erxhub.ledger.sqlite import locked_sqlite
from erxhub.ledger.store import StoreFormatError, StoreUnavailable

TABLES: Final = ("content", "reply", "blob", "state", "name", "listing", "unlisted")
"""The tables of PostgreSQL's schema `erxhub` in which an erasure deletes or changes rows."""

_ROUNDS_MAX: Final = 64
"""Segments that are filled at most until none is left from before: a server keeps a few dozen at hand."""

_OLD_SEGMENTS: Final = """
SELECT count(*) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$' AND modification < $1
"""


def scrub_sqlite(path: str | os.PathLike[str]) -> None:
    """Writes a ledger file anew, which no hub may have open, and empties its WAL. Blocks; takes as much room again.

    Raises FileNotFoundError, StoreInUse, StoreFormatError, StoreUnavailable.
    """
    with locked_sqlite(path) as file:
        try:
            with closing(sqlite3.connect(file, isolation_level=None)) as connection:
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA secure_delete = ON")
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.OperationalError as error:
            raise StoreUnavailable(f"the ledger cannot be written anew: {error}") from error


async def scrub_postgres(url: str) -> int:
    """Writes the tables of a ledger anew and fills the log of changes until nothing in it is from before; the number of
    segments that this took.

    Hubs may run, and wait, or answer HUB_UNAVAILABLE, while a table is written. The role must be a superuser, since no
    other may do this to the server's log of changes. Raises StoreUnavailable, StoreFormatError.
    """
    import asyncpg

    connection = await connect(url, hub=False)
    try:
        check_version("postgres", await postgres_version(connection), described(url))
        for table in TABLES:
            await connection.execute(f"VACUUM (FULL, ANALYZE) erxhub.{table}")
        # Samples of the columns are kept there, also those from before.
        await connection.execute("VACUUM (FULL) pg_catalog.pg_statistic")
        return await _fill_log(connection)
    except asyncpg.InsufficientPrivilegeError as error:
        raise StoreFormatError(f"this role may not do that, a superuser of the server may: {error}") from None
    except (asyncpg.PostgresError, OSError) as error:
        raise unavailable(error) from error
    finally:
        await connection.close()


async def _fill_log(connection: Connection) -> int:
    """A segment that is not needed is deleted instead of being used again, and one that waits is filled with zeros."""
    # Writing the tables anew can have put pages from before into the log, and the server may keep the segment with
    # them for later use: what counts as old ends with it, and not where the scrub began.
    await _close_segment(connection)
    closed_at = await connection.fetchval("SELECT clock_timestamp()")
    before = await connection.fetchval(
        "SELECT setting FROM pg_file_settings WHERE name = 'wal_recycle' AND applied AND sourcefile LIKE '%.auto.conf'"
    )
    await connection.execute("ALTER SYSTEM SET wal_recycle = off")
    await connection.execute("SELECT pg_reload_conf()")
    rounds = 0
    try:
        while rounds < _ROUNDS_MAX:
            await _close_segment(connection)
            await connection.execute("CHECKPOINT")
            rounds += 1
            if not await connection.fetchval(_OLD_SEGMENTS, closed_at):
                return rounds
    finally:
        reset = "RESET wal_recycle" if before is None else f"SET wal_recycle = '{before}'"
        await connection.execute(f"ALTER SYSTEM {reset}")
        await connection.execute("SELECT pg_reload_conf()")
    raise StoreUnavailable(
        "the server keeps old segments of its log of changes: for a replication slot, wal_keep_size or an archive"
    )


async def _close_segment(connection: Connection) -> None:
    """Have the server go on in another segment; the rest of this one becomes zeros."""
    # Something must stand in a segment, or switching leaves it.
    await connection.execute("SELECT pg_logical_emit_message(true, 'erxhub', 'scrub')")
    await connection.execute("SELECT pg_switch_wal()")
