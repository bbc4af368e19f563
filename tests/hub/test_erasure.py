"""Erasure: what a prescription said is gone everywhere, and that it was there is still proven."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from erxhub.client import AgencyClient, Refusal
from erxhub.config import Config
from erxhub.core.events import BY_NUMBER
from erxhub.core.keys import prescription_key
from erxhub.core.retention import Found
from erxhub.erasing import Erasing
from erxhub.ledger.entry import Header
from erxhub.ledger.memory import MemoryStore
from erxhub.ledger.sqlite import open_sqlite
from erxhub.ledger.store import Store, Wanted
from erxhub.ledger.verify import verify_ledger
from erxhub.proof.bundle import Form, Subject
from erxhub.proof.bundle_checkpoint import Trust
from erxhub.proof.bundle_verify import verify_bundle
from erxhub.starting import LedgerRefused, prove_start
from erxhub.v1 import audit_pb2, events_pb2, registry_pb2, state_pb2
from tests.chain import Chain
from tests.hub.test_several_hubs import decided_first
from tests.live import DAY_MS, PERSON, Live, live_hub
from tests.postgres import PostgresServer
from tests.races.ground import GatedStore, until_so
from tests.several.ground import new_ledger, open_store, several_hubs

BASIS = "处方管理办法第五十条：保存期满"
MARKER = "清除标记erasure-marker-7c1e9a"


async def refusal(call: Any) -> Refusal:
    with pytest.raises(Refusal) as found:
        await call
    return found.value


async def erased(live: Live, chain: Chain, years: int = 1) -> registry_pb2.EraseContentResponse:
    """The prescription erased, as soon as it may be."""
    live.advance((365 * years + years // 4 + 10) * DAY_MS)
    while await live.hub.engine.sweep():
        pass
    return await (await live.agency()).erase_content(rx_no=chain.rx_no, legal_basis=BASIS)


async def test_a_record_that_must_be_kept_is_refused_with_the_earliest_day() -> None:
    async with live_hub() as live:
        chain = await Chain(live).uploaded()
        agency = await live.agency()
        found = await refusal(agency.erase_content(rx_no=chain.rx_no, legal_basis=BASIS))
        assert (found.code, found.field) == ("RETENTION", "rx_no")
        # Written on 2026-11-20 and valid for three days.
        assert found.metadata["earliest"] == "2027-11-24"
        assert found.metadata["retention_class"] == "ORDINARY"
        assert found.retriable


async def test_the_record_of_an_online_sale_is_kept_longest() -> None:
    async with live_hub() as live:
        chain = await Chain(live).delivered()
        found = await refusal((await live.agency()).erase_content(rx_no=chain.rx_no, legal_basis=BASIS))
        assert (found.code, found.metadata["retention_class"]) == ("RETENTION", "ONLINE_SALE")
        assert found.metadata["earliest"].startswith("2031-11-2")


async def test_reads_and_repeats_of_an_erased_prescription_say_so() -> None:
    async with live_hub() as live:
        chain = await Chain(live).handed_over()
        hospital, agency = await live.hospital(), await live.agency()
        stored = await live.hub.store.entries(prescription_key(chain.rx_no), 0, 99)
        request_ids = {BY_NUMBER[(h := Header.decode(entry.header)).type].name: h.request_id for entry in stored}
        reply = await erased(live, chain)
        assert reply.retention_class == registry_pb2.RETENTION_CLASS_ORDINARY
        assert reply.encounter_erased
        assert (await refusal(hospital.get(rx_no=chain.rx_no))).code == "CONTENT_ERASED"
        assert [row.rx_no for row in (await hospital.list_prescriptions()).prescriptions] == []
        mine = await (await live.channel()).list_prescriptions(person_no=PERSON)
        assert [row.rx_no for row in mine.prescriptions] == []
        again = agency.freeze_prescription(rx_no=chain.rx_no, case_no="CASE-1")
        assert (await refusal(again)).code == "CONTENT_ERASED"
        assert (await refusal(agency.erase_content(rx_no=chain.rx_no, legal_basis=BASIS))).code == "CONTENT_ERASED"
        pharmacy = await live.pharmacy()
        repeat = pharmacy.release(rx_no=chain.rx_no, request_id=request_ids["dispense.handed_over"])
        assert (await refusal(repeat)).code == "IDEMPOTENCY_CONFLICT"
        close = hospital.close_encounter(encounter_id=chain.encounter_id)
        assert (await refusal(close)).code == "CONTENT_ERASED"


async def test_a_repeated_request_of_an_erased_prescription_answers_content_erased() -> None:
    async with live_hub() as live:
        chain = await Chain(live).uploaded()
        agency = await live.agency()
        call = {"rx_no": chain.rx_no, "case_no": "CASE-1", "request_id": "freeze-once-1"}
        await agency.freeze_prescription(**call)
        await agency.freeze_prescription(**call)
        await erased(live, chain)
        found = await refusal(agency.freeze_prescription(**call))
        assert (found.code, found.field) == ("CONTENT_ERASED", "request_id")


async def test_an_erased_stream_keeps_its_entries_and_says_why() -> None:
    async with live_hub() as live:
        chain = await Chain(live).handed_over()
        key = prescription_key(chain.rx_no)
        before = await live.hub.store.entries(key, 0, 99)
        reply = await erased(live, chain)
        after = await live.hub.store.entries(key, 0, 99)
        # Deadlines may have ended something in between.
        assert [entry.leaf_hash for entry in after][: len(before)] == [entry.leaf_hash for entry in before]
        assert {entry.payload for entry in after[:-1]} == {None}
        said = events_pb2.ContentErased.FromString(after[-1].payload or b"")
        assert (said.legal_basis, said.kept_until_ms) == (BASIS, reply.kept_until_ms)
        state = state_pb2.PrescriptionState.FromString(
            (await live.hub.store.read(Wanted(streams=frozenset({key})))).heads[key].body
        )
        assert state.erased_version == len(after)
        assert not state.person_key
        assert not state.content.lines
        auditor = await live.auditor()
        verified = await auditor.verify_ledger()
        assert list(verified.findings) == []
        assert verified.verified


async def test_a_trace_of_an_erased_prescription_says_that_existence_and_order_are_proven() -> None:
    async with live_hub() as live:
        chain = await Chain(live).handed_over()
        await erased(live, chain)
        traced = await (await live.auditor()).trace(rx_no=chain.rx_no, verify=True)
        assert audit_pb2.Light.Name(traced.light) == "LIGHT_ERASED"
        assert list(traced.gaps) == []
        assert traced.verified
        assert {flow.summary for flow in traced.flows} == {"content erased: existence and order proven"}
        assert [entry.type for entry in traced.entries][-1] == "content.erased"
        assert "ordinary" in traced.entries[-1].summary
        assert {entry.summary for entry in traced.entries[:-1]} == {"content erased: existence and order proven"}
        assert traced.accesses


@pytest.mark.parametrize("engine", ["memory", "sqlite", "postgres"])
async def test_a_bundle_of_an_erased_prescription_proves_existence_and_order(
    engine: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    store: Store | None = None
    if engine == "sqlite":
        store = await open_sqlite(tmp_path / "hub.db")
    elif engine == "postgres":
        store = await open_store(new_ledger(request.getfixturevalue("postgres_server")))
    async with live_hub(store=store) as live:
        chain = await Chain(live).handed_over()
        await erased(live, chain)
        text = (await (await live.auditor()).export_bundle(rx_no=chain.rx_no)).bundle
        trust = Trust((live.hub.core.publisher.signer.key,))
        verdict = verify_bundle(text.encode(), trust, Subject("prescription", chain.rx_no), Form.CHAIN)
        assert verdict.faults == []
        assert verdict.erased > 10
        assert "their existence and order are proven" in str(verdict.checks)


async def test_a_visit_is_erased_with_the_last_of_its_prescriptions() -> None:
    async with live_hub() as live:
        first = await Chain(live).uploaded()
        second = Chain(live, encounter_id=first.encounter_id)
        second.prescription = second.written()
        await second.prechecked()
        assert second.rx_no != first.rx_no
        assert not (await erased(live, first)).encounter_erased
        assert (await (await live.agency()).erase_content(rx_no=second.rx_no, legal_basis=BASIS)).encounter_erased


async def test_the_bytes_leave_the_database_file(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    async with live_hub(database=path) as live:
        chains = []
        for number in range(6):
            chain = await Chain(live, hospital_rx_no=f"erasure-marker-7c1e9a-{number}").diagnosed()
            chain.prescription.department = MARKER
            chains.append(await (chain.handed_over() if number % 2 else chain.uploaded()))
        assert found_in(path) > 0
        for chain in chains:
            await erased(live, chain, years=1) if chain is chains[0] else await (await live.agency()).erase_content(
                rx_no=chain.rx_no, legal_basis=BASIS
            )
        assert found_in(path) == 0
        assert path.with_name("ledger.db-wal").stat().st_size == 0
    assert found_in(path) == 0


def found_in(path: Path) -> int:
    """How often the marker stands in the files of a ledger, in pages that are free as well."""
    files = path.parent.glob(f"{path.name}*")
    return sum(file.read_bytes().count(b"erasure-marker-7c1e9a") for file in files)


async def test_content_that_is_gone_without_an_entry_that_says_so_is_found(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    async with live_hub(database=path) as live:
        chain = await Chain(live).uploaded()
        with closing(sqlite3.connect(path)) as shell:
            shell.execute(
                "DELETE FROM content WHERE version = 2 AND stream = (SELECT no FROM stream WHERE key = ?)",
                (prescription_key(chain.rx_no),),
            )
            shell.commit()
        traced = await (await live.auditor()).trace(rx_no=chain.rx_no, verify=True)
        assert not traced.verified
        assert "GAP_CHAIN" in traced.gaps
        assert [(finding.version, finding.reason) for finding in traced.findings][:1] == [(2, "CONTENT_MISSING")]


@pytest.mark.parametrize("engine", ["memory", "sqlite", "postgres"])
async def test_a_ledger_of_which_content_was_deleted_by_hand_does_not_verify(
    engine: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = tmp_path / "ledger.db"
    store: Store
    if engine == "memory":
        store = MemoryStore()
    elif engine == "sqlite":
        store = await open_sqlite(path)
    else:
        server: PostgresServer = request.getfixturevalue("postgres_server")
        database = server.database(server.ledger_template())
        store = await open_store(server.url(database, "hub"))
    async with live_hub(store=store) as live:
        chain = await Chain(live).uploaded()
        key = prescription_key(chain.rx_no)
        if isinstance(store, MemoryStore):
            (entry,) = await store.entries(key, 1, 1)
            store._log[entry.position - 1] = store._streams[key][1] = replace(entry, salt=None, payload=None)
        elif engine == "sqlite":
            with closing(sqlite3.connect(path)) as shell, shell:
                shell.execute(
                    "DELETE FROM content WHERE version = 2 AND stream = (SELECT no FROM stream WHERE key = ?)", (key,)
                )
        else:
            server.sql(
                "DELETE FROM erxhub.content c USING erxhub.stream s WHERE c.shard = s.shard AND c.stream = s.no"
                f" AND c.version = 2 AND s.key = '\\x{key.hex()}'",
                database,
            )
        expected = ("prescription", key, 2, "CONTENT_MISSING")
        reply = await (await live.auditor()).verify_ledger()
        assert not reply.verified
        assert [(f.stream_kind, f.stream_key, f.version, f.reason) for f in reply.findings] == [expected]
        # What `db check` and a start go by.
        found = (await verify_ledger(store)).findings
        assert [(f.stream_kind, f.stream_key, f.version, f.reason) for f in found] == [expected]
        with pytest.raises(LedgerRefused, match="CONTENT_MISSING"):
            await prove_start(store, live.hub_keys.log, live.hub.engine.config, None)


async def two_of_one_visit(live: Live) -> tuple[Chain, Chain]:
    """Two prescriptions of one visit, which no class keeps any longer."""
    first = await Chain(live).uploaded()
    second = Chain(live, encounter_id=first.encounter_id)
    second.prescription = second.written()
    await second.prechecked()
    live.advance(380 * DAY_MS)
    while await live.hub.engine.sweep():
        pass
    return first, second


async def visit_of(store: Store, chain: Chain) -> list[bool]:
    """Of each entry of the prescription's visit, whether its content is there."""
    name = ("encounter", chain.encounter_id.encode())
    key = (await store.read(Wanted(names=frozenset({name})))).names[name]
    return [entry.payload is not None for entry in await store.entries(key, 0, 99)]


