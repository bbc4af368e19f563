"""A mirror of a real hub: it agrees with an honest one, and stops at every kind of lie with evidence."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import pytest
import pytest_asyncio

from erxhub.core import events
from erxhub.ledger.entry import Entry as Sealed
from erxhub.ledger.entry import EntryKind, Header, commitment, leaf_bytes, leaf_hash
from erxhub.ledger.log import Checkpoint
from erxhub.ledger.memory import MemoryStore
from erxhub.ledger.sqlite import open_sqlite
from erxhub.ledger.store import Store, Write
from erxhub.ledger.verify import verify_ledger
from erxhub.mirror.faults import MirrorFault, Reason
from erxhub.mirror.replay import Judged, Mirror, Progress
from erxhub.proof.checkpoints import write_checkpoint
from erxhub.proof.notes import LogSigner
from erxhub.v1 import audit_pb2, events_pb2
from tests.chain import Chain
from tests.live import PERSON, Live, live_hub
from tests.postgres import PostgresServer
from tests.several.ground import new_ledger, several_hubs

pytestmark = pytest.mark.asyncio(loop_scope="module")

Entry = audit_pb2.StreamEntriesResponse
Told = audit_pb2.GetCheckpointResponse


@dataclass
class Hub:
    """What a hub streams and shows; a test changes it."""

    signer: LogSigner
    entries_: list[Entry]
    told: list[Told] = field(default_factory=list)

    async def checkpoints(self, after_size: int) -> Sequence[Told] | None:
        if after_size and after_size not in {each.size for each in self.told}:
            return None
        return [each for each in self.told if each.size > after_size][:3]

    async def checkpoint(self, size: int) -> Told | None:
        if not size:
            return self.told[-1] if self.told else None
        return next((each for each in self.told if each.size == size), None)

    async def entries(self, after_position: int, limit: int) -> AsyncGenerator[Entry, None]:
        for entry in [entry for entry in self.entries_ if entry.position > after_position][:limit]:
            yield entry

    def part(self, entries: int, checkpoints: int) -> Hub:
        return Hub(self.signer, self.entries_[:entries], self.told[:checkpoints])

    def copy(self) -> Hub:
        entries = [Entry.FromString(entry.SerializeToString()) for entry in self.entries_]
        told = [Told.FromString(each.SerializeToString()) for each in self.told]
        return Hub(self.signer, entries, told)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def honest() -> AsyncIterator[Hub]:
    async with live_hub() as live:
        yield await streamed(live)


async def streamed(live: Live) -> Hub:
    """A hub with prescriptions that were handed over, as a mirror's certificate sees it."""
    publisher = live.hub.core.publisher
    for _ in range(2):
        await Chain(live, PERSON).handed_over()
        await publisher.publish_all()
    await Chain(live, PERSON).uploaded()
    return await shown(live)


async def shown(live: Live) -> Hub:
    """Everything that the hub has by now."""
    publisher = live.hub.core.publisher
    await publisher.publish_all()
    found = Hub(publisher.signer, [])
    mirror = await live.connect("mirror", "mirror-1")
    found.told = list((await mirror.checkpoints()).checkpoints)
    found.entries_ = [entry async for entry in mirror.stream_entries(limit=found.told[-1].covered_position)]
    return found


@dataclass
class Place:
    """Where mirrors keep their copies."""

    folder: Path
    stores: list[Store] = field(default_factory=list)

    async def mirror(self, hub: Hub, name: str = "copy") -> tuple[Mirror, Store]:
        store = await open_sqlite(self.folder / f"{name}.db")
        self.stores.append(store)
        return Mirror(store, [hub.signer.key], Judged(self.folder / f"{name}.judged")), store

    async def close(self) -> None:
        for store in self.stores:
            await store.close()
        self.stores.clear()

    async def replayed(self, hub: Hub, name: str = "copy") -> Progress:
        """One run of a mirror, from opening its store to closing it."""
        mirror, _ = await self.mirror(hub, name)
        try:
            return await mirror.catch_up(hub)
        finally:
            await self.close()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def test_an_honest_log_is_agreed_with_root_map_and_signatures(honest: Hub, place: Place) -> None:
    mirror, store = await place.mirror(honest)
    progress = await mirror.catch_up(honest)
    last = honest.told[-1]
    assert (progress.entries, progress.size) == (last.covered_position, last.size)
    assert (progress.root, progress.map_root) == (last.root, last.map_root)
    assert progress.signatures > 2 * 6
    assert mirror.judged_position == last.covered_position
    assert [each.note for each in await store.checkpoints(0, 99)] == [each.note for each in honest.told]
    assert (await verify_ledger(store)).findings == []
    assert await mirror.catch_up(honest) == progress
    await place.close()


