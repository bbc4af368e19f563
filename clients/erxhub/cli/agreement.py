"""`erxhub agreement`: agreements between an agency and the institutions of its area (服务协议)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from erxhub.cli.arguments import InstantType
from erxhub.cli.commands import group
from erxhub.cli.session import request_id_option, with_client

if TYPE_CHECKING:
    from erxhub.cli.context import Context
    from erxhub.cli.output import Output
    from erxhub.client import AgencyClient
    from erxhub.v1 import registry_pb2

KINDS: Final = ("base", "internet", "pooling", "dual-channel")
CLAUSES: Final = ("scope", "conditions", "charge_and_settlement_standard", "payment_mode")
YEAR_MS: Final = 365 * 86_400_000

_kind_option = click.option("--kind", type=click.Choice(KINDS), default="base", show_default=True)
_case_option = click.option("--case", "case_no", required=True, metavar="NO", help="The case or rule that it is for.")
_etag_option = click.option("--etag", default="", help="Only if the record has not changed since it was read.")


@group("agreement", example="erxhub agreement sign H33010099901 --kind base --no HT-2026-001")
def agreement() -> None:
    """Agreements with institutions: sign, suspend, resume. For an agency, inside its area."""


@agreement.command("sign", example="erxhub agreement sign H33010099901 --kind internet --no HT-2026-002")
@click.argument("institution_code")
@_kind_option
@click.option("--no", "agreement_no", required=True, metavar="NO", help="Its number, used once.")
@click.option("--from", "valid_from_ms", type=InstantType(), help="Default: now.")
@click.option("--until", "valid_until_ms", type=InstantType(), help="Default: a year after its beginning.")
@click.option("--clause", "clauses", multiple=True, help="A clause it states; repeatable. Default: the four required.")
@_etag_option
@request_id_option
@with_client("agency")
async def sign(
    client: AgencyClient,
    ctx: Context,
    out: Output,
    institution_code: str,
    kind: str,
    agreement_no: str,
    valid_from_ms: int | None,
    valid_until_ms: int | None,
    clauses: tuple[str, ...],
    etag: str,
    request_id: str | None,
) -> None:
    """Sign an agreement with an institution (签订服务协议)."""
    begins_ms = client.connection.environment.now_ms() if valid_from_ms is None else valid_from_ms
    reply = await client.sign_agreement(
        institution_code=institution_code,
        kind=_kind(kind),
        agreement_no=agreement_no,
        valid_from_ms=begins_ms,
        valid_until_ms=begins_ms + YEAR_MS if valid_until_ms is None else valid_until_ms,
        clauses=clauses or CLAUSES,
        etag=etag,
        request_id=request_id,
    )
    out.reply(reply)


@agreement.command("suspend", example="erxhub agreement suspend P33010099101 --kind pooling --case 2026-17")
@click.argument("institution_code")
@_kind_option
@_case_option
@_etag_option
@request_id_option
@with_client("agency")
async def suspend(
    client: AgencyClient,
    ctx: Context,
    out: Output,
    institution_code: str,
    kind: str,
    case_no: str,
    etag: str,
    request_id: str | None,
) -> None:
    """Suspend an agreement under a case (中止协议)."""
    from erxhub.v1 import registry_pb2

    reply = await client.change_agreement_status(
        institution_code=institution_code,
        kind=_kind(kind),
        status=registry_pb2.AGREEMENT_STATUS_SUSPENDED,
        case_no=case_no,
        etag=etag,
        request_id=request_id,
    )
    out.reply(reply)


@agreement.command("resume", example="erxhub agreement resume P33010099101 --kind pooling")
@click.argument("institution_code")
@_kind_option
@_etag_option
@request_id_option
@with_client("agency")
async def resume(
    client: AgencyClient,
    ctx: Context,
    out: Output,
    institution_code: str,
    kind: str,
    etag: str,
    request_id: str | None,
) -> None:
    """Resume a suspended agreement (恢复协议)."""
    from erxhub.v1 import registry_pb2

    reply = await client.change_agreement_status(
        institution_code=institution_code,
        kind=_kind(kind),
        status=registry_pb2.AGREEMENT_STATUS_ACTIVE,
        etag=etag,
        request_id=request_id,
    )
    out.reply(reply)


def _kind(word: str) -> registry_pb2.AgreementKind.ValueType:
    from erxhub.v1 import registry_pb2

    return registry_pb2.AgreementKind.Value(f"AGREEMENT_KIND_{word.replace('-', '_').upper()}")
