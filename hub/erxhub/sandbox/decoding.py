"""Recorded bytes as people read them: JSON, refusal codes, event names, and whether signatures verify.

Owns the reading only. What it shows of a message is what the message says: proto3 JSON under the names of the .proto
files, with two differences. The bytes of a prescription file are replaced by their size, and beside the payload of a
signed content stands `payload_json`, the same read.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from erxhub.core import events
from erxhub.crypto.envelope import pae
from erxhub.crypto.suites import SUITES
from erxhub.ledger.entry import Header
from erxhub.ledger.store import Head, Store, StoreUnavailable, Wanted
from erxhub.sandbox import facts
from erxhub.v1 import sandbox_pb2, state_pb2

_FILE: Final = "erxhub.v1.PrescriptionFile"
_KEY_NAMES: Final = "signing_key"


def as_dict(message: Any) -> Any:
    """The message as JSON values."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def json_of(kind: type[Any], raw: bytes) -> str:
    """One message as JSON text; bytes that are no such message as {"unreadable_bytes": size}."""
    message = facts.parsed(kind, raw)
    if message is None:
        return json.dumps({"unreadable_bytes": len(raw)})
    sizes = {}
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None and field.message_type.full_name == _FILE and message.HasField(field.name):
            file = getattr(message, field.name)
            sizes[field.name] = len(file.data)
            file.data = b""
    shown = as_dict(message)
    for name, size in sizes.items():
        shown[name]["data"] = f"{size} bytes"
    for name, _, statement in facts.statements_of(message):
        if statement is not None:
            shown[name]["payload_json"] = as_dict(statement)
    return json.dumps(shown, ensure_ascii=False)


def refusal_code(details: bytes) -> str:
    """The refusal code in the details of a status; "" where there is none."""
    try:
        status = status_pb2.Status.FromString(details)
    except DecodeError:
        return ""
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info):
            return str(info.reason)
    return ""


def event_name(header: Header) -> str:
    """The type of an entry as written in the lifecycle, or its number where nobody knows it."""
    known = events.BY_NUMBER.get(header.type)
    return known.name if known is not None else f"0x{header.type:04x}"


def rx_no_beside(kind: type[Any], raw: bytes, number: str) -> str:
    """The rx_no of the innermost message that also holds this text; "" where there is none."""
    message = facts.parsed(kind, raw)
    return _beside(message, number) if message is not None else ""


def _beside(message: Any, number: str) -> str:
    own = str(getattr(message, "rx_no", ""))
    for field, value in message.ListFields():
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for inner in value if field.is_repeated else (value,):
                found = _beside(inner, number)
                if found:
                    return found
                if _holds(inner, number) and own:
                    return own
    return own if _holds(message, number) else ""


def _holds(message: Any, number: str) -> bool:
    return any(value == number for field, value in message.ListFields() if isinstance(value, str))


async def signature_verdicts(store: Store, kind: type[Any], raw: bytes) -> list[sandbox_pb2.SignatureVerdict]:
    """Whether each signature of a request verifies under the key that is registered now, over the bytes received."""
    request = facts.parsed(kind, raw)
    if request is None:
        return []
    verdicts = []
    for name, signed, _ in facts.statements_of(request):
        message = pae(signed.payload_type, signed.payload)
        for signature in signed.signatures:
            verdict = sandbox_pb2.SignatureVerdict(field=name, key_id=signature.key_id)
            key = await _registered(store, signature.key_id)
            if key is None:
                verdict.reason = "unknown key"
            else:
                verdict.suite = key[0]
                verdict.valid = await _verifies(key, message, signature.signature)
                verdict.reason = "" if verdict.valid else "does not verify"
            verdicts.append(verdict)
    return verdicts


async def _verifies(key: tuple[str, bytes], message: bytes, signature: bytes) -> bool:
    suite = SUITES.get(key[0])
    if suite is None:
        return False
    if suite.off_loop:
        return await asyncio.to_thread(suite.verify, key[1], message, signature)
    return suite.verify(key[1], message, signature)


async def _registered(store: Store, key_id: str) -> tuple[str, bytes] | None:
    """(suite, public key) of a registered signing key."""
    name = (_KEY_NAMES, key_id.encode())
    try:
        loaded = await store.read(Wanted(names=frozenset({name})))
    except StoreUnavailable:
        return None
    if name not in loaded.names:
        return None
    return _key_in(loaded.heads[loaded.names[name]], key_id)


def _key_in(head: Head, key_id: str) -> tuple[str, bytes] | None:
    state: state_pb2.InstitutionState | state_pb2.PractitionerState
    if head.stream_kind == "institution":
        state = state_pb2.InstitutionState.FromString(head.body)
    else:
        state = state_pb2.PractitionerState.FromString(head.body)
    for record in state.keys:
        if record.key_id == key_id:
            return record.suite, record.public_key
    return None
