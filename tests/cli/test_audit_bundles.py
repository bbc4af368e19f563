"""The auditor's verbs around bundles: taken from a real hub, checked in an empty folder without any network."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from click.testing import CliRunner, Result

from erxhub.cli import audit_monitor
from erxhub.cli.main import main
from erxhub.core.events import BY_NUMBER
from erxhub.core.keys import prescription_key
from erxhub.crypto.suites import SigningKey
from erxhub.ledger.entry import Header
from erxhub.ledger.log import Cosignature
from erxhub.proof.bundle_checkpoint import Trust
from erxhub.proof.checkpoints import write_checkpoint
from erxhub.proof.notes import COSIGNATURE, Cosigner, LogSigner, NoteKey
from tests.chain import Chain
from tests.cli.conftest import Erxhub
from tests.live import AUDITOR, PERSON, Live, live_hub

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOWHERE = "330100" + "1" * 21


@dataclass
class Desk:
    """An auditor's folder, and a hub with one prescription that was handed over and one that was only uploaded."""

    live: Live
    folder: Path
    sold: Chain
    unsold: Chain

    @property
    def key(self) -> str:
        """The log's key, as an auditor has it on paper."""
        return self.live.hub.core.publisher.signer.key.vkey

    async def run(self, *words: str) -> Result:
        """A command in a thread, as the hub needs this one."""
        return await asyncio.to_thread(self.run_here, *words)

    def run_here(self, *words: str) -> Result:
        environment = {"ERXHUB_HOME": str(self.folder / "home"), "ERXHUB_CONTEXT": None}
        return CliRunner().invoke(main, words, env=environment, catch_exceptions=False)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Desk]:
    folder = tmp_path_factory.mktemp("auditor")
    async with live_hub() as live:
        identity = live.identity("auditor", AUDITOR)
        for name, data in (("cert", identity.cert_pem), ("key", identity.key_pem), ("ca", identity.ca_pem)):
            (folder / f"{name}.pem").write_bytes(data)
        sold, unsold = Chain(live, PERSON), Chain(live, PERSON)
        await sold.handed_over()
        await unsold.uploaded()
        made = Desk(live, folder, sold, unsold)
        words = ("context", "add", "auditor", "--target", live.target, "--dir", str(folder), "--reason", "case T-1")
        assert (await made.run(*words)).exit_code == 0
        yield made


