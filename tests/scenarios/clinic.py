"""The people, institutions and prescriptions of the shared scenarios, brought into a live hub and through it.

Owns how a scenario's fields become calls. What a scenario leaves open (staff without a national code, how herbal pieces
are taken) is made up here and marked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

from erxhub.cli.catalog_files import CatalogFile, find_files, read_file
from erxhub.crypto.suites import SigningKey
from erxhub.seed import sample_pdf
from erxhub.seed.world import CLAUSES
from erxhub.v1 import catalog_pb2, common_pb2, encounter_pb2, registry_pb2, signed_pb2
from tests.chain import CONSULT, Chain
from tests.live import DAY_MS, Live

ONLINE_CONSULT = "03131"
AGREEMENT_DAYS = 365
VALID_FROM_ON = "2026-11-01"
REAL_EDITION = "shared"
SCENARIO_EDITION = "scenario"

DOCTOR = registry_pb2.PRACTITIONER_KIND_DOCTOR
HOSPITAL_PHARMACIST = registry_pb2.PRACTITIONER_KIND_HOSPITAL_PHARMACIST
PHARMACIST = registry_pb2.PRACTITIONER_KIND_PHARMACIST
DISPENSER = registry_pb2.PRACTITIONER_KIND_DISPENSER
COURIER = registry_pb2.PRACTITIONER_KIND_COURIER

_BEIJING = timezone(timedelta(hours=8))


def fen(yuan: str) -> int:
    """Yuan with two places as fen."""
    return int(Decimal(yuan) * 100)


def instant_ms(text: str) -> int:
    """A scenario's local time as UTC milliseconds."""
    return int(datetime.fromisoformat(text).replace(tzinfo=_BEIJING).timestamp()) * 1000


@dataclass(frozen=True)
class Scenario:
    """One scenario of the file. `data` is as it stands there."""

    data: Mapping[str, Any]

    @property
    def number(self) -> int:
        return int(self.data["id"][1:])

    @property
    def person_no(self) -> str:
        """Made up: a scenario has no person number."""
        return f"{self.data['insured']['insuplc_admdvs']}9900{self.number:04d}"

    @property
    def hospital_code(self) -> str:
        return str(self.data["hospital"]["fixmedins_code"])

    @property
    def pharmacy_code(self) -> str:
        return str(self.data["pharmacy"]["fixmedins_code"])

    @property
    def is_internet(self) -> bool:
        return bool(self.data["encounter"]["biz_type_code"] == "02")

    @property
    def is_herbal(self) -> bool:
        return any(line["rx_item_type"] == "13" for line in self.data["lines"])

    @property
    def prescribed_at_ms(self) -> int:
        return instant_ms(self.data["prescription"]["prsc_time"])

    def staff(self, letters: str) -> str:
        """A code of our own for staff of the scenario's pharmacy."""
        return f"{letters}{self.data['pharmacy']['admdvs']}9901{self.number:02d}"

    def expected(self) -> dict[str, int]:
        """The parts of the whole claim in fen, by the names of ClaimAmounts."""
        totals = self.data["expected"]["totals"]
        return {
            "total_fen": fen(totals["medfee_sumamt"]),
            "own_pay_fen": fen(totals["fulamt_ownpay_amt"]),
            "over_limit_fen": fen(totals["overlmt_selfpay"]),
            "prior_self_pay_fen": fen(totals["preselfpay_amt"]),
            "in_scope_fen": fen(totals["inscp_scp_amt"]),
        }

    def expected_lines(self) -> dict[int, tuple[str, int, int, int, int, int]]:
        """Line number → (class, amount and its four parts in fen)."""
        found = {}
        for line in self.data["lines"]:
            inputs = line["settlement_inputs"]
            found[line["line_no"]] = (
                inputs["chrgitm_lv"],
                fen(line["amount"]),
                fen(inputs["fulamt_ownpay_amt"]),
                fen(inputs["overlmt_selfpay"]),
                fen(inputs["preselfpay_amt"]),
                fen(inputs["inscp_scp_amt"]),
            )
        return found


def read_scenarios(shared: Path) -> dict[str, Scenario]:
    """The scenarios by id."""
    listed = json.loads((shared / "data" / "scenarios.json").read_text("utf-8"))["scenarios"]
    return {item["id"]: Scenario(item) for item in listed}


