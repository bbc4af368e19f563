"""What every honest product does, whatever its business: keep requests, repeat them, follow the news.

Owns: that a request lies on the disk before it is sent and is repeated with its own bytes until its outcome is known;
how long it waits between; that a reply which proves nothing is asked for again; that news are taken in once.
Must never: know a business act, or tell a harness anything but what the hub said.
"""

from __future__ import annotations

import asyncio
import base64
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message

from erxhub.client import (
    CallFailed,
    ClientFailure,
    ClientIdentity,
    Connection,
    ReceiptInvalid,
    Refusal,
    RetryPolicy,
)
from erxhub.client.base import UNARY_PATHS, Client
from erxhub.client.environment import SystemEnvironment
from erxhub.client.request_ids import BEIJING
from erxhub.conform.drivers.journal import Journal

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)

DOUBTED_MAX: Final = 3
"""So often is a reply asked for that proves nothing: the repeat of an accepted request changes nothing."""
PATIENCE: Final[Mapping[str, int]] = {"busy": 10, "lost": 6, "slow": 2, "doubted": DOUBTED_MAX}
"""So many failures of a kind end the attempts: a hub that answers at all is waited for longest. What is open then is
finished later."""
BACKOFF_MS: Final = 40
BACKOFF_MAX_MS: Final = 640
FIRST_NEWS_MS: Final = 600
NEXT_NEWS_MS: Final = 250
"""The watch is taken to have caught up when nothing came for so long."""
WATCHES_MAX: Final = 12

_BUSY: Final = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
_REQUESTS: Final = {kind.DESCRIPTOR.full_name: kind for kind in UNARY_PATHS}


@dataclass(frozen=True)
class Configuration:
    """Where the hub is and who speaks to it. Times in milliseconds; `wait_scale` is real time per asked time."""

    target: str
    identity: ClientIdentity
    institution_code: str
    state_dir: Path
    server_name: str | None = None
    receipt_keys: Mapping[str, bytes] | None = None
    timeout_ms: int = 5_000
    wait_scale: float = 1.0


class Rejected(Exception):
    """The act is refused for good: by the hub, or by the product itself (`by_product`), with a stable code."""

    def __init__(self, code: str, *, field: str = "", by_product: bool = False, reason: str = "") -> None:
        super().__init__(f"{code} {field} {reason}".strip())
        self.code = code
        self.field = field
        self.by_product = by_product
        self.reason = reason
        self.step = ""
        """The step of the act that met it."""


class OutcomeUnknown(Exception):
    """Nobody here can tell whether the act was done; it stays in the outbox."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class ToldClock(SystemEnvironment):
    """The time that the product was told last, or the machine's; waiting is real, and shorter by the scale."""

    def __init__(self) -> None:
        self.told_ms: int | None = None
        self.wait_scale = 1.0

    def now_ms(self) -> int:
        return super().now_ms() if self.told_ms is None else self.told_ms

    async def sleep_ms(self, duration_ms: int) -> None:
        await super().sleep_ms(max(1, round(duration_ms * self.wait_scale)))

    async def back_off(self, failed: int, asked_ms: int) -> None:
        """Waits before attempt `failed` + 1: as long as the hub asked for at least, and never in step with others."""
        own_ms = min(BACKOFF_MAX_MS, BACKOFF_MS << (failed - 1))
        wait_ms = max(own_ms, asked_ms * self.wait_scale)
        await super().sleep_ms(round(wait_ms * (1 + self.below(250) / 1000)) + 1)


def enum_name(enum: EnumDescriptor, value: int) -> str:
    """The value's name without its type's, "UNKNOWN_<number>" for one that this product was not built with."""
    found = enum.values_by_number.get(value)
    if found is None:
        return f"UNKNOWN_{value}"
    common = enum.values[0].name.removesuffix("UNSPECIFIED")
    return str(found.name.removeprefix(common))


def has_unknown_enum(message: Message) -> bool:
    """Whether an enumeration anywhere in the message has a value that this product was not built with."""
    for field, value in message.ListFields():
        values = value if field.is_repeated else (value,)
        if field.enum_type is not None:
            found = any(one not in field.enum_type.values_by_number for one in values)
        else:
            found = field.message_type is not None and any(has_unknown_enum(one) for one in values)
        if found:
            return True
    return False


