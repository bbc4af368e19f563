"""Where a case is played: a namespace of the hub's sandbox, or the hub's data port and nothing else.

Owns: what each of the two can do, and saying Unsupported for what it cannot. Must never: make a call of business, but
to register persons where there is no fresh namespace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from erxhub.client import AgencyClient, ClientIdentity, Connection, fault_rule
from erxhub.client.environment import Environment
from erxhub.client.sandbox import SandboxClient
from erxhub.conform.checks import Unsupported
from erxhub.conform.hub.proxy import FaultProxy
from erxhub.conform.model import Text
from erxhub.crypto.ca import Identity, SigningIdentity, TrustDomain, TrustDomainError
from erxhub.crypto.suites import SigningKey
from erxhub.seed.world import AREA, PERSONS, SeedWorld
from erxhub.v1 import sandbox_pb2

PROFILES: Final[Mapping[str, sandbox_pb2.FaultProfile.ValueType]] = {
    "dev": sandbox_pb2.FAULT_PROFILE_DEV,
    "strict": sandbox_pb2.FAULT_PROFILE_STRICT,
    "chaos": sandbox_pb2.FAULT_PROFILE_CHAOS,
}
PERSON: Final = next(one for one in PERSONS if one.person_no == SeedWorld.person_no)
SECOND: Final = next(one for one in PERSONS if one.person_no == SeedWorld.employee_no)
DAYS: Final = 30
"""Life of a certificate that is made for a run."""
_WEIGHTS: Final = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


class Place(Protocol):
    """What a case may ask of its surroundings. Each method that a place does not have raises Unsupported."""

    target: str
    """Where callers call; through the proxy where there is one."""
    direct_target: str
    """The hub's own data port, for handshakes."""
    server_name: str
    name: str
    """Unique to the case: part of request ids."""
    has_sandbox: bool
    person_no: str
    """A pensioner with a balance."""
    second_person_no: str
    """Another adult, an employee with a balance."""
    receipt_keys: Mapping[str, bytes]

    def now_ms(self) -> int:
        """The hub's clock, as far as it is known."""

    def key(self, subject_code: str) -> SigningKey:
        """The registered signing key of a person or an institution."""

    async def identity(self, role: str, peer_id: str) -> ClientIdentity:
        """A good certificate, for `target`."""

    async def direct_identity(self, role: str, peer_id: str, *defects: str) -> ClientIdentity:
        """A certificate for `direct_target`, on request with defects ("expired", "revoked", …)."""

    async def advance(self, *, by_ms: int | None = None, until_ms: int | None = None) -> None:
        """Moves the hub's clock."""

    async def set_faults(self, *rules: str) -> None:
        """Fault rules in the words of `erxhub fault set`, before those of the profile."""

    async def clear_faults(self) -> None:
        """Removes the case's rules."""

    async def save(self, snapshot: str) -> None:
        """Keeps the hub's state."""

    async def load(self, snapshot: str) -> None:
        """Brings it back."""

    async def findings(self) -> Sequence[sandbox_pb2.InvariantFinding]:
        """What the hub's own check of its invariants finds; empty where there is none."""

    async def traffic(self) -> list[sandbox_pb2.Exchange]:
        """Every call of the case so far."""

    async def close(self) -> None:
        """Leaves nothing behind."""


