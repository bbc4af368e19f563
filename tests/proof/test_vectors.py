"""Every worked example of the shared formats_vectors.json, with the reason where one is given."""

import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest

from erxhub.proof import checkpoints, mapping, merkle, notes, tlogproof
from erxhub.proof.hashing import EMPTY_ROOT, inner, leaf_hash
from erxhub.proof.merkle import ProofInvalid
from erxhub.proof.policy import Policy, PolicyGroup, PolicyLog, PolicyWitness, read_policy
from tests.shared import shared_or_skip

VECTORS: dict[str, Any] = json.loads((shared_or_skip() / "design" / "formats_vectors.json").read_text(encoding="utf-8"))
KEYS = [notes.read_vkey(key["vkey"]) for key in VECTORS["keys"].values()]


def raw(value: str | list[str]) -> Any:
    return bytes.fromhex(value) if isinstance(value, str) else [bytes.fromhex(one) for one in value]


def judge(vector: dict[str, Any], verify: Callable[[], object]) -> None:
    if vector.get("accept", True):
        verify()
    else:
        with pytest.raises(ProofInvalid) as refused:
            verify()
        assert refused.value.reason == vector["code"], vector


def cases(vectors: list[dict[str, Any]]) -> Any:
    names = [str(vector.get("name") or vector.get("reason") or "good") for vector in vectors]
    return pytest.mark.parametrize("vector", vectors, ids=[f"{n}-{name}" for n, name in enumerate(names)])


def test_tree() -> None:
    tree = VECTORS["tree"]
    hashes = [leaf_hash(data) for data in raw(tree["leaf_data"])]
    assert hashes == raw(tree["leaf_hashes"])
    assert [merkle.root_of(hashes[:size]) for size in range(8)] == raw(tree["roots_by_size"])
    nodes = tree["inner_nodes"]
    assert inner(raw(nodes["[0,2)"]), raw(nodes["[2,4)"])) == raw(nodes["[0,4)"])
    for name, node in nodes.items():
        first, last = (int(number) for number in name.strip("[)").split(","))
        assert merkle.root_of(hashes[first:last]) == raw(node), name


@cases(VECTORS["inclusion"])
def test_inclusion(vector: dict[str, Any]) -> None:
    parts = [raw(vector[name]) for name in ("leaf_hash", "proof", "root")]
    judge(vector, lambda: merkle.verify_inclusion(vector["index"], vector["size"], *parts))


@cases(VECTORS["consistency"])
def test_consistency(vector: dict[str, Any]) -> None:
    parts = [raw(vector[name]) for name in ("proof", "root1", "root2")]
    judge(vector, lambda: merkle.verify_consistency(vector["size1"], vector["size2"], *parts))


def test_keys() -> None:
    for held in VECTORS["keys"].values():
        key = notes.read_vkey(held["vkey"])
        assert key.vkey == held["vkey"]
        if "public" in held:
            assert (key.name, key.type, key.public) == (held["name"], held["type"], raw(held["public"]))


@cases(VECTORS["vkeys"])
def test_vkeys(vector: dict[str, Any]) -> None:
    judge(vector, lambda: notes.read_vkey(vector["vkey"]))


@cases(VECTORS["notes"])
def test_notes(vector: dict[str, Any]) -> None:
    first = VECTORS["notes"][0]
    keys = [notes.read_vkey(vkey) for vkey in vector.get("vkeys", first["vkeys"])]
    note = raw(vector["note_hex"]) if "note_hex" in vector else vector["note"].encode()
    if vector.get("code") and vector["reason"] == "more than 100 lines":  # described, not spelt out
        line = first["note"].split("\n")[-2] + "\n"
        note = first["note"].replace(line, line * (notes.LINES_MAX + 1)).encode()
        assert notes.open_note(first["note"].replace(line, line * notes.LINES_MAX), keys)

    def verify() -> None:
        opened = notes.open_note(note, keys)
        signers = [f"{signer.key.name}+{signer.key.key_id.hex()}" for signer in opened.signers]
        assert signers == vector["verified"]
        assert opened.text == vector.get("text", opened.text)

    judge(vector, verify)


@cases(VECTORS["checkpoint"]["bodies"])
def test_checkpoint_texts(vector: dict[str, Any]) -> None:
    def verify() -> None:
        said = checkpoints.read_checkpoint(vector["body"])
        assert (said.origin, said.size, said.root) == (vector["origin"], vector["size"], raw(vector["root"]))
        assert list(said.extensions) == vector["extensions"]

    judge(vector, verify)


def test_checkpoint_notes() -> None:
    whole = VECTORS["checkpoint"]
    for name, signers in (("signed", 1), ("cosigned", 3)):
        opened = checkpoints.open_checkpoint(whole[name], "log.example/rx-2026", KEYS)
        assert opened.note.text == whole["body"]
        assert len(opened.note.signers) == signers
        assert notes.add_line(whole["signed"], whole["signed"].split("\n")[-2]) == whole["signed"]


@cases(VECTORS["cosignature"])
def test_cosignatures(vector: dict[str, Any]) -> None:
    def verify() -> None:
        opened = notes.open_note(f"{vector['text']}\n{vector['line']}", [notes.read_vkey(vector["vkey"])])
        assert opened.signers[0].timestamp == vector.get("timestamp", opened.signers[0].timestamp)

    judge(vector, verify)


def _policy_of(vkeys: list[str]) -> Policy:
    keys = [notes.read_vkey(vkey) for vkey in vkeys]
    witnesses = {key.name: PolicyWitness(key.name, key, None) for key in keys if key.type == notes.COSIGNATURE}
    group = PolicyGroup("every", len(witnesses), tuple(witnesses))
    logs = tuple(PolicyLog(key, None) for key in keys if key.type == notes.ED25519)
    return Policy(logs, witnesses, {"every": group}, "every")


@cases(VECTORS["tlog_proof"])
def test_proof_files(vector: dict[str, Any]) -> None:
    file = vector["file"].encode()
    judge(
        vector,
        lambda: tlogproof.verify_tlog_proof(file, raw(vector["leaf_hash"]), _policy_of(vector["vkeys"])),
    )
    if vector.get("accept", True):
        parts = tlogproof.read_tlog_proof(file)
        assert tlogproof.write_tlog_proof(parts.index, parts.proof, parts.note.decode(), parts.extra) == vector["file"]


@cases(VECTORS["policy"])
def test_policies(vector: dict[str, Any]) -> None:
    def verify() -> None:
        policy = read_policy(vector["file"].encode())
        for case in vector.get("quorum_met", ()):
            assert policy.holds(case["cosigned_by"]) is case["met"]

    judge(vector, verify)


@cases(VECTORS["map"]["lookups"])
def test_map_look_ups(vector: dict[str, Any]) -> None:
    root, key, proof = raw(vector["root"]), raw(vector["key"]), raw(vector["proof"])

    def verify() -> None:
        if vector["value"] is None:
            mapping.verify_absent(root, key, proof, strict32=False)
        else:
            mapping.verify_present(root, key, raw(vector["value"]), proof, strict32=False)

    judge(vector, verify)


def test_map_roots_and_numbers() -> None:
    whole = VECTORS["map"]
    assert raw(whole["empty_root"]) == EMPTY_ROOT == sha256(b"").digest()
    for number, encoded in whole["varints"].items():
        assert mapping.varint(int(number)) == raw(encoded)
    for entry in whole["three_keys"]["entries"]:
        assert mapping.entry_hash(raw(entry["key"]), raw(entry["value"])) == raw(entry["leaf_hash"])
