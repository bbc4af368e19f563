"""The gaps of a chain: THE table of GAP_ codes, each with the one question that finds it.

Owns when a chain has a gap. Every function answers for its own gap alone, so several may hold at once; none raises for
a damaged entry. Names of invariants (I1–I25) and rules (P-, T-, X-) are those of the domain documents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Final

from erxhub.audit import signatures
from erxhub.audit.chain import SETTLED, Chain, Finding, Reason, Record, VoucherUse, sales_of_code
from erxhub.audit.sales import Sale
from erxhub.core.claim_arithmetic import line_amount_fen, parse_quantity_e4
from erxhub.policy.rules import Rules
from erxhub.v1 import common_pb2, events_pb2, state_pb2

SIGNATURE_REASONS: Final = frozenset({Reason.SIGNATURE, Reason.SIGNING_KEY, Reason.DIGEST, Reason.REUSED, Reason.FILE})
"""Findings that mean an altered prescription or a wrong signer; every other finding is a broken chain."""

_ON_CERTIFICATE: Final = frozenset({"02", "03"})  # identity card and social security card: the certificate was checked
_ENDS_FORCE: Final = frozenset({"prescription.undone", "prescription.expired", "prescription.exhausted"})
_NEEDS_FORCE: Final = frozenset({"order.created", "order.held", *SETTLED, "dispense.outbound"})


@dataclass(frozen=True, slots=True)
class View:
    """What the questions are asked of.

    `rules_at` gives the rules in force at an instant (UTC ms); `now_ms` is when the audit looks.
    """

    chain: Chain
    sales: tuple[Sale, ...]
    findings: tuple[Finding, ...]
    now_ms: int
    rules_at: Callable[[int], Rules]


def gaps(view: View) -> list[str]:
    """The codes of all gaps, in the order of the table. Of an erased chain only the hashes can be judged."""
    if view.chain.is_erased:
        return ["GAP_CHAIN"] if broken_chain(view) else []
    return [code for code, is_open in GAPS.items() if is_open(view)]


def _precede(records: Iterable[Record | None], step: Record) -> bool:
    return any(record is not None and record.precedes(step) for record in records)


# ---- who: voucher, encounter, diagnosis, attestation ----


def no_voucher(view: View) -> bool:
    """Nobody proved the person before the prescription, or before the fund paid (X-06, V-14)."""
    registered = view.chain.registered
    uses = {use.step.position: use for use in view.chain.uses}
    proofs = [*view.chain.rx.all("settlement.committed")]
    if registered is not None:
        is_internet = registered.payload.visit_kind == common_pb2.VISIT_KIND_INTERNET
        if is_internet or registered.payload.voucher_key or registered.payload.certificate_type not in _ON_CERTIFICATE:
            proofs.append(registered)
    return not all(step.position in uses and _proves(view, uses[step.position]) for step in proofs)


def _proves(view: View, use: VoucherUse) -> bool:
    """Whether the voucher was decoded by this institution, for this step, and its reference was still good."""
    verified, issued = use.verified, use.voucher.first("voucher.issued")
    if verified is None or issued is None or not verified.precedes(use.step):
        return False
    return (
        verified.payload.institution_code == use.step.institution_code
        and use.step.at_ms <= verified.payload.ref_expires_at_ms
        and issued.payload.business_type in _business_types(view.rules_at(use.step.at_ms), use.step)
    )


def _business_types(rules: Rules, step: Record) -> tuple[str, ...]:
    if step.name == "encounter.registered":
        is_internet = step.payload.visit_kind == common_pb2.VISIT_KIND_INTERNET
        return (rules.text(f"business_type_prescribing_{'internet' if is_internet else 'offline'}"),)
    return rules.text("business_type_settle_offline"), rules.text("business_type_settle_online")


def no_encounter(view: View) -> bool:
    """A prescription or a settlement without a visit before it (S1-12)."""
    prechecked, registered = view.chain.prechecked, view.chain.registered
    if prechecked is None or registered is None or not registered.precedes(prechecked):
        return True
    return _precede(view.chain.encounter.all("encounter.cancelled"), prechecked)


def no_diagnosis(view: View) -> bool:
    """A prescription without a recorded diagnosis before it (P-07)."""
    prechecked = view.chain.prechecked
    return prechecked is None or not _precede(view.chain.encounter.all("diagnosis.recorded"), prechecked)


def no_attestation(view: View) -> bool:
    """An internet visit whose doctor, or whose follow-up, was not proven before the diagnosis (S3-09, S2-02)."""
    encounter, registered = view.chain.encounter, view.chain.registered
    if registered is None or registered.payload.visit_kind != common_pb2.VISIT_KIND_INTERNET:
        return False
    step = encounter.first("diagnosis.recorded") or view.chain.prechecked
    if step is None:
        return False
    proofs = ("encounter.doctor_attested", "encounter.revisit_proven")
    return not all(_precede(encounter.all(name), step) for name in proofs)


# ---- the prescription, its signatures, its review ----


def no_prescription(view: View) -> bool:
    """An order, settlement or sale while no prescription was in force (I3, P-01, P-24)."""
    in_force, valid_until_ms = False, 0
    for record in view.chain.rx.records:
        if record.name == "prescription.effective":
            in_force, valid_until_ms = True, record.payload.valid_until_ms
        elif record.name == "prescription.unfrozen":
            in_force = True
        elif record.name == "prescription.frozen" or record.name in _ENDS_FORCE:
            in_force = False
        elif record.name in _NEEDS_FORCE and not (in_force and record.at_ms <= valid_until_ms):
            return True
    return False


def bad_signature(view: View) -> bool:
    """A signature, its key, or a digest that was signed does not hold (I13, I14)."""
    return any(finding.reason in SIGNATURE_REASONS for finding in view.findings)


def no_review(view: View) -> bool:
    """Money settled or goods out without a review before it, passed by another than the prescriber (P-21, I16)."""
    prechecked = view.chain.prechecked
    prescriber = prechecked.payload.content.doctor_code if prechecked else ""
    for sale in view.sales:
        for step in (sale.settled, sale.out):
            if step is not None and not _precede([sale.review], step):
                return True
        if sale.review is not None and prescriber and sale.review.payload.pharmacist_code == prescriber:
            return True
    return False


# ---- money and goods ----


def no_settlement(view: View) -> bool:
    """Goods out without a settlement or a recorded self-payment that stands (I4)."""
    for sale in view.sales:
        if sale.out is None:
            continue
        back = sale.given_back
        if not _precede([sale.settled], sale.out) or (back is not None and back.precedes(sale.out)):
            return True
    return False


def no_dispense(view: View) -> bool:
    """Settled, not given back, and nothing out within the time for it (S3-13)."""
    for sale in view.sales:
        paid = sale.paid
        if paid is not None and sale.out is None:
            deadline_ms = view.rules_at(paid.at_ms).duration_ms("dispense_deadline")
            if view.now_ms > paid.at_ms + deadline_ms:
                return True
    return False


def no_receipt(view: View) -> bool:
    """Goods out, and neither handed over, signed for nor back within the time for it (X-18)."""
    for sale in view.sales:
        if sale.out is not None and sale.receipt is None and sale.came_back is None:
            deadline_ms = view.rules_at(sale.out.at_ms).duration_ms("receipt_deadline")
            if view.now_ms > sale.out.at_ms + deadline_ms:
                return True
    return False


def return_open(view: View) -> bool:
    """Money given back while the goods are out, or goods back while the money is not, its time being over (T-21)."""
    for sale in view.sales:
        if sale.out is not None and sale.given_back is not None and sale.came_back is None:
            return True
        if sale.came_back is not None and sale.paid is not None:
            deadline_ms = view.rules_at(sale.came_back.at_ms).duration_ms("receipt_deadline")
            if view.now_ms > sale.came_back.at_ms + deadline_ms:
                return True
    return False


def wrong_quantity(view: View) -> bool:
    """Prescribed ≥ sold ≥ delivered is broken for a line, or another drug was sold (I2, M21)."""
    try:
        return not all(_quantities_hold(view))
    except ValueError:  # a quantity that is no plain decimal
        return True


def _quantities_hold(view: View) -> Iterator[bool]:
    prechecked = view.chain.prechecked
    content = prechecked.payload.content if prechecked else common_pb2.Prescription()
    fills = max(prechecked.payload.fills_allowed, 1) if prechecked else 1
    prescribed = {line.line_no: (line.drug_code, parse_quantity_e4(line.quantity) * fills) for line in content.lines}
    sold_in_all: Counter[int] = Counter()
    for sale in view.sales:
        sold: Counter[int] = Counter()
        for line in sale.settled.payload.claim.lines if sale.settled else ():
            sold[line.line_no] += line.quantity_e4
            yield line.quantity_e4 > 0 and prescribed.get(line.line_no, ("", 0))[0] == line.drug_code
        out: Counter[int] = Counter()
        for lot in sale.out.payload.lots if sale.out else ():
            out[lot.line_no] += parse_quantity_e4(lot.quantity)
            yield prescribed.get(lot.line_no, ("", 0))[0] == lot.drug_code
        yield all(quantity <= sold[line_no] for line_no, quantity in out.items())
        # What was paid and given back counts no more, unless its goods are out.
        if sale.paid is not None or sale.out is not None:
            sold_in_all.update(sold)
    yield all(quantity <= prescribed.get(line_no, ("", 0))[1] for line_no, quantity in sold_in_all.items())


def wrong_money(view: View) -> bool:
    """An identity of a claim fails, a settlement is not its quote, or the account was moved otherwise (I6, I7)."""
    steps = [record for name in ("settlement.quoted", *SETTLED) for record in view.chain.rx.all(name)]
    if not all(claim_holds(step.payload.claim) for step in steps):
        return True
    for sale in view.sales:
        settled = sale.settled
        if settled is None:
            continue
        amounts = settled.payload.claim.amounts
        if settled.name == "settlement.committed":
            if not any(_takes_up(settled, quote) for quote in sale.quotes):
                return True
        elif amounts.fund_fen or amounts.account_fen:
            return True
    return not _account_agrees(view)


def claim_holds(claim: state_pb2.Claim) -> bool:
    """The money identities of one claim and its sums over the lines (T-04…T-08)."""
    amounts, lines = claim.amounts, claim.lines
    every = [value for _, value in amounts.ListFields()]
    try:
        lines_hold = all(
            line.amount_fen
            == line_amount_fen(line.quantity_e4, line.price_e6)
            == line.own_pay_fen + line.over_limit_fen + line.prior_self_pay_fen + line.in_scope_fen
            for line in lines
        )
    except ValueError:  # a negative quantity or price
        return False
    return (
        lines_hold
        and min(every, default=0) >= 0
        and amounts.total_fen
        == amounts.own_pay_fen + amounts.over_limit_fen + amounts.prior_self_pay_fen + amounts.in_scope_fen
        == amounts.fund_fen + amounts.institution_fen + amounts.person_fen
        and amounts.person_fen == amounts.account_fen + amounts.family_fen + amounts.cash_fen
        and amounts.pooled_fund_fen <= amounts.fund_fen
        and amounts.total_fen == sum(line.amount_fen for line in lines)
        and amounts.own_pay_fen == sum(line.own_pay_fen for line in lines)
        and amounts.over_limit_fen == sum(line.over_limit_fen for line in lines)
        and amounts.prior_self_pay_fen == sum(line.prior_self_pay_fen for line in lines)
        and amounts.in_scope_fen == sum(line.in_scope_fen for line in lines)
    )


def _takes_up(settled: Record, quote: Record) -> bool:
    claim, quoted = settled.payload.claim, quote.payload.claim
    return (
        quote.precedes(settled)
        and settled.at_ms <= quoted.quote_expires_at_ms
        and claim.quote_id == quoted.quote_id
        and claim.amounts == quoted.amounts
        and list(claim.lines) == list(quoted.lines)
    )


_Sums = tuple[int, int, int]


def _account_agrees(view: View) -> bool:
    """The account and the year's totals were moved by exactly what the standing claims say (I7, I20)."""
    moved: dict[str, _Sums] = {}
    for move in view.chain.moves:
        sign = 1 if move.name == "account.debited" else -1
        payload = move.payload
        account, in_scope, fund = moved.get(payload.settlement_id, (0, 0, 0))
        moved[payload.settlement_id] = (
            account + sign * payload.amount_fen,
            in_scope + sign * payload.in_scope_fen,
            fund + sign * payload.fund_fen,
        )
    claimed: dict[str, _Sums] = {}
    for sale in view.sales:
        if sale.settled is not None and sale.settled.name == "settlement.committed":
            claim = sale.settled.payload.claim
            amounts = claim.amounts
            stands = sale.paid is not None
            claimed[claim.settlement_id] = (
                (amounts.account_fen, amounts.in_scope_fen, amounts.pooled_fund_fen) if stands else (0, 0, 0)
            )
    nothing = (0, 0, 0)
    return all(moved.get(key, nothing) == claimed.get(key, nothing) for key in moved.keys() | claimed.keys())