async def test_a_mirror_of_two_hubs_on_postgresql_agrees_too(place: Place, postgres_server: PostgresServer) -> None:
    async with several_hubs([new_ledger(postgres_server)] * 2) as several:
        first, second = several.hubs
        await Chain(first, PERSON).handed_over()
        await Chain(second, PERSON).uploaded()
        found = await streamed(first)
        progress = await place.replayed(found)
        last = found.told[-1]
        assert (progress.entries, progress.root, progress.map_root) == (last.covered_position, last.root, last.map_root)


async def test_a_mirror_goes_on_where_it_stopped(honest: Hub, place: Place) -> None:
    first = honest.told[0]
    begun = await place.replayed(honest.part(first.covered_position, 1))
    assert begun.size == first.size
    last = honest.told[-1]
    assert (await place.replayed(honest)).root == last.root
    # Entries without the checkpoint over them, as after a kill between the two.
    cut, store = await place.mirror(honest, "cut")
    with pytest.raises(MirrorFault):
        await cut.catch_up(Hub(honest.signer, honest.entries_[:-1], honest.told))
    assert await store.last_position() == last.covered_position - 1
    await place.close()
    assert (await place.replayed(honest, "cut")).root == last.root


# ---- lies ----

Lie = Callable[[Hub], None]


def entry_of(hub: Hub, name: str, *, last: bool = True) -> int:
    """The place of the last (or first) entry of an event."""
    number = events.BY_NAME[name].number
    return (max if last else min)(
        at for at, entry in enumerate(hub.entries_) if Header.decode(entry.header).type == number
    )


def missing(hub: Hub) -> None:
    del hub.entries_[20]


def altered(hub: Hub) -> None:
    entry = hub.entries_[entry_of(hub, "settlement.committed")]
    entry.payload += b"\x08\x01"


def salted(hub: Hub) -> None:
    hub.entries_[30].salt = bytes(16)


def cut_short(hub: Hub) -> None:
    hub.entries_.pop()


def swapped(hub: Hub) -> None:
    one, other = hub.entries_[20], hub.entries_[21]
    hub.entries_[20], hub.entries_[21] = other, one


def unreadable(hub: Hub) -> None:
    hub.entries_[10].header = b"\xff"


def kept_back(hub: Hub) -> None:
    entry = hub.entries_[entry_of(hub, "review.passed")]
    entry.salt, entry.payload = b"", b""


def other_root(hub: Hub) -> None:
    hub.told[-1].root = bytes(32)


def other_map(hub: Hub) -> None:
    hub.told[0].map_root = bytes(32)


def unsigned(hub: Hub) -> None:
    hub.told[-1].note = hub.told[-1].note[:-8] + "AAAAAA==\n"


def other_note(hub: Hub) -> None:
    hub.told[-1].note = hub.signer.note(write_checkpoint(hub.signer.key.name, hub.told[-1].size, bytes(32)))


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (missing, Reason.POSITION),
        (swapped, Reason.POSITION),
        (cut_short, Reason.POSITION),
        (altered, Reason.LEAF_HASH),
        (salted, Reason.LEAF_HASH),
        (unreadable, Reason.HEADER),
        (other_root, Reason.ROOT),
        (other_map, Reason.MAPROOT),
        (unsigned, Reason.CHECKPOINT),
        (other_note, Reason.CHECKPOINT),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
