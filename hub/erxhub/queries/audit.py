"""What an auditor reads: one chain, a search for chains, the entries themselves, and whether the ledger holds.

Owns the fetching; every judgement is `erxhub.audit`'s. Nothing is read without a case reason, except by a mirror, which
copies the ledger and has no case. A trace shows the ledger up to the position at which it began, so its own access
comes after it. A damaged ledger is answered with findings and never with an error.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from google.protobuf.message import DecodeError

from erxhub.audit import indexes, integrity, signatures
from erxhub.audit.accesses import access_findings, accesses
from erxhub.audit.chain import (
    Chain,
    Finding,
    Name,
    Sources,
    Stream,
    assemble,
    link_findings,
    missing,
    read_entry,
    read_stream,
)
from erxhub.audit.gaps import View, gaps
from erxhub.audit.light import flows, light
from erxhub.audit.sales import Sale, sales_of
from erxhub.audit.summaries import summary
from erxhub.core.catalog import DATASET_NAMES, rows_digest
from erxhub.core.fold import STATE_TYPES
from erxhub.core.index import ACCESS, PERSON_ACCESS
from erxhub.core.keys import prescription_key, trace_code_key
from erxhub.core.model import Accepted, Caller, MessageT, Refused, Target
from erxhub.ledger.entry import FIRST_PREV_LEAF_HASH, Header, HeaderMalformed, leaf_bytes
from erxhub.ledger.store import Head, StoredEntry, Wanted
from erxhub.ledger.verify import verify_ledger
from erxhub.policy.rules import Rules, rules_at
from erxhub.ports import give_way
from erxhub.queries.base import Messages, Opened, Paging, Query, ReadContext, Shown, paging, place_of
from erxhub.queries.base import Stream as StreamQuery
from erxhub.v1 import audit_pb2, common_pb2, state_pb2

ACCESSES_MAX: Final = 500
"""The newest accesses that a trace shows; a chain has a few dozen."""

FINDINGS_MAX: Final = 100
"""Findings in one reply; whoever repairs a ledger begins with the first."""

_ENTRIES_AT_ONCE: Final = 256
_NAMES_AT_ONCE: Final = 1_000
_ROWS_AT_ONCE: Final = 1_000
_BEFORE_EVERY_POSITION: Final = -(2**62)
_LEAVES_REMEMBERED: Final = 10_000
_AREA_DIGITS: Final = 6


def _without_reason(caller: Caller, case_reason: str) -> Refused | None:
    """An audit states its case (I21). Refusals: AUDIT_REASON."""
    if caller.kind == "mirror" or case_reason.strip():
        return None
    return Refused("AUDIT_REASON", field="case_reason")


# ---- one chain ----


async def trace_chain(ctx: ReadContext, caller: Caller, request: audit_pb2.TraceChainRequest) -> Accepted | Refused:
    """One prescription from diagnosis to delivery (全流程追溯).

    Without `verify` the light rests on the entries as they are stored: they are read and joined, and their hashes,
    states and signatures are taken as they come. Refusals: AUDIT_REASON, RX_UNKNOWN.
    """
    refused = _without_reason(caller, request.case_reason)
    if refused is not None:
        return refused
    as_of = await ctx.store.last_position()
    rx_key = prescription_key(request.rx_no)
    view = await view_of(ctx, rx_key, as_of, verify=request.verify, rx_no=request.rx_no)
    if view is None:
        return Refused("RX_UNKNOWN", field="rx_no")
    chain, findings = view.chain, list(view.findings)
    found = gaps(view)
    entries = await _access_entries(ctx, ACCESS, rx_key, as_of)
    if request.verify:
        findings.extend(await _access_faults(ctx, chain, entries, as_of))
    reply = audit_pb2.TraceChainResponse(
        rx_no=request.rx_no,
        light=light(view, found),
        gaps=found,
        entries=[
            audit_pb2.TraceEntry(
                stage=placed.stage,
                stream_kind=placed.record.header.stream_kind,
                stream_key=placed.record.header.stream_key,
                version=placed.record.header.version,
                type=placed.record.name,
                at_ms=placed.record.at_ms,
                actor=placed.record.header.actor,
                flow=placed.record.event.flow,
                leaf_hash=placed.record.leaf_hash,
                summary=summary(placed.record),
            )
            for placed in chain.entries()
        ],
        flows=flows(view, found),
        accesses=[each for entry in entries for each in accesses(entry, rx_key)],
        verified=request.verify and not findings,
        findings=_told(findings),
        as_of_position=as_of,
    )
    return Accepted(reply, targets=(Target(rx_key, chain.person_key),))


async def view_of(ctx: ReadContext, rx_key: bytes, as_of: int, *, verify: bool, rx_no: str = "") -> View | None:
    """A prescription's chain up to a log position, as the gaps are asked of it; None when there is none.

    `verify` looks for everything that does not hold; without it a finding is only what cannot be read or joined.
    `rx_no` is its number where that is known from elsewhere than from its entries.
    """
    sources = Sources(ctx.ledger_key)
    await _fetch(ctx, sources, {rx_key}, as_of)
    if not sources.stream(rx_key).stored:
        return None
    while wanted := missing(rx_key, sources):
        await _fetch(ctx, sources, wanted, as_of)
    chain = assemble(rx_key, sources)
    sales = () if chain.is_erased else sales_of(chain.rx.records)
    findings = [finding for stream in sources.streams.values() for finding in stream.findings]
    if verify:
        findings = await _verified(ctx, chain, sales, sources, as_of)
    findings = list(dict.fromkeys([*findings, *link_findings(chain)]))
    area_code = (rx_no or chain.rx_no)[:_AREA_DIGITS]
    return View(chain, sales, tuple(findings), ctx.clock.now_ms(), lambda at_ms: _rules_at(ctx, area_code, at_ms))


def _rules_at(ctx: ReadContext, area_code: str, at_ms: int) -> Rules:
    known = area_code if area_code.isdecimal() and len(area_code) == _AREA_DIGITS else ""
    return rules_at(ctx.packs, known, at_ms)


def _told(findings: Iterable[Finding]) -> list[audit_pb2.VerificationFinding]:
    return [
        audit_pb2.VerificationFinding(
            stream_kind=each.stream_kind, stream_key=each.stream_key, version=each.version, reason=each.reason
        )
        for each in list(findings)[:FINDINGS_MAX]
    ]


async def _fetch(ctx: ReadContext, sources: Sources, keys: Iterable[bytes], as_of: int) -> None:
    """Read streams whole. Heads come first, so that no head is newer than the entries read after it."""
    wanted = frozenset(keys)
    heads = (await ctx.store.read(Wanted(streams=wanted))).heads
    for key in sorted(wanted):
        sources.streams[key] = read_stream(key, heads.get(key), await _entries(ctx, key), as_of)


async def _entries(ctx: ReadContext, key: bytes, after_version: int = 0) -> list[StoredEntry]:
    found: list[StoredEntry] = []
    while page := await ctx.store.entries(key, found[-1].version if found else after_version, _ENTRIES_AT_ONCE):
        found += page
        if len(page) < _ENTRIES_AT_ONCE:
            break
    return found


async def _verified(
    ctx: ReadContext, chain: Chain, sales: tuple[Sale, ...], sources: Sources, as_of: int
) -> list[Finding]:
    """Everything that does not hold: streams first, then revocations, then what was signed, then the file."""
    if chain.is_erased:  # nothing is known of what it rests on, nor of what was signed
        return [*integrity.findings(chain.streams()), *chain.rx.findings]
    relied_on = await _names(ctx, signatures.revocation_names(chain, sales))
    await _fetch_signers(ctx, sources, signatures.holders(chain, sales), as_of)
    chain_keys = {stream.key for stream in chain.streams()}
    own = [stream for key, stream in sources.streams.items() if key in chain_keys]
    findings = integrity.findings(own)
    # What the chain rests on and shares with others: their hashes count, up to the last entry that it rests on.
    for key, stream in sources.streams.items():
        if key not in chain_keys:
            findings.extend(integrity.hash_findings(_shared_part(chain, stream)))
    findings.extend(finding for stream in sources.streams.values() for finding in stream.findings)
    ledger = sources.stream(sources.ledger_key)
    if ledger.key not in {finding.stream_key for finding in findings}:
        named = await _names(ctx, indexes.revocations(ledger))
        findings.extend(indexes.revocation_findings(ledger, named, relied_on, as_of))
    proofs = signatures.proofs(chain, sales, sources)
    verdicts = await ctx.verifier.verify_all(signatures.checks(proofs))
    findings.extend(signatures.findings(proofs, verdicts))
    uploaded = chain.rx.first("prescription.uploaded")
    if uploaded is not None:
        data = await ctx.store.blob(chain.rx_key, uploaded.payload.file_sha256)
        findings.extend(signatures.file_findings(chain, data))
    return findings


def _shared_part(chain: Chain, stream: Stream) -> list[StoredEntry]:
    if stream.key != chain.account.key:
        return list(stream.stored)
    last = max((move.header.version for move in chain.moves), default=0)
    return [entry for entry in stream.stored if entry.version <= last]


async def _fetch_signers(ctx: ReadContext, sources: Sources, names: set[Name], as_of: int) -> None:
    resolved = await _names(ctx, names)
    sources.names.update(resolved)
    keys = {key for key in (*resolved.values(), sources.ledger_key) if key and key not in sources.streams}
    await _fetch(ctx, sources, keys, as_of)


async def _names(ctx: ReadContext, names: Iterable[Name]) -> dict[Name, bytes | None]:
    """Where the names lead; None for a name that does not exist."""
    wanted = frozenset(names)
    found = (await ctx.store.read(Wanted(names=wanted))).names
    return {name: found.get(name) for name in wanted}


async def _access_entries(ctx: ReadContext, space: str, key: bytes, as_of: int) -> list[StoredEntry]:
    """The newest access and refusal entries under a prescription or a person, oldest first."""
    rows = await ctx.store.listing(space, key, as_of + 1, ACCESSES_MAX, newest_first=True)
    found: list[StoredEntry] = []
    for row in reversed(rows):
        found += await ctx.store.entries(row.stream_key, row.version - 1, 1)
    return found


async def _access_faults(ctx: ReadContext, chain: Chain, entries: list[StoredEntry], as_of: int) -> list[Finding]:
    """What does not hold of the accesses shown, and what the person's own list has and they have not."""
    if chain.is_erased:  # whose it was is not known any more
        return [fault for entry in entries for fault in access_findings(entry)]
    of_person = await _access_entries(ctx, PERSON_ACCESS, chain.person_key, as_of)
    broken = {entry.position: faults for entry in (*entries, *of_person) if (faults := access_findings(entry))}
    sound, sound_of_person = (
        [entry for entry in listed if entry.position not in broken] for listed in (entries, of_person)
    )
    return [
        *(fault for entry in entries for fault in broken.get(entry.position, ())),
        *indexes.access_list_findings(sound, sound_of_person, chain.rx_key, chain.person_key, ACCESSES_MAX),
    ]


