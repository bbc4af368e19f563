"""The other parties of a case: robots that do what hospitals, pharmacies, patients, agencies and auditors do.

Owns: what a robot's verb takes and gives, and its honest way of doing it. Must never: call as what is under test, but
for the reads by which the judge looks at a prescription.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf import json_format

from erxhub.client import (
    AgencyClient,
    AuditorClient,
    Connection,
    HospitalClient,
    PatientClient,
    PharmacyClient,
    Refusal,
    RetryPolicy,
)
from erxhub.client.environment import Environment
from erxhub.conform.values import Named
from erxhub.conform.vocabulary import BUSINESS_TYPES
from erxhub.conform.world import INSTITUTIONS, STAFF, World
from erxhub.seed import SeedWorld, sample_pdf, sample_prescription
from erxhub.seed.world import AREA, AUDITOR, CHANNEL, PERSONS
from erxhub.v1 import audit_pb2, common_pb2, dispensing_pb2, encounter_pb2, signed_pb2

DAY_MS: Final = 86_400_000
CASE_REASON: Final = "conformance test 一致性测试"
RETRIES: Final = RetryPolicy(attempts=5, backoff_ms=20, backoff_max_ms=100)

CLIENTS: Final[Mapping[str, tuple[type[Any], str, str]]] = {
    "hospital": (HospitalClient, "hospital", INSTITUTIONS["hospital"]),
    "hospital_b": (HospitalClient, "hospital", INSTITUTIONS["hospital_b"]),
    "pharmacy": (PharmacyClient, "pharmacy", INSTITUTIONS["pharmacy"]),
    "pharmacy_b": (PharmacyClient, "pharmacy", INSTITUTIONS["pharmacy_b"]),
    "patient": (PatientClient, "channel", CHANNEL),
    "agency": (AgencyClient, "agency", AREA),
    "auditor": (AuditorClient, "auditor", AUDITOR),
}

_DECISIONS: Final[Mapping[str, signed_pb2.ReviewDecision.ValueType]] = {
    "pass": signed_pb2.REVIEW_DECISION_PASS,
    "reject": signed_pb2.REVIEW_DECISION_REJECT,
    "return": signed_pb2.REVIEW_DECISION_RETURN_TO_DOCTOR,
}
_STEPS_TO: Final[Mapping[str, tuple[str, ...]]] = {
    "effective": (),
    "revoked": ("revoke",),
    "held": ("hold",),
    "reviewed": ("hold", "review"),
    "quoted": ("hold", "review", "quote"),
    "settled": ("hold", "review", "quote", "settle"),
    "dispensed": ("hold", "review", "quote", "settle", "dispense"),
    "handed_over": ("hold", "review", "quote", "settle", "dispense", "hand_over"),
}


class _HubTime:
    """The robots' clock is the hub's; their waiting is real, and short."""

    def __init__(self, world: World) -> None:
        self._world = world

    def now_ms(self) -> int:
        return self._world.now_ms

    def below(self, bound: int) -> int:
        # No chance: the same seed gives the same run.
        return bound // 2

    async def sleep_ms(self, duration_ms: int) -> None:
        await self._world.environment.sleep_ms(duration_ms)


class _Numbered:
    """Request ids that are the same in every run with the same steps."""

    def __init__(self, namespace: str) -> None:
        self._prefix = hashlib.sha256(namespace.encode()).hexdigest()[:8]
        self._numbers = itertools.count(1)

    def new(self) -> str:
        return f"robot-{self._prefix}-{next(self._numbers):08d}"


@dataclass(slots=True)
class Prescription:
    """A prescription that a robot issued, or that the product issued and a robot goes on with."""

    rx_no: str
    issued_by: str = "hospital"
    person_no: str = ""
    content: common_pb2.Prescription = field(default_factory=common_pb2.Prescription)
    downloads: dict[str, dispensing_pb2.DownloadPrescriptionResponse] = field(default_factory=dict)
    quotes: dict[str, dispensing_pb2.QuoteSettlementResponse] = field(default_factory=dict)
    settlements: dict[str, str] = field(default_factory=dict)

    def named(self, **more: Any) -> Named:
        """As cases refer to it."""
        content = self.content
        fields = {
            "rx_no": self.rx_no,
            "hospital_rx_no": content.hospital_rx_no,
            "person_no": self.person_no,
            "encounter_id": content.encounter_id,
            "valid_until_ms": content.valid_until_ms,
            "issued_by": self.issued_by,
        }
        return Named(self.rx_no, fields | more)


class Robots:
    """All other parties in one namespace."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.prescriptions: dict[str, Prescription] = {}
        """By number."""
        self._environment: Environment = _HubTime(world)
        self._ids = _Numbered(world.name)
        self._stack = AsyncExitStack()
        self._clients: dict[str, Any] = {}
        self._activated: set[str] = set()
        self._packs = itertools.count(1)

    async def close(self) -> None:
        """Ends their connections."""
        await self._stack.aclose()

    async def client(self, actor: str) -> Any:
        """The client of an actor, connected once."""
        if actor not in self._clients:
            kind, role, peer_id = CLIENTS[actor]
            connection = Connection(
                self.world.target,
                await self.world.identity(role, peer_id),
                environment=self._environment,
                retry=RETRIES,
            )
            await self._stack.enter_async_context(connection)
            reason = {"case_reason": CASE_REASON} if kind is AuditorClient else {}
            self._clients[actor] = kind(connection, request_ids=self._ids, **reason)
        return self._clients[actor]

    async def do(self, actor: str, verb: str, args: Mapping[str, Any]) -> Any:
        """One verb; what it gives to later steps. Raises ClientFailure, KeyError for a missing argument."""
        method: Callable[..., Awaitable[Any]] = getattr(self, f"_{actor.removesuffix('_b')}_{verb}")
        return await method(actor, **args)

    async def prepare(self, state: str, rx_no: str, pharmacy: str) -> None:
        """Brings an effective prescription on, as `pharmacy`; to `revoked` as its issuer."""
        for verb in _STEPS_TO[state]:
            actor = self._known(rx_no).issued_by if verb == "revoke" else pharmacy
            await self.do(actor, verb, {"rx": rx_no})

    def _known(self, rx_no: str) -> Prescription:
        """What is known of a prescription; one that the product issued is met here first."""
        return self.prescriptions.setdefault(rx_no, Prescription(rx_no))

    # ---- patient ----

    async def show_code(self, person_no: str, business_type: str, delegate_no: str = "") -> str:
        """A fresh e-voucher code of the person, shown by him or a delegate; activates his voucher the first time."""
        patient: PatientClient = await self.client("patient")
        business_type = BUSINESS_TYPES.get(business_type, business_type)
        try:
            issued = await patient.issue_voucher(
                person_no=person_no, business_type=business_type, delegate_person_no=delegate_no
            )
        except Refusal as refusal:
            if refusal.code != "VCH_REVOKED" or person_no in self._activated:
                raise
            self._activated.add(person_no)
            await patient.activate_voucher(person_no=person_no)
            issued = await patient.issue_voucher(
                person_no=person_no, business_type=business_type, delegate_person_no=delegate_no
            )
        return issued.voucher_code

    async def _patient_choose_pharmacy(
        self, actor: str, *, rx: str, pharmacy: str, mode: str = "pickup"
    ) -> dict[str, Any]:
        patient: PatientClient = await self.client(actor)
        await patient.choose_pharmacy(
            person_no=self._person_of(rx),
            rx_no=rx,
            pharmacy_code=INSTITUTIONS.get(pharmacy, pharmacy),
            mode=common_pb2.FulfilmentMode.Value(f"FULFILMENT_MODE_{mode.upper()}"),
        )
        return {"rx_no": rx}

    async def _patient_cancel_order(self, actor: str, *, rx: str, pharmacy: str) -> dict[str, Any]:
        patient: PatientClient = await self.client(actor)
        await patient.cancel_order(
            person_no=self._person_of(rx), rx_no=rx, pharmacy_code=INSTITUTIONS.get(pharmacy, pharmacy)
        )
        return {"rx_no": rx}

    async def _patient_make_qr(self, actor: str, *, rx: str) -> Named:
        patient: PatientClient = await self.client(actor)
        made = await patient.make_qr(person_no=self._person_of(rx), rx_no=rx)
        return Named(made.rx_qr, {"rx_qr": made.rx_qr, "rx_no": rx})

    async def _patient_request_delivery(self, actor: str, *, rx: str, pharmacy: str) -> dict[str, Any]:
        patient: PatientClient = await self.client(actor)
        asked = await patient.request_delivery(
            person_no=self._person_of(rx),
            rx_no=rx,
            pharmacy_code=INSTITUTIONS.get(pharmacy, pharmacy),
            address="示例路 1 号",
            phone="000-0000000",
        )
        return {"rx_no": rx, "delivery_no": asked.delivery_no, "sign_code": asked.sign_code}

    def _person_of(self, rx_no: str) -> str:
        return self._known(rx_no).person_no or self.world.person_no("")

    # ---- hospital ----

    async def _hospital_issue(
        self,
        actor: str,
        *,
        person: str = "P01",
        lines: int = 2,
        valid_days: int = 0,
        overrides: Mapping[str, Any] | None = None,
        price_fen: int = 0,
    ) -> Named:
        hospital: HospitalClient = await self.client(actor)
        institution, staff = INSTITUTIONS[actor], STAFF[actor]
        person_no = self.world.persons.get(person, person)
        voucher = await hospital.verify_voucher(
            voucher_code=await self.show_code(person_no, "consult"), business_type=BUSINESS_TYPES["consult"]
        )
        visit = await hospital.register_encounter(
            person_no=person_no,
            visit_kind=common_pb2.VISIT_KIND_OFFLINE,
            certificate_type=encounter_pb2.VISIT_CERTIFICATE_TYPE_VOUCHER,
            med_type="11",
            voucher_ref=voucher.voucher_ref,
            department="全科",
        )
        await hospital.start_encounter(encounter_id=visit.encounter_id, doctor_code=staff["doctor"])
        content = self._written(actor, visit.encounter_id, person_no, lines, valid_days, price_fen)
        json_format.ParseDict(dict(overrides or {}), content)
        await hospital.record_diagnosis(
            encounter_id=visit.encounter_id,
            doctor_code=staff["doctor"],
            diagnoses=content.diagnoses,
            doctor_key=self.world.key(staff["doctor"]),
        )
        checked = await hospital.precheck(prescription=content)
        await hospital.upload(
            document=signed_pb2.PrescriptionDocument(
                rx_no=checked.rx_no,
                rx_trace_code=checked.rx_trace_code,
                prescription=content,
                signed_at_ms=self.world.now_ms,
            ),
            pharmacist_code=staff["pharmacist"],
            doctor_key=self.world.key(staff["doctor"]),
            pharmacist_key=self.world.key(staff["pharmacist"]),
            seal_key=self.world.key(institution),
            file=sample_pdf(checked.rx_no),
        )
        issued = Prescription(checked.rx_no, actor, person_no, content)
        self.prescriptions[issued.rx_no] = issued
        return issued.named()

    def _written(
        self, actor: str, encounter_id: str, person_no: str, lines: int, valid_days: int, price_fen: int
    ) -> common_pb2.Prescription:
        seeded = person_no if any(one.person_no == person_no for one in PERSONS) else SeedWorld.person_no
        content = sample_prescription(SeedWorld, encounter_id, seeded, self.world.now_ms, lines)
        content.person_no = person_no
        content.hospital_code = INSTITUTIONS[actor]
        content.doctor_code = STAFF[actor]["doctor"]
        if valid_days:
            content.valid_days = valid_days
            content.valid_until_ms = content.prescribed_at_ms + valid_days * DAY_MS
        if price_fen:
            first = content.lines[0]
            first.unit_price = f"{price_fen // 100}.{price_fen % 100:02d}"
            first.amount_fen = price_fen * int(first.quantity)
        return content

    async def _hospital_revoke(self, actor: str, *, rx: str, reason: str = "开具有误") -> dict[str, Any]:
        hospital: HospitalClient = await self.client(actor)
        await hospital.revoke(rx_no=rx, doctor_code=STAFF[actor]["doctor"], reason=reason)
        return {"rx_no": rx}

    # ---- pharmacy ----

    async def _reference(self, actor: str, rx_no: str, business: str) -> str:
        pharmacy: PharmacyClient = await self.client(actor)
        code = await self.show_code(self._person_of(rx_no), business)
        verified = await pharmacy.verify_voucher(voucher_code=code, business_type=BUSINESS_TYPES[business])
        return verified.voucher_ref

    async def _pharmacy_hold(self, actor: str, *, rx: str) -> dict[str, Any]:
        pharmacy: PharmacyClient = await self.client(actor)
        reference, page = await self._reference(actor, rx, "download"), ""
        while True:
            listed = await pharmacy.list_by_voucher(voucher_ref=reference, page_token=page)
            chosen = next((one for one in listed.prescriptions if one.rx_no == rx), None)
            page = listed.next_page_token
            if chosen is not None or not page:
                break
        if chosen is None:
            raise KeyError(f"prescription {rx} is not offered to {actor}")
        download = await pharmacy.download(authorization_no=chosen.authorization_no)
        known = self._known(rx)
        known.downloads[actor] = download
        known.content = signed_pb2.PrescriptionDocument.FromString(download.prescription.payload).prescription
        return {"rx_no": rx}

    async def _pharmacy_review(
        self, actor: str, *, rx: str, decision: str = "pass", opinion: str = "用药合理"
    ) -> dict[str, Any]:
        pharmacy: PharmacyClient = await self.client(actor)
        pharmacist = STAFF[actor]["pharmacist"]
        await pharmacy.review(
            rx_no=rx,
            pharmacist_code=pharmacist,
            decision=_DECISIONS[decision],
            opinion=opinion,
            prescription=self._known(rx).downloads[actor].prescription,
            pharmacist_key=self.world.key(pharmacist),
        )
        return {"rx_no": rx}

    async def _pharmacy_quote(self, actor: str, *, rx: str) -> dict[str, Any]:
        pharmacy: PharmacyClient = await self.client(actor)
        known = self._known(rx)
        lines = [
            signed_pb2.SaleLine(
                line_no=line.line_no,
                drug_code=line.drug_code,
                quantity=line.quantity,
                unit_price=line.unit_price,
            )
            for line in known.content.lines
        ]
        known.quotes[actor] = await pharmacy.quote(
            rx_no=rx, voucher_ref=await self._reference(actor, rx, "purchase"), lines=lines
        )
        return {"rx_no": rx}

    async def _pharmacy_settle(self, actor: str, *, rx: str) -> dict[str, Any]:
        pharmacy: PharmacyClient = await self.client(actor)
        known = self._known(rx)
        settled = await pharmacy.settle(
            rx_no=rx,
            quote_id=known.quotes[actor].quote_id,
            amounts=known.quotes[actor].amounts,
            voucher_ref=await self._reference(actor, rx, "purchase"),
            seal_key=self.world.key(INSTITUTIONS[actor]),
        )
        known.settlements[actor] = settled.settlement_id
        return {"rx_no": rx, "settlement_id": settled.settlement_id}

    async def _pharmacy_dispense(self, actor: str, *, rx: str) -> dict[str, Any]:
        pharmacy: PharmacyClient = await self.client(actor)
        known, staff = self._known(rx), STAFF[actor]
        await pharmacy.dispense(
            rx_no=rx,
            settlement_id=known.settlements[actor],
            reviewer_code=staff["pharmacist"],
            dispenser_code=staff["dispenser"],
            checker_code=staff["checker"],
            lots=[self._lot(rx, line) for line in known.content.lines],
            seal_key=self.world.key(INSTITUTIONS[actor]),
        )
        return {"rx_no": rx}

    def _lot(self, rx_no: str, line: common_pb2.RxLine) -> signed_pb2.DispensedLot:
        codes = [f"8{int(rx_no[-12:]):012d}{next(self._packs):07d}" for _ in range(int(line.quantity))]
        return signed_pb2.DispensedLot(
            line_no=line.line_no,
            drug_code=line.drug_code,
            quantity=line.quantity,
            lot_no="L20260901",
            expires_on="2099-08-31",
            trace_codes=codes,
        )

    async def _pharmacy_hand_over(self, actor: str, *, rx: str) -> dict[str, Any]:
        pharmacy: PharmacyClient = await self.client(actor)
        await pharmacy.hand_over(
            rx_no=rx,
            staff_code=STAFF[actor]["dispenser"],
            voucher_ref=await self._reference(actor, rx, "pick_up"),
            seal_key=self.world.key(INSTITUTIONS[actor]),
        )
        return {"rx_no": rx}

    async def _pharmacy_release(self, actor: str, *, rx: str, reason: str = "缺货") -> dict[str, Any]:
        pharmacy: PharmacyClient = await self.client(actor)
        await pharmacy.release(rx_no=rx, reason=reason)
        return {"rx_no": rx}

    async def _pharmacy_undo(self, actor: str, *, rx: str, reason: str = "患者取消") -> dict[str, Any]:
        pharmacy: PharmacyClient = await self.client(actor)
        await pharmacy.undo_settlement(rx_no=rx, settlement_id=self._known(rx).settlements[actor], reason=reason)
        return {"rx_no": rx}

    # ---- agency ----

    async def _agency_freeze(self, actor: str, *, rx: str, case_no: str = "CASE-1") -> dict[str, Any]:
        agency: AgencyClient = await self.client(actor)
        await agency.freeze_prescription(rx_no=rx, case_no=case_no)
        return {"rx_no": rx}

    async def _agency_unfreeze(self, actor: str, *, rx: str, case_no: str = "CASE-1") -> dict[str, Any]:
        agency: AgencyClient = await self.client(actor)
        await agency.unfreeze_prescription(rx_no=rx, case_no=case_no)
        return {"rx_no": rx}

    # ---- auditor ----

    async def _auditor_trace(self, actor: str, *, rx: str) -> dict[str, Any]:
        traced = await self.trace(rx)
        return {
            "rx_no": rx,
            "light": audit_pb2.Light.Name(traced.light).removeprefix("LIGHT_"),
            "gaps": list(traced.gaps),
            "verified": traced.verified and not traced.findings,
        }

    async def _auditor_verify_ledger(self, actor: str) -> dict[str, Any]:
        auditor: AuditorClient = await self.client(actor)
        reply = await auditor.verify_ledger()
        return {"verified": reply.verified and not reply.findings, "entries": reply.entries}

    async def trace(self, rx_no: str) -> audit_pb2.TraceChainResponse:
        """A prescription's whole chain, verified."""
        auditor: AuditorClient = await self.client("auditor")
        return await auditor.trace(rx_no=rx_no, verify=True)
