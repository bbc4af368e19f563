"""A pharmacy: from the patient at the counter to the goods in his hands (零售药店侧).

Owns: the calls that a pharmacy's certificate may make. Must never: keep state of an order; the hub does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation

from erxhub.client.base import DEFAULT_WAIT, Client, WaitFor, page_of
from erxhub.client.connection import Connection
from erxhub.client.request_ids import RequestIds
from erxhub.client.shared_calls import CatalogReader, VoucherVerifier
from erxhub.client.signing import sha256, sign
from erxhub.crypto.suites import SigningKey
from erxhub.v1 import common_pb2, dispensing_pb2, dispensing_pb2_grpc, signed_pb2


def self_paid_amounts(lines: Iterable[signed_pb2.SaleLine]) -> signed_pb2.ClaimAmounts:
    """What the patient pays who pays everything himself, fen. Raises ValueError for what is no decimal number."""
    total_fen = 0
    for line in lines:
        try:
            amount = Decimal(line.quantity) * Decimal(line.unit_price) * 100
        except InvalidOperation:
            raise ValueError(f"line {line.line_no}: quantity and unit price are decimal numbers") from None
        total_fen += int(amount.quantize(Decimal(1), ROUND_HALF_UP))
    return signed_pb2.ClaimAmounts(total_fen=total_fen, own_pay_fen=total_fen, person_fen=total_fen, cash_fen=total_fen)


class PharmacyClient(CatalogReader, VoucherVerifier, Client):
    """Speaks for a pharmacy's staff and couriers. `pharmacy_code` is the certificate's where none is given."""

    def __init__(self, connection: Connection, *, request_ids: RequestIds | None = None) -> None:
        super().__init__(connection, request_ids=request_ids)
        self._dispensing = dispensing_pb2_grpc.DispensingServiceStub(connection.channel)

    # --- taking a prescription ---

    async def list_by_voucher(
        self,
        *,
        voucher_ref: str,
        page_size: int = 0,
        page_token: str = "",
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> dispensing_pb2.ListByVoucherResponse:
        """The person's prescriptions, each with a one-time number (流转授权); business type 02122."""
        request = dispensing_pb2.ListByVoucherRequest(
            request_id=self._id(request_id),
            wait_for=wait_for,
            voucher_ref=voucher_ref,
            page=page_of(page_size, page_token),
        )
        return await self.connection.unary(self._dispensing.ListByVoucher, request, timeout_s)

    async def resolve_qr(
        self,
        *,
        rx_qr: str,
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> dispensing_pb2.ResolveQrResponse:
        """Turns a prescription QR value into the prescription's token (二维码解码)."""
        request = dispensing_pb2.ResolveQrRequest(request_id=self._id(request_id), wait_for=wait_for, rx_qr=rx_qr)
        return await self.connection.unary(self._dispensing.ResolveQr, request, timeout_s)

    async def download(
        self,
        *,
        authorization_no: str = "",
        rx_token: str = "",
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> dispensing_pb2.DownloadPrescriptionResponse:
        """Downloads and holds a prescription (处方下载), by number or token; check it with `check_download`."""
        request = dispensing_pb2.DownloadPrescriptionRequest(
            request_id=self._id(request_id), wait_for=wait_for, authorization_no=authorization_no, rx_token=rx_token
        )
        return await self.connection.unary(self._dispensing.DownloadPrescription, request, timeout_s)

    async def release(
        self,
        *,
        rx_no: str,
        reason: str = "",
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> dispensing_pb2.ReleaseOrderResponse:
        """Gives the hold back (释放)."""
        request = dispensing_pb2.ReleaseOrderRequest(
            request_id=self._id(request_id), wait_for=wait_for, rx_no=rx_no, reason=reason
        )
        return await self.connection.unary(self._dispensing.ReleaseOrder, request, timeout_s)

    async def review(
        self,
        *,
        rx_no: str,
        pharmacist_code: str,
        decision: signed_pb2.ReviewDecision.ValueType,
        opinion: str,
        prescription: common_pb2.Signed,
        pharmacist_key: SigningKey,
        pharmacy_code: str | None = None,
        signed_at_ms: int | None = None,
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> dispensing_pb2.ReviewPrescriptionResponse:
        """The pharmacist passes, rejects or returns the prescription (审方), under his signature.

        `prescription` is the signed content of the download; the review covers the SHA-256 of its bytes.
        """
        statement = signed_pb2.ReviewStatement(
            rx_no=rx_no,
            pharmacy_code=self._institution(pharmacy_code),
            pharmacist_code=pharmacist_code,
            decision=decision,
            opinion=opinion,
            prescription_sha256=sha256(prescription.payload),
            signed_at_ms=self._now_unless(signed_at_ms),
        )
        request = dispensing_pb2.ReviewPrescriptionRequest(
            request_id=self._id(request_id), wait_for=wait_for, statement=sign(statement, pharmacist_key)
        )
        return await self.connection.unary(self._dispensing.ReviewPrescription, request, timeout_s)

    # --- money ---

    async def quote(
        self,
        *,
        rx_no: str,
        voucher_ref: str,
        lines: Iterable[signed_pb2.SaleLine],
        use_account: bool = True,
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> dispensing_pb2.QuoteSettlementResponse:
        """What fund, account and patient pay (预结算); `voucher_ref` of business type 02121 or 03132."""
        request = dispensing_pb2.QuoteSettlementRequest(
            request_id=self._id(request_id),
            wait_for=wait_for,
            rx_no=rx_no,
            voucher_ref=voucher_ref,
            lines=lines,
            use_account=use_account,
        )
        return await self.connection.unary(self._dispensing.QuoteSettlement, request, timeout_s)

    async def settle(
        self,
        *,
        rx_no: str,
        quote_id: str,
        amounts: signed_pb2.ClaimAmounts,
        voucher_ref: str,
        seal_key: SigningKey,
        pharmacy_code: str | None = None,
        signed_at_ms: int | None = None,
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> dispensing_pb2.SettleResponse:
        """Settles a quote under the pharmacy's seal (结算); `amounts` are the quote's, all fen.

        When the outcome is unknown, send the same request again, or `reverse` it by its request id.
        """
        statement = signed_pb2.SettleStatement(
            rx_no=rx_no,
            pharmacy_code=self._institution(pharmacy_code),
            quote_id=quote_id,
            pay_mode=signed_pb2.PAY_MODE_INSURED,
            amounts=amounts,
            signed_at_ms=self._now_unless(signed_at_ms),
        )
        request = dispensing_pb2.SettleRequest(
            request_id=self._id(request_id),
            wait_for=wait_for,
            statement=sign(statement, seal_key),
            voucher_ref=voucher_ref,
        )
        return await self.connection.unary(self._dispensing.Settle, request, timeout_s)

    async def record_self_payment(
        self,
        *,
        rx_no: str,
        lines: Iterable[signed_pb2.SaleLine],
        seal_key: SigningKey,
        pharmacy_code: str | None = None,
        signed_at_ms: int | None = None,
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> dispensing_pb2.SettleResponse:
        """Records that the patient paid everything himself (自费), under the pharmacy's seal.

        The seal covers the amounts too: every line, each rounded half up to the fen. Raises ValueError for a quantity
        or price that is no decimal number.
        """
        sold = list(lines)
        statement = signed_pb2.SettleStatement(
            rx_no=rx_no,
            pharmacy_code=self._institution(pharmacy_code),
            pay_mode=signed_pb2.PAY_MODE_SELF,
            amounts=self_paid_amounts(sold),
            lines=sold,
            signed_at_ms=self._now_unless(signed_at_ms),
        )
        request = dispensing_pb2.SettleRequest(
            request_id=self._id(request_id), wait_for=wait_for, statement=sign(statement, seal_key)
        )
        return await self.connection.unary(self._dispensing.Settle, request, timeout_s)

    async def undo_settlement(
        self,
        *,
        rx_no: str,
        settlement_id: str,
        reason: str,
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> dispensing_pb2.UndoSettlementResponse:
        """Gives a settlement back, as a business act (结算撤销)."""
        request = dispensing_pb2.UndoSettlementRequest(
            request_id=self._id(request_id), wait_for=wait_for, rx_no=rx_no, settlement_id=settlement_id, reason=reason
        )
        return await self.connection.unary(self._dispensing.UndoSettlement, request, timeout_s)

    async def reverse_settlement(
        self,
        *,
        original_request_id: str,
        original_transaction: str = "2102",
        person_no: str = "",
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> dispensing_pb2.ReverseSettlementResponse:
        """Repairs an unknown outcome (冲正) by the original's request id; 2102 is a settlement, 2103 an undo."""
        request = dispensing_pb2.ReverseSettlementRequest(
            request_id=self._id(request_id),
            wait_for=wait_for,
            original_request_id=original_request_id,
            original_transaction=original_transaction,
            person_no=person_no,
        )
        return await self.connection.unary(self._dispensing.ReverseSettlement, request, timeout_s)

    # --- goods ---

    async def dispense(
        self,
        *,
        rx_no: str,
        settlement_id: str,
        reviewer_code: str,
        dispenser_code: str,
        checker_code: str,
        lots: Iterable[signed_pb2.DispensedLot],
        seal_key: SigningKey,
        pharmacy_code: str | None = None,
        signed_at_ms: int | None = None,
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> dispensing_pb2.DispenseResponse:
        """Picks, checks and takes the goods out (销售出库), under the pharmacy's seal; refused as a whole."""
        statement = signed_pb2.DispenseStatement(
            rx_no=rx_no,
            pharmacy_code=self._institution(pharmacy_code),
            settlement_id=settlement_id,
            reviewer_code=reviewer_code,
            dispenser_code=dispenser_code,
            checker_code=checker_code,
            lots=lots,
            signed_at_ms=self._now_unless(signed_at_ms),
        )
        request = dispensing_pb2.DispenseRequest(
            request_id=self._id(request_id), wait_for=wait_for, statement=sign(statement, seal_key)
        )
        return await self.connection.unary(self._dispensing.Dispense, request, timeout_s)

    async def void_dispense(
        self,
        *,
        rx_no: str,
        reason: str,
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> dispensing_pb2.VoidDispenseResponse:
        """Voids a dispensing before the goods are out (调配作废)."""
        request = dispensing_pb2.VoidDispenseRequest(
            request_id=self._id(request_id), wait_for=wait_for, rx_no=rx_no, reason=reason
        )
        return await self.connection.unary(self._dispensing.VoidDispense, request, timeout_s)

    async def hand_over(
        self,
        *,
        rx_no: str,
        staff_code: str,
        voucher_ref: str,
        seal_key: SigningKey,
        pharmacy_code: str | None = None,
        signed_at_ms: int | None = None,
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> dispensing_pb2.HandOverResponse:
        """Hands the goods over (取药交付), under the seal; `voucher_ref` (01302) of patient or delegate."""
        statement = signed_pb2.HandOverStatement(
            rx_no=rx_no,
            pharmacy_code=self._institution(pharmacy_code),
            staff_code=staff_code,
            signed_at_ms=self._now_unless(signed_at_ms),
        )
        request = dispensing_pb2.HandOverRequest(
            request_id=self._id(request_id),
            wait_for=wait_for,
            statement=sign(statement, seal_key),
            voucher_ref=voucher_ref,
        )
        return await self.connection.unary(self._dispensing.HandOver, request, timeout_s)

    async def start_delivery(
        self,
        *,
        rx_no: str,
        company: str,
        courier_code: str,
        cold_chain: bool = False,
        picked_up_at_ms: int | None = None,
        distance_m: int = 0,
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> dispensing_pb2.StartDeliveryResponse:
        """Assigns a courier, who has picked the goods up (配送), now unless `picked_up_at_ms` says otherwise."""
        request = dispensing_pb2.StartDeliveryRequest(
            request_id=self._id(request_id),
            wait_for=wait_for,
            rx_no=rx_no,
            company=company,
            courier_code=courier_code,
            cold_chain=cold_chain,
            picked_up_at_ms=self._now_unless(picked_up_at_ms),
            distance_m=distance_m,
        )
        return await self.connection.unary(self._dispensing.StartDelivery, request, timeout_s)

    async def update_delivery(
        self,
        *,
        rx_no: str,
        delivery_no: str,
        step: dispensing_pb2.DeliveryStep.ValueType,
        courier_code: str = "",
        at_ms: int | None = None,
        latitude_e6: int = 0,
        longitude_e6: int = 0,
        note: str = "",
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> dispensing_pb2.UpdateDeliveryResponse:
        """Reports one step of a delivery (配送信息同步); the position is WGS-84 in millionths of a degree."""
        request = dispensing_pb2.UpdateDeliveryRequest(
            request_id=self._id(request_id),
            wait_for=wait_for,
            rx_no=rx_no,
            delivery_no=delivery_no,
            step=step,
            courier_code=courier_code,
            at_ms=self._now_unless(at_ms),
            latitude_e6=latitude_e6,
            longitude_e6=longitude_e6,
            note=note,
        )
        return await self.connection.unary(self._dispensing.UpdateDelivery, request, timeout_s)

    async def sign_delivery(
        self,
        *,
        rx_no: str,
        delivery_no: str,
        seal_key: SigningKey,
        sign_code: str = "",
        voucher_ref: str = "",
        pharmacy_code: str | None = None,
        signed_at_ms: int | None = None,
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> dispensing_pb2.SignDeliveryResponse:
        """The patient signs for the goods (签收): six-digit `sign_code`, or a `voucher_ref` of business type 01302."""
        statement = signed_pb2.SignDeliveryStatement(
            rx_no=rx_no,
            pharmacy_code=self._institution(pharmacy_code),
            delivery_no=delivery_no,
            signed_at_ms=self._now_unless(signed_at_ms),
        )
        request = dispensing_pb2.SignDeliveryRequest(
            request_id=self._id(request_id),
            wait_for=wait_for,
            statement=sign(statement, seal_key),
            sign_code=sign_code,
            voucher_ref=voucher_ref,
        )
        return await self.connection.unary(self._dispensing.SignDelivery, request, timeout_s)

    def watch(
        self, *, cursor: str = "", from_start: bool = False, timeout_s: float | None = None
    ) -> AsyncIterator[dispensing_pb2.WatchOrdersResponse]:
        """What happens to this pharmacy's orders, after `cursor`; goes on by itself after a lost connection.

        Keep the `cursor` of the last message that was dealt with: a watch begun with it misses nothing.
        """

        def request_after(
            last: dispensing_pb2.WatchOrdersResponse | None,
        ) -> dispensing_pb2.WatchOrdersRequest:
            at = last.cursor if last else cursor
            return dispensing_pb2.WatchOrdersRequest(cursor=at, from_start=from_start and not at)

        return self.connection.resuming_stream(self._dispensing.WatchOrders, request_after, timeout_s)
