"""The register of provoking cases, and the one way in which all of them are judged.

A case prepares everything and hands over the one call that has to be refused. Whatever must be true of every refusal
is checked here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from erxhub.client import Refusal
from erxhub.core.refusals import CATALOGUE
from erxhub.ledger.entry import EntryKind
from erxhub.ledger.store import StoredEntry
from erxhub.rpc.errors import DETAILS_BYTES_MAX
from erxhub.rpc.methods import METHODS
from erxhub.v1 import events_pb2
from tests.refusals.bench import Bench, Seen, details_of, event_of, header_of

METHOD_OF_REQUEST = {method.request.DESCRIPTOR.full_name: name for name, method in METHODS.items()}


@dataclass(frozen=True)
class Attempt:
    """The call that has to be refused, and whose it is. `method` only where the request does not tell it."""

    client: Any
    call: Awaitable[Any]
    method: str = ""


Provoke = Callable[[Bench], Awaitable[Attempt]]


@dataclass(frozen=True)
class Expected:
    """What has to come of an attempt.

    `entry` is the type of the entry that the refusal leaves, `keeps` the events that stay although the call is refused,
    `counted` says that it leaves no entry at all.
    """

    code: str
    field: str = ""
    entry: str = "command.refused"
    keeps: tuple[str, ...] = ()
    counted: bool = False


@dataclass(frozen=True)
class Case:
    """One row of the register."""

    expected: Expected
    provoke: Provoke

    @property
    def id(self) -> str:
        """The case's name in a report."""
        return f"{self.expected.code}-{getattr(self.provoke, '__name__', '')}"


CASES: list[Case] = []


def provokes(
    code: str,
    *,
    status: str,
    field: str = "",
    entry: str = "command.refused",
    keeps: tuple[str, ...] = (),
    counted: bool = False,
) -> Callable[[Provoke], Provoke]:
    """Register a case. Raises AssertionError where the catalogue has another status for the code."""

    def register(provoke: Provoke) -> Provoke:
        assert CATALOGUE[code].grpc_status == status, f"the catalogue says {CATALOGUE[code].grpc_status} for {code}"
        CASES.append(Case(Expected(code, field, entry, keeps, counted), provoke))
        return provoke

    return register


async def judge(bench: Bench, case: Case) -> None:
    """Provoke a case and judge it. A code with status OK is a finding in a reply that was given."""
    attempt = await case.provoke(bench)
    if CATALOGUE[case.expected.code].grpc_status == "OK":
        _judge_finding(case.expected, await attempt.call)
    else:
        await refused(bench, attempt, case.expected)


async def refused(bench: Bench, attempt: Attempt, expected: Expected) -> Refusal:
    """Make the attempt; everything that has to be true of a refusal is true of what comes."""
    counters = bench.live.hub.engine.counters
    before = await bench.ledger.seen()
    counted_before = counters.counted_only.get(expected.code, 0)
    with pytest.raises(Refusal) as caught:
        await attempt.call
    bench.store.works_again()
    refusal = caught.value
    _judge_answer(expected, refusal)
    entries = await bench.ledger.after(before.position)
    accesses = [entry for entry in entries if entry.stream_kind == "access"]
    await _judge_state(bench, expected, before, [entry for entry in entries if entry.stream_kind != "access"])
    counted = counters.counted_only.get(expected.code, 0) - counted_before
    if expected.counted:
        assert accesses == []
        assert counted > 0
    else:
        assert counted == 0
        _judge_entry(expected, attempt, refusal, accesses)
    return refusal


def _judge_answer(expected: Expected, refusal: Refusal) -> None:
    kind = CATALOGUE[expected.code]
    assert (refusal.code, refusal.field) == (expected.code, expected.field)
    assert refusal.grpc_status == kind.grpc_status
    assert (refusal.text_en, refusal.text_zh) == (kind.en, kind.zh)
    assert refusal.rule_ids == kind.rule_ids
    assert refusal.needs == kind.needs
    assert refusal.retriable is kind.retriable
    # Who may come again is told when.
    assert (refusal.retry_after_ms > 0) is kind.retriable
    if expected.field:
        assert refusal.violations[0].field == expected.field
    assert len(details_of(refusal)) <= DETAILS_BYTES_MAX


async def _judge_state(bench: Bench, expected: Expected, before: Seen, added: list[StoredEntry]) -> None:
    """Nothing moved but what a deadline had due, and what the case says is kept."""
    kept = [entry for entry in added if not header_of(entry).actor.startswith("hub/")]
    assert tuple(event_of(entry) for entry in kept) == expected.keeps
    moved = {entry.stream_key for entry in added}
    after = await bench.ledger.seen()
    assert before.heads.keys() == after.heads.keys()
    changed = {key for key, head in before.heads.items() if after.heads[key] != head}
    assert changed == moved


def _judge_entry(expected: Expected, attempt: Attempt, refusal: Refusal, accesses: list[StoredEntry]) -> None:
    """The refusal is one entry of the caller's own access stream."""
    assert len(accesses) == 1
    header = header_of(accesses[0])
    method = attempt.method or METHOD_OF_REQUEST[type(refusal.request).DESCRIPTOR.full_name]  # type: ignore[union-attr]
    peer = attempt.client.connection.peer_name
    assert header.kind is EntryKind.REFUSAL
    assert header.actor == f"{peer.role}/{peer.id}"
    assert event_of(accesses[0]) == expected.entry
    # A call of the wrong kind of caller is refused before its bytes are read.
    if refusal.request is not None and expected.code != "ROLE_NOT_ALLOWED":
        assert header.request_id == refusal.request_id
    said = events_pb2.CommandRefused.FromString(accesses[0].payload or b"")
    assert (said.method, said.code, said.field, said.caller_kind) == (method, expected.code, expected.field, peer.role)


def _judge_finding(expected: Expected, reply: Any) -> None:
    kind = CATALOGUE[expected.code]
    told = [(found.code, found.message_en, found.message_zh) for found in reply.warnings]
    assert told == [(kind.code, kind.en, kind.zh)]
