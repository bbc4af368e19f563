"""Settlement: the golden cases, the identities, the rounding, and what an undo gives back."""

from __future__ import annotations

import dataclasses
import json
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erxhub.core.claim_arithmetic import (
    AccountScope,
    Balances,
    Band,
    Benefit,
    ChargeLine,
    Claim,
    Fund,
    IdentityBroken,
    PriceMode,
    Supplement,
    compute,
    format_yuan,
    line_amount_fen,
    parse_fen,
    parse_price_e6,
    parse_quantity_e4,
    parse_ratio,
    round_half_up,
    self_paid_by_approval,
    split_line,
    take_back,
)

# The same examples on every run: a failure must not depend on luck or on an earlier run.
REPEATABLE = settings(derandomize=True, database=None, deadline=None)
GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "settlement_golden.json").read_text("utf-8"))
CASES: dict[str, dict[str, Any]] = {case["id"]: case for case in GOLDEN["cases"]}

FIELDS = {
    "medfee_sumamt": "total_fen",
    "fulamt_ownpay_amt": "own_pay_fen",
    "overlmt_selfpay": "over_limit_fen",
    "preselfpay_amt": "prior_self_pay_fen",
    "inscp_scp_amt": "in_scope_fen",
    "act_pay_dedc": "deductible_fen",
    "hifp_before_cap": "pooled_before_cap_fen",
    "hifp_pay": "pooled_fund_fen",
    "fund_pay_sumamt": "fund_total_fen",
    "hosp_part_amt": "hospital_part_fen",
    "psn_part_amt": "personal_part_fen",
    "acct_pay": "account_fen",
    "acct_mulaid_pay": "family_fen",
    "psn_cash_pay": "cash_fen",
}
AFTER = {
    "cum_inscope": "cum_inscope_fen",
    "deductible_used": "deductible_used_fen",
    "acct_balance": "account_fen",
    "family_balance": "family_fen",
}


def charge_lines(raw: list[dict[str, Any]] | str) -> list[ChargeLine]:
    return [
        ChargeLine(
            charge_level=line["chrgitm_lv"],
            quantity_e4=parse_quantity_e4(line["qty"]),
            price_e6=parse_price_e6(line["price"]),
            prior_ratio=parse_ratio(line["prior_ratio"]),
            payment_standard_e6=parse_price_e6(line["pay_std"]) if line["pay_std"] else None,
            price_mode=PriceMode(line.get("price_mode", "REGULATED")),
        )
        for line in (GOLDEN["reference_lines"] if raw == "REF" else raw)
        if isinstance(line, dict)
    ]


def golden_benefit(case: dict[str, Any]) -> Benefit:
    given_ = case["input"]
    return Benefit(
        bands=tuple(
            Band(parse_fen(band["upto"]) if band["upto"] else None, parse_ratio(band["ratio"]))
            for band in given_["bands"]
        ),
        deductible_fen=parse_fen(given_["deductible"]),
        cum_inscope_fen=parse_fen(given_["cum_inscope_before"]),
        fund_cap_fen=parse_fen(given_["fund_cap"]) if given_["fund_cap"] else None,
        cum_fund_fen=parse_fen(given_["cum_fund_before"]),
    )


def golden_claim(case_id: str) -> Claim:
    case = CASES[case_id]
    return compute(
        charge_lines(case["lines"]),
        golden_benefit(case),
        parse_fen(case["input"]["acct_balance"]),
        parse_fen(case["input"]["family_balance"]),
    )


# --- Golden cases ---


def test_all_golden_cases_are_here() -> None:
    assert list(CASES) == [*(f"G{n}" for n in range(1, 8)), *(f"E{n}" for n in range(1, 6))]


@pytest.mark.parametrize("case_id", CASES)
def test_golden_case_gives_the_published_amounts(case_id: str) -> None:
    expect = CASES[case_id]["expect"]
    claim = golden_claim(case_id)

    assert {name: format_yuan(getattr(claim, field)) for name, field in FIELDS.items()} == {
        name: expect[name] for name in FIELDS
    }
    assert [(segment.amount_fen, segment.ratio) for segment in claim.segments] == [
        (parse_fen(segment["amount"]), parse_ratio(segment["ratio"])) for segment in expect["band_segments"]
    ]
    assert {name: format_yuan(getattr(claim.after, field)) for name, field in AFTER.items()} == expect["after"]


