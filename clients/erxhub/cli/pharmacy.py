"""`erxhub pharmacy`: from the patient at the counter to the goods in his hands (零售药店).

Owns the words of these verbs and where a download lies: in the folder that `--out` and `--from` name, by default one
called like the prescription. It must never compute what a fund or an account pays; a quote is signed as it came.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from erxhub.cli.arguments import LotArgument, LotType, SaleArgument, SaleType
from erxhub.cli.commands import group
from erxhub.cli.local_errors import Failed, failing_as
from erxhub.cli.replies import show, show_rows, signed_request_id_option, watch, watch_options
from erxhub.cli.session import request_id_option, with_client

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from erxhub.cli.context import Context
    from erxhub.cli.output import Output
    from erxhub.cli.statements import Download
    from erxhub.client import PharmacyClient
    from erxhub.v1 import dispensing_pb2

DECISIONS: Final = ("pass", "reject", "return-to-doctor")
TRANSACTIONS: Final = {"settle": "2102", "undo": "2103"}
LIST_COLUMNS: Final = (
    "authorization_no",
    "rx_no",
    "hospital_name",
    "line_count",
    "statuses",
    "valid_until",
)

_Function = TypeVar("_Function", bound=Callable[..., Any])


def from_option(function: _Function) -> _Function:
    """`--from DIR`; the command gets `folder`."""
    return click.option(
        "--from",
        "folder",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help="What `download` wrote; by default ./RX_NO.",
    )(function)


@group("pharmacy", example="erxhub pharmacy list VOUCHER_REF")
def pharmacy() -> None:
    """Prescriptions, as a pharmacy: take one, review it, settle, dispense, hand over."""


# --- taking a prescription ---


@pharmacy.command("list", example="erxhub pharmacy list VOUCHER_REF")
@click.argument("voucher_ref")
@click.option("--page-size", type=click.IntRange(0, 200), default=0, help="Rows of a page; 0 for the hub's default.")
@click.option("--page-token", default="", help="The next page, as the page before said.")
@request_id_option
@with_client("pharmacy")
async def list_(
    client: PharmacyClient,
    ctx: Context,
    out: Output,
    voucher_ref: str,
    page_size: int,
    page_token: str,
    request_id: str | None,
) -> None:
    """The person's prescriptions, each with a one-time number for `download` (流转授权).

    The reference comes from `voucher verify --for download`. Listing again replaces the earlier numbers.
    """
    from erxhub.cli.records import record

    reply = await client.list_by_voucher(
        voucher_ref=voucher_ref, page_size=page_size, page_token=page_token, request_id=request_id
    )
    show_rows(out, [record(one) for one in reply.prescriptions], LIST_COLUMNS)
    if reply.next_page_token:
        out.say(f"there are more: --page-token {reply.next_page_token}")


@pharmacy.command(
    "download",
    example="""\
