"""`erxhub patient`: what an insured person, or his delegate, does through a channel (参保人).

Owns the words of these verbs. It must never keep a QR value or a sign-for code; each is shown once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from erxhub.cli.commands import group
from erxhub.cli.replies import limit_option, rows_of, show, show_rows
from erxhub.cli.session import request_id_option, with_client

if TYPE_CHECKING:
    from erxhub.cli.context import Context
    from erxhub.cli.output import Output
    from erxhub.client import PatientClient

LIST_COLUMNS: Final = (
    "rx_no",
    "hospital_code",
    "statuses",
    "line_count",
    "valid_until",
    "held_by_pharmacy_code",
    "delivery",
)

ACCESS_COLUMNS: Final = ("at", "institution", "role", "method", "outcome", "rx_no")

_Function = TypeVar("_Function", bound=Callable[..., Any])


def delegate_option(function: _Function) -> _Function:
    """`--delegate PERSON`."""
    return click.option("--delegate", default="", metavar="PERSON", help="Who acts for the person (亲情账户).")(
        function
    )


@group("patient", example="erxhub patient list 33010000990001")
def patient() -> None:
    """Prescriptions, as the patient's channel (第三方渠道)."""


@patient.command("list", example="erxhub patient list 33010000990001")
@click.argument("person_no")
@delegate_option
@limit_option
@with_client("channel")
async def list_(client: PatientClient, ctx: Context, out: Output, person_no: str, delegate: str, limit: int) -> None:
    """The person's prescriptions, newest first: summaries, no diagnosis."""
    fetch = functools.partial(client.list_prescriptions, person_no=person_no, delegate_person_no=delegate)
    show_rows(out, await rows_of(fetch, "prescriptions", limit), LIST_COLUMNS)


@patient.command("choose", example="erxhub patient choose 33010000990001 RX_NO P33010099101 --delivery")
@click.argument("person_no")
@click.argument("rx_no")
@click.argument("pharmacy_code")
@click.option("--pickup/--delivery", default=True, show_default=True, help="How the goods get to the patient.")
@delegate_option
@request_id_option
@with_client("channel")
async def choose(
    client: PatientClient,
    ctx: Context,
    out: Output,
    person_no: str,
    rx_no: str,
    pharmacy_code: str,
    pickup: bool,
    delegate: str,
    request_id: str | None,
) -> None:
    """Choose a pharmacy: creates an order there (选择药店)."""
    from erxhub.v1 import common_pb2

    reply = await client.choose_pharmacy(
        person_no=person_no,
        rx_no=rx_no,
        pharmacy_code=pharmacy_code,
        mode=common_pb2.FULFILMENT_MODE_PICKUP if pickup else common_pb2.FULFILMENT_MODE_DELIVERY,
        delegate_person_no=delegate,
        request_id=request_id,
    )
    show(out, reply, rx_no=rx_no, pharmacy_code=pharmacy_code, mode="PICKUP" if pickup else "DELIVERY")


@patient.command("cancel", example="erxhub patient cancel 33010000990001 RX_NO P33010099101")
@click.argument("person_no")
@click.argument("rx_no")
@click.argument("pharmacy_code")
@delegate_option
@request_id_option
@with_client("channel")
async def cancel(
    client: PatientClient,
    ctx: Context,
    out: Output,
    person_no: str,
    rx_no: str,
    pharmacy_code: str,
    delegate: str,
    request_id: str | None,
) -> None:
    """End an order, or an authorisation, before settlement (取消订单)."""
    reply = await client.cancel_order(
        person_no=person_no,
        rx_no=rx_no,
        pharmacy_code=pharmacy_code,
        delegate_person_no=delegate,
        request_id=request_id,
    )
    show(out, reply, rx_no=rx_no, pharmacy_code=pharmacy_code)


@patient.command("qr", example="erxhub patient qr 33010000990001 RX_NO")
@click.argument("person_no")
@click.argument("rx_no")
@delegate_option
@request_id_option
@with_client("channel")
async def qr(
    client: PatientClient,
    ctx: Context,
    out: Output,
    person_no: str,
    rx_no: str,
    delegate: str,
    request_id: str | None,
) -> None:
    """Make a QR value for one prescription: single use, 60 seconds (电子处方二维码)."""
    reply = await client.make_qr(person_no=person_no, rx_no=rx_no, delegate_person_no=delegate, request_id=request_id)
    show(out, reply, rx_no=rx_no)


@patient.command(
    "deliver",
    example="erxhub patient deliver 33010000990001 RX_NO P33010099101 --address '某路1号' --phone 13900000000",
)
@click.argument("person_no")
@click.argument("rx_no")
@click.argument("pharmacy_code")
@click.option("--address", required=True, help="Where to (配送地址).")
@click.option("--phone", required=True, help="Whom to call (收货人电话).")
@delegate_option
@request_id_option
@with_client("channel")
async def deliver(
    client: PatientClient,
    ctx: Context,
    out: Output,
    person_no: str,
    rx_no: str,
    pharmacy_code: str,
    address: str,
    phone: str,
    delegate: str,
    request_id: str | None,
) -> None:
    """Ask for delivery; prints delivery_no and the sign-for code, which is shown only here (申请配送)."""
    reply = await client.request_delivery(
        person_no=person_no,
        rx_no=rx_no,
        pharmacy_code=pharmacy_code,
        address=address,
        phone=phone,
        delegate_person_no=delegate,
        request_id=request_id,
    )
    show(out, reply, rx_no=rx_no)


@patient.command("accesses", example="erxhub patient accesses 33010000990001 --rx RX_NO")
@click.argument("person_no")
@click.option("--rx", "rx_no", default="", metavar="RX_NO", help="Only this prescription.")
@delegate_option
@limit_option
@with_client("channel")
async def accesses(
    client: PatientClient, ctx: Context, out: Output, person_no: str, rx_no: str, delegate: str, limit: int
) -> None:
    """Who accessed the person's prescriptions, newest first (访问记录)."""
    fetch = functools.partial(client.list_accesses, person_no=person_no, rx_no=rx_no, delegate_person_no=delegate)
    show_rows(out, await rows_of(fetch, "accesses", limit), ACCESS_COLUMNS)
