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
from erxhub.core import events
from erxhub.core.refusals import CATALOGUE
from erxhub.ledger.entry import EntryKind
from erxhub.ledger.store import StoredEntry
from erxhub.rpc.errors import DETAILS_BYTES_MAX
from erxhub.rpc.methods import METHODS
from erxhub.v1 import events_pb2
from tests.refusals.bench import Bench, Seen, details_of, header_of

METHOD_OF_REQUEST = {method.request.DESCRIPTOR.full_name: name for name, method in METHODS.items()}


@dataclass(frozen=True)
class Attempt:
    """The call that has to be refused, and whose it is. `method` only where the request does not tell it."""

    client: Any
    call: Awaitable[Any]
    method: str = ""


Provoke = Callable[[Bench], Awaitable[Attempt]]


@dataclass(frozen=True)
class Case:
    """One row of the register.

    `entry` is the type of the entry that the refusal leaves, `keeps` the events that stay although the call is refused,
    `counted` says that it leaves no entry at all.
    """

    code: str
    status: str
    field: str
    entry: str
    keeps: tuple[str, ...]
    counted: bool
    provoke: Provoke

    @property
    def id(self) -> str:
        """The case's name in a report."""
        return f"{self.code}-{getattr(self.provoke, '__name__', '')}"


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
    """Register a case. Raises KeyError for a code that the catalogue does not have."""

    def register(provoke: Provoke) -> Provoke:
        assert CATALOGUE[code].grpc_status == status, f"the catalogue says {CATALOGUE[code].grpc_status} for {code}"
        CASES.append(Case(code, status, field, entry, keeps, counted, provoke))
        return provoke

    return register


async def judge(bench: Bench, case: Case) -> None:
    """Everything that has to be true of a refusal."""
    attempt = await case.provoke(bench)
    counted_before = bench.live.hub.engine.counters.counted_only.get(case.code, 0)
    before = await bench.ledger.seen()
    if case.status == "OK":
        await _judge_finding(case, await attempt.call)
        return
    with pytest.raises(Refusal) as caught:
        await attempt.call
    bench.store.works_again()
    refusal = caught.value
    _judge_answer(case, refusal)
    entries = await bench.ledger.after(before.position)
    accesses = [entry for entry in entries if entry.stream_kind == "access"]
    await _judge_state(bench, case, before, [entry for entry in entries if entry.stream_kind != "access"])
    counted = bench.live.hub.engine.counters.counted_only.get(case.code, 0) - counted_before
    if case.counted:
        assert accesses == []
        assert counted > 0
    else:
        assert counted == 0
        _judge_entry(case, attempt, refusal, accesses)


def _judge_answer(case: Case, refusal: Refusal) -> None:
    kind = CATALOGUE[case.code]
    assert (refusal.code, refusal.grpc_status, refusal.field) == (case.code, case.status, case.field)
    assert (refusal.text_en, refusal.text_zh) == (kind.en, kind.zh)
    assert refusal.rule_ids == kind.rule_ids
    assert refusal.needs == kind.needs
    assert refusal.retriable is kind.retriable
    # Who may come again is told when.
    assert (refusal.retry_after_ms > 0) is kind.retriable
    if case.field:
        assert refusal.violations[0].field == case.field
    assert len(details_of(refusal)) <= DETAILS_BYTES_MAX


async def _judge_state(bench: Bench, case: Case, before: Seen, added: list[StoredEntry]) -> None:
    """Nothing moved but what a deadline had due, and what the case says is kept."""
    kept = [entry for entry in added if not header_of(entry).actor.startswith("hub/")]
    assert tuple(events.BY_NUMBER[header_of(entry).type].name for entry in kept) == case.keeps
    moved = {entry.stream_key for entry in added}
    after = await bench.ledger.seen()
    assert before.heads.keys() == after.heads.keys()
    changed = {key for key, head in before.heads.items() if after.heads[key] != head}
    assert changed == moved


def _judge_entry(case: Case, attempt: Attempt, refusal: Refusal, accesses: list[StoredEntry]) -> None:
    """The refusal is one entry of the caller's own access stream."""
    assert len(accesses) == 1
    header = header_of(accesses[0])
    method = attempt.method or METHOD_OF_REQUEST[type(refusal.request).DESCRIPTOR.full_name]  # type: ignore[union-attr]
    peer = attempt.client.connection.peer_name
    assert header.kind is EntryKind.REFUSAL
    assert header.actor == f"{peer.role}/{peer.id}"
    assert events.BY_NUMBER[header.type].name == case.entry
    if refusal.request is not None:
        assert header.request_id == refusal.request_id
    said = events_pb2.CommandRefused.FromString(accesses[0].payload or b"")
    assert (said.method, said.code, said.field, said.caller_kind) == (method, case.code, case.field, peer.role)


async def _judge_finding(case: Case, reply: Any) -> None:
    """A code with status OK is a finding in a reply that was given."""
    kind = CATALOGUE[case.code]
    assert [(found.code, found.message_en, found.message_zh) for found in reply.warnings] == [
        (kind.code, kind.en, kind.zh)
    ]
