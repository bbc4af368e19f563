"""Which area things belong to: fixed for ever, because a row is found by its shard."""

import pytest
from google.protobuf.message import Message

from erxhub.core import events
from erxhub.core.keys import PlacedKey, prescription_key, stream_key, trace_code_key
from erxhub.ledger.entry import Entry, EntryKind, Header, seal
from erxhub.ledger.placement import HASH_SHARDS, caller_shard, keyed_shard, stream_shard
from erxhub.ledger.postgres_homes import Homes
from erxhub.ledger.postgres_plan import Home
from erxhub.ledger.store import Write
from erxhub.placement import AreaPlacement
from erxhub.v1 import events_pb2, state_pb2

PERSON = stream_key("person", b"1")
PLACEMENT = AreaPlacement()


def begun(kind: str, event: str, payload: Message | None = None, actor: str = "channel/app") -> Entry:
    body = b"" if payload is None else payload.SerializeToString()
    header = Header(
        kind, stream_key(kind, b"1"), 1, EntryKind.EVENT, events.BY_NAME[event].number, 1, actor, "r", b"", ()
    )
    return seal(header, bytes(16), body, bytes(32))


@pytest.mark.parametrize(
    ("kind", "event", "payload", "actor", "expected"),
    [
        ("prescription", "prescription.prechecked", None, "hospital/H33010099901/D330100990001", "330100"),
        ("encounter", "encounter.registered", None, "hospital/H33010099901", "330100"),
        ("access", "audit.read", None, "pharmacy/P42010099101", "420100"),
        ("access", "audit.read", None, "auditor/auditor-1", ""),
        (
            "person",
            "person.registered",
            events_pb2.PersonRegistered(person=state_pb2.PersonState(insured_area_code="420100")),
            "agency/330100",
            "420100",
        ),
        ("account", "account.opened", events_pb2.AccountOpened(person_key=PERSON), "agency/330100", PERSON),
        ("voucher", "voucher.issued", events_pb2.VoucherIssued(person_key=PERSON), "channel/app", PERSON),
        (
            "practitioner",
            "practitioner.registered",
            events_pb2.PractitionerRegistered(
                practitioner=state_pb2.PractitionerState(institution_codes=["P42010099101", "P33010099101"])
            ),
            "agency/000000",
            "420100",
        ),
        ("trace_code", "trace_code.sold", events_pb2.TraceCodeSold(pharmacy_code="P33010099101"), "p", ""),
        ("ledger", "ledger.opened", events_pb2.LedgerOpened(), "hub/1", ""),
    ],
)
def test_a_stream_belongs_where_its_first_entry_says(
    kind: str, event: str, payload: Message | None, actor: str, expected: str | bytes
) -> None:
    entry = begun(kind, event, payload, actor)
    assert PLACEMENT.begun(Write(entries=(entry,))) == {entry.header.stream_key: expected}


def test_later_entries_begin_nothing() -> None:
    first = begun("prescription", "prescription.prechecked", actor="hospital/H33010099901")
    header = Header("prescription", first.header.stream_key, 2, EntryKind.EVENT, 1, 1, "x", "r", b"", ())
    assert PLACEMENT.begun(Write(entries=(seal(header, bytes(16), b"", first.leaf_hash),))) == {}


@pytest.mark.parametrize(
    ("space", "key", "area"),
    [
        ("institution", b"H33010099901", "330100"),
        ("hospital_rx", b"P42010099101\x0017", "420100"),
        ("practitioner", b"YS330100990001", "330100"),
        ("encounter", b"3301001234567890", "330100"),
        ("settlement", b"3301001234567890", "330100"),
        ("encounter", b"0001001234567890", ""),  # no area begins so: it would meet the shards of hashes
        ("voucher_code", b"330100" + bytes(26), ""),  # a keyed hash that happens to look like one
        ("revoked_certificate", bytes(32), ""),
        ("institution", b"\xff\xfe", ""),
    ],
)
def test_a_name_shows_its_area_or_none(space: str, key: bytes, area: str) -> None:
    assert PLACEMENT.of_name(space, key) == area


@pytest.mark.parametrize(
    ("space", "key", "area"),
    [("feed", b"P33010099101", "330100"), ("institutions", b"330000", "330000"), ("person_rx", PERSON, "")],
)
def test_a_list_shows_its_area_or_none(space: str, key: bytes, area: str) -> None:
    assert PLACEMENT.of_list(space, key) == area


@pytest.mark.parametrize(
    ("caller", "area"),
    [("hospital/H33010099901", "330100"), ("agency/330000", "330000"), ("channel/330100", ""), ("auditor/a", "")],
)
def test_a_caller_shows_its_area_or_none(caller: str, area: str) -> None:
    assert PLACEMENT.of_caller(caller) == area


@pytest.mark.parametrize(("digits", "area"), [("330100", "330100"), ("000100", ""), ("3301", ""), ("", "")])
def test_a_prescription_is_looked_for_where_its_number_says(digits: str, area: str) -> None:
    assert PLACEMENT.of_number(digits) == area


def test_key_of_a_number_is_its_bytes_and_tells_the_area() -> None:
    key = prescription_key("330100" + "0" * 21)
    assert key == stream_key("prescription", b"330100" + b"0" * 21)
    homes = Homes(PLACEMENT)
    assert homes.told(key) == (330100, True)
    assert homes.told(trace_code_key("8")) == (stream_shard("", trace_code_key("8")), True)
    assert homes.told(bytes(key)) is None
    beside = PlacedKey.made(PERSON, beside=key, surely=False)
    assert homes.told(beside) is None  # until the neighbour is known
    homes.remember({key: Home(330100, 1)})
    assert homes.told(beside) == (330100, False)


def test_shards_are_what_they_were() -> None:
    assert stream_shard("330100", PERSON) == keyed_shard("330100", "s", b"k") == caller_shard("330100", "c") == 330100
    assert (stream_shard("", b"\xab\xcd" + bytes(30)), keyed_shard("", "feed", b"k"), caller_shard("", "c")) == (
        0xABC,
        0x7EE,
        0x2E7,
    )
    assert max(stream_shard("", b"\xff" * 32), keyed_shard("", "", b"")) < HASH_SHARDS
