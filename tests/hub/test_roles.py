"""Who may do what: every kind of caller against every RPC, and every relation to a prescription against the RPCs on it.

The tables are written out, so that a change of an answer shows as a change here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
import pytest_asyncio

from erxhub.client import Connection, Refusal
from erxhub.client.failures import refusal_of
from erxhub.core.events import BY_NUMBER
from erxhub.ledger.entry import EntryKind, Header
from erxhub.rpc.methods import METHODS, Method
from erxhub.v1 import common_pb2, dispensing_pb2, events_pb2, registry_pb2
from tests.chain import DOCTOR, DOWNLOAD, PICK_UP, Chain
from tests.live import (
    AGENCY,
    AUDITOR,
    CHANNEL,
    EMPLOYEE,
    HOSPITAL,
    HOSPITAL_B,
    PERSON,
    PHARMACY,
    PHARMACY_B,
    Live,
    live_hub,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live() -> AsyncIterator[Live]:
    async with live_hub() as running:
        yield running


# ---- kind of caller × RPC ----

KINDS = {
    "hospital": HOSPITAL,
    "pharmacy": PHARMACY,
    "channel": CHANNEL,
    "agency": AGENCY,
    "auditor": AUDITOR,
    "supervisor": "330000",
    "mirror": "mirror-1",
    "hub": "hub-2",
    "witness": "witness-1",
    "sandbox": "sandbox-1",
}
"""Every role that a certificate may have."""

BY_SERVICE = {
    "RegistryService": {"agency"},
    "VoucherService": {"channel"},
    "EncounterService": {"hospital"},
    "PrescribingService": {"hospital"},
    "PatientService": {"channel"},
    "DispensingService": {"pharmacy"},
    "AuditService": {"auditor"},
}
BESIDES = {
    "RegistryService/ListCatalog": {"hospital", "pharmacy", "channel", "auditor"},
    "VoucherService/DeactivateVoucher": {"agency"},
    "VoucherService/RevokeVoucher": {"agency"},
    "AuditService/StreamEntries": {"mirror"},
    "AuditService/VerifyLedger": {"mirror"},
    "AuditService/GetCheckpoint": {"mirror"},
    "AuditService/ProveInclusion": {"mirror"},
    "AuditService/ProveConsistency": {"mirror"},
    "AuditService/ListCheckpoints": {"mirror"},
}
INSTEAD = {"VoucherService/VerifyVoucher": {"hospital", "pharmacy"}}


def admitted(name: str) -> set[str]:
    """The kinds of caller that may make a call."""
    return INSTEAD.get(name) or BY_SERVICE[name.partition("/")[0]] | BESIDES.get(name, set())


async def test_the_published_rules_admit_whom_this_table_admits() -> None:
    assert {name: set(method.callers) for name, method in METHODS.items()} == {name: admitted(name) for name in METHODS}


async def call_empty(connection: Connection, method: Method) -> str:
    """Send the method an empty request; "OK", or the code of the refusal."""
    channel = connection.channel
    path, empty = f"/{method.service}/{method.rpc}", method.request().SerializeToString()
    try:
        if method.streams_in and method.streams_out:
            both = channel.stream_stream(path)(iter([empty]), timeout=10)
            # The end of the stream tells how it ended; what it answered before does not matter.
            if await both.code() is not grpc.StatusCode.OK:
                raise await _error_of(both)
        elif method.streams_in:
            await channel.stream_unary(path)(iter([empty]), timeout=10)
        elif method.streams_out:
            call = channel.unary_stream(path)(empty, timeout=10)
            # It is open once its headers are there; what it would tell does not matter.
            await call.initial_metadata()
            if call.done():
                raise await _error_of(call)
            call.cancel()
        else:
            await channel.unary_unary(path)(empty, timeout=10)
    except grpc.aio.AioRpcError as error:
        refusal = refusal_of(error)
        if refusal is None:
            raise
        return refusal.code
    return "OK"


async def _error_of(call: Any) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
    )


@pytest.mark.parametrize("kind", KINDS)
async def test_a_caller_is_refused_every_rpc_that_is_not_its_own_and_each_refusal_is_recorded(
    live: Live, kind: str
) -> None:
    connection = Connection(live.target, live.identity(kind, KINDS[kind]))
    before = await live.hub.store.last_position()
    async with connection:
        answers = {name: await call_empty(connection, method) for name, method in METHODS.items()}
    refused = {name for name, code in answers.items() if code == "ROLE_NOT_ALLOWED"}
    assert refused == {name for name in METHODS if kind not in admitted(name)}
    recorded = []
    for entry in await live.hub.store.log(before, 10_000):
        header = Header.decode(entry.header)
        assert header.actor == f"{kind}/{KINDS[kind]}"
        if header.kind == EntryKind.REFUSAL and entry.payload is not None:
            payload = events_pb2.CommandRefused.FromString(entry.payload)
            assert BY_NUMBER[header.type].name == "command.refused"
            assert payload.caller_kind == kind
            if payload.code == "ROLE_NOT_ALLOWED":
                recorded.append(payload.method)
    assert recorded == [name for name in METHODS if name in refused]


# ---- relation × RPC: pharmacies ----


async def outcome(call: Awaitable[Any]) -> str:
    """OK, or the code of the refusal."""
    try:
        await call
    except Refusal as refusal:
        return refusal.code
    return "OK"


@dataclasses.dataclass(frozen=True)
class PharmacyCall:
    """`before` brings the holder to where the call is right; `act` makes it as the pharmacy of the given chain."""

    before: Callable[[Chain], Awaitable[Any]]
    act: Callable[[Chain], Awaitable[Any]]


async def _held(chain: Chain) -> None:
    await chain.held()


async def _reviewed(chain: Chain) -> None:
    await chain.reviewed()


async def _quoted(chain: Chain) -> None:
    await chain.quoted()


async def _settled(chain: Chain) -> None:
    await chain.settled()


async def _dispensed(chain: Chain) -> None:
    await chain.dispensed()


async def _to_deliver(chain: Chain) -> None:
    await chain.settled()
    await chain.delivery_requested()
    await chain.dispensed()


async def _on_the_way(chain: Chain) -> None:
    await _to_deliver(chain)
    await chain.delivery_started()


async def _arrived(chain: Chain) -> None:
    await chain.arrived()


async def _download_again(chain: Chain) -> None:
    """With a number of its own where it has one, otherwise with the holder's, which is used up."""
    if chain.pharmacy_code == PHARMACY:
        await chain.listed()
    pharmacy = await chain.live.pharmacy(chain.pharmacy_code)
    await pharmacy.download(authorization_no=chain.authorization_no)


