"""Quote, settle, undo, reverse: the amounts, who pays them, and that what is given back is given back exactly."""

from __future__ import annotations

from fractions import Fraction
from typing import cast

import pytest

from erxhub.core import account, claim_arithmetic, settlement
from erxhub.core.model import Accepted
from erxhub.policy.rules import Rules
from erxhub.v1 import common_pb2, dispensing_pb2, events_pb2, registry_pb2, signed_pb2, state_pb2
from tests.core import pharmacy as shops
from tests.core import population as people
from tests.core.harness import World
from tests.core.pharmacy import HOUR_MS, OTHER_SHOP, SHOP, Visit, at, change_agreement, visit
from tests.core.population import accepted, refused
from tests.core.test_prescription import AMLODIPINE, DAY_MS, IRBESARTAN, MINUTE_MS, Rx, drug

SUSPENDED = registry_pb2.AGREEMENT_STATUS_SUSPENDED
SETTLE_ID = "settle-request-1"
UNDO_ID = "undo-request-1"
START_FEN = 86_000
NEW_YEAR_MS = 1_798_732_800_000
"""The first instant of 2027 in Beijing."""


def totals(v: Visit) -> tuple[int, int, int]:
    return v.account.balance_fen, v.account.in_scope_year_fen, v.account.fund_year_fen


# ---- quote ----


def test_a_quote_splits_the_lines_as_the_catalogue_says() -> None:
    v = visit().reviewed()
    reply = accepted(v.quote())
    # In scope 20.00 + (30.00 - 3.00); the fund pays 0.70 of 47.00.
    assert [
        (line.line_no, line.charge_class, line.over_limit_fen, line.prior_self_pay_fen, line.in_scope_fen)
        for line in reply.lines
    ] == [(1, "01", 0, 0, 2_000), (2, "02", 1_000, 300, 2_700)]
    amounts = reply.amounts
    assert (amounts.total_fen, amounts.fund_fen, amounts.account_fen, amounts.cash_fen) == (6_000, 3_290, 2_710, 0)
    assert reply.expires_at_ms == v.world.now_ms + 30 * MINUTE_MS
    assert len(reply.quote_id) == 24


def test_a_quote_leaves_the_account_alone_when_asked_to() -> None:
    v = visit().reviewed()
    amounts = accepted(v.quote(use_account=False)).amounts
    assert (amounts.account_fen, amounts.cash_fen) == (0, 2_710)


def test_the_first_quote_extends_the_hold_once() -> None:
    v = visit().reviewed()
    until = v.order.hold_until_ms
    assert accepted(v.quote()).hold_until_ms == until + 30 * MINUTE_MS
    assert accepted(v.quote()).hold_until_ms == until + 30 * MINUTE_MS


def test_a_restricted_drug_without_approval_is_self_paid() -> None:
    world = shops.market(drug(AMLODIPINE, limits="限二线用药"), drug(IRBESARTAN))
    v = visit(world).reviewed()
    assert accepted(v.quote(v.sale())).amounts.own_pay_fen == 2_000
    line = Rx.line(1, AMLODIPINE)
    line.approval_flag = "1"
    answer = common_pb2.Acknowledgement(
        code="MON_INDICATION", line_no=1, reason="符合限定", doctor_code=people.DOCTOR_CODE
    )
    world = shops.market(drug(AMLODIPINE, limits="限二线用药"), drug(IRBESARTAN))
    w = visit(world, lines=[line], acknowledgements=[answer]).reviewed()
    assert accepted(w.quote(w.sale())).amounts.in_scope_fen == 2_000


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"line_no": 3}, "DISPENSE_MISMATCH", "lines[0].line_no"),
        ({"code": IRBESARTAN}, "DISPENSE_MISMATCH", "lines[0].drug_code"),
        ({"quantity": "1.0001"}, "DISPENSE_MISMATCH", "lines[0].quantity"),
        ({"quantity": "0"}, "DISPENSE_MISMATCH", "lines[0].quantity"),
        ({"quantity": "01"}, "INPUT_MALFORMED", "lines[0].quantity"),
        ({"price": "9999999999"}, "INPUT_MALFORMED", "lines[0].unit_price"),
    ],
)
def test_a_quote_refuses_what_was_not_prescribed(changes: dict[str, str], code: str, field: str) -> None:
    v = visit().reviewed()
    refused(v.quote(v.sale(**changes)), code, field)  # type: ignore[arg-type]


def test_a_quote_refuses_a_repeated_line() -> None:
    v = visit().reviewed()
    refused(v.quote(v.sale(), v.sale()), "DISPENSE_MISMATCH", "lines[1].line_no")


