"""`erxhub audit monitor`: remember the newest checkpoint seen, and take no other history from a hub afterwards.

Owns the state file, and what counts as another history. It must never move on to a checkpoint that does not continue
the one remembered, nor forget one that contradicts it: both notes go into an evidence file.
"""

from __future__ import annotations

import base64
import json
import os
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from erxhub.cli.local_errors import Failed, unusable

if TYPE_CHECKING:
    from erxhub.client import AuditorClient, MirrorClient
    from erxhub.proof.bundle_checkpoint import OpenedCheckpoint, Trust

_FORMAT: Final = 1
_PAGE: Final = 1_000
_LOOKED_BACK: Final = 10
"""Checkpoints that are asked for while the newest one waits for its witnesses."""

Prove = Callable[[int, int], Awaitable[Sequence[bytes] | None]]
"""Asks the hub for the consistency proof between two sizes; None when it has none to give."""


class Contradiction(Exception):
    """The hub shows another history than before. `reason` is SHORTER, FORKED or UNPROVEN."""

    def __init__(self, reason: str, words: str, seen: str, shown: str, proof: Sequence[bytes]) -> None:
        super().__init__(words)
        self.reason = reason
        self._notes = seen, shown
        self._proof = proof

    def evidence(self) -> dict[str, Any]:
        """Both signed notes, which contradict each other without this program; the proof that was offered, if any."""
        seen, shown = self._notes
        proof = [base64.b64encode(node).decode() for node in self._proof]
        return {"reason": self.reason, "words": str(self), "seen": seen, "shown": shown, "proof": proof}


@dataclass(frozen=True, slots=True)
class Seen:
    """The newest checkpoint of a log that was seen, verified, and continued the one before."""

    note: str
    origin: str
    size: int
    root: bytes


def opened(note: str, trust: Trust) -> Seen:
    """A checkpoint that a hub shows. Raises CheckpointRefused when the trust does not accept it."""
    from erxhub.proof.bundle_checkpoint import open_checkpoint

    found: OpenedCheckpoint = open_checkpoint(note, trust)
    return Seen(note, found.origin, found.size, found.root)


def opened_unwitnessed(note: str, trust: Trust) -> Seen:
    """A checkpoint by the log's signature alone. Raises CheckpointRefused."""
    return opened(note, replace(trust, log_keys=tuple(trust.logs()), policy=None))


async def newest_witnessed(hub: AuditorClient | MirrorClient, seen: Seen | None, trust: Trust) -> Seen | None:
    """The newest of the checkpoints after the remembered one that meets the policy, or None.

    Of those that were made last only a few are looked at. Raises CheckpointRefused, and what the client does.
    """
    from erxhub.proof.bundle_checkpoint import CheckpointRefused
    from erxhub.proof.reasons import Reason

    sizes: deque[int] = deque(maxlen=_LOOKED_BACK)
    after = seen.size if seen is not None else 0
    while page := (await hub.checkpoints(after_size=after, page_size=_PAGE)).checkpoints:
        sizes.extend(each.size for each in page if each.note)
        if page[-1].size <= after:
            break  # a hub that counts backwards would keep this going for good
        after = page[-1].size
    for size in reversed(sizes):
        try:
            return opened((await hub.checkpoint(size=size)).note, trust)
        except CheckpointRefused as refused:
            if refused.reason != Reason.QUORUM:
                raise
    return None


async def follow(seen: Seen | None, shown: Seen, prove: Prove) -> Seen:
    """The checkpoint to remember from now on. Raises Contradiction when `shown` does not continue `seen`."""
    from erxhub.proof.merkle import ProofInvalid, verify_consistency

    if seen is None:
        return shown

    def contradiction(reason: str, words: str, proof: Sequence[bytes] = ()) -> Contradiction:
        return Contradiction(reason, words, seen.note, shown.note, proof)

    if shown.origin != seen.origin:
        raise contradiction("FORKED", f"the log calls itself {shown.origin} and was {seen.origin}")
    if shown.size < seen.size:
        raise contradiction("SHORTER", f"the log has {shown.size} leaves and had {seen.size}")
    if shown.size == seen.size:
        if shown.root != seen.root:
            raise contradiction("FORKED", f"two roots of one size, {seen.size}")
        return seen
    path = await prove(seen.size, shown.size)
    if path is None:
        raise contradiction("UNPROVEN", f"the hub does not prove that {seen.size} leaves begin {shown.size}")
    try:
        verify_consistency(seen.size, shown.size, path, seen.root, shown.root)
    except ProofInvalid as error:
        raise contradiction("FORKED", f"{seen.size} leaves do not begin {shown.size}: {error}", path) from None
    return shown


def load(path: Path, trust: Callable[[str], Trust]) -> Seen | None:
    """What was remembered; None where nothing was. The note is verified again. Raises Failed for any other file.

    `trust` gives the trust for an origin: the one remembered here, whatever the hub calls itself by now.
    """
    from erxhub.proof.bundle_checkpoint import CheckpointRefused

    try:
        data = json.loads(path.read_bytes())
        if data["format"] != _FORMAT:
            raise ValueError(f"format {data['format']}")
        note = str(data["note"])
        return opened(note, trust(note.partition("\n")[0]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, CheckpointRefused) as error:
        # Starting anew in silence would forget just what an attacker wants forgotten.
        raise Failed("CLI_MONITOR_STATE", field="--state", details=str(error), path=path) from None


def keep(path: Path, seen: Seen) -> None:
    """Remember; the file is whole at every moment. Raises Failed."""
    _write(path, {"format": _FORMAT, "origin": seen.origin, "size": seen.size, "note": seen.note})


def keep_evidence(state: Path, contradiction: Contradiction, shown: Seen) -> Path:
    """Write the evidence beside the state file, under a name that says which size was shown. Raises Failed."""
    path = state.with_name(f"{state.name}.evidence-{shown.size}-{shown.root.hex()[:16]}.json")
    _write(path, contradiction.evidence())
    return path


def _write(path: Path, data: dict[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(json.dumps(data, ensure_ascii=False, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise unusable(error, path) from None
