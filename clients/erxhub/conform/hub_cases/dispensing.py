"""DSP: review, settlement, goods, and giving a settlement back."""

from __future__ import annotations

from typing import Any

from erxhub.conform.hub.journey import PURCHASE, known_amounts
from erxhub.conform.hub.ledger_copy import read_header
from erxhub.conform.hub.run import HubRun
from erxhub.conform.registry import case
from erxhub.seed.world import SeedWorld
from erxhub.v1 import dispensing_pb2, registry_pb2, signed_pb2

PROFILES = ("dev", "strict")


@case(
    id="DSP-002",
    revision=1,
    since="0.2",
    status="stable",
    first_release=True,
    title_zh="未经审方不得结算、调配",
    title_en="No settlement and no dispensing without a review",
    level="MUST",
    verifies=("ERR-REVIEW_REQUIRED", "RX-P-21", "INV-I3", "LC-3.1b-review.passed"),
    profiles=PROFILES,
)
async def without_a_review(run: HubRun) -> None:
    """P-21, I3: a prescription is quoted, settled and dispensed only after a pharmacist of this order has passed it."""
    journey = await run.journey().to("held")
    position = await run.entries()
    quote = await journey.quote_request()
    self_paid = await run.pharmacy.drafts.record_self_payment(
        rx_no=journey.rx_no, lines=journey.sale_lines(), seal_key=run.key(run.pharmacy.code)
    )
    dispense = await journey.dispense_request(settlement_id="")
    for request in (quote, self_paid, dispense):
        run.refused(await run.pharmacy.ask(request), "REVIEW_REQUIRED")
    found = await run.written(position)
    run.checks.that(
        not any(name.startswith(("settlement.", "dispense.", "prescription.")) for name in found),
        en="nothing is quoted, settled or dispensed",
        zh="不得结算或调配",
        actual=dict(found),
    )
    await run.chain(journey.rx_no, events={"dispense.outbound": 0}, refusals={"REVIEW_REQUIRED": 3})
    await journey.to("settled")
    # A review holds for its own order: after a release the next hold needs one of its own.
    second = await run.journey().to("reviewed")
    await run.pharmacy.client.release(rx_no=second.rx_no, reason="缺货")
    await second.authorize()
    await second.hold()
    run.refused(await run.pharmacy.ask(await second.quote_request()), "REVIEW_REQUIRED", where="the next order")


@case(
    id="DSP-004",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="审方药师未登记、不在本店或被暂停",
    title_en="A reviewer who is unknown, of another shop, or suspended",
    level="MUST",
    verifies=("ERR-REVIEW_PHARMACIST", "RX-P-21", "INV-I16", "ERR-REVIEW_INVALID"),
    needs=("sandbox",),
    profiles=PROFILES,
)
async def reviewer_not_allowed(run: HubRun) -> None:
    """P-21, X-17: an active pharmacist of this pharmacy reviews, with an opinion."""
    journey = await run.journey().to("held")
    pharmacist_b = run.pharmacy_b.staff["pharmacist"]
    for who, code in (
        ("unknown", "YS330100999999"),
        ("of another pharmacy", pharmacist_b),
        ("a dispenser", run.pharmacy.staff["dispenser"]),
        ("a doctor", SeedWorld.doctor_code),
    ):
        key = run.key(code) if code in (pharmacist_b, SeedWorld.doctor_code) else run.key(pharmacist_b)
        review = await journey.review_request(pharmacist_code=code, pharmacist_key=key)
        run.refused(await run.pharmacy.ask(review), "REVIEW_PHARMACIST", where=who)
    empty = await journey.review_request(opinion="")
    run.refused(await run.pharmacy.ask(empty), "REVIEW_INVALID", where="no opinion")
    change = run.agency.client.change_practitioner_status
    pharmacist = run.pharmacy.staff["pharmacist"]
    suspended, active = registry_pb2.PRACTITIONER_STATUS_SUSPENDED, registry_pb2.PRACTITIONER_STATUS_ACTIVE
    await change(practitioner_code=pharmacist, status=suspended, case_no="CASE-1")
    review = await journey.review_request()
    run.refused(await run.pharmacy.ask(review), "REVIEW_PHARMACIST", where="suspended")
    await run.chain(journey.rx_no, events={"review.passed": 0}, refusals={"REVIEW_PHARMACIST": 5, "REVIEW_INVALID": 1})
    await change(practitioner_code=pharmacist, status=active, case_no="CASE-1")
    await journey.review()
    await run.chain(journey.rx_no, events={"review.passed": 1})


