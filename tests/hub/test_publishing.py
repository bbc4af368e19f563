"""Checkpoints come signed and in order, whoever stops in between; and a start notices what is missing or altered."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from erxhub.config import Config
from erxhub.high_water import HighWater, HighWaterUnreadable
from erxhub.keys import HubKeys
from erxhub.ledger.entry import Entry
from erxhub.ledger.log import LogEmpty, ProofsWanted
from erxhub.ledger.memory import MemoryStore
from erxhub.ledger.postgres import open_postgres
from erxhub.ledger.sqlite import copy_sqlite, open_sqlite
from erxhub.ledger.store import Store, StoreUnavailable, Write
from erxhub.ledger.verify import verify_ledger
from erxhub.ports import ManualClock, SeededIds
from erxhub.proof.checkpoints import open_checkpoint
from erxhub.proof.merkle import verify_consistency
from erxhub.proof.notes import LogSigner
from erxhub.proof.pages import PageDamaged
from erxhub.publishing import Publisher
from erxhub.queries.proofs import cosigned
from erxhub.starting import LEDGER_DAMAGED, ROLLBACK_DETECTED, LedgerRefused, prove_start
from tests.chain import Chain
from tests.ledger.contract import T0_MS, append_all, key_of, next_entry, stream_of
from tests.live import live_hub
from tests.postgres import PostgresServer
from tests.witness.town import town_of

KEYS = HubKeys.generate(SeededIds(11))
CONFIG = Config(checkpoint_leaves_max=16)


class Pauses:
    """A pause that lasts until the test lets a round begin."""

    def __init__(self) -> None:
        self.waiting = asyncio.Event()
        self._go = asyncio.Event()

    async def __call__(self, ms: int) -> None:
        self.waiting.set()
        await self._go.wait()
        self._go.clear()

    async def round(self) -> None:
        await self.waiting.wait()
        self.waiting.clear()
        self._go.set()
        await self.waiting.wait()


def publisher_of(store: Store, path: Path | None = None, keys: HubKeys = KEYS) -> Publisher:
    async def never(ms: int) -> None:
        raise AssertionError

    water = HighWater(path) if path else None
    return Publisher(store, keys.log, clock=ManualClock(T0_MS), config=CONFIG, pause=never, high_water=water)


async def test_covering_makes_a_checkpoint_that_verifies_under_the_log_key() -> None:
    store = MemoryStore()
    publisher = publisher_of(store)
    await append_all(store, [Write(entries=tuple(stream_of("a", 3)))])
    made = await publisher.covering(2)
    assert made.covered_position == 3
    assert made.note is not None
    said = open_checkpoint(made.note, CONFIG.origin, [publisher.signer.key]).said
    assert (said.size, said.root) == (4, made.root)
    assert await publisher.covering(3) == made == publisher.newest
    assert await store.checkpoint() == made
    with pytest.raises(LogEmpty):
        await publisher.covering(4)


async def test_many_who_wait_share_one_step() -> None:
    store = MemoryStore()
    publisher = publisher_of(store)
    await append_all(store, [Write(entries=tuple(stream_of("a", 10)))])
    made = await asyncio.gather(*(publisher.covering(position) for position in range(1, 11)))
    assert {one.no for one in made} == {1}


async def test_proofs_are_against_a_signed_checkpoint_also_when_the_newest_is_not_signed_yet() -> None:
    store = MemoryStore()
    await append_all(store, [Write(entries=tuple(stream_of("a", 3)))])
    await store.integrate(T0_MS, 100)
    proofs = await publisher_of(store).prove(ProofsWanted((key_of("a"),)))
    assert proofs.checkpoint.note is not None
    assert proofs.map[key_of("a")].head is not None


async def test_rounds_publish_what_is_new_and_wake_who_waits() -> None:
    store, pauses = MemoryStore(), Pauses()
    publisher = Publisher(store, KEYS.log, clock=ManualClock(T0_MS), config=CONFIG, pause=pauses)
    running = asyncio.create_task(publisher.run())
    await pauses.round()
    assert publisher.newest is None
    waiting = asyncio.create_task(publisher.reached(40))
    given_up = asyncio.create_task(publisher.reached(40))
    await append_all(store, [Write(entries=tuple(stream_of("a", 40)))])
    await pauses.round()
    given_up.cancel()
    assert (await waiting).covered_position == 40
    assert publisher.newest is not None
    assert publisher.newest.no == 3  # 16 entries a step, and no pause between full ones
    await pauses.round()
    assert publisher.newest.no == 3
    assert (await publisher.reached(7)).no == 3
    running.cancel()
    await asyncio.gather(running, given_up, return_exceptions=True)


class Failing(MemoryStore):
    """Raises once what it is given."""

    error: Exception | None = None

    async def integrate(self, now_ms: int, leaves_max: int) -> object:  # type: ignore[override]
        error, self.error = self.error, None
        if error is not None:
            raise error
        return await super().integrate(now_ms, leaves_max)


@pytest.mark.parametrize("error", [StoreUnavailable("away"), PageDamaged("torn"), OSError(28, "full"), KeyError("bug")])
async def test_a_round_that_fails_is_followed_by_the_next(error: Exception) -> None:
    store, pauses = Failing(), Pauses()
    publisher = Publisher(store, KEYS.log, clock=ManualClock(T0_MS), config=CONFIG, pause=pauses)
    running = asyncio.create_task(publisher.run())
    await append_all(store, [Write(entries=(next_entry("a"),))])
    store.error = error
    await pauses.round()
    await pauses.round()
    assert publisher.newest is not None
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def files_in(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


async def test_the_high_water_file_never_goes_back(tmp_path: Path) -> None:
    path = tmp_path / "mark.json"
    store = MemoryStore()
    publisher = publisher_of(store, path)
    entries = stream_of("a", 2)
    for size, entry in enumerate(entries, 1):
        await append_all(store, [Write(entries=(entry,))])
        made = await publisher.covering(size)
        mark = HighWater(path).read()
        assert mark is not None
        assert (mark.size, mark.root, mark.note, mark.origin) == (made.size, made.root, made.note, CONFIG.origin)
    assert path.stat().st_mode & 0o077 == 0
    assert files_in(tmp_path) == ["mark.json"]


# --- kill -9 between two parts of a step -----------------------------------------------------------


class Killed:
    """Hubs over what is in a folder, each killed where it stands."""

    def __init__(self, folder: Path, url: str = "") -> None:
        words = [sys.executable, "-m", "tests.hub.publishing_process", str(folder), *([url] if url else [])]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )

    def at(self, place: str, entries: int = 1) -> str:
        """Run a hub until it has done this part of a step, and kill it there; what it said."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{place} {entries}\n")
        self._process.stdin.flush()
        said = self._process.stdout.readline().split()
        if said[0] == place:
            os.kill(int(said[1]), signal.SIGKILL)
        return " ".join(said[:1] if said[0] == place else said)

    def end(self) -> None:
        self._process.communicate()