def test_a_quote_needs_review_voucher_pooling_and_no_withdrawal() -> None:
    v = visit().held()
    refused(v.quote(), "REVIEW_REQUIRED")
    accepted(v.review())
    people.activate(v.world, people.STRANGER_NO)
    refused(v.quote(reference=v.reference(shops.SETTLE_TYPE, people.STRANGER_NO)), "VCH_SUBJECT_MISMATCH")
    refused(v.quote(reference=v.reference(shops.LIST_TYPE)), "VCH_WRONG_BUSINESS")
    refused(v.rx.revoke(), "RX_UNDO_STATE")
    refused(v.quote(), "RX_NOT_EFFECTIVE")
    refused(v.pay_self(), "RX_NOT_EFFECTIVE")
    w = visit().reviewed()
    change_agreement(w.world, SHOP, SUSPENDED, shops.POOLING)
    refused(w.quote(), "AGR_NO_POOLING")
    accepted(w.pay_self())


# ---- settle ----


def test_a_settlement_moves_the_account_and_names_what_it_rests_on() -> None:
    v = visit().quoted()
    before = len(v.world.events)
    reply = accepted(v.settle())
    assert v.events_since(before)[-3:] == ["account.debited", "settlement.committed", "dispense.ready"]
    assert totals(v) == (START_FEN - 2_710, 4_700, 3_290)
    assert reply.account_balance_fen == START_FEN - 2_710
    assert reply.amounts == v.quote_reply.amounts
    debited = v.world.events[-3][2]
    committed = [event for kind, event, _ in v.world.events if kind == "prescription"].index("settlement.committed")
    assert (debited.rx_key, debited.rx_version) == (v.rx.key, committed + 1)
    assert v.order.status == common_pb2.ORDER_STATUS_SETTLED
    assert v.order.claim.settlement_id == reply.settlement_id


def test_a_quote_settles_once() -> None:
    v = visit().settled()
    refused(v.settle(), "SETL_QUOTE_STALE")
    refused(v.quote(), "RX_ALREADY_USED")
    refused(v.pay_self(), "RX_ALREADY_USED")


def test_an_expired_replaced_or_unknown_quote_is_stale() -> None:
    v = visit().quoted()
    refused(v.settle(quote_id="330100" + "0" * 18), "SETL_QUOTE_STALE", "statement.quote_id")
    first = v.quote_reply
    accepted(v.quote(v.sale()))
    refused(v.settle(quote_id=first.quote_id, amounts=first.amounts), "SETL_QUOTE_STALE")
    refused(v.settle(lines=v.both()), "SETL_QUOTE_STALE", "statement.lines")
    v.world.advance(30 * MINUTE_MS + 1)
    refused(v.settle(), "SETL_QUOTE_STALE")
    w = visit().reviewed()
    refused(w.settle(quote_id="1"), "SETL_QUOTE_STALE")


def test_a_settlement_one_fen_off_names_the_amount() -> None:
    v = visit().quoted()
    amounts = signed_pb2.ClaimAmounts()
    amounts.CopyFrom(v.quote_reply.amounts)
    amounts.cash_fen += 1
    answer = refused(v.settle(amounts=amounts), "SETL_AMOUNT", "statement.amounts.cash_fen")
    assert (answer.detail["sent_fen"], answer.detail["computed_fen"]) == ("1", "0")


def test_a_settlement_needs_review_seal_and_the_persons_voucher() -> None:
    v = visit().held()
    refused(v.settle(), "REVIEW_REQUIRED")
    accepted(v.review())
    accepted(v.quote())
    refused(v.settle(facts={"invalid": ["statement"]}), "SIG_INVALID")
    refused(v.settle(facts={"unknown": ["statement"]}), "SIG_CERT")
    refused(v.settle(""), "VCH_INVALID", "voucher_ref")
    refused(v.settle(pharmacy_code=OTHER_SHOP.id), "INST_IMPERSONATION")


def test_two_claims_cannot_overdraw_the_account() -> None:
    first = visit().reviewed()
    accepted(first.quote(first.sale(price="1200")))
    second = at(visit(first.world, hospital_rx_no="RX2"), OTHER_SHOP).reviewed()
    accepted(second.quote(second.sale(price="2000")))
    assert second.quote_reply.amounts.account_fen == 60_000
    accepted(first.settle())
    refused(second.settle(), "ACCT_INSUFFICIENT")


def test_a_self_payment_touches_no_account() -> None:
    v = visit().reviewed()
    before = len(v.world.events)
    reply = accepted(v.pay_self())
    assert v.events_since(before) == ["settlement.self_paid", "dispense.ready"]
    assert totals(v) == (START_FEN, 0, 0)
    assert reply.settlement_id
    assert reply.account_balance_fen == 0
    assert v.order.claim.status == common_pb2.SETTLEMENT_STATUS_SELF_PAID


