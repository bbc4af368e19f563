"""The auditor looks at what the hub itself wrote, call by call: decisions and audit agree about a sound chain."""

from __future__ import annotations

from typing import Any

import pytest

from erxhub.v1 import audit_pb2, signed_pb2
from tests.chain import DOCTOR, Chain
from tests.live import DAY_MS, EMPLOYEE, PERSON, Live, live_hub


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


async def looked_at(live: Live, chain: Chain) -> tuple[list[str], list[Any], audit_pb2.Light.ValueType, bool]:
    """(gaps, findings, light, verified) of the chain, and the whole ledger holds."""
    auditor = await live.auditor()
    trace = await auditor.trace(rx_no=chain.rx_no, verify=True)
    checked = await auditor.verify_ledger()
    assert (checked.verified, list(checked.findings)) == (True, [])
    return list(trace.gaps), list(trace.findings), trace.light, trace.verified


async def test_a_chain_signed_with_sm2_is_verified() -> None:
    async with live_hub(suite="SM2-SM3") as live:
        chain = await Chain(live, PERSON).handed_over()
        assert await looked_at(live, chain) == ([], [], audit_pb2.LIGHT_GREEN, True)


UNKNOWN_FIELD = b"\xf8\xff\x07\x01"
"""Number 16383, varint 1: a field of a version to come."""


async def test_fields_of_a_newer_version_under_a_seal_contradict_nothing() -> None:
    async with live_hub() as live:
        chain = await Chain(live, PERSON).quoted()
        chain.quote.amounts.MergeFromString(UNKNOWN_FIELD)
        chain.settlement_id = (await chain.settle()).settlement_id
        arguments = chain.dispense_arguments()
        arguments["lots"][0].MergeFromString(UNKNOWN_FIELD)
        await (await live.pharmacy()).dispense(**arguments)
        assert (await looked_at(live, chain))[1] == []


async def test_an_undone_settlement_is_open_and_closed_once_the_validity_is_over() -> None:
    async with live_hub() as live:
        chain = await Chain(live, PERSON).settled()
        pharmacy = await live.pharmacy()
        await pharmacy.undo_settlement(rx_no=chain.rx_no, settlement_id=chain.settlement_id, reason="退款")
        assert await looked_at(live, chain) == ([], [], audit_pb2.LIGHT_OPEN, True)
        live.advance(4 * DAY_MS)
        assert await looked_at(live, chain) == ([], [], audit_pb2.LIGHT_CLOSED, True)


async def test_an_undo_that_was_reversed_leaves_a_settlement_that_stands() -> None:
    async with live_hub() as live:
        chain = await Chain(live, PERSON).settled()
        pharmacy = await live.pharmacy()
        await pharmacy.undo_settlement(
            rx_no=chain.rx_no, settlement_id=chain.settlement_id, reason="退款", request_id="undo-request-1"
        )
        await pharmacy.reverse_settlement(original_request_id="undo-request-1", original_transaction="2103")
        assert await looked_at(live, chain) == ([], [], audit_pb2.LIGHT_OPEN, True)
        await chain.handed_over()
        assert await looked_at(live, chain) == ([], [], audit_pb2.LIGHT_GREEN, True)


async def test_a_review_that_was_not_passed_and_a_second_try_leave_no_gap() -> None:
    async with live_hub() as live:
        chain = await Chain(live, PERSON).held()
        await chain.review(signed_pb2.REVIEW_DECISION_REJECT, "剂量过大")
        assert await looked_at(live, chain) == ([], [], audit_pb2.LIGHT_OPEN, True)
        await chain.handed_over()
        assert await looked_at(live, chain) == ([], [], audit_pb2.LIGHT_GREEN, True)


async def test_a_withdrawn_prescription_is_closed() -> None:
    async with live_hub() as live:
        chain = await Chain(live, PERSON).uploaded()
        hospital = await live.hospital()
        await hospital.revoke(rx_no=chain.rx_no, doctor_code=DOCTOR, reason="改方")
        assert await looked_at(live, chain) == ([], [], audit_pb2.LIGHT_CLOSED, True)


async def test_a_settlement_without_goods_turns_red_when_its_time_is_over() -> None:
    async with live_hub() as live:
        chain = await Chain(live, PERSON).settled()
        live.advance(3 * DAY_MS + 1)
        assert await looked_at(live, chain) == (["GAP_NO_DISPENSE"], [], audit_pb2.LIGHT_RED, True)
