"""Looks through the script of a case before it is ever played: words that do not exist, names that nobody has saved.

Owns: what a schema cannot say about steps and expectations. Must never: play a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from erxhub.conform import vocabulary as words
from erxhub.conform.values import plain, references
from erxhub.harness.v1 import case_pb2
from erxhub.v1 import sandbox_pb2

ORDER_FIELDS: Final = ("review", "order", "settlement", "dispense", "delivery")
"""Of a HubExpect: what is asked about the order at one pharmacy."""

Found = tuple[str, str, str]
"""(where, English, Chinese)"""


CONFIGURABLE: Final = frozenset({"server_name", "timeout_ms", "ca"})
"""What a case may change of the arguments of `configure`."""


def operations(play: case_pb2.Play) -> frozenset[str]:
    """The driver's operations that a script asks for."""
    return frozenset(step.sut.op for step in play.steps if step.HasField("sut"))


def kills(play: case_pb2.Play) -> bool:
    """Whether the script ends the driver's process and starts it again."""
    return any(step.HasField("kill") or step.HasField("restart") for step in play.steps)


def moves_clock(play: case_pb2.Play) -> bool:
    """Whether the hub's clock is set or moved."""
    moved = any(step.HasField("advance") or step.HasField("snapshot") for step in play.steps)
    expired = any(step.trigger.kind.startswith("expire_") for step in play.steps)
    return moved or expired or bool(play.given.clock_ms)


def given_names(given: case_pb2.Given) -> list[str]:
    """The names that stand before the first step."""
    names = []
    for one in given.prescriptions:
        names += [f"{one.name}{number}" for number in range(1, one.copies + 1)] if one.copies else [one.name]
    return names + [one.name for one in given.vouchers]


def script_problems(role: str, play: case_pb2.Play) -> Iterator[Found]:
    """What is wrong, in the order in which it stands."""
    names = set(words.PRESET_NAMES)
    for name in given_names(play.given):
        if name in names:
            yield "given", f"the name {name} is given twice", f"名称 {name} 重复"
        names.add(name)
    for fault in play.given.faults:
        yield from _fault(fault, names, "given.faults")
    yield from _configure(play.given.configure.fields, "given.configure")
    running: set[str] = set()
    for place, step in enumerate(play.steps):
        where = f"steps[{place}]"
        yield from _step(role, step, names, running, where)
        names |= set(_saved(step))
    for name in sorted(running):
        yield "steps", f"nothing joins the operation {name}", f"没有步骤等待后台操作 {name}"
    for which, expect in [("expect", play.expect), *((f"also_ok[{n}]", one) for n, one in enumerate(play.also_ok))]:
        yield from _expect(expect, names, which)


def _saved(step: case_pb2.Step) -> Iterator[str]:
    verb = step.WhichOneof("verb")
    if verb == "voucher":
        yield step.voucher.name
    elif verb in ("sut", "join", "robot") and getattr(step, verb).save:
        yield getattr(step, verb).save


def _step(role: str, step: case_pb2.Step, names: set[str], running: set[str], where: str) -> Iterator[Found]:
    verb = step.WhichOneof("verb")
    if verb == "sut":
        yield from _sut(role, step.sut, names, running, where)
    elif verb == "join":
        if step.join.name not in running:
            yield where, f"no operation {step.join.name} runs here", f"后台操作 {step.join.name} 不存在"
        running.discard(step.join.name)
        yield from _unknown(plain(step.join.expect), names, where)
    elif verb in ("kill", "restart"):
        # A process that is ended answers nothing more.
        running.clear()
        yield from _configure(step.restart.configure.fields, where)
    elif verb == "robot":
        yield from _robot(role, step.robot, names, where)
    elif verb == "advance":
        yield from _unknown(step.advance.until, names, where)
    elif verb == "faults":
        for fault in step.faults.set:
            yield from _fault(fault, names, where)
    elif verb == "trigger":
        if step.trigger.kind not in words.TRIGGERS:
            yield where, f"there is no trigger {step.trigger.kind}", f"触发 {step.trigger.kind} 不存在"
        yield from _unknown([step.trigger.rx, step.trigger.id], names, where)
    elif verb == "wait_for" and not words.method_exists(step.wait_for.method):
        yield where, f"there is no method {step.wait_for.method}", f"方法 {step.wait_for.method} 不存在"
    elif verb == "expect":
        yield from _expect(step.expect, names, where)
        if role == "hospital" and any(hub.HasField(name) for hub in step.expect.hub for name in ORDER_FIELDS):
            yield (
                where,
                "an order is looked at only at the end when a hospital is under test",
                "被测方为医院时，订单只在结束时检查",
            )


def _configure(given: Mapping[str, Any], where: str) -> Iterator[Found]:
    for name in given:
        if name not in CONFIGURABLE:
            yield where, f"a case does not change {name} of configure", f"用例不能更改 configure 的 {name}"


