"""Two commands about one thing at the same time: whichever comes first, the end is one that the tables allow."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from erxhub.client import Refusal
from erxhub.ledger.sqlite import open_sqlite
from erxhub.v1 import common_pb2, dispensing_pb2
from tests.chain import DOCTOR, PURCHASE, Chain
from tests.live import EMPLOYEE, HOUR_MS, MINUTE_MS, PHARMACY, PHARMACY_B, Live, live_hub
from tests.races.ground import turns

pytestmark = [pytest.mark.campaign, pytest.mark.asyncio(loop_scope="module")]

Rounds = Callable[[int, int], int]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live() -> AsyncIterator[Live]:
    async with live_hub() as running:
        yield running


async def outcome(call: Any) -> Any:
    """The reply, or the refusal as a value."""
    try:
        return await call
    except Refusal as refusal:
        return refusal


def code_of(answer: Any) -> str:
    return answer.code if isinstance(answer, Refusal) else "OK"


async def race(number: int, chance: random.Random, first: Any, second: Any, head_start: int = 12) -> tuple[Any, Any]:
    """Both outcomes. Round 0 lets the first call win, round 1 the second; later ones start at the same time, or nearly.

    `head_start` is how many turns of the loop one of them may be ahead.
    """

    async def after(loops: int, call: Any) -> Any:
        await turns(loops)
        return await outcome(call)

    if number == 0:
        won = await outcome(first)
        return won, await outcome(second)
    if number == 1:
        won = await outcome(second)
        return await outcome(first), won
    return await asyncio.gather(after(chance.randrange(head_start), first), after(chance.randrange(head_start), second))


async def balance_fen(live: Live, person_no: str) -> int:
    agency = await live.agency()
    return int((await agency.get_person(person_no=person_no)).person.account_balance_fen)


async def order_of(chain: Chain) -> Any:
    """The pharmacy's newest order, as the hospital sees it."""
    hospital = await chain.live.hospital()
    seen = await hospital.get(rx_no=chain.rx_no)
    return [order for order in seen.orders if order.pharmacy_code == chain.pharmacy_code][-1]


# ---- upload and revoke ----


async def test_upload_racing_revoke_always_ends_undone(live: Live, rounds: Rounds) -> None:
    chance = random.Random(1)
    hospital = await live.hospital()
    other = await live.connect("hospital", hospital.connection.peer_name.id)
    seen = set()
    for number in range(rounds(20, 200)):
        chain = await Chain(live).prechecked()
        upload = hospital.upload(**chain.upload_arguments())
        revoke = other.revoke(rx_no=chain.rx_no, doctor_code=DOCTOR, reason="撤回")
        uploaded, revoked = await race(number, chance, upload, revoke)
        assert code_of(revoked) == "OK"
        assert code_of(uploaded) in {"OK", "RX_UNDONE"}
        seen.add(code_of(uploaded))
        assert (await hospital.get(rx_no=chain.rx_no)).statuses.rx == common_pb2.RX_STATUS_UNDONE
        # However often it is tried again.
        assert code_of(await outcome(hospital.upload(**chain.upload_arguments()))) == "RX_UNDONE"
        assert (await hospital.get(rx_no=chain.rx_no)).statuses.rx == common_pb2.RX_STATUS_UNDONE
    assert seen == {"OK", "RX_UNDONE"}


async def test_revoke_before_upload_burns_the_trace_code(live: Live) -> None:
    hospital = await live.hospital()
    chain = await Chain(live).prechecked()
    await hospital.revoke(rx_no=chain.rx_no, doctor_code=DOCTOR, reason="撤回")
    assert code_of(await outcome(hospital.upload(**chain.upload_arguments()))) == "RX_UNDONE"


async def test_upload_before_revoke_succeeds_and_is_undone(live: Live) -> None:
    hospital = await live.hospital()
    chain = await Chain(live).uploaded()
    revoked = await hospital.revoke(rx_no=chain.rx_no, doctor_code=DOCTOR, reason="撤回")
    assert revoked.statuses.rx == common_pb2.RX_STATUS_UNDONE


