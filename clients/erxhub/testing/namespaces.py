"""One namespace of a sandbox in the hands of a test: who calls, what goes wrong, what time it is, what happened.

Owns: the certificates that were minted, one client for each caller and event loop, and the event loop of `run`. Every
method but the clients' own waits for its answer, in plain functions and in coroutines alike; a client's methods are
coroutines, for `await` or for `run`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from erxhub.client import (
    AgencyClient,
    AuditorClient,
    ClientIdentity,
    Connection,
    HospitalClient,
    NationalRequestIds,
    PatientClient,
    PharmacyClient,
    RandomRequestIds,
    RequestIds,
    SandboxClient,
    SandboxEnvironment,
    fault_rule,
)
from erxhub.client.base import NATIONAL_ROLES, Client
from erxhub.client.fault_rules import duration_ms
from erxhub.crypto.suites import SigningKey
from erxhub.v1 import sandbox_pb2

CASE_REASON: Final = "test"

Result = TypeVar("Result")
Kind = TypeVar("Kind", bound=Client)
Run = Callable[[Coroutine[Any, Any, Any]], Any]


class NamespaceClock:
    """The namespace's time: it stands until it is advanced, and never goes back but by `reset` and `load`."""

    def __init__(self, sandbox: SandboxClient, run: Run, environment: SandboxEnvironment) -> None:
        self._sandbox, self._run, self._environment = sandbox, run, environment

    @property
    def now_ms(self) -> int:
        """UTC milliseconds since 1970, as signatures of this namespace's clients are dated."""
        return self._environment.now_ms()

    def advance(self, duration: str) -> list[sandbox_pb2.FiredTimer]:
        """Moves on by "2h", "1d12h", "500ms"; returns what the passing of time wrote. Raises ValueError, Refusal."""
        return self._moved(self._sandbox.advance_clock(by_ms=duration_ms(duration)))

    def advance_to(self, until_ms: int) -> list[sandbox_pb2.FiredTimer]:
        """Moves on to an instant, UTC milliseconds. Raises Refusal (SBX_CLOCK_BACK)."""
        return self._moved(self._sandbox.advance_clock(until_ms=until_ms))

    def advance_to_next_timer(self) -> list[sandbox_pb2.FiredTimer]:
        """Moves on to the earliest deadline that is set; without one it stays."""
        return self._moved(self._sandbox.advance_clock(next_timer=True))

    def _moved(self, call: Coroutine[Any, Any, sandbox_pb2.AdvanceClockResponse]) -> list[sandbox_pb2.FiredTimer]:
        reply: sandbox_pb2.AdvanceClockResponse = self._run(call)
        self._environment.tell(reply.now_ms)
        return list(reply.fired)


class NamespaceFaults:
    """What goes wrong. Rules are written as for `erxhub fault set`: "Dispensing/Settle nth=1 do=lose_ack"."""

    def __init__(self, sandbox: SandboxClient, run: Run) -> None:
        self._sandbox, self._run = sandbox, run

    def set(self, *rules: str | sandbox_pb2.FaultRule, replace: bool = False) -> list[sandbox_pb2.FaultRule]:
        """Adds rules, or replaces all; returns those set then. Raises ValueError, Refusal (SBX_FAULT_NEVER_MATCHES)."""
        found = [fault_rule(rule) if isinstance(rule, str) else rule for rule in rules]
        return list(self._run(self._sandbox.set_faults(found, replace=replace)))

    def list(self) -> list[sandbox_pb2.FaultRule]:
        """The rules, with how many calls `matched` and how many times they `fired`."""
        return list(self._run(self._sandbox.list_faults()))

    def clear(self, *rule_ids: str) -> None:
        """Removes these rules, or all of them."""
        self._run(self._sandbox.clear_faults(rule_ids))