# ---- finding chains ----


async def find_chains(ctx: ReadContext, caller: Caller, request: audit_pb2.FindChainsRequest) -> Accepted | Refused:
    """Prescriptions by number, encounter, institution or drug trace code (查找链条), newest first.

    What does not exist is an empty list. Refusals: AUDIT_REASON, PAGE_TOKEN_INVALID.
    """
    refused = _without_reason(caller, request.case_reason)
    if refused is not None:
        return refused
    by = request.WhichOneof("by") or ""
    value = str(getattr(request, by)) if by else ""
    asked = common_pb2.Page(page_size=request.page_size, page_token=request.page_token)
    page = paging(ctx, caller, "AuditService/FindChains", asked, (by, value))
    if isinstance(page, Refused):
        return replace(page, field="page_token")
    keys, next_token = await _found(ctx, page, by, value)
    states = await _states(ctx, keys, state_pb2.PrescriptionState)
    reply = audit_pb2.FindChainsResponse(
        chains=[
            audit_pb2.FoundChain(
                rx_no=state.rx_no,
                hospital_code=state.content.hospital_code,
                prescribed_at_ms=state.content.prescribed_at_ms,
            )
            for state in states.values()
        ],
        next_page_token=next_token,
    )
    return Accepted(reply, targets=tuple(Target(key, state.person_key) for key, state in states.items()))


