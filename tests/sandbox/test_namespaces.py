"""A namespace is a hub of its own, and the client certificate alone says which one a call means."""

import asyncio
import itertools
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erxhub.client import Refusal
from erxhub.v1 import sandbox_pb2
from tests.live import HOSPITAL, PERSON
from tests.sandbox.ground import UNKNOWN_RX, Box, Place, opened


async def test_a_new_namespace_holds_the_fictional_world_and_nothing_else(box: Box) -> None:
    made = await box.operator.create_namespace("one", seed=7)
    template = (await box.operator.get_namespace(namespace="default")).entries
    assert (made.name, made.trust_domain, made.seed, made.owner) == (
        "one",
        "one.erxhub.test",
        7,
        "sandbox/operator",
    )
    assert made.entries == template > 20
    assert (made.suite, made.profile, made.clock_mode) == (
        "ES256",
        sandbox_pb2.FAULT_PROFILE_DEV,
        sandbox_pb2.CLOCK_MODE_STANDING,
    )
    assert made.target == box.sandbox.target
    assert not made.database


async def test_names_are_made_where_none_is_given_and_listed_in_order(box: Box) -> None:
    first, second = [await box.operator.create_namespace() for _ in range(2)]
    listed = [namespace.name for namespace in await box.operator.list_namespaces()]
    assert listed == ["default", first.name, second.name]
    assert first.name != second.name


async def test_what_happens_in_one_namespace_is_not_seen_in_another(box: Box) -> None:
    here, there = await box.new("here"), await box.new("there")
    before = await box.ledger("there")
    rx_no = (await here.chain().uploaded()).rx_no
    assert (await (await here.hospital()).get(rx_no=rx_no)).rx_no == rx_no
    with pytest.raises(Refusal) as refused:
        await (await there.hospital()).get(rx_no=rx_no)
    assert refused.value.code == "RX_UNKNOWN"
    # The refused look is all that happened there.
    assert len(await box.ledger("there")) == len(before) + 1


async def test_the_default_namespace_has_the_certificates_of_the_sandbox_itself(box: Box) -> None:
    place = await (await box.place("default")).activated()
    assert box.namespace("default").trust_domain == "erxhub.test"
    assert (await place.chain().uploaded()).rx_no


async def test_a_certificate_of_no_namespace_is_a_stranger(box: Box) -> None:
    gone = await box.operator.create_namespace("gone")
    identity = await box.identity(gone.name, "hospital", HOSPITAL)
    await box.operator.delete_namespace(namespace="gone")
    place = await box.place("default")
    hospital = await place.connect("hospital", HOSPITAL, identity)
    entries = len(await box.ledger("default"))
    counted = dict(box.sandbox.sandbox.router.counters.counted_only)
    with pytest.raises(Refusal) as refused:
        await hospital.get(rx_no=UNKNOWN_RX)
    assert (refused.value.code, refused.value.metadata["reason"]) == ("PEER_IDENTITY", "FOREIGN_TRUST_DOMAIN")
    now = box.sandbox.sandbox.router.counters.counted_only
    assert now == counted | {"PEER_IDENTITY": counted.get("PEER_IDENTITY", 0) + 1}
    assert len(await box.ledger("default")) == entries


async def test_a_name_is_free_again_after_its_namespace_was_deleted(box: Box) -> None:
    await (await box.new("again")).chain().uploaded()
    await box.operator.delete_namespace(namespace="again")
    made = await box.operator.create_namespace("again")
    assert made.entries == (await box.operator.get_namespace(namespace="default")).entries


async def test_two_namespaces_of_one_seed_and_the_same_calls_have_the_same_ledger(box: Box) -> None:
    for name in ("first", "second"):
        await (await box.new(name, seed=5)).chain().delivered()
    assert await box.ledger("first") == await box.ledger("second")
    await (await box.new("third", seed=6)).chain().delivered()
    assert await box.ledger("third") != await box.ledger("first")


