"""Verifying a bundle offline: from the log's public key alone to what happened, one numbered check after the other.

Owns the order of the checks and what each of them rests on. Nothing is believed because the file says so: stream keys,
leaf hashes, the map's values and indexes are computed here. It never reads a store, a clock or a network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from erxhub.audit.chain import LAST_INSTANT_MS
from erxhub.core.events import BY_NAME, BY_NUMBER
from erxhub.crypto.certs import iso_time
from erxhub.ledger.entry import (
    FIRST_PREV_LEAF_HASH,
    EntryKind,
    Header,
    HeaderMalformed,
    commitment,
    leaf_bytes,
    leaf_hash,
    read_leaf,
)
from erxhub.ledger.store import StoredEntry
from erxhub.proof.bundle import (
    UNWITNESSED,
    BareLeaf,
    Bundle,
    BundleMalformed,
    Form,
    FullEntry,
    Shown,
    SingleEntry,
    Subject,
    WholeStream,
    read_bundle,
)
from erxhub.proof.bundle_checkpoint import CheckpointRefused, OpenedCheckpoint, Trust, open_checkpoint
from erxhub.proof.chain_rules import ChainRules, Fault
from erxhub.proof.mapping import verify_absent, verify_present
from erxhub.proof.merkle import ProofInvalid, verify_inclusion
from erxhub.proof.reasons import Reason
from erxhub.proof.records import map_value, maproot_leaf
from erxhub.v1 import events_pb2, registry_pb2

DISPENSING: Final = ("dispense.outbound", "dispense.handed_over", "delivery.signed", "trace_code.sold")
"""Events with which goods go out, or reach somebody: none of them, and nothing was dispensed."""

_DISPENSING_NUMBERS: Final = frozenset(BY_NAME[name].number for name in DISPENSING)
_ANY_STREAM: Final = "stream"
"""The kind of a subject of which only the key is known."""
_ERASED_NUMBER: Final = BY_NAME["content.erased"].number
_RENEWED: Final = "prescription.renewed"
_KEY_REGISTERED_NUMBER: Final = BY_NAME["signing_key.registered"].number


@dataclass(frozen=True, slots=True)
class Check:
    """One check that was made, in words."""

    number: int
    words: str
    held: bool


@dataclass(slots=True)
class Verdict:
    """What a verification came to. `faults` is empty if and only if the bundle proves what it says.

    `subject`, `form` and `checkpoint` are None where the verification did not get that far. `entries` counts what was
    proven to be everything about the subject, `erased` those of them whose content is gone.
    """

    checks: list[Check] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    form: Form | None = None
    subject: Subject | None = None
    checkpoint: OpenedCheckpoint | None = None
    entries: int = 0
    erased: int = 0

    @property
    def holds(self) -> bool:
        """Whether everything was checked and held."""
        return bool(self.checks) and not self.faults


class _Refused(Exception):
    """The check that is under way does not hold."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__(faults[0].words)
        self.faults = faults


def verify_bundle(data: bytes, trust: Trust, asked: Subject | None = None, form: Form | None = None) -> Verdict:
    """Verify the bytes of a bundle. `asked`, `form`: what it has to prove, and of what; None takes what the file says.

    The checks stop at the first that does not hold, as the later ones rest on it. Never raises on account of `data`.
    """
    verdict = Verdict()
    try:
        _Verification(verdict, trust, asked, form).run(data)
    except _Refused as refused:
        _fail(verdict, refused.faults)
    except Exception as error:  # noqa: BLE001 contents that a lying hub made up: what cannot be judged proves nothing
        fault = Fault(Reason.PAYLOAD, "", b"", 0, f"a content that cannot be judged ({type(error).__name__})")
        _fail(verdict, (fault,))
    return verdict


