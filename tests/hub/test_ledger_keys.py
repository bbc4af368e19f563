"""The HMAC keys belong to the ledger: a hub with others does not start on it, and nothing is written."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from erxhub.config import Config
from erxhub.core.events import BY_NUMBER
from erxhub.crypto.suites import SigningKey
from erxhub.engine import Engine
from erxhub.keys import ForeignKeys, HubKeys
from erxhub.ledger.entry import Header
from erxhub.ledger.sqlite import open_sqlite
from erxhub.ledger.store import Store
from erxhub.policy.pack import shipped_packs
from erxhub.ports import ManualClock, SeededIds
from tests.ledger.contract import T0_MS
from tests.postgres import PostgresServer
from tests.several.ground import new_ledger, open_store

KEYS = HubKeys.generate(SeededIds(1))
OTHERS = HubKeys.generate(SeededIds(2))
Opening = Callable[[], Awaitable[Store]]


@pytest.fixture(params=["sqlite", "postgres"])
def opening(request: pytest.FixtureRequest, tmp_path: Path) -> Opening:
    """Opens one and the same ledger, new at first."""
    if request.param == "sqlite":
        return lambda: open_sqlite(tmp_path / "ledger.db")
    server: PostgresServer = request.getfixturevalue("postgres_server")
    url = new_ledger(server)
    return lambda: open_store(url)


async def started(opening: Opening, keys: HubKeys) -> int:
    """Start a hub and end it; the ledger's last position."""
    store = await opening()
    try:
        clock, ids = ManualClock(T0_MS), SeededIds(7)
        engine = Engine(store, clock=clock, ids=ids, keys=keys, packs=shipped_packs(), config=Config())
        await engine.start()
        await engine.stop()
        return await store.last_position()
    finally:
        await store.close()


async def test_hub_with_another_ledgers_keys_does_not_start_and_writes_nothing(opening: Opening) -> None:
    before = await started(opening, KEYS)
    with pytest.raises(ForeignKeys, match="HMAC key 1 is not the key"):
        await started(opening, OTHERS)
    with pytest.raises(ForeignKeys, match="version 1, which is missing here"):
        await started(opening, replace(OTHERS, hmac_keys={2: KEYS.hmac_keys[1]}))
    assert await started(opening, KEYS) == before


async def test_second_hub_has_a_receipt_key_of_its_own_and_the_ledgers_hmac_keys(opening: Opening) -> None:
    before = await started(opening, KEYS)
    assert await started(opening, replace(KEYS, receipt=SigningKey.generate("EdDSA"))) == before + 1


async def test_key_of_a_new_version_is_needed_by_every_hub_from_then_on(opening: Opening) -> None:
    rotated = replace(KEYS, hmac_keys={1: KEYS.hmac_keys[1], 2: OTHERS.hmac_keys[1]})
    before = await started(opening, KEYS)
    assert await started(opening, rotated) == before
    with pytest.raises(ForeignKeys, match="version 2, which is missing here"):
        await started(opening, KEYS)
    with pytest.raises(ForeignKeys, match="HMAC key 2 is not the key"):
        await started(opening, replace(KEYS, hmac_keys={1: KEYS.hmac_keys[1], 2: KEYS.hmac_keys[1]}))


async def test_two_hubs_that_open_a_new_ledger_at_once_join_the_same_one(postgres_server: PostgresServer) -> None:
    url = new_ledger(postgres_server)
    second = replace(KEYS, receipt=SigningKey.generate("EdDSA"))
    stores = [await open_store(url) for _ in range(2)]
    try:
        engines = [
            Engine(store, clock=ManualClock(T0_MS), ids=SeededIds(n), keys=keys, packs=shipped_packs(), config=Config())
            for n, (store, keys) in enumerate(zip(stores, (KEYS, second), strict=True))
        ]
        await asyncio.gather(*(engine.start() for engine in engines))
        assert engines[0].ledger_key == engines[1].ledger_key
        log = [BY_NUMBER[Header.decode(stored.header).type].name for stored in await stores[0].log(0, 10)]
        assert log == ["ledger.opened", *["hub_key.registered"] * 3]
        for engine in engines:
            await engine.stop()
    finally:
        for store in stores:
            await store.close()
