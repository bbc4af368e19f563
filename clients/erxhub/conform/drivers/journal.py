"""What a product remembers across a crash: named values in an append-only file.

Owns the file: one JSON line for each change, the last one of a name wins, a torn last line is dropped. Must never:
know what the values mean.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class Journal:
    """Named JSON values. Raises OSError when the file cannot be read or written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = 0
        if path.exists():
            for line in path.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                name, value = json.loads(line)
                self._set(name, value)
        self._file = path.open("ab")
        self._file.truncate(whole)

    def get(self, name: str) -> Any:
        """The value, or None."""
        return self._values.get(name)

    def put(self, name: str, value: Any, *, durable: bool = False) -> None:
        """Keeps a value (None forgets it); `durable` on the disk before this returns."""
        self._set(name, value)
        self._file.write(json.dumps([name, value], ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        if durable:
            os.fsync(self._file.fileno())

    def items(self, prefix: str) -> Iterator[tuple[str, Any]]:
        """Name and value of everything whose name begins so, oldest first."""
        return ((name, value) for name, value in list(self._values.items()) if name.startswith(prefix))

    def forget(self, stays: Callable[[str], bool]) -> None:
        """Forgets every value whose name does not stay."""
        kept = {name: value for name, value in self._values.items() if stays(name)}
        self._file.close()
        fresh = self._path.with_suffix(".new")
        fresh.write_text("".join(json.dumps([name, value], ensure_ascii=False) + "\n" for name, value in kept.items()))
        fresh.replace(self._path)
        self._values = kept
        self._file = self._path.open("ab")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _set(self, name: str, value: Any) -> None:
        if value is None:
            self._values.pop(name, None)
        else:
            self._values[name] = value
