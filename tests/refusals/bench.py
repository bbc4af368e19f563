"""What the cases stand on: a live hub whose store can fail, what was last seen of its ledger, and people of their own.

Cases share the hub, so each makes its own prescription, and whoever changes a person, institution or certificate makes
that too. What a case cannot make for itself it puts back through `afterwards`.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from erxhub.client import PharmacyClient
from erxhub.client.failures import refusal_of
from erxhub.config import Config
from erxhub.core import events
from erxhub.core.registry import REQUIRED_CLAUSES
from erxhub.ledger.entry import Header
from erxhub.ledger.memory import MemoryStore
from erxhub.ledger.store import AppendResult, Head, Loaded, StoredEntry, StoreUnavailable, Wanted, Write
from erxhub.ports import Pause, system_pause
from erxhub.rpc.methods import METHODS
from erxhub.v1 import common_pb2, encounter_pb2, registry_pb2
from tests.chain import DOCTOR, Chain
from tests.live import DAY_MS, HOSPITAL, PERSON, Live, live_hub

ONLINE = "03131"
BASE = registry_pb2.AGREEMENT_KIND_BASE


class FailingStore(MemoryStore):
    """A memory store that can be told to be unavailable, for writing or for everything."""

    def __init__(self) -> None:
        super().__init__()
        self.refuses_writes = False
        self.refuses_reads = False

    async def append(self, batch: Sequence[Write]) -> AppendResult:
        if self.refuses_writes:
            raise StoreUnavailable("the disk is full")
        return await super().append(batch)

    async def load(self, wanted: Wanted) -> Loaded:
        if self.refuses_reads:
            raise StoreUnavailable("the disk cannot be read")
        return await super().load(wanted)

    def works_again(self) -> None:
        """As before."""
        self.refuses_writes = self.refuses_reads = False


@dataclass(frozen=True)
class Seen:
    """The ledger at a moment: its newest position, and the head (state included) of every stream but access streams."""

    position: int
    heads: dict[bytes, Head]


@dataclass
class Ledger:
    """Looks at a ledger through its store's own reads."""

    store: MemoryStore
    _keys: set[bytes] = field(default_factory=set)
    _position: int = 0

    async def seen(self) -> Seen:
        """How the ledger stands now."""
        for entry in await self.after(self._position):
            self._position = entry.position
            if entry.stream_kind != "access":
                self._keys.add(entry.stream_key)
        loaded = await self.store.read(Wanted(streams=frozenset(self._keys)))
        return Seen(self._position, dict(loaded.heads))

    async def after(self, position: int) -> list[StoredEntry]:
        """The entries after a position."""
        return await self.store.log(position, 1_000_000)


class Rx(Chain):
    """A chain for anybody, whose prescription a case changes before it is prechecked."""

    change: Callable[[common_pb2.Prescription], None] = staticmethod(lambda prescription: None)

    def written(self) -> common_pb2.Prescription:
        known = self.person_no
        self.person_no = PERSON
        prescription = super().written()
        prescription.person_no = self.person_no = known
        self.change(prescription)
        return prescription

    async def internet(self, *, proven: bool = True) -> Rx:
        """An internet visit in consultation; with `proven` the doctor is attested and the follow-up proven."""
        hospital = await self.live.hospital(self.hospital_code)
        verified = await hospital.verify_voucher(voucher_code=await self.code(ONLINE), business_type=ONLINE)
        reply = await hospital.register_encounter(
            person_no=self.person_no,
            visit_kind=common_pb2.VISIT_KIND_INTERNET,
            certificate_type=encounter_pb2.VISIT_CERTIFICATE_TYPE_VOUCHER,
            med_type="11",
            online_identity_no=verified.online_identity_no,
        )
        self.encounter_id = reply.encounter_id
        await hospital.start_encounter(encounter_id=self.encounter_id, doctor_code=DOCTOR)
        if proven:
            await hospital.attest_doctor(
                encounter_id=self.encounter_id, media_sha256=hashlib.sha256(b"video").digest(), liveness_passed=True
            )
            await hospital.prove_follow_up(
                encounter_id=self.encounter_id,
                disease_code="I10.x00x002",
                earlier_hospital_code=HOSPITAL,
                earlier_visit_on="2026-11-01",
            )
            self.prescription = self.written()
            await hospital.record_diagnosis(
                encounter_id=self.encounter_id,
                doctor_code=DOCTOR,
                diagnoses=self.prescription.diagnoses,
                doctor_key=self.live.key(DOCTOR, self.hospital_code),
            )
        return self


_NUMBERS = itertools.count(1)


