"""The reference drivers against a real hub: the whole way, lost answers, SIGKILL, an outage, news out of order."""

from __future__ import annotations

import csv
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from erxhub.conform.drivers.hospital import HospitalAdapter
from erxhub.conform.drivers.journal import Journal
from erxhub.conform.drivers.pharmacy import PharmacyAdapter
from erxhub.conform.drivers.product import enum_name
from erxhub.conform.load import load_suite
from erxhub.conform.runner import run_suite
from erxhub.conform.settings import Settings
from erxhub.v1 import audit_pb2, common_pb2, prescribing_pb2
from tests.conform.ending import ends_with_its_input
from tests.conform.reference import Inside, Outside, Valve, arguments
from tests.live import CHANNEL, HOSPITAL, PERSON, PHARMACY, Live, live_hub

CONSULT, DOWNLOAD, PURCHASE, PICK_UP = "01201", "02122", "02121", "01302"

Driver = Callable[..., Awaitable[dict[str, Any]]]


class Counter(NamedTuple):
    """A live hub with both reference drivers."""

    live: Live
    hospital: Inside
    pharmacy: Inside

    async def code(self, business_type: str) -> str:
        """A code that the patient shows."""
        channel = await self.live.channel(CHANNEL)
        return (await channel.issue_voucher(person_no=PERSON, business_type=business_type)).voucher_code

    async def issued(self, **args: Any) -> str:
        """A prescription of the hospital under test."""
        result = await self.hospital(
            "issue_prescription", person_no=PERSON, voucher_code=await self.code(CONSULT), **args
        )
        assert result["outcome"] == "ok", result
        return str(result["rx_no"])

    async def settled(self, pharmacy: Driver) -> str:
        """A prescription that a pharmacy has settled."""
        rx_no = await self.issued()
        for op, args in (
            ("list_available", {"voucher_code": await self.code(DOWNLOAD)}),
            ("download", {"rx_no": rx_no}),
            ("review", {"rx_no": rx_no, "decision": "pass", "opinion": "用药合理"}),
            ("settle", {"rx_no": rx_no, "voucher_code": await self.code(PURCHASE), "pay": "insured"}),
        ):
            result = await pharmacy(op, **args)
            assert result["outcome"] == "ok", (op, result)
        return rx_no

    async def events(self, rx_no: str) -> list[str]:
        """The types of the prescription's entries."""
        trace = await (await self.live.auditor()).trace(rx_no=rx_no)
        return [entry.type for entry in trace.entries]


@asynccontextmanager
async def counter(folder: Path, suite: str = "ES256") -> AsyncIterator[Counter]:
    async with live_hub(suite=suite) as live:
        hospital, pharmacy = Inside(live, HospitalAdapter()), Inside(live, PharmacyAdapter())
        await hospital("configure", **arguments(live, "hospital", HOSPITAL, folder / "hospital"))
        await pharmacy("configure", **arguments(live, "pharmacy", PHARMACY, folder / "pharmacy"))
        try:
            yield Counter(live, hospital, pharmacy)
        finally:
            await hospital.adapter.close()
            await pharmacy.adapter.close()


@pytest.mark.parametrize("suite", ["ES256", "SM2-SM3"])
async def test_a_prescription_goes_the_whole_way_and_the_auditor_sees_a_green_chain(tmp_path: Path, suite: str) -> None:
    async with counter(tmp_path, suite) as at:
        rx_no = await at.settled(at.pharmacy)
        assert (await at.pharmacy("dispense", rx_no=rx_no))["use"] == "USED"
        handed = await at.pharmacy("hand_over", rx_no=rx_no, voucher_code=await at.code(PICK_UP))
        assert handed["outcome"] == "ok"
        trace = await (await at.live.auditor()).trace(rx_no=rx_no, verify=True)
        assert (trace.light, trace.verified) == (audit_pb2.LIGHT_GREEN, True)
        assert (await at.hospital("query", rx_no=rx_no))["review"] == "PASSED"


async def test_what_the_hub_refuses_is_told_with_its_code_and_nothing_stays_open(tmp_path: Path) -> None:
    async with counter(tmp_path) as at:
        rx_no = await at.settled(at.pharmacy)
        revoked = await at.hospital("revoke", rx_no=rx_no, reason="处方有误")
        assert (revoked["outcome"], revoked["code"], revoked["by"]) == ("rejected", "RX_UNDO_STATE", "hub")
        assert (await at.hospital("resume"))["resolved"] == []


