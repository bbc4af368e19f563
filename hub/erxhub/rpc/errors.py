"""How a refusal looks on the wire: a gRPC status with google.rpc details, bounded in size.

Owns the shape only. The sentences, statuses and rules come from the refusal catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from erxhub.admission import Violation
from erxhub.config import Config
from erxhub.core.model import Refused
from erxhub.core.refusals import CATALOGUE

DOMAIN: Final = "erxhub"
DETAILS_BYTES_MAX: Final = 6 * 1024
"""Past 8 KiB of trailers a gRPC client sees RESOURCE_EXHAUSTED instead of the refusal; headers need room too."""

_METADATA_VALUE_MAX: Final = 400


class WireStatus(NamedTuple):
    """A status as gRPC takes it."""

    code: grpc.StatusCode
    message: str
    details: bytes


def _cut(text: str, size: int) -> str:
    encoded = text.encode()
    if len(encoded) <= size:
        return text
    return encoded[: size - 3].decode(errors="ignore") + "…"


def wire_status(refused: Refused, config: Config, violations: Sequence[Violation] = ()) -> WireStatus:
    """The status of a refusal, at most DETAILS_BYTES_MAX of details."""
    kind = CATALOGUE[refused.code]
    shown = list(violations[: config.violations_max])
    while True:
        status = _status(refused, config, shown, truncated=len(shown) < len(violations))
        encoded = status.SerializeToString()
        if len(encoded) <= DETAILS_BYTES_MAX or not shown:
            return WireStatus(grpc.StatusCode[kind.grpc_status], kind.en, encoded)
        shown = shown[: len(shown) // 2]


def _status(refused: Refused, config: Config, shown: Sequence[Violation], *, truncated: bool) -> status_pb2.Status:
    kind = CATALOGUE[refused.code]
    info = error_details_pb2.ErrorInfo(reason=refused.code, domain=DOMAIN)
    for key, value in refused.detail.items():
        info.metadata[key] = _cut(value, _METADATA_VALUE_MAX)
    info.metadata["rule_ids"] = ";".join(kind.rule_ids)
    info.metadata["retriable"] = "yes" if kind.retriable else "no"
    info.metadata["needs"] = kind.needs
    if refused.field:
        info.metadata["field"] = refused.field
    if refused.legal:
        info.metadata["legal_actions"] = ",".join(refused.legal)
    if truncated:
        info.metadata["truncated"] = "yes"
    status = status_pb2.Status(code=grpc.StatusCode[kind.grpc_status].value[0], message=kind.en)
    _add(status, info)
    _add(status, error_details_pb2.LocalizedMessage(locale="zh-CN", message=kind.zh))
    if shown or refused.field:
        bad = error_details_pb2.BadRequest()
        for violation in shown or [Violation(refused.field, "", kind.en)]:
            bad.field_violations.add(
                field=_cut(violation.field, config.violation_bytes_max),
                description=_cut(violation.text, config.violation_bytes_max),
                reason=violation.rule,
            )
        _add(status, bad)
    if kind.retriable:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(config.retry_after_ms)
        _add(status, error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def _add(
    status: status_pb2.Status,
    detail: error_details_pb2.ErrorInfo
    | error_details_pb2.LocalizedMessage
    | error_details_pb2.BadRequest
    | error_details_pb2.RetryInfo,
) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)
