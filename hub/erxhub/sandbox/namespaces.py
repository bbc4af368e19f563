"""All namespaces of a sandbox: who owns which, by which trust domain calls find them, and how one is made.

Owns the names. A namespace is found by its certificate's trust domain, never by anything that a caller says.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from erxhub.crypto.ca import TrustDomainError
from erxhub.sandbox.errors import SandboxRefused, argument_refused
from erxhub.sandbox.ledgers import MemoryLedger
from erxhub.sandbox.namespace import Ground, Namespace, Plan
from erxhub.sandbox.worlds import Template, Templates, World
from erxhub.v1 import sandbox_pb2

DEFAULT: Final = "default"
DEFAULT_SUITE: Final = "ES256"
NAMESPACES_MAX: Final = 256
"""Each holds a ledger in memory: some megabytes with its world."""

DAY_MS: Final = 86_400_000
YEARS_BACK_MS: Final = 10 * 365 * DAY_MS
YEARS_AHEAD_MS: Final = 8 * 365 * DAY_MS
"""The sandbox's authority is good for ten years; a world needs keys of a year, and time to pass."""


@dataclass(slots=True)
class _Held:
    namespace: Namespace
    world: World


@dataclass(slots=True)
class Namespaces:
    """Made with the ground that all stand on and the templates that they begin with."""

    ground: Ground
    templates: Templates
    _held: dict[str, _Held] = field(default_factory=dict)
    _by_domain: dict[str, Namespace] = field(default_factory=dict)
    _making: set[str] = field(default_factory=set)
    _numbers: count[int] = field(default_factory=lambda: count(1))

    @property
    def root(self) -> str:
        """The sandbox's own trust domain."""
        return self.ground.trust.trust_domain

    def of_domain(self, trust_domain: str) -> Namespace | None:
        """The namespace that certificates of this trust domain lead to."""
        return self._by_domain.get(trust_domain)

    def all(self) -> list[Namespace]:
        """Every namespace, oldest first."""
        return [held.namespace for held in self._held.values()]

    def owned(self, owner: str) -> list[Namespace]:
        """Those of an owner, oldest first."""
        return [namespace for namespace in self.all() if namespace.plan.owner == owner]

    def get(self, name: str, owner: str) -> Namespace:
        """Raises SandboxRefused (SBX_NAMESPACE_UNKNOWN, SBX_NAMESPACE_FOREIGN)."""
        held = self._held.get(name)
        if held is None:
            raise SandboxRefused("SBX_NAMESPACE_UNKNOWN", {"namespace": name})
        if held.namespace.plan.owner != owner:
            raise SandboxRefused("SBX_NAMESPACE_FOREIGN", {"namespace": name})
        return held.namespace

    def world(self, namespace: Namespace) -> World:
        """The world that it began with."""
        return self._held[namespace.name].world

    async def create(self, request: sandbox_pb2.CreateNamespaceRequest, owner: str) -> Namespace:
        """A new namespace in memory.

        Raises SandboxRefused (SBX_NAMESPACE_EXISTS, SBX_LIMIT, SBX_ARGUMENT).
        """
        name = request.namespace or self._free_name()
        machine_ms = self.ground.machine.now_ms()
        start_ms = request.start_at_ms
        if start_ms and not machine_ms - YEARS_BACK_MS <= start_ms <= machine_ms + YEARS_AHEAD_MS:
            raise argument_refused("start_at_ms", "range", "at most 10 years before and 8 years after the machine's")
        plan = Plan(
            name=name,
            trust_domain=f"{name}.{self.root}",
            owner=owner,
            seed=request.seed,
            start_at_ms=start_ms,
            standing=request.clock_mode != sandbox_pb2.CLOCK_MODE_RUNNING,
            profile=request.profile or sandbox_pb2.FAULT_PROFILE_DEV,
            suite=request.suite or DEFAULT_SUITE,
        )
        self._reserve(name)
        try:
            try:
                template = await self.templates.of(plan.suite, start_ms or machine_ms)
            except TrustDomainError as error:
                raise argument_refused("start_at_ms", "authority", str(error)) from None
            return await self._begin(plan, template)
        finally:
            self._making.discard(name)

    async def _begin(self, plan: Plan, template: Template) -> Namespace:
        namespace = Namespace(self.ground, plan, MemoryLedger(template.store), template.world.prepared)
        await namespace.begin(founding=template.store)
        self.admit(namespace, template.world)
        return namespace

    def admit(self, namespace: Namespace, world: World) -> None:
        """Let calls find a namespace that has begun."""
        self._held[namespace.name] = _Held(namespace, world)
        self._by_domain[namespace.trust_domain] = namespace

    async def delete(self, namespace: Namespace) -> None:
        """End a namespace and forget it; its name is free again. The default one cannot go: SBX_ARGUMENT."""
        if namespace.name == DEFAULT:
            raise argument_refused("namespace", "default", "the default namespace cannot be deleted")
        self._held.pop(namespace.name, None)
        self._by_domain.pop(namespace.trust_domain, None)
        await namespace.end()

    async def end(self) -> None:
        """End all."""
        self._by_domain.clear()
        namespaces = self.all()
        self._held.clear()
        await asyncio.gather(*(namespace.end() for namespace in namespaces))

    def _reserve(self, name: str) -> None:
        # Making one takes a while, and two makers of one name must not both succeed.
        if name in self._held or name in self._making:
            raise SandboxRefused("SBX_NAMESPACE_EXISTS", {"namespace": name})
        if len(self._held) + len(self._making) >= NAMESPACES_MAX:
            raise SandboxRefused("SBX_LIMIT", {"namespaces_max": str(NAMESPACES_MAX)})
        self._making.add(name)

    def _free_name(self) -> str:
        while (name := f"ns-{next(self._numbers)}") in self._held or name in self._making:
            pass
        return name
