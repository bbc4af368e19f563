"""One call: its deadline, its repetition under the same request id, and what it fails with."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from erxhub.client import CallFailed, Connection, HospitalClient, HubUnreachable, PatientClient, Refusal, RetryPolicy
from erxhub.client.connection import UNARY_TIMEOUT_S
from erxhub.crypto.suites import SigningKey
from erxhub.v1 import common_pb2, encounter_pb2, prescribing_pb2, signed_pb2
from tests.client.conftest import HOSPITAL
from tests.client.fake_hub import QUICK, FakeEnvironment, FakeHub, details_trailer


def failing(times: int, status: grpc.StatusCode, reply: Any) -> Callable[[Any, Any], Any]:
    """A handler that aborts so many times and then answers."""
    left = [times]

    async def handler(request: Any, context: Any) -> Any:
        if left[0]:
            left[0] -= 1
            await context.abort(status, "not now")
        return reply

    return handler


async def test_a_call_has_a_deadline_of_ten_seconds_and_its_own_one_when_it_names_one(
    hub: FakeHub, connection: Connection
) -> None:
    hospital = HospitalClient(connection)
    await hospital.close_encounter(encounter_id="E1")
    await hospital.close_encounter(encounter_id="E1", timeout_s=100)
    first, second = (call.deadline_s or 0.0 for call in hub.received)
    # On the wire a long deadline is rounded up, to the next second at most.
    assert UNARY_TIMEOUT_S - 3 < first < UNARY_TIMEOUT_S + 1
    assert 90 < second < 102


async def test_unavailable_is_repeated_with_the_same_bytes_and_request_id(hub: FakeHub, connection: Connection) -> None:
    reply = encounter_pb2.RegisterEncounterResponse(encounter_id="E7")
    hub.on["RegisterEncounter"] = failing(2, grpc.StatusCode.UNAVAILABLE, reply)
    got = await HospitalClient(connection).register_encounter(
        person_no="330100000001",
        visit_kind=common_pb2.VISIT_KIND_OFFLINE,
        certificate_type=encounter_pb2.VISIT_CERTIFICATE_TYPE_VOUCHER,
        med_type="11",
    )
    sent = hub.requests("RegisterEncounter")
    assert got.encounter_id == "E7"
    assert len(sent) == 3
    assert len({request.SerializeToString() for request in sent}) == 1
    assert sent[0].request_id.startswith(HOSPITAL)
    assert sent[0].hospital_code == HOSPITAL


async def test_an_upload_with_the_largest_file_is_repeated_too(hub: FakeHub, connection: Connection) -> None:
    reply = prescribing_pb2.UploadPrescriptionResponse(rx_no="1" * 27)
    hub.on["UploadPrescription"] = failing(1, grpc.StatusCode.UNAVAILABLE, reply)
    key = SigningKey.generate()
    document = signed_pb2.PrescriptionDocument(
        rx_no="1" * 27, prescription=common_pb2.Prescription(hospital_code=HOSPITAL)
    )
    await HospitalClient(connection).upload(
        document=document,
        pharmacist_code="PH01",
        doctor_key=key,
        pharmacist_key=key,
        seal_key=key,
        file=bytes(1024 * 1024),
    )
    first, second = hub.requests("UploadPrescription")
    assert first == second


@pytest.mark.parametrize("status", [grpc.StatusCode.ABORTED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN])
async def test_no_other_status_is_repeated(hub: FakeHub, connection: Connection, status: grpc.StatusCode) -> None:
    hub.on["CloseEncounter"] = failing(1, status, encounter_pb2.CloseEncounterResponse())
    with pytest.raises(CallFailed) as caught:
        await HospitalClient(connection).close_encounter(encounter_id="E1")
    assert caught.value.code == status.name
    assert not isinstance(caught.value, HubUnreachable)
    assert len(hub.received) == 1


async def test_a_hub_that_stays_unavailable_is_unreachable_after_four_attempts(
    hub: FakeHub, connection: Connection
) -> None:
    hub.on["CloseEncounter"] = failing(99, grpc.StatusCode.UNAVAILABLE, None)
    with pytest.raises(HubUnreachable) as caught:
        await HospitalClient(connection).close_encounter(encounter_id="E1")
    assert caught.value.code == "HUB_UNREACHABLE"
    assert "same request id" in caught.value.text_en
    assert "报文ID" in caught.value.text_zh
    assert len(hub.received) == QUICK.attempts


async def test_an_answer_that_does_not_come_is_a_deadline_with_the_request_to_repeat(
    hub: FakeHub, connection: Connection
) -> None:
    async def never(request: Any, context: Any) -> None:
        await asyncio.Event().wait()

    hub.on["RevokePrescription"] = never
    hospital = HospitalClient(connection)
    with pytest.raises(CallFailed) as caught:
        await hospital.revoke(rx_no="1" * 27, doctor_code="D001", reason="wrong drug", timeout_s=0.05)
    assert caught.value.code == "DEADLINE_EXCEEDED"
    assert caught.value.request is not None

    hub.on.clear()
    await hospital.send(caught.value.request)
    repeated = hub.requests("RevokePrescription")[-1]
    assert repeated == caught.value.request
    assert repeated.request_id == caught.value.request_id != ""


async def test_only_requests_of_unary_methods_can_be_sent(connection: Connection) -> None:
    with pytest.raises(TypeError):
        await HospitalClient(connection).send(prescribing_pb2.WatchPrescriptionsRequest())


async def test_a_given_request_id_is_used(hub: FakeHub, connection: Connection) -> None:
    await HospitalClient(connection).close_encounter(encounter_id="E1", request_id="my-own-id-1")
    assert hub.requests("CloseEncounter")[0].request_id == "my-own-id-1"


async def test_a_channel_has_random_request_ids(hub: FakeHub, connected: Callable[[str, str], Connection]) -> None:
    await PatientClient(connected("channel", "app-1")).activate_voucher(person_no="330100000001")
    assert len(hub.requests("ActivateVoucher")[0].request_id) == 26


async def test_connect_closes_its_connection(
    hub: FakeHub, connection: Connection, environment: FakeEnvironment
) -> None:
    async with HospitalClient.connect(hub.target, connection.identity, environment=environment) as hospital:
        await hospital.get(rx_no="1" * 27)
    with pytest.raises(grpc.aio.UsageError):
        await hospital.get(rx_no="1" * 27)


async def test_details_of_another_system_are_no_refusal(hub: FakeHub, connection: Connection) -> None:
    async def foreign(request: Any, context: Any) -> None:
        await context.abort(
            grpc.StatusCode.PERMISSION_DENIED, "no", trailing_metadata=details_trailer(7, "no", common_pb2.Page())
        )

    async def unreadable(request: Any, context: Any) -> None:
        trailer = (("grpc-status-details-bin", b"\xff\xff"),)
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "no", trailing_metadata=trailer)

    for handler in (foreign, unreadable):
        hub.on["CloseEncounter"] = handler
        with pytest.raises(CallFailed) as caught:
            await HospitalClient(connection).close_encounter(encounter_id="E1")
        assert not isinstance(caught.value, Refusal)
        assert caught.value.grpc_status == "PERMISSION_DENIED"


@pytest.mark.parametrize(
    "limits",
    [
        {"attempts": 0},
        {"attempts": 6},
        {"stream_resumes": -1},
        {"backoff_ms": 1},
        {"backoff_ms": 50, "backoff_max_ms": 20},
    ],
)
def test_a_retry_policy_outside_grpcs_limits_is_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        RetryPolicy(**limits)