@pytest.mark.parametrize("case_id", [case_id for case_id, case in CASES.items() if "expect_lines" in case])
def test_golden_case_splits_its_lines_as_published(case_id: str) -> None:
    parts = ("amount", "own_pay", "over_limit", "prior_self_pay", "in_scope")
    assert [
        {part: format_yuan(getattr(line, f"{part}_fen")) for part in parts} for line in golden_claim(case_id).lines
    ] == CASES[case_id]["expect_lines"]


def test_reference_lines_split_as_published() -> None:
    assert [dataclasses.astuple(line) for line in golden_claim("G1").lines] == [
        (9100, 0, 0, 0, 9100),
        (32000, 0, 2000, 3000, 27000),
        (6000, 6000, 0, 0, 0),
    ]


def test_a_ceiling_on_fund_payments_is_another_parameter_than_a_ceiling_on_spending() -> None:
    case = CASES["G5"]
    as_spending = golden_benefit(case)
    as_payments = dataclasses.replace(
        as_spending,
        bands=(as_spending.bands[0], Band(None, as_spending.bands[1].ratio)),
        fund_cap_fen=parse_fen("10000"),
    )
    assert compute(charge_lines("REF"), as_spending, 0).pooled_fund_fen == 5500
    claim = compute(charge_lines("REF"), as_payments, 0)
    assert (claim.pooled_fund_fen, claim.personal_part_fen) == (19855, 27245)


# --- The parts of the algorithm ---


def regulated(level: str, amount: str, **more: Any) -> ChargeLine:
    return ChargeLine(level, parse_quantity_e4("1"), parse_price_e6(amount), **more)


def test_a_class_a_line_has_no_prior_share_whatever_ratio_is_given() -> None:
    assert split_line(regulated("01", "100", prior_ratio=Fraction(1, 10))).in_scope_fen == 10000


def test_a_reimbursable_class_c_line_is_treated_like_class_b() -> None:
    assert split_line(regulated("04", "100", prior_ratio=Fraction(3, 10))).in_scope_fen == 7000


@pytest.mark.parametrize(
    "line",
    [
        regulated("03", "100"),
        regulated("01", "100", price_mode=PriceMode.MARKET),
        regulated("01", "100", self_paid=True),
    ],
)
def test_class_c_market_priced_and_self_paid_lines_are_paid_by_the_person(line: ChargeLine) -> None:
    claim = compute([line], Benefit((Band(None, Fraction(1)),)), 0)
    assert (claim.own_pay_fen, claim.fund_total_fen, claim.cash_fen) == (10000, 0, 10000)


def test_a_payment_standard_above_the_price_changes_nothing() -> None:
    line = regulated("02", "100", payment_standard_e6=parse_price_e6("120"), prior_ratio=Fraction(1, 10))
    assert dataclasses.astuple(split_line(line)) == (10000, 0, 0, 1000, 9000)


@pytest.mark.parametrize(
    ("restricted", "flag", "self_paid"),
    [
        (True, "0", True),
        (True, "1", False),
        (True, "2", True),
        (False, "0", False),
        (False, "1", False),
        (False, "2", True),
    ],
)
def test_hospital_approval_decides_about_self_payment(restricted: bool, flag: str, self_paid: bool) -> None:
    assert self_paid_by_approval(restricted, flag) is self_paid


def test_an_unknown_approval_flag_is_no_decision() -> None:
    with pytest.raises(ValueError, match="approval"):
        self_paid_by_approval(True, "3")


def test_a_band_that_ends_below_the_deductible_pays_nothing_and_moves_nothing() -> None:
    benefit = Benefit(
        (Band(10000, Fraction(9, 10)), Band(None, Fraction(1, 2))),
        deductible_fen=50000,
        cum_inscope_fen=40000,
    )
    claim = compute([regulated("01", "300")], benefit, 0)
    assert (claim.deductible_fen, claim.pooled_fund_fen) == (10000, 10000)


def test_no_bands_means_that_the_account_pays_everything() -> None:
    claim = compute([regulated("01", "100")], Benefit(()), 20000)
    assert (claim.fund_total_fen, claim.account_fen, claim.cash_fen) == (0, 10000, 0)


def test_a_used_up_fund_cap_pays_nothing() -> None:
    benefit = Benefit((Band(None, Fraction(1, 2)),), fund_cap_fen=1000, cum_fund_fen=2000)
    claim = compute([regulated("01", "100")], benefit, 0)
    assert (claim.pooled_before_cap_fen, claim.pooled_fund_fen) == (5000, 0)


