"""What the log of every store must do. A store's test module subclasses `LogContract` and provides the fixture `store`.

Proofs are judged by the verification that clients use, over leaves and keys that are computed here.
"""

from __future__ import annotations

import asyncio

import pytest

from erxhub.ledger.entry import Entry
from erxhub.ledger.log import AnotherNote, Checkpoint, Cosignature, LogEmpty, ProofsWanted
from erxhub.ledger.store import Store, Write
from erxhub.proof.hashing import leaf_hash
from erxhub.proof.mapping import verify_absent, verify_present
from erxhub.proof.merkle import root_of, verify_consistency, verify_inclusion
from erxhub.proof.records import map_value, maproot_leaf
from erxhub.proof.tiles import TilePlace
from tests.ledger.contract import T0_MS, append_all, key_of, next_entry, stream_of

WHOLE = 1_000


async def grown(store: Store, names: str, length: int = 2) -> list[Entry]:
    """A stream for each letter, their entries one after another in the order of the log."""
    streams = [stream_of(name, length) for name in names]
    entries = [entry for row in zip(*streams, strict=True) for entry in row]
    await append_all(store, [Write(entries=(entry,)) for entry in entries])
    return entries


async def all_leaves(store: Store) -> list[bytes]:
    """The leaf hashes of the log as the format says: the entries in order, and a MAPROOT at each checkpoint's end."""
    leaves: list[bytes] = []
    entries = await store.log(0, 10_000)
    no = 1
    while (checkpoint := await store.checkpoint(no)) is not None:
        leaves += [entry.leaf_hash for entry in entries[len(leaves) - (no - 1) : checkpoint.covered_position]]
        leaves.append(leaf_hash(maproot_leaf(len(leaves), checkpoint.map_root)))
        assert len(leaves) == checkpoint.size
        assert root_of(leaves) == checkpoint.root
        no += 1
    return leaves


