"""What goes between a robot and the hub: a call with what makes its repetition the same, and the answer to it.

Owns how statements are signed and what is proven about them when signatures are not checked. Must never decide which
answer is right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Final

from erxhub.core.catalog import CatalogImport
from erxhub.core.model import Caller, Evidence, SignatureFact
from erxhub.crypto.envelope import pae
from erxhub.crypto.suites import SUITES
from erxhub.rpc.methods import METHODS
from erxhub.v1 import common_pb2
from tests.simulation.cast import SUITE, signing_key

TYPE_PREFIX: Final = "application/vnd.erxhub.v1."
FILE: Final = common_pb2.PrescriptionFile(media_type="application/pdf", data=b"%PDF-1.7 simulated prescription")
_NOTHING_PROVEN: Final = Evidence()
_UNSIGNED: Final = b"\1" * 64
_BROKEN: Final = b"\2" * 64


@dataclass(slots=True)
class Call:
    """One request of a robot, ready to be sent as often as it takes.

    `content` is every field of the request but its id. `statements` are the signed contents by field. `proven` is what
    no test of signatures could find out: whom a certificate in the request speaks for.
    """

    caller: Caller
    method: str
    request: Any
    request_id: str
    content: bytes
    statements: Mapping[str, Any]
    proven: Evidence | None = None
    sent: int = 0


@dataclass(slots=True)
class Answer:
    """What a robot gets to know. `code` is "OK" or that of the refusal; `body` the reply's bytes without an upload."""

    code: str
    reply: Any = None
    body: bytes = b""
    detail: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the command was accepted."""
        return self.code == "OK"


class Pen:
    """How robots sign: for real, or with bytes that say only whether they would be good."""

    def __init__(self, *, signs: bool) -> None:
        self.signs = signs

    def signed(self, statement: Any, owner: str, *, broken: bool = False) -> common_pb2.Signed:
        """The statement under the key of `owner`; `broken`: under a signature that does not fit."""
        key = signing_key(owner)
        payload_type = TYPE_PREFIX + statement.DESCRIPTOR.name
        payload = statement.SerializeToString(deterministic=True)
        if self.signs:
            signature = key.sign(pae(payload_type, payload))
            if broken:
                signature = signature[:-1] + bytes((signature[-1] ^ 1,))
        else:
            signature = _BROKEN if broken else _UNSIGNED
        return common_pb2.Signed(
            payload_type=payload_type,
            payload=payload,
            signatures=[common_pb2.Signature(key_id=key.key_id, signature=signature)],
        )


def make_call(
    caller: Caller,
    method: str,
    request: Any,
    request_id: str,
    statements: Mapping[str, Any] | None = None,
    proven: Evidence | None = None,
) -> Call:
    """A call under this request id; the request must not have one yet."""
    if isinstance(request, CatalogImport):
        content = request.header.SerializeToString(deterministic=True) + request.rows_sha256
        request.header.request_id = request_id
    else:
        content = request.SerializeToString(deterministic=True)
        request.request_id = request_id
    return Call(caller, method, request, request_id, content, statements or {}, proven)


def claimed_evidence(call: Call, registered_keys: Set[str]) -> Evidence:
    """What admission would have proven, believed instead of checked."""
    if call.proven is not None:
        return call.proven
    request = call.request
    if call.method == "RegistryService/RegisterSigningKey":
        suite = SUITES.get(request.suite)
        return Evidence(key_is_sound=suite is None or suite.is_public_key(request.public_key))
    if not call.statements:
        return _NOTHING_PROVEN
    facts: dict[str, list[SignatureFact]] = {}
    digests: dict[str, bytes] = {}
    for name in call.statements:
        content: common_pb2.Signed = getattr(request, name)
        facts[name] = [
            SignatureFact(
                signature.key_id,
                SUITE if signature.key_id in registered_keys else "",
                signature.key_id in registered_keys and signature.signature == _UNSIGNED,
            )
            for signature in content.signatures
        ]
        digests[name] = hashlib.sha256(content.payload).digest()
    file = b""
    if call.method == "PrescribingService/UploadPrescription":
        file = request.file.data
        digests["file"] = hashlib.sha256(file).digest()
    return Evidence(facts, digests, call.statements, file=file)


def read_reply(method: str, body: bytes) -> Any:
    """The reply of a method from its bytes."""
    return METHODS[method].response.FromString(body)
