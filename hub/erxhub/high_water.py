"""The high-water file: the newest checkpoint that this hub published, kept outside the database's folder.

Owns the file, and the evidence beside it. Whoever restores an older database does not restore this file with it, so
that the next start sees that history became shorter. It must never go back to a smaller size.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FILE_NAME: Final = "high-water.json"
_FORMAT: Final = 1


class HighWaterUnreadable(Exception):
    """The file is there and is none; the message names it."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A published checkpoint: the log `origin` had `size` leaves under `root`; `note` proves that the hub said so."""

    origin: str
    size: int
    root: bytes
    note: str


class HighWater:
    """One file. Its folder exists and belongs to the hub's operator."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written = 0

    def read(self) -> Mark | None:
        """The mark, None before the first one. Raises HighWaterUnreadable."""
        try:
            said = json.loads(self.path.read_text("utf-8"))
            if said["format"] != _FORMAT:
                raise ValueError
            mark = Mark(said["origin"], said["size"], base64.b64decode(said["root"], validate=True), said["note"])
            if not isinstance(mark.origin + mark.note, str) or type(mark.size) is not int or len(mark.root) != 32:
                raise ValueError
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, binascii.Error) as error:
            raise HighWaterUnreadable(f"{self.path} is no high-water file: {error or type(error).__name__}") from None
        return mark

    async def write(self, mark: Mark) -> None:
        """Replace the mark, durably and as a whole; a smaller one than before is passed over. Raises OSError."""
        if mark.size <= self._written:
            return
        said = {
            "format": _FORMAT,
            "origin": mark.origin,
            "size": mark.size,
            "root": base64.b64encode(mark.root).decode(),
            "note": mark.note,
        }
        await asyncio.to_thread(_replace, self.path, said)
        self._written = mark.size

    def keep_evidence(self, name: str, evidence: Mapping[str, Any]) -> Path:
        """A file beside the mark that says what was seen; an earlier one of this name stays as it is."""
        path = self.path.with_name(f"{name}.json")
        if not path.exists():
            _replace(path, evidence)
        return path


def _replace(path: Path, said: Mapping[str, Any]) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(said, file, ensure_ascii=False, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
