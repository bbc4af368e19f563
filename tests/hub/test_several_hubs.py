"""Two hubs over one database: what one of them decides and writes binds the other, at whatever moment it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from erxhub.client import Refusal
from erxhub.core import events
from erxhub.core.keys import prescription_key
from erxhub.ledger.entry import Header
from erxhub.ports import ManualClock
from erxhub.v1 import dispensing_pb2, registry_pb2
from tests.chain import CONSULT, DOCTOR, DOWNLOAD, HOSPITAL_PHARMACIST, PURCHASE, Chain
from tests.ledger.test_postgres_hubs import until_waiting
from tests.live import HOSPITAL, MINUTE_MS, PERSON, PHARMACY, PHARMACY_B, REQUEST_IDS, START_MS
from tests.postgres import PostgresServer
from tests.races.ground import GatedStore, whole_log
from tests.several.ground import OneOfSeveral, Several, new_ledger, several_hubs

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def several(postgres_server: PostgresServer) -> AsyncIterator[Several]:
    async with several_hubs([new_ledger(postgres_server)] * 2) as running:
        yield running


async def outcome(call: Awaitable[Any]) -> str:
    """OK, or the code of the refusal."""
    try:
        await call
    except Refusal as refusal:
        return refusal.code
    return "OK"


@asynccontextmanager
async def decided_first(live: OneOfSeveral, call: Awaitable[Any]) -> AsyncIterator[asyncio.Task[str]]:
    """Inside the block the hub has decided the call and not written it; after it the call is over."""
    engine = live.hub.engine
    plain, gated = engine.store, GatedStore(engine.store)
    engine.store = gated  # type: ignore[assignment]
    try:
        with gated.shut():
            task = asyncio.ensure_future(outcome(call))
            await gated.arrived.wait()
            yield task
        await task
    finally:
        engine.store = plain


# --- what a decision reads and does not extend ----------------------------------------------------


@pytest.fixture(params=[True, False], ids=["commit-looks", "commit-would-not-look"])
def looks(request: pytest.FixtureRequest, several: Several) -> Iterator[bool]:
    """False: as it were if a commit did not look at what was read, which shows that the moment is the right one."""
    engines = [live.hub.engine for live in several.hubs]
    shared = [engine._decider._shared for engine in engines]
    if not request.param:
        for engine in engines:
            engine._decider._shared = False
    yield request.param
    for engine, before in zip(engines, shared, strict=True):
        engine._decider._shared = before


Step = Callable[[Several, Chain], Awaitable[Any]]


async def nothing(several: Several, chain: Chain) -> None:
    """Nothing has to be put right afterwards."""


async def upload(several: Several, chain: Chain) -> None:
    await (await several[0].hospital()).upload(**chain.upload_arguments())


async def precheck(several: Several, chain: Chain) -> None:
    await (await several[0].hospital()).precheck(prescription=chain.prescription)


async def download(several: Several, chain: Chain) -> None:
    await (await several[0].pharmacy()).download(authorization_no=chain.authorization_no)


async def cancel_visit(several: Several, chain: Chain) -> None:
    await (await several[1].hospital()).cancel_encounter(encounter_id=chain.encounter_id, reason="退号")


def staff(code: str, status: Any) -> Step:
    async def change(several: Several, chain: Chain) -> None:
        agency = await several[1].agency()
        await agency.change_practitioner_status(practitioner_code=code, status=status, case_no="case-1")

    return change


def agreement(code: str, status: Any) -> Step:
    async def change(several: Several, chain: Chain) -> None:
        agency = await several[1].agency()
        kind = registry_pb2.AGREEMENT_KIND_BASE
        await agency.change_agreement_status(institution_code=code, kind=kind, status=status, case_no="case-1")

    return change


def person(status: Any) -> Step:
    async def change(several: Several, chain: Chain) -> None:
        agency = await several[1].agency()
        await agency.change_person_status(person_no=PERSON, status=status, reason="case-1")

    return change


async def freeze(several: Several, chain: Chain) -> None:
    await (await several[1].agency()).freeze_prescription(rx_no=chain.rx_no, case_no="case-1")


@dataclass(frozen=True)
class Skew:
    """A call that hub 1 decides, what hub 2 does before it is written, and what has to become of the call."""

    name: str
    until: str
    call: Step
    rival: Step
    after: Step
    expected: str
    same_stream: bool = False


_STAFF, _AGREEMENT, _PERSON = (
    (registry_pb2.PRACTITIONER_STATUS_SUSPENDED, registry_pb2.PRACTITIONER_STATUS_ACTIVE),
    (registry_pb2.AGREEMENT_STATUS_SUSPENDED, registry_pb2.AGREEMENT_STATUS_ACTIVE),
    (registry_pb2.PERSON_STATUS_PAUSED, registry_pb2.PERSON_STATUS_ACTIVE),
)
SKEWS = (
    Skew("visit cancelled, upload", "prechecked", upload, cancel_visit, nothing, "ENCOUNTER_STATE"),
    Skew("visit cancelled, precheck", "diagnosed", precheck, cancel_visit, nothing, "ENCOUNTER_STATE"),
    Skew("doctor, upload", "prechecked", upload, staff(DOCTOR, _STAFF[0]), staff(DOCTOR, _STAFF[1]), "DR_NOT_ALLOWED"),
    Skew(
        *("pharmacist, upload", "prechecked", upload),
        *(staff(HOSPITAL_PHARMACIST, _STAFF[0]), staff(HOSPITAL_PHARMACIST, _STAFF[1]), "RX_NO_HOSP_REVIEW"),
    ),
    Skew(
        *("agreement, precheck", "diagnosed", precheck),
        *(agreement(HOSPITAL, _AGREEMENT[0]), agreement(HOSPITAL, _AGREEMENT[1]), "AGR_INACTIVE"),
    ),
    Skew(
        *("agreement, download", "listed", download),
        *(agreement(PHARMACY, _AGREEMENT[0]), agreement(PHARMACY, _AGREEMENT[1]), "AGR_INACTIVE"),
    ),
    Skew("person, upload", "prechecked", upload, person(_PERSON[0]), person(_PERSON[1]), "PSN_INACTIVE"),
    Skew("frozen, download", "listed", download, freeze, nothing, "RX_NOT_EFFECTIVE", same_stream=True),
)


@pytest.mark.parametrize("skew", SKEWS, ids=lambda skew: skew.name)
async def test_what_a_decision_read_still_holds_when_it_is_written(several: Several, looks: bool, skew: Skew) -> None:
    chain = Chain(several[0])
    if skew.until == "listed":
        await chain.uploaded()
    await getattr(chain, skew.until)()
    async with decided_first(several[0], skew.call(several, chain)) as call:
        await skew.rival(several, chain)
    assert call.result() == (skew.expected if looks or skew.same_stream else "OK")
    await skew.after(several, chain)


async def test_visit_is_not_cancelled_over_a_prescription_that_came_meanwhile(several: Several, looks: bool) -> None:
    """The list of the visit's prescriptions is read to its end: another hub adds to it before the cancellation."""
    chain = await Chain(several[0]).diagnosed()
    hospital = await several[0].hospital()
    cancelling = hospital.cancel_encounter(encounter_id=chain.encounter_id, reason="退号")
    async with decided_first(several[0], cancelling) as call:
        await replace(chain, live=several[1]).uploaded()
    assert call.result() == ("ENCOUNTER_STATE" if looks else "OK")