async def test_a_namespace_may_begin_on_another_day_and_in_another_suite(box: Box) -> None:
    year_ms = 365 * 86_400_000
    now_ms = (await box.operator.get_namespace(namespace="default")).now_ms
    for number, (start_at_ms, suite) in enumerate([(now_ms - 3 * year_ms, "ES256"), (now_ms + 2 * year_ms, "SM2-SM3")]):
        place = await box.new(f"day-{number}", start_at_ms=start_at_ms, suite=suite)
        assert place.clock.now_ms() == start_at_ms
        assert (await place.chain().uploaded()).rx_no


# ---- two at once ----


async def _step(place: Place, step: int) -> None:
    """One call or a few; what it refuses is part of what both sides compare."""
    try:
        await _STEPS[step](place)
    except Refusal:
        return


async def _upload(place: Place) -> Any:
    number = sum(1 for request, _ in place.kept if b"RX-PLACE" in request) + 1
    return await place.chain(number).uploaded()


async def _whole(place: Place) -> Any:
    number = sum(1 for request, _ in place.kept if b"RX-PLACE" in request) + 1
    return await place.chain(number).delivered()


async def _unknown(place: Place) -> Any:
    return await (await place.hospital()).get(rx_no=UNKNOWN_RX)


async def _activated(place: Place) -> Any:
    await (await place.channel()).activate_voucher(person_no=PERSON)


async def _listed(place: Place) -> Any:
    await (await place.channel()).list_accesses(person_no=PERSON)


_STEPS = (_upload, _whole, _unknown, _activated, _listed)

_PLANS = st.lists(st.integers(0, len(_STEPS) - 1), min_size=1, max_size=3)


async def _alone(box: Box, name: str, seed: int, plan: list[int]) -> Place:
    place = await box.new(name, seed=seed)
    for step in plan:
        await _step(place, step)
    return place


def test_two_namespaces_at_once_never_see_each_other() -> None:
    """However calls with identical ids interleave, each ledger and each reply is what it would be without the other."""
    with asyncio.Runner() as runner, ExitStack() as stack:
        opening = opened()
        box = runner.run(opening.__aenter__())
        stack.callback(lambda: runner.run(opening.__aexit__(None, None, None)))
        examples = itertools.count(1)

        @settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(plans=st.tuples(_PLANS, _PLANS), order=st.lists(st.booleans(), max_size=6), at_once=st.booleans())
        def never(plans: tuple[list[int], list[int]], order: list[bool], at_once: bool) -> None:
            runner.run(_play(box, next(examples), plans, order if not at_once else None))

        never()


async def _play(box: Box, example: int, plans: tuple[list[int], list[int]], order: list[bool] | None) -> None:
    """Each plan in a namespace of its own, alone and then beside the other: in `order`, or without one at once."""
    alone = [await _alone(box, f"alone-{number}-{example}", number, plan) for number, plan in enumerate(plans)]
    both = [await box.new(f"both-{number}-{example}", seed=number) for number in range(2)]
    if order is None:
        await asyncio.gather(*(_all(place, plan) for place, plan in zip(both, plans, strict=True)))
    else:
        await _interleaved(both, plans, order)
    for number in range(2):
        together, apart = f"both-{number}-{example}", f"alone-{number}-{example}"
        assert await box.ledger(together) == await box.ledger(apart)
        assert both[number].kept == alone[number].kept
        for name in (together, apart):
            await box.operator.delete_namespace(namespace=name)


async def _all(place: Place, plan: list[int]) -> None:
    for step in plan:
        await _step(place, step)


async def _interleaved(places: list[Place], plans: tuple[list[int], list[int]], order: list[bool]) -> None:
    left = [list(plan) for plan in plans]
    for second in order:
        if left[second]:
            await _step(places[second], left[second].pop(0))
    for place, rest in zip(places, left, strict=True):
        await _all(place, rest)
