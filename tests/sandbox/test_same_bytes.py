"""A hub with the fault layer, the recorder and no rules answers byte for byte as one without them."""

import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from erxhub.app import start_hub
from erxhub.client import ClientIdentity, Refusal
from erxhub.config import Config
from erxhub.ports import ManualClock, SeededIds
from erxhub.rpc.server import FixedIdentity, ServerIdentity
from erxhub.sandbox.identities import Mint
from tests.live import PERSON
from tests.sandbox.ground import START_MS, UNKNOWN_RX, Box, Place, entries_of

SEED = 21


@contextlib.asynccontextmanager
async def _plain(box: Box, like: Place) -> AsyncIterator[tuple[Place, Any]]:
    """A hub of `start_hub` alone, on the same world with the same keys, seed and clock."""
    sandbox = box.sandbox
    template = await sandbox.sandbox.namespaces.templates.of("EdDSA", START_MS)
    store, clock = template.store.copy(), ManualClock(START_MS)
    served = sandbox.trust.issue_tls("hub", "hub-2", START_MS, 90, hosts=("localhost",))
    hub = await start_hub(
        store,
        FixedIdentity(ServerIdentity(served.cert_pem, served.key_pem, served.ca_pem)),
        sandbox.keys,
        config=Config(drain_ms=200, drain_quiet_ms=0),
        clock=clock,
        ids=SeededIds(SEED),
    )
    mint = Mint(sandbox.trust, sandbox.trust.trust_domain)

    async def identity(role: str, peer_id: str) -> ClientIdentity:
        minted = mint.issue(role, peer_id, START_MS, START_MS)
        return ClientIdentity(sandbox.trust.ca_pem, minted.cert_pem, minted.key_pem)

    async with AsyncExitStack() as stack:
        try:
            yield Place(f"localhost:{hub.port}", clock, like.keys, like.receipt_keys, identity, stack), store
        finally:
            await stack.aclose()
            await hub.stop()


async def _play(place: Place) -> list[bytes]:
    """Every kind of call: accepted, repeated, refused by the lane and before it, reads, a watch."""
    chain = await place.chain(1).delivered()
    held = await place.chain(2).held()
    hospital, pharmacy, channel = await place.hospital(), await place.pharmacy(), await place.channel()
    for call in (
        lambda: hospital.get(rx_no=UNKNOWN_RX),
        lambda: hospital.get(rx_no="x" * 50),
        lambda: pharmacy.release(rx_no=chain.rx_no, reason="out of stock"),
        lambda: channel.activate_voucher(person_no="33010000999999"),
        lambda: channel.activate_voucher(person_no=PERSON, request_id="request-of-a-repeat"),
        lambda: channel.activate_voucher(person_no=PERSON, request_id="request-of-a-repeat"),
    ):
        with contextlib.suppress(Refusal):
            await call()
    await hospital.get(rx_no=held.rx_no)
    await channel.list_accesses(person_no=PERSON)
    auditor = await place.auditor()
    await auditor.trace(rx_no=chain.rx_no, verify=True)
    watch = pharmacy.watch(from_start=True)
    seen = [(await anext(watch)).SerializeToString(deterministic=True) for _ in range(5)]
    await watch.aclose()
    return seen


async def test_a_hub_with_the_fault_layer_and_no_rules_answers_as_one_without(box: Box) -> None:
    await box.operator.create_namespace("one", seed=SEED, start_at_ms=START_MS, suite="EdDSA")
    inside = await box.place("one")
    async with _plain(box, inside) as (outside, store):
        for place in (inside, outside):
            await place.activated()
        seen = [await _play(inside), await _play(outside)]
        assert len(inside.kept) > 40
        assert inside.kept == outside.kept
        assert seen[0] == seen[1]
        assert await box.ledger("one") == await entries_of(store)
    shown = await box.operator.get_namespace(namespace="one")
    assert shown.exchanges_kept == shown.exchanges > 40