async def test_a_pharmacy_does_not_work_on_what_it_did_not_download_or_settle(tmp_path: Path) -> None:
    async with counter(tmp_path) as at:
        rx_no = await at.issued()
        assert (await at.pharmacy("download", rx_no=rx_no))["code"] == "NOT_OFFERED"
        assert (await at.pharmacy("review", rx_no=rx_no))["code"] == "NOT_DOWNLOADED"
        await at.pharmacy("list_available", voucher_code=await at.code(DOWNLOAD))
        await at.pharmacy("download", rx_no=rx_no)
        refused = await at.pharmacy("dispense", rx_no=rx_no)
        assert (refused["code"], refused["by"]) == ("SETL_REQUIRED", "product")


async def test_a_download_of_an_unknown_signer_is_set_aside_and_never_dispensed(tmp_path: Path) -> None:
    async with counter(tmp_path) as at:
        rx_no = await at.issued()
        changed = arguments(at.live, "pharmacy", PHARMACY, tmp_path / "pharmacy", trusted_signers=[])
        await at.pharmacy("configure", **changed)
        await at.pharmacy("list_available", voucher_code=await at.code(DOWNLOAD))
        assert (await at.pharmacy("download", rx_no=rx_no))["code"] == "DOWNLOAD_INVALID"
        assert (await at.pharmacy("review", rx_no=rx_no))["code"] == "DOWNLOAD_INVALID"


async def test_a_lost_answer_is_an_unknown_outcome_and_the_same_request_finds_it_out(tmp_path: Path) -> None:
    async with counter(tmp_path) as at, Valve(at.live.hub.port) as valve:
        configured = arguments(
            at.live, "pharmacy", PHARMACY, tmp_path / "pharmacy", target=valve.target, timeout_ms=400
        )
        await at.pharmacy("configure", **configured)
        rx_no = await at.settled(at.pharmacy)
        valve.answers_come_back = False
        lost = await at.pharmacy("dispense", rx_no=rx_no)
        assert (lost["outcome"], lost["code"]) == ("unknown", "DEADLINE_EXCEEDED")
        # Everything else about it waits, and the answer of the first request is still the one that counts.
        valve.answers_come_back = True
        valve.cut()
        resumed = await at.pharmacy("resume")
        assert resumed["resolved"] == [{"op": "dispense", "rx_no": rx_no, "outcome": "ok"}]
        assert (await at.events(rx_no)).count("dispense.outbound") == 1


async def test_an_outage_leaves_acts_in_the_outbox_in_their_order(tmp_path: Path) -> None:
    async with counter(tmp_path) as at, Valve(at.live.hub.port) as valve:
        configured = arguments(at.live, "hospital", HOSPITAL, tmp_path / "hospital", target=valve.target)
        await at.hospital("configure", **configured)
        first, second = await at.issued(), await at.issued()
        valve.connects = False
        valve.cut()
        for rx_no in (first, second):
            assert (await at.hospital("revoke", rx_no=rx_no, reason="处方有误"))["outcome"] == "unknown"
        assert len((await at.hospital("resume"))["resolved"]) == 1, "while the hub is away it asks once"
        valve.connects = True
        resolved = (await at.hospital("resume"))["resolved"]
        assert [(one["rx_no"], one["outcome"]) for one in resolved] == [(first, "ok"), (second, "ok")]


async def test_a_killed_driver_repeats_the_same_request_and_the_goods_leave_once(tmp_path: Path) -> None:
    async with counter(tmp_path) as at, Valve(at.live.hub.port) as valve:
        driver = Outside(at.live, "pharmacy")
        await driver.start()
        configured = arguments(
            at.live, "pharmacy", PHARMACY, tmp_path / "outside", target=valve.target, timeout_ms=9_000
        )
        await driver("configure", **configured)
        rx_no = await at.settled(driver)
        valve.answers_come_back = False
        hospital = await at.live.hospital()
        news = hospital.watch(from_start=True)
        await driver.send("dispense", rx_no=rx_no)
        async for step in news:
            if "dispense.outbound" in step.events:
                break
        await driver.kill()
        valve.answers_come_back = True
        await driver.start()
        await driver("configure", **configured)
        resumed = await driver("resume")
        assert resumed["resolved"] == [{"op": "dispense", "rx_no": rx_no, "outcome": "ok"}]
        assert (await at.events(rx_no)).count("dispense.outbound") == 1
        assert await driver("shutdown") == {"outcome": "ok", "bye": True}
        assert await driver.process.wait() == 0


async def test_a_driver_answers_bad_lines_and_unknown_operations_and_goes_on(tmp_path: Path) -> None:
    async with counter(tmp_path) as at:
        driver = Outside(at.live, "hospital")
        await driver.start()
        await driver.send_line(b"{no json")
        assert (await driver.answer())["error"]["code"] == "bad_request"
        await driver.send("fly")
        assert (await driver.answer())["error"]["code"] == "unsupported"
        await driver.send("query", rx_no="1")
        assert (await driver.answer())["error"]["code"] == "bad_request", "it is not configured"
        assert (await driver("describe"))["role"] == "hospital"
        await driver.kill()


