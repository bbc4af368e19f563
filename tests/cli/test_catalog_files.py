"""Reading code lists: what is taken, what is left out, and by which line."""

from pathlib import Path

import pytest

from erxhub.cli import catalog_files
from erxhub.cli.catalog_files import CatalogFile, find_files, parse, read_file
from erxhub.cli.local_errors import Failed
from erxhub.policy.codes import drug_kind
from erxhub.v1 import catalog_pb2

DRUG_HEADER = "code,kind,generic_name,class,limits,insured,prior_pay_ratio,units_per_pack,pack"
WESTERN = "XC08CAA999A001010199001"


def drugs(*lines: str, header: str = DRUG_HEADER) -> CatalogFile:
    return parse("drugs.csv", "drugs", "\n".join([header, *lines]).encode())


@pytest.mark.parametrize(
    ("cells", "charge_class", "ratio"),
    [
        ("甲,,Y,0", "01", "0"),
        ("甲,,Y,", "01", "0"),
        ("乙,,Y,0.10", "02", "0.10"),
        ("乙,,Y,", "02", "0"),
        ("乙,,N,0.10", "03", "1"),
        ("甲,,Y,1", "03", "1"),
        (",,N,1", "03", "1"),
        (",,,", "03", "1"),
        ("丙,,,", "03", "1"),
    ],
)
def test_class_and_ratio_of_a_drug_follow_from_its_payment(cells: str, charge_class: str, ratio: str) -> None:
    file = drugs(f"{WESTERN},western,示例片,{cells},28,28片/盒")
    assert file.faults == ()
    drug = file.entries[0].drug
    assert (drug.charge_class, drug.prior_pay_ratio) == (charge_class, ratio)


def test_an_unknown_ratio_of_an_insured_drug_is_named_as_an_assumption() -> None:
    file = drugs(f"{WESTERN},western,示例片,乙,,Y,,28,28片/盒", f"{WESTERN[:-1]}2,western,示例片,甲,,Y,,28,28片/盒")
    assert [(note.line, note.field) for note in file.notes] == [(2, "prior_pay_ratio")]


def test_limits_pack_and_the_optional_columns_are_kept() -> None:
    header = "code,kind,generic_name,class,insured,limits,units_per_pack,pack,control,dual_channel,cold_chain"
    file = drugs(f"{WESTERN},western,示例片,乙,Y,限二线,30,30片/盒,narcotic,Y,Y", header=header)
    drug = file.entries[0].drug
    assert (drug.limits, drug.units_per_pack, drug.pack) == ("限二线", "30", "30片/盒")
    assert drug.control == catalog_pb2.DRUG_CONTROL_NARCOTIC
    assert drug.dual_channel
    assert drug.cold_chain
    assert not drug.hospital_preparation


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (f"{WESTERN},herbal,示例,甲,,Y,0,,", "kind"),
        (f"{WESTERN},mineral,示例,甲,,Y,0,,", "kind"),
        (f"{WESTERN},western,,甲,,Y,0,,", "generic_name"),
        (f"{WESTERN},western,示例,丁,,Y,0,,", "class"),
        (f"{WESTERN},western,示例,甲,,maybe,0,,", "insured"),
        (f"{WESTERN},western,示例,乙,,Y,1.5,,", "prior_pay_ratio"),
        (f"{WESTERN},western,示例,乙,,Y,NaN,,", "prior_pay_ratio"),
        (f"{WESTERN},western,示例,乙,,Y,-0.1,,", "prior_pay_ratio"),
        (f"{WESTERN},western,示例,甲,,Y,0,many,", "units_per_pack"),
        (",western,示例,甲,,Y,0,,", "code"),
        (f"{WESTERN},western,示例,甲", ""),
    ],
)
def test_a_wrong_line_is_left_out_and_named(line: str, field: str) -> None:
    good = "T990000001,herbal,示例草,甲,,Y,0,,"
    file = drugs(line, good)
    assert [entry.line for entry in file.entries] == [3]
    assert [(fault.line, fault.field) for fault in file.faults] == [(2, field)]
    assert file.faults[0].message_en
    assert file.faults[0].message_zh
    assert file.lines == 2


def test_a_repeated_code_names_the_first_line() -> None:
    line = f"{WESTERN},western,示例片,甲,,Y,0,,"
    file = drugs(line, line)
    assert len(file.entries) == 1
    assert "line 2" in file.faults[0].message_en


def test_a_quoted_cell_may_span_lines_and_the_row_is_named_by_its_first() -> None:
    file = drugs(f'{WESTERN},western,示例片,甲,"限\n二线",Y,0,,', "T990000001,herbal,示例草,丁,,Y,0,,")
    assert file.entries[0].line == 2
    assert file.faults[0].line == 4


def test_diseases_say_what_may_be_prescribed() -> None:
    text = "code,name,parent,level\nI10,高血压,,category\nI10.x00x002,高血压,I10,diagnosis\nI11,心,,chapter\n"
    file = parse("diseases.csv", "diseases", text.encode())
    assert [(entry.disease.code, entry.disease.is_diagnosis) for entry in file.entries] == [
        ("I10", False),
        ("I10.x00x002", True),
    ]
    assert [fault.field for fault in file.faults] == ["level"]


def test_a_frequency_without_arithmetic_has_zeros() -> None:
    text = "code,abbr,name,times,period_days,schedule\n51,,12小时维持,,,continuous\n11,qd,每天一次,x,1,regular\n"
    file = parse("frequencies.csv", "frequencies", text.encode())
    frequency = file.entries[0].frequency
    assert (frequency.times, frequency.period_days) == (0, 0)
    assert [fault.field for fault in file.faults] == ["times"]


def test_a_byte_order_mark_is_no_part_of_the_first_column() -> None:
    file = parse("chronic.csv", "chronic", b"\xef\xbb\xbfcode,name\nM03900,\xe9\xab\x98\n")
    assert file.entries[0].chronic.code == "M03900"


@pytest.mark.parametrize(
    "data", [b"", b"name,code_\n", "code,name\nM03900,高".encode("gb18030"), b'code,name\nM03900,"open\n']
)
def test_a_file_that_is_no_code_list_is_refused_as_a_whole(data: bytes) -> None:
    with pytest.raises(Failed, match=r"x\.csv"):
        parse("x.csv", "chronic", data)


def test_a_folder_gives_one_file_for_each_dataset(tmp_path: Path) -> None:
    for name in ("regions.csv", "regions_nhsa.csv", "drugs.csv", "tcm_diseases.csv"):
        (tmp_path / name).write_text("code,name,level\n")
    assert [path.name for path in find_files(tmp_path)] == ["drugs.csv", "regions_nhsa.csv"]
    with pytest.raises(Failed, match="holds no code list"):
        find_files(tmp_path.parent / "elsewhere")


def test_a_file_of_another_name_needs_its_dataset(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("code,name\nM03900,高血压病\n")
    with pytest.raises(Failed, match="--dataset"):
        read_file(path)
    assert len(read_file(path, "chronic").entries) == 1


def test_the_shared_lists_are_taken_without_a_fault(shared: Path) -> None:
    files = [read_file(path) for path in find_files(shared / "data")]
    assert [file.dataset for file in files] == list(catalog_files.DATASETS)
    assert [file.faults for file in files] == [()] * 5
    assert all(drug_kind(entry.drug.code) for entry in files[0].entries)
