"""The watches: what happens to an institution's prescriptions, step by step, from a cursor.

Owns the promise that a watch goes on exactly after its cursor, with nothing missed and nothing twice. A step is what
one commit left in one prescription. It waits for the lane's word and never polls, and it tells numbers and states only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf.message import Message

from erxhub.core import events, index
from erxhub.core.consequences import statuses
from erxhub.core.events import At
from erxhub.core.fold import evolve
from erxhub.core.model import Caller, Refused
from erxhub.ledger.entry import Header
from erxhub.ledger.store import Head, ListingRow, StoredEntry, Wanted
from erxhub.queries.base import (
    Messages,
    Opened,
    ReadContext,
    Stream,
    TokenInvalid,
    make_token,
    open_token,
    place_of,
)
from erxhub.v1 import dispensing_pb2, prescribing_pb2, state_pb2

_PRESCRIPTION: Final = "prescription"
_ENTRIES_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class _Step:
    """One step as it is told. `state` is the prescription right after it."""

    caller: Caller
    cursor: str
    events: list[str]
    state: state_pb2.PrescriptionState
    version: int
    recorded_at_ms: int


_Teller = Callable[[_Step], Message]


def _of_hospital(step: _Step) -> Message:
    return prescribing_pb2.WatchPrescriptionsResponse(
        cursor=step.cursor,
        rx_no=step.state.rx_no,
        events=step.events,
        statuses=statuses(step.state),
        version=step.version,
        recorded_at_ms=step.recorded_at_ms,
    )


def _of_pharmacy(step: _Step) -> Message:
    # A step is listed under a pharmacy because it has an order; the newest one is the one that counts.
    order = [order for order in step.state.orders if order.pharmacy_code == step.caller.id][-1]
    return dispensing_pb2.WatchOrdersResponse(
        cursor=step.cursor,
        rx_no=step.state.rx_no,
        events=step.events,
        statuses=statuses(step.state),
        order=order.status,
        hold_until_ms=order.hold_until_ms,
        version=step.version,
        recorded_at_ms=step.recorded_at_ms,
    )


def _watch(method: str, tell: _Teller) -> Stream:
    async def opened(ctx: ReadContext, caller: Caller, request: Any) -> Opened | Refused:
        begin = await _begin(ctx, caller, method, request.cursor, request.from_start)
        if isinstance(begin, Refused):
            return begin
        return Opened(_messages(ctx, caller, method, tell, begin))

    return opened


async def _begin(ctx: ReadContext, caller: Caller, method: str, cursor: str, from_start: bool) -> int | Refused:
    """The position after which the watch begins. Refusals: PAGE_TOKEN_INVALID."""
    if cursor:
        try:
            return int.from_bytes(open_token(ctx, caller, method, (), cursor), "big")
        except TokenInvalid:
            return Refused("PAGE_TOKEN_INVALID", field="cursor")
    return 0 if from_start else await ctx.store.last_position()


async def _messages(ctx: ReadContext, caller: Caller, method: str, tell: _Teller, after: int) -> Messages:
    """All steps after a position, then each new one; HUB_UNAVAILABLE when the lane stops."""
    news = ctx.subscribe(caller.id)
    try:
        while ctx.running():
            # Cleared before the list is read: a commit in between sets it again, so it is never slept through.
            news.clear()
            while rows := await ctx.store.listing(index.FEED, caller.id.encode(), after, ctx.config.watch_page):
                async for step in _steps(ctx, caller, method, rows):
                    yield tell(step)
                after = rows[-1].position
            await news.wait()
        yield Refused("HUB_UNAVAILABLE")
    finally:
        ctx.unsubscribe(caller.id, news)


async def _steps(ctx: ReadContext, caller: Caller, method: str, rows: list[ListingRow]) -> AsyncIterator[_Step]:
    heads = (await ctx.store.read(Wanted(streams=frozenset(row.stream_key for row in rows)))).heads
    histories: dict[bytes, _History] = {}
    for row in rows:
        first = int.from_bytes(row.value, "big")
        entries = await ctx.store.entries(row.stream_key, first - 1, row.version - first + 1)
        headers = [Header.decode(entry.header) for entry in entries]
        history = histories.setdefault(row.stream_key, _History(ctx, heads[row.stream_key]))
        yield _Step(
            caller=caller,
            cursor=make_token(ctx, caller, method, (), place_of(row.position)),
            events=[events.BY_NUMBER[header.type].name for header in headers],
            state=await history.at(row.version, entries),
            version=row.version,
            recorded_at_ms=headers[-1].recorded_at_ms,
        )


@dataclass(slots=True)
class _History:
    """The states that a prescription went through, folded forward; its newest state is known without folding.

    Where content was erased nothing can be folded any more, and the newest state stands for the older ones.
    """

    ctx: ReadContext
    head: Head
    _version: int = 0
    _erased: bool = False
    _state: state_pb2.PrescriptionState = field(default_factory=state_pb2.PrescriptionState)

    async def at(self, version: int, step: list[StoredEntry]) -> state_pb2.PrescriptionState:
        """The state at a version not below the last one asked for; `step` holds the entries that end there."""
        while self._version < version < self.head.version and not self._erased:
            if step and step[0].version == self._version + 1:
                entries = step
            else:
                wanted = min(version - self._version, _ENTRIES_AT_ONCE)
                entries = await self.ctx.store.entries(self.head.stream_key, self._version, wanted)
            for entry in entries:
                self._fold(entry)
        if self._erased or version == self.head.version:
            return state_pb2.PrescriptionState.FromString(self.head.body)
        return self._state

    def _fold(self, entry: StoredEntry) -> None:
        self._version = entry.version
        self._erased = self._erased or entry.payload is None
        if self._erased or entry.payload is None:
            return
        header = Header.decode(entry.header)
        kind = events.BY_NUMBER[header.type]
        at = At(header.version, header.recorded_at_ms, header.request_id)
        evolve(_PRESCRIPTION, self._state, kind.name, kind.payload.FromString(entry.payload), at)


STREAMS: Final[Mapping[str, Stream]] = {
    "PrescribingService/WatchPrescriptions": _watch("PrescribingService/WatchPrescriptions", _of_hospital),
    "DispensingService/WatchOrders": _watch("DispensingService/WatchOrders", _of_pharmacy),
}
