from typing import Any

import pytest

from erxhub.core import guards
from erxhub.core.guards import area_covers
from erxhub.core.model import Caller, CertifiedPeer, Evidence, Outcome, Refused
from erxhub.core.registry import REQUIRED_CLAUSES
from erxhub.v1 import common_pb2, registry_pb2, state_pb2
from tests.core.harness import World
from tests.core.population import (
    AGENCY,
    BASE,
    DOCTOR_CODE,
    HOSPITAL_CODE,
    ID_NUMBER,
    INTERNET,
    OTHER_AGENCY,
    OTHER_HOSPITAL_CODE,
    PERSON_NO,
    PHARMACY_CODE,
    PROVINCE,
    YEAR_MS,
    YOUNG_DOCTOR_CODE,
    accepted,
    agreement_request,
    institution_request,
    key_of,
    key_request,
    person_key,
    person_request,
    populated,
    practitioner_request,
    public_key,
    refused,
)

ACTIVE = registry_pb2.AGREEMENT_STATUS_ACTIVE
SUSPENDED = registry_pb2.AGREEMENT_STATUS_SUSPENDED
TERMINATED = registry_pb2.AGREEMENT_STATUS_TERMINATED


@pytest.fixture
def world() -> World:
    return populated()


def do(world: World, method: str, request: Any, caller: Caller = AGENCY, evidence: Evidence | None = None) -> Outcome:
    return world.do(caller, f"RegistryService/{method}", request, evidence)


def agreement_change(
    status: registry_pb2.AgreementStatus.ValueType,
    kind: registry_pb2.AgreementKind.ValueType = BASE,
    **fields: Any,
) -> registry_pb2.ChangeAgreementStatusRequest:
    return registry_pb2.ChangeAgreementStatusRequest(
        **({"institution_code": HOSPITAL_CODE, "kind": kind, "status": status, "case_no": "C-1"} | fields)
    )


def institution_state(world: World, code: str = HOSPITAL_CODE) -> state_pb2.InstitutionState:
    key = world.find("institution", code.encode())
    assert key is not None
    state = world.state("institution", key)
    assert isinstance(state, state_pb2.InstitutionState)
    return state


# ---- areas ----


@pytest.mark.parametrize(
    ("agency", "area", "covered"),
    [
        ("330100", "330106", True),
        ("330100", "330100", True),
        ("330000", "330106", True),
        ("330106", "330106", True),
        ("330106", "330100", False),
        ("330100", "330200", False),
        ("110000", "330100", False),
        ("000000", "330100", False),
        ("", "330100", False),
    ],
)
def test_an_agency_covers_the_areas_below_its_own(agency: str, area: str, covered: bool) -> None:
    assert area_covers(agency, area) is covered


# ---- institutions ----


def test_an_institution_takes_its_area_from_its_code(world: World) -> None:
    state = institution_state(world)
    assert (state.area_code, state.licences.internet) == ("330100", True)


@pytest.mark.parametrize("code", ["H3301009990", "X33010099901", "H330100999012", "h33010099901"])
def test_a_malformed_institution_code_is_refused(world: World, code: str) -> None:
    refused(do(world, "RegisterInstitution", institution_request(code)), "INST_CODE", "institution_code")


def test_an_institution_of_another_area_is_not_registered(world: World) -> None:
    outcome = do(world, "RegisterInstitution", institution_request("H33020000001"))
    refused(outcome, "RECORD_UNKNOWN", "institution_code")
    accepted(do(world, "RegisterInstitution", institution_request("H33020000001"), PROVINCE))


def test_registering_the_same_institution_again_leaves_nothing(world: World) -> None:
    before = len(world.events)
    reply = accepted(do(world, "RegisterInstitution", institution_request()))
    assert len(world.events) == before
    # Registered, two agreements signed.
    assert reply.etag == "3"


def test_registering_other_content_under_the_same_code_is_refused(world: World) -> None:
    refused(do(world, "RegisterInstitution", institution_request(name="另一名称")), "RECORD_EXISTS", "institution_code")


