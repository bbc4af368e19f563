"""One history: neither an old ledger nor two sequencers nor a hub that lies get two roots of one size cosigned."""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from erxhub.high_water import HighWater
from erxhub.ledger.memory import MemoryStore
from erxhub.ledger.postgres import open_postgres
from erxhub.ledger.sqlite import copy_sqlite, open_sqlite
from erxhub.ledger.store import Store
from erxhub.ports import ManualClock
from erxhub.proof.checkpoints import open_checkpoint, read_checkpoint
from erxhub.proof.merkle import ProofInvalid
from erxhub.proof.notes import add_line, read_note
from erxhub.queries.proofs import cosigned
from erxhub.starting import ROLLBACK_DETECTED, LedgerRefused, prove_start
from erxhub.witness.client import ForkSuspected, WitnessFailure, clients_of
from erxhub.witness.gathering import gather
from erxhub.witnessing import ROLLBACK_SUSPECTED, PublishingHalted
from tests.live import START_MS
from tests.postgres import PostgresServer
from tests.witness.ground import Log
from tests.witness.publishing import CONFIG, KEYS, SIGNER, Hub, opened
from tests.witness.town import Town, town_of


@pytest.fixture
async def town() -> AsyncIterator[Town]:
    async with town_of(SIGNER.key, ManualClock(START_MS)) as town:
        yield town


@dataclass
class Ledger:
    """A database that can be copied while nobody has it open."""

    open: Callable[[str], Awaitable[Store]]
    copy: Callable[[str], str]
    name: str


