from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from erxhub.core.keys import prescription_key
from erxhub.core.model import Outcome, Refused
from erxhub.policy.pack import china_date
from erxhub.v1 import catalog_pb2, common_pb2, encounter_pb2, events_pb2, registry_pb2
from tests.core.harness import LEDGER_KEY, World, evidence, signed
from tests.core.population import (
    AGENCY,
    AREA,
    CHILD_NO,
    DOCTOR_CODE,
    HOSPITAL,
    HOSPITAL_CODE,
    ID_NUMBER,
    ONLINE_TYPE,
    OTHER_HOSPITAL,
    PERSON_NO,
    YOUNG_DOCTOR_CODE,
    accepted,
    decoded,
    diagnosed_encounter,
    diagnosis,
    key_of,
    populated,
    record_diagnosis,
    refused,
    registered_encounter,
    registration,
    started_encounter,
    statement,
)

ID_CARD = encounter_pb2.VISIT_CERTIFICATE_TYPE_ID_CARD
SOCIAL_CARD = encounter_pb2.VISIT_CERTIFICATE_TYPE_SOCIAL_CARD


@pytest.fixture
def world() -> World:
    return populated()


def register(world: World, caller: Any = HOSPITAL, **fields: Any) -> Outcome:
    return world.do(caller, "EncounterService/RegisterEncounter", registration(world, **fields))


def start(world: World, encounter_id: str, doctor_code: str = DOCTOR_CODE, caller: Any = HOSPITAL) -> Outcome:
    request = encounter_pb2.StartEncounterRequest(encounter_id=encounter_id, doctor_code=doctor_code)
    return world.do(caller, "EncounterService/StartEncounter", request)


def attest(world: World, encounter_id: str, caller: Any = HOSPITAL, **fields: Any) -> Outcome:
    request = encounter_pb2.AttestDoctorRequest(
        **(
            {"encounter_id": encounter_id, "media_sha256": b"m" * 32, "liveness_passed": True}
            | {"attested_at_ms": world.now_ms}
            | fields
        )
    )
    return world.do(caller, "EncounterService/AttestDoctor", request)


def prove(world: World, encounter_id: str, days_ago: int = 30, caller: Any = HOSPITAL, **fields: Any) -> Outcome:
    earlier = china_date(world.now_ms) - timedelta(days=days_ago)
    request = encounter_pb2.ProveFollowUpRequest(
        **(
            {"encounter_id": encounter_id, "disease_code": "I10.x00x002", "earlier_hospital_code": HOSPITAL_CODE}
            | {"earlier_visit_on": earlier.isoformat()}
            | fields
        )
    )
    return world.do(caller, "EncounterService/ProveFollowUp", request)


def close(world: World, encounter_id: str, caller: Any = HOSPITAL) -> Outcome:
    request = encounter_pb2.CloseEncounterRequest(encounter_id=encounter_id)
    return world.do(caller, "EncounterService/CloseEncounter", request)


def cancel(world: World, encounter_id: str, caller: Any = HOSPITAL) -> Outcome:
    request = encounter_pb2.CancelEncounterRequest(encounter_id=encounter_id, reason="示例原因")
    return world.do(caller, "EncounterService/CancelEncounter", request)


STEPS: list[Callable[..., Outcome]] = [start, attest, prove, close, cancel]


# ---- registration ----


def test_an_encounter_number_is_the_area_and_20_digits(world: World) -> None:
    encounter_id = accepted(register(world)).encounter_id
    assert len(encounter_id) == 26
    assert encounter_id.startswith(AREA)
    assert encounter_id.isdigit()


def test_a_registration_is_caused_by_the_decode_of_its_voucher(world: World) -> None:
    accepted(register(world))
    _, event, payload = world.events[-1]
    assert event == "encounter.registered"
    assert world.state("voucher", payload.voucher_key).institution_code == HOSPITAL_CODE
    assert payload.certificate_type == "01"


def test_an_id_card_with_the_registered_number_proves_the_person(world: World) -> None:
    accepted(register(world, certificate_type=ID_CARD, voucher_ref="", id_number=ID_NUMBER))
    assert world.events[-1][2].voucher_key == b""


