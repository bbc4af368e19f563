"""The benchmark itself works: it writes what it promises, and it sees answers that are wrong."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest

from erxhub.core import events
from erxhub.core.keys import prescription_key, trace_code_key
from erxhub.ledger.entry import Header
from erxhub.ledger.sqlite import open_sqlite
from erxhub.ledger.store import Wanted, Write
from erxhub.ledger.verify import verify_ledger
from tests.bench import load
from tests.bench.__main__ import merge
from tests.bench.answers import AnswerWrong, check_ledger, check_reply
from tests.bench.chains import ChainWorld
from tests.bench.grown import Grown
from tests.bench.hub_server import hold_writer
from tests.bench.processes import ROOT, ServerProcess
from tests.bench.results import Results
from tests.bench.world import World
from tests.ledger.contract import next_entry


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
        "upload_cpu_ratio_p256_aim",
        "upload_cpu_ratio_sm2",
        "upload_cpu_ratio_sm2_aim",
        "idle_client_p50_ratio",
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


def test_the_generator_writes_a_ledger_that_verifies_and_repeats_by_its_seed(tmp_path: Path) -> None:
    async def written_chains() -> None:
        grown = Grown(World(tmp_path / "grown"))
        await grown.begin()
        await grown.grow(60, 10, seed=7)
        await grown.publish()
        assert (grown.written, grown.chains, len(set(grown.rx_numbers))) == (60, 10, 10)
        first, second = (grown.chain.repeat(Random(8))[1] for _ in range(2))
        assert first == second
        store = await open_sqlite(tmp_path / "grown" / "ledger.db")
        try:
            verification = await verify_ledger(store)
            assert not verification.findings
            assert verification.entries > 60 * 4
            wanted = [prescription_key(number) for number in grown.rx_numbers]
            wanted += [trace_code_key(code) for code in grown.trace_codes]
            assert len((await store.read(Wanted(streams=frozenset(wanted)))).heads) == 20
            newest = await store.checkpoint()
            assert newest is not None
            assert newest.covered_position == await store.last_position()
        finally:
            await store.close()

    asyncio.run(written_chains())


def test_full_chains_run_on_a_hub_process(tmp_path: Path) -> None:
    async def two_chains() -> list[str]:
        robots = ChainWorld(World(tmp_path))
        with ServerProcess("tests.bench.hub_server", str(tmp_path)) as hub:
            await robots.populate(hub.port)
            async with robots.connected(hub.port):
                numbers, _ = await robots.run(await robots.admit(2), 2)
        return numbers

    numbers = asyncio.run(two_chains())
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
        given = [Header.decode(row[0]) for row in connection.execute("SELECT header FROM entry")]
    handed = {header.stream_key for header in given if header.type == events.BY_NAME["dispense.handed_over"].number}
    assert handed == {prescription_key(number) for number in numbers}


def test_a_naive_hub_writes_the_same_rows(tmp_path: Path) -> None:
    world = World(tmp_path)

    async def uploads() -> list[str]:
        with ServerProcess("tests.bench.hub_server", str(tmp_path), "--naive") as hub:
            await world.populate(hub.port)
            ready = (await world.prepare(hub.port, {"ES256": 8}))["ES256"]
            async with load.connected(hub.port, world.hospital) as calls:
                segment = await load.run(calls, [upload.request for upload in ready], 8)
            assert set(segment.statuses()) == {"OK"}
        return [upload.rx_no for upload in ready]

    accepted = asyncio.run(uploads())
    assert asyncio.run(check_ledger(tmp_path / "ledger.db", accepted, hashlib.sha256(world.file).digest())) > 32


async def test_a_held_writer_stands_still_on_its_thread_at_each_commit_and_only_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[tuple[float, bool]] = []
    here = threading.get_ident()
    store = await open_sqlite(tmp_path / "ledger.db")
    hold_writer(store, 5)
    monkeypatch.setattr(time, "sleep", lambda seconds: held.append((seconds, threading.get_ident() == here)))
    assert not (await store.append([Write(entries=(next_entry("a"),))])).conflicts
    assert held == [(0.005, False)]
    conflicted = await store.append([Write(entries=(next_entry("a", request_id="rival"),))])
    assert conflicted.conflicts == {0}
    assert held == [(0.005, False)] * 2
    assert await store.integrate(1, 10) is not None
    assert held == [(0.005, False)] * 3
    await store.load(Wanted())
    await store.read(Wanted())
    await store.close()
    assert held == [(0.005, False)] * 3


def test_a_row_leaves_the_others_in_the_file(tmp_path: Path) -> None:
    path, first, second = tmp_path / "bench.json", Results(), Results()
    first.goal("more", [3.0, 1.0, 2.0], 2, at_least=True)
    first.goal("less", [3.0], 2)
    second.goal("less", [1.0], 2)
    merge(path, first)
    merge(path, second)
    goals = json.loads(path.read_text("utf-8"))["goals"]
    assert goals == {
        "more": {"value": 2.0, "goal": 2, "ok": True, "spread": [1.0, 3.0]},
        "less": {"value": 1.0, "goal": 2, "ok": True, "spread": [1.0, 1.0]},
    }