@dataclass
class Clinic:
    """A hub in which every scenario can be played: catalogue imported, everybody registered."""

    live: Live
    scenarios: Mapping[str, Scenario]
    files: Mapping[str, CatalogFile] = field(default_factory=dict)
    reports: Mapping[str, registry_pb2.ImportCatalogResponse] = field(default_factory=dict)
    signing_keys: dict[tuple[str, str], SigningKey] = field(default_factory=dict)


async def opened(live: Live, shared: Path) -> Clinic:
    """Import the shared code lists and register the cast of all scenarios."""
    clinic = Clinic(live, read_scenarios(shared))
    clinic.files = {path.name: read_file(path) for path in find_files(shared / "data")}
    clinic.reports = {name: await import_file(live, file, REAL_EDITION) for name, file in clinic.files.items()}
    drugs = scenario_drugs(clinic.files["drugs.csv"].entries, clinic.scenarios.values())
    await import_entries(live, catalog_pb2.CATALOG_DATASET_DRUGS, SCENARIO_EDITION, drugs)
    await _register(clinic)
    # What Chain looks keys up in.
    live.world = clinic  # type: ignore[assignment]
    return clinic


async def import_file(
    live: Live, file: CatalogFile, edition: str, valid_from_on: str = VALID_FROM_ON
) -> registry_pb2.ImportCatalogResponse:
    """Import a file that was read."""
    dataset = catalog_pb2.CatalogDataset.Value(f"CATALOG_DATASET_{file.dataset.upper()}")
    return await import_entries(live, dataset, edition, file.entries, file.sha256, valid_from_on)


async def import_entries(
    live: Live,
    dataset: Any,
    edition: str,
    entries: Iterable[catalog_pb2.CatalogEntry],
    sha256: bytes = bytes(32),
    valid_from_on: str = VALID_FROM_ON,
) -> registry_pb2.ImportCatalogResponse:
    """Import rows as an edition."""
    agency = await live.agency()
    return await agency.import_catalog(
        dataset=dataset, edition=edition, valid_from_on=valid_from_on, file_sha256=sha256, entries=entries
    )


def scenario_drugs(
    entries: Iterable[catalog_pb2.CatalogEntry], scenarios: Iterable[Scenario]
) -> list[catalog_pb2.CatalogEntry]:
    """The real drugs with what only the scenarios say: payment standards (illustrative), dual channel, cold chain."""
    lines = {line["med_list_codg"]: (line, scenario.data) for scenario in scenarios for line in scenario.data["lines"]}
    changed = []
    for entry in entries:
        line, data = lines.get(entry.drug.code, (None, None))
        if line is not None and data is not None:
            entry = catalog_pb2.CatalogEntry.FromString(entry.SerializeToString())
            entry.drug.payment_standard = line["settlement_inputs"]["payment_std"] or ""
            entry.drug.dual_channel = data["pharmacy"]["dual_channel"]
            entry.drug.cold_chain = bool(data["expected"].get("cold_chain"))
        changed.append(entry)
    return changed


# ---- the cast ----


async def _register(clinic: Clinic) -> None:
    live, scenarios = clinic.live, clinic.scenarios.values()
    for institution, scenario in {s.hospital_code: s for s in scenarios}.items():
        hospital = scenario.data["hospital"]
        kinds = [registry_pb2.AGREEMENT_KIND_BASE]
        if hospital["internet_supplement_agreement"]:
            kinds.append(registry_pb2.AGREEMENT_KIND_INTERNET)
        await _institution(
            live, institution, hospital["fixmedins_name"], hospital["hosp_lv"], hospital["mdtrtarea_admvs"], kinds
        )
        await _key(clinic, institution, institution)
    for institution, scenario in {s.pharmacy_code: s for s in scenarios}.items():
        pharmacy = scenario.data["pharmacy"]
        kinds = [registry_pb2.AGREEMENT_KIND_BASE]
        kinds += [registry_pb2.AGREEMENT_KIND_POOLING] * pharmacy["pooling"]
        kinds += [registry_pb2.AGREEMENT_KIND_DUAL_CHANNEL] * pharmacy["dual_channel"]
        await _institution(live, institution, pharmacy["fixmedins_name"], "", pharmacy["admdvs"], kinds)
        await _key(clinic, institution, institution)
    await _practitioners(clinic)
    for scenario in scenarios:
        await _person(live, scenario)


