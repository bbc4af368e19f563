"""The same alterations of golden bundles through both verifiers: the same verdict, reason and entry at fault.

`test_bundle_tampering` holds the verifier in Python against what was altered; here the two are held against each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.proof.golden import Golden, kept
from tests.proof.js_verifier import javascript_says, python_says
from tests.proof.tampering import alter, every_kind, flipped

CHECKED = 500
CHECKED_IN_BOTH = 60
CAMPAIGN = 12_000
OTHERS_CAMPAIGN = 1_000

LOGS = ("es256", "eddsa")


def golden(log: str) -> dict[str, Golden]:
    """The golden bundles of one log by their names."""
    return {each.name: each for each in kept() if each.log == log}


@pytest.mark.campaign
def test_every_alteration_is_refused_alike_by_both_verifiers(tmp_path: Path, rounds: Callable[[int, int], int]) -> None:
    kinds = Counter[str]()
    random = Random(20)
    count = rounds(CHECKED, CAMPAIGN)
    for log in LOGS:
        one, two = (golden(log)[name] for name in ("delivered", "uploaded"))
        brought = one.brought[-1]
        ways = [(one.data, two.data), (two.data, one.data)]
        altered = [alter(*random.choice(ways), random) for _ in range(count // len(LOGS))]
        expected = [python_says(each.data, brought) for each in altered]
        for each, said in zip(altered, expected, strict=True):
            assert said.reason in each.reasons, f"{each.how}: {said}"
            kinds[each.how.partition(":")[0]] += 1
        in_both = rounds(CHECKED_IN_BOTH // len(LOGS), count)
        found = javascript_says([each.data for each in altered[:in_both]], brought, tmp_path)
        for each, said, other in zip(altered, expected, found, strict=False):
            assert said == other, each.how
        assert len(found) == min(in_both, len(altered))
    assert set(kinds) == set(every_kind())


@pytest.mark.campaign
def test_bytes_and_lines_altered_by_somebody_who_does_not_know_the_format_are_judged_alike(
    tmp_path: Path, rounds: Callable[[int, int], int]
) -> None:
    random = Random(21)
    every = golden("es256")
    for name, of_log in [("delivered", golden("sm2-sm3")), *((name, every) for name in sorted(every))]:
        each = of_log[name]
        brought = each.brought[-1]
        altered = [_altered(each.data, random) for _ in range(rounds(10, OTHERS_CAMPAIGN))]
        expected = [python_says(data, brought) for data in altered]
        assert javascript_says(altered, brought, tmp_path) == expected


def _altered(data: bytes, random: Random) -> bytes:
    """One bit is another, or a line is elsewhere, twice or gone."""
    way = random.choice(["bit", "drop", "twice", "swap", "cut"])
    lines = data.split(b"\n")
    one, two = random.randrange(len(lines)), random.randrange(len(lines))
    if way == "bit":
        return flipped(data, random)
    if way == "cut":
        return data[: random.randrange(len(data))]
    if way == "drop":
        del lines[one]
    elif way == "twice":
        lines.insert(one, lines[two])
    else:
        lines[one], lines[two] = lines[two], lines[one]
    return b"\n".join(lines)
