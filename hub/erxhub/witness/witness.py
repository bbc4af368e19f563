"""The witness's decision: cosign a checkpoint, or say why not.

Owns the order of the checks of docs/formats.md. It must never answer 200 before the record is durable, cosign two roots
of one size, or a smaller size after a larger.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import NamedTuple

from erxhub.ports import Clock
from erxhub.proof.checkpoints import CheckpointText, read_checkpoint_lines
from erxhub.proof.hashing import EMPTY_ROOT
from erxhub.proof.merkle import ProofInvalid, verify_consistency
from erxhub.proof.notes import Cosigner, NoteKey, Opened, open_note, read_note
from erxhub.witness.protocol import SIZE_TYPE, TEXT_TYPE, AddCheckpoint, origin_hash, read_add_checkpoint
from erxhub.witness.records import Recorded, Records, RecordsBroken

_log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """An HTTP status, the type of the body and the body."""

    status: int
    content_type: str
    body: bytes


class Witness:
    """A witness for the logs whose keys it was given; a key's name is its log's origin."""

    def __init__(self, cosigner: Cosigner, log_keys: Iterable[NoteKey], records: Records, clock: Clock) -> None:
        self._cosigner = cosigner
        self._records = records
        self._clock = clock
        self._logs: dict[str, list[NoteKey]] = {}
        for key in log_keys:
            self._logs.setdefault(key.name, []).append(key)
        self._by_hash = {origin_hash(origin): origin for origin in self._logs}

    async def add_checkpoint(self, body: bytes) -> Answer:
        """Answer a request."""
        try:
            request = read_add_checkpoint(body)
            text = read_note(request.note).text
            said = read_checkpoint_lines(text)
        except ProofInvalid as malformed:
            return _refused(400, malformed)
        keys = self._logs.get(said.origin)
        if keys is None:
            return _refused(404, ProofInvalid("ORIGIN", "this witness does not know the log"))
        try:
            opened = open_note(request.note, keys)
        except ProofInvalid as unsigned:
            return _refused(403, unsigned)
        try:
            return await self._decide(request, said, opened)
        except RecordsBroken as trouble:
            _log.error("witness: %s", trouble)
            return _refused(503, ProofInvalid("STORAGE", "the witness cannot read or write its records"))

    async def _decide(self, request: AddCheckpoint, said: CheckpointText, opened: Opened) -> Answer:
        if request.old > said.size:
            return _refused(400, ProofInvalid("SIZE_ORDER", "the old size is above the checkpoint's"))
        recorded = await self._records.read(said.origin)
        if request.old != (recorded.size if recorded else 0):
            if recorded and said.size == recorded.size and said.root != recorded.root:
                await self._keep("ROOT_MISMATCH", request, recorded)
            return _size(recorded)
        try:
            _check_growth(request, said, recorded)
        except ProofInvalid as conflict:
            await self._keep(conflict.reason, request, recorded)
            return _refused(422, conflict)
        line = self._cosigner.line(opened.text, self._clock.now_ms() // 1_000)
        signers = {(signer.key.name, signer.key.key_id) for signer in opened.signers}
        kept = dict.fromkeys(one.line for one in opened.lines if (one.name, one.key_id) in signers)
        note = opened.text + "\n" + "".join(f"{one}\n" for one in (*kept, line))
        if not await self._records.replace(said.origin, request.old, note):
            return _size(await self._records.read(said.origin))
        return Answer(200, TEXT_TYPE, f"{line}\n".encode())

    async def _keep(self, reason: str, request: AddCheckpoint, recorded: Recorded | None) -> None:
        _log.error("witness: a signed checkpoint speaks against its log: %s", reason)
        await self._records.keep_evidence(
            {
                "reason": reason,
                "offered": request.note.decode(),
                "offered_old": request.old,
                "offered_proof": [one.hex() for one in request.proof],
                "recorded": recorded.note if recorded else None,
            }
        )

    async def newest(self, hashed_origin: str) -> Answer:
        """The newest cosigned checkpoint of the log whose origin has this hash, in 64 hexadecimal digits."""
        origin = self._by_hash.get(hashed_origin)
        try:
            recorded = await self._records.read(origin) if origin is not None else None
        except RecordsBroken as trouble:
            _log.error("witness: %s", trouble)
            return _refused(503, ProofInvalid("STORAGE", "the witness cannot read its records"))
        if recorded is None:
            return _refused(404, ProofInvalid("UNKNOWN", "nothing was cosigned for this log"))
        return Answer(200, TEXT_TYPE, recorded.note.encode())


def _check_growth(request: AddCheckpoint, said: CheckpointText, recorded: Recorded | None) -> None:
    if said.size == 0 and said.root != EMPTY_ROOT:
        raise ProofInvalid("EMPTY_ROOT", "size 0 goes with the root of the empty tree alone")
    if request.old == 0:
        if request.proof:
            raise ProofInvalid("PROOF_TOO_LONG", "from size 0 there is nothing to prove")
        return
    assert recorded is not None, "an old size above 0 is a recorded one"
    verify_consistency(request.old, said.size, request.proof, recorded.root, said.root)


def _refused(status: int, why: ProofInvalid) -> Answer:
    return Answer(status, TEXT_TYPE, f"{why.reason}: {why}\n".encode())


def _size(recorded: Recorded | None) -> Answer:
    return Answer(409, SIZE_TYPE, b"%d\n" % (recorded.size if recorded else 0))