async def test_visit_is_not_cancelled_over_a_prescription_that_took_effect(several: Several, looks: bool) -> None:
    """The prescription is in the list, and its state is read without being extended."""
    chain = await Chain(several[0]).prechecked()
    hospital = await several[0].hospital()
    cancelling = hospital.cancel_encounter(encounter_id=chain.encounter_id, reason="退号")
    async with decided_first(several[0], cancelling) as call:
        await replace(chain, live=several[1]).uploaded()
    assert call.result() == ("ENCOUNTER_STATE" if looks else "OK")


async def test_call_with_a_certificate_that_another_hub_revoked_meanwhile_is_refused(
    several: Several, looks: bool
) -> None:
    identity = several[0].identity("channel", "demo-app")
    channel = await several[0].connect("channel", "demo-app", identity)
    issuing = channel.issue_voucher(person_no=PERSON, business_type=CONSULT)
    async with decided_first(several[0], issuing) as call:
        agency = await several[1].agency("000000")
        await agency.revoke_certificate(certificate_pem=identity.cert_pem, reason="私钥泄露")
    assert call.result() == ("CERT_REVOKED" if looks else "OK")


async def test_prescription_signed_with_a_key_that_another_hub_revoked_meanwhile_is_refused(
    postgres_server: PostgresServer,
) -> None:
    async with several_hubs([new_ledger(postgres_server)] * 2) as several:
        chain = await Chain(several[0]).prechecked()
        async with decided_first(several[0], upload(several, chain)) as call:
            agency = await several[1].agency()
            await agency.revoke_certificate(key_id=several[0].key(DOCTOR, HOSPITAL).key_id, reason="私钥泄露")
        assert call.result() == "SIG_CERT"
        assert (await (await several[1].auditor()).verify_ledger()).verified


