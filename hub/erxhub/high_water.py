"""The high-water mark: how far this hub's ledger once was, kept outside the database's folder.

Owns two files, and the evidence beside them: the newest checkpoint that was published, and the position of the newest
entry that was acknowledged. Whoever restores an older database does not restore them with it, so that the next start
sees that history became shorter. A mark must never go back.

The position is written after each commit and not forced to the disk: it outlives the process and not the machine, so a
power cut leaves an older one at worst. That is enough against a journal that is cut short or altered after a crash.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Final

FILE_NAME: Final = "high-water.json"
_FORMAT: Final = 1
_POSITION_BYTES: Final = 8
_EVIDENCE: Final = "evidence-"
_EVIDENCE_MAX: Final = 100

_log = logging.getLogger("erxhub.high_water")


class HighWaterUnreadable(Exception):
    """The file is there and is none; the message names it."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A published checkpoint: the log `origin` had `size` leaves under `root`; `note` proves that the hub said so."""

    origin: str
    size: int
    root: bytes
    note: str


@dataclass(frozen=True, slots=True)
class KeptEvidence:
    """A file that a refused start left: its name, the refusal's code, and when it was written (UTC ms)."""

    name: str
    code: str
    written_at_ms: int


class HighWater:
    """One file. Its folder exists and belongs to the hub's operator."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position_path = path.with_suffix(".position")
        self._position_file: int | None = None
        self._writing = Lock()
        self._written = 0
        self._acknowledged = 0

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
        if mark.size > self._written:
            await asyncio.to_thread(self._write, mark)

    def _write(self, mark: Mark) -> None:
        # One thread at a time: a caller that was cancelled leaves its thread at work.
        with self._writing:
            if mark.size <= self._written:
                return
            said = {
                "format": _FORMAT,
                "origin": mark.origin,
                "size": mark.size,
                "root": base64.b64encode(mark.root).decode(),
                "note": mark.note,
            }
            _replace(self.path, said)
            self._written = mark.size

    def position(self) -> int:
        """The newest position that was acknowledged, as far as the file knows; 0 without one."""
        try:
            data = self._position_path.read_bytes()
        except OSError:
            return 0
        return int.from_bytes(data, "big") if len(data) == _POSITION_BYTES else 0

    def acknowledge(self, position: int) -> None:
        """Move the position on. A disk that does not take it is logged and holds nobody up."""
        if position <= self._acknowledged:
            return
        try:
            if self._position_file is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
                self._position_file = os.open(self._position_path, flags, 0o600)
            os.pwrite(self._position_file, position.to_bytes(_POSITION_BYTES, "big"), 0)
            self._acknowledged = position
        except OSError as error:
            _log.warning("%s cannot be written: %s", self._position_path, error.strerror)

    def close(self) -> None:
        """Close the file of positions."""
        if self._position_file is not None:
            os.close(self._position_file)
            self._position_file = None

    def keep_evidence(self, name: str, evidence: Mapping[str, Any]) -> Path:
        """A file beside the mark that says what was seen; an earlier one of this name stays as it is."""
        path = self.path.with_name(f"{name}.json")
        if not path.exists():
            _replace(path, evidence)
        return path

    def evidence(self) -> list[KeptEvidence]:
        """What refused starts left beside the mark, by name; it counts until somebody takes it away."""
        found = []
        for path in sorted(self.path.parent.glob(f"{_EVIDENCE}*.json"))[:_EVIDENCE_MAX]:
            try:
                code, written_at = str(json.loads(path.read_bytes())["code"]), path.stat().st_mtime
            except (OSError, ValueError, KeyError, TypeError):
                code, written_at = "EVIDENCE", 0.0
            found.append(KeptEvidence(path.name, code, int(written_at * 1_000)))
        return found


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