async def test_a_lie_ends_the_replay_with_its_reason(honest: Hub, place: Place, lie: Lie, reason: Reason) -> None:
    hub = honest.copy()
    lie(hub)
    for _ in range(2):  # and again, for whoever starts it anew
        with pytest.raises(MirrorFault) as caught:
            await place.replayed(hub)
        assert caught.value.reason == reason
        assert caught.value.evidence["reason"] == reason
    if reason not in (Reason.ROOT, Reason.MAPROOT, Reason.CHECKPOINT):
        assert (await place.replayed(honest)).root == honest.told[-1].root


ENTRY_FIELDS = ("position", "header", "leaf", "leaf_hash", "salt", "payload")
TOLD_FIELDS = ("size", "root", "map_root", "covered_position")


def flipped(hub: Hub, random: Random) -> Hub:
    """The hub with one bit changed of what it streams or shows."""
    hub = hub.copy()
    where: Any = random.choice(random.choice((hub.entries_, hub.told)))
    name = random.choice([name for name in (*ENTRY_FIELDS, *TOLD_FIELDS) if getattr(where, name, b"")])
    value = getattr(where, name)
    if isinstance(value, bytes):
        bit = random.randrange(8 * len(value))
        value = value[: bit // 8] + bytes([value[bit // 8] ^ 1 << bit % 8]) + value[bit // 8 + 1 :]
    else:
        value ^= 1
    setattr(where, name, value)
    return hub


@pytest.mark.campaign
async def test_every_flipped_bit_of_what_is_streamed_is_found(
    honest: Hub, tmp_path: Path, rounds: Callable[[int, int], int]
) -> None:
    random = Random(20)
    for _ in range(rounds(40, 2_000)):
        mirror = Mirror(MemoryStore(), [honest.signer.key], Judged(tmp_path / "judged"))
        with pytest.raises(MirrorFault):
            await mirror.catch_up(flipped(honest, random))


async def test_a_log_that_became_shorter_or_another_one_is_refused(honest: Hub, place: Place) -> None:
    await place.replayed(honest)
    with pytest.raises(MirrorFault) as caught:
        await place.replayed(honest.part(len(honest.entries_), 1))
    assert caught.value.reason == Reason.SHORTER
    assert caught.value.evidence["seen"] == honest.told[-1].note
    forked = honest.copy()
    other_root(forked)
    forked.told[-1].note = forked.signer.note(write_checkpoint(forked.signer.key.name, forked.told[-1].size, bytes(32)))
    with pytest.raises(MirrorFault) as caught:
        await place.replayed(forked)
    assert caught.value.reason == Reason.ROOT
    assert {caught.value.evidence["seen"], caught.value.evidence["shown"]} == {
        honest.told[-1].note,
        forked.told[-1].note,
    }


async def test_a_log_without_any_prescription_is_judged_as_well(honest: Hub, place: Place) -> None:
    first = entry_of(honest, "encounter.registered", last=False)
    echo = await Echo(honest.signer, honest.entries_[: first - 5]).prepare(place)
    mirror, _ = await place.mirror(echo)
    await mirror.catch_up(echo)
    assert mirror.judged_position == first - 5
    await place.close()


# ---- a hub that lies consistently: hashes, tree, map and notes are all made anew ----


def resealed(hub: Hub, changes: dict[int, Callable[[Any], None]], drop: frozenset[int] = frozenset()) -> list[Entry]:
    """The entries with some payloads changed or entries left out, and every hash and cause over them made again."""
    new: list[Entry] = []
    heads: dict[bytes, tuple[int, bytes]] = {}
    renamed: dict[bytes, bytes] = {}
    for at, entry in enumerate(hub.entries_):
        if at in drop:
            continue
        old = Header.decode(entry.header)
        version, prev = heads.get(old.stream_key, (0, bytes(32)))
        causes = tuple(renamed.get(cause, cause) for cause in old.causes)
        header = Header(
            old.stream_kind, old.stream_key, version + 1, old.kind, old.type, old.recorded_at_ms, old.actor,
            old.request_id, old.policy_digest, causes,
        )  # fmt: skip
        payload = entry.payload
        if at in changes:
            message = events.BY_NUMBER[old.type].payload.FromString(payload)
            changes[at](message)
            payload = message.SerializeToString(deterministic=True)
        encoded = header.encode()
        committed = commitment(entry.salt, encoded, payload)
        leaf = leaf_bytes(old.type, old.stream_key, version + 1, prev, committed, old.recorded_at_ms)
        hashed = leaf_hash(leaf)
        renamed[entry.leaf_hash] = hashed
        heads[old.stream_key] = version + 1, hashed
        new.append(
            Entry(position=len(new) + 1, header=encoded, leaf=leaf, leaf_hash=hashed, salt=entry.salt, payload=payload)
        )
    return new


class Echo(Hub):
    """A hub whose checkpoints are made over what it streams, whatever that is."""

    async def prepare(self, place: Place) -> Echo:
        """Sign a checkpoint over all entries, which a mirror with no eye for content would agree with."""
        store = await open_sqlite(place.folder / "echo.db")
        assert not (await store.append([Write(entries=tuple(map(sealed, self.entries_)))])).conflicts
        made = await store.integrate(1, len(self.entries_))
        assert made is not None
        self.told = [told_of(self, made)]
        await store.close()
        return self


def sealed(entry: Entry) -> Sealed:
    """The entry as a store takes it, nothing checked."""
    header, prev, committed = Header.decode(entry.header), entry.leaf[43:75], entry.leaf[75:107]
    return Sealed(header, entry.header, entry.salt or bytes(16), entry.payload, committed, prev, entry.leaf_hash)


def told_of(hub: Hub, made: Checkpoint) -> Told:
    """A checkpoint as the hub shows it."""
    return Told(
        note=hub.signer.note(write_checkpoint(hub.signer.key.name, made.size, made.root)),
        size=made.size,
        root=made.root,
        map_root=made.map_root,
        covered_position=made.covered_position,
        made_at_ms=1,
    )


async def fault_of(place: Place, hub: Hub, entries: list[Entry]) -> MirrorFault:
    echo = await Echo(hub.signer, entries).prepare(place)
    with pytest.raises(MirrorFault) as caught:
        await place.replayed(echo)
    return caught.value


async def test_entries_that_were_sealed_again_unchanged_are_agreed_with(honest: Hub, place: Place) -> None:
    echo = await Echo(honest.signer, resealed(honest, {})).prepare(place)
    assert (await place.replayed(echo)).entries == len(honest.entries_)


async def test_a_diagnosis_that_nobody_signed_is_found(honest: Hub, place: Place) -> None:
    def invent(payload: Any) -> None:
        payload.statement.signatures[0].signature = sha256(b"x").digest() * 2

    fault = await fault_of(place, honest, resealed(honest, {entry_of(honest, "diagnosis.recorded"): invent}))
    assert (fault.reason, fault.evidence["findings"][0]["reason"]) == (Reason.SIGNED, "SIGNATURE")


async def test_goods_that_the_pharmacy_did_not_sign_for_are_found(honest: Hub, place: Place) -> None:
    def more(payload: Any) -> None:
        payload.lots[0].quantity = "9"

    fault = await fault_of(place, honest, resealed(honest, {entry_of(honest, "dispense.outbound"): more}))
    assert fault.reason in (Reason.SIGNED, Reason.LIFECYCLE)


async def test_a_step_that_was_left_out_is_against_the_tables(honest: Hub, place: Place) -> None:
    left_out = frozenset({entry_of(honest, "review.passed")})
    fault = await fault_of(place, honest, resealed(honest, {}, left_out))
    assert fault.reason == Reason.LIFECYCLE


async def test_a_payload_of_another_event_is_none(honest: Hub, place: Place) -> None:
    entries = resealed(honest, {})
    at = entry_of(honest, "review.passed")
    entries[at].payload = b"\xff\xff"
    header = Header.decode(entries[at].header)
    prev = entries[at].leaf[43:75]
    committed = commitment(entries[at].salt, entries[at].header, entries[at].payload)
    leaf = leaf_bytes(header.type, header.stream_key, header.version, prev, committed, header.recorded_at_ms)
    entries[at].leaf, entries[at].leaf_hash = leaf, leaf_hash(leaf)
    later = [n for n in range(at + 1, len(entries)) if Header.decode(entries[n].header).stream_key == header.stream_key]
    for number in reversed(later):
        del entries[number]
    for position, entry in enumerate(entries, 1):
        entry.position = position
    fault = await fault_of(place, honest, entries)
    assert fault.reason == Reason.PAYLOAD


async def test_content_that_is_kept_back_without_an_erasure_is_found_once_the_log_went_on(
    honest: Hub, place: Place
) -> None:
    hub = honest.copy()
    kept_back(hub)
    mirror, _ = await place.mirror(hub)
    covering = next(
        place_ for place_, told in enumerate(hub.told, 1) if told.covered_position > entry_of(hub, "review.passed")
    )
    await mirror.catch_up(hub.part(len(hub.entries_), covering))
    with pytest.raises(MirrorFault) as caught:
        await mirror.catch_up(hub)
    assert caught.value.reason == Reason.CONTENT_MISSING
    await place.close()
    # Whoever starts anew does not forget: nothing is agreed with before the erasure is there.
    again, _ = await place.mirror(hub)
    assert (await again.catch_up(hub)).kept_back == 1
    assert again.judged_position < hub.told[-1].covered_position
    await place.close()


async def test_content_that_was_erased_is_erased_from_the_copy_too(honest: Hub, place: Place) -> None:
    at = entry_of(honest, "dispense.handed_over")
    key = Header.decode(honest.entries_[at].header).stream_key
    entries = [Entry.FromString(entry.SerializeToString()) for entry in honest.entries_]
    before = await Echo(honest.signer, entries).prepare(place)
    mirror, store = await place.mirror(before)
    await mirror.catch_up(before)
    assert all(entry.payload is not None for entry in await store.entries(key, 0, 99))
    (place.folder / "echo.db").unlink()
    after = await Echo(honest.signer, [*entries, erasure(entries, key)]).prepare(place)
    after.told.insert(0, before.told[0])
    fresh = after.copy()
    await mirror.catch_up(await one_step_more(place, before, after))
    kept = await store.entries(key, 0, 99)
    assert [entry.payload is None for entry in kept] == [True] * (len(kept) - 1) + [False]
    await place.close()
    # A mirror that comes after the erasure never sees the content, and agrees on order and hashes alone.
    for entry in fresh.entries_[:-1]:
        if Header.decode(entry.header).stream_key == key:
            entry.salt, entry.payload = b"", b""
    late = Hub(fresh.signer, fresh.entries_, fresh.told[1:])
    mirror, store = await place.mirror(late, "late")
    progress = await mirror.catch_up(late)
    assert (progress.entries, progress.chains_erased) == (len(entries) + 1, 1)
    kept = await store.entries(key, 0, 99)
    assert [entry.payload is None for entry in kept] == [True] * (len(kept) - 1) + [False]
    await place.close()


def erasure(
    entries: list[Entry], key: bytes, said: events_pb2.ContentErased | None = None, actor: str = "agency/330100"
) -> Entry:
    """The entry that says that a stream's content is gone."""
    last = next(entry for entry in reversed(entries) if Header.decode(entry.header).stream_key == key)
    before = Header.decode(last.header)
    number = events.BY_NAME["content.erased"].number
    header = Header(
        before.stream_kind, key, before.version + 1, EntryKind.EVENT, number, before.recorded_at_ms, actor,
        "erase", b"", (),
    )  # fmt: skip
    payload = (said or events_pb2.ContentErased(legal_basis="示例")).SerializeToString()
    committed = commitment(b"s" * 16, header.encode(), payload)
    leaf = leaf_bytes(number, key, header.version, last.leaf_hash, committed, header.recorded_at_ms)
    return Entry(
        position=len(entries) + 1,
        header=header.encode(),
        leaf=leaf,
        leaf_hash=leaf_hash(leaf),
        salt=b"s" * 16,
        payload=payload,
    )


async def one_step_more(place: Place, before: Hub, after: Hub) -> Hub:
    """A hub that shows the checkpoint of `before`, and a second one over the rest."""
    store = await open_sqlite(place.folder / "two.db")
    covered = before.told[0].covered_position
    assert not (await store.append([Write(entries=tuple(map(sealed, after.entries_)))])).conflicts
    first, second = await store.integrate(1, covered), await store.integrate(1, 99)
    assert first is not None
    assert second is not None
    await store.close()
    return Hub(after.signer, after.entries_, [told_of(after, first), told_of(after, second)])
