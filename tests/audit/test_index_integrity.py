"""Whoever can write to the database file can touch more than entries: names, lists and code lists are verified too."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from erxhub.config import Config
from erxhub.core.draft import MacKeys
from erxhub.core.index import ACCESS, FEED, PERSON_ACCESS
from erxhub.core.keys import prescription_key
from erxhub.core.model import Accepted, Caller
from erxhub.crypto.suites import Verifier
from erxhub.ledger.sqlite import open_sqlite
from erxhub.policy.pack import shipped_packs
from erxhub.ports import ManualClock
from erxhub.queries import audit
from erxhub.queries.base import ReadContext
from erxhub.v1 import audit_pb2, catalog_pb2
from tests.chain import DOCTOR, Chain
from tests.live import AGENCY, EMPLOYEE, HOSPITAL, MINUTE_MS, PERSON, PHARMACY, live_hub

AUDITOR = Caller("auditor", "auditor-1", "", b"f" * 32)
NAME, LISTING, CATALOGUE = "NAME", "LISTING", "CATALOGUE"
UNUSED = b"\x07" * 32


@dataclass(frozen=True)
class Written:
    """A ledger that a hub wrote and left, and what it takes to read it."""

    path: Path
    rx_no: str
    other_rx_no: str
    ledger_key: bytes
    mac_keys: MacKeys
    now_ms: int

    @property
    def rx_key(self) -> bytes:
        return prescription_key(self.rx_no)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Two chains, a revoked signing key and a revoked certificate, a code list, reads and refusals."""
    path = tmp_path_factory.mktemp("written") / "ledger.db"

    async def write() -> Written:
        async with live_hub(database=path, config=Config(drain_ms=200, national_agencies=(AGENCY,))) as live:
            agency = await live.agency()
            diseases = [
                catalog_pb2.Disease(code=f"I10.x00x00{number}", name="高血压", is_diagnosis=True)
                for number in range(1, 4)
            ]
            await agency.import_catalog(
                dataset=catalog_pb2.CATALOG_DATASET_DISEASES,
                edition="later",
                valid_from_on="2099-01-01",
                file_sha256=bytes(32),
                entries=[
                    catalog_pb2.CatalogEntry(line=line, disease=disease) for line, disease in enumerate(diseases, 2)
                ],
            )
            chain = await Chain(live, PERSON).delivered()
            other = await Chain(live, EMPLOYEE).settled()
            pharmacy = await live.pharmacy()
            await pharmacy.undo_settlement(rx_no=other.rx_no, settlement_id=other.settlement_id, reason="退款")
            # A time-out is a step of its own, although nobody calls.
            live.advance(4 * 24 * 60 * MINUTE_MS)
            await (await live.auditor()).trace(rx_no=other.rx_no)
            stranger = live.trust.issue_tls("hospital", HOSPITAL, live.clock.now_ms(), 30)
            await agency.revoke_certificate(reason="遗失", certificate_pem=stranger.cert_pem)
            doctor = live.key(DOCTOR, HOSPITAL)
            await agency.revoke_certificate(reason="遗失", key_id=doctor.key_id)
            return Written(
                path,
                chain.rx_no,
                other.rx_no,
                live.hub.engine.ledger_key,
                live.hub_keys.mac_keys,
                live.clock.now_ms(),
            )

    return asyncio.run(write())


@pytest.fixture
def copied(written: Written, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copy(written.path, tmp_path / "ledger.db"))


Findings = list[tuple[str, int, str]]


def ask(written: Written, path: Path, query: Any, request: Any) -> Any:
    async def answered() -> Any:
        store = await open_sqlite(path, create=False)
        try:
            ctx = ReadContext(
                store=store,
                mac_keys=written.mac_keys,
                ledger_key=written.ledger_key,
                config=Config(),
                clock=ManualClock(written.now_ms),
                packs=shipped_packs(),
                verifier=Verifier(),
                subscribe=lambda code: asyncio.Event(),
                unsubscribe=lambda code, event: None,
                running=lambda: True,
                page_key=b"p" * 32,
            )
            outcome = await query(ctx, AUDITOR, request)
            assert isinstance(outcome, Accepted), outcome
            return outcome.reply
        finally:
            await store.close()

    return asyncio.run(answered())


def findings(reply: Any) -> Findings:
    assert reply.verified == (not reply.findings)
    return [(each.stream_kind, each.version, each.reason) for each in reply.findings]