async def _release(chain: Chain) -> None:
    await (await chain.live.pharmacy(chain.pharmacy_code)).release(rx_no=chain.rx_no)


async def _undo(chain: Chain) -> None:
    pharmacy = await chain.live.pharmacy(chain.pharmacy_code)
    await pharmacy.undo_settlement(rx_no=chain.rx_no, settlement_id=chain.settlement_id, reason="退单")


async def _dispense(chain: Chain) -> None:
    await (await chain.live.pharmacy(chain.pharmacy_code)).dispense(**chain.dispense_arguments())


async def _void(chain: Chain) -> None:
    await (await chain.live.pharmacy(chain.pharmacy_code)).void_dispense(rx_no=chain.rx_no, reason="缺货")


async def _hand_over(chain: Chain) -> None:
    pharmacy = await chain.live.pharmacy(chain.pharmacy_code)
    await pharmacy.hand_over(
        rx_no=chain.rx_no,
        staff_code=chain.dispenser,
        voucher_ref=await chain.reference(PICK_UP),
        seal_key=chain.live.key(chain.pharmacy_code, chain.pharmacy_code),
    )


async def _on_the_way_step(chain: Chain) -> None:
    await chain.delivery_step(dispensing_pb2.DELIVERY_STEP_ON_THE_WAY)


PHARMACY_CALLS = {
    "DownloadPrescription": PharmacyCall(_held, _download_again),
    "ReleaseOrder": PharmacyCall(_held, _release),
    "ReviewPrescription": PharmacyCall(_held, lambda chain: chain.review()),
    "QuoteSettlement": PharmacyCall(_reviewed, lambda chain: chain.quote_again()),
    "Settle": PharmacyCall(_quoted, lambda chain: chain.settle()),
    "UndoSettlement": PharmacyCall(_settled, _undo),
    "Dispense": PharmacyCall(_settled, _dispense),
    "VoidDispense": PharmacyCall(_settled, _void),
    "HandOver": PharmacyCall(_dispensed, _hand_over),
    "StartDelivery": PharmacyCall(_to_deliver, lambda chain: chain.delivery_started()),
    "UpdateDelivery": PharmacyCall(_on_the_way, _on_the_way_step),
    "SignDelivery": PharmacyCall(_arrived, lambda chain: chain.sign()),
}

