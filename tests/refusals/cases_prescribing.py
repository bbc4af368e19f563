"""Refusals about visits and prescriptions: the doctor, the rules of the precheck, the upload and its undoing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from erxhub.client import Refusal
from erxhub.client.signing import signed_upload
from erxhub.crypto.suites import SigningKey
from erxhub.seed.catalogue import seed_drugs
from erxhub.v1 import common_pb2
from tests.chain import DOCTOR, DOCTOR_NEW, Chain
from tests.live import CHILD, DAY_MS, HOSPITAL
from tests.refusals.bench import Bench
from tests.refusals.provoking import Attempt, provokes

BLOCKED = "prescription.rule_blocked"
LINE = "prescription.lines[0]"
DUAL_CHANNEL_DRUG = "XL04ACA999A001110199011"


# ---- the visit ----


@provokes("DR_NOT_ALLOWED", status="PERMISSION_DENIED", field="doctor_code")
async def doctor_of_another_hospital(bench: Bench) -> Attempt:
    rx = await bench.rx().registered()
    hospital = await bench.live.hospital()
    return Attempt(hospital, hospital.start_encounter(encounter_id=rx.encounter_id, doctor_code="D330100990003"))


@provokes("DR_EXPERIENCE", status="FAILED_PRECONDITION", field="doctor_code")
async def young_doctor_online(bench: Bench) -> Attempt:
    hospital = await bench.live.hospital()
    rx = bench.rx()
    verified = await hospital.verify_voucher(voucher_code=await rx.code("03131"), business_type="03131")
    visitor = await bench.visitor(visit_kind=common_pb2.VISIT_KIND_INTERNET, voucher_ref="")
    reply = await hospital.register_encounter(**visitor, online_identity_no=verified.online_identity_no)
    return Attempt(hospital, hospital.start_encounter(encounter_id=reply.encounter_id, doctor_code=DOCTOR_NEW))


@provokes("DR_NOT_ATTESTED", status="FAILED_PRECONDITION", field="liveness_passed")
async def nobody_live_in_the_video(bench: Bench) -> Attempt:
    rx = await bench.rx().internet(proven=False)
    hospital = await bench.live.hospital()
    return Attempt(
        hospital,
        hospital.attest_doctor(encounter_id=rx.encounter_id, media_sha256=bytes(32), liveness_passed=False),
    )


@provokes("RX_NOT_REVISIT", status="FAILED_PRECONDITION", field="earlier_visit_on")
async def earlier_visit_too_long_ago(bench: Bench) -> Attempt:
    rx = await bench.rx().internet(proven=False)
    hospital = await bench.live.hospital()
    return Attempt(
        hospital,
        hospital.prove_follow_up(
            encounter_id=rx.encounter_id,
            disease_code="I10.x00x002",
            earlier_hospital_code=HOSPITAL,
            earlier_visit_on="2025-01-01",
        ),
    )


@provokes("ENCOUNTER_STATE", status="FAILED_PRECONDITION", field="encounter_id")
async def visit_closed_before_it_began(bench: Bench) -> Attempt:
    rx = await bench.rx().registered()
    hospital = await bench.live.hospital()
    return Attempt(hospital, hospital.close_encounter(encounter_id=rx.encounter_id))


# ---- the rules of the precheck: what a prescription has to say so that a rule stops it ----


def _too_many_drugs(prescription: common_pb2.Prescription) -> None:
    for line_no, code in enumerate(list(seed_drugs())[:6], start=1):
        if line_no > len(prescription.lines):
            prescription.lines.add().CopyFrom(prescription.lines[0])
        prescription.lines[line_no - 1].line_no = line_no
        prescription.lines[line_no - 1].drug_code = code


def _no_lines(prescription: common_pb2.Prescription) -> None:
    del prescription.lines[:]


def _eight_days(prescription: common_pb2.Prescription) -> None:
    prescription.lines[0].supply_days = 8


def _long_term(prescription: common_pb2.Prescription) -> None:
    prescription.long_term = True


def _four_days_valid(prescription: common_pb2.Prescription) -> None:
    prescription.valid_days = 4
    prescription.valid_until_ms = prescription.prescribed_at_ms + 4 * DAY_MS


def _from_tomorrow(prescription: common_pb2.Prescription) -> None:
    prescription.prescribed_at_ms += DAY_MS
    prescription.valid_until_ms += DAY_MS


def _no_diagnosis(prescription: common_pb2.Prescription) -> None:
    del prescription.diagnoses[:]


def _disease_not_filed(prescription: common_pb2.Prescription) -> None:
    prescription.chronic_code = "M01600"


def _herbal_line(prescription: common_pb2.Prescription) -> None:
    line = prescription.lines[1]
    line.item_type, line.drug_code = "13", "T990000001"


def _adult_in_days(prescription: common_pb2.Prescription) -> None:
    prescription.patient.age_days = 10


def _malformed_drug(prescription: common_pb2.Prescription) -> None:
    prescription.lines[0].drug_code = "XC08"


def _unknown_drug(prescription: common_pb2.Prescription) -> None:
    prescription.lines[0].drug_code = "XC08CAA999A001010199999"


def _narcotic(prescription: common_pb2.Prescription) -> None:
    prescription.lines[0].drug_code = "XN02AAA999A001140199014"


def _hospital_preparation(prescription: common_pb2.Prescription) -> None:
    prescription.lines[0].hospital_preparation = True


def _wrong_amount(prescription: common_pb2.Prescription) -> None:
    prescription.lines[0].amount_fen += 1


def _as_directed(prescription: common_pb2.Prescription) -> None:
    prescription.lines[0].usage_note = "遵医嘱"


def _overdose(prescription: common_pb2.Prescription) -> None:
    prescription.lines[0].dose = "50"


def _restricted(prescription: common_pb2.Prescription) -> None:
    line = prescription.lines[0]
    line.drug_code, line.dose, line.approval_flag = "XL01EAA999A001090199009", "100", "1"


def _allergy(prescription: common_pb2.Prescription) -> None:
    prescription.patient.allergies.append("示例平降压片")


def _automatic(prescription: common_pb2.Prescription) -> None:
    prescription.origin = common_pb2.PRESCRIPTION_ORIGIN_AUTOMATIC


def _renews_nothing(prescription: common_pb2.Prescription) -> None:
    prescription.renews_rx_no = "9" * 27


_RULES: tuple[tuple[str, str, str, Callable[[common_pb2.Prescription], None]], ...] = (
    ("RX_TOO_MANY_DRUGS", "INVALID_ARGUMENT", "prescription.lines", _too_many_drugs),
    ("RX_LINES", "INVALID_ARGUMENT", "prescription.lines", _no_lines),
    ("RX_SUPPLY_DAYS", "INVALID_ARGUMENT", f"{LINE}.supply_days", _eight_days),
    ("RX_LONG_TERM", "INVALID_ARGUMENT", "prescription.chronic_code", _long_term),
    ("RX_VALIDITY", "INVALID_ARGUMENT", "prescription.valid_days", _four_days_valid),
    ("RX_TIME", "INVALID_ARGUMENT", "prescription.prescribed_at_ms", _from_tomorrow),
    ("DX_INVALID", "INVALID_ARGUMENT", "prescription.diagnoses", _no_diagnosis),
    ("DX_CHRONIC_MISSING", "FAILED_PRECONDITION", "prescription.chronic_code", _disease_not_filed),
    ("RX_MIXED_KINDS", "INVALID_ARGUMENT", "prescription.lines", _herbal_line),
    ("RX_INFANT_AGE", "INVALID_ARGUMENT", "prescription.patient.age_days", _adult_in_days),
    ("DRUG_CODE", "INVALID_ARGUMENT", f"{LINE}.drug_code", _malformed_drug),
    ("DRUG_UNKNOWN", "NOT_FOUND", f"{LINE}.drug_code", _unknown_drug),
    ("RX_CONTROLLED", "PERMISSION_DENIED", f"{LINE}.drug_code", _narcotic),
    ("DRUG_HOSP_PREP", "FAILED_PRECONDITION", f"{LINE}.drug_code", _hospital_preparation),
    ("AMT_MISMATCH", "INVALID_ARGUMENT", f"{LINE}.amount_fen", _wrong_amount),
    ("RX_USAGE", "INVALID_ARGUMENT", f"{LINE}.usage_note", _as_directed),
    ("RX_OVERDOSE", "FAILED_PRECONDITION", f"{LINE}.dose", _overdose),
    ("MON_UNACKNOWLEDGED", "FAILED_PRECONDITION", f"{LINE}.approval_flag", _restricted),
    ("CLIN_CONTRA", "FAILED_PRECONDITION", f"{LINE}.drug_code", _allergy),
    ("RX_AUTOGENERATED", "FAILED_PRECONDITION", "prescription.origin", _automatic),
    ("RX_REFILL", "FAILED_PRECONDITION", "prescription.renews_rx_no", _renews_nothing),
)


async def _precheck(bench: Bench, rx: Chain) -> Attempt:
    hospital = await bench.live.hospital()
    return Attempt(hospital, hospital.precheck(prescription=rx.prescription))


def _stopped_by_a_rule(code: str, status: str, field: str, change: Callable[[common_pb2.Prescription], None]) -> None:
    async def provoke(bench: Bench) -> Attempt:
        # Changed after the diagnosis was recorded: only the prescription is to be wrong.
        rx = await bench.rx().diagnosed()
        change(rx.prescription)
        return await _precheck(bench, rx)

    provoke.__name__ = change.__name__.lstrip("_")
    provokes(code, status=status, field=field, entry=BLOCKED)(provoke)


for _rule in _RULES:
    _stopped_by_a_rule(*_rule)


@provokes("RX_CHILD_UNDER6", status="FAILED_PRECONDITION", field="prescription.patient", entry=BLOCKED)
async def young_child_online_without_its_guardian(bench: Bench) -> Attempt:
    return await _precheck(bench, await bench.rx(person_no=CHILD).internet())


@provokes("RX_BANNED_ONLINE", status="PERMISSION_DENIED", field=f"{LINE}.drug_code", entry=BLOCKED)
async def vaccine_online(bench: Bench) -> Attempt:
    rx = await bench.rx().internet()
    rx.prescription.lines[0].drug_code = "XJ07BBA999A001160199016"
    return await _precheck(bench, rx)


@provokes("RX_DUAL_CHANNEL", status="FAILED_PRECONDITION", field=f"{LINE}.drug_code", entry=BLOCKED)
async def dual_channel_drug_by_a_doctor_who_is_not_listed(bench: Bench) -> Attempt:
    rx = await bench.rx().registered()
    hospital = await bench.live.hospital()
    await hospital.start_encounter(encounter_id=rx.encounter_id, doctor_code=DOCTOR_NEW)
    rx.prescription = rx.written()
    rx.prescription.doctor_code = DOCTOR_NEW
    rx.prescription.lines[0].drug_code = DUAL_CHANNEL_DRUG
    await hospital.record_diagnosis(
        encounter_id=rx.encounter_id,
        doctor_code=DOCTOR_NEW,
        diagnoses=rx.prescription.diagnoses,
        doctor_key=bench.live.key(DOCTOR_NEW, HOSPITAL),
    )
    return await _precheck(bench, rx)


@provokes("RX_DUPLICATE", status="ALREADY_EXISTS", field="prescription.hospital_rx_no")
async def number_of_the_hospital_used_for_another_content(bench: Bench) -> Attempt:
    rx = await bench.rx().prechecked()
    rx.prescription.lines[0].usage_note = "饭后"
    return await _precheck(bench, rx)


# ---- the upload ----


async def _upload(bench: Bench, rx: Chain, **changes: object) -> Attempt:
    hospital = await bench.live.hospital()
    return Attempt(hospital, hospital.upload(**rx.upload_arguments() | changes))


@provokes("RX_NO_HOSP_REVIEW", status="FAILED_PRECONDITION", field="review.payload")
async def prescriber_reviews_himself(bench: Bench) -> Attempt:
    rx = await bench.rx().prechecked()
    return await _upload(bench, rx, pharmacist_code=DOCTOR, pharmacist_key=bench.live.key(DOCTOR, HOSPITAL))


@provokes("SIG_INVALID", status="INVALID_ARGUMENT", field="file")
async def file_exchanged_after_the_seal(bench: Bench) -> Attempt:
    rx = await bench.rx().prechecked()
    hospital = await bench.live.hospital()
    request = signed_upload(
        **rx.upload_arguments(),
        request_id=hospital.request_ids.new(),
        media_type="application/pdf",
        opinion="审核通过",
        hospital_code=HOSPITAL,
        signed_at_ms=bench.live.clock.now_ms(),
    )
    request.file.data += b"%"
    return Attempt(hospital, hospital.send(request))


@provokes("SIG_CERT", status="UNAUTHENTICATED", field="prescription.signatures[0].key_id")
async def signed_with_a_key_that_nobody_registered(bench: Bench) -> Attempt:
    rx = await bench.rx().prechecked()
    return await _upload(bench, rx, doctor_key=SigningKey.generate("ES256"))


@provokes("RX_TIME", status="INVALID_ARGUMENT", field="prescription.signed_at_ms")
async def signed_too_long_ago(bench: Bench) -> Attempt:
    rx = await bench.rx().prechecked()
    arguments = rx.upload_arguments()
    bench.live.advance(15 * 60_000 + 1)
    hospital = await bench.live.hospital()
    return Attempt(hospital, hospital.upload(**arguments))


@provokes("RX_TRACE_CODE", status="ALREADY_EXISTS", field="prescription.payload")
async def uploaded_twice(bench: Bench) -> Attempt:
    return await _upload(bench, await bench.rx().uploaded())


@provokes("RX_TRACE_CODE_INVALID", status="FAILED_PRECONDITION", field="prescription.payload")
async def trace_code_of_another_prescription(bench: Bench) -> Attempt:
    other = await bench.rx().prechecked()
    rx = await bench.rx().prechecked()
    rx.rx_trace_code = other.rx_trace_code
    return await _upload(bench, rx)


@provokes("RX_UNDONE", status="ABORTED", field="prescription.payload")
async def revoked_before_the_upload(bench: Bench) -> Attempt:
    rx = await bench.rx().prechecked()
    hospital = await bench.live.hospital()
    await hospital.revoke(rx_no=rx.rx_no, doctor_code=DOCTOR, reason="开错药品")
    return await _upload(bench, rx)


# ---- the undoing ----


@provokes("RX_UNDO_DENIED", status="PERMISSION_DENIED", field="doctor_code")
async def colleague_revokes(bench: Bench) -> Attempt:
    rx = await bench.rx().uploaded()
    hospital = await bench.live.hospital()
    return Attempt(hospital, hospital.revoke(rx_no=rx.rx_no, doctor_code=DOCTOR_NEW, reason="开错药品"))


@provokes("RX_UNDO_STATE", status="FAILED_PRECONDITION", field="rx_no", keeps=("prescription.undo_requested",))
async def revoked_while_a_pharmacy_holds_it(bench: Bench) -> Attempt:
    rx = await bench.rx().held()
    hospital = await bench.live.hospital()
    return Attempt(hospital, hospital.revoke(rx_no=rx.rx_no, doctor_code=DOCTOR, reason="开错药品"))


@provokes("RX_UNDO_STATE", status="FAILED_PRECONDITION", field="rx_no")
async def revoked_a_second_time_while_held(bench: Bench) -> Attempt:
    rx = await bench.rx().held()
    hospital = await bench.live.hospital()
    with pytest.raises(Refusal):
        await hospital.revoke(rx_no=rx.rx_no, doctor_code=DOCTOR, reason="开错药品")
    return Attempt(hospital, hospital.revoke(rx_no=rx.rx_no, doctor_code=DOCTOR, reason="开错药品"))


@provokes("RX_UNKNOWN", status="NOT_FOUND", field="rx_no")
async def prescription_of_another_hospital(bench: Bench) -> Attempt:
    rx = await bench.rx().uploaded()
    other = await bench.live.hospital("H33010099902")
    return Attempt(other, other.get(rx_no=rx.rx_no))
