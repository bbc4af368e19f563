"""A sale at a pharmacy up to the payment: authorisation, download, review, quote, settlement, and their undoing.

Must never hand out goods; that is the counter's part (see pharmacy).
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Final

from erxhub.v1 import common_pb2, dispensing_pb2, signed_pb2
from tests.simulation.cast import DRUG_BY_CODE, MINUTE_MS, PERSONS, SHOPS, UNREGISTERED, Shop
from tests.simulation.desk import LIST, ONLINE_PURCHASE, PURCHASE, Desk, Rx
from tests.simulation.hospital import revocation
from tests.simulation.patient import cancel, make_qr
from tests.simulation.reading import Violation
from tests.simulation.wire import Answer, Call

_SERVICE: Final = "DispensingService"
_PASS: Final = signed_pb2.REVIEW_DECISION_PASS

Lines = dict[int, int]
"""Packs to sell by line."""


class Sale:
    """One sale; what the pharmacy keeps of the answers."""

    def __init__(self, desk: Desk, rx: Rx, shop: Shop) -> None:
        self.desk, self.rx, self.shop = desk, rx, shop
        self.caller = shop.caller
        self.number = ""
        self.token = ""
        self.digest = hashlib.sha256(rx.signed).digest()
        self.selling: Lines = {}
        self.quote = dispensing_pb2.QuoteSettlementResponse()
        self.settlement_id = ""
        self.settle_id = ""
        self.packed: list[str] = []
        self.delivery_no = ""
        self.sign_code = ""

    def call(self, method: str, request: Any, statement: Any = None, request_id: str = "") -> Call:
        contents = {"statement": statement} if statement is not None else None
        return self.desk.call(self.caller, f"{_SERVICE}/{method}", request, contents, request_id=request_id)

    # ---- authorisation, download ----

    def hold(self) -> Generator[Call, Answer, bool]:
        """Have the prescription listed or resolved, and download it."""
        desk = self.desk
        shown = yield from (self._resolved() if desk.maybe(0.25, "qr") else self._listed())
        if not shown:
            return False
        if desk.maybe(0.04):
            yield cancel(desk, self.rx, self.shop)
        answer = yield from desk.attempt(
            "download",
            self.download,
            lambda: self.download(authorization_no="n" * 30, rx_token=""),
            lambda: self.download(authorization_no="", rx_token=""),
            lambda: self.download(authorization_no="n" * 30, rx_token="t" * 64),
            self.download_elsewhere,
        )
        if not answer.ok:
            self.rx.over |= answer.code in {"RX_ALREADY_USED", "RX_NOT_EFFECTIVE"}
            return False
        if hashlib.sha256(answer.reply.prescription.payload).digest() != self.digest:
            raise Violation("I13", f"other bytes of {self.rx.rx_no} came down than the hospital sent")
        self.selling = {line.line_no: int(float(line.quantity)) for line in answer.reply.remaining}
        self.selling = {line_no: packs for line_no, packs in self.selling.items() if packs}
        if desk.maybe(0.06, "again") and (yield from self._listed()):
            yield self.download()
        if desk.maybe(0.04, "withdrawn"):
            yield revocation(desk, self.rx)
        if desk.maybe(0.05, "release"):
            yield self.release()
            return False
        if desk.maybe(0.04, "cancel"):
            yield cancel(desk, self.rx, self.shop)
            return False
        # The customer goes, and the hold runs out by itself.
        return not desk.maybe(0.04, "lapse")

    def _listed(self) -> Generator[Call, Answer, bool]:
        desk = self.desk
        reference = yield from desk.proof(self.caller, self.rx.person, LIST)

        def listing(caller: Any = self.caller, shown: str = reference, **page: Any) -> Call:
            request = dispensing_pb2.ListByVoucherRequest(voucher_ref=shown, page=common_pb2.Page(**page))
            return desk.call(caller, f"{_SERVICE}/ListByVoucher", request)

        other = SHOPS[0 if self.shop is not SHOPS[0] else 1].caller
        answer = yield from desk.attempt(
            "list",
            listing,
            lambda: listing(other),
            lambda: listing(shown="q" * 64),
            lambda: listing(UNREGISTERED),
            lambda: listing(page_token="0" * 32),
        )
        if not answer.ok:
            return False
        if desk.maybe(0.04):
            first = yield listing(page_size=1)
            if first.ok and first.reply.next_page_token:
                yield listing(page_size=1, page_token=first.reply.next_page_token)
                answer = yield listing()
                if not answer.ok:
                    return False
        numbers = {row.rx_no: row.authorization_no for row in answer.reply.prescriptions}
        self.number, self.token = numbers.get(self.rx.rx_no, ""), ""
        self.rx.over |= not self.number
        return bool(self.number)

    def _resolved(self) -> Generator[Call, Answer, bool]:
        desk = self.desk
        made = yield make_qr(desk, self.rx)
        if not made.ok:
            self.rx.over |= made.code in {"RX_ALREADY_USED", "RX_NOT_EFFECTIVE"}
            return False

        def resolve(value: str) -> Call:
            return self.call("ResolveQr", dispensing_pb2.ResolveQrRequest(rx_qr=value))

        answer = yield from desk.attempt(
            "list", lambda: resolve(made.reply.rx_qr), lambda: resolve("v" * 27), lambda: resolve("short")
        )
        if not answer.ok:
            return False
        self.number, self.token = "", answer.reply.rx_token
        return True

    def download(self, **changes: Any) -> Call:
        """Take what the list or the QR value gave."""
        fields = {"authorization_no": self.number, "rx_token": self.token} | changes
        return self.call("DownloadPrescription", dispensing_pb2.DownloadPrescriptionRequest(**fields))

    def download_elsewhere(self) -> Call:
        """Another pharmacy shows this one's number."""
        other = SHOPS[0 if self.shop is not SHOPS[0] else 1].caller
        request = dispensing_pb2.DownloadPrescriptionRequest(authorization_no=self.number, rx_token=self.token)
        return self.desk.call(other, f"{_SERVICE}/DownloadPrescription", request)

    def release(self, rx_no: str = "") -> Call:
        """Give the order back."""
        request = dispensing_pb2.ReleaseOrderRequest(rx_no=rx_no or self.rx.rx_no, reason="缺货")
        return self.call("ReleaseOrder", request)

    # ---- review ----

    def review(self) -> Generator[Call, Answer, bool]:
        """Have the pharmacist decide; True when it passed."""
        desk = self.desk
        if desk.maybe(0.03):
            # Before the review nothing may be quoted.
            yield self.quoted("z" * 64)
        decision = _PASS
        if desk.maybe(0.08, "not passed"):
            decision = desk.pick((signed_pb2.REVIEW_DECISION_REJECT, signed_pb2.REVIEW_DECISION_RETURN_TO_DOCTOR))
        answer = yield from desk.attempt(
            "review",
            lambda: self.reviewed(decision),
            lambda: self.reviewed(decision, pharmacist_code=self.rx.doctor),
            lambda: self.reviewed(decision, pharmacist_code=self.shop.dispensers[0]),
            lambda: self.reviewed(decision, opinion=" "),
            lambda: self.reviewed(decision, prescription_sha256=bytes(32)),
            lambda: self.reviewed(decision, signed_at_ms=desk.now_ms - 10 * MINUTE_MS),
            lambda: self.reviewed(decision, rx_no="330100" + "6" * 21),
            lambda: self.reviewed(decision, pharmacy_code=SHOPS[0 if self.shop is not SHOPS[0] else 1].caller.id),
            lambda: self.reviewed(decision, owner="stranger"),
            lambda: self.reviewed(decision, broken=True),
        )
        if desk.maybe(0.04):
            yield self.reviewed(decision)
        return answer.ok and decision == _PASS

    def reviewed(
        self,
        decision: signed_pb2.ReviewDecision.ValueType,
        *,
        owner: str = "",
        broken: bool = False,
        **changes: Any,
    ) -> Call:
        """A review; right in everything but the changes."""
        fields: dict[str, Any] = {
            "rx_no": self.rx.rx_no,
            "pharmacy_code": self.caller.id,
            "pharmacist_code": self.shop.pharmacist,
            "decision": decision,
            "opinion": "用药合理",
            "prescription_sha256": self.digest,
            "signed_at_ms": self.desk.now_ms,
        }
        statement = signed_pb2.ReviewStatement(**(fields | changes))
        by = owner or self.desk.key_of(statement.pharmacist_code)
        content = self.desk.pen.signed(statement, by, broken=broken)
        request = dispensing_pb2.ReviewPrescriptionRequest(statement=content)
        return self.call("ReviewPrescription", request, statement)

    # ---- money ----

    def pay(self) -> Generator[Call, Answer, bool]:
        """Quote and settle, or take the money of the customer himself; True when the order stands settled."""
        desk = self.desk
        if len(self.selling) > 1 and desk.maybe(0.25, "part"):
            self.selling.pop(next(iter(self.selling)))
        elif desk.maybe(0.2, "part"):
            self.selling = {line_no: max(1, packs - 1) for line_no, packs in self.selling.items()}
        if desk.maybe(0.12, "self pay"):
            paid = yield from self._self_paid()
        else:
            paid = yield from self._insured()
            if not paid and desk.maybe(0.3):
                paid = yield from self._self_paid()
        if not paid:
            if desk.maybe(0.3):
                yield self.release()
            return False
        return (yield from self._kept())

    def sale(self, lines: Lines | None = None, **changes: Any) -> list[signed_pb2.SaleLine]:
        """The lines as they are sold; `changes` concern the first one."""
        prescribed = {line.line_no: line.drug_code for line in self.rx.content.lines}
        sold = []
        for line_no, packs in (self.selling if lines is None else lines).items():
            code = prescribed[line_no]
            fields: dict[str, Any] = {
                "line_no": line_no,
                "drug_code": code,
                "quantity": str(packs),
                "unit_price": DRUG_BY_CODE[code].price,
            }
            sold.append(signed_pb2.SaleLine(**(fields | (changes if not sold else {}))))
        return sold

    def quoted(self, reference: str, lines: list[signed_pb2.SaleLine] | None = None) -> Call:
        """A quote."""
        request = dispensing_pb2.QuoteSettlementRequest(
            rx_no=self.rx.rx_no,
            voucher_ref=reference,
            lines=self.sale() if lines is None else lines,
            use_account=self.desk.calm or self.desk.chance.random() < 0.8,
        )
        return self.call("QuoteSettlement", request)

    def _insured(self) -> Generator[Call, Answer, bool]:
        desk = self.desk
        business = ONLINE_PURCHASE if desk.maybe(0.1) else PURCHASE
        reference = yield from desk.proof(self.caller, self.rx.person, business)
        too_much = {line_no: packs + 99 for line_no, packs in self.selling.items()}
        answer = yield from desk.attempt(
            "quote",
            lambda: self.quoted(reference),
            lambda: self.quoted(reference, self.sale(too_much)),
            lambda: self.quoted(reference, self.sale(drug_code="XZ99")),
            lambda: self.quoted(reference, self.sale(line_no=77)),
            lambda: self.quoted(reference, self.sale(quantity="007")),
            lambda: self.quoted("w" * 64),
        )
        if not answer.ok:
            return False
        self.quote.CopyFrom(answer.reply)
        stale = self.quote.quote_id
        if desk.maybe(0.1, "quote again"):
            answer = yield self.quoted(reference)
            if answer.ok:
                self.quote.CopyFrom(answer.reply)
        if desk.maybe(0.03):
            yield self.release()
            return False
        if desk.maybe(0.03):
            yield cancel(desk, self.rx, self.shop)
            return False
        if desk.maybe(0.03, "lapse"):
            return False
        if desk.maybe(0.06, "never arrived"):
            # The way home is lost before the way there: the reversal overtakes what it reverses.
            never = f"settle-{desk.number():06d}"
            yield self.reversal(never)
            yield self.settle(reference, request_id=never)
        wrong = signed_pb2.ClaimAmounts()
        wrong.CopyFrom(self.quote.amounts)
        wrong.cash_fen += 1
        self.settle_id = f"settle-{desk.number():06d}"
        answer = yield from desk.attempt(
            "settle",
            lambda: self.settle(reference, request_id=self.settle_id),
            lambda: self.settle(reference, amounts=wrong),
            lambda: self.settle(reference, quote_id="0" * 24),
            lambda: self.settle(reference, quote_id=stale),
            lambda: self.settle(reference, lines=self.sale(unit_price="1")),
            lambda: self.settle(reference, owner="stranger"),
            lambda: self.settle(reference, broken=True),
            lambda: self.settle(reference, signed_at_ms=desk.now_ms - 20 * MINUTE_MS),
            lambda: self.settle(reference, pharmacy_code=SHOPS[0 if self.shop is not SHOPS[0] else 1].caller.id),
            lambda: self.settle("u" * 64),
        )
        if not answer.ok:
            return False
        self.settlement_id = answer.reply.settlement_id
        return True

    def settle(
        self, reference: str, *, owner: str = "", broken: bool = False, request_id: str = "", **changes: Any
    ) -> Call:
        """The quote taken up; right in everything but the changes."""
        fields: dict[str, Any] = {
            "rx_no": self.rx.rx_no,
            "pharmacy_code": self.caller.id,
            "quote_id": self.quote.quote_id,
            "pay_mode": signed_pb2.PAY_MODE_INSURED,
            "amounts": self.quote.amounts,
            "signed_at_ms": self.desk.now_ms,
        }
        statement = signed_pb2.SettleStatement(**(fields | changes))
        content = self.sealed(statement, owner, broken)
        request = dispensing_pb2.SettleRequest(statement=content, voucher_ref=reference)
        return self.call("Settle", request, statement, request_id)

    def _self_paid(self) -> Generator[Call, Answer, bool]:
        lines = self.sale()
        total = sum(_amount_fen(line) for line in lines)

        def pay(total_fen: int = total, **changes: Any) -> Call:
            amounts = signed_pb2.ClaimAmounts(
                total_fen=total_fen, own_pay_fen=total_fen, person_fen=total_fen, cash_fen=total_fen
            )
            fields = {"quote_id": "", "pay_mode": signed_pb2.PAY_MODE_SELF, "amounts": amounts, "lines": lines}
            return self.settle("", **(fields | changes))

        self.settle_id = ""
        answer = yield from self.desk.attempt(
            "self pay", pay, lambda: pay(total + 1), lambda: pay(lines=[]), lambda: pay(quote_id="0" * 24)
        )
        if not answer.ok:
            return False
        self.settlement_id = answer.reply.settlement_id
        return True

    def _kept(self) -> Generator[Call, Answer, bool]:
        """Whether the settlement stands: it may be undone, reversed, or reversed and begun again."""
        desk = self.desk
        if desk.maybe(0.03):
            yield cancel(desk, self.rx, self.shop)
        if desk.maybe(0.03):
            yield self.release()
        if desk.maybe(0.08, "undo"):
            undo_id = f"undo-{desk.number():08d}"
            answer = yield from desk.attempt(
                "undo", lambda: self.undo(request_id=undo_id), lambda: self.undo(settlement_id="nothing")
            )
            if answer.ok and self.settle_id and desk.maybe(0.6, "reverse"):
                again = yield self.reversal(undo_id, "2103")
                return again.ok and desk.maybe(0.8)
            return not answer.ok
        if self.settle_id and desk.maybe(0.06, "reverse"):
            answer = yield from desk.attempt(
                "undo",
                lambda: self.reversal(self.settle_id),
                lambda: self.reversal(self.settle_id, "2103"),
                lambda: self.reversal(self.settle_id, "2601"),
                lambda: self.reversal(self.settle_id, person_no=PERSONS[2].number),
            )
            return not answer.ok
        if desk.maybe(0.05, "void"):
            yield self.void()
            if desk.maybe(0.7):
                yield self.undo()
            return False
        return True

    def undo(self, request_id: str = "", **changes: Any) -> Call:
        """Give the settlement back."""
        fields = {"rx_no": self.rx.rx_no, "settlement_id": self.settlement_id, "reason": "顾客退单"} | changes
        return self.call("UndoSettlement", dispensing_pb2.UndoSettlementRequest(**fields), request_id=request_id)

    def reversal(self, original: str, transaction: str = "2102", **changes: Any) -> Call:
        """Repair an unknown outcome."""
        request = dispensing_pb2.ReverseSettlementRequest(
            original_request_id=original, original_transaction=transaction, **changes
        )
        return self.call("ReverseSettlement", request)

    def void(self) -> Call:
        """Stop the dispensing."""
        request = dispensing_pb2.VoidDispenseRequest(rx_no=self.rx.rx_no, reason="缺货")
        return self.call("VoidDispense", request)

    def sealed(self, statement: Any, owner: str = "", broken: bool = False) -> common_pb2.Signed:
        return self.desk.pen.signed(statement, owner or self.desk.key_of(self.caller.id), broken=broken)


def _amount_fen(line: signed_pb2.SaleLine) -> int:
    exact = Decimal(line.quantity) * Decimal(line.unit_price) * 100
    return int(exact.quantize(Decimal(1), rounding=ROUND_HALF_UP))
