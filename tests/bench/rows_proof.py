"""Rows about proofs: how long until witnesses cover an upload, what a bundle costs, and a mirror's replay."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random

from erxhub.client import AuditorClient
from erxhub.config import Config
from erxhub.ledger.sqlite import open_sqlite
from erxhub.mirror.replay import Judged, Mirror, Progress
from erxhub.proof.bundle_checkpoint import Trust
from erxhub.proof.bundle_verify import verify_bundle
from erxhub.proof.notes import LogSigner
from erxhub.v1 import audit_pb2, common_pb2, prescribing_pb2
from tests.bench import load
from tests.bench.answers import AnswerWrong, check_reply
from tests.bench.chains import SIGNATURES, ChainWorld
from tests.bench.processes import ROOT, ServerProcess
from tests.bench.results import Results, percentile
from tests.bench.targets import SUITE
from tests.bench.world import Upload, World

_LOADED = 32
"""Uploads in flight beside the ones that wait for the witnesses."""

_PROBES = 16
"""Callers that wait for the witnesses, one upload after another, each after a pause of its own: one that came back at
once would always come just after a checkpoint."""

_PAUSE_S_MAX = 2.0

_WITNESS_START_S = 20.0


class _Witness:
    """`erxhub witness serve` as a process of its own."""

    def __init__(self, folder: Path, name: str, log_vkey: str) -> None:
        self._erxhub(["witness", "keygen", name, "--folder", str(folder)])
        ready = folder.with_suffix(".ready")
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "erxhub.cli", "witness", "serve", "--folder", str(folder)),
                *("--log", log_vkey, "--address", "127.0.0.1:0", "--ready-file", str(ready)),
            ],
            cwd=ROOT,
        )
        deadline = time.monotonic() + _WITNESS_START_S
        while not ready.exists():
            if time.monotonic() > deadline or self._process.poll() is not None:
                self.stop()
                raise RuntimeError("a witness did not start")
            time.sleep(0.05)
        answers = json.loads(ready.read_text())
        self.url, self.vkey = answers["url"], answers["vkey"]

    @staticmethod
    def _erxhub(arguments: list[str]) -> None:
        subprocess.run([sys.executable, "-m", "erxhub.cli", *arguments], cwd=ROOT, check=True, capture_output=True)

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(10)


async def witnessed(folder: Path, quick: bool, results: Results) -> None:
    """From an upload's acknowledgement to a checkpoint over it that two local witnesses have cosigned, under load."""
    seconds = 5 if quick else 40
    world = World(folder)
    signer = LogSigner(Config().origin, world.hub_keys.log)
    policy = folder / "policy"
    async with AsyncExitStack() as stack:
        names = ("one", "two")
        running = []
        for name in names:
            witness = _Witness(folder / name, f"bench.test/witness-{name}", signer.key.vkey)
            stack.callback(witness.stop)
            running.append(witness)
        lines = [f"log {signer.key.vkey}"]
        lines += [f"witness {name} {one.vkey} {one.url}" for name, one in zip(names, running, strict=True)]
        policy.write_text("\n".join([*lines, f"group both all {' '.join(names)}", "quorum both", ""]))
        hub = stack.enter_context(ServerProcess("tests.bench.hub_server", str(folder), "--witnesses", str(policy)))
        await world.populate(hub.port)
        calls = await stack.enter_async_context(load.connected(hub.port, world.hospital))
        waits_s, loaded = await _probed(world, hub, calls, seconds)
    results.goal("witnessed_p50_s", [percentile(waits_s, 0.5)], 1)
    results.goal("witnessed_p99_s", [percentile(waits_s, 0.99)], 3)
    results.figure("witnessed_beside_uploads_a_second", [loaded / seconds])
    results.note("witnessed_probes", {"count": len(waits_s)})


async def _probed(world: World, hub: ServerProcess, calls: load.Calls, seconds: int) -> tuple[list[float], int]:
    """Waits of the probes (seconds), and how many uploads were the load beside them."""
    ready = (await world.prepare(hub.port, {SUITE: 400 * seconds}))[SUITE]
    beside, until = iter(ready), time.monotonic() + seconds
    waits_s: list[float] = []
    loaded = 0

    async def loading(number: int) -> None:
        nonlocal loaded
        for upload in beside:
            if time.monotonic() > until:
                return
            reply = await calls[number % len(calls)](upload.request)
            check_reply(upload.rx_no, reply, world.receipt_keys)
            loaded += 1

    async def probing(chance: Random) -> None:
        for upload in beside:
            await asyncio.sleep(chance.uniform(0, _PAUSE_S_MAX))
            if time.monotonic() > until:
                return
            reply = await calls[0](upload.request)
            begun = time.perf_counter()
            # The same request again gets the same reply, and this time it waits.
            again = await calls[0](_waiting(upload))
            waits_s.append(time.perf_counter() - begun)
            check_reply(upload.rx_no, reply, world.receipt_keys)
            if again != reply:
                raise AnswerWrong("a repeated request got another reply")

    await asyncio.gather(
        *(loading(number) for number in range(_LOADED)), *(probing(Random(number)) for number in range(_PROBES))
    )
    return waits_s, loaded