def test_a_self_payment_is_checked_like_a_quote() -> None:
    v = visit().held()
    refused(v.pay_self(), "REVIEW_REQUIRED")
    accepted(v.review())
    refused(v.pay_self(total_fen=6_001), "SETL_AMOUNT", "statement.amounts.total_fen")
    refused(v.pay_self(v.sale(quantity="2"), total_fen=4_000), "DISPENSE_MISMATCH", "statement.lines[0].quantity")
    refused(v.pay_self(lines=[]), "DISPENSE_MISMATCH", "statement.lines")
    refused(v.pay_self(quote_id="1"), "INPUT_MALFORMED", "statement.quote_id")
    accepted(v.quote())
    accepted(v.pay_self())


# ---- undo ----


def test_an_undo_restores_everything_exactly() -> None:
    v = visit().settled()
    before = len(v.world.events)
    reply = accepted(v.undo())
    assert v.events_since(before) == ["account.restored", "settlement.undone", "dispense.voided", "order.released"]
    assert totals(v) == (START_FEN, 0, 0)
    assert reply.statuses.use == common_pb2.RX_USE_STATUS_UNUSED
    refused(v.undo(), "SETL_TERMINAL")
    assert at(v, OTHER_SHOP).settled().settlement_id


def test_an_undo_is_refused_for_another_settlement_another_day_and_goods_that_are_out() -> None:
    v = visit().settled()
    refused(v.undo("330100" + "0" * 18), "SETL_TERMINAL", "settlement_id")
    v.world.advance(DAY_MS)
    refused(v.undo(), "SETL_TERMINAL")
    w = visit().dispensed()
    refused(w.undo(), "SETL_NOT_REVERSIBLE")


def test_a_self_payment_is_undone_without_an_account() -> None:
    v = visit().self_paid()
    before = len(v.world.events)
    change_agreement(v.world, SHOP, SUSPENDED)
    accepted(v.undo())
    assert v.events_since(before)[1:] == ["settlement.undone", "dispense.voided", "order.released"]


# ---- benefit year ----


def at_midnight(world: World, ms: int) -> World:
    """The clock at so many ms after the midnight (Beijing) that begins 2027."""
    world.advance(NEW_YEAR_MS + ms - world.now_ms)
    return world


def new_years_eve() -> Visit:
    """A prescription of the last evening of 2026."""
    return visit(at_midnight(shops.market(), -HOUR_MS))


def test_a_new_year_starts_the_totals_afresh() -> None:
    v = new_years_eve().settled()
    assert (v.account.benefit_year, totals(v)) == (2026, (START_FEN - 2_710, 4_700, 3_290))
    visit(at_midnight(v.world, 0), hospital_rx_no="RX2").settled()
    assert (v.account.benefit_year, totals(v)) == (2027, (START_FEN - 2 * 2_710, 4_700, 3_290))


def test_a_reversal_in_the_new_year_leaves_the_new_years_totals_alone() -> None:
    v = new_years_eve().settled(request_id=SETTLE_ID)
    visit(at_midnight(v.world, MINUTE_MS), hospital_rx_no="RX2").settled()
    accepted(v.reverse(SETTLE_ID))
    assert (v.account.benefit_year, totals(v)) == (2027, (START_FEN - 2_710, 4_700, 3_290))


def test_a_settlement_that_stands_again_counts_in_its_own_year() -> None:
    v = new_years_eve().settled(request_id=SETTLE_ID)
    accepted(v.undo(request_id=UNDO_ID))
    assert totals(v) == (START_FEN, 0, 0)
    at_midnight(v.world, MINUTE_MS)
    accepted(v.reverse(UNDO_ID, "2103"))
    assert (v.account.benefit_year, totals(v)) == (2026, (START_FEN - 2_710, 4_700, 3_290))
    other = visit(v.world, hospital_rx_no="RX2").settled()
    assert (other.account.benefit_year, totals(other)[1:]) == (2027, (4_700, 3_290))


def test_a_quote_rests_on_the_totals_of_the_year_of_its_settlement() -> None:
    spent = state_pb2.AccountState(in_scope_year_fen=8_000, fund_year_fen=5_600, benefit_year=2026)
    assert account.year_totals(spent, NEW_YEAR_MS - 1) == (8_000, 5_600)
    assert account.year_totals(spent, NEW_YEAR_MS) == (0, 0)


# ---- reverse ----