async def _institution(live: Live, code: str, name: str, level: str, area: str, kinds: list[Any]) -> None:
    agency = await live.agency(area)
    now_ms = live.clock.now_ms()
    internet = registry_pb2.AGREEMENT_KIND_INTERNET in kinds
    await agency.register_institution(institution_code=code, name=name, level=level, internet=internet)
    for kind in kinds:
        await agency.sign_agreement(
            institution_code=code,
            kind=kind,
            agreement_no=f"{code}-{kind}",
            valid_from_ms=now_ms,
            valid_until_ms=now_ms + AGREEMENT_DAYS * DAY_MS,
            clauses=CLAUSES,
        )


async def _practitioners(clinic: Clinic) -> None:
    cast: dict[str, tuple[Any, str, str, int, bool]] = {}
    for scenario in clinic.scenarios.values():
        doctor, pharmacist = scenario.data["doctor"], scenario.data["hospital_pharmacist"]
        dual = doctor["dual_channel_doctor"] or cast.get(doctor["dr_code"], (None, "", "", 0, False))[4]
        cast[doctor["dr_code"]] = (
            DOCTOR, doctor["name"], scenario.hospital_code, doctor["practice_years"], dual,
        )  # fmt: skip
        cast[pharmacist["phar_code"]] = (HOSPITAL_PHARMACIST, pharmacist["name"], scenario.hospital_code, 5, False)
        own = (
            (scenario.data["pharmacy"]["pharmacist_code"], PHARMACIST),
            (scenario.staff("PY"), DISPENSER),
            (scenario.staff("PH"), DISPENSER),
            (scenario.staff("PS"), COURIER),
        )
        for code, kind in own:
            cast[code] = (kind, "示例（虚构）", scenario.pharmacy_code, 5, False)
    for code, (kind, name, institution, years, dual) in cast.items():
        agency = await clinic.live.agency(institution[1:7])
        await agency.register_practitioner(
            practitioner_code=code,
            name=name,
            kind=kind,
            practice_years=years,
            institution_codes=(institution,),
            dual_channel=dual,
        )
        if kind in (DOCTOR, HOSPITAL_PHARMACIST, PHARMACIST):
            await _key(clinic, code, institution)


async def _key(clinic: Clinic, subject: str, institution: str) -> None:
    issued = clinic.live.trust.issue_signing(subject, institution, "ES256", clinic.live.clock.now_ms(), AGREEMENT_DAYS)
    agency = await clinic.live.agency(institution[1:7])
    await agency.register_signing_key(
        subject_code=subject,
        institution_code=institution,
        suite=issued.suite,
        public_key=issued.key.public_key,
        valid_from_ms=issued.not_before_ms,
        valid_until_ms=issued.not_after_ms,
        certificate_pem=issued.cert_pem,
    )
    clinic.signing_keys[subject, institution] = issued.key


async def _person(live: Live, scenario: Scenario) -> None:
    patient, insured, chronic = (scenario.data.get(part) for part in ("patient", "insured", "chronic_special"))
    agency = await live.agency(insured["insuplc_admdvs"])
    await agency.register_person(
        person_no=scenario.person_no,
        name=patient["psn_name"],
        certificate_type=patient["psn_cert_type"],
        id_number=patient["certno"],
        sex=common_pb2.SEX_MALE if patient["gend"] == "1" else common_pb2.SEX_FEMALE,
        born_on=patient["brdy"],
        insured_area_code=insured["insuplc_admdvs"],
        insurance_type=insured["insutype"],
        person_type=insured["psn_type"],
        account_balance_fen=fen(insured["acct_balance"]),
        chronic_codes=[chronic["dise_codg"]] if chronic and chronic["filed"] else (),
    )
    channel = await live.channel()
    await channel.activate_voucher(person_no=scenario.person_no)


# ---- one prescription on its way ----


