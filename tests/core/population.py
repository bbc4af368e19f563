"""Fictional callers, people and institutions for tests of decisions, registered through the registry's own commands."""

from typing import Any

from erxhub.core.model import Accepted, Caller, Outcome, Refused
from erxhub.core.registry import REQUIRED_CLAUSES, signing_key_id
from erxhub.v1 import catalog_pb2, common_pb2, encounter_pb2, registry_pb2, signed_pb2, voucher_pb2
from tests.core.harness import World, evidence, signed

YEAR_MS = 365 * 86_400_000

AREA = "330100"
HOSPITAL_CODE = "H33010099901"
OTHER_HOSPITAL_CODE = "H33010099902"
PHARMACY_CODE = "P33010099102"
DOCTOR_CODE = "D330100990001"
YOUNG_DOCTOR_CODE = "D330100990002"
PERSON_NO = "33010000000001"
CHILD_NO = "33010000000002"
STRANGER_NO = "33010000000003"

ID_NUMBER = "990101196104129115"
CHILD_ID_NUMBER = "990101198506152347"

OFFLINE_TYPE = "01201"
ONLINE_TYPE = "03131"

AGENCY = Caller("agency", AREA, AREA, b"a" * 32, acts_nationally=True)
OTHER_AGENCY = Caller("agency", "330200", "330200", b"b" * 32)
PROVINCE = Caller("agency", "330000", "330000", b"c" * 32)
HOSPITAL = Caller("hospital", HOSPITAL_CODE, AREA, b"h" * 32)
OTHER_HOSPITAL = Caller("hospital", OTHER_HOSPITAL_CODE, AREA, b"i" * 32)
PHARMACY = Caller("pharmacy", PHARMACY_CODE, AREA, b"p" * 32)
CHANNEL = Caller("channel", "app.example", "", b"e" * 32)
OTHER_CHANNEL = Caller("channel", "bank.example", "", b"f" * 32)

INTERNET = registry_pb2.AGREEMENT_KIND_INTERNET
BASE = registry_pb2.AGREEMENT_KIND_BASE


def accepted(outcome: Outcome) -> Any:
    """The reply of an accepted command."""
    assert isinstance(outcome, Accepted), outcome
    return outcome.reply


def refused(outcome: Outcome, code: str, field: str | None = None) -> Refused:
    """The refusal, which must have this code and, if given, this field."""
    assert isinstance(outcome, Refused), outcome
    assert outcome.code == code
    assert field is None or outcome.field == field
    return outcome


def institution_request(code: str = HOSPITAL_CODE, **other: Any) -> registry_pb2.RegisterInstitutionRequest:
    fields: dict[str, Any] = {"name": f"示例机构{code}", "licences": registry_pb2.Licences(internet=code[0] == "H")}
    return registry_pb2.RegisterInstitutionRequest(institution_code=code, **(fields | other))


def person_request(person_no: str = PERSON_NO, **other: Any) -> registry_pb2.RegisterPersonRequest:
    fields: dict[str, Any] = {
        "name": "林示例甲",
        "certificate_type": "01",
        "id_number": ID_NUMBER,
        "sex": common_pb2.SEX_MALE,
        "born_on": "1961-04-12",
        "insured_area_code": AREA,
        "insurance_type": "310",
        "person_type": "1201",
        "account_balance_fen": 86_000,
    }
    return registry_pb2.RegisterPersonRequest(person_no=person_no, **(fields | other))


def practitioner_request(code: str = DOCTOR_CODE, **other: Any) -> registry_pb2.RegisterPractitionerRequest:
    fields: dict[str, Any] = {
        "name": "赵示例",
        "kind": registry_pb2.PRACTITIONER_KIND_DOCTOR,
        "practice_years": 8,
        "institution_codes": [HOSPITAL_CODE],
    }
    return registry_pb2.RegisterPractitionerRequest(practitioner_code=code, **(fields | other))