def test_a_reversal_of_a_settlement_restores_everything_exactly() -> None:
    v = visit().settled(request_id=SETTLE_ID)
    before = len(v.world.events)
    reply = accepted(v.reverse(SETTLE_ID, person_no=people.PERSON_NO))
    assert v.events_since(before) == ["account.restored", "settlement.reversed", "dispense.voided", "order.released"]
    assert (reply.target, reply.settlement_id) == (dispensing_pb2.REVERSAL_TARGET_SETTLEMENT, v.settlement_id)
    assert totals(v) == (START_FEN, 0, 0)
    refused(v.reverse(SETTLE_ID), "SETL_TERMINAL")
    refused(v.undo(), "SETL_TERMINAL")


def test_a_reversal_of_what_never_arrived_takes_the_request_id() -> None:
    v = visit().quoted()
    outcome = v.reverse("never-arrived-1")
    assert isinstance(outcome, Accepted)
    assert outcome.taken_request_id == "never-arrived-1"
    assert accepted(outcome).target == dispensing_pb2.REVERSAL_TARGET_NONE
    kind, event, payload = v.world.events[-1]
    assert (kind, event, payload.target) == ("institution", "settlement.reversed", events_pb2.REVERSAL_OF_NONE)
    refused(v.reverse("never-arrived-1"), "SETL_TERMINAL", "original_request_id")


def test_a_reversal_knows_its_transactions_and_its_person() -> None:
    v = visit().settled(request_id=SETTLE_ID)
    refused(v.reverse(SETTLE_ID, "7204"), "SETL_TERMINAL", "original_transaction")
    refused(v.reverse(SETTLE_ID, "2103"), "SETL_TERMINAL", "original_request_id")
    refused(v.reverse(SETTLE_ID, person_no=people.STRANGER_NO), "INPUT_MALFORMED", "person_no")
    refused(v.reverse("reverse-own-1", request_id="reverse-own-1"), "SETL_TERMINAL", "original_request_id")
    # Scope of a request id is its caller: another pharmacy never sent this one.
    assert accepted(at(v, OTHER_SHOP).reverse(SETTLE_ID)).target == dispensing_pb2.REVERSAL_TARGET_NONE
    accepted(v.dispense())
    refused(v.reverse(SETTLE_ID), "SETL_NOT_REVERSIBLE")


def test_a_self_payment_cannot_be_reversed() -> None:
    v = visit().reviewed()
    v.settlement_id = accepted(v.pay_self(request_id=SETTLE_ID)).settlement_id
    refused(v.reverse(SETTLE_ID), "SETL_TERMINAL")
    accepted(v.undo(request_id=UNDO_ID))
    refused(v.reverse(UNDO_ID, "2103"), "SETL_TERMINAL")


def test_a_reversed_undo_lets_the_settlement_stand_again() -> None:
    v = visit().settled(request_id=SETTLE_ID)
    after_settlement = totals(v)
    accepted(v.undo(request_id=UNDO_ID))
    before = len(v.world.events)
    reply = accepted(v.reverse(UNDO_ID, "2103"))
    assert reply.target == dispensing_pb2.REVERSAL_TARGET_UNDO
    assert v.events_since(before) == ["account.debited", "settlement.reversed", "dispense.ready"]
    assert totals(v) == after_settlement
    refused(v.reverse(UNDO_ID, "2103"), "SETL_TERMINAL")
    accepted(v.dispense())


def test_an_undo_stands_once_its_money_or_its_prescription_was_used() -> None:
    v = visit().settled()
    accepted(v.undo(request_id=UNDO_ID))
    other = at(v, OTHER_SHOP).held()
    refused(v.reverse(UNDO_ID, "2103"), "SETL_TERMINAL")
    accepted(other.release())
    spender = at(visit(v.world, hospital_rx_no="RX2"), OTHER_SHOP).settled()
    refused(v.reverse(UNDO_ID, "2103"), "SETL_TERMINAL")
    accepted(spender.undo())
    refused(v.reverse(UNDO_ID, "2103"), "SETL_TERMINAL")


@pytest.mark.interpreted
def test_a_quote_falls_with_the_totals_that_it_rested_on() -> None:
    bands = (claim_arithmetic.Band(None, Fraction(7, 10)),)
    amounts = signed_pb2.ClaimAmounts(in_scope_fen=4_700, pooled_fund_fen=3_290, fund_fen=3_290)

    class Capped:
        """Rules of an area whose fund pays at most 100.00 a year."""

        def benefit(self, *, cum_inscope_fen: int, cum_fund_fen: int) -> claim_arithmetic.Benefit:
            return claim_arithmetic.Benefit(
                bands, cum_inscope_fen=cum_inscope_fen, cum_fund_fen=cum_fund_fen, fund_cap_fen=10_000
            )

    rules = cast(Rules, Capped())
    assert settlement._shares_stand(rules, (0, 6_710), amounts)
    assert not settlement._shares_stand(rules, (0, 6_711), amounts)
