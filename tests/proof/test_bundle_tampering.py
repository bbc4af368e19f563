"""Whatever is altered in a bundle is found, and the reason says what it was."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import pytest

from erxhub.proof.bundle import Form, read_bundle, write_bundle
from erxhub.proof.bundle_checkpoint import Trust
from erxhub.proof.bundle_verify import verify_bundle
from tests.chain import Chain
from tests.live import EMPLOYEE, MINUTE_MS, PERSON, live_hub
from tests.proof.bundle_story import Closing
from tests.proof.tampering import alter, every_kind

CHECKED = 500
CAMPAIGN = 12_000


@dataclass(frozen=True)
class Bundles:
    """Two sound bundles of one log, the second made later, two absences, and what an auditor knows."""

    one: bytes
    two: bytes
    absences: tuple[bytes, bytes]
    trust: Trust


@functools.cache
def _made() -> dict[str, Bundles]:
    return {}


async def bundles() -> Bundles:
    """Made once: a delivered prescription, and one that was only uploaded."""
    made = _made()
    if not made:
        async with live_hub() as live:
            closing = Closing(live, witnessed=True)
            first = Chain(live, PERSON)
            await first.handed_over()
            live.advance(MINUTE_MS)
            one = await closing.chain(first.rx_no)
            second = Chain(live, EMPLOYEE)
            await second.uploaded()
            two = await closing.chain(second.rx_no)
            absences = (
                await closing.absence("trace_code", "8" * 20),
                await closing.absence("prescription", second.rx_no),
            )
            made["made"] = Bundles(one, two, absences, closing.trust)
    return made["made"]


async def test_both_bundles_are_sound() -> None:
    made = await bundles()
    assert [verify_bundle(data, made.trust).faults for data in (made.one, made.two)] == [[], []]


async def tried(count: int, seed: int) -> Counter[str]:
    """Alter one of the bundles `count` times; every alteration is refused for a reason that fits."""
    made = await bundles()
    random = Random(seed)
    kinds: Counter[str] = Counter()
    for number in range(count):
        data, other = (made.one, made.two) if number % 3 else (made.two, made.one)
        altered = alter(data, other, random)
        verdict = verify_bundle(altered.data, made.trust)
        found = {fault.reason for fault in verdict.faults}
        assert found, f"{altered.how} went unnoticed"
        assert found & altered.reasons, f"{altered.how}: {found} and not {set(altered.reasons)}"
        assert not verdict.holds
        kinds[altered.how.partition(":")[0]] += 1
    return kinds


@pytest.mark.campaign
async def test_every_alteration_is_found_with_the_right_reason(rounds: Callable[[int, int], int]) -> None:
    assert set(await tried(rounds(CHECKED, CAMPAIGN), seed=5)) == set(every_kind())


async def test_no_alteration_of_an_absence_goes_unnoticed() -> None:
    made = await bundles()
    random = Random(7)
    for _ in range(200):
        data = random.choice(made.absences)
        at = random.randrange(len(data))
        changed = data[:at] + bytes([data[at] ^ 1 << random.randrange(7)]) + data[at + 1 :]
        # The subject is what the file says until somebody asks; whoever asks is not deceived.
        asked = read_bundle(data).subject
        assert not verify_bundle(changed, made.trust, asked, Form.ABSENCE).holds


async def test_parts_of_two_absences_prove_neither() -> None:
    made = await bundles()
    one, two = (read_bundle(data) for data in made.absences)
    for swapped in (
        dataclasses.replace(one, absence=two.absence, streams=two.streams),
        dataclasses.replace(one, absence=two.absence, streams=one.streams),
        dataclasses.replace(two, absence=one.absence, streams=()),
        dataclasses.replace(two, subject=one.subject),
    ):
        assert not verify_bundle(write_bundle(swapped).encode(), made.trust).holds