def test_further_funds_work_on_what_the_earlier_ones_left() -> None:
    benefit = Benefit(
        (Band(None, Fraction(1, 2)),),
        supplements=(
            Supplement(Fund.LARGE_SUM, Fraction(1, 2), threshold_left_fen=1000),
            Supplement(Fund.CIVIL_SERVANT, Fraction(1, 2), cap_left_fen=800),
            Supplement(Fund.ASSISTANCE, Fraction(1)),
        ),
    )
    claim = compute([regulated("01", "100"), regulated("03", "7")], benefit, 0)
    assert (claim.pooled_fund_fen, claim.large_sum_fen, claim.civil_servant_fen, claim.assistance_fen) == (
        5000,
        2000,
        800,
        2200,
    )
    assert (claim.fund_total_fen, claim.cash_fen) == (10000, 700)


def test_accounts_bound_to_the_in_scope_part_leave_the_rest_to_cash() -> None:
    benefit = Benefit((Band(None, Fraction(1, 2)),), account_scope=AccountScope.IN_SCOPE_PERSONAL)
    claim = compute([regulated("01", "100"), regulated("03", "7")], benefit, 3000, 9000)
    assert (claim.account_fen, claim.family_fen, claim.cash_fen) == (3000, 2000, 700)


def test_a_hospital_part_lowers_the_personal_part() -> None:
    benefit = Benefit((Band(None, Fraction(7, 10)),))
    claim = compute([regulated("01", "100")], benefit, 0, hospital_part_fen=1000)
    assert (claim.fund_total_fen, claim.hospital_part_fen, claim.personal_part_fen) == (7000, 1000, 2000)
    with pytest.raises(ValueError, match="hospital part"):
        compute([regulated("01", "100")], benefit, 0, hospital_part_fen=3001)


@pytest.mark.parametrize(
    "build",
    [
        lambda: ChargeLine("05", 1, 1),
        lambda: ChargeLine("1", 1, 1),
        lambda: ChargeLine("01", -1, 1),
        lambda: ChargeLine("01", 1, -1),
        lambda: ChargeLine("02", 1, 1, payment_standard_e6=-1),
        lambda: ChargeLine("02", 1, 1, prior_ratio=Fraction(11, 10)),
        lambda: Benefit((), deductible_fen=-1),
        lambda: Benefit((Band(None, Fraction(3, 2)),)),
        lambda: Benefit((Band(None, Fraction(1)), Band(5, Fraction(1)))),
        lambda: Benefit((Band(5, Fraction(1)), Band(5, Fraction(1)))),
        lambda: Benefit((Band(0, Fraction(1)),)),
        lambda: Benefit(
            (),
            supplements=(Supplement(Fund.ASSISTANCE, Fraction(1)), Supplement(Fund.LARGE_SUM, Fraction(1))),
        ),
        lambda: Supplement(Fund.OTHER, Fraction(1), cap_left_fen=-1),
        lambda: compute([], Benefit(()), 0),
        lambda: compute([ChargeLine("01", 1, 1)], Benefit(()), -1),
        lambda: round_half_up(-1, 2),
    ],
)
def test_numbers_without_a_meaning_are_not_taken(build: Any) -> None:
    with pytest.raises(ValueError):
        build()


@pytest.mark.parametrize(
    ("change", "identity"),
    [
        ({"own_pay_fen": 6001}, "T-04"),
        ({"personal_part_fen": 23611}, "T-05"),
        ({"cash_fen": 18611}, "T-06"),
        ({"civil_servant_fen": 1}, "T-07"),
        ({"own_pay_fen": 6001, "over_limit_fen": 1999}, "T-08"),
        ({"account_fen": 24611, "cash_fen": -1001}, "negative"),
        (
            {"pooled_fund_fen": 36101, "fund_total_fen": 36101, "personal_part_fen": 10999, "cash_fen": 5999},
            "T-16",
        ),
    ],
)
def test_a_claim_that_does_not_add_up_cannot_exist(change: dict[str, Any], identity: str) -> None:
    with pytest.raises(IdentityBroken, match=identity):
        dataclasses.replace(golden_claim("G1"), **change)


def test_a_line_that_does_not_add_up_cannot_exist() -> None:
    with pytest.raises(IdentityBroken, match="T-04"):
        dataclasses.replace(golden_claim("G1").lines[0], in_scope_fen=1)


# --- Undo ---


