"""Refusals at a pharmacy: authorisation, hold, review, money, goods and delivery."""

from __future__ import annotations

from typing import Any

from erxhub.v1 import common_pb2, dispensing_pb2, registry_pb2, signed_pb2
from tests.chain import DOCTOR, PURCHASE, Chain
from tests.live import HOUR_MS, MINUTE_MS, PERSON, PHARMACY, PHARMACY_B
from tests.refusals.bench import Bench
from tests.refusals.cases_prescribing import DUAL_CHANNEL_DRUG
from tests.refusals.provoking import Attempt, provokes

# ---- authorisation and hold ----


@provokes("AUTH_REQUIRED", status="PERMISSION_DENIED", field="authorization_no")
async def download_without_a_proof(bench: Bench) -> Attempt:
    pharmacy = await bench.live.pharmacy()
    return Attempt(pharmacy, pharmacy.download())


@provokes("AUTH_REUSED", status="PERMISSION_DENIED", field="authorization_no")
async def authorisation_used_before(bench: Bench) -> Attempt:
    rx = await bench.rx().held()
    pharmacy = await bench.live.pharmacy()
    return Attempt(pharmacy, pharmacy.download(authorization_no=rx.authorization_no))


@provokes("QR_INVALID", status="INVALID_ARGUMENT", field="rx_qr")
async def qr_value_used_before(bench: Bench) -> Attempt:
    rx = await bench.rx().uploaded()
    channel = await bench.live.channel()
    made = await channel.make_qr(person_no=PERSON, rx_no=rx.rx_no)
    pharmacy = await bench.live.pharmacy()
    await pharmacy.resolve_qr(rx_qr=made.rx_qr)
    return Attempt(pharmacy, pharmacy.resolve_qr(rx_qr=made.rx_qr))


@provokes("ORDER_ALREADY_HELD", status="ABORTED", field="rx_no")
async def another_pharmacy_holds_it(bench: Bench) -> Attempt:
    rx = await bench.rx().held()
    late = bench.rx(pharmacy_code=PHARMACY_B, rx_no=rx.rx_no)
    await late.listed()
    pharmacy = await bench.live.pharmacy(PHARMACY_B)
    return Attempt(pharmacy, pharmacy.download(authorization_no=late.authorization_no))


@provokes("ORDER_HOLD_LOST", status="ABORTED", field="rx_no")
async def quote_after_the_hold_lapsed(bench: Bench) -> Attempt:
    rx = await bench.rx().reviewed()
    bench.live.advance(2 * HOUR_MS + 1)
    return await _quote(bench, rx)


@provokes("ORDER_STEERING", status="PERMISSION_DENIED", field="rx_no")
async def third_hold_after_two_lapsed_ones(bench: Bench) -> Attempt:
    rx = await bench.rx().uploaded()
    for _ in range(2):
        await rx.held()
        bench.live.advance(2 * HOUR_MS + 1)
    await rx.listed()
    pharmacy = await bench.live.pharmacy()
    return Attempt(pharmacy, pharmacy.download(authorization_no=rx.authorization_no))


@provokes("RX_NOT_EFFECTIVE", status="FAILED_PRECONDITION", field="rx_no")
async def revoked_prescription_is_shown(bench: Bench) -> Attempt:
    rx = await bench.rx().uploaded()
    hospital = await bench.live.hospital()
    await hospital.revoke(rx_no=rx.rx_no, doctor_code=DOCTOR, reason="开错药品")
    channel = await bench.live.channel()
    return Attempt(channel, channel.make_qr(person_no=PERSON, rx_no=rx.rx_no))


@provokes("RX_ALREADY_USED", status="FAILED_PRECONDITION", field="rx_no")
async def used_prescription_is_shown(bench: Bench) -> Attempt:
    rx = await bench.rx().handed_over()
    channel = await bench.live.channel()
    return Attempt(channel, channel.make_qr(person_no=PERSON, rx_no=rx.rx_no))