def test_a_wrong_social_credit_code_is_malformed(world: World) -> None:
    wrong = institution_request("H33010000077", social_credit_code="91350100M000100Y44")
    right = institution_request("H33010000077", social_credit_code="91350100M000100Y43")
    refused(do(world, "RegisterInstitution", wrong), "INPUT_MALFORMED", "social_credit_code")
    accepted(do(world, "RegisterInstitution", right))


# ---- agreements ----


@pytest.mark.parametrize("clause", REQUIRED_CLAUSES)
def test_an_agreement_without_a_required_clause_names_it(world: World, clause: str) -> None:
    kind = registry_pb2.AGREEMENT_KIND_POOLING
    clauses = [other for other in REQUIRED_CLAUSES if other != clause]
    request = agreement_request(world, PHARMACY_CODE, kind, clauses=clauses)
    no = refused(do(world, "SignAgreement", request), "AGR_INCOMPLETE", "clauses")
    assert no.detail == {"missing": clause}


def test_an_internet_agreement_needs_the_licence(world: World) -> None:
    request = agreement_request(world, PHARMACY_CODE, INTERNET)
    refused(do(world, "SignAgreement", request), "AGR_NO_SUPPLEMENT", "kind")


@pytest.mark.parametrize("until_ms", [-1, 0])
def test_an_agreement_that_ends_before_it_begins_or_is_over_is_malformed(world: World, until_ms: int) -> None:
    request = agreement_request(
        world,
        PHARMACY_CODE,
        registry_pb2.AGREEMENT_KIND_POOLING,
        valid_from_ms=world.now_ms - 10,
        valid_until_ms=world.now_ms + until_ms,
    )
    refused(do(world, "SignAgreement", request), "INPUT_MALFORMED", "valid_until_ms")


def test_signing_the_same_agreement_again_leaves_nothing(world: World) -> None:
    before = len(world.events)
    accepted(do(world, "SignAgreement", agreement_request(world, PHARMACY_CODE)))
    assert len(world.events) == before


def test_a_second_agreement_of_a_kind_waits_for_the_end_of_the_first(world: World) -> None:
    second = agreement_request(world, HOSPITAL_CODE, agreement_no="second")
    assert refused(do(world, "SignAgreement", second), "RECORD_STATE").detail == {"state": "ACTIVE"}
    accepted(do(world, "ChangeAgreementStatus", agreement_change(TERMINATED)))
    again = agreement_request(world, HOSPITAL_CODE)
    refused(do(world, "SignAgreement", again), "RECORD_EXISTS", "agreement_no")
    accepted(do(world, "SignAgreement", second))


def test_an_agreement_number_belongs_to_one_institution(world: World) -> None:
    request = agreement_request(
        world, PHARMACY_CODE, registry_pb2.AGREEMENT_KIND_POOLING, agreement_no=f"{HOSPITAL_CODE}-{BASE}"
    )
    refused(do(world, "SignAgreement", request), "RECORD_EXISTS", "agreement_no")


def test_an_agreement_is_suspended_resumed_and_terminated(world: World) -> None:
    for status, event in (
        (SUSPENDED, "agreement.suspended"),
        (ACTIVE, "agreement.resumed"),
        (TERMINATED, "agreement.terminated"),
    ):
        accepted(do(world, "ChangeAgreementStatus", agreement_change(status)))
        assert world.events[-1][1] == event
    no = refused(do(world, "ChangeAgreementStatus", agreement_change(ACTIVE)), "RECORD_STATE", "status")
    assert no.detail == {"state": "TERMINATED"}


def test_a_suspension_needs_a_case(world: World) -> None:
    refused(do(world, "ChangeAgreementStatus", agreement_change(SUSPENDED, case_no=" ")), "INPUT_MALFORMED", "case_no")


def test_an_active_agreement_is_not_resumed(world: World) -> None:
    refused(do(world, "ChangeAgreementStatus", agreement_change(ACTIVE)), "RECORD_STATE")