async def _found(ctx: ReadContext, page: Paging, by: str, value: str) -> tuple[list[bytes], str]:
    """The prescriptions of one page, and the token of the next page or ""."""
    if by == "rx_no":
        return [prescription_key(value)], ""
    if by == "trace_code":
        key = trace_code_key(value)
        sold = (await _states(ctx, [key], state_pb2.TraceCodeState)).get(key)
        return ([sold.rx_key] if sold is not None and sold.rx_key else []), ""
    if by == "encounter_id":
        name = ("encounter", value.encode())
        encounter = (await ctx.store.read(Wanted(names=frozenset({name})))).names.get(name)
        return await _listed(ctx, page, "encounter_rx", encounter) if encounter else ([], "")
    space = "pharmacy_rx" if value.startswith("P") else "hospital_rx"
    return await _listed(ctx, page, space, value.encode())


async def _listed(ctx: ReadContext, page: Paging, space: str, key: bytes) -> tuple[list[bytes], str]:
    """One page of a listing, newest first, in which each prescription stands once, at its newest row."""
    rows = await ctx.store.listing(space, key, page.position, page.size + 1, newest_first=True)
    shown = rows[: page.size]
    next_token = page.token(place_of(shown[-1].position)) if len(rows) > page.size else ""
    if space != "pharmacy_rx":
        return [row.stream_key for row in shown], next_token
    # A pharmacy with several orders on a prescription has a row for each.
    newest = [row.stream_key for row in shown if await _newest_order(ctx, key.decode(), row.stream_key, row.version)]
    return newest, next_token


