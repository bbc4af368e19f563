"""Accesses and refusals as entries: replies given again, budgets that survive a failed commit, revoked certificates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from erxhub.client import Refusal
from erxhub.config import Config
from erxhub.ledger.sqlite import open_sqlite
from erxhub.ledger.store import StoredEntry
from erxhub.v1 import dispensing_pb2, events_pb2
from tests.chain import DOWNLOAD
from tests.live import HOSPITAL, MINUTE_MS, PERSON, live_hub
from tests.refusals.bench import Bench, as_pharmacy, event_of, header_of, open_bench
from tests.refusals.cases_edge import revoked_client

BUDGET = 5

EXCEEDED = "access.budget_exceeded"


async def _never(ms: int) -> None:
    """The sweep comes when the test calls it; no slowed reply is kept waiting."""
    if ms != Config().slowed_reply_ms:
        await asyncio.Event().wait()


@asynccontextmanager
async def _small_budget() -> AsyncIterator[Bench]:
    async with open_bench(config=Config(drain_ms=200, access_budget_per_minute=BUDGET), pause=_never) as bench:
        # What seeding used up belongs to a minute of its own.
        bench.live.advance(MINUTE_MS)
        await bench.live.hub.engine.sweep()
        yield bench


async def _refused_commands(bench: Bench, count: int, code: str = "ENCOUNTER_STATE") -> None:
    hospital = await bench.live.hospital()
    for _ in range(count):
        with pytest.raises(Refusal) as caught:
            await hospital.close_encounter(encounter_id="E1")
        assert caught.value.code == code


def _names(entries: list[StoredEntry]) -> list[str]:
    return [event_of(entry) for entry in entries]


def _said(entry: StoredEntry) -> events_pb2.AccessBudgetExceeded:
    assert event_of(entry) == EXCEEDED
    return events_pb2.AccessBudgetExceeded.FromString(entry.payload or b"")


# ---- a reply that is given again ----


async def _times(bench: Bench, method: str, rx_no: str) -> int:
    channel = await bench.live.channel()
    listed = await channel.list_accesses(person_no=PERSON, rx_no=rx_no)
    return sum(access.method == method and access.outcome == "OK" for access in listed.accesses)


async def test_replayed_list_is_an_access_to_each_prescription_that_it_shows() -> None:
    async with open_bench() as bench:
        first, second = await bench.rx().uploaded(), await bench.rx().uploaded()
        pharmacy = await bench.live.pharmacy()
        request = dispensing_pb2.ListByVoucherRequest(
            request_id="list-again-1", voucher_ref=await first.reference(DOWNLOAD)
        )
        reply: Any = await pharmacy.send(request)
        assert {offer.rx_no for offer in reply.prescriptions} >= {first.rx_no, second.rx_no}
        for repeats in (1, 2):
            for rx in (first, second):
                assert await _times(bench, "DispensingService/ListByVoucher", rx.rx_no) == repeats
            assert await pharmacy.send(request) == reply


async def test_replayed_download_is_an_access_that_the_person_finds() -> None:
    async with open_bench() as bench:
        rx = await bench.rx().uploaded()
        await rx.listed()
        pharmacy = await bench.live.pharmacy()
        request = dispensing_pb2.DownloadPrescriptionRequest(
            request_id="download-again-1", authorization_no=rx.authorization_no
        )
        reply: Any = await pharmacy.send(request)
        assert await pharmacy.send(request) == reply
        assert reply.file.data
        assert await _times(bench, "DispensingService/DownloadPrescription", rx.rx_no) == 2
        channel = await bench.live.channel()
        listed = await channel.list_accesses(person_no=PERSON)
        methods = [(access.method, access.rx_no) for access in listed.accesses]
        assert methods.count(("DispensingService/DownloadPrescription", rx.rx_no)) == 2


async def test_replay_of_a_reply_that_showed_nothing_is_no_access() -> None:
    async with open_bench() as bench:
        rx = await bench.rx().uploaded()
        hospital = await bench.live.hospital()
        before = await bench.ledger.seen()
        arguments: dict[str, Any] = {"rx_no": rx.rx_no, "doctor_code": rx.prescription.doctor_code, "reason": "撤回"}
        await hospital.revoke(**arguments, request_id="revoke-again-1")
        left = _names(await bench.ledger.after(before.position))
        await hospital.revoke(**arguments, request_id="revoke-again-1")
        assert _names(await bench.ledger.after(before.position)) == left


# ---- budgets ----


async def test_refusals_that_no_commit_kept_use_up_no_budget() -> None:
    async with _small_budget() as bench:
        bench.store.refuses_writes = True
        await _refused_commands(bench, BUDGET + 2, "HUB_UNAVAILABLE")
        bench.store.works_again()
        before = await bench.ledger.seen()
        await _refused_commands(bench, BUDGET)
        assert _names(await bench.ledger.after(before.position)) == ["command.refused"] * BUDGET
        bench.live.advance(MINUTE_MS)
        await bench.live.hub.engine.sweep()
        assert EXCEEDED not in _names(await bench.ledger.after(before.position))


async def test_beginning_of_a_count_survives_a_failed_commit_and_later_refusals() -> None:
    async with _small_budget() as bench:
        began_ms = bench.live.clock.now_ms()
        await _refused_commands(bench, BUDGET + 2)
        bench.live.advance(MINUTE_MS)
        bench.store.refuses_writes = True
        await _refused_commands(bench, BUDGET + 3, "HUB_UNAVAILABLE")
        bench.store.works_again()
        before = await bench.ledger.seen()
        await bench.live.hub.engine.sweep()
        (entry,) = await bench.ledger.after(before.position)
        assert (_said(entry).count, _said(entry).from_ms) == (2, began_ms)


async def test_stop_writes_the_count_of_a_minute_that_is_not_over(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    config = Config(drain_ms=200, access_budget_per_minute=BUDGET)
    async with live_hub(database=path, config=config, pause=_never) as live:
        live.advance(MINUTE_MS)
        hospital = await live.hospital()
        for _ in range(BUDGET + 3):
            with pytest.raises(Refusal):
                await hospital.close_encounter(encounter_id="E1")
    store = await open_sqlite(path)
    try:
        newest = await store.last_position()
        (entry,) = await store.log(newest - 1, 1)
    finally:
        await store.close()
    assert _said(entry).count == 3
    assert header_of(entry).actor == f"hospital/{HOSPITAL}"


# ---- revoked certificates ----


@pytest.mark.parametrize("fault", ["another role's call", "a malformed field", "an unknown thing"])
async def test_whatever_else_is_wrong_a_revoked_certificate_is_refused_as_that(fault: str) -> None:
    async with open_bench() as bench:
        client = await revoked_client(bench)
        calls: dict[str, Any] = {
            "another role's call": lambda: as_pharmacy(client).download(authorization_no="1" * 32),
            "a malformed field": lambda: client.close_encounter(encounter_id="E" * 500),
            "an unknown thing": lambda: client.get(rx_no="1" * 27),
        }
        before = await bench.ledger.seen()
        for _ in range(2):
            with pytest.raises(Refusal) as caught:
                await calls[fault]()
            assert caught.value.code == "CERT_REVOKED"
        (entry,) = await bench.ledger.after(before.position)
        assert events_pb2.CommandRefused.FromString(entry.payload or b"").code == "CERT_REVOKED"


async def test_attempts_at_once_under_a_revoked_certificate_leave_one_entry() -> None:
    async with open_bench() as bench:
        client = await revoked_client(bench)
        before = await bench.ledger.seen()
        calls = [client.list_prescriptions() for _ in range(8)]
        calls += [client.close_encounter(encounter_id="E1") for _ in range(8)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {getattr(outcome, "code", "") for outcome in outcomes} == {"CERT_REVOKED"}
        assert _names(await bench.ledger.after(before.position)) == ["command.refused"]


@pytest.mark.parametrize("kind", ["read", "command"])
async def test_attempt_that_could_not_be_recorded_is_not_taken_for_reported(kind: str) -> None:
    async with open_bench() as bench:
        client = await revoked_client(bench)

        async def attempt() -> str:
            with pytest.raises(Refusal) as caught:
                await (client.list_prescriptions() if kind == "read" else client.close_encounter(encounter_id="E1"))
            return caught.value.code

        bench.store.refuses_writes = True
        assert await attempt() == "HUB_UNAVAILABLE"
        bench.store.works_again()
        before = await bench.ledger.seen()
        assert await attempt() == "CERT_REVOKED"
        assert _names(await bench.ledger.after(before.position)) == ["command.refused"]


# ---- what a mirror copies ----


async def test_person_finds_that_a_mirror_copied_the_prescription() -> None:
    async with open_bench() as bench:
        rx = await bench.rx().uploaded()
        mirror = await bench.live.connect("auditor", "mirror-1", bench.live.identity("mirror", "mirror-1"))
        copied = [entry async for entry in mirror.stream_entries(after_position=0)]
        assert any(entry.payload for entry in copied)
        channel = await bench.live.channel()
        for asked in (rx.rx_no, ""):
            listed = await channel.list_accesses(person_no=PERSON, rx_no=asked)
            found = [access for access in listed.accesses if access.method == "AuditService/StreamEntries"]
            assert {(access.institution, access.role, access.rx_no) for access in found} == {
                ("mirror-1", "mirror", rx.rx_no)
            }


async def test_entries_without_content_are_no_access_to_a_person() -> None:
    async with open_bench() as bench:
        rx = await bench.rx().uploaded()
        auditor = await bench.live.auditor()
        assert [entry async for entry in auditor.stream_entries(after_position=0)]
        channel = await bench.live.channel()
        listed = await channel.list_accesses(person_no=PERSON, rx_no=rx.rx_no)
        assert "AuditService/StreamEntries" not in {access.method for access in listed.accesses}


async def test_mirror_gets_no_page_whose_access_cannot_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_bench() as bench:
        await bench.rx().uploaded()
        mirror = await bench.live.connect("auditor", "mirror-1", bench.live.identity("mirror", "mirror-1"))
        plain = bench.store.log

        async def log(after_position: int, limit: int) -> list[StoredEntry]:
            # The stream stands by now, and its first page is being read.
            bench.store.refuses_writes = True
            return await plain(after_position, limit)

        monkeypatch.setattr(bench.store, "log", log)
        with pytest.raises(Refusal) as caught:
            await anext(mirror.stream_entries(after_position=0))
        assert caught.value.code == "HUB_UNAVAILABLE"
