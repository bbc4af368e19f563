"""One actor of the demonstration, as a process of its own: `python -m erxhub.cli.demo_actor ROLE`.

Reads one JSON object a line from stdin ({"do": …, …}), makes the calls with its own certificate and keys, and answers
with one line: {"said": what a person wants to read, …}, or {"failed": …}. What passes between actors is only what
people would show or say: a code on a screen, a prescription number, a sign-for code.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from erxhub.cli.context import Context, Contexts
from erxhub.cli.session import client_of, connect
from erxhub.client import ClientFailure, HospitalClient, PatientClient, PharmacyClient
from erxhub.seed import SeedWorld, sample_diagnoses, sample_pdf, sample_prescription
from erxhub.v1 import common_pb2, dispensing_pb2, encounter_pb2, signed_pb2

if TYPE_CHECKING:
    from erxhub.client import Environment

CONSULT: Final = "01201"
DOWNLOAD: Final = "02122"
PURCHASE: Final = "02121"

Reply = dict[str, Any]


class Hospital:
    """The hospital's system; it speaks for the doctor and the hospital pharmacist."""

    def __init__(self, client: HospitalClient, context: Context) -> None:
        self._client = client
        self._context = context
        self._prescription = common_pb2.Prescription()
        self._encounter_id = ""
        self._name = ""

    async def visit(self, code: str) -> Reply:
        """Verify the code on the patient's screen, register, begin, record the diagnosis."""
        voucher = await self._client.verify_voucher(voucher_code=code, business_type=CONSULT)
        self._name = voucher.name
        visit = await self._client.register_encounter(
            person_no=voucher.person_no,
            visit_kind=common_pb2.VISIT_KIND_OFFLINE,
            certificate_type=encounter_pb2.VISIT_CERTIFICATE_TYPE_VOUCHER,
            med_type="11",
            voucher_ref=voucher.voucher_ref,
            department="心血管内科",
        )
        self._encounter_id = visit.encounter_id
        await self._client.start_encounter(encounter_id=visit.encounter_id, doctor_code=SeedWorld.doctor_code)
        diagnoses = sample_diagnoses()
        await self._client.record_diagnosis(
            encounter_id=visit.encounter_id,
            doctor_code=SeedWorld.doctor_code,
            diagnoses=diagnoses,
            doctor_key=self._context.signing_key(SeedWorld.doctor_code),
        )
        named = "、".join(f"{diagnosis.code} {diagnosis.name}" for diagnosis in diagnoses)
        return {
            "said": f"verified the e-voucher, registered visit {visit.encounter_id}; "
            f"doctor {SeedWorld.doctor_code} signed the diagnosis: {named}",
            "person_no": voucher.person_no,
        }

    async def prescribe(self, person_no: str, now_ms: int) -> Reply:
        """Pre-check, sign, upload."""
        self._prescription = sample_prescription(SeedWorld, self._encounter_id, person_no, now_ms, lines=2)
        checked = await self._client.precheck(prescription=self._prescription)
        document = signed_pb2.PrescriptionDocument(
            rx_no=checked.rx_no,
            rx_trace_code=checked.rx_trace_code,
            prescription=self._prescription,
            signed_at_ms=now_ms,
        )
        await self._client.upload(
            document=document,
            pharmacist_code=SeedWorld.hospital_pharmacist_code,
            doctor_key=self._context.signing_key(SeedWorld.doctor_code),
            pharmacist_key=self._context.signing_key(SeedWorld.hospital_pharmacist_code),
            seal_key=self._context.signing_key(self._context.id),
            file=sample_pdf(checked.rx_no),
        )
        lines = "; ".join(
            f"{line.generic_name} {line.quantity}{line.quantity_unit} ({line.drug_code})"
            for line in self._prescription.lines
        )
        return {
            "said": f"prescription {checked.rx_no}: {lines}; signed by doctor, hospital pharmacist and seal; uploaded",
            "rx_no": checked.rx_no,
        }


