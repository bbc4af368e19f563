"""A request id stands for one method and one content of one caller; a refusal binds it to nothing."""

from __future__ import annotations

import pytest

from erxhub.client import Refusal
from erxhub.v1 import dispensing_pb2
from tests.chain import CONSULT
from tests.live import PHARMACY_B
from tests.refusals.bench import Bench, raw_call
from tests.refusals.provoking import Attempt, Expected, refused

pytestmark = pytest.mark.asyncio(loop_scope="module")

RELEASE = "DispensingService/ReleaseOrder"
CONFLICT = Expected("IDEMPOTENCY_CONFLICT", "request_id")


async def test_same_id_with_another_method_is_a_conflict(bench: Bench) -> None:
    rx = await bench.rx().held()
    pharmacy = await bench.live.pharmacy()
    request_id = pharmacy.request_ids.new()
    await pharmacy.release(rx_no=rx.rx_no, request_id=request_id)
    call = pharmacy.void_dispense(rx_no=rx.rx_no, reason="取消", request_id=request_id)
    await refused(bench, Attempt(pharmacy, call), CONFLICT)


async def test_content_counts_and_not_the_order_of_its_bytes(bench: Bench) -> None:
    rx = await bench.rx().held()
    pharmacy = await bench.live.pharmacy()
    request = dispensing_pb2.ReleaseOrderRequest(request_id=pharmacy.request_ids.new(), rx_no=rx.rx_no, reason="缺货")
    data = request.SerializeToString()
    first = await raw_call(pharmacy, RELEASE, data)
    reason = dispensing_pb2.ReleaseOrderRequest(reason="缺货").SerializeToString()
    turned = reason + data.removesuffix(reason)
    assert turned != data
    assert await raw_call(pharmacy, RELEASE, turned) == first
    # A field that this release does not know may change what is meant.
    call = raw_call(pharmacy, RELEASE, data + b"\xa0\x06\x01")
    await refused(bench, Attempt(pharmacy, call, method=RELEASE), CONFLICT)


async def test_same_id_of_another_caller_is_another_request(bench: Bench) -> None:
    first, second = await bench.rx().held(), await bench.rx(pharmacy_code=PHARMACY_B).held()
    pharmacy, other = await bench.live.pharmacy(), await bench.live.pharmacy(PHARMACY_B)
    request_id = pharmacy.request_ids.new()
    await pharmacy.release(rx_no=first.rx_no, request_id=request_id)
    await other.release(rx_no=second.rx_no, request_id=request_id)


async def test_refusal_binds_no_request_id(bench: Bench) -> None:
    hospital = await bench.live.hospital()
    request_id = hospital.request_ids.new()
    with pytest.raises(Refusal):
        await hospital.verify_voucher(voucher_code="1" * 28, business_type=CONSULT, request_id=request_id)
    code = await bench.rx().code(CONSULT)
    await hospital.verify_voucher(voucher_code=code, business_type=CONSULT, request_id=request_id)
