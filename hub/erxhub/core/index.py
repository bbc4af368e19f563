"""Which names and lists an event adds: the only place that says so, so that nothing can be forgotten or drift.

A name is unique and leads to one stream; a listing is ordered by log position. Both follow from the event alone (and,
for a list, from the state after it), so they could be built again from the entries.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any, Final

from erxhub.core.keys import PlacedKey
from erxhub.v1 import state_pb2

Name = tuple[str, bytes]

LEDGER_NAME: Final[Name] = ("ledger", b"ledger")
"""Leads to the stream of the ledger itself."""

FEED: Final = "feed"
"""The list that a watch reads: one row for each step of a prescription, under each institution concerned."""

ACCESS: Final = "access"
"""Access and refusal entries under the stream that they were about."""

PERSON_ACCESS: Final = "person_access"
"""The same under the person whose prescription it was."""

REVOKED_CERTIFICATE: Final = "revoked_certificate"
REVOKED_KEY: Final = "revoked_key"

DENYING: Final = frozenset({REVOKED_CERTIFICATE, REVOKED_KEY})
"""Spaces of names by whose absence decisions are made that do not give them. Any other name is given by whoever
decides by its absence, or its absence ends in a refusal; so that it is unique is enough there."""

DECIDING_LISTS: Final = frozenset({"encounter_rx"})
"""Lists by whose end something is decided: that a visit has no further prescription."""


def hospital_rx_name(hospital_code: str, hospital_rx_no: str) -> Name:
    """The name of a hospital's own prescription number."""
    return "hospital_rx", hospital_code.encode() + b"\0" + hospital_rx_no.encode()


def names(event: str, payload: Any, mac: Callable[[str, str], bytes]) -> Iterable[Name]:
    """The unique names that lead to the event's stream from now on; `mac` hashes what must not stand in clear."""
    found = _NAMES.get(event)
    return () if found is None else found(payload, mac)


def listings(event: str, stream_key: bytes, payload: Any, state: Any) -> Iterable[Name]:
    """The lists that the event is put into."""
    found = _LISTINGS.get(event)
    return () if found is None else found(payload, state)


def watchers(state: state_pb2.PrescriptionState) -> list[str]:
    """The institutions that a step of this prescription concerns: the issuer, and every pharmacy with an order."""
    return [state.content.hospital_code, *{order.pharmacy_code for order in state.orders or ()}]


def related(stream_kind: str, key: bytes, state: Any, known: Container[bytes]) -> list[bytes]:
    """The streams that a step of this one is likely to read as well and that are not `known`: none has a deadline."""
    found: list[bytes] = []
    if stream_kind == "voucher":
        if state.person_key not in known:
            found.append(PlacedKey.made(state.person_key, beside=key))
    elif stream_kind == "prescription":
        if state.person_key not in known:
            # Most are treated where they live.
            found.append(PlacedKey.made(state.person_key, beside=key, surely=False))
        # The visit is over for whoever comes after the upload.
        if not state.uploaded_version and state.encounter_key not in known:
            found.append(PlacedKey.made(state.encounter_key, beside=key))
    return found


Mac = Callable[[str, str], bytes]


def _one(space: str, text: Callable[[Any], str]) -> Callable[[Any, Mac], Iterator[Name]]:
    def found(payload: Any, mac: Mac) -> Iterator[Name]:
        yield space, text(payload).encode()

    return found


def _raw(space: str, value: Callable[[Any], bytes]) -> Callable[[Any, Mac], Iterator[Name]]:
    def found(payload: Any, mac: Mac) -> Iterator[Name]:
        yield space, value(payload)

    return found


def _ledger(payload: Any, mac: Mac) -> Iterator[Name]:
    yield LEDGER_NAME


def _person(payload: Any, mac: Mac) -> Iterator[Name]:
    yield "person", mac("person", payload.person.person_no)


def _voucher_verified(payload: Any, mac: Mac) -> Iterator[Name]:
    yield ("online_identity" if payload.online else "voucher_ref"), payload.ref_mac


def _prechecked(payload: Any, mac: Mac) -> Iterator[Name]:
    yield hospital_rx_name(payload.content.hospital_code, payload.content.hospital_rx_no)


