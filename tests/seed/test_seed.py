"""The seeded world is one that a hub takes whole, twice, and whose sample prescription passes every rule."""

import re
from collections.abc import AsyncIterator

import pytest

from erxhub.policy.codes import drug_kind, has_form, id_number_fault
from erxhub.seed import SeedWorld, catalogue, register_world, sample_diagnoses, sample_pdf, sample_prescription
from erxhub.seed.world import AREA, INSTITUTIONS, PERSONS, PRACTITIONERS
from erxhub.v1 import catalog_pb2, common_pb2
from tests.chain import Chain
from tests.live import START_MS, Live, live_hub


@pytest.fixture
async def live() -> AsyncIterator[Live]:
    async with live_hub() as running:
        yield running


def test_codes_have_the_real_shapes_and_invented_serials() -> None:
    for institution in INSTITUTIONS:
        assert has_form("hospital", institution.code) or has_form("pharmacy", institution.code)
        assert institution.code[1:9] == f"{AREA}99"
        assert "（虚构）" in institution.name
    for practitioner in PRACTITIONERS:
        assert f"{AREA}99" in practitioner.code
        assert "示例" in practitioner.name
    for entry in catalogue()[0].entries:
        assert drug_kind(entry.drug.code) is not None
        assert entry.drug.generic_name.startswith("示例")


def test_identity_numbers_belong_to_nobody_and_fit_the_person() -> None:
    for person in PERSONS:
        assert person.id_number.startswith("99")
        assert id_number_fault(person.id_number, "2026-01-01") is None
        assert person.id_number[6:14] == person.born_on.replace("-", "")
        assert (int(person.id_number[16]) % 2 == 1) == (person.sex == common_pb2.SEX_MALE)


def test_the_catalogue_has_a_drug_for_each_special_rule() -> None:
    drugs = [entry.drug for entry in catalogue()[0].entries]
    assert {drug_kind(drug.code) for drug in drugs} == {"western", "patent", "herbal"}
    assert {drug.charge_class for drug in drugs} == {"01", "02", "03"}
    for one in (
        [drug.limits for drug in drugs],
        [drug.dual_channel for drug in drugs],
        [drug.cold_chain for drug in drugs],
        [drug.hospital_preparation for drug in drugs],
        [drug.payment_standard for drug in drugs],
        [drug.control == catalog_pb2.DRUG_CONTROL_NARCOTIC for drug in drugs],
        [drug.control == catalog_pb2.DRUG_CONTROL_VACCINE for drug in drugs],
    ):
        assert any(one)


async def test_the_hub_takes_every_row(live: Live) -> None:
    agency = await live.agency()
    for file in catalogue():
        listed = await agency.list_catalog(dataset=file.dataset)
        assert [edition.rows for edition in listed.editions] == [len(file.entries)], file.name


async def test_registering_again_brings_nothing_but_new_keys(live: Live) -> None:
    agency = await live.agency()

    async def etags() -> list[str]:
        return [one.etag for one in (await agency.list_institutions()).institutions]

    await register_world(agency, live.trust, START_MS)
    once = await etags()
    await register_world(agency, live.trust, START_MS)
    # A trust domain in memory keeps no keys, so each institution gets another one for its seal.
    assert [int(after) - int(before) for before, after in zip(once, await etags(), strict=True)] == [1] * 4


@pytest.mark.parametrize("lines", [1, 2, 5])
async def test_the_sample_passes_the_precheck(live: Live, lines: int) -> None:
    chain = Chain(live, lines=lines)
    await (await chain.diagnosed()).prechecked()
    assert len(chain.prescription.lines) == lines
    assert re.fullmatch("[0-9]{27}", chain.rx_no)


async def test_the_sample_is_about_somebody_of_the_seed(live: Live) -> None:
    world = live.world
    prescription = sample_prescription(world, "E1", SeedWorld.employee_no, START_MS)
    assert prescription.patient.age_years == 38
    assert list(prescription.diagnoses) == sample_diagnoses()
    assert sum(line.amount_fen for line in prescription.lines) == 1037 + 2224
    with pytest.raises(KeyError):
        sample_prescription(world, "E1", "33010000000000", START_MS)
    with pytest.raises(ValueError, match="1 to 5 lines"):
        sample_prescription(world, "E1", SeedWorld.person_no, START_MS, lines=6)


def test_the_file_is_a_whole_pdf_with_a_watermark() -> None:
    data = sample_pdf("处方 Rx 1\n示例平降压片 2.5mg " + "长" * 100 + "\n" * 100 + "end 𠀀")
    assert data == sample_pdf("处方 Rx 1\n示例平降压片 2.5mg " + "长" * 100 + "\n" * 100 + "end 𠀀")
    assert data.startswith(b"%PDF-1.4\n")
    assert data.endswith(b"%%EOF\n")
    assert "模拟 / SIMULATED".encode("utf-16-be").hex().encode() in data
    table_at = int(data.rsplit(b"startxref\n", 1)[1].split()[0])
    assert data[table_at:].startswith(b"xref\n0 8\n")
    for number, line in enumerate(data[table_at:].splitlines()[3:10], start=1):
        assert data[int(line[:10]) :].startswith(b"%d 0 obj\n" % number)
    length = re.search(rb"/Length (\d+) >>\nstream\n(.*)\nendstream", data, re.DOTALL)
    assert length is not None
    assert int(length[1]) == len(length[2])
