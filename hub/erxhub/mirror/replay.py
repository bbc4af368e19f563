"""The replay: entries in, a tree and a map of one's own out, compared with every checkpoint that the hub shows.

Owns the order of a step: entries are checked and kept, the log over them is built, and only then is the hub's
checkpoint held against it. What cannot be kept without lying (an entry that does not hold) is not kept; everything else
stays where it stopped, so that the next run comes to the same point.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from erxhub.audit.chain import Name, voucher_key
from erxhub.core import index
from erxhub.core.fold import STATE_TYPES
from erxhub.ledger.entry import CONTENT_ERASED_TYPE, Header
from erxhub.ledger.log import Checkpoint
from erxhub.ledger.store import Erasure, Listing, NewName, NewState, Store, Wanted, Write
from erxhub.mirror.faults import FINDINGS_MAX, MirrorFault, Reason
from erxhub.mirror.signed import Judge
from erxhub.mirror.streams import NO_SALT, Streams, Taken, erases
from erxhub.proof.checkpoints import open_checkpoint
from erxhub.proof.merkle import ProofInvalid
from erxhub.proof.notes import NoteKey
from erxhub.v1 import audit_pb2

_JUDGED_AT_ONCE: Final = 500
"""Prescriptions that wait to be judged; by then most of those of the first ones are complete."""

_ENTRIES_AT_ONCE: Final = 4_096
_NAMES: Final = frozenset({"institution", "practitioner", "ledger"})
"""The names by which signers are found; no other is needed, and those of persons are the hub's secret."""

_VISIT_RX: Final = "encounter_rx"
"""A list that is kept: which prescriptions of a visit are not erased."""

_QUOTING: Final = "voucher_quoted"
"""The other one, the mirror's own: the streams that quote a voucher and are not erased."""

_CHAINED: Final = frozenset({"prescription", "encounter"})
_LISTED_AT_ONCE: Final = 1_000


Entries = AsyncGenerator[audit_pb2.StreamEntriesResponse, None]


class Source(Protocol):
    """A hub, as a mirror sees it."""

    async def checkpoints(self, after_size: int) -> Sequence[audit_pb2.GetCheckpointResponse] | None:
        """The next checkpoints in order, none at the end; None when the hub has none of this size (0 always is)."""

    async def checkpoint(self, size: int) -> audit_pb2.GetCheckpointResponse | None:
        """The checkpoint of a size, the newest signed one for 0, or None."""

    def entries(self, after_position: int, limit: int) -> Entries:
        """The next entries with their content."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a replay has come: entries, the newest checkpoint that agrees, and what was verified on the way."""

    entries: int
    size: int
    root: bytes
    map_root: bytes
    signatures: int
    chains_erased: int
    kept_back: int
    """Streams without content of which the log does not say yet that it was erased."""


