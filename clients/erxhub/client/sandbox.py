"""Whoever controls a sandbox: namespaces, clocks, faults, snapshots, traffic (沙箱控制).

Owns: the calls of SandboxService, which is served on a port of its own. Must never: repeat a call by itself; a clock
that is advanced twice by two hours stands elsewhere than one that is advanced once.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final, Self

from erxhub.client.connection import ClientIdentity, Connection, RetryPolicy
from erxhub.client.environment import Environment
from erxhub.v1 import sandbox_pb2, sandbox_pb2_grpc

DEFAULT_NAMESPACE: Final = "default"
"""The one that `erxhub dev` begins with."""
FOUNDING_TIMEOUT_S: Final = 60.0
"""A namespace of a day or a suite that the sandbox has not met yet is registered first."""
CHECK_TIMEOUT_S: Final = 300.0
"""The check reads every entry of the ledger; an advance may write as many deadlines."""
ONCE: Final = RetryPolicy(attempts=1)
"""Only a lost watch is opened again."""


class SandboxClient:
    """The operator of a sandbox, with a certificate of the role `sandbox`.

    `namespace` is the one that a call means when it names none. Calls raise what those of every client raise; a refusal
    of the sandbox has a code that begins with SBX_.
    """

    def __init__(self, connection: Connection, *, namespace: str = DEFAULT_NAMESPACE) -> None:
        self.connection = connection
        self.namespace = namespace
        self._sandbox = sandbox_pb2_grpc.SandboxServiceStub(connection.channel)

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        target: str,
        identity: ClientIdentity,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        server_name: str | None = None,
        environment: Environment | None = None,
    ) -> AsyncGenerator[Self, None]:
        """A client with a connection of its own, closed at the end of the block; `target` is the control port."""
        async with Connection(
            target, identity, server_name=server_name, retry=ONCE, environment=environment
        ) as connection:
            yield cls(connection, namespace=namespace)

    # --- namespaces -------------------------------------------------------------------------------

    async def create_namespace(
        self,
        namespace: str = "",
        *,
        seed: int = 0,
        start_at_ms: int = 0,
        clock_mode: sandbox_pb2.ClockMode.ValueType = sandbox_pb2.CLOCK_MODE_STANDING,
        profile: sandbox_pb2.FaultProfile.ValueType = sandbox_pb2.FAULT_PROFILE_DEV,
        suite: str = "",
        timeout_s: float = FOUNDING_TIMEOUT_S,
    ) -> sandbox_pb2.Namespace:
        """A hub of its own with the fictional world in it (新建命名空间).

        Args:
            namespace: its name; made by the sandbox when empty.
            seed: the same seed and the same calls give the same ledger, with deterministic signatures.
            start_at_ms: UTC milliseconds where its clock begins; 0 for now.
            clock_mode: whether its clock stands until it is told to move, or runs.
            profile: the faults that it begins with.
            suite: of the seeded signing keys; ES256 when empty.
            timeout_s: seconds.
        """
        request = sandbox_pb2.CreateNamespaceRequest(
            namespace=namespace,
            seed=seed,
            start_at_ms=start_at_ms,
            clock_mode=clock_mode,
            profile=profile,
            suite=suite,
        )
        return (await self.connection.unary(self._sandbox.CreateNamespace, request, timeout_s)).namespace

    async def list_namespaces(self, *, timeout_s: float | None = None) -> list[sandbox_pb2.Namespace]:
        """The namespaces of this certificate (命名空间列表)."""
        request = sandbox_pb2.ListNamespacesRequest()
        return list((await self.connection.unary(self._sandbox.ListNamespaces, request, timeout_s)).namespaces)

    async def get_namespace(
        self, *, namespace: str | None = None, timeout_s: float | None = None
    ) -> sandbox_pb2.Namespace:
        """Where a namespace stands (命名空间状态)."""
        request = sandbox_pb2.GetNamespaceRequest(namespace=self._named(namespace))
        return (await self.connection.unary(self._sandbox.GetNamespace, request, timeout_s)).namespace

    async def delete_namespace(self, *, namespace: str | None = None, timeout_s: float | None = None) -> None:
        """Ends a namespace and forgets everything in it (删除命名空间)."""
        request = sandbox_pb2.DeleteNamespaceRequest(namespace=self._named(namespace))
        await self.connection.unary(self._sandbox.DeleteNamespace, request, timeout_s)

    async def reset(
        self, *, namespace: str | None = None, timeout_s: float = FOUNDING_TIMEOUT_S
    ) -> sandbox_pb2.Namespace:
        """Takes a namespace back to the moment of its creation (重置)."""
        request = sandbox_pb2.ResetNamespaceRequest(namespace=self._named(namespace))
        return (await self.connection.unary(self._sandbox.ResetNamespace, request, timeout_s)).namespace

    async def save_snapshot(
        self, snapshot: str, *, namespace: str | None = None, timeout_s: float = FOUNDING_TIMEOUT_S
    ) -> sandbox_pb2.Namespace:
        """Keeps the present state under a name (保存快照)."""
        request = sandbox_pb2.SaveSnapshotRequest(namespace=self._named(namespace), snapshot=snapshot)
        return (await self.connection.unary(self._sandbox.SaveSnapshot, request, timeout_s)).namespace

    async def load_snapshot(
        self, snapshot: str, *, namespace: str | None = None, timeout_s: float = FOUNDING_TIMEOUT_S
    ) -> sandbox_pb2.Namespace:
        """Takes a namespace back to a snapshot (恢复快照)."""
        request = sandbox_pb2.LoadSnapshotRequest(namespace=self._named(namespace), snapshot=snapshot)
        return (await self.connection.unary(self._sandbox.LoadSnapshot, request, timeout_s)).namespace

    # --- clock ------------------------------------------------------------------------------------

    async def advance_clock(
        self,
        *,
        by_ms: int | None = None,
        until_ms: int | None = None,
        next_timer: bool = False,
        namespace: str | None = None,
        timeout_s: float = CHECK_TIMEOUT_S,
    ) -> sandbox_pb2.AdvanceClockResponse:
        """Moves a clock forward and tells what the passing of time wrote (拨快时钟).

        `by_ms` milliseconds, or until an instant, or to the earliest deadline that is set. Raises ValueError unless
        exactly one of the three is given.
        """
        if (by_ms is not None) + (until_ms is not None) + next_timer != 1:
            raise ValueError("name exactly one of by_ms, until_ms and next_timer")
        request = sandbox_pb2.AdvanceClockRequest(namespace=self._named(namespace))
        if by_ms is not None:
            request.by_ms = by_ms
        elif until_ms is not None:
            request.until_ms = until_ms
        else:
            request.next_timer = True
        return await self.connection.unary(self._sandbox.AdvanceClock, request, timeout_s)

    # --- faults -----------------------------------------------------------------------------------

    async def set_faults(
        self,
        rules: Iterable[sandbox_pb2.FaultRule],
        *,
        replace: bool = False,
        namespace: str | None = None,
        timeout_s: float | None = None,
    ) -> list[sandbox_pb2.FaultRule]:
        """Adds fault rules, or replaces all of them; returns those that are set then (设置故障)."""
        request = sandbox_pb2.SetFaultsRequest(namespace=self._named(namespace), rules=rules, replace=replace)
        return list((await self.connection.unary(self._sandbox.SetFaults, request, timeout_s)).rules)

    async def list_faults(
        self, *, namespace: str | None = None, timeout_s: float | None = None
    ) -> list[sandbox_pb2.FaultRule]:
        """The fault rules with what they matched so far (故障列表)."""
        request = sandbox_pb2.ListFaultsRequest(namespace=self._named(namespace))
        return list((await self.connection.unary(self._sandbox.ListFaults, request, timeout_s)).rules)

    async def clear_faults(
        self, rule_ids: Iterable[str] = (), *, namespace: str | None = None, timeout_s: float | None = None
    ) -> list[sandbox_pb2.FaultRule]:
        """Removes these fault rules, all without any id; returns those that are left (清除故障)."""
        request = sandbox_pb2.ClearFaultsRequest(namespace=self._named(namespace), rule_ids=rule_ids)
        return list((await self.connection.unary(self._sandbox.ClearFaults, request, timeout_s)).rules)

    async def trigger(
        self,
        kind: sandbox_pb2.TriggerKind.ValueType,
        *,
        rx_no: str = "",
        id: str = "",  # noqa: A002 — the name of the field
        namespace: str | None = None,
        timeout_s: float = FOUNDING_TIMEOUT_S,
    ) -> sandbox_pb2.TriggerResponse:
        """Makes something happen to a prescription, or to whom `id` names, by the rightful actor (触发)."""
        request = sandbox_pb2.TriggerRequest(namespace=self._named(namespace), kind=kind, rx_no=rx_no, id=id)
        return await self.connection.unary(self._sandbox.Trigger, request, timeout_s)

    # --- the world --------------------------------------------------------------------------------

    async def mint_identity(
        self,
        role: str,
        id: str,  # noqa: A002 — the name of the field
        *,
        defects: Iterable[sandbox_pb2.IdentityDefect.ValueType] = (),
        namespace: str | None = None,
        timeout_s: float | None = None,
    ) -> ClientIdentity:
        """A client certificate of a namespace, on request a defective one (签发证书)."""
        request = sandbox_pb2.MintIdentityRequest(namespace=self._named(namespace), role=role, id=id, defects=defects)
        minted = await self.connection.unary(self._sandbox.MintIdentity, request, timeout_s)
        return ClientIdentity(minted.ca_pem, minted.certificate_pem, minted.private_key_pem)

    async def get_world(
        self, *, namespace: str | None = None, timeout_s: float | None = None
    ) -> sandbox_pb2.GetWorldResponse:
        """Who is registered, with which signing keys, the receipt keys and the magic values (虚构世界)."""
        request = sandbox_pb2.GetWorldRequest(namespace=self._named(namespace))
        return await self.connection.unary(self._sandbox.GetWorld, request, timeout_s)

    # --- what happened ----------------------------------------------------------------------------

    async def traffic(
        self,
        *,
        rx_no: str = "",
        actor: str = "",
        method: str = "",
        after_number: int = 0,
        follow: bool = False,
        namespace: str | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[sandbox_pb2.Exchange]:
        """The recorded calls, oldest first (通信记录); with `follow` also those to come, until it is closed.

        A lost connection is opened again after the last call that was received.
        """

        def request_after(last: sandbox_pb2.StreamTrafficResponse | None) -> sandbox_pb2.StreamTrafficRequest:
            return sandbox_pb2.StreamTrafficRequest(
                namespace=self._named(namespace),
                rx_no=rx_no,
                actor=actor,
                method=method,
                after_number=last.exchange.number if last else after_number,
                follow=follow,
            )

        async for message in self.connection.resuming_stream(self._sandbox.StreamTraffic, request_after, timeout_s):
            yield message.exchange

    async def check_invariants(
        self, *, namespace: str | None = None, timeout_s: float = CHECK_TIMEOUT_S
    ) -> sandbox_pb2.CheckInvariantsResponse:
        """Checks the whole ledger and the invariants that can be read off it (不变式检查)."""
        request = sandbox_pb2.CheckInvariantsRequest(namespace=self._named(namespace))
        return await self.connection.unary(self._sandbox.CheckInvariants, request, timeout_s)

    def _named(self, namespace: str | None) -> str:
        return self.namespace if namespace is None else namespace
