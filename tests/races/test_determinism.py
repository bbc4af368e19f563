"""The same seed and the same commands give the same ledger, byte for byte, in whatever process they run."""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from erxhub.client import Refusal
from erxhub.seed import register_world
from tests.chain import CONSULT, DOCTOR, Chain
from tests.live import DAY_MS, HOUR_MS, PERSON, PHARMACY_B, Live, live_hub
from tests.races.ground import whole_log
from tests.races.processes import ROOT
from tests.races.replay import Recording, digest, replay

pytestmark = pytest.mark.campaign


def _record(live: Live) -> Recording:
    """Write down everything that the engine is asked from now on."""
    keys = live.hub_keys
    recording = Recording(11, keys.receipt.to_pem(), keys.log.to_pem(), dict(keys.hmac_keys))
    engine: Any = live.hub.engine
    queue = engine.queue

    def queued(*arguments: Any) -> Any:
        recording.steps.append((live.clock.now_ms(), "submit", arguments))
        return queue(*arguments)

    engine.queue = queued
    for kind in ("note", "sweep"):
        plain = getattr(engine, kind)

        async def kept(*arguments: Any, kind: str = kind, plain: Any = plain) -> Any:
            recording.steps.append((live.clock.now_ms(), kind, arguments))
            return await plain(*arguments)

        setattr(engine, kind, kept)
    return recording


async def _a_day(live: Live) -> None:
    """Commands, reads, refusals, deadlines."""
    hospital, pharmacy, channel = await live.hospital(), await live.pharmacy(), await live.channel()
    chain = await Chain(live).delivered()
    lapsing = await Chain(live).quoted()
    withdrawn = await Chain(live).held()
    with pytest.raises(Refusal):
        await hospital.revoke(rx_no=withdrawn.rx_no, doctor_code=DOCTOR, reason="撤回")
    with pytest.raises(Refusal):
        await (await live.pharmacy(PHARMACY_B)).release(rx_no=lapsing.rx_no)
    waiting = [await Chain(live).uploaded() for _ in range(6)]
    for one in waiting:
        await one.listed()
    for _ in range(40):
        await channel.issue_voucher(person_no=PERSON, business_type=CONSULT)
    await hospital.get(rx_no=chain.rx_no)
    live.advance(3 * HOUR_MS)
    # Some thirty deadlines are over at once, and the sweep writes them all in one commit.
    await live.hub.engine.sweep()
    await hospital.list_prescriptions()
    await pharmacy.list_by_voucher(voucher_ref=await chain.reference("02122"))
    live.advance(DAY_MS)
    await Chain(live).handed_over()
    live.advance(3 * DAY_MS)
    await live.hub.engine.sweep()


async def _replayed_elsewhere(path: Path, hash_seed: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.races.replay",
        str(path),
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        stdout=asyncio.subprocess.PIPE,
    )
    told, _ = await process.communicate()
    return told.decode().strip()


@pytest.mark.interpreted
async def test_same_seed_and_same_commands_give_the_same_ledger(tmp_path: Path) -> None:
    async with live_hub(seed=False) as live:
        recording = _record(live)
        live.world = await register_world(await live.agency(), live.trust, live.clock.now_ms())
        await (await live.channel()).activate_voucher(person_no=PERSON)
        await _a_day(live)
        first = await whole_log(live.hub.store)
    assert len(first) > 300
    second = await whole_log(await replay(recording))
    assert [entry.header for entry in second] == [entry.header for entry in first]
    assert digest(second) == digest(first)

    path = tmp_path / "recording.pickle"
    path.write_bytes(pickle.dumps(recording))
    hash_seeds = ("1", "2")
    told = await asyncio.gather(*(_replayed_elsewhere(path, hash_seed) for hash_seed in hash_seeds))
    assert dict(zip(hash_seeds, told, strict=True)) == dict.fromkeys(hash_seeds, digest(first))
