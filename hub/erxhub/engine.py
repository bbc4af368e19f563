"""The lane: the one task of a hub that takes commands in batches, decides them one after another, and commits once.

Owns the order of things: repeated request, look-ups, due timers, decision, entries, one commit, receipt. It never
decides a business question (core does), never touches SQL (the store does), and never lets a caller's cancellation
reach a commit: a call waits for its command's future, and the lane does not care whether it still does.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from erxhub.accesses import AccessLog, ReadNote
from erxhub.config import Config
from erxhub.core import decide, events, index, timers
from erxhub.core.draft import Lookups, Pending, Working, WorkingDraft, Workspace
from erxhub.core.fold import STATE_TYPES
from erxhub.core.keys import stream_key
from erxhub.core.model import Accepted, Command, Missing, Outcome, Refused, Target
from erxhub.crypto.receipt import receipt_message
from erxhub.keys import HubKeys
from erxhub.ledger.entry import FIRST_PREV_LEAF_HASH, Entry, EntryKind, Header, seal
from erxhub.ledger.store import (
    Blob,
    CatalogRow,
    Listing,
    Loaded,
    NewName,
    NewState,
    Reply,
    Store,
    StoreUnavailable,
    Wanted,
    Write,
)
from erxhub.policy.pack import Pack, PackLibrary, china_date
from erxhub.policy.rules import Rules
from erxhub.ports import Clock, Draw, Ids, give_way
from erxhub.v1 import common_pb2, events_pb2, state_pb2

_log = logging.getLogger("erxhub.engine")

LEDGER_NAME: Final = ("ledger", b"ledger")
REVERSED: Final = "reversed"
"""The method of a request id that a reversal took."""

_ROUNDS_MAX: Final = 12
_DAY_MS: Final = 86_400_000
_ATTACH_NONE: Final = b"\0"
_ATTACH_UPLOAD: Final = b"\1"


@dataclass(frozen=True, slots=True)
class Replied:
    """An accepted command's answer: the response's bytes, receipt included."""

    body: bytes
    attach_upload: bytes = b""
    slowed: bool = False


@dataclass(frozen=True, slots=True)
class Declined:
    """A refusal, with whether the caller is above its budget."""

    refused: Refused
    slowed: bool = False


Answer = Replied | Declined


class HubBusy(Exception):
    """The lane's queue is full."""


class HubStopped(Exception):
    """The lane is stopping, or its store cannot be written now."""


@dataclass(slots=True)
class _Job:
    work: Command | ReadNote | _Sweep | _Boot
    content_mac: bytes
    size: int
    future: asyncio.Future[Any]
    tries: int = 0


@dataclass(frozen=True, slots=True)
class _Sweep:
    stream_keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class _Boot:
    """Opens the ledger, or registers this hub's keys in it."""


@dataclass(slots=True)
class _Batch:
    """One commit in the making."""

    workspace: Workspace
    now_ms: int
    writes: list[Write] = field(default_factory=list)
    jobs: list[_Job | None] = field(default_factory=list)
    answers: list[tuple[_Job, Any]] = field(default_factory=list)
    notes: list[ReadNote] = field(default_factory=list)
    fed: set[str] = field(default_factory=set)
    timed: set[bytes] = field(default_factory=set)


@dataclass(slots=True)
class Counters:
    """What is counted and not appended."""

    batches: int = 0
    commands: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    counted_only: dict[str, int] = field(default_factory=dict)

    def count(self, code: str) -> None:
        """Count a refusal that leaves no entry."""
        self.counted_only[code] = self.counted_only.get(code, 0) + 1


