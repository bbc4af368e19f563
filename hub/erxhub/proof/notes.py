"""Signed notes: keys, signature lines, and which of the known keys have signed.

Owns the shape of a note and the rules of docs/formats.md for verifying one. It must never hand out a text that no known
key has signed, and never write a text anew before it is verified: the bytes received are the bytes verified.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, NamedTuple, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from erxhub.proof.cosignatures import read_cosignature, signed_message, write_cosignature
from erxhub.proof.merkle import ProofInvalid
from erxhub.proof.text import read_base64, write_base64

ED25519: Final = 0x01
"""A log's key: Ed25519 over the text."""
COSIGNATURE: Final = 0x04
"""A witness's key: cosignature/v1."""
ML_DSA_COSIGNATURE: Final = 0x06
"""A witness's or log's key of a kind that is read in policies and never verified here."""

NOTE_BYTES_MAX: Final = 512 * 1024
LINES_MAX: Final = 100
_KEY_ID_BYTES: Final = 4
_DASH: Final = "— "
_PUBLIC_BYTES: Final = {ED25519: 32, COSIGNATURE: 32, ML_DSA_COSIGNATURE: 1_312}
_SPACES: Final = re.compile("[\u0009-\u000d\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")
_KEY_ID: Final = re.compile("[0-9a-f]{8}")
_CONTROL: Final = re.compile("[\u0000-\u0009\u000b-\u001f]")


class PrivateKey(Protocol):
    """What signs: an Ed25519 key such as crypto.suites.SigningKey of the suite EdDSA."""

    @property
    def public_key(self) -> bytes:
        """32 bytes."""

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""


@dataclass(frozen=True, slots=True)
class NoteKey:
    """A public key as notes know it: a name, a type and the key itself."""

    name: str
    type: int
    public: bytes
    key_id: bytes = field(init=False)

    def __post_init__(self) -> None:
        hashed = self.name.encode() + b"\n" + bytes((self.type,)) + self.public
        object.__setattr__(self, "key_id", sha256(hashed).digest()[:_KEY_ID_BYTES])

    @property
    def vkey(self) -> str:
        """The key in one line, for configurations."""
        return f"{self.name}+{self.key_id.hex()}+{write_base64(bytes((self.type,)) + self.public)}"

    def verify(self, text: bytes, signature: bytes) -> int | None:
        """Check the bytes of a signature line after its key id; the time of a cosignature, None for a log's key.

        Raises ProofInvalid BAD_SIGNATURE.
        """
        timestamp = None
        if self.type == COSIGNATURE:
            timestamp, signature = read_cosignature(signature)
            text = signed_message(text, timestamp)
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, text)
        except (InvalidSignature, ValueError):
            raise ProofInvalid("BAD_SIGNATURE", f"a signature of {self.name} fails") from None
        return timestamp


def valid_name(name: str) -> bool:
    """Whether a key may have this name."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return bool(name) and "+" not in name and not _SPACES.search(name)


def read_vkey(vkey: str, types: Sequence[int] = (ED25519, COSIGNATURE)) -> NoteKey:
    """The key of one line, of one of these types.

    Raises ProofInvalid VKEY_FORM, VKEY_NAME, VKEY_ID, BASE64, VKEY_TYPE, VKEY_LENGTH.
    """
    parts = vkey.split("+", 2)
    if len(parts) != 3:
        raise ProofInvalid("VKEY_FORM", "a key is name+id+base64")
    name, key_id, encoded = parts
    if not valid_name(name):
        raise ProofInvalid("VKEY_NAME", "the name of a key is empty or holds white space")
    if not _KEY_ID.fullmatch(key_id):
        raise ProofInvalid("VKEY_ID", "the id of a key is not 8 lower-case hexadecimal digits")
    data = read_base64(encoded)
    if not data:
        raise ProofInvalid("VKEY_LENGTH", "the key is empty")
    key = NoteKey(name, data[0], data[1:])
    if key.key_id.hex() != key_id:
        raise ProofInvalid("VKEY_ID", "the id of a key does not follow from its name and bytes")
    if key.type not in types:
        raise ProofInvalid("VKEY_TYPE", f"a key of type 0x{key.type:02x} is not one for this place")
    if len(key.public) != _PUBLIC_BYTES[key.type]:
        raise ProofInvalid("VKEY_LENGTH", "the key has not the length of its type")
    return key


class SignatureLine(NamedTuple):
    """One line of a note's signature block. `line` is the whole of it without its LF."""

    name: str
    key_id: bytes
    signature: bytes
    line: str


class Note(NamedTuple):
    """A note in its parts; nothing is verified yet. `text` keeps its final LF."""

    text: str
    lines: tuple[SignatureLine, ...]


class Signer(NamedTuple):
    """A known key that has signed, and the time that it named if it is a witness's."""

    key: NoteKey
    timestamp: int | None