@pytest.fixture
def unplugged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """Runs a command in an empty folder of somebody who has no network and no contexts."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the network is not to be used")

    def run(*words: str) -> Result:
        home = tmp_path / "nobody"
        before = Path.cwd()
        with monkeypatch.context() as patched:
            patched.setattr(socket, "socket", refuse)
            patched.setattr(asyncio, "run", refuse)
            (tmp_path / "empty").mkdir(exist_ok=True)
            os.chdir(tmp_path / "empty")
            try:
                environment = {"ERXHUB_HOME": str(home), "ERXHUB_CONTEXT": None}
                return CliRunner().invoke(main, words, env=environment, catch_exceptions=False)
            finally:
                os.chdir(before)

    return run


def files_in(folder: Path) -> list[str]:
    """The names in a folder."""
    return sorted(path.name for path in folder.iterdir())


async def exported(desk: Desk, path: Path) -> None:
    """A bundle of the prescription that was handed over."""
    result = await desk.run("audit", "export", desk.sold.rx_no, "-o", str(path))
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""


async def published(desk: Desk) -> None:
    """A signed checkpoint over all that is in the ledger by now: the last export, too, left an entry."""
    await desk.live.hub.core.publisher.covering(await desk.live.hub.store.last_position())


async def test_an_exported_bundle_is_verified_in_an_empty_folder_without_a_network(
    desk: Desk, unplugged: Callable[..., Result], tmp_path: Path
) -> None:
    path = tmp_path / "rx.bundle"
    await exported(desk, path)
    result = unplugged("audit", "verify", str(path), "--log-key", desk.key, "--ca", str(desk.folder / "ca.pem"))
    assert result.exit_code == 0, result.stdout
    *checks, verdict = result.stdout.splitlines()
    assert [line.split()[:2] for line in checks] == [[str(number), "ok"] for number in range(1, len(checks) + 1)]
    assert verdict == f"VERIFIED: chain of prescription {desk.sold.rx_no}, unwitnessed"
    told = json.loads(unplugged("audit", "verify", str(path), "--log-key", desk.key, "-o", "json").stdout)
    assert (told["verified"], told["witnessed"], told["failures"]) == (True, False, [])


async def test_the_logs_key_may_be_given_as_the_hub_lists_it(
    desk: Desk, unplugged: Callable[..., Result], tmp_path: Path
) -> None:
    path = tmp_path / "rx.bundle"
    await exported(desk, path)
    public = desk.live.hub_keys.log.public_key.hex()
    assert unplugged("audit", "verify", str(path), "--log-key", public).exit_code == 0
    stranger = SigningKey.generate("EdDSA").public_key.hex()
    refused = unplugged("audit", "verify", str(path), "--log-key", stranger)
    assert refused.exit_code == 1
    assert "CHECKPOINT" in refused.stdout


async def test_an_altered_bundle_is_refused_with_stream_version_and_reason(
    desk: Desk, unplugged: Callable[..., Result], tmp_path: Path
) -> None:
    path = tmp_path / "rx.bundle"
    await exported(desk, path)
    lines = path.read_text().split("\n")
    entries = [at for at, line in enumerate(lines) if line.startswith("entry ")]
    # The salts of the second and the third entry of the prescription.
    fields = [lines[at].split(" ") for at in entries[1:3]]
    fields[0][3], fields[1][3] = fields[1][3], fields[0][3]
    for at, changed in zip(entries[1:3], fields, strict=True):
        lines[at] = " ".join(changed)
    path.write_text("\n".join(lines))
    result = unplugged("audit", "verify", str(path), "--log-key", desk.key)
    assert result.exit_code == 1
    assert "REFUSED\n  LEAF_HASH  prescription/" in result.stdout
    assert "version 2:" in result.stdout
    told = json.loads(unplugged("audit", "verify", str(path), "--log-key", desk.key, "-o", "json").stdout)
    assert [(fault["reason"], fault["version"]) for fault in told["failures"]] == [("LEAF_HASH", 2)]


async def test_a_policy_without_its_witnesses_refuses_the_bundle(
    desk: Desk, unplugged: Callable[..., Result], tmp_path: Path
) -> None:
    path, policy = tmp_path / "rx.bundle", tmp_path / "policy"
    await exported(desk, path)
    key = NoteKey("w", COSIGNATURE, SigningKey.generate("EdDSA").public_key)
    policy.write_text(f"log {desk.key}\nwitness w {key.vkey}\nquorum w\n")
    result = unplugged("audit", "verify", str(path), "--policy", str(policy))
    assert result.exit_code == 1
    assert "QUORUM" in result.stdout


async def test_nothing_is_verified_under_no_key_at_all(
    desk: Desk, unplugged: Callable[..., Result], tmp_path: Path
) -> None:
    path = tmp_path / "rx.bundle"
    await exported(desk, path)
    for words in (("audit", "verify", str(path)), ("audit", "verify", str(path), "--log-key", "x")):
        assert unplugged(*words).exit_code == 2
    assert unplugged("audit", "verify", "--log-key", desk.key).exit_code == 2


async def test_an_absence_is_taken_and_checked_again_without_a_hub(
    desk: Desk, unplugged: Callable[..., Result], tmp_path: Path
) -> None:
    path = tmp_path / "absent"
    for subject in (NOWHERE, "8" * 20, desk.unsold.rx_no):
        online = await desk.run("audit", "absent", subject, "-o", str(path), "--log-key", desk.key)
        assert online.exit_code == 0, online.stdout
        offline = unplugged("audit", "absent", subject, "--from", str(path), "--log-key", desk.key)
        assert (offline.exit_code, offline.stdout) == (0, online.stdout)
        assert unplugged("audit", "verify", str(path), "--log-key", desk.key).exit_code == 0
    other = unplugged("audit", "absent", NOWHERE, "--from", str(path), "--log-key", desk.key)
    assert other.exit_code == 1
    assert "SUBJECT" in other.stdout


async def test_no_absence_is_proven_of_what_was_sold(
    desk: Desk, unplugged: Callable[..., Result], tmp_path: Path
) -> None:
    result = await desk.run("audit", "absent", desk.sold.rx_no, "--log-key", desk.key)
    assert result.exit_code == 1
    assert "DISPENSED" in result.stdout
    # A bundle that proves the chain proves no absence, whatever it says.
    path = tmp_path / "rx.bundle"
    await exported(desk, path)
    swapped = unplugged("audit", "absent", desk.sold.rx_no, "--from", str(path), "--log-key", desk.key)
    assert swapped.exit_code == 1


async def test_an_entry_is_proven_with_a_file_that_says_so_again_offline(
    desk: Desk, unplugged: Callable[..., Result], tmp_path: Path
) -> None:
    kept = tmp_path / "entry.tlog-proof"
    words = ("audit", "inclusion", desk.sold.rx_no)
    result = await desk.run(*words, "2", "--log-key", desk.key, "-o", "json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    (stored,) = await desk.live.hub.store.entries(prescription_key(desk.sold.rx_no), 1, 1)
    assert told["leaf_hash"] == stored.leaf_hash.hex()
    assert told["type"] == BY_NUMBER[Header.decode(stored.header).type].name
    assert (await desk.run(*words, "2", "--log-key", desk.key, "-o", str(kept))).exit_code == 0
    assert unplugged(*words, "2", "--log-key", desk.key, "--from", str(kept)).exit_code == 0
    other = LogSigner("erxhub.test/ledger", SigningKey.generate("EdDSA")).key.vkey
    for changed, reason in (
        ((*words, "3", "--log-key", desk.key), "LEAF"),
        (("audit", "inclusion", desk.unsold.rx_no, "2", "--log-key", desk.key), "LEAF"),
        ((*words, "2", "--log-key", other), "UNVERIFIED"),
    ):
        refused = unplugged(*changed, "--from", str(kept))
        assert refused.exit_code == 1
        assert refused.stderr.startswith(f"REFUSED {reason}: ")
    file = kept.read_text()
    extra = file.split("\n")[1]
    flipped = extra[:-8] + ("A" if extra[-8] != "A" else "B") + extra[-7:]
    for text, reasons in (
        (file.replace(extra, flipped), {"ROOT_MISMATCH"}),
        (file.replace(f"{extra}\n", ""), {"LEAF"}),
        (file.replace("index ", "index 1"), {"ROOT_MISMATCH", "INDEX_RANGE"}),
        (file.replace("tlog-proof@v1", "tlog-proof@v2"), {"PROOF_FORM"}),
    ):
        kept.write_text(text)
        refused = unplugged(*words, "2", "--log-key", desk.key, "--from", str(kept))
        assert refused.exit_code == 1
        assert refused.stderr.removeprefix("REFUSED ").partition(":")[0] in reasons


async def test_an_entry_that_is_not_there_is_not_proven(desk: Desk, tmp_path: Path) -> None:
    words = ("audit", "inclusion", desk.sold.rx_no, "999", "--log-key", desk.key, "-o", str(tmp_path / "none"))
    result = await desk.run(*words)
    assert result.exit_code != 0
    assert "INPUT_MALFORMED" in result.stderr
    assert files_in(tmp_path) == []


async def test_an_export_of_nothing_leaves_no_file(desk: Desk, tmp_path: Path) -> None:
    result = await desk.run("audit", "export", NOWHERE, "-o", str(tmp_path / "none"))
    assert result.exit_code == 3
    assert files_in(tmp_path) == []


async def test_a_checkpoint_is_printed_as_the_note_that_it_is(desk: Desk) -> None:
    printed = await desk.run("audit", "checkpoint")
    assert printed.exit_code == 0
    # By its size, since the hub may have made another one by now.
    size = printed.stdout.splitlines()[1]
    data = json.loads((await desk.run("audit", "checkpoint", "--size", size, "-o", "json")).stdout)
    assert printed.stdout == data["note"]


async def test_a_dev_hub_has_a_log_too(at_dev: Erxhub, dev_home: Path) -> None:
    listed = await asyncio.to_thread(at_dev, "keys", "list", "--keys", str(dev_home / "keys"), "-o", "json")
    key = next(row["public"] for row in json.loads(listed.stdout) if row["key"] == "log")
    words = ("audit", "absent", NOWHERE, "--log-key", key, "--reason", "case 1")
    result = await asyncio.to_thread(at_dev, *words)
    assert result.exit_code == 0, result.stdout + result.stderr
    assert result.stdout.endswith(f"VERIFIED: absence of prescription {NOWHERE}, unwitnessed\n")


# ---- the daily report ----


async def test_the_days_anomalies_are_listed_as_a_table_or_an_object(desk: Desk) -> None:
    result = await desk.run("audit", "export", NOWHERE, "-o", str(desk.folder / "none"))
    assert result.exit_code == 3
    table = await desk.run("audit", "anomalies")
    assert table.exit_code == 0, table.stderr
    line = next(line for line in table.stdout.splitlines() if line.startswith("ACCESS"))
    assert line.split()[:4] == ["ACCESS", "RX_UNKNOWN", "AuditService/ExportBundle", f"auditor/{AUDITOR}"]
    told = json.loads((await desk.run("audit", "anomalies", "-o", "json")).stdout)
    assert [row["code"] for row in told["anomalies"]] == ["RX_UNKNOWN"]
    assert (told["prescriptions"], told["anomalies_left_out"]) == (2, 0)
    earlier = json.loads((await desk.run("audit", "anomalies", "--day", "2020-01-01", "-o", "json")).stdout)
    assert (earlier["day"], earlier["anomalies"], earlier["entries"]) == ("2020-01-01", [], 0)


# ---- the monitor ----


async def test_a_monitor_follows_a_log_that_grows(desk: Desk, tmp_path: Path) -> None:
    state = tmp_path / "seen"
    words = ("audit", "monitor", "--state", str(state), "--once", "--log-key", desk.key)
    sizes = []
    for _ in range(2):
        await exported(desk, tmp_path / "rx.bundle")
        await published(desk)
        result = await desk.run(*words)
        assert result.exit_code == 0, result.stderr
        sizes.append(json.loads(state.read_text())["size"])
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize(("reason", "more"), [("SHORTER", 50), ("FORKED", 0), ("FORKED", -1)])
async def test_a_monitor_refuses_another_history_and_keeps_both_notes(
    desk: Desk, tmp_path: Path, reason: str, more: int
) -> None:
    await exported(desk, tmp_path / "rx.bundle")
    newest = await desk.live.hub.store.checkpoint()
    assert newest is not None
    signer = desk.live.hub.core.publisher.signer
    note = signer.note(write_checkpoint(signer.key.name, newest.size + more, bytes(32)))
    state = tmp_path / "seen"
    audit_monitor.keep(state, audit_monitor.opened(note, Trust((signer.key,))))
    before = state.read_bytes()
    result = await desk.run("audit", "monitor", "--state", str(state), "--count", "1", "--log-key", desk.key)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"{reason}: ")
    (evidence,) = [name for name in files_in(tmp_path) if name.startswith("seen.evidence-")]
    told = json.loads((tmp_path / evidence).read_text())
    assert (told["reason"], told["seen"]) == (reason, note)
    assert told["shown"].startswith(signer.key.name)
    assert state.read_bytes() == before


async def test_a_monitor_waits_for_witnesses_and_judges_the_newest_checkpoint_that_has_them(
    desk: Desk, tmp_path: Path
) -> None:
    witness = Cosigner("witness.one", SigningKey.generate("EdDSA"))
    policy, state = tmp_path / "policy", tmp_path / "seen"
    policy.write_text(f"log {desk.key}\nwitness one {witness.key.vkey}\nquorum one\n")
    words = ("audit", "monitor", "--state", str(state), "--once", "--policy", str(policy))
    await exported(desk, tmp_path / "rx.bundle")
    result = await desk.run(*words)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "not witnessed yet" in result.stderr
    assert not state.exists()
    made = await desk.live.hub.store.checkpoint()
    assert made is not None
    line = witness.line(write_checkpoint(desk.live.hub.core.publisher.signer.key.name, made.size, made.root), 1)
    await desk.live.hub.store.cosign(made.no, [Cosignature("witness.one", line)])
    await exported(desk, tmp_path / "again.bundle")
    await published(desk)
    result = await desk.run(*words)
    assert result.exit_code == 0, result.stderr
    assert "not witnessed yet" in result.stderr
    assert json.loads(state.read_text())["size"] == made.size


async def test_a_monitor_with_a_bare_key_has_evidence_of_a_log_that_calls_itself_otherwise(
    desk: Desk, tmp_path: Path
) -> None:
    await exported(desk, tmp_path / "rx.bundle")
    signer = LogSigner("example.org/before", desk.live.hub_keys.log)
    note = signer.note(write_checkpoint(signer.key.name, 3, bytes(32)))
    state = tmp_path / "seen"
    audit_monitor.keep(state, audit_monitor.opened(note, Trust((signer.key,))))
    public = signer.key.public.hex()
    result = await desk.run("audit", "monitor", "--state", str(state), "--once", "--log-key", public)
    assert result.exit_code == 1
    assert result.stderr.startswith("FORKED: ")
    (evidence,) = [name for name in files_in(tmp_path) if name.startswith("seen.evidence-")]
    assert json.loads((tmp_path / evidence).read_text())["seen"] == note


async def test_a_monitor_that_follows_looks_again_until_its_count_is_reached(desk: Desk, tmp_path: Path) -> None:
    words = ("--follow", "--count", "2", "--interval", "1", "--log-key", desk.key)
    result = await desk.run("audit", "monitor", "--state", str(tmp_path / "seen"), *words)
    assert result.exit_code == 0, result.stderr
    assert len(result.stdout.splitlines()) == 2


async def test_a_monitor_does_not_begin_anew_over_a_state_that_it_cannot_read(desk: Desk, tmp_path: Path) -> None:
    state = tmp_path / "seen"
    state.write_text("{}")
    result = await desk.run("audit", "monitor", "--state", str(state), "--count", "1", "--log-key", desk.key)
    assert result.exit_code == 2
    assert state.read_text() == "{}"


async def test_a_hostile_file_cannot_steer_the_terminal_of_whoever_verifies_it(tmp_path: Path) -> None:
    hostile = tmp_path / "hostile.bundle"
    hostile.write_bytes(b"erxhub/bundle@v1\nchain \x1b[2K\xc2\x9bVERIFIED 1\npolicy unwitnessed\ncheckpoint\nx\n")
    refused = CliRunner().invoke(main, ["audit", "verify", str(hostile), "--log-key", "0" * 64], color=True)
    assert refused.exit_code == 1
    assert all(line.isprintable() for line in refused.output.splitlines())
    assert r"\x1b[2K\x9bVERIFIED" in refused.output


async def test_a_bundle_is_written_for_its_owner_alone(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "rx.bundle"
    assert (await desk.run("audit", "export", desk.unsold.rx_no, "-o", str(path))).exit_code == 0
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_root_that_is_no_certificate_is_the_users_mistake_and_no_fault_of_the_bundle(
    desk: Desk, tmp_path: Path
) -> None:
    path, root = tmp_path / "rx.bundle", tmp_path / "ca.pem"
    assert (await desk.run("audit", "export", desk.unsold.rx_no, "-o", str(path))).exit_code == 0
    root.write_text("no certificate")
    refused = await desk.run("audit", "verify", str(path), "--log-key", desk.key, "--ca", str(root))
    assert refused.exit_code == 2
    assert str(root) in refused.output


async def test_a_sound_bundle_of_another_prescription_is_not_what_was_asked_for(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "rx.bundle"
    assert (await desk.run("audit", "export", desk.unsold.rx_no, "-o", str(path))).exit_code == 0
    asked = ("audit", "verify", str(path), "--log-key", desk.key, "--about")
    assert (await desk.run(*asked, desk.unsold.rx_no)).exit_code == 0
    refused = await desk.run(*asked, desk.sold.rx_no)
    assert refused.exit_code == 1
    assert "SUBJECT" in refused.output
