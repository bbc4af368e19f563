"""Every state of every thing that people act on, times every trigger: a decision lets happen what the tables permit.

The tables are checked against the document elsewhere. Here a fresh thing is brought to each state by commands, then
each command is given, right in all but perhaps its moment; its event comes exactly when a row permits its trigger.
Which certificates may give a command at all is the edge's question, and is tested there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import pytest

from erxhub.core.draft import Pending
from erxhub.core.lifecycle import ROWS, Machine, Role, permits, states_of
from erxhub.core.statuses import state_name
from tests.core.play import STEPS, Play

AUTOMATIC = frozenset({Role.TIMER, Role.HUB})


class Act(NamedTuple):
    """A command, the triggers for which it stands, and the event that shows that one of them happened."""

    step: str
    triggers: tuple[str, ...]
    event: str


class Matrix(NamedTuple):
    """One machine: how each state is reached, what is done in it, and how its state is read.

    `passed_through`: states that no command stops at. `of_order`: the events are those of one order.
    """

    situations: Mapping[str, str]
    acts: tuple[Act, ...]
    state: Callable[[Play], int]
    passed_through: frozenset[str] = frozenset()
    of_order: bool = True


def _act(step: str, triggers: str, event: str) -> Act:
    return Act(step, tuple(triggers.split(" | ")), event)


_UPLOADED = "upload"
_HELD = f"{_UPLOADED}, forward at A"
_REVIEWED = f"{_HELD}, forward at A"
_QUOTED = f"{_REVIEWED}, forward at A"
_SETTLED = f"{_QUOTED}, forward at A"
_ASKED = f"{_SETTLED}, request delivery at A"
_OUT = f"{_ASKED}, forward at A"
_PICKED_UP = f"{_OUT}, start at A"
_MOVING = f"{_PICKED_UP}, on the way at A"
_ARRIVED = f"{_MOVING}, arrive at A"
_REFUSED = f"{_ARRIVED}, refuse at A"

MATRICES = {
    Machine.RX: Matrix(
        {
            "PRECHECKED": "a minute later",
            "EFFECTIVE": _UPLOADED,
            "UNDONE": f"{_UPLOADED}, revoke",
            "EXPIRED": f"{_UPLOADED}, four days later",
            "EXHAUSTED": _OUT,
            "FROZEN": f"{_UPLOADED}, freeze",
        },
        (
            _act("upload", "hospital review | sign | upload", "prescription.effective"),
            _act("revoke", "undo", "prescription.undone"),
            _act("freeze", "freeze", "prescription.frozen"),
            _act("unfreeze", "unfreeze", "prescription.unfrozen"),
        ),
        lambda play: play.rx.state.rx_status,
        passed_through=frozenset({"–", "SIGNED"}),
        of_order=False,
    ),
    Machine.REVIEW: Matrix(
        {
            "NONE": f"{_UPLOADED}, choose for pick-up at A",
            "PENDING": _HELD,
            "PASSED": _REVIEWED,
            "REJECTED": f"{_HELD}, reject at A",
            "RETURNED_TO_DOCTOR": f"{_HELD}, return to doctor at A",
        },
        (
            _act("pass at A", "pass", "review.passed"),
            _act("reject at A", "reject", "review.rejected"),
            _act("return to doctor at A", "return to doctor", "review.returned_to_doctor"),
            _act("forward at A", "download", "order.held"),
        ),
        lambda play: play.order("A").review,
        passed_through=frozenset({"–"}),
    ),
    Machine.ORDER: Matrix(
        {
            "CREATED": f"{_UPLOADED}, choose for pick-up at A",
            "HELD": _HELD,
            "REVIEWED": _REVIEWED,
            "PRESETTLED": _QUOTED,
            "SETTLED": _SETTLED,
            "DISPENSED": _OUT,
            "DELIVERING": _ARRIVED,
            "COMPLETED": f"{_ARRIVED}, sign at A",
            "RELEASED": f"{_HELD}, release at A",
            "CANCELLED": f"{_HELD}, cancel at A",
            "TIMED_OUT": f"{_HELD}, two hours later",
        },
        (
            _act("list and download at A", "download and hold", "order.held"),
            _act("list and download at A", "download and hold | download again", "prescription.downloaded"),
            _act("pass at A", "review passed", "review.passed"),
            _act("reject at A", "review not passed", "review.rejected"),
            _act("quote at A", "pre-settle | pre-settle again", "settlement.quoted"),
            _act("settle at A", "settle", "settlement.committed"),
            _act("pay self at A", "record a self-payment", "settlement.self_paid"),
            _act("dispense at A", "goods out", "dispense.outbound"),
            _act("undo at A", "undo or reversal before goods out", "settlement.undone"),
            _act("reverse settlement at A", "undo or reversal before goods out", "settlement.reversed"),
            _act("hand over at A", "hand over", "dispense.handed_over"),
            _act("start at A", "picked up by courier", "delivery.picked_up"),
            _act("sign at A", "signed", "delivery.signed"),
            _act("refuse at A", "refused", "delivery.refused"),
            _act("lose at A", "lost", "delivery.lost"),
            _act("release at A", "release", "order.released"),
            _act("cancel at A", "cancel", "order.cancelled"),
        ),
        lambda play: play.order("A").status,
        passed_through=frozenset({"–"}),
    ),
    Machine.SETTLEMENT: Matrix(
        {
            "–": _REVIEWED,
            "PRE": _QUOTED,
            "LAPSED": f"{_QUOTED}, half an hour later",
            "SETTLED": _SETTLED,
            "SELF_PAID": f"{_REVIEWED}, pay self at A",
            "UNDONE": f"{_SETTLED}, undo at A",
            "REVERSED": f"{_SETTLED}, reverse settlement at A",
        },
        (
            _act("quote at A", "quote", "settlement.quoted"),
            _act("settle at A", "commit", "settlement.committed"),
            _act("pay self at A", "record a self-payment", "settlement.self_paid"),
            _act("undo at A", "undo", "settlement.undone"),
            _act("reverse settlement at A", "reverse", "settlement.reversed"),
            _act("reverse undo at A", "reverse the undo", "settlement.reversed"),
        ),
        lambda play: play.order("A").claim.status,
    ),
    Machine.DISPENSE: Matrix(
        {
            "–": _REVIEWED,
            "READY": _SETTLED,
            "OUT": _OUT,
            "HANDED_OVER": f"{_OUT}, hand over at A",
            "SHIPPED": _PICKED_UP,
            "VOIDED": f"{_SETTLED}, void at A",
        },
        (
            _act("dispense at A", "pick | check | out", "dispense.outbound"),
            _act("void at A", "void", "dispense.voided"),
            _act("hand over at A", "hand over", "dispense.handed_over"),
            _act("start at A", "give to courier", "delivery.picked_up"),
        ),
        lambda play: play.order("A").dispense.status,
        passed_through=frozenset({"PICKED", "CHECKED"}),
    ),
    Machine.DELIVERY: Matrix(
        {
            "–": _SETTLED,
            "REQUESTED": _OUT,
            "PICKED_UP": _PICKED_UP,
            "IN_TRANSIT": _MOVING,
            "ARRIVED": _ARRIVED,
            "SIGNED": f"{_ARRIVED}, sign at A",
            "REFUSED": _REFUSED,
            "LOST": f"{_ARRIVED}, lose at A",
            "RETURNING": f"{_REFUSED}, go back at A",
            "RETURNED": f"{_REFUSED}, go back at A, received at A",
            "CANCELLED": f"{_OUT}, hand over at A",
        },
        (
            _act("request delivery at A", "request", "delivery.requested"),
            _act("request delivery at A", "request again", "delivery.sign_code_renewed"),
            _act("start at A", "assign | pick up", "delivery.picked_up"),
            _act("on the way at A", "on the way", "delivery.in_transit"),
            _act("arrive at A", "arrive", "delivery.arrived"),
            _act("sign at A", "sign for", "delivery.signed"),
            _act("sign with a wrong code at A", "sign for with a wrong code", "delivery.try_counted"),
            _act("refuse at A", "refuse", "delivery.refused"),
            _act("lose at A", "lose", "delivery.lost"),
            _act("go back at A", "go back", "delivery.returning"),
            _act("received at A", "received", "delivery.returned"),
        ),
        lambda play: play.order("A").delivery.status,
        passed_through=frozenset({"ASSIGNED"}),
    ),
    Machine.VOUCHER: Matrix(
        {
            "ISSUED": "show a code",
            "CONSUMED": "show a code, decode again",
            "EXPIRED": "show a code, half an hour later",
            "REVOKED": "show a code, revoke code",
        },
        (
            _act("decode again", "decode", "voucher.verified"),
            _act("decode the last for another business", "decode refused", "voucher.try_counted"),
            _act("revoke code", "revoke", "voucher.revoked"),
        ),
        lambda play: play.voucher.status,
        passed_through=frozenset({"–"}),
        of_order=False,
    ),
    Machine.ENCOUNTER: Matrix(
        {
            "REGISTERED": "another visit",
            "IN_CONSULT": "another visit, begin it",
            "DIAGNOSED": "another visit, begin it, diagnose",
            "CLOSED": "another visit, begin it, diagnose, close encounter",
            "CANCELLED": "another visit, cancel encounter",
        },
        (
            _act("begin it", "start consultation", "encounter.started"),
            _act("diagnose", "record diagnosis", "diagnosis.recorded"),
            _act("amend", "amend diagnosis", "diagnosis.amended"),
            _act("attest", "attest doctor", "encounter.doctor_attested"),
            _act("prove follow-up", "prove follow-up", "encounter.revisit_proven"),
            _act("close encounter", "close", "encounter.closed"),
            _act("cancel encounter", "cancel", "encounter.cancelled"),
        ),
        lambda play: play.encounter.status,
        passed_through=frozenset({"–"}),
        of_order=False,
    ),
    Machine.AGREEMENT: Matrix(
        {
            "ACTIVE": "a minute later",
            "SUSPENDED": "suspend agreement",
            "TERMINATED": "end agreement",
        },
        (
            _act("suspend agreement", "suspend", "agreement.suspended"),
            _act("resume agreement", "resume", "agreement.resumed"),
            _act("end agreement", "terminate", "agreement.terminated"),
            _act("sign agreement", "sign", "agreement.signed"),
        ),
        lambda play: play.institution.agreements[0].status,
        passed_through=frozenset({"–"}),
        of_order=False,
    ),
    Machine.PRACTITIONER: Matrix(
        {
            "ACTIVE": "a minute later",
            "SUSPENDED": "suspend pharmacist",
            "TERMINATED": "end pharmacist",
        },
        (
            _act("suspend pharmacist", "suspend", "practitioner.suspended"),
            _act("resume pharmacist", "resume", "practitioner.resumed"),
            _act("end pharmacist", "end", "practitioner.terminated"),
        ),
        lambda play: play.pharmacist.status,
        passed_through=frozenset({"–"}),
        of_order=False,
    ),
    Machine.PERSON: Matrix(
        {
            "ACTIVE": "a minute later",
            "PAUSED": "pause person",
            "DEAD": "register death",
        },
        (
            _act("pause person", "pause insurance", "person.status_changed"),
            _act("resume person", "resume insurance", "person.status_changed"),
            _act("register death", "register death", "person.status_changed"),
        ),
        lambda play: play.person.status,
        passed_through=frozenset({"–"}),
        of_order=False,
    ),
}

# Triggers of people that no act stands for, and why.
NOT_ACTED = {
    (Machine.RX, "precheck"): "it makes the thing",
    (Machine.RX, "undo while held"): "a refusal; see the plays",
    (Machine.REVIEW, "hold released"): "the order's release",
    (Machine.REVIEW, "hold cancelled"): "the order's cancellation",
    (Machine.ORDER, "create"): "it makes the thing",
    (Machine.ORDER, "undo reversed"): "the settlement's reversal of an undo",
    (Machine.VOUCHER, "issue"): "it makes the thing",
    (Machine.VOUCHER, "decode refused for the third time"): "needs two tries before; see the plays",
    (Machine.ENCOUNTER, "register"): "it makes the thing",
    (Machine.PRACTITIONER, "register"): "it makes the thing",
    (Machine.PERSON, "register"): "it makes the thing",
}


def run(script: str) -> Play:
    """A fresh play after the steps of a script."""
    play = Play()
    for step in script.split(", "):
        STEPS[step](play)
    return play


def happened(play: Play, act: Act, *, of_order: bool) -> bool:
    """Whether the act left its event, on the order that there was."""
    order_no, before = play.order("A").order_no, len(play.world.committed)
    STEPS[act.step](play)

    def concerns(event: Pending) -> bool:
        return not of_order or getattr(event.payload, "order_no", order_no) == order_no

    return any(event.event == act.event and concerns(event) for event, _ in play.world.committed[before:])


@pytest.mark.parametrize("machine", MATRICES)
def test_every_state_and_every_trigger_of_people_has_its_place_here(machine: Machine) -> None:
    matrix = MATRICES[machine]
    assert set(matrix.situations) | matrix.passed_through == set(states_of(machine))
    triggers = {row.trigger for row in ROWS if row.machine is machine and set(row.roles) - AUTOMATIC}
    acted = {trigger for act in matrix.acts for trigger in act.triggers}
    assert acted | {trigger for at, trigger in NOT_ACTED if at is machine} == triggers


@pytest.mark.parametrize(
    ("machine", "state"), [(machine, state) for machine, matrix in MATRICES.items() for state in matrix.situations]
)
def test_a_command_takes_effect_exactly_in_the_states_of_its_trigger(machine: Machine, state: str) -> None:
    matrix = MATRICES[machine]
    found, expected = {}, {}
    for act in matrix.acts:
        play = run(matrix.situations[state])
        assert state_name(machine, matrix.state(play)) == state
        name = f"{act.step}: {act.event}"
        found[name] = happened(play, act, of_order=matrix.of_order)
        expected[name] = any(
            permits(machine, state, trigger, role) for trigger in act.triggers for role in set(Role) - AUTOMATIC
        )
    assert found == expected
