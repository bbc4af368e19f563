"""The fault rules of one namespace: which are set, what they matched, and which of them a call or a commit gets.

Owns the counting and the chances. A chance is a hash of seed, rule, caller, operation and attempt, so that neither
scheduling nor other callers can change it. It never touches a call: exchange.py and faulty_store.py do what is decided
here. Rules are told apart by what they are about:

- a rule on a *method* is asked once a call, in the order of the rules. Of the actions that end a call early (error,
  drop_request, goaway, voucher_issuer_down, crash before) the first that fires is the call's fate, and no later rule
  fires; of those that take the reply away (lose_ack, crash after) likewise; delays add up; every other action takes the
  first rule that fires.
- a rule on an *event* is asked once for each write of a commit that holds such an event.

On a stream, duplicate and the alterations of replies are decided message by message when the rule has a probability.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from erxhub.sandbox import facts
from erxhub.sandbox.errors import SandboxRefused
from erxhub.sandbox.fault_check import check_rule, why_never
from erxhub.v1 import sandbox_pb2

RULES_MAX: Final = 200
_OPERATIONS_KEPT: Final = 20_000
"""Operations of which a rule remembers the attempts. One that is forgotten begins again with its first attempt."""

Action: TypeAlias = sandbox_pb2.FaultAction.ValueType

DELAY: Final = sandbox_pb2.FAULT_ACTION_DELAY
ERROR: Final = sandbox_pb2.FAULT_ACTION_ERROR
DROP_REQUEST: Final = sandbox_pb2.FAULT_ACTION_DROP_REQUEST
LOSE_ACK: Final = sandbox_pb2.FAULT_ACTION_LOSE_ACK
DUPLICATE: Final = sandbox_pb2.FAULT_ACTION_DUPLICATE
REORDER: Final = sandbox_pb2.FAULT_ACTION_REORDER
STALE_READ: Final = sandbox_pb2.FAULT_ACTION_STALE_READ
TRUNCATE_STREAM: Final = sandbox_pb2.FAULT_ACTION_TRUNCATE_STREAM
GOAWAY: Final = sandbox_pb2.FAULT_ACTION_GOAWAY
CORRUPT_SIGNATURE: Final = sandbox_pb2.FAULT_ACTION_CORRUPT_SIGNATURE
UNKNOWN_FIELDS: Final = sandbox_pb2.FAULT_ACTION_UNKNOWN_FIELDS
UNKNOWN_ENUM: Final = sandbox_pb2.FAULT_ACTION_UNKNOWN_ENUM
CLOCK_SKEW: Final = sandbox_pb2.FAULT_ACTION_CLOCK_SKEW
REVOKE_CERT_NOW: Final = sandbox_pb2.FAULT_ACTION_REVOKE_CERT_NOW
VOUCHER_ISSUER_DOWN: Final = sandbox_pb2.FAULT_ACTION_VOUCHER_ISSUER_DOWN
DISK_FULL: Final = sandbox_pb2.FAULT_ACTION_DISK_FULL
CRASH_HUB: Final = sandbox_pb2.FAULT_ACTION_CRASH_HUB
SMALL_PAGES: Final = sandbox_pb2.FAULT_ACTION_SMALL_PAGES

_PER_MESSAGE: Final = frozenset({DUPLICATE, CORRUPT_SIGNATURE, UNKNOWN_FIELDS, UNKNOWN_ENUM})
_ENDS_EARLY: Final = frozenset({ERROR, DROP_REQUEST, GOAWAY, VOUCHER_ISSUER_DOWN})


def action_name(action: Action) -> str:
    """The action as people write it, e.g. "lose_ack"."""
    return sandbox_pb2.FaultAction.Name(action).removeprefix("FAULT_ACTION_").lower()


class Call(NamedTuple):
    """A call as rules see it. `operation` stays the same over its attempts."""

    method: str
    actor: str
    operation: str
    rx_no: str
    streams: bool = False


@dataclass(slots=True)
class _Attempts:
    """One operation under one rule."""

    seen: int = 0
    in_a_row: int = 0


@dataclass(slots=True, eq=False)
class Rule:
    """One rule, with what it counted. `message` is as it was set; read the counters through `told`."""

    message: sandbox_pb2.FaultRule
    matched: int = 0
    fired: int = 0
    attempts: OrderedDict[tuple[str, str], _Attempts] = field(default_factory=OrderedDict)

    @property
    def action(self) -> Action:
        """What it does."""
        return self.message.action

    @property
    def arguments(self) -> sandbox_pb2.FaultArguments:
        """How it does it."""
        return self.message.arguments

    @property
    def label(self) -> str:
        """As recorded with a call: "rule_id action"."""
        return f"{self.message.rule_id} {action_name(self.action)}"

    def told(self) -> sandbox_pb2.FaultRule:
        """A copy with its counters."""
        told = sandbox_pb2.FaultRule()
        told.CopyFrom(self.message)
        told.matched, told.fired = self.matched, self.fired
        return told

    def concerns(self, actor: str) -> bool:
        """Whether the caller is meant."""
        wanted = self.message.actor
        return not wanted or wanted == actor or (wanted.endswith("/*") and actor.startswith(wanted[:-1]))


@dataclass(slots=True)
class Plan:
    """What one call gets. `fate` ends it before the hub sees it; `taken` takes the reply away."""

    delays: list[Rule] = field(default_factory=list)
    fate: Rule | None = None
    taken: Rule | None = None
    others: dict[Action, Rule] = field(default_factory=dict)

    @property
    def rules(self) -> list[Rule]:
        """Every rule in it."""
        ends = [rule for rule in (self.fate, self.taken) if rule is not None]
        return [*self.delays, *ends, *self.others.values()]


@dataclass(slots=True)
class CommitPlan:
    """What one commit gets."""

    disk_full: Rule | None = None
    crash: Rule | None = None
    lost: list[tuple[str, str, Rule]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class FaultsState:
    """Everything that a snapshot keeps of the rules: opaque, and never changed."""

    rules: tuple[tuple[bytes, int, int, tuple[tuple[tuple[str, str], int, int], ...]], ...]
    given: int


class Faults:
    """The rules of one namespace. `seed` is the namespace's."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._rules: tuple[Rule, ...] = ()
        self._given = 0
        self._by_method: Mapping[str, tuple[Rule, ...]] = {}
        self._on_events: tuple[Rule, ...] = ()
        self._doomed: dict[tuple[str, str], Rule] = {}
        self._lost: dict[tuple[str, str], Rule] = {}
        self._noted: dict[tuple[str, str], list[str]] = {}

    # ---- the rules ----

    def set(self, rules: Sequence[sandbox_pb2.FaultRule], *, replace: bool = False) -> None:
        """Add rules, or put them in place of all. One with the id of a set rule takes that one's place, counted anew.

        Either all hold or none is set. Raises SandboxRefused: SBX_FAULT_NEVER_MATCHES, SBX_ARGUMENT (an id twice),
        SBX_LIMIT.
        """
        given = self._given
        coming: dict[str, Rule] = {}
        for place, message in enumerate(rules):
            check_rule(message, f"rules[{place}]")
            copied = sandbox_pb2.FaultRule()
            copied.CopyFrom(message)
            copied.ClearField("matched")
            copied.ClearField("fired")
            if not copied.rule_id:
                given += 1
                copied.rule_id = f"rule-{given}"
            if copied.rule_id in coming:
                detail = {"field": f"rules[{place}].rule_id", "rule_id": copied.rule_id, "reason": "given twice"}
                raise SandboxRefused("SBX_ARGUMENT", detail)
            coming[copied.rule_id] = Rule(copied)
        kept = [] if replace else [rule for rule in self._rules if rule.message.rule_id not in coming]
        if len(kept) + len(coming) > RULES_MAX:
            raise SandboxRefused("SBX_LIMIT", {"rules_max": str(RULES_MAX)})
        self._given = given
        self._take([*kept, *coming.values()])

    def list(self) -> Sequence[sandbox_pb2.FaultRule]:
        """The rules in order, with their counters."""
        return [rule.told() for rule in self._rules]

    def clear(self, rule_ids: Sequence[str] = ()) -> None:
        """Remove these rules, or all; an id that is not set changes nothing."""
        wanted = set(rule_ids)
        self._take([rule for rule in self._rules if wanted and rule.message.rule_id not in wanted])

    def export_state(self) -> FaultsState:
        """The rules and all that they counted, for a snapshot."""
        return FaultsState(
            tuple(
                (
                    rule.message.SerializeToString(deterministic=True),
                    rule.matched,
                    rule.fired,
                    tuple((key, one.seen, one.in_a_row) for key, one in rule.attempts.items()),
                )
                for rule in self._rules
            ),
            self._given,
        )

    def import_state(self, state: FaultsState) -> None:
        """Go back to a snapshot."""
        self._given = state.given
        self._take(
            [
                Rule(
                    sandbox_pb2.FaultRule.FromString(message),
                    matched,
                    fired,
                    OrderedDict((key, _Attempts(seen, in_a_row)) for key, seen, in_a_row in attempts),
                )
                for message, matched, fired, attempts in state.rules
            ]
        )

    def _take(self, rules: Sequence[Rule]) -> None:
        self._rules = tuple(rules)
        self._on_events = tuple(rule for rule in rules if rule.message.WhichOneof("on") == "event")
        by_method: dict[str, list[Rule]] = {}
        for rule in rules:
            if rule.message.WhichOneof("on") == "method":
                for method in facts.methods_matching(rule.message.method):
                    # A rule on "*" is about the calls that its action can do something to.
                    if why_never(rule.action, method) is None:
                        by_method.setdefault(method.name, []).append(rule)
        self._by_method = {name: tuple(found) for name, found in by_method.items()}
        self._doomed.clear()
        self._lost.clear()
        self._noted.clear()

    # ---- calls ----

    def concern(self, method: str) -> bool:
        """Whether a call of this method has to be looked at."""
        return method in self._by_method or bool(self._on_events)

    def need_prescription(self, method: str) -> bool:
        """Whether a rule of this method asks for one prescription."""
        return any(rule.message.rx_no for rule in self._by_method.get(method, ()))

    def ages_reads(self, method: str) -> bool:
        """Whether a rule may show old replies of this method, so that they have to be remembered."""
        return any(rule.action == STALE_READ for rule in self._by_method.get(method, ()))

    def plan(self, call: Call) -> Plan:
        """Ask every rule about one call; each matching one counts it."""
        plan = Plan()
        for rule in self._by_method.get(call.method, ()):
            if not rule.concerns(call.actor) or (rule.message.rx_no and rule.message.rx_no != call.rx_no):
                continue
            if self._fires(rule, call.actor, call.operation, chance_later=_is_each(rule, call)):
                _into(plan, rule, call)
        if plan.fate is not None:
            plan.taken = None
            plan.others.clear()
        for rule in plan.rules:
            rule.fired += not _is_each(rule, call)
        return plan

    def unused(self, rule: Rule) -> None:
        """The rule that a plan named found nothing to do, e.g. no older reply to show."""
        rule.fired -= 1

    def fires_on_message(self, rule: Rule, call: Call, number: int) -> bool:
        """Whether a rule with a probability meets the `number`-th message (from 1) of a stream."""
        if not _is_each(rule, call):
            return True
        if rule.message.max_total and rule.fired >= rule.message.max_total:
            return False
        fires = self._chance(rule, call.actor, f"{call.operation}/{number}", 1) < rule.message.probability
        rule.fired += fires
        return fires

    def order_of(self, rule: Rule, call: Call, number: int) -> float:
        """Where the `number`-th message of a stream stands when its window is shuffled."""
        return self._chance(rule, call.actor, f"{call.operation}/{number}", 0)

    def _fires(self, rule: Rule, actor: str, operation: str, *, chance_later: bool = False) -> bool:
        rule.matched += 1
        message = rule.message
        one = _Attempts()
        if message.probability or message.max_consecutive:
            one = rule.attempts.setdefault((actor, operation), one)
            rule.attempts.move_to_end((actor, operation))
            if len(rule.attempts) > _OPERATIONS_KEPT:
                rule.attempts.popitem(last=False)
        one.seen += 1
        fires = (
            (not message.nth or rule.matched == message.nth)
            and (not message.max_total or rule.fired < message.max_total)
            and (not message.max_consecutive or one.in_a_row < message.max_consecutive)
            and (
                chance_later
                or not message.probability
                or self._chance(rule, actor, operation, one.seen) < message.probability
            )
        )
        one.in_a_row = one.in_a_row + 1 if fires else 0
        return fires

    def _chance(self, rule: Rule, actor: str, operation: str, attempt: int) -> float:
        """A number in [0, 1) from SHA-256 over seed, rule, caller, operation and attempt, each after its length."""
        parts = (b"%d" % self._seed, rule.message.rule_id.encode(), actor.encode(), operation.encode(), b"%d" % attempt)
        digest = hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()
        # 53 bits are what a float holds exactly, so the result never rounds up to 1.
        return (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53)

    # ---- commits ----

    @property
    def watch_commits(self) -> bool:
        """Whether writes have to be looked at."""
        return bool(self._on_events or self._doomed)

    def doom(self, actor: str, request_id: str, rule: Rule) -> None:
        """What this call writes meets a full disk, until `spare`."""
        self._doomed[actor, request_id] = rule

    def spare(self, actor: str, request_id: str) -> None:
        """The call is over."""
        self._doomed.pop((actor, request_id), None)

    def plan_commit(self, batch: Iterable[tuple[str, str, Sequence[object]]]) -> CommitPlan:
        """Ask the rules about the writes of one commit: (actor, request id, entries) of each."""
        plan = CommitPlan()
        for actor, request_id, entries in batch:
            doomed = self._doomed.get((actor, request_id))
            if doomed is not None and plan.disk_full is None:
                plan.disk_full = doomed
            if not self._on_events:
                continue
            names = facts.event_names(entries)
            for rule in self._on_events:
                if rule.message.event not in names or not rule.concerns(actor):
                    continue
                if rule.message.rx_no and not facts.is_about(entries, rule.message.rx_no):
                    continue
                if self._fires(rule, actor, request_id or rule.message.event):
                    self._into_commit(plan, rule, actor, request_id)
        return plan

    def _into_commit(self, plan: CommitPlan, rule: Rule, actor: str, request_id: str) -> None:
        if rule.action == DISK_FULL:
            if plan.disk_full is not None:
                return
            plan.disk_full = rule
        elif rule.action == CRASH_HUB:
            if plan.crash is not None:
                return
            plan.crash = rule
        elif not request_id:
            # Written by time alone, or a read: there is no reply of a command to lose.
            return
        else:
            plan.lost.append((actor, request_id, rule))
        rule.fired += 1
        if request_id:
            self._noted.setdefault((actor, request_id), []).append(rule.label)

    def lose(self, actor: str, request_id: str, rule: Rule) -> None:
        """The reply to this call, whose commit is durable now, never reaches its caller."""
        self._lost[actor, request_id] = rule

    def after_commit(self, actor: str, request_id: str) -> tuple[Rule | None, Sequence[str]]:
        """What rules on events did to this call: the one that takes its reply away, and the labels of all. Once."""
        return self._lost.pop((actor, request_id), None), self._noted.pop((actor, request_id), [])


def _is_each(rule: Rule, call: Call) -> bool:
    """Whether the rule's chance is one of every message of the stream, and not of the stream."""
    return call.streams and rule.action in _PER_MESSAGE and rule.message.probability > 0


def _into(plan: Plan, rule: Rule, call: Call) -> None:
    action = rule.action
    if action == DELAY:
        plan.delays.append(rule)
    elif action in _ENDS_EARLY or (action == CRASH_HUB and (call.streams or not rule.arguments.after_commit)):
        plan.fate = plan.fate or rule
    elif action in (LOSE_ACK, CRASH_HUB):
        plan.taken = plan.taken or rule
    else:
        plan.others.setdefault(action, rule)
