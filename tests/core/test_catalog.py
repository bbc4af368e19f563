import csv
import hashlib
from pathlib import Path

import pytest

from erxhub.core import catalog
from erxhub.core.catalog import edition_in_force, prepare_import, rows_digest
from erxhub.core.model import Accepted, Caller, Outcome
from erxhub.core.refusals import CATALOGUE
from erxhub.policy.codes import drug_kind, has_form
from erxhub.v1 import catalog_pb2, registry_pb2, state_pb2
from tests.core.harness import LEDGER_KEY, World
from tests.core.population import AGENCY, PROVINCE, accepted, disease_row, drug_row, refused

WESTERN = "XC08CAA187A001020301650"
DAY_MS = 86_400_000
# 2026-11-22 00:00 in Beijing.
MIDNIGHT_MS = 1_795_276_800_000


def bring(
    world: World,
    *entries: catalog_pb2.CatalogEntry,
    dataset: catalog_pb2.CatalogDataset.ValueType = catalog_pb2.CATALOG_DATASET_DRUGS,
    edition: str = "E1",
    valid_from_on: str = "2026-11-22",
    file_sha256: bytes = b"f" * 32,
    caller: Caller = AGENCY,
) -> Outcome:
    header = registry_pb2.CatalogHeader(
        request_id="import-0001",
        dataset=dataset,
        edition=edition,
        valid_from_on=valid_from_on,
        file_sha256=file_sha256,
        source="示例目录",
    )
    return world.do(caller, "RegistryService/ImportCatalog", prepare_import(header, entries))


def test_an_import_leaves_one_event_and_its_rows() -> None:
    world = World()
    outcome = bring(world, drug_row(2, WESTERN), drug_row(3, "T000900001"))
    reply = accepted(outcome)
    assert (reply.rows_taken, reply.rows_refused) == (2, 0)
    assert isinstance(outcome, Accepted)
    assert [row[:3] for row in outcome.catalog_rows] == [("drugs", "E1", "T000900001"), ("drugs", "E1", WESTERN)]
    _, event, payload = world.events[-1]
    assert event == "catalogue.imported"
    assert (payload.edition.rows, payload.edition.valid_from_ms) == (2, MIDNIGHT_MS)
    tx = world._draft(AGENCY.actor, "read")
    assert catalog.current_edition(tx, catalog.DRUGS) == "E1"
    found = catalog.drug(tx, "E1", WESTERN)
    assert found is not None
    assert found.charge_class == "01"


def test_a_wrong_row_is_left_out_and_named() -> None:
    reply = accepted(
        bring(World(), drug_row(2, WESTERN), drug_row(3, "X12"), drug_row(4, WESTERN), disease_row(5, "I10"))
    )
    assert (reply.rows_taken, reply.rows_refused) == (1, 3)
    assert [(row.line, row.code, row.field) for row in reply.refused] == [
        (3, "DRUG_CODE", "drug.code"),
        (4, "INPUT_MALFORMED", "drug.code"),
        (5, "INPUT_MALFORMED", "drug"),
    ]
    assert reply.refused[0].message_en == CATALOGUE["DRUG_CODE"].en
    assert reply.refused[0].message_zh == CATALOGUE["DRUG_CODE"].zh


def test_a_malformed_disease_code_is_left_out() -> None:
    world = World()
    rows = [disease_row(2, "I10.x00x002"), disease_row(3, "hypertension")]
    reply = accepted(bring(world, *rows, dataset=catalog_pb2.CATALOG_DATASET_DISEASES))
    assert [(row.line, row.code) for row in reply.refused] == [(3, "DX_INVALID")]


def test_an_import_of_which_nothing_is_taken_leaves_nothing() -> None:
    world = World()
    reply = accepted(bring(world, drug_row(2, "X12")))
    assert (reply.rows_taken, reply.rows_refused) == (0, 1)
    assert world.names_of_events("ledger") == ["ledger.opened"]


def test_a_reply_lists_the_first_200_refused_rows_and_counts_all() -> None:
    reply = accepted(bring(World(), *(drug_row(line, "X12") for line in range(2, 252))))
    assert (len(reply.refused), reply.rows_refused) == (200, 250)


