"""What each fault does to a real call of a real hub, and what it leaves in the ledger."""

import asyncio
import itertools
from typing import Any

import grpc
import pytest

from erxhub.client import ClientFailure
from erxhub.ledger.store import StoredEntry
from erxhub.sandbox.alterations import UNKNOWN_ENUM_VALUE
from erxhub.v1 import dispensing_pb2, dispensing_pb2_grpc, prescribing_pb2, prescribing_pb2_grpc, sandbox_pb2
from tests import chain as chains
from tests.chain import Chain
from tests.live import HOSPITAL, PHARMACY, REQUEST_IDS
from tests.sandbox.exchange_ground import Ground, ground

A = sandbox_pb2.FaultAction


def arguments(**fields: Any) -> sandbox_pb2.FaultArguments:
    return sandbox_pb2.FaultArguments(**fields)


async def raw_stub(live: Ground, kind: Any, role: str, code: str) -> Any:
    """A stub of the generated code: bare gRPC, without our client library."""
    identity = live.identity(role, code)
    credentials = grpc.ssl_channel_credentials(identity.ca_pem, identity.key_pem, identity.cert_pem)
    channel = grpc.aio.secure_channel(live.target, credentials)
    await live.stack.enter_async_context(channel)
    return kind(channel)


async def hospital_stub(live: Ground) -> Any:
    return await raw_stub(live, prescribing_pb2_grpc.PrescribingServiceStub, "hospital", HOSPITAL)


async def pharmacy_stub(live: Ground) -> Any:
    return await raw_stub(live, dispensing_pb2_grpc.DispensingServiceStub, "pharmacy", PHARMACY)


def listing() -> prescribing_pb2.ListPrescriptionsRequest:
    return prescribing_pb2.ListPrescriptionsRequest()


async def ledger(live: Ground) -> list[StoredEntry]:
    return await live.store.log(0, 100_000)


def release(rx_no: str, request_id: str = "release-00001") -> dispensing_pb2.ReleaseOrderRequest:
    return dispensing_pb2.ReleaseOrderRequest(request_id=request_id, rx_no=rx_no, reason="test")


