"""What the entries of a proven chain must say: readable, in a legal order, joined, signed, and adding up.

Owns the judgements of a bundle that look inside payloads. They are those of `erxhub.audit`, asked of the entries of a
bundle alone. It does no cryptography on the log, and reads no store, clock or network; what it is given was proven.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

from erxhub.audit import signatures
from erxhub.audit.certificates import certificate_fault
from erxhub.audit.chain import (
    Chain,
    Record,
    Sources,
    Stream,
    assemble,
    link_findings,
    read_entry,
    read_stream,
    sales_of_code,
)
from erxhub.audit.gaps import View, wrong_money, wrong_quantity
from erxhub.audit.sales import Sale, sales_of
from erxhub.core.events import At
from erxhub.core.fold import STATE_TYPES, EventMisplaced, evolve
from erxhub.core.keys import prescription_key
from erxhub.core.lifecycle import IllegalTransition
from erxhub.crypto.suites import SUITES
from erxhub.ledger.entry import EntryKind
from erxhub.ledger.store import StoredEntry
from erxhub.policy.rules import Rules
from erxhub.proof.reasons import Reason

# What a fold raises on events that do not fit; nothing else may hide here.
_MISFITS: Final = (IllegalTransition, EventMisplaced, LookupError, StopIteration, ValueError, AssertionError)

_ORDER: Final = {"encounter": 1, "prescription": 2, "ledger": 3}
"""Within one instant: what others rest on comes first; a revocation binds what is recorded after its instant."""

_EVERY_POSITION: Final = 2**63


class Fault(NamedTuple):
    """What does not hold, and the entry (stream kind, stream key, version) that it was found at."""

    reason: Reason
    stream_kind: str
    stream_key: bytes
    version: int
    words: str


@dataclass(frozen=True, slots=True)
class Signer:
    """A signature that was verified: who signed, and with which registered key."""

    subject_code: str
    institution_code: str
    key_id: str


class ChainRules:
    """The rules over one chain. Every method gives the faults that it found, none if it holds.

    `prescription`, `encounter` and `ledger` are whole streams with all their content; `singles` are entries of others.
    """

    def __init__(
        self,
        rx_key: bytes,
        prescription: Iterable[StoredEntry],
        encounter: Iterable[StoredEntry],
        ledger: Iterable[StoredEntry],
        singles: Iterable[StoredEntry],
    ) -> None:
        self._rx_key = rx_key
        own = [*prescription], [*encounter], [*ledger]
        placed = _placed([*own[0], *own[1], *own[2], *singles])
        by_key: dict[bytes, list[StoredEntry]] = {}
        for entry in placed:
            by_key.setdefault(entry.stream_key, []).append(entry)
        self._ledger_key = own[2][0].stream_key
        self._sources = Sources(self._ledger_key)
        for key, entries in by_key.items():
            self._sources.streams[key] = read_stream(key, None, entries, _EVERY_POSITION)
        self._own = tuple(self._sources.stream(entries[0].stream_key) for entries in own if entries)

    @cached_property
    def _chain(self) -> Chain:
        return assemble(self._rx_key, self._sources)

    @cached_property
    def _sales(self) -> tuple[Sale, ...]:
        return sales_of(self._chain.rx.records)

    # ---- contents ----

    def contents(self) -> Iterator[Fault]:
        """Every payload can be read, and is of an event that lives in its stream."""
        for stream in self._sources.streams.values():
            for entry in stream.stored:
                record = read_entry(entry)
                if record is None or record.payload is None or record.header.kind != EntryKind.EVENT:
                    yield _fault(Reason.PAYLOAD, entry, "its content is none of an event of this stream")

    def names(self, rx_no: str, encounter_key: bytes | None) -> Iterator[Fault]:
        """The prescription says its own number, and names the encounter whose stream is here."""
        first = self._chain.rx.records[0]
        named = self._chain.prechecked
        if named is None or named is not first or named.payload.rx_no != rx_no:
            yield _of(Reason.STREAM_KEY, first, "its first entry is not the pre-check of this number")
        elif encounter_key is None or named.payload.encounter_key != encounter_key:
            yield _of(Reason.STREAM_KEY, named, "the encounter's stream is not the one that the prescription names")

    def lifecycle(self) -> Iterator[Fault]:
        """The events follow one another as the transition tables allow."""
        for stream in self._own:
            kind = stream.stored[0].stream_kind
            state: Any = STATE_TYPES[kind]()
            for record in stream.records:
                at = At(record.header.version, record.at_ms, record.header.request_id)
                try:
                    evolve(kind, state, record.name, record.payload, at)
                except _MISFITS as error:
                    yield _of(Reason.LIFECYCLE, record, f"no row of the tables allows {record.name} here: {error}")
                    break

    def links(self) -> Iterator[Fault]:
        """The streams are joined by the leaf hashes that their entries name."""
        for finding in link_findings(self._chain):
            yield Fault(
                Reason.LINK,
                finding.stream_kind,
                finding.stream_key,
                finding.version,
                "it does not rest on the entry of the other stream that it names",
            )

    def renewals(self, stream_of: Mapping[bytes, bytes]) -> Iterator[Fault]:
        """A renewal rests on the prescription that it names. `stream_of`: each single's stream key by leaf hash."""
        for record in self._chain.rx.all("prescription.renewed"):
            renewed = prescription_key(record.payload.renews_rx_no)
            if any(stream_of.get(cause, renewed) != renewed for cause in record.header.causes):
                yield _of(Reason.LINK, record, "it does not rest on the prescription that it renews")

    # ---- the ledger ----

    def origin(self, origin: str) -> Iterator[Fault]:
        """The ledger was opened under the name that the checkpoint is signed for."""
        opened = self._ledger.records[0]
        if opened.name != "ledger.opened" or opened.payload.origin != origin:
            yield _of(Reason.GENESIS, opened, f"the ledger was not opened as {origin}")

    def log_key(self, public_keys: Iterable[bytes]) -> Iterator[Fault]:
        """One of the log keys that signed the checkpoint is registered in the ledger."""
        known = {
            record.payload.key.public_key
            for record in self._ledger.all("hub_key.registered")
            if record.payload.key.purpose == "log"
        }
        if known.isdisjoint(public_keys):
            last = self._ledger.records[-1]
            yield _of(Reason.HUB_KEY, last, "no key that signed the checkpoint is registered as the log's")

    @property
    def _ledger(self) -> Stream:
        return self._sources.stream(self._ledger_key)

    # ---- signatures ----

    def _holders(self) -> Mapping[tuple[str, bytes], bytes | None]:
        """Where the keys of each signer are registered; None for one who has two streams, which nobody can have."""
        holders: dict[tuple[str, bytes], bytes | None] = {}
        for record in self._registered():
            name = record.header.stream_kind, record.payload.key.subject_code.encode()
            key = record.header.stream_key
            holders[name] = key if holders.get(name, key) == key else None
        return holders

    def _registered(self) -> Iterator[Record]:
        for stream in self._sources.streams.values():
            yield from stream.all("signing_key.registered")

    def signed(self) -> tuple[list[Signer], list[Fault]]:
        """Whose signatures hold, and the faults of those that do not."""
        self._sources.names.update(self._holders())
        proofs = signatures.proofs(self._chain, self._sales, self._sources)
        signers: list[Signer] = []
        faults: list[Fault] = []
        for proof in proofs:
            content = proof.content
            reasons = [Reason(reason.value) for reason in proof.reasons]
            if proof.check is not None:
                suite, public_key, message, signature = proof.check
                if not SUITES[suite].verify(public_key, message, signature):
                    reasons.insert(0, Reason.SIGNATURE)
            who = content.subject_code or content.institution_code
            faults.extend(_of(reason, content.record, f"the signature of {who}") for reason in reasons)
            if not reasons:
                key_id = content.signed.signatures[0].key_id
                signers.append(Signer(content.subject_code, content.institution_code, key_id))
        return signers, faults

    def key_ids(self) -> set[str]:
        """The ids of the keys that the chain's signatures name."""
        return {
            signature.key_id
            for content in signatures.contents(self._chain, self._sales)
            for signature in content.signed.signatures[:1]
        }

    def certificates(self, signers: Iterable[Signer], ca_pem: bytes) -> tuple[int, list[Fault]]:
        """How many of the signers' keys have a certificate, and what is wrong with those that have or must have one."""
        used = {(signer.subject_code, signer.institution_code, signer.key_id) for signer in signers}
        certified = 0
        faults: list[Fault] = []
        for record in self._registered():
            key = record.payload.key
            if (key.subject_code, key.institution_code, key.key_id) not in used:
                continue
            certified += bool(record.payload.certificate_pem)
            words = certificate_fault(record, ca_pem)
            if words:
                faults.append(_of(Reason.CERTIFICATE, record, words))
        return certified, faults

    # ---- figures ----

    def figures(self) -> Iterator[Fault]:
        """Quantities, money and drug trace codes agree between prescription, claim, account and goods."""
        last = self._chain.rx.records[-1]
        # The rules of a region are about times and what is demanded; the figures agree or not whatever they are.
        view = View(self._chain, self._sales, (), last.at_ms, _no_rules)
        if wrong_quantity(view):
            yield _of(Reason.QUANTITY, last, "more was sold or handed out than prescribed, or another drug")
        if wrong_money(view):
            yield _of(Reason.MONEY, last, "a claim does not add up, or is not what was quoted or moved in the account")
        for sale in self._sales:
            if sale.out is None:
                continue
            for code in (code for lot in sale.out.payload.lots for code in lot.trace_codes):
                if len(list(sales_of_code(self._chain, code))) != 1:
                    yield _of(Reason.TRACE_CODE, sale.out, "a drug trace code was not sold once for this prescription")


def _no_rules(at_ms: int) -> Rules:
    raise AssertionError("a figure does not depend on a region's rules")


def _placed(entries: list[StoredEntry]) -> list[StoredEntry]:
    """The entries in an order that agrees with what they rest on; a bundle does not tell the positions of most."""

    def place(entry: StoredEntry) -> tuple[int, int, bytes, int]:
        record = read_entry(entry)
        at_ms = record.at_ms if record is not None else 0
        return at_ms, _ORDER.get(entry.stream_kind, 0), entry.stream_key, entry.version

    placed = sorted(entries, key=place)
    for position, entry in enumerate(placed, 1):
        entry.position = position
    return placed


def _fault(reason: Reason, entry: StoredEntry, words: str) -> Fault:
    return Fault(reason, entry.stream_kind, entry.stream_key, entry.version, words)


def _of(reason: Reason, record: Record, words: str) -> Fault:
    header = record.header
    return Fault(reason, header.stream_kind, header.stream_key, header.version, words)