async def test_download_racing_revoke_leaves_a_hold_or_an_undone_prescription(live: Live, rounds: Rounds) -> None:
    chance = random.Random(2)
    hospital, pharmacy = await live.hospital(), await live.pharmacy()
    seen = set()
    for number in range(rounds(10, 100)):
        chain = await (await Chain(live).uploaded()).listed()
        download = pharmacy.download(authorization_no=chain.authorization_no)
        revoke = hospital.revoke(rx_no=chain.rx_no, doctor_code=DOCTOR, reason="撤回")
        downloaded, revoked = await race(number, chance, download, revoke)
        answers = (code_of(downloaded), code_of(revoked))
        seen.add(answers)
        assert answers[1] in {"OK", "RX_UNDO_STATE"}
        assert (answers[0] == "OK") == (answers[1] == "RX_UNDO_STATE")
        if answers[0] == "OK":
            await pharmacy.release(rx_no=chain.rx_no)
        # A withdrawal that met a hold takes effect with the hold's end.
        assert (await hospital.get(rx_no=chain.rx_no)).statuses.rx == common_pb2.RX_STATUS_UNDONE
    assert len(seen) == 2


# ---- settlement ----


async def test_settle_racing_the_end_of_the_hold_settles_or_loses_the_hold(live: Live, rounds: Rounds) -> None:
    chance = random.Random(3)
    seen = set()
    for number in range(rounds(10, 60)):
        chain = await Chain(live, person_no=EMPLOYEE).reviewed()
        before_fen = await balance_fen(live, EMPLOYEE)
        live.advance(2 * HOUR_MS - MINUTE_MS)
        await chain.quote_again()
        live.advance(16 * MINUTE_MS)
        await chain.quote_again()
        assert chain.quote.expires_at_ms > chain.quote.hold_until_ms
        live.advance(chain.quote.hold_until_ms - live.clock.now_ms())
        reference = await chain.reference(PURCHASE)

        async def tick() -> None:
            live.advance(1)

        settled, _ = await race(number, chance, chain.settle(voucher_ref=reference), tick(), head_start=200)
        live.advance(MINUTE_MS)
        await live.hub.engine.sweep()
        seen.add(code_of(settled))
        order = await order_of(chain)
        now_fen = await balance_fen(live, EMPLOYEE)
        if code_of(settled) == "OK":
            assert order.status == common_pb2.ORDER_STATUS_SETTLED
            assert now_fen == before_fen - chain.quote.amounts.account_fen
        else:
            assert code_of(settled) == "ORDER_HOLD_LOST"
            assert order.status == common_pb2.ORDER_STATUS_TIMED_OUT
            assert now_fen == before_fen
    assert seen == {"OK", "ORDER_HOLD_LOST"}


async def test_two_settles_of_one_quote_debit_once(live: Live, rounds: Rounds) -> None:
    for _ in range(rounds(5, 50)):
        chain = await Chain(live, person_no=EMPLOYEE).quoted()
        before_fen = await balance_fen(live, EMPLOYEE)
        references = [await chain.reference(PURCHASE) for _ in range(2)]
        answers = await asyncio.gather(*(outcome(chain.settle(voucher_ref=shown)) for shown in references))
        assert sorted(map(code_of, answers)) == ["OK", "SETL_QUOTE_STALE"]
        assert await balance_fen(live, EMPLOYEE) == before_fen - chain.quote.amounts.account_fen
        assert (await order_of(chain)).status == common_pb2.ORDER_STATUS_SETTLED


async def test_two_pharmacies_cannot_overdraw_one_account(rounds: Rounds) -> None:
    for _ in range(rounds(3, 20)):
        async with live_hub() as live:
            chains = [
                Chain(live, person_no=EMPLOYEE),
                Chain(live, person_no=EMPLOYEE, pharmacy_code=PHARMACY_B),
            ]
            for chain in chains:
                await chain.reviewed()
                lines = chain.sale_lines()
                for line in lines:
                    line.unit_price = "1500.00"
                await chain.quote_again(lines=lines)
            whole_fen = await balance_fen(live, EMPLOYEE)
            assert [chain.quote.amounts.account_fen for chain in chains] == [whole_fen, whole_fen]
            answers = await asyncio.gather(*(outcome(chain.settle()) for chain in chains))
            assert sorted(map(code_of, answers)) == ["ACCT_INSUFFICIENT", "OK"]
            assert await balance_fen(live, EMPLOYEE) == 0
            loser = next(chain for chain, answer in zip(chains, answers, strict=True) if isinstance(answer, Refusal))
            assert (await order_of(loser)).status == common_pb2.ORDER_STATUS_PRESETTLED
            assert (await (await live.auditor()).verify_ledger()).verified


