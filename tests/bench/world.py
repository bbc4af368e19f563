"""The fictional hospital of the benchmark, and uploads made ready before anything is timed.

Everything is done through the hub's own interface. Per prescription: a precheck under its own number on one encounter,
then the three signatures. One document has five lines (about 1.5 KB) and a file of 16 KiB.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

from erxhub.client import AgencyClient, ClientIdentity, HospitalClient, PatientClient
from erxhub.client.signing import signed_upload
from erxhub.crypto.ca import TrustDomain
from erxhub.crypto.suites import SigningKey
from erxhub.keys import HubKeys
from erxhub.ports import SystemIds
from erxhub.v1 import (
    catalog_pb2,
    common_pb2,
    encounter_pb2,
    prescribing_pb2,
    registry_pb2,
    signed_pb2,
)

AREA = "330100"
HOSPITAL = "H33010099901"
DOCTOR = "D330100990001"
PHARMACIST = "HY330100990001"
PERSON_NO = "33010000000001"
BUSINESS_TYPE = "01201"
SUITES = ("ES256", "SM2-SM3")
SIGNATURES = 3
"""Signatures in one upload: doctor, hospital pharmacist, seal."""

FILE_BYTES = 16 * 1024
DRUGS = (
    ("XC08CAA187A001020301650", "苯磺酸氨氯地平片（示例）"),
    ("XC09CAE003A001020178814", "厄贝沙坦片（示例）"),
    ("XC10AAA001A001020100001", "阿托伐他汀钙片（示例）"),
    ("XA10BAE045A001020100002", "盐酸二甲双胍片（示例）"),
    ("XB01ACA055A001020100003", "阿司匹林肠溶片（示例）"),
)
_PREPARED_AT_ONCE = 32
_DAY_MS = 86_400_000


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Upload(NamedTuple):
    """One upload made ready: its number, and its request as bytes."""

    rx_no: str
    request: bytes


class World:
    """The folder of the servers, who calls, and the hospital's keys by suite and subject."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.trust = TrustDomain.in_memory("erxhub.test", now_ms())
        server = self.trust.issue_tls("hub", "hub-1", now_ms(), 30, hosts=("localhost", "127.0.0.1"))
        for name, data in (("cert.pem", server.cert_pem), ("key.pem", server.key_pem), ("ca.pem", self.trust.ca_pem)):
            (folder / name).write_bytes(data)
        self.hub_keys = HubKeys.init(folder / "keys", SystemIds())
        self.receipt_keys = {self.hub_keys.receipt.key_id: self.hub_keys.receipt.public_key}
        self.hospital = self.identity("hospital", HOSPITAL)
        self.keys: Mapping[str, Mapping[str, SigningKey]] = {
            suite: {subject: SigningKey.generate(suite) for subject in (DOCTOR, PHARMACIST, HOSPITAL)}
            for suite in SUITES
        }
        self.file = b"%PDF-1.7\n% SIMULATED\n".ljust(FILE_BYTES, b"\x20")
        self.encounter_id = ""
        self._prescriptions = 0

    def identity(self, role: str, name: str) -> ClientIdentity:
        """A certificate of the trust domain."""
        issued = self.trust.issue_tls(role, name, now_ms(), 30)
        return ClientIdentity(self.trust.ca_pem, issued.cert_pem, issued.key_pem)

    async def populate(self, port: int) -> None:
        """Register the hospital with staff, keys, patient and drugs, and bring one visit to its diagnosis."""
        async with AsyncExitStack() as stack:
            target = f"localhost:{port}"
            agency = await stack.enter_async_context(AgencyClient.connect(target, self.identity("agency", AREA)))
            channel = await stack.enter_async_context(
                PatientClient.connect(target, self.identity("channel", "bench-app"))
            )
            hospital = await stack.enter_async_context(HospitalClient.connect(target, self.hospital))
            await self._register(agency)
            await channel.activate_voucher(person_no=PERSON_NO)
            issued = await channel.issue_voucher(person_no=PERSON_NO, business_type=BUSINESS_TYPE)
            shown = await hospital.verify_voucher(voucher_code=issued.voucher_code, business_type=BUSINESS_TYPE)
            visit = await hospital.register_encounter(
                person_no=PERSON_NO,
                visit_kind=common_pb2.VISIT_KIND_OFFLINE,
                certificate_type=encounter_pb2.VISIT_CERTIFICATE_TYPE_VOUCHER,
                med_type="11",
                voucher_ref=shown.voucher_ref,
            )
            self.encounter_id = visit.encounter_id
            await hospital.start_encounter(encounter_id=self.encounter_id, doctor_code=DOCTOR)
            await hospital.record_diagnosis(
                encounter_id=self.encounter_id,
                doctor_code=DOCTOR,
                diagnoses=[_diagnosis()],
                doctor_key=self.keys[SUITES[0]][DOCTOR],
            )

    async def _register(self, agency: AgencyClient) -> None:
        from_ms, until_ms = now_ms() - 1000, now_ms() + 365 * _DAY_MS
        await agency.register_institution(institution_code=HOSPITAL, name="示例医院", level="02")
        await agency.sign_agreement(
            institution_code=HOSPITAL,
            kind=registry_pb2.AGREEMENT_KIND_BASE,
            agreement_no="bench-agreement-1",
            valid_from_ms=from_ms,
            valid_until_ms=until_ms,
            clauses=("scope", "conditions", "charge_and_settlement_standard", "payment_mode"),
        )
        for code, kind in (
            (DOCTOR, registry_pb2.PRACTITIONER_KIND_DOCTOR),
            (PHARMACIST, registry_pb2.PRACTITIONER_KIND_HOSPITAL_PHARMACIST),
        ):
            await agency.register_practitioner(
                practitioner_code=code, name="赵示例", kind=kind, institution_codes=[HOSPITAL], practice_years=8
            )
        for keys in self.keys.values():
            for subject, key in keys.items():
                await agency.register_signing_key(
                    subject_code=subject,
                    institution_code=HOSPITAL,
                    suite=key.suite.name,
                    public_key=key.public_key,
                    valid_from_ms=from_ms,
                    valid_until_ms=until_ms,
                )
        await agency.register_person(
            person_no=PERSON_NO,
            name="林示例",
            id_number="990101196104129115",
            sex=common_pb2.SEX_MALE,
            born_on="1961-04-12",
            insured_area_code=AREA,
            insurance_type="310",
            person_type="1201",
        )
        await agency.import_catalog(
            dataset=catalog_pb2.CATALOG_DATASET_DRUGS,
            edition="bench",
            valid_from_on="2020-01-01",
            file_sha256=bytes(32),
            entries=[
                catalog_pb2.CatalogEntry(
                    line=line,
                    drug=catalog_pb2.Drug(
                        code=code,
                        generic_name=name,
                        charge_class="01",
                        prior_pay_ratio="0",
                        control=catalog_pb2.DRUG_CONTROL_NONE,
                    ),
                )
                for line, (code, name) in enumerate(DRUGS, start=2)
            ],
        )

    async def prepare(self, port: int, counts: Mapping[str, int]) -> dict[str, list[Upload]]:
        """For each suite, so many uploads: prechecked, signed, and serialised. Signatures are good for 15 minutes."""
        async with HospitalClient.connect(f"localhost:{port}", self.hospital) as hospital:
            ready: dict[str, list[Upload]] = {suite: [] for suite in counts}
            wanted = iter([suite for suite, count in counts.items() for _ in range(count)])

            async def worker() -> None:
                for suite in wanted:
                    ready[suite].append(await self._upload(hospital, suite))

            await asyncio.gather(*(worker() for _ in range(_PREPARED_AT_ONCE)))
            return ready

    async def _upload(self, hospital: HospitalClient, suite: str) -> Upload:
        self._prescriptions += 1
        number = self._prescriptions
        content = self.prescription(f"BENCH{number:08d}")
        reply = await hospital.precheck(prescription=content, request_id=f"bench-precheck-{number:08d}")
        keys = self.keys[suite]
        document = signed_pb2.PrescriptionDocument(
            rx_no=reply.rx_no, rx_trace_code=reply.rx_trace_code, prescription=content, signed_at_ms=now_ms()
        )
        request: prescribing_pb2.UploadPrescriptionRequest = signed_upload(
            request_id=f"bench-upload-{number:08d}",
            document=document,
            pharmacist_code=PHARMACIST,
            doctor_key=keys[DOCTOR],
            pharmacist_key=keys[PHARMACIST],
            seal_key=keys[HOSPITAL],
            file=self.file,
            media_type="application/pdf",
            opinion="审核通过",
            hospital_code=HOSPITAL,
            signed_at_ms=now_ms(),
        )
        return Upload(reply.rx_no, request.SerializeToString())

    def prescription(self, hospital_rx_no: str) -> common_pb2.Prescription:
        """Five lines of western drugs, with what a hospital usually states."""
        at_ms = now_ms()
        return common_pb2.Prescription(
            hospital_rx_no=hospital_rx_no,
            hospital_code=HOSPITAL,
            encounter_id=self.encounter_id,
            person_no=PERSON_NO,
            rx_type="1",
            med_type="11",
            doctor_code=DOCTOR,
            department="心血管内科（示例）",
            prescribed_at_ms=at_ms,
            valid_days=3,
            valid_until_ms=at_ms + 3 * _DAY_MS,
            diagnoses=[_diagnosis()],
            lines=[_line(number, code, name) for number, (code, name) in enumerate(DRUGS, start=1)],
            patient=common_pb2.PatientFacts(age_years=64, weight_g=68_000),
            origin=common_pb2.PRESCRIPTION_ORIGIN_HUMAN,
        )


def _diagnosis() -> common_pb2.Diagnosis:
    return common_pb2.Diagnosis(code="I10.x00x002", name="高血压病（示例）", main=True, diagnosis_type="1")


def _line(number: int, code: str, name: str) -> common_pb2.RxLine:
    return common_pb2.RxLine(
        line_no=number,
        item_type="11",
        drug_code=code,
        generic_name=name,
        strength="5mg*28片/盒（示例规格，铝塑包装）",
        dose="5",
        dose_unit="mg",
        units_per_dose="1",
        frequency_code="11",
        route_code="1",
        supply_days=7,
        quantity="1",
        quantity_unit="盒",
        unit_price="28.5",
        amount_fen=2850,
        usage_note="每日一次，每次一片，早餐后温水送服；如有头晕、踝部水肿等不适请及时复诊，不可自行停药。",
    )