@provokes("RX_DUAL_CHANNEL", status="FAILED_PRECONDITION")
async def dual_channel_drug_at_a_pharmacy_that_is_not_listed(bench: Bench) -> Attempt:
    def prescribe(prescription: common_pb2.Prescription) -> None:
        prescription.lines[0].drug_code = DUAL_CHANNEL_DRUG

    rx = await bench.rx(prescribe, pharmacy_code=PHARMACY_B).uploaded()
    await rx.listed()
    pharmacy = await bench.live.pharmacy(PHARMACY_B)
    return Attempt(pharmacy, pharmacy.download(authorization_no=rx.authorization_no))


@provokes("RX_UNKNOWN", status="NOT_FOUND", field="rx_no")
async def prescription_of_another_person(bench: Bench) -> Attempt:
    rx = await bench.rx().uploaded()
    person_no = await bench.person()
    channel = await bench.live.channel()
    return Attempt(channel, channel.make_qr(person_no=person_no, rx_no=rx.rx_no))


# ---- review ----


@provokes("REVIEW_INVALID", status="INVALID_ARGUMENT", field="statement.opinion")
async def review_without_an_opinion(bench: Bench) -> Attempt:
    rx = await bench.rx().held()
    return Attempt(await bench.live.pharmacy(), rx.review(opinion=" "))


@provokes("REVIEW_PHARMACIST", status="PERMISSION_DENIED", field="statement.pharmacist_code")
async def reviewed_by_the_pharmacist_of_another_pharmacy(bench: Bench) -> Attempt:
    rx = await bench.rx().held()
    other = "YS330100990002"
    pharmacy = await bench.live.pharmacy()
    call = pharmacy.review(
        rx_no=rx.rx_no,
        pharmacist_code=other,
        decision=signed_pb2.REVIEW_DECISION_PASS,
        opinion="用药合理",
        prescription=rx.download.prescription,
        pharmacist_key=bench.live.key(other, PHARMACY_B),
    )
    return Attempt(pharmacy, call)


@provokes("REVIEW_REQUIRED", status="FAILED_PRECONDITION", field="rx_no")
async def quote_before_the_review(bench: Bench) -> Attempt:
    return await _quote(bench, await bench.rx().held())


# ---- money ----


async def _quote(bench: Bench, rx: Chain, **changes: Any) -> Attempt:
    pharmacy = await bench.live.pharmacy(rx.pharmacy_code)
    reference = await rx.reference(PURCHASE)
    arguments = {"rx_no": rx.rx_no, "voucher_ref": reference, "lines": rx.sale_lines()} | changes
    return Attempt(pharmacy, pharmacy.quote(**arguments))


async def _settle(bench: Bench, rx: Chain, **changes: Any) -> Attempt:
    reference = await rx.reference(PURCHASE)
    return Attempt(await bench.live.pharmacy(rx.pharmacy_code), rx.settle(voucher_ref=reference, **changes))


@provokes("AGR_NO_POOLING", status="FAILED_PRECONDITION")
async def pharmacy_whose_pooling_is_suspended(bench: Bench) -> Attempt:
    rx = await bench.rx(pharmacy_code=PHARMACY_B).reviewed()
    agency = await bench.live.agency()
    suspended, active = registry_pb2.AGREEMENT_STATUS_SUSPENDED, registry_pb2.AGREEMENT_STATUS_ACTIVE
    which: dict[str, Any] = {
        "institution_code": PHARMACY_B,
        "kind": registry_pb2.AGREEMENT_KIND_POOLING,
        "case_no": "C-1",
    }
    await agency.change_agreement_status(**which, status=suspended)
    bench.afterwards(lambda: agency.change_agreement_status(**which, status=active))
    return await _quote(bench, rx)


@provokes("DISPENSE_MISMATCH", status="FAILED_PRECONDITION", field="lines[0].quantity")
async def more_than_was_prescribed(bench: Bench) -> Attempt:
    rx = await bench.rx().reviewed()
    lines = rx.sale_lines()
    lines[0].quantity = "2"
    return await _quote(bench, rx, lines=lines)


