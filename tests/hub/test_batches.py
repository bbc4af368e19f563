"""The lane's batches: who came together a moment ago shares a commit, and who is alone does not wait.

How long others are waited for is tried on a loop whose time is a number: nothing here waits for the machine's clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from erxhub.accesses import ReadNote
from erxhub.config import Config
from erxhub.crypto.suites import Verifier
from erxhub.ports import give_way, system_pause
from tests.chain import Chain
from tests.live import live_hub
from tests.queries.hub import Hub
from tests.simulation.loop import VirtualLoop

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


def _batches(arrivals_ms: Iterable[int], *, together: int, verified_at_ms: int = 0) -> list[tuple[int, float]]:
    """After so many who came together: size and instant of the batches of those who come at these instants, in ms.

    `verified_at_ms`: until then one more command is having its signatures verified, and it never comes.
    """
    loop = VirtualLoop()
    hub = Hub(Config(batch_linger_ms=20, batch_linger_max_ms=60), loop)
    hub.run(_together(hub, together, turns_apart=0))
    begun, batches = loop.time(), []
    append = hub.store.append

    async def appended(writes: Any) -> Any:
        batches.append((len(came), round((loop.time() - begun) * 1000, 3)))
        came.clear()
        return await append(writes)

    came: list[int] = []

    async def comes(number: int, at_ms: int) -> None:
        await system_pause(at_ms)
        came.append(at_ms)
        await _read(hub, 1000 + number, 0)

    async def verify() -> None:
        hub.engine.verifying += 1
        await system_pause(verified_at_ms)
        hub.engine.verifying -= 1

    async def all_of_them() -> None:
        verifying = [verify()] if verified_at_ms else []
        await asyncio.gather(*verifying, *(comes(number, at) for number, at in enumerate(arrivals_ms)))

    hub.store.append = appended  # type: ignore[method-assign]
    hub.run(all_of_them())
    hub.close()
    return [batch for batch in batches if batch[0]]


def test_a_batch_goes_as_soon_as_all_are_back() -> None:
    assert _batches([0, 5, 10, 15], together=4) == [(4, 15)]


def test_who_stays_away_is_waited_for_for_a_while_and_a_moment() -> None:
    assert _batches([0], together=4) == [(1, 20)]
    assert _batches([0, 5], together=4) == [(2, 22)]


def test_while_others_keep_coming_the_batch_goes_on_waiting_for_all() -> None:
    assert _batches([0, *range(10, 40)], together=31) == [(31, 39)]


def test_when_nobody_comes_for_a_moment_it_waits_no_more() -> None:
    assert _batches([0, *range(10, 30)], together=64) == [(21, 32)]


def test_it_does_not_wait_longer_than_it_may() -> None:
    ((first, at_ms), *_) = _batches([0, *range(10, 100)], together=120)
    assert (first, at_ms) == (52, 60)


def test_whose_signature_is_being_verified_is_waited_for_too() -> None:
    assert _batches([0, 35], together=4, verified_at_ms=34) == [(2, 38)]
    assert _batches([0], together=4, verified_at_ms=1_000) == [(1, 60)]


@pytest.mark.interpreted
async def test_a_command_counts_as_on_its_way_exactly_while_its_signatures_are_verified(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with live_hub(suite="SM2-SM3") as live:
        engine, seen = live.hub.engine, []
        verify_all = Verifier.verify_all

        async def verified(verifier: Verifier, checks: Any) -> list[bool]:
            seen.append(engine.verifying)
            return await verify_all(verifier, checks)

        monkeypatch.setattr(Verifier, "verify_all", verified)
        await Chain(live).uploaded()
        monkeypatch.setattr(Verifier, "verify_all", _broken)
        with pytest.raises(Exception, match="INTERNAL"):
            await Chain(live).uploaded()
        assert seen
        assert set(seen) == {1}
        assert engine.verifying == 0


async def _broken(verifier: Verifier, checks: Any) -> list[bool]:
    raise RuntimeError("the verifier is broken")


def test_where_nobody_is_waited_for_a_batch_goes_at_once() -> None:
    loop = VirtualLoop()
    hub = Hub(Config(batch_linger_ms=0), loop)
    hub.run(_together(hub, CALLERS, turns_apart=0))
    hub.run(_together(hub, 1, turns_apart=0))
    assert loop.time() == 0
    hub.close()
