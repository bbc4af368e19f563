"""Erasure of what belongs to a person and to no prescription alone: voucher codes and accounts, by the clock."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from erxhub.client import Refusal
from erxhub.core.events import BY_NUMBER
from erxhub.core.keys import prescription_key
from erxhub.core.model import Accepted, Caller
from erxhub.core.retention import Found
from erxhub.erasing import Erasing
from erxhub.ledger.entry import Header
from erxhub.ledger.memory import MemoryStore
from erxhub.ledger.sqlite import open_sqlite
from erxhub.ledger.store import Store, StoredEntry
from erxhub.ledger.verify import verify_ledger
from erxhub.proof.bundle_verify import verify_bundle
from erxhub.proof.reasons import Reason
from erxhub.queries import QUERIES
from erxhub.v1 import audit_pb2, events_pb2, registry_pb2
from tests.chain import DOWNLOAD, PURCHASE, Chain
from tests.hub.test_erasure import BY_ITSELF, found_in
from tests.live import DAY_MS, PERSON, Live, live_hub
from tests.proof.bundle_story import Closing
from tests.refusals.bench import Rx
from tests.several.ground import new_ledger, open_store

YEAR_MS = 366 * DAY_MS
ENGINES = pytest.mark.parametrize("engine", ["memory", "sqlite", "postgres"])


async def store_of(engine: str, path: Path, request: pytest.FixtureRequest) -> Store:
    if engine == "sqlite":
        return await open_sqlite(path)
    if engine == "postgres":
        return await open_store(new_ledger(request.getfixturevalue("postgres_server")))
    return MemoryStore()


async def years_go_by(live: Live, years: float) -> None:
    """Time passes and deadlines with it; then the hub erases as on every day."""
    live.advance(int(years * YEAR_MS))
    while await live.hub.engine.sweep():
        pass
    await Erasing(live.hub.engine, BY_ITSELF).day()


async def streams(live: Live, kind: str) -> dict[bytes, list[StoredEntry]]:
    """Every stream of a kind, with its entries as they are now."""
    keys = {entry.stream_key for entry in await live.hub.store.log(0, 100_000) if entry.stream_kind == kind}
    return {key: await live.hub.store.entries(key, 0, 1_000) for key in keys}


def said(entries: list[StoredEntry]) -> events_pb2.ContentErased | None:
    """What the last entry says of the erasure of those before it; None when all content is there."""
    gone = [entry.payload is None for entry in entries]
    if not any(gone):
        return None
    assert gone == [True] * (len(gone) - 1) + [False]
    assert BY_NUMBER[Header.decode(entries[-1].header).type].name == "content.erased"
    return events_pb2.ContentErased.FromString(entries[-1].payload or b"")


async def holds(live: Live) -> None:
    """Every entry, name and list of the ledger is as it should be."""
    assert (await verify_ledger(live.hub.store)).findings == []
    reply = await asked(live, "auditor", audit_pb2.VerifyLedgerRequest(case_reason="示例"))
    assert (reply.verified, list(reply.findings)) == (True, [])


async def asked(live: Live, kind: str, request: Any) -> Any:
    """The answer of a read, past the admission of a caller whose certificate ended years ago."""
    (method,) = (name for name in QUERIES if f"{name.split('/')[1]}Request" == type(request).__name__)
    outcome = await QUERIES[method](live.hub.core.reads, Caller(kind, "330100", "330100", b""), request)
    assert isinstance(outcome, Accepted)
    return outcome.reply


async def light(live: Live, chain: Chain) -> str:
    request = audit_pb2.TraceChainRequest(rx_no=chain.rx_no, case_reason="示例", verify=True)
    traced = await asked(live, "auditor", request)
    assert traced.verified
    return audit_pb2.Light.Name(traced.light)


@ENGINES
async def test_the_codes_of_a_sale_go_with_its_record(
    engine: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    async with live_hub(store=await store_of(engine, tmp_path / "hub.db", request), config=BY_ITSELF) as live:
        chain = await Chain(live).handed_over()
        before = await streams(live, "voucher")
        assert len(before) >= 3
        await years_go_by(live, 1.1)
        assert await light(live, chain) == "LIGHT_ERASED"
        for key, entries in (await streams(live, "voucher")).items():
            found = said(entries)
            assert found is not None
            assert found.retention_class == registry_pb2.RETENTION_CLASS_ORDINARY
            assert found.kept_until_ms < Header.decode(entries[-1].header).recorded_at_ms
            assert [entry.leaf_hash for entry in entries][:-1] == [entry.leaf_hash for entry in before[key]]
        await holds(live)


async def test_the_codes_of_a_record_are_kept_as_long_as_it_is() -> None:
    """An online sale is kept for five years, a code for its own sake for one."""
    async with live_hub(config=BY_ITSELF) as live:
        chain = await Chain(live).delivered()
        await years_go_by(live, 2)
        assert {said(entries) for entries in (await streams(live, "voucher")).values()} == {None}
        assert await light(live, chain) == "LIGHT_GREEN"
        await years_go_by(live, 4)
        assert None not in [said(entries) for entries in (await streams(live, "voucher")).values()]
        assert await light(live, chain) == "LIGHT_ERASED"
        await holds(live)


async def test_a_code_that_two_records_rest_on_goes_with_the_last_of_them() -> None:
    """One reference opens the list of two prescriptions; one of them is brought to the door and kept for longer."""
    async with live_hub(config=BY_ITSELF) as live:
        short, long = await Chain(live).uploaded(), await Chain(live).uploaded()
        pharmacy = await live.pharmacy()
        offered = await pharmacy.list_by_voucher(voucher_ref=await short.reference(DOWNLOAD))
        assert {item.rx_no for item in offered.prescriptions} == {short.rx_no, long.rx_no}
        visits = await registering(live)
        (shared,) = (await streams(live, "voucher")).keys() - visits
        await long.delivered()
        await years_go_by(live, 2)
        assert await light(live, short) == "LIGHT_ERASED"
        assert await light(live, long) == "LIGHT_GREEN"
        assert said(await live.hub.store.entries(shared, 0, 9)) is None
        await years_go_by(live, 4)
        assert said(await live.hub.store.entries(shared, 0, 9)) is not None


async def test_a_record_whose_codes_went_before_it_is_red_and_proves_nothing() -> None:
    """A hub that says of a voucher that nothing rests on it."""
    async with live_hub(config=BY_ITSELF) as live:
        chain = await Chain(live).delivered()
        live.advance(2 * YEAR_MS)
        while await live.hub.engine.sweep():
            pass
        for key in await streams(live, "voucher"):
            assert await live.hub.engine.erase_over(Found("voucher", key))
        request = audit_pb2.TraceChainRequest(rx_no=chain.rx_no, case_reason="示例", verify=True)
        traced = await asked(live, "auditor", request)
        assert audit_pb2.Light.Name(traced.light) == "LIGHT_RED"
        assert set(traced.gaps) == {"GAP_NO_VOUCHER", "GAP_IDENTITY"}
        closing = Closing(live)
        verdict = verify_bundle(await closing.chain(chain.rx_no), closing.trust)
        assert [fault.reason for fault in verdict.faults] == [Reason.CONTENT_MISSING]


async def registering(live: Live) -> set[bytes]:
    """The vouchers with which the visits were registered."""
    first = [entries[0].payload or b"" for entries in (await streams(live, "encounter")).values()]
    return {events_pb2.EncounterRegistered.FromString(payload).voucher_key for payload in first}


async def test_a_code_that_nobody_used_goes_after_a_year() -> None:
    async with live_hub(config=BY_ITSELF) as live:
        await Chain(live).code(DOWNLOAD)
        await years_go_by(live, 0.9)
        (entries,) = (await streams(live, "voucher")).values()
        assert said(entries) is None
        await years_go_by(live, 0.2)
        (entries,) = (await streams(live, "voucher")).values()
        assert said(entries) is not None
        await holds(live)


@ENGINES
async def test_an_erased_code_stays_used_up_and_its_reply_is_gone(
    engine: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    async with live_hub(store=await store_of(engine, tmp_path / "hub.db", request), config=BY_ITSELF) as live:
        chain = Chain(live)
        pharmacy, code = await live.pharmacy(), await chain.code(PURCHASE)
        call = {"voucher_code": code, "business_type": PURCHASE, "request_id": "decode-once-1"}
        assert (await pharmacy.verify_voucher(**call)).person_no == PERSON
        await years_go_by(live, 1.1)
        again = {**call, "request_id": "decode-once-2"}
        for refused, expected in (
            (pharmacy.verify_voucher(**call), "CONTENT_ERASED"),
            (pharmacy.verify_voucher(**again), "VCH_REPLAYED"),
            ((await live.channel()).revoke_voucher(voucher_code=code), "VCH_INVALID"),
            ((await live.agency()).revoke_voucher(voucher_code=code, reason="遗失"), "VCH_INVALID"),
        ):
            assert await code_of(refused) == expected


async def test_the_bytes_of_a_code_leave_the_database_file(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    async with live_hub(database=path, config=BY_ITSELF) as live:
        pharmacy = await live.pharmacy()
        for _ in range(5):
            await pharmacy.verify_voucher(
                voucher_code=await Chain(live).code(PURCHASE),
                business_type=PURCHASE,
                operator_id="erasure-marker-7c1e9a",
            )
        assert found_in(path) > 0
        await years_go_by(live, 1.1)
        assert found_in(path) == 0


async def code_of(call: Any) -> str:
    with pytest.raises(Refusal) as found:
        await call
    return found.value.code


# ---- accounts ----


async def died(live: Live, person_no: str) -> None:
    await (await live.agency()).change_person_status(person_no=person_no, status=registry_pb2.PERSON_STATUS_DEAD)


async def erased_accounts(live: Live) -> list[events_pb2.ContentErased]:
    found = [said(entries) for entries in (await streams(live, "account")).values()]
    return [each for each in found if each is not None]


@ENGINES
async def test_the_account_of_a_dead_person_goes_when_the_longest_class_is_over(
    engine: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    async with live_hub(store=await store_of(engine, tmp_path / "hub.db", request), config=BY_ITSELF) as live:
        mine = "33010000779001"
        await live.insure(mine)
        chain = await Rx(live, mine).handed_over()
        await died(live, mine)
        await years_go_by(live, 14.9)
        assert await light(live, chain) == "LIGHT_ERASED"
        assert await erased_accounts(live) == []
        await years_go_by(live, 0.2)
        (found,) = await erased_accounts(live)
        assert found.retention_class == registry_pb2.RETENTION_CLASS_INTERNET_CONSULTATION
        told = await asked(live, "agency", registry_pb2.GetPersonRequest(person_no=mine))
        assert told.person.account_balance_fen == 0
        await holds(live)
        await years_go_by(live, 1)
        assert len(await erased_accounts(live)) == 1


@pytest.mark.parametrize(("balance_fen", "dies"), [(1, True), (0, False)], ids=["money in it", "of a living person"])
async def test_an_account_in_which_anything_may_move_stays(balance_fen: int, dies: bool) -> None:
    async with live_hub(config=BY_ITSELF) as live:
        mine = "33010000779002"
        await live.insure(mine, balance_fen=balance_fen)
        if dies:
            await died(live, mine)
        await years_go_by(live, 20)
        assert await erased_accounts(live) == []


async def test_an_account_is_kept_while_a_prescription_of_the_person_is() -> None:
    """Nobody walked the log for the prescription yet: what was erased by then is asked, and not what could be."""
    async with live_hub(config=BY_ITSELF) as live:
        mine = "33010000779003"
        await live.insure(mine)
        chain = await Rx(live, mine).handed_over()
        await died(live, mine)
        live.advance(16 * YEAR_MS)
        erasing = Erasing(live.hub.engine, BY_ITSELF)
        (account,) = [
            header
            for entries in (await streams(live, "account")).values()
            for header in [Header.decode(entries[0].header)]
            if len(entries) > 1
        ]
        found = await erasing._accounts([account], live.clock.now_ms())
        assert [each.stream_key for each in found] == [account.stream_key]
        assert not await live.hub.engine.erase_over(found[0])
        assert await live.hub.engine.erase_over(Found("prescription", prescription_key(chain.rx_no)))
        assert await live.hub.engine.erase_over(found[0])


async def test_a_day_that_begins_on_the_way_of_an_earlier_one_is_gone_through_too() -> None:
    async with live_hub(config=BY_ITSELF) as live:
        chain = await Chain(live).handed_over()
        (begun, *_) = await live.hub.store.entries(prescription_key(chain.rx_no), 0, 1)
        erasing = Erasing(live.hub.engine, replace(BY_ITSELF, erasure_entries_max=begun.position))
        live.advance(365 * DAY_MS + 1)
        assert await erasing.step() == 0
        live.advance(30 * DAY_MS)
        while await live.hub.engine.sweep():
            pass
        assert await erasing.day() == 1