@provokes("SETL_AMOUNT", status="INVALID_ARGUMENT", field="statement.amounts.cash_fen")
async def pharmacy_settles_another_amount(bench: Bench) -> Attempt:
    rx = await bench.rx().quoted()
    rx.quote.amounts.cash_fen += 1
    return await _settle(bench, rx)


@provokes("SETL_QUOTE_STALE", status="ABORTED", field="statement.quote_id")
async def quote_settled_after_half_an_hour(bench: Bench) -> Attempt:
    rx = await bench.rx().quoted()
    bench.live.advance(30 * MINUTE_MS + 1)
    return await _settle(bench, rx)


@provokes("ACCT_INSUFFICIENT", status="FAILED_PRECONDITION", field="statement.amounts.account_fen")
async def account_spent_at_another_pharmacy_since_the_quote(bench: Bench) -> Attempt:
    person_no = await bench.person(balance_fen=1_000)
    first = await bench.rx(person_no=person_no).quoted()
    second = await bench.rx(person_no=person_no, pharmacy_code=PHARMACY_B).quoted()
    assert second.quote.amounts.account_fen > 0
    await first.settle()
    return await _settle(bench, second)


@provokes("SETL_TERMINAL", status="FAILED_PRECONDITION", field="settlement_id")
async def settlement_undone_twice(bench: Bench) -> Attempt:
    rx = await bench.rx().settled()
    pharmacy = await bench.live.pharmacy()
    which: dict[str, Any] = {"rx_no": rx.rx_no, "settlement_id": rx.settlement_id, "reason": "患者取消"}
    await pharmacy.undo_settlement(**which)
    return Attempt(pharmacy, pharmacy.undo_settlement(**which))


@provokes("SETL_TERMINAL", status="FAILED_PRECONDITION", field="request_id")
async def settlement_that_arrives_after_its_reversal(bench: Bench) -> Attempt:
    rx = await bench.rx().quoted()
    pharmacy = await bench.live.pharmacy()
    request_id = pharmacy.request_ids.new()
    await pharmacy.reverse_settlement(original_request_id=request_id)
    return await _settle(bench, rx, request_id=request_id)


@provokes("SETL_NOT_REVERSIBLE", status="FAILED_PRECONDITION", field="settlement_id")
async def settlement_undone_after_the_goods_are_out(bench: Bench) -> Attempt:
    rx = await bench.rx().dispensed()
    pharmacy = await bench.live.pharmacy()
    return Attempt(
        pharmacy, pharmacy.undo_settlement(rx_no=rx.rx_no, settlement_id=rx.settlement_id, reason="患者取消")
    )


@provokes("IDEMPOTENCY_CONFLICT", status="ALREADY_EXISTS", field="request_id")
async def same_request_id_with_another_body(bench: Bench) -> Attempt:
    rx = await bench.rx().held()
    pharmacy = await bench.live.pharmacy()
    request_id = pharmacy.request_ids.new()
    await pharmacy.release(rx_no=rx.rx_no, reason="缺货", request_id=request_id)
    return Attempt(pharmacy, pharmacy.release(rx_no=rx.rx_no, reason="停电", request_id=request_id))


# ---- goods ----


async def _dispense(bench: Bench, rx: Chain, **changes: Any) -> Attempt:
    pharmacy = await bench.live.pharmacy(rx.pharmacy_code)
    return Attempt(pharmacy, pharmacy.dispense(**rx.dispense_arguments() | changes))


async def _dispense_lot(bench: Bench, **changes: Any) -> Attempt:
    rx = await bench.rx().settled()
    lots = rx.lots()
    for name, value in changes.items():
        lots[0].ClearField(name)  # type: ignore[arg-type]
        lots[0].MergeFrom(signed_pb2.DispensedLot(**{name: value}))
    return await _dispense(bench, rx, lots=lots)


@provokes("SETL_REQUIRED", status="FAILED_PRECONDITION", field="rx_no")
async def goods_out_before_the_money(bench: Bench) -> Attempt:
    return await _dispense(bench, await bench.rx().quoted())


