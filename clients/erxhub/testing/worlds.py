"""Founding a fictional world: a hub is started for a moment, and an agency's client registers everybody.

Owns the way from the seed to a template. Must never: write to a ledger but through calls.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

from erxhub.app import Hub, start_hub
from erxhub.client import AgencyClient, ClientIdentity
from erxhub.config import Config
from erxhub.crypto.ca import TrustDomain
from erxhub.keys import HubKeys
from erxhub.ledger.memory import MemoryStore
from erxhub.ledger.sqlite import open_sqlite
from erxhub.ledger.store import Store
from erxhub.policy.pack import DAY_MS, china_date
from erxhub.ports import Clock, Ids, ManualClock, SeededIds, SystemIds
from erxhub.rpc.methods import METHODS
from erxhub.rpc.server import FixedIdentity, ServerIdentity
from erxhub.sandbox import inprocess
from erxhub.sandbox.identities import Mint
from erxhub.sandbox.magic import Prepared, prepare_world, world_additions
from erxhub.sandbox.worlds import Template, World
from erxhub.seed import SeedWorld, register_world
from erxhub.seed.catalogue import seed_drugs
from erxhub.seed.identities import founded_at_ms
from erxhub.seed.world import (
    AREA,
    AUDITOR,
    CHANNEL,
    COURIER,
    DISPENSER,
    DOCTOR,
    HOSPITAL_PHARMACIST,
    INSTITUTIONS,
    PERSONS,
    PHARMACIST,
    PRACTITIONERS,
)
from erxhub.v1 import catalog_pb2, sandbox_pb2

_TEMPLATE_SEED: Final = -1
"""No namespace has it, so that what a namespace draws never meets what its template drew."""

_KINDS: Final = {
    DOCTOR: "doctor",
    HOSPITAL_PHARMACIST: "hospital_pharmacist",
    PHARMACIST: "pharmacist",
    DISPENSER: "dispenser",
    COURIER: "courier",
}


class WorldFounder:
    """Founds templates. With a `directory` the first one takes identities and keys from there, or leaves them there."""

    def __init__(
        self,
        trust: TrustDomain,
        keys: HubKeys,
        identity: ServerIdentity,
        config: Config,
        machine: Clock,
        directory: Path | None,
    ) -> None:
        self._trust = trust
        self._keys = keys
        self._identity = identity
        self._config = config
        self._machine = machine
        self._directory = directory

    async def found(self, suite: str, at_ms: int) -> Template:
        """A world on a memory store, founded the day before: some of what is in it is to be over by then."""
        directory, self._directory = self._directory, None
        store = MemoryStore()
        clock, ids = ManualClock(at_ms - DAY_MS), SeededIds(_TEMPLATE_SEED)
        hub = await self._hub(store, clock, ids)
        try:
            # What a template issues is in nobody's list, unless it is to be found again in the folder.
            trust = self._trust if directory is not None else self._trust.branch()
            world = await self._register(hub, trust, suite, clock.now_ms(), directory)
            clock.advance(DAY_MS)
            while await hub.engine.sweep():
                pass
        finally:
            await hub.stop()
        return Template(store.copy(), world, at_ms)

    async def found_file(self, database: Path, suite: str) -> World:
        """The world in a ledger that is a file, by the machine's clock; what is registered there already stays."""
        hub = await self._hub(await open_sqlite(database), self._machine, SystemIds())
        try:
            return await self._register(hub, self._trust, suite, self._machine.now_ms(), self._directory)
        finally:
            await hub.stop()

    async def _hub(self, store: Store, clock: Clock, ids: Ids) -> Hub:
        identity = FixedIdentity(self._identity)
        return await start_hub(store, identity, self._keys, config=self._config, clock=clock, ids=ids)

    async def _register(self, hub: Hub, trust: TrustDomain, suite: str, at_ms: int, directory: Path | None) -> World:
        mint = Mint(self._trust, self._trust.trust_domain)

        async def as_caller(role: str, peer_id: str, method: str, request: Any) -> Any:
            minted = mint.issue(role, peer_id, self._machine.now_ms(), at_ms)
            return await inprocess.call(hub.core.dispatcher.handler(METHODS[method]), minted.cert_pem, method, request)

        caller = mint.issue("agency", AREA, self._machine.now_ms(), at_ms)
        identity = ClientIdentity(self._trust.ca_pem, caller.cert_pem, caller.key_pem)
        async with AgencyClient.connect(f"localhost:{hub.port}", identity) as agency:
            world = await register_world(agency, trust, at_ms, suite, directory=directory)
            await _import_magic_drugs(agency, founded_at_ms(trust))
        return shown(world, await prepare_world(as_caller))


async def _import_magic_drugs(agency: AgencyClient, founded_ms: int) -> None:
    """The seed's drugs with the magic ones; then the edition of the next day, in which some are no longer."""
    additions = world_additions()
    rows = [*seed_drugs().values(), *additions.drugs]
    for edition, day_ms, gone in (
        ("magic", founded_ms, frozenset[str]()),
        ("magic-next", founded_ms + DAY_MS, additions.delisted),
    ):
        listed = [drug for drug in rows if drug.code not in gone]
        entries = [catalog_pb2.CatalogEntry(line=line, drug=drug) for line, drug in enumerate(listed, start=2)]
        digest = hashlib.sha256(b"".join(entry.SerializeToString(deterministic=True) for entry in entries)).digest()
        await agency.import_catalog(
            dataset=catalog_pb2.CATALOG_DATASET_DRUGS,
            edition=edition,
            valid_from_on=china_date(day_ms).isoformat(),
            file_sha256=digest,
            entries=entries,
            source="erxhub sandbox, magic values",
            request_id=f"sandbox-{hashlib.sha256(edition.encode() + digest).hexdigest()[:32]}",
        )


def shown(world: SeedWorld, prepared: Prepared) -> World:
    """The world as the control service tells it."""
    signers = [
        sandbox_pb2.WorldSigner(
            subject_code=held.subject_code,
            institution_code=held.institution_code,
            suite=held.suite,
            key_id=held.key.key_id,
            private_key_pem=held.key.to_pem(),
            certificate_pem=held.cert_pem,
        )
        for held in world.signing_identities.values()
    ]
    parties = [
        *(_party("hospital" if one.level else "pharmacy", one.code, one.name, one.code) for one in INSTITUTIONS),
        *(_party(_KINDS[one.kind], one.code, one.name, one.institution_code) for one in PRACTITIONERS),
        *(_party("person", one.person_no, one.name) for one in PERSONS),
        _party("channel", CHANNEL),
        _party("agency", AREA),
        _party("auditor", AUDITOR),
    ]
    return World(tuple(signers), tuple(parties), prepared)


def _party(kind: str, party_id: str, name: str = "", institution_code: str = "") -> sandbox_pb2.WorldParty:
    return sandbox_pb2.WorldParty(kind=kind, id=party_id, name=name, institution_code=institution_code)