def test_undo_of_g6_gives_back_totals_and_both_accounts_exactly() -> None:
    claim = golden_claim("G6")
    restored = take_back(claim, claim.after)
    assert restored == claim.before
    assert restored == Balances(
        cum_inscope_fen=30000, deductible_used_fen=30000, cum_fund_fen=0, account_fen=20000, family_fen=10000
    )


def test_undo_leaves_the_effect_of_a_later_claim_alone() -> None:
    first = golden_claim("G2")
    second = compute(
        charge_lines("REF"),
        dataclasses.replace(golden_benefit(CASES["G2"]), cum_inscope_fen=first.after.cum_inscope_fen),
        first.after.account_fen,
        first.after.family_fen,
    )
    restored = take_back(first, second.after)
    assert restored.cum_inscope_fen == 500000 + second.in_scope_fen
    assert restored.account_fen == 5000 - second.account_fen
    assert restored.family_fen == 50000 - second.family_fen


# --- Text ---


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_quantity_e4, "0.0001", 1),
        (parse_quantity_e4, "999999999999.9999", 10**16 - 1),
        (parse_price_e6, "0.335", 335000),
        (parse_price_e6, "9999999999.999999", 10**16 - 1),
        (parse_fen, "12.3", 1230),
        (parse_fen, "0", 0),
    ],
)
def test_decimal_text_becomes_an_integer_of_its_smallest_unit(parse: Any, text: str, value: int) -> None:
    assert parse(text) == value


@pytest.mark.parametrize("parse", [parse_quantity_e4, parse_price_e6, parse_fen, parse_ratio])
@pytest.mark.parametrize(
    "text",
    [
        "", " ", "NaN", "inf", "-1", "+1", "1e3", "01", ".5", "1.", "1,5", "1_0", "1.0 ", "1\n", "1.1234567",
        "１", "٣", "1" * 30,
    ],
)  # fmt: skip
def test_other_notations_of_numbers_are_not_taken(parse: Any, text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)


def test_a_ratio_above_one_is_not_taken() -> None:
    assert parse_ratio("1.000000") == 1
    with pytest.raises(ValueError):
        parse_ratio("1.000001")


@REPEATABLE
@given(st.integers(0, 10**16 - 1))
def test_amounts_survive_the_way_through_text(amount_fen: int) -> None:
    assert parse_fen(format_yuan(amount_fen)) == amount_fen


def test_a_negative_amount_keeps_its_sign_in_text() -> None:
    assert format_yuan(-5) == "-0.05"


# --- Properties ---

RATIOS = st.integers(0, 100).map(lambda percent: Fraction(percent, 100))
AMOUNTS = st.integers(0, 2_000_000)
LINES = st.builds(
    ChargeLine,
    charge_level=st.sampled_from(["01", "02", "03", "04"]),
    quantity_e4=st.integers(1, 500_0000),
    price_e6=st.integers(0, 2_000_000_000),
    prior_ratio=RATIOS,
    payment_standard_e6=st.none() | st.integers(0, 2_000_000_000),
    price_mode=st.sampled_from(PriceMode),
    self_paid=st.booleans(),
)


@st.composite
def benefits(draw: st.DrawFn, *, supplemented: bool = True) -> Benefit:
    bounds: list[int | None] = [*sorted(draw(st.sets(st.integers(1, 2_000_000), max_size=4)))]
    if draw(st.booleans()):
        bounds.append(None)
    funds = draw(st.sets(st.sampled_from(Fund))) if supplemented else set()
    return Benefit(
        bands=tuple(Band(bound, draw(RATIOS)) for bound in bounds),
        deductible_fen=draw(AMOUNTS),
        cum_inscope_fen=draw(AMOUNTS),
        fund_cap_fen=draw(st.none() | AMOUNTS),
        cum_fund_fen=draw(AMOUNTS),
        supplements=tuple(
            Supplement(fund, draw(RATIOS), draw(AMOUNTS), draw(st.none() | AMOUNTS)) for fund in Fund if fund in funds
        ),
        account_scope=draw(st.sampled_from(AccountScope)),
    )