def test_a_social_card_needs_its_serial_number(world: World) -> None:
    fields = {"certificate_type": SOCIAL_CARD, "voucher_ref": "", "id_number": ID_NUMBER}
    refused(register(world, **fields), "CERT_CARD_SN_MISSING", "card_sn")
    accepted(register(world, **fields, card_sn="S1"))


def test_a_foreign_passport_on_a_social_card_needs_no_checksum(world: World) -> None:
    fields = {"certificate_type": SOCIAL_CARD, "voucher_ref": "", "card_sn": "S1", "person_no": CHILD_NO}
    refused(register(world, **fields, id_number="E99999999"), "ID_MISMATCH")
    accepted(register(world, **fields, id_number="E12345678"))


@pytest.mark.parametrize("id_number", [ID_NUMBER[:-1] + "6", "11010519491231002X", "E99999999", "E1234567890123456X"])
def test_a_social_card_does_not_tell_whether_somebody_is_registered(world: World, id_number: str) -> None:
    fields = {"certificate_type": SOCIAL_CARD, "voucher_ref": "", "card_sn": "S1", "id_number": id_number}
    answers = [register(world, **fields, person_no=number) for number in (PERSON_NO, CHILD_NO, "nobody")]
    assert all(isinstance(answer, Refused) for answer in answers)
    told = [replace(answer, targets=()) for answer in answers if isinstance(answer, Refused)]
    assert told == [told[0]] * 3


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"voucher_ref": ""}, "voucher_ref"),
        ({"voucher_ref": "", "certificate_type": ID_CARD}, "id_number"),
        ({"internet": True, "online_identity_no": ""}, "online_identity_no"),
        (
            {"internet": True, "online_identity_no": "", "certificate_type": ID_CARD, "id_number": ID_NUMBER},
            "online_identity_no",
        ),
    ],
)
def test_a_registration_without_its_proof_is_refused(world: World, fields: dict[str, Any], field: str) -> None:
    refused(register(world, **fields), "CERT_PROOF_MISSING", field)


def test_a_wrong_identity_number_is_refused(world: World) -> None:
    fields = {"certificate_type": ID_CARD, "voucher_ref": ""}
    refused(register(world, **fields, id_number=ID_NUMBER[:-1] + "6"), "ID_CHECKSUM", "id_number")
    other = "11010519491231002X"
    stranger = refused(register(world, **fields, id_number=other), "ID_MISMATCH", "id_number")
    nobody = refused(register(world, **fields, id_number=other, person_no="nobody"), "ID_MISMATCH", "id_number")
    assert stranger.detail == nobody.detail


def test_the_voucher_of_another_person_is_refused(world: World) -> None:
    refused(register(world, person_no=CHILD_NO), "VCH_SUBJECT_MISMATCH", "person_no")
    refused(register(world, person_no="nobody"), "VCH_SUBJECT_MISMATCH", "person_no")
    refused(register(world, internet=True, person_no=CHILD_NO), "VCH_SUBJECT_MISMATCH", "person_no")


def test_a_reference_for_another_business_is_refused(world: World) -> None:
    refused(register(world, voucher_ref=decoded(world, "02122").voucher_ref), "VCH_WRONG_BUSINESS", "voucher_ref")


def test_the_reference_of_another_hospital_is_refused(world: World) -> None:
    foreign = decoded(world, caller=OTHER_HOSPITAL).voucher_ref
    refused(register(world, voucher_ref=foreign), "VCH_INVALID", "voucher_ref")


def test_an_expired_online_identity_number_is_refused(world: World) -> None:
    number = decoded(world, ONLINE_TYPE).online_identity_no
    world.advance(24 * 3_600_000)
    accepted(register(world, internet=True, online_identity_no=number))
    world.advance(1)
    refused(register(world, internet=True, online_identity_no=number), "VCH_EXPIRED", "online_identity_no")