class Patient:
    """The patient's app: a channel that speaks for the patient."""

    def __init__(self, client: PatientClient, context: Context) -> None:
        self._client = client

    async def activate(self, person_no: str) -> Reply:
        """Activate the e-voucher on this channel."""
        await self._client.activate_voucher(person_no=person_no)
        return {"said": f"activated the e-voucher of person {person_no} in the app"}

    async def show(self, person_no: str, business_type: str, purpose: str) -> Reply:
        """Show a dynamic code."""
        issued = await self._client.issue_voucher(person_no=person_no, business_type=business_type)
        return {"said": f"shows a code that lives 60 seconds ({purpose})", "code": issued.voucher_code}

    async def deliver(self, person_no: str, rx_no: str) -> Reply:
        """Ask for delivery."""
        asked = await self._client.request_delivery(
            person_no=person_no,
            rx_no=rx_no,
            pharmacy_code=SeedWorld.pharmacy_code,
            address="示例路 1 号",
            phone="000-0000000",
        )
        return {
            "said": f"asks for delivery {asked.delivery_no}; the sign-for code is on the patient's screen only",
            "sign_code": asked.sign_code,
            "delivery_no": asked.delivery_no,
        }

    async def accesses(self, person_no: str, rx_no: str) -> Reply:
        """Who looked at the prescription."""
        listed = await self._client.list_accesses(person_no=person_no, rx_no=rx_no)
        who = sorted({f"{access.role} {access.institution}" for access in listed.accesses})
        return {"said": f"sees who accessed the prescription: {', '.join(who)}"}


