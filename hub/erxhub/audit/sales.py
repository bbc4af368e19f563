"""The sales of a prescription: each order with what it came to, read from the events alone.

Owns the grouping of events by order. It holds no rule about gaps. It reads events and not the folded state, so that a
chain with steps that no row allows can still be told.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from erxhub.audit.chain import RECEIVED, SETTLED, Record
from erxhub.v1 import events_pb2

_ENDS = ("order.released", "order.cancelled", "order.expired")


@dataclass(slots=True)
class Sale:
    """One order. An entry that never came is None."""

    order_no: str
    created: Record | None = None
    review: Record | None = None
    """The review that passed."""
    quotes: list[Record] = field(default_factory=list)
    settled: Record | None = None
    given_back: Record | None = None
    """The undo or reversal of the settlement, while it stands."""
    out: Record | None = None
    receipt: Record | None = None
    came_back: Record | None = None
    """The goods are at the pharmacy again after a delivery that failed."""
    ended: Record | None = None

    @property
    def paid(self) -> Record | None:
        """The settlement, unless it was given back."""
        return self.settled if self.given_back is None else None

    @property
    def pharmacy_code(self) -> str:
        """The order's pharmacy; "" when its first entry is missing."""
        return str(self.created.payload.pharmacy_code) if self.created else ""

    @property
    def is_complete(self) -> bool:
        """Whether every step from the order to the patient's hands is there."""
        return None not in (self.review, self.paid, self.out, self.receipt)

    @property
    def is_open(self) -> bool:
        """Whether a further step of this order is still possible."""
        if self.paid is not None:
            return self.receipt is None
        return self.ended is None and self.receipt is None


def sales_of(records: Iterable[Record]) -> tuple[Sale, ...]:
    """The sales in the order in which their orders appear."""
    sales: dict[str, Sale] = {}
    for record in records:
        order_no = getattr(record.payload, "order_no", "")
        if order_no:
            _take(sales.setdefault(order_no, Sale(order_no)), record)
    return tuple(sales.values())


def _take(sale: Sale, record: Record) -> None:
    name = record.name
    if name == "order.created":
        sale.created = record
    elif name == "review.passed":
        sale.review = record
    elif name == "settlement.quoted":
        sale.quotes.append(record)
    elif name in SETTLED:
        sale.settled, sale.given_back = record, None
    elif name == "settlement.undone":
        sale.given_back = record
    elif name == "settlement.reversed":
        restored = record.payload.target == events_pb2.REVERSAL_OF_UNDO
        sale.given_back = None if restored else record
    elif name == "dispense.outbound":
        sale.out = record
    elif name in RECEIVED:
        sale.receipt = record
    elif name == "delivery.returned":
        sale.came_back = record
    elif name in _ENDS:
        sale.ended = record
