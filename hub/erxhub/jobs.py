"""What waits for the lane, the batch that it becomes, and the answers that come out of it.

Owns their shapes. It never decides anything, and never reads or writes a store.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from erxhub.accesses import AccessBatch, ReadNote
from erxhub.core import retention
from erxhub.core.draft import Workspace
from erxhub.core.model import Ahead, Command, Refused
from erxhub.ledger.store import Write
from erxhub.marks import MARKS, Marks
from erxhub.sealing import fed_by

# ---- answers ----


@dataclass(slots=True, init=False)
class Replied:
    """An accepted command's answer: the response's bytes, receipt included."""

    body: bytes
    attach_upload: bytes
    slowed: bool

    def __init__(self, body: bytes, attach_upload: bytes = b"", slowed: bool = False) -> None:
        self.body = body
        self.attach_upload = attach_upload
        self.slowed = slowed


@dataclass(frozen=True, slots=True)
class Declined:
    """A refusal, with whether the caller is above its budget."""

    refused: Refused
    slowed: bool = False


Answer = Replied | Declined

# ---- work ----


@dataclass(frozen=True, slots=True)
class Sweep:
    """Fires what is due in some streams."""

    stream_keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Erase:
    """Erases what no retention class keeps."""

    found: retention.Found


@dataclass(frozen=True, slots=True)
class Boot:
    """Opens the ledger, or registers this hub's keys in it."""


Work = Command | ReadNote | Sweep | Erase | Boot


class Job:
    """Work that waits, with the future of who waits for it."""

    def __init__(self, work: Work, content_mac: bytes, size: int, ahead: Ahead | None) -> None:
        self.work = work
        self.content_mac = content_mac
        self.size = size
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.ahead = ahead
        """What its decision will look up, told when it came: at hand then, and not any more in a batch."""
        self.marks: Marks | None = MARKS.get()
        """Where a traced call's times are put down."""
        self.busy = 0
        """How often another hub was just extending a stream of it."""
        self.taken: frozenset[bytes] = frozenset()
        """The streams that it was to extend when it was busy last."""
        self.again_us = 0
        """When another hub came first, or was busy, for the first time."""


# ---- a batch ----


@dataclass(slots=True)
class Batch:
    """One commit in the making. `jobs` are those that the Writes come from, each beside its own."""

    workspace: Workspace
    now_ms: int
    accesses: AccessBatch
    writes: list[Write] = field(default_factory=list)
    jobs: list[Job | None] = field(default_factory=list)
    answers: list[tuple[Job, Any]] = field(default_factory=list)
    fed: set[str] = field(default_factory=set)
    timed: set[bytes] = field(default_factory=set)

    def add(self, job: Job | None, write: Write) -> None:
        """Take a Write into the commit; no job where it is the hub's own."""
        self.fed |= fed_by(write)
        self.writes.append(write)
        self.jobs.append(job)
