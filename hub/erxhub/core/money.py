"""Decisions about money: quote, settle, record a self-payment, undo, reverse.

Owns which amounts the hub stands for and how they are given back. The hub computes and a client's amounts are only
compared (T-14); the arithmetic itself is `settlement`'s. It never hands out goods, and what is out it never takes back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from google.protobuf.message import Message

from erxhub.core import guards, orders, settlement
from erxhub.core.consequences import after_hold_ended, current, end_with_order, statuses
from erxhub.core.fold import state_name
from erxhub.core.lifecycle import WITHDRAWABLE, Machine, Role, permits
from erxhub.core.model import Accepted, Command, Draft, Handler, Outcome, Refused
from erxhub.core.orders import PRESCRIPTION, Seen, claim_status, order_status
from erxhub.policy.pack import china_date
from erxhub.policy.rules import Rules
from erxhub.v1 import dispensing_pb2, events_pb2, registry_pb2, signed_pb2, state_pb2

LINE_AMOUNT_MAX_FEN: Final = 100_000_000_000
"""The largest amount of a line, as on a prescription: a larger one is a slip, and sums stay far from 64 bits."""

PRESCRIPTIONS_LOOKED_AT: Final = 50
"""A reversal looks for its settlement among so many of the person's newest prescriptions; it follows within minutes."""

SETTLE: Final = "DispensingService/Settle"
UNDO: Final = "DispensingService/UndoSettlement"

REVERSIBLE: Final[Mapping[str, str]] = {"2102": SETTLE, "2103": UNDO}
"""National numbers of what a pharmacy may reverse (T-21), with the call behind each."""

_NO_APPROVAL: Final = "0"
_FEN_E6: Final = 10_000


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
        if settlement.line_amount_fen(quantity_e4, price_e6) > LINE_AMOUNT_MAX_FEN:
            return seen.refuse("INPUT_MALFORMED", f"{path}.unit_price")
        priced[line.line_no] = state_pb2.ClaimLine(
            line_no=line.line_no, drug_code=line.drug_code, quantity_e4=quantity_e4, price_e6=price_e6
        )
    return list(priced.values())


def _with_classes(tx: Draft, seen: Seen, lines: Sequence[state_pb2.ClaimLine]) -> list[settlement.ChargeLine] | Refused:
    """The lines with what the catalogue in force and the hospital's approval say of them. Refusals: DRUG_UNKNOWN."""
    approvals = {line.line_no: line.approval_flag or _NO_APPROVAL for line in seen.rx.content.lines}
    charged = []
    for place, line in enumerate(lines):
        drug = orders.drug_of(tx, line.drug_code)
        if drug is None:
            return seen.refuse("DRUG_UNKNOWN", f"lines[{place}].drug_code")
        line.charge_class = drug.charge_class
        charged.append(
            settlement.ChargeLine(
                charge_level=drug.charge_class,
                quantity_e4=line.quantity_e4,
                price_e6=line.price_e6,
                prior_ratio=settlement.parse_ratio(drug.prior_pay_ratio),
                payment_standard_e6=(
                    settlement.parse_price_e6(drug.payment_standard) if drug.payment_standard else None
                ),
                self_paid=settlement.self_paid_by_approval(bool(drug.limits), approvals[line.line_no]),
            )
        )
    return charged


def _keep_amounts(lines: Iterable[state_pb2.ClaimLine], computed: settlement.Claim) -> None:
    for line, amounts in zip(lines, computed.lines, strict=True):
        line.amount_fen = amounts.amount_fen
        line.own_pay_fen = amounts.own_pay_fen
        line.over_limit_fen = amounts.over_limit_fen
        line.prior_self_pay_fen = amounts.prior_self_pay_fen
        line.in_scope_fen = amounts.in_scope_fen


def _amounts(computed: settlement.Claim) -> signed_pb2.ClaimAmounts:
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


# ---- the person's account ----


def _account(tx: Draft, seen: Seen) -> tuple[bytes, state_pb2.AccountState]:
    key = guards.person(tx, seen.rx.person_key).account_key
    account = tx.state(key, state_pb2.AccountState)
    assert account is not None, "every registered person has an account"
    return key, account