# A pharmacy that once held it, or may download it, is told that it does not hold it now; one without any relation
# learns nothing. Once everything is out the authorisations have ended, and with them that relation.
PHARMACY_TABLE = {
    # RPC: (holder, former holder, live authorisation only, unrelated)
    "DownloadPrescription": ("OK", "AUTH_REUSED", "ORDER_ALREADY_HELD", "AUTH_REUSED"),
    "ReleaseOrder": ("OK", "ORDER_HOLD_LOST", "ORDER_HOLD_LOST", "RX_UNKNOWN"),
    "ReviewPrescription": ("OK", "ORDER_HOLD_LOST", "ORDER_HOLD_LOST", "RX_UNKNOWN"),
    "QuoteSettlement": ("OK", "ORDER_HOLD_LOST", "ORDER_HOLD_LOST", "RX_UNKNOWN"),
    "Settle": ("OK", "ORDER_HOLD_LOST", "ORDER_HOLD_LOST", "RX_UNKNOWN"),
    "UndoSettlement": ("OK", "SETL_TERMINAL", "SETL_TERMINAL", "RX_UNKNOWN"),
    "Dispense": ("OK", "ORDER_HOLD_LOST", "ORDER_HOLD_LOST", "RX_UNKNOWN"),
    "VoidDispense": ("OK", "SETL_REQUIRED", "SETL_REQUIRED", "RX_UNKNOWN"),
    "HandOver": ("OK", "ORDER_HOLD_LOST", "RX_UNKNOWN", "RX_UNKNOWN"),
    "StartDelivery": ("OK", "ORDER_HOLD_LOST", "RX_UNKNOWN", "RX_UNKNOWN"),
    "UpdateDelivery": ("OK", "DLV_NOT_OUT", "RX_UNKNOWN", "RX_UNKNOWN"),
    "SignDelivery": ("OK", "DLV_NOT_OUT", "RX_UNKNOWN", "RX_UNKNOWN"),
}

RELATIONS = ("holder", "former holder", "authorised", "unrelated")


async def related(live: Live, relation: str, before: Callable[[Chain], Awaitable[Any]]) -> Chain:
    """A prescription that PHARMACY brought to some state, as seen by a pharmacy of the given relation."""
    chain = await Chain(live).uploaded()
    other = dataclasses.replace(chain, pharmacy_code=PHARMACY_B)
    if relation == "former holder":
        await other.held()
        await _release(other)
    elif relation == "authorised":
        await other.listed()
    await before(chain)
    if relation == "holder":
        return chain
    known = {"authorization_no": other.authorization_no} if relation == "authorised" else {}
    return dataclasses.replace(chain, pharmacy_code=PHARMACY_B, **known)


@pytest.mark.parametrize("rpc", PHARMACY_CALLS)
async def test_a_pharmacy_is_answered_by_its_relation_to_the_prescription(live: Live, rpc: str) -> None:
    call = PHARMACY_CALLS[rpc]
    answers = [await outcome(call.act(await related(live, relation, call.before))) for relation in RELATIONS]
    assert tuple(answers) == PHARMACY_TABLE[rpc]


async def test_a_reversal_reaches_only_the_requests_of_its_own_caller(live: Live) -> None:
    chain = await Chain(live).quoted()
    await chain.settle(request_id="settle-of-the-holder")
    other = await live.pharmacy(PHARMACY_B)
    reversed_ = await other.reverse_settlement(original_request_id="settle-of-the-holder")
    assert reversed_.target == dispensing_pb2.REVERSAL_TARGET_NONE
    seen = await (await live.hospital()).get(rx_no=chain.rx_no)
    assert [order.settlement for order in seen.orders] == [common_pb2.SETTLEMENT_STATUS_SETTLED]
    holder = await live.pharmacy()
    reversed_ = await holder.reverse_settlement(original_request_id="settle-of-the-holder")
    assert reversed_.target == dispensing_pb2.REVERSAL_TARGET_SETTLEMENT


