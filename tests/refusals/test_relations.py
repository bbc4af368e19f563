"""Whoever has nothing to do with a thing gets the same bytes whether it exists or not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from erxhub.v1 import dispensing_pb2, signed_pb2
from tests.chain import DOCTOR, Chain
from tests.live import EMPLOYEE, HOSPITAL_B, PERSON, PHARMACY, PHARMACY_B
from tests.refusals.bench import Bench, as_pharmacy, details_of
from tests.refusals.provoking import Attempt, Expected, refused

pytestmark = pytest.mark.asyncio(loop_scope="module")

Call = Callable[[str], Awaitable[Any]]

NO_RX = "330100" + "9" * 21
UNKNOWN = Expected("RX_UNKNOWN", "rx_no")


async def _same_answer(bench: Bench, client: Any, call: Call, there: str, nowhere: str, expected: Expected) -> None:
    first = await refused(bench, Attempt(client, call(there)), expected)
    second = await refused(bench, Attempt(client, call(nowhere)), expected)
    assert details_of(first) == details_of(second)
    assert first.__cause__.details() == second.__cause__.details()  # type: ignore[union-attr]
    assert first.legal_actions == ()


@pytest.mark.parametrize("step", ["get", "revoke", "upload"])
async def test_hospital_learns_nothing_of_another_hospitals_prescription(bench: Bench, step: str) -> None:
    rx = await bench.rx().prechecked()
    hospital = await bench.live.hospital(HOSPITAL_B)

    async def upload(rx_no: str) -> Any:
        arguments = rx.upload_arguments()
        arguments["document"].rx_no = rx_no
        arguments["document"].prescription.hospital_code = HOSPITAL_B
        arguments["seal_key"] = bench.live.key(HOSPITAL_B, HOSPITAL_B)
        return await hospital.upload(**arguments)

    calls: dict[str, Call] = {
        "get": lambda rx_no: hospital.get(rx_no=rx_no),
        "revoke": lambda rx_no: hospital.revoke(rx_no=rx_no, doctor_code=DOCTOR, reason="开错药品"),
        "upload": upload,
    }
    await _same_answer(bench, hospital, calls[step], rx.rx_no, NO_RX, UNKNOWN)


async def test_hospital_learns_nothing_of_another_hospitals_visit(bench: Bench) -> None:
    rx = await bench.rx().registered()
    hospital = await bench.live.hospital(HOSPITAL_B)
    expected = Expected("ENCOUNTER_STATE", "encounter_id")
    nowhere = "330100" + "9" * 20
    await _same_answer(
        bench,
        hospital,
        lambda encounter_id: hospital.start_encounter(encounter_id=encounter_id, doctor_code="D330100990003"),
        rx.encounter_id,
        nowhere,
        expected,
    )


def _pharmacy_calls(bench: Bench, pharmacy: Any, rx: Chain) -> dict[str, Call]:
    key = bench.live.key(PHARMACY_B, PHARMACY_B)
    return {
        "release": lambda rx_no: pharmacy.release(rx_no=rx_no),
        "review": lambda rx_no: pharmacy.review(
            rx_no=rx_no,
            pharmacist_code="YS330100990002",
            decision=signed_pb2.REVIEW_DECISION_PASS,
            opinion="用药合理",
            prescription=rx.download.prescription,
            pharmacist_key=bench.live.key("YS330100990002", PHARMACY_B),
        ),
        "quote": lambda rx_no: pharmacy.quote(rx_no=rx_no, voucher_ref="a" * 64, lines=rx.sale_lines()),
        "settle": lambda rx_no: pharmacy.settle(
            rx_no=rx_no, quote_id="1", amounts=signed_pb2.ClaimAmounts(), voucher_ref="a" * 64, seal_key=key
        ),
        "undo": lambda rx_no: pharmacy.undo_settlement(rx_no=rx_no, settlement_id="1", reason="取消"),
        "dispense": lambda rx_no: pharmacy.dispense(
            rx_no=rx_no,
            settlement_id="1",
            reviewer_code="YS330100990002",
            dispenser_code="PY330100990002",
            checker_code="PY330100990004",
            lots=rx.lots(),
            seal_key=key,
        ),
        "void": lambda rx_no: pharmacy.void_dispense(rx_no=rx_no, reason="取消"),
        "hand over": lambda rx_no: pharmacy.hand_over(
            rx_no=rx_no, staff_code="PY330100990002", voucher_ref="a" * 64, seal_key=key
        ),
        "start delivery": lambda rx_no: pharmacy.start_delivery(
            rx_no=rx_no, company="示例配送", courier_code="PS330100990002"
        ),
        "update delivery": lambda rx_no: pharmacy.update_delivery(
            rx_no=rx_no, delivery_no="1", step=dispensing_pb2.DELIVERY_STEP_ARRIVE, courier_code="PS330100990002"
        ),
        "sign delivery": lambda rx_no: pharmacy.sign_delivery(
            rx_no=rx_no, delivery_no="1", sign_code="000000", seal_key=key
        ),
    }


@pytest.mark.parametrize(
    "step",
    [
        "release",
        "review",
        "quote",
        "settle",
        "undo",
        "dispense",
        "void",
        "hand over",
        "start delivery",
        "update delivery",
        "sign delivery",
    ],
)
async def test_pharmacy_learns_nothing_of_a_prescription_that_nobody_showed_it(bench: Bench, step: str) -> None:
    rx = await bench.rx().settled()
    pharmacy = await bench.live.pharmacy(PHARMACY_B)
    await _same_answer(bench, pharmacy, _pharmacy_calls(bench, pharmacy, rx)[step], rx.rx_no, NO_RX, UNKNOWN)


@pytest.mark.parametrize("step", ["choose", "cancel", "qr", "deliver", "accesses"])
async def test_person_learns_nothing_of_somebody_elses_prescription(bench: Bench, step: str) -> None:
    rx = await bench.rx().held()
    channel = await bench.live.channel()
    who: dict[str, Any] = {"person_no": EMPLOYEE}
    calls: dict[str, Call] = {
        "choose": lambda rx_no: channel.choose_pharmacy(**who, rx_no=rx_no, pharmacy_code=PHARMACY),
        "cancel": lambda rx_no: channel.cancel_order(**who, rx_no=rx_no, pharmacy_code=PHARMACY),
        "qr": lambda rx_no: channel.make_qr(**who, rx_no=rx_no),
        "deliver": lambda rx_no: channel.request_delivery(
            **who, rx_no=rx_no, pharmacy_code=PHARMACY, address="示例路 1 号", phone="000-0000000"
        ),
        "accesses": lambda rx_no: channel.list_accesses(**who, rx_no=rx_no),
    }
    await _same_answer(bench, channel, calls[step], rx.rx_no, NO_RX, UNKNOWN)


@pytest.mark.parametrize("step", ["freeze", "unfreeze"])
async def test_agency_learns_nothing_of_another_areas_prescription(bench: Bench, step: str) -> None:
    rx = await bench.rx().uploaded()
    agency = await bench.live.agency("330200")
    calls: dict[str, Call] = {
        "freeze": lambda rx_no: agency.freeze_prescription(rx_no=rx_no, case_no="C-1"),
        "unfreeze": lambda rx_no: agency.unfreeze_prescription(rx_no=rx_no, case_no="C-1"),
    }
    await _same_answer(bench, agency, calls[step], rx.rx_no, NO_RX, UNKNOWN)


@pytest.mark.parametrize("record", ["institution", "practitioner", "person"])
async def test_agency_learns_nothing_of_another_areas_registry(bench: Bench, record: str) -> None:
    agency = await bench.live.agency("330200")
    calls: dict[str, tuple[Call, str, str, str]] = {
        "institution": (
            lambda code: agency.get_institution(institution_code=code),
            PHARMACY,
            "P33010000001",
            "institution_code",
        ),
        "practitioner": (
            lambda code: agency.get_practitioner(practitioner_code=code),
            DOCTOR,
            "D330100000001",
            "practitioner_code",
        ),
        "person": (lambda code: agency.get_person(person_no=code), PERSON, "33010000000000", "person_no"),
    }
    call, there, nowhere, field = calls[record]
    await _same_answer(bench, agency, call, there, nowhere, Expected("RECORD_UNKNOWN", field))


async def test_authorisation_is_refused_alike_whatever_is_wrong_with_it(bench: Bench) -> None:
    rx = await bench.rx().held()
    other = await bench.rx().uploaded()
    await other.listed()
    pharmacy, expected = await bench.live.pharmacy(PHARMACY_B), Expected("AUTH_REUSED", "authorization_no")
    for number in (rx.authorization_no, other.authorization_no):
        await _same_answer(
            bench, pharmacy, lambda no: pharmacy.download(authorization_no=no), number, "0" * len(number), expected
        )


@pytest.mark.parametrize("role", ["hospital", "channel", "agency", "auditor"])
async def test_nobody_but_a_pharmacy_calls_a_pharmacy_rpc(bench: Bench, role: str) -> None:
    client = as_pharmacy(await getattr(bench.live, role)())
    rx = await bench.rx().held()
    call = client.release(rx_no=rx.rx_no)
    refusal = await refused(bench, Attempt(client, call), Expected("ROLE_NOT_ALLOWED"))
    assert refusal.metadata["caller"] == role
