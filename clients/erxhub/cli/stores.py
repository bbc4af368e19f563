"""Opening a ledger file from the command line.

Owns the sentences for a file that cannot be used. Must never: choose settings of the database; the store does.
"""

from __future__ import annotations

from pathlib import Path

from erxhub.cli.exits import CONFLICT, UNAVAILABLE, USAGE, Failed
from erxhub.ledger.sqlite import SqliteStore, open_sqlite
from erxhub.ledger.store import StoreFormatError, StoreInUse, StoreUnavailable


async def open_store(path: Path, *, create: bool = True) -> SqliteStore:
    """The ledger in this file. Raises Failed, naming the file and what is wrong."""
    try:
        return await open_sqlite(path, create=create)
    except FileNotFoundError:
        raise Failed(f"{path}: no such file, or no such folder", USAGE) from None
    except StoreInUse as error:
        raise Failed(f"{path}: {error}", CONFLICT) from None
    except StoreFormatError as error:
        raise Failed(f"{path}: {error}", USAGE) from None
    except StoreUnavailable as error:
        raise Failed(f"{path}: {error}", UNAVAILABLE) from None
