"""`erxhub encounter`: a visit from its registration to its end (就诊).

Owns the words of these verbs. It must never decide which proof of identity a visit needs; the hub does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from erxhub.cli.arguments import DiagnosisArgument, DiagnosisType
from erxhub.cli.commands import group
from erxhub.cli.replies import show, signed_request_id_option
from erxhub.cli.session import request_id_option, with_client

if TYPE_CHECKING:
    from erxhub.cli.context import Context
    from erxhub.cli.output import Output
    from erxhub.client import HospitalClient


@group("encounter", example="erxhub encounter register 33010000990001 --voucher-ref REF")
def encounter() -> None:
    """A visit (就诊), as a hospital: every verb after `register` takes the encounter_id that it prints."""


@encounter.command("register", example="erxhub encounter register 33010000990001 --voucher-ref REF --department 全科")
@click.argument("person_no")
@click.option("--voucher-ref", default="", help="From `voucher verify --for visit`, at a visit in person.")
@click.option("--online-identity", default="", help="From `voucher verify --for online-identity`; an internet visit.")
@click.option("--id-number", default="", help="Identity card instead of the e-voucher (居民身份证).")
@click.option("--card-sn", default="", help="With --id-number: a social security card (社会保障卡).")
@click.option("--internet/--in-person", default=None, help="By default internet exactly with --online-identity.")
@click.option("--med-type", default="11", show_default=True, help="医疗类别: 11 ordinary outpatient.")
@click.option("--department", default="", help="科室.")
@click.option("--first-visit", is_flag=True, help="初诊.")
@request_id_option
@with_client("hospital")
async def register(
    client: HospitalClient,
    ctx: Context,
    out: Output,
    person_no: str,
    voucher_ref: str,
    online_identity: str,
    id_number: str,
    card_sn: str,
    internet: bool | None,
    med_type: str,
    department: str,
    first_visit: bool,
    request_id: str | None,
) -> None:
    """Register a visit (挂号); prints its encounter_id."""
    from erxhub.v1 import common_pb2, encounter_pb2

    is_online = bool(online_identity) if internet is None else internet
    certificate = encounter_pb2.VISIT_CERTIFICATE_TYPE_VOUCHER
    if id_number and not (voucher_ref or online_identity):
        certificate = encounter_pb2.VISIT_CERTIFICATE_TYPE_ID_CARD
    if card_sn:
        certificate = encounter_pb2.VISIT_CERTIFICATE_TYPE_SOCIAL_CARD
    reply = await client.register_encounter(
        person_no=person_no,
        visit_kind=common_pb2.VISIT_KIND_INTERNET if is_online else common_pb2.VISIT_KIND_OFFLINE,
        certificate_type=certificate,
        med_type=med_type,
        voucher_ref=voucher_ref,
        online_identity_no=online_identity,
        id_number=id_number,
        card_sn=card_sn,
        department=department,
        first_visit=first_visit,
        request_id=request_id,
    )
    show(out, reply)


@encounter.command("start", example="erxhub encounter start ENCOUNTER_ID --doctor D330100990001")
@click.argument("encounter_id")
@click.option("--doctor", required=True, metavar="CODE", help="The treating doctor.")
@request_id_option
@with_client("hospital")
async def start(
    client: HospitalClient, ctx: Context, out: Output, encounter_id: str, doctor: str, request_id: str | None
) -> None:
    """The doctor begins the consultation (接诊)."""
    reply = await client.start_encounter(encounter_id=encounter_id, doctor_code=doctor, request_id=request_id)
    show(out, reply, encounter_id=encounter_id, doctor_code=doctor)


@encounter.command("attest", example="erxhub encounter attest ENCOUNTER_ID --media doctor.mp4")
@click.argument("encounter_id")
@click.option(
    "--media",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="The recording; only its SHA-256 is sent.",
)
@click.option("--liveness/--no-liveness", default=True, show_default=True, help="Whether the liveness check passed.")
@request_id_option
@with_client("hospital")
async def attest(
    client: HospitalClient,
    ctx: Context,
    out: Output,
    encounter_id: str,
    media: Path,
    liveness: bool,
    request_id: str | None,
) -> None:
    """Attest by audio or video that the treating doctor is genuine (医师真实性核验)."""
    with media.open("rb") as recording:
        media_sha256 = hashlib.file_digest(recording, "sha256").digest()
    reply = await client.attest_doctor(
        encounter_id=encounter_id, media_sha256=media_sha256, liveness_passed=liveness, request_id=request_id
    )
    show(out, reply, encounter_id=encounter_id, media_sha256=media_sha256.hex())


@encounter.command(
    "follow-up",
    example="erxhub encounter follow-up ENCOUNTER_ID --disease I10.x00x002 --hospital H33010099902 --on 2026-01-15",
)
@click.argument("encounter_id")
@click.option("--disease", required=True, metavar="CODE", help="The disease of the earlier visit.")
@click.option("--hospital", required=True, metavar="CODE", help="Where the earlier visit was.")
@click.option("--on", "visit_on", required=True, metavar="YYYY-MM-DD", help="When it was.")
@request_id_option
@with_client("hospital")
async def follow_up(
    client: HospitalClient,
    ctx: Context,
    out: Output,
    encounter_id: str,
    disease: str,
    hospital: str,
    visit_on: str,
    request_id: str | None,
) -> None:
    """Prove that an internet visit is a follow-up (复诊证明)."""
    reply = await client.prove_follow_up(
        encounter_id=encounter_id,
        disease_code=disease,
        earlier_hospital_code=hospital,
        earlier_visit_on=visit_on,
        request_id=request_id,
    )
    show(out, reply, encounter_id=encounter_id, disease_code=disease)


@encounter.command(
    "diagnose",
    example="erxhub encounter diagnose ENCOUNTER_ID --doctor D330100990001 --diagnosis I10.x00x002:高血压",
)
@click.argument("encounter_id")
@click.option("--doctor", required=True, metavar="CODE", help="Who signs, with the context's key of this code.")
@click.option(
    "--diagnosis",
    "typed",
    type=DiagnosisType(),
    multiple=True,
    required=True,
    help="The first is the main one; the name is looked up when it is left out; type 1 western, 2 and 3 Chinese.",
)
@click.option("--amend", "reason", metavar="REASON", help="Replace the recorded diagnosis, and say why (更正诊断).")
@signed_request_id_option
@with_client("hospital")
async def diagnose(
    client: HospitalClient,
    ctx: Context,
    out: Output,
    encounter_id: str,
    doctor: str,
    typed: tuple[DiagnosisArgument, ...],
    reason: str | None,
    request_id: str | None,
) -> None:
    """Record, or amend, the diagnosis under the doctor's signature (诊断)."""
    from google.protobuf.message import Message

    from erxhub.cli.records import record
    from erxhub.cli.statements import diagnoses_of

    doctor_key = ctx.signing_key(doctor)
    diagnoses = diagnoses_of(typed, await _names(client, [one.code for one in typed if not one.name]))
    if reason is None:
        reply: Message = await client.record_diagnosis(
            encounter_id=encounter_id,
            doctor_code=doctor,
            diagnoses=diagnoses,
            doctor_key=doctor_key,
            request_id=request_id,
        )
    else:
        reply = await client.amend_diagnosis(
            encounter_id=encounter_id,
            doctor_code=doctor,
            diagnoses=diagnoses,
            doctor_key=doctor_key,
            reason=reason,
            request_id=request_id,
        )
    show(out, reply, encounter_id=encounter_id, diagnoses=[record(one) for one in diagnoses])


