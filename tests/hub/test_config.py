"""The bounds of settings: every number has them, the defaults keep them, and 0 is taken where it means something."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from erxhub.config import Config
from erxhub.v1 import common_pb2, prescribing_pb2

NUMBERS = [field.name for field in fields(Config) if type(field.default) is int]
OFF_AT_0 = {
    "queue_commands_max",
    "queue_bytes_max",
    "batch_linger_ms",
    "slowed_reply_ms",
    "checkpoint_interval_ms",
    "drain_ms",
    "drain_quiet_ms",
    "start_verify_entries",
}


def changed(name: str, value: int) -> Config:
    settings: dict[str, Any] = {name: value}
    return Config(**settings)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [-1, 2**31])
def test_every_number_is_bounded_below_and_above(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"^{name}={value}: the value is from \d+ to \d+$"):
        changed(name, value)


@pytest.mark.parametrize("name", NUMBERS)
def test_0_is_taken_only_where_it_means_off(name: str) -> None:
    if name in OFF_AT_0:
        assert getattr(changed(name, 0), name) == 0
    else:
        with pytest.raises(ValueError, match=f"^{name}=0: "):
            changed(name, 0)


def test_a_page_is_never_larger_than_the_largest() -> None:
    assert Config(page_size_default=20, page_size_max=20).page_size_max == 20
    with pytest.raises(ValueError, match=r"^page_size_default=50: the value is at most page_size_max, which is 20$"):
        Config(page_size_max=20)


def test_a_message_holds_the_largest_upload() -> None:
    signature = common_pb2.Signature(key_id="0" * 32, signature=bytes(128))
    signed = common_pb2.Signed(payload_type="x" * 100, payload=bytes(65_536), signatures=[signature] * 4)
    file = common_pb2.PrescriptionFile(media_type="application/pdf", data=bytes(1024 * 1024))
    upload = prescribing_pb2.UploadPrescriptionRequest(
        request_id="x" * 64, prescription=signed, review=signed, seal=signed, file=file
    )
    with pytest.raises(ValueError, match=r"^message_bytes_max="):
        Config(message_bytes_max=upload.ByteSize() - 1)
    assert Config(message_bytes_max=1_310_720).message_bytes_max >= upload.ByteSize()