@pytest.fixture(params=["sqlite", "postgres"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    if request.param == "sqlite":

        def copy(name: str) -> str:
            copy_sqlite(name, f"{name}.copy")
            return f"{name}.copy"

        return Ledger(open_sqlite, copy, str(tmp_path / "ledger.db"))
    server: PostgresServer = request.getfixturevalue("postgres_server")

    async def open_it(name: str) -> Store:
        return await open_postgres(server.url(name, "hub"), readers=2)

    return Ledger(open_it, server.database, server.database(server.ledger_template()))


async def grown(ledger: Ledger, name: str, town: Town, steps: int, folder: Path, hub: Hub | None = None) -> Hub:
    """A hub that published and showed so many checkpoints, and ended."""
    store = await ledger.open(name)
    last = hub.last if hub is not None else None
    hub = await opened(store, town, folder)
    hub.last = last
    for _ in range(steps):
        await hub.publish()
        await hub.witnessing.show_all()
    await store.close()
    return hub


def is_quorum(town: Town, note: str) -> bool:
    with suppress(ProofInvalid):
        town.policy.check(note)
        return True
    return False


@pytest.mark.parametrize("file_is_there", [True, False])
async def test_a_hub_on_an_older_backup_does_not_start_by_its_file_or_by_a_witness(
    ledger: Ledger, town: Town, tmp_path: Path, file_is_there: bool
) -> None:
    early = await grown(ledger, ledger.name, town, 2, tmp_path)
    backup = ledger.copy(ledger.name)
    late = await grown(ledger, ledger.name, town, 2, tmp_path, early)
    if file_is_there:
        await town.go(0, 1)
    else:
        await town.go(0)
        (tmp_path / "mark.json").unlink()
    store = await ledger.open(backup)
    hub = Hub(store, town, tmp_path)
    with pytest.raises(LedgerRefused, match=ROLLBACK_DETECTED):
        await prove_start(store, KEYS.log, CONFIG, HighWater(tmp_path / "mark.json"), hub.witnessing)
    await store.close()
    evidence = json.loads((tmp_path / "evidence-rollback-detected-4.json").read_text("utf-8"))
    sizes = [open_checkpoint(evidence[side]["note"], CONFIG.origin, [SIGNER.key]).said.size for side in SIDES]
    assert sizes == [8, 4]
    assert late.publisher.newest is not None
    assert evidence["published"]["note"].startswith(late.publisher.newest.note or "-")


SIDES = ("published", "stored")


async def test_a_ledger_that_went_another_way_does_not_start_by_a_witness(town: Town, tmp_path: Path) -> None:
    ledger = Ledger(open_sqlite, str, str(tmp_path / "one.db"))
    await grown(ledger, ledger.name, town, 2, tmp_path)
    (tmp_path / "mark.json").unlink()
    await town.go(0, 1)
    store = await open_sqlite(tmp_path / "other.db")
    hub = await opened(store, town, tmp_path, "b")
    for _ in range(3):
        await hub.publish()
    await town.come(1)
    (tmp_path / "mark.json").unlink()
    with pytest.raises(LedgerRefused, match="another log of 4 leaves"):
        await prove_start(store, KEYS.log, CONFIG, HighWater(tmp_path / "mark.json"), hub.witnessing)
    await store.close()


async def test_an_older_backup_that_starts_while_nobody_knows_better_publishes_nothing(
    ledger: Ledger, town: Town, tmp_path: Path
) -> None:
    early = await grown(ledger, ledger.name, town, 2, tmp_path)
    backup = ledger.copy(ledger.name)
    late = await grown(ledger, ledger.name, town, 2, tmp_path, early)
    await town.go(0, 1)
    (tmp_path / "mark.json").unlink()
    store = await ledger.open(backup)
    hub = await opened(store, town, tmp_path, "b")
    await prove_start(store, KEYS.log, CONFIG, HighWater(tmp_path / "mark.json"), hub.witnessing)
    position = await hub.write()  # commands go on
    await town.come(2)  # it was never asked before: two others may still know more
    await hub.witnessing.show_all()
    with pytest.raises(PublishingHalted, match="WITNESSES_MISSING"):
        await hub.publisher.covering(position)
    await town.come(1)
    await hub.witnessing.show_all()
    with pytest.raises(PublishingHalted, match=ROLLBACK_SUSPECTED):
        await hub.publisher.covering(position)
    newest = await store.checkpoint()
    assert newest is not None
    assert early.publisher.newest is not None
    assert newest.root == early.publisher.newest.root
    await store.close()
    (kept,) = HighWater(tmp_path / "mark.json").evidence()
    evidence = json.loads((tmp_path / kept.name).read_text("utf-8"))
    assert evidence["ours"]["note"] == early.publisher.newest.note
    assert late.publisher.newest is not None
    assert evidence["theirs"].startswith(late.publisher.newest.note or "-")


async def test_a_new_ledger_is_published_once_enough_witnesses_say_that_they_know_none(town: Town) -> None:
    await town.go(0, 1)
    store = MemoryStore()
    hub = await opened(store, town)
    await prove_start(store, KEYS.log, CONFIG, None, hub.witnessing)
    position = await hub.write()
    with pytest.raises(PublishingHalted):
        await hub.publisher.covering(position)
    await town.come(0, 1)
    await hub.witnessing.show_all()
    await hub.publisher.covering(position)
    await hub.witnessing.show_all()
    assert hub.witnessing.newest == await store.checkpoint()


@pytest.mark.campaign
async def test_two_histories_shown_to_three_witnesses_never_have_a_quorum_each(
    rounds: Callable[[int, int], int],
) -> None:
    """A hub with the log's key that shows whom it likes what it likes, and goes on whatever is answered."""
    for seed in range(rounds(6, 60)):
        draw = random.Random(seed)
        log, fork = Log("leaf"), Log("other", same=draw.randrange(4))
        async with town_of(log.signer.key, ManualClock(START_MS), (0, 1, 2)) as town:
            clients = clients_of(town.policy, town.clock, (log.signer.key,))
            lines: defaultdict[str, dict[str, str]] = defaultdict(dict)
            alarms: list[ForkSuspected] = []
            for _ in range(30):
                told, size = draw.choice((log, fork)), draw.randrange(1, 12)
                name = draw.choice(sorted(clients))
                try:
                    lines[told.note(size)][name] = await clients[name].cosign(told.note(size), told.prove(size))
                except ForkSuspected as alarm:
                    alarms.append(alarm)
                except WitnessFailure:
                    pass  # smaller than what it knows
            quorums: defaultdict[int, set[bytes]] = defaultdict(set)
            for note, given in lines.items():
                full = note
                for line in given.values():
                    full = add_line(full, line)
                if is_quorum(town, full):
                    said = read_checkpoint(read_note(note).text)
                    quorums[said.size].add(said.root)
            assert all(len(roots) == 1 for roots in quorums.values())
            evidence = [one for records in town.records for one in records.evidence]
            assert evidence
            assert all(alarm.theirs is not None for alarm in alarms)
            for one in evidence:
                offered = read_checkpoint(read_note(one["offered"]).text)
                recorded = read_checkpoint(read_note(one["recorded"]).text)
                assert (offered.size, offered.root) != (recorded.size, recorded.root)


async def test_a_hub_that_splits_its_witnesses_gets_at_most_one_quorum_at_once() -> None:
    log, fork = Log("leaf"), Log("other", same=3)
    async with town_of(log.signer.key, ManualClock(START_MS), (0, 1, 2)) as town:
        ask = clients_of(town.policy, town.clock, (log.signer.key,))
        await ask["W0"].cosign(log.note(6), log.prove(6))
        await ask["W1"].cosign(fork.note(6), fork.prove(6))
        first = await gather(town.policy, ask, log.note(6), log.prove(6), grace_ms=5_000)
        second = await gather(town.policy, ask, fork.note(6), fork.prove(6), grace_ms=5_000)
        assert (first.met, sorted(first.lines), sorted(first.alarms)) == (True, ["W0", "W2"], ["W1"])
        assert (second.met, sorted(second.lines), sorted(second.alarms)) == (False, ["W1"], ["W0", "W2"])
        for gathered, name, ours, theirs in ((first, "W1", log, fork), (second, "W0", fork, log)):
            alarm = gathered.alarms[name]
            assert isinstance(alarm, ForkSuspected)
            assert alarm.theirs is not None
            assert (alarm.ours, alarm.theirs.startswith(theirs.note(6))) == (ours.note(6), True)


async def test_two_sequencers_at_once_show_one_history(postgres_server: PostgresServer, town: Town) -> None:
    url = postgres_server.url(postgres_server.database(postgres_server.ledger_template()), "hub")
    stores = [await open_postgres(url, readers=2) for _ in range(2)]
    hubs = [await opened(store, town, None, name) for store, name in zip(stores, "ab", strict=True)]

    async def work(hub: Hub) -> None:
        for _ in range(10):
            made = await hub.publish()
            await hub.witnessing.cosigned(made) if made.no % 3 == 0 else None

    running = [asyncio.create_task(hub.witnessing.run()) for hub in hubs]
    await asyncio.gather(*(work(hub) for hub in hubs))
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    for hub in hubs:
        await hub.publisher.publish_all()
        await hub.witnessing.show_all()
        assert hub.witnessing.halted is None
    newest = [hub.witnessing.newest for hub in hubs]
    assert newest[0] is not None
    assert newest[0] == newest[1]
    assert is_quorum(town, cosigned(newest[0]))
    made = await stores[0].checkpoints(0, 1_000)
    notes = {one.size: one.note for one in made}
    assert len(notes) == len(made)
    for shown in town.notes:
        assert all(notes[read_checkpoint(read_note(note).text).size] == note for note in shown)
    for store in stores:
        await store.close()
