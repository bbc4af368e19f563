"""What a person types and the files he names: how they are read, and how they are refused."""

import json
from pathlib import Path
from typing import Any

import click
import pytest

from erxhub.cli import statements
from erxhub.cli.arguments import (
    BusinessType,
    DiagnosisArgument,
    DiagnosisType,
    InstantType,
    LotArgument,
    LotType,
    PositionType,
    SaleArgument,
    SaleType,
    iso_beijing,
)
from erxhub.cli.local_errors import Failed
from erxhub.cli.records import enum_word, record, trace_record
from erxhub.seed import SeedWorld, sample_prescription
from erxhub.v1 import audit_pb2, common_pb2, dispensing_pb2, patient_pb2, prescribing_pb2, signed_pb2

NOW_MS = 1_795_312_800_000
RX_NO = "330100000000000000000000001"


# --- arguments ---


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("I10.x00x002", DiagnosisArgument("I10.x00x002", "", "1")),
        ("I10.x00x002:高血压", DiagnosisArgument("I10.x00x002", "高血压", "1")),
        ("A04.01.01:眩晕:2", DiagnosisArgument("A04.01.01", "眩晕", "2")),
        ("I10:a:b", DiagnosisArgument("I10", "a:b", "1")),
    ],
)
def test_a_diagnosis_is_a_code_with_an_optional_name_and_type(typed: str, meant: DiagnosisArgument) -> None:
    assert DiagnosisType().convert(typed, None, None) == meant


def test_a_sold_line_is_number_quantity_and_price() -> None:
    assert SaleType().convert("1=2@12.50", None, None) == SaleArgument(1, "", "2", "12.50")
    assert SaleType().convert("2:XA01=0.5@3", None, None) == SaleArgument(2, "XA01", "0.5", "3")


def test_a_lot_has_its_expiry_and_any_number_of_codes() -> None:
    assert LotType().convert("1=2@L1/2027-12-31/81,82", None, None) == LotArgument(
        1, "", "2", "L1", "2027-12-31", ("81", "82")
    )
    assert LotType().convert("1=2@L1/2027-12-31", None, None).trace_codes == ()


@pytest.mark.parametrize(
    ("kind", "typed"),
    [
        (DiagnosisType(), ":高血压"),
        (SaleType(), "1=2"),
        (SaleType(), "1=-2@3"),
        (SaleType(), "1=NaN@3"),
        (LotType(), "1=2@L1"),
        (LotType(), "1=2@L1/31.12.2027"),
        (BusinessType(), "1234"),
        (InstantType(), "yesterday"),
        (PositionType(), "30.2"),
    ],
)
def test_what_cannot_be_read_is_refused_with_an_example(kind: click.ParamType[Any], typed: str) -> None:
    with pytest.raises(click.BadParameter):
        kind.convert(typed, None, None)


def test_business_types_have_names_and_digits() -> None:
    assert BusinessType().convert("visit", None, None) == "01201"
    assert BusinessType().convert("01302", None, None) == "01302"


def test_a_time_without_an_offset_is_beijing_time() -> None:
    assert InstantType().convert("2026-11-22T10:00:00", None, None) == NOW_MS
    assert InstantType().convert("2026-11-22T02:00:00+00:00", None, None) == NOW_MS
    assert iso_beijing(NOW_MS + 7) == "2026-11-22T10:00:00.007+08:00"


def test_a_position_is_kept_in_millionths() -> None:
    assert PositionType().convert("30.2741,-120.1551", None, None) == (30_274_100, -120_155_100)


# --- replies as JSON ---


def test_a_reply_shows_words_times_and_digits() -> None:
    reply = prescribing_pb2.UploadPrescriptionResponse(
        rx_no=RX_NO,
        statuses=common_pb2.RxStatuses(rx=common_pb2.RX_STATUS_EFFECTIVE),
        valid_until_ms=NOW_MS,
        receipt=common_pb2.Receipt(max_merge_delay_ms=60_000, signature=b"\x01\xff"),
    )
    shown = record(reply)
    assert shown["statuses"] == {"rx": "EFFECTIVE", "use": None, "undo_requested": False}
    assert shown["valid_until"] == "2026-11-22T10:00:00.000+08:00"
    assert record(patient_pb2.Access(at_ms=NOW_MS))["at"] == "2026-11-22T10:00:00.000+08:00"
    assert shown["receipt"]["max_merge_delay_ms"] == 60_000
    assert shown["receipt"]["signature"] == "01ff"
    assert record(prescribing_pb2.UploadPrescriptionResponse())["statuses"] is None
    assert json.loads(json.dumps(shown)) == shown


