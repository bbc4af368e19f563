"""A large ledger, written by a seeded generator through `Store.append`.

A hub of this process lives through one full chain and one visit with ten prescriptions, and every Write that it gives
its store is kept. The generator repeats them: what was drawn (numbers, codes, salts), what names one person, request or
pack, and what follows from those (stream keys, leaf hashes, names) is new each time and is the same wherever it stands.
Entries are sealed anew, at the times of the first ones. Sealed replies and signatures keep the first one's bytes:
nobody opens a reply again here, and a trace without verification does not look at signatures.

Owns no rule about what a command leaves. It must never write past `Store.append`.
"""

from __future__ import annotations

import asyncio
import re
import string
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from erxhub.app import start_hub
from erxhub.core.keys import stream_key
from erxhub.keys import HubKeys
from erxhub.ledger.entry import FIRST_PREV_LEAF_HASH, Header, seal
from erxhub.ledger.sqlite import SqliteStore, open_sqlite
from erxhub.ledger.store import AppendResult, Listing, NewName, NewState, Reply, Write
from erxhub.ports import Drawing, SystemClock, SystemIds, system_pause
from erxhub.publishing import Publisher
from erxhub.rpc.server import FixedIdentity, ServerIdentity
from tests.bench.answers import AnswerWrong
from tests.bench.chains import ChainWorld
from tests.bench.hub_server import config_of_plain, pragma
from tests.bench.world import World
from tests.simulation import cast, hospital
from tests.simulation.wire import Answer

VISIT_PRESCRIPTIONS = 10
"""Prescriptions of one visit of one person, where they are not full chains."""

_BATCH_WRITES = 512
_BULK_SETTINGS = ("synchronous = OFF", "cache_size = -1048576", "wal_autocheckpoint = 50000")
"""Of the generator's own connection, which nobody waits for a commit of. The hub that is measured has its own."""

_DRAWN_BYTES_MIN = 12
_LETTERS_AND_DIGITS = bytes((string.ascii_letters + string.digits).encode()[byte % 62] for byte in range(256))
_COMPUTED = ("prescription", "trace_code")  # streams whose keys anybody can compute from a number


# ---- recording ----


class _RecordingDraw:
    """A draw that tells what it gave."""

    def __init__(self, draw: Drawing, told: set[bytes]) -> None:
        self._draw = draw
        self._told = told

    def restart(self) -> None:
        self._draw.restart()

    def bytes(self, count: int) -> bytes:
        drawn = self._draw.bytes(count)
        if count >= _DRAWN_BYTES_MIN:
            self._told.update((drawn, drawn.hex().encode()))
        return drawn

    def digits(self, count: int) -> str:
        drawn = self._draw.digits(count)
        self._told.add(drawn.encode())
        return drawn

    def token(self, count: int) -> str:
        drawn = self._draw.token(count)
        self._told.add(drawn.encode())
        return drawn


class _RecordingIds:
    def __init__(self) -> None:
        self.told: set[bytes] = set()
        self._ids = SystemIds()

    def draw(self) -> Drawing:
        return _RecordingDraw(self._ids.draw(), self.told)


class _RecordingStore:
    """A store that keeps every Write it was given."""

    def __init__(self, inner: SqliteStore) -> None:
        self._inner = inner
        self.writes: list[Write] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def append(self, batch: Sequence[Write]) -> AppendResult:
        self.writes += batch
        return await self._inner.append(batch)


class Recorded(NamedTuple):
    """What one story left: its Writes, and the texts in it that are nobody else's."""

    writes: tuple[Write, ...]
    texts: frozenset[bytes]
    prescriptions: tuple[str, ...]
    trace_codes: tuple[str, ...]


# ---- templates ----


class _Head(NamedTuple):
    """Where a stream stands while the generator writes."""

    version: int
    leaf_hash: bytes
    recorded_at_ms: int


_NO_HEAD = _Head(0, FIRST_PREV_LEAF_HASH, 0)


class _Pieces(NamedTuple):
    """Bytes with places for what changes: constant parts, and between them numbers of tokens."""

    parts: tuple[bytes, ...]
    tokens: tuple[int, ...]

    def fill(self, values: Sequence[bytes]) -> bytes:
        if not self.tokens:
            return self.parts[0]
        filled: list[bytes] = [b""] * (2 * len(self.parts) - 1)
        filled[::2] = self.parts
        filled[1::2] = [values[token] for token in self.tokens]
        return b"".join(filled)


@dataclass(slots=True)
class _EntryTemplate:
    header: Header
    key: _Pieces
    private: bool
    request_id: _Pieces
    causes: tuple[_Pieces, ...]
    payload: _Pieces
    leaf: int
    """The token that is this entry's leaf hash, known once it is sealed."""


