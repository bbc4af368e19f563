"""Where a trust domain keeps its files: a directory, or memory.

Owns: file modes, whole-or-nothing writes, and the lock between processes.
Must never: know what is in a file.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

if sys.platform != "win32":
    import fcntl


class Files(Protocol):
    """Named files; a name is a relative path with forward slashes, made of validated parts only."""

    def path(self, name: str) -> Path | None: ...

    def read(self, name: str) -> bytes | None: ...

    def write(self, name: str, data: bytes, *, private: bool = False) -> None: ...

    def locked(self) -> contextlib.AbstractContextManager[None]: ...


class Directory:
    """Files under one directory, written whole or not at all."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, name: str) -> Path:
        return self._root / name

    def read(self, name: str) -> bytes | None:
        try:
            return self.path(name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes, *, private: bool = False) -> None:
        target = self.path(name)
        self._make_directories(target.parent)
        # The lock admits one writer, so the fixed name of the unfinished file is nobody else's.
        unfinished = target.with_name(f".{target.name}.new")
        unfinished.unlink(missing_ok=True)
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time changes the index and the CRL."""
        self._make_directories(self._root)
        descriptor = os.open(self._root / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if sys.platform != "win32":
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _make_directories(self, directory: Path) -> None:
        """Each new directory private from its first moment (mkdir's `parents` would use the default mode)."""
        missing = [directory, *directory.parents]
        missing = missing[: next(index for index, one in enumerate(missing) if one.is_dir())]
        for one in reversed(missing):
            one.mkdir(mode=0o700, exist_ok=True)


class Memory:
    """Files of a trust domain that ends with the process."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}

    def path(self, name: str) -> None:
        return None

    def read(self, name: str) -> bytes | None:
        return self._files.get(name)

    def write(self, name: str, data: bytes, *, private: bool = False) -> None:
        self._files[name] = data

    def locked(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()
