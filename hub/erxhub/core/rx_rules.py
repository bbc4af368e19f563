"""The rules that a prescription must keep before it may be signed: the precheck (电子处方上传预核验).

Owns THE table of precheck rules (`RULES`): one small function a rule, each with the rules of the domain that it stands
for, run in the order of the table. A rule only reads `Facts`; it looks nothing up, decides nothing about the caller and
emits nothing. Every number comes from the region pack, every code form from the code lists.

A rule yields findings. A BLOCK finding stops the prescription; a WARN finding is one that the doctor answered (提示
确认) and that is shown and recorded. Rules without data of their own in the catalogue (sex and age limits, pregnancy,
interactions, duplicate supply) are no part of this table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from enum import Enum
from fractions import Fraction
from functools import lru_cache
from typing import Final

from erxhub.core.claim_arithmetic import line_amount_fen, parse_price_e6, parse_quantity_e4
from erxhub.policy import codes
from erxhub.policy.pack import DAY_MS, china_date
from erxhub.policy.rules import Rules
from erxhub.v1 import catalog_pb2, common_pb2, state_pb2

# 新生儿: from birth to the 28th day. A definition of medicine, not a policy.
_NEWBORN_DAYS: Final = 28

_CONTROLLED: Final = frozenset(
    {
        catalog_pb2.DRUG_CONTROL_NARCOTIC,
        catalog_pb2.DRUG_CONTROL_PSYCHOTROPIC_I,
        catalog_pb2.DRUG_CONTROL_PSYCHOTROPIC_II,
        catalog_pb2.DRUG_CONTROL_TOXIC,
        catalog_pb2.DRUG_CONTROL_RADIOACTIVE,
        catalog_pb2.DRUG_CONTROL_PRECURSOR,
    }
)
_BANNED_ONLINE: Final = frozenset({catalog_pb2.DRUG_CONTROL_VACCINE, catalog_pb2.DRUG_CONTROL_BLOOD_PRODUCT})

WESTERN_DIAGNOSIS: Final = "1"
"""The diagnosis type whose codes have a national list."""

_AS_DIRECTED: Final = ("遵医嘱", "as directed")
_REMARK: Final = re.compile(r"[（(].*?[)）]")
_DOSES_KEPT: Final = 4_096


class Severity(Enum):
    """What a finding does."""

    BLOCK = "BLOCK"
    WARN = "WARN"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule found. `code` is a row of the refusal catalogue, `field` a path in the request.

    `line_no` is 0 for the whole prescription. `answer` is the acknowledgement that made a block a warning.
    """

    code: str
    field: str
    line_no: int = 0
    severity: Severity = Severity.BLOCK
    answer: common_pb2.Acknowledgement | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything the rules read.

    `drugs` and `frequencies` hold the rows of the editions in force by code; a code that is missing is not in the
    edition. `diseases` and `chronic` are None while no edition of theirs is in force. `renewed` is the prescription
    that `renews_rx_no` names, None when there is none. `now_ms` is UTC milliseconds.
    """

    prescription: common_pb2.Prescription
    encounter: state_pb2.EncounterState
    person: state_pb2.PersonState
    doctor: state_pb2.PractitionerState
    drugs: Mapping[str, catalog_pb2.Drug]
    diseases: Mapping[str, catalog_pb2.Disease] | None
    chronic: Mapping[str, catalog_pb2.ChronicDisease] | None
    frequencies: Mapping[str, catalog_pb2.Frequency]
    renewed: state_pb2.PrescriptionState | None
    rules: Rules
    now_ms: int
    lines: tuple[tuple[common_pb2.RxLine, str], ...] = field(init=False)
    """Each line with its path."""

    def __post_init__(self) -> None:
        paths = ((line, f"prescription.lines[{place}]") for place, line in enumerate(self.prescription.lines))
        object.__setattr__(self, "lines", tuple(paths))

    @property
    def internet(self) -> bool:
        """Whether the visit was an internet one."""
        return self.encounter.visit_kind == common_pb2.VISIT_KIND_INTERNET

    @property
    def med_types(self) -> tuple[str, str]:
        """The med_type of the prescription and of the visit; a stricter rule of either one holds."""
        return self.prescription.med_type, self.encounter.med_type

    @property
    def prescribed_on(self) -> date:
        """The day of prescribing in China."""
        return china_date(self.prescription.prescribed_at_ms)

    @property
    def born_on(self) -> date:
        """The person's birthday, as registered and not as the prescription says."""
        return date.fromisoformat(self.person.born_on)

    def known_lines(self) -> Iterator[tuple[common_pb2.RxLine, str, catalog_pb2.Drug]]:
        """Each line whose drug is in the catalogue, with its path and the drug."""
        for line, path in self.lines:
            drug = self.drugs.get(line.drug_code)
            if drug is not None:
                yield line, path, drug