@pytest.mark.parametrize("place", ["step", "sign", "persist", "mark"])
async def test_a_step_that_was_killed_is_finished_with_the_same_bytes(tmp_path: Path, place: str) -> None:
    keys = HubKeys.init(tmp_path / "keys", SeededIds(5))
    killed = Killed(tmp_path)
    assert await asyncio.to_thread(killed.at, place) == place
    await asyncio.to_thread(killed.end)
    store = await open_sqlite(tmp_path / "ledger.db")
    kept = await store.checkpoint()
    assert kept is not None
    assert (kept.note is not None) == (place in ("persist", "mark"))
    assert (HighWater(tmp_path / "outside.json").read() is not None) == (place == "mark")
    water = HighWater(tmp_path / "outside.json")
    await prove_start(store, keys.log, Config(), water)
    made = await publisher_of(store, water.path, keys).covering(1)
    assert (made.no, made.size, made.root) == (1, 2, kept.root)
    assert made.note == publisher_of(store, None, keys).signer.note(f"{CONFIG.origin}\n2\n{_b64(made.root)}\n")
    if kept.note is not None:
        assert made.note == kept.note
    await store.close()


PLACES = ("append", "step", "sign", "persist", "mark", "gather", "cosign", "end")


@pytest.mark.campaign
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_hubs_killed_between_any_two_parts_of_a_step_leave_one_history_and_one_note_a_size(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, rounds: Callable[[int, int], int]
) -> None:
    url = ""
    if kind == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres_server")
        url = server.url(server.database(server.ledger_template()), "hub")
    keys = HubKeys.init(tmp_path / "keys", SeededIds(5))
    signer = LogSigner(CONFIG.origin, keys.log)
    draw = random.Random(5)
    # Whoever holds the lease of a PostgreSQL log and dies is waited for three seconds.
    count = rounds(10, 200) if kind == "sqlite" else rounds(2, 60)
    notes: dict[int, str] = {}
    async with town_of(signer.key, ManualClock(T0_MS)) as town:
        (tmp_path / "policy").write_bytes(town.text)
        killed = Killed(tmp_path, url)
        for number in range(count):
            place = PLACES[(3 * number + 3) % len(PLACES)]
            said = await asyncio.to_thread(killed.at, place, draw.randrange(1, 7))
            assert said == place
            mark = HighWater(tmp_path / "outside.json").read()
            shown = [note for each in town.notes for note in each] + ([mark.note] if mark else [])
            for note in shown:
                size = open_checkpoint(note, CONFIG.origin, [signer.key]).said.size
                assert notes.setdefault(size, note) == note
        assert await asyncio.to_thread(killed.at, "none") == "passed none"
        await asyncio.to_thread(killed.end)
        store = await (open_postgres(url, readers=2) if url else open_sqlite(tmp_path / "ledger.db"))
        made = await store.checkpoints(0, 10_000)
        newest = await store.checkpoint()
        assert newest is not None
        assert (await verify_ledger(store)).findings == []
        assert newest.covered_position == await store.last_position() >= count
        assert town.policy.check(cosigned(newest)).witnesses == ("W0", "W1")
        assert {size: note for size, note in notes.items() if note} == {
            one.size: one.note for one in made if one.size in notes
        }
        for one in made:
            path = await store.consistency(one.size, newest.size)
            verify_consistency(one.size, newest.size, path, one.root, newest.root)
        assert not any(records.evidence for records in town.records)
        await store.close()


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# --- a start proves itself -------------------------------------------------------------------------