@pytest.mark.parametrize("role", ["hospital", "pharmacy"])
def test_a_driver_ends_when_its_input_does(tmp_path: Path, role: str) -> None:
    ends_with_its_input(f"{sys.executable} -m erxhub.conform.drivers.{role}", role, tmp_path / "ending")


async def test_reset_forgets_acts_and_news_but_gives_no_request_id_twice(tmp_path: Path) -> None:
    async with counter(tmp_path) as at:
        product = at.hospital.adapter.product
        await at.issued()
        given = product.journal.get("given")
        await at.hospital("reset")
        assert product.journal.get("given") == given
        assert product.open_acts() == []
        assert (await at.hospital("pull_events"))["state"], "what is forgotten is read again from the beginning"


def _step(cursor: str, version: int, event: str, status: Any, use: Any) -> prescribing_pb2.WatchPrescriptionsResponse:
    return prescribing_pb2.WatchPrescriptionsResponse(
        cursor=cursor,
        rx_no="1",
        events=[event],
        version=version,
        recorded_at_ms=version,
        statuses=common_pb2.RxStatuses(rx=status, use=use),
    )


async def test_news_that_come_twice_and_out_of_order_end_in_the_newest_state(tmp_path: Path) -> None:
    held = _step("b", 2, "order.held", common_pb2.RX_STATUS_EFFECTIVE, common_pb2.RX_USE_STATUS_HELD)
    released = _step("c", 3, "order.released", common_pb2.RX_STATUS_EFFECTIVE, common_pb2.RX_USE_STATUS_UNUSED)
    undone = _step("d", 4, "prescription.undone", common_pb2.RX_STATUS_UNDONE, common_pb2.RX_USE_STATUS_UNUSED)

    async def shuffled() -> AsyncIterator[prescribing_pb2.WatchPrescriptionsResponse]:
        for message in (undone, undone, held, released, held):
            yield message

    async with counter(tmp_path) as at:
        product = at.hospital.adapter.product
        product._watch = lambda cursor: shuffled()  # type: ignore[method-assign]
        pulled = await at.hospital("pull_events")
        assert [event["event"] for event in pulled["events"]] == [
            "prescription.undone",
            "order.held",
            "order.released",
        ]
        assert pulled["state"]["1"]["status"] == "UNDONE"
        assert pulled["cursor"] == "", "the cursor does not pass what came out of order"


def test_a_journal_drops_a_line_that_was_torn_and_keeps_the_last_value_of_a_name(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.put("a", 1)
    journal.put("a", 2, durable=True)
    journal.put("b", 3)
    journal.put("b", None)
    journal.close()
    with path.open("ab") as file:
        file.write(b'["a", 7')
    again = Journal(path)
    assert (again.get("a"), again.get("b")) == (2, None)
    again.put("c", 4)
    again.close()
    assert dict(Journal(path).items("")) == {"a": 2, "c": 4}


def test_a_value_that_the_product_was_not_built_with_has_a_name_of_its_own() -> None:
    assert enum_name(common_pb2.RxStatus.DESCRIPTOR, common_pb2.RX_STATUS_EFFECTIVE) == "EFFECTIVE"
    assert enum_name(common_pb2.RxStatus.DESCRIPTOR, 99) == "UNKNOWN_99"


@pytest.mark.parametrize("role", ["hospital", "pharmacy"])
async def test_the_reference_drivers_pass_the_core_cases_under_everyday_faults(tmp_path: Path, role: str) -> None:
    driver = f"{sys.executable} -m erxhub.conform.drivers.{role}"
    settings = Settings(role=role, folder=tmp_path, driver=driver, profile="strict", selection="core", seed=7)
    result = await run_suite(load_suite(in_code=[]), settings)
    ran = [one for one in result.results if str(one.verdict) != "SKIP"]
    assert {one.key: one.failed_checks for one in ran if str(one.verdict) != "PASS"} == {}
    assert len(ran) >= 10


def test_every_planned_case_of_hospitals_and_pharmacies_is_written_or_left_out_with_its_reason(shared: Path) -> None:
    with (shared / "harness" / "cases.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    planned = {row["id"]: row for row in rows if {"hospital", "pharmacy"} & set(row["under_test"].split("/"))}
    place = resources.files("erxhub.conform").joinpath("cases", "left_out.csv")
    with place.open(encoding="utf-8") as lines:
        left_out = {row["id"] for row in csv.DictReader(lines) if row["reason_zh"] and row["reason_en"]}
    written = {case.id: case for case in load_suite(in_code=[]).cases}
    assert set(planned) <= left_out | set(written)
    assert not left_out & set(written)
    for case_id, row in planned.items():
        if row["first_release"] == "yes":
            assert written[case_id].core, case_id
