"""A hospital: visits, diagnoses, prescriptions (医疗机构侧).

Owns: the calls that a hospital's certificate may make.
Must never: keep state of a visit or a prescription; the hub does.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable

from erxhub.client.base import DEFAULT_WAIT, Client, WaitFor, page_of
from erxhub.client.bulk import BulkUpload, Outcome
from erxhub.client.connection import Connection
from erxhub.client.request_ids import RequestIds
from erxhub.client.shared_calls import CatalogReader, VoucherVerifier
from erxhub.client.signing import sign, signed_upload
from erxhub.crypto.suites import SigningKey
from erxhub.v1 import (
    common_pb2,
    encounter_pb2,
    encounter_pb2_grpc,
    prescribing_pb2,
    prescribing_pb2_grpc,
    signed_pb2,
)


class HospitalClient(CatalogReader, VoucherVerifier, Client):
    """Speaks for a hospital's doctors and pharmacists. `hospital_code` is the certificate's where none is given."""

    def __init__(self, connection: Connection, *, request_ids: RequestIds | None = None) -> None:
        super().__init__(connection, request_ids=request_ids)
        self._encounters = encounter_pb2_grpc.EncounterServiceStub(connection.channel)
        self._prescribing = prescribing_pb2_grpc.PrescribingServiceStub(connection.channel)

    # --- the visit ---

    async def register_encounter(
        self,
        *,
        person_no: str,
        visit_kind: common_pb2.VisitKind.ValueType,
        certificate_type: encounter_pb2.VisitCertificateType.ValueType,
        med_type: str,
        voucher_ref: str = "",
        online_identity_no: str = "",
        id_number: str = "",
        card_sn: str = "",
        department: str = "",
        first_visit: bool = False,
        hospital_code: str | None = None,
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> encounter_pb2.RegisterEncounterResponse:
        """Registers a visit (挂号); the reply holds its `encounter_id`."""
        request = encounter_pb2.RegisterEncounterRequest(
            request_id=self._id(request_id),
            wait_for=wait_for,
            hospital_code=self._institution(hospital_code),
            person_no=person_no,
            visit_kind=visit_kind,
            certificate_type=certificate_type,
            voucher_ref=voucher_ref,
            online_identity_no=online_identity_no,
            id_number=id_number,
            card_sn=card_sn,
            med_type=med_type,
            department=department,
            first_visit=first_visit,
        )
        return await self.connection.unary(self._encounters.RegisterEncounter, request, timeout_s)

    async def start_encounter(
        self,
        *,
        encounter_id: str,
        doctor_code: str,
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> encounter_pb2.StartEncounterResponse:
        """The doctor begins the consultation (接诊)."""
        request = encounter_pb2.StartEncounterRequest(
            request_id=self._id(request_id), wait_for=wait_for, encounter_id=encounter_id, doctor_code=doctor_code
        )
        return await self.connection.unary(self._encounters.StartEncounter, request, timeout_s)

    async def attest_doctor(
        self,
        *,
        encounter_id: str,
        media_sha256: bytes,
        liveness_passed: bool,
        attested_at_ms: int | None = None,
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> encounter_pb2.AttestDoctorResponse:
        """Attests that the treating doctor is genuine (医师真实性核验); `media_sha256` is 32 bytes."""
        request = encounter_pb2.AttestDoctorRequest(
            request_id=self._id(request_id),
            wait_for=wait_for,
            encounter_id=encounter_id,
            media_sha256=media_sha256,
            liveness_passed=liveness_passed,
            attested_at_ms=self._now_unless(attested_at_ms),
        )
        return await self.connection.unary(self._encounters.AttestDoctor, request, timeout_s)

    async def prove_follow_up(
        self,
        *,
        encounter_id: str,
        disease_code: str,
        earlier_hospital_code: str,
        earlier_visit_on: str,
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> encounter_pb2.ProveFollowUpResponse:
        """Proves that an internet visit is a follow-up (复诊证明); `earlier_visit_on` is yyyy-mm-dd."""
        request = encounter_pb2.ProveFollowUpRequest(
            request_id=self._id(request_id),
            wait_for=wait_for,
            encounter_id=encounter_id,
            disease_code=disease_code,
            earlier_hospital_code=earlier_hospital_code,
            earlier_visit_on=earlier_visit_on,
        )
        return await self.connection.unary(self._encounters.ProveFollowUp, request, timeout_s)

    async def record_diagnosis(
        self,
        *,
        encounter_id: str,
        doctor_code: str,
        diagnoses: Iterable[common_pb2.Diagnosis],
        doctor_key: SigningKey,
        signed_at_ms: int | None = None,
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> encounter_pb2.RecordDiagnosisResponse:
        """Records the diagnosis under the doctor's signature (诊断); exactly one of `diagnoses` is the main one."""
        request = encounter_pb2.RecordDiagnosisRequest(
            request_id=self._id(request_id),
            wait_for=wait_for,
            encounter_id=encounter_id,
            statement=self._diagnosis(encounter_id, doctor_code, diagnoses, doctor_key, signed_at_ms),
        )
        return await self.connection.unary(self._encounters.RecordDiagnosis, request, timeout_s)

    async def amend_diagnosis(
        self,
        *,
        encounter_id: str,
        doctor_code: str,
        diagnoses: Iterable[common_pb2.Diagnosis],
        doctor_key: SigningKey,
        reason: str,
        signed_at_ms: int | None = None,
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> encounter_pb2.AmendDiagnosisResponse:
        """Replaces the diagnosis (更正诊断); a signed prescription keeps its own copy."""
        request = encounter_pb2.AmendDiagnosisRequest(
            request_id=self._id(request_id),
            wait_for=wait_for,
            encounter_id=encounter_id,
            statement=self._diagnosis(encounter_id, doctor_code, diagnoses, doctor_key, signed_at_ms),
            reason=reason,
        )
        return await self.connection.unary(self._encounters.AmendDiagnosis, request, timeout_s)

    async def close_encounter(
        self,
        *,
        encounter_id: str,
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> encounter_pb2.CloseEncounterResponse:
        """Closes the visit (结束就诊)."""
        request = encounter_pb2.CloseEncounterRequest(
            request_id=self._id(request_id), wait_for=wait_for, encounter_id=encounter_id
        )
        return await self.connection.unary(self._encounters.CloseEncounter, request, timeout_s)

    async def cancel_encounter(
        self,
        *,
        encounter_id: str,
        reason: str = "",
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> encounter_pb2.CancelEncounterResponse:
        """Cancels the visit while no prescription of it is in force (退号)."""
        request = encounter_pb2.CancelEncounterRequest(
            request_id=self._id(request_id), wait_for=wait_for, encounter_id=encounter_id, reason=reason
        )
        return await self.connection.unary(self._encounters.CancelEncounter, request, timeout_s)

    # --- the prescription ---

    async def precheck(
        self,
        *,
        prescription: common_pb2.Prescription,
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> prescribing_pb2.PrecheckPrescriptionResponse:
        """Checks a prescription before it is signed; the reply holds `rx_no`, `rx_trace_code` and warnings."""
        request = prescribing_pb2.PrecheckPrescriptionRequest(
            request_id=self._id(request_id), wait_for=wait_for, prescription=prescription
        )
        return await self.connection.unary(self._prescribing.PrecheckPrescription, request, timeout_s)

    async def upload(
        self,
        *,
        document: signed_pb2.PrescriptionDocument,
        pharmacist_code: str,
        doctor_key: SigningKey,
        pharmacist_key: SigningKey,
        seal_key: SigningKey,
        file: bytes,
        media_type: str = "application/pdf",
        opinion: str = "审核通过",
        hospital_code: str | None = None,
        signed_at_ms: int | None = None,
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> prescribing_pb2.UploadPrescriptionResponse:
        """Signs and uploads a prescription with its file (处方上传): doctor, hospital pharmacist and seal at once.

        `document` holds numbers and content from the pre-check; it is signed as it is, with the signing time written
        in where it names none. `file` is at most 1 MiB, `media_type` application/pdf or application/ofd.
        `hospital_code` is the document's by default.
        """
        request = signed_upload(
            request_id=self._id(request_id),
            wait_for=wait_for,
            document=document,
            pharmacist_code=pharmacist_code,
            doctor_key=doctor_key,
            pharmacist_key=pharmacist_key,
            seal_key=seal_key,
            file=file,
            media_type=media_type,
            opinion=opinion,
            hospital_code=document.prescription.hospital_code if hospital_code is None else hospital_code,
            signed_at_ms=self._now_unless(signed_at_ms),
        )
        return await self.connection.unary(self._prescribing.UploadPrescription, request, timeout_s)

    def upload_many(
        self, requests: AsyncIterable[prescribing_pb2.UploadPrescriptionRequest]
    ) -> AsyncIterator[tuple[prescribing_pb2.UploadPrescriptionRequest, Outcome]]:
        """Uploads many prescriptions over one stream; `signing.signed_upload` makes the requests.

        Gives each request with its outcome, in order: the reply, or the Refusal (CallFailed for a failure inside the
        hub) that `upload` would have raised, which ends nothing. A lost stream goes on by itself: what was not answered
        is sent again with the same request ids. Raises Refusal when the stream itself is refused, HubUnreachable when
        it cannot be opened again, ReceiptInvalid, and what `requests` raises.
        """
        return BulkUpload(self.connection, requests).outcomes()

    async def revoke(
        self,
        *,
        rx_no: str,
        doctor_code: str,
        reason: str,
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> prescribing_pb2.RevokePrescriptionResponse:
        """Withdraws a prescription that was not used (处方撤销); only the issuing doctor may."""
        request = prescribing_pb2.RevokePrescriptionRequest(
            request_id=self._id(request_id), wait_for=wait_for, rx_no=rx_no, doctor_code=doctor_code, reason=reason
        )
        return await self.connection.unary(self._prescribing.RevokePrescription, request, timeout_s)

    async def get(self, *, rx_no: str, timeout_s: float | None = None) -> prescribing_pb2.GetPrescriptionResponse:
        """One prescription of this hospital, with its statuses and orders."""
        request = prescribing_pb2.GetPrescriptionRequest(rx_no=rx_no)
        return await self.connection.unary(self._prescribing.GetPrescription, request, timeout_s)

    async def list_prescriptions(
        self, *, page_size: int = 0, page_token: str = "", timeout_s: float | None = None
    ) -> prescribing_pb2.ListPrescriptionsResponse:
        """A page of this hospital's prescriptions, newest first."""
        request = prescribing_pb2.ListPrescriptionsRequest(page=page_of(page_size, page_token))
        return await self.connection.unary(self._prescribing.ListPrescriptions, request, timeout_s)

    def watch(
        self, *, cursor: str = "", from_start: bool = False, timeout_s: float | None = None
    ) -> AsyncIterator[prescribing_pb2.WatchPrescriptionsResponse]:
        """What happens to this hospital's prescriptions, after `cursor`; goes on by itself after a lost connection.

        Keep the `cursor` of the last message that was dealt with: a watch begun with it misses nothing.
        """

        def request_after(
            last: prescribing_pb2.WatchPrescriptionsResponse | None,
        ) -> prescribing_pb2.WatchPrescriptionsRequest:
            at = last.cursor if last else cursor
            return prescribing_pb2.WatchPrescriptionsRequest(cursor=at, from_start=from_start and not at)

        return self.connection.resuming_stream(self._prescribing.WatchPrescriptions, request_after, timeout_s)

    def _diagnosis(
        self,
        encounter_id: str,
        doctor_code: str,
        diagnoses: Iterable[common_pb2.Diagnosis],
        doctor_key: SigningKey,
        signed_at_ms: int | None,
    ) -> common_pb2.Signed:
        statement = signed_pb2.DiagnosisStatement(
            encounter_id=encounter_id,
            doctor_code=doctor_code,
            diagnoses=diagnoses,
            signed_at_ms=self._now_unless(signed_at_ms),
        )
        return sign(statement, doctor_key)