def test_a_paused_person_is_not_registered(world: World) -> None:
    request = registration(world)
    pause = registry_pb2.ChangePersonStatusRequest(
        person_no=PERSON_NO, status=registry_pb2.PERSON_STATUS_PAUSED, reason="示例原因"
    )
    accepted(world.do(AGENCY, "RegistryService/ChangePersonStatus", pause))
    refused(world.do(HOSPITAL, "EncounterService/RegisterEncounter", request), "PSN_INACTIVE")


def test_a_hospital_registers_for_itself_only(world: World) -> None:
    refused(register(world, OTHER_HOSPITAL), "INST_IMPERSONATION", "hospital_code")
    refused(register(world, hospital_code="P33010099102"), "INST_CODE", "hospital_code")
    refused(register(world, hospital_code="H3301"), "INST_CODE", "hospital_code")


def test_an_unknown_medical_type_is_malformed(world: World) -> None:
    refused(register(world, med_type="97"), "INPUT_MALFORMED", "med_type")
    accepted(register(world, med_type="9901"))


@pytest.mark.parametrize(
    ("kind", "internet", "code"),
    [
        (registry_pb2.AGREEMENT_KIND_BASE, False, "AGR_INACTIVE"),
        (registry_pb2.AGREEMENT_KIND_BASE, True, "AGR_INACTIVE"),
        (registry_pb2.AGREEMENT_KIND_INTERNET, True, "AGR_NO_SUPPLEMENT"),
    ],
)
def test_a_suspended_agreement_stops_the_registration(world: World, kind: Any, internet: bool, code: str) -> None:
    request = registration(world, internet=internet)
    change = registry_pb2.ChangeAgreementStatusRequest(
        institution_code=HOSPITAL_CODE, kind=kind, status=registry_pb2.AGREEMENT_STATUS_SUSPENDED, case_no="C-1"
    )
    accepted(world.do(AGENCY, "RegistryService/ChangeAgreementStatus", change))
    refused(world.do(HOSPITAL, "EncounterService/RegisterEncounter", request), code)


# ---- whose, and in which state ----


@pytest.mark.parametrize("step", STEPS)
def test_the_visit_of_another_hospital_answers_like_one_that_does_not_exist(
    world: World, step: Callable[..., Outcome]
) -> None:
    encounter_id = registered_encounter(world)
    foreign = refused(step(world, encounter_id, caller=OTHER_HOSPITAL), "ENCOUNTER_STATE", "encounter_id")
    unknown = refused(step(world, "3" * 26, caller=OTHER_HOSPITAL), "ENCOUNTER_STATE", "encounter_id")
    assert foreign.detail == unknown.detail == {"missing_step": "register"}
    assert foreign.legal == unknown.legal == ()
    assert foreign.targets
    assert not unknown.targets


@pytest.mark.parametrize("step", [attest, prove, close, record_diagnosis])
def test_before_the_consultation_its_start_is_missing(world: World, step: Callable[..., Outcome]) -> None:
    no = refused(step(world, registered_encounter(world)), "ENCOUNTER_STATE", "encounter_id")
    assert no.detail == {"missing_step": "start consultation", "state": "REGISTERED"}
    assert no.legal == ("start consultation", "cancel")


def test_a_visit_without_diagnosis_cannot_be_closed(world: World) -> None:
    no = refused(close(world, started_encounter(world)), "ENCOUNTER_STATE")
    assert no.detail["missing_step"] == "record diagnosis"


@pytest.mark.parametrize("step", [start, attest, prove, record_diagnosis])
def test_a_step_that_is_past_needs_a_new_visit(world: World, step: Callable[..., Outcome]) -> None:
    no = refused(step(world, diagnosed_encounter(world)), "ENCOUNTER_STATE")
    assert no.detail["missing_step"] == "register"
    assert "amend diagnosis" in no.legal


# ---- consultation ----


def test_a_doctor_of_another_hospital_or_suspended_cannot_begin(world: World) -> None:
    encounter_id = registered_encounter(world)
    refused(start(world, encounter_id, "D330100999999"), "DR_NOT_ALLOWED", "doctor_code")
    change = registry_pb2.ChangePractitionerStatusRequest(
        practitioner_code=DOCTOR_CODE, status=registry_pb2.PRACTITIONER_STATUS_SUSPENDED, case_no="C-1"
    )
    accepted(world.do(AGENCY, "RegistryService/ChangePractitionerStatus", change))
    no = refused(start(world, encounter_id), "DR_NOT_ALLOWED", "doctor_code")
    assert no.targets