@case(
    id="DSP-006",
    revision=1,
    since="0.2",
    status="stable",
    first_release=True,
    title_zh="调配数量超过处方数量",
    title_en="More dispensed than prescribed",
    level="MUST",
    verifies=("ERR-DISPENSE_MISMATCH", "INV-I2", "LC-3.1c-prescription.used"),
    profiles=PROFILES,
)
async def more_than_prescribed(run: HubRun) -> None:
    """M21, I2: neither at once nor over several fills more goes out than was prescribed, and than was settled."""
    single = await run.journey().to("settled")
    lots = single.lots()
    lots[0].quantity = str(int(lots[0].quantity) + 1)
    lots[0].trace_codes.append(f"8{9:012d}{9:07d}")
    run.refused(await run.pharmacy.ask(await single.dispense_request(lots=lots)), "DISPENSE_MISMATCH")
    doubled = [*single.lots(), *single.lots({1: single.prescription.lines[0].quantity})]
    run.refused(await run.pharmacy.ask(await single.dispense_request(lots=doubled)), "DISPENSE_MISMATCH", where="twice")
    await run.chain(single.rx_no, events={"dispense.outbound": 0}, refusals={"DISPENSE_MISMATCH": 2})
    await single.dispense()

    partial = await run.journey().to("reviewed")
    first, second = (line.quantity for line in partial.prescription.lines)
    more = {1: str(int(first) + 1)}
    answer = await run.pharmacy.ask(await partial.quote_request(lines=partial.sale_lines(more)))
    run.refused(answer, "DISPENSE_MISMATCH", where="Dispensing/QuoteSettlement")
    await partial.quote_sale(lines=partial.sale_lines({1: first}))
    await partial.settle()
    run.accepted(await run.pharmacy.ask(await partial.dispense_request(lots=partial.lots({1: first}))))
    await run.stands(partial.rx_no, "EFFECTIVE", "PARTLY_USED")
    rest = run.journey(pharmacy=run.pharmacy_b)
    rest.rx_no, rest.prescription = partial.rx_no, partial.prescription
    await rest.authorize()
    await rest.hold()
    run.checks.equal(
        [(line.line_no, line.quantity) for line in rest.download.remaining if line.quantity != "0"],
        [(2, second)],
        point="sut",
        en="what is left is exact",
        zh="剩余数量应准确",
    )
    await rest.review()
    cumulative = await rest.quote_request(lines=rest.sale_lines({1: first, 2: second}))
    run.refused(await run.pharmacy_b.ask(cumulative), "DISPENSE_MISMATCH", where="the line that is used up")
    await rest.quote_sale(lines=rest.sale_lines({2: second}))
    await rest.settle()
    used_up = await rest.dispense_request(lots=rest.lots({1: first}))
    run.refused(await run.pharmacy_b.ask(used_up), "DISPENSE_MISMATCH", where="Dispensing/Dispense")
    run.accepted(await run.pharmacy_b.ask(await rest.dispense_request(lots=rest.lots({2: second}))))
    await run.stands(partial.rx_no, "EXHAUSTED", "USED")
    await run.chain(partial.rx_no, events={"dispense.outbound": 2, "prescription.exhausted": 1})