async def test_a_qr_value_is_good_at_the_pharmacy_that_was_shown_it(live: Live) -> None:
    chain = await Chain(live).uploaded()
    shown = await (await live.channel()).make_qr(person_no=PERSON, rx_no=chain.rx_no)
    resolved = await (await live.pharmacy()).resolve_qr(rx_qr=shown.rx_qr)
    other = await live.pharmacy(PHARMACY_B)
    assert await outcome(other.resolve_qr(rx_qr=shown.rx_qr)) == "QR_INVALID"
    assert await outcome(other.download(rx_token=resolved.rx_token)) == "AUTH_REUSED"
    assert await outcome((await live.pharmacy()).download(rx_token=resolved.rx_token)) == "OK"


async def test_a_voucher_reference_is_good_at_the_institution_that_verified_it(live: Live) -> None:
    reference = await (await Chain(live).uploaded()).reference(DOWNLOAD)
    other = await live.pharmacy(PHARMACY_B)
    assert await outcome(other.list_by_voucher(voucher_ref=reference)) == "VCH_INVALID"


# ---- relation × RPC: hospitals ----


async def _diagnose(client: Any, chain: Chain, rpc: str, **changes: Any) -> None:
    doctor_key = chain.live.key(DOCTOR, HOSPITAL)
    await getattr(client, rpc)(
        encounter_id=chain.encounter_id,
        doctor_code=DOCTOR,
        diagnoses=chain.written().diagnoses,
        doctor_key=doctor_key,
        **changes,
    )


HOSPITAL_CALLS: dict[str, tuple[Callable[[Chain], Awaitable[Any]], Callable[[Any, Chain], Awaitable[Any]]]] = {
    "StartEncounter": (
        lambda chain: chain.registered(),
        lambda client, chain: client.start_encounter(encounter_id=chain.encounter_id, doctor_code=DOCTOR),
    ),
    "AmendDiagnosis": (
        lambda chain: chain.diagnosed(),
        lambda client, chain: _diagnose(client, chain, "amend_diagnosis", reason="更正"),
    ),
    "CloseEncounter": (
        lambda chain: chain.diagnosed(),
        lambda client, chain: client.close_encounter(encounter_id=chain.encounter_id),
    ),
    "CancelEncounter": (
        lambda chain: chain.diagnosed(),
        lambda client, chain: client.cancel_encounter(encounter_id=chain.encounter_id),
    ),
    "PrecheckPrescription": (
        lambda chain: chain.diagnosed(),
        lambda client, chain: client.precheck(prescription=chain.prescription),
    ),
    "UploadPrescription": (
        lambda chain: chain.prechecked(),
        lambda client, chain: client.upload(**chain.upload_arguments()),
    ),
    "RevokePrescription": (
        lambda chain: chain.uploaded(),
        lambda client, chain: client.revoke(rx_no=chain.rx_no, doctor_code=DOCTOR, reason="用药调整"),
    ),
    "GetPrescription": (
        lambda chain: chain.uploaded(),
        lambda client, chain: client.get(rx_no=chain.rx_no),
    ),
}
HOSPITAL_TABLE = {
    # RPC: (issuer, other hospital)
    "StartEncounter": ("OK", "ENCOUNTER_STATE"),
    "AmendDiagnosis": ("OK", "ENCOUNTER_STATE"),
    "CloseEncounter": ("OK", "ENCOUNTER_STATE"),
    "CancelEncounter": ("OK", "ENCOUNTER_STATE"),
    "PrecheckPrescription": ("OK", "INST_IMPERSONATION"),
    "UploadPrescription": ("OK", "RX_UNKNOWN"),
    "RevokePrescription": ("OK", "RX_UNKNOWN"),
    "GetPrescription": ("OK", "RX_UNKNOWN"),
}


@pytest.mark.parametrize("rpc", HOSPITAL_CALLS)
async def test_a_hospital_acts_on_its_own_visits_and_prescriptions_only(live: Live, rpc: str) -> None:
    before, act = HOSPITAL_CALLS[rpc]
    answers = []
    for code in (HOSPITAL, HOSPITAL_B):
        chain = Chain(live)
        await before(chain)
        answers.append(await outcome(act(await live.hospital(code), chain)))
    assert tuple(answers) == HOSPITAL_TABLE[rpc]


