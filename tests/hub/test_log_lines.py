"""What the hub logs of a call: who, what, under which request and how it ended; never what the request says."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from erxhub.client import Refusal
from erxhub.core.registry import signing_key_id
from erxhub.crypto.suites import SUITES, SigningKey, key_id
from erxhub.rpc.methods import Method
from tests.live import PERSON, PHARMACY, live_hub
from tests.races.ground import turns, until_so

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


async def test_a_caller_that_leaves_while_his_watch_ends_leaves_no_trace(caplog: pytest.LogCaptureFixture) -> None:
    ended: list[type[Exception]] = []

    def seen(method: Method, inner: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        async def call(request: Any, context: Any) -> AsyncIterator[bytes]:
            try:
                async for message in inner.unary_stream(request, context):
                    yield message
            except Exception as error:
                ended.append(type(error))
                raise

        return grpc.unary_stream_rpc_method_handler(call) if method.rpc == "WatchOrders" else inner

    async def follow(pharmacy: Any) -> None:
        async for _ in pharmacy.watch(from_start=True):
            pass

    for between in range(200):
        async with live_hub(layers=[seen]) as live:
            pharmacies = [await live.connect("pharmacy", PHARMACY) for _ in range(8)]
            watches = [asyncio.create_task(follow(pharmacy)) for pharmacy in pharmacies]
            await until_so(lambda: len(live.hub.engine.watches) == 8)
            leaving = [asyncio.create_task(pharmacy.connection.channel.close()) for pharmacy in pharmacies]
            await turns(between % 10)
            live.hub.engine.watches.end()
            await asyncio.gather(*leaving)
            await asyncio.gather(*watches, return_exceptions=True)
        if set(ended) - {grpc.aio.AbortError}:
            break
    else:
        pytest.fail("nobody left in that moment")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR], caplog.text
