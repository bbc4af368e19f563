"""One call from its bytes to its answer: the steps that every call takes, and the calls of one message each way.

A command: admission, the lane, the answer. A read: admission, the query, its access entry, the answer. Every refusal of
an identified caller is recorded before it leaves; what only is counted is counted here.

Owns the count of open calls. This module can be compiled, and so must never hold an async generator (what streams is
served in `rpc/streams.py`), nor await inside an `except` or a `finally`: compiled, the error would stay the one that is
being handled, for every other task of the loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from erxhub.accesses import ReadNote
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
from erxhub.core.catalog import CatalogImport
from erxhub.core.model import Caller, Command, Evidence, Refused, Target
from erxhub.downloads import attach
from erxhub.engine import Answer, Declined, Engine, HubBusy, HubStopped
from erxhub.ledger.store import Loaded, StoreUnavailable, Wanted
from erxhub.ports import Pause
from erxhub.queries import QUERIES
from erxhub.queries.base import ReadContext
from erxhub.rpc.bulk import ItemContext
from erxhub.rpc.errors import wire_status
from erxhub.rpc.methods import Method
from erxhub.rpc.waiting import REACHED_TRAILER, Waiting
from erxhub.v1 import common_pb2

_log = logging.getLogger("erxhub.rpc")

SENT_AT_HEADER: Final = "erxhub-sent-at-ms"
"""The caller's clock when it sent the request; optional, and the only place where its clock is compared."""

_REQUEST_ID_FIELDS: Final = frozenset({"request_id", "header.request_id"})

_COUNTED_ONLY: Final = frozenset({"HUB_UNAVAILABLE", "OVERLOADED"})

INTERNAL: Final = "The hub failed inside; its operator finds the cause in the log."
"""All that the caller learns of a bug."""

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

ENDS: Final = (grpc.aio.AbortError, grpc.aio.InternalError)
"""How a call ends with a status; the second one when the caller has gone before it. gRPC knows what to do then."""


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


