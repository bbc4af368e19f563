"""What a hospital reads of its own prescriptions.

Owns the rule that another hospital's prescription gets the answer of one that does not exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from erxhub.core import guards
from erxhub.core.consequences import statuses
from erxhub.core.keys import prescription_key
from erxhub.core.model import Accepted, Caller, Refused, Target
from erxhub.core.orders import unknown
from erxhub.queries.base import Query, ReadContext, View, listed, paging
from erxhub.v1 import prescribing_pb2, state_pb2


async def get_prescription(
    ctx: ReadContext, caller: Caller, request: prescribing_pb2.GetPrescriptionRequest
) -> Accepted | Refused:
    """One prescription of the calling hospital, with a summary of its orders. Refusals: RX_UNKNOWN."""
    view = View(ctx, caller)
    key = prescription_key(request.rx_no)
    state = await view.state(key, state_pb2.PrescriptionState)
    if state is None:
        return unknown()
    target = Target(key, state.person_key)
    if state.content.hospital_code != caller.id:
        return unknown((target,))
    if state.erased_version:
        return guards.erased("rx_no", Target(key))
    reply = prescribing_pb2.GetPrescriptionResponse(
        rx_no=state.rx_no,
        statuses=statuses(state),
        prescription=state.content,
        orders=[_order_shown(order) for order in state.orders],
        etag=view.etag(key),
    )
    return Accepted(reply, targets=(target,))


def _order_shown(order: state_pb2.Order) -> prescribing_pb2.OrderSummary:
    return prescribing_pb2.OrderSummary(
        pharmacy_code=order.pharmacy_code,
        status=order.status,
        review=order.review,
        review_opinion=order.review_opinion,
        reviewer_code=order.reviewer_code,
        settlement=order.claim.status,
        dispense=order.dispense.status,
        delivery=order.delivery.status,
    )


async def list_prescriptions(
    ctx: ReadContext, caller: Caller, request: prescribing_pb2.ListPrescriptionsRequest
) -> Accepted | Refused:
    """The calling hospital's prescriptions, newest precheck first. Refusals: PAGE_TOKEN_INVALID."""
    page = paging(ctx, caller, "PrescribingService/ListPrescriptions", request.page)
    if isinstance(page, Refused):
        return page
    keys, next_token = await listed(page, "hospital_rx", caller.id.encode(), newest_first=True)
    states = await View(ctx, caller).states(keys, state_pb2.PrescriptionState)
    reply = prescribing_pb2.ListPrescriptionsResponse(
        prescriptions=[
            prescribing_pb2.PrescriptionSummary(
                rx_no=state.rx_no,
                hospital_rx_no=state.content.hospital_rx_no,
                statuses=statuses(state),
                prescribed_at_ms=state.content.prescribed_at_ms,
                valid_until_ms=state.content.valid_until_ms,
                doctor_code=state.content.doctor_code,
            )
            for state in states.values()
        ],
        next_page_token=next_token,
    )
    return Accepted(reply, targets=tuple(Target(key, state.person_key) for key, state in states.items()))


QUERIES: Final[Mapping[str, Query]] = {
    "PrescribingService/GetPrescription": get_prescription,
    "PrescribingService/ListPrescriptions": list_prescriptions,
}
