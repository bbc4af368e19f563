"""The names and lists that must lie beside the entries: built again from the log, and compared with what is stored.

Owns what counts as missing, altered and extra, entry by entry. It reads no store: whoever walks the log hands in
entries and rows. Where an entry does not hold, was erased or cannot be read, what should lie beside it is not known,
and nothing is found about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Final

from erxhub.audit.chain import Finding, Name, Reason, Record, Stream, read_entry
from erxhub.audit.integrity import Refold
from erxhub.core import index
from erxhub.core.draft import MacKeys
from erxhub.core.fold import STATE_TYPES
from erxhub.ledger.store import Head, NameRow, PlacedRow, StoredEntry
from erxhub.v1 import registry_pb2

NO_ENTRY: Final = 0
"""The version in a finding about a row that no entry accounts for."""

_PRESCRIPTION: Final = "prescription"
_SINCE_BYTES: Final = 8

_Row = tuple[str, bytes, bytes]


@dataclass(frozen=True, slots=True)
class Edition:
    """An imported edition of a code list, with the entry that says so."""

    record: Record
    edition: registry_pb2.CatalogEdition

    def finding(self) -> Finding:
        """That the stored rows are not those of the import."""
        return _finding(self.record, Reason.CATALOGUE)


@dataclass(slots=True, eq=False)
class _Name:
    """A name that an entry gives, by what is found when it is missing; `met` once it was seen in the store."""

    missing: Finding
    met: bool = False


@dataclass(slots=True)
class _Open:
    """A stream of which entries may still come. `told` is the version up to which the watches were told."""

    head: Head | None
    refold: Refold
    told: int = 0
    commit: tuple[int, str, str] = (0, "", "")
    newest: Record | None = None


class Rebuilt:
    """A ledger built again while its log is walked once; `findings` is what does not agree with it so far.

    It keeps one state for every stream that has not reached its head yet and some 300 bytes for every name, and nothing
    for an entry that was passed: memory grows with the streams and not with the entries.

    `broken` are the streams whose own entries do not hold. `mac_keys`: a name may have been made under any of them.
    """

    def __init__(self, mac_keys: MacKeys, broken: Set[bytes]) -> None:
        self.findings: list[Finding] = []
        self.editions: list[Edition] = []
        self._macs: list[index.Mac] = [partial(_mac, mac_keys, version) for version in sorted(mac_keys.keys)]
        self._unjudged = set(broken)
        self._open: dict[bytes, _Open] = {}
        self._names: dict[Name, _Name] = {}
        self._strange: dict[Name, NameRow] = {}

    # ---- entries and lists ----

    def begins(self, entries: Iterable[StoredEntry]) -> frozenset[bytes]:
        """The streams among these entries whose heads `take` needs."""
        return frozenset(
            entry.stream_key
            for entry in entries
            if entry.version == 1 and entry.stream_kind in STATE_TYPES and entry.stream_key not in self._unjudged
        )

    def take(self, entries: Sequence[StoredEntry], heads: Mapping[bytes, Head], rows: Iterable[PlacedRow]) -> None:
        """The next entries of the log, and all rows that stand at their positions or between them."""
        placed: dict[int, set[_Row]] = {}
        for row in rows:
            placed.setdefault(row.position, set()).add((row.space, row.key, row.value))
        for entry in entries:
            self._take(entry, heads, placed.pop(entry.position, set()))
        if placed:
            self.findings.append(Finding("", b"", NO_ENTRY, Reason.LISTING))

    def _take(self, entry: StoredEntry, heads: Mapping[bytes, Head], rows: set[_Row]) -> None:
        if entry.stream_key in self._unjudged:
            return
        record = read_entry(entry)
        if entry.stream_kind in STATE_TYPES:
            self._take_folded(entry, record, heads, rows)
        elif record is None or record.payload is None:
            self.findings.append(Finding(entry.stream_kind, entry.stream_key, entry.version, Reason.PAYLOAD))
        elif entry.payload is not None:
            self._compare(record, None, rows)

    def _take_folded(
        self, entry: StoredEntry, record: Record | None, heads: Mapping[bytes, Head], rows: set[_Row]
    ) -> None:
        key = entry.stream_key
        if entry.version == 1:
            self._open[key] = _Open(heads.get(key), Refold(entry.stream_kind, heads.get(key)))
        stream = self._open.get(key)
        if stream is None or not self._folds(stream, entry, record) or record is None:
            self._unjudged.add(key)
            self._open.pop(key, None)
            return
        stream.newest = record
        self._expect_names(record)
        if record.name == "catalogue.imported":
            self.editions.append(Edition(record, record.payload.edition))
        self._compare(record, stream, rows)
        if stream.head is not None and stream.head.version == entry.version:
            self._end(stream)
            del self._open[key]

    def _folds(self, stream: _Open, entry: StoredEntry, record: Record | None) -> bool:
        found = stream.refold.take(entry, record)
        if found is not None:
            self.findings.append(found)
        return stream.refold.state is not None

    def _compare(self, record: Record, stream: _Open | None, rows: set[_Row]) -> None:
        state = stream.refold.state if stream is not None else None
        listed = index.listings(record.name, record.header.stream_key, record.payload, state)
        expected = {(space, key, b"") for space, key in listed}
        if stream is not None and record.header.stream_kind == _PRESCRIPTION:
            expected |= self._told(stream, record, told_now=any(space == index.FEED for space, _, _ in rows))
        if rows != expected:
            self.findings.append(_finding(record, Reason.LISTING))

    def _told(self, stream: _Open, record: Record, *, told_now: bool) -> set[_Row]:
        """The rows by which every institution concerned is told the step that ends here, if one does.

        A step is what one commit left. The log alone does not say where a commit ends, so the rows may say it, but
        only so: each entry is in one step, every institution has the same steps, and none holds entries of two
        requests or instants.
        """
        version = record.header.version
        commit = (record.at_ms, record.header.request_id, "/".join(record.header.actor.split("/")[:2]))
        if commit != stream.commit and stream.told < version - 1:
            self._untold(stream, version - 1)
        stream.commit = commit
        if not told_now:
            return set()
        since = (stream.told + 1).to_bytes(_SINCE_BYTES, "big")
        stream.told = version
        return {(index.FEED, code.encode(), since) for code in index.watchers(stream.refold.state)}

    def _untold(self, stream: _Open, version: int) -> None:
        assert stream.newest is not None
        header = stream.newest.header
        self.findings.append(Finding(header.stream_kind, header.stream_key, version, Reason.LISTING))
        stream.told = version

    def _end(self, stream: _Open) -> None:
        """The newest entry ends a commit, and so a step."""
        if stream.newest is None or stream.newest.header.stream_kind != _PRESCRIPTION:
            return
        version = stream.newest.header.version
        if stream.told < version:
            self._untold(stream, version)

    def unfinished(self) -> list[tuple[bytes, int]]:
        """(stream, version) of the streams whose heads are newer than the log as it was walked, for `finish`."""
        return [(key, stream.newest.header.version) for key, stream in self._open.items() if stream.newest is not None]

    def finish(self, key: bytes, later: Iterable[StoredEntry]) -> None:
        """End one of the `unfinished`, given the entries that came meanwhile."""
        stream = self._open.pop(key)
        self._end(stream)
        for entry in later:
            if stream.head is None or entry.version > stream.head.version:
                return
            if not self._folds(stream, entry, read_entry(entry)):
                return

    # ---- names ----

    def _expect_names(self, record: Record) -> None:
        for alternatives in self._given(record):
            name = _Name(_finding(record, Reason.NAME))
            if any(self._names.setdefault(each, name) is not name for each in alternatives):
                # Of two entries that give one name the store can hold only one.
                self.findings.append(name.missing)

    def _given(self, record: Record) -> Iterable[set[Name]]:
        """For each name that an event gives, the same name under every key."""
        given = (index.names(record.name, record.payload, mac) for mac in self._macs)
        return map(set, zip(*given, strict=True))

    def names(self, rows: Iterable[NameRow]) -> None:
        """Names as stored, each row once, read after the whole log was taken."""
        for row in rows:
            name = self._names.get((row.space, row.key))
            if name is not None and not name.met and name.missing.stream_key == row.stream_key:
                name.met = True
            elif row.stream_key not in self._unjudged:
                self._strange[row.space, row.key] = row

    @property
    def has_strange_names(self) -> bool:
        """Whether the store has names that no entry so far gives; `came_later` may account for them."""
        return bool(self._strange)

    def came_later(self, entries: Iterable[StoredEntry]) -> None:
        """Entries after the walked ones: their names were met in the store already."""
        for entry in entries:
            record = read_entry(entry)
            if record is not None and record.payload is not None:
                for name in (each for alternatives in self._given(record) for each in alternatives):
                    row = self._strange.get(name)
                    if row is not None and row.stream_key == entry.stream_key:
                        del self._strange[name]

    def end_names(self) -> None:
        """Find the names that are missing or lead elsewhere, and those that no entry gives."""
        for name in self._names.values():
            if not name.met and name.missing.stream_key not in self._unjudged:
                name.met = True  # it stands here once for every key
                self.findings.append(name.missing)
        self.findings.extend(
            Finding(row.stream_kind, row.stream_key, NO_ENTRY, Reason.NAME) for row in self._strange.values()
        )


def _mac(mac_keys: MacKeys, version: int, space: str, value: str) -> bytes:
    return mac_keys.mac(space, value, version)


def _finding(record: Record, reason: Reason) -> Finding:
    return Finding(record.header.stream_kind, record.header.stream_key, record.header.version, reason)


# ---- what a single trace can tell ----


def revocations(ledger: Stream) -> dict[Name, Record]:
    """The names by which the hub looks revocations up, each with its entry, given the ledger's stream."""
    records = (read_entry(entry) for entry in ledger.stored)
    return {
        name: record
        for record in records
        if record is not None and record.name == "certificate.revoked" and record.payload is not None
        for name in index.names(record.name, record.payload, _no_mac)
    }


