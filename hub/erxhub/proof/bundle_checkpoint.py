"""Whose word a verifier takes, and the checkpoint of a bundle that is opened with it.

Owns what a bundle asks of its checkpoint: the log's signature, and the quorum where there is a policy. It never takes a
key from the bundle.
"""

from __future__ import annotations

from dataclasses import dataclass

from erxhub.proof.checkpoints import read_checkpoint
from erxhub.proof.merkle import ProofInvalid
from erxhub.proof.notes import ED25519, NoteKey, open_note
from erxhub.proof.policy import Policy
from erxhub.proof.reasons import Reason


@dataclass(frozen=True, slots=True)
class Trust:
    """What the verifier brings: log keys, a policy that may name more of them, the trust domain's root (PEM)."""

    log_keys: tuple[NoteKey, ...] = ()
    policy: Policy | None = None
    ca_pem: bytes | None = None

    def logs(self) -> list[NoteKey]:
        """Every log key that can sign here."""
        named = [log.key for log in self.policy.logs] if self.policy else []
        return [key for key in dict.fromkeys([*self.log_keys, *named]) if key.type == ED25519]


@dataclass(frozen=True, slots=True)
class OpenedCheckpoint:
    """A checkpoint that the log has signed.

    `log_keys`: the public keys that did. `witnesses`: those of the policy that cosigned, by their names there, and
    `cosigned_at_s`, the time that each of them signed, in seconds since 1970; both empty without a policy.
    `cosignature_lines` counts the lines after the log's, whoever's they are.
    """

    origin: str
    size: int
    root: bytes
    log_keys: tuple[bytes, ...]
    witnesses: tuple[str, ...]
    cosigned_at_s: tuple[int, ...]
    cosignature_lines: int


class CheckpointRefused(Exception):
    """The checkpoint proves nothing to this verifier."""

    def __init__(self, reason: Reason, words: str) -> None:
        super().__init__(words)
        self.reason = reason


def open_checkpoint(note: str, trust: Trust) -> OpenedCheckpoint:
    """Verify the note as the trust demands. Raises CheckpointRefused CHECKPOINT, FORMAT, WITNESS, QUORUM.

    A bundle has one way of being written, so its note is stricter than notes are: the log's line comes first, the
    others follow in the order of name and key id, and no key has two.
    """
    logs = trust.logs()
    try:
        opened = open_note(note, logs)
        said = read_checkpoint(opened.text)
    except ProofInvalid as error:
        raise CheckpointRefused(Reason.CHECKPOINT, f"the checkpoint does not hold: {error}") from None
    signed_by = tuple(signer.key.public for signer in opened.signers if signer.key.name == said.origin)
    if not signed_by:
        raise CheckpointRefused(Reason.CHECKPOINT, "no trusted key of this origin has signed the checkpoint")
    order = [(line.name, line.key_id) for line in opened.lines]
    first = opened.signers[0].key
    if order[0] != (first.name, first.key_id) or order[1:] != sorted(set(order) - {order[0]}):
        raise CheckpointRefused(Reason.FORMAT, "the lines of the checkpoint are not in their one order")
    witnesses: tuple[str, ...] = ()
    times: dict[NoteKey, int] = {}
    if trust.policy is not None:
        try:
            met = trust.policy.check(note, trust.log_keys)
            witnesses = met.witnesses
            times = {signer.key: signer.timestamp or 0 for signer in met.note.signers}
        except ProofInvalid as error:
            reason = Reason.QUORUM if error.reason == "NO_QUORUM" else Reason.WITNESS
            raise CheckpointRefused(reason, f"the policy is not met: {error}") from None
    named = trust.policy.witnesses if trust.policy is not None else {}
    cosigned_at = tuple(times[named[name].key] for name in witnesses)
    return OpenedCheckpoint(said.origin, said.size, said.root, signed_by, witnesses, cosigned_at, len(order) - 1)
