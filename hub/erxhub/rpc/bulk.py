"""Many unary calls over one bidirectional stream: each item is decided for itself, and the answers come in order.

Owns how many items are under way, and the order of the results; the bytes are cut and put together in `bulk_wire`. It
never looks into an item and decides nothing about it: whoever serves the unary method does, for the items of a message
together.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from itertools import count
from typing import Any, Final, NamedTuple, NoReturn, TypeAlias

import grpc
from google.rpc import error_details_pb2, status_pb2

from erxhub.core.model import Refused
from erxhub.rpc import bulk_wire
from erxhub.rpc.waiting import REACHED_TRAILER
from erxhub.v1 import common_pb2, prescribing_pb2

DETAILS_KEY: Final = "grpc-status-details-bin"

ITEMS_MAX: Final = 64
"""Items of one message; the field rule says the same."""


class ItemRefused(grpc.aio.AbortError):
    """What the abort of an item's context raises; the stream goes on."""

    def __init__(self, code: grpc.StatusCode, details: bytes, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.details = details
        self.message = message


class Waited(NamedTuple):
    """The reply to an item that waited for the log, and what it reached."""

    reply: bytes
    reached: common_pb2.WaitFor.ValueType


ItemOutcome: TypeAlias = "bytes | Waited | ItemRefused"

Serve = Callable[[Sequence[bytes], Any], Awaitable[Sequence[ItemOutcome]]]
"""A unary method: the bytes of some items and their context to, for each in order, the reply's bytes or the refusal."""


class ItemContext:
    """As much of a servicer context as a unary call asks for, of the stream's caller. The caller's clock was looked at
    when the stream began, so an item tells none.
    """

    def __init__(self, auth: Mapping[str, Sequence[bytes]], time_remaining: Callable[[], float | None]) -> None:
        """`time_remaining` is the stream's: seconds to its deadline, None where it has none."""
        self._auth = auth
        self.time_remaining = time_remaining
        self.reached: common_pb2.WaitFor.ValueType = common_pb2.WAIT_FOR_UNSPECIFIED

    def of_one(self) -> ItemContext:
        """The context of one item, which keeps what that item reached."""
        return ItemContext(self._auth, self.time_remaining)

    def set_trailing_metadata(self, metadata: Sequence[tuple[str, str]]) -> None:
        """What a unary reply has in its trailer stands in the item's result."""
        self.reached = common_pb2.WaitFor.Value(f"WAIT_FOR_{dict(metadata)[REACHED_TRAILER]}")

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """Who calls."""
        return self._auth

    def invocation_metadata(self) -> tuple[()]:
        """Nothing."""
        return ()

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        """End the item."""
        packed = b"".join(value for key, value in trailing_metadata if key == DETAILS_KEY)
        if not packed:
            packed = status_pb2.Status(code=code.value[0], message=details).SerializeToString()
        raise ItemRefused(code, packed, details)


class _Message(NamedTuple):
    """The items of one message, and their results as fields of the response."""

    items: int
    results: asyncio.Task[bytes]


_Group: TypeAlias = "_Message | Refused | ItemRefused | None"
"""A message, or the end of the stream: with a refusal, or in good order (None)."""


class _Groups:
    """Groups in the order of the stream; `waiting` may be looked at and emptied from its left."""

    def __init__(self) -> None:
        self.waiting: deque[_Group] = deque()
        self._some = asyncio.Event()

    def put(self, group: _Group) -> None:
        self.waiting.append(group)
        self._some.set()

    async def next(self) -> _Group:
        while not self.waiting:
            self._some.clear()
            await self._some.wait()
        return self.waiting.popleft()


class Bulk:
    """One stream: at most `items_max` items are under way, and no more are read before."""

    def __init__(
        self,
        serve: Serve,
        context: ItemContext,
        items_max: int,
        ending: asyncio.Event,
        changed: Callable[[int], None],
    ) -> None:
        """`ending` is set when no more is to be read; `changed` hears by how much the items under way have changed."""
        self._serve = serve
        self._context = context
        self._items_max = items_max
        self._ending = ending
        self._changed = changed
        self._taken = 0
        self._open = 0
        self._room = asyncio.Event()
        self._groups = _Groups()

    async def responses(self, requests: AsyncIterator[bytes]) -> AsyncGenerator[bytes | Refused, None]:
        """The responses, results in order; a Refused ends the stream, after the answers to what came before it.

        Raises ItemRefused when `end` was called with one.
        """
        reading = asyncio.create_task(self._read(requests))
        reading.add_done_callback(lambda _: self._groups.put(None))
        ending = asyncio.create_task(self._end_reading(reading))
        group: _Group = None
        try:
            while (group := await self._groups.next()) is not None:
                if isinstance(group, ItemRefused):
                    raise group
                if isinstance(group, Refused):
                    yield group
                    return
                parts, items = [await group.results], group.items
                # What was committed with it is told with it.
                while (more := self._next_done(items)) is not None:
                    parts.append(more.results.result())
                    items += more.items
                yield b"".join(parts)
            await reading
        finally:
            for task in (reading, ending):
                task.cancel()
            left = [one.results for one in (group, *self._groups.waiting) if isinstance(one, _Message)]
            self._groups.waiting.clear()
            for results in left:
                results.cancel()
            await asyncio.gather(reading, ending, *left, return_exceptions=True)

    def end(self, refused: ItemRefused) -> None:
        """End the stream with this once what came before is answered; nothing more is read."""
        self._groups.put(refused)

    def _next_done(self, taken: int) -> _Message | None:
        """The next message when all of it is answered and there is room for it; it is then taken."""
        waiting = self._groups.waiting
        if not waiting or not isinstance(message := waiting[0], _Message) or taken + message.items > ITEMS_MAX:
            return None
        results = message.results
        if not results.done() or results.cancelled() or results.exception() is not None:
            return None
        waiting.popleft()
        return message

    async def _end_reading(self, reading: asyncio.Task[None]) -> None:
        await self._ending.wait()
        reading.cancel()

    async def _read(self, requests: AsyncIterator[bytes]) -> None:
        try:
            async for raw in requests:
                items = bulk_wire.items_of(raw)
                if items is None or not 0 < len(items) <= ITEMS_MAX:
                    detail = {"items_max": str(ITEMS_MAX)}
                    self._groups.put(Refused("INPUT_MALFORMED", field="items", detail=detail))
                    return
                await self._until_room(len(items))
                self._open += len(items)
                self._changed(len(items))
                self._groups.put(self._begun(items))
        except asyncio.CancelledError:
            if not self._ending.is_set():
                raise
            self._groups.put(Refused("HUB_UNAVAILABLE"))

    async def _until_room(self, items: int) -> None:
        while self._open and self._open + items > self._items_max:
            self._room.clear()
            await self._room.wait()

    def _begun(self, items: Sequence[bytes]) -> _Message:
        task = asyncio.create_task(self._results(self._taken, items))
        # Not in the task's own `finally`: one that is cancelled before its first step never gets there.
        task.add_done_callback(lambda _: self._is_over(len(items)))
        self._taken += len(items)
        return _Message(len(items), task)

    async def _results(self, first: int, items: Sequence[bytes]) -> bytes:
        """The items of a message, served; their results as fields of the response."""
        outcomes = await self._serve(items, self._context)
        numbered = zip(count(first), items, outcomes, strict=False)
        return b"".join([_result(number, raw, outcome) for number, raw, outcome in numbered])

    def _is_over(self, items: int) -> None:
        self._open -= items
        self._changed(-items)
        self._room.set()


def _result(number: int, raw: bytes, outcome: ItemOutcome) -> bytes:
    """The result of one item, as a field of the response."""
    if isinstance(outcome, ItemRefused):
        return bulk_wire.refused(number, raw, _refusal(outcome).SerializeToString())
    if isinstance(outcome, Waited):
        return bulk_wire.accepted(number, raw, outcome.reply, outcome.reached)
    return bulk_wire.accepted(number, raw, outcome)


def _refusal(refused: ItemRefused) -> prescribing_pb2.UploadRefusal:
    told = prescribing_pb2.UploadRefusal(message_en=refused.message, status=refused.details)
    info, chinese, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.LocalizedMessage(),
        error_details_pb2.RetryInfo(),
    )
    for detail in status_pb2.Status.FromString(refused.details).details:
        # Unpack leaves a message of another type as it is.
        for kind in (info, chinese, retry):
            detail.Unpack(kind)
    told.code, told.message_zh = info.reason, chinese.message
    told.field = info.metadata.get("field", "")
    told.retriable = info.metadata.get("retriable") == "yes"
    told.retry_after_ms = retry.retry_delay.ToMilliseconds()
    return told