async def status_of(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return failed.value


# ---- nothing set ----


async def _a_day(live: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some calls of every kind: commands, reads, a refusal, a repeat; the same ids each time."""
    monkeypatch.setattr(REQUEST_IDS, "_numbers", itertools.count(7_000_001))
    monkeypatch.setattr(chains, "_NUMBERS", itertools.count(7_000_001))
    chain = await Chain(live).settled()
    hospital = await live.hospital()
    await hospital.get(rx_no=chain.rx_no)
    with pytest.raises(ClientFailure):
        await hospital.get(rx_no="1" * 27)
    stub = await pharmacy_stub(live)
    await status_of(stub.ReleaseOrder(release(chain.rx_no)))
    await chain.dispensed()


async def test_without_rules_replies_and_ledger_are_those_of_a_hub_without_the_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    for wrapped in (True, False):
        async with ground(wrapped=wrapped) as live:
            live.replies.clear()
            await _a_day(live, monkeypatch)
            seen.append((live.replies, await ledger(live)))
    assert len(seen[0][0]) > 12
    assert seen[0] == seen[1]


# ---- before the hub ----


async def test_delay_waits_and_the_call_is_served() -> None:
    async with ground() as live:
        live.rule(rule_id="d", method="Prescribing/*", action=A.FAULT_ACTION_DELAY, arguments=arguments(delay_ms=250))
        await (await hospital_stub(live)).ListPrescriptions(listing())
        assert live.pauses.waited_ms == [250]
        (exchange,) = await live.traffic()
        assert (exchange.status, list(exchange.faults)) == ("OK", ["d delay"])


async def test_error_answers_with_the_refusal_as_the_hub_would_and_the_hub_sees_nothing() -> None:
    async with ground() as live:
        before = await ledger(live)
        live.rule(
            method="*",
            action=A.FAULT_ACTION_ERROR,
            nth=1,
            arguments=arguments(code="HUB_UNAVAILABLE", retry_after_ms=70),
        )
        hospital = await live.patient(attempts=1)
        with pytest.raises(ClientFailure) as failed:
            await hospital.list_prescriptions()
        assert "HUB_UNAVAILABLE" in str(failed.value)
        assert await ledger(live) == before
        (exchange,) = await live.traffic()
        assert (exchange.status, exchange.refusal_code) == ("UNAVAILABLE", "HUB_UNAVAILABLE")
        assert (await hospital.list_prescriptions()) is not None


async def test_error_may_be_a_bare_status() -> None:
    async with ground() as live:
        live.rule(method="*", action=A.FAULT_ACTION_ERROR, arguments=arguments(code="INTERNAL"))
        failed = await status_of((await hospital_stub(live)).ListPrescriptions(listing()))
        assert failed.code() == grpc.StatusCode.INTERNAL
        assert not [key for key, _ in failed.trailing_metadata() or () if key == "grpc-status-details-bin"]


async def test_a_dropped_request_never_reaches_the_hub() -> None:
    async with ground() as live:
        chain = await Chain(live).held()
        before = await ledger(live)
        live.rule(method="Dispensing/ReleaseOrder", action=A.FAULT_ACTION_DROP_REQUEST, nth=1)
        stub = await pharmacy_stub(live)
        failed = await status_of(stub.ReleaseOrder(release(chain.rx_no)))
        assert (failed.code(), failed.details()) == (grpc.StatusCode.UNAVAILABLE, "connection lost")
        assert await ledger(live) == before
        await stub.ReleaseOrder(release(chain.rx_no))


async def test_a_request_dropped_in_silence_ends_with_the_callers_deadline_and_is_recorded_as_lost() -> None:
    async with ground() as live:
        live.rule(method="*", action=A.FAULT_ACTION_DROP_REQUEST, arguments=arguments(hang=True))
        failed = await status_of((await hospital_stub(live)).ListPrescriptions(listing(), timeout=0.2))
        assert failed.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await _until(lambda: live.recorder.recorded == 1 and not live.exchanges._open)
        assert [exchange.status for exchange in await live.traffic()] == ["LOST"]


async def _until(reached: Any) -> None:
    """Lets the server's side of a call that its caller has left end."""
    async with asyncio.timeout(5):
        while not reached():  # noqa: ASYNC110 the server's side has no event to wait for
            await asyncio.sleep(0)


async def test_goaway_is_asked_of_the_namespace_and_the_call_is_lost() -> None:
    async with ground() as live:
        live.rule(method="*", action=A.FAULT_ACTION_GOAWAY, nth=1)
        failed = await status_of((await hospital_stub(live)).ListPrescriptions(listing()))
        assert failed.code() == grpc.StatusCode.UNAVAILABLE
        assert live.goaways == 1


async def test_a_certificate_revoked_now_is_refused_by_the_hub_itself() -> None:
    async with ground() as live:
        live.rule(method="*", actor=f"hospital/{HOSPITAL}", action=A.FAULT_ACTION_REVOKE_CERT_NOW, nth=2)
        stub = await hospital_stub(live)
        await stub.ListPrescriptions(listing())
        for _ in range(2):
            failed = await status_of(stub.ListPrescriptions(listing()))
            assert failed.code() == grpc.StatusCode.UNAUTHENTICATED
        codes = [exchange.refusal_code for exchange in await live.traffic()]
        assert codes == ["", "CERT_REVOKED", "CERT_REVOKED"]


async def test_a_skewed_clock_is_refused_when_it_is_too_far_off() -> None:
    async with ground() as live:
        live.rule(method="*", action=A.FAULT_ACTION_CLOCK_SKEW, arguments=arguments(skew_ms=-400_000))
        await status_of((await hospital_stub(live)).ListPrescriptions(listing()))
        live.faults.clear()
        live.rule(method="*", action=A.FAULT_ACTION_CLOCK_SKEW, arguments=arguments(skew_ms=200_000))
        await (await hospital_stub(live)).ListPrescriptions(listing())
        assert [exchange.refusal_code for exchange in await live.traffic()] == ["TIME_SKEW", ""]


async def test_an_issuer_that_is_down_stops_vouchers_and_nothing_else() -> None:
    async with ground() as live:
        channel = await live.patient(role="channel", code="demo-app")
        live.rule(method="*", action=A.FAULT_ACTION_VOUCHER_ISSUER_DOWN)
        with pytest.raises(ClientFailure, match="HUB_UNAVAILABLE"):
            await channel.issue_voucher(person_no="33010000990001", business_type="01201")
        await (await hospital_stub(live)).ListPrescriptions(listing())


async def test_small_pages_bind_whatever_the_caller_asks_for() -> None:
    async with ground() as live:
        agency = await live.agency()
        live.rule(method="*", action=A.FAULT_ACTION_SMALL_PAGES, arguments=arguments(page_size=1))
        reply = await agency.list_institutions(page_size=50)
        assert len(reply.institutions) == 1
        assert reply.next_page_token


async def test_a_command_keeps_its_small_page_at_each_repeat_so_that_it_stays_the_same_request() -> None:
    async with ground() as live:
        chain = await Chain(live).uploaded()
        reference = await chain.reference(chains.DOWNLOAD)
        live.rule(method="*", action=A.FAULT_ACTION_SMALL_PAGES, nth=1, arguments=arguments(page_size=1))
        stub = await pharmacy_stub(live)
        request = dispensing_pb2.ListByVoucherRequest(request_id="list-000001", voucher_ref=reference)
        first = await stub.ListByVoucher(request)
        assert await stub.ListByVoucher(request) == first
        live.faults.clear()
        assert await stub.ListByVoucher(request) == first


# ---- the reply ----


async def test_a_lost_ack_leaves_the_commit_and_the_same_request_id_gets_the_stored_reply() -> None:
    async with ground() as live:
        chain = await Chain(live).held()
        live.recorder.clear()
        live.rule(rule_id="l", method="Dispensing/ReleaseOrder", action=A.FAULT_ACTION_LOSE_ACK, nth=1)
        stub = await pharmacy_stub(live)
        failed = await status_of(stub.ReleaseOrder(release(chain.rx_no)))
        assert failed.code() == grpc.StatusCode.UNAVAILABLE
        assert not failed.trailing_metadata()
        reply = await stub.ReleaseOrder(release(chain.rx_no))
        assert reply.receipt.entries
        lost, repeated = await live.traffic()
        assert (lost.status, list(lost.faults), lost.replies_json[:]) == ("UNAVAILABLE", ["l lose_ack"], [])
        assert "order.released" in [entry.type for entry in lost.entries]
        assert [entry.type for entry in repeated.entries] == ["audit.read"]
        assert repeated.replayed
        assert repeated.arrived_us > lost.arrived_us


async def test_lose_ack_can_follow_an_event() -> None:
    async with ground() as live:
        chain = await Chain(live).held()
        live.recorder.clear()
        live.rule(rule_id="e", event="order.released", rx_no=chain.rx_no, action=A.FAULT_ACTION_LOSE_ACK, nth=1)
        stub = await pharmacy_stub(live)
        failed = await status_of(stub.ReleaseOrder(release(chain.rx_no)))
        assert failed.details() == "connection lost"
        await stub.ReleaseOrder(release(chain.rx_no))
        first, second = await live.traffic()
        assert list(first.faults) == ["e lose_ack"]
        assert not second.faults
        assert (live.told("e").matched, live.told("e").fired) == (1, 1)


async def test_a_duplicated_command_is_done_once() -> None:
    async with ground() as live:
        chain = await Chain(live).held()
        live.rule(method="*", action=A.FAULT_ACTION_DUPLICATE)
        await (await pharmacy_stub(live)).ReleaseOrder(release(chain.rx_no))
        entries = (await live.traffic())[-1].entries
        assert [entry.type for entry in entries].count("order.released") == 1


async def test_a_stale_read_shows_the_older_reply_so_often_and_then_the_new_one() -> None:
    async with ground() as live:
        chain = await Chain(live).uploaded()
        live.rule(
            rule_id="s",
            method="Prescribing/GetPrescription",
            action=A.FAULT_ACTION_STALE_READ,
            arguments=arguments(lag=2),
        )
        stub = await hospital_stub(live)
        request = prescribing_pb2.GetPrescriptionRequest(rx_no=chain.rx_no)
        before = (await stub.GetPrescription(request)).statuses
        await chain.held()
        shown = [(await stub.GetPrescription(request)).statuses for _ in range(4)]
        assert [statuses == before for statuses in shown] == [True, True, False, False]
        assert (live.told("s").matched, live.told("s").fired) == (5, 2)


async def test_unknown_fields_are_in_the_reply_and_change_nothing_that_is_known() -> None:
    async with ground() as live:
        chain = await Chain(live).uploaded()
        stub = await hospital_stub(live)
        request = prescribing_pb2.GetPrescriptionRequest(rx_no=chain.rx_no)
        plain = await stub.GetPrescription(request)
        live.rule(method="*", action=A.FAULT_ACTION_UNKNOWN_FIELDS)
        grown = await stub.GetPrescription(request)
        assert grown.ByteSize() > plain.ByteSize() + 40
        grown.DiscardUnknownFields()
        assert grown == plain


async def test_an_unknown_enum_value_is_in_the_reply() -> None:
    async with ground() as live:
        chain = await Chain(live).uploaded()
        live.rule(method="*", action=A.FAULT_ACTION_UNKNOWN_ENUM)
        reply = await (await hospital_stub(live)).GetPrescription(
            prescribing_pb2.GetPrescriptionRequest(rx_no=chain.rx_no)
        )
        assert str(UNKNOWN_ENUM_VALUE) in str(reply)


async def test_a_corrupt_signature_differs_in_one_bit_and_our_client_sees_it() -> None:
    async with ground() as live:
        chain = await Chain(live).uploaded()
        await chain.listed()
        live.rule(method="Dispensing/DownloadPrescription", action=A.FAULT_ACTION_CORRUPT_SIGNATURE, nth=1)
        stub = await pharmacy_stub(live)
        request = dispensing_pb2.DownloadPrescriptionRequest(
            request_id="download-0001", authorization_no=chain.authorization_no
        )
        broken, whole = await stub.DownloadPrescription(request), await stub.DownloadPrescription(request)
        flipped = [
            left ^ right
            for left, right in zip(
                broken.prescription.signatures[0].signature, whole.prescription.signatures[0].signature, strict=True
            )
            if left != right
        ]
        assert flipped == [1]
        live.rule(method="Voucher/IssueVoucher", action=A.FAULT_ACTION_CORRUPT_SIGNATURE)
        channel = await live.patient(role="channel", code="demo-app")
        with pytest.raises(ClientFailure):
            await channel.issue_voucher(person_no="33010000990001", business_type="01201")


# ---- the ledger ----


async def test_a_full_disk_refuses_the_command_and_leaves_nothing() -> None:
    async with ground() as live:
        chain = await Chain(live).held()
        before = await ledger(live)
        live.rule(method="Dispensing/ReleaseOrder", action=A.FAULT_ACTION_DISK_FULL, nth=1)
        stub = await pharmacy_stub(live)
        await status_of(stub.ReleaseOrder(release(chain.rx_no)))
        assert (await live.traffic())[-1].refusal_code == "HUB_UNAVAILABLE"
        assert await ledger(live) == before
        await stub.ReleaseOrder(release(chain.rx_no))


async def test_a_full_disk_at_an_event() -> None:
    async with ground() as live:
        chain = await Chain(live).held()
        live.rule(rule_id="f", event="order.released", action=A.FAULT_ACTION_DISK_FULL, max_total=1)
        stub = await pharmacy_stub(live)
        await status_of(stub.ReleaseOrder(release(chain.rx_no)))
        assert list((await live.traffic())[-1].faults) == ["f disk_full"]
        await stub.ReleaseOrder(release(chain.rx_no))
        assert (live.told("f").matched, live.told("f").fired) == (2, 1)


@pytest.mark.parametrize("on", [{"method": "Dispensing/ReleaseOrder"}, {"event": "order.released"}])
@pytest.mark.parametrize("after_commit", [False, True])
async def test_a_crash_loses_the_connection_and_only_what_was_not_committed(
    on: dict[str, str], after_commit: bool
) -> None:
    async with ground() as live:
        chain = await Chain(live).held()
        live.recorder.clear()
        live.rule(**on, action=A.FAULT_ACTION_CRASH_HUB, nth=1, arguments=arguments(after_commit=after_commit))
        stub = await pharmacy_stub(live)
        failed = await status_of(stub.ReleaseOrder(release(chain.rx_no)))
        assert (failed.code(), failed.details()) == (grpc.StatusCode.UNAVAILABLE, "connection lost")
        assert live.crashes == 1
        await stub.ReleaseOrder(release(chain.rx_no))
        first, second = await live.traffic()
        assert (first.status, second.status) == ("UNAVAILABLE", "OK")
        assert list(first.faults) == ["rule-1 crash_hub"]
        assert second.replayed == after_commit


# ---- streams ----


async def _watched(live: Ground, count: int, *, cursor: str = "") -> list[Any]:
    stub = await hospital_stub(live)
    request = prescribing_pb2.WatchPrescriptionsRequest(from_start=not cursor, cursor=cursor)
    stream = stub.WatchPrescriptions(request)
    messages = [await stream.read() for _ in range(count)]
    stream.cancel()
    return messages


async def _steps(live: Ground, prescriptions: int = 3) -> list[Any]:
    """So many uploaded prescriptions, and the steps that the hospital's watch tells of them."""
    chain = await Chain(live).diagnosed()
    for number in range(prescriptions):
        one = Chain(live, encounter_id=chain.encounter_id, hospital_rx_no=f"STEP-{number}")
        one.prescription.CopyFrom(chain.prescription)
        one.prescription.hospital_rx_no = one.hospital_rx_no
        await one.prechecked()
    return await _watched(live, prescriptions)


async def test_duplicate_tells_each_message_of_a_watch_twice() -> None:
    async with ground() as live:
        steps = await _steps(live)
        live.rule(method="Prescribing/WatchPrescriptions", action=A.FAULT_ACTION_DUPLICATE)
        assert await _watched(live, 6) == [step for step in steps for _ in range(2)]


async def test_a_truncated_stream_ends_unavailable_after_its_messages() -> None:
    async with ground() as live:
        steps = await _steps(live)
        live.rule(
            method="Prescribing/WatchPrescriptions",
            action=A.FAULT_ACTION_TRUNCATE_STREAM,
            arguments=arguments(after_messages=2),
        )
        stub = await hospital_stub(live)
        stream = stub.WatchPrescriptions(prescribing_pb2.WatchPrescriptionsRequest(from_start=True))
        assert [await stream.read() for _ in range(2)] == steps[:2]
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stream.read()
        assert failed.value.code() == grpc.StatusCode.UNAVAILABLE
        assert (await live.traffic())[-1].status == "UNAVAILABLE"
        assert len((await live.traffic())[-1].replies_json) == 2


async def test_a_shuffled_watch_tells_everything_and_every_cursor_is_safe_to_resume_from() -> None:
    async with ground() as live:
        steps = await _steps(live, prescriptions=6)
        seen_orders = set()
        for seed in range(4):
            live.faults._seed = seed
            live.faults.clear()
            live.rule(
                rule_id="w",
                method="Prescribing/WatchPrescriptions",
                action=A.FAULT_ACTION_REORDER,
                arguments=arguments(window=3),
            )
            shuffled = await _watched(live, 6)
            seen_orders.add(tuple(message.rx_no for message in shuffled))
            assert sorted(message.rx_no for message in shuffled) == sorted(step.rx_no for step in steps)
            live.faults.clear()
            for kept in range(1, 6):
                had = {message.rx_no for message in shuffled[:kept]}
                place = [step.cursor for step in steps].index(shuffled[kept - 1].cursor)
                missed = {step.rx_no for step in steps[: place + 1]} - had
                assert not missed
        assert len(seen_orders) > 1
        assert tuple(step.rx_no for step in steps) not in seen_orders or len(seen_orders) > 2


async def test_in_any_order_the_newest_step_of_a_prescription_is_never_the_last_and_cursors_stay_safe() -> None:
    async with ground() as live:
        chain = await Chain(live).settled()
        steps = await _watched(live, 6)
        assert {step.rx_no for step in steps} == {chain.rx_no}
        orders = set()
        for seed in range(4):
            live.faults._seed = seed
            live.faults.clear()
            rule = {"method": "Prescribing/WatchPrescriptions", "action": A.FAULT_ACTION_REORDER}
            live.rule(rule_id="w", **rule, arguments=arguments(window=6, any_order=True))
            shuffled = await _watched(live, 6)
            versions = [message.version for message in shuffled]
            orders.add(tuple(versions))
            assert sorted(versions) == [step.version for step in steps]
            assert versions[-1] != max(versions)
            assert [message.cursor for message in shuffled] == [steps[0].cursor] * 5 + [steps[-1].cursor]
        assert len(orders) > 1


async def test_error_on_a_watch_ends_it_before_it_stands() -> None:
    async with ground() as live:
        live.rule(method="Prescribing/*", action=A.FAULT_ACTION_ERROR, arguments=arguments(code="OVERLOADED"))
        stub = await hospital_stub(live)
        stream = stub.WatchPrescriptions(prescribing_pb2.WatchPrescriptionsRequest(from_start=True))
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stream.read()
        assert failed.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


# ---- which call a rule means ----


async def test_a_rule_on_a_prescription_meets_it_in_signed_contents_and_behind_authorisation_numbers() -> None:
    async with ground() as live:
        chain = await Chain(live).uploaded()
        await chain.listed()
        live.rule(
            rule_id="x",
            method="Dispensing/*",
            rx_no=chain.rx_no,
            action=A.FAULT_ACTION_DELAY,
            arguments=arguments(delay_ms=1),
        )
        pharmacy = await live.pharmacy()
        chain.download = await pharmacy.download(authorization_no=chain.authorization_no)
        await chain.review()
        assert (live.told("x").matched, live.told("x").fired) == (2, 2)
        live.rule(
            rule_id="y",
            method="Dispensing/*",
            rx_no="1" * 27,
            action=A.FAULT_ACTION_DELAY,
            arguments=arguments(delay_ms=1),
        )
        await (await pharmacy_stub(live)).ReleaseOrder(release(chain.rx_no))
        assert live.told("y").matched == 0


async def test_a_snapshot_of_the_layer_goes_back_to_the_counters_and_the_rewritten_requests() -> None:
    async with ground() as live:
        live.rule(rule_id="n", method="*", action=A.FAULT_ACTION_DROP_REQUEST, nth=2)
        stub = await hospital_stub(live)
        await stub.ListPrescriptions(listing())
        state = live.exchanges.export_state()
        for _ in range(2):
            await status_of(stub.ListPrescriptions(listing()))
            await stub.ListPrescriptions(listing())
            live.exchanges.import_state(state)
        assert live.told("n").matched == 1
