"""Several hubs over one PostgreSQL database, in this process, with clients on each; and callers that keep histories.

Owns how a test asks one hub or another, and what of an answer a history keeps. Must never make a call that the test
did not ask for.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from erxhub.app import start_hub
from erxhub.client import Refusal
from erxhub.config import Config
from erxhub.crypto.suites import SigningKey
from erxhub.ledger.postgres import PostgresStore, open_postgres
from erxhub.ledger.store import Store
from erxhub.placement import AreaPlacement
from erxhub.ports import SeededIds
from erxhub.rpc.server import FixedIdentity, ServerIdentity
from erxhub.v1 import common_pb2
from tests.linear.checker import Recorder
from tests.linear.model import Done, Kind, Refused, Seen
from tests.live import CERTIFICATE_DAYS, Live, live_hub
from tests.postgres import PostgresServer

_QUICK_DRAIN = Config(drain_ms=200, drain_quiet_ms=0)


@dataclass
class OneOfSeveral(Live):
    """One of the hubs, as a test talks to it. A reply may come from what another hub wrote, so all keys are pinned."""

    keys_of_all: dict[str, bytes] = field(default_factory=dict)

    @property
    def receipt_keys(self) -> dict[str, bytes]:
        return self.keys_of_all


@dataclass
class Several:
    """Hubs over one ledger. The first one's `Live` made the world."""

    hubs: list[OneOfSeveral]
    stores: list[PostgresStore]

    def __getitem__(self, number: int) -> OneOfSeveral:
        return self.hubs[number % len(self.hubs)]


async def open_store(url: str, *, readers: int = 4) -> PostgresStore:
    """A hub's store, as `erxhub serve` opens it."""
    return await open_postgres(url, placement=AreaPlacement(), readers=readers)


def new_ledger(server: PostgresServer, *, tcp: bool = False) -> str:
    """The address of a new, empty ledger, for a hub's login."""
    return server.url(server.database(server.ledger_template()), "hub", tcp=tcp)


@asynccontextmanager
async def several_hubs(urls: Iterable[str]) -> AsyncIterator[Several]:
    """One hub for each address of the same database, with a seeded world.

    The first hub seeds it alone; the other addresses are taken after that.
    """
    async with AsyncExitStack() as stack:
        addresses = iter(urls)
        stores = [await open_store(next(addresses))]
        first = await stack.enter_async_context(live_hub(store=stores[0]))
        stores += [await open_store(url) for url in addresses]
        server = first.trust.issue_tls(
            "hub", "hub-n", first.start_ms, CERTIFICATE_DAYS, hosts=("localhost", "127.0.0.1")
        )
        identity = FixedIdentity(ServerIdentity(server.cert_pem, server.key_pem, first.trust.ca_pem))
        pinned = dict(first.receipt_keys)

        def one_of(hub: Any, keys: Any) -> OneOfSeveral:
            one = OneOfSeveral(hub, first.clock, first.trust, keys, first.start_ms, stack, first.start)
            one.world, one.keys_of_all = first.world, pinned
            return one

        hubs = [one_of(first.hub, first.hub_keys)]
        for number, store in enumerate(stores[1:], 2):
            # The receipt key is each hub's own; all other keys belong to the ledger.
            keys = replace(first.hub_keys, receipt=SigningKey.generate("EdDSA"))
            hub = await start_hub(
                store,
                identity,
                keys,
                config=replace(_QUICK_DRAIN, hub_id=f"hub-{number}"),
                clock=first.clock,
                ids=SeededIds(1000 + number),
            )
            stack.push_async_callback(hub.stop)
            pinned[keys.receipt.key_id] = keys.receipt.public_key
            hubs.append(one_of(hub, keys))
        yield Several(hubs, stores)


class Historian:
    """Makes calls about one prescription and keeps what came of them."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    async def call(self, rx_no: str, kind: Kind, caller: str, request_id: str, work: Any, about: str = "") -> Any:
        """Await a call under its request id; returns the reply, the refusal, or None where the outcome is unknown."""
        number = self._recorder.begin(rx_no, kind, caller, request_id, about)
        try:
            reply = await work
        except Refusal as refusal:
            if refusal.code not in UNKNOWN_OUTCOMES:
                self._recorder.end(rx_no, number, Refused(refusal.code))
            return refusal
        digest = hashlib.sha256(reply.SerializeToString(deterministic=True)).hexdigest()[:16]
        self._recorder.end(rx_no, number, Done(digest))
        return reply

    async def read(self, rx_no: str, hospital: Any) -> Seen:
        """What the issuing hospital is told of its prescription."""
        number = self._recorder.begin(rx_no, Kind.READ, "hospital", "")
        seen = seen_by_hospital(await hospital.get(rx_no=rx_no))
        self._recorder.end(rx_no, number, seen)
        return seen


UNKNOWN_OUTCOMES = frozenset({"HUB_UNAVAILABLE"})
"""What a hub also says when it lost its database during a commit and could not ask what became of it."""


def seen_by_hospital(reply: Any) -> Seen:
    """The parts of a GetPrescription reply that histories are held against."""
    live = [order for order in reply.orders if order.status not in _ENDED]
    status = live[-1].status if live else common_pb2.ORDER_STATUS_CREATED
    return Seen(
        version=int(reply.etag),
        revoked=reply.statuses.rx == common_pb2.RX_STATUS_UNDONE,
        holder=live[-1].pharmacy_code if status in _HELD else "",
        settled=status in _PAID,
        dispensed=status in _OUT,
    )


_ENDED = frozenset(
    {common_pb2.ORDER_STATUS_RELEASED, common_pb2.ORDER_STATUS_CANCELLED, common_pb2.ORDER_STATUS_TIMED_OUT}
)
_HELD = frozenset(
    {
        common_pb2.ORDER_STATUS_HELD,
        common_pb2.ORDER_STATUS_REVIEWED,
        common_pb2.ORDER_STATUS_PRESETTLED,
        common_pb2.ORDER_STATUS_SETTLED,
    }
)
_OUT = frozenset(
    {common_pb2.ORDER_STATUS_DISPENSED, common_pb2.ORDER_STATUS_DELIVERING, common_pb2.ORDER_STATUS_COMPLETED}
)
_PAID = _OUT | {common_pb2.ORDER_STATUS_SETTLED}


async def stores_agree(stores: list[Store]) -> None:
    """Every hub tells the same last position."""
    assert len({await store.last_position() for store in stores}) == 1
