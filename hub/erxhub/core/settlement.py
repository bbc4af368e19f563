"""Decisions about money: quote, settle, record a self-payment.

Owns which amounts the hub stands for. The hub computes and a client's amounts are only compared (T-14); the arithmetic
itself is `claim_arithmetic`'s. It never gives money back (that is `reversal`'s) and never hands out goods.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from erxhub.core import account, claim_arithmetic, guards, orders
from erxhub.core.lifecycle import WITHDRAWABLE, Machine, Role, permits
from erxhub.core.model import Accepted, Ahead, Command, Draft, Handler, LookAhead, Outcome, Refused
from erxhub.core.orders import PRESCRIPTION, Seen, claim_status, order_status
from erxhub.policy.rules import Rules
from erxhub.v1 import dispensing_pb2, events_pb2, registry_pb2, signed_pb2, state_pb2

LINE_AMOUNT_MAX_FEN: Final = 100_000_000_000
"""The largest amount of a line, as on a prescription: a larger one is a slip, and sums stay far from 64 bits."""

_NO_APPROVAL: Final = "0"


# ---- lines ----


def _priced(seen: Seen, lines: Sequence[signed_pb2.SaleLine], field: str) -> list[state_pb2.ClaimLine] | Refused:
    """The sold lines as numbers: prescribed drugs, each once, at most what remains.

    Refusals: DISPENSE_MISMATCH, INPUT_MALFORMED (no plain decimal, or absurdly large).
    """
    prescribed = {line.line_no: line for line in seen.rx.content.lines}
    remaining = {use.line_no: orders.remaining_e4(seen.rx, use) for use in seen.rx.lines}
    priced: dict[int, state_pb2.ClaimLine] = {}
    for place, line in enumerate(lines):
        path = f"{field}[{place}]"
        quantity_e4 = orders.read_quantity_e4(line.quantity)
        price_e6 = orders.read_price_e6(line.unit_price)
        if quantity_e4 is None or price_e6 is None:
            return seen.refuse("INPUT_MALFORMED", f"{path}.{'quantity' if quantity_e4 is None else 'unit_price'}")
        ordered = prescribed.get(line.line_no)
        if ordered is None or line.line_no in priced:
            return seen.refuse("DISPENSE_MISMATCH", f"{path}.line_no")
        if ordered.drug_code != line.drug_code:
            return seen.refuse("DISPENSE_MISMATCH", f"{path}.drug_code")
        if not 0 < quantity_e4 <= remaining[line.line_no]:
            detail = {"remaining": orders.quantity_text(remaining[line.line_no])}
            return seen.refuse("DISPENSE_MISMATCH", f"{path}.quantity", detail=detail)
        if claim_arithmetic.line_amount_fen(quantity_e4, price_e6) > LINE_AMOUNT_MAX_FEN:
            return seen.refuse("INPUT_MALFORMED", f"{path}.unit_price")
        priced[line.line_no] = state_pb2.ClaimLine(
            line_no=line.line_no, drug_code=line.drug_code, quantity_e4=quantity_e4, price_e6=price_e6
        )
    return list(priced.values())


def _with_classes(
    tx: Draft, seen: Seen, lines: Sequence[state_pb2.ClaimLine]
) -> list[claim_arithmetic.ChargeLine] | Refused:
    """The lines with what the catalogue in force and the hospital's approval say of them. Refusals: DRUG_UNKNOWN."""
    approvals = {line.line_no: line.approval_flag or _NO_APPROVAL for line in seen.rx.content.lines}
    drugs = orders.drugs_of(tx, [line.drug_code for line in lines])
    charged = []
    for place, line in enumerate(lines):
        drug = drugs.get(line.drug_code)
        if drug is None:
            return seen.refuse("DRUG_UNKNOWN", f"lines[{place}].drug_code")
        line.charge_class = drug.charge_class
        charged.append(
            claim_arithmetic.ChargeLine(
                charge_level=drug.charge_class,
                quantity_e4=line.quantity_e4,
                price_e6=line.price_e6,
                prior_ratio=claim_arithmetic.parse_ratio(drug.prior_pay_ratio),
                payment_standard_e6=(
                    claim_arithmetic.parse_price_e6(drug.payment_standard) if drug.payment_standard else None
                ),
                self_paid=claim_arithmetic.self_paid_by_approval(bool(drug.limits), approvals[line.line_no]),
            )
        )
    return charged


