"""Asking all witnesses of a policy at once.

Owns how long the slow ones are waited for. It must never keep back an alarm because the quorum was met without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from erxhub.proof.policy import Policy
from erxhub.witness.client import ForkSuspected, Prove, RollbackSuspected, WitnessClient, WitnessFailure

GRACE_MS: Final = 500
"""So long after the quorum is met the others are waited for: a witness that hangs must not hold up every checkpoint."""


class Gathered(NamedTuple):
    """What the witnesses said, by their names in the policy. A witness in neither was too slow."""

    lines: dict[str, str]
    failures: dict[str, WitnessFailure]
    met: bool

    @property
    def alarms(self) -> dict[str, WitnessFailure]:
        """Failures after which nothing more may be published until an operator has looked."""
        return {name: why for name, why in self.failures.items() if isinstance(why, RollbackSuspected | ForkSuspected)}


async def gather(
    policy: Policy,
    clients: Mapping[str, WitnessClient],
    checkpoint_note: str,
    prove: Prove,
    *,
    grace_ms: int = GRACE_MS,
) -> Gathered:
    """Have a checkpoint cosigned by all that can, and say whether the quorum is met.

    Returns when all have answered, or `grace_ms` after the quorum is met; but a witness that claims another history is
    heard to the end. The clients' own time limits end the rest.
    """
    names = {asyncio.create_task(client.cosign(checkpoint_note, prove)): name for name, client in clients.items()}
    waiting = set(names)
    found = Gathered({}, {}, policy.holds(()))
    try:
        while waiting:
            done, waiting = await asyncio.wait(
                waiting,
                timeout=grace_ms / 1_000 if found.met else None,
                return_when=asyncio.ALL_COMPLETED if found.met else asyncio.FIRST_COMPLETED,
            )
            _take(done, names, found)
            if found.met:
                break
            found = found._replace(met=policy.holds(found.lines))
        claiming = {task for task in waiting if clients[names[task]].follows_claim}
        if claiming:
            _take((await asyncio.wait(claiming))[0], names, found)
            waiting -= claiming
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    return found


def _take(done: Iterable[asyncio.Task[str]], names: Mapping[asyncio.Task[str], str], found: Gathered) -> None:
    for task in done:
        try:
            found.lines[names[task]] = task.result()
        except WitnessFailure as failure:
            found.failures[names[task]] = failure
