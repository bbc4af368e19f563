"""A small honest hospital: visits, prescriptions, withdrawals, and what it hears of them.

Owns: the order of the requests that issue a prescription, and what of them is quoted by the next. Must never: decide
anything medical; what is prescribed comes in, or is the sample.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import UTC, date, datetime
from typing import Any, Final

from google.protobuf import json_format

from erxhub.client import ClientFailure, HospitalClient
from erxhub.client.request_ids import BEIJING
from erxhub.conform.drivers.product import Act, Configuration, OutcomeUnknown, Product, ToldClock, classified, enum_name
from erxhub.crypto.suites import SigningKey
from erxhub.seed import SeedWorld, sample_diagnoses, sample_pdf, sample_prescription
from erxhub.v1 import common_pb2, encounter_pb2, prescribing_pb2, signed_pb2, voucher_pb2

CONSULT: Final = "01201"
READS_MAX: Final = 5
DAY_MS: Final = 86_400_000

_REVIEWS: Final = {
    "order.held": "PENDING",
    "review.passed": "PASSED",
    "review.rejected": "REJECTED",
    "review.returned_to_doctor": "RETURNED_TO_DOCTOR",
}


def shown_statuses(statuses: common_pb2.RxStatuses) -> dict[str, Any]:
    """The statuses of a prescription by name."""
    return {
        "status": enum_name(common_pb2.RxStatus.DESCRIPTOR, statuses.rx),
        "use": enum_name(common_pb2.RxUseStatus.DESCRIPTOR, statuses.use),
        "undo_requested": statuses.undo_requested,
    }


class Hospital(Product):
    """`staff` names doctor and pharmacist, `keys` are theirs and the institution's own, by code."""

    client: HospitalClient

    def __init__(
        self,
        configuration: Configuration,
        clock: ToldClock,
        staff: Mapping[str, str],
        keys: Mapping[str, SigningKey],
    ) -> None:
        super().__init__(configuration, clock)
        self._staff = staff
        self._keys = keys
        self.performers = {"issue_prescription": self._issue, "verify_voucher": self._verify, "revoke": self._revoke}

    def _make_client(self) -> HospitalClient:
        return HospitalClient(self.connection)

    # ---- acts ----

    async def _verify(self, act: Act, arguments: dict[str, Any]) -> dict[str, Any]:
        verified = await self._shown(act, arguments, arguments["business_type"])
        return {"person_no": verified.person_no, "voucher_ref": verified.voucher_ref or verified.online_identity_no}

    async def _shown(self, act: Act, arguments: Mapping[str, Any], kind: str) -> voucher_pb2.VerifyVoucherResponse:
        return await act.step(
            "verify",
            voucher_pb2.VerifyVoucherResponse,
            lambda request_id: self.client.verify_voucher(
                voucher_code=arguments["voucher_code"],
                business_type=kind,
                person_no=arguments.get("person_no") or "",
                request_id=request_id,
            ),
        )

    async def _issue(self, act: Act, arguments: dict[str, Any]) -> dict[str, Any]:
        """Visit, diagnosis, pre-check, upload; or from the pre-check on, in a visit that exists."""
        encounter_id = arguments.get("encounter_id") or ""
        visit = self.journal.get(f"visit/{encounter_id}") if encounter_id else None
        if visit is None:
            encounter_id, visit = await self._seen(act, arguments)
        content = act.record.get("content")
        if content is None:
            # Kept, because a repeat after a crash must name the same time.
            content = json_format.MessageToDict(self._written(arguments, encounter_id, visit))
            self.journal.put(act.name, act.record | {"content": content})
        prescription = json_format.ParseDict(content, common_pb2.Prescription())
        checked = await act.step(
            "precheck",
            prescribing_pb2.PrecheckPrescriptionResponse,
            lambda request_id: self.client.precheck(prescription=prescription, request_id=request_id),
        )
        act.about(checked.rx_no)
        uploaded = await self._upload(act, prescription, checked)
        self.journal.put(
            f"rx/{checked.rx_no}", {"doctor": prescription.doctor_code} | shown_statuses(uploaded.statuses)
        )
        return {
            "encounter_id": encounter_id,
            "valid_until_ms": uploaded.valid_until_ms,
            "step": "upload",
            "warnings": [warning.code for warning in checked.warnings],
        } | shown_statuses(uploaded.statuses)

    async def _seen(self, act: Act, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The visit up to its diagnosis."""
        verified = await self._shown(act, arguments, CONSULT)
        registered = await act.step(
            "register",
            encounter_pb2.RegisterEncounterResponse,
            lambda request_id: self.client.register_encounter(
                person_no=verified.person_no,
                visit_kind=common_pb2.VISIT_KIND_OFFLINE,
                certificate_type=encounter_pb2.VISIT_CERTIFICATE_TYPE_VOUCHER,
                med_type="11",
                voucher_ref=verified.voucher_ref,
                department="心血管内科",
                request_id=request_id,
            ),
        )
        encounter_id, doctor = registered.encounter_id, self._staff["doctor"]
        await act.step(
            "start",
            encounter_pb2.StartEncounterResponse,
            lambda request_id: self.client.start_encounter(
                encounter_id=encounter_id, doctor_code=doctor, request_id=request_id
            ),
        )
        diagnoses = [
            json_format.ParseDict(one, common_pb2.Diagnosis()) for one in arguments.get("diagnoses") or ()
        ] or sample_diagnoses()
        await act.step(
            "diagnose",
            encounter_pb2.RecordDiagnosisResponse,
            lambda request_id: self.client.record_diagnosis(
                encounter_id=encounter_id,
                doctor_code=doctor,
                diagnoses=diagnoses,
                doctor_key=self._keys[doctor],
                request_id=request_id,
            ),
        )
        visit = {
            "person_no": verified.person_no,
            "born_on": verified.born_on,
            "diagnoses": [json_format.MessageToDict(one) for one in diagnoses],
        }
        self.journal.put(f"visit/{encounter_id}", visit)
        return encounter_id, visit

    def _written(
        self, arguments: Mapping[str, Any], encounter_id: str, visit: Mapping[str, Any]
    ) -> common_pb2.Prescription:
        lines = arguments.get("lines") or 2
        count = 1 if isinstance(lines, list) else int(lines)
        now_ms = self.clock.now_ms()
        written = sample_prescription(SeedWorld, encounter_id, SeedWorld.person_no, now_ms, lines=count)
        written.hospital_code = self.configuration.institution_code
        written.doctor_code = self._staff["doctor"]
        written.person_no = visit["person_no"]
        written.patient.age_years, written.patient.age_days = _age(visit["born_on"], now_ms)
        written.ClearField("diagnoses")
        written.diagnoses.extend(json_format.ParseDict(one, common_pb2.Diagnosis()) for one in visit["diagnoses"])
        earlier = sum(1 for name, _ in self.journal.items(f"number/{encounter_id}/"))
        written.hospital_rx_no = arguments.get("hospital_rx_no") or f"RX-{encounter_id}-{earlier + 1}"
        self.journal.put(f"number/{encounter_id}/{earlier + 1}", written.hospital_rx_no)
        if isinstance(lines, list):
            _replace(written.lines, lines)
        if arguments.get("valid_days"):
            written.valid_days = int(arguments["valid_days"])
            written.valid_until_ms = written.prescribed_at_ms + written.valid_days * DAY_MS
        return json_format.ParseDict(arguments.get("prescription") or {}, written)

    async def _upload(
        self,
        act: Act,
        prescription: common_pb2.Prescription,
        checked: prescribing_pb2.PrecheckPrescriptionResponse,
    ) -> prescribing_pb2.UploadPrescriptionResponse:
        pharmacist = self._staff["pharmacist"]
        return await act.step(
            "upload",
            prescribing_pb2.UploadPrescriptionResponse,
            lambda request_id: self.client.upload(
                document=signed_pb2.PrescriptionDocument(
                    rx_no=checked.rx_no, rx_trace_code=checked.rx_trace_code, prescription=prescription
                ),
                pharmacist_code=pharmacist,
                doctor_key=self._keys[prescription.doctor_code],
                pharmacist_key=self._keys[pharmacist],
                seal_key=self._keys[self.configuration.institution_code],
                file=sample_pdf(checked.rx_no),
                request_id=request_id,
            ),
        )

    async def _revoke(self, act: Act, arguments: dict[str, Any]) -> dict[str, Any]:
        rx_no = arguments["rx_no"]
        kept = self.journal.get(f"rx/{rx_no}") or {}
        revoked = await act.step(
            "revoke",
            prescribing_pb2.RevokePrescriptionResponse,
            lambda request_id: self.client.revoke(
                rx_no=rx_no,
                doctor_code=arguments.get("doctor_code") or kept.get("doctor") or self._staff["doctor"],
                reason=arguments.get("reason") or "处方有误",
                request_id=request_id,
            ),
        )
        self.journal.put(f"rx/{rx_no}", kept | shown_statuses(revoked.statuses))
        return shown_statuses(revoked.statuses)

    # ---- reading ----

    async def query(self, rx_no: str) -> dict[str, Any]:
        """What the hub says of a prescription; asked again while that is older than what this hospital knows.

        Raises Rejected, OutcomeUnknown.
        """
        for attempt in range(1, READS_MAX + 1):
            try:
                reply = await self.client.get(rx_no=rx_no)
            except ClientFailure as failure:
                kept = self.journal.get(f"rx/{rx_no}")
                if kept is None or getattr(failure, "code", "") != "RX_UNKNOWN" or attempt == READS_MAX:
                    raise classified(failure) from failure
            else:
                if not self._is_stale(rx_no, reply):
                    return self._shown_prescription(reply)
            await self.clock.back_off(attempt, 0)
        raise OutcomeUnknown("STALE_READ")

    def _is_stale(self, rx_no: str, reply: prescribing_pb2.GetPrescriptionResponse) -> bool:
        """Whether the hub shows a prescription in force that this hospital knows to be over."""
        read = shown_statuses(reply.statuses)
        own = self.journal.get(f"rx/{rx_no}") or {}
        heard = self.known().get(rx_no, {})
        over = {known.get("status") for known in (own, heard)} & {"UNDONE", "EXPIRED", "EXHAUSTED"}
        return bool(over) and read["status"] not in over

    def _shown_prescription(self, reply: prescribing_pb2.GetPrescriptionResponse) -> dict[str, Any]:
        content = reply.prescription
        return shown_statuses(reply.statuses) | {
            "review": enum_name(common_pb2.ReviewStatus.DESCRIPTOR, reply.orders[-1].review)
            if reply.orders
            else "NONE",
            "valid_until_ms": content.valid_until_ms,
            "person_no": content.person_no,
            "encounter_id": content.encounter_id,
            "lines": [
                json_format.MessageToDict(
                    line, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
                )
                for line in content.lines
            ],
        }

    # ---- news ----

    def _watch(self, cursor: str) -> AsyncIterator[prescribing_pb2.WatchPrescriptionsResponse]:
        return self.client.watch(cursor=cursor, from_start=True)

    def _take_in(
        self, message: prescribing_pb2.WatchPrescriptionsResponse, known: dict[str, Any], *, newest: bool
    ) -> None:
        if newest:
            known.update(shown_statuses(message.statuses))
        for event in message.events:
            if event in _REVIEWS and message.version >= known.get("review_version", 0):
                known["review"], known["review_version"] = _REVIEWS[event], message.version


def _replace(lines: Any, given: Iterable[Mapping[str, Any]]) -> None:
    del lines[:]
    lines.extend(json_format.ParseDict(dict(one), common_pb2.RxLine()) for one in given)


def _age(born_on: str, now_ms: int) -> tuple[int, int]:
    """Full years, and days where there is no full year."""
    born = date.fromisoformat(born_on)
    today = datetime.fromtimestamp(now_ms // 1000, UTC).astimezone(BEIJING).date()
    years = today.year - born.year - ((today.month, today.day) < (born.month, born.day))
    return years, (today - born).days if years == 0 else 0
