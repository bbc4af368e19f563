"""What a sale costs whom, computed a second time: the national pack's arithmetic in plain fractions.

Owns its own reading of the settlement algorithm. Must never call the hub's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

from tests.simulation.cast import DRUG_BY_CODE

_RATIO: Final = Fraction(7, 10)
"""Of the pooled fund, in the national pack; there is no deductible and no cap."""


@dataclass(slots=True)
class Shares:
    """The amounts of a claim in fen, by the names of the protos."""

    total_fen: int = 0
    own_pay_fen: int = 0
    over_limit_fen: int = 0
    prior_self_pay_fen: int = 0
    in_scope_fen: int = 0


def half_up(exact: Fraction) -> int:
    """To the nearest whole fen, a half upwards."""
    return (exact + Fraction(1, 2)).__floor__()


def split(drug_code: str, quantity_e4: int, price_e6: int, approval: str) -> Shares:
    """What becomes of one line."""
    drug = DRUG_BY_CODE[drug_code]
    quantity = Fraction(quantity_e4, 10_000)
    amount = half_up(quantity * Fraction(price_e6, 1_000_000) * 100)
    if drug.charge_class == "03" or approval == "2" or (drug.limits and approval != "1"):
        return Shares(amount, amount)
    base = min(amount, half_up(quantity * Fraction(drug.standard) * 100)) if drug.standard else amount
    prior = 0 if drug.charge_class == "01" else half_up(Fraction(drug.prior_ratio) * base)
    return Shares(amount, 0, amount - base, prior, base - prior)


def expected(lines: Iterable[Any], approvals: Mapping[int, str], balance_fen: int, *, insured: bool) -> dict[str, int]:
    """Every amount of a claim over these lines (of `state_pb2.Claim`), as `signed_pb2.ClaimAmounts` names them."""
    parts = [
        split(line.drug_code, line.quantity_e4, line.price_e6, approvals.get(line.line_no, "") if insured else "2")
        for line in lines
    ]
    kinds = {
        name: sum(getattr(part, name) for part in parts)
        for name in ("total_fen", "own_pay_fen", "over_limit_fen", "prior_self_pay_fen", "in_scope_fen")
    }
    pooled = half_up(_RATIO * kinds["in_scope_fen"])
    person = kinds["total_fen"] - pooled
    account = min(balance_fen, person)
    return {
        **kinds,
        "deductible_fen": 0,
        "pooled_fund_fen": pooled,
        "fund_fen": pooled,
        "institution_fen": 0,
        "person_fen": person,
        "account_fen": account,
        "family_fen": 0,
        "cash_fen": person - account,
    }


def check_identities(claim: Any) -> str:
    """What of T-04 to T-08 does not hold for a claim with its lines; empty when all do."""
    found = claim.amounts
    kinds = ("own_pay_fen", "over_limit_fen", "prior_self_pay_fen", "in_scope_fen")
    checks = {
        "T-04": found.total_fen == sum(getattr(found, kind) for kind in kinds),
        "T-05": found.total_fen == found.fund_fen + found.institution_fen + found.person_fen,
        "T-06": found.person_fen == found.account_fen + found.family_fen + found.cash_fen,
        "T-07": found.fund_fen == found.pooled_fund_fen,
        "T-08": all(getattr(found, kind) == sum(getattr(line, kind) for line in claim.lines) for kind in kinds)
        and found.total_fen == sum(line.amount_fen for line in claim.lines),
        "no negative amount": all(getattr(found, field.name) >= 0 for field in found.DESCRIPTOR.fields),
    }
    return ", ".join(name for name, holds in checks.items() if not holds)
