"""What a person reads through his channel: his prescriptions, and who looked at them.

Owns the rule that a channel reads for a person who activated his e-voucher there, or for his delegate, and sees
prescriptions that took effect only. Summaries show no diagnosis.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from erxhub.core import guards, index
from erxhub.core.consequences import statuses
from erxhub.core.guards import Acting
from erxhub.core.lifecycle import HOLDING, WITHDRAWABLE
from erxhub.core.model import Accepted, Caller, Refused, Target
from erxhub.core.orders import order_status, seen_by_patient
from erxhub.ledger.entry import EntryKind, Header
from erxhub.ledger.store import ListingRow
from erxhub.queries.base import Paging, Query, ReadContext, View, listed, paging, place_of
from erxhub.v1 import common_pb2, events_pb2, patient_pb2, state_pb2

ENTRIES_READ_MAX: Final = 1_000
"""Access entries that one page of accesses goes through; then it ends, even short, and its token goes on."""

_LISTED_AT_ONCE: Final = 1_000
_PLACE_BYTES: Final = 8


async def _acting(
    view: View,
    method: str,
    request: patient_pb2.ListMyPrescriptionsRequest | patient_pb2.ListAccessesRequest,
) -> Acting | Refused:
    command = view.command(method, request)
    return await view.ask(lambda tx: guards.acting_person(tx, command, request.person_no, request.delegate_person_no))


# ---- my prescriptions ----


async def list_my_prescriptions(
    ctx: ReadContext, caller: Caller, request: patient_pb2.ListMyPrescriptionsRequest
) -> Accepted | Refused:
    """The person's prescriptions that took effect, newest first.

    Refusals: VCH_REVOKED, VCH_NO_DELEGATION, PAGE_TOKEN_INVALID.
    """
    method = "PatientService/ListMyPrescriptions"
    view = View(ctx, caller)
    acting = await _acting(view, method, request)
    if isinstance(acting, Refused):
        return acting
    page = paging(ctx, caller, method, request.page, [request.person_no, request.delegate_person_no])
    if isinstance(page, Refused):
        return page
    keys, next_token = await listed(page, "person_rx", acting.person_key, newest_first=True)
    states = await view.states(keys, state_pb2.PrescriptionState)
    names = await _hospital_names(view, {state.content.hospital_code for state in states.values()})
    reply = patient_pb2.ListMyPrescriptionsResponse(
        prescriptions=[_prescription_shown(state, names) for state in states.values()], next_page_token=next_token
    )
    shown = tuple(Target(key, acting.person_key) for key in states)
    return Accepted(reply, targets=shown or (Target(acting.person_key, acting.person_key),))


async def _hospital_names(view: View, codes: set[str]) -> dict[str, str]:
    keys = await view.names("institution", (code.encode() for code in sorted(codes)))
    states = await view.states(keys.values(), state_pb2.InstitutionState)
    return {state.institution_code: state.name for state in states.values()}


def _prescription_shown(
    state: state_pb2.PrescriptionState, hospital_names: Mapping[str, str]
) -> patient_pb2.MyPrescription:
    holder = next((order for order in state.orders if order_status(order) in HOLDING), None)
    deliveries = [order.delivery.status for order in state.orders if order.delivery.status]
    return patient_pb2.MyPrescription(
        rx_no=state.rx_no,
        hospital_code=state.content.hospital_code,
        hospital_name=hospital_names.get(state.content.hospital_code, ""),
        prescribed_at_ms=state.content.prescribed_at_ms,
        valid_until_ms=state.content.valid_until_ms,
        statuses=statuses(state),
        line_count=len(state.content.lines),
        held_by_pharmacy_code=holder.pharmacy_code if holder else "",
        # A settled order's hold does not end by time.
        hold_until_ms=holder.hold_until_ms if holder and order_status(holder) in WITHDRAWABLE else 0,
        delivery=deliveries[-1] if deliveries else common_pb2.DELIVERY_STATUS_UNSPECIFIED,
    )


# ---- who accessed them ----


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One target of an access entry that is a prescription of the person. `place` counts targets of the entry."""

    place: int
    rx_key: bytes
    header: Header
    caller_kind: str
    method: str
    outcome: str


