"""Any sequence of commands around one prescription at two pharmacies, right and wrong ones alike.

Owns the commands by name. Every command may be refused: a play goes on whatever the answer is. It judges nothing; the
tests do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from erxhub.core.lifecycle import ENDED_ORDER, Machine
from erxhub.core.model import Accepted, Caller, Outcome, Refused
from erxhub.core.statuses import state_name
from erxhub.ports import SeededIds
from erxhub.v1 import common_pb2, dispensing_pb2, encounter_pb2, registry_pb2, signed_pb2, state_pb2, voucher_pb2
from tests.core import population as people
from tests.core.harness import SEED, World, evidence, signed
from tests.core.pharmacy import (
    DELIVERY,
    HAND_OVER_TYPE,
    HOUR_MS,
    LIST_TYPE,
    OTHER_SHOP,
    PICKUP,
    SETTLE_TYPE,
    SHOP,
    Visit,
    market,
    staff,
    trace_code,
    wrong_code,
)
from tests.core.population import AGENCY, CHANNEL, HOSPITAL
from tests.core.test_prescription import AMLODIPINE, DAY_MS, FREEZE, IRBESARTAN, MINUTE_MS, PHARMACIST, UNFREEZE, Rx

SHOPS: Mapping[str, Caller] = {"A": SHOP, "B": OTHER_SHOP}
NO_REFERENCE = "x" * 64
QUANTITIES = {1: "2", 2: "1"}
"""Prescribed of each line."""

Step = Callable[["Play"], Outcome | None]


@cache
def _begun() -> tuple[World, Rx]:
    """A prescription that is prechecked; copied for every play."""
    world = market()
    lines = [Rx.line(1, AMLODIPINE), Rx.line(2, IRBESARTAN)]
    for line in lines:
        line.quantity = QUANTITIES[line.line_no]
    return world, Rx(world, lines=lines).prechecked()


class Play:
    """One prescription, two pharmacies, and what each of them kept of the answers."""

    def __init__(self) -> None:
        begun = _begun()
        world = begun[0]
        # A compiled class with a constructor of its own cannot be copied. None of these changes any more, but the ids.
        apart = {id(each): each for each in (world.mac_keys, world.ids, *world.committed)}
        self.world, self.rx = copy.deepcopy(begun, apart)
        self.world.ids = SeededIds(SEED, world.ids.count)
        self.visits = {name: Visit(self.world, self.rx, shop) for name, shop in SHOPS.items()}
        self.settle_ids = {"A": "", "B": ""}
        self.undo_ids = {"A": "", "B": ""}
        self.code = "0" * 28
        self.encounter_id = self.rx.content.encounter_id
        self.sold: list[str] = []
        self.numbers = 0

    def number(self) -> int:
        """A number that was not used in this play."""
        self.numbers += 1
        return self.numbers

    # ---- things ----

    def _named(self, kind: str, space: str, key: bytes) -> Any:
        found = self.world.find(space, key)
        assert found is not None
        return self.world.state(kind, found)

    @property
    def voucher(self) -> state_pb2.VoucherState:
        """The code that was shown last."""
        mac = self.world.mac_keys.mac("voucher_code", self.code, 1)
        return self._named("voucher", "voucher_code", mac)  # type: ignore[no-any-return]

    @property
    def encounter(self) -> state_pb2.EncounterState:
        """The visit that the steps are about: the prescription's, until there is another one."""
        return self._named("encounter", "encounter", self.encounter_id.encode())  # type: ignore[no-any-return]

    @property
    def institution(self) -> state_pb2.InstitutionState:
        """Pharmacy A."""
        return self._named("institution", "institution", SHOP.id.encode())  # type: ignore[no-any-return]

    @property
    def pharmacist(self) -> state_pb2.PractitionerState:
        """The pharmacist of pharmacy A."""
        return self._named("practitioner", "practitioner", staff(SHOP, "1").encode())  # type: ignore[no-any-return]

    @property
    def person(self) -> state_pb2.PersonState:
        """The patient."""
        return self.world.state("person", people.person_key(self.world))  # type: ignore[no-any-return]

    # ---- proofs ----

    def issue(self, business_type: str) -> str:
        """A fresh code, or one that is nobody's while the person gets none."""
        request = voucher_pb2.IssueVoucherRequest(person_no=people.PERSON_NO, business_type=business_type)
        outcome = self.world.do(CHANNEL, "VoucherService/IssueVoucher", request)
        if isinstance(outcome, Accepted):
            assert isinstance(outcome.reply, voucher_pb2.IssueVoucherResponse)
            self.code = outcome.reply.voucher_code
        return self.code

    def decode(self, caller: Caller, business_type: str, code: str) -> Outcome:
        request = voucher_pb2.VerifyVoucherRequest(voucher_code=code, business_type=business_type)
        return self.world.do(caller, "VoucherService/VerifyVoucher", request)

    def reference(self, shop: str, business_type: str) -> str:
        """A live reference, or none."""
        outcome = self.decode(SHOPS[shop], business_type, self.issue(business_type))
        if isinstance(outcome, Refused):
            return NO_REFERENCE
        assert isinstance(outcome.reply, voucher_pb2.VerifyVoucherResponse)
        return outcome.reply.voucher_ref

    # ---- the order of a shop ----

    def order(self, shop: str) -> state_pb2.Order:
        """The newest order there; an empty one when there is none."""
        own = [order for order in self.rx.state.orders if order.pharmacy_code == SHOPS[shop].id]
        return own[-1] if own else state_pb2.Order()

    def sale(self, quantities: Mapping[int, str]) -> list[signed_pb2.SaleLine]:
        codes, prices = {1: AMLODIPINE, 2: IRBESARTAN}, {1: "20", 2: "40"}
        return [Visit.sale(number, codes[number], quantity, prices[number]) for number, quantity in quantities.items()]

    def left(self) -> dict[int, str]:
        """What may still be sold of each line."""
        left = {use.line_no: (use.prescribed_e4 - use.out_e4) // 10_000 for use in self.rx.state.lines}
        return {line_no: str(quantity) for line_no, quantity in left.items() if quantity}

    def lots(self, shop: str, *, code: str = "") -> list[signed_pb2.DispensedLot]:
        """What was paid for, each pack with a fresh trace code; the first one with `code` if given."""
        lots = []
        for line in self.order(shop).claim.lines:
            packs = line.quantity_e4 // 10_000
            codes = [trace_code(self.number()) for _ in range(packs)]
            if code and not lots:
                codes[0] = code
            lots.append(
                Visit.lot(line.line_no, line.drug_code, quantity=str(packs), trace_codes=codes),
            )
        return lots or [Visit.lot(1, AMLODIPINE, quantity="1", trace_codes=[trace_code(self.number())])]


# ---- hospital ----


def _upload(play: Play) -> Outcome:
    return play.rx.upload()


def _upload_reviewed_by_the_prescriber(play: Play) -> Outcome:
    play.rx.pharmacist_key = people.key_of(people.DOCTOR_CODE)
    try:
        return play.rx.upload(review={"pharmacist_code": people.DOCTOR_CODE})
    finally:
        play.rx.pharmacist_key = people.key_of(PHARMACIST)


def _revoke(play: Play) -> Outcome:
    return play.rx.revoke()


def _revoke_by_another_doctor(play: Play) -> Outcome:
    return play.rx.revoke(doctor_code=people.YOUNG_DOCTOR_CODE)


def _close_encounter(play: Play) -> Outcome:
    request = encounter_pb2.CloseEncounterRequest(encounter_id=play.encounter_id)
    return play.world.do(HOSPITAL, "EncounterService/CloseEncounter", request)


def _cancel_encounter(play: Play) -> Outcome:
    request = encounter_pb2.CancelEncounterRequest(encounter_id=play.encounter_id, reason="退号")
    return play.world.do(HOSPITAL, "EncounterService/CancelEncounter", request)


def _another_visit(play: Play) -> Outcome:
    """From here on the steps of a visit are about this one, an internet visit."""
    shown = play.decode(HOSPITAL, people.ONLINE_TYPE, play.issue(people.ONLINE_TYPE))
    number = getattr(shown.reply, "online_identity_no") if isinstance(shown, Accepted) else NO_REFERENCE  # noqa: B009
    request = people.registration(play.world, internet=True, online_identity_no=number)
    outcome = play.world.do(HOSPITAL, "EncounterService/RegisterEncounter", request)
    if isinstance(outcome, Accepted):
        play.encounter_id = getattr(outcome.reply, "encounter_id")  # noqa: B009
    return outcome


def _begin(play: Play) -> Outcome:
    request = encounter_pb2.StartEncounterRequest(encounter_id=play.encounter_id, doctor_code=people.DOCTOR_CODE)
    return play.world.do(HOSPITAL, "EncounterService/StartEncounter", request)


def _attest(play: Play) -> Outcome:
    request = encounter_pb2.AttestDoctorRequest(
        encounter_id=play.encounter_id, media_sha256=bytes(32), liveness_passed=True, attested_at_ms=play.world.now_ms
    )
    return play.world.do(HOSPITAL, "EncounterService/AttestDoctor", request)


def _prove_follow_up(play: Play) -> Outcome:
    request = encounter_pb2.ProveFollowUpRequest(
        encounter_id=play.encounter_id,
        disease_code="I10.x00x002",
        earlier_hospital_code=people.HOSPITAL_CODE,
        earlier_visit_on="2026-10-15",
    )
    return play.world.do(HOSPITAL, "EncounterService/ProveFollowUp", request)


def _diagnose(play: Play) -> Outcome:
    """With the doctor attested and the follow-up proven, as an internet visit needs."""
    _attest(play)
    _prove_follow_up(play)
    return people.record_diagnosis(play.world, play.encounter_id)


def _amend(play: Play) -> Outcome:
    content = signed(people.statement(play.world, play.encounter_id), people.key_of(people.DOCTOR_CODE))
    request = encounter_pb2.AmendDiagnosisRequest(encounter_id=play.encounter_id, statement=content, reason="更正")
    return play.world.do(HOSPITAL, "EncounterService/AmendDiagnosis", request, evidence({"statement": content}))


# ---- agency ----


def _freeze(play: Play) -> Outcome:
    request = registry_pb2.FreezePrescriptionRequest(rx_no=play.rx.rx_no, case_no="CASE-1")
    return play.world.do(AGENCY, FREEZE, request)


def _unfreeze(play: Play) -> Outcome:
    request = registry_pb2.UnfreezePrescriptionRequest(rx_no=play.rx.rx_no, case_no="CASE-1")
    return play.world.do(AGENCY, UNFREEZE, request)


def _person(status: registry_pb2.PersonStatus.ValueType) -> Step:
    def step(play: Play) -> Outcome:
        request = registry_pb2.ChangePersonStatusRequest(person_no=people.PERSON_NO, status=status, reason="示例")
        return play.world.do(AGENCY, "RegistryService/ChangePersonStatus", request)

    return step


def _agreement(status: registry_pb2.AgreementStatus.ValueType) -> Step:
    def step(play: Play) -> Outcome:
        request = registry_pb2.ChangeAgreementStatusRequest(
            institution_code=SHOP.id, kind=people.BASE, status=status, case_no="CASE-1"
        )
        return play.world.do(AGENCY, "RegistryService/ChangeAgreementStatus", request)

    return step


def _sign_agreement(play: Play) -> Outcome:
    request = people.agreement_request(play.world, SHOP.id, agreement_no=f"again-{play.number()}")
    return play.world.do(AGENCY, "RegistryService/SignAgreement", request)


def _pharmacist(status: registry_pb2.PractitionerStatus.ValueType) -> Step:
    def step(play: Play) -> Outcome:
        request = registry_pb2.ChangePractitionerStatusRequest(
            practitioner_code=staff(SHOP, "1"), status=status, case_no="CASE-1"
        )
        return play.world.do(AGENCY, "RegistryService/ChangePractitionerStatus", request)

    return step


# ---- voucher ----


def _decode_again(play: Play) -> Outcome:
    return play.decode(HOSPITAL, people.OFFLINE_TYPE, play.code)


def _decode_for_another_business(play: Play) -> Outcome:
    return play.decode(SHOP, HAND_OVER_TYPE, play.issue(SETTLE_TYPE))


def _decode_the_last_for_another_business(play: Play) -> Outcome:
    return play.decode(SHOP, HAND_OVER_TYPE, play.code)


def _revoke_code(play: Play) -> Outcome:
    return play.world.do(
        CHANNEL, "VoucherService/RevokeVoucher", voucher_pb2.RevokeVoucherRequest(voucher_code=play.code)
    )


def _show_a_code(play: Play) -> None:
    play.issue(people.OFFLINE_TYPE)


def _deactivate(play: Play) -> Outcome:
    request = voucher_pb2.DeactivateVoucherRequest(person_no=people.PERSON_NO)
    return play.world.do(CHANNEL, "VoucherService/DeactivateVoucher", request)


def _activate(play: Play) -> Outcome:
    request = voucher_pb2.ActivateVoucherRequest(
        person_no=people.PERSON_NO, identity_level=voucher_pb2.IDENTITY_LEVEL_REAL_PERSON
    )
    return play.world.do(CHANNEL, "VoucherService/ActivateVoucher", request)


# ---- pharmacies; each step is made for both ----


def _list(play: Play, shop: str) -> Outcome:
    visit = play.visits[shop]
    outcome = visit.list_rx(play.reference(shop, LIST_TYPE))
    if isinstance(outcome, Accepted):
        assert isinstance(outcome.reply, dispensing_pb2.ListByVoucherResponse)
        for row in outcome.reply.prescriptions:
            visit.number = row.authorization_no
    return outcome


def _download(play: Play, shop: str) -> Outcome:
    return play.visits[shop].download()


def _list_and_download(play: Play, shop: str) -> Outcome:
    _list(play, shop)
    return _download(play, shop)


def _resolve_and_download(play: Play, shop: str) -> Outcome:
    visit = play.visits[shop]
    made = visit.make_qr()
    if isinstance(made, Refused):
        return made
    resolved = visit.do("ResolveQr", dispensing_pb2.ResolveQrRequest(rx_qr=getattr(made.reply, "rx_qr")))  # noqa: B009
    if isinstance(resolved, Refused):
        return resolved
    return visit.download(token=getattr(resolved.reply, "rx_token"))  # noqa: B009


def _release(play: Play, shop: str) -> Outcome:
    return play.visits[shop].release()


def _review(decision: signed_pb2.ReviewDecision.ValueType) -> Callable[[Play, str], Outcome]:
    return lambda play, shop: play.visits[shop].review(decision)


def _review_by_the_prescriber(play: Play, shop: str) -> Outcome:
    return play.visits[shop].review(pharmacist_code=people.DOCTOR_CODE)


def _quote(play: Play, shop: str) -> Outcome:
    lines = play.sale(play.left() or QUANTITIES)
    return play.visits[shop].quote(*lines, reference=play.reference(shop, SETTLE_TYPE))


def _quote_a_part(play: Play, shop: str) -> Outcome:
    return play.visits[shop].quote(*play.sale({1: "1"}), reference=play.reference(shop, SETTLE_TYPE))


def _quote_too_much(play: Play, shop: str) -> Outcome:
    return play.visits[shop].quote(*play.sale({1: "3", 2: "1"}), reference=play.reference(shop, SETTLE_TYPE))


def _settle(play: Play, shop: str) -> Outcome:
    visit = play.visits[shop]
    request_id = f"settle-{shop}-{play.number():06d}"
    outcome = visit.settle(play.reference(shop, SETTLE_TYPE), request_id)
    if isinstance(outcome, Accepted):
        visit.settlement_id = getattr(outcome.reply, "settlement_id")  # noqa: B009
        play.settle_ids[shop] = request_id
    return outcome


def _pay_self(play: Play, shop: str) -> Outcome:
    visit = play.visits[shop]
    outcome = visit.pay_self(*play.sale({1: "1"}), total_fen=2_000)
    if isinstance(outcome, Accepted):
        visit.settlement_id = getattr(outcome.reply, "settlement_id")  # noqa: B009
    return outcome


def _undo(play: Play, shop: str) -> Outcome:
    request_id = f"undo-{shop}-{play.number():06d}"
    outcome = play.visits[shop].undo(play.visits[shop].settlement_id or "none", request_id)
    if isinstance(outcome, Accepted):
        play.undo_ids[shop] = request_id
    return outcome


def _reverse_settlement(play: Play, shop: str) -> Outcome:
    return play.visits[shop].reverse(play.settle_ids[shop] or f"never-arrived-{shop}")


def _reverse_undo(play: Play, shop: str) -> Outcome:
    return play.visits[shop].reverse(play.undo_ids[shop] or f"never-arrived-{shop}", "2103")


def _dispense(play: Play, shop: str) -> Outcome:
    lots = play.lots(shop)
    outcome = play.visits[shop].dispense(*lots)
    if isinstance(outcome, Accepted):
        play.sold += [code for lot in lots for code in lot.trace_codes]
    return outcome


def _dispense_a_sold_code(play: Play, shop: str) -> Outcome:
    return play.visits[shop].dispense(*play.lots(shop, code=play.sold[-1] if play.sold else ""))


def _dispense_checked_by_the_dispenser(play: Play, shop: str) -> Outcome:
    return play.visits[shop].dispense(*play.lots(shop), checker_code=staff(SHOPS[shop], "2"))


def _void(play: Play, shop: str) -> Outcome:
    return play.visits[shop].void()


def _hand_over(play: Play, shop: str) -> Outcome:
    return play.visits[shop].hand_over(play.reference(shop, HAND_OVER_TYPE))


def _request_delivery(play: Play, shop: str) -> Outcome:
    return play.visits[shop].request_delivery()


def _start(play: Play, shop: str) -> Outcome:
    return play.visits[shop].start()


def _update(step: dispensing_pb2.DeliveryStep.ValueType) -> Callable[[Play, str], Outcome]:
    return lambda play, shop: play.visits[shop].update(step)


def _received(play: Play, shop: str) -> Outcome:
    """Staff of the shop, not the courier, say that the goods are back."""
    step = dispensing_pb2.DELIVERY_STEP_RECEIVED
    return play.visits[shop].update(step, courier_code=staff(SHOPS[shop], "2"))


def _sign(play: Play, shop: str) -> Outcome:
    return play.visits[shop].sign(play.visits[shop].sign_code)


def _sign_with_a_wrong_code(play: Play, shop: str) -> Outcome:
    return play.visits[shop].sign(wrong_code(play.visits[shop].sign_code or "0"))


def _choose(mode: common_pb2.FulfilmentMode.ValueType) -> Callable[[Play, str], Outcome]:
    return lambda play, shop: play.visits[shop].choose(mode=mode)


def _cancel(play: Play, shop: str) -> Outcome:
    return play.visits[shop].cancel()


def _forward(play: Play, shop: str) -> Outcome:
    """The next step on the straight way from the upload to the patient's hands."""
    rx = play.rx.state
    if not rx.uploaded_version:
        return play.rx.upload()
    order = play.order(shop)
    status = state_name(Machine.ORDER, order.status)
    if status in ENDED_ORDER or status in {"–", "CREATED"}:
        return _list_and_download(play, shop)
    return _NEXT[status](play, shop)


def _after_goods_out(play: Play, shop: str) -> Outcome:
    delivery = state_name(Machine.DELIVERY, play.order(shop).delivery.status)
    return _start(play, shop) if delivery == "REQUESTED" else _hand_over(play, shop)


def _to_the_door(play: Play, shop: str) -> Outcome:
    """As forward, but the goods are brought."""
    order = play.order(shop)
    if (order.status, order.delivery.status) == (common_pb2.ORDER_STATUS_DISPENSED, 0):
        return _request_delivery(play, shop)
    return _forward(play, shop)


def _next_delivery_step(play: Play, shop: str) -> Outcome:
    delivery = state_name(Machine.DELIVERY, play.order(shop).delivery.status)
    return _NEXT_DELIVERY.get(delivery, _start)(play, shop)


_NEXT: Mapping[str, Callable[[Play, str], Outcome]] = {
    "HELD": _review(signed_pb2.REVIEW_DECISION_PASS),
    "REVIEWED": _quote,
    "PRESETTLED": _settle,
    "SETTLED": _dispense,
    "DISPENSED": _after_goods_out,
    "DELIVERING": _next_delivery_step,
}
_NEXT_DELIVERY: Mapping[str, Callable[[Play, str], Outcome]] = {
    "PICKED_UP": _update(dispensing_pb2.DELIVERY_STEP_ON_THE_WAY),
    "IN_TRANSIT": _update(dispensing_pb2.DELIVERY_STEP_ARRIVE),
    "ARRIVED": _sign,
    "REFUSED": _update(dispensing_pb2.DELIVERY_STEP_GO_BACK),
    "RETURNING": _received,
}

_AT_A_SHOP: Mapping[str, Callable[[Play, str], Outcome]] = {
    "forward": _forward,
    "to the door": _to_the_door,
    "list": _list,
    "download": _download,
    "list and download": _list_and_download,
    "resolve and download": _resolve_and_download,
    "release": _release,
    "pass": _review(signed_pb2.REVIEW_DECISION_PASS),
    "reject": _review(signed_pb2.REVIEW_DECISION_REJECT),
    "return to doctor": _review(signed_pb2.REVIEW_DECISION_RETURN_TO_DOCTOR),
    "review by the prescriber": _review_by_the_prescriber,
    "quote": _quote,
    "quote a part": _quote_a_part,
    "quote too much": _quote_too_much,
    "settle": _settle,
    "pay self": _pay_self,
    "undo": _undo,
    "reverse settlement": _reverse_settlement,
    "reverse undo": _reverse_undo,
    "dispense": _dispense,
    "dispense a sold code": _dispense_a_sold_code,
    "dispense checked by the dispenser": _dispense_checked_by_the_dispenser,
    "void": _void,
    "hand over": _hand_over,
    "request delivery": _request_delivery,
    "start": _start,
    "on the way": _update(dispensing_pb2.DELIVERY_STEP_ON_THE_WAY),
    "arrive": _update(dispensing_pb2.DELIVERY_STEP_ARRIVE),
    "refuse": _update(dispensing_pb2.DELIVERY_STEP_REFUSE),
    "lose": _update(dispensing_pb2.DELIVERY_STEP_LOSE),
    "go back": _update(dispensing_pb2.DELIVERY_STEP_GO_BACK),
    "received": _received,
    "sign": _sign,
    "sign with a wrong code": _sign_with_a_wrong_code,
    "choose for pick-up": _choose(PICKUP),
    "choose for delivery": _choose(DELIVERY),
    "cancel": _cancel,
}


def _advance(ms: int) -> Step:
    def step(play: Play) -> None:
        play.world.advance(ms)
        # A sweep: what is due is written down although nobody asked.
        play.world.fire_timers()

    return step


def _for(act: Callable[[Play, str], Outcome], shop: str) -> Step:
    return lambda play: act(play, shop)


STEPS: Mapping[str, Step] = {
    "upload": _upload,
    "upload reviewed by the prescriber": _upload_reviewed_by_the_prescriber,
    "revoke": _revoke,
    "revoke by another doctor": _revoke_by_another_doctor,
    "close encounter": _close_encounter,
    "cancel encounter": _cancel_encounter,
    "another visit": _another_visit,
    "begin it": _begin,
    "attest": _attest,
    "prove follow-up": _prove_follow_up,
    "diagnose": _diagnose,
    "amend": _amend,
    "freeze": _freeze,
    "unfreeze": _unfreeze,
    "pause person": _person(registry_pb2.PERSON_STATUS_PAUSED),
    "resume person": _person(registry_pb2.PERSON_STATUS_ACTIVE),
    "register death": _person(registry_pb2.PERSON_STATUS_DEAD),
    "suspend agreement": _agreement(registry_pb2.AGREEMENT_STATUS_SUSPENDED),
    "resume agreement": _agreement(registry_pb2.AGREEMENT_STATUS_ACTIVE),
    "end agreement": _agreement(registry_pb2.AGREEMENT_STATUS_TERMINATED),
    "sign agreement": _sign_agreement,
    "suspend pharmacist": _pharmacist(registry_pb2.PRACTITIONER_STATUS_SUSPENDED),
    "resume pharmacist": _pharmacist(registry_pb2.PRACTITIONER_STATUS_ACTIVE),
    "end pharmacist": _pharmacist(registry_pb2.PRACTITIONER_STATUS_TERMINATED),
    "show a code": _show_a_code,
    "decode again": _decode_again,
    "decode for another business": _decode_for_another_business,
    "decode the last for another business": _decode_the_last_for_another_business,
    "revoke code": _revoke_code,
    "deactivate": _deactivate,
    "activate": _activate,
    "a minute later": _advance(MINUTE_MS),
    "half an hour later": _advance(31 * MINUTE_MS),
    "two hours later": _advance(2 * HOUR_MS + MINUTE_MS),
    "four days later": _advance(4 * DAY_MS),
    **{f"{name} at {shop}": _for(act, shop) for name, act in _AT_A_SHOP.items() for shop in SHOPS},
}
"""Every command of a play by its name."""
