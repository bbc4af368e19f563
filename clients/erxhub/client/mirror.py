"""Reading the ledger and its log as a whole: an auditor does it with a case, a mirror for good (镜像).

Owns: the calls that both may make. Must never: verify anything; what a hub answers is for the caller to check.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from erxhub.client.base import Client
from erxhub.client.connection import Connection
from erxhub.client.request_ids import RequestIds
from erxhub.v1 import audit_pb2, audit_pb2_grpc

VERIFY_TIMEOUT_S: Final = 300.0
"""Verification reads every entry of the ledger."""


class LogReader(Client):
    """Entries, checkpoints and proofs. `case_reason` is set once, and may be replaced in a call."""

    def __init__(self, connection: Connection, *, request_ids: RequestIds | None = None, case_reason: str = "") -> None:
        super().__init__(connection, request_ids=request_ids)
        self.case_reason = case_reason
        self._audit = audit_pb2_grpc.AuditServiceStub(connection.channel)

    def stream_entries(
        self,
        *,
        after_position: int = 0,
        limit: int = 0,
        case_reason: str | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[audit_pb2.StreamEntriesResponse]:
        """Ledger entries after a position (账本条目), `limit` of them or (0) all; goes on after a lost connection."""
        received = 0

        def request_after(last: audit_pb2.StreamEntriesResponse | None) -> audit_pb2.StreamEntriesRequest:
            return audit_pb2.StreamEntriesRequest(
                after_position=last.position if last else after_position,
                case_reason=self._reason(case_reason),
                limit=limit - received if limit else 0,
            )

        async def counted() -> AsyncIterator[audit_pb2.StreamEntriesResponse]:
            nonlocal received
            stream = self.connection.resuming_stream(self._audit.StreamEntries, request_after, timeout_s)
            async for entry in stream:
                received += 1
                yield entry
                if received == limit:
                    return

        return counted()

    async def verify_ledger(
        self, *, case_reason: str | None = None, timeout_s: float = VERIFY_TIMEOUT_S
    ) -> audit_pb2.VerifyLedgerResponse:
        """Verifies every entry of the ledger (账本校验) and names each that is broken."""
        request = audit_pb2.VerifyLedgerRequest(case_reason=self._reason(case_reason))
        return await self.connection.unary(self._audit.VerifyLedger, request, timeout_s)

    async def checkpoint(self, *, size: int = 0, timeout_s: float | None = None) -> audit_pb2.GetCheckpointResponse:
        """A signed checkpoint of the log (检查点): the newest, or that of a size."""
        return await self.connection.unary(
            self._audit.GetCheckpoint, audit_pb2.GetCheckpointRequest(size=size), timeout_s
        )

    async def checkpoints(
        self, *, after_size: int = 0, page_size: int = 0, timeout_s: float | None = None
    ) -> audit_pb2.ListCheckpointsResponse:
        """The checkpoints beyond a size, in order (检查点列表); none at the end."""
        request = audit_pb2.ListCheckpointsRequest(after_size=after_size, page_size=page_size)
        return await self.connection.unary(self._audit.ListCheckpoints, request, timeout_s)

    async def prove_inclusion(
        self, *, stream_key: bytes, version: int, case_reason: str | None = None, timeout_s: float | None = None
    ) -> audit_pb2.ProveInclusionResponse:
        """That an entry is in the log (包含证明). Verify it with `erxhub.proof.merkle`."""
        request = audit_pb2.ProveInclusionRequest(
            stream_key=stream_key, version=version, case_reason=self._reason(case_reason)
        )
        return await self.connection.unary(self._audit.ProveInclusion, request, timeout_s)

    async def prove_consistency(
        self, *, size1: int, size2: int, timeout_s: float | None = None
    ) -> audit_pb2.ProveConsistencyResponse:
        """That the log of one size begins that of another (一致性证明)."""
        request = audit_pb2.ProveConsistencyRequest(size1=size1, size2=size2)
        return await self.connection.unary(self._audit.ProveConsistency, request, timeout_s)

    def _reason(self, case_reason: str | None) -> str:
        return self.case_reason if case_reason is None else case_reason


class MirrorClient(LogReader):
    """Copies the ledger, contents and all (镜像). Its certificate says so, and it needs no case."""
