"""Magic values against a real hub: what each one does to the call, and that the ledger says so wherever it can."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio

from erxhub.client import ClientFailure
from erxhub.core.refusals import CATALOGUE
from erxhub.policy import codes
from erxhub.sandbox.magic_data import magic_values, world_additions
from erxhub.v1 import common_pb2, signed_pb2, voucher_pb2, voucher_pb2_grpc
from tests.chain import CONSULT, DOWNLOAD, Chain
from tests.live import HOSPITAL, PERSON
from tests.sandbox.exchange_ground import Ground, ground
from tests.sandbox.test_faults import raw_stub

PERSONS = {name: person.person_no for name, person in magic_values().persons.items()}
DRUGS = {drug.effect: drug.code for drug in magic_values().drugs.values()}


@pytest_asyncio.fixture
async def live() -> AsyncIterator[Ground]:
    async with ground(magic=True) as running:
        yield running


async def verify(live: Ground, code: str, request_id: str = "magic-000001", **fields: Any) -> Any:
    stub = await raw_stub(live, voucher_pb2_grpc.VoucherServiceStub, "hospital", HOSPITAL)
    return await stub.VerifyVoucher(
        voucher_pb2.VerifyVoucherRequest(
            request_id=request_id, voucher_code=code, **({"business_type": CONSULT} | fields)
        )
    )


async def refused(live: Ground, call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError):
        await call
    return (await live.traffic())[-1].refusal_code


# ---- the file ----


def test_the_file_names_refusals_that_exist_and_says_everything_twice() -> None:
    values = magic_values()
    rows = [*values.vouchers.values(), *values.drugs.values(), *values.amounts.values()]
    assert all(row.refusal in CATALOGUE for row in rows if row.refusal)
    assert all(told.effect_en and told.effect_zh and told.value for told in values.told())
    assert {name.removeprefix("tst_ec_") for name in values.vouchers} == {
        *("ok", "expired", "revoked", "used", "wrong_person", "forged"),
        *("issuer_down", "slow3s", "pending2", "future", "dead_person"),
    }
    assert [*values.persons] == [f"P{number:02d}" for number in range(1, 9)]
    assert sorted(values.amounts) == [0, 1, 5, 69, 70, 91]
    assert len(values.drugs) == 4


def test_the_persons_are_made_up_and_their_numbers_are_right() -> None:
    for person in magic_values().persons.values():
        if person.certificate_type == "01":
            assert codes.id_number_fault(person.id_number, "2026-11-20") is None
            assert person.id_number.startswith("990101")
    assert len(magic_values().persons["P07"].full_name) > 20
    assert any(ord(character) > 0xFFFF for character in magic_values().persons["P07"].full_name)


def test_a_world_registers_everybody_and_pauses_one() -> None:
    calls = world_additions().calls
    assert sum(call.method.endswith("RegisterPerson") for call in calls) == 8
    assert [call.method for call in calls][-1] == "RegistryService/ChangePersonStatus"
    assert len({call.request.request_id for call in calls}) == len(calls)  # type: ignore[attr-defined]


# ---- vouchers ----


async def test_ok_is_a_real_code_of_the_person_that_is_meant(live: Ground) -> None:
    by_default = await verify(live, "tst_ec_ok")
    assert by_default.person_no == PERSONS["P01"]
    assert (await verify(live, "tst_ec_ok", "magic-000002", person_no=PERSON)).person_no == PERSON
    of_p07 = await verify(live, "tst_ec_ok_P07", "magic-000003")
    assert of_p07.name == magic_values().persons["P07"].full_name
    assert (await verify(live, "tst_ec_ok_P05", "magic-000004")).insured_area_code == "310000"
    assert len(by_default.voucher_ref) == 64


async def test_the_same_request_gets_the_same_code_and_so_the_same_answer(live: Ground) -> None:
    first = await verify(live, "tst_ec_ok")
    before = await live.store.last_position()
    assert await verify(live, "tst_ec_ok") == first
    added = await live.store.log(before, 100)
    assert {entry.stream_kind for entry in added} == {"access"}


@pytest.mark.parametrize(
    ("code", "refusal"),
    [
        ("tst_ec_expired", "VCH_EXPIRED"),
        ("tst_ec_revoked", "VCH_REVOKED"),
        ("tst_ec_used", "VCH_REPLAYED"),
        ("tst_ec_forged", "VCH_INVALID"),
        ("tst_ec_future", "VCH_INVALID"),
        ("tst_ec_dead_person", "PSN_INACTIVE"),
        ("tst_ec_ok_P06", "PSN_INACTIVE"),
    ],
)
async def test_a_bad_code_is_refused_by_the_hub_itself_each_time(live: Ground, code: str, refusal: str) -> None:
    for number in range(2):
        assert await refused(live, verify(live, code, f"magic-00000{number}")) == refusal
    exchanges = await live.traffic(method="Voucher/VerifyVoucher")
    assert [list(exchange.faults) for exchange in exchanges] == [[f"magic {code}"]] * 2
    if code != "tst_ec_ok_P06":
        # Nobody answered in the hub's place: the refusals are in its ledger.
        kinds = [entry.type for exchange in exchanges for entry in exchange.entries]
        assert [kind for kind in kinds if kind in ("voucher.rejected", "command.refused")]


async def test_a_code_of_somebody_else_is_a_mismatch_when_the_person_is_named(live: Ground) -> None:
    code = "tst_ec_wrong_person"
    assert await refused(live, verify(live, code, person_no=PERSONS["P01"])) == "VCH_SUBJECT_MISMATCH"
    assert (await verify(live, code, "magic-000002")).person_no == PERSONS["P02"]


async def test_an_issuer_that_is_down_stays_down_and_pending_ends_after_two_attempts(live: Ground) -> None:
    for _ in range(3):
        assert await refused(live, verify(live, "tst_ec_issuer_down")) == "HUB_UNAVAILABLE"
    for _ in range(2):
        assert await refused(live, verify(live, "tst_ec_pending2", "magic-000002")) == "HUB_UNAVAILABLE"
    assert (await verify(live, "tst_ec_pending2", "magic-000002")).person_no == PERSONS["P01"]


async def test_slow_takes_three_seconds_and_is_right_then(live: Ground) -> None:
    assert (await verify(live, "tst_ec_slow3s")).voucher_ref
    assert live.pauses.waited_ms == [3000]


async def test_an_unknown_magic_code_breaks_the_field_rule_as_anywhere(live: Ground) -> None:
    assert await refused(live, verify(live, "tst_ec_nonsense")) == "INPUT_MALFORMED"


async def test_a_magic_code_serves_every_business_type(live: Ground) -> None:
    assert (await verify(live, "tst_ec_ok", business_type=DOWNLOAD)).voucher_ref


async def test_without_a_prepared_world_an_expired_code_is_answered_in_the_hubs_place() -> None:
    async with ground() as live:
        assert await refused(live, verify(live, "tst_ec_expired")) == "VCH_EXPIRED"


# ---- amounts ----


async def settle(live: Ground, fen: int, attempts: int) -> tuple[list[str], Chain]:
    """A quote whose total ends in `fen`, and what so many attempts to settle it under one request id came to."""
    chain = await Chain(live, lines=1).reviewed()
    lines = chain.sale_lines()
    lines[0].unit_price = f"10.{fen:02d}"
    lines[0].quantity = "1"
    await chain.quote_again(lines=lines)
    assert chain.quote.amounts.total_fen % 100 == fen
    reference = await chain.reference("02121")
    live.recorder.clear()
    outcomes = []
    for _ in range(attempts):
        try:
            await chain.settle(voucher_ref=reference, request_id=f"settle-of-{fen:04d}")
            outcomes.append("OK")
        except ClientFailure:
            exchange = (await live.traffic(method="Dispensing/Settle"))[-1]
            outcomes.append(exchange.refusal_code or exchange.status)
    return outcomes, chain


@pytest.mark.parametrize(
    ("fen", "outcomes"),
    [
        (0, ["OK"]),
        (1, ["ACCT_INSUFFICIENT", "ACCT_INSUFFICIENT"]),
        (5, ["NOT_PAYABLE", "NOT_PAYABLE"]),
        (70, ["DEADLINE_EXCEEDED", "OK"]),
        (91, ["HUB_UNAVAILABLE", "HUB_UNAVAILABLE", "OK"]),
        (32, ["OK"]),
    ],
)
async def test_the_fen_of_a_settlement_choose_the_funds_answer(live: Ground, fen: int, outcomes: list[str]) -> None:
    # The client tries twice by itself where the hub asks for it; each exchange counts.
    _, _ = await settle(live, fen, len(outcomes))
    seen = [exchange.refusal_code or exchange.status for exchange in await live.traffic(method="Dispensing/Settle")]
    assert seen[: len(outcomes)] == outcomes


async def test_timed_out_but_committed_gets_the_stored_reply_at_the_next_attempt(live: Ground) -> None:
    await settle(live, 69, 2)
    first, second = (await live.traffic(method="Dispensing/Settle"))[:2]
    assert first.status == "DEADLINE_EXCEEDED"
    assert "settlement.committed" in [entry.type for entry in first.entries]
    assert (second.status, second.replayed) == ("OK", True)


# ---- drugs ----


async def prescribed(live: Ground, code: str) -> Chain:
    chain = await Chain(live, lines=1).diagnosed()
    line = chain.prescription.lines[0]
    line.drug_code = code
    line.generic_name = magic_values().drugs[code].generic_name
    line.dose, line.dose_unit, line.units_per_dose, line.quantity = "10", "mg", "1", "1"
    line.supply_days = 7
    return chain


async def test_a_drug_that_was_delisted_today_is_unknown_to_the_hub(live: Ground) -> None:
    chain = await prescribed(live, DRUGS["delisted"])
    with pytest.raises(ClientFailure, match="DRUG_UNKNOWN"):
        await chain.prechecked()


async def test_two_reviews_are_needed_where_the_drug_asks_for_them(live: Ground) -> None:
    chain = await prescribed(live, DRUGS["review_refused"])
    await chain.held()
    with pytest.raises(ClientFailure, match="REVIEW_INVALID"):
        await chain.review()
    reply = await chain.review()
    assert reply.review == common_pb2.REVIEW_STATUS_PASSED


async def test_a_rejection_needs_no_second_one(live: Ground) -> None:
    chain = await prescribed(live, DRUGS["review_refused"])
    await chain.held()
    reply = await chain.review(decision=signed_pb2.REVIEW_DECISION_REJECT)
    assert reply.review == common_pb2.REVIEW_STATUS_REJECTED


async def test_a_reused_trace_code_is_refused_until_another_pack_is_taken(live: Ground) -> None:
    chain = await prescribed(live, DRUGS["trace_code_refused"])
    await chain.settled()
    pharmacy = await live.pharmacy()
    arguments = chain.dispense_arguments()
    for _ in range(2):
        with pytest.raises(ClientFailure, match="TRACE_DUPLICATE"):
            await pharmacy.dispense(**arguments)
    assert await pharmacy.dispense(**(arguments | {"lots": chain.lots()}))


async def test_a_recalled_drug_is_never_dispensed(live: Ground) -> None:
    chain = await prescribed(live, DRUGS["dispense_refused"])
    await chain.settled()
    for _ in range(2):
        with pytest.raises(ClientFailure, match="BATCH_EXPIRED"):
            await chain.dispensed()


async def test_state_goes_into_a_snapshot_and_back(live: Ground) -> None:
    state = live.magic.export_state()
    assert await refused(live, verify(live, "tst_ec_pending2")) == "HUB_UNAVAILABLE"
    await verify(live, "tst_ec_ok", "magic-000002")
    assert live.magic.export_state() != state
    live.magic.import_state(state)
    assert live.magic.export_state() == state
