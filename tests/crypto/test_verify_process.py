"""Verification under load by a process of its own: its verdicts, and what happens when it is gone."""

import asyncio
import io
import marshal
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from erxhub.crypto import verify_process, verify_worker
from erxhub.crypto.suites import SUITES, Check, SigningKey, Verifier

KEYS = {name: SigningKey.generate(name) for name in SUITES}
GOOD = Check("SM2-SM3", KEYS["SM2-SM3"].public_key, b"m", KEYS["SM2-SM3"].sign(b"m"))
BAD = GOOD._replace(message=b"M")
HOSTILE = (
    BAD,
    GOOD._replace(signature=b""),
    GOOD._replace(signature=bytes(64)),
    GOOD._replace(signature=b"\xff" * 64),
    GOOD._replace(public_key=b""),
    GOOD._replace(public_key=b"\x04" + bytes(64)),
)
Load = Callable[[], Awaitable[Verifier]]


async def _until(fact: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not fact():  # noqa: ASYNC110 the process has no event to wait for
            await asyncio.sleep(0.005)


def _ready(verifier: Verifier) -> bool:
    return verifier._process is not None and verifier._process.ready


def _pid(verifier: Verifier) -> int:
    assert verifier._process is not None
    assert verifier._process._process is not None
    return verifier._process._process.pid


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture
async def loaded() -> AsyncIterator[Verifier]:
    """A verifier whose first caller was load enough to start the process."""
    verifier = Verifier(process_from_callers=1)
    assert await verifier.verify_all([GOOD]) == [True]
    await _until(lambda: _ready(verifier))
    yield verifier
    verifier.close()


async def test_the_process_gives_each_caller_its_own_verdicts_in_order(loaded: Verifier) -> None:
    other = Check("ES256", KEYS["ES256"].public_key, b"m", KEYS["ES256"].sign(b"m"))
    asked = [[GOOD, BAD, other], [BAD], [other], [GOOD] * 5, list(HOSTILE), []] * 20
    answers = await asyncio.gather(*(loaded.verify_all(checks) for checks in asked))
    assert answers == [[True, False, True], [False], [True], [True] * 5, [False] * len(HOSTILE), []] * 20
    assert loaded._process is not None
    assert loaded._process.answered


async def test_a_batch_larger_than_the_sockets_buffer_is_answered(loaded: Verifier) -> None:
    long = b"x" * 3_000_000
    check = GOOD._replace(message=long, signature=KEYS["SM2-SM3"].sign(long))
    assert await asyncio.gather(*(loaded.verify_all([check, BAD]) for _ in range(3))) == [[True, False]] * 3


async def test_a_few_callers_start_no_process() -> None:
    verifier = Verifier()
    assert await asyncio.gather(*(verifier.verify_all([GOOD, BAD]) for _ in range(3))) == [[True, False]] * 3
    verifier.close()
    assert verifier._process is None


async def test_callers_of_a_process_that_is_killed_are_answered_and_load_starts_another(loaded: Verifier) -> None:
    assert await loaded.verify_all([GOOD]) == [True]
    first = _pid(loaded)
    os.kill(first, signal.SIGSTOP)  # so that it answers none of these
    callers = [asyncio.create_task(loaded.verify_all([GOOD, BAD])) for _ in range(50)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    os.kill(first, signal.SIGKILL)
    assert await asyncio.gather(*callers) == [[True, False]] * 50
    await _until(lambda: _ready(loaded))
    assert _pid(loaded) != first
    assert _is_gone(first)
    assert await loaded.verify_all([GOOD]) == [True]


async def test_a_process_that_does_not_answer_is_ended(loaded: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_process, "ANSWER_WITHIN_S", 0.02)
    first = _pid(loaded)
    os.kill(first, signal.SIGSTOP)
    async with asyncio.timeout(10):
        assert await loaded.verify_all([GOOD, BAD]) == [True, False]
    assert _is_gone(first)


async def test_a_process_that_says_what_nobody_asked_is_ended(loaded: Verifier) -> None:
    assert loaded._process is not None
    process = _pid(loaded)
    loaded._process.data_received(b"\x01")
    await _until(lambda: _is_gone(process))
    assert await loaded.verify_all([GOOD, BAD]) == [True, False]


@pytest.mark.parametrize("program", ["/nowhere/python", "", "true", "cat"])
async def test_where_no_process_can_be_started_the_thread_does_all(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", program)
    verifier = Verifier(process_from_callers=1)
    for _ in range(3):
        assert await asyncio.gather(*(verifier.verify_all([GOOD, BAD]) for _ in range(4))) == [[True, False]] * 4
    assert not _ready(verifier)
    verifier.close()


async def test_closing_ends_the_process_and_leaves_nobody_waiting(loaded: Verifier) -> None:
    process = _pid(loaded)
    os.kill(process, signal.SIGSTOP)
    callers = [asyncio.create_task(loaded.verify_all([GOOD])) for _ in range(50)]
    await asyncio.sleep(0)
    loaded.close()
    answers = await asyncio.wait_for(asyncio.gather(*callers, return_exceptions=True), 10)
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers)
    assert _is_gone(process)
    with pytest.raises(RuntimeError, match="closed"):
        await loaded.verify_all([GOOD])


async def test_closing_while_the_process_starts_ends_it() -> None:
    verifier = Verifier(process_from_callers=1)
    await verifier.verify_all([GOOD])
    process = _pid(verifier)
    verifier.close()
    assert _is_gone(process)


async def test_a_caller_who_has_gone_is_not_sent_and_disturbs_nobody(loaded: Verifier) -> None:
    callers = [asyncio.create_task(loaded.verify_all([GOOD, BAD])) for _ in range(40)]
    await asyncio.sleep(0)
    for caller in callers[::3]:
        caller.cancel()
    answers = await asyncio.gather(*callers, return_exceptions=True)
    for place, answer in enumerate(answers):
        assert answer == [True, False] if place % 3 else isinstance(answer, asyncio.CancelledError)


def test_the_worker_answers_batch_by_batch_and_ends_with_its_input() -> None:
    batches = [[tuple(GOOD), tuple(BAD)], [], [tuple(GOOD)]]
    written = [marshal.dumps(batch) for batch in batches]
    verdicts = io.BytesIO()
    verify_worker.serve(io.BytesIO(b"".join(len(one).to_bytes(4, "big") + one for one in written)), verdicts)
    assert verdicts.getvalue() == verify_process.READY + b"\x01\x00\x01"