def _waiting(upload: Upload) -> bytes:
    """The upload, to be answered when a quorum of witnesses has cosigned a checkpoint over it."""
    request = prescribing_pb2.UploadPrescriptionRequest.FromString(upload.request)
    request.wait_for = common_pb2.WAIT_FOR_WITNESSED
    return request.SerializeToString()


async def bundle(folder: Path, quick: bool, results: Results) -> None:
    """A full chain's bundle: its size, and the CPU of its verification offline."""
    count, times = (2, 3) if quick else (10, 20)
    world = World(folder)
    robots = ChainWorld(world)
    with ServerProcess("tests.bench.hub_server", str(folder)) as hub:
        await robots.populate(hub.port)
        async with robots.connected(hub.port):
            numbers, _ = await robots.run(await robots.admit(count), count)
        target = f"localhost:{hub.port}"
        async with AuditorClient.connect(target, world.identity("auditor", "auditor-1")) as auditor:
            auditor.case_reason = "bundle"
            files = [(await auditor.export_bundle(rx_no=number)).bundle.encode() for number in numbers]
    trust = Trust((LogSigner(Config().origin, world.hub_keys.log).key,))
    used_ms = []
    for data in files:
        verdict = verify_bundle(data, trust)
        if not verdict.holds:
            raise AnswerWrong(f"a bundle does not hold: {verdict}")
        begun = time.process_time_ns()
        for _ in range(times):
            verify_bundle(data, trust)
        used_ms.append((time.process_time_ns() - begun) / times / 1e6)
    results.goal("bundle_verify_cpu_ms", used_ms, 25)
    results.figure("bundle_bytes", [float(len(data)) for data in files])


class _Hub:
    """A hub as a mirror's certificate sees it."""

    def __init__(self, client: AuditorClient) -> None:
        self._client = client

    async def checkpoints(self, after_size: int) -> Sequence[audit_pb2.GetCheckpointResponse] | None:
        return list((await self._client.checkpoints(after_size=after_size)).checkpoints)

    async def checkpoint(self, size: int) -> audit_pb2.GetCheckpointResponse | None:
        return await self._client.checkpoint(size=size)

    async def entries(self, after_position: int, limit: int) -> AsyncGenerator[audit_pb2.StreamEntriesResponse, None]:
        async for entry in self._client.stream_entries(after_position=after_position, limit=limit):
            yield entry


async def mirror(folder: Path, quick: bool, results: Results) -> None:
    """Entries that a mirror receives, checks, keeps and judges for a second of its CPU, signatures checked."""
    rounds, chains, uploads = (1, 20, 100) if quick else (3, 200, 2_000)
    world = World(folder)
    robots = ChainWorld(world)
    per_cpu_s, kept, entries = [], 0, 0
    with ServerProcess("tests.bench.hub_server", str(folder)) as hub:
        await world.populate(hub.port)
        await robots.populate(hub.port, beside=True)
        async with robots.connected(hub.port), load.connected(hub.port, world.hospital) as calls:
            await robots.run(await robots.admit(chains), 32)
            await load.run(calls, [one.request for one in (await world.prepare(hub.port, {SUITE: uploads}))[SUITE]], 32)
        await asyncio.sleep(3 * Config().checkpoint_interval_ms / 1000)
        target = f"localhost:{hub.port}"
        async with AuditorClient.connect(target, world.identity("mirror", "mirror-1")) as client:
            for number in range(rounds):
                begun = time.process_time_ns()
                progress = await _replayed(folder / f"mirror-{number}.db", world, _Hub(client))
                entries = progress.entries
                per_cpu_s.append(entries / ((time.process_time_ns() - begun) / 1e9))
                kept = progress.signatures
    if kept < SIGNATURES * chains + 3 * uploads:
        raise AnswerWrong(f"the mirror checked {kept} signatures")
    results.goal("mirror_entries_per_cpu_s", per_cpu_s, 5_000, at_least=True)
    results.note("mirror_replayed", {"entries": entries, "signatures": kept})


async def _replayed(copy: Path, world: World, hub: _Hub) -> Progress:
    store = await open_sqlite(copy)
    try:
        key = LogSigner(Config().origin, world.hub_keys.log).key
        return await Mirror(store, [key], Judged(copy.with_suffix(".judged"))).catch_up(hub)
    finally:
        await store.close()