class LogContract:
    async def test_log_without_entries_has_no_checkpoint(self, store: Store) -> None:
        assert await store.integrate(T0_MS, WHOLE) is None
        assert await store.checkpoint() is None
        assert await store.witness_sizes() == {}
        assert await store.tiles([TilePlace(0, 0)]) == {}
        assert await store.pages([b""]) == {}
        with pytest.raises(LogEmpty):
            await store.prove(ProofsWanted())
        with pytest.raises(LogEmpty):
            await store.inclusion(0, 1)
        with pytest.raises(LogEmpty):
            await store.sign(1, "note")
        with pytest.raises(ValueError):
            await store.integrate(T0_MS, 0)

    async def test_steps_of_any_size_give_the_log_that_the_format_says(self, store: Store) -> None:
        await grown(store, "abcde", 3)
        made = []
        while (checkpoint := await store.integrate(T0_MS + len(made), 4)) is not None:
            made.append(checkpoint)
        numbers = [(one.no, one.size, one.covered_position) for one in made]
        assert numbers == [(1, 5, 4), (2, 10, 8), (3, 15, 12), (4, 19, 15)]
        assert await store.checkpoints(0, 10) == made
        assert await store.checkpoints(1, 2) == made[1:3]
        assert await store.checkpoints(4, 2) == []
        assert [await store.checkpoint(one.no) for one in made] == made
        assert [await store.checkpoint(size=one.size) for one in made] == made
        assert await store.checkpoint() == made[-1]
        for nobodys in ({"no": 5}, {"size": 6}, {"no": 1, "size": 6}, {"no": 2**70}, {"no": 0}, {"size": -1}):
            assert await store.checkpoint(**nobodys) is None
        leaves = await all_leaves(store)
        assert (await store.tiles([TilePlace(0, 0)]))[TilePlace(0, 0)] == b"".join(leaves)
        assert await store.integrate(T0_MS, 4) is None

    async def test_inclusion_and_consistency_hold_at_every_size(self, store: Store) -> None:
        await grown(store, "abc", 4)
        while await store.integrate(T0_MS, 5) is not None:
            pass
        leaves = await all_leaves(store)
        for size in range(1, len(leaves) + 1):
            root = root_of(leaves[:size])
            for index in (0, size // 2, size - 1):
                verify_inclusion(index, size, leaves[index], await store.inclusion(index, size), root)
            smaller = (size + 1) // 2
            proof = await store.consistency(smaller, size)
            verify_consistency(smaller, size, proof, root_of(leaves[:smaller]), root)
        with pytest.raises(LogEmpty):
            await store.inclusion(0, len(leaves) + 1)
        with pytest.raises(LogEmpty):
            await store.consistency(1, 2**70)
        with pytest.raises(ValueError):
            await store.inclusion(3, 3)

    async def test_proofs_come_from_the_newest_checkpoint_and_say_all_of_it(self, store: Store) -> None:
        entries = await grown(store, "abcd", 3)
        while await store.integrate(T0_MS, 5) is not None:
            pass
        newest = await store.checkpoint()
        assert newest is not None
        later = next_entry("a", entries[-4])  # in the ledger, and not yet in the log
        await append_all(store, [Write(entries=(later, next_entry("later")))])
        keys = [key_of(name) for name in "abcd"]
        absent = [key_of("later"), key_of("never")]
        places = [(entry.header.stream_key, entry.header.version) for entry in entries]
        unknown = [(keys[0], 4), (keys[0], 0), (keys[0], 2**70), (absent[0], 1), (absent[1], 1)]
        proofs = await store.prove(ProofsWanted((*keys, *absent), (*places, *unknown)))
        assert proofs.checkpoint == newest
        last = leaf_hash(maproot_leaf(newest.size - 1, newest.map_root))
        verify_inclusion(newest.size - 1, newest.size, last, proofs.maproot_path, newest.root)
        assert set(proofs.entries) == set(places)
        leaves = await all_leaves(store)
        for entry in entries:
            proof = proofs.entries[entry.header.stream_key, entry.header.version]
            assert leaves[proof.index] == entry.leaf_hash
            verify_inclusion(proof.index, newest.size, entry.leaf_hash, proof.path, newest.root)
        for key, entry in zip(keys, entries[-4:], strict=True):
            found = proofs.map[key]
            assert found.head == (3, entry.leaf_hash)
            assert found.value == map_value(3, entry.leaf_hash)
            verify_present(newest.map_root, key, found.value, found.proof)
        for key in absent:
            assert proofs.map[key][:2] == (None, None)
            verify_absent(newest.map_root, key, proofs.map[key].proof)

    async def test_note_is_kept_once_and_for_all(self, store: Store) -> None:
        await grown(store, "a")
        made = await store.integrate(T0_MS, WHOLE)
        assert made is not None
        assert made.note is None
        note = "origin\n3\nroot\n\n— origin c2ln\n"
        await store.sign(1, note)
        await store.sign(1, note)
        with pytest.raises(AnotherNote):
            await store.sign(1, note + "— other c2ln\n")
        with pytest.raises(LogEmpty):
            await store.sign(2, note)
        newest = await store.checkpoint()
        assert newest is not None
        assert newest.note == note

    async def test_first_line_of_each_witness_is_kept(self, store: Store) -> None:
        await grown(store, "ab")
        for _ in range(3):
            await store.integrate(T0_MS, 1)
        await store.cosign(1, [Cosignature("w2", "— w2 one\n"), Cosignature("w1", "— w1 one\n")])
        await store.cosign(1, [Cosignature("w2", "— w2 again\n")])
        await store.cosign(3, [Cosignature("w2", "— w2 three\n")])
        found = await store.checkpoint(1)
        assert found is not None
        assert found.cosignatures == (("w1", "— w1 one\n"), ("w2", "— w2 one\n"))
        assert await store.witness_sizes() == {"w1": 2, "w2": 6}
        with pytest.raises(LogEmpty):
            await store.cosign(9, [Cosignature("w1", "line")])

    async def test_steps_at_once_never_fork(self, store: Store) -> None:
        await grown(store, "abcdef", 3)
        made = await asyncio.gather(*(store.integrate(T0_MS, 4) for _ in range(7)))
        assert sorted(one.no for one in made if one is not None) == [1, 2, 3, 4, 5]
        await all_leaves(store)

    async def test_instants_of_checkpoints_never_go_back(self, store: Store) -> None:
        await grown(store, "a")
        made: list[Checkpoint] = []
        for now_ms in (T0_MS, T0_MS - 5):
            checkpoint = await store.integrate(now_ms, 1)
            assert checkpoint is not None
            made.append(checkpoint)
        assert [one.made_at_ms for one in made] == [T0_MS, T0_MS]
