"""Several witnesses at once: some slow, some away, some that know better."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable

import pytest

from erxhub.ports import ManualClock
from erxhub.proof.notes import Cosigner
from erxhub.proof.policy import Policy, read_policy
from erxhub.witness.client import ForkSuspected, RollbackSuspected, WitnessClient, WitnessUnavailable, clients_of
from erxhub.witness.gathering import Gathered, gather
from erxhub.witness.witness import Answer, Witness
from tests.witness.ground import NOW_S, Log, MemoryRecords, key_of, serving

CLOCK = ManualClock(NOW_S * 1_000)
COSIGNERS = [Cosigner(f"witness.test/{n}", key_of(f"w{n}")) for n in range(3)]


class Hanging(Witness):
    async def add_checkpoint(self, body: bytes) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError


def witness(number: int, kind: type[Witness] = Witness) -> Witness:
    return kind(COSIGNERS[number], [Log().signer.key], MemoryRecords(), CLOCK)


@contextlib.asynccontextmanager
async def town(witnesses: Iterable[Witness], quorum: str) -> AsyncIterator[tuple[Policy, dict[str, WitnessClient]]]:
    """Witnesses W0, W1 … that are served, and those that are not."""
    async with contextlib.AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(serving(one)) for one in witnesses]
        urls += ["http://127.0.0.1:9"] * (len(COSIGNERS) - len(urls))
        lines = [f"witness W{n} {one.key.vkey} {urls[n]}\n" for n, one in enumerate(COSIGNERS)]
        policy = read_policy("".join([*lines, f"group q {quorum} W0 W1 W2\nquorum q\n"]).encode())
        yield policy, clients_of(policy, CLOCK, (Log().signer.key,))


async def asked(policy: Policy, clients: dict[str, WitnessClient], log: Log, size: int) -> Gathered:
    return await gather(policy, clients, log.note(size), log.prove(size), grace_ms=50)


async def test_two_of_three_do_without_the_one_that_is_away() -> None:
    async with town([witness(0), witness(1)], "2") as (policy, clients):
        found = await asked(policy, clients, Log(), 5)
    assert (sorted(found.lines), found.met, found.alarms) == (["W0", "W1"], True, {})
    assert isinstance(found.failures["W2"], WitnessUnavailable)


async def test_too_few_are_no_quorum() -> None:
    async with town([witness(0), witness(1)], "all") as (policy, clients):
        found = await asked(policy, clients, Log(), 5)
    assert (sorted(found.lines), found.met) == (["W0", "W1"], False)


async def test_one_that_hangs_holds_nobody_up() -> None:
    async with town([witness(0), witness(1, Hanging), witness(2)], "2") as (policy, clients):
        for size in (5, 6):
            found = await asked(policy, clients, Log(), size)
            assert (sorted(found.lines), found.met, found.failures) == (["W0", "W2"], True, {})


@pytest.mark.parametrize(("log", "size", "alarm"), [(Log(), 3, RollbackSuspected), (Log("other"), 9, ForkSuspected)])
async def test_an_alarm_is_heard_beside_a_quorum(log: Log, size: int, alarm: type[Exception]) -> None:
    """A hub that shows two histories to two witnesses: the second never cosigns, and the alarm has its name."""
    knows = witness(0)
    assert (await knows.add_checkpoint(Log().request(0, 7))).status == 200
    async with town([knows, witness(1), witness(2)], "2") as (policy, clients):
        found = await asked(policy, clients, log, size)
    assert (sorted(found.lines), found.met) == (["W1", "W2"], True)
    assert isinstance(found.alarms["W0"], alarm)


async def test_an_alarm_is_heard_of_a_witness_that_is_slow_to_prove_it() -> None:
    """Beyond the grace: it has claimed by then, and is looking for its note."""
    asked_for_proof = asyncio.Event()

    class Slow(Witness):
        async def newest(self, hashed_origin: str) -> Answer:
            asked_for_proof.set()
            await grace_is_over.wait()
            return await super().newest(hashed_origin)

    class Late(Witness):
        async def add_checkpoint(self, body: bytes) -> Answer:
            await asked_for_proof.wait()
            asyncio.get_running_loop().call_later(0.02, grace_is_over.set)
            return await super().add_checkpoint(body)

    grace_is_over = asyncio.Event()
    knows = witness(0, Slow)
    assert (await knows.add_checkpoint(Log().request(0, 7))).status == 200
    async with town([knows, witness(1), witness(2, Late)], "2") as (policy, clients):
        found = await gather(policy, clients, Log().note(3), Log().prove(3), grace_ms=1)
    assert isinstance(found.alarms["W0"], RollbackSuspected)


async def test_a_client_begins_where_the_ledger_knows_the_witness_to_be() -> None:
    knows, log = witness(0), Log()
    assert (await knows.add_checkpoint(log.request(0, 7))).status == 200
    bodies: list[bytes] = []

    class Listening(Witness):
        async def add_checkpoint(self, body: bytes) -> Answer:
            bodies.append(body)
            return await knows.add_checkpoint(body)

    async with town([witness(0, Listening)], "any") as (policy, _):
        clients = clients_of(policy, CLOCK, (log.signer.key,), {COSIGNERS[0].key.name: 7})
        assert (await asked(policy, clients, log, 9)).met
    assert [body.partition(b"\n")[0] for body in bodies] == [b"old 7"]


async def test_nobody_to_ask() -> None:
    assert (await gather(read_policy(b"quorum none\n"), {}, "", Log().prove(1))).met