Check = Callable[[Facts], Iterator[Finding]]


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of the table. `rule_ids` name the rules of the domain (prescription, exchange, monitoring, codes)."""

    rule_ids: tuple[str, ...]
    check: Check


def assess(facts: Facts) -> list[Finding]:
    """All findings in the order of the table."""
    return [finding for rule in RULES for finding in rule.check(facts)]


def blocking(findings: Iterable[Finding]) -> list[Finding]:
    """The findings that stop the prescription, the deciding one first."""
    return [finding for finding in findings if finding.severity is Severity.BLOCK]


def warnings(findings: Iterable[Finding]) -> list[Finding]:
    """The findings that are shown and recorded."""
    return [finding for finding in findings if finding.severity is Severity.WARN]


def _is_herbal(line: common_pb2.RxLine) -> bool:
    return codes.item_drug_kind(line.item_type) == "herbal"


def _answer(
    facts: Facts, code: str, line_no: int, *, second_signature: bool = False
) -> common_pb2.Acknowledgement | None:
    """The doctor's answer to a finding of this line. An answer in another doctor's name is none.

    `second_signature`: the answer must name the prescriber; otherwise it may leave the name out.
    """
    prescriber = facts.prescription.doctor_code
    names = (prescriber,) if second_signature else ("", prescriber)
    for given in facts.prescription.acknowledgements:
        if given.code == code and given.line_no == line_no and given.doctor_code in names and given.reason.strip():
            return given
    return None


def _warn_or_block(
    answer: common_pb2.Acknowledgement | None, code: str, field: str, line_no: int, unanswered: str = ""
) -> Finding:
    if answer is None:
        return Finding(unanswered or code, field, line_no)
    return Finding(code, field, line_no, Severity.WARN, answer)


# ---- doctor and visit ----


def doctor_has_practised(facts: Facts) -> Iterator[Finding]:
    """P-12: an internet visit needs a doctor with years of independent practice."""
    if facts.internet and facts.doctor.practice_years < facts.rules.integer("doctor_practice_years"):
        yield Finding("DR_EXPERIENCE", "prescription.doctor_code")


def doctor_is_attested(facts: Facts) -> Iterator[Finding]:
    """S3-09: the doctor of an internet visit was verified by audio or video."""
    if facts.internet and not facts.encounter.attested:
        yield Finding("DR_NOT_ATTESTED", "prescription.encounter_id")


def visit_is_follow_up(facts: Facts) -> Iterator[Finding]:
    """S2-02: an internet visit is for the follow-up of a known disease only."""
    if facts.internet and not facts.encounter.follow_up_proven:
        yield Finding("RX_NOT_REVISIT", "prescription.encounter_id")


def written_by_a_person(facts: Facts) -> Iterator[Finding]:
    """P-13: no automatic generation; the treating doctor writes personally."""
    if facts.prescription.origin != common_pb2.PRESCRIPTION_ORIGIN_HUMAN:
        yield Finding("RX_AUTOGENERATED", "prescription.origin")


# ---- lines and drugs ----


def lines_are_in_order(facts: Facts) -> Iterator[Finding]:
    """P-05: at least one line, numbered from 1 without a gap, each drug once."""
    if not facts.prescription.lines:
        yield Finding("RX_LINES", "prescription.lines")
    seen: set[str] = set()
    for expected, (line, path) in enumerate(facts.lines, start=1):
        if line.line_no != expected:
            yield Finding("RX_LINES", f"{path}.line_no", line.line_no)
        if line.drug_code in seen:
            yield Finding("RX_LINES", f"{path}.drug_code", line.line_no)
        seen.add(line.drug_code)


def drug_codes_are_well_formed(facts: Facts) -> Iterator[Finding]:
    """K-01 to K-03: a code has the form of its kind, and the kind is the one that the line says."""
    for line, path in facts.lines:
        kind = codes.drug_kind(line.drug_code)
        if kind is None or kind != codes.item_drug_kind(line.item_type):
            yield Finding("DRUG_CODE", f"{path}.drug_code", line.line_no)


def drugs_are_known(facts: Facts) -> Iterator[Finding]:
    """S1-01: a well-formed code is in the edition in force; without an edition no drug is known."""
    for line, path in facts.lines:
        if line.drug_code not in facts.drugs and codes.drug_kind(line.drug_code) is not None:
            yield Finding("DRUG_UNKNOWN", f"{path}.drug_code", line.line_no)


def herbal_pieces_stand_alone(facts: Facts) -> Iterator[Finding]:
    """P-05: herbal pieces have a prescription of their own, and a prescription type of their own."""
    herbal = [_is_herbal(line) for line in facts.prescription.lines]
    if any(herbal) and not all(herbal):
        yield Finding("RX_MIXED_KINDS", "prescription.lines")
    elif herbal and not any(herbal) and codes.has_fact("rx_type_code", facts.prescription.rx_type, "herbal"):
        yield Finding("RX_MIXED_KINDS", "prescription.rx_type")


def drugs_are_few(facts: Facts) -> Iterator[Finding]:
    """P-02: a western or patent prescription names only a few drugs; herbal decoctions are exempt."""
    drugs = {line.drug_code for line in facts.prescription.lines if not _is_herbal(line)}
    if len(drugs) > facts.rules.integer("max_drugs"):
        yield Finding("RX_TOO_MANY_DRUGS", "prescription.lines")


def nothing_is_controlled(facts: Facts) -> Iterator[Finding]:
    """P-04, P-09, P-12, P-14: specially controlled drugs never circulate."""
    if codes.has_fact("rx_type_code", facts.prescription.rx_type, "controlled"):
        yield Finding("RX_CONTROLLED", "prescription.rx_type")
    for line, path, drug in facts.known_lines():
        if drug.control in _CONTROLLED:
            yield Finding("RX_CONTROLLED", f"{path}.drug_code", line.line_no)


def nothing_is_banned_online(facts: Facts) -> Iterator[Finding]:
    """P-14: vaccines and blood products are not sold online (the other banned classes never circulate at all)."""
    for line, path, drug in facts.known_lines():
        if facts.internet and drug.control in _BANNED_ONLINE:
            yield Finding("RX_BANNED_ONLINE", f"{path}.drug_code", line.line_no)


def no_hospital_preparation(facts: Facts) -> Iterator[Finding]:
    """X-19: a hospital's own preparation is never offered to a retail pharmacy, whoever marks it as one."""
    for line, path in facts.lines:
        drug = facts.drugs.get(line.drug_code)
        if line.hospital_preparation or (drug is not None and drug.hospital_preparation):
            yield Finding("DRUG_HOSP_PREP", f"{path}.drug_code", line.line_no)


