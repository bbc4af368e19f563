"""E-vouchers that prove nothing: expired, replayed, for another business, of another person, of another institution."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.chain import CONSULT, DOWNLOAD, PICK_UP, PURCHASE
from tests.live import EMPLOYEE, HOSPITAL_B, MINUTE_MS, PERSON, PHARMACY_B
from tests.refusals.bench import Bench, Rx, details_of
from tests.refusals.provoking import Attempt, Expected, refused

pytestmark = pytest.mark.asyncio(loop_scope="module")

REJECTED = "voucher.rejected"

Step = Callable[[Bench], Awaitable[tuple[Any, str, str, Callable[[str], Awaitable[Any]]]]]


# ---- the steps that quote a reference: (who calls, its business type, field of a foreign person, the call) ----


async def _register(bench: Bench) -> tuple[Any, str, str, Callable[[str], Awaitable[Any]]]:
    visitor = await bench.visitor(voucher_ref="")
    hospital = await bench.live.hospital()
    return hospital, CONSULT, "person_no", lambda ref: hospital.register_encounter(**visitor | {"voucher_ref": ref})


async def _quote(bench: Bench) -> tuple[Any, str, str, Callable[[str], Awaitable[Any]]]:
    rx = await bench.rx().reviewed()
    pharmacy = await bench.live.pharmacy()
    lines = rx.sale_lines()
    return (
        pharmacy,
        PURCHASE,
        "voucher_ref",
        lambda ref: pharmacy.quote(rx_no=rx.rx_no, voucher_ref=ref, lines=lines),
    )


async def _settle(bench: Bench) -> tuple[Any, str, str, Callable[[str], Awaitable[Any]]]:
    rx = await bench.rx().quoted()
    return await bench.live.pharmacy(), PURCHASE, "voucher_ref", lambda ref: rx.settle(voucher_ref=ref)


async def _hand_over(bench: Bench) -> tuple[Any, str, str, Callable[[str], Awaitable[Any]]]:
    rx = await bench.rx().dispensed()
    pharmacy = await bench.live.pharmacy()
    seal_key = bench.live.key(rx.pharmacy_code, rx.pharmacy_code)
    return (
        pharmacy,
        PICK_UP,
        "voucher_ref",
        lambda ref: pharmacy.hand_over(rx_no=rx.rx_no, staff_code=rx.dispenser, voucher_ref=ref, seal_key=seal_key),
    )


async def _sign_for(bench: Bench) -> tuple[Any, str, str, Callable[[str], Awaitable[Any]]]:
    rx = await bench.rx().arrived()
    return await bench.live.pharmacy(), PICK_UP, "voucher_ref", lambda ref: rx.sign(sign_code="", voucher_ref=ref)


STEPS = pytest.mark.parametrize("step", [_register, _quote, _settle, _hand_over, _sign_for])


async def _shown_to(bench: Bench, client: Any, business_type: str, person_no: str = PERSON) -> str:
    code = await Rx(bench.live, person_no=person_no).code(business_type)
    verified = await client.verify_voucher(voucher_code=code, business_type=business_type)
    return str(verified.voucher_ref)


@STEPS
async def test_reference_of_another_person_proves_nothing(bench: Bench, step: Step) -> None:
    client, business_type, field, call = await step(bench)
    foreign = await _shown_to(bench, client, business_type, EMPLOYEE)
    await refused(bench, Attempt(client, call(foreign)), Expected("VCH_SUBJECT_MISMATCH", field))
    await call(await _shown_to(bench, client, business_type))


@STEPS
async def test_reference_for_another_business_proves_nothing(bench: Bench, step: Step) -> None:
    client, _, _, call = await step(bench)
    other = await _shown_to(bench, client, DOWNLOAD)
    await refused(bench, Attempt(client, call(other)), Expected("VCH_WRONG_BUSINESS", "voucher_ref"))


@STEPS
async def test_reference_of_another_institution_is_like_one_that_does_not_exist(bench: Bench, step: Step) -> None:
    client, business_type, _, call = await step(bench)
    is_hospital = client.connection.peer_name.role == "hospital"
    other = await (bench.live.hospital(HOSPITAL_B) if is_hospital else bench.live.pharmacy(PHARMACY_B))
    stolen = await _shown_to(bench, other, business_type)
    expected = Expected("VCH_INVALID", "voucher_ref")
    first = await refused(bench, Attempt(client, call(stolen)), expected)
    second = await refused(bench, Attempt(client, call("Z" * 64)), expected)
    assert details_of(first) == details_of(second)


async def test_reference_expires_after_half_an_hour(bench: Bench) -> None:
    client, business_type, _, call = await _register(bench)
    reference = await _shown_to(bench, client, business_type)
    bench.live.advance(30 * MINUTE_MS)
    await call(reference)
    bench.live.advance(1)
    await refused(bench, Attempt(client, call(reference)), Expected("VCH_EXPIRED", "voucher_ref"))


async def test_code_is_good_until_its_last_millisecond(bench: Bench) -> None:
    hospital = await bench.live.hospital()
    code = await bench.rx().code(CONSULT)
    bench.live.advance(60_000)
    await hospital.verify_voucher(voucher_code=code, business_type=CONSULT)


async def test_decode_that_is_repeated_under_its_request_id_is_no_replay(bench: Bench) -> None:
    hospital = await bench.live.hospital()
    code = await bench.rx().code(CONSULT)
    request_id = hospital.request_ids.new()
    first = await hospital.verify_voucher(voucher_code=code, business_type=CONSULT, request_id=request_id)
    again = await hospital.verify_voucher(voucher_code=code, business_type=CONSULT, request_id=request_id)
    assert first == again
    replay = hospital.verify_voucher(voucher_code=code, business_type=CONSULT)
    await refused(bench, Attempt(hospital, replay), Expected("VCH_REPLAYED", "voucher_code", REJECTED))


async def test_third_refused_decode_revokes_the_code(bench: Bench) -> None:
    hospital = await bench.live.hospital()
    code = await bench.rx().code(CONSULT)
    tries = [("voucher.try_counted",)] * 2 + [("voucher.try_counted", "voucher.revoked")]
    for keeps in tries:
        wrong = hospital.verify_voucher(voucher_code=code, business_type=DOWNLOAD)
        expected = Expected("VCH_WRONG_BUSINESS", "business_type", REJECTED, keeps)
        await refused(bench, Attempt(hospital, wrong), expected)
    right = hospital.verify_voucher(voucher_code=code, business_type=CONSULT)
    await refused(bench, Attempt(hospital, right), Expected("VCH_REVOKED", "voucher_code", REJECTED))


async def test_code_shown_on_another_channel_is_counted_against_it(bench: Bench) -> None:
    hospital = await bench.live.hospital()
    code = await bench.rx().code(CONSULT)
    call = hospital.verify_voucher(voucher_code=code, business_type=CONSULT, channel_id="another-app")
    expected = Expected("VCH_INVALID", "channel_id", REJECTED, ("voucher.try_counted",))
    await refused(bench, Attempt(hospital, call), expected)


async def test_revoked_code_opens_nothing(bench: Bench) -> None:
    hospital, channel = await bench.live.hospital(), await bench.live.channel()
    code = await bench.rx().code(CONSULT)
    await channel.revoke_voucher(voucher_code=code, reason="误操作")
    call = hospital.verify_voucher(voucher_code=code, business_type=CONSULT)
    await refused(bench, Attempt(hospital, call), Expected("VCH_REVOKED", "voucher_code", REJECTED))


async def test_channel_learns_nothing_of_people_who_are_not_activated_on_it(bench: Bench) -> None:
    other = await bench.live.channel("another-app")
    nobody = Expected("VCH_REVOKED")
    first = await refused(bench, Attempt(other, other.issue_voucher(person_no=PERSON, business_type=CONSULT)), nobody)
    second = await refused(
        bench, Attempt(other, other.issue_voucher(person_no="no-such-person", business_type=CONSULT)), nobody
    )
    assert details_of(first) == details_of(second)
