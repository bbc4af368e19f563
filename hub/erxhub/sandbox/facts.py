"""What a message says about itself: its request id, its prescription, and the shape that faults need to know.

Owns the reading of messages by their descriptors alone. It never looks anything up, and knows no method by name.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from erxhub.core import events
from erxhub.core.keys import prescription_key
from erxhub.crypto.certs import PeerIdentityError, peer_identity
from erxhub.rpc.methods import COMMAND, METHODS, STATEMENTS, Method

ROLES: Final = frozenset({"hospital", "pharmacy", "channel", "agency", "auditor", "supervisor", "mirror", "hub"})
"""Whom an actor may be; the hub itself writes what time alone brings about."""

_DEPTH_MAX: Final = 8
_SIGNED: Final = "erxhub.v1.Signed"
_RECEIPT: Final = "erxhub.v1.Receipt"
_PAGE: Final = "erxhub.v1.Page"


@functools.lru_cache(maxsize=4096)
def actor_of(certificate_pem: bytes, trust_domain: str) -> str:
    """The caller as "<role>/<id>", or "" for a certificate that names nobody of the trust domain."""
    try:
        identity = peer_identity(certificate_pem, trust_domain)
    except PeerIdentityError:
        return ""
    return f"{identity.role}/{identity.id}"


def parsed(kind: type[Any], raw: bytes) -> Any | None:
    """The message, or None for bytes that are none."""
    message = kind()
    try:
        message.ParseFromString(raw)
    except DecodeError:
        return None
    return message


def request_id_of(request: Any) -> str:
    """The request id of a command or of an import's first message; "" where there is none."""
    fields = request.DESCRIPTOR.fields_by_name
    if "request_id" in fields:
        return str(request.request_id)
    if "header" in fields and request.HasField("header"):
        return request_id_of(request.header)
    return ""


def statements_of(message: Any) -> Iterator[tuple[str, Any, Any]]:
    """(field, Signed, its content read) of every signed content at the top of a message; unreadable ones are None."""
    for field in message.DESCRIPTOR.fields:
        if field.message_type is None or field.message_type.full_name != _SIGNED or not message.HasField(field.name):
            continue
        signed = getattr(message, field.name)
        kind = STATEMENTS.get(signed.payload_type)
        yield field.name, signed, parsed(kind, signed.payload) if kind is not None else None


def rx_no_of(message: Any) -> str:
    """The prescription that a message is about: its own field, or that of a signed content; "" where it names none."""
    if "rx_no" in message.DESCRIPTOR.fields_by_name:
        return str(message.rx_no)
    for _, _, statement in statements_of(message):
        if statement is not None and "rx_no" in statement.DESCRIPTOR.fields_by_name:
            return str(statement.rx_no)
    return ""


def operation_of(method: Method, raw: bytes, request_id: str) -> str:
    """What stays the same over the attempts of one operation: its request id, or a digest of a read."""
    if request_id and method.effect == COMMAND:
        return request_id
    return hashlib.sha256(method.name.encode() + b"\0" + raw).hexdigest()


def _reaches(descriptor: Descriptor, found: Any, depth: int = 0) -> bool:
    return depth < _DEPTH_MAX and any(
        found(field) or (field.message_type is not None and _reaches(field.message_type, found, depth + 1))
        for field in descriptor.fields
    )


def _is_kind(name: str) -> Any:
    return lambda field: field.message_type is not None and field.message_type.full_name == name


@functools.cache
def has_signature(method: Method) -> bool:
    """Whether its replies carry a signed content or a receipt."""
    descriptor = method.response.DESCRIPTOR
    return _reaches(descriptor, _is_kind(_SIGNED)) or _reaches(descriptor, _is_kind(_RECEIPT))


@functools.cache
def has_enum(method: Method) -> bool:
    """Whether its replies carry an enumeration."""
    return _reaches(method.response.DESCRIPTOR, lambda field: field.type == FieldDescriptor.TYPE_ENUM)


@functools.cache
def has_pages(method: Method) -> bool:
    """Whether its caller asks for pages."""
    fields = method.request.DESCRIPTOR.fields_by_name
    return "page_size" in fields or ("page" in fields and fields["page"].message_type.full_name == _PAGE)


@functools.cache
def names_prescription(method: Method) -> bool:
    """Whether its requests can say which prescription they are about, themselves or by a number that leads there."""
    fields = method.request.DESCRIPTOR.fields_by_name
    return bool({"rx_no", "authorization_no", "rx_token", "rx_qr"}.intersection(fields)) or any(
        field in fields for field in method.signed_fields if method.service != "erxhub.v1.EncounterService"
    )


SHORT_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {f"{method.name.split('/')[0].removesuffix('Service')}/{method.rpc}": method.name for method in METHODS.values()}
)
"""The names of rules and of traffic ("Dispensing/Settle") → the hub's own."""


def short_name(method: Method) -> str:
    """The method as rules and traffic name it, e.g. "Dispensing/Settle"."""
    service, _, rpc = method.name.partition("/")
    return f"{service.removesuffix('Service')}/{rpc}"


def methods_matching(pattern: str) -> list[Method]:
    """The methods that a rule's pattern means: "*", "<Service>/*" or "<Service>/<Method>"; empty for none."""
    if pattern == "*":
        return list(METHODS.values())
    service, slash, rpc = pattern.partition("/")
    service = service.removesuffix("Service")
    if slash and rpc == "*":
        return [method for short, method in _by_short() if short.startswith(service + "/")]
    return [method for short, method in _by_short() if short == f"{service}/{rpc}"]


def _by_short() -> Iterator[tuple[str, Method]]:
    return ((short, METHODS[name]) for short, name in SHORT_NAMES.items())


def event_names(entries: Any) -> frozenset[str]:
    """The event types of the entries of one write."""
    return frozenset(events.BY_NUMBER[entry.header.type].name for entry in entries)


def is_about(entries: Any, rx_no: str) -> bool:
    """Whether entries of a write belong to the prescription."""
    key = prescription_key(rx_no)
    return any(entry.header.stream_key == key for entry in entries)
