"""Whether a fault rule can match anything at all, and if not, which part of it is why.

Owns the answer. A rule that nobody's call could ever meet would look like a fault that never happens; it is refused
when it is set.
"""

from __future__ import annotations

import functools
from typing import Final, NoReturn

import grpc

from erxhub.admission import Violation
from erxhub.core import events
from erxhub.core.refusals import CATALOGUE
from erxhub.rpc.methods import READ, WATCH, Method
from erxhub.sandbox import facts
from erxhub.sandbox.errors import SandboxRefused
from erxhub.v1 import sandbox_pb2

_ON_EVENTS: Final = frozenset(
    {
        sandbox_pb2.FAULT_ACTION_LOSE_ACK,
        sandbox_pb2.FAULT_ACTION_DISK_FULL,
        sandbox_pb2.FAULT_ACTION_CRASH_HUB,
    }
)
_NEEDS_ARGUMENT: Final = {
    sandbox_pb2.FAULT_ACTION_DELAY: "delay_ms",
    sandbox_pb2.FAULT_ACTION_ERROR: "code",
    sandbox_pb2.FAULT_ACTION_REORDER: "window",
    sandbox_pb2.FAULT_ACTION_STALE_READ: "lag",
    sandbox_pb2.FAULT_ACTION_CLOCK_SKEW: "skew_ms",
    sandbox_pb2.FAULT_ACTION_SMALL_PAGES: "page_size",
}
_VOUCHER_METHODS: Final = frozenset({"VoucherService/IssueVoucher", "VoucherService/VerifyVoucher"})


def check_rule(rule: sandbox_pb2.FaultRule, path: str) -> None:
    """Raises SandboxRefused SBX_FAULT_NEVER_MATCHES, naming the field below `path` that makes the rule void."""
    on = rule.WhichOneof("on")
    if on is None:
        _refuse(path, "method", rule, "a rule is about a method or an event", "规则须指明方法或事件")
    if not rule.action:
        _refuse(path, "action", rule, "the rule does nothing", "规则没有动作")
    needed = _NEEDS_ARGUMENT.get(rule.action)
    if needed is not None and not getattr(rule.arguments, needed):
        _refuse(path, f"arguments.{needed}", rule, "without it the action changes nothing", "缺少该参数，动作不起作用")
    if rule.action == sandbox_pb2.FAULT_ACTION_REORDER and rule.arguments.window < 2:
        _refuse(path, "arguments.window", rule, "one message cannot be shuffled", "窗口小于 2，无法乱序")
    if rule.action == sandbox_pb2.FAULT_ACTION_ERROR and not is_status(rule.arguments.code):
        _refuse(path, "arguments.code", rule, "neither a refusal code nor a gRPC status", "既非拒绝代码也非状态名")
    if not 0 <= rule.probability <= 1:
        _refuse(path, "probability", rule, "a chance lies between 0 and 1", "概率须在 0 与 1 之间")
    if rule.nth and rule.max_total > 1:
        _refuse(path, "max_total", rule, "there is one call of that number", "指定次序的调用只有一次")
    _check_actor(rule, path)
    if on == "event":
        _check_event(rule, path)
    else:
        _check_method(rule, path)


def is_status(code: str) -> bool:
    """Whether it is a refusal code that refuses, or the name of a gRPC status other than OK."""
    if code in CATALOGUE:
        return CATALOGUE[code].grpc_status != "OK"
    return code != "OK" and code in grpc.StatusCode.__members__


@functools.cache
def why_never(action: sandbox_pb2.FaultAction.ValueType, method: Method) -> tuple[str, str] | None:
    """Why the action can do nothing to calls of the method, in English and Chinese; None when it can."""
    bare = sandbox_pb2.FaultAction.Name(action).removeprefix("FAULT_ACTION_")
    if bare in ("REORDER", "TRUNCATE_STREAM") and not method.streams_out:
        return "only streams have messages to shuffle or to cut", "仅流式方法适用"
    if bare == "REORDER" and method.effect != WATCH:
        return "the order of an auditor's entries is their proof", "审计条目的次序即为证明，不可乱序"
    if bare == "LOSE_ACK" and method.streams_out:
        return "a stream has no one reply to lose; truncate_stream cuts it", "流没有单一应答；请用 truncate_stream"
    if bare == "STALE_READ" and (method.effect != READ or method.streams_out):
        return "only unary reads can be old", "仅一元查询适用"
    if bare == "SMALL_PAGES" and not facts.has_pages(method):
        return "the method has no pages", "该方法没有分页"
    if bare == "CORRUPT_SIGNATURE" and not facts.has_signature(method):
        return "its replies carry no signature", "其应答不含签名"
    if bare == "UNKNOWN_ENUM" and not facts.has_enum(method):
        return "its replies carry no enumeration", "其应答不含枚举"
    if bare == "VOUCHER_ISSUER_DOWN" and method.name not in _VOUCHER_METHODS:
        return "only Voucher/IssueVoucher and Voucher/VerifyVoucher need the issuer", "仅展码与解码依赖凭证中心"
    if bare == "DUPLICATE" and method.streams_in:
        return "an import arrives once only", "导入流不能重复投递"
    if bare == "DISK_FULL" and method.streams_out:
        return "a watch writes nothing of its own", "订阅不写入账本"
    return None


def _check_actor(rule: sandbox_pb2.FaultRule, path: str) -> None:
    if not rule.actor:
        return
    role, slash, who = rule.actor.partition("/")
    if not slash or not who or role not in facts.ROLES:
        _refuse(path, "actor", rule, "an actor is <role>/<id> or <role>/*", "调用方须为 <角色>/<编号> 或 <角色>/*")


def _check_event(rule: sandbox_pb2.FaultRule, path: str) -> None:
    kind = events.BY_NAME.get(rule.event)
    if kind is None:
        _refuse(path, "event", rule, "no event has this name", "没有此名称的事件")
    if rule.action not in _ON_EVENTS:
        text = "an event can be followed by lose_ack, disk_full and crash_hub"
        _refuse(path, "action", rule, text, "事件规则仅支持 lose_ack、disk_full、crash_hub")
    if rule.rx_no and "prescription" not in kind.stream_kinds:
        _refuse(path, "rx_no", rule, "the event is in no prescription's stream", "该事件不属于处方流")


def _check_method(rule: sandbox_pb2.FaultRule, path: str) -> None:
    methods = facts.methods_matching(rule.method)
    if not methods:
        _refuse(path, "method", rule, "no method has this name", "没有此名称的方法")
    reasons = [why_never(rule.action, method) for method in methods]
    possible = [method for method, why in zip(methods, reasons, strict=True) if why is None]
    if not possible:
        text_en, text_zh = next(why for why in reasons if why is not None)
        _refuse(path, "action", rule, text_en, text_zh)
    role = rule.actor.partition("/")[0]
    if role:
        possible = [method for method in possible if role in method.callers]
        if not possible:
            _refuse(path, "actor", rule, "no such caller may call the method", "该角色无权调用此方法")
    if rule.rx_no and not any(facts.names_prescription(method) for method in possible):
        _refuse(path, "rx_no", rule, "the method names no prescription", "该方法不指明处方")


def _refuse(path: str, field: str, rule: sandbox_pb2.FaultRule, text_en: str, text_zh: str) -> NoReturn:
    where = f"{path}.{field}"
    raise SandboxRefused(
        "SBX_FAULT_NEVER_MATCHES",
        {"field": where, "rule_id": rule.rule_id, "reason": text_en, "reason_zh": text_zh},
        [Violation(where, "fault.never", f"{text_en} / {text_zh}")],
    )
