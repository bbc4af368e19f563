"""Judging one line of JSON: the vectors that `erxhub proof check` is fed with.

Owns the kinds of line and their fields. It must never raise for any bytes, and never say yes to a line of which it did
not understand every part: a missing, unknown or repeated field, a number that is no integer, a second spelling of
base64 all refuse it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final, NamedTuple, NoReturn

from erxhub.proof.checkpoints import open_checkpoint, read_checkpoint
from erxhub.proof.hashing import leaf_hash
from erxhub.proof.mapping import verify_absent, verify_present
from erxhub.proof.merkle import ProofInvalid, root_of, verify_consistency, verify_inclusion
from erxhub.proof.notes import (
    COSIGNATURE,
    ED25519,
    ML_DSA_COSIGNATURE,
    NoteKey,
    open_note,
    read_vkey,
    valid_name,
)
from erxhub.proof.text import read_base64, read_hash

LINE_BYTES_MAX: Final = 64 * 1024 * 1024
"""A longer line is refused unread: a line is held in memory several times over."""
_DIGITS_MAX: Final = 20


class Verdict(NamedTuple):
    """`reason` is OK, or a stable code, a colon and words."""

    ok: bool
    reason: str


def check_line(line: bytes) -> Verdict:
    """Judge one line, whatever it is."""
    try:
        _check(line)
    except ProofInvalid as refused:
        return Verdict(False, f"{refused.reason}: {refused}")
    except (RecursionError, MemoryError):
        return Verdict(False, "NOT_JSON: nested too deeply, or too large")
    return Verdict(True, "OK")


def _check(line: bytes) -> None:
    if len(line) > LINE_BYTES_MAX:
        raise ProofInvalid("LINE_LENGTH", "a line is at most 64 MiB")
    try:
        said = json.loads(
            line.decode(),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
    except UnicodeDecodeError:
        raise ProofInvalid("NOT_UTF8", "the line is not UTF-8") from None
    except json.JSONDecodeError:
        raise ProofInvalid("NOT_JSON", "the line is not one JSON value") from None
    if not isinstance(said, dict):
        raise ProofInvalid("NOT_AN_OBJECT", "the line is not a JSON object")
    kind = said.pop("kind", None)
    found = _KINDS.get(kind) if isinstance(kind, str) else None
    if found is None:
        raise ProofInvalid("UNKNOWN_KIND", f"kind is one of {', '.join(_KINDS)}")
    if missing := [name for name in found.fields if name not in said]:
        raise ProofInvalid("MISSING_FIELD", f"{missing[0]} is missing")
    if said.keys() - found.fields.keys():
        raise ProofInvalid("UNKNOWN_FIELD", f"a line of this kind has {', '.join(found.fields)} and no more")
    found.verify(*(read(name, said[name]) for name, read in found.fields.items()))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ProofInvalid("DUPLICATE_FIELD", "a name stands twice in one object")
    return found


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS_MAX:
        raise ProofInvalid("NUMBER", "a number beyond 2^63 - 1")
    return int(digits)


def _no_number(_text: str) -> NoReturn:
    raise ProofInvalid("NUMBER", "a number that is no integer")


# --- fields ---------------------------------------------------------------------------------------


def _number(name: str, value: object) -> int:
    # A bool is an int to Python.
    if type(value) is not int:
        raise _wrong(name, "an integer")
    return value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong(name, "a text")
    return value


def _list(name: str, value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise _wrong(name, "a list of texts")
    return value


def _bytes(name: str, value: object) -> bytes:
    return read_base64(_text(name, value))


def _bytes_or_null(name: str, value: object) -> bytes | None:
    return None if value is None else _bytes(name, value)


def _hash(name: str, value: object) -> bytes:
    return read_hash(_text(name, value))


def _hashes(name: str, value: object) -> list[bytes]:
    return [read_hash(one) for one in _list(name, value)]


def _leaves(name: str, value: object) -> list[bytes]:
    return [read_base64(one) for one in _list(name, value)]


def _keys(name: str, value: object) -> list[NoteKey]:
    keys = [read_vkey(one, (ED25519, COSIGNATURE, ML_DSA_COSIGNATURE)) for one in _list(name, value)]
    # A kind of key that is not verified here is as good as unknown.
    return [key for key in keys if key.type != ML_DSA_COSIGNATURE]


def _wrong(name: str, wanted: str) -> ProofInvalid:
    return ProofInvalid("WRONG_TYPE", f"{name} is not {wanted}")


# --- kinds ----------------------------------------------------------------------------------------


def _verify_root(leaves: list[bytes], root: bytes) -> None:
    if root_of(leaf_hash(leaf) for leaf in leaves) != root:
        raise ProofInvalid("ROOT_MISMATCH", "the leaves have another root")


def _verify_checkpoint(note: str, origin: str, keys: list[NoteKey]) -> None:
    opened = open_checkpoint(note, origin, keys)
    logs = [signer.key.name for signer in opened.note.signers if signer.key.type == ED25519]
    # An origin with blanks, say, can be no key's name: then the keys that were given for it are its keys.
    if valid_name(origin) and origin not in logs:
        raise ProofInvalid("LOG_UNSIGNED", "no key with the name of the origin has signed")


def _verify_cosignature(note: str, keys: list[NoteKey]) -> None:
    opened = open_note(note, keys)
    if not any(signer.key.type == COSIGNATURE for signer in opened.signers):
        raise ProofInvalid("NO_COSIGNATURE", "no known witness has cosigned")
    read_checkpoint(opened.text)


def _verify_map(root: bytes, key: bytes, value: bytes | None, proof: bytes) -> None:
    if value is None:
        verify_absent(root, key, proof, strict32=False)
    else:
        verify_present(root, key, value, proof, strict32=False)


class _Kind(NamedTuple):
    """The fields in the order in which `verify` takes them."""

    verify: Callable[..., object]
    fields: dict[str, Callable[[str, object], object]]


_KINDS: Final = {
    "inclusion": _Kind(
        verify_inclusion, {"index": _number, "size": _number, "leaf_hash": _hash, "proof": _hashes, "root": _hash}
    ),
    "consistency": _Kind(
        verify_consistency, {"size1": _number, "size2": _number, "proof": _hashes, "root1": _hash, "root2": _hash}
    ),
    "root": _Kind(_verify_root, {"leaves": _leaves, "root": _hash}),
    "note": _Kind(open_note, {"note": _text, "vkeys": _keys}),
    "checkpoint": _Kind(_verify_checkpoint, {"note": _text, "origin": _text, "vkeys": _keys}),
    "cosignature": _Kind(_verify_cosignature, {"note": _text, "vkeys": _keys}),
    "map": _Kind(_verify_map, {"root": _hash, "key": _bytes, "value": _bytes_or_null, "proof": _bytes}),
}
