"""Who may do what: every kind of caller against every RPC, then every relation to a prescription against the RPCs on it.

The tables are written out, so that a change of an answer shows as a change here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
import pytest_asyncio

from erxhub.client import Connection, Refusal
from erxhub.client.failures import refusal_of
from erxhub.core.events import BY_NUMBER
from erxhub.ledger.entry import EntryKind, Header
from erxhub.rpc.methods import METHODS, Method
from erxhub.v1 import dispensing_pb2, events_pb2, registry_pb2
from tests.chain import DOCTOR, DOWNLOAD, PICK_UP, PURCHASE, Chain
from tests.live import (
    AGENCY,
    AUDITOR,
    CHANNEL,
    EMPLOYEE,
    HOSPITAL,
    HOSPITAL_B,
    PERSON,
    PHARMACY,
    PHARMACY_B,
    Live,
    live_hub,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live() -> AsyncIterator[Live]:
    async with live_hub() as running:
        yield running


# ---- kind of caller × RPC ----

KINDS = {
    "hospital": HOSPITAL,
    "pharmacy": PHARMACY,
    "channel": CHANNEL,
    "agency": AGENCY,
    "auditor": AUDITOR,
    "supervisor": "330000",
    "mirror": "mirror-1",
    "hub": "hub-2",
    "witness": "witness-1",
    "sandbox": "sandbox-1",
}
"""Every role that a certificate may have."""

BY_SERVICE = {
    "RegistryService": {"agency"},
    "VoucherService": {"channel"},
    "EncounterService": {"hospital"},
    "PrescribingService": {"hospital"},
    "PatientService": {"channel"},
    "DispensingService": {"pharmacy"},
    "AuditService": {"auditor"},
}
BESIDES = {
    "RegistryService/ListCatalog": {"hospital", "pharmacy", "channel", "auditor", "supervisor"},
    "VoucherService/DeactivateVoucher": {"agency"},
    "VoucherService/RevokeVoucher": {"agency"},
    "AuditService/StreamEntries": {"mirror"},
    "AuditService/VerifyLedger": {"mirror"},
}
INSTEAD = {"VoucherService/VerifyVoucher": {"hospital", "pharmacy"}}


def admitted(name: str) -> set[str]:
    """The kinds of caller that may make a call."""
    return INSTEAD.get(name) or BY_SERVICE[name.partition("/")[0]] | BESIDES.get(name, set())


def test_the_published_rules_admit_whom_this_table_admits() -> None:
    assert {name: set(method.callers) for name, method in METHODS.items()} == {name: admitted(name) for name in METHODS}


async def call_empty(connection: Connection, method: Method) -> str:
    """Send the method an empty request; "OK", or the code of the refusal."""
    channel = connection.channel
    path, empty = f"/{method.service}/{method.rpc}", method.request().SerializeToString()
    try:
        if method.streams_in:
            await channel.stream_unary(path)(iter([empty]), timeout=10)
        elif method.streams_out:
            call = channel.unary_stream(path)(empty, timeout=10)
            # It is open once its headers are there; what it would tell does not matter.
            await call.initial_metadata()
            if call.done():
                raise await _error_of(call)
            call.cancel()
        else:
            await channel.unary_unary(path)(empty, timeout=10)
    except grpc.aio.AioRpcError as error:
        refusal = refusal_of(error)
        assert refusal is not None, error
        return refusal.code
    return "OK"


async def _error_of(call: Any) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
    )


@pytest.mark.parametrize("kind", KINDS)
async def test_a_caller_is_refused_every_rpc_that_is_not_its_own_and_each_refusal_is_recorded(
    live: Live, kind: str
) -> None:
    connection = Connection(live.target, live.identity(kind, KINDS[kind]))
    before = await live.hub.store.last_position()
    async with connection:
        answers = {name: await call_empty(connection, method) for name, method in METHODS.items()}
    refused = {name for name, code in answers.items() if code == "ROLE_NOT_ALLOWED"}
    assert refused == {name for name in METHODS if kind not in admitted(name)}
    recorded = []
    for entry in await live.hub.store.log(before, 10_000):
        header = Header.decode(entry.header)
        assert header.actor == f"{kind}/{KINDS[kind]}"
        if header.kind == EntryKind.REFUSAL and entry.payload is not None:
            payload = events_pb2.CommandRefused.FromString(entry.payload)
            assert BY_NUMBER[header.type].name == "command.refused"
            assert payload.caller_kind == kind
            if payload.code == "ROLE_NOT_ALLOWED":
                recorded.append(payload.method)
    assert recorded == [name for name in METHODS if name in refused]


# ---- relation × RPC: pharmacies ----


async def outcome(call: Awaitable[Any]) -> str:
    """OK, or the code of the refusal."""
    try:
        await call
    except Refusal as refusal:
        return refusal.code
    return "OK"


@dataclasses.dataclass(frozen=True)
class PharmacyCall:
    """`before` brings the holder to where the call is right; `act` makes it as the pharmacy of the given chain."""

    before: Callable[[Chain], Awaitable[Any]]
    act: Callable[[Chain], Awaitable[Any]]


async def _held(chain: Chain) -> None:
    await chain.held()


async def _reviewed(chain: Chain) -> None:
    await chain.reviewed()


async def _quoted(chain: Chain) -> None:
    await chain.quoted()


async def _settled(chain: Chain) -> None:
    await chain.settled()


async def _undone(chain: Chain) -> None:
    await chain.settled()
    pharmacy = await chain.live.pharmacy(chain.pharmacy_code)
    await pharmacy.undo_settlement(rx_no=chain.rx_no, settlement_id=chain.settlement_id, reason="退单")


async def _dispensed(chain: Chain) -> None:
    await chain.dispensed()


async def _to_deliver(chain: Chain) -> None:
    await chain.settled()
    await chain.delivery_requested()
    await chain.dispensed()


async def _on_the_way(chain: Chain) -> None:
    await _to_deliver(chain)
    await chain.delivery_started()


async def _arrived(chain: Chain) -> None:
    await chain.arrived()


async def _download_again(chain: Chain) -> None:
    """With a number of its own where listing gives one, otherwise with the one of somebody else."""
    pharmacy = await chain.live.pharmacy(chain.pharmacy_code)
    await pharmacy.download(authorization_no=chain.authorization_no)


async def _release(chain: Chain) -> None:
    await (await chain.live.pharmacy(chain.pharmacy_code)).release(rx_no=chain.rx_no)


async def _undo(chain: Chain) -> None:
    pharmacy = await chain.live.pharmacy(chain.pharmacy_code)
    await pharmacy.undo_settlement(rx_no=chain.rx_no, settlement_id=chain.settlement_id, reason="退单")


async def _dispense(chain: Chain) -> None:
    await (await chain.live.pharmacy(chain.pharmacy_code)).dispense(**chain.dispense_arguments())


async def _void(chain: Chain) -> None:
    await (await chain.live.pharmacy(chain.pharmacy_code)).void_dispense(rx_no=chain.rx_no, reason="缺货")


async def _hand_over(chain: Chain) -> None:
    pharmacy = await chain.live.pharmacy(chain.pharmacy_code)
    await pharmacy.hand_over(
        rx_no=chain.rx_no,
        staff_code=chain.dispenser,
        voucher_ref=await chain.reference(PICK_UP),
        seal_key=chain.live.key(chain.pharmacy_code, chain.pharmacy_code),
    )


async def _on_the_way_step(chain: Chain) -> None:
    await chain.delivery_step(dispensing_pb2.DELIVERY_STEP_ON_THE_WAY)


PHARMACY_CALLS = {
    "DownloadPrescription": PharmacyCall(_held, _download_again),
    "ReleaseOrder": PharmacyCall(_held, _release),
    "ReviewPrescription": PharmacyCall(_held, lambda chain: chain.review()),
    "QuoteSettlement": PharmacyCall(_reviewed, lambda chain: chain.quote_again()),
    "Settle": PharmacyCall(_quoted, lambda chain: chain.settle()),
    "UndoSettlement": PharmacyCall(_settled, _undo),
    "Dispense": PharmacyCall(_settled, _dispense),
    "VoidDispense": PharmacyCall(_settled, _void),
    "HandOver": PharmacyCall(_dispensed, _hand_over),
    "StartDelivery": PharmacyCall(_to_deliver, lambda chain: chain.delivery_started()),
    "UpdateDelivery": PharmacyCall(_on_the_way, _on_the_way_step),
    "SignDelivery": PharmacyCall(_arrived, lambda chain: chain.sign()),
}

# A pharmacy with a live authorisation or a former hold is told that it does not hold the prescription; one without any
# relation learns nothing. Once goods are out the authorisations have ended, and with them that relation.
PHARMACY_TABLE = {
    "DownloadPrescription": {
        "holder": "AUTH_REUSED",
        "former holder": "AUTH_REUSED",
        "authorised": "ORDER_ALREADY_HELD",
        "unrelated": "AUTH_REUSED",
    },
    "ReleaseOrder": {
        "holder": "OK",
        "former holder": "ORDER_HOLD_LOST",
        "authorised": "ORDER_HOLD_LOST",
        "unrelated": "RX_UNKNOWN",
    },
}


RELATIONS = ("holder", "former holder", "authorised", "unrelated")


async def related(live: Live, relation: str, before: Callable[[Chain], Awaitable[Any]]) -> Chain:
    """A prescription that PHARMACY brought to some state, as seen by a pharmacy of the given relation."""
    chain = await Chain(live).uploaded()
    other = dataclasses.replace(chain, pharmacy_code=PHARMACY_B)
    if relation == "former holder":
        await other.held()
        await _release(other)
    elif relation == "authorised":
        await other.listed()
    await before(chain)
    if relation == "holder":
        return chain
    known = {"authorization_no": other.authorization_no} if relation == "authorised" else {}
    return dataclasses.replace(chain, pharmacy_code=PHARMACY_B, **known)


@pytest.mark.parametrize("rpc", PHARMACY_CALLS)
async def test_a_pharmacy_is_answered_by_its_relation_to_the_prescription(live: Live, rpc: str) -> None:
    call = PHARMACY_CALLS[rpc]
    answers = {}
    for relation in RELATIONS:
        chain = await related(live, relation, call.before)
        answers[relation] = await outcome(call.act(chain))
    print(rpc, answers)
    assert answers == PHARMACY_TABLE[rpc]
