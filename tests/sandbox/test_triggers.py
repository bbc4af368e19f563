"""Events on existing objects: each by its rightful actor through the hub's own rules, or by time."""

from typing import Any

import pytest

from erxhub.client import Refusal
from erxhub.v1 import common_pb2, sandbox_pb2
from tests.chain import DOCTOR
from tests.live import HOSPITAL, PERSON
from tests.sandbox.ground import START_MS, UNKNOWN_RX, Box, Place


def _kind(name: str) -> Any:
    return sandbox_pb2.TriggerKind.Value(f"TRIGGER_KIND_{name}")


async def _fired(box: Box, kind: str, **subject: str) -> list[str]:
    return list((await box.operator.trigger(_kind(kind), namespace="one", **subject)).events)


async def _status(place: Place, rx_no: str) -> Any:
    return (await (await place.hospital()).get(rx_no=rx_no)).statuses


async def test_the_agency_freezes_and_lifts_the_freeze(box: Box) -> None:
    place = await box.new("one")
    rx_no = (await place.chain().uploaded()).rx_no
    assert await _fired(box, "FREEZE", rx_no=rx_no) == ["prescription.frozen"]
    assert (await _status(place, rx_no)).rx == common_pb2.RX_STATUS_FROZEN
    assert await _fired(box, "UNFREEZE", rx_no=rx_no) == ["prescription.unfrozen"]
    assert (await _status(place, rx_no)).rx == common_pb2.RX_STATUS_EFFECTIVE
    # The same again is a new event, not a repeated request.
    assert await _fired(box, "FREEZE", rx_no=rx_no) == ["prescription.frozen"]


async def test_the_patient_cancels_the_live_order(box: Box) -> None:
    place = await box.new("one")
    chain = await place.chain().held()
    assert "order.cancelled" in await _fired(box, "CANCEL_ORDER", rx_no=chain.rx_no)


@pytest.mark.parametrize(
    ("kind", "back", "subject", "event"),
    [
        ("SUSPEND_PRACTITIONER", "RESUME_PRACTITIONER", DOCTOR, "practitioner"),
        ("SUSPEND_AGREEMENT", "RESUME_AGREEMENT", HOSPITAL, "agreement"),
    ],
)
async def test_the_agency_suspends_and_resumes(box: Box, kind: str, back: str, subject: str, event: str) -> None:
    place = await box.new("one")
    assert await _fired(box, kind, id=subject) == [f"{event}.suspended"]
    with pytest.raises(Refusal):
        await place.chain(1).uploaded()
    assert await _fired(box, back, id=subject) == [f"{event}.resumed"]
    assert (await place.chain(2).uploaded()).rx_no


async def test_the_agency_pauses_a_person(box: Box) -> None:
    place = await box.new("one")
    events = await _fired(box, "PAUSE_PERSON", id=PERSON)
    assert len(events) == 1
    with pytest.raises(Refusal) as refused:
        await place.chain(1).uploaded()
    assert refused.value.code == "PSN_INACTIVE"
    await _fired(box, "RESUME_PERSON", id=PERSON)
    assert (await place.chain(2).uploaded()).rx_no


@pytest.mark.parametrize("subject", [DOCTOR, HOSPITAL])
async def test_the_agency_revokes_a_signing_key(box: Box, subject: str) -> None:
    place = await box.new("one")
    assert await _fired(box, "REVOKE_SIGNING_KEY", id=subject) == ["certificate.revoked"]
    with pytest.raises(Refusal):
        await place.chain().uploaded()


async def test_a_hold_ends_when_its_time_is_over(box: Box) -> None:
    place = await box.new("one")
    chain = await place.chain().held()
    moved = await box.operator.trigger(_kind("EXPIRE_HOLD"), rx_no=chain.rx_no, namespace="one")
    assert "order.expired" in moved.events
    assert moved.now_ms == place.clock.now_ms() > START_MS
    assert (await _status(place, chain.rx_no)).rx == common_pb2.RX_STATUS_EFFECTIVE


async def test_a_prescription_ends_when_its_time_is_over(box: Box) -> None:
    place = await box.new("one")
    chain = await place.chain().uploaded()
    moved = await box.operator.trigger(_kind("EXPIRE_PRESCRIPTION"), rx_no=chain.rx_no, namespace="one")
    assert moved.events[-1] == "prescription.expired"
    assert moved.now_ms == chain.prescription.valid_until_ms + 1


@pytest.mark.parametrize("kind", ["CANCEL_ORDER", "FREEZE", "UNFREEZE", "EXPIRE_HOLD", "EXPIRE_PRESCRIPTION"])
async def test_a_prescription_that_does_not_exist_is_no_object(box: Box, kind: str) -> None:
    await box.new("one")
    before = place_ms = (await box.operator.get_namespace(namespace="one")).now_ms
    with pytest.raises(Refusal) as refused:
        await _fired(box, kind, rx_no=UNKNOWN_RX)
    assert refused.value.code == "SBX_TRIGGER_STATE"
    assert before == place_ms == (await box.operator.get_namespace(namespace="one")).now_ms


async def test_what_the_lifecycle_forbids_is_told_with_the_hubs_own_code(box: Box) -> None:
    place = await box.new("one")
    chain = await place.chain().delivered()
    for kind in ("CANCEL_ORDER", "EXPIRE_HOLD", "EXPIRE_PRESCRIPTION"):
        with pytest.raises(Refusal) as refused:
            await _fired(box, kind, rx_no=chain.rx_no)
        assert refused.value.code == "SBX_TRIGGER_STATE"
        assert refused.value.metadata["reason"]
    with pytest.raises(Refusal) as refused:
        await _fired(box, "UNFREEZE", rx_no=chain.rx_no)
    assert refused.value.metadata["hub_code"]
    assert refused.value.metadata["hub_status"]


@pytest.mark.parametrize(
    "kind", ["SUSPEND_PRACTITIONER", "RESUME_AGREEMENT", "PAUSE_PERSON", "REVOKE_SIGNING_KEY"], ids=str.lower
)
async def test_an_id_that_nothing_can_have_is_a_wrong_argument(box: Box, kind: str) -> None:
    await box.new("one")
    with pytest.raises(Refusal) as refused:
        await _fired(box, kind, id="9/" * 20)
    assert (refused.value.code, refused.value.grpc_status) == ("SBX_ARGUMENT", "INVALID_ARGUMENT")
    assert [one.field for one in refused.value.violations] == ["id"]
    assert refused.value.violations[0].message


async def test_an_id_of_the_right_form_that_nobody_has_is_no_wrong_argument(box: Box) -> None:
    await box.new("one")
    with pytest.raises(Refusal) as refused:
        await _fired(box, "SUSPEND_PRACTITIONER", id="D999999999999")
    assert refused.value.code == "SBX_TRIGGER_STATE"


@pytest.mark.parametrize(("kind", "given"), [("FREEZE", "id"), ("SUSPEND_AGREEMENT", "rx_no")])
async def test_a_trigger_needs_the_object_of_its_kind(box: Box, kind: str, given: str) -> None:
    await box.new("one")
    with pytest.raises(Refusal) as refused:
        await _fired(box, kind, **{given: "something"})
    assert refused.value.code == "SBX_ARGUMENT"
    assert refused.value.violations[0].field == ({"rx_no", "id"} - {given}).pop()
