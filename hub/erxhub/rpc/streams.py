"""The calls of more than one message: the import of a catalog, watches, and bulk streams.

A watch: admission, its access entry, then messages until the caller goes, its certificate expires or is revoked, or the
hub stops. Owns how many streams each caller has open. It decides nothing by itself: each step is that of a single call.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any, Final

import grpc

from erxhub.admission import Violation, content_of
from erxhub.core.catalog import CatalogImport, import_forbidden, prepare_import, refused_row
from erxhub.core.model import Evidence, Refused
from erxhub.engine import HubBusy, HubStopped
from erxhub.ledger.store import StoreUnavailable
from erxhub.ports import give_way
from erxhub.queries import STREAMS
from erxhub.queries.base import Shown
from erxhub.rpc.bulk import DETAILS_KEY, Bulk, ItemContext, ItemRefused
from erxhub.rpc.calls import ENDS, INTERNAL, Calls, Context
from erxhub.rpc.items import Items
from erxhub.rpc.methods import METHODS, Method
from erxhub.rpc.steps import Call

_log = logging.getLogger("erxhub.rpc")

_MESSAGE_ROWS_MAX: Final = 2_000
"""Rows in one message of an import; the field rule says the same, but rows are checked one by one and not with it."""

_ROWS_A_TURN: Final = 500
"""Rows of an import that are checked before other calls get their turn: a few milliseconds."""

BULK: Final[Mapping[str, Method]] = {
    "PrescribingService/UploadPrescriptions": METHODS["PrescribingService/UploadPrescription"],
}
"""The streams of many calls of a unary method, and that method."""


class Streams:
    """Serves the streaming methods of one hub."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._items = Items(calls)
        self._engine = calls.engine
        self._reads = calls.reads
        self._rules = calls.steps.rules
        self._steps = calls.steps
        self._config = calls.config
        self._pause = calls.pause
        self._open_streams: dict[str, int] = {}
        self._bulks_end = asyncio.Event()

    def end_bulks(self) -> None:
        """Read no more items from any stream; what was read is answered."""
        self._bulks_end.set()

    def sealed(self, method: Method, serve: Callable[[Method, Any, Context], AsyncIterator[bytes]]) -> Any:
        """`Calls.sealed` for a method that answers with a stream."""

        async def call(request: Any, context: Context) -> AsyncIterator[bytes]:
            self._calls.opened()
            try:
                async for message in serve(method, request, context):
                    yield message
            except ENDS:
                raise
            except Exception:
                _log.exception("%s failed", method.name)
                await context.abort(grpc.StatusCode.INTERNAL, INTERNAL)
                raise
            finally:
                self._calls.closed()

        return call

    async def watch(self, method: Method, raw: bytes, context: Context) -> AsyncIterator[bytes]:
        """A watch: the bytes of its messages."""
        calls = self._calls
        call = await calls.passed(self._steps.entered(method, context, len(raw)), context)
        request = await calls.passed(self._steps.parsed(call, raw), context)
        await calls.passed(self._steps.statements(call, request, "", context), context)
        await calls.certificate(call, context)
        await self._check_streams(call, context)
        with self._open_stream(call):
            try:
                opened = await STREAMS[method.name](self._reads, call.caller, request)
                if isinstance(opened, Refused):
                    await self._calls.refuse(call, opened, "", context)
                case_reason = getattr(request, "case_reason", "")
                await self._calls.note(call, "", opened.opening_targets, case_reason)
                # Tells the caller that the stream stands: whatever happens from now on reaches it.
                await context.send_initial_metadata(())
                async for message in self._guarded(call, opened.messages, context):
                    if isinstance(message, Refused):
                        await self._calls.end(call, message, context)
                    if isinstance(message, Shown):
                        await self._calls.note(call, "", message.targets, case_reason)
                        continue
                    yield message.SerializeToString()
            except (StoreUnavailable, HubStopped):
                await self._calls.unavailable(context)
            except HubBusy:
                await self._calls.overloaded(context)

    async def catalog_import(self, method: Method, requests: AsyncIterator[bytes], context: Context) -> bytes:
        """The import of a catalog: the bytes of its reply, once its last message is there and it is decided."""
        call = await self._calls.passed(self._steps.entered(method, context, 0), context)
        # The decision asks the same; asked here as well, nobody sends rows for nothing.
        forbidden = import_forbidden(call.caller)
        if forbidden is not None:
            await self._calls.refuse(call, forbidden, "", context)
        await self._check_streams(call, context)
        with self._open_stream(call):
            request, content = await self._received_import(call, requests, context)
        queued = self._steps.queued(call, request, Evidence(), content, len(content))
        return await self._calls.answered(await self._calls.passed(queued, context), context)

    async def _received_import(
        self, call: Call, requests: AsyncIterator[bytes], context: Context
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
            part = await self._calls.passed(self._steps.parsed(call, raw), context)
            if header is None:
                request_id = part.header.request_id
            if part.WhichOneof("part") != "rows" or not part.rows.entries:
                await self._calls.passed(self._steps.statements(call, part, request_id, context), context)
            if part.HasField("header") == (header is not None):
                found = [Violation("part", "order", "the first message is the header, and every other one holds rows")]
                await self._calls.refuse(call, Refused("INPUT_MALFORMED", field="part"), request_id, context, found)
            if header is None:
                header = part.header
                continue
            rows += len(part.rows.entries)
            size += len(raw)
            too_much = self._too_much(len(part.rows.entries), rows, size)
            if too_much is not None:
                await self._calls.refuse(call, too_much, request_id, context)
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
            await self._calls.refuse(call, Refused("INPUT_MALFORMED", field="header"), "", context, found)
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
        self, call: Call, messages: AsyncIterator[bytes], request_id: str, context: Context
    ) -> bytes | None:
        """The next message of an import, None at its end; a caller who sends nothing for too long is refused."""
        coming = asyncio.ensure_future(_next(messages))
        timer: asyncio.Task[None] = asyncio.ensure_future(self._pause(self._config.import_idle_ms))
        try:
            await asyncio.wait({coming, timer}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                detail = {"idle_ms": str(self._config.import_idle_ms)}
                await self._calls.refuse(
                    call, Refused("INPUT_MALFORMED", field="rows", detail=detail), request_id, context
                )
            return coming.result()
        finally:
            timer.cancel()
            coming.cancel()
            await asyncio.gather(coming, timer, return_exceptions=True)

    async def bulk(self, method: Method, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        """Many calls of a unary method: the bytes of the responses, with the results in order."""
        call = await self._calls.passed(self._steps.entered(method, context, 0), context)
        await self._calls.certificate(call, context)
        await self._calls.passed(self._steps.skewed(call, "", context), context)
        await self._check_streams(call, context)
        item = ItemContext({"x509_pem_cert": (call.certificate,)}, context.time_remaining)
        bulk = Bulk(
            self._items.of(BULK[method.name]), item, self._config.bulk_items_max, self._bulks_end, self._bulk_changed
        )
        with self._open_stream(call):
            await context.send_initial_metadata(())
            guard = asyncio.ensure_future(self._guard_bulk(call, bulk, item))
            try:
                async with aclosing(bulk.responses(requests)) as responses:
                    async for message in responses:
                        if isinstance(message, Refused):
                            await self._calls.end(call, message, context)
                        yield message
            except ItemRefused as refused:
                await context.abort(refused.code, refused.message, ((DETAILS_KEY, refused.details),))
            finally:
                guard.cancel()
                await asyncio.gather(guard, return_exceptions=True)

    async def _guard_bulk(self, call: Call, bulk: Bulk, context: Any) -> None:
        """A look now and then whether the caller's certificate expired or was revoked, as for every stream."""
        try:
            while True:
                await self._pause(self._config.stream_check_interval_ms)
                await self._check_certificate(call, context)
        except ItemRefused as refused:
            bulk.end(refused)

    def _bulk_changed(self, items: int) -> None:
        self._engine.under_way += items

    async def _guarded(self, call: Call, messages: AsyncGenerator[Any, None], context: Context) -> AsyncIterator[Any]:
        """The messages, and meanwhile a look now and then whether the caller's certificate expired or was revoked."""
        timer: asyncio.Task[None] = asyncio.ensure_future(self._pause(self._config.stream_check_interval_ms))
        coming: asyncio.Task[Any] | None = None
        try:
            while True:
                if coming is None:
                    coming = asyncio.ensure_future(anext(messages))
                await asyncio.wait({coming, timer}, return_when=asyncio.FIRST_COMPLETED)
                if timer.done():
                    await self._check_certificate(call, context)
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

    async def _check_certificate(self, call: Call, context: Context) -> None:
        """Ends the stream of a caller whose certificate expired or was revoked."""
        caller = self._steps.caller(call.certificate, self._engine.clock.now_ms())
        await self._calls.passed(caller, context)
        await self._calls.certificate(call, context)

    async def _check_streams(self, call: Call, context: Context) -> None:
        """OVERLOADED when the caller has as many streams open as it may."""
        if self._open_streams.get(call.caller.actor, 0) >= self._config.streams_per_peer_max:
            await self._calls.overloaded(context)

    @contextmanager
    def _open_stream(self, call: Call) -> Iterator[None]:
        """Counts one more stream of the caller until it ends."""
        actor = call.caller.actor
        self._open_streams[actor] = self._open_streams.get(actor, 0) + 1
        try:
            yield
        finally:
            self._open_streams[actor] -= 1
            if not self._open_streams[actor]:
                del self._open_streams[actor]


async def _next(messages: AsyncIterator[bytes]) -> bytes | None:
    return await anext(messages, None)