def test_an_enum_value_of_tomorrow_is_its_number() -> None:
    assert enum_word(common_pb2.RxUseStatus.DESCRIPTOR, 2) == "HELD"
    assert enum_word(common_pb2.RxUseStatus.DESCRIPTOR, 0) is None
    assert enum_word(common_pb2.RxUseStatus.DESCRIPTOR, 99) == "99"


def traced() -> audit_pb2.TraceChainResponse:
    return audit_pb2.TraceChainResponse(
        rx_no=RX_NO,
        light=audit_pb2.LIGHT_CLOSED,
        entries=[
            audit_pb2.TraceEntry(
                stage=audit_pb2.STAGE_PRESCRIPTION,
                stream_kind="prescription",
                stream_key=bytes(range(32)),
                version=3,
                type="prescription.undone",
                at_ms=NOW_MS,
                actor="hospital/H33010099901",
                flow=audit_pb2.FLOW_INFORMATION,
                leaf_hash=b"\xab" * 32,
                summary="undone",
            )
        ],
        flows=[audit_pb2.FlowSummary(flow=audit_pb2.FLOW_FUND, agrees=True, summary="no money moved")],
        accesses=[audit_pb2.TraceAccess(at_ms=NOW_MS, actor="auditor/a", kind="access", method="m", outcome="OK")],
        as_of_position=17,
    )


def test_a_trace_is_the_promised_object() -> None:
    shown = trace_record(traced(), verify=False)
    assert list(shown) == [
        "rx_no", "light", "complete", "gaps", "verified", "as_of", "stages", "flows", "accesses",
    ]  # fmt: skip
    assert shown["light"] == "CLOSED"
    assert shown["complete"] is True
    assert shown["verified"] is None
    assert shown["as_of"] == 17
    assert [stage["stage"] for stage in shown["stages"]] == ["diagnosis", "prescription", "transaction", "delivery"]
    assert shown["stages"][1]["entries"] == [
        {
            "stream": "prescription/0001020304050607",
            "version": 3,
            "type": "prescription.undone",
            "at": "2026-11-22T10:00:00.000+08:00",
            "actor": "hospital/H33010099901",
            "flow": "information",
            "leaf_hash": "ab" * 32,
            "summary": "undone",
        }
    ]
    assert shown["flows"]["fund"] == {"agrees": True, "summary": "no money moved"}
    assert shown["accesses"] == [
        {"at": "2026-11-22T10:00:00.000+08:00", "actor": "auditor/a", "kind": "access", "method": "m", "outcome": "OK"}
    ]


def test_a_trace_always_has_its_four_stages_and_three_flows() -> None:
    shown = trace_record(audit_pb2.TraceChainResponse(light=audit_pb2.LIGHT_OPEN), verify=True)
    assert len(shown["stages"]) == 4
    assert list(shown["flows"]) == ["information", "fund", "goods"]
    assert shown["verified"] is False
    assert shown["complete"] is False


# --- files ---


def world() -> Any:
    return SeedWorld


def prescription() -> common_pb2.Prescription:
    return sample_prescription(world(), "encounter-1", SeedWorld.person_no, NOW_MS)


def test_a_prescription_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "rx.json"
    statements.write_message(path, prescription())
    assert path.stat().st_mode & 0o077 == 0
    assert statements.checked_prescription(str(path)) == prescription()
    assert "hospital_rx_no" in json.loads(path.read_text())


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"{", b"[]", b'{"no_such_field": 1}', b'{"valid_days": "many"}', b'{"valid_days": 1e99}']
)
def test_a_file_that_is_no_prescription_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rx.json"
    path.write_bytes(content)
    with pytest.raises(Failed, match=r"rx\.json"):
        statements.read_message(str(path), common_pb2.Prescription)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"There is no file or folder .*nothing\.json\."):
        statements.read_json(str(tmp_path / "nothing.json"))


