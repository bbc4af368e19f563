"""What each RPC leaves in the ledger: its events by stream, its access entry, its receipt. One case for each RPC.

The methods are read from the descriptors, so a new RPC without a case fails here.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from erxhub.client.signing import signed_upload
from erxhub.core.events import BY_NUMBER
from erxhub.core.keys import prescription_key
from erxhub.crypto.receipt import receipt_message
from erxhub.crypto.suites import SUITES, SigningKey
from erxhub.ledger.entry import EntryKind, Header
from erxhub.ledger.store import StoredEntry, Wanted
from erxhub.ledger.verify import verify_entries
from erxhub.rpc.methods import COMMAND, METHODS
from erxhub.seed.world import CLAUSES
from erxhub.v1 import (
    catalog_pb2,
    common_pb2,
    dispensing_pb2,
    encounter_pb2,
    events_pb2,
    prescribing_pb2,
    registry_pb2,
)
from tests.chain import CONSULT, DOCTOR, DOWNLOAD, PICK_UP, PURCHASE, Chain
from tests.live import (
    AGENCY,
    CHANNEL,
    DAY_MS,
    EMPLOYEE,
    HOSPITAL,
    PERSON,
    PHARMACY,
    PHARMACY_B,
    Live,
    live_hub,
)

ONLINE_CONSULT = "03131"


@dataclass(frozen=True)
class Case:
    """One call and what it leaves.

    `events`: names in commit order by kind of stream. `shows`: kinds of the streams whose data the reply holds, as its
    access entry names them, None when it leaves no access entry; "" stands for an access to nothing in particular.
    """

    call: Callable[[], Awaitable[Any]]
    events: Mapping[str, list[str]]
    shows: list[str] | None = None


def left(call: Callable[[], Awaitable[Any]], shows: list[str] | None = None, **events: str) -> Case:
    """A case; the events of a kind of stream are written in one string."""
    return Case(call, {kind: names.split() for kind, names in events.items()}, shows)


RX = ["prescription"]


# ---- registry ----


async def register_institution(live: Live) -> Case:
    agency = await live.agency()
    return left(
        lambda: agency.register_institution(institution_code="P33010099188", name="示例药店（虚构）"),
        institution="institution.registered",
    )


async def register_person(live: Live) -> Case:
    agency = await live.agency()
    return left(
        lambda: agency.register_person(
            person_no="33010000990055",
            name="示例（虚构）",
            id_number="990101196104129115",
            sex=common_pb2.SEX_MALE,
            born_on="1961-04-12",
            insured_area_code=AGENCY,
            insurance_type="310",
            person_type="1201",
        ),
        person="person.registered",
        account="account.opened",
    )


async def change_person_status(live: Live) -> Case:
    agency = await live.agency()
    return left(
        lambda: agency.change_person_status(
            person_no=PERSON, status=registry_pb2.PERSON_STATUS_PAUSED, reason="停保示例"
        ),
        person="person.status_changed",
    )


async def register_practitioner(live: Live) -> Case:
    agency = await live.agency()
    return left(
        lambda: agency.register_practitioner(
            practitioner_code="D330100990088",
            name="示例（虚构）",
            kind=registry_pb2.PRACTITIONER_KIND_DOCTOR,
            institution_codes=(HOSPITAL,),
            practice_years=4,
        ),
        practitioner="practitioner.registered",
    )


async def change_practitioner_status(live: Live) -> Case:
    agency = await live.agency()
    return left(
        lambda: agency.change_practitioner_status(
            practitioner_code=DOCTOR, status=registry_pb2.PRACTITIONER_STATUS_SUSPENDED, case_no="CASE-1"
        ),
        practitioner="practitioner.suspended",
    )


async def sign_agreement(live: Live) -> Case:
    agency = await live.agency()
    now_ms = live.clock.now_ms()
    return left(
        lambda: agency.sign_agreement(
            institution_code=PHARMACY_B,
            kind=registry_pb2.AGREEMENT_KIND_DUAL_CHANNEL,
            agreement_no="AGR-1",
            valid_from_ms=now_ms,
            valid_until_ms=now_ms + DAY_MS,
            clauses=CLAUSES,
        ),
        institution="agreement.signed",
    )


async def change_agreement_status(live: Live) -> Case:
    agency = await live.agency()
    return left(
        lambda: agency.change_agreement_status(
            institution_code=PHARMACY,
            kind=registry_pb2.AGREEMENT_KIND_BASE,
            status=registry_pb2.AGREEMENT_STATUS_SUSPENDED,
            case_no="CASE-1",
        ),
        institution="agreement.suspended",
    )


async def register_signing_key(live: Live) -> Case:
    agency = await live.agency()
    key = SigningKey.generate("SM2-SM3")
    now_ms = live.clock.now_ms()
    return left(
        lambda: agency.register_signing_key(
            subject_code=DOCTOR,
            institution_code=HOSPITAL,
            suite=key.suite.name,
            public_key=key.public_key,
            valid_from_ms=now_ms,
            valid_until_ms=now_ms + DAY_MS,
        ),
        practitioner="signing_key.registered",
    )


async def revoke_certificate(live: Live) -> Case:
    agency = await live.agency()
    key_id = live.key(DOCTOR, HOSPITAL).key_id
    return left(lambda: agency.revoke_certificate(reason="密钥遗失", key_id=key_id), ledger="certificate.revoked")


async def freeze_prescription(live: Live) -> Case:
    agency, chain = await live.agency(), await Chain(live).uploaded()
    return left(
        lambda: agency.freeze_prescription(rx_no=chain.rx_no, case_no="CASE-1"), prescription="prescription.frozen"
    )


async def unfreeze_prescription(live: Live) -> Case:
    agency, chain = await live.agency(), await Chain(live).uploaded()
    await agency.freeze_prescription(rx_no=chain.rx_no, case_no="CASE-1")
    return left(
        lambda: agency.unfreeze_prescription(rx_no=chain.rx_no, case_no="CASE-1"),
        prescription="prescription.unfrozen",
    )


async def erase_content(live: Live) -> Case:
    agency, chain = await live.agency(), await Chain(live).uploaded()
    live.clock.advance(400 * DAY_MS)
    await live.hub.engine.sweep()
    return left(
        lambda: agency.erase_content(rx_no=chain.rx_no, legal_basis="保存期满"),
        encounter="content.erased",
        prescription="content.erased",
    )


async def import_catalog(live: Live) -> Case:
    agency = await live.agency()
    disease = catalog_pb2.Disease(code="I10.x00x002", name="高血压", is_diagnosis=True)
    return left(
        lambda: agency.import_catalog(
            dataset=catalog_pb2.CATALOG_DATASET_DISEASES,
            edition="next",
            valid_from_on="2099-01-01",
            file_sha256=bytes(32),
            entries=[catalog_pb2.CatalogEntry(line=2, disease=disease)],
        ),
        ledger="catalogue.imported",
    )


async def get_institution(live: Live) -> Case:
    agency = await live.agency()
    return left(lambda: agency.get_institution(institution_code=PHARMACY), shows=["institution"])


async def list_institutions(live: Live) -> Case:
    agency = await live.agency()
    return left(lambda: agency.list_institutions(page_size=2), shows=["institution"] * 2)


async def get_practitioner(live: Live) -> Case:
    agency = await live.agency()
    return left(lambda: agency.get_practitioner(practitioner_code=DOCTOR), shows=["practitioner"])


async def list_practitioners(live: Live) -> Case:
    agency = await live.agency()
    return left(lambda: agency.list_practitioners(institution_code=PHARMACY, page_size=3), shows=["practitioner"] * 3)


async def get_person(live: Live) -> Case:
    agency = await live.agency()
    return left(lambda: agency.get_person(person_no=PERSON), shows=["person"])


async def list_catalog(live: Live) -> Case:
    """Nothing personal is shown, and nothing is recorded."""
    pharmacy = await live.pharmacy()
    return left(lambda: pharmacy.list_catalog(dataset=catalog_pb2.CATALOG_DATASET_DRUGS))


# ---- e-voucher ----


async def activate_voucher(live: Live) -> Case:
    channel = await live.channel()
    await channel.deactivate_voucher(person_no=PERSON)
    return left(lambda: channel.activate_voucher(person_no=PERSON), person="person.voucher_activated")


async def deactivate_voucher(live: Live) -> Case:
    channel = await live.channel()
    return left(lambda: channel.deactivate_voucher(person_no=PERSON), person="person.voucher_deactivated")


async def issue_voucher(live: Live) -> Case:
    channel = await live.channel()
    return left(lambda: channel.issue_voucher(person_no=PERSON, business_type=CONSULT), voucher="voucher.issued")


async def verify_voucher(live: Live) -> Case:
    hospital, code = await live.hospital(), await Chain(live).code(CONSULT)
    return left(
        lambda: hospital.verify_voucher(voucher_code=code, business_type=CONSULT),
        voucher="voucher.verified",
        shows=["person"],
    )


async def revoke_voucher(live: Live) -> Case:
    channel, code = await live.channel(), await Chain(live).code(CONSULT)
    return left(lambda: channel.revoke_voucher(voucher_code=code), voucher="voucher.revoked")


# ---- encounter ----


async def register_encounter(live: Live) -> Case:
    hospital, reference = await live.hospital(), await Chain(live).reference(CONSULT, pharmacy=False)
    return left(
        lambda: hospital.register_encounter(
            person_no=PERSON,
            visit_kind=common_pb2.VISIT_KIND_OFFLINE,
            certificate_type=encounter_pb2.VISIT_CERTIFICATE_TYPE_VOUCHER,
            med_type="11",
            voucher_ref=reference,
        ),
        encounter="encounter.registered",
    )


async def start_encounter(live: Live) -> Case:
    hospital, chain = await live.hospital(), await Chain(live).registered()
    return left(
        lambda: hospital.start_encounter(encounter_id=chain.encounter_id, doctor_code=DOCTOR),
        encounter="encounter.started",
    )


async def _internet_visit(live: Live) -> str:
    """A started internet visit."""
    hospital, code = await live.hospital(), await Chain(live).code(ONLINE_CONSULT)
    proven = await hospital.verify_voucher(voucher_code=code, business_type=ONLINE_CONSULT)
    visit = await hospital.register_encounter(
        person_no=PERSON,
        visit_kind=common_pb2.VISIT_KIND_INTERNET,
        certificate_type=encounter_pb2.VISIT_CERTIFICATE_TYPE_VOUCHER,
        med_type="11",
        online_identity_no=proven.online_identity_no,
    )
    await hospital.start_encounter(encounter_id=visit.encounter_id, doctor_code=DOCTOR)
    return visit.encounter_id


async def attest_doctor(live: Live) -> Case:
    hospital, encounter_id = await live.hospital(), await _internet_visit(live)
    return left(
        lambda: hospital.attest_doctor(encounter_id=encounter_id, media_sha256=bytes(32), liveness_passed=True),
        encounter="encounter.doctor_attested",
    )


async def prove_follow_up(live: Live) -> Case:
    hospital, encounter_id = await live.hospital(), await _internet_visit(live)
    return left(
        lambda: hospital.prove_follow_up(
            encounter_id=encounter_id,
            disease_code="I10.x00x002",
            earlier_hospital_code=HOSPITAL,
            earlier_visit_on="2026-10-15",
        ),
        encounter="encounter.revisit_proven",
    )


async def record_diagnosis(live: Live) -> Case:
    hospital, chain = await live.hospital(), await Chain(live).registered()
    await hospital.start_encounter(encounter_id=chain.encounter_id, doctor_code=DOCTOR)
    diagnoses = chain.written().diagnoses
    return left(
        lambda: hospital.record_diagnosis(
            encounter_id=chain.encounter_id,
            doctor_code=DOCTOR,
            diagnoses=diagnoses,
            doctor_key=live.key(DOCTOR, HOSPITAL),
        ),
        encounter="diagnosis.recorded",
    )


async def amend_diagnosis(live: Live) -> Case:
    hospital, chain = await live.hospital(), await Chain(live).diagnosed()
    return left(
        lambda: hospital.amend_diagnosis(
            encounter_id=chain.encounter_id,
            doctor_code=DOCTOR,
            diagnoses=chain.prescription.diagnoses,
            doctor_key=live.key(DOCTOR, HOSPITAL),
            reason="更正",
        ),
        encounter="diagnosis.amended",
    )


async def close_encounter(live: Live) -> Case:
    hospital, chain = await live.hospital(), await Chain(live).diagnosed()
    return left(lambda: hospital.close_encounter(encounter_id=chain.encounter_id), encounter="encounter.closed")


async def cancel_encounter(live: Live) -> Case:
    hospital, chain = await live.hospital(), await Chain(live).diagnosed()
    return left(lambda: hospital.cancel_encounter(encounter_id=chain.encounter_id), encounter="encounter.cancelled")


# ---- prescription ----


async def precheck_prescription(live: Live) -> Case:
    hospital, chain = await live.hospital(), await Chain(live).diagnosed()
    return left(lambda: hospital.precheck(prescription=chain.prescription), prescription="prescription.prechecked")


async def upload_prescription(live: Live) -> Case:
    hospital, chain = await live.hospital(), await Chain(live).prechecked()
    arguments = chain.upload_arguments()
    return left(
        lambda: hospital.upload(**arguments),
        prescription=(
            "prescription.hospital_reviewed prescription.signed prescription.uploaded prescription.effective"
        ),
    )


async def upload_prescriptions(live: Live) -> Case:
    """Two items of one message; their entries and receipts are those of two calls in one commit."""
    hospital = await live.hospital()
    uploads = [
        signed_upload(
            request_id=f"bulk-upload-{number}",
            hospital_code=HOSPITAL,
            signed_at_ms=live.clock.now_ms(),
            media_type="application/pdf",
            opinion="审核通过",
            **(await Chain(live).prechecked()).upload_arguments(),
        )
        for number in range(2)
    ]
    call = hospital.connection.channel.stream_stream(
        "/erxhub.v1.PrescribingService/UploadPrescriptions",
        prescribing_pb2.UploadPrescriptionsRequest.SerializeToString,
        prescribing_pb2.UploadPrescriptionsResponse.FromString,
    )

    async def uploaded() -> Any:
        (reply,) = [reply async for reply in call(iter([prescribing_pb2.UploadPrescriptionsRequest(items=uploads)]))]
        return reply

    each = "prescription.hospital_reviewed prescription.signed prescription.uploaded prescription.effective"
    return left(uploaded, prescription=f"{each} {each}")


async def revoke_prescription(live: Live) -> Case:
    hospital, chain = await live.hospital(), await Chain(live).uploaded()
    return left(
        lambda: hospital.revoke(rx_no=chain.rx_no, doctor_code=DOCTOR, reason="用药调整"),
        prescription="prescription.undone",
    )


async def get_prescription(live: Live) -> Case:
    hospital, chain = await live.hospital(), await Chain(live).uploaded()
    return left(lambda: hospital.get(rx_no=chain.rx_no), shows=RX)


async def list_prescriptions(live: Live) -> Case:
    hospital = await live.hospital()
    await Chain(live).uploaded()
    await Chain(live).prechecked()
    return left(hospital.list_prescriptions, shows=RX * 2)


async def watch_prescriptions(live: Live) -> Case:
    """One entry for the watch, whatever it goes on to tell."""
    hospital = await live.hospital()
    await Chain(live).uploaded()
    return left(lambda: _first(hospital.watch(from_start=True)), shows=[""])


async def _first(messages: AsyncIterator[Any]) -> Any:
    async for message in messages:
        return message
    raise AssertionError("the stream told nothing")


# ---- patient ----


async def list_my_prescriptions(live: Live) -> Case:
    channel = await live.channel()
    await Chain(live).uploaded()
    return left(lambda: channel.list_prescriptions(person_no=PERSON), shows=RX)


async def choose_pharmacy(live: Live) -> Case:
    channel, chain = await live.channel(), await Chain(live).uploaded()
    return left(
        lambda: channel.choose_pharmacy(person_no=PERSON, rx_no=chain.rx_no, pharmacy_code=PHARMACY),
        prescription="order.created order.routed",
        shows=RX,
    )


async def cancel_order(live: Live) -> Case:
    channel, chain = await live.channel(), await Chain(live).quoted()
    return left(
        lambda: channel.cancel_order(person_no=PERSON, rx_no=chain.rx_no, pharmacy_code=PHARMACY),
        prescription="settlement.quote_expired order.cancelled",
        shows=RX,
    )


async def make_qr(live: Live) -> Case:
    channel, chain = await live.channel(), await Chain(live).uploaded()
    return left(
        lambda: channel.make_qr(person_no=PERSON, rx_no=chain.rx_no),
        prescription="authorization.qr_issued",
        shows=RX,
    )


async def request_delivery(live: Live) -> Case:
    channel, chain = await live.channel(), await Chain(live).settled()
    return left(
        lambda: channel.request_delivery(
            person_no=PERSON, rx_no=chain.rx_no, pharmacy_code=PHARMACY, address="示例路 1 号", phone="000-0000000"
        ),
        prescription="delivery.requested",
        shows=RX,
    )


async def list_accesses(live: Live) -> Case:
    channel, chain = await live.channel(), await Chain(live).held()
    return left(lambda: channel.list_accesses(person_no=PERSON, rx_no=chain.rx_no), shows=RX)


# ---- dispensing ----


async def list_by_voucher(live: Live) -> Case:
    pharmacy = await live.pharmacy()
    chains = [await Chain(live).uploaded(), await Chain(live).uploaded(), await Chain(live).prechecked()]
    reference = await chains[0].reference(DOWNLOAD)
    return left(
        lambda: pharmacy.list_by_voucher(voucher_ref=reference),
        prescription="authorization.issued authorization.issued",
        shows=RX * 2,
    )


async def resolve_qr(live: Live) -> Case:
    channel, pharmacy, chain = await live.channel(), await live.pharmacy(), await Chain(live).uploaded()
    await chain.listed()
    qr = await channel.make_qr(person_no=PERSON, rx_no=chain.rx_no)
    return left(
        lambda: pharmacy.resolve_qr(rx_qr=qr.rx_qr),
        prescription="authorization.revoked authorization.issued",
        shows=RX,
    )


async def download_prescription(live: Live) -> Case:
    pharmacy, chain = await live.pharmacy(), await Chain(live).uploaded()
    await chain.listed()
    return left(
        lambda: pharmacy.download(authorization_no=chain.authorization_no),
        prescription="order.created authorization.consumed order.held prescription.downloaded",
        shows=RX,
    )


async def release_order(live: Live) -> Case:
    pharmacy, chain = await live.pharmacy(), await Chain(live).held()
    return left(lambda: pharmacy.release(rx_no=chain.rx_no), prescription="order.released", shows=RX)


async def review_prescription(live: Live) -> Case:
    chain = await Chain(live).held()
    return left(chain.review, prescription="review.passed", shows=RX)


async def quote_settlement(live: Live) -> Case:
    pharmacy, chain = await live.pharmacy(), await Chain(live).reviewed()
    reference = await chain.reference(PURCHASE)
    return left(
        lambda: pharmacy.quote(rx_no=chain.rx_no, voucher_ref=reference, lines=chain.sale_lines()),
        prescription="settlement.quoted",
        shows=RX,
    )


async def settle(live: Live) -> Case:
    chain = await Chain(live).quoted()
    reference = await chain.reference(PURCHASE)
    return left(
        lambda: chain.settle(voucher_ref=reference),
        account="account.debited",
        prescription="settlement.committed dispense.ready",
        shows=RX,
    )


async def undo_settlement(live: Live) -> Case:
    pharmacy, chain = await live.pharmacy(), await Chain(live).settled()
    return left(
        lambda: pharmacy.undo_settlement(rx_no=chain.rx_no, settlement_id=chain.settlement_id, reason="顾客退单"),
        account="account.restored",
        prescription="settlement.undone dispense.voided order.released",
        shows=RX,
    )


async def reverse_settlement(live: Live) -> Case:
    pharmacy, chain = await live.pharmacy(), await Chain(live).quoted()
    await chain.settle(request_id="settle-that-got-lost")
    return left(
        lambda: pharmacy.reverse_settlement(original_request_id="settle-that-got-lost"),
        account="account.restored",
        prescription="settlement.reversed dispense.voided order.released",
        shows=RX,
    )


async def dispense(live: Live) -> Case:
    pharmacy, chain = await live.pharmacy(), await Chain(live, lines=1).settled()
    arguments = chain.dispense_arguments()
    return left(
        lambda: pharmacy.dispense(**arguments),
        trace_code="trace_code.sold",
        prescription=("dispense.picked dispense.checked dispense.outbound prescription.used prescription.exhausted"),
        shows=RX,
    )


async def void_dispense(live: Live) -> Case:
    pharmacy, chain = await live.pharmacy(), await Chain(live).settled()
    return left(
        lambda: pharmacy.void_dispense(rx_no=chain.rx_no, reason="缺货"), prescription="dispense.voided", shows=RX
    )


async def hand_over(live: Live) -> Case:
    pharmacy, chain = await live.pharmacy(), await Chain(live).dispensed()
    reference = await chain.reference(PICK_UP)
    return left(
        lambda: pharmacy.hand_over(
            rx_no=chain.rx_no,
            staff_code=chain.dispenser,
            voucher_ref=reference,
            seal_key=live.key(PHARMACY, PHARMACY),
        ),
        prescription="dispense.handed_over",
        shows=RX,
    )


async def start_delivery(live: Live) -> Case:
    chain = await Chain(live).dispensed()
    await chain.delivery_requested()
    return left(chain.delivery_started, prescription="delivery.assigned delivery.picked_up", shows=RX)


async def update_delivery(live: Live) -> Case:
    chain = await Chain(live).dispensed()
    await chain.delivery_requested()
    await chain.delivery_started()
    return left(
        lambda: chain.delivery_step(dispensing_pb2.DELIVERY_STEP_ON_THE_WAY),
        prescription="delivery.in_transit",
        shows=RX,
    )


async def sign_delivery(live: Live) -> Case:
    chain = await Chain(live).arrived()
    return left(chain.sign, prescription="delivery.signed order.completed", shows=RX)


async def watch_orders(live: Live) -> Case:
    pharmacy = await live.pharmacy()
    await Chain(live).held()
    return left(lambda: _first(pharmacy.watch(from_start=True)), shows=[""])


# ---- audit ----


async def trace_chain(live: Live) -> Case:
    auditor, chain = await live.auditor(), await Chain(live).uploaded()
    return left(lambda: auditor.trace(rx_no=chain.rx_no, verify=True), shows=RX)


async def find_chains(live: Live) -> Case:
    auditor, chain = await live.auditor(), await Chain(live).uploaded()
    return left(lambda: auditor.find(encounter_id=chain.encounter_id), shows=RX)


async def stream_entries(live: Live) -> Case:
    auditor = await live.auditor()
    return left(lambda: _first(auditor.stream_entries(limit=1)), shows=[""])


async def verify_ledger(live: Live) -> Case:
    auditor = await live.auditor()
    return left(auditor.verify_ledger, shows=[""])


async def get_checkpoint(live: Live) -> Case:
    auditor, chain = await live.auditor(), await Chain(live).uploaded()
    await auditor.export_bundle(rx_no=chain.rx_no)
    return left(auditor.checkpoint)


async def prove_inclusion(live: Live) -> Case:
    auditor, chain = await live.auditor(), await Chain(live).uploaded()
    key = prescription_key(chain.rx_no)
    return left(lambda: auditor.prove_inclusion(stream_key=key, version=2), shows=RX)


async def prove_consistency(live: Live) -> Case:
    auditor = await live.auditor()
    await auditor.prove_absence(rx_no="330100" + "1" * 21)
    size = (await auditor.checkpoint()).size
    return left(lambda: auditor.prove_consistency(size1=1, size2=size))


async def export_bundle(live: Live) -> Case:
    auditor, chain = await live.auditor(), await Chain(live).uploaded()
    return left(lambda: auditor.export_bundle(rx_no=chain.rx_no), shows=RX)


async def prove_absence(live: Live) -> Case:
    auditor = await live.auditor()
    return left(lambda: auditor.prove_absence(trace_code="80000000000000000009"), shows=[""])


async def list_checkpoints(live: Live) -> Case:
    auditor = await live.auditor()
    return left(auditor.checkpoints)


async def report_anomalies(live: Live) -> Case:
    auditor, _ = await live.auditor(), await Chain(live).uploaded()
    return left(auditor.report_anomalies, shows=[""])


CASES: dict[str, Callable[[Live], Awaitable[Case]]] = {
    "RegistryService/RegisterInstitution": register_institution,
    "RegistryService/RegisterPerson": register_person,
    "RegistryService/ChangePersonStatus": change_person_status,
    "RegistryService/RegisterPractitioner": register_practitioner,
    "RegistryService/ChangePractitionerStatus": change_practitioner_status,
    "RegistryService/SignAgreement": sign_agreement,
    "RegistryService/ChangeAgreementStatus": change_agreement_status,
    "RegistryService/RegisterSigningKey": register_signing_key,
    "RegistryService/RevokeCertificate": revoke_certificate,
    "RegistryService/FreezePrescription": freeze_prescription,
    "RegistryService/UnfreezePrescription": unfreeze_prescription,
    "RegistryService/EraseContent": erase_content,
    "RegistryService/ImportCatalog": import_catalog,
    "RegistryService/GetInstitution": get_institution,
    "RegistryService/ListInstitutions": list_institutions,
    "RegistryService/GetPractitioner": get_practitioner,
    "RegistryService/ListPractitioners": list_practitioners,
    "RegistryService/GetPerson": get_person,
    "RegistryService/ListCatalog": list_catalog,
    "VoucherService/ActivateVoucher": activate_voucher,
    "VoucherService/DeactivateVoucher": deactivate_voucher,
    "VoucherService/IssueVoucher": issue_voucher,
    "VoucherService/VerifyVoucher": verify_voucher,
    "VoucherService/RevokeVoucher": revoke_voucher,
    "EncounterService/RegisterEncounter": register_encounter,
    "EncounterService/StartEncounter": start_encounter,
    "EncounterService/AttestDoctor": attest_doctor,
    "EncounterService/ProveFollowUp": prove_follow_up,
    "EncounterService/RecordDiagnosis": record_diagnosis,
    "EncounterService/AmendDiagnosis": amend_diagnosis,
    "EncounterService/CloseEncounter": close_encounter,
    "EncounterService/CancelEncounter": cancel_encounter,
    "PrescribingService/PrecheckPrescription": precheck_prescription,
    "PrescribingService/UploadPrescription": upload_prescription,
    "PrescribingService/UploadPrescriptions": upload_prescriptions,
    "PrescribingService/RevokePrescription": revoke_prescription,
    "PrescribingService/GetPrescription": get_prescription,
    "PrescribingService/ListPrescriptions": list_prescriptions,
    "PrescribingService/WatchPrescriptions": watch_prescriptions,
    "PatientService/ListMyPrescriptions": list_my_prescriptions,
    "PatientService/ChoosePharmacy": choose_pharmacy,
    "PatientService/CancelOrder": cancel_order,
    "PatientService/MakeQr": make_qr,
    "PatientService/RequestDelivery": request_delivery,
    "PatientService/ListAccesses": list_accesses,
    "DispensingService/ListByVoucher": list_by_voucher,
    "DispensingService/ResolveQr": resolve_qr,
    "DispensingService/DownloadPrescription": download_prescription,
    "DispensingService/ReleaseOrder": release_order,
    "DispensingService/ReviewPrescription": review_prescription,
    "DispensingService/QuoteSettlement": quote_settlement,
    "DispensingService/Settle": settle,
    "DispensingService/UndoSettlement": undo_settlement,
    "DispensingService/ReverseSettlement": reverse_settlement,
    "DispensingService/Dispense": dispense,
    "DispensingService/VoidDispense": void_dispense,
    "DispensingService/HandOver": hand_over,
    "DispensingService/StartDelivery": start_delivery,
    "DispensingService/UpdateDelivery": update_delivery,
    "DispensingService/SignDelivery": sign_delivery,
    "DispensingService/WatchOrders": watch_orders,
    "AuditService/TraceChain": trace_chain,
    "AuditService/FindChains": find_chains,
    "AuditService/StreamEntries": stream_entries,
    "AuditService/VerifyLedger": verify_ledger,
    "AuditService/GetCheckpoint": get_checkpoint,
    "AuditService/ProveInclusion": prove_inclusion,
    "AuditService/ProveConsistency": prove_consistency,
    "AuditService/ExportBundle": export_bundle,
    "AuditService/ProveAbsence": prove_absence,
    "AuditService/ListCheckpoints": list_checkpoints,
    "AuditService/ReportAnomalies": report_anomalies,
}


def test_every_rpc_of_the_published_services_has_a_case() -> None:
    assert sorted(CASES) == sorted(METHODS)


@pytest.mark.parametrize("name", CASES)
async def test_the_call_leaves_exactly_these_entries(name: str) -> None:
    method = METHODS[name]
    async with live_hub() as live:
        case = await CASES[name](live)
        before = await live.hub.store.last_position()
        reply = await case.call()
        entries = await live.hub.store.log(before, 1000)

        assert isinstance(reply, method.response)
        events = [entry for entry in entries if _header(entry).kind == EntryKind.EVENT]
        by_kind: dict[str, list[str]] = {}
        for entry in events:
            by_kind.setdefault(entry.stream_kind, []).append(BY_NUMBER[_header(entry).type].name)
        assert by_kind == case.events
        assert bool(events) == (method.effect == COMMAND)
        _check_headers(live, entries, method.callers)
        if method.effect == COMMAND:
            receipts = [one.accepted.receipt for one in getattr(reply, "results", ())] or [reply.receipt]
            for receipt, own in zip(receipts, _by_request(events), strict=True):
                await _check_receipt(live, receipt, own)

        accesses = [entry for entry in entries if _header(entry).kind != EntryKind.EVENT]
        await _check_access(live, name, case.shows, accesses)
        for key in {entry.stream_key for entry in entries}:
            assert verify_entries(await live.hub.store.entries(key, 0, 1000)).findings == []


def _by_request(events: list[StoredEntry]) -> list[list[StoredEntry]]:
    """The events of each command; one that left events leaves them together."""
    grouped = itertools.groupby(events, key=lambda entry: _header(entry).request_id)
    return [list(own) for _, own in grouped]


def _header(entry: StoredEntry) -> Header:
    return Header.decode(entry.header)


def _check_headers(live: Live, entries: list[StoredEntry], callers: frozenset[str]) -> None:
    """Every entry names who called, when, and for an event under which rules (I24)."""
    for header in map(_header, entries):
        assert header.actor.partition("/")[0] in callers
        assert header.recorded_at_ms == live.clock.now_ms()
        if header.kind == EntryKind.EVENT:
            assert header.request_id
            assert len(header.policy_digest) == 32


async def _check_receipt(live: Live, receipt: common_pb2.Receipt, events: list[StoredEntry]) -> None:
    """The receipt names the very entries, in commit order, under the hub's key."""
    listed = [(entry.stream_key, entry.version, entry.leaf_hash) for entry in receipt.entries]
    assert listed == [(entry.stream_key, entry.version, entry.leaf_hash) for entry in events]
    message = receipt_message(receipt.origin, receipt.recorded_at_ms, receipt.max_merge_delay_ms, listed)
    assert SUITES["EdDSA"].verify(live.receipt_keys[receipt.key_id], message, receipt.signature)