def _insured_rules(tx: Draft, seen: Seen) -> Rules:
    """The pool that pays is the person's, wherever he buys."""
    return tx.rules(guards.person(tx, seen.rx.person_key).insured_area_code)


def _moves_account(amounts: signed_pb2.ClaimAmounts) -> bool:
    return bool(amounts.account_fen or amounts.in_scope_fen or amounts.pooled_fund_fen)


def _debit(tx: Draft, seen: Seen, claim: state_pb2.Claim) -> list[bytes | tuple[bytes, int]]:
    """Take the claim's part from the account and its year totals; the event's place, as a cause of the next one.

    Call it right before the prescription's event: the payload names that event's version.
    """
    return _move_account(tx, seen, claim, "account.debited", events_pb2.AccountDebited())


def _restore(tx: Draft, seen: Seen, claim: state_pb2.Claim) -> list[bytes | tuple[bytes, int]]:
    """Give back exactly what `_debit` took (I20)."""
    return _move_account(tx, seen, claim, "account.restored", events_pb2.AccountRestored())


def _move_account(
    tx: Draft,
    seen: Seen,
    claim: state_pb2.Claim,
    event: str,
    payload: events_pb2.AccountDebited | events_pb2.AccountRestored,
) -> list[bytes | tuple[bytes, int]]:
    if not _moves_account(claim.amounts):
        return []
    key, _ = _account(tx, seen)
    payload.amount_fen = claim.amounts.account_fen
    payload.in_scope_fen = claim.amounts.in_scope_fen
    payload.fund_fen = claim.amounts.pooled_fund_fen
    payload.settlement_id = claim.settlement_id
    payload.rx_key = seen.key
    payload.rx_version = tx.version(seen.key) + 1
    tx.emit("account", key, event, payload)
    return [(key, tx.version(key))]


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
    orders.want(tx, command, request.rx_no, tx.secret_names("voucher_ref", request.voucher_ref))
    step = orders.forward(tx, command, request.rx_no, with_drugs=True)
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
    _, account = _account(tx, seen)
    benefit = _insured_rules(tx, seen).benefit(
        cum_inscope_fen=account.in_scope_year_fen, cum_fund_fen=account.fund_year_fen
    )
    computed = settlement.compute(charged, benefit, account.balance_fen if request.use_account else 0)
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
        return orders.about(refused, seen.targets)
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
    request: dispensing_pb2.SettleRequest = command.request
    claimed = orders.claimed(command, signed_pb2.SettleStatement)
    if isinstance(claimed, Refused):
        return claimed
    refused = guards.own_institution(command, claimed.pharmacy_code, "statement.pharmacy_code")
    if refused is not None:
        return refused
    voucher_names = tx.secret_names("voucher_ref", request.voucher_ref) if request.voucher_ref else []
    orders.want(tx, command, claimed.rx_no, [*voucher_names, *orders.key_names(command)])
    step = orders.forward(tx, command, claimed.rx_no)
    if isinstance(step, Refused):
        return step
    statement = orders.proven_by_seal(tx, command, signed_pb2.SettleStatement, step.seen.targets)
    if isinstance(statement, Refused):
        return statement
    order = orders.fillable(step.seen) or orders.holding(step.seen)
    if isinstance(order, Refused):
        return order
    if statement.pay_mode == signed_pb2.PAY_MODE_INSURED:
        return _settle_quote(tx, command, step, order, statement)
    return _settle_self_paid(tx, command, step, order, statement)


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
    account_key, account = _account(tx, seen)
    if account.balance_fen < order.claim.amounts.account_fen:
        return seen.refuse("ACCT_INSUFFICIENT", "statement.amounts.account_fen", order=order)
    if not _shares_stand(_insured_rules(tx, seen), account, order.claim.amounts):
        return seen.refuse("SETL_QUOTE_STALE", "statement.quote_id", order=order)
    claim = state_pb2.Claim()
    claim.CopyFrom(order.claim)
    claim.settlement_id = orders.new_number(tx, pharmacy.area_code)
    committed = events_pb2.SettlementCommitted(
        order_no=order.order_no,
        claim=claim,
        statement=request.statement,
        account_key=account_key,
        voucher_key=shown.voucher_key,
    )
    causes = [*_debit(tx, seen, claim), tx.leaf(shown.voucher_key)]
    tx.emit(PRESCRIPTION, seen.key, "settlement.committed", committed, causes=causes)
    tx.emit(PRESCRIPTION, seen.key, "dispense.ready", events_pb2.DispenseReady(order_no=committed.order_no))
    _, account = _account(tx, seen)
    reply = dispensing_pb2.SettleResponse(
        settlement_id=claim.settlement_id, amounts=claim.amounts, account_balance_fen=account.balance_fen
    )
    return Accepted(reply, targets=seen.targets)


