"""The fault profiles: dev without any, strict with what a correct client must bear every day, chaos with everything.

Owns the lists. Every chance in them is seeded and bounded, so that a client which retries as the hub asks always comes
through: no operation fails for good in any profile.
"""

from __future__ import annotations

from erxhub.v1 import sandbox_pb2

_RETRY_AFTER_MS = 100
_SKEW_MS = 200_000
"""Within what the hub bears."""

_WATCHES = ("Prescribing/WatchPrescriptions", "Dispensing/WatchOrders")


def profile_rules(profile: sandbox_pb2.FaultProfile.ValueType) -> list[sandbox_pb2.FaultRule]:
    """The rules that a namespace of this profile begins with, in order; their ids begin with the profile's name."""
    if profile == sandbox_pb2.FAULT_PROFILE_STRICT:
        return _strict("strict")
    if profile == sandbox_pb2.FAULT_PROFILE_CHAOS:
        return [*_strict("chaos"), *_chaos()]
    return []


def _rule(
    rule_id: str,
    action: sandbox_pb2.FaultAction.ValueType,
    method: str = "*",
    *,
    actor: str = "",
    probability: float = 0.0,
    max_consecutive: int = 0,
    arguments: sandbox_pb2.FaultArguments | None = None,
) -> sandbox_pb2.FaultRule:
    return sandbox_pb2.FaultRule(
        rule_id=rule_id,
        method=method,
        actor=actor,
        probability=probability,
        action=action,
        arguments=arguments,
        max_consecutive=max_consecutive,
    )


def _strict(name: str) -> list[sandbox_pb2.FaultRule]:
    arguments = sandbox_pb2.FaultArguments
    return [
        _rule(
            f"{name}.unavailable",
            sandbox_pb2.FAULT_ACTION_ERROR,
            probability=0.05,
            max_consecutive=2,
            arguments=arguments(code="HUB_UNAVAILABLE", retry_after_ms=_RETRY_AFTER_MS),
        ),
        _rule(f"{name}.small-pages", sandbox_pb2.FAULT_ACTION_SMALL_PAGES, arguments=arguments(page_size=3)),
        _rule(f"{name}.unknown-fields", sandbox_pb2.FAULT_ACTION_UNKNOWN_FIELDS),
        # An auditor's read is evidence: what it shows is never old.
        *(
            _rule(
                f"{name}.lag-{role}", sandbox_pb2.FAULT_ACTION_STALE_READ, actor=f"{role}/*", arguments=arguments(lag=1)
            )
            for role in ("hospital", "pharmacy", "channel")
        ),
        *(
            _rule(f"{name}.shuffled-{place}", sandbox_pb2.FAULT_ACTION_REORDER, watch, arguments=arguments(window=4))
            for place, watch in enumerate(_WATCHES, start=1)
        ),
        *(
            _rule(f"{name}.redelivery-{place}", sandbox_pb2.FAULT_ACTION_DUPLICATE, watch, probability=0.1)
            for place, watch in enumerate(_WATCHES, start=1)
        ),
    ]


def _chaos() -> list[sandbox_pb2.FaultRule]:
    """What comes on top of strict. Left out is what no client can bear: a revoked certificate, a clock far off."""
    arguments = sandbox_pb2.FaultArguments
    return [
        _rule("chaos.delay", sandbox_pb2.FAULT_ACTION_DELAY, probability=0.1, arguments=arguments(delay_ms=20)),
        _rule(
            "chaos.overloaded",
            sandbox_pb2.FAULT_ACTION_ERROR,
            probability=0.03,
            max_consecutive=1,
            arguments=arguments(code="OVERLOADED", retry_after_ms=_RETRY_AFTER_MS),
        ),
        _rule("chaos.drop-request", sandbox_pb2.FAULT_ACTION_DROP_REQUEST, probability=0.03, max_consecutive=1),
        _rule("chaos.lose-ack", sandbox_pb2.FAULT_ACTION_LOSE_ACK, probability=0.05, max_consecutive=1),
        _rule("chaos.twice", sandbox_pb2.FAULT_ACTION_DUPLICATE, probability=0.05),
        _rule("chaos.issuer-down", sandbox_pb2.FAULT_ACTION_VOUCHER_ISSUER_DOWN, probability=0.05, max_consecutive=2),
        _rule("chaos.disk-full", sandbox_pb2.FAULT_ACTION_DISK_FULL, probability=0.01, max_consecutive=1),
        _rule("chaos.goaway", sandbox_pb2.FAULT_ACTION_GOAWAY, probability=0.005, max_consecutive=1),
        _rule("chaos.crash-before", sandbox_pb2.FAULT_ACTION_CRASH_HUB, probability=0.005, max_consecutive=1),
        _rule(
            "chaos.crash-after",
            sandbox_pb2.FAULT_ACTION_CRASH_HUB,
            probability=0.005,
            max_consecutive=1,
            arguments=arguments(after_commit=True),
        ),
        _rule(
            "chaos.clock-skew",
            sandbox_pb2.FAULT_ACTION_CLOCK_SKEW,
            probability=0.1,
            arguments=arguments(skew_ms=_SKEW_MS),
        ),
        _rule("chaos.signature", sandbox_pb2.FAULT_ACTION_CORRUPT_SIGNATURE, probability=0.02, max_consecutive=1),
        _rule("chaos.unknown-enum", sandbox_pb2.FAULT_ACTION_UNKNOWN_ENUM, probability=0.02, max_consecutive=1),
        *(
            _rule(
                f"chaos.cut-{place}",
                sandbox_pb2.FAULT_ACTION_TRUNCATE_STREAM,
                watch,
                probability=0.3,
                max_consecutive=2,
                arguments=arguments(after_messages=5),
            )
            for place, watch in enumerate(_WATCHES, start=1)
        ),
    ]
