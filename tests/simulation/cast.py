"""Who takes part: fictional institutions, people, keys and drugs, and the registrations that make them known.

Owns what exists before the first robot acts. Every key follows from the name of its owner, so that signatures (Ed25519)
are the same bytes in every run. Nothing here decides what a robot does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from erxhub.core.catalog import prepare_import
from erxhub.core.model import Caller
from erxhub.core.registry import REQUIRED_CLAUSES
from erxhub.crypto.suites import SUITES, SigningKey
from erxhub.keys import HubKeys
from erxhub.v1 import catalog_pb2, common_pb2, registry_pb2, voucher_pb2

SECOND_MS: Final = 1_000
MINUTE_MS: Final = 60 * SECOND_MS
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS
YEAR_MS: Final = 365 * DAY_MS

START_MS: Final = 1_795_312_800_000
"""2026-11-22 10:00 in Beijing."""

AREA: Final = "330100"
SUITE: Final = "EdDSA"


def _caller(kind: str, name: str, area: str = AREA, *, nationally: bool = False) -> Caller:
    return Caller(kind, name, area, hashlib.sha256(f"certificate of {kind}/{name}".encode()).digest(), nationally)


AGENCY: Final = _caller("agency", AREA, nationally=True)
OTHER_AGENCY: Final = _caller("agency", "330200", "330200")
HOSPITALS: Final = (_caller("hospital", "H33010099901"), _caller("hospital", "H33010099902"))
PHARMACIES: Final = tuple(_caller("pharmacy", f"P3301009910{number}") for number in (1, 2, 3))
"""The third has no pooling agreement: it may sell, and the fund pays nothing there."""
UNREGISTERED: Final = _caller("pharmacy", "P33010099109")
CHANNELS: Final = (_caller("channel", "app.example", ""), _caller("channel", "bank.example", ""))

KINDS: Final = registry_pb2.PractitionerKind
DOCTOR: Final = registry_pb2.PRACTITIONER_KIND_DOCTOR
HOSPITAL_PHARMACIST: Final = registry_pb2.PRACTITIONER_KIND_HOSPITAL_PHARMACIST
PHARMACIST: Final = registry_pb2.PRACTITIONER_KIND_PHARMACIST
DISPENSER: Final = registry_pb2.PRACTITIONER_KIND_DISPENSER
COURIER: Final = registry_pb2.PRACTITIONER_KIND_COURIER

BASE: Final = registry_pb2.AGREEMENT_KIND_BASE
INTERNET: Final = registry_pb2.AGREEMENT_KIND_INTERNET
POOLING: Final = registry_pb2.AGREEMENT_KIND_POOLING


@dataclass(frozen=True, slots=True)
class Ward:
    """Who works at a hospital."""

    caller: Caller
    doctor: str
    young_doctor: str
    pharmacist: str


@dataclass(frozen=True, slots=True)
class Shop:
    """Who works at a pharmacy."""

    caller: Caller
    pharmacist: str
    dispensers: tuple[str, str]
    courier: str


@dataclass(frozen=True, slots=True)
class Person:
    """An insured person. `delegates` may act for him."""

    number: str
    name: str
    certificate_type: str
    id_number: str
    born_on: str
    account_fen: int
    delegates: tuple[str, ...] = ()


WARDS: Final = (
    Ward(HOSPITALS[0], "D330100990001", "D330100990002", "HY330100990001"),
    Ward(HOSPITALS[1], "D330100990003", "D330100990004", "HY330100990002"),
)
SHOPS: Final = tuple(
    Shop(caller, f"YS{place}01", (f"YS{place}02", f"YS{place}03"), f"YS{place}04")
    for place, caller in enumerate(PHARMACIES, start=33010099)
)
PERSONS: Final = (
    Person("33010000000001", "林示例甲", "01", "990101196104129115", "1961-04-12", 86_000),
    Person("33010000000002", "周示例乙", "08", "E20000002", "1975-08-30", 2_500),
    Person("33010000000003", "吴示例丙", "08", "E20000003", "1990-01-15", 0),
    Person("33010000000004", "林示例丁", "08", "E20000004", "2019-05-01", 30_000, ("33010000000001",)),
)


@dataclass(frozen=True, slots=True)
class Drug:
    """A drug of the catalogue, with what the fund makes of it. Texts are decimals as in the catalogue."""

    code: str
    name: str
    charge_class: str
    prior_ratio: str
    standard: str
    price: str
    limits: str = ""
    control: catalog_pb2.DrugControl.ValueType = catalog_pb2.DRUG_CONTROL_NONE
    max_daily_dose: str = ""


DRUGS: Final = (
    Drug("XC08CAA187A001020301650", "苯磺酸氨氯地平片", "01", "0", "", "20", max_daily_dose="10"),
    Drug("XC09CAE003A001020178814", "厄贝沙坦片", "02", "0.10", "30", "40"),
    Drug("XC10AAA001A001020100001", "阿托伐他汀钙片", "02", "0.05", "", "33.335"),
    Drug("XA10BAE045A001020100002", "盐酸二甲双胍片", "03", "0", "", "12.5"),
    Drug("XB01ACA055A001020100003", "阿司匹林肠溶片", "01", "0", "7.5", "9.99", limits="限二级预防"),
    Drug("XN02AAA001A001020100004", "示例受控片", "01", "0", "", "5", control=catalog_pb2.DRUG_CONTROL_NARCOTIC),
)
FREE: Final = DRUGS[:5]
"""Drugs that may be prescribed here."""
CONTROLLED: Final = DRUGS[5]
DISEASES: Final = ("I10.x00x002", "E11.900")


# ---- keys ----


@cache
def signing_key(owner: str) -> SigningKey:
    """The Ed25519 key of a name."""
    suite = SUITES[SUITE]
    return SigningKey(suite, suite.load_private(hashlib.sha256(b"erxhub simulation key " + owner.encode()).digest()))


@cache
def hub_keys() -> HubKeys:
    """The hub's own keys, the same in every run."""
    secret = hashlib.sha256(b"erxhub simulation hmac").digest()
    return HubKeys(signing_key("hub receipt"), signing_key("hub log"), {1: secret})


