"""A pharmacy's side of a prescription: relation, order, hold, and the checks that every step repeats.

Owns who is related to a prescription, which of its orders a step is about, and what may still be taken of it. It never
emits an event. Everything that depends on a deadline is read from the state alone: what is due was fired before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from erxhub.core import catalog, guards
from erxhub.core.claim_arithmetic import parse_price_e6, parse_quantity_e4
from erxhub.core.keys import prescription_key
from erxhub.core.lifecycle import ENDED_ORDER, HOLDING, Machine, Role, permits, triggers_exist, triggers_from
from erxhub.core.model import Ahead, Command, Draft, Refused, Target
from erxhub.core.statuses import state_name
from erxhub.v1 import catalog_pb2, registry_pb2, signed_pb2, state_pb2

PRESCRIPTION: Final = "prescription"

WHOLE_E4: Final = 10_000
"""One whole unit, in the 1e-4 units of quantities."""

SERIAL_DIGITS: Final = 18
"""Random digits after the area in numbers of orders, quotes, settlements, sales and deliveries: 24 characters."""

_PHARMACY_SIDE: Final = frozenset({Role.PHARMACY, Role.PHARMACIST, Role.DISPENSER, Role.CHECKER, Role.COURIER})
_PATIENT_SIDE: Final = frozenset({Role.PATIENT, Role.DELEGATE})


PharmacyStatementT = TypeVar(
    "PharmacyStatementT",
    signed_pb2.ReviewStatement,
    signed_pb2.SettleStatement,
    signed_pb2.DispenseStatement,
    signed_pb2.HandOverStatement,
    signed_pb2.SignDeliveryStatement,
)


@dataclass(frozen=True, slots=True)
class Seen:
    """A prescription that the caller may know of.

    `pharmacy_code` is the pharmacy concerned: the caller, or the one that the patient named. `side` is who asks next.
    """

    key: bytes
    rx: state_pb2.PrescriptionState
    pharmacy_code: str
    side: frozenset[Role] = _PHARMACY_SIDE

    @property
    def targets(self) -> tuple[Target, ...]:
        """The prescription as the target of an access or a refusal."""
        return (Target(self.key, self.rx.person_key),)

    def own_orders(self) -> list[state_pb2.Order]:
        """All orders of the pharmacy, oldest first."""
        return [order for order in self.rx.orders if order.pharmacy_code == self.pharmacy_code]

    def open_orders(self) -> list[state_pb2.Order]:
        """The orders of the pharmacy that did not end, oldest first."""
        return [order for order in self.own_orders() if order_status(order) not in ENDED_ORDER]

    def held_order(self) -> state_pb2.Order | None:
        """The order with which the pharmacy holds the prescription now, or None."""
        return next((order for order in self.own_orders() if order_status(order) in HOLDING), None)

    def refuse(
        self,
        code: str,
        field: str = "",
        *,
        order: state_pb2.Order | None = None,
        detail: Mapping[str, str] | None = None,
        legal: Iterable[str] | None = None,
    ) -> Refused:
        """A refusal to somebody related: with an order, also its state and what may be done next."""
        shown = dict(detail or {})
        if order is not None:
            shown["order"] = order_status(order)
            if legal is None:
                legal = _next_steps(Machine.ORDER, order_status(order), self.side)
        return Refused(code, field=field, detail=shown, targets=self.targets, legal=tuple(legal or ()))


class Step(NamedTuple):
    """A step of a pharmacy on a prescription that it is related to."""

    pharmacy: state_pb2.InstitutionState
    seen: Seen


# ---- names of states ----


def order_status(order: state_pb2.Order) -> str:
    """The order's state as the tables name it."""
    return state_name(Machine.ORDER, order.status)


def claim_status(order: state_pb2.Order) -> str:
    """The state of the order's settlement as the tables name it."""
    return state_name(Machine.SETTLEMENT, order.claim.status)


def dispense_status(order: state_pb2.Order) -> str:
    """The state of the order's dispensing as the tables name it."""
    return state_name(Machine.DISPENSE, order.dispense.status)


