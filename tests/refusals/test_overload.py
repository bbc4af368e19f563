"""A hub at its limit turns calls away before it does any work for them; they are counted and come again."""

from __future__ import annotations

from typing import Any

import pytest

from erxhub.config import Config
from tests.chain import CONSULT
from tests.live import HOSPITAL, PERSON
from tests.refusals.bench import open_bench
from tests.refusals.provoking import Attempt, Expected, refused


@pytest.mark.parametrize(
    "config", [Config(queue_commands_max=0), Config(queue_bytes_max=0)], ids=["calls that wait", "bytes that wait"]
)
async def test_full_queue_turns_every_call_away(config: Config) -> None:
    async with open_bench(config=config, seed=False) as bench:
        hospital, channel = await bench.live.hospital(), await bench.live.channel()
        calls: list[tuple[Any, Any]] = [
            (channel, channel.issue_voucher(person_no=PERSON, business_type=CONSULT)),
            (hospital, hospital.get(rx_no="1" * 27)),
            (hospital, hospital.close_encounter(encounter_id="E1", request_id="short")),
        ]
        for client, call in calls:
            refusal = await refused(bench, Attempt(client, call), Expected("OVERLOADED", counted=True))
            assert refusal.retry_after_ms == config.retry_after_ms


async def test_same_hub_with_room_answers() -> None:
    async with open_bench(seed=False) as bench:
        hospital = await bench.live.hospital(HOSPITAL)
        await refused(bench, Attempt(hospital, hospital.get(rx_no="1" * 27)), Expected("RX_UNKNOWN", "rx_no"))
