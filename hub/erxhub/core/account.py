"""The insured person's account: its balance, the totals of the benefit year, what a claim takes and what is given back.

Owns every event of an account but its opening. The benefit year is the calendar year in China; a claim belongs to the
year of its settlement, also when it is given back or stands again in a later one. It never decides whether a claim may
move money.
"""

from __future__ import annotations

from typing import Final

from erxhub.core import guards
from erxhub.core.model import Draft
from erxhub.core.orders import Seen
from erxhub.policy.pack import china_date
from erxhub.policy.rules import Rules
from erxhub.v1 import events_pb2, signed_pb2, state_pb2

ACCOUNT: Final = "account"


def account_key(tx: Draft, seen: Seen) -> bytes:
    """The stream of the account of the prescription's person."""
    return guards.person(tx, seen.rx.person_key).account_key


def account_of(tx: Draft, seen: Seen) -> state_pb2.AccountState:
    """The account of the prescription's person."""
    account = tx.state(account_key(tx, seen), state_pb2.AccountState)
    assert account is not None, "every registered person has an account"
    return account


def insured_rules(tx: Draft, seen: Seen) -> Rules:
    """The parameters of the pool that pays: it is the person's, wherever he buys."""
    return tx.rules(guards.person(tx, seen.rx.person_key).insured_area_code)


def year_totals(account: state_pb2.AccountState, now_ms: int) -> tuple[int, int]:
    """In-scope spending and what the pooled fund paid in the benefit year of this instant (fen)."""
    if account.benefit_year != china_date(now_ms).year:
        return 0, 0
    return account.in_scope_year_fen, account.fund_year_fen


def debit(tx: Draft, seen: Seen, claim: state_pb2.Claim) -> list[bytes | tuple[bytes, int]]:
    """Take the claim's part from the account and its year totals; the event's place, as a cause of the next one.

    Call it right before the prescription's event: the payload names that event's version. A claim that moves nothing
    leaves no event.
    """
    return _move(tx, seen, claim, "account.debited", events_pb2.AccountDebited())


def restore(tx: Draft, seen: Seen, claim: state_pb2.Claim) -> list[bytes | tuple[bytes, int]]:
    """Give back exactly what `debit` took (I20)."""
    return _move(tx, seen, claim, "account.restored", events_pb2.AccountRestored())


def _move(
    tx: Draft,
    seen: Seen,
    claim: state_pb2.Claim,
    event: str,
    payload: events_pb2.AccountDebited | events_pb2.AccountRestored,
) -> list[bytes | tuple[bytes, int]]:
    if not _moves(claim.amounts):
        return []
    key = account_key(tx, seen)
    payload.amount_fen = claim.amounts.account_fen
    payload.in_scope_fen = claim.amounts.in_scope_fen
    payload.fund_fen = claim.amounts.pooled_fund_fen
    payload.settlement_id = claim.settlement_id
    payload.rx_key = seen.key
    payload.rx_version = tx.version(seen.key) + 1
    # A claim without an instant is being settled now.
    payload.benefit_year = china_date(claim.settled_at_ms or tx.now_ms).year
    tx.emit(ACCOUNT, key, event, payload)
    return [(key, tx.version(key))]


def _moves(amounts: signed_pb2.ClaimAmounts) -> bool:
    return bool(amounts.account_fen or amounts.in_scope_fen or amounts.pooled_fund_fen)
