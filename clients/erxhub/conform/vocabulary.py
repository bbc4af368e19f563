"""The words that a case may use: operations, verbs of robots, states, codes, faults.

Owns: which names exist, so that a misspelt one is an error of the case and not a check that never fails. Must never:
say what a word does; steps, robots and judge do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import grpc

from erxhub.client.connection import SERVICE_MODULES
from erxhub.core.events import EVENT_TYPES
from erxhub.core.refusals import CATALOGUE
from erxhub.v1 import audit_pb2, common_pb2, sandbox_pb2

COMMON_OPS: Final = ("describe", "configure", "reset", "resume", "pull_events", "shutdown")
OPS: Final[Mapping[str, tuple[str, ...]]] = {
    "hospital": (*COMMON_OPS, "verify_voucher", "issue_prescription", "revoke", "query"),
    "pharmacy": (
        *COMMON_OPS,
        "list_available",
        "download",
        "release",
        "review",
        "settle",
        "dispense",
        "hand_over",
        "undo",
        "reverse",
        "start_delivery",
        "delivery_step",
        "sign_delivery",
    ),
}
REQUIRED_OPS: Final = ("describe", "configure", "reset", "shutdown")
"""Without these a driver cannot be used at all."""

OUTCOMES: Final = ("ok", "rejected", "unknown")

ROBOT_VERBS: Final[Mapping[str, tuple[str, ...]]] = {
    "hospital": ("issue", "revoke"),
    "pharmacy": ("hold", "review", "quote", "settle", "dispense", "hand_over", "release", "undo"),
    "patient": ("choose_pharmacy", "cancel_order", "make_qr", "request_delivery"),
    "agency": ("freeze", "unfreeze"),
    "auditor": ("trace", "verify_ledger"),
}

BUSINESS_TYPES: Final[Mapping[str, str]] = {
    "consult": "01201",
    "download": "02122",
    "purchase": "02121",
    "pick_up": "01302",
}

PRESET_NAMES: Final = frozenset(
    {"hospital", "hospital_b", "pharmacy", "pharmacy_b", "sut", "staff", "now_ms", *(f"P0{n}" for n in range(1, 9))}
)


def short_names(enum: object) -> frozenset[str]:
    """The names of an enumeration's values without their common prefix, as cases write them."""
    descriptor = enum.DESCRIPTOR  # type: ignore[attr-defined]
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", descriptor.name).upper() + "_"
    return frozenset(value.name.removeprefix(prefix) for value in descriptor.values if value.number)


STATES: Final[Mapping[str, frozenset[str]]] = {
    "status": short_names(common_pb2.RxStatus),
    "use": short_names(common_pb2.RxUseStatus),
    "review": short_names(common_pb2.ReviewStatus),
    "order": short_names(common_pb2.OrderStatus) | {"NONE"},
    "settlement": short_names(common_pb2.SettlementStatus) | {"NONE"},
    "dispense": short_names(common_pb2.DispenseStatus) | {"NONE"},
    "delivery": short_names(common_pb2.DeliveryStatus) | {"NONE"},
    "light": short_names(audit_pb2.Light),
}
EVENTS: Final = frozenset(kind.name for kind in EVENT_TYPES)
REFUSALS: Final = frozenset(CATALOGUE)
WIRE_CODES: Final = REFUSALS | {code.name for code in grpc.StatusCode} | {"LOST"}
FAULT_ACTIONS: Final = frozenset(name.lower() for name in short_names(sandbox_pb2.FaultAction))
TRIGGERS: Final = frozenset(name.lower() for name in short_names(sandbox_pb2.TriggerKind))

METHODS: Final = frozenset(
    f"{service.name.removesuffix('Service')}/{method.name}"
    for module in SERVICE_MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
)


def short_method(name: str) -> str:
    """A method in the form of the cases, whatever form it came in: "Dispensing/Settle"."""
    service, _, method = name.strip("/").rpartition("/")
    return f"{service.rpartition('.')[2].removesuffix('Service')}/{method}" if service else name


def method_matches(pattern: str, method: str) -> bool:
    """Whether a method is meant by "Dispensing/Settle", "Dispensing/*" or "*"."""
    pattern, method = short_method(pattern), short_method(method)
    return pattern in ("*", "", method) or (pattern.endswith("/*") and method.startswith(pattern[:-1]))


def method_exists(pattern: str) -> bool:
    """Whether any published method is meant."""
    return any(method_matches(pattern, method) for method in METHODS)
