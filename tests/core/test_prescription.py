"""Precheck, upload, revoke and freeze: what each step leaves, and each refusal with nothing changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytest

from erxhub.core import decide
from erxhub.core.catalog import prepare_import
from erxhub.core.consequences import after_hold_ended, end_with_order
from erxhub.core.draft import Workspace
from erxhub.core.keys import prescription_key
from erxhub.core.model import Accepted, Caller, Command, Evidence, Missing, Outcome
from erxhub.v1 import (
    catalog_pb2,
    common_pb2,
    encounter_pb2,
    events_pb2,
    prescribing_pb2,
    registry_pb2,
    signed_pb2,
    state_pb2,
)
from tests.core import population as people
from tests.core.harness import START_MS, World, evidence, signed
from tests.core.population import HOSPITAL, OTHER_HOSPITAL, accepted, refused

MINUTE_MS = 60_000
DAY_MS = 86_400_000
PHARMACIST = "HY330100990001"
AMLODIPINE = "XC08CAA187A001020301650"
IRBESARTAN = "XC09CAE003A001020178814"
PDF = b"%PDF-1.7 prescription"
PHARMACY_CODE = people.PHARMACY_CODE

PRECHECK = "PrescribingService/PrecheckPrescription"
UPLOAD = "PrescribingService/UploadPrescription"
REVOKE = "PrescribingService/RevokePrescription"
FREEZE = "RegistryService/FreezePrescription"
UNFREEZE = "RegistryService/UnfreezePrescription"


def agency(world: World, method: str, request: Any) -> Any:
    return accepted(world.do(people.AGENCY, f"RegistryService/{method}", request))


def import_drugs(world: World, *drugs: catalog_pb2.Drug) -> None:
    header = registry_pb2.CatalogHeader(
        request_id="import-drugs-1",
        dataset=catalog_pb2.CATALOG_DATASET_DRUGS,
        edition="2026",
        valid_from_on="2026-01-01",
        file_sha256=bytes(32),
    )
    entries = tuple(catalog_pb2.CatalogEntry(line=place, drug=drug) for place, drug in enumerate(drugs, start=2))
    agency(world, "ImportCatalog", prepare_import(header, entries))


def drug(code: str, **changes: Any) -> catalog_pb2.Drug:
    fields = {"generic_name": f"示例药{code[:4]}", "charge_class": "01", "prior_pay_ratio": "0"}
    return catalog_pb2.Drug(code=code, control=catalog_pb2.DRUG_CONTROL_NONE, **(fields | changes))


def hospital_world(*drugs: catalog_pb2.Drug) -> World:
    world = people.populated()
    pharmacist = people.practitioner_request(PHARMACIST, kind=registry_pb2.PRACTITIONER_KIND_HOSPITAL_PHARMACIST)
    agency(world, "RegisterPractitioner", pharmacist)
    for subject in (PHARMACIST, people.HOSPITAL_CODE):
        agency(world, "RegisterSigningKey", people.key_request(world, subject))
    import_drugs(world, *(drugs or (drug(AMLODIPINE), drug(IRBESARTAN))))
    return world


class Rx:
    """A prescription on its way; every part may be changed before it is sent."""

    def __init__(self, world: World, encounter_id: str = "", **changes: Any) -> None:
        self.world = world
        world.advance(MINUTE_MS)
        encounter_id = encounter_id or people.diagnosed_encounter(world)
        world.advance(MINUTE_MS)
        fields: dict[str, Any] = {
            "hospital_rx_no": "RX1",
            "hospital_code": people.HOSPITAL_CODE,
            "encounter_id": encounter_id,
            "person_no": people.PERSON_NO,
            "rx_type": "1",
            "med_type": "11",
            "doctor_code": people.DOCTOR_CODE,
            "prescribed_at_ms": world.now_ms,
            "valid_days": 3,
            "valid_until_ms": world.now_ms + 3 * DAY_MS,
            "diagnoses": [people.diagnosis()],
            "lines": [self.line(1, AMLODIPINE), self.line(2, IRBESARTAN)],
            "origin": common_pb2.PRESCRIPTION_ORIGIN_HUMAN,
        }
        self.content = common_pb2.Prescription(**(fields | changes))
        self.rx_no = ""
        self.trace_code = ""
        self.doctor_key = people.key_of(people.DOCTOR_CODE)
        self.pharmacist_key = people.key_of(PHARMACIST)
        self.seal_key = people.key_of(people.HOSPITAL_CODE)
        self.file = common_pb2.PrescriptionFile(media_type="application/pdf", data=PDF)

    @staticmethod
    def line(number: int, code: str) -> common_pb2.RxLine:
        return common_pb2.RxLine(
            line_no=number,
            item_type="11",
            drug_code=code,
            generic_name="示例药",
            dose="2.5",
            dose_unit="mg",
            frequency_code="11",
            route_code="1",
            supply_days=7,
            quantity="1",
            quantity_unit="盒",
        )

    @property
    def key(self) -> bytes:
        return prescription_key(self.rx_no)

    @property
    def state(self) -> state_pb2.PrescriptionState:
        state = self.world.state("prescription", self.key)
        assert isinstance(state, state_pb2.PrescriptionState)
        return state

    def precheck(self, caller: Caller = HOSPITAL) -> Outcome:
        request = prescribing_pb2.PrecheckPrescriptionRequest(prescription=self.content)
        return self.world.do(caller, PRECHECK, request)

    def prechecked(self) -> Rx:
        reply = accepted(self.precheck())
        self.rx_no, self.trace_code = reply.rx_no, reply.rx_trace_code
        return self

    def upload_request(self, **changes: Any) -> tuple[prescribing_pb2.UploadPrescriptionRequest, Evidence]:
        """`changes`: document, review, seal as dicts of fields; unknown, invalid as for evidence."""
        now = self.world.now_ms
        document = signed_pb2.PrescriptionDocument(
            **{
                "rx_no": self.rx_no,
                "rx_trace_code": self.trace_code,
                "prescription": self.content,
                "signed_at_ms": now,
                **changes.get("document", {}),
            }
        )
        prescription = signed(document, self.doctor_key)
        review_statement = signed_pb2.HospitalReviewStatement(
            **{
                "rx_no": self.rx_no,
                "pharmacist_code": PHARMACIST,
                "prescription_sha256": hashlib.sha256(prescription.payload).digest(),
                "signed_at_ms": now,
                **changes.get("review", {}),
            }
        )
        review = signed(review_statement, self.pharmacist_key)
        seal_statement = signed_pb2.UploadSealStatement(
            **{
                "rx_no": self.rx_no,
                "hospital_code": people.HOSPITAL_CODE,
                "prescription_sha256": hashlib.sha256(prescription.payload).digest(),
                "review_sha256": hashlib.sha256(review.payload).digest(),
                "file_sha256": hashlib.sha256(self.file.data).digest(),
                "signed_at_ms": now,
                **changes.get("seal", {}),
            }
        )
        seal = signed(seal_statement, self.seal_key)
        request = prescribing_pb2.UploadPrescriptionRequest(
            prescription=prescription, review=review, seal=seal, file=self.file
        )
        contents = {"prescription": prescription, "review": review, "seal": seal}
        proof = evidence(
            contents,
            file=self.file.data,
            invalid=changes.get("invalid", ()),
            unknown=changes.get("unknown", ()),
        )
        return request, proof

    def upload(self, caller: Caller = HOSPITAL, **changes: Any) -> Outcome:
        request, proof = self.upload_request(**changes)
        return self.world.do(caller, UPLOAD, request, proof)

    def uploaded(self) -> Rx:
        self.prechecked()
        accepted(self.upload())
        return self

    def revoke(self, caller: Caller = HOSPITAL, doctor_code: str = people.DOCTOR_CODE) -> Outcome:
        request = prescribing_pb2.RevokePrescriptionRequest(
            rx_no=self.rx_no, doctor_code=doctor_code, reason="用药调整"
        )
        return self.world.do(caller, REVOKE, request)

    def emit(self, *events: tuple[str, Any]) -> None:
        """Put events of other modules into the stream."""
        tx = self.world._draft("pharmacy/" + PHARMACY_CODE, "other")
        for event, payload in events:
            tx.emit("prescription", self.key, event, payload)
        self.world._commit(tx)

    def held(self, order_no: str = "O1") -> Rx:
        """Held by the pharmacy under an order of its own."""
        self.ordered(order_no)
        self.emit(
            (
                "order.held",
                events_pb2.OrderHeld(order_no=order_no, hold_until_ms=self.world.now_ms + 120 * MINUTE_MS),
            ),
            ("prescription.downloaded", events_pb2.PrescriptionDownloaded(order_no=order_no)),
        )
        return self

    def ordered(self, order_no: str = "O1") -> Rx:
        created = events_pb2.OrderCreated(order_no=order_no, pharmacy_code=PHARMACY_CODE, by_patient=True)
        self.emit(("order.created", created))
        return self

    def authorized(self, secret: bytes = b"s" * 32) -> Rx:
        authorization = state_pb2.Authorization(
            pharmacy_code=PHARMACY_CODE, secret_mac=secret, expires_at_ms=self.world.now_ms + 30 * MINUTE_MS
        )
        self.emit(("authorization.issued", events_pb2.AuthorizationIssued(authorization=authorization)))
        return self

    def quoted(self, order_no: str = "O1") -> Rx:
        review = events_pb2.ReviewGiven(order_no=order_no, pharmacist_code="YS1", opinion="合理")
        claim = state_pb2.Claim(quote_id="Q1", quote_expires_at_ms=self.world.now_ms + 30 * MINUTE_MS)
        quote = events_pb2.SettlementQuoted(order_no=order_no, claim=claim)
        quote.hold_until_ms = self.world.now_ms + 120 * MINUTE_MS
        self.emit(("review.passed", review), ("settlement.quoted", quote))
        return self

    def released(self, order_no: str = "O1") -> Rx:
        """Ended by the pharmacy, with what follows from it."""
        tx = self.world._draft("pharmacy/" + PHARMACY_CODE, "other")
        end_with_order(tx, self.key, order_no, "released")
        tx.emit("prescription", self.key, "order.released", events_pb2.OrderReleased(order_no=order_no))
        after_hold_ended(tx, self.key)
        self.world._commit(tx)
        return self


@pytest.fixture
def world() -> World:
    return hospital_world()


@pytest.fixture
def rx(world: World) -> Rx:
    return Rx(world)


def new_events(world: World, act: Callable[[], Any]) -> list[str]:
    before = len(world.events)
    act()
    return [event for _, event, _ in world.events[before:]]


def changes_nothing(world: World, act: Callable[[], Outcome]) -> Outcome:
    """The outcome of a refused command that left no event."""
    before = len(world.events)
    outcome = act()
    assert len(world.events) == before
    return outcome


# ---- precheck ----


def test_a_precheck_gives_number_and_trace_code_of_the_issuing_area(rx: Rx) -> None:
    events = new_events(rx.world, rx.prechecked)
    assert events == ["prescription.prechecked"]
    assert (len(rx.rx_no), rx.rx_no[:6], rx.rx_no.isdigit()) == (27, people.AREA, True)
    assert (len(rx.trace_code), rx.trace_code[:6], rx.trace_code.isdigit()) == (20, people.AREA, True)
    assert rx.state.content == rx.content
    assert rx.state.person_key == people.person_key(rx.world)
    assert rx.state.fills_allowed == 1


def test_the_precheck_names_the_diagnosis_that_it_rests_on(rx: Rx) -> None:
    rx.prechecked()
    _, _, payload = rx.world.events[-1]
    encounter = rx.world.state("encounter", rx.state.encounter_key)
    assert payload.diagnosis_version == encounter.diagnosis_version > 0


def test_the_repeat_flag_is_kept_and_gives_one_fill(world: World) -> None:
    rx = Rx(world, repeatable=True, repeats_max=3).prechecked()
    assert rx.state.content.repeatable
    assert rx.state.fills_allowed == 1


def test_the_same_number_with_equal_content_returns_the_first_numbers(rx: Rx) -> None:
    rx.prechecked()
    first = (rx.rx_no, rx.trace_code)
    outcome = changes_nothing(rx.world, rx.precheck)
    assert isinstance(outcome, Accepted)
    assert (accepted(outcome).rx_no, accepted(outcome).rx_trace_code) == first
    assert [target.stream_key for target in outcome.targets] == [rx.key]


def test_the_same_number_with_other_content_is_a_duplicate(rx: Rx) -> None:
    rx.prechecked()
    rx.content.department = "内科"
    found = refused(changes_nothing(rx.world, rx.precheck), "RX_DUPLICATE", "prescription.hospital_rx_no")
    assert [target.stream_key for target in found.targets] == [rx.key]


def test_another_hospital_may_use_the_same_number(rx: Rx) -> None:
    rx.prechecked()
    other = Rx(rx.world, hospital_code=people.OTHER_HOSPITAL_CODE)
    refused(other.precheck(OTHER_HOSPITAL), "ENCOUNTER_STATE", "prescription.encounter_id")


def test_a_hospital_prescribes_for_itself_only(rx: Rx) -> None:
    refused(
        changes_nothing(rx.world, lambda: rx.precheck(OTHER_HOSPITAL)),
        "INST_IMPERSONATION",
        "prescription.hospital_code",
    )


def test_an_unknown_and_a_foreign_visit_get_the_same_answer(world: World) -> None:
    foreign = Rx(world, hospital_code=people.OTHER_HOSPITAL_CODE).precheck(OTHER_HOSPITAL)
    unknown = Rx(world, "no-such-visit", hospital_code=people.OTHER_HOSPITAL_CODE).precheck(OTHER_HOSPITAL)
    first, second = refused(foreign, "ENCOUNTER_STATE"), refused(unknown, "ENCOUNTER_STATE")
    assert (first.field, first.detail, first.legal) == (second.field, second.detail, second.legal)


def test_a_visit_without_diagnosis_has_no_prescription(world: World) -> None:
    rx = Rx(world, people.started_encounter(world))
    found = refused(changes_nothing(world, rx.precheck), "ENCOUNTER_STATE", "prescription.encounter_id")
    assert found.detail["missing_step"] == "record diagnosis"


def test_the_person_is_the_one_of_the_visit(world: World) -> None:
    rx = Rx(world, person_no=people.STRANGER_NO)
    refused(changes_nothing(world, rx.precheck), "VCH_SUBJECT_MISMATCH", "prescription.person_no")


def test_a_paused_person_gets_no_prescription(rx: Rx) -> None:
    pause(rx.world)
    refused(changes_nothing(rx.world, rx.precheck), "PSN_INACTIVE")


def test_a_suspended_agreement_stops_the_precheck(rx: Rx) -> None:
    suspend_agreement(rx.world)
    refused(changes_nothing(rx.world, rx.precheck), "AGR_INACTIVE")


def test_only_the_doctor_of_the_visit_prescribes(world: World) -> None:
    rx = Rx(world, doctor_code=people.YOUNG_DOCTOR_CODE)
    refused(changes_nothing(world, rx.precheck), "DR_NOT_ALLOWED", "prescription.doctor_code")


def test_a_suspended_doctor_does_not_prescribe(rx: Rx) -> None:
    suspend_practitioner(rx.world, people.DOCTOR_CODE)
    refused(changes_nothing(rx.world, rx.precheck), "DR_NOT_ALLOWED", "prescription.doctor_code")


def test_an_internet_visit_needs_the_supplement_still(world: World) -> None:
    rx = Rx(world, internet_visit(world))
    suspend_agreement(world, people.INTERNET)
    refused(changes_nothing(world, rx.precheck), "AGR_NO_SUPPLEMENT")


def test_an_internet_follow_up_is_prescribed_for(world: World) -> None:
    Rx(world, internet_visit(world)).prechecked()


def test_a_broken_rule_is_recorded_as_a_blocked_precheck(world: World) -> None:
    rx = Rx(world, valid_days=9)
    rx.content.lines[1].dose = ""
    found = refused(changes_nothing(world, rx.precheck), "RX_VALIDITY", "prescription.valid_days")
    assert found.entry == "prescription.rule_blocked"
    assert found.detail == {"findings": "RX_VALIDITY;RX_VALIDITY;RX_USAGE@2"}
    assert [target.person_key for target in found.targets] == [people.person_key(world)]


def test_at_most_sixteen_findings_are_named(world: World) -> None:
    rx = Rx(world)
    for line in rx.content.lines:
        line.CopyFrom(common_pb2.RxLine(line_no=9, item_type="11", drug_code="bad", supply_days=99))
    del rx.content.diagnoses[:]
    rx.content.rx_type = "7"
    found = refused(rx.precheck(), "RX_LINES")
    assert len(found.detail["findings"].split(";")) == 16


def test_without_a_drug_list_every_drug_is_unknown() -> None:
    world = people.populated()
    refused(Rx(world).precheck(), "DRUG_UNKNOWN", "prescription.lines[0].drug_code")


def test_an_answered_warning_is_shown_and_recorded() -> None:
    world = hospital_world(drug(AMLODIPINE, limits="限二线用药"), drug(IRBESARTAN))
    rx = Rx(world)
    rx.content.lines[0].approval_flag = "1"
    refused(rx.precheck(), "MON_UNACKNOWLEDGED", "prescription.lines[0].approval_flag")
    rx.content.acknowledgements.add(code="MON_INDICATION", line_no=1, reason="一线药无效")
    rx.content.acknowledgements.add(code="CLIN_CONTRA", line_no=1, reason="无关的确认")
    before = len(world.events)
    reply = accepted(rx.precheck())
    assert [(warning.code, warning.line_no) for warning in reply.warnings] == [("MON_INDICATION", 1)]
    assert reply.warnings[0].message_en
    assert reply.warnings[0].message_zh
    left = [event for _, event, _ in world.events[before:]]
    assert left == ["prescription.prechecked", "prescription.rule_warned", "prescription.override_recorded"]


def test_a_renewal_names_its_original(world: World) -> None:
    original = Rx(world).uploaded()
    renewal = Rx(world, hospital_rx_no="RX2", renews_rx_no=original.rx_no)
    assert new_events(world, renewal.prechecked)[-2:] == ["prescription.prechecked", "prescription.renewed"]


def test_a_renewal_of_nothing_is_refused(world: World) -> None:
    refused(Rx(world, renews_rx_no="3" * 27).precheck(), "RX_REFILL", "prescription.renews_rx_no")


# ---- upload ----


def test_an_upload_leaves_review_signature_upload_and_effect(rx: Rx) -> None:
    rx.prechecked()
    before = len(rx.world.events)
    outcome = rx.upload()
    assert [event for _, event, _ in rx.world.events[before:]] == [
        "prescription.hospital_reviewed",
        "prescription.signed",
        "prescription.uploaded",
        "prescription.effective",
    ]
    reply = accepted(outcome)
    assert reply.statuses == common_pb2.RxStatuses(
        rx=common_pb2.RX_STATUS_EFFECTIVE, use=common_pb2.RX_USE_STATUS_UNUSED
    )
    assert reply.valid_until_ms == rx.content.valid_until_ms
    assert isinstance(outcome, Accepted)
    assert outcome.blobs == ((rx.key, hashlib.sha256(PDF).digest(), PDF),)


def test_an_upload_keeps_the_signed_bytes_exactly(rx: Rx) -> None:
    rx.prechecked()
    request, proof = rx.upload_request()
    accepted(rx.world.do(HOSPITAL, UPLOAD, request, proof))
    payload = next(payload for _, event, payload in rx.world.events if event == "prescription.uploaded")
    assert payload.prescription == request.prescription
    assert payload.seal == request.seal
    assert rx.state.prescription_sha256 == hashlib.sha256(request.prescription.payload).digest()


def test_an_ofd_file_is_taken(rx: Rx) -> None:
    rx.file = common_pb2.PrescriptionFile(media_type="application/ofd", data=b"PK\x03\x04 ofd")
    rx.uploaded()


class Wrong(NamedTuple):
    what: str
    changes: dict[str, Any]
    code: str
    field: str


WRONG_UPLOADS = [
    Wrong("forged doctor", {"invalid": ["prescription"]}, "SIG_INVALID", "prescription.signatures[0]"),
    Wrong("forged review", {"invalid": ["review"]}, "SIG_INVALID", "review.signatures[0]"),
    Wrong("forged seal", {"invalid": ["seal"]}, "SIG_INVALID", "seal.signatures[0]"),
    Wrong("unknown key", {"unknown": ["prescription"]}, "SIG_CERT", "prescription.signatures[0].key_id"),
    Wrong("signed before the key", {"document": {"signed_at_ms": START_MS - 2}}, "SIG_CERT", ""),
    Wrong("wrong trace code", {"document": {"rx_trace_code": "9" * 20}}, "RX_TRACE_CODE_INVALID", ""),
    Wrong("no pharmacist", {"review": {"pharmacist_code": "HY330100990099"}}, "RX_NO_HOSP_REVIEW", ""),
    Wrong("review by a doctor", {"review": {"pharmacist_code": people.YOUNG_DOCTOR_CODE}}, "RX_NO_HOSP_REVIEW", ""),
    Wrong("own review", {"review": {"pharmacist_code": people.DOCTOR_CODE}}, "RX_NO_HOSP_REVIEW", ""),
    Wrong("review of another", {"review": {"rx_no": "3" * 27}}, "SIG_INVALID", "review.payload"),
    Wrong("review of other bytes", {"review": {"prescription_sha256": bytes(32)}}, "SIG_INVALID", "review.payload"),
    Wrong("seal of another", {"seal": {"rx_no": "3" * 27}}, "SIG_INVALID", "seal.payload"),
    Wrong("seal over other bytes", {"seal": {"prescription_sha256": bytes(32)}}, "SIG_INVALID", "seal.payload"),
    Wrong("seal over another review", {"seal": {"review_sha256": bytes(32)}}, "SIG_INVALID", "seal.payload"),
    Wrong("seal over another file", {"seal": {"file_sha256": bytes(32)}}, "SIG_INVALID", "file"),
    Wrong(
        "seal of another hospital",
        {"seal": {"hospital_code": people.OTHER_HOSPITAL_CODE}},
        "INST_IMPERSONATION",
        "seal.payload",
    ),
]


@pytest.mark.parametrize("wrong", WRONG_UPLOADS, ids=[wrong.what for wrong in WRONG_UPLOADS])
def test_a_wrong_upload_is_refused_and_changes_nothing(rx: Rx, wrong: Wrong) -> None:
    rx.prechecked()
    found = refused(changes_nothing(rx.world, lambda: rx.upload(**wrong.changes)), wrong.code, wrong.field or None)
    assert [target.stream_key for target in found.targets] == [rx.key]


@pytest.mark.parametrize(("part", "age_ms"), [("document", -1), ("review", -1), ("seal", 15 * MINUTE_MS + 1)])
def test_a_signing_time_in_the_future_or_too_old_is_refused(rx: Rx, part: str, age_ms: int) -> None:
    rx.prechecked()
    rx.world.advance(20 * MINUTE_MS)
    refused(
        changes_nothing(rx.world, lambda: rx.upload(**{part: {"signed_at_ms": rx.world.now_ms - age_ms}})), "RX_TIME"
    )


def test_the_signed_content_is_the_prechecked_one(rx: Rx) -> None:
    rx.prechecked()
    altered = common_pb2.Prescription()
    altered.CopyFrom(rx.content)
    altered.lines[0].quantity = "2"
    found = changes_nothing(rx.world, lambda: rx.upload(document={"prescription": altered}))
    refused(found, "SIG_INVALID", "prescription.payload")


def test_a_file_of_another_type_is_malformed(rx: Rx) -> None:
    rx.prechecked()
    rx.file = common_pb2.PrescriptionFile(media_type="application/pdf", data=b"GIF89a")
    refused(changes_nothing(rx.world, rx.upload), "INPUT_MALFORMED", "file.data")


def test_a_content_of_another_type_is_no_signature_of_it(rx: Rx) -> None:
    rx.prechecked()
    request, proof = rx.upload_request()
    request.review.payload_type = request.prescription.payload_type
    refused(rx.world.do(HOSPITAL, UPLOAD, request, proof), "SIG_INVALID", "review.payload_type")


def test_a_content_that_does_not_parse_is_malformed(rx: Rx) -> None:
    rx.prechecked()
    request, proof = rx.upload_request()
    request.seal.payload = b"\xff\xff"
    refused(rx.world.do(HOSPITAL, UPLOAD, request, proof), "INPUT_MALFORMED", "seal.payload")


def test_an_unknown_and_a_foreign_prescription_get_the_same_answer(rx: Rx) -> None:
    rx.prechecked()
    foreign = refused(changes_nothing(rx.world, lambda: rx.upload(OTHER_HOSPITAL)), "RX_UNKNOWN")
    rx.rx_no = "330100" + "0" * 21
    unknown = refused(rx.upload(OTHER_HOSPITAL), "RX_UNKNOWN")
    assert (foreign.field, foreign.detail, foreign.legal) == (unknown.field, unknown.detail, unknown.legal)
    assert foreign.targets
    assert not unknown.targets


def test_a_trace_code_serves_one_upload(rx: Rx) -> None:
    rx.uploaded()
    refused(changes_nothing(rx.world, rx.upload), "RX_TRACE_CODE")


def test_an_upload_after_the_undo_ends_undone(rx: Rx) -> None:
    rx.prechecked()
    accepted(rx.revoke())
    refused(changes_nothing(rx.world, rx.upload), "RX_UNDONE")


def test_an_upload_after_the_validity_is_refused(rx: Rx) -> None:
    rx.prechecked()
    rx.world.advance(3 * DAY_MS + 1)
    found = refused(rx.upload(), "RX_NOT_EFFECTIVE")
    assert found.detail == {"rx_status": "EXPIRED"}


def test_a_cancelled_visit_has_no_upload(rx: Rx) -> None:
    rx.prechecked()
    request = encounter_pb2.CancelEncounterRequest(encounter_id=rx.content.encounter_id, reason="退号")
    accepted(rx.world.do(HOSPITAL, "EncounterService/CancelEncounter", request))
    refused(changes_nothing(rx.world, rx.upload), "ENCOUNTER_STATE")


def test_a_closed_visit_still_has_its_upload(rx: Rx) -> None:
    rx.prechecked()
    request = encounter_pb2.CloseEncounterRequest(encounter_id=rx.content.encounter_id)
    accepted(rx.world.do(HOSPITAL, "EncounterService/CloseEncounter", request))
    accepted(rx.upload())


def test_what_was_suspended_since_the_precheck_stops_the_upload(world: World) -> None:
    doctor, pharmacist, person, agreement = (Rx(world, hospital_rx_no=f"RX{place}").prechecked() for place in range(4))
    suspend_practitioner(world, people.DOCTOR_CODE)
    refused(doctor.upload(), "DR_NOT_ALLOWED")
    resume_practitioner(world, people.DOCTOR_CODE)
    suspend_practitioner(world, PHARMACIST)
    refused(pharmacist.upload(), "RX_NO_HOSP_REVIEW")
    resume_practitioner(world, PHARMACIST)
    suspend_agreement(world)
    refused(agreement.upload(), "AGR_INACTIVE")
    accepted(change_agreement(world, people.BASE, registry_pb2.AGREEMENT_STATUS_ACTIVE))
    pause(world)
    refused(person.upload(), "PSN_INACTIVE")


def test_a_revoked_key_signs_nothing_more(rx: Rx) -> None:
    rx.prechecked()
    agency(rx.world, "RevokeCertificate", registry_pb2.RevokeCertificateRequest(key_id=rx.seal_key, reason="泄露"))
    refused(rx.upload(), "SIG_CERT", "seal.signatures[0].key_id")


# ---- look-ups ----


def rounds(world: World, caller: Caller, method: str, request: Any, proof: Evidence | None = None) -> int:
    """How often the decision asks a store that has loaded nothing yet."""
    full, lazy, count = world.workspace, Workspace(), 0
    command = Command(method, request, caller, "count-rounds", world.now_ms, proof or Evidence())
    world.workspace = lazy
    try:
        while True:
            tx = world._draft(caller.actor, "count-rounds", caller.area_code)
            try:
                if not count and (ahead := decide.ahead(command)):
                    tx.want_ahead(ahead)  # as the lane begins
                assert isinstance(decide.decide(tx, command), Accepted)
            except Missing:
                count += 1
                _load(full, lazy, tx._wanted.names, tx._wanted.streams, tx._wanted.catalog)
                continue
            return count
    finally:
        world.workspace = full


def _load(
    full: Workspace,
    lazy: Workspace,
    names: Iterable[tuple[str, bytes]],
    streams: Iterable[bytes],
    catalog: Iterable[tuple[str, str, str]],
) -> None:
    for name in names:
        lazy.names[name] = full.names.get(name)
    for row in catalog:
        lazy.catalog[row] = full.catalog.get(row)
    resolved = [key for key in lazy.names.values() if key is not None]
    for key in [*streams, *resolved]:
        lazy.streams[key] = full.streams.get(key)


def test_a_precheck_takes_two_rounds_and_an_upload_one(rx: Rx) -> None:
    request = prescribing_pb2.PrecheckPrescriptionRequest(prescription=rx.content)
    assert rounds(rx.world, HOSPITAL, PRECHECK, request) == 2
    rx.prechecked()
    assert rounds(rx.world, HOSPITAL, UPLOAD, *rx.upload_request()) == 1


# ---- revoke ----


def test_an_unused_prescription_is_withdrawn_with_all_that_hangs_on_it(rx: Rx) -> None:
    rx.uploaded().authorized().ordered()
    events = new_events(rx.world, rx.revoke)
    assert events == ["authorization.revoked", "order.expired", "prescription.undone"]
    assert rx.state.rx_status == common_pb2.RX_STATUS_UNDONE
    assert rx.state.orders[0].status == common_pb2.ORDER_STATUS_TIMED_OUT
    assert not rx.state.lapsed
    assert (rx.state.undo_doctor_code, rx.state.undo_reason) == (people.DOCTOR_CODE, "用药调整")


def test_a_prechecked_prescription_is_withdrawn(rx: Rx) -> None:
    rx.prechecked()
    assert new_events(rx.world, rx.revoke) == ["prescription.undone"]


def test_only_the_issuing_doctor_withdraws(rx: Rx) -> None:
    rx.uploaded()
    outcome = changes_nothing(rx.world, lambda: rx.revoke(doctor_code=people.YOUNG_DOCTOR_CODE))
    refused(outcome, "RX_UNDO_DENIED", "doctor_code")


@pytest.mark.parametrize(
    "status", [registry_pb2.PRACTITIONER_STATUS_SUSPENDED, registry_pb2.PRACTITIONER_STATUS_TERMINATED]
)
def test_a_doctor_who_is_not_active_withdraws_nothing(
    rx: Rx, status: registry_pb2.PractitionerStatus.ValueType
) -> None:
    rx.uploaded()
    request = registry_pb2.ChangePractitionerStatusRequest(
        practitioner_code=people.DOCTOR_CODE, status=status, case_no="CASE-1"
    )
    agency(rx.world, "ChangePractitionerStatus", request)
    outcome = changes_nothing(rx.world, rx.revoke)
    assert refused(outcome, "RX_UNDO_DENIED", "doctor_code").targets
    # What remains is the agency's freeze.
    agency(rx.world, "FreezePrescription", registry_pb2.FreezePrescriptionRequest(rx_no=rx.rx_no, case_no="CASE-1"))


def test_another_hospital_learns_nothing_by_revoking(rx: Rx) -> None:
    rx.uploaded()
    foreign = refused(changes_nothing(rx.world, lambda: rx.revoke(OTHER_HOSPITAL)), "RX_UNKNOWN", "rx_no")
    rx.rx_no = "no such number"
    unknown = refused(rx.revoke(OTHER_HOSPITAL), "RX_UNKNOWN", "rx_no")
    assert (foreign.detail, foreign.legal) == (unknown.detail, unknown.legal)


def test_a_withdrawn_prescription_is_not_withdrawn_again(rx: Rx) -> None:
    rx.uploaded()
    accepted(rx.revoke())
    refused(changes_nothing(rx.world, rx.revoke), "RX_UNDO_STATE")


def test_the_withdrawal_of_a_held_prescription_is_kept_once(rx: Rx) -> None:
    rx.uploaded().held()
    before = len(rx.world.events)
    found = refused(rx.revoke(), "RX_UNDO_STATE")
    assert found.keeps_events
    assert [event for _, event, _ in rx.world.events[before:]] == ["prescription.undo_requested"]
    assert rx.state.undo_requested
    again = refused(changes_nothing(rx.world, rx.revoke), "RX_UNDO_STATE")
    assert not again.keeps_events


def test_a_requested_withdrawal_takes_effect_when_the_hold_is_released(rx: Rx) -> None:
    rx.uploaded().held().quoted()
    refused(rx.revoke(), "RX_UNDO_STATE")
    events = new_events(rx.world, rx.released)
    assert events == ["settlement.quote_expired", "order.released", "prescription.undone"]
    assert rx.state.rx_status == common_pb2.RX_STATUS_UNDONE
    assert not rx.state.undo_requested
    assert (rx.state.undo_doctor_code, rx.state.undo_reason) == (people.DOCTOR_CODE, "用药调整")


def test_a_requested_withdrawal_takes_effect_when_the_hold_runs_out(rx: Rx) -> None:
    rx.uploaded().held()
    refused(rx.revoke(), "RX_UNDO_STATE")
    rx.world.advance(120 * MINUTE_MS + 1)
    assert new_events(rx.world, rx.world.fire_timers) == ["order.expired", "prescription.undone"]


def test_without_a_request_the_end_of_a_hold_withdraws_nothing(rx: Rx) -> None:
    rx.uploaded().held()
    assert new_events(rx.world, rx.released) == ["order.released"]
    assert rx.state.rx_status == common_pb2.RX_STATUS_EFFECTIVE
    assert rx.state.use_status == common_pb2.RX_USE_STATUS_UNUSED


def test_a_settled_prescription_takes_no_request(rx: Rx) -> None:
    rx.uploaded().held().quoted()
    claim = state_pb2.Claim(quote_id="Q1", settlement_id="S1")
    rx.emit(("settlement.committed", events_pb2.SettlementCommitted(order_no="O1", claim=claim)))
    refused(changes_nothing(rx.world, rx.revoke), "RX_UNDO_STATE")
    assert not rx.state.undo_requested


def test_the_end_of_the_validity_ends_a_live_hold_without_blame(rx: Rx) -> None:
    rx.uploaded()
    rx.world.advance(3 * DAY_MS - 60 * MINUTE_MS - rx.world.now_ms + rx.content.prescribed_at_ms)
    rx.authorized().held("O1")
    rx.ordered("O2")
    rx.world.advance(60 * MINUTE_MS + 1)
    events = new_events(rx.world, rx.world.fire_timers)
    assert events[-3:] == ["order.expired", "order.expired", "prescription.expired"]
    assert rx.state.use_status == common_pb2.RX_USE_STATUS_UNUSED
    assert not rx.state.lapsed


# ---- freeze ----


def freeze(rx: Rx, caller: Caller = people.AGENCY, method: str = FREEZE) -> Outcome:
    kind = registry_pb2.FreezePrescriptionRequest if method == FREEZE else registry_pb2.UnfreezePrescriptionRequest
    return rx.world.do(caller, method, kind(rx_no=rx.rx_no, case_no="C1"))


def test_a_freeze_ends_authorisations_and_an_unfreeze_restores_the_force(rx: Rx) -> None:
    rx.uploaded().authorized().ordered()
    assert new_events(rx.world, lambda: freeze(rx)) == ["authorization.revoked", "prescription.frozen"]
    assert rx.state.rx_status == common_pb2.RX_STATUS_FROZEN
    reply = accepted(freeze(rx, method=UNFREEZE))
    assert reply.statuses.rx == common_pb2.RX_STATUS_EFFECTIVE
    assert rx.state.orders[0].status == common_pb2.ORDER_STATUS_CREATED


def test_the_province_freezes_too(rx: Rx) -> None:
    rx.uploaded()
    accepted(freeze(rx, people.PROVINCE))


def test_an_agency_of_another_area_knows_no_such_prescription(rx: Rx) -> None:
    rx.uploaded()
    foreign = refused(changes_nothing(rx.world, lambda: freeze(rx, people.OTHER_AGENCY)), "RX_UNKNOWN", "rx_no")
    rx.rx_no = "330200" + "1" * 21
    unknown = refused(freeze(rx, people.OTHER_AGENCY), "RX_UNKNOWN", "rx_no")
    assert (foreign.detail, foreign.legal) == (unknown.detail, unknown.legal)


def test_only_what_is_in_force_is_frozen_and_only_what_is_frozen_is_released(rx: Rx) -> None:
    rx.prechecked()
    refused(changes_nothing(rx.world, lambda: freeze(rx)), "RX_NOT_EFFECTIVE", "rx_no")
    accepted(rx.upload())
    found = refused(changes_nothing(rx.world, lambda: freeze(rx, method=UNFREEZE)), "RX_NOT_EFFECTIVE", "rx_no")
    assert found.legal == ("freeze",)


def test_a_frozen_prescription_is_not_withdrawn(rx: Rx) -> None:
    rx.uploaded()
    accepted(freeze(rx))
    refused(changes_nothing(rx.world, rx.revoke), "RX_UNDO_STATE")


def test_a_withdrawal_whose_hold_ended_in_the_freeze_waits_for_the_release(rx: Rx) -> None:
    rx.uploaded().held()
    refused(rx.revoke(), "RX_UNDO_STATE")
    accepted(freeze(rx))
    assert new_events(rx.world, rx.released) == ["order.released"]
    events = new_events(rx.world, lambda: freeze(rx, method=UNFREEZE))
    assert events == ["prescription.unfrozen", "prescription.undone"]


# ---- what the tests change in the world ----


def pause(world: World) -> None:
    request = registry_pb2.ChangePersonStatusRequest(
        person_no=people.PERSON_NO, status=registry_pb2.PERSON_STATUS_PAUSED, reason="停保"
    )
    agency(world, "ChangePersonStatus", request)


def change_practitioner(world: World, code: str, status: registry_pb2.PractitionerStatus.ValueType) -> None:
    request = registry_pb2.ChangePractitionerStatusRequest(practitioner_code=code, status=status, case_no="C1")
    agency(world, "ChangePractitionerStatus", request)


def suspend_practitioner(world: World, code: str) -> None:
    change_practitioner(world, code, registry_pb2.PRACTITIONER_STATUS_SUSPENDED)


def resume_practitioner(world: World, code: str) -> None:
    change_practitioner(world, code, registry_pb2.PRACTITIONER_STATUS_ACTIVE)


def change_agreement(
    world: World,
    kind: registry_pb2.AgreementKind.ValueType,
    status: registry_pb2.AgreementStatus.ValueType,
) -> Outcome:
    request = registry_pb2.ChangeAgreementStatusRequest(
        institution_code=people.HOSPITAL_CODE, kind=kind, status=status, case_no="C1"
    )
    return world.do(people.AGENCY, "RegistryService/ChangeAgreementStatus", request)


def suspend_agreement(world: World, kind: registry_pb2.AgreementKind.ValueType = people.BASE) -> None:
    accepted(change_agreement(world, kind, registry_pb2.AGREEMENT_STATUS_SUSPENDED))


def internet_visit(world: World) -> str:
    """A diagnosed internet follow-up."""
    encounter_id = people.started_encounter(world, internet=True)
    attest = encounter_pb2.AttestDoctorRequest(
        encounter_id=encounter_id, media_sha256=bytes(32), liveness_passed=True, attested_at_ms=world.now_ms
    )
    accepted(world.do(HOSPITAL, "EncounterService/AttestDoctor", attest))
    proof = encounter_pb2.ProveFollowUpRequest(
        encounter_id=encounter_id,
        disease_code="I10.x00x002",
        earlier_hospital_code=people.HOSPITAL_CODE,
        earlier_visit_on="2026-10-15",
    )
    accepted(world.do(HOSPITAL, "EncounterService/ProveFollowUp", proof))
    accepted(people.record_diagnosis(world, encounter_id))
    return encounter_id
