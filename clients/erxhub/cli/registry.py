"""`erxhub registry`: what an agency registers in its area: institutions, practitioners, persons, signing keys."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from erxhub.cli.commands import ExampleGroup, group
from erxhub.cli.session import request_id_option, with_client

if TYPE_CHECKING:
    from erxhub.cli.context import Context
    from erxhub.cli.output import Output
    from erxhub.client import AgencyClient

KINDS: Final = ("doctor", "hospital-pharmacist", "pharmacist", "dispenser", "courier")
PAGE_SIZE: Final = 200

_etag_option = click.option("--etag", default="", help="Only if the record has not changed since it was read.")


@group("registry", example="erxhub registry add institution H33010099903 --name 示例医院 --level 05")
def registry() -> None:
    """Institutions, practitioners, persons, signing keys: add, suspend, resume, list. For an agency, in its area."""


@registry.group(
    "add", cls=ExampleGroup, example="erxhub registry add institution H33010099903 --name 示例医院 --level 05"
)
def add() -> None:
    """Register somebody or something. Registering the same again returns what is there."""


@add.command(
    "institution", example="erxhub registry add institution H33010099903 --name 示例医院 --level 05 --internet"
)
@click.argument("institution_code")
@click.option("--name", required=True)
@click.option("--level", default="", metavar="HOSP_LV", help="01 to 14; not for a pharmacy.")
@click.option("--credit-code", "social_credit_code", default="", help="Unified social credit code (统一社会信用代码).")
@click.option("--internet", is_flag=True, help="Licensed for internet visits.")
@request_id_option
@with_client("agency")
async def add_institution(
    client: AgencyClient,
    ctx: Context,
    out: Output,
    institution_code: str,
    name: str,
    level: str,
    social_credit_code: str,
    internet: bool,
    request_id: str | None,
) -> None:
    """Register a hospital (H…) or a pharmacy (P…) (登记定点机构)."""
    reply = await client.register_institution(
        institution_code=institution_code,
        name=name,
        level=level,
        social_credit_code=social_credit_code,
        internet=internet,
        request_id=request_id,
    )
    out.reply(reply)


@add.command(
    "practitioner",
    example="erxhub registry add practitioner D330100990009 --name 何示例 --kind doctor --at H33010099901 --years 5",
)
@click.argument("practitioner_code")
@click.option("--name", required=True)
@click.option("--kind", required=True, type=click.Choice(KINDS))
@click.option("--at", "institution_codes", required=True, multiple=True, metavar="CODE", help="Repeatable.")
@click.option("--years", "practice_years", type=click.IntRange(0, 80), default=0, help="Of independent practice.")
@click.option("--dual-channel", is_flag=True, help="On the list for dual-channel drugs (双通道责任医师).")
@request_id_option
@with_client("agency")
async def add_practitioner(
    client: AgencyClient,
    ctx: Context,
    out: Output,
    practitioner_code: str,
    name: str,
    kind: str,
    institution_codes: tuple[str, ...],
    practice_years: int,
    dual_channel: bool,
    request_id: str | None,
) -> None:
    """Register a practitioner or a pharmacy's staff (登记执业人员)."""
    from erxhub.v1 import registry_pb2

    reply = await client.register_practitioner(
        practitioner_code=practitioner_code,
        name=name,
        kind=registry_pb2.PractitionerKind.Value(f"PRACTITIONER_KIND_{kind.replace('-', '_').upper()}"),
        institution_codes=institution_codes,
        practice_years=practice_years,
        dual_channel=dual_channel,
        request_id=request_id,
    )
    out.reply(reply)