def erasing(client: AgencyClient, chain: Chain) -> Awaitable[registry_pb2.EraseContentResponse]:
    return client.erase_content(rx_no=chain.rx_no, legal_basis=BASIS)


@pytest.mark.parametrize("older_first", [True, False])
async def test_two_hubs_that_erase_the_last_two_of_a_visit_erase_the_visit(
    older_first: bool, postgres_server: PostgresServer
) -> None:
    """Both have decided before either writes."""
    async with several_hubs([new_ledger(postgres_server)] * 2) as several:
        pair = await two_of_one_visit(several[0])
        mine, rival = pair if older_first else (pair[1], pair[0])
        clients = [await one.agency() for one in several.hubs]
        async with (
            decided_first(several[0], erasing(clients[0], mine)) as call,
            decided_first(several[1], erasing(clients[1], rival)) as other,
        ):
            assert {call.done(), other.done()} == {False}
        assert (call.result(), other.result()) == ("OK", "OK")
        visit = await visit_of(several.stores[0], mine)
        assert visit == [False] * (len(visit) - 1) + [True]
        for chain in pair:
            refused = await refusal((await several[0].hospital()).get(rx_no=chain.rx_no))
            assert refused.code == "CONTENT_ERASED"
        assert (await (await several[1].auditor()).verify_ledger()).verified


