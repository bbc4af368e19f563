"""The memory store against the contract."""

from __future__ import annotations

import pytest

from erxhub.ledger.memory import MemoryStore
from erxhub.ledger.store import Store
from tests.ledger.contract import StoreContract
from tests.ledger.log_contract import LogContract


class TestMemoryStore(StoreContract, LogContract):
    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore()
