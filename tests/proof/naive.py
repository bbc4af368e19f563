"""The tree and the map once more, straight from their definitions, slow and without a line of the hub's.

`python -m tests.proof.naive` writes tests/data/proof_vectors.jsonl: lines for `erxhub proof check` with their verdicts.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

VECTORS = Path(__file__).resolve().parent.parent / "data" / "proof_vectors.jsonl"


def H(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


# --- RFC 6962, section 2.1, over leaf data --------------------------------------------------------


def largest_power_below(n: int) -> int:
    k = 1
    while 2 * k < n:
        k *= 2
    return k


def mth(leaves: Sequence[bytes]) -> bytes:
    if not leaves:
        return H(b"")
    if len(leaves) == 1:
        return H(b"\x00" + leaves[0])
    k = largest_power_below(len(leaves))
    return H(b"\x01" + mth(leaves[:k]) + mth(leaves[k:]))


def path(m: int, leaves: Sequence[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    k = largest_power_below(len(leaves))
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def proof(m: int, leaves: Sequence[bytes]) -> list[bytes]:
    return subproof(m, leaves, True)


def subproof(m: int, leaves: Sequence[bytes], whole: bool) -> list[bytes]:
    if m == len(leaves):
        return [] if whole else [mth(leaves)]
    k = largest_power_below(len(leaves))
    if m <= k:
        return [*subproof(m, leaves[:k], whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


# --- the map --------------------------------------------------------------------------------------


def number(value: int) -> bytes:
    digits = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(digit | 0x80 for digit in digits[:-1]), digits[-1]])


def bits(key: bytes, length: int = 8 * 40) -> str:
    padded = key + b"\x00" + b"\xff" * 64
    return "".join(f"{byte:08b}" for byte in padded)[:length]


class NaiveMap:
    """A map built anew for every question, of keys up to 36 bytes."""

    def __init__(self, entries: dict[bytes, bytes]) -> None:
        self.entries = entries

    def leaf(self, key: bytes) -> bytes:
        value = self.entries[key]
        return H(b"\x00" + number(len(key)) + key + number(len(value)) + value)

    def _split(self, keys: list[bytes]) -> tuple[int, list[bytes], list[bytes]]:
        rows = [bits(key) for key in keys]
        at = next(n for n in range(len(rows[0])) if len({row[n] for row in rows}) == 2)
        sides: tuple[list[bytes], list[bytes]] = ([], [])
        for key in keys:
            sides[int(bits(key)[at])].append(key)
        return at, *sides

    def hash(self, keys: list[bytes]) -> bytes:
        if not keys:
            return H(b"")
        if len(keys) == 1:
            return self.leaf(keys[0])
        at, left, right = self._split(keys)
        return H(b"\x01" + number(at) + self.hash(left) + self.hash(right))

    @property
    def root(self) -> bytes:
        return self.hash(list(self.entries))

    def prove(self, key: bytes) -> tuple[bytes | None, bytes]:
        """The value of the key, or None, and the proof."""
        if not self.entries:
            return None, b""
        steps: list[bytes] = []
        keys = list(self.entries)
        while len(keys) > 1:
            at, left, right = self._split(keys)
            keys, other = (right, left) if bits(key)[at] == "1" else (left, right)
            steps.insert(0, number(at) + self.hash(other))
        (found,) = keys
        if found == key:
            return self.entries[key], b"".join(steps)
        value = self.entries[found]
        return None, b"".join([number(len(found)), found, number(len(value)), value, *steps])


# --- lines for `erxhub proof check` ---------------------------------------------------------------


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Key:
    def __init__(self, name: str, kind: int) -> None:
        self.name, self.kind = name, kind
        self._private = Ed25519PrivateKey.from_private_bytes(H(name.encode()))
        public = bytes([kind]) + self._private.public_key().public_bytes_raw()
        self._id = H(name.encode() + b"\n" + public)[:4]
        self.vkey = f"{name}+{self._id.hex()}+{b64(public)}"

    def line(self, text: str, at_s: int = 1_900_000_000) -> str:
        if self.kind == 1:
            signature = self._private.sign(text.encode())
        else:
            message = f"cosignature/v1\ntime {at_s}\n{text}".encode()
            signature = at_s.to_bytes(8, "big") + self._private.sign(message)
        return f"\u2014 {self.name} {b64(self._id + signature)}\n"


def _tree_lines() -> list[tuple[bool, dict[str, Any]]]:
    leaves = [f"leaf {n}".encode() for n in range(13)]
    root, bad = b64(mth(leaves)), b64(mth(leaves[:12]))
    lines: list[tuple[bool, dict[str, Any]]] = []
    for n in (0, 7, 12):
        line = {"kind": "inclusion", "index": n, "size": 13, "leaf_hash": b64(H(b"\x00" + leaves[n]))}
        hashes = [b64(one) for one in path(n, leaves)]
        lines.append((True, {**line, "root": root, "proof": hashes}))
        lines.append((False, {**line, "root": bad, "proof": hashes}))
        lines.append((False, {**line, "root": root, "proof": hashes[:-1]}))
        lines.append((False, {**line, "root": root, "proof": [*hashes, root]}))
    for n in (1, 6, 8, 13):
        line = {"kind": "consistency", "size1": n, "size2": 13, "root1": b64(mth(leaves[:n]))}
        hashes = [b64(one) for one in proof(n, leaves)]
        lines.append((True, {**line, "root2": root, "proof": hashes}))
        lines.append((False, {**line, "root2": bad, "proof": hashes}))
        lines.append((False, {**line, "root2": root, "proof": [*hashes, root]}))
    whole = {"kind": "root", "leaves": [b64(leaf) for leaf in leaves]}
    return [*lines, (True, {**whole, "root": root}), (False, {**whole, "root": bad})]


def _note_lines() -> list[tuple[bool, dict[str, Any]]]:
    log, witness, stranger = Key("log.test/ledger", 1), Key("witness.test/1", 4), Key("stranger.test", 1)
    text = f"{log.name}\n13\n{b64(mth([f'leaf {n}'.encode() for n in range(13)]))}\n"
    note = f"{text}\n{log.line(text)}{witness.line(text)}"
    by_log, by_both, by_witness = [log.vkey], [log.vkey, witness.vkey], [witness.vkey]
    checkpoint = {"kind": "checkpoint", "note": note, "origin": log.name}
    return [
        (True, {"kind": "note", "note": note, "vkeys": by_both}),
        (False, {"kind": "note", "note": note, "vkeys": [stranger.vkey]}),
        (False, {"kind": "note", "note": note.replace("13", "12"), "vkeys": by_log}),
        (False, {"kind": "note", "note": note.replace("\n", "\r\n"), "vkeys": by_log}),
        (True, {**checkpoint, "vkeys": by_both}),
        (False, {**checkpoint, "vkeys": by_witness}),
        (False, {**checkpoint, "vkeys": by_log, "origin": "log.test/other"}),
        (True, {"kind": "cosignature", "note": note, "vkeys": by_witness}),
        (False, {"kind": "cosignature", "note": note, "vkeys": by_log}),
        (False, {"kind": "cosignature", "note": note.replace("13", "12"), "vkeys": by_witness}),
    ]


def _map_lines() -> list[tuple[bool, dict[str, Any]]]:
    held = NaiveMap({H(b"key %d" % n): H(b"value %d" % n) for n in range(9)})
    held.entries[b"short"] = b""
    lines: list[tuple[bool, dict[str, Any]]] = []
    for key in (H(b"key 3"), b"short", H(b"no key"), b"", b"shorter"):
        value, shown = held.prove(key)
        line = {"kind": "map", "root": b64(held.root), "key": b64(key), "proof": b64(shown)}
        lines.append((True, {**line, "value": None if value is None else b64(value)}))
        lines.append((False, {**line, "value": b64(b"x") if value is None else None}))
        lines.append((False, {**line, "value": None if value is None else b64(value), "root": b64(H(b"other"))}))
    return lines


def vectors() -> str:
    lines = [*_tree_lines(), *_note_lines(), *_map_lines()]
    return "".join(json.dumps({"ok": ok, "line": line}, ensure_ascii=False) + "\n" for ok, line in lines)


if __name__ == "__main__":
    VECTORS.write_text(vectors(), encoding="utf-8")
