"""Refusals about who somebody is and whether he may act: vouchers, persons, institutions, agreements, the registry."""

from __future__ import annotations

from erxhub.v1 import catalog_pb2, common_pb2, encounter_pb2, registry_pb2
from tests.chain import CONSULT, DOWNLOAD
from tests.live import EMPLOYEE, HOSPITAL, HOSPITAL_B, PERSON, PHARMACY_B
from tests.refusals.bench import BASE, Bench
from tests.refusals.provoking import Attempt, provokes

REJECTED = "voucher.rejected"
NOT_ACTIVATED = "33010000990004"


# ---- vouchers ----


@provokes("VCH_EXPIRED", status="UNAUTHENTICATED", field="voucher_code", entry=REJECTED)
async def code_shown_a_minute_too_late(bench: Bench) -> Attempt:
    code = await bench.rx().code(CONSULT)
    bench.live.advance(60_001)
    hospital = await bench.live.hospital()
    return Attempt(hospital, hospital.verify_voucher(voucher_code=code, business_type=CONSULT))


@provokes("VCH_EXPIRED", status="UNAUTHENTICATED", field="voucher_ref")
async def reference_quoted_after_half_an_hour(bench: Bench) -> Attempt:
    visitor = await bench.visitor()
    bench.live.advance(30 * 60_000 + 1)
    hospital = await bench.live.hospital()
    return Attempt(hospital, hospital.register_encounter(**visitor))


@provokes("VCH_REPLAYED", status="UNAUTHENTICATED", field="voucher_code", entry=REJECTED)
async def code_shown_twice(bench: Bench) -> Attempt:
    code = await bench.rx().code(CONSULT)
    hospital = await bench.live.hospital()
    await hospital.verify_voucher(voucher_code=code, business_type=CONSULT)
    return Attempt(hospital, hospital.verify_voucher(voucher_code=code, business_type=CONSULT))


@provokes(
    "VCH_WRONG_BUSINESS",
    status="PERMISSION_DENIED",
    field="business_type",
    entry=REJECTED,
    keeps=("voucher.try_counted",),
)
async def code_decoded_for_another_business(bench: Bench) -> Attempt:
    code = await bench.rx().code(CONSULT)
    pharmacy = await bench.live.pharmacy()
    return Attempt(pharmacy, pharmacy.verify_voucher(voucher_code=code, business_type=DOWNLOAD))


@provokes("VCH_WRONG_BUSINESS", status="PERMISSION_DENIED", field="voucher_ref")
async def reference_quoted_for_another_business(bench: Bench) -> Attempt:
    reference = await bench.rx().reference(CONSULT)
    pharmacy = await bench.live.pharmacy()
    return Attempt(pharmacy, pharmacy.list_by_voucher(voucher_ref=reference))


@provokes("VCH_SUBJECT_MISMATCH", status="PERMISSION_DENIED", field="person_no")
async def reference_of_another_person(bench: Bench) -> Attempt:
    visitor = await bench.visitor()
    hospital = await bench.live.hospital()
    return Attempt(hospital, hospital.register_encounter(**visitor | {"person_no": EMPLOYEE}))


@provokes(
    "VCH_SUBJECT_MISMATCH",
    status="PERMISSION_DENIED",
    field="person_no",
    entry=REJECTED,
    keeps=("voucher.try_counted",),
)
async def code_of_another_person(bench: Bench) -> Attempt:
    code = await bench.rx().code(CONSULT)
    hospital = await bench.live.hospital()
    return Attempt(hospital, hospital.verify_voucher(voucher_code=code, business_type=CONSULT, person_no=EMPLOYEE))


@provokes("VCH_INVALID", status="UNAUTHENTICATED", field="voucher_code", entry=REJECTED)
async def code_that_nobody_issued(bench: Bench) -> Attempt:
    hospital = await bench.live.hospital()
    return Attempt(hospital, hospital.verify_voucher(voucher_code="330100" + "1" * 22, business_type=CONSULT))