def dual_channel_doctor_is_listed(facts: Facts) -> Iterator[Finding]:
    """P-17: a dual-channel drug needs a doctor on the list."""
    for line, path, drug in facts.known_lines():
        if drug.dual_channel and not facts.doctor.dual_channel:
            yield Finding("RX_DUAL_CHANNEL", f"{path}.drug_code", line.line_no)


# ---- patient ----


def child_is_accompanied(facts: Facts) -> Iterator[Finding]:
    """P-12, P-13: online, a young child has the guardian and a physician of the specialty with it."""
    if not facts.internet:
        return
    age = codes.age_years(facts.born_on, facts.prescribed_on)
    patient = facts.prescription.patient
    if age < facts.rules.integer("guardian_age_years") and not (
        patient.guardian_present and patient.specialist_present
    ):
        yield Finding("RX_CHILD_UNDER6", "prescription.patient")


def infant_age_is_in_days(facts: Facts) -> Iterator[Finding]:
    """P-05, X-20: an infant's age is written in days and agrees with the register and with the newborn flag.

    One day of difference is allowed, because prescriptions are written around midnight too. Somebody older is never
    described as an infant.
    """
    patient = facts.prescription.patient
    if codes.age_years(facts.born_on, facts.prescribed_on) >= 1:
        if patient.newborn or patient.age_days:
            yield Finding("RX_INFANT_AGE", "prescription.patient.age_days")
        return
    days = (facts.prescribed_on - facts.born_on).days
    if patient.age_years or abs(patient.age_days - days) > 1:
        yield Finding("RX_INFANT_AGE", "prescription.patient.age_days")
    elif patient.newborn != (patient.age_days <= _NEWBORN_DAYS):
        yield Finding("RX_INFANT_AGE", "prescription.patient.newborn")