class Home:
    """A ledger file with a published log of some checkpoints, and its high-water file elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.database = folder / "database" / "ledger.db"
        self.database.parent.mkdir()
        self.water = folder / "outside" / "mark.json"
        self.water.parent.mkdir()
        self.last: dict[str, Entry] = {}

    async def publish(self, names: str) -> None:
        store = await open_sqlite(self.database)
        publisher = publisher_of(store, self.water)
        for name in names:
            self.last[name] = next_entry(name, self.last.get(name))
            await append_all(store, [Write(entries=(self.last[name],))])
            await publisher.publish_all()
        await store.close()

    async def start(self, config: Config = CONFIG) -> None:
        store = await open_sqlite(self.database)
        try:
            await prove_start(store, KEYS.log, config, HighWater(self.water))
        finally:
            await store.close()

    def intrude(self, *statements: str) -> None:
        with sqlite3.connect(self.database) as shell:
            shell.execute("PRAGMA ignore_check_constraints = ON")
            for (name,) in shell.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                shell.execute(f"DROP TRIGGER {name}")
            for statement in statements:
                shell.execute(statement)
        shell.close()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


async def test_a_whole_ledger_starts_also_without_its_high_water_file(home: Home) -> None:
    await home.start()
    await home.publish("abcab")
    await home.start()
    home.water.unlink()
    await home.start()


async def test_an_older_copy_of_the_database_is_refused_with_evidence_of_both(home: Home, tmp_path: Path) -> None:
    await home.publish("abc")
    shutil.copy(home.database, tmp_path / "backup")
    await home.publish("ab")
    shutil.copy(tmp_path / "backup", home.database)
    with pytest.raises(LedgerRefused, match=ROLLBACK_DETECTED) as refused:
        await home.start()
    assert "备份" in str(refused.value)
    evidence = json.loads((home.water.parent / "evidence-rollback-detected-6.json").read_text("utf-8"))
    assert evidence["code"] == ROLLBACK_DETECTED
    assert (evidence["published"]["size"], evidence["stored"]["size"]) == (10, 6)
    for note in (evidence["published"]["note"], evidence["stored"]["note"]):
        open_checkpoint(note, CONFIG.origin, [publisher_of(MemoryStore()).signer.key])


async def test_an_empty_database_in_place_of_a_published_one_is_refused(home: Home) -> None:
    await home.publish("a")
    home.database.unlink()
    with pytest.raises(LedgerRefused, match=ROLLBACK_DETECTED):
        await home.start()


async def test_a_history_that_went_another_way_is_refused(home: Home, tmp_path: Path) -> None:
    await home.publish("abc")
    mark = home.water.read_bytes()
    home.database.unlink()
    home.water.unlink()
    home.last.clear()
    await home.publish("xyzxyz")
    home.water.write_bytes(mark)
    with pytest.raises(LedgerRefused, match="another log of 6 leaves"):
        await home.start()


async def test_a_log_of_another_origin_is_not_compared(home: Home) -> None:
    await home.publish("a")
    with pytest.raises(HighWaterUnreadable, match="is of the log"):
        await home.start(Config(origin="other.example/ledger"))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1, "origin": 1}', "\x00"])
async def test_a_high_water_file_that_is_none_is_no_permission_to_start(home: Home, text: str) -> None:
    await home.publish("a")
    home.water.write_text(text)
    with pytest.raises(HighWaterUnreadable, match=r"mark\.json"):
        await home.start()


ALTERED = [
    "UPDATE checkpoint SET root = zeroblob(32) WHERE no = 5",
    "UPDATE checkpoint SET map_root = zeroblob(32) WHERE no = 5",
    "UPDATE checkpoint SET map_root = 7 WHERE no = 5",
    "UPDATE tile SET hashes = zeroblob(length(hashes))",
    "UPDATE tile SET hashes = 'no hashes'",
    "DELETE FROM tile",
    "DELETE FROM page",
    "UPDATE page SET data = zeroblob(4) WHERE path = X''",
    "DELETE FROM checkpoint WHERE no = 3",
    "UPDATE checkpoint_note SET note = replace(note, 'erxhub', 'arxhub') WHERE no = 5",
    "UPDATE checkpoint_note SET note = (SELECT note FROM checkpoint_note WHERE no = 4) WHERE no = 5",
    "UPDATE checkpoint_note SET note = X'FF' WHERE no = 5",
    "UPDATE content SET payload = X'00' WHERE version = 2",
    "UPDATE entry SET leaf_hash = zeroblob(32) WHERE position = 5",
]


@pytest.mark.parametrize("statement", ALTERED)
async def test_altered_bytes_are_refused_as_damage(home: Home, statement: str) -> None:
    await home.publish("abcab")
    home.intrude(statement)
    with pytest.raises(LedgerRefused, match=LEDGER_DAMAGED):
        await home.start()
    assert (home.water.parent / "evidence-ledger-damaged-10.json").exists()


async def test_entries_that_a_checkpoint_covers_and_that_are_gone_are_a_rollback(home: Home) -> None:
    await home.publish("abcab")
    home.intrude(
        "DELETE FROM content WHERE (stream, version) = (SELECT stream, version FROM entry WHERE position = 5)",
        "DELETE FROM entry WHERE position = 5",
    )
    with pytest.raises(LedgerRefused, match=ROLLBACK_DETECTED):
        await home.start()


async def test_a_long_log_is_proved_at_its_end_only_and_across_tiles(home: Home) -> None:
    store = await open_sqlite(home.database)
    await append_all(store, [Write(entries=tuple(stream_of(f"{number}", 9))) for number in range(100)])
    await publisher_of(store, home.water).publish_all()
    await store.close()
    config = Config(start_verify_entries=300)
    await home.start(config)
    home.intrude("UPDATE tile SET hashes = zeroblob(8192) WHERE level = 0 AND number = 2")
    with pytest.raises(LedgerRefused, match="another leaf"):
        await home.start(config)


async def test_a_ledger_shorter_than_what_was_acknowledged_is_refused(home: Home) -> None:
    await home.publish("ab")
    water = HighWater(home.water)
    assert water.position() == 0
    water.acknowledge(2)
    await home.start()
    water.acknowledge(3)
    water.close()
    with pytest.raises(LedgerRefused, match="3 entries were acknowledged, and 2 are here"):
        await home.start()
    water._position_path.write_bytes(b"torn")
    await home.start()


# --- a hub -----------------------------------------------------------------------------------------


async def test_a_hub_publishes_by_itself_marks_what_it_said_and_refuses_an_older_file(home: Home) -> None:
    before = home.database.with_name("before")
    config = Config(checkpoint_interval_ms=20, drain_ms=200, drain_quiet_ms=0)
    async with live_hub(database=home.database, config=config, hub_keys=KEYS, high_water=home.water) as live:
        copy_sqlite(home.database, before)  # a backup of the running hub, in the middle of its day
        chain = Chain(live)
        await chain.uploaded()
        store, publisher = live.hub.store, live.hub.core.publisher
        uploaded = await store.last_position()
        assert (await publisher.reached(uploaded)).note is not None
        assert HighWater(home.water).position() == uploaded
    mark = HighWater(home.water).read()
    assert mark is not None
    assert mark.size > HighWater(home.water).position() >= uploaded  # the last step was at the hub's end
    await home.start()
    before.replace(home.database)
    for suffix in ("-wal", "-shm"):
        home.database.with_name(home.database.name + suffix).unlink(missing_ok=True)
    with pytest.raises(LedgerRefused, match=ROLLBACK_DETECTED):
        await home.start()
