"""Every RPC that a kind of caller may use has a typed method of its client that calls it."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from erxhub.client import (
    AgencyClient,
    AuditorClient,
    Connection,
    HospitalClient,
    MirrorClient,
    PatientClient,
    PharmacyClient,
)
from erxhub.client.base import Client
from erxhub.crypto.suites import SigningKey
from erxhub.v1 import common_pb2, options_pb2, signed_pb2
from tests.client.conftest import HOSPITAL, PHARMACY
from tests.client.fake_hub import FakeHub, methods

KEY = SigningKey.generate("EdDSA")
CLIENTS: list[tuple[int, type[Client], str, str]] = [
    (options_pb2.CALLER_KIND_HOSPITAL, HospitalClient, "hospital", HOSPITAL),
    (options_pb2.CALLER_KIND_PHARMACY, PharmacyClient, "pharmacy", PHARMACY),
    (options_pb2.CALLER_KIND_CHANNEL, PatientClient, "channel", "app-1"),
    (options_pb2.CALLER_KIND_AGENCY, AgencyClient, "agency", "330100"),
    (options_pb2.CALLER_KIND_AUDITOR, AuditorClient, "auditor", "auditor-1"),
    (options_pb2.CALLER_KIND_MIRROR, MirrorClient, "mirror", "mirror-1"),
]
# The rest of the arguments follows from their types.
SPECIAL: dict[str, Any] = {
    "document": signed_pb2.PrescriptionDocument(),
    "prescription": common_pb2.Prescription(),
    "amounts": signed_pb2.ClaimAmounts(total_fen=1),
}
OF_METHOD: dict[str, dict[str, Any]] = {
    "review": {"prescription": common_pb2.Signed(payload=b"x")},
    "revoke_certificate": {"key_id": "0" * 32},
    "find": {"rx_no": "1" * 27},
    "prove_absence": {"rx_no": "1" * 27},
}


async def none() -> AsyncIterator[Any]:
    """A source without items."""
    for item in ():
        yield item


def argument(name: str, annotation: str) -> Any:
    if name in SPECIAL:
        return SPECIAL[name]
    if "SigningKey" in annotation:
        return KEY
    if "AsyncIterable" in annotation:
        return none()
    if "Iterable" in annotation:
        return []
    for kind, value in (("bool", True), ("int", 1), ("bytes", b"\x01" * 32), ("str", "text")):
        if annotation.startswith(kind):
            return value
    assert annotation.endswith("ValueType"), (name, annotation)
    return 1


def calls(client: Client) -> list[Callable[[], Any]]:
    """Every public method of a client, ready to be called with its mandatory arguments."""
    found: list[Callable[[], Any]] = []
    for name, method in inspect.getmembers(client, inspect.ismethod):
        if name.startswith("_") or name in ("connect", "send"):
            continue
        given = {
            parameter.name: argument(parameter.name, str(parameter.annotation))
            for parameter in inspect.signature(method).parameters.values()
            if parameter.default is inspect.Parameter.empty
        }
        given |= OF_METHOD.get(name, {})
        found.append(partial(method, **given))
    return found


@pytest.mark.parametrize(("caller", "kind", "role", "peer_id"), CLIENTS, ids=lambda value: str(value)[-20:])
async def test_a_client_has_a_method_for_every_rpc_of_its_caller_and_for_no_other(
    hub: FakeHub,
    connected: Callable[[str, str], Connection],
    caller: int,
    kind: type[Client],
    role: str,
    peer_id: str,
) -> None:
    client = kind(connected(role, peer_id))
    for call in calls(client):
        outcome = call()
        if isinstance(outcome, AsyncIterator):
            assert [message async for message in outcome] == []
        else:
            assert isinstance(outcome, Awaitable)
            await outcome
    admitted = {
        method.name for method in methods() if caller in method.GetOptions().Extensions[options_pb2.rpc].callers
    }
    assert {call.method for call in hub.received} == admitted
