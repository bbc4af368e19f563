"""Snapshot, go on, restore, go on: the same ledger. And a reset is the moment of the creation."""

from pathlib import Path
from typing import Any

import grpc
import pytest

from erxhub.client import Refusal
from erxhub.ledger.verify import verify_ledger
from tests.live import HOSPITAL
from tests.sandbox.ground import STANDING, UNKNOWN_RX, Box, opened


async def test_what_follows_a_restored_snapshot_is_what_followed_the_saved_one(box: Box) -> None:
    place = await box.new("one", seed=3)
    first = await place.chain(1).uploaded()
    await box.operator.save_snapshot("before", namespace="one")
    numbers = place.request_ids.new()
    ledgers, kept = [], []
    for _ in range(2):
        place.kept.clear()
        place.request_ids.numbers = iter(range(1000, 2000))
        await place.chain(2).delivered()
        await box.operator.advance_clock(by_ms=4 * 86_400_000, namespace="one")
        ledgers.append(await box.ledger("one"))
        kept.append(list(place.kept))
        await box.operator.load_snapshot("before", namespace="one")
    assert numbers
    assert ledgers[0] == ledgers[1]
    assert kept[0] == kept[1]
    assert (await (await place.hospital()).get(rx_no=first.rx_no)).rx_no == first.rx_no


async def test_a_snapshot_holds_the_clock_and_may_be_loaded_more_than_once(box: Box) -> None:
    await box.new("one")
    saved = await box.operator.save_snapshot("a", namespace="one")
    assert saved.snapshots == ["a"]
    for _ in range(2):
        await box.operator.advance_clock(by_ms=5_000, namespace="one")
        loaded = await box.operator.load_snapshot("a", namespace="one")
        assert (loaded.now_ms, loaded.entries) == (saved.now_ms, saved.entries)


async def test_a_snapshot_of_the_same_name_takes_the_place_of_the_earlier_one(box: Box) -> None:
    place = await box.new("one")
    await box.operator.save_snapshot("a", namespace="one")
    await place.chain().uploaded()
    saved = await box.operator.save_snapshot("a", namespace="one")
    assert saved.snapshots == ["a"]
    assert (await box.operator.load_snapshot("a", namespace="one")).entries == saved.entries


async def test_a_reset_is_the_moment_of_the_creation(box: Box) -> None:
    place = await box.new("one", seed=9)
    await place.chain().uploaded()
    once = await box.ledger("one")
    await box.operator.advance_clock(by_ms=86_400_000, namespace="one")
    shown = await box.operator.reset(namespace="one")
    assert shown.now_ms == place.clock.now_ms() == shown.now_ms
    place.request_ids.numbers = iter(range(1, 1000))
    await (await place.activated()).chain().uploaded()
    assert await box.ledger("one") == once


async def test_certificates_of_before_a_reset_are_still_good(box: Box) -> None:
    place = await box.new("one")
    hospital = await place.hospital()
    await box.operator.reset(namespace="one")
    with pytest.raises(Refusal) as refused:
        await hospital.get(rx_no=UNKNOWN_RX)
    assert refused.value.code == "RX_UNKNOWN"


async def test_a_watch_ends_at_a_snapshot_and_can_be_opened_again_where_it_was(box: Box) -> None:
    place = await box.new("one")
    rx_no = (await place.chain().uploaded()).rx_no
    watch = (await place.hospital()).watch(from_start=True)
    seen = await anext(watch)
    await box.operator.save_snapshot("a", namespace="one")
    again = (await place.connect("hospital", HOSPITAL)).watch(cursor=seen.cursor)
    await (await place.agency()).freeze_prescription(rx_no=rx_no, case_no="case T-1")
    assert (await anext(again)).rx_no == rx_no
    for each in (watch, again):
        await each.aclose()


async def test_a_ledger_in_a_file_has_snapshots_and_a_reset_too(tmp_path: Path) -> None:
    database = tmp_path / "sandbox.db"
    async with opened(database=database, home=tmp_path / "home") as box:
        place = await (await box.place("default")).activated()
        founded = await box.operator.reset()
        assert founded.database == str(database)
        await place.activated()
        saved = await box.operator.save_snapshot("a")
        rx_no = (await place.chain().uploaded()).rx_no
        assert (await box.operator.load_snapshot("a")).entries == saved.entries
        with pytest.raises(Refusal) as refused:
            await (await place.hospital()).get(rx_no=rx_no)
        assert refused.value.code == "RX_UNKNOWN"
        assert (await box.operator.reset()).entries == founded.entries
        last = (await place.activated(), await place.chain(2).uploaded())[1].rx_no
        assert not (await verify_ledger(box.namespace("default").store)).findings
    async with opened(database=database, home=tmp_path / "home") as box:
        place = await box.place("default")
        assert (await (await place.hospital()).get(rx_no=last)).rx_no == last
        # The next process draws other values than the one before, although its seed is the same.
        place.request_ids.numbers = iter(range(5_000, 6_000))
        assert (await place.chain(3).uploaded()).rx_no != last


async def test_an_unknown_snapshot_is_refused(box: Box) -> None:
    with pytest.raises(Refusal) as refused:
        await box.operator.load_snapshot("nothing")
    assert (refused.value.code, refused.value.grpc_status) == (
        "SBX_SNAPSHOT_UNKNOWN",
        grpc.StatusCode.NOT_FOUND.name,
    )


async def test_a_call_after_a_load_is_no_repeat_of_the_one_that_the_load_undid(box: Box) -> None:
    place = await box.new("one")
    await box.operator.save_snapshot("a", namespace="one")
    for _ in range(2):
        place.request_ids.numbers = iter(range(1000, 1100))
        await place.chain().registered()
        await box.operator.load_snapshot("a", namespace="one")
    told = [exchange async for exchange in box.operator.traffic(method="Encounter/RegisterEncounter", namespace="one")]
    assert len({exchange.request_id for exchange in told}) == 1
    assert [(exchange.status, exchange.replayed) for exchange in told] == [("OK", False)] * 2


def _lose_copies(namespace: Any) -> None:
    """Somebody empties the folder of temporary files."""
    for image in Path(namespace._ledger._folder.name).iterdir():
        image.unlink()


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def test_a_copy_that_cannot_be_put_back_leaves_the_ledger_as_it_was(tmp_path: Path) -> None:
    database = tmp_path / "sandbox.db"
    async with opened(database=database, suite="EdDSA", default_clock=STANDING) as box:
        place = await (await box.place("default")).activated()
        await box.operator.save_snapshot("a")
        rx_no = (await place.chain().uploaded()).rx_no
        _lose_copies(box.namespace("default"))
        with pytest.raises(Refusal) as refused:
            await box.operator.load_snapshot("a")
        assert refused.value.code == "SBX_UNAVAILABLE"
        assert (await (await place.hospital()).get(rx_no=rx_no)).rx_no == rx_no
        assert _files(tmp_path) <= {"sandbox.db", "sandbox.db.lock", "sandbox.db-wal", "sandbox.db-shm"}