class Calls:
    """Serves the unary methods of one hub, and gives each of their steps to whoever serves its streams."""

    def __init__(
        self,
        *,
        engine: Engine,
        reads: ReadContext,
        proof: SignatureProof,
        rules: FieldRules,
        config: Config,
        pause: Pause,
        waiting: Waiting,
    ) -> None:
        self.engine = engine
        self.reads = reads
        self.proof = proof
        self.rules = rules
        self.config = config
        self.pause = pause
        self._waiting = waiting
        self.draining = False
        self._calls_begun = 0
        self._calls_open = 0
        self._idle = asyncio.Event()
        self._idle.set()

    # ---- around every call ----

    def sealed(self, method: Method, serve: Callable[[Method, Any, Context], Awaitable[bytes]]) -> Any:
        """The method as gRPC calls it. A bug is logged here, and the caller learns nothing of the inside."""

        async def call(request: Any, context: Context) -> bytes:
            self.opened()
            try:
                try:
                    return await serve(method, request, context)
                except ENDS:
                    raise
                except Exception:  # noqa: BLE001 answered below
                    _log.exception("%s failed", method.name)
                await context.abort(grpc.StatusCode.INTERNAL, INTERNAL)
                raise AssertionError("abort always raises")
            finally:
                self.closed()

        return call

    def opened(self) -> None:
        """One more call is open, until it is `closed`."""
        self._calls_begun += 1
        self._calls_open += 1
        self._idle.clear()

    def closed(self) -> None:
        """A call that was `opened` is over, however it ended."""
        self._calls_open -= 1
        if not self._calls_open:
            self._idle.set()

    async def drained(self) -> None:
        """Answer new calls with HUB_UNAVAILABLE from now on; returns once no call is open and none comes any more.

        What is on its way to a server when it stops ends as CANCELLED, so it is let in here first.
        """
        self.draining = True
        begun = -1
        while self._calls_open or begun != self._calls_begun:
            begun = self._calls_begun
            await self._idle.wait()
            await self.pause(self.config.drain_quiet_ms)

    # ---- the unary calls ----

    async def command(self, method: Method, raw: bytes, context: Context) -> bytes:
        """A command, from its bytes to the bytes of its reply.

        As far as nothing speaks against it and nothing is to be waited for, it goes to the lane without a step that
        could wait.
        """
        checked: Checked | None = None
        known = self.entered(method, context)
        if known is not None and self._skew_ms(known, context) is None:
            checked = self.checked_now(known, raw)
        if checked is None:
            return await self.step_by_step(method, raw, context)
        queued = self.queued_now(checked)
        if queued is None:
            return await self.proven(method, checked, context)
        return await self.answered(queued, context)

    async def step_by_step(self, method: Method, raw: bytes, context: Context) -> bytes:
        """A command that something speaks against: each step may wait, and says what it is."""
        call = await self.enter(method, context, len(raw))
        request = await self.parse(call, raw, context)
        statements = await self.check(call, request, request.request_id, context)
        signed = signed_parts(request, method.signed_fields)
        return await self.proven(method, Checked(call, request, signed, statements, raw), context)

    async def proven(self, method: Method, checked: Checked, context: Context) -> bytes:
        """A command that keeps the field rules: its signatures, and the decision."""
        call, request = checked.call, checked.request
        evidence: Evidence | None
        self.engine.verifying += 1
        try:
            evidence = await self.proof.evidence(request, checked.signed, checked.statements)
        except StoreUnavailable:
            evidence = None
        finally:
            self.engine.verifying -= 1
        if evidence is None:
            await self.unavailable(context)
        content = content_of(checked.raw, hashed(request, evidence))
        return await self.decide(call, request, evidence, content, len(checked.raw), context)

    async def read(self, method: Method, raw: bytes, context: Context) -> bytes:
        """A read, from its bytes to the bytes of its reply."""
        call = await self.enter(method, context, len(raw))
        request = await self.parse(call, raw, context)
        await self.check(call, request, "", context)
        await self.certificate(call, context)
        try:
            outcome = await QUERIES[method.name](self.reads, call.caller, request)
            if isinstance(outcome, Refused):
                await self.end(call, outcome, context)
            reply: bytes = outcome.reply.SerializeToString()
            if len(reply) > self.config.reply_bytes_max:
                limit = {"reply_bytes_max": str(self.config.reply_bytes_max), "bytes": str(len(reply))}
                await self.end(call, Refused("REPLY_TOO_LARGE", detail=limit, targets=outcome.targets), context)
            case_reason = getattr(request, "case_reason", "")
            # An auditor's look is recorded even when it showed nothing: it was made for a case.
            if outcome.targets or case_reason:
                await self.note(call, "", outcome.targets, case_reason)
            told(call, "", "OK")
            return reply
        except (StoreUnavailable, HubStopped):
            code = "HUB_UNAVAILABLE"
        except HubBusy:
            code = "OVERLOADED"
        return await self._count(Refused(code), context)

    # ---- the steps at once, for what nothing speaks against ----

    def entered(self, method: Method, context: Any) -> Call | None:
        """The call of a caller who may call this method now; None when something speaks against it."""
        received_at_ms = self.engine.clock.now_ms()
        certificate = _certificate_of(context)
        if self.draining:
            return None
        try:
            caller = caller_of(certificate, self.config, received_at_ms)
        except PeerIdentityError:
            return None
        return Call(method, caller, certificate, received_at_ms) if caller.kind in method.callers else None

    def checked_now(self, call: Call, raw: bytes) -> Checked | None:
        """A command for which there is room, which can be read and keeps the field rules; None for any other."""
        request = call.method.request()
        try:
            self.engine.check_room(len(raw))
            request.ParseFromString(raw)
        except (HubBusy, DecodeError):
            return None
        fields = call.method.signed_fields
        found, statements = self.rules.check(request, fields)
        return None if found else Checked(call, request, signed_parts(request, fields), statements, raw)

    def queued_now(self, checked: Checked) -> Queued | None:
        """The command in the lane; None when its signatures have to be waited for, or the lane takes no more."""
        call, request, raw = checked.call, checked.request, checked.raw
        evidence = self.proof.evidence_now(request, checked.signed, checked.statements)
        if evidence is None:
            return None
        command = Command(call.method.name, request, call.caller, request.request_id, call.received_at_ms, evidence)
        try:
            answer = self.engine.queue(command, content_of(raw, hashed(request, evidence)), len(raw))
        except (HubBusy, HubStopped):
            return None
        return Queued(call, request, answer)

    # ---- the steps ----

    async def enter(self, method: Method, context: Context, size: int) -> Call:
        """The call of a caller who may call this method now, and for whose `size` bytes there is room."""
        received_at_ms = self.engine.clock.now_ms()
        if self.draining:
            await self.unavailable(context)
        certificate = _certificate_of(context)
        caller = await self.caller(certificate, received_at_ms, context)
        call = Call(method, caller, certificate, received_at_ms)
        has_room = True
        try:
            self.engine.check_room(size)
        except HubBusy:
            has_room = False
        if not has_room:
            await self.overloaded(context)
        if caller.kind not in method.callers:
            await self.refuse(call, Refused("ROLE_NOT_ALLOWED", detail={"caller": caller.kind}), "", context)
        return call

    async def caller(self, certificate: bytes, at_ms: int, context: Context) -> Caller:
        """Who calls, by a certificate that is valid at this instant."""
        try:
            return caller_of(certificate, self.config, at_ms)
        except PeerIdentityError as error:
            reason = error.reason
        return await self._count(Refused("PEER_IDENTITY", detail={"reason": reason}), context)

    async def parse(self, call: Call, raw: bytes, context: Context) -> Any:
        """The request in the bytes of a message."""
        request = call.method.request()
        try:
            request.ParseFromString(raw)
            return request
        except DecodeError:
            refused = Refused("INPUT_MALFORMED", detail={"reason": "the bytes are no such message"})
        return await self._count(refused, context)

    async def check(self, call: Call, request: Any, request_id: str, context: Context) -> dict[str, Any]:
        """Field rules and the caller's clock; returns the signed contents of the request, read."""
        found, statements = self.rules.check(request, call.method.signed_fields)
        if found:
            refused = Refused("INPUT_MALFORMED", field=found[0].field)
            # An id that breaks its own rule may be as long as a message; no entry carries it.
            recorded = "" if any(each.field in _REQUEST_ID_FIELDS for each in found) else request_id
            await self.refuse(call, refused, recorded, context, found)
        await self.check_clock(call, request_id, context)
        return statements

    async def check_clock(self, call: Call, request_id: str, context: Context) -> None:
        """TIME_SKEW when the caller tells a clock that is too far from ours."""
        skew = self._skew_ms(call, context)
        if skew is not None:
            refused = Refused("TIME_SKEW", field=SENT_AT_HEADER, detail={"skew_ms": str(skew)})
            await self.refuse(call, refused, request_id, context)

    def _skew_ms(self, call: Call, context: Context) -> int | None:
        """How far the clock that the caller tells is from ours when that is too far; None when it is not, or untold."""
        for key, value in context.invocation_metadata() or ():
            if key == SENT_AT_HEADER:
                text = value if isinstance(value, str) else value.decode("ascii", "replace")
                # Sixteen digits reach past the year 300,000; anything else is no instant and counts as a skew.
                sent_at_ms = int(text) if text.isdecimal() and len(text) <= 16 else 0
                skew = sent_at_ms - call.received_at_ms
                return skew if abs(skew) > self.config.clock_skew_ms else None
        return None

    async def certificate(self, call: Call, context: Context) -> None:
        """CERT_REVOKED when the caller's certificate was revoked; the first in an hour is recorded."""
        name = ("revoked_certificate", call.caller.fingerprint)
        loaded: Loaded | None
        try:
            loaded = await self.engine.store.read(Wanted(names=frozenset({name})))
        except StoreUnavailable:
            loaded = None
        if loaded is None:
            await self.unavailable(context)
        if name in loaded.names:
            if self.engine.counts_revoked(call.caller.fingerprint):
                await self._count(Refused("CERT_REVOKED"), context)
            await self._record(call, Refused("CERT_REVOKED"), "", context, fingerprint=call.caller.fingerprint)

    async def decide(
        self, call: Call, request: Any, evidence: Evidence, content: bytes, size: int, context: Context
    ) -> bytes:
        """A command in the lane; the bytes of its reply, with all that they wait for. `size` is that of its message."""
        command = Command(call.method.name, request, call.caller, request.request_id, call.received_at_ms, evidence)
        code = ""
        try:
            answer = self.engine.queue(command, content, size)
        except HubBusy:
            code = "OVERLOADED"
        except HubStopped:
            code = "HUB_UNAVAILABLE"
        if code:
            await self._count(Refused(code), context)
        return await self.answered(Queued(call, request, answer), context)

    async def answered(self, queued: Queued, context: Context) -> bytes:
        """The bytes of the reply to a command in the lane, with all that they wait for."""
        call, request = queued.call, queued.request
        try:
            answer = await queued.answer
            told(call, request.request_id, answer.refused.code if isinstance(answer, Declined) else "OK")
            if isinstance(answer, Declined):
                if answer.slowed:
                    await self.pause(self.config.slowed_reply_ms)
                await self._abort(answer.refused, context)
            if answer.slowed:
                await self.pause(self.config.slowed_reply_ms)
            level = wanted_level(request)
            if level > common_pb2.WAIT_FOR_DURABLE:
                await self._wait(level, answer.body, call, context)
            if answer.attach_upload:
                return await attach(self.engine.store, answer.body, answer.attach_upload, call.method.response)
            return answer.body
        except HubBusy:
            code = "OVERLOADED"
        except (HubStopped, StoreUnavailable):
            code = "HUB_UNAVAILABLE"
        return await self._count(Refused(code), context)

    async def _wait(self, level: int, reply: bytes, call: Call, context: Any) -> None:
        """Let the log come up to the level that the caller asked for, as far as there is time; tell how far it came."""
        receipt = call.method.response.FromString(reply).receipt
        # The lane gathers a batch by the items under way, and one that waits here is past the lane.
        items = 1 if isinstance(context, ItemContext) else 0
        self.engine.under_way -= items
        try:
            reached = await self._waiting.wait(level, receipt, context.time_remaining())
        finally:
            self.engine.under_way += items
        name = common_pb2.WaitFor.Name(reached).removeprefix("WAIT_FOR_")
        context.set_trailing_metadata(((REACHED_TRAILER, name),))

    async def note(self, call: Call, request_id: str, targets: tuple[Target, ...], case_reason: str) -> None:
        """The access entry of what a read showed."""
        note = ReadNote(call.caller.actor, call.caller.kind, call.method.name, request_id, targets, None, case_reason)
        if await self.engine.note(note):
            await self.pause(self.config.slowed_reply_ms)

    # ---- refusals ----

    async def end(self, call: Call, refused: Refused, context: Context) -> NoReturn:
        """End a read or a stream with the refusal that it came to."""
        if refused.code in _COUNTED_ONLY:
            await self._count(refused, context)
        await self.refuse(call, refused, "", context)

    async def refuse(
        self,
        call: Call,
        refused: Refused,
        request_id: str,
        context: Context,
        violations: list[Violation] | None = None,
    ) -> NoReturn:
        """Record a refusal that the lane has not seen, then answer with it.

        A revoked certificate speaks for nobody, so it is looked for before anything is recorded under its name.
        """
        await self.certificate(call, context)
        await self._record(call, refused, request_id, context, violations)

    async def _record(
        self,
        call: Call,
        refused: Refused,
        request_id: str,
        context: Context,
        violations: list[Violation] | None = None,
        fingerprint: bytes = b"",
    ) -> NoReturn:
        told(call, request_id, refused.code)
        note = ReadNote(
            call.caller.actor,
            call.caller.kind,
            call.method.name,
            request_id,
            refused.targets,
            refused,
            fingerprint=fingerprint,
        )
        code = ""
        try:
            if await self.engine.note(note):
                await self.pause(self.config.slowed_reply_ms)
        except HubBusy:
            code = "OVERLOADED"
        except HubStopped:
            code = "HUB_UNAVAILABLE"
        if code:
            await self._count(Refused(code), context)
        await self._abort(refused, context, violations)

    async def _count(self, refused: Refused, context: Context) -> NoReturn:
        """Answer with a refusal that is only counted."""
        self.engine.counters.count(refused.code)
        await self._abort(refused, context)

    async def overloaded(self, context: Context) -> NoReturn:
        """Answer that there is no room."""
        await self._count(Refused("OVERLOADED"), context)

    async def unavailable(self, context: Context) -> NoReturn:
        """Answer that the hub takes nothing now."""
        await self._count(Refused("HUB_UNAVAILABLE"), context)

    async def _abort(self, refused: Refused, context: Context, violations: list[Violation] | None = None) -> NoReturn:
        status = wire_status(refused, self.config, violations or ())
        await context.abort(status.code, status.message, (("grpc-status-details-bin", status.details),))
        raise AssertionError("abort always raises")


def _certificate_of(context: Any) -> bytes:
    """The certificate of the connection, PEM; empty when it has none."""
    return bytes(next(iter(context.auth_context().get("x509_pem_cert", ())), b""))


def wanted_level(request: Any) -> int:
    """The level that a request, or the header of an import, asks for."""
    level: int = (request.header if isinstance(request, CatalogImport) else request).wait_for
    return level


def hashed(request: Any, evidence: Evidence) -> dict[int, bytes]:
    """What stands in for a prescription file in the content of a request: its digest and type, not its bytes again."""
    digest = evidence.sha256.get("file")
    if digest is None:
        return {}
    return {request.FILE_FIELD_NUMBER: digest + request.file.media_type.encode()}


def told(call: Call, request_id: str, outcome: str) -> None:
    """One log line of a call: who, what, under which request. Never what the request says."""
    if _log.isEnabledFor(logging.INFO):
        facts = {
            "method": call.method.name,
            "caller": call.caller.actor,
            "request_id": request_id,
            "outcome": outcome,
            "received_at_ms": call.received_at_ms,
        }
        _log.info("call", extra={"call": facts})
