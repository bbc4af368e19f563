"""Which of the checkpoints that a mirror came to have been cosigned as a policy demands.

Owns that question alone. Must never take the hub's word for what a checkpoint says: the copy has its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from erxhub.ledger.log import Checkpoint
from erxhub.ledger.store import Store
from erxhub.mirror.faults import MirrorFault, Reason
from erxhub.mirror.replay import Source
from erxhub.proof.bundle_checkpoint import CheckpointRefused, Trust, open_checkpoint
from erxhub.proof.reasons import Reason as Unproven

_LOOKED_BACK: Final = 10
"""Checkpoints that are asked for while the newest one waits for its witnesses."""


async def newest_witnessed(store: Store, source: Source, trust: Trust) -> Checkpoint | None:
    """The newest checkpoint of the copy in `store` that the hub shows with the witnesses that the policy demands.

    Of those that were made last only a few are looked at: None when none of them has enough witnesses. Raises
    MirrorFault for a cosignature that does not verify, and for a note that says something else than the copy.
    """
    async for made in _newest_first(store):
        told = await source.checkpoint(made.size)
        if told is None:
            continue
        try:
            opened = open_checkpoint(told.note, trust)
        except CheckpointRefused as refused:
            if refused.reason == Unproven.QUORUM:
                continue
            raise MirrorFault(Reason.CHECKPOINT, f"{refused.reason}: {refused}", shown=told.note) from None
        if (opened.size, opened.root) != (made.size, made.root):
            raise MirrorFault(Reason.CHECKPOINT, "the note says something else", shown=told.note, seen=made.note)
        return made
    return None


async def _newest_first(store: Store) -> AsyncIterator[Checkpoint]:
    made = await store.checkpoint()
    for _ in range(_LOOKED_BACK):
        if made is None:
            return
        if made.note is not None:
            yield made
        made = await store.checkpoint(no=made.no - 1) if made.no > 1 else None
