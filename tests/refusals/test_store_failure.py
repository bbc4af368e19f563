"""A store that cannot be used: nothing is done, nothing personal is shown, and afterwards everything goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from erxhub.client import Refusal
from erxhub.config import Config
from erxhub.v1 import catalog_pb2
from tests.chain import CONSULT
from tests.live import HOUR_MS, PERSON
from tests.refusals.bench import Bench, event_of, open_bench
from tests.refusals.provoking import Attempt, Expected, refused

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def repaired(bench: Bench) -> AsyncIterator[None]:
    """The store works again after each test."""
    yield
    await bench.tidy()


CALLS: dict[str, tuple[str, Callable[[Any, str], Awaitable[Any]]]] = {
    "a command": ("channel", lambda client, _: client.issue_voucher(person_no=PERSON, business_type=CONSULT)),
    "a read with personal data": ("hospital", lambda client, rx_no: client.get(rx_no=rx_no)),
    "a list with personal data": ("channel", lambda client, _: client.list_prescriptions(person_no=PERSON)),
    "a trace": ("auditor", lambda client, rx_no: client.trace(rx_no=rx_no)),
    "a refused command": ("pharmacy", lambda client, _: client.download()),
    "a refused read": ("hospital", lambda client, _: client.get(rx_no="1" * 27)),
    "a watch": ("pharmacy", lambda client, _: anext(client.watch())),
}


@pytest.mark.parametrize("what", CALLS)
@pytest.mark.parametrize("reads_too", [False, True], ids=["writing fails", "reading fails too"])
async def test_nothing_is_done_or_shown_while_the_store_fails(bench: Bench, what: str, reads_too: bool) -> None:
    rx = await bench.rx().uploaded()
    role, call = CALLS[what]
    client = await getattr(bench.live, role)()

    async def failing() -> Any:
        bench.store.refuses_writes, bench.store.refuses_reads = True, reads_too
        return await call(client, rx.rx_no)

    await refused(bench, Attempt(client, failing()), Expected("HUB_UNAVAILABLE", counted=True))


async def test_read_without_personal_data_is_still_answered(bench: Bench) -> None:
    hospital = await bench.live.hospital()
    bench.store.refuses_writes = True
    assert (await hospital.list_catalog(dataset=catalog_pb2.CATALOG_DATASET_DRUGS)).entries


async def test_command_that_failed_is_done_once_when_it_is_sent_again(bench: Bench) -> None:
    rx = await bench.rx().uploaded()
    await rx.listed()
    pharmacy = await bench.live.pharmacy()
    bench.store.refuses_writes = True
    with pytest.raises(Refusal) as caught:
        await pharmacy.download(authorization_no=rx.authorization_no)
    assert caught.value.retriable
    assert caught.value.retry_after_ms > 0
    bench.store.works_again()
    request = caught.value.request
    assert request is not None
    first = await pharmacy.send(request)
    assert await pharmacy.send(request) == first
    auditor = await bench.live.auditor()
    traced = await auditor.trace(rx_no=rx.rx_no, verify=True)
    assert traced.verified
    assert [entry.type for entry in traced.entries].count("order.held") == 1


async def test_everything_goes_on_after_the_store_has_recovered(bench: Bench) -> None:
    rx = await bench.rx().settled()
    pharmacy = await bench.live.pharmacy()
    bench.store.refuses_writes = bench.store.refuses_reads = True
    failures = await asyncio.gather(
        *(pharmacy.void_dispense(rx_no=rx.rx_no, reason="停电") for _ in range(20)), return_exceptions=True
    )
    assert {getattr(failure, "code", "") for failure in failures} == {"HUB_UNAVAILABLE"}
    bench.store.works_again()
    await rx.handed_over()
    auditor = await bench.live.auditor()
    assert (await auditor.trace(rx_no=rx.rx_no, verify=True)).verified
    assert (await auditor.verify_ledger()).verified


class _Steps:
    """A pause that ends when the test says so; those of other loops and idle imports never end."""

    def __init__(self, held_ms: int) -> None:
        self._held_ms = held_ms
        self._go = asyncio.Event()
        self.reached = asyncio.Event()

    async def __call__(self, ms: int) -> None:
        if ms in (Config().import_idle_ms, Config().checkpoint_interval_ms):
            await asyncio.Event().wait()
        if ms == self._held_ms:
            self.reached.set()
            await self._go.wait()
            self._go.clear()

    async def step(self) -> None:
        """Let the held loop go round once."""
        self.reached.clear()
        self._go.set()
        async with asyncio.timeout(10):
            await self.reached.wait()


async def test_sweep_goes_on_after_the_store_has_recovered() -> None:
    pause = _Steps(Config().sweep_interval_ms)
    async with open_bench(pause=pause) as bench:
        await bench.rx().held()
        bench.live.advance(2 * HOUR_MS + 1)
        bench.store.refuses_writes = True
        await pause.step()
        bench.store.works_again()
        before = await bench.ledger.seen()
        await pause.step()
        swept = [event_of(entry) for entry in await bench.ledger.after(before.position)]
        assert "order.expired" in swept