erxhub pharmacy download --authorization AUTHORIZATION_NO
erxhub pharmacy download --qr QR_VALUE --out shelf/17""",
)
@click.option("--authorization", default="", metavar="NO", help="A one-time number of `pharmacy list`.")
@click.option("--qr", default="", metavar="VALUE", help="The patient's QR value, which is resolved first.")
@click.option("--token", default="", metavar="TOKEN", help="The token of a QR value that was resolved before.")
@click.option(
    "--out",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where to; by default ./RX_NO.",
)
@request_id_option
@with_client("pharmacy")
async def download(
    client: PharmacyClient,
    ctx: Context,
    out: Output,
    authorization: str,
    qr: str,
    token: str,
    folder: Path | None,
    request_id: str | None,
) -> None:
    """Download and hold a prescription (处方下载).

    Writes prescription.pdf (or .ofd) for people, prescription.bin, which is exactly what the doctor signed, and
    signatures.json.
    """
    from erxhub.cli.statements import prepare_folder, write_download

    if bool(authorization) + bool(qr) + bool(token) != 1:
        options = "--authorization, --qr, --token"
        raise Failed("CLI_OPTION_ONE_OF", field=options, options=options)
    prepare_folder(folder or Path())
    if qr:
        token = (await client.resolve_qr(rx_qr=qr)).rx_token
    reply = await client.download(authorization_no=authorization, rx_token=token, request_id=request_id)
    written = write_download(folder or Path(reply.rx_no), reply)
    _show_download(out, reply, written)


@pharmacy.command("release", example="erxhub pharmacy release RX_NO --reason 'not in stock'")
@click.argument("rx_no")
@click.option("--reason", default="", help="Why.")
@request_id_option
@with_client("pharmacy")
async def release(
    client: PharmacyClient, ctx: Context, out: Output, rx_no: str, reason: str, request_id: str | None
) -> None:
    """Give the hold back (释放)."""
    show(out, await client.release(rx_no=rx_no, reason=reason, request_id=request_id), rx_no=rx_no)


@pharmacy.command("review", example="erxhub pharmacy review RX_NO pass --pharmacist YS330100990001")
@click.argument("rx_no")
@click.argument("decision", type=click.Choice(DECISIONS))
@click.option("--pharmacist", required=True, metavar="CODE", help="Who signs, with the context's key of this code.")
@click.option("--opinion", help="审核意见; a rejection states its reason, a return its question.")
@from_option
@signed_request_id_option
@with_client("pharmacy")
async def review(
    client: PharmacyClient,
    ctx: Context,
    out: Output,
    rx_no: str,
    decision: str,
    pharmacist: str,
    opinion: str | None,
    folder: Path | None,
    request_id: str | None,
) -> None:
    """The pharmacist passes, rejects or returns the prescription (审方)."""
    from erxhub.v1 import signed_pb2

    if opinion is None:
        if decision != "pass":
            raise Failed("CLI_OPTION_NEEDS", field="--opinion", options=decision, other="--opinion")
        opinion = "审核通过"
    kept = _kept(folder, rx_no)
    reply = await client.review(
        rx_no=rx_no,
        pharmacist_code=pharmacist,
        decision=signed_pb2.ReviewDecision.Value(f"REVIEW_DECISION_{decision.upper().replace('-', '_')}"),
        opinion=opinion,
        prescription=kept.signed,
        pharmacist_key=ctx.signing_key(pharmacist),
        request_id=request_id,
    )
    show(out, reply, rx_no=rx_no)


# --- money ---


@pharmacy.command(
    "quote", example="erxhub pharmacy quote RX_NO --voucher-ref REF --line 1=1@12.50 --line 2=1@30 --save quote.json"
)
@click.argument("rx_no")
@click.option("--voucher-ref", required=True, help="From `voucher verify --for purchase` (or online-purchase).")
@click.option(
    "--line",
    "typed",
    type=SaleType(),
    multiple=True,
    help="A sold line; without any, all at the prescription's prices.",
)
@click.option("--account/--no-account", default=True, show_default=True, help="Whether the personal account pays too.")
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="Write the quote, for `pharmacy settle`.")
@from_option
@request_id_option
@with_client("pharmacy")
async def quote(
    client: PharmacyClient,
    ctx: Context,
    out: Output,
    rx_no: str,
    voucher_ref: str,
    typed: tuple[SaleArgument, ...],
    account: bool,
    save: Path | None,
    folder: Path | None,
    request_id: str | None,
) -> None:
    """What fund, account and patient pay, in fen (预结算); -o json is what `settle --quote` reads."""
    from erxhub.cli.statements import sale_lines, write_quote

    lines = sale_lines(typed, _kept_for(typed, folder, rx_no))
    reply = await client.quote(
        rx_no=rx_no, voucher_ref=voucher_ref, lines=lines, use_account=account, request_id=request_id
    )
    if save is not None:
        write_quote(save, reply)
    show(out, reply, rx_no=rx_no)


@pharmacy.command(
    "settle",
    example="""\
