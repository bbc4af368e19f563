"""What a witness remembers: for each log the newest checkpoint that it cosigned, and requests that are evidence.

Owns the files of its state: one signed note per log, named by the hash of the origin, replaced as a whole. A record is
durable when `replace` returns. It must never let a record go back: comparing and writing are one act, of one process.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import threading
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from erxhub.proof.checkpoints import read_checkpoint
from erxhub.proof.merkle import ProofInvalid
from erxhub.proof.notes import NoteKey, open_note
from erxhub.witness.protocol import origin_hash

EVIDENCE_MAX: Final = 1_000
"""So many pieces of evidence are kept; a log that signs more conflicts than that is convicted by the first ones."""
_RECORD: Final = re.compile("[0-9a-f]{64}")


class Recorded(NamedTuple):
    """The newest checkpoint of a log that was cosigned, and its note with the log's line and the witness's."""

    size: int
    root: bytes
    note: str


class RecordsBroken(Exception):
    """The state cannot be read or written: nothing may be cosigned until it can."""


class Records(Protocol):
    """A witness's state."""

    async def read(self, origin: str) -> Recorded | None:
        """What is recorded for a log. Raises RecordsBroken."""

    async def replace(self, origin: str, old_size: int, note: str) -> bool:
        """Record a checkpoint if the recorded size is still `old_size` (0: nothing). Durable on return.

        False when it is another by now. Raises RecordsBroken, after which either may be recorded.
        """

    async def keep_evidence(self, evidence: dict[str, Any]) -> None:
        """Keep a request that speaks against its log. Raises RecordsBroken."""


class FileRecords:
    """Records in a folder. Made once per folder at a time: a second witness on it is refused."""

    def __init__(self, folder: Path, key: NoteKey) -> None:
        """`key` is the witness's own: a record is read only if it bears its signature. Raises RecordsBroken."""
        self._folder = folder
        self._evidence = folder / "evidence"
        self._key = key
        self._one_at_a_time = threading.Lock()
        try:
            self._evidence.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = (folder / "lock").open("wb")
        except OSError as error:
            raise RecordsBroken(f"{folder}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise RecordsBroken(f"{folder} is in use by another witness") from None

    def close(self) -> None:
        """Let another witness have the folder."""
        self._lock.close()

    async def read(self, origin: str) -> Recorded | None:
        return await asyncio.to_thread(self.read_now, origin)

    async def replace(self, origin: str, old_size: int, note: str) -> bool:
        return await asyncio.to_thread(self._replace, origin, old_size, note)

    async def keep_evidence(self, evidence: dict[str, Any]) -> None:
        await asyncio.to_thread(self._keep, evidence)

    def read_now(self, origin: str) -> Recorded | None:
        """As `read`, for callers without an event loop."""
        return read_record(self._folder, origin, self._key)

    def _replace(self, origin: str, old_size: int, note: str) -> bool:
        # A thread lock: a caller that is cancelled leaves its thread behind, and it must still exclude the next.
        with self._one_at_a_time:
            recorded = self.read_now(origin)
            if (recorded.size if recorded else 0) != old_size:
                return False
            try:
                write_durably(self._folder / origin_hash(origin), note.encode())
            except OSError as error:
                raise RecordsBroken(f"{self._folder}: {error.strerror}") from None
            return True

    def _keep(self, evidence: dict[str, Any]) -> None:
        data = json.dumps(evidence, ensure_ascii=False, indent=1).encode()
        path = self._evidence / f"{sha256(data).hexdigest()[:32]}.json"
        with self._one_at_a_time:
            try:
                if not path.exists() and len(list(self._evidence.iterdir())) < EVIDENCE_MAX:
                    write_durably(path, data)
            except OSError as error:
                raise RecordsBroken(f"{self._evidence}: {error.strerror}") from None


def read_records(folder: Path, key: NoteKey) -> dict[str, Recorded]:
    """What a witness with this key has recorded, by origin. Raises RecordsBroken."""
    names = [path.name for path in folder.glob("*") if _RECORD.fullmatch(path.name)]
    found = (_read(folder / name, key) for name in sorted(names))
    return {one[0]: one[1] for one in found if one is not None}


def read_record(folder: Path, origin: str, key: NoteKey) -> Recorded | None:
    """What a witness with this key has recorded for a log. Raises RecordsBroken."""
    found = _read(folder / origin_hash(origin), key)
    if found is None:
        return None
    if found[0] != origin:
        raise RecordsBroken(f"{folder / origin_hash(origin)} is another log's")
    return found[1]


def _read(path: Path, key: NoteKey) -> tuple[str, Recorded] | None:
    try:
        note = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RecordsBroken(f"{path}: {error.strerror}") from None
    try:
        said = read_checkpoint(open_note(note, [key]).text)
    except ProofInvalid as damage:
        raise RecordsBroken(f"{path} is damaged: {damage.reason}") from None
    return said.origin, Recorded(said.size, said.root, note.decode())


def write_durably(path: Path, data: bytes) -> None:
    """Put a file in place, whole or not at all, and on the disk before this returns."""
    new = path.with_name(path.name + ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
