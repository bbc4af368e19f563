"""Time moves only when told, forward only, and writes every deadline at its own instant."""

from dataclasses import replace

import grpc
import pytest

from erxhub.client import Refusal
from erxhub.core.keys import prescription_key
from erxhub.ports import ManualClock
from erxhub.testing.sandbox import default_config
from erxhub.v1 import sandbox_pb2
from tests.sandbox.ground import RUNNING, STANDING, START_MS, Box, opened

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


async def test_a_standing_clock_stands(box: Box) -> None:
    place = await box.new("one")
    await place.chain().uploaded()
    assert place.clock.now_ms() == START_MS


async def test_a_running_clock_goes_with_the_machine_from_where_it_was_set() -> None:
    machine = ManualClock(START_MS)
    async with opened(machine=machine) as box:
        await box.operator.create_namespace("one", clock_mode=RUNNING, start_at_ms=START_MS + DAY_MS)
        machine.advance(5_000)
        assert (await box.operator.get_namespace(namespace="one")).now_ms == START_MS + DAY_MS + 5_000
        moved = await box.operator.advance_clock(by_ms=HOUR_MS, namespace="one")
        machine.advance(1_000)
        assert moved.now_ms == START_MS + DAY_MS + 5_000 + HOUR_MS
        assert (await box.operator.get_namespace(namespace="one")).now_ms == moved.now_ms + 1_000
        # The default namespace's clock is the machine's, and nobody moved it.
        assert (await box.operator.get_namespace()).now_ms == machine.now_ms()


async def test_advancing_writes_every_deadline_at_its_own_instant_and_in_order(box: Box) -> None:
    place = await box.new("one")
    chain = await place.chain().held()
    moved = await box.operator.advance_clock(by_ms=4 * DAY_MS, namespace="one")
    assert moved.now_ms == place.clock.now_ms() == START_MS + 4 * DAY_MS
    fired = [(timer.event, timer.rx_no) for timer in moved.fired if timer.stream_kind == "prescription"]
    assert fired.index(("order.expired", chain.rx_no)) < fired.index(("prescription.expired", chain.rx_no))
    assert [timer.position for timer in moved.fired] == sorted(timer.position for timer in moved.fired)
    instants = [timer.recorded_at_ms for timer in moved.fired]
    assert instants == sorted(instants)
    ended = {timer.event: timer.recorded_at_ms for timer in moved.fired}
    assert ended["prescription.expired"] == chain.prescription.valid_until_ms + 1
    assert ended["order.expired"] < ended["prescription.expired"]


async def test_the_next_timer_is_the_earliest_deadline_and_no_other(box: Box) -> None:
    place = await box.new("one")
    chain = await place.chain().held()
    seen = []
    while not any(timer.event == "prescription.expired" for timer in seen):
        moved = await box.operator.advance_clock(next_timer=True, namespace="one")
        assert {timer.recorded_at_ms for timer in moved.fired} == {moved.now_ms}
        seen += moved.fired
    assert place.clock.now_ms() == chain.prescription.valid_until_ms + 1


async def test_where_no_deadline_is_set_the_clock_stays(box: Box) -> None:
    await box.operator.create_namespace("one", start_at_ms=START_MS)
    # Agreements end after years; after the last of them nothing waits any more.
    await box.operator.advance_clock(by_ms=10 * 365 * DAY_MS, namespace="one")
    before = (await box.operator.get_namespace(namespace="one")).now_ms
    moved = await box.operator.advance_clock(next_timer=True, namespace="one")
    assert (moved.now_ms, list(moved.fired)) == (before, [])


async def test_advancing_by_nothing_writes_nothing(box: Box) -> None:
    await box.new("one")
    before = await box.ledger("one")
    moved = await box.operator.advance_clock(by_ms=0, namespace="one")
    assert (moved.now_ms, list(moved.fired)) == (START_MS, [])
    assert await box.ledger("one") == before


async def test_a_clock_never_goes_back(box: Box) -> None:
    await box.new("one")
    with pytest.raises(Refusal) as refused:
        await box.operator.advance_clock(until_ms=START_MS - 1, namespace="one")
    assert (refused.value.code, refused.value.grpc_status) == (
        "SBX_CLOCK_BACK",
        grpc.StatusCode.INVALID_ARGUMENT.name,
    )
    moved = await box.operator.advance_clock(until_ms=START_MS, namespace="one")
    assert moved.now_ms == START_MS


async def test_clocks_of_two_namespaces_are_apart(box: Box) -> None:
    here, there = await box.new("here"), await box.new("there")
    await box.operator.advance_clock(by_ms=DAY_MS, namespace="here")
    assert (here.clock.now_ms(), there.clock.now_ms()) == (START_MS + DAY_MS, START_MS)


@pytest.mark.parametrize("clock_mode", [STANDING, RUNNING])
@pytest.mark.parametrize("switched_on", [True, False])
async def test_past_its_retention_content_is_erased_where_that_is_switched_on(
    switched_on: bool, clock_mode: sandbox_pb2.ClockMode.ValueType
) -> None:
    config = replace(default_config(), erases_after_retention=switched_on, sweep_interval_ms=HOUR_MS)
    async with opened(machine=ManualClock(START_MS), config=config) as box:
        place = await box.new("one", clock_mode=clock_mode)
        chain = await place.chain().uploaded()
        key = prescription_key(chain.rx_no)

        async def gone() -> list[bool]:
            return [entry.payload is None for entry in await box.namespace("one").store.entries(key, 0, 100)]

        await box.operator.advance_clock(by_ms=366 * DAY_MS, namespace="one")
        assert not any(await gone())
        moved = await box.operator.advance_clock(by_ms=4 * DAY_MS, namespace="one")
        told = [timer for timer in moved.fired if timer.event == "content.erased"]
        if not switched_on:
            assert (told, any(await gone())) == ([], False)
            return
        assert await gone() == [True] * (len(await gone()) - 1) + [False]
        assert {timer.stream_kind for timer in told} == {"prescription", "encounter", "voucher"}
        assert [timer.rx_no for timer in told if timer.stream_kind == "prescription"] == [chain.rx_no]
        assert {timer.recorded_at_ms for timer in told} == {moved.now_ms}
