"""The checker itself: it accepts what can be explained, and rejects every kind of wrong history planted here."""

from __future__ import annotations

import itertools
import random

import pytest

from tests.linear.checker import NotLinearizable, Recorder, check
from tests.linear.model import Call, Done, Kind, Refused, Seen, State, after

P1, P2, H = "pharmacy 1", "pharmacy 2", "hospital"


def history(*calls: tuple[object, ...]) -> list[Call]:
    """Calls given as (begun, ended, caller, kind, answer[, request id[, about]])."""
    made = []
    for number, (begun, ended, caller, kind, answer, *rest) in enumerate(calls):
        request_id, about = (*rest, "", "")[:2]
        made.append(Call(kind, caller, request_id or f"r{number}", begun, ended, answer, about))  # type: ignore[arg-type]
    return made


UPLOADED = (0, 1, H, Kind.UPLOAD, Done("up"))
HELD = (2, 3, P1, Kind.DOWNLOAD, Done("held"))
SETTLED = (4, 5, P1, Kind.SETTLE, Done("paid"), "pay")


def seen(version: int, *, revoked: bool = False, holder: str = "", settled: bool = False, out: bool = False) -> Seen:
    return Seen(version, revoked, holder, settled, out)


RIGHT = {
    "a whole chain": [
        UPLOADED,
        HELD,
        SETTLED,
        (6, 7, P1, Kind.DISPENSE, Done("out")),
        (8, 9, H, Kind.READ, seen(9, settled=True, out=True)),
    ],
    "two downloads at once, in either order": [
        UPLOADED,
        (2, 6, P1, Kind.DOWNLOAD, Refused("ORDER_ALREADY_HELD")),
        (3, 5, P2, Kind.DOWNLOAD, Done("held")),
    ],
    "a refusal that came before the hold it lost to was acknowledged": [
        UPLOADED,
        (2, 9, P1, Kind.DOWNLOAD, Done("held")),
        (3, 4, P2, Kind.DOWNLOAD, Refused("ORDER_ALREADY_HELD")),
    ],
    "a lost reply whose command had its effect": [
        UPLOADED,
        (2, None, P1, Kind.DOWNLOAD, None),
        (4, 5, P2, Kind.DOWNLOAD, Refused("ORDER_ALREADY_HELD")),
    ],
    "a lost reply whose command had none": [
        UPLOADED,
        (2, None, P1, Kind.DOWNLOAD, None),
        (4, 5, P2, Kind.DOWNLOAD, Done("held")),
    ],
    "a repeat after a lost reply": [
        UPLOADED,
        (2, None, P1, Kind.DOWNLOAD, None, "d"),
        (4, 5, P1, Kind.DOWNLOAD, Done("held"), "d"),
        (6, 7, P1, Kind.DOWNLOAD, Done("held"), "d"),
    ],
    "an undo that waits for the hold to end": [
        UPLOADED,
        HELD,
        (4, 5, H, Kind.REVOKE, Refused("RX_UNDO_STATE")),
        (6, 7, P1, Kind.RELEASE, Done("gone")),
        (8, 9, H, Kind.READ, seen(7, revoked=True)),
    ],
    "a reversal that overtakes its original": [
        UPLOADED,
        HELD,
        (4, 9, P1, Kind.SETTLE, Refused("SETL_TERMINAL"), "pay"),
        (5, 6, P1, Kind.REVERSE, Done("back"), "undo", "pay"),
    ],
    "a second reversal of a settlement": [
        UPLOADED,
        HELD,
        (4, 7, P1, Kind.SETTLE, Done("paid"), "pay"),
        (5, 8, P1, Kind.REVERSE, Done("back"), "undo", "pay"),
        (9, 10, P1, Kind.REVERSE, Refused("SETL_TERMINAL"), "undo again", "pay"),
    ],
    "an account that other prescriptions emptied": [
        UPLOADED,
        HELD,
        (4, 5, P1, Kind.SETTLE, Refused("ACCT_INSUFFICIENT")),
        (6, 7, P1, Kind.RELEASE, Done("gone")),
    ],
    "a hub that was away": [UPLOADED, (2, 3, P1, Kind.DOWNLOAD, Refused("HUB_UNAVAILABLE")), (4, 5, *HELD[2:])],
    "two reads with nothing in between": [UPLOADED, (2, 3, H, Kind.READ, seen(4)), (4, 5, H, Kind.READ, seen(4))],
}

