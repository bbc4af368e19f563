"""How long a record has to be kept (保存期限, P-10, P-11, P-13), and the erasure of what it says when that is over.

Owns the retention classes of a prescription, the rule that the longest wins, when a voucher and an account may go, and
which names go with the content. How the content goes is the store's. It must never touch an entry: that it exists, and
its place, stay provable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, timedelta
from typing import Any, Final, NamedTuple

from erxhub.core import guards
from erxhub.core.fold import STATE_TYPES
from erxhub.core.index import hospital_rx_name
from erxhub.core.keys import prescription_key
from erxhub.core.lifecycle import START, Machine, Role, permits
from erxhub.core.model import Accepted, Command, Draft, Handler, Outcome, Refused, Target
from erxhub.core.statuses import is_open
from erxhub.policy.codes import has_fact
from erxhub.policy.pack import DAY_MS, china_date, day_begins_ms
from erxhub.policy.rules import Rules
from erxhub.v1 import common_pb2, events_pb2, registry_pb2, state_pb2

PRESCRIPTIONS_LOOKED_AT: Final = 100
"""Prescriptions of one visit that are asked for; a visit with as many keeps its content."""

_PARAMETERS: Final[Mapping[int, str]] = {
    registry_pb2.RETENTION_CLASS_ORDINARY: "retention_ordinary",
    registry_pb2.RETENTION_CLASS_PSYCHOTROPIC_2: "retention_psychotropic_2",
    registry_pb2.RETENTION_CLASS_NARCOTIC: "retention_narcotic",
    registry_pb2.RETENTION_CLASS_ONLINE_SALE: "retention_online_sale",
    registry_pb2.RETENTION_CLASS_DRUG_EXPIRY: "retention_drug_expiry",
    registry_pb2.RETENTION_CLASS_INTERNET_CONSULTATION: "retention_internet_consultation",
}


class Kept(NamedTuple):
    """`last_on` is the last day in China on which the record has to be there."""

    last_on: date
    retention_class: registry_pb2.RetentionClass.ValueType

    @property
    def until_ms(self) -> int:
        """The last millisecond of that day."""
        return day_begins_ms(self.last_on) + DAY_MS - 1


def kept(rules: Rules, rx: state_pb2.PrescriptionState, encounter: state_pb2.EncounterState | None) -> Kept:
    """How long the record is kept, by the longest class that applies, under the parameters in force today."""
    ended_on = china_date(max(_instants(rx, encounter)))
    classes = [(retention_class, ended_on) for retention_class in _classes(rx, encounter)]
    sold = [order for order in rx.orders if _is_online_sale(order)]
    if sold:
        classes.append((registry_pb2.RETENTION_CLASS_ONLINE_SALE, ended_on))
        expiries = [date.fromisoformat(lot.expires_on) for order in sold for lot in order.dispense.lots]
        if expiries:
            classes.append((registry_pb2.RETENTION_CLASS_DRUG_EXPIRY, max(expiries)))
    return max(
        Kept(_years_later(from_on, rules.integer(_PARAMETERS[retention_class])), retention_class)
        for retention_class, from_on in classes
    )


def _classes(
    rx: state_pb2.PrescriptionState, encounter: state_pb2.EncounterState | None
) -> Iterator[registry_pb2.RetentionClass.ValueType]:
    kind = rx.content.rx_type
    if has_fact("rx_type_code", kind, "narcotic"):
        yield registry_pb2.RETENTION_CLASS_NARCOTIC
    elif has_fact("rx_type_code", kind, "psychotropic_2"):
        yield registry_pb2.RETENTION_CLASS_PSYCHOTROPIC_2
    else:
        yield registry_pb2.RETENTION_CLASS_ORDINARY
    if encounter is not None and encounter.visit_kind == common_pb2.VISIT_KIND_INTERNET:
        yield registry_pb2.RETENTION_CLASS_INTERNET_CONSULTATION


def _is_online_sale(order: state_pb2.Order) -> bool:
    """Ordered from afar, or brought to the door; and paid for."""
    from_afar = order.by_patient or order.mode == common_pb2.FULFILMENT_MODE_DELIVERY
    return from_afar and order.claim.settled_at_ms > 0


def _instants(rx: state_pb2.PrescriptionState, encounter: state_pb2.EncounterState | None) -> Iterator[int]:
    """The instants of a record's steps, with the end of its validity: the newest ends it."""
    yield from (rx.prechecked_at_ms, rx.content.prescribed_at_ms, rx.content.valid_until_ms)
    if encounter is not None:
        yield from (encounter.registered_at_ms, encounter.started_at_ms)
    for order in rx.orders:
        yield from (order.created_at_ms, order.downloaded_at_ms, order.reviewed_at_ms, order.claim.quoted_at_ms)
        yield from (order.claim.settled_at_ms, order.dispense.out_at_ms, order.handed_over_at_ms)
        yield order.delivery.last_step_at_ms