# ---- registrations ----


def _institution(caller: Caller) -> registry_pb2.RegisterInstitutionRequest:
    return registry_pb2.RegisterInstitutionRequest(
        institution_code=caller.id,
        name=f"示例机构{caller.id}",
        licences=registry_pb2.Licences(internet=caller.kind == "hospital"),
    )


def agreement(
    caller: Caller, kind: registry_pb2.AgreementKind.ValueType, number: str, now_ms: int, lasts_ms: int = YEAR_MS
) -> registry_pb2.SignAgreementRequest:
    """An agreement from now on."""
    return registry_pb2.SignAgreementRequest(
        institution_code=caller.id,
        kind=kind,
        agreement_no=number,
        valid_from_ms=now_ms - 1,
        valid_until_ms=now_ms + lasts_ms,
        clauses=REQUIRED_CLAUSES,
    )


def practitioner(
    code: str, kind: registry_pb2.PractitionerKind.ValueType, institution_code: str, years: int = 8
) -> registry_pb2.RegisterPractitionerRequest:
    """A practitioner of one institution."""
    return registry_pb2.RegisterPractitionerRequest(
        practitioner_code=code, name="赵示例", kind=kind, practice_years=years, institution_codes=[institution_code]
    )


def key_request(
    subject: str, institution_code: str, now_ms: int, owner: str = "", lasts_ms: int = YEAR_MS
) -> registry_pb2.RegisterSigningKeyRequest:
    """The registration of the key of `owner`, by default the subject's first one."""
    return registry_pb2.RegisterSigningKeyRequest(
        subject_code=subject,
        institution_code=institution_code,
        suite=SUITE,
        public_key=signing_key(owner or subject).public_key,
        valid_from_ms=now_ms - 1,
        valid_until_ms=now_ms + lasts_ms,
    )


def person(who: Person) -> registry_pb2.RegisterPersonRequest:
    """The registration of a person with his account."""
    return registry_pb2.RegisterPersonRequest(
        person_no=who.number,
        name=who.name,
        certificate_type=who.certificate_type,
        id_number=who.id_number,
        sex=common_pb2.SEX_MALE,
        born_on=who.born_on,
        insured_area_code=AREA,
        insurance_type="310",
        person_type="1201",
        account_balance_fen=who.account_fen,
        delegate_person_nos=who.delegates,
    )