# ---- diagnosis ----


def _diagnosis_fault(
    diagnoses: Sequence[common_pb2.Diagnosis], diseases: Mapping[str, catalog_pb2.Disease] | None
) -> str | None:
    """The path of what is wrong with the diagnoses by themselves, or None."""
    if sum(diagnosis.main for diagnosis in diagnoses) != 1:
        return "prescription.diagnoses"
    seen: set[tuple[str, str]] = set()
    for place, diagnosis in enumerate(diagnoses):
        key = (diagnosis.diagnosis_type, diagnosis.code)
        if key in seen or not _diagnosis_code_stands(diagnosis, diseases):
            return f"prescription.diagnoses[{place}].code"
        seen.add(key)
    return None


def _diagnosis_code_stands(diagnosis: common_pb2.Diagnosis, diseases: Mapping[str, catalog_pb2.Disease] | None) -> bool:
    if diagnosis.diagnosis_type != WESTERN_DIAGNOSIS:
        return True
    if not codes.has_form("disease", diagnosis.code):
        return False
    return diseases is None or (diagnosis.code in diseases and diseases[diagnosis.code].is_diagnosis)


def diagnosis_stands(facts: Facts) -> Iterator[Finding]:
    """P-07, K-12: at least one diagnosis, one of them the main one, none twice, and each recorded at the visit.

    A western code has the form and is a diagnosis, not a category, of the list in force; without a list only the form
    counts. Forms and lists of the TCM codes are not established (K-14).
    """
    given = facts.prescription.diagnoses
    fault = _diagnosis_fault(given, facts.diseases)
    if fault is not None:
        yield Finding("DX_INVALID", fault)
        return
    recorded = {(diagnosis.diagnosis_type, diagnosis.code) for diagnosis in facts.encounter.diagnoses}
    for place, diagnosis in enumerate(given):
        if (diagnosis.diagnosis_type, diagnosis.code) not in recorded:
            yield Finding("DX_INVALID", f"prescription.diagnoses[{place}].code")


def chronic_disease_is_filed(facts: Facts) -> Iterator[Finding]:
    """X-14, K-13: a chronic or special med_type needs an M code, and an M code needs the person's filing.

    The code has the form and is of the list in force; without a list only the form counts.
    """
    code = facts.prescription.chronic_code
    if not code and not any(codes.has_fact("med_type", med_type, "chronic") for med_type in facts.med_types):
        return
    is_known = codes.has_form("chronic_disease", code) and (facts.chronic is None or code in facts.chronic)
    if not is_known or code not in facts.person.chronic_codes:
        yield Finding("DX_CHRONIC_MISSING", "prescription.chronic_code")


# ---- time and supply ----


def validity_is_exact(facts: Facts) -> Iterator[Finding]:
    """P-01, I12: few days, and the end is the instant of prescribing plus those days, not a midnight."""
    prescription = facts.prescription
    if not 1 <= prescription.valid_days <= facts.rules.integer("validity_days_max"):
        yield Finding("RX_VALIDITY", "prescription.valid_days")
    if prescription.valid_until_ms != prescription.prescribed_at_ms + prescription.valid_days * DAY_MS:
        yield Finding("RX_VALIDITY", "prescription.valid_until_ms")


