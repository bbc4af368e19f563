"""What `erxhub doctor` asks a ledger file, also while a hub has it open.

Owns the questions. It changes nothing.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from erxhub.ledger.sqlite import version_sqlite
from erxhub.ledger.store import StoreUnavailable


def schema_of_file(path: Path) -> int:
    """The schema of a ledger file. Raises FileNotFoundError, StoreFormatError (it is none), StoreUnavailable."""
    try:
        return version_sqlite(path)
    except sqlite3.Error as error:
        raise StoreUnavailable(f"the file cannot be read: {error}") from error
