"""A driver under way, against a small script that misbehaves on request."""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from erxhub.conform.driving import STDERR_BYTES_KEPT, Driver, DriverFault, KeptOutput, OperationUnsupported
from tests.conform.ground import driver_command

AT_MS = 1_795_140_000_000


@pytest.fixture
async def driver() -> AsyncIterator[Driver]:
    started = Driver(driver_command(), operation_ms=60_000)  # only so that a hang ends
    await started.start()
    yield started
    await started.kill()


async def listed(driver: Driver, how: str, deadline_ms: int = 0) -> object:
    return await driver.call("list_available", {"voucher_code": how}, AT_MS, deadline_ms=deadline_ms)


async def test_a_good_answer_is_given_back_and_the_driver_goes_on(driver: Driver) -> None:
    assert await listed(driver, "good") == {"outcome": "ok", "prescriptions": []}
    assert (await driver.call("describe", {}, AT_MS))["name"] == "misbehaving"
    assert driver.usable
    assert not driver.take_faults()


async def test_answers_in_another_order_find_their_requests(driver: Driver) -> None:
    first, second = await asyncio.gather(listed(driver, "reversed"), listed(driver, "reversed"))
    assert (first, second) == ({"outcome": "ok", "number": 0}, {"outcome": "ok", "number": 1})
    assert driver.usable


@pytest.mark.parametrize(
    ("how", "code", "detail"),
    [
        ("crash", "DRV_CRASHED", "exit code 3"),
        ("killed", "DRV_CRASHED", "SIGKILL"),
        ("half_line", "DRV_CRASHED", "exit code 0"),
        ("both", "DRV_SHAPE", "crash"),
        ("neither", "DRV_SHAPE", "id"),
        ("bad_outcome", "DRV_SHAPE", "perhaps"),
        ("endless_line", "DRV_LINE_TOO_LONG", "no end of line"),
        ("garbage_flood", "DRV_GARBAGE", "xxx"),
        ("error", "DRV_CRASHED", "boom"),
    ],
)
async def test_what_ends_an_operation_has_a_code(driver: Driver, how: str, code: str, detail: str) -> None:
    with pytest.raises(DriverFault) as raised:
        await listed(driver, how)
    assert (raised.value.code, detail in raised.value.detail) == (code, True), raised.value
    assert raised.value.text.zh


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("garbage", "DRV_GARBAGE"),
        ("binary", "DRV_GARBAGE"),
        ("twice", "DRV_ANSWERED_TWICE"),
        ("unknown_id", "DRV_UNKNOWN_ID"),
        ("no_id", "DRV_SHAPE"),
    ],
)
async def test_what_comes_beside_a_good_answer_is_kept_and_ends_the_use_of_the_driver(
    driver: Driver, how: str, code: str
) -> None:
    assert await listed(driver, how) == {"outcome": "ok", "prescriptions": []}
    await driver.call("reset", {}, AT_MS)  # what stands after the answer has been read by then
    assert not driver.usable
    assert {fault.code for fault in driver.take_faults()} == {code}


async def test_an_answer_that_does_not_come_is_a_hang(driver: Driver) -> None:
    with pytest.raises(DriverFault) as raised:
        await listed(driver, "hang", deadline_ms=100)
    assert raised.value.code == "DRV_HANGS"


async def test_an_answer_that_comes_too_late_is_no_second_fault(driver: Driver) -> None:
    with pytest.raises(DriverFault):
        await listed(driver, "late", deadline_ms=50)
    await driver.call("reset", {}, AT_MS)
    assert not driver.take_faults()


async def test_unsupported_is_not_a_fault(driver: Driver) -> None:
    with pytest.raises(OperationUnsupported, match="no list here"):
        await listed(driver, "unsupported")
    assert driver.usable


async def test_a_flood_on_stderr_is_kept_in_part_and_does_no_harm(driver: Driver) -> None:
    assert await listed(driver, "stderr_flood") == {"outcome": "ok", "prescriptions": []}
    await driver.kill()
    text = driver.stderr.text()
    assert driver.stderr.bytes > 4_000_000
    assert len(text) < 3 * STDERR_BYTES_KEPT
    assert text.startswith("line 0 of")
    assert "line 199999 of" in text
    assert "bytes left out" in text


async def test_a_driver_that_was_killed_starts_again(driver: Driver) -> None:
    first = (await driver.call("reset", {}, AT_MS))["pid"]
    await driver.kill()
    await driver.start()
    second = (await driver.call("reset", {}, AT_MS))["pid"]
    assert first != second
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


async def test_a_child_that_keeps_the_output_open_hides_no_crash_and_does_not_outlive_it(
    driver: Driver, tmp_path: Path
) -> None:
    lock = tmp_path / "lock"
    with pytest.raises(DriverFault, match="exit code 4"):
        await driver.call("list_available", {"voucher_code": "child", "lock": str(lock)}, AT_MS)
    await driver.kill()
    with lock.open() as file:
        # The child holds this lock for as long as it lives, a minute.
        await asyncio.wait_for(asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX), 10)


async def test_a_call_after_the_end_says_how_it_ended(driver: Driver) -> None:
    with pytest.raises(DriverFault):
        await listed(driver, "crash")
    with pytest.raises(DriverFault, match="exit code 3"):
        await listed(driver, "good")


@pytest.mark.parametrize("command", ["", "/no/such/driver", "'", "tcp://nowhere", "tcp://127.0.0.1:1"])
async def test_a_driver_that_cannot_be_started_says_so(command: str) -> None:
    driver = Driver(command)
    with pytest.raises(DriverFault) as raised:
        await driver.start()
    assert raised.value.code == "DRV_NOT_STARTED"
    await driver.kill()


async def test_shutdown_is_asked_for_before_the_end(driver: Driver) -> None:
    await driver.shut_down(AT_MS)
    assert not driver.usable


async def test_a_driver_over_tcp_is_spoken_to_the_same_way() -> None:
    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline():
            writer.write(b'{"id":1,"result":{"outcome":"ok"}}\n')
            await writer.drain()
            writer.close()
            return

    server = await asyncio.start_server(served, "127.0.0.1", 0)
    driver = Driver(f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert not driver.can_be_killed
    await driver.start()
    assert await driver.call("reset", {}, AT_MS) == {"outcome": "ok"}
    with pytest.raises(DriverFault, match="closed"):
        await driver.call("reset", {}, AT_MS)
    await driver.kill()
    server.close()


def test_kept_output_keeps_both_ends() -> None:
    kept = KeptOutput(10)
    for number in range(1_000):
        kept.add(b"%03d " % number)
    assert kept.text().startswith("000 001 00")
    assert kept.text().endswith("98 999 ")
    assert "3980 bytes" in kept.text()
