"""Publishing: from entries to signed checkpoints, and whoever waits for one.

Owns the order of a step: the store takes it (tree, map and checkpoint in one transaction), the log key signs it, the
note is stored, the high-water file moves on, and only then anybody is told, the witnesses too. A crash between any two
of these leaves a checkpoint that the next one to come signs alike, as Ed25519 gives the same bytes. It must never sign
a checkpoint that the store does not hold, and never show one whose note is not stored. While it cannot publish,
commands go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from erxhub.config import Config
from erxhub.high_water import HighWater, Mark
from erxhub.ledger.log import AnotherNote, Checkpoint, LogEmpty, Proofs, ProofsWanted
from erxhub.ledger.store import Store, StoreUnavailable
from erxhub.ports import Clock, Pause
from erxhub.proof.checkpoints import write_checkpoint
from erxhub.proof.notes import LogSigner, PrivateKey
from erxhub.proof.pages import PageDamaged
from erxhub.proof.tiles import TileDamaged
from erxhub.waiting import Waiters
from erxhub.witnessing import PublishingHalted, Witnessing

_log = logging.getLogger("erxhub.publishing")

_PROVE_TRIES: Final = 8
"""Tries for proofs against a signed checkpoint: another one may be made, and not yet signed, at each moment."""


class NotWitnessed(LookupError):
    """This hub has no witnesses: nothing is ever witnessed."""


async def _go_on(_: str) -> None:
    """Between two parts of a step."""


class Publisher:
    """The signed checkpoints of one ledger, as one hub makes and sees them."""

    def __init__(
        self,
        store: Store,
        log_key: PrivateKey,
        *,
        clock: Clock,
        config: Config,
        pause: Pause,
        high_water: HighWater | None = None,
        witnessing: Witnessing | None = None,
        between: Callable[[str], Awaitable[None]] = _go_on,
    ) -> None:
        self.signer = LogSigner(config.origin, log_key)
        self.newest: Checkpoint | None = None
        """The newest published checkpoint that this hub knows; its note is stored."""
        self.witnessing = witnessing
        """The witnesses and what they cosigned; None where there is no policy."""
        self._store = store
        self._clock = clock
        self._config = config
        self._pause = pause
        self._high_water = high_water
        self._between = between  # names what was done last; where a test stops a step
        self._turn = asyncio.Lock()
        self.waiters = Waiters()

    async def covering(self, position: int) -> Checkpoint:
        """A signed checkpoint that covers the entry at `position`, made now where none does.

        Raises LogEmpty (no entry has this position), StoreUnavailable and its kind PublishingHalted, TileDamaged,
        PageDamaged.
        """
        self._check()
        if self.newest is not None and self.newest.covered_position >= position:
            return self.newest
        async with self._turn:
            while True:
                found = await self._catch_up()
                if found is not None and found.covered_position >= position:
                    return found
                if await self._step() is None:
                    # Another hub may have stepped since we looked.
                    found = await self._catch_up()
                    if found is not None and found.covered_position >= position:
                        return found
                    raise LogEmpty(f"no entry has position {position}")

    async def reached(self, position: int) -> Checkpoint:
        """As `covering`, but waits for the next regular checkpoint instead of making one."""
        if self.newest is not None and self.newest.covered_position >= position:
            return self.newest
        return await self.waiters.wait(position)

    async def witnessed(self, position: int) -> Checkpoint:
        """Wait for a checkpoint that covers `position` and that a quorum of the policy has cosigned.

        Raises NotWitnessed where there is no policy, PublishingHalted when publishing has ended.
        """
        if self.witnessing is None:
            raise NotWitnessed("this hub has no witnesses")
        self._check()
        return await self.witnessing.reached(position)

    async def prove(self, wanted: ProofsWanted) -> Proofs:
        """Proofs against the newest checkpoint, which is signed. Raises as `Store.prove` does."""
        for _ in range(_PROVE_TRIES):
            proofs = await self._store.prove(wanted)
            if proofs.checkpoint.note is not None:
                return proofs
            async with self._turn:
                await self._catch_up()
        raise StoreUnavailable("checkpoints are made faster than they are signed")

    async def publish_all(self) -> Checkpoint | None:
        """Publish until every entry is covered; the newest checkpoint then. Raises as `covering` does."""
        self._check()
        async with self._turn:
            await self._catch_up()
            while await self._step() is not None:
                pass
            return self.newest

    async def run(self) -> None:
        """Publish whenever there is something new, for as long as the hub runs.

        A log that contradicts itself is not published any further; commands go on, and every round says so again.
        """
        while True:
            try:
                if self.witnessing is not None:
                    self.witnessing.wake()
                while await self._round():
                    pass
            except PublishingHalted:
                pass  # it was said when it began, and metrics and health go on saying it
            except StoreUnavailable as error:
                _log.warning("no checkpoint now: %s", error)
            except OSError as error:
                _log.error("the high-water file cannot be written: %s", error.strerror)
            except (TileDamaged, PageDamaged, AnotherNote) as error:
                _log.error("LEDGER_DAMAGED: no checkpoint is published any more: %s", error)
            except Exception:  # noqa: BLE001 a loop that ended would leave every later entry out of the log
                _log.exception("publishing failed and goes on with the next round")
            await self._pause(self._config.checkpoint_interval_ms)

    async def _round(self) -> bool:
        """What is due now; whether more is waiting already."""
        self._check()
        async with self._turn:
            before = await self._catch_up()
            if not self._store.integrates:
                return False  # another hub does, and this one has just looked what came of it
            made = await self._step()
        covered = before.covered_position if before else 0
        return made is not None and made.covered_position - covered >= self._config.checkpoint_leaves_max

    async def _catch_up(self) -> Checkpoint | None:
        """Publish the newest checkpoint that the store holds, whoever made it; signed, if nobody did that yet."""
        found = await self._store.checkpoint()
        if found is None or (self.newest is not None and self.newest.no == found.no):
            return self.newest
        return await self._publish(found)

    async def _step(self) -> Checkpoint | None:
        made = await self._store.integrate(self._clock.now_ms(), self._config.checkpoint_leaves_max)
        if made is None:
            return None
        await self._between("step")
        return await self._publish(made)

    async def _publish(self, made: Checkpoint) -> Checkpoint:
        if made.note is None:
            note = self.signer.note(write_checkpoint(self._config.origin, made.size, made.root))
            await self._between("sign")
            try:
                await self._store.sign(made.no, note)
            except AnotherNote:
                # Another hub was faster, with a log key of its own; the text must be this one.
                _log.warning("checkpoint %d was signed by another hub", made.no)
            stored = await self._store.checkpoint(made.no)
            if stored is None or stored.note is None or stored.note.split("\n\n")[0] != note.split("\n\n")[0]:
                raise AnotherNote(f"checkpoint {made.no} has a note that says something else")
            made = stored
            await self._between("persist")
        assert made.note is not None
        if self._high_water is not None:
            await self._high_water.write(Mark(self._config.origin, made.size, made.root, made.note))
            await self._between("mark")
        if self.newest is None or self.newest.no < made.no:
            self.newest = made
        self.waiters.tell(made)
        if self.witnessing is not None:
            self.witnessing.offer(made)
        return made

    def _check(self) -> None:
        if self.witnessing is not None:
            self.witnessing.check()
