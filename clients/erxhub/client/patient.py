"""A patient channel: the e-voucher and what an insured person, or his delegate, does with prescriptions (第三方渠道).

Owns: the calls that a channel's certificate may make. Must never: keep a code; it is shown once, and to the patient.
"""

from __future__ import annotations

from erxhub.client.base import DEFAULT_WAIT, Client, WaitFor, page_of
from erxhub.client.connection import Connection
from erxhub.client.request_ids import RequestIds
from erxhub.client.shared_calls import CatalogReader, VoucherEnder
from erxhub.v1 import common_pb2, patient_pb2, patient_pb2_grpc, voucher_pb2


class PatientClient(CatalogReader, VoucherEnder, Client):
    """Speaks for patients and delegates. `delegate_person_no` is empty when the person acts himself."""

    def __init__(self, connection: Connection, *, request_ids: RequestIds | None = None) -> None:
        super().__init__(connection, request_ids=request_ids)
        self._patients = patient_pb2_grpc.PatientServiceStub(connection.channel)

    # --- the e-voucher ---

    async def activate_voucher(
        self,
        *,
        person_no: str,
        identity_level: voucher_pb2.IdentityLevel.ValueType = voucher_pb2.IDENTITY_LEVEL_REAL_PERSON,
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> voucher_pb2.ActivateVoucherResponse:
        """Activates the person's e-voucher on this channel (激活)."""
        request = voucher_pb2.ActivateVoucherRequest(
            request_id=self._id(request_id), wait_for=wait_for, person_no=person_no, identity_level=identity_level
        )
        return await self.connection.unary(self._vouchers.ActivateVoucher, request, timeout_s)

    async def issue_voucher(
        self,
        *,
        person_no: str,
        business_type: str,
        delegate_person_no: str = "",
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> voucher_pb2.IssueVoucherResponse:
        """Makes a single-use code that lives 60 seconds (展码), for one business type (five digits)."""
        request = voucher_pb2.IssueVoucherRequest(
            request_id=self._id(request_id),
            wait_for=wait_for,
            person_no=person_no,
            delegate_person_no=delegate_person_no,
            business_type=business_type,
        )
        return await self.connection.unary(self._vouchers.IssueVoucher, request, timeout_s)

    # --- prescriptions ---

    async def list_prescriptions(
        self,
        *,
        person_no: str,
        delegate_person_no: str = "",
        page_size: int = 0,
        page_token: str = "",
        timeout_s: float | None = None,
    ) -> patient_pb2.ListMyPrescriptionsResponse:
        """A page of the person's prescriptions, newest first: summaries, no diagnosis."""
        request = patient_pb2.ListMyPrescriptionsRequest(
            person_no=person_no, delegate_person_no=delegate_person_no, page=page_of(page_size, page_token)
        )
        return await self.connection.unary(self._patients.ListMyPrescriptions, request, timeout_s)

    async def choose_pharmacy(
        self,
        *,
        person_no: str,
        rx_no: str,
        pharmacy_code: str,
        mode: common_pb2.FulfilmentMode.ValueType = common_pb2.FULFILMENT_MODE_PICKUP,
        delegate_person_no: str = "",
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> patient_pb2.ChoosePharmacyResponse:
        """Creates an order at a pharmacy (选择药店), for pick-up or delivery."""
        request = patient_pb2.ChoosePharmacyRequest(
            request_id=self._id(request_id),
            wait_for=wait_for,
            person_no=person_no,
            delegate_person_no=delegate_person_no,
            rx_no=rx_no,
            pharmacy_code=pharmacy_code,
            mode=mode,
        )
        return await self.connection.unary(self._patients.ChoosePharmacy, request, timeout_s)

    async def cancel_order(
        self,
        *,
        person_no: str,
        rx_no: str,
        pharmacy_code: str,
        delegate_person_no: str = "",
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> patient_pb2.CancelOrderResponse:
        """Ends an order, or an authorisation before the download, before settlement (取消订单)."""
        request = patient_pb2.CancelOrderRequest(
            request_id=self._id(request_id),
            wait_for=wait_for,
            person_no=person_no,
            delegate_person_no=delegate_person_no,
            rx_no=rx_no,
            pharmacy_code=pharmacy_code,
        )
        return await self.connection.unary(self._patients.CancelOrder, request, timeout_s)

    async def make_qr(
        self,
        *,
        person_no: str,
        rx_no: str,
        delegate_person_no: str = "",
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> patient_pb2.MakeQrResponse:
        """Makes a QR value of 27 characters for one prescription, single use, 60 seconds (处方二维码)."""
        request = patient_pb2.MakeQrRequest(
            request_id=self._id(request_id),
            wait_for=wait_for,
            person_no=person_no,
            delegate_person_no=delegate_person_no,
            rx_no=rx_no,
        )
        return await self.connection.unary(self._patients.MakeQr, request, timeout_s)

    async def request_delivery(
        self,
        *,
        person_no: str,
        rx_no: str,
        pharmacy_code: str,
        address: str,
        phone: str,
        delegate_person_no: str = "",
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> patient_pb2.RequestDeliveryResponse:
        """Asks for delivery (申请配送); the reply shows the sign-for code once, and asking again gives a new one."""
        request = patient_pb2.RequestDeliveryRequest(
            request_id=self._id(request_id),
            wait_for=wait_for,
            person_no=person_no,
            delegate_person_no=delegate_person_no,
            rx_no=rx_no,
            pharmacy_code=pharmacy_code,
            address=address,
            phone=phone,
        )
        return await self.connection.unary(self._patients.RequestDelivery, request, timeout_s)

    async def list_accesses(
        self,
        *,
        person_no: str,
        rx_no: str = "",
        delegate_person_no: str = "",
        page_size: int = 0,
        page_token: str = "",
        timeout_s: float | None = None,
    ) -> patient_pb2.ListAccessesResponse:
        """A page of who accessed the person's prescriptions (访问记录), newest first; of one with `rx_no`."""
        request = patient_pb2.ListAccessesRequest(
            person_no=person_no,
            delegate_person_no=delegate_person_no,
            rx_no=rx_no,
            page=page_of(page_size, page_token),
        )
        return await self.connection.unary(self._patients.ListAccesses, request, timeout_s)
