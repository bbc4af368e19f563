"""The money of one claim: from charge lines and a person's benefit to fund, account, family and cash shares.

Owns the settlement algorithm, its rounding and its identities (settlement, steps 1–6, rules T-04…T-16). It
never knows a region, a date or a parameter value: those arrive in ``Benefit``. It never looks at whether a
sale happened online or at a counter (T-13), and never trusts an amount that a client computed (T-14).

All money is integer fen, prices are integer millionths of a yuan, quantities integer ten-thousandths of a
unit, and ratios exact fractions. Binary floating point appears nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from fractions import Fraction
from functools import cache
from itertools import pairwise
from typing import Final, NamedTuple

# quantity × 10^4 times price × 10^6 is yuan × 10^10, and a yuan is 100 fen.
_LINE_SCALE: Final = 10**8
_CHARGE_LEVELS: Final = ("01", "02", "03", "04")


class IdentityBroken(ArithmeticError):
    """A claim does not add up. Always a bug in the code that built it, never the fault of a request."""


class PriceMode(Enum):
    """How the price of a line comes about. MARKET lines earn nothing from any fund."""

    REGULATED = "REGULATED"
    MARKET = "MARKET"


class AccountScope(Enum):
    """What the personal and the family account may pay (T-20).

    ALL_PERSONAL is the whole personal part. IN_SCOPE_PERSONAL is only what the funds left of the in-scope
    amount.
    """

    ALL_PERSONAL = "ALL_PERSONAL"
    IN_SCOPE_PERSONAL = "IN_SCOPE_PERSONAL"


class Fund(StrEnum):
    """The funds that may follow the pooled one, in the order in which they pay (step 5).

    The step does not place the enterprise supplement; here it follows the civil-servant one.
    """

    CATASTROPHIC = "CATASTROPHIC"
    LARGE_SUM = "LARGE_SUM"
    CIVIL_SERVANT = "CIVIL_SERVANT"
    ENTERPRISE = "ENTERPRISE"
    ASSISTANCE = "ASSISTANCE"
    OTHER = "OTHER"


FUND_ORDER: Final = tuple(Fund)


# --- Numbers as text ---


@cache
def _plain(whole_digits: int, decimals: int) -> re.Pattern[str]:
    return re.compile(rf"(0|[1-9][0-9]{{0,{whole_digits - 1}}})(?:\.([0-9]{{1,{decimals}}}))?")


def _scaled(text: str, whole_digits: int, decimals: int) -> int:
    """Decimal text as an integer of its smallest unit. Plain ASCII digits only: no sign, exponent, space."""
    found = _plain(whole_digits, decimals).fullmatch(text)
    if found is None:
        raise ValueError(f"not a plain decimal of at most {whole_digits} digits and {decimals} decimals")
    scale: int = 10**decimals
    return int(found[1]) * scale + int((found[2] or "").ljust(decimals, "0"))


def parse_quantity_e4(text: str) -> int:
    """Quantity text ("1.5") → ten-thousandths of a unit (15000). At most 12 digits and 4 decimals (K-19)."""
    return _scaled(text, 12, 4)


def parse_price_e6(text: str) -> int:
    """Price text in yuan ("45.5") → millionths of a yuan (45500000). At most 10 digits, 6 decimals (K-19)."""
    return _scaled(text, 10, 6)


def parse_fen(text: str) -> int:
    """Amount text in yuan ("12.3") → fen (1230). At most 14 digits and 2 decimals (K-19)."""
    return _scaled(text, 14, 2)


def parse_ratio(text: str) -> Fraction:
    """Ratio text ("0.70") → exact fraction between 0 and 1, at most 6 decimals."""
    ratio = Fraction(_scaled(text, 1, 6), 10**6)
    if ratio > 1:
        raise ValueError("a ratio lies between 0 and 1")
    return ratio


def format_yuan(amount_fen: int) -> str:
    """Fen → yuan with exactly two decimals: 1230 → "12.30", -5 → "-0.05"."""
    sign = "-" if amount_fen < 0 else ""
    return f"{sign}{abs(amount_fen) // 100}.{abs(amount_fen) % 100:02d}"


# --- Rounding ---


def round_half_up(numerator: int, denominator: int = 1) -> int:
    """The nearest integer to numerator ÷ denominator; an exact half goes up (T-09).

    Only for values that are not negative, since "up" would be ambiguous below zero; raises ``ValueError``
    there.
    """
    if numerator < 0 or denominator <= 0:
        raise ValueError("rounding is defined for values of zero and above")
    return (2 * numerator + denominator) // (2 * denominator)


def share_fen(ratio: Fraction, amount_fen: int) -> int:
    """ratio × amount, rounded half up to the fen."""
    return round_half_up(ratio.numerator * amount_fen, ratio.denominator)


def line_amount_fen(quantity_e4: int, price_e6: int) -> int:
    """quantity × price, rounded half up to the fen. Also checks the amounts on a prescription (X-13)."""
    return round_half_up(quantity_e4 * price_e6, _LINE_SCALE)


def self_paid_by_approval(restricted: bool, approval_flag: str) -> bool:
    """Whether the hospital's approval flag (hosp_appr_flag 0, 1 or 2) makes a line self-paid (P-22).

    ``restricted`` is the catalogue's flag. A restricted drug needs an approval (1); any drug loses its
    cover by a refused one (2). Raises ``ValueError`` for another flag.
    """
    if approval_flag not in ("0", "1", "2"):
        raise ValueError("the approval flag is 0, 1 or 2")
    return approval_flag == "2" or (restricted and approval_flag == "0")


# --- Input ---


@dataclass(frozen=True, slots=True)
class ChargeLine:
    """One line as it is charged.

    ``charge_level`` is chrgitm_lv in two digits: 01 甲, 02 乙, 03 丙, 04 丙 with cover (treated as 02).
    ``prior_ratio`` is the share that the patient pays before any fund (0 for level 01, whatever is given).
    ``payment_standard_e6`` is the payment standard or ceiling per unit. ``self_paid`` is the outcome of
    ``self_paid_by_approval`` or of the patient's own wish.
    Raises ``ValueError`` for negative numbers, another level or a ratio outside 0…1.
    """

    charge_level: str
    quantity_e4: int
    price_e6: int
    prior_ratio: Fraction = Fraction(0)
    payment_standard_e6: int | None = None
    price_mode: PriceMode = PriceMode.REGULATED
    self_paid: bool = False

    def __post_init__(self) -> None:
        if self.charge_level not in _CHARGE_LEVELS:
            raise ValueError("charge_level is one of 01, 02, 03, 04")
        if self.quantity_e4 < 0 or self.price_e6 < 0 or (self.payment_standard_e6 or 0) < 0:
            raise ValueError("quantity, price and payment standard are not negative")
        if not 0 <= self.prior_ratio <= 1:
            raise ValueError("prior_ratio lies between 0 and 1")


@dataclass(frozen=True, slots=True)
class Band:
    """A stretch of cumulative in-scope spending and the share that the pooled fund pays in it.

    ``upto_fen`` is its upper bound (inclusive), or None for the open last band.
    Raises ``ValueError`` for a ratio outside 0…1.
    """

    upto_fen: int | None
    ratio: Fraction

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise ValueError("a band's ratio lies between 0 and 1")


@dataclass(frozen=True, slots=True)
class Supplement:
    """A further fund (step 5): ``ratio`` of what the earlier funds left of the in-scope amount.

    ``threshold_left_fen`` is what the person must still bear before this fund pays; ``cap_left_fen`` is
    what it may still pay this year, None for no limit.
    """

    fund: Fund
    ratio: Fraction
    threshold_left_fen: int = 0
    cap_left_fen: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1 or self.threshold_left_fen < 0 or (self.cap_left_fen or 0) < 0:
            raise ValueError("ratio lies between 0 and 1, threshold and cap are not negative")


@dataclass(frozen=True, slots=True)
class Benefit:
    """What one person is entitled to, and what the benefit year has used so far.

    ``deductible_fen`` and the bounds of ``bands`` lie on the axis of cumulative in-scope spending;
    ``cum_inscope_fen`` is the person's position on it. ``fund_cap_fen`` limits the *payments* of the pooled
    fund in the year, of which ``cum_fund_fen`` were made: a ceiling of the other kind is the last band's
    bound (T-10).
    Bands ascend strictly, only the last may be open, and none at all means that the pooled fund pays
    nothing (a sale from the personal account only).
    Raises ``ValueError`` when that is not so or a number is negative.
    """

    bands: tuple[Band, ...]
    deductible_fen: int = 0
    cum_inscope_fen: int = 0
    fund_cap_fen: int | None = None
    cum_fund_fen: int = 0
    supplements: tuple[Supplement, ...] = ()
    account_scope: AccountScope = AccountScope.ALL_PERSONAL

    def __post_init__(self) -> None:
        if min(self.deductible_fen, self.cum_inscope_fen, self.cum_fund_fen, self.fund_cap_fen or 0) < 0:
            raise ValueError("deductible, totals and cap are not negative")
        bounds = [band.upto_fen for band in self.bands]
        closed = [bound for bound in bounds if bound is not None]
        if None in bounds[:-1] or any(low >= high for low, high in pairwise([0, *closed])):
            raise ValueError("bands ascend, and only the last one may be open")
        places = [FUND_ORDER.index(supplement.fund) for supplement in self.supplements]
        if places != sorted(set(places)):
            raise ValueError("further funds appear once each, in their order of payment")


# --- Output ---


@dataclass(frozen=True, slots=True)
class LineAmounts:
    """What became of one line, in fen. The four parts add up to ``amount_fen`` (T-04 per line)."""

    amount_fen: int
    own_pay_fen: int
    over_limit_fen: int
    prior_self_pay_fen: int
    in_scope_fen: int

    def __post_init__(self) -> None:
        parts = (self.own_pay_fen, self.over_limit_fen, self.prior_self_pay_fen, self.in_scope_fen)
        if min(parts) < 0 or sum(parts) != self.amount_fen:
            raise IdentityBroken("T-04: the parts of a line do not add up to its amount")


@dataclass(frozen=True, slots=True)
class BandSegment:
    """The part of a claim that fell into one band. Empty parts are left out."""

    amount_fen: int
    ratio: Fraction


@dataclass(frozen=True, slots=True)
class Balances:
    """The numbers of one person that a claim moves, in fen.

    ``cum_inscope_fen`` and ``cum_fund_fen`` are totals of the benefit year; ``deductible_used_fen`` is the
    part of the deductible already borne.
    """

    cum_inscope_fen: int
    deductible_used_fen: int
    cum_fund_fen: int
    account_fen: int
    family_fen: int


@dataclass(frozen=True, slots=True)
class Claim:
    """The outcome of a claim, in fen; the national field name stands beside each amount.

    Building one checks the identities T-04…T-08; an instance that does not add up cannot exist
    (``IdentityBroken``).
    """

    lines: tuple[LineAmounts, ...]
    total_fen: int  # medfee_sumamt
    own_pay_fen: int  # fulamt_ownpay_amt
    over_limit_fen: int  # overlmt_selfpay
    prior_self_pay_fen: int  # preselfpay_amt
    in_scope_fen: int  # inscp_scp_amt
    deductible_fen: int  # act_pay_dedc, the part of the deductible that this claim used
    segments: tuple[BandSegment, ...]
    pooled_before_cap_fen: int
    pooled_fund_fen: int  # hifp_pay
    civil_servant_fen: int  # cvlserv_pay
    enterprise_fen: int  # hifes_pay
    catastrophic_fen: int  # hifmi_pay
    large_sum_fen: int  # hifob_pay
    assistance_fen: int  # maf_pay
    other_fund_fen: int  # oth_pay
    fund_total_fen: int  # fund_pay_sumamt
    hospital_part_fen: int  # hosp_part_amt
    personal_part_fen: int  # psn_part_amt
    account_fen: int  # acct_pay
    family_fen: int  # acct_mulaid_pay
    cash_fen: int  # psn_cash_pay
    before: Balances
    after: Balances

    def __post_init__(self) -> None:
        by_kind = (self.own_pay_fen, self.over_limit_fen, self.prior_self_pay_fen, self.in_scope_fen)
        funds = (
            self.pooled_fund_fen,
            self.civil_servant_fen,
            self.enterprise_fen,
            self.catastrophic_fen,
            self.large_sum_fen,
            self.assistance_fen,
            self.other_fund_fen,
        )
        by_payer = (self.fund_total_fen, self.hospital_part_fen, self.personal_part_fen)
        by_purse = (self.account_fen, self.family_fen, self.cash_fen)
        line_sums = (
            sum(line.own_pay_fen for line in self.lines),
            sum(line.over_limit_fen for line in self.lines),
            sum(line.prior_self_pay_fen for line in self.lines),
            sum(line.in_scope_fen for line in self.lines),
        )
        checks = {
            "T-04: the total is not the sum of its four kinds": sum(by_kind) == self.total_fen,
            "T-05: the total is not funds + hospital + person": sum(by_payer) == self.total_fen,
            "T-06: the personal part is not account + family + cash": sum(by_purse) == self.personal_part_fen,
            "T-07: the fund total is not the sum of the funds": sum(funds) == self.fund_total_fen,
            "T-08: a claim field is not the sum of its lines": line_sums == by_kind
            and sum(line.amount_fen for line in self.lines) == self.total_fen,
            "T-16: the funds pay more than the in-scope amount": self.fund_total_fen <= self.in_scope_fen,
            "an amount is negative": min(*by_kind, *funds, *by_payer, *by_purse) >= 0,
        }
        for finding, holds in checks.items():
            if not holds:
                raise IdentityBroken(finding)


# --- The algorithm ---


def split_line(line: ChargeLine) -> LineAmounts:
    """Step 1: what of a line is own pay, over the limit, prior self-pay and in scope."""
    amount = line_amount_fen(line.quantity_e4, line.price_e6)
    if line.charge_level == "03" or line.price_mode is PriceMode.MARKET or line.self_paid:
        return LineAmounts(amount, amount, 0, 0, 0)
    base = amount
    if line.payment_standard_e6 is not None:
        base = min(amount, line_amount_fen(line.quantity_e4, line.payment_standard_e6))
    prior = 0 if line.charge_level == "01" else share_fen(line.prior_ratio, base)
    return LineAmounts(amount, 0, amount - base, prior, base - prior)


def band_segments(benefit: Benefit, in_scope_fen: int) -> tuple[BandSegment, ...]:
    """Step 3: the stretches of the claim that lie above the deductible, each with the ratio of its band.

    A claim may cross the deductible, a band's end and the last bound at once (T-11); what lies above the last
    bound is in no segment.
    """
    claim_from, claim_to = benefit.cum_inscope_fen, benefit.cum_inscope_fen + in_scope_fen
    band_from = benefit.deductible_fen
    segments = []
    for band in benefit.bands:
        band_to = claim_to if band.upto_fen is None else band.upto_fen
        covered = min(claim_to, band_to) - max(claim_from, band_from)
        if covered > 0:
            segments.append(BandSegment(covered, band.ratio))
        # A bound below the deductible must not pull the next band under it.
        band_from = max(band_from, band_to)
    return tuple(segments)


def _further_funds(benefit: Benefit, left_fen: int) -> dict[Fund, int]:
    """Step 5: each fund works on what the earlier ones left of the in-scope amount."""
    paid: dict[Fund, int] = dict.fromkeys(FUND_ORDER, 0)
    for supplement in benefit.supplements:
        pays = share_fen(supplement.ratio, max(left_fen - supplement.threshold_left_fen, 0))
        if supplement.cap_left_fen is not None:
            pays = min(pays, supplement.cap_left_fen)
        paid[supplement.fund] = pays
        left_fen -= pays
    return paid


class FundShares(NamedTuple):
    """What the funds pay of an in-scope amount, in fen (steps 2 to 5)."""

    deductible_fen: int
    segments: tuple[BandSegment, ...]
    pooled_before_cap_fen: int
    pooled_fund_fen: int
    further: dict[Fund, int]
    fund_total_fen: int


def fund_shares(benefit: Benefit, in_scope_fen: int) -> FundShares:
    """Steps 2 to 5: they depend on the benefit and the in-scope amount alone."""
    deductible = min(in_scope_fen, max(benefit.deductible_fen - benefit.cum_inscope_fen, 0))
    segments = band_segments(benefit, in_scope_fen)
    pooled_exact = sum((segment.ratio * segment.amount_fen for segment in segments), start=Fraction(0))
    # Rounded once, after the sum over the bands (T-09).
    pooled_before_cap = round_half_up(pooled_exact.numerator, pooled_exact.denominator)
    pooled = pooled_before_cap
    if benefit.fund_cap_fen is not None:
        pooled = min(pooled, max(benefit.fund_cap_fen - benefit.cum_fund_fen, 0))
    further = _further_funds(benefit, in_scope_fen - pooled)
    return FundShares(deductible, segments, pooled_before_cap, pooled, further, pooled + sum(further.values()))


def compute(
    lines: Sequence[ChargeLine],
    benefit: Benefit,
    account_balance_fen: int,
    family_balance_fen: int = 0,
    hospital_part_fen: int = 0,
) -> Claim:
    """Compute a claim: steps 1 to 6 of the settlement algorithm.

    ``account_balance_fen`` and ``family_balance_fen`` are what the own and the family account may spend;
    own comes first, then family, then cash (T-15), and both touch only the personal part (T-16).
    ``hospital_part_fen`` is what the institution bears.
    Raises ``ValueError`` for a claim without lines, a negative balance, or a hospital part larger than what
    the funds leave.
    """
    if not lines:
        raise ValueError("a claim has at least one line")
    if min(account_balance_fen, family_balance_fen, hospital_part_fen) < 0:
        raise ValueError("balances and the hospital part are not negative")

    split = tuple(split_line(line) for line in lines)
    total = sum(line.amount_fen for line in split)
    in_scope = sum(line.in_scope_fen for line in split)

    deductible, segments, pooled_before_cap, pooled, further, fund_total = fund_shares(benefit, in_scope)

    personal = total - fund_total - hospital_part_fen
    if personal < 0:
        raise ValueError("the hospital part is larger than what the funds leave")
    for_accounts = personal
    if benefit.account_scope is AccountScope.IN_SCOPE_PERSONAL:
        for_accounts = min(personal, in_scope - fund_total)
    account = min(account_balance_fen, for_accounts)
    family = min(family_balance_fen, for_accounts - account)

    cum_after = benefit.cum_inscope_fen + in_scope
    return Claim(
        lines=split,
        total_fen=total,
        own_pay_fen=sum(line.own_pay_fen for line in split),
        over_limit_fen=sum(line.over_limit_fen for line in split),
        prior_self_pay_fen=sum(line.prior_self_pay_fen for line in split),
        in_scope_fen=in_scope,
        deductible_fen=deductible,
        segments=segments,
        pooled_before_cap_fen=pooled_before_cap,
        pooled_fund_fen=pooled,
        civil_servant_fen=further[Fund.CIVIL_SERVANT],
        enterprise_fen=further[Fund.ENTERPRISE],
        catastrophic_fen=further[Fund.CATASTROPHIC],
        large_sum_fen=further[Fund.LARGE_SUM],
        assistance_fen=further[Fund.ASSISTANCE],
        other_fund_fen=further[Fund.OTHER],
        fund_total_fen=fund_total,
        hospital_part_fen=hospital_part_fen,
        personal_part_fen=personal,
        account_fen=account,
        family_fen=family,
        cash_fen=personal - account - family,
        before=Balances(
            cum_inscope_fen=benefit.cum_inscope_fen,
            deductible_used_fen=min(benefit.deductible_fen, benefit.cum_inscope_fen),
            cum_fund_fen=benefit.cum_fund_fen,
            account_fen=account_balance_fen,
            family_fen=family_balance_fen,
        ),
        after=Balances(
            cum_inscope_fen=cum_after,
            deductible_used_fen=min(benefit.deductible_fen, cum_after),
            cum_fund_fen=benefit.cum_fund_fen + pooled,
            account_fen=account_balance_fen - account,
            family_fen=family_balance_fen - family,
        ),
    )


def take_back(claim: Claim, now: Balances) -> Balances:
    """The balances after an undo or a reversal of ``claim`` (I20).

    Gives back exactly what the claim moved, so that claims settled in between keep their own effect; with
    none in between the result equals ``claim.before``.
    """
    before, after = claim.before, claim.after
    return Balances(
        cum_inscope_fen=now.cum_inscope_fen + before.cum_inscope_fen - after.cum_inscope_fen,
        deductible_used_fen=now.deductible_used_fen + before.deductible_used_fen - after.deductible_used_fen,
        cum_fund_fen=now.cum_fund_fen + before.cum_fund_fen - after.cum_fund_fen,
        account_fen=now.account_fen + before.account_fen - after.account_fen,
        family_fen=now.family_fen + before.family_fen - after.family_fen,
    )