def _no_mac(space: str, value: str) -> bytes:
    raise AssertionError("a revocation is named in clear")


def revocation_findings(
    ledger: Stream, named: Mapping[Name, bytes | None], relied_on: Mapping[Name, bytes | None], as_of: int
) -> list[Finding]:
    """Whether the hub's look-ups of revocations say what the ledger's entries say.

    `named` is where the names of all `revocations` lead. `relied_on` is the same for the keys whose signatures count,
    looked up before the ledger's stream was fetched: such a name without an entry is one too many.
    """
    given = revocations(ledger)
    found = [
        _finding(record, Reason.NAME)
        for name, record in given.items()
        if record.position <= as_of and named.get(name) != ledger.key
    ]
    if any(key is not None and name not in given for name, key in relied_on.items()):
        found.append(Finding("ledger", ledger.key, NO_ENTRY, Reason.NAME))
    return found


def access_list_findings(
    of_prescription: Sequence[StoredEntry],
    of_person: Sequence[StoredEntry],
    rx_key: bytes,
    person_key: bytes,
    at_most: int,
) -> list[Finding]:
    """Whether the accesses of a prescription and of its person, each list's newest `at_most`, oldest first, agree.

    Every listed entry names what it is listed under, and an entry that names both is in both lists. An entry taken out
    of both is not seen here: only the whole log tells that.
    """
    found: list[Finding] = []
    for entries, own, others, other in (
        (of_prescription, (index.ACCESS, rx_key), of_person, (index.PERSON_ACCESS, person_key)),
        (of_person, (index.PERSON_ACCESS, person_key), of_prescription, (index.ACCESS, rx_key)),
    ):
        positions = {entry.position for entry in others}
        oldest = others[0].position if len(others) >= at_most else 0
        for entry in entries:
            record = read_entry(entry)
            if entry.payload is None or record is None or record.payload is None:
                continue
            given = set(index.listings(record.name, entry.stream_key, record.payload, None))
            hidden = other in given and entry.position >= oldest and entry.position not in positions
            if own not in given or hidden:
                found.append(_finding(record, Reason.LISTING))
    return found
