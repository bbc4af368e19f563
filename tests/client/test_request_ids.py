"""Request ids: the national shape, uniqueness, and chance for everybody else."""

import re

from erxhub.client import NationalRequestIds, RandomRequestIds, SystemEnvironment
from tests.client.conftest import HOSPITAL
from tests.client.fake_hub import FakeEnvironment

AT_MS = 1_767_225_599_000  # 2025-12-31 23:59:59 UTC


def test_national_ids_are_institution_beijing_time_and_sequence() -> None:
    ids = NationalRequestIds(HOSPITAL, FakeEnvironment(AT_MS))
    assert ids.new() == HOSPITAL + "20260101075959" + "0000"
    assert ids.new() == HOSPITAL + "20260101075959" + "0001"


def test_national_ids_never_come_twice_even_when_a_second_is_used_up_or_the_clock_is_set_back() -> None:
    environment = FakeEnvironment(AT_MS)
    ids = NationalRequestIds(HOSPITAL, environment)
    given = [ids.new() for _ in range(15_000)]
    environment.at_ms -= 60_000
    given += [ids.new() for _ in range(15_000)]
    assert len(set(given)) == len(given)
    assert {len(one) for one in given} == {30}
    assert given[10_000][12:26] == "20260101080000"


def test_random_ids_are_long_enough_and_differ() -> None:
    ids = RandomRequestIds(SystemEnvironment())
    given = {ids.new() for _ in range(1_000)}
    assert len(given) == 1_000
    assert all(re.fullmatch("[A-Za-z0-9]{26}", one) for one in given)
