"""THE reasons for which a mirror stops, and the exception that carries one with its evidence."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final


class Reason(StrEnum):
    """What does not hold. A code is stable."""

    POSITION = "POSITION"
    """An entry is missing from what the hub streams, or comes twice."""
    HEADER = "HEADER"
    """The header is not in the format."""
    VERSION_GAP = "VERSION_GAP"
    """The entry does not follow the one before it in its stream, or the stream changed its kind."""
    LEAF_HASH = "LEAF_HASH"
    """Commitment, leaf or leaf hash do not follow from header, salt, payload and the entry before."""
    TIME_BACKWARDS = "TIME_BACKWARDS"
    """Recorded before its predecessor."""
    PAYLOAD = "PAYLOAD"
    """The payload cannot be read, or the event does not belong into its stream."""
    LIFECYCLE = "LIFECYCLE"
    """No row of the transition tables allows this event here."""
    NAME = "NAME"
    """Two streams claim one name, or two entries one place."""
    CONTENT_MISSING = "CONTENT_MISSING"
    """Content is kept back although no entry says that it was erased."""
    ROOT = "ROOT"
    """The tree over the entries has another root or size than the checkpoint."""
    MAPROOT = "MAPROOT"
    """The map over the entries has another root than the hub's."""
    CHECKPOINT = "CHECKPOINT"
    """The note is not signed by a trusted log key, or says something else than its checkpoint."""
    SHORTER = "SHORTER"
    """The hub has no checkpoint of the size that it showed before."""
    SIGNED = "SIGNED"
    """What participants signed does not hold, or prescriptions are not joined as they say."""


FINDINGS_MAX: Final = 100


class MirrorFault(Exception):
    """The replay cannot agree with the hub. `evidence` is JSON: what was expected, what came, and the signed note."""

    def __init__(self, reason: Reason, words: str, **evidence: Any) -> None:
        super().__init__(f"{reason}: {words}")
        self.reason = reason
        self.evidence: dict[str, Any] = {"reason": reason.value, "words": words, **evidence}
