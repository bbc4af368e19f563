"""Messages made up from their descriptors, the same for the same seed.

Owns: a stream of numbers from a hash, and what a field of each type may be given. Must never: know a field by its name.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

DEPTH_MAX: Final = 5
_TEXTS: Final = (
    "",
    "0",
    "-1",
    "a",
    "处方",
    "𠮷\u202e\u200f",
    "\x00",
    "'; --",
    "A" * 64,
    "9" * 28,
    "x" * 300,
    "2026-02-30",
    "1e9",
    "0.00001",
    "330100" + "0" * 21,
    "H33010099901",
    "P33010099101",
)
_INTEGERS: Final = (0, 1, -1, 2, 100, 2**31 - 1, -(2**31), 1_795_140_000_000, 2**62, -(2**63), 2**63 - 1)
_INTEGER_BITS: Final = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}


class Chance:
    """Numbers that only look like chance: SHA-256 over seed and count."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._count = 0

    def below(self, bound: int) -> int:
        """A number from 0 to `bound` - 1."""
        self._count += 1
        digest = hashlib.sha256(f"{self._seed}/{self._count}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % bound

    def one_of(self, choices: Any) -> Any:
        """One of a sequence."""
        return choices[self.below(len(choices))]


def made_up(kind: type[Any], chance: Chance) -> Any:
    """A message of the kind with about half of its fields set to something."""
    message = kind()
    _fill(message, message.DESCRIPTOR, chance, 0)
    return message


def mangled(data: bytes, chance: Chance) -> bytes:
    """Bytes with one of them changed, taken out or doubled, or the end cut off."""
    if not data:
        return b"\xff"
    at = chance.below(len(data))
    found: bytes = chance.one_of(
        (
            data[:at] + bytes([data[at] ^ (1 << chance.below(8))]) + data[at + 1 :],
            data[:at] + data[at + 1 :],
            data[:at] + data[at : at + 1] + data[at:],
            data[:at],
        )
    )
    return found


def _fill(message: Any, descriptor: Descriptor, chance: Chance, depth: int) -> None:
    for field in descriptor.fields:
        if not chance.below(2):
            continue
        if field.is_repeated:
            for _ in range(chance.below(4)):
                _add(message, field, chance, depth)
        elif field.message_type is not None:
            inner = getattr(message, field.name)
            inner.SetInParent()
            if depth < DEPTH_MAX:
                _fill(inner, field.message_type, chance, depth + 1)
        else:
            setattr(message, field.name, _value(field, chance))


def _add(message: Any, field: FieldDescriptor, chance: Chance, depth: int) -> None:
    values = getattr(message, field.name)
    if field.message_type is None:
        values.append(_value(field, chance))
    elif not field.message_type.GetOptions().map_entry:
        inner = values.add()
        if depth < DEPTH_MAX:
            _fill(inner, field.message_type, chance, depth + 1)


def _value(field: FieldDescriptor, chance: Chance) -> Any:
    if field.type == FieldDescriptor.TYPE_STRING:
        return chance.one_of(_TEXTS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return bytes(chance.below(256) for _ in range(chance.one_of((0, 1, 16, 32, 64, 65))))
    if field.type == FieldDescriptor.TYPE_BOOL:
        return bool(chance.below(2))
    if field.enum_type is not None and chance.below(4):
        return chance.one_of([value.number for value in field.enum_type.values])
    least, most = _INTEGER_BITS.get(field.cpp_type, (0, 1))
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return chance.one_of((0.0, -1.5, 1e300))
    return min(max(chance.one_of(_INTEGERS), least), most)
