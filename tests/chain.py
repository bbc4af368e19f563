"""The main job step by step, for tests that need a prescription in some state. Each step is a real call."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

from erxhub.seed import sample_pdf, sample_prescription
from erxhub.v1 import common_pb2, dispensing_pb2, encounter_pb2, signed_pb2
from tests.live import HOSPITAL, PERSON, PHARMACY, PHARMACY_B, Live

DOCTOR = "D330100990001"
DOCTOR_NEW = "D330100990002"
HOSPITAL_PHARMACIST = "HY330100990001"

_STAFF = {
    PHARMACY: ("YS330100990001", "PY330100990001", "PY330100990003", "PS330100990001"),
    PHARMACY_B: ("YS330100990002", "PY330100990002", "PY330100990004", "PS330100990002"),
}

CONSULT = "01201"
DOWNLOAD = "02122"
PURCHASE = "02121"
PICK_UP = "01302"

_NUMBERS = itertools.count(1)


@dataclass
class Chain:
    """One prescription on its way. A test calls the steps it needs; each keeps what the next one quotes."""

    live: Live
    person_no: str = PERSON
    pharmacy_code: str = PHARMACY
    hospital_code: str = HOSPITAL
    hospital_rx_no: str = ""
    lines: int = 2
    encounter_id: str = ""
    prescription: common_pb2.Prescription = field(default_factory=common_pb2.Prescription)
    rx_no: str = ""
    rx_trace_code: str = ""
    authorization_no: str = ""
    download: dispensing_pb2.DownloadPrescriptionResponse = field(
        default_factory=dispensing_pb2.DownloadPrescriptionResponse
    )
    quote: dispensing_pb2.QuoteSettlementResponse = field(default_factory=dispensing_pb2.QuoteSettlementResponse)
    settlement_id: str = ""
    delivery_no: str = ""
    sign_code: str = ""
    _packs: int = 0

    # ---- staff ----

    @property
    def pharmacist(self) -> str:
        """The pharmacy's pharmacist."""
        return _STAFF[self.pharmacy_code][0]

    @property
    def dispenser(self) -> str:
        """Who picks."""
        return _STAFF[self.pharmacy_code][1]

    @property
    def checker(self) -> str:
        """Who checks."""
        return _STAFF[self.pharmacy_code][2]

    @property
    def courier(self) -> str:
        """Who brings."""
        return _STAFF[self.pharmacy_code][3]

    # ---- identity ----

    async def code(self, business_type: str) -> str:
        """A fresh e-voucher code from the patient's channel."""
        channel = await self.live.channel()
        issued = await channel.issue_voucher(person_no=self.person_no, business_type=business_type)
        return issued.voucher_code

    async def reference(self, business_type: str, *, pharmacy: bool = True) -> str:
        """A reference verified by the pharmacy (or the hospital)."""
        client: Any = (
            await self.live.pharmacy(self.pharmacy_code) if pharmacy else await self.live.hospital(self.hospital_code)
        )
        verified = await client.verify_voucher(voucher_code=await self.code(business_type), business_type=business_type)
        return str(verified.voucher_ref)

    # ---- diagnosis ----

    async def registered(self) -> Chain:
        """A registered encounter."""
        hospital = await self.live.hospital(self.hospital_code)
        reply = await hospital.register_encounter(
            person_no=self.person_no,
            visit_kind=common_pb2.VISIT_KIND_OFFLINE,
            certificate_type=encounter_pb2.VISIT_CERTIFICATE_TYPE_VOUCHER,
            med_type="11",
            voucher_ref=await self.reference(CONSULT, pharmacy=False),
            department="全科",
        )
        self.encounter_id = reply.encounter_id
        return self

    async def diagnosed(self) -> Chain:
        """A signed diagnosis."""
        await self.registered()
        hospital = await self.live.hospital(self.hospital_code)
        await hospital.start_encounter(encounter_id=self.encounter_id, doctor_code=DOCTOR)
        self.prescription = self.written()
        await hospital.record_diagnosis(
            encounter_id=self.encounter_id,
            doctor_code=DOCTOR,
            diagnoses=self.prescription.diagnoses,
            doctor_key=self.live.key(DOCTOR, self.hospital_code),
        )
        return self

    # ---- prescription ----

    def written(self) -> common_pb2.Prescription:
        """A prescription that passes every rule."""
        prescription = sample_prescription(
            self.live.world, self.encounter_id, self.person_no, self.live.clock.now_ms(), lines=self.lines
        )
        prescription.hospital_rx_no = self.hospital_rx_no or f"RX-{next(_NUMBERS):08d}"
        return prescription

    async def prechecked(self) -> Chain:
        """A pre-checked prescription."""
        if not self.encounter_id:
            await self.diagnosed()
        hospital = await self.live.hospital(self.hospital_code)
        reply = await hospital.precheck(prescription=self.prescription)
        self.rx_no, self.rx_trace_code = reply.rx_no, reply.rx_trace_code
        return self

    def document(self) -> signed_pb2.PrescriptionDocument:
        """What the doctor signs."""
        return signed_pb2.PrescriptionDocument(
            rx_no=self.rx_no,
            rx_trace_code=self.rx_trace_code,
            prescription=self.prescription,
            signed_at_ms=self.live.clock.now_ms(),
        )

    def upload_arguments(self) -> dict[str, Any]:
        """The arguments of a good upload; a test changes what it wants to be wrong."""
        return {
            "document": self.document(),
            "pharmacist_code": HOSPITAL_PHARMACIST,
            "doctor_key": self.live.key(DOCTOR, self.hospital_code),
            "pharmacist_key": self.live.key(HOSPITAL_PHARMACIST, self.hospital_code),
            "seal_key": self.live.key(self.hospital_code, self.hospital_code),
            "file": sample_pdf(self.rx_no),
        }

    async def uploaded(self) -> Chain:
        """A prescription in force."""
        if not self.rx_no:
            await self.prechecked()
        hospital = await self.live.hospital(self.hospital_code)
        await hospital.upload(**self.upload_arguments())
        return self

    # ---- transaction ----

    async def listed(self) -> Chain:
        """An authorisation of the pharmacy."""
        pharmacy = await self.live.pharmacy(self.pharmacy_code)
        offered = await pharmacy.list_by_voucher(voucher_ref=await self.reference(DOWNLOAD))
        self.authorization_no = next(
            item.authorization_no for item in offered.prescriptions if item.rx_no == self.rx_no
        )
        return self

    async def held(self) -> Chain:
        """A downloaded and held prescription."""
        if not self.rx_no:
            await self.uploaded()
        await self.listed()
        pharmacy = await self.live.pharmacy(self.pharmacy_code)
        self.download = await pharmacy.download(authorization_no=self.authorization_no)
        return self

    async def review(self, decision: Any = signed_pb2.REVIEW_DECISION_PASS, opinion: str = "用药合理") -> Any:
        """The pharmacist's review of what was downloaded."""
        pharmacy = await self.live.pharmacy(self.pharmacy_code)
        return await pharmacy.review(
            rx_no=self.rx_no,
            pharmacist_code=self.pharmacist,
            decision=decision,
            opinion=opinion,
            prescription=self.download.prescription,
            pharmacist_key=self.live.key(self.pharmacist, self.pharmacy_code),
        )

    async def reviewed(self) -> Chain:
        """A passed review."""
        await self.held()
        await self.review()
        return self

    def sale_lines(self) -> list[signed_pb2.SaleLine]:
        """Everything that was prescribed, at the prices of the prescription."""
        return [
            signed_pb2.SaleLine(
                line_no=line.line_no,
                drug_code=line.drug_code,
                quantity=line.quantity,
                unit_price=line.unit_price or "10.00",
            )
            for line in self.prescription.lines
        ]

    async def quoted(self, **changes: Any) -> Chain:
        """A quote."""
        await self.reviewed()
        return await self.quote_again(**changes)

    async def quote_again(self, **changes: Any) -> Chain:
        """A quote for a prescription that is reviewed already."""
        pharmacy = await self.live.pharmacy(self.pharmacy_code)
        arguments = {
            "rx_no": self.rx_no,
            "voucher_ref": await self.reference(PURCHASE),
            "lines": self.sale_lines(),
            "use_account": True,
        }
        self.quote = await pharmacy.quote(**(arguments | changes))
        return self

    async def settle(self, **changes: Any) -> dispensing_pb2.SettleResponse:
        """Settle the quote."""
        pharmacy = await self.live.pharmacy(self.pharmacy_code)
        arguments = {
            "rx_no": self.rx_no,
            "quote_id": self.quote.quote_id,
            "amounts": self.quote.amounts,
            "seal_key": self.live.key(self.pharmacy_code, self.pharmacy_code),
        } | changes
        if "voucher_ref" not in arguments:
            arguments["voucher_ref"] = await self.reference(PURCHASE)
        reply: dispensing_pb2.SettleResponse = await pharmacy.settle(**arguments)
        return reply

    async def settled(self) -> Chain:
        """A settled order."""
        await self.quoted()
        self.settlement_id = (await self.settle()).settlement_id
        return self

    def lots(self) -> list[signed_pb2.DispensedLot]:
        """Lots for all that was sold, with fresh trace codes, one for each pack."""
        lots = []
        for line in self.prescription.lines:
            packs = -(-int(float(line.quantity) * 10_000) // 10_000)
            codes = []
            for _ in range(packs):
                self._packs += 1
                codes.append(f"8{int(self.rx_no[-12:]) % 10**12:012d}{self._packs:07d}")
            lots.append(
                signed_pb2.DispensedLot(
                    line_no=line.line_no,
                    drug_code=line.drug_code,
                    quantity=line.quantity,
                    lot_no="L20260901",
                    expires_on="2028-08-31",
                    trace_codes=codes,
                )
            )
        return lots

    def dispense_arguments(self) -> dict[str, Any]:
        """The arguments of a good dispensing."""
        return {
            "rx_no": self.rx_no,
            "settlement_id": self.settlement_id,
            "reviewer_code": self.pharmacist,
            "dispenser_code": self.dispenser,
            "checker_code": self.checker,
            "lots": self.lots(),
            "seal_key": self.live.key(self.pharmacy_code, self.pharmacy_code),
        }

    async def dispensed(self) -> Chain:
        """Goods out."""
        if not self.settlement_id:
            await self.settled()
        pharmacy = await self.live.pharmacy(self.pharmacy_code)
        await pharmacy.dispense(**self.dispense_arguments())
        return self

    # ---- delivery ----

    async def handed_over(self) -> Chain:
        """The patient has the goods, at the counter."""
        await self.dispensed()
        pharmacy = await self.live.pharmacy(self.pharmacy_code)
        await pharmacy.hand_over(
            rx_no=self.rx_no,
            staff_code=self.dispenser,
            voucher_ref=await self.reference(PICK_UP),
            seal_key=self.live.key(self.pharmacy_code, self.pharmacy_code),
        )
        return self

    async def delivery_requested(self) -> Chain:
        """The patient asked for delivery and knows the sign-for code."""
        channel = await self.live.channel()
        reply = await channel.request_delivery(
            person_no=self.person_no,
            rx_no=self.rx_no,
            pharmacy_code=self.pharmacy_code,
            address="示例路 1 号",
            phone="000-0000000",
        )
        self.delivery_no, self.sign_code = reply.delivery_no, reply.sign_code
        return self

    async def delivery_started(self, **changes: Any) -> Any:
        """The courier has the goods."""
        pharmacy = await self.live.pharmacy(self.pharmacy_code)
        arguments = {
            "rx_no": self.rx_no,
            "company": "示例配送",
            "courier_code": self.courier,
            "distance_m": 3_000,
        }
        return await pharmacy.start_delivery(**(arguments | changes))

    async def delivery_step(self, step: Any, **changes: Any) -> Any:
        """One reported step."""
        pharmacy = await self.live.pharmacy(self.pharmacy_code)
        arguments = {
            "rx_no": self.rx_no,
            "delivery_no": self.delivery_no,
            "step": step,
            "courier_code": self.courier,
        }
        return await pharmacy.update_delivery(**(arguments | changes))

    async def arrived(self) -> Chain:
        """The courier stands at the door."""
        if not self.settlement_id:
            await self.settled()
        await self.delivery_requested()
        pharmacy = await self.live.pharmacy(self.pharmacy_code)
        await pharmacy.dispense(**self.dispense_arguments())
        await self.delivery_started()
        await self.delivery_step(dispensing_pb2.DELIVERY_STEP_ON_THE_WAY)
        await self.delivery_step(dispensing_pb2.DELIVERY_STEP_ARRIVE)
        return self

    async def sign(self, **changes: Any) -> Any:
        """Sign for the delivery."""
        pharmacy = await self.live.pharmacy(self.pharmacy_code)
        arguments = {
            "rx_no": self.rx_no,
            "delivery_no": self.delivery_no,
            "seal_key": self.live.key(self.pharmacy_code, self.pharmacy_code),
            "sign_code": self.sign_code,
        }
        return await pharmacy.sign_delivery(**(arguments | changes))

    async def delivered(self) -> Chain:
        """Signed for at the door."""
        await self.arrived()
        await self.sign()
        return self
