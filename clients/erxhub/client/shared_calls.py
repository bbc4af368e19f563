"""Calls that several kinds of caller may make, each written once and mixed into their clients.

Owns: reading the catalogue, verifying a voucher code, and ending a voucher or its activation.
Must never: hold a call of one kind of caller alone; that belongs to its client.
"""

from __future__ import annotations

from erxhub.client.base import DEFAULT_WAIT, Client, WaitFor, page_of
from erxhub.v1 import catalog_pb2, registry_pb2, voucher_pb2


class CatalogReader(Client):
    """Everybody reads the code lists."""

    async def list_catalog(
        self,
        *,
        dataset: catalog_pb2.CatalogDataset.ValueType,
        code_prefix: str = "",
        page_size: int = 0,
        page_token: str = "",
        timeout_s: float | None = None,
    ) -> registry_pb2.ListCatalogResponse:
        """The editions of a code list, and a page of the rows in force, by code (目录查询)."""
        request = registry_pb2.ListCatalogRequest(
            dataset=dataset, page=page_of(page_size, page_token), code_prefix=code_prefix
        )
        return await self.connection.unary(self._registry.ListCatalog, request, timeout_s)


class VoucherVerifier(Client):
    """Institutions decode a code that a patient shows."""

    async def verify_voucher(
        self,
        *,
        voucher_code: str,
        business_type: str,
        channel_id: str = "",
        person_no: str = "",
        operator_id: str = "",
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> voucher_pb2.VerifyVoucherResponse:
        """Consumes a code of 28 digits (解码核验); the reply holds the `voucher_ref` that the steps quote."""
        request = voucher_pb2.VerifyVoucherRequest(
            request_id=self._id(request_id),
            wait_for=wait_for,
            voucher_code=voucher_code,
            business_type=business_type,
            channel_id=channel_id,
            person_no=person_no,
            operator_id=operator_id,
        )
        return await self.connection.unary(self._vouchers.VerifyVoucher, request, timeout_s)


class VoucherEnder(Client):
    """Channels and agencies end a code or an activation."""

    async def deactivate_voucher(
        self,
        *,
        person_no: str,
        channel_id: str = "",
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> voucher_pb2.DeactivateVoucherResponse:
        """Ends an activation (停用); an agency names the channel, a channel may leave its own out."""
        request = voucher_pb2.DeactivateVoucherRequest(
            request_id=self._id(request_id), wait_for=wait_for, person_no=person_no, channel_id=channel_id
        )
        return await self.connection.unary(self._vouchers.DeactivateVoucher, request, timeout_s)

    async def revoke_voucher(
        self,
        *,
        voucher_code: str,
        reason: str = "",
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> voucher_pb2.RevokeVoucherResponse:
        """Withdraws a code that was not used (作废)."""
        request = voucher_pb2.RevokeVoucherRequest(
            request_id=self._id(request_id), wait_for=wait_for, voucher_code=voucher_code, reason=reason
        )
        return await self.connection.unary(self._vouchers.RevokeVoucher, request, timeout_s)
