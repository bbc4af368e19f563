"""Which area each thing belongs to, so that a ledger can be spread over several database nodes by area.

Owns the rule, kind by kind; the ledger asks it and makes shards of the answers. Must never change for what exists: a
row is found by its shard. What belongs to no area, or does not show its area (a keyed hash), is spread by hash.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from erxhub.core import events
from erxhub.ledger.entry import Entry
from erxhub.ledger.store import Write
from erxhub.v1 import events_pb2

_INSTITUTION: Final = re.compile(r"[HP](\d{6})\d{5}\b")
_AREA: Final = re.compile(r"(\d{6})")

# Where the six digits stand in a name. The other names are keyed hashes, fingerprints and numbers without an area.
_NAMES: Final[Mapping[str, re.Pattern[str]]] = {
    "institution": _INSTITUTION,
    "hospital_rx": _INSTITUTION,
    "practitioner": re.compile(r"[A-Z]{1,3}(\d{6})\d{6}\b"),
    "encounter": _AREA,
    "settlement": _AREA,
    "delivery": _AREA,
}
# The other lists are kept under a stream's key.
_LISTS: Final[Mapping[str, re.Pattern[str]]] = {
    "institutions": _AREA,
    "practitioners": _INSTITUTION,
    "hospital_rx": _INSTITUTION,
    "pharmacy_rx": _INSTITUTION,
    "feed": _INSTITUTION,
}
_CALLERS: Final[Mapping[str, re.Pattern[str]]] = {
    "hospital": _INSTITUTION,
    "pharmacy": _INSTITUTION,
    "agency": _AREA,
    "supervisor": _AREA,
}
_AREA_DIGITS_MIN: Final = 110_000


class AreaPlacement:
    """See `erxhub.ledger.placement.Placement`.

    A prescription and an encounter belong to the area of the hospital that begins them, which is the one that their
    numbers begin with; a person to the insured area, a voucher and an account to their person's; an institution to its
    own, a practitioner to that of the first institution; an access stream to its caller's.
    """

    def begun(self, write: Write) -> Mapping[bytes, str | bytes]:
        """The area, or the stream beside which it belongs, of each stream that begins here."""
        return {entry.header.stream_key: self._begins(entry) for entry in write.entries if entry.header.version == 1}

    def of_name(self, space: str, key: bytes) -> str:
        """The area that a name shows."""
        return _found(_NAMES.get(space), key.decode("utf-8", "replace"))

    def of_list(self, space: str, key: bytes) -> str:
        """The area that a list shows."""
        return _found(_LISTS.get(space), key.decode("utf-8", "replace"))

    def of_caller(self, caller: str) -> str:
        """The area in a caller's identity; a channel, an auditor and a hub have none."""
        kind, _, name = caller.partition("/")
        return _found(_CALLERS.get(kind), name)

    def of_number(self, digits: str) -> str:
        """The area of a prescription by its number; "" for a stream of no area."""
        return _found(_AREA, digits)

    def _begins(self, entry: Entry) -> str | bytes:
        kind = entry.header.stream_kind
        if kind in {"prescription", "encounter", "access"}:
            return self.of_caller("/".join(entry.header.actor.split("/")[:2]))
        if entry.header.type not in _BEGINNINGS:
            return ""
        payload = _BEGINNINGS[entry.header.type]()
        payload.ParseFromString(entry.payload)
        match payload:
            case events_pb2.PersonRegistered():
                return _found(_AREA, payload.person.insured_area_code)
            case events_pb2.InstitutionRegistered():
                return _found(_AREA, payload.institution.area_code)
            case events_pb2.PractitionerRegistered():
                return _found(_INSTITUTION, next(iter(payload.practitioner.institution_codes), ""))
            case events_pb2.AccountOpened() | events_pb2.VoucherIssued():
                return payload.person_key
        return ""


_BEGINNINGS: Final = {
    events.BY_NAME[name].number: events.BY_NAME[name].payload
    for name in (
        "person.registered",
        "institution.registered",
        "practitioner.registered",
        "account.opened",
        "voucher.issued",
    )
}


def _found(pattern: re.Pattern[str] | None, text: str) -> str:
    """The six digits where a pattern finds them at the start, if they can be an area; "" otherwise."""
    match = pattern.match(text) if pattern is not None else None
    return match[1] if match is not None and int(match[1]) >= _AREA_DIGITS_MIN else ""
