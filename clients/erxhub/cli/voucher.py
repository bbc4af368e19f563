"""`erxhub voucher`: the insurance e-voucher, from its activation to the reference that the steps quote (医保电子凭证).

Owns the words of these verbs. It must never keep a code or a reference; each is printed once, to whoever asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from erxhub.cli.arguments import BusinessType
from erxhub.cli.commands import group
from erxhub.cli.replies import show
from erxhub.cli.session import request_id_option, with_client

if TYPE_CHECKING:
    from erxhub.cli.context import Context
    from erxhub.cli.output import Output
    from erxhub.client import AgencyClient, HospitalClient, PatientClient, PharmacyClient

LEVELS = ("real-person", "real-name")


@group("voucher", example="erxhub voucher issue 33010000990001 --for visit")
def voucher() -> None:
    """The e-voucher (医保电子凭证): activate, issue and revoke as a channel, verify as an institution."""


@voucher.command("activate", example="erxhub voucher activate 33010000990001")
@click.argument("person_no")
@click.option(
    "--level", type=click.Choice(LEVELS), default=LEVELS[0], show_default=True, help="How identity was proven."
)
@request_id_option
@with_client("channel")
async def activate(
    client: PatientClient, ctx: Context, out: Output, person_no: str, level: str, request_id: str | None
) -> None:
    """Activate a person's e-voucher on this channel (激活)."""
    from erxhub.v1 import voucher_pb2

    identity_level = voucher_pb2.IdentityLevel.Value(f"IDENTITY_LEVEL_{level.upper().replace('-', '_')}")
    reply = await client.activate_voucher(person_no=person_no, identity_level=identity_level, request_id=request_id)
    show(out, reply, person_no=person_no, channel=ctx.id, active=True)


@voucher.command("issue", example="erxhub voucher issue 33010000990001 --for visit")
@click.argument("person_no")
@click.option(
    "--for",
    "business_type",
    type=BusinessType(),
    required=True,
    help="visit, online-identity, download, purchase, online-purchase, pickup, or the five digits.",
)
@click.option("--delegate", default="", metavar="PERSON", help="Who shows the code for the person (亲情账户).")
@request_id_option
@with_client("channel")
async def issue(
    client: PatientClient,
    ctx: Context,
    out: Output,
    person_no: str,
    business_type: str,
    delegate: str,
    request_id: str | None,
) -> None:
    """Make a single-use code that lives 60 seconds (展码)."""
    reply = await client.issue_voucher(
        person_no=person_no, business_type=business_type, delegate_person_no=delegate, request_id=request_id
    )
    show(out, reply, business_type=business_type)


@voucher.command("verify", example="erxhub voucher verify 3301001234567890123456789012 --for visit --context hospital")
@click.argument("voucher_code")
@click.option(
    "--for", "business_type", type=BusinessType(), required=True, help="The business type of the step at hand."
)
@click.option("--channel", default="", help="The channel that the code was shown on, when it is known.")
@click.option("--person", default="", help="The person who is expected; another one's code is refused.")
@click.option("--operator", default="", help="Who decodes (操作员).")
@request_id_option
@with_client("hospital", "pharmacy")
async def verify(
    client: HospitalClient | PharmacyClient,
    ctx: Context,
    out: Output,
    voucher_code: str,
    business_type: str,
    channel: str,
    person: str,
    operator: str,
    request_id: str | None,
) -> None:
    """Use up a code; prints the reference (voucher_ref, or online_identity_no) that the steps quote (解码核验)."""
    reply = await client.verify_voucher(
        voucher_code=voucher_code,
        business_type=business_type,
        channel_id=channel,
        person_no=person,
        operator_id=operator,
        request_id=request_id,
    )
    show(out, reply, business_type=business_type)


@voucher.command("revoke", example="erxhub voucher revoke 3301001234567890123456789012 --reason 'phone lost'")
@click.argument("voucher_code")
@click.option("--reason", default="", help="Why (作废原因).")
@request_id_option
@with_client("channel", "agency")
async def revoke(
    client: PatientClient | AgencyClient,
    ctx: Context,
    out: Output,
    voucher_code: str,
    reason: str,
    request_id: str | None,
) -> None:
    """Withdraw a code that was not used (作废)."""
    reply = await client.revoke_voucher(voucher_code=voucher_code, reason=reason, request_id=request_id)
    show(out, reply, revoked=True)