@dataclass(slots=True)
class _WriteTemplate:
    entries: list[_EntryTemplate]
    states: list[tuple[_Pieces, _Pieces, int | None, bool]]
    names: list[tuple[str, _Pieces, _Pieces]]
    listings: list[tuple[str, _Pieces, _Pieces, int, bool, bytes]]
    replies: list[tuple[str, _Pieces, str, bytes, bytes, _Pieces | None, int | None]]


class Template:
    """One recorded story, ready to be repeated."""

    def __init__(self, recorded: Recorded, drawn: Iterable[bytes], heads: dict[bytes, _Head]) -> None:
        self.recorded = recorded
        self._heads = heads
        first = {e.header.stream_key: e.header for w in recorded.writes for e in w.entries if e.header.version == 1}
        self._private = frozenset(first)
        known = {stream_key(kind, text): text for kind in _COMPUTED for text in self._numbers()}
        texts = set(recorded.texts)
        everything = b"\0".join(_all_bytes(recorded.writes))
        texts.update(text for text in drawn if len(text) >= 8 and text in everything)
        # A hashed name shows none of the texts; it is a text of its own.
        pattern = _pattern(texts)
        texts.update(n.key for w in recorded.writes for n in w.names if not pattern.search(n.key))
        salts = {e.salt for w in recorded.writes for e in w.entries}
        self._order = sorted(texts - salts - self._private, key=len, reverse=True)
        # A text inside another one (a number's digits) follows from it.
        self._inside = {
            place: next((big for big in self._order if text != big and text in big), None)
            for place, text in enumerate(self._order)
        }
        self._keys = [(key, first[key].stream_kind, known.get(key)) for key in sorted(self._private)]
        leaves = [e.leaf_hash for w in recorded.writes for e in w.entries]
        self._tokens = {text: no for no, text in enumerate([*self._order, *(k for k, _, _ in self._keys), *leaves])}
        self._cut = _pattern(self._tokens)
        self._writes = [self._of_write(write) for write in recorded.writes]
        self._told = {number: self._pieces(number) for number in self._numbers()}
        self.entries = sum(len(write.entries) for write in recorded.writes)

    def _numbers(self) -> list[bytes]:
        return [text.encode() for text in (*self.recorded.prescriptions, *self.recorded.trace_codes)]

    def _pieces(self, data: bytes) -> _Pieces:
        parts, tokens, end = [], [], 0
        for found in self._cut.finditer(data):
            parts.append(data[end : found.start()])
            tokens.append(self._tokens[found[0]])
            end = found.end()
        return _Pieces((*parts, data[end:]), tuple(tokens))

    def _of_write(self, write: Write) -> _WriteTemplate:
        return _WriteTemplate(
            [
                _EntryTemplate(
                    e.header,
                    self._pieces(e.header.stream_key),
                    e.header.stream_key in self._private,
                    self._pieces(e.header.request_id.encode()),
                    tuple(map(self._pieces, e.header.causes)),
                    self._pieces(e.payload),
                    self._tokens[e.leaf_hash],
                )
                for e in write.entries
            ],
            [
                (self._pieces(s.stream_key), self._pieces(s.body), s.due_at_ms, s.stream_key in self._private)
                for s in write.states
            ],
            [(n.space, self._pieces(n.key), self._pieces(n.stream_key)) for n in write.names],
            [
                (
                    r.space,
                    self._pieces(r.key),
                    self._pieces(r.stream_key),
                    r.version,
                    r.stream_key in self._private,
                    r.value,
                )
                for r in write.listings
            ],
            [
                (
                    r.caller,
                    self._pieces(r.request_id.encode()),
                    r.method,
                    r.content_mac,
                    r.body,
                    None if r.stream_key is None else self._pieces(r.stream_key),
                    r.version if r.stream_key in self._private else None,
                )
                for r in write.replies
            ],
        )

    def repeat(self, chance: Random) -> tuple[list[Write], dict[bytes, bytes]]:
        """The story once more; its Writes, and what became of the prescriptions' numbers and the trace codes."""
        new: dict[bytes, bytes] = {}
        for place, text in enumerate(self._order):
            big = self._inside[place]
            if big is not None:
                at = big.index(text)
                new[text] = new[big][at : at + len(text)]
            else:
                new[text] = _alike(text, chance)
        values = [new[text] for text in self._order]
        numbers = {number: pieces.fill(values) for number, pieces in self._told.items()}
        for _, kind, number in self._keys:
            values.append(stream_key(kind, numbers[number]) if number else chance.randbytes(32))
        values += [b""] * self.entries
        return [self._write(write, values, chance) for write in self._writes], numbers

    def _write(self, write: _WriteTemplate, values: list[bytes], chance: Random) -> Write:
        entries, own = [], {}
        for template in write.entries:
            header = template.header
            key = template.key.fill(values)
            version, prev, newest_ms = self._heads.get(key, _NO_HEAD)
            # A stream of all (a caller's accesses) does not go back in time.
            recorded_at_ms = max(header.recorded_at_ms, newest_ms)
            made = Header(
                header.stream_kind,
                key,
                version + 1,
                header.kind,
                header.type,
                recorded_at_ms,
                header.actor,
                template.request_id.fill(values).decode(),
                header.policy_digest,
                tuple(cause.fill(values) for cause in template.causes),
            )
            entry = seal(made, chance.randbytes(16), template.payload.fill(values), prev)
            values[template.leaf] = entry.leaf_hash
            self._heads[key] = own[key] = _Head(version + 1, entry.leaf_hash, recorded_at_ms)
            entries.append(entry)
        return Write(
            entries=tuple(entries),
            states=tuple(
                NewState(key, own[key].version, own[key].leaf_hash, body.fill(values), due)
                for key, body, due in ((state[0].fill(values), state[1], state[2]) for state in write.states)
            ),
            names=tuple(NewName(space, key.fill(values), of.fill(values)) for space, key, of in write.names),
            listings=tuple(
                Listing(space, key.fill(values), of, version if private else self._heads[of].version, value)
                for space, key, of, version, private, value in (
                    (row[0], row[1], row[2].fill(values), *row[3:]) for row in write.listings
                )
            ),
            replies=tuple(
                Reply(
                    caller,
                    request_id.fill(values).decode(),
                    method,
                    mac,
                    body,
                    None if of is None else of.fill(values),
                    None if of is None else version or self._heads[of.fill(values)].version,
                )
                for caller, request_id, method, mac, body, of, version in write.replies
            ),
        )

    def forget(self) -> None:
        """Drop what is known of streams that no later story extends."""
        shared = {e.header.stream_key for w in self.recorded.writes for e in w.entries} - self._private
        for key in [key for key in self._heads if key not in shared]:
            del self._heads[key]


