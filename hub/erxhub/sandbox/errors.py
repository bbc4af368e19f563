"""Every "no" of the sandbox's control service: code, gRPC status and two sentences, and how it looks on the wire.

Owns the table. The form is the hub's own (docs/refusals): ErrorInfo of the domain "erxhub", the Chinese sentence, and
field violations. The data port never answers with one of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from erxhub.admission import Violation
from erxhub.rpc.errors import DOMAIN, WireStatus

_VIOLATIONS_MAX: Final = 16
_TEXT_MAX: Final = 400


class ErrorKind(NamedTuple):
    """One row: the status, and what the operator reads."""

    status: grpc.StatusCode
    en: str
    zh: str


ERRORS: Final[Mapping[str, ErrorKind]] = MappingProxyType(
    {
        "SBX_ROLE": ErrorKind(
            grpc.StatusCode.PERMISSION_DENIED,
            "The sandbox is controlled with a certificate of the role sandbox of its own trust domain.",
            "沙箱控制须使用本信任域内角色为 sandbox 的证书。",
        ),
        "SBX_NAMESPACE_UNKNOWN": ErrorKind(
            grpc.StatusCode.NOT_FOUND, "There is no namespace of this name.", "没有该名称的命名空间。"
        ),
        "SBX_NAMESPACE_FOREIGN": ErrorKind(
            grpc.StatusCode.PERMISSION_DENIED,
            "The namespace belongs to another certificate.",
            "该命名空间属于另一个证书。",
        ),
        "SBX_NAMESPACE_EXISTS": ErrorKind(
            grpc.StatusCode.ALREADY_EXISTS, "There is a namespace of this name.", "该名称的命名空间已存在。"
        ),
        "SBX_SNAPSHOT_UNKNOWN": ErrorKind(
            grpc.StatusCode.NOT_FOUND, "The namespace has no snapshot of this name.", "该命名空间没有此名称的快照。"
        ),
        "SBX_ARGUMENT": ErrorKind(grpc.StatusCode.INVALID_ARGUMENT, "An argument breaks its rule.", "参数不符合规定。"),
        "SBX_FAULT_NEVER_MATCHES": ErrorKind(
            grpc.StatusCode.INVALID_ARGUMENT, "The fault rule can match nothing.", "该故障规则不可能匹配任何调用。"
        ),
        "SBX_CLOCK_BACK": ErrorKind(
            grpc.StatusCode.INVALID_ARGUMENT,
            "A clock moves forward only; a snapshot or a reset goes back.",
            "时钟只能向前；如需回退请使用快照或重置。",
        ),
        "SBX_TRIGGER_STATE": ErrorKind(
            grpc.StatusCode.FAILED_PRECONDITION,
            "The object's state does not allow this event.",
            "对象的当前状态不允许触发该事件。",
        ),
        "SBX_LIMIT": ErrorKind(
            grpc.StatusCode.RESOURCE_EXHAUSTED, "The sandbox holds as many as it may.", "沙箱中的数量已达上限。"
        ),
        "SBX_UNAVAILABLE": ErrorKind(
            grpc.StatusCode.UNAVAILABLE,
            "The namespace's hub cannot be used now; its ledger may not be writable.",
            "该命名空间暂不可用，其账本可能无法写入。",
        ),
    }
)
"""Code → row."""


class SandboxRefused(Exception):
    """The control service says no; `detail` is what its message may tell (names, never personal values)."""

    def __init__(
        self, code: str, detail: Mapping[str, str] | None = None, violations: Sequence[Violation] = ()
    ) -> None:
        super().__init__(f"{code}: {ERRORS[code].en}")
        self.code = code
        self.detail = dict(detail or {})
        self.violations = tuple(violations)


def argument_refused(field: str, rule: str, text: str) -> SandboxRefused:
    """SBX_ARGUMENT for one field."""
    return SandboxRefused("SBX_ARGUMENT", {"field": field}, [Violation(field, rule, text)])


def wire_error(refused: SandboxRefused) -> WireStatus:
    """The status of a refusal."""
    kind = ERRORS[refused.code]
    info = error_details_pb2.ErrorInfo(reason=refused.code, domain=DOMAIN)
    for key, value in refused.detail.items():
        info.metadata[key] = value[:_TEXT_MAX]
    status = status_pb2.Status(code=kind.status.value[0], message=kind.en)
    details: list[error_details_pb2.ErrorInfo | error_details_pb2.LocalizedMessage | error_details_pb2.BadRequest] = [
        info,
        error_details_pb2.LocalizedMessage(locale="zh-CN", message=kind.zh),
    ]
    if refused.violations:
        bad = error_details_pb2.BadRequest()
        for violation in refused.violations[:_VIOLATIONS_MAX]:
            bad.field_violations.add(
                field=violation.field[:_TEXT_MAX], description=violation.text[:_TEXT_MAX], reason=violation.rule
            )
        details.append(bad)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return WireStatus(kind.status, kind.en, status.SerializeToString())