def _line_key(line: signed_pb2.SaleLine) -> tuple[int, str, int | None, int | None]:
    return (
        line.line_no,
        line.drug_code,
        orders.read_quantity_e4(line.quantity),
        orders.read_price_e6(line.unit_price),
    )


def _shares_stand(rules: Rules, account: state_pb2.AccountState, amounts: signed_pb2.ClaimAmounts) -> bool:
    """Whether the funds would pay the same now.

    Another claim may have moved the year's totals since the quote, and so the deductible, a band or the cap. The funds
    depend on the in-scope amount alone, so one line of that amount stands for all.
    """
    benefit = rules.benefit(cum_inscope_fen=account.in_scope_year_fen, cum_fund_fen=account.fund_year_fen)
    whole = settlement.ChargeLine("01", orders.WHOLE_E4, amounts.in_scope_fen * _FEN_E6)
    now = settlement.compute([whole], benefit, 0)
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
        line.amount_fen = line.own_pay_fen = settlement.line_amount_fen(line.quantity_e4, line.price_e6)
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


# ---- undo ----


def undo(tx: Draft, command: Command) -> Outcome:
    """Give a settlement back, as a business act, before goods are out and on the same day in China (2103).

    Leaves `account.restored` when the claim had moved the account, `settlement.undone`, `dispense.voided`,
    `order.released`; a requested withdrawal takes effect then (`prescription.undone`).
    Refusals: INST_UNKNOWN, RX_UNKNOWN, SETL_TERMINAL (no such settlement here, given back already, or another day),
    SETL_NOT_REVERSIBLE.
    """
    request: dispensing_pb2.UndoSettlementRequest = command.request
    orders.want(tx, command, request.rx_no)
    step = orders.giving_back(tx, command, request.rx_no)
    if isinstance(step, Refused):
        return step
    seen = step.seen
    order = next((order for order in seen.own_orders() if order.claim.settlement_id == request.settlement_id), None)
    refused = _not_returnable(seen, order, "undo", "settlement_id")
    if refused is not None or order is None:
        return refused or seen.refuse("SETL_TERMINAL", "settlement_id")
    if tx.rules(command.caller.area_code).flag("undo_same_day") and china_date(tx.now_ms) != china_date(
        order.claim.settled_at_ms
    ):
        return seen.refuse("SETL_TERMINAL", "settlement_id", order=order, detail={"undo_until": "same day"})
    order_no, claim = order.order_no, state_pb2.Claim()
    claim.CopyFrom(order.claim)
    account_key = guards.person(tx, seen.rx.person_key).account_key
    causes = _restore(tx, seen, claim)
    undone = events_pb2.SettlementUndone(
        order_no=order_no,
        settlement_id=claim.settlement_id,
        reason=request.reason,
        undo_request_id=command.request_id,
        account_version=tx.version(account_key),
    )
    tx.emit(PRESCRIPTION, seen.key, "settlement.undone", undone, causes=causes)
    _end_settled(tx, seen, order_no, "settlement undone")
    reply = dispensing_pb2.UndoSettlementResponse(statuses=statuses(current(tx, seen.key)))
    return Accepted(reply, targets=seen.targets)


def _not_returnable(seen: Seen, order: state_pb2.Order | None, trigger: str, field: str) -> Refused | None:
    if order is None:
        return seen.refuse("SETL_TERMINAL", field)
    if not permits(Machine.SETTLEMENT, claim_status(order), trigger, Role.PHARMACY):
        detail = {"settlement": claim_status(order)}
        return seen.refuse("SETL_TERMINAL", field, order=order, detail=detail)
    if not permits(Machine.ORDER, order_status(order), "undo or reversal before goods out", Role.PHARMACY):
        return seen.refuse("SETL_NOT_REVERSIBLE", field, order=order)
    return None


