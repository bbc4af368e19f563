"""Hospital robots: a visit from the registration to the upload, and what a hospital does with it afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from typing import Any

from erxhub.v1 import common_pb2, encounter_pb2, prescribing_pb2, signed_pb2
from tests.simulation.cast import CONTROLLED, DAY_MS, DISEASES, FREE, MINUTE_MS, WARDS, Drug, Person, Ward
from tests.simulation.desk import ONLINE, VISIT, Desk, Journey, Rx
from tests.simulation.wire import FILE, Answer, Call

_ENCOUNTER = "EncounterService"
_PRESCRIBING = "PrescribingService"


def visit(desk: Desk) -> Journey:
    """One visit; its prescription, if there is one, is put on the board."""
    rx = yield from visited(desk, desk.person(), desk.ward())
    if rx is not None:
        desk.board.prescriptions.append(rx)


def visited(desk: Desk, person: Person, ward: Ward) -> Generator[Call, Answer, Rx | None]:
    """A visit of this person here, and its prescription once it is in force."""
    internet = ward is WARDS[0] and desk.maybe(0.25, "internet")
    encounter_id = yield from _registered(desk, ward, person, internet)
    if not encounter_id:
        return None
    doctor = ward.doctor
    desk.board.encounters.append((ward, encounter_id, doctor))
    if not (yield from _diagnosed(desk, ward, encounter_id, doctor, internet)):
        return None
    rx = yield from _prechecked(desk, ward, person, encounter_id, doctor)
    if rx is None:
        return None
    if desk.maybe(0.05):
        yield revocation(desk, rx)
    if desk.maybe(0.03):
        yield _end(desk, ward, encounter_id, "Close")
    return rx if (yield from _uploaded(desk, rx)) else None


# ---- encounter ----


def _registered(desk: Desk, ward: Ward, person: Person, internet: bool) -> Generator[Call, Answer, str]:
    fields: dict[str, Any] = {
        "hospital_code": ward.caller.id,
        "person_no": person.number,
        "visit_kind": common_pb2.VISIT_KIND_INTERNET if internet else common_pb2.VISIT_KIND_OFFLINE,
        "certificate_type": encounter_pb2.VISIT_CERTIFICATE_TYPE_VOUCHER,
        "med_type": "11",
    }
    if internet:
        fields["online_identity_no"] = yield from desk.proof(ward.caller, person, ONLINE)
    elif desk.maybe(0.1, "card"):
        fields["certificate_type"] = encounter_pb2.VISIT_CERTIFICATE_TYPE_ID_CARD
        if desk.maybe(0.5):
            fields["certificate_type"] = encounter_pb2.VISIT_CERTIFICATE_TYPE_SOCIAL_CARD
            fields["card_sn"] = "SN000001"
        fields["id_number"] = person.id_number
    else:
        fields["voucher_ref"] = yield from desk.proof(ward.caller, person, VISIT)

    def register(**changes: Any) -> Call:
        request = encounter_pb2.RegisterEncounterRequest(**(fields | changes))
        return desk.call(ward.caller, f"{_ENCOUNTER}/RegisterEncounter", request)

    social, card = encounter_pb2.VISIT_CERTIFICATE_TYPE_SOCIAL_CARD, encounter_pb2.VISIT_CERTIFICATE_TYPE_ID_CARD
    answer = yield from desk.attempt(
        "register",
        register,
        lambda: register(voucher_ref="", online_identity_no="", id_number=""),
        lambda: register(voucher_ref="y" * 64, online_identity_no=""),
        lambda: register(hospital_code="H33010099909"),
        lambda: register(hospital_code="X1"),
        lambda: register(certificate_type=social, card_sn="", id_number="1"),
        lambda: register(certificate_type=card, id_number="990101196104129116", voucher_ref=""),
        lambda: register(certificate_type=card, id_number="990101197508304113", voucher_ref=""),
        lambda: register(person_no="33010000000003"),
        lambda: register(med_type="999999"),
    )
    return str(answer.reply.encounter_id) if answer.ok else ""


def _diagnosed(desk: Desk, ward: Ward, encounter_id: str, doctor: str, internet: bool) -> Generator[Call, Answer, bool]:
    def start(who: str, visit_id: str = encounter_id) -> Call:
        request = encounter_pb2.StartEncounterRequest(encounter_id=visit_id, doctor_code=who)
        return desk.call(ward.caller, f"{_ENCOUNTER}/StartEncounter", request)

    other = WARDS[1 if ward is WARDS[0] else 0]
    answer = yield from desk.attempt(
        "start",
        lambda: start(doctor),
        lambda: start(other.doctor),
        lambda: start(ward.young_doctor if internet else ward.pharmacist),
        lambda: start(doctor, "330100" + "9" * 20),
        lambda: diagnosis(desk, ward, encounter_id, doctor),
    )
    if not answer.ok:
        return False
    if internet:
        yield from _proven(desk, ward, encounter_id, doctor)
    answer = yield from desk.attempt(
        "diagnose",
        lambda: diagnosis(desk, ward, encounter_id, doctor),
        lambda: diagnosis(desk, ward, encounter_id, doctor, broken=True),
        lambda: diagnosis(desk, ward, encounter_id, doctor, owner="stranger"),
        lambda: diagnosis(desk, ward, encounter_id, doctor, diagnoses=[]),
        lambda: diagnosis(desk, ward, encounter_id, doctor, diagnoses=[_diagnosis("Q99.999")]),
        lambda: diagnosis(desk, ward, encounter_id, doctor, signed_at_ms=desk.now_ms + MINUTE_MS),
        lambda: diagnosis(desk, ward, encounter_id, doctor, encounter_id="elsewhere"),
        lambda: diagnosis(desk, ward, encounter_id, doctor, doctor_code=ward.young_doctor),
    )
    if answer.ok and desk.maybe(0.08):
        yield diagnosis(desk, ward, encounter_id, doctor, amends=True)
    return answer.ok


def _proven(desk: Desk, ward: Ward, encounter_id: str, doctor: str) -> Generator[Call, Answer, None]:
    def attest(**changes: Any) -> Call:
        fields: dict[str, Any] = {
            "encounter_id": encounter_id,
            "media_sha256": bytes(32),
            "liveness_passed": True,
            "attested_at_ms": desk.now_ms,
        }
        request = encounter_pb2.AttestDoctorRequest(**(fields | changes))
        return desk.call(ward.caller, f"{_ENCOUNTER}/AttestDoctor", request)

    def prove(**changes: Any) -> Call:
        fields: dict[str, Any] = {
            "encounter_id": encounter_id,
            "disease_code": DISEASES[0],
            "earlier_hospital_code": ward.caller.id,
            "earlier_visit_on": "2026-10-15",
        }
        request = encounter_pb2.ProveFollowUpRequest(**(fields | changes))
        return desk.call(ward.caller, f"{_ENCOUNTER}/ProveFollowUp", request)

    yield from desk.attempt(
        "prove",
        attest,
        lambda: attest(liveness_passed=False),
        lambda: attest(attested_at_ms=desk.now_ms - DAY_MS),
        lambda: diagnosis(desk, ward, encounter_id, doctor),
    )
    yield from desk.attempt(
        "prove",
        prove,
        lambda: prove(earlier_visit_on="2020-01-01"),
        lambda: prove(earlier_visit_on="2026-02-30"),
        lambda: prove(disease_code="nothing"),
        lambda: prove(earlier_hospital_code="P1"),
        lambda: diagnosis(desk, ward, encounter_id, doctor),
    )


def _diagnosis(code: str = DISEASES[0]) -> common_pb2.Diagnosis:
    return common_pb2.Diagnosis(code=code, name="示例诊断", main=True, diagnosis_type="1")


def diagnosis(
    desk: Desk,
    ward: Ward,
    visit_id: str,
    doctor: str,
    *,
    owner: str = "",
    broken: bool = False,
    amends: bool = False,
    **changes: Any,
) -> Call:
    """A diagnosis for a visit, recorded or amended."""
    fields: dict[str, Any] = {
        "encounter_id": visit_id,
        "doctor_code": doctor,
        "diagnoses": [_diagnosis()],
        "signed_at_ms": desk.now_ms,
    }
    statement = signed_pb2.DiagnosisStatement(**(fields | changes))
    content = desk.pen.signed(statement, owner or desk.key_of(doctor), broken=broken)
    request: Any
    if amends:
        request = encounter_pb2.AmendDiagnosisRequest(encounter_id=visit_id, statement=content, reason="更正")
    else:
        request = encounter_pb2.RecordDiagnosisRequest(encounter_id=visit_id, statement=content)
    method = "AmendDiagnosis" if amends else "RecordDiagnosis"
    return desk.call(ward.caller, f"{_ENCOUNTER}/{method}", request, {"statement": statement})


def _end(desk: Desk, ward: Ward, encounter_id: str, how: str) -> Call:
    request: Any
    if how == "Close":
        request = encounter_pb2.CloseEncounterRequest(encounter_id=encounter_id)
    else:
        request = encounter_pb2.CancelEncounterRequest(encounter_id=encounter_id, reason="退号")
    return desk.call(ward.caller, f"{_ENCOUNTER}/{how}Encounter", request)


# ---- prescription ----


def _line(number: int, drug: Drug, quantity: str, **changes: Any) -> common_pb2.RxLine:
    fields: dict[str, Any] = {
        "line_no": number,
        "item_type": "11",
        "drug_code": drug.code,
        "generic_name": drug.name,
        "dose": "2.5",
        "dose_unit": "mg",
        "frequency_code": "11",
        "route_code": "1",
        "supply_days": 7,
        "quantity": quantity,
        "quantity_unit": "盒",
    }
    return common_pb2.RxLine(**(fields | changes))


def _lines(desk: Desk) -> tuple[list[common_pb2.RxLine], list[common_pb2.Acknowledgement]]:
    """Some lines, now and then with something that the doctor has to answer for."""
    if desk.calm:
        return [_line(number, drug, "1") for number, drug in enumerate(FREE[:2], start=1)], []
    drugs = desk.chance.sample(FREE, 1 + int(desk.chance.random() * 3))
    lines, answers = [], []
    for number, drug in enumerate(drugs, start=1):
        changes: dict[str, Any] = {}
        if drug.limits and desk.maybe(0.6):
            changes["approval_flag"] = "1"
            answers.append(common_pb2.Acknowledgement(code="MON_INDICATION", line_no=number, reason="符合限定"))
        if drug.max_daily_dose and desk.maybe(0.15):
            changes["dose"] = "20"
        lines.append(_line(number, drug, str(1 + int(desk.chance.random() * 3)), **changes))
    return lines, answers


def _prechecked(
    desk: Desk, ward: Ward, person: Person, encounter_id: str, doctor: str
) -> Generator[Call, Answer, Rx | None]:
    lines, answers = _lines(desk)
    if desk.maybe(0.8):
        answers += [
            common_pb2.Acknowledgement(code="RX_OVERDOSE", line_no=line.line_no, reason="病情需要", doctor_code=doctor)
            for line in lines
            if line.dose == "20"
        ]
    days = 3 if desk.calm else 1 + int(desk.chance.random() * 3)
    fields: dict[str, Any] = {
        "hospital_rx_no": f"RX{desk.number():06d}",
        "hospital_code": ward.caller.id,
        "encounter_id": encounter_id,
        "person_no": person.number,
        "rx_type": "1",
        "med_type": "11",
        "doctor_code": doctor,
        "prescribed_at_ms": desk.now_ms,
        "valid_days": days,
        "valid_until_ms": desk.now_ms + days * DAY_MS,
        "diagnoses": [_diagnosis()],
        "lines": lines,
        "acknowledgements": answers,
        "origin": common_pb2.PRESCRIPTION_ORIGIN_HUMAN,
    }
    earlier = [rx for rx in desk.board.prescriptions if rx.person is person]
    if earlier and desk.maybe(0.3):
        fields["renews_rx_no"] = desk.pick(earlier).rx_no

    def precheck(**changes: Any) -> Call:
        request = prescribing_pb2.PrecheckPrescriptionRequest(
            prescription=common_pb2.Prescription(**(fields | changes))
        )
        return desk.call(ward.caller, f"{_PRESCRIBING}/PrecheckPrescription", request)

    def one(drug: Drug, **changes: Any) -> list[common_pb2.RxLine]:
        return [_line(1, drug, **({"quantity": "1"} | changes))]

    usual = FREE[0]
    answer = yield from desk.attempt(
        "precheck",
        precheck,
        lambda: precheck(lines=one(CONTROLLED)),
        lambda: precheck(lines=[]),
        lambda: precheck(lines=one(usual, supply_days=30)),
        lambda: precheck(lines=one(usual, drug_code="XZ99ZZZ999A001020999999")),
        lambda: precheck(lines=one(usual, drug_code="no code")),
        lambda: precheck(lines=one(usual, usage_note="遵医嘱")),
        lambda: precheck(lines=one(usual, quantity="0")),
        lambda: precheck(lines=one(usual, dose="99")),
        lambda: precheck(lines=one(FREE[4], approval_flag="1"), acknowledgements=[]),
        lambda: precheck(valid_days=9, valid_until_ms=fields["prescribed_at_ms"] + 9 * DAY_MS),
        lambda: precheck(
            prescribed_at_ms=desk.now_ms + MINUTE_MS, valid_until_ms=desk.now_ms + MINUTE_MS + days * DAY_MS
        ),
        lambda: precheck(person_no="33010000000099"),
        lambda: precheck(doctor_code=ward.young_doctor),
        lambda: precheck(origin=common_pb2.PRESCRIPTION_ORIGIN_AUTOMATIC),
        lambda: precheck(diagnoses=[_diagnosis("E11.900")]),
        lambda: precheck(renews_rx_no="330100" + "1" * 21),
        lambda: precheck(chronic_code="M03900"),
        lambda: precheck(rx_type="2", lines=one(usual)),
        lambda: precheck(long_term=True),
        lambda: precheck(hospital_code=WARDS[1 if ward is WARDS[0] else 0].caller.id),
        lambda: precheck(encounter_id="330100" + "8" * 20),
        lambda: (
            precheck(hospital_rx_no=desk.pick(desk.board.prescriptions).content.hospital_rx_no)
            if desk.board.prescriptions
            else precheck(lines=[])
        ),
    )
    if not answer.ok:
        return None
    if desk.maybe(0.08):
        # The hospital's own number again gives the same numbers.
        yield precheck()
    content = common_pb2.Prescription(**fields)
    # Until the upload there is nothing signed; the trace code waits in its place.
    return Rx(answer.reply.rx_no, person, ward, content, doctor, answer.reply.rx_trace_code.encode(), encounter_id)


def _uploaded(desk: Desk, rx: Rx) -> Generator[Call, Answer, bool]:
    trace_code = rx.signed.decode()
    sent: list[bytes] = []

    def upload(
        *,
        document: dict[str, Any] | None = None,
        review: dict[str, Any] | None = None,
        seal: dict[str, Any] | None = None,
        doctor_owner: str = "",
        reviewer_owner: str = "",
        seal_owner: str = "",
        broken: str = "",
        data: bytes = FILE.data,
    ) -> Call:
        now, pen, hospital = desk.now_ms, desk.pen, rx.ward.caller.id
        written = signed_pb2.PrescriptionDocument(
            **{
                "rx_no": rx.rx_no,
                "rx_trace_code": trace_code,
                "prescription": rx.content,
                "signed_at_ms": now,
                **(document or {}),
            }
        )
        prescription = pen.signed(written, doctor_owner or desk.key_of(rx.doctor), broken=broken == "prescription")
        digest = hashlib.sha256(prescription.payload).digest()
        reviewed = signed_pb2.HospitalReviewStatement(
            **{
                "rx_no": rx.rx_no,
                "pharmacist_code": rx.ward.pharmacist,
                "prescription_sha256": digest,
                "signed_at_ms": now,
                **(review or {}),
            }
        )
        by = reviewer_owner or desk.key_of(reviewed.pharmacist_code)
        review_content = pen.signed(reviewed, by, broken=broken == "review")
        sealed = signed_pb2.UploadSealStatement(
            **{
                "rx_no": rx.rx_no,
                "hospital_code": hospital,
                "prescription_sha256": digest,
                "review_sha256": hashlib.sha256(review_content.payload).digest(),
                "file_sha256": hashlib.sha256(FILE.data).digest(),
                "signed_at_ms": now,
                **(seal or {}),
            }
        )
        seal_content = pen.signed(sealed, seal_owner or desk.key_of(hospital), broken=broken == "seal")
        sent.append(prescription.payload)
        request = prescribing_pb2.UploadPrescriptionRequest(
            prescription=prescription,
            review=review_content,
            seal=seal_content,
            file=FILE if data is FILE.data else common_pb2.PrescriptionFile(media_type=FILE.media_type, data=data),
        )
        contents = {"prescription": written, "review": reviewed, "seal": sealed}
        return desk.call(rx.ward.caller, f"{_PRESCRIBING}/UploadPrescription", request, contents)

    altered = common_pb2.Prescription()
    altered.CopyFrom(rx.content)
    altered.valid_days += 1
    answer = yield from desk.attempt(
        "upload",
        upload,
        lambda: upload(document={"prescription": altered}),
        lambda: upload(document={"rx_trace_code": "3" * 20}),
        lambda: upload(document={"signed_at_ms": desk.now_ms - 20 * MINUTE_MS}),
        lambda: upload(document={"rx_no": "330100" + "7" * 21}),
        lambda: upload(review={"pharmacist_code": rx.doctor}),
        lambda: upload(review={"prescription_sha256": bytes(32)}),
        lambda: upload(seal={"file_sha256": bytes(32)}),
        lambda: upload(seal={"hospital_code": WARDS[0 if rx.ward is WARDS[1] else 1].caller.id}),
        lambda: upload(doctor_owner="stranger"),
        lambda: upload(doctor_owner=rx.ward.young_doctor),
        lambda: upload(doctor_owner=rx.doctor),
        lambda: upload(seal_owner=rx.doctor),
        lambda: upload(broken="prescription"),
        lambda: upload(broken="review"),
        lambda: upload(broken="seal"),
        lambda: upload(data=b"no document"),
    )
    if answer.ok:
        rx.signed = sent[-1]
        if desk.maybe(0.05):
            yield upload()
    return answer.ok


def revocation(desk: Desk, rx: Rx, doctor: str = "") -> Call:
    """The withdrawal of a prescription by its doctor."""
    request = prescribing_pb2.RevokePrescriptionRequest(
        rx_no=rx.rx_no, doctor_code=doctor or rx.doctor, reason="示例撤销"
    )
    return desk.call(rx.ward.caller, f"{_PRESCRIBING}/RevokePrescription", request)


# ---- afterwards ----


def withdraw(desk: Desk) -> Journey:
    """The doctor takes a prescription back, or tries to."""
    if not desk.board.prescriptions:
        return
    rx = desk.pick(desk.board.prescriptions)
    other = WARDS[0 if rx.ward is WARDS[1] else 1]

    def by_another_hospital() -> Call:
        request = prescribing_pb2.RevokePrescriptionRequest(rx_no=rx.rx_no, doctor_code=other.doctor, reason="误")
        return desk.call(other.caller, f"{_PRESCRIBING}/RevokePrescription", request)

    yield from desk.attempt(
        "withdraw",
        lambda: revocation(desk, rx),
        lambda: revocation(desk, rx, rx.ward.young_doctor),
        by_another_hospital,
    )


def tidy_up(desk: Desk) -> Journey:
    """A visit is ended or corrected afterwards."""
    if not desk.board.encounters:
        return
    ward, encounter_id, doctor = desk.pick(desk.board.encounters)
    choice = desk.chance.random()
    if choice < 0.3:
        yield diagnosis(desk, ward, encounter_id, doctor, amends=True)
    else:
        yield _end(desk, ward, encounter_id, "Close" if choice < 0.6 else "Cancel")
