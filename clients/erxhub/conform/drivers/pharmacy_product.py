"""A small honest pharmacy: from the code that a patient shows to the goods in his hands.

Owns: what it may do with a prescription at all: only one that it downloaded, whose signatures it checked and whose
state it understands. Must never: compute what a fund pays, or take a hub's word for a signature.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

from google.protobuf import json_format

from erxhub.client import DownloadInvalid, PharmacyClient, check_download
from erxhub.conform.drivers.hospital_product import shown_statuses
from erxhub.conform.drivers.product import (
    DOUBTED_MAX,
    Act,
    Configuration,
    Product,
    Rejected,
    ToldClock,
    enum_name,
    has_unknown_enum,
)
from erxhub.crypto.suites import SigningKey
from erxhub.v1 import common_pb2, dispensing_pb2, registry_pb2, signed_pb2, voucher_pb2

DOWNLOAD: Final = "02122"
PURCHASE: Final = "02121"
PICK_UP: Final = "01302"

_DECISIONS: Final = {
    "pass": signed_pb2.REVIEW_DECISION_PASS,
    "reject": signed_pb2.REVIEW_DECISION_REJECT,
    "return": signed_pb2.REVIEW_DECISION_RETURN_TO_DOCTOR,
}
_ORDER_STATUS: Final = common_pb2.OrderStatus.DESCRIPTOR
_DELIVERY_STATUS: Final = common_pb2.DeliveryStatus.DESCRIPTOR


class Pharmacy(Product):
    """`staff` names pharmacist, dispenser, checker and courier; `signers` are the keys that it trusts in downloads."""

    client: PharmacyClient
    repairs = frozenset({"reverse"})

    def __init__(
        self,
        configuration: Configuration,
        clock: ToldClock,
        staff: Mapping[str, str],
        keys: Mapping[str, SigningKey],
        signers: Sequence[registry_pb2.SigningKeyRecord],
    ) -> None:
        super().__init__(configuration, clock)
        self._staff = staff
        self._keys = keys
        self._signers = signers
        self.performers = {
            "list_available": self._list,
            "download": self._download,
            "release": self._release,
            "review": self._review,
            "settle": self._settle,
            "dispense": self._dispense,
            "hand_over": self._hand_over,
            "undo": self._undo,
            "reverse": self._reverse,
            "start_delivery": self._start_delivery,
            "delivery_step": self._delivery_step,
            "sign_delivery": self._sign_delivery,
        }

    def _make_client(self) -> PharmacyClient:
        return PharmacyClient(self.connection)

    @property
    def _seal(self) -> SigningKey:
        return self._keys[self.configuration.institution_code]

    async def _shown(self, act: Act, voucher_code: str, kind: str) -> str:
        verified = await act.step(
            "verify",
            voucher_pb2.VerifyVoucherResponse,
            lambda request_id: self.client.verify_voucher(
                voucher_code=voucher_code, business_type=kind, request_id=request_id
            ),
        )
        return verified.voucher_ref

    # ---- taking a prescription ----

    async def _list(self, act: Act, arguments: dict[str, Any]) -> dict[str, Any]:
        offered: dict[str, dispensing_pb2.OfferedPrescription] = {}
        if arguments.get("rx_qr"):
            resolved = await act.step(
                "resolve",
                dispensing_pb2.ResolveQrResponse,
                lambda request_id: self.client.resolve_qr(rx_qr=arguments["rx_qr"], request_id=request_id),
            )
            offered[resolved.prescription.rx_no] = resolved.prescription
            self._offer(resolved.prescription, rx_token=resolved.rx_token)
        else:
            reference = await self._shown(act, arguments["voucher_code"], DOWNLOAD)
            token, page = "", 0
            while page == 0 or token:
                page += 1
                listed = await act.step(
                    f"list-{page}",
                    dispensing_pb2.ListByVoucherResponse,
                    lambda request_id, token=token: self.client.list_by_voucher(  # type: ignore[misc]
                        voucher_ref=reference, page_token=token, request_id=request_id
                    ),
                )
                for one in listed.prescriptions:
                    offered[one.rx_no] = one
                    self._offer(one, authorization_no=one.authorization_no)
                token = listed.next_page_token
        return {"prescriptions": [_shown_offer(one) for one in offered.values()]}

    def _offer(self, offered: dispensing_pb2.OfferedPrescription, **proof: str) -> None:
        understood = not has_unknown_enum(offered)
        self.journal.put(f"offer/{offered.rx_no}", proof if understood else {"not_understood": True})

    async def _download(self, act: Act, arguments: dict[str, Any]) -> dict[str, Any]:
        """Downloads, and sets aside what proves nothing or is not understood: it will not be dispensed."""
        rx_no = arguments["rx_no"]
        proof = self.journal.get(f"offer/{rx_no}")
        if proof is None:
            raise Rejected("NOT_OFFERED", by_product=True, reason="the patient has not shown this prescription here")
        if "not_understood" in proof:
            raise Rejected("STATUS_UNKNOWN", by_product=True, reason="its state is not one that this product knows")
        reply = await act.step(
            "download",
            dispensing_pb2.DownloadPrescriptionResponse,
            lambda request_id: self.client.download(**proof, request_id=request_id),
        )
        order: dict[str, Any] = {"act": act.name, "hold_until_ms": reply.hold_until_ms}
        try:
            document = await self._checked(act, reply, rx_no)
        except Rejected as rejected:
            self.journal.put(f"order/{rx_no}", order | {"set_aside": rejected.code})
            raise
        left = {one.line_no: one.quantity for one in reply.remaining}
        order["lines"] = [
            {
                "line_no": line.line_no,
                "drug_code": line.drug_code,
                "quantity": left.get(line.line_no, line.quantity),
                "unit_price": line.unit_price or "10.00",
            }
            for line in document.prescription.lines
        ]
        self.journal.put(f"order/{rx_no}", order)
        shown = {name: order[name] for name in ("hold_until_ms", "lines")}
        return shown | shown_statuses(reply.statuses) | {"person_no": document.prescription.person_no}

    async def _checked(
        self, act: Act, reply: dispensing_pb2.DownloadPrescriptionResponse, rx_no: str
    ) -> signed_pb2.PrescriptionDocument:
        """What the doctor signed. A reply that proves nothing is asked for again: only its way may have spoilt it."""
        for attempt in range(1, DOUBTED_MAX + 1):
            fault = ""
            try:
                checked = check_download(reply, self._signers)
            except DownloadInvalid as invalid:
                code, fault = "DOWNLOAD_INVALID", str(invalid)
            else:
                if reply.rx_no != rx_no:
                    code, fault = "DOWNLOAD_INVALID", f"it is {reply.rx_no}"
                elif has_unknown_enum(reply):
                    code, fault = "STATUS_UNKNOWN", "its state is not one that this product knows"
            if not fault:
                return checked.document
            if attempt < DOUBTED_MAX:
                reply = await act.repeat("download", dispensing_pb2.DownloadPrescriptionResponse)
        raise Rejected(code, by_product=True, reason=fault)

    def _order(self, rx_no: str) -> dict[str, Any]:
        """What is kept of a prescription that may be worked on. Raises Rejected."""
        order: dict[str, Any] | None = self.journal.get(f"order/{rx_no}")
        if order is None:
            raise Rejected("NOT_DOWNLOADED", by_product=True, reason="this pharmacy does not hold the prescription")
        if "set_aside" in order:
            raise Rejected(order["set_aside"], by_product=True, reason="it was set aside when it was downloaded")
        if any(str(value).startswith("UNKNOWN_") for value in self.known().get(rx_no, {}).values()):
            raise Rejected("STATUS_UNKNOWN", by_product=True, reason="its state is not one that this product knows")
        return order

    def _kept(self, rx_no: str, **changes: Any) -> None:
        self.journal.put(f"order/{rx_no}", self.journal.get(f"order/{rx_no}") | changes)

    async def _release(self, act: Act, arguments: dict[str, Any]) -> dict[str, Any]:
        rx_no = arguments["rx_no"]
        released = await act.step(
            "release",
            dispensing_pb2.ReleaseOrderResponse,
            lambda request_id: self.client.release(
                rx_no=rx_no, reason=arguments.get("reason") or "顾客放弃", request_id=request_id
            ),
        )
        self.journal.put(f"order/{rx_no}", None)
        return shown_statuses(released.statuses)

    async def _review(self, act: Act, arguments: dict[str, Any]) -> dict[str, Any]:
        rx_no, pharmacist = arguments["rx_no"], self._staff["pharmacist"]
        order = self._order(rx_no)
        download = dispensing_pb2.DownloadPrescriptionResponse.FromString(
            base64.b64decode(self.journal.get(f"{order['act']}/download/reply"))
        )
        reviewed = await act.step(
            "review",
            dispensing_pb2.ReviewPrescriptionResponse,
            lambda request_id: self.client.review(
                rx_no=rx_no,
                pharmacist_code=pharmacist,
                decision=_DECISIONS[arguments.get("decision") or "pass"],
                opinion=arguments.get("opinion") or "用药合理",
                prescription=download.prescription,
                pharmacist_key=self._keys[pharmacist],
                request_id=request_id,
            ),
        )
        review = enum_name(common_pb2.ReviewStatus.DESCRIPTOR, reviewed.review)
        if has_unknown_enum(reviewed):
            self._kept(rx_no, set_aside="STATUS_UNKNOWN")
        elif review == "PASSED":
            self._kept(rx_no, reviewer=pharmacist)
        else:
            self.journal.put(f"order/{rx_no}", None)
        return {"review": review} | shown_statuses(reviewed.statuses)

    # ---- money ----

    async def _settle(self, act: Act, arguments: dict[str, Any]) -> dict[str, Any]:
        rx_no = arguments["rx_no"]
        order = self._order(rx_no)
        sold = _sold(order["lines"], arguments.get("lines"))
        sale = [signed_pb2.SaleLine(**line) for line in sold]
        if arguments.get("pay", "insured") == "self":
            settled = await act.step(
                "settle",
                dispensing_pb2.SettleResponse,
                lambda request_id: self.client.record_self_payment(
                    rx_no=rx_no, lines=sale, seal_key=self._seal, request_id=request_id
                ),
            )
        else:
            reference = await self._shown(act, arguments["voucher_code"], PURCHASE)
            quote = await act.step(
                "quote",
                dispensing_pb2.QuoteSettlementResponse,
                lambda request_id: self.client.quote(
                    rx_no=rx_no,
                    voucher_ref=reference,
                    lines=sale,
                    use_account=arguments.get("use_account", True),
                    request_id=request_id,
                ),
            )
            # The seal covers nothing that this product does not understand.
            quote.DiscardUnknownFields()
            settled = await act.step(
                "settle",
                dispensing_pb2.SettleResponse,
                lambda request_id: self.client.settle(
                    rx_no=rx_no,
                    quote_id=quote.quote_id,
                    amounts=quote.amounts,
                    voucher_ref=reference,
                    seal_key=self._seal,
                    request_id=request_id,
                ),
            )
        self._kept(rx_no, settlement_id=settled.settlement_id, sold=sold)
        amounts = {field.name: getattr(settled.amounts, field.name) for field in settled.amounts.DESCRIPTOR.fields}
        return {"settlement_id": settled.settlement_id, "amounts": amounts}

    def _settlement(self, rx_no: str) -> str:
        settlement_id = self._order(rx_no).get("settlement_id")
        if not settlement_id:
            raise Rejected("SETL_REQUIRED", by_product=True, reason="nothing was settled here")
        return str(settlement_id)

    async def _undo(self, act: Act, arguments: dict[str, Any]) -> dict[str, Any]:
        rx_no = arguments["rx_no"]
        settlement_id = self._settlement(rx_no)
        undone = await act.step(
            "undo",
            dispensing_pb2.UndoSettlementResponse,
            lambda request_id: self.client.undo_settlement(
                rx_no=rx_no,
                settlement_id=settlement_id,
                reason=arguments.get("reason") or "无法配药",
                request_id=request_id,
            ),
        )
        self.journal.put(f"order/{rx_no}", None)
        return {"settlement_id": settlement_id} | shown_statuses(undone.statuses)

    async def _reverse(self, act: Act, arguments: dict[str, Any]) -> dict[str, Any]:
        """Takes back the last settlement that was asked for, whether it was done or not."""
        rx_no = arguments["rx_no"]
        asked = next((one for one in self.acts_about(rx_no, "settle") if one.request_id("settle")), None)
        if asked is None:
            raise Rejected("NOTHING_TO_REVERSE", by_product=True, reason="no settlement was asked for here")
        reversed_ = await act.step(
            "reverse",
            dispensing_pb2.ReverseSettlementResponse,
            lambda request_id: self.client.reverse_settlement(
                original_request_id=asked.request_id("settle"), request_id=request_id
            ),
        )
        asked.close("reversed")
        if reversed_.target == dispensing_pb2.REVERSAL_TARGET_SETTLEMENT:
            self.journal.put(f"order/{rx_no}", None)
        target = enum_name(dispensing_pb2.ReversalTarget.DESCRIPTOR, reversed_.target)
        return {"target": target, "settlement_id": reversed_.settlement_id}

    # ---- goods ----

    async def _dispense(self, act: Act, arguments: dict[str, Any]) -> dict[str, Any]:
        rx_no = arguments["rx_no"]
        settlement_id = self._settlement(rx_no)
        order = self._order(rx_no)
        dispensed = await act.step(
            "dispense",
            dispensing_pb2.DispenseResponse,
            lambda request_id: self.client.dispense(
                rx_no=rx_no,
                settlement_id=settlement_id,
                reviewer_code=order.get("reviewer", ""),
                dispenser_code=self._staff["dispenser"],
                checker_code=self._staff["checker"],
                lots=self._lots(order["sold"], arguments.get("lots") or [{}] * len(order["sold"])),
                seal_key=self._seal,
                request_id=request_id,
            ),
        )
        self._kept(rx_no, out=True)
        return {"sale_no": dispensed.sale_no} | shown_statuses(dispensed.statuses)

    def _lots(
        self, sold: Sequence[Mapping[str, Any]], given: Sequence[Mapping[str, Any]]
    ) -> list[signed_pb2.DispensedLot]:
        """One lot for each given one, filled up from the sold line that it names, or that stands in its place."""
        by_number = {line["line_no"]: line for line in sold}
        lots = []
        for place, wanted in enumerate(given):
            number = wanted.get("line_no") or sold[min(place, len(sold) - 1)]["line_no"]
            line = by_number.get(number, sold[0])
            lot = signed_pb2.DispensedLot(
                line_no=number,
                drug_code=line["drug_code"],
                quantity=str(wanted.get("quantity") or line["quantity"]),
                lot_no="L20260901",
                expires_on="2030-08-31",
            )
            if "trace_codes" not in wanted:
                lot.trace_codes.extend(self._pack() for _ in range(-(-_e4(lot.quantity) // 10_000)))
            rest = {name: value for name, value in wanted.items() if name not in ("line_no", "quantity")}
            lots.append(json_format.ParseDict(rest, lot))
        return lots

    def _pack(self) -> str:
        """The trace code of the next pack on the shelf: 20 digits, this pharmacy's and never twice."""
        number = int(self.journal.get("given/packs") or 0) + 1
        self.journal.put("given/packs", number)
        return f"8{self.configuration.institution_code[1:12]:0>11}{number:08d}"

    async def _hand_over(self, act: Act, arguments: dict[str, Any]) -> dict[str, Any]:
        rx_no = arguments["rx_no"]
        self._order(rx_no)
        reference = await self._shown(act, arguments["voucher_code"], PICK_UP)
        await act.step(
            "hand_over",
            dispensing_pb2.HandOverResponse,
            lambda request_id: self.client.hand_over(
                rx_no=rx_no,
                staff_code=self._staff["dispenser"],
                voucher_ref=reference,
                seal_key=self._seal,
                request_id=request_id,
            ),
        )
        return {}

    async def _start_delivery(self, act: Act, arguments: dict[str, Any]) -> dict[str, Any]:
        rx_no = arguments["rx_no"]
        self._order(rx_no)
        started = await act.step(
            "start_delivery",
            dispensing_pb2.StartDeliveryResponse,
            lambda request_id: self.client.start_delivery(
                rx_no=rx_no,
                company="示例配送",
                courier_code=self._staff["courier"],
                distance_m=3_000,
                request_id=request_id,
            ),
        )
        self._kept(rx_no, delivery_no=started.delivery_no)
        return {"delivery_no": started.delivery_no, "delivery": enum_name(_DELIVERY_STATUS, started.status)}

    async def _delivery_step(self, act: Act, arguments: dict[str, Any]) -> dict[str, Any]:
        """`step` is on_the_way, arrive, refuse, lose, go_back or received."""
        order = self._order(arguments["rx_no"])
        moved = await act.step(
            "update_delivery",
            dispensing_pb2.UpdateDeliveryResponse,
            lambda request_id: self.client.update_delivery(
                rx_no=arguments["rx_no"],
                delivery_no=order["delivery_no"],
                step=dispensing_pb2.DeliveryStep.Value(f"DELIVERY_STEP_{arguments['step'].upper()}"),
                courier_code=self._staff["courier"],
                request_id=request_id,
            ),
        )
        return {"delivery": enum_name(_DELIVERY_STATUS, moved.status)}

    async def _sign_delivery(self, act: Act, arguments: dict[str, Any]) -> dict[str, Any]:
        order = self._order(arguments["rx_no"])
        signed = await act.step(
            "sign_delivery",
            dispensing_pb2.SignDeliveryResponse,
            lambda request_id: self.client.sign_delivery(
                rx_no=arguments["rx_no"],
                delivery_no=order["delivery_no"],
                sign_code=arguments["sign_code"],
                seal_key=self._seal,
                request_id=request_id,
            ),
        )
        return {"delivery": enum_name(_DELIVERY_STATUS, signed.status)}

    # ---- news ----

    def _watch(self, cursor: str) -> AsyncIterator[dispensing_pb2.WatchOrdersResponse]:
        return self.client.watch(cursor=cursor, from_start=True)

    def _take_in(self, message: dispensing_pb2.WatchOrdersResponse, known: dict[str, Any], *, newest: bool) -> None:
        if newest:
            known.update(shown_statuses(message.statuses))
            known["order"] = enum_name(_ORDER_STATUS, message.order)
            known["hold_until_ms"] = message.hold_until_ms


def _shown_offer(offered: dispensing_pb2.OfferedPrescription) -> dict[str, Any]:
    return {
        "rx_no": offered.rx_no,
        "authorization_no": offered.authorization_no,
        "hospital_code": offered.hospital_code,
        "hospital_name": offered.hospital_name,
        "valid_until_ms": offered.valid_until_ms,
        "line_count": offered.line_count,
    } | shown_statuses(offered.statuses)


def _sold(lines: Sequence[dict[str, Any]], wanted: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """What is sold: all that is left, or the wanted lines with what they change."""
    if wanted is None:
        return [line for line in lines if _e4(line["quantity"])]
    by_number = {line["line_no"]: line for line in lines}
    changes = {int(one["line_no"]): {name: str(one[name]) for name in one if name != "line_no"} for one in wanted}
    return [by_number[number] | changed for number, changed in changes.items()]


def _e4(quantity: str) -> int:
    whole, _, part = quantity.partition(".")
    return int(whole) * 10_000 + int(f"{part:0<4}"[:4] or 0)