def _fail(verdict: Verdict, faults: Sequence[Fault]) -> None:
    verdict.faults.extend(faults)
    verdict.checks.append(Check(len(verdict.checks) + 1, faults[0].words, held=False))


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry whose leaf hash was computed. `header` and `payload` are None where only its leaf is there."""

    stream_kind: str
    stream_key: bytes
    version: int
    type: int
    recorded_at_ms: int
    leaf_hash: bytes
    header: Header | None
    shown: Shown

    def stored(self) -> StoredEntry:
        """The entry as the rules of a chain take it."""
        full = self.shown
        assert isinstance(full, FullEntry)
        return StoredEntry(
            position=0,
            stream_kind=self.stream_kind,
            stream_key=self.stream_key,
            header=full.header,
            commitment=b"",
            leaf_hash=self.leaf_hash,
            salt=full.salt,
            payload=full.payload,
            version=self.version,
        )

    def fault(self, reason: Reason, words: str) -> Fault:
        return Fault(reason, self.stream_kind, self.stream_key, self.version, words)


class _Verification:
    def __init__(self, verdict: Verdict, trust: Trust, asked: Subject | None, form: Form | None) -> None:
        self._verdict = verdict
        self._trust = trust
        self._asked = asked
        self._form = form

    def run(self, data: bytes) -> None:
        try:
            bundle = read_bundle(data)
        except BundleMalformed as error:
            raise _file(Reason.FORMAT, str(error)) from None
        self._verdict.form, self._verdict.subject = bundle.form, bundle.subject
        self._held(f"the file is a bundle of version 1: {bundle.form} of {bundle.subject.kind} {bundle.subject.name}")
        if self._asked is not None and bundle.subject != self._asked:
            raise _file(Reason.SUBJECT, f"the bundle is not about {self._asked.kind} {self._asked.name}")
        if self._form is not None and bundle.form != self._form:
            raise _file(Reason.SUBJECT, f"what the bundle proves is no {self._form}")
        checkpoint = self._checkpoint(bundle)
        self._map_root(bundle, checkpoint)
        if bundle.form == Form.ABSENCE:
            self._absence(bundle)
        else:
            self._chain(bundle, checkpoint)

    def _held(self, words: str) -> None:
        self._verdict.checks.append(Check(len(self._verdict.checks) + 1, words, held=True))

    # ---- the log ----

    def _checkpoint(self, bundle: Bundle) -> OpenedCheckpoint:
        try:
            opened = open_checkpoint(bundle.checkpoint, self._trust)
        except CheckpointRefused as refused:
            raise _file(refused.reason, str(refused)) from None
        if (bundle.policy == UNWITNESSED) != (opened.cosignature_lines == 0):
            raise _file(Reason.UNWITNESSED, "the policy line and the cosignatures of the checkpoint disagree")
        self._verdict.checkpoint = opened
        self._held(f"the checkpoint of {opened.origin}, {opened.size} leaves, is signed by the log")
        if self._trust.policy is not None:
            # The times are the witnesses' word for how new this is; what is new enough, the reader judges.
            signed = [
                f"{name} at {_time(at_s)}" for name, at_s in zip(opened.witnesses, opened.cosigned_at_s, strict=True)
            ]
            self._held(f"the policy is met; cosigned by {', '.join(signed) or 'nobody'}")
        else:
            self._held(
                f"no policy was given: unwitnessed ({opened.cosignature_lines} cosignatures that nobody here judges)"
            )
        return opened

    def _map_root(self, bundle: Bundle, checkpoint: OpenedCheckpoint) -> None:
        covered = checkpoint.size - 1
        if covered < 0:
            raise _file(Reason.MAPROOT, "an empty log has no root of a map")
        leaf = leaf_hash(maproot_leaf(covered, bundle.map_root))
        try:
            verify_inclusion(covered, checkpoint.size, leaf, bundle.map_root_path, checkpoint.root)
        except ProofInvalid as error:
            raise _file(Reason.MAPROOT, f"the map's root is not the last leaf: {error}") from None
        self._held(f"the map's root is the last leaf of the log and covers the {covered} leaves before it")

    def _included(self, bundle: Bundle, index: int, leaf: bytes, path: Sequence[bytes]) -> None:
        checkpoint = self._verdict.checkpoint
        assert checkpoint is not None
        if index >= checkpoint.size - 1:
            raise ProofInvalid("INDEX_RANGE", "the index is not that of an entry")
        verify_inclusion(index, checkpoint.size, leaf, path, checkpoint.root)

    # ---- streams ----

    def _whole(self, bundle: Bundle, stream: WholeStream) -> list[_Entry]:
        """The entries of a stream that the map proves to be all of it."""
        entries: list[_Entry] = []
        prev, at_ms = FIRST_PREV_LEAF_HASH, 0
        for version, shown in enumerate(stream.entries, 1):
            place = stream.kind, stream.key, version
            entry = _entry(shown, place, prev)
            if entry.recorded_at_ms < at_ms:
                raise _Refused(entry.fault(Reason.TIME_BACKWARDS, "recorded before its predecessor"))
            entries.append(entry)
            prev, at_ms = entry.leaf_hash, entry.recorded_at_ms
        self._held(f"{_name(stream)}: {len(entries)} entries, each linked to the one before")
        value = map_value(len(entries), prev)
        try:
            verify_present(bundle.map_root, stream.key, value, stream.map_proof, strict32=True)
        except ProofInvalid as error:
            words = f"the map does not hold the stream with these {len(entries)} entries: {error}"
            raise _Refused(entries[-1].fault(Reason.MAP, words)) from None
        self._held(f"{_name(stream)}: the map proves that these {len(entries)} entries are all there are")
        return entries

    # ---- an absence ----

    def _absence(self, bundle: Bundle) -> None:
        key = bundle.subject.key
        if bundle.absence is not None:
            if bundle.streams or bundle.singles:
                raise _file(Reason.STREAM_MISSING, "an absence with entries")
            try:
                verify_absent(bundle.map_root, key, bundle.absence, strict32=True)
            except ProofInvalid as error:
                raise _file(Reason.ABSENCE, f"the map does not prove that there is no such stream: {error}") from None
            self._held("the map proves that there is no such stream: by this checkpoint nothing had happened under it")
            return
        if len(bundle.streams) != 1 or bundle.singles:
            raise _file(Reason.STREAM_MISSING, "neither an absence nor the one stream that was asked about")
        stream = bundle.streams[0]
        if (stream.kind, stream.key) != (bundle.subject.kind, key):
            raise _file(Reason.STREAM_KEY, "the stream is not the one that was asked about")
        entries = self._whole(bundle, stream)
        self._verdict.entries = len(entries)
        for entry in entries:
            event = BY_NUMBER.get(entry.type)
            if event is None or stream.kind not in (_ANY_STREAM, *event.stream_kinds):
                raise _Refused(entry.fault(Reason.PAYLOAD, f"what type 0x{entry.type:04x} is here, nobody can say"))
            if entry.type in _DISPENSING_NUMBERS:
                raise _Refused(entry.fault(Reason.DISPENSED, f"there is a dispensing: {event.name}"))
        self._held(f"none of the {len(entries)} entries is a dispensing")

    # ---- a chain ----

    def _chain(self, bundle: Bundle, checkpoint: OpenedCheckpoint) -> None:
        if bundle.absence is not None:
            raise _file(Reason.STREAM_MISSING, "a chain and an absence in one")
        kinds = [stream.kind for stream in bundle.streams]
        if kinds not in (["prescription", "encounter", "ledger"], ["prescription", "ledger"]):
            raise _file(
                Reason.STREAM_MISSING, "a chain is the prescription's, the encounter's and the ledger's streams"
            )
        rx_key = bundle.subject.key
        if bundle.streams[0].key != rx_key:
            raise _file(Reason.STREAM_KEY, "the prescription's stream is not that of the number")
        self._held("the prescription's stream key was computed from the number")
        prescription = self._whole(bundle, bundle.streams[0])
        encounter = self._whole(bundle, bundle.streams[1]) if len(kinds) == 3 else []
        ledger = self._whole(bundle, bundle.streams[-1])
        self._genesis(bundle, ledger)
        singles = self._singles(bundle, {stream.key for stream in bundle.streams})
        own = [*prescription, *encounter]
        self._verdict.entries = len(own)
        is_whole = self._contents(prescription, encounter, ledger)
        self._causes(own, singles)
        if is_whole:
            rules = ChainRules(
                rx_key,
                prescription=_stored(prescription),
                encounter=_stored(encounter),
                ledger=_stored(ledger),
                singles=_stored(each for each in singles if isinstance(each.shown, FullEntry)),
            )
            key = bundle.streams[1].key if encounter else None
            self._contents_hold(rules, bundle.subject.name, key, checkpoint)
            self._rules(rules, singles)

    def _genesis(self, bundle: Bundle, ledger: list[_Entry]) -> None:
        try:
            self._included(bundle, 0, ledger[0].leaf_hash, bundle.genesis)
        except ProofInvalid as error:
            raise _Refused(ledger[0].fault(Reason.GENESIS, f"it is not the first leaf of the log: {error}")) from None
        self._held("the ledger's stream begins with the first leaf of the log")

    def _singles(self, bundle: Bundle, whole: set[bytes]) -> list[_Entry]:
        found: list[_Entry] = []
        for single in bundle.singles:
            entry = _single(single)
            if entry.stream_key in whole:
                raise _Refused(entry.fault(Reason.UNRELATED, "an entry of a stream that is here as a whole"))
            try:
                self._included(bundle, single.index, entry.leaf_hash, single.path)
            except ProofInvalid as error:
                words = f"it is not in the log at index {single.index}: {error}"
                raise _Refused(entry.fault(Reason.INCLUSION, words)) from None
            found.append(entry)
        self._held(f"{len(found)} entries of other streams are in the log, each at its index")
        return found

    def _contents(self, prescription: list[_Entry], encounter: list[_Entry], ledger: list[_Entry]) -> bool:
        """Whether all content is there. What is left out must have been erased, and the chain must say so."""
        for entry in ledger:
            if isinstance(entry.shown, BareLeaf):
                raise _Refused(entry.fault(Reason.CONTENT_MISSING, "the ledger's own entries are never erased"))
        bare = [entry for entry in (*prescription, *encounter) if isinstance(entry.shown, BareLeaf)]
        self._verdict.erased = len(bare)
        if not bare:
            if not encounter:
                raise _Refused(prescription[0].fault(Reason.STREAM_MISSING, "the encounter's stream is not here"))
            return True
        erasure = next((entry for entry in prescription if entry.type == _ERASED_NUMBER), None)
        for entry in bare:
            # A visit goes with its last prescription, and of an erased prescription nobody can say which visit it had.
            if entry.stream_kind != "prescription" or erasure is None or entry.version >= erasure.version:
                raise _Refused(entry.fault(Reason.CONTENT_MISSING, "content is left out that was never erased"))
        assert erasure is not None
        if encounter:
            raise _Refused(encounter[0].fault(Reason.STREAM_MISSING, "an erased prescription names no visit"))
        if len(bare) != erasure.version - 1:
            words = "some content from before the erasure is here, and some is not"
            raise _Refused(bare[0].fault(Reason.CONTENT_MISSING, words))
        said = _erasure(erasure)
        self._held(
            f"content erased in {len(bare)} entries, under {said.legal_basis!r} as"
            f" {registry_pb2.RetentionClass.Name(said.retention_class)}: their existence and order are proven, their"
            " rules are not"
        )
        return False

    def _causes(self, own: list[_Entry], singles: list[_Entry]) -> None:
        known = {entry.leaf_hash: entry for entry in (*own, *singles)}
        needed: set[bytes] = set()
        bare_allowed: set[bytes] = set()
        for entry in own:
            for cause in entry.header.causes if entry.header else ():
                there = known.get(cause)
                if there is None:
                    words = f"it rests on {cause.hex()[:16]}, which is not in the bundle"
                    raise _Refused(entry.fault(Reason.CAUSE_MISSING, words))
                if there.recorded_at_ms > entry.recorded_at_ms:
                    raise _Refused(entry.fault(Reason.TIME_BACKWARDS, "recorded before what it rests on"))
                needed.add(cause)
                if BY_NUMBER.get(entry.type) is BY_NAME[_RENEWED]:
                    bare_allowed.add(cause)
        for single in singles:
            if single.leaf_hash not in needed and single.type != _KEY_REGISTERED_NUMBER:
                raise _Refused(single.fault(Reason.UNRELATED, "nothing in the bundle rests on it"))
            # A renewed prescription is another case: of it only the leaf is shown.
            if isinstance(single.shown, BareLeaf) and single.leaf_hash not in bare_allowed:
                raise _Refused(single.fault(Reason.CONTENT_MISSING, "its content belongs to this chain"))
        self._held(f"all {len(needed)} entries that the chain rests on are in the bundle, and nothing else is")

    def _contents_hold(
        self, rules: ChainRules, rx_no: str, encounter_key: bytes | None, checkpoint: OpenedCheckpoint
    ) -> None:
        _none_of(rules.contents())
        _none_of(rules.names(rx_no, encounter_key))
        self._held("every content can be read; the prescription names its number and its encounter")
        _none_of(rules.origin(checkpoint.origin))
        _none_of(rules.log_key(checkpoint.log_keys))
        self._held("the ledger was opened under this origin, and the key that signed is registered in it")

    def _rules(self, rules: ChainRules, singles: list[_Entry]) -> None:
        _none_of(rules.lifecycle())
        self._held("the events follow one another as the transition tables allow")
        _none_of(rules.links())
        self._held("diagnosis, prescription, transaction and delivery are joined by their leaf hashes")
        _none_of(rules.renewals({single.leaf_hash: single.stream_key for single in singles}))
        used = rules.key_ids()
        for single in singles:
            if single.type == _KEY_REGISTERED_NUMBER and _registered_key(single) not in used:
                raise _Refused(single.fault(Reason.UNRELATED, "nothing here was signed with this key"))
        signers, faults = rules.signed()
        _none_of(faults)
        self._held(f"{len(signers)} signatures hold over the exact bytes, under keys registered and not revoked then")
        if self._trust.ca_pem is not None:
            certified, faults = rules.certificates(signers, self._trust.ca_pem)
            _none_of(faults)
            keys = len({(signer.subject_code, signer.institution_code, signer.key_id) for signer in signers})
            rest = f"; the other {keys - certified} are the signers' by the word of the ledger alone"
            self._held(
                f"{certified} of the {keys} signers' keys have a certificate of the trust domain"
                + (rest if keys > certified else "")
            )
        _none_of(rules.figures())
        self._held("quantities, money and drug trace codes agree")


def _stored(entries: Iterable[_Entry]) -> list[StoredEntry]:
    return [entry.stored() for entry in entries]


def _erasure(entry: _Entry) -> events_pb2.ContentErased:
    """What the entry with which content was erased says of it."""
    assert isinstance(entry.shown, FullEntry)
    assert entry.header is not None
    said = events_pb2.ContentErased.FromString(entry.shown.payload)
    if entry.header.kind != EntryKind.EVENT or said.retention_class not in registry_pb2.RetentionClass.values():
        raise _Refused(entry.fault(Reason.PAYLOAD, "its content is none of an event of this stream"))
    if said.kept_until_ms >= entry.recorded_at_ms:
        raise _Refused(entry.fault(Reason.CONTENT_MISSING, "content was erased before the end of its retention"))
    return said


def _registered_key(single: _Entry) -> str:
    """The id of the key that an entry registers; "" when its content is not there."""
    full = single.shown
    return events_pb2.SigningKeyRegistered.FromString(full.payload).key.key_id if isinstance(full, FullEntry) else ""


def _entry(shown: Shown, place: tuple[str, bytes, int], prev: bytes) -> _Entry:
    """The entry at its place in its stream: its leaf hash is computed and continues `prev`."""
    kind, key, version = place

    def refused(reason: Reason, words: str) -> _Refused:
        return _Refused(Fault(reason, kind, key, version, words))

    if isinstance(shown, BareLeaf):
        found = read_leaf(shown.leaf)
        if found.format != 1 or found.stream_key != key:
            raise refused(Reason.HEADER, "the leaf names another stream")
        if found.version != version:
            raise refused(Reason.VERSION_GAP, f"version {found.version} stands where {version} belongs")
        if found.prev_leaf_hash != prev:
            raise refused(Reason.PREV_LEAF, "it does not continue the entry before")
        return _Entry(kind, key, version, found.type, found.recorded_at_ms, leaf_hash(shown.leaf), None, shown)
    try:
        header = Header.decode(shown.header)
    except HeaderMalformed as error:
        raise refused(Reason.HEADER, str(error)) from None
    if (header.stream_kind, header.stream_key) != (kind, key):
        raise refused(Reason.HEADER, "the header names another stream")
    if header.version != version:
        raise refused(Reason.VERSION_GAP, f"version {header.version} stands where {version} belongs")
    committed = commitment(shown.salt, shown.header, shown.payload)
    leaf = leaf_bytes(header.type, key, version, prev, committed, header.recorded_at_ms)
    computed = leaf_hash(leaf)
    if computed != shown.leaf_hash:
        raise refused(Reason.LEAF_HASH, "the leaf hash does not follow from the entry and the one before it")
    return _Entry(kind, key, version, header.type, header.recorded_at_ms, computed, header, shown)


def _single(single: SingleEntry) -> _Entry:
    """The entry of another stream, at the place that it names itself."""
    shown, prev = single.entry, single.prev_leaf_hash
    if isinstance(shown, BareLeaf):
        found = read_leaf(shown.leaf)
        place = "", found.stream_key, found.version
    else:
        try:
            header = Header.decode(shown.header)
        except HeaderMalformed as error:
            raise _file(Reason.HEADER, f"the entry at index {single.index}: {error}") from None
        place = header.stream_kind, header.stream_key, header.version
    if (place[2] == 1) != (prev == FIRST_PREV_LEAF_HASH):
        raise _Refused(Fault(Reason.PREV_LEAF, *place, "exactly a first entry has no predecessor"))
    return _entry(shown, place, prev)


def _time(at_s: int) -> str:
    """A time as people read it, or the number where a calendar has none for it."""
    return iso_time(at_s * 1_000) if at_s * 1_000 <= LAST_INSTANT_MS else f"{at_s} s"


def _name(stream: WholeStream) -> str:
    return f"{stream.kind}/{stream.key.hex()[:16]}"


def _file(reason: Reason, words: str) -> _Refused:
    return _Refused(Fault(reason, "", b"", 0, words))


def _none_of(faults: Iterable[Fault]) -> None:
    found = list(faults)
    if found:
        raise _Refused(*found)
