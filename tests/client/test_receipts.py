"""Receipts: only one that a pinned key signed is taken."""

from typing import Any

import pytest

from erxhub.client import ClientIdentity, Connection, HospitalClient, ReceiptInvalid, check_receipt
from erxhub.crypto.receipt import receipt_message
from erxhub.crypto.suites import SigningKey
from erxhub.v1 import common_pb2, encounter_pb2
from tests.client.fake_hub import QUICK, FakeHub

ORIGIN = "hub.example/ledger"
ENTRIES = [(b"\x01" * 32, 3, b"\x02" * 32), (b"\x03" * 32, 1, b"\x04" * 32)]


@pytest.fixture(scope="module")
def receipt_key() -> SigningKey:
    return SigningKey.generate("EdDSA")


def receipt(key: SigningKey, entries: list[tuple[bytes, int, bytes]] = ENTRIES) -> common_pb2.Receipt:
    return common_pb2.Receipt(
        origin=ORIGIN,
        recorded_at_ms=1_767_225_600_000,
        max_merge_delay_ms=60_000,
        entries=[
            common_pb2.ReceiptEntry(stream_key=stream_key, version=version, leaf_hash=leaf_hash)
            for stream_key, version, leaf_hash in entries
        ],
        key_id=key.key_id,
        signature=key.sign(receipt_message(ORIGIN, 1_767_225_600_000, 60_000, entries)),
    )


def test_a_receipt_of_a_pinned_key_is_good(receipt_key: SigningKey) -> None:
    other = SigningKey.generate("EdDSA")
    pins = {other.key_id: other.public_key, receipt_key.key_id: receipt_key.public_key}
    check_receipt(receipt(receipt_key), pins)


def test_a_receipt_of_a_key_that_is_not_pinned_is_refused(receipt_key: SigningKey) -> None:
    with pytest.raises(ReceiptInvalid) as caught:
        check_receipt(receipt(SigningKey.generate("EdDSA")), {receipt_key.key_id: receipt_key.public_key})
    assert caught.value.reason == "UNKNOWN_KEY"


def test_a_receipt_that_names_a_pinned_key_and_is_signed_by_another_is_refused(receipt_key: SigningKey) -> None:
    forged = receipt(SigningKey.generate("EdDSA"))
    forged.key_id = receipt_key.key_id
    with pytest.raises(ReceiptInvalid) as caught:
        check_receipt(forged, {receipt_key.key_id: receipt_key.public_key})
    assert caught.value.reason == "SIGNATURE"


@pytest.mark.parametrize("field", ["origin", "recorded_at_ms", "max_merge_delay_ms", "version", "leaf_hash"])
def test_no_field_of_a_receipt_can_be_changed(receipt_key: SigningKey, field: str) -> None:
    changed = receipt(receipt_key)
    target: Any = changed.entries[0] if field in ("version", "leaf_hash") else changed
    value = getattr(target, field)
    setattr(target, field, value + 1 if isinstance(value, int) else b"\x09" * 32 if field == "leaf_hash" else "other")
    with pytest.raises(ReceiptInvalid) as caught:
        check_receipt(changed, {receipt_key.key_id: receipt_key.public_key})
    assert caught.value.reason == "SIGNATURE"


def test_a_receipt_whose_bytes_could_be_read_in_two_ways_is_malformed(receipt_key: SigningKey) -> None:
    entries = [(b"\x01" * 31, 3, b"\x02" * 33)]
    with pytest.raises(ReceiptInvalid) as caught:
        check_receipt(receipt(receipt_key, entries), {receipt_key.key_id: receipt_key.public_key})
    assert caught.value.reason == "MALFORMED"
    negative = receipt(receipt_key)
    negative.recorded_at_ms = -1
    with pytest.raises(ReceiptInvalid):
        check_receipt(negative, {receipt_key.key_id: receipt_key.public_key})


def test_a_receipt_for_what_stood_already_names_no_entry_and_is_good(receipt_key: SigningKey) -> None:
    check_receipt(receipt(receipt_key, []), {receipt_key.key_id: receipt_key.public_key})


async def close(hub: FakeHub, identity: ClientIdentity, **options: Any) -> encounter_pb2.CloseEncounterResponse:
    async with Connection(hub.target, identity, retry=QUICK, **options) as connection:
        return await HospitalClient(connection).close_encounter(encounter_id="E1")


async def test_every_command_is_checked_as_soon_as_keys_are_pinned(
    hub: FakeHub, connection: Connection, receipt_key: SigningKey
) -> None:
    pins = {receipt_key.key_id: receipt_key.public_key}
    hub.on["CloseEncounter"] = lambda request, context: encounter_pb2.CloseEncounterResponse(
        receipt=receipt(receipt_key)
    )
    assert (await close(hub, connection.identity, receipt_keys=pins)).receipt.origin == ORIGIN

    forged = encounter_pb2.CloseEncounterResponse(receipt=receipt(SigningKey.generate("EdDSA")))
    hub.on["CloseEncounter"] = lambda request, context: forged
    with pytest.raises(ReceiptInvalid) as caught:
        await close(hub, connection.identity, receipt_keys=pins)
    assert caught.value.reason == "UNKNOWN_KEY"
    assert caught.value.reply == forged
    assert caught.value.request_id

    hub.on.clear()
    with pytest.raises(ReceiptInvalid) as caught:
        await close(hub, connection.identity, receipt_keys=pins)
    assert caught.value.reason == "MISSING"


async def test_without_pins_nothing_is_checked_unless_it_is_asked_for(hub: FakeHub, connection: Connection) -> None:
    await close(hub, connection.identity)
    with pytest.raises(ReceiptInvalid):
        await close(hub, connection.identity, verify_receipts=True)


async def test_a_read_has_no_receipt_to_check(hub: FakeHub, connection: Connection, receipt_key: SigningKey) -> None:
    pins = {receipt_key.key_id: receipt_key.public_key}
    async with Connection(hub.target, connection.identity, receipt_keys=pins, retry=QUICK) as pinned:
        await HospitalClient(pinned).get(rx_no="1" * 27)