def delivery_status(order: state_pb2.Order) -> str:
    """The state of the order's delivery as the tables name it."""
    return state_name(Machine.DELIVERY, order.delivery.status)


def _next_steps(machine: Machine, state: str, side: frozenset[Role]) -> Iterator[str]:
    return (trigger for trigger, roles in triggers_from(machine, state) if roles & side)


def delivery_steps(order: state_pb2.Order) -> tuple[str, ...]:
    """What may happen next to the order's delivery, whoever does it."""
    return tuple(_next_steps(Machine.DELIVERY, delivery_status(order), _PHARMACY_SIDE | _PATIENT_SIDE))


# ---- refusals ----


def unknown(targets: tuple[Target, ...] = ()) -> Refused:
    """The one answer to somebody unrelated, whether the prescription exists or not (I21)."""
    return Refused("RX_UNKNOWN", field="rx_no", targets=targets)


# ---- who may know of a prescription ----


def _is_related(rx: state_pb2.PrescriptionState, pharmacy_code: str) -> bool:
    if any(order.pharmacy_code == pharmacy_code for order in rx.orders):
        return True
    return any(held.pharmacy_code == pharmacy_code and is_issued(held) for held in rx.authorizations)


def is_issued(authorization: state_pb2.Authorization) -> bool:
    """Whether the authorisation still lets its pharmacy download."""
    name = state_name(Machine.AUTHORIZATION, authorization.status)
    return permits(Machine.AUTHORIZATION, name, "download", Role.PHARMACY)


def seen_by_pharmacy(tx: Draft, command: Command, rx_no: str) -> Seen | Refused:
    """The prescription, if the calling pharmacy has or had an order on it, or has a live authorisation.

    Refusals: RX_UNKNOWN, with the same bytes for everything else.
    """
    key = prescription_key(rx_no)
    rx = tx.state(key, state_pb2.PrescriptionState)
    if rx is None:
        return unknown()
    seen = Seen(key, rx, command.caller.id)
    if not _is_related(rx, command.caller.id):
        return unknown(seen.targets)
    return guards.erased("rx_no", Target(key)) if rx.erased_version else seen


def seen_by_patient(
    tx: Draft, person_key: bytes, rx_no: str, pharmacy_code: str, *, is_delegate: bool
) -> Seen | Refused:
    """The person's own prescription, once it took effect. Refusals: RX_UNKNOWN."""
    key = prescription_key(rx_no)
    rx = tx.state(key, state_pb2.PrescriptionState)
    if rx is None:
        return unknown()
    role = Role.DELEGATE if is_delegate else Role.PATIENT
    seen = Seen(key, rx, pharmacy_code, frozenset({role}))
    if rx.person_key != person_key or not rx.uploaded_version:
        return unknown(seen.targets)
    return seen


def at_counter(tx: Draft, command: Command) -> state_pb2.InstitutionState | Refused:
    """The calling pharmacy with its base agreement in force. Refusals: INST_UNKNOWN, AGR_INACTIVE."""
    pharmacy = guards.institution(tx, command.caller.id)
    if isinstance(pharmacy, Refused):
        return pharmacy
    return guards.agreement(tx, pharmacy, registry_pb2.AGREEMENT_KIND_BASE) or pharmacy


# ---- the checks of a step ----


def want(tx: Draft, command: Command, rx_no: str, names: Sequence[tuple[str, bytes]] = ()) -> None:
    """`ahead`, for a step that does not say it ahead."""
    tx.want_ahead(ahead(command, rx_no, names))


def ahead(
    command: Command,
    rx_no: str,
    names: Sequence[tuple[str, bytes]] = (),
    *,
    streams: Sequence[bytes] = (),
    voucher_ref: str = "",
) -> Ahead:
    """Everything that a request alone tells, in one round: the caller, the prescription and the given look-ups."""
    return Ahead(
        (("institution", command.caller.id.encode()), *names),
        (prescription_key(rx_no), *streams),
        (("voucher_ref", voucher_ref),) if voucher_ref else (),
        ledger=True,
    )


