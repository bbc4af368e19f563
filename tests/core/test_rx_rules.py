"""Every precheck rule both ways: a prescription that keeps it, and one that breaks it in one place."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from erxhub.core import rx_rules
from erxhub.core.refusals import CATALOGUE
from erxhub.core.rx_rules import RULES, Facts, Severity, assess, blocking, warnings
from erxhub.policy.pack import china_date, pack_for
from erxhub.policy.rules import Rules
from erxhub.v1 import catalog_pb2, common_pb2, state_pb2

NOW_MS = 1_795_312_800_000  # 2026-11-22 10:00 in Beijing
MINUTE_MS = 60_000
DAY_MS = 86_400_000

AMLODIPINE = "XC08CAA187A001020301650"
IRBESARTAN = "XC09CAE003A001020178814"
PATENT = "ZA04CAL0115010102767"
HERB = "T001500736"
PERSON_KEY = b"p" * 32
DOCTOR = "D330100990001"


def drug(code: str, **changes: Any) -> catalog_pb2.Drug:
    fields: dict[str, Any] = {
        "generic_name": f"drug {code}",
        "pack": "28片/盒",
        "charge_class": "01",
        "prior_pay_ratio": "0",
        "control": catalog_pb2.DRUG_CONTROL_NONE,
        "units_per_pack": "28",
    }
    return catalog_pb2.Drug(code=code, **{**fields, **changes})


def line(number: int, code: str, **changes: Any) -> common_pb2.RxLine:
    fields: dict[str, Any] = {
        "item_type": "11",
        "generic_name": f"drug {code}",
        "dose": "2.5",
        "dose_unit": "mg",
        "units_per_dose": "1",
        "frequency_code": "11",
        "route_code": "1",
        "supply_days": 7,
        "quantity": "1",
        "quantity_unit": "盒",
        "unit_price": "10.37",
        "amount_fen": 1037,
    }
    return common_pb2.RxLine(line_no=number, drug_code=code, **{**fields, **changes})


def frequency(code: str, times: int, period_days: int, schedule: str = "regular") -> catalog_pb2.Frequency:
    return catalog_pb2.Frequency(code=code, name=code, times=times, period_days=period_days, schedule=schedule)


class Case:
    """A prescription that keeps every rule; a test changes what it wants to see refused."""

    def __init__(self) -> None:
        diagnosis = common_pb2.Diagnosis(code="I10.x00x002", name="高血压", main=True, diagnosis_type="1")
        self.now_ms = NOW_MS
        self.rx = common_pb2.Prescription(
            hospital_rx_no="RX1",
            hospital_code="H33010099901",
            encounter_id="E1",
            person_no="330100001",
            rx_type="1",
            med_type="11",
            doctor_code=DOCTOR,
            prescribed_at_ms=NOW_MS - MINUTE_MS,
            valid_days=3,
            valid_until_ms=NOW_MS - MINUTE_MS + 3 * DAY_MS,
            diagnoses=[diagnosis],
            lines=[line(1, AMLODIPINE), line(2, IRBESARTAN)],
            origin=common_pb2.PRESCRIPTION_ORIGIN_HUMAN,
        )
        self.encounter = state_pb2.EncounterState(
            visit_kind=common_pb2.VISIT_KIND_OFFLINE,
            person_key=PERSON_KEY,
            med_type="11",
            started_at_ms=NOW_MS - 10 * MINUTE_MS,
            diagnoses=[diagnosis],
        )
        self.person = state_pb2.PersonState(born_on="1961-04-12", chronic_codes=["M03900"])
        self.doctor = state_pb2.PractitionerState(practice_years=8)
        self.drugs = {code: drug(code) for code in (AMLODIPINE, IRBESARTAN)}
        self.diseases: dict[str, catalog_pb2.Disease] | None = {
            "I10.x00x002": catalog_pb2.Disease(code="I10.x00x002", name="高血压", is_diagnosis=True),
            "I10": catalog_pb2.Disease(code="I10", name="高血压"),
        }
        self.chronic: dict[str, catalog_pb2.ChronicDisease] | None = {
            code: catalog_pb2.ChronicDisease(code=code) for code in ("M03900", "M01600")
        }
        self.frequencies = {
            "11": frequency("11", 1, 1),
            "12": frequency("12", 2, 1),
            "21": frequency("21", 1, 7),
            "51": frequency("51", 0, 0, "continuous"),
            "62": frequency("62", 1, 1, "as_needed"),
            "63": frequency("63", 1, 1, "single"),
        }
        self.renewed: state_pb2.PrescriptionState | None = None

    def facts(self) -> Facts:
        return Facts(
            prescription=self.rx,
            encounter=self.encounter,
            person=self.person,
            doctor=self.doctor,
            drugs=self.drugs,
            diseases=self.diseases,
            chronic=self.chronic,
            frequencies=self.frequencies,
            renewed=self.renewed,
            rules=Rules(pack_for("330100"), china_date(self.now_ms)),
            now_ms=self.now_ms,
        )

    def go_online(self) -> None:
        self.encounter.visit_kind = common_pb2.VISIT_KIND_INTERNET
        self.encounter.attested = True
        self.encounter.follow_up_proven = True

    def make_herbal(self) -> None:
        herb = line(1, HERB, item_type="13", dose="", dose_unit="", frequency_code="", route_code="")
        herb.units_per_dose = ""
        del self.rx.lines[:]
        self.rx.lines.append(herb)
        self.drugs[HERB] = drug(HERB, pack="", units_per_pack="")
        self.rx.rx_type = "2"
        self.rx.herbal.CopyFrom(
            common_pb2.HerbalUsage(
                route_code="1", frequency_code="12", dose_unit="剂", dose="1", doses=7, note="水煎服"
            )
        )

    def acknowledge(self, code: str, line_no: int, doctor_code: str = "", reason: str = "已评估") -> None:
        self.rx.acknowledgements.add(code=code, line_no=line_no, doctor_code=doctor_code, reason=reason)

    def born_days_ago(self, days: int) -> None:
        self.person.born_on = (china_date(self.rx.prescribed_at_ms) - timedelta(days=days)).isoformat()


def blocked(case: Case) -> list[tuple[str, str, int]]:
    return [(finding.code, finding.field, finding.line_no) for finding in blocking(assess(case.facts()))]


Change = Callable[[Case], Any]


def _set(path: str, value: Any) -> Change:
    """Set one field of the case, e.g. "rx.lines.0.quantity"."""

    def change(case: Case) -> None:
        *parents, last = path.split(".")
        owner: Any = case
        for name in parents:
            owner = owner[int(name)] if name.isdigit() else getattr(owner, name)
        setattr(owner, last, value)

    return change


def _all(*changes: Change) -> Change:
    def change(case: Case) -> None:
        for one in changes:
            one(case)

    return change


def _drug(code: str = AMLODIPINE, **changes: Any) -> Change:
    return lambda case: case.drugs.__setitem__(code, drug(code, **changes))


def _six_drugs(case: Case) -> None:
    del case.rx.lines[:]
    for number in range(1, 7):
        code = f"XC08CAA187A0010203{number:05d}"
        case.rx.lines.append(line(number, code))
        case.drugs[code] = drug(code)


def _child_online(case: Case) -> None:
    case.go_online()
    case.person.born_on = "2022-07-08"
    case.rx.patient.age_years = 4


def _infant(days: int, **facts: Any) -> Change:
    def change(case: Case) -> None:
        case.born_days_ago(days)
        case.rx.patient.CopyFrom(common_pb2.PatientFacts(**facts))

    return change


def _long_term(days: int, *changes: Change) -> Change:
    def change(case: Case) -> None:
        case.rx.long_term = True
        case.rx.chronic_code = "M03900"
        for one in case.rx.lines:
            one.supply_days = days
            one.quantity = str(-(-days // 28))
            one.amount_fen = 1037 * int(one.quantity)
        _all(*changes)(case)

    return change


def _renewal(person_key: bytes = PERSON_KEY, uploaded_version: int = 4) -> Change:
    def change(case: Case) -> None:
        case.rx.renews_rx_no = "3" * 27
        case.renewed = state_pb2.PrescriptionState(person_key=person_key, uploaded_version=uploaded_version)

    return change


def _online(*changes: Change) -> Change:
    return _all(Case.go_online, *changes)


def _herbal(*changes: Change) -> Change:
    return _all(Case.make_herbal, *changes)


_VACCINE = _drug(control=catalog_pb2.DRUG_CONTROL_VACCINE)
_BLOOD = _drug(control=catalog_pb2.DRUG_CONTROL_BLOOD_PRODUCT)
_ALLERGIC = _all(
    _drug(generic_name="苯磺酸氨氯地平片"), lambda case: case.rx.patient.allergies.append("氨氯地平（水肿）")
)
_RESTRICTED = _all(_drug(limits="限二线用药"), _set("rx.lines.0.approval_flag", "1"))
_MAXIMUM = _drug(max_daily_dose="10", max_daily_dose_unit="mg")
_CODE_FIELD = "prescription.lines[0].drug_code"

BROKEN: list[tuple[str, Change, str, str, int]] = [
    ("inexperienced doctor online", _online(_set("doctor.practice_years", 2)), "DR_EXPERIENCE", "doctor_code", 0),
    ("doctor not attested", _online(_set("encounter.attested", False)), "DR_NOT_ATTESTED", "encounter_id", 0),
    ("no follow-up", _online(_set("encounter.follow_up_proven", False)), "RX_NOT_REVISIT", "encounter_id", 0),
    ("written by a program", _set("rx.origin", 2), "RX_AUTOGENERATED", "origin", 0),
    ("no lines", lambda case: case.rx.ClearField("lines"), "RX_LINES", "lines", 0),
    ("gap in the line numbers", _set("rx.lines.1.line_no", 3), "RX_LINES", "lines[1].line_no", 3),
    ("drug twice", _set("rx.lines.1.drug_code", AMLODIPINE), "RX_LINES", "lines[1].drug_code", 2),
    ("malformed drug code", _set("rx.lines.0.drug_code", "XC08"), "DRUG_CODE", "lines[0].drug_code", 1),
    ("code of another kind", _set("rx.lines.0.item_type", "12"), "DRUG_CODE", "lines[0].drug_code", 1),
    ("not in the edition", lambda case: case.drugs.pop(AMLODIPINE), "DRUG_UNKNOWN", "lines[0].drug_code", 1),
    (
        "herbs beside tablets",
        _herbal(lambda case: case.rx.lines.append(line(2, AMLODIPINE))),
        "RX_MIXED_KINDS",
        "lines",
        0,
    ),
    ("tablets on a herbal form", _set("rx.rx_type", "2"), "RX_MIXED_KINDS", "rx_type", 0),
    ("six drugs", _six_drugs, "RX_TOO_MANY_DRUGS", "lines", 0),
    (
        "narcotic",
        _drug(control=catalog_pb2.DRUG_CONTROL_NARCOTIC),
        "RX_CONTROLLED",
        "lines[0].drug_code",
        1,
    ),
    ("controlled form", _set("rx.rx_type", "7"), "RX_CONTROLLED", "rx_type", 0),
    ("vaccine online", _online(_VACCINE), "RX_BANNED_ONLINE", "lines[0].drug_code", 1),
    ("blood product online", _online(_BLOOD), "RX_BANNED_ONLINE", "lines[0].drug_code", 1),
    ("marked preparation", _set("rx.lines.0.hospital_preparation", True), "DRUG_HOSP_PREP", "lines[0].drug_code", 1),
    ("listed preparation", _drug(hospital_preparation=True), "DRUG_HOSP_PREP", "lines[0].drug_code", 1),
    ("doctor not on the list", _drug(dual_channel=True), "RX_DUAL_CHANNEL", "lines[0].drug_code", 1),
    ("child alone online", _child_online, "RX_CHILD_UNDER6", "patient", 0),
    (
        "child without specialist",
        _all(_child_online, _set("rx.patient.guardian_present", True)),
        "RX_CHILD_UNDER6",
        "patient",
        0,
    ),
    ("infant without days", _infant(90), "RX_INFANT_AGE", "patient.age_days", 0),
    ("infant with wrong days", _infant(90, age_days=80), "RX_INFANT_AGE", "patient.age_days", 0),
    ("infant with years", _infant(90, age_days=90, age_years=1), "RX_INFANT_AGE", "patient.age_days", 0),
    ("newborn not marked", _infant(10, age_days=10), "RX_INFANT_AGE", "patient.newborn", 0),
    ("old newborn", _infant(90, age_days=90, newborn=True), "RX_INFANT_AGE", "patient.newborn", 0),
    ("adult as an infant", _set("rx.patient.age_days", 20), "RX_INFANT_AGE", "patient.age_days", 0),
    ("no diagnosis", lambda case: case.rx.ClearField("diagnoses"), "DX_INVALID", "diagnoses", 0),
    ("no main diagnosis", _set("rx.diagnoses.0.main", False), "DX_INVALID", "diagnoses", 0),
    (
        "two main diagnoses",
        lambda case: case.rx.diagnoses.add(code="E11.900", name="糖尿病", main=True, diagnosis_type="1"),
        "DX_INVALID",
        "diagnoses",
        0,
    ),
    (
        "diagnosis twice",
        lambda case: case.rx.diagnoses.add(code="I10.x00x002", name="高血压", diagnosis_type="1"),
        "DX_INVALID",
        "diagnoses[1].code",
        0,
    ),
    ("malformed disease", _set("rx.diagnoses.0.code", "10.I"), "DX_INVALID", "diagnoses[0].code", 0),
    ("unknown disease", _set("rx.diagnoses.0.code", "I10.x00x099"), "DX_INVALID", "diagnoses[0].code", 0),
    ("category", _set("rx.diagnoses.0.code", "I10"), "DX_INVALID", "diagnoses[0].code", 0),
    (
        "diagnosis of no visit",
        lambda case: case.encounter.ClearField("diagnoses"),
        "DX_INVALID",
        "diagnoses[0].code",
        0,
    ),
    ("chronic visit without a code", _set("rx.med_type", "14"), "DX_CHRONIC_MISSING", "chronic_code", 0),
    (
        "chronic visit, ordinary prescription",
        _set("encounter.med_type", "14"),
        "DX_CHRONIC_MISSING",
        "chronic_code",
        0,
    ),
    ("chronic code not filed", _set("rx.chronic_code", "M01600"), "DX_CHRONIC_MISSING", "chronic_code", 0),
    (
        "filed chronic code of no list",
        _all(_set("rx.chronic_code", "M03901"), lambda case: case.person.chronic_codes.append("M03901")),
        "DX_CHRONIC_MISSING",
        "chronic_code",
        0,
    ),
    ("malformed chronic code", _set("rx.chronic_code", "M1"), "DX_CHRONIC_MISSING", "chronic_code", 0),
    (
        "four days valid",
        _all(_set("rx.valid_days", 4), _set("rx.valid_until_ms", NOW_MS - MINUTE_MS + 4 * DAY_MS)),
        "RX_VALIDITY",
        "valid_days",
        0,
    ),
    ("end at a midnight", _set("rx.valid_until_ms", NOW_MS + 2 * DAY_MS), "RX_VALIDITY", "valid_until_ms", 0),
    (
        "before the visit",
        _set("encounter.started_at_ms", NOW_MS),
        "RX_TIME",
        "prescribed_at_ms",
        0,
    ),
    ("in the future", _set("now_ms", NOW_MS - 2 * MINUTE_MS), "RX_TIME", "prescribed_at_ms", 0),
    ("older than its validity", _set("now_ms", NOW_MS + 4 * DAY_MS), "RX_TIME", "prescribed_at_ms", 0),
    ("eight days", _set("rx.lines.0.supply_days", 8), "RX_SUPPLY_DAYS", "lines[0].supply_days", 1),
    (
        "blank reason",
        _all(_set("rx.lines.0.supply_days", 8), _set("rx.supply_reason", "  ")),
        "RX_SUPPLY_DAYS",
        "lines[0].supply_days",
        1,
    ),
    (
        "four days in an emergency",
        _all(_set("rx.rx_type", "3"), _set("rx.lines.0.supply_days", 4), _set("rx.lines.1.supply_days", 3)),
        "RX_SUPPLY_DAYS",
        "lines[0].supply_days",
        1,
    ),
    ("long-term, not chronic", _long_term(28, _set("rx.chronic_code", "")), "RX_LONG_TERM", "chronic_code", 0),
    (
        "long-term without assessment",
        _long_term(29, _set("rx.supply_reason", "稳定")),
        "RX_LONG_TERM",
        "long_term_assessment",
        0,
    ),
    (
        "long-term without reason",
        _long_term(29, _set("rx.long_term_assessment", "稳定")),
        "RX_LONG_TERM",
        "supply_reason",
        0,
    ),
    (
        "more than twelve weeks",
        _long_term(85, _set("rx.long_term_assessment", "稳定"), _set("rx.supply_reason", "稳定")),
        "RX_LONG_TERM",
        "lines",
        0,
    ),
    ("renews nothing", _set("rx.renews_rx_no", "3" * 27), "RX_REFILL", "renews_rx_no", 0),
    ("renews another person's", _renewal(b"q" * 32), "RX_REFILL", "renews_rx_no", 0),
    ("renews one never uploaded", _renewal(uploaded_version=0), "RX_REFILL", "renews_rx_no", 0),
    ("no dose", _set("rx.lines.0.dose", ""), "RX_USAGE", "lines[0].dose", 1),
    ("dose of zero", _set("rx.lines.0.dose", "0.0"), "RX_USAGE", "lines[0].dose", 1),
    ("half a dose of zero", _set("rx.lines.0.dose", "160/0"), "RX_USAGE", "lines[0].dose", 1),
    ("no dose unit", _set("rx.lines.0.dose_unit", ""), "RX_USAGE", "lines[0].dose_unit", 1),
    ("no frequency", _set("rx.lines.0.frequency_code", ""), "RX_USAGE", "lines[0].frequency_code", 1),
    ("no route", _set("rx.lines.0.route_code", " "), "RX_USAGE", "lines[0].route_code", 1),
    ("as directed", _set("rx.lines.0.usage_note", "As Directed"), "RX_USAGE", "lines[0].usage_note", 1),
    ("遵医嘱", _set("rx.lines.0.usage_note", "餐后，遵医嘱"), "RX_USAGE", "lines[0].usage_note", 1),
    ("herbs without doses", _herbal(_set("rx.herbal.doses", 0)), "RX_USAGE", "herbal.doses", 0),
    ("herbs without a dose", _herbal(_set("rx.herbal.dose", "")), "RX_USAGE", "herbal.dose", 0),
    ("herbs without a note", _herbal(_set("rx.herbal.note", "")), "RX_USAGE", "herbal.note", 0),
    ("herbs without a route", _herbal(_set("rx.herbal.route_code", "")), "RX_USAGE", "herbal.route_code", 0),
    ("herbs as directed", _herbal(_set("rx.herbal.note", "遵医嘱")), "RX_USAGE", "herbal.note", 0),
    ("quantity of zero", _set("rx.lines.0.quantity", "0.0000"), "AMT_MISMATCH", "lines[0].quantity", 1),
    ("quantity with zeros before", _set("rx.lines.0.quantity", "01"), "AMT_MISMATCH", "lines[0].quantity", 1),
    ("one fen too much", _set("rx.lines.0.amount_fen", 1038), "AMT_MISMATCH", "lines[0].amount_fen", 1),
    ("price with zeros before", _set("rx.lines.0.unit_price", "010"), "AMT_MISMATCH", "lines[0].amount_fen", 1),
    (
        "three packs for a week",
        _all(_set("rx.lines.0.quantity", "3"), _set("rx.lines.0.amount_fen", 3111)),
        "AMT_MISMATCH",
        "lines[0].quantity",
        1,
    ),
    (
        "twice the maximum",
        _all(_MAXIMUM, _set("rx.lines.0.dose", "10"), _set("rx.lines.0.frequency_code", "12")),
        "RX_OVERDOSE",
        "lines[0].dose",
        1,
    ),
    (
        "too often when needed",
        _all(
            _MAXIMUM,
            _set("rx.lines.0.dose", "5"),
            _set("rx.lines.0.frequency_code", "62"),
            _set("rx.lines.0.max_per_day", 3),
        ),
        "RX_OVERDOSE",
        "lines[0].dose",
        1,
    ),
    (
        "overdose signed by another doctor",
        _all(
            _MAXIMUM,
            _set("rx.lines.0.dose", "11"),
            lambda case: case.acknowledge("RX_OVERDOSE", 1, "D330100990002"),
        ),
        "RX_OVERDOSE",
        "lines[0].dose",
        1,
    ),
    (
        "overdose not signed again",
        _all(_MAXIMUM, _set("rx.lines.0.dose", "11"), lambda case: case.acknowledge("RX_OVERDOSE", 1)),
        "RX_OVERDOSE",
        "lines[0].dose",
        1,
    ),
    ("allergy", _ALLERGIC, "CLIN_CONTRA", "lines[0].drug_code", 1),
    (
        "allergy answered for another line",
        _all(_ALLERGIC, lambda case: case.acknowledge("CLIN_CONTRA", 2)),
        "CLIN_CONTRA",
        "lines[0].drug_code",
        1,
    ),
    (
        "allergy answered without a reason",
        _all(_ALLERGIC, lambda case: case.acknowledge("CLIN_CONTRA", 1, DOCTOR, "  ")),
        "CLIN_CONTRA",
        "lines[0].drug_code",
        1,
    ),
    ("restricted drug", _RESTRICTED, "MON_UNACKNOWLEDGED", "lines[0].approval_flag", 1),
]

KEPT: list[tuple[str, Change]] = [
    ("nothing changed", lambda case: None),
    ("an inexperienced doctor offline", _set("doctor.practice_years", 0)),
    ("an internet follow-up", Case.go_online),
    ("herbs alone", Case.make_herbal),
    ("herbs on the form for other kinds", _herbal(_set("rx.rx_type", "99"))),
    ("a vaccine offline", _VACCINE),
    ("a dual-channel doctor", _all(_drug(dual_channel=True), _set("doctor.dual_channel", True))),
    (
        "an accompanied child online",
        _all(_child_online, _set("rx.patient.guardian_present", True), _set("rx.patient.specialist_present", True)),
    ),
    ("a child of six online", _online(_set("person.born_on", "2020-11-22"))),
    ("an infant", _infant(90, age_days=90)),
    ("an infant, one day off", _infant(90, age_days=89)),
    ("a newborn", _infant(28, age_days=28, newborn=True)),
    ("born today", _infant(0, newborn=True)),
    ("no disease list", _set("diseases", None)),
    (
        "a filed chronic code before any list was imported",
        _all(
            _set("chronic", None),
            _set("rx.chronic_code", "M03901"),
            lambda case: case.person.chronic_codes.append("M03901"),
        ),
    ),
    ("a filed chronic disease", _all(_set("rx.med_type", "14"), _set("rx.chronic_code", "M03900"))),
    ("now is the last instant", _set("now_ms", NOW_MS - MINUTE_MS + 3 * DAY_MS)),
    (
        "one day valid",
        _all(_set("rx.valid_days", 1), _set("rx.valid_until_ms", NOW_MS - MINUTE_MS + DAY_MS)),
    ),
    ("more days with a reason", _all(_set("rx.lines.0.supply_days", 14), _set("rx.supply_reason", "行动不便"))),
    (
        "three days in an emergency",
        _all(_set("rx.rx_type", "3"), _set("rx.lines.0.supply_days", 3), _set("rx.lines.1.supply_days", 3)),
    ),
    ("four weeks", _long_term(28)),
    (
        "twelve weeks, assessed",
        _long_term(84, _set("rx.long_term_assessment", "稳定"), _set("rx.supply_reason", "稳定")),
    ),
    ("four weeks of a proven follow-up", _online(_long_term(28, _set("rx.chronic_code", "")))),
    ("a renewal", _renewal()),
    ("a dose in two parts", _set("rx.lines.0.dose", "160/4.5")),
    ("an institution's own frequency", _set("rx.lines.0.frequency_code", "Q1")),
    ("no price", _all(_set("rx.lines.0.unit_price", ""), _set("rx.lines.0.amount_fen", 0))),
    ("a price without an amount", _set("rx.lines.0.amount_fen", 0)),
    (
        "half a fen goes up",
        _all(_set("rx.lines.0.unit_price", "10.365"), _set("rx.lines.0.amount_fen", 1037)),
    ),
    ("the smallest pack for one dose", _set("rx.lines.0.frequency_code", "63")),
    (
        "tablets counted, not packs",
        _all(
            _set("rx.lines.0.quantity", "7"),
            _set("rx.lines.0.quantity_unit", "片"),
            _set("rx.lines.0.unit_price", ""),
        ),
    ),
    (
        "many packs under a frequency without arithmetic",
        _all(
            _set("rx.lines.0.frequency_code", "51"),
            _set("rx.lines.0.quantity", "9"),
            _set("rx.lines.0.unit_price", ""),
        ),
    ),
    ("the maximum itself", _all(_MAXIMUM, _set("rx.lines.0.dose", "10"))),
    ("a maximum in another unit", _all(_MAXIMUM, _set("rx.lines.0.dose", "1"), _set("rx.lines.0.dose_unit", "g"))),
    (
        "a weekly dose is a dose a day at most",
        _all(_MAXIMUM, _set("rx.lines.0.dose", "10"), _set("rx.lines.0.frequency_code", "21")),
    ),
    ("no allergies", lambda case: case.rx.patient.allergies.append("无")),
    ("another allergy", lambda case: case.rx.patient.allergies.append("青霉素")),
    ("a restricted drug, self-paid", _all(_RESTRICTED, _set("rx.lines.0.approval_flag", "2"))),
]


@pytest.mark.parametrize(("what", "change", "code", "field", "line_no"), BROKEN, ids=[row[0] for row in BROKEN])
def test_a_broken_rule_blocks(what: str, change: Change, code: str, field: str, line_no: int) -> None:
    case = Case()
    change(case)
    found = blocked(case)
    assert (code, f"prescription.{field}", line_no) in found
    assert all(finding_code in CATALOGUE for finding_code, _, _ in found)


@pytest.mark.parametrize(("what", "change"), KEPT, ids=[row[0] for row in KEPT])
def test_a_kept_rule_finds_nothing(what: str, change: Change) -> None:
    case = Case()
    change(case)
    assert assess(case.facts()) == []


ANSWERED: list[tuple[str, Change, str, str]] = [
    (
        "overdose",
        _all(_MAXIMUM, _set("rx.lines.0.dose", "11"), lambda c: c.acknowledge("RX_OVERDOSE", 1, DOCTOR)),
        "RX_OVERDOSE",
        DOCTOR,
    ),
    ("allergy", _all(_ALLERGIC, lambda case: case.acknowledge("CLIN_CONTRA", 1)), "CLIN_CONTRA", ""),
    ("indication", _all(_RESTRICTED, lambda case: case.acknowledge("MON_INDICATION", 1)), "MON_INDICATION", ""),
]


@pytest.mark.parametrize(("what", "change", "code", "doctor"), ANSWERED, ids=[row[0] for row in ANSWERED])
def test_an_answered_limit_is_a_warning_with_its_answer(what: str, change: Change, code: str, doctor: str) -> None:
    case = Case()
    change(case)
    findings = assess(case.facts())
    assert blocking(findings) == []
    [warned] = warnings(findings)
    assert (warned.code, warned.line_no, warned.severity) == (code, 1, Severity.WARN)
    assert warned.answer is not None
    assert warned.answer.doctor_code == doctor


def test_every_rule_of_the_table_is_broken_by_a_case() -> None:
    seen = set()
    for _, change, *_ in BROKEN:
        case = Case()
        change(case)
        seen |= {rule.check for rule in RULES if list(rule.check(case.facts()))}
    assert {rule.check.__name__ for rule in RULES if rule.check not in seen} == set()


def test_findings_keep_the_order_of_the_table() -> None:
    case = Case()
    case.rx.origin = common_pb2.PRESCRIPTION_ORIGIN_AUTOMATIC
    case.rx.lines[0].dose = ""
    case.rx.valid_days = 9
    assert [code for code, _, _ in blocked(case)] == ["RX_AUTOGENERATED", "RX_VALIDITY", "RX_VALIDITY", "RX_USAGE"]


# ---- the twelve prescriptions of the shared data ----

BEIJING = timezone(timedelta(hours=8))


def _ms(text: str) -> int:
    return int(datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=BEIJING).timestamp() * 1000)


def _rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return {row["code"]: row for row in csv.DictReader(file)}


def _fen(yuan: str) -> int:
    return int(Fraction(yuan) * 100)


def _scenario_case(scenario: dict[str, Any], shared: Path) -> Case:
    case = Case()
    visit, written = scenario["encounter"], scenario["prescription"]
    chronic = scenario.get("chronic_special") or {}
    herbal = [row for row in scenario["lines"] if row["rx_item_type"] == "13"]
    patient = scenario["patient"]
    diagnoses = [
        common_pb2.Diagnosis(
            code=row["code"], name=row["name"], main=row["main_flag"] == "1", diagnosis_type=row["diag_type"]
        )
        for row in scenario["diagnoses"]
    ]
    prescribed_at_ms = _ms(written["prsc_time"])
    case.now_ms = prescribed_at_ms + MINUTE_MS
    case.rx = common_pb2.Prescription(
        hospital_rx_no=written["hosp_rxno"],
        hospital_code=scenario["hospital"]["fixmedins_code"],
        rx_type=written["rx_type_code"],
        med_type=visit["med_type"],
        doctor_code=scenario["doctor"]["dr_code"],
        prescribed_at_ms=prescribed_at_ms,
        valid_days=written["vali_days"],
        valid_until_ms=_ms(written["vali_end_time"]),
        diagnoses=diagnoses,
        long_term=written["long_rx_flag"] == "1",
        long_term_assessment=written["long_rx_assessment"] or "",
        supply_reason=written["supply_reason"] or "",
        repeatable=written["rept_flag"] == "1",
        chronic_code=chronic.get("dise_codg", ""),
        origin=common_pb2.PRESCRIPTION_ORIGIN_HUMAN,
        patient=common_pb2.PatientFacts(
            age_years=patient["age_years"], allergies=[patient["allergy"]] if "allergy" in patient else []
        ),
    )
    drugs, frequencies, diseases = (
        _rows(shared / "data" / f"{name}.csv") for name in ("drugs", "frequencies", "diseases")
    )
    for row in scenario["lines"]:
        listed = drugs[row["med_list_codg"]]
        restricted = bool(listed["limits"])
        case.rx.lines.add(
            line_no=row["line_no"],
            item_type=row["rx_item_type"],
            drug_code=row["med_list_codg"],
            generic_name=row["drug_genname"],
            dose=row.get("sin_doscnt") or "",
            dose_unit=row.get("sin_dosunt") or "",
            units_per_dose=row.get("units_per_dose") or "",
            frequency_code=row.get("used_frqu_codg") or "",
            route_code=row.get("medc_way_codg") or "",
            supply_days=row["days"],
            quantity=str(row["quantity"]),
            quantity_unit=row["quantity_unit"],
            unit_price=row["price"],
            amount_fen=_fen(row["amount"]),
            approval_flag="1" if restricted else "0",
            max_per_day=row.get("max_per_day") or 0,
        )
        if restricted:
            case.acknowledge("MON_INDICATION", row["line_no"], case.rx.doctor_code)
        case.drugs[listed["code"]] = drug(
            listed["code"],
            generic_name=listed["generic_name"],
            pack=listed["pack"],
            units_per_pack=listed["units_per_pack"],
            limits=listed["limits"],
            dual_channel=scenario["doctor"]["dual_channel_doctor"],
        )
    if herbal:
        case.rx.herbal.CopyFrom(
            common_pb2.HerbalUsage(
                route_code="1", frequency_code="12", dose_unit="剂", dose="1", doses=herbal[0]["doses"], note="水煎服"
            )
        )
    case.frequencies = {
        code: frequency(code, int(row["times"] or 0), int(row["period_days"] or 0), row["schedule"])
        for code, row in frequencies.items()
    }
    case.chronic = {
        code: catalog_pb2.ChronicDisease(code=code, name=row["name"])
        for code, row in _rows(shared / "data" / "chronic_special.csv").items()
    }
    case.diseases = {
        code: catalog_pb2.Disease(code=code, name=row["name"], is_diagnosis=row["level"] == "diagnosis")
        for code, row in diseases.items()
    }
    internet = visit["biz_type_code"] == "02"
    case.encounter = state_pb2.EncounterState(
        visit_kind=common_pb2.VISIT_KIND_INTERNET if internet else common_pb2.VISIT_KIND_OFFLINE,
        person_key=PERSON_KEY,
        med_type=visit["med_type"],
        started_at_ms=_ms(visit["mdtrt_time"]),
        attested=bool(visit.get("doctor_video_attested")),
        follow_up_proven=internet and visit["prior_same_disease_encounter"] is not None,
        diagnoses=diagnoses,
    )
    case.person = state_pb2.PersonState(
        born_on=patient["brdy"], chronic_codes=[chronic["dise_codg"]] if chronic.get("filed") else []
    )
    case.doctor = state_pb2.PractitionerState(
        practice_years=scenario["doctor"]["practice_years"],
        dual_channel=scenario["doctor"]["dual_channel_doctor"],
    )
    return case


def test_the_twelve_real_coded_prescriptions_keep_every_rule(shared: Path) -> None:
    scenarios = json.loads((shared / "data" / "scenarios.json").read_text(encoding="utf-8"))["scenarios"]
    assert len(scenarios) == 12
    found = {scenario["id"]: blocked(_scenario_case(scenario, shared)) for scenario in scenarios}
    assert {number: findings for number, findings in found.items() if findings} == {}


@pytest.mark.interpreted
def test_the_table_names_its_rules() -> None:
    assert all(rule.rule_ids and rule.check.__doc__ for rule in rx_rules.RULES)
