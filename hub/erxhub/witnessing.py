"""Witnessing: published checkpoints are shown to the witnesses of a policy, and their cosignatures are kept.

Owns which checkpoint is shown when, from when on one counts as witnessed, and the end of publishing when a witness
proves that our log's key has signed another history than ours; what it does not prove ends nothing. It must never show
a checkpoint whose note is not stored, nor a smaller one after a larger one, and never hold up a command: with the
witnesses away, everything but the cosignatures goes on.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from erxhub.config import Config
from erxhub.high_water import HighWater
from erxhub.ledger.log import Checkpoint, Cosignature
from erxhub.ledger.store import Store, StoreUnavailable
from erxhub.ports import Clock
from erxhub.proof.notes import NoteKey, read_line
from erxhub.proof.policy import Policy
from erxhub.waiting import Waiters
from erxhub.witness.client import (
    ForkSuspected,
    RollbackSuspected,
    Shown,
    WitnessClient,
    WitnessFailure,
    WitnessUnproven,
    clients_of,
)
from erxhub.witness.gathering import GRACE_MS, gather

_log = logging.getLogger("erxhub.witnessing")

ROLLBACK_SUSPECTED: Final = "ROLLBACK_SUSPECTED"
FORK_SUSPECTED: Final = "FORK_SUSPECTED"
WITNESS_UNPROVEN: Final = "WITNESS_UNPROVEN"

_HURRIED_GRACE_MS: Final = 50
"""How long a slow witness is waited for beyond the quorum while somebody waits for a bundle; it gets the next one."""

_DOUBT_MS_MIN: Final = 10_000
_DOUBT_MS_MAX: Final = 3_600_000
"""So long a witness that claimed what it did not prove is left alone, twice as long after each further claim, until it
has made none for the longest time: the hour by which what a witness shows may lag behind what it has cosigned."""

_NO_FILE_NAME: Final = re.compile(r"[^A-Za-z0-9.]+")


class PolicyUnusable(ValueError):
    """No hub can meet the policy; the message says why."""


class PublishingHalted(StoreUnavailable):
    """Nothing is signed or shown now, and commands go on: a witness has shown another history than this ledger's under
    our log's signature, and an operator has to look; or nobody could be asked at the start, and the hub goes on
    publishing once somebody can, which is when `is_for_good` is False.
    """

    def __init__(self, words: str, *, is_for_good: bool) -> None:
        super().__init__(words)
        self.is_for_good = is_for_good


class _Doubt(NamedTuple):
    """A witness is not asked until then, UTC ms, and for how long that was put off."""

    until_ms: int
    for_ms: int


async def _go_on(_: str) -> None:
    """Between two parts of a gathering."""


def check_policy(policy: Policy) -> None:
    """Raise PolicyUnusable where asking every witness that can be asked does not meet the quorum, or two are one."""
    keys = [witness.key.name for witness in policy.witnesses.values()]
    if any(not _is_text(name) for name in (*policy.witnesses, *keys)):
        raise PolicyUnusable("the name of a witness is no UTF-8 text, and metrics and evidence show it")
    if len(set(keys)) != len(keys):
        raise PolicyUnusable("two witnesses have keys of one name; the ledger keeps one line a name")
    try:
        asked = clients_of(policy, _NO_CLOCK, ())
    except ValueError as error:
        raise PolicyUnusable(str(error)) from None
    if not policy.holds(asked):
        raise PolicyUnusable("the quorum needs witnesses that have no URL, or a key that cannot be verified here")


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class _NoClock:
    def now_ms(self) -> int:
        raise AssertionError("a client that only shows that its URL is one")


_NO_CLOCK: Final = _NoClock()


class Witnessing:
    """The witnesses of one log, as one hub asks them. One gathering at a time, and only the newest checkpoint is sent,
    unless somebody waits for an earlier one that is still larger than the last.
    """

    def __init__(
        self,
        policy: Policy,
        store: Store,
        log_keys: Sequence[NoteKey],
        *,
        clock: Clock,
        config: Config,
        high_water: HighWater | None = None,
        between: Callable[[str], Awaitable[None]] = _go_on,
    ) -> None:
        self.newest: Checkpoint | None = None
        """The newest checkpoint that a quorum is known to have cosigned; the lines are stored."""
        self.halted: str | None = None
        """Why publishing has ended: ROLLBACK_SUSPECTED or FORK_SUSPECTED, and the witness's words."""
        self.failures: dict[str, int] = {}
        """Answers that were no cosignature, by the witness's name in the policy."""
        self.unproven: dict[str, int] = {}
        """Claims of another history without a note that our log has signed, by the witness's name in the policy."""
        self.on_halt: Callable[[], None] | None = None
        self._policy = policy
        self._store = store
        self._log_keys = tuple(log_keys)
        self._clock = clock
        self._config = config
        self._high_water = high_water
        self._between = between
        self._clients: dict[str, WitnessClient] = {}
        self._silent: set[str] = set()
        self._doubts: dict[str, _Doubt] = {}
        self._offered: Checkpoint | None = None
        self._since_ms: int | None = None  # when the oldest checkpoint was made that is not witnessed yet
        self._told_overdue = False
        self._heard: set[str] = set()
        self._is_held = False
        self._sent = 0  # the number of the last checkpoint that was shown
        self._wanted = asyncio.Event()
        self.waiters = Waiters()
        self._pinned: dict[asyncio.Future[Checkpoint | None], Checkpoint] = {}

    # ---- the start ----

    async def ask_all(self) -> dict[str, Shown]:
        """What each witness cosigned last of this log, by its name in the policy; one that is away is left out.

        So is one that shows what our log has not signed. It has answered, though: it could as well have said that it
        knows nothing, and an honest one has the signature.
        """
        known = clients_of(self._policy, self._clock, self._log_keys, timeout_ms=self._config.witness_timeout_ms)
        clients = {name: client for name, client in known.items() if not self._is_doubted(name)}
        self._heard = known.keys() - clients.keys()
        answers = await asyncio.gather(
            *(client.shown(self._config.origin) for client in clients.values()), return_exceptions=True
        )
        found = {}
        for name, answer in zip(clients, answers, strict=True):
            if isinstance(answer, WitnessUnproven):
                self._heard.add(name)
                await self._doubt(name, answer)
                continue
            if isinstance(answer, WitnessFailure):
                if not self._is_held:
                    _log.warning("a witness cannot be compared with at this start: %s", answer)
                continue
            if isinstance(answer, BaseException):
                raise answer
            self._heard.add(name)
            if answer is not None:
                found[name] = answer
        return found

    def hold(self) -> None:
        """Nothing else says how far this log was: publish nothing while those who did not answer could know more.

        They could if a quorum of them has cosigned a log that this ledger does not hold.
        """
        self._is_held = self._policy.quorum is not None and self._policy.holds(
            set(self._policy.witnesses) - self._heard
        )
        if self._is_held:
            _log.error("WITNESSES_MISSING: nothing is published until enough witnesses say how far this log was")

    async def open(self) -> None:
        """Begin where the store knows the witnesses to be. Raises StoreUnavailable."""
        sizes = await self._store.witness_sizes()
        self._clients = clients_of(
            self._policy, self._clock, self._log_keys, sizes, timeout_ms=self._config.witness_timeout_ms
        )
        for size in sorted(set(sizes.values()), reverse=True):
            found = await self._store.checkpoint(size=size)
            if found is not None and self._is_met(found):
                self.newest = found
                break

    # ---- for the publisher, and whoever waits ----

    def offer(self, published: Checkpoint) -> None:
        """A checkpoint was published: show it next, unless a newer one comes first."""
        if self._offered is None or self._offered.no <= published.no:
            self._offered = published
        if self._since_ms is None and not self._is_witnessed(published):
            self._since_ms = published.made_at_ms
        self.wake()

    def wake(self) -> None:
        """Look again what is to be shown: a witness that was away may be back."""
        self._tell_overdue()
        if self.halted is None and (self._is_held or self._next() is not None):
            self._wanted.set()

    def check(self) -> None:
        """Raise PublishingHalted where nothing may be published."""
        if self.halted is not None:
            raise PublishingHalted(self.halted, is_for_good=True)
        if self._is_held:
            self._wanted.set()
            words = "WITNESSES_MISSING: nobody could be asked yet how far this log was"
            raise PublishingHalted(words, is_for_good=False)

    async def reached(self, position: int) -> Checkpoint:
        """Wait for a witnessed checkpoint that covers the entry at `position`. Raises PublishingHalted."""
        if self.newest is not None and self.newest.covered_position >= position:
            return self.newest
        return await self.waiters.wait(position)

    async def cosigned(self, published: Checkpoint) -> Checkpoint | None:
        """This very checkpoint with the lines of a quorum; with those that there are when none is to be had in time.

        None: a later one was shown meanwhile, and witnesses do not go back, so take that one.
        """
        if self.halted is not None or self._is_met(published):
            return published
        if published.no < self._sent:
            stored = await self._store.checkpoint(published.no)
            return stored if stored is not None and self._is_met(stored) else None
        future: asyncio.Future[Checkpoint | None] = asyncio.get_running_loop().create_future()
        self._pinned[future] = published
        self._wanted.set()
        try:
            async with asyncio.timeout(self._config.witness_timeout_ms / 1_000):
                return await future
        except TimeoutError:
            return published
        finally:
            self._pinned.pop(future, None)

    @property
    def overdue_ms(self) -> int:
        """For how long the oldest checkpoint that is not witnessed has been waiting beyond the merge delay; 0: none."""
        if self._since_ms is None:
            return 0
        return max(0, self._clock.now_ms() - self._since_ms - self._config.max_merge_delay_ms)

    @property
    def is_behind(self) -> bool:
        """Whether a published checkpoint is not witnessed yet."""
        return self._since_ms is not None

    # ---- gathering ----

    async def run(self) -> None:
        """Show what there is to show, for as long as the hub runs."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self.show_all()
            except StoreUnavailable:
                _log.warning("no cosignatures now: the store cannot be used")
            except Exception:  # noqa: BLE001 a loop that ended would leave every later checkpoint unwitnessed
                _log.exception("gathering cosignatures failed and goes on with the next checkpoint")

    async def show_all(self) -> None:
        """Show the newest checkpoint, and before it those that somebody waits for. Raises as the store does."""
        if self._is_held:
            await self._ask_again()
        while self.halted is None and not self._is_held:
            shown = self._next()
            if shown is None:
                return
            found = await self._show(shown)
            self._settle(shown, found)
            if not self._is_met(found) and not self._pinned:
                return  # the next round tries again

    async def _ask_again(self) -> None:
        """Publishing is held: go on with it once enough witnesses have said that they know no more than this ledger."""
        shown = await self.ask_all()
        newest = await self._store.checkpoint()
        for name, theirs in sorted(shown.items()):
            stored = await self._store.checkpoint(size=theirs.said.size)
            if stored is None or stored.root != theirs.said.root:
                is_more = newest is None or theirs.said.size > newest.size
                words = f"{self._clients[name].name} has cosigned a log of {theirs.said.size} leaves that is not here"
                await self._halt(ROLLBACK_SUSPECTED if is_more else FORK_SUSPECTED, name, newest, words, theirs.note)
        self._is_held = self._policy.holds(set(self._policy.witnesses) - self._heard)
        if not self._is_held and self.halted is None:
            _log.info("the witnesses know no more than this ledger; it is published from now on")

    def _next(self) -> Checkpoint | None:
        waiting = [pinned for pinned in self._pinned.values() if pinned.no >= self._sent]
        if waiting:
            return min(waiting, key=lambda one: one.no)
        newest = self._offered
        return newest if newest is not None and newest.no >= self._sent and not self._is_witnessed(newest) else None

    def _is_witnessed(self, checkpoint: Checkpoint) -> bool:
        return self.newest is not None and self.newest.no >= checkpoint.no

    async def _show(self, shown: Checkpoint) -> Checkpoint:
        """Have a stored note cosigned; the checkpoint with its lines then."""
        stored = await self._stored(shown)
        if self._is_met(stored):
            return stored  # another hub has asked already
        assert stored.note is not None
        self._sent = max(self._sent, stored.no)

        async def prove(size: int) -> list[bytes]:
            return await self._store.consistency(size, stored.size)

        grace_ms = _HURRIED_GRACE_MS if self._pinned else GRACE_MS
        asked = {name: client for name, client in self._clients.items() if not self._is_doubted(name)}
        found = await gather(self._policy, asked, stored.note, prove, grace_ms=grace_ms)
        await self._between("gather")
        lines = [Cosignature(self._clients[name].name, line) for name, line in found.lines.items()]
        if lines:
            await self._store.cosign(stored.no, lines)
            await self._between("cosign")
        await self._count(found.lines, found.failures)
        await self._judge(stored, found.alarms)
        return await self._stored(shown)

    async def _stored(self, shown: Checkpoint) -> Checkpoint:
        stored = await self._store.checkpoint(shown.no)
        if stored is None or stored.note is None or (stored.size, stored.root) != (shown.size, shown.root):
            raise ValueError(f"checkpoint {shown.no} is not stored as it was published")
        return stored

    def _is_met(self, checkpoint: Checkpoint) -> bool:
        """Whether the stored lines, each of which was verified when it came, are a quorum's."""
        if self._policy.quorum is None:
            return True
        signed = {(line.name, line.key_id) for line in (read_line(one.line) for one in checkpoint.cosignatures)}
        return self._policy.holds(
            [
                name
                for name, witness in self._policy.witnesses.items()
                if (witness.key.name, witness.key.key_id) in signed
            ]
        )

    def _settle(self, shown: Checkpoint, found: Checkpoint) -> None:
        """Tell whoever waits what came of it."""
        for future, pinned in list(self._pinned.items()):
            if pinned.no <= shown.no:
                del self._pinned[future]
                if not future.done():
                    future.set_result(found if pinned.no == shown.no else None)
        if self.halted is not None or not self._is_met(found) or self._is_witnessed(found):
            return
        self.newest = found
        is_all = self._offered is None or self._is_witnessed(self._offered)
        self._since_ms = None if is_all or self._offered is None else self._offered.made_at_ms
        self.waiters.tell(found)

    # ---- what goes wrong ----

    def _is_doubted(self, name: str) -> bool:
        """Whether a witness is left alone now."""
        doubt = self._doubts.get(name)
        return doubt is not None and self._clock.now_ms() < doubt.until_ms

    async def _count(self, lines: Mapping[str, str], failures: Mapping[str, WitnessFailure]) -> None:
        for name, failure in failures.items():
            self.failures[name] = self.failures.get(name, 0) + 1
            if isinstance(failure, WitnessUnproven) and not await self._is_ours(failure.size):
                await self._doubt(name, failure)
            elif name not in self._silent:
                _log.warning("no cosignature: %s", failure)
        for name in self._silent.intersection(lines):
            _log.info("witness %s cosigns again", name)
        self._silent = (self._silent | set(failures)) - set(lines)

    async def _is_ours(self, size: int | None) -> bool:
        """Whether another hub of this ledger has made a checkpoint of this size; the witness may show it later."""
        return size is not None and await self._store.checkpoint(size=size) is not None

    async def _doubt(self, name: str, unproven: WitnessUnproven) -> None:
        """Leave a witness alone for a while, and keep the first of its claims of each kind."""
        earlier, now_ms = self._doubts.get(name), self._clock.now_ms()
        is_first = earlier is None or now_ms - earlier.until_ms >= _DOUBT_MS_MAX
        for_ms = _DOUBT_MS_MIN if earlier is None or is_first else min(2 * earlier.for_ms, _DOUBT_MS_MAX)
        self._doubts[name] = _Doubt(now_ms + for_ms, for_ms)
        self.unproven[name] = self.unproven.get(name, 0) + 1
        _log.error("WITNESS_UNPROVEN: %s. It is asked again in %d s", unproven, for_ms // 1_000)
        if self._high_water is None:
            return
        said = {"code": WITNESS_UNPROVEN, "found": str(unproven), "origin": self._config.origin, "witness": name}
        who = _NO_FILE_NAME.sub("-", self._policy.witnesses[name].key.name)
        file = f"claim-{who}-{unproven.kind.lower()}"
        try:
            await asyncio.to_thread(self._high_water.keep_evidence, file, {**said, "claim": unproven.claim})
        except OSError as error:
            _log.warning("the claim of %s cannot be kept: %s", name, error.strerror)

    async def _judge(self, stored: Checkpoint, alarms: Mapping[str, WitnessFailure]) -> None:
        """End publishing where a witness shows what our log has signed and this ledger does not hold."""
        for name, alarm in sorted(alarms.items()):
            if isinstance(alarm, RollbackSuspected):
                theirs = alarm.theirs.said
                held = await self._store.checkpoint(size=theirs.size)
                if held is None:
                    await self._halt(ROLLBACK_SUSPECTED, name, stored, str(alarm), alarm.theirs.note)
                elif held.root != theirs.root:
                    words = f"{self._clients[name].name} has cosigned another log of {theirs.size} leaves than this one"
                    await self._halt(FORK_SUSPECTED, name, stored, words, alarm.theirs.note)
                # Otherwise another hub of this ledger has shown a later checkpoint.
            elif isinstance(alarm, ForkSuspected):
                await self._halt(FORK_SUSPECTED, name, stored, str(alarm), alarm.theirs)

    async def _halt(self, code: str, name: str, ours: Checkpoint | None, found: str, theirs: str | None) -> None:
        evidence: dict[str, Any] = {
            "code": code,
            "found": found,
            "origin": self._config.origin,
            "witness": name,
            "ours": ours and {"no": ours.no, "size": ours.size, "note": ours.note},
            "theirs": theirs,
        }
        if self.halted is None:
            self.halted = f"{code}: {found}"
            self.waiters.fail(PublishingHalted(self.halted, is_for_good=True))
            if self.on_halt is not None:
                self.on_halt()
        kept = None
        if self._high_water is not None:
            who = _NO_FILE_NAME.sub("-", self._clients[name].name)
            file = f"evidence-{code.lower().replace('_', '-')}-{ours.size if ours else 0}-{who}"
            try:
                kept = await asyncio.to_thread(self._high_water.keep_evidence, file, evidence)
            except OSError as error:
                _log.error("the evidence cannot be kept: %s; it is %s", error.strerror, evidence)
        _log.critical(
            "%s: %s. Nothing more is signed or shown; commands go on. Keep this database, the evidence%s and what the"
            " witness has, and find out which history is the true one before this hub starts again.",
            code,
            found,
            f" in {kept}" if kept else "",
        )

    def _tell_overdue(self) -> None:
        overdue_ms = self.overdue_ms
        if overdue_ms and not self._told_overdue:
            _log.error(
                "WITNESSES_MISSING: for %d s no quorum has cosigned; commands go on, and bundles are unwitnessed",
                (overdue_ms + self._config.max_merge_delay_ms) // 1_000,
            )
        elif not overdue_ms and self._told_overdue:
            _log.info("checkpoints are witnessed again")
        self._told_overdue = bool(overdue_ms)
