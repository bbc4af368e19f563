"""`erxhub rx`: what a hospital does with prescriptions, from the pre-check to the withdrawal (处方).

Owns the words of these verbs. It must never write a medical value that the file does not have; what a doctor signs is
what was pre-checked.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from erxhub.cli.commands import group
from erxhub.cli.local_errors import Failed, unusable
from erxhub.cli.replies import (
    limit_option,
    rows_of,
    show,
    show_rows,
    signed_request_id_option,
    watch,
    watch_options,
)
from erxhub.cli.session import request_id_option, with_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from erxhub.cli.context import Context
    from erxhub.cli.output import Output
    from erxhub.client import HospitalClient
    from erxhub.v1 import common_pb2

LIST_COLUMNS: Final = ("rx_no", "hospital_rx_no", "statuses", "doctor_code", "prescribed_at", "valid_until")


@group("rx", example="erxhub rx precheck --file rx.json --encounter ENCOUNTER_ID --save checked.json")
def rx() -> None:
    """Prescriptions (处方), as the hospital that writes them."""


@rx.command(
    "precheck",
    example="""\
erxhub rx precheck --sample --encounter ENCOUNTER_ID --person 33010000990001 --save checked.json
erxhub rx precheck --file rx.json --encounter ENCOUNTER_ID --person 33010000990001 --save checked.json""",
)
@click.option("--file", "path", metavar="FILE", help="The prescription in protobuf-JSON form; - for standard input.")
@click.option("--sample", is_flag=True, help="The fictional world's own prescription instead of a file.")
@click.option("--lines", type=click.IntRange(1, 5), default=2, show_default=True, help="With --sample: how many drugs.")
@click.option("--encounter", "encounter_id", default="", metavar="ID", help="The visit, over the file's own.")
@click.option("--person", "person_no", default="", metavar="PERSON", help="The patient, over the file's own.")
@click.option("--doctor", "doctor_code", default="", metavar="CODE", help="The doctor, over the file's own.")
@click.option(
    "--save", type=click.Path(dir_okay=False, path_type=Path), help="Write the checked prescription, for `rx upload`."
)
@request_id_option
@with_client("hospital")
async def precheck(
    client: HospitalClient,
    ctx: Context,
    out: Output,
    path: str | None,
    sample: bool,
    lines: int,
    encounter_id: str,
    person_no: str,
    doctor_code: str,
    save: Path | None,
    request_id: str | None,
) -> None:
    """Check a prescription before it is signed; prints rx_no and rx_trace_code (预核验).

    Hospital, hospital number, time and validity are filled in where the file has none.
    """
    from erxhub.cli.statements import fill_prescription, read_message, write_message
    from erxhub.v1 import common_pb2

    if sample == (path is not None):
        raise Failed("CLI_OPTION_ONE_OF", field="--file, --sample", options="--file, --sample")
    now_ms = client.connection.environment.now_ms()
    if path is not None:
        prescription = read_message(path, common_pb2.Prescription)
    else:
        prescription = _sample(encounter_id, person_no, now_ms, lines)
    fill_prescription(
        prescription,
        now_ms=now_ms,
        hospital_code=ctx.id,
        hospital_rx_no=client.request_ids.new(),
        encounter_id=encounter_id,
        person_no=person_no,
        doctor_code=doctor_code,
    )
    if save is not None:
        write_message(save, prescription)
    reply = await client.precheck(prescription=prescription, request_id=request_id)
    show(out, reply, saved=str(save) if save else None)


@rx.command(
    "upload",
    example="""\