async def test_another_doctor_of_the_issuer_may_not_revoke(live: Live) -> None:
    chain = await Chain(live).uploaded()
    hospital = await live.hospital()
    asked = hospital.revoke(rx_no=chain.rx_no, doctor_code="D330100990002", reason="用药调整")
    assert await outcome(asked) == "RX_UNDO_DENIED"


async def test_lists_and_watches_show_each_institution_its_own(live: Live) -> None:
    chain = await Chain(live).held()
    assert chain.rx_no not in [
        row.rx_no for row in (await (await live.hospital(HOSPITAL_B)).list_prescriptions()).prescriptions
    ]
    at_b = await Chain(live, pharmacy_code=PHARMACY_B).held()
    told = []
    async for message in (await live.pharmacy(PHARMACY_B)).watch(from_start=True):
        told.append(message.rx_no)
        if message.rx_no == at_b.rx_no:
            break
    assert chain.rx_no not in told


# ---- relation × RPC: channels ----

OTHER_CHANNEL = "other-app"

CHANNEL_CALLS: dict[str, tuple[Callable[[Chain], Awaitable[Any]], Callable[..., Awaitable[Any]]]] = {
    "ListMyPrescriptions": (
        lambda chain: chain.uploaded(),
        lambda client, chain, person_no: client.list_prescriptions(person_no=person_no),
    ),
    "ChoosePharmacy": (
        lambda chain: chain.uploaded(),
        lambda client, chain, person_no: client.choose_pharmacy(
            person_no=person_no, rx_no=chain.rx_no, pharmacy_code=PHARMACY
        ),
    ),
    "CancelOrder": (
        lambda chain: chain.held(),
        lambda client, chain, person_no: client.cancel_order(
            person_no=person_no, rx_no=chain.rx_no, pharmacy_code=PHARMACY
        ),
    ),
    "MakeQr": (
        lambda chain: chain.uploaded(),
        lambda client, chain, person_no: client.make_qr(person_no=person_no, rx_no=chain.rx_no),
    ),
    "RequestDelivery": (
        lambda chain: chain.settled(),
        lambda client, chain, person_no: client.request_delivery(
            person_no=person_no, rx_no=chain.rx_no, pharmacy_code=PHARMACY, address="示例路", phone="000-0000000"
        ),
    ),
    "ListAccesses": (
        lambda chain: chain.held(),
        lambda client, chain, person_no: client.list_accesses(person_no=person_no, rx_no=chain.rx_no),
    ),
}
CHANNEL_TABLE = {
    # RPC: (the person's own channel, the same channel for somebody else, a channel where he is not activated)
    "ListMyPrescriptions": ("OK", "OK", "VCH_REVOKED"),
    "ChoosePharmacy": ("OK", "RX_UNKNOWN", "VCH_REVOKED"),
    "CancelOrder": ("OK", "RX_UNKNOWN", "VCH_REVOKED"),
    "MakeQr": ("OK", "RX_UNKNOWN", "VCH_REVOKED"),
    "RequestDelivery": ("OK", "RX_UNKNOWN", "VCH_REVOKED"),
    "ListAccesses": ("OK", "RX_UNKNOWN", "VCH_REVOKED"),
}


@pytest.mark.parametrize("rpc", CHANNEL_CALLS)
async def test_a_channel_acts_for_a_person_activated_there_on_his_own_prescriptions(live: Live, rpc: str) -> None:
    before, act = CHANNEL_CALLS[rpc]
    answers = []
    for channel_id, person_no in ((CHANNEL, PERSON), (CHANNEL, EMPLOYEE), (OTHER_CHANNEL, PERSON)):
        chain = Chain(live)
        await before(chain)
        answers.append(await outcome(act(await live.channel(channel_id), chain, person_no)))
    assert tuple(answers) == CHANNEL_TABLE[rpc]


async def test_a_list_for_somebody_else_shows_nothing_of_the_person(live: Live) -> None:
    chain = await Chain(live).uploaded()
    listed = await (await live.channel()).list_prescriptions(person_no=EMPLOYEE)
    assert chain.rx_no not in [row.rx_no for row in listed.prescriptions]


# ---- relation × RPC: agencies ----

