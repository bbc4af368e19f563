"""The shared scenarios from the voucher to the patient's hands, over the imported real code lists."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from erxhub.cli.catalog_files import parse
from erxhub.v1 import audit_pb2, catalog_pb2, common_pb2, signed_pb2
from tests.live import live_hub
from tests.scenarios.clinic import Clinic, chain_of, import_file, opened, read_scenarios

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCENARIOS = [f"S{number:02d}" for number in range(1, 13)]

ROWS = {
    "drugs.csv": 1525,
    "diseases.csv": 1837,
    "regions_nhsa.csv": 4294,
    "frequencies.csv": 29,
    "chronic_special.csv": 55,
}
"""What the hub takes of each file: all of it."""

IMPORT_SECONDS_MAX = 10.0
"""Far above what it takes (about one), so that only a wrong order of growth fails it."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clinic(shared: Path) -> AsyncIterator[Clinic]:
    start_ms = read_scenarios(shared)["S01"].prescribed_at_ms
    async with live_hub(seed=False, start_ms=start_ms) as live:
        yield await opened(live, shared)


async def test_the_file_holds_the_twelve_scenarios_of_one_morning(clinic: Clinic) -> None:
    assert list(clinic.scenarios) == SCENARIOS
    assert {scenario.prescribed_at_ms for scenario in clinic.scenarios.values()} == {clinic.live.clock.now_ms()}


async def test_every_line_of_the_real_files_is_read_and_taken(clinic: Clinic) -> None:
    assert {name: (file.lines, file.faults) for name, file in clinic.files.items()} == {
        name: (rows, ()) for name, rows in ROWS.items()
    }
    assert {
        name: (report.rows_taken, report.rows_refused, list(report.refused)) for name, report in clinic.reports.items()
    } == {name: (rows, 0, []) for name, rows in ROWS.items()}


async def test_reading_and_importing_the_largest_file_takes_seconds(clinic: Clinic, shared: Path) -> None:
    began = time.perf_counter()
    file = parse("regions_nhsa.csv", "regions", (shared / "data" / "regions_nhsa.csv").read_bytes())
    report = await import_file(clinic.live, file, "again", "2099-01-01")
    assert report.rows_taken == ROWS["regions_nhsa.csv"]
    assert time.perf_counter() - began < IMPORT_SECONDS_MAX


async def test_a_damaged_drug_list_names_each_line_that_was_left_out(clinic: Clinic, shared: Path) -> None:
    lines = (shared / "data" / "drugs.csv").read_text("utf-8").splitlines()[:20]
    lines[4] = lines[4].replace(",western,", ",patent,", 1)
    lines[6] = lines[6].replace(lines[6].split(",")[0], "X-NO-CODE", 1)
    lines[8] = lines[7]
    lines[11] = lines[11] + ",one cell more"
    file = parse("drugs.csv", "drugs", "\n".join(lines).encode())
    # Line numbers count the header, so the n-th element is line n + 1.
    assert [(fault.line, fault.field) for fault in file.faults] == [(5, "kind"), (9, "code"), (12, "")]
    report = await import_file(clinic.live, file, "damaged", "2099-01-01")
    assert [(row.line, row.code, row.field) for row in report.refused] == [(7, "DRUG_CODE", "drug.code")]
    assert (report.rows_taken, report.rows_refused) == (19 - len(file.faults) - 1, 1)
    assert all(row.message_zh and row.message_en for row in report.refused)


async def test_the_imported_rows_are_read_back(clinic: Clinic) -> None:
    hospital = await clinic.live.hospital(clinic.scenarios["S01"].hospital_code)
    for dataset, prefix, code in (
        (catalog_pb2.CATALOG_DATASET_DRUGS, "XC08CAA187A0010203", "XC08CAA187A001020301650"),
        (catalog_pb2.CATALOG_DATASET_DISEASES, "I10.x00x002", "I10.x00x002"),
        (catalog_pb2.CATALOG_DATASET_REGIONS, "330100", "330100"),
        (catalog_pb2.CATALOG_DATASET_FREQUENCIES, "11", "11"),
        (catalog_pb2.CATALOG_DATASET_CHRONIC, "M03900", "M03900"),
    ):
        listed = await hospital.list_catalog(dataset=dataset, code_prefix=prefix)
        assert code in [getattr(row, row.WhichOneof("row")).code for row in listed.entries]


def _adds_up(amounts: signed_pb2.ClaimAmounts) -> bool:
    parts = amounts.own_pay_fen + amounts.over_limit_fen + amounts.prior_self_pay_fen + amounts.in_scope_fen
    person = amounts.account_fen + amounts.family_fen + amounts.cash_fen
    return (
        amounts.total_fen == parts
        and amounts.total_fen == amounts.fund_fen + amounts.institution_fen + amounts.person_fen
        and amounts.person_fen == person
    )


@pytest.mark.parametrize("scenario_id", SCENARIOS)
async def test_the_prescription_reaches_the_patient_and_every_fen_is_accounted_for(
    clinic: Clinic, scenario_id: str
) -> None:
    scenario = clinic.scenarios[scenario_id]
    chain = chain_of(clinic, scenario)
    # Even numbers are brought to the door, odd ones handed over at the counter.
    await (chain.handed_over() if scenario.number % 2 else chain.delivered())

    amounts = chain.quote.amounts
    assert {name: getattr(amounts, name) for name in scenario.expected()} == scenario.expected()
    assert {
        line.line_no: (
            line.charge_class,
            line.amount_fen,
            line.own_pay_fen,
            line.over_limit_fen,
            line.prior_self_pay_fen,
            line.in_scope_fen,
        )
        for line in chain.quote.lines
    } == scenario.expected_lines()
    assert _adds_up(amounts)
    assert amounts.account_fen == min(int(amounts.person_fen), _balance_fen(clinic, scenario_id))

    auditor = await clinic.live.auditor()
    traced = await auditor.trace(rx_no=chain.rx_no, verify=True)
    assert list(traced.findings) == []
    assert list(traced.gaps) == []
    assert (traced.light, traced.verified) == (audit_pb2.LIGHT_GREEN, True)
    assert all(flow.agrees for flow in traced.flows)
    hospital = await clinic.live.hospital(scenario.hospital_code)
    seen = await hospital.get(rx_no=chain.rx_no)
    assert seen.statuses.rx == common_pb2.RX_STATUS_EXHAUSTED
    assert seen.statuses.use == common_pb2.RX_USE_STATUS_USED
    assert seen.prescription == chain.prescription


def _balance_fen(clinic: Clinic, scenario_id: str) -> int:
    whole, _, part = clinic.scenarios[scenario_id].data["insured"]["acct_balance"].partition(".")
    return int(whole) * 100 + int(part)


async def test_the_whole_ledger_verifies_after_all_of_them(clinic: Clinic) -> None:
    verified = await (await clinic.live.auditor()).verify_ledger()
    assert list(verified.findings) == []
    assert verified.verified
