"""Calls wait for each other before they are admitted: only where many are, never many of them, and not for long."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from erxhub.accesses import ReadNote
from erxhub.config import Config
from erxhub.ports import give_way
from erxhub.rpc.together import CALLS, Together
from tests.queries.hub import Hub

MANY = 16


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub(Config(batch_linger_ms=3_600_000))
    yield hub
    hub.close()


class _Door:
    """Who went in, in order. Nothing opens it by the clock before the test is over."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, wanted: int) -> None:
        monkeypatch.setattr("erxhub.rpc.together.WAIT_MS", 3_600_000)
        self.together = Together(lambda coming: coming < wanted)
        self.entered: list[int] = []

    async def enter(self, number: int) -> None:
        await self.together.enter()
        self.entered.append(number)

    async def come(self, *numbers: int) -> list[asyncio.Task[None]]:
        """Callers, one after another, each as far as it gets."""
        tasks = []
        for number in numbers:
            tasks.append(asyncio.create_task(self.enter(number)))
            await give_way()
        await give_way()
        return tasks


async def test_where_nobody_else_is_awaited_a_call_goes_in_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    door = _Door(monkeypatch, wanted=1)
    await door.come(1, 2)
    assert door.entered == [1, 2]


async def test_calls_go_in_when_enough_have_come_and_the_next_wait_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    door = _Door(monkeypatch, wanted=1_000)
    *others, last = range(CALLS)
    await door.come(*others)
    assert door.entered == []
    await door.come(last)
    assert sorted(door.entered) == list(range(CALLS))
    assert [number for number in door.entered if number != last] == others
    (waiting,) = await door.come(CALLS)
    assert CALLS not in door.entered
    waiting.cancel()


async def test_calls_go_in_when_the_lane_has_all_that_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    door = _Door(monkeypatch, wanted=3)
    await door.come(1, 2)
    assert door.entered == []
    await door.come(3)
    assert sorted(door.entered) == [1, 2, 3]


async def test_a_caller_who_goes_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    door = _Door(monkeypatch, wanted=3)
    (gone, _) = await door.come(1, 2)
    gone.cancel()
    await door.come(3)
    assert sorted(door.entered) == [2, 3]


async def test_who_waits_for_others_that_do_not_come_goes_in_by_the_clock() -> None:
    together = Together(lambda _: True)
    await asyncio.wait_for(asyncio.gather(together.enter(), together.enter()), 30)


async def _notes(hub: Hub, count: int) -> None:
    await asyncio.gather(
        *(
            hub.engine.note(ReadNote("hospital/H33010099901", "hospital", "Test/Read", f"test-read-{n:06d}", ()))
            for n in range(count)
        )
    )


def test_the_lane_awaits_more_while_many_are_here(hub: Hub) -> None:
    assert not hub.engine.awaits_more(1)
    hub.run(_notes(hub, MANY - 1))
    assert not hub.engine.awaits_more(1)
    hub.run(_notes(hub, MANY))
    assert hub.engine.awaits_more(1)


def test_the_lane_awaits_nobody_who_would_make_its_batch_whole(hub: Hub) -> None:
    hub.run(_notes(hub, MANY))

    async def some() -> None:
        waiting = [asyncio.create_task(_notes(hub, 1)) for _ in range(MANY - 3)]
        for _ in range(5):
            await give_way()
        assert hub.engine.awaits_more(2)
        assert not hub.engine.awaits_more(3)
        await _notes(hub, 3)
        await asyncio.gather(*waiting)

    hub.run(some())