WRONG = {
    "double grant": [UPLOADED, (2, 5, P1, Kind.DOWNLOAD, Done("a")), (3, 6, P2, Kind.DOWNLOAD, Done("b"))],
    "lost write": [UPLOADED, HELD, (4, 5, P2, Kind.DOWNLOAD, Done("held too"))],
    "acknowledged, and gone from the last read": [UPLOADED, HELD, (4, 5, H, Kind.READ, seen(4))],
    "stale read": [
        UPLOADED,
        (2, 3, H, Kind.READ, seen(4)),
        (4, 5, P1, Kind.DOWNLOAD, Done("held")),
        (6, 7, H, Kind.READ, seen(4)),
    ],
    "read of the future": [UPLOADED, (2, 3, H, Kind.READ, seen(5, holder=P1)), (4, 5, P1, Kind.DOWNLOAD, Done("h"))],
    "effect that nobody asked for": [UPLOADED, (2, 3, H, Kind.READ, seen(5, holder=P2))],
    "version that goes back": [
        UPLOADED,
        (2, 3, H, Kind.READ, seen(6)),
        (4, 5, P1, Kind.DOWNLOAD, Done("held")),
        (6, 7, H, Kind.READ, seen(5, holder=P1)),
    ],
    "version that stands though something was accepted": [
        UPLOADED,
        (2, 3, H, Kind.READ, seen(6)),
        (4, 5, P1, Kind.DOWNLOAD, Done("held")),
        (6, 7, P1, Kind.RELEASE, Done("gone")),
        (8, 9, H, Kind.READ, seen(6)),
    ],
    "version that moves though nothing was accepted": [
        UPLOADED,
        (2, 3, H, Kind.READ, seen(6)),
        (4, 5, H, Kind.READ, seen(7)),
    ],
    "grant after the undo": [
        UPLOADED,
        (2, 3, H, Kind.REVOKE, Done("undone")),
        (4, 5, P1, Kind.DOWNLOAD, Done("held")),
    ],
    "undo of what is held": [UPLOADED, HELD, (4, 5, H, Kind.REVOKE, Done("undone"))],
    "undo that was asked for and forgotten": [
        UPLOADED,
        HELD,
        (4, 5, H, Kind.REVOKE, Refused("RX_UNDO_STATE")),
        (6, 7, P1, Kind.RELEASE, Done("gone")),
        (8, 9, P2, Kind.DOWNLOAD, Done("held")),
    ],
    "held by nobody, and refused as held": [UPLOADED, (2, 3, P1, Kind.DOWNLOAD, Refused("ORDER_ALREADY_HELD"))],
    "an empty account, and nothing held that could be paid": [
        UPLOADED,
        (2, 3, P1, Kind.SETTLE, Refused("ACCT_INSUFFICIENT")),
    ],
    "an empty account, of what is paid already": [
        UPLOADED,
        HELD,
        SETTLED,
        (6, 7, P1, Kind.SETTLE, Refused("ACCT_INSUFFICIENT"), "pay 2"),
    ],
    "paid twice": [UPLOADED, HELD, SETTLED, (6, 7, P1, Kind.SETTLE, Done("again"), "pay 2")],
    "paid after the undo was asked for": [
        UPLOADED,
        HELD,
        (4, 5, H, Kind.REVOKE, Refused("RX_UNDO_STATE")),
        (6, 7, P1, Kind.SETTLE, Done("paid")),
    ],
    "goods without money": [UPLOADED, HELD, (4, 5, P1, Kind.DISPENSE, Done("out"))],
    "goods twice": [
        UPLOADED,
        HELD,
        SETTLED,
        (6, 9, P1, Kind.DISPENSE, Done("out")),
        (7, 8, P1, Kind.DISPENSE, Done("out again")),
    ],
    "release by another": [UPLOADED, HELD, (4, 5, P2, Kind.RELEASE, Done("gone"))],
    "a repeat with another reply": [
        UPLOADED,
        (2, 3, P1, Kind.DOWNLOAD, Done("a"), "d"),
        (4, 5, P1, Kind.DOWNLOAD, Done("b"), "d"),
    ],
    "a repeat that is refused": [
        UPLOADED,
        (2, 3, P1, Kind.DOWNLOAD, Done("a"), "d"),
        (4, 5, P1, Kind.DOWNLOAD, Refused("RX_NOT_EFFECTIVE"), "d"),
    ],
    "an original that outlives its reversal": [
        UPLOADED,
        HELD,
        (4, 5, P1, Kind.REVERSE, Done("back"), "undo", "pay"),
        (6, 7, P1, Kind.SETTLE, Done("paid"), "pay"),
    ],
    "given back twice": [
        UPLOADED,
        HELD,
        (4, 5, P1, Kind.SETTLE, Done("paid"), "pay"),
        (6, 7, P1, Kind.REVERSE, Done("back"), "undo", "pay"),
        (8, 9, P1, Kind.REVERSE, Done("back again"), "undo again", "pay"),
    ],
    "reversed after the goods are out": [
        UPLOADED,
        HELD,
        SETTLED,
        (6, 7, P1, Kind.DISPENSE, Done("out")),
        (8, 9, P1, Kind.REVERSE, Done("back"), "undo", "pay"),
    ],
    "unknown to its reader": [UPLOADED, (2, 3, H, Kind.READ, Refused("RX_UNKNOWN"))],
    "known before it was": [(0, 1, H, Kind.READ, seen(1)), (2, 3, H, Kind.UPLOAD, Done("up"))],
    "two effects of one unknown outcome": [
        UPLOADED,
        (2, None, P1, Kind.DOWNLOAD, None, "d"),
        (4, 5, P1, Kind.RELEASE, Done("gone")),
        (6, 7, P2, Kind.DOWNLOAD, Refused("ORDER_ALREADY_HELD")),
    ],
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_an_order_explains_is_accepted(name: str) -> None:
    calls = history(*RIGHT[name])
    order = check(calls)
    state = State()
    for call in order:
        following = after(state, call)
        assert following is not None
        state = following
    assert {call.request_id for call in order} >= {call.request_id for call in calls if call.ended is not None}


@pytest.mark.parametrize("name", WRONG)
def test_what_no_order_explains_is_rejected(name: str) -> None:
    with pytest.raises(NotLinearizable) as caught:
        check(history(*WRONG[name]))
    assert "none of these fits" in str(caught.value)


def test_an_answer_out_of_thin_air_is_found_in_a_long_concurrent_history() -> None:
    """A hundred callers at once: one is told that he holds it. With a second one told so, no order is found."""
    callers = [f"pharmacy {number}" for number in range(100)]
    downloads = [
        (
            2 + number,
            200 + number,
            caller,
            Kind.DOWNLOAD,
            Done("held") if number == 57 else Refused("ORDER_ALREADY_HELD"),
        )
        for number, caller in enumerate(callers)
    ]
    assert len(check(history(UPLOADED, *downloads))) == 101
    downloads[3] = (*downloads[3][:4], Done("held"))
    with pytest.raises(NotLinearizable):
        check(history(UPLOADED, *downloads))


@pytest.mark.parametrize("seed", range(40))
def test_every_sequential_run_stays_explicable_when_its_calls_are_stretched(seed: int) -> None:
    """Calls made one after another, then given longer spans and lost answers: still the same order explains them."""
    chance = random.Random(seed)
    state, calls, at = State(), [], itertools.count(0, 10)
    for number in range(14):
        kind = chance.choice(list(Kind))
        caller = H if kind in (Kind.UPLOAD, Kind.REVOKE, Kind.READ) else chance.choice((P1, P2))
        answer: Done | Refused | Seen = Done(f"reply {number}")
        if kind is Kind.READ and state.exists:
            version = state.seen + (1 if state.moved or state.seen < 0 else 0)
            answer = Seen(version, state.revoked, state.holder, bool(state.settled), state.dispensed)
        here = next(at)
        call = Call(kind, caller, f"r{number}", here, here + 1, answer, about=f"r{chance.randrange(14)}")
        following = after(state, call)
        if following is None:
            code = {Kind.READ: "RX_UNKNOWN", Kind.REVOKE: "RX_UNDO_STATE"}.get(kind, "RX_NOT_EFFECTIVE")
            code = "SETL_TERMINAL" if call.request_id in state.reversed else code
            call = Call(kind, caller, f"r{number}", here, here + 1, Refused(code), about=call.about)
            following = after(state, call)
        assert following is not None
        state = following
        wider = (here - chance.randrange(25), here + 1 + chance.randrange(25))
        lost = chance.random() < 0.1 and isinstance(call.answer, Done)
        calls.append(
            Call(call.kind, call.caller, call.request_id, wider[0], None if lost else wider[1],
                 None if lost else call.answer, call.about)
        )  # fmt: skip
    check(calls)


def test_a_recorder_keeps_prescriptions_apart_and_orders_what_overlaps() -> None:
    recorder = Recorder()
    for rx_no in ("rx 1", "rx 2"):
        recorder.end(rx_no, recorder.begin(rx_no, Kind.UPLOAD, H, f"up {rx_no}"), Done("up"))
    first = recorder.begin("rx 1", Kind.DOWNLOAD, P1, "d1")
    second = recorder.begin("rx 1", Kind.DOWNLOAD, P2, "d2")
    recorder.end("rx 1", second, Refused("ORDER_ALREADY_HELD"))
    recorder.end("rx 1", first, Done("held"))
    recorder.begin("rx 2", Kind.DOWNLOAD, P2, "d3")  # never answered
    assert recorder.check() == 5
    recorder.end("rx 1", recorder.begin("rx 1", Kind.DOWNLOAD, P2, "d4"), Done("held"))
    with pytest.raises(NotLinearizable):
        recorder.check()
