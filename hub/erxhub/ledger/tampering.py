"""What an intruder with write access to the database file could do: for the demonstration and for tests only.

It drops the guards of a copy and changes one payload in place, leaving every hash as it was. It must never be pointed
at a ledger that somebody needs.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path


def change_payload(database: Path, stream_key: bytes, version: int, change: Callable[[bytes], bytes]) -> None:
    """Replace the payload of one entry of a SQLite ledger that no hub has open.

    Raises LookupError when the entry has no content.
    """
    connection = sqlite3.connect(database)
    try:
        guards = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'content'")
        for (name,) in guards.fetchall():
            connection.execute(f'DROP TRIGGER "{name}"')
        place = (
            "stream = (SELECT no FROM stream WHERE key = ?) AND version = ?",
            (stream_key, version),
        )
        found = connection.execute(f"SELECT payload FROM content WHERE {place[0]}", place[1]).fetchone()
        if found is None:
            raise LookupError("the entry has no content")
        connection.execute(f"UPDATE content SET payload = ? WHERE {place[0]}", (change(bytes(found[0])), *place[1]))
        connection.commit()
    finally:
        connection.close()
