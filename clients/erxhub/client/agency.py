"""An agency of one area: the registry, agreements, keys, code lists, freezes (经办机构).

Owns: the calls that an agency's certificate may make, and the cutting of an import into messages.
Must never: read a file or judge a row; the hub says which rows it takes.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Final

from erxhub.client.base import DEFAULT_WAIT, Client, WaitFor, page_of
from erxhub.client.shared_calls import CatalogReader, VoucherEnder
from erxhub.v1 import catalog_pb2, common_pb2, registry_pb2

CHUNK_ROWS_MAX: Final = 2_000
"""The hub takes no more rows in one message."""
CHUNK_BYTES_MAX: Final = 512 * 1024
"""Far below every message limit, whatever the rows hold."""
IMPORT_TIMEOUT_S: Final = 300.0
"""A national list has tens of thousands of rows, all written in one commit."""


async def _each(
    entries: Iterable[catalog_pb2.CatalogEntry] | AsyncIterable[catalog_pb2.CatalogEntry],
) -> AsyncIterator[catalog_pb2.CatalogEntry]:
    if isinstance(entries, AsyncIterable):
        async for entry in entries:
            yield entry
    else:
        for entry in entries:
            yield entry


async def import_messages(
    header: registry_pb2.CatalogHeader,
    entries: Iterable[catalog_pb2.CatalogEntry] | AsyncIterable[catalog_pb2.CatalogEntry],
) -> AsyncIterator[registry_pb2.ImportCatalogRequest]:
    """The messages of an import: the header, then the entries in their order, at most 2,000 or 512 KiB at a time."""
    yield registry_pb2.ImportCatalogRequest(header=header)
    chunk: list[catalog_pb2.CatalogEntry] = []
    size = 0
    async for entry in _each(entries):
        entry_size = entry.ByteSize()
        if chunk and (len(chunk) == CHUNK_ROWS_MAX or size + entry_size > CHUNK_BYTES_MAX):
            yield registry_pb2.ImportCatalogRequest(rows=registry_pb2.CatalogRows(entries=chunk))
            chunk, size = [], 0
        chunk.append(entry)
        size += entry_size
    if chunk:
        yield registry_pb2.ImportCatalogRequest(rows=registry_pb2.CatalogRows(entries=chunk))


class AgencyClient(CatalogReader, VoucherEnder, Client):
    """Writes and reads the registry inside the agency's area.

    `etag` comes from an earlier read or reply; with it, a change is refused when the record has changed since.
    """

    # --- institutions and agreements ---

    async def register_institution(
        self,
        *,
        institution_code: str,
        name: str,
        level: str = "",
        social_credit_code: str = "",
        internet: bool = False,
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> registry_pb2.RegisterInstitutionResponse:
        """Registers a hospital (H…) or a pharmacy (P…); `internet` is the licence for internet visits."""
        request = registry_pb2.RegisterInstitutionRequest(
            request_id=self._id(request_id),
            wait_for=wait_for,
            institution_code=institution_code,
            name=name,
            social_credit_code=social_credit_code,
            level=level,
            licences=registry_pb2.Licences(internet=internet),
        )
        return await self.connection.unary(self._registry.RegisterInstitution, request, timeout_s)

    async def sign_agreement(
        self,
        *,
        institution_code: str,
        kind: registry_pb2.AgreementKind.ValueType,
        agreement_no: str,
        valid_from_ms: int,
        valid_until_ms: int,
        clauses: Iterable[str] = (),
        etag: str = "",
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> registry_pb2.SignAgreementResponse:
        """Signs an agreement with an institution (签订服务协议)."""
        request = registry_pb2.SignAgreementRequest(
            request_id=self._id(request_id),
            wait_for=wait_for,
            institution_code=institution_code,
            kind=kind,
            agreement_no=agreement_no,
            valid_from_ms=valid_from_ms,
            valid_until_ms=valid_until_ms,
            clauses=clauses,
            etag=etag,
        )
        return await self.connection.unary(self._registry.SignAgreement, request, timeout_s)

    async def change_agreement_status(
        self,
        *,
        institution_code: str,
        kind: registry_pb2.AgreementKind.ValueType,
        status: registry_pb2.AgreementStatus.ValueType,
        case_no: str = "",
        etag: str = "",
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> registry_pb2.ChangeAgreementStatusResponse:
        """Suspends (with a case), resumes (ACTIVE) or terminates an agreement."""
        request = registry_pb2.ChangeAgreementStatusRequest(
            request_id=self._id(request_id),
            wait_for=wait_for,
            institution_code=institution_code,
            kind=kind,
            status=status,
            case_no=case_no,
            etag=etag,
        )
        return await self.connection.unary(self._registry.ChangeAgreementStatus, request, timeout_s)

    async def get_institution(
        self, *, institution_code: str, timeout_s: float | None = None
    ) -> registry_pb2.GetInstitutionResponse:
        """One institution with its agreements and keys."""
        request = registry_pb2.GetInstitutionRequest(institution_code=institution_code)
        return await self.connection.unary(self._registry.GetInstitution, request, timeout_s)

    async def list_institutions(
        self, *, page_size: int = 0, page_token: str = "", timeout_s: float | None = None
    ) -> registry_pb2.ListInstitutionsResponse:
        """A page of the institutions of the agency's area."""
        request = registry_pb2.ListInstitutionsRequest(page=page_of(page_size, page_token))
        return await self.connection.unary(self._registry.ListInstitutions, request, timeout_s)

    # --- people ---

    async def register_person(
        self,
        *,
        person_no: str,
        name: str,
        id_number: str,
        sex: common_pb2.Sex.ValueType,
        born_on: str,
        insured_area_code: str,
        insurance_type: str,
        person_type: str,
        certificate_type: str = "01",
        account_balance_fen: int = 0,
        delegate_person_nos: Iterable[str] = (),
        chronic_codes: Iterable[str] = (),
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> registry_pb2.RegisterPersonResponse:
        """Registers an insured person with his account (参保登记); `born_on` is yyyy-mm-dd."""
        request = registry_pb2.RegisterPersonRequest(
            request_id=self._id(request_id),
            wait_for=wait_for,
            person_no=person_no,
            name=name,
            certificate_type=certificate_type,
            id_number=id_number,
            sex=sex,
            born_on=born_on,
            insured_area_code=insured_area_code,
            insurance_type=insurance_type,
            person_type=person_type,
            account_balance_fen=account_balance_fen,
            delegate_person_nos=delegate_person_nos,
            chronic_codes=chronic_codes,
        )
        return await self.connection.unary(self._registry.RegisterPerson, request, timeout_s)

    async def change_person_status(
        self,
        *,
        person_no: str,
        status: registry_pb2.PersonStatus.ValueType,
        reason: str = "",
        etag: str = "",
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> registry_pb2.ChangePersonStatusResponse:
        """Pauses or resumes insurance, or registers a death (参保状态变更)."""
        request = registry_pb2.ChangePersonStatusRequest(
            request_id=self._id(request_id),
            wait_for=wait_for,
            person_no=person_no,
            status=status,
            reason=reason,
            etag=etag,
        )
        return await self.connection.unary(self._registry.ChangePersonStatus, request, timeout_s)

    async def get_person(self, *, person_no: str, timeout_s: float | None = None) -> registry_pb2.GetPersonResponse:
        """One insured person."""
        request = registry_pb2.GetPersonRequest(person_no=person_no)
        return await self.connection.unary(self._registry.GetPerson, request, timeout_s)

    async def register_practitioner(
        self,
        *,
        practitioner_code: str,
        name: str,
        kind: registry_pb2.PractitionerKind.ValueType,
        institution_codes: Iterable[str],
        practice_years: int = 0,
        dual_channel: bool = False,
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> registry_pb2.RegisterPractitionerResponse:
        """Registers a practitioner or a pharmacy's staff (登记执业人员) at one or more institutions."""
        request = registry_pb2.RegisterPractitionerRequest(
            request_id=self._id(request_id),
            wait_for=wait_for,
            practitioner_code=practitioner_code,
            name=name,
            kind=kind,
            practice_years=practice_years,
            institution_codes=institution_codes,
            dual_channel=dual_channel,
        )
        return await self.connection.unary(self._registry.RegisterPractitioner, request, timeout_s)

    async def change_practitioner_status(
        self,
        *,
        practitioner_code: str,
        status: registry_pb2.PractitionerStatus.ValueType,
        case_no: str = "",
        etag: str = "",
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> registry_pb2.ChangePractitionerStatusResponse:
        """Suspends (with a case), resumes (ACTIVE) or ends a practitioner."""
        request = registry_pb2.ChangePractitionerStatusRequest(
            request_id=self._id(request_id),
            wait_for=wait_for,
            practitioner_code=practitioner_code,
            status=status,
            case_no=case_no,
            etag=etag,
        )
        return await self.connection.unary(self._registry.ChangePractitionerStatus, request, timeout_s)

    async def get_practitioner(
        self, *, practitioner_code: str, timeout_s: float | None = None
    ) -> registry_pb2.GetPractitionerResponse:
        """One practitioner with his keys."""
        request = registry_pb2.GetPractitionerRequest(practitioner_code=practitioner_code)
        return await self.connection.unary(self._registry.GetPractitioner, request, timeout_s)

    async def list_practitioners(
        self,
        *,
        institution_code: str,
        page_size: int = 0,
        page_token: str = "",
        timeout_s: float | None = None,
    ) -> registry_pb2.ListPractitionersResponse:
        """A page of the practitioners registered at an institution."""
        request = registry_pb2.ListPractitionersRequest(
            institution_code=institution_code, page=page_of(page_size, page_token)
        )
        return await self.connection.unary(self._registry.ListPractitioners, request, timeout_s)

    # --- keys and certificates ---

    async def register_signing_key(
        self,
        *,
        subject_code: str,
        institution_code: str,
        suite: str,
        public_key: bytes,
        valid_from_ms: int,
        valid_until_ms: int,
        certificate_pem: bytes = b"",
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> registry_pb2.RegisterSigningKeyResponse:
        """Registers a signing key of a practitioner, or of the institution itself for its seal (登记签名密钥).

        `suite` is ES256, EdDSA or SM2-SM3; the certificate is left out for SM2.
        """
        request = registry_pb2.RegisterSigningKeyRequest(
            request_id=self._id(request_id),
            wait_for=wait_for,
            subject_code=subject_code,
            institution_code=institution_code,
            suite=suite,
            public_key=public_key,
            valid_from_ms=valid_from_ms,
            valid_until_ms=valid_until_ms,
            certificate_pem=certificate_pem,
        )
        return await self.connection.unary(self._registry.RegisterSigningKey, request, timeout_s)

    async def revoke_certificate(
        self,
        *,
        reason: str,
        certificate_pem: bytes | None = None,
        key_id: str | None = None,
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> registry_pb2.RevokeCertificateResponse:
        """Revokes a connection certificate, given as PEM, or a signing key (吊销).

        The holder is in the agency's area; a certificate of somebody without an area (a channel, an auditor) is for
        the agencies that act for the whole ledger. Raises ValueError unless exactly one of the two is given.
        """
        if (certificate_pem is None) == (key_id is None):
            raise ValueError("name either a certificate or a signing key")
        request = registry_pb2.RevokeCertificateRequest(
            request_id=self._id(request_id), wait_for=wait_for, reason=reason
        )
        if certificate_pem is not None:
            request.certificate_pem = certificate_pem
        if key_id is not None:
            request.key_id = key_id
        return await self.connection.unary(self._registry.RevokeCertificate, request, timeout_s)

    # --- prescriptions under suspicion ---

    async def freeze_prescription(
        self,
        *,
        rx_no: str,
        case_no: str,
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> registry_pb2.FreezePrescriptionResponse:
        """Freezes a prescription under a case or rule (冻结处方)."""
        request = registry_pb2.FreezePrescriptionRequest(
            request_id=self._id(request_id), wait_for=wait_for, rx_no=rx_no, case_no=case_no
        )
        return await self.connection.unary(self._registry.FreezePrescription, request, timeout_s)

    async def unfreeze_prescription(
        self,
        *,
        rx_no: str,
        case_no: str,
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> registry_pb2.UnfreezePrescriptionResponse:
        """Lifts a freeze (解冻处方)."""
        request = registry_pb2.UnfreezePrescriptionRequest(
            request_id=self._id(request_id), wait_for=wait_for, rx_no=rx_no, case_no=case_no
        )
        return await self.connection.unary(self._registry.UnfreezePrescription, request, timeout_s)

    # --- the end of retention ---

    async def erase_content(
        self,
        *,
        rx_no: str,
        legal_basis: str,
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float | None = None,
    ) -> registry_pb2.EraseContentResponse:
        """Erases what a prescription's entries say, once no retention class keeps it (清除保存期满的处方内容).

        It cannot be undone. That the entries exist and their order remain provable. Refused with RETENTION, and the
        earliest day, while it has to be kept. `legal_basis` stays in the ledger: no personal data.
        """
        request = registry_pb2.EraseContentRequest(
            request_id=self._id(request_id), wait_for=wait_for, rx_no=rx_no, legal_basis=legal_basis
        )
        return await self.connection.unary(self._registry.EraseContent, request, timeout_s)

    # --- code lists ---

    async def import_catalog(
        self,
        *,
        dataset: catalog_pb2.CatalogDataset.ValueType,
        edition: str,
        valid_from_on: str,
        file_sha256: bytes,
        entries: Iterable[catalog_pb2.CatalogEntry] | AsyncIterable[catalog_pb2.CatalogEntry],
        source: str = "",
        request_id: str | None = None,
        wait_for: WaitFor = DEFAULT_WAIT,
        timeout_s: float = IMPORT_TIMEOUT_S,
    ) -> registry_pb2.ImportCatalogResponse:
        """Imports one edition of a code list (导入目录); the reply says which rows were taken and which refused.

        `valid_from_on` is yyyy-mm-dd (Beijing). `entries` may be a generator; an error in it cancels the import as
        a whole. gRPC repeats an import only while it fits its buffer (4 MiB); after HubUnreachable import again with
        the same `request_id` and the same entries.
        """
        header = registry_pb2.CatalogHeader(
            request_id=self._id(request_id),
            wait_for=wait_for,
            dataset=dataset,
            edition=edition,
            valid_from_on=valid_from_on,
            file_sha256=file_sha256,
            source=source,
        )
        return await self.connection.client_stream(
            self._registry.ImportCatalog, import_messages(header, entries), timeout_s
        )