def classified(failure: ClientFailure) -> Rejected | OutcomeUnknown:
    """What a failed call means for the act behind it."""
    if isinstance(failure, Refusal):
        if failure.grpc_status in _BUSY:
            return OutcomeUnknown(failure.code)
        return Rejected(failure.code, field=failure.field, reason=failure.text_en)
    if isinstance(failure, ReceiptInvalid):
        # The hub says that it was done, and gives nothing that proves it.
        return OutcomeUnknown(f"RECEIPT_{failure.reason}")
    if isinstance(failure, CallFailed) and (failure.code.startswith("TLS_") or failure.code == "UNIMPLEMENTED"):
        return Rejected(failure.code, by_product=True, reason=failure.text_en)
    return OutcomeUnknown(getattr(failure, "code", type(failure).__name__))


class ProductConnection(Connection):
    """A connection that keeps each command before it leaves, and repeats it as it was."""

    def __init__(self, configuration: Configuration, clock: ToldClock, before: Callable[[Message], None]) -> None:
        super().__init__(
            configuration.target,
            configuration.identity,
            server_name=configuration.server_name,
            receipt_keys=configuration.receipt_keys,
            timeout_s=configuration.timeout_ms / 1000,
            # gRPC knows nothing of the wait that the hub asks for, so it must not repeat a call.
            retry=RetryPolicy(attempts=1, backoff_ms=20, backoff_max_ms=200, stream_resumes=0),
            environment=clock,
        )
        self._clock = clock
        self._before = before

    async def unary(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Reply],
        request: Request,
        timeout_s: float | None = None,
    ) -> Reply:
        """One call with its repeats. Raises what the last attempt ended with."""
        self._before(request)
        failed: Counter[str] = Counter()
        while True:
            asked_ms = 0
            try:
                reply = await super().unary(method, request, timeout_s)
            except Refusal as refusal:
                if refusal.grpc_status not in _BUSY or _is_over(failed, "busy"):
                    raise
                asked_ms = refusal.retry_after_ms
            except ReceiptInvalid:
                if _is_over(failed, "doubted"):
                    raise
            except CallFailed as failure:
                kind = "slow" if failure.code == "DEADLINE_EXCEEDED" else "lost"
                if isinstance(classified(failure), Rejected) or _is_over(failed, kind):
                    raise
            else:
                if not has_unknown_enum(reply) or _is_over(failed, "doubted"):
                    return reply
            await self._clock.back_off(failed.total(), asked_ms)


def _is_over(failed: Counter[str], kind: str) -> bool:
    """Counts one more failure; whether there were as many of its kind as this product bears."""
    failed[kind] += 1
    return failed[kind] >= PATIENCE[kind]


def _request(kept: list[str]) -> Message:
    return _REQUESTS[kept[0]].FromString(base64.b64decode(kept[1]))


class Act:
    """One act of the business, made of requests: what was sent is kept, and played again from there after a crash."""

    def __init__(self, product: Product, number: int) -> None:
        self._product = product
        self.name = f"act/{number:06d}"

    @property
    def record(self) -> dict[str, Any]:
        """The act's verb, arguments and the prescription it is about (empty while it has none)."""
        kept: dict[str, Any] = self._product.journal.get(self.name)
        return kept

    def about(self, rx_no: str) -> None:
        """Says which prescription the act turned out to be about."""
        self._product.journal.put(self.name, self.record | {"rx_no": rx_no})

    async def step(self, name: str, kind: type[Reply], call: Callable[[str], Awaitable[Reply]]) -> Reply:
        """The reply to one request of the act.

        `call` gets a new request id and makes the request; it is used once: after a crash, or when the outcome stayed
        open, the kept bytes are sent. Raises Rejected, OutcomeUnknown.
        """
        product, place = self._product, f"{self.name}/{name}"
        answered = product.journal.get(f"{place}/reply")
        if answered is not None:
            return kind.FromString(base64.b64decode(answered))
        kept = product.journal.get(f"{place}/request")
        try:
            if kept is None:
                with product.keeping(f"{place}/request"):
                    reply = await call(product.new_request_id())
            else:
                repeated = await product.client.send(_request(kept))
                assert isinstance(repeated, kind)
                reply = repeated
        except ClientFailure as failure:
            meant = classified(failure)
            if isinstance(meant, Rejected):
                meant.step = name
            raise meant from failure
        product.journal.put(f"{place}/reply", base64.b64encode(reply.SerializeToString()).decode())
        return reply

    async def repeat(self, name: str, kind: type[Reply]) -> Reply:
        """The reply to a step once more, for a first one that proves nothing. Raises as `step`."""
        self._product.journal.put(f"{self.name}/{name}/reply", None)

        def never(_: str) -> Awaitable[Reply]:
            raise AssertionError("a step that was answered has its request")

        return await self.step(name, kind, never)

    def request_id(self, name: str) -> str:
        """The id under which a step was sent; empty when it was not."""
        kept = self._product.journal.get(f"{self.name}/{name}/request")
        return "" if kept is None else str(getattr(_request(kept), "request_id"))  # noqa: B009

    def close(self, outcome: str) -> None:
        """Takes the act out of the outbox."""
        self._product.journal.put(self.name, self.record | {"done": outcome})


