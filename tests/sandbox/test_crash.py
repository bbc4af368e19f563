"""A namespace's hub dies and starts again on its ledger; the data port cuts every connection and listens again."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from erxhub.client import HubUnreachable, Refusal
from erxhub.ledger.store import StoreUnavailable
from erxhub.ledger.verify import verify_ledger
from erxhub.v1 import sandbox_pb2
from tests.live import HOSPITAL
from tests.sandbox.ground import STANDING, UNKNOWN_RX, Box, Place, opened

CRASH = sandbox_pb2.FAULT_ACTION_CRASH_HUB
GOAWAY = sandbox_pb2.FAULT_ACTION_GOAWAY


def _rule(action: Any, **fields: Any) -> sandbox_pb2.FaultRule:
    return sandbox_pb2.FaultRule(action=action, nth=1, **fields)


async def _uploading(place: Place) -> Any:
    """A prescription that is ready to be uploaded; returns its upload as a call that can be repeated."""
    chain = await place.chain().prechecked()
    hospital = await place.hospital()
    arguments = chain.upload_arguments()
    return lambda: hospital.upload(**arguments, request_id="request-of-the-upload")


@pytest.mark.parametrize("after_commit", [False, True])
async def test_a_crash_around_a_commit_loses_the_reply_and_never_half_a_command(box: Box, after_commit: bool) -> None:
    place = await box.new("one")
    upload = await _uploading(place)
    before = len(await box.ledger("one"))
    rule = _rule(CRASH, event="prescription.uploaded", arguments=sandbox_pb2.FaultArguments(after_commit=after_commit))
    await box.operator.set_faults([rule], namespace="one")
    with pytest.raises(HubUnreachable) as lost:
        await upload()
    assert "connection lost" in lost.value.details
    assert (len(await box.ledger("one")) > before) == after_commit
    # The same request again has the one outcome, whether it was committed before or is now.
    reply = await upload()
    once = await box.ledger("one")
    assert (await upload()) == reply
    assert await box.ledger("one") == once
    assert not (await verify_ledger(box.namespace("one").store)).findings


async def test_a_crash_in_a_file_leaves_a_ledger_that_goes_on(tmp_path: Path) -> None:
    async with opened(database=tmp_path / "sandbox.db", suite="EdDSA", default_clock=STANDING) as box:
        place = await (await box.place("default")).activated()
        upload = await _uploading(place)
        rule = _rule(CRASH, event="prescription.uploaded", arguments=sandbox_pb2.FaultArguments(after_commit=True))
        await box.operator.set_faults([rule])
        with pytest.raises(HubUnreachable):
            await upload()
        assert (await upload()).rx_no
        assert not (await verify_ledger(box.namespace("default").store)).findings


async def test_a_crash_cuts_the_calls_of_its_namespace_and_of_no_other(box: Box) -> None:
    here, there = await box.new("here"), await box.new("there")
    watches = []
    for place in (here, there):
        await place.chain().uploaded()
        watch = (await place.hospital()).watch(from_start=True)
        await anext(watch)
        watches.append(watch)
    waiting = [asyncio.ensure_future(anext(watch)) for watch in watches]
    await _let_begin()
    await box.namespace("here").crash()
    with pytest.raises(HubUnreachable) as lost:
        await _until_end(waiting[0], watches[0])
    assert "connection lost" in lost.value.details
    assert not there_ended(waiting[1])
    waiting[1].cancel()
    with pytest.raises(Refusal):
        await (await here.hospital()).get(rx_no=UNKNOWN_RX)


async def _let_begin() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def there_ended(waiting: "asyncio.Future[Any]") -> bool:
    return waiting.done() and waiting.exception() is not None


async def _until_end(waiting: "asyncio.Future[Any]", watch: Any) -> None:
    await waiting
    async for _ in watch:
        continue


async def test_crashes_resets_and_snapshots_at_once_leave_one_hub_that_serves(box: Box) -> None:
    place = await box.new("one")
    namespace = box.namespace("one")
    before = {task.get_name() for task in asyncio.all_tasks()}
    await asyncio.gather(
        namespace.crash(),
        box.operator.save_snapshot("a", namespace="one"),
        namespace.crash(),
        box.operator.reset(namespace="one"),
        box.operator.advance_clock(by_ms=1_000, namespace="one"),
        namespace.crash(),
    )
    await namespace.ready()
    place.request_ids.numbers = iter(range(5_000, 6_000))
    assert (await (await place.activated()).chain().uploaded()).rx_no
    assert not (await verify_ledger(namespace.store)).findings
    # One lane for each namespace, the default one's among them: no hub is left over.
    lanes = [task for task in asyncio.all_tasks() if task.get_name() == "lane"]
    assert len(lanes) == 2
    assert "lane" in before


async def test_a_hub_that_crashed_draws_no_value_twice(box: Box) -> None:
    place = await box.new("one", seed=4)
    first = (await place.chain(1).uploaded()).rx_no
    await box.namespace("one").crash()
    assert (await place.chain(2).uploaded()).rx_no != first


class _Stubborn:
    """A ledger that cannot be opened the next few times, as on a disk that is away for a moment."""

    def __init__(self, ledger: Any, fails: int) -> None:
        self._ledger = ledger
        self.fails = fails

    async def open(self) -> Any:
        if self.fails:
            self.fails -= 1
            raise StoreUnavailable("the disk is away")
        return await self._ledger.open()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)


def _stubborn(box: Box, name: str, fails: int) -> _Stubborn:
    namespace: Any = box.namespace(name)
    namespace._ledger = _Stubborn(namespace._ledger, fails)
    stubborn: _Stubborn = namespace._ledger
    return stubborn


async def test_a_hub_that_did_not_start_again_is_started_by_the_next_call(box: Box) -> None:
    place = await box.new("one")
    upload = await _uploading(place)
    # The crash's own start fails, and that of the first call after it.
    _stubborn(box, "one", fails=2)
    await box.namespace("one").crash()
    with pytest.raises(HubUnreachable) as lost:
        await upload()
    assert "connection lost" in lost.value.details
    assert (await upload()).rx_no
    lanes = [task for task in asyncio.all_tasks() if task.get_name() == "lane"]
    assert len(lanes) == len(box.sandbox.sandbox.namespaces.all())


async def test_calls_at_once_start_a_hub_that_is_down_only_once(box: Box) -> None:
    place = await box.new("one")
    upload = await _uploading(place)
    _stubborn(box, "one", fails=1)
    await box.namespace("one").crash()
    replies = await asyncio.gather(*(upload() for _ in range(5)), box.operator.get_namespace(namespace="one"))
    assert len({reply.rx_no for reply in replies[:-1]}) == 1
    lanes = [task for task in asyncio.all_tasks() if task.get_name() == "lane"]
    assert len(lanes) == len(box.sandbox.sandbox.namespaces.all())


async def test_a_namespace_whose_hub_is_down_hides_no_other_and_can_be_put_right(box: Box) -> None:
    await box.new("here")
    await box.new("there")
    await box.operator.save_snapshot("a", namespace="here")
    stubborn = _stubborn(box, "here", fails=1_000)
    await box.namespace("here").crash()
    shown = {namespace.name: namespace.entries for namespace in await box.operator.list_namespaces()}
    assert shown["there"] > shown["here"] == 0
    for call in (box.operator.get_namespace, box.operator.reset, box.operator.check_invariants):
        with pytest.raises(Refusal) as refused:
            await call(namespace="here")
        assert refused.value.code == "SBX_UNAVAILABLE"
    stubborn.fails = 0
    assert (await box.operator.load_snapshot("a", namespace="here")).entries == shown["there"]
    stubborn.fails = 1_000
    await box.namespace("here").crash()
    await box.operator.delete_namespace(namespace="here")


async def test_a_deadline_whose_commit_meets_a_crash_is_written_by_the_next_hub(box: Box) -> None:
    place = await box.new("one")
    chain = await place.chain().held()
    await box.operator.set_faults([_rule(CRASH, event="order.expired")], namespace="one")
    moved = await box.operator.advance_clock(by_ms=4 * 86_400_000, namespace="one")
    events = [timer.event for timer in moved.fired if timer.rx_no == chain.rx_no]
    assert events.count("order.expired") == 1
    assert (await box.operator.list_faults(namespace="one"))[0].fired == 1


async def test_a_full_disk_stops_the_clock_with_a_reason(box: Box) -> None:
    place = await box.new("one")
    await place.chain().held()
    rule = sandbox_pb2.FaultRule(action=sandbox_pb2.FAULT_ACTION_DISK_FULL, event="order.expired")
    await box.operator.set_faults([rule], namespace="one")
    with pytest.raises(Refusal) as refused:
        await box.operator.advance_clock(by_ms=4 * 86_400_000, namespace="one")
    assert refused.value.code == "SBX_UNAVAILABLE"
    await box.operator.clear_faults(namespace="one")
    moved = await box.operator.advance_clock(by_ms=4 * 86_400_000, namespace="one")
    assert "order.expired" in {timer.event for timer in moved.fired}


async def test_goaway_cuts_every_connection_of_its_namespace_and_new_ones_are_taken(box: Box) -> None:
    place = await box.new("one")
    idle = await place.connect("hospital", HOSPITAL)
    await idle.list_prescriptions()
    await box.operator.set_faults([_rule(GOAWAY, method="Prescribing/GetPrescription")], namespace="one")
    hospital = await place.hospital()
    with pytest.raises(HubUnreachable):
        await hospital.get(rx_no=UNKNOWN_RX)
    assert await _left(idle, grpc.ChannelConnectivity.READY)
    again = await place.connect("hospital", HOSPITAL)
    await again.connection.channel.channel_ready()
    for client in (again, idle):
        with pytest.raises(Refusal) as refused:
            await client.get(rx_no=UNKNOWN_RX)
        assert refused.value.code == "RX_UNKNOWN"


async def _left(client: Any, state: grpc.ChannelConnectivity) -> bool:
    """Whether the client's connection leaves a state."""
    async with asyncio.timeout(5):
        await client.connection.channel.wait_for_state_change(state)
    return True