def _end_settled(tx: Draft, seen: Seen, order_no: str, reason: str) -> None:
    """End the dispensing and the order whose settlement was given back."""
    order = _order(tx, seen.key, order_no)
    if permits(Machine.DISPENSE, orders.dispense_status(order), "void", Role.HUB):
        voided = events_pb2.DispenseVoided(order_no=order_no, reason=reason)
        tx.emit(PRESCRIPTION, seen.key, "dispense.voided", voided)
    end_with_order(tx, seen.key, order_no, reason)
    released = events_pb2.OrderReleased(order_no=order_no, reason=reason)
    tx.emit(PRESCRIPTION, seen.key, "order.released", released)
    after_hold_ended(tx, seen.key)


def _order(tx: Draft, rx_key: bytes, order_no: str) -> state_pb2.Order:
    return next(order for order in current(tx, rx_key).orders if order.order_no == order_no)


# ---- reverse ----


def reverse(tx: Draft, command: Command) -> Outcome:
    """Repair an unknown outcome by naming the original request (2601, T-21). The stored outcome decides, never a guess.

    A settlement that was accepted is given back; an undo that was accepted is cancelled and the settlement stands
    again; a request that never was accepted can never be from now on (`settlement.reversed` in the institution's
    stream). Leaves `account.restored` or `account.debited` when money moves, and what ends or begins again with it.
    Refusals: SETL_TERMINAL (another kind of transaction, reversed or given back before, or what the undo restored was
    used since), INST_UNKNOWN, INPUT_MALFORMED (another person's), SETL_NOT_REVERSIBLE.
    """
    request: dispensing_pb2.ReverseSettlementRequest = command.request
    method = REVERSIBLE.get(request.original_transaction)
    if method is None:
        return Refused("SETL_TERMINAL", field="original_transaction")
    if request.original_request_id == command.request_id:
        return Refused("SETL_TERMINAL", field="original_request_id")
    pharmacy_name = ("institution", command.caller.id.encode())
    tx.want(names=[pharmacy_name, *(tx.secret_names("person", request.person_no) if request.person_no else ())])
    pharmacy = guards.institution(tx, command.caller.id)
    if isinstance(pharmacy, Refused):
        return pharmacy
    original = tx.reply(request.original_request_id)
    if original is None:
        return _reverse_nothing(tx, command)
    if original.method != method:
        return Refused("SETL_TERMINAL", field="original_request_id")
    found = _settled_by(tx, command, original.stream_key)
    if found is None:
        return Refused("SETL_TERMINAL", field="original_request_id")
    seen, order = found
    if request.person_no and tx.find_secret("person", request.person_no) != seen.rx.person_key:
        return seen.refuse("INPUT_MALFORMED", "person_no")
    if method == UNDO:
        return _reverse_undo(tx, command, seen, order)
    return _reverse_settlement(tx, command, seen, order)


def _reverse_nothing(tx: Draft, command: Command) -> Accepted:
    request: dispensing_pb2.ReverseSettlementRequest = command.request
    key = tx.find("institution", command.caller.id.encode())
    assert key is not None
    payload = events_pb2.SettlementReversed(
        target=events_pb2.REVERSAL_OF_NONE, original_request_id=request.original_request_id
    )
    tx.emit("institution", key, "settlement.reversed", payload)
    reply = dispensing_pb2.ReverseSettlementResponse(target=dispensing_pb2.REVERSAL_TARGET_NONE)
    return Accepted(reply, taken_request_id=request.original_request_id)