def test_defaults_fill_holes_and_options_win() -> None:
    content = common_pb2.Prescription(encounter_id="old", valid_days=2)
    statements.fill_prescription(
        content, now_ms=NOW_MS, hospital_code="H33010099901", hospital_rx_no="RX-1", encounter_id="new"
    )
    assert content.encounter_id == "new"
    assert content.hospital_code == "H33010099901"
    assert content.valid_until_ms == NOW_MS + 2 * 86_400_000
    assert content.origin == common_pb2.PRESCRIPTION_ORIGIN_UNSPECIFIED


def test_an_incomplete_prescription_cannot_be_uploaded(tmp_path: Path) -> None:
    path = tmp_path / "rx.json"
    path.write_text('{"hospital_code": "H33010099901"}')
    with pytest.raises(Failed, match="prescribed_at_ms"):
        statements.checked_prescription(str(path))


def test_the_first_diagnosis_is_the_main_one() -> None:
    typed = [
        DiagnosisArgument("I10", "", "1"),
        DiagnosisArgument("E11", "糖尿病", "1"),
        DiagnosisArgument("Z", "", "1"),
    ]
    found = statements.diagnoses_of(typed, {"I10": "高血压"})
    assert [(one.name, one.main) for one in found] == [("高血压", True), ("糖尿病", False), ("Z", False)]


def download() -> dispensing_pb2.DownloadPrescriptionResponse:
    document = signed_pb2.PrescriptionDocument(rx_no=RX_NO, prescription=prescription())
    return dispensing_pb2.DownloadPrescriptionResponse(
        rx_no=RX_NO,
        prescription=common_pb2.Signed(payload_type="t", payload=document.SerializeToString()),
        file=common_pb2.PrescriptionFile(media_type="application/pdf", data=b"%PDF"),
    )


def test_a_download_is_kept_exactly_and_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "shelf"
    written = statements.write_download(folder, download())
    assert [path.name for path in written] == ["prescription.pdf", "prescription.bin", "signatures.json"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in [folder, *written])
    assert (folder / "prescription.bin").read_bytes() == download().prescription.payload
    kept = statements.read_download(folder, RX_NO)
    assert kept.signed == download().prescription
    assert kept.line(2).line_no == 2
    with pytest.raises(Failed):
        kept.line(9)


def test_an_altered_or_foreign_download_is_not_used(tmp_path: Path) -> None:
    statements.write_download(tmp_path, download())
    with pytest.raises(Failed, match="does not hold"):
        statements.read_download(tmp_path, "330100000000000000000000002")
    (tmp_path / "prescription.bin").write_bytes(b"other")
    with pytest.raises(Failed, match="not what was downloaded"):
        statements.read_download(tmp_path, RX_NO)


def test_lines_without_words_are_the_whole_prescription(tmp_path: Path) -> None:
    statements.write_download(tmp_path, download())
    kept = statements.read_download(tmp_path, RX_NO)
    lines = prescription().lines
    assert [line.drug_code for line in statements.sale_lines([], kept)] == [line.drug_code for line in lines]
    typed = statements.sale_lines([SaleArgument(2, "", "1", "9.90")], kept)
    assert [(line.line_no, line.drug_code, line.unit_price) for line in typed] == [(2, lines[1].drug_code, "9.90")]
    with pytest.raises(Failed):
        statements.sale_lines([], None)


def test_lots_know_opened_packs_and_old_stock() -> None:
    typed = [LotArgument(1, "XA", "1", "L1", "2027-12-31", ())]
    lots = statements.dispensed_lots(typed, None, uncoded_lines=[1])
    assert lots[0].without_code
    assert not lots[0].split_pack
    with pytest.raises(Failed, match="line 2"):
        statements.dispensed_lots(typed, None, split_lines=[2])
    with pytest.raises(Failed, match="needs its drug"):
        statements.dispensed_lots([typed[0]._replace(drug_code="")], None)


def test_a_quote_is_read_back_as_it_was_printed(tmp_path: Path) -> None:
    reply = dispensing_pb2.QuoteSettlementResponse(
        quote_id="Q1", amounts=signed_pb2.ClaimAmounts(total_fen=3261, cash_fen=978)
    )
    saved, printed = tmp_path / "saved.json", tmp_path / "printed.json"
    statements.write_quote(saved, reply)
    printed.write_text(json.dumps(record(reply)))
    assert statements.read_quote(str(saved)) == ("Q1", reply.amounts)
    assert statements.read_quote(str(printed)) == ("Q1", reply.amounts)
    printed.write_text("{}")
    with pytest.raises(Failed, match="no quote"):
        statements.read_quote(str(printed))