def _pattern(texts: Iterable[bytes]) -> re.Pattern[bytes]:
    return re.compile(b"|".join(map(re.escape, sorted(texts, key=len, reverse=True))), re.DOTALL)


def _alike(text: bytes, chance: Random) -> bytes:
    """Another text of the same length and kind: digits, letters with digits, or bytes."""
    if text.isdigit():
        return b"%0*d" % (len(text), chance.randrange(10 ** len(text)))
    if text.isascii() and all(33 <= byte < 127 for byte in text):
        return chance.randbytes(len(text)).translate(_LETTERS_AND_DIGITS)
    return chance.randbytes(len(text))


def _all_bytes(writes: Iterable[Write]) -> Iterator[bytes]:
    for write in writes:
        for entry in write.entries:
            yield entry.header_bytes
            yield entry.payload
        for state in write.states:
            yield state.body
        for name in write.names:
            yield name.key
        for listing in write.listings:
            yield listing.key
            yield listing.value
        for reply in write.replies:
            yield reply.request_id.encode()


# ---- the whole ledger ----


@dataclass
class Grown:
    """A ledger in a folder with the benchmark's and the robots' worlds, ready to grow and to be served."""

    world: World
    chain: Template = field(init=False)
    visit: Template = field(init=False)
    rx_numbers: list[str] = field(default_factory=list)
    """Of full chains, as many as were kept to be asked for."""
    trace_codes: list[str] = field(default_factory=list)
    written: int = 0
    chains: int = 0

    async def begin(self) -> None:
        """Register everybody and record the two stories. The ledger is new."""
        folder = self.world.folder
        identity = ServerIdentity(*((folder / name).read_bytes() for name in ("cert.pem", "key.pem", "ca.pem")))
        store, ids = _RecordingStore(await open_sqlite(folder / "ledger.db")), _RecordingIds()
        hub = await start_hub(
            store,  # type: ignore[arg-type]
            FixedIdentity(identity),
            HubKeys.load(folder / "keys"),
            config=config_of_plain(),
            ids=ids,
        )
        try:
            await self.world.populate(hub.port)
            robots = ChainWorld(self.world, seed=99)
            await robots.populate(hub.port, beside=True)
            async with robots.connected(hub.port):
                chain = await self._chain_story(robots, store)
                visit = await self._visit_story(robots, store)
        finally:
            await hub.stop()
        heads: dict[bytes, _Head] = {}
        for write in store.writes:
            for entry in write.entries:
                header = entry.header
                heads[header.stream_key] = _Head(header.version, entry.leaf_hash, header.recorded_at_ms)
        self.chain = Template(chain, ids.told, heads)
        self.visit = Template(visit, ids.told, heads)

    async def _chain_story(self, robots: ChainWorld, store: _RecordingStore) -> Recorded:
        begun, packs = len(store.writes), robots.desk.board.packs
        who = robots.person()
        await robots.admit_one(who)
        number = await robots.chain(who)
        codes = tuple(f"8{pack:019d}" for pack in range(packs + 1, robots.desk.board.packs + 1))
        own = {who.number, who.id_number, *codes}
        return _recorded(store.writes[begun:], own, (number,), codes)

    async def _visit_story(self, robots: ChainWorld, store: _RecordingStore) -> Recorded:
        begun = len(store.writes)
        who = robots.person()
        await robots.admit_one(who)
        desk, ward, numbers = robots.desk, cast.WARDS[0], []

        def journey() -> Any:
            visit_id = yield from hospital._registered(desk, ward, who, False)
            yield from hospital._diagnosed(desk, ward, visit_id, ward.doctor, False)
            for _ in range(VISIT_PRESCRIPTIONS):
                rx = yield from hospital._prechecked(desk, ward, who, visit_id, ward.doctor)
                yield from hospital._uploaded(desk, rx)
                numbers.append(rx.rx_no)

        steps, answer = journey(), None
        while True:
            robots.tell_time()
            try:
                call = steps.send(answer)
            except StopIteration:
                break
            answer = await robots.send(call)
            assert isinstance(answer, Answer)
            assert answer.ok, answer.code
        return _recorded(store.writes[begun:], {who.number, who.id_number}, tuple(numbers), ())

    async def grow(self, prescriptions: int, chains: int, seed: int) -> float:
        """Write more, until the ledger has so many; returns the seconds that it took. The log is not made here."""
        begun, chance = time.perf_counter(), Random(seed)
        store = await _open_for_bulk(self.world.folder)
        try:
            pending: asyncio.Task[AppendResult] | None = None
            for batch in self._batches(prescriptions, chains, chance):
                if pending is not None:
                    _written(await pending)
                pending = asyncio.create_task(store.append(batch))
                await asyncio.sleep(0)  # the writer's thread begins; the next batch is made beside it
            if pending is not None:
                _written(await pending)
        finally:
            await store.close()
        return time.perf_counter() - begun

    def _batches(self, prescriptions: int, chains: int, chance: Random) -> Iterator[list[Write]]:
        batch: list[Write] = []
        while self.written < prescriptions:
            # Full chains lie among the others all over the ledger.
            full = self.chains < chains and self.chains * prescriptions <= self.written * chains
            template = self.chain if full else self.visit
            writes, numbers = template.repeat(chance)
            if full:
                self._keep(numbers)
            self.chains += full
            self.written += 1 if full else VISIT_PRESCRIPTIONS
            batch += writes
            if len(batch) >= _BATCH_WRITES:
                template.forget()
                yield batch
                batch = []
        if batch:
            yield batch

    def _keep(self, numbers: dict[bytes, bytes]) -> None:
        recorded = self.chain.recorded
        self.rx_numbers.append(numbers[recorded.prescriptions[0].encode()].decode())
        self.trace_codes.append(numbers[recorded.trace_codes[0].encode()].decode())

    async def publish(self, leaves_max: int = 16_384) -> float:
        """Bring every entry into the log and sign it; returns the seconds that it took."""
        begun = time.perf_counter()
        store = await _open_for_bulk(self.world.folder)
        try:
            publisher = Publisher(
                store,
                HubKeys.load(self.world.folder / "keys").log,
                clock=SystemClock(),
                config=replace(config_of_plain(), checkpoint_leaves_max=leaves_max),
                pause=system_pause,
            )
            await publisher.publish_all()
        finally:
            await store.close()
        return time.perf_counter() - begun


async def _open_for_bulk(folder: Path) -> SqliteStore:
    store = await open_sqlite(folder / "ledger.db")
    for setting in _BULK_SETTINGS:
        await pragma(store, setting)
    return store


def _written(result: AppendResult) -> None:
    if result.conflicts:
        raise AnswerWrong(f"{len(result.conflicts)} writes of the generator were not taken")


def _recorded(writes: Sequence[Write], own: set[str], numbers: tuple[str, ...], codes: tuple[str, ...]) -> Recorded:
    requests = {e.header.request_id for w in writes for e in w.entries}
    requests |= {reply.request_id for w in writes for reply in w.replies}
    hospital_numbers = {n.key.partition(b"\0")[2] for w in writes for n in w.names if n.space == "hospital_rx"}
    texts = {text.encode() for text in own | requests if text} | hospital_numbers
    bare = tuple(write._replace(blobs=()) for write in writes)
    return Recorded(bare, frozenset(texts), numbers, codes)
