"""The lane: the one task of a hub that takes commands in batches, decides them one after another, and commits once.

Owns the order of things: repeated request, look-ups, due timers, decision, entries, one commit, receipt. It never
decides a business question (core does), never says what an entry looks like (sealing and accesses do), never touches
SQL (the store does), and never lets a caller's cancellation reach a commit: a call waits for its command's future, and
the lane does not care whether it still does.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from erxhub import joining
from erxhub.accesses import AccessBatch, AccessLog, ReadNote, person_of
from erxhub.config import Config
from erxhub.core import decide, index, retention, timers
from erxhub.core.draft import Lookups, Working, WorkingDraft, Workspace
from erxhub.core.fold import STATE_TYPES
from erxhub.core.keys import stream_key
from erxhub.core.mac import HmacSha256
from erxhub.core.model import Accepted, Ahead, Command, Missing, Outcome, Refused, Target
from erxhub.keys import ForeignKeys, HubKeys
from erxhub.ledger.entry import Entry, Header
from erxhub.ledger.store import Loaded, Reads, Reply, Store, StoreUnavailable, Wanted, Write
from erxhub.marks import MARKS, Marks
from erxhub.metrics import COMMANDS, SECONDS, Histogram, Lag
from erxhub.policy.pack import DAY_MS, Pack, PackLibrary, china_date
from erxhub.policy.rules import Rules
from erxhub.ports import Clock, Drawing, Ids, machine_us
from erxhub.sealing import StoredReply, entries_of, fed_by, reply_place, write_of, write_receipt
from erxhub.watches import Watches

_log = logging.getLogger("erxhub.engine")

REVERSED: Final = "reversed"
"""The method of a request id that a reversal took."""

_ROUNDS_MAX: Final = 12

_CATALOG_ROWS_KEPT_MAX: Final = 10_000

_LULL_S: Final = 0.002
"""When nobody has come for so long, nobody is waited for any more."""

_BUSY_FREE: Final = 2
"""Times that a command whose streams are taken is put off. From then on it waits for them."""


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

_FROM_CALLERS: Final = (Command, ReadNote)
"""Work that takes room in the queue; named here because a union made for each call costs more than its test."""


class HubBusy(Exception):
    """The lane's queue is full."""


class HubStopped(Exception):
    """The lane is stopping, or its store cannot be written now."""


class _Job:
    def __init__(
        self, work: Command | ReadNote | _Sweep | _Erase | _Boot, content_mac: bytes, size: int, ahead: Ahead | None
    ) -> None:
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


@dataclass(frozen=True, slots=True)
class _Sweep:
    stream_keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class _Erase:
    """Erases what no retention class keeps."""

    found: retention.Found


@dataclass(frozen=True, slots=True)
class _Boot:
    """Opens the ledger, or registers this hub's keys in it."""


@dataclass(slots=True)
class _Batch:
    """One commit in the making."""

    workspace: Workspace
    now_ms: int
    accesses: AccessBatch
    writes: list[Write] = field(default_factory=list)
    jobs: list[_Job | None] = field(default_factory=list)
    answers: list[tuple[_Job, Any]] = field(default_factory=list)
    fed: set[str] = field(default_factory=set)
    timed: set[bytes] = field(default_factory=set)


