"""The bundle: one text file with everything that proves one prescription, or that something never happened.

Owns the file's format (docs/formats.md, "Bundle"): what is in it, and its one way of being written. Reading refuses any
other way. It never judges what it reads: that is `bundle_verify`'s.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from erxhub.core.keys import prescription_key, trace_code_key

FIRST_LINE: Final = "erxhub/bundle@v1"
UNWITNESSED: Final = "unwitnessed"
"""The policy word of a bundle whose checkpoint carries no cosignature."""
WITNESSED: Final = "witnessed"
"""That of one whose checkpoint does; by whom, and whether it is enough, is for the verifier's own policy."""

BUNDLE_BYTES_MAX: Final = 64 * 1024 * 1024
"""A chain has some 100 KB; the ledger's own stream grows by a revocation at a time."""

_NODES_MAX: Final = 63
_NOTHING: Final = "-"
_HASH: Final = 32
_LEAF: Final = 115
_SALT: Final = 16
_DECIMAL: Final = re.compile(r"0|[1-9][0-9]{0,18}")
_TOKEN: Final = re.compile(r"[!-~]{1,128}")
_KIND: Final = re.compile(r"[a-z_]{1,32}")
_KEY: Final = re.compile(r"[0-9a-f]{64}")


class Form(StrEnum):
    """What a bundle proves."""

    CHAIN = "chain"
    """This is all that ever happened to the prescription."""
    ABSENCE = "absence"
    """There is no such stream, or these are all its entries."""