def agreement_request(
    world: World, code: str, kind: registry_pb2.AgreementKind.ValueType = BASE, **other: Any
) -> registry_pb2.SignAgreementRequest:
    fields: dict[str, Any] = {
        "agreement_no": f"{code}-{kind}",
        "valid_from_ms": world.now_ms - 1,
        "valid_until_ms": world.now_ms + YEAR_MS,
        "clauses": REQUIRED_CLAUSES,
    }
    return registry_pb2.SignAgreementRequest(institution_code=code, kind=kind, **(fields | other))


def public_key(name: str) -> bytes:
    """65 bytes that have the shape of an uncompressed point; nobody verifies with them here."""
    return b"\x04" + name.encode().ljust(64, b"\0")


def key_of(subject_code: str) -> str:
    return signing_key_id("ES256", public_key(subject_code))


def key_request(
    world: World, subject_code: str = DOCTOR_CODE, institution_code: str = HOSPITAL_CODE, **other: Any
) -> registry_pb2.RegisterSigningKeyRequest:
    fields: dict[str, Any] = {
        "suite": "ES256",
        "public_key": public_key(subject_code),
        "valid_from_ms": world.now_ms - 1,
        "valid_until_ms": world.now_ms + YEAR_MS,
    }
    return registry_pb2.RegisterSigningKeyRequest(
        subject_code=subject_code, institution_code=institution_code, **(fields | other)
    )


def populated() -> World:
    """Two hospitals and a pharmacy with agreements, two doctors with keys, three persons, two of them activated."""
    world = World()

    def agency(method: str, request: Any) -> None:
        accepted(world.do(AGENCY, f"RegistryService/{method}", request))

    for code in (HOSPITAL_CODE, OTHER_HOSPITAL_CODE, PHARMACY_CODE):
        agency("RegisterInstitution", institution_request(code))
        agency("SignAgreement", agreement_request(world, code))
    agency("SignAgreement", agreement_request(world, HOSPITAL_CODE, INTERNET))
    for code, years in ((DOCTOR_CODE, 8), (YOUNG_DOCTOR_CODE, 2)):
        agency("RegisterPractitioner", practitioner_request(code, practice_years=years))
        agency("RegisterSigningKey", key_request(world, code))
    agency("RegisterPerson", person_request())
    agency("RegisterPerson", person_request(STRANGER_NO, name="周示例丙"))
    child = person_request(
        CHILD_NO,
        name="林示例乙",
        certificate_type="08",
        id_number="E12345678",
        born_on="2019-05-01",
        delegate_person_nos=[PERSON_NO, STRANGER_NO],
    )
    agency("RegisterPerson", child)
    for person_no in (PERSON_NO, CHILD_NO):
        activate(world, person_no)
    return world


def activate(world: World, person_no: str, channel: Caller = CHANNEL) -> None:
    request = voucher_pb2.ActivateVoucherRequest(
        person_no=person_no, identity_level=voucher_pb2.IDENTITY_LEVEL_REAL_PERSON
    )
    accepted(world.do(channel, "VoucherService/ActivateVoucher", request))


def person_key(world: World, person_no: str = PERSON_NO) -> bytes:
    key = world.find("person", world.mac_keys.mac("person", person_no, 1))
    assert key is not None
    return key


def code_for(world: World, business_type: str = OFFLINE_TYPE, person_no: str = PERSON_NO) -> str:
    """A fresh dynamic code, shown on CHANNEL."""
    request = voucher_pb2.IssueVoucherRequest(person_no=person_no, business_type=business_type)
    code: str = accepted(world.do(CHANNEL, "VoucherService/IssueVoucher", request)).voucher_code
    return code


def decoded(
    world: World, business_type: str = OFFLINE_TYPE, person_no: str = PERSON_NO, caller: Caller = HOSPITAL
) -> voucher_pb2.VerifyVoucherResponse:
    """The reply of a decode of a fresh code."""
    request = voucher_pb2.VerifyVoucherRequest(
        voucher_code=code_for(world, business_type, person_no), business_type=business_type
    )
    reply = accepted(world.do(caller, "VoucherService/VerifyVoucher", request))
    assert isinstance(reply, voucher_pb2.VerifyVoucherResponse)
    return reply