async def test_the_last_two_of_a_visit_erased_in_one_commit_take_the_visit_with_them() -> None:
    async with live_hub() as live:
        pair = await two_of_one_visit(live)
        agency = await live.agency()
        gated = GatedStore(live.hub.engine.store)
        plain, live.hub.engine.store = live.hub.engine.store, gated  # type: ignore[assignment]
        with gated.shut():
            ahead = asyncio.ensure_future(agency.freeze_prescription(rx_no=pair[0].rx_no, case_no="CASE-1"))
            await gated.arrived.wait()
            both = [asyncio.ensure_future(erasing(agency, chain)) for chain in pair]
            await until_so(lambda: live.hub.engine.queue_depth == 2)
        await asyncio.gather(ahead, return_exceptions=True)
        replies = await asyncio.gather(*both)
        live.hub.engine.store = plain
        assert [reply.encounter_erased for reply in replies] == [False, True]
        assert (await (await live.auditor()).verify_ledger()).verified


# --- by the clock ---------------------------------------------------------------------------------


BY_ITSELF = Config(drain_ms=200, drain_quiet_ms=0, erases_after_retention=True, sweep_interval_ms=3_600_000)
"""The background sweep came by when the hub began and comes no more: tests take the steps."""


async def said_of(store: Store, chain: Chain) -> list[tuple[str, events_pb2.ContentErased]]:
    """Who erased the prescription, and what the entry says."""
    found = []
    for entry in await store.entries(prescription_key(chain.rx_no), 0, 99):
        header = Header.decode(entry.header)
        if BY_NUMBER[header.type].name == "content.erased":
            found.append((header.actor, events_pb2.ContentErased.FromString(entry.payload or b"")))
    return found


