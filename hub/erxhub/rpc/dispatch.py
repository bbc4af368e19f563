"""One call from its bytes to its answer: the same few steps for every method of every service.

A command: admission, the lane, the answer. A read: admission, the query, its access entry, the answer. A watch:
admission, its access entry, then messages until the caller goes, its certificate expires or is revoked, or the hub
stops. Every refusal of an identified caller is recorded before it leaves; what only is counted is counted here.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from typing import Any, Final, NamedTuple, NoReturn, Protocol

import grpc
from google.protobuf.message import DecodeError

from erxhub.accesses import ReadNote
from erxhub.admission import (
    FieldRules,
    PeerIdentityError,
    SignatureProof,
    Violation,
    caller_of,
    content_of,
)
from erxhub.config import Config
from erxhub.core.catalog import CatalogImport, import_forbidden, prepare_import, refused_row
from erxhub.core.decide import HANDLERS
from erxhub.core.model import Caller, Command, Evidence, Refused, Target
from erxhub.downloads import attach
from erxhub.engine import Answer, Declined, Engine, HubBusy, HubStopped, Replied
from erxhub.ledger.store import StoreUnavailable, Wanted
from erxhub.ports import Pause, give_way
from erxhub.queries import QUERIES, STREAMS
from erxhub.queries.base import ReadContext, Shown
from erxhub.rpc.bulk import DETAILS_KEY, Bulk, ItemContext, ItemOutcome, ItemRefused, Serve, Waited
from erxhub.rpc.errors import wire_status
from erxhub.rpc.methods import COMMAND, METHODS, Method
from erxhub.rpc.waiting import REACHED_TRAILER, Waiting
from erxhub.v1 import common_pb2

_log = logging.getLogger("erxhub.rpc")

SENT_AT_HEADER: Final = "erxhub-sent-at-ms"
"""The caller's clock when it sent the request; optional, and the only place where its clock is compared."""

_REQUEST_ID_FIELDS: Final = frozenset({"request_id", "header.request_id"})

_COUNTED_ONLY: Final = frozenset({"HUB_UNAVAILABLE", "OVERLOADED"})

_INTERNAL: Final = "The hub failed inside; its operator finds the cause in the log."

_MESSAGE_ROWS_MAX: Final = 2_000
"""Rows in one message of an import; the field rule says the same, but rows are checked one by one and not with it."""

_ROWS_A_TURN: Final = 500
"""Rows of an import that are checked before other calls get their turn: a few milliseconds."""

_CONTEXT = grpc.aio.ServicerContext[Any, Any]

_ENDS: Final = (grpc.aio.AbortError, grpc.aio.InternalError)
"""How a call ends with a status; the second one when the caller has gone before it. gRPC knows what to do then."""


class _Call(NamedTuple):
    method: Method
    caller: Caller
    certificate: bytes
    received_at_ms: int


class _Checked(NamedTuple):
    """A command that keeps the field rules, with its signed contents as they were read."""

    call: _Call
    request: Any
    statements: Mapping[str, Any]
    raw: bytes


class _Queued(NamedTuple):
    """A command in the lane."""

    call: _Call
    request: Any
    answer: asyncio.Future[Answer]


