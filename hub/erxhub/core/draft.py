"""What a decision sees and leaves: the workspace of one batch and the drafts written into it.

A `Workspace` holds what was loaded for a batch and what its accepted commands changed since. A `WorkingDraft` is one
command's view of it: it copies a state before it changes it, so that a refused command leaves nothing behind. Neither
does any I/O; a look-up that is not loaded raises `Missing` and is noted in `wanted`, and whoever runs the batch loads
it and decides again.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf.message import Message

from erxhub.core import events, index
from erxhub.core.events import At
from erxhub.core.fold import STATE_TYPES, evolve
from erxhub.core.mac import HmacSha256
from erxhub.core.model import AcceptedBefore, Ahead, MessageT, Missing
from erxhub.core.randomness import Randomness
from erxhub.policy.rules import Rules

# The order in which the entries of one commit are built: the later may name the leaf hash of the earlier.
COMMIT_ORDER: Final = (
    "ledger",
    "institution",
    "practitioner",
    "person",
    "voucher",
    "account",
    "quota",
    "trace_code",
    "encounter",
    "prescription",
)
_RANK: Final = {kind: rank for rank, kind in enumerate(COMMIT_ORDER)}

# A stream that begins with one of these has a key that was drawn for it, so it is not looked up first; the store's
# uniqueness is the last defence.
_BEGINNINGS: Final = frozenset(
    {
        "ledger.opened",
        "institution.registered",
        "practitioner.registered",
        "person.registered",
        "account.opened",
        "voucher.issued",
        "encounter.registered",
        "prescription.prechecked",
    }
)


@dataclass(slots=True)
class Working:
    """A stream as the batch sees it."""

    kind: str
    version: int
    leaf_hash: bytes
    state: Any


@dataclass(slots=True)
class Lookups:
    """Look-ups that a decision asked for and that are not loaded yet."""

    names: set[tuple[str, bytes]] = field(default_factory=set)
    streams: set[bytes] = field(default_factory=set)
    replies: set[tuple[str, str]] = field(default_factory=set)
    catalog: set[tuple[str, str, str]] = field(default_factory=set)
    listings: set[tuple[str, bytes, int]] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.names or self.streams or self.replies or self.catalog or self.listings)


@dataclass(slots=True, init=False)
class Pending:
    """An event that is not sealed yet."""

    stream_kind: str
    stream_key: bytes
    version: int
    event: str
    number: int
    payload: Any
    body: bytes
    actor: str
    causes: tuple[bytes | tuple[bytes, int], ...]

    def __init__(
        self,
        stream_kind: str,
        stream_key: bytes,
        version: int,
        event: str,
        number: int,
        payload: Any,
        body: bytes,
        actor: str,
        causes: tuple[bytes | tuple[bytes, int], ...],
    ) -> None:
        self.stream_kind = stream_kind
        self.stream_key = stream_key
        self.version = version
        self.event = event
        self.number = number
        self.payload = payload
        self.body = body
        self.actor = actor
        self.causes = causes


@dataclass(slots=True)
class Workspace:
    """What one batch knows. A key that is present with None was looked up and does not exist."""

    names: dict[tuple[str, bytes], bytes | None] = field(default_factory=dict)
    streams: dict[bytes, Working | None] = field(default_factory=dict)
    replies: dict[tuple[str, str], Any] = field(default_factory=dict)
    catalog: dict[tuple[str, str, str], bytes | None] = field(default_factory=dict)
    listings: dict[tuple[str, bytes, int], list[bytes]] = field(default_factory=dict)
    newest_listed: dict[tuple[str, bytes], int] = field(default_factory=dict)
    """Position of the newest row of a list that was loaded; 0 for an empty one."""
    secrets: dict[tuple[str, str], tuple[tuple[str, bytes], ...]] = field(default_factory=dict)
    """The names under which secrets of this batch are looked for: each is asked for many times."""
    added: dict[tuple[str, bytes], list[bytes]] = field(default_factory=dict)
    """Streams that this batch put into a list, oldest first."""

    def secret_names(self, macs: MacKeys, space: str, value: str) -> tuple[tuple[str, bytes], ...]:
        """The names under which a secret is looked for."""
        known = self.secrets.get((space, value))
        if known is None:
            known = self.secrets[space, value] = tuple(
                (space, macs.mac(space, value, version)) for version in macs.keys
            )
        return known

    def has(self, ahead: Ahead, macs: MacKeys, ledger_key: bytes, wanted: Lookups) -> bool:
        """Whether all of this is loaded; what is not is then in `wanted`."""
        names = [name for name in ahead.names if name not in self.names]
        for space, value in ahead.secrets:
            names += [name for name in self.secret_names(macs, space, value) if name not in self.names]
        streams = [key for key in ahead.streams if key not in self.streams]
        if ahead.ledger and ledger_key not in self.streams:
            streams.append(ledger_key)
        wanted.names.update(names)
        wanted.streams.update(streams)
        return not names and not streams


@dataclass(frozen=True, slots=True)
class MacKeys:
    """The ledger's HMAC keys by version; the newest makes new hashes, the others are still good for look-ups."""

    keys: Mapping[int, bytes]
    newest: int = field(init=False)
    """The version that makes new hashes."""
    _begun: Mapping[int, HmacSha256] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "newest", max(self.keys))
        object.__setattr__(self, "_begun", {version: HmacSha256(key) for version, key in self.keys.items()})

    def mac(self, space: str, value: str, version: int) -> bytes:
        """HMAC-SHA256 over space, a zero byte and the value; 32 bytes."""
        return self._begun[version].digest(b"%b\0%b" % (space.encode(), value.encode()))