def test_a_doctor_without_the_years_cannot_begin_an_internet_visit(world: World) -> None:
    accepted(start(world, registered_encounter(world), YOUNG_DOCTOR_CODE))
    refused(start(world, registered_encounter(world, internet=True), YOUNG_DOCTOR_CODE), "DR_EXPERIENCE")


def test_an_attestation_needs_a_live_person_and_this_consultation(world: World) -> None:
    encounter_id = started_encounter(world, internet=True)
    skew_ms = 5 * 60_000
    refused(attest(world, encounter_id, liveness_passed=False), "DR_NOT_ATTESTED", "liveness_passed")
    for at_ms in (world.now_ms - skew_ms - 1, world.now_ms + skew_ms + 1):
        refused(attest(world, encounter_id, attested_at_ms=at_ms), "DR_NOT_ATTESTED", "attested_at_ms")
    accepted(attest(world, encounter_id, attested_at_ms=world.now_ms - skew_ms))


@pytest.mark.parametrize("days_ago", [181, -1])
def test_an_earlier_visit_outside_the_look_back_time_proves_nothing(world: World, days_ago: int) -> None:
    refused(prove(world, started_encounter(world, internet=True), days_ago), "RX_NOT_REVISIT", "earlier_visit_on")


@pytest.mark.parametrize("days_ago", [0, 180])
def test_an_earlier_visit_inside_the_look_back_time_proves_a_follow_up(world: World, days_ago: int) -> None:
    accepted(prove(world, started_encounter(world, internet=True), days_ago))


def test_a_first_visit_is_no_follow_up(world: World) -> None:
    refused(prove(world, started_encounter(world, internet=True, first_visit=True)), "RX_NOT_REVISIT")


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"earlier_visit_on": "2026-02-30"}, "INPUT_MALFORMED", "earlier_visit_on"),
        ({"disease_code": "hypertension"}, "DX_INVALID", "disease_code"),
        ({"earlier_hospital_code": "P33010099102"}, "INST_CODE", "earlier_hospital_code"),
    ],
)
def test_a_malformed_proof_of_follow_up_is_refused(world: World, fields: dict[str, str], code: str, field: str) -> None:
    refused(prove(world, started_encounter(world), **fields), code, field)


# ---- diagnosis ----


def test_a_recorded_diagnosis_names_its_doctor_and_keeps_the_signed_bytes(world: World) -> None:
    encounter_id = started_encounter(world)
    content = statement(world, encounter_id)
    accepted(record_diagnosis(world, encounter_id, content))
    _, event, payload = world.events[-1]
    assert event == "diagnosis.recorded"
    assert payload.doctor_code == DOCTOR_CODE
    assert payload.statement.payload == content.SerializeToString(deterministic=True)
    assert list(payload.diagnoses) == list(content.diagnoses)


def test_an_internet_diagnosis_needs_attestation_and_follow_up(world: World) -> None:
    encounter_id = started_encounter(world, internet=True)
    refused(record_diagnosis(world, encounter_id), "DR_NOT_ATTESTED")
    accepted(attest(world, encounter_id))
    refused(record_diagnosis(world, encounter_id), "RX_NOT_REVISIT")
    accepted(prove(world, encounter_id))
    accepted(record_diagnosis(world, encounter_id))


@pytest.mark.parametrize(
    "diagnoses",
    [
        [diagnosis(main=False)],
        [diagnosis(), diagnosis("E11.900")],
        [diagnosis(), diagnosis(main=False)],
        [diagnosis("hypertension")],
        [diagnosis("I1O.x00")],
    ],
    ids=["no main one", "two main ones", "a repeated one", "malformed", "letter for digit"],
)
def test_a_wrong_diagnosis_is_refused(world: World, diagnoses: list[common_pb2.Diagnosis]) -> None:
    encounter_id = started_encounter(world)
    no = refused(record_diagnosis(world, encounter_id, statement(world, encounter_id, *diagnoses)), "DX_INVALID")
    assert no.field.startswith("statement.diagnoses")


