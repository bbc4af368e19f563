"""One prescription on its way from the visit to the patient's hands, step by step.

Owns: what each step sends and what the next one quotes of its answer. Each step is there twice: `<step>_request` writes
it, `<step>` sends it honestly. Must never: check anything; a case does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from erxhub.conform.hub.parties import Party
from erxhub.seed import sample_pdf, sample_prescription
from erxhub.seed.world import SeedWorld
from erxhub.v1 import common_pb2, dispensing_pb2, encounter_pb2, signed_pb2

if TYPE_CHECKING:
    from erxhub.conform.hub.run import HubRun

CONSULT: Final = "01201"
DOWNLOAD: Final = "02122"
PURCHASE: Final = "02121"
PICK_UP: Final = "01302"
ORDER: Final = (
    "visited",
    "started",
    "diagnosed",
    "prechecked",
    "effective",
    "listed",
    "held",
    "reviewed",
    "quoted",
    "settled",
    "dispensed",
    "handed_over",
)


class Journey:
    """A prescription of `person_no`, from `hospital` to `pharmacy`. Fields are empty until their step."""

    def __init__(
        self,
        run: HubRun,
        *,
        person_no: str = "",
        hospital: Party | None = None,
        pharmacy: Party | None = None,
        lines: int = 2,
        valid_days: int = 0,
    ) -> None:
        self.run = run
        self.person_no = person_no or run.place.person_no
        self.hospital = hospital or run.hospital
        self.pharmacy = pharmacy or run.pharmacy
        self.lines = lines
        self.valid_days = valid_days
        self.encounter_id = ""
        self.prescription = common_pb2.Prescription()
        self.rx_no = self.rx_trace_code = ""
        self.authorization_no = ""
        self.download = dispensing_pb2.DownloadPrescriptionResponse()
        self.quote = dispensing_pb2.QuoteSettlementResponse()
        self.settlement_id = ""
        self.delivery_no = self.sign_code = ""
        self.state = ""

    async def to(self, state: str) -> Journey:
        """Takes every step up to one of ORDER that is not taken yet."""
        steps: Mapping[str, Callable[[], Awaitable[Any]]] = {
            "visited": self.visit,
            "started": self.start,
            "diagnosed": self.diagnose,
            "prechecked": self.precheck,
            "effective": self.upload,
            "listed": self.authorize,
            "held": self.hold,
            "reviewed": self.review,
            "quoted": self.quote_sale,
            "settled": self.settle,
            "dispensed": self.dispense,
            "handed_over": self.hand_over,
        }
        first = ORDER.index(self.state) + 1 if self.state else 0
        for step in ORDER[first : ORDER.index(state) + 1]:
            await steps[step]()
            self.state = step
        return self

    async def reference(self, business_type: str, party: Party | None = None) -> str:
        """A voucher reference of the person, verified by the pharmacy or by another party."""
        return await self.run.reference(party or self.pharmacy, self.person_no, business_type)

    # ---- diagnosis ----

    async def visit_request(self, **changes: Any) -> Any:
        """RegisterEncounter."""
        arguments: dict[str, Any] = {
            "person_no": self.person_no,
            "visit_kind": common_pb2.VISIT_KIND_OFFLINE,
            "certificate_type": encounter_pb2.VISIT_CERTIFICATE_TYPE_VOUCHER,
            "med_type": "11",
            "department": "全科",
        } | changes
        if "voucher_ref" not in arguments:
            arguments["voucher_ref"] = await self.reference(CONSULT, self.hospital)
        return await self.hospital.drafts.register_encounter(**arguments)

    async def visit(self) -> None:
        """A registered visit."""
        self.encounter_id = (await self._done(self.hospital, await self.visit_request())).encounter_id

    async def start(self) -> None:
        """The doctor begins."""
        await self.hospital.client.start_encounter(
            encounter_id=self.encounter_id, doctor_code=self.hospital.staff["doctor"]
        )

    async def diagnose(self) -> None:
        """A signed diagnosis, and with it the prescription's text."""
        self.prescription = self.written()
        await self.hospital.client.record_diagnosis(
            encounter_id=self.encounter_id,
            doctor_code=self.hospital.staff["doctor"],
            diagnoses=self.prescription.diagnoses,
            doctor_key=self.run.key(self.hospital.staff["doctor"]),
        )

    # ---- prescription ----

    def written(self, number: int = 1) -> common_pb2.Prescription:
        """A prescription of this visit that passes every rule; `number` tells several apart."""
        like = self.person_no
        if like == self.run.place.person_no:
            like = SeedWorld.person_no
        elif like == self.run.place.second_person_no:
            like = SeedWorld.employee_no
        written = sample_prescription(SeedWorld, self.encounter_id, like, self.run.now_ms, self.lines, number=number)
        written.person_no = self.person_no
        written.hospital_code = self.hospital.code
        written.doctor_code = self.hospital.staff["doctor"]
        if self.valid_days:
            written.valid_days = self.valid_days
            written.valid_until_ms = written.prescribed_at_ms + self.valid_days * 86_400_000
        return written

    async def precheck_request(self, prescription: common_pb2.Prescription | None = None) -> Any:
        """PrecheckPrescription, of another text on request."""
        return await self.hospital.drafts.precheck(prescription=prescription or self.prescription)

    async def precheck(self) -> None:
        """A number and a trace code."""
        reply = await self._done(self.hospital, await self.precheck_request())
        self.rx_no, self.rx_trace_code = reply.rx_no, reply.rx_trace_code

    def document(self, **changes: Any) -> signed_pb2.PrescriptionDocument:
        """What the doctor signs."""
        fields: dict[str, Any] = {
            "rx_no": self.rx_no,
            "rx_trace_code": self.rx_trace_code,
            "prescription": self.prescription,
            "signed_at_ms": self.run.now_ms,
        }
        return signed_pb2.PrescriptionDocument(**(fields | changes))

    async def upload_request(self, **changes: Any) -> Any:
        """UploadPrescription under doctor, hospital pharmacist and seal."""
        staff = self.hospital.staff
        arguments: dict[str, Any] = {
            "document": self.document(),
            "pharmacist_code": staff["pharmacist"],
            "doctor_key": self.run.key(staff["doctor"]),
            "pharmacist_key": self.run.key(staff["pharmacist"]),
            "seal_key": self.run.key(self.hospital.code),
            "file": sample_pdf(self.rx_no),
        }
        return await self.hospital.drafts.upload(**(arguments | changes))

    async def upload(self) -> None:
        """In force."""
        await self._done(self.hospital, await self.upload_request())

    async def revoke_request(self, **changes: Any) -> Any:
        """RevokePrescription by the issuing doctor."""
        arguments = {"rx_no": self.rx_no, "doctor_code": self.hospital.staff["doctor"], "reason": "开具有误"}
        return await self.hospital.drafts.revoke(**(arguments | changes))

    # ---- transaction ----

    async def authorize(self, party: Party | None = None, voucher_ref: str = "") -> str:
        """A pharmacy's authorisation number for this prescription, kept when it is the journey's own pharmacy."""
        pharmacy = party or self.pharmacy
        reference, page, found = voucher_ref or await self.reference(DOWNLOAD, pharmacy), "", ""
        while not found:
            listed = await pharmacy.client.list_by_voucher(voucher_ref=reference, page_token=page)
            found = next((one.authorization_no for one in listed.prescriptions if one.rx_no == self.rx_no), "")
            page = listed.next_page_token
            if not page:
                break
        self.run.checks.must(
            bool(found),
            point="sut",
            en=f"the prescription is offered to {pharmacy.name}",
            zh=f"处方应出现在 {pharmacy.name} 的列表中",
        )
        if pharmacy is self.pharmacy:
            self.authorization_no = found
        return found

    async def hold_request(self) -> Any:
        """DownloadPrescription with the authorisation number."""
        return await self.pharmacy.drafts.download(authorization_no=self.authorization_no)

    async def hold(self) -> None:
        """Downloaded and held."""
        self.download = await self._done(self.pharmacy, await self.hold_request())

    async def review_request(self, **changes: Any) -> Any:
        """ReviewPrescription: passed."""
        pharmacist = self.pharmacy.staff["pharmacist"]
        arguments: dict[str, Any] = {
            "rx_no": self.rx_no,
            "pharmacist_code": pharmacist,
            "decision": signed_pb2.REVIEW_DECISION_PASS,
            "opinion": "用药合理",
            "prescription": self.download.prescription,
            "pharmacist_key": self.run.key(pharmacist),
        }
        return await self.pharmacy.drafts.review(**(arguments | changes))

    async def review(self) -> None:
        """Passed."""
        await self._done(self.pharmacy, await self.review_request())

    def sale_lines(self, quantities: Mapping[int, str] | None = None) -> list[signed_pb2.SaleLine]:
        """Everything that was prescribed, or `quantities` by line number, at the prescription's prices."""
        return [
            signed_pb2.SaleLine(
                line_no=line.line_no,
                drug_code=line.drug_code,
                quantity=(quantities or {}).get(line.line_no, line.quantity),
                unit_price=line.unit_price,
            )
            for line in self.prescription.lines
            if quantities is None or line.line_no in quantities
        ]

    async def quote_request(self, **changes: Any) -> Any:
        """QuoteSettlement of everything, from the account."""
        arguments: dict[str, Any] = {"rx_no": self.rx_no, "lines": self.sale_lines(), "use_account": True} | changes
        if "voucher_ref" not in arguments:
            arguments["voucher_ref"] = await self.reference(PURCHASE)
        return await self.pharmacy.drafts.quote(**arguments)

    async def quote_sale(self, **changes: Any) -> None:
        """Quoted."""
        self.quote = await self._done(self.pharmacy, await self.quote_request(**changes))

    async def settle_request(self, **changes: Any) -> Any:
        """Settle with the quote's amounts under the seal."""
        arguments: dict[str, Any] = {
            "rx_no": self.rx_no,
            "quote_id": self.quote.quote_id,
            "amounts": known_amounts(self.quote.amounts),
            "seal_key": self.run.key(self.pharmacy.code),
        } | changes
        if "voucher_ref" not in arguments:
            arguments["voucher_ref"] = await self.reference(PURCHASE)
        return await self.pharmacy.drafts.settle(**arguments)

    async def settle(self) -> None:
        """Settled."""
        self.settlement_id = (await self._done(self.pharmacy, await self.settle_request())).settlement_id

    def lots(self, quantities: Mapping[int, str] | None = None, **changes: Any) -> list[signed_pb2.DispensedLot]:
        """Lots of everything (or of `quantities`), with a fresh trace code for each pack."""
        lots = []
        for line in self.sale_lines(quantities):
            codes = [f"8{int(self.rx_no[-12:]):012d}{next(self.run.packs):07d}" for _ in range(int(line.quantity))]
            fields: dict[str, Any] = {
                "line_no": line.line_no,
                "drug_code": line.drug_code,
                "quantity": line.quantity,
                "lot_no": "L20260901",
                "expires_on": "2099-08-31",
                "trace_codes": codes,
            }
            lots.append(signed_pb2.DispensedLot(**(fields | changes)))
        return lots

    async def dispense_request(self, **changes: Any) -> Any:
        """Dispense everything under the seal."""
        staff = self.pharmacy.staff
        arguments: dict[str, Any] = {
            "rx_no": self.rx_no,
            "settlement_id": self.settlement_id,
            "reviewer_code": staff["pharmacist"],
            "dispenser_code": staff["dispenser"],
            "checker_code": staff["checker"],
            "seal_key": self.run.key(self.pharmacy.code),
        } | changes
        if "lots" not in arguments:
            arguments["lots"] = self.lots()
        return await self.pharmacy.drafts.dispense(**arguments)

    async def dispense(self) -> None:
        """Goods out."""
        await self._done(self.pharmacy, await self.dispense_request())

    async def hand_over(self) -> None:
        """The patient has the goods, at the counter."""
        await self.pharmacy.client.hand_over(
            rx_no=self.rx_no,
            staff_code=self.pharmacy.staff["dispenser"],
            voucher_ref=await self.reference(PICK_UP),
            seal_key=self.run.key(self.pharmacy.code),
        )

    async def release_request(self) -> Any:
        """ReleaseOrder."""
        return await self.pharmacy.drafts.release(rx_no=self.rx_no, reason="缺货")

    async def deliver(self) -> None:
        """From settled to signed for at the door."""
        asked = await self.run.channel.client.request_delivery(
            person_no=self.person_no,
            rx_no=self.rx_no,
            pharmacy_code=self.pharmacy.code,
            address="示例路 1 号",
            phone="000-0000000",
        )
        self.delivery_no, self.sign_code = asked.delivery_no, asked.sign_code
        await self.dispense()
        pharmacy, courier = self.pharmacy.client, self.pharmacy.staff["courier"]
        await pharmacy.start_delivery(rx_no=self.rx_no, company="示例配送", courier_code=courier, distance_m=3_000)
        for step in (dispensing_pb2.DELIVERY_STEP_ON_THE_WAY, dispensing_pb2.DELIVERY_STEP_ARRIVE):
            await pharmacy.update_delivery(
                rx_no=self.rx_no, delivery_no=self.delivery_no, step=step, courier_code=courier
            )
        await pharmacy.sign_delivery(
            rx_no=self.rx_no,
            delivery_no=self.delivery_no,
            seal_key=self.run.key(self.pharmacy.code),
            sign_code=self.sign_code,
        )

    @staticmethod
    async def _done(party: Party, request: Any) -> Any:
        """Sends a request that ought to be accepted. Raises ClientFailure."""
        return await party.client.send(request)


def known_amounts(amounts: signed_pb2.ClaimAmounts) -> signed_pb2.ClaimAmounts:
    """The amounts as a careful client writes them into its own statement: without what it does not understand."""
    copy = signed_pb2.ClaimAmounts()
    copy.CopyFrom(amounts)
    copy.DiscardUnknownFields()
    return copy