# ---- reversal ----


async def test_reversal_that_overtakes_its_original_makes_it_terminal(live: Live) -> None:
    chain = await Chain(live).quoted()
    pharmacy = await live.pharmacy()
    reversed_ = await pharmacy.reverse_settlement(original_request_id="settle-overtaken-1")
    assert reversed_.target == dispensing_pb2.REVERSAL_TARGET_NONE
    for _ in range(2):
        settled = await outcome(chain.settle(request_id="settle-overtaken-1"))
        assert code_of(settled) == "SETL_TERMINAL"
    # The quote itself still stands for another request.
    assert code_of(await outcome(chain.settle())) == "OK"


async def test_reversal_that_overtook_its_original_holds_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    async with live_hub(database=path) as live:
        chain = await Chain(live).quoted()
        await (await live.pharmacy()).reverse_settlement(original_request_id="settle-overtaken-2")
        await live.restart(lambda: open_sqlite(path))
        settled = await outcome(chain.settle(request_id="settle-overtaken-2"))
        assert code_of(settled) == "SETL_TERMINAL"
        assert (await order_of(chain)).status == common_pb2.ORDER_STATUS_PRESETTLED


async def test_reversal_racing_its_original_never_leaves_a_settlement(live: Live, rounds: Rounds) -> None:
    chance = random.Random(4)
    targets = set()
    pharmacy = await live.connect("pharmacy", PHARMACY)
    for number in range(rounds(12, 100)):
        chain = await Chain(live, person_no=EMPLOYEE).quoted()
        before_fen = await balance_fen(live, EMPLOYEE)
        reference = await chain.reference(PURCHASE)
        name = f"settle-raced-{number:04d}"
        settle = chain.settle(voucher_ref=reference, request_id=name)
        reversal = pharmacy.reverse_settlement(original_request_id=name)
        settled, reversed_ = await race(number, chance, settle, reversal)
        targets.add(reversed_.target)
        if reversed_.target == dispensing_pb2.REVERSAL_TARGET_NONE:
            assert code_of(settled) == "SETL_TERMINAL"
            assert (await order_of(chain)).status == common_pb2.ORDER_STATUS_PRESETTLED
        else:
            assert code_of(settled) == "OK"
            assert (await order_of(chain)).status == common_pb2.ORDER_STATUS_RELEASED
        assert await balance_fen(live, EMPLOYEE) == before_fen
    assert targets == {dispensing_pb2.REVERSAL_TARGET_NONE, dispensing_pb2.REVERSAL_TARGET_SETTLEMENT}


async def test_undo_racing_dispense_gives_back_or_hands_out_never_both(live: Live, rounds: Rounds) -> None:
    chance = random.Random(5)
    seen = set()
    pharmacy, other = await live.pharmacy(), await live.connect("pharmacy", PHARMACY)
    for number in range(rounds(10, 100)):
        chain = await Chain(live, person_no=EMPLOYEE).settled()
        undo = other.undo_settlement(rx_no=chain.rx_no, settlement_id=chain.settlement_id, reason="退费")
        undone, dispensed = await race(number, chance, undo, pharmacy.dispense(**chain.dispense_arguments()))
        answers = (code_of(undone) == "OK", code_of(dispensed) == "OK")
        assert sorted(answers) == [False, True]
        seen.add(answers)
        order = await order_of(chain)
        expected = common_pb2.ORDER_STATUS_RELEASED if answers[0] else common_pb2.ORDER_STATUS_DISPENSED
        assert order.status == expected
    assert len(seen) == 2


async def test_every_race_left_a_ledger_that_verifies(live: Live) -> None:
    assert (await (await live.auditor()).verify_ledger()).verified