def time_is_possible(facts: Facts) -> Iterator[Finding]:
    """P-24: prescribed after the visit began, not in the future, and not older than its own validity."""
    prescription = facts.prescription
    began = facts.encounter.started_at_ms
    if not began <= prescription.prescribed_at_ms <= facts.now_ms or facts.now_ms > prescription.valid_until_ms:
        yield Finding("RX_TIME", "prescription.prescribed_at_ms")


def supply_is_short(facts: Facts) -> Iterator[Finding]:
    """P-03, M11: a few days' supply, fewer in an emergency, more only with a reason. Long-term has its own rule."""
    prescription = facts.prescription
    if prescription.long_term or prescription.supply_reason.strip():
        return
    emergency = codes.has_fact("rx_type_code", prescription.rx_type, "emergency") or any(
        codes.has_fact("med_type", med_type, "emergency") for med_type in facts.med_types
    )
    limit = facts.rules.integer("supply_days_emergency" if emergency else "supply_days")
    for line, path in facts.lines:
        if line.supply_days > limit:
            yield Finding("RX_SUPPLY_DAYS", f"{path}.supply_days", line.line_no)


def _disease_is_chronic(facts: Facts) -> bool:
    # An earlier visit for the same disease, proven to the hub, shows a lasting disease as well as a filing does.
    return (
        bool(facts.prescription.chronic_code)
        or facts.encounter.follow_up_proven
        or any(codes.has_fact("med_type", med_type, "chronic") for med_type in facts.med_types)
    )


def long_term_is_justified(facts: Facts) -> Iterator[Finding]:
    """P-15: a chronic disease; four weeks, or twelve with an assessment and a recorded reason."""
    prescription = facts.prescription
    if not prescription.long_term:
        return
    if not _disease_is_chronic(facts):
        yield Finding("RX_LONG_TERM", "prescription.chronic_code")
    days = max((line.supply_days for line in prescription.lines), default=0)
    if days > facts.rules.integer("long_term_days_assessed"):
        yield Finding("RX_LONG_TERM", "prescription.lines")
    elif days > facts.rules.integer("long_term_days"):
        if not prescription.long_term_assessment.strip():
            yield Finding("RX_LONG_TERM", "prescription.long_term_assessment")
        if not prescription.supply_reason.strip():
            yield Finding("RX_LONG_TERM", "prescription.supply_reason")


def renewal_has_an_original(facts: Facts) -> Iterator[Finding]:
    """X-12: a renewal names a prescription of the same person that was once in force."""
    if not facts.prescription.renews_rx_no:
        return
    original = facts.renewed
    if (
        original is None
        or original.person_key != facts.encounter.person_key
        # Never uploaded: it was never a prescription that anybody could follow up.
        or not original.uploaded_version
    ):
        yield Finding("RX_REFILL", "prescription.renews_rx_no")


# ---- usage, quantities, doses ----


@lru_cache(_DOSES_KEPT)
def _number(text: str) -> Fraction:
    """A plain decimal; zero when it is empty or has two parts ("160/4.5")."""
    return Fraction(text) if text and "/" not in text else Fraction(0)


@lru_cache(_DOSES_KEPT)
def _is_positive(dose: str) -> bool:
    return bool(dose) and all(Fraction(part) > 0 for part in dose.split("/"))


def _says_as_directed(note: str) -> bool:
    return any(phrase in note.lower() for phrase in _AS_DIRECTED)


def usage_is_complete(facts: Facts) -> Iterator[Finding]:
    """P-05, X-13: dose, unit, route and frequency in figures and codes; never "as directed".

    Herbal pieces state them once, for the whole prescription.
    """
    for line, path in facts.lines:
        if _says_as_directed(line.usage_note):
            yield Finding("RX_USAGE", f"{path}.usage_note", line.line_no)
        if _is_herbal(line):
            continue
        if not _is_positive(line.dose):
            yield Finding("RX_USAGE", f"{path}.dose", line.line_no)
        for name, value in (
            ("dose_unit", line.dose_unit),
            ("frequency_code", line.frequency_code),
            ("route_code", line.route_code),
        ):
            if not value.strip():
                yield Finding("RX_USAGE", f"{path}.{name}", line.line_no)
    if any(_is_herbal(line) for line in facts.prescription.lines):
        yield from _herbal_usage(facts.prescription.herbal)