def test_a_statement_without_diagnosis_is_refused(world: World) -> None:
    encounter_id = started_encounter(world)
    content = statement(world, encounter_id)
    del content.diagnoses[:]
    refused(record_diagnosis(world, encounter_id, content), "DX_INVALID", "statement.diagnoses")


def test_with_a_disease_list_only_its_diagnoses_count(world: World) -> None:
    edition = registry_pb2.CatalogEdition(
        dataset=catalog_pb2.CATALOG_DATASET_DISEASES, edition="D1", valid_from_ms=world.now_ms, rows=2
    )
    tx = world._draft("agency/330100", "import")
    tx.emit("ledger", LEDGER_KEY, "catalogue.imported", events_pb2.CatalogueImported(edition=edition))
    world._commit(tx)
    for code, is_diagnosis in (("I10.x00x002", True), ("I10", False)):
        row = catalog_pb2.Disease(code=code, name="示例疾病", is_diagnosis=is_diagnosis)
        world.workspace.catalog["diseases", "D1", code] = row.SerializeToString()
    encounter_id = started_encounter(world)
    for code in ("I10", "E11.900"):
        content = statement(world, encounter_id, diagnosis(), diagnosis(code, main=False))
        refused(record_diagnosis(world, encounter_id, content), "DX_INVALID", "statement.diagnoses[1].code")
    herbal = diagnosis("A04.01.01", main=False, kind="2")
    accepted(record_diagnosis(world, encounter_id, statement(world, encounter_id, diagnosis(), herbal)))


def test_a_statement_about_another_visit_or_by_another_doctor_is_refused(world: World) -> None:
    encounter_id, other_id = started_encounter(world), started_encounter(world)
    no = refused(record_diagnosis(world, encounter_id, statement(world, other_id)), "SIG_INVALID")
    assert no.field == "statement.encounter_id"
    content = statement(world, encounter_id, doctor_code=YOUNG_DOCTOR_CODE)
    refused(record_diagnosis(world, encounter_id, content), "SIG_INVALID", "statement.doctor_code")


def test_a_forged_signature_is_refused(world: World) -> None:
    encounter_id = started_encounter(world)
    refused(record_diagnosis(world, encounter_id, invalid=["statement"]), "SIG_INVALID", "statement.signatures[0]")


@pytest.mark.parametrize("facts", [{"unknown": ["statement"]}, {"key_id": key_of(YOUNG_DOCTOR_CODE)}])
def test_an_unknown_key_or_another_doctors_is_refused(world: World, facts: dict[str, Any]) -> None:
    no = refused(record_diagnosis(world, started_encounter(world), **facts), "SIG_CERT")
    assert no.field == "statement.signatures[0].key_id"
    assert no.targets


def test_a_revoked_key_signs_no_more(world: World) -> None:
    encounter_id = started_encounter(world)
    revoke = registry_pb2.RevokeCertificateRequest(key_id=key_of(DOCTOR_CODE), reason="示例原因")
    accepted(world.do(AGENCY, "RegistryService/RevokeCertificate", revoke))
    refused(record_diagnosis(world, encounter_id), "SIG_CERT")


def test_a_signing_time_in_the_future_or_too_old_is_refused(world: World) -> None:
    encounter_id = started_encounter(world)
    world.advance(60 * 60_000)
    for at_ms in (world.now_ms + 1, world.now_ms - 15 * 60_000 - 1):
        content = statement(world, encounter_id, signed_at_ms=at_ms)
        refused(record_diagnosis(world, encounter_id, content), "RX_TIME", "statement.signed_at_ms")
    oldest = statement(world, encounter_id, signed_at_ms=world.now_ms - 15 * 60_000)
    accepted(record_diagnosis(world, encounter_id, oldest))