@provokes("VCH_INVALID", status="UNAUTHENTICATED", field="voucher_ref")
async def reference_of_another_institution(bench: Bench) -> Attempt:
    reference = await bench.rx().reference(DOWNLOAD)
    other = await bench.live.pharmacy(PHARMACY_B)
    return Attempt(other, other.list_by_voucher(voucher_ref=reference))


@provokes("VCH_REVOKED", status="UNAUTHENTICATED")
async def person_who_is_not_activated_on_the_channel(bench: Bench) -> Attempt:
    channel = await bench.live.channel()
    return Attempt(channel, channel.issue_voucher(person_no=NOT_ACTIVATED, business_type=CONSULT))


@provokes("VCH_NO_DELEGATION", status="PERMISSION_DENIED", field="delegate_person_no")
async def stranger_shows_the_code(bench: Bench) -> Attempt:
    channel = await bench.live.channel()
    return Attempt(channel, channel.issue_voucher(person_no=PERSON, delegate_person_no=EMPLOYEE, business_type=CONSULT))


# ---- proofs and persons ----


@provokes("CERT_CARD_SN_MISSING", status="INVALID_ARGUMENT", field="card_sn")
async def card_without_its_serial_number(bench: Bench) -> Attempt:
    hospital = await bench.live.hospital()
    card = encounter_pb2.VISIT_CERTIFICATE_TYPE_SOCIAL_CARD
    visitor = await bench.visitor(certificate_type=card, id_number="990101196104129019", voucher_ref="")
    return Attempt(hospital, hospital.register_encounter(**visitor))


@provokes("CERT_PROOF_MISSING", status="INVALID_ARGUMENT", field="voucher_ref")
async def visit_without_a_voucher(bench: Bench) -> Attempt:
    hospital = await bench.live.hospital()
    return Attempt(hospital, hospital.register_encounter(**await bench.visitor(voucher_ref="")))


@provokes("ID_CHECKSUM", status="INVALID_ARGUMENT", field="id_number")
async def identity_number_with_a_wrong_check_character(bench: Bench) -> Attempt:
    hospital = await bench.live.hospital()
    card = encounter_pb2.VISIT_CERTIFICATE_TYPE_ID_CARD
    visitor = await bench.visitor(certificate_type=card, id_number="990101196104129018", voucher_ref="")
    return Attempt(hospital, hospital.register_encounter(**visitor))


@provokes("ID_MISMATCH", status="INVALID_ARGUMENT", field="id_number")
async def identity_number_of_somebody_else(bench: Bench) -> Attempt:
    hospital = await bench.live.hospital()
    card = encounter_pb2.VISIT_CERTIFICATE_TYPE_ID_CARD
    visitor = await bench.visitor(certificate_type=card, id_number="990101198809039020", voucher_ref="")
    return Attempt(hospital, hospital.register_encounter(**visitor))


@provokes("PSN_INACTIVE", status="FAILED_PRECONDITION")
async def paused_person_wants_a_code(bench: Bench) -> Attempt:
    person_no = await bench.person()
    agency = await bench.live.agency()
    await agency.change_person_status(person_no=person_no, status=registry_pb2.PERSON_STATUS_PAUSED, reason="test")
    channel = await bench.live.channel()
    return Attempt(channel, channel.issue_voucher(person_no=person_no, business_type=CONSULT))


# ---- institutions and agreements ----


@provokes("INST_CODE", status="INVALID_ARGUMENT", field="institution_code")
async def institution_code_of_no_form(bench: Bench) -> Attempt:
    agency = await bench.live.agency()
    return Attempt(agency, agency.register_institution(institution_code="X33010099901", name="示例"))


@provokes("INST_UNKNOWN", status="NOT_FOUND")
async def hospital_that_was_never_registered(bench: Bench) -> Attempt:
    code = await bench.rx().code(CONSULT)
    stranger = await bench.live.hospital("H33010066601")
    return Attempt(stranger, stranger.verify_voucher(voucher_code=code, business_type=CONSULT))


@provokes("INST_IMPERSONATION", status="PERMISSION_DENIED", field="hospital_code")
async def hospital_registers_for_another_one(bench: Bench) -> Attempt:
    hospital = await bench.live.hospital()
    visitor = await bench.visitor(hospital_code=HOSPITAL_B)
    return Attempt(hospital, hospital.register_encounter(**visitor))


