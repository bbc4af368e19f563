"""Decisions about goods at the counter: dispense (pick, check, out), void, hand over.

Owns what may leave the shelf, for whom and under whose signatures. One Dispense call is refused as a whole or done as a
whole. It never moves money, and what is out never comes back here: that is a return.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Final

from erxhub.core import guards, orders
from erxhub.core.consequences import cancel_delivery, current, end_effective, statuses
from erxhub.core.keys import trace_code_key
from erxhub.core.lifecycle import Machine, Role, permits
from erxhub.core.model import Accepted, Ahead, Command, Draft, Handler, LookAhead, Outcome, Refused, Target
from erxhub.core.orders import PRESCRIPTION, WHOLE_E4, Seen, claim_status, order_status
from erxhub.core.statuses import state_name
from erxhub.policy.pack import china_date
from erxhub.policy.rules import Rules
from erxhub.v1 import dispensing_pb2, events_pb2, registry_pb2, signed_pb2, state_pb2

STAFF_KINDS: Final = (registry_pb2.PRACTITIONER_KIND_DISPENSER, registry_pb2.PRACTITIONER_KIND_PHARMACIST)
"""Who may pick, check and hand over."""

INSURED: Final = frozenset({"SETTLED"})
"""Settlement states of a sale that the fund pays for; a self-payment has another."""

_DUPLICATE: Final = "trace_code.duplicate_detected"


# ---- dispense ----


def dispense(tx: Draft, command: Command) -> Outcome:
    """Pick, check and take out the goods of a settled order, as a whole (销售出库, X-16).

    Leaves `trace_code.sold` for each code, `dispense.picked`, `dispense.checked`, `dispense.outbound`,
    `prescription.used` and, when nothing is left, `prescription.exhausted` with the end of what hung on it.
    Refusals: SIG_*, RX_TIME, INPUT_MALFORMED, INST_CODE, INST_IMPERSONATION, INST_UNKNOWN, AGR_INACTIVE, RX_UNKNOWN,
    PSN_INACTIVE, RX_ALREADY_USED, RX_NOT_EFFECTIVE, ORDER_HOLD_LOST, REVIEW_REQUIRED, SETL_REQUIRED, REVIEW_PHARMACIST,
    DR_NOT_ALLOWED, DISPENSE_DOUBLE_SIGN, DISPENSE_MISMATCH, BATCH_EXPIRED, TRACE_MISSING, TRACE_INVALID,
    TRACE_DUPLICATE.
    """
    claimed = orders.claimed(command, signed_pb2.DispenseStatement)
    if isinstance(claimed, Refused):
        return claimed
    step = orders.forward(tx, command, claimed.rx_no)
    if isinstance(step, Refused):
        return step
    pharmacy, seen = step
    statement = orders.proven_by_seal(tx, command, signed_pb2.DispenseStatement, seen.targets)
    if isinstance(statement, Refused):
        return statement
    order = orders.fillable(seen) or orders.holding(seen)
    if isinstance(order, Refused):
        return order
    rules = tx.rules(command.caller.area_code)
    refused = (
        orders.replayed(tx, seen, order, statement.signed_at_ms, order.downloaded_at_ms)
        or _not_paid(seen, order, statement)
        or _staff_fault(tx, seen, order, statement, rules)
        or _quantity_fault(seen, order, statement)
        or _lot_fault(tx, seen, order, statement, rules)
        or _sold_before(tx, seen, order, statement)
    )
    if refused is not None:
        return refused
    return _out(tx, command, seen, pharmacy, order.order_no, statement)


def _ahead_of_dispense(command: Command) -> Ahead:
    claimed = orders.claimed(command, signed_pb2.DispenseStatement)
    if isinstance(claimed, Refused):
        return Ahead()
    staff = [("practitioner", code.encode()) for code in (claimed.dispenser_code, claimed.checker_code)]
    code_keys = [trace_code_key(code) for lot in claimed.lots for code in lot.trace_codes]
    return orders.ahead(command, claimed.rx_no, [*staff, *orders.key_names(command)], streams=code_keys)


def _not_paid(seen: Seen, order: state_pb2.Order, statement: signed_pb2.DispenseStatement) -> Refused | None:
    """The review is passed and the sale is settled or self-paid (I3, I4); an insured sale names its settlement."""
    if permits(Machine.ORDER, order_status(order), "review passed", Role.PHARMACIST):
        return seen.refuse("REVIEW_REQUIRED", "rx_no", order=order)
    is_paid = permits(Machine.ORDER, order_status(order), "goods out", Role.DISPENSER)
    if not is_paid or not permits(Machine.DISPENSE, orders.dispense_status(order), "pick", Role.DISPENSER):
        return seen.refuse("SETL_REQUIRED", "rx_no", order=order)
    named = statement.settlement_id
    if named == order.claim.settlement_id or (not named and claim_status(order) not in INSURED):
        return None
    return seen.refuse("SETL_REQUIRED", "statement.settlement_id", order=order)


def _staff_fault(
    tx: Draft, seen: Seen, order: state_pb2.Order, statement: signed_pb2.DispenseStatement, rules: Rules
) -> Refused | None:
    """Reviewer, dispenser and checker are who they have to be, and two persons sign (I17)."""
    if statement.reviewer_code != order.reviewer_code:
        return seen.refuse("REVIEW_PHARMACIST", "statement.reviewer_code", order=order)
    for code, field in (
        (statement.dispenser_code, "statement.dispenser_code"),
        (statement.checker_code, "statement.checker_code"),
    ):
        found = guards.practitioner(tx, code, STAFF_KINDS, seen.pharmacy_code, "DR_NOT_ALLOWED", field)
        if isinstance(found, Refused):
            return guards.about(found, *seen.targets)
    if statement.dispenser_code == statement.checker_code and not rules.flag("single_shift_double_sign"):
        return seen.refuse("DISPENSE_DOUBLE_SIGN", "statement.checker_code", order=order)
    if statement.dispenser_code == statement.reviewer_code and not rules.flag("reviewer_may_dispense"):
        return seen.refuse("DISPENSE_DOUBLE_SIGN", "statement.dispenser_code", order=order)
    return None


def _quantity_fault(seen: Seen, order: state_pb2.Order, statement: signed_pb2.DispenseStatement) -> Refused | None:
    """The lots of each line add up to exactly what was paid (M21)."""
    paid = {line.line_no: line for line in order.claim.lines}
    out_e4 = dict.fromkeys(paid, 0)
    for place, lot in enumerate(statement.lots):
        path = f"statement.lots[{place}]"
        quantity_e4 = orders.read_quantity_e4(lot.quantity)
        if quantity_e4 is None:
            return seen.refuse("INPUT_MALFORMED", f"{path}.quantity", order=order)
        line = paid.get(lot.line_no)
        if line is None:
            return seen.refuse("DISPENSE_MISMATCH", f"{path}.line_no", order=order)
        if line.drug_code != lot.drug_code:
            return seen.refuse("DISPENSE_MISMATCH", f"{path}.drug_code", order=order)
        if not quantity_e4:
            return seen.refuse("DISPENSE_MISMATCH", f"{path}.quantity", order=order)
        out_e4[lot.line_no] += quantity_e4
    for line_no, line in paid.items():
        if out_e4[line_no] != line.quantity_e4:
            detail = {
                "line_no": str(line_no),
                "paid": orders.quantity_text(line.quantity_e4),
                "out": orders.quantity_text(out_e4[line_no]),
            }
            return seen.refuse("DISPENSE_MISMATCH", "statement.lots", order=order, detail=detail)
    return None


def _lot_fault(
    tx: Draft, seen: Seen, order: state_pb2.Order, statement: signed_pb2.DispenseStatement, rules: Rules
) -> Refused | None:
    """No lot has expired, and each pack has its own well-formed trace code where one is needed (P-19, P-20)."""
    today = china_date(tx.now_ms)
    is_insured = claim_status(order) in INSURED
    needs_codes = is_insured and rules.flag("trace_codes_required")
    scanned: set[str] = set()
    for place, lot in enumerate(statement.lots):
        path = f"statement.lots[{place}]"
        last_day = _day(lot.expires_on)
        if last_day is None:
            return seen.refuse("INPUT_MALFORMED", f"{path}.expires_on", order=order)
        if last_day < today:
            return seen.refuse("BATCH_EXPIRED", f"{path}.expires_on", order=order)
        codes = list(lot.trace_codes)
        if not codes and needs_codes and not lot.without_code:
            return seen.refuse("TRACE_MISSING", f"{path}.trace_codes", order=order)
        if not codes:
            continue
        packs = -(-(orders.read_quantity_e4(lot.quantity) or 0) // WHOLE_E4)
        if lot.without_code or len(codes) != packs:
            detail = {"packs": str(0 if lot.without_code else packs), "codes": str(len(codes))}
            return seen.refuse("TRACE_INVALID", f"{path}.trace_codes", order=order, detail=detail)
        for number, code in enumerate(codes):
            if code in scanned or not rules.has_form("trace_code_forms", code):
                return seen.refuse("TRACE_INVALID", f"{path}.trace_codes[{number}]", order=order)
            scanned.add(code)
    return None


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _codes(statement: signed_pb2.DispenseStatement) -> Iterator[tuple[str, str, str]]:
    """(field path, trace code, drug code) of every pack."""
    for place, lot in enumerate(statement.lots):
        for number, code in enumerate(lot.trace_codes):
            yield f"statement.lots[{place}].trace_codes[{number}]", code, lot.drug_code


def _sold_before(
    tx: Draft, seen: Seen, order: state_pb2.Order, statement: signed_pb2.DispenseStatement
) -> Refused | None:
    """No code was sold or quarantined before (I9, M17); the refusal is also about the code."""
    for field, code, _ in _codes(statement):
        key = trace_code_key(code)
        known = tx.state(key, state_pb2.TraceCodeState)
        if permits(Machine.TRACE_CODE, state_name(Machine.TRACE_CODE, known.status if known else 0), "sell", Role.HUB):
            continue
        refused = seen.refuse("TRACE_DUPLICATE", field, order=order)
        return dataclasses.replace(refused, targets=(Target(key), *refused.targets), entry=_DUPLICATE)
    return None


def _out(
    tx: Draft,
    command: Command,
    seen: Seen,
    pharmacy: state_pb2.InstitutionState,
    order_no: str,
    statement: signed_pb2.DispenseStatement,
) -> Accepted:
    key = seen.key
    # Picked and checked come before it.
    outbound_version = tx.version(key) + 3
    causes: list[bytes | tuple[bytes, int]] = []
    for _, code, drug_code in _codes(statement):
        code_key = trace_code_key(code)
        sold = events_pb2.TraceCodeSold(
            drug_code=drug_code, pharmacy_code=seen.pharmacy_code, rx_key=key, rx_version=outbound_version
        )
        tx.emit("trace_code", code_key, "trace_code.sold", sold)
        causes.append((code_key, tx.version(code_key)))
    dispenser, checker = statement.dispenser_code, statement.checker_code
    picked = events_pb2.DispensePicked(order_no=order_no, dispenser_code=dispenser)
    tx.emit(PRESCRIPTION, key, "dispense.picked", picked, actor=dispenser)
    checked = events_pb2.DispenseChecked(order_no=order_no, checker_code=checker)
    tx.emit(PRESCRIPTION, key, "dispense.checked", checked, actor=checker)
    outbound = events_pb2.DispenseOutbound(
        order_no=order_no,
        sale_no=orders.new_number(tx, pharmacy.area_code),
        statement=command.request.statement,
        lots=statement.lots,
    )
    tx.emit(PRESCRIPTION, key, "dispense.outbound", outbound, causes=causes)
    after = current(tx, key)
    is_partial = any(use.out_e4 < orders.prescribed_e4(after, use) for use in after.lines)
    tx.emit(PRESCRIPTION, key, "prescription.used", events_pb2.PrescriptionUsed(partial=is_partial))
    if not is_partial:
        end_effective(tx, key)
        tx.emit(PRESCRIPTION, key, "prescription.exhausted", events_pb2.PrescriptionExhausted())
    reply = dispensing_pb2.DispenseResponse(statuses=statuses(current(tx, key)), sale_no=outbound.sale_no)
    return Accepted(reply, targets=seen.targets)


# ---- void ----


def void(tx: Draft, command: Command) -> Outcome:
    """Void a dispensing before goods are out (调配作废); what then remains is undo or reversal.

    Leaves `dispense.voided`, and `delivery.cancelled` for a delivery that was asked for.
    Refusals: INST_UNKNOWN, RX_UNKNOWN, SETL_NOT_REVERSIBLE (goods are out), SETL_REQUIRED (nothing to void).
    """
    request: dispensing_pb2.VoidDispenseRequest = command.request
    orders.want(tx, command, request.rx_no)
    step = orders.finishing(tx, command, request.rx_no)
    if isinstance(step, Refused):
        return step
    seen = step.seen
    order = next(
        (
            order
            for order in seen.own_orders()
            if permits(Machine.DISPENSE, orders.dispense_status(order), "void", Role.PHARMACY)
        ),
        None,
    )
    if order is None:
        out = [order for order in seen.own_orders() if order.claim.goods_out]
        if out:
            return seen.refuse("SETL_NOT_REVERSIBLE", "rx_no", order=out[-1])
        return seen.refuse("SETL_REQUIRED", "rx_no")
    voided = events_pb2.DispenseVoided(order_no=order.order_no, reason=request.reason)
    cancel_delivery(tx, seen.key, order, "dispensing voided")
    tx.emit(PRESCRIPTION, seen.key, "dispense.voided", voided)
    return Accepted(dispensing_pb2.VoidDispenseResponse(), targets=seen.targets)


# ---- hand over ----


def hand_over(tx: Draft, command: Command) -> Outcome:
    """Hand the goods to the patient or his delegate at the counter (取药交付), proven by a voucher reference.

    Leaves `delivery.cancelled` when a delivery was asked for, then `dispense.handed_over`. With several orders waiting
    the oldest goes first.
    Refusals: SIG_*, RX_TIME, INPUT_MALFORMED, INST_CODE, INST_IMPERSONATION, INST_UNKNOWN, AGR_INACTIVE, RX_UNKNOWN,
    PSN_INACTIVE, DR_NOT_ALLOWED, DLV_NOT_OUT, DLV_BACKWARD (with the courier, or handed over), ORDER_HOLD_LOST, VCH_*.
    """
    request: dispensing_pb2.HandOverRequest = command.request
    claimed = orders.claimed(command, signed_pb2.HandOverStatement)
    if isinstance(claimed, Refused):
        return claimed
    step = orders.forward(tx, command, claimed.rx_no)
    if isinstance(step, Refused):
        return step
    seen = step.seen
    statement = orders.proven_by_seal(tx, command, signed_pb2.HandOverStatement, seen.targets)
    if isinstance(statement, Refused):
        return statement
    if statement.staff_code:
        found = guards.practitioner(
            tx, statement.staff_code, STAFF_KINDS, seen.pharmacy_code, "DR_NOT_ALLOWED", "statement.staff_code"
        )
        if isinstance(found, Refused):
            return guards.about(found, *seen.targets)
    order = _waiting(seen)
    if isinstance(order, Refused):
        return order
    # Goods of two orders may wait at once, so the later hand-over is one that was signed after the earlier.
    handed_over_at_ms = max(each.handed_over_at_ms for each in seen.own_orders())
    not_before_ms = max(order.downloaded_at_ms, handed_over_at_ms)
    refused = orders.replayed(tx, seen, order, statement.signed_at_ms, not_before_ms)
    if refused is not None:
        return refused
    business_type = tx.rules(command.caller.area_code).text("business_type_hand_over")
    shown = orders.same_person(tx, command, seen, request.voucher_ref, (business_type,))
    if isinstance(shown, Refused):
        return shown
    handed_over = events_pb2.HandedOver(
        order_no=order.order_no, statement=request.statement, voucher_key=shown.voucher_key
    )
    cancel_delivery(tx, seen.key, order, "handed over at the counter")
    tx.emit(
        PRESCRIPTION,
        seen.key,
        "dispense.handed_over",
        handed_over,
        actor=statement.staff_code,
        causes=[tx.leaf(shown.voucher_key)],
    )
    return Accepted(dispensing_pb2.HandOverResponse(), targets=seen.targets)


def _ahead_of_hand_over(command: Command) -> Ahead:
    claimed = orders.claimed(command, signed_pb2.HandOverStatement)
    if isinstance(claimed, Refused):
        return Ahead()
    names = orders.key_names(command)
    if claimed.staff_code:
        names.append(("practitioner", claimed.staff_code.encode()))
    return orders.ahead(command, claimed.rx_no, names, voucher_ref=command.request.voucher_ref)


def _waiting(seen: Seen) -> state_pb2.Order | Refused:
    """The caller's oldest order whose goods wait at the counter."""
    own = seen.own_orders()
    for order in own:
        if permits(Machine.DISPENSE, orders.dispense_status(order), "hand over", Role.PHARMACY) and permits(
            Machine.ORDER, order_status(order), "hand over", Role.PHARMACY
        ):
            return order
    held = seen.held_order()
    if held is not None:
        return seen.refuse("DLV_NOT_OUT", "rx_no", order=held, detail={"missing_step": "goods out"})
    gone = [order for order in own if order.claim.goods_out]
    if gone:
        return seen.refuse("DLV_BACKWARD", "rx_no", order=gone[-1])
    return seen.refuse("ORDER_HOLD_LOST", "rx_no")


HANDLERS: Final[Mapping[str, Handler]] = {
    "DispensingService/Dispense": dispense,
    "DispensingService/VoidDispense": void,
    "DispensingService/HandOver": hand_over,
}

LOOK_AHEADS: Final[Mapping[str, LookAhead]] = {
    "DispensingService/Dispense": _ahead_of_dispense,
    "DispensingService/HandOver": _ahead_of_hand_over,
}
