"""Verification of one chain: who tampers with what is found, named by stream, version and reason."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest

from erxhub.audit.chain import Record
from erxhub.core import events
from erxhub.ledger.entry import EntryKind, Header
from erxhub.ledger.store import StoredEntry
from erxhub.v1 import audit_pb2, events_pb2, signed_pb2
from tests.audit.story import (
    ACCOUNT,
    DOCTOR,
    FILE,
    HOSPITAL,
    LEDGER,
    ORDER,
    PHARMACIST,
    PRACTITIONERS,
    RX,
    START_MS,
    Damaged,
    Story,
    signing_key,
    with_payload,
)

Place = tuple[bytes, int]


def made_up_record(event: events.EventType) -> Record:
    header = Header(
        event.stream_kinds[0], b"k" * 32, 1, EntryKind.EVENT, event.number, START_MS, "hub/hub-1", "", b"", ()
    )
    return Record(1, header, b"l" * 32, event, event.payload())


def found(trace: audit_pb2.TraceChainResponse) -> list[tuple[bytes, int, str]]:
    return [(each.stream_key, each.version, each.reason) for each in trace.findings]


def tampered(story: Story, place: Place, change: Callable[[StoredEntry], StoredEntry | None]) -> Any:
    store = Damaged(asyncio.run(story.ledger.stored()), {place: change})
    return story.trace(verify=True, store=store)


# ---- hashes ----


def test_one_changed_quantity_names_the_entry_that_broke() -> None:
    def less(payload: events_pb2.DispenseOutbound) -> None:
        payload.lots[0].quantity = "1"

    story = Story()
    place = story.ledger.place("dispense.outbound")
    trace = tampered(story, place, with_payload(less))
    assert found(trace)[0] == (*place, "COMMITMENT")
    assert {each[:2] for each in found(trace)} == {place}
    # What is stored is no longer what the pharmacy's seal covers.
    assert set(trace.gaps) == {"GAP_SIGNATURE", "GAP_CHAIN"}
    assert (trace.verified, trace.light) == (False, audit_pb2.LIGHT_RED)
    assert [flow.agrees for flow in trace.flows] == [False, True, False]


@pytest.mark.parametrize(
    "event",
    ["voucher.verified", "diagnosis.recorded", "account.debited", "trace_code.sold", "prescription.effective"],
)
def test_a_changed_instant_is_found_in_every_stream_of_the_chain(event: str) -> None:
    def one_ms_later(entry: StoredEntry) -> StoredEntry:
        header = Header.decode(entry.header)
        return replace(entry, header=replace(header, recorded_at_ms=header.recorded_at_ms + 1).encode())

    story = Story()
    place = story.ledger.place(event)
    trace = tampered(story, place, one_ms_later)
    assert (*place, "COMMITMENT") in found(trace)
    assert "GAP_CHAIN" in trace.gaps


def test_a_missing_entry_is_a_gap_in_the_versions() -> None:
    story = Story()
    key, version = story.ledger.place("review.passed")
    trace = tampered(story, (key, version), lambda entry: None)
    assert (key, version + 1, "VERSION_GAP") in found(trace)
    assert {"GAP_CHAIN", "GAP_NO_REVIEW"} <= set(trace.gaps)


def test_a_rewritten_leaf_is_found() -> None:
    story = Story()
    place = story.ledger.place("settlement.committed")
    trace = tampered(story, place, lambda entry: replace(entry, leaf_hash=b"x" * 32))
    assert (*place, "LEAF_HASH") in found(trace)


def test_a_later_entry_of_another_prescription_does_not_matter_to_the_account() -> None:
    story = Story()
    other = events_pb2.AccountDebited(amount_fen=1, rx_key=b"o" * 32)
    story.ledger.add("account", ACCOUNT, "account.debited", other, actor="pharmacy/P")
    place = story.ledger.place("account.debited")
    assert tampered(story, place, lambda entry: replace(entry, payload=b"")).verified
    earlier = (ACCOUNT, place[1] - 2)
    assert not tampered(Story(), earlier, lambda entry: replace(entry, payload=b"")).verified


# ---- payloads ----


def test_an_unreadable_payload_is_a_finding_also_without_verification() -> None:
    story = Story()
    place = story.ledger.place("settlement.committed")
    store = Damaged(asyncio.run(story.ledger.stored()), {place: lambda entry: replace(entry, payload=b"\xff")})
    trace = story.trace(store=store)
    assert (*place, "PAYLOAD") in found(trace)
    assert {"GAP_CHAIN", "GAP_NO_SETTLEMENT"} <= set(trace.gaps)


@pytest.mark.parametrize("verify", [False, True])
def test_no_damage_to_any_entry_makes_the_trace_fail(verify: bool) -> None:
    story = Story(delivery=True)
    whole = asyncio.run(story.ledger.stored())
    damages: list[Callable[[StoredEntry], StoredEntry | None]] = [
        lambda entry: None,
        lambda entry: replace(entry, payload=b"\xff\xff"),
        lambda entry: replace(entry, payload=sha256(entry.leaf_hash).digest()),
        lambda entry: replace(entry, payload=b"", salt=b""),
        lambda entry: replace(entry, header=entry.header[:-1]),
        lambda entry: replace(entry, header=b""),
        lambda entry: replace(entry, header=replace(Header.decode(entry.header), recorded_at_ms=2**64 - 1).encode()),
        lambda entry: replace(entry, header=replace(Header.decode(entry.header), type=0x0F01).encode()),
        lambda entry: replace(entry, header=replace(Header.decode(entry.header), type=0x7777, actor="").encode()),
    ]
    for key, version, _ in story.ledger.order:
        for damage in damages:
            trace = story.trace(verify=verify, store=Damaged(whole, {(key, version): damage}))
            assert not trace.verified or key not in {entry.stream_key for entry in trace.entries}


def test_a_hostile_payload_of_extreme_numbers_is_a_finding_and_not_an_error() -> None:
    def extreme(payload: Any) -> None:
        for line in payload.claim.lines:
            line.quantity_e4, line.price_e6 = 2**63 - 1, -(2**63)
        payload.claim.amounts.total_fen = -(2**63)

    story = Story(changed={"settlement.committed": extreme, "settlement.quoted": extreme})
    assert {"GAP_MONEY", "GAP_QUANTITY"} <= set(story.trace(verify=True).gaps)


# ---- states ----


def test_a_changed_state_is_found_although_every_entry_holds() -> None:
    def sold_less(state: Any) -> None:
        state.lines[0].out_e4 = 0

    story = Story()
    store = Damaged(asyncio.run(story.ledger.stored()), states={RX: sold_less})
    trace = story.trace(verify=True, store=store)
    assert found(trace) == [(RX, story.ledger.version(RX), "STATE")]
    assert list(trace.gaps) == ["GAP_CHAIN"]


def test_an_event_that_no_row_allows_is_found_where_it_stands() -> None:
    story = Story(until="order.held").then("settlement.undone", events_pb2.SettlementUndone(order_no=ORDER))
    trace = story.trace(verify=True)
    assert found(trace) == [(*story.ledger.place("settlement.undone"), "STATE")]


# ---- signatures ----


def signature_gap(story: Story, event: str, reason: str) -> None:
    trace = story.trace(verify=True)
    assert (*story.ledger.place(event), reason) in found(trace)
    assert list(trace.gaps) == ["GAP_SIGNATURE"]
    # Signatures are looked at only when that is asked for.
    assert story.trace(store=story.ledger.store).light == audit_pb2.LIGHT_GREEN


SIGNED = [
    ("diagnosis.recorded", "statement"),
    ("prescription.hospital_reviewed", "statement"),
    ("prescription.uploaded", "prescription"),
    ("prescription.uploaded", "seal"),
    ("review.passed", "statement"),
    ("settlement.committed", "statement"),
    ("dispense.outbound", "statement"),
    ("dispense.handed_over", "statement"),
]


@pytest.mark.parametrize(("event", "field"), SIGNED)
def test_a_forged_signature_is_found(event: str, field: str) -> None:
    def forged(payload: Any) -> None:
        getattr(payload, field).signatures[0].signature = b"x" * 64

    signature_gap(Story(changed={event: forged}), event, "SIGNATURE")


@pytest.mark.parametrize(("event", "field"), SIGNED)
def test_a_signature_by_anothers_key_is_found(event: str, field: str) -> None:
    def anothers(payload: Any) -> None:
        getattr(payload, field).signatures[0].key_id = signing_key("somebody").key_id

    signature_gap(Story(changed={event: anothers}), event, "SIGNING_KEY")


def test_a_content_of_another_type_is_found() -> None:
    def other_type(payload: Any) -> None:
        payload.statement.payload_type = "application/vnd.erxhub.v1.HandOverStatement"

    signature_gap(Story(changed={"review.passed": other_type}), "review.passed", "SIGNATURE")


@pytest.mark.parametrize(
    "change",
    [
        {"valid_until_ms": START_MS - 1},
        {"valid_from_ms": START_MS + 10**9},
        {"institution_code": "H33010099902"},
        {"suite": "RSA"},
    ],
    ids=str,
)
def test_a_key_that_was_not_good_then_is_found(change: dict[str, Any]) -> None:
    def changed(record: Any) -> None:
        for name, value in change.items():
            setattr(record, name, value)

    story = Story(changed={f"signing_key.registered {PHARMACIST}": changed})
    signature_gap(story, "review.passed", "SIGNING_KEY")


def test_a_key_revoked_before_it_signed_is_found_and_one_revoked_later_is_not() -> None:
    revoked = events_pb2.CertificateRevoked(key_id=signing_key(DOCTOR).key_id)
    later = Story()
    later.ledger.add("ledger", LEDGER, "certificate.revoked", revoked, actor="agency/330100")
    assert later.trace(verify=True).verified
    earlier = Story(until="encounter.started")
    earlier.ledger.add("ledger", LEDGER, "certificate.revoked", revoked, actor="agency/330100")
    earlier._ended, earlier._until = False, ""
    earlier._prescription()
    trace = earlier.trace(verify=True)
    assert (*earlier.ledger.place("prescription.uploaded"), "SIGNING_KEY") in found(trace)


def test_a_key_registered_after_it_signed_is_found() -> None:
    story = Story(register_keys=False)
    story.key("practitioner", PRACTITIONERS[DOCTOR], DOCTOR, HOSPITAL)
    trace = story.trace(verify=True)
    assert (*story.ledger.place("diagnosis.recorded"), "SIGNING_KEY") in found(trace)


@pytest.mark.parametrize(
    ("name", "event", "change"),
    [
        ("prescription.hospital_reviewed", "prescription.hospital_reviewed", {"prescription_sha256": b"x" * 32}),
        ("seal", "prescription.uploaded", {"review_sha256": b"x" * 32}),
        ("seal", "prescription.uploaded", {"file_sha256": b"x" * 32}),
        ("seal", "prescription.uploaded", {"prescription_sha256": b"x" * 32}),
        ("document", "prescription.uploaded", {"rx_trace_code": "6" * 20}),
        ("review.passed", "review.passed", {"prescription_sha256": b"x" * 32}),
        ("review.passed", "review.passed", {"decision": signed_pb2.REVIEW_DECISION_REJECT}),
        ("settlement.committed", "settlement.committed", {"quote_id": "QUOTE2"}),
        ("dispense.outbound", "dispense.outbound", {"settlement_id": "SETL2"}),
        ("dispense.handed_over", "dispense.handed_over", {"rx_no": "330100" + "3" * 21}),
        ("diagnosis.recorded", "diagnosis.recorded", {"encounter_id": "another"}),
    ],
    ids=str,
)
def test_a_statement_that_says_something_else_is_found(name: str, event: str, change: dict[str, Any]) -> None:
    def changed(statement: Any) -> None:
        for field, value in change.items():
            setattr(statement, field, value)

    signature_gap(Story(statements={name: changed}), event, "DIGEST")


def test_a_file_that_is_gone_or_another_is_found() -> None:
    story = Story()
    store = asyncio.run(story.ledger.stored())
    place = story.ledger.place("prescription.uploaded")
    digest = sha256(FILE).digest()
    for data in (None, b"another file"):
        damaged = Damaged(store)
        damaged._blobs = {} if data is None else {(RX, digest): data}
        trace = story.trace(verify=True, store=damaged)
        assert found(trace) == [(*place, "FILE")]
        assert list(trace.gaps) == ["GAP_SIGNATURE"]


def test_the_registry_that_vouches_for_the_keys_is_verified_too() -> None:
    story = Story()
    place = (PRACTITIONERS[DOCTOR], 2)
    trace = tampered(story, place, with_payload(lambda payload: payload.key.ClearField("valid_until_ms")))
    assert (*place, "COMMITMENT") in found(trace)
    assert {"GAP_CHAIN", "GAP_SIGNATURE"} == set(trace.gaps)
