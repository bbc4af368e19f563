"""The auditor's light and the three flows: the verdict on a chain in one colour and three lines.

Owns how gaps and open steps become a colour, and which gap makes which flow disagree. The gaps themselves are `gaps`'s.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from erxhub.audit.chain import Chain, Finding
from erxhub.audit.gaps import View
from erxhub.audit.sales import Sale
from erxhub.audit.summaries import ERASED, quantity_text
from erxhub.core.claim_arithmetic import format_yuan, parse_quantity_e4
from erxhub.v1 import audit_pb2

_FUND_GAPS: Final = frozenset({"GAP_NO_SETTLEMENT", "GAP_NO_DISPENSE", "GAP_MONEY", "GAP_RETURN_OPEN"})
_GOODS_GAPS: Final = frozenset(
    {
        "GAP_NO_SETTLEMENT",
        "GAP_NO_DISPENSE",
        "GAP_NO_RECEIPT",
        "GAP_QUANTITY",
        "GAP_TRACE_CODE",
        "GAP_RETURN_OPEN",
    }
)
_OVER: Final = ("prescription.undone", "prescription.expired")


def light(view: View, gaps: Collection[str]) -> audit_pb2.Light.ValueType:
    """RED with a gap; GREEN when a sale went all the way and none is open; CLOSED when nothing can or did come of it;
    ERASED when nothing but hashes and order can be judged any more.

    A prescription whose validity is over counts as expired, whether or not the deadline's entry is written yet.
    """
    if gaps:
        return audit_pb2.LIGHT_RED
    if view.chain.is_erased:
        return audit_pb2.LIGHT_ERASED
    is_over = _is_over(view)
    # A hold on a prescription that is over leads nowhere: only what was paid still has a next step.
    if any(sale.is_open and (sale.paid is not None or not is_over) for sale in view.sales):
        return audit_pb2.LIGHT_OPEN
    if any(sale.is_complete for sale in view.sales):
        return audit_pb2.LIGHT_GREEN
    return audit_pb2.LIGHT_CLOSED if is_over else audit_pb2.LIGHT_OPEN


def _is_over(view: View) -> bool:
    rx, prechecked = view.chain.rx, view.chain.prechecked
    if rx.first(*_OVER) is not None:
        return True
    return prechecked is not None and view.now_ms > prechecked.payload.content.valid_until_ms > 0


def flows(view: View, gaps: Collection[str]) -> list[audit_pb2.FlowSummary]:
    """The information, fund and goods flow, each in one line and with whether it agrees with the others."""
    damaged = _damaged_flows(view.chain, view.findings)
    information = set(gaps) - _FUND_GAPS - _GOODS_GAPS
    return [
        audit_pb2.FlowSummary(
            flow=flow,
            agrees=not against and flow not in damaged,
            summary=ERASED if view.chain.is_erased else summary(view.chain, view.sales),
        )
        for flow, against, summary in (
            (audit_pb2.FLOW_INFORMATION, information, _information),
            (audit_pb2.FLOW_FUND, _FUND_GAPS.intersection(gaps), _fund),
            (audit_pb2.FLOW_GOODS, _GOODS_GAPS.intersection(gaps), _goods),
        )
    ]


def _damaged_flows(chain: Chain, findings: Iterable[Finding]) -> set[audit_pb2.Flow.ValueType]:
    """The flows of the entries in which a fault was found."""
    broken = {(finding.stream_key, finding.version) for finding in findings}
    return {
        placed.record.event.flow
        for placed in chain.entries()
        if (placed.record.header.stream_key, placed.record.header.version) in broken
    }


def _information(chain: Chain, sales: Iterable[Sale]) -> str:
    vouchers = {use.voucher_key for use in chain.uses if use.verified is not None}
    diagnosis = chain.encounter.first("diagnosis.recorded")
    diagnoses = len(diagnosis.payload.diagnoses) if diagnosis else 0
    hospital = sum(1 for _ in chain.rx.all("prescription.hospital_reviewed"))
    pharmacy = sum(1 for sale in sales if sale.review is not None)
    return (
        f"{len(chain.entries())} entries; {len(vouchers)} vouchers verified, {diagnoses} diagnoses, "
        f"{hospital} hospital reviews, {pharmacy} pharmacy reviews passed"
    )


def _fund(chain: Chain, sales: Iterable[Sale]) -> str:
    sales = list(sales)
    paid = [sale.paid.payload.claim.amounts for sale in sales if sale.paid is not None]
    given_back = sum(1 for sale in sales if sale.given_back is not None)
    returned = f"; {given_back} settlements given back" if given_back else ""
    if not paid:
        return f"nothing settled{returned}"
    total, fund, account, cash = (
        format_yuan(sum(part))
        for part in zip(
            *(
                (amounts.total_fen, amounts.fund_fen, amounts.account_fen + amounts.family_fen, amounts.cash_fen)
                for amounts in paid
            ),
            strict=True,
        )
    )
    return f"total {total} = fund {fund} + account {account} + cash {cash} yuan{returned}"


def _goods(chain: Chain, sales: Iterable[Sale]) -> str:
    content = chain.prechecked.payload.content if chain.prechecked else None
    prescribed = _sum(line.quantity for line in content.lines) if content else 0
    sold = handed = lots = codes = 0
    for sale in sales:
        if sale.paid is not None:
            sold += sum(line.quantity_e4 for line in sale.paid.payload.claim.lines)
        if sale.out is not None:
            lots += len(sale.out.payload.lots)
            codes += sum(len(lot.trace_codes) for lot in sale.out.payload.lots)
            if sale.receipt is not None:
                handed += _sum(lot.quantity for lot in sale.out.payload.lots)
    return (
        f"prescribed {quantity_text(prescribed)}, sold {quantity_text(sold)}, handed over {quantity_text(handed)}; "
        f"{lots} lots, {codes} trace codes"
    )


def _sum(quantities: Iterable[str]) -> int:
    """The sum in 1e-4 units; a quantity that cannot be read counts nothing here and is a gap elsewhere."""
    total = 0
    for text in quantities:
        try:
            total += parse_quantity_e4(text)
        except ValueError:
            continue
    return total
