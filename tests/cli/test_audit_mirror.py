"""`erxhub audit mirror` against a real hub, and a mirror that cosigns."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from click.testing import CliRunner, Result

from erxhub.cli.audit_mirror import HubSource
from erxhub.cli.main import main
from erxhub.crypto.ca import TrustDomain
from erxhub.crypto.suites import SigningKey
from erxhub.ledger.log import Cosignature
from erxhub.ledger.sqlite import open_sqlite
from erxhub.mirror.cosigning import MirrorWitness
from erxhub.mirror.replay import Judged, Mirror
from erxhub.ports import ManualClock
from erxhub.proof.checkpoints import write_checkpoint
from erxhub.proof.notes import Cosigner, open_note
from erxhub.witness.keyfiles import RECORDS_FOLDER, load_witness, make_witness
from erxhub.witness.records import FileRecords
from tests.chain import Chain
from tests.live import PERSON, START_MS, Live, live_hub

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Desk:
    """The folder of whoever runs a mirror, and a hub with a prescription that was handed over."""

    live: Live
    folder: Path

    @property
    def key(self) -> str:
        return self.live.hub.core.publisher.signer.key.vkey

    async def run(self, *words: str) -> Result:
        environment = {"ERXHUB_HOME": str(self.folder / "home"), "ERXHUB_CONTEXT": None}
        return await asyncio.to_thread(CliRunner().invoke, main, words, env=environment, catch_exceptions=False)

    async def replay(self, database: Path) -> Result:
        return await self.run("audit", "mirror", "--db", str(database), "--log-key", self.key, "-o", "jsonl")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Desk]:
    folder = tmp_path_factory.mktemp("mirror")
    async with live_hub() as live:
        identity = live.identity("mirror", "mirror-1")
        for name, data in (("cert", identity.cert_pem), ("key", identity.key_pem), ("ca", identity.ca_pem)):
            (folder / f"{name}.pem").write_bytes(data)
        await Chain(live, PERSON).handed_over()
        await live.hub.core.publisher.publish_all()
        made = Desk(live, folder)
        added = await made.run("context", "add", "mirror", "--target", live.target, "--dir", str(folder))
        assert added.exit_code == 0
        yield made


def evidence_in(folder: Path) -> list[Path]:
    return list(folder.glob("*.evidence-*"))


async def newest(desk: Desk) -> Any:
    found = await desk.live.hub.core.publisher.publish_all()
    assert found is not None
    return found


async def test_a_mirror_copies_what_the_hub_has_and_agrees_with_its_newest_checkpoint(
    desk: Desk, tmp_path: Path
) -> None:
    database = tmp_path / "copy.db"
    for _ in range(2):  # the first copy leaves an access in the log, which the second one sees
        expected = await newest(desk)
        result = await desk.replay(database)
        assert result.exit_code == 0, result.stderr
        told = json.loads(result.stdout)
        assert (told["size"], told["root"]) == (expected.size, expected.root.hex())
        assert (told["map_root"], told["entries"]) == (expected.map_root.hex(), expected.covered_position)
        assert told["kept_back"] == 0
    assert evidence_in(tmp_path) == []


async def test_a_monitor_may_watch_with_a_mirrors_certificate(desk: Desk, tmp_path: Path) -> None:
    await newest(desk)
    words = ("audit", "monitor", "--state", str(tmp_path / "seen"), "--once", "--log-key", desk.key)
    assert (await desk.run(*words)).exit_code == 0


async def test_a_mirror_of_another_key_stops_with_evidence(desk: Desk, tmp_path: Path) -> None:
    await newest(desk)
    words = ("audit", "mirror", "--db", str(tmp_path / "copy.db"), "--log-key", "ab" * 32)
    result = await desk.run(*words)
    assert result.exit_code == 1
    assert result.stderr.startswith("CHECKPOINT: ")
    evidence = json.loads((tmp_path / "copy.db.evidence-checkpoint.json").read_text())
    assert evidence["reason"] == "CHECKPOINT"
    assert evidence["shown"].startswith(desk.live.hub.core.publisher.signer.key.name)


async def test_with_a_policy_a_checkpoint_of_late_has_its_witnesses(desk: Desk, tmp_path: Path) -> None:
    witness = Cosigner("witness.one", SigningKey.generate("EdDSA"))
    policy = tmp_path / "policy"
    policy.write_text(f"log {desk.key}\nwitness one {witness.key.vkey}\nquorum one\n")
    words = ("audit", "mirror", "--db", str(tmp_path / "copy.db"), "--policy", str(policy), "-o", "jsonl")
    await newest(desk)
    result = await desk.run(*words)
    assert result.exit_code == 1
    assert result.stderr.startswith("QUORUM: ")
    assert json.loads(result.stdout)["witnessed_size"] is None

    async def cosigned(root: bytes) -> int:
        made = await newest(desk)
        line = witness.line(write_checkpoint(desk.live.hub.core.publisher.signer.key.name, made.size, root), 1)
        await desk.live.hub.store.cosign(made.no, [Cosignature("witness.one", line)])
        return int(made.size)

    made = await newest(desk)
    size = await cosigned(made.root)
    for _ in range(2):  # also when a newer one waits for its witnesses
        result = await desk.run(*words)
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["witnessed_size"] == size
        await newest(desk)
    await cosigned(bytes(32))
    result = await desk.run(*words)
    assert result.exit_code == 1
    assert result.stderr.startswith("CHECKPOINT: WITNESS: ")
    assert (tmp_path / "copy.db.evidence-checkpoint.json").exists()


async def test_with_a_root_signers_certificates_come_from_it(desk: Desk, tmp_path: Path) -> None:
    root, other = tmp_path / "root.pem", tmp_path / "other.pem"
    root.write_bytes(desk.live.trust.ca_pem)
    other.write_bytes(TrustDomain.in_memory("erxhub.test", START_MS).ca_pem)
    await newest(desk)
    for file, exit_code in ((root, 0), (other, 1), (other, 1)):
        words = ("audit", "mirror", "--db", str(tmp_path / f"{file.stem}.db"), "--log-key", desk.key, "--ca", str(file))
        result = await desk.run(*words)
        assert result.exit_code == exit_code, result.stderr
    evidence = json.loads((tmp_path / "other.db.evidence-signed.json").read_text())
    assert {each["reason"] for each in evidence["findings"]} == {"CERTIFICATE"}
    assert {each["stream_kind"] for each in evidence["findings"]} == {"institution", "practitioner"}


async def test_a_mirror_trusts_somebody_and_reads_the_files_that_say_whom(desk: Desk, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    words = ("audit", "mirror", "--db", str(tmp_path / "copy.db"))
    assert (await desk.run(*words)).exit_code == 2
    assert (await desk.run(*words, "--log-key", desk.key, "--ca", str(empty))).exit_code == 2
    assert (await desk.run(*words, "--log-key", desk.key, "--policy", str(empty))).exit_code == 2


async def test_cosigning_once_makes_no_sense(desk: Desk, tmp_path: Path) -> None:
    words = ("audit", "mirror", "--db", str(tmp_path / "copy.db"), "--log-key", desk.key, "--cosign", str(tmp_path))
    assert (await desk.run(*words)).exit_code == 2


async def test_a_mirror_cosigns_what_it_replayed_and_nothing_else(desk: Desk, tmp_path: Path) -> None:
    signer = desk.live.hub.core.publisher.signer
    make_witness(tmp_path / "witness", "example.org/mirror")
    cosigner = load_witness(tmp_path / "witness")
    records = FileRecords(tmp_path / "witness" / RECORDS_FOLDER, cosigner.key)
    store = await open_sqlite(tmp_path / "copy.db")
    mirror = Mirror(store, [signer.key], Judged(tmp_path / "judged"))
    witness = MirrorWitness(mirror, store, cosigner, [signer.key], records, ManualClock(START_MS))
    try:
        expected = await newest(desk)
        body = f"old 0\n\n{expected.note}".encode()
        assert (await witness.add_checkpoint(body)).status == 503
        await mirror.catch_up(HubSource(await desk.live.connect("mirror", "mirror-1")))
        forged = signer.note(write_checkpoint(signer.key.name, expected.size, bytes(32)))
        assert (await witness.add_checkpoint(f"old 0\n\n{forged}".encode())).status == 422
        (evidence,) = (tmp_path / "witness" / RECORDS_FOLDER / "evidence").iterdir()
        assert json.loads(evidence.read_text())["offered"] == forged
        beyond = signer.note(write_checkpoint(signer.key.name, expected.size + 5, bytes(32)))
        assert (await witness.add_checkpoint(f"old 0\n\n{beyond}".encode())).status == 503
        answer = await witness.add_checkpoint(body)
        assert answer.status == 200
        cosigned = f"{expected.note}{answer.body.decode()}"
        assert [each.key for each in open_note(cosigned, [cosigner.key]).signers] == [cosigner.key]
        assert (await witness.add_checkpoint(b"nonsense")).status == 400
        stranger = SimpleNamespace(note=forged.replace(signer.key.name, "example.org/other"))
        assert (await witness.add_checkpoint(f"old 0\n\n{stranger.note}".encode())).status == 404
    finally:
        await store.close()
        records.close()
