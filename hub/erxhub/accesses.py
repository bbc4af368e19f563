"""Accesses and refusals as entries: the access streams of one hub, and the budgets that bound them.

One stream belongs to (caller, hub process, UTC day), so that hubs never wait for one another. Owns what such an entry
says and under whom it is listed; it never decides what is refused and never writes: it hands out Writes for the batch.
What a commit changes in the budgets counts once the commit is durable, and not before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from erxhub.config import Config
from erxhub.core import events, index
from erxhub.core.draft import Workspace
from erxhub.core.keys import stream_key
from erxhub.core.model import Refused, Target
from erxhub.ledger.entry import FIRST_PREV_LEAF_HASH, EntryKind, Header, seal
from erxhub.ledger.store import Listing, Write
from erxhub.policy.pack import DAY_MS
from erxhub.ports import Ids
from erxhub.v1 import events_pb2

_MINUTE_MS: Final = 60_000
_REVOKED_REMEMBERED_MAX: Final = 10_000


class ReadNote(NamedTuple):
    """A finished read, or a refusal, that has to be recorded before its reply leaves.

    `fingerprint` is that of a revoked certificate (32 bytes) in the refusal of it, and b"" otherwise.
    """

    caller_actor: str
    caller_kind: str
    method: str
    request_id: str
    targets: tuple[Target, ...]
    refused: Refused | None = None
    case_reason: str = ""
    fingerprint: bytes = b""


@dataclass(slots=True)
class _Stream:
    stream_key: bytes
    day: int
    version: int = 0
    leaf_hash: bytes = FIRST_PREV_LEAF_HASH


@dataclass(slots=True)
class _Budget:
    minute: int = -1
    used: int = 0
    over: int = 0
    over_from_ms: int = 0


@dataclass(slots=True)
class AccessBatch:
    """What one commit records, and what it changes in memory once it is durable."""

    now_ms: int
    notes: list[ReadNote] = field(default_factory=list)
    spent: Counter[str] = field(default_factory=Counter)
    revoked: set[bytes] = field(default_factory=set)
    told: list[str] = field(default_factory=list)


class AccessLog:
    """The access streams that this hub process writes.

    One commit at a time: what `note` and `writes` collect in a batch holds after `written`; a batch that is thrown away
    leaves the budgets as they were.
    """

    def __init__(self, ids: Ids, config: Config) -> None:
        self._ids = ids
        self._config = config
        self._streams: dict[str, _Stream] = {}
        self._budgets: dict[str, _Budget] = {}
        self._over: set[str] = set()
        self._revoked_reported: dict[bytes, int] = {}

    def forget(self) -> None:
        """Begin new streams: what was handed out last may not have been written."""
        self._streams.clear()

    def note(self, batch: AccessBatch, note: ReadNote) -> bool:
        """Record an access or a refusal; True when the caller is above its budget and this one leaves no own entry."""
        batch.spent[note.caller_actor] += 1
        if self._used(note.caller_actor, batch.now_ms) + batch.spent[note.caller_actor] > self._limit:
            return True
        if note.fingerprint:
            batch.revoked.add(note.fingerprint)
        batch.notes.append(note)
        return False

    def is_reported(self, fingerprint: bytes, now_ms: int, batch: AccessBatch | None = None) -> bool:
        """Whether an attempt with this revoked certificate was recorded within the hour, or is in `batch`."""
        if batch is not None and fingerprint in batch.revoked:
            return True
        last = self._revoked_reported.get(fingerprint)
        return last is not None and now_ms - last < self._config.revoked_report_interval_ms

    def has_overdue(self, now_ms: int) -> bool:
        """Whether a counting entry is to be written for a minute that is over."""
        return any(self._is_overdue(actor, now_ms) for actor in self._over)

    def writes(self, batch: AccessBatch, workspace: Workspace, *, closing: bool = False) -> Iterator[Write]:
        """The Writes of one commit: an entry for each refusal, one for all reads of a caller, counting entries.

        A counting entry is due when its minute is over; with `closing` each is.
        """
        reads: dict[tuple[str, str], list[ReadNote]] = {}
        for note in batch.notes:
            if note.refused is not None:
                yield self._refusal(note, note.refused, workspace, batch.now_ms)
            else:
                reads.setdefault((note.caller_actor, note.case_reason), []).append(note)
        for grouped in reads.values():
            yield from self._reads(grouped, workspace, batch.now_ms)
        for actor in sorted(self._over):
            if closing or self._is_overdue(actor, batch.now_ms):
                yield self._over_budget(actor, self._budgets[actor], workspace, batch.now_ms)
                batch.told.append(actor)

    def written(self, batch: AccessBatch) -> None:
        """The batch is durable: from now on its counts hold."""
        for actor in batch.told:
            self._budgets[actor].over = 0
            self._over.discard(actor)
        for actor, count in batch.spent.items():
            self._spend(actor, count, batch.now_ms)
        for fingerprint in batch.revoked:
            if len(self._revoked_reported) >= _REVOKED_REMEMBERED_MAX:
                self._revoked_reported.clear()
            self._revoked_reported[fingerprint] = batch.now_ms

    @property
    def _limit(self) -> int:
        return self._config.access_budget_per_minute

    def _used(self, actor: str, now_ms: int) -> int:
        budget = self._budgets.get(actor)
        return budget.used if budget is not None and budget.minute == now_ms // _MINUTE_MS else 0

    def _spend(self, actor: str, count: int, now_ms: int) -> None:
        used = self._used(actor, now_ms)
        budget = self._budgets.setdefault(actor, _Budget())
        budget.minute, budget.used = now_ms // _MINUTE_MS, used + count
        over = max(0, budget.used - self._limit) - max(0, used - self._limit)
        if not over:
            return
        if not budget.over:
            budget.over_from_ms = now_ms
            self._over.add(actor)
        budget.over += over

    def _is_overdue(self, actor: str, now_ms: int) -> bool:
        return self._budgets[actor].over_from_ms // _MINUTE_MS < now_ms // _MINUTE_MS

    def _refusal(self, note: ReadNote, refused: Refused, workspace: Workspace, now_ms: int) -> Write:
        payload = events_pb2.CommandRefused(
            method=note.method,
            code=refused.code,
            field=refused.field,
            stream_keys=[target.stream_key for target in note.targets],
            caller_kind=note.caller_kind,
            person_keys=filter(None, dict.fromkeys(_person_key(workspace, target) for target in note.targets)),
        )
        return self._entry(
            workspace,
            now_ms,
            note.caller_actor,
            EntryKind.REFUSAL,
            refused.entry,
            payload,
            note.request_id,
        )

    def _reads(self, notes: Sequence[ReadNote], workspace: Workspace, now_ms: int) -> Iterator[Write]:
        listed = [(note, target) for note in notes for target in note.targets or (Target(b""),)]
        size = self._config.access_targets_max
        for part in (listed[start : start + size] for start in range(0, len(listed), size)):
            payload = events_pb2.AccessRecorded(
                targets=[
                    events_pb2.AccessTarget(
                        stream_key=target.stream_key,
                        method=note.method,
                        outcome="OK",
                        person_key=_person_key(workspace, target),
                    )
                    for note, target in part
                ],
                caller_kind=notes[0].caller_kind,
                case_reason=notes[0].case_reason,
            )
            yield self._entry(
                workspace,
                now_ms,
                notes[0].caller_actor,
                EntryKind.ACCESS,
                "audit.read",
                payload,
                part[0][0].request_id,
            )

    def _over_budget(self, actor: str, budget: _Budget, workspace: Workspace, now_ms: int) -> Write:
        payload = events_pb2.AccessBudgetExceeded(
            count=budget.over,
            from_ms=budget.over_from_ms,
            until_ms=now_ms,
            caller_kind=actor.partition("/")[0],
        )
        return self._entry(workspace, now_ms, actor, EntryKind.ACCESS, "access.budget_exceeded", payload, "")

    def _entry(
        self,
        workspace: Workspace,
        now_ms: int,
        actor: str,
        kind: EntryKind,
        event: str,
        payload: Any,
        request_id: str,
    ) -> Write:
        draw = self._ids.draw()
        day = now_ms // DAY_MS
        stream = self._streams.get(actor)
        if stream is None or stream.day != day:
            stream = self._streams[actor] = _Stream(stream_key("access", draw.bytes(16)), day)
        header = Header(
            stream_kind="access",
            stream_key=stream.stream_key,
            version=stream.version + 1,
            kind=kind,
            type=events.BY_NAME[event].number,
            recorded_at_ms=now_ms,
            actor=actor,
            request_id=request_id,
            policy_digest=b"",
            causes=(),
        )
        entry = seal(header, draw.bytes(16), payload.SerializeToString(deterministic=True), stream.leaf_hash)
        stream.version, stream.leaf_hash = header.version, entry.leaf_hash
        under = index.listings(event, stream.stream_key, payload, None)
        return Write(
            entries=(entry,),
            listings=tuple(Listing(space, key, stream.stream_key, header.version) for space, key in under),
        )


def _person_key(workspace: Workspace, target: Target) -> bytes:
    return target.person_key or person_of(workspace, target.stream_key)


def person_of(workspace: Workspace, key: bytes) -> bytes:
    """The person whom a loaded stream is about; b"" when it is about none, or was not loaded."""
    working = workspace.streams.get(key)
    if working is None or working.kind not in {"prescription", "encounter"}:
        return b""
    person: bytes = working.state.person_key
    return person