erxhub pharmacy settle RX_NO --quote quote.json --voucher-ref REF
erxhub pharmacy settle RX_NO --self-paid --line 1=1@12.50 --line 2=1@30""",
)
@click.argument("rx_no")
@click.option(
    "--quote", "path", metavar="FILE", help="What `pharmacy quote -o json` printed or --save wrote; - for stdin."
)
@click.option("--voucher-ref", default="", help="With a quote: from `voucher verify --for purchase`.")
@click.option("--self-paid", is_flag=True, help="The patient paid everything himself (自费).")
@click.option("--line", "typed", type=SaleType(), multiple=True, help="With --self-paid: a sold line.")
@from_option
@signed_request_id_option
@with_client("pharmacy")
async def settle(
    client: PharmacyClient,
    ctx: Context,
    out: Output,
    rx_no: str,
    path: str | None,
    voucher_ref: str,
    self_paid: bool,
    typed: tuple[SaleArgument, ...],
    folder: Path | None,
    request_id: str | None,
) -> None:
    """Settle a quote, or record a self-payment, under the pharmacy's seal (结算)."""
    from erxhub.cli.statements import read_quote, sale_lines

    reply: Message
    request_id = request_id or client.request_ids.new()
    seal_key = ctx.signing_key(ctx.id)
    if self_paid:
        if path is not None:
            raise Failed("CLI_OPTION_ALONE", field="--quote", options="--quote", other="--self-paid")
        lines = sale_lines(typed, _kept_for(typed, folder, rx_no))
        with failing_as("CLI_LINES_INVALID", ValueError, field="--line"):
            reply = await client.record_self_payment(rx_no=rx_no, lines=lines, seal_key=seal_key, request_id=request_id)
    else:
        if path is None or typed:
            raise Failed("CLI_OPTION_ONE_OF", field="--quote", options="--quote, --self-paid + --line")
        quote_id, amounts = read_quote(path)
        reply = await client.settle(
            rx_no=rx_no,
            quote_id=quote_id,
            amounts=amounts,
            voucher_ref=voucher_ref,
            seal_key=seal_key,
            request_id=request_id,
        )
    show(out, reply, rx_no=rx_no, request_id=request_id)


@pharmacy.command("undo", example="erxhub pharmacy undo RX_NO SETTLEMENT_ID --reason 'patient changed his mind'")
@click.argument("rx_no")
@click.argument("settlement_id")
@click.option("--reason", required=True, help="Why (撤销原因).")
@request_id_option
@with_client("pharmacy")
async def undo(
    client: PharmacyClient,
    ctx: Context,
    out: Output,
    rx_no: str,
    settlement_id: str,
    reason: str,
    request_id: str | None,
) -> None:
    """Give a settlement back, as a business act (结算撤销)."""
    request_id = request_id or client.request_ids.new()
    reply = await client.undo_settlement(rx_no=rx_no, settlement_id=settlement_id, reason=reason, request_id=request_id)
    show(out, reply, rx_no=rx_no, settlement_id=settlement_id, request_id=request_id)


@pharmacy.command("reverse", example="erxhub pharmacy reverse REQUEST_ID --of settle")
@click.argument("original_request_id")
@click.option("--of", "original", type=click.Choice(tuple(TRANSACTIONS)), default="settle", show_default=True)
@click.option("--person", default="", metavar="PERSON", help="人员编号, when it is known.")
@request_id_option
@with_client("pharmacy")
async def reverse(
    client: PharmacyClient,
    ctx: Context,
    out: Output,
    original_request_id: str,
    original: str,
    person: str,
    request_id: str | None,
) -> None:
    """Repair an unknown outcome: undo what the request with this id did, if it did anything (冲正)."""
    reply = await client.reverse_settlement(
        original_request_id=original_request_id,
        original_transaction=TRANSACTIONS[original],
        person_no=person,
        request_id=request_id,
    )
    show(out, reply, original_request_id=original_request_id)


# --- goods ---


@pharmacy.command(
    "dispense",
    example="""\
erxhub pharmacy dispense RX_NO --settlement SETTLEMENT_ID --reviewer YS330100990001 --dispenser PY330100990001 \\
    --checker PY330100990003 --lot 1=1@L2601/2027-12-31/83000000000000000001 \\
    --lot 2=1@L2602/2027-12-31/83000000000000000002""",
)
@click.argument("rx_no")
@click.option("--settlement", default="", metavar="ID", help="From `settle`.")
@click.option("--reviewer", required=True, metavar="CODE", help="The pharmacist who passed the review (审核药师).")
@click.option("--dispenser", required=True, metavar="CODE", help="Who picks (配药人).")
@click.option("--checker", required=True, metavar="CODE", help="Who checks, another person (核对人).")
@click.option("--lot", "typed", type=LotType(), multiple=True, help="A lot that leaves the shelf.")
@click.option(
    "--lots", "path", metavar="FILE", help="Lots as a JSON array in protobuf-JSON form; - for standard input."
)
@click.option("--split", type=int, multiple=True, metavar="LINE_NO", help="This line is sold from opened packs (拆零).")
@click.option(
    "--uncoded", type=int, multiple=True, metavar="LINE_NO", help="This line's stock came without trace codes."
)
@from_option
@signed_request_id_option
@with_client("pharmacy")
async def dispense(
    client: PharmacyClient,
    ctx: Context,
    out: Output,
    rx_no: str,
    settlement: str,
    reviewer: str,
    dispenser: str,
    checker: str,
    typed: tuple[LotArgument, ...],
    path: str | None,
    split: tuple[int, ...],
    uncoded: tuple[int, ...],
    folder: Path | None,
    request_id: str | None,
) -> None:
    """Pick, check and take the goods out, under the pharmacy's seal; refused as a whole (销售出库)."""
    from erxhub.cli.statements import dispensed_lots, read_lots

    if bool(typed) == (path is not None):
        raise Failed("CLI_OPTION_ONE_OF", field="--lot", options="--lot, --lots")
    lots = (
        read_lots(path)
        if path is not None
        else dispensed_lots(typed, _kept_for(typed, folder, rx_no), split_lines=split, uncoded_lines=uncoded)
    )
    reply = await client.dispense(
        rx_no=rx_no,
        settlement_id=settlement,
        reviewer_code=reviewer,
        dispenser_code=dispenser,
        checker_code=checker,
        lots=lots,
        seal_key=ctx.signing_key(ctx.id),
        request_id=request_id,
    )
    show(out, reply, rx_no=rx_no)