def wrong_trace_code(view: View) -> bool:
    """An insured pack without a code, or a code that was not sold for this prescription, or sold twice (P-19, I9)."""
    used: Counter[str] = Counter()
    for sale in view.sales:
        if sale.out is None:
            continue
        insured = sale.settled is not None and sale.settled.name == "settlement.committed"
        needed = insured and view.rules_at(sale.out.at_ms).flag("trace_codes_required")
        for lot in sale.out.payload.lots:
            used.update(lot.trace_codes)
            if needed and not lot.trace_codes and not lot.without_code:
                return True
    return any(times > 1 or not _sold_once(view.chain, code) for code, times in used.items())


def _sold_once(chain: Chain, code: str) -> bool:
    return len(list(chain.sold[code].all("trace_code.sold"))) == len(list(sales_of_code(chain, code))) == 1


# ---- the same person, in order, unbroken ----


def wrong_person(view: View) -> bool:
    """A step of another person, or of a delegate without a link (M15, V-11)."""
    chain = view.chain
    if chain.prechecked is None:
        return False
    registered = chain.registered
    if registered is not None and (
        registered.payload.person_key != chain.person_key
        or registered.payload.person_no != chain.prechecked.payload.content.person_no
    ):
        return True
    opened = chain.account.first("account.opened")
    if opened is not None and opened.payload.person_key != chain.person_key:
        return True
    issued = [record for use in chain.uses if (record := use.voucher.first("voucher.issued")) is not None]
    return any(
        record.payload.person_key != chain.person_key
        or (bool(record.payload.delegate_key) and not _is_linked(chain, record.payload.delegate_key))
        for record in issued
    )


