"""What every store must do. A store's test module subclasses `StoreContract` and provides the fixture `store`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from hashlib import sha256

import pytest

from erxhub.core.keys import stream_key
from erxhub.ledger.entry import Entry, EntryKind, Header, seal
from erxhub.ledger.store import (
    Blob,
    CatalogRow,
    Erasure,
    Head,
    Listing,
    ListingRow,
    Loaded,
    NameRow,
    NewName,
    NewState,
    PlacedRow,
    Reply,
    Store,
    StoredEntry,
    StoreUnavailable,
    Wanted,
    Write,
)
from erxhub.ledger.verify import verify_ledger

T0_MS = 1_750_000_000_000


def key_of(name: str, kind: str = "prescription") -> bytes:
    return stream_key(kind, name.encode())


def next_entry(
    name: str,
    before: Entry | None = None,
    *,
    payload: bytes | None = None,
    kind: str = "prescription",
    causes: tuple[bytes, ...] = (),
    recorded_at_ms: int = T0_MS,
    request_id: str = "request",
    number: int = 7,
) -> Entry:
    """The entry of the stream `name` that follows `before`."""
    version = 1 if before is None else before.header.version + 1
    header = Header(
        stream_kind=kind,
        stream_key=key_of(name, kind),
        version=version,
        kind=EntryKind.EVENT,
        type=number,
        recorded_at_ms=recorded_at_ms,
        actor="hospital/H11010100001",
        request_id=request_id,
        policy_digest=b"\x01" * 32,
        causes=causes,
    )
    salt = sha256(f"salt {name} {version} {request_id}".encode()).digest()[:16]
    content = f"payload of {name} {version}".encode() if payload is None else payload
    return seal(header, salt, content, bytes(32) if before is None else before.leaf_hash)


def state_at(entry: Entry, body: bytes = b"state", due_at_ms: int | None = None) -> NewState:
    return NewState(entry.header.stream_key, entry.header.version, entry.leaf_hash, body, due_at_ms)


def stream_of(name: str, length: int, **options: str) -> list[Entry]:
    entries: list[Entry] = []
    for _ in range(length):
        entries.append(next_entry(name, entries[-1] if entries else None, **options))  # type: ignore[arg-type]
    return entries


def reply_to(entry: Entry | None, caller: str = "H11010100001", request_id: str = "request") -> Reply:
    return Reply(
        caller=caller,
        request_id=request_id,
        method="/erxhub.v1.Prescribing/UploadPrescription",
        content_mac=b"\x02" * 32,
        body=b"reply body",
        stream_key=None if entry is None else entry.header.stream_key,
        version=None if entry is None else entry.header.version,
    )


def rows_of_all_kinds(count: int) -> list[Write]:
    """Writes that each have a row of every kind, told apart by their number."""
    writes = []
    for number in range(count):
        entry = next_entry(f"s{number}")
        key, text = entry.header.stream_key, b"%d" % number
        writes.append(
            Write(
                entries=(entry,),
                states=(state_at(entry, text),),
                names=(NewName("number", text, key),),
                listings=(Listing("feed", b"all", key, 1, text),),
                blobs=(Blob(key, sha256(text).digest(), text),),
                catalog_rows=(CatalogRow("drugs", "1", f"{number:04}", text),),
                replies=(reply_to(entry, request_id=f"request {number}"),),
            )
        )
    return writes


async def check_rows_of_all_kinds(store: Store, numbers: list[int], first_position: int) -> None:
    """Of `rows_of_all_kinds`, those with these numbers are there, and nothing of the others."""
    keys = {number: key_of(f"s{number}") for number in numbers}
    places = [(place, number, b"%d" % number) for place, number in enumerate(numbers, first_position)]
    log = await store.log(first_position - 1, 1_000)
    assert log == [stored(place, next_entry(f"s{number}")) for place, number, _ in places]
    rows = [ListingRow(place, keys[number], 1, text) for place, number, text in places]
    assert await store.listing("feed", b"all", 0, 1_000) == rows
    assert await store.catalog_page("drugs", "1", "", 1_000) == [(f"{number:04}", text) for _, number, text in places]
    assert {row.key: row.stream_key for row in await store.names(None, 1_000)} == {
        text: keys[number] for _, number, text in places
    }
    requests = {("H11010100001", f"request {number}"): number for number in numbers}
    names = {("number", text): keys[number] for _, number, text in places}
    catalog = {("drugs", "1", f"{number:04}"): text for _, number, text in places}
    loaded = await store.read(
        Wanted(
            names=frozenset({*names, ("number", b"none")}),
            streams=frozenset({*keys.values(), key_of("none")}),
            replies=frozenset({*requests, ("H11010100001", "none")}),
            catalog=frozenset({*catalog, ("drugs", "1", "none")}),
        )
    )
    assert (loaded.names, loaded.catalog) == (names, catalog)
    assert {key: head.body for key, head in loaded.heads.items()} == {keys[n]: text for _, n, text in places}
    assert {reply.stream_key: requests[request] for request, reply in loaded.replies.items()} == {
        key: number for number, key in keys.items()
    }
    for number, key in keys.items():
        assert await store.blob(key, sha256(b"%d" % number).digest()) == b"%d" % number


async def append_all(store: Store, writes: Iterable[Write]) -> int:
    result = await store.append(list(writes))
    assert result.conflicts == frozenset()
    return result.last_position


def stored(position: int, entry: Entry) -> StoredEntry:
    return StoredEntry(
        position=position,
        stream_kind=entry.header.stream_kind,
        stream_key=entry.header.stream_key,
        header=entry.header_bytes,
        commitment=entry.commitment,
        leaf_hash=entry.leaf_hash,
        salt=entry.salt,
        payload=entry.payload,
        version=entry.header.version,
    )


CALLER = "hospital/H11010100001"

ERASED = 0x0121
"""The type of the entry that says that content is erased."""


async def two_of_a_kind(store: Store) -> tuple[Entry, Entry]:
    """Streams `kept` (version 1) and `gone` (version 2), each with all that may lie beside entries; `gone` first."""
    newest = {}
    for name in ("gone", "kept"):
        entry = next_entry(name, request_id=f"request {name}")
        write = Write(
            entries=(entry,),
            states=(state_at(entry),),
            names=(NewName("hospital_rx", name.encode(), key_of(name)),),
            listings=(Listing("list", b"all", key_of(name), 1),),
            blobs=(Blob(key_of(name), bytes(32), f"file of {name}".encode()),),
            replies=(reply_to(entry, CALLER, f"request {name}"),),
        )
        await append_all(store, [write])
        newest[name] = entry
    second = next_entry("gone", newest["gone"], request_id="second")
    await append_all(store, [Write((second,), (state_at(second),), (NewName("settlement", b"gone", key_of("gone")),))])
    await append_all(store, [Write((next_entry("other"),))])
    return newest["kept"], second


class StoreContract:
    async def test_empty_store_finds_nothing(self, store: Store) -> None:
        wanted = Wanted(
            names=frozenset({("rx_no", b"1")}),
            streams=frozenset({key_of("a")}),
            replies=frozenset({("caller", "request")}),
            catalog=frozenset({("drugs", "2025", "X")}),
        )
        assert await store.load(wanted) == Loaded()
        assert await store.read(wanted) == Loaded()
        assert await store.entries(key_of("a"), 0, 10) == []
        assert await store.log(0, 10) == []
        assert await store.listing("space", b"key", 0, 10) == []
        assert await store.listing("space", b"key", 0, 10, newest_first=True) == []
        assert await store.names(None, 10) == []
        assert await store.listings(0, 10) == []
        assert await store.blob(key_of("a"), bytes(32)) is None
        assert await store.catalog_page("drugs", "2025", "", 10) == []
        assert await store.due(T0_MS, 10) == []
        assert await store.last_position() == 0

    async def test_empty_batch_writes_nothing(self, store: Store) -> None:
        result = await store.append([])
        assert (result.conflicts, result.last_position) == (frozenset(), 0)

    async def test_entries_come_back_as_they_were_sealed(self, store: Store) -> None:
        first, second = stream_of("a", 2)
        other = next_entry("b")
        assert await append_all(store, [Write(entries=(first, other)), Write(entries=(second,))]) == 3
        assert await store.log(0, 10) == [stored(1, first), stored(2, other), stored(3, second)]
        assert await store.entries(key_of("a"), 0, 10) == [stored(1, first), stored(3, second)]
        assert await store.last_position() == 3

    async def test_entries_and_log_page_with_exclusive_start(self, store: Store) -> None:
        entries = stream_of("a", 5)
        await append_all(store, [Write(entries=tuple(entries))])
        expected = [stored(position, entry) for position, entry in enumerate(entries, 1)]
        assert await store.entries(key_of("a"), 2, 2) == expected[2:4]
        assert await store.entries(key_of("a"), 5, 2) == []
        assert await store.log(1, 3) == expected[1:4]
        assert await store.log(4, 3) == expected[4:]

    async def test_position_past_every_integer_is_just_past_the_end(self, store: Store) -> None:
        entry = next_entry("a")
        await append_all(store, [Write(entries=(entry,), listings=(Listing("s", b"k", key_of("a"), 1),))])
        assert await store.log(2**64, 10) == []
        assert await store.entries(key_of("a"), 2**64, 10) == []
        assert await store.listing("s", b"k", 2**64, 10) == []
        assert len(await store.listing("s", b"k", 2**64, 2**64, newest_first=True)) == 1
        assert await store.log(-5, 10) == [stored(1, entry)]

    @pytest.mark.parametrize("limit", [0, -1])
    async def test_limit_below_one_is_a_bug(self, store: Store, limit: int) -> None:
        with pytest.raises(ValueError):
            await store.log(0, limit)
        with pytest.raises(ValueError):
            await store.entries(key_of("a"), 0, limit)
        with pytest.raises(ValueError):
            await store.listing("s", b"k", 0, limit)
        with pytest.raises(ValueError):
            await store.names(None, limit)
        with pytest.raises(ValueError):
            await store.catalog_page("d", "e", "", limit)
        with pytest.raises(ValueError):
            await store.due(T0_MS, limit)

    async def test_head_is_the_state_of_the_newest_entry(self, store: Store) -> None:
        first, second = stream_of("a", 2)
        await append_all(store, [Write(entries=(first,), states=(state_at(first, b"one", T0_MS + 5),))])
        await append_all(store, [Write(entries=(second,), states=(state_at(second, b"two"),))])
        expected = {key_of("a"): Head("prescription", key_of("a"), 2, second.leaf_hash, b"two", None)}
        assert (await store.load(Wanted(streams=frozenset(expected)))).heads == expected
        assert (await store.read(Wanted(streams=frozenset(expected)))).heads == expected

    async def test_later_state_of_one_batch_wins(self, store: Store) -> None:
        first, second = stream_of("a", 2)
        await append_all(
            store,
            [
                Write(entries=(first,), states=(state_at(first, b"one", T0_MS),)),
                Write(entries=(second,), states=(state_at(second, b"two", T0_MS + 1),)),
            ],
        )
        head = (await store.load(Wanted(streams=frozenset({key_of("a")})))).heads[key_of("a")]
        assert (head.version, head.body, head.due_at_ms) == (2, b"two", T0_MS + 1)

    async def test_stream_without_state_has_the_head_of_its_newest_entry(self, store: Store) -> None:
        entries = stream_of("a", 3, kind="access")
        key = key_of("a", "access")
        await append_all(store, [Write(entries=(entry,)) for entry in entries])
        expected = Head("access", key, 3, entries[-1].leaf_hash, b"", None)
        assert (await store.load(Wanted(streams=frozenset({key})))).heads == {key: expected}

    async def test_names_resolve_and_bring_their_heads(self, store: Store) -> None:
        entry = next_entry("a")
        names = (NewName("rx_no", b"1", key_of("a")), NewName("hospital_rx_no", b"1", key_of("a")))
        await append_all(store, [Write(entries=(entry,), states=(state_at(entry),), names=names)])
        wanted = Wanted(names=frozenset({("rx_no", b"1"), ("hospital_rx_no", b"1"), ("rx_no", b"2")}))
        for loaded in (await store.load(wanted), await store.read(wanted)):
            assert loaded.names == {("rx_no", b"1"): key_of("a"), ("hospital_rx_no", b"1"): key_of("a")}
            assert set(loaded.heads) == {key_of("a")}

    async def test_name_can_be_given_to_an_older_stream(self, store: Store) -> None:
        await append_all(store, [Write(entries=(next_entry("a"),))])
        await append_all(store, [Write(names=(NewName("alias", b"x", key_of("a")),))])
        assert (await store.read(Wanted(names=frozenset({("alias", b"x")})))).names == {("alias", b"x"): key_of("a")}

    async def test_reply_comes_back_byte_for_byte(self, store: Store) -> None:
        entry = next_entry("a")
        with_entry, alone = reply_to(entry), reply_to(None, request_id="other")
        await append_all(store, [Write(entries=(entry,), replies=(with_entry,)), Write(replies=(alone,))])
        requests = frozenset({("H11010100001", "request"), ("H11010100001", "other"), ("H2", "request")})
        loaded = await store.load(Wanted(replies=requests))
        assert loaded.replies == {("H11010100001", "request"): with_entry, ("H11010100001", "other"): alone}

    async def test_unicode_and_empty_values_survive(self, store: Store) -> None:
        entry = next_entry("a", payload=b"", request_id="请求-🙂-\x00-end")
        reply = Reply("药店", "请求 1", "", b"", b"", entry.header.stream_key, 1)
        write = Write(
            entries=(entry,),
            names=(NewName("名", b"", key_of("a")), NewName("", b"\x00", key_of("a"))),
            listings=(Listing("目录", b"", key_of("a"), 1),),
            blobs=(Blob(key_of("a"), bytes(32), b""),),
            catalog_rows=(CatalogRow("药品", "二〇二五", "甲", b""),),
            replies=(reply,),
        )
        await append_all(store, [write])
        assert await store.log(0, 1) == [stored(1, entry)]
        loaded = await store.load(
            Wanted(
                names=frozenset({("名", b""), ("", b"\x00")}),
                replies=frozenset({("药店", "请求 1")}),
                catalog=frozenset({("药品", "二〇二五", "甲")}),
            )
        )
        assert loaded.replies == {("药店", "请求 1"): reply}
        assert len(loaded.names) == 2
        assert loaded.catalog == {("药品", "二〇二五", "甲"): b""}
        assert await store.listing("目录", b"", 0, 1) == [ListingRow(1, key_of("a"), 1, b"")]
        assert await store.blob(key_of("a"), bytes(32)) == b""

    async def test_large_payload_and_blob_survive(self, store: Store) -> None:
        payload = bytes(range(256)) * 4096
        blob = payload[::-1] * 4
        entry = next_entry("a", payload=payload)
        await append_all(store, [Write(entries=(entry,), blobs=(Blob(key_of("a"), sha256(blob).digest(), blob),))])
        assert (await store.entries(key_of("a"), 0, 1))[0].payload == payload
        assert await store.blob(key_of("a"), sha256(blob).digest()) == blob

    async def test_blob_is_kept_once_for_each_stream(self, store: Store) -> None:
        entries = stream_of("a", 2)
        blob = Blob(key_of("a"), sha256(b"file").digest(), b"file")
        await append_all(store, [Write(entries=(entries[0],), blobs=(blob, blob))])
        await append_all(store, [Write(entries=(entries[1],), blobs=(blob,))])
        await append_all(store, [Write(entries=(next_entry("b"),))])
        assert await store.blob(key_of("a"), blob.digest) == b"file"
        assert await store.blob(key_of("b"), blob.digest) is None

    async def test_listing_pages_both_ways_in_order_of_position(self, store: Store) -> None:
        entries = stream_of("a", 7)
        for entry in entries:
            value = b"v%d" % entry.header.version
            listings = (
                Listing("space", b"k", key_of("a"), entry.header.version, value),
                Listing("space", b"other", key_of("a"), entry.header.version),
            )
            await append_all(store, [Write(entries=(entry,), listings=listings)])
        rows = [ListingRow(n, key_of("a"), n, b"v%d" % n) for n in range(1, 8)]
        assert await store.listing("space", b"k", 0, 3) == rows[:3]
        assert await store.listing("space", b"k", 3, 3) == rows[3:6]
        assert await store.listing("space", b"k", 6, 3) == rows[6:]
        assert await store.listing("space", b"k", 7, 3) == []
        downwards = rows[::-1]
        assert await store.listing("space", b"k", 0, 3, newest_first=True) == downwards[:3]
        assert await store.listing("space", b"k", 5, 3, newest_first=True) == downwards[3:6]
        assert await store.listing("space", b"k", 2, 3, newest_first=True) == downwards[6:]
        assert await store.listing("space", b"k", 1, 3, newest_first=True) == []
        assert await store.listing("space", b"k", 99, 1, newest_first=True) == downwards[:1]

    async def test_older_entry_can_be_listed_later_and_stands_at_its_own_position(self, store: Store) -> None:
        first, second = stream_of("a", 2)
        await append_all(store, [Write(entries=(first,))])
        await append_all(
            store,
            [
                Write(entries=(second,), listings=(Listing("s", b"k", key_of("a"), 2),)),
                Write(listings=(Listing("s", b"k", key_of("a"), 1),)),
            ],
        )
        assert [row.position for row in await store.listing("s", b"k", 0, 10)] == [1, 2]

    async def test_all_names_are_paged_each_once_with_their_streams(self, store: Store) -> None:
        given = [
            ("b", b""),
            ("", b"\x00"),
            ("a", b"\xff"),
            ("名", b"1"),
            ("a", b""),
            ("a", b"\x01\x00"),
            ("a", b"\x01"),
        ]
        for number, (space, key) in enumerate(given):
            stream = f"s{number}"
            entry = next_entry(stream, kind="person" if number % 2 else "prescription")
            name = NewName(space, key, entry.header.stream_key)
            await append_all(store, [Write(entries=(entry,), names=(name,))])
        expected = [
            NameRow(space, key, kind, key_of(f"s{number}", kind))
            for number, (space, key) in enumerate(given)
            for kind in ["person" if number % 2 else "prescription"]
        ]
        paged: list[NameRow] = []
        while page := await store.names((paged[-1].space, paged[-1].key) if paged else None, 2):
            paged += page
        assert paged == sorted(expected, key=lambda row: (row.space, row.key))
        assert await store.names(None, 100) == paged

    async def test_rows_of_all_lists_are_read_beside_their_entries(self, store: Store) -> None:
        entries = stream_of("a", 4)
        listings = {
            1: [("s", b"k", b""), ("t", b"", b"1"), ("s", b"", b"")],
            3: [("s", b"k", b"3")],
            4: [("s", b"k", b"4"), ("目", b"k", b"")],
        }
        for entry in entries:
            version = entry.header.version
            rows = (Listing(space, key, key_of("a"), version, value) for space, key, value in listings.get(version, ()))
            await append_all(store, [Write(entries=(entry,), listings=tuple(rows))])
        every = [PlacedRow(position, *row) for position, rows in listings.items() for row in sorted(rows)]
        assert await store.listings(0, 4) == await store.listings(-(2**80), 2**80) == every
        assert await store.listings(1, 3) == every[3:4]
        assert await store.listings(1, 2) == []
        assert await store.listings(3, 4) == every[4:]

    async def test_catalog_pages_in_order_of_code(self, store: Store) -> None:
        codes = ["B", "A", "C", "AA", "甲", "乙"]
        rows = tuple(CatalogRow("drugs", "1", code, code.encode()) for code in codes)
        await append_all(store, [Write(catalog_rows=(*rows, CatalogRow("drugs", "2", "A", b"other")))])
        expected = [(code, code.encode()) for code in sorted(codes)]
        assert await store.catalog_page("drugs", "1", "", 4) == expected[:4]
        assert await store.catalog_page("drugs", "1", expected[3][0], 4) == expected[4:]
        assert await store.catalog_page("drugs", "3", "", 4) == []
        loaded = await store.load(Wanted(catalog=frozenset({("drugs", "1", "A"), ("drugs", "2", "A")})))
        assert loaded.catalog == {("drugs", "1", "A"): b"A", ("drugs", "2", "A"): b"other"}

    async def test_same_catalog_row_again_is_no_conflict_but_another_body_is(self, store: Store) -> None:
        row = CatalogRow("drugs", "1", "A", b"body")
        await append_all(store, [Write(catalog_rows=(row, row))])
        entry = next_entry("a")
        result = await store.append(
            [
                Write(catalog_rows=(row,)),
                Write(entries=(entry,), catalog_rows=(CatalogRow("drugs", "1", "A", b"other"),)),
                Write(catalog_rows=(CatalogRow("drugs", "1", "B", b"1"), CatalogRow("drugs", "1", "B", b"2"))),
            ]
        )
        assert result.conflicts == {1, 2}
        assert await store.catalog_page("drugs", "1", "", 10) == [("A", b"body")]
        assert await store.last_position() == 0

    async def test_due_gives_streams_by_deadline(self, store: Store) -> None:
        deadlines = {"a": T0_MS + 30, "b": T0_MS + 10, "c": None, "d": T0_MS + 20, "e": T0_MS + 10}
        for name, due_at_ms in deadlines.items():
            entry = next_entry(name)
            await append_all(store, [Write(entries=(entry,), states=(state_at(entry, b"s", due_at_ms),))])
        assert await store.due(T0_MS + 9, 10) == []
        assert await store.due(T0_MS + 20, 10) == [key_of("b"), key_of("e"), key_of("d")]
        assert await store.due(T0_MS + 99, 1) == [key_of("b")]

    async def test_new_state_moves_or_clears_the_deadline(self, store: Store) -> None:
        first, second, third = stream_of("a", 3)
        await append_all(store, [Write(entries=(first,), states=(state_at(first, b"s", T0_MS),))])
        await append_all(store, [Write(entries=(second,), states=(state_at(second, b"s", T0_MS + 5),))])
        assert await store.due(T0_MS, 10) == []
        await append_all(store, [Write(entries=(third,), states=(state_at(third, b"s", None),))])
        assert await store.due(T0_MS + 5, 10) == []

    async def test_version_that_exists_is_a_conflict_and_the_rest_commits(self, store: Store) -> None:
        await append_all(store, [Write(entries=(next_entry("a"),))])
        rival = next_entry("a", request_id="rival")
        batch = [Write(entries=(next_entry("b"),)), Write(entries=(rival,)), Write(entries=(next_entry("c"),))]
        result = await store.append(batch)
        assert (result.conflicts, result.last_position) == (frozenset({1}), 3)
        assert [entry.stream_key for entry in await store.log(0, 10)] == [key_of("a"), key_of("b"), key_of("c")]

    async def test_of_two_rivals_in_one_batch_the_first_is_written(self, store: Store) -> None:
        one, two = next_entry("a", request_id="one"), next_entry("a", request_id="two")
        result = await store.append([Write(entries=(one,)), Write(entries=(two,))])
        assert (result.conflicts, result.last_position) == (frozenset({1}), 1)
        assert await store.log(0, 10) == [stored(1, one)]

    @pytest.mark.parametrize("size", [1, 3, 4, 17, 64, 149])
    async def test_batch_of_any_size_is_written_whole_and_in_order(self, store: Store, size: int) -> None:
        assert (await store.append(rows_of_all_kinds(size))).conflicts == frozenset()
        await check_rows_of_all_kinds(store, list(range(size)), first_position=1)

    async def test_conflict_in_the_midst_of_a_large_batch_drops_its_own_write_only(self, store: Store) -> None:
        await append_all(store, [Write(entries=(taken := next_entry("taken"),), replies=(reply_to(taken),))])
        batch = rows_of_all_kinds(149)
        batch[70] = batch[70]._replace(replies=(reply_to(batch[70].entries[0]),))
        assert (await store.append(batch)).conflicts == {70}
        await check_rows_of_all_kinds(store, [number for number in range(149) if number != 70], first_position=2)

    async def test_entry_that_builds_on_a_dropped_one_conflicts_too(self, store: Store) -> None:
        kept = next_entry("a", request_id="kept")
        dropped = next_entry("a", request_id="dropped")
        follower = next_entry("a", dropped)
        result = await store.append([Write(entries=(entry,)) for entry in (kept, dropped, follower)])
        assert (result.conflicts, result.last_position) == (frozenset({1, 2}), 1)

    async def test_entry_caused_by_a_dropped_one_conflicts_too(self, store: Store) -> None:
        await append_all(store, [Write(entries=(next_entry("a"),))])
        dropped = next_entry("a", request_id="rival")
        caused = next_entry("b", causes=(dropped.leaf_hash,))
        caused_again = next_entry("c", causes=(caused.leaf_hash,))
        result = await store.append([Write(entries=(entry,)) for entry in (dropped, caused, caused_again)])
        assert (result.conflicts, result.last_position) == (frozenset({0, 1, 2}), 1)

    async def test_version_gap_and_foreign_predecessor_are_conflicts(self, store: Store) -> None:
        first, second, third = stream_of("a", 3)
        stranger = next_entry("a", next_entry("a", request_id="never written"))
        await append_all(store, [Write(entries=(first,))])
        for entry in (third, stranger, next_entry("b", next_entry("b"))):
            assert (await store.append([Write(entries=(entry,))])).conflicts == {0}
        await append_all(store, [Write(entries=(second,))])

    async def test_name_in_use_is_a_conflict(self, store: Store) -> None:
        a, b, c = next_entry("a"), next_entry("b"), next_entry("c")
        await append_all(store, [Write(entries=(a,), names=(NewName("rx_no", b"1", key_of("a")),))])
        result = await store.append(
            [
                Write(entries=(b,), names=(NewName("rx_no", b"1", key_of("b")),)),
                Write(entries=(c,), names=(NewName("other", b"1", key_of("c")),)),
                Write(names=(NewName("other", b"1", key_of("a")),)),
            ]
        )
        assert result.conflicts == {0, 2}
        assert (await store.read(Wanted(streams=frozenset({key_of("b")})))).heads == {}
        names = (await store.read(Wanted(names=frozenset({("rx_no", b"1"), ("other", b"1")})))).names
        assert names == {("rx_no", b"1"): key_of("a"), ("other", b"1"): key_of("c")}

    async def test_repeated_request_is_a_conflict_for_its_caller_only(self, store: Store) -> None:
        a, b, c = next_entry("a"), next_entry("b"), next_entry("c")
        result = await store.append(
            [
                Write(entries=(a,), replies=(reply_to(a),)),
                Write(entries=(b,), replies=(reply_to(b),)),
                Write(entries=(c,), replies=(reply_to(c, caller="P11010100001"),)),
            ]
        )
        assert (result.conflicts, result.last_position) == (frozenset({1}), 2)
        result = await store.append([Write(entries=(b,), replies=(reply_to(b),))])
        assert result.conflicts == {0}
        request = ("H11010100001", "request")
        assert (await store.load(Wanted(replies=frozenset({request})))).replies[request] == reply_to(a)

    async def test_reference_to_what_does_not_exist_is_a_conflict(self, store: Store) -> None:
        a, b = next_entry("a"), next_entry("b")
        batch = [
            Write(entries=(a,), names=(NewName("s", b"k", key_of("nobody")),)),
            Write(entries=(a,), listings=(Listing("s", b"k", key_of("a"), 2),)),
            Write(entries=(a,), listings=(Listing("s", b"k", key_of("nobody"), 1),)),
            Write(entries=(a,), blobs=(Blob(key_of("nobody"), bytes(32), b""),)),
            Write(entries=(a,), replies=(reply_to(b),)),
            Write(entries=(b,)),
        ]
        result = await store.append(batch)
        assert (result.conflicts, result.last_position) == (frozenset({0, 1, 2, 3, 4}), 1)
        for write in batch[:5]:
            assert (await store.append([write])).conflicts == (frozenset() if write.replies else {0})

    async def test_entry_listed_twice_under_one_key_is_a_conflict(self, store: Store) -> None:
        entry = next_entry("a")
        await append_all(store, [Write(entries=(entry,), listings=(Listing("s", b"k", key_of("a"), 1, b"1"),))])
        result = await store.append([Write(listings=(Listing("s", b"k", key_of("a"), 1, b"2"),))])
        assert result.conflicts == {0}
        assert await store.listing("s", b"k", 0, 10) == [ListingRow(1, key_of("a"), 1, b"1")]

    async def test_dropped_write_leaves_nothing(self, store: Store) -> None:
        await append_all(store, [Write(entries=(next_entry("a"),), replies=(reply_to(None),))])
        b = next_entry("b")
        loser = Write(
            entries=(b,),
            states=(state_at(b, b"s", T0_MS),),
            names=(NewName("s", b"k", key_of("b")),),
            listings=(Listing("s", b"k", key_of("b"), 1), Listing("s", b"k", key_of("a"), 1)),
            blobs=(Blob(key_of("b"), bytes(32), b"data"), Blob(key_of("a"), bytes(32), b"data")),
            catalog_rows=(CatalogRow("d", "e", "c", b""),),
            replies=(reply_to(b),),
        )
        assert (await store.append([loser])).conflicts == {0}
        assert await store.last_position() == 1
        assert (
            await store.load(
                Wanted(
                    names=frozenset({("s", b"k")}),
                    streams=frozenset({key_of("b")}),
                    catalog=frozenset({("d", "e", "c")}),
                )
            )
            == Loaded()
        )
        assert await store.listing("s", b"k", 0, 10) == []
        assert await store.blob(key_of("a"), bytes(32)) is None
        assert await store.due(T0_MS, 10) == []

    async def test_positions_leave_no_gap_where_a_write_was_dropped(self, store: Store) -> None:
        entries = stream_of("a", 3)
        rival = next_entry("a", entries[0], request_id="rival")
        writes = [Write(entries=(entry,)) for entry in (entries[0], entries[1], rival, next_entry("b"), entries[2])]
        assert (await store.append(writes)).conflicts == {2}
        await append_all(store, [Write(entries=(next_entry("c"),))])
        assert [entry.position for entry in await store.log(0, 10)] == [1, 2, 3, 4, 5]
        assert (await verify_ledger(store)).findings == []

    async def test_write_that_contradicts_itself_is_a_bug_and_nothing_is_written(self, store: Store) -> None:
        first, second = stream_of("a", 2)
        good = Write(entries=(next_entry("b"),))
        bad = [
            Write(entries=(first, first)),
            Write(entries=(first, next_entry("a", next_entry("a", request_id="other")))),
            Write(entries=(first, second), states=(state_at(first),)),
            Write(states=(state_at(first),)),
            Write(entries=(first,), states=(state_at(first), state_at(first))),
            Write(entries=(first,), states=(state_at(next_entry("a", request_id="other")),)),
            Write(entries=(first,), listings=(Listing("s", b"k", key_of("a"), 1),) * 2),
            Write(replies=(Reply("c", "r", "m", b"", b"", key_of("a"), None),)),
        ]
        for write in bad:
            with pytest.raises(ValueError):
                await store.append([good, write])
        assert await store.last_position() == 0

    async def test_erasure_takes_what_a_stream_says_and_leaves_that_it_is_there(self, store: Store) -> None:
        kept, gone = await two_of_a_kind(store)
        said = next_entry("gone", gone, number=ERASED)
        names = (("hospital_rx", b"gone"), ("hospital_rx", b"kept"))
        erasure = Erasure(key_of("gone"), said.header.version, names)
        own = reply_to(said, CALLER, "erase")
        write = Write((said,), (state_at(said, b"bare"),), replies=(own,), erasures=(erasure,))
        assert await append_all(store, [write]) == 5
        found = await store.entries(key_of("gone"), 0, 10)
        assert [entry.payload for entry in found] == [None, None, said.payload]
        assert [entry.salt for entry in found] == [None, None, said.salt]
        assert [entry.leaf_hash for entry in found][1:] == [gone.leaf_hash, said.leaf_hash]
        assert [entry.payload is None for entry in await store.log(0, 10)] == [True, False, True, False, False]
        assert await store.blob(key_of("gone"), bytes(32)) is None
        assert await store.blob(key_of("kept"), bytes(32)) == b"file of kept"
        assert [row.stream_key for row in await store.listing("list", b"all", 0, 10)] == [key_of("kept")]
        assert [(row.space, row.key) for row in await store.names(None, 10)] == [
            ("hospital_rx", b"kept"),
            ("settlement", b"gone"),
        ]
        asked = frozenset({(CALLER, name) for name in ("request gone", "request kept", "erase")})
        replies = (await store.load(Wanted(replies=asked))).replies
        emptied = reply_to(gone, CALLER, "request gone")._replace(content_mac=b"", body=b"", version=1)
        assert replies[CALLER, "request gone"] == emptied
        assert replies[CALLER, "request kept"] == reply_to(kept, CALLER, "request kept")
        assert replies[CALLER, "erase"] == own
        assert (await verify_ledger(store)).findings == []
        await append_all(store, [Write(entries=(next_entry("gone", said),))])

    async def test_erasure_that_conflicts_takes_nothing(self, store: Store) -> None:
        kept, gone = await two_of_a_kind(store)
        late = next_entry("gone", next_entry("gone", gone, request_id="rival"), number=ERASED)
        write = Write((late,), erasures=(Erasure(key_of("gone"), late.header.version),))
        good = next_entry("kept", kept)
        assert (await store.append([write, Write((good,))])).conflicts == {0}
        assert [entry.payload is None for entry in await store.log(0, 10)] == [False] * 5
        assert await store.blob(key_of("gone"), bytes(32)) == b"file of gone"

    async def test_erasure_without_an_entry_of_its_own_is_a_bug(self, store: Store) -> None:
        _, gone = await two_of_a_kind(store)
        said = next_entry("gone", gone, number=ERASED)
        for erasure in (Erasure(key_of("kept"), 2), Erasure(key_of("gone"), 2), Erasure(key_of("gone"), 4)):
            with pytest.raises(ValueError):
                await store.append([Write((said,), erasures=(erasure,))])
        assert [entry.payload is None for entry in await store.log(0, 10)] == [False] * 4

    async def test_cancelled_append_is_written_as_a_whole_or_not_at_all(self, store: Store) -> None:
        batch = [Write(entries=tuple(stream_of(f"s{number}", 3))) for number in range(40)]
        task = asyncio.ensure_future(store.append(batch))
        await asyncio.wait({task}, timeout=0)  # one turn of the loop, so that the append has begun
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        # The writing side takes calls in order, so this load sees what has become of the batch.
        await store.load(Wanted(streams=frozenset({key_of("s0")})))
        assert await store.last_position() == 120
        assert (await verify_ledger(store)).findings == []
        await append_all(store, [Write(entries=(next_entry("after"),))])

    async def test_reads_beside_appends_see_whole_batches(self, store: Store) -> None:
        seen: list[int] = []

        async def read() -> None:
            seen.extend([await store.last_position() for _ in range(20)])

        async def write() -> None:
            for number in range(20):
                await append_all(store, [Write(entries=tuple(stream_of(f"{number}", 5)))])

        await asyncio.gather(read(), write(), read())
        assert {position % 5 for position in seen} == {0}
        assert await store.last_position() == 100

    async def test_closed_store_is_unavailable_and_can_be_closed_again(self, store: Store) -> None:
        await store.close()
        await store.close()
        with pytest.raises(StoreUnavailable):
            await store.append([Write(entries=(next_entry("a"),))])
        with pytest.raises(StoreUnavailable):
            await store.load(Wanted())
        with pytest.raises(StoreUnavailable):
            await store.log(0, 1)
