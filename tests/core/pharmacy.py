"""A pharmacy and a patient on their way with one prescription, for tests of decisions. Every part may be changed."""

from __future__ import annotations

from typing import Any

from erxhub.core.model import Accepted, Caller, Outcome
from erxhub.v1 import (
    common_pb2,
    dispensing_pb2,
    patient_pb2,
    registry_pb2,
    signed_pb2,
    state_pb2,
)
from tests.core import population as people
from tests.core.harness import World, evidence, signed
from tests.core.population import CHANNEL, accepted
from tests.core.test_prescription import AMLODIPINE, IRBESARTAN, MINUTE_MS, Rx, agency, drug, hospital_world

SHOP = people.PHARMACY
OTHER_SHOP = Caller("pharmacy", "P33010099103", people.AREA, b"q" * 32)

LIST_TYPE = "02122"
SETTLE_TYPE = "02121"
HAND_OVER_TYPE = "01302"

PICKUP = common_pb2.FULFILMENT_MODE_PICKUP
DELIVERY = common_pb2.FULFILMENT_MODE_DELIVERY

HOUR_MS = 60 * MINUTE_MS
POOLING = registry_pb2.AGREEMENT_KIND_POOLING
DUAL_CHANNEL = registry_pb2.AGREEMENT_KIND_DUAL_CHANNEL

KINDS = {
    "1": registry_pb2.PRACTITIONER_KIND_PHARMACIST,
    "2": registry_pb2.PRACTITIONER_KIND_DISPENSER,
    "3": registry_pb2.PRACTITIONER_KIND_DISPENSER,
    "4": registry_pb2.PRACTITIONER_KIND_COURIER,
}


def staff(shop: Caller, number: str) -> str:
    """Staff of a shop: 1 pharmacist, 2 and 3 dispensers, 4 courier."""
    return f"YS{shop.id[1:10]}{shop.id[-2:]}{number}"


def trace_code(number: int) -> str:
    return f"8{number:019d}"


def market(*drugs: Any) -> World:
    """The hospital's world with two pharmacies, their staff, keys and agreements."""
    world = hospital_world(
        *(
            drugs
            or (
                drug(AMLODIPINE),
                drug(IRBESARTAN, charge_class="02", prior_pay_ratio="0.10", payment_standard="30"),
            )
        )
    )
    agency(world, "RegisterInstitution", people.institution_request(OTHER_SHOP.id))
    agency(world, "SignAgreement", people.agreement_request(world, OTHER_SHOP.id))
    for shop in (SHOP, OTHER_SHOP):
        agency(world, "SignAgreement", people.agreement_request(world, shop.id, POOLING))
        agency(world, "RegisterSigningKey", people.key_request(world, shop.id, shop.id))
        for number, kind in KINDS.items():
            code = staff(shop, number)
            agency(
                world,
                "RegisterPractitioner",
                people.practitioner_request(code, kind=kind, practice_years=1, institution_codes=[shop.id]),
            )
            agency(world, "RegisterSigningKey", people.key_request(world, code, shop.id))
    return world


def change_agreement(
    world: World,
    shop: Caller,
    status: registry_pb2.AgreementStatus.ValueType,
    kind: registry_pb2.AgreementKind.ValueType = people.BASE,
) -> None:
    agency(
        world,
        "ChangeAgreementStatus",
        registry_pb2.ChangeAgreementStatusRequest(institution_code=shop.id, kind=kind, status=status, case_no="CASE-1"),
    )


def change_person(world: World, status: registry_pb2.PersonStatus.ValueType) -> None:
    agency(
        world,
        "ChangePersonStatus",
        registry_pb2.ChangePersonStatusRequest(person_no=people.PERSON_NO, status=status, reason="示例"),
    )


def change_practitioner(world: World, code: str, status: registry_pb2.PractitionerStatus.ValueType) -> None:
    request = registry_pb2.ChangePractitionerStatusRequest(practitioner_code=code, status=status, case_no="CASE-1")
    agency(world, "ChangePractitionerStatus", request)


