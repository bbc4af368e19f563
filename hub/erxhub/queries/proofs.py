"""What an auditor takes away: checkpoints, inclusion and consistency proofs, bundles of chains and of absences.

Owns the gathering of what a bundle holds. It proves nothing itself: tree and map are the store's, formats are
`proof`'s. Whatever it gives rests on a checkpoint that was signed and persisted before.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from erxhub.audit import signatures
from erxhub.audit.chain import Chain, Record, Sources, assemble, missing, read_entry, read_stream
from erxhub.audit.sales import sales_of
from erxhub.core.keys import prescription_key
from erxhub.core.model import Accepted, Caller, Refused, Target
from erxhub.ledger.entry import FIRST_PREV_LEAF_HASH, Header, leaf_bytes
from erxhub.ledger.log import Checkpoint, EntryProof, LogEmpty, ProofsWanted
from erxhub.ledger.store import StoredEntry, Wanted
from erxhub.proof.bundle import (
    UNWITNESSED,
    WITNESSED,
    BareLeaf,
    Bundle,
    Form,
    FullEntry,
    Shown,
    SingleEntry,
    Subject,
    WholeStream,
    write_bundle,
)
from erxhub.proof.notes import add_line, read_line
from erxhub.queries.base import Query, ReadContext
from erxhub.v1 import audit_pb2
from erxhub.witnessing import PublishingHalted

_ENTRIES_AT_ONCE: Final = 256
_CHECKPOINTS_AT_ONCE: Final = 1_000
_ROUNDS_MAX: Final = 8
"""So often a stream may have grown while its proof was made; by then somebody writes to it without a pause."""

Place = tuple[bytes, int]
"""A stream key and a version."""


class KeepsGrowing(Exception):
    """The chain was written to each time that it was read; it can be exported once that ends."""


async def _covering(ctx: ReadContext, position: int) -> Checkpoint:
    assert ctx.covering is not None, "a hub that publishes no log refuses these reads"
    return await ctx.covering(position)


async def _covering_now(ctx: ReadContext) -> Checkpoint:
    """A signed checkpoint over everything that is in the ledger by now."""
    return await _covering(ctx, await ctx.store.last_position())


# ---- gathering a chain ----


@dataclass(slots=True)
class _Read:
    """The streams that were read, each up to the same log position."""

    ctx: ReadContext
    as_of: int
    sources: Sources
    by_leaf: dict[bytes, StoredEntry] = field(default_factory=dict)
    prev: dict[Place, bytes] = field(default_factory=dict)

    async def streams(self, keys: Iterable[bytes]) -> None:
        """Read streams that were not read yet."""
        wanted = sorted(set(keys) - self.sources.streams.keys())
        found = await asyncio.gather(*(_entries(self.ctx, key) for key in wanted))
        for key, stored in zip(wanted, found, strict=True):
            entries = [entry for entry in stored if entry.position <= self.as_of]
            self.sources.streams[key] = read_stream(key, None, entries, self.as_of)
            prev = FIRST_PREV_LEAF_HASH
            for entry in entries:
                self.by_leaf[entry.leaf_hash] = entry
                self.prev[key, entry.version] = prev
                prev = entry.leaf_hash

    def stored(self, key: bytes) -> tuple[StoredEntry, ...]:
        return self.sources.stream(key).stored

    def whole(self, kind: str, key: bytes, map_proof: bytes) -> WholeStream:
        return WholeStream(kind, key, map_proof, tuple(self.shown(entry) for entry in self.stored(key)))

    def shown(self, entry: StoredEntry) -> Shown:
        if entry.salt is None or entry.payload is None:
            return self.bare(entry)
        return FullEntry(entry.leaf_hash, entry.header, entry.salt, entry.payload)

    def bare(self, entry: StoredEntry) -> BareLeaf:
        header = Header.decode(entry.header)
        prev = self.prev[entry.stream_key, entry.version]
        return BareLeaf(
            leaf_bytes(header.type, header.stream_key, header.version, prev, entry.commitment, header.recorded_at_ms)
        )


async def _entries(ctx: ReadContext, key: bytes) -> list[StoredEntry]:
    found: list[StoredEntry] = []
    while page := await ctx.store.entries(key, found[-1].version if found else 0, _ENTRIES_AT_ONCE):
        found += page
        if len(page) < _ENTRIES_AT_ONCE:
            break
    return found


async def chain_bundle(ctx: ReadContext, rx_no: str) -> tuple[str, Chain] | None:
    """The bundle of a prescription and its chain; None when there is no such prescription. Raises KeepsGrowing."""
    rx_key = prescription_key(rx_no)
    for _ in range(_ROUNDS_MAX):
        read = _Read(ctx, await ctx.store.last_position(), Sources(ctx.ledger_key))
        await read.streams([rx_key, ctx.ledger_key])
        if not read.stored(rx_key):
            return None
        while wanted := missing(rx_key, read.sources):
            await read.streams(wanted)
        chain = assemble(rx_key, read.sources)
        text = await _proven_chain(read, chain, Subject("prescription", rx_no))
        if text is not None:
            return text, chain
    raise KeepsGrowing


async def _proven_chain(read: _Read, chain: Chain, subject: Subject) -> str | None:
    """The bundle of what was read; None when the chain, or the log alone, grew meanwhile and nothing is signed yet."""
    ctx = read.ctx
    whole = [("prescription", chain.rx_key), ("encounter", chain.encounter.key), ("ledger", ctx.ledger_key)]
    streams = [(kind, key) for kind, key in whole if key]
    singles = [*await _rested_on(read, chain), *await _signers(read, chain)]
    genesis = read.stored(ctx.ledger_key)[0]
    await _cover(read, [*singles, *(entry for _, key in streams for entry in read.stored(key)[-1:])])
    proofs = await ctx.store.prove(
        ProofsWanted(tuple(key for _, key in streams), tuple(_place(entry) for entry in (genesis, *singles)))
    )
    is_as_read = all(proofs.map[key].head == _head(read.stored(key)) for _, key in streams)
    checkpoint = await _shown_to_witnesses(ctx, proofs.checkpoint) if is_as_read else None
    if checkpoint is None:
        return None
    bundle = Bundle(
        form=Form.CHAIN,
        subject=subject,
        policy=_policy(checkpoint),
        map_root=checkpoint.map_root,
        map_root_path=tuple(proofs.maproot_path),
        genesis=tuple(proofs.entries[_place(genesis)].path),
        streams=tuple(read.whole(kind, key, proofs.map[key].proof) for kind, key in streams),
        singles=_proven(read, singles, proofs.entries, _renewed(chain)),
        absence=None,
        checkpoint=cosigned(checkpoint),
    )
    return write_bundle(bundle)


async def _cover(read: _Read, shown: Iterable[StoredEntry]) -> None:
    """Have a signed checkpoint over all that is shown, and over the whole ledger where the newest one is old.

    As a rule there is one: what happens elsewhere in the ledger all the time needs none of its own for this bundle.
    """
    covering = await _covering(read.ctx, max(entry.position for entry in shown))
    if covering.made_at_ms < read.ctx.clock.now_ms() - read.ctx.config.max_merge_delay_ms:
        await _covering(read.ctx, read.as_of)


def _place(entry: StoredEntry) -> Place:
    return entry.stream_key, entry.version


def _head(entries: Sequence[StoredEntry]) -> tuple[int, bytes] | None:
    return (entries[-1].version, entries[-1].leaf_hash) if entries else None


def _own(chain: Chain) -> Iterable[Record]:
    return (record for stream in (chain.encounter, chain.rx) for record in stream.records)


async def _rested_on(read: _Read, chain: Chain) -> list[StoredEntry]:
    """The entries of other streams that those of the chain name as causes."""
    renewed = [prescription_key(record.payload.renews_rx_no) for record in chain.rx.all("prescription.renewed")]
    await read.streams(renewed)
    own = {chain.rx.key, chain.encounter.key}
    erased = {_place(entry) for stream in (chain.rx, chain.encounter) for entry in stream.stored if entry.salt is None}
    found: dict[Place, StoredEntry] = {}
    for record in _own(chain):
        # Without its content nobody can say what an entry rests on.
        if (record.header.stream_key, record.header.version) in erased:
            continue
        for cause in record.header.causes:
            entry = read.by_leaf.get(cause)
            if entry is not None and entry.stream_key not in own:
                found[_place(entry)] = entry
    return list(found.values())


def _renewed(chain: Chain) -> set[bytes]:
    """The leaf hashes of another case's entries: of a renewed prescription only the leaf is shown."""
    return {cause for record in chain.rx.all("prescription.renewed") for cause in record.header.causes}


