"""The control service of a sandbox: every RPC of sandbox.proto, for whoever owns the namespace.

Owns what an RPC asks of a namespace and what it answers. Transport, identity and field rules are `control_port`'s.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

from erxhub.core.events import BY_NUMBER
from erxhub.ledger.entry import Header
from erxhub.ledger.store import StoredEntry, StoreUnavailable, Wanted
from erxhub.sandbox import invariants
from erxhub.sandbox.control import RefusedCall
from erxhub.sandbox.errors import SandboxRefused, argument_refused
from erxhub.sandbox.identities import Minted
from erxhub.sandbox.magic_data import magic_values
from erxhub.sandbox.namespace import Namespace
from erxhub.sandbox.namespaces import Namespaces
from erxhub.sandbox.recorder import Filter
from erxhub.sandbox.triggers import Triggers
from erxhub.v1 import registry_pb2, sandbox_pb2, state_pb2

_D = sandbox_pb2.IdentityDefect
_REVOCABLE: Final = frozenset(
    {
        _D.IDENTITY_DEFECT_REVOKED,
        _D.IDENTITY_DEFECT_WRONG_KEY,
        _D.IDENTITY_DEFECT_EXPIRED,
        _D.IDENTITY_DEFECT_NOT_YET_VALID,
    }
)
"""Those that go with a revocation: the hub takes a certificate that is not valid now, but none that is no peer's."""


class SandboxService:
    """The RPCs by name, in `calls` and `streams`: each takes the caller ("sandbox/<id>") and the request.

    They raise SandboxRefused, and StoreUnavailable where a namespace's ledger cannot be used.
    """

    def __init__(self, namespaces: Namespaces, target: Callable[[], str]) -> None:
        self._namespaces = namespaces
        self._target = target
        self.calls: Mapping[str, Callable[[str, Any], Awaitable[Any]]] = {
            "CreateNamespace": self._create,
            "ListNamespaces": self._list,
            "GetNamespace": self._get,
            "DeleteNamespace": self._delete,
            "ResetNamespace": self._reset,
            "SaveSnapshot": self._save,
            "LoadSnapshot": self._load,
            "AdvanceClock": self._advance,
            "SetFaults": self._set_faults,
            "ListFaults": self._list_faults,
            "ClearFaults": self._clear_faults,
            "Trigger": self._trigger,
            "MintIdentity": self._mint,
            "GetWorld": self._world,
            "CheckInvariants": self._check,
        }
        self.streams: Mapping[str, Callable[[str, Any], AsyncIterator[Any]]] = {"StreamTraffic": self._traffic}

    # ---- namespaces ----

    async def _create(self, owner: str, request: sandbox_pb2.CreateNamespaceRequest) -> Any:
        namespace = await self._namespaces.create(request, owner)
        return sandbox_pb2.CreateNamespaceResponse(namespace=await self._seen(namespace))

    async def _list(self, owner: str, _: sandbox_pb2.ListNamespacesRequest) -> Any:
        shown = []
        for namespace in self._namespaces.owned(owner):
            await namespace.ready()
            shown.append(self._shown(namespace, await _entries_or_none(namespace)))
        return sandbox_pb2.ListNamespacesResponse(namespaces=shown)

    async def _get(self, owner: str, request: sandbox_pb2.GetNamespaceRequest) -> Any:
        return sandbox_pb2.GetNamespaceResponse(namespace=await self._seen(await self._of(owner, request)))

    async def _delete(self, owner: str, request: sandbox_pb2.DeleteNamespaceRequest) -> Any:
        await self._namespaces.delete(await self._of(owner, request))
        return sandbox_pb2.DeleteNamespaceResponse()

    async def _reset(self, owner: str, request: sandbox_pb2.ResetNamespaceRequest) -> Any:
        namespace = await self._of(owner, request)
        await namespace.reset()
        return sandbox_pb2.ResetNamespaceResponse(namespace=await self._seen(namespace))

    async def _save(self, owner: str, request: sandbox_pb2.SaveSnapshotRequest) -> Any:
        namespace = await self._of(owner, request)
        await namespace.save(request.snapshot)
        return sandbox_pb2.SaveSnapshotResponse(namespace=await self._seen(namespace))

    async def _load(self, owner: str, request: sandbox_pb2.LoadSnapshotRequest) -> Any:
        namespace = await self._of(owner, request)
        await namespace.load(request.snapshot)
        return sandbox_pb2.LoadSnapshotResponse(namespace=await self._seen(namespace))

    async def _of(self, owner: str, request: Any) -> Namespace:
        namespace = self._namespaces.get(request.namespace, owner)
        await namespace.ready()
        return namespace

    async def _seen(self, namespace: Namespace) -> sandbox_pb2.Namespace:
        return self._shown(namespace, await namespace.store.last_position())

    def _shown(self, namespace: Namespace, entries: int) -> sandbox_pb2.Namespace:
        plan = namespace.plan
        standing, running = sandbox_pb2.CLOCK_MODE_STANDING, sandbox_pb2.CLOCK_MODE_RUNNING
        return sandbox_pb2.Namespace(
            name=plan.name,
            trust_domain=plan.trust_domain,
            owner=plan.owner,
            seed=plan.seed,
            now_ms=namespace.now_ms(),
            clock_mode=standing if plan.standing else running,
            profile=plan.profile,
            suite=plan.suite,
            entries=entries,
            target=self._target(),
            snapshots=namespace.snapshots,
            fault_rules=len(namespace.faults.list()),
            exchanges=namespace.recorder.recorded,
            exchanges_kept=namespace.recorder.kept,
            database=namespace.database,
        )

    # ---- faults and traffic ----

    async def _set_faults(self, owner: str, request: sandbox_pb2.SetFaultsRequest) -> Any:
        faults = (await self._of(owner, request)).faults
        faults.set(request.rules, replace=request.replace)
        return sandbox_pb2.SetFaultsResponse(rules=faults.list())

    async def _list_faults(self, owner: str, request: sandbox_pb2.ListFaultsRequest) -> Any:
        return sandbox_pb2.ListFaultsResponse(rules=(await self._of(owner, request)).faults.list())

    async def _clear_faults(self, owner: str, request: sandbox_pb2.ClearFaultsRequest) -> Any:
        faults = (await self._of(owner, request)).faults
        faults.clear(request.rule_ids)
        return sandbox_pb2.ClearFaultsResponse(rules=faults.list())

    async def _traffic(self, owner: str, request: sandbox_pb2.StreamTrafficRequest) -> AsyncIterator[Any]:
        namespace = await self._of(owner, request)
        wanted = Filter(request.rx_no, request.actor, request.method, request.after_number)
        exchanges = namespace.recorder.exchanges(wanted)
        if request.follow:
            exchanges = _until(namespace.over, namespace.recorder.follow(wanted))
        async for exchange in exchanges:
            yield sandbox_pb2.StreamTrafficResponse(exchange=exchange)

    # ---- time ----

    async def _advance(self, owner: str, request: sandbox_pb2.AdvanceClockRequest) -> Any:
        namespace = await self._of(owner, request)
        until_ms: int | None = None
        if request.HasField("by_ms"):
            until_ms = namespace.now_ms() + request.by_ms
        elif request.HasField("until_ms"):
            until_ms = request.until_ms
        fired = await namespace.advance(until_ms)
        return sandbox_pb2.AdvanceClockResponse(now_ms=namespace.now_ms(), fired=await _timers(namespace, fired))

    async def _trigger(self, owner: str, request: sandbox_pb2.TriggerRequest) -> Any:
        namespace = await self._of(owner, request)
        world = self._namespaces.world(namespace)
        triggers = Triggers(namespace, channel=world.party("channel"), agency=world.party("agency"))
        events = await triggers.fire(request)
        return sandbox_pb2.TriggerResponse(now_ms=namespace.now_ms(), events=events)

    async def _check(self, owner: str, request: sandbox_pb2.CheckInvariantsRequest) -> Any:
        return await invariants.check((await self._of(owner, request)).core.reads)

    # ---- identities ----

    async def _mint(self, owner: str, request: sandbox_pb2.MintIdentityRequest) -> Any:
        namespace = await self._of(owner, request)
        minted = namespace.issue(request.role, request.id, request.defects)
        if sandbox_pb2.IDENTITY_DEFECT_REVOKED in request.defects:
            await self._revoke(namespace, minted, request.defects)
        return sandbox_pb2.MintIdentityResponse(
            certificate_pem=minted.cert_pem, private_key_pem=minted.key_pem, ca_pem=self._namespaces.ground.trust.ca_pem
        )

    async def _revoke(self, namespace: Namespace, minted: Minted, defects: Iterable[int]) -> None:
        """Revokes in the namespace's ledger, which takes certificates of its own authority and trust domain alone."""
        if not set(defects) <= _REVOCABLE:
            raise argument_refused("defects", "defects", "REVOKED goes with no defect but those of dates and the key")
        digest = hashlib.sha256(minted.cert_pem).hexdigest()
        request = registry_pb2.RevokeCertificateRequest(
            request_id=f"sandbox-{digest[:32]}", certificate_pem=minted.cert_pem, reason="minted as revoked"
        )
        agency = self._namespaces.world(namespace).party("agency")
        try:
            await namespace.as_caller("agency", agency, "RegistryService/RevokeCertificate", request)
        except RefusedCall as refused:
            raise SandboxRefused("SBX_TRIGGER_STATE", {"hub_code": refused.code, "hub_message": refused.en}) from None

    async def _world(self, owner: str, request: sandbox_pb2.GetWorldRequest) -> Any:
        namespace = await self._of(owner, request)
        world = self._namespaces.world(namespace)
        receipt = self._namespaces.ground.keys.receipt
        return sandbox_pb2.GetWorldResponse(
            signers=world.signers,
            magic=magic_values().told(),
            parties=world.parties,
            receipt_keys={receipt.key_id: receipt.public_key},
        )