@case(
    id="DSP-007",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="调配药品与处方不符",
    title_en="Another drug than the prescribed one",
    level="MUST",
    verifies=("ERR-DISPENSE_MISMATCH",),
    profiles=PROFILES,
)
async def another_drug(run: HubRun) -> None:
    """M21: the drug that is sold is the drug of its line, at the quote, the self-payment and the dispensing."""
    journey = await run.journey().to("reviewed")
    swapped = journey.sale_lines()
    swapped[0].drug_code, swapped[1].drug_code = swapped[1].drug_code, swapped[0].drug_code
    run.refused(await run.pharmacy.ask(await journey.quote_request(lines=swapped)), "DISPENSE_MISMATCH")
    self_paid = await run.pharmacy.drafts.record_self_payment(
        rx_no=journey.rx_no, lines=swapped, seal_key=run.key(run.pharmacy.code)
    )
    run.refused(await run.pharmacy.ask(self_paid), "DISPENSE_MISMATCH", where="self-payment")
    await journey.to("settled")
    lots = journey.lots()
    lots[0].drug_code, lots[1].drug_code = lots[1].drug_code, lots[0].drug_code
    run.refused(await run.pharmacy.ask(await journey.dispense_request(lots=lots)), "DISPENSE_MISMATCH")
    await run.chain(journey.rx_no, events={"dispense.outbound": 0}, refusals={"DISPENSE_MISMATCH": 3})
    await journey.dispense()


@case(
    id="DSP-008",
    revision=1,
    since="0.2",
    status="stable",
    first_release=True,
    title_zh="追溯码已在别处售出",
    title_en="A trace code that was sold elsewhere",
    level="MUST",
    verifies=("ERR-TRACE_DUPLICATE", "INV-I9", "RX-P-19"),
    profiles=PROFILES,
)
async def trace_code_sold_before(run: HubRun) -> None:
    """P-19, I9: a pack is sold once, whoever sells it; within one sale a code stands once as well."""
    position = await run.entries()
    first = await run.journey().to("settled")
    lots = first.lots()
    run.accepted(await run.pharmacy.ask(await first.dispense_request(lots=lots)))
    second = await run.journey(person_no=run.place.second_person_no, pharmacy=run.pharmacy_b).to("settled")
    copied = second.lots()
    copied[1].trace_codes[0] = lots[1].trace_codes[0]
    run.refused(await run.pharmacy_b.ask(await second.dispense_request(lots=copied)), "TRACE_DUPLICATE")
    await run.chain(second.rx_no, events={"dispense.outbound": 0}, refusals={"TRACE_DUPLICATE": 1})
    copies = await run.copy(after=position, as_mirror=False)
    types = [read_header(one.header).type_name for one in copies]
    run.checks.equal(
        types.count("trace_code.duplicate_detected"),
        1,
        en="trace_code.duplicate_detected stands in the access stream",
        zh="访问流中应有 trace_code.duplicate_detected",
    )
    run.checks.equal(
        types.count("trace_code.sold"),
        2,
        en="the codes of the first sale are sold, and no other",
        zh="仅首次销售的追溯码已售",
    )
    twice = second.lots()
    twice[1].trace_codes[0] = twice[0].trace_codes[0]
    answer = await run.pharmacy_b.ask(await second.dispense_request(lots=twice))
    run.checks.that(
        answer.code in ("TRACE_DUPLICATE", "TRACE_INVALID"),
        point="sut",
        en="a code that stands twice in one sale is refused",
        zh="同一销售中重复的追溯码应被拒绝",
        actual=answer.code,
    )
    await second.dispense()
    await run.chain(second.rx_no, events={"dispense.outbound": 1})