@pytest.mark.parametrize("engine", ["memory", "sqlite"])
async def test_the_sweep_erases_what_is_past_its_longest_retention_and_nothing_else(
    engine: str, tmp_path: Path
) -> None:
    database = tmp_path / "ledger.db" if engine == "sqlite" else None
    async with live_hub(database=database, config=BY_ITSELF) as live:
        store = live.hub.store
        short, long = await Chain(live).uploaded(), await Chain(live).delivered()
        erasing = Erasing(live.hub.engine, BY_ITSELF)
        assert await erasing.step() == 0
        live.advance(366 * DAY_MS)
        assert await erasing.step() == 0  # valid for three days, and kept for a year after the last of them
        live.advance(4 * DAY_MS)
        assert await erasing.step() == 1
        ((actor, said),) = await said_of(store, short)
        assert actor.startswith("hub/")
        assert said.legal_basis == BASIS
        assert said.retention_class == registry_pb2.RETENTION_CLASS_ORDINARY
        assert (await refusal((await live.hospital()).get(rx_no=short.rx_no))).code == "CONTENT_ERASED"
        visit = await visit_of(store, short)
        assert visit == [False] * (len(visit) - 1) + [True]
        assert await said_of(store, long) == []
        live.advance(DAY_MS)
        assert await erasing.step() == 0
        live.advance(5 * 365 * DAY_MS)
        assert await erasing.step() == 1
        ((_, said),) = await said_of(store, long)
        assert said.retention_class == registry_pb2.RETENTION_CLASS_ONLINE_SALE
        assert (await verify_ledger(store)).findings == []