def _keep_amounts(lines: Iterable[state_pb2.ClaimLine], computed: claim_arithmetic.Claim) -> None:
    for line, amounts in zip(lines, computed.lines, strict=True):
        line.amount_fen = amounts.amount_fen
        line.own_pay_fen = amounts.own_pay_fen
        line.over_limit_fen = amounts.over_limit_fen
        line.prior_self_pay_fen = amounts.prior_self_pay_fen
        line.in_scope_fen = amounts.in_scope_fen


def _amounts(computed: claim_arithmetic.Claim) -> signed_pb2.ClaimAmounts:
    return signed_pb2.ClaimAmounts(
        total_fen=computed.total_fen,
        own_pay_fen=computed.own_pay_fen,
        over_limit_fen=computed.over_limit_fen,
        prior_self_pay_fen=computed.prior_self_pay_fen,
        in_scope_fen=computed.in_scope_fen,
        deductible_fen=computed.deductible_fen,
        pooled_fund_fen=computed.pooled_fund_fen,
        fund_fen=computed.fund_total_fen,
        institution_fen=computed.hospital_part_fen,
        person_fen=computed.personal_part_fen,
        account_fen=computed.account_fen,
        family_fen=computed.family_fen,
        cash_fen=computed.cash_fen,
    )


# ---- quote ----


def _settle_types(rules: Rules) -> tuple[str, ...]:
    return rules.text("business_type_settle_offline"), rules.text("business_type_settle_online")


def quote(tx: Draft, command: Command) -> Outcome:
    """Compute what fund, account and patient pay (2101).

    Leaves `settlement.quoted`; the first one extends the hold once.
    Refusals: INST_UNKNOWN, AGR_INACTIVE, RX_UNKNOWN, PSN_INACTIVE, RX_ALREADY_USED, RX_NOT_EFFECTIVE, ORDER_HOLD_LOST,
    REVIEW_REQUIRED, AGR_NO_POOLING (a self-payment can still be recorded), VCH_*, DISPENSE_MISMATCH, INPUT_MALFORMED,
    DRUG_UNKNOWN.
    """
    request: dispensing_pb2.QuoteSettlementRequest = command.request
    step = orders.forward(tx, command, request.rx_no, with_drugs=True, with_account=True)
    if isinstance(step, Refused):
        return step
    pharmacy, seen = step
    order = orders.fillable(seen) or orders.holding(seen)
    if isinstance(order, Refused):
        return order
    if not any(
        permits(Machine.ORDER, order_status(order), trigger, Role.PHARMACY)
        for trigger in ("pre-settle", "pre-settle again")
    ):
        return seen.refuse(_before_money(order), "rx_no", order=order)
    rules = tx.rules(command.caller.area_code)
    shown = _paying(tx, command, seen, pharmacy, request.voucher_ref, rules)
    if isinstance(shown, Refused):
        return shown
    lines = _priced(seen, request.lines, "lines")
    if isinstance(lines, Refused):
        return lines
    charged = _with_classes(tx, seen, lines)
    if isinstance(charged, Refused):
        return charged
    own_account = account.account_of(tx, seen)
    in_scope_fen, fund_fen = account.year_totals(own_account, tx.now_ms)
    benefit = account.insured_rules(tx, seen).benefit(cum_inscope_fen=in_scope_fen, cum_fund_fen=fund_fen)
    computed = claim_arithmetic.compute(charged, benefit, own_account.balance_fen if request.use_account else 0)
    _keep_amounts(lines, computed)
    claim = state_pb2.Claim(
        quote_id=orders.new_number(tx, pharmacy.area_code),
        amounts=_amounts(computed),
        lines=lines,
        quote_expires_at_ms=tx.now_ms + rules.duration_ms("quote_lifetime"),
    )
    hold_until_ms = order.hold_until_ms
    if not order.hold_extended:
        hold_until_ms = min(hold_until_ms + rules.duration_ms("hold_extension"), seen.rx.content.valid_until_ms)
    quoted = events_pb2.SettlementQuoted(
        order_no=order.order_no, claim=claim, hold_until_ms=hold_until_ms, voucher_key=shown.voucher_key
    )
    tx.emit(PRESCRIPTION, seen.key, "settlement.quoted", quoted, causes=[tx.leaf(shown.voucher_key)])
    reply = dispensing_pb2.QuoteSettlementResponse(
        quote_id=claim.quote_id,
        amounts=claim.amounts,
        lines=[
            dispensing_pb2.QuotedLine(
                line_no=line.line_no,
                charge_class=line.charge_class,
                amount_fen=line.amount_fen,
                own_pay_fen=line.own_pay_fen,
                over_limit_fen=line.over_limit_fen,
                prior_self_pay_fen=line.prior_self_pay_fen,
                in_scope_fen=line.in_scope_fen,
            )
            for line in lines
        ],
        expires_at_ms=claim.quote_expires_at_ms,
        hold_until_ms=hold_until_ms,
    )
    return Accepted(reply, targets=seen.targets)