class _Keeping:
    """While it is entered, the next command is kept under a name before it leaves."""

    def __init__(self, product: Product, name: str) -> None:
        self._product = product
        self._name = name

    def __enter__(self) -> None:
        self._product.keep_as = self._name

    def __exit__(self, *_: object) -> None:
        self._product.keep_as = ""


Performer = Callable[[Act, dict[str, Any]], Awaitable[dict[str, Any]]]


class Product(ABC):
    """Outbox, connection and news of one institution.

    `performers` are its acts by verb; those of `repairs` do not wait for what is open about their prescription.
    """

    repairs: frozenset[str] = frozenset()

    def __init__(self, configuration: Configuration, clock: ToldClock) -> None:
        clock.wait_scale = configuration.wait_scale
        self.configuration = configuration
        self.clock = clock
        self.keep_as = ""
        self.journal = Journal(configuration.state_dir / "journal.jsonl")
        self.connection = ProductConnection(configuration, clock, self._keep)
        self.client: Client = self._make_client()
        self.performers: dict[str, Performer] = {}

    @abstractmethod
    def _make_client(self) -> Client:
        """A client of the product's role over its connection."""

    @abstractmethod
    def _watch(self, cursor: str) -> AsyncIterator[Any]:
        """The institution's watch, after a cursor."""

    @abstractmethod
    def _take_in(self, message: Any, known: dict[str, Any], *, newest: bool) -> None:
        """Writes what a message tells into what is known of its prescription; an older one tells only its events."""

    async def close(self) -> None:
        """Ends the connection and closes the file."""
        await self.connection.close()
        self.journal.close()

    def forget(self) -> None:
        """Forgets everything but what was given away once: request ids, packs."""
        self.journal.forget(lambda name: name.startswith("given"))

    # ---- outbox ----

    def new_request_id(self) -> str:
        """Institution, Beijing time and a number of four digits that the journal counts, so that no id comes twice."""
        given = int(self.journal.get("given") or 0)
        self.journal.put("given", given + 1)
        written = datetime.fromtimestamp(self.clock.now_ms() // 1000, UTC).astimezone(BEIJING).strftime("%Y%m%d%H%M%S")
        return f"{self.configuration.institution_code}{written}{given % 10_000:04d}"

    def keeping(self, name: str) -> _Keeping:
        """Has the next command kept under `name` before it leaves."""
        return _Keeping(self, name)

    def _keep(self, request: Message) -> None:
        if self.keep_as:
            content = base64.b64encode(request.SerializeToString()).decode()
            self.journal.put(self.keep_as, [request.DESCRIPTOR.full_name, content], durable=True)
            self.keep_as = ""

    def open_acts(self) -> list[Act]:
        """Acts whose outcome is not known, oldest first."""
        return [
            Act(self, int(name.split("/")[1]))
            for name, record in sorted(self.journal.items("act/"))
            if name.count("/") == 1 and not record.get("done")
        ]

    def acts_about(self, rx_no: str, verb: str) -> list[Act]:
        """Acts of a verb about a prescription, newest first, whether their outcome is known or not."""
        return [
            Act(self, int(name.split("/")[1]))
            for name, record in sorted(self.journal.items("act/"), reverse=True)
            if name.count("/") == 1 and record["verb"] == verb and record["rx_no"] == rx_no
        ]

    async def perform(self, verb: str, rx_no: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Does an act, or goes on with the same one whose outcome is open. Returns the result with its `outcome`.

        What is open about the same prescription comes first; while that stays open, the new act waits in the outbox.
        """
        same = None
        for act in self.open_acts():
            record = act.record
            if record["verb"] == verb and record["rx_no"] == rx_no and record["arguments"] == arguments:
                same = act
                break
            waits = rx_no and record["rx_no"] == rx_no and verb not in self.repairs
            if waits and (await self._attempt(act))["outcome"] == "unknown":
                self._begin(verb, rx_no, arguments)
                return {"outcome": "unknown", "code": "QUEUED", "rx_no": rx_no}
        return await self._attempt(same or self._begin(verb, rx_no, arguments))

    def _begin(self, verb: str, rx_no: str, arguments: dict[str, Any]) -> Act:
        number = int(self.journal.get("acts") or 0) + 1
        self.journal.put("acts", number)
        act = Act(self, number)
        self.journal.put(act.name, {"verb": verb, "rx_no": rx_no, "arguments": arguments})
        return act

    async def _attempt(self, act: Act) -> dict[str, Any]:
        record = act.record
        try:
            result = {"outcome": "ok"} | await self.performers[record["verb"]](act, record["arguments"])
        except OutcomeUnknown as unknown:
            return {"outcome": "unknown", "code": unknown.code, "rx_no": act.record["rx_no"]}
        except Rejected as rejected:
            result = {"outcome": "rejected", "code": rejected.code, "reason": rejected.reason}
            result |= {"field": rejected.field} if rejected.field else {}
            result |= {"step": rejected.step} if rejected.step else {}
            result["by"] = "product" if rejected.by_product else "hub"
        rx_no = act.record["rx_no"]
        act.close(result["outcome"])
        return ({"rx_no": rx_no} if rx_no else {}) | result

    async def resume(self) -> list[dict[str, Any]]:
        """Finishes what is open, oldest first. Stops when the hub still cannot be reached, and leaves the rest."""
        resolved = []
        for act in self.open_acts():
            result = await self._attempt(act)
            shown = {name: result[name] for name in ("outcome", "code", "settlement_id") if name in result}
            resolved.append({"op": act.record["verb"], "rx_no": act.record["rx_no"]} | shown)
            if result["outcome"] == "unknown":
                break
        return resolved

    # ---- news ----

    async def pull(self) -> list[dict[str, Any]]:
        """Takes in what happened since the last time, and returns the events that are new: {rx_no, event, version}.

        A message may come twice and out of order. The kept cursor moves only over what came in order.
        """
        fresh: list[dict[str, Any]] = []
        begun = cursor = str(self.journal.get("cursor") or "")
        in_order, reached, doubted = True, 0, 0
        for watch in range(1, WATCHES_MAX + 1):
            asked_ms = 0
            messages = self._watch(cursor)
            try:
                wait_ms = FIRST_NEWS_MS
                while True:
                    message = await asyncio.wait_for(anext(messages), wait_ms / 1000)
                    wait_ms = NEXT_NEWS_MS
                    if has_unknown_enum(message) and doubted < DOUBTED_MAX:
                        # Perhaps its way has spoilt it: the same message once more.
                        doubted += 1
                        break
                    in_order = in_order and message.recorded_at_ms >= reached and not self._is_late(message)
                    reached = max(reached, message.recorded_at_ms)
                    cursor = message.cursor
                    self._take_once(message, fresh)
            except (TimeoutError, StopAsyncIteration):
                break  # nothing more came
            except ClientFailure as failure:
                if isinstance(failure, Refusal) and failure.code == "PAGE_TOKEN_INVALID":
                    begun = cursor = ""
                elif watch == WATCHES_MAX or isinstance(classified(failure), Rejected):
                    raise classified(failure) from failure
                else:
                    # Behind a message that came too early others may be missing.
                    cursor = cursor if in_order else begun
                    asked_ms = failure.retry_after_ms if isinstance(failure, Refusal) else 0
            finally:
                await messages.aclose()  # type: ignore[attr-defined]
            await self.clock.back_off(min(watch, 3), asked_ms)
        self.journal.put("cursor", cursor if in_order else begun)
        return fresh

    def known(self) -> dict[str, dict[str, Any]]:
        """The newest state that was heard of each prescription."""
        return {name.removeprefix("news/"): value["state"] for name, value in self.journal.items("news/")}

    def _is_late(self, message: Any) -> bool:
        heard = self.journal.get(f"news/{message.rx_no}")
        return heard is not None and message.version < heard["version"] and message.version not in heard["seen"]

    def _take_once(self, message: Any, fresh: list[dict[str, Any]]) -> None:
        name = f"news/{message.rx_no}"
        heard = self.journal.get(name) or {"version": 0, "seen": [], "state": {}}
        if message.version in heard["seen"]:
            return
        known = dict(heard["state"])
        self._take_in(message, known, newest=message.version > heard["version"])
        newest = max(heard["version"], message.version)
        self.journal.put(name, {"version": newest, "seen": [*heard["seen"], message.version], "state": known})
        fresh.extend({"rx_no": message.rx_no, "event": event, "version": message.version} for event in message.events)