async def test_goaway_leaves_other_namespaces_their_connections(box: Box) -> None:
    one, two = await box.new("one"), await box.new("two")
    bystander = await two.hospital()
    await bystander.list_prescriptions()
    await box.operator.set_faults([_rule(GOAWAY, method="Prescribing/GetPrescription")], namespace="one")
    held = sandbox_pb2.FaultRule(
        action=sandbox_pb2.FAULT_ACTION_DELAY,
        method="Prescribing/ListPrescriptions",
        arguments=sandbox_pb2.FaultArguments(delay_ms=200),
    )
    await box.operator.set_faults([held], namespace="two")
    under_way = asyncio.ensure_future(bystander.list_prescriptions())
    while not (await box.operator.list_faults(namespace="two"))[0].fired:
        continue
    hospital = await one.hospital()
    with pytest.raises(HubUnreachable):
        await hospital.get(rx_no=UNKNOWN_RX)
    await under_way
    calls = [one async for one in box.operator.traffic(namespace="two", method="Prescribing/ListPrescriptions")]
    assert [call.status for call in calls] == ["OK", "OK"], "no repeat was needed"


async def test_a_call_that_a_fault_holds_does_not_hold_a_snapshot(box: Box) -> None:
    place = await box.new("one")
    hospital = await place.hospital()
    rule = sandbox_pb2.FaultRule(
        action=sandbox_pb2.FAULT_ACTION_LOSE_ACK,
        method="Prescribing/GetPrescription",
        arguments=sandbox_pb2.FaultArguments(hang=True),
    )
    await box.operator.set_faults([rule], namespace="one")
    held = asyncio.ensure_future(hospital.get(rx_no=UNKNOWN_RX))
    while not (await box.operator.list_faults(namespace="one"))[0].fired:
        continue
    await box.operator.save_snapshot("a", namespace="one")
    with pytest.raises(HubUnreachable):
        await held


async def test_calls_that_come_during_a_snapshot_wait_for_its_end(box: Box) -> None:
    place = await box.new("one")
    hospital = await place.hospital()

    async def look() -> str:
        with pytest.raises(Refusal) as refused:
            await hospital.get(rx_no=UNKNOWN_RX)
        return refused.value.code

    looks = [asyncio.ensure_future(look()) for _ in range(10)]
    await box.operator.save_snapshot("a", namespace="one")
    looks += [asyncio.ensure_future(look()) for _ in range(10)]
    await box.operator.reset(namespace="one")
    assert set(await asyncio.gather(*looks)) == {"RX_UNKNOWN"}