class WorkingDraft:
    """One decision's view of a workspace; see the `Draft` protocol for the meaning of each method."""

    def __init__(
        self,
        workspace: Workspace,
        wanted: Lookups,
        *,
        now_ms: int,
        draw: Randomness,
        caller_actor: str,
        area_code: str,
        request_id: str,
        ledger_key: bytes,
        mac_keys: MacKeys,
        rules_for: Callable[[str], Rules],
    ) -> None:
        self.now_ms = now_ms
        self.draw = draw
        self.ledger_key = ledger_key
        self.pending: list[Pending] = []
        self.changed: dict[bytes, Working] = {}
        self.read: set[bytes] = set()
        """Streams that the decision looked at: on a database with several hubs they must still be so at its commit."""
        self.absent: set[tuple[str, bytes]] = set()
        """Names that would have denied it, and lead nowhere."""
        self.lists: set[tuple[str, bytes]] = set()
        """Lists by whose end it decided."""
        self.names: list[tuple[tuple[str, bytes], bytes]] = []
        """(name, stream key) of every name that the events give; known from `apply` on."""
        self.listings: list[tuple[tuple[str, bytes], bytes, int]] = []
        """(list, stream key, version) of every listing that the events add; known from `apply` on."""
        self._workspace = workspace
        self._wanted = wanted
        self._caller_actor = caller_actor
        self.area_code = area_code
        self.request_id = request_id
        self._mac_keys = mac_keys
        self._rules_for = rules_for

    # ---- look-ups ----

    def rules(self, area_code: str) -> Rules:
        return self._rules_for(area_code)

    def want(
        self,
        names: Sequence[tuple[str, bytes]] = (),
        streams: Sequence[bytes] = (),
        catalog: Sequence[tuple[str, str, str]] = (),
    ) -> None:
        space = self._workspace
        complete = True
        for name in names:
            if name not in space.names:
                self._wanted.names.add(name)
                complete = False
        for key in streams:
            if key not in space.streams and key not in self.changed:
                self._wanted.streams.add(key)
                complete = False
        for row in catalog:
            if row not in space.catalog:
                self._wanted.catalog.add(row)
                complete = False
        if not complete:
            raise Missing

    def find(self, space: str, key: bytes) -> bytes | None:
        name = (space, key)
        if space in index.DENYING:
            self.absent.add(name)
        try:
            return self._workspace.names[name]
        except KeyError:
            self._wanted.names.add(name)
            raise Missing from None

    def find_secret(self, space: str, value: str) -> bytes | None:
        names = self.secret_names(space, value)
        self.want(names)
        for name in names:
            key = self._workspace.names[name]
            if key is not None:
                return key
        return None

    def secret_names(self, space: str, value: str) -> tuple[tuple[str, bytes], ...]:
        return self._workspace.secret_names(self._mac_keys, space, value)

    def want_ahead(self, ahead: Ahead) -> None:
        if not self._workspace.has(ahead, self._mac_keys, self.ledger_key, self._wanted):
            raise Missing

    def listing(self, space: str, key: bytes, limit: int) -> list[bytes]:
        try:
            stored = self._workspace.listings[space, key, limit]
        except KeyError:
            self._wanted.listings.add((space, key, limit))
            raise Missing from None
        if space in index.DECIDING_LISTS:
            self.lists.add((space, key))
        added = self._workspace.added.get((space, key), [])
        return list(dict.fromkeys([*reversed(added), *stored]))[:limit]

    def reply(self, request_id: str) -> AcceptedBefore | None:
        where = (self._caller_actor, request_id)
        try:
            found = self._workspace.replies[where]
        except KeyError:
            self._wanted.replies.add(where)
            raise Missing from None
        if found is None:
            return None
        return AcceptedBefore(found.method, found.stream_key or b"", found.version or 0)

    def _working(self, stream_key: bytes) -> Working | None:
        self.read.add(stream_key)
        working = self.changed.get(stream_key)
        if working is not None:
            return working
        try:
            return self._workspace.streams[stream_key]
        except KeyError:
            self._wanted.streams.add(stream_key)
            raise Missing from None

    def state(self, stream_key: bytes, kind: type[MessageT]) -> MessageT | None:
        working = self._working(stream_key)
        if working is None:
            return None
        state = working.state
        assert isinstance(state, kind)
        return state

    def version(self, stream_key: bytes) -> int:
        working = self._working(stream_key)
        return working.version if working else 0

    def leaf(self, stream_key: bytes) -> bytes:
        if stream_key not in self._workspace.streams:
            self._wanted.streams.add(stream_key)
            raise Missing
        self.read.add(stream_key)
        working = self._workspace.streams[stream_key]
        assert working is not None, "a cause is a stream that exists"
        return working.leaf_hash

    def catalog(self, dataset: str, edition: str, code: str) -> bytes | None:
        row = (dataset, edition, code)
        try:
            return self._workspace.catalog[row]
        except KeyError:
            self._wanted.catalog.add(row)
            raise Missing from None

    # ---- secrets ----

    def mac(self, space: str, value: str) -> bytes:
        return self._mac_keys.mac(space, value, self._mac_keys.newest)

    @property
    def mac_key_version(self) -> int:
        return self._mac_keys.newest

    def mac_matches(self, space: str, value: str, mac: bytes) -> bool:
        return any(hmac.compare_digest(known, mac) for _, known in self.secret_names(space, value))

    # ---- events ----

    def emit(
        self,
        stream_kind: str,
        stream_key: bytes,
        event: str,
        payload: Message,
        *,
        actor: str = "",
        causes: Sequence[bytes | tuple[bytes, int]] = (),
    ) -> None:
        working = self.changed.get(stream_key)
        if working is None:
            before = None if event in _BEGINNINGS else self._working(stream_key)
            if before is None:
                working = Working(stream_kind, 0, b"", STATE_TYPES[stream_kind]())
            else:
                working = Working(before.kind, before.version, before.leaf_hash, type(before.state)())
                working.state.CopyFrom(before.state)
            self.changed[stream_key] = working
        kind = events.BY_NAME[event]
        assert type(payload) is kind.payload, event
        assert stream_kind in kind.stream_kinds, event
        version = working.version = working.version + 1
        evolve(stream_kind, working.state, event, payload, At(version, self.now_ms, self.request_id))
        self.pending.append(
            Pending(
                stream_kind,
                stream_key,
                version,
                event,
                kind.number,
                payload,
                payload.SerializeToString(deterministic=True),
                f"{self._caller_actor}/{actor}" if actor else self._caller_actor,
                tuple(causes),
            )
        )

    # ---- for whoever runs the batch ----

    def in_commit_order(self) -> list[Pending]:
        """The events as they are sealed: by kind of stream, in the order of emission within a kind."""
        if len(self.changed) == 1:
            return self.pending
        return sorted(self.pending, key=lambda event: _RANK[event.stream_kind])

    def rests_on(
        self,
    ) -> tuple[
        tuple[tuple[bytes, int], ...],
        tuple[tuple[str, bytes], ...],
        tuple[tuple[str, bytes, int], ...],
    ]:
        """What the decision rests on beside what it extends; before `apply`.

        That is (stream key, version) of streams that it read, names that are absent, and (space, key, newest position)
        of lists. The ledger's own stream is left out: what is published there binds from the next look-up on, and what
        must bind at once (a revocation) has a name whose absence counts.
        """
        space = self._workspace
        streams = ((key, space.streams.get(key)) for key in self.read - self.changed.keys())
        return (
            tuple((key, stream.version) for key, stream in streams if stream is not None and stream.kind != "ledger"),
            tuple(name for name in self.absent if space.names.get(name) is None),
            tuple((*place, space.newest_listed[place]) for place in self.lists),
        )

    def apply(self) -> None:
        """Make the draft's changes visible to the later commands of the batch; nothing is emitted any more."""
        space = self._workspace
        space.streams.update(self.changed)
        for event in self.pending:
            key = event.stream_key
            for name in index.names(event.event, event.payload, self.mac):
                self.names.append((name, key))
                space.names[name] = key
            for where in index.listings(event.event, key, event.payload, self.changed[key].state):
                self.listings.append((where, key, event.version))
                space.added.setdefault(where, []).append(key)
