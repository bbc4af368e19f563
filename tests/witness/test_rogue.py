"""A witness that lies: it must not end publishing, and what our own log key has signed must, whoever shows it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from erxhub.client import Refusal
from erxhub.core.model import Caller, Refused
from erxhub.high_water import HighWater
from erxhub.ledger.memory import MemoryStore
from erxhub.operating import Operations
from erxhub.ports import ManualClock
from erxhub.proof.checkpoints import write_checkpoint
from erxhub.proof.notes import Cosigner, LogSigner
from erxhub.queries.proofs import QUERIES
from erxhub.rpc.meter import RpcMeter
from erxhub.rpc.methods import METHODS
from erxhub.starting import LedgerRefused, prove_start
from erxhub.v1 import audit_pb2
from erxhub.witness.server import WitnessServer
from erxhub.witness.witness import Answer, Witness
from erxhub.witnessing import PublishingHalted
from tests.chain import Chain
from tests.live import START_MS, live_hub
from tests.witness.ground import MemoryRecords, key_of
from tests.witness.publishing import CONFIG, KEYS, SIGNER, Hub, opened
from tests.witness.town import Town

TOO_LARGE = Answer(409, "text/x.tlog.size", b"999999999\n")
CONFLICT = Answer(422, "text/plain", b"CONSISTENCY: no\n")
NOTHING = Answer(404, "text/plain", b"")


def shows(note: str) -> Answer:
    return Answer(200, "text/plain", note.encode())


FORGED = shows(LogSigner(CONFIG.origin, key_of("rogue")).note(write_checkpoint(CONFIG.origin, 999_999_999, bytes(32))))


class Rogue(Witness):
    """Answers every request for a cosignature in one way, and shows what it likes."""

    def __init__(self, cosigner: Cosigner, clock: ManualClock) -> None:
        super().__init__(cosigner, [SIGNER.key], MemoryRecords(), clock)
        self.answer = TOO_LARGE
        self.shown = NOTHING
        self.asked = 0
        self.is_honest = False

    async def add_checkpoint(self, body: bytes) -> Answer:
        self.asked += 1
        return await super().add_checkpoint(body) if self.is_honest else self.answer

    async def newest(self, hashed_origin: str) -> Answer:
        return await super().newest(hashed_origin) if self.is_honest else self.shown


class RogueTown(Town):
    """One of two is enough: W0 is honest, and W1 is the rogue."""

    rogue: Rogue

    @property
    def text(self) -> bytes:
        lines = [
            f"witness W{n} {one.key.vkey} http://127.0.0.1:{self.ports[n]}\n" for n, one in enumerate(self.cosigners)
        ]
        return "".join([f"log {SIGNER.key.vkey}\n", *lines[:2], "group q 1 W0 W1\nquorum q\n"]).encode()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START_MS)


@pytest.fixture
async def town(clock: ManualClock) -> AsyncIterator[RogueTown]:
    town = RogueTown(SIGNER.key, clock)
    town.rogue = Rogue(town.cosigners[1], clock)
    await town.come(0)
    town.servers[1] = WitnessServer(town.rogue)
    town.ports[1] = await town.servers[1].start("127.0.0.1", 0)
    try:
        yield town
    finally:
        await town.go(*town.servers)


def claims(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("claim-*"))


@pytest.mark.parametrize("answer", [TOO_LARGE, CONFLICT])
@pytest.mark.parametrize("shown", [NOTHING, FORGED, Answer(503, "text/plain", b"")])
async def test_one_rogue_witness_does_not_stop_publishing(
    town: RogueTown, tmp_path: Path, caplog: pytest.LogCaptureFixture, answer: Answer, shown: Answer
) -> None:
    town.rogue.answer, town.rogue.shown = answer, shown
    hub = await opened(MemoryStore(), town, tmp_path)
    for _ in range(3):
        made = await hub.publish()
        await hub.witnessing.show_all()
        assert hub.witnessing.newest is not None
        assert hub.witnessing.newest.no == made.no
    assert hub.witnessing.halted is None
    assert town.rogue.asked == 1
    assert hub.witnessing.unproven == {"W1": 1}
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1
    assert "WITNESS_UNPROVEN: witness.test/1" in caplog.text
    assert HighWater(tmp_path / "mark.json").evidence() == []
    assert claims(tmp_path) == [f"claim-witness.test-1-{answer.status}.json"]
    said = json.loads((tmp_path / claims(tmp_path)[0]).read_text("utf-8"))
    assert said["witness"] == "W1"
    assert said["claim"].startswith(f"{answer.status} {answer.body.decode().strip()}")
    assert (shown is FORGED) == ("\n999999999\n" in said["claim"])


async def test_a_rogue_is_asked_again_ever_more_rarely_until_it_has_been_honest_for_an_hour(
    town: RogueTown, clock: ManualClock, tmp_path: Path
) -> None:
    hub = await opened(MemoryStore(), town, tmp_path)

    async def asked_after(ms: int) -> int:
        before = town.rogue.asked
        clock.advance(ms)
        await hub.publish()
        await hub.witnessing.show_all()
        return town.rogue.asked - before

    assert [await asked_after(ms) for ms in (0, 9_999, 1, 19_999, 1, 39_999, 1)] == [1, 0, 1, 0, 1, 0, 1]
    for wait_s in (80, 160, 320, 640, 1_280, 2_560, 3_600, 3_600):
        assert [await asked_after(ms) for ms in (wait_s * 1_000 - 1, 1)] == [0, 1]
    assert hub.witnessing.unproven == {"W1": 12}
    assert len(claims(tmp_path)) == 1
    town.rogue.is_honest = True
    assert [await asked_after(ms) for ms in (3_600_000, 0, 3_599_999)] == [1, 1, 1]
    town.rogue.is_honest = False
    assert [await asked_after(ms) for ms in (0, 3_599_999, 1)] == [1, 0, 1]
    town.rogue.is_honest = True
    assert [await asked_after(ms) for ms in (3_600_000, 3_600_000)] == [1, 1]
    town.rogue.is_honest = False
    assert [await asked_after(ms) for ms in (0, 9_999, 1)] == [1, 0, 1]


async def test_a_claim_that_cannot_be_kept_holds_nothing_up(town: RogueTown, tmp_path: Path) -> None:
    hub = await opened(MemoryStore(), town, tmp_path)
    hub.witnessing._high_water = HighWater(tmp_path / "absent" / "mark.json")
    made = await hub.publish()
    await hub.witnessing.show_all()
    assert hub.witnessing.newest is not None
    assert hub.witnessing.newest.no == made.no


@pytest.mark.parametrize("is_shown", [True, False])
async def test_a_witness_that_another_hub_of_this_ledger_asked_earlier_is_no_alarm(
    town: RogueTown, is_shown: bool
) -> None:
    """Also when it shows the note later than it cosigns it."""
    store = MemoryStore()
    first, second = await opened(store, town), await opened(store, town)
    await first.publish()
    second.last = first.last
    made = await second.publish()
    town.rogue.answer = TOO_LARGE._replace(body=b"%d\n" % made.size)
    if is_shown:
        town.rogue.shown = shows(made.note or "")
    await first.witnessing.show_all()
    assert first.witnessing.halted is None
    assert (first.witnessing.failures, first.witnessing.unproven) == ({"W1": 1}, {})


async def _other_history(town: RogueTown, entries: int) -> str:
    """The note of a hub with our log key over a ledger of its own."""
    other = Hub(MemoryStore(), town, name="b")
    other.publisher.witnessing = None
    for _ in range(entries):
        made = await other.publish()
    assert made.note is not None
    return made.note


@pytest.mark.parametrize("answer", [TOO_LARGE, CONFLICT])
@pytest.mark.parametrize(("entries", "code"), [(1, "FORK_SUSPECTED"), (2, "FORK_SUSPECTED"), (3, "ROLLBACK_SUSPECTED")])
async def test_what_our_own_key_has_signed_ends_publishing_even_when_a_rogue_shows_it(
    town: RogueTown, tmp_path: Path, answer: Answer, entries: int, code: str
) -> None:
    town.rogue.answer, town.rogue.shown = answer, shows(await _other_history(town, entries))
    hub = await opened(MemoryStore(), town, tmp_path)
    await hub.publish()
    await hub.publish()
    await hub.witnessing.show_all()
    assert hub.witnessing.halted is not None
    assert hub.witnessing.halted.startswith(code)
    (kept,) = HighWater(tmp_path / "mark.json").evidence()
    assert json.loads((tmp_path / kept.name).read_text("utf-8"))["theirs"] == town.rogue.shown.body.decode()
    with pytest.raises(PublishingHalted) as halted:
        await hub.publish()
    assert halted.value.is_for_good


async def test_publishing_ends_also_where_the_evidence_cannot_be_kept(
    town: RogueTown, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    town.rogue.shown = shows(await _other_history(town, 3))
    hub = await opened(MemoryStore(), town, tmp_path)
    await hub.publish()
    hub.witnessing._high_water = HighWater(tmp_path / "absent" / "mark.json")
    await hub.witnessing.show_all()
    assert hub.witnessing.halted is not None
    assert town.rogue.shown.body.decode().split("\n")[2] in caplog.text  # the log has it then
    assert caplog.records[-1].levelno == logging.CRITICAL


async def test_the_proof_of_a_claim_may_come_later(town: RogueTown, clock: ManualClock) -> None:
    """What a witness shows may lag behind what it has cosigned."""
    hub = await opened(MemoryStore(), town)
    await hub.publish()
    await hub.witnessing.show_all()
    assert hub.witnessing.halted is None
    town.rogue.shown = shows(await _other_history(town, 4))
    clock.advance(10_000)
    await hub.publish()
    await hub.witnessing.show_all()
    assert hub.witnessing.halted is not None


# --- the start -------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_mark", [True, False])
async def test_a_start_beside_a_rogue_publishes(
    town: RogueTown, tmp_path: Path, caplog: pytest.LogCaptureFixture, has_mark: bool
) -> None:
    store = MemoryStore()
    hub = await opened(store, town, tmp_path)
    await hub.publish()
    town.rogue.shown = FORGED
    water = HighWater(tmp_path / "mark.json") if has_mark else None
    again = Hub(store, town, tmp_path)
    again.last = hub.last
    caplog.clear()
    await prove_start(store, KEYS.log, CONFIG, water, again.witnessing)
    assert "WITNESS_UNPROVEN: witness.test/1 shows a checkpoint that our log never signed" in caplog.text
    assert claims(tmp_path) == ["claim-witness.test-1-shown.json"]
    await again.witnessing.open()
    made = await again.publish()
    await again.witnessing.show_all()
    assert again.witnessing.newest is not None
    assert again.witnessing.newest.no == made.no


async def test_a_start_refuses_a_larger_log_that_our_own_key_has_signed(town: RogueTown, tmp_path: Path) -> None:
    store = MemoryStore()
    hub = await opened(store, town, tmp_path)
    await hub.publish()
    town.rogue.shown = shows(await _other_history(town, 3))
    with pytest.raises(LedgerRefused) as refused:
        await prove_start(store, KEYS.log, CONFIG, HighWater(tmp_path / "mark.json"), hub.witnessing)
    assert refused.value.code == "ROLLBACK_DETECTED"


async def test_a_held_start_asks_a_rogue_no_more_often(town: RogueTown, caplog: pytest.LogCaptureFixture) -> None:
    """W0 could be a quorum by itself, and is away."""
    await town.go(0)
    town.rogue.shown = FORGED
    hub = await opened(MemoryStore(), town)
    await prove_start(hub.store, KEYS.log, CONFIG, None, hub.witnessing)
    for _ in range(3):
        await hub.witnessing.show_all()
        with pytest.raises(PublishingHalted) as held:
            await hub.publish()
        assert not held.value.is_for_good
    assert caplog.text.count("WITNESS_UNPROVEN") == 1
    await town.come(0)
    await hub.witnessing.show_all()
    await hub.publish()


# --- what callers are told -------------------------------------------------------------------------


async def test_exports_say_that_publishing_has_ended_and_why(town: RogueTown) -> None:
    async with live_hub(config=CONFIG, hub_keys=KEYS, witnesses=town.policy) as live:
        auditor, chain = await live.auditor(), Chain(live)
        await chain.uploaded()
        assert (await auditor.export_bundle(rx_no=chain.rx_no)).bundle
        witnessing = live.hub.core.publisher.witnessing
        assert witnessing is not None
        metrics = await Operations(live.hub, RpcMeter(METHODS), hub_id="hub-1").metrics()
        assert 'erxhub_witness_unproven_total{witness="W1"} 1' in metrics
        witnessing.halted = "FORK_SUSPECTED: two histories"
        await chain.held()  # commands go on
        (entry,) = await live.hub.store.log(0, 1)
        for call in (
            auditor.export_bundle(rx_no=chain.rx_no),
            auditor.prove_absence(rx_no="330100" + "1" * 21),
            auditor.prove_inclusion(stream_key=entry.stream_key, version=entry.version),
        ):
            with pytest.raises(Refusal) as refused:
                await call
            assert refused.value.code == "CHAIN_BROKEN"
            assert refused.value.metadata["reason"] == "FORK_SUSPECTED: two histories"
            assert not refused.value.retriable
            assert "store" not in str(refused.value)
        await town.go(0, 1)
        witnessing.halted = None
        witnessing._is_held = True
        request = audit_pb2.ExportBundleRequest(rx_no=chain.rx_no, case_reason="CASE-1")
        caller = Caller("auditor", "auditor-1", "330100", bytes(32))
        answer = await QUERIES["AuditService/ExportBundle"](live.hub.core.reads, caller, request)
        assert isinstance(answer, Refused)
        assert answer.code == "HUB_UNAVAILABLE"
        assert answer.detail["reason"].startswith("WITNESSES_MISSING")


async def test_many_may_wait_for_one_checkpoint_and_leave_in_any_order(town: RogueTown) -> None:
    hub = await opened(MemoryStore(), town)
    position = await hub.write()
    waiting = [asyncio.create_task(hub.publisher.reached(position)) for _ in range(50)]
    waiting += [asyncio.create_task(hub.publisher.witnessed(position)) for _ in range(50)]
    await asyncio.sleep(0)
    for task in waiting[::3]:
        task.cancel()
    made = await hub.publisher.covering(position)
    await hub.witnessing.show_all()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(one.no == made.no for one in found if not isinstance(one, asyncio.CancelledError))
    assert len(hub.publisher.waiters) == len(hub.witnessing.waiters) == 0