def forward(
    tx: Draft, command: Command, rx_no: str, *, with_drugs: bool = False, with_account: bool = False
) -> Step | Refused:
    """The checks of every step that carries the chain on: pharmacy, agreement, relation, insured person.

    `with_drugs` loads the catalogue rows of the prescription's lines, `with_account` the person's account, both before
    anything is checked that they would have to wait for.
    Refusals: INST_UNKNOWN, AGR_INACTIVE, RX_UNKNOWN, PSN_INACTIVE.
    """
    pharmacy = at_counter(tx, command)
    seen = seen_by_pharmacy(tx, command, rx_no)
    if isinstance(pharmacy, Refused):
        return guards.about(pharmacy, *seen.targets)
    if isinstance(seen, Refused):
        return seen
    refused = insured(tx, seen, with_drugs=with_drugs, with_account=with_account)
    return refused or Step(pharmacy, seen)


def insured(tx: Draft, seen: Seen, *, with_drugs: bool = False, with_account: bool = False) -> Refused | None:
    """The person of the prescription is neither paused nor dead. Refusals: PSN_INACTIVE."""
    edition = catalog.current_edition(tx, catalog.DRUGS) if with_drugs else None
    codes = sorted({line.drug_code for line in seen.rx.content.lines}) if edition else []
    account_key = guards.person(tx, seen.rx.person_key).account_key if with_account else seen.rx.person_key
    tx.want(streams=[account_key], catalog=[(catalog.DRUGS, edition or "", code) for code in codes])
    person = guards.person_active(tx, seen.rx.person_key)
    return guards.about(person, *seen.targets) if isinstance(person, Refused) else None


def finishing(tx: Draft, command: Command, rx_no: str) -> Step | Refused:
    """The checks of a step that gives something back, or brings to its end what was picked up.

    A suspended agreement or insurance must not stand in its way.

    Refusals: INST_UNKNOWN, RX_UNKNOWN.
    """
    pharmacy = guards.institution(tx, command.caller.id)
    seen = seen_by_pharmacy(tx, command, rx_no)
    if isinstance(pharmacy, Refused):
        return guards.about(pharmacy, *seen.targets)
    return seen if isinstance(seen, Refused) else Step(pharmacy, seen)


def fillable(seen: Seen, *, undo_stops: bool = True) -> Refused | None:
    """The prescription is in force and something of it is left.

    `undo_stops`: a requested withdrawal stands in the way too (X-22).
    Refusals: RX_ALREADY_USED, RX_NOT_EFFECTIVE (expired, undone, frozen, or a withdrawal waits).
    """
    rx = seen.rx
    if not triggers_exist(Machine.USE, state_name(Machine.USE, rx.use_status)):
        return seen.refuse("RX_ALREADY_USED", "rx_no")
    name = state_name(Machine.RX, rx.rx_status)
    if not is_in_force(rx) or (undo_stops and rx.undo_requested):
        detail = {"rx": name, "undo_requested": str(rx.undo_requested).lower()}
        return seen.refuse("RX_NOT_EFFECTIVE", "rx_no", detail=detail)
    return None


def is_in_force(rx: state_pb2.PrescriptionState) -> bool:
    """Whether goods may go out on the prescription as far as its own status tells."""
    return permits(Machine.RX, state_name(Machine.RX, rx.rx_status), "last fill out", Role.HUB)


def holding(seen: Seen) -> state_pb2.Order | Refused:
    """The order with which the caller holds the prescription now. Refusals: ORDER_HOLD_LOST."""
    return seen.held_order() or seen.refuse("ORDER_HOLD_LOST", "rx_no")


# ---- quantities ----


def prescribed_e4(rx: state_pb2.PrescriptionState, use: state_pb2.LineUse) -> int:
    """What may be taken of a line in all, every fill counted (1e-4 units)."""
    return use.prescribed_e4 * max(rx.fills_allowed, 1)


def remaining_e4(rx: state_pb2.PrescriptionState, use: state_pb2.LineUse) -> int:
    """What may be taken of a line now: the rest of the fill that is running (1e-4 units)."""
    left_in_all = prescribed_e4(rx, use) - use.out_e4
    if left_in_all <= 0:
        return 0
    return min(left_in_all, use.prescribed_e4 - use.out_e4 % use.prescribed_e4)


