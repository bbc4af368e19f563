"""Ways to alter a bundle, each with the reason codes that may name it.

A forger here knows the format: what he alters he writes canonically, and where he can he computes hashes anew. What he
has not is the log's key, the witnesses' keys, and a second preimage.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple

from erxhub.ledger.entry import (
    FIRST_PREV_LEAF_HASH,
    Header,
    HeaderMalformed,
    commitment,
    leaf_bytes,
    leaf_hash,
)
from erxhub.proof.bundle import (
    BareLeaf,
    Bundle,
    FullEntry,
    Shown,
    SingleEntry,
    Subject,
    WholeStream,
    read_bundle,
    write_bundle,
)
from erxhub.proof.reasons import Reason

R = Reason
Reasons = frozenset[Reason]


class Altered(NamedTuple):
    """What was done, the bytes that came of it, and the reasons that may be given for refusing them."""

    how: str
    data: bytes
    reasons: Reasons


def alter(data: bytes, other: bytes, random: Random) -> Altered:
    """One alteration of `data`, by chance; `other` is a sound bundle of another chain of the same log."""
    while True:
        kind = random.choice(_KINDS)
        found = kind(read_bundle(data), read_bundle(other), random) if kind is not _text else _text_of(data, random)
        if found is None:
            continue
        how, changed, reasons = found
        altered = changed if isinstance(changed, bytes) else write_bundle(changed).encode()
        if altered != data:
            return Altered(f"{kind.__name__.strip('_')}: {how}", altered, frozenset(reasons))


def every_kind() -> Sequence[str]:
    """The names of the kinds, so that a test can tell that all were tried."""
    return [kind.__name__.strip("_") for kind in _KINDS]


_Found = tuple[str, Bundle | bytes, set[Reason]] | None
_Kind = Callable[[Bundle, Bundle, Random], _Found]

ENTRY = {R.HEADER, R.VERSION_GAP, R.LEAF_HASH, R.PREV_LEAF, R.TIME_BACKWARDS}


# ---- helpers ----


def flipped(data: bytes, random: Random) -> bytes:
    """One bit is another."""
    at = random.randrange(len(data) * 8)
    changed = bytearray(data)
    changed[at // 8] ^= 1 << at % 8
    return bytes(changed)


def rehashed(entries: Sequence[Shown]) -> tuple[Shown, ...]:
    """The entries with leaf hashes that follow from what they say now, each linked to the one before."""
    prev = FIRST_PREV_LEAF_HASH
    made: list[Shown] = []
    for entry in entries:
        if isinstance(entry, FullEntry):
            made.append(dataclasses.replace(entry, leaf_hash=_hash(entry, prev)))
            prev = made[-1].leaf_hash  # type: ignore[union-attr]
        else:
            made.append(BareLeaf(entry.leaf[:43] + prev + entry.leaf[75:]))
            prev = leaf_hash(made[-1].leaf)  # type: ignore[union-attr]
    return tuple(made)


def _hash(entry: FullEntry, prev: bytes) -> bytes:
    try:
        header = Header.decode(entry.header)
    except HeaderMalformed:
        return entry.leaf_hash
    made = commitment(entry.salt, entry.header, entry.payload)
    return leaf_hash(leaf_bytes(header.type, header.stream_key, header.version, prev, made, header.recorded_at_ms))


def renumbered(entries: Sequence[Shown]) -> tuple[Shown, ...]:
    """The entries with versions from 1, and everything hashed anew."""
    made: list[Shown] = []
    for version, entry in enumerate(entries, 1):
        if isinstance(entry, FullEntry):
            header = Header.decode(entry.header)
            header.version = version
            made.append(dataclasses.replace(entry, header=header.encode()))
        else:
            made.append(BareLeaf(entry.leaf[:35] + version.to_bytes(8, "big") + entry.leaf[43:]))
    return rehashed(made)


def _replaced(items: Sequence[Any], at: int, item: Any) -> tuple[Any, ...]:
    return (*items[:at], item, *items[at + 1 :])


def _with_stream(bundle: Bundle, at: int, **changes: Any) -> Bundle:
    stream = dataclasses.replace(bundle.streams[at], **changes)
    return dataclasses.replace(bundle, streams=_replaced(bundle.streams, at, stream))


def _with_single(bundle: Bundle, at: int, **changes: Any) -> Bundle:
    single = dataclasses.replace(bundle.singles[at], **changes)
    return dataclasses.replace(bundle, singles=_replaced(bundle.singles, at, single))


def _picked(bundle: Bundle, random: Random) -> tuple[int, WholeStream, int]:
    at = random.randrange(len(bundle.streams))
    stream = bundle.streams[at]
    return at, stream, random.randrange(len(stream.entries))


def _nodes(path: tuple[bytes, ...], random: Random) -> tuple[bytes, ...]:
    if not path:
        return (bytes(32),)
    at = random.randrange(len(path))
    ways = [
        _replaced(path, at, flipped(path[at], random)),
        (*path[:at], *path[at + 1 :]),
        (*path[:at], path[at], *path[at:]),
        (*path, bytes(32)),
        tuple(reversed(path)),
    ]
    return random.choice(ways)


# ---- entries ----


def _field(bundle: Bundle, other: Bundle, random: Random) -> _Found:
    at, stream, version = _picked(bundle, random)
    entry = stream.entries[version]
    if isinstance(entry, BareLeaf):
        changed: Shown = BareLeaf(flipped(entry.leaf, random))
        reasons = ENTRY | {R.MAP}
        name = "leaf"
    else:
        name = random.choice([name for name in ("leaf_hash", "header", "salt", "payload") if getattr(entry, name)])
        changed = dataclasses.replace(entry, **{name: flipped(getattr(entry, name), random)})
        reasons = ENTRY if name == "header" else {R.LEAF_HASH}
    entries = _replaced(stream.entries, version, changed)
    return f"{name} of {stream.kind} {version + 1}", _with_stream(bundle, at, entries=entries), reasons


def _field_with_hashes(bundle: Bundle, other: Bundle, random: Random) -> _Found:
    at, stream, version = _picked(bundle, random)
    entry = stream.entries[version]
    if isinstance(entry, BareLeaf):
        return None
    name = random.choice([name for name in ("header", "salt", "payload") if getattr(entry, name)])
    changed = dataclasses.replace(entry, **{name: flipped(getattr(entry, name), random)})
    entries = rehashed(_replaced(stream.entries, version, changed))
    reasons = {R.MAP} | (ENTRY if name == "header" else set())
    return f"{name} of {stream.kind} {version + 1}", _with_stream(bundle, at, entries=entries), reasons


def _dropped(bundle: Bundle, other: Bundle, random: Random) -> _Found:
    at, stream, version = _picked(bundle, random)
    entries = (*stream.entries[:version], *stream.entries[version + 1 :])
    if not entries:
        return None
    smart = random.random() < 0.5
    made = renumbered(entries) if smart else entries
    reasons = {R.MAP} if smart or version == len(entries) else {R.VERSION_GAP}
    return f"{stream.kind} {version + 1}, {smart=}", _with_stream(bundle, at, entries=made), reasons


def _inserted(bundle: Bundle, other: Bundle, random: Random) -> _Found:
    at, stream, version = _picked(bundle, random)
    source = random.choice([stream, other.streams[at]])
    extra = source.entries[random.randrange(len(source.entries))]
    if source is not stream and isinstance(extra, FullEntry):
        header = Header.decode(extra.header)
        header.stream_key = stream.key
        extra = dataclasses.replace(extra, header=header.encode())
    entries = (*stream.entries[:version], extra, *stream.entries[version:])
    smart = random.random() < 0.5
    made = renumbered(entries) if smart else entries
    reasons = {R.MAP, R.TIME_BACKWARDS} if smart else ENTRY | {R.MAP}
    return f"{stream.kind} {version + 1}, {smart=}", _with_stream(bundle, at, entries=made), reasons


def _reordered(bundle: Bundle, other: Bundle, random: Random) -> _Found:
    at, stream, _ = _picked(bundle, random)
    entries = list(stream.entries)
    random.shuffle(entries)
    if tuple(entries) == stream.entries:
        return None
    smart = random.random() < 0.5
    made = renumbered(entries) if smart else entries
    reasons = {R.MAP, R.TIME_BACKWARDS} if smart else {R.VERSION_GAP}
    return f"{stream.kind}, {smart=}", _with_stream(bundle, at, entries=tuple(made)), reasons


def _withheld(bundle: Bundle, other: Bundle, random: Random) -> _Found:
    """Everything is in order, but content is not shown."""
    at, stream, version = _picked(bundle, random)
    entry = stream.entries[version]
    if isinstance(entry, BareLeaf):
        return None
    prev = FIRST_PREV_LEAF_HASH
    for before in stream.entries[:version]:
        prev = before.leaf_hash if isinstance(before, FullEntry) else leaf_hash(before.leaf)
    entries = _replaced(stream.entries, version, _bared(entry, prev))
    return f"{stream.kind} {version + 1}", _with_stream(bundle, at, entries=entries), {R.CONTENT_MISSING}


def _bared(entry: FullEntry, prev: bytes) -> BareLeaf:
    header = Header.decode(entry.header)
    made = commitment(entry.salt, entry.header, entry.payload)
    return BareLeaf(leaf_bytes(header.type, header.stream_key, header.version, prev, made, header.recorded_at_ms))


def bare_stream(stream: WholeStream) -> WholeStream:
    """The stream without any content."""
    made: list[Shown] = []
    prev = FIRST_PREV_LEAF_HASH
    for entry in stream.entries:
        bare = _bared(entry, prev) if isinstance(entry, FullEntry) else entry
        made.append(bare)
        prev = leaf_hash(bare.leaf)
    return dataclasses.replace(stream, entries=tuple(made))


# ---- streams and the map ----


def _stream(bundle: Bundle, other: Bundle, random: Random) -> _Found:
    at = random.randrange(len(bundle.streams))
    stream = bundle.streams[at]
    way = random.choice(["dropped", "twice", "key", "kind", "others"])
    if way == "dropped":
        streams = (*bundle.streams[:at], *bundle.streams[at + 1 :])
        return f"{way} {stream.kind}", dataclasses.replace(bundle, streams=streams), {R.STREAM_MISSING}
    if way == "twice":
        streams = (*bundle.streams[: at + 1], stream, *bundle.streams[at + 1 :])
        return f"{way} {stream.kind}", dataclasses.replace(bundle, streams=streams), {R.STREAM_MISSING}
    if way == "key":
        changed = _with_stream(bundle, at, key=flipped(stream.key, random))
        return f"{way} {stream.kind}", changed, {R.STREAM_KEY, R.HEADER}
    if way == "kind":
        return f"{way} {stream.kind}", _with_stream(bundle, at, kind="account"), {R.STREAM_MISSING, R.HEADER}
    changed = dataclasses.replace(bundle, streams=_replaced(bundle.streams, at, other.streams[at]))
    # The ledger's stream may be the same in both but for the proof of it.
    return f"{way} {stream.kind}", changed, {R.STREAM_KEY, R.MAP}


def _map_proof(bundle: Bundle, other: Bundle, random: Random) -> _Found:
    at = random.randrange(len(bundle.streams))
    proof = bundle.streams[at].map_proof
    ways = [
        flipped(proof, random),
        proof[: random.randrange(len(proof))],
        proof + bytes(random.randrange(1, 40)),
        proof[33:] + proof[:33],
        other.streams[at].map_proof,
        b"",
    ]
    return bundle.streams[at].kind, _with_stream(bundle, at, map_proof=random.choice(ways)), {R.MAP}


def _map_root(bundle: Bundle, other: Bundle, random: Random) -> _Found:
    ways = [
        {"map_root": flipped(bundle.map_root, random)},
        {"map_root_path": _nodes(bundle.map_root_path, random)},
        {"map_root": other.map_root},
        {"map_root": other.map_root, "map_root_path": other.map_root_path},
    ]
    changes = random.choice(ways)
    return ", ".join(changes), dataclasses.replace(bundle, **changes), {R.MAPROOT}  # type: ignore[arg-type]


def _genesis(bundle: Bundle, other: Bundle, random: Random) -> _Found:
    path = random.choice([_nodes(bundle.genesis, random), other.genesis])
    return "path", dataclasses.replace(bundle, genesis=path), {R.GENESIS}


# ---- single entries ----


def _single(bundle: Bundle, other: Bundle, random: Random) -> _Found:
    if not bundle.singles:
        return None
    at = random.randrange(len(bundle.singles))
    single = bundle.singles[at]
    way = random.choice(["dropped", "path", "index", "prev", "field", "hashed", "others", "bare", "twice"])
    if way == "dropped":
        singles = (*bundle.singles[:at], *bundle.singles[at + 1 :])
        reasons = {R.CAUSE_MISSING, R.SIGNING_KEY}
        return way, dataclasses.replace(bundle, singles=singles), reasons
    if way == "path":
        return way, _with_single(bundle, at, path=_nodes(single.path, random)), {R.INCLUSION}
    if way == "index":
        index = max(0, single.index + random.choice([-2, -1, 1, 2, 2**40]))
        return way, _with_single(bundle, at, index=index), {R.INCLUSION, R.FORMAT}
    if way == "prev":
        changed = _with_single(bundle, at, prev_leaf_hash=flipped(single.prev_leaf_hash, random))
        return way, changed, {R.LEAF_HASH, R.PREV_LEAF}
    if way == "twice":
        singles = (*bundle.singles[: at + 1], single, *bundle.singles[at + 1 :])
        return way, dataclasses.replace(bundle, singles=singles), {R.FORMAT}
    if way == "others":
        known = {each.index for each in bundle.singles}
        fresh = [each for each in other.singles if each.index not in known]
        if not fresh:
            return None
        singles = tuple(sorted([*bundle.singles, random.choice(fresh)], key=lambda each: each.index))
        return way, dataclasses.replace(bundle, singles=singles), {R.INCLUSION}
    return _single_entry(bundle, at, single, way, random)


def _single_entry(bundle: Bundle, at: int, single: SingleEntry, way: str, random: Random) -> _Found:
    entry = single.entry
    if isinstance(entry, BareLeaf):
        changed: Shown = BareLeaf(flipped(entry.leaf, random))
        return "leaf", _with_single(bundle, at, entry=changed), {R.INCLUSION, *ENTRY}
    if way == "bare":
        bare = _bared(entry, single.prev_leaf_hash)
        return (
            way,
            _with_single(bundle, at, entry=bare),
            {R.CONTENT_MISSING, R.SIGNING_KEY, R.UNRELATED, R.MONEY, R.TRACE_CODE},
        )
    name = random.choice([name for name in ("header", "salt", "payload") if getattr(entry, name)])
    altered = dataclasses.replace(entry, **{name: flipped(getattr(entry, name), random)})
    if way == "hashed":
        altered = dataclasses.replace(altered, leaf_hash=_hash(altered, single.prev_leaf_hash))
    reasons = {R.INCLUSION, R.LEAF_HASH} | (ENTRY if name == "header" else set())
    return f"{way} {name}", _with_single(bundle, at, entry=altered), reasons


# ---- the checkpoint ----


def _checkpoint(bundle: Bundle, other: Bundle, random: Random) -> _Found:
    lines = bundle.checkpoint.split("\n")
    way = random.choice(["text", "others", "line", "dropped", "twice", "order", "foreign"])
    log, *cosignatures = (at for at, line in enumerate(lines) if line.startswith("— "))
    if way == "text":
        at = random.randrange(3)
        lines[at] = _other_letter(lines[at], random)
        return way, _noted(bundle, lines), {R.CHECKPOINT}
    if way == "others":
        # A later checkpoint of the same log: everything is proven against another root.
        return way, dataclasses.replace(bundle, checkpoint=other.checkpoint), {R.MAPROOT, R.UNWITNESSED}
    if way == "line":
        at = random.choice([log, *cosignatures])
        lines[at] = _other_letter(lines[at], random)
        return (
            way,
            _noted(bundle, lines),
            {R.CHECKPOINT} if at == log else {R.CHECKPOINT, R.WITNESS, R.QUORUM, R.FORMAT},
        )
    if way == "dropped":
        at = random.choice([log, *cosignatures])
        del lines[at]
        return way, _noted(bundle, lines), {R.CHECKPOINT} if at == log else {R.QUORUM}
    if way == "twice":
        at = random.choice([log, *cosignatures])
        lines.insert(at, lines[at])
        return way, _noted(bundle, lines), {R.FORMAT}
    if way == "order":
        swap = [log, *cosignatures]
        random.shuffle(swap)
        for at, line in zip((log, *cosignatures), [lines[at] for at in swap], strict=True):
            lines[at] = line
        return way, _noted(bundle, lines), {R.FORMAT}
    at = random.choice(cosignatures) if cosignatures else log
    theirs = [line for line in other.checkpoint.split("\n") if line.startswith("— ")]
    lines[at] = theirs[[log, *cosignatures].index(at)]
    return way, _noted(bundle, lines), {R.WITNESS} if cosignatures else {R.CHECKPOINT}


def _noted(bundle: Bundle, lines: list[str]) -> Bundle:
    return dataclasses.replace(bundle, checkpoint="\n".join(lines))


def _other_letter(line: str, random: Random) -> str:
    at = random.randrange(len(line))
    letter = random.choice([one for one in "ABCxyz019+/" if one != line[at]])
    return line[:at] + letter + line[at + 1 :]


# ---- what the file says of itself ----


def _about(bundle: Bundle, other: Bundle, random: Random) -> _Found:
    way = random.choice(["rx_no", "others", "kind", "policy"])
    if way == "policy":
        policy = "witnessed" if bundle.policy == "unwitnessed" else "unwitnessed"
        return way, dataclasses.replace(bundle, policy=policy), {R.UNWITNESSED}
    if way == "kind":
        return way, dataclasses.replace(bundle, subject=Subject("trace_code", bundle.subject.name)), {R.FORMAT}
    name = other.subject.name if way == "others" else _other_letter(bundle.subject.name, random)
    return way, dataclasses.replace(bundle, subject=Subject("prescription", name)), {R.STREAM_KEY}


def _text(bundle: Bundle, other: Bundle, random: Random) -> _Found:
    raise AssertionError("works on the bytes")


def _text_of(data: bytes, random: Random) -> _Found:
    """Alterations by somebody who does not know the format."""
    way = random.choice(["bit", "cut", "line dropped", "line twice", "lines swapped", "blank", "cr", "tail"])
    every = set(Reason)
    if way == "bit":
        return way, flipped(data, random), every
    if way == "cut":
        return way, data[: random.randrange(len(data))], every
    if way == "tail":
        return way, data + random.choice([b"\n", b" ", b"x\n", b"\x00"]), every
    lines = data.split(b"\n")
    at = random.randrange(len(lines) - 1)
    if way == "line dropped":
        del lines[at]
    elif way == "line twice":
        lines.insert(at, lines[at])
    elif way == "lines swapped":
        to = random.randrange(len(lines) - 1)
        lines[at], lines[to] = lines[to], lines[at]
    elif way == "blank":
        lines[at] = lines[at] + b" "
    else:
        lines[at] = lines[at] + b"\r"
    return way, b"\n".join(lines), every


_KINDS: tuple[_Kind, ...] = (
    _field,
    _field_with_hashes,
    _dropped,
    _inserted,
    _reordered,
    _withheld,
    _stream,
    _map_proof,
    _map_root,
    _genesis,
    _single,
    _checkpoint,
    _about,
    _text,
)
