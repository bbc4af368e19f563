"""The magic values as data: magic.toml read and checked, and the calls that bring its persons into a world.

Owns the reading. It knows what each value is called and what people are told about it; what happens is magic.py's.
"""

from __future__ import annotations

import functools
import hashlib
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final, NamedTuple

from google.protobuf.message import Message

from erxhub.v1 import catalog_pb2, common_pb2, registry_pb2, sandbox_pb2, voucher_pb2

CHANNEL: Final = "demo-app"
"""The channel on which magic persons have their e-voucher, and which shows magic codes: that of the seeded world."""

_SEX: Final = {"male": common_pb2.SEX_MALE, "female": common_pb2.SEX_FEMALE}
_HOME: Final = "330100"


@dataclass(frozen=True, slots=True)
class MagicVoucher:
    """A code that VerifyVoucher takes here and nowhere else."""

    name: str
    en: str
    zh: str
    refusal: str = ""
    delay_ms: int = 0
    times: int = 0


@dataclass(frozen=True, slots=True)
class MagicPerson:
    """A person of the fictional world with something special. `paused`: insurance suspended once all else is done."""

    name: str
    person_no: str
    full_name: str
    certificate_type: str
    id_number: str
    sex: str
    born_on: str
    insured_area_code: str
    insurance_type: str
    person_type: str
    en: str
    zh: str
    account_balance_fen: int = 0
    delegate_person_nos: tuple[str, ...] = ()
    chronic_codes: tuple[str, ...] = ()
    allergies: tuple[str, ...] = ()
    paused: bool = False


@dataclass(frozen=True, slots=True)
class MagicDrug:
    """A drug with an effect: "dispense_refused", "delisted", "review_refused" or "trace_code_refused"."""

    name: str
    code: str
    generic_name: str
    effect: str
    refusal: str
    en: str
    zh: str
    times: int = 0

    @property
    def row(self) -> catalog_pb2.Drug:
        """Its row of the drug catalogue."""
        return catalog_pb2.Drug(
            code=self.code,
            generic_name=self.generic_name,
            dosage_form="片剂",
            strength="10mg",
            pack="10片/盒",
            maker="示例制药（虚构）",
            charge_class="01",
            prior_pay_ratio="0",
            control=catalog_pb2.DRUG_CONTROL_NONE,
        )


@dataclass(frozen=True, slots=True)
class MagicAmount:
    """What the fund answers to a total with these fen. `status` is a gRPC status, `refusal` a code."""

    fen: int
    en: str
    zh: str
    refusal: str = ""
    status: str = ""
    committed: bool = False
    times: int = 0


@dataclass(frozen=True, slots=True)
class MagicValues:
    """All of them, by what they are recognised by."""

    vouchers: dict[str, MagicVoucher]
    persons: dict[str, MagicPerson]
    drugs: dict[str, MagicDrug]
    amounts: dict[int, MagicAmount]

    def told(self) -> list[sandbox_pb2.MagicValue]:
        """For people, in the order of the file."""
        rows: list[tuple[str, str, str, Any]] = [
            *(("voucher", one.name, one.name, one) for one in self.vouchers.values()),
            *(("person", one.name, one.person_no, one) for one in self.persons.values()),
            *(("drug", one.name, one.code, one) for one in self.drugs.values()),
            *(("amount", f".{one.fen:02d}", f"total_fen % 100 = {one.fen}", one) for one in self.amounts.values()),
        ]
        return [
            sandbox_pb2.MagicValue(kind=kind, name=name, value=value, effect_en=one.en, effect_zh=one.zh)
            for kind, name, value, one in rows
        ]