def test_an_agreement_that_does_not_exist_or_lies_elsewhere_is_unknown(world: World) -> None:
    change = agreement_change(SUSPENDED, registry_pb2.AGREEMENT_KIND_DUAL_CHANNEL)
    refused(do(world, "ChangeAgreementStatus", change), "RECORD_UNKNOWN", "kind")
    elsewhere = do(world, "ChangeAgreementStatus", agreement_change(SUSPENDED), OTHER_AGENCY)
    nowhere = do(
        world, "ChangeAgreementStatus", agreement_change(SUSPENDED, institution_code="H33010000099"), OTHER_AGENCY
    )
    foreign = refused(elsewhere, "RECORD_UNKNOWN", "institution_code")
    unknown = refused(nowhere, "RECORD_UNKNOWN", "institution_code")
    assert foreign.detail == unknown.detail
    assert foreign.targets
    assert not unknown.targets


def test_a_stale_etag_is_refused_and_a_fresh_one_is_taken(world: World) -> None:
    stale = agreement_change(SUSPENDED, etag="2")
    refused(do(world, "ChangeAgreementStatus", stale), "ETAG_MISMATCH", "etag")
    reply = accepted(do(world, "ChangeAgreementStatus", agreement_change(SUSPENDED, etag="3")))
    assert reply.etag == "4"


def test_an_agreement_counts_only_inside_its_time(world: World) -> None:
    state = institution_state(world)
    tx = world._draft(AGENCY.actor, "time")
    assert guards.agreement(tx, state, BASE) is None
    for at_ms in (state.agreements[0].valid_from_ms - 1, state.agreements[0].valid_until_ms + 1):
        tx.now_ms = at_ms
        no = guards.agreement(tx, state, BASE)
        assert isinstance(no, Refused)
        assert no.code == "AGR_INACTIVE"


def test_an_agreement_ends_by_itself(world: World) -> None:
    world.advance(YEAR_MS + 1)
    change = agreement_change(SUSPENDED)
    assert refused(do(world, "ChangeAgreementStatus", change), "RECORD_STATE").detail == {"state": "TERMINATED"}


# ---- persons ----


def test_a_person_is_registered_with_an_account(world: World) -> None:
    state = world.state("person", person_key(world))
    account = world.state("account", state.account_key)
    assert account.balance_fen == 86_000
    assert account.person_key == person_key(world)


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"id_number": ID_NUMBER[:-1] + "6"}, "ID_CHECKSUM", "id_number"),
        ({"id_number": "12345"}, "ID_CHECKSUM", "id_number"),
        ({"born_on": "1961-04-13"}, "ID_MISMATCH", "born_on"),
        ({"sex": common_pb2.SEX_FEMALE}, "ID_MISMATCH", "sex"),
        ({"born_on": "1961-02-30"}, "INPUT_MALFORMED", "born_on"),
        ({"born_on": "2027-01-01"}, "INPUT_MALFORMED", "born_on"),
        ({"certificate_type": "55"}, "INPUT_MALFORMED", "certificate_type"),
        ({"insurance_type": "999"}, "INPUT_MALFORMED", "insurance_type"),
        ({"person_type": "77"}, "INPUT_MALFORMED", "person_type"),
        ({"delegate_person_nos": ["new1"]}, "INPUT_MALFORMED", "delegate_person_nos[0]"),
        ({"delegate_person_nos": ["abcd", "abcd"]}, "INPUT_MALFORMED", "delegate_person_nos[1]"),
        ({"chronic_codes": ["M039"]}, "INPUT_MALFORMED", "chronic_codes[0]"),
        ({"insured_area_code": "330200"}, "RECORD_UNKNOWN", "insured_area_code"),
    ],
)
def test_a_wrong_person_is_not_registered(world: World, fields: dict[str, Any], code: str, field: str) -> None:
    refused(do(world, "RegisterPerson", person_request("new1", **fields)), code, field)


def test_a_final_small_x_is_kept_as_a_capital(world: World) -> None:
    fields = {"sex": common_pb2.SEX_FEMALE, "born_on": "1949-12-31"}
    accepted(do(world, "RegisterPerson", person_request("new1", id_number="11010519491231002x", **fields)))
    assert world.state("person", person_key(world, "new1")).id_number == "11010519491231002X"


