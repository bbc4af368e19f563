"""The invariants of the lifecycle hold over any sequence of commands, right or wrong, by anybody, at any time.

Each play mixes steps forward with arbitrary commands of every role. After every step the invariants are checked over
the events that it left: on the state before each event, on the event, and on the state after it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erxhub.core.draft import Pending
from erxhub.core.fold import STATE_TYPES, At, evolve, state_name
from erxhub.core.lifecycle import HOLDING, Machine
from erxhub.v1 import signed_pb2, state_pb2
from tests.core.play import STEPS, STRAIGHT_ON, Play

EXAMPLES = 120
STEPS_MIN, STEPS_MAX = 25, 45

# I23. What may follow when a prescription has ended: goods that were out already reach the patient, a sale that was
# settled before is given back, and nothing else.
_TO_THE_PATIENT = {
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
_GIVEN_BACK = {"settlement.undone", "settlement.reversed", "dispense.voided", "order.released"}
AFTER_THE_END: dict[str, set[str]] = {
    "UNDONE": set(),
    "EXPIRED": _TO_THE_PATIENT | _GIVEN_BACK,
    "EXHAUSTED": _TO_THE_PATIENT,
}

# Every event that this commands can leave around one prescription. A run that does not reach one of them says
# nothing about it, so it fails.
REACHED = {
    "account.debited",
    "account.restored",
    "agreement.resumed",
    "agreement.suspended",
    "authorization.consumed",
    "authorization.expired",
    "authorization.issued",
    "authorization.qr_issued",
    "authorization.revoked",
    "delivery.arrived",
    "delivery.assigned",
    "delivery.cancelled",
    "delivery.in_transit",
    "delivery.lost",
    "delivery.picked_up",
    "delivery.refused",
    "delivery.requested",
    "delivery.returned",
    "delivery.returning",
    "delivery.sign_code_renewed",
    "delivery.signed",
    "delivery.try_counted",
    "dispense.checked",
    "dispense.handed_over",
    "dispense.outbound",
    "dispense.picked",
    "dispense.ready",
    "dispense.voided",
    "encounter.cancelled",
    "encounter.closed",
    "order.cancelled",
    "order.completed",
    "order.created",
    "order.expired",
    "order.held",
    "order.released",
    "order.routed",
    "person.status_changed",
    "person.voucher_activated",
    "person.voucher_deactivated",
    "practitioner.resumed",
    "practitioner.suspended",
    "prescription.downloaded",
    "prescription.effective",
    "prescription.exhausted",
    "prescription.expired",
    "prescription.frozen",
    "prescription.hospital_reviewed",
    "prescription.signed",
    "prescription.undo_requested",
    "prescription.undone",
    "prescription.unfrozen",
    "prescription.uploaded",
    "prescription.used",
    "review.passed",
    "review.rejected",
    "review.returned_to_doctor",
    "settlement.committed",
    "settlement.quote_expired",
    "settlement.quoted",
    "settlement.reversed",
    "settlement.self_paid",
    "settlement.undone",
    "trace_code.sold",
    "voucher.expired",
    "voucher.issued",
    "voucher.revoked",
    "voucher.try_counted",
    "voucher.verified",
}


@dataclass
class Auditor:
    """Folds the events of a play itself, and checks each one against the invariants."""

    play: Play
    seen: int = 0
    states: dict[bytes, Any] = field(default_factory=dict)
    versions: dict[bytes, int] = field(default_factory=dict)
    times: dict[bytes, int] = field(default_factory=dict)
    ended: dict[bytes, str] = field(default_factory=dict)
    out_e4: Counter[int] = field(default_factory=Counter)
    verified: Counter[bytes] = field(default_factory=Counter)
    sold: Counter[bytes] = field(default_factory=Counter)
    debited: dict[str, Counter[str]] = field(default_factory=dict)
    valid_until_ms: int = 0
    names: set[str] = field(default_factory=set)

    def catch_up(self) -> None:
        """Check what was committed since, then the states as they are now."""
        for event, at in self.play.world.committed[self.seen :]:
            self.take(event, at)
        self.seen = len(self.play.world.committed)
        for key, state in self.states.items():
            working = self.play.world.workspace.streams[key]
            assert working is not None
            assert (working.version, working.state) == (self.versions[key], state), "I10"
        self.check_now()

    def take(self, event: Pending, at: At) -> None:
        """One event: before, itself, after."""
        key = event.stream_key
        before = self.states.setdefault(key, STATE_TYPES[event.stream_kind]())
        # I11 as far as it goes without hashes: no gap, and time never runs backwards.
        assert event.version == self.versions.get(key, 0) + 1
        assert at.recorded_at_ms >= self.times.get(key, 0)
        self.versions[key], self.times[key] = event.version, at.recorded_at_ms
        self.names.add(event.event)
        if event.stream_kind == "prescription":
            self.before_prescription(event, at, before)
        elif event.stream_kind == "account":
            self.account(event)
        elif event.event == "voucher.verified":
            self.verified[key] += 1
            assert self.verified[key] == 1, "I18"
        elif event.event == "trace_code.sold":
            self.sold[key] += 1
            assert self.sold[key] == 1, "I9"
        evolve(event.stream_kind, before, event.event, event.payload, at)
        if event.stream_kind == "prescription":
            self.after_prescription(key, before)

    def before_prescription(self, event: Pending, at: At, rx: state_pb2.PrescriptionState) -> None:
        """What must have been so for this event to come."""
        name, payload = event.event, event.payload
        if event.stream_key in self.ended:
            assert name in AFTER_THE_END[self.ended[event.stream_key]], ("I23", name)
        order = next((held for held in rx.orders if held.order_no == getattr(payload, "order_no", None)), None)
        if name in {"settlement.committed", "settlement.self_paid"}:
            assert order is not None
            assert state_name(Machine.RX, rx.rx_status) == "EFFECTIVE", "I3"
            assert not rx.undo_requested, "I3"
            assert state_name(Machine.REVIEW, order.review) == "PASSED", "I3"
            assert state_name(Machine.ORDER, order.status) in HOLDING, "I3"
            assert event.actor == f"pharmacy/{order.pharmacy_code}", "I3"
            assert at.recorded_at_ms <= rx.content.valid_until_ms, "I3"
        if name in {"settlement.quoted", "settlement.committed", "settlement.self_paid"}:
            self.money(payload.claim)
        if name == "order.held":
            assert not any(state_name(Machine.ORDER, held.status) in HOLDING for held in rx.orders), "I1"
            assert state_name(Machine.RX, rx.rx_status) == "EFFECTIVE"
            assert not rx.undo_requested
        if name == "dispense.outbound":
            assert order is not None
            assert state_name(Machine.SETTLEMENT, order.claim.status) in {"SETTLED", "SELF_PAID"}, "I4"
            assert order.dispense.dispenser_code != order.dispense.checker_code, "I17"
            assert at.recorded_at_ms <= rx.content.valid_until_ms
            for lot in payload.lots:
                self.out_e4[lot.line_no] += int(float(lot.quantity) * 10_000)
        if name == "delivery.picked_up":
            assert order is not None
            assert state_name(Machine.DISPENSE, order.dispense.status) == "OUT", "I5"
        if name.startswith("review."):
            assert payload.pharmacist_code != rx.content.doctor_code, "I16"

    def after_prescription(self, key: bytes, rx: state_pb2.PrescriptionState) -> None:
        """What must be so right after every event of a prescription."""
        holding = [order for order in rx.orders if state_name(Machine.ORDER, order.status) in HOLDING]
        assert len(holding) <= 1, "I1"
        for use in rx.lines:
            assert use.out_e4 == self.out_e4[use.line_no] <= use.prescribed_e4 * rx.fills_allowed, "I2"
        assert rx.hospital_reviewer_code != rx.content.doctor_code, "I16"
        self.valid_until_ms = self.valid_until_ms or rx.content.valid_until_ms
        assert rx.content.valid_until_ms == self.valid_until_ms, "I12"
        status = state_name(Machine.RX, rx.rx_status)
        if status in AFTER_THE_END:
            assert self.ended.setdefault(key, status) == status, "I23"

    @staticmethod
    def money(claim: state_pb2.Claim) -> None:
        """I6: both identities, for the claim and against its lines."""
        found: signed_pb2.ClaimAmounts = claim.amounts
        scope = found.own_pay_fen + found.over_limit_fen + found.prior_self_pay_fen + found.in_scope_fen
        person = found.account_fen + found.family_fen + found.cash_fen
        assert found.total_fen == scope, "I6"
        assert found.total_fen == found.fund_fen + found.institution_fen + found.person_fen, "I6"
        assert found.person_fen == person, "I6"
        for line in claim.lines:
            parts = line.own_pay_fen + line.over_limit_fen + line.prior_self_pay_fen + line.in_scope_fen
            assert line.amount_fen == parts, "I6"
        for name in ("own_pay_fen", "over_limit_fen", "prior_self_pay_fen", "in_scope_fen"):
            assert getattr(found, name) == sum(getattr(line, name) for line in claim.lines), "I6"
        assert all(getattr(found, name) >= 0 for name in found.DESCRIPTOR.fields_by_name), "I6"

    def account(self, event: Pending) -> None:
        """I20: what was taken for a settlement is given back exactly."""
        if event.event not in {"account.debited", "account.restored"}:
            return
        payload = event.payload
        moved = Counter(amount=payload.amount_fen, in_scope=payload.in_scope_fen, fund=payload.fund_fen)
        if event.event == "account.debited":
            assert payload.settlement_id not in self.debited, "I20"
            self.debited[payload.settlement_id] = moved
        else:
            assert self.debited.pop(payload.settlement_id) == moved, "I20"

    def check_now(self) -> None:
        """What must be so between two commands."""
        for state in self.states.values():
            if isinstance(state, state_pb2.AccountState):
                assert state.balance_fen >= 0
                assert state.fund_year_fen == sum(moved["fund"] for moved in self.debited.values()), "I7"
                assert state.in_scope_year_fen == sum(moved["in_scope"] for moved in self.debited.values()), "I7"
            if isinstance(state, state_pb2.PrescriptionState) and state.uploaded_version:
                is_held = any(state_name(Machine.ORDER, order.status) in HOLDING for order in state.orders)
                assert (state_name(Machine.USE, state.use_status) == "HELD") == is_held, "I1"


def played(steps: list[str]) -> Auditor:
    """The auditor of a play after all its steps."""
    play = Play()
    auditor = Auditor(play)
    auditor.catch_up()
    for step in steps:
        STEPS[step](play)
        auditor.catch_up()
    return auditor


# Six of ten steps go straight on, so that plays get far; the others are anybody's.
_ANY_STEP = st.one_of(*[st.sampled_from(STRAIGHT_ON)] * 3, *[st.sampled_from(list(STEPS))] * 2)


def test_the_invariants_hold_over_any_sequence_of_commands() -> None:
    reached: set[str] = set()

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(_ANY_STEP, min_size=STEPS_MIN, max_size=STEPS_MAX))
    def run(steps: list[str]) -> None:
        reached.update(played(steps).names)

    run()
    assert REACHED - reached == set()
