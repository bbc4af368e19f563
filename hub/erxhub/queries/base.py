"""What every read stands on: its context, a view of the ledger as it is now, page tokens and watch cursors.

Owns how a read looks things up. It never writes: a deadline that is over and not written yet is fired on the view's own
copy, so that a reader sees what the next command would see. Recording the access is for whoever calls the query.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from google.protobuf.message import Message

from erxhub.config import Config
from erxhub.core import timers
from erxhub.core.draft import Lookups, MacKeys, Working, WorkingDraft, Workspace
from erxhub.core.fold import STATE_TYPES
from erxhub.core.model import Accepted, Caller, Command, Draft, Evidence, MessageT, Missing, Refused, Target
from erxhub.crypto.suites import Verifier
from erxhub.high_water import KeptEvidence
from erxhub.ledger.log import Checkpoint
from erxhub.ledger.store import Store, Wanted
from erxhub.policy.pack import PackLibrary
from erxhub.policy.rules import Rules, rules_at
from erxhub.ports import Clock, Draw
from erxhub.v1 import common_pb2

T = TypeVar("T")

_ROUNDS_MAX: Final = 12
_MAC_BYTES: Final = 16
_POSITION_BYTES: Final = 8


Covering = Callable[[int], Awaitable[Checkpoint]]
Cosigned = Callable[[Checkpoint], Awaitable[Checkpoint | None]]


@dataclass(frozen=True, slots=True)
class ReadContext:
    """What the reads of one hub share.

    `subscribe(institution code)` gives an event that is set after each commit that concerns the institution and when
    watches have to end, which is when `running` becomes False; `unsubscribe` ends that. `page_key` is 32 bytes, the
    same in all hubs of a ledger, so that a token of one is good at another. `verification` is held by the one read that
    verifies the whole ledger. `covering(position)` gives a signed checkpoint that covers a log position, made now if
    there is none yet; None where this hub publishes no log. `evidence()` tells of the files that refused starts left.
    `cosigned` is `Witnessing.cosigned`, None without witnesses.
    """

    store: Store
    mac_keys: MacKeys
    ledger_key: bytes
    config: Config
    clock: Clock
    packs: PackLibrary
    verifier: Verifier
    subscribe: Callable[[str], asyncio.Event]
    unsubscribe: Callable[[str, asyncio.Event], None]
    running: Callable[[], bool]
    page_key: bytes
    verification: asyncio.Lock = field(default_factory=asyncio.Lock)
    covering: Covering | None = None
    cosigned: Cosigned | None = None
    evidence: Callable[[], Sequence[KeptEvidence]] = tuple


Query = Callable[[ReadContext, Caller, Any], Awaitable[Accepted | Refused]]
"""A read with one reply. The access to `Accepted.targets` is recorded before the reply leaves."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What the next messages of a stream show of persons: record the access to `targets` before they leave."""

    targets: tuple[Target, ...]


Messages = AsyncGenerator[Message | Shown | Refused, None]
"""The replies of a stream; a `Refused` is the last of them. Whoever stops earlier closes it with `aclose()`."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A stream that may begin: record the access to `opening_targets`, tell the caller, then take the messages.

    Where a watch begins is fixed by now, so nothing is missed that is committed after the caller was told.
    """

    messages: Messages
    opening_targets: tuple[Target, ...] = ()


Stream = Callable[[ReadContext, Caller, Any], Awaitable[Opened | Refused]]
"""A read with many replies."""


# ---- looking things up ----


