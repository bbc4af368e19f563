"""Which calls a rule gets: counting, chances, and rules that can match nothing. No hub is needed for it."""

from typing import Any

import pytest

from erxhub.sandbox.errors import SandboxRefused
from erxhub.sandbox.faults import RULES_MAX, Call, Faults
from erxhub.v1 import sandbox_pb2

SETTLE = "DispensingService/Settle"
LOSE_ACK = sandbox_pb2.FAULT_ACTION_LOSE_ACK


def call(operation: str = "request-1", *, method: str = SETTLE, actor: str = "pharmacy/P1", rx_no: str = "") -> Call:
    return Call(method, actor, operation, rx_no)


def rule(**fields: Any) -> sandbox_pb2.FaultRule:
    return sandbox_pb2.FaultRule(**({"rule_id": "r", "method": "*", "action": LOSE_ACK} | fields))


def faults(*rules: sandbox_pb2.FaultRule, seed: int = 1) -> Faults:
    made = Faults(seed)
    made.set(rules)
    return made


def fires(of: Faults, *calls: Call) -> list[bool]:
    return [bool(of.plan(each).rules) for each in calls]


def counters(of: Faults) -> list[tuple[str, int, int]]:
    return [(told.rule_id, told.matched, told.fired) for told in of.list()]


def test_nth_means_the_nth_matching_call() -> None:
    made = faults(rule(nth=2))
    assert fires(made, call("a"), call("b"), call("c")) == [False, True, False]
    assert counters(made) == [("r", 3, 1)]


def test_every_rule_counts_every_matching_call_and_the_first_that_fires_wins() -> None:
    first = rule(rule_id="first", nth=1, action=sandbox_pb2.FAULT_ACTION_DROP_REQUEST)
    second = rule(rule_id="second", action=sandbox_pb2.FAULT_ACTION_DROP_REQUEST)
    third = rule(rule_id="third")
    made = faults(first, second, third)
    plans = [made.plan(call("a")), made.plan(call("b"))]
    assert [plan.fate.message.rule_id for plan in plans if plan.fate] == ["first", "second"]
    assert [plan.taken for plan in plans] == [None, None]
    assert counters(made) == [("first", 2, 1), ("second", 2, 1), ("third", 2, 0)]


def test_delays_add_up_and_stay_when_another_rule_ends_the_call() -> None:
    delay = sandbox_pb2.FaultArguments(delay_ms=5)
    made = faults(
        rule(rule_id="d1", action=sandbox_pb2.FAULT_ACTION_DELAY, arguments=delay),
        rule(rule_id="e", action=sandbox_pb2.FAULT_ACTION_DROP_REQUEST),
        rule(rule_id="d2", action=sandbox_pb2.FAULT_ACTION_DELAY, arguments=delay),
    )
    plan = made.plan(call())
    assert [each.message.rule_id for each in plan.delays] == ["d1", "d2"]
    assert plan.fate is not None


def test_actor_prescription_and_method_narrow_a_rule() -> None:
    made = faults(rule(method="Dispensing/Settle", actor="pharmacy/*", rx_no="1"))
    others = [
        call(method="DispensingService/Dispense", rx_no="1"),
        call(actor="hospital/H1", rx_no="1"),
        call(actor="pharmacyx/P1", rx_no="1"),
        call(rx_no="2"),
    ]
    assert fires(made, *others, call(rx_no="1")) == [False] * 4 + [True]


def test_a_chance_hangs_on_seed_rule_caller_operation_and_attempt_alone() -> None:
    operations = [f"request-{number}" for number in range(40)]
    forwards = faults(rule(probability=0.5))
    backwards = faults(rule(probability=0.5))
    one = dict(zip(operations, fires(forwards, *map(call, operations)), strict=True))
    other = dict(zip(reversed(operations), fires(backwards, *map(call, reversed(operations))), strict=True))
    assert one == other
    assert {True, False} == set(one.values())
    reseeded = fires(faults(rule(probability=0.5), seed=2), *map(call, operations))
    renamed = fires(faults(rule(rule_id="q", probability=0.5)), *map(call, operations))
    assert list(one.values()) != reseeded
    assert list(one.values()) != renamed
    attempts = fires(faults(rule(probability=0.5)), *[call("request-1")] * 40)
    assert {True, False} == set(attempts)


def test_a_chance_meets_about_its_share() -> None:
    met = fires(faults(rule(probability=0.05)), *(call(f"request-{number}") for number in range(4000)))
    assert 140 < sum(met) < 260


def test_max_consecutive_lets_the_next_attempt_of_the_same_operation_through() -> None:
    made = faults(rule(max_consecutive=2))
    assert fires(made, *[call("a")] * 4, call("b")) == [True, True, False, True, True]


def test_max_total_ends_a_rule() -> None:
    assert fires(faults(rule(max_total=2)), *(call(str(number)) for number in range(4))) == [True, True, False, False]


def test_a_rule_on_everything_counts_only_what_its_action_can_meet() -> None:
    made = faults(rule(action=sandbox_pb2.FAULT_ACTION_TRUNCATE_STREAM))
    watch = Call("DispensingService/WatchOrders", "pharmacy/P1", "w", "", True)
    assert fires(made, call(), watch) == [False, True]
    assert counters(made) == [("r", 1, 1)]