# --- what is used up, held or taken ---------------------------------------------------------------


async def test_voucher_code_is_used_up_once(several: Several) -> None:
    code = await Chain(several[0]).code(DOWNLOAD)
    rivals = [
        await several[hub].pharmacy(pharmacy) for hub, pharmacy in ((0, PHARMACY), (1, PHARMACY_B), (0, PHARMACY_B))
    ]
    verify = (one.verify_voucher(voucher_code=code, business_type=DOWNLOAD) for one in rivals)
    assert sorted(await asyncio.gather(*map(outcome, verify))) == ["OK", "VCH_REPLAYED", "VCH_REPLAYED"]


async def test_authorisation_number_is_good_through_any_hub_and_once(several: Several) -> None:
    chain = await (await Chain(several[0]).uploaded()).listed()
    other = await several[1].pharmacy(PHARMACY_B)
    assert await outcome(other.download(authorization_no=chain.authorization_no)) != "OK"
    async with decided_first(several[0], download(several, chain)) as call:
        held = await (await several[1].pharmacy()).download(authorization_no=chain.authorization_no)
    assert held.prescription.payload
    assert call.result() != "OK"


async def test_hold_binds_the_other_hub(several: Several) -> None:
    chain = await Chain(several[0]).uploaded()
    rival = await replace(chain, live=several[1], pharmacy_code=PHARMACY_B).listed()
    await chain.listed()
    pharmacy = await several[1].pharmacy(PHARMACY_B)
    async with decided_first(several[0], download(several, chain)) as call:
        assert await outcome(pharmacy.download(authorization_no=rival.authorization_no)) == "OK"
    assert call.result() == "ORDER_ALREADY_HELD"


async def test_withdrawal_binds_the_other_hub(several: Several) -> None:
    chain = await (await Chain(several[0]).uploaded()).listed()
    async with decided_first(several[0], download(several, chain)) as call:
        hospital = await several[1].hospital()
        await hospital.revoke(rx_no=chain.rx_no, doctor_code=DOCTOR, reason="撤回")
    assert call.result() == "RX_NOT_EFFECTIVE"


async def test_repeated_request_gets_its_first_reply_from_the_other_hub(several: Several) -> None:
    request_id = REQUEST_IDS.new()
    channels = [await several[hub].channel() for hub in range(2)]
    asked = {"person_no": PERSON, "business_type": CONSULT, "request_id": request_id}
    async with decided_first(several[0], channels[0].issue_voucher(**asked)) as call:
        first = await channels[1].issue_voucher(**asked)
    assert call.result() == "OK"
    again = await channels[0].issue_voucher(**asked)
    assert again.SerializeToString(deterministic=True) == first.SerializeToString(deterministic=True)


async def test_reversal_that_overtakes_its_original_through_another_hub_binds_it(several: Several) -> None:
    chain = await Chain(several[0]).quoted()
    request_id = REQUEST_IDS.new()
    settling = chain.settle(request_id=request_id, voucher_ref=await chain.reference(PURCHASE))
    async with decided_first(several[0], settling) as call:
        reversed_ = await (await several[1].pharmacy()).reverse_settlement(original_request_id=request_id)
        assert reversed_.target == dispensing_pb2.REVERSAL_TARGET_NONE
    assert call.result() == "SETL_TERMINAL"


