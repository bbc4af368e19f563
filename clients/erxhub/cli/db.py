"""`erxhub db`: the ledger's database, of either engine: bring it up to date, check it, copy it, put a copy back.

Must never: replace a file or a ledger, or change an entry.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click

from erxhub.cli.commands import group
from erxhub.cli.output import Output, output_option
from erxhub.cli.stores import database_option


@group("db", example="erxhub db check --db hub.db")
def db() -> None:
    """The ledger's database: migrate, check, backup, restore, scrub. For a SQLite file and for PostgreSQL.

    On PostgreSQL, migrate, backup and restore run as the role that owns the ledger; a hub and check run as a role that
    was granted erxhub_hub and owns nothing.
    """


@db.command("migrate", example="erxhub db migrate --db postgresql://owner@localhost/erxhub")
@database_option
@output_option
def migrate(db: str, out: Output) -> None:
    """Make the ledger's tables, or bring them to this release's schema. Again does nothing.

    No hub may have a SQLite file open; on PostgreSQL stop the hubs of the older release first, since a hub of one
    release refuses the schema of another.
    """
    import asyncio

    from erxhub.cli.stores import engine_of, failures_of, is_postgres, shown
    from erxhub.ledger.migrations import migrate_postgres, newest
    from erxhub.ledger.sqlite import migrate_sqlite

    with failures_of(db):
        done = asyncio.run(migrate_postgres(db)) if is_postgres(db) else migrate_sqlite(db)
    engine = engine_of(db)
    out.object({"database": shown(db), "engine": engine, "schema": newest(engine), "scripts_run": done})


@db.command("check", example="erxhub db check --db hub.db")
@database_option
@output_option
@click.pass_context
def check(ctx: click.Context, db: str, out: Output) -> None:
    """Check the schema, the durability of the settings, and every entry's hash. Exit code 1 when anything is wrong.

    A SQLite file must not be open in a hub (ask the hub itself: `erxhub audit verify`); PostgreSQL may be in use.
    """
    import asyncio

    from erxhub.cli.exits import NEGATIVE, OK
    from erxhub.cli.stores import failures_of, shown

    with failures_of(db):
        found = asyncio.run(_checked(db))
    out.object({"database": shown(db), **found})
    ctx.exit(OK if found["sound"] else NEGATIVE)


async def _checked(database: str) -> dict[str, Any]:
    from erxhub.cli.stores import engine_of, is_postgres, open_store
    from erxhub.ledger.migrations import newest
    from erxhub.ledger.verify import verify_ledger

    damage: list[str] = []
    # Opening it checks the schema, and on PostgreSQL the settings and the role.
    store = await open_store(database, create=False, gives_positions=False)
    try:
        verification = await verify_ledger(store)
    finally:
        await store.close()
    if not is_postgres(database):
        from erxhub.ledger.sqlite import damage_sqlite

        damage = damage_sqlite(database)
    findings = [
        f"{finding.stream_kind}/{finding.stream_key.hex()} version {finding.version} {finding.reason}"
        for finding in verification.findings
    ]
    return {
        "schema": newest(engine_of(database)),
        "entries": verification.entries,
        "streams": verification.streams,
        "sound": not damage and not findings,
        "damage": damage,
        "findings": findings,
    }


@db.command("backup", example="erxhub db backup --db hub.db hub-copy.db")
@database_option
@click.argument("target", type=click.Path(path_type=Path, dir_okay=False))
@output_option
def backup(db: str, target: Path, out: Output) -> None:
    """Copy the ledger to a new file, consistently, while hubs may write to it.

    A copy of a SQLite ledger is one itself; that of PostgreSQL is pg_dump's. Both hold personal data: keep them as safe
    as the database.
    """
    from erxhub.cli.stores import failures_of, is_postgres, shown
    from erxhub.ledger.sqlite import copy_sqlite

    with failures_of(db):
        if is_postgres(db):
            from erxhub.ledger.dumps import dump_postgres

            with _programs():
                dump_postgres(db, target)
        else:
            copy_sqlite(db, target)
    out.object({"database": shown(db), "backup": str(target), "size_bytes": target.stat().st_size})


@db.command("restore", example="erxhub db restore --db hub.db hub-copy.db")
@database_option
@click.argument("source", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@output_option
def restore(db: str, source: Path, out: Output) -> None:
    """Put a backup into a new file, or into a database that holds no ledger.

    What came after the backup is lost, and callers' receipts will show it: restore only what cannot be saved otherwise.
    """
    import asyncio

    from erxhub.cli.stores import failures_of, is_postgres, shown
    from erxhub.ledger.sqlite import copy_sqlite, version_sqlite

    with failures_of(db):
        if is_postgres(db):
            from erxhub.ledger.dumps import restore_postgres

            with _programs():
                version = asyncio.run(restore_postgres(source, db))
        else:
            with failures_of(str(source)):
                version = version_sqlite(source)
            copy_sqlite(source, db)
    out.object({"database": shown(db), "restored_from": str(source), "schema": version})


@db.command("scrub", example="erxhub db scrub --db hub.db")
@database_option
@output_option
def scrub(db: str, out: Output) -> None:
    """After an erasure: write the tables anew, so that no byte of what was erased is left in them or in the WAL.

    No hub may have a SQLite file open. On PostgreSQL hubs wait meanwhile; it needs a superuser. Backups, replicas and
    archived WAL keep what they have until they expire.
    """
    import asyncio

    from erxhub.cli.stores import engine_of, failures_of, is_postgres, shown
    from erxhub.ledger.scrub import scrub_postgres, scrub_sqlite

    found: dict[str, Any] = {"database": shown(db), "engine": engine_of(db), "scrubbed": True}
    with failures_of(db):
        if is_postgres(db):
            found["wal_segments_filled"] = asyncio.run(scrub_postgres(db))
        else:
            scrub_sqlite(db)
    out.object(found)


def _programs() -> AbstractContextManager[None]:
    from erxhub.cli.local_errors import failing_as
    from erxhub.ledger.dumps import ProgramMissing

    return failing_as("CLI_PROGRAM_MISSING", ProgramMissing)
