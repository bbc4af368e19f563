"""The traffic of one namespace: every exchange as its bytes, decoded only when somebody reads it.

Owns what is kept (the newest exchanges, within a count and a size) and in which order it is told. At call time it keeps
bytes and cheap facts; what a message says, which signature verifies and which entries a call left is worked out when
asked. It never changes a call, and nothing of it is written to a ledger.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

from erxhub.ledger.entry import Header
from erxhub.ledger.store import AppendResult, Write
from erxhub.rpc.methods import COMMAND, Method
from erxhub.sandbox import decoding, facts
from erxhub.sandbox.control import Control
from erxhub.v1 import sandbox_pb2

RECORDS_MAX: Final = 20_000
"""Exchanges kept: a day of a vendor's tests."""

BYTES_MAX: Final = 64 * 1024 * 1024
"""Bytes of messages kept: what a laptop can spare for each of several namespaces."""

ENTRIES_MAX: Final = 100_000
"""Entries of which it is known who left them."""

STREAM_MESSAGES_MAX: Final = 2_000
"""Messages of one stream that are kept; later ones are counted."""

_RECORD_BYTES: Final = 400
_FOLLOWER_WAITING_MAX: Final = 5_000
_EARLIER_MAX: Final = 500

OPEN: Final = ""
OK: Final = "OK"
LOST: Final = "LOST"
CANCELLED: Final = "CANCELLED"


class Filter(NamedTuple):
    """Which exchanges are wanted; what is empty does not matter. `method` is "<Service>/<Method>", short or long."""

    rx_no: str = ""
    actor: str = ""
    method: str = ""
    after_number: int = 0


EVERYTHING: Final = Filter()


Messages: TypeAlias = bytes | list[bytes] | None
"""None, one message as it is, or several."""


def all_of(messages: Messages) -> Sequence[bytes]:
    """The messages as a sequence."""
    if messages is None:
        return ()
    return (messages,) if isinstance(messages, bytes) else messages


class Record:
    """One exchange as it came: bytes, instants, and what happened to it. Microseconds since the sandbox started."""

    # What most records never say is said once, by the class: thousands are made, and making one is most of the cost.
    answered_us = 0
    entries_until = -1
    requests: Messages = None
    replies: Messages = None
    request_bytes = 0
    reply_bytes = 0
    request_id: str | None = None
    status = OPEN
    details = b""
    kept = True
    kept_bytes = _RECORD_BYTES
    _faults: list[str] | None = None

    def __init__(
        self, number: int, method: Method, actor: str, received_at_ms: int, arrived_us: int, entries_from: int
    ) -> None:
        self.number = number
        self.method = method
        self.actor = actor
        self.received_at_ms = received_at_ms
        self.arrived_us = arrived_us
        self.entries_from = entries_from

    @property
    def faults(self) -> Sequence[str]:
        """Labels of what the sandbox did to it."""
        return self._faults or ()

    def met(self, labels: Iterable[str]) -> None:
        """The sandbox did this to it."""
        for label in labels:
            if self._faults is None:
                self._faults = []
            self._faults.append(label)


_Left: TypeAlias = tuple[int, bytes]
"""One entry that a commit left: position and header as stored. A ledger in memory has the same bytes anyway."""


@dataclass(eq=False, slots=True)
class _Follower:
    """Somebody who waits for exchanges to come."""

    waiting: deque[Record]
    news: asyncio.Event


