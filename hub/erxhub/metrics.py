"""What a hub counts about itself, and the Prometheus text that tells it.

Owns what is counted, names, buckets and the text format. Counting is an addition to a plain number on the hub's loop;
everything else happens when somebody asks. It must never put a number, name or code of a person, prescription or
caller into a label.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from erxhub.ports import machine_us

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bounds of every histogram of times. Those of go-grpc-prometheus begin at 5 ms; a hub's calls are often quicker."""

COMMANDS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
"""Bounds of the histogram of batch sizes."""


class Histogram:
    """Counts of observed values by upper bound."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value; a value on a bound is below it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """The bound that at least this share of the values did not exceed; None without values or above the last."""
        wanted, seen = share * self.count, 0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            seen += count
            if seen and seen >= wanted:
                return bound
        return None


# ---- the text format ----


class Sample(NamedTuple):
    """One line: labels, value, and what follows the family's name (`_bucket`, `_sum`, `_count`)."""

    labels: Mapping[str, str]
    value: float
    suffix: str = ""


class Family(NamedTuple):
    """A metric with its lines. `kind` is counter, gauge or histogram; `text` says what it is."""

    name: str
    kind: str
    text: str
    samples: Iterable[Sample]


def gauge(name: str, text: str, value: float) -> Family:
    """A gauge without labels."""
    return Family(name, "gauge", text, [Sample({}, value)])


def counter(name: str, text: str, value: float) -> Family:
    """A counter without labels."""
    return Family(name, "counter", text, [Sample({}, value)])


def counters(name: str, text: str, label: str, values: Mapping[str, int]) -> Family:
    """A counter by one label."""
    return Family(name, "counter", text, [Sample({label: key}, value) for key, value in sorted(values.items())])


def histogram(name: str, text: str, observed: Histogram) -> Family:
    """A histogram without labels."""
    return Family(name, "histogram", text, list(buckets(observed, {})))


def buckets(observed: Histogram, labels: Mapping[str, str]) -> Iterator[Sample]:
    """The lines of a histogram."""
    seen = 0
    for bound, count in zip((*observed.bounds, float("inf")), observed.counts, strict=True):
        seen += count
        yield Sample({**labels, "le": _number(bound)}, seen, "_bucket")
    yield Sample(labels, observed.total, "_sum")
    yield Sample(labels, seen, "_count")


def exposition(families: Iterable[Family]) -> str:
    """The families in Prometheus's text format 0.0.4."""
    lines: list[str] = []
    for family in families:
        lines += (f"# HELP {family.name} {_escaped(family.text)}", f"# TYPE {family.name} {family.kind}")
        for sample in family.samples:
            labels = ",".join(f'{key}="{_escaped(value, quoted=True)}"' for key, value in sample.labels.items())
            shown = f"{{{labels}}}" if labels else ""
            lines.append(f"{family.name}{sample.suffix}{shown} {_number(sample.value)}")
    return "\n".join(lines) + "\n"


def _escaped(text: str, *, quoted: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quoted else text


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if float(value).is_integer() else repr(float(value))


# ---- what a watch is behind ----


class Lag:
    """How far the watches are behind: seconds from a commit until a watch has told all of it."""

    __slots__ = ("_behind", "seconds")

    def __init__(self) -> None:
        self.seconds = Histogram(SECONDS)
        self._behind: dict[int, int] = {}

    def begins(self, watch: int) -> None:
        """Something was committed that a watch has to tell; the first of several counts."""
        self._behind.setdefault(watch, machine_us())

    def ends(self, watch: int) -> None:
        """The watch has told everything, and waits."""
        begun_us = self._behind.pop(watch, None)
        if begun_us is not None:
            self.seconds.observe((machine_us() - begun_us) / 1e6)

    def forget(self, watch: int) -> None:
        """The watch is over."""
        self._behind.pop(watch, None)

    @property
    def longest_s(self) -> float:
        """How long the watch that is furthest behind has been so, 0 when none is."""
        return (machine_us() - min(self._behind.values())) / 1e6 if self._behind else 0.0


# ---- what a hub counts ----


@dataclass(slots=True)
class Counters:
    """What is counted and not appended. `refusals` are those that left an entry, `counted_only` the others."""

    batches: int = 0
    commands: int = 0
    conflicts: int = 0
    busy: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    counted_only: dict[str, int] = field(default_factory=dict)
    batch_jobs: Histogram = field(default_factory=lambda: Histogram(COMMANDS))
    commit_seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    lag: Lag = field(default_factory=Lag)

    def count(self, code: str) -> None:
        """Count a refusal that leaves no entry."""
        self.counted_only[code] = self.counted_only.get(code, 0) + 1
