"""The checker's own picture of everything: built from the events alone, in plain dictionaries, next to the hub's fold.

Owns the invariants that are about what an event may follow. Every `_on_…` says what an event needs, then what it
changes. Must never use the hub's states, transition tables or guards: what they get wrong has to show here.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from erxhub.core.keys import trace_code_key
from erxhub.v1 import common_pb2, events_pb2, registry_pb2, signed_pb2
from tests.simulation import money
from tests.simulation.cast import HOUR_MS, MINUTE_MS
from tests.simulation.parties import Parties
from tests.simulation.reading import Line, Violation

HOLD_MS: Final = 2 * HOUR_MS
HOLD_EXTENSION_MS: Final = 30 * MINUTE_MS

TO_THE_PATIENT: Final = frozenset(
    {
        "dispense.handed_over",
        "delivery.requested",
        "delivery.sign_code_renewed",
        "delivery.try_counted",
        "delivery.assigned",
        "delivery.picked_up",
        "delivery.in_transit",
        "delivery.arrived",
        "delivery.signed",
        "delivery.refused",
        "delivery.lost",
        "delivery.returning",
        "delivery.returned",
        "delivery.cancelled",
        "order.completed",
    }
)
GIVEN_BACK: Final = frozenset({"settlement.undone", "settlement.reversed", "dispense.voided", "order.released"})
AFTER_THE_END: Final[Mapping[str, frozenset[str]]] = {
    "UNDONE": frozenset(),
    "EXPIRED": TO_THE_PATIENT | GIVEN_BACK,
    "EXHAUSTED": TO_THE_PATIENT,
}
"""I23: goods that were out reach the patient, a sale that was settled before is given back, and nothing else."""

_OPERATORS: Final = frozenset(
    {
        "encounter.started",
        "diagnosis.recorded",
        "diagnosis.amended",
        "prescription.hospital_reviewed",
        "prescription.signed",
        "prescription.undo_requested",
        "review.passed",
        "review.rejected",
        "review.returned_to_doctor",
        "dispense.picked",
        "dispense.checked",
        "delivery.picked_up",
    }
)
"""Events of a person who acts for an institution: their entries name him."""

_TIMERS: Final = frozenset(
    {
        "voucher.expired",
        "agreement.terminated",
        "authorization.expired",
        "settlement.quote_expired",
        "order.expired",
        "prescription.expired",
        "prescription.undone",
        "authorization.revoked",
        "delivery.cancelled",
    }
)
"""What may happen without a request: deadlines and what follows from them."""

_OF_THE_HUB: Final = frozenset({"ledger.opened", "hub_key.registered"})


@dataclass(slots=True)
class Order:
    """One pharmacy's order on a prescription."""

    number: str
    pharmacy: str
    holds: bool = False
    hold_until_ms: int = 0
    extended: bool = False
    review: str = ""
    reviewer: str = ""
    quote: Any = None
    settled: str = ""
    """"", SETTLED, SELF_PAID or GIVEN_BACK."""
    claim: Any = None
    settlement_year: int = 0
    dispenser: str = ""
    checker: str = ""
    out: bool = False
    over: bool = False


@dataclass(slots=True)
class Rx:
    """One prescription."""

    number: str
    content: common_pb2.Prescription
    person_key: bytes
    status: str = "PRECHECKED"
    prescribed_e4: dict[int, int] = field(default_factory=dict)
    out_e4: Counter[int] = field(default_factory=Counter)
    orders: dict[str, Order] = field(default_factory=dict)
    shown_to: set[str] = field(default_factory=set)
    """Pharmacies that ever had an authorisation or an order."""
    reviewed_sha256: bytes = b""
    signed_sha256: bytes = b""
    file_sha256: bytes = b""
    undo_requested: bool = False

    def holder(self) -> Order | None:
        """The order that holds it now."""
        return next((order for order in self.orders.values() if order.holds), None)


@dataclass(slots=True)
class Account:
    """One person's account, as a ledger of its own."""

    balance_fen: int
    moves: list[tuple[int, int, int, int, str]] = field(default_factory=list)
    """(sign, account, in scope, fund, settlement) of every event, oldest first."""
    years: dict[int, list[int]] = field(default_factory=dict)
    """In scope and fund by benefit year."""


