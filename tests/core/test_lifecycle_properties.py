"""The invariants of the lifecycle hold over any sequence of commands, right or wrong, by anybody, at any time.

Each play mixes steps forward with arbitrary commands of every role. After every step the invariants are checked over
the events that it left: on the state before each event, on the event, and on the state after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erxhub.core.draft import Pending
from erxhub.core.events import At
from erxhub.core.fold import STATE_TYPES, evolve
from erxhub.core.lifecycle import HOLDING, Machine
from erxhub.core.statuses import state_name
from erxhub.v1 import signed_pb2, state_pb2
from tests.core.play import STEPS, Play
from tests.simulation.model import AFTER_THE_END

EXAMPLES = 80
STEPS_MIN, STEPS_MAX = 15, 30


class Theme(NamedTuple):
    """What plays of one kind are about: how they begin and go on, and their frequent steps."""

    first: tuple[str, ...]
    straight_on: tuple[str, ...]
    steps: tuple[str, ...]


MOSTLY_ONE = ("A", "A", "A", "B")
"""Two pharmacies that hinder each other all the time get nowhere."""


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _theme(first: int, steps: str, shop_steps: str, straight_on: str = "forward") -> Theme:
    go_on = tuple(f"{straight_on} at {shop}" for shop in MOSTLY_ONE)
    at_shops = (f"{step} at {shop}" for step in _names(shop_steps) for shop in MOSTLY_ONE)
    return Theme(go_on[:1] * first, go_on, (*_names(steps), *at_shops))


THEMES = {
    "holds": _theme(
        1,
        "half an hour later, two hours later, revoke, a minute later",
        "list, download, resolve and download, release, cancel, choose for pick-up, choose for delivery, pass, reject, "
        "return to doctor, quote",
    ),
    "money": _theme(
        5,
        "half an hour later, revoke",
        "quote, quote a part, quote too much, settle, pay self, undo, reverse settlement, reverse undo, void, release, "
        "request delivery",
    ),
    "goods": _theme(
        6,
        "a minute later",
        "dispense a sold code, dispense checked by the dispenser, request delivery, start, on the way, arrive, refuse, "
        "lose, go back, received, sign, sign with a wrong code, hand over",
        straight_on="to the door",
    ),
    "authorities": _theme(
        0,
        "upload, upload reviewed by the prescriber, revoke, revoke by another doctor, close encounter, "
        "cancel encounter, freeze, unfreeze, pause person, resume person, suspend agreement, resume agreement, "
        "suspend pharmacist, resume pharmacist, four days later",
        "review by the prescriber, undo",
    ),
    "codes": _theme(
        1,
        "show a code, decode again, decode for another business, revoke code, deactivate, activate, a minute later",
        "list",
    ),
}

HELD, REVIEWED, QUOTED, SETTLED, OUT = 2, 3, 4, 5, 6
"""How many steps straight on lead there: the upload is the first."""


def _script(first: int, steps: str = "", straight_on: str = "forward at A") -> list[str]:
    return [straight_on] * first + _names(steps)


SCRIPTS = {
    "over the counter": _script(OUT, "request delivery at A, hand over at A, undo at A, close encounter"),
    "to the door": _script(
        10, "request delivery at A, sign with a wrong code at A, forward at A", straight_on="to the door at A"
    ),
    "refused at the door": _script(
        9, "refuse at A, go back at A, received at A, sign at A", straight_on="to the door at A"
    ),
    "lost": _script(8, "lose at A, request delivery at A", straight_on="to the door at A"),
    "two halves": _script(
        REVIEWED,
        "quote a part at A, settle at A, dispense checked by the dispenser at A, dispense at A, hand over at A, "
        "forward at B, forward at B, quote too much at B, quote at B, settle at B, dispense a sold code at B, "
        "dispense at B, hand over at B",
    ),
    "undone": _script(
        SETTLED, "request delivery at A, undo at A, reverse undo at A, void at A, undo at A, forward at B"
    ),
    "reversed": _script(SETTLED, "reverse settlement at A, reverse settlement at A, reverse undo at A, settle at A"),
    "never arrived": _script(QUOTED, "reverse settlement at A, settle at A"),
    "self-paid": _script(REVIEWED, "pay self at A, reverse settlement at A, undo at A, forward at A"),
    "holds that end": _script(
        1,
        "choose for delivery at A, list at A, half an hour later, choose for pick-up at A, forward at A, forward at B, "
        "cancel at A, resolve and download at B, reject at B, forward at A, return to doctor at A, forward at A, "
        "release at A, forward at B, two hours later, forward at B, two hours later, forward at B, list at A, "
        "list at A",
    ),
    "withdrawn while held": _script(QUOTED, "revoke, quote at A, settle at A, half an hour later, release at A"),
    "withdrawn while a quote ends": _script(QUOTED, "half an hour later, settle at A, revoke, cancel at A"),
    "ended by time": _script(SETTLED, "four days later, dispense at A, undo at A, reverse settlement at A"),
    "ended by time while frozen": _script(1, "freeze, forward at A, unfreeze, freeze, four days later, unfreeze"),
    "never uploaded": _script(0, "cancel encounter, upload, revoke, upload, four days later"),
    "four eyes": _script(
        0, "upload reviewed by the prescriber, upload, forward at A, review by the prescriber at A, forward at A"
    ),
    "suspended on the way": _script(
        HELD,
        "suspend pharmacist, pass at A, resume pharmacist, suspend agreement, pass at A, resume agreement, "
        "pause person, pass at A, resume person, pass at A, quote at A",
    ),
    "codes": _script(
        1,
        "show a code, decode again, decode again, show a code, revoke code, decode again, show a code, "
        "half an hour later, decode again, decode for another business, decode again, decode again, "
        "decode again, deactivate, show a code, "
        "activate, activate",
    ),
}
"""Plays that are written out, so that every event around one prescription is met in every run."""


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
    debited: dict[tuple[bytes, str, int], Counter[str]] = field(default_factory=dict)
    """What stands as taken from an account for a settlement."""
    valid_until_ms: int = 0
    names: set[str] = field(default_factory=set)

    def catch_up(self) -> None:
        """Check what was committed since, then the states of the streams that it touched."""
        new = self.play.world.committed[self.seen :]
        for event, at in new:
            self.take(event, at)
        self.seen += len(new)
        self.check(dict.fromkeys(event.stream_key for event, _ in new))

    def check(self, keys: Iterable[bytes]) -> None:
        """The states are the fold of the events, and what must be so between two commands is so."""
        for key in keys:
            working = self.play.world.workspace.streams[key]
            assert working is not None
            assert (working.version, working.state) == (self.versions[key], self.states[key]), "I10"
            self.check_between(key, self.states[key])

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
        where = (event.stream_key, payload.settlement_id, payload.benefit_year)
        moved = Counter(amount=payload.amount_fen, in_scope=payload.in_scope_fen, fund=payload.fund_fen)
        if event.event == "account.debited":
            assert where not in self.debited, "I20"
            self.debited[where] = moved
        else:
            assert self.debited.pop(where) == moved, "I20"

    def check_between(self, key: bytes, state: Any) -> None:
        """What must be so between two commands."""
        if isinstance(state, state_pb2.AccountState):
            taken: Counter[str] = Counter()
            for (account, _, year), moved in self.debited.items():
                if (account, year) == (key, state.benefit_year):
                    taken.update(moved)
            assert state.balance_fen >= 0
            assert (state.fund_year_fen, state.in_scope_year_fen) == (taken["fund"], taken["in_scope"]), "I7"
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
    auditor.check(auditor.states)
    return auditor


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
    "prescription.prechecked",
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


def test_the_invariants_hold_over_plays_that_meet_every_event() -> None:
    reached: set[str] = set()
    for steps in SCRIPTS.values():
        reached |= played(steps).names
    assert REACHED - reached == set()


@pytest.mark.parametrize("name", THEMES)
def test_the_invariants_hold_over_any_sequence_of_commands(name: str) -> None:
    theme = THEMES[name]
    # Two of five steps go straight on, so that plays get far; two are the theme's, and one is anybody's.
    straight_on, own, any_step = (st.sampled_from(steps) for steps in (theme.straight_on, theme.steps, tuple(STEPS)))
    step = st.one_of(straight_on, straight_on, own, own, any_step)

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(step, min_size=STEPS_MIN, max_size=STEPS_MAX))
    def run(steps: list[str]) -> None:
        played([*theme.first, *steps])

    run()
