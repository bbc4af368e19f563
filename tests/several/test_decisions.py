"""Commands about one prescription through different hubs at once: every answer can be explained by one order."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from erxhub.client import Refusal
from tests.chain import DOCTOR, PURCHASE, Chain
from tests.linear.checker import Recorder
from tests.linear.model import Kind
from tests.live import EMPLOYEE, PERSON, PHARMACY, PHARMACY_B, REQUEST_IDS
from tests.postgres import PostgresServer
from tests.races.ground import turns
from tests.several.ground import Historian, Several, new_ledger, several_hubs, stores_agree

pytestmark = [pytest.mark.campaign, pytest.mark.asyncio(loop_scope="module")]

Rounds = Callable[[int, int], int]

HUBS = 3


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def several(postgres_server: PostgresServer) -> AsyncIterator[Several]:
    async with several_hubs([new_ledger(postgres_server)] * HUBS) as running:
        yield running


class Sale:
    """One prescription, its hospital, and two pharmacies that want it; each call goes through a hub drawn at random."""

    def __init__(self, several: Several, chance: random.Random, historian: Historian) -> None:
        self._several, self._chance, self._historian = several, chance, historian
        self._chain = Chain(several[0])
        self.answers: Counter[str] = Counter()

    @property
    def rx_no(self) -> str:
        return self._chain.rx_no

    def _at(self, pharmacy_code: str = PHARMACY) -> Chain:
        """The chain as that pharmacy goes on with it, at some hub."""
        hub = self._several[self._chance.randrange(HUBS)]
        return replace(self._chain, live=hub, pharmacy_code=pharmacy_code)

    async def call(self, kind: Kind, caller: str, make: Callable[[str], Awaitable[Any]], about: str = "") -> Any:
        """One call under a new request id, begun after some turns of the loop."""
        request_id = REQUEST_IDS.new()
        await turns(self._chance.randrange(40))
        answer = await self._historian.call(self.rx_no, kind, caller, request_id, make(request_id), about)
        self.answers[f"{kind} {answer.code if isinstance(answer, Refusal) else 'OK'}"] += 1
        return answer

    async def twice(self, kind: Kind, caller: str, make: Callable[[str], Any]) -> Any:
        """The same request through two hubs at once, as a caller sends it who thinks that the first one is gone."""
        request_id = REQUEST_IDS.new()
        calls = [self._historian.call(self.rx_no, kind, caller, request_id, make(request_id)) for _ in range(2)]
        first, second = await asyncio.gather(*calls)
        if not isinstance(first, Refusal) and not isinstance(second, Refusal):
            assert first.SerializeToString() == second.SerializeToString()
        return second if isinstance(first, Refusal) else first

    async def upload(self) -> None:
        self._chain = await self._at().prechecked()
        hospital = await self._at().live.hospital()
        arguments = self._chain.upload_arguments()
        await self.call(Kind.UPLOAD, "hospital", lambda request_id: hospital.upload(**arguments, request_id=request_id))

    async def presented(self, pharmacy_code: str) -> Chain:
        """The pharmacy's chain; its authorisation is the token of the patient's QR value."""
        chain = self._at(pharmacy_code)

        async def resolve(_: str) -> Any:
            made = await (await chain.live.channel()).make_qr(person_no=PERSON, rx_no=self.rx_no)
            return await (await chain.live.pharmacy(pharmacy_code)).resolve_qr(rx_qr=made.rx_qr)

        chain.authorization_no = (await self.call(Kind.OTHER, pharmacy_code, resolve)).rx_token
        return chain

    async def download(self, chain: Chain) -> Any:
        async def download(request_id: str) -> Any:
            pharmacy = await self._at().live.pharmacy(chain.pharmacy_code)
            return await pharmacy.download(rx_token=chain.authorization_no, request_id=request_id)

        if self._chance.random() < 0.5:
            return await self.twice(Kind.DOWNLOAD, chain.pharmacy_code, download)
        return await self.call(Kind.DOWNLOAD, chain.pharmacy_code, download)

    async def revoke(self) -> Any:
        hospital = await self._at().live.hospital()
        return await self.call(
            Kind.REVOKE,
            "hospital",
            lambda request_id: hospital.revoke(
                rx_no=self.rx_no, doctor_code=DOCTOR, reason="撤回", request_id=request_id
            ),
        )

    async def release(self, code: str) -> Any:
        pharmacy = await self._at().live.pharmacy(code)
        return await self.call(
            Kind.RELEASE, code, lambda request_id: pharmacy.release(rx_no=self.rx_no, request_id=request_id)
        )

    async def read(self) -> Any:
        await turns(self._chance.randrange(60))
        return await self._historian.read(self.rx_no, await self._at().live.hospital())

    async def quoted(self, chain: Chain) -> Chain | None:
        """With a review and a quote, if the hold lasts that long."""

        async def quote(_: str) -> Any:
            return (await chain.quote_again()).quote

        reviewed = await self.call(Kind.OTHER, chain.pharmacy_code, lambda _: chain.review())
        quoted = await self.call(Kind.OTHER, chain.pharmacy_code, quote)
        return None if isinstance(reviewed, Refusal) or isinstance(quoted, Refusal) else chain

    async def settle(self, chain: Chain, request_id: str) -> Any:
        at = self._at(chain.pharmacy_code)
        at.quote = chain.quote
        reference = await at.reference(PURCHASE)
        await turns(self._chance.randrange(40))
        settle = at.settle(voucher_ref=reference, request_id=request_id)
        answer = await self._historian.call(self.rx_no, Kind.SETTLE, chain.pharmacy_code, request_id, settle)
        self.answers[f"settle {answer.code if isinstance(answer, Refusal) else 'OK'}"] += 1
        return answer

    async def reverse(self, chain: Chain, about: str) -> Any:
        pharmacy = await self._at().live.pharmacy(chain.pharmacy_code)
        return await self.call(
            Kind.REVERSE,
            chain.pharmacy_code,
            lambda request_id: pharmacy.reverse_settlement(original_request_id=about, request_id=request_id),
            about,
        )

    async def dispense(self, chain: Chain, settlement_id: str) -> Any:
        at = self._at(chain.pharmacy_code)
        at.settlement_id = settlement_id
        pharmacy, arguments = await at.live.pharmacy(at.pharmacy_code), at.dispense_arguments()
        return await self.call(
            Kind.DISPENSE,
            chain.pharmacy_code,
            lambda request_id: pharmacy.dispense(**arguments, request_id=request_id),
        )


WANTED = ("revoke RX_UNDO_STATE", "settle OK", "reverse OK", "dispense OK", "release OK")
"""Answers without which the histories would not hold what they are for."""


async def _one_sale(sale: Sale, chance: random.Random) -> None:
    await sale.upload()
    chains = [await sale.presented(code) for code in (PHARMACY, PHARMACY_B)]
    rivals = [sale.download(chain) for chain in chains] + [sale.read()]
    if chance.random() < 0.3:
        rivals.append(sale.revoke())
    answers = await asyncio.gather(*rivals)
    held = [(chain, answer) for chain, answer in zip(chains, answers, strict=False) if not isinstance(answer, Refusal)]
    if held:
        chain, chain.download = held[0]
        quoted = await sale.quoted(chain)
        if quoted is not None:
            settling = REQUEST_IDS.new()
            rivals = [sale.settle(quoted, settling), sale.read()]
            rivals += [sale.reverse(quoted, settling)] if chance.random() < 0.4 else []
            rivals += [sale.revoke()] if chance.random() < 0.3 else []
            rivals += [sale.release(quoted.pharmacy_code)] if chance.random() < 0.3 else []
            settled = (await asyncio.gather(*rivals))[0]
            if not isinstance(settled, Refusal):
                rivals = [sale.dispense(quoted, settled.settlement_id) for _ in range(2)]
                rivals += [sale.reverse(quoted, settling), sale.read()]
                await asyncio.gather(*rivals)
    await sale.read()


async def test_whatever_three_hubs_are_asked_at_once_has_one_order(several: Several, rounds: Rounds) -> None:
    chance = random.Random(5)
    recorder = Recorder()
    answers: Counter[str] = Counter()
    least = rounds(10, 200)
    for number in range(5 * least):
        # Which of several callers is first is not ours to say, so it goes on until each has been, within reason.
        if number >= least and all(answers[wanted] for wanted in WANTED):
            break
        sales = [Sale(several, chance, Historian(recorder)) for _ in range(3)]
        await asyncio.gather(*(_one_sale(sale, chance) for sale in sales))
        several[0].advance(60_001)
        for sale in sales:
            answers += sale.answers
    assert recorder.check() > 0
    for wanted in WANTED:
        assert answers[wanted], f"{wanted} never happened: {dict(answers)}"
    await stores_agree(list(several.stores))
    assert (await (await several[2].auditor()).verify_ledger()).verified


async def test_the_last_fen_of_an_account_is_spent_once(postgres_server: PostgresServer, rounds: Rounds) -> None:
    """Two prescriptions of one person, settled through two hubs at once, each for all that is in the account."""
    for _ in range(rounds(2, 20)):
        async with several_hubs([new_ledger(postgres_server)] * 2) as several:
            chains = []
            for hub, code in enumerate((PHARMACY, PHARMACY_B)):
                chain = Chain(several[hub], person_no=EMPLOYEE, pharmacy_code=code)
                await chain.reviewed()
                lines = chain.sale_lines()
                for line in lines:
                    line.unit_price = "1500.00"
                chains.append(await chain.quote_again(lines=lines))
            whole_fen = await _balance_fen(several, 0)
            assert [chain.quote.amounts.account_fen for chain in chains] == [whole_fen, whole_fen]
            answers = await asyncio.gather(*(_outcome(chain.settle()) for chain in chains))
            refused = [answer.code for answer in answers if isinstance(answer, Refusal)]
            assert refused == ["ACCT_INSUFFICIENT"]
            assert [await _balance_fen(several, hub) for hub in range(2)] == [0, 0]
            assert (await (await several[0].auditor()).verify_ledger()).verified


async def _balance_fen(several: Several, hub: int) -> int:
    agency = await several[hub].agency()
    return int((await agency.get_person(person_no=EMPLOYEE)).person.account_balance_fen)


async def _outcome(call: Any) -> Any:
    try:
        return await call
    except Refusal as refusal:
        return refusal