async def test_nothing_erases_by_itself_unless_the_operator_says_so() -> None:
    async with live_hub() as live:
        chain = await Chain(live).uploaded()
        live.advance(400 * DAY_MS)
        assert await Erasing(live.hub.engine, live.hub.engine.config).step() == 0
        assert await said_of(live.hub.store, chain) == []


async def test_the_background_sweep_erases_too() -> None:
    store = MemoryStore()
    async with live_hub(store=store, config=replace(BY_ITSELF, sweep_interval_ms=5)) as live:
        chain = await Chain(live).uploaded()
        live.advance(380 * DAY_MS)
        key = prescription_key(chain.rx_no)
        await until_so(lambda: store._streams[key][0].payload is None)
        assert len(await said_of(store, chain)) == 1


async def test_a_step_of_erasing_looks_at_so_many_entries_and_the_next_goes_on() -> None:
    async with live_hub(config=BY_ITSELF) as live:
        chains = [await Chain(live).uploaded() for _ in range(3)]
        live.advance(380 * DAY_MS)
        erasing = Erasing(live.hub.engine, replace(BY_ITSELF, erasure_entries_max=10))
        seen: list[int] = []
        log = live.hub.store.log

        async def counted(after_position: int, limit: int) -> list[Any]:
            page = await log(after_position, limit)
            seen.append(len(page))
            return page

        live.hub.engine.store.log = counted  # type: ignore[method-assign]
        steps = [await erasing.step() for _ in range(30)]
        assert max(seen) == 10
        assert sum(steps) == 3
        assert [len(await said_of(live.hub.store, chain)) for chain in chains] == [1, 1, 1]
        # The end was reached, and the next day it begins again.
        count = len(seen)
        assert count < 30
        assert await erasing.step() == 0
        assert len(seen) == count
        live.advance(DAY_MS)
        await erasing.step()
        assert len(seen) == count + 1


async def test_two_hubs_that_erase_the_same_by_the_clock_do_it_once(postgres_server: PostgresServer) -> None:
    async with several_hubs([new_ledger(postgres_server)] * 2) as several:
        chain = await Chain(several[0]).uploaded()
        several[0].advance(380 * DAY_MS)
        key = prescription_key(chain.rx_no)
        done = await asyncio.gather(*(one.hub.engine.erase_over(Found("prescription", key)) for one in several.hubs))
        assert sorted(done) == [False, True]
        assert len(await said_of(several.stores[0], chain)) == 1
        steps = [await Erasing(one.hub.engine, BY_ITSELF).step() for one in several.hubs]
        assert steps == [0, 0]