async def _newest_order(ctx: ReadContext, pharmacy_code: str, rx_key: bytes, version: int) -> bool:
    state = (await _states(ctx, [rx_key], state_pb2.PrescriptionState)).get(rx_key)
    own = [order.order_no for order in state.orders if order.pharmacy_code == pharmacy_code] if state else []
    if not own:
        return True
    entries = await ctx.store.entries(rx_key, version - 1, 1)
    created = read_entry(entries[0]) if entries else None
    return created is None or created.payload is None or created.payload.order_no == own[-1]


async def _states(ctx: ReadContext, keys: Iterable[bytes], kind: type[MessageT]) -> dict[bytes, MessageT]:
    """The stored states that can be read, in the order of `keys`."""
    wanted = list(dict.fromkeys(keys))
    heads = (await ctx.store.read(Wanted(streams=frozenset(wanted)))).heads
    found: dict[bytes, MessageT] = {}
    for key in wanted:
        head = heads.get(key)
        if head is not None and STATE_TYPES.get(head.stream_kind) is kind:
            try:
                found[key] = kind.FromString(head.body)
            except DecodeError:
                continue
    return found


# ---- the entries themselves ----


async def stream_entries(ctx: ReadContext, caller: Caller, request: audit_pb2.StreamEntriesRequest) -> Opened | Refused:
    """Entries after a position, up to those that are there now (账本条目): headers, leaves, content to a mirror only.

    Each page of content tells first of which streams it is, so that their persons find the access.
    Refusals: AUDIT_REASON.
    """
    refused = _without_reason(caller, request.case_reason)
    if refused is not None:
        return refused
    last = await ctx.store.last_position()
    if request.limit:
        last = min(last, request.after_position + request.limit)
    return Opened(_streamed(ctx, request.after_position, last, with_content=caller.kind == "mirror"))


async def _streamed(ctx: ReadContext, position: int, last: int, *, with_content: bool) -> Messages:
    leaves = _Leaves(ctx)
    while position < last:
        page = await ctx.store.log(position, min(_ENTRIES_AT_ONCE, last - position))
        if not page:
            return
        if with_content:
            targets = await _content_targets(ctx, page)
            if targets:
                yield Shown(targets)
        for entry in page:
            shown = audit_pb2.StreamEntriesResponse(
                position=entry.position,
                header=entry.header,
                leaf=await leaves.leaf(entry),
                leaf_hash=entry.leaf_hash,
            )
            if with_content:
                shown.salt, shown.payload = entry.salt or b"", entry.payload or b""
            yield shown
        position = page[-1].position


async def _content_targets(ctx: ReadContext, page: Iterable[StoredEntry]) -> tuple[Target, ...]:
    """The streams of a page with content that was not erased, each with its person when it has one."""
    keys = dict.fromkeys(entry.stream_key for entry in page if entry.payload is not None)
    heads = (await ctx.store.read(Wanted(streams=frozenset(keys)))).heads
    return tuple(Target(key, _person_of(heads.get(key))) for key in keys)


def _person_of(head: Head | None) -> bytes:
    if head is None or head.stream_kind not in STATE_TYPES:
        return b""
    if head.stream_kind == "person":
        return head.stream_key
    try:
        state = STATE_TYPES[head.stream_kind].FromString(head.body)
    except DecodeError:
        return b""
    person: bytes = getattr(state, "person_key", b"")
    return person


class _Leaves:
    """Leaf records, each over the stored leaf hash of the entry before it in its stream."""

    def __init__(self, ctx: ReadContext) -> None:
        self._ctx = ctx
        self._newest: OrderedDict[bytes, tuple[int, bytes]] = OrderedDict()

    async def leaf(self, entry: StoredEntry) -> bytes:
        """The 115 bytes; b"" for an entry whose header is damaged, of which there is no leaf."""
        prev = await self._before(entry)
        self._newest[entry.stream_key] = (entry.version, entry.leaf_hash)
        self._newest.move_to_end(entry.stream_key)
        if len(self._newest) > _LEAVES_REMEMBERED:
            self._newest.popitem(last=False)
        try:
            header = Header.decode(entry.header)
            return leaf_bytes(
                header.type, header.stream_key, header.version, prev, entry.commitment, header.recorded_at_ms
            )
        except (HeaderMalformed, ValueError):
            return b""

    async def _before(self, entry: StoredEntry) -> bytes:
        if entry.version <= 1:
            return FIRST_PREV_LEAF_HASH
        version, leaf_hash = self._newest.get(entry.stream_key, (0, b""))
        if version == entry.version - 1:
            return leaf_hash
        before = await self._ctx.store.entries(entry.stream_key, entry.version - 2, 1)
        return before[0].leaf_hash if before else b""


