"""The steps of a call that wait for nothing: from its bytes to a command in the lane, or to what ends it before.

In order: may this caller call this method now, and is there room; can its message be read; does it keep the field
rules; does the caller's clock go right; what do its signatures prove. Each step gives what it found, or an `Ended` that
says what speaks against the call. It never answers anybody and records nothing: `rpc/calls.py` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import DecodeError

from erxhub.admission import (
    FieldRules,
    PeerIdentityError,
    SignatureProof,
    SignedParts,
    Violation,
    caller_of,
    content_of,
    signed_parts,
)
from erxhub.config import Config
from erxhub.core.model import Caller, Command, Evidence, Refused
from erxhub.engine import Engine, HubBusy, HubStopped
from erxhub.jobs import Answer
from erxhub.rpc.methods import Method

SENT_AT_HEADER: Final = "erxhub-sent-at-ms"
"""The caller's clock when it sent the request; optional, and the only place where its clock is compared."""

_REQUEST_ID_FIELDS: Final = frozenset({"request_id", "header.request_id"})


@dataclass(slots=True, init=False)
class Call:
    """A call of a known caller."""

    method: Method
    caller: Caller
    certificate: bytes
    received_at_ms: int

    def __init__(self, method: Method, caller: Caller, certificate: bytes, received_at_ms: int) -> None:
        self.method = method
        self.caller = caller
        self.certificate = certificate
        self.received_at_ms = received_at_ms


@dataclass(frozen=True, slots=True)
class Ended:
    """A call that ends with a refusal before the lane.

    `call` is None when the refusal is only counted. Otherwise it is recorded as the caller's, under `request_id` where
    that may stand in an entry. `violations` are the field rules that were broken.
    """

    refused: Refused
    call: Call | None = None
    request_id: str = ""
    violations: Sequence[Violation] = ()


@dataclass(slots=True, init=False)
class Checked:
    """A command that keeps the field rules: its signed contents, as they came and as they were read."""

    call: Call
    request: Any
    signed: SignedParts
    statements: Mapping[str, Any]
    raw: bytes

    def __init__(
        self,
        call: Call,
        request: Any,
        signed: SignedParts,
        statements: Mapping[str, Any],
        raw: bytes,
    ) -> None:
        self.call = call
        self.request = request
        self.signed = signed
        self.statements = statements
        self.raw = raw


@dataclass(slots=True, init=False)
class Queued:
    """A command in the lane."""

    call: Call
    request: Any
    answer: asyncio.Future[Answer]

    def __init__(self, call: Call, request: Any, answer: asyncio.Future[Answer]) -> None:
        self.call = call
        self.request = request
        self.answer = answer