@dataclass(slots=True)
class Counters:
    """What is counted and not appended. `refusals` are those that left an entry, `counted_only` the others."""

    batches: int = 0
    commands: int = 0
    conflicts: int = 0
    busy: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    counted_only: dict[str, int] = field(default_factory=dict)
    batch_jobs: Histogram = field(default_factory=lambda: Histogram(COMMANDS))
    commit_seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    lag: Lag = field(default_factory=Lag)

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
        acknowledging: Callable[[int], None] | None = None,
    ) -> None:
        """`acknowledging` is told the newest position after each commit, before any reply to it leaves."""
        self._acknowledging = acknowledging
        self.store = store
        self.counters = Counters()
        self.config = config
        self.clock = clock
        self.ledger_key = b""
        self._ids = ids
        self._keys = keys
        self._packs = packs
        self._mac_keys = keys.mac_keys
        self._content_mac = HmacSha256(keys.content_mac_key())
        self._sealer = keys.reply_sealer()
        self._jobs: deque[_Job] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self._crowd = 1
        self._expected = 1
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._newest_ms = 0
        self._can_write = True
        self.under_way = 0
        """Items of bulk uploads that were read and are not answered: they will be here in a moment."""
        self.verifying = 0
        """Commands whose signatures are being verified off the loop: these too."""
        self.turned = asyncio.Event()
        """Set whenever `serving` may have changed."""
        self._accesses = AccessLog(ids, config)
        self.watches = Watches(self.counters.lag)
        self._others = store.others
        self._listening: asyncio.Task[None] | None = None
        self._rules: tuple[int, dict[str, Rules]] = (-1, {})
        self._rows: dict[tuple[str, str, str], bytes | None] = {}
        self._rows_missed = False

    # ---- life ----

    async def start(self) -> None:
        """Find or open the ledger, register this hub's keys, and start the lane.

        Raises StoreUnavailable when the store cannot be read or written, ForeignKeys when this hub's HMAC keys are not
        the ledger's.
        """
        newest = await self.store.last_position()
        if newest:
            for stored in await self.store.log(newest - 1, 1):
                self._newest_ms = Header.decode(stored.header).recorded_at_ms
        self._task = asyncio.create_task(self._run(), name="lane")
        self._task.add_done_callback(self._ended)
        foreign: str | None = await self._put(_Boot())
        if foreign is not None:
            await self.stop()
            raise ForeignKeys(foreign)
        if self._others is not None:
            self._listening = asyncio.create_task(self.watches.listen(self._others, newest), name="others")

    async def stop(self) -> None:
        """Finish what is queued, then end the lane. New commands are refused from now on."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            # A lane that died before must not keep the hub from closing its store.
            await asyncio.wait({self._task})
        await self._stop_listening()
        self.watches.end()

    async def abandon(self) -> None:
        """End the lane where it stands, as when the process dies: what is not committed is lost, nobody is told."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        await self._stop_listening()
        self.watches.end()

    async def _stop_listening(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)

    @property
    def running(self) -> bool:
        """Whether the lane takes commands."""
        return self._task is not None and not self._task.done() and not self._stopping

    @property
    def serving(self) -> bool:
        """Whether commands are taken and the last commit could be written."""
        return self.running and self._can_write

    @property
    def feeds_watches(self) -> bool:
        """Whether watches may stay open."""
        return self.running and not self.watches.ended

    @property
    def queue_depth(self) -> int:
        """Commands that wait."""
        return len(self._jobs)

    @property
    def can_write(self) -> bool:
        """Whether the last commit could be written."""
        return self._can_write

    # ---- ways in ----

    def check_room(self, size: int) -> None:
        """Raises HubBusy when a request of `size` bytes would be over a limit; callers ask before they do work."""
        if len(self._jobs) >= self.config.queue_commands_max or self._bytes + size > self.config.queue_bytes_max:
            raise HubBusy

    async def submit(self, command: Command, content: bytes, size: int | None = None) -> Answer:
        """Decide a command and return its answer once it is durable.

        `content` is what makes a repeated request the same: every field of the request but its id, as bytes. `size` is
        what the request takes of memory while it waits, bytes; by default the content's.
        Raises HubBusy, HubStopped.
        """
        return await self.queue(command, content, size)

    def queue(self, command: Command, content: bytes, size: int | None = None) -> asyncio.Future[Answer]:
        """`submit` for who has several commands: takes this one now, and the answer comes with the future."""
        return self._queued(command, self._content_mac.digest(content), len(content) if size is None else size)

    async def note(self, note: ReadNote) -> bool:
        """Record a read or its refusal; returns once the entry is durable, with whether the caller is slowed."""
        slowed = await self._put(note, 256)
        return bool(slowed)

    def counts_revoked(self, fingerprint: bytes) -> bool:
        """Whether a refusal of this revoked certificate is only counted: it was recorded within the hour."""
        return self._accesses.is_reported(fingerprint, self.clock.now_ms())

    async def sweep(self, failed: set[bytes] | None = None) -> int:
        """Fire the deadlines that are over in at most one step's streams; returns how many streams had one.

        Streams in `failed` are left out, and those whose deadline cannot be fired are put there: one that fails is a
        bug or damage, and holds up no other. A lane whose last commit failed tries again here, so that a hub without
        callers learns that its store is back. Raises HubStopped, StoreUnavailable.
        """
        left_out: set[bytes] = set() if failed is None else failed
        now_ms = self.clock.now_ms()
        found = await self.store.due(now_ms, self.config.sweep_streams_max + len(left_out))
        due = [key for key in found if key not in left_out][: self.config.sweep_streams_max]
        if not due and not self._accesses.has_overdue(now_ms) and self._can_write:
            return 0
        swept = False
        try:
            await self._put(_Sweep(tuple(due)))
            swept = True
        except HubStopped:
            raise
        except Exception:  # noqa: BLE001 the lane logged it
            pass
        if not swept:
            # Each stream is tried alone to find the faulty one.
            await self._sweep_each(due, left_out)
        return len(due)

    async def _sweep_each(self, due: Sequence[bytes], failed: set[bytes]) -> None:
        for key in due:
            try:
                await self._put(_Sweep((key,)))
            except HubStopped:
                raise
            except Exception:  # noqa: BLE001 see above
                _log.error("the deadline of stream %s cannot be written", key.hex())
                failed.add(key)

    async def erase_over(self, found: retention.Found) -> bool:
        """Erase what a stream's entries say if no retention class keeps it now; whether that was done.

        Raises HubStopped, StoreUnavailable.
        """
        return bool(await self._put(_Erase(found)))

    def rules(self, area_code: str) -> Rules:
        """The parameters in force for the area today."""
        return self._rules_for(area_code, self.clock.now_ms())

    async def _put(self, work: ReadNote | _Sweep | _Erase | _Boot, size: int = 0) -> Any:
        return await self._queued(work, b"", size)

    def _queued(
        self, work: Command | ReadNote | _Sweep | _Erase | _Boot, content_mac: bytes, size: int
    ) -> asyncio.Future[Any]:
        if not self.running:
            raise HubStopped
        if isinstance(work, _FROM_CALLERS):
            self.check_room(size)
        job = _Job(work, content_mac, size, decide.ahead(work) if isinstance(work, Command) else None)
        if job.marks is not None:
            job.marks.queued_us = machine_us()
        self._jobs.append(job)
        self._bytes += size
        if len(self._jobs) >= self._expected:
            self._wake.set()
        # The caller may be cancelled while it waits, and with it this future; the job stays queued and is committed
        # whole.
        return job.future

    # ---- the lane ----

    async def _run(self) -> None:
        jobs: list[_Job] = []
        try:
            while self._jobs or not self._stopping:
                if not self._jobs:
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                await self._gather()
                jobs = self._next_jobs()
                self._bytes -= sum(job.size for job in jobs)
                await self._commit(jobs)
                self._crowd = len(jobs) + len(self._jobs)
            # Minutes that are not over yet are counted now: the next process knows nothing of them.
            await self._commit([], closing=True)
        finally:
            # A lane that died must leave no call waiting.
            _fail([*jobs, *self._jobs], HubStopped())

    def _next_jobs(self) -> list[_Job]:
        """The jobs of the next batch. One whose streams were taken time and again waits, with those alone that wait for
        the same.
        """
        first = self._jobs[0]
        most = self.config.batch_commands_max
        if first.busy >= _BUSY_FREE:
            jobs = [job for job in self._jobs if job is first or not first.taken.isdisjoint(job.taken)][:most]
            picked = {id(job) for job in jobs}
            self._jobs = deque(job for job in self._jobs if id(job) not in picked)
            return jobs
        jobs = []
        while self._jobs and len(jobs) < most and self._jobs[0].busy < _BUSY_FREE:
            jobs.append(self._jobs.popleft())
        return jobs

    def _ended(self, lane: asyncio.Task[None]) -> None:
        if not self._stopping:
            error = None if lane.cancelled() else lane.exception()
            _log.critical("the lane died; the hub takes no calls until it is started again", exc_info=error)
        self.turned.set()

    async def _gather(self) -> None:
        """Wait a moment for the callers that were here a moment ago: a commit of many costs little more than of one.

        A caller who is alone never waits.
        """
        self._expected = min(max(self._crowd, self.under_way), self.config.batch_commands_max)
        loop, linger_ms = asyncio.get_running_loop(), self.config.batch_linger_ms
        patience = linger_ms / 1000
        last = loop.time() + (max(linger_ms, self.config.batch_linger_max_ms) / 1000 if linger_ms else 0)
        came = -1
        # At first as long as it takes; then while they keep coming: soon they are all here, and a commit that has the
        # interpreter to itself costs less than one beside calls that are being admitted.
        while came < len(self._jobs) < self._expected and not self._stopping:
            came = len(self._jobs) - self.verifying
            self._wake.clear()
            timer = loop.call_later(patience, self._wake.set)
            await self._wake.wait()
            timer.cancel()
            patience = min(_LULL_S, last - loop.time())
            if patience <= 0:
                break
        self._expected = 1

    async def _commit(self, jobs: Sequence[_Job], *, closing: bool = False) -> None:
        try:
            await self._process(jobs, closing=closing)
            return
        except StoreUnavailable as error:
            _log.error("the store cannot be written: %s", error)
            self._accesses.forget()
            self._turn(can_write=False)
            _fail(jobs, HubStopped())
            return
        except Exception as bug:  # noqa: BLE001 a bug must end neither the lane nor the calls beside the faulty one
            self._accesses.forget()
            if len(jobs) <= 1:
                _log.exception("a command failed")
                _fail(jobs, bug)
                return
        for job in jobs:
            await self._commit([job])

    def _turn(self, *, can_write: bool) -> None:
        if self._can_write != can_write:
            self._can_write = can_write
            self.turned.set()

    async def _process(self, jobs: Sequence[_Job], *, closing: bool) -> None:
        now_ms = self._newest_ms = max(self.clock.now_ms(), self._newest_ms)
        batch = _Batch(Workspace(catalog=self._known_rows()), now_ms, AccessBatch(now_ms))
        marked = [job.marks for job in jobs if job.marks is not None]
        for marks in marked:
            marks.taken_us = machine_us()
        draws = {id(job): self._ids.draw() for job in jobs}
        waiting = deque(jobs)
        rounds = 0
        while waiting:
            wanted = Lookups()
            while waiting:
                draw = draws[id(waiting[0])]
                draw.restart()
                if not self._attempt(batch, waiting[0], draw, wanted):
                    break
                waiting.popleft()
            if not waiting:
                break
            for later in islice(waiting, 1, None):
                draw = draws[id(later)]
                draw.restart()
                self._ask(batch, later, draw, wanted)
            rounds += 1
            if rounds > _ROUNDS_MAX * (1 + len(jobs)):
                raise RuntimeError(f"a decision never stops asking for look-ups: {wanted}")
            await self._load(batch, wanted)
        for write in self._accesses.writes(batch.accesses, batch.workspace, closing=closing):
            self._write(batch, None, write)
        if jobs and jobs[0].busy >= _BUSY_FREE:
            batch.writes = [write._replace(waits=True) for write in batch.writes]
        conflicts: frozenset[int] = frozenset()
        busy: frozenset[int] = frozenset()
        # With nothing to write the store is asked all the same while it is not known to be back.
        if batch.writes or not self._can_write:
            begun_us = machine_us()
            for marks in marked:
                marks.decided_us = begun_us
            result = await self.store.append(batch.writes)
            self.counters.commit_seconds.observe((machine_us() - begun_us) / 1e6)
            self.counters.batch_jobs.observe(len(jobs))
            for marks in marked:
                marks.committed_us = machine_us()
            conflicts, busy = result.conflicts, result.busy
            self.counters.conflicts += len(conflicts)
            self.counters.busy += len(busy)
            self._turn(can_write=True)
            if self._acknowledging is not None:
                self._acknowledging(result.last_position)
        if batch.writes:
            self.counters.batches += 1
        self._accesses.written(batch.accesses)
        self._settle(batch, conflicts, busy)

    def _settle(self, batch: _Batch, conflicts: frozenset[int], busy: frozenset[int]) -> None:
        lost = {id(batch.jobs[position]) for position in conflicts | busy}
        for position in busy:
            job = batch.jobs[position]
            if job is not None:
                job.busy += 1
                job.taken = frozenset(entry.header.stream_key for entry in batch.writes[position].entries)
        if lost:
            # Another hub wrote first, or is writing. What was answered without a write of its own may rest on a lost
            # one, so it is decided again too; access streams are begun afresh.
            self._accesses.forget()
            wrote = {id(job) for job in batch.jobs}
            lost |= {id(job) for job, _ in batch.answers if isinstance(job.work, Command) and id(job) not in wrote}
        for job, answer in batch.answers:
            if id(job) in lost:
                self._again(job)
                continue
            refused = job.work.refused if isinstance(job.work, ReadNote) else getattr(answer, "refused", None)
            if refused is not None:
                self.counters.refusals[refused.code] = self.counters.refusals.get(refused.code, 0) + 1
            if not job.future.done():
                job.future.set_result(answer)
        self.watches.wake(batch.fed)

    def _again(self, job: _Job) -> None:
        """Have a job decided again: another hub came first, so somebody got on. In time this one does too."""
        now_us = machine_us()
        job.again_us = job.again_us or now_us
        if now_us - job.again_us > self.config.contended_ms * 1000:
            _fail([job], HubStopped())
            return
        self._jobs.appendleft(job)
        self._bytes += job.size
        self._wake.set()

    # ---- one job ----

    def _attempt(self, batch: _Batch, job: _Job, draw: Drawing, wanted: Lookups) -> bool:
        """Decide one job for good; False when look-ups are missing, which are then in `wanted`."""
        work = job.work
        try:
            if isinstance(work, Command):
                self._command(batch, job, work, draw, wanted)
            elif isinstance(work, ReadNote):
                self._note(batch, job, work)
            elif isinstance(work, _Sweep):
                self._swept(batch, job, work, wanted)
            elif isinstance(work, _Erase):
                self._erase(batch, job, work, draw, wanted)
            else:
                self._boot(batch, job, draw, wanted)
        except Missing:
            return False
        return True

    def _note(self, batch: _Batch, job: _Job, note: ReadNote) -> None:
        batch.answers.append((job, self._record(batch, note)))

    def _record(self, batch: _Batch, note: ReadNote) -> bool:
        """Have an access or a refusal recorded, or only counted; True when the caller is above its budget."""
        if note.fingerprint and self._accesses.is_reported(note.fingerprint, batch.now_ms, batch.accesses):
            self.counters.count("CERT_REVOKED")
            return False
        return self._accesses.note(batch.accesses, note)

    def _ask(self, batch: _Batch, job: _Job, draw: Drawing, wanted: Lookups) -> None:
        """Find out what a later job of the batch will look up, without deciding it."""
        work = job.work
        try:
            if isinstance(work, Command):
                if self._before(batch, job, work, draw, wanted) is None:
                    decide.decide(self._draft(batch, work, draw, wanted), work)
            elif isinstance(work, _Sweep):
                wanted.streams.update(key for key in work.stream_keys if key not in batch.workspace.streams)
            elif isinstance(work, _Erase):
                retention.erase_when_over(self._draft(batch, None, draw, wanted), work.found)
        except Missing:
            pass

    def _draft(self, batch: _Batch, work: Command | None, draw: Drawing, wanted: Lookups) -> WorkingDraft:
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

    def _before(self, batch: _Batch, job: _Job, command: Command, draw: Drawing, wanted: Lookups) -> Any:
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
            if job.ahead is None:
                decide.decide(self._draft(batch, command, draw, wanted), command)
            else:
                space.has(job.ahead, self._mac_keys, self.ledger_key, wanted)
            raise Missing
        if space.names[revoked] is not None:
            return Refused("CERT_REVOKED")
        reply: Reply | None = space.replies[request]
        if reply is None:
            return None
        if reply.method == REVERSED:
            return Refused("SETL_TERMINAL", field="request_id", detail={"reason": "reversed before it arrived"})
        if not reply.content_mac and reply.method == command.method:
            return Refused("CONTENT_ERASED", field="request_id")
        if reply.method != command.method or not hmac.compare_digest(reply.content_mac, job.content_mac):
            return Refused("IDEMPOTENCY_CONFLICT", field="request_id")
        return reply

    def _command(self, batch: _Batch, job: _Job, command: Command, draw: Drawing, wanted: Lookups) -> None:
        before = self._before(batch, job, command, draw, wanted)
        if isinstance(before, Refused):
            self._refuse(batch, job, command, before)
            return
        if isinstance(before, Reply):
            self._replay(batch, job, command, before)
            return
        tx = self._draft(batch, command, draw, wanted)
        tx.absent.add((index.REVOKED_CERTIFICATE, command.caller.fingerprint))
        outcome: Outcome = decide.decide(tx, command)
        if isinstance(outcome, Refused):
            if outcome.keeps_events and tx.pending:
                sealed = self._seal(batch, tx, draw)
                tx.apply()
                self._write(batch, job, self._leaves(tx, sealed))
            self._refuse(batch, job, command, outcome)
            return
        self._accept(batch, job, command, tx, outcome, draw)

    def _accept(
        self, batch: _Batch, job: _Job, command: Command, tx: WorkingDraft, outcome: Accepted, draw: Drawing
    ) -> None:
        sealed = self._seal(batch, tx, draw)
        tx.apply()
        reply: Any = outcome.reply
        write_receipt(reply.receipt, self._keys.receipt, self.config, batch.now_ms, sealed)
        space, actor = batch.workspace, command.caller.actor
        # The persons are named now: a repeat of the request loads none of these streams.
        targets = tuple(
            [
                target if target.person_key else Target(target.stream_key, person_of(space, target.stream_key))
                for target in outcome.targets
            ]
        )
        stored = StoredReply(reply.SerializeToString(deterministic=True), targets, outcome.attach_upload)
        place = reply_place(sealed)
        body = self._sealer.seal(actor, command.request_id, stored.encode())
        replies = [Reply(actor, command.request_id, command.method, job.content_mac, body, *place)]
        if outcome.taken_request_id:
            replies.append(Reply(actor, outcome.taken_request_id, REVERSED, b"", b"", *place))
        for kept in replies:
            space.replies[actor, kept.request_id] = kept
        self._write(batch, job, self._leaves(tx, sealed, outcome, tuple(replies)))
        self._answer(batch, job, command, stored)

    def _replay(self, batch: _Batch, job: _Job, command: Command, reply: Reply) -> None:
        sealed = self._sealer.open(command.caller.actor, command.request_id, reply.body)
        self._answer(batch, job, command, StoredReply.decode(sealed))

    def _answer(self, batch: _Batch, job: _Job, command: Command, stored: StoredReply) -> None:
        self.counters.commands += 1
        caller, slowed = command.caller, False
        if stored.targets:
            note = ReadNote(caller.actor, caller.kind, command.method, command.request_id, stored.targets)
            slowed = self._record(batch, note)
        batch.answers.append((job, Replied(stored.body, stored.attach_upload, slowed)))

    def _refuse(self, batch: _Batch, job: _Job, command: Command, refused: Refused) -> None:
        note = ReadNote(
            command.caller.actor,
            command.caller.kind,
            command.method,
            command.request_id,
            refused.targets,
            refused,
            fingerprint=command.caller.fingerprint if refused.code == "CERT_REVOKED" else b"",
        )
        batch.answers.append((job, Declined(refused, self._record(batch, note))))

    def _swept(self, batch: _Batch, job: _Job, sweep: _Sweep, wanted: Lookups) -> None:
        missing = [key for key in sweep.stream_keys if key not in batch.workspace.streams]
        if missing:
            wanted.streams.update(missing)
            raise Missing
        # Loading a stream fires its timers, so there is nothing left to do.
        batch.answers.append((job, None))

    def _erase(self, batch: _Batch, job: _Job, erase: _Erase, draw: Drawing, wanted: Lookups) -> None:
        tx = self._draft(batch, None, draw, wanted)
        over = retention.erase_when_over(tx, erase.found)
        if over is not None:
            tx.area_code = over.area_code
            sealed = self._seal(batch, tx, draw)
            tx.apply()
            self._write(batch, job, self._leaves(tx, sealed, over.accepted))
        batch.answers.append((job, over is not None))

    def _boot(self, batch: _Batch, job: _Job, draw: Drawing, wanted: Lookups) -> None:
        space = batch.workspace
        checks, foreign = joining.check_keys(self._keys, space, wanted)
        if foreign is not None:
            batch.answers.append((job, foreign))
            return
        # Looked up with each decision: another hub may be opening the ledger at this moment.
        found = space.names[index.LEDGER_NAME]
        is_new = found is None
        self.ledger_key = stream_key("ledger", draw.bytes(16)) if found is None else found
        tx = self._draft(batch, None, draw, wanted)
        if is_new:
            joining.open_ledger(tx, self.ledger_key, self.config)
        joining.register_keys(tx, self.ledger_key, self._keys, self.config)
        if tx.pending or checks:
            sealed = self._seal(batch, tx, draw)
            tx.apply()
            self._write(batch, job, self._leaves(tx, sealed, replies=checks))
        batch.answers.append((job, None))

    # ---- look-ups ----

    async def _load(self, batch: _Batch, wanted: Lookups) -> None:
        found = await self._fetch(batch, wanted)
        # What nearly every step asks for next; fetching it now spares a whole dry run of the decision.
        known, next_keys = batch.workspace.streams, set()
        for key, working in found:
            next_keys.update(index.related(working.kind, key, working.state, known))
        if next_keys:
            await self._fetch(batch, Lookups(streams=next_keys))

    def _known_rows(self) -> dict[tuple[str, str, str], bytes | None]:
        """The catalogue rows of the batches before: a row of an edition never changes, so each is loaded once.

        One that was not there is looked for again.
        """
        if len(self._rows) > _CATALOG_ROWS_KEPT_MAX:
            self._rows = {}
        elif self._rows_missed:
            self._rows = {row: body for row, body in self._rows.items() if body is not None}
        self._rows_missed = False
        return self._rows

    async def _fetch(self, batch: _Batch, wanted: Lookups) -> list[tuple[bytes, Working]]:
        """Put look-ups into the workspace; returns the streams that it did not have before."""
        space = batch.workspace
        listed: dict[tuple[str, bytes, int], list[bytes]] = {}
        for space_name, key, limit in wanted.listings:
            rows = await self.store.listing(space_name, key, 0, limit, newest_first=True)
            space.newest_listed[space_name, key] = rows[0].position if rows else 0
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
            self._rows_missed |= space.catalog.setdefault(row, loaded.catalog.get(row)) is None
        for key in wanted.streams:
            if key not in loaded.heads:
                space.streams.setdefault(key, None)
        return self._take_heads(batch, loaded)

    def _take_heads(self, batch: _Batch, loaded: Loaded) -> list[tuple[bytes, Working]]:
        space = batch.workspace
        if self._others is not None:
            self._keep_up(batch, loaded)
        found: list[tuple[bytes, Working]] = []
        due: list[tuple[int, str, bytes]] = []
        for key, head in loaded.heads.items():
            if key in space.streams:
                continue
            kind = STATE_TYPES.get(head.stream_kind)
            if kind is None:
                continue
            state = kind.FromString(head.body)
            working = space.streams[key] = Working(head.stream_kind, head.version, head.leaf_hash, state)
            found.append((key, working))
            if head.due_at_ms is not None and head.due_at_ms <= batch.now_ms:
                due.append((head.due_at_ms, head.stream_kind, key))
        # Sorted, because heads come in the order of a set: the same commands have to give the same ledger.
        for _, stream_kind, key in sorted(due):
            self._fire(batch, stream_kind, key)
        return found

    def _keep_up(self, batch: _Batch, loaded: Loaded) -> None:
        """Never decide before what another hub recorded already, however far this one's clock is behind.

        Then no stream goes back in time, nor does a chain through several streams.
        """
        newest_ms = max((head.recorded_at_ms for head in loaded.heads.values()), default=0)
        if newest_ms <= batch.now_ms:
            return
        batch.now_ms = batch.accesses.now_ms = self._newest_ms = newest_ms
        late = [
            (due_at_ms, stream.kind, key)
            for key, stream in batch.workspace.streams.items()
            if stream is not None
            and (due_at_ms := timers.next_due_ms(stream.kind, stream.state)) is not None
            and due_at_ms <= newest_ms
        ]
        for _, stream_kind, key in sorted(late):
            batch.timed.discard(key)
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
            self._write(batch, None, self._leaves(tx, sealed))

    def _rules_for(self, area_code: str, now_ms: int) -> Rules:
        day = (now_ms + 8 * 3_600_000) // DAY_MS
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

    def _seal(self, batch: _Batch, tx: WorkingDraft, draw: Drawing) -> list[Entry]:
        digest = self._rules_for(tx.area_code, batch.now_ms).digest
        return entries_of(tx, draw, now_ms=batch.now_ms, policy_digest=digest)

    def _leaves(
        self,
        tx: WorkingDraft,
        sealed: Sequence[Entry],
        outcome: Accepted | None = None,
        replies: tuple[Reply, ...] = (),
    ) -> Write:
        reads = Reads(*tx.rests_on()) if self._others is not None else None
        return write_of(tx, sealed, outcome=outcome, replies=replies, reads=reads)

    def _write(self, batch: _Batch, job: _Job | None, write: Write) -> None:
        batch.fed |= fed_by(write)
        batch.writes.append(write)
        batch.jobs.append(job)


def _fail(jobs: Iterable[_Job], error: Exception) -> None:
    for job in jobs:
        if not job.future.done():
            job.future.set_exception(error)
