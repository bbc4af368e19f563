"""Verification: every kind of tampering is found, named by stream, version and reason, and nothing else is."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from erxhub.core.events import BY_NAME
from erxhub.ledger import verify as verify_module
from erxhub.ledger.entry import CONTENT_ERASED_TYPE, Entry, seal
from erxhub.ledger.memory import MemoryStore
from erxhub.ledger.sqlite import open_sqlite
from erxhub.ledger.store import Erasure, Store, StoredEntry, Write
from erxhub.ledger.verify import Finding, Reason, Verification, verify_entries, verify_ledger
from tests.ledger.contract import T0_MS, append_all, key_of, next_entry, state_at, stored, stream_of

Tampering = Callable[[sqlite3.Connection], object]

RX = stream_of("rx", 4)
ACCESS = stream_of("log", 3, kind="access")
OTHER = next_entry("other")
RX_NO, ACCESS_NO = 1, 2  # the stream numbers that `fill` gives them


async def fill(store: Store) -> None:
    """Eight entries: the four of RX with state, then ACCESS in between, and one more stream."""
    await append_all(store, [Write(entries=(RX[0], ACCESS[0]), states=(state_at(RX[0]),))])
    for version in (1, 2):
        await append_all(store, [Write(entries=(RX[version], ACCESS[version]), states=(state_at(RX[version]),))])
    await append_all(store, [Write(entries=(RX[3], OTHER), states=(state_at(RX[3]), state_at(OTHER)))])


async def verify_tampered(path: Path, tamper: Tampering, *, from_position: int = 0) -> Verification:
    store = await open_sqlite(path)
    await fill(store)
    await store.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as shell:
        shell.execute("PRAGMA ignore_check_constraints = ON")
        triggers = shell.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for (trigger,) in triggers:
            shell.execute(f"DROP TRIGGER {trigger}")
        tamper(shell)
    store = await open_sqlite(path, create=False, readers=1)
    try:
        return await verify_ledger(store, from_position=from_position)
    finally:
        await store.close()


def found(verification: Verification) -> list[tuple[str, int, str]]:
    names = {key_of("rx"): "rx", key_of("log", "access"): "log", key_of("other"): "other"}
    return [(names.get(f.stream_key, "?"), f.version, f.reason.value) for f in verification.findings]


def execute(statement: str, *parameters: object) -> Tampering:
    return lambda shell: shell.execute(statement, parameters)


def in_place_of(entry: Entry, forged: Entry) -> Tampering:
    """Replaces an RX entry by one that is right in itself, as an attacker with the code at hand would."""

    def run(shell: sqlite3.Connection) -> None:
        where = (RX_NO, entry.header.version)
        shell.execute(
            "UPDATE entry SET header = ?, commitment = ?, leaf_hash = ? WHERE stream = ? AND version = ?",
            (forged.header_bytes, forged.commitment, forged.leaf_hash, *where),
        )
        shell.execute(
            "UPDATE content SET salt = ?, payload = ? WHERE stream = ? AND version = ?",
            (forged.salt, forged.payload, *where),
        )

    return run


def all_of(*steps: Tampering) -> Tampering:
    return lambda shell: [step(shell) for step in steps]


def header_of(number: int, /, **changes: object) -> bytes:
    return replace(RX[number - 1].header, **changes).encode()  # type: ignore[arg-type]


def forged(version: int) -> Entry:
    genuine = RX[version - 1]
    return seal(genuine.header, genuine.salt, b"quantity: 99", genuine.prev_leaf_hash)


AT_2 = f"WHERE stream = {RX_NO} AND version = 2"
AT_4 = f"WHERE stream = {RX_NO} AND version = 4"

CASES = {
    "payload": (execute(f"UPDATE content SET payload = x'00' {AT_2}"), [("rx", 2, "COMMITMENT")]),
    "payload emptied": (execute(f"UPDATE content SET payload = x'' {AT_2}"), [("rx", 2, "COMMITMENT")]),
    "payload of the last": (execute(f"UPDATE content SET payload = x'00' {AT_4}"), [("rx", 4, "COMMITMENT")]),
    "salt": (execute(f"UPDATE content SET salt = zeroblob(16) {AT_2}"), [("rx", 2, "COMMITMENT")]),
    "salt cut": (execute(f"UPDATE content SET salt = x'00' {AT_2}"), [("rx", 2, "COMMITMENT")]),
    "payloads swapped": (
        all_of(
            execute(f"UPDATE content SET payload = ? WHERE stream = {RX_NO} AND version = 1", RX[1].payload),
            execute(f"UPDATE content SET payload = ? {AT_2}", RX[0].payload),
        ),
        [("rx", 1, "COMMITMENT"), ("rx", 2, "COMMITMENT")],
    ),
    "content gone": (execute(f"DELETE FROM content {AT_2}"), [("rx", 2, "CONTENT_MISSING")]),
    "all content gone": (
        execute(f"DELETE FROM content WHERE stream IN ({RX_NO}, {ACCESS_NO})"),
        [("log", version, "CONTENT_MISSING") for version in (1, 2, 3)]
        + [("rx", version, "CONTENT_MISSING") for version in (1, 2, 3, 4)],
    ),
    "commitment": (
        execute(f"UPDATE entry SET commitment = zeroblob(32) {AT_2}"),
        [("rx", 2, "COMMITMENT"), ("rx", 2, "LEAF_HASH")],
    ),
    "commitment cut": (
        execute(f"UPDATE entry SET commitment = x'00' {AT_2}"),
        [("rx", 2, "COMMITMENT"), ("rx", 2, "LEAF_HASH")],
    ),
    "commitment of an erased entry": (
        all_of(execute(f"DELETE FROM content {AT_2}"), execute(f"UPDATE entry SET commitment = zeroblob(32) {AT_2}")),
        [("rx", 2, "PREV_LEAF"), ("rx", 2, "CONTENT_MISSING")],
    ),
    "leaf hash": (execute(f"UPDATE entry SET leaf_hash = zeroblob(32) {AT_2}"), [("rx", 2, "LEAF_HASH")]),
    "leaf hash cut": (execute(f"UPDATE entry SET leaf_hash = x'00' {AT_2}"), [("rx", 2, "LEAF_HASH")]),
    "leaf hash of the first": (
        execute(f"UPDATE entry SET leaf_hash = zeroblob(32) WHERE stream = {RX_NO} AND version = 1"),
        [("rx", 1, "LEAF_HASH")],
    ),
    "leaf hash of the last": (
        execute(f"UPDATE entry SET leaf_hash = zeroblob(32) {AT_4}"),
        [("rx", 4, "LEAF_HASH"), ("rx", 4, "HEAD_MISMATCH")],
    ),
    "leaf hash of the last without state": (
        execute(f"UPDATE entry SET leaf_hash = zeroblob(32) WHERE stream = {ACCESS_NO} AND version = 3"),
        [("log", 3, "LEAF_HASH")],
    ),
    "header unreadable": (execute(f"UPDATE entry SET header = x'01' {AT_2}"), [("rx", 2, "HEADER_MALFORMED")]),
    "header is a text": (execute(f"UPDATE entry SET header = 'text' {AT_2}"), [("rx", 2, "HEADER_MALFORMED")]),
    "actor in the header": (
        execute(f"UPDATE entry SET header = ? {AT_2}", header_of(2, actor="hospital/H99999999999")),
        [("rx", 2, "COMMITMENT")],
    ),
    "cause in the header": (
        execute(f"UPDATE entry SET header = ? {AT_2}", header_of(2, causes=(bytes(32),))),
        [("rx", 2, "COMMITMENT")],
    ),
    "type in the header": (
        execute(f"UPDATE entry SET header = ? {AT_2}", header_of(2, type=8)),
        [("rx", 2, "COMMITMENT"), ("rx", 2, "LEAF_HASH")],
    ),
    "version in the header": (
        execute(f"UPDATE entry SET header = ? {AT_2}", header_of(2, version=7)),
        [("rx", 2, "HEADER_MISMATCH"), ("rx", 2, "COMMITMENT"), ("rx", 2, "LEAF_HASH")],
    ),
    "time in the header": (
        execute(f"UPDATE entry SET header = ? {AT_2}", header_of(2, recorded_at_ms=T0_MS - 1)),
        [("rx", 2, "COMMITMENT"), ("rx", 2, "LEAF_HASH"), ("rx", 2, "TIME_BACKWARDS")],
    ),
    "later time in the header": (
        execute(f"UPDATE entry SET header = ? {AT_2}", header_of(2, recorded_at_ms=T0_MS + 9)),
        [("rx", 2, "COMMITMENT"), ("rx", 2, "LEAF_HASH")],
    ),
    "version column": (
        execute(f"UPDATE entry SET version = 9 {AT_2}"),
        [("rx", 9, "HEADER_MISMATCH")],
    ),
    "stream kind": (
        execute(f"UPDATE stream SET kind = 'account' WHERE no = {ACCESS_NO}"),
        [("log", version, "HEADER_MISMATCH") for version in (1, 2, 3)],
    ),
    "stream kind is no text": (
        execute(f"UPDATE stream SET kind = CAST(x'ff' AS TEXT) WHERE no = {ACCESS_NO}"),
        [("log", version, "HEADER_MISMATCH") for version in (1, 2, 3)],
    ),
    "stream key": (
        execute(f"UPDATE stream SET key = zeroblob(32) WHERE no = {ACCESS_NO}"),
        [("?", version, "HEADER_MISMATCH") for version in (1, 2, 3)],
    ),
    "entry taken out": (execute(f"DELETE FROM entry {AT_2}"), [("rx", 3, "VERSION_GAP")]),
    "first entry taken out": (
        execute(f"DELETE FROM entry WHERE stream = {RX_NO} AND version = 1"),
        [("rx", 2, "VERSION_GAP")],
    ),
    "last entry taken out": (execute(f"DELETE FROM entry {AT_4}"), [("rx", 3, "HEAD_MISMATCH")]),
    "entry moved to another stream": (
        execute(f"UPDATE entry SET stream = {ACCESS_NO}, version = 4 {AT_4}"),
        [("log", 4, "HEADER_MISMATCH"), ("log", 4, "LEAF_HASH"), ("rx", 3, "HEAD_MISMATCH")],
    ),
    "order of the entries": (
        execute(f"UPDATE entry SET position = 99 {AT_2}"),
        [("rx", 3, "VERSION_GAP"), ("rx", 2, "VERSION_GAP")],
    ),
    "entry rewritten with its hashes": (in_place_of(RX[1], forged(2)), [("rx", 3, "PREV_LEAF")]),
    "entry before the last rewritten with its hashes": (
        in_place_of(RX[2], forged(3)),
        [("rx", 4, "PREV_LEAF")],
    ),
    "last entry rewritten with its hashes": (in_place_of(RX[3], forged(4)), [("rx", 4, "HEAD_MISMATCH")]),
    "two entries": (
        all_of(
            execute(f"UPDATE content SET payload = x'00' {AT_2}"),
            execute(f"UPDATE content SET payload = x'00' WHERE stream = {ACCESS_NO} AND version = 3"),
        ),
        [("rx", 2, "COMMITMENT"), ("log", 3, "COMMITMENT")],
    ),
    "state set back": (
        execute(f"UPDATE state SET version = 3, leaf_hash = ? WHERE stream = {RX_NO}", RX[2].leaf_hash),
        [("rx", 4, "HEAD_MISMATCH")],
    ),
    "state on another leaf": (
        execute(f"UPDATE state SET leaf_hash = zeroblob(32) WHERE stream = {RX_NO}"),
        [("rx", 4, "HEAD_MISMATCH")],
    ),
    "state ahead": (
        execute(f"UPDATE state SET version = 5 WHERE stream = {RX_NO}"),
        [("rx", 4, "HEAD_MISMATCH")],
    ),
}


@pytest.mark.parametrize("name", CASES)
async def test_tampering_is_named_by_stream_version_and_reason(tmp_path: Path, name: str) -> None:
    tamper, expected = CASES[name]
    verification = await verify_tampered(tmp_path / "ledger.db", tamper)
    assert sorted(found(verification)) == sorted(expected)


async def test_untouched_ledger_has_no_findings(tmp_path: Path) -> None:
    verification = await verify_tampered(tmp_path / "ledger.db", execute("SELECT 1"))
    assert verification == Verification(entries=8, streams=3, findings=[])


async def test_memory_store_verifies_and_an_empty_one_too() -> None:
    store = MemoryStore()
    assert await verify_ledger(store) == Verification(0, 0, [])
    await fill(store)
    assert await verify_ledger(store) == Verification(8, 3, [])


@pytest.mark.parametrize("from_position", range(9))
async def test_verification_from_a_position_links_to_what_lies_before(tmp_path: Path, from_position: int) -> None:
    verification = await verify_tampered(tmp_path / "a.db", execute("SELECT 1"), from_position=from_position)
    assert (verification.entries, verification.findings) == (8 - from_position, [])
    # Entry 2 of RX (position 3) rewritten: seen as itself never, by entry 3 (position 5) as soon as that is included.
    verification = await verify_tampered(tmp_path / "b.db", in_place_of(RX[1], forged(2)), from_position=from_position)
    assert found(verification) == ([("rx", 3, "PREV_LEAF")] if from_position < 5 else [])


async def test_missing_predecessor_of_the_first_entry_looked_at_is_a_gap(tmp_path: Path) -> None:
    tamper = execute(f"DELETE FROM entry {AT_2}")
    verification = await verify_tampered(tmp_path / "ledger.db", tamper, from_position=4)
    assert found(verification) == [("rx", 3, "VERSION_GAP")]


async def test_entry_recorded_before_its_predecessor_is_found() -> None:
    store = MemoryStore()
    first = next_entry("rx")
    second = next_entry("rx", first, recorded_at_ms=T0_MS - 1)
    third = next_entry("rx", second, recorded_at_ms=T0_MS - 1)
    await append_all(store, [Write(entries=(first, second, third))])
    assert found(await verify_ledger(store)) == [("rx", 2, "TIME_BACKWARDS")]


async def test_state_left_behind_by_a_write_is_found() -> None:
    store = MemoryStore()
    await append_all(store, [Write(entries=(RX[0],), states=(state_at(RX[0]),)), Write(entries=(RX[1],))])
    assert found(await verify_ledger(store)) == [("rx", 2, "HEAD_MISMATCH")]


async def test_entries_that_come_in_meanwhile_are_no_finding() -> None:
    class Growing(MemoryStore):
        """Knows of five entries when asked, and has eight when read."""

        async def last_position(self) -> int:
            return 5

    store = Growing()
    await fill(store)
    assert await verify_ledger(store) == Verification(5, 2, [])


async def test_ledger_verifies_while_it_is_written_to(tmp_path: Path) -> None:
    store = await open_sqlite(tmp_path / "ledger.db")
    streams = [stream_of(f"{number}", 40) for number in range(10)]

    async def write() -> None:
        for version in range(40):
            await append_all(store, [Write(entries=(s[version],), states=(state_at(s[version]),)) for s in streams])

    writing = asyncio.ensure_future(write())
    while not writing.done():
        assert (await verify_ledger(store)).findings == []
    await writing
    assert await verify_ledger(store) == Verification(400, 10, [])
    await store.close()


async def test_long_ledger_is_read_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "_PAGE_ENTRIES", 3)
    monkeypatch.setattr(verify_module, "_PAGE_HEADS", 2)
    store = MemoryStore()
    await fill(store)
    assert await verify_ledger(store) == Verification(8, 3, [])


async def test_findings_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "FINDINGS_MAX", 3)
    verification = await verify_tampered(tmp_path / "ledger.db", execute("UPDATE entry SET header = x'00'"))
    assert (verification.entries, len(verification.findings)) == (8, 3)


def as_stored(entries: list[Entry]) -> list[StoredEntry]:
    return [stored(position, entry) for position, entry in enumerate(entries, 1)]


def test_stream_given_whole_verifies() -> None:
    assert verify_entries(as_stored(RX)) == Verification(4, 1, [])
    assert verify_entries(as_stored([RX[0], ACCESS[0], RX[1]])) == Verification(3, 2, [])
    assert verify_entries([]) == Verification(0, 0, [])


def test_altered_stream_is_found_without_a_store() -> None:
    entries = as_stored(RX)
    entries[1] = replace(entries[1], payload=b"quantity: 99")
    expected = Finding("prescription", key_of("rx"), 2, Reason.COMMITMENT)
    assert verify_entries(entries).findings == [expected]
    assert found(verify_entries(as_stored(RX[1:]))) == [("rx", 2, "VERSION_GAP")]
    assert found(verify_entries(as_stored([RX[0], RX[2], RX[1]]))) == [
        ("rx", 3, "VERSION_GAP"),
        ("rx", 2, "VERSION_GAP"),
    ]


def test_content_that_an_entry_says_was_erased_is_no_finding_and_its_own_still_has_to_be_there() -> None:
    said = next_entry("rx", RX[3], number=CONTENT_ERASED_TYPE)
    after = next_entry("rx", said)
    entries = [replace(stored, salt=None, payload=None) for stored in as_stored([*RX, said, after])]
    kept = as_stored([*RX, said, after])
    assert found(verify_entries([*entries[:4], *kept[4:]])) == []
    assert found(verify_entries([*entries[:5], *kept[5:]])) == [("rx", 5, "CONTENT_MISSING")]
    assert found(verify_entries([*entries[:4], kept[4], entries[5]])) == [("rx", 6, "CONTENT_MISSING")]


def test_the_type_that_says_erased_is_that_of_the_event() -> None:
    assert BY_NAME["content.erased"].number == CONTENT_ERASED_TYPE


@pytest.mark.parametrize("erased", [True, False])
async def test_content_erased_while_the_log_is_walked_is_no_finding(erased: bool) -> None:
    """The page is read after the erasure, the end of the log was taken before it."""
    store = MemoryStore()
    await append_all(store, [Write(entries=tuple(RX))])
    said = next_entry("rx", RX[3], number=CONTENT_ERASED_TYPE if erased else 8)
    end = await store.last_position()
    await append_all(store, [Write((said,), erasures=(Erasure(key_of("rx"), 5),))])

    async def before() -> int:
        return end

    store.last_position = before  # type: ignore[method-assign]
    findings = (await verify_ledger(store)).findings
    assert [finding.version for finding in findings] == ([] if erased else [1, 2, 3, 4])


@pytest.mark.parametrize("part", ["salt", "payload"])
def test_half_erased_entry_is_found(part: str) -> None:
    entries = as_stored(RX)
    entries[1] = replace(entries[1], **{part: None})  # type: ignore[arg-type]
    assert found(verify_entries(entries)) == [("rx", 2, "COMMITMENT")]


def test_stray_leaf_at_the_end_is_found_without_a_head() -> None:
    entries = as_stored(RX)
    entries[3] = replace(entries[3], leaf_hash=bytes(32))
    assert found(verify_entries(entries)) == [("rx", 4, "LEAF_HASH")]
