"""Where the ledger of a namespace lives, and how it is copied and put back as a whole: in memory, or in a SQLite file.

Owns copies. Must never: copy while a hub works on the ledger; whoever asks has closed the store before.
"""

from __future__ import annotations

import asyncio
import shutil
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Protocol

from erxhub.ledger.memory import MemoryStore
from erxhub.ledger.sqlite import open_sqlite
from erxhub.ledger.store import Store, StoreUnavailable

_JOURNAL: Final = ("-wal", "-shm")


class Ledger(Protocol):
    """One namespace's ledger. An image is a copy of it at one moment, and is never changed."""

    @property
    def database(self) -> str:
        """Path of its file; empty in memory."""

    async def open(self) -> Store:
        """The store; closed by `close`. Raises StoreUnavailable, StoreFormatError."""

    async def close(self) -> None:
        """Until `open` nobody uses it."""

    async def image(self) -> Any:
        """A copy of the closed ledger. Raises StoreUnavailable."""

    async def restore(self, image: Any) -> None:
        """Put a copy back, in place of the closed ledger, which stays as it is when that fails: StoreUnavailable."""

    async def forget(self, image: Any) -> None:
        """Drop a copy."""

    async def end(self) -> None:
        """Drop all copies; the ledger is not opened again."""


class MemoryLedger:
    """A ledger that ends with its namespace; a crash of the hub leaves it as a disk would."""

    def __init__(self, image: MemoryStore) -> None:
        self._store = image.copy()

    @property
    def database(self) -> str:
        return ""

    async def open(self) -> Store:
        return self._store

    async def close(self) -> None:
        """Nothing: closing is for good there."""

    async def image(self) -> MemoryStore:
        return self._store.copy()

    async def restore(self, image: MemoryStore) -> None:
        self._store = image.copy()

    async def forget(self, image: MemoryStore) -> None:
        """Nothing: memory is freed by itself."""

    async def end(self) -> None:
        await self._store.close()


class FileLedger:
    """A ledger in a SQLite file. Copies are files of a temporary folder: they end with the sandbox."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._store: Store | None = None
        self._numbers = count(1)
        self._folder = TemporaryDirectory(prefix="erxhub-snapshots-")

    @property
    def database(self) -> str:
        return str(self._path)

    async def open(self) -> Store:
        self._store = await open_sqlite(self._path)
        return self._store

    async def close(self) -> None:
        if self._store is not None:
            await self._store.close()
            self._store = None

    async def image(self) -> Path:
        copy = Path(self._folder.name) / f"{next(self._numbers)}.db"
        await _copied(self._path, copy)
        return copy

    async def restore(self, image: Path) -> None:
        # Beside it first: a copy that fails half way must not be the ledger.
        beside = self._path.with_name(f"{self._path.name}.restored")
        try:
            await _copied(image, beside)
            # The files of its journal belong to the ledger that goes; SQLite would apply them to the one that comes.
            for suffix in _JOURNAL:
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            beside.replace(self._path)
        finally:
            beside.unlink(missing_ok=True)

    async def forget(self, image: Path) -> None:
        await asyncio.to_thread(image.unlink, missing_ok=True)

    async def end(self) -> None:
        await self.close()
        self._folder.cleanup()


async def _copied(source: Path, target: Path) -> None:
    try:
        await asyncio.to_thread(shutil.copyfile, source, target)
    except OSError as error:
        raise StoreUnavailable(f"a copy of the ledger: {error.strerror}") from error