@dataclass
class ScenarioChain(Chain):
    """The main job with a scenario's people, visit and prescription."""

    scenario: Scenario = field(default_factory=lambda: Scenario({}))

    @property
    def doctor(self) -> str:
        return str(self.scenario.data["doctor"]["dr_code"])

    @property
    def pharmacist(self) -> str:
        return str(self.scenario.data["pharmacy"]["pharmacist_code"])

    @property
    def dispenser(self) -> str:
        return self.scenario.staff("PY")

    @property
    def checker(self) -> str:
        return self.scenario.staff("PH")

    @property
    def courier(self) -> str:
        return self.scenario.staff("PS")

    async def registered(self) -> Chain:
        """A registered encounter, at the counter or over the internet."""
        hospital = await self.live.hospital(self.hospital_code)
        encounter = self.scenario.data["encounter"]
        if self.scenario.is_internet:
            verified = await hospital.verify_voucher(
                voucher_code=await self.code(ONLINE_CONSULT), business_type=ONLINE_CONSULT
            )
            proof = {"online_identity_no": verified.online_identity_no}
        else:
            proof = {"voucher_ref": await self.reference(CONSULT, pharmacy=False)}
        reply = await hospital.register_encounter(
            person_no=self.person_no,
            visit_kind=common_pb2.VISIT_KIND_INTERNET if self.scenario.is_internet else common_pb2.VISIT_KIND_OFFLINE,
            certificate_type=encounter_pb2.VISIT_CERTIFICATE_TYPE_VOUCHER,
            med_type=encounter["med_type"],
            department=self.scenario.data["doctor"]["dept_name"],
            first_visit=encounter["fstdiag_flag"] == "1",
            **proof,
        )
        self.encounter_id = reply.encounter_id
        return self

    async def diagnosed(self) -> Chain:
        """A signed diagnosis; over the internet after the doctor was attested and the follow-up proven."""
        await self.registered()
        hospital = await self.live.hospital(self.hospital_code)
        await hospital.start_encounter(encounter_id=self.encounter_id, doctor_code=self.doctor)
        self.prescription = self.written()
        if self.scenario.is_internet:
            await hospital.attest_doctor(encounter_id=self.encounter_id, media_sha256=bytes(32), liveness_passed=True)
            await hospital.prove_follow_up(
                encounter_id=self.encounter_id,
                disease_code=self.prescription.diagnoses[0].code,
                earlier_hospital_code=self.hospital_code,
                earlier_visit_on=self.scenario.data["encounter"]["prior_same_disease_encounter"],
            )
        await hospital.record_diagnosis(
            encounter_id=self.encounter_id,
            doctor_code=self.doctor,
            diagnoses=self.prescription.diagnoses,
            doctor_key=self.live.key(self.doctor, self.hospital_code),
        )
        return self

    def written(self) -> common_pb2.Prescription:
        """The scenario's prescription."""
        return prescription_of(self.scenario, self.encounter_id)

    def upload_arguments(self) -> dict[str, Any]:
        """Signed by the scenario's doctor and hospital pharmacist."""
        pharmacist = self.scenario.data["hospital_pharmacist"]["phar_code"]
        return {
            "document": self.document(),
            "pharmacist_code": pharmacist,
            "doctor_key": self.live.key(self.doctor, self.hospital_code),
            "pharmacist_key": self.live.key(pharmacist, self.hospital_code),
            "seal_key": self.live.key(self.hospital_code, self.hospital_code),
            "file": sample_pdf(self.rx_no),
        }

    def lots(self) -> list[signed_pb2.DispensedLot]:
        """Every pack with its trace code; herbal pieces are weighed out and have none."""
        if not self.scenario.is_herbal:
            return super().lots()
        return [
            signed_pb2.DispensedLot(
                line_no=line.line_no,
                drug_code=line.drug_code,
                quantity=line.quantity,
                lot_no="L20260901",
                expires_on="2028-08-31",
                without_code=True,
            )
            for line in self.prescription.lines
        ]

    async def delivery_started(self, **changes: Any) -> Any:
        """Cooled where the scenario says so."""
        cold_chain = bool(self.scenario.data["expected"].get("cold_chain"))
        return await super().delivery_started(**({"cold_chain": cold_chain} | changes))


def chain_of(clinic: Clinic, scenario: Scenario) -> ScenarioChain:
    """A scenario at its beginning."""
    return ScenarioChain(
        clinic.live,
        person_no=scenario.person_no,
        pharmacy_code=scenario.pharmacy_code,
        hospital_code=scenario.hospital_code,
        scenario=scenario,
    )