class SandboxPlace:
    """A fresh namespace."""

    has_sandbox = True

    def __init__(
        self,
        sandbox: SandboxClient,
        made: sandbox_pb2.Namespace,
        world: sandbox_pb2.GetWorldResponse,
        rules: Sequence[sandbox_pb2.FaultRule],
        server_name: str,
    ) -> None:
        self._sandbox = sandbox
        self.name = made.name
        self.target = self.direct_target = made.target
        self.server_name = server_name
        self._now_ms = made.now_ms
        self._profile_rules = [_uncounted(rule) for rule in rules]
        self._signers = {one.subject_code: one for one in world.signers}
        self.receipt_keys = dict(world.receipt_keys)
        self.person_no, self.second_person_no = PERSON.person_no, SECOND.person_no

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
        server_name: str,
    ) -> SandboxPlace:
        """Makes the namespace. Raises ClientFailure."""
        made = await sandbox.create_namespace(
            name, seed=seed, start_at_ms=start_at_ms, suite=suite, profile=PROFILES[profile]
        )
        world = await sandbox.get_world(namespace=made.name)
        rules = await sandbox.list_faults(namespace=made.name) if made.fault_rules else []
        return cls(sandbox, made, world, rules, server_name)

    def now_ms(self) -> int:
        """The namespace's clock, which stands."""
        return self._now_ms

    def key(self, subject_code: str) -> SigningKey:
        """A key of the namespace's world."""
        return SigningKey.from_pem(self._signers[subject_code].private_key_pem)

    async def identity(self, role: str, peer_id: str) -> ClientIdentity:
        """Minted by the sandbox."""
        return await self._sandbox.mint_identity(role, peer_id, namespace=self.name)

    async def direct_identity(self, role: str, peer_id: str, *defects: str) -> ClientIdentity:
        """Minted by the sandbox, with defects."""
        wanted = [sandbox_pb2.IdentityDefect.Value(f"IDENTITY_DEFECT_{defect.upper()}") for defect in defects]
        return await self._sandbox.mint_identity(role, peer_id, defects=wanted, namespace=self.name)

    async def advance(self, *, by_ms: int | None = None, until_ms: int | None = None) -> None:
        """Moves the namespace's clock."""
        reply = await self._sandbox.advance_clock(by_ms=by_ms, until_ms=until_ms, namespace=self.name)
        self._now_ms = reply.now_ms

    async def set_faults(self, *rules: str) -> None:
        """The case's rules come first: the first that fires is a call's fate."""
        await self._sandbox.set_faults(
            [*(fault_rule(rule) for rule in rules), *self._profile_rules], replace=True, namespace=self.name
        )

    async def clear_faults(self) -> None:
        """The profile's stay."""
        await self.set_faults()

    async def save(self, snapshot: str) -> None:
        """A snapshot of the namespace."""
        await self._sandbox.save_snapshot(snapshot, namespace=self.name)

    async def load(self, snapshot: str) -> None:
        """Ledger and clock as they were."""
        self._now_ms = (await self._sandbox.load_snapshot(snapshot, namespace=self.name)).now_ms

    async def findings(self) -> Sequence[sandbox_pb2.InvariantFinding]:
        """CheckInvariants."""
        return list((await self._sandbox.check_invariants(namespace=self.name)).findings)

    async def traffic(self) -> list[sandbox_pb2.Exchange]:
        """What the sandbox recorded."""
        return [exchange async for exchange in self._sandbox.traffic(namespace=self.name)]

    async def close(self) -> None:
        """Deletes the namespace."""
        await self._sandbox.delete_namespace(namespace=self.name)


class BarePlace:
    """The data port of a hub that has no sandbox, behind the fault proxy. Persons of the case are registered anew."""

    has_sandbox = False

    def __init__(
        self,
        folder: IdentityFolder,
        target: str,
        proxy: FaultProxy,
        *,
        name: str,
        server_name: str,
        environment: Environment,
        receipt_keys: Mapping[str, bytes],
    ) -> None:
        self._folder = folder
        self._proxy = proxy
        self._environment = environment
        self._first_exchange = proxy.exchanges_begun
        self.direct_target, self.target = target, proxy.target
        self.server_name = server_name
        self.name = name
        self.receipt_keys = receipt_keys
        self.person_no = self.second_person_no = ""

    async def register_persons(self, digits: int) -> None:
        """Two persons whom nobody knows yet; `digits` makes their numbers. Raises ClientFailure."""
        connection = Connection(
            self.direct_target,
            self._folder.caller("agency", AREA),
            server_name=self.server_name,
            environment=self._environment,
        )
        async with connection:
            agency = AgencyClient(connection)
            numbers = []
            for place, like in enumerate((PERSON, SECOND)):
                number = f"{AREA}C{digits:015d}{place}"
                person = like._asdict() | {
                    "person_no": number,
                    "id_number": _id_number(like.born_on, digits % 480 * 2 + (like.sex % 2)),
                }
                await agency.register_person(insured_area_code=AREA, **person)
                numbers.append(number)
        self.person_no, self.second_person_no = numbers

    def now_ms(self) -> int:
        """The machine's clock: a hub of which nothing else is known goes by it."""
        return self._environment.now_ms()

    def key(self, subject_code: str) -> SigningKey:
        """The key that lies in the folder."""
        return self._folder.key(subject_code)

    async def identity(self, role: str, peer_id: str) -> ClientIdentity:
        """A certificate of the proxy's, behind which the hub sees the one of the folder."""
        return self._proxy.identity_for(self._folder.caller(role, peer_id))

    async def direct_identity(self, role: str, peer_id: str, *defects: str) -> ClientIdentity:
        """The one of the folder; nobody here issues defective ones."""
        if defects:
            raise _no_sandbox("certificates with defects", "签发有缺陷的证书")
        return self._folder.caller(role, peer_id)

    async def advance(self, *, by_ms: int | None = None, until_ms: int | None = None) -> None:
        """Unsupported."""
        raise _no_sandbox("clock that can be moved", "可调时钟")

    async def set_faults(self, *rules: str) -> None:
        """At the proxy. Raises Unsupported for a fault that no line has."""
        parsed = [fault_rule(rule) for rule in rules]
        if any(rule.WhichOneof("on") == "event" or rule.action not in FaultProxy.ACTIONS for rule in parsed):
            raise _no_sandbox("faults inside the hub", "中心内部故障")
        self._proxy.set_faults(parsed)

    async def clear_faults(self) -> None:
        """At the proxy."""
        self._proxy.set_faults([])

    async def save(self, snapshot: str) -> None:
        """Unsupported."""
        raise _no_sandbox("snapshots", "快照")

    async def load(self, snapshot: str) -> None:
        """Unsupported."""
        raise _no_sandbox("snapshots", "快照")

    async def findings(self) -> Sequence[sandbox_pb2.InvariantFinding]:
        """Nobody to ask."""
        return []

    async def traffic(self) -> list[sandbox_pb2.Exchange]:
        """What went through the proxy since the case began."""
        return [exchange for exchange in self._proxy.exchanges if exchange.number > self._first_exchange]

    async def close(self) -> None:
        """The persons stay registered; the line is undisturbed again."""
        self._proxy.set_faults([])