def test_a_signing_time_before_the_key_was_valid_is_refused(world: World) -> None:
    encounter_id = started_encounter(world)
    content = statement(world, encounter_id, signed_at_ms=world.now_ms - 2)
    refused(record_diagnosis(world, encounter_id, content), "SIG_CERT")


def amend(world: World, encounter_id: str, content: Any) -> Outcome:
    envelope = signed(content, key_of(DOCTOR_CODE))
    request = encounter_pb2.AmendDiagnosisRequest(encounter_id=encounter_id, statement=envelope, reason="复查更正")
    return world.do(HOSPITAL, "EncounterService/AmendDiagnosis", request, evidence({"statement": envelope}))


def test_an_amendment_replaces_the_diagnosis_and_keeps_its_reason(world: World) -> None:
    encounter_id = diagnosed_encounter(world)
    accepted(amend(world, encounter_id, statement(world, encounter_id, diagnosis("E11.900"))))
    key = world.find("encounter", encounter_id.encode())
    assert key is not None
    assert [held.code for held in world.state("encounter", key).diagnoses] == ["E11.900"]
    assert world.events[-1][2].reason == "复查更正"


def test_a_statement_that_served_a_diagnosis_serves_no_later_one(world: World) -> None:
    encounter_id = started_encounter(world)
    world.advance(60_000)
    first = statement(world, encounter_id)
    accepted(record_diagnosis(world, encounter_id, first))
    world.advance(1)
    refused(amend(world, encounter_id, first), "RX_TIME", "statement.signed_at_ms")
    accepted(amend(world, encounter_id, statement(world, encounter_id, diagnosis("E11.900"))))
    world.advance(1)
    refused(amend(world, encounter_id, first), "RX_TIME", "statement.signed_at_ms")


# ---- end ----


def test_a_closed_visit_takes_no_further_step(world: World) -> None:
    encounter_id = diagnosed_encounter(world)
    accepted(close(world, encounter_id))
    for step in STEPS:
        assert refused(step(world, encounter_id), "ENCOUNTER_STATE").legal == ()


def prescribe(world: World, encounter_id: str, *events: str) -> None:
    """A prescription of the visit, brought so far by its bare events."""
    encounter_key = world.find("encounter", encounter_id.encode())
    payloads = {
        "prescription.signed": events_pb2.PrescriptionSigned(doctor_code=DOCTOR_CODE),
        "prescription.effective": events_pb2.PrescriptionEffective(),
        "prescription.frozen": events_pb2.PrescriptionFrozen(case_no="C-1"),
        "prescription.exhausted": events_pb2.PrescriptionExhausted(),
        "prescription.undone": events_pb2.PrescriptionUndone(doctor_code=DOCTOR_CODE),
    }
    content = common_pb2.Prescription(
        hospital_code=HOSPITAL_CODE, hospital_rx_no="RX1", valid_until_ms=world.now_ms + 3 * 86_400_000
    )
    tx = world._draft(HOSPITAL.actor, "prescribe")
    key = prescription_key("3" * 27)
    prechecked = events_pb2.PrescriptionPrechecked(rx_no="3" * 27, content=content, encounter_key=encounter_key)
    tx.emit("prescription", key, "prescription.prechecked", prechecked)
    for event in events:
        tx.emit("prescription", key, event, payloads[event])
    world._commit(tx)


@pytest.mark.parametrize(
    ("last", "cancelled"),
    [
        ("prescription.effective", False),
        ("prescription.frozen", False),
        ("prescription.exhausted", False),
        ("prescription.undone", True),
    ],
)
def test_a_prescription_in_force_or_used_keeps_the_visit_from_being_cancelled(
    world: World, last: str, cancelled: bool
) -> None:
    encounter_id = diagnosed_encounter(world)
    events = ["prescription.signed", "prescription.effective"]
    prescribe(world, encounter_id, *dict.fromkeys([*events, last]))
    if cancelled:
        accepted(cancel(world, encounter_id))
    else:
        assert refused(cancel(world, encounter_id), "ENCOUNTER_STATE").detail["missing_step"] == "undo"


def test_a_visit_can_be_cancelled_right_after_its_registration(world: World) -> None:
    accepted(cancel(world, registered_encounter(world)))
