"""One prescription as a sequential object: what each call may answer, and what it leaves behind.

Owns the specification that recorded histories are held against. It is written from docs/lifecycle.md and not from the
hub's code, knows nothing of time or processes, and must never be more generous than the lifecycle: an answer that is
not listed here is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    UPLOAD = "upload"
    REVOKE = "revoke"
    DOWNLOAD = "download"
    RELEASE = "release"
    SETTLE = "settle"
    REVERSE = "reverse"
    DISPENSE = "dispense"
    READ = "read"
    OTHER = "other"
    """An accepted call that leaves entries and none of what is modelled: an authorisation, a review, a quote."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of one caller, with its places in the order of all calls' beginnings and ends.

    `begun` and `ended` come from one counter, so a call that ended before another began has the smaller number.
    `ended` is None for a call whose outcome nobody was told: it may have had its effect at any time after it began,
    or never. `answer` is then None. `about` is the request id that a reversal names.
    """

    kind: Kind
    caller: str
    request_id: str
    begun: int
    ended: int | None = None
    answer: Done | Refused | Seen | None = None
    about: str = ""


class Done(NamedTuple):
    """Accepted. `reply` tells two replies apart: any digest of the bytes."""

    reply: str


class Refused(NamedTuple):
    """Refused, or not taken, for sure: it had no effect. A failure that leaves the outcome open is no answer at all."""

    code: str


class Seen(NamedTuple):
    """What a read told."""

    version: int
    revoked: bool
    holder: str
    settled: bool
    dispensed: bool


class State(NamedTuple):
    """The prescription, and what binds later calls. `seen` is the version that the last read told; `moved` says whether
    anything was accepted since."""

    exists: bool = False
    revoked: bool = False
    undo_asked: bool = False
    holder: str = ""
    settled: str = ""
    """The request that settled."""
    dispensed: bool = False
    replies: frozenset[tuple[str, str]] = frozenset()
    reversed: frozenset[str] = frozenset()
    seen: int = -1
    moved: bool = False


NEVER_TAKEN = frozenset({"HUB_UNAVAILABLE", "OVERLOADED"})
"""Said when the command was not decided, or its commit failed as a whole."""


def after(state: State, call: Call) -> State | None:
    """The state after a call that answers so in this state; None where it cannot answer so.

    A call without an answer is taken to have been accepted, if it can be.
    """
    answer = call.answer
    if isinstance(answer, Seen):
        return _read(state, answer) if call.kind is Kind.READ else None
    if isinstance(answer, Refused):
        if answer.code in NEVER_TAKEN:
            return state
        if any(request == call.request_id for request, _ in state.replies):
            return None
        if call.request_id in state.reversed:
            return state if answer.code == "SETL_TERMINAL" else None
        return _REFUSALS[call.kind](state, call, answer.code)
    for request, reply in state.replies:
        if request == call.request_id:
            # A repeat: the first reply and no second effect. Nobody knows the reply of a call that was never answered.
            return state if answer is None or reply in ("", answer.reply) else None
    if call.request_id in state.reversed or call.kind is Kind.READ:
        return None
    effect = _EFFECTS[call.kind](state, call)
    if effect is None:
        return None
    reply = "" if answer is None else answer.reply
    return effect._replace(replies=effect.replies | {(call.request_id, reply)}, moved=True)


def _read(state: State, seen: Seen) -> State | None:
    if not state.exists:
        return None
    if seen[1:] != (state.revoked, state.holder, bool(state.settled), state.dispensed):
        return None
    # Every accepted call adds entries, so the version says whether one came in between.
    fits = seen.version > state.seen if state.moved else seen.version == state.seen
    return state._replace(seen=seen.version, moved=False) if fits or state.seen < 0 else None


def _upload(state: State, _: Call) -> State | None:
    return None if state.exists else state._replace(exists=True)


def _revoke(state: State, _: Call) -> State | None:
    takes = state.exists and not (state.revoked or state.holder or state.dispensed)
    return state._replace(revoked=True) if takes else None


def _download(state: State, call: Call) -> State | None:
    takes = state.exists and not (state.revoked or state.undo_asked or state.holder or state.dispensed)
    return state._replace(holder=call.caller) if takes else None


def _release(state: State, call: Call) -> State | None:
    if not state.holder or state.holder != call.caller or state.settled:
        return None
    return state._replace(holder="", revoked=state.revoked or state.undo_asked)


def _settle(state: State, call: Call) -> State | None:
    takes = state.holder == call.caller and not state.settled and not state.undo_asked
    return state._replace(settled=call.request_id) if takes else None


def _reverse(state: State, call: Call) -> State | None:
    if state.settled and state.settled == call.about:
        # It takes the hold with it, and an undo that waited for the hold to end takes effect.
        released = state._replace(settled="", holder="", revoked=state.revoked or state.undo_asked)
        return None if state.dispensed else released._replace(reversed=state.reversed | {call.about})
    if any(request == call.about for request, _ in state.replies):
        return None  # what was accepted and is given back already is not given back under another request id
    return state._replace(reversed=state.reversed | {call.about})


def _dispense(state: State, call: Call) -> State | None:
    takes = state.holder == call.caller and bool(state.settled) and not state.dispensed
    return state._replace(dispensed=True, holder="") if takes else None


def _other(state: State, _: Call) -> State | None:
    return state


def _refuse_revoke(state: State, call: Call, code: str) -> State | None:
    if code == "RX_UNDO_STATE" and state.holder and not state.settled:
        # The one refusal that changes something: the undo waits for the hold to end.
        return state if state.undo_asked else state._replace(undo_asked=True, moved=True)
    return state if _revoke(state, call) is None else None


def _refuse_download(state: State, call: Call, code: str) -> State | None:
    if code == "ORDER_ALREADY_HELD" and state.holder in ("", call.caller):
        return None
    return state if _download(state, call) is None else None


def _refuse_settle(state: State, call: Call, code: str) -> State | None:
    # What is left in the account is not in this history: other prescriptions of the person take from it. It is looked
    # at last, so nothing else may speak against the settlement.
    for_the_account = code == "ACCT_INSUFFICIENT"
    return state if (_settle(state, call) is not None) == for_the_account else None


def _refuse_release(state: State, call: Call, _: str) -> State | None:
    return state if _release(state, call) is None else None


def _refuse_dispense(state: State, call: Call, _: str) -> State | None:
    return state if _dispense(state, call) is None else None


def _refuse_upload(state: State, call: Call, _: str) -> State | None:
    return state if _upload(state, call) is None else None


def _refuse_reverse(state: State, call: Call, _: str) -> State | None:
    return state if _reverse(state, call) is None else None


def _refuse_other(state: State, _: Call, __: str) -> State | None:
    return state


def _refuse_read(state: State, _: Call, code: str) -> State | None:
    return state if code == "RX_UNKNOWN" and not state.exists else None


_EFFECTS = {
    Kind.UPLOAD: _upload,
    Kind.REVOKE: _revoke,
    Kind.DOWNLOAD: _download,
    Kind.RELEASE: _release,
    Kind.SETTLE: _settle,
    Kind.REVERSE: _reverse,
    Kind.DISPENSE: _dispense,
    Kind.OTHER: _other,
}

_REFUSALS = {
    Kind.UPLOAD: _refuse_upload,
    Kind.REVOKE: _refuse_revoke,
    Kind.DOWNLOAD: _refuse_download,
    Kind.RELEASE: _refuse_release,
    Kind.SETTLE: _refuse_settle,
    Kind.REVERSE: _refuse_reverse,
    Kind.DISPENSE: _refuse_dispense,
    Kind.READ: _refuse_read,
    Kind.OTHER: _refuse_other,
}