class Visit:
    """One prescription at one pharmacy. Each method is one call; `…ed` methods go a whole way and return self."""

    def __init__(self, world: World, rx: Rx, shop: Caller = SHOP) -> None:
        self.world, self.rx, self.shop = world, rx, shop
        self.number = ""
        self.quote_reply = dispensing_pb2.QuoteSettlementResponse()
        self.settlement_id = ""
        self.delivery_no = ""
        self.sign_code = ""

    # ---- state ----

    @property
    def state(self) -> state_pb2.PrescriptionState:
        return self.rx.state

    @property
    def order(self) -> state_pb2.Order:
        """The newest order of this pharmacy."""
        return [order for order in self.state.orders if order.pharmacy_code == self.shop.id][-1]

    @property
    def account(self) -> state_pb2.AccountState:
        person = self.world.state("person", people.person_key(self.world))
        account = self.world.state("account", person.account_key)
        assert isinstance(account, state_pb2.AccountState)
        return account

    def events_since(self, count: int) -> list[str]:
        return [event for _, event, _ in self.world.events[count:]]

    # ---- calls ----

    def do(self, method: str, request: Any, content: common_pb2.Signed | None = None, **facts: Any) -> Outcome:
        proof = evidence({"statement": content}, **facts) if content is not None else None
        return self.world.do(self.shop, f"DispensingService/{method}", request, proof)

    def reference(self, business_type: str, person_no: str = people.PERSON_NO) -> str:
        return people.decoded(self.world, business_type, person_no, self.shop).voucher_ref

    def list_rx(self, reference: str = "", **page: Any) -> Outcome:
        request = dispensing_pb2.ListByVoucherRequest(
            voucher_ref=reference or self.reference(LIST_TYPE), page=common_pb2.Page(**page)
        )
        return self.do("ListByVoucher", request)

    def listed(self) -> Visit:
        reply = accepted(self.list_rx())
        self.number = next(row.authorization_no for row in reply.prescriptions if row.rx_no == self.rx.rx_no)
        return self

    def download(self, number: str | None = None, token: str = "") -> Outcome:
        number = (self.number if number is None else number) if not token else (number or "")
        return self.do(
            "DownloadPrescription",
            dispensing_pb2.DownloadPrescriptionRequest(authorization_no=number, rx_token=token),
        )

    def held(self) -> Visit:
        self.listed()
        accepted(self.download())
        return self

    def release(self, rx_no: str = "") -> Outcome:
        return self.do("ReleaseOrder", dispensing_pb2.ReleaseOrderRequest(rx_no=rx_no or self.rx.rx_no))

    def review(
        self,
        decision: signed_pb2.ReviewDecision.ValueType = signed_pb2.REVIEW_DECISION_PASS,
        key: str = "",
        facts: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Outcome:
        fields: dict[str, Any] = {
            "rx_no": self.rx.rx_no,
            "pharmacy_code": self.shop.id,
            "pharmacist_code": staff(self.shop, "1"),
            "decision": decision,
            "opinion": "用药合理",
            "prescription_sha256": self.state.prescription_sha256,
            "signed_at_ms": self.world.now_ms,
        }
        statement = signed_pb2.ReviewStatement(**(fields | changes))
        content = signed(statement, key or people.key_of(statement.pharmacist_code))
        request = dispensing_pb2.ReviewPrescriptionRequest(statement=content)
        return self.do("ReviewPrescription", request, content, **(facts or {}))

    def reviewed(self) -> Visit:
        self.held()
        accepted(self.review())
        return self

    @staticmethod
    def sale(line_no: int = 1, code: str = AMLODIPINE, quantity: str = "1", price: str = "20") -> signed_pb2.SaleLine:
        return signed_pb2.SaleLine(line_no=line_no, drug_code=code, quantity=quantity, unit_price=price)

    def both(self) -> list[signed_pb2.SaleLine]:
        """20.00 in class 01; 40.00 in class 02 with a standard of 30.00 and 10 % prior pay: in scope 20.00 + 27.00."""
        return [self.sale(), self.sale(2, IRBESARTAN, price="40")]

    def quote(self, *lines: signed_pb2.SaleLine, reference: str = "", **changes: Any) -> Outcome:
        fields: dict[str, Any] = {
            "rx_no": self.rx.rx_no,
            "voucher_ref": reference or self.reference(SETTLE_TYPE),
            "lines": lines or self.both(),
            "use_account": True,
        }
        outcome = self.do("QuoteSettlement", dispensing_pb2.QuoteSettlementRequest(**(fields | changes)))
        if isinstance(outcome, Accepted):
            assert isinstance(outcome.reply, dispensing_pb2.QuoteSettlementResponse)
            self.quote_reply = outcome.reply
        return outcome

    def quoted(self, *lines: signed_pb2.SaleLine) -> Visit:
        self.reviewed()
        accepted(self.quote(*lines))
        return self

    def sealed(self, statement: Any) -> common_pb2.Signed:
        return signed(statement, people.key_of(self.shop.id))

    def settle(
        self, reference: str | None = None, request_id: str = "", facts: dict[str, Any] | None = None, **changes: Any
    ) -> Outcome:
        fields: dict[str, Any] = {
            "rx_no": self.rx.rx_no,
            "pharmacy_code": self.shop.id,
            "quote_id": self.quote_reply.quote_id,
            "pay_mode": signed_pb2.PAY_MODE_INSURED,
            "amounts": self.quote_reply.amounts,
            "signed_at_ms": self.world.now_ms,
        }
        content = self.sealed(signed_pb2.SettleStatement(**(fields | changes)))
        request = dispensing_pb2.SettleRequest(
            request_id=request_id,
            statement=content,
            voucher_ref=self.reference(SETTLE_TYPE) if reference is None else reference,
        )
        return self.do("Settle", request, content, **(facts or {}))

    def settled(self, *lines: signed_pb2.SaleLine, request_id: str = "") -> Visit:
        self.quoted(*lines)
        self.settlement_id = accepted(self.settle(request_id=request_id)).settlement_id
        return self

    def pay_self(self, *lines: signed_pb2.SaleLine, total_fen: int = 6_000, **changes: Any) -> Outcome:
        amounts = signed_pb2.ClaimAmounts(
            total_fen=total_fen, own_pay_fen=total_fen, person_fen=total_fen, cash_fen=total_fen
        )
        fields: dict[str, Any] = {
            "quote_id": "",
            "pay_mode": signed_pb2.PAY_MODE_SELF,
            "amounts": amounts,
            "lines": lines or self.both(),
        }
        return self.settle("", **(fields | changes))

    def self_paid(self) -> Visit:
        self.reviewed()
        self.settlement_id = accepted(self.pay_self()).settlement_id
        return self

    def undo(self, settlement_id: str = "", request_id: str = "") -> Outcome:
        request = dispensing_pb2.UndoSettlementRequest(
            request_id=request_id,
            rx_no=self.rx.rx_no,
            settlement_id=settlement_id or self.settlement_id,
            reason="顾客退单",
        )
        return self.do("UndoSettlement", request)

    def reverse(self, original: str, transaction: str = "2102", **changes: Any) -> Outcome:
        request = dispensing_pb2.ReverseSettlementRequest(
            original_request_id=original, original_transaction=transaction, **changes
        )
        return self.do("ReverseSettlement", request)

    @staticmethod
    def lot(line_no: int = 1, code: str = AMLODIPINE, **changes: Any) -> signed_pb2.DispensedLot:
        fields: dict[str, Any] = {
            "line_no": line_no,
            "drug_code": code,
            "quantity": "1",
            "lot_no": "L1",
            "expires_on": "2027-12-31",
            "trace_codes": [trace_code(line_no)],
        }
        return signed_pb2.DispensedLot(**(fields | changes))

    def lots(self) -> list[signed_pb2.DispensedLot]:
        return [self.lot(), self.lot(2, IRBESARTAN)]

    def dispense(self, *lots: signed_pb2.DispensedLot, **changes: Any) -> Outcome:
        fields: dict[str, Any] = {
            "rx_no": self.rx.rx_no,
            "pharmacy_code": self.shop.id,
            "settlement_id": self.settlement_id,
            "reviewer_code": staff(self.shop, "1"),
            "dispenser_code": staff(self.shop, "2"),
            "checker_code": staff(self.shop, "3"),
            "lots": lots or self.lots(),
            "signed_at_ms": self.world.now_ms,
        }
        content = self.sealed(signed_pb2.DispenseStatement(**(fields | changes)))
        return self.do("Dispense", dispensing_pb2.DispenseRequest(statement=content), content)

    def dispensed(self) -> Visit:
        self.settled()
        accepted(self.dispense())
        return self

    def void(self) -> Outcome:
        return self.do("VoidDispense", dispensing_pb2.VoidDispenseRequest(rx_no=self.rx.rx_no, reason="缺货"))

    def hand_over(self, reference: str | None = None, **changes: Any) -> Outcome:
        fields: dict[str, Any] = {
            "rx_no": self.rx.rx_no,
            "pharmacy_code": self.shop.id,
            "staff_code": staff(self.shop, "2"),
            "signed_at_ms": self.world.now_ms,
        }
        content = self.sealed(signed_pb2.HandOverStatement(**(fields | changes)))
        shown = self.reference(HAND_OVER_TYPE) if reference is None else reference
        return self.do("HandOver", dispensing_pb2.HandOverRequest(statement=content, voucher_ref=shown), content)

    def start(self, **changes: Any) -> Outcome:
        fields: dict[str, Any] = {
            "rx_no": self.rx.rx_no,
            "company": "示例配送",
            "courier_code": staff(self.shop, "4"),
            "picked_up_at_ms": self.world.now_ms,
        }
        return self.do("StartDelivery", dispensing_pb2.StartDeliveryRequest(**(fields | changes)))

    def update(self, step: dispensing_pb2.DeliveryStep.ValueType, **changes: Any) -> Outcome:
        fields: dict[str, Any] = {
            "rx_no": self.rx.rx_no,
            "delivery_no": self.delivery_no,
            "step": step,
            "courier_code": staff(self.shop, "4"),
            "at_ms": self.world.now_ms,
        }
        return self.do("UpdateDelivery", dispensing_pb2.UpdateDeliveryRequest(**(fields | changes)))

    def sign(self, sign_code: str = "", reference: str = "", **changes: Any) -> Outcome:
        fields: dict[str, Any] = {
            "rx_no": self.rx.rx_no,
            "pharmacy_code": self.shop.id,
            "delivery_no": self.delivery_no,
            "signed_at_ms": self.world.now_ms,
        }
        content = self.sealed(signed_pb2.SignDeliveryStatement(**(fields | changes)))
        request = dispensing_pb2.SignDeliveryRequest(statement=content, sign_code=sign_code, voucher_ref=reference)
        return self.do("SignDelivery", request, content)

    # ---- the patient ----

    def patient(self, method: str, request_type: Any, channel: Caller = CHANNEL, **fields: Any) -> Outcome:
        given = {"person_no": people.PERSON_NO, "rx_no": self.rx.rx_no, **fields}
        return self.world.do(channel, f"PatientService/{method}", request_type(**given))

    def choose(self, shop: Caller | None = None, **changes: Any) -> Outcome:
        fields: dict[str, Any] = {"pharmacy_code": (shop or self.shop).id, "mode": PICKUP}
        return self.patient("ChoosePharmacy", patient_pb2.ChoosePharmacyRequest, **(fields | changes))

    def cancel(self, **changes: Any) -> Outcome:
        fields = {"pharmacy_code": self.shop.id} | changes
        return self.patient("CancelOrder", patient_pb2.CancelOrderRequest, **fields)

    def make_qr(self, **changes: Any) -> Outcome:
        return self.patient("MakeQr", patient_pb2.MakeQrRequest, **changes)

    def request_delivery(self, **changes: Any) -> Outcome:
        fields = {"pharmacy_code": self.shop.id, "address": "示例路1号", "phone": "13800000000"} | changes
        outcome = self.patient("RequestDelivery", patient_pb2.RequestDeliveryRequest, **fields)
        if isinstance(outcome, Accepted):
            assert isinstance(outcome.reply, patient_pb2.RequestDeliveryResponse)
            self.delivery_no, self.sign_code = outcome.reply.delivery_no, outcome.reply.sign_code
        return outcome

    def started(self) -> Visit:
        self.dispensed()
        accepted(self.request_delivery())
        accepted(self.start())
        return self

    def arrived(self) -> Visit:
        self.started()
        accepted(self.update(dispensing_pb2.DELIVERY_STEP_ON_THE_WAY))
        accepted(self.update(dispensing_pb2.DELIVERY_STEP_ARRIVE))
        return self


def visit(world: World | None = None, shop: Caller = SHOP, **changes: Any) -> Visit:
    """A fresh prescription that took effect, and a pharmacy that does not know it yet."""
    world = world or market()
    return Visit(world, Rx(world, **changes).uploaded(), shop)


def at(visit: Visit, shop: Caller) -> Visit:
    """The same prescription at another pharmacy."""
    return Visit(visit.world, visit.rx, shop)


def wrong_code(code: str) -> str:
    return f"{(int(code) + 1) % 1_000_000:06d}"
