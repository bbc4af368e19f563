"""A hub without a network for tests of reads: a real lane over a memory store; each read leaves its access entry."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from google.protobuf import message_factory

from erxhub.accesses import ReadNote
from erxhub.config import Config
from erxhub.core.catalog import CatalogImport
from erxhub.core.model import Accepted, Caller, Command, Evidence, Outcome, Refused
from erxhub.crypto.suites import Verifier
from erxhub.engine import Engine
from erxhub.jobs import Declined, Replied
from erxhub.keys import HubKeys
from erxhub.ledger.memory import MemoryStore
from erxhub.policy.pack import shipped_packs
from erxhub.ports import ManualClock, SeededIds
from erxhub.queries import QUERIES, STREAMS
from erxhub.queries.base import Opened, ReadContext
from erxhub.v1 import dispensing_pb2, encounter_pb2, patient_pb2, prescribing_pb2, registry_pb2, voucher_pb2
from tests.core import population as people
from tests.core.harness import START_MS
from tests.core.test_prescription import AMLODIPINE, IRBESARTAN, PHARMACIST, Rx, drug, import_drugs
from tests.simulation.loop import VirtualLoop

T = TypeVar("T")

DOWNLOAD_TYPE = "02122"

_REPLIES = {
    method.full_name.removeprefix("erxhub.v1.").replace(f".{method.name}", f"/{method.name}"): method.output_type
    for module in (registry_pb2, voucher_pb2, encounter_pb2, prescribing_pb2, patient_pb2, dispensing_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


class Hub:
    """`do` submits a command and `read` runs a query as the edge does; both wait for the lane.

    It has what the population of the decision tests asks of a world: `do`, `now_ms`, `advance`.
    """

    def __init__(self, config: Config | None = None, runner: asyncio.Runner | VirtualLoop | None = None) -> None:
        self.config = config or Config()
        self.clock = ManualClock(START_MS)
        self.store = MemoryStore()
        self.runner = runner or asyncio.Runner()
        self._count = 0
        ids = SeededIds(11)
        keys = HubKeys.generate(ids)
        self.mac_keys = keys.mac_keys
        packs = shipped_packs()
        self.engine = Engine(self.store, clock=self.clock, ids=ids, keys=keys, packs=packs, config=self.config)
        self.run(self.engine.start())
        self.ctx = ReadContext(
            store=self.store,
            mac_keys=keys.mac_keys,
            ledger_key=self.engine.ledger_key,
            config=self.config,
            clock=self.clock,
            packs=packs,
            verifier=Verifier(),
            subscribe=self.engine.watches.subscribe,
            unsubscribe=self.engine.watches.unsubscribe,
            running=lambda: self.engine.running,
            page_key=b"p" * 32,
        )

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        result: T = self.runner.run(work)
        return result

    def close(self) -> None:
        self.run(self.engine.stop())
        if isinstance(self.runner, asyncio.Runner):
            self.runner.close()

    @property
    def now_ms(self) -> int:
        return self.clock.now_ms()

    def advance(self, ms: int) -> None:
        self.clock.advance(ms)

    async def submit(self, caller: Caller, method: str, request: Any, evidence: Evidence | None = None) -> Outcome:
        self._count += 1
        request_id = getattr(request, "request_id", "") or f"test-request-{self._count:06d}"
        command = Command(method, request, caller, request_id, self.now_ms, evidence or Evidence())
        content = repr(request).encode() if isinstance(request, CatalogImport) else request.SerializeToString()
        answer = await self.engine.submit(command, content)
        if isinstance(answer, Declined):
            return answer.refused
        assert isinstance(answer, Replied)
        return Accepted(self._reply(method, answer.body))

    @staticmethod
    def _reply(method: str, body: bytes) -> Any:
        return message_factory.GetMessageClass(_REPLIES[method]).FromString(body)

    def do(self, caller: Caller, method: str, request: Any, evidence: Evidence | None = None) -> Outcome:
        return self.run(self.submit(caller, method, request, evidence))

    async def look(self, caller: Caller, method: str, request: Any) -> Accepted | Refused:
        outcome = await QUERIES[method](self.ctx, caller, request)
        refused = outcome if isinstance(outcome, Refused) else None
        self._count += 1
        request_id = f"test-read-{self._count:06d}"
        note = ReadNote(caller.actor, caller.kind, method, request_id, outcome.targets, refused)
        await self.engine.note(note)
        return outcome

    def read(self, caller: Caller, method: str, request: Any) -> Any:
        """The reply of an accepted read."""
        outcome = self.run(self.look(caller, method, request))
        assert isinstance(outcome, Accepted), outcome
        return outcome.reply

    def refused(self, caller: Caller, method: str, request: Any) -> Refused:
        outcome = self.run(self.look(caller, method, request))
        assert isinstance(outcome, Refused), outcome
        return outcome

    async def open(self, caller: Caller, method: str, request: Any) -> Opened:
        opened = await STREAMS[method](self.ctx, caller, request)
        assert isinstance(opened, Opened), opened
        return opened


def populated() -> Hub:
    """Two hospitals and a pharmacy, a doctor and a pharmacist with keys, drugs, two persons activated on CHANNEL."""
    hub = Hub()
    world: Any = hub

    def agency(method: str, request: Any) -> None:
        people.accepted(hub.do(people.AGENCY, f"RegistryService/{method}", request))

    for code in (people.HOSPITAL_CODE, people.OTHER_HOSPITAL_CODE, people.PHARMACY_CODE):
        agency("RegisterInstitution", people.institution_request(code))
        agency("SignAgreement", people.agreement_request(world, code))
    pooling = people.agreement_request(world, people.PHARMACY_CODE, registry_pb2.AGREEMENT_KIND_POOLING)
    agency("SignAgreement", pooling)
    agency("RegisterPractitioner", people.practitioner_request())
    kind = registry_pb2.PRACTITIONER_KIND_HOSPITAL_PHARMACIST
    agency("RegisterPractitioner", people.practitioner_request(PHARMACIST, kind=kind))
    for subject in (people.DOCTOR_CODE, PHARMACIST, people.HOSPITAL_CODE):
        agency("RegisterSigningKey", people.key_request(world, subject))
    for person_no in (people.PERSON_NO, people.STRANGER_NO):
        agency("RegisterPerson", people.person_request(person_no))
        people.activate(world, person_no)
    child = people.person_request(
        people.CHILD_NO,
        certificate_type="08",
        id_number="E12345678",
        born_on="2019-05-01",
        delegate_person_nos=[people.PERSON_NO],
    )
    agency("RegisterPerson", child)
    import_drugs(world, drug(AMLODIPINE), drug(IRBESARTAN))
    return hub


def prescription(hub: Hub, number: int = 1) -> Rx:
    """An uploaded prescription of PERSON_NO."""
    world: Any = hub
    return Rx(world, hospital_rx_no=f"RX{number}").uploaded()


def list_by_voucher(hub: Hub) -> dispensing_pb2.ListByVoucherResponse:
    """What the pharmacy is offered when the person shows his code there."""
    world: Any = hub
    reference = people.decoded(world, DOWNLOAD_TYPE, caller=people.PHARMACY).voucher_ref
    request = dispensing_pb2.ListByVoucherRequest(voucher_ref=reference)
    reply = people.accepted(hub.do(people.PHARMACY, "DispensingService/ListByVoucher", request))
    assert isinstance(reply, dispensing_pb2.ListByVoucherResponse)
    return reply


def download(hub: Hub, rx_no: str) -> None:
    """The pharmacy takes the hold."""
    offered = {offer.rx_no: offer.authorization_no for offer in list_by_voucher(hub).prescriptions}
    request = dispensing_pb2.DownloadPrescriptionRequest(authorization_no=offered[rx_no])
    people.accepted(hub.do(people.PHARMACY, "DispensingService/DownloadPrescription", request))