class IdentityFolder:
    """Certificates and signing keys in a folder, laid out as `erxhub ca` does.

    `tls/<role>/<id>/` with ca.pem, cert.pem and key.pem; `signing/<institution>/<subject>/<key id>/` with key.pem and
    record.json. The keys are registered at the hub, as `erxhub seed` does. Where the authority's own key lies there
    too (ca.key.pem), callers without a certificate get one, which is kept in memory only.
    """

    def __init__(self, folder: Path, now_ms: int) -> None:
        """Raises FileNotFoundError for a folder without certificates, TrustDomainError."""
        self._callers: dict[tuple[str, str], ClientIdentity] = {}
        self._keys: dict[str, SigningIdentity] = {}
        self._trust = TrustDomain.open(folder).branch() if (folder / "ca.key.pem").exists() else None
        self._now_ms = now_ms
        for place in sorted(folder.glob("tls/*/*")):
            if (place / "cert.pem").exists():
                found = Identity.load(place)
                self._callers[found.role, found.id] = ClientIdentity(found.ca_pem, found.cert_pem, found.key_pem)
        for place in sorted(folder.glob("signing/*/*/*")):
            try:
                held = SigningIdentity.load(place)
            except TrustDomainError:
                continue
            newest = self._keys.get(held.subject_code)
            if newest is None or held.not_after_ms > newest.not_after_ms:
                self._keys[held.subject_code] = held
        if not self._callers:
            raise FileNotFoundError(f"{folder} has no certificates tls/<role>/<id>/cert.pem")

    @property
    def suites(self) -> frozenset[str]:
        """Of the signing keys."""
        return frozenset(held.suite for held in self._keys.values())

    def caller(self, role: str, peer_id: str) -> ClientIdentity:
        """Raises Unsupported for a caller that has no certificate here."""
        if (role, peer_id) not in self._callers:
            if self._trust is None:
                raise _no_sandbox(f"certificate of {role}/{peer_id}", f"{role}/{peer_id} 的证书")
            made = self._trust.issue_tls(role, peer_id, self._now_ms, DAYS)
            self._callers[role, peer_id] = ClientIdentity(made.ca_pem, made.cert_pem, made.key_pem)
        return self._callers[role, peer_id]

    def key(self, subject_code: str) -> SigningKey:
        """Raises Unsupported for somebody who has no key here."""
        try:
            return self._keys[subject_code].key
        except KeyError:
            raise _no_sandbox(f"signing key of {subject_code}", f"{subject_code} 的签名密钥") from None


def _no_sandbox(en: str, zh: str) -> Unsupported:
    return Unsupported(Text(f"The hub offers no {en}.", f"被测中心未提供{zh}。"))


def _uncounted(rule: sandbox_pb2.FaultRule) -> sandbox_pb2.FaultRule:
    copy = sandbox_pb2.FaultRule()
    copy.CopyFrom(rule)
    copy.ClearField("matched")
    copy.ClearField("fired")
    return copy


def _id_number(born_on: str, sequence: int) -> str:
    """A number of the fictional area 990101 with the right check character."""
    body = f"990101{born_on.replace('-', '')}{sequence:03d}"
    total = sum(weight * int(digit) for weight, digit in zip(_WEIGHTS, body, strict=True))
    return body + "10X98765432"[total % 11]