class Pharmacy:
    """The pharmacy's system; it speaks for its pharmacist, dispenser, checker and courier."""

    def __init__(self, client: PharmacyClient, context: Context) -> None:
        self._client = client
        self._context = context
        self._download = dispensing_pb2.DownloadPrescriptionResponse()
        self._prescription = common_pb2.Prescription()
        self._settlement_id = ""

    async def _reference(self, code: str, business_type: str) -> str:
        verified = await self._client.verify_voucher(voucher_code=code, business_type=business_type)
        return verified.voucher_ref

    async def hold(self, code: str, rx_no: str) -> Reply:
        """List, download and hold; check the bytes before anything is believed."""
        offered = await self._client.list_by_voucher(voucher_ref=await self._reference(code, DOWNLOAD))
        chosen = next(item for item in offered.prescriptions if item.rx_no == rx_no)
        self._download = await self._client.download(authorization_no=chosen.authorization_no)
        document = signed_pb2.PrescriptionDocument.FromString(self._download.prescription.payload)
        self._prescription = document.prescription
        return {
            "said": f"downloaded {rx_no} and holds it for two hours; got the very bytes that were signed "
            f"({len(self._download.prescription.payload)} bytes, file {len(self._download.file.data)} bytes)"
        }

    async def review(self) -> Reply:
        """The pharmacist passes the prescription."""
        await self._client.review(
            rx_no=self._download.rx_no,
            pharmacist_code=SeedWorld.pharmacist_code,
            decision=signed_pb2.REVIEW_DECISION_PASS,
            opinion="用药合理",
            prescription=self._download.prescription,
            pharmacist_key=self._context.signing_key(SeedWorld.pharmacist_code),
        )
        return {"said": f"pharmacist {SeedWorld.pharmacist_code} reviewed and passed it"}

    async def settle(self, code: str) -> Reply:
        """Quote and settle."""
        reference = await self._reference(code, PURCHASE)
        lines = [
            signed_pb2.SaleLine(
                line_no=line.line_no, drug_code=line.drug_code, quantity=line.quantity, unit_price=line.unit_price
            )
            for line in self._prescription.lines
        ]
        quote = await self._client.quote(rx_no=self._download.rx_no, voucher_ref=reference, lines=lines)
        settled = await self._client.settle(
            rx_no=self._download.rx_no,
            quote_id=quote.quote_id,
            amounts=quote.amounts,
            voucher_ref=reference,
            seal_key=self._context.signing_key(self._context.id),
        )
        self._settlement_id = settled.settlement_id
        amounts = settled.amounts
        return {
            "said": f"settled {_yuan(amounts.total_fen)}: fund {_yuan(amounts.fund_fen)}, "
            f"personal account {_yuan(amounts.account_fen)}, cash {_yuan(amounts.cash_fen)}"
        }

    async def dispense(self) -> Reply:
        """Pick, check, out."""
        lots = []
        for line in self._prescription.lines:
            packs = int(line.quantity)
            codes = [f"8{self._download.rx_no[-15:]}{line.line_no:02d}{pack:02d}" for pack in range(packs)]
            lots.append(
                signed_pb2.DispensedLot(
                    line_no=line.line_no,
                    drug_code=line.drug_code,
                    quantity=line.quantity,
                    lot_no="L20260901",
                    expires_on="2099-08-31",
                    trace_codes=codes,
                )
            )
        await self._client.dispense(
            rx_no=self._download.rx_no,
            settlement_id=self._settlement_id,
            reviewer_code=SeedWorld.pharmacist_code,
            dispenser_code=SeedWorld.dispenser_code,
            checker_code=SeedWorld.checker_code,
            lots=lots,
            seal_key=self._context.signing_key(self._context.id),
        )
        count = sum(len(lot.trace_codes) for lot in lots)
        return {
            "said": f"{SeedWorld.dispenser_code} picked, {SeedWorld.checker_code} checked; "
            f"{count} packs left the shelf, each with its trace code"
        }

    async def bring(self, delivery_no: str) -> Reply:
        """The courier takes the goods to the door."""
        await self._client.start_delivery(
            rx_no=self._download.rx_no,
            company="示例配送",
            courier_code=SeedWorld.courier_code,
            distance_m=3_200,
        )
        for step in (dispensing_pb2.DELIVERY_STEP_ON_THE_WAY, dispensing_pb2.DELIVERY_STEP_ARRIVE):
            await self._client.update_delivery(
                rx_no=self._download.rx_no,
                delivery_no=delivery_no,
                step=step,
                courier_code=SeedWorld.courier_code,
            )
        return {"said": f"courier {SeedWorld.courier_code} took the goods and stands at the door"}

    async def sign(self, delivery_no: str, sign_code: str) -> Reply:
        """The patient says the sign-for code."""
        await self._client.sign_delivery(
            rx_no=self._download.rx_no,
            delivery_no=delivery_no,
            sign_code=sign_code,
            seal_key=self._context.signing_key(self._context.id),
        )
        return {"said": "the patient said the sign-for code; the delivery is signed"}


_ACTORS: Final[Mapping[str, Any]] = {"hospital": Hospital, "channel": Patient, "pharmacy": Pharmacy}


def _yuan(amount_fen: int) -> str:
    return f"¥{amount_fen // 100}.{amount_fen % 100:02d}"


async def _act(role: str) -> None:
    context = Contexts.load().pick(role, (role,))
    async with connect(context) as connection:
        actor = _ACTORS[role](client_of(context, connection), context)
        environment = connection.environment
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            print(json.dumps(await _answer(actor, environment, json.loads(line)), ensure_ascii=False), flush=True)


async def _answer(actor: Any, environment: Environment, asked: dict[str, Any]) -> Reply:
    do: Callable[..., Awaitable[Reply]] = getattr(actor, asked.pop("do"))
    if do.__name__ == "prescribe":
        asked["now_ms"] = environment.now_ms()
    try:
        return await do(**asked)
    except ClientFailure as failure:
        return {"failed": str(failure)}


if __name__ == "__main__":
    asyncio.run(_act(sys.argv[1]))