@case(
    id="DSP-013",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="重复冲正、出库后冲正",
    title_en="Reversing twice, and after the goods are out",
    level="MUST",
    verifies=(
        "ERR-SETL_TERMINAL",
        "ERR-SETL_NOT_REVERSIBLE",
        "INV-I20",
        "LC-3.5-settlement.reversed",
        "LC-3.5-settlement.undone",
    ),
    profiles=PROFILES,
)
async def reversals(run: HubRun) -> None:
    """I20: a reversal happens once and gives back exactly what was taken; goods that are out come back first."""
    journey = await run.journey().to("quoted")
    settle = await journey.settle_request()
    settled = run.must_accept(await run.pharmacy.ask(settle))
    reverse = await run.pharmacy.drafts.reverse_settlement(
        original_request_id=settle.request_id, person_no=journey.person_no
    )
    first = await run.pharmacy.ask(reverse)
    reply = run.must_accept(first)
    run.checks.equal(
        (reply.target, reply.settlement_id),
        (dispensing_pb2.REVERSAL_TARGET_SETTLEMENT, settled.settlement_id),
        point="sut",
        en="the settlement is what was reversed",
        zh="被冲正的应为该结算",
    )
    run.same_reply(first, await run.pharmacy.ask(reverse))
    again = await run.pharmacy.drafts.reverse_settlement(
        original_request_id=settle.request_id, person_no=journey.person_no
    )
    run.refused(await run.pharmacy.ask(again), "SETL_TERMINAL")
    await run.stands(journey.rx_no, "EFFECTIVE", "UNUSED")
    await run.chain(journey.rx_no, events={"settlement.committed": 1, "settlement.reversed": 1, "order.released": 1})
    # The account is whole again: the next settlement of the same goods leaves the same balance.
    await journey.authorize()
    await journey.hold()
    await journey.review()
    await journey.quote_sale()
    run.checks.equal(
        known_amounts(journey.quote.amounts),
        _amounts_of(settle),
        point="sut",
        en="the next quote is the same, fen by fen",
        zh="再次预结算应分毫不差",
    )
    second = await journey.settle_request()
    again_settled = run.must_accept(await run.pharmacy.ask(second))
    run.checks.equal(
        again_settled.account_balance_fen,
        settled.account_balance_fen,
        point="sut",
        en="the account was restored exactly",
        zh="账户应完全恢复",
    )
    journey.settlement_id = again_settled.settlement_id
    await journey.dispense()
    out = await run.pharmacy.drafts.reverse_settlement(
        original_request_id=second.request_id, person_no=journey.person_no
    )
    run.refused(await run.pharmacy.ask(out), "SETL_NOT_REVERSIBLE")
    undo = await run.pharmacy.drafts.undo_settlement(
        rx_no=journey.rx_no, settlement_id=journey.settlement_id, reason="患者取消"
    )
    answer = await run.pharmacy.ask(undo)
    run.checks.that(
        answer.code in ("SETL_NOT_REVERSIBLE", "SETL_TERMINAL"),
        point="sut",
        en="an undo after the goods are out is refused",
        zh="出库后撤销应被拒绝",
        actual=answer.code,
    )
    await run.chain(journey.rx_no, events={"settlement.reversed": 1, "dispense.outbound": 1})


def _amounts_of(settle: Any) -> signed_pb2.ClaimAmounts:
    return known_amounts(signed_pb2.SettleStatement.FromString(settle.statement.payload).amounts)


@case(
    id="DSP-015",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="上送金额与中心计算相差一分",
    title_en="Amounts that are one fen off",
    level="MUST",
    verifies=("ERR-SETL_AMOUNT", "INV-I6", "ERR-SETL_QUOTE_STALE"),
    profiles=PROFILES,
)
async def amounts_one_fen_off(run: HubRun) -> None:
    """T-14, I6: the amounts that are sent are compared with the hub's own, each of them, and never trusted."""
    journey = await run.journey().to("quoted")
    right = known_amounts(journey.quote.amounts)
    run.checks.equal(
        right.total_fen,
        right.fund_fen + right.institution_fen + right.account_fen + right.family_fen + right.cash_fen,
        point="sut",
        en="the quote's parts make its total",
        zh="预结算各项之和应等于总额",
    )
    reference = await journey.reference(PURCHASE)
    position = await run.entries()
    for field in right.DESCRIPTOR.fields:
        for change in (1, -1):
            wrong = known_amounts(right)
            setattr(wrong, field.name, getattr(wrong, field.name) + change)
            settle = await journey.settle_request(amounts=wrong, voucher_ref=reference)
            run.refused(await run.pharmacy.ask(settle), "SETL_AMOUNT", where=f"{field.name} {change:+d}")
    unknown = await journey.settle_request(quote_id="Q" + journey.quote.quote_id[1:], voucher_ref=reference)
    run.refused(await run.pharmacy.ask(unknown), "SETL_QUOTE_STALE", where="a quote of nobody")
    await run.no_effect(position)
    run.accepted(await run.pharmacy.ask(await journey.settle_request(voucher_ref=reference)))
    await run.chain(journey.rx_no, events={"settlement.committed": 1})
