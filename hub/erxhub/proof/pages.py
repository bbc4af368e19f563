"""The map from 32-byte keys to 32-byte values, cut into pages: updates, look-ups and proofs.

Owns the layout of a page. It must never read or write a store: an update is a generator that asks for pages and
returns those to write (`run` drives it). The hashes are those of the map of docs/formats.md, which know no pages.

A page at depth d stands for the keys that begin with the same d bits, and tells them apart by the next PAGE_BITS. In
each of its slots lies nothing, a single key with its value, or the hash of everything in the page below, whose path is
this page's path and the slot's number. As the map has no nodes with one child, that hash is the same at every depth.

    page = slots with a key u16 ‖ slots with a page below u16 ‖ for each, in order: key 32 ‖ value 32, or hash 32

Four bits a page is what was measured best (docs/decisions/0007): fewer make more rows, more make more bytes and hashes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, NamedTuple, TypeVar

from erxhub.proof.hashing import EMPTY_ROOT

PAGE_BITS: Final = 4
ROOT_PATH: Final = b""
"""The path of the uppermost page. One byte for each slot on the way down; a page is followed by those below it."""

_T = TypeVar("_T")
_SLOTS: Final = 1 << PAGE_BITS
_KEY_BITS: Final = 256
_HASH: Final = 32
_ENTRY: Final = 64
_MASKS: Final = 4

Pages = Mapping[bytes, bytes]
PageSteps = Generator[Collection[bytes], Pages, _T]
"""Asks for pages by their paths, and is sent those of them that exist."""


class PageDamaged(ValueError):
    """Bytes that are no page, or a page that another one promises and that does not exist."""


class PagesUpdate(NamedTuple):
    """`root` of the map after an update, and the pages to write over what was there."""

    root: bytes
    pages: dict[bytes, bytes]


class MapAnswer(NamedTuple):
    """The value of a key, or None, with the proof of it as docs/formats.md encodes it."""

    value: bytes | None
    proof: bytes


def run(steps: PageSteps[_T], read: Callable[[Collection[bytes]], Pages]) -> _T:
    """Drive an update or a look-up with a reader that answers at once."""
    try:
        wanted = next(steps)
        while True:
            wanted = steps.send(read(wanted))
    except StopIteration as done:
        result: _T = done.value
        return result


@dataclass(slots=True)
class _Page:
    """`slots` holds 64 bytes for a key and its value, 32 for the hash of a page below."""

    path: bytes
    slots: dict[int, bytes]
    waiting: dict[int, list[tuple[bytes, bytes]]] = field(default_factory=dict)  # changes for pages below

    @property
    def depth(self) -> int:
        return len(self.path) * PAGE_BITS


def update(changes: Mapping[bytes, bytes]) -> PageSteps[PagesUpdate]:
    """Set values. The same changes in any order and in any portions give the same pages. Raises PageDamaged."""
    for key, value in changes.items():
        if len(key) != _HASH or len(value) != _HASH:
            raise ValueError("keys and values are 32 bytes each")
    written: dict[bytes, bytes] = {}
    visited: list[_Page] = []
    wave = {ROOT_PATH: list(changes.items())}
    while wave:
        found = yield list(wave)
        below: dict[bytes, list[tuple[bytes, bytes]]] = {}
        for path, group in wave.items():
            page = _Page(path, _decode(_page(found, path)))
            visited.append(page)
            _put(page, group, written)
            below.update((path + bytes((slot,)), waiting) for slot, waiting in page.waiting.items())
        wave = below
    roots: dict[bytes, bytes] = {}
    for page in reversed(visited):  # those below come first
        for slot in page.waiting:
            page.slots[slot] = roots.pop(page.path + bytes((slot,)))
        written[page.path] = _encode(page.slots)
        roots[page.path] = _top(page.slots, page.depth)
    return PagesUpdate(roots[ROOT_PATH], written)


def root() -> PageSteps[bytes]:
    """The root that the uppermost page says. Raises PageDamaged."""
    found = yield (ROOT_PATH,)
    return _top(_decode(_page(found, ROOT_PATH)), 0)


def prove(keys: Iterable[bytes]) -> PageSteps[dict[bytes, MapAnswer]]:
    """Look keys up and prove what is found, or that nothing is. Raises PageDamaged."""
    answers: dict[bytes, MapAnswer] = {}
    searches: list[tuple[bytes, list[bytes]]] = [(key, []) for key in dict.fromkeys(keys)]
    wave = {ROOT_PATH: searches} if searches else {}
    while wave:
        found = yield list(wave)
        below: dict[bytes, list[tuple[bytes, list[bytes]]]] = {}
        for path, group in wave.items():
            slots = _decode(_page(found, path))
            depth = len(path) * PAGE_BITS
            levels = _fold(slots, depth)
            for key, steps in group:
                slot = _descend(levels, depth, key, steps)
                content = None if slot is None else slots[slot]
                if slot is not None and content is not None and len(content) == _HASH:
                    below.setdefault(path + bytes((slot,)), []).append((key, steps))
                else:
                    answers[key] = _answer(key, content, steps)
        wave = below
    return answers


def _page(found: Pages, path: bytes) -> bytes | None:
    data = found.get(path)
    if data is None and path != ROOT_PATH:
        raise PageDamaged(f"the map has no page {path.hex()}")
    return data


def _put(page: _Page, group: list[tuple[bytes, bytes]], written: dict[bytes, bytes]) -> None:
    """Put changes into a page as far as it goes; what belongs to existing pages below is left waiting."""
    slots = page.slots
    for slot, items in _by_slot(group, page.depth).items():
        content = slots.get(slot)
        if content is not None and len(content) == _HASH:
            page.waiting[slot] = items
            continue
        if content is not None:
            there = content[:_HASH]
            if all(key != there for key, _ in items):
                items = [*items, (there, content[_HASH:])]
        slots[slot] = _make(page.path + bytes((slot,)), items, written)


def _make(path: bytes, items: list[tuple[bytes, bytes]], written: dict[bytes, bytes]) -> bytes:
    """What lies in a slot over these keys, of which no page exists yet; pages that it takes are added to `written`."""
    if len(items) == 1:
        return items[0][0] + items[0][1]
    depth = len(path) * PAGE_BITS
    slots = {
        slot: _make(path + bytes((slot,)), group, written) for slot, group in sorted(_by_slot(items, depth).items())
    }
    written[path] = _encode(slots)
    return _top(slots, depth)


def _by_slot(items: Iterable[tuple[bytes, bytes]], depth: int) -> dict[int, list[tuple[bytes, bytes]]]:
    if depth >= _KEY_BITS:
        raise PageDamaged("the map is deeper than a key is long")
    groups: dict[int, list[tuple[bytes, bytes]]] = {}
    at, low = divmod(depth, 8)
    for item in items:
        byte = item[0][at]
        groups.setdefault(byte & 15 if low else byte >> 4, []).append(item)
    return groups


def _leaves(slots: Mapping[int, bytes]) -> dict[int, bytes]:
    return {
        slot: content if len(content) == _HASH else sha256(_LEAF + content[:_HASH] + _LENGTH + content[_HASH:]).digest()
        for slot, content in slots.items()
    }


def _fold(slots: Mapping[int, bytes], depth: int) -> list[dict[int, bytes]]:
    """The hashes of a page, level by level: those of the slots first, at the end the one above all of them."""
    levels = [_leaves(slots)]
    for bit in range(depth + PAGE_BITS - 1, depth - 1, -1):
        levels.append(_above(levels[-1], bit))
    return levels


def _top(slots: Mapping[int, bytes], depth: int) -> bytes:
    """The hash above all of a page: the same as `_fold` ends with, for half the time."""
    level = _leaves(slots)
    bit = depth + PAGE_BITS - 1
    if len(level) == _SLOTS:
        row = [level[slot] for slot in range(_SLOTS)]
        while len(row) > 1:
            node = _NODE[bit]
            row = [sha256(node + row[at] + row[at + 1]).digest() for at in range(0, len(row), 2)]
            bit -= 1
        return row[0]
    while len(level) > 1:
        level = _above(level, bit)
        bit -= 1
    return next(iter(level.values()), EMPTY_ROOT)


def _above(level: Mapping[int, bytes], bit: int) -> dict[int, bytes]:
    node = _NODE[bit]
    above: dict[int, bytes] = {}
    for number, hash_ in level.items():
        sibling = level.get(number ^ 1)
        if sibling is None:
            above[number >> 1] = hash_
        elif number & 1:
            above[number >> 1] = sha256(node + sibling + hash_).digest()
    return above


def _descend(levels: list[dict[int, bytes]], depth: int, key: bytes, steps: list[bytes]) -> int | None:
    """The slot where the search for a key goes on or ends, None in an empty map; adds to `steps`, from the top."""
    if not levels[0]:
        return None
    number = 0
    for up, bit in enumerate(range(depth, depth + PAGE_BITS)):
        level = levels[PAGE_BITS - 1 - up]
        side = key[bit >> 3] >> (7 - (bit & 7)) & 1
        taken, other = 2 * number + side, 2 * number + 1 - side
        if taken not in level:
            number = other
        else:
            number = taken
            if other in level:
                steps.append(_VARINT[bit] + level[other])
    return number


def _answer(key: bytes, content: bytes | None, steps: list[bytes]) -> MapAnswer:
    path = b"".join(reversed(steps))
    if content is None:
        return MapAnswer(None, b"")
    there, value = content[:_HASH], content[_HASH:]
    if there == key:
        return MapAnswer(value, path)
    return MapAnswer(None, _LENGTH + there + _LENGTH + value + path)


def _encode(slots: Mapping[int, bytes]) -> bytes:
    keys = pages = 0
    parts = []
    for slot in sorted(slots):
        content = slots[slot]
        if len(content) == _ENTRY:
            keys |= 1 << slot
        else:
            pages |= 1 << slot
        parts.append(content)
    return keys.to_bytes(2, "big") + pages.to_bytes(2, "big") + b"".join(parts)


def _decode(data: bytes | None) -> dict[int, bytes]:
    if data is None:
        return {}
    keys, pages = int.from_bytes(data[:2], "big"), int.from_bytes(data[2:_MASKS], "big")
    if keys & pages or len(data) != _MASKS + _ENTRY * keys.bit_count() + _HASH * pages.bit_count():
        raise PageDamaged("bytes that are no page of the map")
    slots: dict[int, bytes] = {}
    at, left = _MASKS, keys | pages
    while left:
        low = left & -left
        left ^= low
        end = at + (_ENTRY if keys & low else _HASH)
        slots[low.bit_length() - 1] = data[at:end]
        at = end
    return slots


def _varint(number: int) -> bytes:
    return bytes((number,)) if number < 128 else bytes((number & 127 | 128, number >> 7))


_LENGTH: Final = _varint(_HASH)
_LEAF: Final = b"\x00" + _LENGTH
_VARINT: Final = tuple(_varint(bit) for bit in range(_KEY_BITS))
_NODE: Final = tuple(b"\x01" + varint for varint in _VARINT)