@pharmacy.command("void", example="erxhub pharmacy void RX_NO --reason 'wrong pack'")
@click.argument("rx_no")
@click.option("--reason", required=True, help="Why (作废原因).")
@request_id_option
@with_client("pharmacy")
async def void(
    client: PharmacyClient, ctx: Context, out: Output, rx_no: str, reason: str, request_id: str | None
) -> None:
    """Void a dispensing before the goods are out (调配作废)."""
    show(out, await client.void_dispense(rx_no=rx_no, reason=reason, request_id=request_id), rx_no=rx_no)


@pharmacy.command("handover", example="erxhub pharmacy handover RX_NO --voucher-ref REF --staff PY330100990001")
@click.argument("rx_no")
@click.option("--voucher-ref", required=True, help="From `voucher verify --for pickup`, of patient or delegate.")
@click.option("--staff", default="", metavar="CODE", help="Who hands over.")
@signed_request_id_option
@with_client("pharmacy")
async def handover(
    client: PharmacyClient,
    ctx: Context,
    out: Output,
    rx_no: str,
    voucher_ref: str,
    staff: str,
    request_id: str | None,
) -> None:
    """Hand the goods to the patient, under the pharmacy's seal (取药交付)."""
    reply = await client.hand_over(
        rx_no=rx_no,
        staff_code=staff,
        voucher_ref=voucher_ref,
        seal_key=ctx.signing_key(ctx.id),
        request_id=request_id,
    )
    show(out, reply, rx_no=rx_no, handed_over=True)


@pharmacy.command("watch", example="erxhub pharmacy watch --from-start -o jsonl")
@watch_options
@with_client("pharmacy")
async def watch_(client: PharmacyClient, ctx: Context, out: Output, cursor: str, from_start: bool, count: int) -> None:
    """Print what happens to this pharmacy's orders, step by step."""
    await watch(client.watch(cursor=cursor, from_start=from_start), out, count)


# --- what the verbs share ---


def _show_download(out: Output, reply: dispensing_pb2.DownloadPrescriptionResponse, written: list[Path]) -> None:
    """The reply without its contents, which lie in the files now, and with the lines that `quote` sells."""
    from erxhub.cli.records import record
    from erxhub.v1 import dispensing_pb2, signed_pb2

    bare = dispensing_pb2.DownloadPrescriptionResponse()
    bare.CopyFrom(reply)
    contents = ("prescription", "review", "seal", "file")
    for field in contents:
        bare.ClearField(field)  # type: ignore[arg-type]
    document = signed_pb2.PrescriptionDocument.FromString(reply.prescription.payload)
    shown = {name: value for name, value in record(bare).items() if name not in contents}
    if out.format == "table":
        shown.pop("receipt")
    lines = [
        {name: getattr(line, name) for name in ("line_no", "drug_code", "generic_name", "quantity", "quantity_unit")}
        for line in document.prescription.lines
    ]
    out.object({**shown, "lines": lines, "files": [str(path) for path in written]})


def _kept(folder: Path | None, rx_no: str) -> Download:
    from erxhub.cli.statements import read_download

    return read_download(folder or Path(rx_no), rx_no)


def _kept_for(
    typed: tuple[SaleArgument, ...] | tuple[LotArgument, ...], folder: Path | None, rx_no: str
) -> Download | None:
    """The download, when something typed leaves its drug to it; None when nothing does."""
    if typed and all(one.drug_code for one in typed):
        return None
    return _kept(folder, rx_no)