def test_state_goes_into_a_snapshot_and_back() -> None:
    made = faults(rule(probability=0.5, max_consecutive=1), rule(rule_id="n", nth=3))
    fires(made, call("a"), call("b"))
    state = made.export_state()
    then = fires(made, call("a"), call("b"), call("c"))
    counted = counters(made)
    made.clear()
    made.import_state(state)
    assert fires(made, call("a"), call("b"), call("c")) == then
    assert counters(made) == counted


def test_rules_are_added_replaced_by_id_and_cleared() -> None:
    made = faults(rule(), rule(rule_id=""))
    assert [told.rule_id for told in made.list()] == ["r", "rule-1"]
    fires(made, call())
    made.set([rule(nth=5)])
    assert counters(made) == [("rule-1", 1, 0), ("r", 0, 0)]
    made.clear(["rule-1", "no such rule"])
    assert counters(made) == [("r", 0, 0)]
    made.set([rule(rule_id="other")], replace=True)
    assert counters(made) == [("other", 0, 0)]
    made.clear()
    assert not made.list()
    assert not made.concern(SETTLE)


def test_a_refused_set_changes_nothing() -> None:
    made = faults(rule())
    with pytest.raises(SandboxRefused) as refused:
        made.set([rule(rule_id="good"), rule(rule_id="bad", method="Dispensing/Nothing")], replace=True)
    assert refused.value.detail["field"] == "rules[1].method"
    with pytest.raises(SandboxRefused) as twice:
        made.set([rule(rule_id="same"), rule(rule_id="same")])
    assert twice.value.code == "SBX_ARGUMENT"
    with pytest.raises(SandboxRefused) as many:
        made.set([rule(rule_id=f"r{number}") for number in range(RULES_MAX)])
    assert many.value.code == "SBX_LIMIT"
    assert [told.rule_id for told in made.list()] == ["r"]


A = sandbox_pb2.FaultAction
NEVER: list[tuple[str, dict[str, Any]]] = [
    ("method", {"method": "Settle"}),
    ("method", {"method": "Dispensing/Setle"}),
    ("method", {"method": "Dispensary/*"}),
    ("event", {"method": None, "event": "settlement.comitted"}),
    ("action", {"method": None, "event": "settlement.committed", "action": A.FAULT_ACTION_UNKNOWN_FIELDS}),
    ("rx_no", {"method": None, "event": "voucher.issued", "rx_no": "1"}),
    ("actor", {"actor": "pharmacy"}),
    ("actor", {"actor": "wizard/W1"}),
    ("actor", {"method": "Dispensing/Settle", "actor": "hospital/*"}),
    ("rx_no", {"method": "Voucher/IssueVoucher", "rx_no": "1"}),
    ("rx_no", {"method": "Encounter/*", "rx_no": "1"}),
    ("action", {"method": "Dispensing/Settle", "action": A.FAULT_ACTION_VOUCHER_ISSUER_DOWN}),
    ("action", {"method": "Dispensing/Settle", "action": A.FAULT_ACTION_TRUNCATE_STREAM}),
    ("action", {"method": "Registry/ImportCatalog", "action": A.FAULT_ACTION_DUPLICATE}),
    ("action", {"method": "Dispensing/WatchOrders", "action": A.FAULT_ACTION_LOSE_ACK}),
    ("action", {"method": "Dispensing/WatchOrders", "action": A.FAULT_ACTION_DISK_FULL}),
    ("arguments.code", {"action": A.FAULT_ACTION_ERROR}),
    ("arguments.code", {"action": A.FAULT_ACTION_ERROR, "arguments": {"code": "OK"}}),
    ("arguments.code", {"action": A.FAULT_ACTION_ERROR, "arguments": {"code": "RX_UNKNWON"}}),
    ("arguments.code", {"action": A.FAULT_ACTION_ERROR, "arguments": {"code": "RECON_MISMATCH"}}),
    ("arguments.delay_ms", {"action": A.FAULT_ACTION_DELAY}),
    ("arguments.window", {"action": A.FAULT_ACTION_REORDER, "arguments": {"window": 1}}),
    ("arguments.lag", {"action": A.FAULT_ACTION_STALE_READ}),
    ("arguments.skew_ms", {"action": A.FAULT_ACTION_CLOCK_SKEW}),
    ("arguments.page_size", {"action": A.FAULT_ACTION_SMALL_PAGES}),
    ("action", {"method": "Dispensing/ListByVoucher", "action": A.FAULT_ACTION_STALE_READ, "arguments": {"lag": 1}}),
    ("action", {"method": "Dispensing/Settle", "action": A.FAULT_ACTION_SMALL_PAGES, "arguments": {"page_size": 3}}),
    ("action", {"method": "Voucher/VerifyVoucher", "action": A.FAULT_ACTION_REORDER, "arguments": {"window": 3}}),
    ("max_total", {"nth": 1, "max_total": 2}),
    ("probability", {"probability": 1.5}),
]


@pytest.mark.parametrize(("field", "fields"), NEVER, ids=[f"{field}-{at}" for at, (field, _) in enumerate(NEVER)])
def test_a_rule_that_can_match_nothing_is_refused_and_says_why(field: str, fields: dict[str, Any]) -> None:
    whole = {"rule_id": "r", "method": "*", "action": LOSE_ACK} | fields
    fields = {name: value for name, value in whole.items() if value is not None}
    with pytest.raises(SandboxRefused) as refused:
        Faults(1).set([sandbox_pb2.FaultRule(**fields)])
    assert refused.value.code == "SBX_FAULT_NEVER_MATCHES"
    assert refused.value.detail["field"] == f"rules[0].{field}"
    assert refused.value.violations[0].text
