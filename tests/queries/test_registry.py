"""What an agency reads of its registry, and what everybody reads of the catalogue."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from erxhub.core.model import Target
from erxhub.v1 import catalog_pb2, common_pb2, registry_pb2
from tests.core import population as people
from tests.core.population import AGENCY, OTHER_AGENCY, PROVINCE
from tests.core.test_prescription import AMLODIPINE, IRBESARTAN, PHARMACIST
from tests.queries.hub import Hub

GET_INSTITUTION = "RegistryService/GetInstitution"
LIST_INSTITUTIONS = "RegistryService/ListInstitutions"
GET_PRACTITIONER = "RegistryService/GetPractitioner"
LIST_PRACTITIONERS = "RegistryService/ListPractitioners"
GET_PERSON = "RegistryService/GetPerson"
LIST_CATALOG = "RegistryService/ListCatalog"


def institution(code: str = people.HOSPITAL_CODE) -> registry_pb2.GetInstitutionRequest:
    return registry_pb2.GetInstitutionRequest(institution_code=code)


def test_an_institution_is_shown_with_agreements_and_keys(hub: Hub) -> None:
    record = hub.read(AGENCY, GET_INSTITUTION, institution()).institution
    assert record.institution_code == people.HOSPITAL_CODE
    assert [held.kind for held in record.agreements] == [people.BASE]
    assert [(key.key_id, key.revoked) for key in record.keys] == [(people.key_of(people.HOSPITAL_CODE), False)]
    assert record.etag == "3"


def test_an_agreement_whose_time_is_over_is_shown_as_ended_before_that_is_written(hub: Hub) -> None:
    hub.advance(2 * people.YEAR_MS)
    before = hub.run(hub.store.last_position())
    record = hub.read(PROVINCE, GET_INSTITUTION, institution()).institution
    assert record.agreements[0].status == registry_pb2.AGREEMENT_STATUS_TERMINATED
    # Only the access itself was written.
    assert hub.run(hub.store.last_position()) == before + 1


@pytest.mark.parametrize(
    ("method", "existing", "missing", "field"),
    [
        (GET_INSTITUTION, institution(), institution("H33010099999"), "institution_code"),
        (
            LIST_PRACTITIONERS,
            registry_pb2.ListPractitionersRequest(institution_code=people.HOSPITAL_CODE),
            registry_pb2.ListPractitionersRequest(institution_code="H33010099999"),
            "institution_code",
        ),
        (
            GET_PRACTITIONER,
            registry_pb2.GetPractitionerRequest(practitioner_code=people.DOCTOR_CODE),
            registry_pb2.GetPractitionerRequest(practitioner_code="D999999999999"),
            "practitioner_code",
        ),
        (
            GET_PERSON,
            registry_pb2.GetPersonRequest(person_no=people.PERSON_NO),
            registry_pb2.GetPersonRequest(person_no="33010099999999"),
            "person_no",
        ),
    ],
)
def test_a_record_of_another_area_is_answered_like_one_that_does_not_exist(
    hub: Hub, method: str, existing: Any, missing: Any, field: str
) -> None:
    foreign = hub.refused(OTHER_AGENCY, method, existing)
    absent = hub.refused(OTHER_AGENCY, method, missing)
    assert (absent.code, absent.field, absent.targets) == ("RECORD_UNKNOWN", field, ())
    assert replace(foreign, targets=()) == absent
    assert len(foreign.targets) == 1
    assert hub.read(AGENCY, method, existing)


def test_a_malformed_institution_code_is_told_as_such(hub: Hub) -> None:
    assert hub.refused(AGENCY, GET_INSTITUTION, institution("X1")).code == "INST_CODE"


def test_an_area_lists_its_institutions_page_by_page(hub: Hub) -> None:
    codes = []
    token = ""
    for _ in range(3):
        request = registry_pb2.ListInstitutionsRequest(page=common_pb2.Page(page_size=1, page_token=token))
        reply = hub.read(AGENCY, LIST_INSTITUTIONS, request)
        codes += [record.institution_code for record in reply.institutions]
        token = reply.next_page_token
    assert codes == [people.HOSPITAL_CODE, people.OTHER_HOSPITAL_CODE, people.PHARMACY_CODE]
    assert token == ""


def test_a_province_lists_the_institutions_of_its_cities_and_another_city_none(hub: Hub) -> None:
    request = registry_pb2.ListInstitutionsRequest()
    assert len(hub.read(PROVINCE, LIST_INSTITUTIONS, request).institutions) == 3
    assert not hub.read(OTHER_AGENCY, LIST_INSTITUTIONS, request).institutions


@pytest.mark.parametrize("change", ["other caller", "other method", "other filter", "one character", "no base64"])
def test_a_page_token_is_good_for_its_caller_method_and_filter_only(hub: Hub, change: str) -> None:
    page = common_pb2.Page(page_size=1)
    request = registry_pb2.ListPractitionersRequest(institution_code=people.HOSPITAL_CODE, page=page)
    token = hub.read(AGENCY, LIST_PRACTITIONERS, request).next_page_token
    assert token
    request.page.page_token = token
    caller, method, asked = AGENCY, LIST_PRACTITIONERS, request
    if change == "other caller":
        caller = PROVINCE
    elif change == "other method":
        method, asked = LIST_INSTITUTIONS, registry_pb2.ListInstitutionsRequest(page=request.page)
    elif change == "other filter":
        request.institution_code = people.OTHER_HOSPITAL_CODE
    elif change == "one character":
        request.page.page_token = ("B" if token[0] == "A" else "A") + token[1:]
    else:
        request.page.page_token = "第二页"
    refused = hub.refused(caller, method, asked)
    assert (refused.code, refused.field) == ("PAGE_TOKEN_INVALID", "page.page_token")


def test_a_revoked_signing_key_is_shown_as_revoked(hub: Hub) -> None:
    key_id = people.key_of(people.DOCTOR_CODE)
    revoke = registry_pb2.RevokeCertificateRequest(key_id=key_id, reason="示例")
    people.accepted(hub.do(AGENCY, "RegistryService/RevokeCertificate", revoke))
    request = registry_pb2.ListPractitionersRequest(institution_code=people.HOSPITAL_CODE)
    records = hub.read(AGENCY, LIST_PRACTITIONERS, request).practitioners
    assert [(record.practitioner_code, record.keys[0].revoked) for record in records] == [
        (people.DOCTOR_CODE, True),
        (PHARMACIST, False),
    ]


def test_a_practitioner_is_shown_to_the_city_where_he_works_though_the_province_registered_him(hub: Hub) -> None:
    code = "D330000990009"
    people.accepted(hub.do(PROVINCE, "RegistryService/RegisterPractitioner", people.practitioner_request(code)))
    request = registry_pb2.GetPractitionerRequest(practitioner_code=code)
    assert hub.read(AGENCY, GET_PRACTITIONER, request).practitioner.practitioner_code == code


def test_a_person_is_shown_with_balance_and_channels_and_named_in_the_access(hub: Hub) -> None:
    request = registry_pb2.GetPersonRequest(person_no=people.PERSON_NO)
    record = hub.read(AGENCY, GET_PERSON, request).person
    assert record.account_balance_fen == 86_000
    assert record.activated_channels == [people.CHANNEL.id]
    assert people.ID_NUMBER not in str(record)
    outcome = hub.run(hub.look(AGENCY, GET_PERSON, request))
    (target,) = outcome.targets
    assert target == Target(target.stream_key, target.stream_key)


def test_everybody_pages_through_the_edition_in_force_by_code(hub: Hub) -> None:
    request = registry_pb2.ListCatalogRequest(dataset=catalog_pb2.CATALOG_DATASET_DRUGS)
    request.page.page_size = 1
    first = hub.read(people.PHARMACY, LIST_CATALOG, request)
    request.page.page_token = first.next_page_token
    second = hub.read(people.PHARMACY, LIST_CATALOG, request)
    assert [edition.edition for edition in first.editions] == ["2026"]
    assert [entry.drug.code for entry in (*first.entries, *second.entries)] == [AMLODIPINE, IRBESARTAN]
    assert second.next_page_token == ""


@pytest.mark.parametrize(
    ("prefix", "codes"),
    [("XC09", [IRBESARTAN]), (IRBESARTAN, [IRBESARTAN]), ("XC", [AMLODIPINE, IRBESARTAN]), ("ZZ", [])],
)
def test_a_prefix_narrows_the_catalogue(hub: Hub, prefix: str, codes: list[str]) -> None:
    request = registry_pb2.ListCatalogRequest(dataset=catalog_pb2.CATALOG_DATASET_DRUGS, code_prefix=prefix)
    reply = hub.read(people.CHANNEL, LIST_CATALOG, request)
    assert [entry.drug.code for entry in reply.entries] == codes
    assert reply.next_page_token == ""


def test_a_dataset_without_an_edition_is_empty(hub: Hub) -> None:
    request = registry_pb2.ListCatalogRequest(dataset=catalog_pb2.CATALOG_DATASET_REGIONS)
    reply = hub.read(AGENCY, LIST_CATALOG, request)
    assert (len(reply.editions), len(reply.entries)) == (0, 0)