@functools.cache
def magic_values() -> MagicValues:
    """The shipped file. Raises TypeError for a row with an unknown or a missing key."""
    text = resources.files("erxhub.sandbox").joinpath("magic.toml").read_text(encoding="utf-8")
    rows: dict[str, list[dict[str, Any]]] = {
        kind: [{key: tuple(value) if isinstance(value, list) else value for key, value in row.items()} for row in found]
        for kind, found in tomllib.loads(text).items()
    }
    vouchers = [MagicVoucher(**row) for row in rows.pop("voucher")]
    persons = [MagicPerson(**row) for row in rows.pop("person")]
    drugs = [MagicDrug(**row) for row in rows.pop("drug")]
    amounts = [MagicAmount(**row) for row in rows.pop("amount")]
    if rows:
        raise TypeError(f"magic.toml has unknown tables: {', '.join(rows)}")
    return MagicValues(
        {one.name: one for one in vouchers},
        {one.name: one for one in persons},
        {one.code: one for one in drugs},
        {one.fen: one for one in amounts},
    )


# ---- into a world ----


class WorldCall(NamedTuple):
    """One call of an agency or a channel that brings a magic person into a world."""

    role: str
    peer_id: str
    method: str
    request: Message


@dataclass(frozen=True, slots=True)
class WorldAdditions:
    """What a world needs for the magic values, beside its own seed.

    `calls` in this order, after the regions were imported; `drugs` are rows of the world's drug catalogue, and
    `delisted` the codes of those that an edition in force from the next day on no longer has.
    """

    calls: tuple[WorldCall, ...]
    drugs: tuple[catalog_pb2.Drug, ...]
    delisted: frozenset[str]


def world_additions() -> WorldAdditions:
    """What to register, the same for every world."""
    values = magic_values()
    return WorldAdditions(
        tuple(_calls(values)),
        tuple(drug.row for drug in values.drugs.values()),
        frozenset(drug.code for drug in values.drugs.values() if drug.effect == "delisted"),
    )


def _calls(values: MagicValues) -> Iterator[WorldCall]:
    for person in values.persons.values():
        yield WorldCall("agency", person.insured_area_code, "RegistryService/RegisterPerson", registration_of(person))
        yield WorldCall("channel", CHANNEL, "VoucherService/ActivateVoucher", activation_of(person.person_no))
    for person in values.persons.values():
        if person.paused:
            request = registry_pb2.ChangePersonStatusRequest(
                request_id=request_id_for("pause", person.person_no),
                person_no=person.person_no,
                status=registry_pb2.PERSON_STATUS_PAUSED,
                reason="magic value",
            )
            yield WorldCall("agency", person.insured_area_code, "RegistryService/ChangePersonStatus", request)


def registration_of(person: MagicPerson) -> registry_pb2.RegisterPersonRequest:
    """The call that registers the person."""
    return registry_pb2.RegisterPersonRequest(
        request_id=request_id_for("person", person.person_no),
        person_no=person.person_no,
        name=person.full_name,
        certificate_type=person.certificate_type,
        id_number=person.id_number,
        sex=_SEX[person.sex],
        born_on=person.born_on,
        insured_area_code=person.insured_area_code,
        insurance_type=person.insurance_type,
        person_type=person.person_type,
        account_balance_fen=person.account_balance_fen,
        delegate_person_nos=person.delegate_person_nos,
        chronic_codes=person.chronic_codes,
    )


def activation_of(person_no: str) -> voucher_pb2.ActivateVoucherRequest:
    """The call that activates the person's e-voucher on the magic channel."""
    return voucher_pb2.ActivateVoucherRequest(
        request_id=request_id_for("activate", person_no),
        person_no=person_no,
        identity_level=voucher_pb2.IDENTITY_LEVEL_REAL_PERSON,
    )


def dead_person(number: str) -> MagicPerson:
    """A person of his own for one use of tst_ec_dead_person: nobody comes back from the dead for the next one."""
    return MagicPerson(
        name="dead",
        person_no=f"TST{number}",
        full_name="故示例",
        certificate_type="08",
        id_number=f"E{number}",
        sex="male",
        born_on="1940-01-01",
        insured_area_code=_HOME,
        insurance_type="310",
        person_type="1201",
        en="",
        zh="",
    )


def request_id_for(*content: object) -> str:
    """A request id of the sandbox's own that follows from what it is for."""
    return f"sbx-{hashlib.sha256(repr(content).encode()).hexdigest()[:32]}"
