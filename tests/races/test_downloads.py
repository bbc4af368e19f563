"""Many pharmacies download one prescription at once: one holds it, and the others are told so."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from erxhub.client import Refusal
from erxhub.core import events
from erxhub.v1 import common_pb2
from tests.chain import DOWNLOAD, Chain
from tests.live import PERSON, Live, live_hub
from tests.races.ground import event_types, found_pharmacies, whole_log

pytestmark = [pytest.mark.campaign, pytest.mark.asyncio(loop_scope="module")]

Rounds = Callable[[int, int], int]

_CODES = [f"P33010099{number}" for number in range(200, 300)]
_ROUNDS_PER_PRESCRIPTION = 20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live() -> AsyncIterator[Live]:
    async with live_hub() as running:
        await found_pharmacies(running, _CODES)
        yield running


class Runner:
    """A pharmacy with a live authorisation for the prescription."""

    def __init__(self, live: Live, code: str) -> None:
        self.live = live
        self.code = code
        self.key: dict[str, str] = {}
        self._reference = ""

    async def present(self, rx_no: str, *, by_qr: bool) -> None:
        """The patient is at the counter: with the e-voucher, or with the prescription's QR value."""
        pharmacy = await self.live.pharmacy(self.code)
        channel = await self.live.channel()
        if by_qr:
            made = await channel.make_qr(person_no=PERSON, rx_no=rx_no)
            self.key = {"rx_token": (await pharmacy.resolve_qr(rx_qr=made.rx_qr)).rx_token}
            return
        if not self._reference:
            issued = await channel.issue_voucher(person_no=PERSON, business_type=DOWNLOAD)
            verified = await pharmacy.verify_voucher(voucher_code=issued.voucher_code, business_type=DOWNLOAD)
            self._reference = verified.voucher_ref
        offered = await pharmacy.list_by_voucher(voucher_ref=self._reference)
        numbers = {item.rx_no: item.authorization_no for item in offered.prescriptions}
        self.key = {"authorization_no": numbers[rx_no]}

    async def download(self) -> Any:
        """The reply, or the refusal."""
        pharmacy = await self.live.pharmacy(self.code)
        try:
            return await pharmacy.download(**self.key)
        except Refusal as refusal:
            return refusal


@pytest.mark.parametrize("by_qr", [False, True], ids=["voucher", "qr"])
@pytest.mark.parametrize("count", [2, 10, 100])
async def test_exactly_one_of_many_pharmacies_holds(live: Live, rounds: Rounds, count: int, by_qr: bool) -> None:
    chance = random.Random(count)
    hospital = await live.hospital()
    runners = [Runner(live, code) for code in _CODES[:count]]
    winners = set()
    held_before = event_types(await whole_log(live.hub.store)).count(events.BY_NAME["order.held"].number)
    number_of_rounds = rounds(20, 200)
    rx_no = ""
    for number in range(number_of_rounds):
        if number % _ROUNDS_PER_PRESCRIPTION == 0:
            rx_no = (await Chain(live).uploaded()).rx_no
            await asyncio.gather(*(runner.present(rx_no, by_qr=by_qr) for runner in runners))
            # A minute later every caller has a fresh budget for its entries.
            live.advance(60_001 if not by_qr else 1)
        chance.shuffle(runners)
        answers = await asyncio.gather(*(runner.download() for runner in runners))
        refused = [answer for answer in answers if isinstance(answer, Refusal)]
        assert len(refused) == count - 1
        assert {refusal.code for refusal in refused} == {"ORDER_ALREADY_HELD"}
        winner = next(
            runner for runner, answer in zip(runners, answers, strict=True) if not isinstance(answer, Refusal)
        )
        winners.add(winner.code)
        seen = await hospital.get(rx_no=rx_no)
        assert seen.statuses.use == common_pb2.RX_USE_STATUS_HELD
        held = [order.pharmacy_code for order in seen.orders if order.status == common_pb2.ORDER_STATUS_HELD]
        assert held == [winner.code]
        # The next round begins without a hold; only the winner has used its authorisation up.
        await (await live.pharmacy(winner.code)).release(rx_no=rx_no)
        await winner.present(rx_no, by_qr=by_qr)
    log = await whole_log(live.hub.store)
    assert event_types(log).count(events.BY_NAME["order.held"].number) - held_before == number_of_rounds
    assert len(winners) > 1
    assert (await (await live.auditor()).verify_ledger()).verified