def _herbal_usage(usage: common_pb2.HerbalUsage) -> Iterator[Finding]:
    for name, value in (
        ("route_code", usage.route_code),
        ("frequency_code", usage.frequency_code),
        ("dose_unit", usage.dose_unit),
        ("note", usage.note),
    ):
        if not value.strip():
            yield Finding("RX_USAGE", f"prescription.herbal.{name}")
    if not _is_positive(usage.dose):
        yield Finding("RX_USAGE", "prescription.herbal.dose")
    if usage.doses < 1:
        yield Finding("RX_USAGE", "prescription.herbal.doses")
    if _says_as_directed(usage.note):
        yield Finding("RX_USAGE", "prescription.herbal.note")


def _doses_in_all(line: common_pb2.RxLine, frequency: catalog_pb2.Frequency | None) -> Fraction | None:
    """How often the line is taken in its days; None when the frequency allows no arithmetic."""
    if frequency is None:
        return None
    if frequency.schedule == "as_needed":
        return Fraction(line.max_per_day * line.supply_days) if line.max_per_day else None
    if frequency.schedule == "single":
        return Fraction(max(frequency.times, 1))
    if frequency.schedule == "regular" and frequency.times and frequency.period_days:
        return Fraction(frequency.times * line.supply_days, frequency.period_days)
    return None


def _packs_too_many(
    line: common_pb2.RxLine, drug: catalog_pb2.Drug, frequency: catalog_pb2.Frequency | None, quantity_e4: int
) -> bool:
    """Whether the quantity exceeds the need by more than one pack.

    Only when all of it is known: what a dose and a pack hold, how often it is taken, and that the quantity counts packs
    (the pack text of the list ends in "/unit").
    """
    doses = _doses_in_all(line, frequency)
    units_per_dose, units_per_pack = _number(line.units_per_dose), _number(drug.units_per_pack)
    if doses is None or not units_per_dose or not units_per_pack or not drug.pack.endswith(f"/{line.quantity_unit}"):
        return False
    return Fraction(quantity_e4, 10_000) - units_per_dose * doses / units_per_pack > 1


def amounts_agree(facts: Facts) -> Iterator[Finding]:
    """X-13, T-04: quantities above zero; price × quantity is the amount; the quantity fits dose, frequency and days."""
    for line, path in facts.lines:
        try:
            quantity_e4 = parse_quantity_e4(line.quantity)
        except ValueError:
            quantity_e4 = 0
        if not quantity_e4:
            yield Finding("AMT_MISMATCH", f"{path}.quantity", line.line_no)
            continue
        if line.unit_price and not _price_fits(line, quantity_e4):
            yield Finding("AMT_MISMATCH", f"{path}.amount_fen", line.line_no)
        drug = facts.drugs.get(line.drug_code)
        if drug is None or _is_herbal(line):
            continue
        if _packs_too_many(line, drug, facts.frequencies.get(line.frequency_code), quantity_e4):
            yield Finding("AMT_MISMATCH", f"{path}.quantity", line.line_no)


def _price_fits(line: common_pb2.RxLine, quantity_e4: int) -> bool:
    try:
        price_e6 = parse_price_e6(line.unit_price)
    except ValueError:
        return False
    # 0 fen: the hospital states no amount.
    return not line.amount_fen or line_amount_fen(quantity_e4, price_e6) == line.amount_fen