class Opened(NamedTuple):
    """A note with at least one valid line of a known key. One signer per key, in the order of the lines."""

    text: str
    signers: tuple[Signer, ...]
    lines: tuple[SignatureLine, ...]


def read_note(note: bytes | str) -> Note:
    """Take a note apart. Raises ProofInvalid MALFORMED."""
    whole = _decoded(note)
    end = whole.rfind("\n\n")
    if end < 0:
        raise _malformed("no empty line between text and signatures")
    block = whole[end + 2 :]
    if not block.endswith("\n"):
        raise _malformed("no signature line, or one without its end")
    lines = block[:-1].split("\n")
    if len(lines) > LINES_MAX:
        raise _malformed(f"more than {LINES_MAX} signature lines")
    return Note(whole[: end + 1], tuple(read_line(line) for line in lines))


def read_line(line: str) -> SignatureLine:
    """One signature line without its LF. Raises ProofInvalid MALFORMED."""
    name, blank, encoded = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH) or not blank or not valid_name(name):
        raise _malformed("a line of the signature block is no signature")
    try:
        data = read_base64(encoded)
    except ProofInvalid:
        raise _malformed("a signature is not base64 in its only form") from None
    if len(data) <= _KEY_ID_BYTES:
        raise _malformed("a signature holds no more than a key id")
    return SignatureLine(name, data[:_KEY_ID_BYTES], data[_KEY_ID_BYTES:], line)


def open_note(note: bytes | str, keys: Iterable[NoteKey]) -> Opened:
    """Verify a note under the known keys; lines of other keys are ignored.

    Raises ProofInvalid MALFORMED, AMBIGUOUS_KEY, BAD_SIGNATURE, UNVERIFIED.
    """
    text, lines = read_note(note)
    known: dict[tuple[str, bytes], list[NoteKey]] = {}
    for key in keys:
        known.setdefault((key.name, key.key_id), []).append(key)
    signed = text.encode()
    signers: dict[tuple[str, bytes], Signer] = {}
    seen: set[str] = set()
    for line in lines:
        candidates = known.get((line.name, line.key_id))
        if candidates is None or line.line in seen:
            continue
        seen.add(line.line)
        if len(candidates) > 1:
            raise ProofInvalid("AMBIGUOUS_KEY", f"two known keys have the name {line.name} and one id")
        timestamp = candidates[0].verify(signed, line.signature)
        signers.setdefault((line.name, line.key_id), Signer(candidates[0], timestamp))
    if not signers:
        raise ProofInvalid("UNVERIFIED", "no known key has signed")
    return Opened(text, tuple(signers.values()), lines)


class LogSigner:
    """Signs texts as a log, under its name."""

    def __init__(self, name: str, private: PrivateKey) -> None:
        self._private = private
        self.key = _named_key(name, ED25519, private)

    def line(self, text: str) -> str:
        """The signature line, without LF."""
        return write_line(self.key, self._private.sign(text.encode()))

    def note(self, text: str) -> str:
        """The text as a note with this one signature."""
        return f"{text}\n{self.line(text)}\n"


class Cosigner:
    """Signs checkpoints as a witness, under its name."""

    def __init__(self, name: str, private: PrivateKey) -> None:
        self._private = private
        self.key = _named_key(name, COSIGNATURE, private)

    def line(self, text: str, timestamp: int) -> str:
        """The signature line, without LF. `timestamp` in seconds since 1970."""
        signature = self._private.sign(signed_message(text.encode(), timestamp))
        return write_line(self.key, write_cosignature(timestamp, signature))


def write_line(key: NoteKey, signature: bytes) -> str:
    """A signature line, without LF."""
    return f"{_DASH}{key.name} {write_base64(key.key_id + signature)}"


def add_line(note: str, line: str) -> str:
    """The note with one more signature line (without LF). A newer line of the same key takes the older one's place.

    Raises ProofInvalid MALFORMED.
    """
    text, lines = read_note(note)
    new = read_line(line)
    kept = [old.line for old in lines if (old.name, old.key_id) != (new.name, new.key_id)]
    if len(kept) >= LINES_MAX:
        raise _malformed(f"more than {LINES_MAX} signature lines")
    return text + "\n" + "".join(f"{one}\n" for one in [*kept, line])


def _named_key(name: str, type_: int, private: PrivateKey) -> NoteKey:
    if not valid_name(name):
        raise ValueError(f"{name!r} is no name for a key: no white space, no +")
    return NoteKey(name, type_, private.public_key)


def _decoded(note: bytes | str) -> str:
    try:
        data = note.encode() if isinstance(note, str) else note
        text = data.decode()
    except UnicodeError:
        raise _malformed("not UTF-8") from None
    if len(data) > NOTE_BYTES_MAX:
        raise _malformed("longer than 512 KiB")
    if _CONTROL.search(text):
        raise _malformed("a control character")
    return text


def _malformed(words: str) -> ProofInvalid:
    return ProofInvalid("MALFORMED", words)