async def _entries_or_none(namespace: Namespace) -> int:
    """Entries of its ledger; 0 while its hub is down, so that one namespace hides none of the others in a list."""
    try:
        return await namespace.store.last_position()
    except (SandboxRefused, StoreUnavailable):
        return 0


async def _until(over: asyncio.Event, messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The messages, until the event is set."""
    ending = asyncio.ensure_future(over.wait())
    coming: asyncio.Future[Any] = ending
    try:
        while not over.is_set():
            coming = asyncio.ensure_future(anext(messages))
            await asyncio.wait({coming, ending}, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                yield coming.result()
    finally:
        for waiting in (ending, coming):
            waiting.cancel()
        await asyncio.gather(ending, coming, return_exceptions=True)


async def _timers(namespace: Namespace, entries: list[StoredEntry]) -> list[sandbox_pb2.FiredTimer]:
    fired = []
    for entry in entries:
        header = Header.decode(entry.header)
        timer = sandbox_pb2.FiredTimer(
            position=entry.position,
            recorded_at_ms=header.recorded_at_ms,
            event=BY_NUMBER[header.type].name,
            stream_kind=entry.stream_kind,
            stream_key=entry.stream_key,
        )
        if entry.stream_kind == "prescription":
            heads = (await namespace.store.read(Wanted(streams=frozenset({entry.stream_key})))).heads
            timer.rx_no = state_pb2.PrescriptionState.FromString(heads[entry.stream_key].body).rx_no
        fired.append(timer)
    return fired
