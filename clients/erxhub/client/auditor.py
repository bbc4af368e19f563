"""An auditor with a case: tracing, finding, verifying, and taking proofs away (审计).

Owns: the calls that an auditor's certificate may make. Must never: call without the caller's reason; each access is
recorded with it, and shown to the patient.
"""

from __future__ import annotations

from erxhub.client.mirror import VERIFY_TIMEOUT_S, LogReader
from erxhub.client.shared_calls import CatalogReader
from erxhub.v1 import audit_pb2


class AuditorClient(CatalogReader, LogReader):
    """Reads under a case. `case_reason` is set once, and may be replaced in a call."""

    async def trace(
        self,
        *,
        rx_no: str,
        verify: bool = False,
        case_reason: str | None = None,
        timeout_s: float | None = None,
    ) -> audit_pb2.TraceChainResponse:
        """One prescription from diagnosis to delivery (全流程追溯); `verify` checks hashes and signatures too."""
        request = audit_pb2.TraceChainRequest(rx_no=rx_no, case_reason=self._reason(case_reason), verify=verify)
        return await self.connection.unary(self._audit.TraceChain, request, timeout_s)

    async def find(
        self,
        *,
        rx_no: str | None = None,
        encounter_id: str | None = None,
        institution_code: str | None = None,
        trace_code: str | None = None,
        page_size: int = 0,
        page_token: str = "",
        case_reason: str | None = None,
        timeout_s: float | None = None,
    ) -> audit_pb2.FindChainsResponse:
        """A page of the prescriptions that match (查找链条).

        Raises ValueError unless exactly one criterion is given.
        """
        criteria = {
            "rx_no": rx_no,
            "encounter_id": encounter_id,
            "institution_code": institution_code,
            "trace_code": trace_code,
        }
        given = [(name, value) for name, value in criteria.items() if value is not None]
        if len(given) != 1:
            raise ValueError(f"name exactly one of {', '.join(criteria)}")
        request = audit_pb2.FindChainsRequest(
            case_reason=self._reason(case_reason), page_size=page_size, page_token=page_token
        )
        setattr(request, *given[0])
        return await self.connection.unary(self._audit.FindChains, request, timeout_s)

    async def report_anomalies(
        self, *, day: str = "", case_reason: str | None = None, timeout_s: float = VERIFY_TIMEOUT_S
    ) -> audit_pb2.ReportAnomaliesResponse:
        """What was not as it should be on one day (每日异常报告): YYYY-MM-DD in China, today by default."""
        request = audit_pb2.ReportAnomaliesRequest(day=day, case_reason=self._reason(case_reason))
        return await self.connection.unary(self._audit.ReportAnomalies, request, timeout_s)

    async def export_bundle(
        self, *, rx_no: str, case_reason: str | None = None, timeout_s: float | None = None
    ) -> audit_pb2.ExportBundleResponse:
        """Everything that proves one prescription (导出证据包), to be verified offline."""
        request = audit_pb2.ExportBundleRequest(rx_no=rx_no, case_reason=self._reason(case_reason))
        return await self.connection.unary(self._audit.ExportBundle, request, timeout_s)

    async def prove_absence(
        self,
        *,
        rx_no: str | None = None,
        trace_code: str | None = None,
        stream_key: bytes | None = None,
        case_reason: str | None = None,
        timeout_s: float | None = None,
    ) -> audit_pb2.ProveAbsenceResponse:
        """That nothing ever happened under a number, or every entry that there is, without content (不存在证明).

        Raises ValueError unless exactly one subject is given.
        """
        subjects = {"rx_no": rx_no, "trace_code": trace_code, "stream_key": stream_key}
        given = [(name, value) for name, value in subjects.items() if value is not None]
        if len(given) != 1:
            raise ValueError(f"name exactly one of {', '.join(subjects)}")
        request = audit_pb2.ProveAbsenceRequest(case_reason=self._reason(case_reason))
        setattr(request, *given[0])
        return await self.connection.unary(self._audit.ProveAbsence, request, timeout_s)
