"""Catalogue rows are loaded once by a lane, since the row of an edition never changes."""

from __future__ import annotations

import pytest

from erxhub.ledger.memory import MemoryStore
from erxhub.ledger.store import Loaded, Wanted
from tests.simulation.speed import CROWD, chains_per_second

Row = tuple[str, str, str]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """Every catalogue row that a store in memory was asked for, in order."""
    rows: list[Row] = []
    load = MemoryStore.load

    async def noted(self: MemoryStore, wanted: Wanted) -> Loaded:
        rows.extend(sorted(wanted.catalog))
        return await load(self, wanted)

    monkeypatch.setattr(MemoryStore, "load", noted)
    return rows


def test_a_row_that_is_there_is_loaded_once(asked: list[Row]) -> None:
    chains_per_second(CROWD + 1)  # the last one begins when the others have looked everything up
    assert asked, "a chain looks rows up"
    assert len(asked) == len(set(asked))
