"""What the published protos say about each method, read once by reflection.

Owns nothing: who may call, what a call does and what it carries stand in the .proto files. A method without a rule, or
a command without a handler, stops the hub at its start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor

from erxhub.v1 import (
    audit_pb2,
    dispensing_pb2,
    encounter_pb2,
    options_pb2,
    patient_pb2,
    prescribing_pb2,
    registry_pb2,
    signed_pb2,
    voucher_pb2,
)

COMMAND: Final = options_pb2.EFFECT_COMMAND
READ: Final = options_pb2.EFFECT_READ
WATCH: Final = options_pb2.EFFECT_WATCH

_FILES: Final = (
    registry_pb2,
    voucher_pb2,
    encounter_pb2,
    prescribing_pb2,
    patient_pb2,
    dispensing_pb2,
    audit_pb2,
)

STATEMENTS: Final[Mapping[str, type[Any]]] = MappingProxyType(
    {
        f"application/vnd.erxhub.v1.{name}": message_factory.GetMessageClass(descriptor)
        for name, descriptor in signed_pb2.DESCRIPTOR.message_types_by_name.items()
    }
)
"""Message class of a signed content, by payload type."""


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC. `name` is "<Service>/<Method>" without the package."""

    name: str
    service: str
    rpc: str
    request: type[Any]
    response: type[Any]
    effect: int
    callers: frozenset[str]
    transaction: str
    streams_in: bool
    streams_out: bool
    signed_fields: tuple[str, ...]


def _method(service: str, descriptor: MethodDescriptor) -> Method:
    rule = descriptor.GetOptions().Extensions[options_pb2.rpc]
    if not rule.callers or not rule.effect:
        raise AssertionError(f"{descriptor.full_name} has no rule")
    signed = tuple(
        field.name
        for field in descriptor.input_type.fields
        if field.type == FieldDescriptor.TYPE_MESSAGE
        and field.message_type is not None
        and field.message_type.full_name == "erxhub.v1.Signed"
    )
    return Method(
        name=f"{service.rpartition('.')[2]}/{descriptor.name}",
        service=service,
        rpc=descriptor.name,
        request=message_factory.GetMessageClass(descriptor.input_type),
        response=message_factory.GetMessageClass(descriptor.output_type),
        effect=rule.effect,
        callers=frozenset(
            options_pb2.CallerKind.Name(kind).removeprefix("CALLER_KIND_").lower() for kind in rule.callers
        ),
        transaction=rule.transaction,
        streams_in=descriptor.client_streaming,
        streams_out=descriptor.server_streaming,
        signed_fields=signed,
    )


METHODS: Final[Mapping[str, Method]] = MappingProxyType(
    {
        method.name: method
        for file in _FILES
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in (_method(service.full_name, descriptor) for descriptor in service.methods)
    }
)

SERVICES: Final[tuple[str, ...]] = tuple(dict.fromkeys(method.service for method in METHODS.values()))
"""Full names of the services, in the order of the files."""
