"""One namespace of a sandbox, as a case sees it: its clock, faults, traffic, people, certificates and keys.

Owns: what is asked of the sandbox, and the names that cases have for the people of its world. Must never: make a call
of business; robots do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography import x509

from erxhub.client import ClientIdentity
from erxhub.client.environment import Environment
from erxhub.client.sandbox import SandboxClient
from erxhub.conform.values import plain, resolved
from erxhub.conform.vocabulary import short_method
from erxhub.crypto.suites import SigningKey
from erxhub.harness.v1 import case_pb2
from erxhub.sandbox.errors import SandboxRefused
from erxhub.sandbox.fault_check import check_rule
from erxhub.seed import SeedWorld
from erxhub.v1 import sandbox_pb2

INSTITUTIONS: Final[Mapping[str, str]] = {
    "hospital": SeedWorld.hospital_code,
    "hospital_b": SeedWorld.hospital_b_code,
    "pharmacy": SeedWorld.pharmacy_code,
    "pharmacy_b": SeedWorld.pharmacy_b_code,
}
STAFF: Final[Mapping[str, Mapping[str, str]]] = {
    "hospital": {"doctor": SeedWorld.doctor_code, "pharmacist": SeedWorld.hospital_pharmacist_code},
    "hospital_b": {"doctor": SeedWorld.doctor_b_code, "pharmacist": SeedWorld.hospital_b_pharmacist_code},
    "pharmacy": {
        "pharmacist": SeedWorld.pharmacist_code,
        "dispenser": SeedWorld.dispenser_code,
        "checker": SeedWorld.checker_code,
        "courier": SeedWorld.courier_code,
    },
    "pharmacy_b": {
        "pharmacist": SeedWorld.pharmacist_b_code,
        "dispenser": SeedWorld.dispenser_b_code,
        "checker": SeedWorld.checker_b_code,
        "courier": SeedWorld.courier_b_code,
    },
}
OUTAGE_RULE: Final = "outage"
"""The id of the rule that keeps what is under test from reaching the hub."""

LATEST_MS: Final = 253_402_300_799_000
"""The last second of the year 9999, as X.509 writes "for good"."""

_PROFILES: Final[Mapping[str, sandbox_pb2.FaultProfile.ValueType]] = {
    "dev": sandbox_pb2.FAULT_PROFILE_DEV,
    "strict": sandbox_pb2.FAULT_PROFILE_STRICT,
    "chaos": sandbox_pb2.FAULT_PROFILE_CHAOS,
}


@dataclass(frozen=True, slots=True)
class Signer:
    """A signing key of the world, with its public half as an agency would hand it out."""

    subject_code: str
    institution_code: str
    suite: str
    key_id: str
    private_key_pem: bytes
    public_key: bytes
    valid_from_ms: int
    valid_until_ms: int

    @classmethod
    def of(cls, signer: sandbox_pb2.WorldSigner) -> Signer:
        """Reads key and certificate; an SM2 key has none here, and is taken to be good at all times."""
        from_ms, until_ms = 0, LATEST_MS
        if signer.certificate_pem:
            certificate = x509.load_pem_x509_certificate(signer.certificate_pem)
            from_ms = int(certificate.not_valid_before_utc.timestamp() * 1000)
            until_ms = int(certificate.not_valid_after_utc.timestamp() * 1000)
        return cls(
            subject_code=signer.subject_code,
            institution_code=signer.institution_code,
            suite=signer.suite,
            key_id=signer.key_id,
            private_key_pem=signer.private_key_pem,
            public_key=SigningKey.from_pem(signer.private_key_pem).public_key,
            valid_from_ms=from_ms,
            valid_until_ms=until_ms,
        )

    def public_record(self) -> dict[str, Any]:
        """What everybody may know of it, for `trusted_signers`."""
        return {
            "subject_code": self.subject_code,
            "institution_code": self.institution_code,
            "suite": self.suite,
            "key_id": self.key_id,
            "public_key": self.public_key.hex(),
            "valid_from_ms": self.valid_from_ms,
            "valid_until_ms": self.valid_until_ms,
        }


@dataclass(slots=True)
class World:
    """A namespace. Its clock stands still unless this moves it, or goes like the machine's if a product needs that."""

    sandbox: SandboxClient
    name: str
    target: str
    sut_role: str
    environment: Environment
    signers: Mapping[str, Signer]
    receipt_keys: Mapping[str, bytes]
    persons: Mapping[str, str]
    """Magic name → person number."""
    profile_rules: Sequence[sandbox_pb2.FaultRule]
    """Of the profile, for what is under test alone."""
    mark: int = 0
    """The ledger's position when the steps began."""
    first_exchange: int = 0
    """The number of the last exchange before the steps began."""
    _stands_at_ms: int | None = None
    """None: the clock goes like the machine's, and nothing moves it."""
    _seen: list[sandbox_pb2.Exchange] = field(default_factory=list)

    @classmethod
    async def create(
        cls,
        sandbox: SandboxClient,
        *,
        name: str,
        seed: int,
        start_at_ms: int,
        suite: str,
        profile: str,
        sut_role: str,
        environment: Environment,
        running: bool = False,
    ) -> World:
        """A fresh namespace without faults; those of the profile wait for `begin`. Raises ClientFailure.

        `running`: its clock is the machine's, for a product that has its own; `start_at_ms` does not count then.
        """
        made = await sandbox.create_namespace(
            name,
            seed=seed,
            start_at_ms=0 if running else start_at_ms,
            clock_mode=sandbox_pb2.CLOCK_MODE_RUNNING if running else sandbox_pb2.CLOCK_MODE_STANDING,
            suite=suite,
            profile=_PROFILES[profile],
        )
        rules = []
        if made.fault_rules:
            rules = await sandbox.list_faults(namespace=name)
            await sandbox.clear_faults(namespace=name)
        described = await sandbox.get_world(namespace=name)
        world = cls(
            sandbox=sandbox,
            name=name,
            target=made.target,
            sut_role=sut_role,
            environment=environment,
            signers={one.subject_code: Signer.of(one) for one in described.signers},
            receipt_keys=dict(described.receipt_keys),
            persons=_persons(described),
            profile_rules=_narrowed(rules, sut_role),
        )
        world._stands_at_ms = None if running else made.now_ms
        return world

    async def delete(self) -> None:
        """Forgets the namespace."""
        await self.sandbox.delete_namespace(namespace=self.name)

    # ---- who is who ----

    @property
    def sut_actor(self) -> str:
        """ "<role>/<code>" of what is under test."""
        return f"{self.sut_role}/{INSTITUTIONS[self.sut_role]}"

    def person_no(self, name: str) -> str:
        """The person of a magic name; P01 where none is given."""
        return self.persons[name or "P01"]

    def key(self, subject_code: str) -> SigningKey:
        """A private key of the world."""
        return SigningKey.from_pem(self.signers[subject_code].private_key_pem)

    async def identity(self, role: str, peer_id: str) -> ClientIdentity:
        """A certificate of this namespace."""
        return await self.sandbox.mint_identity(role, peer_id, namespace=self.name)

    def names(self) -> dict[str, Any]:
        """The names that every case knows, but for $now_ms."""
        return {
            **INSTITUTIONS,
            **self.persons,
            "sut": INSTITUTIONS[self.sut_role],
            "staff": dict(STAFF[self.sut_role]),
        }

    # ---- time ----

    @property
    def now_ms(self) -> int:
        """The hub's clock."""
        if self._stands_at_ms is None:
            return self.environment.now_ms()
        return self._stands_at_ms

    def _told(self, now_ms: int) -> None:
        """The hub's clock says so."""
        if self._stands_at_ms is not None:
            self._stands_at_ms = now_ms

    async def advance(self, **how: Any) -> Sequence[sandbox_pb2.FiredTimer]:
        """Moves the clock: `by_ms`, `until_ms` or `next_timer`."""
        reply = await self.sandbox.advance_clock(namespace=self.name, **how)
        self._told(reply.now_ms)
        return reply.fired

    # ---- faults and triggers ----

    async def begin(self, given: Sequence[case_pb2.Fault], names: Mapping[str, Any]) -> None:
        """Ends the preparation: sets the faults, and remembers where traffic and ledger stand."""
        rules = [*self._rules(given, names), *self.profile_rules]
        if rules:
            await self.sandbox.set_faults(rules, replace=True, namespace=self.name)
        stands = await self.sandbox.get_namespace(namespace=self.name)
        self.mark, self.first_exchange = stands.entries, stands.exchanges

    async def set_faults(self, faults: Sequence[case_pb2.Fault], names: Mapping[str, Any]) -> None:
        """Adds rules before those of the profile."""
        rules = await self.sandbox.list_faults(namespace=self.name)
        added = self._rules(faults, names)
        profile = {rule.rule_id for rule in self.profile_rules}
        kept = [rule for rule in rules if rule.rule_id not in profile]
        if len(kept) == len(rules):
            await self.sandbox.set_faults(added, namespace=self.name)
            return
        await self.sandbox.set_faults([*kept, *added, *self.profile_rules], replace=True, namespace=self.name)

    async def clear_faults(self, rule_ids: Sequence[str] = ()) -> None:
        """Removes rules by id, all without any."""
        await self.sandbox.clear_faults(rule_ids, namespace=self.name)

    async def begin_outage(self) -> None:
        """From now on every call of what is under test gets UNAVAILABLE."""
        fault = case_pb2.Fault(id=OUTAGE_RULE, method="*", actor="sut", do="drop_request")
        await self.set_faults([fault], {})

    def _rules(self, faults: Sequence[case_pb2.Fault], names: Mapping[str, Any]) -> list[sandbox_pb2.FaultRule]:
        return [self._rule(fault, names) for fault in faults]

    def _rule(self, fault: case_pb2.Fault, names: Mapping[str, Any]) -> sandbox_pb2.FaultRule:
        rule = sandbox_pb2.FaultRule(
            rule_id=fault.id,
            actor=self.sut_actor if fault.actor == "sut" else fault.actor,
            rx_no=str(resolved(fault.rx, names)),
            nth=fault.nth,
            probability=fault.probability,
            action=sandbox_pb2.FaultAction.Value(f"FAULT_ACTION_{fault.do.upper()}"),
            max_consecutive=fault.max_consecutive,
            max_total=fault.max_total,
        )
        if fault.WhichOneof("on") == "event":
            rule.event = fault.event
        else:
            rule.method = short_method(fault.method)
        for argument, value in plain(fault.args).items():
            setattr(rule.arguments, argument, value)
        return rule

    async def trigger(self, kind: str, *, rx_no: str = "", subject: str = "") -> Sequence[str]:
        """Makes something happen; the events that it left."""
        value = sandbox_pb2.TriggerKind.Value(f"TRIGGER_KIND_{kind.upper()}")
        reply = await self.sandbox.trigger(value, rx_no=rx_no, id=subject, namespace=self.name)
        self._told(reply.now_ms)
        return list(reply.events)

    async def save(self, snapshot: str) -> None:
        """Keeps the present state."""
        await self.sandbox.save_snapshot(snapshot, namespace=self.name)

    async def load(self, snapshot: str) -> None:
        """Brings a state back."""
        self._told((await self.sandbox.load_snapshot(snapshot, namespace=self.name)).now_ms)

    # ---- what happened ----

    async def traffic(self) -> list[sandbox_pb2.Exchange]:
        """Every exchange so far, the preparation's too; those that are still open have no status."""
        ended = [one for one in self._seen if one.status]
        # What was open the last time is read again.
        after = ended[-1].number if ended and len(ended) == len(self._seen) else 0
        kept = self._seen if after else []
        async for exchange in self.sandbox.traffic(after_number=after, namespace=self.name):
            kept.append(exchange)
        self._seen = kept
        return list(kept)

    async def calls(self) -> list[sandbox_pb2.Exchange]:
        """The exchanges since the steps began."""
        return [one for one in await self.traffic() if one.number > self.first_exchange]

    async def invariant_findings(self) -> Sequence[sandbox_pb2.InvariantFinding]:
        """What is wrong with the ledger of the sandbox itself."""
        return (await self.sandbox.check_invariants(namespace=self.name)).findings


def _narrowed(rules: Sequence[sandbox_pb2.FaultRule], sut_role: str) -> list[sandbox_pb2.FaultRule]:
    """A profile's rules for what is under test alone: robots and judge have nothing to prove."""
    narrowed = []
    for rule in rules:
        if rule.actor not in ("", f"{sut_role}/*"):
            continue
        rule.actor = f"{sut_role}/{INSTITUTIONS[sut_role]}"
        rule.ClearField("matched")
        rule.ClearField("fired")
        # Some are about calls that this role never makes.
        with contextlib.suppress(SandboxRefused):
            check_rule(rule, "rules")
            narrowed.append(rule)
    return narrowed


def _persons(described: sandbox_pb2.GetWorldResponse) -> dict[str, str]:
    """Magic name → person number."""
    return {magic.name: magic.value or magic.name for magic in described.magic if magic.kind == "person"}
