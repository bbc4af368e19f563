"""One call from its bytes to its answer: the calls of one message each way, and how a call ends with a refusal.

A command: its steps (`rpc/steps.py`), the lane, the answer. A read: its steps, the query, its access entry, the answer.
Every refusal of an identified caller is recorded before it leaves; what only is counted is counted here.

Owns the count of open calls. This module can be compiled, and so must never hold an async generator (what streams is
served in `rpc/streams.py`), nor await inside an `except` or a `finally`: compiled, the error would stay the one that is
being handled, for every other task of the loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NoReturn, TypeAlias, TypeVar

import grpc

from erxhub.accesses import ReadNote
from erxhub.admission import FieldRules, SignatureProof, Violation
from erxhub.config import Config
from erxhub.core.catalog import CatalogImport
from erxhub.core.model import Evidence, Refused, Target
from erxhub.downloads import attach
from erxhub.engine import Engine, HubBusy, HubStopped
from erxhub.jobs import Declined
from erxhub.ledger.store import Loaded, StoreUnavailable, Wanted
from erxhub.ports import Pause
from erxhub.queries import QUERIES
from erxhub.queries.base import ReadContext
from erxhub.rpc.bulk import ItemContext
from erxhub.rpc.errors import wire_status
from erxhub.rpc.methods import Method
from erxhub.rpc.steps import Call, Checked, Ended, Queued, Steps
from erxhub.rpc.waiting import REACHED_TRAILER, Waiting
from erxhub.v1 import common_pb2

_log = logging.getLogger("erxhub.rpc")

_T = TypeVar("_T")

_COUNTED_ONLY: Final = frozenset({"HUB_UNAVAILABLE", "OVERLOADED"})

INTERNAL: Final = "The hub failed inside; its operator finds the cause in the log."
"""All that the caller learns of a bug."""

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

ENDS: Final = (grpc.aio.AbortError, grpc.aio.InternalError)
"""How a call ends with a status; the second one when the caller has gone before it. gRPC knows what to do then."""


class Calls:
    """Serves the unary methods of one hub, and ends the calls of its streams as it ends its own."""

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
        self.steps = Steps(engine, proof, rules, config)
        self.engine = engine
        self.reads = reads
        self.config = config
        self.pause = pause
        self._proof = proof
        self._waiting = waiting
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
        self.steps.draining = True
        begun = -1
        while self._calls_open or begun != self._calls_begun:
            begun = self._calls_begun
            await self._idle.wait()
            await self.pause(self.config.drain_quiet_ms)

    # ---- the unary calls ----

    async def command(self, method: Method, raw: bytes, context: Context) -> bytes:
        """A command, from its bytes to the bytes of its reply; waits for nothing before the lane unless it must."""
        call = self.steps.entered(method, context, len(raw))
        if isinstance(call, Ended):
            await self.ended(call, context)
        checked = self.steps.checked(call, raw, context)
        if isinstance(checked, Ended):
            await self.ended(checked, context)
        queued = self.steps.queued_now(checked)
        if queued is None:
            return await self.proven(method, checked, context)
        if isinstance(queued, Ended):
            await self.ended(queued, context)
        return await self.answered(queued, context)

    async def proven(self, method: Method, checked: Checked, context: Context) -> bytes:
        """A command that keeps the field rules: its signatures, which have to be waited for, and the decision."""
        evidence: Evidence | None
        self.engine.verifying += 1
        try:
            evidence = await self._proof.evidence(checked.request, checked.signed, checked.statements)
        except StoreUnavailable:
            evidence = None
        finally:
            self.engine.verifying -= 1
        if evidence is None:
            await self.unavailable(context)
        queued = self.steps.queued_with(checked, evidence)
        return await self.answered(await self.passed(queued, context), context)

    async def read(self, method: Method, raw: bytes, context: Context) -> bytes:
        """A read, from its bytes to the bytes of its reply."""
        call = await self.passed(self.steps.entered(method, context, len(raw)), context)
        request = await self.passed(self.steps.parsed(call, raw), context)
        await self.passed(self.steps.statements(call, request, "", context), context)
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

    # ---- on the way ----

    async def passed(self, found: _T | Ended, context: Context) -> _T:
        """What a step found; the call ends here when that speaks against it."""
        if isinstance(found, Ended):
            await self.ended(found, context)
        return found

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

    async def ended(self, ended: Ended, context: Context) -> NoReturn:
        """End a call before the lane."""
        if ended.call is None:
            await self._count(ended.refused, context)
        await self.refuse(ended.call, ended.refused, ended.request_id, context, ended.violations)

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
        violations: Sequence[Violation] = (),
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
        violations: Sequence[Violation] = (),
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

    async def _abort(self, refused: Refused, context: Context, violations: Sequence[Violation] = ()) -> NoReturn:
        status = wire_status(refused, self.config, violations)
        await context.abort(status.code, status.message, (("grpc-status-details-bin", status.details),))
        raise AssertionError("abort always raises")


def wanted_level(request: Any) -> int:
    """The level that a request, or the header of an import, asks for."""
    level: int = (request.header if isinstance(request, CatalogImport) else request).wait_for
    return level


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