@dataclass
class Bench:
    """One hub for many cases."""

    live: Live
    store: FailingStore
    ledger: Ledger
    _undone: list[Callable[[], Awaitable[Any]]] = field(default_factory=list)

    def rx(self, change: Callable[[common_pb2.Prescription], None] | None = None, **chain: Any) -> Rx:
        """A prescription of the case's own."""
        rx = Rx(self.live, **chain)
        if change is not None:
            rx.change = change
        return rx

    def afterwards(self, undo: Callable[[], Awaitable[Any]]) -> None:
        """Call this when the case is over, whatever came of it."""
        self._undone.append(undo)

    async def tidy(self) -> None:
        """Put back what the last case changed."""
        self.store.works_again()
        while self._undone:
            await self._undone.pop()()

    async def person(self, *, balance_fen: int = 0, activated: bool = True) -> str:
        """A person of the case's own."""
        person_no = f"3301000077{next(_NUMBERS):04d}"
        await self.live.insure(person_no, balance_fen=balance_fen, activated=activated)
        return person_no

    async def institution(self, letter: str = "H", *, agreements: Sequence[Any] = (BASE,)) -> str:
        """An institution of the case's own."""
        code = f"{letter}330100{70_000 + next(_NUMBERS):05d}"
        agency = await self.live.agency()
        await agency.register_institution(institution_code=code, name="示例机构", internet=letter == "H")
        for kind in agreements:
            await agency.sign_agreement(**self.agreement(code, kind))
        return code

    def agreement(self, code: str, kind: Any = BASE) -> dict[str, Any]:
        """The arguments of an agreement that can be signed."""
        return {
            "institution_code": code,
            "kind": kind,
            "agreement_no": f"A-{next(_NUMBERS)}",
            "valid_from_ms": self.live.clock.now_ms() - DAY_MS,
            "valid_until_ms": self.live.clock.now_ms() + 365 * DAY_MS,
            "clauses": REQUIRED_CLAUSES,
        }

    async def doctor(self, *institutions: str) -> str:
        """A doctor of the case's own, without a key."""
        code = f"D3301007{next(_NUMBERS):05d}"
        agency = await self.live.agency()
        await agency.register_practitioner(
            practitioner_code=code,
            name="许示例",
            kind=registry_pb2.PRACTITIONER_KIND_DOCTOR,
            institution_codes=institutions,
            practice_years=9,
        )
        return code

    async def visitor(self, **changes: Any) -> dict[str, Any]:
        """The arguments of a visit that can be registered, with some of them changed."""
        arguments = {
            "person_no": PERSON,
            "visit_kind": common_pb2.VISIT_KIND_OFFLINE,
            "certificate_type": encounter_pb2.VISIT_CERTIFICATE_TYPE_VOUCHER,
            "med_type": "11",
        } | changes
        if "voucher_ref" not in arguments:
            arguments["voucher_ref"] = await self.rx(person_no=arguments["person_no"]).reference(
                "01201", pharmacy=False
            )
        return arguments


async def raw_call(client: Any, method: str, data: bytes, metadata: tuple[tuple[str, str], ...] = ()) -> bytes:
    """The bytes that the hub answers to these bytes. Raises what a client raises, without a request."""
    served = METHODS[method]
    multicallable = client.connection.channel.unary_unary(f"/{served.service}/{served.rpc}")
    try:
        reply: bytes = await multicallable(data, metadata=metadata, timeout=10)
    except grpc.aio.AioRpcError as error:
        refusal = refusal_of(error)
        if refusal is None:
            raise
        raise refusal from error
    return reply


def details_of(failure: BaseException) -> bytes:
    """The status details that came with a failure, as they were on the wire."""
    error = failure.__cause__
    assert isinstance(error, grpc.aio.AioRpcError)
    found = [value for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin"]
    assert len(found) == 1
    assert isinstance(found[0], bytes)
    return found[0]


def as_pharmacy(client: Any) -> PharmacyClient:
    """The calls of a pharmacy over somebody else's connection."""
    return PharmacyClient(client.connection, request_ids=client.request_ids)


def event_of(entry: StoredEntry) -> str:
    """The name of a stored entry's type."""
    return events.BY_NUMBER[header_of(entry).type].name


def header_of(entry: StoredEntry) -> Header:
    """The header of a stored entry."""
    return Header.decode(entry.header)


@asynccontextmanager
async def open_bench(*, config: Config | None = None, pause: Pause = system_pause, **hub: Any) -> AsyncIterator[Bench]:
    """A hub for cases."""
    store = FailingStore()
    async with live_hub(store=store, config=config, pause=pause, **hub) as live:
        try:
            yield Bench(live, store, Ledger(store))
        finally:
            store.works_again()
