"""The lane: the one task of a hub that takes commands in batches, decides them one after another, and commits once.

Owns the queue, the sweep, how long a batch waits for more, its rounds of look-ups, the commit, and who is answered.
It never decides a command (deciding does), never loads (loading does), never touches SQL (the store does), and never
lets a caller's cancellation reach a commit: a call waits for its command's future, and the lane does not care whether
it still does.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Final

from erxhub.accesses import AccessLog, ReadNote
from erxhub.config import Config
from erxhub.core import decide, retention
from erxhub.core.draft import Lookups
from erxhub.core.mac import HmacSha256
from erxhub.core.model import Command
from erxhub.deciding import Decider
from erxhub.jobs import Answer, Batch, Boot, Erase, Job, Sweep, Work
from erxhub.keys import ForeignKeys, HubKeys
from erxhub.ledger.entry import Header
from erxhub.ledger.store import Store, StoreUnavailable
from erxhub.loading import Loader
from erxhub.marks import Marks
from erxhub.metrics import Counters
from erxhub.policy.pack import PackLibrary
from erxhub.policy.rules import Rules
from erxhub.ports import Clock, Ids, machine_us
from erxhub.watches import Watches

_log = logging.getLogger("erxhub.engine")

_ROUNDS_MAX: Final = 12

_LULL_S: Final = 0.002
"""When nobody has come for so long, nobody is waited for any more."""

_BUSY_FREE: Final = 2
"""Times that a command whose streams are taken is put off. From then on it waits for them."""

_FROM_CALLERS: Final = (Command, ReadNote)
"""Work that takes room in the queue; named here because a union made for each call costs more than its test."""


class HubBusy(Exception):
    """The lane's queue is full."""


class HubStopped(Exception):
    """The lane is stopping, or its store cannot be written now."""


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
        """Where it commits; what is looked up is loaded by the loader, from the same."""
        self.counters = Counters()
        self.config = config
        self.clock = clock
        self._ids = ids
        self._content_mac = HmacSha256(keys.content_mac_key())
        self._jobs: deque[Job] = deque()
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
        self._decider = Decider(
            ids=ids,
            keys=keys,
            packs=packs,
            config=config,
            accesses=self._accesses,
            counters=self.counters,
            shared=store.others is not None,
        )
        self._loader = Loader(store, self._decider, shared=store.others is not None)
        self.watches = Watches(self.counters.lag)
        self._others = store.others
        self._listening: asyncio.Task[None] | None = None

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
        foreign: str | None = await self._put(Boot())
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
    def ledger_key(self) -> bytes:
        """The ledger's own stream; known since `start`."""
        return self._decider.ledger_key

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
            await self._put(Sweep(tuple(due)))
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
                await self._put(Sweep((key,)))
            except HubStopped:
                raise
            except Exception:  # noqa: BLE001 see above
                _log.error("the deadline of stream %s cannot be written", key.hex())
                failed.add(key)

    async def erase_over(self, found: retention.Found) -> bool:
        """Erase what a stream's entries say if no retention class keeps it now; whether that was done.

        Raises HubStopped, StoreUnavailable.
        """
        return bool(await self._put(Erase(found)))

    def rules(self, area_code: str) -> Rules:
        """The parameters in force for the area today."""
        return self._decider.rules(area_code, self.clock.now_ms())

    async def _put(self, work: ReadNote | Sweep | Erase | Boot, size: int = 0) -> Any:
        return await self._queued(work, b"", size)

    def _queued(self, work: Work, content_mac: bytes, size: int) -> asyncio.Future[Any]:
        if not self.running:
            raise HubStopped
        if isinstance(work, _FROM_CALLERS):
            self.check_room(size)
        job = Job(work, content_mac, size, decide.ahead(work) if isinstance(work, Command) else None)
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
        jobs: list[Job] = []
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

    def _next_jobs(self) -> list[Job]:
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

    async def _commit(self, jobs: Sequence[Job], *, closing: bool = False) -> None:
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

    async def _process(self, jobs: Sequence[Job], *, closing: bool) -> None:
        self._newest_ms = max(self.clock.now_ms(), self._newest_ms)
        batch = self._loader.new_batch(self._newest_ms)
        marked = [job.marks for job in jobs if job.marks is not None]
        for marks in marked:
            marks.taken_us = machine_us()
        await self._decide(batch, jobs)
        for write in self._accesses.writes(batch.accesses, batch.workspace, closing=closing):
            batch.add(None, write)
        if jobs and jobs[0].busy >= _BUSY_FREE:
            batch.writes = [write._replace(waits=True) for write in batch.writes]
        lost: frozenset[int] = frozenset()
        # With nothing to write the store is asked all the same while it is not known to be back.
        if batch.writes or not self._can_write:
            lost = await self._append(batch, len(jobs), marked)
        if batch.writes:
            self.counters.batches += 1
        self._accesses.written(batch.accesses)
        self._settle(batch, lost)

    async def _decide(self, batch: Batch, jobs: Sequence[Job]) -> None:
        draws = {id(job): self._ids.draw() for job in jobs}
        waiting = deque(jobs)
        rounds = 0
        while waiting:
            wanted = Lookups()
            while waiting:
                draw = draws[id(waiting[0])]
                draw.restart()
                if not self._decider.attempt(batch, waiting[0], draw, wanted):
                    break
                waiting.popleft()
            if not waiting:
                break
            for later in islice(waiting, 1, None):
                draw = draws[id(later)]
                draw.restart()
                self._decider.ask(batch, later, draw, wanted)
            rounds += 1
            if rounds > _ROUNDS_MAX * (1 + len(jobs)):
                raise RuntimeError(f"a decision never stops asking for look-ups: {wanted}")
            await self._loader.load(batch, wanted)
            # Another hub may have recorded something later than this one's clock says.
            self._newest_ms = batch.now_ms

    async def _append(self, batch: Batch, jobs: int, marked: Sequence[Marks]) -> frozenset[int]:
        """Commit; returns the places of the Writes that were not taken: another hub came first, or is writing."""
        begun_us = machine_us()
        for marks in marked:
            marks.decided_us = begun_us
        result = await self.store.append(batch.writes)
        self.counters.commit_seconds.observe((machine_us() - begun_us) / 1e6)
        self.counters.batch_jobs.observe(jobs)
        for marks in marked:
            marks.committed_us = machine_us()
        self.counters.conflicts += len(result.conflicts)
        self.counters.busy += len(result.busy)
        self._turn(can_write=True)
        if self._acknowledging is not None:
            self._acknowledging(result.last_position)
        for place in result.busy:
            job = batch.jobs[place]
            if job is not None:
                job.busy += 1
                job.taken = frozenset(entry.header.stream_key for entry in batch.writes[place].entries)
        return result.conflicts | result.busy

    def _settle(self, batch: Batch, places: frozenset[int]) -> None:
        lost = {id(batch.jobs[place]) for place in places}
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

    def _again(self, job: Job) -> None:
        """Have a job decided again: another hub came first, so somebody got on. In time this one does too."""
        now_us = machine_us()
        job.again_us = job.again_us or now_us
        if now_us - job.again_us > self.config.contended_ms * 1000:
            _fail([job], HubStopped())
            return
        self._jobs.appendleft(job)
        self._bytes += job.size
        self._wake.set()


def _fail(jobs: Iterable[Job], error: Exception) -> None:
    for job in jobs:
        if not job.future.done():
            job.future.set_exception(error)