# ---- the whole ledger ----


async def verify(ctx: ReadContext, caller: Caller, request: audit_pb2.VerifyLedgerRequest) -> Accepted | Refused:
    """Every hash, chain, head, state, name, list and code list of the ledger (账本校验). At most 100 findings are told.

    It reads everything, so a hub does one at a time. Refusals: AUDIT_REASON, OVERLOADED (another one runs).
    """
    refused = _without_reason(caller, request.case_reason)
    if refused is not None:
        return refused
    if ctx.verification.locked():
        return Refused("OVERLOADED")
    async with ctx.verification:
        return await _verify(ctx)


async def _verify(ctx: ReadContext) -> Accepted:
    as_of = await ctx.store.last_position()
    verification = await verify_ledger(ctx.store, between_pages=give_way)
    findings = [
        Finding(each.stream_kind, each.stream_key, each.version, each.reason.value) for each in verification.findings
    ]
    findings += await _rebuilt_findings(ctx, as_of, {finding.stream_key for finding in findings})
    reply = audit_pb2.VerifyLedgerResponse(
        verified=not findings,
        entries=verification.entries,
        streams=verification.streams,
        findings=_told(dict.fromkeys(findings)),
        as_of_position=as_of,
    )
    return Accepted(reply)


async def _rebuilt_findings(ctx: ReadContext, as_of: int, broken: set[bytes]) -> list[Finding]:
    """Build states, names and lists again from the entries that hold (I10); stops when enough is found.

    What is read beside the log is read after `as_of`, so it is complete up to there; what came later is left out.
    """
    rebuilt = indexes.Rebuilt(ctx.mac_keys, broken)
    position = 0
    while position < as_of and len(rebuilt.findings) < FINDINGS_MAX:
        page = await ctx.store.log(position, min(_ENTRIES_AT_ONCE, as_of - position))
        if not page:
            break
        begun = rebuilt.begins(page)
        heads: Mapping[bytes, Head] = (await ctx.store.read(Wanted(streams=begun))).heads if begun else {}
        rows = await ctx.store.listings(position or _BEFORE_EVERY_POSITION, page[-1].position)
        rebuilt.take(page, heads, rows)
        position = page[-1].position
        await give_way()
    if len(rebuilt.findings) >= FINDINGS_MAX:
        return rebuilt.findings
    for key, version in rebuilt.unfinished():
        rebuilt.finish(key, await _entries(ctx, key, version))
        # A fold takes a millisecond or so, and there may be thousands.
        await give_way()
    await _compare_names(ctx, rebuilt, as_of)
    return rebuilt.findings + [each.finding() for each in rebuilt.editions if not await _holds(ctx, each)]


async def _compare_names(ctx: ReadContext, rebuilt: indexes.Rebuilt, as_of: int) -> None:
    after: Name | None = None
    while rows := await ctx.store.names(after, _NAMES_AT_ONCE):
        rebuilt.names(rows)
        last = rows[-1].space, rows[-1].key
        # A name that is no text cannot be gone on from.
        if len(rows) < _NAMES_AT_ONCE or last == after:
            break
        after = last
    while rebuilt.has_strange_names and (page := await ctx.store.log(as_of, _ENTRIES_AT_ONCE)):
        rebuilt.came_later(page)
        as_of = page[-1].position
    rebuilt.end_names()


async def _holds(ctx: ReadContext, imported: indexes.Edition) -> bool:
    """Whether the stored rows are those of the import; a release that bound none left no digest to compare."""
    edition = imported.edition
    if not edition.rows_sha256:
        return True
    dataset = DATASET_NAMES.get(edition.dataset, "")
    rows: list[tuple[str, bytes]] = []
    while page := await ctx.store.catalog_page(dataset, edition.edition, rows[-1][0] if rows else "", _ROWS_AT_ONCE):
        rows += page
    # A national list has hundreds of thousands of rows, and the loop has calls to serve meanwhile.
    return await asyncio.to_thread(rows_digest, rows) == edition.rows_sha256


QUERIES: Final[Mapping[str, Query]] = {
    "AuditService/TraceChain": trace_chain,
    "AuditService/FindChains": find_chains,
    "AuditService/VerifyLedger": verify,
}
STREAMS: Final[Mapping[str, StreamQuery]] = {"AuditService/StreamEntries": stream_entries}