def test_registering_the_same_person_again_leaves_nothing(world: World) -> None:
    before = len(world.events)
    reply = accepted(do(world, "RegisterPerson", person_request(account_balance_fen=0)))
    assert (len(world.events), reply.etag) == (before, "2")
    refused(do(world, "RegisterPerson", person_request(name="另一人")), "RECORD_EXISTS", "person_no")


def test_a_person_is_paused_resumed_and_dies(world: World) -> None:
    def change(status: registry_pb2.PersonStatus.ValueType, reason: str = "示例原因", **fields: Any) -> Outcome:
        request = registry_pb2.ChangePersonStatusRequest(person_no=PERSON_NO, status=status, reason=reason, **fields)
        return do(world, "ChangePersonStatus", request)

    refused(change(registry_pb2.PERSON_STATUS_ACTIVE), "RECORD_STATE", "status")
    refused(change(registry_pb2.PERSON_STATUS_PAUSED, ""), "INPUT_MALFORMED", "reason")
    refused(change(registry_pb2.PERSON_STATUS_PAUSED, etag="1"), "ETAG_MISMATCH", "etag")
    assert accepted(change(registry_pb2.PERSON_STATUS_PAUSED, etag="2")).etag == "3"
    accepted(change(registry_pb2.PERSON_STATUS_ACTIVE, ""))
    accepted(change(registry_pb2.PERSON_STATUS_DEAD, ""))
    no = refused(change(registry_pb2.PERSON_STATUS_ACTIVE), "RECORD_STATE")
    assert no.detail == {"state": "DEAD"}
    assert no.targets[0].person_key == person_key(world)


def test_a_person_of_another_area_answers_like_an_unknown_one(world: World) -> None:
    def change(person_no: str) -> Outcome:
        request = registry_pb2.ChangePersonStatusRequest(
            person_no=person_no, status=registry_pb2.PERSON_STATUS_PAUSED, reason="示例原因"
        )
        return do(world, "ChangePersonStatus", request, OTHER_AGENCY)

    foreign = refused(change(PERSON_NO), "RECORD_UNKNOWN", "person_no")
    unknown = refused(change("nobody"), "RECORD_UNKNOWN", "person_no")
    assert foreign.detail == unknown.detail
    assert foreign.targets
    assert not unknown.targets


# ---- practitioners ----


@pytest.mark.parametrize(
    ("kind", "codes", "code", "field"),
    [
        (registry_pb2.PRACTITIONER_KIND_DOCTOR, [PHARMACY_CODE], "INST_CODE", "institution_codes[0]"),
        (registry_pb2.PRACTITIONER_KIND_PHARMACIST, [HOSPITAL_CODE], "INST_CODE", "institution_codes[0]"),
        (registry_pb2.PRACTITIONER_KIND_DOCTOR, [HOSPITAL_CODE, "H3301"], "INST_CODE", "institution_codes[1]"),
        (
            registry_pb2.PRACTITIONER_KIND_DOCTOR,
            [HOSPITAL_CODE, "H33010000099"],
            "RECORD_UNKNOWN",
            "institution_codes[1]",
        ),
    ],
)
def test_a_practitioner_works_at_a_registered_institution_of_the_right_kind(
    world: World, kind: Any, codes: list[str], code: str, field: str
) -> None:
    request = practitioner_request("NEW1", kind=kind, institution_codes=codes)
    refused(do(world, "RegisterPractitioner", request), code, field)


def test_another_areas_agency_registers_nobody_here(world: World) -> None:
    outcome = do(world, "RegisterPractitioner", practitioner_request("NEW1"), OTHER_AGENCY)
    refused(outcome, "RECORD_UNKNOWN", "institution_codes[0]")


def test_registering_the_same_practitioner_again_leaves_nothing(world: World) -> None:
    before = len(world.events)
    accepted(do(world, "RegisterPractitioner", practitioner_request()))
    assert len(world.events) == before
    other = practitioner_request(practice_years=9)
    refused(do(world, "RegisterPractitioner", other), "RECORD_EXISTS", "practitioner_code")