class ErxhubNamespace:
    """A hub of its own with the fictional world in it.

    `target` is where its callers call, `sandbox` the client that controls it, `environment` the clock that its clients
    date by. `clock` and `faults` are described at their classes.
    """

    def __init__(
        self,
        sandbox: SandboxClient,
        made: sandbox_pb2.Namespace,
        control: Run,
        folder: Path,
    ) -> None:
        """`control` runs a call of `sandbox` on the event loop that it lives on, which is not that of any test."""
        self.sandbox = sandbox
        self.name = made.name
        self.target = made.target
        self.trust_domain = made.trust_domain
        self.seed = made.seed
        runs = made.clock_mode == sandbox_pb2.CLOCK_MODE_RUNNING
        self.environment = SandboxEnvironment(made.now_ms, runs=runs)
        self.clock = NamespaceClock(sandbox, control, self.environment)
        self.faults = NamespaceFaults(sandbox, control)
        self.world: sandbox_pb2.GetWorldResponse = control(sandbox.get_world())
        self._control = control
        self._loop = asyncio.new_event_loop()
        self._folder = folder
        self._identities: dict[tuple[str, str], ClientIdentity] = {}
        self._request_ids: dict[tuple[str, str], RequestIds] = {}
        self._clients: dict[tuple[type[Client], str, asyncio.AbstractEventLoop], Client] = {}

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Waits for a coroutine in a plain function: `ns.run(ns.hospital().list_prescriptions())`.

        All of one namespace run on one event loop, so that its clients stay good between them. Raises RuntimeError in
        a coroutine, where `await` does it.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._loop.run_until_complete(coroutine)
        coroutine.close()
        raise RuntimeError("an event loop runs here already: await the coroutine instead of run()")

    # --- callers ----------------------------------------------------------------------------------

    def hospital(self, institution_code: str = "") -> HospitalClient:
        """A hospital of the world, the first one when none is named."""
        return self._client(HospitalClient, "hospital", institution_code)

    def pharmacy(self, institution_code: str = "") -> PharmacyClient:
        """A pharmacy of the world, the first one when none is named."""
        return self._client(PharmacyClient, "pharmacy", institution_code)

    def patient(self, channel_id: str = "") -> PatientClient:
        """The patients' channel."""
        return self._client(PatientClient, "channel", channel_id)

    def agency(self, area_code: str = "") -> AgencyClient:
        """The agency of the world's area."""
        return self._client(AgencyClient, "agency", area_code)

    def auditor(self, auditor_id: str = "") -> AuditorClient:
        """An auditor, whose case is "test"."""
        client = self._client(AuditorClient, "auditor", auditor_id)
        client.case_reason = client.case_reason or CASE_REASON
        return client

    def identity(self, role: str, id: str = "") -> ClientIdentity:  # noqa: A002 — the name of the RPC's field
        """The certificate of a caller (hospital, pharmacy, channel, agency, auditor …), minted once and then kept.

        Without an id the first of that kind in the world. Raises Refusal, KeyError when the world has none.
        """
        who = (role, id or self.first(role))
        if who not in self._identities:
            self._identities[who] = self.mint(*who)
        return self._identities[who]

    def mint(self, role: str, id: str, *defects: str) -> ClientIdentity:  # noqa: A002
        """A new certificate, on request with defects ("expired", "wrong-key", …). Raises Refusal, ValueError."""
        words = (f"IDENTITY_DEFECT_{defect.replace('-', '_').upper()}" for defect in defects)
        numbers = [sandbox_pb2.IdentityDefect.Value(word) for word in words]
        minted: ClientIdentity = self._control(self.sandbox.mint_identity(role, id, defects=numbers))
        return minted

    def folder(self, role: str, id: str = "") -> Path:  # noqa: A002
        """A folder with ca.pem, cert.pem and key.pem of a caller, for a system under test that reads files."""
        identity = self.identity(role, id)
        place = self._folder / role / (id or self.first(role))
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, content in (("ca", identity.ca_pem), ("cert", identity.cert_pem), ("key", identity.key_pem)):
            with os.fdopen(os.open(place / f"{name}.pem", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(content or b"")
        return place

    # --- the world --------------------------------------------------------------------------------

    def first(self, kind: str) -> str:
        """The id of the first party of a kind ("hospital", "doctor", "person" …). Raises KeyError."""
        found = next((party.id for party in self.world.parties if party.kind == kind), None)
        if found is None:
            raise KeyError(f"the world of {self.name} has no {kind}")
        return found

    def signing_key(self, subject_code: str) -> SigningKey:
        """The private key of a practitioner, or the seal of an institution. Raises KeyError."""
        for signer in self.world.signers:
            if signer.subject_code == subject_code:
                return SigningKey.from_pem(signer.private_key_pem)
        raise KeyError(f"{subject_code} has no signing key in {self.name}")

    @property
    def magic(self) -> Mapping[str, str]:
        """Magic values by name: what to send."""
        return {value.name: value.value or value.name for value in self.world.magic}

    @property
    def receipt_keys(self) -> Mapping[str, bytes]:
        """The hub's receipt keys by key id, raw Ed25519; the clients here have them pinned."""
        return dict(self.world.receipt_keys)

    # --- what happens and what happened -----------------------------------------------------------

    def trigger(self, kind: str, *, rx_no: str = "", id: str = "") -> list[str]:  # noqa: A002
        """Makes something happen, as `erxhub trigger` names it; returns the events. Raises Refusal, ValueError."""
        number = sandbox_pb2.TriggerKind.Value(f"TRIGGER_KIND_{kind.replace('-', '_').upper()}")
        reply: sandbox_pb2.TriggerResponse = self._control(self.sandbox.trigger(number, rx_no=rx_no, id=id))
        self.environment.tell(reply.now_ms)
        return list(reply.events)

    def traffic(self, *, rx_no: str = "", actor: str = "", method: str = "") -> list[sandbox_pb2.Exchange]:
        """The recorded calls, oldest first."""

        async def all_() -> list[sandbox_pb2.Exchange]:
            return [one async for one in self.sandbox.traffic(rx_no=rx_no, actor=actor, method=method)]

        exchanges: list[sandbox_pb2.Exchange] = self._control(all_())
        return exchanges

    def check(self) -> list[sandbox_pb2.InvariantFinding]:
        """What is wrong with the ledger; nothing in a sound hub."""
        reply: sandbox_pb2.CheckInvariantsResponse = self._control(self.sandbox.check_invariants())
        return list(reply.findings)

    # --- states -----------------------------------------------------------------------------------

    def reset(self) -> None:
        """Back to the moment of its creation; certificates and keys stay good."""
        self._at(self._control(self.sandbox.reset()))

    def save(self, snapshot: str) -> None:
        """Keeps the present state under a name."""
        self._at(self._control(self.sandbox.save_snapshot(snapshot)))

    def load(self, snapshot: str) -> None:
        """Back to a kept state."""
        self._at(self._control(self.sandbox.load_snapshot(snapshot)))

    def delete(self) -> None:
        """Ends the namespace."""
        self.close_clients()
        self._loop.close()
        self._control(self.sandbox.delete_namespace())

    def close_clients(self) -> None:
        """Closes the clients that were handed out for `run`; those of another event loop close when nobody has them."""
        for (_, _, loop), client in self._clients.items():
            if loop is self._loop:
                self._loop.run_until_complete(client.connection.close())
        self._clients.clear()

    def _at(self, namespace: sandbox_pb2.Namespace) -> None:
        self.environment.tell(namespace.now_ms)

    def _client(self, kind: type[Kind], role: str, id_: str) -> Kind:
        """The client of this caller for the event loop that runs here, or else for that of `run`."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = self._loop
        id_ = id_ or self.first(role)
        found = self._clients.get((kind, id_, loop))
        if isinstance(found, kind):
            return found
        identity = self.identity(role, id_)

        def make() -> Kind:
            # A channel belongs to the event loop that runs where it is made.
            connection = Connection(self.target, identity, receipt_keys=self.receipt_keys, environment=self.environment)
            return kind(connection, request_ids=self._ids(role, id_))

        async def make_there() -> Kind:
            return make()

        running = self._loop is not loop or self._loop.is_running()
        made = make() if running else self._loop.run_until_complete(make_there())
        self._clients[kind, id_, loop] = made
        return made

    def _ids(self, role: str, id_: str) -> RequestIds:
        # One source for a caller's clients of all loops: in a standing clock's one second two would meet.
        if (role, id_) not in self._request_ids:
            national = role in NATIONAL_ROLES
            ids = NationalRequestIds(id_, self.environment) if national else RandomRequestIds(self.environment)
            self._request_ids[role, id_] = ids
        return self._request_ids[role, id_]