erxhub rx upload RX_NO RX_TRACE_CODE --file checked.json --pdf rx.pdf --pharmacist HY330100990001
erxhub rx upload RX_NO RX_TRACE_CODE --file checked.json --sample-pdf --pharmacist HY330100990001""",
)
@click.argument("rx_no")
@click.argument("rx_trace_code")
@click.option("--file", "path", required=True, metavar="FILE", help="The prescription exactly as it was pre-checked.")
@click.option("--pdf", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The file that people read.")
@click.option("--ofd", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The same as OFD.")
@click.option("--sample-pdf", is_flag=True, help="A one-page PDF that says it is simulated.")
@click.option("--pharmacist", required=True, metavar="CODE", help="The hospital pharmacist who passed it.")
@click.option("--opinion", default="审核通过", show_default=True, help="What the pharmacist says.")
@click.option(
    "--only-sign",
    "signed_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the signed request here and send nothing; for `rx upload-many`, within 15 minutes.",
)
@signed_request_id_option
@with_client("hospital")
async def upload(
    client: HospitalClient,
    ctx: Context,
    out: Output,
    rx_no: str,
    rx_trace_code: str,
    path: str,
    pdf: Path | None,
    ofd: Path | None,
    sample_pdf: bool,
    pharmacist: str,
    opinion: str,
    signed_path: Path | None,
    request_id: str | None,
) -> None:
    """Sign and upload a checked prescription with its file; it takes effect (处方上传).

    Doctor, hospital pharmacist and hospital sign with the context's keys of their codes.
    """
    from erxhub.cli.statements import checked_prescription, write_message
    from erxhub.client.signing import signed_upload
    from erxhub.v1 import signed_pb2

    if (pdf is not None) + (ofd is not None) + sample_pdf != 1:
        options = "--pdf, --ofd, --sample-pdf"
        raise Failed("CLI_OPTION_ONE_OF", field=options, options=options)
    prescription = checked_prescription(path)
    people_file = _sample_pdf(rx_no) if sample_pdf else _read(pdf or ofd)
    document = signed_pb2.PrescriptionDocument(rx_no=rx_no, rx_trace_code=rx_trace_code, prescription=prescription)
    request = signed_upload(
        request_id=request_id or client.request_ids.new(),
        document=document,
        pharmacist_code=pharmacist,
        doctor_key=ctx.signing_key(prescription.doctor_code),
        pharmacist_key=ctx.signing_key(pharmacist),
        seal_key=ctx.signing_key(prescription.hospital_code),
        file=people_file,
        media_type="application/ofd" if ofd else "application/pdf",
        opinion=opinion,
        hospital_code=prescription.hospital_code,
        signed_at_ms=client.connection.environment.now_ms(),
    )
    if signed_path is not None:
        write_message(signed_path, request)
        out.object({"request_id": request.request_id, "rx_no": rx_no, "saved": str(signed_path)})
        return
    show(out, await client.send(request))


@rx.command("upload-many", example="erxhub rx upload-many signed-*.json -o jsonl")
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE..."
)
@with_client("hospital")
async def upload_many(client: HospitalClient, ctx: Context, out: Output, files: tuple[Path, ...]) -> None:
    """Send signed uploads over one stream, each file one that `rx upload --only-sign` wrote.

    One row for each, in order; a refused one does not stop the rest, and the exit code is then 1. Sending all of them
    again does nothing twice.
    """
    from erxhub.cli.exits import NEGATIVE
    from erxhub.cli.statements import read_message
    from erxhub.v1 import prescribing_pb2

    async def requests() -> AsyncIterator[prescribing_pb2.UploadPrescriptionRequest]:
        for path in files:
            yield read_message(str(path), prescribing_pb2.UploadPrescriptionRequest)

    rows: list[dict[str, str]] = []
    async for request, outcome in client.upload_many(requests()):
        row = {"file": str(files[len(rows)]), "request_id": request.request_id, "rx_no": "", "code": "OK", "text": ""}
        if isinstance(outcome, prescribing_pb2.UploadPrescriptionResponse):
            row["rx_no"] = outcome.rx_no
        else:
            row |= {"code": outcome.code, "text": f"{outcome.text_en} {outcome.text_zh}"}
        rows.append(row)
    out.rows(rows, ("file", "request_id", "rx_no", "code", "text"))
    if any(row["code"] != "OK" for row in rows):
        raise click.exceptions.Exit(NEGATIVE)


@rx.command("get", example="erxhub rx get RX_NO -o json")
@click.argument("rx_no")
@with_client("hospital")
async def get(client: HospitalClient, ctx: Context, out: Output, rx_no: str) -> None:
    """One prescription of this hospital: its statuses, content and orders."""
    show(out, await client.get(rx_no=rx_no))


@rx.command("list", example="erxhub rx list --limit 10")
@limit_option
@with_client("hospital")
async def list_(client: HospitalClient, ctx: Context, out: Output, limit: int) -> None:
    """This hospital's prescriptions, newest first."""
    show_rows(out, await rows_of(client.list_prescriptions, "prescriptions", limit), LIST_COLUMNS)


@rx.command("revoke", example="erxhub rx revoke RX_NO --doctor D330100990001 --reason 'wrong dose'")
@click.argument("rx_no")
@click.option("--doctor", required=True, metavar="CODE", help="The doctor who wrote it.")
@click.option("--reason", required=True, help="Why (撤销原因).")
@request_id_option
@with_client("hospital")
async def revoke(
    client: HospitalClient, ctx: Context, out: Output, rx_no: str, doctor: str, reason: str, request_id: str | None
) -> None:
    """Withdraw a prescription that was not used (处方撤销)."""
    show(out, await client.revoke(rx_no=rx_no, doctor_code=doctor, reason=reason, request_id=request_id))


@rx.command("watch", example="erxhub rx watch --from-start -o jsonl")
@watch_options
@with_client("hospital")
async def watch_(client: HospitalClient, ctx: Context, out: Output, cursor: str, from_start: bool, count: int) -> None:
    """Print what happens to this hospital's prescriptions, step by step."""
    await watch(client.watch(cursor=cursor, from_start=from_start), out, count)


def _read(path: Path | None) -> bytes:
    try:
        return path.read_bytes() if path else b""
    except OSError as error:
        raise unusable(error, path) from None


def _sample(encounter_id: str, person_no: str, now_ms: int, lines: int) -> common_pb2.Prescription:
    from erxhub import seed

    if not encounter_id or not person_no:
        raise Failed("CLI_OPTION_NEEDS", field="--sample", options="--sample", other="--encounter, --person")
    try:
        return seed.sample_prescription(seed.SeedWorld, encounter_id, person_no, now_ms, lines)
    except KeyError:
        raise Failed("CLI_PERSON_NOT_SEEDED", field="--person", person_no=person_no) from None


def _sample_pdf(rx_no: str) -> bytes:
    from erxhub import seed

    return seed.sample_pdf(rx_no)
