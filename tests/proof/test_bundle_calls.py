"""The calls with which an auditor takes proofs away: what they give verifies outside, and what they refuse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from erxhub.client import Refusal
from erxhub.client.connection import RECEIVE_BYTES_MAX
from erxhub.config import Config
from erxhub.core.keys import prescription_key
from erxhub.ledger.entry import leaf_hash
from erxhub.ledger.sqlite import open_sqlite
from erxhub.ledger.store import Store
from erxhub.proof.bundle import BUNDLE_BYTES_MAX, Form, Subject
from erxhub.proof.bundle_checkpoint import Trust
from erxhub.proof.bundle_verify import verify_bundle
from erxhub.proof.checkpoints import open_checkpoint
from erxhub.proof.merkle import verify_consistency, verify_inclusion
from erxhub.queries import proofs
from tests.chain import Chain
from tests.live import EMPLOYEE, PERSON, Live, live_hub
from tests.postgres import PostgresServer
from tests.several.ground import new_ledger, open_store

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOWHERE = "330100" + "1" * 21


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live() -> AsyncIterator[Live]:
    """One hub for all, whose log grows from test to test."""
    async with live_hub() as running:
        yield running


def trust(live: Live) -> Trust:
    """The log's key alone."""
    return Trust((live.hub.core.publisher.signer.key,))


async def test_an_exported_bundle_verifies_and_the_export_is_recorded_like_a_trace(live: Live) -> None:
    chain = await Chain(live, PERSON).handed_over()
    auditor = await live.auditor()
    reply = await auditor.export_bundle(rx_no=chain.rx_no)
    verdict = verify_bundle(reply.bundle.encode(), trust(live), Subject("prescription", chain.rx_no), Form.CHAIN)
    assert verdict.faults == []
    trace = await auditor.trace(rx_no=chain.rx_no)
    assert trace.accesses[-1].method == "AuditService/ExportBundle"


async def test_an_export_waits_for_a_checkpoint_only_when_what_it_shows_is_not_covered(live: Live) -> None:
    auditor = await live.auditor()
    chain = await Chain(live, PERSON).uploaded()
    publisher = live.hub.core.publisher

    async def exported() -> int:
        text = (await auditor.export_bundle(rx_no=chain.rx_no)).bundle
        assert verify_bundle(text.encode(), trust(live)).faults == []
        assert publisher.newest is not None
        return publisher.newest.no

    first = await exported()
    # The export itself left an entry elsewhere.
    assert await live.hub.store.last_position() > (await publisher.covering(1)).covered_position
    assert await exported() == first
    live.clock.advance(live.hub.engine.config.max_merge_delay_ms + 1)
    assert await exported() == first + 1
    await chain.handed_over()
    assert await exported() == first + 2


async def test_bundles_verify_that_are_exported_while_chains_go_on(live: Live) -> None:
    auditor = await live.auditor()
    first = await Chain(live, PERSON).uploaded()
    second = Chain(live, EMPLOYEE)

    async def exported() -> str:
        return (await auditor.export_bundle(rx_no=first.rx_no)).bundle

    _, _, *bundles = await asyncio.gather(first.handed_over(), second.uploaded(), *(exported() for _ in range(12)))
    assert [verify_bundle(str(text).encode(), trust(live)).faults for text in bundles] == [[]] * 12