async def _signers(read: _Read, chain: Chain) -> list[StoredEntry]:
    """The entries that register the keys with which the chain's contents were signed."""
    contents = signatures.contents(chain, sales_of(chain.rx.records))
    names = frozenset(content.holder for content in contents if content.subject_code)
    resolved: Mapping[tuple[str, bytes], bytes] = (
        (await read.ctx.store.read(Wanted(names=names))).names if names else {}
    )
    await read.streams(resolved.values())
    key_ids = {signature.key_id for content in contents for signature in content.signed.signatures[:1]}
    found: dict[Place, StoredEntry] = {}
    for key in set(resolved.values()):
        for entry in read.stored(key):
            record = read_entry(entry)
            is_key = record is not None and record.payload is not None and record.name == "signing_key.registered"
            if record is not None and is_key and record.payload.key.key_id in key_ids:
                found[_place(entry)] = entry
    return list(found.values())


def _proven(
    read: _Read, entries: Iterable[StoredEntry], proofs: Mapping[Place, EntryProof], bare: set[bytes]
) -> tuple[SingleEntry, ...]:
    singles = []
    for entry in entries:
        proof = proofs[_place(entry)]
        shown = read.bare(entry) if entry.leaf_hash in bare else read.shown(entry)
        singles.append(SingleEntry(proof.index, read.prev[_place(entry)], tuple(proof.path), shown))
    return tuple(sorted(singles, key=lambda single: single.index))


