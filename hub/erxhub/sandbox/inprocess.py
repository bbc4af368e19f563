"""Calls of a namespace's own dispatcher from inside the process: the same admission, lane and refusals as on a wire.

Owns the stand-in for gRPC's context. Must never: be a way past a check; it brings a real certificate like everybody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from erxhub.admission import Violation
from erxhub.rpc.methods import METHODS
from erxhub.sandbox.answers import DETAILS_KEY
from erxhub.sandbox.control import RefusedCall


class _Aborted(grpc.aio.AbortError):
    """What a handler's abort raises here; the dispatcher lets it pass as gRPC's own."""

    def __init__(self, refused: RefusedCall) -> None:
        super().__init__(str(refused))
        self.refused = refused


class _Context:
    """As much of a servicer context as the dispatcher asks for."""

    def __init__(self, certificate_pem: bytes) -> None:
        self._auth = {"x509_pem_cert": [certificate_pem]}

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        return self._auth

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    async def abort(
        self,
        code: grpc.StatusCode,
        details: str = "",
        trailing_metadata: Sequence[tuple[str, str | bytes]] = (),
    ) -> NoReturn:
        packed = next((value for key, value in trailing_metadata if key == DETAILS_KEY), b"")
        assert isinstance(packed, bytes)
        raise _Aborted(_refusal(code, details, packed))


async def call(handler: grpc.RpcMethodHandler[Any, Any], certificate_pem: bytes, method: str, request: Message) -> Any:
    """One unary call with this certificate. Raises RefusedCall, KeyError for an unknown method."""
    known = METHODS[method]
    serve: Any = handler.unary_unary
    try:
        body = await serve(request.SerializeToString(), _Context(certificate_pem))
    except _Aborted as aborted:
        raise aborted.refused from None
    return known.response.FromString(body)


def _refusal(code: grpc.StatusCode, message: str, packed: bytes) -> RefusedCall:
    info, chinese = error_details_pb2.ErrorInfo(), error_details_pb2.LocalizedMessage()
    bad = error_details_pb2.BadRequest()
    for detail in status_pb2.Status.FromString(packed).details:
        # Unpack leaves a message of another type as it is.
        detail.Unpack(info)
        detail.Unpack(chinese)
        detail.Unpack(bad)
    violations = [Violation(one.field, one.reason, one.description) for one in bad.field_violations]
    return RefusedCall(info.reason, code.name, message, chinese.message, dict(info.metadata), violations)
