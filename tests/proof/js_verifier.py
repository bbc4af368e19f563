"""The verifier in JavaScript, for tests: found, run, and asked about many bundles in one process.

Must never judge a bundle itself. Where node is missing it says so loudly, as tests/conform/node.py does.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from erxhub.proof.bundle_checkpoint import Trust
from erxhub.proof.bundle_verify import Verdict, verify_bundle
from erxhub.proof.notes import read_vkey
from erxhub.proof.policy import read_policy
from tests.conform.node import NODE_MAJOR_MIN, left_out
from tests.proof.js_tables import VERIFIER

WHAT = "the bundle verifier in JavaScript"
_AT_ONCE = 500


class Said(NamedTuple):
    """What a verifier said of a bundle: "" when it holds, else the reason, and the entry at fault."""

    reason: str
    stream_kind: str = ""
    stream_key: str = ""
    version: int = 0


@dataclass(frozen=True)
class Brought:
    """What somebody who verifies brings, as files and options give it."""

    log_keys: tuple[str, ...] = ()
    policy: bytes | None = None
    ca_pem: bytes | None = None

    @property
    def trust(self) -> Trust:
        """The same for the verifier in Python."""
        policy = read_policy(self.policy) if self.policy is not None else None
        return Trust(tuple(map(read_vkey, self.log_keys)), policy, self.ca_pem)

    def options(self, folder: Path) -> list[str]:
        """The same for the verifier in JavaScript; the files go into `folder`."""
        given = [word for key in self.log_keys for word in ("--log-key", key)]
        for option, data in (("--policy", self.policy), ("--ca", self.ca_pem)):
            if data is not None:
                file = folder / option.strip("-")
                file.write_bytes(data)
                given += [option, str(file)]
        return given


def node_or_skip() -> str:
    """The path of a node that is new enough; it needs no package."""
    node = shutil.which("node")
    if node is None:
        left_out(WHAT, f"needs node >= {NODE_MAJOR_MIN}, which is not installed")
    assert node is not None
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").split(".")[0]) < NODE_MAJOR_MIN:
        left_out(WHAT, f"needs node >= {NODE_MAJOR_MIN}; this is {version}")
    return node


def run(arguments: Sequence[str], folder: Path, sent: str = "") -> subprocess.CompletedProcess[str]:
    """One run of the command."""
    command = [node_or_skip(), str(VERIFIER), *arguments]
    return subprocess.run(command, cwd=folder, input=sent, capture_output=True, text=True, timeout=300, check=False)


def javascript_says(bundles: Sequence[bytes], brought: Brought, folder: Path) -> list[Said]:
    """The verdicts of the verifier in JavaScript, one process for some hundreds."""
    options = ["--batch", *brought.options(folder)]
    parts = (bundles[at : at + _AT_ONCE] for at in range(0, len(bundles), _AT_ONCE))
    return [said for part in parts for said in _batch(part, options, folder)]


def _batch(bundles: Sequence[bytes], options: Sequence[str], folder: Path) -> Iterator[Said]:
    lines = (json.dumps({"bundle": base64.b64encode(data).decode()}) for data in bundles)
    done = run(options, folder, "".join(f"{line}\n" for line in lines))
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(bundles), done.stderr
    for answer in answers:
        assert answer["held"] == (answer["reason"] is None)
        at = answer["at"] or {"kind": "", "key": "", "version": 0}
        yield Said(answer["reason"] or "", at["kind"], at["key"], at["version"])


def python_says(data: bytes, brought: Brought) -> Said:
    """The verdict of the verifier in Python: the first fault that it names."""
    return said(verify_bundle(data, brought.trust))


def said(verdict: Verdict) -> Said:
    """A verdict of the verifier in Python in short."""
    if verdict.holds:
        return Said("")
    first = verdict.faults[0]
    return Said(str(first.reason), first.stream_kind, first.stream_key.hex(), first.version)