def _years_later(day: date, years: int) -> date:
    try:
        return day.replace(year=day.year + years)
    except ValueError:  # 29 February
        return date(day.year + years, 3, 1)


def erase_content(tx: Draft, command: Command) -> Outcome:
    """Erase what a prescription's entries say, once no class keeps it any longer (清除内容, I25).

    The encounter goes with the last prescription of it. Leaves `content.erased` in each stream.
    Refusals: RX_UNKNOWN (not of the agency's area), CONTENT_ERASED, RETENTION with the earliest day and the class.
    """
    request: registry_pb2.EraseContentRequest = command.request
    rx_key = prescription_key(request.rx_no)
    rx = tx.state(rx_key, state_pb2.PrescriptionState)
    if rx is None:
        return Refused("RX_UNKNOWN", field="rx_no")
    target = Target(rx_key, rx.person_key)
    if not guards.area_covers(command.caller.area_code, request.rx_no[:6]):
        return Refused("RX_UNKNOWN", field="rx_no", targets=(target,))
    if not _may_erase(rx, Role.AGENCY):
        return guards.erased("rx_no", Target(rx_key))
    encounter = tx.state(rx.encounter_key, state_pb2.EncounterState)
    kept_by = kept(tx.rules(request.rx_no[:6]), rx, encounter)
    if tx.now_ms <= kept_by.until_ms:
        detail = {
            "earliest": (kept_by.last_on + timedelta(days=1)).isoformat(),
            "retention_class": registry_pb2.RetentionClass.Name(kept_by.retention_class).removeprefix(
                "RETENTION_CLASS_"
            ),
        }
        return Refused("RETENTION", field="rx_no", detail=detail, targets=(target,))
    return _erased(tx, rx_key, kept_by, request.legal_basis, Role.AGENCY)


# ---- by the clock ----


class Found(NamedTuple):
    """A stream that may be past its retention, with what only a walk through the log can tell of it.

    `rested_on_by`: of a voucher, (kind, key) of each stream with a step that quoted it. `ended_at_ms`: of an account,
    its last step and its person's.
    """

    stream_kind: str
    stream_key: bytes
    rested_on_by: tuple[tuple[str, bytes], ...] = ()
    ended_at_ms: int = 0


class Over(NamedTuple):
    """An erasure by the clock, and the area whose rules decided it. The reply goes to nobody."""

    accepted: Accepted
    area_code: str


def erase_when_over(tx: Draft, found: Found) -> Over | None:
    """The same by the clock, under the legal basis of the pack; None where there is nothing to erase yet, or any more.

    A prescription goes when `kept` says so, a voucher a year after it and with the last record that rests on it, an
    account when the longest class is over since the last step of a dead person's, with no money in it and no
    prescription left.
    """
    return _OVER[found.stream_kind](tx, found)


def _prescription_over(tx: Draft, found: Found) -> Over | None:
    rx = tx.state(found.stream_key, state_pb2.PrescriptionState)
    if rx is None or not _may_erase(rx, Role.TIMER):
        return None
    area_code = rx.rx_no[:6]
    rules = tx.rules(area_code)
    kept_by = kept(rules, rx, tx.state(rx.encounter_key, state_pb2.EncounterState))
    if tx.now_ms <= kept_by.until_ms:
        return None
    return Over(_erased(tx, found.stream_key, kept_by, rules.text("retention_erasure_basis"), Role.TIMER), area_code)


def voucher_kept(rules: Rules, voucher: state_pb2.VoucherState) -> Kept:
    """How long a code is kept for its own sake: as an ordinary record, from the last instant at which it was good."""
    ended_at_ms = max(voucher.issued_at_ms, voucher.expires_at_ms, voucher.ref_expires_at_ms)
    return _kept_by(rules, registry_pb2.RETENTION_CLASS_ORDINARY, ended_at_ms)


def account_kept(rules: Rules, ended_at_ms: int) -> Kept:
    """How long an account is kept: any class may have needed it, so the longest that there is wins."""
    return max(_kept_by(rules, each, ended_at_ms) for each in _PARAMETERS)  # type: ignore[arg-type]


def _kept_by(rules: Rules, retention_class: registry_pb2.RetentionClass.ValueType, ended_at_ms: int) -> Kept:
    years = rules.integer(_PARAMETERS[retention_class])
    return Kept(_years_later(china_date(ended_at_ms), years), retention_class)