class Steps:
    """The steps of one hub's calls."""

    def __init__(self, engine: Engine, proof: SignatureProof, rules: FieldRules, config: Config) -> None:
        self.rules = rules
        self.draining = False
        """Whether new calls are answered with HUB_UNAVAILABLE."""
        self._engine = engine
        self._proof = proof
        self._config = config

    # ---- every call ----

    def entered(self, method: Method, context: Any, size: int) -> Call | Ended:
        """The call of a caller who may call this method now, and for whose `size` bytes there is room."""
        received_at_ms = self._engine.clock.now_ms()
        if self.draining:
            return Ended(Refused("HUB_UNAVAILABLE"))
        certificate = _certificate_of(context)
        caller = self.caller(certificate, received_at_ms)
        if isinstance(caller, Ended):
            return caller
        full = self.full(size)
        if full is not None:
            return full
        call = Call(method, caller, certificate, received_at_ms)
        if caller.kind not in method.callers:
            return Ended(Refused("ROLE_NOT_ALLOWED", detail={"caller": caller.kind}), call)
        return call

    def caller(self, certificate: bytes, at_ms: int) -> Caller | Ended:
        """Who calls, by a certificate that is valid at this instant."""
        try:
            return caller_of(certificate, self._config, at_ms)
        except PeerIdentityError as error:
            return Ended(Refused("PEER_IDENTITY", detail={"reason": error.reason}))

    def full(self, size: int) -> Ended | None:
        """OVERLOADED when there is no room for so many bytes."""
        try:
            self._engine.check_room(size)
        except HubBusy:
            return Ended(Refused("OVERLOADED"))
        return None

    def parsed(self, call: Call, raw: bytes) -> Any | Ended:
        """The request in the bytes of a message."""
        request = call.method.request()
        try:
            request.ParseFromString(raw)
        except DecodeError:
            return Ended(Refused("INPUT_MALFORMED", detail={"reason": "the bytes are no such message"}))
        return request

    def statements(self, call: Call, request: Any, request_id: str, context: Any) -> dict[str, Any] | Ended:
        """The signed contents, read, of a request that keeps the field rules, from a caller whose clock goes right."""
        found, statements = self.rules.check(request, call.method.signed_fields)
        if found:
            refused = Refused("INPUT_MALFORMED", field=found[0].field)
            # An id that breaks its own rule may be as long as a message; no entry carries it.
            recorded = "" if any(each.field in _REQUEST_ID_FIELDS for each in found) else request_id
            return Ended(refused, call, recorded, found)
        return self.skewed(call, request_id, context) or statements

    def skewed(self, call: Call, request_id: str, context: Any) -> Ended | None:
        """TIME_SKEW when the caller tells a clock that is too far from ours."""
        for key, value in context.invocation_metadata() or ():
            if key == SENT_AT_HEADER:
                text = value if isinstance(value, str) else value.decode("ascii", "replace")
                # Sixteen digits reach past the year 300,000; anything else is no instant and counts as a skew.
                sent_at_ms = int(text) if text.isdecimal() and len(text) <= 16 else 0
                skew = sent_at_ms - call.received_at_ms
                if abs(skew) <= self._config.clock_skew_ms:
                    return None
                refused = Refused("TIME_SKEW", field=SENT_AT_HEADER, detail={"skew_ms": str(skew)})
                return Ended(refused, call, request_id)
        return None

    # ---- a command ----

    def checked(self, call: Call, raw: bytes, context: Any) -> Checked | Ended:
        """A command that can be read, with its signed contents."""
        request = self.parsed(call, raw)
        if isinstance(request, Ended):
            return request
        statements = self.statements(call, request, request.request_id, context)
        if isinstance(statements, Ended):
            return statements
        return Checked(call, request, signed_parts(request, call.method.signed_fields), statements, raw)

    def queued_now(self, checked: Checked) -> Queued | Ended | None:
        """The command in the lane; None when something about its signatures has to be waited for."""
        evidence = self._proof.evidence_now(checked.request, checked.signed, checked.statements)
        return None if evidence is None else self.queued_with(checked, evidence)

    def queued_with(self, checked: Checked, evidence: Evidence) -> Queued | Ended:
        """The command in the lane, with what its signatures prove."""
        content = content_of(checked.raw, _hashed(checked.request, evidence))
        return self.queued(checked.call, checked.request, evidence, content, len(checked.raw))

    def queued(self, call: Call, request: Any, evidence: Evidence, content: bytes, size: int) -> Queued | Ended:
        """A command in the lane. `content` and `size` are as for `Engine.submit`."""
        command = Command(call.method.name, request, call.caller, request.request_id, call.received_at_ms, evidence)
        try:
            return Queued(call, request, self._engine.queue(command, content, size))
        except HubBusy:
            return Ended(Refused("OVERLOADED"))
        except HubStopped:
            return Ended(Refused("HUB_UNAVAILABLE"))


def _certificate_of(context: Any) -> bytes:
    """The certificate of the connection, PEM; empty when it has none."""
    return bytes(next(iter(context.auth_context().get("x509_pem_cert", ())), b""))


def _hashed(request: Any, evidence: Evidence) -> dict[int, bytes]:
    """What stands in for a prescription file in the content of a request: its digest and type, not its bytes again."""
    digest = evidence.sha256.get("file")
    if digest is None:
        return {}
    return {request.FILE_FIELD_NUMBER: digest + request.file.media_type.encode()}
