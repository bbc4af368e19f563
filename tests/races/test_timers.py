"""Deadlines at their exact millisecond: a thing is good at its last one, and over before the next decision after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from erxhub.client import Refusal
from erxhub.config import Config
from erxhub.core import events
from erxhub.core.keys import prescription_key
from erxhub.ledger.entry import EntryKind, Header
from erxhub.v1 import common_pb2, registry_pb2, signed_pb2
from tests.chain import CONSULT, DOCTOR, DOWNLOAD, PURCHASE, Chain
from tests.live import DAY_MS, HOUR_MS, MINUTE_MS, PERSON, PHARMACY, PHARMACY_B, Live, live_hub
from tests.races.ground import until_so, whole_log

pytestmark = [pytest.mark.campaign, pytest.mark.asyncio(loop_scope="module")]

HOLD_MS = 2 * HOUR_MS
EXTENSION_MS = 30 * MINUTE_MS


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live() -> AsyncIterator[Live]:
    async with live_hub() as running:
        yield running


def until(live: Live, at_ms: int) -> None:
    """Move the clock to an instant."""
    live.advance(at_ms - live.clock.now_ms())


async def refusal(call: Awaitable[Any]) -> str:
    """The code with which a call is refused."""
    with pytest.raises(Refusal) as refused:
        await call
    return refused.value.code


async def event_names(live: Live, rx_no: str) -> list[str]:
    """The events of a prescription, oldest first."""
    entries = await live.hub.store.entries(prescription_key(rx_no), 0, 1_000)
    return [events.BY_NUMBER[Header.decode(entry.header).type].name for entry in entries]


async def count_of(live: Live, name: str) -> int:
    """How often the ledger has an event."""
    headers = [Header.decode(entry.header) for entry in await whole_log(live.hub.store)]
    number = events.BY_NAME[name].number
    return sum(header.type == number and header.kind is EntryKind.EVENT for header in headers)


async def statuses(live: Live, rx_no: str) -> common_pb2.RxStatuses:
    hospital = await live.hospital()
    return (await hospital.get(rx_no=rx_no)).statuses


# ---- one deadline each ----


@pytest.mark.parametrize("late_ms", [0, 1])
async def test_voucher_code_lives_sixty_seconds(live: Live, late_ms: int) -> None:
    channel, pharmacy = await live.channel(), await live.pharmacy()
    issued = await channel.issue_voucher(person_no=PERSON, business_type=DOWNLOAD)
    assert issued.expires_at_ms == live.clock.now_ms() + MINUTE_MS
    expired = await count_of(live, "voucher.expired")
    until(live, issued.expires_at_ms + late_ms)
    verify = pharmacy.verify_voucher(voucher_code=issued.voucher_code, business_type=DOWNLOAD)
    if late_ms:
        assert await refusal(verify) == "VCH_EXPIRED"
        assert await count_of(live, "voucher.expired") > expired
    else:
        assert (await verify).voucher_ref


@pytest.mark.parametrize("late_ms", [0, 1])
async def test_voucher_reference_lives_thirty_minutes(live: Live, late_ms: int) -> None:
    channel, pharmacy = await live.channel(), await live.pharmacy()
    issued = await channel.issue_voucher(person_no=PERSON, business_type=DOWNLOAD)
    verified = await pharmacy.verify_voucher(voucher_code=issued.voucher_code, business_type=DOWNLOAD)
    assert verified.expires_at_ms == live.clock.now_ms() + 30 * MINUTE_MS
    until(live, verified.expires_at_ms + late_ms)
    offer = pharmacy.list_by_voucher(voucher_ref=verified.voucher_ref)
    if late_ms:
        assert await refusal(offer) == "VCH_EXPIRED"
    else:
        await offer


@pytest.mark.parametrize("late_ms", [0, 1])
async def test_qr_value_lives_sixty_seconds(live: Live, late_ms: int) -> None:
    channel, pharmacy = await live.channel(), await live.pharmacy()
    chain = await Chain(live).uploaded()
    made = await channel.make_qr(person_no=PERSON, rx_no=chain.rx_no)
    until(live, live.clock.now_ms() + MINUTE_MS + late_ms)
    if late_ms:
        assert await refusal(pharmacy.resolve_qr(rx_qr=made.rx_qr)) == "QR_INVALID"
    else:
        assert (await pharmacy.resolve_qr(rx_qr=made.rx_qr)).rx_token


@pytest.mark.parametrize("late_ms", [0, 1])
async def test_authorisation_lives_thirty_minutes(live: Live, late_ms: int) -> None:
    pharmacy = await live.pharmacy()
    chain = await (await Chain(live).uploaded()).listed()
    live.advance(30 * MINUTE_MS + late_ms)
    download = pharmacy.download(authorization_no=chain.authorization_no)
    if late_ms:
        assert await refusal(download) == "AUTH_REUSED"
        assert (await event_names(live, chain.rx_no))[-1] == "authorization.expired"
    else:
        await download


@pytest.mark.parametrize("late_ms", [0, 1])
async def test_hold_ends_two_hours_after_the_download(live: Live, late_ms: int) -> None:
    chain = await Chain(live).held()
    assert chain.download.hold_until_ms == live.clock.now_ms() + HOLD_MS
    until(live, chain.download.hold_until_ms + late_ms)
    if late_ms:
        assert await refusal(chain.review()) == "ORDER_HOLD_LOST"
        assert (await event_names(live, chain.rx_no))[-1] == "order.expired"
        assert (await statuses(live, chain.rx_no)).use == common_pb2.RX_USE_STATUS_UNUSED
    else:
        await chain.review()


async def test_first_quote_alone_extends_the_hold_by_thirty_minutes(live: Live) -> None:
    chain = await Chain(live).reviewed()
    live.advance(HOUR_MS)
    await chain.quote_again()
    extended_ms = chain.download.hold_until_ms + EXTENSION_MS
    assert chain.quote.hold_until_ms == extended_ms
    live.advance(MINUTE_MS)
    await chain.quote_again()
    assert chain.quote.hold_until_ms == extended_ms
    # A lapsed quote and a new one change nothing about it.
    until(live, extended_ms)
    await chain.quote_again()
    assert chain.quote.hold_until_ms == extended_ms
    reference = await chain.reference(PURCHASE)
    live.advance(1)
    assert await refusal(chain.settle(voucher_ref=reference)) == "ORDER_HOLD_LOST"
    assert (await event_names(live, chain.rx_no))[-2:] == ["settlement.quote_expired", "order.expired"]


@pytest.mark.parametrize("late_ms", [0, 1])
async def test_quote_lives_thirty_minutes(live: Live, late_ms: int) -> None:
    chain = await Chain(live).quoted()
    assert chain.quote.expires_at_ms == live.clock.now_ms() + 30 * MINUTE_MS
    until(live, chain.quote.expires_at_ms)
    reference = await chain.reference(PURCHASE)
    live.advance(late_ms)
    if late_ms:
        assert await refusal(chain.settle(voucher_ref=reference)) == "SETL_QUOTE_STALE"
        assert (await event_names(live, chain.rx_no))[-1] == "settlement.quote_expired"
        await chain.quote_again()
        await chain.settle(voucher_ref=reference)
    else:
        await chain.settle(voucher_ref=reference)


@pytest.mark.parametrize("late_ms", [0, 1])
async def test_prescription_is_downloaded_until_its_validity_ends(live: Live, late_ms: int) -> None:
    pharmacy = await live.pharmacy()
    chain = await Chain(live).uploaded()
    until(live, chain.prescription.valid_until_ms - MINUTE_MS)
    await chain.listed()
    until(live, chain.prescription.valid_until_ms + late_ms)
    download = pharmacy.download(authorization_no=chain.authorization_no)
    if late_ms:
        assert await refusal(download) == "RX_NOT_EFFECTIVE"
        assert (await event_names(live, chain.rx_no))[-2:] == ["authorization.revoked", "prescription.expired"]
        assert (await statuses(live, chain.rx_no)).rx == common_pb2.RX_STATUS_EXPIRED
    else:
        # A hold never outlives the prescription.
        assert (await download).hold_until_ms == chain.prescription.valid_until_ms


@pytest.mark.parametrize("late_ms", [0, 1])
async def test_goods_go_out_until_the_validity_ends(live: Live, late_ms: int) -> None:
    pharmacy = await live.pharmacy()
    chain = await Chain(live).uploaded()
    until(live, chain.prescription.valid_until_ms - MINUTE_MS)
    await chain.settled()
    until(live, chain.prescription.valid_until_ms + late_ms)
    dispense = pharmacy.dispense(**chain.dispense_arguments())
    if late_ms:
        assert await refusal(dispense) == "RX_NOT_EFFECTIVE"
        # What was paid stays until it is given back.
        undone = await pharmacy.undo_settlement(
            rx_no=chain.rx_no, settlement_id=chain.settlement_id, reason="已过有效期"
        )
        assert undone.statuses.rx == common_pb2.RX_STATUS_EXPIRED
    else:
        await dispense


@pytest.mark.parametrize("late_ms", [0, 1])
async def test_prechecked_prescription_is_uploaded_until_its_validity_ends(live: Live, late_ms: int) -> None:
    hospital = await live.hospital()
    chain = await Chain(live).prechecked()
    until(live, chain.prescription.valid_until_ms + late_ms)
    upload = hospital.upload(**chain.upload_arguments())
    if late_ms:
        assert await refusal(upload) == "RX_NOT_EFFECTIVE"
        assert (await event_names(live, chain.rx_no))[-1] == "prescription.expired"
    else:
        await upload


@pytest.mark.parametrize("late_ms", [0, 1])
async def test_agreement_ends_with_its_last_instant(live: Live, late_ms: int) -> None:
    code = f"P3301009930{late_ms}"
    agency, channel, pharmacy = await live.agency(), await live.channel(), await live.pharmacy(code)
    await agency.register_institution(institution_code=code, name="短约示例药房（虚构）")
    ends_ms = live.clock.now_ms() + HOUR_MS
    await agency.sign_agreement(
        institution_code=code,
        kind=registry_pb2.AGREEMENT_KIND_BASE,
        agreement_no=f"SHORT-{code}",
        valid_from_ms=live.clock.now_ms(),
        valid_until_ms=ends_ms,
        clauses=("scope", "conditions", "charge_and_settlement_standard", "payment_mode"),
    )
    until(live, ends_ms)
    issued = await channel.issue_voucher(person_no=PERSON, business_type=DOWNLOAD)
    live.advance(late_ms)
    ended = await count_of(live, "agreement.terminated")
    verify = pharmacy.verify_voucher(voucher_code=issued.voucher_code, business_type=DOWNLOAD)
    if late_ms:
        assert await refusal(verify) == "AGR_INACTIVE"
        assert await count_of(live, "agreement.terminated") == ended + 1
    else:
        assert (await verify).voucher_ref


# ---- what is due is written before the next decision, and without one by the sweep ----


async def test_lapsed_hold_is_written_before_the_next_pharmacy_takes_over(live: Live) -> None:
    chain = await Chain(live).quoted()
    live.advance(HOLD_MS + EXTENSION_MS + 1)
    other = Chain(live, pharmacy_code=PHARMACY_B, rx_no=chain.rx_no)
    # Whichever command comes first meets a prescription that nobody holds.
    await other.held()
    names = await event_names(live, chain.rx_no)
    lapsed = names.index("order.expired")
    assert names[lapsed - 1] == "settlement.quote_expired"
    assert lapsed < names.index("order.held", names.index("order.held") + 1)


async def test_sweep_writes_what_nobody_asks_about() -> None:
    config = Config(sweep_streams_max=8, drain_ms=50, drain_quiet_ms=0)
    pauses: list[asyncio.Event] = []

    async def pause(ms: int) -> None:
        over = asyncio.Event()
        if ms == config.sweep_interval_ms:
            pauses.append(over)
        await over.wait()

    async with live_hub(pause=pause, config=config) as live:
        channel = await live.channel()
        chain = await Chain(live).held()
        before = await count_of(live, "voucher.expired")
        for _ in range(35):
            await channel.issue_voucher(person_no=PERSON, business_type=CONSULT)
        live.advance(HOLD_MS + 1)
        assert len(await live.hub.store.due(live.clock.now_ms(), 1_000)) == 36
        # One look of the sweep writes everything, in steps of eight.
        pauses[0].set()
        await until_so(lambda: len(pauses) == 2)
        assert await live.hub.store.due(live.clock.now_ms(), 1_000) == []
        assert await count_of(live, "voucher.expired") == before + 35
        assert (await event_names(live, chain.rx_no))[-1] == "order.expired"
        assert await live.hub.engine.sweep() == 0
        live.advance(DAY_MS * 3)
        await live.hub.engine.sweep()
        assert (await statuses(live, chain.rx_no)).rx == common_pb2.RX_STATUS_EXPIRED


async def test_sweep_racing_commands_fires_each_deadline_once(live: Live) -> None:
    chains = [await Chain(live).held() for _ in range(4)]
    live.advance(HOLD_MS + 1)
    calls = [refusal(chain.review()) for chain in chains for _ in range(3)]
    codes, *_ = await asyncio.gather(asyncio.gather(*calls), *(live.hub.engine.sweep() for _ in range(5)))
    assert set(codes) == {"ORDER_HOLD_LOST"}
    for chain in chains:
        assert (await event_names(live, chain.rx_no)).count("order.expired") == 1


# ---- a withdrawal that waits for the hold's end ----


async def _released(live: Live, chain: Chain) -> None:
    await (await live.pharmacy()).release(rx_no=chain.rx_no)


async def _cancelled(live: Live, chain: Chain) -> None:
    channel = await live.channel()
    await channel.cancel_order(person_no=PERSON, rx_no=chain.rx_no, pharmacy_code=PHARMACY)


async def _rejected(live: Live, chain: Chain) -> None:
    await chain.review(signed_pb2.REVIEW_DECISION_REJECT, "剂量有误")


async def _returned(live: Live, chain: Chain) -> None:
    await chain.review(signed_pb2.REVIEW_DECISION_RETURN_TO_DOCTOR, "请核对剂量")


async def _expired(live: Live, chain: Chain) -> None:
    until(live, chain.download.hold_until_ms)
    await live.hub.engine.sweep()
    assert (await statuses(live, chain.rx_no)).rx == common_pb2.RX_STATUS_EFFECTIVE
    live.advance(1)
    await live.hub.engine.sweep()


@pytest.mark.parametrize("end", [_released, _cancelled, _rejected, _returned, _expired])
async def test_pending_withdrawal_takes_effect_with_the_end_of_the_hold(
    live: Live, end: Callable[[Live, Chain], Awaitable[None]]
) -> None:
    hospital = await live.hospital()
    chain = await Chain(live).held()
    for _ in range(2):
        assert await refusal(hospital.revoke(rx_no=chain.rx_no, doctor_code=DOCTOR, reason="撤回")) == "RX_UNDO_STATE"
    waiting = await statuses(live, chain.rx_no)
    assert waiting.undo_requested
    assert waiting.rx == common_pb2.RX_STATUS_EFFECTIVE
    # Asked twice, kept once; and no new hold is granted meanwhile.
    assert (await event_names(live, chain.rx_no)).count("prescription.undo_requested") == 1
    await end(live, chain)
    names = await event_names(live, chain.rx_no)
    assert names[-1] == "prescription.undone"
    assert (await statuses(live, chain.rx_no)).rx == common_pb2.RX_STATUS_UNDONE


async def test_pending_withdrawal_stops_quote_and_settlement(live: Live) -> None:
    hospital = await live.hospital()
    chain = await Chain(live).quoted()
    reference = await chain.reference(PURCHASE)
    assert await refusal(hospital.revoke(rx_no=chain.rx_no, doctor_code=DOCTOR, reason="撤回")) == "RX_UNDO_STATE"
    assert await refusal(chain.quote_again()) == "RX_NOT_EFFECTIVE"
    assert await refusal(chain.settle(voucher_ref=reference)) == "RX_NOT_EFFECTIVE"
    until(live, chain.quote.hold_until_ms + 1)
    await live.hub.engine.sweep()
    names = await event_names(live, chain.rx_no)
    assert names[-3:] == ["settlement.quote_expired", "order.expired", "prescription.undone"] or names[-2:] == [
        "order.expired",
        "prescription.undone",
    ]


async def test_pending_withdrawal_waits_for_a_frozen_prescription(live: Live) -> None:
    hospital, agency = await live.hospital(), await live.agency()
    chain = await Chain(live).held()
    assert await refusal(hospital.revoke(rx_no=chain.rx_no, doctor_code=DOCTOR, reason="撤回")) == "RX_UNDO_STATE"
    await agency.freeze_prescription(rx_no=chain.rx_no, case_no="CASE-1")
    until(live, chain.download.hold_until_ms + 1)
    await live.hub.engine.sweep()
    assert (await statuses(live, chain.rx_no)).rx == common_pb2.RX_STATUS_FROZEN
    await agency.unfreeze_prescription(rx_no=chain.rx_no, case_no="CASE-1")
    assert (await statuses(live, chain.rx_no)).rx == common_pb2.RX_STATUS_UNDONE
