"""The audit service's reads: what they need, what they find, what they show to whom, and whether the ledger holds."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from erxhub.core.keys import prescription_key, stream_key
from erxhub.core.model import Accepted, Caller, Refused, Target
from erxhub.ledger.entry import EntryKind, leaf_hash
from erxhub.ledger.memory import MemoryStore
from erxhub.ledger.sqlite import open_sqlite
from erxhub.queries import audit
from erxhub.queries.base import Opened, ReadContext, Shown
from erxhub.v1 import audit_pb2, common_pb2, events_pb2
from tests.audit.story import (
    AUDITOR,
    CODES,
    ENCOUNTER,
    ENCOUNTER_ID,
    HOSPITAL,
    MIRROR,
    ORDER,
    PERSON,
    PHARMACY,
    RX,
    RX_NO,
    START_MS,
    Damaged,
    Story,
    ask,
    with_payload,
)

DAY_LOG = stream_key("access", b"day")


def find(ctx: ReadContext, **by: Any) -> audit_pb2.FindChainsResponse:
    outcome = ask(ctx, audit.find_chains, audit_pb2.FindChainsRequest(**({"case_reason": "case 1"} | by)))
    assert isinstance(outcome, Accepted), outcome
    assert isinstance(outcome.reply, audit_pb2.FindChainsResponse)
    return outcome.reply


def verified(ctx: ReadContext) -> audit_pb2.VerifyLedgerResponse:
    outcome = ask(ctx, audit.verify, audit_pb2.VerifyLedgerRequest(case_reason="case 1"))
    assert isinstance(outcome, Accepted), outcome
    assert isinstance(outcome.reply, audit_pb2.VerifyLedgerResponse)
    return outcome.reply


def streamed(ctx: ReadContext, caller: Caller, **asked: Any) -> list[audit_pb2.StreamEntriesResponse]:
    async def take() -> list[Any]:
        request = audit_pb2.StreamEntriesRequest(case_reason="case 1", **asked)
        opened = await audit.stream_entries(ctx, caller, request)
        assert isinstance(opened, Opened)
        return [message async for message in opened.messages if not isinstance(message, Shown)]

    return asyncio.run(take())


# ---- the case ----


@pytest.mark.parametrize(
    ("query", "request_"),
    [
        (audit.trace_chain, audit_pb2.TraceChainRequest(rx_no=RX_NO, case_reason=" ")),
        (audit.find_chains, audit_pb2.FindChainsRequest(rx_no=RX_NO)),
        (audit.verify, audit_pb2.VerifyLedgerRequest()),
    ],
)
def test_nothing_is_audited_without_a_reason(query: Any, request_: Any) -> None:
    assert ask(Story(until="order.held").context(), query, request_) == Refused("AUDIT_REASON", field="case_reason")


def test_entries_are_streamed_with_a_reason_or_to_a_mirror() -> None:
    ctx = Story(until="order.held").context()
    request = audit_pb2.StreamEntriesRequest()
    refused = asyncio.run(audit.stream_entries(ctx, AUDITOR, request))
    assert refused == Refused("AUDIT_REASON", field="case_reason")
    assert isinstance(asyncio.run(audit.stream_entries(ctx, MIRROR, request)), Opened)


def test_an_unknown_prescription_is_refused() -> None:
    request = audit_pb2.TraceChainRequest(rx_no="330100" + "0" * 21, case_reason="case 1")
    assert ask(Story(until="order.held").context(), audit.trace_chain, request) == Refused("RX_UNKNOWN", field="rx_no")


def test_a_number_of_any_form_is_unknown_and_no_error() -> None:
    request = audit_pb2.TraceChainRequest(rx_no="处方", case_reason="case 1")
    assert isinstance(ask(Story(until="order.held").context(), audit.trace_chain, request), Refused)


def test_every_read_of_a_chain_names_its_person() -> None:
    ctx = Story().context()
    request = audit_pb2.TraceChainRequest(rx_no=RX_NO, case_reason="case 1")
    traced = ask(ctx, audit.trace_chain, request)
    found = ask(ctx, audit.find_chains, audit_pb2.FindChainsRequest(rx_no=RX_NO, case_reason="case 1"))
    assert isinstance(traced, Accepted)
    assert isinstance(found, Accepted)
    assert traced.targets == found.targets == (Target(RX, PERSON),)


# ---- accesses ----


def read(story: Story, method: str, rx_key: bytes = RX) -> None:
    target = events_pb2.AccessTarget(stream_key=rx_key, method=method, outcome="OK")
    other = events_pb2.AccessTarget(stream_key=b"o" * 32, method="Other/Read", outcome="OK")
    payload = events_pb2.AccessRecorded(targets=[other, target], caller_kind="pharmacy")
    story.ledger.add(
        "access",
        DAY_LOG,
        "audit.read",
        payload,
        actor=f"pharmacy/{PHARMACY}",
        entry_kind=EntryKind.ACCESS,
    )


def refuse(story: Story, method: str, code: str) -> None:
    story.ledger.add(
        "access",
        DAY_LOG,
        "command.refused",
        events_pb2.CommandRefused(method=method, code=code, stream_keys=[RX]),
        actor=f"pharmacy/{PHARMACY}",
        entry_kind=EntryKind.REFUSAL,
    )


def test_accesses_and_refusals_are_shown_newest_last_and_only_those_of_the_prescription() -> None:
    story = Story(until="order.held")
    read(story, "DispensingService/DownloadPrescription")
    read(story, "Other/Read", b"o" * 32)
    refuse(story, "DispensingService/Settle", "ORDER_HOLD_LOST")
    trace = story.trace(verify=True)
    assert [(each.kind, each.method, each.outcome) for each in trace.accesses] == [
        ("access", "DispensingService/DownloadPrescription", "OK"),
        ("refusal", "DispensingService/Settle", "ORDER_HOLD_LOST"),
    ]
    assert trace.accesses[0].actor == f"pharmacy/{PHARMACY}"
    assert trace.accesses[0].at_ms < trace.accesses[1].at_ms
    assert trace.verified


def test_an_altered_access_leaves_the_chain_whole_and_the_trace_unverified() -> None:
    story = Story(until="order.held")
    read(story, "DispensingService/DownloadPrescription")

    def nobody(payload: Any) -> None:
        payload.targets[1].method = "Nobody/Nothing"

    store = Damaged(asyncio.run(story.ledger.stored()), {(DAY_LOG, 1): with_payload(nobody)})
    trace = story.trace(verify=True, store=store)
    assert [(each.stream_key, each.version, each.reason) for each in trace.findings] == [(DAY_LOG, 1, "COMMITMENT")]
    assert (list(trace.gaps), trace.verified) == ([], False)


class Growing(MemoryStore):
    """A store that is written to right after somebody asked for its last position."""

    def __init__(self, whole: MemoryStore, story: Story) -> None:
        super().__init__()
        self.__dict__.update(whole.__dict__)
        self._story: Story | None = story

    async def last_position(self) -> int:
        position = await super().last_position()
        if self._story is not None:
            story, self._story = self._story, None
            await self.append(story.ledger.writes)
        return position


def test_what_is_written_while_the_trace_runs_is_not_shown_and_breaks_nothing() -> None:
    story = Story(until="order.held")
    store = asyncio.run(story.ledger.stored())
    before = len(story.ledger.order)
    story.then("order.released", events_pb2.OrderReleased(order_no=ORDER))
    read(story, "DispensingService/ReleaseOrder")
    trace = story.trace(verify=True, store=Growing(store, story))
    assert trace.as_of_position == before
    assert "order.released" not in [entry.type for entry in trace.entries]
    assert list(trace.accesses) == []
    assert trace.verified


# ---- finding ----


@pytest.mark.parametrize(
    "by",
    [
        {"rx_no": RX_NO},
        {"encounter_id": ENCOUNTER_ID},
        {"institution_code": HOSPITAL},
        {"institution_code": PHARMACY},
        {"trace_code": CODES[2]},
    ],
    ids=str,
)
def test_a_chain_is_found_by_what_belongs_to_it(by: dict[str, str]) -> None:
    reply = find(Story().context(), **by)
    assert [(chain.rx_no, chain.hospital_code) for chain in reply.chains] == [(RX_NO, HOSPITAL)]
    assert reply.chains[0].prescribed_at_ms > START_MS
    assert reply.next_page_token == ""


@pytest.mark.parametrize(
    "by",
    [
        {"rx_no": "none"},
        {"encounter_id": "none"},
        {"institution_code": "H00000000000"},
        {"institution_code": "none"},
        {"trace_code": "none"},
    ],
    ids=str,
)
def test_what_does_not_exist_is_an_empty_list(by: dict[str, str]) -> None:
    reply = find(Story(until="order.held").context(), **by)
    assert (list(reply.chains), reply.next_page_token) == ([], "")


def with_more_prescriptions(count: int) -> Story:
    story = Story(until="order.held")
    for number in range(count):
        rx_no = f"330100{number:021d}"
        prechecked = events_pb2.PrescriptionPrechecked(
            rx_no=rx_no,
            encounter_key=ENCOUNTER,
            person_key=PERSON,
            content=common_pb2.Prescription(hospital_code=HOSPITAL, hospital_rx_no=f"N{number}"),
        )
        key = prescription_key(rx_no)
        story.ledger.add("prescription", key, "prescription.prechecked", prechecked, actor="hospital/H")
    return story


def test_pages_go_on_where_the_last_one_ended_newest_first() -> None:
    ctx = with_more_prescriptions(4).context()
    first = find(ctx, institution_code=HOSPITAL, page_size=2)
    second = find(ctx, institution_code=HOSPITAL, page_size=2, page_token=first.next_page_token)
    third = find(ctx, institution_code=HOSPITAL, page_size=2, page_token=second.next_page_token)
    numbers = [chain.rx_no for page in (first, second, third) for chain in page.chains]
    assert numbers == [f"330100{number:021d}" for number in (3, 2, 1, 0)] + [RX_NO]
    assert third.next_page_token == ""


def test_a_token_is_good_for_its_own_search_only() -> None:
    ctx = with_more_prescriptions(4).context()
    token = find(ctx, institution_code=HOSPITAL, page_size=2).next_page_token
    request = audit_pb2.FindChainsRequest(institution_code=PHARMACY, case_reason="case 1", page_token=token)
    assert ask(ctx, audit.find_chains, request) == Refused("PAGE_TOKEN_INVALID", field="page_token")
    request.institution_code = HOSPITAL
    other = replace(AUDITOR, id="auditor-2")
    assert ask(ctx, audit.find_chains, request, other) == Refused("PAGE_TOKEN_INVALID", field="page_token")


def test_a_pharmacy_with_several_orders_finds_the_prescription_once() -> None:
    story = Story(until="order.created")
    for order_no in ("ORDER2", "ORDER3"):
        story.then("order.created", events_pb2.OrderCreated(order_no=order_no, pharmacy_code=PHARMACY))
    ctx = story.context()
    pages, token = [], ""
    for _ in range(3):
        reply = find(ctx, institution_code=PHARMACY, page_size=1, page_token=token)
        pages.append([chain.rx_no for chain in reply.chains])
        token = reply.next_page_token
    assert (pages, token) == ([[RX_NO], [], []], "")


def test_an_order_that_another_replaced_before_its_download_adds_no_row() -> None:
    story = Story(until="order.created")
    for before, order_no in ((ORDER, "ORDER2"), ("ORDER2", "ORDER3")):
        story.then("order.cancelled", events_pb2.OrderCancelled(order_no=before))
        story.then("order.created", events_pb2.OrderCreated(order_no=order_no, pharmacy_code=PHARMACY))
    assert [chain.rx_no for chain in find(story.context(), institution_code=PHARMACY).chains] == [RX_NO]


# ---- the entries ----


def test_an_auditor_gets_headers_and_leaves_and_no_content() -> None:
    story = Story()
    entries = streamed(story.context(), AUDITOR)
    assert [entry.position for entry in entries] == list(range(1, len(story.ledger.order) + 1))
    assert all(leaf_hash(entry.leaf) == entry.leaf_hash for entry in entries)
    assert not any(entry.salt or entry.payload for entry in entries)


def test_a_mirror_gets_the_content_too() -> None:
    entries = streamed(Story().context(), MIRROR)
    assert all(len(entry.salt) == 16 for entry in entries)
    assert any(entry.payload for entry in entries)


def test_a_stream_begins_after_the_position_and_ends_at_the_limit() -> None:
    ctx = Story().context()
    every = streamed(ctx, AUDITOR)
    some = streamed(ctx, AUDITOR, after_position=20, limit=5)
    assert some == every[20:25]
    assert streamed(ctx, AUDITOR, after_position=10**6) == []


def test_a_damaged_header_has_no_leaf_and_ends_no_stream() -> None:
    story = Story()
    place = story.ledger.place("review.passed")
    store = Damaged(asyncio.run(story.ledger.stored()), {place: lambda entry: replace(entry, header=b"\x01")})
    entries = streamed(story.context(store), AUDITOR)
    assert [entry.leaf for entry in entries].count(b"") == 1
    assert len(entries) == len(story.ledger.order)


# ---- the whole ledger ----


def test_a_sound_ledger_is_verified() -> None:
    story = Story(delivery=True)
    reply = verified(story.context())
    assert (reply.verified, reply.entries, list(reply.findings)) == (True, len(story.ledger.order), [])
    assert reply.as_of_position == reply.entries
    assert reply.streams == len(story.ledger.heads)


def test_the_entry_that_broke_is_named_and_its_state_is_not_blamed_as_well() -> None:
    def more(payload: Any) -> None:
        payload.lots[0].quantity = "20"

    story = Story()
    place = story.ledger.place("dispense.outbound")
    store = Damaged(asyncio.run(story.ledger.stored()), {place: with_payload(more)})
    reply = verified(story.context(store))
    assert [(each.stream_key, each.version, each.reason) for each in reply.findings] == [(*place, "COMMITMENT")]
    assert not reply.verified


def test_a_state_that_is_not_the_fold_of_its_entries_is_named() -> None:
    def richer(state: Any) -> None:
        state.balance_fen += 1

    story = Story()
    key, version = story.ledger.place("account.debited")
    store = Damaged(asyncio.run(story.ledger.stored()), states={key: richer})
    reply = verified(story.context(store))
    assert [(each.stream_kind, each.version, each.reason) for each in reply.findings] == [("account", version, "STATE")]


def test_findings_are_told_up_to_a_limit() -> None:
    story = with_more_prescriptions(audit.FINDINGS_MAX + 20)
    damage = {
        (key, version): with_payload(lambda payload: payload.ClearField("rx_no"))
        for key, version, event in story.ledger.order
        if event == "prescription.prechecked"
    }
    store = Damaged(asyncio.run(story.ledger.stored()), damage)
    reply = verified(story.context(store))
    assert len(reply.findings) == audit.FINDINGS_MAX


def test_a_quantity_changed_in_the_database_file_is_found_by_trace_and_verification(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    story = Story()
    place = story.ledger.place("settlement.committed")

    async def write() -> None:
        store = await open_sqlite(path)
        assert not (await store.append(story.ledger.writes)).conflicts
        await store.close()

    asyncio.run(write())
    with closing(sqlite3.connect(path, isolation_level=None)) as shell:
        for (trigger,) in shell.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            shell.execute(f"DROP TRIGGER {trigger}")
        where = "stream = (SELECT no FROM stream WHERE key = ?) AND version = ?"
        (payload,) = shell.execute(f"SELECT payload FROM content WHERE {where}", place).fetchone()
        changed = events_pb2.SettlementCommitted.FromString(payload)
        changed.claim.lines[0].quantity_e4 = 10_000
        shell.execute(f"UPDATE content SET payload = ? WHERE {where}", (changed.SerializeToString(), *place))

    async def look() -> tuple[Any, Any]:
        store = await open_sqlite(path, create=False)
        try:
            ctx = story.context(store)
            request = audit_pb2.TraceChainRequest(rx_no=RX_NO, case_reason="case 1", verify=True)
            traced = await audit.trace_chain(ctx, AUDITOR, request)
            checked = await audit.verify(ctx, MIRROR, audit_pb2.VerifyLedgerRequest())
        finally:
            await store.close()
        return traced, checked

    traced, checked = asyncio.run(look())
    for reply in (traced.reply, checked.reply):
        assert [(each.stream_key, each.version, each.reason) for each in reply.findings] == [(*place, "COMMITMENT")]
    assert {"GAP_MONEY", "GAP_QUANTITY", "GAP_CHAIN"} <= set(traced.reply.gaps)
