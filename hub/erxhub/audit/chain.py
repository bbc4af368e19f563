"""The chain of one prescription: which streams belong to it, which of their entries, in which stage.

Owns how entries are read and joined. `missing` says which streams to fetch next, `assemble` joins what was fetched;
neither does any I/O. An entry that cannot be read is a finding and stands in the chain with an empty payload.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from google.protobuf.message import DecodeError

from erxhub.core import events
from erxhub.core.events import EventType
from erxhub.core.keys import trace_code_key
from erxhub.ledger import verify
from erxhub.ledger.entry import Header, HeaderMalformed
from erxhub.ledger.store import Head, StoredEntry
from erxhub.v1 import audit_pb2

Name = tuple[str, bytes]

SETTLED: Final = ("settlement.committed", "settlement.self_paid")
"""Events with which money is settled, or recorded as paid by the patient himself."""

RECEIVED: Final = ("dispense.handed_over", "delivery.signed")
"""Events with which the goods reach the patient."""


LAST_INSTANT_MS: Final = 253_402_214_400_000
"""9999-12-31: the format allows later instants, but no calendar does, so such an entry was damaged."""


class Reason(StrEnum):
    """What this package finds; the reasons of `erxhub.ledger.verify` come beside them."""

    PAYLOAD = "PAYLOAD"
    """The payload cannot be read, or the event does not belong into this stream."""
    LINK = "LINK"
    """The entry does not rest on the entry of the other stream that it names, or not back."""
    STATE = "STATE"
    """The stored state is not the fold of the entries, or no row of the tables allows this event (I10)."""
    SIGNATURE = "SIGNATURE"
    """A signature does not verify over the exact bytes, or the content is not of its type (I13)."""
    SIGNING_KEY = "SIGNING_KEY"
    """The key was not the named signer's at the named institution, not valid, or revoked (I14)."""
    CERTIFICATE = "CERTIFICATE"
    """A signer's certificate is not the trust domain's, or another signer's or key's."""
    DIGEST = "DIGEST"
    """What was signed is not what the entry says, or another digest than that of the signed bytes (I13)."""
    REUSED = "REUSED"
    """What was signed once stands for a step of another instant as well."""
    FILE = "FILE"
    """The prescription file is missing or is not the one that was signed."""
    NAME = "NAME"
    """A unique name that the entry gives is missing or leads elsewhere; version 0: no entry of the stream gives it."""
    LISTING = "LISTING"
    """The lists do not hold the entry as it says: a row is missing, altered, or one too many."""
    CATALOGUE = "CATALOGUE"
    """The rows of the imported code list are not those that the entry binds."""


