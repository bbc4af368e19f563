"""Opening a ledger from the command line: a SQLite file, or a PostgreSQL database by its URL.

Owns the sentences for a ledger that cannot be used. Must never: choose settings of the database (the store does), or
print a password.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from erxhub.cli.local_errors import Failed

if TYPE_CHECKING:
    from erxhub.ledger.migrations import Engine
    from erxhub.ledger.store import Store

DATABASE_HELP: Final = "A SQLite file, or postgresql://user@host/database (the password also from PGPASSWORD)."

database_option = click.option("--db", required=True, metavar="FILE|URL", help=DATABASE_HELP)


def is_postgres(database: str) -> bool:
    """Whether `--db` names a PostgreSQL database and not a file."""
    return database.startswith(("postgresql://", "postgres://"))


def engine_of(database: str) -> Engine:
    """Which of the two engines `--db` names."""
    return "postgres" if is_postgres(database) else "sqlite"


def shown(database: str) -> str:
    """What `--db` names, for a message."""
    if not is_postgres(database):
        return database
    from erxhub.ledger.postgres_session import described

    return described(database)


async def open_store(database: str, *, gives_positions: bool = True, create: bool = True) -> Store:
    """The ledger. Without `create` a file has to be there; `gives_positions` is for PostgreSQL, see its store.

    Raises Failed, naming the database and what is wrong.
    """
    with failures_of(database):
        if not is_postgres(database):
            from erxhub.ledger.sqlite import open_sqlite

            return await open_sqlite(Path(database), create=create)
        from erxhub.ledger.postgres import open_postgres
        from erxhub.placement import AreaPlacement

        return await open_postgres(database, placement=AreaPlacement(), gives_positions=gives_positions)


@contextmanager
def failures_of(database: str) -> Iterator[None]:
    """What goes wrong with a database becomes Failed, with its name and an exit code."""
    from erxhub.ledger.store import StoreFormatError, StoreInUse, StoreUnavailable

    name = shown(database)
    if not is_postgres(database) and Path(database).is_dir():
        raise Failed("CLI_FILE_IS_FOLDER", field=name, path=name)
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "asyncpg":
            raise
        raise Failed("CLI_EXTRA_MISSING", field=name, extra="postgres") from None
    except FileNotFoundError as error:
        path = error.filename or name
        raise Failed("CLI_FILE_ABSENT", field=path, path=path) from None
    except FileExistsError as error:
        raise Failed("CLI_FILE_EXISTS", field=error.filename, path=error.filename) from None
    except StoreInUse as error:
        raise Failed("CLI_DATABASE_IN_USE", field=name, details=str(error), name=name) from None
    except StoreFormatError as error:
        raise Failed("CLI_DATABASE_FORMAT", field=name, details=str(error), name=name) from None
    except StoreUnavailable as error:
        raise Failed("CLI_DATABASE_UNAVAILABLE", field=name, details=str(error), name=name) from None
