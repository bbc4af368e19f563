"""Turns replies of a hub into the plain objects that the command line prints.

Owns how a protobuf message looks as JSON here: field names as in the .proto files, instants as ISO 8601 in Beijing
time, enum values without their prefix, bytes as hexadecimal. It must never compute or leave out a field.
"""

from __future__ import annotations

import re
from typing import Any, Final

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message

from erxhub.cli.arguments import iso_beijing
from erxhub.v1 import audit_pb2

STREAM_KEY_DIGITS: Final = 16
"""The part of a stream's key that a person is shown."""

_INSTANT: Final = re.compile(r"(^|_)(at|until|from)_ms$")


def record(message: Message) -> dict[str, Any]:
    """Every field of a message, in its order; an unset message, enum or instant is None."""
    shown: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        name = field.name.removesuffix("_ms") if _INSTANT.search(field.name) else field.name
        if field.is_repeated:
            shown[name] = [_value(field, item) for item in value]
        elif field.message_type is not None and not message.HasField(field.name):
            shown[name] = None
        else:
            shown[name] = _value(field, value)
    return shown


def stream_name(stream_kind: str, stream_key: bytes) -> str:
    """`<kind>/<first 16 hexadecimal digits of the key>`."""
    return f"{stream_kind}/{stream_key.hex()[:STREAM_KEY_DIGITS]}"


def enum_word(descriptor: EnumDescriptor, number: int) -> str | None:
    """ "EFFECTIVE" for RX_STATUS_EFFECTIVE; None for the unspecified value, the number's text for an unknown one."""
    if number == 0:
        return None
    found = descriptor.values_by_number.get(number)
    if found is None:
        return str(number)
    prefix = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", descriptor.name).upper() + "_"
    return found.name.removeprefix(prefix)


def trace_record(reply: audit_pb2.TraceChainResponse, *, verify: bool) -> dict[str, Any]:
    """The object of `erxhub trace -o json`; `verified` is None unless the trace was asked to verify."""
    stages: dict[str, list[dict[str, Any]]] = {
        word.lower(): []
        for number in audit_pb2.Stage.values()
        if (word := enum_word(audit_pb2.Stage.DESCRIPTOR, number)) is not None
    }
    for entry in reply.entries:
        stage = (enum_word(audit_pb2.Stage.DESCRIPTOR, entry.stage) or "other").lower()
        stages.setdefault(stage, []).append(_trace_entry(entry))
    # A flow that the hub says nothing about agrees with nothing.
    flows: dict[str, dict[str, Any]] = {
        _flow(number): {"agrees": False, "summary": ""} for number in audit_pb2.Flow.values() if number
    }
    flows |= {_flow(flow.flow): {"agrees": flow.agrees, "summary": flow.summary} for flow in reply.flows}
    light = enum_word(audit_pb2.Light.DESCRIPTOR, reply.light)
    return {
        "rx_no": reply.rx_no,
        "light": light,
        "complete": light in ("GREEN", "CLOSED"),
        "gaps": list(reply.gaps),
        "verified": reply.verified if verify else None,
        "as_of": reply.as_of_position,
        "stages": [{"stage": stage, "entries": entries} for stage, entries in stages.items()],
        "flows": flows,
        "accesses": [
            {
                "at": iso_beijing(access.at_ms),
                "actor": access.actor,
                "kind": access.kind,
                "method": access.method,
                "outcome": access.outcome,
            }
            for access in reply.accesses
        ],
    }


def finding_record(finding: audit_pb2.VerificationFinding) -> dict[str, Any]:
    """Where a verification found a fault, and which. Of a row that belongs to no stream there is none."""
    return {
        "stream": stream_name(finding.stream_kind, finding.stream_key) if finding.stream_kind else None,
        "version": finding.version,
        "reason": finding.reason,
    }


def _trace_entry(entry: audit_pb2.TraceEntry) -> dict[str, Any]:
    return {
        "stream": stream_name(entry.stream_kind, entry.stream_key),
        "version": entry.version,
        "type": entry.type,
        "at": iso_beijing(entry.at_ms),
        "actor": entry.actor,
        "flow": _flow(entry.flow),
        "leaf_hash": entry.leaf_hash.hex(),
        "summary": entry.summary,
    }


def _flow(number: int) -> str:
    return (enum_word(audit_pb2.Flow.DESCRIPTOR, number) or "none").lower()


def _value(field: Any, value: Any) -> Any:
    if isinstance(value, Message):
        return record(value)
    if field.enum_type is not None:
        return enum_word(field.enum_type, value)
    if isinstance(value, bytes):
        return value.hex()
    if _INSTANT.search(field.name):
        return iso_beijing(value) if value else None
    return value