def registration(world: World, *, internet: bool = False, **other: Any) -> encounter_pb2.RegisterEncounterRequest:
    """A registration that is right in everything, proven by a fresh code."""
    fields: dict[str, Any] = {
        "hospital_code": HOSPITAL_CODE,
        "person_no": PERSON_NO,
        "visit_kind": common_pb2.VISIT_KIND_INTERNET if internet else common_pb2.VISIT_KIND_OFFLINE,
        "certificate_type": encounter_pb2.VISIT_CERTIFICATE_TYPE_VOUCHER,
        "med_type": "11",
    }
    if internet and "online_identity_no" not in other:
        fields["online_identity_no"] = decoded(world, ONLINE_TYPE).online_identity_no
    if not internet and "voucher_ref" not in other:
        fields["voucher_ref"] = decoded(world).voucher_ref
    return encounter_pb2.RegisterEncounterRequest(**(fields | other))


def registered_encounter(world: World, *, internet: bool = False, first_visit: bool = False) -> str:
    """The id of a fresh visit."""
    request = registration(world, internet=internet, first_visit=first_visit)
    encounter_id: str = accepted(world.do(HOSPITAL, "EncounterService/RegisterEncounter", request)).encounter_id
    return encounter_id


def started_encounter(world: World, *, internet: bool = False, first_visit: bool = False) -> str:
    """The id of a visit in which DOCTOR_CODE began the consultation."""
    encounter_id = registered_encounter(world, internet=internet, first_visit=first_visit)
    request = encounter_pb2.StartEncounterRequest(encounter_id=encounter_id, doctor_code=DOCTOR_CODE)
    accepted(world.do(HOSPITAL, "EncounterService/StartEncounter", request))
    return encounter_id


def diagnosis(code: str = "I10.x00x002", *, main: bool = True, kind: str = "1") -> common_pb2.Diagnosis:
    return common_pb2.Diagnosis(code=code, name="示例诊断", main=main, diagnosis_type=kind)


def statement(
    world: World, encounter_id: str, *diagnoses: common_pb2.Diagnosis, **other: Any
) -> signed_pb2.DiagnosisStatement:
    fields: dict[str, Any] = {"doctor_code": DOCTOR_CODE, "signed_at_ms": world.now_ms}
    return signed_pb2.DiagnosisStatement(
        **({"encounter_id": encounter_id, "diagnoses": diagnoses or [diagnosis()]} | fields | other)
    )


def record_diagnosis(
    world: World,
    encounter_id: str,
    content: signed_pb2.DiagnosisStatement | None = None,
    *,
    key_id: str = "",
    caller: Caller = HOSPITAL,
    **facts: Any,
) -> Outcome:
    """RecordDiagnosis with a statement signed by DOCTOR_CODE unless told otherwise; `facts` go to the evidence."""
    envelope = signed(content or statement(world, encounter_id), key_id or key_of(DOCTOR_CODE))
    request = encounter_pb2.RecordDiagnosisRequest(encounter_id=encounter_id, statement=envelope)
    return world.do(caller, "EncounterService/RecordDiagnosis", request, evidence({"statement": envelope}, **facts))


def diagnosed_encounter(world: World) -> str:
    """The id of an offline visit with a recorded diagnosis."""
    encounter_id = started_encounter(world)
    accepted(record_diagnosis(world, encounter_id))
    return encounter_id


def disease_row(line: int, code: str, *, is_diagnosis: bool = True) -> catalog_pb2.CatalogEntry:
    return catalog_pb2.CatalogEntry(
        line=line, disease=catalog_pb2.Disease(code=code, name="示例疾病", is_diagnosis=is_diagnosis)
    )


def drug_row(line: int, code: str) -> catalog_pb2.CatalogEntry:
    return catalog_pb2.CatalogEntry(
        line=line, drug=catalog_pb2.Drug(code=code, generic_name="示例药", charge_class="01", prior_pay_ratio="0")
    )
