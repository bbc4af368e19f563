"""RX: what a prescription must be before it is signed, and who may take it back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from erxhub.conform.hub.run import HubRun
from erxhub.conform.registry import case
from erxhub.seed.catalogue import catalogue
from erxhub.seed.world import SeedWorld
from erxhub.v1 import catalog_pb2, common_pb2, registry_pb2

PROFILES = ("dev", "strict")
DAY_MS = 86_400_000
BEIJING = timedelta(hours=8)
MANDATORY = (
    "hospital_rx_no",
    "hospital_code",
    "encounter_id",
    "person_no",
    "rx_type",
    "med_type",
    "doctor_code",
    "prescribed_at_ms",
    "valid_days",
    "valid_until_ms",
    "origin",
)
MANDATORY_IN_LINES = (
    "line_no",
    "item_type",
    "drug_code",
    "generic_name",
    "supply_days",
    "quantity",
    "quantity_unit",
)
VIOLATIONS_MAX = 16


@case(
    id="RX-004",
    revision=1,
    since="0.2",
    status="stable",
    first_release=True,
    title_zh="必填字段逐一缺失",
    title_en="Each mandatory field left out in turn",
    level="MUST",
    verifies=("ERR-INPUT_MALFORMED", "RX-P-05"),
    profiles=PROFILES,
)
async def mandatory_fields(run: HubRun) -> None:
    """S1-03: a field that is missing is named by its path; several are named at once, at most 16, then truncated."""
    journey = await run.journey().to("diagnosed")
    good = journey.prescription
    position = await run.entries()
    for field in MANDATORY:
        text = _copy(good)
        text.ClearField(field)  # type: ignore[arg-type]
        await _malformed(run, journey, text, [f"prescription.{field}"])
    for field in MANDATORY_IN_LINES:
        text = _copy(good)
        text.lines[1].ClearField(field)  # type: ignore[arg-type]
        await _malformed(run, journey, text, [f"prescription.lines[1].{field}"])
    diagnosis = _copy(good)
    diagnosis.diagnoses[0].ClearField("code")
    await _malformed(run, journey, diagnosis, ["prescription.diagnoses[0].code"])
    several = _copy(good)
    for field in MANDATORY[:3]:
        several.ClearField(field)  # type: ignore[arg-type]
    await _malformed(run, journey, several, [f"prescription.{field}" for field in MANDATORY[:3]])
    empty = common_pb2.Prescription(lines=[common_pb2.RxLine() for _ in range(3)])
    answer = await run.hospital.ask(await journey.precheck_request(empty))
    if run.refused(answer, "INPUT_MALFORMED", where="everything at once") and answer.refusal is not None:
        run.checks.equal(
            (len(answer.refusal.violations), answer.refusal.truncated),
            (VIOLATIONS_MAX, True),
            point="sut",
            en="at most 16 violations are shown, and that there are more",
            zh="最多列出16处，并标明已截断",
        )
    nothing = await run.hospital.raw.call("Prescribing/PrecheckPrescription", b"")
    run.refused(nothing, "INPUT_MALFORMED", field="request_id")
    await run.no_effect(position)
    run.accepted(await run.hospital.ask(await journey.precheck_request()), "complete it passes", "完整的处方应通过")


async def _malformed(run: HubRun, journey: Any, text: common_pb2.Prescription, paths: list[str]) -> None:
    answer = await run.hospital.ask(await journey.precheck_request(text))
    if not run.refused(answer, "INPUT_MALFORMED", where=paths[0]) or answer.refusal is None:
        return
    shown = {violation.field for violation in answer.refusal.violations}
    run.checks.that(
        set(paths) <= shown,
        point="sut",
        en="each field that is missing is named",
        zh="应指明每个缺失字段",
        expected=paths,
        actual=sorted(shown),
        where=paths[0],
    )


def _copy(prescription: common_pb2.Prescription) -> common_pb2.Prescription:
    copy = common_pb2.Prescription()
    copy.CopyFrom(prescription)
    return copy


@case(
    id="RX-005",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="当日目录中没有的药品",
    title_en="A drug that is not in today's catalogue",
    level="MUST",
    verifies=("ERR-DRUG_UNKNOWN", "RX-K-01"),
    needs=("clock",),
    profiles=PROFILES,
)
async def drug_not_in_catalogue(run: HubRun) -> None:
    """S1-01: the edition in force on the day of the hub's clock counts; it changes at 00:00 in Beijing."""
    journey = await run.journey().to("diagnosed")
    unknown = _copy(journey.prescription)
    unknown.lines[0].drug_code = "XZ99ZZZ999A001010199999"
    answer = await run.hospital.ask(await journey.precheck_request(unknown))
    run.refused(answer, "DRUG_UNKNOWN", field="prescription.lines[0].drug_code")
    gone = journey.prescription.lines[0].drug_code
    today = datetime.fromtimestamp(run.now_ms // 1000, UTC) + BEIJING
    tomorrow = (today + timedelta(days=1)).date()
    midnight_ms = int((datetime(tomorrow.year, tomorrow.month, tomorrow.day, tzinfo=UTC) - BEIJING).timestamp()) * 1000
    drugs = next(file for file in catalogue() if file.dataset == catalog_pb2.CATALOG_DATASET_DRUGS)
    await run.agency.client.import_catalog(
        dataset=drugs.dataset,
        edition="conform-tomorrow",
        valid_from_on=tomorrow.isoformat(),
        file_sha256=drugs.sha256,
        entries=[entry for entry in drugs.entries if entry.drug.code != gone],
    )
    await run.advance(until_ms=midnight_ms - 1)
    last = await run.journey().to("diagnosed")
    answer = await run.hospital.ask(await last.precheck_request())
    run.accepted(answer, "it may be prescribed until the last millisecond of the day", "当日最后一刻仍可开具")
    await run.advance(until_ms=midnight_ms)
    late = await run.journey().to("diagnosed")
    answer = await run.hospital.ask(await late.precheck_request())
    run.refused(answer, "DRUG_UNKNOWN", field="prescription.lines[0].drug_code")


@case(
    id="RX-006",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="用量超过规定天数且未注明理由",
    title_en="Supply beyond the day limit without a reason",
    level="MUST",
    verifies=("ERR-RX_SUPPLY_DAYS", "RX-P-03"),
    profiles=PROFILES,
)
async def supply_beyond_limit(run: HubRun) -> None:
    """P-03: more days than the limit need a written reason; the refusal names the rule and the line."""
    journey = await run.journey().to("diagnosed")
    text = _copy(journey.prescription)
    text.lines[0].supply_days = 8
    answer = await run.hospital.ask(await journey.precheck_request(text))
    run.refused(answer, "RX_SUPPLY_DAYS", field="prescription.lines[0].supply_days")
    rules = answer.refusal.rule_ids if answer.refusal is not None else ()
    run.checks.that(
        "P-03" in rules, point="sut", en="the refusal names the rule P-03", zh="应指明规则 P-03", actual=rules
    )
    text.supply_reason = "病情稳定，外出期间用药"
    reasoned = await run.hospital.ask(await journey.precheck_request(text))
    run.accepted(reasoned, "with a reason it passes", "注明理由后应通过")


@case(
    id="RX-007",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="医师未登记或被暂停",
    title_en="A doctor who is not registered here, or suspended",
    level="MUST",
    verifies=("ERR-DR_NOT_ALLOWED", "INV-I15", "RX-P-12", "LC-3.9-practitioner.suspended"),
    needs=("sandbox",),
    profiles=PROFILES,
)
async def doctor_not_allowed(run: HubRun) -> None:
    """P-12, I15: a doctor prescribes who is registered at this institution and not suspended, checked at every step."""
    journey = await run.journey().to("visited")
    start = run.hospital.drafts.start_encounter
    for doctor in ("D330100999999", SeedWorld.doctor_b_code):
        request = await start(encounter_id=journey.encounter_id, doctor_code=doctor)
        run.refused(await run.hospital.ask(request), "DR_NOT_ALLOWED", where=doctor)
    await journey.to("prechecked")
    upload = await journey.upload_request()
    other = _copy(journey.prescription)
    other.hospital_rx_no += "-2"
    precheck = await journey.precheck_request(other)
    doctor = run.hospital.staff["doctor"]
    change = run.agency.client.change_practitioner_status
    await change(practitioner_code=doctor, status=registry_pb2.PRACTITIONER_STATUS_SUSPENDED, case_no="CASE-1")
    run.refused(await run.hospital.ask(precheck), "DR_NOT_ALLOWED", where="Prescribing/PrecheckPrescription")
    run.refused(await run.hospital.ask(upload), "DR_NOT_ALLOWED", where="Prescribing/UploadPrescription")
    await run.chain(journey.rx_no, events={"prescription.effective": 0}, refusals={"DR_NOT_ALLOWED": 1})
    await change(practitioner_code=doctor, status=registry_pb2.PRACTITIONER_STATUS_ACTIVE, case_no="CASE-1")
    run.accepted(await run.hospital.ask(upload), "the same upload succeeds afterwards", "恢复后同一上传应被受理")


@case(
    id="RX-011",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="其他医院、其他医师撤销",
    title_en="Undo by another hospital, and by another doctor",
    level="MUST",
    verifies=("ERR-RX_UNKNOWN", "ERR-RX_UNDO_DENIED", "INV-I21"),
    profiles=PROFILES,
)
async def undo_by_others(run: HubRun) -> None:
    """X-08, I21: only the issuing doctor; another hospital gets the same bytes as for a number that does not exist."""
    journey = await run.journey().to("effective")
    position = await run.entries()
    doctor_b = run.hospital_b.staff["doctor"]
    foreign = await run.hospital_b.ask(
        await run.hospital_b.drafts.revoke(rx_no=journey.rx_no, doctor_code=doctor_b, reason="误操作")
    )
    nobody = await run.hospital_b.ask(
        await run.hospital_b.drafts.revoke(rx_no=_no_such(journey.rx_no), doctor_code=doctor_b, reason="误操作")
    )
    run.refused(foreign, "RX_UNKNOWN")
    run.checks.equal(
        (foreign.details, foreign.trailers.get("grpc-status-details-bin")),
        (nobody.details, nobody.trailers.get("grpc-status-details-bin")),
        point="sut",
        en="the answer is the same, byte for byte, as for a number that does not exist",
        zh="应与不存在的编号逐字节相同",
    )
    colleague = await journey.revoke_request(doctor_code=SeedWorld.junior_doctor_code)
    run.refused(await run.hospital.ask(colleague), "RX_UNDO_DENIED")
    await run.no_effect(position)
    await run.stands(journey.rx_no, "EFFECTIVE", "UNUSED")
    run.accepted(await run.hospital.ask(await journey.revoke_request()), "the issuing doctor may", "原开方医师可撤销")
    await run.chain(
        journey.rx_no,
        events={"prescription.undone": 1},
        refusals={"RX_UNKNOWN": 1, "RX_UNDO_DENIED": 1},
        light="CLOSED",
    )


def _no_such(rx_no: str) -> str:
    return rx_no[:6] + "".join(str((int(digit) + 5) % 10) for digit in rx_no[6:])


@case(
    id="RX-013",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="开方时间在将来或早于就诊",
    title_en="A prescribing time in the future, or before the visit",
    level="MUST",
    verifies=("ERR-RX_TIME", "RX-P-24", "ERR-RX_VALIDITY"),
    profiles=PROFILES,
)
async def impossible_prescribing_time(run: HubRun) -> None:
    """P-24: prescribed after the visit began and not in the hub's future; the end is exactly days later (P-01)."""
    journey = await run.journey().to("diagnosed")
    changes: tuple[tuple[str, Callable[[common_pb2.Prescription], None], str, str], ...] = (
        ("in the future", _moved(3_600_000), "RX_TIME", "prescription.prescribed_at_ms"),
        ("before the visit", _moved(-3_600_000), "RX_TIME", "prescription.prescribed_at_ms"),
        ("an end that does not fit", _longer, "RX_VALIDITY", ""),
    )
    for where, change, code, field in changes:
        text = _copy(journey.prescription)
        change(text)
        answer = await run.hospital.ask(await journey.precheck_request(text))
        run.refused(answer, code, field=field, where=where)
    run.accepted(await run.hospital.ask(await journey.precheck_request()), "unchanged it passes", "未修改的处方应通过")


def _moved(by_ms: int) -> Callable[[common_pb2.Prescription], None]:
    def change(text: common_pb2.Prescription) -> None:
        text.prescribed_at_ms += by_ms
        text.valid_until_ms += by_ms

    return change


def _longer(text: common_pb2.Prescription) -> None:
    text.valid_until_ms += 1


@case(
    id="RX-014",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="临床内容相同、院内编号不同",
    title_en="The same clinical content under a new hospital number",
    level="MUST",
    verifies=("ERR-RX_DUPLICATE", "INV-I19"),
    profiles=PROFILES,
)
async def same_content_again(run: HubRun) -> None:
    """X-01: a hospital number names one content; another number is a prescription of its own, never silently merged."""
    journey = await run.journey().to("prechecked")
    position = await run.entries()
    same = await run.hospital.ask(await journey.precheck_request())
    run.checks.equal(
        run.must_accept(same).rx_no,
        journey.rx_no,
        point="sut",
        en="the same number with the same content is the same prescription",
        zh="同编号同内容应返回同一处方",
    )
    await run.no_effect(position)
    other = _copy(journey.prescription)
    other.department = "全科门诊"
    run.refused(await run.hospital.ask(await journey.precheck_request(other)), "RX_DUPLICATE")
    await run.no_effect(position)
    renamed = _copy(journey.prescription)
    renamed.hospital_rx_no += "-B"
    second = run.must_accept(await run.hospital.ask(await journey.precheck_request(renamed)))
    run.checks.that(
        second.rx_no != journey.rx_no and second.rx_trace_code != journey.rx_trace_code,
        point="sut",
        en="another number is a prescription of its own",
        zh="新编号应为独立处方",
        actual=(journey.rx_no, second.rx_no),
    )
    await journey.upload()
    await run.chain(journey.rx_no, events={"prescription.effective": 1})
    await run.chain(second.rx_no, events={"prescription.effective": 0, "prescription.prechecked": 1})