@add.command(
    "person",
    example="erxhub registry add person 33010000990009 --name 许示例 --id-number 990101196104129019 --sex male "
    "--born 1961-04-12 --area 330100 --insurance 310 --type 1201 --balance-fen 50000",
)
@click.argument("person_no")
@click.option("--name", required=True)
@click.option("--id-number", required=True, help="证件号码.")
@click.option("--certificate-type", default="01", show_default=True, help="证件类型; only 01 has a check character.")
@click.option("--sex", required=True, type=click.Choice(["male", "female"]))
@click.option("--born", "born_on", required=True, metavar="YYYY-MM-DD")
@click.option("--area", "insured_area_code", required=True, help="参保地.")
@click.option("--insurance", "insurance_type", required=True, help="险种, e.g. 310 or 390.")
@click.option("--type", "person_type", required=True, help="人员类别, e.g. 1101.")
@click.option("--balance-fen", "account_balance_fen", type=click.IntRange(0), default=0, help="Personal account.")
@click.option("--delegate", "delegate_person_nos", multiple=True, metavar="NO", help="May show this person's code.")
@click.option("--chronic", "chronic_codes", multiple=True, metavar="M_CODE", help="Filed chronic disease; repeatable.")
@request_id_option
@with_client("agency")
async def add_person(client: AgencyClient, ctx: Context, out: Output, sex: str, **options: Any) -> None:
    """Register an insured person with his personal account (参保登记)."""
    from erxhub.v1 import common_pb2

    reply = await client.register_person(sex=common_pb2.Sex.Value(f"SEX_{sex.upper()}"), **options)
    out.reply(reply)


@add.command(
    "key",
    example="erxhub registry add key pki/signing/H33010099901/D330100990001/0f1e2d3c4b5a69788796a5b4c3d2e1f0",
)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True))
@request_id_option
@with_client("agency")
async def add_key(client: AgencyClient, ctx: Context, out: Output, folder: Path, request_id: str | None) -> None:
    """Register the signing key in FOLDER, as `erxhub ca issue --signing` wrote it (登记签名密钥).

    Only public parts are sent.
    """
    from erxhub.cli.local_errors import failing_as
    from erxhub.crypto.ca import SigningIdentity, TrustDomainError

    with failing_as("CLI_SIGNING_FOLDER", TrustDomainError, field=str(folder), path=folder):
        held = SigningIdentity.load(folder)
    reply = await client.register_signing_key(
        subject_code=held.subject_code,
        institution_code=held.institution_code,
        suite=held.suite,
        public_key=held.key.public_key,
        valid_from_ms=held.not_before_ms,
        valid_until_ms=held.not_after_ms,
        certificate_pem=held.cert_pem,
        request_id=request_id,
    )
    out.reply(reply)


@registry.group(
    "suspend", cls=ExampleGroup, example="erxhub registry suspend practitioner D330100990001 --case 2026-17"
)
def suspend() -> None:
    """Suspend a practitioner, or pause a person's insurance."""


@suspend.command("practitioner", example="erxhub registry suspend practitioner D330100990001 --case 2026-17")
@click.argument("practitioner_code")
@click.option("--case", "case_no", required=True, metavar="NO", help="The case or rule that it is for.")
@_etag_option
@request_id_option
@with_client("agency")
async def suspend_practitioner(
    client: AgencyClient,
    ctx: Context,
    out: Output,
    practitioner_code: str,
    case_no: str,
    etag: str,
    request_id: str | None,
) -> None:
    """Suspend a practitioner under a case (暂停执业人员)."""
    from erxhub.v1 import registry_pb2

    reply = await client.change_practitioner_status(
        practitioner_code=practitioner_code,
        status=registry_pb2.PRACTITIONER_STATUS_SUSPENDED,
        case_no=case_no,
        etag=etag,
        request_id=request_id,
    )
    out.reply(reply)


@suspend.command("person", example="erxhub registry suspend person 33010000990004 --reason 断缴")
@click.argument("person_no")
@click.option("--reason", required=True)
@_etag_option
@request_id_option
@with_client("agency")
async def suspend_person(
    client: AgencyClient, ctx: Context, out: Output, person_no: str, reason: str, etag: str, request_id: str | None
) -> None:
    """Pause a person's insurance (停保)."""
    from erxhub.v1 import registry_pb2

    reply = await client.change_person_status(
        person_no=person_no,
        status=registry_pb2.PERSON_STATUS_PAUSED,
        reason=reason,
        etag=etag,
        request_id=request_id,
    )
    out.reply(reply)


@registry.group("resume", cls=ExampleGroup, example="erxhub registry resume practitioner D330100990001")
def resume() -> None:
    """Resume a practitioner, or a person's insurance."""


