"""What a call can end with instead of a reply, and how a refusal is read off the wire.

    ClientFailure
      Refusal          the hub answered "no": a code, the rules, both languages, what to do next
      CallFailed       the call broke without an answer of the hub's own (deadline, limits, a bug)
        HubUnreachable no connection, or it was lost; `code` says so, or names the local certificate's fault
      ReceiptInvalid   the hub accepted, and its receipt proves nothing

Owns: these classes and the decoding of google.rpc details. Must never: repeat a call or look at a certificate.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

ERROR_DOMAIN: Final = "erxhub"
DETAILS_KEY: Final = "grpc-status-details-bin"

# What is known about a request that gave no answer, and so belongs to every failure that leaves the outcome open.
_REPEAT_EN = "The outcome is unknown: send the same request again, with the same request id."
_REPEAT_ZH = "结果未知：请以相同的报文ID重新发送同一请求。"


class Violation(NamedTuple):
    """One field at fault: its path, the rule it broke, and a sentence."""

    field: str
    rule: str
    message: str


class ClientFailure(Exception):
    """Any call that brought no usable reply.

    `request` is the message that was sent (None for a failure outside a unary call), so that exactly the same bytes can
    be sent again with `client.send(failure.request)`; a new call would sign anew and be another request.
    """

    request: Message | None = None

    @property
    def request_id(self) -> str:
        """The request's id; empty for a read."""
        return str(getattr(self.request, "request_id", ""))


class Refusal(ClientFailure):
    """The hub said no, and recorded it.

    `code` is a code of the refusal catalogue, `grpc_status` the status's name. `field` is the field at fault or "",
    `violations` the fields in detail (at most 16; `truncated` says that there were more). `retriable` is true when the
    same request under the same request id can succeed once `needs` is met; `retry_after_ms` is 0 when the hub names no
    time. `legal_actions` are what the caller may do next with the object, only told to callers who have to do with it.
    `metadata` holds whatever else the hub said.
    """

    def __init__(
        self,
        code: str,
        grpc_status: str,
        *,
        field: str = "",
        violations: tuple[Violation, ...] = (),
        rule_ids: tuple[str, ...] = (),
        text_zh: str = "",
        text_en: str = "",
        retriable: bool = False,
        retry_after_ms: int = 0,
        needs: str = "",
        legal_actions: tuple[str, ...] = (),
        truncated: bool = False,
        metadata: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(f"{code}: {text_en}")
        self.code = code
        self.grpc_status = grpc_status
        self.field = field
        self.violations = violations
        self.rule_ids = rule_ids
        self.text_zh = text_zh
        self.text_en = text_en
        self.retriable = retriable
        self.retry_after_ms = retry_after_ms
        self.needs = needs
        self.legal_actions = legal_actions
        self.truncated = truncated
        self.metadata = metadata


class CallFailed(ClientFailure):
    """The call ended without an answer of the hub's own.

    `code` is stable: the gRPC status's name (DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, INTERNAL …), or for
    `HubUnreachable` HUB_UNREACHABLE or a TLS_… code. `details` is what the transport said, in its own words.
    """

    def __init__(self, code: str, grpc_status: str, *, text_en: str, text_zh: str, details: str = "") -> None:
        super().__init__(f"{code}: {text_en}")
        self.code = code
        self.grpc_status = grpc_status
        self.text_en = text_en
        self.text_zh = text_zh
        self.details = details


class HubUnreachable(CallFailed):
    """No connection to the hub, or it was lost before the answer.

    A `code` that begins with TLS_ means that the handshake failed and says why (`text_en`, `text_zh`): nothing
    reached the hub, and repeating does not help. With HUB_UNREACHABLE a command may or may not have been done.
    """


class ReceiptInvalid(ClientFailure):
    """The hub accepted the request, and its receipt is not what the pinned keys sign.

    `reason` is MISSING, MALFORMED, UNKNOWN_KEY or SIGNATURE. `reply` is the reply that carried it: the act was done.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.reply: Message | None = None


def _details(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None


def _split(text: str, separator: str) -> tuple[str, ...]:
    return tuple(part for part in (piece.strip() for piece in text.split(separator)) if part)


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal | None:
    """The refusal that a failed call carries, or None when the failure is not an answer of the hub."""
    status = _details(error)
    if status is None:
        return None
    info = error_details_pb2.ErrorInfo()
    localized = error_details_pb2.LocalizedMessage()
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    text_zh = ""
    try:
        for detail in status.details:
            if detail.Unpack(localized):
                text_zh = localized.message if localized.locale == "zh-CN" else text_zh
            else:
                _ = detail.Unpack(info) or detail.Unpack(bad_request) or detail.Unpack(retry)
    except DecodeError:
        return None
    if info.domain != ERROR_DOMAIN or not info.reason:
        return None

    free = dict(info.metadata)
    violations = tuple(
        Violation(found.field, found.reason, found.description) for found in bad_request.field_violations
    )
    return Refusal(
        info.reason,
        error.code().name,
        field=free.pop("field", "") or (violations[0].field if violations else ""),
        violations=violations,
        rule_ids=_split(free.pop("rule_ids", ""), ";"),
        text_zh=text_zh,
        text_en=error.details() or status.message,
        retriable=free.pop("retriable", "") == "yes",
        retry_after_ms=retry.retry_delay.ToMilliseconds(),
        needs=free.pop("needs", ""),
        legal_actions=_split(free.pop("legal_actions", ""), ","),
        truncated=free.pop("truncated", "") not in ("", "no"),
        metadata=MappingProxyType(free),
    )


def call_failed(error: grpc.aio.AioRpcError) -> CallFailed:
    """The failure of a call that the hub did not answer and that had a connection."""
    name = error.code().name
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return CallFailed(
            name,
            name,
            text_en=f"The hub did not answer in time. {_REPEAT_EN}",
            text_zh=f"中心未在时限内应答。{_REPEAT_ZH}",
            details=error.details() or "",
        )
    return CallFailed(
        name,
        name,
        text_en=f"The call ended with {name} and without an answer of the hub.",
        text_zh=f"调用以 {name} 结束，中心未给出应答。",
        details=error.details() or "",
    )


def hub_unreachable(target: str, details: str) -> HubUnreachable:
    """The failure of a call whose connection could not be made or was lost, with no fault found in the certificates."""
    return HubUnreachable(
        "HUB_UNREACHABLE",
        "UNAVAILABLE",
        text_en=f"The hub at {target} cannot be reached, or the connection was lost. {_REPEAT_EN}",
        text_zh=f"无法连接中心 {target}，或连接已中断。{_REPEAT_ZH}",
        details=details,
    )