class Model(Parties):
    """Everything that the events say. `take` raises a Violation for an event that must not be there."""

    def __init__(self, *, signatures: bool) -> None:
        super().__init__(signatures=signatures)
        self.rx: dict[bytes, Rx] = {}
        self.accounts: dict[bytes, Account] = {}
        self.sold_keys: set[bytes] = set()
        self.sold_codes: set[str] = set()
        self.taken_ids: set[tuple[str, str]] = set()
        self.fund_claimed_fen = 0
        """What the funds pay by the settlements that stand."""
        self.fund_moved_fen = 0
        """What they paid by the accounts' events."""
        self.uses_account: dict[str, bool] = {}
        """Whether a quote may use the account, by request id, as the robot asked."""
        self.due_moves: dict[tuple[bytes, int], tuple[bytes, Any, int]] = {}
        """Account events that wait for the prescription's event that they name."""
        self.blob: Callable[[bytes, bytes], bytes | None] = lambda key, digest: None
        self._sold_now: set[bytes] = set()

    # ---- every event ----

    def take(self, line: Line) -> None:
        """The next event."""
        self._i24(line)
        if line.stream_kind == "prescription":
            rx = self.rx.get(line.stream_key)
            if rx is not None and rx.status in AFTER_THE_END and line.name not in AFTER_THE_END[rx.status]:
                raise Violation("I23", f"{line.name} after {rx.status} of {rx.number}")
        on = getattr(self, "_on_" + line.name.replace(".", "_"), None)
        if on is not None:
            on(line, line.payload)

    def _i24(self, line: Line) -> None:
        kind, _, name = line.institution.partition("/")
        where = f"{line.name} at {line.position}"
        if not kind or not name:
            raise Violation("I24", f"{where} names no actor")
        if len(line.policy_digest) != 32:
            raise Violation("I24", f"{where} names no version of the rules")
        if kind == "hub":
            if line.name not in _TIMERS | _OF_THE_HUB or line.request_id:
                raise Violation("I24", f"{where} was nobody's request")
        elif not line.request_id:
            raise Violation("I24", f"{where} names no request")
        elif line.name in _OPERATORS and not line.operator:
            raise Violation("I24", f"{where} names no operator")

    def after_commit(self) -> None:
        """What must be so between two commits."""
        if self.due_moves:
            raise Violation("I7", "an account moved for no settlement")
        if self._sold_now:
            raise Violation("I9", "a trace code was sold with no goods going out")
        if self.fund_claimed_fen != self.fund_moved_fen:
            raise Violation("I7", f"settlements took {self.fund_claimed_fen} fen, the ledger {self.fund_moved_fen}")

    # ---- guards that hold at every step ----

    def _step(self, line: Line, rx: Rx) -> None:
        """Agreement, practitioner and insurance are read again at every step that carries the chain on (§ head)."""
        pharmacy = line.institution.partition("/")[2]
        active, begins, ends = self.agreements.get((pharmacy, registry_pb2.AGREEMENT_KIND_BASE), (False, 0, 0))
        if not active or not begins <= line.at_ms <= ends:
            raise Violation("STEP", f"{line.name} without an agreement in force of {pharmacy}")
        if self.people[rx.person_key].status != registry_pb2.PERSON_STATUS_ACTIVE:
            raise Violation("STEP", f"{line.name} for a person who is not insured now")

    # ---- accounts ----

    def _on_account_opened(self, line: Line, payload: Any) -> None:
        self.accounts[line.stream_key] = Account(payload.balance_fen)

    def _on_account_debited(self, line: Line, payload: Any) -> None:
        self._move(line, payload, 1)

    def _on_account_restored(self, line: Line, payload: Any) -> None:
        self._move(line, payload, -1)

    def _move(self, line: Line, payload: Any, sign: int) -> None:
        account = self.accounts[line.stream_key]
        amounts = (payload.amount_fen, payload.in_scope_fen, payload.fund_fen, payload.settlement_id)
        last = next((move for move in reversed(account.moves) if move[4] == payload.settlement_id), None)
        if sign < 0 and (last is None or last != (1, *amounts)):
            raise Violation("I20", f"{line.name} at {line.position} gives back {amounts} of {last}")
        if sign > 0 and last is not None and last != (-1, *amounts):
            raise Violation("I20", f"{line.name} at {line.position} takes {amounts} after {last}")
        account.moves.append((sign, *amounts))
        account.balance_fen -= sign * payload.amount_fen
        if account.balance_fen < 0:
            raise Violation("I7", f"the account is overdrawn by {-account.balance_fen} fen at {line.position}")
        year = account.years.setdefault(payload.benefit_year, [0, 0])
        year[0] += sign * payload.in_scope_fen
        year[1] += sign * payload.fund_fen
        if min(year) < 0:
            raise Violation("I7", f"the totals of {payload.benefit_year} are below zero at {line.position}")
        self.fund_moved_fen += sign * payload.fund_fen
        self.due_moves[payload.rx_key, payload.rx_version] = (line.stream_key, payload, sign)

    def _moved(self, line: Line, rx: Rx, claim: Any, sign: int, year: int) -> None:
        """The account moved with this event, by exactly the claim's amounts; or there was nothing to move."""
        invariant = "I7" if sign > 0 else "I20"
        amounts = claim.amounts
        wanted = (amounts.account_fen, amounts.in_scope_fen, amounts.pooled_fund_fen)
        due = self.due_moves.pop((line.stream_key, line.version), None)
        where = f"{line.name} at {line.position}"
        self.fund_claimed_fen += sign * amounts.fund_fen
        if due is None:
            if any(wanted):
                raise Violation(invariant, f"{where} moved no account, and should have moved {wanted}")
            return
        key, payload, moved = due
        if key != self.people[rx.person_key].account_key:
            raise Violation(invariant, f"{where} moved another person's account")
        if moved != sign or (payload.amount_fen, payload.in_scope_fen, payload.fund_fen) != wanted:
            raise Violation(invariant, f"{where} moved other amounts than {wanted}")
        if payload.settlement_id != claim.settlement_id or payload.benefit_year != year:
            raise Violation(invariant, f"{where} moved the totals of {payload.benefit_year}, not of {year}")

    # ---- visits ----

    def _on_encounter_registered(self, line: Line, payload: Any) -> None:
        if payload.voucher_key:
            self._shown(line, payload.voucher_key, payload.person_key, "01201", "03131")

    def _on_diagnosis_recorded(self, line: Line, payload: Any) -> None:
        hospital = line.institution.partition("/")[2]
        self._works(line, payload.doctor_code, hospital, "STEP")
        self._signed(line, payload.statement, signed_pb2.DiagnosisStatement, payload.doctor_code, hospital)

    _on_diagnosis_amended = _on_diagnosis_recorded

    # ---- prescriptions ----

    def _on_prescription_prechecked(self, line: Line, payload: Any) -> None:
        content = payload.content
        if payload.fills_allowed != 1:
            raise Violation("I2", f"{payload.fills_allowed} fills are allowed, and the pack knows no repeats")
        rx = Rx(payload.rx_no, content, payload.person_key)
        rx.prescribed_e4 = {found.line_no: _e4(found.quantity) for found in content.lines}
        self.rx[line.stream_key] = rx

    def _on_prescription_hospital_reviewed(self, line: Line, payload: Any) -> None:
        rx = self.rx[line.stream_key]
        hospital = rx.content.hospital_code
        if payload.pharmacist_code == rx.content.doctor_code:
            raise Violation("I16", f"the prescriber reviewed {rx.number} himself")
        self._works(line, payload.pharmacist_code, hospital, "I16")
        statement = self._signed(
            line, payload.statement, signed_pb2.HospitalReviewStatement, payload.pharmacist_code, hospital
        )
        rx.reviewed_sha256 = statement.prescription_sha256

    def _on_prescription_signed(self, line: Line, payload: Any) -> None:
        rx = self.rx[line.stream_key]
        rx.status = "SIGNED"
        rx.signed_sha256 = payload.prescription_sha256

    def _on_prescription_uploaded(self, line: Line, payload: Any) -> None:
        rx = self.rx[line.stream_key]
        content = rx.content
        digest = hashlib.sha256(payload.prescription.payload).digest()
        doctor, hospital = content.doctor_code, content.hospital_code
        found = self.staff.get(doctor)
        if found is None or hospital not in found.institutions or found.since_ms > content.prescribed_at_ms:
            raise Violation("I15", f"{doctor} was not registered at {hospital} when he prescribed {rx.number}")
        self._works(line, doctor, hospital, "STEP")
        document = self._signed(line, payload.prescription, signed_pb2.PrescriptionDocument, doctor, hospital)
        seal = self._signed(line, payload.seal, signed_pb2.UploadSealStatement, hospital, hospital)
        if not digest == rx.signed_sha256 == rx.reviewed_sha256 == seal.prescription_sha256:
            raise Violation("I13", f"the bytes of {rx.number} are not those that were signed")
        if seal.file_sha256 != payload.file_sha256:
            raise Violation("I13", f"the file of {rx.number} is not the one that was sealed")
        data = self.blob(line.stream_key, payload.file_sha256)
        if data is None or hashlib.sha256(data).digest() != payload.file_sha256:
            raise Violation("I13", f"the file of {rx.number} is not the one that came")
        if document.prescription.valid_until_ms != content.valid_until_ms:
            raise Violation("I12", f"{rx.number} was signed with another end of validity")
        if document.prescription != content:
            raise Violation("I13", f"{rx.number} was signed with another content than was checked")
        rx.file_sha256 = payload.file_sha256

    def _on_prescription_effective(self, line: Line, payload: Any) -> None:
        rx = self.rx[line.stream_key]
        if payload.valid_until_ms != rx.content.valid_until_ms:
            raise Violation("I12", f"{rx.number} took effect with another end of validity")
        rx.status = "EFFECTIVE"

    def _on_prescription_undo_requested(self, line: Line, payload: Any) -> None:
        self.rx[line.stream_key].undo_requested = True

    def _on_prescription_undone(self, line: Line, payload: Any) -> None:
        rx = self.rx[line.stream_key]
        if rx.holder() is not None or any(rx.out_e4.values()):
            raise Violation("I1", f"{rx.number} is undone while somebody holds it or has goods of it")
        rx.status = "UNDONE"

    def _on_prescription_expired(self, line: Line, payload: Any) -> None:
        rx = self.rx[line.stream_key]
        if line.at_ms <= rx.content.valid_until_ms:
            raise Violation("I12", f"{rx.number} expired before its time")
        rx.status = "EXPIRED"

    def _on_prescription_exhausted(self, line: Line, payload: Any) -> None:
        rx = self.rx[line.stream_key]
        if any(rx.out_e4[line_no] != prescribed for line_no, prescribed in rx.prescribed_e4.items()):
            raise Violation("I2", f"{rx.number} is used up, and something is left")
        rx.status = "EXHAUSTED"

    def _on_prescription_frozen(self, line: Line, payload: Any) -> None:
        self.rx[line.stream_key].status = "FROZEN"

    def _on_prescription_unfrozen(self, line: Line, payload: Any) -> None:
        self.rx[line.stream_key].status = "EFFECTIVE"

    def _on_prescription_used(self, line: Line, payload: Any) -> None:
        rx = self.rx[line.stream_key]
        left = any(rx.out_e4[line_no] < prescribed for line_no, prescribed in rx.prescribed_e4.items())
        if payload.partial != left:
            raise Violation("I2", f"{rx.number}: used {'partly' if payload.partial else 'up'}, and it is not so")

    # ---- authorisation and hold ----

    def _on_authorization_issued(self, line: Line, payload: Any) -> None:
        rx = self.rx[line.stream_key]
        rx.shown_to.add(payload.authorization.pharmacy_code)
        if payload.authorization.voucher_key:
            self._shown(line, payload.authorization.voucher_key, rx.person_key, "02122")

    def _on_order_created(self, line: Line, payload: Any) -> None:
        rx = self.rx[line.stream_key]
        rx.orders[payload.order_no] = Order(payload.order_no, payload.pharmacy_code)
        rx.shown_to.add(payload.pharmacy_code)

    def _order(self, line: Line) -> tuple[Rx, Order]:
        rx = self.rx[line.stream_key]
        return rx, rx.orders[line.payload.order_no]

    def _on_order_held(self, line: Line, payload: Any) -> None:
        rx, order = self._order(line)
        holder = rx.holder()
        if holder is not None:
            raise Violation("I1", f"{rx.number} is held by {order.pharmacy} while {holder.pharmacy} holds it")
        if rx.status != "EFFECTIVE" or rx.undo_requested or order.over or order.out:
            raise Violation("I1", f"{rx.number} is held in {rx.status}, by an order that may not hold it")
        if payload.hold_until_ms > min(line.at_ms + HOLD_MS, rx.content.valid_until_ms):
            raise Violation("I1", f"the hold of {rx.number} lasts too long")
        self._step(line, rx)
        order.holds, order.hold_until_ms, order.review = True, payload.hold_until_ms, ""

    def _ended(self, line: Line, payload: Any) -> None:
        rx, order = self._order(line)
        if order.over or order.out or order.settled in {"SETTLED", "SELF_PAID"}:
            raise Violation("I1", f"{line.name} of an order of {rx.number} that stands settled or is over")
        if line.name == "order.expired" and payload.hold_lapsed and line.at_ms <= order.hold_until_ms:
            raise Violation("I1", f"the hold of {rx.number} lapsed before its time")
        order.holds, order.over = False, True

    _on_order_released = _ended
    _on_order_cancelled = _ended
    _on_order_expired = _ended

    def _on_prescription_downloaded(self, line: Line, payload: Any) -> None:
        rx, order = self._order(line)
        if (
            not order.holds
            or line.institution != f"pharmacy/{order.pharmacy}"
            or payload.pharmacy_code != order.pharmacy
        ):
            raise Violation("I21", f"{line.institution} downloaded {rx.number} without holding it")

    def _reviewed(self, line: Line, payload: Any) -> None:
        rx, order = self._order(line)
        if payload.pharmacist_code == rx.content.doctor_code:
            raise Violation("I16", f"the prescriber reviewed {rx.number} at the pharmacy")
        self._works(line, payload.pharmacist_code, order.pharmacy, "I16")
        self._step(line, rx)
        statement = self._signed(
            line, payload.statement, signed_pb2.ReviewStatement, payload.pharmacist_code, order.pharmacy
        )
        if statement.prescription_sha256 != rx.signed_sha256:
            raise Violation("I13", f"other bytes of {rx.number} were reviewed than were signed")
        if not order.holds or order.review:
            raise Violation("I3", f"{line.name} of {rx.number} without a hold, or for the second time")
        order.review, order.reviewer = line.name, payload.pharmacist_code

    _on_review_passed = _reviewed
    _on_review_rejected = _reviewed
    _on_review_returned_to_doctor = _reviewed

    # ---- settlement ----

    def _claim(self, line: Line, rx: Rx, claim: Any, *, insured: bool) -> None:
        """I6, and that the amounts are those of the algorithm, computed again."""
        broken = money.check_identities(claim)
        if broken:
            raise Violation("I6", f"{line.name} of {rx.number} breaks {broken}")
        approvals = {found.line_no: found.approval_flag for found in rx.content.lines}
        account = self.accounts[self.people[rx.person_key].account_key]
        if not insured:
            wanted = money.expected(claim.lines, approvals, 0, insured=False)
        elif line.name == "settlement.quoted":
            balance = account.balance_fen if self.uses_account.get(line.request_id, True) else 0
            wanted = money.expected(claim.lines, approvals, balance, insured=True)
        else:
            wanted = {name: getattr(rx.orders[line.payload.order_no].quote.amounts, name) for name in _AMOUNTS}
        found = {name: getattr(claim.amounts, name) for name in _AMOUNTS}
        if found != wanted:
            different = {name: (found[name], wanted[name]) for name in _AMOUNTS if found[name] != wanted[name]}
            raise Violation("I6", f"{line.name} of {rx.number} says {different} (found, expected)")
        for sold in claim.lines:
            left = rx.prescribed_e4.get(sold.line_no, 0) - rx.out_e4[sold.line_no]
            if not 0 < sold.quantity_e4 <= left:
                raise Violation("I2", f"{line.name} sells {sold.quantity_e4} of {left} of line {sold.line_no}")

    def _may_pay(self, line: Line, rx: Rx, order: Order) -> None:
        """I3: effective, reviewed, and the settler is the holder."""
        where = f"{line.name} of {rx.number}"
        if rx.status != "EFFECTIVE" or rx.undo_requested or line.at_ms > rx.content.valid_until_ms:
            raise Violation("I3", f"{where} while it is {rx.status}")
        if order.review != "review.passed":
            raise Violation("I3", f"{where} without a passed review")
        if not order.holds or line.institution != f"pharmacy/{order.pharmacy}" or line.at_ms > order.hold_until_ms:
            raise Violation("I3", f"{where} by {line.institution}, who does not hold it")
        if order.settled in {"SETTLED", "SELF_PAID"}:
            raise Violation("I3", f"{where}, which is settled already")
        self._step(line, rx)

    def _on_settlement_quoted(self, line: Line, payload: Any) -> None:
        rx, order = self._order(line)
        self._may_pay(line, rx, order)
        self._shown(line, payload.voucher_key, rx.person_key, "02121", "03132")
        self._claim(line, rx, payload.claim, insured=True)
        if payload.hold_until_ms != order.hold_until_ms:
            if order.extended or payload.hold_until_ms > order.hold_until_ms + HOLD_EXTENSION_MS:
                raise Violation("I1", f"the hold of {rx.number} is extended for the second time, or by too much")
            order.extended, order.hold_until_ms = True, payload.hold_until_ms
        order.quote = payload.claim

    def _on_settlement_quote_expired(self, line: Line, payload: Any) -> None:
        _, order = self._order(line)
        order.quote = None

    def _on_settlement_committed(self, line: Line, payload: Any) -> None:
        rx, order = self._order(line)
        self._may_pay(line, rx, order)
        self._shown(line, payload.voucher_key, rx.person_key, "02121", "03132")
        if order.quote is None or order.quote.quote_id != payload.claim.quote_id:
            raise Violation("I3", f"a quote of {rx.number} is settled that does not stand")
        self._claim(line, rx, payload.claim, insured=True)
        self._sealed(line, payload.statement, signed_pb2.SettleStatement, order)
        order.settlement_year = _year(line.at_ms)
        self._moved(line, rx, payload.claim, 1, order.settlement_year)
        order.settled, order.claim = "SETTLED", payload.claim

    def _on_settlement_self_paid(self, line: Line, payload: Any) -> None:
        rx, order = self._order(line)
        self._may_pay(line, rx, order)
        self._claim(line, rx, payload.claim, insured=False)
        self._sealed(line, payload.statement, signed_pb2.SettleStatement, order)
        amounts = payload.claim.amounts
        if amounts.fund_fen or amounts.account_fen or (line.stream_key, line.version) in self.due_moves:
            raise Violation("I7", f"a self-payment of {rx.number} moves the fund or an account")
        order.settled, order.claim, order.quote = "SELF_PAID", payload.claim, None

    def _sealed(self, line: Line, content: Any, message: Any, order: Order) -> Any:
        return self._signed(line, content, message, order.pharmacy, order.pharmacy)

    def _give_back(self, line: Line, rx: Rx, order: Order) -> None:
        if order.settled not in {"SETTLED", "SELF_PAID"} or order.out:
            raise Violation("I20", f"{line.name} of {rx.number}: nothing stands settled, or the goods are out")
        self._moved(line, rx, order.claim, -1, order.settlement_year)
        order.settled = "GIVEN_BACK"

    def _on_settlement_undone(self, line: Line, payload: Any) -> None:
        rx, order = self._order(line)
        if payload.settlement_id != order.claim.settlement_id:
            raise Violation("I20", f"another settlement of {rx.number} is undone than the one that stands")
        self._give_back(line, rx, order)

    def _on_settlement_reversed(self, line: Line, payload: Any) -> None:
        if payload.target == events_pb2.REVERSAL_OF_NONE:
            self.taken_ids.add((line.institution, payload.original_request_id))
            return
        rx, order = self._order(line)
        if payload.target == events_pb2.REVERSAL_OF_SETTLEMENT:
            self._give_back(line, rx, order)
            return
        holder = rx.holder()
        if holder is not None:
            raise Violation("I1", f"the undo of {rx.number} is reversed while {holder.pharmacy} holds it")
        if order.settled != "GIVEN_BACK" or rx.status != "EFFECTIVE":
            raise Violation("I20", f"the undo of {rx.number} is reversed, and there is none")
        self._moved(line, rx, order.claim, 1, order.settlement_year)
        order.settled, order.holds, order.over = "SETTLED", True, False

    # ---- goods ----

    def _on_dispense_picked(self, line: Line, payload: Any) -> None:
        _, order = self._order(line)
        self._works(line, payload.dispenser_code, order.pharmacy, "STEP")
        order.dispenser = payload.dispenser_code

    def _on_dispense_checked(self, line: Line, payload: Any) -> None:
        rx, order = self._order(line)
        self._works(line, payload.checker_code, order.pharmacy, "STEP")
        if payload.checker_code == order.dispenser:
            raise Violation("I17", f"{order.dispenser} picked and checked {rx.number}")
        order.checker = payload.checker_code

    def _on_trace_code_sold(self, line: Line, payload: Any) -> None:
        if line.stream_key in self.sold_keys:
            raise Violation("I9", f"a trace code is sold again at {line.position}")
        self.sold_keys.add(line.stream_key)
        self._sold_now.add(line.stream_key)

    def _on_dispense_outbound(self, line: Line, payload: Any) -> None:
        rx, order = self._order(line)
        where = f"goods of {rx.number} out at {line.position}"
        if order.settled not in {"SETTLED", "SELF_PAID"}:
            raise Violation("I4", f"{where}, and nobody paid")
        if not order.holds or rx.status != "EFFECTIVE" or line.at_ms > rx.content.valid_until_ms:
            raise Violation("I4", f"{where}, and the order does not hold it or it is {rx.status}")
        self._step(line, rx)
        self._sealed(line, payload.statement, signed_pb2.DispenseStatement, order)
        out: Counter[int] = Counter()
        for lot in payload.lots:
            out[lot.line_no] += _e4(lot.quantity)
            for code in lot.trace_codes:
                if code in self.sold_codes:
                    raise Violation("I9", f"{where}: {code} was sold before")
                self.sold_codes.add(code)
                key = trace_code_key(code)
                if key not in self._sold_now:
                    raise Violation("I9", f"{where}: {code} has no entry of its own")
                self._sold_now.discard(key)
        if out != Counter({sold.line_no: sold.quantity_e4 for sold in order.claim.lines}):
            raise Violation("I2", f"{where}: {dict(out)}, and something else was paid")
        rx.out_e4 += out
        for line_no, quantity_e4 in rx.out_e4.items():
            if quantity_e4 > rx.prescribed_e4.get(line_no, 0):
                raise Violation("I2", f"{where}: {quantity_e4} of line {line_no}, prescribed less")
        order.out, order.holds = True, False

    def _on_dispense_voided(self, line: Line, payload: Any) -> None:
        rx, order = self._order(line)
        if order.out:
            raise Violation("I4", f"goods of {rx.number} are voided that are out")

    def _on_dispense_handed_over(self, line: Line, payload: Any) -> None:
        rx, order = self._order(line)
        if not order.out:
            raise Violation("I5", f"goods of {rx.number} are handed over that are not out")
        self._step(line, rx)
        self._sealed(line, payload.statement, signed_pb2.HandOverStatement, order)
        self._shown(line, payload.voucher_key, rx.person_key, "01302")

    def _travelled(self, line: Line, payload: Any) -> None:
        rx, order = self._order(line)
        if not order.out:
            raise Violation("I5", f"{line.name} of {rx.number}, and nothing is out")

    _on_delivery_picked_up = _travelled
    _on_delivery_in_transit = _travelled
    _on_delivery_arrived = _travelled
    _on_delivery_refused = _travelled
    _on_delivery_lost = _travelled
    _on_delivery_returning = _travelled
    _on_delivery_returned = _travelled

    def _on_delivery_signed(self, line: Line, payload: Any) -> None:
        rx, order = self._order(line)
        self._travelled(line, payload)
        self._sealed(line, payload.statement, signed_pb2.SignDeliveryStatement, order)
        if payload.voucher_key:
            self._shown(line, payload.voucher_key, rx.person_key, "01302")


_AMOUNTS: Final = tuple(field.name for field in signed_pb2.ClaimAmounts.DESCRIPTOR.fields)
_BEIJING: Final = timedelta(hours=8)


def _year(at_ms: int) -> int:
    return (datetime.fromtimestamp(at_ms / 1000, UTC) + _BEIJING).year


def _e4(text: str) -> int:
    whole, _, part = text.partition(".")
    return int(whole) * 10_000 + int(part.ljust(4, "0") or 0)
