"""The benchmark itself works: it writes what it promises, and it sees answers that are wrong."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.bench import load
from tests.bench.answers import AnswerWrong, check_ledger, check_reply
from tests.bench.processes import ROOT, ServerProcess
from tests.bench.world import World


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Any:
    output = tmp_path_factory.mktemp("bench") / "build" / "bench.json"
    run = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--tiny", "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(output.read_text("utf-8"))


def test_the_file_names_the_machine_and_every_goal(written: Any) -> None:
    assert written["machine"]["cores"] >= 1
    assert set(written["goals"]) == {
        "upload_cpu_ratio_p256",
        "upload_cpu_ratio_sm2",
        "sm2_verify_vs_openssl",
        "no_bad_status_at_128",
    }
    for goal in written["goals"].values():
        assert set(goal) == {"value", "goal", "ok", "spread"}
        if goal["value"] is not None:
            low, high = goal["spread"]
            assert low <= goal["value"] <= high
            assert goal["ok"] == (goal["value"] <= goal["goal"])


def test_every_number_in_flight_has_its_figures(written: Any) -> None:
    for target in ("echo", "p256", "sm2"):
        for level in (1, 64):
            for name in ("cpu_us", "throughput", "p50_ms", "p99_ms"):
                assert written["figures"][f"{target}_{name}_at_{level}"]["value"] > 0
    assert written["figures"]["whole_ratio_p256_at_64"]["value"] > written["figures"]["ratio_p256_at_64"]["value"]


def test_the_answers_were_counted(written: Any) -> None:
    answers = written["figures"]["answers"]
    # 64 to warm up and 68 in the round, of each suite, and 128 at once.
    assert answers["ok_replies"] == answers["rows"] == 2 * (64 + 68) + 128
    assert answers["entries_verified"] > 4 * answers["ok_replies"]


def test_wrong_answers_are_seen(tmp_path: Path) -> None:
    world = World(tmp_path)

    async def two_uploads() -> tuple[list[str], bytes]:
        with ServerProcess("tests.bench.hub_server", str(tmp_path)) as hub:
            await world.populate(hub.port)
            uploads = (await world.prepare(hub.port, {"ES256": 2}))["ES256"]
            async with load.connected(hub.port, world.hospital) as calls:
                segment = await load.run(calls, [upload.request for upload in uploads], 1)
            assert hub.cpu_ns() > 0
        return [upload.rx_no for upload in uploads], segment.outcomes[0].reply

    (first, second), reply = asyncio.run(two_uploads())
    ledger, file_sha256 = tmp_path / "ledger.db", hashlib.sha256(world.file).digest()
    check_reply(first, reply, world.receipt_keys)
    with pytest.raises(AnswerWrong, match="is for"):
        check_reply(second, reply, world.receipt_keys)
    with pytest.raises(AnswerWrong, match="receipt"):
        check_reply(first, reply, {key_id: bytes(32) for key_id in world.receipt_keys})
    assert asyncio.run(check_ledger(ledger, [first, second], file_sha256)) > 8
    with pytest.raises(AnswerWrong, match="1 replies were OK, and 2 prescriptions"):
        asyncio.run(check_ledger(ledger, [first], file_sha256))
    with pytest.raises(AnswerWrong, match="0 files"):
        asyncio.run(check_ledger(ledger, [first, second], bytes(32)))
    with closing(sqlite3.connect(ledger)) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("UPDATE content SET payload = zeroblob(length(payload)) WHERE length(payload) > 1000")
        connection.commit()
    with pytest.raises(AnswerWrong, match="does not verify"):
        asyncio.run(check_ledger(ledger, [first, second], file_sha256))
