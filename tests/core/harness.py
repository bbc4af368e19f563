"""A world without I/O for tests of decisions: the same drafts and folds as the hub's lane, over plain dictionaries."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from erxhub.core import decide, timers
from erxhub.core.draft import Lookups, MacKeys, Pending, WorkingDraft, Workspace
from erxhub.core.events import At
from erxhub.core.fold import STATE_TYPES
from erxhub.core.keys import stream_key
from erxhub.core.model import Accepted, Caller, Command, Evidence, Missing, Outcome, SignatureFact
from erxhub.policy.pack import china_date, pack_for
from erxhub.policy.rules import Rules
from erxhub.ports import SeededIds
from erxhub.v1 import common_pb2, events_pb2

START_MS = 1_795_312_800_000
"""2026-11-22 10:00 in Beijing."""

LEDGER_KEY = stream_key("ledger", b"test")

SEED = 7
"""Of what a world draws."""


@dataclass(frozen=True)
class _Reply:
    method: str
    stream_key: bytes
    version: int


@dataclass
class World:
    """Streams, names and lists in memory. `do` decides one command; an accepted one is applied."""

    now_ms: int = START_MS
    workspace: Workspace = field(default_factory=Workspace)
    ids: SeededIds = field(default_factory=lambda: SeededIds(SEED))
    mac_keys: MacKeys = field(default_factory=lambda: MacKeys({1: b"k" * 32}))
    events: list[tuple[str, str, Any]] = field(default_factory=list)
    """(stream kind, event, payload) of everything that was committed, timers included."""
    committed: list[tuple[Pending, At]] = field(default_factory=list)
    """The same with everything that the fold needs."""
    _lists: dict[tuple[str, bytes], list[bytes]] = field(default_factory=dict)
    _count: int = 0

    def __post_init__(self) -> None:
        tx = self._draft("hub/test", "")
        tx.emit("ledger", LEDGER_KEY, "ledger.opened", events_pb2.LedgerOpened(origin="test"))
        self._commit(tx)

    def _draft(self, actor: str, request_id: str, area_code: str = "") -> WorkingDraft:
        return WorkingDraft(
            self.workspace,
            Lookups(),
            now_ms=self.now_ms,
            draw=self.ids.draw(),
            caller_actor=actor,
            area_code=area_code,
            request_id=request_id,
            ledger_key=LEDGER_KEY,
            mac_keys=self.mac_keys,
            rules_for=lambda area: Rules(pack_for(area or "000000"), china_date(self.now_ms)),
        )

    def _commit(self, tx: WorkingDraft) -> None:
        for event in tx.in_commit_order():
            self.events.append((event.stream_kind, event.event, event.payload))
            self.committed.append((event, At(event.version, self.now_ms, tx.request_id)))
            working = tx.changed[event.stream_key]
            working.leaf_hash = hashlib.sha256(event.stream_key + event.version.to_bytes(8, "big")).digest()
        tx.apply()

    def _fill(self, wanted: Lookups) -> None:
        """Everything is in memory: what is not there does not exist."""
        space = self.workspace
        for name in wanted.names:
            space.names.setdefault(name, None)
        for key in wanted.streams:
            space.streams.setdefault(key, None)
        for where in wanted.replies:
            space.replies.setdefault(where, None)
        for row in wanted.catalog:
            space.catalog.setdefault(row, None)
        for listed in wanted.listings:
            space.listings.setdefault(listed, [])

    def fire_timers(self) -> None:
        """Fire what is due on every stream."""
        for key, working in list(self.workspace.streams.items()):
            if working is not None:
                tx = self._draft("hub/test", "")
                timers.fire_due(tx, working.kind, key)
                self._commit(tx)

    def advance(self, ms: int) -> None:
        """Move the clock forward; timers fire before the next command."""
        self.now_ms += ms

    def do(
        self,
        caller: Caller,
        method: str,
        request: Any,
        evidence: Evidence | None = None,
        received_at_ms: int | None = None,
    ) -> Outcome:
        """Decide one command as the lane does; request ids are made when the request has none."""
        self._count += 1
        request_id = getattr(request, "request_id", "") or f"test-request-{self._count:06d}"
        command = Command(method, request, caller, request_id, received_at_ms or self.now_ms, evidence or Evidence())
        self.fire_timers()
        for _ in range(20):
            tx = self._draft(caller.actor, request_id, caller.area_code)
            try:
                outcome = decide.decide(tx, command)
            except Missing:
                self._fill(tx._wanted)
                continue
            break
        else:
            raise AssertionError("the decision never stopped asking for look-ups")
        if isinstance(outcome, Accepted) or outcome.keeps_events:
            # As in the engine, a reply belongs to the last kind of thing in commit order.
            sealed = tx.in_commit_order()
            first = next((event for event in sealed if event.stream_kind == sealed[-1].stream_kind), None)
            self._commit(tx)
            if isinstance(outcome, Accepted):
                for dataset, edition, code, body in outcome.catalog_rows:
                    self.workspace.catalog[dataset, edition, code] = body
                self.workspace.replies[caller.actor, request_id] = _Reply(
                    method, first.stream_key if first else b"", first.version if first else 0
                )
                if outcome.taken_request_id:
                    self.workspace.replies[caller.actor, outcome.taken_request_id] = _Reply("reversed", b"", 0)
        return outcome

    def find(self, space: str, key: bytes) -> bytes | None:
        """The stream under a name."""
        return self.workspace.names.get((space, key))

    def state(self, kind: str, key: bytes) -> Any:
        """A stream's state."""
        working = self.workspace.streams.get(key)
        assert working is None or isinstance(working.state, STATE_TYPES[kind])
        return working.state if working else None

    def names_of_events(self, stream_kind: str = "") -> list[str]:
        """The events so far, of one kind of stream or of all."""
        return [event for kind, event, _ in self.events if not stream_kind or kind == stream_kind]


def signed(message: Any, *key_ids: str) -> common_pb2.Signed:
    """A Signed content whose signature bytes do not matter: the evidence says whether it verifies."""
    return common_pb2.Signed(
        payload_type=f"application/vnd.erxhub.v1.{type(message).__name__}",
        payload=message.SerializeToString(deterministic=True),
        signatures=[common_pb2.Signature(key_id=key_id, signature=b"x" * 64) for key_id in key_ids],
    )


def evidence(
    contents: Mapping[str, common_pb2.Signed],
    *,
    file: bytes = b"",
    invalid: Iterable[str] = (),
    unknown: Iterable[str] = (),
    suites: Mapping[str, str] | None = None,
) -> Evidence:
    """What admission would have proven about these contents: all signatures valid but for the named fields."""
    bad, missing = set(invalid), set(unknown)
    facts: dict[str, Sequence[SignatureFact]] = {}
    digests: dict[str, bytes] = {}
    for name, content in contents.items():
        facts[name] = [
            SignatureFact(
                signature.key_id,
                "" if name in missing else (suites or {}).get(name, "ES256"),
                name not in bad and name not in missing,
            )
            for signature in content.signatures
        ]
        digests[name] = hashlib.sha256(content.payload).digest()
    if file:
        digests["file"] = hashlib.sha256(file).digest()
    return Evidence(facts, digests, file=file)