def quantity_text(quantity_e4: int) -> str:
    """1e-4 units as decimal text without trailing zeros: 15000 → "1.5"."""
    whole, part = divmod(quantity_e4, WHOLE_E4)
    return f"{whole}.{part:04d}".rstrip("0").rstrip(".")


def _number(parse: Callable[[str], int], text: str) -> int | None:
    # The field rule also lets "007" pass, which is no plain decimal.
    try:
        return parse(text)
    except ValueError:
        return None


def read_quantity_e4(text: str) -> int | None:
    """A quantity in 1e-4 units, or None when the text is no plain decimal."""
    return _number(parse_quantity_e4, text)


def read_price_e6(text: str) -> int | None:
    """A price in 1e-6 yuan, or None when the text is no plain decimal."""
    return _number(parse_price_e6, text)


# ---- drugs, numbers, statements ----


def drugs_of(tx: Draft, codes: Iterable[str]) -> dict[str, catalog_pb2.Drug]:
    """Those of the drugs that the edition in force has, by code."""
    edition = catalog.current_edition(tx, catalog.DRUGS)
    if edition is None:
        return {}
    found = {code: catalog.drug(tx, edition, code) for code in codes}
    return {code: drug for code, drug in found.items() if drug is not None}


def new_number(tx: Draft, area_code: str) -> str:
    """A number for a new order, quote, settlement, sale or delivery: the area and random digits."""
    return area_code + tx.draw.digits(SERIAL_DIGITS)


def claimed(command: Command, message_type: type[PharmacyStatementT]) -> PharmacyStatementT | Refused:
    """The content of the request's statement, which names the caller, not proven yet (see `guards.claimed`).

    Refusals: SIG_INVALID, INPUT_MALFORMED, INST_CODE, INST_IMPERSONATION.
    """
    found = guards.claimed(command, "statement", message_type)
    if isinstance(found, Refused):
        return found
    return guards.own_institution(command, found.pharmacy_code, "statement.pharmacy_code") or found


def key_names(command: Command) -> list[tuple[str, bytes]]:
    """The look-ups of the statement's signing key, for the first round."""
    return [("revoked_key", fact.key_id.encode()) for fact in command.evidence.signatures.get("statement", ())[:1]]


def proven_by_seal(
    tx: Draft, command: Command, message_type: type[PharmacyStatementT], targets: tuple[Target, ...]
) -> PharmacyStatementT | Refused:
    """The statement under the seal of the calling pharmacy. Refusals as `guards.signed`."""
    code = command.caller.id
    proven = guards.signed(tx, command, "statement", message_type, code, code)
    return guards.about(proven, *targets) if isinstance(proven, Refused) else proven


def replayed(tx: Draft, seen: Seen, order: state_pb2.Order, signed_at_ms: int, not_before_ms: int) -> Refused | None:
    """RX_TIME for a statement, which names no order, from before it can have been made for this one.

    So one that served an earlier order of the prescription at this pharmacy serves no later one.
    """
    if guards.follows(tx, signed_at_ms, not_before_ms):
        return None
    detail = {"not_before_ms": str(not_before_ms)}
    return seen.refuse("RX_TIME", "statement.signed_at_ms", order=order, detail=detail)


def same_person(
    tx: Draft, command: Command, seen: Seen, voucher_ref: str, business_types: tuple[str, ...]
) -> guards.Reference | Refused:
    """The live voucher reference of the prescription's person (his own, or shown by his delegate).

    Refusals: VCH_INVALID, VCH_EXPIRED, VCH_WRONG_BUSINESS, VCH_SUBJECT_MISMATCH.
    """
    shown = guards.reference(tx, command, voucher_ref, business_types, "voucher_ref")
    if isinstance(shown, Refused):
        return guards.about(shown, *seen.targets)
    if shown.person_key != seen.rx.person_key:
        mismatch = seen.refuse("VCH_SUBJECT_MISMATCH", "voucher_ref")
        return guards.about(mismatch, Target(shown.voucher_key, shown.person_key))
    return shown