async def test_trace_code_is_sold_once(several: Several) -> None:
    chains = [await Chain(several[0]).settled(), await Chain(several[1], pharmacy_code=PHARMACY_B).settled()]
    arguments = [chain.dispense_arguments() for chain in chains]
    for mine, other in zip(arguments[0]["lots"], arguments[1]["lots"], strict=True):
        other.trace_codes[:] = mine.trace_codes
    first = await several[0].pharmacy()
    async with decided_first(several[0], first.dispense(**arguments[0])) as call:
        assert await outcome((await several[1].pharmacy(PHARMACY_B)).dispense(**arguments[1])) == "OK"
    assert call.result() == "TRACE_DUPLICATE"


# --- watches --------------------------------------------------------------------------------------


def hospital_feed_of(live: OneOfSeveral, cursor: str = "") -> AsyncIterator[Any]:
    """Every message of the hospital's watch from a cursor on."""

    async def told() -> AsyncIterator[Any]:
        async for message in (await live.hospital()).watch(cursor=cursor, from_start=not cursor):
            yield message

    return told()


async def until_told(watch: AsyncIterator[Any], rx_no: str, event: str) -> list[Any]:
    """The messages up to one that names the event of the prescription."""
    found = []
    async with asyncio.timeout(20):
        async for message in watch:
            found.append(message)
            if message.rx_no == rx_no and event in message.events:
                return found
    raise AssertionError("the watch ended")


async def test_watch_hears_of_what_another_hub_wrote(several: Several) -> None:
    watch = hospital_feed_of(several[1])
    first = await Chain(several[0]).prechecked()
    await until_told(watch, first.rx_no, "prescription.prechecked")
    # From here on the watch waits, and only the other hub writes.
    second = await Chain(several[0]).uploaded()
    await until_told(watch, second.rx_no, "prescription.effective")
    await watch.aclose()  # type: ignore[attr-defined]


async def test_only_watches_that_are_concerned_wake(several: Several) -> None:
    engine = several[1].hub.engine
    concerned, other = engine.watches.subscribe(HOSPITAL), engine.watches.subscribe(PHARMACY_B)
    try:
        chain = await Chain(several[0]).prechecked()
        async with asyncio.timeout(10):
            await concerned.wait()
        assert not other.is_set()
        rows = await several.stores[1].listing("feed", HOSPITAL.encode(), 0, 1, newest_first=True)
        assert rows[0].stream_key == prescription_key(chain.rx_no)
    finally:
        engine.watches.unsubscribe(HOSPITAL, concerned)
        engine.watches.unsubscribe(PHARMACY_B, other)


async def test_watch_goes_on_through_another_hub_with_nothing_missed_and_nothing_twice(
    postgres_server: PostgresServer,
) -> None:
    async with several_hubs([new_ledger(postgres_server)] * 2) as several:
        chains = [await Chain(several[hub]).uploaded() for hub in (0, 1, 0)]
        watch = hospital_feed_of(several[1])
        heard = await until_told(watch, chains[1].rx_no, "prescription.prechecked")
        # That hub dies with what it had on its way; meanwhile the other one goes on.
        await several[1].hub.core.abandon()
        await watch.aclose()  # type: ignore[attr-defined]
        chains.append(await Chain(several[0]).uploaded())
        heard += await until_told(
            hospital_feed_of(several[0], heard[-1].cursor), chains[-1].rx_no, "prescription.effective"
        )
        steps = [(message.rx_no, message.version) for message in heard]
        assert len(set(steps)) == len(steps)
        told = [(message.rx_no, event) for message in heard for event in message.events]
        for chain in chains:
            # Every event of the stream, in its order.
            entries = await several.stores[0].entries(prescription_key(chain.rx_no), 0, 100)
            names = [events.BY_NUMBER[Header.decode(entry.header).type].name for entry in entries]
            assert [event for rx_no, event in told if rx_no == chain.rx_no] == names