class Judged:
    """The position up to which chains were judged, in a file beside the copy."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> int:
        """0 where nothing was judged, or nobody knows."""
        try:
            return int(self._path.read_text("ascii"))
        except (OSError, ValueError):
            return 0

    def write(self, position: int) -> None:
        """Move on, as a whole. Raises OSError."""
        part = self._path.with_name(self._path.name + ".part")
        with part.open("w", encoding="ascii") as file:
            file.write(f"{position}\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._path)


class Mirror:
    """One log's mirror. `log_keys` are trusted; a key's name is its log's origin. One replay at a time.

    With `ca_pem`, the trust domain's root, signers' certificates are held against it.
    """

    def __init__(
        self, store: Store, log_keys: Sequence[NoteKey], judged: Judged, *, ca_pem: bytes | None = None
    ) -> None:
        self.judged_position = 0
        """Checkpoints that cover no more than this agree with the replay, signatures and all."""
        self._store = store
        self._log_keys = list(log_keys)
        self._judged = judged
        self._ca_pem = ca_pem
        self._streams = Streams(store)
        self._judge: Judge | None = None
        self._position = 0
        # Streams that are to be judged, and whether content came since they were.
        self._waiting: dict[bytes, bool] = {}
        # The last entry erased a visit: the one of its last prescription was written with it, and may come next.
        self._is_within_erasure = False
        self._kept_back: dict[bytes, int] = {}
        self._round = 0

    async def catch_up(self, source: Source) -> Progress:
        """Replay everything that the hub shows by now. Raises MirrorFault, StoreUnavailable, and what `source` does."""
        if not self._round:
            await self._resume()
        self._round += 1
        newest = await self._store.checkpoint()
        if newest is not None:
            await self._same_still(source, newest)
        # What the copying itself adds to the log is left for the next time; otherwise this would never end.
        last = await source.checkpoint(0)
        until, size = last.size if last is not None else 0, newest.size if newest else 0
        while size < until:
            page = await source.checkpoints(size)
            if page is None:
                raise self._shorter(newest)
            page = page[: _last_signed(page) + 1]
            if not page:
                break
            newest = await self._through(source, page, newest)
            size = newest.size if newest else 0
            if size >= until:
                self._nothing_is_kept_back()
        await self._judge_waiting()
        judge = self._judge
        return Progress(
            self._position,
            newest.size if newest else 0,
            newest.root if newest else b"",
            newest.map_root if newest else b"",
            judge.verified if judge else 0,
            judge.erased if judge else 0,
            len(self._kept_back),
        )

    async def _resume(self) -> None:
        self._position = await self._store.last_position()
        self.judged_position = position = min(self._judged.read(), self._position)
        while page := await self._store.log(position, _ENTRIES_AT_ONCE):
            for entry in page:
                header = Header.decode(entry.header)
                if _is_judged(header):
                    self._waiting[entry.stream_key] = True
                if entry.salt == NO_SALT:
                    self._kept_back[entry.stream_key] = self._round
                self._is_within_erasure = _erases_visit(header)
            position = page[-1].position

    async def _same_still(self, source: Source, newest: Checkpoint) -> None:
        """Whether the hub still shows the checkpoint up to which the copy goes."""
        told = await source.checkpoint(newest.size)
        if told is None:
            raise self._shorter(newest)
        self._compare(told, newest, newest.note)

    def _shorter(self, newest: Checkpoint | None) -> MirrorFault:
        size, note = (newest.size, newest.note) if newest else (0, None)
        return MirrorFault(Reason.SHORTER, f"the hub has no checkpoint of {size} leaves any more", seen=note)

    async def _through(
        self, source: Source, page: Sequence[audit_pb2.GetCheckpointResponse], newest: Checkpoint | None
    ) -> Checkpoint | None:
        """Every checkpoint of a page, over one stream of entries."""
        until = page[-1].covered_position
        async with aclosing(source.entries(self._position, max(until - self._position, 1))) as entries:
            for told in page:
                newest = await self._step(entries, told, newest)
                if len(self._waiting) >= _JUDGED_AT_ONCE:
                    await self._judge_waiting()
        return newest

    async def _step(
        self, entries: Entries, told: audit_pb2.GetCheckpointResponse, before: Checkpoint | None
    ) -> Checkpoint:
        """The entries up to one checkpoint of the hub, and the same checkpoint made here."""
        covered = before.covered_position if before else 0
        if told.covered_position <= covered:
            raise MirrorFault(Reason.POSITION, "a checkpoint covers nothing new", shown=told.note)
        await self._copy(entries, told.covered_position)
        made = await self._store.integrate(told.made_at_ms, told.covered_position - covered)
        if made is None:
            raise MirrorFault(Reason.POSITION, "the copy cannot be taken further", shown=told.note)
        self._compare(told, made, before.note if before else None)
        if told.note:
            await self._store.sign(made.no, told.note)
        return made

    def _compare(self, told: audit_pb2.GetCheckpointResponse, made: Checkpoint, seen: str | None) -> None:
        ours = {"size": made.size, "root": made.root.hex(), "map_root": made.map_root.hex()}
        if (told.size, told.root, told.covered_position) != (made.size, made.root, made.covered_position):
            reason = Reason.MAPROOT if told.map_root != made.map_root else Reason.ROOT
            raise MirrorFault(reason, f"not the log of {told.size} leaves", shown=told.note, seen=seen, computed=ours)
        if told.map_root != made.map_root:
            raise MirrorFault(Reason.MAPROOT, "another map", shown=told.note, seen=seen, computed=ours)
        if not told.note:
            return
        try:
            said = open_checkpoint(told.note, self._log_keys[0].name, self._log_keys).said
        except ProofInvalid as error:
            raise MirrorFault(Reason.CHECKPOINT, str(error), shown=told.note) from None
        if (said.size, said.root) != (made.size, made.root):
            raise MirrorFault(Reason.CHECKPOINT, "the note says something else", shown=told.note, computed=ours)

    # ---- entries ----

    async def _copy(self, entries: Entries, until: int) -> None:
        messages: list[audit_pb2.StreamEntriesResponse] = []
        while self._position + len(messages) < until:
            message = await anext(entries, None)
            if message is None:
                break
            messages.append(message)
            if len(messages) >= _ENTRIES_AT_ONCE:
                await self._keep(messages)
                messages.clear()
        await self._keep(messages)
        if self._position != until:
            raise MirrorFault(Reason.POSITION, f"the hub streams {self._position} entries of {until}")

    async def _keep(self, messages: Sequence[audit_pb2.StreamEntriesResponse]) -> None:
        if not messages:
            return
        headers = await self._streams.recall(messages)
        batch = _Batch()
        for number, (message, header) in enumerate(zip(messages, headers, strict=True), self._position + 1):
            if message.position != number:
                raise MirrorFault(Reason.POSITION, f"position {message.position} came and {number} is due")
            if erases(message) and not self._is_within_erasure and any(self._waiting.values()):
                # What is here is judged before it goes: an erasure hides nothing. Within one, that was done.
                await self._append(batch, number - 1)
                batch = _Batch()
                await self._judge_all()
            taken = self._streams.take(message, header)
            batch.add(taken)
            self._note(taken)
        await self._append(batch, messages[-1].position)
        self._streams.forget()

    async def _append(self, batch: _Batch, position: int) -> None:
        writes = batch.writes()
        if writes and (await self._store.append(writes)).conflicts:
            raise MirrorFault(Reason.NAME, f"entries up to {position} do not fit the copy")
        self._position = position

    def _note(self, taken: Taken) -> None:
        header = taken.entry.header
        if taken.record is None:
            self._kept_back.setdefault(header.stream_key, self._round)
        elif taken.record.name == "content.erased":
            self._kept_back.pop(header.stream_key, None)
        if _is_judged(header):
            # The erasure of a voucher is judged by what is there still, so before anything more goes.
            needs_content = taken.record is not None and (
                taken.record.name != "content.erased" or header.stream_kind not in _CHAINED
            )
            self._waiting[header.stream_key] = needs_content or self._waiting.get(header.stream_key, False)
        self._is_within_erasure = _erases_visit(header)

    def _nothing_is_kept_back(self) -> None:
        """An erasure of a round before is in the log by now, or there was none."""
        for key, since in self._kept_back.items():
            if since < self._round:
                raise MirrorFault(
                    Reason.CONTENT_MISSING, f"no entry says that {key.hex()} was erased", stream=key.hex()
                )

    # ---- signatures ----

    async def _judge_waiting(self) -> None:
        if self._is_within_erasure:
            return
        if self._waiting:
            await self._judge_all()
        if not self._kept_back and self.judged_position < self._position:
            self._judged.write(self._position)
            self.judged_position = self._position

    async def _judge_all(self) -> None:
        if self._judge is None:
            found = (await self._store.read(Wanted(names=frozenset({index.LEDGER_NAME})))).names
            ledger_key = found.get(index.LEDGER_NAME, b"")
            self._judge = Judge(
                self._streams.stream, self._named, self._prescribed, self._quoting, ledger_key, self._ca_pem
            )
        # Of what is kept back the rest is judged; the stream comes again with the entry that says it was erased.
        findings = await self._judge.findings(self._waiting)
        if findings:
            first = findings[0]
            raise MirrorFault(
                Reason.CONTENT_MISSING if first.reason == Reason.CONTENT_MISSING else Reason.SIGNED,
                f"{first.reason} at {first.stream_kind}/{first.stream_key.hex()} version {first.version}",
                findings=[
                    {
                        "stream_kind": each.stream_kind,
                        "stream_key": each.stream_key.hex(),
                        "version": each.version,
                        "reason": str(each.reason),
                    }
                    for each in findings[:FINDINGS_MAX]
                ],
            )
        self._waiting.clear()

    async def _named(self, names: frozenset[Name]) -> dict[Name, bytes]:
        return dict((await self._store.read(Wanted(names=names))).names)

    async def _prescribed(self, encounter_key: bytes) -> list[bytes]:
        # The rows of what was erased go with it, so there is one page unless a hub erased a visit and nothing else.
        return [row.stream_key for row in await self._store.listing(_VISIT_RX, encounter_key, 0, _LISTED_AT_ONCE)]

    async def _quoting(self, key: bytes) -> list[bytes]:
        return [row.stream_key for row in await self._store.listing(_QUOTING, key, 0, 1)]


class _Batch:
    """Entries as Writes: one for many, and one alone for each erasure."""

    def __init__(self) -> None:
        self._writes: list[Write] = []
        self._taken: list[Taken] = []

    def add(self, taken: Taken) -> None:
        """Put an entry in, in the order of the log."""
        if taken.record is None or taken.record.name != "content.erased" or taken.entry.header.version < 2:
            self._taken.append(taken)
            return
        self._end()
        self._taken.append(taken)
        header = taken.entry.header
        self._end(erasures=(Erasure(header.stream_key, header.version),))

    def writes(self) -> list[Write]:
        """Everything that was put in."""
        self._end()
        return self._writes

    def _end(self, erasures: tuple[Erasure, ...] = ()) -> None:
        if not self._taken:
            return
        newest = {taken.entry.header.stream_key: taken for taken in self._taken}
        states = tuple(
            NewState(key, taken.entry.header.version, taken.entry.leaf_hash, _body(taken), None)
            for key, taken in newest.items()
            if taken.following.kind in STATE_TYPES
        )
        self._writes.append(
            Write(
                entries=tuple(taken.entry for taken in self._taken),
                states=states,
                names=tuple(name for taken in self._taken for name in _names(taken)),
                listings=tuple(row for taken in self._taken for row in _listings(taken)),
                erasures=erasures,
            )
        )
        self._taken = []


def _body(taken: Taken) -> bytes:
    # The state after the last entry of the stream in this batch: later ones are not taken yet.
    state = taken.following.state
    return state.SerializeToString(deterministic=True) if state is not None else b""


def _names(taken: Taken) -> list[NewName]:
    record = taken.record
    if record is None or record.header.stream_kind not in _NAMES:
        return []
    return [
        NewName(space, key, record.header.stream_key)
        for space, key in index.names(record.name, record.payload, _no_mac)
        if space in _NAMES
    ]


def _listings(taken: Taken) -> list[Listing]:
    record = taken.record
    if record is None or record.header.stream_kind not in _CHAINED:
        return []
    header = record.header
    quoted = voucher_key(record)
    rows = [Listing(_QUOTING, quoted, header.stream_key, header.version)] if quoted else []
    if record.name == "prescription.prechecked":
        found = index.listings(record.name, header.stream_key, record.payload, taken.following.state)
        rows += [Listing(space, key, header.stream_key, header.version) for space, key in found if space == _VISIT_RX]
    return rows


def _is_judged(header: Header) -> bool:
    """What a chain is made of, and any erasure: of a voucher or an account it is all that is judged beside the fold."""
    return header.stream_kind in _CHAINED or header.type == CONTENT_ERASED_TYPE


def _erases_visit(header: Header) -> bool:
    return header.stream_kind == "encounter" and header.type == CONTENT_ERASED_TYPE


def _no_mac(space: str, value: str) -> bytes:
    raise AssertionError("no name of a signer is a secret")


def _last_signed(page: Sequence[audit_pb2.GetCheckpointResponse]) -> int:
    """The place of the last checkpoint that was signed; those after it will be. -1 for none."""
    return max((place for place, told in enumerate(page) if told.note), default=-1)