@provokes("AGR_INACTIVE", status="FAILED_PRECONDITION")
async def hospital_with_a_suspended_agreement(bench: Bench) -> Attempt:
    code = await bench.institution()
    agency = await bench.live.agency()
    suspended = registry_pb2.AGREEMENT_STATUS_SUSPENDED
    await agency.change_agreement_status(institution_code=code, kind=BASE, status=suspended, case_no="C-1")
    hospital = await bench.live.hospital(code)
    voucher_code = await bench.rx().code(CONSULT)
    return Attempt(hospital, hospital.verify_voucher(voucher_code=voucher_code, business_type=CONSULT))


@provokes("AGR_NO_SUPPLEMENT", status="FAILED_PRECONDITION")
async def internet_visit_without_the_supplementary_agreement(bench: Bench) -> Attempt:
    hospital = await bench.live.hospital(HOSPITAL_B)
    visitor = await bench.visitor(visit_kind=common_pb2.VISIT_KIND_INTERNET, voucher_ref="")
    return Attempt(hospital, hospital.register_encounter(**visitor))


@provokes("AGR_INCOMPLETE", status="FAILED_PRECONDITION", field="clauses")
async def agreement_without_a_required_clause(bench: Bench) -> Attempt:
    code = await bench.institution(agreements=())
    agency = await bench.live.agency()
    arguments = bench.agreement(code)
    arguments["clauses"] = arguments["clauses"][1:]
    return Attempt(agency, agency.sign_agreement(**arguments))


# ---- the registry ----


@provokes("RECORD_UNKNOWN", status="NOT_FOUND", field="institution_code")
async def institution_of_another_area(bench: Bench) -> Attempt:
    other = await bench.live.agency("330200")
    return Attempt(other, other.get_institution(institution_code=HOSPITAL))


@provokes("RECORD_STATE", status="FAILED_PRECONDITION", field="status")
async def agreement_that_runs_is_resumed(bench: Bench) -> Attempt:
    agency = await bench.live.agency()
    active = registry_pb2.AGREEMENT_STATUS_ACTIVE
    return Attempt(
        agency, agency.change_agreement_status(institution_code=HOSPITAL, kind=BASE, status=active, case_no="C-1")
    )


@provokes("RECORD_EXISTS", status="ALREADY_EXISTS", field="institution_code")
async def institution_registered_again_under_another_name(bench: Bench) -> Attempt:
    agency = await bench.live.agency()
    return Attempt(agency, agency.register_institution(institution_code=HOSPITAL, name="另一示例医院"))


@provokes("RECORD_EXISTS", status="ALREADY_EXISTS", field="header.edition")
async def edition_imported_again_with_other_rows(bench: Bench) -> Attempt:
    agency = await bench.live.agency()

    def rows(name: str, digest: bytes) -> dict[str, object]:
        region = catalog_pb2.Region(code="330000", name=name, level="1")
        return {
            "dataset": catalog_pb2.CATALOG_DATASET_REGIONS,
            "edition": "2099",
            "valid_from_on": "2099-01-01",
            "file_sha256": digest,
            "entries": [catalog_pb2.CatalogEntry(line=2, region=region)],
        }

    await agency.import_catalog(**rows("浙江省", bytes(32)))  # type: ignore[arg-type]
    call = agency.import_catalog(**rows("浙江", b"\1" * 32))  # type: ignore[arg-type]
    return Attempt(agency, call, method="RegistryService/ImportCatalog")


@provokes("ETAG_MISMATCH", status="ABORTED", field="etag")
async def institution_changed_since_it_was_read(bench: Bench) -> Attempt:
    code = await bench.institution(agreements=())
    agency = await bench.live.agency()
    read = await agency.get_institution(institution_code=code)
    await agency.sign_agreement(**bench.agreement(code))
    pooling = registry_pb2.AGREEMENT_KIND_POOLING
    return Attempt(agency, agency.sign_agreement(**bench.agreement(code, pooling), etag=read.institution.etag))