def _padded(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    """Every exported chain has so many bytes from now on."""
    exported = proofs.chain_bundle

    async def longer(*of: Any) -> Any:
        found = await exported(*of)
        assert found is not None
        return found[0].ljust(length, "\n"), found[1]

    monkeypatch.setattr(proofs, "chain_bundle", longer)


async def test_a_bundle_may_be_larger_than_any_request(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(drain_ms=200, drain_quiet_ms=0, message_bytes_max=1_310_720)
    _padded(monkeypatch, config.message_bytes_max + 1)
    async with live_hub(config=config) as live:
        chain = await Chain(live, PERSON).handed_over()
        reply = await (await live.auditor()).export_bundle(rx_no=chain.rx_no)
        assert len(reply.bundle) > config.message_bytes_max


async def test_a_bundle_names_the_largest_file_by_its_digest_and_does_not_grow_with_it() -> None:
    async with live_hub() as live:
        chain = await Chain(live, PERSON).prechecked()
        arguments = chain.upload_arguments()
        arguments["file"] = arguments["file"].ljust(1024 * 1024, b"\n")
        await (await live.hospital()).upload(**arguments)
        text = (await (await live.auditor()).export_bundle(rx_no=chain.rx_no)).bundle
        assert len(text) < 64 * 1024
        assert verify_bundle(text.encode(), trust(live)).faults == []


async def test_the_hub_sends_what_a_client_takes_and_a_verifier_reads(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Config().reply_bytes_max == RECEIVE_BYTES_MAX == BUNDLE_BYTES_MAX
    chain = await Chain(live, PERSON).uploaded()
    auditor = await live.auditor()
    length = BUNDLE_BYTES_MAX - 8  # what protobuf writes before it
    _padded(monkeypatch, length)
    assert len((await auditor.export_bundle(rx_no=chain.rx_no)).bundle) == length
    _padded(monkeypatch, BUNDLE_BYTES_MAX)
    with pytest.raises(Refusal) as refused:
        await auditor.export_bundle(rx_no=chain.rx_no)
    assert refused.value.code == "REPLY_TOO_LARGE"
    assert refused.value.metadata["reply_bytes_max"] == str(BUNDLE_BYTES_MAX)


async def test_checkpoints_and_proofs_verify_with_the_logs_key(live: Live) -> None:
    auditor = await live.auditor()
    chain = await Chain(live, PERSON).uploaded()
    proven = await auditor.prove_inclusion(stream_key=prescription_key(chain.rx_no), version=3)
    key = live.hub.core.publisher.signer.key
    before = open_checkpoint(proven.note, key.name, [key]).said
    verify_inclusion(proven.index, before.size, leaf_hash(proven.leaf), list(proven.path), before.root)
    await chain.handed_over()
    await auditor.prove_absence(rx_no=NOWHERE)
    newest = await auditor.checkpoint()
    after = open_checkpoint(newest.note, key.name, [key]).said
    assert (after.size, after.root) == (newest.size, newest.root)
    path = (await auditor.prove_consistency(size1=before.size, size2=after.size)).path
    verify_consistency(before.size, after.size, list(path), before.root, after.root)
    assert (await auditor.checkpoint(size=before.size)).note == proven.note


async def test_an_absence_is_given_by_number_by_code_and_by_stream(live: Live) -> None:
    auditor = await live.auditor()
    chain = await Chain(live, PERSON).uploaded()
    key = prescription_key(chain.rx_no)
    for reply, asked in (
        (await auditor.prove_absence(rx_no=NOWHERE), Subject("prescription", NOWHERE)),
        (await auditor.prove_absence(trace_code="8" * 20), Subject("trace_code", "8" * 20)),
        (await auditor.prove_absence(stream_key=key), Subject("stream", key.hex())),
    ):
        verdict = verify_bundle(reply.bundle.encode(), trust(live), asked, Form.ABSENCE)
        assert verdict.faults == []
        assert verdict.entries == reply.entries
    assert reply.entries > 0


async def test_without_a_case_reason_nothing_is_given_away(live: Live) -> None:
    auditor = await live.auditor()
    chain = await Chain(live, PERSON).uploaded()
    key = prescription_key(chain.rx_no)
    for call in (
        auditor.export_bundle(rx_no=chain.rx_no, case_reason=" "),
        auditor.prove_absence(rx_no=chain.rx_no, case_reason=""),
        auditor.prove_inclusion(stream_key=key, version=1, case_reason=""),
    ):
        with pytest.raises(Refusal) as refused:
            await call
        assert refused.value.code == "AUDIT_REASON"


async def test_what_does_not_exist_is_refused_with_its_field(live: Live) -> None:
    auditor = await live.auditor()
    await auditor.prove_absence(rx_no=NOWHERE)
    size = (await auditor.checkpoint()).size
    for call, code, field in (
        (auditor.export_bundle(rx_no=NOWHERE), "RX_UNKNOWN", "rx_no"),
        (auditor.checkpoint(size=size + 1), "INPUT_MALFORMED", "size"),
        (auditor.prove_inclusion(stream_key=bytes(32), version=1), "INPUT_MALFORMED", "version"),
        (auditor.prove_consistency(size1=1, size2=size + 9), "INPUT_MALFORMED", "size2"),
        (auditor.prove_consistency(size1=2, size2=1), "INPUT_MALFORMED", "size2"),
    ):
        with pytest.raises(Refusal) as refused:
            await call
        assert (refused.value.code, refused.value.field) == (code, field)


@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
async def test_bundles_come_from_every_engine(engine: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    store: Store
    if engine == "sqlite":
        store = await open_sqlite(tmp_path / "hub.db")
    else:
        server: PostgresServer = request.getfixturevalue("postgres_server")
        store = await open_store(new_ledger(server))
    async with live_hub(store=store) as live:
        auditor = await live.auditor()
        chain = await Chain(live, PERSON).handed_over()
        text = (await auditor.export_bundle(rx_no=chain.rx_no)).bundle
        assert verify_bundle(text.encode(), trust(live)).faults == []
        absent = (await auditor.prove_absence(rx_no=NOWHERE)).bundle
        assert verify_bundle(absent.encode(), trust(live), None, Form.ABSENCE).faults == []