class Engine:
    """One hub's lane over one store."""

    def __init__(
        self,
        store: Store,
        *,
        clock: Clock,
        ids: Ids,
        keys: HubKeys,
        packs: PackLibrary,
        config: Config,
    ) -> None:
        self.store = store
        self.counters = Counters()
        self.config = config
        self.clock = clock
        self.ledger_key = b""
        self._ids = ids
        self._keys = keys
        self._packs = packs
        self._mac_keys = keys.mac_keys
        self._content_key = keys.content_mac_key()
        self._sealer = keys.reply_sealer()
        self._jobs: deque[_Job] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._newest_ms = 0
        self._accesses = AccessLog(ids, config)
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._watches_ended = False
        self._rules: tuple[int, dict[str, Rules]] = (-1, {})

    # ---- life ----

    async def start(self) -> None:
        """Find or open the ledger, register this hub's keys, and start the lane.

        Raises StoreUnavailable when the store cannot be read or written.
        """
        newest = await self.store.last_position()
        if newest:
            for stored in await self.store.log(newest - 1, 1):
                self._newest_ms = Header.decode(stored.header).recorded_at_ms
        loaded = await self.store.load(Wanted(names=frozenset({LEDGER_NAME})))
        self.ledger_key = loaded.names.get(LEDGER_NAME, b"")
        self._task = asyncio.create_task(self._run(), name="lane")
        await self._put(_Boot(), b"", 0)

    async def stop(self) -> None:
        """Finish what is queued, then end the lane. New commands are refused from now on."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await self._task
        self.end_watches()

    def end_watches(self) -> None:
        """Tell every open watch to end, while commands are still taken: a drain must not wait for the watches."""
        self._watches_ended = True
        for event in [event for events_ in self._watchers.values() for event in events_]:
            event.set()

    @property
    def running(self) -> bool:
        """Whether the lane takes commands."""
        return self._task is not None and not self._task.done() and not self._stopping

    @property
    def feeds_watches(self) -> bool:
        """Whether watches may stay open."""
        return self.running and not self._watches_ended

    @property
    def queue_depth(self) -> int:
        """Commands that wait."""
        return len(self._jobs)

    # ---- ways in ----

    def check_room(self, size: int) -> None:
        """Raises HubBusy when a request of `size` bytes would be over a limit; callers ask before they do work."""
        if len(self._jobs) >= self.config.queue_commands_max or self._bytes + size > self.config.queue_bytes_max:
            raise HubBusy

    async def submit(self, command: Command, content: bytes) -> Answer:
        """Decide a command and return its answer once it is durable.

        `content` is what makes a repeated request the same: every field of the request but its id, as bytes.
        Raises HubBusy, HubStopped.
        """
        mac = hmac.digest(self._content_key, content, "sha256")
        answer = await self._put(command, mac, len(content))
        assert isinstance(answer, Replied | Declined)
        return answer

    async def note(self, note: ReadNote) -> bool:
        """Record a read or its refusal; returns once the entry is durable, with whether the caller is slowed."""
        slowed = await self._put(note, b"", 256)
        return bool(slowed)

    def reports_revoked(self, fingerprint: bytes) -> bool:
        """Whether a read under this revoked certificate is recorded, and not only counted: the first in an hour is."""
        return self._accesses.reports_revoked(fingerprint, self.clock.now_ms())

    async def sweep(self) -> int:
        """Fire the deadlines that are over in at most one step's streams; returns how many streams had one."""
        due = await self.store.due(self.clock.now_ms(), self.config.sweep_streams_max)
        if due or self._accesses.has_overdue(self.clock.now_ms()):
            await self._put(_Sweep(tuple(due)), b"", 0)
        return len(due)

    async def _put(self, work: Command | ReadNote | _Sweep | _Boot, content_mac: bytes, size: int) -> Any:
        if not self.running:
            raise HubStopped
        if isinstance(work, Command | ReadNote):
            self.check_room(size)
        job = _Job(work, content_mac, size, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self._bytes += size
        self._wake.set()
        # The caller may be cancelled here; the job is not: it stays queued and is committed whole.
        return await asyncio.shield(job.future)

    def subscribe(self, institution_code: str) -> asyncio.Event:
        """An event that is set after each commit that concerns the institution, and when watches have to end."""
        event = asyncio.Event()
        self._watchers.setdefault(institution_code, set()).add(event)
        return event

    def unsubscribe(self, institution_code: str, event: asyncio.Event) -> None:
        """End a subscription."""
        watching = self._watchers.get(institution_code, set())
        watching.discard(event)
        if not watching:
            self._watchers.pop(institution_code, None)

    # ---- the lane ----

    async def _run(self) -> None:
        while True:
            if not self._jobs:
                if self._stopping:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            if len(self._jobs) > 1:
                # Under load one turn of the loop lets more calls in; alone, a command never waits.
                await give_way()
            jobs = [self._jobs.popleft() for _ in range(min(len(self._jobs), self.config.batch_commands_max))]
            self._bytes -= sum(job.size for job in jobs)
            await self._commit(jobs)

    async def _commit(self, jobs: Sequence[_Job]) -> None:
        try:
            await self._process(jobs)
        except StoreUnavailable as error:
            _log.error("the store cannot be written: %s", error)
            self._accesses.forget(nothing_written=True)
            _fail(jobs, HubStopped())
        except Exception as error:  # noqa: BLE001 a bug must end neither the lane nor the calls beside the faulty one
            self._accesses.forget(nothing_written=True)
            if len(jobs) > 1:
                for job in jobs:
                    await self._commit([job])
                return
            _log.exception("a command failed")
            _fail(jobs, error)

    async def _process(self, jobs: Sequence[_Job]) -> None:
        now_ms = self._newest_ms = max(self.clock.now_ms(), self._newest_ms)
        batch = _Batch(Workspace(), now_ms)
        draws = {id(job): self._ids.draw() for job in jobs}
        waiting = deque(jobs)
        rounds = 0
        while waiting:
            wanted = Lookups()
            while waiting:
                draw = draws[id(waiting[0])]
                if not self._attempt(batch, waiting[0], draw.restarted(), wanted):
                    break
                waiting.popleft()
            if not waiting:
                break
            for later in list(waiting)[1:]:
                self._ask(batch, later, draws[id(later)].restarted(), wanted)
            rounds += 1
            if rounds > _ROUNDS_MAX * (1 + len(jobs)):
                raise RuntimeError(f"a decision never stops asking for look-ups: {wanted}")
            await self._load(batch, wanted)
        for write in self._accesses.writes(batch.notes, batch.workspace, batch.now_ms):
            self._write(batch, None, write)
        if not batch.writes:
            self._settle(batch, frozenset())
            return
        result = await self.store.append(batch.writes)
        self._accesses.written()
        self.counters.batches += 1
        self._settle(batch, result.conflicts)

    def _settle(self, batch: _Batch, conflicts: frozenset[int]) -> None:
        lost = {id(batch.jobs[position]) for position in conflicts}
        if conflicts:
            # Another hub wrote first. What was answered without a write of its own may rest on a lost one, so it is
            # decided again too; access streams are begun afresh.
            self._accesses.forget()
            wrote = {id(job) for job in batch.jobs}
            lost |= {id(job) for job, _ in batch.answers if isinstance(job.work, Command) and id(job) not in wrote}
        for job, answer in batch.answers:
            if id(job) in lost:
                self._again(job)
            elif not job.future.done():
                job.future.set_result(answer)
        for institution_code in batch.fed:
            for event in self._watchers.get(institution_code, ()):
                event.set()

    def _again(self, job: _Job) -> None:
        job.tries += 1
        if job.tries > self.config.batch_retries_max:
            _fail([job], HubStopped())
            return
        self._jobs.appendleft(job)
        self._bytes += job.size
        self._wake.set()

    # ---- one job ----

    def _attempt(self, batch: _Batch, job: _Job, draw: Draw, wanted: Lookups) -> bool:
        """Decide one job for good; False when look-ups are missing, which are then in `wanted`."""
        work = job.work
        try:
            if isinstance(work, Command):
                self._command(batch, job, work, draw, wanted)
            elif isinstance(work, ReadNote):
                self._note(batch, job, work)
            elif isinstance(work, _Sweep):
                self._swept(batch, job, work, wanted)
            else:
                self._boot(batch, job, draw, wanted)
        except Missing:
            return False
        return True

    def _note(self, batch: _Batch, job: _Job, note: ReadNote) -> None:
        slowed = self._accesses.spend(note.caller_actor, batch.now_ms)
        batch.answers.append((job, slowed))
        if not slowed:
            batch.notes.append(note)

    def _ask(self, batch: _Batch, job: _Job, draw: Draw, wanted: Lookups) -> None:
        """Find out what a later job of the batch will look up, without deciding it."""
        work = job.work
        try:
            if isinstance(work, Command):
                if self._before(batch, job, work, wanted) is None:
                    decide.decide(self._draft(batch, work, draw, wanted), work)
            elif isinstance(work, _Sweep):
                wanted.streams.update(key for key in work.stream_keys if key not in batch.workspace.streams)
        except Missing:
            pass

    def _draft(self, batch: _Batch, work: Command | None, draw: Draw, wanted: Lookups) -> WorkingDraft:
        return WorkingDraft(
            batch.workspace,
            wanted,
            now_ms=batch.now_ms,
            draw=draw,
            caller_actor=work.caller.actor if work else f"hub/{self.config.hub_id}",
            area_code=work.caller.area_code if work else "",
            request_id=work.request_id if work else "",
            ledger_key=self.ledger_key,
            mac_keys=self._mac_keys,
            rules_for=lambda area_code: self._rules_for(area_code, batch.now_ms),
        )

    def _before(self, batch: _Batch, job: _Job, command: Command, wanted: Lookups) -> Any:
        """What is decided before the command itself: a revoked certificate, then a repeated request."""
        space = batch.workspace
        revoked = ("revoked_certificate", command.caller.fingerprint)
        request = (command.caller.actor, command.request_id)
        if revoked not in space.names or request not in space.replies:
            if revoked not in space.names:
                wanted.names.add(revoked)
            if request not in space.replies:
                wanted.replies.add(request)
            # The decision is asked all the same, so that its first look-ups are loaded in the same round.
            decide.decide(self._draft(batch, command, Draw(bytes(32)), wanted), command)
            raise Missing
        if space.names[revoked] is not None:
            return Refused("CERT_REVOKED")
        reply: Reply | None = space.replies[request]
        if reply is None:
            return None
        if reply.method == REVERSED:
            return Refused("SETL_TERMINAL", field="request_id", detail={"reason": "reversed before it arrived"})
        if reply.method != command.method or not hmac.compare_digest(reply.content_mac, job.content_mac):
            return Refused("IDEMPOTENCY_CONFLICT", field="request_id")
        return reply

    def _command(self, batch: _Batch, job: _Job, command: Command, draw: Draw, wanted: Lookups) -> None:
        before = self._before(batch, job, command, wanted)
        if isinstance(before, Refused):
            self._refuse(batch, job, command, before)
            return
        if isinstance(before, Reply):
            self._replay(batch, job, command, before)
            return
        tx = self._draft(batch, command, draw, wanted)
        outcome: Outcome = decide.decide(tx, command)
        if isinstance(outcome, Refused):
            if outcome.keeps_events and tx.pending:
                sealed = self._seal(batch, tx, draw)
                tx.apply()
                self._write(batch, job, self._write_of(batch, tx, sealed))
            self._refuse(batch, job, command, outcome)
            return
        self._accept(batch, job, command, tx, outcome, draw)

    def _accept(
        self, batch: _Batch, job: _Job, command: Command, tx: WorkingDraft, outcome: Accepted, draw: Draw
    ) -> None:
        sealed = self._seal(batch, tx, draw)
        tx.apply()
        outcome.reply.receipt.CopyFrom(self._receipt(batch.now_ms, sealed))  # type: ignore[attr-defined]
        body = outcome.reply.SerializeToString(deterministic=True)
        stored = (_ATTACH_UPLOAD + outcome.attach_upload if outcome.attach_upload else _ATTACH_NONE) + body
        actor = command.caller.actor
        # The reply belongs to the thing that the command was about: the last kind in commit order.
        own = sealed[-1].header.stream_kind if sealed else ""
        first = next((entry for entry in sealed if entry.header.stream_kind == own), None)
        replies = [
            Reply(
                actor,
                command.request_id,
                command.method,
                job.content_mac,
                self._sealer.seal(actor, command.request_id, stored),
                first.header.stream_key if first else None,
                first.header.version if first else None,
            )
        ]
        if outcome.taken_request_id:
            replies.append(
                Reply(
                    actor,
                    outcome.taken_request_id,
                    REVERSED,
                    b"",
                    b"",
                    first.header.stream_key if first else None,
                    first.header.version if first else None,
                )
            )
        for reply in replies:
            batch.workspace.replies[actor, reply.request_id] = reply
        write = self._write_of(batch, tx, sealed, outcome, tuple(replies))
        self._write(batch, job, write)
        self._answer(batch, job, command, Replied(body, outcome.attach_upload), outcome.targets)

    def _replay(self, batch: _Batch, job: _Job, command: Command, reply: Reply) -> None:
        stored = self._sealer.open(command.caller.actor, command.request_id, reply.body)
        attach = b""
        if stored[:1] == _ATTACH_UPLOAD:
            attach, stored = stored[1:33], stored[33:]
        else:
            stored = stored[1:]
        targets = (Target(reply.stream_key),) if reply.stream_key else ()
        self._answer(batch, job, command, Replied(stored, attach), targets)

    def _answer(self, batch: _Batch, job: _Job, command: Command, answer: Replied, targets: tuple[Target, ...]) -> None:
        self.counters.commands += 1
        if not targets:
            batch.answers.append((job, answer))
            return
        note = ReadNote(command.caller.actor, command.caller.kind, command.method, command.request_id, targets)
        slowed = self._accesses.spend(command.caller.actor, batch.now_ms)
        batch.answers.append((job, Replied(answer.body, answer.attach_upload, slowed)))
        if not slowed:
            batch.notes.append(note)

    def _refuse(self, batch: _Batch, job: _Job, command: Command, refused: Refused) -> None:
        self.counters.refusals[refused.code] = self.counters.refusals.get(refused.code, 0) + 1
        if refused.code == "CERT_REVOKED" and not self._accesses.reports_revoked(
            command.caller.fingerprint, batch.now_ms
        ):
            self.counters.count(refused.code)
            batch.answers.append((job, Declined(refused)))
            return
        slowed = self._accesses.spend(command.caller.actor, batch.now_ms)
        batch.answers.append((job, Declined(refused, slowed)))
        if not slowed:
            note = ReadNote(
                command.caller.actor,
                command.caller.kind,
                command.method,
                command.request_id,
                refused.targets,
                refused,
            )
            batch.notes.append(note)

    def _swept(self, batch: _Batch, job: _Job, sweep: _Sweep, wanted: Lookups) -> None:
        missing = [key for key in sweep.stream_keys if key not in batch.workspace.streams]
        if missing:
            wanted.streams.update(missing)
            raise Missing
        # Loading a stream fires its timers, so there is nothing left to do.
        batch.answers.append((job, None))

    def _boot(self, batch: _Batch, job: _Job, draw: Draw, wanted: Lookups) -> None:
        opened = bool(self.ledger_key)
        if not opened:
            self.ledger_key = stream_key("ledger", draw.bytes(16))
        tx = self._draft(batch, None, draw, wanted)
        if not opened:
            tx.emit(
                "ledger",
                self.ledger_key,
                "ledger.opened",
                events_pb2.LedgerOpened(origin=self.config.origin, digest="SHA-256", format_version=1),
            )
        known = tx.state(self.ledger_key, state_pb2.LedgerState)
        assert known is not None
        registered = {key.key_id for key in known.keys}
        for purpose, key in (("receipt", self._keys.receipt), ("log", self._keys.log)):
            if key.key_id not in registered:
                tx.emit(
                    "ledger",
                    self.ledger_key,
                    "hub_key.registered",
                    events_pb2.HubKeyRegistered(
                        key=state_pb2.HubKey(
                            purpose=purpose,
                            key_id=key.key_id,
                            public_key=key.public_key,
                            hub_id=self.config.hub_id,
                        )
                    ),
                )
        if tx.pending:
            sealed = self._seal(batch, tx, draw)
            tx.apply()
            names = () if opened else (NewName(*LEDGER_NAME, self.ledger_key),)
            write = self._write_of(batch, tx, sealed)
            self._write(batch, job, _with_names(write, names))
        batch.answers.append((job, None))

    # ---- look-ups ----

    async def _load(self, batch: _Batch, wanted: Lookups) -> None:
        space = batch.workspace
        listed: dict[tuple[str, bytes, int], list[bytes]] = {}
        for space_name, key, limit in wanted.listings:
            rows = await self.store.listing(space_name, key, 0, limit, newest_first=True)
            listed[space_name, key, limit] = list(dict.fromkeys(row.stream_key for row in rows))
        loaded = await self.store.load(
            Wanted(
                names=frozenset(wanted.names),
                streams=frozenset(wanted.streams).union(*listed.values()) if listed else frozenset(wanted.streams),
                replies=frozenset(wanted.replies),
                catalog=frozenset(wanted.catalog),
            )
        )
        space.listings.update(listed)
        for name in wanted.names:
            space.names.setdefault(name, loaded.names.get(name))
        for request in wanted.replies:
            space.replies.setdefault(request, loaded.replies.get(request))
        for row in wanted.catalog:
            space.catalog.setdefault(row, loaded.catalog.get(row))
        for key in wanted.streams:
            if key not in loaded.heads:
                space.streams.setdefault(key, None)
        self._take_heads(batch, loaded)

    def _take_heads(self, batch: _Batch, loaded: Loaded) -> None:
        space = batch.workspace
        due: list[tuple[str, bytes]] = []
        for key, head in loaded.heads.items():
            if key in space.streams:
                continue
            kind = STATE_TYPES.get(head.stream_kind)
            if kind is None:
                continue
            state = kind()
            state.ParseFromString(head.body)
            space.streams[key] = Working(head.stream_kind, head.version, head.leaf_hash, state)
            if head.due_at_ms is not None and head.due_at_ms <= batch.now_ms:
                due.append((head.stream_kind, key))
        for stream_kind, key in due:
            self._fire(batch, stream_kind, key)

    def _fire(self, batch: _Batch, stream_kind: str, key: bytes) -> None:
        """A deadline is part of state: what is due is an entry before anything else is decided on the stream."""
        if key in batch.timed:
            return
        batch.timed.add(key)
        draw = self._ids.draw()
        tx = self._draft(batch, None, draw, Lookups())
        timers.fire_due(tx, stream_kind, key)
        if tx.pending:
            sealed = self._seal(batch, tx, draw)
            tx.apply()
            self._write(batch, None, self._write_of(batch, tx, sealed))

    def _rules_for(self, area_code: str, now_ms: int) -> Rules:
        day = (now_ms + 8 * 3_600_000) // _DAY_MS
        if self._rules[0] != day:
            self._rules = (day, {})
        cached = self._rules[1]
        if area_code not in cached:
            if len(cached) > 5_000:
                cached.clear()
            cached[area_code] = Rules(self._pack(area_code), china_date(now_ms))
        return cached[area_code]

    def _pack(self, area_code: str) -> Pack:
        return self._packs.pack_for(area_code or "000000")

    # ---- entries ----

    def _seal(self, batch: _Batch, tx: WorkingDraft, draw: Draw) -> list[Entry]:
        sealed: list[Entry] = []
        leaves: dict[tuple[bytes, int], bytes] = {}
        digest = self._rules_for(tx.area_code, batch.now_ms).digest
        for event in tx.in_commit_order():
            working = tx.changed[event.stream_key]
            prev = leaves.get((event.stream_key, event.version - 1)) or (
                working.leaf_hash if event.version > 1 else FIRST_PREV_LEAF_HASH
            )
            header = Header(
                stream_kind=event.stream_kind,
                stream_key=event.stream_key,
                version=event.version,
                kind=EntryKind.EVENT,
                type=events.BY_NAME[event.event].number,
                recorded_at_ms=batch.now_ms,
                actor=event.actor,
                request_id=tx.request_id,
                policy_digest=digest,
                causes=_resolve(event, leaves),
            )
            entry = seal(header, draw.bytes(16), event.body, prev)
            leaves[event.stream_key, event.version] = entry.leaf_hash
            sealed.append(entry)
        for entry in sealed:
            tx.changed[entry.header.stream_key].leaf_hash = entry.leaf_hash
        return sealed

    def _write_of(
        self,
        batch: _Batch,
        tx: WorkingDraft,
        sealed: Sequence[Entry],
        outcome: Accepted | None = None,
        replies: tuple[Reply, ...] = (),
    ) -> Write:
        states = []
        listings = [Listing(space, key, stream, version) for (space, key), stream, version in tx.listings()]
        first_versions: dict[bytes, int] = {}
        for entry in sealed:
            first_versions.setdefault(entry.header.stream_key, entry.header.version)
        for key, working in tx.changed.items():
            states.append(
                NewState(
                    key,
                    working.version,
                    working.leaf_hash,
                    working.state.SerializeToString(deterministic=True),
                    timers.next_due_ms(working.kind, working.state),
                )
            )
            if working.kind == "prescription":
                since = first_versions[key].to_bytes(8, "big")
                for code in index.watchers(working.state):
                    listings.append(Listing(index.FEED, code.encode(), key, working.version, since))
                    batch.fed.add(code)
        return Write(
            entries=tuple(sealed),
            states=tuple(states),
            names=tuple(NewName(space, key, stream) for (space, key), stream in tx.names()),
            listings=tuple(listings),
            blobs=tuple(Blob(*blob) for blob in outcome.blobs) if outcome else (),
            catalog_rows=tuple(CatalogRow(*row) for row in outcome.catalog_rows) if outcome else (),
            replies=replies,
        )

    def _write(self, batch: _Batch, job: _Job | None, write: Write) -> None:
        batch.writes.append(write)
        batch.jobs.append(job)

    def _receipt(self, now_ms: int, sealed: Iterable[Entry]) -> common_pb2.Receipt:
        receipt = common_pb2.Receipt(
            origin=self.config.origin,
            recorded_at_ms=now_ms,
            max_merge_delay_ms=self.config.max_merge_delay_ms,
            key_id=self._keys.receipt.key_id,
        )
        listed = [(entry.header.stream_key, entry.header.version, entry.leaf_hash) for entry in sealed]
        for key, version, leaf in listed:
            receipt.entries.add(stream_key=key, version=version, leaf_hash=leaf)
        receipt.signature = self._keys.receipt.sign(
            receipt_message(receipt.origin, receipt.recorded_at_ms, receipt.max_merge_delay_ms, listed)
        )
        return receipt

    # ---- what the upload attaches to a download ----

    async def attach(self, reply: bytes, rx_key: bytes, into: Callable[[], Any]) -> bytes:
        """Put the uploaded bytes of a prescription into a reply, exactly as they were received."""
        read = await self.store.read(Wanted(streams=frozenset({rx_key})))
        state = state_pb2.PrescriptionState()
        state.ParseFromString(read.heads[rx_key].body)
        uploaded = events_pb2.PrescriptionUploaded()
        reviewed = events_pb2.HospitalReviewed()
        for stored in await self.store.entries(rx_key, state.uploaded_version - 3, 3):
            name = events.BY_NUMBER[Header.decode(stored.header).type].name
            if stored.payload is None:
                continue
            if name == "prescription.uploaded":
                uploaded.ParseFromString(stored.payload)
            elif name == "prescription.hospital_reviewed":
                reviewed.ParseFromString(stored.payload)
        message = into()
        message.ParseFromString(reply)
        message.prescription.CopyFrom(uploaded.prescription)
        message.review.CopyFrom(reviewed.statement)
        message.seal.CopyFrom(uploaded.seal)
        data = await self.store.blob(rx_key, uploaded.file_sha256)
        message.file.CopyFrom(common_pb2.PrescriptionFile(media_type=uploaded.file_media_type, data=data or b""))
        return bytes(message.SerializeToString(deterministic=True))


def _resolve(event: Pending, leaves: Mapping[tuple[bytes, int], bytes]) -> tuple[bytes, ...]:
    return tuple(cause if isinstance(cause, bytes) else leaves[cause] for cause in event.causes)


def _with_names(write: Write, names: tuple[NewName, ...]) -> Write:
    return Write(
        entries=write.entries,
        states=write.states,
        names=write.names + names,
        listings=write.listings,
    )


def _fail(jobs: Iterable[_Job], error: Exception) -> None:
    for job in jobs:
        if not job.future.done():
            job.future.set_exception(error)