AGENCY_CALLS: dict[str, Callable[[Any, Chain], Awaitable[Any]]] = {
    "GetInstitution": lambda client, chain: client.get_institution(institution_code=PHARMACY),
    "ListPractitioners": lambda client, chain: client.list_practitioners(institution_code=PHARMACY),
    "GetPractitioner": lambda client, chain: client.get_practitioner(practitioner_code=DOCTOR),
    "GetPerson": lambda client, chain: client.get_person(person_no=PERSON),
    "FreezePrescription": lambda client, chain: client.freeze_prescription(rx_no=chain.rx_no, case_no="CASE-1"),
    "UnfreezePrescription": lambda client, chain: client.unfreeze_prescription(rx_no=chain.rx_no, case_no="CASE-1"),
    "EraseContent": lambda client, chain: client.erase_content(rx_no=chain.rx_no, legal_basis="保存期满"),
    "ChangePersonStatus": lambda client, chain: client.change_person_status(
        person_no="33010000990004", status=registry_pb2.PERSON_STATUS_PAUSED, reason="停保示例"
    ),
    "ChangePractitionerStatus": lambda client, chain: client.change_practitioner_status(
        practitioner_code="D330100990003", status=registry_pb2.PRACTITIONER_STATUS_SUSPENDED, case_no="CASE-1"
    ),
    "ChangeAgreementStatus": lambda client, chain: client.change_agreement_status(
        institution_code=HOSPITAL_B,
        kind=registry_pb2.AGREEMENT_KIND_BASE,
        status=registry_pb2.AGREEMENT_STATUS_SUSPENDED,
        case_no="CASE-1",
    ),
    "RegisterInstitution": lambda client, chain: client.register_institution(
        institution_code="P33010099177", name="示例药店（虚构）"
    ),
}
AGENCY_TABLE = {
    # RPC: (another area of the province, another province, its own area)
    "GetInstitution": ("RECORD_UNKNOWN", "RECORD_UNKNOWN", "OK"),
    "ListPractitioners": ("RECORD_UNKNOWN", "RECORD_UNKNOWN", "OK"),
    "GetPractitioner": ("RECORD_UNKNOWN", "RECORD_UNKNOWN", "OK"),
    "GetPerson": ("RECORD_UNKNOWN", "RECORD_UNKNOWN", "OK"),
    "FreezePrescription": ("RX_UNKNOWN", "RX_UNKNOWN", "OK"),
    "UnfreezePrescription": ("RX_UNKNOWN", "RX_UNKNOWN", "OK"),
    "EraseContent": ("RX_UNKNOWN", "RX_UNKNOWN", "RETENTION"),
    "ChangePersonStatus": ("RECORD_UNKNOWN", "RECORD_UNKNOWN", "OK"),
    "ChangePractitionerStatus": ("RECORD_UNKNOWN", "RECORD_UNKNOWN", "OK"),
    "ChangeAgreementStatus": ("RECORD_UNKNOWN", "RECORD_UNKNOWN", "OK"),
    "RegisterInstitution": ("RECORD_UNKNOWN", "RECORD_UNKNOWN", "OK"),
}


async def test_an_agency_reads_and_writes_inside_its_own_area() -> None:
    async with live_hub() as live:
        chain = await Chain(live).uploaded()
        answers = {
            rpc: tuple([await outcome(act(await live.agency(area), chain)) for area in ("330200", "110100", AGENCY)])
            for rpc, act in AGENCY_CALLS.items()
        }
    assert answers == AGENCY_TABLE


async def test_the_agency_of_the_province_covers_its_areas() -> None:
    async with live_hub() as live:
        chain = await Chain(live).uploaded()
        province = await live.agency("330000")
        assert {rpc: await outcome(act(province, chain)) for rpc, act in AGENCY_CALLS.items()} == dict.fromkeys(
            AGENCY_CALLS, "OK"
        ) | {"EraseContent": "RETENTION"}


# ---- auditors ----


@pytest.mark.parametrize("reason", ["", "   "])
async def test_an_auditor_without_a_reason_reads_nothing(live: Live, reason: str) -> None:
    chain = await Chain(live).uploaded()
    auditor = await live.auditor()

    async def streamed() -> None:
        async for _ in auditor.stream_entries(limit=1, case_reason=reason):
            pass

    answers = [
        await outcome(auditor.trace(rx_no=chain.rx_no, case_reason=reason)),
        await outcome(auditor.find(rx_no=chain.rx_no, case_reason=reason)),
        await outcome(streamed()),
        await outcome(auditor.verify_ledger(case_reason=reason)),
    ]
    assert answers == ["AUDIT_REASON"] * 4


