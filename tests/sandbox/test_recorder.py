"""What the recorder keeps of real calls, and what it makes of it when asked."""

import asyncio
import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest

from erxhub.client import ClientFailure
from erxhub.ledger.store import AppendResult, Write
from erxhub.rpc.methods import METHODS
from erxhub.sandbox.control import Control
from erxhub.sandbox.recorder import Filter, Recorder, all_of
from erxhub.v1 import dispensing_pb2, prescribing_pb2
from tests.chain import Chain
from tests.live import HOSPITAL, PHARMACY
from tests.sandbox.exchange_ground import ground
from tests.sandbox.test_faults import hospital_stub, listing, pharmacy_stub, release

LIST = METHODS["PrescribingService/ListPrescriptions"]


async def test_an_exchange_is_told_with_request_reply_signatures_and_entries() -> None:
    async with ground() as live:
        live.recorder.clear()
        chain = await Chain(live).uploaded()
        (upload,) = await live.traffic(method="Prescribing/UploadPrescription")
    assert upload.actor == f"hospital/{HOSPITAL}"
    assert upload.status == "OK"
    assert upload.rx_no == chain.rx_no
    assert upload.request_id
    assert upload.received_at_ms == live.now_ms()
    assert 0 < upload.arrived_us < upload.answered_us
    request = json.loads(upload.requests_json[0])
    assert request["file"]["data"].endswith(" bytes")
    assert request["prescription"]["payload_json"]["rx_no"] == chain.rx_no
    assert [verdict.valid for verdict in upload.signatures] == [True, True, True]
    assert {verdict.suite for verdict in upload.signatures} == {"EdDSA"}
    assert "prescription.effective" in [entry.type for entry in upload.entries]
    assert not upload.replayed
    assert upload.request_bytes > 1000
    assert upload.reply_bytes > 100


async def test_a_refusal_is_told_with_its_code_and_the_entry_that_it_left() -> None:
    async with ground() as live:
        hospital = await live.hospital()
        with pytest.raises(ClientFailure):
            await hospital.get(rx_no="1" * 27)
        (exchange,) = await live.traffic()
    assert (exchange.status, exchange.refusal_code) == ("NOT_FOUND", "RX_UNKNOWN")
    assert not exchange.replies_json
    assert [entry.type for entry in exchange.entries] == ["command.refused"]
    assert exchange.rx_no == "1" * 27


async def test_a_signature_that_does_not_verify_and_an_unknown_key_are_told_apart() -> None:
    async with ground() as live:
        chain = await Chain(live).reviewed()
        reviewed = (await live.traffic(method="Dispensing/ReviewPrescription"))[-1]
        assert [verdict.valid for verdict in reviewed.signatures] == [True]
        record = next(one for one in live.recorder._records if one.number == reviewed.number)
        request = dispensing_pb2.ReviewPrescriptionRequest.FromString(all_of(record.requests)[0])
        for change, reason in (("signature", "does not verify"), ("key_id", "unknown key")):
            broken = dispensing_pb2.ReviewPrescriptionRequest()
            broken.CopyFrom(request)
            broken.request_id = f"broken-{change}"
            if change == "signature":
                broken.statement.signatures[0].signature = bytes(64)
            else:
                broken.statement.signatures[0].key_id = "0" * 32
            with pytest.raises(Exception, match="SIG"):
                await live.as_caller("pharmacy", PHARMACY, "DispensingService/ReviewPrescription", broken)
            record.requests = broken.SerializeToString()
            (verdict,) = (await live.recorder.told(record)).signatures
            assert (verdict.valid, verdict.reason) == (False, reason)
        assert chain.rx_no


async def test_repeats_are_marked_also_while_the_first_attempt_is_open() -> None:
    async with ground() as live:
        chain = await Chain(live).held()
        live.recorder.clear()
        stub = await pharmacy_stub(live)
        await asyncio.gather(*(stub.ReleaseOrder(release(chain.rx_no)) for _ in range(3)))
        await stub.ReleaseOrder(release(chain.rx_no))
        replayed = [exchange.replayed for exchange in await live.traffic()]
    assert replayed == [False, True, True, True]