def verified(written: Written, path: Path) -> Findings:
    return findings(ask(written, path, audit.verify, audit_pb2.VerifyLedgerRequest(case_reason="case 1")))


def traced(written: Written, path: Path, rx_no: str) -> Findings:
    request = audit_pb2.TraceChainRequest(rx_no=rx_no, case_reason="case 1", verify=True)
    return findings(ask(written, path, audit.trace_chain, request))


def intrude(path: Path, *statements: tuple[str, tuple[Any, ...]]) -> int:
    """Drop the guards and run the statements; how many rows the last one changed."""
    changed = 0
    with closing(sqlite3.connect(path, isolation_level=None)) as shell:
        for (trigger,) in shell.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            shell.execute(f"DROP TRIGGER {trigger}")
        for statement, parameters in statements:
            changed = shell.execute(statement, parameters).rowcount
    assert changed > 0
    return changed


def asked(path: Path, statement: str, parameters: tuple[Any, ...] = ()) -> list[Any]:
    with closing(sqlite3.connect(path)) as shell:
        return shell.execute(statement, parameters).fetchall()


# ---- the guards ----


@pytest.mark.parametrize("table", ["name", "listing", "catalog_row"])
@pytest.mark.parametrize("change", ["DELETE FROM {table}", "UPDATE {table} SET {column} = {column}"])
def test_index_rows_are_insert_only(copied: Path, table: str, change: str) -> None:
    column = {"name": "stream", "listing": "value", "catalog_row": "body"}[table]
    with closing(sqlite3.connect(copied)) as shell, pytest.raises(sqlite3.IntegrityError):
        shell.execute(change.format(table=table, column=column))


# ---- the whole ledger ----


def test_a_ledger_as_the_hub_left_it_is_verified(written: Written, copied: Path) -> None:
    assert verified(written, copied) == []
    assert traced(written, copied, written.rx_no) == []
    assert traced(written, copied, written.other_rx_no) == []


def test_names_are_verified_under_older_hmac_keys_too(written: Written, copied: Path) -> None:
    rotated = Written(
        **{
            **{name: getattr(written, name) for name in Written.__dataclass_fields__},
            "mac_keys": MacKeys({**written.mac_keys.keys, 2: b"n" * 32}),
        }
    )
    assert verified(rotated, copied) == []


def test_names_under_keys_of_another_ledger_do_not_hold(written: Written, copied: Path) -> None:
    foreign = Written(
        **{
            **{name: getattr(written, name) for name in Written.__dataclass_fields__},
            "mac_keys": MacKeys({1: b"n" * 32}),
        }
    )
    found = verified(foreign, copied)
    assert {("person", 1, NAME), ("person", 0, NAME)} == set(found)


def revocation(written: Written, path: Path, space: str) -> int:
    """The version of the entry that gives the only name of a revocation space."""
    versions = asked(
        path,
        "SELECT e.version FROM entry e JOIN content c USING (stream, version), name n"
        " WHERE n.space = ? AND instr(c.payload, n.key) AND n.stream = e.stream",
        (space,),
    )
    assert len(versions) == 1
    return int(versions[0][0])


@pytest.mark.parametrize("space", ["revoked_certificate", "revoked_key"])
def test_a_deleted_revocation_is_found(written: Written, copied: Path, space: str) -> None:
    version = revocation(written, copied, space)
    intrude(copied, ("DELETE FROM name WHERE space = ?", (space,)))
    assert verified(written, copied) == [("ledger", version, NAME)]
    assert traced(written, copied, written.rx_no) == [("ledger", version, NAME)]


def test_a_revocation_that_no_entry_gives_is_found(written: Written, copied: Path) -> None:
    ledger = ("SELECT 'revoked_key', k.key, s.no FROM name k, stream s WHERE k.space = 'signing_key' AND s.key = ?",)
    intrude(copied, (f"INSERT OR IGNORE INTO name {ledger[0]}", (written.ledger_key,)))
    assert ("ledger", 0, NAME) in verified(written, copied)
    assert ("ledger", 0, NAME) in traced(written, copied, written.rx_no)


def test_every_kind_of_name_is_missed_when_it_is_gone(written: Written, copied: Path) -> None:
    spaces = [space for (space,) in asked(copied, "SELECT DISTINCT space FROM name")]
    assert len(spaces) > 12
    for space in spaces:
        path = Path(shutil.copy(written.path, copied))
        gone = intrude(path, ("DELETE FROM name WHERE space = ?", (space,)))
        found = verified(written, path)
        assert (len(found), {reason for _, _, reason in found}) == (min(gone, audit.FINDINGS_MAX), {NAME}), space


