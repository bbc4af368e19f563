"""The main job over real gRPC: from the voucher to the patient's hands, then what an auditor sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from erxhub.v1 import audit_pb2, common_pb2
from tests.chain import Chain
from tests.live import live_hub


@pytest.mark.parametrize("suite", ["ES256", "EdDSA", "SM2-SM3"])
async def test_prescription_goes_from_diagnosis_to_hand_over_in_every_suite(suite: str) -> None:
    async with live_hub(suite=suite) as live:
        chain = await Chain(live).handed_over()
        auditor = await live.auditor()
        traced = await auditor.trace(rx_no=chain.rx_no, verify=True)
        assert list(traced.findings) == []
        assert traced.verified
        assert list(traced.gaps) == []
        assert traced.light == audit_pb2.LIGHT_GREEN


async def test_prescription_is_delivered_to_the_door(tmp_path: Path) -> None:
    async with live_hub(database=tmp_path / "ledger.db") as live:
        chain = await Chain(live).delivered()
        auditor = await live.auditor()
        traced = await auditor.trace(rx_no=chain.rx_no, verify=True)
        assert traced.light == audit_pb2.LIGHT_GREEN
        verified = await auditor.verify_ledger()
        assert verified.verified
        hospital = await live.hospital()
        seen = await hospital.get(rx_no=chain.rx_no)
        assert seen.statuses.rx == common_pb2.RX_STATUS_EXHAUSTED
        assert seen.statuses.use == common_pb2.RX_USE_STATUS_USED
