"""The database connection of one hub is cut at a COMMIT, before, during and after it, while calls are in flight."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable

import pytest

from erxhub.client import ClientFailure, Refusal
from tests.chain import CONSULT, Chain
from tests.ledger.cutting_proxy import Cut, CuttingProxy
from tests.live import CHANNEL, HOSPITAL, PERSON
from tests.postgres import PostgresServer
from tests.races.ground import Book, assert_each_once, reply_bytes
from tests.several.ground import new_ledger, several_hubs

pytestmark = [pytest.mark.campaign]

Rounds = Callable[[int, int], int]


async def test_a_cut_at_a_commit_ends_in_exactly_one_effect(postgres_server: PostgresServer, rounds: Rounds) -> None:
    chance = random.Random(13)
    every = Book()
    ends: Counter[str] = Counter()
    async with CuttingProxy(postgres_server.port) as proxy:
        direct = new_ledger(postgres_server, tcp=True)
        cut_off = direct.replace(f":{postgres_server.port}/", f":{proxy.port}/")
        async with several_hubs([direct, cut_off]) as several:
            diagnosed = await Chain(several[0]).diagnosed()
            hospital = await several[1].connect("hospital", HOSPITAL, attempts=1)
            channel = await several[1].connect("channel", CHANNEL, attempts=1)
            cuts = 0
            while proxy.cuts < rounds(20, 200):
                cuts += 1
                assert cuts < rounds(60, 600), "the cuts do not happen"
                book = Book()
                several[0].advance(1_000)
                chains = []
                for number in range(2):
                    chain = Chain(
                        several[1], encounter_id=diagnosed.encounter_id, hospital_rx_no=f"CUT-{cuts}-{number}"
                    )
                    chain.prescription = chain.written()
                    chains.append(await chain.prechecked())
                for client in (hospital, channel):
                    book.keep(client)
                proxy.arm(chance.choice(list(Cut)))
                calls = [hospital.upload(**chain.upload_arguments()) for chain in chains]
                calls += [channel.issue_voucher(person_no=PERSON, business_type=CONSULT) for _ in range(3)]
                answers = await asyncio.gather(*calls, return_exceptions=True)
                for client in (hospital, channel):
                    del client.connection.unary  # the wrapper of this round's book
                for answer in answers:
                    assert not isinstance(answer, BaseException) or isinstance(answer, ClientFailure), repr(answer)
                    ends[answer.code if isinstance(answer, Refusal) else type(answer).__name__] += 1
                # Whatever it was told, the caller asks the other hub, and gets one answer from now on.
                others = {"hospital": await several[0].hospital(), "channel": await several[0].channel()}
                for note in book.sent.values():
                    reply = await reply_bytes(others[note.client.connection.peer_name.role], note.request)
                    assert note.reply in (b"", reply), f"{type(note.request).__name__} got another reply"
                    note.reply = reply
                every.sent |= book.sent
            assert ends["HUB_UNAVAILABLE"], f"no cut reached a caller: {dict(ends)}"
            await assert_each_once(several.stores[0], every)
            assert (await (await several[1].auditor()).verify_ledger()).verified


async def test_a_reversal_through_another_hub_overtakes_its_original(postgres_server: PostgresServer) -> None:
    async with several_hubs([new_ledger(postgres_server)] * 2) as several:
        chain = await Chain(several[0]).quoted()
        await (await several[1].pharmacy()).reverse_settlement(original_request_id="settle-overtaken-hub")
        for hub in (0, 1):
            chain.live = several[hub]
            with pytest.raises(Refusal) as caught:
                await chain.settle(request_id="settle-overtaken-hub")
            assert caught.value.code == "SETL_TERMINAL"