# ---- an absence ----


async def absence_bundle(ctx: ReadContext, subject: Subject) -> tuple[str, int]:
    """The bundle that tells of every entry of a stream, or that there is none; and how many there are.

    Only leaves are shown: what kind of entry each is stands in them, and no content. Raises KeepsGrowing.
    """
    key = subject.key
    for _ in range(_ROUNDS_MAX):
        covering = await _covering_now(ctx)
        read = _Read(ctx, covering.covered_position, Sources(ctx.ledger_key))
        await read.streams([key])
        entries = read.stored(key)
        proofs = await ctx.store.prove(ProofsWanted((key,)))
        found = proofs.map[key]
        is_as_read = found.head == _head(entries)
        checkpoint = await _shown_to_witnesses(ctx, proofs.checkpoint) if is_as_read else None
        if checkpoint is not None:
            whole = [WholeStream(subject.kind, key, found.proof, tuple(map(read.bare, entries)))] if entries else []
            bundle = Bundle(
                form=Form.ABSENCE,
                subject=subject,
                policy=_policy(checkpoint),
                map_root=checkpoint.map_root,
                map_root_path=tuple(proofs.maproot_path),
                genesis=(),
                streams=tuple(whole),
                singles=(),
                absence=None if entries else found.proof,
                checkpoint=cosigned(checkpoint),
            )
            return write_bundle(bundle), len(entries)
    raise KeepsGrowing


# ---- checkpoints ----


async def _shown_to_witnesses(ctx: ReadContext, checkpoint: Checkpoint) -> Checkpoint | None:
    """The checkpoint with the lines that its witnesses gave; None when a later one is to be proven against."""
    if checkpoint.note is None:
        # It is being signed at this moment, or another one followed at once.
        await _covering(ctx, checkpoint.covered_position)
        signed = await ctx.store.checkpoint(no=checkpoint.no)
        if signed is None or signed.note is None:
            return None
        checkpoint = signed
    return checkpoint if ctx.cosigned is None else await ctx.cosigned(checkpoint)