def prescription_of(scenario: Scenario, encounter_id: str) -> common_pb2.Prescription:
    """The scenario's prescription for a visit."""
    data = scenario.data
    rx, patient, chronic = data["prescription"], data["patient"], data.get("chronic_special")
    return common_pb2.Prescription(
        hospital_rx_no=rx["hosp_rxno"],
        hospital_code=scenario.hospital_code,
        encounter_id=encounter_id,
        person_no=scenario.person_no,
        rx_type=rx["rx_type_code"],
        med_type=data["encounter"]["med_type"],
        doctor_code=data["doctor"]["dr_code"],
        department=data["doctor"]["dept_name"],
        prescribed_at_ms=scenario.prescribed_at_ms,
        valid_days=rx["vali_days"],
        valid_until_ms=instant_ms(rx["vali_end_time"]),
        diagnoses=_diagnoses(data["diagnoses"]),
        lines=[_line(line) for line in data["lines"]],
        herbal=_herbal(data["lines"]) if scenario.is_herbal else None,
        patient=common_pb2.PatientFacts(
            age_years=patient["age_years"],
            weight_g=patient.get("weight_kg", 0) * 1000,
            allergies=[patient["allergy"]] if "allergy" in patient else [],
            guardian_present="guardian" in patient,
        ),
        long_term=rx["long_rx_flag"] == "1",
        long_term_assessment=rx["long_rx_assessment"] or "",
        supply_reason=rx["supply_reason"] or "",
        repeatable=rx["rept_flag"] == "1",
        repeats_max=rx["max_rept_cnt"] or 0,
        repeat_interval_days=rx["min_inrv_days"] or 0,
        chronic_code=chronic["dise_codg"] if chronic else "",
        acknowledgements=[
            common_pb2.Acknowledgement(
                code="MON_INDICATION",
                line_no=line["line_no"],
                reason=data["expected"].get("limit_evidence", "符合限定支付条件"),
                doctor_code=data["doctor"]["dr_code"],
            )
            for line in data["lines"]
            if _is_restricted(line)
        ],
        origin=common_pb2.PrescriptionOrigin.Value(f"PRESCRIPTION_ORIGIN_{rx['prsc_origin']}"),
    )


def _is_restricted(line: Mapping[str, Any]) -> bool:
    return bool(line["settlement_inputs"].get("limit_text"))


def _diagnoses(listed: Iterable[Mapping[str, Any]]) -> list[common_pb2.Diagnosis]:
    found = []
    for item in listed:
        is_main = item["main_flag"] == "1"
        found.append(
            common_pb2.Diagnosis(code=item["code"], name=item["name"], main=is_main, diagnosis_type=item["diag_type"])
        )
        if "tcmsymp_code" in item:
            syndrome = common_pb2.Diagnosis(code=item["tcmsymp_code"], name=item["tcmsymp"], diagnosis_type="3")
            found.append(syndrome)
    return found


def _line(line: Mapping[str, Any]) -> common_pb2.RxLine:
    return common_pb2.RxLine(
        line_no=line["line_no"],
        item_type=line["rx_item_type"],
        drug_code=line["med_list_codg"],
        generic_name=line["drug_genname"],
        strength=line["strength"],
        dose=line.get("sin_doscnt") or "",
        dose_unit=line.get("sin_dosunt") or "",
        units_per_dose=line.get("units_per_dose") or "",
        frequency_code=line.get("used_frqu_codg") or "",
        route_code=line.get("medc_way_codg") or "",
        supply_days=line["days"],
        quantity=str(line["quantity"]),
        quantity_unit=line["quantity_unit"],
        unit_price=line["price"],
        amount_fen=fen(line["amount"]),
        approval_flag="1" if _is_restricted(line) else "0",
        max_per_day=line.get("max_per_day") or 0,
        usage_note=line.get("foot_note") or "",
    )


def _herbal(lines: Iterable[Mapping[str, Any]]) -> common_pb2.HerbalUsage:
    """Made up but for the number of doses: by mouth, one dose in two parts a day."""
    return common_pb2.HerbalUsage(
        route_code="1",
        frequency_code="12",
        dose="200",
        dose_unit="ml",
        doses=next(iter(lines))["doses"],
        note="水煎 400 ml，分两次温服",
    )