class BundleMalformed(ValueError):
    """The bytes are no bundle in its one way of being written. `line` counts from 1; 0 for the file as a whole."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(f"line {line}: {what}" if line else what)
        self.line = line


@dataclass(frozen=True, slots=True)
class Subject:
    """What is asked about: a "prescription" (rx_no), a "trace_code" (the code), a "stream" (its key in hexadecimal)."""

    kind: str
    name: str

    @property
    def key(self) -> bytes:
        """The stream key, computed from the name alone. Raises ValueError for a name or kind that can have none."""
        if self.kind == "prescription" and _TOKEN.fullmatch(self.name):
            return prescription_key(self.name)
        if self.kind == "trace_code" and _TOKEN.fullmatch(self.name):
            return trace_code_key(self.name)
        if self.kind == "stream" and _KEY.fullmatch(self.name):
            return bytes.fromhex(self.name)
        raise ValueError(f"{self.kind} {self.name!r} is nothing that can be looked up")


@dataclass(frozen=True, slots=True)
class FullEntry:
    """An entry with its content. `leaf_hash` is what the writer says; a verifier computes it."""

    leaf_hash: bytes
    header: bytes
    salt: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class BareLeaf:
    """An entry without its content: its leaf record. What it proves is type, stream, version, instant and order."""

    leaf: bytes


Shown = FullEntry | BareLeaf


@dataclass(frozen=True, slots=True)
class WholeStream:
    """A stream with every entry from the first to the head that the map proves."""

    kind: str
    key: bytes
    map_proof: bytes
    entries: tuple[Shown, ...]


@dataclass(frozen=True, slots=True)
class SingleEntry:
    """An entry of another stream, in the tree at `index`; `prev_leaf_hash` is that of its predecessor, or zeros."""

    index: int
    prev_leaf_hash: bytes
    path: tuple[bytes, ...]
    entry: Shown


@dataclass(frozen=True, slots=True)
class Bundle:
    """What a bundle holds.

    `streams`: of a chain the prescription's, the encounter's (unless the prescription's content was erased) and the
    ledger's; of an absence the one asked about, or none. `absence` is the map's proof that there is no such stream,
    None when there is one. `genesis` proves that the ledger's first entry is the first leaf of the log; of an absence
    it is empty.
    `checkpoint` is a signed note with its cosignatures.
    """

    form: Form
    subject: Subject
    policy: str
    map_root: bytes
    map_root_path: tuple[bytes, ...]
    genesis: tuple[bytes, ...]
    streams: tuple[WholeStream, ...]
    singles: tuple[SingleEntry, ...]
    absence: bytes | None
    checkpoint: str


# ---- writing ----


def write_bundle(bundle: Bundle) -> str:
    """The text of a bundle, ended by a line feed."""
    lines = [FIRST_LINE, f"{bundle.form} {bundle.subject.kind} {bundle.subject.name}", f"policy {bundle.policy}"]
    lines.append(f"maproot {_b64(bundle.map_root)}")
    lines += _nodes(bundle.map_root_path)
    for stream in bundle.streams:
        lines.append(f"stream {stream.kind} {_b64(stream.key)} {_b64(stream.map_proof)}")
        lines += map(_entry_line, stream.entries)
    if bundle.form == Form.CHAIN:
        lines += ["genesis", *_nodes(bundle.genesis)]
    for single in bundle.singles:
        lines.append(f"single {single.index} {_b64(single.prev_leaf_hash)}")
        lines += [_entry_line(single.entry), *_nodes(single.path)]
    if bundle.absence is not None:
        lines.append(f"absent {_b64(bundle.absence)}")
    lines.append("checkpoint")
    return "\n".join(lines) + "\n" + bundle.checkpoint


def _nodes(path: tuple[bytes, ...]) -> list[str]:
    return [f"node {_b64(node)}" for node in path]


def _entry_line(entry: Shown) -> str:
    if isinstance(entry, BareLeaf):
        return f"leaf {_b64(entry.leaf)}"
    return f"entry {_b64(entry.leaf_hash)} {_b64(entry.header)} {_b64(entry.salt)} {_b64(entry.payload)}"


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode() if data else _NOTHING


# ---- reading ----


def read_bundle(data: bytes) -> Bundle:
    """The bundle that is written as exactly these bytes. Raises BundleMalformed."""
    if len(data) > BUNDLE_BYTES_MAX:
        raise BundleMalformed(0, f"more than {BUNDLE_BYTES_MAX} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise BundleMalformed(0, "not UTF-8") from None
    head, mark, checkpoint = text.partition("\ncheckpoint\n")
    if not mark:
        raise BundleMalformed(0, "no line 'checkpoint'")
    return _Reader(head.split("\n"), checkpoint).bundle()


class _Reader:
    """Reads the lines before the checkpoint one after the other; each is taken once, in the one order that there is."""

    def __init__(self, lines: list[str], checkpoint: str) -> None:
        self._lines = lines
        self._at = 0
        self._checkpoint = checkpoint

    def bundle(self) -> Bundle:
        if self._lines[0] != FIRST_LINE:
            raise BundleMalformed(1, f"not {FIRST_LINE!r}")
        self._at = 1
        form, subject = self._about()
        (policy,) = self._fields("policy", 1)
        if policy not in (UNWITNESSED, WITNESSED):
            raise self._bad("neither witnessed nor unwitnessed")
        map_root = self._sized(self._fields("maproot", 1)[0], _HASH)
        map_root_path = self._path()
        streams = tuple(self._streams())
        genesis: tuple[bytes, ...] = ()
        if form == Form.CHAIN:
            self._fields("genesis", 0)
            genesis = self._path()
        singles = tuple(self._singles())
        absence = self._bytes(self._fields("absent", 1)[0]) if self._next() == "absent" else None
        if self._at != len(self._lines):
            raise BundleMalformed(self._at + 1, "not a line that can stand here")
        return Bundle(
            form, subject, policy, map_root, map_root_path, genesis, streams, singles, absence, self._checkpoint
        )

    def _about(self) -> tuple[Form, Subject]:
        word = self._next()
        if word not in (Form.CHAIN, Form.ABSENCE):
            raise BundleMalformed(self._at + 1, "neither a chain nor an absence")
        form = Form(word)
        subject = Subject(*self._fields(word, 2))
        try:
            _ = subject.key
        except ValueError as error:
            raise self._bad(str(error)) from None
        if form == Form.CHAIN and subject.kind != "prescription":
            raise self._bad("the chain is a prescription's")
        return form, subject

    def _streams(self) -> Iterator[WholeStream]:
        while self._next() == "stream":
            kind, key, proof = self._fields("stream", 3)
            if not _KIND.fullmatch(kind):
                raise self._bad("not a kind of stream")
            key_bytes, proof_bytes = self._sized(key, _HASH), self._bytes(proof)
            entries: list[Shown] = []
            while self._next() in ("entry", "leaf"):
                entries.append(self._entry())
            if not entries:
                raise self._bad("a stream without an entry")
            yield WholeStream(kind, key_bytes, proof_bytes, tuple(entries))

    def _singles(self) -> Iterator[SingleEntry]:
        last = -1
        while self._next() == "single":
            number, prev = self._fields("single", 2)
            if not _DECIMAL.fullmatch(number) or not last < int(number) < 2**63:
                raise self._bad("not an index above the one before")
            last = int(number)
            prev_leaf_hash = self._sized(prev, _HASH)
            entry = self._entry()
            yield SingleEntry(last, prev_leaf_hash, self._path(), entry)

    def _entry(self) -> Shown:
        if self._next() == "leaf":
            return BareLeaf(self._sized(self._fields("leaf", 1)[0], _LEAF))
        leaf_hash, header, salt, payload = self._fields("entry", 4)
        return FullEntry(
            self._sized(leaf_hash, _HASH), self._bytes(header), self._sized(salt, _SALT), self._bytes(payload)
        )

    def _path(self) -> tuple[bytes, ...]:
        nodes = []
        while self._next() == "node":
            nodes.append(self._sized(self._fields("node", 1)[0], _HASH))
            if len(nodes) > _NODES_MAX:
                raise self._bad("a path that is longer than any tree is high")
        return tuple(nodes)

    def _next(self) -> str:
        """The first word of the next line; "" at the end."""
        return self._lines[self._at].partition(" ")[0] if self._at < len(self._lines) else ""

    def _fields(self, word: str, count: int) -> list[str]:
        if self._next() != word:
            raise BundleMalformed(self._at + 1, f"no line {word!r}")
        fields = self._lines[self._at].split(" ")[1:]
        self._at += 1
        if len(fields) != count:
            raise self._bad(f"{len(fields)} fields and not {count}")
        return fields

    def _bytes(self, field: str) -> bytes:
        if field == _NOTHING:
            return b""
        try:
            data = base64.b64decode(field, validate=True)
        except (binascii.Error, ValueError):
            data = b""
        if not data or base64.b64encode(data).decode() != field:
            raise self._bad("not base64 in its one form")
        return data

    def _sized(self, field: str, size_bytes: int) -> bytes:
        data = self._bytes(field)
        if len(data) != size_bytes:
            raise self._bad(f"{len(data)} bytes and not {size_bytes}")
        return data

    def _bad(self, what: str) -> BundleMalformed:
        return BundleMalformed(self._at, what)