def cosigned(checkpoint: Checkpoint) -> str:
    """The signed note of a checkpoint with the lines of its witnesses, in order. It must have been signed."""
    note = checkpoint.note
    assert note is not None
    for line in sorted(map(read_line, (each.line for each in checkpoint.cosignatures))):
        note = add_line(note, line.line)
    return note


def _policy(checkpoint: Checkpoint) -> str:
    return WITNESSED if checkpoint.cosignatures else UNWITNESSED


async def _newest_signed(ctx: ReadContext) -> Checkpoint | None:
    """The newest checkpoint that has its note; the very newest may be a step that is just being signed."""
    found = await ctx.store.checkpoint()
    while found is not None and found.note is None:
        found = await ctx.store.checkpoint(no=found.no - 1) if found.no > 1 else None
    return found


# ---- the calls ----


def _without_reason(caller: Caller, case_reason: str) -> Refused | None:
    """An audit states its case (I21). Refusals: AUDIT_REASON."""
    if caller.kind == "mirror" or case_reason.strip():
        return None
    return Refused("AUDIT_REASON", field="case_reason")


def _no_log() -> Refused:
    return Refused("HUB_UNAVAILABLE", detail={"reason": "there is no signed checkpoint of the log"})


def _while_published(query: Query) -> Query:
    """The query, which says so when publishing has ended: CHAIN_BROKEN, or HUB_UNAVAILABLE where it may go on."""

    @functools.wraps(query)
    async def answered(ctx: ReadContext, caller: Caller, request: Any) -> Accepted | Refused:
        try:
            return await query(ctx, caller, request)
        except PublishingHalted as halted:
            code = "CHAIN_BROKEN" if halted.is_for_good else "HUB_UNAVAILABLE"
            return Refused(code, detail={"reason": str(halted)})

    return answered


async def get_checkpoint(
    ctx: ReadContext, caller: Caller, request: audit_pb2.GetCheckpointRequest
) -> Accepted | Refused:
    """A signed checkpoint (检查点), the newest or that of a size. It holds nothing of anybody.

    Refusals: HUB_UNAVAILABLE (no log), INPUT_MALFORMED (no checkpoint has this size).
    """
    if request.size:
        found = await ctx.store.checkpoint(size=request.size)
        if found is None or found.note is None:
            return Refused("INPUT_MALFORMED", field="size")
    else:
        found = await _newest_signed(ctx)
        if found is None:
            return _no_log()
    return Accepted(_told(found, cosigned(found)))


async def list_checkpoints(
    ctx: ReadContext, caller: Caller, request: audit_pb2.ListCheckpointsRequest
) -> Accepted | Refused:
    """The checkpoints of the log in order (检查点列表), so that a mirror can make each of them again.

    Refusals: INPUT_MALFORMED (no checkpoint has the size to begin after).
    """
    no = 0
    if request.after_size:
        before = await ctx.store.checkpoint(size=request.after_size)
        if before is None:
            return Refused("INPUT_MALFORMED", field="after_size")
        no = before.no
    found = await ctx.store.checkpoints(no, request.page_size or _CHECKPOINTS_AT_ONCE)
    return Accepted(audit_pb2.ListCheckpointsResponse(checkpoints=[_told(each, each.note or "") for each in found]))


def _told(checkpoint: Checkpoint, note: str) -> audit_pb2.GetCheckpointResponse:
    return audit_pb2.GetCheckpointResponse(
        note=note,
        size=checkpoint.size,
        root=checkpoint.root,
        map_root=checkpoint.map_root,
        covered_position=checkpoint.covered_position,
        made_at_ms=checkpoint.made_at_ms,
    )


