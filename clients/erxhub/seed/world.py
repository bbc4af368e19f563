"""Who is in the seeded world, and how it gets into a hub: through an agency's calls, like any other registration.

Owns the cast: institutions, practitioners, persons, agreements, keys. Every request id follows from the request's
content, so registering the same world again changes nothing. Must never: write to a store itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

from erxhub.client import AgencyClient
from erxhub.crypto.ca import Identity, SigningIdentity, TrustDomain
from erxhub.crypto.suites import DEFAULT_SUITE, SigningKey
from erxhub.seed.catalogue import EDITION, catalogue
from erxhub.seed.identities import founded_at_ms, identity, signing_identity
from erxhub.v1 import common_pb2, registry_pb2

AREA: Final = "330100"
CHANNEL: Final = "demo-app"
AUDITOR: Final = "auditor-1"
AGREEMENT_DAYS: Final = 5 * 365
CLAUSES: Final = ("scope", "conditions", "charge_and_settlement_standard", "payment_mode")

_BEIJING: Final = timezone(timedelta(hours=8))
_DAY_MS: Final = 86_400_000

DOCTOR: Final = registry_pb2.PRACTITIONER_KIND_DOCTOR
HOSPITAL_PHARMACIST: Final = registry_pb2.PRACTITIONER_KIND_HOSPITAL_PHARMACIST
PHARMACIST: Final = registry_pb2.PRACTITIONER_KIND_PHARMACIST
DISPENSER: Final = registry_pb2.PRACTITIONER_KIND_DISPENSER
COURIER: Final = registry_pb2.PRACTITIONER_KIND_COURIER

BASE: Final = registry_pb2.AGREEMENT_KIND_BASE
INTERNET: Final = registry_pb2.AGREEMENT_KIND_INTERNET
POOLING: Final = registry_pb2.AGREEMENT_KIND_POOLING
DUAL_CHANNEL: Final = registry_pb2.AGREEMENT_KIND_DUAL_CHANNEL


class SeedInstitution(NamedTuple):
    """A hospital or pharmacy. `level` is hosp_lv, empty for a pharmacy; `internet` its licence for internet visits."""

    code: str
    name: str
    level: str
    internet: bool
    agreements: tuple[registry_pb2.AgreementKind.ValueType, ...]


class SeedPractitioner(NamedTuple):
    """Somebody who works at one institution. `signs`: whether there is a signing key."""

    code: str
    name: str
    kind: registry_pb2.PractitionerKind.ValueType
    institution_code: str
    practice_years: int = 0
    dual_channel: bool = False
    signs: bool = True


class SeedPerson(NamedTuple):
    """An insured person. `born_on` and sex agree with the identity number, whose check character is right."""

    person_no: str
    name: str
    id_number: str
    sex: common_pb2.Sex.ValueType
    born_on: str
    insurance_type: str
    person_type: str
    account_balance_fen: int
    delegate_person_nos: tuple[str, ...] = ()
    chronic_codes: tuple[str, ...] = ()


INSTITUTIONS: Final = (
    SeedInstitution("H33010099901", "青岚示例医院（虚构）", "02", True, (BASE, INTERNET)),
    SeedInstitution("H33010099902", "白石示例医院（虚构）", "05", False, (BASE,)),
    SeedInstitution("P33010099101", "示例大药房（虚构）一店", "", False, (BASE, POOLING, DUAL_CHANNEL)),
    SeedInstitution("P33010099102", "示例大药房（虚构）二店", "", False, (BASE, POOLING)),
)

PRACTITIONERS: Final = (
    SeedPractitioner("D330100990001", "赵示例", DOCTOR, "H33010099901", practice_years=8, dual_channel=True),
    SeedPractitioner("D330100990002", "钱示例", DOCTOR, "H33010099901", practice_years=1),
    SeedPractitioner("D330100990003", "孙示例", DOCTOR, "H33010099902", practice_years=12),
    SeedPractitioner("HY330100990001", "李示例", HOSPITAL_PHARMACIST, "H33010099901", practice_years=6),
    SeedPractitioner("HY330100990002", "周示例", HOSPITAL_PHARMACIST, "H33010099902", practice_years=6),
    SeedPractitioner("YS330100990001", "吴示例", PHARMACIST, "P33010099101", practice_years=9),
    SeedPractitioner("YS330100990002", "郑示例", PHARMACIST, "P33010099102", practice_years=4),
    SeedPractitioner("PY330100990001", "王示例", DISPENSER, "P33010099101", signs=False),
    SeedPractitioner("PY330100990002", "冯示例", DISPENSER, "P33010099102", signs=False),
    SeedPractitioner("PY330100990003", "陈示例", DISPENSER, "P33010099101", signs=False),
    SeedPractitioner("PY330100990004", "褚示例", DISPENSER, "P33010099102", signs=False),
    SeedPractitioner("PS330100990001", "卫示例", COURIER, "P33010099101", signs=False),
    SeedPractitioner("PS330100990002", "蒋示例", COURIER, "P33010099102", signs=False),
)
"""Staff without a national code get codes of our own: PY 配药人员, PS 配送员."""

PERSONS: Final = (
    SeedPerson(
        person_no="33010000990001",
        name="林示例甲",
        id_number="990101196104129019",
        sex=common_pb2.SEX_MALE,
        born_on="1961-04-12",
        insurance_type="310",
        person_type="1201",
        account_balance_fen=86_000,
        chronic_codes=("M03900",),
    ),
    SeedPerson(
        person_no="33010000990002",
        name="沈示例乙",
        id_number="990101198809039020",
        sex=common_pb2.SEX_FEMALE,
        born_on="1988-09-03",
        insurance_type="310",
        person_type="1101",
        account_balance_fen=30_000,
    ),
    SeedPerson(
        person_no="33010000990003",
        name="林示例丙",
        id_number="99010120220501901X",
        sex=common_pb2.SEX_MALE,
        born_on="2022-05-01",
        insurance_type="390",
        person_type="1402",
        account_balance_fen=0,
        delegate_person_nos=("33010000990002",),
    ),
    SeedPerson(
        person_no="33010000990004",
        name="韩示例丁",
        id_number="990101197512309048",
        sex=common_pb2.SEX_FEMALE,
        born_on="1975-12-30",
        insurance_type="390",
        person_type="1501",
        account_balance_fen=0,
    ),
)


@dataclass(frozen=True, slots=True)
class SeedWorld:
    """The registered world: TLS identities, signing keys, and the codes to call with."""

    agency: Identity
    hospital: Identity
    hospital_b: Identity
    pharmacy: Identity
    pharmacy_b: Identity
    channel: Identity
    auditor: Identity
    signing_identities: Mapping[tuple[str, str], SigningIdentity]
    """(subject, institution) → key. The institution itself is the subject of its seal."""

    area_code: ClassVar[str] = AREA
    hospital_code: ClassVar[str] = "H33010099901"
    hospital_b_code: ClassVar[str] = "H33010099902"
    pharmacy_code: ClassVar[str] = "P33010099101"
    pharmacy_b_code: ClassVar[str] = "P33010099102"
    channel_id: ClassVar[str] = CHANNEL

    doctor_code: ClassVar[str] = "D330100990001"
    junior_doctor_code: ClassVar[str] = "D330100990002"
    doctor_b_code: ClassVar[str] = "D330100990003"
    hospital_pharmacist_code: ClassVar[str] = "HY330100990001"
    hospital_b_pharmacist_code: ClassVar[str] = "HY330100990002"
    pharmacist_code: ClassVar[str] = "YS330100990001"
    pharmacist_b_code: ClassVar[str] = "YS330100990002"
    dispenser_code: ClassVar[str] = "PY330100990001"
    dispenser_b_code: ClassVar[str] = "PY330100990002"
    checker_code: ClassVar[str] = "PY330100990003"
    checker_b_code: ClassVar[str] = "PY330100990004"
    courier_code: ClassVar[str] = "PS330100990001"
    courier_b_code: ClassVar[str] = "PS330100990002"

    person_no: ClassVar[str] = "33010000990001"
    """A pensioner with a balance and a filed chronic disease."""
    employee_no: ClassVar[str] = "33010000990002"
    child_no: ClassVar[str] = "33010000990003"
    """A child whose code the employee may show."""
    resident_no: ClassVar[str] = "33010000990004"

    @property
    def signing_keys(self) -> Mapping[tuple[str, str], SigningKey]:
        """(subject, institution) → private key."""
        return {who: held.key for who, held in self.signing_identities.items()}

    def key(self, subject_code: str) -> SigningKey:
        """The key of a subject; everybody here works at one place. Raises KeyError."""
        return next(held.key for (subject, _), held in self.signing_identities.items() if subject == subject_code)

    @property
    def callers(self) -> Mapping[str, Identity]:
        """The identities by the names that their contexts get."""
        return {
            "hospital": self.hospital,
            "hospital2": self.hospital_b,
            "pharmacy": self.pharmacy,
            "pharmacy2": self.pharmacy_b,
            "channel": self.channel,
            "agency": self.agency,
            "auditor": self.auditor,
        }


async def register_world(
    agency: AgencyClient,
    trust: TrustDomain,
    now_ms: int,
    suite: str = DEFAULT_SUITE,
    *,
    directory: Path | None = None,
) -> SeedWorld:
    """Issues what is missing, imports the shipped catalogue and registers everybody.

    Args:
        agency: connected as agency/330100 of this trust domain.
        trust: where identities and signing keys come from.
        now_ms: UTC milliseconds.
        suite: of the signing keys.
        directory: the trust domain's folder. With it good identities and keys are used again, and repeating the call
            changes nothing; without it (in memory) each call issues new ones.

    Raises ClientFailure when the hub refuses, TrustDomainError.
    """
    world = issue_world(trust, now_ms, suite, directory)
    founded_ms = founded_at_ms(trust)
    await _import_catalogue(agency, founded_ms)
    for institution in INSTITUTIONS:
        await _once(
            agency.register_institution,
            institution_code=institution.code,
            name=institution.name,
            level=institution.level,
            internet=institution.internet,
        )
        for kind in institution.agreements:
            await _once(
                agency.sign_agreement,
                institution_code=institution.code,
                kind=kind,
                agreement_no=f"SEED-{institution.code}-{kind}",
                valid_from_ms=founded_ms,
                valid_until_ms=founded_ms + AGREEMENT_DAYS * _DAY_MS,
                clauses=CLAUSES,
            )
    for practitioner in PRACTITIONERS:
        await _once(
            agency.register_practitioner,
            practitioner_code=practitioner.code,
            name=practitioner.name,
            kind=practitioner.kind,
            institution_codes=(practitioner.institution_code,),
            practice_years=practitioner.practice_years,
            dual_channel=practitioner.dual_channel,
        )
    for person in PERSONS:
        await _once(agency.register_person, insured_area_code=AREA, **person._asdict())
    for held in world.signing_identities.values():
        await _once(
            agency.register_signing_key,
            subject_code=held.subject_code,
            institution_code=held.institution_code,
            suite=held.suite,
            public_key=held.key.public_key,
            valid_from_ms=held.not_before_ms,
            valid_until_ms=held.not_after_ms,
            certificate_pem=held.cert_pem,
        )
    return world


def issue_world(trust: TrustDomain, now_ms: int, suite: str, directory: Path | None) -> SeedWorld:
    """The world's identities and signing keys, registered or not; those of `directory` where it has good ones.

    Raises TrustDomainError.
    """

    def caller(role: str, peer_id: str) -> Identity:
        return identity(trust, role, peer_id, now_ms, directory=directory)

    signers = [(institution.code, institution.code) for institution in INSTITUTIONS]
    signers += [(one.code, one.institution_code) for one in PRACTITIONERS if one.signs]
    return SeedWorld(
        agency=caller("agency", AREA),
        hospital=caller("hospital", SeedWorld.hospital_code),
        hospital_b=caller("hospital", SeedWorld.hospital_b_code),
        pharmacy=caller("pharmacy", SeedWorld.pharmacy_code),
        pharmacy_b=caller("pharmacy", SeedWorld.pharmacy_b_code),
        channel=caller("channel", CHANNEL),
        auditor=caller("auditor", AUDITOR),
        signing_identities={
            (subject, institution): signing_identity(trust, subject, institution, suite, now_ms, directory=directory)
            for subject, institution in signers
        },
    )


async def _import_catalogue(agency: AgencyClient, founded_ms: int) -> None:
    valid_from_on = datetime.fromtimestamp(founded_ms // 1000, UTC).astimezone(_BEIJING).date().isoformat()
    for file in catalogue():
        await agency.import_catalog(
            dataset=file.dataset,
            edition=EDITION,
            valid_from_on=valid_from_on,
            file_sha256=file.sha256,
            entries=file.entries,
            source=f"erxhub seed, {file.name}",
            request_id=_request_id(file.name, valid_from_on, file.sha256),
        )


async def _once(call: Callable[..., Awaitable[Any]], **arguments: Any) -> None:
    await call(**arguments, request_id=_request_id(call.__name__, sorted(arguments.items())))


def _request_id(*content: object) -> str:
    return f"seed-{hashlib.sha256(repr(content).encode()).hexdigest()[:32]}"