async def test_traffic_can_be_narrowed_to_a_prescription_an_actor_a_method_and_a_place() -> None:
    async with ground() as live:
        one = await Chain(live).held()
        other = await Chain(live).uploaded()
        everything = await live.traffic()
        of_one = await live.traffic(rx_no=one.rx_no)
        assert {exchange.method for exchange in of_one} >= {
            "Prescribing/PrecheckPrescription",
            "Prescribing/UploadPrescription",
            "Dispensing/ListByVoucher",
            "Dispensing/DownloadPrescription",
        }
        assert all(exchange.rx_no != other.rx_no for exchange in of_one)
        assert [exchange.rx_no for exchange in of_one if exchange.method == "Dispensing/DownloadPrescription"] == [
            one.rx_no
        ]
        assert {exchange.actor for exchange in await live.traffic(actor=f"pharmacy/{PHARMACY}")} == {
            f"pharmacy/{PHARMACY}"
        }
        assert len(await live.traffic(method="PrescribingService/UploadPrescription")) == 2
        assert [exchange.number for exchange in await live.traffic(after_number=3)] == [
            exchange.number for exchange in everything
        ][3:]


async def test_following_tells_what_was_and_then_what_comes() -> None:
    async with ground() as live:
        stub = await hospital_stub(live)
        await stub.ListPrescriptions(listing())
        following = live.recorder.follow(Filter(actor=f"hospital/{HOSPITAL}"))
        assert (await anext(following)).number == 1
        coming = asyncio.ensure_future(anext(following))
        await stub.ListPrescriptions(listing())
        assert (await coming).number == 2
        stream = stub.WatchPrescriptions(prescribing_pb2.WatchPrescriptionsRequest(from_start=True))
        await stream.initial_metadata()
        opened = await anext(following)
        assert (opened.method, opened.status) == ("Prescribing/WatchPrescriptions", "")
        stream.cancel()
        ended = await anext(following)
        assert (ended.number, ended.status) == (opened.number, "CANCELLED")
        await following.aclose()
        assert not live.recorder._followers


async def test_the_oldest_exchanges_go_first_when_there_are_too_many_or_too_much() -> None:
    async with ground() as live:
        for recorder, kept in (
            (Recorder(live, records_max=3), [3, 4, 5]),
            (Recorder(live, bytes_max=4000), [4, 5]),
        ):
            for _ in range(5):
                record = recorder.begin(LIST, "hospital/H")
                recorder.request(record, bytes(1000))
                recorder.end(record, "OK")
            assert [exchange.number async for exchange in recorder.exchanges()] == kept
            assert (recorder.recorded, recorder.kept) == (5, len(kept))


async def test_bytes_that_are_no_message_are_told_as_that() -> None:
    async with ground() as live:
        recorder = live.recorder
        record = recorder.begin(LIST, "hospital/H")
        recorder.request(record, b"\xff\xff")
        recorder.end(record, "INVALID_ARGUMENT")
        (exchange,) = await live.traffic()
        assert json.loads(exchange.requests_json[0]) == {"unreadable_bytes": 2}
        assert exchange.request_id == ""


async def test_an_import_is_recorded_with_its_messages() -> None:
    async with ground() as live:
        await live.import_magic_drugs()
        exchanges = await live.traffic(method="Registry/ImportCatalog")
        assert len(exchanges) == 2
        assert "header" in json.loads(exchanges[0].requests_json[0])
        assert exchanges[0].request_id
        assert [entry.type for entry in exchanges[0].entries] == ["catalogue.imported"]


async def test_clearing_counts_from_one_again() -> None:
    async with ground() as live:
        stub = await hospital_stub(live)
        await stub.ListPrescriptions(listing())
        live.recorder.clear()
        await stub.ListPrescriptions(listing())
        (exchange,) = await live.traffic()
        assert exchange.number == 1


def test_a_write_that_was_left_out_as_busy_or_beaten_is_taken_for_nobodys() -> None:
    recorder = Recorder(cast(Control, SimpleNamespace()))
    batch = [SimpleNamespace(entries=[SimpleNamespace(header_bytes=name)]) for name in (b"busy", b"beaten", b"written")]
    result = AppendResult(frozenset({1}), 7, frozenset({0}))
    recorder.committed(cast(Sequence[Write], batch), result)
    assert recorder._left == [(7, b"written")]
