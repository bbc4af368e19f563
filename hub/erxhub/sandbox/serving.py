"""A running sandbox: its data port, its control port and its namespaces, begun and ended in order.

Owns both ports.
"""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from erxhub.app import Shared
from erxhub.config import Config
from erxhub.crypto.ca import TrustDomain
from erxhub.keys import HubKeys
from erxhub.ports import Clock, Pause, machine_us
from erxhub.rpc.server import FixedIdentity, HubServer, ServerIdentity
from erxhub.sandbox.connections import Connections
from erxhub.sandbox.control_port import ControlPort
from erxhub.sandbox.ledgers import Ledger, MemoryLedger
from erxhub.sandbox.namespace import Ground, Namespace, Plan
from erxhub.sandbox.namespaces import DEFAULT, Namespaces
from erxhub.sandbox.router import Router
from erxhub.sandbox.service import SandboxService
from erxhub.sandbox.worlds import Founder, Templates, World
from erxhub.v1 import sandbox_pb2

_log = logging.getLogger("erxhub.sandbox")


class DataPort:
    """The port that hospitals and pharmacies call."""

    def __init__(self, identity: ServerIdentity, config: Config) -> None:
        self.port = 0
        self._identity = FixedIdentity(identity)
        self._config = config
        self._server: HubServer | None = None

    async def start(self, router: Router, address: str) -> None:
        """Listen on "host:port". Raises RuntimeError when it cannot."""
        self._server = HubServer(router, self._identity, self._config)
        self.port = await self._server.start(address)

    def cut(self, connections: Connections) -> None:
        """Cut these, idle ones too. A call that asks for it ends with its connection."""
        connections.cut(self.port)

    async def stop(self) -> None:
        """Let calls in flight end, and close."""
        server, self._server = self._server, None
        if server is not None:
            await server.drain()


@dataclass(slots=True)
class Sandbox:
    """Both ports and all namespaces, running."""

    namespaces: Namespaces
    data: DataPort
    control: ControlPort
    control_port: int
    router: Router
    default: Namespace
    _shared: Shared

    async def stop(self) -> None:
        """Take no more calls, let those in flight end, then end the namespaces."""
        await self.control.stop()
        await self.data.stop()
        await self.namespaces.end()
        self._shared.close()


@dataclass(frozen=True, slots=True)
class Setting:
    """What a sandbox is made of. `host` is what clients call; `world` and `ledger` are the default namespace's own
    when its ledger is a file, None otherwise."""

    trust: TrustDomain
    keys: HubKeys
    identity: ServerIdentity
    founder: Founder
    machine: Clock
    pause: Pause
    config: Config
    owner: str
    suite: str
    default_standing: bool
    default_start_ms: int
    default_profile: sandbox_pb2.FaultProfile.ValueType
    default_seed: int
    data_address: str
    control_address: str
    host: str
    ledger: Ledger | None = None
    world: World | None = None


async def start_sandbox(setting: Setting) -> Sandbox:
    """Begin the default namespace and listen on both ports. Raises as `start_hub` does."""
    config = replace(setting.config, trust_domain=setting.trust.trust_domain)
    async with AsyncExitStack() as undo:
        shared = Shared.make()
        undo.callback(shared.close)
        data = DataPort(setting.identity, config)
        ground = Ground(
            trust=setting.trust,
            keys=setting.keys,
            shared=shared,
            config=config,
            machine=setting.machine,
            pause=setting.pause,
            cut=data.cut,
            started_us=machine_us(),
        )
        namespaces = Namespaces(ground, Templates(setting.founder))
        undo.push_async_callback(namespaces.end)
        default = await _default(namespaces, setting)
        router = Router(namespaces, config)
        await data.start(router, setting.data_address)
        undo.push_async_callback(data.stop)
        service = SandboxService(namespaces, lambda: f"{setting.host}:{data.port}")
        control = ControlPort(service, setting.identity, setting.trust.trust_domain)
        control_port = await control.start(setting.control_address)
        undo.pop_all()
    _log.info("the sandbox listens on port %d, its control on port %d", data.port, control_port)
    return Sandbox(namespaces, data, control, control_port, router, default, shared)


async def _default(namespaces: Namespaces, setting: Setting) -> Namespace:
    """The namespace of the sandbox's own trust domain."""
    plan = Plan(
        name=DEFAULT,
        trust_domain=setting.trust.trust_domain,
        owner=setting.owner,
        seed=setting.default_seed,
        start_at_ms=setting.default_start_ms,
        standing=setting.default_standing,
        profile=setting.default_profile,
        suite=setting.suite,
    )
    if setting.ledger is not None:
        assert setting.world is not None
        namespace = Namespace(namespaces.ground, plan, setting.ledger, setting.world.prepared)
        await namespace.begin()
        await namespace.found()
        namespaces.admit(namespace, setting.world)
        return namespace
    template = await namespaces.templates.of(plan.suite, plan.start_at_ms or setting.machine.now_ms())
    namespace = Namespace(namespaces.ground, plan, MemoryLedger(template.store), template.world.prepared)
    await namespace.begin(founding=template.store)
    namespaces.admit(namespace, template.world)
    return namespace