def voucher_may_go(voucher: state_pb2.VoucherState, resting: Iterable[Any]) -> bool:
    """Whether the code was used up or is over, and of everything that rests on it the content was erased."""
    is_over = not is_open(Machine.VOUCHER, voucher.status) and _may_erase(voucher, Role.TIMER)
    return is_over and all(state is not None and state.erased_version for state in resting)


def account_may_go(account: state_pb2.AccountState, person: state_pb2.PersonState) -> bool:
    """Whether nothing can move in it any more, and no money is in it."""
    is_over = not is_open(Machine.PERSON, person.status) and _may_erase(account, Role.TIMER)
    return is_over and not account.balance_fen


def _voucher_over(tx: Draft, found: Found) -> Over | None:
    voucher = tx.state(found.stream_key, state_pb2.VoucherState)
    tx.want(streams=[key for _, key in found.rested_on_by])
    resting = (tx.state(key, STATE_TYPES[kind]) for kind, key in found.rested_on_by)
    if voucher is None or not voucher_may_go(voucher, resting):
        return None
    area_code = guards.person(tx, voucher.person_key).insured_area_code
    return _alone(tx, found, area_code, voucher_kept(tx.rules(area_code), voucher))


def _account_over(tx: Draft, found: Found) -> Over | None:
    account = tx.state(found.stream_key, state_pb2.AccountState)
    if account is None or not _may_erase(account, Role.TIMER):
        return None
    person = guards.person(tx, account.person_key)
    if not account_may_go(account, person) or tx.listing("person_rx", account.person_key, 1):
        return None
    area_code = person.insured_area_code
    return _alone(tx, found, area_code, account_kept(tx.rules(area_code), found.ended_at_ms))


def _alone(tx: Draft, found: Found, area_code: str, kept_by: Kept) -> Over | None:
    """The erasure of one stream with which nothing else goes."""
    if tx.now_ms <= kept_by.until_ms:
        return None
    said = _said(kept_by, tx.rules(area_code).text("retention_erasure_basis"))
    tx.emit(found.stream_kind, found.stream_key, "content.erased", said)
    return Over(Accepted(registry_pb2.EraseContentResponse(), erasures=((found.stream_key, ()),)), area_code)


_OVER: Final[Mapping[str, Callable[[Draft, Found], Over | None]]] = {
    "prescription": _prescription_over,
    "voucher": _voucher_over,
    "account": _account_over,
}


# ---- both ways ----


def _said(kept_by: Kept, legal_basis: str) -> events_pb2.ContentErased:
    return events_pb2.ContentErased(
        legal_basis=legal_basis, retention_class=kept_by.retention_class, kept_until_ms=kept_by.until_ms
    )


def _erased(tx: Draft, rx_key: bytes, kept_by: Kept, legal_basis: str, role: Role) -> Accepted:
    """Say in each stream that what it said is erased; the encounter goes with the last prescription of it."""
    rx = tx.state(rx_key, state_pb2.PrescriptionState)
    assert rx is not None, "who calls has looked"
    encounter_key = rx.encounter_key
    encounter = tx.state(encounter_key, state_pb2.EncounterState)
    own_names = (hospital_rx_name(rx.content.hospital_code, rx.content.hospital_rx_no),)
    erased = _said(kept_by, legal_basis)
    with_visit = encounter is not None and _may_erase(encounter, role) and _is_last(tx, rx_key, encounter_key)
    erasures: list[tuple[bytes, tuple[tuple[str, bytes], ...]]] = [(rx_key, own_names)]
    if with_visit:
        tx.emit("encounter", encounter_key, "content.erased", erased)
        erasures.append((encounter_key, ()))
    tx.emit("prescription", rx_key, "content.erased", erased)
    reply = registry_pb2.EraseContentResponse(
        retention_class=kept_by.retention_class, kept_until_ms=kept_by.until_ms, encounter_erased=with_visit
    )
    return Accepted(reply, erasures=tuple(erasures))


def _may_erase(state: Any, role: Role) -> bool:
    """Whether the content of a stream is there, as its state tells, and `role` may erase it."""
    return permits(Machine.CONTENT, "ERASED" if state.erased_version else START, "erase content", role)


def _is_last(tx: Draft, rx_key: bytes, encounter_key: bytes) -> bool:
    """Whether every other prescription of the visit was erased: before, then it is no longer in the visit's list, or in
    the same commit. The states are read so that the decision rests on them: of two hubs that erase the last two
    prescriptions at the same instant one decides again.
    """
    for key in tx.listing("encounter_rx", encounter_key, PRESCRIPTIONS_LOOKED_AT):
        other = tx.state(key, state_pb2.PrescriptionState) if key != rx_key else None
        if other is not None and not other.erased_version:
            return False
    return True


HANDLERS: Final[Mapping[str, Handler]] = {"RegistryService/EraseContent": erase_content}
