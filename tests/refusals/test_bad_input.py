"""Input that is wrong by itself: bytes, sizes, numbers, codes, and a request in which everything is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from erxhub.client import CallFailed, Refusal
from erxhub.config import Config
from erxhub.rpc.errors import DETAILS_BYTES_MAX
from erxhub.v1 import common_pb2, encounter_pb2, prescribing_pb2, signed_pb2
from tests.chain import PURCHASE
from tests.live import DAY_MS, HOSPITAL
from tests.refusals.bench import Bench, details_of, header_of, raw_call
from tests.refusals.provoking import Attempt, Expected, refused

pytestmark = pytest.mark.asyncio(loop_scope="module")

LINE = "prescription.lines[0]"
BLOCKED = "prescription.rule_blocked"

Change = Callable[[common_pb2.Prescription], None]


async def _precheck_refused(bench: Bench, change: Change, expected: Expected) -> Refusal:
    rx = await bench.rx().diagnosed()
    change(rx.prescription)
    hospital = await bench.live.hospital()
    return await refused(bench, Attempt(hospital, hospital.precheck(prescription=rx.prescription)), expected)


def _line(**fields: Any) -> Change:
    def change(prescription: common_pb2.Prescription) -> None:
        for name, value in fields.items():
            setattr(prescription.lines[0], name, value)

    return change


# ---- bytes ----

CLOSE = "EncounterService/CloseEncounter"


def _close(**fields: Any) -> bytes:
    request = encounter_pb2.CloseEncounterRequest(**{"request_id": "request-1", "encounter_id": "E1"} | fields)
    return request.SerializeToString()


@pytest.mark.parametrize(
    "data",
    [
        _close()[:-1],
        _close().replace(b"E1", b"\xff\xfe"),
        b"\xff" * 20,
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\x00\x00",
    ],
    ids=["truncated", "not UTF-8", "noise", "a length beyond the end", "field number 0"],
)
async def test_bytes_that_are_no_message_are_counted_and_not_recorded(bench: Bench, data: bytes) -> None:
    hospital = await bench.live.hospital()
    await refused(bench, Attempt(hospital, raw_call(hospital, CLOSE, data)), Expected("INPUT_MALFORMED", counted=True))


async def test_signed_bytes_that_are_no_statement_are_refused(bench: Bench) -> None:
    hospital = await bench.live.hospital()
    garbage = common_pb2.Signed(
        payload_type="application/vnd.erxhub.v1.PrescriptionDocument",
        payload=b"\xff\xff\xff",
        signatures=[common_pb2.Signature(key_id="0" * 32, signature=b"1")],
    )
    request = prescribing_pb2.UploadPrescriptionRequest(
        request_id=hospital.request_ids.new(),
        prescription=garbage,
        review=garbage,
        seal=garbage,
        file=common_pb2.PrescriptionFile(media_type="application/pdf", data=b"%PDF-"),
    )
    await refused(bench, Attempt(hospital, hospital.send(request)), Expected("INPUT_MALFORMED", "prescription.payload"))


async def test_fields_that_no_message_has_do_no_harm(bench: Bench) -> None:
    """A varint, a 64-bit number, text, a group (with one inside) and a 32-bit number under unknown numbers."""
    hospital = await bench.live.hospital()
    unknown = b"\xa0\x06\x01\xa1\x06" + bytes(8) + b"\xa2\x06\x02ab\xa3\x06\x08\x01\x0b\x0c\xa4\x06\xa5\x06"
    call = raw_call(hospital, CLOSE, _close() + unknown + bytes(4))
    await refused(bench, Attempt(hospital, call, method=CLOSE), Expected("ENCOUNTER_STATE", "encounter_id"))


async def test_request_id_as_long_as_a_message_stays_out_of_the_ledger(bench: Bench) -> None:
    hospital = await bench.live.hospital()
    before = await bench.ledger.seen()
    with pytest.raises(Refusal) as caught:
        await hospital.close_encounter(encounter_id="E1", request_id="x" * 100_000)
    assert (caught.value.code, caught.value.field) == ("INPUT_MALFORMED", "request_id")
    (entry,) = await bench.ledger.after(before.position)
    assert header_of(entry).request_id == ""


# ---- sizes ----


async def test_message_above_the_limit_is_turned_away_unread(bench: Bench) -> None:
    rx = await bench.rx().prechecked()
    hospital = await bench.live.hospital()
    before = await bench.ledger.seen()
    with pytest.raises(CallFailed) as caught:
        await hospital.upload(**rx.upload_arguments() | {"file": b"%PDF-" + bytes(Config().message_bytes_max)})
    assert caught.value.grpc_status == "RESOURCE_EXHAUSTED"
    assert await bench.ledger.seen() == before


async def test_file_above_its_limit_is_refused(bench: Bench) -> None:
    rx = await bench.rx().prechecked()
    hospital = await bench.live.hospital()
    call = hospital.upload(**rx.upload_arguments() | {"file": b"%PDF-" + bytes(1024 * 1024)})
    await refused(bench, Attempt(hospital, call), Expected("INPUT_MALFORMED", "file.data"))


async def test_file_that_is_not_of_its_media_type_is_refused(bench: Bench) -> None:
    rx = await bench.rx().prechecked()
    hospital = await bench.live.hospital()
    call = hospital.upload(**rx.upload_arguments() | {"file": b"MZ\x90\x00"})
    await refused(bench, Attempt(hospital, call), Expected("INPUT_MALFORMED", "file.data"))


def _hundred_and_one_lines(prescription: common_pb2.Prescription) -> None:
    for _ in range(99):
        prescription.lines.add().CopyFrom(prescription.lines[0])


def _hundred_lines(prescription: common_pb2.Prescription) -> None:
    for _ in range(98):
        prescription.lines.add().CopyFrom(prescription.lines[0])


def _four_valid_days(prescription: common_pb2.Prescription) -> None:
    prescription.valid_days = 4
    prescription.valid_until_ms = prescription.prescribed_at_ms + 4 * DAY_MS


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_hundred_and_one_lines, Expected("INPUT_MALFORMED", "prescription.lines")),
        (_hundred_lines, Expected("RX_LINES", "prescription.lines[2].line_no", BLOCKED)),
        (_line(supply_days=367), Expected("INPUT_MALFORMED", f"{LINE}.supply_days")),
        (_line(supply_days=8), Expected("RX_SUPPLY_DAYS", f"{LINE}.supply_days", BLOCKED)),
        (_four_valid_days, Expected("RX_VALIDITY", "prescription.valid_days", BLOCKED)),
        (_line(usage_note="饭" * 201), Expected("INPUT_MALFORMED", f"{LINE}.usage_note")),
        (_line(line_no=101), Expected("INPUT_MALFORMED", f"{LINE}.line_no")),
    ],
    ids=["101 lines", "100 lines", "367 days", "8 days", "4 days valid", "a long note", "line 101"],
)
async def test_more_than_the_limit_is_refused(bench: Bench, change: Change, expected: Expected) -> None:
    await _precheck_refused(bench, change, expected)


# ---- characters that hide ----

HIDING = ("\x00", "\x07", "\x0b", "\r", "\x1b[2J", "\x7f", "\x9b", "\u200f", "\u202e", "\u2066", "\u2028", "\ufeff")


@pytest.mark.parametrize("text", HIDING, ids=ascii)
async def test_text_with_a_character_that_hides_is_refused_by_its_name(bench: Bench, text: str) -> None:
    expected = Expected("INPUT_MALFORMED", f"{LINE}.usage_note")
    await _precheck_refused(bench, _line(usage_note=f"饭后{text}服用"), expected)


@pytest.mark.parametrize("text", ["一日\n两次", "一日\t两次"], ids=ascii)
async def test_prose_may_have_lines_and_a_number_may_not(bench: Bench, text: str) -> None:
    rx = await bench.rx().diagnosed()
    rx.prescription.lines[0].usage_note = f"{text}　𠮷·é"
    hospital = await bench.live.hospital()
    await hospital.precheck(prescription=rx.prescription)
    await _precheck_refused(bench, _line(dose_unit=text), Expected("INPUT_MALFORMED", f"{LINE}.dose_unit"))


async def test_signed_text_with_a_character_that_hides_is_refused(bench: Bench) -> None:
    rx = await bench.rx().held()
    pharmacy = await bench.live.pharmacy()
    call = rx.review(opinion="同意\u202e")
    await refused(bench, Attempt(pharmacy, call), Expected("INPUT_MALFORMED", "statement.payload.opinion"))


@pytest.mark.parametrize("place", ["lots[0].trace_codes[0]", "lots[0].lot_no"])
async def test_text_deep_in_a_signed_content_is_named_with_its_place(bench: Bench, place: str) -> None:
    rx = await bench.rx().settled()
    lots = rx.lots()
    if place.endswith("lot_no"):
        lots[0].lot_no = "L\x00"
    else:
        lots[0].trace_codes[0] += "\u2067"
    pharmacy = await bench.live.pharmacy()
    call = pharmacy.dispense(**rx.dispense_arguments() | {"lots": lots})
    await refused(bench, Attempt(pharmacy, call), Expected("INPUT_MALFORMED", f"statement.payload.{place}"))


# ---- malformed against unknown ----


@pytest.mark.parametrize(
    ("code", "refusal"),
    [
        ("XC08CAA999A00101019900", "DRUG_CODE"),
        ("xc08caa999a001010199001", "DRUG_CODE"),
        ("XC08CAA999A001010199001 ", "DRUG_CODE"),
        ("ＸC08CAA999A001010199001", "DRUG_CODE"),
        ("ZA04CAA9990020199002", "DRUG_CODE"),
        ("XC08CAA999A001010199999", "DRUG_UNKNOWN"),
    ],
    ids=["short", "lower case", "a blank", "full width", "of another kind", "unknown"],
)
async def test_malformed_drug_code_is_told_from_an_unknown_one(bench: Bench, code: str, refusal: str) -> None:
    await _precheck_refused(bench, _line(drug_code=code), Expected(refusal, f"{LINE}.drug_code", BLOCKED))


@pytest.mark.parametrize(
    ("code", "refusal"),
    [("H3301009990", "INST_CODE"), ("h33010099901", "INST_CODE"), ("H33010088801", "RECORD_UNKNOWN")],
    ids=["short", "lower case", "unknown"],
)
async def test_malformed_institution_code_is_told_from_an_unknown_one(bench: Bench, code: str, refusal: str) -> None:
    agency = await bench.live.agency()
    call = agency.get_institution(institution_code=code)
    await refused(bench, Attempt(agency, call), Expected(refusal, "institution_code"))


@pytest.mark.parametrize("code", ["I10", "I10.x00x999", "10.I", "i10.x00x002"])
async def test_disease_code_that_is_no_known_diagnosis_is_refused(bench: Bench, code: str) -> None:
    def change(prescription: common_pb2.Prescription) -> None:
        prescription.diagnoses[0].code = code

    await _precheck_refused(bench, change, Expected("DX_INVALID", "prescription.diagnoses[0].code", BLOCKED))


@pytest.mark.parametrize(
    ("rx_no", "expected"),
    [("", Expected("INPUT_MALFORMED", "rx_no")), ("1", Expected("RX_UNKNOWN", "rx_no"))],
)
async def test_prescription_number_is_malformed_or_unknown(bench: Bench, rx_no: str, expected: Expected) -> None:
    hospital = await bench.live.hospital()
    await refused(bench, Attempt(hospital, hospital.get(rx_no=rx_no)), expected)


# ---- numbers ----

NO_NUMBERS = (
    "NaN",
    "nan",
    "Infinity",
    "-1",
    "+1",
    "1e9",
    "0x10",
    "1,5",
    "１",
    "٣",
    " 1",
    "1.",
    ".5",
    "1.00001",
    "1" * 11,
)


@pytest.mark.parametrize("text", NO_NUMBERS)
@pytest.mark.parametrize("field", ["quantity", "dose", "units_per_dose"])
async def test_text_that_is_no_plain_decimal_is_refused(bench: Bench, field: str, text: str) -> None:
    await _precheck_refused(bench, _line(**{field: text}), Expected("INPUT_MALFORMED", f"{LINE}.{field}"))


@pytest.mark.parametrize("field", ["quantity", "unit_price"])
@pytest.mark.parametrize("text", ["NaN", "-1", "1e9"])
async def test_sale_with_a_number_that_is_none_is_refused(bench: Bench, field: str, text: str) -> None:
    rx = await bench.rx().reviewed()
    lines = rx.sale_lines()
    setattr(lines[0], field, text)
    pharmacy = await bench.live.pharmacy()
    call = pharmacy.quote(rx_no=rx.rx_no, voucher_ref=await rx.reference(PURCHASE), lines=lines)
    await refused(bench, Attempt(pharmacy, call), Expected("INPUT_MALFORMED", f"lines[0].{field}"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_line(quantity="0"), Expected("AMT_MISMATCH", f"{LINE}.quantity", BLOCKED)),
        (_line(quantity="0.0000"), Expected("AMT_MISMATCH", f"{LINE}.quantity", BLOCKED)),
        (_line(quantity="9999999999", amount_fen=0), Expected("AMT_MISMATCH", f"{LINE}.quantity", BLOCKED)),
        (_line(amount_fen=-1), Expected("INPUT_MALFORMED", f"{LINE}.amount_fen")),
        (_line(amount_fen=2**63 - 1), Expected("INPUT_MALFORMED", f"{LINE}.amount_fen")),
        (_line(supply_days=-1), Expected("INPUT_MALFORMED", f"{LINE}.supply_days")),
        (_line(line_no=0), Expected("INPUT_MALFORMED", f"{LINE}.line_no")),
        (_line(dose="0"), Expected("RX_USAGE", f"{LINE}.dose", BLOCKED)),
        (_line(dose="9999999999"), Expected("RX_OVERDOSE", f"{LINE}.dose", BLOCKED)),
    ],
)
async def test_negative_and_absurd_numbers_are_refused(bench: Bench, change: Change, expected: Expected) -> None:
    await _precheck_refused(bench, change, expected)


@pytest.mark.parametrize("price", ["9999999999", "9999999999.999999"])
async def test_sale_at_an_absurd_price_is_refused(bench: Bench, price: str) -> None:
    rx = await bench.rx().reviewed()
    lines = rx.sale_lines()
    lines[0].unit_price = price
    pharmacy = await bench.live.pharmacy()
    call = pharmacy.quote(rx_no=rx.rx_no, voucher_ref=await rx.reference(PURCHASE), lines=lines)
    await refused(bench, Attempt(pharmacy, call), Expected("INPUT_MALFORMED", "lines[0].unit_price"))


YEAR_10000_MS = 253_402_272_000_000


@pytest.mark.parametrize("at_ms", [0, -1, YEAR_10000_MS, 2**63 - 1])
async def test_instant_without_a_calendar_day_is_refused(bench: Bench, at_ms: int) -> None:
    def prescribed(prescription: common_pb2.Prescription) -> None:
        prescription.prescribed_at_ms = at_ms

    await _precheck_refused(bench, prescribed, Expected("INPUT_MALFORMED", "prescription.prescribed_at_ms"))
    agency = await bench.live.agency()
    code = await bench.institution(agreements=())
    call = agency.sign_agreement(**bench.agreement(code) | {"valid_until_ms": at_ms})
    await refused(bench, Attempt(agency, call), Expected("INPUT_MALFORMED", "valid_until_ms"))


async def test_last_instant_that_has_a_day_is_judged_by_the_rules(bench: Bench) -> None:
    def prescribed(prescription: common_pb2.Prescription) -> None:
        prescription.prescribed_at_ms = YEAR_10000_MS - 1

    expected = Expected("RX_VALIDITY", "prescription.valid_until_ms", BLOCKED)
    await _precheck_refused(bench, prescribed, expected)


# ---- everything wrong at once ----


def _everything_wrong(prescription: common_pb2.Prescription) -> None:
    while len(prescription.lines) < 100:
        prescription.lines.add().CopyFrom(prescription.lines[0])
    for line in prescription.lines:
        line.dose, line.quantity, line.supply_days, line.generic_name = "NaN", "-1", -1, "药" * 201


async def test_hundreds_of_violations_fit_into_one_answer(bench: Bench) -> None:
    refusal = await _precheck_refused(bench, _everything_wrong, Expected("INPUT_MALFORMED", f"{LINE}.generic_name"))
    assert len(refusal.violations) == Config().violations_max
    assert refusal.truncated
    assert all(violation.rule and violation.message for violation in refusal.violations)
    assert len(details_of(refusal)) <= DETAILS_BYTES_MAX


async def test_hundreds_of_findings_of_the_rules_fit_into_one_answer(bench: Bench) -> None:
    def change(prescription: common_pb2.Prescription) -> None:
        while len(prescription.lines) < 100:
            prescription.lines.add().CopyFrom(prescription.lines[0])
        for line_no, line in enumerate(prescription.lines, start=1):
            line.line_no, line.drug_code, line.usage_note, line.supply_days = line_no, "x" * 50, "遵医嘱", 366

    refusal = await _precheck_refused(bench, change, Expected("RX_LINES", "prescription.lines[1].drug_code", BLOCKED))
    assert len(refusal.metadata["findings"].split(";")) <= 16


async def test_statement_inside_a_request_is_checked_field_by_field(bench: Bench) -> None:
    rx = await bench.rx().settled()
    pharmacy = await bench.live.pharmacy()
    lots = rx.lots()
    lots[0].MergeFrom(signed_pb2.DispensedLot(expires_on="tomorrow"))
    call = pharmacy.dispense(**rx.dispense_arguments() | {"lots": lots})
    expected = Expected("INPUT_MALFORMED", "statement.payload.lots[0].expires_on")
    await refused(bench, Attempt(pharmacy, call), expected)


async def test_day_that_no_calendar_has_is_refused(bench: Bench) -> None:
    rx = await bench.rx().settled()
    pharmacy = await bench.live.pharmacy()
    lots = rx.lots()
    lots[0].expires_on = "2028-02-30"
    call = pharmacy.dispense(**rx.dispense_arguments() | {"lots": lots})
    await refused(bench, Attempt(pharmacy, call), Expected("INPUT_MALFORMED", "statement.lots[0].expires_on"))


@pytest.mark.parametrize("sent_at", ["0", "-5", "soon", "9" * 17, "1" * 16])
async def test_clock_that_names_no_instant_of_now_is_a_skew(bench: Bench, sent_at: str) -> None:
    hospital = await bench.live.hospital()
    call = raw_call(hospital, CLOSE, _close(), (("erxhub-sent-at-ms", sent_at),))
    await refused(bench, Attempt(hospital, call, method=CLOSE), Expected("TIME_SKEW", "erxhub-sent-at-ms"))


async def test_hospital_code_of_a_pharmacy_is_of_the_wrong_kind(bench: Bench) -> None:
    hospital = await bench.live.hospital()
    visitor = await bench.visitor(hospital_code="P" + HOSPITAL[1:])
    await refused(
        bench, Attempt(hospital, hospital.register_encounter(**visitor)), Expected("INST_CODE", "hospital_code")
    )
