"""What faults do to messages: small pages, fields and values that nobody published, broken signatures.

Owns the bytes. Everything here is pure: the same message gives the same altered one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor

from erxhub.sandbox import facts

UNKNOWN_ENUM_VALUE: Final = 7_777
"""Far above every published number."""


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_TEXT: Final = b"a field of a release to come"
_HIGHEST: Final = 536_870_911
_UNKNOWN: Final = (
    _varint(_HIGHEST - 1 << 3 | 2) + _varint(len(_TEXT)) + _TEXT + _varint(_HIGHEST << 3) + _varint(UNKNOWN_ENUM_VALUE)
)
"""Two fields with the highest numbers there are, a text and a number: no published message has them."""


def with_unknown_fields(kind: type[Any], raw: bytes) -> bytes:
    """The message with unknown fields in it and in every message inside it; signed bytes are left as they are."""
    message = facts.parsed(kind, raw)
    if message is None:
        return raw
    for inner in _inside(message):
        inner.MergeFromString(_UNKNOWN)
    return bytes(message.SerializeToString()) + _UNKNOWN


def with_unknown_enum(kind: type[Any], raw: bytes) -> bytes:
    """The message with one of its enumerations at a value that nobody published; unchanged where it has none."""
    message = facts.parsed(kind, raw)
    if message is None:
        return raw
    places = [
        (holder, field.name)
        for holder in (message, *_inside(message))
        for field in holder.DESCRIPTOR.fields
        if field.type == FieldDescriptor.TYPE_ENUM and not field.is_repeated
    ]
    if not places:
        return raw
    # One that is set is one that somebody reads.
    set_ones = [(holder, name) for holder, name in places if getattr(holder, name)]
    chosen = set_ones or places
    holder, name = chosen[hashlib.sha256(raw).digest()[0] % len(chosen)]
    setattr(holder, name, UNKNOWN_ENUM_VALUE)
    return bytes(message.SerializeToString())


def with_corrupt_signature(kind: type[Any], raw: bytes) -> bytes:
    """The message with one bit of a signature flipped: of a signed content, or of the receipt where there is none."""
    message = facts.parsed(kind, raw)
    if message is None:
        return raw
    signed = next(
        (one for _, one, _ in facts.statements_of(message) if one.signatures and one.signatures[0].signature), None
    )
    if signed is not None:
        signed.signatures[0].signature = _flipped(signed.signatures[0].signature)
    elif "receipt" in message.DESCRIPTOR.fields_by_name and message.receipt.signature:
        message.receipt.signature = _flipped(message.receipt.signature)
    else:
        return raw
    return bytes(message.SerializeToString())


def with_small_page(kind: type[Any], raw: bytes, page_size: int) -> bytes:
    """The request for a page of at most so many rows; the same bytes where it asks for no more."""
    request = facts.parsed(kind, raw)
    if request is None:
        return raw
    page = request.page if "page" in request.DESCRIPTOR.fields_by_name else request
    if 0 < page.page_size <= page_size:
        return raw
    page.page_size = page_size
    return bytes(request.SerializeToString(deterministic=True))


def _flipped(signature: bytes) -> bytes:
    return signature[:-1] + bytes([signature[-1] ^ 1])


def _inside(message: Any) -> Iterator[Any]:
    """Every message that is set inside, outermost first."""
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for inner in value if field.is_repeated else (value,):
            yield inner
            yield from _inside(inner)