class Recorder:
    """The traffic of one namespace, newest kept."""

    def __init__(self, control: Control, *, records_max: int = RECORDS_MAX, bytes_max: int = BYTES_MAX) -> None:
        self._control = control
        self._records_max = records_max
        self._bytes_max = bytes_max
        self._records: deque[Record] = deque()
        self._bytes = 0
        self._number = 0
        self._left: list[_Left] = []
        self._left_dropped = 0
        self._followers: set[_Follower] = set()

    @property
    def recorded(self) -> int:
        """Exchanges so far."""
        return self._number

    @property
    def kept(self) -> int:
        """Exchanges that can still be read."""
        return len(self._records)

    def clear(self) -> None:
        """Forget everything and count from 1 again; who follows goes on with what comes."""
        for record in self._records:
            record.kept = False
        self._records.clear()
        self._bytes = 0
        self._number = 0
        self._left.clear()
        self._left_dropped = 0

    # ---- at call time ----

    def begin(self, method: Method, actor: str, raw: bytes | None = None) -> Record:
        """A call arrived, with this message unless they come as a stream."""
        self._number += 1
        control, left = self._control, self._left_dropped + len(self._left)
        record = Record(self._number, method, actor, control.now_ms(), control.machine_us(), left)
        self._records.append(record)
        if raw is not None:
            record.requests = raw
            record.request_bytes = len(raw)
            record.kept_bytes += record.request_bytes
        self._bytes += record.kept_bytes
        if len(self._records) > self._records_max:
            self._drop_oldest()
        if self._bytes > self._bytes_max:
            self._trim()
        return record

    def request(self, record: Record, raw: bytes) -> None:
        """A message of the caller."""
        record.request_bytes += len(raw)
        record.requests = self._with(record, record.requests, raw)
        self._trim()

    def reply(self, record: Record, raw: bytes) -> None:
        """A message that the caller got."""
        record.reply_bytes += len(raw)
        record.replies = self._with(record, record.replies, raw)
        self._trim()

    def answered(self, record: Record, raw: bytes) -> None:
        """The call is over, with this as its one reply."""
        record.reply_bytes = len(raw)
        if record.kept:
            record.replies = raw
            record.kept_bytes += record.reply_bytes
            self._bytes += record.reply_bytes
            if self._bytes > self._bytes_max:
                self._trim()
        self.end(record, OK)

    def opened(self, record: Record) -> None:
        """A stream stands; it may end late, so followers hear of it now and again at its end."""
        self._tell(record)

    def end(self, record: Record, status: str, details: bytes = b"") -> None:
        """The call is over: the name of the gRPC status that its caller saw (or LOST), and its details as sent."""
        record.status = status
        if details:
            record.details = details
        record.answered_us = self._control.machine_us()
        record.entries_until = self._left_dropped + len(self._left)
        if self._followers:
            self._tell(record)

    def committed(self, batch: Sequence[Write], result: AppendResult) -> None:
        """A commit is durable; what its writes left is known from now on."""
        left_out = result.conflicts | result.busy
        entries = [entry for place, write in enumerate(batch) if place not in left_out for entry in write.entries]
        first = result.last_position - len(entries) + 1
        self._left.extend([(first + place, entry.header_bytes) for place, entry in enumerate(entries)])
        if len(self._left) > 2 * ENTRIES_MAX:
            dropped = len(self._left) - ENTRIES_MAX
            del self._left[:dropped]
            self._left_dropped += dropped

    def _with(self, record: Record, messages: Messages, raw: bytes) -> Messages:
        """The messages with one more, unless the record is gone or has as many as it may."""
        if not record.kept or (isinstance(messages, list) and len(messages) >= STREAM_MESSAGES_MAX):
            return messages
        record.kept_bytes += len(raw)
        self._bytes += len(raw)
        if messages is None:
            return raw
        if isinstance(messages, bytes):
            return [messages, raw]
        messages.append(raw)
        return messages

    def _trim(self) -> None:
        while self._bytes > self._bytes_max and self._records:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        record = self._records.popleft()
        record.kept = False
        self._bytes -= record.kept_bytes

    def _tell(self, record: Record) -> None:
        for follower in self._followers:
            follower.waiting.append(record)
            follower.news.set()

    # ---- reading ----

    async def exchanges(self, wanted: Filter = EVERYTHING) -> AsyncIterator[sandbox_pb2.Exchange]:
        """The kept exchanges that are wanted, oldest first; one that is still open has no status."""
        for record in list(self._records):
            if self._is_wanted(record, wanted):
                yield await self.told(record)

    async def follow(self, wanted: Filter = EVERYTHING) -> AsyncIterator[sandbox_pb2.Exchange]:
        """The kept exchanges and then each one to come, when it ends; a stream when it is opened and when it ends.

        Never ends by itself. An exchange that ends while the kept ones are told may come twice, under its one number; a
        reader that falls thousands behind misses the oldest.
        """
        follower = _Follower(deque(maxlen=_FOLLOWER_WAITING_MAX), asyncio.Event())
        self._followers.add(follower)
        try:
            async for exchange in self.exchanges(wanted):
                yield exchange
            while True:
                await follower.news.wait()
                follower.news.clear()
                while follower.waiting:
                    record = follower.waiting.popleft()
                    if self._is_wanted(record, wanted):
                        yield await self.told(record)
        finally:
            self._followers.discard(follower)

    async def told(self, record: Record) -> sandbox_pb2.Exchange:
        """The record, decoded."""
        exchange = sandbox_pb2.Exchange(
            number=record.number,
            method=facts.short_name(record.method),
            actor=record.actor,
            request_id=self.request_id(record),
            rx_no=self.rx_no(record),
            received_at_ms=record.received_at_ms,
            arrived_us=record.arrived_us,
            answered_us=record.answered_us,
            requests_json=[decoding.json_of(record.method.request, raw) for raw in all_of(record.requests)],
            replies_json=[decoding.json_of(record.method.response, raw) for raw in all_of(record.replies)],
            status=record.status,
            refusal_code=decoding.refusal_code(record.details),
            entries=[
                sandbox_pb2.ExchangeEntry(
                    position=position,
                    stream_kind=header.stream_kind,
                    stream_key=header.stream_key,
                    version=header.version,
                    type=decoding.event_name(header),
                )
                for _, position, header in self._entries(record)
            ],
            faults=record.faults,
            replayed=self._is_replayed(record),
            request_bytes=record.request_bytes,
            reply_bytes=record.reply_bytes,
        )
        if record.method.signed_fields and record.requests is not None:
            raw = all_of(record.requests)[0]
            verdicts = await decoding.signature_verdicts(self._control.store, record.method.request, raw)
            exchange.signatures.extend(verdicts)
        return exchange

    def request_id(self, record: Record) -> str:
        """The request id, read once."""
        if record.request_id is None:
            request = _first(record.method.request, record.requests)
            if request is None:
                return ""
            record.request_id = facts.request_id_of(request)
        return record.request_id

    def rx_no(self, record: Record) -> str:
        """The prescription that the exchange is about, also where only a number that leads there was sent."""
        request = _first(record.method.request, record.requests)
        if request is None:
            return ""
        found = facts.rx_no_of(request)
        if not found:
            reply = _first(record.method.response, record.replies)
            found = facts.rx_no_of(reply) if reply is not None else ""
        return found or self.rx_no_behind(request)

    def rx_no_behind(self, request: object) -> str:
        """The prescription behind an authorisation number, token or QR value, from the reply that gave it out."""
        for name in ("authorization_no", "rx_token", "rx_qr"):
            number = getattr(request, name, "")
            if number:
                return self._given_out_for(number)
        return ""

    def _given_out_for(self, number: str) -> str:
        needle = number.encode()
        for record in reversed(self._records):
            for raw in all_of(record.replies):
                if needle in raw:
                    found = decoding.rx_no_beside(record.method.response, raw, number)
                    if not found:
                        request = _first(record.method.request, record.requests)
                        found = facts.rx_no_of(request) if request is not None else ""
                    if found:
                        return found
        return ""

    def _is_wanted(self, record: Record, wanted: Filter) -> bool:
        if record.number <= wanted.after_number:
            return False
        if wanted.actor and record.actor != wanted.actor:
            return False
        if wanted.method and wanted.method not in (facts.short_name(record.method), record.method.name):
            return False
        if not wanted.rx_no:
            return True
        needle = wanted.rx_no.encode()
        named = any(needle in raw for messages in (record.requests, record.replies) for raw in all_of(messages))
        return named or self.rx_no(record) == wanted.rx_no

    def _entries(self, record: Record) -> Iterator[tuple[int, int, Header]]:
        """What was committed under the caller and the request id while the call was open: which of all entries that
        were ever seen (a ledger that was set back uses positions again), position, header.
        """
        until = record.entries_until if record.entries_until >= 0 else self._left_dropped + len(self._left)
        begin = max(record.entries_from - self._left_dropped, 0)
        request_id = self.request_id(record)
        left = self._left[begin : max(until - self._left_dropped, 0)]
        for place, (position, raw) in enumerate(left, start=self._left_dropped + begin):
            header = Header.decode(raw)
            if header.actor == record.actor and header.request_id == request_id:
                yield place, position, header

    def _is_replayed(self, record: Record) -> bool:
        """Whether the answer was given before: an accepted command always leaves events of its own."""
        if record.status != OK or record.method.effect != COMMAND:
            return False
        mine = {place for place, _, header in self._entries(record) if header.stream_kind != "access"}
        if not mine:
            return True
        # Two attempts that were open at once both saw the commit; it belongs to the one that came first.
        earlier = 0
        for other in reversed(self._records):
            if other.number >= record.number or other.actor != record.actor:
                continue
            earlier += 1
            if earlier > _EARLIER_MAX:
                return False
            if other.status == OK and self.request_id(other) == self.request_id(record):
                return bool(mine.intersection(place for place, _, _ in self._entries(other)))
        return False


def _first(kind: type[Any], messages: Messages) -> Any | None:
    """The first message, read; None where there is none or it cannot be read."""
    kept = all_of(messages)
    return facts.parsed(kind, kept[0]) if kept else None
