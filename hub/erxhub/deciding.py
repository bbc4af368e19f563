"""Deciding the jobs of a batch, one after another, into Writes and answers.

Owns what is asked before a command's own decision (a revoked certificate, a repeated request), what a decision leaves
(entries, receipt, stored reply, access), and that a deadline fires before anything else is decided on its stream. It
never decides a business question (core does), never loads (a look-up that is missing is named, and the job attempted
again), and never commits.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Any, Final

from erxhub import joining
from erxhub.accesses import AccessLog, ReadNote, person_of
from erxhub.config import Config
from erxhub.core import decide, index, retention, timers
from erxhub.core.draft import Lookups, WorkingDraft
from erxhub.core.keys import stream_key
from erxhub.core.model import Accepted, Command, Missing, Outcome, Refused, Target
from erxhub.jobs import Batch, Declined, Erase, Job, Replied, Sweep
from erxhub.keys import HubKeys
from erxhub.ledger.entry import Entry
from erxhub.ledger.store import Reads, Reply
from erxhub.metrics import Counters
from erxhub.policy.pack import DAY_MS, PackLibrary, china_date, day_begins_ms
from erxhub.policy.rules import Rules, rules_at
from erxhub.ports import Drawing, Ids
from erxhub.sealing import StoredReply, entries_of, reply_place, write_of, write_receipt

_AREAS_KEPT_MAX: Final = 5_000

REVERSED: Final = "reversed"
"""The method of a request id that a reversal took."""


class Decider:
    """Decides for one hub. `shared` is whether other hubs write to the same store."""

    def __init__(
        self,
        *,
        ids: Ids,
        keys: HubKeys,
        packs: PackLibrary,
        config: Config,
        accesses: AccessLog,
        counters: Counters,
        shared: bool,
    ) -> None:
        self.ledger_key = b""
        """Known once a Boot was decided."""
        self._ids = ids
        self._keys = keys
        self._packs = packs
        self._config = config
        self._accesses = accesses
        self._counters = counters
        self._shared = shared
        self._mac_keys = keys.mac_keys
        self._sealer = keys.reply_sealer()
        self._day_begins_ms = 0
        self._day_ends_ms = 0
        self._rules: dict[str, Rules] = {}
        """By area, of that day in China."""

    def rules(self, area_code: str, now_ms: int) -> Rules:
        """The parameters in force for the area on the day of `now_ms`."""
        if not self._day_begins_ms <= now_ms < self._day_ends_ms:
            self._day_begins_ms = day_begins_ms(china_date(now_ms))
            self._day_ends_ms = self._day_begins_ms + DAY_MS
            self._rules.clear()
        if area_code not in self._rules:
            if len(self._rules) > _AREAS_KEPT_MAX:
                self._rules.clear()
            self._rules[area_code] = rules_at(self._packs, area_code, now_ms)
        return self._rules[area_code]

    # ---- one job ----

    def attempt(self, batch: Batch, job: Job, draw: Drawing, wanted: Lookups) -> bool:
        """Decide one job for good; False when look-ups are missing, which are then in `wanted`."""
        work = job.work
        try:
            if isinstance(work, Command):
                self._command(batch, job, work, draw, wanted)
            elif isinstance(work, ReadNote):
                self._note(batch, job, work)
            elif isinstance(work, Sweep):
                self._swept(batch, job, work, wanted)
            elif isinstance(work, Erase):
                self._erase(batch, job, work, draw, wanted)
            else:
                self._boot(batch, job, draw, wanted)
        except Missing:
            return False
        return True

    def ask(self, batch: Batch, job: Job, draw: Drawing, wanted: Lookups) -> None:
        """Find out what a later job of the batch will look up, without deciding it."""
        work = job.work
        try:
            if isinstance(work, Command):
                if self._before(batch, job, work, draw, wanted) is None:
                    decide.decide(self._draft(batch, work, draw, wanted), work)
            elif isinstance(work, Sweep):
                wanted.streams.update(key for key in work.stream_keys if key not in batch.workspace.streams)
            elif isinstance(work, Erase):
                retention.erase_when_over(self._draft(batch, None, draw, wanted), work.found)
        except Missing:
            pass

    def _draft(self, batch: Batch, work: Command | None, draw: Drawing, wanted: Lookups) -> WorkingDraft:
        return WorkingDraft(
            batch.workspace,
            wanted,
            now_ms=batch.now_ms,
            draw=draw,
            caller_actor=work.caller.actor if work else f"hub/{self._config.hub_id}",
            area_code=work.caller.area_code if work else "",
            request_id=work.request_id if work else "",
            ledger_key=self.ledger_key,
            mac_keys=self._mac_keys,
            rules_for=lambda area_code: self.rules(area_code, batch.now_ms),
        )

    def _before(self, batch: Batch, job: Job, command: Command, draw: Drawing, wanted: Lookups) -> Any:
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

    def _command(self, batch: Batch, job: Job, command: Command, draw: Drawing, wanted: Lookups) -> None:
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
                self._keep(batch, job, tx, draw)
            self._refuse(batch, job, command, outcome)
            return
        self._accept(batch, job, command, tx, outcome, draw)

    def _accept(
        self, batch: Batch, job: Job, command: Command, tx: WorkingDraft, outcome: Accepted, draw: Drawing
    ) -> None:
        sealed = self._seal(batch, tx, draw)
        reply: Any = outcome.reply
        write_receipt(reply.receipt, self._keys.receipt, self._config, batch.now_ms, sealed)
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
        self._add(batch, job, tx, sealed, outcome, tuple(replies))
        self._answer(batch, job, command, stored)

    def _replay(self, batch: Batch, job: Job, command: Command, reply: Reply) -> None:
        sealed = self._sealer.open(command.caller.actor, command.request_id, reply.body)
        self._answer(batch, job, command, StoredReply.decode(sealed))

    def _answer(self, batch: Batch, job: Job, command: Command, stored: StoredReply) -> None:
        self._counters.commands += 1
        caller, slowed = command.caller, False
        if stored.targets:
            note = ReadNote(caller.actor, caller.kind, command.method, command.request_id, stored.targets)
            slowed = self._record(batch, note)
        batch.answers.append((job, Replied(stored.body, stored.attach_upload, slowed)))

    def _refuse(self, batch: Batch, job: Job, command: Command, refused: Refused) -> None:
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

    def _note(self, batch: Batch, job: Job, note: ReadNote) -> None:
        batch.answers.append((job, self._record(batch, note)))

    def _record(self, batch: Batch, note: ReadNote) -> bool:
        """Have an access or a refusal recorded, or only counted; True when the caller is above its budget."""
        if note.fingerprint and self._accesses.is_reported(note.fingerprint, batch.now_ms, batch.accesses):
            self._counters.count("CERT_REVOKED")
            return False
        return self._accesses.note(batch.accesses, note)

    def _swept(self, batch: Batch, job: Job, sweep: Sweep, wanted: Lookups) -> None:
        missing = [key for key in sweep.stream_keys if key not in batch.workspace.streams]
        if missing:
            wanted.streams.update(missing)
            raise Missing
        # Loading a stream fires its timers, so there is nothing left to do.
        batch.answers.append((job, None))

    def _erase(self, batch: Batch, job: Job, erase: Erase, draw: Drawing, wanted: Lookups) -> None:
        tx = self._draft(batch, None, draw, wanted)
        over = retention.erase_when_over(tx, erase.found)
        if over is not None:
            tx.area_code = over.area_code
            self._keep(batch, job, tx, draw, outcome=over.accepted)
        batch.answers.append((job, over is not None))

    def _boot(self, batch: Batch, job: Job, draw: Drawing, wanted: Lookups) -> None:
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
            joining.open_ledger(tx, self.ledger_key, self._config)
        joining.register_keys(tx, self.ledger_key, self._keys, self._config)
        if tx.pending or checks:
            self._keep(batch, job, tx, draw, replies=checks)
        batch.answers.append((job, None))

    # ---- deadlines ----

    def fire(self, batch: Batch, stream_kind: str, key: bytes) -> None:
        """A deadline is part of state: what is due is an entry before anything else is decided on the stream."""
        if key in batch.timed:
            return
        batch.timed.add(key)
        draw = self._ids.draw()
        tx = self._draft(batch, None, draw, Lookups())
        timers.fire_due(tx, stream_kind, key)
        if tx.pending:
            self._keep(batch, None, tx, draw)

    # ---- what a decision leaves ----

    def _keep(
        self,
        batch: Batch,
        job: Job | None,
        tx: WorkingDraft,
        draw: Drawing,
        *,
        outcome: Accepted | None = None,
        replies: tuple[Reply, ...] = (),
    ) -> None:
        """Put a draft without a receipt into the commit."""
        self._add(batch, job, tx, self._seal(batch, tx, draw), outcome, replies)

    def _seal(self, batch: Batch, tx: WorkingDraft, draw: Drawing) -> list[Entry]:
        """The entries of a draft; from here on later jobs of the batch see what it did."""
        digest = self.rules(tx.area_code, batch.now_ms).digest
        sealed = entries_of(tx, draw, now_ms=batch.now_ms, policy_digest=digest)
        tx.apply()
        return sealed

    def _add(
        self,
        batch: Batch,
        job: Job | None,
        tx: WorkingDraft,
        sealed: Sequence[Entry],
        outcome: Accepted | None,
        replies: tuple[Reply, ...],
    ) -> None:
        reads = Reads(*tx.rests_on()) if self._shared else None
        batch.add(job, write_of(tx, sealed, outcome=outcome, replies=replies, reads=reads))