def _sut(role: str, sut: case_pb2.Sut, names: set[str], running: set[str], where: str) -> Iterator[Found]:
    if sut.op not in words.OPS[role] or sut.op in ("describe", "configure", "shutdown"):
        yield where, f"a {role}'s driver is not asked for {sut.op}", f"{role} 的驱动没有操作 {sut.op}"
    if sut.background:
        if sut.HasField("expect") or sut.save:
            yield (
                where,
                "expect and save of an operation in the background stand in its join",
                "后台操作的 expect 和 save 写在 join 中",
            )
        if sut.background in running:
            yield where, f"an operation {sut.background} runs already", f"后台操作 {sut.background} 已在进行"
        running.add(sut.background)
    outcome = plain(sut.expect).get("outcome")
    for value in outcome if isinstance(outcome, list) else [outcome]:
        if isinstance(value, str) and value not in words.OUTCOMES:
            yield where, f"there is no outcome {value}", f"结果 {value} 不存在"
    yield from _unknown([plain(sut.args), plain(sut.expect)], names, where)


def _robot(role: str, robot: case_pb2.Robot, names: set[str], where: str) -> Iterator[Found]:
    if robot.do not in words.ROBOT_VERBS[robot.actor.removesuffix("_b")]:
        yield where, f"{robot.actor} does not know {robot.do}", f"{robot.actor} 不会 {robot.do}"
    if robot.actor == role:
        yield (
            where,
            f"{robot.actor} is under test, no robot may call as it",
            f"{robot.actor} 是被测方，机器人不得代其调用",
        )
    if robot.refused and robot.refused not in words.REFUSALS:
        yield where, f"there is no refusal {robot.refused}", f"拒绝代码 {robot.refused} 不存在"
    yield from _unknown(plain(robot.args), names, where)


def _fault(fault: case_pb2.Fault, names: set[str], where: str) -> Iterator[Found]:
    if fault.do not in words.FAULT_ACTIONS:
        yield where, f"there is no fault {fault.do}", f"故障动作 {fault.do} 不存在"
    if fault.method and not words.method_exists(fault.method):
        yield where, f"there is no method {fault.method}", f"方法 {fault.method} 不存在"
    if fault.event and fault.event not in words.EVENTS:
        yield where, f"there is no event {fault.event}", f"事件 {fault.event} 不存在"
    known = sandbox_pb2.FaultArguments.DESCRIPTOR.fields_by_name
    for name in fault.args.fields:
        if name not in known:
            yield where, f"a fault has no argument {name}", f"故障没有参数 {name}"
    yield from _unknown(fault.rx, names, where)


def _expect(expect: case_pb2.Expect, names: set[str], where: str) -> Iterator[Found]:
    for place, hub in enumerate(expect.hub):
        at = f"{where}.hub[{place}]"
        yield from _unknown(hub.rx, names, at)
        yield from _hub(hub, at)
    for place, wire in enumerate(expect.wire):
        at = f"{where}.wire[{place}]"
        yield from _unknown(wire.rx, names, at)
        for method in [wire.method, *wire.sequence]:
            if method and not words.method_exists(method):
                yield at, f"there is no method {method}", f"方法 {method} 不存在"
        yield from _keys(wire.codes, words.WIRE_CODES, "code", "代码", at)
        if not (
            wire.HasField("calls")
            or wire.HasField("request_ids")
            or wire.codes
            or wire.min_gap_ms
            or wire.no_call
            or wire.sequence
            or wire.max_per_second
        ):
            yield at, "nothing is expected", "没有写明期望"


def _hub(hub: case_pb2.HubExpect, where: str) -> Iterator[Found]:
    asked = [name for name in words.STATES if hub.HasField(name)]  # type: ignore[arg-type]
    if not hub.rx and (asked or hub.HasField("gaps") or hub.verified):
        yield where, "without rx only events and refusals may be asked", "未指定 rx 时只能检查 events 和 refusals"
    if not (asked or hub.events or hub.refusals or hub.HasField("gaps") or hub.verified):
        yield where, "nothing is expected", "没有写明期望"
    for name in asked:
        for value in _texts(plain(getattr(hub, name))):
            if value not in words.STATES[name]:
                yield where, f"there is no {name} {value}", f"{name} 没有取值 {value}"
    yield from _keys(hub.events, words.EVENTS, "event", "事件", where)
    yield from _keys(hub.refusals, words.REFUSALS, "refusal", "拒绝代码", where)


def _keys(given: Mapping[str, Any], known: frozenset[str], en: str, zh: str, where: str) -> Iterator[Found]:
    for name in given:
        if name not in known:
            yield where, f"there is no {en} {name}", f"{zh} {name} 不存在"


def _texts(value: Any) -> Iterator[str]:
    """Every text of an expected state: it, those of a list, those below any_of and not."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _unknown(value: Any, names: set[str], where: str) -> Iterator[Found]:
    for name in references(value):
        if name not in names:
            yield where, f"${name} is saved by no earlier step", f"前面没有步骤保存 ${name}"