async def list_accesses(
    ctx: ReadContext, caller: Caller, request: patient_pb2.ListAccessesRequest
) -> Accepted | Refused:
    """Accesses to the person's prescriptions, and refused attempts on them, newest first.

    What belongs to somebody else in the same entry is left out. A page may be short, or empty, and still have a token.
    Refusals: VCH_REVOKED, VCH_NO_DELEGATION, RX_UNKNOWN (the person has no such prescription in effect),
    PAGE_TOKEN_INVALID.
    """
    method = "PatientService/ListAccesses"
    view = View(ctx, caller)
    acting = await _acting(view, method, request)
    if isinstance(acting, Refused):
        return acting
    key, space, target = acting.person_key, index.PERSON_ACCESS, Target(acting.person_key, acting.person_key)
    if request.rx_no:
        seen = await view.ask(
            lambda tx: seen_by_patient(tx, acting.person_key, request.rx_no, "", is_delegate=bool(acting.delegate_key))
        )
        if isinstance(seen, Refused):
            return seen
        key, space, target = seen.key, index.ACCESS, Target(seen.key, acting.person_key)
    filters = [request.person_no, request.delegate_person_no, request.rx_no]
    page = paging(ctx, caller, method, request.page, filters)
    if isinstance(page, Refused):
        return page
    own = {key} if request.rx_no else await _own_prescriptions(ctx, acting.person_key)
    attempts, next_token = await _attempts(page, space, key, own)
    states = await view.states((attempt.rx_key for attempt in attempts), state_pb2.PrescriptionState)
    reply = patient_pb2.ListAccessesResponse(
        accesses=[
            patient_pb2.Access(
                institution=attempt.header.actor.partition("/")[2],
                role=attempt.caller_kind,
                at_ms=attempt.header.recorded_at_ms,
                method=attempt.method,
                outcome=attempt.outcome,
                rx_no=states[attempt.rx_key].rx_no,
            )
            for attempt in attempts
        ],
        next_page_token=next_token,
    )
    return Accepted(reply, targets=(target,))


async def _own_prescriptions(ctx: ReadContext, person_key: bytes) -> set[bytes]:
    """The streams of all prescriptions of the person that took effect."""
    own: set[bytes] = set()
    after = 0
    while rows := await ctx.store.listing("person_rx", person_key, after, _LISTED_AT_ONCE):
        own.update(row.stream_key for row in rows)
        after = rows[-1].position
    return own


async def _attempts(page: Paging, space: str, key: bytes, own: set[bytes]) -> tuple[list[_Attempt], str]:
    """One page of attempts on the prescriptions in `own`, and the token of the next page or "".

    A place is the position before which to go on, and how many targets of the first entry there were shown: an entry
    has up to 256 targets, so a page may end inside one.
    """
    before = int.from_bytes(page.place[:_PLACE_BYTES], "big")
    skipped = int.from_bytes(page.place[_PLACE_BYTES:], "big")
    found: list[_Attempt] = []
    read = 0
    while read < ENTRIES_READ_MAX:
        rows = await page.ctx.store.listing(space, key, before, page.size, newest_first=True)
        for row in rows:
            for attempt in await _of_entry(page.ctx, row, own):
                if attempt.place < skipped:
                    continue
                if len(found) == page.size:
                    return found, page.token(place_of(row.position + 1) + place_of(attempt.place))
                found.append(attempt)
            before, skipped = row.position, 0
        read += len(rows)
        if len(rows) < page.size:
            return found, ""
    return found, page.token(place_of(before) + place_of(0))


async def _of_entry(ctx: ReadContext, row: ListingRow, own: set[bytes]) -> list[_Attempt]:
    stored = (await ctx.store.entries(row.stream_key, row.version - 1, 1))[0]
    if stored.payload is None:
        return []
    header = Header.decode(stored.header)
    return [
        _Attempt(place, rx_key, header, caller_kind, method, outcome)
        for place, (rx_key, caller_kind, method, outcome) in enumerate(_targets(header, stored.payload))
        if rx_key in own
    ]


def _targets(header: Header, payload: bytes) -> Iterator[tuple[bytes, str, str, str]]:
    """(stream, kind of caller, method, outcome) of each target of an access or a refusal."""
    if header.kind == EntryKind.REFUSAL:
        refused = events_pb2.CommandRefused.FromString(payload)
        for stream in refused.stream_keys:
            yield stream, refused.caller_kind, refused.method, refused.code
    else:
        recorded = events_pb2.AccessRecorded.FromString(payload)
        for target in recorded.targets:
            yield target.stream_key, recorded.caller_kind, target.method, target.outcome


QUERIES: Final[Mapping[str, Query]] = {
    "PatientService/ListMyPrescriptions": list_my_prescriptions,
    "PatientService/ListAccesses": list_accesses,
}