@encounter.command("close", example="erxhub encounter close ENCOUNTER_ID")
@click.argument("encounter_id")
@request_id_option
@with_client("hospital")
async def close(client: HospitalClient, ctx: Context, out: Output, encounter_id: str, request_id: str | None) -> None:
    """Close the visit (结束就诊)."""
    show(out, await client.close_encounter(encounter_id=encounter_id, request_id=request_id), encounter_id=encounter_id)


@encounter.command("cancel", example="erxhub encounter cancel ENCOUNTER_ID --reason 'patient left'")
@click.argument("encounter_id")
@click.option("--reason", default="", help="Why (退号原因).")
@request_id_option
@with_client("hospital")
async def cancel(
    client: HospitalClient, ctx: Context, out: Output, encounter_id: str, reason: str, request_id: str | None
) -> None:
    """Cancel the visit while no prescription of it is in force (退号)."""
    reply = await client.cancel_encounter(encounter_id=encounter_id, reason=reason, request_id=request_id)
    show(out, reply, encounter_id=encounter_id)


async def _names(client: HospitalClient, codes: Iterable[str]) -> dict[str, str]:
    """The names of these codes in the hub's disease list; a code that it does not have is left out."""
    from erxhub.v1 import catalog_pb2

    names: dict[str, str] = {}
    for code in codes:
        reply = await client.list_catalog(dataset=catalog_pb2.CATALOG_DATASET_DISEASES, code_prefix=code, page_size=1)
        # Rows come by code, so the code itself is the first of all that begin with it.
        names |= {row.disease.code: row.disease.name for row in reply.entries if row.disease.code == code}
    return names