def test_a_name_that_leads_to_another_stream_is_found_at_both(written: Written, copied: Path) -> None:
    intrude(
        copied,
        (
            "UPDATE name SET stream = (SELECT stream FROM name WHERE space = 'institution' AND key = ?)"
            " WHERE space = 'institution' AND key = ?",
            (HOSPITAL.encode(), PHARMACY.encode()),
        ),
    )
    assert sorted(verified(written, copied)) == [("institution", 0, NAME), ("institution", 1, NAME)]


def test_a_name_of_no_stream_is_found(written: Written, copied: Path) -> None:
    intrude(copied, ("INSERT INTO name VALUES ('institution', X'01', 1000000)", ()))
    assert verified(written, copied) == [("", 0, NAME)]


def test_every_kind_of_list_is_missed_when_it_is_gone(written: Written, copied: Path) -> None:
    spaces = [space for (space,) in asked(copied, "SELECT DISTINCT space FROM listing")]
    assert {ACCESS, PERSON_ACCESS, FEED, "hospital_rx", "person_rx", "pharmacy_rx"} <= set(spaces)
    for space in spaces:
        path = Path(shutil.copy(written.path, copied))
        intrude(path, ("DELETE FROM listing WHERE space = ?", (space,)))
        found = verified(written, path)
        assert found, space
        assert {reason for _, _, reason in found} == {LISTING}, space


def one_row(path: Path, space: str, key: bytes, place: str = "max") -> tuple[int, int]:
    """(position, version) of the last row of a list."""
    statement = (
        "SELECT e.position, e.version FROM entry e WHERE e.position ="
        f" (SELECT {place}(position) FROM listing WHERE space = ? AND key = ?)"
    )
    [(position, version)] = asked(path, statement, (space, key))
    return position, version


@pytest.mark.parametrize("space", [ACCESS, PERSON_ACCESS])
def test_a_hidden_access_is_found(written: Written, copied: Path, space: str) -> None:
    [(person,)] = asked(copied, "SELECT key FROM listing WHERE space = 'person_rx' ORDER BY position LIMIT 1")
    key = written.rx_key if space == ACCESS else person
    position, version = one_row(copied, space, key)
    intrude(copied, ("DELETE FROM listing WHERE space = ? AND position = ?", (space, position)))
    assert ("access", version, LISTING) in verified(written, copied)
    assert traced(written, copied, written.rx_no) == [("access", version, LISTING)]


def test_an_access_listed_under_a_prescription_that_it_does_not_name_is_found(written: Written, copied: Path) -> None:
    other = prescription_key(written.other_rx_no)
    position, version = one_row(copied, ACCESS, other)
    intrude(copied, ("INSERT INTO listing VALUES (?, ?, ?, X'')", (ACCESS, written.rx_key, position)))
    assert verified(written, copied) == [("access", version, LISTING)]
    assert traced(written, copied, written.rx_no) == [("access", version, LISTING)]


def test_an_altered_value_of_a_row_is_found_once(written: Written, copied: Path) -> None:
    position, version = one_row(copied, FEED, PHARMACY.encode())
    intrude(
        copied,
        (
            "UPDATE listing SET value = X'0000000000000001' WHERE space = ? AND key = ? AND position = ?",
            (FEED, PHARMACY.encode(), position),
        ),
    )
    assert verified(written, copied) == [("prescription", version, LISTING)]


@pytest.mark.parametrize("place", ["min", "max"])
@pytest.mark.parametrize("institution", [HOSPITAL, PHARMACY])
def test_a_step_that_an_institution_is_not_told_is_found(
    written: Written, copied: Path, institution: str, place: str
) -> None:
    position, version = one_row(copied, FEED, institution.encode(), place)
    intrude(
        copied,
        (
            "DELETE FROM listing WHERE space = ? AND key = ? AND position = ?",
            (FEED, institution.encode(), position),
        ),
    )
    assert verified(written, copied) == [("prescription", version, LISTING)]


def test_a_step_hidden_from_everybody_is_found(written: Written, copied: Path) -> None:
    position, version = one_row(copied, FEED, HOSPITAL.encode())
    intrude(copied, ("DELETE FROM listing WHERE space = ? AND position = ?", (FEED, position)))
    assert verified(written, copied) == [("prescription", version, LISTING)]


