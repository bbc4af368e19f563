"""The same request again: the first reply, byte for byte, and exactly one effect; before and after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from erxhub.client import Refusal
from erxhub.ledger.sqlite import open_sqlite
from erxhub.rpc.methods import COMMAND, METHODS
from erxhub.v1 import dispensing_pb2
from tests.chain import DOCTOR, Chain
from tests.live import DAY_MS, PERSON, Live, live_hub
from tests.races.commands import first_request
from tests.races.ground import Book, Sent, assert_each_once, reply_bytes

pytestmark = [pytest.mark.campaign, pytest.mark.asyncio(loop_scope="module")]

SECRETS = {
    "IssueVoucherRequest": "voucher_code",
    "VerifyVoucherRequest": "voucher_ref",
    "ListByVoucherRequest": "prescriptions",
    "ResolveQrRequest": "rx_token",
    "MakeQrRequest": "rx_qr",
    "RequestDeliveryRequest": "sign_code",
    "DownloadPrescriptionRequest": "file",
}


async def _keep_all(live: Live, book: Book) -> None:
    for client in (
        await live.hospital(),
        await live.pharmacy(),
        await live.channel(),
        await live.agency(),
    ):
        book.keep(client)


async def _everything(live: Live) -> None:
    """Commands of every service, those with a secret in the reply among them."""
    chain = await Chain(live).delivered()
    pharmacy, channel, hospital = await live.pharmacy(), await live.channel(), await live.hospital()
    other = await Chain(live).uploaded()
    made = await channel.make_qr(person_no=PERSON, rx_no=other.rx_no)
    resolved = await pharmacy.resolve_qr(rx_qr=made.rx_qr)
    await pharmacy.download(rx_token=resolved.rx_token)
    await pharmacy.release(rx_no=other.rx_no)
    await hospital.revoke(rx_no=other.rx_no, doctor_code=DOCTOR, reason="撤回")
    paid = await Chain(live).settled()
    await pharmacy.undo_settlement(rx_no=paid.rx_no, settlement_id=paid.settlement_id, reason="退费")
    await pharmacy.reverse_settlement(original_request_id="never-arrived-1")
    await hospital.close_encounter(encounter_id=chain.encounter_id)


async def test_every_answered_request_gets_its_first_reply_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    book = Book()
    async with live_hub(database=path) as live:
        await _keep_all(live, book)
        await _everything(live)
        names = {type(note.request).__name__: note for note in book.sent.values()}
        for name, field in SECRETS.items():
            note = names[name]
            reply = METHODS[_method_of(name)].response.FromString(note.reply)
            assert getattr(reply, field), f"{name} was answered without its {field}"

        async def all_again() -> None:
            for note in book.sent.values():
                assert await reply_bytes(note.client, note.request) == note.reply, type(note.request).__name__

        await all_again()
        # Codes, references, authorisations, quotes and signing times are all over by now.
        live.advance(DAY_MS)
        await live.hub.engine.sweep()
        await all_again()
        await live.restart(lambda: open_sqlite(path))
        await all_again()
        await assert_each_once(live.hub.store, book)


def _method_of(request: str) -> str:
    return next(name for name, method in METHODS.items() if method.request.DESCRIPTOR.name == request)


async def test_no_field_of_a_command_stands_where_the_repeat_does_not_look() -> None:
    # Fields 1 and 2 of a request are left out when its content is compared: they are request_id and wait_for.
    for method in METHODS.values():
        if method.effect == COMMAND and not method.streams_in:
            fields = method.request.DESCRIPTOR.fields_by_number
            assert fields[1].name == "request_id", method.name
            assert 2 not in fields or fields[2].name == "wait_for", method.name


# ---- many at once ----


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live() -> AsyncIterator[Live]:
    async with live_hub() as running:
        yield running


@pytest.mark.parametrize(
    "kind",
    ["issue", "verify", "list", "precheck", "upload", "qr", "download", "settle", "delivery", "dispense"],
)
async def test_fifty_identical_requests_at_once_have_one_effect_and_one_reply(live: Live, kind: str) -> None:
    client, request = await first_request(live, kind)
    name = client.connection.peer_name
    other = await live.connect(name.role, name.id)
    replies = await asyncio.gather(*(reply_bytes(client if number % 2 else other, request) for number in range(50)))
    assert len(set(replies)) == 1
    await assert_each_once(live.hub.store, Book({request.request_id: Sent(client, request, replies[0])}))


async def test_same_id_with_other_content_at_once_lets_one_through(live: Live) -> None:
    client, request = await first_request(live, "issue")
    second = type(request)()
    second.CopyFrom(request)
    second.business_type = "02121"

    async def one(message: Any) -> str:
        try:
            await reply_bytes(client, message)
        except Refusal as refusal:
            return refusal.code
        return "OK"

    answers = await asyncio.gather(*(one(request if number % 2 else second) for number in range(40)))
    assert sorted(answers) == ["IDEMPOTENCY_CONFLICT"] * 20 + ["OK"] * 20


async def test_refusal_binds_nothing_and_the_same_id_is_evaluated_afresh(live: Live) -> None:
    pharmacy, rival = await live.pharmacy(), await live.pharmacy("P33010099102")
    chain = await Chain(live).held()
    other = Chain(live, pharmacy_code="P33010099102", rx_no=chain.rx_no)
    await other.listed()
    request = dispensing_pb2.DownloadPrescriptionRequest(
        request_id="evaluated-afresh-1", authorization_no=other.authorization_no
    )
    with pytest.raises(Refusal) as refused:
        await reply_bytes(rival, request)
    assert refused.value.code == "ORDER_ALREADY_HELD"
    await pharmacy.release(rx_no=chain.rx_no)
    first = await reply_bytes(rival, request)
    assert await reply_bytes(rival, request) == first