def _ahead_of_quote(command: Command) -> Ahead:
    request: dispensing_pb2.QuoteSettlementRequest = command.request
    return orders.ahead(command, request.rx_no, voucher_ref=request.voucher_ref)


def _before_money(order: state_pb2.Order) -> str:
    """Why a holder may not quote or pay now: not reviewed yet, or paid already."""
    return "REVIEW_REQUIRED" if order_status(order) in WITHDRAWABLE else "RX_ALREADY_USED"


def _paying(
    tx: Draft,
    command: Command,
    seen: Seen,
    pharmacy: state_pb2.InstitutionState,
    voucher_ref: str,
    rules: Rules,
) -> guards.Reference | Refused:
    """The person is present and the pharmacy may claim from the fund."""
    refused = guards.agreement(tx, pharmacy, registry_pb2.AGREEMENT_KIND_POOLING)
    if refused is not None:
        return guards.about(refused, *seen.targets)
    return orders.same_person(tx, command, seen, voucher_ref, _settle_types(rules))


# ---- settle ----


def settle(tx: Draft, command: Command) -> Outcome:
    """Take up a quote (2102), or record a self-payment.

    Leaves `account.debited` when the claim moves the account or its year totals, `settlement.committed` or
    `settlement.self_paid`, and `dispense.ready`.
    Refusals: SIG_*, RX_TIME, INPUT_MALFORMED, INST_CODE, INST_IMPERSONATION, INST_UNKNOWN, AGR_INACTIVE, RX_UNKNOWN,
    PSN_INACTIVE, RX_ALREADY_USED, RX_NOT_EFFECTIVE, ORDER_HOLD_LOST, REVIEW_REQUIRED; with a quote also AGR_NO_POOLING,
    VCH_*, SETL_QUOTE_STALE, SETL_AMOUNT, ACCT_INSUFFICIENT; without one DISPENSE_MISMATCH, SETL_AMOUNT.
    """
    claimed = orders.claimed(command, signed_pb2.SettleStatement)
    if isinstance(claimed, Refused):
        return claimed
    insured = claimed.pay_mode == signed_pb2.PAY_MODE_INSURED
    step = orders.forward(tx, command, claimed.rx_no, with_account=insured)
    if isinstance(step, Refused):
        return step
    statement = orders.proven_by_seal(tx, command, signed_pb2.SettleStatement, step.seen.targets)
    if isinstance(statement, Refused):
        return statement
    order = orders.fillable(step.seen) or orders.holding(step.seen)
    if isinstance(order, Refused):
        return order
    refused = orders.replayed(tx, step.seen, order, statement.signed_at_ms, order.downloaded_at_ms)
    if refused is not None:
        return refused
    if statement.pay_mode == signed_pb2.PAY_MODE_INSURED:
        return _settle_quote(tx, command, step, order, statement)
    return _settle_self_paid(tx, command, step, order, statement)