class View:
    """One read's view of the ledger: what it loaded, with every deadline that is over by now fired on a copy."""

    def __init__(self, ctx: ReadContext, caller: Caller) -> None:
        self.now_ms = ctx.clock.now_ms()
        self._ctx = ctx
        self._caller = caller
        self._workspace = Workspace()

    async def ask(self, question: Callable[[Draft], T]) -> T:
        """The answer of a function of core to this read; what it looks up is loaded and it is asked again."""
        for _ in range(_ROUNDS_MAX):
            wanted = Lookups()
            try:
                return question(self._draft(wanted))
            except Missing:
                await self._load(wanted)
        raise RuntimeError("a read never stops asking for look-ups")

    def command(self, method: str, request: Any) -> Command:
        """The read in the shape that the guards of core take."""
        return Command(method, request, self._caller, "", self.now_ms, Evidence())

    async def streams(self, keys: Iterable[bytes]) -> dict[bytes, Working]:
        """The streams that exist and keep a state, in the order of `keys`."""
        wanted = list(dict.fromkeys(keys))
        await self.ask(lambda tx: tx.want(streams=wanted))
        found = ((key, self._workspace.streams[key]) for key in wanted)
        return {key: working for key, working in found if working is not None}

    async def states(self, keys: Iterable[bytes], kind: type[MessageT]) -> dict[bytes, MessageT]:
        """The states of the streams that are of this kind, in the order of `keys`."""
        found = await self.streams(keys)
        return {key: working.state for key, working in found.items() if isinstance(working.state, kind)}

    async def state(self, key: bytes, kind: type[MessageT]) -> MessageT | None:
        """The state of one stream, or None when no such stream of this kind exists."""
        return (await self.states([key], kind)).get(key)

    async def names(self, space: str, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """The streams under unique names of one space; a name that does not exist is absent."""
        wanted = [(space, key) for key in dict.fromkeys(keys)]
        await self.ask(lambda tx: tx.want(names=wanted))
        found = ((key, self._workspace.names[space, key]) for _, key in wanted)
        return {key: stream for key, stream in found if stream is not None}

    def etag(self, key: bytes) -> str:
        """The etag of a loaded stream: it changes with every event."""
        working = self._workspace.streams[key]
        return str(working.version) if working is not None else ""

    def _draft(self, wanted: Lookups) -> WorkingDraft:
        return WorkingDraft(
            self._workspace,
            wanted,
            now_ms=self.now_ms,
            # A read draws nothing; whatever needs a random value is a command.
            draw=Draw(bytes(32)),
            caller_actor=self._caller.actor,
            area_code=self._caller.area_code,
            request_id="",
            ledger_key=self._ctx.ledger_key,
            mac_keys=self._ctx.mac_keys,
            rules_for=self._rules_for,
        )

    def _rules_for(self, area_code: str) -> Rules:
        return rules_at(self._ctx.packs, area_code, self.now_ms)

    async def _load(self, wanted: Lookups) -> None:
        loaded = await self._ctx.store.read(
            Wanted(names=frozenset(wanted.names), streams=frozenset(wanted.streams), catalog=frozenset(wanted.catalog))
        )
        space = self._workspace
        for name in wanted.names:
            space.names.setdefault(name, loaded.names.get(name))
        for row in wanted.catalog:
            space.catalog.setdefault(row, loaded.catalog.get(row))
        for key, head in loaded.heads.items():
            kind = STATE_TYPES.get(head.stream_kind)
            if kind is None or key in space.streams:
                continue
            state = kind()
            state.ParseFromString(head.body)
            space.streams[key] = Working(head.stream_kind, head.version, head.leaf_hash, state)
            if head.due_at_ms is not None and head.due_at_ms <= self.now_ms:
                tx = self._draft(Lookups())
                timers.fire_due(tx, head.stream_kind, key)
                tx.apply()
        for key in wanted.streams:
            space.streams.setdefault(key, None)


# ---- page tokens and cursors ----


class TokenInvalid(Exception):
    """A token that this hub did not give for this caller, method and filter."""


def make_token(ctx: ReadContext, caller: Caller, method: str, filters: Sequence[str], place: bytes) -> str:
    """An opaque token for `place`, good for this caller, method and filter only."""
    sealed = place + _token_mac(ctx, caller, method, filters, place)
    return base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()


def open_token(ctx: ReadContext, caller: Caller, method: str, filters: Sequence[str], token: str) -> bytes:
    """The place in a token. Raises TokenInvalid."""
    try:
        sealed = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise TokenInvalid from None
    place, mac = sealed[:-_MAC_BYTES], sealed[-_MAC_BYTES:]
    if not hmac.compare_digest(mac, _token_mac(ctx, caller, method, filters, place)):
        raise TokenInvalid
    return place


def _token_mac(ctx: ReadContext, caller: Caller, method: str, filters: Sequence[str], place: bytes) -> bytes:
    parts = [caller.actor.encode(), method.encode(), *(text.encode() for text in filters), place]
    # Lengths first, so that no two lists of parts give the same bytes.
    message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hmac.digest(ctx.page_key, message, "sha256")[:_MAC_BYTES]


def place_of(position: int) -> bytes:
    """A log position as the place of a token."""
    return position.to_bytes(_POSITION_BYTES, "big")


@dataclass(frozen=True, slots=True)
class Paging:
    """Where a page of a list begins and how long it is. `place` is b"" for the first page."""

    ctx: ReadContext
    caller: Caller
    method: str
    filters: tuple[str, ...]
    place: bytes
    size: int

    @property
    def position(self) -> int:
        """The log position in `place`; 0 for the first page."""
        return int.from_bytes(self.place, "big")

    def token(self, place: bytes) -> str:
        """The token of the page that begins at `place`."""
        return make_token(self.ctx, self.caller, self.method, self.filters, place)


def paging(
    ctx: ReadContext, caller: Caller, method: str, page: common_pb2.Page, filters: Sequence[str] = ()
) -> Paging | Refused:
    """The page that a request asks for. Refusals: PAGE_TOKEN_INVALID."""
    place = b""
    if page.page_token:
        try:
            place = open_token(ctx, caller, method, filters, page.page_token)
        except TokenInvalid:
            return Refused("PAGE_TOKEN_INVALID", field="page.page_token")
    size = min(page.page_size or ctx.config.page_size_default, ctx.config.page_size_max)
    return Paging(ctx, caller, method, tuple(filters), place, size)


async def listed(paging: Paging, space: str, key: bytes, *, newest_first: bool = False) -> tuple[list[bytes], str]:
    """The stream keys of one page of a listing, and the token of the next page or ""."""
    rows = await paging.ctx.store.listing(space, key, paging.position, paging.size + 1, newest_first)
    shown = rows[: paging.size]
    next_token = paging.token(place_of(shown[-1].position)) if len(rows) > paging.size else ""
    return [row.stream_key for row in shown], next_token