async def test_watch_catches_up_after_the_connection_that_hears_was_lost(
    several: Several, postgres_server: PostgresServer
) -> None:
    watch = hospital_feed_of(several[1])
    first = await Chain(several[0]).prechecked()
    await until_told(watch, first.rx_no, "prescription.prechecked")
    sequencer = several.stores[1]._sequencer
    connection = sequencer._connection
    assert connection is not None
    connection.terminate()
    second = await Chain(several[0]).uploaded()
    await until_told(watch, second.rx_no, "prescription.effective")
    assert sequencer._connection is not connection
    await watch.aclose()  # type: ignore[attr-defined]


# --- clocks ---------------------------------------------------------------------------------------


async def test_hub_whose_clock_is_behind_records_nothing_before_what_it_builds_on(
    postgres_server: PostgresServer,
) -> None:
    async with several_hubs([new_ledger(postgres_server)] * 2) as several:
        several[1].hub.engine.clock = ManualClock(START_MS)
        several[0].advance(4 * MINUTE_MS)
        chain = Chain(several[0])
        await chain.diagnosed()
        # Each step through the other hub than the step before.
        chain.live = several[1]
        await chain.prechecked()
        chain.live = several[0]
        await chain.uploaded()
        chain.live = several[1]
        await chain.held()
        chain.live = several[0]
        await chain.review()
        chain.live = several[1]
        await chain.quote_again()
        chain.settlement_id = (await chain.settle()).settlement_id
        chain.live = several[0]
        await chain.dispensed()
        auditor = await several[1].auditor()
        assert (await auditor.verify_ledger()).verified
        trace = await auditor.trace(rx_no=chain.rx_no, verify=True)
        assert "GAP_ORDER" not in str(trace)
        entries = await several.stores[0].entries(prescription_key(chain.rx_no), 0, 100)
        recorded = [Header.decode(entry.header).recorded_at_ms for entry in entries]
        assert recorded == sorted(recorded)


async def test_deadline_that_is_over_elsewhere_is_over_for_a_hub_whose_clock_is_behind(
    postgres_server: PostgresServer,
) -> None:
    """The person was touched by a hub that is ahead: by then the code had run out, and this hub loaded it before."""
    async with several_hubs([new_ledger(postgres_server)] * 2) as several:
        several[1].hub.engine.clock = ManualClock(START_MS)
        chain = Chain(several[1])
        code = await chain.code(DOWNLOAD)
        several[0].advance(4 * MINUTE_MS)
        for status in _PERSON:
            await person(status)(replace(several, hubs=[several[0]]), chain)
        pharmacy = await several[1].pharmacy()
        assert await outcome(pharmacy.verify_voucher(voucher_code=code, business_type=DOWNLOAD)) == "VCH_EXPIRED"
        assert (await (await several[1].auditor()).verify_ledger()).verified


# --- streams that another hub is just extending ---------------------------------------------------


async def test_command_whose_stream_stays_taken_waits_for_it_alone(several: Several) -> None:
    chain = await (await Chain(several[0]).uploaded()).listed()
    engine, channel = several[0].hub.engine, await several[0].channel()
    before = engine.counters.busy
    other = await asyncpg.connect(several.stores[0]._writer._url)
    transaction = other.transaction()
    await transaction.start()
    await other.execute(
        "SELECT FROM erxhub.state t JOIN erxhub.stream s ON s.shard = t.shard AND s.no = t.stream"
        " WHERE s.key = $1 FOR UPDATE OF t",
        prescription_key(chain.rx_no),
    )
    call = asyncio.ensure_future(outcome(download(several, chain)))
    await until_waiting(other)
    assert engine.counters.busy == before + 2
    await transaction.rollback()
    await other.close()
    assert await call == "OK"
    assert engine.counters.busy == before + 2
    assert await outcome(channel.issue_voucher(person_no=PERSON, business_type=CONSULT)) == "OK"


async def test_whatever_happened_here_verifies_and_both_hubs_tell_the_same(several: Several) -> None:
    logs = [await whole_log(store) for store in several.stores]
    assert logs[0] == logs[1]
    for live in several.hubs:
        assert (await (await live.auditor()).verify_ledger()).verified
