"""The lane's batches: who came together a moment ago shares a commit, and who is alone does not wait."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from erxhub.accesses import ReadNote
from erxhub.config import Config
from erxhub.ports import give_way
from tests.queries.hub import Hub

CALLERS = 8


@pytest.fixture
def hub() -> Iterator[Hub]:
    # By the clock nothing would ever be sent: what is committed here is committed because enough have come.
    hub = Hub(Config(batch_linger_ms=3_600_000))
    yield hub
    hub.close()


async def _read(hub: Hub, number: int, turns: int) -> None:
    for _ in range(turns):
        await give_way()
    note = ReadNote("hospital/H33010099901", "hospital", "Test/Read", f"test-read-{number:06d}", ())
    await hub.engine.note(note)


async def _together(hub: Hub, count: int, *, turns_apart: int) -> int:
    """How many commits it took."""
    before = hub.engine.counters.batches
    await asyncio.gather(*(_read(hub, number, number * turns_apart) for number in range(count)))
    return hub.engine.counters.batches - before


def test_callers_who_come_back_one_after_another_share_one_commit(hub: Hub) -> None:
    assert hub.run(_together(hub, CALLERS, turns_apart=0)) == 1
    assert hub.run(_together(hub, CALLERS, turns_apart=3)) == 1


def test_a_caller_who_is_alone_does_not_wait(hub: Hub) -> None:
    for _ in range(3):
        assert hub.run(_together(hub, 1, turns_apart=0)) == 1


def test_a_stopping_lane_waits_for_nobody(hub: Hub) -> None:
    hub.run(_together(hub, CALLERS, turns_apart=0))

    async def last() -> None:
        waiting = asyncio.ensure_future(_read(hub, 99, 0))
        await give_way()
        await hub.engine.stop()
        await waiting

    hub.run(last())


def test_callers_who_stay_away_are_waited_for_once() -> None:
    hub = Hub(Config(batch_linger_ms=1))
    try:
        hub.run(_together(hub, CALLERS, turns_apart=0))
        assert hub.run(_together(hub, 1, turns_apart=0)) == 1
    finally:
        hub.close()