_ERASED: Final = "content.erased"
_QUOTING_EVENTS: Final = frozenset(
    name for name, event in events.BY_NAME.items() if "voucher_key" in event.payload.DESCRIPTOR.fields_by_name
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault of one entry. `reason` is a `Reason` of this package or one of `erxhub.ledger.verify`."""

    stream_kind: str
    stream_key: bytes
    version: int
    reason: str


@dataclass(frozen=True, slots=True)
class Record:
    """An entry that was read. `payload` is an empty message when it was erased or cannot be read."""

    position: int
    header: Header
    leaf_hash: bytes
    event: EventType
    payload: Any
    is_erased: bool = False

    @property
    def name(self) -> str:
        """The event's name, e.g. "review.passed"."""
        return self.event.name

    @property
    def at_ms(self) -> int:
        """When it was recorded, by the hub's clock (UTC ms)."""
        return self.header.recorded_at_ms

    @property
    def institution_code(self) -> str:
        """The institution whose certificate the entry came with."""
        return self.header.actor.split("/")[1] if "/" in self.header.actor else ""

    def precedes(self, other: Record) -> bool:
        """Whether it came before in the order of the log."""
        return self.position < other.position


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream as fetched: its head, its stored entries, and the readable ones up to the position of the trace."""

    key: bytes
    head: Head | None
    stored: tuple[StoredEntry, ...]
    records: tuple[Record, ...]
    findings: tuple[Finding, ...]

    def first(self, *names: str) -> Record | None:
        """The first entry of one of these events, or None."""
        return next(self.all(*names), None)

    def all(self, *names: str) -> Iterator[Record]:
        """The entries of these events, oldest first."""
        return (record for record in self.records if record.name in names)

    def at(self, version: int) -> Record | None:
        """The entry of one version, or None."""
        return next((record for record in self.records if record.header.version == version), None)


NO_STREAM: Final = Stream(b"", None, (), (), ())
"""Stands for a stream that does not exist or was not named."""


def read_stream(key: bytes, head: Head | None, stored: Sequence[StoredEntry], as_of: int) -> Stream:
    """Read a stream's entries up to log position `as_of`. What cannot be read becomes a finding, and so does content
    that is gone although no later entry says that it was erased.
    """
    records: list[Record] = []
    findings: list[Finding] = []
    bare: list[Finding] = []
    for entry in stored:
        if entry.position > as_of:
            break
        record = read_entry(entry)
        if record is None or record.payload is None:
            findings.append(Finding(entry.stream_kind, entry.stream_key, entry.version, Reason.PAYLOAD))
        if record is not None:
            records.append(record if record.payload is not None else _emptied(record))
            if record.name == _ERASED:
                bare.clear()
        if entry.payload is None:
            bare.append(Finding(entry.stream_kind, entry.stream_key, entry.version, verify.Reason.CONTENT_MISSING))
    findings += bare
    return Stream(key, head, tuple(stored), tuple(records), tuple(findings))


def read_entry(entry: StoredEntry) -> Record | None:
    """The entry with its payload, which is None when it cannot be read; None when not even its event is known."""
    try:
        header = Header.decode(entry.header)
    except HeaderMalformed:
        return None
    event = events.BY_NUMBER.get(header.type)
    if event is None or header.recorded_at_ms > LAST_INSTANT_MS:
        return None
    payload: Any = event.payload()
    if entry.payload is not None:
        try:
            payload.ParseFromString(entry.payload)
        except DecodeError:
            payload = None
    if entry.stream_kind not in event.stream_kinds:
        payload = None
    return Record(entry.position, header, entry.leaf_hash, event, payload, entry.payload is None)


def _emptied(record: Record) -> Record:
    return Record(record.position, record.header, record.leaf_hash, record.event, record.event.payload())


@dataclass(slots=True)
class Sources:
    """What was fetched so far. A stream or name that is present without a value was looked for and does not exist."""

    ledger_key: bytes
    streams: dict[bytes, Stream] = field(default_factory=dict)
    names: dict[Name, bytes | None] = field(default_factory=dict)

    def stream(self, key: bytes) -> Stream:
        """A fetched stream; NO_STREAM when it does not exist or was not fetched."""
        return self.streams.get(key, NO_STREAM)

    def named(self, space: str, code: str) -> Stream:
        """The fetched stream under a name; NO_STREAM when there is none."""
        key = self.names.get((space, code.encode()))
        return self.stream(key) if key is not None else NO_STREAM


@dataclass(frozen=True, slots=True)
class VoucherUse:
    """A step that quoted a voucher, with the voucher's stream."""

    step: Record
    voucher_key: bytes
    voucher: Stream

    @property
    def verified(self) -> Record | None:
        """The entry with which the voucher was decoded, or None."""
        return self.voucher.first("voucher.verified")


@dataclass(frozen=True, slots=True)
class Placed:
    """An entry of the chain and the stage it belongs to."""

    record: Record
    stage: audit_pb2.Stage.ValueType


@dataclass(frozen=True, slots=True)
class Chain:
    """The streams of one prescription, joined."""

    rx_key: bytes
    rx: Stream
    prechecked: Record | None
    encounter: Stream
    uses: tuple[VoucherUse, ...]
    """In the order of the steps."""
    account: Stream
    moves: tuple[Record, ...]
    """The entries of the account that name this prescription."""
    sold: Mapping[str, Stream]
    """The streams of the drug trace codes that went out, by code."""
    persons: Mapping[bytes, Stream]
    """The prescription's person and the delegates who showed a voucher; empty when nobody acted for him."""

    @property
    def rx_no(self) -> str:
        """The prescription's number; "" when its first entry cannot be read."""
        return self.prechecked.payload.rx_no if self.prechecked else ""

    @property
    def person_key(self) -> bytes:
        """The stream of the prescription's person."""
        return self.prechecked.payload.person_key if self.prechecked else b""

    @property
    def is_erased(self) -> bool:
        """Whether an entry says that what the prescription's entries said was erased."""
        return self.rx.first(_ERASED) is not None

    @property
    def registered(self) -> Record | None:
        """The registration of the encounter."""
        return self.encounter.first("encounter.registered")

    def streams(self) -> tuple[Stream, ...]:
        """The streams of which every entry belongs to the chain, each once."""
        vouchers = {use.voucher.key: use.voucher for use in self.uses}
        every = (self.encounter, *vouchers.values(), *self.sold.values(), self.rx)
        return tuple(stream for stream in every if stream.stored)

    def entries(self) -> list[Placed]:
        """All entries of the chain in the order of the log, each once."""
        stages = _voucher_stages(self.uses)
        placed = {
            record.position: Placed(record, stages.get(stream.key, record.event.stage))
            for stream in self.streams()
            for record in stream.records
        }
        placed.update((record.position, Placed(record, record.event.stage)) for record in self.moves)
        return [placed[position] for position in sorted(placed)]


def _voucher_stages(uses: Iterable[VoucherUse]) -> dict[bytes, audit_pb2.Stage.ValueType]:
    """A voucher belongs to the stage of the first step that quoted it."""
    stages: dict[bytes, audit_pb2.Stage.ValueType] = {}
    for use in uses:
        stages.setdefault(use.voucher_key, use.step.event.stage)
    return stages


# ---- which streams ----


def voucher_key(record: Record) -> bytes:
    """The stream of the voucher that an entry quotes; b"" when it quotes none."""
    if record.name == "authorization.issued":
        return bytes(record.payload.authorization.voucher_key)
    return bytes(record.payload.voucher_key) if record.name in _QUOTING_EVENTS else b""


def _quoting(stream: Stream) -> Iterator[Record]:
    return (record for record in stream.records if voucher_key(record))


def _account_key(rx: Stream) -> bytes:
    keys = (bytes(record.payload.account_key) for record in rx.all("settlement.committed"))
    return next((key for key in keys if key), b"")


def _trace_codes(rx: Stream) -> list[str]:
    codes = (code for record in rx.all("dispense.outbound") for lot in record.payload.lots for code in lot.trace_codes)
    return list(dict.fromkeys(codes))


def _encounter_key(rx: Stream) -> bytes:
    prechecked = rx.first("prescription.prechecked")
    return bytes(prechecked.payload.encounter_key) if prechecked else b""


def _persons(rx: Stream, vouchers: Iterable[Stream]) -> set[bytes]:
    issued = (voucher.first("voucher.issued") for voucher in vouchers)
    delegates = {bytes(record.payload.delegate_key) for record in issued if record is not None} - {b""}
    prechecked = rx.first("prescription.prechecked")
    return delegates | {bytes(prechecked.payload.person_key)} if delegates and prechecked else set()


def missing(rx_key: bytes, sources: Sources) -> set[bytes]:
    """The streams to fetch next; empty when the chain can be assembled. Each answer may lead to further streams."""
    rx, encounter = sources.stream(rx_key), sources.stream(_encounter_key(sources.stream(rx_key)))
    vouchers = {voucher_key(record) for stream in (rx, encounter) for record in _quoting(stream)}
    wanted = {rx_key, _encounter_key(rx), _account_key(rx), *vouchers}
    wanted.update(trace_code_key(code) for code in _trace_codes(rx))
    wanted |= _persons(rx, map(sources.stream, vouchers))
    return {key for key in wanted if key and key not in sources.streams}


def assemble(rx_key: bytes, sources: Sources) -> Chain:
    """Join what was fetched. Streams that do not exist are NO_STREAM."""
    rx = sources.stream(rx_key)
    encounter = sources.stream(_encounter_key(rx))
    steps = sorted(
        (record for stream in (encounter, rx) for record in _quoting(stream)), key=lambda record: record.position
    )
    uses = tuple(VoucherUse(step, voucher_key(step), sources.stream(voucher_key(step))) for step in steps)
    account = sources.stream(_account_key(rx))
    moves = tuple(
        record for record in account.all("account.debited", "account.restored") if record.payload.rx_key == rx_key
    )
    return Chain(
        rx_key=rx_key,
        rx=rx,
        prechecked=rx.first("prescription.prechecked"),
        encounter=encounter,
        uses=uses,
        account=account,
        moves=moves,
        sold={code: sources.stream(trace_code_key(code)) for code in _trace_codes(rx)},
        persons={key: sources.stream(key) for key in _persons(rx, (use.voucher for use in uses))},
    )


# ---- links between streams ----


def link_findings(chain: Chain) -> list[Finding]:
    """Every place where the streams of the chain are not joined by the leaf hashes that their entries name."""
    return [_finding(record) for record in _unlinked(chain)]


def _finding(record: Record) -> Finding:
    return Finding(record.header.stream_kind, record.header.stream_key, record.header.version, Reason.LINK)


def _unlinked(chain: Chain) -> Iterator[Record]:
    if chain.prechecked is not None and chain.encounter.records:
        diagnosis = chain.encounter.at(chain.prechecked.payload.diagnosis_version)
        named = diagnosis is not None and diagnosis.name in ("diagnosis.recorded", "diagnosis.amended")
        if diagnosis is None or not named or not _rests_on(chain.prechecked, diagnosis):
            yield chain.prechecked
    for use in chain.uses:
        verified = use.verified
        if verified is not None and not _rests_on(use.step, verified):
            yield use.step
    for move in chain.moves:
        step = chain.rx.at(move.payload.rx_version)
        if step is None or not _rests_on(step, move):
            yield move
    for out in chain.rx.all("dispense.outbound"):
        codes = [code for lot in out.payload.lots for code in lot.trace_codes]
        sold = [list(sales_of_code(chain, code)) for code in codes]
        # A code without any sale of this prescription is a gap of the goods and not of the chain.
        if not all(any(_rests_on(out, sale) for sale in sales) for sales in sold if sales):
            yield out


def sales_of_code(chain: Chain, code: str) -> Iterator[Record]:
    """The entries with which a trace code was sold for this prescription."""
    sold = chain.sold.get(code, NO_STREAM).all("trace_code.sold")
    return (sale for sale in sold if sale.payload.rx_key == chain.rx_key)


def _rests_on(record: Record, cause: Record) -> bool:
    return cause.leaf_hash in record.header.causes and cause.position < record.position