def test_a_step_shown_to_a_stranger_is_found(written: Written, copied: Path) -> None:
    position, version = one_row(copied, FEED, HOSPITAL.encode())
    intrude(
        copied,
        (
            "INSERT INTO listing SELECT space, X'50', position, value FROM listing"
            " WHERE space = ? AND key = ? AND position = ?",
            (FEED, HOSPITAL.encode(), position),
        ),
    )
    assert verified(written, copied) == [("prescription", version, LISTING)]


def test_two_steps_told_as_one_are_found(written: Written, copied: Path) -> None:
    rows = asked(
        copied,
        "SELECT l.position, l.key, l.value, e.version FROM listing l JOIN entry e USING (position)"
        " JOIN stream s ON s.no = e.stream WHERE l.space = ? AND s.key = ? ORDER BY l.position DESC, l.key",
        (FEED, written.rx_key),
    )
    last, before = sorted({position for position, *_ in rows}, reverse=True)[:2]
    since = next(value for position, _, value, _ in rows if position == before)
    intrude(
        copied,
        ("DELETE FROM listing WHERE space = ? AND position = ?", (FEED, before)),
        ("UPDATE listing SET value = ? WHERE space = ? AND position = ?", (since, FEED, last)),
    )
    assert LISTING in {reason for _, _, reason in verified(written, copied)}


def test_a_row_of_no_entry_is_found(written: Written, copied: Path) -> None:
    intrude(copied, ("INSERT INTO listing VALUES ('institutions', X'01', -5, X'')", ()))
    assert verified(written, copied) == [("", 0, LISTING)]


CATALOGUE_CHANGES: dict[str, str] = {
    "altered": "UPDATE catalog_row SET body = CAST(body || X'18' AS BLOB) WHERE edition = 'later' AND code LIKE '%2'",
    "deleted": "DELETE FROM catalog_row WHERE edition = 'later' AND code LIKE '%2'",
    "added": "INSERT INTO catalog_row SELECT dataset, edition, 'I11', body FROM catalog_row"
    " WHERE edition = 'later' AND code LIKE '%2'",
}


@pytest.mark.parametrize("change", CATALOGUE_CHANGES)
def test_a_catalogue_that_was_changed_is_found(written: Written, copied: Path, change: str) -> None:
    intrude(copied, (CATALOGUE_CHANGES[change], ()))
    [(kind, version, reason)] = verified(written, copied)
    assert (kind, reason) == ("ledger", CATALOGUE)
    assert asked(
        copied,
        "SELECT 1 FROM content c JOIN stream s ON s.no = c.stream"
        " WHERE s.key = ? AND c.version = ? AND instr(c.payload, X'6C61746572')",
        (written.ledger_key, version),
    )


# ---- what cannot be judged is not blamed ----


def test_names_and_lists_of_an_altered_entry_are_not_blamed_as_well(written: Written, copied: Path) -> None:
    intrude(
        copied,
        (
            "UPDATE content SET payload = X'' WHERE version = 1 AND stream = (SELECT no FROM stream WHERE key = ?)",
            (written.rx_key,),
        ),
    )
    assert verified(written, copied) == [("prescription", 1, "COMMITMENT")]


@pytest.mark.parametrize("version", [1, 3])
def test_a_content_that_is_gone_leaves_its_names_and_lists_alone(written: Written, copied: Path, version: int) -> None:
    intrude(
        copied,
        (
            "DELETE FROM content WHERE version = ? AND stream = (SELECT no FROM stream WHERE key = ?)",
            (version, written.rx_key),
        ),
    )
    assert verified(written, copied) == [("prescription", version, "CONTENT_MISSING")]


def test_what_is_written_meanwhile_is_left_to_the_next_verification(written: Written, copied: Path) -> None:
    """The verification begins on an older position than the names and lists that it reads."""
    # A commit that leaves a step of a prescription ends with it.
    for (cut,) in asked(copied, "SELECT DISTINCT position FROM listing WHERE space = ?", (FEED,)):
        assert verified_until(written, copied, cut) == [], cut


def verified_until(written: Written, path: Path, position: int) -> Findings:
    """As if the ledger had ended there when the verification began."""

    async def query(ctx: ReadContext, caller: Caller, request: Any) -> Any:
        real: Callable[[], Any] = ctx.store.last_position
        answers = [position]

        async def last_position() -> int:
            return answers.pop() if answers else await real()

        ctx.store.last_position = last_position  # type: ignore[method-assign]
        return await audit.verify(ctx, caller, request)

    return findings(ask(written, path, query, audit_pb2.VerifyLedgerRequest(case_reason="case 1")))