def _ahead_of_settle(command: Command) -> Ahead:
    claimed = orders.claimed(command, signed_pb2.SettleStatement)
    if isinstance(claimed, Refused):
        return Ahead()
    return orders.ahead(command, claimed.rx_no, orders.key_names(command), voucher_ref=command.request.voucher_ref)


def _settle_quote(
    tx: Draft, command: Command, step: orders.Step, order: state_pb2.Order, statement: signed_pb2.SettleStatement
) -> Outcome:
    pharmacy, seen = step
    request: dispensing_pb2.SettleRequest = command.request
    if permits(Machine.ORDER, order_status(order), "review passed", Role.PHARMACIST):
        return seen.refuse("REVIEW_REQUIRED", "rx_no", order=order)
    shown = _paying(tx, command, seen, pharmacy, request.voucher_ref, tx.rules(command.caller.area_code))
    if isinstance(shown, Refused):
        return shown
    is_live = permits(Machine.ORDER, order_status(order), "settle", Role.PHARMACY) and permits(
        Machine.SETTLEMENT, claim_status(order), "commit", Role.PHARMACY
    )
    if not is_live or statement.quote_id != order.claim.quote_id:
        return seen.refuse("SETL_QUOTE_STALE", "statement.quote_id", order=order)
    if statement.lines and [_line_key(line) for line in statement.lines] != [
        (line.line_no, line.drug_code, line.quantity_e4, line.price_e6) for line in order.claim.lines
    ]:
        return seen.refuse("SETL_QUOTE_STALE", "statement.lines", order=order)
    refused = _amount_fault(seen, order, statement.amounts, order.claim.amounts)
    if refused is not None:
        return refused
    before = account.account_of(tx, seen)
    if before.balance_fen < order.claim.amounts.account_fen:
        return seen.refuse("ACCT_INSUFFICIENT", "statement.amounts.account_fen", order=order)
    totals = account.year_totals(before, tx.now_ms)
    if not _shares_stand(account.insured_rules(tx, seen), totals, order.claim.amounts):
        return seen.refuse("SETL_QUOTE_STALE", "statement.quote_id", order=order)
    claim = state_pb2.Claim()
    claim.CopyFrom(order.claim)
    claim.settlement_id = orders.new_number(tx, pharmacy.area_code)
    committed = events_pb2.SettlementCommitted(
        order_no=order.order_no,
        claim=claim,
        statement=request.statement,
        account_key=account.account_key(tx, seen),
        voucher_key=shown.voucher_key,
    )
    causes = [*account.debit(tx, seen, claim), tx.leaf(shown.voucher_key)]
    tx.emit(PRESCRIPTION, seen.key, "settlement.committed", committed, causes=causes)
    tx.emit(PRESCRIPTION, seen.key, "dispense.ready", events_pb2.DispenseReady(order_no=committed.order_no))
    reply = dispensing_pb2.SettleResponse(
        settlement_id=claim.settlement_id,
        amounts=claim.amounts,
        account_balance_fen=account.account_of(tx, seen).balance_fen,
    )
    return Accepted(reply, targets=seen.targets)