@resume.command("practitioner", example="erxhub registry resume practitioner D330100990001")
@click.argument("practitioner_code")
@_etag_option
@request_id_option
@with_client("agency")
async def resume_practitioner(
    client: AgencyClient, ctx: Context, out: Output, practitioner_code: str, etag: str, request_id: str | None
) -> None:
    """Let a suspended practitioner act again (恢复执业人员)."""
    from erxhub.v1 import registry_pb2

    reply = await client.change_practitioner_status(
        practitioner_code=practitioner_code,
        status=registry_pb2.PRACTITIONER_STATUS_ACTIVE,
        etag=etag,
        request_id=request_id,
    )
    out.reply(reply)


@resume.command("person", example="erxhub registry resume person 33010000990004")
@click.argument("person_no")
@_etag_option
@request_id_option
@with_client("agency")
async def resume_person(
    client: AgencyClient, ctx: Context, out: Output, person_no: str, etag: str, request_id: str | None
) -> None:
    """Resume a person's insurance (恢复参保)."""
    from erxhub.v1 import registry_pb2

    reply = await client.change_person_status(
        person_no=person_no,
        status=registry_pb2.PERSON_STATUS_ACTIVE,
        etag=etag,
        request_id=request_id,
    )
    out.reply(reply)


@registry.group("list", cls=ExampleGroup, example="erxhub registry list institutions")
def list_() -> None:
    """What is registered in the agency's area."""


@list_.command("institutions", example="erxhub registry list institutions -o json")
@with_client("agency")
async def list_institutions(client: AgencyClient, ctx: Context, out: Output) -> None:
    """The institutions of the area, with agreements and keys."""
    rows = [row async for row in _all(client.list_institutions, "institutions")]
    for row in rows if out.format == "table" else ():
        row["agreements"] = [f"{one['kind']} {one['status']}" for one in row["agreements"]]
        row["keys"] = len(row["keys"])
    out.rows(rows, ("institution_code", "name", "level", "agreements", "keys", "etag") if out.format == "table" else ())


@list_.command("practitioners", example="erxhub registry list practitioners H33010099901")
@click.argument("institution_code")
@with_client("agency")
async def list_practitioners(client: AgencyClient, ctx: Context, out: Output, institution_code: str) -> None:
    """The practitioners registered at an institution, with their keys."""

    async def page(**options: Any) -> Any:
        return await client.list_practitioners(institution_code=institution_code, **options)

    rows = [row async for row in _all(page, "practitioners")]
    for row in rows if out.format == "table" else ():
        row["keys"] = [one["key_id"] + (" revoked" if one["revoked"] else "") for one in row["keys"]]
    out.rows(rows, ("practitioner_code", "name", "kind", "status", "practice_years", "keys", "etag"))


@list_.command("person", example="erxhub registry list person 33010000990001")
@click.argument("person_no")
@with_client("agency")
async def list_person(client: AgencyClient, ctx: Context, out: Output, person_no: str) -> None:
    """One insured person; the hub lists no persons."""
    from erxhub.cli.records import record

    reply = await client.get_person(person_no=person_no)
    out.object(record(reply.person))


async def _all(page: Callable[..., Awaitable[Any]], field: str) -> AsyncIterator[dict[str, Any]]:
    """Every row of a paged list."""
    from erxhub.cli.records import record

    token = ""
    while True:
        reply = await page(page_size=PAGE_SIZE, page_token=token)
        for message in getattr(reply, field):
            yield record(message)
        token = reply.next_page_token
        if not token:
            return


@registry.command("erase", example="erxhub registry erase RX_NO --basis '处方管理办法第五十条：保存期满'")
@click.argument("rx_no")
@click.option("--basis", "legal_basis", required=True, help="The law or decision (清除依据); it stays in the ledger.")
@request_id_option
@with_client("agency")
async def erase(
    client: AgencyClient, ctx: Context, out: Output, rx_no: str, legal_basis: str, request_id: str | None
) -> None:
    """Erase what a prescription said, once it need not be kept any longer (清除保存期满的处方内容).

    It cannot be undone. That the entries exist, and their order, remain provable. Refused while a retention class keeps
    it, with the earliest day. On PostgreSQL the bytes leave the disk with the next `erxhub db scrub`.
    """
    reply = await client.erase_content(rx_no=rx_no, legal_basis=legal_basis, request_id=request_id)
    out.reply(reply)