def _doses_on_a_day(line: common_pb2.RxLine, frequency: catalog_pb2.Frequency | None) -> int:
    """The most doses on one day; 1 when nothing more is known, so that a single dose above the maximum is seen."""
    if frequency is None or frequency.schedule == "as_needed" or not frequency.times:
        return max(line.max_per_day, 1)
    return max(-(-frequency.times // max(frequency.period_days, 1)), 1)


def dose_is_usual(facts: Facts) -> Iterator[Finding]:
    """P-06, M08: above the daily maximum of the catalogue only with a reason and the prescriber's second signature.

    Compared when both are in one unit; the dose of a combination is not.
    """
    for line, path, drug in facts.known_lines():
        maximum = _number(drug.max_daily_dose)
        if not maximum or line.dose_unit != drug.max_daily_dose_unit:
            continue
        per_day = _number(line.dose) * _doses_on_a_day(line, facts.frequencies.get(line.frequency_code))
        if per_day > maximum:
            answer = _answer(facts, "RX_OVERDOSE", line.line_no, second_signature=True)
            yield _warn_or_block(answer, "RX_OVERDOSE", f"{path}.dose", line.line_no)


def _allergen(text: str) -> str:
    """The allergen without its remark: "别嘌醇（皮疹）" → "别嘌醇"."""
    return _REMARK.sub("", text).strip().lower()


def no_unanswered_allergy(facts: Facts) -> Iterator[Finding]:
    """N-01: a drug whose name holds an allergen of the patient needs the doctor's answer.

    Compares names only: the lists hold no ingredients and no drug families.
    """
    allergens = [_allergen(text) for text in facts.prescription.patient.allergies]
    # One character names nothing ("无" says that there is none).
    allergens = [allergen for allergen in allergens if len(allergen) > 1]
    for line, path in facts.lines:
        drug = facts.drugs.get(line.drug_code)
        names = {line.generic_name.lower(), drug.generic_name.lower() if drug else ""} - {""}
        if any(allergen in name or name in allergen for allergen in allergens for name in names):
            answer = _answer(facts, "CLIN_CONTRA", line.line_no)
            yield _warn_or_block(answer, "CLIN_CONTRA", f"{path}.drug_code", line.line_no)


def restricted_use_is_acknowledged(facts: Facts) -> Iterator[Finding]:
    """M06, P-22: a restricted drug that the hospital approved for payment needs the doctor's word on the indication.

    Without the approval the drug is self-paid and the limit of payment says nothing.
    """
    for line, path, drug in facts.known_lines():
        if drug.limits.strip() and line.approval_flag == "1":
            answer = _answer(facts, "MON_INDICATION", line.line_no)
            yield _warn_or_block(
                answer, "MON_INDICATION", f"{path}.approval_flag", line.line_no, unanswered="MON_UNACKNOWLEDGED"
            )


RULES: Final[tuple[Rule, ...]] = (
    Rule(("P-12",), doctor_has_practised),
    Rule(("S3-09",), doctor_is_attested),
    Rule(("S2-02", "X-20"), visit_is_follow_up),
    Rule(("P-13", "P-24"), written_by_a_person),
    Rule(("P-05",), lines_are_in_order),
    Rule(("K-01", "K-02", "K-03"), drug_codes_are_well_formed),
    Rule(("S1-01",), drugs_are_known),
    Rule(("P-05",), herbal_pieces_stand_alone),
    Rule(("P-02",), drugs_are_few),
    Rule(("P-04", "P-09", "P-12", "P-14"), nothing_is_controlled),
    Rule(("P-14",), nothing_is_banned_online),
    Rule(("X-19",), no_hospital_preparation),
    Rule(("P-17",), dual_channel_doctor_is_listed),
    Rule(("P-12", "P-13"), child_is_accompanied),
    Rule(("P-05", "X-20"), infant_age_is_in_days),
    Rule(("P-07", "K-12"), diagnosis_stands),
    Rule(("X-14", "K-13"), chronic_disease_is_filed),
    Rule(("P-01", "I12"), validity_is_exact),
    Rule(("P-24",), time_is_possible),
    Rule(("P-03", "M11"), supply_is_short),
    Rule(("P-15",), long_term_is_justified),
    Rule(("X-12",), renewal_has_an_original),
    Rule(("P-05", "X-13"), usage_is_complete),
    Rule(("X-13", "T-04"), amounts_agree),
    Rule(("P-06", "M08"), dose_is_usual),
    Rule(("N-01",), no_unanswered_allergy),
    Rule(("M06", "P-22"), restricted_use_is_acknowledged),
)
"""The rules in the order in which they are run; the first BLOCK decides the refusal."""