def test_a_practitioner_is_suspended_resumed_and_ended(world: World) -> None:
    def change(status: registry_pb2.PractitionerStatus.ValueType, case_no: str = "C-1", **fields: Any) -> Outcome:
        request = registry_pb2.ChangePractitionerStatusRequest(
            practitioner_code=DOCTOR_CODE, status=status, case_no=case_no, **fields
        )
        return do(world, "ChangePractitionerStatus", request)

    refused(change(registry_pb2.PRACTITIONER_STATUS_SUSPENDED, ""), "INPUT_MALFORMED", "case_no")
    refused(change(registry_pb2.PRACTITIONER_STATUS_SUSPENDED, etag="9"), "ETAG_MISMATCH", "etag")
    refused(change(registry_pb2.PRACTITIONER_STATUS_ACTIVE), "RECORD_STATE", "status")
    accepted(change(registry_pb2.PRACTITIONER_STATUS_SUSPENDED))
    accepted(change(registry_pb2.PRACTITIONER_STATUS_ACTIVE, ""))
    accepted(change(registry_pb2.PRACTITIONER_STATUS_TERMINATED, ""))
    refused(change(registry_pb2.PRACTITIONER_STATUS_ACTIVE), "RECORD_STATE")
    key = key_request(world, public_key=public_key("another"))
    refused(do(world, "RegisterSigningKey", key), "RECORD_STATE", "subject_code")


@pytest.mark.parametrize("code", [DOCTOR_CODE, "NOBODY1"])
def test_a_practitioner_outside_the_area_is_unknown(world: World, code: str) -> None:
    request = registry_pb2.ChangePractitionerStatusRequest(
        practitioner_code=code, status=registry_pb2.PRACTITIONER_STATUS_SUSPENDED, case_no="C-1"
    )
    outcome = do(world, "ChangePractitionerStatus", request, OTHER_AGENCY)
    assert refused(outcome, "RECORD_UNKNOWN", "practitioner_code").detail == {}


# ---- signing keys and revocations ----


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"suite": "RSA"}, "INPUT_MALFORMED", "suite"),
        ({"suite": "EdDSA"}, "INPUT_MALFORMED", "public_key"),
        ({"public_key": b"\x04" + b"k" * 31}, "INPUT_MALFORMED", "public_key"),
        ({"public_key": b"\x02" + b"k" * 64}, "INPUT_MALFORMED", "public_key"),
        ({"valid_until_ms": 1}, "INPUT_MALFORMED", "valid_until_ms"),
        ({"institution_code": OTHER_HOSPITAL_CODE}, "RECORD_UNKNOWN", "subject_code"),
        ({"subject_code": "NOBODY1"}, "RECORD_UNKNOWN", "subject_code"),
        ({"institution_code": "H33010000099"}, "RECORD_UNKNOWN", "institution_code"),
        ({"institution_code": "H3301"}, "INST_CODE", "institution_code"),
    ],
)
def test_a_wrong_signing_key_is_not_registered(world: World, fields: dict[str, Any], code: str, field: str) -> None:
    request = key_request(world, **({"public_key": public_key("another")} | fields))
    refused(do(world, "RegisterSigningKey", request), code, field)


def test_registering_the_same_key_again_leaves_nothing(world: World) -> None:
    before = len(world.events)
    reply = accepted(do(world, "RegisterSigningKey", key_request(world)))
    assert (reply.key_id, len(world.events)) == (key_of(DOCTOR_CODE), before)


def test_a_key_belongs_to_one_subject(world: World) -> None:
    request = key_request(world, YOUNG_DOCTOR_CODE, public_key=public_key(DOCTOR_CODE))
    refused(do(world, "RegisterSigningKey", request), "RECORD_EXISTS", "public_key")


def test_an_institution_registers_its_seal_with_any_suite(world: World) -> None:
    for suite, key in (("EdDSA", b"k" * 32), ("SM2-SM3", public_key("seal")), ("ES256", public_key("seal"))):
        accepted(do(world, "RegisterSigningKey", key_request(world, HOSPITAL_CODE, suite=suite, public_key=key)))
    assert len({record.key_id for record in institution_state(world).keys}) == 3


