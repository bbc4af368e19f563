"""What a person reads through his channel: his prescriptions, and who looked at them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from erxhub.queries import patient
from erxhub.v1 import common_pb2, patient_pb2, prescribing_pb2
from tests.core import population as people
from tests.core.population import CHANNEL, HOSPITAL, OTHER_CHANNEL, OTHER_HOSPITAL, PERSON_NO, STRANGER_NO
from tests.core.test_prescription import Rx
from tests.queries.hub import Hub, download, prescription

MINE = "PatientService/ListMyPrescriptions"
ACCESSES = "PatientService/ListAccesses"
GET = "PrescribingService/GetPrescription"


def mine(person_no: str = PERSON_NO, delegate: str = "") -> patient_pb2.ListMyPrescriptionsRequest:
    return patient_pb2.ListMyPrescriptionsRequest(person_no=person_no, delegate_person_no=delegate)


def accesses(rx_no: str = "", person_no: str = PERSON_NO, **page: Any) -> patient_pb2.ListAccessesRequest:
    return patient_pb2.ListAccessesRequest(person_no=person_no, rx_no=rx_no, page=common_pb2.Page(**page))


def get(rx_no: str) -> prescribing_pb2.GetPrescriptionRequest:
    return prescribing_pb2.GetPrescriptionRequest(rx_no=rx_no)


def rows(reply: patient_pb2.ListAccessesResponse) -> list[tuple[str, str, str, str, str]]:
    return [(row.institution, row.role, row.method, row.outcome, row.rx_no) for row in reply.accesses]


def test_a_person_sees_his_prescriptions_newest_first_without_a_diagnosis(hub: Hub) -> None:
    numbers = [prescription(hub, number).rx_no for number in (1, 2)]
    download(hub, numbers[1])
    reply = hub.read(CHANNEL, MINE, mine())
    newest, oldest = reply.prescriptions
    assert [newest.rx_no, oldest.rx_no] == numbers[::-1]
    assert newest.hospital_name == f"示例机构{people.HOSPITAL_CODE}"
    assert (newest.held_by_pharmacy_code, oldest.held_by_pharmacy_code) == (people.PHARMACY_CODE, "")
    assert newest.hold_until_ms > hub.now_ms
    assert newest.line_count == 2
    assert "I10" not in str(reply)


def test_a_prescription_that_never_took_effect_is_not_shown(hub: Hub) -> None:
    world: Any = hub
    rx_no = Rx(world).prechecked().rx_no
    hub.read(HOSPITAL, GET, get(rx_no))
    assert not hub.read(CHANNEL, MINE, mine()).prescriptions
    assert not hub.read(CHANNEL, ACCESSES, accesses()).accesses
    assert hub.refused(CHANNEL, ACCESSES, accesses(rx_no)).code == "RX_UNKNOWN"


def test_a_channel_without_activation_learns_nothing_of_the_person(hub: Hub) -> None:
    prescription(hub)
    for method, existing, missing in (
        (MINE, mine(), mine("33010099999999")),
        (ACCESSES, accesses(), accesses(person_no="33010099999999")),
    ):
        known = hub.refused(OTHER_CHANNEL, method, existing)
        absent = hub.refused(OTHER_CHANNEL, method, missing)
        assert (absent.code, absent.targets) == ("VCH_REVOKED", ())
        assert replace(known, targets=()) == absent
        assert len(known.targets) == 1


def test_a_delegate_reads_with_a_link_only(hub: Hub) -> None:
    world: Any = hub
    people.activate(world, people.CHILD_NO)
    assert hub.read(CHANNEL, MINE, mine(people.CHILD_NO, PERSON_NO)) is not None
    refused = hub.refused(CHANNEL, MINE, mine(people.CHILD_NO, STRANGER_NO))
    assert (refused.code, refused.field) == ("VCH_NO_DELEGATION", "delegate_person_no")


def test_a_person_sees_who_read_and_who_was_refused(hub: Hub) -> None:
    rx_no = prescription(hub).rx_no
    hub.read(HOSPITAL, GET, get(rx_no))
    hub.advance(1_000)
    hub.refused(OTHER_HOSPITAL, GET, get(rx_no))
    reply = hub.read(CHANNEL, ACCESSES, accesses())
    assert rows(reply) == [
        (people.OTHER_HOSPITAL_CODE, "hospital", GET, "RX_UNKNOWN", rx_no),
        (people.HOSPITAL_CODE, "hospital", GET, "OK", rx_no),
    ]
    assert [row.at_ms for row in reply.accesses] == [hub.now_ms, hub.now_ms - 1_000]


def test_accesses_to_one_prescription_are_listed_alone(hub: Hub) -> None:
    first, second = (prescription(hub, number).rx_no for number in (1, 2))
    hub.read(HOSPITAL, GET, get(first))
    hub.read(HOSPITAL, GET, get(second))
    hub.read(HOSPITAL, "PrescribingService/ListPrescriptions", prescribing_pb2.ListPrescriptionsRequest())
    assert [row[2:] for row in rows(hub.read(CHANNEL, ACCESSES, accesses(first)))] == [
        ("PrescribingService/ListPrescriptions", "OK", first),
        (GET, "OK", first),
    ]


def test_somebody_elses_prescription_is_unknown_to_a_person(hub: Hub) -> None:
    rx_no = prescription(hub).rx_no
    foreign = hub.refused(CHANNEL, ACCESSES, accesses(rx_no, STRANGER_NO))
    absent = hub.refused(CHANNEL, ACCESSES, accesses("9" * 27, STRANGER_NO))
    assert (absent.code, absent.field, absent.targets) == ("RX_UNKNOWN", "rx_no", ())
    assert replace(foreign, targets=()) == absent
    # The attempt is told to the person whose prescription it was.
    assert ("app.example", "channel", ACCESSES, "RX_UNKNOWN", rx_no) in rows(
        hub.read(CHANNEL, ACCESSES, accesses(rx_no))
    )


def test_what_one_entry_says_of_other_persons_is_left_out(hub: Hub) -> None:
    world: Any = hub
    own = prescription(hub).rx_no
    other_ref = people.decoded(world, person_no=STRANGER_NO).voucher_ref
    request = people.registration(world, person_no=STRANGER_NO, voucher_ref=other_ref)
    encounter_id = people.accepted(hub.do(HOSPITAL, "EncounterService/RegisterEncounter", request)).encounter_id
    start = people.encounter_pb2.StartEncounterRequest(encounter_id=encounter_id, doctor_code=people.DOCTOR_CODE)
    people.accepted(hub.do(HOSPITAL, "EncounterService/StartEncounter", start))
    people.accepted(people.record_diagnosis(world, encounter_id))
    other = Rx(world, encounter_id, hospital_rx_no="RX2", person_no=STRANGER_NO).uploaded().rx_no
    hub.read(HOSPITAL, "PrescribingService/ListPrescriptions", prescribing_pb2.ListPrescriptionsRequest())
    for person_no, rx_no in ((PERSON_NO, own), (STRANGER_NO, other)):
        assert [row[4] for row in rows(hub.read(CHANNEL, ACCESSES, accesses(person_no=person_no)))] == [rx_no]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_pages_of_accesses_meet_without_gap_even_inside_one_entry(hub: Hub, size: int) -> None:
    for number in range(1, 5):
        prescription(hub, number)
    hub.read(HOSPITAL, "PrescribingService/ListPrescriptions", prescribing_pb2.ListPrescriptionsRequest())
    whole = rows(hub.read(CHANNEL, ACCESSES, accesses()))
    assert len(whole) == 4
    paged: list[tuple[str, str, str, str, str]] = []
    token = ""
    for _ in range(len(whole) + 1):
        reply = hub.read(CHANNEL, ACCESSES, accesses(page_size=size, page_token=token))
        assert len(reply.accesses) <= size
        paged += rows(reply)
        token = reply.next_page_token
        if not token:
            break
    assert paged == whole
    assert not token


def test_a_page_ends_after_so_many_entries_and_its_token_goes_on(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patient, "ENTRIES_READ_MAX", 2)
    world: Any = hub
    rx_no = prescription(hub).rx_no
    hub.read(HOSPITAL, GET, get(rx_no))
    for _ in range(2):
        # About the person, not about a prescription: listed under him, and no row.
        people.decoded(world)
    first = hub.read(CHANNEL, ACCESSES, accesses(page_size=1))
    second = hub.read(CHANNEL, ACCESSES, accesses(page_size=1, page_token=first.next_page_token))
    assert rows(first) == []
    assert [row[2:] for row in rows(second)] == [(GET, "OK", rx_no)]