def test_the_same_import_again_leaves_nothing_and_other_content_is_refused() -> None:
    world = World()
    first = accepted(bring(world, drug_row(2, WESTERN)))
    before = len(world.events)
    assert accepted(bring(world, drug_row(2, WESTERN))) == first
    assert len(world.events) == before
    refused(bring(world, drug_row(2, WESTERN), file_sha256=b"g" * 32), "RECORD_EXISTS", "header.edition")
    refused(bring(world, drug_row(2, "T000900001")), "RECORD_EXISTS", "header.edition")
    rows = [disease_row(2, "I10.x00x002")]
    accepted(bring(world, *rows, dataset=catalog_pb2.CATALOG_DATASET_DISEASES))


def test_the_ledger_commits_to_the_rows_that_were_taken() -> None:
    world = World()
    outcome = bring(world, drug_row(2, WESTERN), drug_row(3, "X12"), drug_row(4, "T000900001"))
    assert isinstance(outcome, Accepted)
    rows = [(code, body) for _, _, code, body in outcome.catalog_rows]
    assert world.events[-1][2].edition.rows_sha256 == rows_digest(rows)


def test_the_digest_of_rows_is_over_lengths_codes_and_rows_by_ascending_code() -> None:
    told = hashlib.sha256(b"\0\0\0\x01A\0\0\0\x02xy" + b"\0\0\0\x02BB\0\0\0\0").digest()
    assert rows_digest([("BB", b""), ("A", b"xy")]) == told
    assert rows_digest([("A", b"xy"), ("BB", b"")]) == told
    assert rows_digest([("AB", b"B"), ("A", b"xy")]) != told


def test_only_an_agency_that_acts_nationally_imports() -> None:
    world = World()
    refused(bring(world, drug_row(2, WESTERN), caller=PROVINCE), "ROLE_NOT_ALLOWED", "")
    assert world.names_of_events("ledger") == ["ledger.opened"]


def test_a_day_that_does_not_exist_is_malformed() -> None:
    outcome = bring(World(), drug_row(2, WESTERN), valid_from_on="2026-02-30")
    refused(outcome, "INPUT_MALFORMED", "header.valid_from_on")


@pytest.mark.parametrize(
    ("now_ms", "edition"),
    [(MIDNIGHT_MS - 1, None), (MIDNIGHT_MS, "B"), (MIDNIGHT_MS + DAY_MS - 1, "B"), (MIDNIGHT_MS + DAY_MS, "C")],
)
def test_the_edition_with_the_latest_day_that_has_come_counts(now_ms: int, edition: str | None) -> None:
    drugs = catalog_pb2.CATALOG_DATASET_DRUGS
    begins = (("C", DAY_MS), ("A", 0), ("B", 0))
    ledger = state_pb2.LedgerState(
        editions=[
            registry_pb2.CatalogEdition(dataset=drugs, edition=name, valid_from_ms=MIDNIGHT_MS + after_ms)
            for name, after_ms in begins
        ]
    )
    assert edition_in_force(ledger, catalog.DRUGS, now_ms) == edition
    assert edition_in_force(ledger, catalog.DISEASES, now_ms) is None


def test_without_any_import_no_edition_is_in_force() -> None:
    assert edition_in_force(None, catalog.DRUGS, MIDNIGHT_MS) is None


def test_the_forms_of_the_shared_lists_are_accepted(shared: Path) -> None:
    def codes(name: str) -> list[str]:
        with (shared / "data" / name).open(encoding="utf-8") as file:
            return [row["code"] for row in csv.DictReader(file)]

    assert [code for code in codes("drugs.csv") if drug_kind(code) is None] == []
    assert [code for code in codes("diseases.csv") if not has_form("disease", code)] == []


def test_the_ledger_names_the_edition_after_its_dataset() -> None:
    world = World()
    accepted(bring(world, drug_row(2, WESTERN)))
    assert world.find("catalog_edition", f"{catalog_pb2.CATALOG_DATASET_DRUGS}/E1".encode()) == LEDGER_KEY