def revocation(**target: Any) -> registry_pb2.RevokeCertificateRequest:
    return registry_pb2.RevokeCertificateRequest(reason="示例原因", **target)


@pytest.mark.parametrize("subject", [DOCTOR_CODE, HOSPITAL_CODE])
def test_a_key_is_revoked_once_by_the_agency_of_its_institution(world: World, subject: str) -> None:
    accepted(do(world, "RegisterSigningKey", key_request(world, subject)))
    request = revocation(key_id=key_of(subject))
    refused(do(world, "RevokeCertificate", request, OTHER_AGENCY), "RECORD_UNKNOWN", "key_id")
    accepted(do(world, "RevokeCertificate", request))
    assert world.events[-1][2].revoked_at_ms == world.now_ms
    refused(do(world, "RevokeCertificate", request), "RECORD_STATE", "key_id")
    refused(do(world, "RegisterSigningKey", key_request(world, subject)), "RECORD_STATE", "public_key")


def test_an_unknown_key_cannot_be_revoked(world: World) -> None:
    refused(do(world, "RevokeCertificate", revocation(key_id="0" * 32)), "RECORD_UNKNOWN", "key_id")


def revoke_connection(world: World, role: str, peer_id: str, area_code: str, caller: Caller = AGENCY) -> Outcome:
    peer = CertifiedPeer(role, peer_id, area_code, b"c" * 32)
    return do(world, "RevokeCertificate", revocation(certificate_pem=b"pem"), caller, Evidence(connection=peer))


def test_a_connection_certificate_is_revoked_once(world: World) -> None:
    accepted(revoke_connection(world, "hospital", HOSPITAL_CODE, "330100"))
    assert world.find("revoked_certificate", b"c" * 32) is not None
    assert world.events[-1][2].certificate_sha256 == b"c" * 32
    outcome = revoke_connection(world, "hospital", HOSPITAL_CODE, "330100")
    refused(outcome, "RECORD_STATE", "certificate_pem")


@pytest.mark.parametrize(
    ("role", "peer_id", "area_code"),
    [
        ("hospital", HOSPITAL_CODE, "330100"),
        ("pharmacy", PHARMACY_CODE, "330100"),
        ("agency", "330100", "330100"),
        ("agency", "330000", "330000"),
        ("supervisor", "330100", "330100"),
        ("agency", "000000", "000000"),
    ],
)
def test_an_agency_revokes_no_certificate_outside_its_area(
    world: World, role: str, peer_id: str, area_code: str
) -> None:
    outcome = revoke_connection(world, role, peer_id, area_code, OTHER_AGENCY)
    refused(outcome, "RECORD_UNKNOWN", "certificate_pem")
    assert world.find("revoked_certificate", b"c" * 32) is None


def test_acting_for_the_whole_ledger_gives_no_power_over_other_areas(world: World) -> None:
    outcome = revoke_connection(world, "agency", "330200", "330200")
    refused(outcome, "RECORD_UNKNOWN", "certificate_pem")
    accepted(revoke_connection(world, "agency", "330200", "330200", PROVINCE))


@pytest.mark.parametrize("role", ["channel", "auditor", "mirror", "hub", "witness", "sandbox"])
def test_a_certificate_without_an_area_is_revoked_by_an_agency_that_acts_nationally(world: World, role: str) -> None:
    refused(revoke_connection(world, role, "one", "", PROVINCE), "RECORD_UNKNOWN", "certificate_pem")
    accepted(revoke_connection(world, role, "one", ""))


def test_the_central_agency_has_no_area_either(world: World) -> None:
    accepted(revoke_connection(world, "agency", "000000", "000000"))


def test_a_certificate_that_names_nobody_is_malformed(world: World) -> None:
    evidence = Evidence(certificate_fault="FOREIGN_TRUST_DOMAIN")
    outcome = do(world, "RevokeCertificate", revocation(certificate_pem=b"pem"), evidence=evidence)
    assert refused(outcome, "INPUT_MALFORMED", "certificate_pem").detail == {"reason": "FOREIGN_TRUST_DOMAIN"}
