"""`erxhub delivery`: goods on their way to the door, as the pharmacy that sends them (配送).

Owns the words of these verbs. It must never keep the sign-for code; the patient says it at the door.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from erxhub.cli.arguments import InstantType, PositionType
from erxhub.cli.commands import group
from erxhub.cli.replies import show, signed_request_id_option
from erxhub.cli.session import request_id_option, with_client

if TYPE_CHECKING:
    from erxhub.cli.context import Context
    from erxhub.cli.output import Output
    from erxhub.client import PharmacyClient

STEPS: Final = ("on-the-way", "arrive", "refuse", "lose", "go-back", "received")


@group("delivery", example="erxhub delivery start RX_NO --company 某快递 --courier PS330100990001")
def delivery() -> None:
    """Deliveries (配送), as a pharmacy; the patient asks for one with `erxhub patient deliver`."""


@delivery.command("start", example="erxhub delivery start RX_NO --company 某快递 --courier PS330100990001")
@click.argument("rx_no")
@click.option("--company", required=True, help="配送企业.")
@click.option("--courier", required=True, metavar="CODE", help="Who carries the goods.")
@click.option("--cold-chain", is_flag=True, help="The goods travel cooled (冷链).")
@click.option("--picked-up-at", type=InstantType(), help="When the courier took the goods; by default now.")
@click.option("--distance-m", type=click.IntRange(min=0), default=0, help="配送距离, metres.")
@request_id_option
@with_client("pharmacy")
async def start(
    client: PharmacyClient,
    ctx: Context,
    out: Output,
    rx_no: str,
    company: str,
    courier: str,
    cold_chain: bool,
    picked_up_at: int | None,
    distance_m: int,
    request_id: str | None,
) -> None:
    """Assign a courier, who has picked the goods up; prints delivery_no."""
    reply = await client.start_delivery(
        rx_no=rx_no,
        company=company,
        courier_code=courier,
        cold_chain=cold_chain,
        picked_up_at_ms=picked_up_at,
        distance_m=distance_m,
        request_id=request_id,
    )
    show(out, reply, rx_no=rx_no)


@delivery.command(
    "update", example="erxhub delivery update RX_NO DELIVERY_NO arrive --courier PS330100990001 --position 30.27,120.15"
)
@click.argument("rx_no")
@click.argument("delivery_no")
@click.argument("step", type=click.Choice(STEPS))
@click.option("--courier", default="", metavar="CODE", help="Who reports.")
@click.option("--at", "at_ms", type=InstantType(), help="When it happened; by default now.")
@click.option("--position", type=PositionType(), help="Where, WGS-84 degrees.")
@click.option("--note", default="", help="说明.")
@request_id_option
@with_client("pharmacy")
async def update(
    client: PharmacyClient,
    ctx: Context,
    out: Output,
    rx_no: str,
    delivery_no: str,
    step: str,
    courier: str,
    at_ms: int | None,
    position: tuple[int, int] | None,
    note: str,
    request_id: str | None,
) -> None:
    """Report one step of a delivery (配送信息同步)."""
    from erxhub.v1 import dispensing_pb2

    latitude_e6, longitude_e6 = position or (0, 0)
    reply = await client.update_delivery(
        rx_no=rx_no,
        delivery_no=delivery_no,
        step=dispensing_pb2.DeliveryStep.Value(f"DELIVERY_STEP_{step.upper().replace('-', '_')}"),
        courier_code=courier,
        at_ms=at_ms,
        latitude_e6=latitude_e6,
        longitude_e6=longitude_e6,
        note=note,
        request_id=request_id,
    )
    show(out, reply, rx_no=rx_no, delivery_no=delivery_no)


@delivery.command("sign", example="erxhub delivery sign RX_NO DELIVERY_NO --code 123456")
@click.argument("rx_no")
@click.argument("delivery_no")
@click.option("--code", "sign_code", default="", help="The six digits that the patient says (签收码).")
@click.option("--voucher-ref", default="", help="Or from `voucher verify --for pickup`.")
@signed_request_id_option
@with_client("pharmacy")
async def sign(
    client: PharmacyClient,
    ctx: Context,
    out: Output,
    rx_no: str,
    delivery_no: str,
    sign_code: str,
    voucher_ref: str,
    request_id: str | None,
) -> None:
    """The patient signs for the goods, under the pharmacy's seal (签收)."""
    reply = await client.sign_delivery(
        rx_no=rx_no,
        delivery_no=delivery_no,
        seal_key=ctx.signing_key(ctx.id),
        sign_code=sign_code,
        voucher_ref=voucher_ref,
        request_id=request_id,
    )
    show(out, reply, rx_no=rx_no, delivery_no=delivery_no)
