"""A hub and its witnesses: what is shown to whom and when, what counts as witnessed, and what ends publishing."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2

from erxhub.config import Config
from erxhub.high_water import HighWater
from erxhub.ledger.memory import MemoryStore
from erxhub.operating import Operations
from erxhub.ports import ManualClock
from erxhub.proof.bundle_checkpoint import Trust
from erxhub.proof.bundle_verify import verify_bundle
from erxhub.proof.merkle import ProofInvalid
from erxhub.proof.notes import ED25519, NoteKey
from erxhub.proof.policy import read_policy
from erxhub.publishing import NotWitnessed, Publisher
from erxhub.queries.proofs import cosigned
from erxhub.rpc.meter import RpcMeter
from erxhub.rpc.methods import METHODS
from erxhub.rpc.server import PUBLISHING_HEALTH
from erxhub.v1 import common_pb2
from erxhub.witnessing import PolicyUnusable, PublishingHalted, check_policy
from tests.chain import Chain
from tests.live import START_MS, live_hub
from tests.witness.publishing import CONFIG, KEYS, SIGNER, never, opened
from tests.witness.town import Town, town_of


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START_MS)


@pytest.fixture
async def town(clock: ManualClock) -> AsyncIterator[Town]:
    async with town_of(SIGNER.key, clock) as town:
        yield town


async def test_a_quorum_makes_a_checkpoint_witnessed_and_its_lines_are_stored(town: Town) -> None:
    hub = await opened(MemoryStore(), town)
    position = await hub.write()
    waiting = asyncio.create_task(hub.publisher.witnessed(position))
    made = await hub.publisher.covering(position)
    assert not hub.witnessing.newest
    with pytest.raises(ProofInvalid):
        town.policy.check(cosigned(made))
    await hub.witnessing.show_all()
    found = await waiting
    assert (found.no, found.note) == (made.no, made.note)
    assert town.policy.check(cosigned(found)).witnesses == ("W0", "W1")
    assert await hub.store.checkpoint() == found == hub.witnessing.newest
    assert await hub.publisher.witnessed(position) == found
    assert await hub.store.witness_sizes() == {"witness.test/0": made.size, "witness.test/1": made.size}


async def test_a_hub_without_witnesses_says_so() -> None:
    publisher = Publisher(MemoryStore(), KEYS.log, clock=ManualClock(0), config=CONFIG, pause=never)
    with pytest.raises(NotWitnessed):
        await publisher.witnessed(1)


async def test_with_the_witnesses_away_publishing_goes_on_and_an_alarm_comes_after_the_merge_delay(
    town: Town, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    hub = await opened(MemoryStore(), town)
    await town.go(1)
    for _ in range(3):
        made = await hub.publish()
        await hub.witnessing.show_all()
        assert await hub.store.checkpoint() == hub.publisher.newest or made.no
    assert hub.witnessing.newest is None
    assert hub.witnessing.is_behind
    clock.advance(CONFIG.max_merge_delay_ms)
    assert hub.witnessing.overdue_ms == 0
    clock.advance(2)
    for _ in range(2):
        hub.witnessing.wake()
    assert hub.witnessing.overdue_ms == 2
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1
    assert "WITNESSES_MISSING" in caplog.text
    assert hub.witnessing.failures == {"W1": 3, "W2": 3}
    await town.come(1)
    await hub.witnessing.show_all()
    assert hub.witnessing.newest is not None
    assert hub.witnessing.newest.no == made.no
    assert (hub.witnessing.overdue_ms, hub.witnessing.is_behind) == (0, False)
    assert [len(notes) for notes in town.notes] == [4, 1, 0]


async def test_only_the_newest_is_shown_unless_somebody_waits_for_an_earlier_one(town: Town) -> None:
    hub = await opened(MemoryStore(), town)
    made = [await hub.publish() for _ in range(3)]
    wanted = asyncio.create_task(hub.witnessing.cosigned(made[1]))
    await asyncio.sleep(0)
    await hub.witnessing.show_all()
    assert town.notes[0] == town.notes[1] == [made[1].note, made[2].note]
    found = await wanted
    assert found is not None
    assert town.policy.check(cosigned(found)).said.size == made[1].size
    # The first was never shown, and witnesses do not go back.
    assert await hub.witnessing.cosigned(made[0]) is None
    assert await hub.witnessing.cosigned(made[1]) == found


async def test_whoever_waits_gets_the_checkpoint_unwitnessed_when_no_quorum_answers(town: Town) -> None:
    await town.go(0, 1)
    hub = await opened(MemoryStore(), town)
    made = await hub.publish()
    waiting = asyncio.create_task(hub.witnessing.cosigned(made))
    await asyncio.sleep(0)
    await hub.witnessing.show_all()
    assert await waiting == made


async def test_a_hub_that_starts_again_shows_the_same_note(town: Town) -> None:
    store = MemoryStore()
    hub = await opened(store, town)
    await hub.publish()
    await hub.witnessing.show_all()
    await town.go(1)
    made = await hub.publish()
    await hub.witnessing.show_all()
    await town.come(1)
    again = await opened(store, town)
    assert again.witnessing.newest is not None
    assert again.witnessing.newest.no == made.no - 1
    await again.publisher.publish_all()
    await again.witnessing.show_all()
    assert again.witnessing.newest.no == made.no
    assert town.notes[0][1:] == [made.note, made.note]
    assert town.notes[1][1:] == [made.note]


async def test_several_hubs_of_one_ledger_are_no_alarm_to_one_another(town: Town) -> None:
    store = MemoryStore()
    first, second = await opened(store, town), await opened(store, town)
    early = await first.publish()
    second.last = first.last
    await second.publish()
    await second.witnessing.show_all()
    await first.witnessing.show_all()  # shows the smaller one after the larger one
    assert first.witnessing.halted is None
    assert first.witnessing.newest is None
    await first.publisher.publish_all()
    await first.witnessing.show_all()
    assert first.witnessing.newest is not None
    assert first.witnessing.newest.no == early.no + 1
    assert town.notes[0].count(first.witnessing.newest.note or "") == 1  # it was cosigned already


async def test_a_witness_that_knows_more_ends_publishing_and_leaves_evidence(town: Town, tmp_path: Path) -> None:
    hub = await opened(MemoryStore(), town)
    for _ in range(2):
        theirs = await hub.publish()
    await hub.witnessing.show_all()
    older = await opened(MemoryStore(), town, tmp_path)
    halts: list[str] = []
    older.witnessing.on_halt = lambda: halts.append("halted")
    ours = await older.publish()
    await older.witnessing.show_all()
    assert older.witnessing.halted is not None
    assert older.witnessing.halted.startswith("ROLLBACK_SUSPECTED: witness.test/0 has cosigned size")
    assert halts == ["halted"]
    kept = [kept for kept in HighWater(tmp_path / "mark.json").evidence() if kept.code == "ROLLBACK_SUSPECTED"]
    assert [one.name[-7:] for one in kept] == ["-0.json", "-1.json"]
    evidence = json.loads((tmp_path / kept[0].name).read_text("utf-8"))
    assert evidence["ours"]["note"] == ours.note
    assert evidence["theirs"].startswith(theirs.note)
    position = await older.write()  # commands go on
    for attempt in (older.publisher.covering(position), older.publisher.publish_all(), older.publisher.witnessed(1)):
        with pytest.raises(PublishingHalted):
            await attempt
    assert (await older.store.checkpoint()) == ours
    assert not older.witnessing.newest


async def test_two_histories_end_publishing_beside_a_quorum(town: Town, tmp_path: Path) -> None:
    one = await opened(MemoryStore(), town)
    await town.go(0)
    await town.come(2)
    theirs = await one.publish()
    await one.witnessing.show_all()
    await town.go(2)
    await town.come(0)
    other = await opened(MemoryStore(), town, tmp_path, "b")
    ours = await other.publish()
    await other.witnessing.show_all()
    assert other.witnessing.halted is not None
    assert other.witnessing.halted.startswith("FORK_SUSPECTED: witness.test/1")
    assert other.witnessing.newest is None
    (kept,) = HighWater(tmp_path / "mark.json").evidence()
    assert kept.code == "FORK_SUSPECTED"
    evidence = json.loads((tmp_path / kept.name).read_text("utf-8"))
    assert evidence["ours"]["note"] == ours.note
    assert evidence["theirs"].startswith(theirs.note)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("witness A {0}\nquorum A\n", "have no URL"),
        ("witness A {0} ftp://a.test\nquorum A\n", "no URL of a witness"),
        ("witness A {0} http://a.test\nwitness B {1} http://b.test\nquorum A\n", "one name"),
        ("witness \xff {0} http://a.test\nquorum \xff\n", "no UTF-8"),
    ],
)
def test_a_policy_that_no_hub_can_meet_is_said_at_once(text: str, words: str) -> None:
    keys = [NoteKey("witness.test/0", 4, bytes([n]) * 32) for n in (1, 2)]
    policy = read_policy(text.format(*(key.vkey for key in keys)).encode("latin-1"))
    with pytest.raises(PolicyUnusable, match=words):
        check_policy(policy)


# --- a whole hub -----------------------------------------------------------------------------------


async def test_a_bundle_of_a_hub_is_witnessed_and_says_so_when_it_is_not(town: Town) -> None:
    config = Config(origin=CONFIG.origin, drain_ms=200, drain_quiet_ms=0, witness_timeout_ms=2_000)
    town.clock = ManualClock(START_MS)
    async with live_hub(config=config, hub_keys=KEYS, witnesses=town.policy) as live:
        chain = Chain(live)
        await chain.uploaded()
        auditor = await live.auditor()
        bundle = (await auditor.export_bundle(rx_no=chain.rx_no)).bundle
        trust = Trust((), town.policy, live.trust.ca_pem)
        verdict = verify_bundle(bundle.encode(), trust)
        assert verdict.holds, verdict.faults
        assert verdict.checkpoint is not None
        assert verdict.checkpoint.witnesses == ("W0", "W1")
        assert live.hub.core.publisher.witnessing is not None
        operations = Operations(live.hub, RpcMeter(METHODS), hub_id="hub-1")
        metrics = await operations.metrics()
        assert "erxhub_witness_halted 0" in metrics
        assert 'erxhub_witness_failures_total{witness="W2"}' in metrics
        assert (await operations.status())["witnessed"]["publishing_halted"] is None
        await town.go(0, 1)
        await chain.held()
        bundle = (await auditor.export_bundle(rx_no=chain.rx_no)).bundle
        assert "\npolicy unwitnessed\n" in bundle
        assert {fault.reason for fault in verify_bundle(bundle.encode(), trust).faults} == {"QUORUM"}
        log_key = NoteKey(CONFIG.origin, ED25519, KEYS.log.public_key)
        assert verify_bundle(bundle.encode(), Trust((log_key,), None, live.trust.ca_pem)).holds


async def test_a_reply_that_waits_for_the_witnesses_comes_when_a_quorum_has_cosigned(town: Town) -> None:
    config = replace(CONFIG, checkpoint_interval_ms=20)
    async with live_hub(config=config, hub_keys=KEYS, witnesses=town.policy) as live:
        chain, agency = await Chain(live).uploaded(), await live.agency()
        heard: list[str] = []
        agency.connection.on_reached = lambda request, reached: heard.append(reached)
        call = {"rx_no": chain.rx_no, "wait_for": common_pb2.WAIT_FOR_WITNESSED}
        reply = await agency.freeze_prescription(case_no="CASE-1", **call)
        last = reply.receipt.entries[-1]
        (entry,) = await live.hub.store.entries(last.stream_key, last.version - 1, 1)
        witnessing = live.hub.core.publisher.witnessing
        assert witnessing is not None
        assert witnessing.newest is not None
        assert witnessing.newest.covered_position >= entry.position
        await town.go(1)
        await agency.unfreeze_prescription(case_no="CASE-1", timeout_s=1.0, **call)
        assert heard == ["WITNESSED", "INTEGRATED"]


async def test_health_says_that_publishing_has_ended_while_calls_are_taken(town: Town) -> None:
    other = await opened(MemoryStore(), town)
    await other.publish()
    await other.witnessing.show_all()
    await town.go(0, 1)
    async with live_hub(config=CONFIG, hub_keys=KEYS, witnesses=town.policy) as live:
        hub, chain = live.hub, Chain(live)
        await chain.uploaded()
        witnessing = hub.core.publisher.witnessing
        assert witnessing is not None
        await town.come(0, 1)
        while witnessing.halted is None:
            witnessing.wake()
            await hub.engine.turned.wait()
        await chain.held()  # commands go on
        health = hub.server._health
        told = {
            name: (await health.Check(health_pb2.HealthCheckRequest(service=name), None)).status
            for name in ("", PUBLISHING_HEALTH)
        }
        assert told == {"": 1, PUBLISHING_HEALTH: 2}
