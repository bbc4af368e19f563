"""What one run of the suite is told: who is under test, how it is reached, what is run and for how long.

Owns: the defaults, and the command line that repeats a run. Must never: start anything.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from erxhub.conform.attach import Operator
from erxhub.conform.driving import OPERATION_MS

START_AT_MS: Final = 1_795_140_000_000
"""2026-11-20 10:00 in Beijing: where every hub's clock begins, so that a run repeats on any day."""
CASE_MS: Final = 60_000
WAIT_SCALE: Final = 0.01
CALL_TIMEOUT_MS: Final = 2_000
WORKERS: Final = 2


@dataclass(frozen=True, slots=True)
class Settings:
    """One run.

    `driver` is a command line or tcp://HOST:PORT, `operator` works an attached product, `target` is a hub.
    """

    role: str
    folder: Path
    """For certificates, keys and the products' own state; new and empty."""
    driver: str = ""
    operator: Operator | None = None
    target: str = ""
    sandbox: str = ""
    """host:port of the target's SandboxService, where it has one."""
    identities: Path | None = None
    """Role hub: certificates and keys for a target of somebody else's trust domain."""
    profile: str = "dev"
    patterns: Sequence[str] = ()
    selection: str = "all"
    seed: int = 0
    start_at_ms: int = START_AT_MS
    known_failing: Mapping[str, str] = field(default_factory=dict)
    known_failing_file: str = ""
    repeat_failed: int = 0
    workers: int = WORKERS
    operation_ms: int = OPERATION_MS
    case_ms: int = CASE_MS
    call_timeout_ms: int = CALL_TIMEOUT_MS
    wait_scale: float = WAIT_SCALE

    @property
    def attached(self) -> bool:
        """Whether an operator works the product."""
        return self.operator is not None

    @property
    def attached_by(self) -> str:
        """How what is under test is reached."""
        if self.role == "hub":
            return "target" if self.target else "own hub"
        return "operator" if self.attached else "driver"

    def command(self, pattern: str | None = None) -> str:
        """The line that repeats this run, or one case of it."""
        words = ["erxhub", "conform", "run", "--role", self.role]
        if self.role == "hub":
            words += ["--target", self.target] if self.target else []
            words += ["--sandbox", self.sandbox] if self.sandbox else []
            words += ["--identities", str(self.identities)] if self.identities else []
        else:
            words += ["--attach"] if self.attached else ["--driver", self.driver]
        words += ["--profile", self.profile, "--seed", str(self.seed)]
        if self.start_at_ms != START_AT_MS:
            words += ["--start-at", str(self.start_at_ms)]
        if pattern is None and self.known_failing_file:
            words += ["--known-failing", self.known_failing_file]
        for one in self.patterns if pattern is None else [pattern]:
            words += ["--run", one]
        return shlex.join(words)
