"""What stands between the data port and a namespace's hub: faults, then magic values, and the recorder around both.

Owns the way of one call through them. With no rule and no magic value in it a call passes as it came: the hub's own
handler gets the same bytes, and the caller the same reply. It never decides which fault a call gets (faults.py does),
and never writes to the ledger but through calls that the namespace makes for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import grpc

from erxhub.rpc.methods import COMMAND, Method
from erxhub.sandbox import alterations, facts, faults, magic, recorder, streams
from erxhub.sandbox.answers import Answer, Status, answer_named, lost_connection, refusal
from erxhub.sandbox.control import Control, RefusedCall
from erxhub.sandbox.faults import Call, Faults, FaultsState, Plan, Rule
from erxhub.sandbox.magic import Magic, MagicState, Treatment
from erxhub.sandbox.magic_data import request_id_for
from erxhub.sandbox.memory import KeptRequests, Operation, StaleReads
from erxhub.sandbox.observed import Observed
from erxhub.sandbox.recorder import Record, Recorder
from erxhub.v1 import registry_pb2

_AGENCY: Final = "330100"
"""Who revokes certificates of callers without an area; in a sandbox every agency acts for the whole ledger."""

_REVOKE: Final = "RegistryService/RevokeCertificate"

_Unary: TypeAlias = Callable[[Any, Any], Awaitable[bytes]]
_Stream: TypeAlias = Callable[[Any, Any], AsyncIterator[bytes]]


@dataclass(frozen=True, slots=True)
class ExchangesState:
    """What a snapshot keeps: opaque, and never changed."""

    faults: FaultsState
    magic: MagicState
    kept: tuple[tuple[tuple[Operation, bytes], bytes], ...]


class Exchanges:
    """The exchange layer of one namespace."""

    def __init__(self, control: Control, *, recorder: Recorder, faults: Faults, magic: Magic) -> None:
        self.recorder = recorder
        self.faults = faults
        self.magic = magic
        self._control = control
        self._kept = KeptRequests()
        self._reads = StaleReads()
        self._open: set[Observed] = set()

    # ---- for the namespace ----

    def wrapped(self, method: Method, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        """The handler behind this layer, of the same kind."""
        behavior: Any = handler
        if method.streams_in and method.streams_out:
            return grpc.stream_stream_rpc_method_handler(self._streaming(method, behavior.stream_stream))
        if method.streams_in:
            return grpc.stream_unary_rpc_method_handler(self._unary(method, behavior.stream_unary))
        if method.streams_out:
            return grpc.unary_stream_rpc_method_handler(self._streaming(method, behavior.unary_stream))
        return grpc.unary_unary_rpc_method_handler(self._unary(method, behavior.unary_unary))

    def losing_connections(self) -> None:
        """The calls that are open are about to be cut, by a crash or a closed server: callers see UNAVAILABLE."""
        for call in self._open:
            if call.if_cut == recorder.CANCELLED:
                call.if_cut = grpc.StatusCode.UNAVAILABLE.name

    def export_state(self) -> ExchangesState:
        """Rules with their counters, magic values in use, and what else the ledger to come depends on."""
        return ExchangesState(self.faults.export_state(), self.magic.export_state(), self._kept.export_state())

    def import_state(self, state: ExchangesState) -> None:
        """Go back to a snapshot."""
        self.faults.import_state(state.faults)
        self.magic.import_state(state.magic)
        self._kept.import_state(state.kept)
        self._reads.clear()

    # ---- around every call ----

    def _begin(self, method: Method, context: Any, raw: Any) -> Observed:
        # A namespace's router has made it already, and knows who calls.
        call = context if isinstance(context, Observed) else Observed(context)
        if call.actor is None:
            call.actor = facts.actor_of(call.certificate, self._control.trust_domain)
        call.record = self.recorder.begin(method, call.actor, raw)
        self._open.add(call)
        return call

    def _is_calm(self, method: Method) -> bool:
        """Whether nothing here can have to do with a call of the method."""
        return not (method.name in magic.METHODS or self._kept or self.faults.concern(method.name))

    def _unary(self, method: Method, serve: _Unary) -> _Unary:
        async def call(request: Any, context: Any) -> bytes:
            opened = self._begin(method, context, None if method.streams_in else request)
            record = opened.record
            try:
                if method.streams_in:
                    request = self._recorded(record, request)
                answer: Answer
                if self._is_calm(method):
                    answer = await serve(request, opened)
                else:
                    answer = await self._disturbed(opened, serve, request)
            except grpc.aio.AbortError:
                answer = opened.aborted_with()
            except asyncio.CancelledError:
                if record.request_id:
                    record.met(self.faults.after_commit(record.actor, record.request_id)[1])
                self.recorder.end(record, opened.if_cut)
                raise
            except BaseException:
                self.recorder.end(record, grpc.StatusCode.UNKNOWN.name)
                raise
            finally:
                self._open.discard(opened)
            if isinstance(answer, bytes):
                self.recorder.answered(record, answer)
                return answer
            self.recorder.end(record, answer.code.name, answer.details)
            return await opened.answer(answer)

        return call

    async def _recorded(self, record: Record, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for raw in requests:
            self.recorder.request(record, raw)
            yield raw

    def _streaming(self, method: Method, serve: _Stream) -> _Stream:
        async def call(request: Any, context: Any) -> AsyncIterator[bytes]:
            opened = self._begin(method, context, None if method.streams_in else request)
            record = opened.record
            if method.streams_in:
                request = self._recorded(record, request)
            opened.opened = lambda: self.recorder.opened(record)
            end, details = recorder.OK, b""
            ended: Status | None = None
            try:
                messages = serve(request, opened)
                if not self._is_calm(method):
                    messages = self._disturbed_stream(opened, serve, request)
                async for raw in messages:
                    self.recorder.reply(record, raw)
                    yield raw
            except grpc.aio.AbortError:
                ended = opened.aborted_with()
                end, details = ended.code.name, ended.details
            except (asyncio.CancelledError, GeneratorExit):
                end = opened.if_cut
                raise
            except BaseException:
                end = grpc.StatusCode.UNKNOWN.name
                raise
            finally:
                self._open.discard(opened)
                self.recorder.end(record, end, details)
            if ended is not None:
                await opened.answer(ended)

        return call

    # ---- a call that something may happen to ----

    def _seen(self, opened: Observed, raw: Any) -> tuple[Any, str, Call]:
        """The request read (None where it cannot be), its id, and the call as rules see it."""
        method, actor = opened.record.method, opened.record.actor
        request = facts.parsed(method.request, raw) if isinstance(raw, bytes) else None
        if request is None:
            return None, "", Call(method.name, actor, facts.operation_of(method, b"", ""), "", method.streams_out)
        request_id = facts.request_id_of(request)
        opened.record.request_id = request_id
        rx_no = ""
        if self.faults.need_prescription(method.name):
            rx_no = facts.rx_no_of(request) or self.recorder.rx_no_behind(request)
        operation = facts.operation_of(method, raw, request_id)
        return request, request_id, Call(method.name, actor, operation, rx_no, method.streams_out)

    async def _disturbed(self, opened: Observed, serve: _Unary, raw: Any) -> Answer:
        request, request_id, call = self._seen(opened, raw)
        plan = self.faults.plan(call)
        early = await self._before(opened, plan)
        if early is not None:
            return early
        treatment = await self._treated(opened, request)
        if treatment.answer is not None:
            return treatment.answer
        given = self._given(opened, plan, call, raw, treatment)
        answer = await self._asked(opened, serve, given, plan, request_id)
        answer = self._aged(opened, plan, call, answer)
        taken, labels = self.faults.after_commit(call.actor, request_id)
        opened.record.met(labels)
        taken = taken or plan.taken
        if taken is not None:
            return await self._taken(opened, taken)
        if treatment.lost_as is not None:
            return treatment.lost_as
        if isinstance(answer, bytes):
            answer = streams.altered(plan, call, opened.record.method, answer, 1, self.faults)
        return answer

    async def _disturbed_stream(self, opened: Observed, serve: _Stream, raw: Any) -> AsyncIterator[bytes]:
        request, _, call = self._seen(opened, raw)
        plan = self.faults.plan(call)
        early = await self._before(opened, plan)
        if early is not None:
            opened.status = early
            raise grpc.aio.AbortError
        messages = serve(raw, opened)
        if request is not None:
            messages = streams.disturbed(
                messages, plan, call, opened.record.method, request, self.faults, self._control.pause
            )
        try:
            async for message in messages:
                yield message
        except streams.StreamCut as cut:
            opened.status = cut.status
            raise grpc.aio.AbortError from None

    async def _before(self, opened: Observed, plan: Plan) -> Status | None:
        """Everything that comes before the hub sees the call; a status when the call ends here."""
        opened.record.met(rule.label for rule in plan.rules if rule.action != faults.STALE_READ)
        for rule in plan.delays:
            await self._control.pause(rule.arguments.delay_ms)
        if plan.fate is not None:
            return await self._fate(opened, plan.fate)
        skew = plan.others.get(faults.CLOCK_SKEW)
        if skew is not None:
            opened.skew(skew.arguments.skew_ms, self._control.now_ms)
        if faults.REVOKE_CERT_NOW in plan.others:
            await self._revoke(opened)
        return None

    async def _fate(self, opened: Observed, rule: Rule) -> Status:
        """The end of a call that the hub never sees."""
        arguments = rule.arguments
        if rule.action == faults.ERROR:
            return answer_named(arguments.code, retry_after_ms=arguments.retry_after_ms)
        if rule.action == faults.VOUCHER_ISSUER_DOWN:
            return refusal("HUB_UNAVAILABLE", retry_after_ms=arguments.retry_after_ms)
        if rule.action == faults.DROP_REQUEST:
            return await _silence(opened) if arguments.hang else lost_connection()
        opened.if_cut = grpc.StatusCode.UNAVAILABLE.name
        # Both cut this call too, among others; where they leave it, it ends alike.
        await (self._control.goaway() if rule.action == faults.GOAWAY else self._control.crash())
        return lost_connection()

    async def _taken(self, opened: Observed, rule: Rule) -> Status:
        """The end of a call that the hub has served."""
        if rule.action == faults.CRASH_HUB:
            opened.if_cut = grpc.StatusCode.UNAVAILABLE.name
            await self._control.crash()
        elif rule.arguments.hang:
            return await _silence(opened)
        return lost_connection()

    async def _treated(self, opened: Observed, request: Any) -> Treatment:
        if request is None or opened.record.method.name not in magic.METHODS:
            return Treatment()
        treatment = await self.magic.treat(opened.record.method.name, opened.record.actor, request)
        if treatment.label:
            opened.record.met((treatment.label,))
        if treatment.delay_ms:
            await self._control.pause(treatment.delay_ms)
        return treatment

    def _given(self, opened: Observed, plan: Plan, call: Call, raw: Any, treatment: Treatment) -> Any:
        """What the hub is given for these bytes."""
        if treatment.request is not None:
            return treatment.request
        if not isinstance(raw, bytes):
            return raw
        operation = (call.actor, call.operation)
        given = self._kept.given_for(operation, raw)
        pages = plan.others.get(faults.SMALL_PAGES)
        if given == raw and pages is not None:
            given = alterations.with_small_page(opened.record.method.request, raw, pages.arguments.page_size)
            if given != raw and opened.record.method.effect == COMMAND:
                self._kept.keep(operation, raw, given)
        return given

    async def _asked(self, opened: Observed, serve: _Unary, given: Any, plan: Plan, request_id: str) -> Answer:
        """The hub's answer; to the second of two where the request comes twice."""
        full = plan.others.get(faults.DISK_FULL)
        actor = opened.record.actor
        if full is not None:
            self.faults.doom(actor, request_id, full)
        try:
            if faults.DUPLICATE in plan.others:
                await _served(serve, given, opened)
            return await _served(serve, given, opened)
        finally:
            if full is not None:
                self.faults.spare(actor, request_id)

    def _aged(self, opened: Observed, plan: Plan, call: Call, fresh: Answer) -> Answer:
        if not self.faults.ages_reads(opened.record.method.name):
            return fresh
        rule = plan.others.get(faults.STALE_READ)
        shown = self._reads.answer((call.actor, call.operation), fresh, rule.arguments.lag if rule is not None else 0)
        if rule is not None:
            if shown == fresh:
                self.faults.unused(rule)
            else:
                opened.record.met((rule.label,))
        return shown

    async def _revoke(self, opened: Observed) -> None:
        role, _, peer_id = opened.record.actor.partition("/")
        agency = peer_id[1:7] if role in ("hospital", "pharmacy") else _AGENCY
        certificate = opened.certificate
        request = registry_pb2.RevokeCertificateRequest(
            request_id=request_id_for("revoke", certificate), certificate_pem=certificate, reason="fault rule"
        )
        try:
            await self._control.as_caller("agency", agency, _REVOKE, request)
        except RefusedCall:
            # Revoked before, or nobody's: the hub says so to the call itself.
            return


async def _served(serve: _Unary, request: Any, context: Observed) -> Answer:
    """The hub's own answer."""
    context.status = None
    try:
        return await serve(request, context)
    except grpc.aio.AbortError:
        return context.aborted_with()


async def _silence(opened: Observed) -> Status:
    """Nothing, until the caller or his deadline ends the call."""
    opened.if_cut = recorder.LOST
    await asyncio.Event().wait()
    return lost_connection()
