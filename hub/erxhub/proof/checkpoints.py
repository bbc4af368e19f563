"""Checkpoints: a log's signed statement of its size and root.

Owns the lines of the text. It must never read a checkpoint of which the note was not verified, except where a witness
has to know the origin before it can choose the keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from erxhub.proof.hashing import EMPTY_ROOT
from erxhub.proof.merkle import ProofInvalid
from erxhub.proof.notes import ED25519, NoteKey, Opened, open_note
from erxhub.proof.text import read_decimal, read_hash, write_base64

_CONTROL: Final = re.compile("[\u0000-\u0009\u000b-\u001f]")


class CheckpointText(NamedTuple):
    """What a checkpoint says. Extension lines have no meaning here."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()


class OpenedCheckpoint(NamedTuple):
    """A checkpoint that a key of its log has signed, and its note."""

    said: CheckpointText
    note: Opened


def read_checkpoint(text: str) -> CheckpointText:
    """The lines of a note's text. Raises ProofInvalid CHECKPOINT, DECIMAL, BASE64, HASH_LENGTH, EMPTY_ROOT."""
    said = read_checkpoint_lines(text)
    if said.size == 0 and said.root != EMPTY_ROOT:
        raise ProofInvalid("EMPTY_ROOT", "size 0 goes with the root of the empty tree alone")
    return said


def read_checkpoint_lines(text: str) -> CheckpointText:
    """As read_checkpoint, for a witness, which tells an empty tree with a wrong root from a text that is malformed."""
    lines = text.split("\n")
    if lines.pop() or len(lines) < 3:
        raise ProofInvalid("CHECKPOINT", "a checkpoint is three lines or more, each with its end")
    if not all(lines):
        raise ProofInvalid("CHECKPOINT", "a checkpoint has no empty line")
    if _CONTROL.search(text):
        raise ProofInvalid("CHECKPOINT", "a control character")
    origin, size_text, root_text, *extensions = lines
    return CheckpointText(origin, read_decimal(size_text), read_hash(root_text), tuple(extensions))


def write_checkpoint(origin: str, size: int, root: bytes) -> str:
    """The text of a checkpoint, to be signed by `notes.LogSigner`. Raises ValueError for what cannot be read back."""
    text = f"{origin}\n{size}\n{write_base64(root)}\n"
    if read_checkpoint(text) != CheckpointText(origin, size, root):
        raise ValueError("an origin is one line")
    return text


def open_checkpoint(note: bytes | str, origin: str, keys: Iterable[NoteKey]) -> OpenedCheckpoint:
    """Verify a checkpoint of the log `origin`. Keys of witnesses may be among `keys`; one of a log must have signed.

    Raises ProofInvalid with the reasons of open_note and read_checkpoint, LOG_UNSIGNED and ORIGIN.
    """
    opened = open_note(note, keys)
    if not any(signer.key.type == ED25519 for signer in opened.signers):
        raise ProofInvalid("LOG_UNSIGNED", "no key of the log has signed")
    said = read_checkpoint(opened.text)
    if said.origin != origin:
        raise ProofInvalid("ORIGIN", "the checkpoint is another log's")
    return OpenedCheckpoint(said, opened)