class Dispatcher:
    """Serves the methods of one hub."""

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
        self._engine = engine
        self._reads = reads
        self._proof = proof
        self._rules = rules
        self._config = config
        self._pause = pause
        self._waiting = waiting
        self._open_streams: dict[str, int] = {}
        self._draining = False
        self._bulks_end = asyncio.Event()
        self._calls_begun = 0
        self._calls_open = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def handler(self, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        """The gRPC handler of a method; bytes go in and out unread, so that unreadable ones get an answer too.

        Raises KeyError for a method that nothing serves.
        """
        if method.streams_in and method.streams_out:
            BULK[method.name]
            return grpc.stream_stream_rpc_method_handler(self._sealed_stream(method, self._bulk))
        if method.streams_in:
            return grpc.stream_unary_rpc_method_handler(self._sealed(method, self._import))
        if method.streams_out:
            STREAMS[method.name]
            return grpc.unary_stream_rpc_method_handler(self._sealed_stream(method, self._stream))
        if method.effect == COMMAND:
            HANDLERS[method.name]
            return grpc.unary_unary_rpc_method_handler(self._sealed(method, self._command))
        QUERIES[method.name]
        return grpc.unary_unary_rpc_method_handler(self._sealed(method, self._read))

    async def drained(self) -> None:
        """Answer new calls with HUB_UNAVAILABLE from now on; returns once no call is open and none comes any more.

        What is on its way to a server when it stops ends as CANCELLED, so it is let in here first.
        """
        self._draining = True
        self._bulks_end.set()
        begun = -1
        while self._calls_open or begun != self._calls_begun:
            begun = self._calls_begun
            await self._idle.wait()
            await self._pause(self._config.drain_quiet_ms)

    # ---- around every call ----

    def _sealed(self, method: Method, serve: Callable[[Method, Any, _CONTEXT], Awaitable[bytes]]) -> Any:
        """The method as gRPC calls it. A bug is logged here, and the caller learns nothing of the inside."""

        async def call(request: Any, context: _CONTEXT) -> bytes:
            self._begin()
            try:
                return await serve(method, request, context)
            except _ENDS:
                raise
            except Exception:
                _log.exception("%s failed", method.name)
                await context.abort(grpc.StatusCode.INTERNAL, _INTERNAL)
                raise
            finally:
                self._end_of_call()

        return call

    def _sealed_stream(self, method: Method, serve: Callable[[Method, Any, _CONTEXT], AsyncIterator[bytes]]) -> Any:
        async def call(request: Any, context: _CONTEXT) -> AsyncIterator[bytes]:
            self._begin()
            try:
                async for message in serve(method, request, context):
                    yield message
            except _ENDS:
                raise
            except Exception:
                _log.exception("%s failed", method.name)
                await context.abort(grpc.StatusCode.INTERNAL, _INTERNAL)
                raise
            finally:
                self._end_of_call()

        return call

    def _begin(self) -> None:
        self._calls_begun += 1
        self._calls_open += 1
        self._idle.clear()

    def _end_of_call(self) -> None:
        self._calls_open -= 1
        if not self._calls_open:
            self._idle.set()

    # ---- the four kinds of call ----

    async def _command(self, method: Method, raw: bytes, context: _CONTEXT) -> bytes:
        call = await self._enter(method, context, len(raw))
        request = await self._parse(call, raw, context)
        statements = await self._check(call, request, request.request_id, context)
        return await self._proven(method, _Checked(call, request, statements, raw), context)

    async def _proven(self, method: Method, checked: _Checked, context: _CONTEXT) -> bytes:
        """A command that keeps the field rules: its signatures, and the decision."""
        call, request, statements, raw = checked
        try:
            evidence = await self._proof.evidence(request, method.signed_fields, statements)
        except StoreUnavailable:
            await self._unavailable(context)
        content = content_of(raw, _hashed(request, evidence))
        return await self._decide(call, request, request.request_id, evidence, content, len(raw), context)

    async def _import(self, method: Method, requests: AsyncIterator[bytes], context: _CONTEXT) -> bytes:
        call = await self._enter(method, context, 0)
        # The decision asks the same; asked here as well, nobody sends rows for nothing.
        forbidden = import_forbidden(call.caller)
        if forbidden is not None:
            await self._refuse(call, forbidden, "", context)
        await self._check_streams(call, context)
        with self._open_stream(call):
            request, content = await self._received_import(call, requests, context)
        return await self._decide(call, request, request.request_id, Evidence(), content, len(content), context)

    async def _received_import(
        self, call: _Call, requests: AsyncIterator[bytes], context: _CONTEXT
    ) -> tuple[CatalogImport, bytes]:
        """The import, and what makes a repeated one the same: its header and rows, however they were cut."""
        header: Any = None
        entries: list[Any] = []
        malformed: list[Any] = []
        digest = hashlib.sha256()
        rows = size = 0
        messages = aiter(requests)
        request_id = ""
        while (raw := await self._next_part(call, messages, request_id, context)) is not None:
            part = await self._parse(call, raw, context)
            if header is None:
                request_id = part.header.request_id
            if part.WhichOneof("part") != "rows" or not part.rows.entries:
                await self._check(call, part, request_id, context)
            if part.HasField("header") == (header is not None):
                found = [Violation("part", "order", "the first message is the header, and every other one holds rows")]
                await self._refuse(call, Refused("INPUT_MALFORMED", field="part"), request_id, context, found)
            if header is None:
                header = part.header
                continue
            rows += len(part.rows.entries)
            size += len(raw)
            too_much = self._too_much(len(part.rows.entries), rows, size)
            if too_much is not None:
                await self._refuse(call, too_much, request_id, context)
            for begin in range(0, len(part.rows.entries), _ROWS_A_TURN):
                some = part.rows.entries[begin : begin + _ROWS_A_TURN]
                for row in some:
                    body = row.SerializeToString(deterministic=True)
                    digest.update(len(body).to_bytes(4, "big") + body)
                good, bad = self._rules.rows(some)
                entries.extend(good)
                malformed.extend(refused_row(line, "INPUT_MALFORMED", field) for line, field in bad)
                await give_way()
        if header is None:
            found = [Violation("header", "required", "an import begins with its header")]
            await self._refuse(call, Refused("INPUT_MALFORMED", field="header"), "", context, found)
        content = content_of(header.SerializeToString(deterministic=True)) + digest.digest()
        # A second or two for a national list: beside the loop, and never in the lane.
        return await asyncio.to_thread(prepare_import, header, entries, malformed), content

    def _too_much(self, rows_of_message: int, rows: int, size: int) -> Refused | None:
        """INPUT_MALFORMED for rows beyond a limit: those of one message, or rows and bytes of the import so far."""
        for field, name, given, limit in (
            ("rows.entries", "message_rows_max", rows_of_message, _MESSAGE_ROWS_MAX),
            ("rows", "rows_max", rows, self._config.import_rows_max),
            ("rows", "bytes_max", size, self._config.import_bytes_max),
        ):
            if given > limit:
                return Refused("INPUT_MALFORMED", field=field, detail={name: str(limit)})
        return None

    async def _next_part(
        self, call: _Call, messages: AsyncIterator[bytes], request_id: str, context: _CONTEXT
    ) -> bytes | None:
        """The next message of an import, None at its end; a caller who sends nothing for too long is refused."""
        coming = asyncio.ensure_future(_next(messages))
        timer: asyncio.Task[None] = asyncio.ensure_future(self._pause(self._config.import_idle_ms))
        try:
            await asyncio.wait({coming, timer}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                detail = {"idle_ms": str(self._config.import_idle_ms)}
                await self._refuse(call, Refused("INPUT_MALFORMED", field="rows", detail=detail), request_id, context)
            return coming.result()
        finally:
            timer.cancel()
            coming.cancel()
            await asyncio.gather(coming, timer, return_exceptions=True)

    async def _read(self, method: Method, raw: bytes, context: _CONTEXT) -> bytes:
        call = await self._enter(method, context, len(raw))
        request = await self._parse(call, raw, context)
        await self._check(call, request, "", context)
        await self._certificate(call, context)
        try:
            outcome = await QUERIES[method.name](self._reads, call.caller, request)
            if isinstance(outcome, Refused):
                await self._end(call, outcome, context)
            reply: bytes = outcome.reply.SerializeToString()
            if len(reply) > self._config.reply_bytes_max:
                limit = {"reply_bytes_max": str(self._config.reply_bytes_max), "bytes": str(len(reply))}
                await self._end(call, Refused("REPLY_TOO_LARGE", detail=limit, targets=outcome.targets), context)
            case_reason = getattr(request, "case_reason", "")
            # An auditor's look is recorded even when it showed nothing: it was made for a case.
            if outcome.targets or case_reason:
                await self._note(call, "", outcome.targets, case_reason)
        except (StoreUnavailable, HubStopped):
            await self._unavailable(context)
        except HubBusy:
            await self._overloaded(context)
        _told(call, "", "OK")
        return reply

    async def _stream(self, method: Method, raw: bytes, context: _CONTEXT) -> AsyncIterator[bytes]:
        call = await self._enter(method, context, len(raw))
        request = await self._parse(call, raw, context)
        await self._check(call, request, "", context)
        await self._certificate(call, context)
        await self._check_streams(call, context)
        with self._open_stream(call):
            try:
                opened = await STREAMS[method.name](self._reads, call.caller, request)
                if isinstance(opened, Refused):
                    await self._refuse(call, opened, "", context)
                case_reason = getattr(request, "case_reason", "")
                await self._note(call, "", opened.opening_targets, case_reason)
                # Tells the caller that the stream stands: whatever happens from now on reaches it.
                await context.send_initial_metadata(())
                async for message in self._guarded(call, opened.messages, context):
                    if isinstance(message, Refused):
                        await self._end(call, message, context)
                    if isinstance(message, Shown):
                        await self._note(call, "", message.targets, case_reason)
                        continue
                    yield message.SerializeToString()
            except (StoreUnavailable, HubStopped):
                await self._unavailable(context)
            except HubBusy:
                await self._overloaded(context)

    async def _bulk(self, method: Method, requests: AsyncIterator[bytes], context: _CONTEXT) -> AsyncIterator[bytes]:
        call = await self._enter(method, context, 0)
        await self._certificate(call, context)
        await self._check_clock(call, "", context)
        await self._check_streams(call, context)
        item = ItemContext({"x509_pem_cert": (call.certificate,)}, context.time_remaining)
        bulk = Bulk(BULK[method.name](self), item, self._config.bulk_items_max, self._bulks_end, self._bulk_changed)
        with self._open_stream(call):
            await context.send_initial_metadata(())
            guard = asyncio.ensure_future(self._guard_bulk(call, bulk, item))
            try:
                async with aclosing(bulk.responses(requests)) as responses:
                    async for message in responses:
                        if isinstance(message, Refused):
                            await self._end(call, message, context)
                        yield message
            except ItemRefused as refused:
                await context.abort(refused.code, refused.message, ((DETAILS_KEY, refused.details),))
            finally:
                guard.cancel()
                await asyncio.gather(guard, return_exceptions=True)

    async def _guard_bulk(self, call: _Call, bulk: Bulk, context: Any) -> None:
        """A look now and then whether the caller's certificate expired or was revoked, as for every stream."""
        try:
            while True:
                await self._pause(self._config.stream_check_interval_ms)
                await self._caller(call.certificate, self._engine.clock.now_ms(), context)
                await self._certificate(call, context)
        except ItemRefused as refused:
            bulk.end(refused)

    def _bulk_changed(self, items: int) -> None:
        self._engine.under_way += items

    def items(self, method: Method) -> Serve:
        """A unary command as the items of a stream call it: through the same steps, those of a message together.

        What an item waits for beside the lane, and whatever is to be refused, goes on as the single call does.
        """
        single, proven, told = (self._sealed(method, way) for way in (self._command, self._proven, self._queued))

        async def serve(items: Sequence[bytes], context: ItemContext) -> list[ItemOutcome]:
            call = self._entered(method, context)
            begun: list[_Queued | asyncio.Task[bytes | Waited]] = []
            try:
                for raw in items:
                    checked: _Checked | None = None
                    queued: _Queued | None = None
                    if call is not None:
                        # A bug is met again by the single call, which says so and costs no other item its answer.
                        with suppress(Exception):
                            checked = self._checked_now(call, raw)
                            queued = None if checked is None else self._queued_now(checked)
                    if queued is not None:
                        begun.append(queued)
                    elif checked is not None:
                        begun.append(asyncio.create_task(_of_one(proven, checked, context)))
                    else:
                        begun.append(asyncio.create_task(_of_one(single, raw, context)))
                for place, one in enumerate(begun):
                    if isinstance(one, _Queued) and not await _is_plain(one):
                        begun[place] = asyncio.create_task(_of_one(told, one, context))
                return [await _outcome(one) for one in begun]
            finally:
                await _left(begun)

        return serve

    def _entered(self, method: Method, context: Any) -> _Call | None:
        """The call of items that nothing speaks against yet; None when something does."""
        received_at_ms = self._engine.clock.now_ms()
        certificate = context.auth_context()["x509_pem_cert"][0]
        if self._draining:
            return None
        try:
            caller = caller_of(certificate, self._config, received_at_ms)
        except PeerIdentityError:
            return None
        return _Call(method, caller, certificate, received_at_ms) if caller.kind in method.callers else None

    def _checked_now(self, call: _Call, raw: bytes) -> _Checked | None:
        """An item that can be read and keeps the field rules; None for any other."""
        request = call.method.request()
        try:
            self._engine.check_room(len(raw))
            request.ParseFromString(raw)
        except (HubBusy, DecodeError):
            return None
        found, statements = self._rules.check(request, call.method.signed_fields)
        return None if found else _Checked(call, request, statements, raw)

    def _queued_now(self, checked: _Checked) -> _Queued | None:
        """An item in the lane; None when its signatures have to be waited for, or the lane takes no more."""
        call, request, statements, raw = checked
        evidence = self._proof.evidence_now(request, call.method.signed_fields, statements)
        if evidence is None:
            return None
        command = Command(call.method.name, request, call.caller, request.request_id, call.received_at_ms, evidence)
        try:
            answer = self._engine.queue(command, content_of(raw, _hashed(request, evidence)), len(raw))
        except (HubBusy, HubStopped):
            return None
        return _Queued(call, request, answer)

    async def _queued(self, _: Method, queued: _Queued, context: _CONTEXT) -> bytes:
        call, request, answer = queued
        return await self._answered(call, request, request.request_id, answer, context)

    async def _check_streams(self, call: _Call, context: _CONTEXT) -> None:
        """OVERLOADED when the caller has as many streams open as it may."""
        if self._open_streams.get(call.caller.actor, 0) >= self._config.streams_per_peer_max:
            await self._overloaded(context)

    @contextmanager
    def _open_stream(self, call: _Call) -> Iterator[None]:
        """Counts one more stream of the caller until it ends."""
        actor = call.caller.actor
        self._open_streams[actor] = self._open_streams.get(actor, 0) + 1
        try:
            yield
        finally:
            self._open_streams[actor] -= 1
            if not self._open_streams[actor]:
                del self._open_streams[actor]

    async def _end(self, call: _Call, refused: Refused, context: _CONTEXT) -> NoReturn:
        """End a read or a stream with the refusal that it came to."""
        if refused.code in _COUNTED_ONLY:
            await self._count(refused, context)
        await self._refuse(call, refused, "", context)

    async def _guarded(self, call: _Call, messages: AsyncGenerator[Any, None], context: _CONTEXT) -> AsyncIterator[Any]:
        """The messages, and meanwhile a look now and then whether the caller's certificate expired or was revoked."""
        timer: asyncio.Task[None] = asyncio.ensure_future(self._pause(self._config.stream_check_interval_ms))
        coming: asyncio.Task[Any] | None = None
        try:
            while True:
                if coming is None:
                    coming = asyncio.ensure_future(anext(messages))
                await asyncio.wait({coming, timer}, return_when=asyncio.FIRST_COMPLETED)
                if timer.done():
                    await self._caller(call.certificate, self._engine.clock.now_ms(), context)
                    await self._certificate(call, context)
                    timer = asyncio.ensure_future(self._pause(self._config.stream_check_interval_ms))
                if coming.done():
                    done, coming = coming, None
                    try:
                        message = done.result()
                    except StopAsyncIteration:
                        return
                    yield message
        finally:
            timer.cancel()
            if coming is not None:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
            await messages.aclose()

    # ---- the steps ----

    async def _enter(self, method: Method, context: _CONTEXT, size: int) -> _Call:
        received_at_ms = self._engine.clock.now_ms()
        if self._draining:
            await self._unavailable(context)
        certificate = bytes(next(iter(context.auth_context().get("x509_pem_cert", ())), b""))
        caller = await self._caller(certificate, received_at_ms, context)
        call = _Call(method, caller, certificate, received_at_ms)
        try:
            self._engine.check_room(size)
        except HubBusy:
            await self._overloaded(context)
        if caller.kind not in method.callers:
            await self._refuse(call, Refused("ROLE_NOT_ALLOWED", detail={"caller": caller.kind}), "", context)
        return call

    async def _caller(self, certificate: bytes, at_ms: int, context: _CONTEXT) -> Caller:
        try:
            return caller_of(certificate, self._config, at_ms)
        except PeerIdentityError as error:
            await self._count(Refused("PEER_IDENTITY", detail={"reason": error.reason}), context)

    async def _parse(self, call: _Call, raw: bytes, context: _CONTEXT) -> Any:
        request = call.method.request()
        try:
            request.ParseFromString(raw)
        except DecodeError:
            await self._count(Refused("INPUT_MALFORMED", detail={"reason": "the bytes are no such message"}), context)
        return request

    async def _check(self, call: _Call, request: Any, request_id: str, context: _CONTEXT) -> dict[str, Any]:
        """Field rules and the caller's clock; returns the signed contents of the request, read."""
        found, statements = self._rules.check(request, call.method.signed_fields)
        if found:
            refused = Refused("INPUT_MALFORMED", field=found[0].field)
            # An id that breaks its own rule may be as long as a message; no entry carries it.
            recorded = "" if any(each.field in _REQUEST_ID_FIELDS for each in found) else request_id
            await self._refuse(call, refused, recorded, context, found)
        await self._check_clock(call, request_id, context)
        return statements

    async def _check_clock(self, call: _Call, request_id: str, context: _CONTEXT) -> None:
        skew = self._skew_ms(call, context)
        if skew is not None and abs(skew) > self._config.clock_skew_ms:
            refused = Refused("TIME_SKEW", field=SENT_AT_HEADER, detail={"skew_ms": str(skew)})
            await self._refuse(call, refused, request_id, context)

    @staticmethod
    def _skew_ms(call: _Call, context: _CONTEXT) -> int | None:
        for key, value in context.invocation_metadata() or ():
            if key == SENT_AT_HEADER:
                text = value if isinstance(value, str) else value.decode("ascii", "replace")
                # Sixteen digits reach past the year 300,000; anything else is no instant and counts as a skew.
                return int(text) - call.received_at_ms if text.isdecimal() and len(text) <= 16 else -call.received_at_ms
        return None

    async def _certificate(self, call: _Call, context: _CONTEXT) -> None:
        """CERT_REVOKED when the caller's certificate was revoked; the first in an hour is recorded."""
        name = ("revoked_certificate", call.caller.fingerprint)
        try:
            loaded = await self._engine.store.read(Wanted(names=frozenset({name})))
        except StoreUnavailable:
            await self._unavailable(context)
        if name in loaded.names:
            if self._engine.counts_revoked(call.caller.fingerprint):
                await self._count(Refused("CERT_REVOKED"), context)
            await self._record(call, Refused("CERT_REVOKED"), "", context, fingerprint=call.caller.fingerprint)

    async def _decide(
        self,
        call: _Call,
        request: Any,
        request_id: str,
        evidence: Evidence,
        content: bytes,
        size: int,
        context: _CONTEXT,
    ) -> bytes:
        command = Command(call.method.name, request, call.caller, request_id, call.received_at_ms, evidence)
        answering = self._engine.submit(command, content, size)
        return await self._answered(call, request, request_id, answering, context)

    async def _answered(
        self, call: _Call, request: Any, request_id: str, answering: Awaitable[Answer], context: _CONTEXT
    ) -> bytes:
        try:
            answer = await answering
            _told(call, request_id, answer.refused.code if isinstance(answer, Declined) else "OK")
            if isinstance(answer, Declined):
                if answer.slowed:
                    await self._pause(self._config.slowed_reply_ms)
                await self._abort(answer.refused, context)
            if answer.slowed:
                await self._pause(self._config.slowed_reply_ms)
            level = _wait_for(request)
            if level > common_pb2.WAIT_FOR_DURABLE:
                await self._wait(level, answer.body, call, context)
            if answer.attach_upload:
                return await attach(self._engine.store, answer.body, answer.attach_upload, call.method.response)
        except HubBusy:
            await self._overloaded(context)
        except (HubStopped, StoreUnavailable):
            await self._unavailable(context)
        return answer.body

    async def _wait(self, level: int, reply: bytes, call: _Call, context: Any) -> None:
        """Let the log come up to the level that the caller asked for, as far as there is time; tell how far it came."""
        receipt = call.method.response.FromString(reply).receipt
        # The lane gathers a batch by the items under way, and one that waits here is past the lane.
        items = 1 if isinstance(context, ItemContext) else 0
        self._bulk_changed(-items)
        try:
            reached = await self._waiting.wait(level, receipt, context.time_remaining())
        finally:
            self._bulk_changed(items)
        name = common_pb2.WaitFor.Name(reached).removeprefix("WAIT_FOR_")
        context.set_trailing_metadata(((REACHED_TRAILER, name),))

    async def _note(self, call: _Call, request_id: str, targets: tuple[Target, ...], case_reason: str) -> None:
        note = ReadNote(call.caller.actor, call.caller.kind, call.method.name, request_id, targets, None, case_reason)
        if await self._engine.note(note):
            await self._pause(self._config.slowed_reply_ms)

    # ---- refusals ----

    async def _refuse(
        self,
        call: _Call,
        refused: Refused,
        request_id: str,
        context: _CONTEXT,
        violations: list[Violation] | None = None,
    ) -> NoReturn:
        """Record a refusal that the lane has not seen, then answer with it.

        A revoked certificate speaks for nobody, so it is looked for before anything is recorded under its name.
        """
        await self._certificate(call, context)
        await self._record(call, refused, request_id, context, violations)

    async def _record(
        self,
        call: _Call,
        refused: Refused,
        request_id: str,
        context: _CONTEXT,
        violations: list[Violation] | None = None,
        fingerprint: bytes = b"",
    ) -> NoReturn:
        _told(call, request_id, refused.code)
        note = ReadNote(
            call.caller.actor,
            call.caller.kind,
            call.method.name,
            request_id,
            refused.targets,
            refused,
            fingerprint=fingerprint,
        )
        try:
            if await self._engine.note(note):
                await self._pause(self._config.slowed_reply_ms)
        except HubBusy:
            await self._overloaded(context)
        except HubStopped:
            await self._unavailable(context)
        await self._abort(refused, context, violations)

    async def _count(self, refused: Refused, context: _CONTEXT) -> NoReturn:
        """Answer with a refusal that is only counted."""
        self._engine.counters.count(refused.code)
        await self._abort(refused, context)

    async def _overloaded(self, context: _CONTEXT) -> NoReturn:
        await self._count(Refused("OVERLOADED"), context)

    async def _unavailable(self, context: _CONTEXT) -> NoReturn:
        await self._count(Refused("HUB_UNAVAILABLE"), context)

    async def _abort(self, refused: Refused, context: _CONTEXT, violations: list[Violation] | None = None) -> NoReturn:
        status = wire_status(refused, self._config, violations or ())
        await context.abort(status.code, status.message, (("grpc-status-details-bin", status.details),))
        raise AssertionError("abort always raises")


BULK: Final[Mapping[str, Callable[[Dispatcher], Serve]]] = {
    "PrescribingService/UploadPrescriptions": lambda hub: hub.items(METHODS["PrescribingService/UploadPrescription"]),
}
"""The streams of many calls of a unary method."""


async def _is_plain(queued: _Queued) -> bool:
    """Waits for the answer; whether it is an acceptance that leaves as it is and at once."""
    try:
        answer = await queued.answer
    except asyncio.CancelledError:
        raise
    except Exception:  # noqa: BLE001 whoever is asked next for the same answer says what it was
        return False
    waits = _wait_for(queued.request) > common_pb2.WAIT_FOR_DURABLE
    return isinstance(answer, Replied) and not (answer.slowed or answer.attach_upload or waits)


async def _of_one(way: Callable[[Any, Any], Awaitable[bytes]], given: Any, context: ItemContext) -> bytes | Waited:
    """One item by itself, with what it reached where it waited for the log."""
    own = context.of_one()
    reply = await way(given, own)
    return Waited(reply, own.reached) if own.reached else reply


async def _outcome(one: _Queued | asyncio.Task[bytes | Waited]) -> ItemOutcome:
    if isinstance(one, _Queued):
        answer = one.answer.result()
        assert isinstance(answer, Replied)
        _told(one.call, one.request.request_id, "OK")
        return answer.body
    try:
        return await one
    except ItemRefused as refused:
        return refused


async def _left(begun: Sequence[_Queued | asyncio.Task[bytes | Waited]]) -> None:
    """Nobody waits any more: what is not answered is given up, and its errors are nobody's. Queued commands stay so."""
    waiting = [one.answer if isinstance(one, _Queued) else one for one in begun]
    for one in waiting:
        one.cancel()
    tasks = [one for one in waiting if not one.done() or (not one.cancelled() and one.exception())]
    if tasks:
        await asyncio.gather(*tasks, return_exceptions=True)


async def _next(messages: AsyncIterator[bytes]) -> bytes | None:
    return await anext(messages, None)


def _wait_for(request: Any) -> int:
    """The level that a request, or the header of an import, asks for."""
    level: int = (request.header if isinstance(request, CatalogImport) else request).wait_for
    return level


def _hashed(request: Any, evidence: Evidence) -> dict[int, bytes]:
    """What stands in for a prescription file in the content of a request: its digest and type, not its bytes again."""
    digest = evidence.sha256.get("file")
    if digest is None:
        return {}
    return {request.FILE_FIELD_NUMBER: digest + request.file.media_type.encode()}


def _told(call: _Call, request_id: str, outcome: str) -> None:
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


class Served(Protocol):
    """What a server listens for: a dispatcher, or whatever chooses among several."""

    def handler(self, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        """The gRPC handler of a method, bytes in and out."""

    async def drained(self) -> None:
        """Take no new calls; returns once none is open."""


def handlers(dispatcher: Served, methods: Mapping[str, Method]) -> list[grpc.GenericRpcHandler]:
    """The generic handlers of all services."""
    by_service: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
    for method in methods.values():
        by_service.setdefault(method.service, {})[method.rpc] = dispatcher.handler(method)
    return [grpc.method_handlers_generic_handler(service, found) for service, found in by_service.items()]
