"""The auditor looks at what the hub itself wrote, call by call: the decisions and the audit agree about a sound chain."""

from __future__ import annotations

import pytest

from erxhub.v1 import audit_pb2
from tests.chain import Chain
from tests.live import EMPLOYEE, PERSON, live_hub


@pytest.mark.parametrize("way", ["handed_over", "delivered"])
async def test_a_chain_of_real_calls_is_green_and_verified(way: str) -> None:
    async with live_hub() as live:
        chain = Chain(live, PERSON)
        await getattr(chain, way)()
        auditor = await live.auditor()
        trace = await auditor.trace(rx_no=chain.rx_no, verify=True)
        assert (list(trace.gaps), list(trace.findings)) == ([], [])
        assert (trace.light, trace.verified) == (audit_pb2.LIGHT_GREEN, True)
        assert {entry.stage for entry in trace.entries} == {1, 2, 3, 4}
        assert all(flow.agrees for flow in trace.flows)
        assert trace.accesses
        checked = await auditor.verify_ledger()
        assert (checked.verified, list(checked.findings)) == (True, [])


async def test_the_traces_own_access_comes_after_it() -> None:
    async with live_hub() as live:
        chain = await Chain(live, EMPLOYEE).uploaded()
        auditor = await live.auditor()
        first = await auditor.trace(rx_no=chain.rx_no)
        assert "AuditService/TraceChain" not in {access.method for access in first.accesses}
        second = await auditor.trace(rx_no=chain.rx_no)
        assert second.accesses[-1].method == "AuditService/TraceChain"
        assert second.as_of_position > first.as_of_position