def _line_key(line: signed_pb2.SaleLine) -> tuple[int, str, int | None, int | None]:
    return (
        line.line_no,
        line.drug_code,
        orders.read_quantity_e4(line.quantity),
        orders.read_price_e6(line.unit_price),
    )


def _shares_stand(rules: Rules, totals: tuple[int, int], amounts: signed_pb2.ClaimAmounts) -> bool:
    """Whether the funds would pay the same now, with these totals of the year (`account.year_totals`).

    Another claim, or a new year, may have moved them since the quote, and so the deductible, a band or the cap.
    """
    in_scope_fen, fund_fen = totals
    benefit = rules.benefit(cum_inscope_fen=in_scope_fen, cum_fund_fen=fund_fen)
    now = claim_arithmetic.fund_shares(benefit, amounts.in_scope_fen)
    return (now.deductible_fen, now.pooled_fund_fen, now.fund_total_fen) == (
        amounts.deductible_fen,
        amounts.pooled_fund_fen,
        amounts.fund_fen,
    )


def _amount_fault(
    seen: Seen, order: state_pb2.Order, sent: signed_pb2.ClaimAmounts, computed: signed_pb2.ClaimAmounts
) -> Refused | None:
    """The first amount that differs from the hub's (T-14)."""
    for field in signed_pb2.ClaimAmounts.DESCRIPTOR.fields:
        theirs, ours = getattr(sent, field.name), getattr(computed, field.name)
        if theirs != ours:
            detail = {"sent_fen": str(theirs), "computed_fen": str(ours)}
            return seen.refuse("SETL_AMOUNT", f"statement.amounts.{field.name}", order=order, detail=detail)
    return None


def _settle_self_paid(
    tx: Draft, command: Command, step: orders.Step, order: state_pb2.Order, statement: signed_pb2.SettleStatement
) -> Outcome:
    pharmacy, seen = step
    if not permits(Machine.ORDER, order_status(order), "record a self-payment", Role.PHARMACY):
        return seen.refuse(_before_money(order), "rx_no", order=order)
    if statement.quote_id:
        return seen.refuse("INPUT_MALFORMED", "statement.quote_id", order=order)
    if not statement.lines:
        return seen.refuse("DISPENSE_MISMATCH", "statement.lines", order=order)
    lines = _priced(seen, statement.lines, "statement.lines")
    if isinstance(lines, Refused):
        return lines
    for line in lines:
        line.amount_fen = line.own_pay_fen = claim_arithmetic.line_amount_fen(line.quantity_e4, line.price_e6)
    total_fen = sum(line.amount_fen for line in lines)
    amounts = signed_pb2.ClaimAmounts(
        total_fen=total_fen, own_pay_fen=total_fen, person_fen=total_fen, cash_fen=total_fen
    )
    refused = _amount_fault(seen, order, statement.amounts, amounts)
    if refused is not None:
        return refused
    claim = state_pb2.Claim(settlement_id=orders.new_number(tx, pharmacy.area_code), amounts=amounts, lines=lines)
    paid = events_pb2.SettlementSelfPaid(order_no=order.order_no, claim=claim, statement=command.request.statement)
    tx.emit(PRESCRIPTION, seen.key, "settlement.self_paid", paid)
    tx.emit(PRESCRIPTION, seen.key, "dispense.ready", events_pb2.DispenseReady(order_no=paid.order_no))
    # No voucher was shown, so the account's balance stays between the person and his channel.
    reply = dispensing_pb2.SettleResponse(settlement_id=claim.settlement_id, amounts=amounts)
    return Accepted(reply, targets=seen.targets)


HANDLERS: Final[Mapping[str, Handler]] = {
    "DispensingService/QuoteSettlement": quote,
    "DispensingService/Settle": settle,
}

LOOK_AHEADS: Final[Mapping[str, LookAhead]] = {
    "DispensingService/QuoteSettlement": _ahead_of_quote,
    "DispensingService/Settle": _ahead_of_settle,
}
