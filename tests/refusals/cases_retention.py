"""Refusals about records that are kept, and about those that are no longer. Its cases come last: a year goes by."""

from __future__ import annotations

from tests.live import DAY_MS
from tests.refusals.bench import Bench
from tests.refusals.provoking import Attempt, provokes

BASIS = "处方管理办法第五十条：保存期满"


@provokes("RETENTION", status="FAILED_PRECONDITION", field="rx_no")
async def record_that_has_to_be_kept(bench: Bench) -> Attempt:
    rx = await bench.rx().uploaded()
    agency = await bench.live.agency()
    return Attempt(agency, agency.erase_content(rx_no=rx.rx_no, legal_basis=BASIS))


async def _erased(bench: Bench, request_id: str) -> str:
    rx = await bench.rx().uploaded()
    agency = await bench.live.agency()
    await agency.freeze_prescription(rx_no=rx.rx_no, case_no="CASE-1", request_id=request_id)
    bench.live.advance(400 * DAY_MS)
    while await bench.live.hub.engine.sweep():
        pass
    await agency.erase_content(rx_no=rx.rx_no, legal_basis=BASIS)
    return rx.rx_no


@provokes("CONTENT_ERASED", status="FAILED_PRECONDITION", field="request_id")
async def repeated_request_whose_reply_was_erased(bench: Bench) -> Attempt:
    rx_no = await _erased(bench, "freeze-before-the-end")
    agency = await bench.live.agency()
    again = agency.freeze_prescription(rx_no=rx_no, case_no="CASE-1", request_id="freeze-before-the-end")
    return Attempt(agency, again)
