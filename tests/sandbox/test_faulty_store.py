"""The store with faults in front of it is a store like any other as long as no rule is set."""

from __future__ import annotations

from typing import Any

import pytest

from erxhub.ledger.memory import MemoryStore
from erxhub.ledger.store import Store, StoreUnavailable, Write
from erxhub.sandbox.faults import Faults
from erxhub.sandbox.faulty_store import FaultyStore
from erxhub.sandbox.recorder import Recorder
from erxhub.v1 import sandbox_pb2
from tests.ledger.contract import StoreContract, next_entry
from tests.ledger.log_contract import LogContract


def behind(faults: Faults) -> FaultyStore:
    nobody: Any = None  # neither a crash nor a reader of the traffic is met here
    return FaultyStore(MemoryStore(), control=nobody, faults=faults, recorder=Recorder(nobody))


class TestFaultyStore(StoreContract, LogContract):
    @pytest.fixture
    def store(self) -> Store:
        return behind(Faults(1))


async def test_a_full_disk_by_a_rule_on_one_prescription_leaves_other_writes_alone() -> None:
    faults = Faults(1)
    store = behind(faults)
    # The contract's entries are of type 7, which is no event of the lifecycle; a doomed call is known by its id.
    rule = sandbox_pb2.FaultRule(
        rule_id="f", method="Prescribing/UploadPrescription", action=sandbox_pb2.FAULT_ACTION_DISK_FULL
    )
    faults.set([rule])
    doomed, spared = next_entry("a", request_id="doomed"), next_entry("b", request_id="spared")
    planned = faults._by_method["PrescribingService/UploadPrescription"][0]
    faults.doom(doomed.header.actor, "doomed", planned)
    await store.append([Write(entries=(spared,))])
    with pytest.raises(StoreUnavailable, match="full"):
        await store.append([Write(entries=(doomed,))])
    faults.spare(doomed.header.actor, "doomed")
    await store.append([Write(entries=(doomed,))])
    assert await store.last_position() == 2
