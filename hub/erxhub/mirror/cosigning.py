"""A witness that looks inside: it cosigns a checkpoint only after its own replay came to the same root.

Owns the one check that it has above a witness. Everything else, and above all that nothing is cosigned twice, is the
witness's.
"""

from __future__ import annotations

from collections.abc import Iterable

from erxhub.ledger.store import Store, StoreUnavailable
from erxhub.mirror.replay import Mirror
from erxhub.ports import Clock
from erxhub.proof.checkpoints import read_checkpoint_lines
from erxhub.proof.merkle import ProofInvalid
from erxhub.proof.notes import Cosigner, NoteKey, open_note, read_note
from erxhub.witness.protocol import TEXT_TYPE, read_add_checkpoint
from erxhub.witness.records import Records, RecordsBroken
from erxhub.witness.witness import Answer, Witness


class MirrorWitness(Witness):
    """Answers 503 for what was not replayed yet, and 422 for another log than the replayed one, with evidence."""

    def __init__(
        self,
        mirror: Mirror,
        store: Store,
        cosigner: Cosigner,
        log_keys: Iterable[NoteKey],
        records: Records,
        clock: Clock,
    ) -> None:
        keys = list(log_keys)
        super().__init__(cosigner, keys, records, clock)
        self._mirror = mirror
        self._store = store
        self._evidence = records
        self._keys = keys

    async def add_checkpoint(self, body: bytes) -> Answer:
        """Answer a request, once the replay agrees with what it says."""
        try:
            note = read_add_checkpoint(body).note
            said = read_checkpoint_lines(read_note(note).text)
            open_note(note, [key for key in self._keys if key.name == said.origin])
        except ProofInvalid:
            return await super().add_checkpoint(body)  # it knows the status of each
        try:
            made = await self._store.checkpoint(size=said.size)
        except StoreUnavailable:
            return _answer(503, "STORAGE: the mirror cannot read its copy")
        if made is None or made.note is None or made.covered_position > self._mirror.judged_position:
            return _answer(503, "REPLAY: the mirror has not replayed the log so far")
        if made.root != said.root:
            evidence = {"reason": "ROOT", "offered": note.decode(), "replayed": made.note, "root": made.root.hex()}
            try:
                await self._evidence.keep_evidence(evidence)
            except RecordsBroken:
                return _answer(503, "STORAGE: the mirror cannot keep its records")
            return _answer(422, "ROOT: the replay of the log comes to another root")
        return await super().add_checkpoint(body)


def _answer(status: int, words: str) -> Answer:
    return Answer(status, TEXT_TYPE, f"{words}\n".encode())
