"""Pharmacy robots: a prescription from the counter to the patient's hands, with every detour that the hub offers."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final

from erxhub.v1 import common_pb2, dispensing_pb2, signed_pb2
from tests.simulation.cast import MINUTE_MS, PERSONS, UNREGISTERED, Shop
from tests.simulation.desk import HAND_OVER, LIST, VISIT, Desk, Journey, Rx, Step
from tests.simulation.patient import cancel, choose, make_qr, request_delivery
from tests.simulation.sale import Sale
from tests.simulation.wire import Answer, Call

_DELIVERY: Final = common_pb2.FULFILMENT_MODE_DELIVERY
_STEP: Final = dispensing_pb2

DETOURS: Final = (
    "again",
    "cancel",
    "deliver",
    "lapse",
    "lose",
    "never arrived",
    "not passed",
    "part",
    "qr",
    "quote again",
    "refuse",
    "release",
    "reverse",
    "self pay",
    "sign by voucher",
    "undo",
    "void",
    "withdrawn",
    "wrong code",
)
"""Detours of a sale by name."""


def fill(desk: Desk) -> Journey:
    """One customer with one prescription at one pharmacy."""
    rx = desk.prescription()
    if rx is None:
        return
    yield from fill_this(desk, rx, desk.shop())


def fill_this(desk: Desk, rx: Rx, shop: Shop) -> Journey:
    """This prescription at this pharmacy."""
    counter = _Counter(desk, rx, shop)
    if not (yield from counter.hold()):
        return
    if not (yield from counter.review()):
        return
    if desk.slip("settle"):
        # Nothing leaves the shelf before it is paid.
        yield counter.dispense()
    if not (yield from counter.pay()):
        return
    if not (yield from counter.hand_out()):
        return
    yield from counter.bring()


class _Counter(Sale):
    """The same sale when it is paid: the goods, and their way."""

    def hand_out(self) -> Generator[Call, Answer, bool]:
        """Take the goods from the shelf."""
        desk = self.desk
        if desk.maybe(0.3, "deliver"):
            yield from self._ask_for_delivery()
        if desk.maybe(0.05):
            # Nothing leaves the house before it is out.
            yield self.start()
        sold = desk.board.sold_codes
        answer = yield from desk.attempt(
            "dispense",
            self.dispense,
            lambda: self.dispense(lots=self.lots(trace_codes=[desk.pick(sold)] if sold else ["8" * 20])),
            lambda: self.dispense(lots=self.lots(trace_codes=[sold[-1] if sold else "8" * 20])),
            lambda: self.dispense(lots=self.lots(trace_codes=[])),
            lambda: self.dispense(lots=self.lots(trace_codes=["not a code"])),
            lambda: self.dispense(lots=self.lots(expires_on="2026-01-31")),
            lambda: self.dispense(lots=self.lots(quantity="98")),
            lambda: self.dispense(lots=self.lots(drug_code="XZ99")),
            lambda: self.dispense(lots=self.lots(line_no=66)),
            lambda: self.dispense(checker_code=self.shop.dispensers[0]),
            lambda: self.dispense(dispenser_code=self.shop.courier),
            lambda: self.dispense(reviewer_code=self.shop.dispensers[1]),
            lambda: self.dispense(settlement_id="nothing"),
            lambda: self.dispense(owner="stranger"),
        )
        if answer.ok:
            desk.board.sold_codes += self.packed
            self.rx.over = answer.reply.statuses.use == common_pb2.RX_USE_STATUS_USED
        return answer.ok

    def lots(self, **changes: Any) -> list[signed_pb2.DispensedLot]:
        """What was sold, each pack with a fresh trace code; `changes` concern the first line."""
        board = self.desk.board
        lots = []
        prescribed = {line.line_no: line.drug_code for line in self.rx.content.lines}
        for line_no, packs in self.selling.items():
            codes = []
            for _ in range(packs):
                board.packs += 1
                codes.append(f"8{board.packs:019d}")
            fields: dict[str, Any] = {
                "line_no": line_no,
                "drug_code": prescribed[line_no],
                "quantity": str(packs),
                "lot_no": "L1",
                "expires_on": "2028-12-31",
                "trace_codes": codes,
            }
            given = changes if not lots else {}
            if len(given.get("trace_codes", ())) == 1 and packs > 1:
                given = {"trace_codes": [*given["trace_codes"], *codes[1:]]}
            lots.append(signed_pb2.DispensedLot(**(fields | given)))
        return lots

    def dispense(self, *, lots: list[signed_pb2.DispensedLot] | None = None, owner: str = "", **changes: Any) -> Call:
        """Pick, check and out; right in everything but the changes."""
        fields: dict[str, Any] = {
            "rx_no": self.rx.rx_no,
            "pharmacy_code": self.caller.id,
            "settlement_id": self.settlement_id,
            "reviewer_code": self.shop.pharmacist,
            "dispenser_code": self.shop.dispensers[0],
            "checker_code": self.shop.dispensers[1],
            "lots": self.lots() if lots is None else lots,
            "signed_at_ms": self.desk.now_ms,
        }
        statement = signed_pb2.DispenseStatement(**(fields | changes))
        self.packed = [code for lot in statement.lots for code in lot.trace_codes]
        return self.call("Dispense", dispensing_pb2.DispenseRequest(statement=self.sealed(statement, owner)), statement)

    # ---- to the patient ----

    def bring(self) -> Journey:
        """Over the counter or to the door."""
        desk = self.desk
        if desk.maybe(0.04):
            yield self.undo()
        if desk.maybe(0.03):
            yield self.void()
        if desk.maybe(0.15, "deliver") and not self.delivery_no:
            yield from self._ask_for_delivery()
        if self.delivery_no and desk.maybe(0.9):
            yield from self._delivered()
            return
        # A customer who never comes back leaves the goods where they are.
        if desk.maybe(0.05):
            return
        reference = yield from desk.proof(self.caller, self.rx.person, HAND_OVER)
        yield from desk.attempt(
            "hand over",
            lambda: self.hand_over(reference),
            lambda: self.hand_over("r" * 64),
            lambda: self.hand_over(reference, staff_code=self.shop.courier),
            lambda: self.hand_over(reference, rx_no="330100" + "5" * 21),
            lambda: self.update(_STEP.DELIVERY_STEP_ARRIVE),
        )
        if desk.maybe(0.04):
            yield self.hand_over(reference)

    def hand_over(self, reference: str, **changes: Any) -> Call:
        """Over the counter."""
        fields: dict[str, Any] = {
            "rx_no": self.rx.rx_no,
            "pharmacy_code": self.caller.id,
            "staff_code": self.shop.dispensers[0],
            "signed_at_ms": self.desk.now_ms,
        }
        statement = signed_pb2.HandOverStatement(**(fields | changes))
        request = dispensing_pb2.HandOverRequest(statement=self.sealed(statement), voucher_ref=reference)
        return self.call("HandOver", request, statement)

    def _ask_for_delivery(self) -> Step:
        answer = yield request_delivery(self.desk, self.rx, self.shop)
        if answer.ok:
            self.delivery_no, self.sign_code = answer.reply.delivery_no, answer.reply.sign_code
        return answer

    def start(self, **changes: Any) -> Call:
        """The courier takes the goods."""
        fields: dict[str, Any] = {
            "rx_no": self.rx.rx_no,
            "company": "示例配送",
            "courier_code": self.shop.courier,
            "picked_up_at_ms": self.desk.now_ms,
        }
        return self.call("StartDelivery", dispensing_pb2.StartDeliveryRequest(**(fields | changes)))

    def update(self, step: dispensing_pb2.DeliveryStep.ValueType, **changes: Any) -> Call:
        """One step on the way."""
        fields: dict[str, Any] = {
            "rx_no": self.rx.rx_no,
            "delivery_no": self.delivery_no or "D0",
            "step": step,
            "courier_code": self.shop.courier,
            "at_ms": self.desk.now_ms,
        }
        return self.call("UpdateDelivery", dispensing_pb2.UpdateDeliveryRequest(**(fields | changes)))

    def _delivered(self) -> Journey:
        desk = self.desk
        answer = yield from desk.attempt(
            "deliver",
            self.start,
            lambda: self.start(courier_code=self.shop.dispensers[0]),
            lambda: self.start(picked_up_at_ms=desk.now_ms + MINUTE_MS),
            lambda: self.update(_STEP.DELIVERY_STEP_ON_THE_WAY),
            lambda: self.start(distance_m=500_000, courier_code="nobody"),
        )
        if not answer.ok:
            return
        if desk.maybe(0.08, "lose"):
            yield self.update(_STEP.DELIVERY_STEP_LOSE)
            return
        yield from desk.attempt(
            "deliver",
            lambda: self.update(_STEP.DELIVERY_STEP_ON_THE_WAY),
            lambda: self.update(_STEP.DELIVERY_STEP_ON_THE_WAY, at_ms=desk.now_ms - MINUTE_MS * 60),
            lambda: self.update(_STEP.DELIVERY_STEP_ON_THE_WAY, courier_code=self.shop.dispensers[1]),
            lambda: self.update(_STEP.DELIVERY_STEP_ON_THE_WAY, delivery_no="D1"),
            lambda: self.update(_STEP.DELIVERY_STEP_RECEIVED),
            lambda: self.sign(sign_code=self.sign_code),
        )
        if not desk.maybe(0.1):
            yield self.update(_STEP.DELIVERY_STEP_ARRIVE)
        if desk.maybe(0.12, "refuse"):
            yield from self._refused_at_the_door()
            return
        if desk.maybe(0.1, "wrong code"):
            for _ in range(6 if desk.maybe(0.3) else 1):
                yield self.sign(sign_code="000000" if self.sign_code != "000000" else "111111")
            yield from self._ask_for_delivery()
        if desk.maybe(0.15, "sign by voucher"):
            reference = yield from desk.proof(self.caller, self.rx.person, HAND_OVER)
            yield self.sign(reference=reference)
        else:
            yield from desk.attempt(
                "sign",
                lambda: self.sign(sign_code=self.sign_code),
                lambda: self.sign(sign_code=self.sign_code, signed_at_ms=desk.now_ms - 10 * MINUTE_MS),
                lambda: self.sign(reference="x" * 64),
                lambda: self.update(_STEP.DELIVERY_STEP_ARRIVE),
            )
        if desk.maybe(0.05):
            yield request_delivery(desk, self.rx, self.shop)

    def _refused_at_the_door(self) -> Journey:
        steps = (_STEP.DELIVERY_STEP_REFUSE, _STEP.DELIVERY_STEP_GO_BACK)
        for step in steps:
            answer = yield self.update(step)
            if not answer.ok:
                return
        yield from self.desk.attempt(
            "deliver",
            lambda: self.update(_STEP.DELIVERY_STEP_RECEIVED, courier_code=self.shop.dispensers[0]),
            lambda: self.update(_STEP.DELIVERY_STEP_RECEIVED),
        )

    def sign(self, *, sign_code: str = "", reference: str = "", **changes: Any) -> Call:
        """The patient signs for the goods."""
        fields: dict[str, Any] = {
            "rx_no": self.rx.rx_no,
            "pharmacy_code": self.caller.id,
            "delivery_no": self.delivery_no,
            "signed_at_ms": self.desk.now_ms,
        }
        statement = signed_pb2.SignDeliveryStatement(**(fields | changes))
        request = dispensing_pb2.SignDeliveryRequest(
            statement=self.sealed(statement), sign_code=sign_code, voucher_ref=reference
        )
        return self.call("SignDelivery", request, statement)


def order(desk: Desk) -> Journey:
    """The patient orders from home, and goes there, or changes his mind."""
    rx, shop = desk.prescription(), desk.shop()
    if rx is None:
        return
    pickup = common_pb2.FULFILMENT_MODE_PICKUP
    mode = _DELIVERY if desk.maybe(0.5) else pickup
    answer = yield from desk.attempt(
        "order",
        lambda: choose(desk, rx, shop, mode),
        lambda: choose(desk, rx, shop, mode, pharmacy_code="H33010099901"),
        lambda: choose(desk, rx, shop, mode, pharmacy_code=UNREGISTERED.id),
        lambda: choose(desk, rx, shop, mode, person_no=PERSONS[2].number, delegate_person_no=""),
        lambda: choose(desk, rx, shop, mode, delegate_person_no=PERSONS[1].number),
        lambda: make_qr(desk, rx, rx_no="330100" + "4" * 21),
        lambda: request_delivery(desk, rx, shop, pharmacy_code=UNREGISTERED.id),
        lambda: make_qr(desk, rx, person_no="33010000000099", delegate_person_no=""),
    )
    if answer.ok and desk.maybe(0.2):
        yield choose(desk, rx, shop, pickup if mode == _DELIVERY else _DELIVERY)
    if answer.ok and desk.maybe(0.15, "cancel"):
        yield cancel(desk, rx, shop)
        return
    if answer.ok:
        yield from fill_this(desk, rx, shop)


def present_twice(desk: Desk) -> Journey:
    """A code is shown and taken back, or shown at two counters."""
    person, shop = desk.person(), desk.shop()
    yield from desk.code(person, VISIT)
    yield from desk.proof(shop.caller, person, LIST)