@REPEATABLE
@given(st.lists(LINES, min_size=1, max_size=5), benefits(), AMOUNTS, AMOUNTS)
def test_the_money_identities_hold_for_every_claim(
    lines: list[ChargeLine], benefit: Benefit, account: int, family: int
) -> None:
    claim = compute(lines, benefit, account, family)

    assert claim.total_fen == (claim.own_pay_fen + claim.over_limit_fen + claim.prior_self_pay_fen + claim.in_scope_fen)
    assert claim.total_fen == claim.fund_total_fen + claim.hospital_part_fen + claim.personal_part_fen
    assert claim.personal_part_fen == claim.account_fen + claim.family_fen + claim.cash_fen
    assert claim.total_fen == sum(line_amount_fen(line.quantity_e4, line.price_e6) for line in lines)
    assert claim.account_fen <= account
    assert claim.family_fen <= family
    # Own account first, then family, then cash.
    payable = claim.personal_part_fen
    if benefit.account_scope is AccountScope.IN_SCOPE_PERSONAL:
        payable = claim.in_scope_fen - claim.fund_total_fen
    assert claim.account_fen == min(account, payable)
    assert claim.family_fen == min(family, payable - claim.account_fen)
    assert take_back(claim, claim.after) == claim.before
    # What is neither deductible nor in a band lies above the last bound.
    assert claim.deductible_fen + sum(segment.amount_fen for segment in claim.segments) <= claim.in_scope_fen


@REPEATABLE
@given(st.integers(0, 10**24), st.integers(1, 10**12))
def test_rounding_is_half_up(numerator: int, denominator: int) -> None:
    rounded = round_half_up(numerator, denominator)
    assert rounded - Fraction(1, 2) <= Fraction(numerator, denominator) < rounded + Fraction(1, 2)


@REPEATABLE
@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_line_amounts_agree_with_decimal_arithmetic(quantity_e4: int, price_e6: int) -> None:
    yuan = Decimal(quantity_e4).scaleb(-4) * Decimal(price_e6).scaleb(-6)
    assert format_yuan(line_amount_fen(quantity_e4, price_e6)) == str(yuan.quantize(Decimal("0.01"), ROUND_HALF_UP))


@REPEATABLE
@given(
    st.lists(LINES, min_size=2, max_size=6),
    benefits(supplemented=False),
    st.sets(st.integers(1, 5), min_size=1, max_size=3),
)
def test_splitting_a_claim_costs_at_most_one_fen_a_claim(
    lines: list[ChargeLine], benefit: Benefit, cuts: set[int]
) -> None:
    whole = compute(lines, benefit, 0)
    places = sorted({0, len(lines)} | {cut for cut in cuts if cut < len(lines)})

    parts: list[Claim] = []
    for start, end in pairwise(places):
        parts.append(compute(lines[start:end], benefit, 0))
        benefit = dataclasses.replace(
            benefit,
            cum_inscope_fen=parts[-1].after.cum_inscope_fen,
            cum_fund_fen=parts[-1].after.cum_fund_fen,
        )

    assert abs(sum(part.pooled_fund_fen for part in parts) - whole.pooled_fund_fen) <= len(parts)
    assert sum(part.deductible_fen for part in parts) == whole.deductible_fen
    assert sum(part.total_fen for part in parts) == whole.total_fen


def test_g4_split_in_two_claims_gives_the_same_sum_within_a_fen_a_claim() -> None:
    lines = charge_lines("REF")
    benefit = golden_benefit(CASES["G4"])
    first = compute(lines[:1], benefit, 0)
    second = compute(lines[1:], dataclasses.replace(benefit, cum_inscope_fen=first.after.cum_inscope_fen), 0)
    assert abs(first.fund_total_fen + second.fund_total_fen - golden_claim("G4").fund_total_fen) <= 2


# --- Real-coded scenarios --------------------------------------------------------------------------------------


def test_the_lines_of_the_real_coded_scenarios_split_as_expected(shared: Path) -> None:
    scenarios = json.loads((shared / "data" / "scenarios.json").read_text("utf-8"))["scenarios"]
    assert scenarios
    for scenario in scenarios:
        for line in scenario["lines"]:
            inputs = line["settlement_inputs"]
            quantity_e4 = parse_quantity_e4(str(line["quantity"]))
            amounts = split_line(
                ChargeLine(
                    charge_level=inputs["chrgitm_lv"],
                    quantity_e4=quantity_e4,
                    price_e6=parse_price_e6(line["price"]),
                    prior_ratio=parse_ratio(inputs["prior_pay_ratio"]),
                    payment_standard_e6=parse_price_e6(inputs["payment_std"]) if inputs["payment_std"] else None,
                )
            )
            expected = [line["amount"]] + [
                inputs[name] for name in ("fulamt_ownpay_amt", "overlmt_selfpay", "preselfpay_amt", "inscp_scp_amt")
            ]
            assert [format_yuan(amount) for amount in dataclasses.astuple(amounts)] == expected, scenario["id"]