def _is_linked(chain: Chain, delegate_key: bytes) -> bool:
    registered = [
        chain.persons[key].first("person.registered") if key in chain.persons else None
        for key in (chain.person_key, delegate_key)
    ]
    if registered[0] is None or registered[1] is None:
        return False
    return registered[1].payload.person.person_no in registered[0].payload.person.delegate_person_nos


def wrong_order(view: View) -> bool:
    """The steps are there, but not in their order, or a claimed time cannot be (X-21, I5): back-dated records."""
    return not all(_in_order(view)) or not all(_times_are_possible(view))


def _in_order(view: View) -> Iterator[bool]:
    chain = view.chain
    proof = next((use.verified for use in chain.uses if use.step.name == "encounter.registered"), None)
    before = [proof, chain.encounter.first("diagnosis.recorded"), chain.rx.first("prescription.effective")]
    yield _ascending(before)
    for sale in view.sales:
        yield _ascending([*before, sale.review, sale.settled, sale.out, sale.receipt])
        for pick_up in chain.rx.all("delivery.picked_up"):
            if pick_up.payload.order_no == sale.order_no:
                yield _precede([sale.out], pick_up)


def _ascending(steps: Iterable[Record | None]) -> bool:
    """Whether the steps that are there follow one another in the log and by the clock."""
    present = [step for step in steps if step is not None]
    return all(earlier.precedes(later) and earlier.at_ms <= later.at_ms for earlier, later in pairwise(present))


