"""What a conformance case is, and what came of running it.

Owns: the words of a case's metadata, the verdicts and their weight. Must never: read a file, start anything, or judge.
"""

from __future__ import annotations

import enum
import hashlib
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from erxhub.harness.v1 import case_pb2

Role = Literal["hospital", "pharmacy", "hub"]
Point = Literal["sut", "hub", "wire", "driver", "harness"]

ROLES: Final[tuple[Role, ...]] = ("hospital", "pharmacy", "hub")
PROFILES: Final = ("dev", "strict", "chaos")
SUITES: Final = ("ES256", "EdDSA", "SM2-SM3")
DEFAULT_SUITE: Final = "ES256"


class Verdict(enum.StrEnum):
    """What came of one case."""

    PASS = "PASS"
    FAIL = "FAIL"
    WARN = "WARN"
    """A SHOULD does not hold."""
    INFO = "INFO"
    """A MAY does not hold."""
    UNSUPPORTED = "UNSUPPORTED"
    """What is under test does not have a feature that the case needs, and says so."""
    SKIP = "SKIP"
    """The case was not run; the reason is with it."""
    ERROR = "ERROR"
    """The harness could not judge: a bad case file, a broken hub of our own."""
    REVIEW = "REVIEW"
    """Somebody has to look: what the harness cannot see is listed."""
    XFAIL = "XFAIL"
    """Failed, and is on the known-failing list."""
    XPASS = "XPASS"
    """Did not fail, and is on the known-failing list: the list is wrong."""
    FLAKY = "FLAKY"
    """Failed, and did not fail when it was repeated with the same seed."""


FAILING: Final = frozenset({Verdict.FAIL, Verdict.XPASS, Verdict.FLAKY})
"""What makes a run end with 1."""

LEVEL_VERDICTS: Final[Mapping[str, Verdict]] = {"MUST": Verdict.FAIL, "SHOULD": Verdict.WARN, "MAY": Verdict.INFO}


@dataclass(frozen=True, slots=True)
class Text:
    """A sentence in both languages."""

    en: str
    zh: str

    def record(self) -> dict[str, str]:
        """As it stands in a report."""
        return {"en": self.en, "zh": self.zh}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    `point` is where: what the product said (sut), the hub's state and ledger (hub), the calls (wire), the driver's
    keeping of its protocol (driver), or the harness itself.
    """

    point: Point
    holds: bool
    what: Text
    expected: str = ""
    actual: str = ""
    where: str = ""
    """The step, e.g. "steps[3]"; empty for the case's expectations."""
    code: str = ""
    """A stable code for what the harness itself found, e.g. DRV_CRASHED."""

    def record(self) -> dict[str, Any]:
        """As it stands in results.json."""
        found = {
            "point": self.point,
            "holds": self.holds,
            "what": self.what.record(),
            "expected": self.expected,
            "actual": self.actual,
            "where": self.where,
            "code": self.code,
        }
        return {name: value for name, value in found.items() if value != ""}


CaseFunction = Callable[[Any], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Case:
    """A case, from data or from code: exactly one of `plays` and `function` is there."""

    id: str
    revision: int
    since: str
    status: str
    first_release: bool
    title: Text
    roles: tuple[str, ...]
    level: str
    verifies: tuple[str, ...]
    needs: tuple[str, ...] = ()
    suites: tuple[str, ...] = ()
    """Runs once for each; empty: once, with ES256."""
    profiles: tuple[str, ...] = PROFILES
    deadline_ms: int = 0
    plays: Mapping[str, case_pb2.Play] = field(default_factory=dict)
    """By role."""
    function: CaseFunction | None = None
    rule: str = ""
    """What the case demands, in prose; from the docstring of a case in code."""
    source: str = ""
    """The file that it stands in, without folders."""

    @property
    def core(self) -> bool:
        """Whether it is of the core profile: first release, and stable."""
        return self.first_release and self.status == "stable"

    def digest(self) -> str:
        """SHA-256 of what the case demands; hexadecimal. Whatever changes it changes the digest."""
        parts = [
            repr((self.id, self.revision, self.status, self.roles, self.level, self.needs, self.suites, self.profiles)),
            *(
                f"{role}:{play.SerializeToString(deterministic=True).hex()}"
                for role, play in sorted(self.plays.items())
            ),
        ]
        if self.function is not None:
            parts.append(inspect.getsource(self.function))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def record(self) -> dict[str, Any]:
        """The metadata, as `conform list` and results.json show it."""
        return {
            "id": self.id,
            "revision": self.revision,
            "since": self.since,
            "status": self.status,
            "first_release": self.first_release,
            "title": self.title.record(),
            "roles": list(self.roles),
            "level": self.level,
            "verifies": list(self.verifies),
            "needs": list(self.needs),
            "suites": list(self.suites),
            "profiles": list(self.profiles),
            "source": self.source,
            "digest": self.digest(),
        }