@provokes("DISPENSE_DOUBLE_SIGN", status="FAILED_PRECONDITION", field="statement.checker_code")
async def dispenser_checks_himself(bench: Bench) -> Attempt:
    rx = await bench.rx().settled()
    return await _dispense(bench, rx, checker_code=rx.dispenser)


@provokes("BATCH_EXPIRED", status="FAILED_PRECONDITION", field="statement.lots[0].expires_on")
async def lot_that_ended_last_year(bench: Bench) -> Attempt:
    return await _dispense_lot(bench, expires_on="2025-11-20")


@provokes("TRACE_MISSING", status="FAILED_PRECONDITION", field="statement.lots[0].trace_codes")
async def pack_that_was_not_scanned(bench: Bench) -> Attempt:
    return await _dispense_lot(bench, trace_codes=[])


@provokes("TRACE_INVALID", status="INVALID_ARGUMENT", field="statement.lots[0].trace_codes[0]")
async def trace_code_of_no_form(bench: Bench) -> Attempt:
    return await _dispense_lot(bench, trace_codes=["12345"])


@provokes(
    "TRACE_DUPLICATE",
    status="ALREADY_EXISTS",
    field="statement.lots[0].trace_codes[0]",
    entry="trace_code.duplicate_detected",
)
async def pack_that_was_sold_before(bench: Bench) -> Attempt:
    sold = await bench.rx().settled()
    lots = sold.lots()
    pharmacy = await bench.live.pharmacy()
    await pharmacy.dispense(**sold.dispense_arguments() | {"lots": lots})
    return await _dispense_lot(bench, trace_codes=list(lots[0].trace_codes))


# ---- delivery ----


async def _asked_for(bench: Bench) -> Chain:
    """Goods out, and a delivery that the patient asked for."""
    rx = await bench.rx().settled()
    await rx.delivery_requested()
    await rx.dispensed()
    return rx


@provokes("DLV_NOT_OUT", status="FAILED_PRECONDITION", field="rx_no")
async def courier_before_the_goods_are_out(bench: Bench) -> Attempt:
    rx = await bench.rx().settled()
    await rx.delivery_requested()
    return Attempt(await bench.live.pharmacy(), rx.delivery_started())


@provokes("DLV_BACKWARD", status="FAILED_PRECONDITION", field="step")
async def on_the_way_after_the_arrival(bench: Bench) -> Attempt:
    rx = await bench.rx().arrived()
    return Attempt(await bench.live.pharmacy(), rx.delivery_step(dispensing_pb2.DELIVERY_STEP_ON_THE_WAY))


@provokes("DLV_COURIER", status="FAILED_PRECONDITION", field="courier_code")
async def courier_of_another_pharmacy(bench: Bench) -> Attempt:
    rx = await _asked_for(bench)
    return Attempt(await bench.live.pharmacy(), rx.delivery_started(courier_code="PS330100990002"))


@provokes("DLV_TIME", status="FAILED_PRECONDITION", field="at_ms")
async def step_before_the_step_before_it(bench: Bench) -> Attempt:
    rx = await _asked_for(bench)
    started_at_ms = bench.live.clock.now_ms()
    await rx.delivery_started()
    bench.live.advance(1_000)
    call = rx.delivery_step(dispensing_pb2.DELIVERY_STEP_ON_THE_WAY, at_ms=started_at_ms - 1)
    return Attempt(await bench.live.pharmacy(), call)


@provokes("DLV_SIGN_CODE", status="FAILED_PRECONDITION", field="sign_code", keeps=("delivery.try_counted",))
async def wrong_sign_code(bench: Bench) -> Attempt:
    rx = await bench.rx().arrived()
    wrong = "000000" if rx.sign_code != "000000" else "111111"
    return Attempt(await bench.live.pharmacy(), rx.sign(sign_code=wrong))


@provokes("DLV_IMPLAUSIBLE", status="OK")
async def delivery_to_another_province(bench: Bench) -> Attempt:
    rx = await _asked_for(bench)
    return Attempt(await bench.live.pharmacy(PHARMACY), rx.delivery_started(distance_m=800_000))
