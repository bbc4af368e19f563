"""Pharmacies on three hubs download one prescription at once: one holds it, and every history has an order."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from erxhub.client import Refusal
from tests.chain import Chain
from tests.linear.checker import Recorder
from tests.linear.model import Kind
from tests.live import PERSON, REQUEST_IDS
from tests.postgres import PostgresServer
from tests.races.ground import found_pharmacies
from tests.several.ground import Historian, Several, new_ledger, several_hubs, stores_agree

pytestmark = [pytest.mark.campaign, pytest.mark.asyncio(loop_scope="module")]

Rounds = Callable[[int, int], int]

HUBS = 3
CODES = [f"P33010099{number}" for number in range(200, 300)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def several(postgres_server: PostgresServer) -> AsyncIterator[Several]:
    async with several_hubs([new_ledger(postgres_server)] * HUBS) as running:
        await found_pharmacies(running[0], CODES)
        yield running


class Counter:
    """A pharmacy at one of the hubs, with a patient who shows the prescription's QR value."""

    def __init__(self, several: Several, number: int, historian: Historian) -> None:
        self.code = CODES[number]
        self._live = several[number]
        self._historian = historian
        self._token = ""

    async def present(self, rx_no: str) -> None:
        channel = await self._live.channel()
        made = await channel.make_qr(person_no=PERSON, rx_no=rx_no)
        pharmacy = await self._live.pharmacy(self.code)
        resolving = pharmacy.resolve_qr(rx_qr=made.rx_qr)
        reply = await self._historian.call(rx_no, Kind.OTHER, self.code, REQUEST_IDS.new(), resolving)
        assert not isinstance(reply, Refusal), (reply.code, str(reply))
        self._token = reply.rx_token

    async def download(self, rx_no: str) -> Any:
        pharmacy, request_id = await self._live.pharmacy(self.code), REQUEST_IDS.new()
        download = pharmacy.download(rx_token=self._token, request_id=request_id)
        return await self._historian.call(rx_no, Kind.DOWNLOAD, self.code, request_id, download)

    async def release(self, rx_no: str) -> None:
        pharmacy, request_id = await self._live.pharmacy(self.code), REQUEST_IDS.new()
        release = pharmacy.release(rx_no=rx_no, request_id=request_id)
        await self._historian.call(rx_no, Kind.RELEASE, self.code, request_id, release)


async def test_exactly_one_of_a_hundred_pharmacies_on_three_hubs_holds(several: Several, rounds: Rounds) -> None:
    chance = random.Random(3)
    recorder = Recorder()
    historian = Historian(recorder)
    counters = [Counter(several, number, historian) for number in range(len(CODES))]
    winners = set()
    rx_no = ""
    for number in range(rounds(10, 200)):
        if number % 20 == 0:
            recorder.check()
            chain = await Chain(several[number]).prechecked()
            rx_no, request_id = chain.rx_no, REQUEST_IDS.new()
            hospital = await several[number].hospital()
            upload = hospital.upload(**chain.upload_arguments(), request_id=request_id)
            await historian.call(rx_no, Kind.UPLOAD, "hospital", request_id, upload)
            await asyncio.gather(*(counter.present(rx_no) for counter in counters))
            several[0].advance(60_001)
        chance.shuffle(counters)
        asked = [asyncio.ensure_future(counter.download(rx_no)) for counter in counters]
        seen_between = await historian.read(rx_no, await several[number + 1].hospital())
        answers = await asyncio.gather(*asked)
        refused = [answer for answer in answers if isinstance(answer, Refusal)]
        assert {refusal.code for refusal in refused} == {"ORDER_ALREADY_HELD"}
        (winner,) = [
            counter for counter, answer in zip(counters, answers, strict=True) if not isinstance(answer, Refusal)
        ]
        assert seen_between.holder in ("", winner.code)
        for hub in range(HUBS):
            assert (await historian.read(rx_no, await several[hub].hospital())).holder == winner.code
        winners.add(winner.code)
        await winner.release(rx_no)
        await winner.present(rx_no)
    assert len(winners) > 1
    assert recorder.check() > 100
    await stores_agree(list(several.stores))
    assert (await (await several[1].auditor()).verify_ledger()).verified