def _authorization(payload: Any, mac: Mac) -> Iterator[Name]:
    yield ("rx_token" if payload.authorization.is_token else "authorization"), payload.authorization.secret_mac


def _revoked(payload: Any, mac: Mac) -> Iterator[Name]:
    if payload.key_id:
        yield REVOKED_KEY, payload.key_id.encode()
    else:
        yield REVOKED_CERTIFICATE, payload.certificate_sha256


def _edition(payload: Any, mac: Mac) -> Iterator[Name]:
    yield "catalog_edition", f"{payload.edition.dataset}/{payload.edition.edition}".encode()


def _claim(payload: Any, mac: Mac) -> Iterator[Name]:
    yield "settlement", payload.claim.settlement_id.encode()


_NAMES: Final[Mapping[str, Callable[[Any, Mac], Iterator[Name]]]] = {
    "ledger.opened": _ledger,
    "catalogue.imported": _edition,
    "certificate.revoked": _revoked,
    "institution.registered": _one("institution", lambda p: p.institution.institution_code),
    "agreement.signed": _one("agreement", lambda p: p.agreement.agreement_no),
    "practitioner.registered": _one("practitioner", lambda p: p.practitioner.practitioner_code),
    "signing_key.registered": _one("signing_key", lambda p: p.key.key_id),
    "person.registered": _person,
    "voucher.issued": _raw("voucher_code", lambda p: p.code_mac),
    "voucher.verified": _voucher_verified,
    "encounter.registered": _one("encounter", lambda p: p.encounter_id),
    "prescription.prechecked": _prechecked,
    "authorization.qr_issued": _raw("rx_qr", lambda p: p.secret_mac),
    "authorization.issued": _authorization,
    "settlement.committed": _claim,
    "settlement.self_paid": _claim,
    "delivery.requested": _one("delivery", lambda p: p.delivery_no),
}


def _institution_listing(payload: Any, state: Any) -> Iterator[Name]:
    yield "institutions", payload.institution.area_code.encode()
    # Also under the prefecture and the province, so that their agencies find it.
    area = payload.institution.area_code
    for wider in dict.fromkeys((f"{area[:4]}00", f"{area[:2]}0000")):
        if wider != area:
            yield "institutions", wider.encode()


def _practitioner_listing(payload: Any, state: Any) -> Iterator[Name]:
    for code in dict.fromkeys(payload.practitioner.institution_codes):
        yield "practitioners", code.encode()


def _prechecked_listing(payload: Any, state: Any) -> Iterator[Name]:
    yield "hospital_rx", payload.content.hospital_code.encode()
    yield "encounter_rx", payload.encounter_key


def _effective_listing(payload: Any, state: Any) -> Iterator[Name]:
    # Before it takes effect a prescription is visible to the issuing hospital only.
    yield "person_rx", state.person_key


def _order_listing(payload: Any, state: Any) -> Iterator[Name]:
    yield "pharmacy_rx", payload.pharmacy_code.encode()


def _accesses(stream_keys: Iterable[bytes], person_keys: Iterable[bytes]) -> Iterator[Name]:
    yield from ((ACCESS, key) for key in dict.fromkeys(stream_keys) if key)
    yield from ((PERSON_ACCESS, key) for key in dict.fromkeys(person_keys) if key)


def _access_listing(payload: Any, state: Any) -> Iterator[Name]:
    return _accesses(
        (target.stream_key for target in payload.targets), (target.person_key for target in payload.targets)
    )


def _refusal_listing(payload: Any, state: Any) -> Iterator[Name]:
    return _accesses(payload.stream_keys, payload.person_keys)


_LISTINGS: Final[Mapping[str, Callable[[Any, Any], Iterator[Name]]]] = {
    "institution.registered": _institution_listing,
    "practitioner.registered": _practitioner_listing,
    "prescription.prechecked": _prechecked_listing,
    "prescription.effective": _effective_listing,
    "order.created": _order_listing,
    "audit.read": _access_listing,
    "command.refused": _refusal_listing,
    "voucher.rejected": _refusal_listing,
    "prescription.rule_blocked": _refusal_listing,
    "trace_code.duplicate_detected": _refusal_listing,
}
