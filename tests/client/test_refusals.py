"""A refusal: everything that the hub says arrives, up to the largest one it may send."""

from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from erxhub.client import Connection, HospitalClient, Refusal, Violation
from tests.client.fake_hub import QUICK, FakeHub, details_trailer, refuse

EN = "The prescription is held by a pharmacy."
ZH = "处方已被药店锁定。"


async def test_a_refusal_arrives_whole(hub: FakeHub, connection: Connection) -> None:
    info = error_details_pb2.ErrorInfo(
        reason="RX_UNDO_STATE",
        domain="erxhub",
        metadata={
            "rule_ids": "P-30;I9",
            "field": "rx_no",
            "retriable": "yes",
            "needs": "The hold ends",
            "legal_actions": "watch,cancel",
            "state": "EFFECTIVE/HELD",
        },
    )

    async def handler(request: Any, context: Any) -> None:
        await refuse(
            context,
            grpc.StatusCode.FAILED_PRECONDITION,
            EN,
            info,
            error_details_pb2.LocalizedMessage(locale="zh-CN", message=ZH),
            error_details_pb2.RetryInfo(retry_delay=Duration(seconds=2, nanos=500_000_000)),
        )

    hub.on["RevokePrescription"] = handler
    with pytest.raises(Refusal) as caught:
        await HospitalClient(connection).revoke(rx_no="1" * 27, doctor_code="D001", reason="wrong drug")
    refusal = caught.value
    assert (refusal.code, refusal.grpc_status) == ("RX_UNDO_STATE", "FAILED_PRECONDITION")
    assert (refusal.text_en, refusal.text_zh) == (EN, ZH)
    assert refusal.rule_ids == ("P-30", "I9")
    assert refusal.field == "rx_no"
    assert (refusal.retriable, refusal.retry_after_ms, refusal.needs) == (True, 2_500, "The hold ends")
    assert refusal.legal_actions == ("watch", "cancel")
    assert dict(refusal.metadata) == {"state": "EFFECTIVE/HELD"}
    assert not refusal.truncated
    assert str(refusal) == f"RX_UNDO_STATE: {EN}"
    assert refusal.request_id == hub.requests("RevokePrescription")[0].request_id


async def test_the_largest_refusal_arrives(hub: FakeHub, connection: Connection) -> None:
    """16 violations, 6 KiB of details, and a sentence that percent-encoding triples."""
    sentence = "Ж" * 200
    violations = [
        error_details_pb2.BadRequest.FieldViolation(
            field=f"prescription.lines[{number}].quantity", reason="string.pattern", description="错" * 40
        )
        for number in range(16)
    ]
    info = error_details_pb2.ErrorInfo(
        reason="INPUT_MALFORMED",
        domain="erxhub",
        metadata={"truncated": "84", "retriable": "no", "filler": "x" * 2_500},
    )
    details = (
        error_details_pb2.LocalizedMessage(locale="zh-CN", message="字" * 100),
        error_details_pb2.BadRequest(field_violations=violations),
    )
    size = len(details_trailer(3, sentence, info, *details)[0][1])
    assert 6_000 < size < 7_000

    async def handler(request: Any, context: Any) -> None:
        await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, sentence, info, *details)

    hub.on["CloseEncounter"] = handler
    with pytest.raises(Refusal) as caught:
        await HospitalClient(connection).close_encounter(encounter_id="E1")
    assert caught.value.code == "INPUT_MALFORMED"
    assert len(caught.value.violations) == 16
    assert caught.value.violations[0] == Violation("prescription.lines[0].quantity", "string.pattern", "错" * 40)
    assert caught.value.field == "prescription.lines[0].quantity"
    assert caught.value.truncated
    assert caught.value.text_en == sentence


async def test_a_refusal_that_is_unavailable_is_repeated_and_then_a_refusal(
    hub: FakeHub, connection: Connection
) -> None:
    info = error_details_pb2.ErrorInfo(reason="HUB_UNAVAILABLE", domain="erxhub", metadata={"retriable": "yes"})

    async def handler(request: Any, context: Any) -> None:
        await refuse(context, grpc.StatusCode.UNAVAILABLE, "The hub cannot write now.", info)

    hub.on["CloseEncounter"] = handler
    with pytest.raises(Refusal) as caught:
        await HospitalClient(connection).close_encounter(encounter_id="E1")
    assert caught.value.code == "HUB_UNAVAILABLE"
    assert caught.value.violations == ()
    assert len(hub.received) == QUICK.attempts