def _header(dataset: catalog_pb2.CatalogDataset.ValueType, edition: str) -> registry_pb2.CatalogHeader:
    return registry_pb2.CatalogHeader(
        dataset=dataset, edition=edition, valid_from_on="2026-01-01", file_sha256=bytes(32), source="simulation"
    )


def drug_import(edition: str) -> Any:
    """The drugs as an import of this edition."""
    rows = [
        catalog_pb2.CatalogEntry(
            line=line,
            drug=catalog_pb2.Drug(
                code=drug.code,
                generic_name=drug.name,
                charge_class=drug.charge_class,
                prior_pay_ratio=drug.prior_ratio,
                payment_standard=drug.standard,
                limits=drug.limits,
                control=drug.control,
                max_daily_dose=drug.max_daily_dose,
                max_daily_dose_unit="mg" if drug.max_daily_dose else "",
            ),
        )
        for line, drug in enumerate(DRUGS, start=2)
    ]
    return prepare_import(_header(catalog_pb2.CATALOG_DATASET_DRUGS, edition), rows)


def disease_import(edition: str) -> Any:
    """The diseases as an import of this edition."""
    rows = [
        catalog_pb2.CatalogEntry(line=line, disease=catalog_pb2.Disease(code=code, name="示例疾病", is_diagnosis=True))
        for line, code in enumerate(DISEASES, start=2)
    ]
    return prepare_import(_header(catalog_pb2.CATALOG_DATASET_DISEASES, edition), rows)


Registration = tuple[Caller, str, Any]
"""Caller, method, request."""


def registrations(now_ms: int) -> Iterator[list[Registration]]:
    """What makes the cast known, in rounds: everything of a round may be sent at once."""

    def agency(method: str, *requests: Any) -> list[Registration]:
        return [(AGENCY, f"RegistryService/{method}", request) for request in requests]

    yield [
        *agency("RegisterInstitution", *map(_institution, (*HOSPITALS, *PHARMACIES))),
        *agency("RegisterPerson", *map(person, PERSONS)),
        *agency("ImportCatalog", drug_import("2026"), disease_import("2026")),
    ]
    yield [
        *agency(
            "SignAgreement", *(agreement(caller, kind, f"{caller.id}-{kind}", now_ms) for caller, kind in _agreed())
        ),
        *agency("RegisterPractitioner", *(practitioner(*row) for row in _staff())),
        *agency("RegisterSigningKey", *(key_request(c.id, c.id, now_ms) for c in (*HOSPITALS, *PHARMACIES))),
    ]
    yield [
        *agency("RegisterSigningKey", *(key_request(code, place, now_ms) for code, _, place, _ in _staff())),
        *(
            (channel, "VoucherService/ActivateVoucher", activation(who))
            for who in PERSONS
            # The second channel knows only the first person.
            for channel in (CHANNELS if who is PERSONS[0] else CHANNELS[:1])
        ),
    ]


def _agreed() -> Iterator[tuple[Caller, registry_pb2.AgreementKind.ValueType]]:
    for caller in (*HOSPITALS, *PHARMACIES):
        yield caller, BASE
    yield HOSPITALS[0], INTERNET
    for caller in PHARMACIES[:2]:
        yield caller, POOLING


def _staff() -> Iterator[tuple[str, registry_pb2.PractitionerKind.ValueType, str, int]]:
    for ward in WARDS:
        yield ward.doctor, DOCTOR, ward.caller.id, 8
        yield ward.young_doctor, DOCTOR, ward.caller.id, 2
        yield ward.pharmacist, HOSPITAL_PHARMACIST, ward.caller.id, 8
    for shop in SHOPS:
        yield shop.pharmacist, PHARMACIST, shop.caller.id, 5
        for dispenser in shop.dispensers:
            yield dispenser, DISPENSER, shop.caller.id, 5
        yield shop.courier, COURIER, shop.caller.id, 5


def activation(who: Person) -> voucher_pb2.ActivateVoucherRequest:
    """A person on a channel."""
    return voucher_pb2.ActivateVoucherRequest(
        person_no=who.number, identity_level=voucher_pb2.IDENTITY_LEVEL_REAL_PERSON
    )


DRUG_BY_CODE: Final[Mapping[str, Drug]] = {drug.code: drug for drug in DRUGS}
