"""Watches across restarts of the hub: nothing is missed and nothing is told twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from erxhub.client import Connection, HospitalClient, PharmacyClient, RetryPolicy
from erxhub.client.environment import SystemEnvironment
from erxhub.core import index
from erxhub.ledger.sqlite import open_sqlite
from tests.chain import Chain
from tests.live import HOSPITAL, PHARMACY, Live, live_hub
from tests.races.ground import until_so

pytestmark = pytest.mark.campaign

Rounds = Callable[[int, int], int]


class _Patient(SystemEnvironment):
    """Comes back when the hub is back, however long that takes."""

    def __init__(self) -> None:
        self.back = asyncio.Event()
        self.back.set()

    async def sleep_ms(self, duration_ms: int) -> None:
        await self.back.wait()
        await asyncio.sleep(0)


async def _watching(live: Live, kind: Any, role: str, peer_id: str, environment: _Patient) -> Any:
    connection = Connection(
        live.target,
        live.identity(role, peer_id),
        environment=environment,
        retry=RetryPolicy(attempts=1, backoff_ms=10, backoff_max_ms=20, stream_resumes=100),
    )
    await live.stack.enter_async_context(connection)
    return kind(connection)


async def _feed(live: Live, code: str) -> list[tuple[bytes, int]]:
    """What the ledger lists for an institution: (stream, version)."""
    rows = await live.hub.store.listing(index.FEED, code.encode(), 0, 100_000)
    return [(row.stream_key, row.version) for row in rows]


async def test_watches_resume_across_restarts_with_nothing_missed_or_twice(tmp_path: Path, rounds: Rounds) -> None:
    chance = random.Random(9)
    path = tmp_path / "ledger.db"
    async with live_hub(database=path) as live:
        environment = _Patient()
        told: dict[str, list[Any]] = {HOSPITAL: [], PHARMACY: []}
        watchers = []
        for kind, role, code in ((HospitalClient, "hospital", HOSPITAL), (PharmacyClient, "pharmacy", PHARMACY)):
            client = await _watching(live, kind, role, code, environment)

            async def follow(client: Any, code: str) -> None:
                async for message in client.watch(from_start=True):
                    told[code].append(message)

            watchers.append(asyncio.create_task(follow(client, code)))

        async def reopened() -> Any:
            return await open_sqlite(path)

        for _ in range(rounds(4, 30)):
            for _ in range(chance.randrange(1, 4)):
                await Chain(live).settled()
            if chance.randrange(2):
                # Somewhere in the middle of what is told.
                wanted = len(told[HOSPITAL]) + chance.randrange(5)
                for _ in range(200):
                    if len(told[HOSPITAL]) >= wanted:
                        break
                    await asyncio.sleep(0)
            environment.back.clear()
            await live.restart(reopened)
            environment.back.set()
        last = await Chain(live).settled()
        for code, messages in told.items():
            expected = await _feed(live, code)
            goal = len(expected)
            await until_so(lambda told=messages, goal=goal: len(told) >= goal)
            assert messages[-1].rx_no == last.rx_no
            assert len(messages) == len(expected)
            places = [(message.rx_no, message.version) for message in messages]
            assert len(set(places)) == len(places)
            versions = [version for _, version in expected]
            assert [message.version for message in messages] == versions
        for task in watchers:
            assert not task.done(), task
            task.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