def _settled_by(tx: Draft, command: Command, stream_key: bytes) -> tuple[Seen, state_pb2.Order] | None:
    """The caller's order that the original request settled or gave back.

    The request's first entry is the account's when money moved, the prescription's otherwise.
    """
    first = tx.state(stream_key, Message)
    candidates = [stream_key] if isinstance(first, state_pb2.PrescriptionState) else []
    if isinstance(first, state_pb2.AccountState):
        candidates = tx.listing("person_rx", first.person_key, PRESCRIPTIONS_LOOKED_AT)
        tx.want(streams=candidates)
    original = command.request.original_request_id
    for key in candidates:
        seen = Seen(key, current(tx, key), command.caller.id)
        for order in seen.own_orders():
            if original in (order.claim.settle_request_id, order.claim.undo_request_id):
                return seen, order
    return None


def _reverse_settlement(tx: Draft, command: Command, seen: Seen, order: state_pb2.Order) -> Outcome:
    refused = _not_returnable(seen, order, "reverse", "original_request_id")
    if refused is not None:
        return refused
    order_no, claim = order.order_no, state_pb2.Claim()
    claim.CopyFrom(order.claim)
    causes = _restore(tx, seen, claim)
    reversed_ = events_pb2.SettlementReversed(
        order_no=order_no,
        settlement_id=claim.settlement_id,
        target=events_pb2.REVERSAL_OF_SETTLEMENT,
        original_request_id=command.request.original_request_id,
    )
    tx.emit(PRESCRIPTION, seen.key, "settlement.reversed", reversed_, causes=causes)
    _end_settled(tx, seen, order_no, "settlement reversed")
    reply = dispensing_pb2.ReverseSettlementResponse(
        target=dispensing_pb2.REVERSAL_TARGET_SETTLEMENT, settlement_id=claim.settlement_id
    )
    return Accepted(reply, targets=seen.targets)


def _reverse_undo(tx: Draft, command: Command, seen: Seen, order: state_pb2.Order) -> Outcome:
    account_key = guards.person(tx, seen.rx.person_key).account_key
    remaining = {use.line_no: orders.remaining_e4(seen.rx, use) for use in seen.rx.lines}
    may_stand_again = all(_undo_is_untouched(tx, seen, order, account_key)) and all(
        line.quantity_e4 <= remaining[line.line_no] for line in order.claim.lines
    )
    if not may_stand_again:
        detail = {"settlement": claim_status(order)}
        return seen.refuse("SETL_TERMINAL", "original_request_id", order=order, detail=detail)
    order_no, claim = order.order_no, state_pb2.Claim()
    claim.CopyFrom(order.claim)
    causes = _debit(tx, seen, claim)
    reversed_ = events_pb2.SettlementReversed(
        order_no=order_no,
        settlement_id=claim.settlement_id,
        target=events_pb2.REVERSAL_OF_UNDO,
        original_request_id=command.request.original_request_id,
    )
    tx.emit(PRESCRIPTION, seen.key, "settlement.reversed", reversed_, causes=causes)
    tx.emit(PRESCRIPTION, seen.key, "dispense.ready", events_pb2.DispenseReady(order_no=order_no))
    reply = dispensing_pb2.ReverseSettlementResponse(
        target=dispensing_pb2.REVERSAL_TARGET_UNDO, settlement_id=claim.settlement_id
    )
    return Accepted(reply, targets=seen.targets)


def _undo_is_untouched(tx: Draft, seen: Seen, order: state_pb2.Order, account_key: bytes) -> Iterator[bool]:
    """The conditions under which an undone settlement may stand again."""
    yield permits(Machine.SETTLEMENT, claim_status(order), "reverse the undo", Role.PHARMACY)
    yield permits(Machine.ORDER, order_status(order), "undo reversed", Role.PHARMACY)
    # Nobody holds the prescription and something of it is left.
    yield permits(Machine.USE, state_name(Machine.USE, seen.rx.use_status), "undo reversed", Role.PHARMACY)
    yield orders.is_in_force(seen.rx) and not seen.rx.undo_requested
    # A self-payment is no transaction of the fund, so neither it nor its undo can be reversed.
    yield bool(order.claim.quote_id)
    # What was given back was not used since.
    yield tx.version(account_key) == order.claim.account_version_after_undo


HANDLERS: Final[Mapping[str, Handler]] = {
    "DispensingService/QuoteSettlement": quote,
    "DispensingService/Settle": settle,
    "DispensingService/UndoSettlement": undo,
    "DispensingService/ReverseSettlement": reverse,
}
