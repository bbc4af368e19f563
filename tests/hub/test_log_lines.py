"""What the hub logs of a call: who, what, under which request and how it ended; never what the request says."""

from __future__ import annotations

import json
import logging

import pytest

from erxhub.client import Refusal
from erxhub.core.registry import signing_key_id
from erxhub.crypto.suites import SUITES, SigningKey, key_id
from tests.live import PERSON, live_hub

NAME = "林示例甲"


async def test_commands_reads_and_refusals_leave_a_line_without_personal_data(caplog: pytest.LogCaptureFixture) -> None:
    async with live_hub() as live:
        channel, agency = await live.channel(), await live.agency()
        with caplog.at_level(logging.INFO, logger="erxhub.rpc"):
            caplog.clear()
            issued = await channel.issue_voucher(person_no=PERSON, business_type="01201", request_id="logged-request")
            await agency.get_person(person_no=PERSON)
            with pytest.raises(Refusal):
                await agency.get_person(person_no="nobody00001")
            lines = [getattr(record, "call", {}) for record in caplog.records if record.getMessage() == "call"]
    told = [(line["method"], line["caller"], line["request_id"], line["outcome"]) for line in lines]
    assert told == [
        ("VoucherService/IssueVoucher", "channel/demo-app", "logged-request", "OK"),
        ("RegistryService/GetPerson", "agency/330100", "", "OK"),
        ("RegistryService/GetPerson", "agency/330100", "", "RECORD_UNKNOWN"),
    ]
    written = json.dumps(lines, ensure_ascii=False)
    assert not any(secret in written for secret in (PERSON, NAME, issued.voucher_code))


@pytest.mark.parametrize("suite", sorted(SUITES))
def test_core_and_crypto_name_a_key_alike(suite: str) -> None:
    key = SigningKey.generate(suite)
    assert signing_key_id(suite, key.public_key) == key_id(suite, key.public_key) == key.key_id
