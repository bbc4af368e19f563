"""Accesses and refusals as entries: the access streams of one hub, and the budgets that bound them.

One stream belongs to (caller, hub process, UTC day), so that hubs never wait for one another. Owns what such an entry
says and under whom it is listed; it never decides what is refused and never writes: it hands out Writes for the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from erxhub.config import Config
from erxhub.core import events, index
from erxhub.core.draft import Workspace
from erxhub.core.keys import stream_key
from erxhub.core.model import Refused, Target
from erxhub.ledger.entry import FIRST_PREV_LEAF_HASH, EntryKind, Header, seal
from erxhub.ledger.store import Listing, Write
from erxhub.ports import Ids
from erxhub.v1 import events_pb2

_DAY_MS: Final = 86_400_000
_MINUTE_MS: Final = 60_000
_REVOKED_REMEMBERED_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class ReadNote:
    """A finished read, or a refusal, that has to be recorded before its reply leaves."""

    caller_actor: str
    caller_kind: str
    method: str
    request_id: str
    targets: tuple[Target, ...]
    refused: Refused | None = None
    case_reason: str = ""


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


class AccessLog:
    """The access streams that this hub process writes."""

    def __init__(self, ids: Ids, config: Config) -> None:
        self._ids = ids
        self._config = config
        self._streams: dict[str, _Stream] = {}
        self._budgets: dict[str, _Budget] = {}
        self._over: set[str] = set()
        self._revoked_reported: dict[bytes, int] = {}
        # The counts in what was handed out last: (how many, since when), until it is known to be written.
        self._told: dict[str, tuple[int, int]] = {}

    def forget(self, *, nothing_written: bool = False) -> None:
        """Begin new streams: what was handed out last may not have been written.

        `nothing_written`: none of it was, so it is told again.
        """
        self._streams.clear()
        if nothing_written:
            self._revoked_reported.clear()
            for actor, (count, from_ms) in self._told.items():
                budget = self._budgets[actor]
                budget.over, budget.over_from_ms = count, from_ms
                self._over.add(actor)
        self._told.clear()

    def written(self) -> None:
        """What was handed out last is durable."""
        self._told.clear()

    def spend(self, actor: str, now_ms: int) -> bool:
        """Count one access or refusal; True when the caller is above its budget and this one leaves no own entry."""
        budget = self._budgets.setdefault(actor, _Budget())
        minute = now_ms // _MINUTE_MS
        if budget.minute != minute:
            budget.minute, budget.used = minute, 0
        budget.used += 1
        if budget.used <= self._config.access_budget_per_minute:
            return False
        if not budget.over:
            budget.over_from_ms = now_ms
            self._over.add(actor)
        budget.over += 1
        return True

    def has_overdue(self, now_ms: int) -> bool:
        """Whether a counting entry is to be written for a minute that is over."""
        return any(self._budgets[actor].over_from_ms // _MINUTE_MS < now_ms // _MINUTE_MS for actor in self._over)

    def reports_revoked(self, fingerprint: bytes, now_ms: int) -> bool:
        """Whether an attempt with a revoked certificate is recorded: the first in an hour is."""
        last = self._revoked_reported.get(fingerprint)
        if last is not None and now_ms - last < self._config.revoked_report_interval_ms:
            return False
        if len(self._revoked_reported) >= _REVOKED_REMEMBERED_MAX:
            self._revoked_reported.clear()
        self._revoked_reported[fingerprint] = now_ms
        return True

    def writes(self, notes: Sequence[ReadNote], workspace: Workspace, now_ms: int) -> Iterator[Write]:
        """The Writes of one commit: an entry for each refusal, one for all reads of a caller, counting entries."""
        reads: dict[tuple[str, str], list[ReadNote]] = {}
        for note in notes:
            if note.refused is not None:
                yield self._refusal(note, note.refused, workspace, now_ms)
            else:
                reads.setdefault((note.caller_actor, note.case_reason), []).append(note)
        for grouped in reads.values():
            yield from self._reads(grouped, workspace, now_ms)
        for actor in sorted(self._over):
            budget = self._budgets[actor]
            if budget.over_from_ms // _MINUTE_MS < now_ms // _MINUTE_MS:
                yield self._over_budget(actor, budget, workspace, now_ms)
                self._over.discard(actor)

    def _refusal(self, note: ReadNote, refused: Refused, workspace: Workspace, now_ms: int) -> Write:
        payload = events_pb2.CommandRefused(
            method=note.method,
            code=refused.code,
            field=refused.field,
            stream_keys=[target.stream_key for target in refused.targets],
            caller_kind=note.caller_kind,
        )
        return self._entry(
            workspace,
            now_ms,
            note.caller_actor,
            EntryKind.REFUSAL,
            refused.entry,
            payload,
            note.request_id,
            note.targets,
        )

    def _reads(self, notes: Sequence[ReadNote], workspace: Workspace, now_ms: int) -> Iterator[Write]:
        listed = [(note, target) for note in notes for target in note.targets or (Target(b""),)]
        size = self._config.access_targets_max
        for part in (listed[start : start + size] for start in range(0, len(listed), size)):
            payload = events_pb2.AccessRecorded(
                targets=[
                    events_pb2.AccessTarget(stream_key=target.stream_key, method=note.method, outcome="OK")
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
                [target for _, target in part],
            )

    def _over_budget(self, actor: str, budget: _Budget, workspace: Workspace, now_ms: int) -> Write:
        payload = events_pb2.AccessBudgetExceeded(
            count=budget.over,
            from_ms=budget.over_from_ms,
            until_ms=now_ms,
            caller_kind=actor.partition("/")[0],
        )
        self._told[actor] = (budget.over, budget.over_from_ms)
        budget.over = 0
        return self._entry(workspace, now_ms, actor, EntryKind.ACCESS, "access.budget_exceeded", payload, "", ())

    def _entry(
        self,
        workspace: Workspace,
        now_ms: int,
        actor: str,
        kind: EntryKind,
        event: str,
        payload: Any,
        request_id: str,
        targets: Iterable[Target],
    ) -> Write:
        draw = self._ids.draw()
        day = now_ms // _DAY_MS
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
        under = set()
        for target in targets:
            if target.stream_key:
                under.add((index.ACCESS, target.stream_key))
            person = target.person_key or _person_of(workspace, target.stream_key)
            if person:
                under.add((index.PERSON_ACCESS, person))
        return Write(
            entries=(entry,),
            listings=tuple(Listing(space, key, stream.stream_key, header.version) for space, key in sorted(under)),
        )


def _person_of(workspace: Workspace, key: bytes) -> bytes:
    working = workspace.streams.get(key)
    if working is None or working.kind not in {"prescription", "encounter"}:
        return b""
    person: bytes = working.state.person_key
    return person