async def _check_access(live: Live, name: str, shows: list[str] | None, entries: list[StoredEntry]) -> None:
    if shows is None:
        assert entries == []
        return
    (entry,) = entries
    header = _header(entry)
    assert (entry.stream_kind, header.kind, BY_NUMBER[header.type].name) == ("access", EntryKind.ACCESS, "audit.read")
    assert entry.payload is not None
    recorded = events_pb2.AccessRecorded.FromString(entry.payload)
    assert recorded.caller_kind == header.actor.partition("/")[0]
    assert {(target.method, target.outcome) for target in recorded.targets} == {(name, "OK")}
    assert recorded.case_reason == ("case T-1" if recorded.caller_kind == "auditor" else "")
    keys = [target.stream_key for target in recorded.targets]
    heads = (await live.hub.store.read(Wanted(streams=frozenset(keys)))).heads
    assert [heads[key].stream_kind if key else "" for key in keys] == shows


async def test_a_search_that_finds_nothing_is_recorded_with_its_case() -> None:
    async with live_hub() as live:
        auditor = await live.auditor()
        before = await live.hub.store.last_position()
        found = await auditor.find(trace_code="80000000000000000009")
        assert list(found.chains) == []
        await _check_access(live, "AuditService/FindChains", [""], await live.hub.store.log(before, 10))


@pytest.mark.parametrize("channel_id", ["", CHANNEL])
async def test_an_agency_ends_an_activation_only_when_it_names_the_channel(channel_id: str) -> None:
    async with live_hub() as live:
        agency = await live.agency()
        before = await live.hub.store.last_position()
        if channel_id:
            await agency.deactivate_voucher(person_no=EMPLOYEE, channel_id=channel_id)
        else:
            with pytest.raises(Exception, match="INPUT_MALFORMED"):
                await agency.deactivate_voucher(person_no=EMPLOYEE)
        (entry,) = await live.hub.store.log(before, 10)
        expected = "person.voucher_deactivated" if channel_id else "command.refused"
        assert BY_NUMBER[_header(entry).type].name == expected