def _times_are_possible(view: View) -> Iterator[bool]:
    chain = view.chain
    for content in signatures.contents(chain, view.sales):
        statement = content.statement()
        if statement is not None:
            recorded_at_ms = content.record.at_ms
            age_ms = view.rules_at(recorded_at_ms).duration_ms("signing_age")
            yield 0 <= recorded_at_ms - statement.signed_at_ms <= age_ms
    started = chain.encounter.first("encounter.started")
    if chain.prechecked is not None and started is not None:
        yield started.at_ms <= chain.prechecked.payload.content.prescribed_at_ms <= chain.prechecked.at_ms
    last_ms: dict[str, int] = {}
    for record in chain.rx.records:
        if isinstance(record.payload, events_pb2.DeliveryMoved):
            yield record.payload.at_ms >= last_ms.get(record.payload.order_no, 0)
            last_ms[record.payload.order_no] = record.payload.at_ms


def broken_chain(view: View) -> bool:
    """A hash, link, sequence or state that does not hold (I10, I11)."""
    return any(finding.reason not in SIGNATURE_REASONS for finding in view.findings)


GAPS: Final[Mapping[str, Callable[[View], bool]]] = MappingProxyType(
    {
        "GAP_NO_VOUCHER": no_voucher,
        "GAP_NO_ENCOUNTER": no_encounter,
        "GAP_NO_DIAGNOSIS": no_diagnosis,
        "GAP_NO_ATTESTATION": no_attestation,
        "GAP_NO_PRESCRIPTION": no_prescription,
        "GAP_SIGNATURE": bad_signature,
        "GAP_NO_REVIEW": no_review,
        "GAP_NO_SETTLEMENT": no_settlement,
        "GAP_NO_DISPENSE": no_dispense,
        "GAP_NO_RECEIPT": no_receipt,
        "GAP_ORDER": wrong_order,
        "GAP_QUANTITY": wrong_quantity,
        "GAP_MONEY": wrong_money,
        "GAP_TRACE_CODE": wrong_trace_code,
        "GAP_IDENTITY": wrong_person,
        "GAP_RETURN_OPEN": return_open,
        "GAP_CHAIN": broken_chain,
    }
)