# ---- nothing is learnt from the answer ----

NO_SUCH_RX = "330100" + "0" * 21


async def status_bytes(call: Awaitable[Any]) -> bytes:
    """The details of a refusal as they went over the wire."""
    with pytest.raises(Refusal) as refused:
        await call
    error = refused.value.__cause__
    assert isinstance(error, grpc.aio.AioRpcError)
    metadata = dict(error.trailing_metadata() or ())
    return error.code().name.encode() + (error.details() or "").encode() + bytes(metadata["grpc-status-details-bin"])


@pytest.mark.parametrize("rpc", [rpc for rpc, row in PHARMACY_TABLE.items() if row[-1] == "RX_UNKNOWN"])
async def test_an_unrelated_pharmacy_gets_the_bytes_of_a_prescription_that_does_not_exist(live: Live, rpc: str) -> None:
    call = PHARMACY_CALLS[rpc]
    stranger = await related(live, "unrelated", call.before)
    nothing = dataclasses.replace(stranger, rx_no=NO_SUCH_RX)
    assert await status_bytes(call.act(stranger)) == await status_bytes(call.act(nothing))


@pytest.mark.parametrize("rpc", [rpc for rpc, row in HOSPITAL_TABLE.items() if row[-1] == "RX_UNKNOWN"])
async def test_another_hospital_gets_the_bytes_of_a_prescription_that_does_not_exist(live: Live, rpc: str) -> None:
    before, act = HOSPITAL_CALLS[rpc]
    chain = Chain(live)
    await before(chain)
    hospital = await live.hospital(HOSPITAL_B)
    nothing = dataclasses.replace(chain, rx_no=NO_SUCH_RX)
    assert await status_bytes(act(hospital, chain)) == await status_bytes(act(hospital, nothing))


@pytest.mark.parametrize("rpc", ["StartEncounter", "AmendDiagnosis", "CloseEncounter", "CancelEncounter"])
async def test_another_hospital_gets_the_bytes_of_a_visit_that_does_not_exist(live: Live, rpc: str) -> None:
    before, act = HOSPITAL_CALLS[rpc]
    chain = Chain(live)
    await before(chain)
    hospital = await live.hospital(HOSPITAL_B)
    nothing = dataclasses.replace(chain, encounter_id="E" + chain.encounter_id[1:][::-1])
    assert await status_bytes(act(hospital, chain)) == await status_bytes(act(hospital, nothing))


@pytest.mark.parametrize("rpc", [rpc for rpc in CHANNEL_CALLS if rpc != "ListMyPrescriptions"])
async def test_a_channel_gets_the_same_bytes_for_a_foreign_and_a_missing_prescription(live: Live, rpc: str) -> None:
    before, act = CHANNEL_CALLS[rpc]
    chain = Chain(live)
    await before(chain)
    channel = await live.channel()
    nothing = dataclasses.replace(chain, rx_no=NO_SUCH_RX)
    assert await status_bytes(act(channel, chain, EMPLOYEE)) == await status_bytes(act(channel, nothing, EMPLOYEE))


@pytest.mark.parametrize("rpc", CHANNEL_CALLS)
async def test_a_channel_gets_the_same_bytes_for_a_person_not_activated_and_none_at_all(live: Live, rpc: str) -> None:
    before, act = CHANNEL_CALLS[rpc]
    chain = Chain(live)
    await before(chain)
    channel = await live.channel(OTHER_CHANNEL)
    assert await status_bytes(act(channel, chain, PERSON)) == await status_bytes(act(channel, chain, "nobody99"))


@pytest.mark.parametrize("rpc", [rpc for rpc in AGENCY_CALLS if rpc.startswith(("Freeze", "Unfreeze"))])
async def test_an_agency_gets_the_same_bytes_for_a_prescription_elsewhere_and_none_at_all(live: Live, rpc: str) -> None:
    chain = await Chain(live).uploaded()
    agency = await live.agency("110100")
    nothing = dataclasses.replace(chain, rx_no=NO_SUCH_RX)
    act = AGENCY_CALLS[rpc]
    assert await status_bytes(act(agency, chain)) == await status_bytes(act(agency, nothing))