async def prove_inclusion(
    ctx: ReadContext, caller: Caller, request: audit_pb2.ProveInclusionRequest
) -> Accepted | Refused:
    """That an entry is in the log, against a checkpoint that covers it (包含证明).

    Refusals: AUDIT_REASON, HUB_UNAVAILABLE (no log), INPUT_MALFORMED (no such entry), CHAIN_BROKEN (another history
    of this log exists).
    """
    refused = _without_reason(caller, request.case_reason)
    if refused is not None:
        return refused
    if ctx.covering is None:
        return _no_log()
    before = await ctx.store.entries(request.stream_key, max(request.version - 2, 0), 2)
    entry = next((each for each in before if each.version == request.version), None)
    if entry is None:
        return Refused("INPUT_MALFORMED", field="version")
    read = _Read(ctx, entry.position, Sources(ctx.ledger_key))
    read.prev[_place(entry)] = before[0].leaf_hash if entry.version > 1 else FIRST_PREV_LEAF_HASH
    for _ in range(_ROUNDS_MAX):
        await _covering_now(ctx)
        proofs = await ctx.store.prove(ProofsWanted((), (_place(entry),)))
        proof = proofs.entries.get(_place(entry))
        if proof is not None and proofs.checkpoint.note is not None:
            reply = audit_pb2.ProveInclusionResponse(
                note=cosigned(proofs.checkpoint), index=proof.index, leaf=read.bare(entry).leaf, path=proof.path
            )
            return Accepted(reply, targets=(Target(entry.stream_key),))
    return Refused("OVERLOADED")


async def prove_consistency(
    ctx: ReadContext, caller: Caller, request: audit_pb2.ProveConsistencyRequest
) -> Accepted | Refused:
    """That the log of one size begins that of another (一致性证明). Refusals: INPUT_MALFORMED (a size it never had)."""
    try:
        path = await ctx.store.consistency(request.size1, request.size2)
    except (ValueError, LogEmpty):
        return Refused("INPUT_MALFORMED", field="size2")
    return Accepted(audit_pb2.ProveConsistencyResponse(path=path))


async def export_bundle(ctx: ReadContext, caller: Caller, request: audit_pb2.ExportBundleRequest) -> Accepted | Refused:
    """Everything that proves one prescription, to be verified offline (导出证据包).

    Refusals: AUDIT_REASON, RX_UNKNOWN, HUB_UNAVAILABLE (no log), OVERLOADED (it is written to without a pause),
    CHAIN_BROKEN (another history of this log exists).
    """
    refused = _without_reason(caller, request.case_reason)
    if refused is not None:
        return refused
    if ctx.covering is None:
        return _no_log()
    try:
        found = await chain_bundle(ctx, request.rx_no)
    except KeepsGrowing:
        return Refused("OVERLOADED")
    if found is None:
        return Refused("RX_UNKNOWN", field="rx_no")
    text, chain = found
    reply = audit_pb2.ExportBundleResponse(bundle=text)
    return Accepted(reply, targets=(Target(chain.rx_key, chain.person_key),))


async def prove_absence(ctx: ReadContext, caller: Caller, request: audit_pb2.ProveAbsenceRequest) -> Accepted | Refused:
    """That nothing ever happened under a number, or every entry that there is, without content (不存在证明).

    Refusals: AUDIT_REASON, HUB_UNAVAILABLE (no log), OVERLOADED (it is written to without a pause), CHAIN_BROKEN
    (another history of this log exists).
    """
    refused = _without_reason(caller, request.case_reason)
    if refused is not None:
        return refused
    if ctx.covering is None:
        return _no_log()
    subject = {
        "rx_no": Subject("prescription", request.rx_no),
        "trace_code": Subject("trace_code", request.trace_code),
        "stream_key": Subject("stream", request.stream_key.hex()),
    }[request.WhichOneof("subject") or "stream_key"]
    try:
        text, entries = await absence_bundle(ctx, subject)
    except KeepsGrowing:
        return Refused("OVERLOADED")
    targets = (Target(subject.key),) if entries else ()
    return Accepted(audit_pb2.ProveAbsenceResponse(bundle=text, entries=entries), targets=targets)


QUERIES: Final[Mapping[str, Query]] = {
    "AuditService/GetCheckpoint": get_checkpoint,
    "AuditService/ListCheckpoints": list_checkpoints,
    "AuditService/ProveInclusion": _while_published(prove_inclusion),
    "AuditService/ProveConsistency": prove_consistency,
    "AuditService/ExportBundle": _while_published(export_bundle),
    "AuditService/ProveAbsence": _while_published(prove_absence),
}
